//! How fast one member may ask what a session is made of: no limit of the policy is about that, and each such request is a
//! durable record.
//!
//! What must hold: no member fills the spool with them, and nobody's pace is another's; memory is bounded by the members who
//! ask within a minute.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use custody::{access::SESSION_METHODS, id::MemberId};
use tokio::time::Instant;

use crate::access::OverLimit;

/// Such requests of one member in a minute, those of `/mcp` and those that it makes of them for each server: twenty clients
/// that begin a session with thirty servers and list all that there is. At two records each a disk bears it for days.
const OF_MEMBER_MAX: u64 = 3_000;
const MINUTE: Duration = Duration::from_secs(60);
/// What stands for a limit of the policy in what its member is told.
const LIMIT: &str = "shim/session-pace";

/// What members have asked in this minute.
#[derive(Debug)]
pub(super) struct Pace(Mutex<(Instant, HashMap<MemberId, u64>)>);

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), HashMap::new())))
    }
}

impl Pace {
    /// Counts a request of this method, if it is one of those.
    ///
    /// # Errors
    /// [`OverLimit`].
    pub(super) fn enter(&self, member: MemberId, method: &str) -> Result<(), OverLimit> {
        if SESSION_METHODS.contains(&method) { self.count(member, Instant::now()) } else { Ok(()) }
    }

    fn count(&self, member: MemberId, now: Instant) -> Result<(), OverLimit> {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(minute.0) >= MINUTE {
            *minute = (now, HashMap::new());
        }
        let until = minute.0 + MINUTE;
        let count = minute.1.entry(member).or_default();
        if *count >= OF_MEMBER_MAX {
            let left = until.duration_since(now).as_secs() + 1;
            return Err(OverLimit { limit: Arc::from(LIMIT), retry_after_s: Some(left) });
        }
        *count += 1;
        Ok(())
    }
}

#[cfg(test)]
impl Pace {
    /// This member has asked as much as one may.
    pub(super) fn fill(&self, member: MemberId) {
        self.0.lock().unwrap().1.insert(member, OF_MEMBER_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_has_so_many_in_a_minute() {
        let (pace, now) = (Pace::default(), Instant::now());
        let [alice, bob] = [1, 2].map(|member| MemberId([member; 16]));
        let taken = |member, at| (0..OF_MEMBER_MAX * 2).filter(|_| pace.count(member, at).is_ok()).count() as u64;
        assert_eq!(taken(alice, now), OF_MEMBER_MAX);
        let over = pace.count(alice, now + MINUTE / 2).unwrap_err();
        assert!(over.limit.starts_with("shim/") && over.retry_after_s.is_some_and(|left| (30..=61).contains(&left)));
        assert_eq!(taken(bob, now), OF_MEMBER_MAX);
        assert_eq!(taken(alice, now + MINUTE), OF_MEMBER_MAX, "another minute");
        // What may be called is limited by the policy.
        assert!(pace.enter(alice, "tools/call").is_ok());
    }
}
