//! What the frames of the spool say together, and how each changes it. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use custody::{
    batch::Submitted,
    id::{Epoch, HeaderHash, KeyId},
    record,
    wire::{DropReason, OpeningReason},
};

use super::{
    SpoolError,
    frame::{
        Entry, Intent, Range, Recorded, Snapshot,
        snapshot::{Owner, Standing},
    },
    name,
};
use crate::{
    batcher::{Pending, Place},
    key::Name,
};

/// A signed batch that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub(super) file: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number there.
    pub number: u64,
    /// Segment that has it, once a receipt has shown that.
    pub segment: Option<u64>,
}

/// All that the frames say.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whose it is; `None` for a spool of version 1 that holds no batch.
    pub(super) owner: Option<Name>,
    /// Where the gateway stands; `None` before its first epoch.
    pub place: Option<Place>,
    /// Records that are in no batch yet, by number.
    pub pending: VecDeque<Pending>,
    /// Number that the next record gets.
    pub next_number: u64,
    /// Why the newest missing numbers are missing.
    pub drop_reason: Option<DropReason>,
    /// Calls that have begun and not ended, by call number.
    pub intents: BTreeMap<u64, Intent>,
    /// The last signed head; empty for none.
    pub last_head: Bytes,
    /// Batches by the order in which they were signed, over all epochs.
    pub held: BTreeMap<u64, Held>,
    /// Order of the next batch.
    pub next_order: u64,
    /// Orders of the held batches without a receipt.
    pub unreceived: BTreeSet<u64>,
    by_name: HashMap<(Epoch, u64), u64>,
    /// Held batches of each file.
    pub(super) by_file: BTreeMap<u64, u64>,
    /// Bytes that the pending records will take in their batch.
    pub(super) pending_bytes: u64,
}

/// Of snapshots; each says what the one before it does, and more.
const VERSION: u32 = 2;
/// What a pending record costs in its batch besides its bytes, headers shared out.
pub(super) const PENDING_COST: u64 = 64;

impl State {
    /// Order of the batch of this name, if it is held.
    pub fn order_of(&self, epoch: Epoch, number: u64) -> Option<u64> {
        self.by_name.get(&(epoch, number)).copied()
    }

    /// Puts a new epoch, which begins with the record of its writer, in place of the one before, which has none pending.
    pub fn open(&mut self, place: Place, opened: Pending) {
        self.next_number = opened.number + 1;
        self.replace_pending(VecDeque::from([opened]));
        self.place = Some(place);
        self.drop_reason = None;
    }

    /// Puts a new epoch, which begins with the record of its writer, in place of one that nobody can end. What waits there for
    /// a signature gets numbers in the new one, from 1 on, with the gaps of what was dropped between.
    pub fn carry(&mut self, place: Place, opened: Pending) {
        let first = self.first_unsigned();
        let renumbered = |number: u64| number.saturating_sub(first) + 1;
        let waiting = self.pending.iter().filter(|record| record.number >= first);
        let waiting = waiting.map(|record| Pending { number: renumbered(record.number), bytes: record.bytes.clone() });
        self.replace_pending(std::iter::once(opened).chain(waiting).collect());
        self.next_number = renumbered(self.next_number);
        self.place = Some(place);
    }

    /// Number of the first record without a signature that is not the one of the writer; the next number, if there is none.
    pub fn first_unsigned(&self) -> u64 {
        let signed = self.place.as_ref().map_or(0, |place| place.next_record);
        let opens = self.pending.front().is_some_and(|record| record::opened(&record.bytes).is_some());
        signed + u64::from(opens)
    }

    fn release(&mut self, order: u64) {
        let Some(held) = self.held.remove(&order) else { return };
        self.by_name.remove(&(held.epoch, held.number));
        self.unreceived.remove(&order);
        if let Some(count) = self.by_file.get_mut(&held.file) {
            *count -= 1;
            if *count == 0 {
                self.by_file.remove(&held.file);
            }
        }
    }

    pub(super) fn hold(&mut self, order: u64, held: Held) {
        self.by_name.insert((held.epoch, held.number), order);
        *self.by_file.entry(held.file).or_default() += 1;
        if held.segment.is_none() {
            self.unreceived.insert(order);
        }
        self.held.insert(order, held);
    }

    fn replace_pending(&mut self, pending: VecDeque<Pending>) {
        self.pending_bytes = pending.iter().map(|record| record.bytes.len() as u64 + PENDING_COST).sum();
        self.pending = pending;
    }

    /// The one place where a frame takes effect.
    pub(super) fn apply(&mut self, entry: &Entry, at: (u64, u64, usize)) -> Result<(), SpoolError> {
        match entry {
            Entry::Snapshot(snapshot) => self.restore(snapshot)?,
            Entry::Recorded(recorded) => {
                self.pending_bytes += recorded.record.len() as u64 + PENDING_COST;
                self.pending.push_back(Pending { number: recorded.number, bytes: recorded.record.clone() });
                self.next_number = recorded.number + 1;
                match recorded.call {
                    Some(call) if recorded.ships_intent => {
                        self.intents.entry(call).and_modify(|intent| intent.shipped = true);
                    }
                    Some(call) => drop(self.intents.remove(&call)),
                    None => {}
                }
            }
            Entry::Intent(intent) => drop(self.intents.insert(intent.call, intent.clone())),
            Entry::Batch(batch) => self.take_batch(batch.clone(), at)?,
            Entry::Receipts(receipts) => {
                self.last_head = receipts.head.clone();
                for received in &receipts.received {
                    if let Some(held) = self.held.get_mut(&received.order) {
                        held.segment = Some(received.segment);
                        self.unreceived.remove(&received.order);
                    }
                }
            }
            Entry::Archived(segment) => {
                let gone = self.held.iter().filter(|(_, held)| held.segment.is_some_and(|of| of <= *segment));
                for order in gone.map(|(order, _)| *order).collect::<Vec<_>>() {
                    self.release(order);
                }
            }
            Entry::LetGo(through) => {
                let gone = self.held.range(..=*through).filter(|(_, held)| held.segment.is_some());
                for order in gone.map(|(order, _)| *order).collect::<Vec<_>>() {
                    self.release(order);
                }
            }
            Entry::SignedAgain(order) => self.release(*order),
            Entry::Durable(_) => {}
            Entry::Unreceived(from) => {
                for (order, held) in self.held.range_mut(*from..) {
                    held.segment = None;
                    self.unreceived.insert(*order);
                }
            }
            Entry::Dropped(dropped) => {
                self.next_number += dropped.count;
                // What one header declares has one reason, the gravest.
                if self.drop_reason != Some(DropReason::FailOpen) {
                    self.drop_reason = DropReason::try_from(dropped.reason).ok();
                }
            }
        }
        Ok(())
    }

    fn take_batch(&mut self, bytes: Bytes, (file, offset, length): (u64, u64, usize)) -> Result<(), SpoolError> {
        let damaged = || SpoolError::Damaged(name(file));
        let batch = Submitted::parse(bytes).map_err(|_| damaged())?;
        self.is_of(&batch.header);
        let place = self.place.as_ref().ok_or_else(damaged)?;
        let after = place.after(&batch.header, batch.header_hash());
        while let Some(record) = self.pending.pop_front_if(|record| record.number < after.next_record) {
            self.pending_bytes -= record.bytes.len() as u64 + PENDING_COST;
        }
        self.next_number = self.next_number.max(after.next_record);
        self.place = Some(after);
        let (epoch, number) = (batch.header.epoch, batch.header.batch_number);
        self.hold(self.next_order, Held { file, offset, length, epoch, number, segment: None });
        self.next_order += 1;
        Ok(())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let standing = self.place.as_ref().map(|place| Standing {
            epoch: place.epoch.into(),
            key_id: place.key_id.into(),
            next_batch: place.next_batch,
            next_record: place.next_record,
            previous: place.previous.into(),
            opening_reason: place.opening_reason.map_or(0, |reason| reason as i32),
            closed: place.closed,
        });
        let pending = self.pending.iter().map(|record| Recorded {
            number: record.number,
            record: record.bytes.clone(),
            call: None,
            ships_intent: false,
        });
        Snapshot {
            version: VERSION,
            standing,
            pending: pending.collect(),
            next_number: self.next_number,
            drop_reason: self.drop_reason.map_or(0, |reason| reason as i32),
            intents: self.intents.values().cloned().collect(),
            last_head: self.last_head.clone(),
            held: ranges(&self.held),
            next_order: self.next_order,
            owner: self.owner.as_ref().map(Owner::of),
        }
    }

    /// All but the batches, which the files before hold.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), SpoolError> {
        match snapshot.version {
            0 => return Err(SpoolError::Damaged("a snapshot".into())),
            1..=VERSION => {}
            _ => return Err(SpoolError::Newer),
        }
        if let Some(owner) = &snapshot.owner {
            self.owner = Some(owner.name().ok_or_else(|| SpoolError::Damaged("a snapshot".into()))?);
        }
        self.place = match &snapshot.standing {
            Some(standing) => Some(standing.place().ok_or_else(|| SpoolError::Damaged("a snapshot".into()))?),
            None => None,
        };
        let pending = snapshot.pending.iter();
        let pending = pending.map(|record| Pending { number: record.number, bytes: record.record.clone() });
        self.replace_pending(pending.collect());
        self.next_number = snapshot.next_number;
        self.drop_reason = OpeningLike::drop(snapshot.drop_reason);
        self.intents = snapshot.intents.iter().map(|intent| (intent.call, intent.clone())).collect();
        self.last_head = snapshot.last_head.clone();
        self.next_order = snapshot.next_order;
        Ok(())
    }
}

/// Enums as a snapshot has them: zero for none.
struct OpeningLike;

impl OpeningLike {
    fn drop(number: i32) -> Option<DropReason> {
        DropReason::try_from(number).ok().filter(|reason| *reason != DropReason::Unspecified)
    }

    fn opening(number: i32) -> Option<OpeningReason> {
        OpeningReason::try_from(number).ok().filter(|reason| *reason != OpeningReason::Unspecified)
    }
}

impl Standing {
    fn place(&self) -> Option<Place> {
        Some(Place {
            epoch: Epoch::try_from(self.epoch.as_ref()).ok()?,
            key_id: KeyId::try_from(self.key_id.as_ref()).ok()?,
            next_batch: self.next_batch,
            next_record: self.next_record,
            previous: HeaderHash::try_from(self.previous.as_ref()).ok()?,
            opening_reason: OpeningLike::opening(self.opening_reason),
            closed: self.closed,
        })
    }
}

/// Held orders as runs of one segment: a few for each segment that is not archived yet.
fn ranges(held: &BTreeMap<u64, Held>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for (order, batch) in held {
        match ranges.last_mut() {
            Some(last) if last.last + 1 == *order && last.segment == batch.segment => last.last = *order,
            _ => ranges.push(Range { first: *order, last: *order, segment: batch.segment }),
        }
    }
    ranges
}
