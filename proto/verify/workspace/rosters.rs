//! Rosters, and the epochs that are open at the end: whether all that was promised has come.

use std::collections::BTreeSet;

use super::{
    super::{
        Archive, Stop,
        segment::Task,
        silence::{DAY_US, OpenEpoch},
    },
    Walk,
};
use crate::{
    archive,
    batch::EpochState,
    id::{Epoch, GatewayId, HeaderHash},
    segment::{Object, roster_hash},
    verdict::{Check, Verdict, ensure},
    wire::{Role, RosterEntry},
};

impl<A: Archive> Walk<'_, '_, A> {
    pub(super) fn check_roster(
        &mut self,
        task: &Task<'_>,
        object: &Object,
        touched: &BTreeSet<(GatewayId, Epoch)>,
        name: &str,
    ) -> Result<(), Stop> {
        let day = task.seal.first_received_at.checked_div(DAY_US).unwrap_or(0);
        let first_of_day = self.day != Some(day);
        let known_day = self.day.is_some() || task.seal.segment == 0;
        self.day = Some(day);
        let roster = &object.roster;
        let place = || name.to_owned();
        ensure(Check::Roster, roster_hash(&object.roster_bytes) == task.seal.roster_hash, place, || {
            ("the roster that the seal names", "another")
        })?;
        let bound = roster.workspace.as_ref() == self.id().as_ref() && roster.segment == task.seal.segment;
        ensure(Check::Roster, bound && (!known_day || roster.full == first_of_day), place, || {
            (
                format!("segment {}, full: {first_of_day}", task.seal.segment),
                format!("segment {}, full: {}", roster.segment, roster.full),
            )
        })?;
        let ids = roster.entries.iter().map(|entry| (&entry.gateway, &entry.epoch));
        let ascend = ids.clone().zip(ids.skip(1)).all(|(one, next)| one < next);
        ensure(Check::Roster, ascend, place, || ("each epoch once, in ascending order", "another order"))?;
        let mut expected = Vec::new();
        for (gateway, state) in &self.gateways {
            for (epoch, state) in &state.numbering.epochs {
                if touched.contains(&(*gateway, *epoch)) || (roster.full && !state.closed) {
                    expected.push(roster_entry(*gateway, *epoch, state));
                }
            }
        }
        let holds = if self.unknown_past {
            expected.iter().all(|entry| roster.entries.contains(entry))
        } else {
            expected == roster.entries
        };
        ensure(Check::Roster, holds, place, || {
            (format!("the last numbers of {} epochs", expected.len()), format!("{} others", roster.entries.len()))
        })?;
        if self.unknown_past {
            self.learn_epochs(&roster.entries);
            // A full roster has told every open epoch: from here on a new one opens as it must.
            self.unknown_past = !roster.full;
        }
        Ok(())
    }

    /// Epochs that only a roster tells of, where the past is not known.
    pub(super) fn learn_epochs(&mut self, entries: &[RosterEntry]) {
        for entry in entries {
            let ids = (GatewayId::try_from(entry.gateway.as_ref()), Epoch::try_from(entry.epoch.as_ref()));
            let (Ok(gateway), Ok(epoch)) = ids else { continue };
            let state = EpochState {
                key_id: None,
                last_batch: entry.last_batch,
                next_record: entry.next_record,
                last_header_hash: HeaderHash::try_from(entry.last_header_hash.as_ref()).unwrap_or(HeaderHash::ZERO),
                closed: entry.closed,
            };
            let numbering = &mut self.gateways.entry(gateway).or_default().numbering;
            numbering.epochs.entry(epoch).or_insert(state);
            if !entry.closed {
                numbering.last_opened.get_or_insert(epoch);
            }
        }
    }

    /// Gateways that somebody enrolled and that may write, and of which nothing is here from the beginning to the end: the
    /// root or a registrar says that they are there, and the ledger alone that they never wrote.
    pub(in crate::verify) fn find_never_heard(&self, verdict: &mut Verdict) {
        if self.has_gap || self.options.until.is_some() {
            return;
        }
        let may_write = self.chain.keys().filter(|(_, key)| key.role == Role::Gateway && !key.revoked && !key.retired);
        let enrolled: BTreeSet<GatewayId> = may_write.filter_map(|(_, key)| key.gateway).collect();
        for gateway in enrolled.into_iter().filter(|gateway| !self.gateways.contains_key(gateway)) {
            let place = archive::statements(Some(self.id()));
            let text = format!("gateway {gateway} is enrolled, and nothing that it signed is here");
            verdict.find("never-heard", Some(self.id()), place, text);
        }
    }

    /// Epochs that are open at the end: whether they are silent or unclosed depends on how far the whole archive reaches.
    pub(in crate::verify) fn open_epochs(&self) -> Vec<OpenEpoch> {
        let mut open = Vec::new();
        for (id, gateway) in &self.gateways {
            for (epoch, state) in gateway.numbering.epochs.iter().filter(|(_, state)| !state.closed) {
                let Some(writer) = gateway.writers.get(epoch) else { continue };
                open.push(OpenEpoch {
                    workspace: self.id(),
                    place: format!("gateway {id} epoch {epoch} batch {}", state.last_batch),
                    heard_at: writer.last_created_at.min(writer.last_received_at),
                    silence_us_max: writer.always_on.then_some(writer.silence_us_max),
                });
            }
        }
        open
    }
}

/// A roster's line for an epoch.
fn roster_entry(gateway: GatewayId, epoch: Epoch, state: &EpochState) -> RosterEntry {
    RosterEntry {
        gateway: gateway.into(),
        epoch: epoch.into(),
        last_batch: state.last_batch,
        next_record: state.next_record,
        last_header_hash: state.last_header_hash.into(),
        closed: state.closed,
    }
}
