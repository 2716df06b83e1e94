//! Certificates, HTTP, keys and people who administer: renewal while streams are open, the public log as strangers read it,
//! rotation of each of the ledger's own keys, succession of the root, alarms and status over restarts.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use bytes::Bytes;
use custody::{
    hash::{root_successor, sha256},
    id::{RootHash, hex, unhex},
    key::PublicKey,
    log::{TILE_WIDTH, tile_path},
    merkle::{LogTree, Tree, log_leaf},
    note::SignedCheckpoint,
};
use custody_tests::{
    oracle::check_all,
    peer::{self, Fault, Gateway, now_us, served, ship},
    process::{Home, Process, SETTINGS, binary, end, offline, pause, text, write},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

/// Puts a certificate that is due for renewal in `seconds` in the place of one of the ledger's own: of its life of an hour
/// and a half an hour is over then.
fn shorten(home: &Home, name: &str, seconds: u64) -> String {
    let tls = home.dir.join("tls");
    let read = |file: &str| std::fs::read_to_string(tls.join(file)).unwrap();
    let authority = rcgen::KeyPair::from_pem(&read("authority.key")).unwrap();
    // What an issuer lends to a certificate is its name, which the ledger derives from the origin, and its key.
    let mut issuer = rcgen::CertificateParams::new(Vec::new()).unwrap();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    let digest = hex(&sha256(&[home.origin.as_bytes()]));
    issuer.distinguished_name.push(rcgen::DnType::CommonName, format!("Custody authority {}", &digest[..16]));
    issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let issuer = rcgen::Issuer::from_params(&issuer, authority);
    let own = rcgen::KeyPair::from_pem(&read(&format!("{name}.key"))).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = rcgen::CertificateParams::new(if name == "server" { names } else { Vec::new() }).unwrap();
    if name == "admin" {
        let uri = format!("custody://{}/admin/local", home.origin);
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
    }
    let now = Duration::from_micros(now_us());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + (now - Duration::from_secs(3_600 - seconds));
    params.not_after = params.not_before + Duration::from_secs(5_400);
    let leaf = params.signed_by(&own, &issuer).unwrap().pem();
    write(&tls.join(format!("{name}.pem")), format!("{leaf}{}", read("authority.pem")).as_bytes());
    leaf
}

/// The first certificate of some.
fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// The certificate that the port shows now.
async fn shown(gateway: &Gateway, port: u16) -> CertificateDer<'static> {
    let all = |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect::<Vec<_>>();
    let mut roots = RootCertStore::empty();
    for authority in all(&gateway.door.authority) {
        roots.add(authority).unwrap();
    }
    let key = PrivateKeyDer::from_pem_slice(gateway.door.tls_key.as_bytes()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = config.with_client_auth_cert(all(&gateway.door.certificate), key).unwrap();
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_renew_while_streams_are_open_and_the_port_stays_open() {
    let home = Home::new("renewal", SETTINGS);
    let mut gateway = {
        let process = home.start();
        let gateway = Gateway::enrol(&home, home.workspace("payments"));
        end(&process);
        gateway
    };
    // So long that the stream is open before the renewal; a machine that is too slow for it gets more time.
    for seconds in [4, 8, 16, 30] {
        let old = leaf(&shorten(&home, "server", seconds));
        let admin = leaf(&shorten(&home, "admin", seconds));
        let process = home.start();
        let mut session = gateway.connect(home.grpc).await.unwrap();
        ship(&mut gateway, &mut session, 1).await;
        if shown(&gateway, home.grpc).await != old {
            end(&process);
            continue;
        }
        for name in ["server", "admin"] {
            assert!(process.wait_line(&format!("\"certificate\":\"{name}\"")), "{}", process.log().join("\n"));
        }
        let file = |name: &str| leaf(&std::fs::read_to_string(home.dir.join("tls").join(name)).unwrap());
        let fresh = shown(&gateway, home.grpc).await;
        assert_ne!(fresh, old, "the old certificate is still shown");
        assert_eq!(fresh, file("server.pem"));
        assert_ne!(file("admin.pem"), admin);
        // The stream from before goes on, another gateway comes in, and the administrator does with the new certificate.
        ship(&mut gateway, &mut session, 2).await;
        let mut second = Gateway::enrol(&home, gateway.workspace);
        let mut other = second.connect(home.grpc).await.unwrap();
        ship(&mut second, &mut other, 1).await;
        ship(&mut gateway, &mut session, 1).await;
        end(&process);
        return check_all(&home, &home.policy(), &[&gateway, &second]);
    }
    panic!("the ledger renewed its certificate before anybody could connect, four times");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_holder_of_a_certificate_takes_no_others_connections() {
    let home = Home::new("greedy", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let (mut greedy, mut other) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(greedy.door.channel(home.grpc).await.unwrap());
    }
    assert!(greedy.connect(home.grpc).await.is_err(), "a connection too many was taken");
    assert!(process.wait_line("too many connections of one holder"));
    let mut session = other.connect(home.grpc).await.unwrap();
    ship(&mut other, &mut session, 1).await;
    // With one given back there is room for one, as soon as the ledger has seen its end.
    held.clear();
    let again = tokio::time::timeout(peer::ANSWER, async {
        loop {
            match greedy.connect(home.grpc).await {
                Ok(session) => return session,
                Err(_) => pause(Duration::from_millis(50)).await,
            }
        }
    });
    let mut session = again.await.expect("connections are given back");
    ship(&mut greedy, &mut session, 1).await;
    end(&process);
}

/// What a GET over HTTP answers: status line and body.
async fn get(port: u16, path: &str) -> (String, Bytes) {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..at].to_vec()).unwrap();
    (head.lines().next().unwrap().to_owned(), Bytes::copy_from_slice(&answer[at + 4..]))
}

/// The parts of an entry bundle (c2sp.org/tlog-tiles): each with its length in two bytes before it.
fn entries(mut bundle: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bundle.split_at_checked(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        all.push(rest[..length].to_vec());
        bundle = &rest[length..];
    }
    assert!(bundle.is_empty());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_reads_the_log_over_http_and_computes_its_root() {
    // A segment for each batch.
    let many = "segment.leaves_max = 1\npublish.unarchived_segments_max = 4096\n";
    let (home, process, mut gateway, mut session) = served("http", &(SETTINGS.to_owned() + many)).await;
    // More entries than a tile has, so that there is a full one, a partial one and one of the next level.
    let width = TILE_WIDTH;
    ship(&mut gateway, &mut session, width + 4).await;
    home.say(&["cut"]);
    let (status, note) = get(home.http, "/log/checkpoint").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    let note = SignedCheckpoint::parse(&note).unwrap();
    let (origin, size, root) = (&note.checkpoint.origin, note.checkpoint.size, note.checkpoint.root);
    assert_eq!(*origin, home.origin);
    assert!(note.is_signed_by(public_of(&home.dir.join("keys/log.key"))));
    assert!(size > width, "{size} entries");
    let mut tree = Tree::<LogTree>::default();
    for tile in 0..size.div_ceil(width) {
        let here = (size - tile * width).min(width);
        let (status, bundle) = get(home.http, &format!("/log/{}", tile_path("entries", tile, here))).await;
        assert_eq!(status, "HTTP/1.1 200 OK", "entries {tile}");
        let (status, hashes) = get(home.http, &format!("/log/{}", tile_path("0", tile, here))).await;
        assert_eq!(status, "HTTP/1.1 200 OK", "hashes {tile}");
        let leaves: Vec<[u8; 32]> = entries(&bundle).iter().map(|entry| log_leaf(entry).0).collect();
        assert_eq!(leaves.concat(), hashes, "tile {tile}");
        leaves.into_iter().for_each(|leaf| tree.push(leaf));
    }
    assert_eq!((tree.size(), tree.root()), (size, root));
    let (status, above) = get(home.http, &format!("/log/{}", tile_path("1", 0, 1))).await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(tree.root_at(width).map(|root: RootHash| Bytes::copy_from_slice(&root.0)), Some(above));
    for path in ["/log/tile/0/999", "/log/tile/0/../checkpoint", "/log/keys", "/"] {
        assert!(get(home.http, path).await.0.contains("404"), "{path}");
    }
    assert!(get(home.http, "/healthz").await.0.contains("200"));
    end(&process);
}

pub(super) fn public_of(file: &Path) -> PublicKey {
    let public = offline(&["root", "public", file.to_str().unwrap()]);
    PublicKey::new(&unhex(public.trim()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_succeeded_offline_and_the_old_one_has_no_say_any_more() {
    let home = Home::new("succession", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let mut before = Gateway::enrol(&home, workspace);
    let mut session = before.connect(home.grpc).await.unwrap();
    ship(&mut before, &mut session, 2).await;
    let path = |name: &str| home.dir.join(name).display().to_string();
    let (successor, next) = (path("root/root-successor.key"), path("root/next.key"));
    let (request, signed) = (path("succeed.request"), path("succeed.stmt"));
    let public = offline(&["root", "public", &successor]);
    let next_public = offline(&["key", "make", &next]).trim().rsplit(' ').next().unwrap().to_owned();
    let asked = ["key", "succeed-root", "--public-key", public.trim(), "--next-public-key", &next_public];
    home.say(&[&asked[..], &["--request-out", &request]].concat());
    let policy = home.policy().display().to_string();
    let old = home.root_key().display().to_string();
    let sign = ["root", "sign", &request, "--policy", &policy];
    // With the old root it is not signed; and signed by it all the same it is refused: who has that key may be a thief.
    let stolen = path("stolen.stmt");
    let refused = Command::new(binary("ledger")).args(sign).args(["--key", &old, "--out", &stolen]).output().unwrap();
    let why = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && why.contains("nothing was signed") && why.contains("hint:"), "{why}");
    let statement = std::fs::read(&request).unwrap();
    let thief = custody_tests::process::unsealed_key(&home.root_key());
    let signature = custody::key::sign(&thief, custody::key::Context::Statement, &statement);
    write(stolen.as_ref(), &custody::statement::encode_signed(&statement, signature));
    let why = home.refuses(&["statement", "submit", &stolen], 1);
    assert!(why.contains("hint:"), "{why}");
    offline(&[&sign[..], &["--key", &successor, "--out", &signed]].concat());
    home.say(&["statement", "submit", &signed]);
    home.say(&["statement", "submit", &signed]);
    // The old root has no say.
    let (late, asking) = Gateway::request(&home, workspace);
    let (file, answer) = late.files(&home);
    write(file.as_ref(), asking.to_string().as_bytes());
    home.refuses(&["gateway", "enrol", &file, "--out", &answer, "--root-key", &old], 1);
    let why = home.refuses(&["workspace", "add", "impostor", "--root-key", &old], 1);
    assert!(why.contains("the root was succeeded") && why.contains("hint:"), "{why}");
    // The new root has, and gateways from before go on.
    let mut after = Gateway::enrol_signed(&home, workspace, &["--root-key", &successor]);
    home.say(&["workspace", "add", "research", "--root-key", &successor]);
    ship(&mut before, &mut session, 2).await;
    let mut other = after.connect(home.grpc).await.unwrap();
    ship(&mut after, &mut other, 2).await;
    end(&process);
    let process = home.start();
    for gateway in [&mut before, &mut after] {
        let mut session = gateway.connect(home.grpc).await.unwrap();
        ship(gateway, &mut session, 2).await;
    }
    end(&process);
    // With the policy from before the succession, and with one that names both eras.
    check_all(&home, &home.policy(), &[&before, &after]);
    let mut policy: serde_json::Value = serde_json::from_slice(&std::fs::read(home.policy()).unwrap()).unwrap();
    let next_hash = root_successor(&unhex(&next_public).unwrap().try_into().unwrap());
    let era = serde_json::json!({ "era": 2, "public_key": public.trim(), "successor_hash": hex(&next_hash) });
    policy["roots"].as_array_mut().unwrap().push(era);
    let both = home.dir.join("both.json");
    write(&both, policy.to_string().as_bytes());
    check_all(&home, &both, &[&before, &after]);
    // A policy that names another root for the second era refutes.
    policy["roots"][1]["public_key"] = next_public.into();
    let wrong = home.dir.join("wrong.json");
    write(&wrong, policy.to_string().as_bytes());
    let mut verify = Command::new(binary("verifier"));
    let verified = verify.arg("verify").arg(home.archive()).arg("--policy").arg(&wrong).output().unwrap();
    assert_ne!(verified.status.code(), Some(0), "{}", text(&verified.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_gateways_key_are_seen_to_replace_each_other() {
    let home = Home::new("cloned", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let _first = gateway.connect(home.grpc).await.unwrap();
    let replaced = |body: &Bytes| text(body).lines().any(|line| line == "custody_streams_replaced_total 1");
    assert!(!replaced(&get(home.http, "/metrics").await.1));
    let mut second = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut second, 1).await;
    assert!(process.wait_line("replaces its older one"));
    assert!(replaced(&get(home.http, "/metrics").await.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_outlive_a_restart_and_the_status_lists_who_never_came() {
    let home = Home::new("alarms", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let (mut gateway, silent) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let (header, records) = (gateway.header(), gateway.records(1));
    let second = custody::batch::Header { created_at: header.created_at + 1, ..header.clone() };
    let (first, second) = (gateway.sign(header, &records), gateway.sign(second, &records));
    gateway.keep(first.clone());
    session.send(first).await.unwrap();
    gateway.settle(&mut session).await.unwrap();
    session.send(second).await.unwrap();
    gateway.refusal(&mut session).await.unwrap();
    assert!(home.alarm_stands("equivocation"));
    let status = home.status();
    let head = gateway.head().unwrap();
    let shown = &status["workspaces"].as_array().unwrap().iter().find(|w| w["name"] == "payments").unwrap();
    assert_eq!(shown["history_root"], hex(&head.history_root.0));
    assert!(shown["head_at"].as_u64() >= Some(gateway.acknowledged[0].received_at));
    let listed = shown["gateways"].as_array().unwrap();
    let of = |id: &str| listed.iter().find(|gateway| gateway["gateway"] == id).unwrap();
    assert_eq!(of(&silent.gateway.to_string())["last_heard_at"], 0);
    assert_eq!(of(&silent.gateway.to_string())["epoch"], "");
    assert_eq!(of(&gateway.gateway.to_string())["last_batch"], 0);
    assert_eq!(of(&gateway.gateway.to_string())["connected"], true);
    process.kill();
    let process = home.start();
    assert!(home.alarm_stands("equivocation"), "a restart dropped the alarm");
    home.say(&["acknowledge", "equivocation"]);
    process.kill();
    let process = home.start();
    assert!(!home.alarm_stands("equivocation"), "an acknowledged alarm came back");
    end(&process);
}

#[test]
fn a_missing_or_damaged_file_ends_the_start_for_good() {
    let home = Home::new("files", SETTINGS);
    for file in
        ["policy.json", "keys/record.key", "keys/head.key", "keys/log.key", "vault/members.vault", "tls/server.key"]
    {
        let path = home.dir.join(file);
        let good = std::fs::read(&path).unwrap_or_else(|why| panic!("{file}: {why}"));
        for bad in [Some(&b"damaged"[..]), None] {
            match bad {
                // The permissions stay as they are.
                Some(bytes) => write(&path, bytes),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let process = home.spawn(&[]);
            let (code, said) = (process.wait_end().code(), process.log().join("\n"));
            assert!(code == Some(2) && said.contains("failed to"), "{file}: {code:?} {said}");
        }
        write(&path, &good);
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, private).unwrap();
    }
    // In form, and another ledger's: of another log, or of this one's name under another root.
    let (other, good) =
        (std::fs::read(Home::new("other", SETTINGS).policy()).unwrap(), std::fs::read(home.policy()).unwrap());
    let renamed = text(&good).replace(&home.origin, "custody.test/other").into_bytes();
    for (bad, word) in [(other, "another ledger's"), (renamed, "custody.test/other")] {
        write(&home.policy(), &bad);
        let process = home.spawn(&[]);
        let (code, said) = (process.wait_end().code(), process.log().join("\n"));
        let named = ["policy.json", word, "hint:"].iter().all(|word| said.contains(word));
        assert!(code == Some(2) && named, "{code:?} {said}");
    }
    write(&home.policy(), &good);
    // A key in form that is not the certificate's: nobody is told that the ledger serves, while nobody could come in.
    let (key, admin) = (home.dir.join("tls/server.key"), home.dir.join("tls/admin.key"));
    let good = std::fs::read(&key).unwrap();
    write(&key, &std::fs::read(admin).unwrap());
    let process = home.spawn(&[]);
    let (code, said) = (process.wait_end().code(), process.log().join("\n"));
    assert!(code == Some(2) && said.contains("belong together"), "{code:?} {said}");
    write(&key, &good);
    let process = home.start();
    end(&process);
}

#[test]
fn a_sealed_ledger_starts_only_with_its_passphrase() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, secret) = (folder.path().join("ledger"), folder.path().join("secret"));
    let keep = |text: &str| {
        write(&secret, text.as_bytes());
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    keep("correct horse battery\n");
    let init = ["init", "--origin", "custody.test/e2e", "--passphrase-file", secret.to_str().unwrap(), "--dir"];
    offline(&[&init[..], &[dir.to_str().unwrap()]].concat());
    keep("another horse battery\n");
    let mut serve = Command::new(binary("ledger"));
    let process = Process::spawn(serve.arg("serve").arg("--config").arg(dir.join("ledger.toml")));
    assert_eq!(process.wait_end().code(), Some(2), "{}", process.log().join("\n"));
    assert!(process.log().join("\n").contains("passphrase"), "{}", process.log().join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_archive_says_what_is_left() {
    let (home, process, mut gateway, mut session) = served("left", SETTINGS).await;
    ship(&mut gateway, &mut session, 2).await;
    // What is written is on disk, so a copy of the folder is whole, with an open segment in it.
    let kept = tempfile::tempdir().unwrap();
    let copy = home.copy(&kept.path().join("copy"), &home.shared());
    end(&process);
    let process = home.start();
    let stale = copy.start();
    assert!(matches!(gateway.connect(copy.grpc).await, Err(Fault::Refused(_))));
    stale.terminate();
    assert_eq!(stale.wait_end().code(), Some(3), "{}", stale.log().join("\n"));
    let log = stale.log().join("\n");
    assert!(log.contains("old copy") && log.contains("hint:") && !log.contains("everything is archived"), "{log}");
    end(&process);
}

#[test]
fn a_command_that_is_refused_names_the_thing_and_the_next_move() {
    let home = Home::new("refusals", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let (asked, answered) = Gateway::enrol(&home, workspace).files(&home);
    let root = home.root_key().display().to_string();
    let none = "0".repeat(64);
    let with_root = ["--root-key", &root];
    let head = home.say(&["key", "list"]).lines().find(|line| line.contains("head key")).unwrap()[..64].to_owned();
    let offline = home.dir.join("offline").display().to_string();
    home.say(&["workspace", "add", "research", "--request-out", &offline]);
    std::fs::remove_file(&answered).unwrap();
    // What is typed, the exit code, and what must be in the answer; all are signed by the root, or would be.
    let refused: [(&[&str], i32, &str); 12] = [
        (&["workspace", "add", "payments"], 1, "names a workspace that exists"),
        (&["workspace", "add", "two words"], 64, "\"two words\""),
        (&["workspace", "remove", "research"], 1, "no workspace research"),
        (&["hold", "release", &none[..32], "--workspace", "payments"], 1, "releases a hold that does not stand"),
        (&["key", "revoke", &head], 1, "ends a key that this ledger signs with"),
        (&["key", "revoke", &none], 1, "names a key that is not enrolled"),
        (&["gateway", "enrol", "nofile", "--out", "answer.json"], 1, "nofile"),
        (&["gateway", "enrol", &offline, "--out", "answer.json"], 1, "enrolment request is not in form"),
        (&["key", "enrol", "--role", "head", "--new-key", "nokey"], 1, "nokey"),
        (&["workspace", "add", "x", "--reason", "two words"], 64, "\"two words\""),
        (&["key", "enrol", "--role", "head", "--public-key", "zz"], 64, "--public-key"),
        (&["workspace", "remove", &none[..32]], 1, "no such workspace"),
    ];
    for (args, code, names) in refused {
        let said = home.refuses(&[args, &with_root].concat(), code);
        let moves = code == 64 || said.contains("hint:");
        assert!(said.contains(names) && moves && !said.contains("Some("), "ledger {args:?}: {said}");
    }
    let unsigned: [(&[&str], &str); 5] = [
        (&["statement", "submit", &offline], "offline is no signed statement"),
        (&["statement", "submit", "nofile"], "nofile"),
        (&["workspace", "add", "other", "--request-out", &offline], "offline: it is there already"),
        // The gateway is enrolled, so nothing is to be signed; the key that was named is missed all the same.
        (&["gateway", "enrol", &asked, "--out", &answered, "--root-key", "nokey"], "nokey"),
        (&["gateway", "enrol", &asked, "--out", &offline, "--root-key", &root], "offline: it is there already"),
    ];
    for (args, names) in unsigned {
        let said = home.refuses(args, 1);
        assert!(said.contains(names) && said.contains("hint:") && !said.contains("Some("), "ledger {args:?}: {said}");
    }
    end(&process);
}
