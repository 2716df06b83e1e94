//! Starts and ends one process of a server.
//!
//! What must hold: it begins as the shim run again ([`stage`]), which makes a session and a group of its own, with the environment
//! that the configuration gives and PATH, and its stderr goes nowhere, because it may repeat arguments and results; the guard knows
//! its group before the server runs, and so does the record that it begins. It ends in steps: its stdin is closed; then SIGTERM
//! to it and to the group; then SIGKILL, which whatever is left of the group gets in any case, before its number can be another's.
//! Nobody waits for ever for what the kernel does not end.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    signal::unix::{SignalKind, signal},
};

use super::{
    guard::Guard,
    stage::{Plan, READY},
};
use crate::config::ProcessConfig;

/// Greatest line of the stage, in bytes: a path and a sentence.
const WORD_BYTES_MAX: u64 = 16 << 10;
/// Time of the stage, which touches a few dozen files; a machine under load may take long.
const STAGE_WAIT: Duration = Duration::from_secs(30);

/// Time of the kernel for a process after SIGKILL. One that waits for a disk that does not answer ends when that does.
const KILL_WAIT: Duration = Duration::from_secs(10);

const SAID_NOTHING: &str = "run it: what prepares it said nothing";

/// The program that is run again for the stage and for the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// This one: `gateway-shim`.
    Program(OsString),
    /// No stage and no guard, for tests in a program that is not the shim.
    #[cfg(test)]
    Direct,
}

impl Default for Launcher {
    /// The program that runs, even when its file was replaced by a newer one.
    fn default() -> Self {
        #[cfg(test)]
        return Self::Direct;
        #[cfg(not(test))]
        Self::Program("/proc/self/exe".into())
    }
}

impl Launcher {
    pub(super) fn guard(&self) -> Option<Command> {
        match self {
            Self::Program(program) => {
                let mut command = Command::new(program);
                command.arg("guard");
                Some(command)
            }
            #[cfg(test)]
            Self::Direct => None,
        }
    }

    fn command(&self, config: &ProcessConfig) -> io::Result<Command> {
        match self {
            Self::Program(program) => {
                let (directory, limits) = (config.directory.clone(), config.limits.clone());
                let plan = Plan { directory, limits, sandbox: config.sandbox.clone() };
                let mut command = Command::new(program);
                command.arg("become").arg(serde_json::to_string(&plan)?).arg("--").args(&config.command);
                Ok(command)
            }
            #[cfg(test)]
            Self::Direct => {
                let (program, arguments) = config.command.split_first().ok_or(io::ErrorKind::NotFound)?;
                let mut command = Command::new(program);
                command.args(arguments);
                Ok(command)
            }
        }
    }

    /// Without the stage nobody makes the group.
    fn group(&self, command: &mut Command) {
        if !self.has_stage() {
            command.process_group(0);
        }
    }

    fn has_stage(&self) -> bool {
        match self {
            Self::Program(_) => true,
            #[cfg(test)]
            Self::Direct => false,
        }
    }
}

/// A process that runs, and its two pipes.
#[derive(Debug)]
pub struct Started {
    /// Its life.
    pub process: Process,
    /// What it reads.
    pub stdin: ChildStdin,
    /// What it writes.
    pub stdout: BufReader<ChildStdout>,
}

/// A process that runs. Dropped, it is killed; [`Process::end`] is how it ends in order.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    guard: Guard,
}

/// Starts a process, once `recorded` has put on record that it runs.
///
/// # Errors
/// In words: what was asked of it cannot be kept, or it cannot be run or recorded. Nothing is left of it then.
pub async fn launch(
    launcher: &Launcher,
    guard: &Guard,
    config: &ProcessConfig,
    recorded: impl Future<Output = Result<(), String>>,
) -> Result<Started, String> {
    let mut command = launcher.command(config).map_err(|error| format!("run it: {error}"))?;
    let environment = config.whole_environment()?;
    command.env_clear().envs(&environment);
    if let Some(path) = std::env::var_os("PATH").filter(|_| !environment.contains_key("PATH")) {
        command.env("PATH", path);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    launcher.group(&mut command);
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| format!("run it: {error}"))?;
    let found = (child.stdin.take(), child.stdout.take(), child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())));
    let (Some(stdin), Some(stdout), Some(pid)) = found else { return Err("run it: it ended at once".to_owned()) };
    let process = Process { child, pid, guard: guard.clone() };
    let mut started = Started { process, stdin, stdout: BufReader::new(stdout) };
    let passed = match launcher.has_stage() {
        true => started.pass_stage(recorded).await,
        false => recorded.await,
    };
    match passed {
        Ok(()) => Ok(started),
        Err(why) => {
            drop((started.stdin, started.stdout));
            started.process.end(Duration::ZERO).await;
            Err(why)
        }
    }
}

/// All but its stdin.
fn prepared(launcher: &Launcher, config: &ProcessConfig) -> Result<Command, String> {
    let mut command = launcher.command(config).map_err(|error| format!("run it: {error}"))?;
    let environment = config.whole_environment()?;
    command.env_clear().envs(&environment);
    if let Some(path) = std::env::var_os("PATH").filter(|_| !environment.contains_key("PATH")) {
        command.env("PATH", path);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(command)
}

/// Goes through the stage without going on: nothing of the server runs.
///
/// # Errors
/// In words, what a start would fail with.
pub fn rehearse(launcher: &Launcher, config: &ProcessConfig) -> Result<(), String> {
    if !launcher.has_stage() {
        return Ok(());
    }
    let out = prepared(launcher, config)?.stdin(Stdio::null()).output();
    let out = out.map_err(|error| format!("run it: {error}"))?;
    let said = String::from_utf8_lossy(&out.stdout);
    match said.trim_end() {
        READY => Ok(()),
        "" => Err(SAID_NOTHING.to_owned()),
        why => Err(why.to_owned()),
    }
}

impl Started {
    /// Hears that all holds, tells the guard, and lets it go on when that is on record.
    async fn pass_stage(&mut self, recorded: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        let mut line = String::new();
        let mut word = (&mut self.stdout).take(WORD_BYTES_MAX);
        let heard = tokio::time::timeout(STAGE_WAIT, word.read_line(&mut line)).await;
        if !matches!(heard, Ok(Ok(1..))) {
            return Err(SAID_NOTHING.to_owned());
        }
        if line.trim_end() != READY {
            return Err(line.trim_end().to_owned());
        }
        self.process.guard.add(self.process.pid).await.map_err(|error| format!("guard it: {error}"))?;
        recorded.await?;
        let go = async {
            self.stdin.write_all(b"\n").await?;
            self.stdin.flush().await
        };
        go.await.map_err(|error| format!("run it: it ended at once: {error}"))
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// What it gave as its exit code.
    pub code: Option<u32>,
    /// The signal that ended it.
    pub signal: Option<u32>,
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        Self { code: status.code().map(i32::cast_unsigned), signal: status.signal().map(i32::cast_unsigned) }
    }
}

/// Returns when a process of this number, which is a child, has ended. It is not reaped by that, so its number is its own
/// still.
pub async fn exited(pid: Pid) {
    // From here on nothing is missed.
    let Ok(mut children) = signal(SignalKind::child()) else { return std::future::pending().await };
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), look), Ok(None)) {
        children.recv().await;
    }
}

impl Process {
    /// Its number, which is its group's.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Ends it, once its stdin was closed: it has `wait` to end by itself, as long after SIGTERM, and none after SIGKILL.
    pub async fn end(self, wait: Duration) -> Exit {
        for signal in [Signal::TERM, Signal::KILL] {
            if tokio::time::timeout(wait, exited(self.pid)).await.is_ok() {
                break;
            }
            self.signal(signal);
        }
        let ended = tokio::time::timeout(KILL_WAIT, exited(self.pid)).await;
        // Before it is reaped: until then no other process and no other group has this number.
        self.signal(Signal::KILL);
        if ended.is_err() {
            tracing::error!(pid = %self.pid, "a process has not ended 10 s after SIGKILL; the kernel ends it when it can");
            // Whenever that is; until then the guard knows of it.
            tokio::spawn(self.reap());
            return Exit::default();
        }
        self.reap().await
    }

    /// To it and to all of its group: some of these may be gone.
    fn signal(&self, signal: Signal) {
        kill_process_group(self.pid, signal).ok();
        kill_process(self.pid, signal).ok();
    }

    async fn reap(mut self) -> Exit {
        exited(self.pid).await;
        // While the number is its own still: the guard signals nobody else.
        self.guard.remove(self.pid).await;
        self.child.wait().await.map(Exit::from).unwrap_or_default()
    }
}
