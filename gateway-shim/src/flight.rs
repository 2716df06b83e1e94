//! Which batches are on their way to the ledger, and which go next. Pure: the client (`client.rs`) does what it says.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use custody::{
    batch::Header,
    id::{Epoch, KeyId},
    wire::{self, OpeningReason},
};
use prost::Message as _;

use crate::receipt::Sent;

/// A batch that was sent and not answered.
#[derive(Clone, Debug)]
struct Waiting {
    epoch: Epoch,
    number: u64,
    length: usize,
    key_id: KeyId,
    opening_reason: Option<OpeningReason>,
    sent: Sent,
}

/// Batches and bytes sent and not yet answered, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Batches.
    pub batches_max: usize,
    /// Bytes.
    pub bytes_max: usize,
}

/// Above this the ledger's word on the window is not followed: memory of this side.
const WINDOW_MAX: Window = Window { batches_max: 256, bytes_max: 64 << 20 };

/// What is on its way.
#[derive(Debug)]
pub struct Flight {
    window: Window,
    waiting: BTreeMap<u64, Waiting>,
    by_name: HashMap<(Epoch, u64), u64>,
    bytes: usize,
    /// The next batch without a receipt comes from here on.
    mark: u64,
}

impl Flight {
    /// Nothing on its way yet; within the window that the ledger asks for.
    pub fn new(batches_max: u32, bytes_max: u32) -> Self {
        let bound = |asked: u32, most: usize| usize::try_from(asked).unwrap_or(most).clamp(1, most);
        Self {
            window: Window {
                batches_max: bound(batches_max, WINDOW_MAX.batches_max),
                bytes_max: bound(bytes_max, WINDOW_MAX.bytes_max),
            },
            waiting: BTreeMap::new(),
            by_name: HashMap::new(),
            bytes: 0,
            mark: 0,
        }
    }

    /// How many batches and bytes may be sent now; `None` while the window is full.
    pub fn room(&self) -> Option<Window> {
        let batches_max = self.window.batches_max.saturating_sub(self.waiting.len());
        let bytes_max = self.window.bytes_max.saturating_sub(self.bytes);
        let open = batches_max > 0 && (bytes_max > 0 || self.waiting.is_empty());
        open.then_some(Window { batches_max, bytes_max })
    }

    /// The first order that was not sent: the next batch without a receipt comes from there on.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A batch goes. `false`: it is on its way already, or its bytes are no batch's.
    pub fn send(&mut self, order: u64, bytes: &Bytes) -> bool {
        self.mark = self.mark.max(order + 1);
        if self.waiting.contains_key(&order) {
            return false;
        }
        let Ok(batch) = wire::SignedBatch::decode(bytes.clone()) else { return false };
        let Ok(header) = Header::parse(&batch.header) else { return false };
        let waiting = Waiting {
            epoch: header.epoch,
            number: header.batch_number,
            length: bytes.len(),
            key_id: header.key_id,
            opening_reason: header.opening_reason,
            sent: Sent { header: batch.header, signature: batch.signature },
        };
        self.by_name.insert((waiting.epoch, waiting.number), order);
        self.bytes += waiting.length;
        self.waiting.insert(order, waiting);
        true
    }

    /// Header and signature of a batch that is on its way.
    pub fn sent(&self, epoch: Epoch, number: u64) -> Option<Sent> {
        self.waiting.get(self.by_name.get(&(epoch, number))?).map(|waiting| waiting.sent.clone())
    }

    /// The batch was answered. Gives its order.
    pub fn answered(&mut self, epoch: Epoch, number: u64) -> Option<u64> {
        let order = self.by_name.remove(&(epoch, number))?;
        let waiting = self.waiting.remove(&order)?;
        self.bytes -= waiting.length;
        Some(order)
    }

    /// Whether this batch is on its way, whose key signed it, and for what reason its epoch opened, if it is the first.
    pub fn signed_as(&self, epoch: Epoch, number: u64) -> Option<(KeyId, Option<OpeningReason>)> {
        let waiting = self.waiting.get(self.by_name.get(&(epoch, number))?)?;
        Some((waiting.key_id, waiting.opening_reason))
    }

    /// The batch of this order and all after it that are on their way go again. They are forgotten until then: an answer
    /// that is still coming comes again with the repetition.
    pub fn again_from(&mut self, order: u64) {
        for (order, waiting) in self.waiting.split_off(&order) {
            self.by_name.remove(&(waiting.epoch, waiting.number));
            self.bytes -= waiting.length;
            self.mark = self.mark.min(order);
        }
    }

    /// Everything without a receipt goes again, from this order on.
    pub fn restart_from(&mut self, order: u64) {
        self.again_from(order);
        self.mark = self.mark.min(order);
    }

    /// Order of a batch that is on its way.
    pub fn order_of(&self, epoch: Epoch, number: u64) -> Option<u64> {
        self.by_name.get(&(epoch, number)).copied()
    }
}

#[cfg(test)]
mod tests {
    use custody::{
        batch::{encode_signed, seal_header},
        id::{GatewayId, HeaderHash, WorkspaceId},
    };

    use super::*;
    use crate::{
        batcher::{Place, Saying, header},
        key::Name,
    };

    fn batch(number: u64) -> Bytes {
        let who = Name { origin: "o".into(), workspace: WorkspaceId([3; 16]), gateway: GatewayId([4; 16]) };
        let mut place = Place::opening(Epoch([1; 16]), KeyId([2; 32]), HeaderHash([9; 32]), None);
        place.next_batch = number;
        let saying =
            Saying { last_head: Bytes::new(), drop_reason: wire::DropReason::SpoolFull, close: false, created_at: 1 };
        let records = [Bytes::from_static(&[1; 100])];
        let mut header = header(&who, &place, 0, 1, saying);
        seal_header(&mut header, &[0; 32], &records);
        encode_signed(&header.encode(), &crate::key::generate(), &[0; 32], &records).into()
    }

    #[test]
    fn the_window_holds_and_answers_open_it() {
        let mut flight = Flight::new(2, 1 << 20);
        assert!(flight.send(5, &batch(0)));
        assert!(!flight.send(5, &batch(0)), "once is enough");
        assert!(flight.send(6, &batch(1)));
        assert_eq!((flight.room(), flight.mark()), (None, 7));
        assert_eq!(flight.answered(Epoch([1; 16]), 0), Some(5));
        assert_eq!(flight.answered(Epoch([1; 16]), 0), None);
        assert_eq!(flight.room().unwrap().batches_max, 1);
    }

    #[test]
    fn one_batch_goes_even_if_it_is_larger_than_the_window() {
        let mut flight = Flight::new(9, 1);
        assert!(flight.room().is_some());
        assert!(flight.send(0, &batch(0)));
        assert!(flight.room().is_none());
    }

    #[test]
    fn pushback_repeats_from_there_on() {
        let mut flight = Flight::new(9, 1 << 20);
        for order in 0..4 {
            flight.send(order, &batch(order));
        }
        flight.again_from(2);
        assert_eq!(flight.mark(), 2);
        assert!(flight.sent(Epoch([1; 16]), 1).is_some());
        assert!(flight.sent(Epoch([1; 16]), 2).is_none());
        assert!(flight.send(2, &batch(2)));
        assert_eq!(flight.mark(), 3);
    }
}
