//! What became of alarms: how many each rule and detector raised, and what people said of them.
//!
//! What must hold: it follows from the ledger's own records alone; of each alarm the newest disposition counts; the walk has a bound, and
//! its answer says what was counted.

use std::collections::{BTreeMap, BTreeSet};

use custody::{
    id::WorkspaceId,
    wire::{AlarmPhase, DispositionKind, record::Kind},
};

use super::{engine::INCIDENT, record_of};
use crate::{store::StoreError, tail::Tail};

/// The newest of the ledger's own records that are counted: a second or two.
pub const RECORDS_MAX: u64 = 200_000;

/// What became of the alarms of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were; of a detector, which raises none of its own, the incidents that it is a reason of.
    pub alarms: u64,
    /// Those that were what they said.
    pub true_positives: u64,
    /// Those that were not.
    pub false_positives: u64,
    /// Those that were, and no harm.
    pub benign: u64,
}

/// Tallies by name, and the positions that were counted: from, and before.
///
/// # Errors
/// [`StoreError`].
pub fn tallies(
    tail: &Tail,
    own: WorkspaceId,
    records_max: u64,
) -> Result<(BTreeMap<String, Tally>, u64, u64), StoreError> {
    let end = tail.store()?.next_position(own)?;
    let first = end.saturating_sub(records_max);
    let (mut alarms, mut said) = (BTreeMap::<u64, (String, Vec<String>)>::new(), BTreeMap::new());
    let mut position = first;
    while position < end {
        let Some(one) = tail.at_position(own, position)? else { break };
        for index in one.index..one.batch.records().len() {
            match record_of(&one.batch, index).and_then(|record| record.kind) {
                Some(Kind::Alarm(alarm)) if alarm.phase() == AlarmPhase::Raised => {
                    let reasons = alarm.details.iter().filter_map(|detail| detail.key.strip_prefix("reason/"));
                    let reasons: Vec<String> = reasons.filter(|_| alarm.name == INCIDENT).map(str::to_owned).collect();
                    alarms.insert(position, (alarm.name, reasons));
                }
                Some(Kind::Disposition(of)) if of.workspace.as_ref() == own.0 => {
                    if matches!(
                        of.kind(),
                        DispositionKind::TruePositive | DispositionKind::FalsePositive | DispositionKind::Benign
                    ) {
                        said.insert(of.position, of.kind());
                    }
                }
                _ => {}
            }
            position += 1;
        }
    }
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    // Rules raise an alarm of their own besides, which is the one that counts.
    let alone: BTreeSet<String> = alarms.values().map(|(name, _)| name.clone()).collect();
    for (at, (name, reasons)) in alarms {
        let reasons = reasons.into_iter().filter(|reason| !alone.contains(reason));
        for name in [name].into_iter().chain(reasons) {
            let tally = tallies.entry(name).or_default();
            tally.alarms += 1;
            match said.get(&at) {
                Some(DispositionKind::TruePositive) => tally.true_positives += 1,
                Some(DispositionKind::FalsePositive) => tally.false_positives += 1,
                Some(_) => tally.benign += 1,
                None => {}
            }
        }
    }
    Ok((tallies, first, position))
}
