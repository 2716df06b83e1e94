//! The changes of one gateway's access policy, and what was in force at a time (FORMAT.md, 5.6).
//!
//! What must hold: order is position, never time. A time only says how many of the changes count: all up to the last one, in
//! their order, that was made by then.

use super::State;
use crate::wire::AccessChange;

/// A record of a change, with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// In its workspace.
    pub position: u64,
    /// The ledger's clock.
    pub received_at: u64,
    /// What it says.
    pub change: AccessChange,
}

/// All records of one gateway's changes, in the order of their positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(Vec<Recorded>);

/// One change: records that take effect together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<'a> {
    /// The first of them.
    pub first: &'a Recorded,
    /// All of them.
    pub records: &'a [Recorded],
    /// A crash, or a full spool, cut it short, and it was written once more: only then it took effect.
    pub cut_short: bool,
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
        self.0.push(record);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The changes, in their order.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let of_one = |a: &Recorded, b: &Recorded| {
            let (a, b) = (&a.change, &b.change);
            a.at == b.at
                && a.policy_digest_before == b.policy_digest_before
                && a.policy_digest_after == b.policy_digest_after
        };
        let change = |records| Some(Change { first: <[Recorded]>::first(records)?, records, cut_short: false });
        let mut changes: Vec<Change<'_>> = self.0.chunk_by(of_one).filter_map(change).collect();
        // From the last one back: what the next change of the policy is, and the most records that it was written with.
        let mut next: Option<(&AccessChange, usize)> = None;
        for change in changes.iter_mut().rev() {
            let said = &change.first.change;
            let (before, after) = (&said.policy_digest_before, &said.policy_digest_after);
            if before.as_ref() == Some(after) {
                // It changes no policy. That of an identity provider may come between, while the old policy is in force.
                next = next.filter(|(of, _)| of.policy_digest_before == *before);
                continue;
            }
            let same = |of: &AccessChange| of.policy_digest_before == *before && of.policy_digest_after == *after;
            let (records, again) =
                (change.records.len(), next.map_or(0, |(of, records)| if same(of) { records } else { 0 }));
            change.cut_short = records < again;
            next = Some((said, records.max(again)));
        }
        changes
    }

    /// What was in force at this time, by the gateway's clock.
    pub fn at(&self, at: u64) -> State {
        let changes = self.changes();
        in_force(changes.iter().take(count_until(&changes, at)))
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
    let records = changes.into_iter().filter(|change| !change.cut_short).flat_map(|change| change.records);
    records.for_each(|record| state.replay(&record.change));
    state
}

#[cfg(test)]
mod tests;
