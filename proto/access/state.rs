//! An access policy put together again from the records of its changes (FORMAT.md, 5.6).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::Rules;
use crate::{
    id::MemberId,
    wire::{AccessAction, AccessChange, AccessRule, Decision},
};

/// What the records of one gateway say, up to the last that was replayed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Digest of the policy; none before the first record.
    pub digest: Option<[u8; 32]>,
    /// When it last began anew, or nothing was known of before.
    begun_at: Option<u64>,
    /// Of the last change: when it was made, and the digest before it.
    last: Option<(u64, Option<Bytes>)>,
    /// Changes that do not continue the one before: records between are missing.
    pub gaps: u64,
    /// Records that do not fit what was before: without a field that their action has, of a group or a token of nobody, at a
    /// place past the end. Records between are missing, or the gateway does not write what it should.
    pub misfits: u64,
    /// Both, up to when it last began anew.
    settled: u64,
    /// Who may call.
    pub members: BTreeMap<MemberId, Member>,
    /// Through what.
    pub agents: BTreeSet<MemberId>,
    /// Labels of the servers.
    pub servers: BTreeMap<String, Vec<String>>,
    /// Tokens that were not revoked.
    pub tokens: BTreeMap<Bytes, Holder>,
    /// In their order.
    pub rules: Rules,
    /// All that apply count.
    pub limits: Vec<AccessRule>,
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// In order.
    pub groups: BTreeSet<String>,
    /// Of a service.
    pub owner: Option<MemberId>,
    /// As FORMAT.md, 5.6 has them.
    pub labels: Vec<String>,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The member.
    pub member: MemberId,
    /// What it was issued for.
    pub agent: Option<MemberId>,
    /// From then on it is refused.
    pub expires_at: u64,
}

impl State {
    /// Takes the next record of the gateway.
    pub fn replay(&mut self, change: &AccessChange) {
        self.continues(change);
        let fits = self.take(change);
        self.misfits = self.misfits.saturating_add(u64::from(!fits));
    }

    /// What comes now is of another change, also if it has the same time.
    pub fn end_change(&mut self) {
        self.begun_at = None;
    }

    /// Whether the records say all that was in force: none is missing since it last began anew.
    pub fn is_whole(&self) -> bool {
        self.digest.is_some() && self.gaps.saturating_add(self.misfits) == self.settled
    }

    /// Whether it fits what was before. What was taken back already may be taken back once more, after a crash.
    fn take(&mut self, change: &AccessChange) -> bool {
        let member = change.member.as_deref().and_then(|id| MemberId::try_from(id).ok());
        let agent = change.agent.as_deref().and_then(|id| MemberId::try_from(id).ok());
        match change.action() {
            AccessAction::MemberAdded | AccessAction::MemberRevoked => self.member(change, member),
            AccessAction::GroupJoined | AccessAction::GroupLeft => {
                let Some(member) = member.and_then(|id| self.members.get_mut(&id)) else { return false };
                match change.action() {
                    AccessAction::GroupJoined => drop(member.groups.insert(change.group.clone())),
                    _ => drop(member.groups.remove(&change.group)),
                }
                !change.group.is_empty()
            }
            AccessAction::AgentAdded => agent.map(|agent| self.agents.insert(agent)).is_some(),
            AccessAction::AgentRemoved => agent.map(|agent| self.agents.remove(&agent)).is_some(),
            AccessAction::TokenIssued | AccessAction::TokenRotated | AccessAction::TokenRevoked => {
                self.token(change, member, agent)
            }
            AccessAction::RuleAdded | AccessAction::RuleRemoved => self.rule(change),
            AccessAction::LimitChanged | AccessAction::LimitRemoved => self.limit(change),
            AccessAction::ServerChanged => {
                drop(self.servers.insert(change.server.clone(), change.labels.clone()));
                !change.server.is_empty()
            }
            AccessAction::ServerRemoved => {
                drop(self.servers.remove(&change.server));
                !change.server.is_empty()
            }
            AccessAction::PolicyApplied => true,
            AccessAction::Unspecified => false,
        }
    }

    /// Holds a record against the one before.
    fn continues(&mut self, change: &AccessChange) {
        let after = <[u8; 32]>::try_from(change.policy_digest_after.as_ref()).ok();
        let this = (change.at, change.policy_digest_before.clone());
        // Of the same change, or of the same once more: a crash cut it short.
        let same = self.digest == after && self.last.as_ref().is_some_and(|(_, before)| *before == this.1);
        match &this.1 {
            None if same && self.begun_at == Some(change.at) => {}
            None => {
                let (gaps, misfits) = (self.gaps, self.misfits);
                let settled = gaps.saturating_add(misfits);
                *self = Self { begun_at: Some(change.at), gaps, misfits, settled, ..Self::default() };
            }
            Some(before) => {
                let next = self.digest.as_ref().is_some_and(|digest| digest == before.as_ref());
                self.gaps = self.gaps.saturating_add(u64::from(!same && !next));
            }
        }
        (self.digest, self.last) = (after, Some(this));
    }

    fn member(&mut self, change: &AccessChange, member: Option<MemberId>) -> bool {
        let Some(id) = member else { return false };
        if change.action() == AccessAction::MemberRevoked {
            self.members.remove(&id);
            self.tokens.retain(|_, holder| holder.member != id);
            return true;
        }
        let owner = change.owner.as_deref().and_then(|id| MemberId::try_from(id).ok());
        self.members.insert(id, Member { groups: BTreeSet::new(), owner, labels: change.labels.clone() });
        true
    }

    fn token(&mut self, change: &AccessChange, member: Option<MemberId>, agent: Option<MemberId>) -> bool {
        let Some(token) = &change.token else { return false };
        match (change.action(), change.expires_at, member) {
            (AccessAction::TokenIssued, Some(expires_at), Some(member)) => {
                self.tokens.insert(token.clone(), Holder { member, agent, expires_at });
                return self.members.contains_key(&member);
            }
            (AccessAction::TokenRotated, Some(expires_at), _) => {
                self.tokens.entry(token.clone()).and_modify(|holder| holder.expires_at = expires_at);
            }
            _ => drop(self.tokens.remove(token)),
        }
        change.action() != AccessAction::TokenIssued
    }

    fn rule(&mut self, change: &AccessChange) -> bool {
        let Some(rule) = &change.rule else { return false };
        self.rules.0.retain(|known| known.id != rule.id);
        if change.action() == AccessAction::RuleRemoved {
            return true;
        }
        let place = change.place.and_then(|place| usize::try_from(place).ok()).unwrap_or(usize::MAX);
        self.rules.0.insert(place.min(self.rules.0.len()), rule.clone());
        // It is one of them now.
        place < self.rules.0.len()
    }

    fn limit(&mut self, change: &AccessChange) -> bool {
        let Some(limit) = &change.rule else { return false };
        let place = self.limits.iter().position(|known| known.id == limit.id);
        match (change.action(), place.and_then(|place| self.limits.get_mut(place)), place) {
            (AccessAction::LimitChanged, Some(known), _) => known.clone_from(limit),
            (AccessAction::LimitChanged, None, _) => self.limits.push(limit.clone()),
            (_, _, Some(place)) => drop(self.limits.remove(place)),
            _ => {}
        }
        true
    }

    /// Tokens with which a member could call at this time.
    pub fn tokens_of(&self, member: &MemberId, at: u64) -> impl Iterator<Item = (&Bytes, &Holder)> {
        self.tokens.iter().filter(move |(_, holder)| holder.member == *member && holder.expires_at > at)
    }

    /// What was decided of a request of this member, and by which rule; none if nobody known by this id could call at this
    /// time, because there is no such member, or no token of it was good and no identity provider's word was taken.
    pub fn decide(
        &self,
        member: &MemberId,
        at: u64,
        server: &str,
        name: Option<&str>,
        method: &str,
    ) -> Option<(Decision, &str)> {
        let known = self.members.get(member)?;
        let vouched = known.labels.iter().any(|label| label == super::IDENTITY_PROVIDER);
        if !vouched && self.tokens_of(member, at).next().is_none() {
            return None;
        }
        let groups: Vec<String> = known.groups.iter().cloned().collect();
        Some(self.rules.decide(member, &groups, server, name, method))
    }
}
