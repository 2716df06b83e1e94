//! `gateway-shim serve`: stands in front of MCP servers and records every request that passes, in either direction.
//!
//! [`Front`] is the endpoint; behind it is a [`Proxy`] for each server, at `/mcp/NAME`.
//!
//! Bodies are decided on by their envelope and forwarded as they came; answers are read beside their forwarding. What must
//! hold: a request's intent is durable before the server sees it; a request that cannot be recorded is not forwarded; the
//! caller's Authorization goes no further than here; nothing but loopback is listened on, and within the limits of
//! `listen.rs`.
//!
//! Who may call what is not decided yet: every call is allowed under the rule that the configuration names. [`Proxy::admit`]
//! is where that decision goes.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Path, Request as HttpRequest, State},
    http::{HeaderMap, Method, Response, StatusCode, header},
    routing::any,
};
use bytes::Bytes;
use custody::wire::{self, Outcome, gateway_event::Event, record::Kind};
use http_body_util::LengthLimitError;
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;

use crate::{
    clock,
    config::{Config, Faults, ServeConfig, ServerConfig, is_loopback},
    gateway::{Gateway, Running},
    listen::{self, Load},
    mcp::envelope::{self, Malformed, Message, Request},
    writer::Refused,
};

mod open;
mod port;
mod stdio;
mod tls;
mod upstream;

pub use open::OpenCalls;
pub use port::serve;

/// Header that names a session (Streamable HTTP, 2025-03-26 to 2025-11-25).
const SESSION: &str = "mcp-session-id";
/// Header that names the protocol version.
const PROTOCOL: &str = "mcp-protocol-version";
/// Sessions whose client is remembered; the oldest is forgotten first, and its calls name no client then.
const CALLERS_MAX: usize = 4_096;
/// How often counts of unrecorded traffic become a record.
const COUNTS_EVERY: Duration = Duration::from_secs(60);
/// How long the body of a request may take behind its head: on one machine all of it is there at once.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// JSON-RPC codes of our own, outside of the reserved ranges, so that no client takes them for the server's word.
const CODE_UNREACHABLE: i32 = 1_001;
const CODE_TIMEOUT: i32 = 1_002;
const CODE_NOT_RECORDED: i32 = 1_003;
const CODE_TOO_LONG: i32 = 1_004;
/// Who may call what is not decided yet: every call is allowed under this name.
const ALLOW_ALL: &str = "allow-all";
const NOT_RECORDED: &str = "the call cannot be recorded now, so it is not made; try again later";
/// What servers answer to a request without a session; clients of both eras then fall back to `initialize`.
const CODE_NO_SESSION: i32 = -32_000;

type Answer = Response<Body>;

/// Who speaks in a session, as it said itself.
#[derive(Clone, Debug, Default)]
struct Caller {
    client: Option<(String, String)>,
    protocol: Option<String>,
}

/// The oldest go first.
#[derive(Default)]
struct Callers {
    by_session: HashMap<String, Caller>,
    order: VecDeque<String>,
}

impl Callers {
    fn insert(&mut self, session: String, caller: Caller) {
        if self.by_session.insert(session.clone(), caller).is_none() {
            self.order.push_back(session);
        }
        while self.order.len() > CALLERS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_session.remove(&oldest);
            }
        }
    }
}

#[derive(Default)]
struct Counts {
    pings: AtomicU64,
    progress: AtomicU64,
    notifications: AtomicU64,
    /// Requests whose body did not come.
    torn: AtomicU64,
    /// Messages of the server that are none, and their bytes.
    unread: AtomicU64,
    unread_bytes: AtomicU64,
}

/// A request whose body is on its way: torn, unless it is said that all of it came.
struct Arriving<'a>(Option<&'a Counts>);

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(counts) = self.0 {
            counts.torn.fetch_add(1, Relaxed);
        }
    }
}

/// How long callers may take.
#[derive(Clone, Copy)]
struct Waits {
    head: Duration,
    body: Duration,
}

/// Whatever answers: a server over HTTP, or processes over stdio.
enum Server {
    Http(Box<upstream::Upstream>),
    Stdio(Arc<stdio::Stdio>),
}

impl Server {
    fn of(name: &str, config: &ServerConfig) -> Result<Self, Faults> {
        Ok(match &config.url {
            Some(url) => Self::Http(Box::new(upstream::Upstream::new(name, url, config.ca.as_deref())?)),
            None => Self::Stdio(stdio::Stdio::new(name, config)),
        })
    }
}

/// Reads every file that [`Front::new`] reads.
///
/// # Errors
/// [`Faults`]: the same.
pub fn check(config: &Config) -> Result<(), Faults> {
    config.servers.iter().try_for_each(|(name, server)| Server::of(name, server).map(drop))
}

/// The endpoint: a proxy for each server.
pub struct Front {
    config: ServeConfig,
    proxies: BTreeMap<String, Arc<Proxy>>,
    waits: Waits,
}

impl Front {
    /// In front of the servers that the configuration names.
    ///
    /// # Errors
    /// [`Faults`] when a file that it names cannot be used.
    pub fn new(
        gateway: &Gateway,
        serve: ServeConfig,
        servers: &BTreeMap<String, ServerConfig>,
    ) -> Result<Arc<Self>, Faults> {
        let proxy = |(name, server): (&String, &ServerConfig)| {
            let proxy = Proxy::new(gateway.clone(), &serve, name, server)?;
            Ok((name.clone(), Arc::new(proxy)))
        };
        let proxies = servers.iter().map(proxy).collect::<Result<_, Faults>>()?;
        let waits = Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT };
        Ok(Arc::new(Self { config: serve, proxies, waits }))
    }

    async fn flush_counts(&self, since: u64) {
        for proxy in self.proxies.values() {
            proxy.flush_counts(since).await;
        }
    }

    /// The routes: an endpoint for each server.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().route("/mcp/{server}", any(handle)).fallback(nowhere).with_state(self)
    }
}

/// The proxy in front of one server.
pub struct Proxy {
    name: String,
    gateway: Gateway,
    config: ServerConfig,
    request_bytes_max: usize,
    callers: Mutex<Callers>,
    counts: Counts,
    open: OpenCalls,
    server: Server,
}

/// A request that may go on, with its record begun; `None` for pings, which are only counted.
struct Admitted {
    running: Option<Running>,
}

impl Proxy {
    fn new(gateway: Gateway, serve: &ServeConfig, name: &str, config: &ServerConfig) -> Result<Self, Faults> {
        let server = Server::of(name, config)?;
        let (callers, counts, open) = (Mutex::default(), Counts::default(), OpenCalls::default());
        let (name, config, request_bytes_max) = (name.to_owned(), config.clone(), serve.request_kib_max * 1_024);
        Ok(Self { name, gateway, config, request_bytes_max, callers, counts, open, server })
    }

    fn call_wait(&self) -> Duration {
        Duration::from_secs(self.config.call_s_max)
    }

    fn caller(&self, headers: &HeaderMap) -> Caller {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = text(headers, SESSION).and_then(|session| callers.by_session.get(session).cloned());
        let mut caller = known.unwrap_or_default();
        if let Some(protocol) = text(headers, PROTOCOL) {
            caller.protocol = Some(protocol.to_owned());
        }
        caller
    }

    /// Remembers who speaks in a session that was just begun.
    fn remember(&self, session: &str, request: &Request) {
        let caller = Caller { client: request.client.clone(), protocol: request.protocol.clone() };
        self.callers.lock().unwrap_or_else(PoisonError::into_inner).insert(session.to_owned(), caller);
    }

    /// What a record says of a request, before it is known how it ends.
    fn describe(&self, request: &Request, caller: Caller, bytes: u64) -> wire::Call {
        let client = request.client.clone().or(caller.client);
        let (name, version) = client.unwrap_or_default();
        let protocol = request.protocol.clone().or(caller.protocol).unwrap_or_default();
        let protocol_fits = protocol.len() <= 32 && custody::strict::is_token(&protocol);
        wire::Call {
            mode: wire::Mode::from(self.config.mode) as i32,
            client: Some(name).filter(|name| !name.is_empty()).as_deref().map(envelope::client),
            client_release: Some(version).filter(|text| !text.is_empty()).as_deref().map(envelope::client_release),
            server: self.name.clone(),
            target: request.tool.as_deref().map(envelope::target),
            request: Some(envelope::method(&request.method)),
            protocol: if protocol_fits { protocol } else { String::new() },
            decision: wire::Decision::Allowed as i32,
            rule: ALLOW_ALL.to_owned(),
            started_at: clock::now_us(),
            request_bytes: bytes,
            trace: request.trace.clone(),
            ..wire::Call::default()
        }
    }

    /// Decides on a request and makes its intent durable.
    async fn admit(&self, request: &Request, caller: Caller, bytes: usize) -> Result<Admitted, Refused> {
        if request.method == "ping" {
            self.counts.pings.fetch_add(1, Relaxed);
            return Ok(Admitted { running: None });
        }
        let running = self.gateway.begin(self.describe(request, caller, bytes as u64)).await;
        match running {
            Ok(running) => Ok(Admitted { running: Some(running) }),
            // The configuration lets calls pass when the spool is full, and the loss is declared.
            Err(Refused::Dropped) => Ok(Admitted { running: None }),
            Err(refused) => Err(refused),
        }
    }

    /// The server asks the client: recorded like any other call, before the client sees it. Without a record it does not
    /// go on, unless the configuration says so.
    async fn ask_back(&self, session: &str, request: &Request, bytes: usize) -> Result<(), Refused> {
        if request.method == "ping" {
            self.counts.pings.fetch_add(1, Relaxed);
            return Ok(());
        }
        let caller = {
            let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
            callers.by_session.get(session).cloned().unwrap_or_default()
        };
        if !self.open.may_ask(session) {
            tracing::warn!("a request of the server does not go on: too many wait for the client in this session");
            return Err(Refused::Busy);
        }
        let mut call = self.describe(request, caller, bytes as u64);
        call.from_server = true;
        match self.gateway.begin(call).await {
            Ok(running) => self.open.begin_asked(session, &request.id, running, self.call_wait()),
            // Let go, and declared: as the configuration says.
            Err(Refused::Dropped) => {}
            Err(refused) => {
                tracing::warn!(%refused, "a request of the server does not go on, because it cannot be recorded");
                return Err(refused);
            }
        }
        Ok(())
    }

    /// What passes without an answer is counted.
    fn count(&self, method: &str) {
        let counter = match method {
            "notifications/progress" => &self.counts.progress,
            _ => &self.counts.notifications,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// What the server says and nobody can read: it goes no further, because it might be a request.
    fn unread(&self, bytes: usize) {
        self.counts.unread.fetch_add(1, Relaxed);
        self.counts.unread_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A request that this side refuses: one record, the call denied.
    async fn refuse(&self, headers: &HeaderMap, bytes: u64, outcome: Outcome) {
        self.refuse_of(false, self.caller(headers), bytes, outcome).await;
    }

    async fn refuse_of(&self, server: bool, caller: Caller, bytes: u64, outcome: Outcome) {
        let nobody = Request {
            id: String::new(),
            raw_id: String::new(),
            method: String::new(),
            tool: None,
            client: None,
            protocol: None,
            trace: None,
            progress: None,
        };
        let mut call = self.describe(&nobody, caller, bytes);
        call.from_server = server;
        (call.request, call.decision) = (None, wire::Decision::Denied as i32);
        (call.phase, call.outcome) = (wire::Phase::Complete as i32, outcome as i32);
        if let Err(refused) = self.gateway.record(Kind::Call(call)).await {
            tracing::error!(%refused, "a refusal is not recorded");
        }
    }

    /// Puts an answer of our own that is a refusal on record: no such session, or a stream that is open already.
    async fn refused(&self, headers: &HeaderMap, bytes: usize, answer: Answer) -> Answer {
        if answer.status().is_client_error() {
            self.refuse(headers, bytes as u64, Outcome::HttpError).await;
        }
        answer
    }

    /// Writes what was only counted since the last time.
    async fn flush_counts(&self, since: u64) {
        let counts = wire::Counts {
            since,
            pings: self.counts.pings.swap(0, Relaxed),
            progress: self.counts.progress.swap(0, Relaxed),
            notifications: self.counts.notifications.swap(0, Relaxed),
        };
        if counts.pings + counts.progress + counts.notifications > 0 {
            let event = wire::GatewayEvent { at: clock::now_us(), event: Some(Event::Counts(counts)) };
            if let Err(refused) = self.gateway.record(Kind::GatewayEvent(event)).await {
                tracing::error!(%refused, "counts are not recorded");
            }
        }
        // Nobody can tell what was asked, and whoever breaks off a thousand times writes no thousand records.
        let torn = self.counts.torn.swap(0, Relaxed);
        if torn > 0 {
            tracing::warn!(
                count = torn,
                "requests whose body did not come in time are recorded as one that is malformed"
            );
            self.refuse(&HeaderMap::new(), 0, Outcome::Malformed).await;
        }
        let (unread, bytes) = (self.counts.unread.swap(0, Relaxed), self.counts.unread_bytes.swap(0, Relaxed));
        if unread > 0 {
            tracing::warn!(
                count = unread,
                bytes,
                "what the MCP server said and is no message of JSON-RPC was not passed on, and is recorded as one that is malformed"
            );
            self.refuse_of(true, Caller::default(), bytes, Outcome::Malformed).await;
        }
    }

    async fn post(self: &Arc<Self>, headers: HeaderMap, body: Body, load: &Load, wait: Duration) -> Answer {
        let most = self.request_bytes_max;
        let mut arriving = Arriving(Some(&self.counts));
        let body = tokio::time::timeout(wait, axum::body::to_bytes(body, most)).await;
        let too_long =
            |why: &axum::Error| std::error::Error::source(why).is_some_and(|why| why.is::<LengthLimitError>());
        if let Ok(Ok(_)) = &body {
            arriving.0 = None;
        }
        let body = match body {
            Ok(Ok(body)) => body,
            Ok(Err(why)) if too_long(&why) => {
                arriving.0 = None;
                // As long as it says, or at least as long as the limit.
                let said = text(&headers, header::CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
                self.refuse(&headers, said.unwrap_or(most as u64), Outcome::OverLimit).await;
                let text = format!("the request is longer than {most} bytes (serve.request_kib_max)");
                return error(StatusCode::PAYLOAD_TOO_LARGE, "null", CODE_TOO_LONG, &text);
            }
            Ok(Err(_)) | Err(_) => {
                let text = "the rest of the request did not come in time";
                let mut answer = error(StatusCode::REQUEST_TIMEOUT, "null", CODE_TIMEOUT, text);
                answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
                return answer;
            }
        };
        drop(arriving);
        let carried = load.request();
        port::carry(self.message(headers, body).await, carried)
    }

    async fn message(self: &Arc<Self>, headers: HeaderMap, body: Bytes) -> Answer {
        match envelope::parse(&body) {
            Err(Malformed { code, text, raw_id }) => {
                self.refuse(&headers, body.len() as u64, Outcome::Malformed).await;
                error(StatusCode::BAD_REQUEST, raw_id.as_deref().unwrap_or("null"), code, &text)
            }
            Ok(Message::Request(request)) => self.request(headers, *request, body).await,
            Ok(Message::Notification { method, cancels, .. }) => {
                self.count(&method);
                if let (Some(session), Some(id)) = (text(&headers, SESSION), cancels) {
                    self.open.cancelled(session, &id);
                }
                self.pass(headers, body).await
            }
            Ok(Message::Answer { id, ending }) => {
                if let Some(session) = text(&headers, SESSION) {
                    self.open.finish(open::Side::Server, session, &id, ending);
                }
                self.pass(headers, body).await
            }
        }
    }

    async fn request(self: &Arc<Self>, headers: HeaderMap, request: Request, body: Bytes) -> Answer {
        let admitted = match self.admit(&request, self.caller(&headers), body.len()).await {
            Ok(admitted) => admitted,
            Err(refused) => {
                tracing::warn!(%refused, "a call is refused, because it cannot be recorded");
                return error(StatusCode::SERVICE_UNAVAILABLE, &request.raw_id, CODE_NOT_RECORDED, NOT_RECORDED);
            }
        };
        match &self.server {
            Server::Http(server) => server.request(self, headers, request, body, admitted).await,
            Server::Stdio(server) => server.request(self, &headers, request, &body, admitted).await,
        }
    }

    /// A message without an answer.
    async fn pass(self: &Arc<Self>, headers: HeaderMap, body: Bytes) -> Answer {
        match &self.server {
            Server::Http(server) => server.pass(self, Method::POST, headers, body).await,
            Server::Stdio(server) => {
                let answer = server.pass(&headers, &body).await;
                self.refused(&headers, body.len(), answer).await
            }
        }
    }
}

async fn handle(
    State(front): State<Arc<Front>>,
    Path(server): Path<String>,
    Extension(load): Extension<Load>,
    request: HttpRequest,
) -> Answer {
    let (parts, body) = request.into_parts();
    let Some(proxy) = front.proxies.get(&server).map(Arc::clone) else { return nowhere().await };
    if !is_known(&parts.headers, &front.config.hosts) {
        proxy.refuse(&parts.headers, 0, Outcome::Denied).await;
        return error(StatusCode::FORBIDDEN, "null", CODE_NO_SESSION, "this page may not call from there");
    }
    if parts.method == Method::POST {
        return proxy.post(parts.headers, body, &load, front.waits.body).await;
    }
    let carried = load.request();
    let answer = match (&parts.method, &proxy.server) {
        (&Method::GET | &Method::DELETE, Server::Http(server)) => {
            server.pass(&proxy, parts.method, parts.headers, Bytes::new()).await
        }
        (&Method::GET, Server::Stdio(server)) => proxy.refused(&parts.headers, 0, server.listen(&parts.headers)).await,
        (&Method::DELETE, Server::Stdio(server)) => proxy.refused(&parts.headers, 0, server.end(&parts.headers)).await,
        _ => {
            proxy.refuse(&parts.headers, 0, Outcome::Malformed).await;
            error(StatusCode::METHOD_NOT_ALLOWED, "null", CODE_NO_SESSION, "POST, GET or DELETE")
        }
    };
    port::carry(answer, carried)
}

/// Nothing is behind any other path, so nothing was asked of a server, and nothing is on record.
async fn nowhere() -> Answer {
    error(
        StatusCode::NOT_FOUND,
        "null",
        CODE_NO_SESSION,
        "there is nothing here; hint: an MCP server is at /mcp/ and its name",
    )
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

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A JSON-RPC error of our own; `id` as it was spelt.
fn error(status: StatusCode, id: &str, code: i32, message: &str) -> Answer {
    json(status, error_body(id, code, message).into())
}

fn error_body(id: &str, code: i32, message: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#).into_bytes()
}

fn json(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    answer
}

async fn count_on(front: Arc<Front>) {
    loop {
        let since = clock::now_us();
        clock::sleep(COUNTS_EVERY).await;
        front.flush_counts(since).await;
    }
}

#[cfg(test)]
mod tests;
