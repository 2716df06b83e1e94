//! The spool's promises, held against every crash: each prefix of what was written, with what was not synced kept, dropped
//! or torn; and that no sync can be left out.

use std::collections::BTreeMap;

use custody::{
    batch::{encode_signed, seal_header},
    id::{GatewayId, HeaderHash, KeyId, WorkspaceId},
    wire::DropReason,
};

use super::*;
use crate::{
    batcher::{self, Pending, Place, Saying},
    durable::recorder::{ALL_UNSYNCED, Fault, Ignored, Op, Recorder, after_power_failure},
    key::Name,
};

const LIMITS: Limits = Limits { bytes_max: 1 << 20, file_bytes_max: 2_000, reserve_bytes: 20_000 };

/// What the spool has promised so far, and must keep through any crash from then on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Promises {
    /// Records, by number; each is pending or in a batch that is held or was archived.
    records: u64,
    intents: Vec<u64>,
    batches: BTreeMap<u64, Bytes>,
    head: Bytes,
    statements: usize,
}

struct Bench {
    disk: Recorder,
    spool: Spool,
    promises: Promises,
    /// Number of operations on the disk, and what was promised by then.
    kept: Vec<(usize, Promises)>,
    key: ed25519_dalek::SigningKey,
}

fn opener() -> Opener {
    let who = Name { origin: "o".into(), workspace: WorkspaceId([3; 16]), gateway: GatewayId([4; 16]) };
    Opener { who, key_id: KeyId([2; 32]), old_key_lost: false }
}

fn opened(disk: Box<dyn Disk>) -> Result<Spool, SpoolError> {
    Spool::open(disk, LIMITS, &opener())
}

fn record_bytes(number: u64) -> Bytes {
    Bytes::from(format!("record number {number}, padded {}", "x".repeat(200)))
}

impl Bench {
    fn new(ignored: Option<Ignored>) -> Self {
        let disk = Recorder::default();
        if let Some(ignored) = ignored {
            disk.ignore(ignored);
        }
        let mut spool = opened(Box::new(disk.clone())).unwrap();
        let place = Place::opening(Epoch([1; 16]), KeyId([2; 32]), HeaderHash([3; 32]), None);
        spool.turn(|state| state.open(place, Pending { number: 0, bytes: record_bytes(0) })).unwrap();
        let key = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
        let promises = Promises { records: 1, ..Promises::default() };
        let mut bench = Self { disk, spool, promises, kept: Vec::new(), key };
        bench.promise();
        bench
    }

    /// What was written and synced counts from here on.
    fn promise(&mut self) {
        self.kept.push((self.disk.count(|_| true), self.promises.clone()));
    }

    fn sync(&mut self) {
        self.spool.sync().unwrap();
        self.promise();
    }

    fn record(&mut self, call: Option<u64>) {
        let number = self.spool.state().next_number;
        let recorded = Recorded { number, record: record_bytes(number), call, ships_intent: false };
        self.spool.append_new(Entry::Recorded(recorded)).unwrap();
        self.promises.records = number + 1;
        self.promises.intents.retain(|intent| Some(*intent) != call);
    }

    fn intent(&mut self, call: u64) {
        let intent = Intent { call, bytes: Bytes::from_static(b"call"), shipped: false };
        self.spool.append_new(Entry::Intent(intent)).unwrap();
        self.promises.intents.push(call);
    }

    fn sign(&mut self) {
        let place = self.spool.state().place.clone().unwrap();
        let records: Vec<Bytes> = self.spool.state().pending.iter().map(|record| record.bytes.clone()).collect();
        let who = opener().who;
        let saying =
            Saying { last_head: Bytes::new(), drop_reason: DropReason::SpoolFull, close: false, created_at: 1 };
        let mut header = batcher::header(&who, &place, place.next_record, records.len(), saying);
        seal_header(&mut header, &[0; 32], &records);
        let batch = Bytes::from(encode_signed(&header.encode(), &self.key, &[0; 32], &records));
        self.promises.batches.insert(self.spool.state().next_order, batch.clone());
        self.spool.append(Entry::Batch(batch)).unwrap();
    }

    fn receipt(&mut self, orders: &[u64], segment: u64) {
        let head = Bytes::from(format!("head {orders:?}"));
        let received = orders.iter().map(|order| Received { order: *order, segment }).collect();
        self.spool.append(Entry::Receipts(Receipts { head: head.clone(), received })).unwrap();
        self.promises.head = head;
    }

    fn archive(&mut self, segment: u64, orders: &[u64]) {
        for order in orders {
            self.promises.batches.remove(order);
        }
        self.promise();
        self.spool.append(Entry::Archived(segment)).unwrap();
    }

    fn statement(&mut self) {
        self.spool.keep_statement(Bytes::from_static(b"statement")).unwrap();
        self.promises.statements += 1;
        self.promise();
    }

    /// A life with everything in it, over several files.
    fn live(mut self) -> Self {
        self.statement();
        for round in 0..6 {
            self.intent(100 + round);
            self.record(None);
            self.sync();
            self.record(Some(100 + round));
            self.sign();
            self.sync();
            self.intent(200 + round);
            self.record(None);
            self.sign();
            self.sync();
            self.receipt(&[2 * round, 2 * round + 1], round);
            self.sync();
            if round % 2 == 1 {
                // One receipt for two segments.
                self.archive(round, &[2 * round - 2, 2 * round - 1, 2 * round, 2 * round + 1]);
                self.sync();
            }
        }
        self.statement();
        self.record(None);
        self.intent(300);
        self.sync();
        self
    }

    /// Every crash of this life, and what of the promises made before it did not hold.
    fn broken_promises(&self) -> Vec<String> {
        let ops = self.disk.ops();
        let mut broken = Vec::new();
        for at in 0..=ops.len() {
            let Some((_, promises)) = self.kept.iter().rev().find(|(made, _)| *made <= at) else { continue };
            for unsynced in ALL_UNSYNCED {
                let files = after_power_failure(&BTreeMap::new(), &ops[..at], unsynced);
                if let Err(why) = holds(promises, files) {
                    broken.push(format!("after {at} operations, {unsynced:?}: {why}"));
                }
            }
        }
        broken
    }
}

/// Opens what a crash left, and again after a second crash right behind.
fn holds(promises: &Promises, files: BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let disk = Recorder::with(files);
    for _ in 0..2 {
        let mut spool = opened(Box::new(disk.clone())).map_err(|error| error.to_string())?;
        let state = spool.state();
        if state.next_number < promises.records {
            return Err(format!("record {} is gone", state.next_number));
        }
        let next_record = state.place.as_ref().map_or(0, |place| place.next_record);
        let pending = state.pending.iter().enumerate();
        for (at, record) in pending {
            if record.number != next_record + at as u64 || record.bytes != record_bytes(record.number) {
                return Err(format!("pending record {} is another", record.number));
            }
        }
        if next_record + (state.pending.len() as u64) != state.next_number {
            return Err("a record between is gone".into());
        }
        // An intent may be gone only because its call's record came through.
        let ended = state.next_number > promises.records;
        if let Some(gone) = promises.intents.iter().find(|call| !state.intents.contains_key(call) && !ended) {
            return Err(format!("intent {gone} is gone"));
        }
        let held: BTreeMap<u64, Bytes> =
            spool.fetch(0, false, usize::MAX, usize::MAX).map_err(|error| error.to_string())?.into_iter().collect();
        for (order, batch) in &promises.batches {
            match held.get(order) {
                Some(kept) if kept == batch => {}
                Some(_) => return Err(format!("batch {order} is another")),
                None => return Err(format!("batch {order} is gone")),
            }
        }
        if spool.state().last_head.len() < promises.head.len() {
            return Err("the head is gone".into());
        }
        if spool.statements().len() < promises.statements {
            return Err("a statement is gone".into());
        }
        spool.turn(|_| {}).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[test]
fn every_promise_holds_through_every_crash() {
    let bench = Bench::new(None).live();
    assert!(bench.disk.ops().iter().any(|op| matches!(op, Op::Remove(_))), "files of archived batches go");
    assert!(bench.disk.ops().iter().filter(|op| matches!(op, Op::Create(_))).count() > 4, "several files");
    let broken = bench.broken_promises();
    assert!(broken.is_empty(), "{} broken promises: {:#?}", broken.len(), &broken[..broken.len().min(5)]);
}

fn is_spool(name: &str) -> bool {
    number(name).is_some()
}

/// Each kind of sync, left out alone, breaks a promise.
#[test]
fn no_sync_can_be_left_out() {
    fn first_of_file(before: &[Op], name: &str) -> bool {
        !before.iter().any(|op| matches!(op, Op::Sync(synced) if synced == name))
    }
    let kinds: [(&str, Ignored); 4] = [
        ("of a group", |before, op| matches!(op, Op::Sync(name) if is_spool(name) && !first_of_file(before, name))),
        ("of a snapshot", |before, op| {
            matches!(op, Op::Sync(name) if is_spool(name) && first_of_file(before, name)
                && matches!(before.last(), Some(Op::Append(last, _)) if last == name))
        }),
        ("of the folder", |before, op| {
            *op == Op::SyncDir && before.iter().any(|op| matches!(op, Op::Create(name) if is_spool(name)))
        }),
        ("of a statement", |_, op| matches!(op, Op::Sync(name) if name == STATEMENTS)),
    ];
    for (name, ignored) in kinds {
        let broken = Bench::new(Some(ignored)).live().broken_promises();
        assert!(!broken.is_empty(), "the sync {name} is not needed by any test");
    }
}

/// The last file, cut at every byte: what is whole before the cut is there.
#[test]
fn a_torn_file_is_read_up_to_the_tear() {
    let bench = Bench::new(None).live();
    let files = bench.disk.files();
    let last = files.keys().rfind(|name| is_spool(name)).unwrap().clone();
    let whole = opened(Box::new(Recorder::with(files.clone()))).unwrap().state().next_number;
    let mut numbers = Vec::new();
    for cut in 0..files[&last].len() {
        let mut torn = files.clone();
        torn.get_mut(&last).unwrap().truncate(cut);
        // A file whose snapshot is torn never counted: here the files before it are gone already, or hold it all.
        if let Ok(spool) = opened(Box::new(Recorder::with(torn))) {
            numbers.push(spool.state().next_number);
        }
    }
    numbers.push(whole);
    assert!(numbers.is_sorted(), "less is lost the later the cut: {numbers:?}");
}

#[test]
fn a_changed_byte_in_a_whole_file_is_damage_or_a_tear_and_never_believed() {
    let bench = Bench::new(None).live();
    let files = bench.disk.files();
    let good = opened(Box::new(Recorder::with(files.clone()))).unwrap();
    let batches: BTreeMap<u64, Bytes> = good.fetch(0, false, usize::MAX, usize::MAX).unwrap().into_iter().collect();
    for (name, bytes) in files.iter().filter(|(name, _)| is_spool(name)) {
        for at in 0..bytes.len() {
            let mut changed = files.clone();
            changed.get_mut(name).unwrap()[at] ^= 0x40;
            let Ok(spool) = opened(Box::new(Recorder::with(changed))) else { continue };
            for (order, batch) in spool.fetch(0, false, usize::MAX, usize::MAX).unwrap() {
                assert_eq!(batches.get(&order).unwrap_or(&batch), &batch, "{name} byte {at}");
            }
        }
    }
}

impl Bench {
    /// Nothing more fits on the disk; the reserve is there.
    fn fill(&self) {
        let used: usize = self.disk.files().values().map(Vec::len).sum();
        self.disk.limit(Some(used));
    }

    /// Whether a new record is refused, for want of space and nothing else.
    fn refuses(&mut self) -> bool {
        let number = self.spool.state().next_number;
        let recorded = Recorded { number, record: record_bytes(number), call: None, ships_intent: false };
        matches!(self.spool.append_new(Entry::Recorded(recorded)), Err(SpoolError::Full))
    }
}

/// What is there is signed, received and archived on a full disk, and that makes the room for new records: nobody else has
/// to. All of that holds through every crash.
#[test]
fn a_full_disk_stops_new_records_and_nothing_else() {
    let mut bench = Bench::new(None);
    for _ in 0..3 {
        bench.record(None);
        bench.sign();
        bench.sync();
    }
    bench.record(None);
    bench.intent(7);
    bench.sync();
    bench.fill();
    assert!(bench.refuses() && bench.spool.has_room(1), "a new record took the reserve");
    bench.sign();
    bench.sync();
    assert!(bench.refuses() && !bench.spool.has_room(1), "a new record took what the reserve gave");
    bench.statement();
    bench.receipt(&[0, 1, 2, 3], 0);
    bench.sync();
    bench.spool.turn(|_| {}).unwrap();
    bench.promise();
    bench.spool.restore_reserve().unwrap();
    assert!(bench.refuses(), "there is no room for the reserve yet");
    bench.archive(0, &[0, 1, 2, 3]);
    bench.sync();
    bench.spool.restore_reserve().unwrap();
    assert!(bench.spool.has_room(1), "what was archived made no room");
    bench.record(Some(7));
    bench.sync();
    let broken = bench.broken_promises();
    assert!(broken.is_empty(), "{} broken promises: {:#?}", broken.len(), &broken[..broken.len().min(5)]);
}

/// A small file grows by what is owed: it goes, too, once all in it is archived.
#[test]
fn a_file_that_grows_on_a_full_disk_makes_room_once_its_batches_are_archived() {
    let mut bench = Bench::new(None);
    bench.fill();
    for order in 0..9 {
        bench.sign();
        bench.sync();
        bench.receipt(&[order], order);
        bench.sync();
    }
    bench.spool.restore_reserve().unwrap();
    assert!(bench.refuses());
    bench.archive(8, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    bench.sync();
    bench.spool.restore_reserve().unwrap();
    assert!(bench.spool.has_room(1));
}

/// What comes once the disk is full, heartbeats of a day perhaps, does not hold the file with all that came before.
#[test]
fn what_was_there_when_the_disk_became_full_makes_room_alone() {
    let mut bench = Bench::new(None);
    bench.sign();
    bench.sync();
    bench.fill();
    let before = bench.disk.files();
    let file = before.keys().find(|name| is_spool(name)).unwrap();
    bench.receipt(&[0], 0);
    bench.sync();
    bench.sign();
    bench.sync();
    assert!(bench.disk.files().contains_key(file), "it holds a batch that is not archived");
    bench.archive(0, &[0]);
    bench.sync();
    assert!(!bench.disk.files().contains_key(file), "what came later keeps it");
}

#[test]
fn a_start_on_a_full_disk_takes_the_reserve() {
    let mut bench = Bench::new(None);
    bench.record(None);
    bench.sync();
    bench.fill();
    let mut spool = opened(Box::new(bench.disk.clone())).unwrap();
    spool.turn(|_| {}).unwrap();
    assert_eq!(spool.state().next_number, 2);
    assert!(!spool.has_room(1));
    // The next one finds neither reserve nor room.
    bench.disk.limit(Some(0));
    let mut spool = opened(Box::new(bench.disk.clone())).unwrap();
    assert!(matches!(spool.turn(|_| {}), Err(SpoolError::Full)));
}

/// A reserve that a crash cut short, or whose bytes found no room when they were synced, would be a promise on nothing.
#[test]
fn a_reserve_counts_only_whole_and_synced() {
    let of_reserve = |op: &Op| matches!(op, Op::Sync(name) if name == reserve::NAME);
    let disk = Recorder::default();
    disk.fail(Fault { at: of_reserve, kind: io::ErrorKind::QuotaExceeded, stored: false });
    let mut spool = opened(Box::new(disk.clone())).unwrap();
    assert!(disk.has_failed() && !spool.has_room(1) && !disk.files().contains_key(reserve::NAME));
    spool.restore_reserve().unwrap();
    assert!(spool.has_room(1));
    let short = BTreeMap::from([(reserve::NAME.to_owned(), vec![0; 9])]);
    let disk = Recorder::with(short);
    assert!(opened(Box::new(disk.clone())).unwrap().has_room(1));
    assert_eq!(disk.files()[reserve::NAME].len() as u64, LIMITS.reserve_bytes);
}

/// Also when all of it is there although the write failed: no crash brings it back in the place of what comes after.
#[test]
fn a_new_file_that_finds_the_disk_full_changes_nothing() {
    for stored in [false, true] {
        let mut bench = Bench::new(None);
        bench.record(None);
        bench.sync();
        let before = bench.spool.state().snapshot();
        // The second is the same write again, without the reserve.
        for _ in 0..2 {
            bench.disk.fail(Fault { at: |op| matches!(op, Op::Append(..)), kind: io::ErrorKind::StorageFull, stored });
        }
        let place = Place::opening(Epoch([7; 16]), KeyId([2; 32]), HeaderHash([3; 32]), None);
        let opened = Pending { number: 0, bytes: record_bytes(0) };
        assert!(matches!(bench.spool.turn(|state| state.open(place, opened)), Err(SpoolError::Full)));
        assert_eq!(bench.spool.state().snapshot(), before);
        bench.spool.restore_reserve().unwrap();
        bench.record(None);
        bench.sync();
        for unsynced in ALL_UNSYNCED {
            let left = after_power_failure(&BTreeMap::new(), &bench.disk.ops(), unsynced);
            holds(&bench.promises, left).unwrap_or_else(|why| panic!("stored: {stored}, {unsynced:?}: {why}"));
        }
    }
}

#[test]
fn what_was_durable_and_is_damaged_is_never_taken_for_what_a_crash_tore() {
    let mut bench = Bench::new(None);
    bench.spool.keep_statement(Bytes::from_static(b"statement")).unwrap();
    // All in one file.
    for _ in 0..3 {
        bench.record(None);
        bench.sync();
    }
    let acknowledged = bench.spool.length;
    bench.record(None);
    bench.sync();
    let (name, files) = (name(bench.spool.file), bench.disk.files());
    assert_eq!(files.keys().filter(|name| number(name).is_some()).count(), 1);
    let open = |files| opened(Box::new(Recorder::with(files))).map(drop);
    assert!(open(files.clone()).is_ok());
    for at in 0..usize::try_from(acknowledged).unwrap() {
        let mut files = files.clone();
        files.get_mut(&name).unwrap()[at] ^= 0x10;
        assert!(matches!(open(files), Err(SpoolError::Damaged(_))), "byte {at} of {acknowledged}");
    }
    // Nor does it begin anew when the whole journal is gone.
    let mut without = files;
    without.remove(&name);
    assert!(matches!(open(without), Err(SpoolError::Damaged(_))));
}

#[test]
fn a_full_spool_lets_go_of_what_the_ledger_has_and_of_nothing_else() {
    let mut bench = Bench::new(None);
    let mut round = 0;
    while bench.spool.has_room(300) {
        bench.record(None);
        bench.sign();
        bench.sync();
        if round < 900 {
            bench.receipt(&[round], 0);
            bench.sync();
        }
        round += 1;
    }
    let first_without = round.min(900);
    assert!(bench.spool.bytes() > LIMITS.bytes_max / 2);
    assert!(bench.spool.make_room(300).unwrap() > 0);
    let state = bench.spool.state();
    assert!(state.held.len() < usize::try_from(round).unwrap());
    assert!((first_without..round).all(|order| state.held.contains_key(&order)), "what has no receipt is kept");
    // Without receipts there is nothing to let go of.
    let mut bench = Bench::new(None);
    while bench.spool.has_room(300) {
        bench.record(None);
        bench.sign();
        bench.sync();
    }
    assert!(matches!(bench.spool.make_room(300), Err(SpoolError::Full)));
    assert_eq!(bench.spool.fetch(0, true, usize::MAX, usize::MAX).unwrap().len(), bench.promises.batches.len());
}

#[test]
fn a_failed_sync_answers_nobody() {
    let mut bench = Bench::new(None);
    bench.record(None);
    bench.disk.fail(Fault { at: |op| matches!(op, Op::Sync(_)), kind: io::ErrorKind::Other, stored: false });
    assert!(matches!(bench.spool.sync(), Err(SpoolError::Disk(_))));
}
