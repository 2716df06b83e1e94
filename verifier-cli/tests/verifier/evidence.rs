//! Evidence: made for every record and every run, checked by the policy alone, refused when anything in it is changed.

use std::{fs, path::Path};

use custody::{
    evidence::{self, Proof},
    policy::Policy,
    record,
};
use serde_json::Value;
use verifier::{
    make_evidence::{What, make},
    reader::Source,
};

use crate::{
    commands::{Place, run},
    ledger::policy,
};

fn open(place: &Place) -> Source {
    Source::open(&place.path("archive")).unwrap()
}

fn positions(workspace: &str, first: u64, end: u64) -> What {
    What::Positions { workspace: workspace.to_owned(), first, end: Some(end) }
}

#[test]
fn every_record_is_proven_by_position_and_by_name_in_about_five_kilobytes() {
    let place = Place::new();
    let source = open(&place);
    for workspace in &place.workspaces {
        for position in 0..workspace.position {
            let bytes =
                make(&source, &policy(), &positions(&workspace.name, position, position + 1)).unwrap().to_bytes();
            assert!(bytes.len() < 6_000, "{} bytes", bytes.len());
            let shown = evidence::check(&bytes, &policy()).unwrap().unwrap();
            assert_eq!((shown.workspace, shown.records.len()), (workspace.id, 1));
            let proven = &shown.records[0];
            assert_eq!(proven.position, position);
            record::check(&proven.bytes).unwrap();
            let what = What::Record { gateway: proven.gateway, epoch: proven.epoch, number: proven.number };
            assert_eq!(make(&source, &policy(), &what).unwrap().to_bytes(), bytes);
        }
    }
}

#[test]
fn every_run_is_proven_over_segments_and_heartbeats() {
    let place = Place::new();
    let (source, acme) = (open(&place), &place.workspaces[0]);
    let mut several = 0;
    for first in 0..acme.position {
        for end in first + 1..=acme.position {
            let proof = make(&source, &policy(), &positions("acme", first, end)).unwrap();
            several += usize::from(proof.evidence.segments.len() > 1);
            let shown = evidence::check(&proof.to_bytes(), &policy()).unwrap().unwrap();
            let found: Vec<u64> = shown.records.iter().map(|record| record.position).collect();
            assert_eq!(found, (first..end).collect::<Vec<_>>());
        }
    }
    assert!(several > 20, "{several}");
}

#[test]
fn evidence_shows_no_other_record() {
    let place = Place::new();
    let proof = make(&open(&place), &policy(), &positions("acme", 7, 8)).unwrap();
    let leaves = proof.evidence.segments.iter().flat_map(|segment| &segment.leaves);
    assert_eq!(leaves.map(|leaf| leaf.records.len()).sum::<usize>(), 1);
}

/// Whatever byte of a file is changed, it is refused, and nothing panics.
#[test]
fn a_changed_file_is_refused() {
    let place = Place::new();
    let bytes = make(&open(&place), &policy(), &positions("acme", 5, 6)).unwrap().to_bytes();
    let accepted = |bytes: &[u8]| evidence::check(bytes, &policy()).unwrap().is_ok();
    assert!(accepted(&bytes));
    for at in (0..bytes.len()).step_by(2) {
        let mut changed = bytes.clone();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(!accepted(&changed), "byte {at}");
    }
    for at in (0..bytes.len()).step_by(7) {
        assert!(!accepted(&bytes[..at]), "cut at {at}");
    }
}

/// Each part of the message changed by itself, put into a file that is otherwise in form.
#[test]
fn a_changed_part_is_refused_by_its_own_check() {
    let place = Place::new();
    let proof = make(&open(&place), &policy(), &positions("acme", 3, 14)).unwrap();
    let failing = |change: &dyn Fn(&mut Proof)| {
        let mut changed = proof.clone();
        change(&mut changed);
        evidence::check(&changed.to_bytes(), &policy()).unwrap().unwrap_err().check.name()
    };
    for (change, name) in [
        (&(|proof: &mut Proof| proof.index += 1) as &dyn Fn(&mut Proof), "evidence-log"),
        (&|proof| proof.path.clear(), "evidence-log"),
        (&|proof| proof.evidence.first_position += 1, "evidence-run"),
        (&|proof| proof.evidence.record_count -= 1, "evidence-run"),
        (&|proof| drop(proof.evidence.segments.pop()), "evidence-log"),
        (&|proof| drop(proof.evidence.segments.remove(1)), "evidence-run"),
        (&|proof| drop(proof.evidence.segments[1].leaves.remove(1)), "evidence-run"),
        (&|proof| proof.evidence.segments[1].leaves[0].received_at += 1, "segment-root"),
        (&|proof| drop(proof.evidence.ledger_chain.pop()), "checkpoint-signature"),
        (&|proof| drop(proof.evidence.workspace_chain.pop()), "seal-workspace-chain"),
        (&|proof| proof.evidence.workspace = vec![0xb2; 16].into(), "workspace-chain"),
        (&|proof| proof.evidence.segments[0].leaves[0].nonces[0] = vec![1; 32].into(), "batch-root"),
        (&|proof| proof.checkpoint.signatures.truncate(0), "evidence-form"),
    ] {
        assert_eq!(failing(change), name);
    }
}

#[test]
fn a_witness_adds_its_line_and_its_time() {
    let place = Place::new();
    place.ledger.cosign(1_772_323_260);
    let mut asked = policy();
    asked.quorum = 1;
    place.write_policy(&asked);
    let out = place.path("one.tlog-proof");
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let paths = [&archive, &policy, &out].map(|path: &std::path::PathBuf| path.to_str().unwrap().to_owned());
    let [archive, policy, file] = &paths;
    let made = run(["evidence", "make", archive, "--policy", policy, "acme/2", "--out", file]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let again = run(["evidence", "make", archive, "--policy", policy, "acme/2", "--out", file]);
    assert_eq!(again.status.code(), Some(2), "nothing is overwritten");
    let checked = run(["evidence", "check", file, "--policy", policy, "--json"]);
    let shown: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!((checked.status.code(), shown["conclusion"].as_str()), (Some(0), Some("verified")));
    assert_eq!(shown["witnesses"][0]["signed_at"], "2026-03-01T00:01:00Z");
    assert_eq!(shown["records"][0]["position"], 2);
    let text = run(["evidence", "check", file, "--policy", policy]);
    assert!(String::from_utf8(text.stdout).unwrap().contains("Witness      witness.example"));
    refuse_for_others(&out, &asked);
}

/// Another organisation's policy refuses the file.
fn refuse_for_others(file: &Path, asked: &Policy) {
    let bytes = fs::read(file).unwrap();
    let mut other = asked.clone();
    other.origin = "log.example/other".to_owned();
    assert!(evidence::check(&bytes, &other).unwrap().is_err());
    let mut other = asked.clone();
    other.roots[0].public_key.clone_from(&other.witnesses[0].public_key);
    assert!(evidence::check(&bytes, &other).unwrap().is_err());
}
