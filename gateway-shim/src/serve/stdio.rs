//! A server over stdio: which process a request goes to, and what passes through its pipes.
//!
//! What must hold: a process is begun by `initialize` and ends with its session, or is one member's and takes all that this
//! member asks without a session; it speaks with nobody else. Whatever waits for a process that ends is answered; an answer
//! is lost only with its connection, and nothing of a request is left behind it; a process that is begun for a request is seen to
//! its end or to its session, also when that request's connection is gone meanwhile. How a process lives is decided in `server/`.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use bytes::Bytes;
use custody::{
    id::{MemberId, hex},
    wire::{Outcome, ServerState},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{
    Answer, SESSION,
    open::Running,
    proxy::Proxy,
    refusal::{CODE_NO_SESSION, error},
    sessions::is_same,
    text,
};
use crate::{
    access::Caller,
    clock,
    mcp::{
        envelope::{self, Message, Request},
        sse,
    },
    random,
    server::{
        Pool,
        launch::Started,
        pool::{Lease, Owner, Refused},
        probe::{self, Probed},
    },
    writer::Ending,
};

mod answer;
mod pipes;
mod room;
mod session;

use answer::answer_of;
pub(super) use answer::{empty, events};
use pipes::{one_line, read_lines, write_lines};
use session::{Kind, Session, Told};

/// Lines that wait for a process that reads slowly.
const INBOX_MAX: usize = 64;
/// How often a process that nobody waits for is asked whether it is there.
const HEALTH_EVERY: Duration = Duration::from_secs(60);
/// Tokens of one member that are remembered of the process that they share; the one used longest ago is forgotten first, which
/// costs a new process at worst.
const CALLERS_MAX: usize = 16;
/// What a process may still have written when it ended is read for so long: one that left its group may hold the pipe.
const REST_WAIT: Duration = Duration::from_secs(1);

/// The process that takes what one member asks without a session, while it runs.
type Current = Arc<tokio::sync::Mutex<Weak<Session>>>;

/// What is known of that process.
#[derive(Default)]
struct OfMember {
    current: Current,
    /// Who asked it, each token once, the newest last: the process is theirs as long as one of them may ask anything.
    callers: VecDeque<Caller>,
}

impl OfMember {
    fn is_used_by(&mut self, caller: &Caller) {
        self.callers.retain(|known| !is_same(known, caller));
        if self.callers.len() >= CALLERS_MAX {
            self.callers.pop_front();
        }
        self.callers.push_back(caller.clone());
    }
}

/// All that goes on with one server.
pub(super) struct Stdio {
    pool: Arc<Pool>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    shared: Mutex<HashMap<MemberId, OfMember>>,
}

/// Why there is no process to ask.
type NoProcess = (StatusCode, &'static str);

fn refused(refused: &Refused) -> NoProcess {
    let status = match refused {
        Refused::Failed => StatusCode::BAD_GATEWAY,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, refused.text())
}

/// A session that nobody has asked anything: unless somebody takes it, it ends.
struct Unasked(Option<Arc<Session>>);

impl Unasked {
    fn take(mut self) -> Result<Arc<Session>, NoProcess> {
        self.0.take().ok_or_else(|| refused(&Refused::Failed))
    }
}

impl Drop for Unasked {
    fn drop(&mut self) {
        if let Some(session) = self.0.take() {
            session.end();
        }
    }
}

const NO_SESSION: NoProcess = (StatusCode::BAD_REQUEST, "Bad Request: no session; begin with initialize");

impl Stdio {
    pub(super) fn new(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { pool, sessions: Mutex::default(), shared: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, headers: &HeaderMap) -> Result<Arc<Session>, NoProcess> {
        let Some(id) = text(headers, SESSION) else { return Err(NO_SESSION) };
        self.lock().get(id).map(Arc::clone).ok_or((StatusCode::NOT_FOUND, "Not Found: no such session"))
    }

    pub(super) async fn request(
        self: &Arc<Self>,
        proxy: &Arc<Proxy>,
        headers: &HeaderMap,
        caller: &Caller,
        request: Request,
        body: &Bytes,
        running: Option<Running>,
    ) -> Answer {
        let found = match (headers.contains_key(SESSION), request.method.as_str()) {
            (false, "initialize") => self.begin(proxy, Some(caller.member)).await,
            // Whoever asks without a session says so with the version in each request (MCP 2026-07-28).
            (false, _) if request.protocol.is_some() => self.sessionless(proxy, caller).await,
            _ => self.session(headers),
        };
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
        if let Some(Ok(id)) = session.id().map(HeaderValue::from_str) {
            answer.headers_mut().insert(SESSION, id);
        }
        answer
    }

    /// A request of the shim itself within a session, or as this member would without one; and its answer.
    pub(super) async fn ask_itself(
        self: &Arc<Self>,
        proxy: &Arc<Proxy>,
        headers: &HeaderMap,
        caller: &Caller,
        wait: Duration,
        body: &Bytes,
    ) -> Result<Bytes, String> {
        let found = match headers.contains_key(SESSION) {
            true => self.session(headers),
            false => self.sessionless(proxy, caller).await,
        };
        found.map_err(|(_, why)| why.to_owned())?.ask_itself(wait, body).await
    }

    /// Whether a request of this session waits for its answer.
    pub(super) fn waits_for(&self, session: &str, id: &str) -> bool {
        self.lock().get(session).is_some_and(|session| session.waits_for(id))
    }

    /// What has no answer of its own.
    pub(super) async fn pass(&self, headers: &HeaderMap, body: &Bytes) -> Answer {
        match self.session(headers) {
            Ok(session) => {
                if let Ok(Message::Notification { cancels: Some(id), .. }) = envelope::parse(body) {
                    session.cancel(&id);
                }
                match session.send(one_line(body)).await {
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

    /// Ends a session; whoever begins another waits for the place of its process.
    pub(super) fn end(&self, headers: &HeaderMap) -> Answer {
        match self.session(headers) {
            Ok(session) => {
                if let Some(id) = session.id() {
                    self.lock().remove(id);
                }
                session.end();
                empty(StatusCode::OK)
            }
            Err((status, message)) => error(status, "null", CODE_NO_SESSION, message),
        }
    }

    /// Ends a session whose member may ask nothing here any more.
    pub(super) fn end_session(&self, id: &str) {
        if let Some(session) = self.lock().remove(id) {
            session.end();
        }
    }

    /// Ends the process of each member all of whose tokens that asked it may ask nothing here any more. One that is being
    /// begun ends once it is there.
    pub(super) fn end_shared(&self, is_out: impl Fn(&Caller) -> bool) {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for OfMember { current, .. } in shared.values().filter(|shared| shared.callers.iter().all(&is_out)) {
            let current = Arc::clone(current);
            tokio::spawn(async move {
                if let Some(session) = current.lock().await.upgrade() {
                    session.end();
                }
            });
        }
    }

    /// A session of its own, with a process of its own.
    async fn begin(self: &Arc<Self>, proxy: &Arc<Proxy>, owner: Owner) -> Result<Arc<Session>, NoProcess> {
        let (stdio, proxy) = (Arc::clone(self), Arc::clone(proxy));
        // In a task of its own, which goes on without whoever asked: half of a start would be a process that nobody ends.
        let begun = tokio::spawn(async move {
            let (started, lease) = stdio.pool.start(owner).await?;
            let id = hex(&random::bytes::<16>());
            Ok(Unasked(Some(stdio.run(&proxy, Kind::OfClient(id), started, lease))))
        });
        begun.await.unwrap_or(Err(Refused::Failed)).map_err(|why| refused(&why))?.take()
    }

    /// The process that takes what this member asks without a session; a new one if there is none.
    async fn sessionless(self: &Arc<Self>, proxy: &Arc<Proxy>, caller: &Caller) -> Result<Arc<Session>, NoProcess> {
        if self.pool.sessionless() == Some(false) {
            return Err(NO_SESSION);
        }
        let current = {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for these, and their process is gone.
            shared.retain(|_, OfMember { current, .. }| {
                Arc::strong_count(current) > 1 || current.try_lock().is_ok_and(|session| session.strong_count() > 0)
            });
            let shared = shared.entry(caller.member).or_default();
            // Before it is begun: whatever takes the access away meanwhile finds whom it is for.
            shared.is_used_by(caller);
            Arc::clone(&shared.current)
        };
        // One starts it, and the others wait for that.
        let current = current.lock_owned().await;
        if let Some(session) = current.upgrade().filter(|session| !session.has_ended()) {
            return Ok(session);
        }
        let (stdio, proxy, caller) = (Arc::clone(self), Arc::clone(proxy), caller.clone());
        // As `begin` does.
        let begun = tokio::spawn(async move { stdio.begin_sessionless(&proxy, &caller, current).await });
        begun.await.unwrap_or_else(|_| Err(refused(&Refused::Failed)))
    }

    /// Starts a process and asks it whether it answers without a session; others of this member wait for that meanwhile.
    async fn begin_sessionless(
        self: &Arc<Self>,
        proxy: &Arc<Proxy>,
        caller: &Caller,
        mut current: tokio::sync::OwnedMutexGuard<Weak<Session>>,
    ) -> Result<Arc<Session>, NoProcess> {
        let (mut started, lease) = self.pool.start(Some(caller.member)).await.map_err(|why| refused(&why))?;
        let probed = tokio::select! {
            probed = probe::probe(&mut started, self.pool.ready_wait()) => Some(probed),
            () = lease.asked_to_end() => None,
        };
        let state = match probed {
            None => ServerState::Stopped,
            Some(Probed::Answers) => {
                self.pool.learn_sessionless(true);
                let session = self.run(proxy, Kind::Sessionless, started, lease);
                *current = Arc::downgrade(&session);
                // Whoever lost the access before they were remembered here was not found when it was taken away.
                if proxy.may_ask_nothing(caller) {
                    session.end();
                }
                return Ok(session);
            }
            Some(Probed::Declines) => ServerState::Stopped,
            // It may be one that says nothing to what it does not know.
            Some(Probed::Silent) if self.pool.sessionless().is_none() => ServerState::Stopped,
            Some(Probed::Silent) => ServerState::Unreachable,
            Some(Probed::Ended) => ServerState::Crashed,
        };
        let Started { process, stdin, stdout } = started;
        drop((stdin, stdout));
        lease.end(process, state).await;
        if probed.is_none() {
            return Err(refused(&Refused::Stopped));
        }
        if state == ServerState::Stopped {
            self.pool.learn_sessionless(false);
            return Err(NO_SESSION);
        }
        Err(refused(&Refused::Failed))
    }

    fn run(self: &Arc<Self>, proxy: &Arc<Proxy>, kind: Kind, started: Started, lease: Lease) -> Arc<Session> {
        let (lines, inbox) = mpsc::channel(INBOX_MAX);
        let session = Session::new(kind, lines, lease.ending());
        if let Some(id) = session.id() {
            self.lock().insert(id.to_owned(), Arc::clone(&session));
        }
        let (stdio, proxy, of_task) = (Arc::clone(self), Arc::clone(proxy), Arc::clone(&session));
        tokio::spawn(async move { stdio.live(&proxy, &of_task, started, lease, inbox).await });
        session
    }

    /// The life of one process, from its start to its record of ending.
    async fn live(
        &self,
        proxy: &Arc<Proxy>,
        session: &Arc<Session>,
        started: Started,
        lease: Lease,
        inbox: mpsc::Receiver<Bytes>,
    ) {
        let Started { process, stdin, stdout } = started;
        let (stop_writing, stopped) = oneshot::channel();
        let writing = tokio::spawn(write_lines(stdin, inbox, stopped));
        let mut reading = pin!(read_lines(proxy, session, stdout));
        let mut all_read = false;
        let state = tokio::select! {
            () = lease.asked_to_end() => ServerState::Stopped,
            () = self.idle(session) => ServerState::Stopped,
            () = crate::server::launch::exited(process.pid()) => ServerState::Crashed,
            () = &mut reading => { all_read = true; ServerState::Crashed }
            state = self.watch(session, &lease) => state,
        };
        self.forget(session);
        // Closes its stdin, which asks a server over stdio to end. It may be closed already.
        stop_writing.send(()).ok();
        drop(writing.await);
        {
            // What it still answers while it ends goes to whoever waits for it.
            let mut ending = pin!(lease.end(process, state));
            loop {
                tokio::select! {
                    () = &mut ending => break,
                    () = &mut reading, if !all_read => all_read = true,
                }
            }
        }
        if !all_read {
            tokio::time::timeout(REST_WAIT, reading).await.ok();
        }
        session.close();
    }

    fn forget(&self, session: &Session) {
        if let Some(id) = session.id() {
            self.lock().remove(id);
        }
        session.set_ended();
    }

    /// Returns when nobody has asked for anything, nor listened, for as long as a process may be idle.
    async fn idle(&self, session: &Session) {
        let most = Duration::from_secs(self.pool.config().idle_s_max);
        loop {
            match session.quiet_since() {
                None => clock::sleep(most).await,
                Some(since) if since + most <= Instant::now() => return,
                Some(since) => clock::sleep_until(since + most).await,
            }
        }
    }

    /// Returns when the process does not answer in time: its first request, or, once it has been seen to answer such
    /// questions at all, whether it is there. What a client alone has brought about is no failure of the server: enough of
    /// those keep everybody from it.
    async fn watch(&self, session: &Arc<Session>, lease: &Lease) -> ServerState {
        let wait = self.pool.ready_wait();
        if tokio::time::timeout(wait, session.ready()).await.is_err() {
            // There is that to which a server rightly says nothing.
            let is_there = matches!(session.question(wait).await, Some(Told::Answer(..))) || session.has_answered();
            if !is_there {
                tracing::error!(server = %self.pool.name(), "a process did not answer its first request in time, and is ended");
                return ServerState::Unreachable;
            }
            if session.is_busy() {
                lease.answered();
                tracing::warn!(server = %self.pool.name(), "a process answers, but not what its client asked first, and is ended");
                return ServerState::Stopped;
            }
        }
        lease.answered();
        let mut has_answered = false;
        loop {
            clock::sleep(HEALTH_EVERY).await;
            if session.is_busy() {
                continue;
            }
            match session.question(wait).await {
                Some(Told::Answer(..)) => has_answered = true,
                _ if has_answered => {
                    tracing::error!(server = %self.pool.name(), "a process does not answer any more, and is ended");
                    return ServerState::Unreachable;
                }
                _ => {
                    tracing::warn!(server = %self.pool.name(), "a process does not answer when asked whether it is there");
                    // Its end is seen all the same.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
