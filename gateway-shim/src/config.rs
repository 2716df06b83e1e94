//! The configuration file: TOML, unknown keys refused, every number with its unit in its name, its bounds and its reason.
//!
//! Paths are taken from the file's own folder. Secrets are never in it, only the paths of their files.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use custody::{
    hash::text_digest,
    id::{GatewayId, WorkspaceId, unhex},
    key::PublicKey,
    statement::Roots,
    strict::is_token,
    wire::WriterClass,
};
use hyper::http;
use serde::Deserialize;

use crate::{
    batcher, certificate,
    key::{Enrolment, Name},
};

mod process;
mod serve;
mod servers;

pub use process::{Limits, ProcessConfig, Profile, Sandbox, is_variable};
pub use serve::ServeConfig;
pub use servers::{BETWEEN, CredentialConfig, Mode, ServerConfig, Start};

/// A file with every key: its unit, default, bounds and reason.
pub const TEMPLATE: &str = include_str!("config/template.toml");

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: GatewayConfig,
    /// Where its records go.
    pub ledger: LedgerConfig,
    /// What is kept until it is archived there.
    pub spool: SpoolConfig,
    /// How records become batches.
    #[serde(default)]
    pub batch: BatchConfig,
    /// What happens when the ledger shows two histories.
    pub fork: ForkConfig,
    /// For `gateway-shim serve`.
    pub serve: Option<ServeConfig>,
    /// The MCP servers that it stands in front of, by their names.
    #[serde(default)]
    pub servers: BTreeMap<String, ServerConfig>,
    /// For `gateway-shim relay`.
    pub relay: Option<RelayConfig>,
    /// Digest of the file's bytes, which the epoch's first record names.
    #[serde(skip)]
    pub digest: [u8; 32],
}

/// `[gateway]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayConfig {
    /// Origin of the organisation's log, as the ledger has it.
    pub origin: String,
    /// Workspace id, hex.
    pub workspace: String,
    /// Gateway id, hex.
    pub id: String,
    /// For people; a token.
    #[serde(default)]
    pub name: String,
    /// File of the key that signs batches.
    pub key: PathBuf,
    /// File of the TLS key.
    pub tls_key: PathBuf,
    /// The ledger's answer to the enrolment.
    pub enrolment: PathBuf,
    /// `always-on` promises a batch or a heartbeat within the longest silence; `intermittent` may sleep, as a laptop does.
    #[serde(default)]
    pub class: Class,
    /// Seconds, 10 to 86,400: beyond this an always-on gateway is missing. Heartbeats come at a third of it.
    #[serde(default = "silence_s")]
    pub silence_s: u64,
    /// Seconds, 1 to 300: how long a drain may ship before the process ends and leaves the rest in the spool.
    #[serde(default = "drain_s")]
    pub drain_s: u64,
}

fn silence_s() -> u64 {
    600
}

fn drain_s() -> u64 {
    20
}

/// The gateway's word on its own silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A server.
    #[default]
    AlwaysOn,
    /// A laptop.
    Intermittent,
}

impl From<Class> for WriterClass {
    fn from(class: Class) -> Self {
        match class {
            Class::AlwaysOn => Self::AlwaysOn,
            Class::Intermittent => Self::Intermittent,
        }
    }
}

/// `[ledger]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerConfig {
    /// `https://HOST:PORT` of the ledger's ingest.
    pub endpoint: String,
    /// Name in the ledger's certificate, if it is not the endpoint's host.
    pub server_name: Option<String>,
    /// Allows `http://` to a loopback address. For trying out: no certificate says who is there.
    #[serde(default)]
    pub plaintext: bool,
}

/// `[spool]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpoolConfig {
    /// Its folder, which nothing else uses.
    pub dir: PathBuf,
    /// MiB, 8 to 65,536. At 100 calls a second 1 GiB holds about five hours without a ledger.
    #[serde(default = "spool_mib_max")]
    pub mib_max: u64,
    /// When it is full of what the ledger does not hold: `refuse` takes no more records (strict); `drop` lets them go, and
    /// declares how many.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Seconds, 1 to 3,600: without a connection to the ledger, or with a batch without its receipt, for so long, the ledger
    /// takes nothing, and `fail_closed` refuses. Its restart takes some seconds, and a connection is tried within 30.
    #[serde(default = "away_s_max")]
    pub away_s_max: u64,
}

fn away_s_max() -> u64 {
    60
}

fn spool_mib_max() -> u64 {
    1_024
}

/// What happens to calls and records when they cannot be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// No record, no call, as soon as the ledger takes none (`spool.away_s_max`), and when the spool is full.
    FailClosed,
    /// No record, no call when the spool is full.
    #[default]
    #[serde(alias = "refuse")]
    Spool,
    /// Calls go on when the spool is full; the loss is counted in the next header.
    #[serde(alias = "drop")]
    FailOpen,
}

/// `[batch]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Records, 1 to 4,096: one signature and one round trip for so many.
    pub records_max: usize,
    /// KiB, 128 to 1,016: below the format's 1 MiB, with room for the header.
    pub kib_max: usize,
    /// Milliseconds, 1 to 10,000: a record waits no longer for its batch.
    pub age_ms_max: u64,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { records_max: 256, kib_max: 1_016, age_ms_max: 100 }
    }
}

/// `[fork]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkConfig {
    /// Folder for the proof.
    pub dir: PathBuf,
    /// A second address, out of the ledger's reach: a folder on another machine, or an `http://` URL that takes a POST.
    pub second: Option<String>,
}

/// `[relay]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayConfig {
    /// Loopback address and port.
    pub listen: Option<SocketAddr>,
    /// Unix socket, made with mode 0600.
    pub socket: Option<PathBuf>,
}

/// How a gateway gets its enrolment.
const ENROL: &str = "hint: gateway-shim request, then ledger gateway enrol";

/// A configuration that cannot be used. Each fault ends with the next move where there is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "use the configuration: {}", self.0.join("; "))
    }
}

impl std::error::Error for Faults {}

fn fault<T>(text: impl Into<String>) -> Result<T, Faults> {
    Err(Faults(vec![text.into()]))
}

/// What TOML finds wrong, with the section where it is: TOML itself shows only the line.
fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let end = error.span().map_or(0, |span| span.end);
    let mut sections = text.get(..end).unwrap_or_default().lines().filter(|line| line.trim_start().starts_with('['));
    let place = sections.next_back().map_or(String::new(), |section| format!("in {}: ", section.trim()));
    format!("{place}{}; hint: gateway-shim config template has every section and key", error.to_string().trim_end())
}

/// Collects what is wrong, so that one look finds all of it.
#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn range<N: PartialOrd + std::fmt::Display>(&mut self, name: &str, value: N, least: N, most: N) {
        self.that(value >= least && value <= most, || format!("{name} is {value}; hint: {least} to {most}"));
    }

    fn that(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.0.push(text());
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`Faults`], all that were found.
    pub fn read(path: &Path) -> Result<Self, Faults> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let hint = "hint: --config names the file; gateway-shim config template prints one";
            Faults(vec![format!("{} cannot be read: {error}; {hint}", path.display())])
        })?;
        let mut config = Self::parse(&text)?;
        // The parent of a name alone is empty, which names no folder.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        config.take_paths_from(folder.unwrap_or_else(|| Path::new(".")));
        Ok(config)
    }

    /// Checks a file's text.
    ///
    /// # Errors
    /// [`Faults`].
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let mut config: Self = toml::from_str(text).map_err(|error| Faults(vec![of_toml(text, &error)]))?;
        config.digest = text_digest(text.as_bytes());
        let mut check = Check::default();
        config.check(&mut check);
        if check.0.is_empty() { Ok(config) } else { Err(Faults(check.0)) }
    }

    /// What can be used, and should not stay so.
    pub fn warnings(&self) -> Vec<String> {
        let second = "fork.second is missing: the proof of a fork would stand on this machine alone; hint: a folder on \
                      another machine, or an http:// URL";
        let mut warnings: Vec<String> = self.fork.second.is_none().then(|| second.into()).into_iter().collect();
        let bare = |server: &ServerConfig| server.sandbox.is_none() && !server.command.is_empty();
        for (name, _) in self.servers.iter().filter(|(_, server)| bare(server)) {
            warnings.push(format!(
                "servers.{name} has no sandbox: it may do all that this account may, and read this gateway's keys; hint: \
                 [servers.{name}.sandbox] with a profile, or profile = \"none\" if that is meant"
            ));
        }
        warnings
    }

    fn check(&self, check: &mut Check) {
        let gateway = &self.gateway;
        let ids = [("gateway.workspace", &gateway.workspace), ("gateway.id", &gateway.id)];
        for (name, id) in ids {
            check
                .that(unhex(id).is_some_and(|id| id.len() == 16), || format!("{name} is not 32 lower-case hex digits"));
        }
        check.that(custody::note::is_name(&gateway.origin), || "gateway.origin is no name of a log".into());
        let named = gateway.name.is_empty() || (is_token(&gateway.name) && gateway.name.len() <= 64);
        check.that(named, || "gateway.name is no token of at most 64 characters".into());
        check.range("gateway.silence_s", gateway.silence_s, 10, 86_400);
        check.range("gateway.drain_s", gateway.drain_s, 1, 300);
        check.range("spool.mib_max", self.spool.mib_max, 8, 65_536);
        check.range("spool.away_s_max", self.spool.away_s_max, 1, 3_600);
        check.range("batch.records_max", self.batch.records_max, 1, 4_096);
        check.range("batch.kib_max", self.batch.kib_max, 128, 1_016);
        check.range("batch.age_ms_max", self.batch.age_ms_max, 1, 10_000);
        self.check_ledger(check);
        if let Some(serve) = &self.serve {
            serve.check(check);
            check.that(!self.servers.is_empty(), || {
                "serve has no server behind it; hint: a section [servers.NAME] with url or command".into()
            });
        }
        for (name, server) in &self.servers {
            server.check(name, check);
        }
        if let Some(relay) = &self.relay {
            check.that(relay.listen.is_some() != relay.socket.is_some(), || {
                "relay needs one of listen and socket".into()
            });
            let loopback = relay.listen.is_none_or(|listen| listen.ip().is_loopback());
            check.that(loopback, || "relay.listen is not on loopback; hint: 127.0.0.1".into());
        }
    }

    fn check_ledger(&self, check: &mut Check) {
        let Ok(endpoint) = self.ledger.endpoint.parse::<http::Uri>() else {
            return check.that(false, || "ledger.endpoint is no URL".into());
        };
        match endpoint.scheme_str() {
            Some("https") => {}
            Some("http") => {
                let loopback = endpoint.host().is_some_and(is_loopback);
                check.that(self.ledger.plaintext && loopback, || {
                    "ledger.endpoint is plaintext; hint: https, or plaintext = true and a loopback address".into()
                });
            }
            _ => check.that(false, || "ledger.endpoint is neither https:// nor http://".into()),
        }
        if let Some(url) = self.fork.second.as_deref().filter(|second| second.contains("://")) {
            let known = url.starts_with("http://") && url.parse::<http::Uri>().is_ok();
            check.that(known, || "fork.second is no http:// URL; hint: or the path of a folder".into());
        }
    }

    fn take_paths_from(&mut self, folder: &Path) {
        let gateway = &mut self.gateway;
        let paths =
            [&mut gateway.key, &mut gateway.tls_key, &mut gateway.enrolment, &mut self.spool.dir, &mut self.fork.dir];
        for path in paths {
            *path = folder.join(&*path);
        }
        for server in self.servers.values_mut() {
            // Without it, the folder itself.
            server.directory.get_or_insert_default();
        }
        let of_serve = self.serve.iter_mut().flat_map(ServeConfig::paths);
        for path in of_serve.chain(self.servers.values_mut().flat_map(ServerConfig::paths)) {
            *path = folder.join(&*path);
        }
        if let Some(socket) = self.relay.as_mut().and_then(|relay| relay.socket.as_mut()) {
            *socket = folder.join(&*socket);
        }
        if let Some(second) = self.fork.second.as_mut().filter(|second| !second.contains("://")) {
            *second = folder.join(&*second).to_string_lossy().into_owned();
        }
    }

    /// Whether the folders can be used: what is there is a folder, and what is to be made has one to stand in.
    ///
    /// # Errors
    /// [`Faults`].
    pub fn check_folders(&self) -> Result<(), Faults> {
        let mut check = Check::default();
        for (name, folder) in [("spool.dir", &self.spool.dir), ("fork.dir", &self.fork.dir)] {
            let is_other = folder.exists() && !folder.is_dir();
            check
                .that(!is_other, || format!("{name}: {} is no folder; hint: name one, or a new one", folder.display()));
        }
        if let Some(second) = self.fork.second.as_deref().filter(|second| !second.contains("://")).map(Path::new) {
            let above = second.parent().is_some_and(Path::is_dir) && !second.exists();
            check.that(second.is_dir() || above, || {
                format!(
                    "fork.second: {} is no folder, and none can be made there; hint: is the other machine's disk mounted?",
                    second.display()
                )
            });
        }
        if check.0.is_empty() { Ok(()) } else { Err(Faults(check.0)) }
    }

    /// Whether the certificate of an enrolment is this gateway's.
    fn check_holder(&self, enrolment: &Enrolment) -> Result<(), Faults> {
        // Without TLS there may be none.
        if enrolment.certificate.is_empty() {
            return Ok(());
        }
        let holder = certificate::holder(&enrolment.certificate);
        let Some(holder) = holder else {
            return fault(format!("gateway.enrolment holds no certificate of a gateway; {ENROL}"));
        };
        let gateway = &self.gateway;
        let mut check = Check::default();
        for (name, mine, other) in [
            ("origin", &gateway.origin, holder.origin),
            ("workspace", &gateway.workspace, holder.workspace),
            ("id", &gateway.id, holder.gateway),
        ] {
            check.that(*mine == other, || {
                format!(
                    "gateway.{name} is {mine}, and the certificate in gateway.enrolment is of {other}; hint: mend the one \
                     that is wrong, or gateway-shim request and ledger gateway enrol again"
                )
            });
        }
        if check.0.is_empty() { Ok(()) } else { Err(Faults(check.0)) }
    }

    /// Folder of the control socket: that of what is in force, or without one, the spool's, which is this shim's alone as well.
    pub fn control_dir(&self) -> &Path {
        self.serve.as_ref().map_or(&self.spool.dir, |serve| &serve.dir)
    }

    /// Where a running shim answers.
    pub fn control_socket(&self) -> PathBuf {
        self.control_dir().join(crate::control::SOCKET)
    }

    /// What whoever asks there shows.
    pub fn control_cookie(&self) -> PathBuf {
        self.control_dir().join(crate::control::COOKIE)
    }

    /// What whoever hands over records at `relay.socket` shows.
    pub fn relay_secret(&self) -> PathBuf {
        self.control_dir().join(crate::relay::SECRET)
    }

    /// Who this gateway is.
    pub fn name(&self) -> Name {
        Name {
            origin: self.gateway.origin.clone(),
            workspace: WorkspaceId::from_hex(&self.gateway.workspace).unwrap_or(WorkspaceId::ZERO),
            gateway: GatewayId::from_hex(&self.gateway.id).unwrap_or(GatewayId::ZERO),
        }
    }

    /// Limits of a batch.
    pub fn batch_limits(&self) -> batcher::Limits {
        batcher::Limits {
            records_max: self.batch.records_max,
            bytes_max: self.batch.kib_max * 1_024,
            age_max: Duration::from_millis(self.batch.age_ms_max),
            heartbeat_after: Duration::from_secs(self.gateway.silence_s) / 3,
        }
    }

    /// The ledger's answer to the enrolment, and the root that it pins.
    ///
    /// # Errors
    /// [`Faults`].
    pub fn enrolment(&self) -> Result<(Enrolment, Roots), Faults> {
        let file = self.gateway.enrolment.display();
        let text = match std::fs::read_to_string(&self.gateway.enrolment) {
            Ok(text) => text,
            Err(error) => {
                return fault(format!("gateway.enrolment: {file} cannot be read: {error}; {ENROL}"));
            }
        };
        let Ok(enrolment) = serde_json::from_str::<Enrolment>(&text) else {
            return fault(format!("gateway.enrolment: {file} is not what ledger gateway enrol answers; {ENROL}"));
        };
        let key = unhex(&enrolment.root_public_key).and_then(|key| PublicKey::new(&key));
        let next = unhex(&enrolment.root_successor_hash).and_then(|hash| <[u8; 32]>::try_from(hash).ok());
        let (1, Some(key), Some(next)) = (enrolment.version, key, next) else {
            return fault(format!("gateway.enrolment: {file} holds no root key of version 1; {ENROL}"));
        };
        match Roots::new([(enrolment.era, key, next)]) {
            Some(roots) => {
                self.check_holder(&enrolment)?;
                Ok((enrolment, roots.with_past()))
            }
            None => fault(format!("gateway.enrolment: {file} holds no root key; {ENROL}")),
        }
    }
}

/// Whether a URL's host names this machine.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
