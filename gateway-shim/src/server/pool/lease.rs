//! Who counts among the processes of a server: by a place, and by the right to its process.
//!
//! What must hold: what counts does so until its process is gone, and is given back however its owner ends.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use custody::wire::ServerState;

use super::{End, Owner, Pool};
use crate::server::launch::Process;

/// Counts among what somebody who stops the server waits for, without a place.
pub(super) struct Counted<'a>(&'a Pool);

impl<'a> Counted<'a> {
    pub(super) fn new(pool: &'a Pool) -> Self {
        pool.taken.send_modify(|taken| *taken += 1);
        Self(pool)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.taken.send_modify(|taken| *taken -= 1);
    }
}

/// A place among the processes that there may be, and the process that has it.
pub(super) struct Place {
    pub(super) pool: Arc<Pool>,
    pub(super) owner: Owner,
    pub(super) pid: Option<i32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        // At once with its place, so that whoever finds none free sees what is ending.
        if let Some(pid) = self.pid {
            state.running.remove(&pid);
        }
        if let Some(own) = state.places.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                state.places.remove(&self.owner);
            }
        }
        drop(state);
        self.pool.taken.send_modify(|taken| *taken -= 1);
    }
}

/// The right to one process; whoever holds it sees to the process's end.
pub struct Lease {
    pub(super) place: Place,
    pub(super) end: Arc<End>,
    pub(super) answered: AtomicBool,
}

impl Lease {
    /// How somebody asks for the process's end.
    pub fn ending(&self) -> Arc<End> {
        Arc::clone(&self.end)
    }

    /// Returns when somebody asks for the process's end.
    pub async fn asked_to_end(&self) {
        self.end.told.notified().await;
    }

    /// It has answered its first request, so this server can be started.
    pub fn answered(&self) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.place.pool.lock().backoff.clear();
        }
    }

    /// Sees to the end of its process, whose pipes are closed.
    pub async fn end(self, process: Process, state: ServerState) {
        self.end.ask();
        let pool = Arc::clone(&self.place.pool);
        if state != ServerState::Stopped && !self.answered.load(Ordering::Relaxed) {
            pool.failed();
        }
        pool.end(process, state).await;
    }
}
