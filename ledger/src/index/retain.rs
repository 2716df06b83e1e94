//! Retention: days past the hot ones go as folders, and then whatever else only they needed.
//!
//! What must hold: from the write of the floor on nothing below it is in an answer; counts by the minute are used again once
//! they count exactly what stands above it, and not before. Rows go in steps that take the writer's time for a millisecond, each
//! with how far they have gone, so that a crash neither leaves out nor takes back one twice.

use custody::id::WorkspaceId;

use super::{
    day::{self, DayError},
    follow::{Follower, IDS_AT_ONCE, Stuck, id_rows},
};
use crate::store::{Family, Notes, Rank, take_back};

/// Name of the floor among the store's numbers: commit index below which retention has let the index go.
pub(super) const FLOOR: &str = "index_floor";
/// Name of the commit index below which ids and counts are gone, too.
pub(super) const FORGOTTEN: &str = "index_forgotten";
/// Name of the commit index before which nobody remembers when a call ended: pages that began before it are over.
pub(super) const ENDED_FLOOR: &str = "ended_floor";
/// Records of one step: some milliseconds of the follower.
const RECORDS_AT_ONCE: usize = 1_024;

/// Name of the number of a workspace's records that retention let go from the index.
pub(super) fn dropped_name(workspace: WorkspaceId) -> String {
    format!("index_dropped/{workspace}")
}

impl Follower {
    /// Lets folders go that are past the hot days. The floor first: a crash between leaves folders below it, which the next
    /// start removes.
    pub(super) fn forget_old(&mut self, today: u64) -> Result<(), Stuck> {
        let shown = self.index.shown();
        // A day at a time: a clock that jumped ahead by a year lets nothing go, and neither does one batch of it.
        let newest = shown.iter().map(|day| day.payload.day).max();
        let oldest = today.min(newest.map_or(today, |newest| newest + 1)).saturating_sub(self.days_max);
        let Some(floor) = shown.iter().filter(|day| day.payload.day < oldest).map(|day| day.payload.next).max() else {
            return Ok(());
        };
        let store = self.index.tail().store()?;
        let mut change = store.change();
        let floor = floor.max(self.index.floor()?);
        change.put(Family::Meta, FLOOR, floor.to_be_bytes());
        for workspace in store.workspaces()? {
            let gone = shown.iter().filter(|day| day.payload.next <= floor);
            let gone: tantivy::Result<u64> = gone.map(|day| day.records_of(workspace)).sum();
            let name = dropped_name(workspace);
            let before = store.number(&name)?.unwrap_or(0);
            change.put(Family::Meta, name, (before + gone.map_err(DayError::from)?).to_be_bytes());
        }
        store.derive(change)?;
        crate::failpoint::hit("day-floor");
        self.index.show(|days| days.retain(|day| day.payload.first >= floor));
        self.clip_gaps(floor);
        for (first, path) in self.root.list()? {
            if first < floor {
                day::remove(&path)?;
                crate::failpoint::hit("day-removed");
            }
        }
        Ok(())
    }

    /// Takes back the rows of some commits that retention let go; `false`: there are none.
    pub(super) fn forget_rows(&self) -> Result<bool, Stuck> {
        let (tail, floor) = (self.index.tail(), self.index.floor()?);
        let store = tail.store()?;
        let mut next = store.number(FORGOTTEN)?.unwrap_or(0);
        if next >= floor {
            return Ok(false);
        }
        let mut counts = store.change();
        let mut ids = Vec::new();
        let mut looked = 0;
        while next < floor && looked < RECORDS_AT_ONCE {
            if let Some(batch) = tail.batch(next)? {
                ids.extend(id_rows(&batch).map(|(key, _)| key));
                take_back(&mut counts, batch.workspace(), &Notes::of(batch.records()));
                looked += batch.records().len();
            }
            // A commit without records is a look, too.
            looked += 1;
            next += 1;
        }
        for some in ids.chunks(IDS_AT_ONCE) {
            let mut change = store.change();
            some.iter().for_each(|key| change.delete(Family::Ids, key));
            store.derive_soon(change)?;
        }
        crate::failpoint::hit("day-rows");
        // Counts are sums: what is taken back, and that it was, are one write.
        counts.put(Family::Meta, FORGOTTEN, next.to_be_bytes());
        store.derive_soon(counts)?;
        Ok(true)
    }

    /// Forgets when calls ended of the days before the last one: only pages that began then would ask.
    pub(super) fn forget_ended(&self) -> Result<(), Stuck> {
        let shown = self.index.shown();
        let Some(newest) = shown.first().map(|day| day.payload.day) else { return Ok(()) };
        let of_day = shown.iter().take_while(|day| day.payload.day == newest);
        let Some(before) = of_day.map(|day| day.payload.first).min() else { return Ok(()) };
        let store = self.index.tail().store()?;
        // What is forgotten stays so: while folders are built again the newest may be an old one.
        if before <= store.number(ENDED_FLOOR)?.unwrap_or(0) {
            return Ok(());
        }
        let mut change = store.change();
        change.put(Family::Meta, ENDED_FLOOR, before.to_be_bytes());
        change.delete_range(Family::Ended, &[], &Rank::first_of(before).encode());
        Ok(store.derive(change)?)
    }
}
