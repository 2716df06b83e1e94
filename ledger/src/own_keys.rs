//! The ledger's own three keys, held against its own chain: what it may start with, and which of them may not be ended.
//!
//! What must hold: nothing is signed with a key that the chain does not name in that role, or has revoked. A gateway would
//! call each such head a lie, a checkpoint would be in the archive for ever, and records would be refuted.

use custody::{
    id::KeyId,
    key,
    statement::Chain,
    wire::{Role, Statement, statement::Action},
};
use ed25519_dalek::SigningKey;

/// Which keys this process signs with.
#[derive(Clone, Debug)]
pub struct OwnKeys([(Role, &'static str, KeyId); 3]);

impl OwnKeys {
    /// Of the keys that were loaded.
    pub fn of(record: &SigningKey, head: &SigningKey, log: &SigningKey) -> Self {
        let named = |role, name, signing| (role, name, key::public(signing).id(role));
        Self([named(Role::Record, "record", record), named(Role::Head, "head", head), named(Role::Log, "log", log)])
    }

    /// Whether the ledger may start with them.
    ///
    /// # Errors
    /// In words, with the next move.
    pub fn check(&self, chain: &Chain) -> Result<(), String> {
        for (role, name, id) in &self.0 {
            let wrong = match chain.key(id) {
                Some(known) if known.role == *role && known.revoked => "was revoked",
                // A retired key opens no epoch, and each start opens one of the ledger's own.
                Some(known) if *role == Role::Record && known.retired => "was retired",
                Some(known) if known.role == *role => continue,
                _ => "is not enrolled in the ledger's chain",
            };
            return Err(format!(
                "the key in {name}.key {wrong} ({id})\nhint: put the key back that is enrolled and start; then `ledger key enrol \
                 --role {name} --new-key FILE`, put FILE in its place and start again (docs/OPERATIONS.md, \"One of the ledger's own \
                 keys\")"
            ));
        }
        Ok(())
    }

    /// Why this statement cannot be taken while this process runs; `None` if it can.
    pub fn refusal(&self, statement: &Statement) -> Option<String> {
        let ended = match &statement.action {
            Some(Action::Revoke(revoke)) => &revoke.key_id,
            Some(Action::Retire(retire)) => &retire.key_id,
            _ => return None,
        };
        if statement.workspace.is_some() {
            return None;
        }
        let (_, name, _) = self.0.iter().find(|(.., id)| id.0[..] == ended[..])?;
        Some(format!(
            "ends a key that this ledger signs with (hint: enrol another with `ledger key enrol --role {name} --new-key FILE`, put FILE in \
             the place of {name}.key, start again, and then end this one)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use custody::{id::WorkspaceId, wire::Revoke};

    use super::*;

    #[test]
    fn only_a_key_in_use_is_kept_from_being_revoked() {
        let [record, head, log, other] = [1, 2, 3, 4].map(|n| SigningKey::from_bytes(&[n; 32]));
        let own = OwnKeys::of(&record, &head, &log);
        let revoke = |id: KeyId, workspace: Option<WorkspaceId>| Statement {
            workspace: workspace.map(Into::into),
            action: Some(Action::Revoke(Revoke { key_id: Bytes::copy_from_slice(&id.0), void_serials: Vec::new() })),
            ..Default::default()
        };
        for (signing, role) in [(&record, Role::Record), (&head, Role::Head), (&log, Role::Log)] {
            let id = key::public(signing).id(role);
            assert!(own.refusal(&revoke(id, None)).is_some_and(|why| why.contains("hint:")), "{role:?}");
            assert_eq!(own.refusal(&revoke(id, Some(WorkspaceId([1; 16])))), None);
        }
        assert_eq!(own.refusal(&revoke(key::public(&other).id(Role::Head), None)), None);
        // The same bytes in another role are another key.
        assert_eq!(own.refusal(&revoke(key::public(&head).id(Role::Log), None)), None);
        assert!(own.check(&Chain::new("a", None)).unwrap_err().contains("not enrolled"));
    }
}
