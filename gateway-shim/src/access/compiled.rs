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

/// Reserved name of the refusal of what a change takes away that is asked for and not on record yet.
const CHANGE_PENDING: &str = "shim/change-pending";

/// A policy, and what finds its rules.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) policy: Arc<Policy>,
    rules: Index,
    limits: Index,
    members: HashMap<MemberId, Known>,
    session: Arc<str>,
    default_deny: Arc<str>,
    /// Of changes that are asked for and not on record yet: what they take away is refused already, what they add is not there.
    also: Vec<Compiled>,
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
            also: Vec::new(),
            policy,
        }
    }

    /// This policy, and of what it allows only what all of these allow too.
    pub(super) fn narrowed(policies: &[Arc<Policy>]) -> Self {
        let mut all = policies.iter().map(|policy| Self::new(Arc::clone(policy)));
        let first = all.next().unwrap_or_else(|| Self::new(Arc::default()));
        Self { also: all.collect(), ..first }
    }

    /// Says who calls, by a token, or by what an identity provider vouched for.
    pub(super) fn authenticate(
        &self,
        authorization: Option<&str>,
        provider: Option<&Provider>,
        now_us: u64,
    ) -> Result<Caller, Unauthenticated> {
        let caller = self.known(authorization, provider, now_us)?;
        match self.also.iter().find_map(|other| other.seen(&caller, now_us).err()) {
            Some(kind) => Err(Unauthenticated { kind, caller: Some(caller) }),
            None => Ok(caller),
        }
    }

    fn known(
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
        let judgement = self.decide(caller, ask);
        let taken = |other: &Self| !other.decide(&other.caller(caller), ask).allowed;
        if judgement.allowed && self.also.iter().any(taken) {
            return Judgement { allowed: false, rule: CHANGE_PENDING.into(), ..judgement };
        }
        judgement
    }

    fn decide(&self, caller: &Caller, ask: &Ask<'_>) -> Judgement {
        let mut found = self.rules.find(&caller.member, &caller.groups, ask.server, ask.name);
        let first = found.find_map(|place| self.policy.rules.get(place).filter(|rule| fits(rule, caller, ask)));
        let (allowed, rule) = match first {
            Some(rule) => (rule.allow, &rule.id),
            None if access::SESSION_METHODS.contains(&ask.method) && self.reaches(caller, ask.server) => {
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
        self.reaches(caller, server) && self.also.iter().all(|other| other.reaches(&other.caller(caller), server))
    }

    fn reaches(&self, caller: &Caller, server: &str) -> bool {
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

    /// The same caller as who they are by what is in force now, which may be another policy than the one that let them in, and a
    /// later time.
    ///
    /// # Errors
    /// Why they are nobody any more.
    pub(super) fn again(&self, caller: &Caller, now_us: u64) -> Result<Caller, Why> {
        [self].into_iter().chain(&self.also).try_for_each(|policy| policy.seen(caller, now_us))?;
        Ok(self.caller(caller))
    }

    pub(super) fn still_allowed(&self, caller: &Caller, ask: &Ask<'_>, now_us: u64) -> Result<(), Cut> {
        let nobody = |kind| Cut::Unauthenticated(Unauthenticated { kind, caller: Some(caller.clone()) });
        let judgement = self.judge(&self.again(caller, now_us).map_err(nobody)?, ask);
        if judgement.allowed { Ok(()) } else { Err(Cut::Denied(judgement)) }
    }

    /// Whether whoever was known once still is, and their time is not over.
    fn seen(&self, caller: &Caller, now_us: u64) -> Result<(), Why> {
        let token = caller.token.and_then(|id| self.policy.tokens.get(&id)).map(|token| token.expires_at);
        let vouched = caller.vouched.as_ref().map(|vouched| vouched.ends_at);
        self.is_known(caller)?;
        let is_over = [token, vouched].into_iter().flatten().any(|ends_at| ends_at <= now_us);
        if is_over { Err(Why::Expired) } else { Ok(()) }
    }

    fn is_known(&self, caller: &Caller) -> Result<(), Why> {
        let token = caller.token.map(|id| self.policy.tokens.get(&id));
        let is_good =
            token.is_none_or(|token| token.is_some_and(|token| !token.revoked && token.member == caller.member));
        let vouched = caller.vouched.as_ref();
        let is_same = vouched.is_none_or(|vouched| vouched.member(&self.policy) == Some(caller.member));
        let known = self.members.get(&caller.member).is_some_and(|known| !known.revoked);
        if known && is_good && is_same { Ok(()) } else { Err(Why::Revoked) }
    }

    /// The same caller, in the groups that this policy says, and a provider; that counts only where it did before: once it was
    /// told.
    fn caller(&self, caller: &Caller) -> Caller {
        let said = caller.vouched.as_ref().map_or(&[][..], |vouched| vouched.groups.as_slice());
        let told: Vec<String> = said.iter().filter(|group| caller.groups.contains(group)).cloned().collect();
        let groups = self.members.get(&caller.member).map(|known| known.with(&told));
        Caller { groups: groups.unwrap_or_default(), ..caller.clone() }
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
