//! Who waits for what of one process.
//!
//! What must hold: a request has one answer, and nothing is left of it behind that; what is no answer goes to the request
//! that it belongs to, and never to somebody else's session. Without a session the shim counts the requests itself, because
//! several clients of one member share the process, and gives each its own ids and tokens back.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::http::StatusCode;
use bytes::Bytes;
use custody::{id::hex, wire::Outcome};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    super::{
        open::Running,
        refusal::{CODE_NO_SESSION, CODE_TIMEOUT, CODE_UNREACHABLE, Refusal, error_body},
    },
    pipes::one_line,
    room::{Held, Room},
};
use crate::{
    access::Caller,
    mcp::{
        envelope::{self, Message, Request},
        rewrite,
    },
    random,
    server::{pool::End, probe::DISCOVER},
    writer::Ending,
};

/// Messages that wait for one client, or for a GET stream that is not open yet, if there is room for them; older ones go first
/// there.
pub(super) const WAITING_MAX: usize = 256;
/// Asks whether a process with a session is there. Its id is one that no client has taken: what asks under another's id is not
/// asked.
fn ping() -> String {
    format!(r#"{{"jsonrpc":"2.0","id":"custody-{}","method":"ping"}}"#, hex(&random::bytes::<16>()))
}

/// The request whose answer is a stream that ends when its client goes.
const LISTEN: &str = "subscriptions/listen";

/// What a request's connection is told last.
#[derive(Debug)]
pub(super) enum Told {
    /// The answer.
    Answer(StatusCode, Bytes),
    /// There will be none.
    Failed(StatusCode, i32, &'static str),
    /// There is none, and none was promised.
    Over,
}

/// What a request's connection is told.
pub(super) struct Hears {
    /// What comes before the end: progress, or requests of the server.
    pub(super) messages: mpsc::Receiver<Held>,
    /// Has a place of its own, however many messages nobody reads.
    pub(super) end: oneshot::Receiver<Told>,
    /// Dropped with the connection.
    pub(super) here: oneshot::Sender<()>,
}

/// How its client spelt what went out under another id.
struct Spelt {
    id: String,
    token: Option<String>,
}

/// A request that waits for its answer.
pub(super) struct Waiting {
    messages: mpsc::Sender<Held>,
    end: oneshot::Sender<Told>,
    running: Option<Running>,
    progress: Option<String>,
    spelt: Option<Spelt>,
    cancelled: bool,
    /// Asked by the shim itself.
    own: bool,
    /// Tells it from another request under the same id.
    pub(super) serial: u64,
    /// Dropped with it, which ends the task that waits for its time to pass.
    _waits: oneshot::Sender<()>,
}

pub(super) struct Inner {
    pub(super) waiting: HashMap<String, Waiting>,
    next_serial: u64,
    /// Ids in the order in which they came.
    pub(super) order: VecDeque<String>,
    listener: Option<mpsc::Sender<Held>>,
    /// For the GET stream, while it is not open.
    backlog: VecDeque<Held>,
    /// When somebody else than the shim asked or was answered.
    last: Instant,
    ended: bool,
}

/// Whose process it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That of a client that began a session, which has this id.
    OfClient(String),
    /// That of all clients of one member.
    Sessionless,
}

/// One process, as its clients see it.
pub(super) struct Session {
    kind: Kind,
    stdin: mpsc::Sender<Bytes>,
    room: Room,
    inner: Mutex<Inner>,
    /// How its end is asked for.
    end: Arc<End>,
    /// Something was answered.
    ready: watch::Sender<bool>,
    ended: AtomicBool,
}

impl Session {
    pub(super) fn new(kind: Kind, stdin: mpsc::Sender<Bytes>, end: Arc<End>) -> Arc<Self> {
        let inner = Inner {
            waiting: HashMap::new(),
            next_serial: 0,
            order: VecDeque::new(),
            listener: None,
            backlog: VecDeque::new(),
            last: Instant::now(),
            ended: false,
        };
        // One without a session was asked whether it is there before anybody else asks it anything.
        let ready = watch::Sender::new(kind == Kind::Sessionless);
        let (inner, ended) = (Mutex::new(inner), AtomicBool::new(false));
        Arc::new(Self { kind, stdin, room: Room::default(), inner, end, ready, ended })
    }

    /// Its id, if it is a session.
    pub(super) fn id(&self) -> Option<&str> {
        match &self.kind {
            Kind::OfClient(id) => Some(id),
            Kind::Sessionless => None,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self) {
        self.end.ask();
    }

    /// From here on nobody begins to ask it anything, and its place becomes free.
    pub(super) fn set_ended(&self) {
        self.end.ask();
        self.ended.store(true, Ordering::Release);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Returns when it has answered something.
    pub(super) async fn ready(&self) {
        // Its sender is here.
        drop(self.ready.subscribe().wait_for(|ready| *ready).await);
    }

    /// Whether it has answered anything, also what the shim asked.
    pub(super) fn has_answered(&self) -> bool {
        *self.ready.borrow()
    }

    /// Sends a line as it is.
    pub(super) async fn send(&self, line: Bytes) -> Result<(), mpsc::error::SendError<Bytes>> {
        self.lock().last = Instant::now();
        self.stdin.send(line).await
    }

    /// Sends a request to the process, which has so long for its answer.
    pub(super) fn ask(
        self: &Arc<Self>,
        wait: Duration,
        request: &Request,
        body: &Bytes,
        running: Option<Running>,
    ) -> Hears {
        self.put(wait, request, body, running, false)
    }

    /// Asks the process whether it is there. `None`: it ended.
    pub(super) async fn question(self: &Arc<Self>, wait: Duration) -> Option<Told> {
        let line = Bytes::from(if self.id().is_some() { ping() } else { DISCOVER.to_owned() });
        let Ok(Message::Request(request)) = envelope::parse(&line) else { return None };
        let hears = self.put(wait, &request, &line, None, true);
        hears.end.await.ok()
    }

    /// A request of the shim itself, and its answer.
    pub(super) async fn ask_itself(self: &Arc<Self>, wait: Duration, body: &Bytes) -> Result<Bytes, String> {
        let Ok(Message::Request(request)) = envelope::parse(body) else { return Err("it is no request".to_owned()) };
        match self.put(wait, &request, body, None, true).end.await {
            Ok(Told::Answer(_, line)) => Ok(line),
            Ok(Told::Failed(_, _, why)) => Err(why.to_owned()),
            Ok(Told::Over) | Err(_) => Err("the MCP server ended".to_owned()),
        }
    }

    fn put(
        self: &Arc<Self>,
        wait: Duration,
        request: &Request,
        body: &Bytes,
        running: Option<Running>,
        own: bool,
    ) -> Hears {
        let (tells, messages) = mpsc::channel(WAITING_MAX);
        let (ends, end) = oneshot::channel();
        let (waits, answered) = oneshot::channel();
        let (here, gone) = oneshot::channel();
        let hears = Hears { messages, end, here };
        let (id, serial, line) = {
            let mut inner = self.lock();
            let serial = inner.next_serial;
            let (id, line, spelt, progress) = self.under_its_id(serial, request, body);
            let waiting = Waiting {
                messages: tells,
                end: ends,
                running,
                progress,
                spelt,
                cancelled: false,
                own,
                serial,
                _waits: waits,
            };
            // The record ends with that, too.
            if inner.ended {
                let text = "Not Found: the session has ended";
                waiting.fail(Outcome::TransportError, StatusCode::NOT_FOUND, CODE_NO_SESSION, text);
                return hears;
            }
            if inner.waiting.contains_key(&id) {
                let text = "a request with this id waits for its answer; give each another id";
                waiting.fail(Outcome::Malformed, StatusCode::BAD_REQUEST, envelope::NOT_A_MESSAGE, text);
                return hears;
            }
            inner.next_serial += 1;
            inner.order.push_back(id.clone());
            inner.waiting.insert(id.clone(), waiting);
            if !own {
                inner.last = Instant::now();
            }
            (id, serial, line)
        };
        let (session, leaves) = (Arc::clone(self), self.id().is_none() && !own);
        // Its end is its client's to say, where the shim sees it leave.
        let wait = if leaves && request.method == LISTEN { Duration::MAX } else { wait };
        tokio::spawn(async move {
            let over = async {
                // A process that takes nothing more is ending, and its end is told to all that wait.
                session.stdin.send(line).await.ok();
                // Nothing is ever sent: it ends with the request.
                answered.await.ok();
            };
            tokio::select! {
                over = tokio::time::timeout(wait, over) => if over.is_err() {
                    session.late(&id, serial);
                },
                // Nothing is ever sent there either.
                _ = gone, if leaves => session.left(&id, serial),
            }
        });
        hears
    }

    /// Its key, its line, and how its client spelt what is another's there.
    fn under_its_id(
        &self,
        serial: u64,
        request: &Request,
        body: &Bytes,
    ) -> (String, Bytes, Option<Spelt>, Option<String>) {
        if self.id().is_some() {
            return (request.id.clone(), one_line(body), None, request.progress.clone());
        }
        let (line, token) = rewrite::request(body, &serial.to_string());
        let key = envelope::number_key(serial);
        let progress = token.as_ref().map(|_| key.clone());
        (key, one_line(&line), Some(Spelt { id: request.raw_id.clone(), token }), progress)
    }

    /// The time of a request has passed. An answer may have come at the same moment, and the id be another's by now.
    pub(super) fn late(&self, id: &str, serial: u64) {
        if let Some(waiting) = self.take_if(id, |waiting| waiting.serial == serial) {
            self.give_up(serial);
            let outcome = if waiting.cancelled { Outcome::Cancelled } else { Outcome::Timeout };
            let text = "the MCP server did not answer in time";
            waiting.fail(outcome, StatusCode::GATEWAY_TIMEOUT, CODE_TIMEOUT, text);
        }
    }

    /// The connection of a request is gone, which cancels what was asked without a session (MCP 2026-07-28).
    fn left(&self, id: &str, serial: u64) {
        if let Some(waiting) = self.take_if(id, |waiting| waiting.serial == serial) {
            self.give_up(serial);
            waiting.fail(Outcome::Cancelled, StatusCode::OK, CODE_TIMEOUT, "nobody hears this");
        }
    }

    /// Tells the process that nobody waits any more for what the shim counted under this number.
    fn give_up(&self, serial: u64) {
        if self.id().is_none() {
            let line =
                format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{serial}}}}}"#);
            drop(self.stdin.try_send(one_line(line.as_bytes())));
        }
    }

    /// Tells the process that its request goes no further. One that reads nothing is not waited for: its stdout is read on.
    pub(super) fn refuse(&self, request: &Request, refusal: &Refusal) {
        let answer = error_body(&request.raw_id, refusal.code, &refusal.text);
        drop(self.stdin.try_send(one_line(&answer)));
    }

    fn take_if(&self, id: &str, which: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let mut inner = self.lock();
        if !inner.waiting.get(id).is_some_and(which) {
            return None;
        }
        inner.order.retain(|waiting| waiting != id);
        let waiting = inner.waiting.remove(id);
        if waiting.as_ref().is_some_and(|waiting| !waiting.own) {
            inner.last = Instant::now();
        }
        waiting
    }

    /// Whether a request waits under this id.
    pub(super) fn waits_for(&self, id: &str) -> bool {
        self.lock().waiting.contains_key(id)
    }

    /// Who asked what waits under this id.
    pub(super) fn caller_of(&self, id: &str) -> Option<Caller> {
        self.lock().waiting.get(id)?.running().map(|running| running.asked().caller.clone())
    }

    pub(super) fn cancel(&self, id: &str) {
        if let Some(waiting) = self.lock().waiting.get_mut(id) {
            waiting.cancelled = true;
        }
    }

    /// Who waits for the answer that has come.
    pub(super) fn asked(&self, id: &str) -> Option<Waiting> {
        let waiting = self.take_if(id, |_| true)?;
        self.ready.send_replace(true);
        Some(waiting)
    }

    /// The server ends a subscription, which has no answer.
    pub(super) fn unsubscribed(&self, id: &str) {
        let Some(waiting) = self.take_if(id, |_| true) else { return };
        if let Some(running) = waiting.running {
            running.end(Ending::of(Outcome::Ok));
        }
        drop(waiting.end.send(Told::Over));
    }

    /// Something that is no answer goes to the request that it belongs to, else to the GET stream, else to the oldest request.
    pub(super) fn say(&self, line: Bytes, progress: Option<&str>, subscription: Option<&str>) {
        let mut inner = self.lock();
        inner.last = Instant::now();
        let of_progress = |waiting: &&Waiting| progress.is_some() && waiting.progress.as_deref() == progress;
        let subscribed = || subscription.and_then(|id| inner.waiting.get(id));
        let belongs = inner.waiting.values().find(of_progress).or_else(subscribed);
        let to = match (belongs, &inner.listener) {
            (Some(waiting), _) => Some(waiting),
            (None, Some(listener)) if !listener.is_closed() => None,
            (None, _) => inner.order.iter().filter_map(|id| inner.waiting.get(id)).find(|waiting| !waiting.own),
        };
        if let Some(waiting) = to {
            let line = match &waiting.spelt {
                Some(spelt) => rewrite::notification(&line, &spelt.id, spelt.token.as_deref()).into(),
                None => line,
            };
            // A connection that does not read holds up nobody: what finds its queue full, or no room, is let go.
            return drop(self.room.hold(&line).map(|held| waiting.messages.try_send(held)));
        }
        if self.id().is_none() {
            // There is no stream that it could wait for.
            return;
        }
        let mut held = self.room.hold(&line);
        while held.is_none() && inner.backlog.pop_front().is_some() {
            held = self.room.hold(&line);
        }
        let unsent = match (held, &inner.listener) {
            (Some(held), Some(listener)) => listener.try_send(held).err().map(|error| error.into_inner()),
            (held, _) => held,
        };
        inner.backlog.extend(unsent);
        while inner.backlog.len() > WAITING_MAX {
            inner.backlog.pop_front();
        }
    }

    pub(super) fn listen(&self) -> Option<mpsc::Receiver<Held>> {
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

    /// Whether somebody else than the shim waits.
    pub(super) fn is_busy(&self) -> bool {
        self.lock().waiting.values().any(|waiting| !waiting.own)
    }

    /// Since when nobody has asked for anything; `None` while somebody waits or listens.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let inner = self.lock();
        let listens = inner.listener.as_ref().is_some_and(|listener| !listener.is_closed());
        let waits = inner.waiting.values().any(|waiting| !waiting.own);
        (!listens && !waits).then_some(inner.last)
    }

    /// The process has ended: whatever waits is told.
    pub(super) fn close(&self) {
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

/// The HTTP status of an answer to what was asked without a session (MCP 2026-07-28, Streamable HTTP).
fn status(code: Option<u32>) -> StatusCode {
    match code.map(u32::cast_signed) {
        // There is no such method.
        Some(-32_601) => StatusCode::NOT_FOUND,
        // Headers, capabilities or version of the request.
        Some(-32_022..=-32_020) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

impl Waiting {
    /// The call that it is.
    pub(super) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Passes on the answer, or what passes instead; the call has ended by then.
    pub(super) fn answered(self, code: Option<u32>, line: Bytes, instead: Option<Bytes>) {
        let status = if self.spelt.is_some() && instead.is_none() { status(code) } else { StatusCode::OK };
        let passes = instead.unwrap_or(line);
        let passes = match &self.spelt {
            Some(spelt) => rewrite::answer(&passes, &spelt.id).into(),
            None => passes,
        };
        // The connection may be gone; the outcome is recorded all the same.
        drop(self.end.send(Told::Answer(status, passes)));
    }

    fn fail(self, outcome: Outcome, status: StatusCode, code: i32, text: &'static str) {
        if let Some(running) = self.running {
            running.end(Ending::of(outcome));
        }
        drop(self.end.send(Told::Failed(status, code, text)));
    }
}
