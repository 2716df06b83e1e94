//! Records that have their place however full it is: changes of access, and the life of servers.
//!
//! What must hold: what an identity provider says of groups has no such place, because members bring it; who takes a stolen token
//! back is not refused because nobody else's records are taken: these use the part of
//! the spool that is kept for what is owed, half of it at most, and the reserve of the disk, and no `when_full` is asked. All of
//! a group are written, one behind the other with nothing between, or none is: so a refusal leaves nothing on record.

use bytes::Bytes;
use custody::{
    access::IDENTITY_PROVIDER,
    record,
    wire::{self, DeliveryState, access_change::Actor, gateway_event::Event, record::Kind},
};

use super::{Durable, Instant, RecordName, Refused, Writer, refuse_full};
use crate::{
    config::WhenFull,
    seen::Counted,
    spool::{Entry, Recorded, Spool, SpoolError},
};

/// Whether a record is one of these.
pub(super) fn must(kind: &Kind) -> bool {
    match kind {
        Kind::AccessChange(_) => true,
        Kind::GatewayEvent(wire::GatewayEvent { event, .. }) => matches!(event, Some(Event::ServerLife(_))),
        _ => false,
    }
}

/// What a member brings by a provider's word, as often as the provider gives another.
fn is_brought(kind: &Kind) -> bool {
    let Kind::AccessChange(wire::AccessChange { actor: Some(Actor::ActorSystem(name)), .. }) = kind else {
        return false;
    };
    name == IDENTITY_PROVIDER
}

impl Writer {
    /// Writes all of these, or none. The name is the first one's.
    pub(super) fn record_all(
        &mut self,
        kinds: Vec<Kind>,
    ) -> Result<Result<(Option<RecordName>, Durable), Refused>, SpoolError> {
        if !kinds.iter().all(must) {
            return Ok(Err(Refused::NotARecord));
        }
        let owed = !kinds.iter().any(is_brought);
        let counted: Vec<Counted> = kinds.iter().filter_map(Counted::of).collect();
        let records: Vec<Bytes> = kinds.into_iter().map(|kind| Bytes::from(record::encode(kind))).collect();
        let known =
            |bytes: &Bytes| record::check(bytes).is_ok_and(|kind| kind.may_be_written_by(wire::Role::Gateway, false));
        if !records.iter().all(known) {
            return Ok(Err(Refused::NotARecord));
        }
        if self.draining {
            return Ok(Err(Refused::Draining));
        }
        if !owed && self.settings.when_full == WhenFull::FailClosed && self.is_away() {
            return Ok(Err(Refused::LedgerAway));
        }
        let done = self.room_for_all(&records, owed).and_then(|()| self.append_records(records));
        let name = match refuse_full(done)? {
            Ok(name) => name,
            Err(refused) => return Ok(Err(refused)),
        };
        counted.into_iter().for_each(|counted| self.seen.count(counted));
        Ok(Ok((name, self.waiting.durable())))
    }

    fn room_for_all(&mut self, records: &[Bytes], owed: bool) -> Result<(), SpoolError> {
        let bytes = records.iter().map(Bytes::len).sum();
        if self.spool.has_room_for(records.len(), bytes) {
            return Ok(());
        }
        match self.spool.make_room(bytes) {
            Ok(gone) => {
                tracing::warn!(batches = gone, "spool full: let go of batches that the ledger holds, not yet archived");
                self.delivery("", DeliveryState::Spooling)
            }
            Err(SpoolError::Full) if owed && self.spool.has_owed_room_for(records.len(), bytes) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn append_records(&mut self, records: Vec<Bytes>) -> Result<Option<RecordName>, SpoolError> {
        self.in_an_epoch()?;
        self.count_dropped(Spool::append)?;
        if records.is_empty() {
            return Ok(None);
        }
        let first = self.spool.state().next_number;
        let entry = |(number, record)| Entry::Recorded(Recorded { number, record, call: None, ships_intent: false });
        let entries: Vec<Entry> = (first..).zip(records).map(entry).collect();
        self.spool.append_all(&entries)?;
        self.oldest_pending.get_or_insert_with(Instant::now);
        Ok(Some(RecordName { gateway: self.settings.who.gateway, epoch: self.epoch(), number: first }))
    }
}
