//! What the parts show each other of the log and the fence: a leaf that commit, publish and whatever serves may use.
//!
//! What must hold: nothing here decides or waits; a [`LogView`] holds a checkpoint that was read back, or none; a
//! [`FenceState`] is fresh only for so long after the moment at which the fence was *asked*, and never once it is fenced.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::WorkspaceId,
    merkle::{LogTree, Tree},
    note::SignedCheckpoint,
};

use crate::clock;

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

/// When something was asked, by both clocks: the monotonic one stands still while a machine is suspended, and the wall clock may
/// be set back.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    monotonic: Instant,
    wall_us: u64,
}

impl Asked {
    /// This moment.
    pub fn now() -> Self {
        Self { monotonic: Instant::now(), wall_us: clock::now_us() }
    }

    /// How long before `now` that was: by the clock that says more.
    fn age(&self, now: &Self) -> Duration {
        let by_wall = Duration::from_micros(now.wall_us.saturating_sub(self.wall_us));
        now.monotonic.saturating_duration_since(self.monotonic).max(by_wall)
    }
}

/// What reading the fence has told; shared with the writer.
#[derive(Debug, Default)]
pub struct FenceState {
    asked: Mutex<Option<Asked>>,
    fenced: AtomicBool,
    /// Of the newest claim that was seen, whoever's; 0: none.
    term: AtomicU64,
}

impl FenceState {
    /// The fence was asked at this moment, and nobody else's claim stood there. What came after the question is unknown, so
    /// the moment of the answer does not count.
    pub fn seen(&self, asked: Asked) {
        let mut newest = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.is_none_or(|newest| newest.monotonic < asked.monotonic) {
            *newest = Some(asked);
        }
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
        self.is_fresh_at(&Asked::now())
    }

    fn is_fresh_at(&self, now: &Asked) -> bool {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_fenced() && asked.is_some_and(|asked| asked.age(now) <= Duration::from_secs(FENCE_SECONDS_MAX))
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
        let began = Asked::now();
        // Seconds by the monotonic clock, and by the wall clock.
        let at = |monotonic: u64, wall: u64| Asked {
            monotonic: began.monotonic + Duration::from_secs(monotonic),
            wall_us: began.wall_us + wall * 1_000_000,
        };
        assert!(!state.is_fresh_at(&at(1, 1)), "it was never asked");
        state.seen(at(10, 10));
        assert!(state.is_fresh_at(&at(10 + FENCE_SECONDS_MAX, 10 + FENCE_SECONDS_MAX)));
        assert!(!state.is_fresh_at(&at(11 + FENCE_SECONDS_MAX, 11 + FENCE_SECONDS_MAX)));
        // The machine was suspended; and the wall clock was set back.
        assert!(!state.is_fresh_at(&at(11, 11 + FENCE_SECONDS_MAX)));
        assert!(!state.is_fresh_at(&at(11 + FENCE_SECONDS_MAX, 0)));
        assert!(state.is_fresh_at(&at(11, 0)));
        // An answer that was long on its way takes nothing back.
        state.seen(at(5, 5));
        assert!(state.is_fresh_at(&at(10 + FENCE_SECONDS_MAX, 10 + FENCE_SECONDS_MAX)));
        state.fence_off();
        assert!(!state.is_fresh_at(&at(11, 11)));
    }
}
