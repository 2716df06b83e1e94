//! An access policy made ready for quick decisions. It decides exactly as the contract does (`custody::access`).

use std::sync::Arc;

use custody::access;

use super::{
    Ask, Caller, Cut, Judgement, OverLimit, Slot, Unauthenticated, Why,
    policy::{Policy, Rule, Scope},
    token::Presented,
};

/// A policy, and what finds its rules.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) policy: Policy,
}

impl Compiled {
    pub(super) fn new(policy: Policy) -> Self {
        Self { policy }
    }

    pub(super) fn authenticate(&self, authorization: Option<&str>, now_us: u64) -> Result<Caller, Unauthenticated> {
        let nobody = |kind| Unauthenticated { kind, caller: None };
        let authorization = authorization.ok_or_else(|| nobody(Why::Absent))?;
        let presented = Presented::parse(authorization).ok_or_else(|| nobody(Why::Malformed))?;
        let token = self.policy.tokens.get(&presented.id).ok_or_else(|| nobody(Why::Unknown))?;
        let member = self.policy.members.get(&token.member).ok_or_else(|| nobody(Why::Unknown))?;
        let caller = Caller {
            member: token.member,
            token: Some(presented.id),
            agent: Some(token.agent),
            groups: member.groups.iter().cloned().collect(),
        };
        // The secret first: what is true of a token is only for whoever holds it.
        let kind = if !presented.is(&token.sha256) {
            Why::Wrong
        } else if token.revoked || member.revoked {
            Why::Revoked
        } else if token.expires_at <= now_us {
            Why::Expired
        } else {
            return Ok(caller);
        };
        Err(Unauthenticated { kind, caller: Some(caller) })
    }

    pub(super) fn judge(&self, caller: &Caller, ask: &Ask<'_>) -> Judgement {
        let found = self.policy.rules.iter().find(|rule| {
            applies(&rule.scope, caller)
                && rule.scope.tools.iter().any(|tool| access::fits_tool(tool, ask.server, ask.name))
                && rule.methods.iter().any(|method| access::fits(method, ask.method))
        });
        let (allowed, rule) = match found {
            Some(Rule { allow, id, .. }) => (*allow, Arc::clone(id)),
            None if access::SESSION_METHODS.contains(&ask.method) && self.may_reach(caller, ask.server) => {
                (true, access::SESSION.into())
            }
            None => (false, access::DEFAULT_DENY.into()),
        };
        Judgement { allowed, rule, policy: self.policy.digest }
    }

    pub(super) fn may_reach(&self, caller: &Caller, server: &str) -> bool {
        self.policy.rules.iter().any(|rule| {
            rule.allow
                && applies(&rule.scope, caller)
                && rule.scope.tools.iter().any(|tool| access::fits(access::halves(tool).0, server))
        })
    }

    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "limits come next")]
    pub(super) fn enter(&self, _: &Caller, _: &Ask<'_>, _: u64) -> Result<Slot, OverLimit> {
        Ok(Slot { response_bytes_max: None })
    }

    pub(super) fn still_allowed(&self, caller: &Caller, ask: &Ask<'_>, now_us: u64) -> Result<(), Cut> {
        let kind = match caller.token.map(|id| self.policy.tokens.get(&id)) {
            Some(None) => Some(Why::Revoked),
            Some(Some(token)) if token.revoked => Some(Why::Revoked),
            Some(Some(token)) if token.expires_at <= now_us => Some(Why::Expired),
            _ => None,
        };
        let member = self.policy.members.get(&caller.member).filter(|member| !member.revoked);
        let (None, Some(member)) = (kind, member) else {
            let kind = kind.unwrap_or(Why::Revoked);
            return Err(Cut::Unauthenticated(Unauthenticated { kind, caller: Some(caller.clone()) }));
        };
        let caller = Caller { groups: member.groups.iter().cloned().collect(), ..caller.clone() };
        let judgement = self.judge(&caller, ask);
        if judgement.allowed { Ok(()) } else { Err(Cut::Denied(judgement)) }
    }
}

fn applies(scope: &Scope, caller: &Caller) -> bool {
    let everyone = scope.members.is_empty() && scope.groups.is_empty();
    everyone || scope.members.contains(&caller.member) || caller.groups.iter().any(|group| scope.groups.contains(group))
}
