//! `gateway-shim serve`: the one endpoint through which a workspace's members reach its MCP servers. It knows who calls, lets
//! each call what the access policy allows, and records every request that passes or is refused, in either direction.
//!
//! [`Front`] is the endpoint: it knows who calls. Behind it is a [`Proxy`] for each server, at `/mcp/NAME`, which decides what
//! goes on; at `/mcp` are all of them (`all.rs`). Bodies are decided on by their envelope and forwarded as they came; answers are
//! read before they go on. What must hold: a request's intent is recorded before the server sees it; a request that cannot be
//! recorded is not forwarded; the caller's Authorization goes no further than here; what is open when access changes is cut if
//! it may not be any more; nobody speaks to a port that is not loopback in plaintext; the port stays within the limits of
//! `listen.rs`.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request as HttpRequest, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    routing::any,
};
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

use crate::{
    access::{self, Access, Caller, Unauthenticated, Why},
    catalog::{self, Catalog},
    clock,
    config::{Config, Faults, ServeConfig, ServerConfig, is_loopback},
    durable,
    gateway::Gateway,
    listen::{self, Load},
    server::Servers,
};

mod admit;
mod all;
mod arrive;
mod counts;
mod credential;
mod links;
mod open;
mod pace;
mod places;
mod port;
mod probe;
mod proxy;
mod queue;
mod refusal;
mod sessions;
mod stdio;
mod tally;
pub(crate) mod tls;
mod told;
mod upstream;
mod watched;

use counts::{COUNTS_EVERY, Counts};
pub use places::NOTES_MAX;
use places::Places;
pub use port::serve;
pub use probe::probe;
pub use proxy::Proxy;
use proxy::{Came, Server};
use refusal::{CODE_NO_SESSION, Refusal, error};
use sessions::Speaker;
pub use upstream::{KEPT_MAX, TELLS_MAX};

/// Header that names a session (Streamable HTTP, 2025-03-26 to 2025-11-25).
const SESSION: &str = "mcp-session-id";
/// Header that names the protocol version.
const PROTOCOL: &str = "mcp-protocol-version";
/// Header that names the method of the body (2026-07-28).
const METHOD: &str = "mcp-method";
/// Header that names what the body names (2026-07-28).
const NAME: &str = "mcp-name";
/// Header that names the event behind which a stream is taken up again.
const LAST_EVENT: &str = "last-event-id";
/// The file of pins in `serve.dir`.
const PINS: &str = "pins";
/// How long the body of a request may take behind its head.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// How often what is open is looked at without a change of access: tokens expire.
const LOOK_EVERY: Duration = Duration::from_secs(5);

type Answer = Response<Body>;

/// How long callers may take.
#[derive(Clone, Copy)]
struct Waits {
    head: Duration,
    body: Duration,
}

/// What all proxies use.
pub(crate) struct Shared {
    gateway: Gateway,
    access: Access,
    catalog: Catalog,
    cuts: open::Cuts,
    places: Places,
    /// On the port.
    notes: Places,
    refusals: tally::Tally,
    pace: pace::Pace,
}

/// Reads every file that [`Front::new`] reads, and the access policy.
///
/// # Errors
/// [`Faults`]: the same.
pub fn check(config: &Config) -> Result<(), Faults> {
    if let Some(serve) = &config.serve {
        access::check(&serve.policies())?;
        catalog::check(&serve.dir.join(PINS))?;
        tls::Acceptor::of(serve)?;
    }
    config.servers.iter().try_for_each(|(name, server)| Server::check(name, server))
}

/// What servers list, as it is pinned in the folder of what is in force.
fn open_catalog(serve: &ServeConfig, gateway: &Gateway) -> Result<Catalog, Faults> {
    durable::create_dir(&serve.dir, 0o700).map_err(|why| {
        let hint = "hint: name a folder that can be made";
        Faults(vec![format!("serve.dir: {} cannot be made: {why}; {hint}", serve.dir.display())])
    })?;
    Catalog::open(serve.dir.join(PINS), gateway.clone())
}

/// The endpoint: a proxy for each server.
pub struct Front {
    config: ServeConfig,
    shared: Arc<Shared>,
    proxies: BTreeMap<String, Arc<Proxy>>,
    /// Of what is refused before any server is known.
    counts: Counts,
    all: all::All,
    tls: Option<tls::Acceptor>,
    processes: Servers,
    waits: Waits,
}

impl Front {
    /// In front of the servers that the configuration names.
    ///
    /// # Errors
    /// [`Faults`] when a file that it names cannot be used.
    pub fn new(
        gateway: Gateway,
        access: Access,
        serve: ServeConfig,
        servers: &BTreeMap<String, ServerConfig>,
    ) -> Result<Arc<Self>, Faults> {
        let catalog = open_catalog(&serve, &gateway)?;
        let places = Places::new(serve.calls_open_max, serve.member_calls_open_max);
        let (cuts, refusals, notes) = (open::Cuts::default(), tally::Tally::default(), Places::of_notes());
        let pace = pace::Pace::default();
        let shared = Arc::new(Shared { gateway, access, catalog, cuts, places, notes, refusals, pace });
        let processes = Servers::default();
        let proxy = |(name, server): (&String, &ServerConfig)| {
            let proxy = Proxy::new(Arc::clone(&shared), &serve, name, server, &processes)?;
            Ok((name.clone(), Arc::new(proxy)))
        };
        let proxies = servers.iter().map(proxy).collect::<Result<_, Faults>>()?;
        let (waits, tls) = (Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT }, tls::Acceptor::of(&serve)?);
        Ok(Arc::new(Self {
            config: serve,
            shared,
            proxies,
            counts: Counts::default(),
            all: all::All::default(),
            tls,
            processes,
            waits,
        }))
    }

    /// The routes: an endpoint for each server.
    pub fn router(self: Arc<Self>) -> Router {
        let router = Router::new().route("/mcp", any(handle_all)).route("/mcp/{server}", any(handle));
        router.fallback(nowhere).with_state(self)
    }

    /// The servers that are programs, for `gateway-shim server`.
    pub fn processes(&self) -> &Servers {
        &self.processes
    }

    /// What servers list, for `gateway-shim server accept`.
    pub fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    async fn flush_counts(&self, since: u64) {
        self.shared.flush_counts("", &self.counts, since).await;
        for proxy in self.proxies.values() {
            self.shared.flush_counts(&proxy.name, &proxy.counts, since).await;
        }
    }

    /// Who calls, from a header that stands once.
    fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, Unauthenticated> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let authorization = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(value.to_str().map_err(|_| malformed())?),
            (Some(_), Some(_)) => return Err(malformed()),
        };
        self.shared.access.authenticate(authorization, clock::now_us())
    }

    /// Refuses somebody who is not known, or who calls from where nobody may.
    async fn refuse(&self, server: &str, caller: Option<&Caller>, refusal: Refusal) -> Answer {
        let call = self.shared.describe(server, None, &Speaker::default(), caller, 0);
        self.shared.refuse(call, &refusal).await;
        refusal.answer("null")
    }

    /// A request to one server, or to all.
    async fn handle(&self, server: Option<&str>, load: &Load, request: HttpRequest) -> Answer {
        let (mut parts, body) = request.into_parts();
        let proxy = server.and_then(|server| self.proxies.get(server)).map(Arc::clone);
        // What a caller made up is in no record.
        let named = proxy.as_ref().map_or("", |proxy| &proxy.name);
        if !is_known(&parts.headers, &self.config.hosts) {
            return self.refuse(named, None, Refusal::from_elsewhere()).await;
        }
        let caller = match self.authenticate(&parts.headers) {
            Ok(caller) => caller,
            Err(Unauthenticated { kind, caller }) => {
                return self.refuse(named, caller.as_ref(), Refusal::unauthenticated(kind)).await;
            }
        };
        parts.headers.remove(header::AUTHORIZATION);
        let came = Came { caller, headers: parts.headers };
        let is_clear = |name| is_clear(&came.headers, name);
        if ![SESSION, PROTOCOL, LAST_EVENT].into_iter().all(is_clear) || upstream::keeps_back(&came.headers) {
            return self.refuse(named, Some(&came.caller), Refusal::unclear_header()).await;
        }
        if server.is_none() {
            // What is asked of one server does not carry the room that this takes.
            return Box::pin(self.handle_all(load, parts.method, came, body)).await;
        }
        let Some(proxy) = &proxy else {
            let refusal = Refusal::no_method(StatusCode::NOT_FOUND, "there is no such server here");
            return self.refuse(named, Some(&came.caller), refusal).await;
        };
        if parts.method == Method::POST {
            return proxy.post(came, body, load, self.waits.body).await;
        }
        let Some(carried) = load.request_of(came.caller.member) else {
            return self.refuse(named, Some(&came.caller), Refusal::connections()).await;
        };
        let answer = match parts.method {
            Method::GET | Method::DELETE => Box::pin(proxy.stream(parts.method, came)).await,
            _ => proxy.no_method(&came).await,
        };
        port::carry(answer, carried)
    }
}

fn malformed() -> Unauthenticated {
    Unauthenticated { kind: Why::Malformed, caller: None }
}

async fn handle(
    State(front): State<Arc<Front>>,
    Path(server): Path<String>,
    Extension(load): Extension<Load>,
    request: HttpRequest,
) -> Answer {
    front.handle(Some(&server), &load, request).await
}

async fn handle_all(State(front): State<Arc<Front>>, Extension(load): Extension<Load>, request: HttpRequest) -> Answer {
    front.handle(None, &load, request).await
}

/// Nothing is behind any other path, so nothing was asked of a server, and nothing is on record.
async fn nowhere() -> Answer {
    let text = "there is nothing here; hint: the MCP servers are at /mcp, and each at /mcp/ and its name";
    error(StatusCode::NOT_FOUND, "null", CODE_NO_SESSION, text)
}

/// Whether the names under which this is called, and from which page, are ours: a page from elsewhere must not reach an
/// address that only its visitor does (DNS rebinding).
fn is_known(headers: &HeaderMap, hosts: &[String]) -> bool {
    let local = |value: &str| {
        let host = value.split_once("://").map_or(value, |(_, host)| host);
        let bare = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|digit| digit.is_ascii_digit()));
        let bare = bare.map_or(host, |(bare, _)| bare);
        is_loopback(bare) || hosts.iter().any(|known| known.eq_ignore_ascii_case(bare))
    };
    [header::ORIGIN, header::HOST].into_iter().all(|name| match headers.get(&name) {
        None => true,
        Some(value) => value.to_str().is_ok_and(local),
    })
}

/// Whether a header stands at most once, in visible characters: what is read here is then what the server reads.
fn is_clear(headers: &HeaderMap, name: &str) -> bool {
    let mut values = headers.get_all(name).iter();
    values.next().is_none_or(|value| value.to_str().is_ok()) && values.next().is_none()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

async fn count_on(front: Arc<Front>) {
    loop {
        let since = clock::now_us();
        clock::sleep(COUNTS_EVERY).await;
        front.flush_counts(since).await;
    }
}

/// Cuts what may not go on, at each change of access and from time to time.
async fn cut_on(front: Arc<Front>) {
    let mut changes = front.shared.access.changes();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = clock::sleep(LOOK_EVERY) => {}
        }
        front.shared.cuts.look(&front.shared.access, clock::now_us());
        for proxy in front.proxies.values() {
            proxy.cut_sessions();
        }
    }
}

#[cfg(test)]
mod tests;
