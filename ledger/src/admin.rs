//! The Admin service: decode, ask the writer or the directory, encode. Whatever it changes is a statement that somebody else
//! signed, or is about people ([`members`]) and on record.
//!
//! What must hold: of whoever is no administrator nothing but the head of a request is read; a call has a greatest length and a
//! greatest time. So [`AdminService::server`] is the only way in.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::{Arc, PoisonError, RwLock, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    id::{GatewayId, ObjectHash, WorkspaceId},
    log::ENTRY_BYTES_MAX,
    statement::Chain,
    strict::{self, table},
    wire::{
        self, Role,
        admin_server::{Admin, AdminServer},
    },
};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, oneshot, watch as marks};
use tonic::{
    Request as Call, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    service::{Interceptor, interceptor::InterceptedService},
};

use crate::{
    alarm::Alarms,
    clock,
    commit::{Chains, Request, State, Writer},
    directory::Ask,
    index::{Index, check::Checks},
    log_view::{FenceState, LogView},
    pki::{self, Identity},
    store::Store,
    tail::Tail,
    watch::Progress,
    workspace::Workspace,
};

mod index;
mod members;
mod tokens;
mod watch;

/// Seconds that a command waits for the archive.
const ARCHIVE_SECONDS_MAX: u64 = 60;
/// How long a call may take, from its first byte to its answer: the wait for the archive, and as much again for the worst line and
/// for a writer that is busy.
const CALL_LIMIT: Duration = Duration::from_secs(2 * ARCHIVE_SECONDS_MAX);
/// Longest request in bytes: a statement that fits into an entry of the log, and its frame.
const REQUEST_BYTES_MAX: usize = ENTRY_BYTES_MAX + 4_096;

/// Signs certificate requests and lists the certificates that the ledger holds.
pub trait Authority: Send + Sync {
    /// A certificate for this identity, from a PEM request: leaf first, then the authority.
    ///
    /// # Errors
    /// In words.
    fn issue(&self, request: &str, identity: &Identity) -> Result<String, String>;

    /// Name and end (microseconds) of the ledger's own certificates.
    fn certificates(&self) -> Vec<(String, u64)>;
}

/// The service.
#[derive(Clone)]
pub struct AdminService {
    /// Name of the log.
    pub origin: String,
    /// The writer's queue.
    pub writer: mpsc::Sender<Request>,
    /// What was committed.
    pub tail: Arc<Tail>,
    /// The index, and where checks of it are asked for.
    pub index: (Arc<Index>, Checks),
    /// How far the watch is.
    pub watch: Progress,
    /// Key chains: they know the workspaces.
    pub chains: Chains,
    /// The rules that are in force, as YAML.
    pub rules: Arc<str>,
    /// One replay at a time: it takes a processor.
    pub replays: Arc<Semaphore>,
    /// The directory's.
    pub directory: mpsc::Sender<Ask>,
    /// Where API tokens stand; it is not kept open.
    pub store: Weak<Store>,
    /// Number of queue rows that are published.
    pub mark: marks::Receiver<u64>,
    /// The log.
    pub view: Arc<RwLock<LogView>>,
    /// What the fence told.
    pub fence: Arc<FenceState>,
    /// The alarms.
    pub alarms: Alarms,
    /// Makes certificates.
    pub authority: Arc<dyn Authority>,
    /// Without TLS whoever reaches the port is an administrator.
    pub plaintext: bool,
    /// What the archive is, for the report.
    pub archive: String,
}

type Answer<T> = Result<Response<T>, Status>;

impl AdminService {
    /// As gRPC serves it.
    pub fn server(self) -> InterceptedService<Timed<AdminServer<Self>>, impl Interceptor + Clone> {
        let (door, limit) = (self.clone(), CALL_LIMIT);
        let inner = AdminServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX);
        InterceptedService::new(Timed { inner, limit }, move |call: Call<()>| door.admit(&call).map(|()| call))
    }

    fn admit<T>(&self, call: &Call<T>) -> Result<(), Status> {
        if self.plaintext {
            return Ok(());
        }
        let certificate = call.peer_certs().and_then(|chain| chain.first().map(|leaf| leaf.to_vec()));
        match certificate.and_then(|der| pki::peer_identity(&der)) {
            Some(Identity::Admin { origin, .. }) if origin == self.origin => Ok(()),
            _ => {
                Err(Status::permission_denied("not an administrator's certificate (hint: use the one that init made)"))
            }
        }
    }

    /// Looks at the writer's state, in its own thread.
    async fn look<T: Send + 'static>(&self, look: impl FnOnce(&Writer) -> T + Send + 'static) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Inspect(Box::new(move |writer| drop(reply.send(look(writer)))));
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        self.writer.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    /// Who walks what was committed, and how far each is behind.
    fn followers(&self, mark: u64, unpublished: u64) -> Vec<wire::Follower> {
        let follower = |name: &str, mark, lag| wire::Follower { name: name.to_owned(), mark, lag };
        let (indexed, missing) = self.index.0.progress();
        // Of one that has ended nobody knows how far it was.
        let watched = self.watch.next().unwrap_or(0);
        vec![
            follower("seal", mark, unpublished),
            follower("index", indexed, missing),
            follower("watch", watched, self.tail.committed().saturating_sub(watched)),
        ]
    }

    /// Waits until the queue row before `number` is published; `false` if that takes too long.
    async fn archived(&self, number: u64) -> bool {
        let mut mark = self.mark.clone();
        let reached = mark.wait_for(|mark| *mark >= number);
        tokio::time::timeout(Duration::from_secs(ARCHIVE_SECONDS_MAX), reached).await.is_ok_and(|r| r.is_ok())
    }
}

/// A service whose calls end within a limit, also those whose request never ends.
#[derive(Clone)]
pub struct Timed<S> {
    inner: S,
    limit: Duration,
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Timed<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = tokio::time::timeout(self.limit, self.inner.call(request));
        Box::pin(async move {
            let late = || Status::deadline_exceeded("the call took too long (hint: `ledger status` says what waits)");
            answer.await.unwrap_or_else(|_| Ok(late().into_http()))
        })
    }
}

fn workspace_id(bytes: &[u8]) -> Result<Option<WorkspaceId>, Status> {
    if bytes.is_empty() {
        return Ok(None);
    }
    WorkspaceId::try_from(bytes).map(Some).map_err(|_| Status::invalid_argument("a workspace id has 16 bytes"))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Call<wire::StatusRequest>) -> Answer<wire::StatusResponse> {
        let mut status = self.look(status_of).await?;
        let mark = *self.mark.borrow();
        status.unpublished = status.unpublished.saturating_sub(mark);
        {
            let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
            status.log_size = view.tree.size();
        }
        status.origin.clone_from(&self.origin);
        status.fence_reachable = self.fence.is_fresh();
        status.fence_term = self.fence.term();
        status.archive.clone_from(&self.archive);
        status.alarms =
            self.alarms.latched().into_iter().map(|(alarm, detail, _)| format!("{}: {detail}", alarm.name())).collect();
        status.followers = self.followers(mark, status.unpublished);
        let certificates = self.authority.certificates();
        status.certificates =
            certificates.into_iter().map(|(name, not_after)| wire::Certificate { name, not_after }).collect();
        Ok(Response::new(status))
    }

    async fn prepare_statement(
        &self,
        call: Call<wire::PrepareStatementRequest>,
    ) -> Answer<wire::PrepareStatementResponse> {
        let asked = call.into_inner();
        let workspace = workspace_id(&asked.workspace)?;
        let action = asked.action.and_then(|statement| statement.action);
        let action = action.ok_or_else(|| Status::invalid_argument("the request has no action"))?;
        let creates = matches!(action, wire::statement::Action::Create(_));
        let (head, current) = self.look(move |writer| (writer.chain_head(workspace), writer.era())).await?;
        // A new root speaks in its own era, which begins with this statement.
        let era = current.saturating_add(u32::from(matches!(action, wire::statement::Action::SucceedRoot(_))));
        let head = match (head, creates) {
            (Some(head), false) => head,
            (None, true) => custody::statement::ChainHead::GENESIS,
            (Some(_), true) => {
                return Err(Status::already_exists("the workspace exists (hint: ledger workspace list)"));
            }
            (None, false) => return Err(Status::not_found("no such workspace (hint: ledger workspace list)")),
        };
        let checkpoint = {
            let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
            view.checkpoint.as_ref().map(|signed| (signed.checkpoint.size, signed.checkpoint.hash()))
        };
        let (size, hash) = checkpoint.unwrap_or((0, ObjectHash::ZERO));
        let statement = wire::Statement {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            workspace: workspace.map(Into::into),
            serial: head.count,
            previous: head.hash.into(),
            checkpoint_size: size,
            checkpoint_hash: hash.into(),
            issued_at: clock::now_us(),
            era,
            registrar: (!asked.registrar.is_empty()).then_some(asked.registrar),
            reason: asked.reason,
            ticket: asked.ticket,
            action: Some(action),
        };
        let bytes = statement.encode_to_vec();
        strict::check(&table::STATEMENT, &bytes).map_err(|why| Status::invalid_argument(why.to_string()))?;
        Ok(Response::new(wire::PrepareStatementResponse { statement: bytes.into() }))
    }

    async fn submit_statement(
        &self,
        call: Call<wire::SubmitStatementRequest>,
    ) -> Answer<wire::SubmitStatementResponse> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the ledger is ending (hint: submit the same statement again)");
        let request = Request::Statement(call.into_inner().statement, reply);
        self.writer.send(request).await.map_err(|_| gone())?;
        let state = answer.await.map_err(|_| gone())?.map_err(Status::failed_precondition)?;
        let archived = self.archived(state.queue_number + 1).await;
        Ok(Response::new(wire::SubmitStatementResponse { in_force: true, archived }))
    }

    async fn list_statements(&self, call: Call<wire::ListStatementsRequest>) -> Answer<wire::ListStatementsResponse> {
        let workspace = workspace_id(&call.into_inner().workspace)?;
        let statements = self.look(move |writer| writer.statements(workspace)).await?;
        let statements = statements.map_err(|why| Status::not_found(why.to_string()))?;
        Ok(Response::new(wire::ListStatementsResponse { statements }))
    }

    async fn issue_certificate(
        &self,
        call: Call<wire::IssueCertificateRequest>,
    ) -> Answer<wire::IssueCertificateResponse> {
        let asked = call.into_inner();
        let identity = match workspace_id(&asked.workspace)? {
            None => Identity::Admin { origin: self.origin.clone(), name: "administrator".to_owned() },
            Some(workspace) => {
                let gateway = GatewayId::try_from(asked.gateway.as_ref());
                let gateway = gateway.map_err(|_| Status::invalid_argument("a gateway id has 16 bytes"))?;
                let enrolled = self.look(move |writer| writer.is_enrolled(workspace, gateway)).await?;
                if !enrolled {
                    return Err(Status::failed_precondition(
                        "the gateway is not enrolled there (hint: enrol it first)",
                    ));
                }
                Identity::Gateway { origin: self.origin.clone(), workspace, gateway }
            }
        };
        let certificate = self.authority.issue(&asked.request, &identity).map_err(Status::invalid_argument)?;
        Ok(Response::new(wire::IssueCertificateResponse { certificate }))
    }

    async fn acknowledge(&self, call: Call<wire::AcknowledgeRequest>) -> Answer<wire::AcknowledgeResponse> {
        let stood = self.alarms.acknowledge(&call.into_inner().alarm);
        Ok(Response::new(wire::AcknowledgeResponse { stood }))
    }

    async fn cut(&self, call: Call<wire::CutRequest>) -> Answer<wire::CutResponse> {
        let workspace = workspace_id(&call.into_inner().workspace)?;
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        self.writer.send(Request::Cut(workspace, reply)).await.map_err(|_| gone())?;
        let number = answer.await.map_err(|_| gone())?;
        if !self.archived(number).await {
            return Err(Status::deadline_exceeded("cut, but not archived yet (hint: ledger status says why)"));
        }
        let log_size = self.view.read().unwrap_or_else(PoisonError::into_inner).tree.size();
        Ok(Response::new(wire::CutResponse { log_size }))
    }

    async fn list_members(&self, call: Call<wire::ListMembersRequest>) -> Answer<wire::ListMembersResponse> {
        self.members_listed(call).await
    }

    async fn show_member(&self, call: Call<wire::ShowMemberRequest>) -> Answer<wire::ShowMemberResponse> {
        self.member_shown(call).await
    }

    async fn add_member(&self, call: Call<wire::AddMemberRequest>) -> Answer<wire::AddMemberResponse> {
        self.member_added(call).await
    }

    async fn erase_member(&self, call: Call<wire::EraseMemberRequest>) -> Answer<wire::EraseMemberResponse> {
        self.member_erased(call).await
    }

    async fn disclose_members(
        &self,
        call: Call<wire::DiscloseMembersRequest>,
    ) -> Answer<wire::DiscloseMembersResponse> {
        self.members_disclosed(call).await
    }

    async fn add_api_token(&self, call: Call<wire::AddApiTokenRequest>) -> Answer<wire::AddApiTokenResponse> {
        self.token_added(call).await
    }

    async fn list_api_tokens(&self, _: Call<wire::ListApiTokensRequest>) -> Answer<wire::ListApiTokensResponse> {
        self.tokens_listed()
    }

    async fn revoke_api_token(&self, call: Call<wire::RevokeApiTokenRequest>) -> Answer<wire::RevokeApiTokenResponse> {
        self.token_revoked(call).await
    }

    async fn list_rules(&self, _: Call<wire::ListRulesRequest>) -> Answer<wire::ListRulesResponse> {
        self.rules_listed().await
    }

    async fn switch_rule(&self, call: Call<wire::SwitchRuleRequest>) -> Answer<wire::SwitchRuleResponse> {
        self.rule_switched(call).await
    }

    async fn dispose(&self, call: Call<wire::DisposeRequest>) -> Answer<wire::DisposeResponse> {
        self.disposed(call).await
    }

    type ReplayStream = watch::Replayed;

    async fn replay(&self, call: Call<wire::ReplayRequest>) -> Answer<Self::ReplayStream> {
        self.replayed(call).await
    }

    type ReindexStream = index::Reindexed;

    async fn reindex(&self, call: Call<wire::ReindexRequest>) -> Answer<Self::ReindexStream> {
        self.reindexed(call).await
    }
}

/// The writer's part of the status.
fn status_of(writer: &Writer) -> wire::StatusResponse {
    let (state, why) = match writer.state() {
        State::ReadOnly(why) | State::Poisoned(why) => (writer.state().name(), why.clone()),
        other => (other.name(), String::new()),
    };
    wire::StatusResponse {
        term: writer.term(),
        incarnation: writer.ledger_chain().incarnation(),
        state: state.to_owned(),
        state_reason: why,
        commit_index: writer.commit_index(),
        unpublished: writer.queue_next(),
        workspaces: writer.workspaces().map(|workspace| workspace_status(writer, workspace)).collect(),
        ..Default::default()
    }
}

fn workspace_status(writer: &Writer, workspace: &Workspace) -> wire::WorkspaceStatus {
    wire::WorkspaceStatus {
        workspace: workspace.id.into(),
        name: workspace.chain.name().to_owned(),
        removed: workspace.chain.is_removed(),
        positions: workspace.next_position,
        segment: workspace.open.number,
        open_leaves: workspace.open.tree.size(),
        sealed_segments: workspace.open.number,
        archived_segments: workspace.published,
        statements: workspace.chain.head().count,
        gateways: gateways(writer, workspace, clock::now_us()),
        root: workspace.open.tree.root().into(),
        history_root: workspace.history.root().into(),
        head_at: workspace.open.times.map_or(0, |(_, newest)| newest),
    }
}

/// Every gateway that was ever heard, and those that are enrolled and were not.
fn gateways(writer: &Writer, workspace: &Workspace, now_us: u64) -> Vec<wire::GatewayStatus> {
    let names = names(&workspace.chain);
    let enrolled = workspace.chain.keys().filter(|(_, key)| key.role == Role::Gateway && !key.revoked);
    let enrolled = enrolled.filter_map(|(_, key)| key.gateway);
    let all: BTreeSet<GatewayId> = workspace.gateways.keys().copied().chain(enrolled).collect();
    let mut listed = Vec::new();
    for id in all {
        let mut said = wire::GatewayStatus {
            gateway: id.into(),
            name: names.get(&id).map_or_else(String::new, |name| (*name).to_owned()),
            connected: writer.is_connected(workspace.id, id),
            ..Default::default()
        };
        let known = workspace.gateways.get(&id);
        let newest = known.and_then(|known| Some((known.numbering.last_opened?, known)));
        if let Some((epoch, row)) = newest.and_then(|(epoch, known)| Some((epoch, known.rows.get(&epoch)?))) {
            said.epoch = epoch.into();
            (said.last_batch, said.next_record) = (row.last_batch, row.next_record);
            said.last_heard_at = row.heard_at;
            said.silent_since = if row.is_silent(now_us) { row.heard_at } else { 0 };
            said.closed = row.closed;
        }
        listed.push(said);
    }
    listed
}

fn names(chain: &Chain) -> HashMap<GatewayId, &str> {
    let named = |key: &custody::statement::KeyState| key.role == Role::Gateway && !key.name.is_empty();
    chain.keys().filter(|(_, key)| named(key)).filter_map(|(_, key)| Some((key.gateway?, key.name.as_str()))).collect()
}

impl Writer {
    /// Objects of a chain's statements in order.
    ///
    /// # Errors
    /// [`crate::store::StoreError`].
    pub fn statements(&self, workspace: Option<WorkspaceId>) -> Result<Vec<Bytes>, crate::store::StoreError> {
        let count = self.chain_head(workspace).map_or(0, |head| head.count);
        (0..count).map(|serial| self.stored_statement(workspace, serial)).collect()
    }

    /// Whether a gateway has a key in force in a workspace.
    pub fn is_enrolled(&self, workspace: WorkspaceId, gateway: GatewayId) -> bool {
        let of_gateway = |key: &custody::statement::KeyState| {
            key.role == Role::Gateway && key.gateway == Some(gateway) && !key.revoked
        };
        let mut known = self.workspaces().filter(|known| known.id == workspace);
        known.any(|known| known.chain.keys().any(|(_, key)| of_gateway(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose request never ends.
    #[derive(Clone)]
    struct Waits;

    impl Service<http::Request<Body>> for Waits {
        type Response = http::Response<Body>;
        type Error = std::convert::Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn a_call_whose_request_never_ends_is_answered_all_the_same() {
        let mut timed = Timed { inner: Waits, limit: Duration::from_millis(1) };
        let answer = timed.call(http::Request::new(Body::empty())).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    }
}
