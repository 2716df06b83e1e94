//! Many small workspaces: walked on all processors, with one and the same verdict; and how much of them there is to read.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use custody::{
    policy::Scope,
    verify::{self, InTurn, Options, Workers},
};
use verifier::{progress::records_in_scope, reader::Source, workers::AllCores};

use crate::{
    commands::Place,
    ledger::{BEGINNING, Ledger, call, opened, policy},
};

const WORKSPACES: u8 = 120;

/// Workspaces of one small segment each; in every third one something is wrong, or strange.
fn write(ledger: &mut Ledger) {
    for number in 0..WORKSPACES {
        let mut workspace = ledger.create(number, &format!("team-{number}"));
        let mut gateway = ledger.enrol(&mut workspace, 0x11);
        ledger.take(&mut workspace, &mut gateway, &[opened(), call(u64::from(number))]);
        ledger.cut(&mut workspace);
        let folder = ledger.dir.join(format!("workspaces/{}", workspace.id));
        match number % 9 {
            0 => fs::remove_dir_all(folder.join("segments")).unwrap(),
            3 => (0..90).for_each(|at| ledger.put(&format!("workspaces/{}/seals/x{at}", workspace.id), b"orphan")),
            6 => fs::remove_dir_all(folder.join("statements")).unwrap(),
            _ => {}
        }
    }
    ledger.publish();
}

/// Notes the greatest number of tasks that was given at once.
struct Noting(AtomicUsize);

impl Workers for Noting {
    fn ordered<T: Sync, R: Send>(&self, tasks: &[T], work: impl Fn(&T) -> R + Sync, take: impl FnMut(R) -> bool) {
        self.0.fetch_max(tasks.len(), Ordering::Relaxed);
        InTurn.ordered(tasks, work, take);
    }
}

#[test]
fn small_workspaces_are_walked_on_all_processors_with_one_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::new(dir.path());
    write(&mut ledger);
    let source = Source::open(dir.path()).unwrap();
    let options = Options { as_of: BEGINNING + 60_000_000, ..Options::default() };
    let noting = Noting(AtomicUsize::new(0));
    let in_turn = verify::run(&source, &policy(), &options, &noting).unwrap();
    assert_eq!(noting.0.into_inner(), usize::from(WORKSPACES), "each workspace is a task");
    let several = verify::run(&source, &policy(), &options, &AllCores::with_threads(7)).unwrap();
    assert_eq!(in_turn, several);
    assert_eq!(in_turn.faults.len(), 14 + 13);
    let places: Vec<_> = in_turn.workspaces.iter().map(|(id, _)| id.0[0]).collect();
    assert_eq!(places, (0..WORKSPACES).collect::<Vec<_>>(), "in the order of creation");
    let faulty: Vec<_> = in_turn.faults.iter().map(|fault| fault.workspace.unwrap().0[0]).collect();
    assert!(faulty.is_sorted(), "{faulty:?}");
    assert_eq!((in_turn.findings.len(), in_turn.findings_more), (1_000, 90 * 13 - 1_000), "listed, and only counted");
}

#[test]
fn the_total_of_the_progress_is_what_is_read_in_the_end() {
    let place = Place::new();
    let source = Source::open(&place.path("archive")).unwrap();
    let all = Options { as_of: BEGINNING, ..Options::default() };
    let since = |after_us: u64| Options { since: Some(BEGINNING + after_us), ..all.clone() };
    let until = |after_us: u64| Options { until: Some(BEGINNING + after_us), ..all.clone() };
    let mut beta = policy();
    beta.scope = Scope::Workspaces(vec![place.workspaces[1].id.to_string()]);
    for policy in [policy(), beta] {
        for options in [&all, &since(20_000), &until(20_000), &since(60_000_000), &until(0)] {
            let total = records_in_scope(&source, &policy, options).unwrap();
            let verdict = verify::run(&source, &policy, options, &InTurn).unwrap();
            assert_eq!(verdict.faults, []);
            assert_eq!(total, Some(verdict.counts.records), "{options:?}");
        }
    }
    let earlier = Options { at_size: Some(4), ..all };
    assert_eq!(records_in_scope(&source, &policy(), &earlier), Ok(None));
}
