//! What people read, held against the snapshots beside this file. `INSTA_UPDATE=always cargo test -p verifier-cli` writes them
//! anew; their difference is to be read like any other.

use std::{fs, path::Path};

use crate::{
    commands::{Place, run},
    ledger,
};

/// Compares with a snapshot of this name. Hashes of objects change with the compressor.
pub(crate) fn compare(name: &str, found: &[u8]) {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\b[0-9a-f]{64}\b", "<hash>");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let found = std::str::from_utf8(found).unwrap();
    settings.bind(|| insta::assert_snapshot!(name, found));
}

fn compare_both(place: &Place, name: &str) {
    compare(name, &place.verify("2026-03-01T12:00:00Z", &[]).stdout);
    compare(&format!("{name}_json"), &place.verify("2026-03-01T12:00:00Z", &["--json"]).stdout);
}

#[test]
fn a_verified_archive() {
    compare_both(&Place::new(), "verified");
}

#[test]
fn a_refuted_archive() {
    let place = Place::new();
    fs::remove_file(place.object(&format!("workspaces/{}/segments", place.workspaces[1].id))).unwrap();
    compare_both(&place, "refuted");
}

#[test]
fn an_archive_that_the_policy_asks_more_of() {
    let place = Place::new();
    let mut policy = ledger::policy();
    policy.required = custody::verdict::Claim::ALL.to_vec();
    place.write_policy(&policy);
    place.ledger.put(&format!("workspaces/{}/segments/9-orphan", place.workspaces[0].id), b"orphan");
    compare_both(&place, "undecided");
}

#[test]
fn an_evidence_file() {
    let place = Place::new();
    let (archive, policy, out) = (place.path("archive"), place.path("policy.json"), place.path("evidence"));
    let [archive, policy, out] = [&archive, &policy, &out].map(|path| path.to_str().unwrap());
    let made = run(["evidence", "make", archive, "--policy", policy, "acme/4..6", "--out", out]);
    assert_eq!(made.status.code(), Some(0));
    let check = |file: &Path, more: &[&str]| {
        run([&["evidence", "check", file.to_str().unwrap(), "--policy", policy], more].concat()).stdout
    };
    compare("evidence", &check(Path::new(out), &[]));
    compare("evidence_json", &check(Path::new(out), &["--json"]));
    let broken = place.write("broken", b"{}");
    compare("evidence_refused", &check(&broken, &[]));
    compare("evidence_refused_json", &check(&broken, &["--json"]));
}

#[test]
fn records_as_a_table() {
    let place = Place::new();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let fixed = ["show", archive.to_str().unwrap(), "acme/0..15", "--policy", policy.to_str().unwrap()];
    compare("show", &run(fixed).stdout);
    compare("show_json", &run(fixed.into_iter().chain(["--json"])).stdout);
}

#[test]
fn the_help() {
    let mut all = Vec::new();
    for command in [
        &[][..],
        &["verify"],
        &["evidence"],
        &["evidence", "make"],
        &["evidence", "check"],
        &["export"],
        &["show"],
        &["access"],
        &["fingerprint"],
    ] {
        let output = run(command.iter().chain(&["--help"]));
        assert_eq!(output.status.code(), Some(0));
        all.extend(format!("$ verifier {}\n", [command, &["--help"]].concat().join(" ")).into_bytes());
        all.extend(output.stdout);
        all.push(b'\n');
    }
    compare("help", &all);
}
