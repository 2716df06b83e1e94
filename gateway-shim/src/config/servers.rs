//! `[servers.NAME]`: an MCP server, how it is reached, and what holds for calls to it.
//!
//! Names of servers stand in records, in the path of the endpoint and, before `__`, in the names of tools at the one endpoint
//! for all: so a name has neither `/` nor `__`, and no `_` at its end.

use std::{collections::BTreeMap, path::PathBuf};

use custody::{strict::is_token, wire};
use hyper::http;
use serde::Deserialize;

use super::{Check, Limits, ProcessConfig, Sandbox, WhenFull};

/// What stands between the name of a server and that of its tool.
pub const BETWEEN: &str = "__";
/// Headers that are not a credential's: they belong to a connection, to the body or to MCP.
const NOT_A_CREDENTIALS: [&str; 12] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "last-event-id",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "origin",
];

/// Names of a receipt's metadata: some tens of them fill the 4 KiB that are kept.
const RECEIPT_METADATA_MAX: usize = 64;

/// `[servers.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// `https://` or `http://HOST:PORT/PATH` of a server that speaks Streamable HTTP.
    pub url: Option<String>,
    /// PEM certificates of the authorities that an `https://` server's certificate may come from; without it, those that
    /// this system trusts.
    pub ca: Option<PathBuf>,
    /// Program and arguments of a server that speaks over stdio; one process for each session, and one for what each member
    /// asks without a session.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its whole environment besides PATH.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// File of more of it, for secrets: lines `NAME=value`, mode 0600.
    pub environment_file: Option<PathBuf>,
    /// Seconds, 1 to 86,400: a call without an answer ends as `timeout`.
    #[serde(default = "call_s_max")]
    pub call_s_max: u64,
    /// Its working directory; without it, the folder of the configuration.
    pub directory: Option<PathBuf>,
    /// Processes of a stdio server at a time, 1 to 1,024.
    #[serde(default = "sessions_max")]
    pub sessions_max: usize,
    /// Of these for one member, 1 to 1,024.
    #[serde(default = "member_sessions_max")]
    pub member_sessions_max: usize,
    /// Whether a call waits until its intent is on the disk.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of calls that cannot be recorded.
    #[serde(default)]
    pub when_full: WhenFull,
    /// How the shim says to the server who it is.
    pub credential: Option<CredentialConfig>,
    /// Folder with a file for each member, named by the member's id: for servers that must know who calls.
    pub credentials: Option<PathBuf>,
    /// Names that may stand in the metadata of a forensic receipt that is kept whole: what stands under them is text of the
    /// tool's own, and is kept for years.
    #[serde(default)]
    pub receipt_metadata: Vec<String>,
    /// When a process begins.
    #[serde(default)]
    pub start: Start,
    /// Seconds, 10 to 86,400: a process that nobody asked anything for so long is stopped.
    #[serde(default = "idle_s_max")]
    pub idle_s_max: u64,
    /// Seconds, 1 to 600: a process that has not answered its first request by then is ended.
    #[serde(default = "ready_s_max")]
    pub ready_s_max: u64,
    /// Seconds, 1 to 60: how long a process may take to end once its stdin is closed, and again after SIGTERM.
    #[serde(default = "stop_s_max")]
    pub stop_s_max: u64,
    /// Starts in a row that may fail, 1 to 1,000, before nothing is started until somebody says so.
    #[serde(default = "failures_max")]
    pub failures_max: u32,
    /// What a process may use.
    #[serde(default)]
    pub limits: Limits,
    /// What a process may reach.
    pub sandbox: Option<Sandbox>,
}

fn call_s_max() -> u64 {
    300
}

fn sessions_max() -> usize {
    64
}

fn member_sessions_max() -> usize {
    16
}

fn idle_s_max() -> u64 {
    3_600
}

fn ready_s_max() -> u64 {
    30
}

fn stop_s_max() -> u64 {
    5
}

fn failures_max() -> u32 {
    20
}

/// When the record of a call is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Before the call goes on.
    #[default]
    Strict,
    /// Within 5 ms after it was written, which is before the call goes on.
    Relaxed,
}

impl From<Mode> for wire::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Strict => Self::Strict,
            Mode::Relaxed => Self::Relaxed,
        }
    }
}

/// When the processes of a server begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// When somebody asks.
    #[default]
    OnDemand,
    /// With the shim.
    Always,
}

/// `[servers.NAME.credential]`: where the secret is, and in which header it goes; the file may not hold the secret itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    /// Header that it goes in.
    #[serde(default = "authorization")]
    pub header: String,
    /// What stands before the secret there.
    #[serde(default = "bearer")]
    pub prefix: String,
    /// File that holds it.
    pub file: Option<PathBuf>,
    /// Name of the variable in the shim's environment that holds it.
    pub environment: Option<String>,
}

fn authorization() -> String {
    "Authorization".to_owned()
}

fn bearer() -> String {
    "Bearer ".to_owned()
}

impl Default for CredentialConfig {
    fn default() -> Self {
        Self { header: authorization(), prefix: bearer(), file: None, environment: None }
    }
}

impl ServerConfig {
    pub(super) fn check(&self, name: &str, check: &mut Check) {
        let at = |key: &str| format!("servers.{name}.{key}");
        // One that ends with `_` would end one character earlier in the name of a tool.
        let parts = !name.contains(BETWEEN) && !name.ends_with('_') && !name.contains('/');
        check.that(is_token(name) && name.len() <= 64 && parts, || {
            let hint = "hint: at most 64 characters of [A-Za-z0-9_.:@+-], without `__` and no `_` at the end";
            format!("servers.{name:?} is no name; {hint}")
        });
        let one = self.url.is_some() == self.command.is_empty();
        check.that(one, || format!("servers.{name} needs one of url and command"));
        self.check_url(name, check);
        check.range(&at("call_s_max"), self.call_s_max, 1, 86_400);
        check.range(&at("sessions_max"), self.sessions_max, 1, 1_024);
        check.range(&at("member_sessions_max"), self.member_sessions_max, 1, 1_024);
        check.range(&at("idle_s_max"), self.idle_s_max, 10, 86_400);
        check.range(&at("ready_s_max"), self.ready_s_max, 1, 600);
        check.range(&at("stop_s_max"), self.stop_s_max, 1, 60);
        check.range(&at("failures_max"), self.failures_max, 1, 1_000);
        if let Some(credential) = &self.credential {
            credential.check(name, self.credentials.is_some(), check);
        }
        let sent = self.credential.is_some() || self.credentials.is_some();
        check.that(!sent || self.url.is_some(), || {
            format!(
                "servers.{name}.credential is for a url alone; hint: a command gets what it needs in its environment"
            )
        });
        let environment = !self.environment.is_empty() || self.environment_file.is_some();
        let of_process = self.sandbox.is_some() || environment || self.limits.is_some();
        check.that(!of_process || self.url.is_none(), || {
            format!("servers.{name}: environment, limits and sandbox are for a command alone")
        });
        self.limits.check(name, check);
        let listed = self.receipt_metadata.len();
        check.range(&at("receipt_metadata"), listed, 0, RECEIPT_METADATA_MAX);
        let sane = |text: &str| !text.is_empty() && !text.contains(['=', '\0']);
        check.that(self.environment.iter().all(|(name, value)| sane(name) && !value.contains('\0')), || {
            format!("servers.{name}.environment has a name that none may have: empty, or with = in it")
        });
        if let Some(sandbox) = &self.sandbox {
            sandbox.check(name, check);
        }
    }

    /// What its processes are to be.
    pub fn process(&self) -> ProcessConfig {
        ProcessConfig {
            command: self.command.clone(),
            environment: self.environment.clone(),
            environment_file: self.environment_file.clone(),
            directory: self.directory.clone().unwrap_or_else(|| PathBuf::from(".")),
            start: self.start,
            idle_s_max: self.idle_s_max,
            ready_s_max: self.ready_s_max,
            stop_s_max: self.stop_s_max,
            sessions_max: self.sessions_max,
            member_sessions_max: self.member_sessions_max,
            failures_max: self.failures_max,
            limits: self.limits.clone(),
            sandbox: self.sandbox.clone().unwrap_or_default(),
        }
    }

    /// How it is reached, in one word.
    pub fn kind(&self) -> &'static str {
        if self.url.is_some() { "http" } else { "stdio" }
    }

    fn check_url(&self, name: &str, check: &mut Check) {
        let scheme = |url: &str| url.parse::<http::Uri>().ok().filter(|url| url.host().is_some())?.scheme().cloned();
        let scheme = self.url.as_deref().map(scheme);
        let known = [http::uri::Scheme::HTTP, http::uri::Scheme::HTTPS];
        check.that(scheme.as_ref().is_none_or(|scheme| scheme.as_ref().is_some_and(|url| known.contains(url))), || {
            format!("servers.{name}.url is neither https:// nor http://")
        });
        let https = scheme == Some(Some(http::uri::Scheme::HTTPS));
        check.that(self.ca.is_none() || https, || format!("servers.{name}.ca is for an https:// url alone"));
    }

    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let file = self.credential.as_mut().and_then(|credential| credential.file.as_mut());
        let environment = self.environment_file.as_mut();
        let reached = self.sandbox.iter_mut().flat_map(|sandbox| sandbox.read.iter_mut().chain(&mut sandbox.write));
        [self.ca.as_mut(), self.credentials.as_mut(), self.directory.as_mut(), file, environment]
            .into_iter()
            .flatten()
            .chain(reached)
    }
}

impl CredentialConfig {
    fn check(&self, name: &str, of_members: bool, check: &mut Check) {
        let header = self.header.to_ascii_lowercase();
        let fits = http::HeaderName::from_bytes(header.as_bytes()).is_ok()
            && !NOT_A_CREDENTIALS.contains(&header.as_str())
            && !header.starts_with("mcp-");
        check.that(fits, || format!("servers.{name}.credential.header is no header that a credential goes in"));
        let prefix = http::HeaderValue::from_str(&self.prefix).is_ok();
        check.that(prefix, || format!("servers.{name}.credential.prefix may not stand in a header"));
        let sources = usize::from(self.file.is_some()) + usize::from(self.environment.is_some());
        check.that(sources == 1 || (sources == 0 && of_members), || {
            format!("servers.{name}.credential needs one of file and environment")
        });
    }
}
