//! Tests of what stands between the publisher and a false promise: copies, a fence and an archive that are not the ones that
//! they were, what lies staged, what breaks for good, and what hangs. After each the oracle.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use custody::{
    id::WorkspaceId,
    wire::{self, statement::Action},
};

use crate::{
    alarm::Alarm,
    archive::ArchiveError,
    commit::{Limits, State},
    fence::FenceError,
    log_view::FenceState,
    publish::{PublishError, watch_fence},
    rig::{
        Dir, Peer, Rig,
        faults::{Faults, Mode},
    },
    store::{Family, leaf_key},
};

/// The same database once more, in another folder, on the same archive and fence.
fn copy(dir: &Path, name: &str) -> Dir {
    let copy = Dir::new(name);
    let copied = std::process::Command::new("cp").arg("-a").arg(dir.join("store")).arg(&copy.0).status().unwrap();
    assert!(copied.success());
    for shared in ["archive", "fence-store"] {
        std::os::unix::fs::symlink(dir.join(shared), copy.0.join(shared)).unwrap();
    }
    copy
}

#[expect(clippy::disallowed_methods, reason = "a folder of the test is moved, nothing is written")]
fn move_folder(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

async fn ship(rig: &Rig, peer: &mut Peer, stream: u64, counts: &[usize]) {
    let mut answers = peer.open(rig, stream).await.unwrap();
    for count in counts {
        let batch = peer.batch(*count);
        peer.send(rig, stream, &mut answers, batch).await.unwrap();
    }
}

fn staged(dir: &Path) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("staging")).unwrap();
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A ledger with one workspace and a few batches in the archive, stopped.
async fn stopped(name: &str) -> (Dir, WorkspaceId, Peer) {
    let dir = Dir::new(name);
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(21).await;
    ship(&rig, &mut peer, 1, &[3]).await;
    rig.cut().await;
    rig.stop().await;
    (dir, id, peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_that_start_at_once_the_loser_never_becomes_the_writer() {
    let (dir, id, mut peer) = stopped("twins").await;
    let twin = copy(&dir.0, "twin");
    let late = copy(&dir.0, "late-twin");
    let rig = Rig::start(&dir.0).await.unwrap();
    ship(&rig, &mut peer, 2, &[5]).await;
    // The twin looked before the winner claimed, and comes second.
    let faults = Faults::default();
    faults.arm(&["fence:get:fence/log/"], Mode::Missing, 1);
    let lost = Rig::start_with(&twin.0, &faults, Limits::default()).await;
    assert!(matches!(lost, Err(PublishError::Fenced)), "{:?}", lost.err());
    assert_eq!(faults.struck(), 1);
    for _ in 0..2 {
        let again = Rig::start(&twin.0).await;
        assert!(matches!(again, Err(PublishError::Stale)), "{:?}", again.err());
    }
    // Another one took two terms, neither of which it could claim: the winner's term is lower than its own.
    for _ in 0..2 {
        let faults = Faults::default();
        faults.arm(&["fence:get:fence/log/"], Mode::Missing, 1);
        faults.arm(&["fence:put:fence/log/"], Mode::Refuse, 1);
        faults.arm(&["fence:get:fence/log/"], Mode::Refuse, 1);
        let failed = Rig::start_with(&late.0, &faults, Limits::default()).await;
        assert!(matches!(failed, Err(PublishError::Fence(FenceError::Store(_)))), "{:?}", failed.err());
    }
    let again = Rig::start(&late.0).await;
    assert!(matches!(again, Err(PublishError::Stale)), "{:?}", again.err());
    ship(&rig, &mut peer, 3, &[2]).await;
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 11)]));
    assert!(rig.alarms.latched().is_empty(), "{:?}", rig.alarms.latched());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_waited_looks_at_the_fence_again() {
    let (dir, ..) = stopped("waited").await;
    let moved = copy(&dir.0, "waited-moved");
    let log = dir.0.join("fence-store/fence/log");
    let next = |log: &Path| {
        std::fs::read_dir(log).unwrap().filter_map(|file| file.ok()?.file_name().into_string().ok()?.parse().ok()).max()
    };
    let before: u64 = next(&log).unwrap();
    let other = async {
        // As soon as the successor has claimed, and while it waits.
        while next(&log) == Some(before) {
            crate::clock::sleep(std::time::Duration::from_millis(5)).await;
        }
        let store = crate::archive::open_folder(&dir.0.join("fence-store")).unwrap();
        let fence = crate::fence::Fence::over(store, crate::rig::ORIGIN, [1; 32], true).await.unwrap();
        let entry = custody::log::encode_entry(wire::log_entry::Entry::TermStart(wire::TermStart {
            term: 99,
            incarnation: 0,
            at: crate::clock::now_us(),
        }));
        // The successor's claim has one entry.
        let index = next(&log).unwrap() + 1;
        let claimed = fence.of_instance(Some([1; 16])).claim(index, 99, &[entry.into()]).await.unwrap();
        assert_eq!(claimed, crate::fence::Claimed::Won);
    };
    let (started, ()) = tokio::join!(Rig::start(&moved.0), other);
    assert!(matches!(started, Err(PublishError::Fenced)), "{:?}", started.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_claim_that_was_not_heard_of_hides_no_other_behind_it() {
    let (dir, ..) = stopped("behind").await;
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    rig.cut().await;
    let before = rig.view.read().unwrap().tree.size();
    // The claim stands, its answer is lost, and then the archive is away: it is not asked for again.
    faults.arm(&["fence:put:fence/log/"], Mode::DoThenErr, 1);
    faults.arm(&["fence:get:fence/log/"], Mode::Refuse, 1);
    let workspace = rig.say(WorkspaceId([31; 16]), Action::Create(wire::Create { name: "new".to_owned() }));
    workspace.await.unwrap();
    faults.wait_struck(2).await;
    faults.arm(&["archive:"], Mode::Refuse, u64::MAX);
    let state = Arc::new(FenceState::default());
    let fence = rig.fence.clone();
    let watch = |state: &Arc<FenceState>| {
        let (view, state, alarms) = (Arc::clone(&rig.view), Arc::clone(state), rig.alarms.clone());
        watch_fence(fence.clone(), view, state, alarms, 2, std::time::Duration::from_millis(1))
    };
    // Nothing stands behind it: the fence is seen.
    tokio::select! {
        () = watch(&state) => panic!("fenced off by its own claim"),
        () = async { while !state.is_fresh() { tokio::task::yield_now().await } } => {}
    }
    // A copy of the database completes the claim, and makes its own.
    let copy = copy(&dir.0, "behind-copy");
    let other = Rig::start(&copy.0).await.unwrap();
    let state = Arc::new(FenceState::default());
    watch(&state).await;
    assert!(state.is_fenced() && !state.is_fresh());
    assert_eq!(rig.view.read().unwrap().tree.size(), before, "the claim was taken, and is no longer in the way");
    other.stop().await;
    faults.clear();
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_without_its_mark_is_known_by_the_claim_that_the_log_began_with() {
    let (dir, id, mut peer) = stopped("mark").await;
    let mark = dir.0.join("fence-store/fence/origin");
    std::fs::remove_file(&mark).unwrap();
    let rig = Rig::start(&dir.0).await.unwrap();
    assert!(mark.exists());
    ship(&rig, &mut peer, 2, &[1]).await;
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 5)]));
    rig.stop().await;
    move_folder(&dir.0.join("fence-store"), &dir.0.join("away"));
    let empty = Rig::start(&dir.0).await;
    assert!(matches!(empty, Err(PublishError::Fence(FenceError::Lost))), "{:?}", empty.err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_somewhere_else_is_not_made_anew() {
    let dir = Dir::new("unmounted");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(22).await;
    ship(&rig, &mut peer, 1, &[3]).await;
    rig.cut().await;
    let (archive, away) = (dir.0.join("archive"), dir.0.join("away"));
    move_folder(&archive, &away);
    ship(&rig, &mut peer, 2, &[4]).await;
    let number = rig.ask_cut(None).await.await.unwrap();
    rig.until(|_, alarms| alarms.stands(Alarm::ArchiveFailing)).await;
    assert!(*rig.mark.borrow() < number, "archived in a folder that nobody mounted");
    assert!(!archive.exists(), "another archive was made");
    rig.stop().await;
    // An empty mount point is there, and is not the archive.
    let started = Rig::start(&dir.0).await;
    let gone = matches!(&started, Err(PublishError::Archive(ArchiveError::Gone(_))));
    assert!(gone, "{:?}", started.err());
    std::fs::remove_dir(&archive).unwrap();
    let opened = crate::archive::Archive::folder(&archive, std::time::Duration::from_secs(1), true);
    assert!(matches!(opened, Err(ArchiveError::Gone(_))));
    move_folder(&away, &archive);
    let rig = Rig::start(&dir.0).await.unwrap();
    ship(&rig, &mut peer, 3, &[1]).await;
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 9)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_claimed_or_told_once_the_archive_is_out_of_sight() {
    let (dir, id, mut peer) = stopped("sight").await;
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    let claims = || std::fs::read_dir(dir.0.join("fence-store/fence/log")).unwrap().count();
    let read = &["archive:get:log/checkpoints/"];
    // Seen before the first put, and not before the claim; then seen there too, and not once the checkpoint was put.
    for (seen, claimed) in [(1, 0), (2, 1)] {
        rig.cut().await;
        let before = claims();
        ship(&rig, &mut peer, 2 + seen, &[1]).await;
        assert!(rig.alarms.acknowledge("archive-failing") || seen == 1);
        faults.arm(read, Mode::Pass, seen + claimed);
        faults.arm(read, Mode::Missing, u64::MAX);
        let number = rig.ask_cut(Some(id)).await.await.unwrap();
        let mut mark = rig.mark.clone();
        tokio::select! {
            biased;
            _ = mark.wait_for(|mark| *mark >= number) => panic!("told"),
            () = rig.until(|_, alarms| alarms.stands(Alarm::ArchiveFailing)) => {}
        }
        assert_eq!((claims() - before) as u64, claimed, "claimed");
        faults.clear();
    }
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 6)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_staged_once_the_log_names_it() {
    let (dir, id, mut peer) = stopped("staged").await;
    assert_eq!(staged(&dir.0), [""; 0]);
    let left = [format!("{id}-0"), format!("{id}-7"), format!("{id}-1.tmp.1.2"), "notes.txt".to_owned()];
    for name in &left {
        std::fs::File::create(dir.0.join("staging").join(name)).unwrap();
    }
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    assert_eq!(staged(&dir.0), [left[1].clone(), left[3].clone()], "what waits and what is not ours stays");
    // A claim whose outcome we do not learn: it stands, and the next try finds it.
    faults.arm(&["fence:put:fence/log/"], Mode::DoThenErr, 1);
    faults.arm(&["fence:get:fence/log/"], Mode::Refuse, 1);
    ship(&rig, &mut peer, 2, &[4]).await;
    rig.cut().await;
    assert_eq!(faults.struck(), 2);
    rig.check(&BTreeMap::from([(id, 8)]));
    rig.stop().await;
    assert_eq!(staged(&dir.0), [left[1].clone(), left[3].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_object_that_was_damaged_is_built_again() {
    let (dir, id, mut peer) = stopped("damaged").await;
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    ship(&rig, &mut peer, 2, &[4]).await;
    faults.arm(&["archive:put:workspaces/", "/segments/"], Mode::Refuse, u64::MAX);
    rig.ask_cut(Some(id)).await.await.unwrap();
    faults.wait_struck(1).await;
    rig.stop().await;
    let names = staged(&dir.0);
    let path = dir.0.join("staging").join(names.iter().find(|name| name.starts_with(&id.to_string())).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    crate::durable::write(&path, &bytes, 0o600).unwrap();
    let rig = Rig::start(&dir.0).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 8)]));
    assert!(rig.alarms.latched().is_empty(), "{:?}", rig.alarms.latched());
    rig.stop().await;
}

/// It is poisoned, says so, still answers, and its publisher has not ended the process.
async fn is_poisoned(rig: &Rig, alarm: Alarm) {
    rig.until(|writer, _| matches!(writer.state(), State::Poisoned(_))).await;
    assert!(rig.alarms.stands(alarm), "{:?}", rig.alarms.latched());
    assert!(!rig.publishing.is_finished(), "the publisher ended, and the process with it");
    assert!(rig.inspect(|writer| writer.workspaces().count()).await > 0, "reads go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_for_good_poisons_and_reads_go_on() {
    let (dir, id, mut peer) = stopped("poisoned").await;
    // A commit that fails.
    let faults = Faults::default();
    let rig = Rig::start_with(&dir.0, &faults, Limits::default()).await.unwrap();
    let answers = peer.open(&rig, 2).await.unwrap();
    faults.arm(&["store:commit:", " commits/"], Mode::Refuse, 1);
    let batch = peer.batch(1);
    peer.submit(&rig, 2, batch.clone()).await;
    is_poisoned(&rig, Alarm::Poisoned).await;
    rig.stop().await;
    // Roots that disagree: a leaf on disk that is not the one in memory.
    drop(answers);
    let rig = Rig::start(&dir.0).await.unwrap();
    let mut answers = peer.open(&rig, 3).await.unwrap();
    peer.send(&rig, 3, &mut answers, batch).await.unwrap();
    let second = peer.batch(1);
    let place = peer.send(&rig, 3, &mut answers, second).await.unwrap();
    let (first, second) =
        (leaf_key(id, place.segment, place.leaf_index - 1), leaf_key(id, place.segment, place.leaf_index));
    let store = rig.store.upgrade().unwrap();
    let right = store.value(Family::Entries, second).unwrap().unwrap();
    store.commit_one(Family::Entries, second, &store.value(Family::Entries, first).unwrap().unwrap()).unwrap();
    drop(rig.ask_cut(Some(id)).await);
    is_poisoned(&rig, Alarm::RootsDisagree).await;
    store.commit_one(Family::Entries, second, &right).unwrap();
    drop(store);
    rig.stop().await;
    // An object in the archive that is not the one that was put.
    let rig = Rig::start(&dir.0).await.unwrap();
    rig.cut().await;
    let name = format!("log/checkpoints/{}", rig.seen().0 + 1);
    let foreign = dir.0.join("archive").join(name);
    crate::durable::create_new(&foreign, b"another", 0o600).unwrap();
    ship(&rig, &mut peer, 4, &[2]).await;
    drop(rig.ask_cut(Some(id)).await);
    is_poisoned(&rig, Alarm::ReadBackDiffers).await;
    rig.stop().await;
    crate::durable::remove(&foreign).unwrap();
    let rig = Rig::start(&dir.0).await.unwrap();
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 8)]));
    rig.stop().await;
}

/// Sends batches until one is pushed back; how many got a receipt.
async fn ship_until_pushback(rig: &Rig, peer: &mut Peer, stream: u64) -> (u64, custody::batch::Submitted) {
    let mut answers = peer.open(rig, stream).await.unwrap();
    for taken in 0.. {
        let batch = peer.batch(1);
        if peer.send(rig, stream, &mut answers, batch.clone()).await.is_err() {
            return (taken, batch);
        }
    }
    unreachable!("it is pushed back at some time")
}

async fn hangs(words: &'static [&'static str], alarm: Alarm) {
    let (dir, id, mut peer) = stopped("hangs").await;
    let faults = Faults::default();
    let limits = Limits { cut_leaves: 2, unpublished_max: 16, ..Limits::default() };
    let rig = Rig::start_with(&dir.0, &faults, limits).await.unwrap();
    rig.cut().await;
    faults.arm(words, Mode::Hang, u64::MAX);
    let (taken, refused) = ship_until_pushback(&rig, &mut peer, 2).await;
    // A quarter of sixteen segments, of two leaves each, may wait for one workspace; the fifth is one too many.
    assert_eq!(taken, 10);
    rig.until(move |_, alarms| alarms.stands(alarm)).await;
    assert_eq!(rig.inspect(|writer| writer.state().clone()).await, State::Serving);
    faults.clear();
    let mut answers = peer.open(&rig, 3).await.unwrap();
    while peer.send(&rig, 3, &mut answers, refused.clone()).await.is_err() {
        crate::clock::sleep(std::time::Duration::from_millis(5)).await;
    }
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, 4 + taken + 1)]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn intake_goes_on_up_to_the_bound_while_the_archive_hangs() {
    hangs(&["archive:put:"], Alarm::ArchiveFailing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn intake_goes_on_up_to_the_bound_while_the_fence_hangs() {
    hangs(&["fence:"], Alarm::FenceUnreachable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_takes_no_more_than_its_share_of_threads() {
    let dir = Dir::new("share");
    let faults = Faults::default();
    faults.arm(&["archive:get:"], Mode::Hang, u64::MAX);
    let inner = crate::archive::open_folder(&dir.0).unwrap();
    let store = crate::rig::faults::Faulty { inner, faults: faults.clone(), place: "archive" };
    let limit = std::time::Duration::from_millis(20);
    let archive = crate::archive::Archive::over(Arc::new(store), limit);
    let readers = (0..100).map(|_| archive.get("a"));
    for read in futures::future::join_all(readers).await {
        assert!(matches!(read, Err(ArchiveError::TimedOut)), "{read:?}");
    }
    assert!(matches!(archive.get("a").await, Err(ArchiveError::TimedOut)));
    assert!(faults.hanging() <= 16, "{} requests hang", faults.hanging());
    faults.clear();
    while faults.hanging() > 0 {
        tokio::task::yield_now().await;
    }
    while archive.get("a").await.is_err() {}
    assert_eq!(archive.get("a").await.unwrap(), None);
}
