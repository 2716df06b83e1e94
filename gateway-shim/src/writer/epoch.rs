//! How epochs end and begin.
//!
//! What must hold: an epoch that was not ended is ended with its own key, or left as it is; the next one names its last
//! header, so that nobody can cut off what was signed; what waits for a signature is signed, by whichever key there is.

use custody::{
    id::{Epoch, HeaderHash, KeyId},
    record,
    wire::{self, OpeningReason, gateway_event::Event},
};

use super::{
    Ending, Instant, Settings, Writer,
    kinds::{event, intent_of, opening_words, outcome_of},
};
use crate::{
    batcher::{Pending, Place},
    clock, key, random,
    spool::{Intent, Spool, SpoolError},
};

/// What went on under another key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The epoch that nobody can end.
    pub old_epoch: Epoch,
    /// Its key, which is lost.
    pub old_key: KeyId,
    /// The epoch that goes on.
    pub epoch: Epoch,
    /// Records that had no signature.
    pub records: u64,
    /// Calls that had begun and not ended.
    pub unfinished: u64,
}

impl Writer {
    /// Goes on, with the key of the settings, behind an epoch whose key is lost: what waits there for a signature is signed in a
    /// new epoch, which ends with that. `None` when the old one needs no key: it has ended, or is of this one.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn carry_over(spool: Spool, settings: Settings) -> Result<Option<Carried>, SpoolError> {
        let (mut writer, _) = Self::over(spool, settings);
        let key_id = key::key_id(&writer.settings.key);
        let place = writer.spool.state().place.clone();
        let Some(old) = place.filter(|place| !place.closed && place.key_id != key_id) else { return Ok(None) };
        let records = writer.carry(&old)?;
        // A crash after this leaves an epoch of the new key that was not ended: the next start ends it.
        let unfinished = writer.end_unfinished()?;
        writer.close()?;
        writer.sync()?;
        let epoch = writer.spool.state().place.as_ref().map_or(Epoch::ZERO, |place| place.epoch);
        Ok(Some(Carried { old_epoch: old.epoch, old_key: old.key_id, epoch, records, unfinished }))
    }

    /// Gives the number of records that are in the new epoch now. Before it is durable that they are, the old one has them.
    fn carry(&mut self, old: &Place) -> Result<u64, SpoolError> {
        let state = self.spool.state();
        let (first, next) = (state.first_unsigned(), state.next_number);
        let records = state.pending.iter().filter(|record| record.number >= first).count() as u64;
        // Whose first batch has no signature either was never begun, for anybody else.
        let reason = old.opening_reason.filter(|_| old.next_batch == 0);
        let (place, opened) = self.opening(old.previous, reason);
        if let Some(more) = next.checked_sub(first + 1) {
            tracing::warn!(
                old_epoch = %old.epoch, old_first = first, old_last = first + more,
                new_epoch = %place.epoch, new_first = 1, new_last = 1 + more,
                "records without a signature are signed by another key, under new names"
            );
        }
        self.spool.turn(|state| state.carry(place, opened))?;
        Ok(records)
    }

    /// Signs what the old epoch left, with `close`. Gives the hash of its last header.
    pub(super) fn end_old_epoch(&mut self) -> Result<HeaderHash, SpoolError> {
        let Some(place) = self.spool.state().place.clone() else { return Ok(HeaderHash::ZERO) };
        if !place.closed {
            // The journal goes on in a new file, because a crash may have torn the end of the old one.
            self.spool.turn(|_| {})?;
            self.end_unfinished()?;
            self.close()?;
            self.spool.sync()?;
        }
        Ok(self.spool.state().place.as_ref().map_or(HeaderHash::ZERO, |place| place.previous))
    }

    /// Calls that nobody will end any more: their intents, if those were not shipped, and `unknown`.
    pub(super) fn end_unfinished(&mut self) -> Result<u64, SpoolError> {
        let unfinished: Vec<Intent> = self.spool.state().intents.values().cloned().collect();
        for intent in &unfinished {
            let Some(call) = intent.call() else { continue };
            if !intent.shipped {
                self.append(intent_of(call.clone()), Some(intent.call), true)?;
            }
            let ending = Ending::of(wire::Outcome::Unknown);
            self.append(outcome_of(call, &ending, 0), Some(intent.call), false)?;
            self.running.remove(&intent.call);
        }
        Ok(unfinished.len() as u64)
    }

    /// The machine has slept: the epoch of before ends, and another begins behind it. Calls in progress go on; those whose
    /// intent is no record yet get it in the epoch in which they began, where their name says that they are. What a full disk
    /// stops is gone on with at the next tick, and nothing is recorded until then.
    pub(super) fn wake(&mut self) -> Result<(), SpoolError> {
        while let Some((_, ticket)) = self.young.front().copied() {
            self.ship_intent(ticket)?;
            self.young.pop_front();
        }
        self.write_owed()?;
        self.close()?;
        self.sync()?;
        let previous = self.spool.state().place.as_ref().map_or(HeaderHash::ZERO, |place| place.previous);
        self.open_epoch(previous, None)?;
        self.woke = false;
        self.sign_due(true)
    }

    /// Opens an epoch in a new file of the spool.
    pub(super) fn open_epoch(&mut self, previous: HeaderHash, reason: Option<OpeningReason>) -> Result<(), SpoolError> {
        let (place, opened) = self.opening(previous, reason);
        self.spool.turn(|state| state.open(place, opened))
    }

    /// A new epoch, and the record of its writer.
    fn opening(&mut self, previous: HeaderHash, reason: Option<OpeningReason>) -> (Place, Pending) {
        let mut opened = self.settings.opened.clone();
        opened.clock = clock::state() as i32;
        let bytes = record::encode(event(Event::Opened(opened))).into();
        let place = Place::opening(Epoch(random::bytes()), key::key_id(&self.settings.key), previous, reason);
        tracing::info!(epoch = %place.epoch, reason = opening_words(reason), "epoch opened");
        self.oldest_pending = Some(Instant::now());
        (place, Pending { number: 0, bytes })
    }
}
