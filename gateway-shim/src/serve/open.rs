//! Calls in progress by session and id: their answer may come on another connection than their request went.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use custody::wire::Outcome;
use tokio::sync::oneshot;

use crate::{gateway::Running, writer::Ending};

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
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

/// Calls in progress; the writer bounds how many there are.
#[derive(Clone, Debug, Default)]
pub struct OpenCalls(Arc<Mutex<Calls>>);

impl OpenCalls {
    /// A call has begun. Under an id that is in use, the call before ends as `unknown`: nobody can tell their answers apart.
    pub fn begin(&self, side: Side, session: &str, id: &str, running: Running) {
        self.insert(side, session, id, running);
    }

    /// The same for what the server asks. No stream waits for the client's answer, so it ends here as `timeout` after `wait`.
    pub fn begin_asked(&self, session: &str, id: &str, running: Running, wait: Duration) {
        let (serial, ended) = self.insert(Side::Server, session, id, running);
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
    pub fn may_ask(&self, session: &str) -> bool {
        self.lock().by_session.get(&key(Side::Server, session)).is_none_or(|open| open.len() < ASKED_MAX)
    }

    /// Its answer was seen.
    pub fn finish(&self, side: Side, session: &str, id: &str, ending: Ending) {
        if let Some(open) = self.remove_if(side, session, id, |_| true) {
            open.running.end(ending);
        }
    }

    /// The client gave it up; an answer may come all the same.
    pub fn cancelled(&self, session: &str, id: &str) {
        let mut calls = self.lock();
        if let Some(open) = calls.by_session.get_mut(&key(Side::Client, session)).and_then(|open| open.get_mut(id)) {
            open.cancelled = true;
        }
    }

    /// Whether it is still in progress, and whether the client gave it up.
    pub fn state(&self, session: &str, id: &str) -> Option<bool> {
        self.lock().by_session.get(&key(Side::Client, session))?.get(id).map(|open| open.cancelled)
    }

    /// Gives its serial, and what ends with it.
    fn insert(&self, side: Side, session: &str, id: &str, running: Running) -> (u64, oneshot::Receiver<()>) {
        let (waits, ended) = oneshot::channel();
        let mut calls = self.lock();
        let serial = calls.next_serial;
        calls.next_serial += 1;
        let open = Open { running, cancelled: false, serial, _waits: waits };
        let before = calls.by_session.entry(key(side, session)).or_default().insert(id.to_owned(), open);
        if let Some(before) = before {
            before.running.end(Ending::of(Outcome::Unknown));
        }
        (serial, ended)
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(side: Side, session: &str) -> (Side, String) {
    (side, session.to_owned())
}

#[cfg(test)]
mod tests {
    use custody::{record, wire, wire::record::Kind};

    use super::*;
    use crate::testing::{TempDir, server::Server, within};

    #[tokio::test]
    async fn what_a_server_asks_in_vain_ends_as_timeout_and_has_a_bound_of_its_session() {
        let (server, dir) = (Server::start().await, TempDir::new());
        let gateway = server.gateway(&dir).await;
        let open = OpenCalls::default();
        let call = wire::Call {
            mode: wire::Mode::Strict as i32,
            server: "test".into(),
            target: Some(wire::call::Target::Tool("asked".into())),
            decision: wire::Decision::Allowed as i32,
            ..Default::default()
        };
        for id in 0..ASKED_MAX {
            assert!(open.may_ask("one"));
            let running = gateway.begin(call.clone()).await.unwrap();
            let wait = if id == 0 { Duration::ZERO } else { Duration::from_secs(86_400) };
            open.begin_asked("one", &id.to_string(), running, wait);
            if id == 0 {
                within(async {
                    while !open.lock().by_session.is_empty() {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
        }
        let running = gateway.begin(call).await.unwrap();
        open.begin_asked("one", "last", running, Duration::from_secs(86_400));
        assert!(!open.may_ask("one") && open.may_ask("other"));
        open.finish(Side::Server, "one", "7", Ending::of(Outcome::Ok));
        assert!(open.may_ask("one"));
        drop(open);
        gateway.drain().await.unwrap();
        let records = server.shared.ledger.lock().unwrap().records();
        let outcomes: Vec<_> = records
            .iter()
            .filter_map(|bytes| match record::decode(bytes).unwrap().kind {
                Some(Kind::Call(call)) => Some(call.outcome()),
                _ => None,
            })
            .collect();
        assert!(outcomes.contains(&Outcome::Timeout), "{outcomes:?}");
    }
}
