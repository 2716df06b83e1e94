//! An access policy made ready for quick decisions. It decides exactly as the contract does (`custody::access`).

use std::{collections::HashMap, sync::Arc};

use custody::{access, id::MemberId};

use super::{
    Ask, Caller, Cut, Judgement, Unauthenticated, Why,
    index::Index,
    oidc::Provider,
    policy::{Limit, Policy, Rule, Scope},
    token::{self, Presented},
};

/// A policy, and what finds its rules.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) policy: Arc<Policy>,
    rules: Index,
    limits: Index,
    members: HashMap<MemberId, Known>,
    session: Arc<str>,
    default_deny: Arc<str>,
}

/// A member, as requests need one.
#[derive(Debug)]
struct Known {
    groups: Arc<[String]>,
    revoked: bool,
}

impl Compiled {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let known = |(id, member): (&MemberId, &super::policy::Member)| {
            (*id, Known { groups: member.groups.iter().cloned().collect(), revoked: member.revoked })
        };
        Self {
            rules: Index::new(policy.rules.iter().map(|rule| &rule.scope)),
            limits: Index::new(policy.limits.iter().map(|limit| &limit.scope)),
            members: policy.members.iter().map(known).collect(),
            session: access::SESSION.into(),
            default_deny: access::DEFAULT_DENY.into(),
            policy,
        }
    }

    /// Says who calls, by a token, or by what an identity provider vouched for.
    pub(super) fn authenticate(
        &self,
        authorization: Option<&str>,
        provider: Option<&Provider>,
        now_us: u64,
    ) -> Result<Caller, Unauthenticated> {
        let nobody = |kind| Unauthenticated { kind, caller: None };
        let authorization = authorization.ok_or_else(|| nobody(Why::Absent))?;
        if let Some(presented) = Presented::parse(authorization) {
            return self.by_token(&presented, now_us);
        }
        let jwt = token::bearer(authorization).filter(|bearer| !bearer.starts_with(token::PREFIX));
        let (Some(jwt), Some(provider)) = (jwt, provider) else { return Err(nobody(Why::Malformed)) };
        let vouched = provider.vouches(jwt, now_us).map_err(nobody)?;
        let member = vouched.member(&self.policy).ok_or_else(|| nobody(Why::Unknown))?;
        let known = self.members.get(&member).ok_or_else(|| nobody(Why::Unknown))?;
        let (groups, agent) = (known.with(&vouched.groups), vouched.agent(&self.policy));
        let caller = Caller { member, token: None, agent, groups, vouched: Some(vouched) };
        if known.revoked {
            return Err(Unauthenticated { kind: Why::Revoked, caller: Some(caller) });
        }
        Ok(caller)
    }

    fn by_token(&self, presented: &Presented, now_us: u64) -> Result<Caller, Unauthenticated> {
        let nobody = || Unauthenticated { kind: Why::Unknown, caller: None };
        let token = self.policy.tokens.get(&presented.id).ok_or_else(nobody)?;
        let known = self.members.get(&token.member).ok_or_else(nobody)?;
        let caller = Caller {
            member: token.member,
            token: Some(presented.id),
            agent: Some(token.agent),
            groups: Arc::clone(&known.groups),
            vouched: None,
        };
        // The secret first: what is true of a token is only for whoever holds it.
        let kind = if !presented.is(&token.sha256) {
            Why::Wrong
        } else if token.revoked || known.revoked {
            Why::Revoked
        } else if token.expires_at <= now_us {
            Why::Expired
        } else {
            return Ok(caller);
        };
        Err(Unauthenticated { kind, caller: Some(caller) })
    }

    /// The same caller without what a provider says of groups.
    pub(super) fn without_groups(&self, caller: Caller) -> Caller {
        let groups = self.members.get(&caller.member).map(|known| Arc::clone(&known.groups));
        Caller { groups: groups.unwrap_or_default(), ..caller }
    }

    pub(super) fn judge(&self, caller: &Caller, ask: &Ask<'_>) -> Judgement {
        let mut found = self.rules.find(&caller.member, &caller.groups, ask.server, ask.name);
        let first = found.find_map(|place| self.policy.rules.get(place).filter(|rule| fits(rule, caller, ask)));
        let (allowed, rule) = match first {
            Some(rule) => (rule.allow, &rule.id),
            None if access::SESSION_METHODS.contains(&ask.method) && self.may_reach(caller, ask.server) => {
                (true, &self.session)
            }
            None => (false, &self.default_deny),
        };
        Judgement { allowed, rule: Arc::clone(rule), policy: self.policy.digest, nobody: None }
    }

    /// The judgement on whoever is nobody any more.
    pub(super) fn nobody(&self, why: Why) -> Judgement {
        Judgement { allowed: false, rule: why.rule().into(), policy: self.policy.digest, nobody: Some(why) }
    }

    pub(super) fn may_reach(&self, caller: &Caller, server: &str) -> bool {
        let mut denied: Vec<&str> = Vec::new();
        let mine = self.rules.of(&caller.member, &caller.groups).filter_map(|place| self.policy.rules.get(place));
        for rule in mine.filter(|rule| applies(&rule.scope, caller)) {
            let halves = rule.scope.tools.iter().map(|tool| access::halves(tool));
            let mut there = halves.filter(|(of_server, _)| access::fits(of_server, server));
            let left = |method: &String| !denied.contains(&"*") && !denied.contains(&method.as_str());
            if rule.allow && there.next().is_some() && rule.methods.iter().any(left) {
                return true;
            }
            if !rule.allow && there.any(|(_, of_name)| of_name == "*") {
                denied.extend(rule.methods.iter().map(String::as_str));
            }
        }
        false
    }

    /// The limits that apply to a request, in their order.
    pub(super) fn limits<'a>(&'a self, caller: &'a Caller, ask: &Ask<'a>) -> impl Iterator<Item = &'a Limit> {
        let found = self.limits.find(&caller.member, &caller.groups, ask.server, ask.name);
        let ask = *ask;
        found.filter_map(|place| self.policy.limits.get(place)).filter(move |limit| is_at(&limit.scope, caller, &ask))
    }

    /// The same caller as who they are by what is in force now, which may be another policy than the one that let them in.
    ///
    /// # Errors
    /// Why they are nobody any more; that a time is over is looked at in [`Self::still_allowed`].
    pub(super) fn again(&self, caller: &Caller) -> Result<Caller, Why> {
        let token = caller.token.map(|id| self.policy.tokens.get(&id));
        let is_good =
            token.is_none_or(|token| token.is_some_and(|token| !token.revoked && token.member == caller.member));
        let vouched = caller.vouched.as_ref();
        let is_same = vouched.is_none_or(|vouched| vouched.member(&self.policy) == Some(caller.member));
        let known = self.members.get(&caller.member).filter(|known| is_good && is_same && !known.revoked);
        let known = known.ok_or(Why::Revoked)?;
        // What a provider says of groups counts only where it did before: once it was told.
        let told = vouched.map_or(&[][..], |vouched| vouched.groups.as_slice());
        let told: Vec<String> = told.iter().filter(|group| caller.groups.contains(group)).cloned().collect();
        Ok(Caller { groups: known.with(&told), ..caller.clone() })
    }

    pub(super) fn still_allowed(&self, caller: &Caller, ask: &Ask<'_>, now_us: u64) -> Result<(), Cut> {
        let token = caller.token.and_then(|id| self.policy.tokens.get(&id)).map(|token| token.expires_at);
        let ends_at = [token, caller.vouched.as_ref().map(|vouched| vouched.ends_at)].into_iter().flatten().min();
        let again = match ends_at.is_some_and(|at| at <= now_us) {
            true => Err(Why::Expired),
            false => self.again(caller),
        };
        let nobody = |kind| Cut::Unauthenticated(Unauthenticated { kind, caller: Some(caller.clone()) });
        let judgement = self.judge(&again.map_err(nobody)?, ask);
        if judgement.allowed { Ok(()) } else { Err(Cut::Denied(judgement)) }
    }
}

impl Known {
    /// Its groups, and those that a provider names besides.
    fn with(&self, more: &[String]) -> Arc<[String]> {
        if more.is_empty() {
            return Arc::clone(&self.groups);
        }
        let all: std::collections::BTreeSet<&String> = self.groups.iter().chain(more).collect();
        all.into_iter().cloned().collect()
    }
}

fn fits(rule: &Rule, caller: &Caller, ask: &Ask<'_>) -> bool {
    rule.methods.iter().any(|method| access::fits(method, ask.method)) && is_at(&rule.scope, caller, ask)
}

fn is_at(scope: &Scope, caller: &Caller, ask: &Ask<'_>) -> bool {
    scope.tools.iter().any(|tool| access::fits_tool(tool, ask.server, ask.name)) && applies(scope, caller)
}

fn applies(scope: &Scope, caller: &Caller) -> bool {
    let everyone = scope.members.is_empty() && scope.groups.is_empty();
    everyone || scope.members.contains(&caller.member) || caller.groups.iter().any(|group| scope.groups.contains(group))
}
