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
    batch::Header,
    key::Context,
    statement::{Signed, encode_signed},
    strict::{Kind, Message, table},
    verdict::{Check, Claim, State},
    verify::{InTurn, Options, run},
    wire::{self, statement::Action},
};
use custody_tests::{
    golden::{self, objects::Objects},
    lies::{self, GOLDEN, Lie, Recipe, Strength, target::Target},
    verdict::Outcome,
};
use prost::Message as _;

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

/// The file's own statements may put a key in doubt that signed what it shows: then it proves nothing for sure.
#[test]
fn evidence_whose_own_statements_doubt_its_signer_is_undecided() {
    // Of a gateway: the ledger's own record key stands in another chain.
    let files = golden::evidence_files(&GOLDEN.ledger, &GOLDEN.rendered);
    let (_, proof) = files.into_iter().find(|(_, proof)| proof.evidence.workspace_chain.len() > 1).unwrap();
    let evidence = &proof.evidence;
    let leaf = evidence.segments.iter().flat_map(|part| &part.leaves).find(|leaf| !leaf.records.is_empty()).unwrap();
    let header = Header::parse(&leaf.signed).unwrap();
    let last = Signed::parse(evidence.workspace_chain.last().unwrap()).unwrap();
    let doubt = |since: u64| {
        let said = wire::Statement {
            serial: last.statement.serial + 1,
            previous: last.hash.into(),
            era: 1,
            registrar: None,
            action: Some(Action::Suspect(wire::Suspect { key_id: header.key_id.into(), since })),
            ..last.statement.clone()
        };
        let bytes = said.encode_to_vec();
        let signature = custody::key::sign(&golden::keys::signing("root-1"), Context::Statement, &bytes);
        let mut doubted = proof.clone();
        doubted.evidence.workspace_chain.push(encode_signed(&bytes, signature).into());
        let shown = custody::evidence::check(&doubted.to_bytes(), &golden::policy()).unwrap();
        shown.unwrap_or_else(|fault| panic!("{fault:?}")).suspect
    };
    assert!(doubt(0) > 0, "nobody doubts what a suspect key signed");
    assert_eq!(doubt(1_000_000), 0);
}

#[test]
fn every_known_file_of_the_golden_archive_is_found_in_it() {
    let objects = Objects(GOLDEN.rendered.objects.clone());
    let known: Vec<Vec<u8>> = GOLDEN.known.values().cloned().collect();
    let asked = Options { as_of: golden::AS_OF, ..Options::default() };
    let outcome = custody_tests::verdict::verify(&objects, &golden::policy(), asked, &known).unwrap();
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

/// The messages that an archive is made of.
const MESSAGES: [&Message; 29] = [
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
    &table::STATEMENT,
    &table::CREATE,
    &table::REMOVE,
    &table::DELEGATE,
    &table::ENROL,
    &table::RETIRE,
    &table::REVOKE,
    &table::SUSPECT,
    &table::HOLD,
    &table::RELEASE,
    &table::SUCCEED_ROOT,
    &table::INCARNATION,
    &table::LOG_ENTRY,
    &table::SEAL_REFERENCE,
    &table::TERM_START,
    &table::RECORD,
];

/// What is not lied about in this strength, and why that hides nothing.
const EXEMPT: [(&str, &str, Strength, &str); 3] = [
    ("Statement", "remove", Strength::Raw, "the message is empty: there is nothing in it to change"),
    ("Statement", "remove", Strength::Mended, "as above"),
    ("Statement", "remove", Strength::Resigned, "as above"),
];

/// Every field of every message that an archive is made of is lied about, in each of the three strengths.
#[test]
fn every_field_is_lied_about() {
    let mut told: BTreeMap<(&str, &str), BTreeSet<Strength>> = BTreeMap::new();
    for (name, lie) in lies::read_all().unwrap() {
        let Recipe::Edit { target, field, .. } = &lie.recipe else { continue };
        let Some(mut message) = Target::parse(target).unwrap().message() else { continue };
        for part in field.split('.').filter(|part| part.parse::<usize>().is_err()) {
            let known = message.fields.iter().find(|known| known.name == part);
            let known = known.unwrap_or_else(|| panic!("{name}: no field {part}"));
            told.entry((message.name, known.name)).or_default().insert(lie.strength);
            match &known.kind {
                Kind::Message(inner) => message = inner,
                _ => break,
            }
        }
    }
    let exempt = |message: &str, field: &str, strength: Strength| {
        EXEMPT.iter().any(|(of, name, how, _)| (*of, *name, *how) == (message, field, strength))
    };
    let mut missing = Vec::new();
    for (message, field) in MESSAGES.iter().flat_map(|of| of.fields.iter().map(|field| (of.name, field.name))) {
        for strength in [Strength::Raw, Strength::Mended, Strength::Resigned] {
            let lied = told.get(&(message, field)).is_some_and(|told| told.contains(&strength));
            assert!(!(lied && exempt(message, field, strength)), "{message}.{field} {strength:?} is no exemption");
            if !lied && !exempt(message, field, strength) {
                missing.push((message, field, strength));
            }
        }
    }
    assert!(missing.is_empty(), "nobody lies about {missing:#?}");
}

/// What the log is made of, cut at each of its own boundaries: entries of a bundle, hashes of a tile, lines of a note. One
/// file each would be six hundred files that say the same; the two verifiers are compared on those under `tests/vectors`.
#[test]
fn the_logs_objects_are_refuted_wherever_they_are_cut() {
    let policy = golden::witnessed_policy();
    let cases: [(&str, Boundaries, Check); 4] = [
        ("log/tile/entries/", entry_boundaries, Check::LogEntries),
        ("log/tile/", |tile| (0..tile.len()).step_by(32).collect(), Check::LogTile),
        ("log/checkpoints/", line_boundaries, Check::CheckpointForm),
        ("log/cosignatures/", line_boundaries, Check::Cosignature),
    ];
    let mut seen = BTreeSet::new();
    for (name, bytes) in &GOLDEN.rendered.objects {
        let Some((folder, boundaries, check)) = cases.iter().find(|(folder, ..)| name.starts_with(folder)) else {
            continue;
        };
        // Of the many narrow tiles of older sizes the first and the last stand for all.
        if !seen.insert((*folder, bytes.len() / 32 / 64)) {
            continue;
        }
        for at in boundaries(bytes) {
            let mut objects = Objects(GOLDEN.rendered.objects.clone());
            objects.0.insert(name.clone(), bytes.slice(..at));
            let verdict = run(&objects, &policy, &Options { as_of: golden::AS_OF, ..Options::default() }, &InTurn);
            let verdict = verdict.unwrap();
            let found = verdict.first_fault().unwrap_or_else(|| panic!("{name} cut to {at} bytes is accepted"));
            // A bundle that is not read for its entries, as an older and narrower one, is a tile like any other.
            let as_tile = *check == Check::LogEntries && found.check == Check::LogTile;
            assert!(found.check == *check || as_tile, "{name} cut to {at} bytes: {found:?}");
            assert_eq!(found.state, State::Refuted, "{name} cut to {at} bytes");
        }
    }
    assert!(seen.len() >= 6, "{seen:?}");
}

/// Where an object of the log is cut.
type Boundaries = fn(&[u8]) -> Vec<usize>;

fn entry_boundaries(bundle: &[u8]) -> Vec<usize> {
    let (mut at, mut boundaries) = (0, Vec::new());
    while at < bundle.len() {
        boundaries.push(at);
        at += 2 + usize::from(u16::from_be_bytes([bundle[at], bundle[at + 1]]));
    }
    boundaries
}

fn line_boundaries(note: &[u8]) -> Vec<usize> {
    let ends = (1..note.len()).filter(|at| note[at - 1] == b'\n');
    std::iter::once(0).chain(ends).collect()
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
    command.arg(lie.as_of().to_string());
    command.args(lie.known.iter().map(|name| folder.path().join("known").join(name)));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
