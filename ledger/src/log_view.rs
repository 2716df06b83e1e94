//! What the parts show each other of the log and the fence: a leaf that commit, publish and whatever serves may use.
//!
//! What must hold: nothing here decides or waits; a [`LogView`] holds a checkpoint that was read back, or none; a
//! [`FenceState`] is fresh only for so long after the moment at which the fence was *asked*, and never once it is fenced.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use bytes::Bytes;
use custody::{
    id::WorkspaceId,
    merkle::{LogTree, Tree},
    note::SignedCheckpoint,
};

/// A fence was asked not longer ago than this, in seconds, or heads carry `unfenced`; a successor waits as long.
pub const FENCE_SECONDS_MAX: u64 = 30;

/// The log as it stands; shared with whoever proves.
#[derive(Debug, Default)]
pub struct LogView {
    /// All entries' hashes.
    pub tree: Tree<LogTree>,
    /// The newest checkpoint that was read back.
    pub checkpoint: Option<SignedCheckpoint>,
}

/// A segment that is archived, under a checkpoint that was read back.
#[derive(Clone, Debug)]
pub struct Published {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which.
    pub segment: u64,
    /// Its seal.
    pub seal: Bytes,
    /// Index of its entry in the log.
    pub log_index: u64,
}

/// What reading the fence has told; shared with the writer.
#[derive(Debug)]
pub struct FenceState {
    started: Instant,
    /// Milliseconds after `started`; 0: never.
    asked_at_ms: AtomicU64,
    fenced: AtomicBool,
    /// Of the newest claim that was seen, whoever's; 0: none.
    term: AtomicU64,
}

impl Default for FenceState {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            asked_at_ms: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            term: AtomicU64::new(0),
        }
    }
}

impl FenceState {
    /// The fence was asked at this moment, and nobody else's claim stood there. What came after the question is unknown, so
    /// the moment of the answer does not count.
    pub fn seen(&self, asked: Instant) {
        self.asked_at_ms.fetch_max(self.ms(asked).max(1), Ordering::AcqRel);
    }

    /// A claim of this term stands there.
    pub fn claimed(&self, term: u64) {
        self.term.fetch_max(term, Ordering::AcqRel);
    }

    /// Term of the newest claim that was seen; 0 if there was none.
    pub fn term(&self) -> u64 {
        self.term.load(Ordering::Acquire)
    }

    /// Another writer owns the log.
    pub fn fence_off(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether another writer owns the log.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Whether the fence was asked lately enough to sign heads without `unfenced`.
    pub fn is_fresh(&self) -> bool {
        self.is_fresh_at(Instant::now())
    }

    fn is_fresh_at(&self, now: Instant) -> bool {
        let asked = self.asked_at_ms.load(Ordering::Acquire);
        !self.is_fenced() && asked > 0 && self.ms(now).saturating_sub(asked) <= FENCE_SECONDS_MAX * 1000
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

/// An error with its sources, for the log and for people; hints on lines of their own come after the causes.
pub fn report(why: &dyn std::error::Error) -> String {
    let message = why.to_string();
    let (first, hints) = message.split_at(message.find('\n').unwrap_or(message.len()));
    let mut text = first.to_owned();
    let mut source = why.source();
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text + hints
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Debug)]
    struct Fault(&'static str, Option<Box<Self>>);

    impl std::fmt::Display for Fault {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Fault {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|why| why as _)
        }
    }

    #[test]
    fn causes_come_before_the_hint() {
        let cause = Fault("no such file", None);
        assert_eq!(report(&Fault("read a", Some(Box::new(cause)))), "read a: no such file");
        let cause = Fault("no such file", None);
        let why = Fault("read a\nhint: make it", Some(Box::new(cause)));
        assert_eq!(report(&why), "read a: no such file\nhint: make it");
    }

    #[test]
    fn a_fence_is_fresh_from_the_question_on_and_not_once_it_is_fenced() {
        let state = FenceState::default();
        let at = |seconds| state.started + Duration::from_secs(seconds);
        assert!(!state.is_fresh_at(at(1)), "it was never asked");
        state.seen(at(10));
        assert!(state.is_fresh_at(at(10 + FENCE_SECONDS_MAX)));
        assert!(!state.is_fresh_at(at(11 + FENCE_SECONDS_MAX)));
        // An answer that was long on its way takes nothing back.
        state.seen(at(5));
        assert!(state.is_fresh_at(at(10 + FENCE_SECONDS_MAX)));
        state.fence_off();
        assert!(!state.is_fresh_at(at(11)));
    }
}
