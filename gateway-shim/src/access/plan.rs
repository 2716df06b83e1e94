//! What changes from one policy to the next: a line each for people, and a record each, from which the new policy can be put
//! together (FORMAT.md, 5.6).
//!
//! What must hold: replaying the records over what the old policy was gives what the new one is, also when the first of them
//! were replayed before (a crash cut the change short, and it is written once more).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use custody::{
    access::IDENTITY_PROVIDER,
    id::{MemberId, hex},
    strict::is_token,
    wire::{AccessAction as Action, AccessChange, AccessRule, Decision, access_change},
};

use super::policy::{Effect, Limit, Member, OnChange, Policy, Rule, Scope, Server, Token};

/// One part of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// For people.
    pub line: String,
    /// The record, without when, who, why and the digests.
    record: AccessChange,
}

/// Who changes a policy, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The member or the system that does it.
    pub actor: Actor,
    /// The account of whoever asked, as the gateway's system says; none for what the gateway does by itself.
    pub account: Option<u32>,
    /// A code; a token of at most 64 bytes.
    pub code: String,
    /// Reference of a ticket; a token, or empty.
    pub ticket: String,
}

/// Who changes a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A member.
    Member(MemberId),
    /// A system, by a token.
    System(String),
}

impl Actor {
    /// As it is written down in a file: a member's id, or the name of a system.
    pub(crate) fn written(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Member(id) => (Some(id.to_string()), None),
            Self::System(name) => (None, Some(name.clone())),
        }
    }
}

impl Reason {
    /// What is said of one that no record may hold.
    pub const UNRECORDABLE: &'static str =
        "an actor, reason or ticket is no token of [A-Za-z0-9_./:@+-]; hint: a code as `left`, a reference as `HR-12`";

    /// Whether it has the form that a record asks for.
    pub fn is_recordable(&self) -> bool {
        let actor = match &self.actor {
            Actor::Member(_) => true,
            Actor::System(name) => is_token(name),
        };
        actor && is_token(&self.code) && self.code.len() <= 64 && (self.ticket.is_empty() || is_token(&self.ticket))
    }
}

impl Change {
    fn new(action: Action, line: String, record: AccessChange) -> Self {
        Self { line, record: AccessChange { action: action as i32, ..record } }
    }

    /// What it is.
    pub fn action(&self) -> Action {
        self.record.action()
    }

    /// The end of a token for which there is another.
    pub(super) fn rotated(mut self, id: [u8; 16], expires_at: Option<u64>) -> Self {
        if self.record.token.as_deref() == Some(id.as_slice()) {
            self.record.action = Action::TokenRotated as i32;
            self.record.expires_at = expires_at;
        }
        self
    }

    /// The record, of a change that is made now.
    pub(super) fn record(&self, at: u64, why: &Reason, before: Option<[u8; 32]>, after: [u8; 32]) -> AccessChange {
        AccessChange {
            at,
            actor: Some(match &why.actor {
                Actor::Member(id) => access_change::Actor::ActorMember((*id).into()),
                Actor::System(name) => access_change::Actor::ActorSystem(name.clone()),
            }),
            actor_account: why.account,
            reason: why.code.clone(),
            ticket: why.ticket.clone(),
            policy_digest_before: before.map(|digest| Bytes::copy_from_slice(&digest)),
            policy_digest_after: Bytes::copy_from_slice(&after),
            ..self.record.clone()
        }
    }

    /// The last of a whole policy that was applied.
    pub(super) fn applied() -> Self {
        Self::new(Action::PolicyApplied, String::new(), AccessChange::default())
    }
}

/// All that changes from `old` to `new`. What goes comes first.
pub fn plan(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut changes = Vec::new();
    let out = &mut changes;
    let (old_members, new_members) = (active(old), active(new));
    for id in gone(&old_members, &new_members) {
        let line = format!("- member {id}; its groups and tokens go with it");
        out.push(Change::new(Action::MemberRevoked, line, of_member(*id)));
    }
    for (id, member) in &old_members {
        let Some(now) = new_members.get(id) else { continue };
        out.extend(member.groups.difference(&now.groups).map(|group| group_change(Action::GroupLeft, *id, group)));
    }
    let (old_tokens, new_tokens) = (tokens(old, &old_members), tokens(new, &new_members));
    for id in gone(&old_tokens, &new_tokens) {
        let token = old_tokens[id];
        // Those of a member who goes have gone.
        if new_members.contains_key(&token.member) {
            let line = format!("- token {} of member {}", hex(id.as_slice()), token.member);
            out.push(Change::new(Action::TokenRevoked, line, of_token(id, token)));
        }
    }
    removed(old, new, out);
    for id in new.agents.keys().filter(|id| !old.agents.contains_key(*id)) {
        out.push(agent_change(Action::AgentAdded, '+', *id));
    }
    for (id, member) in &new_members {
        let before = old_members.get(id);
        // Who is said anew is in no group, until the groups are.
        let same = before.filter(|before| (before.owner, before.subject) == (member.owner, member.subject));
        if same.is_none() {
            out.push(member_change(*id, member, before.is_some()));
        }
        let joined = member.groups.iter().filter(|group| same.is_none_or(|before| !before.groups.contains(*group)));
        out.extend(joined.map(|group| group_change(Action::GroupJoined, *id, group)));
    }
    for (id, token) in new_tokens.iter().filter(|(id, token)| old_tokens.get(*id) != Some(token)) {
        let sign = if old_tokens.contains_key(id) { '~' } else { '+' };
        let (until, agent) = (day(token.expires_at), token.agent);
        let line = format!(
            "{sign} token {} of member {} through agent {agent} until {until}",
            hex(id.as_slice()),
            token.member
        );
        let record = AccessChange { expires_at: Some(token.expires_at), ..of_token(id, token) };
        out.push(Change::new(Action::TokenIssued, line, record));
    }
    rules(old, new, out);
    let old_limits: BTreeMap<&str, &Limit> = old.limits.iter().map(|limit| (&*limit.id, limit)).collect();
    for limit in &new.limits {
        match old_limits.get(&*limit.id) {
            Some(known) if *known == limit => {}
            known => out.push(limit_change(Action::LimitChanged, if known.is_some() { '~' } else { '+' }, limit)),
        }
    }
    for (name, server) in new.servers.iter().filter(|(name, server)| old.servers.get(*name) != Some(server)) {
        let sign = if old.servers.contains_key(name) { '~' } else { '+' };
        let labels = labels(server);
        let line = format!("{sign} server {name}: {}", labels.join(" "));
        let record = AccessChange { server: name.clone(), labels, ..AccessChange::default() };
        out.push(Change::new(Action::ServerChanged, line, record));
    }
    changes
}

/// A member with all of its groups, those that an identity provider names too.
pub(super) fn anew(id: MemberId, member: &Member, more: &[String]) -> Vec<Change> {
    let groups: BTreeSet<&String> = member.groups.iter().chain(more).collect();
    let joined = groups.into_iter().map(|group| group_change(Action::GroupJoined, id, group));
    [member_change(id, member, true)].into_iter().chain(joined).collect()
}

/// What of the rest is not there any more.
fn removed(old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let ids = |ids: &mut dyn Iterator<Item = &Arc<str>>| ids.map(Arc::clone).collect::<BTreeSet<_>>();
    let rules = ids(&mut new.rules.iter().map(|rule| &rule.id));
    for rule in old.rules.iter().filter(|rule| !rules.contains(&rule.id)) {
        let record = AccessChange { rule: Some(wire_rule(rule)), ..AccessChange::default() };
        out.push(Change::new(Action::RuleRemoved, format!("- {}", rule_words(rule)), record));
    }
    let limits = ids(&mut new.limits.iter().map(|limit| &limit.id));
    for limit in old.limits.iter().filter(|limit| !limits.contains(&limit.id)) {
        out.push(limit_change(Action::LimitRemoved, '-', limit));
    }
    for name in gone(&old.servers, &new.servers) {
        let record = AccessChange { server: name.clone(), ..AccessChange::default() };
        out.push(Change::new(Action::ServerRemoved, format!("- server {name}"), record));
    }
    for id in gone(&old.agents, &new.agents) {
        out.push(agent_change(Action::AgentRemoved, '-', *id));
    }
}

/// Each rule that is not where it was, in the order of the places: what is before it is then as it will be.
fn rules(old: &Policy, new: &Policy, out: &mut Vec<Change>) {
    let kept: BTreeSet<&str> = new.rules.iter().map(|rule| &*rule.id).collect();
    let mut now: Vec<&Rule> = old.rules.iter().filter(|rule| kept.contains(&*rule.id)).collect();
    for (place, rule) in new.rules.iter().enumerate() {
        if now.get(place).is_some_and(|there| *there == rule) {
            continue;
        }
        let before = now.iter().position(|there| there.id == rule.id);
        let verb = match before.map(|at| now.remove(at)) {
            None => format!("+ {}", rule_words(rule)),
            Some(before) if before == rule => format!("~ {}, moved to place {}", rule_words(rule), place + 1),
            Some(_) => format!("~ {}", rule_words(rule)),
        };
        now.insert(place, rule);
        let record =
            AccessChange { rule: Some(wire_rule(rule)), place: u32::try_from(place).ok(), ..AccessChange::default() };
        out.push(Change::new(Action::RuleAdded, verb, record));
    }
}

fn gone<'a, K: Ord, V>(old: &'a BTreeMap<K, V>, new: &BTreeMap<K, V>) -> impl Iterator<Item = &'a K> {
    old.keys().filter(|key| !new.contains_key(key))
}

/// Who may call at all.
fn active(policy: &Policy) -> BTreeMap<MemberId, &Member> {
    policy.members.iter().filter(|(_, member)| !member.revoked).map(|(id, member)| (*id, member)).collect()
}

fn tokens<'a>(policy: &'a Policy, active: &BTreeMap<MemberId, &Member>) -> BTreeMap<[u8; 16], &'a Token> {
    let good = |(_, token): &(&[u8; 16], &Token)| !token.revoked && active.contains_key(&token.member);
    policy.tokens.iter().filter(good).map(|(id, token)| (*id, token)).collect()
}

fn of_member(id: MemberId) -> AccessChange {
    AccessChange { member: Some(id.into()), ..AccessChange::default() }
}

fn of_token(id: &[u8; 16], token: &Token) -> AccessChange {
    let (token_id, agent) = (Some(Bytes::copy_from_slice(id)), Some(token.agent.into()));
    AccessChange { token: token_id, agent, ..of_member(token.member) }
}

fn member_change(id: MemberId, member: &Member, known: bool) -> Change {
    let sign = if known { '~' } else { '+' };
    let what = member.owner.map_or_else(|| "person".to_owned(), |owner| format!("service that {owner} answers for"));
    let how = if member.subject.is_some() { ", by the identity provider's word" } else { "" };
    let labels = member.subject.map(|_| IDENTITY_PROVIDER.to_owned()).into_iter().collect();
    let record = AccessChange { owner: member.owner.map(Into::into), labels, ..of_member(id) };
    Change::new(Action::MemberAdded, format!("{sign} member {id}, a {what}{how}"), record)
}

fn group_change(action: Action, id: MemberId, group: &str) -> Change {
    let sign = if action == Action::GroupJoined { '+' } else { '-' };
    let record = AccessChange { group: group.to_owned(), ..of_member(id) };
    Change::new(action, format!("{sign} member {id} in group {group}"), record)
}

fn agent_change(action: Action, sign: char, id: MemberId) -> Change {
    let record = AccessChange { agent: Some(id.into()), ..AccessChange::default() };
    Change::new(action, format!("{sign} agent {id}"), record)
}

fn limit_change(action: Action, sign: char, limit: &Limit) -> Change {
    let numbers = [
        ("calls a minute", limit.calls_per_minute),
        ("calls a day", limit.calls_per_day),
        ("calls at a time", limit.concurrent_calls),
        ("bytes of a request", limit.request_bytes_max),
        ("bytes of a response", limit.response_bytes_max),
    ];
    let numbers = numbers.into_iter().filter_map(|(name, number)| Some(format!("{} {name}", number?)));
    let whose = if limit.shared { "together" } else { "each" };
    let numbers: Vec<String> = numbers.collect();
    let line = format!("{sign} limit {}: {} {whose}, {}", limit.id, scope_words(&limit.scope), numbers.join(", "));
    Change::new(action, line, AccessChange { rule: Some(wire_limit(limit)), ..AccessChange::default() })
}

fn rule_words(rule: &Rule) -> String {
    let (effect, above) =
        (if rule.allow { "allow" } else { "deny" }, if rule.organisation { ", the organisation's" } else { "" });
    format!("rule {}: {effect} {}, {}{above}", rule.id, scope_words(&rule.scope), rule.methods.join(" "))
}

fn scope_words(scope: &Scope) -> String {
    let members = scope.members.iter().map(|id| format!("member {id}"));
    let mut who: Vec<String> = members.chain(scope.groups.iter().map(|group| format!("group {group}"))).collect();
    if who.is_empty() {
        who.push("everyone".to_owned());
    }
    format!("{}: {}", who.join(", "), scope.tools.join(" "))
}

/// The day and time of a moment, UTC, to the second.
fn day(at_us: u64) -> String {
    let at = i64::try_from(at_us).ok().and_then(chrono::DateTime::from_timestamp_micros);
    at.map_or_else(|| at_us.to_string(), |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn labels(server: &Server) -> Vec<String> {
    let named = [("owner", &server.owner), ("environment", &server.environment), ("data_class", &server.data_class)];
    let named = named.into_iter().filter_map(|(label, value)| Some(format!("{label}:{}", value.as_ref()?)));
    let effects = server.effects.iter().map(|effect| {
        let effect = match effect {
            Effect::Read => "read",
            Effect::Write => "write",
            Effect::Send => "send",
            Effect::Destroy => "destroy",
        };
        format!("effect:{effect}")
    });
    let on_change = match server.on_change {
        OnChange::Warn => "on_change:warn",
        OnChange::Quarantine => "on_change:quarantine",
    };
    let checks = server.check_arguments.then(|| "check_arguments".to_owned());
    named.chain(effects).chain(checks).chain([on_change.to_owned()]).collect()
}

/// As the format has a scope.
fn wire_scope(id: &str, scope: &Scope) -> AccessRule {
    AccessRule {
        id: id.to_owned(),
        members: scope.members.iter().map(|id| (*id).into()).collect(),
        groups: scope.groups.iter().cloned().collect(),
        tools: scope.tools.clone(),
        ..AccessRule::default()
    }
}

/// As the format has a rule.
pub(super) fn wire_rule(rule: &Rule) -> AccessRule {
    let effect = if rule.allow { Decision::Allowed } else { Decision::Denied };
    AccessRule {
        effect: effect as i32,
        organisation: rule.organisation,
        methods: rule.methods.clone(),
        ..wire_scope(&rule.id, &rule.scope)
    }
}

fn wire_limit(limit: &Limit) -> AccessRule {
    AccessRule {
        effect: Decision::Allowed as i32,
        calls_per_minute: limit.calls_per_minute.unwrap_or(0),
        calls_per_day: limit.calls_per_day.unwrap_or(0),
        concurrent_calls: limit.concurrent_calls.unwrap_or(0),
        request_bytes_max: limit.request_bytes_max.unwrap_or(0),
        response_bytes_max: limit.response_bytes_max.unwrap_or(0),
        shared: limit.shared,
        ..wire_scope(&limit.id, &limit.scope)
    }
}
