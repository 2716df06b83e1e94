//! The control socket of a running shim: `control.sock`, in the folder that is this shim's alone.
//!
//! What must hold: only the shim's own account (or root) reaches it, by the socket's mode, and of what runs under that account only
//! what can read this folder, by the [`cookie`](crate::cookie) in it, another one with each start; there is one shim for each folder,
//! held by a lock that ends with the process, so that a socket without one is stale and is replaced; whoever asks for a change is
//! known by the socket's peer, whatever they say; connections have the limits of `listen.rs`, requests one of their own.
//!
//! It decodes, asks and encodes. What it asks decides.

use std::{fs::File, io, path::PathBuf, sync::Arc};

use custody::wire::{
    AbandonAccessRequest, AcceptToolRequest, AccessChanged, AccessPlan, AccessShown, ApplyAccessRequest,
    ChangeAccessRequest, ChangeProcessesRequest, ListProcessesRequest, ListProcessesResponse, ListQuarantinedRequest,
    ListQuarantinedResponse, PlanAccessRequest, QuarantinedTool, ServerProcesses, ShimMembersRequest,
    ShimMembersResponse, ShimStatusRequest, ShimStatusResponse, ShowAccessRequest,
    control_server::{Control, ControlServer},
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Server};

use crate::{
    access::Engine,
    catalog::Catalog,
    clock,
    config::Config,
    cookie::Cookie,
    durable,
    gateway::Gateway,
    listen::{self, Carried, Load},
    seen::Seen,
    server::Servers,
};

mod access;
mod definitions;
mod processes;
mod status;

/// Name of the socket in its folder.
pub const SOCKET: &str = "control.sock";
/// Name of the file beside it whose content its callers show.
pub const COOKIE: &str = "control.cookie";
/// Held as long as a shim uses the folder.
const LOCK: &str = "control.lock";
/// Longest request in bytes: an access policy of tens of thousands of members.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// Longest answer: the same policy, and what changes in it.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Requests of one connection at a time: a command makes one.
const STREAMS_MAX: u32 = 8;
/// Longest path that a socket may have (`sun_path`, without its end).
const PATH_BYTES_MAX: usize = 107;

/// The socket, taken.
pub struct Socket {
    listener: UnixListener,
    cookie: Cookie,
    place: Place,
}

/// Where it stands.
struct Place {
    path: PathBuf,
    /// Another shim with this folder is refused as long as this one lives.
    _lock: File,
}

impl Socket {
    /// Takes the folder and makes the socket in it; one that a shim left behind that was killed is replaced.
    ///
    /// # Errors
    /// When another shim has the folder, or the socket cannot be made; in words, with the next move.
    pub fn bind(config: &Config) -> Result<Self, String> {
        let path = config.control_socket();
        let dir = config.control_dir();
        let lock = durable::lock(dir, LOCK).map_err(|why| match why.kind() {
            io::ErrorKind::WouldBlock => {
                format!("use {}: another shim runs with it; hint: gateway-shim status shows which", dir.display())
            }
            _ => format!("use {}: {why}; hint: may this account write there?", dir.display()),
        })?;
        let long = path.as_os_str().len() > PATH_BYTES_MAX;
        let hint = match long {
            true => "hint: the path of a socket has at most 107 bytes: name a folder with a shorter one",
            false => "hint: may this account write there?",
        };
        let named = |why| format!("listen on the socket {}: {why}; {hint}", path.display());
        // Before anybody can ask: who finds the socket finds its cookie.
        let cookie = Cookie::fresh(&config.control_cookie()).map_err(named)?;
        let listener = durable::bind_private(&path, |socket| UnixListener::bind(socket)).map_err(named)?;
        Ok(Self { listener, cookie, place: Place { path, _lock: lock } })
    }

    /// Answers until it is dropped.
    pub async fn serve(self, controlled: Controlled) {
        let service = ControlServer::new(controlled).max_decoding_message_size(REQUEST_BYTES_MAX);
        let Self { listener, cookie, place } = self;
        let service = InterceptedService::new(service, cookie);
        let router = Server::builder().max_concurrent_streams(STREAMS_MAX).add_service(service);
        let incoming = UnixListenerStream::new(listener);
        let connections = listen::bounded(incoming, listen::PREFACE_BYTES, listen::HEAD_LIMIT);
        tracing::info!(socket = %place.path.display(), "control socket listens");
        if let Err(why) = router.serve_with_incoming(connections).await {
            tracing::error!(%why, "the control socket ended; commands find no shim until it is started again");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever comes now finds no shim, and not one that does not answer. One that stays behind is stale.
        std::fs::remove_file(&self.path).ok();
        std::fs::remove_file(self.path.with_file_name(COOKIE)).ok();
    }
}

/// What a running shim shows, and what of it may be changed. Cheap to clone.
#[derive(Clone)]
pub struct Controlled {
    gateway: Gateway,
    config: Arc<Config>,
    processes: Servers,
    /// `None` where no member comes in.
    access: Option<Engine>,
    /// `None` where no server lists anything.
    catalog: Option<Catalog>,
}

impl Controlled {
    /// Of a running gateway, of the servers that are its programs, and of what its members reach.
    pub fn new(
        gateway: Gateway,
        config: Config,
        processes: Servers,
        access: Option<Engine>,
        catalog: Option<Catalog>,
    ) -> Self {
        Self { gateway, config: Arc::new(config), processes, access, catalog }
    }

    /// What its gateway shows of itself.
    pub fn seen(&self) -> &Seen {
        self.gateway.seen()
    }
}

/// Says that the connection of this request carries one.
fn carried<T>(request: &Request<T>) -> Option<Carried> {
    request.extensions().get::<Load>().map(Load::request)
}

/// The account of whoever asks, as the system says.
fn uid<T>(request: &Request<T>) -> Option<u32> {
    request.extensions().get::<Load>()?.uid
}

#[tonic::async_trait]
impl Control for Controlled {
    async fn status(&self, request: Request<ShimStatusRequest>) -> Result<Response<ShimStatusResponse>, Status> {
        let _carried = carried(&request);
        Ok(Response::new(self.shown(clock::now_us()).await))
    }

    async fn list_processes(
        &self,
        request: Request<ListProcessesRequest>,
    ) -> Result<Response<ListProcessesResponse>, Status> {
        let _carried = carried(&request);
        let servers = self.processes.list().iter().map(processes::shown).collect();
        Ok(Response::new(ListProcessesResponse { servers }))
    }

    async fn change_processes(
        &self,
        request: Request<ChangeProcessesRequest>,
    ) -> Result<Response<ServerProcesses>, Status> {
        let _carried = carried(&request);
        processes::change(&self.processes, request.into_inner()).await.map(Response::new)
    }

    async fn plan_access(&self, request: Request<PlanAccessRequest>) -> Result<Response<AccessPlan>, Status> {
        let _carried = carried(&request);
        access::plan(self.access.as_ref(), request.into_inner()).await.map(Response::new)
    }

    async fn apply_access(&self, request: Request<ApplyAccessRequest>) -> Result<Response<AccessChanged>, Status> {
        let (_carried, uid) = (carried(&request), uid(&request));
        access::apply(self.access.as_ref(), uid, request.into_inner()).await.map(Response::new)
    }

    async fn show_access(&self, request: Request<ShowAccessRequest>) -> Result<Response<AccessShown>, Status> {
        let _carried = carried(&request);
        access::show(self.access.as_ref()).await.map(Response::new)
    }

    async fn abandon_access(&self, request: Request<AbandonAccessRequest>) -> Result<Response<AccessChanged>, Status> {
        let (_carried, uid) = (carried(&request), uid(&request));
        access::abandon(self.access.as_ref(), uid, request.into_inner()).await.map(Response::new)
    }

    async fn change_access(&self, request: Request<ChangeAccessRequest>) -> Result<Response<AccessChanged>, Status> {
        let (_carried, uid) = (carried(&request), uid(&request));
        access::change(self.access.as_ref(), &self.gateway, uid, request.into_inner()).await.map(Response::new)
    }

    async fn members(&self, request: Request<ShimMembersRequest>) -> Result<Response<ShimMembersResponse>, Status> {
        let _carried = carried(&request);
        access::members(self.access.as_ref()).await.map(Response::new)
    }

    async fn list_quarantined(
        &self,
        request: Request<ListQuarantinedRequest>,
    ) -> Result<Response<ListQuarantinedResponse>, Status> {
        let _carried = carried(&request);
        definitions::quarantined(self.catalog.as_ref()).map(Response::new)
    }

    async fn accept_tool(&self, request: Request<AcceptToolRequest>) -> Result<Response<QuarantinedTool>, Status> {
        let (_carried, uid) = (carried(&request), uid(&request));
        definitions::accept(self.catalog.as_ref(), uid, request.into_inner()).await.map(Response::new)
    }
}

#[cfg(test)]
pub(crate) mod tests;
