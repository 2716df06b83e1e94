//! A connection to a running shim, over its control socket.

use std::{path::PathBuf, time::Duration};

use custody::wire::{self, control_client::ControlClient};
use tonic::{
    Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{EXIT_FAILED, Failed};
use crate::{config::Config, control, cookie::Shown};

/// How long a connection may take: on one machine milliseconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long an answer may take: a change is answered when its records are on the disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A running shim.
pub(super) struct Running {
    remote: ControlClient<InterceptedService<Channel, Shown>>,
    socket: PathBuf,
}

impl Running {
    /// Connects to the shim that runs with this configuration.
    ///
    /// # Errors
    /// [`Failed`], also when none runs.
    pub(super) async fn connect(config: &Config) -> Result<Self, Failed> {
        let socket = config.control_socket();
        let shown = socket.display();
        let nobody = |why: &str| {
            let hint = "hint: does a shim run with this configuration, and under this account?";
            Failed::new(EXIT_FAILED, format!("find a running shim at {shown}: {why}; {hint}"))
        };
        match std::fs::symlink_metadata(&socket).map_err(|why| why.kind()) {
            Ok(_) => {}
            Err(std::io::ErrorKind::NotFound) => return Err(nobody("there is no socket")),
            Err(kind) => return Err(nobody(&kind.to_string())),
        }
        let endpoint = Endpoint::from_shared(format!("unix:{shown}")).map_err(|_| nobody("its path is no UTF-8"))?;
        let channel = tokio::time::timeout(CONNECT_LIMIT, endpoint.connect()).await;
        match channel {
            Ok(Ok(channel)) => {
                // Behind the connection: the shim that answers has written it by now.
                let cookie = Shown::read(&config.control_cookie()).map_err(|why| Failed::new(EXIT_FAILED, why))?;
                let remote = ControlClient::with_interceptor(channel, cookie)
                    .max_encoding_message_size(control::REQUEST_BYTES_MAX);
                Ok(Self { remote: remote.max_decoding_message_size(control::ANSWER_BYTES_MAX), socket })
            }
            Ok(Err(_)) => Err(nobody("nobody answers there")),
            Err(_) => Err(nobody("it does not answer")),
        }
    }

    async fn answered<T>(&self, answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failed> {
        let shown = self.socket.display();
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if std::error::Error::source(&status).is_some() => Err(Failed::new(
                EXIT_FAILED,
                format!(
                    "hear from the shim at {shown}: the connection ended; hint: did it stop? it may have done what was \
                     asked, so look before you ask again"
                ),
            )),
            // In its own words, which end with the next move.
            Ok(Err(status)) => Err(Failed::new(EXIT_FAILED, status.message())),
            Err(_) => Err(Failed::new(
                EXIT_FAILED,
                format!("hear from the shim at {shown} within 60 s; hint: is its disk or its process stopped?"),
            )),
        }
    }

    /// What it shows of itself.
    pub(super) async fn status(&self) -> Result<wire::ShimStatusResponse, Failed> {
        self.answered(self.remote.clone().status(wire::ShimStatusRequest {})).await
    }

    /// What applying a policy would change.
    pub(super) async fn plan_access(&self, text: Option<String>) -> Result<wire::AccessPlan, Failed> {
        self.answered(self.remote.clone().plan_access(wire::PlanAccessRequest { text })).await
    }

    /// Applies a policy.
    pub(super) async fn apply_access(&self, asked: wire::ApplyAccessRequest) -> Result<wire::AccessChanged, Failed> {
        self.answered(self.remote.clone().apply_access(asked)).await
    }

    /// What is in force.
    pub(super) async fn show_access(&self) -> Result<wire::AccessShown, Failed> {
        self.answered(self.remote.clone().show_access(wire::ShowAccessRequest {})).await
    }

    /// Gives up what waits.
    pub(super) async fn abandon_access(
        &self,
        asked: wire::AbandonAccessRequest,
    ) -> Result<wire::AccessChanged, Failed> {
        self.answered(self.remote.clone().abandon_access(asked)).await
    }

    /// Edits the policy in force.
    pub(super) async fn change_access(&self, asked: wire::ChangeAccessRequest) -> Result<wire::AccessChanged, Failed> {
        self.answered(self.remote.clone().change_access(asked)).await
    }

    /// All members.
    pub(super) async fn members(&self) -> Result<wire::ShimMembersResponse, Failed> {
        self.answered(self.remote.clone().members(wire::ShimMembersRequest {})).await
    }

    /// Tools in quarantine.
    pub(super) async fn quarantined(&self) -> Result<Vec<wire::QuarantinedTool>, Failed> {
        Ok(self.answered(self.remote.clone().list_quarantined(wire::ListQuarantinedRequest {})).await?.tools)
    }

    /// Lets a tool out of quarantine.
    pub(super) async fn accept_tool(&self, asked: wire::AcceptToolRequest) -> Result<wire::QuarantinedTool, Failed> {
        self.answered(self.remote.clone().accept_tool(asked)).await
    }

    /// The processes of its servers.
    pub(super) async fn processes(&self) -> Result<Vec<wire::ServerProcesses>, Failed> {
        Ok(self.answered(self.remote.clone().list_processes(wire::ListProcessesRequest {})).await?.servers)
    }

    /// Starts, stops or restarts a server.
    pub(super) async fn change_processes(
        &self,
        server: String,
        verb: wire::ProcessVerb,
    ) -> Result<wire::ServerProcesses, Failed> {
        let asked = wire::ChangeProcessesRequest { server, verb: verb as i32 };
        self.answered(self.remote.clone().change_processes(asked)).await
    }
}
