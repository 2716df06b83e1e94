//! No argument, result, token, name, header, nor anything else that a member, a server or a client says in its own words, stands in
//! any file that a gateway-shim or a ledger writes: canaries are said wherever something may be said, and searched for.
//!
//! What must hold of the test itself: what may stand in a record is found by the same search, in the spool, the store and the
//! archive; and each kind of refusal that there is was seen.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use custody::id::{hex, unhex};
use custody_tests::{
    canary::{CORE, canary, found_in, nowhere, unpack},
    http,
    oracle::{Expected, check_ledger},
    peer::random,
    process::{Home, Process, binary, end, free_port, soon, text, write},
    shim::{Shim, done},
    shown::{records, word},
};

mod asks;
mod server;

use asks::Client;
use server::Seen;

/// A tool whose name may stand in a record, and does.
const CONTROL: &str = "control.9b1e";
/// Of each refusal and each end of a call its rule and its outcome: all of them must come to pass.
const MUST_BE: [(&str, &str); 27] = [
    ("all", "ok"),
    ("all", "tool_error"),
    ("all", "rpc_error"),
    ("all", "http_error"),
    ("all", "transport_error"),
    ("all", "timeout"),
    ("all", "cancelled"),
    ("all", "malformed"),
    ("all", "input_required"),
    ("all", "deferred"),
    ("all", "over_limit"),
    ("no", "denied"),
    ("shim/default-deny", "denied"),
    ("shim/schema", "denied"),
    ("shim/not-yours", "denied"),
    ("shim/over-limit", "over_limit"),
    ("shim/header-mismatch", "malformed"),
    ("shim/malformed", "malformed"),
    ("shim/malformed", "denied"),
    ("shim/batch", "malformed"),
    ("shim/no-token", "unauthenticated"),
    ("shim/wrong-token", "unauthenticated"),
    ("shim/expired-token", "unauthenticated"),
    ("shim/revoked-token", "unauthenticated"),
    ("shim/session", "ok"),
    ("shim/own", "ok"),
    ("shim/own", "transport_error"),
];

/// The token of a member of the policy, which has expired; and the policy.
fn policy() -> (String, String) {
    let (id, secret, member, agent) = (hex(&random::<16>()), random::<32>(), "b2".repeat(16), "b9".repeat(16));
    let policy = format!(
        "version = 1\n[members.{member}]\n[agents.{agent}]\n[servers.checked]\ncheck_arguments = true\n\
         [[rules]]\nid = \"no\"\neffect = \"deny\"\neveryone = true\ntools = [\"*/denied*\"]\n\
         [[rules]]\nid = \"all\"\neffect = \"allow\"\neveryone = true\nmethods = [\"*\"]\n\
         tools = [\"web/*\", \"modern/*\", \"checked/*\", \"doubled/*\", \"slow/*\", \"gone/*\", \"program/*\"]\n\
         [[limits]]\nid = \"short\"\neveryone = true\ntools = [\"*/limited*\"]\nrequest_bytes_max = 10\n\
         [[limits]]\nid = \"brief\"\neveryone = true\ntools = [\"*/unlisted*\"]\nresponse_bytes_max = 10\n\
         [[tokens]]\nid = \"{id}\"\nsha256 = \"{}\"\nmember = \"{member}\"\nagent = \"{agent}\"\n\
         issued_at = 2026-01-01T00:00:00Z\nexpires_at = 2026-01-02T00:00:00Z\n",
        hex(&custody::hash::sha256(&[&secret]))
    );
    (policy, format!("Bearer cst_{id}_{}", hex(&secret)))
}

/// The servers' sections. What secret they need lies in `given`, where neither shim nor ledger writes.
fn sections(server: SocketAddr, port: u16, metrics: u16, given: &Path) -> String {
    let secret = |name: &str, text: &str| {
        write(&given.join(name), text.as_bytes());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(given.join(name), mode).unwrap();
        given.join(name)
    };
    let credential = secret("credential", &canary("credential"));
    let environment = secret("environment", &format!("SECRET={}\n", canary("environment")));
    let mut sections = format!(
        "[serve]\nlisten = \"127.0.0.1:{port}\"\nmetrics = \"127.0.0.1:{metrics}\"\nrequest_kib_max = 64\n\
         [servers.program]\ncommand = [\"sh\", \"-c\", {}]\nenvironment_file = {environment:?}\n\
         [servers.gone]\nurl = \"http://127.0.0.1:1/mcp\"\n",
        toml::Value::String(server::PROGRAM.into())
    );
    for name in ["web", "modern", "checked", "doubled", "slow", "closed"] {
        sections += &format!("[servers.{name}]\nurl = \"http://{server}/{name}\"\n");
        match name {
            "web" => sections += &format!("credential = {{ file = {credential:?} }}\n"),
            "modern" => {
                sections += "credential = { header = \"X-Key\", prefix = \"\", environment = \"CREDENTIAL\" }\n"
            }
            "slow" => sections += "call_s_max = 1\n",
            _ => {}
        }
    }
    sections
}

/// Adds a person, whose name and address are canaries; the header with their token, and the token's id.
fn add(shim: &Shim, given: &Path) -> (String, String) {
    let person = given.join("person");
    write(&person, format!("Ada {0} Zwölf\n{CORE}-address@example.com\n", canary("name")).as_bytes());
    let person = person.to_str().unwrap();
    let added = shim.hear(&["member", "add", "--person", person, "--reason", "joins", "--config", "shim.toml"]);
    let token = text(&added.stdout).trim().to_owned();
    let id = token.split('_').nth(1).unwrap().to_owned();
    (format!("Bearer {token}"), id)
}

/// The secret half of a token, as bytes.
fn secret(token: &str) -> Vec<u8> {
    unhex(token.rsplit_once('_').unwrap().1).unwrap()
}

/// What people are shown while the shim runs.
async fn look(shim: &Shim, metrics: u16, said: &Path) {
    std::fs::create_dir_all(said).unwrap();
    for (number, verb) in
        [&["status"][..], &["member", "list", "--json"], &["server", "list"], &["access", "plan"]].iter().enumerate()
    {
        let shown = shim.hear(&[*verb, &["--config", "shim.toml"]].concat());
        write(&said.join(number.to_string()), &[shown.stdout, shown.stderr].concat());
    }
    // It finds that one server is gone.
    let mut check = std::process::Command::new(binary("gateway-shim"));
    check.args(["check", "--config", "shim.toml"]).current_dir(&shim.dir).env("CREDENTIAL", canary("key"));
    let checked = check.output().unwrap();
    write(&said.join("check"), &[checked.stdout, checked.stderr].concat());
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, metrics));
    let shown = http::ask(metrics, "GET", "/metrics", &[], b"").await.unwrap();
    assert!(shown.text().contains("custody"), "{shown:?}");
    write(&said.join("metrics"), &shown.body);
}

/// Where the control was found: the place behind the folder of the test.
fn control_is_in(home: &Home, place: &str) -> bool {
    !found_in(&home.dir.join(place), &[CONTROL.as_bytes()]).is_empty()
}

/// Says everything, and looks; what may then be nowhere.
async fn say_all(
    home: &Home,
    shim: &Shim,
    at: SocketAddr,
    seen: &Arc<Seen>,
    (metrics, given, expired): (u16, &Path, &str),
) -> Vec<Vec<u8>> {
    let (token, id) = add(shim, given);
    let client = Client { at, token: token.clone() };
    client.legacy(seen).await;
    client.stateless().await;
    client.others().await;
    look(shim, metrics, &home.dir.join("said")).await;
    let changed = format!("{}{}", &token[..token.len() - 1], if token.ends_with('0') { '1' } else { '0' });
    let own = [
        CORE.to_owned(),
        format!("Basic {CORE}"),
        format!("Bearer {}", canary("token")),
        format!("Bearer {CORE}.{CORE}.{CORE}"),
    ];
    let tokens = [&own[..], &[String::new(), changed.clone(), expired.to_owned(), format!("{token}{CORE}")]].concat();
    client.refused(&tokens).await;
    shim.say(&["member", "revoke", "--token", &id, "--reason", "lost", "--config", "shim.toml"]);
    client.refused(&[]).await;
    let mut nowhere_else: Vec<Vec<u8>> = [token.as_str(), &changed, expired].map(secret).into();
    nowhere_else.push(CORE.as_bytes().to_vec());
    nowhere_else
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_in_ones_own_words_is_in_any_file() {
    let home = Home::new("canary", "segment.age_seconds = 86400\n");
    let ledger = home.start();
    let (upstream, seen) = server::serve().await;
    let given = home.dir.parent().unwrap().join("given");
    std::fs::create_dir_all(&given).unwrap();
    let (port, metrics) = (free_port(), free_port());
    let (access, expired) = policy();
    Shim::policy(&home, "canaries", &access);
    // `config check` reads the variable, too.
    let shim = Shim::with_variables(
        &home,
        "canaries",
        &sections(upstream, port, metrics, &given),
        &[("CREDENTIAL", &canary("key"))],
    );
    let process = Process::spawn(shim.serving().env("CREDENTIAL", canary("key")));
    assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let nowhere_else = say_all(&home, &shim, address, &seen, (metrics, &given, &expired)).await;

    // What came through proves that the canaries were where they would be found.
    let places = seen.places.lock().unwrap().clone();
    for place in
        ["arguments", "body", "user-agent", "mcp-param-region", "traceparent", "authorization", "x-key", "mcp-name"]
    {
        assert!(places.contains(place), "no canary came through in {place}: {places:?}");
    }
    assert!(!places.contains("cookie"), "{places:?}");

    let texts: Vec<&[u8]> = nowhere_else.iter().map(Vec::as_slice).collect();
    soon(|| {
        home.say(&["cut"]);
        records(&home, "canaries").iter().any(|record| word(record, "rule") == "shim/revoked-token").then_some(())
    });
    // As it is while both run: what is fresh in the store is not packed yet.
    write(&home.dir.join("said/shim.log"), process.log().join("\n").as_bytes());
    write(&home.dir.join("said/ledger.log"), ledger.log().join("\n").as_bytes());
    nowhere(&home.dir, &texts);
    assert!(control_is_in(&home, "shim-canaries/state/spool") && control_is_in(&home, "data/store"));

    end(&process);
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let all = records(&home, "canaries");
    let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
    write(&home.dir.join("said/records"), lines.join("\n").as_bytes());
    let mut export = std::process::Command::new(binary("verifier"));
    export.arg("export").arg(home.archive()).arg("--policy").arg(home.policy()).args([
        "--workspace",
        "canaries",
        "--out",
    ]);
    done("verifier export", &export.arg(home.dir.join("exported")).output().unwrap());
    end(&ledger);
    unpack(&home.archive(), &home.dir.join("unpacked"));
    write(&home.dir.join("said/shim.log"), process.log().join("\n").as_bytes());
    write(&home.dir.join("said/ledger.log"), ledger.log().join("\n").as_bytes());
    assert!(control_is_in(&home, "unpacked") && control_is_in(&home, "said"));
    nowhere(&home.dir, &texts);

    let came: BTreeSet<(&str, &str)> =
        all.iter().map(|record| (word(record, "rule"), word(record, "outcome"))).collect();
    let missing: Vec<_> = MUST_BE.iter().filter(|must| !came.contains(*must)).collect();
    assert!(missing.is_empty(), "not seen: {missing:?}; seen: {came:#?}");
}
