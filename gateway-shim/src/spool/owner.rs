//! Whose a spool is, and who may open it. Pure.
//!
//! What must hold: nothing is written for one gateway under the name of another, and nothing is signed with one key under the
//! id of another. What is signed so stays in the spool, no ledger takes it, and it bars the way for all behind it.

use custody::{
    batch::Header,
    id::{GatewayId, KeyId, WorkspaceId},
};

use super::{SpoolError, frame::snapshot, state::State};
use crate::key::Name;

/// Who opens a spool.
#[derive(Clone, Debug)]
pub struct Opener {
    /// The gateway.
    pub who: Name,
    /// The key with which it signs from now on.
    pub key_id: KeyId,
    /// The key of an epoch that is not ended is lost, so nobody can end it: the opener goes on with its own.
    pub old_key_lost: bool,
}

impl Opener {
    /// Looked at before anything is written.
    pub(super) fn may_open(&self, state: &State) -> Result<(), SpoolError> {
        if let Some(owner) = state.owner.as_ref().filter(|owner| **owner != self.who) {
            return Err(SpoolError::OfAnother(owner.clone()));
        }
        match &state.place {
            Some(place) if !place.closed && place.key_id != self.key_id && !self.old_key_lost => {
                Err(SpoolError::OtherKey(place.epoch, place.key_id))
            }
            _ => Ok(()),
        }
    }
}

impl State {
    /// A spool of version 1 says whose it is by the batches that it holds, if by anything.
    pub(super) fn is_of(&mut self, header: &Header) {
        self.owner.get_or_insert_with(|| Name {
            origin: header.origin.clone(),
            workspace: header.workspace,
            gateway: header.gateway,
        });
    }
}

impl snapshot::Owner {
    pub(super) fn of(name: &Name) -> Self {
        let Name { origin, workspace, gateway } = name.clone();
        Self { origin, workspace: workspace.into(), gateway: gateway.into() }
    }

    pub(super) fn name(&self) -> Option<Name> {
        let workspace = WorkspaceId::try_from(self.workspace.as_ref()).ok()?;
        let gateway = GatewayId::try_from(self.gateway.as_ref()).ok()?;
        Some(Name { origin: self.origin.clone(), workspace, gateway })
    }
}
