//! Looks at the fence every so often, beside the publisher.
//!
//! What must hold: the fence counts as seen only if nothing of another writer stood at the end of all claims. That end may lie
//! behind a claim of our own that the publisher has not taken into its log yet: its answer was lost, or the archive fails.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use custody::wire::Claim;

use crate::{
    alarm::{Alarm, Alarms},
    clock,
    fence::{Fence, FenceError},
    log_view::{Asked, FenceState, LogView, report},
};

/// Index of whatever follows a claim.
fn after(index: u64, claim: &Claim) -> u64 {
    index.saturating_add((claim.entries.len() as u64).max(1))
}

/// The first claim at or after `index` that is not our own.
async fn foreign(fence: &Fence, mut index: u64) -> Result<Option<Claim>, FenceError> {
    while let Some(claim) = fence.read(index).await? {
        if !fence.is_own(&claim) {
            return Ok(Some(claim));
        }
        index = after(index, &claim);
    }
    Ok(None)
}

/// Reads the fence every so often: another's claim fences this writer off, and a fresh read lets heads be signed plainly.
pub async fn watch_fence(
    fence: Fence,
    view: Arc<RwLock<LogView>>,
    state: Arc<FenceState>,
    alarms: Alarms,
    term: u64,
    every: Duration,
) {
    loop {
        clock::sleep(every).await;
        let index = view.read().unwrap_or_else(PoisonError::into_inner).tree.size();
        let asked = Asked::now();
        match foreign(&fence, index).await {
            Ok(Some(claim)) => {
                state.claimed(claim.term);
                state.fence_off();
                alarms.raise(Alarm::Fenced, format!("term {} stands in the fence, ours is {term}", claim.term));
                return;
            }
            Ok(None) => state.seen(asked),
            Err(why) => alarms.raise(Alarm::FenceUnreachable, report(&why)),
        }
    }
}

/// Beside an old copy of the database: what the fence holds beyond it is somebody else's, and is only looked at.
pub async fn follow_fence(fence: Fence, mut index: u64, state: Arc<FenceState>, alarms: Alarms, every: Duration) {
    loop {
        let asked = Asked::now();
        match fence.read(index).await {
            Ok(Some(claim)) => {
                state.claimed(claim.term);
                index = after(index, &claim);
                continue;
            }
            Ok(None) => state.seen(asked),
            Err(why) => alarms.raise(Alarm::FenceUnreachable, report(&why)),
        }
        clock::sleep(every).await;
    }
}
