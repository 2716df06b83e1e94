//! Decides which records make the next batch, and writes its header. Pure: no clock, no file, no key.
//!
//! What must hold: records leave in the order of their numbers; a number that no record bears is declared as dropped in the
//! header of the next batch; an epoch's first batch begins with the record of its writer.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use custody::{
    batch::{Header, empty_root},
    id::{Epoch, HeaderHash, KeyId},
    wire::{DropReason, OpeningReason},
};

use crate::key::Name;

/// When a batch is due.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records in a batch.
    pub records_max: usize,
    /// Bytes of records in a batch, with what each costs besides.
    pub bytes_max: usize,
    /// How long a record waits.
    pub age_max: Duration,
    /// How long the gateway says nothing before it sends a batch of none.
    pub heartbeat_after: Duration,
}

/// A record that has its number but is in no batch yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Number within the epoch.
    pub number: u64,
    /// Strict bytes.
    pub bytes: Bytes,
}

/// Where a gateway stands in its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// This run of the gateway.
    pub epoch: Epoch,
    /// The key that signs all of it.
    pub key_id: KeyId,
    /// Number of the next batch.
    pub next_batch: u64,
    /// Number that the next batch's first record has if nothing was dropped.
    pub next_record: u64,
    /// Hash of the last header, of this epoch or the one before.
    pub previous: HeaderHash,
    /// Why `previous` is zeros in the first batch.
    pub opening_reason: Option<OpeningReason>,
    /// A closing batch was signed: nothing follows.
    pub closed: bool,
}

/// What a record costs in a `SignedBatch` besides its own bytes: tag and length.
const RECORD_COST: usize = 4;

/// The records of the next batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How many of the pending records, from the front.
    pub count: usize,
    /// How many numbers before them nobody bears.
    pub dropped: u64,
}

/// The longest run at the front of `pending` that fits into one batch: a gap in the numbers ends it.
pub fn cut(place: &Place, pending: &VecDeque<Pending>, limits: &Limits) -> Cut {
    let Some(first) = pending.front() else { return Cut { count: 0, dropped: 0 } };
    let mut bytes = 0;
    let fits = |(at, record): &(u64, &Pending)| {
        bytes += record.bytes.len() + RECORD_COST;
        record.number == first.number + at && (*at == 0 || bytes <= limits.bytes_max)
    };
    let count = (0..).zip(pending).take(limits.records_max).take_while(fits).count();
    Cut { count, dropped: first.number.saturating_sub(place.next_record) }
}

/// Whether the run at the front is as long as it gets, whatever its age.
pub fn is_full(place: &Place, pending: &VecDeque<Pending>, limits: &Limits) -> bool {
    let cut = cut(place, pending, limits);
    cut.count == limits.records_max || cut.count < pending.len()
}

/// What a header says besides its place and its records.
#[derive(Clone, Debug)]
pub struct Saying {
    /// The last signed head.
    pub last_head: Bytes,
    /// Why numbers are missing, if they are.
    pub drop_reason: DropReason,
    /// The epoch ends with this batch.
    pub close: bool,
    /// Microseconds.
    pub created_at: u64,
}

/// Header of the next batch, its root not yet in it. `first_record` is the number of its first record, or for a batch of
/// none the number that the next record will have.
pub fn header(who: &Name, place: &Place, first_record: u64, count: usize, saying: Saying) -> Header {
    let dropped = first_record.saturating_sub(place.next_record);
    Header {
        origin: who.origin.clone(),
        workspace: who.workspace,
        gateway: who.gateway,
        key_id: place.key_id,
        epoch: place.epoch,
        batch_number: place.next_batch,
        first_record,
        record_count: u32::try_from(count).unwrap_or(u32::MAX),
        previous: place.previous,
        opening_reason: place.opening_reason.filter(|_| place.next_batch == 0 && place.previous == HeaderHash::ZERO),
        batch_root: empty_root(),
        last_head: saying.last_head,
        dropped,
        drop_reason: (dropped > 0).then_some(saying.drop_reason),
        heartbeat: count == 0 && !saying.close,
        close: saying.close,
        created_at: saying.created_at,
    }
}

impl Place {
    /// The first place of a new epoch after the header `previous`, or after none for a reason.
    pub fn opening(epoch: Epoch, key_id: KeyId, previous: HeaderHash, reason: Option<OpeningReason>) -> Self {
        Self { epoch, key_id, next_batch: 0, next_record: 0, previous, opening_reason: reason, closed: false }
    }

    /// The place after a batch with this header.
    #[must_use]
    pub fn after(&self, header: &Header, hash: HeaderHash) -> Self {
        Self {
            next_batch: header.batch_number + 1,
            next_record: header.next_record(),
            previous: hash,
            closed: header.close,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use custody::{
        batch::{Numbering, seal_header},
        hash::header_hash,
        id::{GatewayId, WorkspaceId},
    };

    use super::*;

    const LIMITS: Limits = Limits {
        records_max: 4,
        bytes_max: 100,
        age_max: Duration::from_millis(1),
        heartbeat_after: Duration::from_secs(1),
    };

    fn pending(numbers: impl IntoIterator<Item = u64>) -> VecDeque<Pending> {
        numbers.into_iter().map(|number| Pending { number, bytes: Bytes::from_static(&[7; 10]) }).collect()
    }

    fn place() -> Place {
        Place::opening(Epoch([1; 16]), KeyId([2; 32]), HeaderHash::ZERO, Some(OpeningReason::First))
    }

    #[test]
    fn a_batch_ends_at_its_count_its_bytes_and_at_a_gap() {
        assert_eq!(cut(&place(), &pending(0..9), &LIMITS), Cut { count: 4, dropped: 0 });
        assert_eq!(cut(&place(), &pending([0, 1, 5]), &LIMITS), Cut { count: 2, dropped: 0 });
        assert_eq!(cut(&place(), &pending([3, 4]), &LIMITS), Cut { count: 2, dropped: 3 });
        let narrow = Limits { bytes_max: 30, ..LIMITS };
        assert_eq!(cut(&place(), &pending(0..9), &narrow), Cut { count: 2, dropped: 0 });
        assert!(is_full(&place(), &pending([0, 2]), &LIMITS), "a gap ends a batch at once");
        assert!(!is_full(&place(), &pending(0..3), &LIMITS));
    }

    /// Against the model that the ledger and every verifier run: whatever is recorded and dropped, in any order, each
    /// header is the next, and the numbers of records and drops add up.
    #[test]
    fn every_header_is_the_next_one() {
        let seed = crate::testing::seed();
        let mut dice = crate::testing::Dice::new(seed);
        let who = Name { origin: "o".into(), workspace: WorkspaceId([3; 16]), gateway: GatewayId([4; 16]) };
        for _ in 0..200 {
            let mut place = place();
            let (mut queue, mut next, mut given, mut lost) = (pending([0]), 1_u64, 1_u64, 0_u64);
            let (mut numbering, mut seen, mut declared) = (Numbering::default(), 0_u64, 0_u64);
            for step in 0..40 {
                for _ in 0..dice.below(6) {
                    if dice.below(4) == 0 {
                        (next, lost) = (next + 1, lost + 1);
                    } else {
                        queue.extend(pending([next]));
                        (next, given) = (next + 1, given + 1);
                    }
                }
                let close = step == 39;
                while !queue.is_empty() || close {
                    let cut = cut(&place, &queue, &LIMITS);
                    let records: Vec<Bytes> = queue.drain(..cut.count).map(|record| record.bytes).collect();
                    let first = if cut.count == 0 { next } else { place.next_record + cut.dropped };
                    let saying = Saying {
                        last_head: Bytes::new(),
                        drop_reason: DropReason::SpoolFull,
                        close: close && queue.is_empty(),
                        created_at: 1,
                    };
                    let mut header = header(&who, &place, first, records.len(), saying);
                    seal_header(&mut header, &[5; 32], &records);
                    let bytes = header.encode();
                    assert_eq!(Header::parse(&bytes).as_ref(), Ok(&header), "seed {seed}");
                    assert_eq!(numbering.admit(&header), Ok(()), "seed {seed}");
                    numbering.take(&header, header_hash(&bytes));
                    (seen, declared) = (seen + records.len() as u64, declared + header.dropped);
                    place = place.after(&header, header_hash(&bytes));
                    if place.closed {
                        break;
                    }
                }
            }
            // Drops after the last record are declared by a closing batch of none.
            assert_eq!(seen, given, "seed {seed}");
            assert!(declared <= lost && lost - declared <= next - place.next_record, "seed {seed}");
        }
    }
}
