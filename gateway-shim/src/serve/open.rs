//! Calls in progress: whose they are, what ends them, and where their answers are looked for, which may come on another
//! connection than their request went.
//!
//! What must hold: a call ends once, whoever sees its end first; in a session one id is one open call, and nothing is left
//! behind that; when access changes, every call that is open then and may not be any more is cut, and none else.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use custody::wire::Outcome;
use tokio::sync::{Notify, oneshot};

use super::{admit, places::Place, proxy::Listing, refusal::error_body};
use crate::{
    access::{Access, Ask, Caller, Judgement, Slot},
    gateway,
    writer::{CallName, Ending},
};

/// What was asked, and by whom: it is asked again when access changes.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) caller: Caller,
    pub(super) server: Arc<str>,
    /// As it is decided on, which of what continues a call is that call's.
    pub(super) method: String,
    pub(super) name: Option<String>,
    pub(super) from_server: bool,
    pub(super) request_bytes: u64,
    /// 1, or more of a call that asked for input before.
    pub(super) round: u64,
    /// Of a request for a list.
    pub(super) list: Option<Arc<Listing>>,
    /// That a subscription is about.
    pub(super) resources: Vec<String>,
}

impl Asked {
    pub(super) fn ask(&self) -> Ask<'_> {
        Ask {
            server: &self.server,
            method: &self.method,
            name: self.name.as_deref(),
            from_server: self.from_server,
            request_bytes: self.request_bytes,
        }
    }

    /// All that must be allowed for it: the request itself first, then what it would have the server tell of.
    pub(super) fn asks(&self) -> impl Iterator<Item = Ask<'_>> {
        let of_resource = |uri| Ask { method: admit::OF_RESOURCE, name: Some(uri), ..self.ask() };
        std::iter::once(self.ask()).chain(self.resources.iter().map(String::as_str).map(of_resource))
    }
}

/// What is given back when a call ends.
#[derive(Debug, Default)]
struct Held {
    /// `None` if it is let go unrecorded, and declared.
    record: Option<gateway::Running>,
    _slot: Option<Slot>,
}

/// What is known once it has begun.
#[derive(Debug)]
struct Begun {
    name: Option<CallName>,
    response_bytes_max: Option<u64>,
    judgement: Judgement,
}

#[derive(Debug)]
struct Inner {
    asked: Asked,
    /// The request's own method, as its record has it.
    method: String,
    /// Its id as it was spelt, for an answer of our own.
    raw_id: String,
    begun: OnceLock<Begun>,
    /// Between its beginning and its end.
    held: Mutex<Option<Held>>,
    /// At the server, until whoever connects there takes it along.
    place: Mutex<Option<Place>>,
    is_cut: AtomicBool,
    cut: Notify,
    all: Cuts,
    key: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.key);
    }
}

/// A call in progress. All clones are the same call; when the last is dropped and nobody has ended it, it ends as `cancelled`.
#[derive(Clone, Debug)]
pub(super) struct Running(Arc<Inner>);

impl Running {
    /// Whether both are the same call.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether it has begun and ended.
    pub(super) fn has_ended(&self) -> bool {
        self.0.begun.get().is_some() && self.0.held.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// It has ended, and is kept for whoever takes its stream up again: a change of access cuts that stream, and not this.
    pub(super) fn retire(&self) {
        self.0.all.lock().open.remove(&self.0.key);
    }

    /// The call ended so, unless it has ended before.
    pub(super) fn end(&self, ending: Ending) {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its place within the limits is given back with this.
        if let Some(Held { record: Some(record), .. }) = held {
            record.end(ending);
        }
    }

    /// It is recorded now, and within the limits: it may go on.
    pub(super) fn begun(&self, record: Option<gateway::Running>, slot: Slot, judgement: Judgement) {
        let (name, response_bytes_max) = (record.as_ref().map(gateway::Running::name), slot.response_bytes_max);
        // It begins once.
        drop(self.0.begun.set(Begun { name, response_bytes_max, judgement }));
        {
            // Whoever cuts says so first, and takes what is held then.
            let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
            *held = Some(Held { record, _slot: Some(slot) });
        }
        if self.is_cut() {
            self.end(Ending::of(Outcome::Revoked));
        }
    }

    /// It has a place at its server until its last clone goes, unless that is taken along.
    pub(super) fn holds(&self, place: Place) {
        *self.0.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// Its place, for whoever has the connection to the server.
    pub(super) fn take_place(&self) -> Option<Place> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What was asked.
    pub(super) fn asked(&self) -> &Asked {
        &self.0.asked
    }

    /// The request's own method.
    pub(super) fn method(&self) -> &str {
        &self.0.method
    }

    /// Its record's name, if it has one.
    pub(super) fn name(&self) -> Option<CallName> {
        self.0.begun.get()?.name
    }

    /// Why it was allowed.
    pub(super) fn judgement(&self) -> Option<&Judgement> {
        self.0.begun.get().map(|begun| &begun.judgement)
    }

    /// An answer of our own to it.
    pub(super) fn error(&self, code: i32, text: &str) -> Bytes {
        error_body(&self.0.raw_id, code, text).into()
    }

    /// Bytes of its answer that may pass.
    pub(super) fn response_bytes_max(&self) -> u64 {
        self.0.begun.get().and_then(|begun| begun.response_bytes_max).unwrap_or(u64::MAX)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::Acquire)
    }

    /// Whether it may go on, by what is in force now.
    pub(super) fn may_go_on(&self, access: &Access, now_us: u64) -> bool {
        let asked = self.asked();
        asked.asks().all(|ask| access.still_allowed(&asked.caller, &ask, now_us).is_ok())
    }

    /// Returns when it may not go on any more.
    pub(super) async fn cut(&self) {
        // Hears of what comes from here on; what was before is looked at behind that.
        let told = self.0.cut.notified();
        if !self.is_cut() {
            told.await;
        }
    }

    fn cut_now(&self, outcome: Outcome) {
        self.0.is_cut.store(true, Ordering::Release);
        self.end(Ending::of(outcome));
        self.0.cut.notify_waiters();
    }
}

/// Returns when a call may not go on; never for what is none.
pub(super) async fn cut(running: Option<&Running>) {
    match running {
        Some(running) => running.cut().await,
        None => std::future::pending().await,
    }
}

#[derive(Debug, Default)]
struct Registry {
    open: HashMap<u64, Weak<Inner>>,
    next: u64,
}

/// All that is open, of all servers; the writer bounds how many there are.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts(Arc<Mutex<Registry>>);

impl Cuts {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is about to be asked: from here on a change of access reaches it. So it is entered first and judged then.
    pub(super) fn begin(&self, asked: Asked, method: &str, raw_id: &str) -> Running {
        let mut registry = self.lock();
        let key = registry.next;
        registry.next += 1;
        let (begun, held) = (OnceLock::new(), Mutex::default());
        let (is_cut, cut, all) = (AtomicBool::new(false), Notify::new(), self.clone());
        let (method, raw_id) = (method.to_owned(), raw_id.to_owned());
        let place = Mutex::default();
        let inner = Arc::new(Inner { asked, method, raw_id, begun, held, place, is_cut, cut, all, key });
        registry.open.insert(key, Arc::downgrade(&inner));
        Running(inner)
    }

    /// Cuts what may not go on by what is in force now.
    pub(super) fn look(&self, access: &Access, now_us: u64) {
        // Whoever drops the last clone takes the lock.
        let open: Vec<_> = self.lock().open.values().filter_map(Weak::upgrade).map(Running).collect();
        for running in open {
            if !running.may_go_on(access, now_us) {
                running.cut_now(Outcome::Revoked);
            }
        }
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// The client.
    Client,
    /// The server.
    Server,
}

#[derive(Debug)]
struct Open {
    running: Running,
    cancelled: bool,
    /// Tells it from another call under the same id.
    serial: u64,
    /// Dropped with it, which ends the task that waits for its time to pass.
    _waits: oneshot::Sender<()>,
}

/// Requests of a server that may be in progress in one session: a client answers a handful at a time, and one server that
/// asks without end must not take the places of everybody's calls.
const ASKED_MAX: usize = 256;

#[derive(Debug, Default)]
struct Calls {
    by_session: HashMap<(Side, String), HashMap<String, Open>>,
    next_serial: u64,
}

impl Calls {
    /// Gives its serial, what ends with it, and what had its id before.
    fn insert(
        &mut self,
        side: Side,
        session: &str,
        id: &str,
        running: Running,
    ) -> (u64, oneshot::Receiver<()>, Option<Open>) {
        let (waits, ended) = oneshot::channel();
        let serial = self.next_serial;
        self.next_serial += 1;
        let open = Open { running, cancelled: false, serial, _waits: waits };
        let before = self.by_session.entry(key(side, session)).or_default().insert(id.to_owned(), open);
        (serial, ended, before)
    }
}

/// Calls of one server by session and id; the writer bounds how many there are.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenCalls(Arc<Mutex<Calls>>);

/// A call of a client is entered under its id while this is there.
#[derive(Debug)]
pub(super) struct Entered {
    calls: OpenCalls,
    session: String,
    id: String,
    running: Running,
    /// Nothing is ever sent: it ends with the entry.
    left: oneshot::Receiver<()>,
}

impl Entered {
    /// Whether its client gave it up; `None` if it is entered no more.
    pub(super) fn cancelled(&self) -> Option<bool> {
        let calls = self.calls.lock();
        let open = calls.by_session.get(&key(Side::Client, &self.session))?.get(&self.id)?;
        open.running.is(&self.running).then_some(open.cancelled)
    }

    /// Returns when it is entered no more: somebody else has seen its answer.
    pub(super) async fn left(&mut self) {
        drop((&mut self.left).await);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.calls.leave(&self.session, &self.id, &self.running);
    }
}

/// A call of this session is open under this id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InUse;

impl OpenCalls {
    /// A call of a client is about to be made: nobody could tell its answer from that of another one under its id.
    ///
    /// # Errors
    /// [`InUse`].
    pub(super) fn enter(&self, session: &str, id: &str, running: &Running) -> Result<Entered, InUse> {
        let left = {
            let mut calls = self.lock();
            if calls.by_session.get(&key(Side::Client, session)).is_some_and(|open| open.contains_key(id)) {
                return Err(InUse);
            }
            calls.insert(Side::Client, session, id, running.clone()).1
        };
        let (calls, session, id) = (self.clone(), session.to_owned(), id.to_owned());
        Ok(Entered { calls, session, id, running: running.clone(), left })
    }

    /// The call is open no more: another one may have its id.
    pub(super) fn leave(&self, session: &str, id: &str, running: &Running) {
        self.remove_if(Side::Client, session, id, |open| open.running.is(running));
    }

    /// The server asks. No stream waits for the client's answer, so it ends here as `timeout` after `wait`. Under an id that is
    /// in use, what it asked before ends as `unknown`: nobody can tell the answers apart.
    pub(super) fn begin_asked(&self, session: &str, id: &str, running: Running, wait: Duration) {
        let (serial, ended, before) = self.lock().insert(Side::Server, session, id, running);
        if let Some(before) = before {
            before.running.end(Ending::of(Outcome::Unknown));
        }
        let (calls, session, id) = (self.clone(), session.to_owned(), id.to_owned());
        tokio::spawn(async move {
            // Nothing is ever sent: it ends with the call.
            if tokio::time::timeout(wait, ended).await.is_ok() {
                return;
            }
            let late = |open: &Open| open.serial == serial;
            if let Some(open) = calls.remove_if(Side::Server, &session, &id, late) {
                open.running.end(Ending::of(Outcome::Timeout));
            }
        });
    }

    /// Whether the server of this session may ask one thing more.
    pub(super) fn may_ask(&self, session: &str) -> bool {
        self.lock().by_session.get(&key(Side::Server, session)).is_none_or(|open| open.len() < ASKED_MAX)
    }

    /// The call whose answer was seen, for whoever has more to say of it.
    pub(super) fn take(&self, side: Side, session: &str, id: &str) -> Option<Running> {
        self.remove_if(side, session, id, |_| true).map(|open| open.running)
    }

    /// The client gave it up; an answer may come all the same.
    pub(super) fn cancelled(&self, session: &str, id: &str) {
        let mut calls = self.lock();
        if let Some(open) = calls.by_session.get_mut(&key(Side::Client, session)).and_then(|open| open.get_mut(id)) {
            open.cancelled = true;
        }
    }

    /// Whether it is still in progress, and whether the client gave it up.
    pub(super) fn state(&self, session: &str, id: &str) -> Option<bool> {
        self.lock().by_session.get(&key(Side::Client, session))?.get(id).map(|open| open.cancelled)
    }

    fn remove_if(&self, side: Side, session: &str, id: &str, which: impl Fn(&Open) -> bool) -> Option<Open> {
        let (mut calls, key) = (self.lock(), key(side, session));
        let of_session = calls.by_session.get_mut(&key)?;
        if !of_session.get(id).is_some_and(which) {
            return None;
        }
        let open = of_session.remove(id);
        if of_session.is_empty() {
            calls.by_session.remove(&key);
        }
        open
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(side: Side, session: &str) -> (Side, String) {
    (side, session.to_owned())
}

#[cfg(test)]
mod tests;
