//! Rows for those who ask questions: which calls run, and counts by the minute and by the hour. All of them follow from the
//! records, and are written with the batch that they follow from.
//!
//! What must hold: an intent stands for its call until a later record ends it, as [`CallPart`] says. Counts are sums of what stands:
//! what ends an intent takes it out of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    batch::Submitted,
    id::{Epoch, GatewayId, WorkspaceId},
    query::CallPart,
    record::{self, RecordKind},
    segment::{Content, Entry},
    wire::{Decision, LeafKind, Phase},
};
use prost::Message as _;

use super::{Change, Family, LeafPlace, Store, StoreError, as_number, leaf_key};

/// Bits of a rank that number a record in its batch: a batch has at most 4,096.
const RANK_BITS: u32 = 12;
/// Changes of one step of the migration: some megabytes.
const MIGRATED_AT_ONCE: u64 = 1_024;

/// A record's place in the order of commits: the commit index of its batch, and its index there. Signed nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub u64);

impl Rank {
    /// Of a record in a batch.
    pub fn new(commit_index: u64, index: u32) -> Self {
        Self(commit_index << RANK_BITS | u64::from(index))
    }

    /// The first of a batch.
    pub fn first_of(commit_index: u64) -> Self {
        Self::new(commit_index, 0)
    }

    /// The batch's commit index.
    pub fn commit_index(self) -> u64 {
        self.0 >> RANK_BITS
    }

    /// 0-based index in the batch.
    pub fn index(self) -> usize {
        usize::try_from(self.0 & ((1 << RANK_BITS) - 1)).unwrap_or(usize::MAX)
    }

    /// As a key or value.
    pub fn encode(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// From a key or value.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        as_number(bytes).map(Self)
    }
}

/// What is counted apart: kind, and of a call decision and outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell(u16);

/// From here on cells are of other kinds than calls; outcomes have numbers up to 31.
const OTHER_KINDS: u16 = 64;

impl Cell {
    fn call(outcome: i32, denied: bool) -> Self {
        Self(u16::try_from(outcome & 31).unwrap_or_default() << 1 | u16::from(denied))
    }

    /// Of a call that runs.
    pub fn running(denied: bool) -> Self {
        Self::call(custody::wire::Outcome::Running as i32, denied)
    }

    fn other(kind: RecordKind, denied: bool) -> Self {
        Self(OTHER_KINDS + (u16::from(kind as u8) << 1 | u16::from(denied)))
    }

    /// Kind, whether it was denied, and of a call the number of its outcome.
    pub fn parts(self) -> Option<(RecordKind, bool, i32)> {
        let denied = self.0 & 1 == 1;
        if self.0 < OTHER_KINDS {
            return Some((RecordKind::Call, denied, i32::from(self.0 >> 1)));
        }
        let tag = (self.0 - OTHER_KINDS) >> 1;
        let kind = RecordKind::ALL.into_iter().find(|kind| u16::from(*kind as u8) == tag)?;
        Some((kind, denied, 0))
    }
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells(BTreeMap<Cell, i64>);

impl Cells {
    fn add(&mut self, cell: Cell, count: i64) {
        let sum = self.0.entry(cell).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Adds what is encoded.
    pub fn take(&mut self, encoded: &[u8]) {
        for chunk in encoded.chunks_exact(10) {
            let (cell, count) = chunk.split_at(2);
            if let (Ok(cell), Ok(count)) = (cell.try_into(), count.try_into()) {
                self.add(Cell(u16::from_be_bytes(cell)), i64::from_be_bytes(count));
            }
        }
    }

    /// As a value: 2 bytes of cell and 8 of count each; none that is zero.
    pub fn encode(&self) -> Vec<u8> {
        let counted = self.0.iter().filter(|(_, count)| **count != 0);
        counted.flat_map(|(cell, count)| cell.0.to_be_bytes().into_iter().chain(count.to_be_bytes())).collect()
    }

    /// What stands, by cell.
    pub fn counts(&self) -> impl Iterator<Item = (Cell, u64)> {
        self.0.iter().filter_map(|(cell, count)| Some((*cell, u64::try_from(*count).ok().filter(|count| *count > 0)?)))
    }
}

/// A span of time in which records of one workspace are counted, by their own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rollup {
    /// Whose records.
    pub workspace: WorkspaceId,
    /// Microseconds: [`Self::MINUTE`] or [`Self::HOUR`].
    pub width: u64,
    /// Microseconds since the Unix epoch, a multiple of the width.
    pub start: u64,
}

impl Rollup {
    /// Microseconds of a minute.
    pub const MINUTE: u64 = 60_000_000;
    /// Microseconds of an hour.
    pub const HOUR: u64 = 60 * Self::MINUTE;

    fn at(workspace: WorkspaceId, width: u64, at: u64) -> Self {
        Self { workspace, width, start: at - at % width }
    }

    /// As a key.
    pub fn encode(&self) -> [u8; 25] {
        let mut key = [0; 25];
        key[..16].copy_from_slice(&self.workspace.0);
        key[16] = u8::from(self.width == Self::HOUR);
        key[17..].copy_from_slice(&self.start.to_be_bytes());
        key
    }
}

/// A call that runs, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its intent.
    pub rank: Rank,
    started_at: u64,
    denied: bool,
}

impl Running {
    fn encode(&self) -> Vec<u8> {
        [&self.rank.encode()[..], &self.started_at.to_be_bytes(), &[u8::from(self.denied)]].concat()
    }

    /// From a value.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let part = |range| value.get(range).ok_or(StoreError::Damaged("a running call"));
        let denied = part(16..17)? == [1];
        Ok(Self { rank: Rank::decode(part(0..8)?)?, started_at: as_number(part(8..16)?)?, denied })
    }
}

/// Key of a call, up to where the epoch follows: a call may end in another epoch than it began in.
fn call_prefix(workspace: WorkspaceId, gateway: GatewayId, call: u64) -> Vec<u8> {
    [&workspace.0[..], &gateway.0, &call.to_be_bytes()].concat()
}

/// Calls of this number that stand, by their keys: those of the store, and what the same write did to them.
fn standing(store: &Store, prefix: &[u8], halves: &Halves) -> Result<BTreeMap<Vec<u8>, Running>, StoreError> {
    let mut found = BTreeMap::new();
    for step in store.scan(Family::Intents, prefix, &[]) {
        let (key, value) = step?;
        found.insert(key.to_vec(), Running::decode(&value)?);
    }
    for (key, running) in halves.known.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix)) {
        match running {
            Some(running) => drop(found.insert(key.clone(), *running)),
            None => drop(found.remove(key)),
        }
    }
    Ok(found)
}

/// The fields of a call that are counted.
#[derive(Clone, PartialEq, prost::Message)]
struct CallBrief {
    #[prost(uint64, tag = "1")]
    call_number: u64,
    #[prost(enumeration = "Phase", tag = "2")]
    phase: i32,
    #[prost(enumeration = "Decision", tag = "18")]
    decision: i32,
    #[prost(uint64, tag = "22")]
    started_at: u64,
    #[prost(int32, tag = "24")]
    outcome: i32,
}

/// The fields of any other record that are counted.
#[derive(Clone, PartialEq, prost::Message)]
struct OtherBrief {
    #[prost(uint64, tag = "1")]
    at: u64,
    #[prost(enumeration = "Decision", tag = "3")]
    decision: i32,
}

/// A record that begins a call or ends one, apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    index: u32,
    call: u64,
    started_at: u64,
    denied: bool,
    begins: bool,
}

/// What the rows of a batch follow from: made before it waits for the writer, whose time is everybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    counts: BTreeMap<u64, Cells>,
    halves: Vec<Half>,
}

impl Notes {
    /// Of records that were checked.
    pub fn of(records: &[Bytes]) -> Self {
        let mut notes = Self::default();
        for (index, bytes) in (0..).zip(records) {
            notes.take(index, bytes);
        }
        notes
    }

    fn take(&mut self, index: u32, bytes: &Bytes) -> Option<()> {
        let kind = record::kind(bytes)?;
        // Two bytes of version and the tag of the oneof, then the length and the message of its kind.
        let mut inner = bytes.get(3..)?;
        prost::encoding::decode_varint(&mut inner).ok()?;
        let (at, cell) = if kind == RecordKind::Call {
            let call = CallBrief::decode(inner).ok()?;
            let denied = call.decision() == Decision::Denied;
            let cell = Cell::call(call.outcome, denied);
            if call.phase() != Phase::Complete {
                let begins = call.phase() == Phase::Intent;
                let (call, started_at) = (call.call_number, call.started_at);
                self.halves.push(Half { index, call, started_at, denied, begins });
            }
            (call.started_at, cell)
        } else {
            let other = match kind {
                RecordKind::Search => OtherBrief::decode(inner).ok()?,
                _ => OtherBrief { at: first_number(inner)?, decision: 0 },
            };
            (other.at, Cell::other(kind, other.decision() == Decision::Denied))
        };
        self.counts.entry(at - at % Rollup::MINUTE).or_default().add(cell, 1);
        Some(())
    }
}

/// The number under tag 1, which is the time of every kind but a call.
fn first_number(mut bytes: &[u8]) -> Option<u64> {
    match prost::encoding::decode_varint(&mut bytes).ok()? {
        8 => prost::encoding::decode_varint(&mut bytes).ok(),
        _ => Some(0),
    }
}

/// What one write does to the calls that run.
#[derive(Debug, Default)]
pub struct Halves {
    /// By their keys: what runs, of what is not in the database yet; `None`: ended there.
    known: BTreeMap<Vec<u8>, Option<Running>>,
    /// Intents that stand from now on.
    pub begun: Vec<Rank>,
    /// Intents that stand no longer; some of them may be among those begun.
    pub ended: Vec<Rank>,
}

/// Puts what follows from a batch into its write.
///
/// # Errors
/// [`StoreError`] of a look at the calls that run.
pub fn call_rows(
    store: &Store,
    change: &mut Change<'_>,
    batch: &Submitted,
    (commit_index, notes): (u64, &Notes),
    halves: &mut Halves,
) -> Result<(), StoreError> {
    let header = &batch.header;
    let mut counts = notes.counts.clone();
    for half in &notes.halves {
        let rank = Rank::new(commit_index, half.index);
        let prefix = call_prefix(header.workspace, header.gateway, half.call);
        let phase = if half.begins { Phase::Intent } else { Phase::Outcome };
        let part = CallPart { epoch: header.epoch, started_at: half.started_at, phase };
        for (key, running) in standing(store, &prefix, halves)? {
            let epoch = Epoch::try_from(key.get(prefix.len()..).unwrap_or_default());
            let epoch = epoch.map_err(|_| StoreError::Damaged("a running call"))?;
            let intent = CallPart { epoch, started_at: running.started_at, phase: Phase::Intent };
            if !intent.is_ended_by(&part) {
                continue;
            }
            change.delete(Family::Intents, &key);
            halves.known.insert(key, None);
            change.delete(Family::Running, running.rank.encode());
            change.put(Family::Ended, [rank.encode(), running.rank.encode()].concat(), []);
            halves.ended.push(running.rank);
            let minute = running.started_at - running.started_at % Rollup::MINUTE;
            counts.entry(minute).or_default().add(Cell::running(running.denied), -1);
        }
        if half.begins {
            let (key, running) = (
                [&prefix[..], &header.epoch.0].concat(),
                Running { rank, started_at: half.started_at, denied: half.denied },
            );
            change.put(Family::Intents, &key, running.encode());
            change.put(Family::Running, rank.encode(), &key);
            halves.begun.push(rank);
            halves.known.insert(key, Some(running));
        }
    }
    add_counts(change, header.workspace, &counts);
    Ok(())
}

fn add_counts(change: &mut Change<'_>, workspace: WorkspaceId, minutes: &BTreeMap<u64, Cells>) {
    let mut hours: BTreeMap<u64, Cells> = BTreeMap::new();
    for (minute, cells) in minutes {
        change.add(&Rollup::at(workspace, Rollup::MINUTE, *minute), cells);
        hours.entry(minute - minute % Rollup::HOUR).or_default().take(&cells.encode());
    }
    for (hour, cells) in &hours {
        change.add(&Rollup::at(workspace, Rollup::HOUR, *hour), cells);
    }
}

/// Takes the records of a batch out of the counts. Not its intents: one that has ended is in none any more, and one that has not
/// stays until it ends, as the writer has it, who alone knows when.
pub fn take_back(change: &mut Change<'_>, workspace: WorkspaceId, notes: &Notes) {
    let mut counts: BTreeMap<u64, Cells> = BTreeMap::new();
    for (minute, cells) in &notes.counts {
        let back = counts.entry(*minute).or_default();
        cells.0.iter().for_each(|(cell, count)| back.add(*cell, count.saturating_neg()));
    }
    for half in notes.halves.iter().filter(|half| half.begins) {
        let minute = half.started_at - half.started_at % Rollup::MINUTE;
        counts.entry(minute).or_default().add(Cell::running(half.denied), 1);
    }
    add_counts(change, workspace, &counts);
}

impl Store {
    /// Counts of a workspace in spans of this width that begin from `from` on, up to `to`, which is not among them.
    ///
    /// # Errors
    /// Each step may fail with [`StoreError`].
    pub fn rollups(
        &self,
        (workspace, width): (WorkspaceId, u64),
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Result<(u64, Cells), StoreError>> {
        let first = Rollup { workspace, width, start: from }.encode();
        let (prefix, start) = first.split_at(17);
        let steps = self.scan(Family::Rollups, prefix, start).map(|step| {
            let (key, value) = step?;
            let start = as_number(key.get(17..).unwrap_or_default())?;
            let mut cells = Cells::default();
            cells.take(&value);
            Ok((start, cells))
        });
        steps.take_while(move |step| step.as_ref().map_or(true, |(start, _)| *start < to))
    }

    /// Key of the leaf that was committed under an index.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn committed(&self, commit_index: u64) -> Result<Option<Entry>, StoreError> {
        let Some(key) = self.value(Family::Commits, commit_index.to_be_bytes())? else { return Ok(None) };
        let Some(bytes) = self.value(Family::Entries, &key)? else { return Ok(None) };
        Entry::parse(bytes).map(Some).map_err(|_| StoreError::Damaged("a leaf"))
    }

    /// The next position of a workspace.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_position(&self, workspace: WorkspaceId) -> Result<u64, StoreError> {
        let Some((key, place)) = self.last(Family::Positions, &workspace.0)? else { return Ok(0) };
        let (first, place) = (as_number(key.get(16..).unwrap_or_default())?, LeafPlace::decode(&place)?);
        let bytes = self.value(Family::Entries, leaf_key(workspace, place.segment, place.leaf))?;
        let entry = bytes.map(Entry::parse).transpose().map_err(|_| StoreError::Damaged("a leaf"))?;
        Ok(first + entry.map_or(0, |entry| entry.records()))
    }

    /// The leaf in which a position is, and where it stands.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn at_position(&self, workspace: WorkspaceId, position: u64) -> Result<Option<(LeafPlace, Entry)>, StoreError> {
        let Some((_, place)) = self.last_up_to(Family::Positions, &workspace.0, &position.to_be_bytes())? else {
            return Ok(None);
        };
        let place = LeafPlace::decode(&place)?;
        let Some(bytes) = self.value(Family::Entries, leaf_key(workspace, place.segment, place.leaf))? else {
            return Ok(None);
        };
        let entry = Entry::parse(bytes).map_err(|_| StoreError::Damaged("a leaf"))?;
        Ok((position < entry.leaf.first_position + entry.records()).then_some((place, entry)))
    }
}

/// Version 5 has the families for questions; what was committed before is taken through the same rule, from the first on.
pub(super) fn to_version_5(store: &Store) -> Result<(), StoreError> {
    // A migration that was interrupted begins again: counts are sums, so what it wrote goes first.
    let mut clear = store.change();
    for family in [Family::Intents, Family::Running, Family::Ended, Family::Rollups] {
        clear.delete_range(family, &[], &[0xff; 64]);
    }
    store.commit(clear)?;
    let mut commit_index = 0;
    loop {
        let (mut change, mut halves) = (store.change(), Halves::default());
        let end = commit_index + MIGRATED_AT_ONCE;
        let first = commit_index;
        while commit_index < end
            && let Some(entry) = store.committed(commit_index)?
        {
            if let (Content::Batch(batch), LeafKind::Batch) = (&entry.content, entry.leaf.kind) {
                let notes = Notes::of(&batch.records);
                call_rows(store, &mut change, batch, (commit_index, &notes), &mut halves)?;
            }
            commit_index += 1;
        }
        if commit_index == first {
            return Ok(());
        }
        store.commit(change)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_in_any_order() {
        let mut sum = Cells::default();
        let ok = Cell::call(custody::wire::Outcome::Ok as i32, false);
        let seen = Cell::other(RecordKind::ToolDefinition, false);
        sum.add(ok, 3);
        sum.add(seen, 1);
        let mut other = Cells::default();
        other.add(ok, -3);
        other.add(seen, 4);
        sum.take(&other.encode());
        assert_eq!(sum.counts().collect::<Vec<_>>(), [(seen, 5)]);
        assert_eq!(seen.parts(), Some((RecordKind::ToolDefinition, false, 0)));
        assert_eq!(ok.parts(), Some((RecordKind::Call, false, 1)));
    }
}
