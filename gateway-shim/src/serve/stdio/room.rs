//! What a process has said and nobody has read yet, in bytes: all queues of one process together.
//!
//! What must hold: however long its messages are, and however slowly its clients read, they take no more memory than this.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;

/// Bytes: twice the longest line, so that one that is being read keeps out no other.
pub(super) const ROOM_BYTES_MAX: usize = 32 << 20;

/// The room of one process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Room(Arc<AtomicUsize>);

/// A message in it, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Held {
    line: Bytes,
    room: Room,
}

impl Room {
    /// Takes a message in, if there is room for it.
    pub(super) fn hold(&self, line: &Bytes) -> Option<Held> {
        let more = |taken: usize| taken.checked_add(line.len()).filter(|taken| *taken <= ROOM_BYTES_MAX);
        self.0.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Held { line: line.clone(), room: self.clone() })
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.line
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.line.len(), Relaxed);
    }
}
