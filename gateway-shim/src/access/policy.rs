//! The text of an access policy, and what it says once it was checked.
//!
//! TOML, unknown keys refused, ids only: whoever reads the file learns no name. What must hold of a [`Policy`]: every member,
//! agent and owner that it names is in it, every id stands once, and every text in it may stand in a record. A fault names
//! its place and the next move, and never repeats a text that is no token: somebody's name may stand there by mistake.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use custody::{id::MemberId, strict::is_token};
use serde::Deserialize;

use crate::config::Faults;

mod file;
mod reading;

pub(super) use reading::TOKEN_DAYS_MAX;

/// A file with every key, all but the version in comments.
pub const TEMPLATE: &str = include_str!("template.toml");
/// Microseconds of a day.
pub(super) const DAY_US: u64 = 86_400_000_000;
/// What the names of the gateway's own rules begin with.
const RESERVED: &str = "shim/";

/// An access policy that can be used.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Digest of its text.
    pub digest: [u8; 32],
    /// Longest life of a token, in days.
    pub token_days_max: u64,
    /// Who may call.
    pub members: BTreeMap<MemberId, Member>,
    /// Through what.
    pub agents: BTreeMap<MemberId, Agent>,
    /// What is known of the servers.
    pub servers: BTreeMap<String, Server>,
    /// In the order of evaluation: the organisation's, then the workspace's own.
    pub rules: Vec<Rule>,
    /// All that fit a call apply.
    pub limits: Vec<Limit>,
    /// By id.
    pub tokens: BTreeMap<[u8; 16], Token>,
    /// Members by the digest of issuer and subject.
    pub(super) member_by_subject: BTreeMap<[u8; 32], MemberId>,
    /// Agents by the same.
    pub(super) agent_by_subject: BTreeMap<[u8; 32], MemberId>,
}

/// A person, or a service that a person answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Groups, each once.
    pub groups: BTreeSet<String>,
    /// Of a service: the person who answers for it.
    pub owner: Option<MemberId>,
    /// How an identity provider's word on this member is known; none: by tokens alone.
    pub subject: Option<Subject>,
    /// May call nothing any more.
    pub revoked: bool,
}

/// What members act through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agent {
    /// As of a member.
    pub subject: Option<Subject>,
}

/// How an identity provider's word on a member is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Its subject is the member's id.
    Id,
    /// By the digest of issuer and subject ([`super::subject_digest`]).
    Digest([u8; 32]),
}

/// Labels of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Who answers for it; a token.
    pub owner: Option<String>,
    /// As `production`; a token.
    pub environment: Option<String>,
    /// As `personal`; a token.
    pub data_class: Option<String>,
    /// What its tools do.
    pub effects: BTreeSet<Effect>,
    /// Whether arguments must fit the pinned schema.
    pub check_arguments: bool,
    /// What happens to a tool whose definition changed.
    pub on_change: OnChange,
}

/// What a server's tools do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// They read.
    Read,
    /// They write.
    Write,
    /// They send something out.
    Send,
    /// They destroy.
    Destroy,
}

/// What happens to a tool whose definition changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnChange {
    /// It is on record, and goes on.
    #[default]
    Warn,
    /// It is hidden and refused until somebody accepts it.
    Quarantine,
}

/// To whom a rule or a limit applies, and at what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// These members.
    pub members: BTreeSet<MemberId>,
    /// Members of these groups. With neither: everyone.
    pub groups: BTreeSet<String>,
    /// `server/tool` patterns.
    pub tools: Vec<String>,
}

/// A rule: who may, or may not, ask for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its id, which records name.
    pub id: Arc<str>,
    /// It allows; else it denies.
    pub allow: bool,
    /// It is the organisation's.
    pub organisation: bool,
    /// To whom it applies, and at what.
    pub scope: Scope,
    /// Patterns of methods.
    pub methods: Vec<String>,
}

/// A limit; a number that is not given does not limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its id.
    pub id: Arc<str>,
    /// To whom it applies, and at what.
    pub scope: Scope,
    /// One count for all to whom it applies, instead of one for each member.
    pub shared: bool,
    /// Calls in a minute of the UTC clock.
    pub calls_per_minute: Option<u64>,
    /// Calls in a day of the UTC clock.
    pub calls_per_day: Option<u64>,
    /// Calls in progress.
    pub concurrent_calls: Option<u64>,
    /// Length of a request in bytes.
    pub request_bytes_max: Option<u64>,
    /// Length of a response in bytes.
    pub response_bytes_max: Option<u64>,
}

/// What is kept of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of its secret part.
    pub sha256: [u8; 32],
    /// Whose it is.
    pub member: MemberId,
    /// What it was issued for.
    pub agent: MemberId,
    /// Microseconds since the Unix epoch.
    pub issued_at: u64,
    /// From then on it is refused.
    pub expires_at: u64,
    /// It is refused.
    pub revoked: bool,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token(of {}, until {})", self.member, self.expires_at)
    }
}

impl Policy {
    /// Checks the texts of a policy: the workspace's, and the organisation's, which holds rules that deny and nothing else.
    ///
    /// # Errors
    /// [`Faults`], all that were found.
    pub fn parse(workspace: &str, organisation: Option<&str>) -> Result<Self, Faults> {
        let mut reading = reading::Reading::default();
        if let Some(text) = organisation {
            reading.organisation(text);
        }
        reading.workspace(workspace);
        reading.policy.digest = custody::access::policy_digest(workspace.as_bytes(), organisation.map(str::as_bytes));
        if reading.faults.is_empty() { Ok(reading.policy) } else { Err(Faults(reading.faults)) }
    }

    /// What can be used, and should not stay so: services whose owner was revoked, tokens that end within a week.
    pub fn warnings(&self, now_us: u64) -> Vec<String> {
        let active = |id: &MemberId| self.members.get(id).is_some_and(|member| !member.revoked);
        let services = self.members.iter().filter(|(id, member)| active(id) && !member.owner.iter().all(active));
        let services = services.map(|(id, _)| {
            format!("nobody answers for the service {id}: its owner was revoked; hint: another owner, or member revoke")
        });
        let tokens = self.tokens.iter().filter(|(_, token)| {
            let ends_soon = token.expires_at > now_us && token.expires_at - now_us < 7 * DAY_US;
            !token.revoked && active(&token.member) && ends_soon
        });
        let tokens = tokens.map(|(id, token)| {
            let id = custody::id::hex(id);
            format!("token {id} of member {} ends within a week; hint: member rotate", token.member)
        });
        services.chain(tokens).collect()
    }
}

/// Whether a server may have this name: it stands before the `/` of a pattern, and before the `__` of a tool's public name.
pub fn is_server_name(name: &str) -> bool {
    is_token(name) && !name.contains('/') && !name.contains("__")
}
