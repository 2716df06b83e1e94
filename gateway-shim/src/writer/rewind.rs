//! A new epoch that does not continue this gateway's last one: what the ledger has no receipt for is signed again in it, under
//! new names.
//!
//! Whoever was answered with an old name finds the new one in the log, and only there.

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted},
    id::HeaderHash,
    record,
    wire::{self, OpeningReason},
};
use prost::Message as _;

use super::Writer;
use crate::spool::{Entry, Recorded, SpoolError};

impl Writer {
    /// Begins the epoch and signs again, batch by batch: a crash between leaves the rest unreceived under its old name, and
    /// the ledger's next rejection leads here again. Without a reason the epoch goes on where the receipts end.
    pub(super) fn rewind(&mut self, reason: Option<OpeningReason>) -> Result<(), SpoolError> {
        while !self.spool.state().pending.is_empty() {
            self.sign(false)?;
        }
        self.spool.sync()?;
        let end = self.spool.state().next_order;
        let (previous, reason) = match reason {
            Some(reason) => (HeaderHash::ZERO, Some(reason)),
            None => self.end_of_receipts()?,
        };
        self.open_epoch(previous, reason)?;
        while let Some((order, batch)) = self.spool.fetch(0, true, 1, usize::MAX)?.pop().filter(|(at, _)| *at < end) {
            let batch = wire::SignedBatch::decode(batch).unwrap_or_default();
            let records: Vec<Bytes> =
                batch.records.into_iter().filter(|record| record::opened(record).is_none()).collect();
            let first = self.spool.state().next_number;
            if let Ok(header) = Header::parse(&batch.header) {
                self.log_names(&header, records.len() as u64, first);
            }
            let again = (first..)
                .zip(records)
                .map(|(number, record)| Entry::Recorded(Recorded { number, record, call: None, ships_intent: false }));
            // All of them or none: a full disk between would sign the first of them twice.
            let again: Vec<Entry> = again.chain([Entry::SignedAgain(order)]).collect();
            self.spool.append_all(&again)?;
            self.sign_due(true)?;
            self.spool.sync()?;
        }
        if self.draining {
            self.close()?;
        }
        Ok(())
    }

    /// The last header that the ledger has a receipt for, which the first one without names; and why, if that names none.
    fn end_of_receipts(&self) -> Result<(HeaderHash, Option<OpeningReason>), SpoolError> {
        let first = self.spool.fetch(0, true, 1, usize::MAX)?.pop();
        let header = first.and_then(|(_, batch)| Submitted::parse(batch).ok()).map(|batch| batch.header);
        let last = || self.spool.state().place.as_ref().map_or(HeaderHash::ZERO, |place| place.previous);
        Ok(header.map_or_else(|| (last(), None), |header| (header.previous, header.opening_reason)))
    }

    /// Says which names the last `count` records of a batch lose and get. Before they have them: a crash between makes it
    /// untrue, but then it is said anew, and the last line counts.
    fn log_names(&self, old: &Header, count: u64, first: u64) {
        let Some(epoch) = self.spool.state().place.as_ref().map(|place| place.epoch) else { return };
        let Some(more) = count.checked_sub(1) else { return };
        let (old_first, old_last) = (old.next_record() - count, old.next_record() - 1);
        tracing::warn!(
            old_epoch = %old.epoch, old_first, old_last, new_epoch = %epoch, new_first = first, new_last = first + more,
            "records without a receipt are signed again, under new names"
        );
    }
}
