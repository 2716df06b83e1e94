//! The gateway against a ledger on loopback: what arrives, whatever happens between.

use bytes::Bytes;
use custody::{
    record,
    wire::{Outcome, Phase, RejectReason},
};

use super::*;
use crate::testing::{
    TempDir, logged,
    server::{GATEWAY, Server, Trick},
};

pub(super) fn call(tool: &str) -> wire::Call {
    wire::Call {
        mode: wire::Mode::Strict as i32,
        server: "test".into(),
        target: Some(wire::call::Target::Tool(tool.into())),
        decision: wire::Decision::Allowed as i32,
        ..Default::default()
    }
}

pub(super) fn complete(tool: &str) -> Kind {
    Kind::Call(wire::Call { phase: Phase::Complete as i32, outcome: Outcome::Ok as i32, ..call(tool) })
}

/// Tools of the calls that arrived, in their order, with phase and outcome.
pub(super) fn arrived(server: &Server) -> Vec<(String, Phase, Outcome)> {
    let records = server.shared.ledger.lock().unwrap().records();
    let call = |bytes: &Bytes| match record::decode(bytes).unwrap().kind {
        Some(Kind::Call(call)) => {
            let Some(wire::call::Target::Tool(tool)) = call.target.clone() else { return None };
            Some((tool, call.phase(), call.outcome()))
        }
        _ => None,
    };
    records.iter().filter_map(call).collect()
}

pub(super) fn tools(server: &Server) -> Vec<String> {
    arrived(server).into_iter().map(|(tool, _, _)| tool).collect()
}

async fn record_some(gateway: &Gateway, names: std::ops::Range<u32>) -> Vec<String> {
    let mut tools = Vec::new();
    for number in names {
        let tool = format!("tool-{number}");
        let name = gateway.record(complete(&tool)).await.unwrap();
        assert_eq!(name.gateway, GATEWAY);
        tools.push(tool);
    }
    tools
}

pub(super) async fn shipped(gateway: &Gateway) {
    gateway.progress.clone().wait_for(|progress| progress.unreceived == 0).await.unwrap();
}

#[tokio::test]
async fn everything_arrives_in_order_and_a_drain_closes() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let expected = record_some(&gateway, 0..50).await;
    assert_eq!(gateway.drain().await.unwrap(), Drained { unfinished: 0, unshipped: 0 });
    assert_eq!(tools(&server), expected);
    assert!(server.shared.ledger.lock().unwrap().stored.last().unwrap().batch.header.close);
    assert_eq!(gateway.record(complete("late")).await, Err(Refused::Draining));
}

#[tokio::test]
async fn a_new_start_continues_the_chain_of_headers_and_the_last_head() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let mut expected = record_some(&gateway, 0..10).await;
    gateway.drain().await.unwrap();
    drop(gateway);
    let gateway = server.gateway(&dir).await;
    expected.extend(record_some(&gateway, 10..20).await);
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), expected);
    let ledger = server.shared.ledger.lock().unwrap();
    assert_eq!(ledger.numbering.epochs.len(), 2);
    assert!(ledger.numbering.epochs.values().all(|epoch| epoch.closed));
    let openings = ledger.stored.iter().filter(|stored| stored.batch.header.opens());
    let reasons: Vec<_> = openings.map(|stored| stored.batch.header.opening_reason).collect();
    assert_eq!(reasons, vec![Some(wire::OpeningReason::First), None]);
    let script = server.shared.script.lock().unwrap();
    assert!(!script.hellos.last().unwrap().last_head.is_empty(), "the head was kept");
    assert_eq!(script.hellos.last().unwrap().ledger_statements, 2, "so were the statements");
}

#[tokio::test]
async fn pushback_lost_streams_and_lost_answers_lose_nothing() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    server.tricks([Trick::Pushback, Trick::Vanish, Trick::Pushback, Trick::Lose, Trick::Vanish]);
    let expected = record_some(&gateway, 0..40).await;
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert_eq!(tools(&server), expected);
    // What came more than once came byte for byte the same.
    let script = server.shared.script.lock().unwrap();
    let mut by_name = std::collections::HashMap::new();
    for bytes in &script.came {
        let header = custody::batch::Submitted::parse(bytes.clone()).unwrap().header;
        let before = by_name.insert((header.epoch, header.batch_number), bytes);
        assert!(before.is_none_or(|before| before == bytes));
    }
    assert!(by_name.len() < script.came.len(), "something came twice");
}

#[tokio::test]
async fn without_a_ledger_records_wait_and_then_go() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let gateway = server.gateway(&dir).await;
    let expected = record_some(&gateway, 0..30).await;
    server.restart().await;
    shipped(&gateway).await;
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), expected);
}

#[tokio::test]
async fn archived_batches_leave_the_spool() {
    let (server, dir) = (Server::start().await, TempDir::new());
    server.shared.script.lock().unwrap().archives = true;
    let gateway = server.gateway(&dir).await;
    record_some(&gateway, 0..10).await;
    shipped(&gateway).await;
    // The answer to the last batch is followed by what archives it: seen once nothing is held.
    loop {
        let fetch = crate::writer::Fetch { from: 0, unreceived: false, count_max: 9, bytes_max: 1 << 20 };
        if gateway.desk.fetch(fetch).await.unwrap().is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_ledger_that_lost_what_was_not_archived_gets_it_again() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let mut expected = record_some(&gateway, 0..10).await;
    shipped(&gateway).await;
    server.kill();
    // All is lost; the root signs an incarnation that continues nothing.
    let mut recovered = crate::testing::ledger::Ledger::new(GATEWAY, &server.key);
    let incarnation = wire::Incarnation {
        number: 1,
        log_size: 0,
        log_root: custody::id::RootHash::ZERO.into(),
        last_seals_hash: custody::id::RootHash::ZERO.into(),
    };
    recovered.say(None, wire::statement::Action::Incarnation(incarnation));
    recovered.incarnation = 1;
    *server.shared.ledger.lock().unwrap() = recovered;
    server.restart().await;
    expected.extend(record_some(&gateway, 10..20).await);
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), expected);
}

#[tokio::test]
async fn a_fork_ends_the_gateway_and_leaves_its_proof_in_two_places() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    record_some(&gateway, 0..5).await;
    shipped(&gateway).await;
    server.tricks([Trick::Fork]);
    gateway.record(complete("last")).await.unwrap();
    assert!(matches!(gateway.ended().await, Ended::Fork));
    assert_eq!(gateway.record(complete("after")).await, Err(Refused::Stopped));
    gateway.drain().await.unwrap();
    for folder in ["forks", "second"] {
        let file = std::fs::read_dir(dir.path().join(folder)).unwrap().next().unwrap().unwrap();
        let proof: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let head = |name: &str| {
            let bytes = custody::id::unhex(proof[name].as_str().unwrap()).unwrap();
            custody::head::SignedHead::parse(&bytes).unwrap()
        };
        let key = custody::key::public(&server.shared.ledger.lock().unwrap().head_key);
        assert!(head("before").is_signed_by(key) && head("now").is_signed_by(key));
    }
}

#[tokio::test]
async fn final_rejections_end_the_gateway() {
    for reason in [RejectReason::Malformed, RejectReason::Forged, RejectReason::Revoked, RejectReason::Removed] {
        let (server, dir) = (Server::start().await, TempDir::new());
        server.tricks([Trick::Reject(reason)]);
        let gateway = server.gateway(&dir).await;
        let Ended::Refused(why) = gateway.ended().await else { panic!("{reason:?}") };
        assert!(why.contains(reason.as_str_name()), "{why}");
    }
}

#[tokio::test]
async fn an_equivocation_is_signed_again_in_a_new_epoch() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let mut expected = record_some(&gateway, 0..6).await;
    shipped(&gateway).await;
    server.tricks([Trick::Reject(RejectReason::Equivocation)]);
    expected.extend(record_some(&gateway, 6..20).await);
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), expected);
    let ledger = server.shared.ledger.lock().unwrap();
    let reasons: Vec<_> = ledger.stored.iter().filter_map(|stored| stored.batch.header.opening_reason).collect();
    assert_eq!(reasons, vec![wire::OpeningReason::First, wire::OpeningReason::Rewound]);
}

/// Nothing but the log says what the records are called now.
#[tokio::test]
async fn names_that_a_new_epoch_makes_void_are_logged_with_the_new_ones() {
    const WORDS: &str = "signed again, under new names";
    logged(WORDS);
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let equivocation = || Trick::Reject(RejectReason::Equivocation);
    // The first batch, which holds its writer's record as well, and whatever follows it twice.
    server.tricks([equivocation(), equivocation(), equivocation()]);
    let mut names = Vec::new();
    for number in 0..14 {
        names.push(gateway.record(complete(&format!("tool-{number}"))).await.unwrap());
    }
    gateway.drain().await.unwrap();
    let text = |line: &serde_json::Value, name: &str| line["fields"][name].as_str().unwrap().to_owned();
    let number = |line: &serde_json::Value, name: &str| line["fields"][name].as_u64().unwrap();
    let lines = logged(WORDS);
    let renamed = |(epoch, name): (String, u64)| {
        let of_name = |line: &&serde_json::Value| {
            text(line, "old_epoch") == epoch && (number(line, "old_first")..=number(line, "old_last")).contains(&name)
        };
        let line = lines.iter().rfind(of_name)?;
        let new = number(line, "new_first") + name - number(line, "old_first");
        assert!(new <= number(line, "new_last"));
        Some((text(line, "new_epoch"), new))
    };
    let ledger = server.shared.ledger.lock().unwrap();
    let mut voids = 0;
    for (at, name) in names.iter().enumerate() {
        let mut name = (name.epoch.to_string(), name.number);
        while let Some(new) = renamed(name.clone()) {
            (name, voids) = (new, voids + 1);
        }
        let of_epoch = ledger.stored.iter().filter(|stored| stored.batch.header.epoch.to_string() == name.0);
        let mut records = of_epoch.flat_map(|stored| (stored.batch.header.first_record..).zip(&stored.batch.records));
        let (_, bytes) = records.find(|(number, _)| *number == name.1).expect("it stands under its new name");
        let Some(Kind::Call(call)) = record::decode(bytes).unwrap().kind else { panic!("another record") };
        assert_eq!(call.target, Some(wire::call::Target::Tool(format!("tool-{at}"))));
    }
    assert!(voids > 3, "too few names became void for this to show anything");
}

#[tokio::test]
async fn a_spool_that_was_lost_is_declared() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    record_some(&gateway, 0..3).await;
    gateway.drain().await.unwrap();
    drop(gateway);
    let (other, before) = (TempDir::new(), tools(&server));
    let gateway = server.gateway(&other).await;
    let after = record_some(&gateway, 3..6).await;
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), [before, after].concat());
    let ledger = server.shared.ledger.lock().unwrap();
    let reasons: Vec<_> = ledger.stored.iter().filter_map(|stored| stored.batch.header.opening_reason).collect();
    assert_eq!(reasons, vec![wire::OpeningReason::First, wire::OpeningReason::StateLost]);
}

#[tokio::test]
async fn calls_are_one_record_or_two_and_never_none() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let quick = gateway.begin(call("quick")).await.unwrap();
    quick.finish(Ending::of(Outcome::ToolError)).await.unwrap();
    let dropped = gateway.begin(call("dropped")).await.unwrap();
    drop(dropped);
    let unfinished = gateway.begin(call("unfinished")).await.unwrap();
    let long = gateway.begin(call("long")).await.unwrap();
    // Until its intent has arrived by itself.
    let intent = ("long".to_owned(), Phase::Intent, Outcome::Running);
    while !arrived(&server).contains(&intent) {
        gateway.progress.clone().changed().await.unwrap();
    }
    long.finish(Ending::of(Outcome::Ok)).await.unwrap();
    assert_eq!(gateway.drain().await.unwrap().unfinished, 1);
    drop(unfinished);
    let mut calls = arrived(&server);
    calls.sort_by(|a, b| a.0.cmp(&b.0));
    let of = |tool: &str, phase, outcome| (tool.to_owned(), phase, outcome);
    assert_eq!(
        calls,
        vec![
            of("dropped", Phase::Complete, Outcome::Cancelled),
            of("long", Phase::Intent, Outcome::Running),
            of("long", Phase::Outcome, Outcome::Ok),
            of("quick", Phase::Complete, Outcome::ToolError),
            of("unfinished", Phase::Intent, Outcome::Running),
            of("unfinished", Phase::Outcome, Outcome::Unknown),
        ]
    );
}

/// A power failure in the middle of calls: the next start ends them as unknown, and nothing that was answered is lost.
#[tokio::test]
async fn calls_that_a_crash_cut_off_end_as_unknown() {
    use crate::durable::recorder::{ALL_UNSYNCED, Recorder, after_power_failure};
    let (server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let disk = Recorder::default();
    let limits = spool::Limits::of_mib(8);
    let gateway = Gateway::start(Box::new(disk.clone()), limits, server.parts(&dir)).unwrap();
    let recorded = gateway.record(complete("whole")).await.unwrap();
    let running = gateway.begin(call("cut-off")).await.unwrap();
    let ops = disk.ops();
    for unsynced in ALL_UNSYNCED {
        let server = Server::with_key(server.key.clone()).await;
        let left = Recorder::with(after_power_failure(&std::collections::BTreeMap::new(), &ops, unsynced));
        let again = Gateway::start(Box::new(left), limits, server.parts(&dir)).unwrap();
        again.drain().await.unwrap();
        let calls = arrived(&server);
        assert_eq!(calls[0].0, "whole", "{unsynced:?}");
        assert_eq!(calls[2], ("cut-off".to_owned(), Phase::Outcome, Outcome::Unknown), "{unsynced:?}");
        let ledger = server.shared.ledger.lock().unwrap();
        assert!(ledger.numbering.epochs[&recorded.epoch].closed);
    }
    drop(running);
}

#[tokio::test]
async fn what_no_gateway_may_write_is_refused() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let alarm = wire::Alarm { at: 1, phase: 1, severity: 1, name: "a".into(), ..Default::default() };
    assert_eq!(gateway.record(Kind::Alarm(alarm)).await, Err(Refused::NotARecord));
    let bad = wire::Call { server: "not a token".into(), ..call("x") };
    assert!(matches!(gateway.begin(bad).await, Err(Refused::NotARecord)));
}

/// A spool of a few hundred records.
const SMALL: spool::Limits = spool::Limits { bytes_max: 400_000, file_bytes_max: 20_000, reserve_bytes: 100_000 };

async fn small_gateway(server: &Server, dir: &TempDir, when_full: crate::config::WhenFull) -> Gateway {
    let mut parts = server.parts(dir);
    parts.settings.when_full = when_full;
    Gateway::start(Box::new(Folder::open(&dir.path().join("spool")).unwrap()), SMALL, parts).unwrap()
}

async fn record_until_refused(gateway: &Gateway, refused: Refused) -> Vec<String> {
    let mut tools = Vec::new();
    loop {
        let tool = format!("tool-{}", tools.len());
        match gateway.record(complete(&tool)).await {
            Ok(_) => tools.push(tool),
            Err(error) => {
                assert_eq!(error, refused);
                return tools;
            }
        }
    }
}

#[tokio::test]
async fn a_full_spool_refuses_and_loses_nothing() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    server.shared.script.lock().unwrap().archives = true;
    let gateway = small_gateway(&server, &dir, crate::config::WhenFull::Spool).await;
    let mut expected = record_until_refused(&gateway, Refused::SpoolFull).await;
    assert!(matches!(gateway.begin(call("none")).await, Err(Refused::SpoolFull)));
    server.restart().await;
    shipped(&gateway).await;
    // There is room again once something is archived.
    while gateway.record(complete("again")).await.is_err() {
        tokio::task::yield_now().await;
    }
    expected.push("again".into());
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), expected);
    let ledger = server.shared.ledger.lock().unwrap();
    assert!(ledger.stored.iter().all(|stored| stored.batch.header.dropped == 0));
    let states: Vec<_> = deliveries(&ledger.records());
    assert_eq!(states, vec![wire::DeliveryState::Refusing, wire::DeliveryState::Flowing]);
}

pub(super) fn deliveries(records: &[Bytes]) -> Vec<wire::DeliveryState> {
    let state = |bytes: &Bytes| match record::decode(bytes).unwrap().kind {
        Some(Kind::GatewayEvent(wire::GatewayEvent {
            event: Some(wire::gateway_event::Event::Delivery(delivery)),
            ..
        })) => Some(delivery.state()),
        _ => None,
    };
    records.iter().filter_map(state).collect()
}

#[tokio::test]
async fn what_a_full_spool_lets_go_is_declared() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let gateway = small_gateway(&server, &dir, crate::config::WhenFull::FailOpen).await;
    let expected = record_until_refused(&gateway, Refused::Dropped).await;
    for _ in 0..6 {
        assert_eq!(gateway.record(complete("let-go")).await, Err(Refused::Dropped));
    }
    server.restart().await;
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert_eq!(tools(&server), expected);
    let ledger = server.shared.ledger.lock().unwrap();
    assert_eq!(ledger.stored.iter().map(|stored| stored.batch.header.dropped).sum::<u64>(), 7);
    let reasons: Vec<_> = ledger.stored.iter().filter_map(|stored| stored.batch.header.drop_reason).collect();
    assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == wire::DropReason::FailOpen), "{reasons:?}");
    assert_eq!(deliveries(&ledger.records()), vec![wire::DeliveryState::FailOpen]);
}

#[tokio::test]
async fn a_silent_gateway_sends_heartbeats_with_its_last_head() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let mut parts = server.parts(&dir);
    parts.settings.limits.heartbeat_after = Duration::from_millis(20);
    let disk = Folder::open(&dir.path().join("spool")).unwrap();
    let gateway = Gateway::start(Box::new(disk), spool::Limits::of_mib(8), parts).unwrap();
    let mut progress = gateway.progress.clone();
    loop {
        progress.changed().await.unwrap();
        let ledger = server.shared.ledger.lock().unwrap();
        let beats = ledger.stored.iter().filter(|stored| stored.batch.header.heartbeat);
        if beats.filter(|stored| !stored.batch.header.last_head.is_empty()).count() >= 2 {
            break;
        }
    }
    gateway.drain().await.unwrap();
}
