//! The same walk once more: the alarms on record again, byte for byte, or those that other rules would have raised.
//!
//! What must hold: a replay writes nothing and trusts nothing that the watch remembered; it begins with the first record.

use std::{collections::VecDeque, sync::Arc};

use custody::{
    id::WorkspaceId,
    wire::{self, AlarmPhase},
};

use super::{Walk, alarm_at, bytes_of, engine::Engine};
use crate::{
    store::StoreError,
    tail::{One, Tail},
};

/// Positions that an outcome names.
const POSITIONS_MAX: usize = 16;

/// A replay under way.
pub struct Replay<'a> {
    tail: &'a Tail,
    own: Option<WorkspaceId>,
    engine: Engine,
    /// Next commit, and the one that it ends before.
    next: u64,
    end: u64,
    /// Rules of somebody: nothing is compared, and what was received before this raises nothing.
    since: Option<u64>,
    /// Raised again by a commit, and not yet seen on record.
    raised: VecDeque<(u64, Vec<u8>)>,
    /// Alarms of commits before it are on record in what is walked.
    told: u64,
    outcome: wire::ReplayOutcome,
}

impl<'a> Replay<'a> {
    /// Of the ledger's own rules, or of others from a moment on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn new(
        tail: &'a Tail,
        own: Option<WorkspaceId>,
        mut engine: Engine,
        since: Option<u64>,
    ) -> Result<Self, StoreError> {
        if since.is_some() {
            engine.put_in_force();
        }
        // In this order: what was told then is in what is walked.
        let told = tail.store()?.number(super::TOLD)?.unwrap_or(0);
        let end = tail.committed();
        let (raised, outcome) = (VecDeque::new(), wire::ReplayOutcome::default());
        Ok(Self { tail, own, engine, next: 0, end, since, raised, told, outcome })
    }

    /// Commits that were walked, of how many.
    pub fn progress(&self) -> (u64, u64) {
        (self.next, self.end)
    }

    /// So many commits; the alarms of somebody's rules, and whether there is more. `None`: nobody wants to know any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn step(
        &mut self,
        commits: u64,
        unwanted: &dyn Fn() -> bool,
    ) -> Result<Option<(Vec<wire::Alarm>, bool)>, StoreError> {
        let mut told = Vec::new();
        let end = self.end.min(self.next.saturating_add(commits));
        while self.next < end {
            if unwanted() {
                return Ok(None);
            }
            // Before its own raises anything: an alarm on record is of a commit before it.
            if self.since.is_none() {
                self.compare(self.next)?;
            }
            let (alarms, _) = Walk { tail: self.tail, own: self.own }.take(&mut self.engine, self.next)?;
            match self.since {
                Some(since) => told.extend(alarms.into_iter().filter(|alarm| alarm.at >= since)),
                None => self.raised.extend(alarms.iter().map(|alarm| (self.next, bytes_of(alarm)))),
            }
            if !self.engine.in_force() {
                // Other rules came: what these had not told by then was never told.
                self.raised.clear();
            }
            self.next += 1;
        }
        Ok(Some((told, self.next < self.end)))
    }

    /// Alarms on record in a commit, with those that were raised again.
    fn compare(&mut self, commit_index: u64) -> Result<(), StoreError> {
        let Some(batch) = self.tail.batch(commit_index)?.filter(|batch| Some(batch.workspace()) == self.own) else {
            return Ok(());
        };
        for index in 0..batch.records().len() {
            let one = One { batch: Arc::clone(&batch), index };
            // A condition is none.
            let Some(alarm) = alarm_at(&one).filter(|alarm| alarm.phase() == AlarmPhase::Raised) else { continue };
            if alarm.rule_digest.as_deref() != Some(&self.engine.digest()[..]) {
                self.outcome.of_others += 1;
                continue;
            }
            let recorded = batch.records().get(index).map(AsRef::as_ref).unwrap_or_default();
            match self.raised.iter().position(|(_, raised)| raised == recorded) {
                Some(at) => {
                    // Those before it were told before it, or never.
                    self.outcome.not_on_record += at as u64;
                    self.raised.drain(..=at);
                    self.outcome.same += 1;
                }
                None => {
                    self.outcome.not_again += 1;
                    if self.outcome.positions.len() < POSITIONS_MAX {
                        self.outcome.positions.extend(batch.place(index).map(|place| place.position));
                    }
                }
            }
        }
        Ok(())
    }

    /// How it compares. What the last commits raised may be on its way to the record, and does not count.
    pub fn outcome(mut self) -> wire::ReplayOutcome {
        let missing = self.raised.iter().filter(|(commit_index, _)| *commit_index < self.told).count();
        self.outcome.not_on_record += missing as u64;
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        rig::{Dir, Rig},
        watch::rules,
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replay_that_nobody_wants_ends_before_its_next_commit() {
        let dir = Dir::new("unwanted");
        let rig = Rig::start(&dir.0).await.unwrap();
        let (_, mut peer) = rig.workspace(9).await;
        let mut answers = peer.open(&rig, 1).await.unwrap();
        for _ in 0..4 {
            let batch = peer.batch(1);
            peer.send(&rig, 1, &mut answers, batch).await.unwrap();
        }
        let store = rig.store.upgrade().unwrap();
        let tail = Tail::open(&store).unwrap();
        let engine = Engine::new(&rules::all(None).unwrap()).unwrap();
        let mut replay = Replay::new(&tail, None, engine, Some(0)).unwrap();
        let asked = Cell::new(0);
        let unwanted = || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        };
        assert_eq!(replay.step(100, &unwanted).unwrap(), None);
        assert_eq!(replay.progress().0, 2);
        assert!(replay.step(100, &|| false).unwrap().is_some_and(|(_, more)| !more));
        assert!(replay.progress().0 > 3);
        drop(store);
        rig.stop().await;
    }
}
