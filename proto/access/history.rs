//! The changes of one gateway's access policy, and what was in force at a time (FORMAT.md, 5.6).
//!
//! What must hold: order is position, never time. A time only says how many of the changes count: all up to the last one, in
//! their order, that was made by then.

use std::collections::BTreeSet;

use super::State;
use crate::{
    id::Epoch,
    wire::{AccessAction, AccessChange},
};

/// A record of a change, with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// In its workspace.
    pub position: u64,
    /// The ledger's clock.
    pub received_at: u64,
    /// The life of the gateway that it is of.
    pub epoch: Epoch,
    /// What it says.
    pub change: AccessChange,
}

/// All records of one gateway's changes, in the order of their positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    records: Vec<Recorded>,
    /// Numbers of those behind which another record of their epoch stands, of whatever kind.
    followed: BTreeSet<usize>,
    /// Numbers of those before which records may be missing.
    after_loss: BTreeSet<usize>,
    /// Numbers of those directly behind which, and directly before which, a part of the records is not kept.
    before_gap: BTreeSet<usize>,
    after_gap: BTreeSet<usize>,
    /// What was before the gateway's next record is not kept.
    is_behind_gap: bool,
}

/// One change: records that take effect together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<'a> {
    /// The first of them.
    pub first: &'a Recorded,
    /// All of them.
    pub records: &'a [Recorded],
    /// A crash cut it short, and it was written once more: only then it took effect.
    pub cut_short: bool,
    /// Nothing says that these are all of its records: it is the end of what its epoch has, and no change goes on from it; or
    /// records may be missing between them, or where what is not kept begins or ends.
    pub is_open: bool,
}

impl Change<'_> {
    /// When it was made, by the gateway's clock.
    pub fn at(&self) -> u64 {
        self.first.change.at
    }

    /// Position of its last record.
    pub fn last_position(&self) -> u64 {
        self.records.last().map_or(self.first.position, |record| record.position)
    }

    /// Digest of the policy before it, if there was one.
    pub fn before(&self) -> Option<&[u8]> {
        self.first.change.policy_digest_before.as_deref()
    }

    /// Digest of the policy that it makes.
    pub fn after(&self) -> &[u8] {
        &self.first.change.policy_digest_after
    }
}

impl History {
    /// Takes the gateway's next record.
    pub fn push(&mut self, record: Recorded) {
        if std::mem::take(&mut self.is_behind_gap) {
            self.after_gap.insert(self.records.len());
        }
        self.records.push(record);
    }

    /// The gateway's next record, of this epoch, is another than of a change: one of the same epoch before it has ended.
    pub fn followed(&mut self, epoch: Epoch) {
        self.is_behind_gap = false;
        let last = self.records.len().checked_sub(1);
        let of_it = self.records.last().is_some_and(|last| last.epoch == epoch);
        self.followed.extend(last.filter(|_| of_it));
    }

    /// Before the gateway's next record, others may be missing.
    pub fn lost(&mut self) {
        self.after_loss.insert(self.records.len());
    }

    /// Nor is all kept that was before the gateway's next record: a change may have had records there.
    pub fn not_kept(&mut self) {
        self.lost();
        self.is_behind_gap = true;
        let last = self.records.len().checked_sub(1).filter(|last| !self.followed.contains(last));
        self.before_gap.extend(last);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The changes, in their order.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let of_one = |a: &Recorded, b: &Recorded| a.change.at == b.change.at && a.epoch == b.epoch && same(a, b);
        let mut changes = Vec::new();
        let mut end = 0_usize;
        let mut ends = Vec::new();
        for records in self.records.chunk_by(of_one) {
            let start = end;
            end = end.saturating_add(records.len());
            let (Some(first), Some(last), Some(at)) = (records.first(), records.last(), end.checked_sub(1)) else {
                continue;
            };
            let goes_on = self.records.get(end).is_some_and(|next| next.epoch == last.epoch);
            let is_whole = last.change.action() == AccessAction::PolicyApplied;
            let is_last = !goes_on && !self.followed.contains(&at);
            let is_end = !is_whole && (is_last || self.before_gap.contains(&at));
            let is_torn = self.after_gap.contains(&start) || self.after_loss.iter().any(|at| start < *at && *at < end);
            changes.push(Change { first, records, cut_short: false, is_open: is_end });
            ends.push(End { is_end, is_torn, is_lost: self.after_loss.contains(&end) });
        }
        judge(&mut changes, &ends);
        changes
    }

    /// What was in force at this time, by the gateway's clock.
    pub fn at(&self, at: u64) -> State {
        let changes = self.changes();
        in_force(changes.iter().take(count_until(&changes, at)))
    }
}

/// Whether both change the same policy into the same.
fn same(a: &Recorded, b: &Recorded) -> bool {
    let (a, b) = (&a.change, &b.change);
    a.policy_digest_before == b.policy_digest_before && a.policy_digest_after == b.policy_digest_after
}

/// What is around a change.
struct End {
    /// It is at the end of its epoch, as far as that is kept.
    is_end: bool,
    /// Records may be missing between its own, or directly before the first.
    is_torn: bool,
    /// Records may be missing behind it.
    is_lost: bool,
}

/// From the last one back: which were cut short, and which are open.
fn judge(changes: &mut [Change<'_>], ends: &[End]) {
    // The next change of the policy, and the most records that it was written with.
    let mut next: Option<(&Recorded, usize)> = None;
    // The next change of whatever kind, and whether that is open.
    let mut behind: Option<(&Recorded, bool)> = None;
    for (change, End { is_end, is_torn, is_lost }) in changes.iter_mut().zip(ends).rev() {
        let first = change.first;
        let goes_on = |(next, is_open): (&Recorded, bool)| {
            (same(next, first) && !is_open)
                || (!is_lost && next.change.policy_digest_before.as_deref() == Some(change.after()))
        };
        change.is_open = *is_torn || (*is_end && !behind.is_some_and(goes_on));
        behind = Some((first, change.is_open));
        if *is_lost {
            // What undid it may be missing, so it may have taken effect.
            next = None;
        }
        if change.before() == Some(change.after()) {
            // It changes no policy. That of an identity provider may come between, while the old policy is in force.
            next = next.filter(|(of, _)| of.change.policy_digest_before.as_deref() == change.before());
            continue;
        }
        let again = next.map_or(0, |(of, records)| if same(of, first) { records } else { 0 });
        let records = change.records.len();
        change.cut_short = *is_end && records < again;
        next = Some((first, records.max(again)));
    }
}

/// How many of the changes count at this time: all up to the last one that was made by then, whatever the times of those before
/// it say.
pub fn count_until(changes: &[Change<'_>], at: u64) -> usize {
    changes.iter().rposition(|change| change.at() <= at).map_or(0, |last| last.saturating_add(1))
}

/// What these changes, from the gateway's first one on, add up to.
pub fn in_force<'a, 'h: 'a>(changes: impl IntoIterator<Item = &'a Change<'h>>) -> State {
    let mut state = State::default();
    for change in changes.into_iter().filter(|change| !change.cut_short) {
        change.records.iter().for_each(|record| state.replay(&record.change));
        state.end_change();
    }
    state
}

#[cfg(test)]
mod tests;
