//! What speaks against the ledger's word on what is of a period: times decide which segments are examined, and the times of
//! those that are not are nobody's but the ledger's (FORMAT.md, 13.4 and 13.8).

use std::ops::Range;

use super::super::{
    Options,
    log::WorkspaceLog,
    segment::{Leaf, What},
    silence::DAY_US,
};
use crate::{
    archive,
    id::{ObjectHash, WorkspaceId},
    segment::Seal,
    verdict::Verdict,
};

/// Names the first segment that was not examined and whose seal gives it a time that order contradicts. A day is what a
/// clock may be set back, or be wrong, without anybody's meaning it.
pub(super) fn find_misdated(
    workspace: &WorkspaceLog,
    seals: &[Seal],
    run: &Range<usize>,
    as_of: u64,
    verdict: &mut Verdict,
) {
    let mut latest_before = 0;
    let mut is_early = Vec::new();
    for seal in seals {
        is_early.push(seal.last_received_at.saturating_add(DAY_US) < latest_before);
        latest_before = latest_before.max(seal.first_received_at);
    }
    let mut earliest_after = u64::MAX;
    let mut found: Vec<&Seal> = Vec::new();
    for ((at, seal), is_early) in seals.iter().enumerate().zip(is_early).rev() {
        let late = seal.last_received_at.saturating_sub(DAY_US);
        let is_late =
            late > as_of || late > seal.sealed_at || seal.first_received_at.saturating_sub(DAY_US) > earliest_after;
        earliest_after = earliest_after.min(seal.last_received_at);
        if !run.contains(&at) && (is_early || is_late) {
            found.push(seal);
        }
    }
    let Some(first) = found.last() else { return };
    let hash = usize::try_from(first.segment).ok().and_then(|at| workspace.seals.get(at)).map(|(_, hash)| *hash);
    let text = format!(
        "{} segments were left out because of the times in their seals, which the order of the segments contradicts",
        found.len()
    );
    let place = archive::seal(workspace.id, first.segment, hash.unwrap_or(ObjectHash::ZERO));
    verdict.find("misdated", Some(workspace.id), place, text);
}

/// Names a segment with a batch that its gateway dates into the period, and the ledger before it: what came before that
/// may be of the period too, and was perhaps left out by the ledger's word.
pub(super) fn find_in_period(
    workspace: WorkspaceId,
    name: &str,
    leaves: &[Leaf],
    options: &Options,
    verdict: &mut Verdict,
) {
    let Some(since) = options.since else { return };
    let is_misdated = |leaf: &&Leaf| {
        let created = match &leaf.what {
            What::Batch(batch) => batch.header.created_at,
            What::Statement(_) => return false,
        };
        leaf.received_at < since && since <= created
    };
    if leaves.iter().any(|leaf| is_misdated(&leaf)) {
        let text = "a gateway signed a batch in the period, and the ledger says that it received it before".to_owned();
        verdict.find("misdated", Some(workspace), name.to_owned(), text);
    }
}
