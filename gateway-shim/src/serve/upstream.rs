//! A server over Streamable HTTP: the original bytes go there and come back; what passes is read before it is passed on.
//!
//! What must hold: neither the member's credentials go there, nor the server's word on ours back; a call that is cut takes its
//! connection to the server with it; each connection has a place (`places.rs`) for as long as it is used, and few wait unused.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use custody::{
    id::MemberId,
    wire::{self, Outcome},
};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    Answer, SESSION,
    credential::{Credentials, NoCredential},
    open::{self, Running},
    places::Place,
    proxy::{Came, Proxy},
    queue,
    refusal::{
        CODE_NO_CREDENTIAL, CODE_REVOKED, CODE_TIMEOUT, CODE_TOO_LONG, CODE_UNREACHABLE, CODE_UNREADABLE, REVOKED,
        Refusal, error, json,
    },
    tls,
};
use crate::{
    access::Caller,
    config::Faults,
    forensic,
    mcp::envelope::{self, Message, Request},
    writer::Ending,
};

mod passing;
mod pump;

use passing::Content;
pub(super) use passing::keeps_back;
use pump::{CHUNKS_MAX, Pump};

/// Greatest answer that is no stream: it is read before it goes on, because what it asks for must be on record by then.
const READ_BYTES_MAX: usize = 16 << 20;

/// Bytes of a body that passes nowhere which are read on, so that its connection serves again.
const DROPPED_BYTES_MAX: usize = 64 << 10;
/// Connections to one server that wait unused for the next call.
pub const KEPT_MAX: usize = 16;
/// Words to one server at a time that a request of its own goes no further.
pub const TELLS_MAX: usize = 8;

const NO_ANSWER: &str = "the MCP server's answer is no answer to this request, so it was not passed on";

/// The server.
#[derive(Clone)]
pub(super) struct Upstream {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    credentials: Option<Arc<Credentials>>,
    tells: Arc<Semaphore>,
}

/// The request that an answer is for.
struct Own {
    id: String,
    modern: bool,
    /// `None` if it is only counted.
    running: Option<Running>,
    raw_id: String,
    /// Within a session, while it waits for its answer.
    entered: Option<open::Entered>,
    /// In a header of the answer.
    receipt: Option<Box<wire::ForensicReceipt>>,
}

impl Own {
    fn new(id: String, raw_id: String, modern: bool, running: Option<Running>) -> Self {
        Self { id, modern, running, raw_id, entered: None, receipt: None }
    }

    /// How the call ended, with the receipt in the header where the answer itself has none: what the client keeps is the
    /// answer, so its word is the one on record, and a header that says something else is only logged.
    fn with_receipt(&self, mut ending: Ending) -> Ending {
        let Some(of_header) = &self.receipt else { return ending };
        let learnt = ending.learnt.get_or_insert_default();
        match &learnt.receipt {
            None => learnt.receipt = Some((**of_header).clone()),
            Some(of_result) if of_result.digest != of_header.digest => {
                tracing::warn!("the receipt in an answer's header is not the one in its result, which is on record");
            }
            Some(_) => {}
        }
        ending
    }

    /// Nobody waits for the answer any more. What its client gave up ends with that, whatever became of it then.
    fn end(&self, ending: Ending) {
        let cancelled = self.entered.as_ref().and_then(open::Entered::cancelled) == Some(true);
        let outcome = if cancelled { Outcome::Cancelled } else { ending.outcome };
        end(self.running.as_ref(), Ending { outcome, ..ending });
    }

    /// Enters it among what is open in its session, if it is a call, and in one.
    fn enter(&mut self, proxy: &Proxy, session: Option<&str>) -> Result<(), open::InUse> {
        if let (Some(session), Some(running), false) = (session, &self.running, self.id.is_empty()) {
            self.entered = Some(proxy.open.enter(session, &self.id, running)?);
        }
        Ok(())
    }

    fn error(&self, status: StatusCode, code: i32, text: &str) -> Answer {
        error(status, &self.raw_id, code, text)
    }
}

/// Ends a call that has one.
fn end(running: Option<&Running>, ending: Ending) {
    if let Some(running) = running {
        running.end(ending);
    }
}

/// What an answer that is no success makes of its call.
fn of_status(status: StatusCode, ending: Ending) -> Ending {
    Ending { outcome: Outcome::HttpError, error_code: Some(u32::from(status.as_u16())), ..ending }
}

impl Upstream {
    /// # Errors
    /// [`Faults`]: a URL or a file of the configuration cannot be used.
    pub(super) fn new(
        name: &str,
        url: &str,
        ca: Option<&Path>,
        credentials: Option<Credentials>,
    ) -> Result<Self, Faults> {
        let uri: Uri = url.parse().map_err(|_| Faults(vec![format!("servers.{name}.url is no URL")]))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector =
            tls::connector(&format!("servers.{name}.ca"), connector, uri.scheme_str() == Some("https"), ca)?;
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(KEPT_MAX).build(connector);
        let tells = Arc::new(Semaphore::new(TELLS_MAX));
        Ok(Self { uri, client, credentials: credentials.map(Arc::new), tells })
    }

    /// Whether there is a credential for this caller, where the server needs one.
    pub(super) fn check_credential(&self, caller: &Caller) -> Result<(), Refusal> {
        self.credential(caller.member).map(drop).map_err(|NoCredential| Refusal::no_credential())
    }

    fn credential(&self, member: MemberId) -> Result<Option<(HeaderName, HeaderValue)>, NoCredential> {
        self.credentials.as_ref().map(|credentials| credentials.header(member)).transpose()
    }

    /// Whether each member is known there by a credential of its own.
    pub(super) fn knows_members(&self) -> bool {
        self.credentials.as_ref().is_some_and(|credentials| credentials.are_of_members())
    }

    /// A request of the shim itself: whether what answers is a stream, and its bytes.
    pub(super) async fn ask_itself(&self, came: &Came, body: Bytes) -> Result<(bool, Bytes), String> {
        let response = self.send(Method::POST, came, body).await?;
        let (parts, body) = response.into_parts();
        let content = Content::of(&parts.headers);
        let read = Limited::new(body, READ_BYTES_MAX).collect().await;
        match content {
            Content::Other => Err("its answer is neither JSON nor events".to_owned()),
            _ => Ok((content == Content::Events, read.map_err(|why| why.to_string())?.to_bytes())),
        }
    }

    async fn send(&self, method: Method, came: &Came, body: Bytes) -> Result<Response<Incoming>, String> {
        let mut headers = passing::of_request(&method, &came.headers);
        if let Some((name, value)) = self.credential(came.caller.member).map_err(|NoCredential| "no credential")? {
            headers.insert(name, value);
        }
        let mut request = HttpRequest::new(Full::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        self.client.request(request).await.map_err(|error| error.to_string())
    }

    pub(super) async fn request(
        &self,
        proxy: &Arc<Proxy>,
        came: Came,
        request: Request,
        body: Bytes,
        running: Option<Running>,
    ) -> Answer {
        let place = match proxy.place(&came.caller, running.as_ref()) {
            Ok(place) => place,
            Err(busy) => return proxy.refuse(&came, Some(&request), body.len(), busy).await,
        };
        let deadline = Instant::now() + proxy.call_wait();
        // A call goes on when its client has gone: this task, not the connection's, waits for the server.
        let (proxy, server) = (Arc::clone(proxy), self.clone());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let raw_id = request.raw_id.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut own = Own::new(request.id, request.raw_id, came.is_modern(), running);
            if let Err(open::InUse) = own.enter(&proxy, came.session()) {
                end(own.running.as_ref(), Ending::of(Outcome::Malformed));
                let text = "a request with this id waits for its answer; give each another id";
                return drop(answer.send(own.error(StatusCode::BAD_REQUEST, envelope::NOT_A_MESSAGE, text)));
            }
            let sent = tokio::select! {
                sent = timeout_at(deadline, server.send(Method::POST, &came, body)) => sent,
                () = open::cut(own.running.as_ref()) => {
                    own.end(Ending::of(Outcome::Revoked));
                    return drop(answer.send(own.error(StatusCode::OK, CODE_REVOKED, REVOKED)));
                }
            };
            let (status, code, message) = match sent {
                Ok(Ok(response)) => return begin(&proxy, &came, Some(own), response, deadline, answer).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, server = %proxy.name, "the MCP server cannot be reached");
                    own.end(Ending::of(Outcome::TransportError));
                    (StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server cannot be reached")
                }
                Err(_) => {
                    own.end(Ending::of(Outcome::Timeout));
                    (StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, "the MCP server did not answer in time")
                }
            };
            drop(answer.send(own.error(status, code, message)));
        });
        let gone = |_| error(StatusCode::BAD_GATEWAY, &raw_id, CODE_UNREACHABLE, "the MCP server cannot be reached");
        answered.await.unwrap_or_else(gone)
    }

    /// What has no answer of its own: notifications, answers to the server, and, each with its record, the stream of a session
    /// and its end.
    pub(super) async fn pass(
        &self,
        proxy: &Arc<Proxy>,
        method: Method,
        came: Came,
        body: Bytes,
        (place, running): (Option<Place>, Option<Running>),
    ) -> Answer {
        let sent = tokio::select! {
            sent = tokio::time::timeout(proxy.call_wait(), self.send(method, &came, body)) => sent,
            () = open::cut(running.as_ref()) => return error(StatusCode::OK, "null", CODE_REVOKED, REVOKED),
        };
        match sent {
            Ok(Ok(response)) => {
                let (answer, answered) = tokio::sync::oneshot::channel();
                let (proxy, deadline) = (Arc::clone(proxy), Instant::now() + proxy.call_wait());
                tokio::spawn(async move {
                    let _place = place;
                    let stream = Own::new(String::new(), "null".into(), false, running);
                    begin(&proxy, &came, Some(stream), response, deadline, answer).await;
                });
                let gone = |_| error(StatusCode::BAD_GATEWAY, "null", CODE_UNREACHABLE, "the MCP server broke off");
                answered.await.unwrap_or_else(gone)
            }
            Ok(Err(why)) => {
                tracing::warn!(error = %why, server = %proxy.name, "the MCP server cannot be reached");
                end(running.as_ref(), Ending::of(Outcome::TransportError));
                error(StatusCode::BAD_GATEWAY, "null", CODE_UNREACHABLE, "the MCP server cannot be reached")
            }
            Err(_) => {
                end(running.as_ref(), Ending::of(Outcome::Timeout));
                error(StatusCode::GATEWAY_TIMEOUT, "null", CODE_TIMEOUT, "the MCP server did not answer in time")
            }
        }
    }

    /// Tells the server once that its request goes no further: one that does not hear it has limits of its own, and one that
    /// asks faster than it hears is told of some.
    fn tell(&self, came: &Came, answer: Bytes) {
        let Ok(turn) = Arc::clone(&self.tells).try_acquire_owned() else { return };
        let (server, mut came) = (self.clone(), came.clone());
        came.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        came.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        tokio::spawn(async move {
            drop(tokio::time::timeout(pump::READ_ON, server.send(Method::POST, &came, answer)).await);
            drop(turn);
        });
    }
}

/// The receipt in a header that stands once.
fn of_header(headers: &HeaderMap) -> Option<Box<wire::ForensicReceipt>> {
    let mut values = headers.get_all(forensic::HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => forensic::of_header(value.as_bytes()).map(Box::new),
        _ => None,
    }
}

/// Passes an answer on: what is no stream when all of it was read, a stream event by event.
async fn begin(
    proxy: &Arc<Proxy>,
    came: &Came,
    own: Option<Own>,
    response: Response<Incoming>,
    deadline: Instant,
    answer: tokio::sync::oneshot::Sender<Answer>,
) {
    let Some(mut own) = own else { return };
    let (parts, body) = response.into_parts();
    own.receipt = of_header(&parts.headers).filter(|_| own.running.is_some() && !own.id.is_empty());
    if parts.status == StatusCode::UNAUTHORIZED {
        // It is the shim's credential that is not good there, and the member's client must not take it for its own.
        tracing::error!(server = %proxy.name, "the MCP server does not take the shim's credential");
        own.end(of_status(parts.status, Ending::of(Outcome::HttpError)));
        let text = "the MCP server does not take the credential of the shim; hint: tell whoever runs it";
        return drop(answer.send(own.error(StatusCode::BAD_GATEWAY, CODE_NO_CREDENTIAL, text)));
    }
    if parts.status.is_redirection() {
        // Its client would follow it with the member's token, and call what nobody decided on.
        tracing::error!(server = %proxy.name, "the MCP server redirects, which is not followed; hint: its url in the configuration");
        own.end(of_status(parts.status, Ending::of(Outcome::HttpError)));
        let text = "the MCP server redirects, which is not followed; hint: tell whoever runs the shim";
        return drop(answer.send(own.error(StatusCode::BAD_GATEWAY, CODE_UNREADABLE, text)));
    }
    // Within a session the answer may come on another connection; without one only on this.
    let given = passing::single(&parts.headers, SESSION).filter(|_| !own.modern);
    let session = came.session().or(given).map(str::to_owned);
    let is_stream = own.running.as_ref().is_some_and(super::proxy::is_stream);
    if came.session().is_none() {
        // What began a session may be given up in it; an id that is in use there is that of whoever has it.
        own.enter(proxy, given).ok();
    }
    let content = Content::of(&parts.headers);
    let mut headers = passing::of_answer(&parts.headers, content);
    if own.modern {
        headers.remove(SESSION);
    }
    if content == Content::Events {
        let (chunks, forwarded_chunks) = queue::queue(CHUNKS_MAX);
        let mut stream = Response::new(Body::from_stream(forwarded_chunks));
        (*stream.status_mut(), *stream.headers_mut()) = (parts.status, headers);
        // A client that has gone reads nothing; the stream is read on all the same.
        drop(answer.send(stream));
        let pump = Pump::new(Arc::clone(proxy), came.clone(), session, own, is_stream, parts.status);
        return Box::pin(pump.run(body, chunks, deadline)).await;
    }
    let whole = match content == Content::Json && !is_stream {
        true => whole(proxy, &own, parts.status, body, deadline).await,
        false => without_body(proxy, &own, parts.status, body, deadline).await,
    };
    // However it ended: when its client hears of that, its id is free.
    own.entered = None;
    drop(answer.send(match whole {
        Ok(bytes) => {
            if bytes.is_empty() {
                headers.remove(header::CONTENT_TYPE);
            }
            let mut whole = Response::new(Body::from(bytes));
            (*whole.status_mut(), *whole.headers_mut()) = (parts.status, headers);
            whole
        }
        Err(instead) => instead,
    }));
}

/// Ends the call whose answer is neither JSON nor events: its status passes, and nothing of its body, which a client might read
/// in another way than anybody here.
async fn without_body(
    proxy: &Arc<Proxy>,
    own: &Own,
    status: StatusCode,
    body: Incoming,
    deadline: Instant,
) -> Result<Bytes, Answer> {
    drop(timeout_at(deadline, Limited::new(body, DROPPED_BYTES_MAX).collect()).await);
    let is_answer = !own.id.is_empty() || own.running.as_ref().is_some_and(super::proxy::is_stream);
    let done = match status.is_success() {
        false => of_status(status, Ending::default()),
        true if is_answer => Ending::of(Outcome::TransportError),
        true => Ending::of(Outcome::Ok),
    };
    own.end(done);
    if !status.is_success() || !is_answer {
        return Ok(Bytes::new());
    }
    tracing::warn!(server = %proxy.name, "an answer that is neither JSON nor events is not passed on");
    Err(own.error(StatusCode::BAD_GATEWAY, CODE_UNREADABLE, NO_ANSWER))
}

/// Reads an answer that is no stream, and ends its call; gives what passes of it, or what does instead.
async fn whole(
    proxy: &Arc<Proxy>,
    own: &Own,
    status: StatusCode,
    body: Incoming,
    deadline: Instant,
) -> Result<Bytes, Answer> {
    let read = tokio::select! {
        read = timeout_at(deadline, Limited::new(body, READ_BYTES_MAX).collect()) => read,
        () = open::cut(own.running.as_ref()) => {
            own.end(Ending::of(Outcome::Revoked));
            return Err(own.error(StatusCode::OK, CODE_REVOKED, REVOKED));
        }
    };
    let bytes = match read {
        Ok(Ok(read)) => read.to_bytes(),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            own.end(Ending::of(Outcome::OverLimit));
            let text = "the MCP server's answer is longer than 16 MiB, so it was not passed on";
            return Err(own.error(StatusCode::BAD_GATEWAY, CODE_TOO_LONG, text));
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, server = %proxy.name, "the MCP server broke off");
            own.end(Ending::of(Outcome::TransportError));
            return Err(own.error(StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server broke off"));
        }
        Err(_) => {
            own.end(Ending::of(Outcome::Timeout));
            let text = "the MCP server did not answer in time";
            return Err(own.error(StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, text));
        }
    };
    let length = Ending { response_bytes: bytes.len() as u64, ..Ending::default() };
    let message = envelope::parse(&bytes);
    if own.id.is_empty() {
        // Nothing was asked, so nothing is answered, but why not.
        own.end(if status.is_success() {
            Ending { outcome: Outcome::Ok, ..length }
        } else {
            of_status(status, length)
        });
        let says_why = !status.is_success() && matches!(message, Ok(Message::Answer { .. }) | Err(_));
        return Ok(if says_why { bytes } else { Bytes::new() });
    }
    match (message, &own.running) {
        // Without an id it is about a request that could not be read.
        (Ok(Message::Answer { id, ending, next }), running) if id == own.id || id.is_empty() => {
            let Some(running) = running else { return Ok(bytes) };
            let instead = proxy.hear(running, &bytes, own.with_receipt(ending), next).await;
            own.end(Ending::default());
            match instead {
                Some(instead) => Err(json(StatusCode::OK, instead)),
                None => Ok(bytes),
            }
        }
        // What is no message of JSON-RPC is read by nobody but people.
        (Err(_), _) if !status.is_success() => {
            own.end(of_status(status, length));
            Ok(bytes)
        }
        // Whoever waits for an answer might read one in it, and another one than this reads.
        _ => {
            proxy.unread(bytes.len());
            let broken = Ending { outcome: Outcome::TransportError, ..length };
            own.end(if status.is_success() { broken } else { of_status(status, broken) });
            Err(own.error(StatusCode::BAD_GATEWAY, CODE_UNREADABLE, NO_ANSWER))
        }
    }
}
