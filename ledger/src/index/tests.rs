//! The index against a scan that knows nothing of it: what is found, in which order, how many, and on which page; while records
//! come in, across borders of days, restarts, losses, faults, merges, retention and reindexing.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    day::Root,
    follow::Filler,
    retain::{ENDED_FLOOR, FLOOR, FORGOTTEN},
    *,
};
use crate::{
    alarm::{Alarm, Alarms},
    durable,
    metrics::Metrics,
    rig::{
        Dir,
        faults::{Faults, Mode},
        rng::Rng,
    },
    store::{Family, Rank, Store},
    workspace::DAY_US,
};

mod faults;
pub(super) mod faulty;
mod world;

use world::{DAY_0, WAIT, World, paged};

/// Steps until there is nothing to do but to commit, and commits.
fn settle(follower: &mut Follower) {
    while follower.step().unwrap() {}
    follower.commit_live().unwrap();
}

/// The same, and merges what is over.
fn settle_whole(follower: &mut Follower) {
    settle(follower);
    while follower.merging.is_some() {
        follower.end_merging(true);
        settle(follower);
    }
}

/// Ends it as the end of a process does, but for threads that this process has.
fn close(mut follower: Follower) {
    follower.end_merging(true);
}

/// What somebody reindexes is gone when this returns, and what it held.
fn rebuild(follower: &mut Follower, day: Option<u64>) -> Vec<Payload> {
    let (reply, mut answer) = oneshot::channel();
    follower.turn(Some(Wish::Rebuild(day, reply))).unwrap();
    answer.try_recv().unwrap()
}

/// Questions of one world: what it has grows, and a scan takes longer.
const QUESTIONS: u64 = 2_000;
const ROUNDS: u64 = 50;

#[test]
fn index_memory_and_store_find_what_a_scan_finds() {
    // What the soak asks of everything is a twentieth here: a scan takes its time.
    let wanted = std::env::var("CUSTODY_QUESTIONS").ok().and_then(|count| count.parse::<u64>().ok());
    let worlds = (wanted.unwrap_or(0) / 20 / QUESTIONS).max(1);
    let mut seeds = Rng::for_test("index_memory_and_store_find_what_a_scan_finds");
    let (mut asked, mut rolled, mut days, mut records) = (0, 0, 0, 0);
    for number in 0..worlds {
        let dir = Dir::new(&format!("index-scan-{number}"));
        let seed = seeds.below(u64::MAX);
        println!("store {number}: seed {seed}");
        let mut world = World::new(&dir, Rng::of(seed));
        days += whole_life(&mut world);
        (asked, rolled, records) = (asked + world.asked, rolled + world.rolled, records + world.all.len());
    }
    println!("{asked} questions over {records} records in {worlds} stores, {rolled} of their sums from rollups");
    assert!(days > 2 * worlds && rolled > 200 * worlds, "{days} days, {rolled} from rollups");
}

/// Records come in, days pass, starts and reindexing come between, and all the while questions; how many days came together.
fn whole_life(world: &mut World) -> u64 {
    let mut follower = world.follower();
    let mut ended_floor = 0;
    for round in 0..ROUNDS {
        for _ in 0..world.rng.below(12) {
            let count = 1 + world.rng.below(40);
            world.commit(count);
        }
        // What is indexed ends somewhere: behind it all is in memory, or in the store alone.
        match world.rng.below(7) {
            0 => settle(&mut follower),
            1 => settle_whole(&mut follower),
            2 => {
                follower.step().unwrap();
            }
            3 => {
                close(follower);
                world.restart();
                follower = world.follower();
            }
            4 => {
                let day = world.now / DAY_US - world.rng.below(2);
                let day = (world.rng.below(3) > 0).then_some(day);
                rebuild(&mut follower, day);
            }
            _ => {}
        }
        if round % 8 == 7 {
            world.now += DAY_US / 2;
        }
        let index = follower.index();
        world.compare(&index, QUESTIONS / ROUNDS);
        let before = ended_floor;
        ended_floor = world.tail.store().unwrap().number(ENDED_FLOOR).unwrap().unwrap_or(0);
        assert!(ended_floor >= before, "what was forgotten is asked for again");
    }
    settle_whole(&mut follower);
    let index = follower.index();
    world.compare(&index, 20);
    let shown = index.shown();
    for day in shown.iter() {
        assert_eq!(check::differs(&index, day, || true).unwrap(), Some(false), "{:?}", day.payload);
    }
    close(follower);
    shown.iter().map(|day| day.payload.day).collect::<BTreeSet<_>>().len() as u64
}

#[test]
fn what_is_found_while_records_come_in_is_what_a_scan_finds_later() {
    let dir = Dir::new("index-busy");
    let mut world = World::new(&dir, Rng::for_test("what_is_found_while_records_come_in_is_what_a_scan_finds_later"));
    world.commit(40);
    let questions: Vec<_> = (0..200).map(|_| world.question(false)).collect();
    let mut follower = world.follower();
    let (index, tail) = (follower.index(), Arc::clone(&world.tail));
    let (busy, answered) = (std::sync::atomic::AtomicBool::new(true), AtomicU64::new(0));
    let found = std::thread::scope(|threads| {
        let (busy, answered) = (&busy, &answered);
        threads.spawn(move || {
            while busy.load(Ordering::Acquire) {
                follower.turn(None).unwrap();
                follower.commit_live().unwrap();
            }
            close(follower);
        });
        let questions = &questions;
        let asking = threads.spawn(move || {
            let mut found = Vec::new();
            for (seen, expr, _) in questions.iter().cycle().take_while(|_| busy.load(Ordering::Acquire)) {
                let pinned = tail.committed();
                let question = Question { workspaces: seen, expr, pinned, until: Instant::now() + WAIT };
                found.push((seen, expr, pinned, index.count(&question).unwrap(), paged(&index, &question, 50)));
                answered.fetch_add(1, Ordering::Release);
            }
            found
        });
        // Until enough was asked; whoever asks ends at once if it fails.
        for number in 0.. {
            if number >= 120 && (answered.load(Ordering::Acquire) >= 100 || asking.is_finished()) {
                break;
            }
            world.commit(1 + number % 40);
            if number % 50 == 49 {
                world.now += DAY_US / 2;
            }
        }
        busy.store(false, Ordering::Release);
        asking.join().unwrap()
    });
    for (seen, expr, pinned, count, ranks) in &found {
        let expected = world.expected(seen, expr, *pinned);
        assert_eq!((*count, ranks), ((expected.len() as u64, true), &expected), "{expr:?} as of {pinned}");
    }
    println!("{} questions while {} records came in", found.len(), world.all.len());
}

#[test]
fn what_is_lost_or_broken_is_built_again_and_found_meanwhile() {
    let dir = Dir::new("index-lost");
    let mut world = World::new(&dir, Rng::for_test("what_is_lost_or_broken_is_built_again_and_found_meanwhile"));
    let mut follower = world.follower();
    for _ in 0..4 {
        for _ in 0..10 {
            world.commit(30);
        }
        settle(&mut follower);
        world.now += DAY_US;
    }
    drop(follower);
    let folders = Root::new(dir.0.join("index")).list().unwrap();
    assert_eq!(folders.len(), 4);
    std::fs::remove_dir_all(&folders[1].1).unwrap();
    let file = std::fs::read_dir(&folders[2].1).unwrap().map(|file| file.unwrap().path());
    let meta = file.into_iter().find(|path| path.ends_with("meta.json")).unwrap();
    durable::write(&meta, b"{}", 0o600).unwrap();
    world.restart();
    let mut follower = world.follower();
    assert_eq!((follower.gaps.len(), follower.index().shown().len()), (1, 2));
    world.compare(&follower.index(), 40);
    settle(&mut follower);
    assert_eq!((follower.gaps.len(), follower.index().shown().len()), (0, 4));
    world.compare(&follower.index(), 40);
}

#[test]
fn an_index_of_another_store_is_thrown_away() {
    let dirs = [Dir::new("index-own"), Dir::new("index-other")];
    let mut worlds = dirs.each_ref().map(|dir| World::new(dir, Rng::for_test("an_index_of_another_store")));
    worlds[1].now += 1_000;
    for world in &mut worlds {
        world.commit(5);
        settle(&mut world.follower());
    }
    let folder = Root::new(dirs[1].0.join("index")).list().unwrap().remove(0).1;
    let own = Root::new(dirs[0].0.join("index")).list().unwrap().remove(0).1;
    std::fs::remove_dir_all(&own).unwrap();
    std::fs::create_dir(&own).unwrap();
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap()) {
        std::fs::copy(file.path(), own.join(file.file_name())).unwrap();
    }
    let mut follower = worlds[0].follower();
    assert!(follower.index().shown().is_empty());
    settle(&mut follower);
    worlds[0].compare(&follower.index(), 10);
}

#[test]
fn a_folder_that_is_over_becomes_one_segment() {
    let dir = Dir::new("index-merged");
    let mut world = World::new(&dir, Rng::for_test("a_folder_that_is_over_becomes_one_segment"));
    let segments = |follower: &Follower| -> Vec<usize> {
        follower.index().shown().iter().map(|day| day.searcher.segment_readers().len()).collect()
    };
    let mut follower = world.follower();
    for _ in 0..3 {
        world.commit(20);
        settle(&mut follower);
    }
    assert_eq!(segments(&follower), [3]);
    world.now += DAY_US;
    world.commit(20);
    settle_whole(&mut follower);
    assert_eq!(segments(&follower), [1, 1]);
    world.compare(&follower.index(), 20);
    // One that a crash left in parts is merged after the next start.
    for _ in 0..2 {
        world.commit(20);
        settle(&mut follower);
    }
    close(follower);
    world.restart();
    let mut follower = world.follower();
    // It cannot be gone on with: another begins behind it.
    follower.live = Filler::new(world.committed, None);
    settle_whole(&mut follower);
    assert_eq!(segments(&follower), [1, 1]);
    world.compare(&follower.index(), 20);
}

/// Ids of records below a commit.
fn ids_below(store: &Store, floor: u64) -> usize {
    let commit = |key: &[u8]| u64::from_be_bytes(key[key.len() - 8..].try_into().unwrap());
    store.scan(Family::Ids, &[], &[]).filter(|step| commit(&step.as_ref().unwrap().0) < floor).count()
}

#[test]
fn days_past_the_hot_ones_go_with_all_that_only_they_needed() {
    let dir = Dir::new("index-old");
    let mut world = World::new(&dir, Rng::for_test("days_past_the_hot_ones_go_with_all_that_only_they_needed"));
    let told = (Alarms::new(), Metrics::new());
    let open = |world: &World| world.follower_at(Root::new(dir.0.join("index")), 2, &told);
    let mut follower = open(&world);
    for day in 0..8 {
        for _ in 0..12 {
            world.commit(120);
        }
        world.now = DAY_0 + (day + 1) * DAY_US;
        world.commit(5);
        // The first step lets folders go; what only they needed goes in steps after it.
        follower.step().unwrap();
        let store = Arc::clone(world.store.as_ref().unwrap());
        world.floor = store.number(FLOOR).unwrap().unwrap_or(0);
        let gone = store.number(FORGOTTEN).unwrap().unwrap_or(0);
        assert_eq!(day < 2, world.floor == 0, "day {day}: today and two days before stay");
        assert_eq!(day < 2, gone == world.floor, "day {day}");
        let rolled = world.rolled;
        world.compare(&follower.index(), 30);
        assert_eq!(day < 2, world.rolled > rolled, "counts by the minute, with too much in them");
        drop(store);
        if day % 3 == 2 {
            // In the middle of it.
            follower.step().unwrap();
            close(follower);
            world.restart();
            follower = open(&world);
        }
        settle_whole(&mut follower);
        let store = Arc::clone(world.store.as_ref().unwrap());
        assert_eq!(store.number(FORGOTTEN).unwrap().unwrap_or(0), world.floor);
        assert_eq!(ids_below(&store, world.floor), 0);
        assert!(ids_below(&store, u64::MAX) > 0);
        let rolled = world.rolled;
        world.compare(&follower.index(), 30);
        assert!(world.rolled > rolled, "counts by the minute are of use again");
        assert!(follower.gaps.is_empty() && follower.index().shown().len() <= 4);
    }
    let running = world.tail.running().intents;
    assert!(running.iter().any(|(rank, _)| rank.commit_index() < world.floor), "calls that began long ago run");
}
