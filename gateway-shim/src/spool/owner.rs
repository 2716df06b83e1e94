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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use custody::{
        batch::{encode_signed, seal_header},
        id::{Epoch, HeaderHash},
        wire::DropReason,
    };

    use super::*;
    use crate::{
        batcher::{self, Pending, Place, Saying},
        durable::recorder::Recorder,
        spool::{Entry, Limits, Spool, frame, name},
    };

    const LIMITS: Limits = Limits { bytes_max: 1 << 20, file_bytes_max: 20_000, reserve_bytes: 20_000 };

    fn opener(gateway: u8) -> Opener {
        let who = Name { origin: "o".into(), workspace: WorkspaceId([3; 16]), gateway: GatewayId([gateway; 16]) };
        Opener { who, key_id: KeyId([2; 32]), old_key_lost: false }
    }

    /// A spool of one file, a snapshot of this version and these frames.
    fn spool(version: u32, entries: &[Entry]) -> Recorder {
        let mut state = State::default();
        let place = Place::opening(Epoch([1; 16]), KeyId([2; 32]), HeaderHash([9; 32]), None);
        state.open(place, Pending { number: 0, bytes: Bytes::from_static(b"record") });
        let snapshot = frame::Snapshot { version, owner: None, ..state.snapshot() };
        let mut bytes = Vec::new();
        for entry in [Entry::Snapshot(Box::new(snapshot))].iter().chain(entries) {
            bytes.extend(frame::encode(0, bytes.len() as u64, entry.clone()));
        }
        Recorder::with([(name(0), bytes)].into())
    }

    fn open(disk: &Recorder, opener: &Opener) -> Result<Spool, SpoolError> {
        Spool::open(Box::new(disk.clone()), LIMITS, opener)
    }

    #[test]
    fn a_spool_without_an_owner_gets_the_one_who_opens_it() {
        let disk = spool(1, &[]);
        let before = open(&disk, &opener(4)).unwrap();
        assert_eq!(before.state().next_number, 1);
        // As if it had died before it wrote anything.
        drop(before);
        let mut spool = open(&disk, &opener(5)).unwrap();
        spool.turn(|_| {}).unwrap();
        assert!(matches!(open(&disk, &opener(4)), Err(SpoolError::OfAnother(owner)) if owner == opener(5).who));
        open(&disk, &opener(5)).unwrap();
    }

    #[test]
    fn a_spool_without_an_owner_is_of_the_one_whose_batches_it_holds() {
        let place = Place::opening(Epoch([1; 16]), KeyId([2; 32]), HeaderHash([9; 32]), None);
        let saying =
            Saying { last_head: Bytes::new(), drop_reason: DropReason::SpoolFull, close: false, created_at: 1 };
        let records = [Bytes::from_static(b"record")];
        let mut header = batcher::header(&opener(4).who, &place, 0, 1, saying);
        seal_header(&mut header, &[0; 32], &records);
        let batch = encode_signed(&header.encode(), &crate::key::generate(), &[0; 32], &records);
        let disk = spool(1, &[Entry::Batch(batch.into())]);
        assert!(matches!(open(&disk, &opener(5)), Err(SpoolError::OfAnother(owner)) if owner == opener(4).who));
        assert!(disk.ops().is_empty(), "something was written");
        // Also when the batch is in a file before.
        let mut held = open(&disk, &opener(4)).unwrap();
        held.turn(|state| state.owner = None).unwrap();
        assert!(matches!(open(&disk, &opener(5)), Err(SpoolError::OfAnother(owner)) if owner == opener(4).who));
    }

    #[test]
    fn a_spool_of_a_newer_version_is_no_damage() {
        for (version, newer) in [(0, false), (3, true)] {
            let disk = spool(version, &[]);
            let Err(why) = open(&disk, &opener(4)) else { panic!("version {version} was read") };
            assert_eq!(matches!(why, SpoolError::Newer), newer, "{why}");
            assert!(disk.ops().is_empty(), "something was written");
        }
    }
}
