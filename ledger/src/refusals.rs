//! What gateways were refused that no honest gateway sends. It becomes no record, so it is held here until the watch puts a condition
//! on record.
//!
//! What must hold: it has a bound, and says nothing of what the batch held; one that stops is forgotten after a while.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use custody::{
    id::{GatewayId, WorkspaceId},
    wire::RejectReason,
};

/// How long after the last refusal it is over: a gateway that cannot go on tries again within a minute.
pub const OVER_US: u64 = 600_000_000;
/// Gateways that are remembered: of more, the first ones.
const GATEWAYS_MAX: usize = 4_096;

/// What was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// A batch with a record of a kind that a gateway may not write, of a key that is not enrolled for it or is revoked, or of another
    /// gateway's stream.
    Unauthorised,
    /// A batch whose signature, root or head is not what it says.
    Forged,
    /// A batch that is not in form.
    Malformed,
    /// A batch that holds a head of ours that this history does not have.
    Fork,
}

impl Refused {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unauthorised, Self::Forged, Self::Malformed, Self::Fork];

    /// Of a rejection; `None`: an honest gateway may meet with it.
    pub fn of(reason: RejectReason) -> Option<Self> {
        match reason {
            RejectReason::Unauthorised | RejectReason::Revoked | RejectReason::WrongStream => Some(Self::Unauthorised),
            RejectReason::Forged => Some(Self::Forged),
            RejectReason::Malformed => Some(Self::Malformed),
            _ => None,
        }
    }

    /// Name of its condition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unauthorised => "batch-unauthorised",
            Self::Forged => "batch-forged",
            Self::Malformed => "batch-malformed",
            Self::Fork => "fork",
        }
    }
}

/// By what and whom, when it was refused last.
type Known = BTreeMap<(Refused, WorkspaceId, GatewayId), u64>;

/// What was refused of late. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Known>>);

impl Refusals {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was refused.
    pub fn note(&self, what: Refused, workspace: WorkspaceId, gateway: GatewayId, now_us: u64) {
        let mut known = self.known();
        let of = (what, workspace, gateway);
        if known.len() < GATEWAYS_MAX || known.contains_key(&of) {
            known.insert(of, now_us);
        }
    }

    /// What is refused now.
    pub fn standing(&self, now_us: u64) -> Vec<(Refused, WorkspaceId, GatewayId)> {
        let mut known = self.known();
        // While a fork stands nothing can be put on record, and who showed it is asked no more: it waits.
        known.retain(|(what, ..), last| *what == Refused::Fork || now_us.saturating_sub(*last) < OVER_US);
        known.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_is_over_after_a_while_and_what_is_honest_is_not_noted() {
        let (workspace, gateway) = (WorkspaceId([1; 16]), GatewayId([2; 16]));
        let refusals = Refusals::default();
        refusals.note(Refused::Forged, workspace, gateway, 5);
        refusals.note(Refused::Fork, workspace, gateway, 9);
        refusals.note(Refused::Forged, workspace, gateway, 7);
        assert_eq!(refusals.standing(OVER_US).len(), 2);
        assert_eq!(refusals.standing(OVER_US + 7), [(Refused::Fork, workspace, gateway)]);
        assert_eq!(refusals.standing(u64::MAX), [(Refused::Fork, workspace, gateway)]);
        let honest = [RejectReason::Gap, RejectReason::Removed, RejectReason::FutureVersion];
        assert_eq!(honest.map(Refused::of), [None; 3]);
    }
}
