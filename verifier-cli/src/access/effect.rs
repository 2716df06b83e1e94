//! What a change changed: each part as it was before its records, and as it is after them.
//!
//! What must hold: it is found by replaying the records, not by what they say of themselves, so that what was written once more
//! after a crash changes nothing, and a rule is shown as it was.

use custody::{
    access::{Change, Holder, Member, State, is_of},
    id::MemberId,
    wire::{AccessAction, AccessChange, AccessRule},
};

/// A part of the policy, at one time.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Part {
    Member(MemberId, Option<Member>),
    Group(MemberId, String, bool),
    Agent(MemberId, bool),
    Token(Vec<u8>, Option<Holder>),
    /// With its place in the order, from 0 on.
    Rule(String, Option<(usize, AccessRule)>),
    Limit(String, Option<AccessRule>),
    Server(String, Option<Vec<String>>),
}

/// A part before and after.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Effect {
    pub(super) before: Part,
    pub(super) after: Part,
}

/// Replays a change over what was in force, and says what it changed.
pub(super) fn effects(state: &mut State, change: &Change<'_>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (at, record) in change.records.iter().enumerate() {
        let of = &record.change;
        // What was before a new beginning does not count.
        let fresh = State::default();
        let begins = at == 0 && of.policy_digest_before.is_none();
        let before = part(if begins { &fresh } else { state }, of);
        state.replay(of);
        let after = part(state, of);
        if let (Some(before), Some(after)) = (before, after)
            && before != after
        {
            effects.push(Effect { before, after });
        }
    }
    state.end_change();
    effects
}

/// The part that a record is about. Of a member the groups are parts of their own.
fn part(state: &State, change: &AccessChange) -> Option<Part> {
    let id = |bytes: &Option<bytes::Bytes>| bytes.as_deref().and_then(|id| MemberId::try_from(id).ok());
    let member = id(&change.member);
    Some(match change.action() {
        AccessAction::MemberAdded | AccessAction::MemberRevoked => {
            let id = member?;
            let without_groups = |of: &Member| Member { groups: Default::default(), ..of.clone() };
            Part::Member(id, state.members.get(&id).map(without_groups))
        }
        AccessAction::GroupJoined | AccessAction::GroupLeft => {
            let id = member?;
            let is_in = state.members.get(&id).is_some_and(|member| member.groups.contains(&change.group));
            Part::Group(id, change.group.clone(), is_in)
        }
        AccessAction::AgentAdded | AccessAction::AgentRemoved => {
            let id = id(&change.agent)?;
            Part::Agent(id, state.agents.contains(&id))
        }
        AccessAction::TokenIssued | AccessAction::TokenRotated | AccessAction::TokenRevoked => {
            let token = change.token.as_ref()?;
            Part::Token(token.to_vec(), state.tokens.get(token).cloned())
        }
        AccessAction::RuleAdded | AccessAction::RuleRemoved => {
            let id = &change.rule.as_ref()?.id;
            let found = state.rules.0.iter().enumerate().find(|(_, rule)| rule.id == *id);
            Part::Rule(id.clone(), found.map(|(place, rule)| (place, rule.clone())))
        }
        AccessAction::LimitChanged | AccessAction::LimitRemoved => {
            let id = &change.rule.as_ref()?.id;
            Part::Limit(id.clone(), state.limits.iter().find(|limit| limit.id == *id).cloned())
        }
        AccessAction::ServerChanged | AccessAction::ServerRemoved => {
            Part::Server(change.server.clone(), state.servers.get(&change.server).cloned())
        }
        AccessAction::PolicyApplied | AccessAction::Unspecified => return None,
    })
}

impl Effect {
    /// Whether a change of a part concerns this member, who is in the groups that `state` has.
    pub(super) fn is_of(&self, member: &MemberId, state: &State) -> bool {
        let groups: Vec<String> =
            state.members.get(member).map(|of| of.groups.iter().cloned().collect()).unwrap_or_default();
        [&self.before, &self.after].into_iter().any(|part| match part {
            Part::Member(id, _) | Part::Group(id, ..) => id == member,
            Part::Token(_, holder) => holder.as_ref().is_some_and(|holder| holder.member == *member),
            Part::Rule(_, rule) => rule.as_ref().is_some_and(|(_, rule)| is_of(rule, member, &groups)),
            Part::Limit(_, limit) => limit.as_ref().is_some_and(|limit| is_of(limit, member, &groups)),
            Part::Agent(..) | Part::Server(..) => false,
        })
    }
}
