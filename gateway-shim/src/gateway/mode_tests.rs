//! Strict and relaxed mode: what is on the disk when a call may be forwarded, what a kill and a power cut take, and who waits
//! for the disk. Nothing here depends on how fast the disk is: its syncs are held, and the waits are a day or nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    record,
    wire::{Mode, Outcome, Phase},
};
use futures::FutureExt as _;
use prost::Message as _;

use super::{
    tests::{arrived, call},
    *,
};
use crate::{
    durable::recorder::{ALL_UNSYNCED, Held, Op, Recorder, Unsynced, after_power_failure},
    testing::{TempDir, server::Server, within},
    writer::Learnt,
};

const DAY: Duration = Duration::from_secs(86_400);
const NEVER: Waits = Waits { sync_after: DAY, relaxed_max: DAY };

fn relaxed(tool: &str) -> wire::Call {
    wire::Call { mode: Mode::Relaxed as i32, ..call(tool) }
}

/// A gateway without a ledger: what it ships does not matter here.
fn alone(server: &Server, dir: &TempDir, disk: &Recorder, waits: Waits) -> Gateway {
    server.kill();
    let mut parts = server.parts(dir);
    parts.settings.waits = waits;
    Gateway::start(Box::new(disk.clone()), spool::Limits::of_mib(8), parts).unwrap()
}

fn syncs(disk: &Recorder) -> usize {
    disk.count(|op| matches!(op, Op::Sync(_)))
}

/// How the calls of these files end, as a new start ships them.
async fn ends(server: &Server, dir: &TempDir, files: BTreeMap<String, Vec<u8>>) -> Vec<(String, Outcome)> {
    let ledger = Server::with_key(server.key.clone()).await;
    let again = Gateway::start(Box::new(Recorder::with(files)), spool::Limits::of_mib(8), ledger.parts(dir)).unwrap();
    again.drain().await.unwrap();
    let ended = arrived(&ledger).into_iter().filter(|(_, phase, _)| *phase != Phase::Intent);
    ended.map(|(tool, _, outcome)| (tool, outcome)).collect()
}

#[tokio::test]
async fn a_relaxed_call_outlives_its_process_and_not_the_power() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, NEVER);
    let strict = gateway.begin(call("strict")).await.unwrap();
    disk.hold(Held::Syncs);
    let running = gateway.begin(relaxed("relaxed")).await.unwrap();
    let (killed, ops) = (disk.files(), disk.ops());
    disk.let_go();
    let of = |tool: &str| (tool.to_owned(), Outcome::Unknown);
    assert_eq!(ends(&server, &dir, killed).await, [of("strict"), of("relaxed")]);
    let left = after_power_failure(&BTreeMap::new(), &ops, Unsynced::Dropped);
    assert_eq!(ends(&server, &dir, left).await, [of("strict")]);
    // Whatever is strict makes durable what was written before it.
    gateway.begin(call("next")).await.unwrap().end(Ending::of(Outcome::Ok));
    let left = after_power_failure(&BTreeMap::new(), &disk.ops(), Unsynced::Dropped);
    assert_eq!(ends(&server, &dir, left).await[..2], [of("strict"), of("relaxed")]);
    drop((strict, running));
}

/// Without anybody who waits, what was written is durable by itself.
#[tokio::test]
async fn a_relaxed_call_becomes_durable_by_itself() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, Waits::default());
    let running = gateway.begin(relaxed("relaxed")).await.unwrap();
    let there = |disk: &Recorder| {
        let left = after_power_failure(&BTreeMap::new(), &disk.ops(), Unsynced::Dropped);
        let opener = server.parts(&dir).settings.opener();
        let spool = Spool::open(Box::new(Recorder::with(left)), spool::Limits::of_mib(8), &opener).unwrap();
        !spool.state().intents.is_empty()
    };
    within(async {
        while !there(&disk) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(running);
}

#[tokio::test]
async fn who_waits_for_the_disk_holds_up_no_relaxed_call() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, NEVER);
    disk.hold(Held::Syncs);
    let mut strict = Box::pin(gateway.begin(call("strict")));
    assert!((&mut strict).now_or_never().is_none(), "it was let through before it was durable");
    for number in 0..100 {
        let begun = gateway.begin(relaxed(&number.to_string())).now_or_never();
        begun.expect("it waits for the disk").unwrap().end(Ending::of(Outcome::Ok));
    }
    assert!((&mut strict).now_or_never().is_none());
    disk.let_go();
    within(strict).await.unwrap();
}

/// The disk is slower than the mode's word: then its calls wait as well, so that a power cut takes no more than it says.
#[tokio::test]
async fn behind_a_write_that_waits_too_long_relaxed_calls_wait() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, Waits { sync_after: DAY, relaxed_max: Duration::ZERO });
    // Nothing waits from before.
    gateway.begin(call("first")).await.unwrap().finish(Ending::of(Outcome::Ok)).now_or_never();
    disk.hold(Held::Syncs);
    let mut late = Box::pin(gateway.begin(relaxed("late")));
    assert!((&mut late).now_or_never().is_none(), "it was let through behind what waits for the disk");
    let ops = disk.ops();
    disk.let_go();
    within(late).await.unwrap();
    assert!(disk.ops().len() > ops.len());
}

/// An outcome holds up nobody: it has no sync of its own, and is durable with the next one. Until then a power cut makes it
/// `unknown`.
#[tokio::test]
async fn an_outcome_shares_the_sync_of_the_next_intent() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, NEVER);
    gateway.begin(call("0")).await.unwrap().end(Ending::of(Outcome::ToolError));
    let before = syncs(&disk);
    let mut outcomes = vec![("0".to_owned(), Outcome::ToolError)];
    for number in 1..20 {
        let running = gateway.begin(call(&number.to_string())).await.unwrap();
        assert_eq!(syncs(&disk), before + number, "one sync for each call");
        running.end(Ending::of(Outcome::ToolError));
        outcomes.push((number.to_string(), Outcome::ToolError));
    }
    assert_eq!(syncs(&disk), before + 19, "an outcome was synced by itself");
    let ops = disk.ops();
    let kept = after_power_failure(&BTreeMap::new(), &ops, Unsynced::Kept);
    assert_eq!(ends(&server, &dir, kept).await, outcomes);
    outcomes[19].1 = Outcome::Unknown;
    let left = after_power_failure(&BTreeMap::new(), &ops, Unsynced::Dropped);
    assert_eq!(ends(&server, &dir, left).await, outcomes);
}

/// What comes while a sync goes on shares the next one, intents and outcomes of all calls.
#[tokio::test]
async fn calls_at_a_time_share_syncs() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, NEVER);
    let earlier: Vec<Running> =
        futures::future::try_join_all((0..8).map(|n| gateway.begin(call(&n.to_string())))).await.unwrap();
    let before = syncs(&disk);
    disk.hold(Held::Syncs);
    let mut first = Box::pin(gateway.begin(call("first")));
    assert!((&mut first).now_or_never().is_none());
    // Those that wait, behind a sync that goes on or about to begin.
    let mut others: Vec<_> = (0..8).map(|n| Box::pin(gateway.begin(call(&format!("other-{n}"))))).collect();
    assert!(others.iter_mut().all(|other| other.now_or_never().is_none()));
    earlier.into_iter().for_each(|running| running.end(Ending::of(Outcome::Ok)));
    disk.let_go();
    within(first).await.unwrap();
    within(futures::future::try_join_all(others)).await.unwrap();
    assert!(syncs(&disk) <= before + 2, "{} syncs for nine calls", syncs(&disk) - before);
}

/// Numbers of the calls that these files know of.
fn known(server: &Server, dir: &TempDir, files: BTreeMap<String, Vec<u8>>) -> BTreeSet<u64> {
    let opener = server.parts(dir).settings.opener();
    let spool = Spool::open(Box::new(Recorder::with(files)), spool::Limits::of_mib(8), &opener).unwrap();
    let batches = spool.fetch(0, false, usize::MAX, usize::MAX).unwrap();
    let signed = batches.into_iter().flat_map(|(_, batch)| wire::SignedBatch::decode(batch).unwrap().records);
    let records = signed.chain(spool.state().pending.iter().map(|record| record.bytes.clone()));
    let numbers = records.filter_map(|bytes| match record::decode(&bytes).unwrap().kind {
        Some(Kind::Call(call)) => Some(call.call_number),
        _ => None,
    });
    numbers.chain(spool.state().intents.keys().copied()).collect()
}

/// Every moment of a life in both modes: a kill takes no call that was let through, a power cut no strict one.
#[tokio::test]
async fn whatever_was_let_through_is_known_after_a_kill_and_strict_calls_after_a_power_cut() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, Waits::default());
    let (mut through, mut running) = (Vec::new(), std::collections::VecDeque::new());
    for number in 0..40 {
        let strict = number % 5 == 0;
        let asked = if strict { call(&number.to_string()) } else { relaxed(&number.to_string()) };
        let begun = gateway.begin(asked).await.unwrap();
        through.push((disk.count(|_| true), begun.name().number, strict));
        running.push_back(begun);
        if running.len() > 3 {
            running.pop_front().unwrap().end(Ending::of(Outcome::Ok));
        }
    }
    let ops = disk.ops();
    let first = through[0].0;
    for at in first..=ops.len() {
        for unsynced in ALL_UNSYNCED {
            let files = after_power_failure(&BTreeMap::new(), &ops[..at], unsynced);
            let known = known(&server, &dir, files);
            let owed = through.iter().filter(|(by, _, strict)| *by <= at && (*strict || unsynced == Unsynced::Kept));
            let lost: Vec<u64> = owed.map(|(_, number, _)| *number).filter(|number| !known.contains(number)).collect();
            assert!(lost.is_empty(), "after {at} operations, {unsynced:?}: {lost:?}");
        }
    }
}

/// A gateway that is killed, not the machine: what its next start reads was perhaps never synced, and counts as durable from
/// then on. So it is synced before anything is built on it.
#[tokio::test]
async fn what_a_start_relies_on_is_durable_first() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = alone(&server, &dir, &disk, NEVER);
    let running = gateway.begin(relaxed("relaxed")).await.unwrap();
    let limits = spool::Limits::of_mib(8);
    let spool = Spool::open(Box::new(disk.clone()), limits, &server.parts(&dir).settings.opener()).unwrap();
    assert_eq!(spool.state().intents.len(), 1);
    let left = after_power_failure(&BTreeMap::new(), &disk.ops(), Unsynced::Dropped);
    assert!(known(&server, &dir, left).contains(&running.name().number));
}

/// What only the answer told is in the record of the end; what would make that one that nobody takes is not.
#[tokio::test]
async fn what_an_answer_told_is_on_record() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let first = gateway.begin(call("first")).await.unwrap();
    let (name, link) = (first.name(), first.name().linked(wire::LinkKind::Round));
    let receipt = |digest: &'static [u8]| wire::ForensicReceipt {
        digest: Bytes::from_static(digest),
        payload_hash: Bytes::from_static(&[2; 32]),
        signature: Bytes::from_static(&[3; 64]),
        signer: Bytes::from_static(&[4; 32]),
        whole: Bytes::new(),
    };
    let learnt = Learnt {
        definition_digest: Some([5; 32]),
        conversation_digest: Some([6; 32]),
        receipt: Some(receipt(&[1; 32])),
        link: None,
    };
    let told = |learnt: Learnt| Ending { learnt: Some(Box::new(learnt)), ..Ending::of(Outcome::Ok) };
    first.end(told(learnt.clone()));
    let second = gateway.begin(wire::Call { link: Some(link.clone()), ..call("second") }).await.unwrap();
    second.end(told(Learnt { receipt: Some(receipt(b"short")), ..learnt }));
    gateway.drain().await.unwrap();
    let records = server.shared.ledger.lock().unwrap().records();
    let calls: Vec<wire::Call> = records
        .iter()
        .filter_map(|bytes| match record::decode(bytes).unwrap().kind {
            Some(Kind::Call(call)) => Some(call),
            _ => None,
        })
        .collect();
    assert_eq!(calls[0].call_number, name.number);
    assert_eq!(calls[0].receipt, Some(receipt(&[1; 32])));
    assert_eq!(calls[0].definition_digest.as_deref(), Some(&[5; 32][..]));
    assert_eq!(calls[0].conversation_digest.as_deref(), Some(&[6; 32][..]));
    assert_eq!((calls[1].link.clone(), calls[1].outcome()), (Some(link), Outcome::Ok));
    assert_eq!((calls[1].receipt.clone(), calls[1].definition_digest.clone()), (None, None));
}
