//! The golden archive verifies; every lie about it is found, and named; and each check finds a lie that no other finds.
//!
//! With `CUSTODY_BLESS=1` expectations are written instead of compared; whoever does that reads each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use custody::{
    strict::{Kind, table},
    verdict::{Check, Claim, State},
    verify::{InTurn, Options, run},
};
use custody_tests::{
    golden::{self, objects::Objects},
    lies::{self, GOLDEN, Lie, Recipe, target::Target},
    verdict::Outcome,
};

/// Processors that the matrix uses.
const WORKERS: usize = 2;

#[test]
fn the_golden_archive_verifies() {
    let objects = Objects(GOLDEN.rendered.objects.clone());
    for (name, policy) in golden::policies() {
        let options = Options { as_of: golden::AS_OF, ..Options::default() };
        let verdict = run(&objects, &policy, &options, &InTurn).unwrap();
        assert_eq!(verdict.faults, [], "{name}");
        for claim in [Claim::Unaltered, Claim::Authorised, Claim::Complete] {
            assert_eq!(verdict.claim(claim).0, State::Verified, "{name} {claim:?}");
        }
        assert_eq!(verdict.exit_code(&policy.required), 0, "{name}");
        let found: BTreeSet<_> = verdict.findings.iter().map(|finding| finding.name).collect();
        let told = ["dropped", "equivocation", "silent"];
        assert!(told.iter().all(|name| found.contains(name)), "{name}: {found:?}");
    }
}

#[test]
fn evidence_from_the_golden_archive_proves_its_records() {
    let files = golden::evidence_files(&GOLDEN.ledger, &GOLDEN.rendered);
    assert_eq!(files.len(), 5);
    for (name, proof) in files {
        let said = (proof.evidence.first_position, proof.evidence.record_count);
        let shown = custody::evidence::check(&proof.to_bytes(), &golden::policy()).unwrap();
        let shown = shown.unwrap_or_else(|fault| panic!("{name}: {fault:?}"));
        assert_eq!((shown.records[0].position, shown.records.len() as u64), said, "{name}");
    }
}

#[test]
fn every_known_file_of_the_golden_archive_is_found_in_it() {
    let objects = Objects(GOLDEN.rendered.objects.clone());
    let known: Vec<Vec<u8>> = GOLDEN.known.values().cloned().collect();
    let outcome = custody_tests::verdict::verify(&objects, &golden::policy(), golden::AS_OF, &known).unwrap();
    assert_eq!((outcome.exit, outcome.first.as_str()), (0, ""));
    assert_eq!(outcome.claims[&Claim::NotRolledBack], State::Verified);
}

#[test]
fn every_lie_is_found_and_named() {
    let lies = lies::read_all().unwrap();
    let queue = Mutex::new(lies.iter());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((name, lie)) = queue.lock().unwrap().next() else { return };
                    if let Err(why) = check(name, lie) {
                        wrong.lock().unwrap().push(format!("{name}: {why}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} lies:\n{}", wrong.len(), lies.len(), wrong.join("\n"));
}

fn check(name: &str, lie: &Lie) -> Result<(), String> {
    let outcome = lie.tell()?.verify()?;
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        let mut blessed = lie.clone();
        blessed.expected = Some(outcome);
        return lies::write(name, &blessed).map_err(|why| why.to_string());
    }
    let expected = lie.expected.as_ref().ok_or("its file expects nothing: run with CUSTODY_BLESS=1, and read it")?;
    if outcome == *expected { Ok(()) } else { Err(format!("expected {expected:?}, found {outcome:?}")) }
}

/// Whatever the liar holds, the verdict is not the one that the golden archive gets. `harmless` is what hides nothing:
/// objects that nothing refers to, and those that follow from others.
#[test]
fn no_lie_is_verified() {
    for (name, lie) in lies::read_all().unwrap() {
        let expected = lie.expected.expect("every lie's file says what is expected");
        assert_eq!(expected.exit == 0, name.starts_with("harmless/"), "{name}: exit code {}", expected.exit);
        let refuted = expected.claims.values().any(|state| *state == State::Refuted);
        assert_eq!(refuted, expected.exit == 1, "{name}");
    }
}

/// Every field of every message that an archive is made of is lied about: what is not in the list below the message's name.
#[test]
fn every_field_is_lied_about() {
    let mut told: BTreeSet<(&str, String)> = BTreeSet::new();
    for (name, lie) in lies::read_all().unwrap() {
        let Recipe::Edit { target, field, .. } = &lie.recipe else { continue };
        let Some(mut message) = Target::parse(target).unwrap().message() else { continue };
        for part in field.split('.').filter(|part| part.parse::<usize>().is_err()) {
            told.insert((message.name, part.to_owned()));
            let known = message.fields.iter().find(|known| known.name == part);
            match &known.unwrap_or_else(|| panic!("{name}: no field {part}")).kind {
                Kind::Message(inner) => message = inner,
                _ => break,
            }
        }
    }
    let messages = [
        &table::SEAL,
        &table::SEGMENT_HEADER,
        &table::SEGMENT_INDEX,
        &table::SEGMENT_FRAME,
        &table::ROSTER,
        &table::ROSTER_ENTRY,
        &table::SEGMENT_ENTRY,
        &table::SIGNED_BATCH,
        &table::BATCH_HEADER,
        &table::SIGNED_HEAD,
        &table::OPEN_HEAD,
        &table::CHAIN_HEAD,
        &table::SIGNED_STATEMENT,
        &table::LOG_ENTRY,
        &table::SEAL_REFERENCE,
        &table::TERM_START,
        &table::RECORD,
    ];
    let fields = messages.iter().flat_map(|message| message.fields.iter().map(|field| (message.name, field.name)));
    let missing: Vec<_> = fields.filter(|(message, field)| !told.contains(&(*message, (*field).to_owned()))).collect();
    assert!(missing.is_empty(), "nobody lies about {missing:?}");
}

/// The same bytes every time, on every machine: other verifiers and writers are held against them.
#[test]
fn the_golden_archive_is_frozen() {
    let mut all = String::new();
    for (name, bytes) in &GOLDEN.rendered.objects {
        all.push_str(&format!("{} {name}\n", custody::hash::object_hash(bytes)));
    }
    let found = custody::hash::object_hash(all.as_bytes()).to_string();
    let frozen = include_str!("golden.sha256").trim();
    assert_eq!(
        found, frozen,
        "the format or the story changed: say so, then freeze it anew in tests/e2e/golden.sha256"
    );
}

#[test]
fn each_check_finds_a_lie_that_it_alone_finds() {
    let verifier = verifier_without_a_check();
    let lies = lies::read_all().unwrap();
    let mut found: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, lie) in &lies {
        let Some(check) = &lie.alone else { continue };
        let expected = lie.expected.as_ref().expect("every lie's file says what is expected");
        assert_eq!(&expected.first, check, "{name}");
        let without = verify_without(&verifier, lie, check);
        assert_ne!(&without.first, check, "{name}: the check was not left out");
        assert_ne!(&without, expected, "{name}: nothing depends on {check}");
        if std::env::var_os("CUSTODY_BLESS").is_some() {
            let blessed = Lie { without: Some(without), ..lie.clone() };
            lies::write(name, &blessed).unwrap();
        } else {
            assert_eq!(Some(&without), lie.without.as_ref(), "{name} without {check}");
        }
        found.insert(check, name);
    }
    let missing: Vec<_> =
        Check::ALL.iter().map(|check| check.name()).filter(|name| !found.contains_key(name)).collect();
    assert!(missing.is_empty(), "no lie that these alone find: {missing:?}");
}

/// Builds the verifier that can leave out a check: an invocation of its own, so that the feature stays out of this one.
fn verifier_without_a_check() -> PathBuf {
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let arguments = ["build", "--quiet", "--offline", "-p", "custody-tests", "--features", "omit-check", "--bin"];
    let built =
        Command::new(env!("CARGO")).args(arguments).arg("verify-omit").arg("--target-dir").arg(&target).status();
    assert!(built.unwrap().success(), "verify-omit does not build");
    target.join("debug/verify-omit")
}

fn verify_without(verifier: &Path, lie: &Lie, check: &str) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    lie.tell().unwrap().write(folder.path()).unwrap();
    let mut command = Command::new(verifier);
    let told = folder.path().join(if lie.is_of_evidence() { "evidence" } else { "archive" });
    command.arg(told).arg(folder.path().join("policy.json")).arg(check);
    command.arg(golden::AS_OF.to_string());
    command.args(lie.known.iter().map(|name| folder.path().join("known").join(name)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
