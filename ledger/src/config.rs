//! The configuration file: every knob with its unit, default, bound and reason.
//!
//! The tables below are the only place where a knob is declared: the structures, the defaults, the bounds that
//! [`Config::check`] enforces and the commented template that `ledger init` writes all come from them. Unknown keys are
//! refused, because a knob that is passed over is a limit that somebody believes in. Limits that the format fixes (records
//! and bytes of a batch, bytes and leaves of a segment) are constants of the contract and no knobs.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use custody::id::hex;
use serde::{Deserialize, Serialize};

/// Greatest length of a configuration file in bytes: the template has under 16 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What stands in the template until `ledger init` puts the name of the organisation's log there.
const EXAMPLE_ORIGIN: &str = "example.org/custody";

/// A default, written as its type's natural literal.
trait Knob {
    fn toml(&self) -> String;
}

macro_rules! plain_knobs {
    ($($kind:ty),*) => {$(
        impl Knob for $kind {
            fn toml(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
plain_knobs!(bool, u16, u32, u64);

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Knob for String {
    fn toml(&self) -> String {
        quoted(self)
    }
}

impl Knob for PathBuf {
    fn toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Knob for SocketAddr {
    fn toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Knob for Vec<String> {
    fn toml(&self) -> String {
        format!("[{}]", self.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", "))
    }
}

impl Knob for Kind {
    fn toml(&self) -> String {
        quoted("folder")
    }
}

/// What keeps the archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A folder of a file system; it is reported as not WORM.
    #[default]
    Folder,
}

macro_rules! knobs {
    ($(
        $(#[doc = $why_section:literal])+
        $section:ident $name:literal {$(
            $(#[doc = $why:literal])+
            $knob:ident: $kind:ty = $default:expr $(, in $least:literal..=$most:literal)?;
        )+}
    )+) => {$(
        $(#[doc = $why_section])+
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $section {
            $($(#[doc = $why])+ pub $knob: $kind,)+
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $($knob: $default,)+ }
            }
        }

        impl $section {
            fn check(&self) -> Result<(), ConfigError> {
                $($(
                    let (least, most): ($kind, $kind) = ($least, $most);
                    if !(least..=most).contains(&self.$knob) {
                        return Err(ConfigError::bad(
                            concat!($name, ".", stringify!($knob)),
                            format!("is {}, and may be {least} to {most}", self.$knob),
                        ));
                    }
                )?)+
                Ok(())
            }

            fn template(out: &mut String) {
                out.push('\n');
                $(comment(out, $why_section);)+
                out.push_str(concat!("[", $name, "]\n"));
                let defaults = Self::default();
                $(
                    $(comment(out, $why);)+
                    $(comment(out, concat!(" Allowed: ", stringify!($least), " to ", stringify!($most), "."));)?
                    out.push_str(&format!("{} = {}\n", stringify!($knob), defaults.$knob.toml()));
                )+
            }
        }
    )+};
}

fn comment(out: &mut String, line: &str) {
    out.push('#');
    out.push_str(line);
    out.push('\n');
}

knobs! {
    /// Where things lie. Paths are relative to the folder of this file.
    Paths "paths" {
        /// The store of what is not yet archived, and of what is hot.
        data: PathBuf = "data".into();
        /// The ledger's own keys: record.key, head.key, log.key. Mode 0700.
        keys: PathBuf = "keys".into();
        /// Members' keys, in a store of their own with a backup of its own.
        vault: PathBuf = "vault".into();
        /// The local certificate authority and the certificates it made.
        tls: PathBuf = "tls".into();
        /// The first statements, which the server takes in at its first start.
        genesis: PathBuf = "genesis".into();
        /// The audit policy with the root keys.
        policy: PathBuf = "policy.json".into();
    }

    /// How the ledger opens sealed key files. Never the passphrase itself: this file is no secret.
    Keys "keys" {
        /// File of mode 0600 with the passphrase; empty: none.
        passphrase_file: PathBuf = PathBuf::new();
        /// Environment variable with the passphrase, looked at if no file is named; empty: none.
        passphrase_variable: String = String::new();
    }

    /// Where the ledger listens.
    Listen "listen" {
        /// Gateways and administrators: gRPC over mutual TLS.
        grpc: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7443));
        /// Metrics, health and the public log: plain HTTP, so behind a proxy if the network is not yours.
        http: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7480));
        /// Security teams and auditors, who ask with a token: gRPC, and HTTP with JSON, over TLS.
        ask: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7481));
        /// gRPC without TLS, for trying out: refused unless grpc and ask are loopback addresses. Whoever reaches the first is
        /// then taken at their word; the second wants a token all the same.
        plaintext_loopback: bool = false;
    }

    /// Certificates of the local authority. They renew themselves when two thirds of their life have passed.
    Tls "tls" {
        /// Names and addresses under which gateways and administrators reach this ledger.
        server_names: Vec<String> = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        /// Days that the authority itself lives: long, because every gateway keeps it.
        authority_days: u32 = 3650, in 30..=36500;
        /// Days of a server certificate: short, because nobody asks for revocation lists.
        server_days: u32 = 90, in 1..=825;
        /// Days of an administrator's certificate.
        admin_days: u32 = 90, in 1..=825;
        /// Days of a gateway's certificate. One switched off for longer is enrolled again.
        gateway_days: u32 = 90, in 1..=825;
        /// Alarm when a certificate has so many days left and was not renewed.
        alarm_days: u32 = 7, in 0..=365;
    }

    /// How the administrator's commands on this machine reach the ledger.
    Admin "admin" {
        /// Address; `http://` only together with listen.plaintext_loopback.
        url: String = "https://localhost:7443".to_owned();
        /// Seconds until a command gives up. A cut of a full segment takes a few.
        timeout_seconds: u64 = 60, in 1..=3600;
    }

    /// How `ledger search` reaches a ledger, on this machine or another.
    Ask "ask" {
        /// Address; `http://` only together with listen.plaintext_loopback.
        ask_url: String = "https://localhost:7481".to_owned();
        /// File of mode 0600 with the API token; empty: the variable.
        token_file: PathBuf = PathBuf::new();
        /// Environment variable with the API token, looked at if no file is named.
        token_variable: String = "CUSTODY_API_TOKEN".to_owned();
    }

    /// The archive: evidence is what lies there.
    Archive "archive" {
        /// What keeps it.
        kind: Kind = Kind::Folder;
        /// Its folder.
        folder: PathBuf = "archive".into();
        /// Seconds that one request may take before it is tried again: a segment of 64 MiB at 2 MiB/s.
        request_seconds_max: u64 = 32, in 1..=600;
    }

    /// The fence: where terms and log indexes are claimed, so that there is one writer. It is not evidence.
    Fence "fence" {
        /// Its folder: one that every machine that may run this ledger shares, and never in the archive.
        folder: PathBuf = "fence".into();
        /// Seconds between two reads. Heads are signed as fenced for 30 s after a read, so three may fail.
        read_seconds: u64 = 10, in 1..=20;
    }

    /// Limits of intake: a slow or hostile gateway must harm no other.
    Ingest "ingest" {
        /// Batches of one stream sent and not yet answered: at 256 records and 2 ms a commit that is 8 million records a
        /// second, so the limit is never what slows a good gateway.
        batches_in_flight_max: u32 = 64, in 1..=4096;
        /// Bytes of one stream sent and not yet answered: 16 batches of the greatest size.
        bytes_in_flight_max: u32 = 16_777_216, in 1_048_576..=268_435_456;
        /// Bytes of all streams together, so that memory has a bound whatever the number of gateways.
        bytes_in_flight_total_max: u64 = 134_217_728, in 1_048_576..=8_589_934_592;
        /// Streams open at once: one for each gateway, 50 KiB each. One gateway may have four.
        streams_max: u32 = 4096, in 1..=65536;
        /// Records a second of one workspace, over ten seconds, a heartbeat counting as one; 0: no limit. One batch always
        /// passes, however low the limit.
        records_per_second_max: u64 = 200_000, in 0..=10_000_000;
        /// Bytes on disk of one workspace that are not yet archived; 0: no limit.
        disk_bytes_max: u64 = 17_179_869_184, in 0..=17_592_186_044_416;
        /// Seconds without any message after which a stream is closed. Heartbeats come every few minutes.
        idle_seconds_max: u64 = 1800, in 10..=86400;
    }

    /// When a segment is cut. Smaller segments are archived sooner and cost more objects.
    Segment "segment" {
        /// Seconds after its first record: how long a record may wait for the archive.
        age_seconds: u64 = 300, in 1..=86400;
        /// Seconds after its first batch, if there are only heartbeats in it.
        heartbeat_age_seconds: u64 = 86_400, in 60..=604_800;
        /// Bytes of batches; the format allows 64 MiB.
        bytes_max: u64 = 67_108_864, in 65_536..=67_108_864;
        /// Batches; the format allows 65536.
        leaves_max: u32 = 65_536, in 1..=65_536;
    }

    /// From the cut to the published log.
    Publish "publish" {
        /// Segments that are cut and not archived, over all workspaces, before batches are refused: while the archive is
        /// away they fill the disk. At 64 MiB each 256 are 16 GiB. One workspace may have a quarter of them.
        unarchived_segments_max: u32 = 256, in 1..=65536;
        /// Alarm when a segment that was cut has waited so many seconds.
        alarm_seconds: u64 = 600, in 1..=86400;
    }

    /// The index: what is searched. It lies in the data folder, follows from the store, and is built again if it is lost.
    Index "index" {
        /// Days for which records are found, by the ledger's own clock.
        days_max: u64 = 90, in 1..=3650;
    }

    /// The watch: what is out of the ordinary becomes an alarm, on record.
    Watch "watch" {
        /// Folder of Sigma rules (`*.yml`) beside those that ship; empty: none. Read at a start.
        rules: PathBuf = PathBuf::new();
        /// Where alarms are sent: an `https://` address, or `http://` of a loopback address; empty: nowhere.
        webhook_url: String = String::new();
        /// File of mode 0600 with the secret that signs what is sent.
        webhook_secret_file: PathBuf = PathBuf::new();
        /// Seconds between two heartbeats, whose absence says that nobody watches.
        heartbeat_seconds: u64 = 300, in 1..=86400;
    }

    /// The store and the disk under it.
    Store "store" {
        /// Bytes of memory for blocks that were read.
        cache_bytes: u64 = 67_108_864, in 8_388_608..=68_719_476_736;
        /// Bytes of memory for what was written and not yet sorted to disk.
        write_buffer_bytes: u64 = 67_108_864, in 8_388_608..=8_589_934_592;
        /// Alarm below so many free bytes.
        disk_low_bytes: u64 = 4_294_967_296, in 0..=1_099_511_627_776;
        /// Refuse batches below so many free bytes: what sealing and archiving still need.
        disk_full_bytes: u64 = 536_870_912, in 0..=1_099_511_627_776;
    }

    /// The end of the process.
    Drain "drain" {
        /// Seconds from SIGTERM until the process ends, sealed or not; the unit file allows twice as many.
        seconds_max: u64 = 30, in 1..=3600;
    }
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the organisation's log; in everything that is signed, so it never changes.
    pub origin: String,
    /// Where things lie.
    #[serde(default)]
    pub paths: Paths,
    /// Passphrase of key files.
    #[serde(default)]
    pub keys: Keys,
    /// Addresses.
    #[serde(default)]
    pub listen: Listen,
    /// Certificates.
    #[serde(default)]
    pub tls: Tls,
    /// How the administrator's commands reach the ledger.
    #[serde(default)]
    pub admin: Admin,
    /// How questions reach the ledger.
    #[serde(default)]
    pub ask: Ask,
    /// The archive.
    #[serde(default)]
    pub archive: Archive,
    /// The fence.
    #[serde(default)]
    pub fence: Fence,
    /// Limits of intake.
    #[serde(default)]
    pub ingest: Ingest,
    /// When a segment is cut.
    #[serde(default)]
    pub segment: Segment,
    /// From the cut to the published log.
    #[serde(default)]
    pub publish: Publish,
    /// The index.
    #[serde(default)]
    pub index: Index,
    /// The watch.
    #[serde(default)]
    pub watch: Watch,
    /// The store and the disk.
    #[serde(default)]
    pub store: Store,
    /// The end of the process.
    #[serde(default)]
    pub drain: Drain,
}

impl Default for Config {
    fn default() -> Self {
        Self::new(EXAMPLE_ORIGIN)
    }
}

impl Config {
    /// The defaults for an origin.
    pub fn new(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            paths: Paths::default(),
            keys: Keys::default(),
            listen: Listen::default(),
            tls: Tls::default(),
            admin: Admin::default(),
            ask: Ask::default(),
            archive: Archive::default(),
            fence: Fence::default(),
            ingest: Ingest::default(),
            segment: Segment::default(),
            publish: Publish::default(),
            index: Index::default(),
            watch: Watch::default(),
            store: Store::default(),
            drain: Drain::default(),
        }
    }

    /// A commented file that says the defaults.
    pub fn template() -> String {
        Self::template_for(EXAMPLE_ORIGIN)
    }

    /// The same for an origin.
    pub fn template_for(origin: &str) -> String {
        let mut out = String::from(
            "# Configuration of the ledger. Every value here is the default; a line may be left out. Check this file with\n\
             # `ledger config check FILE`.\n\n\
             # Name of the organisation's log. It stands in everything that is signed, so it never changes.\n",
        );
        out.push_str(&format!("origin = {}\n", quoted(origin)));
        Paths::template(&mut out);
        Keys::template(&mut out);
        Listen::template(&mut out);
        Tls::template(&mut out);
        Admin::template(&mut out);
        Ask::template(&mut out);
        Archive::template(&mut out);
        Fence::template(&mut out);
        Ingest::template(&mut out);
        Segment::template(&mut out);
        Publish::template(&mut out);
        Index::template(&mut out);
        Watch::template(&mut out);
        Store::template(&mut out);
        Drain::template(&mut out);
        out
    }

    /// Reads and checks a file. Relative paths in it become relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key or line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unread = |why| ConfigError::Unread { path: path.to_owned(), why };
        let about = fs::metadata(path).map_err(unread)?;
        if about.len() > FILE_BYTES_MAX {
            return Err(unread(io::Error::new(io::ErrorKind::InvalidData, "longer than 1 MiB")));
        }
        let text = fs::read_to_string(path).map_err(unread)?;
        let mut config = Self::parse(&text)?;
        config.resolve(path.parent().unwrap_or_else(|| Path::new("")));
        Ok(config)
    }

    /// Reads and checks the text of a file, leaving its paths as they are.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key or line.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|why| ConfigError::Form(why.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Puts `base` before every relative path.
    pub fn resolve(&mut self, base: &Path) {
        let paths = &mut self.paths;
        let all = [
            &mut paths.data,
            &mut paths.keys,
            &mut paths.vault,
            &mut paths.tls,
            &mut paths.genesis,
            &mut paths.policy,
            &mut self.archive.folder,
            &mut self.fence.folder,
        ];
        for path in all {
            *path = base.join(&*path);
        }
        for optional in [
            &mut self.keys.passphrase_file,
            &mut self.ask.token_file,
            &mut self.watch.rules,
            &mut self.watch.webhook_secret_file,
        ] {
            if !optional.as_os_str().is_empty() {
                *optional = base.join(&*optional);
            }
        }
    }

    /// Whether every value is within its bounds and fits the others.
    ///
    /// # Errors
    /// [`ConfigError::Bad`] with the first key that is not, and the next move.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_origin(&self.origin) {
            return Err(ConfigError::bad(
                "origin",
                "must be 1 to 255 ASCII characters without spaces, `+` or control characters".to_owned(),
            ));
        }
        self.paths.check()?;
        self.keys.check()?;
        self.listen.check()?;
        self.tls.check()?;
        self.admin.check()?;
        self.ask.check()?;
        self.archive.check()?;
        self.fence.check()?;
        self.ingest.check()?;
        self.segment.check()?;
        self.publish.check()?;
        self.index.check()?;
        self.watch.check()?;
        self.store.check()?;
        self.drain.check()?;
        self.check_together()
    }

    /// What no bound of one knob alone says.
    fn check_together(&self) -> Result<(), ConfigError> {
        for port in [self.listen.grpc, self.listen.ask] {
            if self.listen.plaintext_loopback && !port.ip().is_loopback() {
                let why = format!("asks for no TLS on {port}, which is no loopback address");
                return Err(ConfigError::bad("listen.plaintext_loopback", why));
            }
        }
        for (name, url) in [("admin.url", &self.admin.url), ("ask.ask_url", &self.ask.ask_url)] {
            if url.starts_with("http://") && !self.listen.plaintext_loopback {
                return Err(ConfigError::bad(name, "is without TLS, and the ledger listens with TLS".to_owned()));
            }
        }
        if self.tls.server_names.is_empty() || self.tls.server_names.iter().any(String::is_empty) {
            return Err(ConfigError::bad("tls.server_names", "must name this ledger at least once".to_owned()));
        }
        if self.store.disk_full_bytes > self.store.disk_low_bytes {
            return Err(ConfigError::bad("store.disk_full_bytes", "is above store.disk_low_bytes".to_owned()));
        }
        if self.ingest.bytes_in_flight_total_max < u64::from(self.ingest.bytes_in_flight_max) {
            return Err(ConfigError::bad("ingest.bytes_in_flight_total_max", "is less than one stream's".to_owned()));
        }
        if self.fence.folder.starts_with(&self.archive.folder) {
            return Err(ConfigError::bad("fence.folder", "lies in the archive, whose objects never go".to_owned()));
        }
        Ok(())
    }

    /// SHA-256 of the effective configuration in hex: what the ledger records of it.
    pub fn digest(&self) -> String {
        let text = toml::to_string(self).unwrap_or_default();
        hex(&custody::hash::sha256(&[text.as_bytes()]))
    }
}

/// As C2SP asks of the name of a log, bounded as the format bounds it, and ASCII because it stands in certificates.
fn is_origin(origin: &str) -> bool {
    let good = |letter: u8| letter.is_ascii_graphic() && letter != b'+';
    !origin.is_empty() && origin.len() <= 255 && origin.bytes().all(good)
}

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Unread {
        /// Which.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// It is no TOML, or has a key that there is not; the text names line and key.
    Form(String),
    /// A value is out of its bounds or does not fit another.
    Bad {
        /// Its key, with the section before it.
        key: &'static str,
        /// What is wrong, completing "the key ...".
        why: String,
    },
}

impl ConfigError {
    fn bad(key: &'static str, why: String) -> Self {
        Self::Bad { key, why }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread { path, .. } => {
                write!(
                    f,
                    "read the configuration {}\nhint: name it with --config FILE; `ledger init` writes that of a new ledger",
                    path.display()
                )
            }
            Self::Form(why) => write!(f, "understand the configuration: {}", why.trim_end()),
            Self::Bad { key, why } => {
                write!(
                    f,
                    "use the configuration: {key} {why}\nhint: the comment above {key} in a fresh template says more"
                )
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unread { why, .. } => Some(why),
            Self::Form(_) | Self::Bad { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
