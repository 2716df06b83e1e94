//! The index of a real ledger over days: they end, are merged, and go; it is killed at each of these stages, built again, held against
//! the store, and has no room. Whatever happens to it, questions find each acknowledged call once, as a scan of what was
//! acknowledged does.

use std::path::PathBuf;

use bytes::Bytes;
use custody::id::MemberId;
use custody_tests::{
    peer::{Gateway, opened, random},
    process::{Home, Process, SETTINGS, end, write},
    shown::records,
};
use serde_json::Value;

use crate::{
    failing::Disk,
    search::{call, found, lines, token},
};

const DAY_US: u64 = 86_400_000_000;

/// Whether a question finds a call, by its number.
type Fits = fn(u64) -> bool;

/// A ledger whose clock the test moves, and all that it acknowledged.
struct World {
    home: Home,
    gateway: Gateway,
    member: MemberId,
    analyst: PathBuf,
    /// What the ledger's clock is ahead.
    shift: PathBuf,
    days: u64,
    /// Of each acknowledged call, by its number, the day on which it came.
    acknowledged: Vec<u64>,
}

impl World {
    fn new(name: &str, settings: &str) -> (Self, Process) {
        let home = Home::new(name, &format!("{SETTINGS}{settings}"));
        let shift = home.dir.join("shift");
        let process = home.start();
        let gateway = Gateway::enrol(&home, home.workspace("payments"));
        let analyst = token(&home, "ann", "analyst", &[]);
        let member = MemberId(random());
        (Self { home, gateway, member, analyst, shift, days: 0, acknowledged: Vec::new() }, process)
    }

    /// Another day begins for the next start.
    fn next_day(&mut self) {
        self.days += 1;
        write(&self.shift, (self.days * DAY_US).to_string().as_bytes());
    }

    fn spawn(&self, failpoint: &str) -> Process {
        let shift = ("CUSTODY_CLOCK_SHIFT", self.shift.to_str().unwrap());
        self.home.spawn(&[shift, ("CUSTODY_FAILPOINT", failpoint)])
    }

    fn start(&self) -> Process {
        let process = self.spawn("");
        assert!(process.wait_serving(), "{}", process.log().join("\n"));
        process
    }

    /// Ships what waits and so many calls more, until all is acknowledged or the ledger is gone; whether it was there to the end.
    async fn ship(&mut self, more: usize) -> bool {
        let Ok(mut session) = self.gateway.connect(self.home.grpc).await else { return false };
        if more > 0 && self.gateway.waiting.is_empty() {
            let mut batch: Vec<Bytes> = if self.gateway.header().opens() { vec![opened()] } else { Vec::new() };
            let first = self.acknowledged.len() as u64;
            batch.extend((first..first + more as u64).map(|number| call(number, self.member)));
            let batch = self.gateway.sign(self.gateway.header(), &batch);
            self.gateway.keep(batch);
            // It is acknowledged before anybody looks: whatever waits is shipped by the next run, too.
            self.acknowledged.resize(self.acknowledged.len() + more, self.days);
        }
        let waiting: Vec<Bytes> = self.gateway.waiting.iter().map(|batch| batch.bytes.clone()).collect();
        for batch in waiting {
            if session.send(batch).await.is_err() {
                return false;
            }
        }
        self.gateway.settle(&mut session).await.is_ok()
    }

    /// Until the index has all that is committed.
    async fn indexed(&self) {
        let fits = |status: &Value| {
            let followers = status["followers"].as_array().unwrap();
            followers.iter().any(|follower| follower["name"] == "index" && follower["lag"] == 0)
        };
        self.home.status_when("the index has all", fits).await;
    }

    /// Questions of every sort against a scan of what was acknowledged on the days that are kept.
    fn compare(&self, kept: u64, when: &str) {
        let oldest = self.days.saturating_sub(kept);
        let all: Vec<u64> = (0..).zip(&self.acknowledged).filter(|(_, day)| **day >= oldest).map(|(n, _)| n).collect();
        let ask = |args: &[&str]| found(&self.home, &self.analyst, args);
        let listed = lines(&ask(&["kind:call", "--json", "--all"]));
        let numbers: Vec<u64> =
            listed.iter().rev().map(|line| line["record"]["call_number"].as_u64().unwrap_or(0)).collect();
        assert_eq!(numbers, all, "{when}");
        let member = format!("member:{}", self.member);
        let questions: [(&str, Fits); 7] = [
            ("kind:call", |_| true),
            (&member, |_| true),
            ("outcome:denied", |n| n % 5 == 4),
            ("kind:call -outcome:denied", |n| n % 5 != 4),
            ("tool:github/delete_*", |n| n % 2 == 1),
            ("tool:*/list outcome:ok", |n| n % 2 == 0 && n % 5 != 4),
            ("duration:>=20ms duration:<60ms", |n| (20..60).contains(&n)),
        ];
        for (query, fits) in questions {
            let expected = all.iter().filter(|number| fits(**number)).count();
            assert_eq!(ask(&[query, "--count"]), format!("{expected}\n"), "{query} {when}");
        }
        // What counts by the minute would tell, if they are of use.
        let facets = ask(&["kind:call", "--facet", "outcome"]);
        for (value, denied) in [("ok", false), ("denied", true)] {
            let expected = all.iter().filter(|number| (**number % 5 == 4) == denied).count().to_string();
            let line = facets.lines().find(|line| line.split_whitespace().next() == Some(value)).unwrap_or_default();
            let told = line.split_whitespace().nth(1).unwrap_or("0");
            assert_eq!(told, expected, "{value} {when}:\n{facets}");
        }
    }
}

/// What the ledger has on record of this action: outcome and actor.
fn on_record(home: &Home, action: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |shown: &Value| (text(&shown["record"]["outcome"]), text(&shown["record"]["actor"]));
    records(home, "ledger").iter().filter(|shown| shown["record"]["action"] == action).map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_stage_of_a_day_that_ends_or_goes_loses_and_doubles_no_hit() {
    let (mut world, mut process) = World::new("index-days", "index.days_max = 1\n");
    for point in ["day-over", "day-merging", "day-merged", "day-floor", "day-removed", "day-rows"] {
        // Two commits of the index, and so two segments.
        for _ in 0..2 {
            assert!(world.ship(7).await);
            end(&process);
            process = world.start();
        }
        end(&process);
        world.next_day();
        if point == "day-floor" {
            // Until now nothing was old enough to go.
            assert!(world.days > 2);
        }
        process = world.spawn(&format!("{point}:1"));
        if process.wait_serving() {
            while world.ship(3).await {}
        }
        let status = process.wait_end();
        assert!(status.code().is_none(), "{point}: {status:?}\n{}", process.log().join("\n"));
        process = world.start();
        assert!(world.ship(0).await);
        world.indexed().await;
        world.compare(1, &format!("after {point}"));
    }
    world.home.say(&["cut"]);
    // Every night the index was held against the store.
    let checks = on_record(&world.home, "index.check");
    assert!(checks.len() >= 4 && checks.iter().all(|(outcome, _)| outcome == "ok"), "{checks:?}");
    assert!(!world.home.alarm_stands("index-"), "{:#}", world.home.status());
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reindexed_or_damaged_is_found_all_the_while() {
    let (mut world, mut process) = World::new("reindex", "");
    for _ in 0..3 {
        assert!(world.ship(40).await);
        end(&process);
        world.next_day();
        process = world.start();
    }
    assert!(world.ship(40).await);
    world.indexed().await;
    let said = world.home.say(&["reindex", "--check", "--reason", "audit"]);
    assert!(said.contains("as the store") && !said.contains("DIFFERED"), "{said}");
    let said = world.home.say(&["reindex", "--ticket", "OPS-7"]);
    world.compare(9, "right after all was thrown away");
    assert_eq!(said.matches("is built again").count(), 4, "{said}");
    world.indexed().await;
    world.compare(9, "after all was built again");
    let day = said.lines().nth(2).unwrap().split_whitespace().next().unwrap();
    let again = world.home.say(&["reindex", "--day", day]);
    assert!(again.contains(day) && again.matches("is built again").count() == 1, "{again}");
    world.compare(9, "right after a day was thrown away");
    world.indexed().await;
    assert!(world.home.say(&["reindex", "--day", "2001-01-01"]).contains("no folder"));
    assert!(world.home.refuses(&["reindex", "--day", "tomorrow"], 64).contains("hint: "));

    // A disk that gives back something else: it shows, and is mended.
    let folders = std::fs::read_dir(world.home.dir.join("data/index")).unwrap().map(|entry| entry.unwrap().path());
    let folder = folders.into_iter().find(|path| path.display().to_string().contains(day)).unwrap();
    let files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    let file = files.iter().find(|path| path.extension().is_some_and(|kind| kind == "idx")).unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    bytes[0] ^= 1;
    write(file, &bytes);
    let complained = world.home.refuses(&["reindex", "--check"], 1);
    assert!(complained.contains("the index differed"), "{complained}");
    assert!(world.home.alarm_stands("index-differs"));
    world.indexed().await;
    world.compare(9, "after what differed was built again");
    world.home.say(&["reindex", "--check"]);
    world.home.say(&["cut"]);
    let outcomes: Vec<String> = on_record(&world.home, "index.check")
        .into_iter()
        .filter(|(_, actor)| !actor.is_empty())
        .map(|(outcome, _)| outcome)
        .collect();
    assert_eq!(outcomes, ["ok", "differs", "ok"]);
    assert_eq!(on_record(&world.home, "index.rebuild").len(), 3);
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_without_room_loses_and_doubles_no_hit_and_goes_on_by_itself() {
    let (mut world, process) = World::new("index-full", "");
    end(&process);
    let Some(disk) = Disk::mount(&world.home.dir.join("data/index"), 4) else {
        println!("NOT CHECKED: no file system can be mounted here (hint: run as root), so no index was without room");
        return;
    };
    let mut process = world.start();
    assert!(world.ship(50).await);
    world.indexed().await;
    let ballast = disk.0.join("ballast");
    let fill = || {
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
    };
    fill();
    for _ in 0..3 {
        assert!(world.ship(50).await);
    }
    let failing = |status: &Value| status["alarms"].to_string().contains("index-failing");
    world.home.status_when("the index is without room", failing).await;
    world.compare(9, "without room");
    // Also a start.
    end(&process);
    process = world.start();
    assert!(world.ship(50).await);
    world.compare(9, "started without room");
    std::fs::remove_file(&ballast).unwrap();
    world.indexed().await;
    world.compare(9, "with room again");
    end(&process);
    process = world.start();
    world.compare(9, "after another start");
    world.home.say(&["reindex", "--check"]);
    end(&process);
}
