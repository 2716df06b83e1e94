//! The golden archive with objects changed at random: no change makes the verifier panic, and none that touches what the
//! log refers to is verified. Likewise evidence from it, with each field changed, and bits at random. `CUSTODY_SEED` repeats a
//! run, `CUSTODY_MUTATED` says how many archives, and how many bits of each evidence file (0: all).

use bytes::Bytes;
use custody::{
    evidence::{self, Proof},
    note::{SignatureLine, cosign},
    strict::table,
    verify::{InTurn, Options, run},
};
use custody_tests::{
    dice::Dice,
    golden::{self, objects::Objects},
    lies::{
        GOLDEN,
        wire::{self, How},
    },
    process::variable,
};
use prost::Message as _;

/// Archives, and bits of an evidence file, of the normal tests.
const ARCHIVES: u64 = 400;

fn pick<'a, T>(dice: &mut Dice, from: &'a [T]) -> &'a T {
    &from[usize::try_from(dice.within(0..from.len() as u64)).unwrap()]
}

/// Changes the bytes of an object; `other` is there to be spliced in.
fn change(dice: &mut Dice, bytes: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = usize::try_from(dice.within(0..bytes.len().max(1) as u64)).unwrap();
    match dice.within(0..7) {
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.within(0..8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at.min(bytes.len()), u8::try_from(dice.within(0..256)).unwrap()),
        4 if !bytes.is_empty() => drop(bytes.remove(at)),
        5 => {
            let from = usize::try_from(dice.within(0..other.len().max(1) as u64)).unwrap();
            let piece = &other[from..(from + 64).min(other.len())];
            drop(bytes.splice(at..at, piece.iter().copied()));
        }
        _ => bytes = other.to_vec(),
    }
    bytes
}

/// What may be as it likes while the rest is verified: it follows from the rest, or says nothing about the newest checkpoint.
fn is_harmless(name: &str, bytes: Option<&Bytes>, newest: &str) -> bool {
    let gone = bytes.is_none();
    let follows =
        name.starts_with("log/tile/") || name.starts_with("log/checkpoints/") || name.contains("/statements/0-");
    // Lines of other names are other people's business, as C2SP has it.
    let older = name.starts_with("log/cosignatures/") && !name.starts_with(&format!("log/cosignatures/{newest}/"));
    (gone && follows) || older
}

#[test]
fn archives_changed_at_random_are_not_verified() {
    let seed = variable("CUSTODY_SEED", 2);
    let count = variable("CUSTODY_MUTATED", ARCHIVES);
    println!("CUSTODY_SEED={seed}, {count} archives");
    let mut dice = Dice::new(seed);
    let golden = &GOLDEN.rendered.objects;
    let names: Vec<&String> = golden.keys().collect();
    // Most objects are narrow tiles; every third change is to what witnesses signed, every third to what holds records.
    let of = |part: &str| -> Vec<&String> { names.iter().copied().filter(|name| name.contains(part)).collect() };
    let pools = [names.clone(), of("log/c"), of("workspaces/")];
    let newest = GOLDEN.ledger.publications.last().unwrap().checkpoint.size.to_string();
    let policy = golden::witnessed_policy();
    let (mut refuted, mut undecided) = (0_u64, 0_u64);
    for round in 0..count {
        let mut objects = golden.clone();
        for _ in 0..=dice.within(0..3) {
            let pool = pick(&mut dice, &pools);
            let (name, other) = (*pick(&mut dice, pool), *pick(&mut dice, pool));
            if dice.within(0..6) == 0 {
                objects.remove(name);
            } else {
                objects.insert(name.clone(), change(&mut dice, &golden[name], &golden[other]).into());
            }
        }
        let changed: Vec<&String> =
            names.iter().copied().filter(|name| objects.get(*name) != golden.get(*name)).collect();
        let told = changed.iter().find(|name| !is_harmless(name, objects.get(**name), &newest)).copied();
        let options = Options { as_of: golden::AS_OF, ..Options::default() };
        let verdict = run(&Objects(objects.clone()), &policy, &options, &InTurn).unwrap();
        match verdict.exit_code(&policy.required) {
            0 => assert!(told.is_none(), "round {round}: verified although {told:?} was changed, among {changed:?}"),
            1 => refuted += 1,
            _ => undecided += 1,
        }
    }
    assert!(refuted > count / 2, "{refuted} of {count} refuted, {undecided} undecided");
}

fn proves(file: &[u8]) -> bool {
    evidence::check(file, &golden::policy()).unwrap().is_ok_and(|shown| shown.suspect == 0)
}

/// A file whose message has these bytes.
fn with_message(proof: &Proof, message: &[u8]) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let line = |bytes: &[u8]| format!("extra {}\n", STANDARD.encode(bytes));
    let text = String::from_utf8(proof.to_bytes()).unwrap();
    text.replacen(&line(&proof.evidence.encode_to_vec()), &line(message), 1).into_bytes()
}

/// Nothing that an evidence file says is bound by nothing: each field of its message, there or not, is changed by itself.
#[test]
fn evidence_with_any_field_changed_proves_nothing() {
    let mut changes = 0;
    for (name, proof) in golden::evidence_files(&GOLDEN.ledger, &GOLDEN.rendered) {
        let message = proof.evidence.encode_to_vec();
        assert!(proves(&with_message(&proof, &message)), "{name}");
        for path in wire::paths(&table::EVIDENCE, &message).unwrap() {
            for how in [How::Flip, How::Set(u64::MAX), How::Clear, How::Twice, How::Descending, How::Shorter] {
                let Ok(changed) = wire::edit(&table::EVIDENCE, &message, &path, how) else { continue };
                changes += u64::from(changed != message);
                assert!(changed == message || !proves(&with_message(&proof, &changed)), "{name}: {path} {how:?}");
            }
        }
    }
    assert!(changes > 1_000, "{changes}");
}

/// Only lines of other keys than the log's may be as they like: the reader checks them, or does not know them.
#[test]
fn evidence_with_any_bit_changed_proves_nothing() {
    let seed = variable("CUSTODY_SEED", 2);
    let count = variable("CUSTODY_MUTATED", ARCHIVES);
    println!("CUSTODY_SEED={seed}, {count} bits of each file");
    let mut dice = Dice::new(seed);
    for (name, mut proof) in golden::evidence_files(&GOLDEN.ledger, &GOLDEN.rendered) {
        let (message, file) = (proof.evidence.encode_to_vec(), proof.to_bytes());
        // Those of the message, so that it stays in form often, then those of the text.
        let bits = (message.len() + file.len()) as u64 * 8;
        let asked = if count == 0 { bits } else { count };
        for at in 0..asked {
            let bit = usize::try_from(if count == 0 { at } else { dice.within(0..bits) }).unwrap();
            let (byte, mask) = (bit / 8, 1_u8 << (bit % 8));
            let changed = match byte.checked_sub(message.len()) {
                Some(at) => flipped(&file, at, mask),
                None => with_message(&proof, &flipped(&message, byte, mask)),
            };
            assert!(!proves(&changed), "{name}: bit {} of byte {byte}", bit % 8);
        }
        let own = proof.checkpoint.signatures.clone();
        let witness = golden::keys::WITNESSES[0];
        let line = cosign(&proof.checkpoint.checkpoint, witness, &golden::keys::signing(witness), 1_767_600_000);
        for other in [line.clone(), SignatureLine { signature: vec![1], ..line }] {
            proof.checkpoint.signatures = [own.clone(), vec![other.clone()]].concat();
            assert!(proves(&proof.to_bytes()), "{name}: a line beside the log's");
            proof.checkpoint.signatures = vec![other];
            assert!(!proves(&proof.to_bytes()), "{name}: a line in the place of the log's");
        }
    }
}

fn flipped(bytes: &[u8], at: usize, mask: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= mask;
    bytes
}
