//! The index: a follower that keeps every record of the store findable, in one folder for each UTC day of receipt.
//!
//! What must hold: the index waits for the store and never the other way round; how far it has come stands in its own commits
//! and nowhere else, so that a crash anywhere leaves a whole state, from which it goes on; after every commit the documents are
//! counted; what is missing, broken, of another version or of another store is thrown away and built again, and meanwhile is
//! walked in the store instead ([`find`]). So an answer is never wrong for want of the index, only slower, and says so. What is
//! there is held against the store every night ([`check`]); what retention lets go is gone from every answer at once ([`retain`]).

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use custody::id::WorkspaceId;
use tokio::sync::{mpsc, oneshot};

use self::day::{Day, Payload, Shown};
use crate::{store::StoreError, tail::Tail};

pub mod check;
mod compile;
mod day;
mod find;
mod follow;
mod retain;
mod schema;
mod sum;
#[cfg(test)]
mod tests;

pub use find::{AskError, Page, Question};
pub use follow::Follower;

/// Wishes that wait for the follower.
const WISHES_MAX: usize = 64;

/// What can be searched. Shared by the follower and all who ask.
pub struct Index {
    tail: Arc<Tail>,
    shown: RwLock<Shown>,
    /// Commits before it are in folders, or missing, or have no records.
    through: AtomicU64,
    /// How many are missing.
    missing: AtomicU64,
    wishes: mpsc::Sender<Wish>,
}

/// What somebody wishes of the follower.
enum Wish {
    /// The folders of a UTC day, or all, are built again. Answered with what they held once they are gone.
    Rebuild(Option<u64>, oneshot::Sender<Vec<Payload>>),
    /// The folder that begins with this commit is not what the store has: it is set aside, and built again.
    Differs(u64),
    /// Something is done that it waits for.
    Look,
}

/// A folder as operators hear of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// UTC day, in days since the Unix epoch.
    pub day: u64,
    /// Records in it.
    pub records: u64,
}

impl From<Payload> for Folder {
    fn from(payload: Payload) -> Self {
        Self { day: payload.day, records: payload.count }
    }
}

impl Index {
    fn new(tail: Arc<Tail>, wishes: mpsc::Sender<Wish>) -> Self {
        let (through, missing) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { tail, shown: RwLock::default(), through, missing, wishes }
    }

    /// Folders that can be searched, newest first.
    fn shown(&self) -> Shown {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is newer than the index, and all else that was committed.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Commit index after the newest that is in a folder.
    pub fn indexed_through(&self) -> u64 {
        self.shown().first().map_or(0, |day| day.payload.next)
    }

    /// Commit index up to which the index has come, with what has no records, and how many commits it lacks.
    pub fn progress(&self) -> (u64, u64) {
        let (through, missing) = (self.through.load(Ordering::Relaxed), self.missing.load(Ordering::Relaxed));
        (through, self.tail.committed().saturating_sub(through) + missing)
    }

    /// Records of a workspace that need no walk: they are indexed, or retention let them go.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn indexed(&self, workspace: WorkspaceId) -> Result<u64, AskError> {
        let dropped = self.tail.store()?.number(&retain::dropped_name(workspace))?.unwrap_or(0);
        let folders = self.shown();
        let counts = folders.iter().map(|day| day.records_of(workspace));
        Ok(counts.sum::<tantivy::Result<u64>>()? + dropped)
    }

    /// Has the folders of a UTC day, or all, built again; what they held. `None`: the ledger is ending.
    pub async fn rebuild(&self, day: Option<u64>) -> Option<Vec<Folder>> {
        let (reply, answer) = oneshot::channel();
        self.wishes.send(Wish::Rebuild(day, reply)).await.ok()?;
        Some(answer.await.ok()?.into_iter().map(Folder::from).collect())
    }

    /// Wishes something, unless so much is wished already that the follower looks anyway.
    fn wish(&self, wish: Wish) {
        self.wishes.try_send(wish).ok();
    }

    /// Commit index below which retention has let the index go.
    fn floor(&self) -> Result<u64, StoreError> {
        Ok(self.tail.store()?.number(retain::FLOOR)?.unwrap_or(0))
    }

    fn show(&self, change: impl FnOnce(&mut Vec<Day>)) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let mut days = shown.as_ref().clone();
        change(&mut days);
        days.sort_by_key(|day| std::cmp::Reverse(day.payload.first));
        *shown = Arc::new(days);
    }
}

/// A day as people write it, of days since the Unix epoch.
pub fn day_name(day: u64) -> String {
    day::day_name(day)
}

/// Key of an id of a workspace, up to where the commit index follows.
fn id_key(field: custody::query::Field, workspace: WorkspaceId, id: &[u8]) -> Vec<u8> {
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [&[field as u8][..], &workspace.0, &[length], id].concat()
}
