//! Time: the only place that reads the wall clock, and sees when it jumps against the monotonic one; and where tasks wait.

use std::time::{Duration, Instant, SystemTime};

use custody::wire::ClockState;

/// A difference above this between wall and monotonic clock is a jump and a record. Time servers slew smaller ones.
pub const JUMP_MIN: Duration = Duration::from_secs(5);

/// Microseconds since the Unix epoch, UTC. A clock before 1970 reads as 1970.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A time as people read it, `2026-01-31T23:59:59Z`.
pub fn display(time_us: u64) -> String {
    let time = i64::try_from(time_us).ok().and_then(chrono::DateTime::from_timestamp_micros);
    let shown = time.map(|time| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    shown.unwrap_or_else(|| format!("{time_us} us after 1970"))
}

/// Waits by the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub async fn sleep(wait: Duration) {
    tokio::time::sleep(wait).await;
}

/// Waits until a moment of the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub async fn sleep_until(moment: tokio::time::Instant) {
    tokio::time::sleep_until(moment).await;
}

/// What this machine says of its clock. Only systemd's mark is read: it says *synchronised* or nothing.
pub fn state() -> ClockState {
    let marked = std::path::Path::new("/run/systemd/timesync/synchronized").exists();
    if marked { ClockState::Synchronised } else { ClockState::Unknown }
}

/// A jump of the wall clock, in microseconds; one of the two is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The wall clock went ahead.
    pub forward_us: u64,
    /// The wall clock went back.
    pub backward_us: u64,
}

/// Compares the two clocks from one look to the next.
#[derive(Debug)]
pub struct JumpWatch {
    wall_us: u64,
    at: Instant,
}

impl Default for JumpWatch {
    fn default() -> Self {
        Self { wall_us: now_us(), at: Instant::now() }
    }
}

impl JumpWatch {
    /// The jump since the last look, if there was one.
    pub fn look(&mut self) -> Option<Jump> {
        let (wall_us, at) = (now_us(), Instant::now());
        let jump = jump_between(self.wall_us, at.duration_since(self.at), wall_us);
        *self = Self { wall_us, at };
        jump
    }
}

fn jump_between(before_us: u64, elapsed: Duration, now_us: u64) -> Option<Jump> {
    let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let expected = before_us.saturating_add(elapsed);
    let jump = Jump { forward_us: now_us.saturating_sub(expected), backward_us: expected.saturating_sub(now_us) };
    let least = u64::try_from(JUMP_MIN.as_micros()).unwrap_or(u64::MAX);
    (jump.forward_us > least || jump.backward_us > least).then_some(jump)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_five_seconds_is_a_jump() {
        let second = Duration::from_secs(1);
        assert_eq!(jump_between(10_000_000, second, 11_000_000), None);
        assert_eq!(jump_between(10_000_000, second, 16_000_000), None);
        let forward = jump_between(10_000_000, second, 16_000_001).unwrap();
        assert_eq!((forward.forward_us, forward.backward_us), (5_000_001, 0));
        let backward = jump_between(10_000_000, second, 5_999_999).unwrap();
        assert_eq!((backward.forward_us, backward.backward_us), (0, 5_000_001));
    }
}
