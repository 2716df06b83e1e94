//! The guard: a small process that outlives the shim by a moment and ends the process groups that it left behind.
//!
//! What must hold: a server's group is known here before the server runs, and until its last process has ended; when the
//! pipe from the shim breaks, however the shim ended, every group that is still known is killed. A guard that dies is
//! replaced at the next word to it, and told everything again. It holds nothing but the numbers of groups.
//!
//! A signal at the parent's death (`PR_SET_PDEATHSIG`) would not do: it is sent when the *thread* that started the process
//! ends, and to the first process of a group alone.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _},
    os::unix::process::CommandExt as _,
    process::Stdio,
    sync::Arc,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};

use super::{launch::Launcher, stage};

/// The life of the guard: reads `+GROUP` and `-GROUP` until the shim is gone. Gives the exit code.
///
/// # Errors
/// When it cannot keep signals away from itself.
pub fn guard() -> io::Result<u8> {
    stage::close_inherited()?;
    // A service's manager signals all processes at once, and a terminal its group: the shim is to end first.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut kept = Vec::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        kept.push(signal(kind)?);
    }
    let mut groups = BTreeSet::new();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        match line.split_at_checked(1) {
            Some(("+", group)) => drop(group.parse().map(|group: i32| groups.insert(group))),
            Some(("-", group)) => drop(group.parse().map(|group: i32| groups.remove(&group))),
            _ => {}
        }
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // It may be gone by now.
        kill_process_group(group, Signal::KILL).ok();
        kill_process(group, Signal::KILL).ok();
    }
    drop(kept);
    drop(entered);
    Ok(0)
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
}

#[derive(Debug, Default)]
struct Told {
    running: Option<Running>,
    groups: BTreeSet<i32>,
}

/// The shim's end of the guard, which is started with the first group.
#[derive(Clone, Debug)]
pub struct Guard {
    launcher: Launcher,
    told: Arc<Mutex<Told>>,
}

impl Guard {
    /// Starts nothing yet.
    pub fn new(launcher: Launcher) -> Self {
        Self { launcher, told: Arc::default() }
    }

    /// From when this returns, the group ends with the shim.
    ///
    /// # Errors
    /// When no guard can be started.
    pub async fn add(&self, group: Pid) -> io::Result<()> {
        let group = group.as_raw_nonzero().get();
        let mut told = self.told.lock().await;
        told.groups.insert(group);
        let done = self.tell(&mut told, &format!("+{group}\n")).await;
        if done.is_err() {
            told.groups.remove(&group);
        }
        done
    }

    /// The group has ended, and its number may be another's from now on.
    pub async fn remove(&self, group: Pid) {
        let group = group.as_raw_nonzero().get();
        let mut told = self.told.lock().await;
        told.groups.remove(&group);
        if let Err(error) = self.tell(&mut told, &format!("-{group}\n")).await {
            tracing::error!(%error, "the guard of the servers' processes cannot be told that one has ended");
        }
    }

    async fn tell(&self, told: &mut Told, line: &str) -> io::Result<()> {
        if let Some(running) = &mut told.running {
            // One that has died may have left room in its pipe.
            let lives = matches!(running.child.try_wait(), Ok(None));
            if lives && running.stdin.write_all(line.as_bytes()).await.is_ok() {
                return Ok(());
            }
            tracing::warn!("the guard of the servers' processes is gone; another is started");
        }
        told.running = None;
        let Some(mut command) = self.launcher.guard() else { return Ok(()) };
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = Command::from(command).spawn()?;
        let mut stdin = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let all: String = told.groups.iter().map(|group| format!("+{group}\n")).collect();
        stdin.write_all(all.as_bytes()).await?;
        told.running = Some(Running { child, stdin });
        Ok(())
    }
}
