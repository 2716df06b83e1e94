//! What goes wrong with what the follower writes: it goes on by itself, and nobody hears anything wrong meanwhile.

use super::*;

/// Follows through all failures, as its thread does, with questions after each; how many there were.
fn follow(world: &mut World, follower: &mut Follower) -> u64 {
    let mut failures = 0;
    loop {
        let done = match follower.turn(None) {
            Ok(true) => continue,
            Ok(false) => follower.commit_live(),
            Err(why) => Err(why),
        };
        let Err(why) = done else { return failures };
        failures += 1;
        assert!(failures < 100, "{why:?}");
        follower.raise(&why);
        world.compare(&follower.index(), 5);
        follower.begin_again();
        world.compare(&follower.index(), 5);
    }
}

/// Every record is in exactly one folder, as the store has it.
fn whole(world: &World, follower: &Follower) {
    let index = follower.index();
    let shown = index.shown();
    assert_eq!(shown.iter().map(|day| day.payload.count).sum::<u64>(), world.all.len() as u64);
    for day in shown.iter() {
        assert_eq!(check::differs(&index, day, || true).unwrap(), Some(false), "{:?}", day.payload);
    }
}

/// What is planned strikes; afterwards all is as it should be, and the alarm stands.
fn struck(name: &'static str, words: &'static [&'static str], times: u64, alarm: Alarm) {
    let dir = Dir::new(&format!("index-fault-{name}"));
    let mut world = World::new(&dir, Rng::for_test(name));
    let (faults, told) = (Faults::default(), (Alarms::new(), Metrics::new()));
    let mut root = Root::new(dir.0.join("index"));
    root.faults = faults.clone();
    let mut follower = world.follower_at(root, 90, &told);
    let mut failures = 0;
    for round in 0..4 {
        for _ in 0..5 {
            world.commit(30);
        }
        if round > 0 {
            faults.arm(words, Mode::Refuse, times);
        }
        if round == 2 {
            world.now += DAY_US;
        }
        failures += follow(&mut world, &mut follower);
    }
    assert!(faults.struck() > 0 && failures > 0, "{words:?}: {} struck, {failures} failures", faults.struck());
    assert!(told.0.latched().iter().any(|(raised, ..)| *raised == alarm), "{words:?}: {:?}", told.0.latched());
    faults.clear();
    follow(&mut world, &mut follower);
    whole(&world, &follower);
    world.compare(&follower.index(), 30);
    // As another start finds it.
    close(follower);
    world.restart();
    let mut follower = world.follower();
    settle_whole(&mut follower);
    whole(&world, &follower);
    world.compare(&follower.index(), 30);
}

#[test]
fn a_writer_that_cannot_be_made_is_made_later() {
    // As when the system gives no thread: the writer begins with its own.
    struck("writer", &["index:writer"], 3, Alarm::IndexFailing);
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_segment_or_of_a_commit_loses_and_doubles_no_hit() {
    struck("segment", &["index:open"], 2, Alarm::IndexFailing);
    struck("columns", &["index:open", ".fast"], 1, Alarm::IndexFailing);
    struck("meta", &["index:replace", "meta.json"], 2, Alarm::IndexFailing);
    struck("managed", &["index:replace", ".managed.json"], 2, Alarm::IndexFailing);
    struck("sync", &["index:sync"], 2, Alarm::IndexFailing);
}

#[test]
fn documents_that_a_writer_drops_and_says_nothing_are_missed_at_once() {
    struck("dropped", &["index:add"], 2, Alarm::IndexDiffers);
}

#[test]
fn a_merge_that_fails_leaves_the_folder_as_it_was() {
    let dir = Dir::new("index-fault-merge");
    let mut world = World::new(&dir, Rng::for_test("a_merge_that_fails_leaves_the_folder_as_it_was"));
    let (faults, told) = (Faults::default(), (Alarms::new(), Metrics::new()));
    let mut root = Root::new(dir.0.join("index"));
    root.faults = faults.clone();
    let mut follower = world.follower_at(root, 90, &told);
    for _ in 0..3 {
        world.commit(30);
        settle(&mut follower);
    }
    world.now += DAY_US;
    world.commit(30);
    follower.step().unwrap();
    follower.commit_live().unwrap();
    faults.arm(&["index:writer"], Mode::Refuse, 1);
    settle_whole(&mut follower);
    assert_eq!(faults.struck(), 1);
    assert!(told.0.latched().iter().any(|(raised, ..)| *raised == Alarm::IndexFailing));
    assert_eq!(follower.index().shown()[1].searcher.segment_readers().len(), 3);
    whole(&world, &follower);
    world.compare(&follower.index(), 30);
}

#[test]
fn a_folder_that_holds_something_else_is_noticed_set_aside_and_built_again() {
    let dirs = [Dir::new("index-differs-a"), Dir::new("index-differs-b")];
    let mut worlds = [1, 2].map(|seed| World::new(&dirs[seed - 1], Rng::of(seed as u64)));
    let mut followers = Vec::new();
    for world in &mut worlds {
        for _ in 0..4 {
            world.commit(25);
        }
        let mut follower = world.follower();
        settle(&mut follower);
        followers.push(follower);
    }
    // As many documents of as many commits, and not the same.
    let foreign = followers[1].index().shown()[0].clone();
    let index = followers[0].index();
    assert_eq!((foreign.payload.count, foreign.payload.next), (100, 4));
    let own = index.shown()[0].clone();
    assert_eq!(check::differs(&index, &own, || true).unwrap(), Some(false));
    assert_eq!(check::differs(&index, &foreign, || true).unwrap(), Some(true));
    // One document less, and one more.
    for (first, next) in [(0, 3), (1, 4)] {
        let mut other = own.clone();
        (other.payload.first, other.payload.next) = (first, next);
        assert_eq!(check::differs(&index, &other, || true).unwrap(), Some(true));
    }
    assert_eq!(check::differs(&index, &own, || false).unwrap(), None);
    let follower = &mut followers[0];
    follower.turn(Some(Wish::Differs(0))).unwrap();
    assert!(dirs[0].0.join("index/differed/meta.json").exists());
    worlds[0].compare(&index, 20);
    settle_whole(follower);
    whole(&worlds[0], follower);
    worlds[0].compare(&index, 20);
}

#[test]
fn what_is_reindexed_is_found_meanwhile_and_built_whole() {
    let dir = Dir::new("index-rebuilt");
    let mut world = World::new(&dir, Rng::for_test("what_is_reindexed_is_found_meanwhile_and_built_whole"));
    let mut follower = world.follower();
    for _ in 0..3 {
        for _ in 0..6 {
            world.commit(30);
        }
        settle(&mut follower);
        world.now += DAY_US;
    }
    let today = DAY_0 / DAY_US;
    assert!(rebuild(&mut follower, Some(today + 9)).is_empty());
    let gone = rebuild(&mut follower, Some(today + 1));
    assert_eq!(gone.iter().map(|payload| (payload.day, payload.count)).collect::<Vec<_>>(), [(today + 1, 180)]);
    let gone = rebuild(&mut follower, None);
    assert!(gone.len() >= 2, "{gone:?}");
    assert!(follower.index().shown().iter().map(|day| day.payload.count).sum::<u64>() < 540);
    world.compare(&follower.index(), 20);
    // What comes now is found as quickly as before.
    world.commit(30);
    follower.turn(None).unwrap();
    follower.commit_live().unwrap();
    let index = follower.index();
    assert_eq!(index.shown().first().map(|day| day.payload.next), Some(world.committed));
    assert!(index.progress().1 > 0, "the rest is missing, and is told of");
    world.compare(&index, 20);
    settle_whole(&mut follower);
    follower.step().unwrap();
    assert_eq!(index.progress(), (world.committed, 0));
    whole(&world, &follower);
    world.compare(&index, 20);
}

#[test]
fn folders_that_cannot_be_looked_at_are_taken_up_later_and_nothing_is_built_in_their_place() {
    let dir = Dir::new("index-unlooked");
    let mut world = World::new(&dir, Rng::for_test("unlooked"));
    let mut follower = world.follower();
    for _ in 0..5 {
        world.commit(30);
    }
    follow(&mut world, &mut follower);
    let (place, away) = (dir.0.join("index"), dir.0.join("away"));
    durable::move_folder(&place, &away).unwrap();
    std::fs::File::create(&place).unwrap();
    follower.begin_again();
    world.commit(30);
    assert!(follower.turn(None).is_err());
    world.compare(&follower.index(), 10);
    std::fs::remove_file(&place).unwrap();
    durable::move_folder(&away, &place).unwrap();
    follow(&mut world, &mut follower);
    whole(&world, &follower);
    world.compare(&follower.index(), 10);
}

#[test]
fn a_clock_that_jumps_ahead_by_a_year_and_back_lets_no_day_go() {
    let dir = Dir::new("index-year");
    let mut world = World::new(&dir, Rng::for_test("year"));
    let mut follower = world.follower_at(Root::new(dir.0.join("index")), 7, &(Alarms::new(), Metrics::new()));
    let mut day = |world: &mut World, ahead: u64| {
        world.now += ahead * DAY_US;
        world.commit(30);
        world.now -= ahead * DAY_US;
        follow(world, &mut follower);
        world.now += DAY_US;
    };
    for ahead in [0, 0, 400, 0, 0] {
        day(&mut world, ahead);
    }
    settle_whole(&mut follower);
    whole(&world, &follower);
    world.compare(&follower.index(), 30);
    assert_eq!(follower.index().shown().len(), 5, "each day has its folder");
}
