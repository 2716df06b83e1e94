//! A server over Streamable HTTP: the original bytes go there and come back; what passes is read beside that.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request as HttpRequest, Response, StatusCode, Uri, header},
};
use bytes::Bytes;
use custody::wire::Outcome;
use http_body_util::{BodyExt as _, Full};
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
    Admitted, Answer, CODE_NOT_RECORDED, CODE_TIMEOUT, CODE_TOO_LONG, CODE_UNREACHABLE, NOT_RECORDED, Proxy, SESSION,
    Server, error, error_body, open, text, tls,
};
use crate::{
    clock,
    config::Faults,
    gateway::Running,
    mcp::{
        envelope::{self, Message, Request},
        sse,
    },
    writer::{Ending, Refused},
};

/// Greatest JSON answer that is read for its outcome; a longer one is forwarded and its outcome stays unknown.
const READ_BYTES_MAX: usize = 16 << 20;
/// Chunks on their way to a client that reads slowly.
const CHUNKS_MAX: usize = 16;
/// How long an answer is read on after its client has gone: a lost connection is not a cancellation.
const READ_ON: Duration = Duration::from_secs(60);
/// First version without sessions, where closing the stream is the cancellation.
const STATELESS_FROM: &str = "2026-07-28";

/// Headers that are about one connection, or say who calls: they stay here.
const KEPT: [HeaderName; 12] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_LENGTH,
    // What is compressed could not be read beside its forwarding.
    header::ACCEPT_ENCODING,
];

/// The server.
pub(super) struct Upstream {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What is read of an answer while it is forwarded.
enum Reading {
    Json(Vec<u8>),
    Events(sse::Reader),
    Nothing,
}

/// A stream from the server to the client.
struct Pump {
    proxy: Arc<Proxy>,
    session: Option<String>,
    reading: Reading,
    status: StatusCode,
    /// The request that this stream answers; `None` for the GET stream and for what has no answer.
    own: Option<Own>,
    bytes: u64,
    stateless: bool,
    /// Of the client's request, for an answer to the server.
    headers: HeaderMap,
}

struct Own {
    id: String,
    /// As it was spelt.
    raw_id: String,
    /// `None` once it is among the open calls of its session, or only counted.
    running: Option<Running>,
}

impl Upstream {
    /// # Errors
    /// [`Faults`]: a URL or a file of the configuration cannot be used.
    pub(super) fn new(name: &str, url: &str, ca: Option<&Path>) -> Result<Self, Faults> {
        let uri: Uri = url.parse().map_err(|_| Faults(vec![format!("servers.{name}.url is no URL")]))?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = tls::connector(name, connector, uri.scheme_str() == Some("https"), ca)?;
        Ok(Self { uri, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    async fn send(&self, method: Method, headers: &HeaderMap, body: Bytes) -> Result<Response<Incoming>, String> {
        let mut request = HttpRequest::new(Full::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = forwarded(headers);
        self.client.request(request).await.map_err(|error| error.to_string())
    }

    pub(super) async fn request(
        &self,
        proxy: &Arc<Proxy>,
        headers: HeaderMap,
        request: Request,
        body: Bytes,
        admitted: Admitted,
    ) -> Answer {
        let deadline = Instant::now() + proxy.call_wait();
        // A call goes on when its client has gone: this task, not the connection's, waits for the server.
        let (proxy, client) = (Arc::clone(proxy), self.client.clone());
        let server = Self { uri: self.uri.clone(), client };
        let (answer, answered) = tokio::sync::oneshot::channel();
        let raw_id = request.raw_id.clone();
        tokio::spawn(async move {
            let sent = timeout_at(deadline, server.send(Method::POST, &headers, body)).await;
            let failed = |running: Option<Running>, outcome: Outcome| {
                if let Some(running) = running {
                    running.end(Ending::of(outcome));
                }
            };
            let (status, code, message) = match sent {
                Ok(Ok(response)) => {
                    let (id, raw_id) = (request.id.clone(), request.raw_id.clone());
                    let own = Own { id, raw_id, running: admitted.running };
                    let answered = begin(&proxy, &headers, Some((own, &request)), response);
                    // A client that has gone reads nothing; the pump goes on all the same.
                    drop(answer.send(answered));
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the MCP server cannot be reached");
                    failed(admitted.running, Outcome::TransportError);
                    (StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server cannot be reached")
                }
                Err(_) => {
                    failed(admitted.running, Outcome::Timeout);
                    (StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, "the MCP server did not answer in time")
                }
            };
            drop(answer.send(error(status, &request.raw_id, code, message)));
        });
        let gone = |_| error(StatusCode::BAD_GATEWAY, &raw_id, CODE_UNREACHABLE, "the MCP server cannot be reached");
        answered.await.unwrap_or_else(gone)
    }

    /// What has no answer of its own: notifications, answers to the server, the GET stream, the end of a session.
    pub(super) async fn pass(&self, proxy: &Arc<Proxy>, method: Method, headers: HeaderMap, body: Bytes) -> Answer {
        match tokio::time::timeout(proxy.call_wait(), self.send(method, &headers, body)).await {
            Ok(Ok(response)) => begin(proxy, &headers, None, response),
            Ok(Err(why)) => {
                tracing::warn!(error = %why, "the MCP server cannot be reached");
                error(StatusCode::BAD_GATEWAY, "null", CODE_UNREACHABLE, "the MCP server cannot be reached")
            }
            Err(_) => error(StatusCode::GATEWAY_TIMEOUT, "null", CODE_TIMEOUT, "the MCP server did not answer in time"),
        }
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

/// Begins to forward an answer; a task reads on what the client may not.
fn begin(
    proxy: &Arc<Proxy>,
    headers: &HeaderMap,
    own: Option<(Own, &Request)>,
    response: Response<Incoming>,
) -> Answer {
    let (parts, body) = response.into_parts();
    let given = text(&parts.headers, SESSION);
    let session = text(headers, SESSION).or(given).map(str::to_owned);
    if let (Some(session), Some((_, request))) = (given, &own)
        && request.method == "initialize"
    {
        proxy.remember(session, request);
    }
    let protocol = own.as_ref().and_then(|(_, request)| request.protocol.clone());
    let mut own = own.map(|(own, _)| own);
    // Within a session the answer may come on another connection; without one only on this.
    if let (Some(session), Some(own)) = (&session, &mut own)
        && let Some(running) = own.running.take()
    {
        proxy.open.begin(open::Side::Client, session, &own.id, running);
    }
    let content = text(&parts.headers, header::CONTENT_TYPE.as_str()).unwrap_or_default().to_ascii_lowercase();
    let reading = match () {
        () if content.starts_with("text/event-stream") => Reading::Events(sse::Reader::default()),
        () if content.starts_with("application/json") => Reading::Json(Vec::new()),
        () => Reading::Nothing,
    };
    let stateless = session.is_none() && protocol.is_some_and(|version| *version >= *STATELESS_FROM);
    // A stream may lose an event on its way.
    let length = parts.headers.get(header::CONTENT_LENGTH).filter(|_| !matches!(reading, Reading::Events(_))).cloned();
    let headers = headers.clone();
    let pump =
        Pump { proxy: Arc::clone(proxy), session, reading, status: parts.status, own, bytes: 0, stateless, headers };
    let (chunks, forwarded_chunks) = mpsc::channel(CHUNKS_MAX);
    tokio::spawn(pump.run(body, chunks));
    let mut answer = Response::new(Body::from_stream(ReceiverStream::new(forwarded_chunks)));
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = forwarded(&parts.headers);
    if let Some(length) = length {
        answer.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    answer
}

impl Pump {
    async fn run(mut self, mut body: Incoming, chunks: mpsc::Sender<Result<Bytes, std::io::Error>>) {
        let deadline = Instant::now() + self.proxy.call_wait();
        let mut gone_at: Option<Instant> = None;
        let ended = loop {
            // A stream without a call of its own (GET) lasts as long as its client.
            let until = match (&self.own, gone_at) {
                (_, Some(at)) => at + READ_ON,
                (Some(_), None) => deadline,
                (None, None) => Instant::now() + READ_ON * 60 * 24,
            };
            let frame = tokio::select! {
                frame = timeout_at(until, body.frame()) => frame,
                () = chunks.closed(), if gone_at.is_none() => {
                    gone_at = Some(Instant::now());
                    if self.own.is_none() || self.stateless {
                        break Outcome::Cancelled;
                    }
                    continue;
                }
            };
            match frame {
                Err(_) => break Outcome::Timeout,
                Ok(None) => {
                    // What is left unfinished goes on as well: a client may read it.
                    if let Some(rest) = self.rest().await {
                        drop(chunks.send(Ok(rest)).await);
                    }
                    break Outcome::Ok;
                }
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, "the MCP server broke off");
                    let broken = Err(std::io::Error::other("the MCP server broke off"));
                    drop(chunks.send(broken).await);
                    break Outcome::TransportError;
                }
                Ok(Some(Ok(frame))) => {
                    let Ok(chunk) = frame.into_data() else { continue };
                    let mut chunk = self.read(chunk).await;
                    if self.is_over_limit() {
                        tracing::warn!(
                            bytes = sse::EVENT_BYTES_MAX,
                            "the MCP server's event is longer, and ends its stream"
                        );
                        chunk = [chunk, self.told_over_limit()].concat().into();
                        drop(chunks.send(Ok(chunk)).await);
                        break Outcome::OverLimit;
                    }
                    if gone_at.is_none() && !chunk.is_empty() && chunks.send(Ok(chunk)).await.is_err() {
                        gone_at = Some(Instant::now());
                    }
                }
            }
        };
        drop(chunks);
        self.end(ended, deadline).await;
    }

    /// Reads a chunk, and gives what may go on by now: an event only when it is whole, because what the server asks for is
    /// recorded before the client sees it.
    async fn read(&mut self, chunk: Bytes) -> Bytes {
        self.bytes += chunk.len() as u64;
        match &mut self.reading {
            Reading::Json(bytes) if bytes.len() + chunk.len() <= READ_BYTES_MAX => bytes.extend_from_slice(&chunk),
            Reading::Json(_) => self.reading = Reading::Nothing,
            Reading::Events(reader) => {
                let pieces = reader.push(&chunk);
                return self.admit(pieces).await;
            }
            Reading::Nothing => {}
        }
        chunk
    }

    fn is_over_limit(&self) -> bool {
        matches!(&self.reading, Reading::Events(reader) if reader.over_limit)
    }

    /// What the client reads instead of an event that is too long: an answer to its request, if it waits for one here.
    fn told_over_limit(&self) -> Bytes {
        let Some(own) = &self.own else { return Bytes::new() };
        let text = "the MCP server's event is longer than 16 MiB, so it was not passed on";
        sse::event(&error_body(&own.raw_id, CODE_TOO_LONG, text))
    }

    /// What a stream that has ended left behind its last whole event.
    async fn rest(&mut self) -> Option<Bytes> {
        let Reading::Events(reader) = &mut self.reading else { return None };
        let rest = reader.rest()?;
        Some(self.admit(vec![rest]).await)
    }

    async fn admit(&mut self, pieces: Vec<sse::Piece>) -> Bytes {
        let mut admitted = Vec::new();
        for piece in pieces {
            let goes_on = match &piece.data {
                Some(data) => self.message(data).await.is_ok(),
                None => true,
            };
            if goes_on {
                admitted.extend(piece.raw);
            }
        }
        admitted.into()
    }

    /// Takes note of a message; an error says that it must not go on.
    async fn message(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        match envelope::parse(bytes) {
            Ok(Message::Answer { id, ending }) => self.answered(&id, ending),
            Ok(Message::Request(request)) => {
                let session = self.session.clone().unwrap_or_default();
                let asked = self.proxy.ask_back(&session, &request, bytes.len()).await;
                return asked.inspect_err(|_| self.refuse(&request));
            }
            Ok(Message::Notification { method, .. }) => self.proxy.count(&method),
            // Another reader might find a request in it.
            Err(_) if matches!(self.reading, Reading::Events(_)) => {
                self.proxy.unread(bytes.len());
                return Err(Refused::NotARecord);
            }
            // A client finds that as well; nobody takes the body of an answer for a request.
            Err(_) => {}
        }
        Ok(())
    }

    /// Tells the server that its request goes no further.
    fn refuse(&self, request: &Request) {
        let (proxy, mut headers) = (Arc::clone(&self.proxy), self.headers.clone());
        let answer = error_body(&request.raw_id, CODE_NOT_RECORDED, NOT_RECORDED);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        tokio::spawn(async move {
            let Server::Http(server) = &proxy.server else { return };
            // It is told once: a server that does not hear it has limits of its own.
            drop(tokio::time::timeout(READ_ON, server.send(Method::POST, &headers, answer.into())).await);
        });
    }

    fn answered(&mut self, id: &str, ending: Ending) {
        let own = self.own.as_mut().filter(|own| own.id == id).and_then(|own| own.running.take());
        match (own, &self.session) {
            (Some(running), _) => running.end(ending),
            (None, Some(session)) => self.proxy.open.finish(open::Side::Client, session, id, ending),
            (None, None) => {}
        }
    }

    async fn end(mut self, ended: Outcome, deadline: Instant) {
        if let Reading::Json(bytes) = &mut self.reading {
            let bytes = std::mem::take(bytes);
            // It went on as it came: what answers a request as JSON is an answer, or nothing that a client reads.
            self.message(&bytes).await.ok();
        }
        let Some(own) = self.own.take() else { return };
        let mut ending = Ending { response_bytes: self.bytes, ..Ending::of(ended) };
        let resumable = matches!(&self.reading, Reading::Events(reader) if reader.resumable);
        if ended == Outcome::OverLimit {
            // As it is: nothing of it may be read later either.
        } else if !self.status.is_success() {
            ending = Ending { error_code: Some(u32::from(self.status.as_u16())), ..ending };
            ending.outcome = Outcome::HttpError;
        } else if ended == Outcome::Ok {
            // It ended well, without an answer that could be read.
            ending.outcome =
                if matches!(self.reading, Reading::Nothing) { Outcome::Unknown } else { Outcome::TransportError };
        }
        if let Some(running) = own.running {
            return running.end(ending);
        }
        let Some(session) = &self.session else { return };
        let Some(cancelled) = self.proxy.open.state(session, &own.id) else { return };
        if cancelled {
            ending.outcome = Outcome::Cancelled;
        } else if resumable && self.status.is_success() && ![Outcome::Timeout, Outcome::OverLimit].contains(&ended) {
            // The client may take the stream up again; the answer is then seen there.
            clock::sleep_until(deadline).await;
            ending.outcome = Outcome::Timeout;
        }
        self.proxy.open.finish(open::Side::Client, session, &own.id, ending);
    }
}
