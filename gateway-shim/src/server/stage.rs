//! What a server's process does before it becomes the server: the shim, run again, in a process of its own.
//!
//! What must hold: nothing of the server has run before all of its limits and its sandbox hold; it leads a session of its own, so
//! that it can join no other group than its own, which is what the shim and the guard end; it runs only once the shim
//! has said so, which it does after the guard knows of the process; no descriptor but its three pipes goes along. The plan
//! is an argument and holds no secret. One line on stdout says how it went, and the next byte there is the server's.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use serde::{Deserialize, Serialize};

use super::sandbox;
use crate::config::{Limits, Sandbox};

/// The line that says that all holds.
pub const READY: &str = "ready";
/// Exit code when what was asked cannot be kept; the line on stdout says why.
pub const EXIT_NOT_KEPT: u8 = 125;
/// Exit code when the kernel does not run the program, as shells have it.
pub const EXIT_NOT_RUN: u8 = 126;

/// What the process is to do to itself.
#[derive(Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Working directory.
    pub directory: PathBuf,
    /// What it may use.
    pub limits: Limits,
    /// What it may reach.
    pub sandbox: Sandbox,
}

/// Becomes the server, or gives the exit code.
pub fn become_server(plan: &str, command: &[String]) -> u8 {
    let prepared = prepare(plan, command);
    let line = match &prepared {
        Ok(_) => READY,
        Err(why) => why.as_str(),
    };
    let said = writeln!(io::stdout(), "{}", line.replace('\n', " ")).and_then(|()| io::stdout().flush());
    let (Ok(mut command), Ok(())) = (prepared, said) else { return EXIT_NOT_KEPT };
    if go_ahead().is_err() {
        // The shim is gone.
        return EXIT_NOT_KEPT;
    }
    // Comes back only if it failed: nobody listens any more but for the exit code.
    drop(command.exec());
    EXIT_NOT_RUN
}

/// Waits for one byte. It is read without a buffer: what comes behind it is the server's.
fn go_ahead() -> io::Result<()> {
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    stdin.read_exact(&mut [0])
}

fn prepare(plan: &str, command: &[String]) -> Result<Command, String> {
    close_inherited().map_err(|error| format!("close what it inherited: {error}"))?;
    setsid().map_err(|error| format!("begin a session of its own: {error}"))?;
    let plan: Plan = serde_json::from_str(plan).map_err(|error| format!("read its plan: {error}"))?;
    let (name, arguments) = command.split_first().ok_or("run it: there is no command")?;
    let directory = plan.directory.display();
    std::env::set_current_dir(&plan.directory)
        .map_err(|error| format!("enter its directory {directory}: {error}; hint: directory names another"))?;
    let program = find(name).ok_or_else(|| {
        format!(
            "run it: there is no program {name} on its PATH; hint: command names its path, or environment another PATH"
        )
    })?;
    if let Some(rules) = sandbox::rules(&plan.sandbox, &program) {
        sandbox::restrict(&rules, plan.sandbox.best_effort)?;
    }
    // Last: the sandbox opens more files than a server may want.
    limit(&plan.limits).map_err(|error| format!("limit it: {error}; hint: limits names the bounds"))?;
    let mut command = Command::new(program);
    command.arg0(name).args(arguments);
    Ok(command)
}

/// The file that a name means, as `execvp` finds it; links are followed, so that rules are about the file itself.
fn find(name: &str) -> Option<PathBuf> {
    let runs = |path: &Path| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| runs(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| runs(path))
}

/// Closes every descriptor but the three pipes: whatever started the shim may have left it some.
pub(super) fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in open {
        // The list's own is among them, and closed by now.
        nix::unistd::close(fd).ok();
    }
    Ok(())
}

fn limit(limits: &Limits) -> io::Result<()> {
    let mib = |mib: Option<u64>| mib.map(|mib| mib << 20);
    for (resource, most) in [
        // A core file would hold arguments and results.
        (Resource::Core, Some(0)),
        (Resource::As, mib(limits.memory_mib_max)),
        (Resource::Nofile, limits.open_files_max),
        (Resource::Nproc, limits.processes_max),
        (Resource::Cpu, limits.cpu_s_max),
        (Resource::Fsize, mib(limits.file_mib_max)),
    ] {
        let Some(most) = most else { continue };
        // A limit that is lower already holds all the more.
        let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}
