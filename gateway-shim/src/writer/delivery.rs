//! Whether records can be kept, what happens to each server's calls if not, and the records of that.
//!
//! What must hold: whatever changes for a server is a record that names it, before the first call to which it happens is
//! answered, or as soon as there is space for that record; what is let go is counted. *The ledger takes nothing* when there has
//! been no connection to it for `away_max`, or a batch has waited so long for its receipt; a start counts as a connection, and
//! what it finds in the spool as signed then.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use custody::wire::{self, DeliveryState, DropReason, gateway_event::Event, record::Kind};

use super::{
    OWED_MAX, Refused, Writer,
    kinds::{delivery_words, event},
    unless_full,
};
use crate::{
    config::WhenFull,
    spool::{Spool, SpoolError},
};

/// How records are delivered.
pub(super) struct Deliveries {
    /// By server, and under the empty name for all others; those not here flow.
    states: HashMap<String, DeliveryState>,
    /// Since when there is no connection to the ledger.
    unlinked: Option<Instant>,
    /// Batches without a receipt, by order, and since when; some have got theirs.
    unreceived: VecDeque<(u64, Instant)>,
    /// The ledger took nothing at the last look.
    away: bool,
}

impl Deliveries {
    pub(super) fn over(spool: &Spool) -> Self {
        let mut deliveries =
            Self { states: HashMap::new(), unlinked: Some(Instant::now()), unreceived: VecDeque::new(), away: false };
        deliveries.await_again(spool);
        deliveries
    }

    /// The ledger lost some of what it had.
    pub(super) fn await_again(&mut self, spool: &Spool) {
        let now = Instant::now();
        self.unreceived = spool.state().unreceived.iter().map(|order| (*order, now)).collect();
    }

    pub(super) fn signed(&mut self, order: u64) {
        self.unreceived.push_back((order, Instant::now()));
    }

    pub(super) fn linked(&mut self, linked: bool) {
        self.unlinked = if linked { None } else { self.unlinked.or_else(|| Some(Instant::now())) };
    }

    fn is_away(&mut self, spool: &Spool, away_max: Duration) -> bool {
        let unreceived = &spool.state().unreceived;
        while self.unreceived.pop_front_if(|(order, _)| !unreceived.contains(order)).is_some() {}
        let oldest = self.unreceived.front().map(|(_, since)| *since);
        [oldest, self.unlinked].into_iter().flatten().any(|since| since.elapsed() >= away_max)
    }
}

impl Writer {
    /// What happens to calls of this server, and under which name that is recorded.
    fn when_full<'a>(&self, server: &'a str) -> (&'a str, WhenFull) {
        match self.settings.servers.get(server) {
            Some(when_full) => (server, *when_full),
            None => ("", self.settings.when_full),
        }
    }

    /// The ledger has taken nothing for too long.
    pub(super) fn is_away(&mut self) -> bool {
        self.deliveries.is_away(&self.spool, self.settings.away_max)
    }

    /// Room for a record of so many bytes, or why there is none.
    pub(super) fn room(&mut self, server: &str, bytes: usize) -> Result<Result<(), Refused>, SpoolError> {
        if self.draining {
            return Ok(Err(Refused::Draining));
        }
        let (name, when_full) = self.when_full(server);
        if when_full == WhenFull::FailClosed && self.is_away() {
            self.delivery(name, DeliveryState::Refusing)?;
            return Ok(Err(Refused::LedgerAway));
        }
        let state = match self.spool.has_room(bytes) {
            true => Ok(DeliveryState::Flowing),
            false => self.spool.make_room(bytes).map(|gone| {
                tracing::warn!(batches = gone, "spool full: let go of batches that the ledger holds, not yet archived");
                DeliveryState::Spooling
            }),
        };
        let done = state.and_then(|state| self.delivery(name, state));
        self.or_refused(server, done)
    }

    /// A full spool or a full disk refuses one record, or lets it go and counts it; anything else ends the writer.
    pub(super) fn or_refused<T>(
        &mut self,
        server: &str,
        done: Result<T, SpoolError>,
    ) -> Result<Result<T, Refused>, SpoolError> {
        let (name, when_full) = self.when_full(server);
        match done {
            Err(SpoolError::Full) if when_full == WhenFull::FailOpen => {
                self.delivery(name, DeliveryState::FailOpen)?;
                self.let_go(DropReason::FailOpen);
                Ok(Err(Refused::Dropped))
            }
            Err(SpoolError::Full) => {
                self.delivery(name, DeliveryState::Refusing)?;
                Ok(Err(Refused::SpoolFull))
            }
            Err(error) => Err(error),
            Ok(value) => Ok(Ok(value)),
        }
    }

    /// Records a change of how records are delivered; the reserve of the spool has room for that. While the disk is full, a
    /// change for the worse waits for space, and there is none for the better.
    pub(super) fn delivery(&mut self, server: &str, state: DeliveryState) -> Result<(), SpoolError> {
        if self.deliveries.states.get(server).copied().unwrap_or(DeliveryState::Flowing) == state {
            return Ok(());
        }
        let change = event(Event::Delivery(wire::Delivery { server: server.to_owned(), state: state as i32 }));
        match state {
            DeliveryState::Refusing | DeliveryState::FailOpen => {
                self.owe(change);
                unless_full(self.write_owed())?;
            }
            _ => {
                self.write_owed()?;
                self.append(change, None, false)?;
            }
        }
        self.deliveries.states.insert(server.to_owned(), state);
        self.seen.delivery(server, state);
        tracing::warn!(server, state = delivery_words(state), "how records are delivered has changed");
        Ok(())
    }

    /// Whether the ledger takes something changes by time: for servers whose calls depend on it that is a record at once.
    pub(super) fn tick_deliveries(&mut self) -> Result<(), SpoolError> {
        let away = self.deliveries.is_away(&self.spool, self.settings.away_max);
        if away == self.deliveries.away || self.draining {
            return Ok(());
        }
        let closes = |when_full: WhenFull| when_full == WhenFull::FailClosed;
        let servers = self.settings.servers.iter().filter(|(_, when_full)| closes(**when_full));
        let mut names: Vec<String> = servers.map(|(server, _)| server.clone()).collect();
        names.extend(closes(self.settings.when_full).then(String::new));
        for name in names {
            let full = !self.spool.has_room(0);
            self.delivery(&name, if away || full { DeliveryState::Refusing } else { DeliveryState::Flowing })?;
        }
        self.deliveries.away = away;
        Ok(())
    }

    /// Records that there was no room for, and that nobody makes again.
    pub(super) fn lose(&mut self, number: u64) -> Result<(), SpoolError> {
        self.dropped = self.dropped.saturating_add(number);
        Ok(())
    }

    pub(super) fn owe(&mut self, kind: Kind) {
        match self.owed.len() < OWED_MAX {
            true => self.owed.push_back(kind),
            false => self.let_go(DropReason::SpoolFull),
        }
    }

    /// One record is let go. A header has one reason for all that it declares: that a call passed unrecorded is the graver one.
    fn let_go(&mut self, reason: DropReason) {
        self.dropped += 1;
        if reason == DropReason::FailOpen {
            self.drop_reason = reason;
        }
    }

    pub(super) fn write_owed(&mut self) -> Result<(), SpoolError> {
        while let Some(kind) = self.owed.front().cloned() {
            self.append(kind, None, false)?;
            self.owed.pop_front();
        }
        Ok(())
    }
}
