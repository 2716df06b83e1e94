//! The reports, held against files under `tests/verifier/expected`; `UPDATE=1` writes them anew.

use std::{fs, path::Path};

use crate::{commands::Place, ledger};

/// Hashes and lengths that change with the compressor, and folders that change with each run.
fn stable(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for letter in text.chars().chain(['\n']) {
        if letter.is_ascii_hexdigit() {
            run.push(letter);
            continue;
        }
        out.push_str(if run.len() == 64 { "<hash>" } else { &run });
        run.clear();
        out.push(letter);
    }
    out.pop();
    out
}

fn compare(name: &str, found: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier/expected").join(name);
    let found = stable(std::str::from_utf8(found).unwrap());
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, found.as_bytes())).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}; UPDATE=1 writes it anew");
}

fn compare_both(place: &Place, name: &str) {
    compare(&format!("{name}.txt"), &place.verify("2026-03-01T12:00:00Z", &[]).stdout);
    compare(&format!("{name}.json"), &place.verify("2026-03-01T12:00:00Z", &["--json"]).stdout);
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
