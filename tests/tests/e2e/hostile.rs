//! Bad input, each with its stated answer: batches, streams, gateways, certificates, and what comes to the port by mistake.

use bytes::Bytes;
use custody::{
    batch::{encode_signed, seal_header},
    id::{GatewayId, WorkspaceId},
    key::{self, Context},
    record,
    wire::{self, RejectReason, Role, admin_client::AdminClient, from_gateway},
};
use custody_tests::{
    oracle::{Expected, check_all, check_ledger},
    peer::{self, Fault, Gateway, Heard, Session, call, certificate_request, now_us, random, served},
    process::{Home, SETTINGS},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, transport::Channel};

/// What a lie does to the message of a good batch.
fn changed(good: &Bytes, change: impl FnOnce(&mut wire::SignedBatch)) -> Bytes {
    let mut batch = wire::SignedBatch::decode(good.clone()).unwrap();
    change(&mut batch);
    batch.encode_to_vec().into()
}

async fn refused(gateway: &mut Gateway, session: &mut Session, lie: &str, bytes: Bytes) -> wire::Rejection {
    session.send(bytes).await.unwrap();
    gateway.refusal(session).await.unwrap_or_else(|why| panic!("{lie}: {why:?}"))
}

/// Lies about the head that a batch holds: whatever a verifier refutes, for good, must not come in (FORMAT.md, 13.4).
fn held_lies(home: &Home, gateway: &Gateway, other: &Gateway) -> Vec<(&'static str, RejectReason, Bytes)> {
    let key = custody_tests::process::unsealed_key(&home.dir.join("keys/head.key"));
    let head = gateway.head().unwrap().clone();
    let holding = |held: Bytes| {
        let header = custody::batch::Header { last_head: held, ..gateway.header() };
        gateway.sign(header, &gateway.records(1))
    };
    let saying = |change: fn(&mut custody::head::Head)| {
        let mut head = head.clone();
        change(&mut head);
        holding(head.sign(&key).into())
    };
    let stranger = SigningKey::from_bytes(&random());
    let own = key::public(&stranger).id(Role::Head);
    let theirs = custody::head::Head { key_id: own, ..head.clone() };
    use RejectReason::{Forged, FutureVersion, Malformed};
    vec![
        ("a head that is none", Malformed, holding(Bytes::from_static(b"junk"))),
        ("a head cut short", Malformed, holding(gateway.last_head().slice(..60))),
        ("a head from the future", FutureVersion, holding([&[0x08, 0x02], &gateway.last_head()[2..]].concat().into())),
        ("a head of another workspace", Forged, holding(other.last_head())),
        ("a head of another origin", Forged, saying(|head| "elsewhere/x".clone_into(&mut head.origin))),
        ("a head signed by another key", Forged, holding(head.sign(&stranger).into())),
        ("a head signed by a stranger", Forged, holding(theirs.sign(&stranger).into())),
        ("a head from before its key", Forged, saying(|head| head.ledger_chain.count = 0)),
    ]
}

/// The good batch that the lies are told about is the gateway's next one; it is not sent.
fn lies(gateway: &Gateway, other: &Gateway) -> Vec<(&'static str, RejectReason, Bytes)> {
    let (header, records) = (gateway.header(), gateway.records(3));
    let good = gateway.sign(header.clone(), &records);
    let with = |records: &[Bytes]| gateway.sign(gateway.header(), records);
    let resigned = |header: custody::batch::Header, key: &SigningKey| {
        let (mut header, seed) = (header, random());
        seal_header(&mut header, &seed, &records);
        Bytes::from(encode_signed(&header.encode(), key, &seed, &records))
    };
    let stranger = SigningKey::from_bytes(&random());
    let of_stranger = custody::batch::Header { key_id: key::public(&stranger).id(Role::Gateway), ..gateway.header() };
    let ledgers = wire::LedgerEvent {
        at: now_us(),
        kind: 1,
        action: "a".to_owned(),
        outcome: "ok".to_owned(),
        ..Default::default()
    };
    let ledgers = Bytes::from(record::encode(wire::record::Kind::LedgerEvent(ledgers)));
    let long = vec![call(0); 4097];
    let fat: Vec<Bytes> = (0..4).map(|_| Bytes::from(vec![0; 300_000])).collect();
    let gap = custody::batch::Header { batch_number: header.batch_number + 2, ..header.clone() };
    let numbered = custody::batch::Header { first_record: header.first_record + 1, ..header.clone() };
    let rekeyed = custody::batch::Header { key_id: custody::id::KeyId([7; 32]), ..header.clone() };
    let unopened = custody::batch::Header {
        batch_number: 0,
        first_record: 0,
        epoch: custody::id::Epoch(random()),
        ..header.clone()
    };
    let reopened = custody::batch::Header {
        opening_reason: Some(wire::OpeningReason::First),
        previous: custody::id::HeaderHash::ZERO,
        ..unopened.clone()
    };
    let foreign = custody::batch::Header { origin: "elsewhere/x".to_owned(), ..header.clone() };
    let unopened_epoch = custody::batch::Header { epoch: custody::id::Epoch(random()), ..header.clone() };
    let openings = [vec![peer::opened()], records.clone()].concat();
    let unchained = custody::batch::Header { previous: custody::id::HeaderHash([7; 32]), ..header.clone() };
    use RejectReason::{Equivocation, Forged, FutureVersion, Gap, Malformed, Unauthorised, WrongStream};
    vec![
        ("forged", Forged, changed(&good, |batch| batch.signature = Bytes::from_static(&[1; 64]))),
        ("re-signed", Forged, resigned(header, &stranger)),
        ("signed by a stranger", Unauthorised, resigned(of_stranger, &stranger)),
        ("a record replaced", Forged, changed(&good, |batch| batch.records[1] = call(99))),
        ("a record removed", Malformed, changed(&good, |batch| drop(batch.records.pop()))),
        ("another seed", Forged, changed(&good, |batch| batch.seed = Bytes::from_static(&[9; 32]))),
        ("a batch left out", Gap, gateway.sign(gap, &records)),
        ("records renumbered", Equivocation, gateway.sign(numbered, &records)),
        ("the chain of headers broken", Equivocation, gateway.sign(unchained, &records)),
        ("another key within the epoch", Unauthorised, gateway.sign(rekeyed, &records)),
        ("an epoch that nobody opened", Gap, gateway.sign(unopened_epoch, &records)),
        ("an epoch without the record of its writer", Malformed, gateway.sign(unopened, &records)),
        ("an epoch called the first that is not", Equivocation, gateway.sign(reopened, &openings)),
        ("another origin", WrongStream, gateway.sign(foreign, &records)),
        ("more than 4096 records", Malformed, with(&long)),
        ("more than 1 MiB", Malformed, with(&fat)),
        ("truncated", Malformed, good.slice(..good.len() - 1)),
        ("truncated to nothing", Malformed, Bytes::new()),
        ("an unknown field", Malformed, [good.as_ref(), &[0x7a, 0x00]].concat().into()),
        ("a field twice", Malformed, [&good[..2], &good[..]].concat().into()),
        ("from the future", FutureVersion, [&[0x08, 0x02], &good[2..]].concat().into()),
        ("a record that is not in form", Malformed, with(&[Bytes::from_static(b"\x08\x01\xff")])),
        ("a record of a kind that is the ledger's", Unauthorised, with(&[call(0), ledgers])),
        ("another gateway's", WrongStream, other.sign(other.header(), &other.records(1))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_batch_has_its_answer_and_the_stream_goes_on() {
    let home = Home::new("batches", SETTINGS);
    let _process = home.start();
    let workspace = home.workspace("payments");
    let (mut gateway, other) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut abroad = Gateway::enrol(&home, home.workspace("research"));
    let _abroad = abroad.connect(home.grpc).await.unwrap();
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let first = gateway.batch(1);
    session.send(first.clone()).await.unwrap();
    gateway.settle(&mut session).await.unwrap();
    let all = |gateway: &Gateway| [lies(gateway, &other), held_lies(&home, gateway, &abroad)].concat();
    for at in 0..all(&gateway).len() {
        let (lie, reason, bytes) = all(&gateway).swap_remove(at);
        let rejection = refused(&mut gateway, &mut session, lie, bytes).await;
        assert_eq!(rejection.reason(), reason, "{lie}: {rejection:?}");
        assert!(!rejection.detail.is_empty(), "{lie}");
        if lie == "a batch left out" {
            assert_eq!(rejection.expected_batch, gateway.next_batch, "{lie}");
        }
        let good = gateway.batch(2);
        session.send(good).await.unwrap();
        gateway.settle(&mut session).await.unwrap_or_else(|why| panic!("after {lie}: {why:?}"));
    }
    // Re-ordered: the later one is refused and says what is missing; in order both are taken.
    let (one, two) = (gateway.batch(1), gateway.batch(1));
    let rejection = refused(&mut gateway, &mut session, "re-ordered", two.clone()).await;
    assert_eq!(rejection.reason(), RejectReason::Gap);
    session.send(one).await.unwrap();
    session.send(two).await.unwrap();
    gateway.settle(&mut session).await.unwrap();
    // The same batch again has the same place; `hear` refuses a second one.
    session.send(first).await.unwrap();
    while !matches!(gateway.hear(&mut session).await.unwrap(), Heard::Receipt(0)) {}
    equivocate(&home, &mut gateway, &mut session).await;
    closed_epochs(&home, &mut gateway, &mut session).await;
    assert_eq!(home.status()["state"], "serving", "no lie about a head stops the ledger");
    home.say(&["cut"]);
    check_all(&home, &home.policy(), &[&gateway]);
}

/// Two batches under one number: the second is kept as proof, and the gateway goes on in a new epoch.
async fn equivocate(home: &Home, gateway: &mut Gateway, session: &mut Session) {
    let (header, records) = (gateway.header(), gateway.records(1));
    let second = custody::batch::Header { created_at: header.created_at + 1, ..header.clone() };
    let (first, second) = (gateway.sign(header, &records), gateway.sign(second, &records));
    gateway.keep(first.clone());
    session.send(first).await.unwrap();
    gateway.settle(session).await.unwrap();
    let rejection = refused(gateway, session, "equivocation", second).await;
    assert_eq!(rejection.reason(), RejectReason::Equivocation);
    assert!(home.alarm_stands("equivocation"));
    gateway.new_epoch();
    gateway.ship_one(session, 1).await;
}

/// Epochs that are over are no longer in memory after a cut, and answer as before: the same batch has its place, another one
/// is an equivocation, one past the end is refused, and the epoch is not opened again.
async fn closed_epochs(home: &Home, gateway: &mut Gateway, session: &mut Session) {
    let opening = gateway.header();
    let old = gateway.batch(1);
    session.send(old.clone()).await.unwrap();
    gateway.settle(session).await.unwrap();
    let past = gateway.header();
    gateway.new_epoch();
    gateway.ship_one(session, 1).await;
    home.say(&["cut"]);
    session.send(old.clone()).await.unwrap();
    while !matches!(gateway.hear(session).await.unwrap(), Heard::Receipt(0)) {}
    let records = gateway.records(1);
    let twice = custody::batch::Header { created_at: opening.created_at + 1, ..opening };
    // As a copy of the gateway would go on that does not know of the epoch since; each alone a verifier would refute.
    let beside = custody::batch::Header {
        epoch: custody::id::Epoch(random()),
        batch_number: 0,
        first_record: 0,
        ..past.clone()
    };
    let openings = vec![peer::opened()];
    for (lie, header, records) in [
        ("twice", twice, &records),
        ("past the end", past, &records),
        ("beside the one that followed", beside, &openings),
    ] {
        let rejection = refused(gateway, session, lie, gateway.sign(header, records)).await;
        assert_eq!(rejection.reason(), RejectReason::Equivocation, "{lie}: {rejection:?}");
    }
    gateway.ship_one(session, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_another_workspace_opens_no_stream_and_stops_nobody() {
    let home = Home::new("foreign-head", SETTINGS);
    let _process = home.start();
    let (payments, research) = (home.workspace("payments"), home.workspace("research"));
    let (mut one, mut two) = (Gateway::enrol(&home, payments), Gateway::enrol(&home, research));
    let mut session = two.connect(home.grpc).await.unwrap();
    two.ship_one(&mut session, 1).await;
    let stranger = SigningKey::from_bytes(&random());
    let forged = Bytes::from(two.head().unwrap().sign(&stranger));
    for (lie, head) in [("another workspace's", two.last_head()), ("forged", forged)] {
        let status = refusal_of(&one, home.grpc, wire::Hello { last_head: head, ..one.hello() }).await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{lie}: {status:?}");
        assert_eq!(home.status()["state"], "serving", "{lie}");
        assert!(!home.alarm_stands("head-not-extendable"), "{lie}");
    }
    one.connect(home.grpc).await.unwrap();
    two.ship_one(&mut session, 1).await;
}

/// A ledger whose data is an older copy, which the fence cannot tell: only the gateways know what is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_lost_history_is_read_only_from_the_first_gateway_that_knows_and_stays_so() {
    let home = Home::new("lost", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let (mut gateway, mut other) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    home.say(&["cut"]);
    // Nothing is written now, so a copy of the running ledger's folder is whole.
    let kept = tempfile::tempdir().unwrap();
    let _copy = home.copy(&kept.path().join("copy"), "");
    gateway.ship_one(&mut session, 3).await;
    process.kill();
    // The folder itself stays: to the fence it is the same writer.
    std::fs::remove_dir_all(home.dir.join("data/store")).unwrap();
    custody_tests::process::copy_folder(&kept.path().join("copy/data/store"), &home.dir.join("data/store"));
    let process = home.start();
    let mut session = other.connect(home.grpc).await.unwrap();
    assert_eq!(home.status()["state"], "serving", "nobody who knows has come");
    assert!(matches!(gateway.connect(home.grpc).await, Err(Fault::Refused(_))));
    assert_eq!(home.status()["state"], "read-only");
    assert!(home.alarm_stands("head-not-extendable"));
    let batch = other.batch(1);
    session.send(batch).await.unwrap();
    while !matches!(other.hear(&mut session).await.unwrap(), Heard::Pushback(_)) {}
    process.kill();
    let _process = home.start();
    assert_eq!(home.status()["state"], "read-only", "a restart brings nothing back");
    assert!(home.alarm_stands("head-not-extendable"));
    assert!(matches!(other.connect(home.grpc).await, Err(Fault::Refused(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_any_batch_ends_only_its_own_stream() {
    let (home, _process, mut gateway, mut session) = served("long", SETTINGS).await;
    session.send(Bytes::from(vec![0; 3 << 20])).await.unwrap();
    let ended = loop {
        match gateway.hear(&mut session).await {
            Ok(_) => {}
            Err(why) => break why,
        }
    };
    assert!(matches!(ended, Fault::Gone(_)), "{ended:?}");
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship_one(&mut session, 1).await;
}

async fn refusal_of(gateway: &Gateway, port: u16, hello: wire::Hello) -> tonic::Status {
    let channel = gateway.door.channel(port).await.unwrap();
    match peer::open(channel, hello).await {
        Err(Fault::Refused(status)) => status,
        Err(why) => panic!("{why:?}"),
        Ok(_) => panic!("the stream was opened"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_opened_only_by_whom_its_certificate_names() {
    let home = Home::new("doors", SETTINGS);
    let elsewhere = Home::new("doors-elsewhere", SETTINGS);
    let (_process, _elsewhere) = (home.start(), elsewhere.start());
    let (payments, research) = (home.workspace("payments"), home.workspace("research"));
    let (mut one, two) = (Gateway::enrol(&home, payments), Gateway::enrol(&home, research));
    let foreign = Gateway::enrol(&elsewhere, elsewhere.workspace("payments"));
    let with = |change: fn(&mut wire::Hello)| {
        let mut hello = one.hello();
        change(&mut hello);
        hello
    };
    for (lie, code, hello) in [
        ("another gateway's name", Code::PermissionDenied, two.hello()),
        ("another workspace", Code::PermissionDenied, with(|hello| hello.workspace = Bytes::from_static(&[9; 16]))),
        ("another origin", Code::FailedPrecondition, with(|hello| "elsewhere/x".clone_into(&mut hello.origin))),
        ("no id", Code::InvalidArgument, with(|hello| hello.gateway = Bytes::new())),
        ("a head that is none", Code::InvalidArgument, with(|hello| hello.last_head = Bytes::from_static(b"head"))),
    ] {
        let status = refusal_of(&one, home.grpc, hello).await;
        assert_eq!(status.code(), code, "{lie}: {status:?}");
        assert!(!status.message().contains("127.0.0.1"), "{lie}: {status:?}");
    }
    // A certificate of another ledger's authority, none at all, and no TLS: no stream.
    let mut door = foreign.door.clone();
    door.authority.clone_from(&one.door.authority);
    let stranger = match door.channel(home.grpc).await {
        Ok(channel) => peer::open(channel, one.hello()).await.err(),
        Err(why) => Some(why),
    };
    assert!(matches!(stranger, Some(Fault::Gone(_) | Fault::Refused(_))), "a stranger came in");
    let plain = Channel::from_shared(format!("http://127.0.0.1:{}", home.grpc)).unwrap().connect().await;
    let plain = match plain {
        Ok(channel) => peer::open(channel, one.hello()).await.err(),
        Err(why) => Some(Fault::Gone(why.to_string())),
    };
    assert!(matches!(plain, Some(Fault::Gone(_) | Fault::Refused(_))), "plaintext came in");
    // A gateway is no administrator.
    let mut admin = AdminClient::new(one.door.channel(home.grpc).await.unwrap());
    let status = admin.status(wire::StatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    one.connect(home.grpc).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_ports_is_answered_by_silence_and_harms_nobody() {
    let (home, process, mut gateway, mut session) = served("garbage", SETTINGS).await;
    let noise: [u8; 4096] = random();
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for port in [home.grpc, home.http] {
        for garbage in [&noise[..], &request[..], b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff"] {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // The ledger may have hung up before all was said.
            stream.write_all(garbage).await.ok();
            stream.shutdown().await.ok();
            let mut answer = Vec::new();
            let read = tokio::time::timeout(peer::ANSWER, stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "the port {port} holds a connection that said {garbage:?}");
        }
        gateway.ship_one(&mut session, 1).await;
    }
    let log = process.log().join("\n");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_never_reads_is_closed_and_slows_no_other() {
    let home = Home::new("slow", SETTINGS);
    let process = home.start();
    let workspace = home.workspace("payments");
    let (mut slow, mut good) = (Gateway::enrol(&home, workspace), Gateway::enrol(&home, workspace));
    let silent = slow.connect(home.grpc).await.unwrap();
    let batch = slow.batch(1);
    // The same batch again and again: an answer each time, and none is read.
    let sending = tokio::spawn(async move {
        for _ in 0..50_000 {
            if silent.send(batch.clone()).await.is_err() {
                break;
            }
        }
        silent
    });
    let mut session = good.connect(home.grpc).await.unwrap();
    for _ in 0..50 {
        good.ship_one(&mut session, 5).await;
    }
    assert!(process.wait_line("does not keep up"), "{}", process.log().join("\n"));
    sending.abort();
    // It comes back and has lost nothing.
    let mut session = slow.connect(home.grpc).await.unwrap();
    let again = slow.waiting[0].bytes.clone();
    session.send(again).await.unwrap();
    slow.settle(&mut session).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_workspaces_that_are_no_longer_good_are_refused_at_once() {
    let home = Home::new("revoked", SETTINGS);
    let _process = home.start();
    let (payments, research) = (home.workspace("payments"), home.workspace("research"));
    let mut gateways =
        [Gateway::enrol(&home, payments), Gateway::enrol(&home, payments), Gateway::enrol(&home, research)];
    let mut sessions = Vec::new();
    for gateway in &mut gateways {
        let mut session = gateway.connect(home.grpc).await.unwrap();
        gateway.ship_one(&mut session, 1).await;
        sessions.push(session);
    }
    let key_id = |gateway: &Gateway| key::public(&gateway.key).id(Role::Gateway).to_string();
    home.say_as_root(&["key", "revoke", &key_id(&gateways[0]), "--workspace", "payments"]);
    home.say_as_root(&["key", "retire", &key_id(&gateways[1]), "--workspace", "payments"]);
    home.say_as_root(&["workspace", "remove", "research"]);
    // Retired: the open epoch may go on, and no other begins.
    gateways[1].ship_one(&mut sessions[1], 1).await;
    gateways[1].new_epoch();
    for (gateway, session) in gateways.iter_mut().zip(&mut sessions).take(2) {
        let batch = gateway.sign(gateway.header(), &gateway.records(1));
        let rejection = refused(gateway, session, "no longer good", batch).await;
        assert_eq!(rejection.reason(), RejectReason::Revoked, "{rejection:?}");
    }
    // Removed: all is archived by now, which the gateway hears first; then its stream ends, though it said nothing.
    let (gateway, session) = (&mut gateways[2], &mut sessions[2]);
    let rejection = gateway.refusal(session).await.unwrap();
    assert_eq!(rejection.reason(), RejectReason::Removed, "{rejection:?}");
    assert_eq!(gateway.archived, gateway.head().unwrap().segment, "not all that it holds is archived");
    assert!(matches!(gateway.hear(session).await, Err(Fault::Gone(_))));
    let shown = home.status();
    let listed = shown["workspaces"].as_array().unwrap().iter().flat_map(|w| w["gateways"].as_array().unwrap());
    let id = gateways[2].gateway.to_string();
    assert!(
        listed.clone().any(|g| g["gateway"] == id)
            && listed.filter(|g| g["gateway"] == id).all(|g| g["connected"] == false)
    );
    // No certificate, and no new stream, but for the one that has epochs to finish.
    let tls = rcgen::KeyPair::generate().unwrap();
    for ((gateway, session), comes) in gateways.iter_mut().zip(&mut sessions).zip([false, true, false]) {
        // A stream that has ended takes no message, and renews nothing.
        session.say(from_gateway::Message::RenewCertificate(certificate_request(&tls))).await.ok();
        let renewed = loop {
            match gateway.hear(session).await {
                Ok(Heard::Certificate(_)) => break true,
                Ok(_) => {}
                Err(Fault::Gone(_)) => break false,
                Err(why) => panic!("{why:?}"),
            }
        };
        assert_eq!(renewed, comes, "a certificate for {}", gateway.gateway);
        match gateway.connect(home.grpc).await {
            Ok(_) => assert!(comes, "a stream for {}", gateway.gateway),
            Err(Fault::Refused(status)) => assert!(!comes && !status.message().is_empty(), "{status:?}"),
            Err(why) => panic!("{why:?}"),
        }
    }
    home.say(&["cut"]);
    check_all(&home, &home.policy(), &gateways.each_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_over_the_stream() {
    let (home, _process, mut gateway, mut session) = served("renew", SETTINGS).await;
    let tls = rcgen::KeyPair::generate().unwrap();
    session.say(from_gateway::Message::RenewCertificate("no request".to_owned())).await.unwrap();
    session.say(from_gateway::Message::RenewCertificate(certificate_request(&tls))).await.unwrap();
    let renewed = loop {
        if let Heard::Certificate(pem) = gateway.hear(&mut session).await.unwrap() {
            break pem;
        }
    };
    assert_ne!(renewed, gateway.door.certificate);
    (gateway.door.certificate, gateway.door.tls_key) = (renewed, tls.serialize_pem());
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship_one(&mut session, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_workspace_is_refused_also_without_tls() {
    let plain = "listen.plaintext_loopback = true\n";
    let home = Home::new("plain", &(SETTINGS.to_owned() + plain));
    home.configure(&format!("admin.url = \"http://127.0.0.1:{}\"\n", home.grpc));
    let _process = home.start();
    home.workspace("payments");
    let (gateway, _) = Gateway::request(&home, WorkspaceId(random()));
    let channel = Channel::from_shared(format!("http://127.0.0.1:{}", home.grpc)).unwrap().connect().await.unwrap();
    match peer::open(channel, gateway.hello()).await {
        Err(Fault::Refused(status)) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert!(status.message().contains("workspace add"), "{status:?}");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn nobody_is_enrolled_under_the_ledgers_own_id_and_its_keys_stay() {
    let home = Home::new("own-id", SETTINGS);
    let _process = home.start();
    let workspace = home.workspace("payments");
    let keys: Vec<custody::statement::Signed> = ["record", "head"]
        .iter()
        .map(|name| {
            let files = std::fs::read_dir(home.dir.join("genesis")).unwrap().map(|file| file.unwrap().path());
            let mut found =
                files.filter_map(|path| custody::statement::Signed::parse(&std::fs::read(path).unwrap()).ok());
            let role = if *name == "record" { Role::Record } else { Role::Head };
            found
                .find(|s| matches!(&s.statement.action, Some(wire::statement::Action::Enrol(e)) if e.role() == role))
                .unwrap()
        })
        .collect();
    let enrolled = |signed: &custody::statement::Signed| match &signed.statement.action {
        Some(wire::statement::Action::Enrol(enrol)) => enrol.clone(),
        other => panic!("{other:?}"),
    };
    let (mut gateway, mut request) = Gateway::request(&home, workspace);
    gateway.gateway = GatewayId::try_from(enrolled(&keys[0]).gateway.unwrap().as_ref()).unwrap();
    let public = key::public(&gateway.key);
    let proof =
        custody::statement::possession(&home.origin, Some(workspace), Role::Gateway, public, Some(gateway.gateway));
    request["gateway"] = gateway.gateway.to_string().into();
    request["possession"] = custody::id::hex(&key::sign(&gateway.key, Context::Possession, &proof)).into();
    let (asked, answered) = gateway.files(&home);
    custody_tests::process::write(asked.as_ref(), request.to_string().as_bytes());
    let root = home.root_key().display().to_string();
    let said = home.refuses(&["gateway", "enrol", &asked, "--out", &answered, "--root-key", &root], 1);
    assert!(said.contains("own id"), "{said}");
    for (signed, verb) in keys.iter().zip(["retire", "revoke"]) {
        let enrol = enrolled(signed);
        let id = key::PublicKey::new(&enrol.public_key).unwrap().id(enrol.role()).to_string();
        let said = home.refuses(&["key", verb, &id, "--root-key", &root], 1);
        assert!(said.contains("signs with") && said.contains("hint:"), "{said}");
    }
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
}

#[test]
fn a_request_that_proves_nothing_enrols_nobody() {
    let home = Home::new("requests", SETTINGS);
    let _process = home.start();
    let workspace = home.workspace("payments");
    let (gateway, good) = Gateway::request(&home, workspace);
    let (asked, answered) = gateway.files(&home);
    let key = home.root_key().display().to_string();
    let other = key::sign(&SigningKey::from_bytes(&random()), Context::Possession, b"x");
    for (field, value, word) in [
        ("possession", custody::id::hex(&other), "prove"),
        ("gateway", GatewayId(random()).to_string(), "prove"),
        ("origin", "elsewhere/x".to_owned(), "elsewhere/x"),
        ("workspace", WorkspaceId(random()).to_string(), "prove"),
        ("public_key", "01".to_owned() + &"00".repeat(31), "usable"),
    ] {
        let mut bad = good.clone();
        bad[field] = value.into();
        custody_tests::process::write(asked.as_ref(), bad.to_string().as_bytes());
        let said = home.refuses(&["gateway", "enrol", &asked, "--out", &answered, "--root-key", &key], 1);
        assert!(said.contains(word) && said.contains("hint:"), "{field}: {said}");
    }
}
