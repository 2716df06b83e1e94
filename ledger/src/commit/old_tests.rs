//! Tests of what asks for segments that were cut long ago, and for long chains: each costs the writer little, and is right.

use std::{collections::BTreeMap, sync::mpsc as blocking};

use bytes::Bytes;
use custody::{
    batch::Submitted,
    head::{Head, SignedHead, includes_batch, is_consistent},
    wire::{self, Role, from_ledger::Message},
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::{Limits, Opening, Request, State, StatementState, Unopened};
use crate::{
    rig::{Dir, Peer, Rig, enrol, faults::Faults, statement},
    store::{Family, StoreError, numbered},
    workspace::{Workspace, read_tree},
};

/// What reads a tree of five leaves costs, and a little.
const ONE_LOOK: u64 = 1_030;

async fn started(dir: &Dir, leaves_read: [u64; 2]) -> Rig {
    let [leaves_read_of_one, leaves_read_of_all] = leaves_read;
    let limits = Limits { cut_leaves: 5, leaves_read_of_one, leaves_read_of_all, ..Limits::default() };
    Rig::start_with(&dir.0, &Faults::default(), limits).await.unwrap()
}

/// Batches of `segments` full segments and one of the next, with the heads of their receipts.
async fn filled(rig: &Rig, peer: &mut Peer, segments: usize) -> Vec<(Submitted, Bytes)> {
    let mut answers = peer.open(rig, 1_000).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..=segments * 5 {
        let batch = peer.batch(1);
        peer.send(rig, 1_000, &mut answers, batch.clone()).await.unwrap();
        sent.push((batch, peer.last_head.clone()));
    }
    rig.cut().await;
    sent
}

async fn reads(rig: &Rig) -> u64 {
    rig.inspect(|writer| writer.trees().reads()).await
}

/// What a stream hears next: a receipt's head and batches, or that it must ask later.
async fn heard(answers: &mut mpsc::Receiver<wire::FromLedger>) -> Result<(Head, Vec<wire::BatchInclusion>), String> {
    loop {
        match answers.recv().await.and_then(|answer| answer.message).expect("the stream goes on") {
            Message::Receipt(bytes) => {
                let receipt = wire::Receipt::decode(bytes).unwrap();
                return Ok((SignedHead::parse(&receipt.signed_head).unwrap().head, receipt.batches));
            }
            Message::Pushback(pushback) => return Err(pushback.detail),
            _ => {}
        }
    }
}

fn check(head: &Head, inclusion: &wire::BatchInclusion, batch: &Submitted) {
    assert!(includes_batch(head, inclusion, &batch.header_bytes, &batch.signature), "{inclusion:?} under {head:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_an_old_segment_that_comes_again_and_again_has_it_read_once() {
    let dir = Dir::new("repeated");
    let rig = started(&dir, [u64::MAX; 2]).await;
    let (id, mut peer) = rig.workspace(40).await;
    let sent = filled(&rig, &mut peer, 4).await;
    // Also after a restart, when no tree of a cut segment is in memory.
    rig.stop().await;
    let rig = started(&dir, [u64::MAX; 2]).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let before = reads(&rig).await;
    let old = &sent[1].0;
    for _ in 0..64 {
        peer.submit(&rig, 1, old.clone()).await;
    }
    let mut repeats = 0;
    while repeats < 64 {
        let (head, batches) = heard(&mut answers).await.unwrap();
        batches.iter().for_each(|inclusion| check(&head, inclusion, old));
        repeats += batches.len();
    }
    assert_eq!(reads(&rig).await - before, 1);
    // One of each segment, the open one's too.
    for (batch, _) in sent.iter().step_by(5) {
        peer.submit(&rig, 1, batch.clone()).await;
        let (head, batches) = heard(&mut answers).await.unwrap();
        check(&head, &batches[0], batch);
    }
    rig.check(&BTreeMap::from([(id, 21)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_what_may_be_read_a_batch_comes_again_later_and_the_writer_goes_on() {
    let dir = Dir::new("looks");
    let rig = started(&dir, [u64::MAX; 2]).await;
    let ((_, mut peer), (_, mut other)) = (rig.workspace(41).await, rig.workspace(42).await);
    let (sent, others) = (filled(&rig, &mut peer, 5).await, filled(&rig, &mut other, 5).await);
    rig.stop().await;
    // Each gateway's stream has one read, for the head that it comes with.
    for (most, of_other) in [([3 * ONE_LOOK - 20, u64::MAX], true), ([u64::MAX, 4 * ONE_LOOK - 20], false)] {
        let rig = started(&dir, most).await;
        let mut answers = peer.open(&rig, 1).await.unwrap();
        let mut answers_of_other = other.open(&rig, 2).await.unwrap();
        let before = reads(&rig).await;
        for (at, again) in [(1, true), (6, true), (11, false), (6, true), (16, false)] {
            peer.submit(&rig, 1, sent[at].0.clone()).await;
            let answer = heard(&mut answers).await;
            assert_eq!(answer.is_ok(), again, "{at}: {answer:?}");
            assert!(answer.err().is_none_or(|why| why.contains("looked up")));
        }
        assert_eq!(reads(&rig).await - before, 2);
        other.submit(&rig, 2, others[1].0.clone()).await;
        assert_eq!(heard(&mut answers_of_other).await.is_ok(), of_other);
        // Whatever is new is taken all the while.
        let batch = peer.batch(1);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
        assert!(rig.inspect(|writer| *writer.state() == State::Serving).await);
        rig.cut().await;
        rig.stop().await;
    }
    // A head that a stream is opened with: the same.
    let rig = started(&dir, [1, u64::MAX]).await;
    peer.last_head = sent[1].1.clone();
    drop(peer.open(&rig, 1).await.unwrap());
    peer.last_head = sent[6].1.clone();
    assert!(peer.open(&rig, 2).await.unwrap_err().contains("looked up"));
    rig.stop().await;
}

/// Whoever hears nothing for so long that its head lies far back needs no tree when it hears something.
#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_send_nothing_have_nothing_read() {
    let dir = Dir::new("idle");
    let faults = Faults::default();
    let limits = Limits { cut_leaves: 5, leaves_read_of_one: 0, leaves_read_of_all: 0, ..Limits::default() };
    let rig = Rig::start_with(&dir.0, &faults, limits).await.unwrap();
    let (id, mut peer) = rig.workspace(43).await;
    let mut idle = Vec::new();
    for n in 50..60 {
        let quiet = Peer::new(id, n);
        rig.say(id, enrol(Some(id), Role::Gateway, &quiet.key, Some(quiet.gateway))).await.unwrap();
        idle.push(quiet);
    }
    rig.cut().await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let mut quiet = Vec::new();
    for (stream, other) in (100..).zip(&idle) {
        let batch = peer.batch(1);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
        let mut answers = other.open(&rig, stream).await.unwrap();
        let head = loop {
            if let Some(Message::Welcome(welcome)) = answers.recv().await.unwrap().message {
                let receipt = wire::Receipt::decode(welcome.receipt).unwrap();
                break SignedHead::parse(&receipt.signed_head).unwrap().head;
            }
        };
        quiet.push((answers, head));
    }
    // Nothing is archived before their heads lie many segments back.
    faults.arm(&["archive:put:workspaces/"], crate::rig::faults::Mode::Hang, u64::MAX);
    for _ in 0..40 {
        let batch = peer.batch(1);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    }
    faults.clear();
    rig.cut().await;
    for (mut answers, mut head) in quiet {
        let first = head.segment;
        while head.segment < first + 8 {
            let Some(Message::Receipt(bytes)) = answers.recv().await.unwrap().message else { continue };
            let receipt = wire::Receipt::decode(bytes).unwrap();
            let next = SignedHead::parse(&receipt.signed_head).unwrap().head;
            assert!(is_consistent(&head, &next, &receipt.consistency.unwrap()), "{head:?} to {next:?}");
            head = next;
        }
    }
    assert_eq!(reads(&rig).await, 0);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_cut_before_there_were_rows_of_leaf_hashes_gives_the_same_tree() {
    let dir = Dir::new("no-row");
    let rig = started(&dir, [u64::MAX; 2]).await;
    let (id, mut peer) = rig.workspace(44).await;
    let sent = filled(&rig, &mut peer, 2).await;
    rig.stop().await;
    let store = crate::store::Store::open(&dir.0.join("store"), 8 << 20, 32 << 20).unwrap();
    let segments: Vec<u64> = store.scan(Family::Leaves, &id.0, &[]).zip(0..).map(|(_, segment)| segment).collect();
    assert!(segments.len() > 3, "{segments:?}");
    let mut change = store.change();
    segments.iter().for_each(|segment| change.delete(Family::Leaves, numbered(id, *segment)));
    store.commit(change).unwrap();
    drop(store);
    let rig = started(&dir, [u64::MAX; 2]).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    for (batch, _) in &sent {
        peer.submit(&rig, 1, batch.clone()).await;
        let (head, batches) = heard(&mut answers).await.unwrap();
        check(&head, &batches[0], batch);
    }
    // A row that is not what was signed is damage.
    let store = rig.store();
    store.commit_one(Family::Leaves, numbered(id, 1), &[7; 64]).unwrap();
    let damaged = rig.inspect(move |writer| {
        let is_it = |workspace: &&Workspace| workspace.id == id;
        let workspace = writer.workspaces().find(is_it).unwrap();
        matches!(read_tree(&store, workspace, 1), Err(StoreError::Damaged(_)))
    });
    assert!(damaged.await);
    rig.stop().await;
}

/// An outbox far too small for the chains: the writer tells a new stream of nothing before its task has sent them.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_stream_is_not_closed_for_the_length_of_the_chains() {
    let dir = Dir::new("greeting");
    let rig = started(&dir, [u64::MAX; 2]).await;
    let (id, peer) = rig.workspace(45).await;
    let (outbox, mut answers) = mpsc::channel(2);
    let (reply, answer) = oneshot::channel();
    let opening = Opening {
        stream: 1,
        workspace: id,
        gateway: peer.gateway,
        last_head: None,
        outbox,
        alive: tokio::sync::watch::Sender::new(()),
        known: super::KnownHeads::default(),
        in_flight: (64, 1 << 24),
        reply,
    };
    rig.requests.send(Request::Open(Box::new(opening))).await.unwrap();
    let counts = answer.await.unwrap().map_err(|(Unopened::Later(why) | Unopened::Refused(why))| why).unwrap();
    assert_eq!(counts, [3, 2], "of the ledger's chain and the workspace's");
    // What is archived meanwhile is told with the welcome.
    rig.cut().await;
    assert!(answers.try_recv().is_err_and(|why| why == mpsc::error::TryRecvError::Empty));
    rig.requests.send(Request::Greeted(1)).await.unwrap();
    let first = answers.recv().await.unwrap().message;
    assert!(matches!(first, Some(Message::Welcome(_))), "{first:?}");
    rig.stop().await;
}

/// The writer, while it is held, has both come in one group.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_statement_twice_at_one_time_is_taken_once_and_told_twice() {
    let dir = Dir::new("twice");
    let rig = started(&dir, [u64::MAX; 2]).await;
    let (id, _) = rig.workspace(46).await;
    let head = rig.inspect(move |writer| writer.chain_head(Some(id))).await.unwrap();
    let enrolled = |n| {
        let peer = Peer::new(id, n);
        statement(
            Some(id),
            head.count,
            head.hash,
            rig.seen(),
            enrol(Some(id), Role::Gateway, &peer.key, Some(peer.gateway)),
        )
    };
    let (one, other) = (enrolled(47), enrolled(48));
    let (go, wait) = blocking::sync_channel::<()>(0);
    let (held, is_held) = oneshot::channel();
    let hold = move |_: &super::Writer| {
        held.send(()).unwrap();
        wait.recv().unwrap();
    };
    rig.requests.send(Request::Inspect(Box::new(hold))).await.unwrap();
    is_held.await.unwrap();
    let mut answers: Vec<oneshot::Receiver<Result<StatementState, String>>> = Vec::new();
    for object in [&one, &one, &other] {
        let (reply, answer) = oneshot::channel();
        rig.requests.send(Request::Statement(object.clone(), reply)).await.unwrap();
        answers.push(answer);
    }
    go.send(()).unwrap();
    let mut told = Vec::new();
    for answer in answers {
        told.push(answer.await.unwrap());
    }
    assert!(told[0].is_ok() && told[0] == told[1], "{told:?}");
    assert!(told[2].as_ref().is_err_and(|why| why.contains("another statement has this serial")), "{told:?}");
    assert_eq!(rig.inspect(move |writer| writer.chain_head(Some(id))).await.unwrap().count, head.count + 1);
    rig.stop().await;
}
