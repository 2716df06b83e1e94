//! Tests of the write path: commit, receipts, cuts, statements, restarts; after each the oracle.

use std::collections::BTreeMap;

use custody::wire::{self, RejectReason, from_ledger::Message, statement::Action};

use crate::{
    alarm::Alarm,
    publish::PublishError,
    rig::{Dir, Peer, Rig, check_archive},
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
    peer.send(&rig, 1, &mut answers, first).await.unwrap();
    let mut stranger = Peer::new(id, 99);
    let foreign = stranger.batch(1);
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, foreign).await), RejectReason::Unauthorised);
    let key_id = custody::key::public(&peer.key).id(wire::Role::Gateway);
    let revoke = wire::Revoke { key_id: key_id.into(), void_serials: Vec::new() };
    rig.say(id, Action::Revoke(revoke)).await.unwrap();
    assert_eq!(rejected(peer.send(&rig, 1, &mut answers, second).await), RejectReason::Revoked);
    rig.say(id, Action::Remove(wire::Remove {})).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 2)]));
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
