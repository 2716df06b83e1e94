//! When an intent no longer stands for its call.
//!
//! What must hold: this is the one rule, for the ledger, for its index and for whoever reads an archive: a call counts once, by the
//! record that says most of it.

use crate::{id::Epoch, wire::Phase};

/// One record of a call that has several: which call it is of, beside gateway and call number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallPart {
    /// In which run of the gateway it was signed.
    pub epoch: Epoch,
    /// When the call began.
    pub started_at: u64,
    /// What it is.
    pub phase: Phase,
}

impl CallPart {
    /// Whether this intent is ended by a later record of the same gateway and call number: any of its own epoch; or, of a gateway
    /// that went on counting in another epoch, an outcome of the call that began at the same moment.
    pub fn is_ended_by(&self, later: &Self) -> bool {
        self.epoch == later.epoch || (later.phase != Phase::Intent && self.started_at == later.started_at)
    }
}
