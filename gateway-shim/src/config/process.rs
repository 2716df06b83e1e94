//! What the configuration says of the processes of a server over stdio: their life, their limits, their sandbox.
//!
//! What each key excludes and what it does not is in SHIPPING.md; the bounds are checked here.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Check;

/// When a server's processes are started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// When somebody asks for one.
    #[default]
    OnDemand,
    /// One more than is used stands ready at all times.
    Always,
}

/// The keys of a server that is a program.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its whole environment besides PATH.
    pub environment: BTreeMap<String, String>,
    /// Its working directory; without it, the folder of the configuration.
    pub directory: PathBuf,
    /// When its processes are started.
    pub start: Start,
    /// Seconds, 10 to 86,400: a process that nobody asks for anything for so long is ended.
    pub idle_s_max: u64,
    /// Seconds, 1 to 600: a process that has not answered its first request by then is ended.
    pub ready_s_max: u64,
    /// Seconds, 1 to 60: how long a process may take to end once its stdin is closed, and again after SIGTERM.
    pub stop_s_max: u64,
    /// Processes at a time, 1 to 1,024.
    pub sessions_max: usize,
    /// Of these for one member, 1 to 1,024.
    pub member_sessions_max: usize,
    /// Starts in a row that may fail, 1 to 1,000, before nothing is started until somebody says so.
    pub failures_max: u32,
    /// What a process may use.
    pub limits: Limits,
    /// What a process may reach.
    pub sandbox: Sandbox,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            environment: BTreeMap::new(),
            directory: PathBuf::new(),
            start: Start::OnDemand,
            idle_s_max: 1_800,
            ready_s_max: 30,
            stop_s_max: 5,
            sessions_max: 64,
            member_sessions_max: 8,
            failures_max: 20,
            limits: Limits::default(),
            sandbox: Sandbox::default(),
        }
    }
}

/// `[servers.NAME.limits]`: what is absent is not limited beyond what the shim itself may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// MiB of address space of each process, 16 to 1,048,576. Runtimes that reserve much (Node, Java) need tens of GiB.
    pub memory_mib_max: Option<u64>,
    /// Open files of each process, 8 to 1,048,576.
    pub open_files_max: Option<u64>,
    /// Processes and threads of the account that the shim runs as, 1 to 1,048,576: the kernel counts them per account.
    pub processes_max: Option<u64>,
    /// Seconds of processor time of each process, 1 to 31,536,000.
    pub cpu_s_max: Option<u64>,
    /// MiB of each file that is written, 1 to 1,048,576.
    pub file_mib_max: Option<u64>,
}

/// How much of the machine a server sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// All that the account of the shim may do, its keys included.
    #[default]
    None,
    /// Reads everything, writes only what is named.
    ReadOnly,
    /// Reads the system's programs and what is named, writes what is named, connects where it is named.
    Confined,
}

/// `[servers.NAME.sandbox]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// How much of the machine it sees.
    pub profile: Profile,
    /// Files and folders that it may read and run, with all that is below them.
    pub read: Vec<PathBuf>,
    /// Files and folders that it may write too.
    pub write: Vec<PathBuf>,
    /// TCP ports that it may connect to, at any address; absent: none if confined, else all.
    pub connect: Option<Vec<u16>>,
    /// TCP ports that it may listen on; absent: none if confined, else all.
    pub listen: Option<Vec<u16>>,
    /// Starts it even where the kernel cannot keep all of this. Without it, there is no start.
    pub best_effort: bool,
}

impl ProcessConfig {
    /// Paths are taken from this folder.
    pub(super) fn take_paths_from(&mut self, folder: &std::path::Path) {
        let sandbox = &mut self.sandbox;
        for path in [&mut self.directory].into_iter().chain(&mut sandbox.read).chain(&mut sandbox.write) {
            *path = folder.join(&*path);
        }
    }

    pub(super) fn check(&self, of: &str, check: &mut Check) {
        check.range(&format!("{of}.idle_s_max"), self.idle_s_max, 10, 86_400);
        check.range(&format!("{of}.ready_s_max"), self.ready_s_max, 1, 600);
        check.range(&format!("{of}.stop_s_max"), self.stop_s_max, 1, 60);
        check.range(&format!("{of}.sessions_max"), self.sessions_max, 1, 1_024);
        check.range(&format!("{of}.member_sessions_max"), self.member_sessions_max, 1, 1_024);
        check.range(&format!("{of}.failures_max"), self.failures_max, 1, 1_000);
        for (name, value, least, most) in [
            ("memory_mib_max", self.limits.memory_mib_max, 16, 1 << 20),
            ("open_files_max", self.limits.open_files_max, 8, 1 << 20),
            ("processes_max", self.limits.processes_max, 1, 1 << 20),
            ("cpu_s_max", self.limits.cpu_s_max, 1, 31_536_000),
            ("file_mib_max", self.limits.file_mib_max, 1, 1 << 20),
        ] {
            if let Some(value) = value {
                check.range(&format!("{of}.limits.{name}"), value, least, most);
            }
        }
        let sandbox = &self.sandbox;
        let says_more = *sandbox != Sandbox::default();
        check.that(sandbox.profile != Profile::None || !says_more, || {
            format!("{of}.sandbox has no profile, so nothing of it would be kept; hint: profile = \"confined\"")
        });
        check.that(sandbox.profile != Profile::ReadOnly || sandbox.read.is_empty(), || {
            format!("{of}.sandbox.read is for the profile confined: read-only reads everything")
        });
        let sane = |text: &str| !text.is_empty() && !text.contains(['=', '\0']);
        check.that(self.environment.keys().all(|name| sane(name)), || {
            format!("{of}.environment has a name with = in it, or an empty one")
        });
    }
}
