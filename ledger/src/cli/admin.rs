//! A connection to a running ledger's Admin service.

use std::{fs, time::Duration};

use bytes::Bytes;
use custody::{
    id::{GatewayId, KeyId, WorkspaceId},
    wire::{self, admin_client::AdminClient},
};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::Fault;
use crate::{
    config::Config,
    exit::ExitReason,
    keys::{self, Passphrase},
    log_view::report,
};

/// Longest answer: the greatest chain that fits, at a few hundred bytes a statement.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// How long a connection may take, TLS included: some round trips over the worst line.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may take that waits for no archive: the writer gives it between two commits. What waits for the archive
/// has `admin.timeout_seconds`.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The next move when the administrator's files are of no use.
const CERTIFICATES: &str = "hint: copy tls/authority.pem, tls/admin.pem and tls/admin.key from the ledger's folder";

/// What stands behind an error of the transport, whose own words say nothing.
pub(super) fn causes(why: &tonic::transport::Error) -> String {
    std::error::Error::source(why).map_or_else(String::new, |why| format!(": {}", report(why)))
}

/// What became of a connection. That the other side is gone is said by each layer in its own way, and in no way that helps.
pub(super) fn broken(why: &(dyn std::error::Error + 'static)) -> String {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let mut last = why;
    while let Some(next) = last.source() {
        last = next;
    }
    let gone = last.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    match gone {
        Some(BrokenPipe | ConnectionReset | UnexpectedEof) => "ended".to_owned(),
        _ => format!("broke ({})", report(why)),
    }
}

/// A ledger that is there and says nothing.
fn silent(what: &str, limit: Duration) -> Fault {
    Fault::failure(format!(
        "the ledger did not answer {what} within {} s\nhint: it is there and does not go on: is its process stopped (ps shows T), its \
         disk hanging, its machine out of memory? look at its log; admin.timeout_seconds in the configuration bounds the wait",
        limit.as_secs()
    ))
}

/// A running ledger, and the configuration by which it was found.
pub(super) struct Ledger {
    /// The configuration.
    pub(super) config: Config,
    remote: AdminClient<Channel>,
}

/// A refusal of the ledger, in its own words; or that the connection broke, and with it the answer.
fn refused(status: &Status) -> Fault {
    let text = status.message();
    let waited = matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled);
    if let Some(why) = std::error::Error::source(status).filter(|_| !waited) {
        return Fault::failure(format!(
            "the connection to the ledger {} before it answered\nhint: does it still run? its log says more; it may have done what was \
             asked, so look with `ledger status` before you ask again",
            broken(why)
        ));
    }
    // Those who refuse with the next move need no other.
    let hint = match status.code() {
        _ if text.contains("(hint:") => "",
        tonic::Code::Unavailable => "\nhint: is the ledger running, and is admin.url in the configuration right?",
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
            "\nhint: admin.timeout_seconds in the configuration bounds the wait"
        }
        _ => "",
    };
    Fault::failure(format!("the ledger refused: {text}{hint}"))
}

/// The answer, or that there is none within the limit.
async fn answered<T>(
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, answer).await {
        Err(_) => Err(silent("a question", limit)),
        Ok(answer) => answer.map(tonic::Response::into_inner).map_err(|why| refused(&why)),
    }
}

impl Ledger {
    /// Connects with the administrator's certificate.
    pub(super) async fn connect(config: Config) -> Result<Self, Fault> {
        let bad = |why: tonic::transport::Error| Fault::of(ExitReason::Configuration, &why);
        let timeout = Duration::from_secs(config.admin.timeout_seconds);
        let endpoint = Endpoint::from_shared(config.admin.url.clone()).map_err(bad)?.timeout(timeout);
        let endpoint = match config.admin.url.starts_with("https://") {
            true => endpoint.tls_config(tls(&config)?).map_err(|why| {
                let folder = config.paths.tls.display();
                let text = format!("failed to use the certificates in {folder}{}\n{CERTIFICATES}", causes(&why));
                Fault::new(ExitReason::Configuration, text)
            })?,
            false => endpoint,
        };
        let limit = CONNECT_LIMIT.min(timeout);
        let connected = tokio::time::timeout(limit, endpoint.connect()).await;
        let connected = connected.map_err(|_| silent(&format!("to {}", config.admin.url), limit))?;
        let channel = connected.map_err(|why| {
            let text = format!("failed to reach the ledger at {}{}", config.admin.url, causes(&why));
            Fault::failure(format!("{text}\nhint: is it running, and is admin.url in the configuration right?"))
        })?;
        let remote = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { config, remote })
    }

    /// How long something takes at most that waits for nothing but the writer.
    fn prompt(&self) -> Duration {
        ANSWER_LIMIT.min(Duration::from_secs(self.config.admin.timeout_seconds))
    }

    /// How it is.
    pub(super) async fn status(&mut self) -> Result<wire::StatusResponse, Fault> {
        let limit = self.prompt();
        let status = answered(limit, self.remote.status(wire::StatusRequest {})).await?;
        if status.origin != self.config.origin {
            return Err(Fault::failure(format!(
                "the ledger at {} keeps the log {}, and the configuration says {}",
                self.config.admin.url, status.origin, self.config.origin
            )));
        }
        Ok(status)
    }

    /// A workspace by name or by id in hex.
    pub(super) async fn workspace(&mut self, name: &str) -> Result<WorkspaceId, Fault> {
        if let Some(id) = WorkspaceId::from_hex(name) {
            return Ok(id);
        }
        let status = self.status().await?;
        let known = status.workspaces.iter().find(|known| known.name == name);
        known
            .and_then(|known| WorkspaceId::try_from(known.workspace.as_ref()).ok())
            .ok_or_else(|| Fault::failure(format!("there is no workspace {name}\nhint: ledger workspace list")))
    }

    /// The next statement of a chain.
    pub(super) async fn prepare(
        &mut self,
        workspace: Option<WorkspaceId>,
        registrar: Option<KeyId>,
        said: (&str, &str),
        action: wire::statement::Action,
    ) -> Result<Bytes, Fault> {
        let request = wire::PrepareStatementRequest {
            workspace: workspace.map_or_else(Bytes::new, Into::into),
            registrar: registrar.map_or_else(Bytes::new, Into::into),
            reason: said.0.to_owned(),
            ticket: said.1.to_owned(),
            action: Some(wire::Statement { action: Some(action), ..Default::default() }),
        };
        let limit = self.prompt();
        Ok(answered(limit, self.remote.prepare_statement(request)).await?.statement)
    }

    /// Hands in a signed statement. The other part of an error is whether it may be in force all the same.
    pub(super) async fn submit(&mut self, statement: Vec<u8>) -> Result<wire::SubmitStatementResponse, (Fault, bool)> {
        use tonic::Code::{FailedPrecondition, InvalidArgument, PermissionDenied};
        let request = wire::SubmitStatementRequest { statement: statement.into() };
        let answer = self.remote.submit_statement(request).await;
        answer.map(tonic::Response::into_inner).map_err(|why| {
            let refusal = matches!(why.code(), FailedPrecondition | InvalidArgument | PermissionDenied);
            (refused(&why), !refusal)
        })
    }

    /// All statements of a chain.
    pub(super) async fn statements(&mut self, workspace: Option<WorkspaceId>) -> Result<Vec<Bytes>, Fault> {
        let request = wire::ListStatementsRequest { workspace: workspace.map_or_else(Bytes::new, Into::into) };
        let limit = self.prompt();
        Ok(answered(limit, self.remote.list_statements(request)).await?.statements)
    }

    /// A certificate for an enrolled gateway, or for an administrator: leaf first, then the authority.
    pub(super) async fn certificate(
        &mut self,
        request: &str,
        holder: Option<(WorkspaceId, GatewayId)>,
    ) -> Result<String, Fault> {
        let request = wire::IssueCertificateRequest {
            request: request.to_owned(),
            workspace: holder.map_or_else(Bytes::new, |(workspace, _)| workspace.into()),
            gateway: holder.map_or_else(Bytes::new, |(_, gateway)| gateway.into()),
        };
        let limit = self.prompt();
        Ok(answered(limit, self.remote.issue_certificate(request)).await?.certificate)
    }

    /// Takes an alarm back; `false` if none of that name stood.
    pub(super) async fn acknowledge(&mut self, alarm: &str) -> Result<bool, Fault> {
        let request = wire::AcknowledgeRequest { alarm: alarm.to_owned() };
        let limit = self.prompt();
        Ok(answered(limit, self.remote.acknowledge(request)).await?.stood)
    }

    /// Some of the members.
    pub(super) async fn list_members(
        &mut self,
        request: wire::ListMembersRequest,
    ) -> Result<wire::ListMembersResponse, Fault> {
        let limit = self.prompt();
        answered(limit, self.remote.list_members(request)).await
    }

    /// Who has an id, an address or a name.
    pub(super) async fn members_named(&mut self, request: wire::ShowMemberRequest) -> Result<Vec<wire::Member>, Fault> {
        let limit = self.prompt();
        Ok(answered(limit, self.remote.show_member(request)).await?.members)
    }

    /// The id of whoever has an address.
    pub(super) async fn add_member(&mut self, request: wire::AddMemberRequest) -> Result<Bytes, Fault> {
        let limit = self.prompt();
        Ok(answered(limit, self.remote.add_member(request)).await?.member)
    }

    /// Erases a member, and waits for the archive.
    pub(super) async fn erase_member(
        &mut self,
        request: wire::EraseMemberRequest,
    ) -> Result<wire::EraseMemberResponse, Fault> {
        Ok(self.remote.erase_member(request).await.map_err(|why| refused(&why))?.into_inner())
    }

    /// A disclosure file of these members.
    pub(super) async fn disclose_members(&mut self, request: wire::DiscloseMembersRequest) -> Result<Bytes, Fault> {
        let limit = self.prompt();
        Ok(answered(limit, self.remote.disclose_members(request)).await?.disclosure)
    }

    /// A new API token.
    pub(super) async fn add_api_token(
        &mut self,
        request: wire::AddApiTokenRequest,
    ) -> Result<wire::AddApiTokenResponse, Fault> {
        let limit = self.prompt();
        answered(limit, self.remote.add_api_token(request)).await
    }

    /// All API tokens.
    pub(super) async fn list_api_tokens(&mut self) -> Result<Vec<wire::ApiToken>, Fault> {
        let limit = self.prompt();
        Ok(answered(limit, self.remote.list_api_tokens(wire::ListApiTokensRequest {})).await?.tokens)
    }

    /// Ends an API token; `true` if it had ended before.
    pub(super) async fn revoke_api_token(&mut self, request: wire::RevokeApiTokenRequest) -> Result<bool, Fault> {
        let limit = self.prompt();
        Ok(answered(limit, self.remote.revoke_api_token(request)).await?.again)
    }

    /// The rules in force, and what became of their alarms.
    pub(super) async fn rules(&mut self) -> Result<wire::ListRulesResponse, Fault> {
        let limit = self.prompt();
        answered(limit, self.remote.list_rules(wire::ListRulesRequest {})).await
    }

    /// Switches a rule.
    pub(super) async fn switch_rule(&mut self, request: wire::SwitchRuleRequest) -> Result<(), Fault> {
        let limit = self.prompt();
        answered(limit, self.remote.switch_rule(request)).await.map(|_| ())
    }

    /// Says what an alarm was.
    pub(super) async fn dispose(&mut self, request: wire::DisposeRequest) -> Result<(), Fault> {
        let limit = self.prompt();
        answered(limit, self.remote.dispose(request)).await.map(|_| ())
    }

    /// Walks the records once more, and hears of it.
    pub(super) async fn replay(
        &mut self,
        request: wire::ReplayRequest,
        mut hear: impl FnMut(&wire::ReplayResponse),
    ) -> Result<(), Fault> {
        let limit = self.prompt();
        let mut stream = answered(limit, self.remote.replay(request)).await?;
        while let Some(told) = stream.message().await.map_err(|why| refused(&why))? {
            hear(&told);
        }
        Ok(())
    }

    /// Has the index built again, or looked at, and hears what becomes of each folder.
    pub(super) async fn reindex(
        &mut self,
        request: wire::ReindexRequest,
        mut hear: impl FnMut(wire::ReindexResponse),
    ) -> Result<(), Fault> {
        let limit = self.prompt();
        let mut stream = answered(limit, self.remote.reindex(request)).await?;
        while let Some(told) = stream.message().await.map_err(|why| refused(&why))? {
            hear(told);
        }
        Ok(())
    }

    /// Cuts one workspace's segment or all; the size of the log when they are archived.
    pub(super) async fn cut(&mut self, workspace: Option<WorkspaceId>) -> Result<u64, Fault> {
        let request = wire::CutRequest { workspace: workspace.map_or_else(Bytes::new, Into::into) };
        Ok(self.remote.cut(request).await.map_err(|why| refused(&why))?.into_inner().log_size)
    }
}

fn tls(config: &Config) -> Result<ClientTlsConfig, Fault> {
    let folder = &config.paths.tls;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path)
            .map_err(|why| Fault::failure(format!("failed to read {}: {why}\n{CERTIFICATES}", path.display())))
    };
    let passphrase = Passphrase::from_places(&config.keys.passphrase_file, &config.keys.passphrase_variable)?;
    let key = keys::load_secret(&folder.join("admin.key"), passphrase.as_ref())?;
    Ok(ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("authority.pem")?))
        .identity(Identity::from_pem(read("admin.pem")?, key.as_slice())))
}
