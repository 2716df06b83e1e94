//! The processes of servers, as the control socket shows and changes them.

use custody::wire::{self, ProcessVerb};
use tonic::Status as Answer;

use crate::server::{
    Servers, Status,
    pool::{Doing, Listed},
};

/// One server.
pub(super) fn shown(status: &Status) -> wire::ServerProcesses {
    let (state, why) = match status.doing {
        Doing::Running => ("running", String::new()),
        Doing::Idle => ("idle", String::new()),
        Doing::Stopped => ("stopped", format!("somebody stopped it; hint: gateway-shim server start {}", status.name)),
        Doing::BackingOff(wait) => {
            let (failures, wait_s) = (status.failures, wait.as_secs() + 1);
            (
                "held back",
                format!(
                    "it failed to start {failures} times in a row, and is tried again in {wait_s} s; hint: the shim's log says why"
                ),
            )
        }
        Doing::GivenUp => {
            let hint =
                format!("hint: the shim's log says why; mend it, then gateway-shim server start {}", status.name);
            ("failed", format!("it failed to start {} times in a row, and is not tried again; {hint}", status.failures))
        }
    };
    let last = status.last.map(|last| wire::ServerEnd {
        at: last.at_us,
        state: last.state as i32,
        exit_code: last.exit.code,
        signal: last.exit.signal,
    });
    wire::ServerProcesses {
        name: status.name.clone(),
        state: state.to_owned(),
        why,
        processes: status.processes.iter().map(process).collect(),
        starts: status.starts,
        crashes: status.crashes,
        last,
    }
}

fn process(listed: &Listed) -> wire::ServerProcess {
    wire::ServerProcess {
        pid: listed.pid.unsigned_abs(),
        since: listed.since_us,
        member: listed.owner.map(Into::into).unwrap_or_default(),
        ready: listed.spare,
    }
}

/// Does what is asked.
pub(super) async fn change(
    servers: &Servers,
    asked: wire::ChangeProcessesRequest,
) -> Result<wire::ServerProcesses, Answer> {
    let done = match asked.verb() {
        ProcessVerb::Start => servers.start(&asked.server),
        ProcessVerb::Stop => servers.stop(&asked.server).await,
        ProcessVerb::Restart => servers.restart(&asked.server).await,
        ProcessVerb::Unspecified => {
            return Err(Answer::invalid_argument("the request names no verb; hint: start, stop or restart"));
        }
    };
    done.map(|status| shown(&status)).map_err(|unknown| Answer::not_found(format!("find it: {unknown}")))
}
