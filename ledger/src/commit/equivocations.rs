//! Two headers under one number: the first such copy of an epoch is kept as proof; the next ones are counted, in one record
//! for each epoch and minute, so that a gateway that sends thousands makes neither leaves nor records of them.
//!
//! A crash forgets what was counted since the last record; the copy that proves is on disk.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use custody::{
    batch::{Header, Submitted},
    id::{Epoch, GatewayId, WorkspaceId},
    wire::LeafKind,
};
use prost::Message as _;

use super::{Group, Writer};
use crate::{
    alarm::Alarm,
    store::{EpochRow, Family, Notes, StoreError, epoch_key},
};

/// Between two records about one epoch.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// An epoch, wherever it is.
pub(super) type EpochName = (WorkspaceId, GatewayId, Epoch);

/// What was counted and not told yet, of the epochs in which there was an equivocation within the last minute.
pub(super) type Counts = BTreeMap<EpochName, Count>;

pub(super) struct Count {
    copies: u64,
    told: u64,
    told_at: Instant,
    /// Number of the newest copy.
    batch: u64,
}

fn name(header: &Header) -> EpochName {
    (header.workspace, header.gateway, header.epoch)
}

impl Writer {
    /// What is stored of an epoch.
    pub(super) fn stored_epoch(&self, header: &Header) -> Result<Option<EpochRow>, StoreError> {
        let (workspace, gateway, epoch) = name(header);
        self.stored_row((workspace, gateway, epoch))
    }

    fn stored_row(&self, (workspace, gateway, epoch): EpochName) -> Result<Option<EpochRow>, StoreError> {
        let value = self.parts.store.value(Family::Epochs, epoch_key(workspace, gateway, epoch))?;
        value.map(|value| EpochRow::decode(value).map_err(|_| StoreError::Damaged("an epoch"))).transpose()
    }

    /// Copies so far in this epoch.
    pub(super) fn copies(&self, header: &Header) -> Result<u64, StoreError> {
        if let Some(count) = self.equivocations.get(&name(header)) {
            return Ok(count.copies);
        }
        let workspace = self.workspaces.get(&header.workspace);
        let row = workspace.and_then(|w| w.gateways.get(&header.gateway)).and_then(|g| g.rows.get(&header.epoch));
        match row {
            Some(row) => Ok(row.equivocations),
            None => Ok(self.stored_epoch(header)?.map_or(0, |row| row.equivocations)),
        }
    }

    pub(super) fn take_equivocation(
        &mut self,
        batch: Submitted,
        keep: bool,
        group: &mut Group<'_>,
    ) -> Result<(), StoreError> {
        let header = batch.header.clone();
        self.parts.metrics.add("custody_equivocations_total", 1);
        self.parts.alarms.raise(
            Alarm::Equivocation,
            format!("gateway {} signed two batches {} in epoch {}", header.gateway, header.batch_number, header.epoch),
        );
        let copies = self.copies(&header)? + 1;
        let fresh = Count { copies, told: copies - 1, told_at: Instant::now(), batch: header.batch_number };
        let count = self.equivocations.entry(name(&header)).or_insert(fresh);
        (count.copies, count.batch) = (copies, header.batch_number);
        if keep {
            self.append(LeafKind::Equivocation, batch, &Notes::default(), group)?;
            self.tell(name(&header), group)?;
        }
        Ok(())
    }

    /// A record for every epoch whose minute has passed, or for all.
    pub(super) fn tell_equivocations(&mut self, all: bool, group: &mut Group<'_>) -> Result<(), StoreError> {
        let due = |count: &Count| all || count.told_at.elapsed() >= TOLD_EVERY;
        let names: Vec<_> = self.equivocations.iter().filter(|(_, count)| due(count)).map(|(name, _)| *name).collect();
        for name in names {
            let quiet = self.equivocations.get(&name).is_none_or(|count| count.told == count.copies);
            if quiet {
                self.equivocations.remove(&name);
            } else {
                self.tell(name, group)?;
            }
        }
        Ok(())
    }

    /// The row and the record, in the group's write.
    fn tell(&mut self, name: EpochName, group: &mut Group<'_>) -> Result<(), StoreError> {
        let (workspace, gateway, epoch) = name;
        let Some(count) = self.equivocations.get_mut(&name) else { return Ok(()) };
        (count.told, count.told_at) = (count.copies, Instant::now());
        let (batch, copies) = (count.batch, count.copies);
        let rows = self.workspaces.get_mut(&workspace).and_then(|w| w.gateways.get_mut(&gateway)).map(|g| &mut g.rows);
        let row = match rows.and_then(|rows| rows.get_mut(&epoch)) {
            Some(row) => {
                row.equivocations = copies;
                Some(row.clone())
            }
            None => self.stored_row(name)?.map(|row| EpochRow { equivocations: copies, ..row }),
        };
        if let Some(row) = row {
            group.change.put(Family::Epochs, epoch_key(workspace, gateway, epoch), row.encode_to_vec());
        }
        self.own.equivocation(name, batch, copies);
        Ok(())
    }
}
