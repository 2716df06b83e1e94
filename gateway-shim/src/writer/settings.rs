//! What the writer is told when it is opened, and what that says of a receipt.

use std::{collections::BTreeMap, time::Duration};

use custody::wire;
use ed25519_dalek::SigningKey;

use super::{Ending, RELAXED_MAX, SYNC_AFTER};
use crate::{
    batcher::Limits,
    clock::Clocks,
    config::WhenFull,
    forensic::{self, Signers},
    key::{self, Name},
    spool::Opener,
};

/// What the writer needs to know.
pub struct Settings {
    /// Who signs.
    pub who: Name,
    /// With what.
    pub key: SigningKey,
    /// When batches are due.
    pub limits: Limits,
    /// What happens when a record cannot be kept, for all that is of none of `servers`.
    pub when_full: WhenFull,
    /// The same, for calls and definitions of these servers.
    pub servers: BTreeMap<String, WhenFull>,
    /// Who signs forensic receipts here.
    pub signers: Signers,
    /// Of each server: names that may stand in the metadata of a receipt that is kept whole.
    pub receipt_metadata: BTreeMap<String, Vec<String>>,
    /// The ledger takes nothing when it was away for so long, or has not answered for a batch.
    pub away_max: Duration,
    /// How long a write may wait for the disk.
    pub waits: Waits,
    /// The clocks that are compared.
    pub clocks: Clocks,
    /// What the opening record says, besides the clock.
    pub opened: wire::Opened,
}

/// How long a write may wait for the disk.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Before a sync begins for it, though nobody waits.
    pub sync_after: Duration,
    /// Before relaxed calls wait as well.
    pub relaxed_max: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { sync_after: SYNC_AFTER, relaxed_max: RELAXED_MAX }
    }
}

impl Settings {
    /// Takes out of the receipt in what an answer told whatever is not kept.
    pub(super) fn cut_receipt(&self, server: &str, ending: &mut Ending) {
        if let Some(receipt) = ending.learnt.as_mut().and_then(|learnt| learnt.receipt.as_mut()) {
            let listed = self.receipt_metadata.get(server).map_or(&[][..], Vec::as_slice);
            forensic::cut(receipt, &self.signers, listed);
        }
    }

    /// Who opens the spool.
    pub fn opener(&self) -> Opener {
        Opener { who: self.who.clone(), key_id: key::key_id(&self.key), old_key_lost: false }
    }
}
