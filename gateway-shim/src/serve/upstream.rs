//! A server over Streamable HTTP: the original bytes go there and come back; what passes is read before it is passed on.
//!
//! What must hold: neither the member's credentials go there, nor the server's word on ours back; a call that is cut takes its
//! connection to the server with it.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use custody::{id::MemberId, wire::Outcome};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Answer, SESSION,
    credential::{Credentials, NoCredential},
    open::{self, Running},
    proxy::{Came, Proxy},
    refusal::{
        CODE_NO_CREDENTIAL, CODE_REVOKED, CODE_TIMEOUT, CODE_TOO_LONG, CODE_UNREACHABLE, CODE_UNREADABLE, REVOKED,
        Refusal, error, json,
    },
    text, tls,
};
use crate::{
    access::Caller,
    config::Faults,
    mcp::envelope::{self, Message, Request},
    writer::Ending,
};

mod pump;

use pump::{CHUNKS_MAX, Pump};

/// Greatest answer that is no stream: it is read before it goes on, because what it asks for must be on record by then.
const READ_BYTES_MAX: usize = 16 << 20;

/// Headers that are about one connection, or say who calls: they stay here.
const KEPT: [HeaderName; 14] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::AUTHORIZATION,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::CONTENT_LENGTH,
    // What is compressed could not be read before it goes on.
    header::ACCEPT_ENCODING,
];

/// The server.
#[derive(Clone)]
pub(super) struct Upstream {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    credentials: Option<Arc<Credentials>>,
}

/// The request that an answer is for.
struct Own {
    id: String,
    modern: bool,
    /// `None` if it is only counted.
    running: Option<Running>,
    raw_id: String,
}

impl Own {
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

/// Nobody waits for the answer any more. What its client gave up ends with that, whatever became of it then.
fn over(proxy: &Proxy, session: Option<&str>, own: &Own, ending: Ending) {
    let Some(session) = session else { return end(own.running.as_ref(), ending) };
    let cancelled = proxy.open.state(session, &own.id) == Some(true);
    let outcome = if cancelled { Outcome::Cancelled } else { ending.outcome };
    end(own.running.as_ref(), Ending { outcome, ..ending });
    proxy.open.take(open::Side::Client, session, &own.id);
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
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { uri, client, credentials: credentials.map(Arc::new) })
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

    /// A request of the shim itself: the type of what answers, and its bytes.
    pub(super) async fn ask_itself(&self, came: &Came, body: Bytes) -> Result<(String, Bytes), String> {
        let response = self.send(Method::POST, came, body).await?;
        let (parts, body) = response.into_parts();
        let content = text(&parts.headers, header::CONTENT_TYPE.as_str()).unwrap_or_default().to_owned();
        let read = Limited::new(body, READ_BYTES_MAX).collect().await;
        Ok((content, read.map_err(|why| why.to_string())?.to_bytes()))
    }

    async fn send(&self, method: Method, came: &Came, body: Bytes) -> Result<Response<Incoming>, String> {
        let mut headers = forwarded(&came.headers);
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
        came: &Came,
        request: Request,
        body: Bytes,
        running: Option<Running>,
    ) -> Answer {
        let deadline = Instant::now() + proxy.call_wait();
        // A call goes on when its client has gone: this task, not the connection's, waits for the server.
        let (proxy, server, came) = (Arc::clone(proxy), self.clone(), came.clone());
        let (answer, answered) = tokio::sync::oneshot::channel();
        let raw_id = request.raw_id.clone();
        tokio::spawn(async move {
            let own = Own { id: request.id, modern: came.is_modern(), running, raw_id: request.raw_id };
            // Its client may give it up before the server says anything.
            if let (Some(session), Some(running)) = (came.session(), &own.running) {
                proxy.open.begin(open::Side::Client, session, &own.id, running.clone());
            }
            let sent = tokio::select! {
                sent = timeout_at(deadline, server.send(Method::POST, &came, body)) => sent,
                () = open::cut(own.running.as_ref()) => {
                    over(&proxy, came.session(), &own, Ending::of(Outcome::Revoked));
                    return drop(answer.send(own.error(StatusCode::OK, CODE_REVOKED, REVOKED)));
                }
            };
            let (status, code, message) = match sent {
                Ok(Ok(response)) => return begin(&proxy, &came, Some(own), response, deadline, answer).await,
                Ok(Err(error)) => {
                    tracing::warn!(%error, server = %proxy.name, "the MCP server cannot be reached");
                    over(&proxy, came.session(), &own, Ending::of(Outcome::TransportError));
                    (StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server cannot be reached")
                }
                Err(_) => {
                    over(&proxy, came.session(), &own, Ending::of(Outcome::Timeout));
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
        running: Option<Running>,
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
                    let stream = Own { id: String::new(), modern: false, running, raw_id: "null".into() };
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

    /// Tells the server once that its request goes no further: one that does not hear it has limits of its own.
    fn tell(&self, came: &Came, answer: Bytes) {
        let (server, mut came) = (self.clone(), came.clone());
        came.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        came.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        tokio::spawn(async move {
            drop(tokio::time::timeout(pump::READ_ON, server.send(Method::POST, &came, answer)).await);
        });
    }
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !KEPT.contains(name) && name != "keep-alive" && !named.iter().any(|kept| kept == name.as_str()) {
            out.append(name.clone(), value.clone());
        }
    }
    out
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
    let Some(own) = own else { return };
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::UNAUTHORIZED {
        // It is the shim's credential that is not good there, and the member's client must not take it for its own.
        tracing::error!(server = %proxy.name, "the MCP server does not take the shim's credential");
        over(proxy, came.session(), &own, of_status(parts.status, Ending::of(Outcome::HttpError)));
        let text = "the MCP server does not take the credential of the shim; hint: tell whoever runs it";
        return drop(answer.send(own.error(StatusCode::BAD_GATEWAY, CODE_NO_CREDENTIAL, text)));
    }
    // Within a session the answer may come on another connection; without one only on this.
    let given = text(&parts.headers, SESSION).filter(|_| !own.modern);
    let session = came.session().or(given).map(str::to_owned);
    let is_stream = own.running.as_ref().is_some_and(super::proxy::is_stream);
    // Within a session it has begun when it was sent.
    let begun = own.id.is_empty() || came.session().is_some();
    if let (Some(session), Some(running), false) = (&session, &own.running, begun) {
        proxy.open.begin(open::Side::Client, session, &own.id, running.clone());
    }
    let mut headers = forwarded(&parts.headers);
    if own.modern {
        headers.remove(SESSION);
    }
    let content = text(&parts.headers, header::CONTENT_TYPE.as_str()).unwrap_or_default().to_ascii_lowercase();
    if content.starts_with("text/event-stream") {
        let (chunks, forwarded_chunks) = mpsc::channel(CHUNKS_MAX);
        let mut stream = Response::new(Body::from_stream(ReceiverStream::new(forwarded_chunks)));
        (*stream.status_mut(), *stream.headers_mut()) = (parts.status, headers);
        // A client that has gone reads nothing; the stream is read on all the same.
        drop(answer.send(stream));
        let pump = Pump::new(Arc::clone(proxy), came.clone(), session, own, is_stream, parts.status);
        return pump.run(body, chunks, deadline).await;
    }
    let is_json = content.starts_with("application/json");
    let whole = whole(proxy, session.as_deref(), &own, parts.status, is_json, body, deadline).await;
    drop(answer.send(match whole {
        Ok(bytes) => {
            let mut whole = Response::new(Body::from(bytes));
            (*whole.status_mut(), *whole.headers_mut()) = (parts.status, headers);
            whole
        }
        Err(instead) => instead,
    }));
}

/// Reads an answer that is no stream, and ends its call; gives what passes of it, or what does instead.
async fn whole(
    proxy: &Arc<Proxy>,
    session: Option<&str>,
    own: &Own,
    status: StatusCode,
    is_json: bool,
    body: Incoming,
    deadline: Instant,
) -> Result<Bytes, Answer> {
    let ended = |ending: Ending| over(proxy, session, own, ending);
    let read = tokio::select! {
        read = timeout_at(deadline, Limited::new(body, READ_BYTES_MAX).collect()) => read,
        () = open::cut(own.running.as_ref()) => {
            ended(Ending::of(Outcome::Revoked));
            return Err(own.error(StatusCode::OK, CODE_REVOKED, REVOKED));
        }
    };
    let bytes = match read {
        Ok(Ok(read)) => read.to_bytes(),
        Ok(Err(why)) if why.is::<LengthLimitError>() => {
            ended(Ending::of(Outcome::OverLimit));
            let text = "the MCP server's answer is longer than 16 MiB, so it was not passed on";
            return Err(own.error(StatusCode::BAD_GATEWAY, CODE_TOO_LONG, text));
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, server = %proxy.name, "the MCP server broke off");
            ended(Ending::of(Outcome::TransportError));
            return Err(own.error(StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server broke off"));
        }
        Err(_) => {
            ended(Ending::of(Outcome::Timeout));
            let text = "the MCP server did not answer in time";
            return Err(own.error(StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, text));
        }
    };
    let length = Ending { response_bytes: bytes.len() as u64, ..Ending::default() };
    let Some(running) = own.running.as_ref().filter(|_| !own.id.is_empty()) else {
        ended(if status.is_success() { Ending { outcome: Outcome::Ok, ..length } } else { of_status(status, length) });
        return Ok(bytes);
    };
    let message = if is_json { envelope::parse(&bytes).ok() } else { None };
    match message {
        // Without an id it is about a request that could not be read.
        Some(Message::Answer { id, ending, next }) if id == own.id || id.is_empty() => {
            let instead = proxy.hear(running, &bytes, ending, next).await;
            ended(Ending::default());
            match instead {
                Some(instead) => Err(json(StatusCode::OK, instead)),
                None => Ok(bytes),
            }
        }
        _ if !status.is_success() => {
            ended(of_status(status, length));
            Ok(bytes)
        }
        // Whoever waits for an answer might read one in it, and another one than this reads.
        _ if is_json => {
            proxy.unread(bytes.len());
            ended(Ending { outcome: Outcome::TransportError, ..length });
            let text = "the MCP server's answer is no answer to this request, so it was not passed on";
            Err(own.error(StatusCode::BAD_GATEWAY, CODE_UNREADABLE, text))
        }
        _ => {
            ended(Ending { outcome: Outcome::TransportError, ..length });
            Ok(bytes)
        }
    }
}
