//! What the configuration says of the processes of a server over stdio: their life, their limits, their sandbox.
//!
//! What each key excludes and what it does not is in SHIPPING.md; the bounds are checked here.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{Check, Start};

/// All of a server's configuration that concerns its processes; the keys are those of `[servers.NAME]`.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its whole environment besides PATH.
    pub environment: BTreeMap<String, String>,
    /// Its working directory.
    pub directory: PathBuf,
    /// When its processes are started.
    pub start: Start,
    /// Seconds until one that nobody asks for anything is ended.
    pub idle_s_max: u64,
    /// Seconds for the first answer.
    pub ready_s_max: u64,
    /// Seconds to end once stdin is closed, and again after SIGTERM.
    pub stop_s_max: u64,
    /// Processes at a time.
    pub sessions_max: usize,
    /// Of these for one member.
    pub member_sessions_max: usize,
    /// Starts in a row that may fail.
    pub failures_max: u32,
    /// What a process may use.
    pub limits: Limits,
    /// What a process may reach.
    pub sandbox: Sandbox,
}

/// `[servers.NAME.limits]`: bounds of each process; what is absent has no bound but the shim's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// MiB of its memory (address space), 16 to 1,048,576. Runtimes that reserve much (Node, Java) need tens of GiB.
    pub memory_mib_max: Option<u64>,
    /// Seconds of processor time, 1 to 31,536,000.
    pub cpu_s_max: Option<u64>,
    /// Files and connections that it has open, 16 to 1,048,576.
    pub open_files_max: Option<u64>,
    /// Processes and threads of this system's user, 1 to 1,048,576: it may begin no more beyond that.
    pub processes_max: Option<u64>,
    /// MiB of the greatest file that it may write, 1 to 1,048,576.
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
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// How much of the machine it sees.
    pub profile: Profile,
    /// Files and folders that it may read and run, with all that is below them.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Files and folders that it may write too.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// TCP ports that it may connect to, at any address; absent: none if confined, else all.
    pub connect: Option<Vec<u16>>,
    /// TCP ports that it may listen on; absent: none if confined, else all.
    pub listen: Option<Vec<u16>>,
    /// Starts it even where the kernel cannot keep all of this. Without it, there is no start.
    #[serde(default)]
    pub best_effort: bool,
}

impl Limits {
    pub(super) fn is_some(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn check(&self, name: &str, check: &mut Check) {
        for (key, value, least, most) in [
            ("memory_mib_max", self.memory_mib_max, 16, 1 << 20),
            ("cpu_s_max", self.cpu_s_max, 1, 31_536_000),
            ("open_files_max", self.open_files_max, 16, 1 << 20),
            ("processes_max", self.processes_max, 1, 1 << 20),
            ("file_mib_max", self.file_mib_max, 1, 1 << 20),
        ] {
            if let Some(value) = value {
                check.range(&format!("servers.{name}.limits.{key}"), value, least, most);
            }
        }
    }
}

impl Sandbox {
    pub(super) fn check(&self, name: &str, check: &mut Check) {
        let none = Self { profile: self.profile, ..Self::default() };
        check.that(self.profile != Profile::None || *self == none, || {
            format!(
                "servers.{name}.sandbox: the profile none keeps nothing of what is named; hint: profile = \"confined\""
            )
        });
        check.that(self.profile != Profile::ReadOnly || self.read.is_empty(), || {
            format!("servers.{name}.sandbox.read is for the profile confined: read-only reads everything")
        });
    }
}
