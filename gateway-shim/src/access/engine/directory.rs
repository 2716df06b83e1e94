//! Groups of members, told to the ledger's directory whenever they become others.
//!
//! What must hold: whoever is in other groups stands in a file until the ledger answered, so that a crash, or a ledger that is
//! away, forgets nobody; what is told is what the policy says at that time.

use std::collections::BTreeMap;

use super::*;
use crate::client::EnrolError;

/// How often a ledger that did not answer is asked again.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// Tells the ledger, until the engine is gone.
pub(super) async fn follow(engine: Weak<Inner>, gateway: Gateway) {
    loop {
        let Some(inner) = engine.upgrade() else { return };
        let regrouped = Arc::clone(&inner.regrouped);
        Engine(inner).tell_groups(&gateway).await;
        drop(tokio::time::timeout(TELL_AGAIN, regrouped.notified()).await);
    }
}

impl Engine {
    /// A member's groups are told again, whatever the directory has.
    pub async fn regroup(&self, member: MemberId) {
        let mut state = self.0.state.lock().await;
        if state.kept.regrouped.insert(member.to_string())
            && let Err(why) = self.keep(&state).await
        {
            tracing::warn!(why, "whose groups the ledger lacks is not written down; a restart forgets it");
        }
        drop(state);
        self.0.regrouped.notify_one();
    }

    async fn tell_groups(&self, gateway: &Gateway) {
        let mut told = BTreeMap::new();
        loop {
            let (member, groups) = {
                let state = self.0.state.lock().await;
                let next = state.kept.regrouped.iter().find(|id| !told.contains_key(*id));
                let Some(member) = next.and_then(|id| MemberId::from_hex(id)) else { break };
                (member, groups_of(&state.policy, member))
            };
            match gateway.tell_groups(member, &groups).await {
                Ok(_) => {}
                // Nobody whom the directory knows: an id that was made by hand.
                Err(EnrolError::Refused(why)) => {
                    tracing::debug!(%member, why, "the ledger takes no groups of a member")
                }
                Err(_) => break,
            }
            told.insert(member.to_string(), groups);
        }
        if told.is_empty() {
            return;
        }
        let mut state = self.0.state.lock().await;
        for (id, groups) in told {
            // They may have become others meanwhile.
            if MemberId::from_hex(&id).is_none_or(|member| groups_of(&state.policy, member) == groups) {
                state.kept.regrouped.remove(&id);
            }
        }
        if let Err(why) = self.keep(&state).await {
            tracing::warn!(why, "whose groups the ledger has is not written down; it is told again");
        }
    }
}

fn groups_of(policy: &Policy, member: MemberId) -> Vec<String> {
    let member = policy.members.get(&member).filter(|member| !member.revoked);
    member.map(|member| member.groups.iter().cloned().collect()).unwrap_or_default()
}
