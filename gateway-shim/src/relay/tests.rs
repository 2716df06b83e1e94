//! The relay over a real socket: what is taken, what is refused, and with which code.

use custody::wire::relay_client::RelayClient;
use tokio::sync::oneshot;
use tonic::Code;

use super::*;
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
    let (config, serving) = (RelayConfig { listen: None, socket: Some(socket.clone()) }, gateway.clone());
    let relay = tokio::spawn(async move {
        let stopped = async {
            stopped.await.ok();
        };
        serve(serving, &config, stopped, Duration::from_secs(2)).await.unwrap();
    });
    let target = format!("unix://{}", socket.display());
    let mut client = loop {
        match tonic::transport::Endpoint::from_shared(target.clone()).unwrap().connect().await {
            Ok(channel) => break RelayClient::new(channel),
            Err(_) => tokio::task::yield_now().await,
        }
    };
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

/// Four times as many as there are places say nothing, or half of what every client says first.
#[tokio::test]
async fn whoever_says_nothing_keeps_nobody_out() {
    use std::io::Write as _;
    let (ledger, dir) = (LedgerServer::start().await, TempDir::new());
    let gateway = ledger.gateway(&dir).await;
    let socket = dir.path().join("relay.sock");
    let config = RelayConfig { listen: None, socket: Some(socket.clone()) };
    let limit = Duration::from_millis(100);
    let relay = tokio::spawn(async move {
        serve_with(gateway, &config, std::future::pending(), Duration::ZERO, limit).await.unwrap();
    });
    let silent = tokio::task::spawn_blocking({
        let socket = socket.clone();
        move || {
            let connect = |number: usize| loop {
                // Until it listens, and until it has taken some of those that wait.
                let Ok(mut stream) = std::os::unix::net::UnixStream::connect(&socket) else { continue };
                stream.write_all(&b"PRI * HTTP/2.0"[..number % 14]).unwrap();
                break stream;
            };
            (0..4 * listen::CONNECTIONS_MAX).map(connect).collect::<Vec<_>>()
        }
    });
    let silent = silent.await.unwrap();
    let target = format!("unix://{}", socket.display());
    let channel = tonic::transport::Endpoint::from_shared(target).unwrap().connect().await.unwrap();
    within(RelayClient::new(channel).put(put(call()))).await.unwrap();
    drop(silent);
    relay.abort();
}

#[test]
fn what_breaks_a_rule_is_refused_with_that_rule() {
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
    for (request, says) in [
        (PutRequest { record: None }, "no record"),
        (put(wire::Call { server: "a b".into(), ..call() }), "Call field 11"),
        (put(wire::Call { rule: "ä".into(), ..call() }), "Call field 19"),
        (put(wire::Call { mode: 9, ..call() }), "Call field 3"),
        (put(wire::Call { outcome: wire::Outcome::Running as i32, ..call() }), "Call field 2"),
        (put(wire::Call { call_number: 7, ..call() }), "call_number"),
        (put(intent.clone()), "call_number"),
        (of(Kind::Alarm(alarm)), "may not write"),
        (of(Kind::GatewayEvent(wire::GatewayEvent { at: 1, event: Some(Event::Opened(opened)) })), "relay itself"),
        (future, "version"),
    ] {
        let status = check(request).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(says), "{:?} instead of {says:?}", status.message());
    }
    check(put(wire::Call { call_number: CALLER_NUMBERS_FROM, ..intent })).unwrap();
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
