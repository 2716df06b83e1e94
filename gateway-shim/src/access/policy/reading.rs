//! Reads a policy's text: what must hold of a policy is checked here, all of it in one look.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use custody::{
    id::{MemberId, hex, unhex},
    strict::is_token,
};

use super::{
    Agent, DAY_US, Limit, Member, Policy, RESERVED, Rule, Scope, Server, Subject, Token,
    file::{File, FileAgent, FileEffect, FileKind, FileLimit, FileMember, FileRule, FileServer, FileToken},
};

/// Entries of one kind. More than any organisation has people; each takes a few hundred bytes.
const ENTRIES_MAX: usize = 100_000;
/// Rules and limits: each call may be held against all that could fit it.
const RULES_MAX: usize = 10_000;
/// What one rule may list, as the format has it; a group stands for more.
const LIST_MAX: usize = 256;
/// Patterns of methods in one rule, as the format has it.
const METHODS_MAX: usize = 32;
/// Days that a token may live where the policy does not say.
const TOKEN_DAYS: u64 = 90;
/// Days, 1 to 366: whoever holds a token is looked at once a year.
pub(in crate::access) const TOKEN_DAYS_MAX: u64 = 366;

/// A policy that is being read, and all that is wrong with it.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) policy: Policy,
    pub(super) faults: Vec<String>,
    /// Which text is being read, as faults name it.
    file: &'static str,
    rule_ids: BTreeSet<String>,
}

impl Reading {
    fn fault(&mut self, text: impl AsRef<str>) {
        self.faults.push(format!("{}: {}", self.file, text.as_ref()));
    }

    fn that(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.fault(text());
        }
    }

    fn file(&mut self, text: &str) -> Option<File> {
        match toml::from_str::<File>(text) {
            Ok(file) => {
                self.that(file.version == 1, || {
                    format!("version is {}; hint: version = 1 is all that this gateway knows", file.version)
                });
                Some(file)
            }
            Err(error) => {
                self.fault(of_toml(text, &error));
                None
            }
        }
    }

    pub(super) fn organisation(&mut self, text: &str) {
        self.file = "organisation policy";
        let Some(file) = self.file(text) else { return };
        let only_rules = file.members.is_empty()
            && file.agents.is_empty()
            && file.servers.is_empty()
            && file.limits.is_empty()
            && file.tokens.is_empty()
            && file.token_days_max.is_none();
        self.that(only_rules, || "it holds more than rules; hint: the rest belongs to the workspace's policy".into());
        let denies = file.rules.iter().all(|rule| rule.effect == FileEffect::Deny);
        self.that(denies, || "a rule allows; hint: effect = \"deny\", the organisation's rules only take away".into());
        self.rules(file.rules, true);
    }

    pub(super) fn workspace(&mut self, text: &str) {
        self.file = "access policy";
        let Some(file) = self.file(text) else { return };
        self.policy.token_days_max = file.token_days_max.unwrap_or(TOKEN_DAYS);
        self.that((1..=TOKEN_DAYS_MAX).contains(&self.policy.token_days_max), || {
            format!("token_days_max; hint: 1 to {TOKEN_DAYS_MAX} days")
        });
        for (name, count, most) in [
            ("members", file.members.len(), ENTRIES_MAX),
            ("agents", file.agents.len(), ENTRIES_MAX),
            ("servers", file.servers.len(), RULES_MAX),
            ("tokens", file.tokens.len(), ENTRIES_MAX),
            ("limits", file.limits.len(), RULES_MAX),
        ] {
            self.that(count <= most, || format!("{count} {name}; hint: at most {most}"));
        }
        self.members(text, file.members);
        self.agents(text, file.agents);
        self.servers(text, file.servers);
        self.rules(file.rules, false);
        self.limits(file.limits);
        self.tokens(file.tokens);
        self.names();
        self.subjects();
    }

    fn members(&mut self, text: &str, members: BTreeMap<String, FileMember>) {
        for (key, member) in members {
            let Some(id) = MemberId::from_hex(&key) else {
                self.fault(format!("{}: {NO_ID}", place(text, "members", &key)));
                continue;
            };
            let at = format!("members.{id}");
            let service = member.kind == Some(FileKind::Service);
            let owner = member.owner.as_deref().map(|owner| self.id(&format!("{at}.owner"), owner));
            self.that(service == owner.is_some(), || match service {
                true => {
                    format!("{at} is a service without owner; hint: owner = the id of the person who answers for it")
                }
                false => format!("{at} is a person and has an owner; hint: kind = \"service\", or no owner"),
            });
            let groups = self.group_list(&at, member.groups);
            let subject = member.subject.and_then(|subject| self.subject(&at, &subject));
            let member = Member { groups, owner: owner.flatten(), subject, revoked: member.revoked };
            self.policy.members.insert(id, member);
        }
    }

    fn agents(&mut self, text: &str, agents: BTreeMap<String, FileAgent>) {
        for (key, agent) in agents {
            let Some(id) = MemberId::from_hex(&key) else {
                self.fault(format!("{}: {NO_ID}", place(text, "agents", &key)));
                continue;
            };
            let subject = agent.subject.and_then(|subject| self.subject(&format!("agents.{id}"), &subject));
            self.policy.agents.insert(id, Agent { subject });
        }
    }

    fn servers(&mut self, text: &str, servers: BTreeMap<String, FileServer>) {
        for (name, server) in servers {
            if !super::is_server_name(&name) {
                self.fault(format!("{}: {NO_SERVER}", place(text, "servers", &name)));
                continue;
            }
            let labels =
                [("owner", server.owner), ("environment", server.environment), ("data_class", server.data_class)];
            let [owner, environment, data_class] = labels.map(|(label, value)| {
                let value = value?;
                let fits = is_token(&value) && value.len() <= LABEL_MAX;
                self.that(fits, || format!("servers.{name}.{label} is no token; {TOKEN}, at most {LABEL_MAX}"));
                fits.then_some(value)
            });
            let effects = server.effects.into_iter().collect();
            let (check_arguments, on_change) = (server.check_arguments, server.on_change);
            self.policy
                .servers
                .insert(name, Server { owner, environment, data_class, effects, check_arguments, on_change });
        }
    }

    fn rules(&mut self, rules: Vec<FileRule>, organisation: bool) {
        self.that(rules.len() <= RULES_MAX, || format!("{} rules; hint: at most {RULES_MAX}", rules.len()));
        for (at, rule) in rules.into_iter().enumerate() {
            let Some(id) = self.rule_id("rules", at, &rule.id) else { continue };
            let at = format!("rules.{id}");
            let scope = self.scope(&at, rule.everyone, rule.members, rule.groups, rule.tools);
            let known = (1..=METHODS_MAX).contains(&rule.methods.len())
                && rule.methods.iter().all(|method| is_pattern(method) && method.len() <= 128);
            self.that(known, || {
                format!("{at}.methods; hint: 1 to {METHODS_MAX} patterns as \"tools/call\" or \"resources/*\"")
            });
            let allow = rule.effect == FileEffect::Allow;
            self.policy.rules.push(Rule { id, allow, organisation, scope, methods: rule.methods });
        }
    }

    fn limits(&mut self, limits: Vec<FileLimit>) {
        for (at, limit) in limits.into_iter().enumerate() {
            let Some(id) = self.rule_id("limits", at, &limit.id) else { continue };
            let at = format!("limits.{id}");
            let scope = self.scope(&at, limit.everyone, limit.members, limit.groups, limit.tools);
            let numbers = [
                limit.calls_per_minute,
                limit.calls_per_day,
                limit.concurrent_calls,
                limit.request_bytes_max,
                limit.response_bytes_max,
            ];
            let limits = numbers.iter().any(Option::is_some) && numbers.iter().flatten().all(|number| *number > 0);
            self.that(limits, || {
                format!("{at} limits nothing, or to nothing; hint: a number above zero; a rule that denies lets nothing through")
            });
            self.policy.limits.push(Limit {
                id,
                scope,
                shared: limit.shared,
                calls_per_minute: limit.calls_per_minute,
                calls_per_day: limit.calls_per_day,
                concurrent_calls: limit.concurrent_calls,
                request_bytes_max: limit.request_bytes_max,
                response_bytes_max: limit.response_bytes_max,
            });
        }
    }

    fn tokens(&mut self, tokens: Vec<FileToken>) {
        for (at, token) in tokens.into_iter().enumerate() {
            let Some(id) = unhex(&token.id).and_then(|id| <[u8; 16]>::try_from(id).ok()) else {
                self.fault(format!("tokens: the id of the {} is not 32 lower-case hex digits", nth(at)));
                continue;
            };
            let at = format!("tokens.{}", token.id);
            let sha256 = unhex(&token.sha256).and_then(|digest| <[u8; 32]>::try_from(digest).ok());
            self.that(sha256.is_some(), || format!("{at}.sha256 is not 64 lower-case hex digits"));
            let member = self.id(&format!("{at}.member"), &token.member);
            let agent = self.id(&format!("{at}.agent"), &token.agent);
            let times = (of_datetime(&token.issued_at), of_datetime(&token.expires_at));
            let (Some(issued_at), Some(expires_at)) = times else {
                self.fault(format!("{at}: a time is not as 2026-11-30T12:00:00Z"));
                continue;
            };
            let most = self.policy.token_days_max;
            self.that(issued_at <= expires_at && expires_at - issued_at.min(expires_at) <= most * DAY_US, || {
                format!("{at} lives longer than token_days_max = {most}; hint: an earlier expires_at")
            });
            let (Some(sha256), Some(member), Some(agent)) = (sha256, member, agent) else { continue };
            let token = Token { sha256, member, agent, issued_at, expires_at, revoked: token.revoked };
            let before = self.policy.tokens.insert(id, token);
            self.that(before.is_none(), || format!("{at} stands twice; hint: take one away"));
        }
    }

    /// Everybody who is named is there.
    fn names(&mut self) {
        let (policy, mut faults) = (&self.policy, Vec::new());
        let mut member = |at: String, id: &MemberId| {
            if !policy.members.contains_key(id) {
                faults.push(format!("{at} names {id}, who is no member; hint: [members.{id}], or another id"));
            }
        };
        for (id, owned) in &policy.members {
            owned.owner.iter().for_each(|owner| member(format!("members.{id}.owner"), owner));
        }
        for rule in policy.rules.iter().filter(|rule| !rule.organisation) {
            rule.scope.members.iter().for_each(|named| member(format!("rules.{}.members", rule.id), named));
        }
        for limit in &policy.limits {
            limit.scope.members.iter().for_each(|named| member(format!("limits.{}.members", limit.id), named));
        }
        for (id, token) in &policy.tokens {
            member(format!("tokens.{}.member", hex(id)), &token.member);
        }
        for (id, Token { agent, .. }) in &policy.tokens {
            if !policy.agents.contains_key(agent) {
                faults
                    .push(format!("tokens.{}.agent names {agent}, which is no agent; hint: [agents.{agent}]", hex(id)));
            }
        }
        for (id, owned) in &policy.members {
            let owner = owned.owner.and_then(|owner| policy.members.get(&owner));
            if owner.is_some_and(|owner| owner.owner.is_some()) {
                faults.push(format!("members.{id}.owner is a service; hint: a person answers for a service"));
            }
        }
        faults.into_iter().for_each(|fault| self.fault(fault));
    }

    /// Who is known by which subject: one subject is of one member, and of one agent.
    fn subjects(&mut self) {
        let digest = |subject: &Option<Subject>| match subject {
            Some(Subject::Digest(digest)) => Some(*digest),
            _ => None,
        };
        let members = self.policy.members.iter().map(|(id, member)| (*id, digest(&member.subject)));
        let agents = self.policy.agents.iter().map(|(id, agent)| (*id, digest(&agent.subject)));
        let (mut by_member, mut by_agent, mut twice) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (id, digest) in members {
            twice.extend(digest.and_then(|digest| by_member.insert(digest, id)).map(|other| ("members", id, other)));
        }
        for (id, digest) in agents {
            twice.extend(digest.and_then(|digest| by_agent.insert(digest, id)).map(|other| ("agents", id, other)));
        }
        for (section, id, other) in twice {
            self.fault(format!("{section}.{id} and {section}.{other} have one subject; hint: take one of it away"));
        }
        (self.policy.member_by_subject, self.policy.agent_by_subject) = (by_member, by_agent);
    }

    /// Ids of rules and limits are one name space: a record names either.
    fn rule_id(&mut self, section: &str, at: usize, id: &str) -> Option<Arc<str>> {
        if !is_token(id) || id.starts_with(RESERVED) {
            self.fault(format!("{section}: the id of the {} is no token, or begins with {RESERVED}; {TOKEN}", nth(at)));
            return None;
        }
        let new = self.rule_ids.insert(id.to_owned());
        self.that(new, || format!("{section}.{id} stands twice; hint: an id of its own"));
        new.then(|| Arc::from(id))
    }

    fn scope(
        &mut self,
        at: &str,
        everyone: bool,
        members: Vec<String>,
        groups: Vec<String>,
        tools: Vec<String>,
    ) -> Scope {
        let named = !members.is_empty() || !groups.is_empty();
        self.that(named != everyone, || match everyone {
            true => format!("{at} names everyone and some besides; hint: one or the other"),
            false => format!("{at} applies to nobody; hint: members, groups, or everyone = true"),
        });
        let fits = members.len() <= LIST_MAX && (1..=LIST_MAX).contains(&tools.len());
        self.that(fits, || {
            format!("{at}; hint: 1 to {LIST_MAX} tools, at most {LIST_MAX} members; a group holds more")
        });
        for (number, tool) in tools.iter().enumerate() {
            let known = is_pattern(tool) && tool.len() <= 256 && (tool == "*" || tool.contains('/'));
            self.that(known, || {
                format!(
                    "{at}.tools: the {} is no pattern; hint: as \"server/tool\", \"server/*\" or \"*\"",
                    nth(number)
                )
            });
        }
        let members = members.iter().filter_map(|id| self.id(&format!("{at}.members"), id)).collect();
        Scope { members, groups: self.group_list(at, groups), tools }
    }

    fn group_list(&mut self, at: &str, groups: Vec<String>) -> BTreeSet<String> {
        let fits = groups.len() <= LIST_MAX && groups.iter().all(|group| is_token(group));
        self.that(fits, || format!("{at}.groups; hint: at most {LIST_MAX} tokens of [A-Za-z0-9_./:@+-]"));
        groups.into_iter().collect()
    }

    fn id(&mut self, at: &str, text: &str) -> Option<MemberId> {
        let id = MemberId::from_hex(text);
        self.that(id.is_some(), || format!("{at}: {NO_ID}"));
        id
    }

    fn subject(&mut self, at: &str, text: &str) -> Option<Subject> {
        let digest = text.strip_prefix("sha256:").and_then(unhex).and_then(|digest| <[u8; 32]>::try_from(digest).ok());
        let subject = if text == "id" { Some(Subject::Id) } else { digest.map(Subject::Digest) };
        self.that(subject.is_some(), || {
            format!(
                "{at}.subject is no digest; hint: \"sha256:\" and 64 hex digits of issuer|subject, so that no name stands here, \
                 or \"id\" where the provider's subject is this id"
            )
        });
        subject
    }
}

/// Longest label of a server, in bytes: with its kind before it, it is a token of the format.
const LABEL_MAX: usize = 100;
const NO_ID: &str = "it is not 32 lower-case hex digits; hint: ids only, names are the ledger's";
const NO_SERVER: &str = "it is no name of a server; hint: a token without / and __";
const TOKEN: &str = "hint: letters, digits and _./:@+-";

fn is_pattern(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./:@+*-".contains(&byte))
}

fn nth(at: usize) -> String {
    match at + 1 {
        1 => "1st".to_owned(),
        2 => "2nd".to_owned(),
        3 => "3rd".to_owned(),
        other => format!("{other}th"),
    }
}

/// Where a key of a section stands, without the key: it may be somebody's name.
fn place(text: &str, section: &str, key: &str) -> String {
    let line = text.lines().position(|line| line.contains(section) && line.contains(key));
    line.map_or_else(|| section.to_owned(), |line| format!("{section}, line {}", line + 1))
}

/// What TOML finds wrong, with line and section, and without the values that stand there.
fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let end = error.span().map_or(0, |span| span.start);
    let before = text.get(..end).unwrap_or_default();
    let said = error.message();
    let shown = ["unknown field", "missing field", "duplicate"].iter().any(|start| said.starts_with(start))
        && said.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let said = if shown { said } else { "what stands there is not of the form that it must have" };
    format!("line {}: {said}; hint: gateway-shim access template has every key", before.matches('\n').count() + 1)
}

fn of_datetime(time: &toml::value::Datetime) -> Option<u64> {
    let time = chrono::DateTime::parse_from_rfc3339(&time.to_string()).ok()?;
    u64::try_from(time.timestamp_micros()).ok()
}
