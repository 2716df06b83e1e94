//! The relay over a real socket: what is taken, what is refused, and with which code.

use custody::{
    record,
    wire::{self, gateway_event::Event, record::Kind, relay_client::RelayClient},
};
use std::path::PathBuf;

use tokio::sync::oneshot;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::cookie::Shown;
use crate::testing::{TempDir, server::Server as LedgerServer, within};

fn put(call: wire::Call) -> PutRequest {
    PutRequest { record: Some(wire::Record { version: 0, kind: Some(Kind::Call(call)) }) }
}

fn call() -> wire::Call {
    wire::Call {
        phase: wire::Phase::Complete as i32,
        mode: wire::Mode::Relaxed as i32,
        decision: wire::Decision::Allowed as i32,
        outcome: wire::Outcome::Ok as i32,
        server: "s".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn records_are_taken_over_a_socket_of_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (ledger, dir) = (LedgerServer::start().await, TempDir::new());
    let gateway = ledger.gateway(&dir).await;
    let socket = dir.path().join("relay.sock");
    // A socket that a killed relay left behind is taken over.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let (config, serving) = (config(&dir, &socket), gateway.clone());
    let secret = config.relay_secret();
    let relay = tokio::spawn(async move {
        let stopped = async {
            stopped.await.ok();
        };
        Port::bind(&config).await.unwrap().serve(serving, stopped, Duration::from_secs(2)).await.unwrap();
    });
    let target = format!("unix://{}", socket.display());
    let mut client = loop {
        match Endpoint::from_shared(target.clone()).unwrap().connect().await {
            Ok(channel) => break RelayClient::with_interceptor(channel, Shown::read(&secret).unwrap()),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    // Whoever may open the socket and not read the secret: a server in its sandbox.
    let mut nobody = RelayClient::new(Endpoint::from_shared(target).unwrap().connect().await.unwrap());
    let refused = nobody.put(put(call())).await.unwrap_err();
    assert!(refused.code() == Code::Unauthenticated && refused.message().contains("hint: "), "{refused}");
    let refused = nobody.ship(tokio_stream::iter([put(call())])).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let first = client.put(put(call())).await.unwrap().into_inner();
    // So many that the disk is slower than the caller: who is slowed down is not cut off.
    let requests = tokio_stream::iter((0..5_000).map(|_| put(call())));
    let mut answers = client.ship(requests).await.unwrap().into_inner();
    let mut numbers = vec![first.number];
    while let Some(answer) = answers.message().await.unwrap() {
        numbers.push(answer.number);
    }
    assert_eq!(numbers, (first.number..=first.number + 5_000).collect::<Vec<_>>());

    // A refusal ends a stream where it stands.
    let bad = wire::Call { server: "not a token".into(), ..call() };
    let requests = tokio_stream::iter([put(call()), put(bad), put(call())]);
    let mut answers = client.ship(requests).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    // As long as a record may be it is read, and refused for what it says; what is longer is not read.
    for (bytes, code) in [(record::RECORD_BYTES_MAX - 100, Code::InvalidArgument), (70_000, Code::OutOfRange)] {
        let long = wire::Call { rule: "x".repeat(bytes), ..call() };
        assert_eq!(client.put(put(long)).await.unwrap_err().code(), code, "{bytes}");
    }

    stop.send(()).unwrap();
    drop(client);
    relay.await.unwrap();
    assert!(!socket.exists());
    gateway.drain().await.unwrap();
    let numbers: Vec<u64> = ledger
        .shared
        .ledger
        .lock()
        .unwrap()
        .records()
        .iter()
        .filter_map(|bytes| match record::decode(bytes).unwrap().kind {
            Some(Kind::Call(call)) => Some(call.call_number),
            _ => None,
        })
        .collect();
    assert!(numbers.len() >= 5_002 && numbers.is_sorted() && numbers[0] > 0, "{numbers:?}");
}

/// A relay on a socket in this folder, whose callers may take so long to begin.
async fn listening(dir: &TempDir, ledger: &LedgerServer, limit: Duration) -> (tokio::task::JoinHandle<()>, PathBuf) {
    let (gateway, socket) = (ledger.gateway(dir).await, dir.path().join("relay.sock"));
    let config = config(dir, &socket);
    let port = Port::bind(&config).await.unwrap();
    let relay = tokio::spawn(async move {
        port.serve_with(gateway, std::future::pending(), Duration::ZERO, limit).await.unwrap();
    });
    (relay, socket)
}

/// A relay whose folder is in this one.
fn config(dir: &TempDir, socket: &Path) -> Config {
    let relay = Some(crate::config::RelayConfig { listen: None, socket: Some(socket.to_owned()) });
    Config { relay, ..crate::control::tests::config(dir) }
}

async fn client(socket: &Path) -> RelayClient<InterceptedService<Channel, Shown>> {
    let target = format!("unix://{}", socket.display());
    let secret = Shown::read(&socket.with_file_name("state").join(SECRET)).unwrap();
    RelayClient::with_interceptor(Endpoint::from_shared(target).unwrap().connect().await.unwrap(), secret)
}

/// All places are taken, by whoever says nothing and by whoever said what every client says first: the next one is answered
/// in the place of the oldest of them, while a stream that is older than all goes on.
#[tokio::test]
async fn whoever_carries_no_request_gives_place_to_whoever_comes() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let (ledger, dir) = (LedgerServer::start().await, TempDir::new());
    // None ends by itself.
    let (relay, socket) = listening(&dir, &ledger, Duration::from_secs(86_400)).await;
    let mut shipper = client(&socket).await;
    let (requests, of_stream) = tokio::sync::mpsc::channel(1);
    requests.send(put(call())).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(of_stream);
    let mut answers = within(shipper.ship(stream)).await.unwrap().into_inner();
    within(answers.message()).await.unwrap().unwrap();
    let mut idle = Vec::new();
    for number in 1..listen::CONNECTIONS_MAX {
        let mut stream = loop {
            // Until it has taken some of those that wait.
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let said = if number % 2 == 0 { PREFACE } else { &PREFACE[..number % 14] };
        stream.write_all(said).await.unwrap();
        idle.push(stream);
    }
    within(client(&socket).await.put(put(call()))).await.unwrap();
    // It ends behind what HTTP/2 says first.
    let of_oldest = within(idle[0].read_to_end(&mut Vec::new())).await;
    assert!(of_oldest.is_ok() || of_oldest.is_err_and(|why| why.kind() == std::io::ErrorKind::ConnectionReset));
    for stream in &idle[listen::CONNECTIONS_MAX - 9..] {
        let read = stream.try_read(&mut [0; 64]);
        let alive = read.as_ref().map_or_else(|why| why.kind() == std::io::ErrorKind::WouldBlock, |bytes| *bytes > 0);
        assert!(alive, "{read:?}");
    }
    requests.send(put(call())).await.unwrap();
    within(answers.message()).await.unwrap().expect("the stream goes on");
    relay.abort();
}

#[tokio::test]
async fn whoever_says_nothing_loses_the_connection() {
    use tokio::io::AsyncReadExt as _;
    let (ledger, dir) = (LedgerServer::start().await, TempDir::new());
    let (relay, socket) = listening(&dir, &ledger, Duration::from_millis(50)).await;
    let mut silent = within(tokio::net::UnixStream::connect(&socket)).await.unwrap();
    let mut said = Vec::new();
    // Behind what HTTP/2 says first; whether the end is one in order is the system's.
    within(silent.read_to_end(&mut said)).await.ok();
    relay.abort();
}

/// Some day in 2026.
const NOW_US: u64 = 1_790_000_000_000_000;

#[test]
fn what_breaks_a_rule_is_refused_with_the_name_of_its_field() {
    let of = |kind| PutRequest { record: Some(wire::Record { version: 1, kind: Some(kind) }) };
    let opened = wire::Opened {
        product: "p".into(),
        product_version: "1".into(),
        configuration_digest: bytes::Bytes::from_static(&[0; 32]),
        clock: 1,
        class: 1,
        silence_us_max: 1,
    };
    let alarm = wire::Alarm { at: 1, phase: 1, severity: 1, name: "a".into(), ..Default::default() };
    let future = PutRequest { record: Some(wire::Record { version: 2, kind: Some(Kind::Call(call())) }) };
    let intent = wire::Call { phase: wire::Phase::Intent as i32, outcome: wire::Outcome::Running as i32, ..call() };
    let denied = wire::Call { decision: wire::Decision::Denied as i32, ..call() };
    let outcome = wire::Call { phase: wire::Phase::Outcome as i32, ..call() };
    let extension = |key: &str| wire::Extension { key: key.into(), value: Some(wire::extension::Value::Number(1)) };
    let counts = wire::Counts { since: 1, ..Default::default() };
    let event = wire::GatewayEvent { at: NOW_US * 1_000, event: Some(Event::Counts(counts)) };
    for (request, says) in [
        (PutRequest { record: None }, "PutRequest.record is missing"),
        (PutRequest { record: Some(wire::Record { version: 1, kind: None }) }, "Record.kind is missing"),
        (put(wire::Call { server: "a b".into(), ..call() }), "Call.server (11): a character that is not allowed"),
        (put(wire::Call { rule: "ä".into(), ..call() }), "hint: at most 128 bytes of [A-Za-z0-9_./:@+-]"),
        (put(wire::Call { mode: 9, ..call() }), "Call.mode (3): out of range; hint: a value of 1 to 2"),
        (put(wire::Call { agent: Some(vec![1].into()), ..call() }), "Call.agent (6): wrong length; hint: 16 bytes"),
        (put(wire::Call { extensions: vec![extension("a b")], ..call() }), "Extension.key (1)"),
        (put(wire::Call { outcome: wire::Outcome::Running as i32, ..call() }), "Call.phase (2)"),
        (put(wire::Call { call_number: 7, ..call() }), "Call.call_number of a complete call is 7"),
        (put(intent.clone()), "Call.call_number of an intent or an outcome is 0"),
        (put(outcome.clone()), "Call.call_number of an intent or an outcome is 0"),
        (put(denied.clone()), "Call.outcome is OUTCOME_OK, and Call.decision is DECISION_DENIED"),
        (put(wire::Call { extensions: ["a", "b", "a"].map(extension).into(), ..call() }), "holds the key a twice"),
        (put(wire::Call { started_at: NOW_US * 2, ..call() }), "Call.started_at is 3580000000000000, more than a day"),
        (put(wire::Call { started_at: NOW_US / 1_000, ..call() }), "more than ten years ago; hint: microseconds"),
        (of(Kind::GatewayEvent(event)), "GatewayEvent.at"),
        (of(Kind::Alarm(alarm)), "may not write"),
        (of(Kind::GatewayEvent(wire::GatewayEvent { at: 1, event: Some(Event::Opened(opened)) })), "relay itself"),
        (future, "Record.version"),
    ] {
        let status = check(request, NOW_US).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(says), "{:?} instead of {says:?}", status.message());
        assert!(!status.message().contains(" field "), "a number names nothing: {}", status.message());
    }
    let honest = [
        wire::Call { call_number: CALLER_NUMBERS_FROM, ..intent },
        wire::Call { call_number: CALLER_NUMBERS_FROM, ..outcome },
        wire::Call { outcome: wire::Outcome::Denied as i32, ..denied.clone() },
        wire::Call { outcome: wire::Outcome::OverLimit as i32, ..denied },
        wire::Call { started_at: NOW_US + 1_000_000, extensions: ["a", "b"].map(extension).into(), ..call() },
    ];
    for call in honest {
        check(put(call), NOW_US).unwrap();
    }
}

/// A client that follows the table of `docs/SHIPPING.md` sends again what was not taken, and never what is declared as lost.
#[test]
fn only_what_may_come_again_is_answered_as_such() {
    for (refused, code) in [
        (Refused::SpoolFull, Code::ResourceExhausted),
        (Refused::Busy, Code::ResourceExhausted),
        (Refused::Dropped, Code::DataLoss),
        (Refused::Draining, Code::Unavailable),
        (Refused::Stopped, Code::Unavailable),
        (Refused::NotARecord, Code::InvalidArgument),
    ] {
        assert_eq!(status(refused).code(), code, "{refused:?}");
    }
    assert!(status(Refused::Dropped).message().contains("do not send it again"));
}
