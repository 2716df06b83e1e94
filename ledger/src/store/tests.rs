//! The store over a real disk folder: its versions, and what damage does to it.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use super::*;
use crate::{durable, rig::Dir};

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(dir, 8 << 20, 32 << 20)
}

fn families(dir: &Path) -> Vec<String> {
    let mut families = DB::list_cf(&Options::default(), dir).unwrap();
    families.sort();
    families
}

#[test]
fn a_newer_database_is_refused_by_its_version_and_left_as_it_is() {
    let dir = Dir::new("newer");
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let db = DB::open_cf(&options, &dir.0, ["meta", "of-the-future"]).unwrap();
    db.put_cf(db.cf_handle("meta").unwrap(), "version", (STORE_VERSION + 1).to_be_bytes()).unwrap();
    drop(db);
    let opened = open(&dir.0);
    assert!(matches!(opened, Err(StoreError::Newer(version)) if version == STORE_VERSION + 1), "{:?}", opened.err());
    assert_eq!(families(&dir.0), ["default", "meta", "of-the-future"]);
}

#[test]
fn an_older_database_is_migrated_and_keeps_what_it_holds() {
    let dir = Dir::new("older");
    let store = open(&dir.0).unwrap();
    assert_eq!(store.number("version").unwrap(), Some(STORE_VERSION));
    store.commit_one(Family::Meta, "term", &7_u64.to_be_bytes()).unwrap();
    store.commit_one(Family::Meta, "version", &0_u64.to_be_bytes()).unwrap();
    drop(store);
    let store = open(&dir.0).unwrap();
    assert_eq!(store.number("version").unwrap(), Some(STORE_VERSION));
    assert_eq!(store.number("term").unwrap(), Some(7));
}

/// As version 1 left it: without the families that came later.
#[test]
fn an_old_database_has_the_families_of_later_versions_from_then_on() {
    let dir = Dir::new("version-1");
    let later = [Family::Leaves, Family::Receipts, Family::Members];
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let names = Family::ALL.into_iter().filter(|family| !later.contains(family)).map(Family::name);
    let db = DB::open_cf(&options, &dir.0, names).unwrap();
    db.put_cf(db.cf_handle("meta").unwrap(), "version", 1_u64.to_be_bytes()).unwrap();
    db.put_cf(db.cf_handle("meta").unwrap(), "term", 7_u64.to_be_bytes()).unwrap();
    drop(db);
    let store = open(&dir.0).unwrap();
    assert_eq!([store.number("version").unwrap(), store.number("term").unwrap()], [Some(STORE_VERSION), Some(7)]);
    for family in later {
        store.commit_one(family, b"key", &[1; 32]).unwrap();
    }
    drop(store);
    let store = open(&dir.0).unwrap();
    for family in later {
        assert_eq!(store.value(family, b"key").unwrap().unwrap()[..], [1; 32]);
    }
}

/// Bytes of a block of RocksDB's write-ahead log; no fragment of a record crosses into the next one.
const BLOCK: usize = 32 << 10;
/// Bytes before a fragment: checksum (4), length (2), type (1), number of the log (4).
const HEADER: usize = 11;

/// The write-ahead log of a store that was only just made.
fn log_of(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut logs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}

/// The records of a write-ahead log, as the fragments that they are made of.
fn records(log: &[u8]) -> Vec<Vec<Range<usize>>> {
    let (mut records, mut at) = (Vec::new(), 0);
    let mut fragments = Vec::new();
    while at < log.len() {
        if BLOCK - at % BLOCK < HEADER {
            at += BLOCK - at % BLOCK;
            continue;
        }
        let end = at + HEADER + usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
        fragments.push(at..end);
        // Whole, or the last of several.
        if [5, 8].contains(&log[at + 6]) {
            records.push(std::mem::take(&mut fragments));
        }
        at = end;
    }
    assert!(fragments.is_empty() && at == log.len());
    records
}

/// A store of twenty changes, small ones and some of more than a block, in an order that a test can count on; and, of each
/// change, how long the log was and what stood beside it before the change.
fn of_twenty_changes(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    let store = open(dir).unwrap();
    let log = log_of(dir);
    let before = |number: u64| {
        let before = (fs::metadata(&log).unwrap().len(), fs::read(dir.join(synced::FILE)).unwrap());
        let length = if number.is_multiple_of(5) { 70_000 } else { 900 };
        let value: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
        let mut change = store.change();
        change.put(Family::Entries, number.to_be_bytes(), &value);
        change.put(Family::Commits, number.to_be_bytes(), b"place");
        store.commit(change).unwrap();
        before
    };
    (0..20).map(before).collect()
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    durable::write(path, &bytes, 0o600).unwrap();
}

fn commits(store: &Store) -> Vec<u64> {
    store.scan(Family::Commits, &[], &[]).map(|step| as_number(&step.unwrap().0).unwrap()).collect()
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_no_power_cut() {
    let dir = Dir::new("flipped");
    of_twenty_changes(&dir.0);
    let path = log_of(&dir.0);
    let whole = fs::read(&path).unwrap();
    let records = records(&whole);
    assert!(records.len() >= 20 && records.iter().any(|fragments| fragments.len() > 2));
    let mut refused = 0;
    // Of the first record, two in the middle and the last: every byte before each fragment, and some of what it holds.
    for record in [0, 6, records.len() / 2, records.len() - 1] {
        for fragment in &records[record] {
            let header = (fragment.start..fragment.start + HEADER).zip([0, 3, 5, 7].into_iter().cycle());
            let kind = [0, 1, 2, 3, 7].map(|bit| (fragment.start + 6, bit));
            let body = [(fragment.start + HEADER, 0), (fragment.end - 1, 7)];
            for (at, bit) in header.chain(kind).chain(body) {
                flip(&path, at, bit);
                let damaged = fs::read(&path).unwrap();
                let opened = open(&dir.0);
                let why = opened.err().unwrap_or_else(|| panic!("bit {bit} of byte {at}, record {record}: opened"));
                assert!(why.is_damaged(), "bit {bit} of byte {at}, record {record}: {why:?}");
                assert!(why.to_string().contains("\nhint: "), "{why}");
                assert!(fs::read(&path).unwrap() == damaged && log_of(&dir.0) == path, "nothing was thrown away");
                flip(&path, at, bit);
                refused += 1;
            }
        }
    }
    assert!(refused > 80, "{refused}");
    // Whole blocks that are empty, and an end that is gone, although it was synced.
    for (from, to) in [(BLOCK, 2 * BLOCK), (0, BLOCK), (whole.len() - 4_096, whole.len())] {
        let mut zeros = whole.clone();
        zeros[from..to].fill(0);
        durable::write(&path, &zeros, 0o600).unwrap();
        assert!(open(&dir.0).is_err_and(|why| why.is_damaged()), "{from}..{to}");
    }
    durable::write(&path, &whole[..records.last().unwrap()[0].start], 0o600).unwrap();
    assert!(matches!(open(&dir.0), Err(StoreError::Lost(2))));
    fs::remove_file(&path).unwrap();
    assert!(open(&dir.0).is_err_and(|why| why.is_damaged()));
    durable::write(&path, &whole, 0o600).unwrap();
    assert_eq!(commits(&open(&dir.0).unwrap()), (0..20).collect::<Vec<u64>>());
}

#[test]
fn a_tear_in_what_was_not_synced_is_taken_for_one() {
    let kept = Dir::new("torn");
    let before = of_twenty_changes(&kept.0);
    let path = log_of(&kept.0);
    let whole = fs::read(&path).unwrap();
    let name = path.file_name().unwrap();
    // The process, or the power, ended in the write of this change, so that nobody was told of it.
    for number in [15, 19] {
        let (length, ref synced) = before[number];
        let (start, end) =
            (length as usize, before.get(number + 1).map_or(whole.len(), |(length, _)| *length as usize));
        for torn in [start, start + 1, start + HEADER, start + HEADER + 1, end - 1] {
            for zeros in [0, 1, 4_096, 100_000] {
                let dir = Dir::new("torn-copy");
                for file in fs::read_dir(&kept.0).unwrap() {
                    let file = file.unwrap();
                    fs::copy(file.path(), dir.0.join(file.file_name())).unwrap();
                }
                let log = [&whole[..torn], &vec![0; zeros]].concat();
                durable::write(&dir.0.join(name), &log, 0o600).unwrap();
                durable::write(&dir.0.join(synced::FILE), synced, 0o600).unwrap();
                let store = open(&dir.0).unwrap_or_else(|why| panic!("change {number}, {torn}, {zeros}: {why:?}"));
                assert_eq!(commits(&store), (0..number as u64).collect::<Vec<u64>>());
            }
        }
    }
}

#[test]
fn how_far_the_store_was_synced_is_never_ahead_of_it_and_is_itself_held_against_damage() {
    let dir = Dir::new("synced");
    let number = || synced::read(&dir.0).unwrap().unwrap();
    assert!(synced::read(&dir.0).unwrap().is_none());
    for _ in 0..3 {
        let store = open(&dir.0).unwrap();
        assert_eq!(number(), store.db.latest_sequence_number());
        store.commit_one(Family::Meta, "term", &7_u64.to_be_bytes()).unwrap();
        assert_eq!(number(), store.db.latest_sequence_number());
        // What is not written is not counted.
        let counted = number();
        store.synced.note(|| counted - 1).unwrap();
        assert_eq!(number(), counted);
    }
    let path = dir.0.join(synced::FILE);
    for (at, bit) in [(0, 0), (7, 0), (8, 7), (15, 3)] {
        flip(&path, at, bit);
        assert!(open(&dir.0).is_err_and(|why| why.is_damaged()));
        flip(&path, at, bit);
    }
    // The database is gone, and the number says that there was one.
    let current = dir.0.join("CURRENT");
    let text = fs::read(&current).unwrap();
    fs::remove_file(&current).unwrap();
    assert!(matches!(open(&dir.0), Err(StoreError::Lost(1..))));
    durable::write(&current, &text, 0o600).unwrap();
    // An older program wrote none.
    fs::remove_file(&path).unwrap();
    drop(open(&dir.0).unwrap());
    assert!(number() > 0);
}

#[test]
fn two_that_write_at_one_time_leave_the_greater_number() {
    let dir = Dir::new("two");
    let store = open(&dir.0).unwrap();
    std::thread::scope(|scope| {
        for who in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..25 {
                    store.commit_one(Family::Commits, (who * 100 + n).to_be_bytes(), b"x").unwrap();
                }
            });
        }
    });
    assert_eq!(synced::read(&dir.0).unwrap(), Some(store.db.latest_sequence_number()));
}
