//! The golden archive with objects changed at random: no change makes the verifier panic, and none that touches what the
//! log refers to is verified. `CUSTODY_SEED` repeats a run, `CUSTODY_MUTATED` says how many archives.

use bytes::Bytes;
use custody::verify::{InTurn, Options, run};
use custody_tests::{
    dice::Dice,
    golden::{self, objects::Objects},
    lies::GOLDEN,
};

/// Archives of the normal tests.
const ARCHIVES: u64 = 400;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

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
    let seed = number("CUSTODY_SEED").unwrap_or(2);
    let count = number("CUSTODY_MUTATED").unwrap_or(ARCHIVES);
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
