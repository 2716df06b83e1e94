//! The ledger is away, the spool is full, the machine sleeps: what becomes of each server's calls, and of the records.

use std::sync::Mutex;

use bytes::Bytes;
use custody::{
    record,
    wire::{DeliveryState, Mode, Outcome, Phase, WriterClass, gateway_event::Event},
};
use futures::FutureExt as _;

use super::{
    tests::{arrived, call, shipped, tools},
    *,
};
use crate::{
    clock::{Clocks, Now},
    config::WhenFull,
    durable::recorder::{Held, Recorder},
    testing::{TempDir, server::Server, within},
};

/// A spool of a few hundred records.
const SMALL: spool::Limits = spool::Limits { bytes_max: 400_000, file_bytes_max: 20_000, reserve_bytes: 100_000 };

fn on(server: &str, tool: &str) -> wire::Call {
    wire::Call { server: server.into(), ..call(tool) }
}

/// A gateway with a server of each kind.
fn three(server: &Server, dir: &TempDir, away_max: Duration) -> Gateway {
    let mut parts = server.parts(dir);
    let of = |name: &str, when_full| (name.to_owned(), when_full);
    parts.settings.servers =
        [of("closed", WhenFull::FailClosed), of("spool", WhenFull::Spool), of("open", WhenFull::FailOpen)].into();
    parts.settings.away_max = away_max;
    Gateway::start(Box::new(Recorder::default()), SMALL, parts).unwrap()
}

/// Changes of delivery, in their order, with the server that each names.
fn changes(server: &Server) -> Vec<(String, DeliveryState)> {
    let records = server.shared.ledger.lock().unwrap().records();
    let change = |bytes: &Bytes| match record::decode(bytes).unwrap().kind {
        Some(Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::Delivery(delivery)), .. })) => {
            Some((delivery.server.clone(), delivery.state()))
        }
        _ => None,
    };
    records.iter().filter_map(change).collect()
}

async fn passes(gateway: &Gateway, server: &str, tool: &str) {
    within(async {
        loop {
            match gateway.begin(on(server, tool)).await {
                Ok(running) => return running.end(Ending::of(Outcome::Ok)),
                Err(refused) => assert!(matches!(refused, Refused::SpoolFull | Refused::Dropped | Refused::LedgerAway)),
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_full_spool_does_to_each_server_what_its_word_is() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    server.shared.script.lock().unwrap().archives = true;
    let gateway = three(&server, &dir, Duration::from_secs(86_400));
    let mut expected = Vec::new();
    let refused = loop {
        let tool = format!("tool-{}", expected.len());
        match gateway.begin(on("spool", &tool)).await {
            Ok(running) => running.end(Ending::of(Outcome::Ok)),
            Err(refused) => break refused,
        }
        expected.push(tool);
    };
    assert_eq!(refused, Refused::SpoolFull);
    for _ in 0..3 {
        assert_eq!(gateway.begin(on("open", "let-go")).await.err(), Some(Refused::Dropped));
        assert_eq!(gateway.begin(on("closed", "none")).await.err(), Some(Refused::SpoolFull));
    }
    // Refusals that there was no room for.
    gateway.lose(5);
    server.restart().await;
    within(shipped(&gateway)).await;
    for name in ["closed", "open", "spool"] {
        passes(&gateway, name, name).await;
    }
    expected.extend(["closed", "open", "spool"].map(str::to_owned));
    assert_eq!(gateway.drain().await.unwrap(), Drained { unfinished: 0, unshipped: 0 });
    let arrived = tools(&server);
    assert_eq!(arrived, expected);
    let change = |name: &str, state| (name.to_owned(), state);
    let of_loss: Vec<_> = changes(&server);
    assert_eq!(
        of_loss[..3],
        [
            change("spool", DeliveryState::Refusing),
            change("open", DeliveryState::FailOpen),
            change("closed", DeliveryState::Refusing)
        ]
    );
    for name in ["closed", "open", "spool"] {
        let last = of_loss.iter().rfind(|(of, _)| of == name).unwrap();
        assert_eq!(last.1, DeliveryState::Flowing, "{name}");
    }
    let ledger = server.shared.ledger.lock().unwrap();
    let dropped: u64 = ledger.stored.iter().map(|stored| stored.batch.header.dropped).sum();
    assert!(dropped >= 3 + 5, "{dropped} declared");
}

/// Without a word of the ledger for so long, here for no time at all, only the one server is closed; it opens by itself.
#[tokio::test]
async fn fail_closed_refuses_while_the_ledger_takes_nothing() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let gateway = three(&server, &dir, Duration::ZERO);
    for name in ["spool", "open"] {
        gateway.begin(on(name, name)).await.unwrap().end(Ending::of(Outcome::Ok));
    }
    assert_eq!(gateway.begin(on("closed", "none")).await.err(), Some(Refused::LedgerAway));
    server.restart().await;
    passes(&gateway, "closed", "closed").await;
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), ["spool", "open", "closed"]);
    let changes = changes(&server);
    assert!(changes.iter().all(|(name, _)| name == "closed"), "{changes:?}");
    let states: Vec<_> = changes.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states[..2], [DeliveryState::Refusing, DeliveryState::Flowing]);
}

/// It is a record that a server is closed and open again, though nobody calls it.
#[tokio::test]
async fn a_change_that_nobody_asks_about_is_a_record_as_well() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let gateway = three(&server, &dir, Duration::ZERO);
    within(async {
        while gateway.progress().unreceived < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.restart().await;
    within(async {
        while changes(&server).len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let change = |state| ("closed".to_owned(), state);
    assert_eq!(changes(&server)[..2], [change(DeliveryState::Refusing), change(DeliveryState::Flowing)]);
}

/// Calls in this life while the ledger is away, and while it drains. `CUSTODY_AWAY_CALLS` says how many.
fn many() -> u64 {
    std::env::var("CUSTODY_AWAY_CALLS").ok().and_then(|calls| calls.parse().ok()).unwrap_or(3_000)
}

#[tokio::test]
async fn what_a_ledger_missed_goes_to_it_in_order_while_calls_go_on() {
    let (mut server, dir) = (Server::start().await, TempDir::new());
    server.kill();
    let (disk, mut parts) = (Folder::open(&dir.path().join("spool")).unwrap(), server.parts(&dir));
    parts.settings.limits.records_max = 256;
    let gateway = Gateway::start(Box::new(disk), spool::Limits::of_mib(8 + many() / 500), parts).unwrap();
    let pass = async |number: u64| {
        let mode = if number.is_multiple_of(100) { Mode::Strict } else { Mode::Relaxed };
        let asked = wire::Call { mode: mode as i32, ..call(&number.to_string()) };
        gateway.begin(asked).await.unwrap().end(Ending::of(Outcome::Ok));
    };
    for number in 0..many() {
        pass(number).await;
    }
    server.restart().await;
    let (mut number, mut draining) = (many(), Box::pin(shipped(&gateway)));
    within(async {
        while (&mut draining).now_or_never().is_none() {
            pass(number).await;
            number += 1;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(gateway.drain().await.unwrap(), Drained { unfinished: 0, unshipped: 0 });
    assert!(number > many(), "nothing came while it drained");
    assert_eq!(tools(&server), (0..number).map(|number| number.to_string()).collect::<Vec<_>>());
    let ledger = server.shared.ledger.lock().unwrap();
    assert!(ledger.stored.iter().all(|stored| stored.batch.header.dropped == 0));
}

/// Whatever becomes of the test, nobody waits for it for ever.
struct LetGo(Recorder);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// Reading what is to be shipped takes nothing of the writer: calls of both modes go on while it hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_read_that_hangs_holds_up_no_call() {
    let (mut server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    server.kill();
    let gateway = Gateway::start(Box::new(disk.clone()), spool::Limits::of_mib(8), server.parts(&dir)).unwrap();
    gateway.begin(call("before")).await.unwrap().end(Ending::of(Outcome::Ok));
    let held = LetGo(disk.clone());
    disk.hold(Held::Reads);
    server.restart().await;
    within(async {
        while !disk.is_waited_for() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for mode in [Mode::Strict, Mode::Relaxed] {
        let (gateway, asked) = (gateway.clone(), wire::Call { mode: mode as i32, ..call(mode.as_str_name()) });
        // A task of its own, so that the limit holds even when it waits for a lock.
        let called = tokio::spawn(async move { gateway.begin(asked).await.unwrap().end(Ending::of(Outcome::Ok)) });
        within(called).await.unwrap();
    }
    assert!(tools(&server).is_empty());
    drop(held);
    gateway.drain().await.unwrap();
    assert_eq!(tools(&server), ["before", "MODE_STRICT", "MODE_RELAXED"]);
}

/// A gateway of this class whose machine sleeps for an hour while a call runs; what the ledger has then.
async fn slept(class: WriterClass) -> (Server, Vec<(String, Phase, Outcome)>) {
    let (server, dir) = (Server::start().await, TempDir::new());
    let now = Arc::new(Mutex::new(Now::default()));
    let mut parts = server.parts(&dir);
    let clocks = Arc::clone(&now);
    parts.settings.clocks = Clocks::of(move || *clocks.lock().unwrap());
    parts.settings.opened.class = class as i32;
    let gateway = Gateway::start(Box::new(Recorder::default()), spool::Limits::of_mib(8), parts).unwrap();
    let running = gateway.begin(call("over-night")).await.unwrap();
    let began = running.name();
    {
        let mut now = now.lock().unwrap();
        let hour = Duration::from_secs(3_600);
        (now.wall_us, now.boot) = (now.wall_us + 3_600_000_000, now.boot + hour);
    }
    // The next thing that the writer does finds it.
    gateway.begin(call("woken")).await.unwrap().finish(Ending::of(Outcome::Ok)).await.unwrap();
    running.finish(Ending::of(Outcome::Ok)).await.unwrap();
    let morning = gateway.begin(call("morning")).await.unwrap();
    assert_eq!(morning.name().epoch == began.epoch, class == WriterClass::AlwaysOn);
    morning.end(Ending::of(Outcome::Ok));
    gateway.drain().await.unwrap();
    let calls = arrived(&server);
    (server, calls)
}

#[tokio::test]
async fn a_laptop_that_slept_begins_an_epoch() {
    let (server, calls) = slept(WriterClass::Intermittent).await;
    let ledger = server.shared.ledger.lock().unwrap();
    assert_eq!(ledger.numbering.epochs.len(), 2);
    assert!(ledger.numbering.epochs.values().all(|epoch| epoch.closed));
    let openings = ledger.stored.iter().filter(|stored| stored.batch.header.opens());
    let reasons: Vec<_> = openings.map(|stored| stored.batch.header.opening_reason).collect();
    assert_eq!(reasons, [Some(wire::OpeningReason::First), None], "it continues the one before");
    let closing = ledger.stored.iter().position(|stored| stored.batch.header.close).unwrap();
    let epoch = |tool: &str, wanted: Phase| {
        let of = |bytes: &Bytes| match record::decode(bytes).unwrap().kind {
            Some(Kind::Call(call)) => {
                call.target == Some(wire::call::Target::Tool(tool.into())) && call.phase() == wanted
            }
            _ => false,
        };
        ledger.stored.iter().position(|stored| stored.batch.records.iter().any(of)).unwrap() <= closing
    };
    assert!(epoch("over-night", Phase::Intent), "its name is of the epoch in which it began");
    assert!(!epoch("over-night", Phase::Outcome));
    assert!(!jumped(&ledger.records()), "a sleep is no jump of the clock");
    assert_eq!(calls.iter().filter(|(tool, ..)| tool == "over-night").count(), 2);
}

#[tokio::test]
async fn a_server_that_slept_says_so() {
    let (server, calls) = slept(WriterClass::AlwaysOn).await;
    let ledger = server.shared.ledger.lock().unwrap();
    assert_eq!(ledger.numbering.epochs.len(), 1);
    assert!(jumped(&ledger.records()));
    assert_eq!(calls.len(), 3);
}

fn jumped(records: &[Bytes]) -> bool {
    records.iter().any(|bytes| {
        let kind = record::decode(bytes).unwrap().kind;
        matches!(kind, Some(Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::ClockJump(_)), .. })))
    })
}

/// Neither a ledger that takes nothing under `fail_closed` nor a full spool stops who takes access away, or the life of
/// servers; a group of changes is written whole, with nothing between, or not at all.
#[tokio::test]
async fn changes_of_access_have_their_place_where_calls_find_none() {
    let change = |group: &str| {
        Kind::AccessChange(wire::AccessChange {
            at: 1,
            action: wire::AccessAction::GroupJoined as i32,
            actor: Some(wire::access_change::Actor::ActorSystem("start".into())),
            reason: "test".into(),
            member: Some(vec![1; 16].into()),
            group: group.into(),
            policy_digest_after: vec![2; 32].into(),
            ..Default::default()
        })
    };
    let brought = |group: &str| match change(group) {
        Kind::AccessChange(change) => Kind::AccessChange(wire::AccessChange {
            actor: Some(wire::access_change::Actor::ActorSystem("identity-provider".into())),
            ..change
        }),
        other => other,
    };
    let life = wire::ServerLife {
        server: "s".into(),
        state: wire::ServerState::Stopped as i32,
        exit_code: None,
        signal: None,
    };
    let life = Kind::GatewayEvent(wire::GatewayEvent { at: 1, event: Some(Event::ServerLife(life)) });
    for when_full in [WhenFull::FailClosed, WhenFull::Spool, WhenFull::FailOpen] {
        let (server, dir) = (Server::start().await, TempDir::new());
        server.kill();
        let mut parts = server.parts(&dir);
        parts.settings.when_full = when_full;
        if when_full == WhenFull::FailClosed {
            parts.settings.away_max = Duration::ZERO;
        }
        let limits = spool::Limits { bytes_max: 400_000, file_bytes_max: 50_000, reserve_bytes: 200_000 };
        let gateway = Gateway::start(Box::new(Recorder::default()), limits, parts).unwrap();
        let refused = loop {
            match gateway.begin(call("some")).await {
                Ok(running) => running.end(Ending::of(Outcome::Ok)),
                Err(refused) => break refused,
            }
        };
        // What members bring by a provider's word is no such change.
        let said = gateway.record_all((0..250).map(|number| brought(&number.to_string())).collect()).await;
        let why = if when_full == WhenFull::FailClosed { Refused::LedgerAway } else { Refused::SpoolFull };
        assert_eq!(said, Err(why), "{when_full:?}");
        gateway.record_all((0..20).map(|number| change(&number.to_string())).collect()).await.unwrap();
        gateway.record(life.clone()).await.unwrap();
        let still = gateway.begin(call("some")).await.map(drop).unwrap_err();
        assert_eq!(still, refused, "{when_full:?}");
        assert_eq!(gateway.record_all(vec![Kind::Call(call("x"))]).await, Err(Refused::NotARecord));
        // There is an end to it, and then none of a group is there.
        let mut groups = 0;
        while gateway.record_all((0..500).map(|number| change(&number.to_string())).collect()).await.is_ok() {
            groups += 1;
        }
        let next = gateway.progress();
        let wanted = gateway.record_all((0..500).map(|number| change(&number.to_string())).collect()).await;
        assert_eq!(wanted, Err(Refused::SpoolFull), "after {groups} groups, {next:?}");
    }
}
