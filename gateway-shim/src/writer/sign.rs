//! How pending records become a signed batch: prepared and taken under the lock, signed without it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use custody::{
    batch::{Header, encode_signed, seal_header},
    wire::DropReason,
};

use super::{Settings, Writer};
use crate::{
    batcher::{self, Saying},
    clock, key, random,
    spool::{Entry, Spool, SpoolError},
};

/// A batch without its signature.
pub(super) struct Unsigned {
    settings: Arc<Settings>,
    header: Header,
    records: Vec<Bytes>,
    /// It takes all that is pending.
    last: bool,
}

/// A batch with it.
pub(super) struct Signed {
    bytes: Bytes,
    last: bool,
}

impl Unsigned {
    /// Hashes and signs: a millisecond for a large one.
    pub(super) fn sign(mut self) -> Signed {
        let seed = random::bytes();
        seal_header(&mut self.header, &seed, &self.records);
        let bytes = encode_signed(&self.header.encode(), &self.settings.key, &seed, &self.records);
        Signed { bytes: bytes.into(), last: self.last }
    }
}

impl Writer {
    /// The next batch, if it is due; with `now`, if anything is pending.
    pub(super) fn next_due(&self, now: bool) -> Result<Option<Unsigned>, SpoolError> {
        let limits = self.settings.limits;
        let state = self.spool.state();
        let Some(place) = state.place.as_ref().filter(|place| !place.closed) else { return Ok(None) };
        let old = self.oldest_pending.is_some_and(|since| since.elapsed() >= limits.age_max);
        let due = now || old || batcher::is_full(place, &state.pending, &limits);
        let silent = self.last_batch.elapsed() >= limits.heartbeat_after;
        match state.pending.is_empty() {
            true if silent => self.unsigned(false),
            false if due => self.unsigned(false),
            _ => Ok(None),
        }
    }

    /// Signs every batch that is due; all that are pending with `now`.
    pub(super) fn sign_due(&mut self, now: bool) -> Result<(), SpoolError> {
        while let Some(unsigned) = self.next_due(now)? {
            self.take_signed(unsigned.sign())?;
        }
        Ok(())
    }

    /// Signs the next batch; it is sent after the sync.
    pub(super) fn sign(&mut self, close: bool) -> Result<(), SpoolError> {
        match self.unsigned(close)? {
            Some(unsigned) => self.take_signed(unsigned.sign()),
            None => Ok(()),
        }
    }

    /// Until it is taken, records may come behind those in it, and nothing else may change what a batch is made of.
    fn unsigned(&self, close: bool) -> Result<Option<Unsigned>, SpoolError> {
        let state = self.spool.state();
        let Some(place) = &state.place else { return Ok(None) };
        if place.key_id != key::key_id(&self.settings.key) {
            // Who opens a spool is asked for that (`Opener`); no batch may ever be false, so it is asked again.
            return Err(SpoolError::OtherKey(place.epoch, place.key_id));
        }
        let cut = batcher::cut(place, &state.pending, &self.settings.limits);
        let records: Vec<Bytes> = state.pending.iter().take(cut.count).map(|record| record.bytes.clone()).collect();
        let last = cut.count == state.pending.len();
        let first = if records.is_empty() { state.next_number } else { place.next_record + cut.dropped };
        let saying = Saying {
            last_head: state.last_head.clone(),
            drop_reason: state.drop_reason.unwrap_or(DropReason::SpoolFull),
            close: close && last && (records.is_empty() || first + cut.count as u64 == state.next_number),
            created_at: clock::now_us(),
        };
        let header = batcher::header(&self.settings.who, place, first, records.len(), saying);
        Ok(Some(Unsigned { settings: Arc::clone(&self.settings), header, records, last }))
    }

    /// Writes a batch; its records wait no longer.
    pub(super) fn take_signed(&mut self, signed: Signed) -> Result<(), SpoolError> {
        let order = self.spool.state().next_order;
        self.spool.append(Entry::Batch(signed.bytes))?;
        self.deliveries.signed(order);
        self.last_batch = Instant::now();
        if self.spool.state().pending.is_empty() {
            self.oldest_pending = None;
        } else if signed.last {
            // What is left came while it was signed.
            self.oldest_pending = Some(Instant::now());
        }
        Ok(())
    }

    /// Signs all that is left, the last batch with `close`.
    pub(super) fn close(&mut self) -> Result<(), SpoolError> {
        if self.spool.state().place.as_ref().is_some_and(|place| !place.closed) {
            self.count_dropped(Spool::append)?;
        }
        while self.spool.state().place.as_ref().is_some_and(|place| !place.closed) {
            self.sign(true)?;
        }
        Ok(())
    }
}
