//! Crashes: the real ledger, killed again and again under load, loses nothing that it acknowledged and never says two things.
//!
//! Two kills of twenty are SIGKILL at a moment that the seed and the machine choose; the others are the eighteen named fail
//! points in turn, between every two durable steps. `CUSTODY_KILLS`, `CUSTODY_SEED` and `CUSTODY_ROUND` (the first kill's number)
//! make it longer, replay it and resume it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use custody::{head::SignedHead, verify::Known};
use custody_tests::{
    dice::Dice,
    oracle::{Expected, check_ledger},
    peer::{ANSWER, Acknowledged, Fault, Gateway, Heard, Session},
    process::{Home, Process, end, variable},
};
use tokio::sync::watch;

/// Small segments, so that cuts and all that follows them happen many times between two kills.
const SETTINGS: &str = "
segment.leaves_max = 48
segment.age_seconds = 1
fence.read_seconds = 1
publish.unarchived_segments_max = 24
store.cache_bytes = 8388608
store.write_buffer_bytes = 8388608
store.disk_low_bytes = 0
store.disk_full_bytes = 0
";
/// Kills of `make test`.
const KILLS: u64 = 20;
/// Kills of one ledger, after which a new one begins: the oracle reads its whole archive after each.
const KILLS_OF_ONE_LEDGER: u64 = 40;
/// Every so many kills everything is cut and checked to the last batch; after each kill what is archived is.
const COMPLETE_EVERY: u64 = 5;
/// Batches of one gateway without a receipt.
const IN_FLIGHT_MAX: usize = 8;
/// In the order of `ledger::failpoint::NAMES`, with the greatest passage that is worth killing at: steps of every batch come
/// often, those of a segment or of the log a few times between two kills.
const FAIL_POINTS: [(&str, u64); 21] = [
    ("start-after-term", 1),
    ("start-after-claim", 1),
    ("start-before-writer", 1),
    ("store-before-commit", 60),
    ("store-after-commit", 60),
    ("commit-before-answer", 60),
    ("index-before-commit", 1),
    ("index-prepared", 1),
    ("index-after-commit", 1),
    ("seal-before-staging", 6),
    ("seal-after-staging", 6),
    ("seal-after-seal", 6),
    ("archive-after-segment", 6),
    ("archive-after-seal", 6),
    ("publish-before-claim", 4),
    ("publish-after-claim", 4),
    ("publish-after-entries", 4),
    ("publish-between-tiles", 6),
    ("publish-after-tiles", 4),
    ("publish-after-checkpoint", 4),
    ("publish-after-mark", 4),
];

/// What all gateways share with whoever kills.
struct Load {
    port: u16,
    stop: AtomicBool,
    /// Number of the run that serves now; 0: none.
    serving: watch::Receiver<u64>,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// Number of acknowledged batches.
    progress: watch::Sender<u64>,
}

impl Load {
    fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self, gateway: &Gateway, from: usize) {
        let new = &gateway.acknowledged[from..];
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(new);
        self.progress.send_modify(|count| *count += new.len() as u64);
    }
}

/// One gateway: ships until it is told to stop, and then until nothing waits.
async fn ship(mut gateway: Gateway, load: Arc<Load>, mut dice: Dice) -> Gateway {
    let mut serving = load.serving.clone();
    let mut tried = 0;
    loop {
        let run = *serving.borrow_and_update();
        if run == tried {
            let changed = tokio::time::timeout(2 * ANSWER, serving.changed()).await;
            changed.expect("the ledger comes back").expect("somebody starts it");
            continue;
        }
        match gateway.connect(load.port).await {
            Ok(mut session) => match ship_over(&mut gateway, &mut session, &load, &mut dice).await {
                Ok(true) => return gateway,
                // Pushed back: the same again, over a new stream.
                Ok(false) => {}
                Err(Fault::Gone(_)) => tried = run,
                Err(why) => panic!("{why:?}"),
            },
            Err(Fault::Gone(_) | Fault::Refused(_)) => tried = run,
            Err(why) => panic!("{why:?}"),
        }
    }
}

/// Over one stream; `true` when all is done, `false` when it must begin again from the first batch without a receipt.
async fn ship_over(gateway: &mut Gateway, session: &mut Session, load: &Load, dice: &mut Dice) -> Result<bool, Fault> {
    for batch in &gateway.waiting {
        session.send(batch.bytes.clone()).await?;
    }
    loop {
        let stop = load.stop.load(Ordering::Acquire);
        while !stop && gateway.waiting.len() < IN_FLIGHT_MAX {
            let batch = gateway.batch(dice.within(1..40));
            session.send(batch).await?;
        }
        if stop && gateway.waiting.is_empty() {
            return Ok(true);
        }
        let before = gateway.acknowledged.len();
        match gateway.hear(session).await? {
            Heard::Receipt(_) => load.take(gateway, before),
            Heard::Pushback(pushback) => {
                custody_tests::process::pause(std::time::Duration::from_millis(u64::from(pushback.retry_after_ms)))
                    .await;
                return Ok(false);
            }
            Heard::Rejection(rejection) => return Err(Fault::Lie(format!("refused: {rejection:?}"))),
            _ => {}
        }
    }
}

/// Starts the ledger and kills it once; what was done, in words.
async fn kill_once(home: &Home, load: &Load, number: u64, dice: &mut Dice, up: &watch::Sender<u64>) -> String {
    let mut progress = load.progress.subscribe();
    let so_far = *progress.borrow_and_update();
    let (ten, of_ten) = (number / 10, number % 10);
    if of_ten == 0 {
        let process = home.start();
        up.send_replace(2 * number + 1);
        let more = dice.within(1..250);
        let reached = tokio::time::timeout(2 * ANSWER, progress.wait_for(|count| *count >= so_far + more)).await;
        assert!(reached.is_ok_and(|reached| reached.is_ok()), "no receipts: {}", process.log().join("\n"));
        process.kill();
        return format!("SIGKILL after {more} receipts");
    }
    let named = 9 * ten + of_ten - 1;
    let (name, most) = FAIL_POINTS[usize::try_from(named).expect("kills are few") % FAIL_POINTS.len()];
    let passage = dice.within(1..most + 1);
    let process = home.spawn(&[("CUSTODY_FAILPOINT", &format!("{name}:{passage}"))]);
    if process.wait_serving() {
        up.send_replace(2 * number + 1);
    }
    let status = process.wait_end();
    assert!(status.code().is_none(), "{name}:{passage}: {status:?}\n{}", process.log().join("\n"));
    format!("{name}, passage {passage}, after {} receipts", *progress.borrow() - so_far)
}

#[test]
fn every_fail_point_of_the_ledger_is_killed_at_and_no_other() {
    let source = include_str!("../../../ledger/src/failpoint.rs");
    let (_, list) = source.split_once("pub const NAMES").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    // Those of the watch need records that raise something, and those of a day one that ends: `watch.rs` and `index.rs` kill there.
    let elsewhere = |name: &&str| !name.starts_with("watch-") && !name.starts_with("day-");
    let names: Vec<&str> = list.split('"').skip(1).step_by(2).filter(elsewhere).collect();
    assert_eq!(names, FAIL_POINTS.map(|(name, _)| name));
}

/// Where a start that nothing came before passes, and its commits, of which it has fewer.
fn of_a_start() -> impl Iterator<Item = (&'static str, u64)> {
    let named = FAIL_POINTS.iter().filter(|(name, _)| name.starts_with("start-") || name.starts_with("publish-"));
    named.map(|(name, _)| (*name, 1)).chain((1..8).map(|passage| ("store-before-commit", passage)))
}

#[test]
fn a_first_start_that_is_killed_anywhere_is_completed_by_the_next() {
    let mut killed = 0;
    for (name, passage) in of_a_start() {
        let home = Home::new("first", SETTINGS);
        let process = home.spawn(&[("CUSTODY_FAILPOINT", &format!("{name}:{passage}"))]);
        match process.wait_serving() {
            true => process.kill(),
            false => killed += 1,
        }
        let process = home.start();
        home.workspace("payments");
        end(&process);
        let expected = Expected { complete: true, ..Expected::default() };
        check_ledger(&home.archive(), &home.policy(), &expected);
    }
    assert!(killed >= 11, "only {killed} starts were killed");
}

fn heads(gateways: &[Gateway]) -> Vec<Known> {
    let head = |gateway: &Gateway| SignedHead::parse(&gateway.last_head());
    gateways.iter().filter_map(|gateway| head(gateway).ok()).map(|head| Known::Head(Box::new(head))).collect()
}

fn enrol(home: &Home) -> Vec<Gateway> {
    let workspaces = [home.workspace("payments"), home.workspace("research")];
    workspaces.iter().flat_map(|id| [Gateway::enrol(home, *id), Gateway::enrol(home, *id)]).collect()
}

/// A run between two kills in which everything is cut; what was acknowledged before the cut must be there after it.
fn cut_and_check(home: &Home, load: &Load, up: &watch::Sender<u64>, number: u64) -> Process {
    let process = home.start();
    up.send_replace(number);
    let acknowledged = load.acknowledged();
    home.say(&["cut"]);
    let expected = Expected { acknowledged, complete: true, ..Expected::default() };
    check_ledger(&home.archive(), &home.policy(), &expected);
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_however_often_the_ledger_is_killed() {
    let (kills, seed) = (variable("CUSTODY_KILLS", KILLS), variable("CUSTODY_SEED", 1));
    let first = variable("CUSTODY_ROUND", 0);
    println!("CUSTODY_SEED={seed} CUSTODY_ROUND={first} CUSTODY_KILLS={kills}");
    let (mut from, end) = (first, first + kills);
    while from < end {
        let to = end.min(from + KILLS_OF_ONE_LEDGER);
        kill_one_ledger(seed, from..to).await;
        from = to;
    }
}

#[expect(clippy::print_stdout, reason = "each kill is told, so that somebody can replay it")]
async fn kill_one_ledger(seed: u64, kills: std::ops::Range<u64>) {
    let home = Home::new("crash", SETTINGS);
    let process = home.start();
    let gateways = enrol(&home);
    process.kill();
    let (up, serving) = watch::channel(0);
    let load = Arc::new(Load {
        port: home.grpc,
        stop: AtomicBool::new(false),
        serving,
        acknowledged: Mutex::new(Vec::new()),
        progress: watch::Sender::new(0),
    });
    let mut shipping = Vec::new();
    for (n, gateway) in (0..).zip(gateways) {
        shipping.push(tokio::spawn(ship(gateway, Arc::clone(&load), Dice::new(seed ^ (n << 32)))));
    }
    for number in kills {
        let mut dice = Dice::new(seed.wrapping_add(number << 8));
        let how = kill_once(&home, &load, number, &mut dice, &up).await;
        let acknowledged = load.acknowledged();
        let total = acknowledged.len();
        let expected = Expected { acknowledged, ..Expected::default() };
        let held = check_ledger(&home.archive(), &home.policy(), &expected);
        println!("kill {number}: {how}; {held} of {total} acknowledged batches archived");
        if number % COMPLETE_EVERY == COMPLETE_EVERY - 1 {
            cut_and_check(&home, &load, &up, 2 * number + 2).kill();
        }
    }
    let process = home.start();
    load.stop.store(true, Ordering::Release);
    up.send_replace(u64::MAX);
    let mut gateways = Vec::new();
    for shipped in shipping {
        gateways.push(shipped.await.unwrap());
    }
    home.say(&["cut"]);
    let acknowledged = load.acknowledged();
    let total = acknowledged.len();
    let expected = Expected { acknowledged, known: heads(&gateways), complete: true };
    assert_eq!(check_ledger(&home.archive(), &home.policy(), &expected), total);
    end(&process);
    println!("{total} batches acknowledged, all archived where their receipts say");
}
