//! Tests of the write path: commit, receipts, cuts, statements, restarts; after each the oracle.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use custody::{
    head::Head,
    wire::{self, RejectReason, Role, from_ledger::Message, statement::Action},
};

use super::{Limits, Request, State, Writer};
use crate::{
    alarm::Alarm,
    publish::PublishError,
    rig::{
        Dir, Peer, Rig, check_archive, enrol,
        faults::{Faults, Mode},
        signing,
    },
    workspace::{Lies, read_tree},
};

fn rejected(answer: Result<wire::BatchInclusion, Message>) -> RejectReason {
    match answer {
        Err(Message::Rejection(rejection)) => rejection.reason(),
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_archived_and_verifies() {
    let dir = Dir::new("commit");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(5).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    for count in [3, 0, 7, 40, 1] {
        let batch = peer.batch(count);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    }
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 52)]));
    for _ in 0..90 {
        let batch = peer.batch(2);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    }
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 232)]));
    assert!(rig.alarms.latched().is_empty(), "{:?}", rig.alarms.latched());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_goes_on() {
    let dir = Dir::new("restart");
    let mut rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(6).await;
    let mut sent = 0;
    for round in 0..6 {
        let mut answers = peer.open(&rig, round).await.unwrap();
        for count in 1..20 {
            let batch = peer.batch(count);
            sent += u64::from(batch.header.record_count);
            peer.send(&rig, round, &mut answers, batch).await.unwrap();
        }
        rig.stop().await;
        rig = Rig::start(&dir.0).await.unwrap();
    }
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, sent)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_batch_again_has_its_place_and_another_one_is_an_equivocation() {
    let dir = Dir::new("again");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(7).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let first = peer.batch(2);
    let before = (peer.next_batch, peer.next_record, peer.previous);
    let second = peer.batch(2);
    let place = peer.send(&rig, 1, &mut answers, first.clone()).await.unwrap();
    peer.send(&rig, 1, &mut answers, second).await.unwrap();
    let again = peer.send(&rig, 1, &mut answers, first).await.unwrap();
    assert_eq!((again.segment, again.leaf_index), (place.segment, place.leaf_index));
    (peer.next_batch, peer.next_record, peer.previous) = before;
    let other = peer.batch(3);
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, other.clone()).await), RejectReason::Equivocation);
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, other).await), RejectReason::Equivocation);
    assert!(rig.alarms.stands(Alarm::Equivocation));
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 5)]));
    let verdict = check_archive(&dir.0.join("archive"));
    assert_eq!(verdict.findings.iter().filter(|f| f.name == "equivocation").count(), 1, "kept once");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gaps_strangers_and_the_revoked_are_refused_with_their_reason() {
    let dir = Dir::new("refused");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(8).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let (first, second) = (peer.batch(1), peer.batch(1));
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, second.clone()).await), RejectReason::Gap);
    let place = peer.send(&rig, 1, &mut answers, first.clone()).await.unwrap();
    let mut stranger = Peer::new(id, 99);
    let foreign = stranger.batch(1);
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, foreign).await), RejectReason::Unauthorised);
    let key_id = custody::key::public(&peer.key).id(Role::Gateway);
    let revoke = wire::Revoke { key_id: key_id.into(), void_serials: Vec::new() };
    rig.say(id, Action::Revoke(revoke)).await.unwrap();
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, second).await), RejectReason::Revoked);
    // What was taken before has its receipt.
    let again = peer.send(&rig, 1, &mut answers, first).await.unwrap();
    assert_eq!((again.segment, again.leaf_index), (place.segment, place.leaf_index));
    rig.say(id, Action::Remove(wire::Remove {})).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 2)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_removed_workspace_end_when_all_of_it_is_archived() {
    let dir = Dir::new("removed");
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    let (id, mut peer) = rig.workspace(8).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let batch = peer.batch(1);
    peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    faults.arm(&["archive:put:workspaces/"], Mode::Hang, u64::MAX);
    rig.say(id, Action::Remove(wire::Remove {})).await.unwrap();
    let late = peer.batch(1);
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, late).await), RejectReason::Removed);
    faults.clear();
    let mut heard = Vec::new();
    // Only bounds a failure.
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        while let Some(answer) = answers.recv().await {
            heard.push(answer.message.unwrap());
        }
    });
    ended.await.expect("the stream does not end");
    let archived = heard.iter().position(|message| matches!(message, Message::Archived(_)));
    assert!(archived.is_some_and(|at| at + 1 < heard.len()), "it was not told what is archived");
    let Some(Message::Rejection(rejection)) = heard.pop() else { panic!("the stream ended without a reason") };
    assert_eq!((rejection.reason(), rejection.epoch.len()), (RejectReason::Removed, 0));
    assert!(peer.open(&rig, 2).await.unwrap_err().contains("removed"));
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 1)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_the_database_never_forks_the_log() {
    let dir = Dir::new("stale");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (_, mut peer) = rig.workspace(9).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    rig.cut().await;
    rig.stop().await;
    let copy = Dir::new("stale-copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(dir.0.join("store")).arg(&copy.0).status().unwrap();
    assert!(copied.success());
    std::os::unix::fs::symlink(dir.0.join("archive"), copy.0.join("archive")).unwrap();
    std::os::unix::fs::symlink(dir.0.join("fence-store"), copy.0.join("fence-store")).unwrap();
    let rig = Rig::start(&dir.0).await.unwrap();
    answers.close();
    let mut answers = peer.open(&rig, 2).await.unwrap();
    let batch = peer.batch(5);
    peer.send(&rig, 2, &mut answers, batch).await.unwrap();
    rig.cut().await;
    let other = Rig::start(&copy.0).await;
    assert!(matches!(other, Err(PublishError::Stale)), "{:?}", other.err());
    rig.stop().await;
}

/// Every lie that a head of ours could be: none is found on the history, and the ledger's own heads are, however old.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_lies_on_the_history_or_nowhere() {
    let dir = Dir::new("heads");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(10).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let mut heads = Vec::new();
    for round in 0..6 {
        for _ in 0..2 {
            let batch = peer.batch(2);
            peer.send(&rig, 1, &mut answers, batch).await.unwrap();
            heads.push(custody::head::SignedHead::parse(&peer.last_head).unwrap().head);
        }
        // A segment that a statement of the ledger's keys cuts, too.
        if round == 2 {
            rig.say_of_ledger(enrol(None, Role::Log, &signing(60), None)).await.unwrap();
        }
        rig.cut().await;
    }
    let place = |head: Head| {
        let store = rig.store();
        rig.inspect(move |writer| {
            let workspace = writer.workspaces().find(|workspace| workspace.id == id).unwrap();
            let tree = |segment| read_tree(&store, workspace, segment).map(|(tree, _)| Arc::new(tree));
            workspace.place(&head, writer.ledger_chain(), tree).unwrap()
        })
    };
    let newest = heads.last().unwrap().clone();
    for head in heads {
        assert_eq!(place(head.clone()).await, Lies::Here, "{head:?}");
        let lies: [fn(&mut Head); 10] = [
            |head| head.root.0[0] ^= 1,
            |head| head.history_root.0[31] ^= 1,
            |head| head.size += 1_000,
            |head| head.size = 0,
            |head| head.segment += 1_000,
            |head| head.ledger_chain.hash.0[0] ^= 1,
            |head| head.ledger_chain.count -= 1,
            |head| head.workspace_chain.hash.0[0] ^= 1,
            |head| head.workspace_chain.count += 1,
            |head| head.incarnation += 1,
        ];
        for (at, lie) in lies.into_iter().enumerate() {
            let mut lied = head.clone();
            lie(&mut lied);
            assert_eq!(place(lied).await, Lies::Nowhere, "lie {at} of {head:?}");
        }
    }
    rig.stop().await;
    // A head that the ledger signed and does not have: read-only, also after a restart.
    let rig = Rig::start(&dir.0).await.unwrap();
    let mut ahead = newest;
    ahead.size += 1;
    peer.last_head = ahead.sign(&crate::rig::head_key()).into();
    assert!(peer.open(&rig, 2).await.unwrap_err().contains("cannot extend"));
    assert!(rig.alarms.stands(Alarm::HeadNotExtendable));
    rig.stop().await;
    let rig = Rig::start(&dir.0).await.unwrap();
    assert!(rig.inspect(|writer| matches!(writer.state(), State::ReadOnly(_))).await);
    assert!(rig.alarms.stands(Alarm::HeadNotExtendable));
    rig.check(&BTreeMap::from([(id, 24)]));
    rig.stop().await;
}

/// Whoever has an old head key can sign what it likes, and makes nobody read-only; what the key said in its time stays said.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_head_key_stops_nobody() {
    let dir = Dir::new("old-key");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(14).await;
    let old = signing(61);
    rig.say_of_ledger(enrol(None, Role::Head, &old, None)).await.unwrap();
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let batch = peer.batch(2);
    peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    let mut head = custody::head::SignedHead::parse(&peer.last_head).unwrap().head;
    let good = peer.last_head.clone();
    let key_id = custody::key::public(&old).id(Role::Head);
    head.key_id = key_id;
    let said = Bytes::from(head.sign(&old));
    rig.say_of_ledger(Action::Revoke(wire::Revoke { key_id: key_id.into(), void_serials: Vec::new() })).await.unwrap();
    peer.last_head = said;
    let mut answers = peer.open(&rig, 2).await.unwrap();
    let batch = peer.batch(1);
    peer.send(&rig, 2, &mut answers, batch).await.unwrap();
    head.root.0[0] ^= 1;
    peer.last_head = head.sign(&old).into();
    let before = (peer.next_batch, peer.next_record, peer.previous);
    let batch = peer.batch(1);
    assert_eq!(rejected(peer.send(&rig, 2, &mut answers, batch).await), RejectReason::Forged);
    assert!(peer.open(&rig, 3).await.is_err());
    assert!(!rig.alarms.stands(Alarm::HeadNotExtendable));
    (peer.next_batch, peer.next_record, peer.previous) = before;
    peer.last_head = good;
    let batch = peer.batch(1);
    peer.send(&rig, 2, &mut answers, batch).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 5)]));
    rig.stop().await;
}

/// No key is ended while the ledger signs with it. (`OwnKeys` decides, and at a start holds the keys against the chain.)
#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_signs_with_keys_in_force_alone() {
    let dir = Dir::new("own-keys");
    let rig = Rig::start(&dir.0).await.unwrap();
    let revoke = |n, role| {
        let key_id = custody::key::public(&signing(n)).id(role).into();
        Action::Revoke(wire::Revoke { key_id, void_serials: Vec::new() })
    };
    for (n, role) in [(2, Role::Record), (3, Role::Head), (4, Role::Log)] {
        let why = rig.say_of_ledger(revoke(n, role)).await.unwrap_err();
        assert!(why.contains("signs with"), "{role:?}: {why}");
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_an_earlier_incarnation_are_superseded_where_a_later_one_has_come() {
    let dir = Dir::new("superseded");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(15).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let batch = peer.batch(2);
    peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    let (size, hash) = rig.seen();
    let incarnation = wire::Incarnation {
        number: 1,
        log_size: size,
        log_root: hash.into(),
        last_seals_hash: Bytes::from_static(&[0; 32]),
    };
    let head = custody::head::SignedHead::parse(&peer.last_head).unwrap().head;
    rig.say_of_ledger(Action::Incarnation(incarnation)).await.unwrap();
    let beyond = |by: u64| Head { segment: head.segment + by, size: 7, ..head.clone() };
    let unknown = Head { ledger_chain: custody::statement::ChainHead { count: 99, ..head.ledger_chain }, ..beyond(1) };
    for (head, expected) in [
        (head.clone(), Lies::Here),
        (beyond(1), Lies::Superseded),
        (beyond(2), Lies::Beyond),
        (unknown, Lies::Beyond),
        (Head { incarnation: 1, ..beyond(1) }, Lies::Nowhere),
    ] {
        let store = rig.store();
        let found = rig.inspect(move |writer| {
            let workspace = writer.workspaces().find(|workspace| workspace.id == id).unwrap();
            let tree = |segment| read_tree(&store, workspace, segment).map(|(tree, _)| Arc::new(tree));
            workspace.place(&head, writer.ledger_chain(), tree).unwrap()
        });
        assert_eq!(found.await, expected);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_holds_a_head_that_was_lost_is_not_taken() {
    let dir = Dir::new("held");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (_, mut peer) = rig.workspace(11).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let batch = peer.batch(2);
    peer.send(&rig, 1, &mut answers, batch).await.unwrap();
    let mut ahead = custody::head::SignedHead::parse(&peer.last_head).unwrap().head;
    ahead.size += 1;
    peer.last_head = ahead.sign(&crate::rig::head_key()).into();
    let batch = peer.batch(2);
    let answer = peer.send(&rig, 1, &mut answers, batch).await;
    assert!(matches!(answer, Err(Message::Pushback(_))), "{answer:?}");
    assert!(rig.inspect(|writer| matches!(writer.state(), State::ReadOnly(_))).await);
    let commits = rig.inspect(|writer| writer.commit_index()).await;
    rig.stop().await;
    let rig = Rig::start(&dir.0).await.unwrap();
    assert_eq!(rig.inspect(|writer| writer.commit_index()).await, commits, "nothing of it was kept");
    rig.check(&BTreeMap::new());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equivocations_are_counted_and_fill_neither_disk_nor_log() {
    let dir = Dir::new("counted");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(12).await;
    let mut answers = peer.open(&rig, 1).await.unwrap();
    let before = (peer.next_batch, peer.next_record, peer.previous);
    let first = peer.batch(1);
    let after = (peer.next_batch, peer.next_record, peer.previous);
    peer.send(&rig, 1, &mut answers, first).await.unwrap();
    // On a full disk not even the first proof.
    rig.requests.send(Request::Tick { disk_low: true }).await.unwrap();
    (peer.next_batch, peer.next_record, peer.previous) = before;
    let copy = peer.batch(2);
    let answer = peer.send(&rig, 1, &mut answers, copy).await;
    assert!(matches!(answer, Err(Message::Pushback(_))), "{answer:?}");
    rig.requests.send(Request::Tick { disk_low: false }).await.unwrap();
    let mut commits = 0;
    for copies in 0..50 {
        (peer.next_batch, peer.next_record, peer.previous) = before;
        let copy = peer.batch(2);
        assert_eq!(rejected(peer.send(&rig, 1, &mut answers, copy).await), RejectReason::Equivocation);
        let now = rig.inspect(|writer| writer.commit_index()).await;
        if copies > 0 {
            assert_eq!(now, commits, "copy {copies} left something");
        }
        commits = now;
    }
    (peer.next_batch, peer.next_record, peer.previous) = after;
    let next = peer.batch(1);
    peer.send(&rig, 1, &mut answers, next).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 3)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_without_end_fill_no_memory_and_are_known_all_the_same() {
    let dir = Dir::new("epochs");
    let mut rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(13).await;
    let mut batches = Vec::new();
    let mut sent = 0;
    for round in 0..3 {
        let mut answers = peer.open(&rig, round).await.unwrap();
        for _ in 0..25 {
            peer.new_epoch();
            let batch = peer.batch(1);
            sent += u64::from(batch.header.record_count);
            let place = peer.send(&rig, round, &mut answers, batch.clone()).await.unwrap();
            batches.push((batch, place));
        }
        rig.cut().await;
        let held = move |writer: &Writer| {
            let workspace = writer.workspaces().find(|workspace| workspace.id == id).unwrap();
            workspace.gateways.values().map(|gateway| (gateway.rows.len(), gateway.numbering.epochs.len())).max()
        };
        assert_eq!(rig.inspect(held).await, Some((1, 1)));
        for (batch, place) in &batches {
            let again = peer.send(&rig, round, &mut answers, batch.clone()).await.unwrap();
            assert_eq!((again.segment, again.leaf_index), (place.segment, place.leaf_index));
        }
        rig.stop().await;
        rig = Rig::start(&dir.0).await.unwrap();
        assert_eq!(rig.inspect(held).await, Some((1, 1)), "after a restart");
    }
    rig.check(&BTreeMap::from([(id, sent)]));
    rig.stop().await;
}
