//! A server over stdio, one process for each session: lines in, lines out.
//!
//! What must hold: a process is begun by `initialize` and ends with its session; its environment is what the configuration
//! gives; its stderr goes nowhere, because it may repeat arguments and results; whatever waits for a process that ends is
//! answered; an answer is lost only with its connection, and nothing of a request is left behind it.

use std::{
    collections::{HashMap, VecDeque},
    process::Stdio as Pipe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use custody::{
    id::hex,
    wire::{self, Outcome, ServerState, gateway_event::Event, record::Kind},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{Notify, mpsc, oneshot},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{
    Answer, SESSION,
    open::Running,
    proxy::Proxy,
    refusal::{CODE_NO_SESSION, CODE_TIMEOUT, CODE_UNREACHABLE, Refusal, error, error_body, json},
    text,
};
use crate::{
    clock,
    config::ServerConfig,
    gateway::Gateway,
    mcp::{
        envelope::{self, Message, Request},
        sse,
    },
    random,
    writer::Ending,
};

/// Greatest line of a process that is forwarded; a longer one ends it, because nothing behind it can be told apart.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Lines that wait for a process that reads slowly.
const INBOX_MAX: usize = 64;
/// Messages that wait for one client, or for a GET stream that is not open yet; older ones go first there.
const WAITING_MAX: usize = 256;
/// How long a process may take for what the shim asks itself.
const OWN_WAIT: Duration = Duration::from_secs(10);
/// How long a process may take to end by itself after its stdin was closed.
const END_WAIT: Duration = Duration::from_secs(5);

/// All sessions of one server.
pub(super) struct Stdio {
    name: String,
    config: ServerConfig,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

/// What a request's connection is told last.
enum Told {
    /// The answer.
    Answer(Bytes),
    /// There will be none.
    Failed(StatusCode, i32, &'static str),
}

/// What a request's connection is told.
struct Hears {
    /// What comes before the end: progress, or requests of the server.
    messages: mpsc::Receiver<Bytes>,
    /// Has a place of its own, however many messages nobody reads.
    end: oneshot::Receiver<Told>,
}

/// A request that waits for its answer.
struct Waiting {
    messages: mpsc::Sender<Bytes>,
    end: oneshot::Sender<Told>,
    running: Option<Running>,
    progress: Option<String>,
    cancelled: bool,
    /// Tells it from another request under the same id.
    serial: u64,
    /// Dropped with it, which ends the task that waits for its time to pass.
    _waits: oneshot::Sender<()>,
}

#[derive(Default)]
struct Inner {
    waiting: HashMap<String, Waiting>,
    next_serial: u64,
    /// Ids in the order in which they came.
    order: VecDeque<String>,
    listener: Option<mpsc::Sender<Bytes>>,
    /// For the GET stream, while it is not open.
    backlog: VecDeque<Bytes>,
    ended: bool,
}

struct Session {
    id: String,
    stdin: mpsc::Sender<Bytes>,
    inner: Mutex<Inner>,
    /// Asked to end.
    end: Notify,
    /// The process has ended.
    over: tokio::sync::watch::Sender<bool>,
}

impl Stdio {
    pub(super) fn new(name: &str, config: &ServerConfig) -> Arc<Self> {
        Arc::new(Self { name: name.to_owned(), config: config.clone(), sessions: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, headers: &HeaderMap) -> Result<Arc<Session>, (StatusCode, &'static str)> {
        let Some(id) = text(headers, SESSION) else {
            return Err((StatusCode::BAD_REQUEST, "Bad Request: no session; begin with initialize"));
        };
        self.lock().get(id).map(Arc::clone).ok_or((StatusCode::NOT_FOUND, "Not Found: no such session"))
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        proxy: &Arc<Proxy>,
        headers: &HeaderMap,
        request: Request,
        body: &Bytes,
        running: Option<Running>,
    ) -> Answer {
        let begins = request.method == "initialize" && !headers.contains_key(SESSION);
        let found = if begins { self.begin(proxy).await } else { self.session(headers) };
        let session = match found {
            Ok(session) => session,
            Err((status, message)) => {
                if let Some(running) = running {
                    let ending = Ending::of(Outcome::HttpError);
                    running.end(Ending { error_code: Some(u32::from(status.as_u16())), ..ending });
                }
                return error(status, &request.raw_id, CODE_NO_SESSION, message);
            }
        };
        let hears = session.ask(proxy.call_wait(), &request, body, running);
        let mut answer = answer_of(&request, hears).await;
        if let Ok(value) = HeaderValue::from_str(&session.id) {
            answer.headers_mut().insert(SESSION, value);
        }
        answer
    }

    /// A request of the shim itself within a session, and its answer.
    pub(super) async fn ask_itself(&self, headers: &HeaderMap, body: &Bytes) -> Result<Bytes, String> {
        let session = self.session(headers).map_err(|(_, why)| why.to_owned())?;
        let Ok(Message::Request(request)) = envelope::parse(body) else { return Err("it is no request".to_owned()) };
        let hears = session.ask(OWN_WAIT, &request, body, None);
        match hears.end.await {
            Ok(Told::Answer(line)) => Ok(line),
            Ok(Told::Failed(_, _, why)) => Err(why.to_owned()),
            Err(_) => Err("the MCP server ended".to_owned()),
        }
    }

    /// What has no answer of its own.
    pub(super) async fn pass(&self, headers: &HeaderMap, body: &Bytes) -> Answer {
        match self.session(headers) {
            Ok(session) => {
                if let Ok(Message::Notification { cancels: Some(id), .. }) = envelope::parse(body) {
                    session.cancel(&id);
                }
                match session.stdin.send(one_line(body)).await {
                    Ok(()) => empty(StatusCode::ACCEPTED),
                    Err(_) => error(StatusCode::NOT_FOUND, "null", CODE_NO_SESSION, "Not Found: the session has ended"),
                }
            }
            Err((status, message)) => error(status, "null", CODE_NO_SESSION, message),
        }
    }

    /// The GET stream: what the process says outside of any request.
    pub(super) fn listen(&self, headers: &HeaderMap) -> Answer {
        match self.session(headers) {
            Ok(session) => match session.listen() {
                Some(messages) => events(ReceiverStream::new(messages).map(|message| sse::event(&message))),
                None => error(StatusCode::CONFLICT, "null", CODE_NO_SESSION, "this session has a stream already"),
            },
            Err((status, message)) => error(status, "null", CODE_NO_SESSION, message),
        }
    }

    pub(super) fn end(&self, headers: &HeaderMap) -> Answer {
        match self.session(headers) {
            Ok(session) => {
                self.lock().remove(&session.id);
                session.end.notify_one();
                empty(StatusCode::OK)
            }
            Err((status, message)) => error(status, "null", CODE_NO_SESSION, message),
        }
    }

    /// Ends a session whose member may ask nothing here any more.
    pub(super) fn end_session(&self, id: &str) {
        if let Some(session) = self.lock().remove(id) {
            session.end.notify_one();
        }
    }

    /// Ends all sessions and waits for their processes.
    pub(super) async fn end_all(&self) {
        let sessions: Vec<_> = self.lock().drain().map(|(_, session)| session).collect();
        for session in &sessions {
            session.end.notify_one();
        }
        for session in sessions {
            let mut over = session.over.subscribe();
            // The wait is bounded by the life of a process that was asked to end.
            drop(over.wait_for(|over| *over).await);
        }
    }

    async fn begin(self: &Arc<Self>, proxy: &Arc<Proxy>) -> Result<Arc<Session>, (StatusCode, &'static str)> {
        let too_many = self.lock().len() >= self.config.sessions_max;
        if too_many {
            return Err((StatusCode::SERVICE_UNAVAILABLE, "too many sessions; end one, or try again later"));
        }
        let mut child = spawn(&self.config).map_err(|error| {
            tracing::error!(%error, "failed to start the MCP server; hint: check its command");
            (StatusCode::BAD_GATEWAY, "the MCP server cannot be started")
        })?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            return Err((StatusCode::BAD_GATEWAY, "the MCP server cannot be started"));
        };
        let (lines, inbox) = mpsc::channel(INBOX_MAX);
        let session = Arc::new(Session {
            id: hex(&random::bytes::<16>()),
            stdin: lines,
            inner: Mutex::default(),
            end: Notify::new(),
            over: tokio::sync::watch::Sender::new(false),
        });
        self.lock().insert(session.id.clone(), Arc::clone(&session));
        life(&proxy.gateway, &self.name, ServerState::Started, None).await;
        let (stdio, proxy) = (Arc::clone(self), Arc::clone(proxy));
        let of_task = Arc::clone(&session);
        tokio::spawn(async move { stdio.live(&proxy, &of_task, child, stdin, inbox, stdout).await });
        Ok(session)
    }

    /// The life of one process, from its start to its record of ending.
    async fn live(
        &self,
        proxy: &Arc<Proxy>,
        session: &Arc<Session>,
        mut child: Child,
        stdin: ChildStdin,
        inbox: mpsc::Receiver<Bytes>,
        stdout: ChildStdout,
    ) {
        let (stop_writing, stopped) = oneshot::channel();
        let writing = tokio::spawn(write_lines(stdin, inbox, stopped));
        let asked = tokio::select! {
            () = session.end.notified() => true,
            () = read_lines(proxy, session, stdout) => false,
        };
        // Closes its stdin, which asks a server over stdio to end. It may be closed already.
        stop_writing.send(()).ok();
        drop(writing.await);
        let status = match tokio::time::timeout(END_WAIT, child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                if let Err(error) = child.kill().await {
                    tracing::error!(%error, "failed to end the MCP server's process");
                }
                None
            }
        };
        session.close();
        self.lock().remove(&session.id);
        let state = if asked { ServerState::Stopped } else { ServerState::Crashed };
        let exit_code = status.and_then(|status| status.code()).map(i32::cast_unsigned);
        life(&proxy.gateway, &self.name, state, exit_code).await;
        session.over.send_replace(true);
    }
}

fn spawn(config: &ServerConfig) -> std::io::Result<Child> {
    let (program, arguments) = config.command.split_first().ok_or(std::io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&config.environment);
    if let Some(path) = std::env::var_os("PATH").filter(|_| !config.environment.contains_key("PATH")) {
        command.env("PATH", path);
    }
    command.stdin(Pipe::piped()).stdout(Pipe::piped()).stderr(Pipe::null());
    command.process_group(0).kill_on_drop(true).spawn()
}

/// Records that a process began or ended.
async fn life(gateway: &Gateway, server: &str, state: ServerState, exit_code: Option<u32>) {
    let life = wire::ServerLife { server: server.to_owned(), state: state as i32, exit_code };
    let event = wire::GatewayEvent { at: clock::now_us(), event: Some(Event::ServerLife(life)) };
    if let Err(refused) = gateway.record(Kind::GatewayEvent(event)).await {
        tracing::error!(%refused, state = state.as_str_name(), "the life of a server is not recorded");
    }
}

async fn write_lines(mut stdin: ChildStdin, mut inbox: mpsc::Receiver<Bytes>, mut stopped: oneshot::Receiver<()>) {
    loop {
        let line = tokio::select! {
            line = inbox.recv() => line,
            _ = &mut stopped => None,
        };
        let Some(line) = line else { return };
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        // A process that reads nothing more is ending: its stdout tells.
        tokio::select! {
            done = written => if done.is_err() { return },
            _ = &mut stopped => return,
        }
    }
}

async fn read_lines(proxy: &Arc<Proxy>, session: &Arc<Session>, stdout: ChildStdout) {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        let whole = line.last() == Some(&b'\n');
        if !matches!(read, Ok(1..)) || (!whole && line.len() as u64 >= LINE_BYTES_MAX) {
            return;
        }
        let line = Bytes::from(line.trim_ascii().to_vec());
        match envelope::parse(&line) {
            Ok(Message::Answer { id, ending, next }) => {
                let Some(waiting) = session.take_if(&id, |_| true) else { continue };
                let instead = match &waiting.running {
                    Some(running) => proxy.hear(running, &line, ending, next).await,
                    None => None,
                };
                waiting.answered(instead.unwrap_or(line));
            }
            Ok(Message::Request(request)) => match proxy.ask_back(&session.id, None, &request, line.len()).await {
                Ok(()) => session.say(line, None).await,
                Err(refusal) => session.refuse(&request, &refusal),
            },
            Ok(Message::Notification { method, progress, .. }) => {
                proxy.noted(&method);
                session.say(line, progress.as_deref()).await;
            }
            // Some servers print banners; empty lines are nothing.
            Err(_) if line.is_empty() => {}
            Err(_) => proxy.unread(line.len()),
        }
    }
}

/// A body as one line: line breaks in JSON stand between tokens only.
fn one_line(body: &[u8]) -> Bytes {
    let mut line: Vec<u8> = body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
    line.push(b'\n');
    line.into()
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to the process, which has so long for its answer.
    fn ask(self: &Arc<Self>, wait: Duration, request: &Request, body: &Bytes, running: Option<Running>) -> Hears {
        let (tells, messages) = mpsc::channel(WAITING_MAX);
        let (ends, end) = oneshot::channel();
        let (waits, answered) = oneshot::channel();
        let hears = Hears { messages, end };
        let serial = {
            let mut inner = self.lock();
            let serial = inner.next_serial;
            let waiting = Waiting {
                messages: tells,
                end: ends,
                running,
                progress: request.progress.clone(),
                cancelled: false,
                serial,
                _waits: waits,
            };
            // The record ends with that, too.
            if inner.ended {
                let text = "Not Found: the session has ended";
                waiting.fail(Outcome::TransportError, StatusCode::NOT_FOUND, CODE_NO_SESSION, text);
                return hears;
            }
            if inner.waiting.contains_key(&request.id) {
                let text = "a request with this id waits for its answer; give each another id";
                waiting.fail(Outcome::Malformed, StatusCode::BAD_REQUEST, envelope::NOT_A_MESSAGE, text);
                return hears;
            }
            inner.next_serial += 1;
            // What the shim asks itself hears its answer alone.
            if waiting.running.is_some() {
                inner.order.push_back(request.id.clone());
            }
            inner.waiting.insert(request.id.clone(), waiting);
            serial
        };
        let (session, id, line) = (Arc::clone(self), request.id.clone(), one_line(body));
        tokio::spawn(async move {
            let over = async {
                // A process that takes nothing more is ending, and its end is told to all that wait.
                session.stdin.send(line).await.ok();
                // Nothing is ever sent: it ends with the request.
                answered.await.ok();
            };
            if tokio::time::timeout(wait, over).await.is_err() {
                session.late(&id, serial);
            }
        });
        hears
    }

    /// The time of a request has passed. An answer may have come at the same moment, and the id be another's by now.
    fn late(&self, id: &str, serial: u64) {
        if let Some(waiting) = self.take_if(id, |waiting| waiting.serial == serial) {
            let outcome = if waiting.cancelled { Outcome::Cancelled } else { Outcome::Timeout };
            let text = "the MCP server did not answer in time";
            waiting.fail(outcome, StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, text);
        }
    }

    /// Tells the process that its request goes no further. One that reads nothing is not waited for: its stdout is read on.
    fn refuse(&self, request: &Request, refusal: &Refusal) {
        let answer = error_body(&request.raw_id, refusal.code, &refusal.text);
        drop(self.stdin.try_send(one_line(&answer)));
    }

    fn take_if(&self, id: &str, which: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let mut inner = self.lock();
        if !inner.waiting.get(id).is_some_and(which) {
            return None;
        }
        inner.order.retain(|waiting| waiting != id);
        inner.waiting.remove(id)
    }

    fn cancel(&self, id: &str) {
        if let Some(waiting) = self.lock().waiting.get_mut(id) {
            waiting.cancelled = true;
        }
    }

    /// Something that is no answer goes to the request that it belongs to, else to the GET stream, else to the oldest request.
    async fn say(&self, line: Bytes, progress: Option<&str>) {
        let to = {
            let inner = self.lock();
            let belongs = |waiting: &&Waiting| progress.is_some() && waiting.progress.as_deref() == progress;
            let of_progress = inner.waiting.values().find(belongs);
            let oldest = || inner.order.front().and_then(|id| inner.waiting.get(id));
            match (of_progress, &inner.listener) {
                (Some(waiting), _) => Some(waiting.messages.clone()),
                (None, Some(listener)) if !listener.is_closed() => None,
                (None, _) => oldest().map(|waiting| waiting.messages.clone()),
            }
        };
        match to {
            // A connection that does not read holds up nobody: what finds its queue full is let go.
            Some(messages) => drop(messages.try_send(line)),
            None => {
                let mut inner = self.lock();
                let unsent = match &inner.listener {
                    Some(listener) => listener.try_send(line).err().map(|error| error.into_inner()),
                    None => Some(line),
                };
                inner.backlog.extend(unsent);
                while inner.backlog.len() > WAITING_MAX {
                    inner.backlog.pop_front();
                }
            }
        }
    }

    fn listen(&self) -> Option<mpsc::Receiver<Bytes>> {
        let mut inner = self.lock();
        if inner.listener.as_ref().is_some_and(|listener| !listener.is_closed()) {
            return None;
        }
        let (listener, messages) = mpsc::channel(WAITING_MAX * 2);
        while let Some(line) = inner.backlog.pop_front() {
            drop(listener.try_send(line));
        }
        inner.listener = Some(listener);
        Some(messages)
    }

    /// The process has ended: whatever waits is told.
    fn close(&self) {
        let waiting: Vec<Waiting> = {
            let mut inner = self.lock();
            inner.ended = true;
            inner.listener = None;
            inner.order.clear();
            inner.waiting.drain().map(|(_, waiting)| waiting).collect()
        };
        for waiting in waiting {
            let outcome = if waiting.cancelled { Outcome::Cancelled } else { Outcome::TransportError };
            waiting.fail(outcome, StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server ended");
        }
    }
}

impl Waiting {
    /// Its call has ended by then.
    fn answered(self, line: Bytes) {
        // The connection may be gone; the outcome is recorded all the same.
        drop(self.end.send(Told::Answer(line)));
    }

    fn fail(self, outcome: Outcome, status: StatusCode, code: i32, text: &'static str) {
        if let Some(running) = self.running {
            running.end(Ending::of(outcome));
        }
        drop(self.end.send(Told::Failed(status, code, text)));
    }
}

/// The answer as JSON if it comes first, else a stream that ends with it.
async fn answer_of(request: &Request, mut hears: Hears) -> Answer {
    // Its sender goes with the request: the end is there by then.
    let first = hears.messages.recv().await;
    let end = async move {
        let gone = Told::Failed(StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server ended");
        hears.end.await.unwrap_or(gone)
    };
    let Some(first) = first else {
        return match end.await {
            Told::Answer(line) => json(StatusCode::OK, line),
            Told::Failed(status, code, text) => error(status, &request.raw_id, code, text),
        };
    };
    let rest = ReceiverStream::new(hears.messages).map(|message| sse::event(&message));
    let raw_id = request.raw_id.clone();
    let end = futures::stream::once(async move {
        match end.await {
            Told::Answer(line) => sse::event(&line),
            Told::Failed(_, code, text) => sse::event(&error_body(&raw_id, code, text)),
        }
    });
    events(tokio_stream::once(sse::event(&first)).chain(rest).chain(end))
}

fn events(stream: impl tokio_stream::Stream<Item = Bytes> + Send + 'static) -> Answer {
    let mut answer = Response::new(Body::from_stream(stream.map(Ok::<_, std::convert::Infallible>)));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests;
