//! Calls in progress by session and id: their answer may come on another connection than their request went.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use custody::wire::Outcome;

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
}

type Key = (Side, String, String);

/// Calls in progress; the writer bounds how many there are.
#[derive(Debug, Default)]
pub struct OpenCalls(Mutex<HashMap<Key, Open>>);

impl OpenCalls {
    /// A call has begun. Under an id that is in use, the call before ends as `unknown`: nobody can tell their answers apart.
    pub fn begin(&self, side: Side, session: &str, id: &str, running: Running) {
        let open = Open { running, cancelled: false };
        let before = self.lock().insert(key(side, session, id), open);
        if let Some(before) = before {
            finish(before.running, Ending::of(Outcome::Unknown));
        }
    }

    /// Its answer was seen.
    pub fn finish(&self, side: Side, session: &str, id: &str, ending: Ending) {
        if let Some(open) = self.lock().remove(&key(side, session, id)) {
            finish(open.running, ending);
        }
    }

    /// The client gave it up; an answer may come all the same.
    pub fn cancelled(&self, session: &str, id: &str) {
        if let Some(open) = self.lock().get_mut(&key(Side::Client, session, id)) {
            open.cancelled = true;
        }
    }

    /// Whether it is still in progress, and whether the client gave it up.
    pub fn state(&self, session: &str, id: &str) -> Option<bool> {
        self.lock().get(&key(Side::Client, session, id)).map(|open| open.cancelled)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(side: Side, session: &str, id: &str) -> Key {
    (side, session.to_owned(), id.to_owned())
}

/// Writes the outcome without holding up the answer.
pub(super) fn finish(running: Running, ending: Ending) {
    tokio::spawn(async move {
        if let Err(refused) = running.finish(ending).await {
            tracing::error!(%refused, "an outcome is not recorded; the next start finds the call unfinished");
        }
    });
}
