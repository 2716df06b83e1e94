//! The verbs that edit an access policy: each changes its text and leaves the rest as it stands, comments too.
//!
//! What must hold: a verb asks for something or is refused, and never does less than it says; the new text is read and
//! checked like any other before it is in force.

use custody::id::{MemberId, hex};
use toml_edit::{Array, ArrayOfTables, Datetime, Decor, DocumentMut, Item, RawString, Table, TableLike, value};

use super::{
    policy::{DAY_US, Policy, Subject},
    token::OneTimeToken,
};

/// A change of the policy by a verb.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A member, who is new or was revoked.
    MemberAdd {
        /// Its id.
        member: MemberId,
        /// Of a service: the person who answers for it.
        owner: Option<MemberId>,
        /// Its groups.
        groups: Vec<String>,
        /// How an identity provider's word on it is known.
        subject: Option<Subject>,
    },
    /// A member may call nothing any more, and its tokens end.
    MemberRevoke {
        /// Its id.
        member: MemberId,
    },
    /// A member joins a group.
    GroupJoin {
        /// Its id.
        member: MemberId,
        /// The group.
        group: String,
    },
    /// A member leaves a group.
    GroupLeave {
        /// Its id.
        member: MemberId,
        /// The group.
        group: String,
    },
    /// An agent.
    AgentAdd {
        /// Its id.
        agent: MemberId,
    },
    /// A rule that allows, behind all others.
    Grant(NewRule),
    /// A rule that denies, before all of the workspace's others.
    Deny(NewRule),
    /// A rule goes.
    RuleRemove {
        /// Its id.
        id: String,
    },
    /// A token for a member; it is shown once.
    TokenIssue {
        /// Its member.
        member: MemberId,
        /// What it is for; a new agent, if none is named.
        agent: Option<MemberId>,
        /// Days that it lives; as many as the policy allows, if it is not said.
        days: Option<u64>,
    },
    /// Another token in the place of one.
    TokenRotate {
        /// Which.
        token: [u8; 16],
        /// Seconds that the old one is good for besides.
        overlap_s: u64,
    },
    /// Other tokens in the place of all that a member has.
    MemberRotate {
        /// Its id.
        member: MemberId,
        /// Seconds that the old ones are good for besides.
        overlap_s: u64,
    },
    /// A token ends.
    TokenRevoke {
        /// Which.
        token: [u8; 16],
    },
}

impl Edit {
    /// Whether it is there to take something away. Then that is refused at once, whatever cannot be recorded.
    pub(super) fn takes(&self) -> bool {
        match self {
            Self::MemberRevoke { .. }
            | Self::GroupLeave { .. }
            | Self::Deny(_)
            | Self::RuleRemove { .. }
            | Self::TokenRotate { .. }
            | Self::MemberRotate { .. }
            | Self::TokenRevoke { .. } => true,
            Self::MemberAdd { .. }
            | Self::GroupJoin { .. }
            | Self::AgentAdd { .. }
            | Self::Grant(_)
            | Self::TokenIssue { .. } => false,
        }
    }
}

/// A rule to be made.
#[derive(Clone, Debug, Default)]
pub struct NewRule {
    /// Its id; the next free one, if none is given.
    pub id: Option<String>,
    /// For these members.
    pub members: Vec<MemberId>,
    /// For these groups.
    pub groups: Vec<String>,
    /// For everyone.
    pub everyone: bool,
    /// `server/tool` patterns.
    pub tools: Vec<String>,
    /// Patterns of methods; `tools/call`, if there are none.
    pub methods: Vec<String>,
}

/// A policy's new text.
pub(super) struct Edited {
    pub(super) text: String,
    /// To be shown once.
    pub(super) tokens: Vec<OneTimeToken>,
    /// Tokens for which there are others, and when they end if that is later.
    pub(super) rotated: Vec<([u8; 16], Option<u64>)>,
}

/// Edits the text of a policy that is in force. What is wrong is said with the next move.
pub(super) fn edit(text: &str, policy: &Policy, edit: &Edit, now_us: u64) -> Result<Edited, String> {
    let document = text.parse::<DocumentMut>().map_err(|_| format!("the policy cannot be edited; {BY_HAND}"))?;
    let mut editing = Editing { document, policy, now_us, tokens: Vec::new(), rotated: Vec::new() };
    editing.edit(edit)?;
    Ok(Edited { text: editing.document.to_string(), tokens: editing.tokens, rotated: editing.rotated })
}

struct Editing<'a> {
    document: DocumentMut,
    policy: &'a Policy,
    now_us: u64,
    tokens: Vec<OneTimeToken>,
    rotated: Vec<([u8; 16], Option<u64>)>,
}

const BY_HAND: &str = "hint: edit the file, then access plan and access apply";

impl Editing<'_> {
    fn edit(&mut self, edit: &Edit) -> Result<(), String> {
        match edit {
            Edit::MemberAdd { member, owner, groups, subject } => self.member_add(*member, *owner, groups, *subject),
            Edit::MemberRevoke { member } => self.member_revoke(*member),
            Edit::GroupJoin { member, group } => {
                let known = self.member(*member)?.groups.contains(group);
                refuse(known, || format!("{member} is in group {group} already"))?;
                array(self.entry("members", &member.to_string())?, "groups")?.push(group.as_str());
                Ok(())
            }
            Edit::GroupLeave { member, group } => {
                let known = self.member(*member)?.groups.contains(group);
                refuse(!known, || format!("{member} is not in that group; hint: member list shows the groups"))?;
                let groups = array(self.entry("members", &member.to_string())?, "groups")?;
                let at = groups.iter().position(|known| known.as_str() == Some(group));
                at.into_iter().for_each(|at| remove_from(groups, at));
                Ok(())
            }
            Edit::AgentAdd { agent } => {
                refuse(self.policy.agents.contains_key(agent), || format!("agent {agent} is there already"))?;
                self.add("agents", &agent.to_string(), Table::new())
            }
            Edit::Grant(rule) => self.rule(rule, "allow"),
            Edit::Deny(rule) => self.rule(rule, "deny"),
            Edit::RuleRemove { id } => self.rule_remove(id),
            Edit::TokenIssue { member, agent, days } => self.token_issue(*member, *agent, *days),
            Edit::TokenRotate { token, overlap_s } => self.token_rotate(*token, *overlap_s),
            Edit::MemberRotate { member, overlap_s } => {
                self.member(*member)?;
                let good = |token: &&super::policy::Token| {
                    token.member == *member && !token.revoked && token.expires_at > self.now_us
                };
                let tokens = self.policy.tokens.iter().filter(|(_, token)| good(token));
                let tokens: Vec<[u8; 16]> = tokens.map(|(id, _)| *id).collect();
                refuse(tokens.is_empty(), || format!("{member} has no good token; hint: member token makes one"))?;
                tokens.into_iter().try_for_each(|token| self.token_rotate(token, *overlap_s))
            }
            Edit::TokenRevoke { token } => self.end(*token, None),
        }
    }

    /// A member that may be changed.
    fn member(&self, id: MemberId) -> Result<&super::policy::Member, String> {
        let known = self.policy.members.get(&id).filter(|member| !member.revoked);
        known.ok_or_else(|| format!("{id} is no member; hint: member add, or member list for the ids"))
    }

    fn member_add(
        &mut self,
        id: MemberId,
        owner: Option<MemberId>,
        groups: &[String],
        subject: Option<Subject>,
    ) -> Result<(), String> {
        refuse(self.member(id).is_ok(), || format!("{id} is a member already; hint: member join, member token"))?;
        let mut member = Table::new();
        member.insert("groups", value(groups.iter().collect::<Array>()));
        if let Some(owner) = owner {
            member.insert("kind", value("service"));
            member.insert("owner", value(owner.to_string()));
        }
        if let Some(subject) = subject {
            member.insert(
                "subject",
                value(match subject {
                    Subject::Id => "id".to_owned(),
                    Subject::Digest(digest) => format!("sha256:{}", hex(&digest)),
                }),
            );
        }
        if self.policy.members.contains_key(&id) {
            // Who comes back begins anew: old tokens stay ended.
            self.end_all(id)?;
            let entry = self.entry("members", &id.to_string())?;
            ["kind", "owner", "subject", "revoked"].into_iter().for_each(|key| drop(entry.remove(key)));
            for (key, item) in member {
                entry.insert(&key, item);
            }
            return Ok(());
        }
        self.add("members", &id.to_string(), member)
    }

    fn member_revoke(&mut self, id: MemberId) -> Result<(), String> {
        self.member(id)?;
        self.end_all(id)?;
        self.entry("members", &id.to_string())?.insert("revoked", value(true));
        Ok(())
    }

    /// All tokens of a member end.
    fn end_all(&mut self, id: MemberId) -> Result<(), String> {
        let tokens = self.policy.tokens.iter().filter(|(_, token)| token.member == id && !token.revoked);
        let tokens: Vec<[u8; 16]> = tokens.map(|(id, _)| *id).collect();
        tokens.into_iter().try_for_each(|token| self.end(token, None))
    }

    fn rule(&mut self, rule: &NewRule, effect: &str) -> Result<(), String> {
        let named = rule.everyone || !rule.members.is_empty() || !rule.groups.is_empty();
        refuse(!named, || "the rule applies to nobody; hint: a member, a group, or everyone".to_owned())?;
        let known = |id: &str| {
            let limits = self.policy.limits.iter().any(|limit| &*limit.id == id);
            limits || self.policy.rules.iter().any(|rule| &*rule.id == id)
        };
        let id = match &rule.id {
            Some(id) => id.clone(),
            None => (1..).map(|number| format!("{effect}-{number}")).find(|id| !known(id)).unwrap_or_default(),
        };
        refuse(known(&id), || format!("there is a rule or limit {id} already; hint: another id"))?;
        let mut table = Table::new();
        table.insert("id", value(id));
        table.insert("effect", value(effect));
        if rule.everyone {
            table.insert("everyone", value(true));
        }
        let members: Vec<String> = rule.members.iter().map(ToString::to_string).collect();
        for (key, list) in
            [("members", &members), ("groups", &rule.groups), ("tools", &rule.tools), ("methods", &rule.methods)]
        {
            if !list.is_empty() {
                table.insert(key, value(list.iter().collect::<Array>()));
            }
        }
        let rules = self.tables("rules")?;
        if effect == "deny" {
            // A table without a place would be written behind whatever was visited before it.
            table.set_position(rules.get(0).and_then(Table::position));
            if let Some(first) = rules.get_mut(0) {
                // What stands above the first rule for all of them stays above all of them.
                let (of_all, own) = above(first);
                first.decor_mut().set_prefix(if of_all.is_empty() { own } else { format!("\n{own}") });
                table.decor_mut().set_prefix(if of_all.trim().is_empty() { "\n".to_owned() } else { of_all });
            }
            rules.insert(0, table);
        } else {
            rules.push(table);
        }
        Ok(())
    }

    fn rule_remove(&mut self, id: &str) -> Result<(), String> {
        let rules = self.tables("rules")?;
        let at = rules.iter().position(|rule| rule.get("id").and_then(Item::as_str) == Some(id));
        let at = at.ok_or_else(|| "the workspace has no rule of that id; hint: access show lists them".to_owned())?;
        let of_others = rules.get(at).map(|rule| above(rule).0).filter(|text| !text.trim().is_empty());
        rules.remove(at);
        let Some(of_others) = of_others else { return Ok(()) };
        // What stands above a blank line is not about this rule alone: it goes to what comes next.
        match rules.get_mut(at) {
            Some(next) => {
                let own = prefix(next.decor());
                next.decor_mut().set_prefix(of_others + own.trim_start_matches('\n'));
            }
            None => {
                let rest = self.document.trailing().as_str().unwrap_or_default().to_owned();
                self.document.set_trailing(of_others + &rest);
            }
        }
        Ok(())
    }

    fn token_issue(&mut self, member: MemberId, agent: Option<MemberId>, days: Option<u64>) -> Result<(), String> {
        self.member(member)?;
        let most = self.policy.token_days_max;
        let days = days.unwrap_or(most);
        refuse(!(1..=most).contains(&days), || format!("a token lives 1 to {most} days here; hint: token_days_max"))?;
        let agent = match agent {
            Some(agent) => agent,
            None => {
                let agent = MemberId(crate::random::bytes());
                self.add("agents", &agent.to_string(), Table::new())?;
                agent
            }
        };
        let known = self.policy.agents.contains_key(&agent)
            || self.document.get("agents").is_some_and(|agents| agents.get(agent.to_string().as_str()).is_some());
        refuse(!known, || format!("{agent} is no agent; hint: member list shows those of tokens; none for a new one"))?;
        self.issue(member, agent, days * DAY_US)
    }

    fn issue(&mut self, member: MemberId, agent: MemberId, life_us: u64) -> Result<(), String> {
        let token = OneTimeToken::random();
        let mut table = Table::new();
        table.insert("id", value(hex(&token.id())));
        table.insert("sha256", value(hex(&token.sha256())));
        table.insert("member", value(member.to_string()));
        table.insert("agent", value(agent.to_string()));
        table.insert("issued_at", value(datetime(self.now_us)?));
        table.insert("expires_at", value(datetime(self.now_us.saturating_add(life_us))?));
        self.tables("tokens")?.push(table);
        self.tokens.push(token);
        Ok(())
    }

    fn token_rotate(&mut self, id: [u8; 16], overlap_s: u64) -> Result<(), String> {
        let old = self.policy.tokens.get(&id).ok_or_else(no_token)?.clone();
        self.member(old.member)?;
        let life_us = old.expires_at.saturating_sub(old.issued_at).min(self.policy.token_days_max * DAY_US);
        // As the file has it, to the second.
        let ends_at = (self.now_us / 1_000_000).saturating_add(overlap_s).saturating_mul(1_000_000);
        let overlap = (overlap_s > 0 && ends_at < old.expires_at).then_some(ends_at);
        // With less time left than the overlap it ends when it would have.
        if overlap.is_some() || overlap_s == 0 {
            self.end(id, overlap)?;
            self.rotated.push((id, overlap));
        }
        self.issue(old.member, old.agent, life_us)
    }

    /// A token ends, at once or then.
    fn end(&mut self, id: [u8; 16], at: Option<u64>) -> Result<(), String> {
        let known = self.policy.tokens.get(&id).filter(|token| !token.revoked);
        known.ok_or_else(no_token)?;
        let ends = at.map(datetime).transpose()?;
        let id = hex(&id);
        let tokens = self.tables("tokens")?;
        let mut tokens = tokens.iter_mut();
        let token = tokens.find(|token| token.get("id").and_then(Item::as_str) == Some(&id)).ok_or_else(no_token)?;
        match ends {
            Some(ends) => token.insert("expires_at", value(ends)),
            None => token.insert("revoked", value(true)),
        };
        Ok(())
    }

    /// An entry of a section that is a table of tables.
    fn entry(&mut self, section: &str, key: &str) -> Result<&mut dyn TableLike, String> {
        let entry = self.document.get_mut(section).and_then(|section| section.get_mut(key));
        entry.and_then(Item::as_table_like_mut).ok_or_else(|| format!("[{section}.{key}] is no table; {BY_HAND}"))
    }

    fn add(&mut self, section: &str, key: &str, table: Table) -> Result<(), String> {
        let mut implicit = Table::new();
        implicit.set_implicit(true);
        let entries = self.document.entry(section).or_insert(Item::Table(implicit));
        let entries = entries.as_table_mut().ok_or_else(|| format!("[{section}] is no table; {BY_HAND}"))?;
        entries.insert(key, Item::Table(table));
        Ok(())
    }

    fn tables(&mut self, section: &str) -> Result<&mut ArrayOfTables, String> {
        let tables = self.document.entry(section).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        tables.as_array_of_tables_mut().ok_or_else(|| format!("{section} is not written as [[{section}]]; {BY_HAND}"))
    }
}

fn array<'a>(entry: &'a mut dyn TableLike, key: &str) -> Result<&'a mut Array, String> {
    let array = entry.entry(key).or_insert(value(Array::new())).as_array_mut();
    array.ok_or_else(|| format!("{key} is no array; {BY_HAND}"))
}

fn prefix(decor: &Decor) -> String {
    decor.prefix().and_then(RawString::as_str).unwrap_or_default().to_owned()
}

/// What stands above a table: down to the last blank line, and what is behind it.
fn above(table: &Table) -> (String, String) {
    let text = prefix(table.decor());
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let behind = lines.iter().rposition(|line| line.trim().is_empty()).map_or(0, |at| at + 1);
    let (of_all, own) = lines.split_at(behind);
    (of_all.concat(), own.concat())
}

/// Takes an element out of an array. A comment behind an element, on its line, is about that element; to the parser it stands
/// before the next one.
fn remove_from(array: &mut Array, at: usize) {
    let removed = array.remove(at);
    let before = prefix(removed.decor());
    // Of what stood before it the first line is the predecessor's; of what stands before the next, the first line was its own.
    let of_predecessor = before.split('\n').next().unwrap_or_default().to_owned();
    let joined = |next: &str| match next.find('\n') {
        Some(end) => format!("{of_predecessor}{}", next.get(end..).unwrap_or_default()),
        None if of_predecessor.contains('#') => format!("{of_predecessor}\n"),
        None if before.contains('\n') => before.clone(),
        None => of_predecessor.clone(),
    };
    match array.get_mut(at) {
        Some(next) => {
            let now = joined(&prefix(next.decor()));
            next.decor_mut().set_prefix(now);
        }
        None => {
            let rest = array.trailing().as_str().unwrap_or_default().to_owned();
            let rest = if rest.contains('\n') || of_predecessor.contains('#') { joined(&rest) } else { rest };
            array.set_trailing(rest);
        }
    }
}

fn refuse(wrong: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if wrong { Err(why()) } else { Ok(()) }
}

fn no_token() -> String {
    "there is no good token of that id; hint: member list shows the ids".to_owned()
}

/// To the second, as people write it.
fn datetime(at_us: u64) -> Result<Datetime, String> {
    let at = i64::try_from(at_us / 1_000_000).ok().and_then(|at| chrono::DateTime::from_timestamp(at, 0));
    let text = at.map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    text.and_then(|text| text.parse().ok()).ok_or_else(|| "the clock is beyond what a file can hold".to_owned())
}
