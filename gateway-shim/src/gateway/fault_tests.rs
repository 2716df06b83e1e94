//! What fails under the gateway: a full disk, and the fault table: each write of the shim, failing and not stored or failing
//! but stored, and whether the gateway goes on.

use std::{collections::BTreeMap, io::ErrorKind};

use bytes::Bytes;
use custody::wire::{DeliveryState, Outcome, Phase};
use hyper::StatusCode;

use super::{
    tests::{arrived, call, complete, deliveries, shipped, tools},
    *,
};
use crate::{
    config::WhenFull,
    durable::{
        self,
        recorder::{ALL_UNSYNCED, Fault, Op, Recorder, Unsynced, after_power_failure},
        tests::{SyncOf, fail_next},
    },
    testing::{
        TempDir,
        server::{Server, Trick},
        within,
    },
};

/// Files so small that a new one is begun every few records.
const SMALL: spool::Limits = spool::Limits { bytes_max: 8 << 20, file_bytes_max: 20_000, reserve_bytes: 100_000 };

fn start(server: &Server, dir: &TempDir, disk: &Recorder, when_full: WhenFull) -> Gateway {
    let mut parts = server.parts(dir);
    parts.settings.when_full = when_full;
    Gateway::start(Box::new(disk.clone()), SMALL, parts).unwrap()
}

fn used(disk: &Recorder) -> usize {
    disk.files().values().map(Vec::len).sum()
}

/// Waits until appends have failed on the full disk so many times more.
async fn has_tried(disk: &Recorder, times: usize) {
    let tried = || disk.count(|op| matches!(op, Op::Truncate(..)));
    let before = tried();
    within(async {
        while tried() < before + times {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Without space records are refused, and nothing ends: what is owed by then (the outcome of a call that was let through,
/// batches that are due, receipts) is written when there is space again.
#[tokio::test]
async fn a_full_disk_refuses_and_everything_goes_on_when_there_is_space() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = start(&server, &dir, &disk, WhenFull::Spool);
    let mut expected = vec![("first".to_owned(), Phase::Complete, Outcome::Ok)];
    gateway.record(complete("first")).await.unwrap();
    let running = gateway.begin(call("running")).await.unwrap();
    disk.limit(Some(used(&disk) + 2_000));
    let refused = loop {
        let tool = format!("tool-{}", expected.len());
        match gateway.record(complete(&tool)).await {
            Ok(_) => expected.push((tool, Phase::Complete, Outcome::Ok)),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::SpoolFull);
    // Not even what is owed fits, with the reserve given.
    disk.limit(Some(0));
    let finishing = tokio::spawn(running.finish(Ending::of(Outcome::ToolError)));
    has_tried(&disk, 3).await;
    assert!(gateway.has_ended().is_none(), "{:?}", gateway.has_ended());
    assert!(matches!(gateway.begin(call("none")).await, Err(Refused::SpoolFull)));
    assert_eq!(gateway.record(complete("none")).await, Err(Refused::SpoolFull));
    assert!(!finishing.is_finished(), "an outcome was answered that is not durable");

    disk.limit(None);
    finishing.await.unwrap().unwrap();
    put(&gateway, "again").await;
    assert_eq!(gateway.drain().await.unwrap(), Drained { unfinished: 0, unshipped: 0 });
    let mut seen = arrived(&server);
    let at = seen.iter().position(|(tool, _, _)| tool == "running").expect("the outcome of the call is on record");
    assert_eq!(seen.remove(at).2, Outcome::ToolError);
    expected.push(("again".to_owned(), Phase::Complete, Outcome::Ok));
    assert_eq!(seen, expected);
    let states = deliveries(&server.shared.ledger.lock().unwrap().records());
    assert_eq!(states, vec![DeliveryState::Refusing, DeliveryState::Flowing]);
}

/// Records as soon as there is room: the reserve is set aside first.
async fn put(gateway: &Gateway, tool: &str) -> RecordName {
    within(async {
        loop {
            match gateway.record(complete(tool)).await {
                Ok(name) => return name,
                Err(refused) => assert_eq!(refused, Refused::SpoolFull),
            }
        }
    })
    .await
}

/// Nobody makes room: the outcome of the call that was let through is durable, the ledger comes up, and everything that was
/// acknowledged is shipped and archived; by that records are taken again.
#[tokio::test]
async fn a_full_disk_ships_what_it_holds_and_recovers_by_itself() {
    let (mut server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    server.shared.script.lock().unwrap().archives = true;
    server.kill();
    let gateway = start(&server, &dir, &disk, WhenFull::Spool);
    let mut expected = vec!["first".to_owned()];
    gateway.record(complete("first")).await.unwrap();
    let running = gateway.begin(call("running")).await.unwrap();
    disk.limit(Some(used(&disk) + 50_000));
    loop {
        let tool = format!("tool-{}", expected.len());
        match gateway.record(complete(&tool)).await {
            Ok(_) => expected.push(tool),
            Err(refused) => break assert_eq!(refused, Refused::SpoolFull),
        }
    }
    within(running.finish(Ending::of(Outcome::ToolError))).await.unwrap();
    expected.push("running".to_owned());
    assert_eq!(gateway.record(complete("none")).await, Err(Refused::SpoolFull));
    server.restart().await;
    within(shipped(&gateway)).await;
    assert_eq!(tools(&server), expected);
    put(&gateway, "again").await;
    assert_eq!(gateway.drain().await.unwrap(), Drained { unfinished: 0, unshipped: 0 });
    assert_eq!(tools(&server).last().unwrap(), "again");
}

/// A count that found the disk full is still to be declared.
#[tokio::test]
async fn drops_on_a_full_disk_are_declared_to_the_last_one() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = start(&server, &dir, &disk, WhenFull::FailOpen);
    gateway.record(complete("first")).await.unwrap();
    shipped(&gateway).await;
    disk.limit(Some(0));
    let mut dropped = 5;
    for _ in 0..dropped {
        assert_eq!(gateway.record(complete("let-go")).await, Err(Refused::Dropped));
    }
    has_tried(&disk, 3).await;
    disk.limit(None);
    within(async {
        while gateway.record(complete("last")).await == Err(Refused::Dropped) {
            dropped += 1;
        }
    })
    .await;
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert_eq!(tools(&server), ["first", "last"]);
    let ledger = server.shared.ledger.lock().unwrap();
    assert_eq!(ledger.stored.iter().map(|stored| stored.batch.header.dropped).sum::<u64>(), dropped);
}

/// An epoch that cannot be ended is ended by the next start; the process does not hang.
#[tokio::test]
async fn a_drain_on_a_full_disk_ends_and_the_next_start_goes_on() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let mut parts = server.parts(&dir);
    parts.drain_wait = Duration::from_millis(10);
    let gateway = Gateway::start(Box::new(disk.clone()), SMALL, parts).unwrap();
    gateway.record(complete("first")).await.unwrap();
    shipped(&gateway).await;
    let running = gateway.begin(call("cut-off")).await.unwrap();
    disk.limit(Some(0));
    assert_eq!(gateway.drain().await, Err(Refused::SpoolFull));
    drop((gateway, running));
    let left = after_power_failure(&BTreeMap::new(), &disk.ops(), Unsynced::Dropped);
    let again = start(&server, &dir, &Recorder::with(left), WhenFull::Spool);
    again.drain().await.unwrap();
    let seen = arrived(&server);
    assert_eq!((seen[0].0.as_str(), seen.last().unwrap().2), ("first", Outcome::Unknown));
}

/// A new epoch that the ledger asks for is begun when there is space, and what has no receipt is signed again once.
#[tokio::test]
async fn a_new_epoch_that_finds_the_disk_full_is_begun_later() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = start(&server, &dir, &disk, WhenFull::Spool);
    gateway.record(complete("first")).await.unwrap();
    within(shipped(&gateway)).await;
    for _ in 0..2 {
        // The second is the same again, without the reserve.
        let at = |op: &Op| matches!(op, Op::Create(name) if is_journal(name));
        disk.fail(Fault { at, kind: ErrorKind::StorageFull, stored: false });
    }
    let equivocation = || Trick::Reject(wire::RejectReason::Equivocation);
    server.tricks([equivocation(), equivocation()]);
    gateway.record(complete("second")).await.unwrap();
    within(async {
        while tools(&server).len() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(disk.has_failed() && gateway.has_ended().is_none());
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert_eq!(tools(&server), ["first", "second"]);
    let ledger = server.shared.ledger.lock().unwrap();
    let reasons: Vec<_> = ledger.stored.iter().filter_map(|stored| stored.batch.header.opening_reason).collect();
    assert_eq!(reasons, [wire::OpeningReason::First, wire::OpeningReason::Rewound]);
}

fn is_journal(name: &str) -> bool {
    name.starts_with("spool-")
}

/// A row of the table: a call on the disk that fails once.
struct Row {
    name: &'static str,
    at: fn(&Op) -> bool,
    kind: ErrorKind,
    /// The gateway ends, and a new start is needed.
    fatal: bool,
}

const ROWS: [Row; 9] = [
    Row {
        name: "spool append, no space",
        at: |op| matches!(op, Op::Append(name, bytes) if is_journal(name) && !begins(bytes)),
        kind: ErrorKind::StorageFull,
        fatal: false,
    },
    Row {
        name: "spool append, I/O error",
        at: |op| matches!(op, Op::Append(name, bytes) if is_journal(name) && !begins(bytes)),
        kind: ErrorKind::Other,
        fatal: true,
    },
    Row {
        name: "spool sync",
        at: |op| matches!(op, Op::Sync(name) if is_journal(name)),
        kind: ErrorKind::Other,
        fatal: true,
    },
    Row {
        name: "turn, file made, no space",
        at: |op| matches!(op, Op::Create(name) if is_journal(name)),
        kind: ErrorKind::StorageFull,
        fatal: false,
    },
    Row {
        name: "turn, snapshot, no space",
        at: |op| matches!(op, Op::Append(name, bytes) if is_journal(name) && begins(bytes)),
        kind: ErrorKind::StorageFull,
        fatal: false,
    },
    Row {
        name: "turn, snapshot, I/O error",
        at: |op| matches!(op, Op::Append(name, bytes) if is_journal(name) && begins(bytes)),
        kind: ErrorKind::Other,
        fatal: true,
    },
    Row { name: "turn, folder sync", at: |op| *op == Op::SyncDir, kind: ErrorKind::Other, fatal: true },
    Row {
        name: "statement, no space",
        at: |op| matches!(op, Op::Append(name, _) if name == "statements.log"),
        kind: ErrorKind::StorageFull,
        fatal: false,
    },
    Row {
        name: "statement, sync",
        at: |op| matches!(op, Op::Sync(name) if name == "statements.log"),
        kind: ErrorKind::Other,
        fatal: true,
    },
];

/// Whether a frame is a snapshot: behind length and checksum the tag of the first entry.
fn begins(frame: &[u8]) -> bool {
    frame.get(12) == Some(&0x0a)
}

/// Each write that may fail, and what is expected then; also in a crash at any moment after it.
#[tokio::test]
async fn the_fault_table() {
    for row in &ROWS {
        for stored in [false, true] {
            println!("{}, {}", row.name, if stored { "stored all the same" } else { "not stored" });
            check(row, stored).await;
        }
    }
}

async fn check(row: &Row, stored: bool) {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let fault = Fault { at: row.at, kind: row.kind, stored };
    let of_statements = row.name.starts_with("statement");
    if of_statements {
        disk.fail(fault);
    }
    let gateway = start(&server, &dir, &disk, WhenFull::Spool);
    let (mut acknowledged, mut number) = (Vec::new(), 0);
    if !of_statements {
        disk.fail(fault);
    }
    while !disk.has_failed() {
        let tool = format!("tool-{}", acknowledged.len());
        match gateway.record(complete(&tool)).await {
            Ok(name) => {
                acknowledged.push(tool);
                number = name.number;
            }
            Err(refused) => assert!(disk.has_failed(), "{refused:?} before anything failed"),
        }
    }
    if !row.fatal {
        let name = put(&gateway, "after").await;
        acknowledged.push("after".into());
        number = number.max(name.number);
        for unsynced in ALL_UNSYNCED {
            let left = after_power_failure(&BTreeMap::new(), &disk.ops(), unsynced);
            let opener = server.parts(&dir).settings.opener();
            let spool = Spool::open(Box::new(Recorder::with(left)), SMALL, &opener);
            let spool = spool.expect("a crash later leaves a whole spool");
            assert!(spool.state().next_number > number, "{unsynced:?}: an acknowledged record is gone");
        }
        assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
        drop(gateway);
        // And so it is for the next start.
        let again = start(&server, &dir, &Recorder::with(disk.files()), WhenFull::Spool);
        assert_eq!(again.drain().await.unwrap().unshipped, 0);
        assert_eq!(tools(&server), acknowledged);
        return;
    }
    assert!(matches!(within(gateway.ended()).await, Ended::Disk(_)));
    assert_eq!(gateway.record(complete("none")).await, Err(Refused::Stopped));
    drop(gateway);
    let unsynced = if stored { Unsynced::Kept } else { Unsynced::Dropped };
    let left = after_power_failure(&BTreeMap::new(), &disk.ops(), unsynced);
    let again = start(&server, &dir, &Recorder::with(left), WhenFull::Spool);
    assert_eq!(again.drain().await.unwrap().unshipped, 0);
    let mut seen = tools(&server);
    // What nobody was answered for may be on record or not.
    seen.retain(|tool| acknowledged.contains(tool));
    assert_eq!(seen, acknowledged);
}

/// A proof that cannot be written, or whose folder cannot be synced, stops nothing: the gateway ends, and the second address
/// has it.
#[tokio::test]
async fn a_fork_whose_proof_cannot_be_kept_ends_the_gateway_all_the_same() {
    for stored in [false, true] {
        let (server, dir) = (Server::start().await, TempDir::new());
        let folder = dir.path().join("forks");
        match stored {
            // A file where the folder should be.
            false => durable::create_new(&folder, b"", false).unwrap(),
            true => durable::create_dir(&folder, 0o700).unwrap(),
        }
        let gateway = server.gateway(&dir).await;
        gateway.record(complete("first")).await.unwrap();
        shipped(&gateway).await;
        server.tricks([Trick::Fork]);
        if stored {
            fail_next(SyncOf::Folder);
        }
        gateway.record(complete("last")).await.unwrap();
        assert!(matches!(within(gateway.ended()).await, Ended::Fork));
        gateway.drain().await.unwrap();
        assert_eq!(std::fs::read_dir(&folder).map_or(0, Iterator::count), usize::from(stored));
        assert_eq!(std::fs::read_dir(dir.path().join("second")).unwrap().count(), 1);
    }
}

/// The moment that a fork is seen nothing more is taken, however long telling the second address takes; a drain waits for
/// that.
#[tokio::test]
async fn a_fork_stops_the_gateway_before_the_second_address_has_answered() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = format!("http://{}/forks", listener.local_addr().unwrap());
    let (came, mut coming) = mpsc::channel::<Bytes>(1);
    let (answer, answered) = watch::channel(false);
    let post = axum::routing::post(move |body: Bytes| {
        let (came, mut answered) = (came.clone(), answered.clone());
        async move {
            came.send(body).await.unwrap();
            answered.wait_for(|answer| *answer).await.unwrap();
            StatusCode::NO_CONTENT
        }
    });
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/forks", post)).await.unwrap() });
    let mut parts = server.parts(&dir);
    parts.fork.second = Some(second);
    let gateway = Gateway::start(Box::new(Recorder::default()), SMALL, parts).unwrap();
    gateway.record(complete("first")).await.unwrap();
    shipped(&gateway).await;
    server.tricks([Trick::Fork]);
    gateway.record(complete("last")).await.unwrap();
    let proof = within(coming.recv()).await.unwrap();
    assert!(matches!(gateway.has_ended(), Some(Ended::Fork)), "calls are still taken");
    assert_eq!(gateway.record(complete("none")).await, Err(Refused::Stopped));
    let draining = tokio::spawn({
        let gateway = gateway.clone();
        async move { gateway.drain().await }
    });
    for _ in 0..100 {
        // Each is a way to the writer and back: it has answered the drain by then.
        ask(&gateway.commands, |answer| Command::OrderOf(custody::id::Epoch::ZERO, 0, answer)).await.unwrap();
    }
    assert!(!draining.is_finished(), "the drain did not wait for the second address");
    answer.send_replace(true);
    draining.await.unwrap().unwrap();
    let file = std::fs::read_dir(dir.path().join("forks")).unwrap().next().unwrap().unwrap();
    assert_eq!(std::fs::read(file.path()).unwrap(), proof, "the file and the message say the same");
}
