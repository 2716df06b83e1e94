//! The keys of a policy's text, as TOML reads them; what they mean is checked behind it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Effect, OnChange};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) version: u64,
    pub(super) token_days_max: Option<u64>,
    #[serde(default)]
    pub(super) members: BTreeMap<String, FileMember>,
    #[serde(default)]
    pub(super) agents: BTreeMap<String, FileAgent>,
    #[serde(default)]
    pub(super) servers: BTreeMap<String, FileServer>,
    #[serde(default)]
    pub(super) rules: Vec<FileRule>,
    #[serde(default)]
    pub(super) limits: Vec<FileLimit>,
    #[serde(default)]
    pub(super) tokens: Vec<FileToken>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FileKind {
    Person,
    Service,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileMember {
    #[serde(default)]
    pub(super) groups: Vec<String>,
    pub(super) kind: Option<FileKind>,
    pub(super) owner: Option<String>,
    pub(super) subject: Option<String>,
    #[serde(default)]
    pub(super) revoked: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileAgent {
    pub(super) subject: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileServer {
    pub(super) owner: Option<String>,
    pub(super) environment: Option<String>,
    pub(super) data_class: Option<String>,
    #[serde(default)]
    pub(super) effects: Vec<Effect>,
    #[serde(default)]
    pub(super) check_arguments: bool,
    #[serde(default)]
    pub(super) on_change: OnChange,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FileEffect {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRule {
    pub(super) id: String,
    pub(super) effect: FileEffect,
    #[serde(default)]
    pub(super) everyone: bool,
    #[serde(default)]
    pub(super) members: Vec<String>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
    pub(super) tools: Vec<String>,
    #[serde(default = "tools_call")]
    pub(super) methods: Vec<String>,
}

fn tools_call() -> Vec<String> {
    vec!["tools/call".to_owned()]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLimit {
    pub(super) id: String,
    #[serde(default)]
    pub(super) everyone: bool,
    #[serde(default)]
    pub(super) members: Vec<String>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
    #[serde(default = "all")]
    pub(super) tools: Vec<String>,
    #[serde(default)]
    pub(super) shared: bool,
    pub(super) calls_per_minute: Option<u64>,
    pub(super) calls_per_day: Option<u64>,
    pub(super) concurrent_calls: Option<u64>,
    pub(super) request_bytes_max: Option<u64>,
    pub(super) response_bytes_max: Option<u64>,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileToken {
    pub(super) id: String,
    pub(super) sha256: String,
    pub(super) member: String,
    pub(super) agent: String,
    pub(super) issued_at: toml::value::Datetime,
    pub(super) expires_at: toml::value::Datetime,
    #[serde(default)]
    pub(super) revoked: bool,
}
