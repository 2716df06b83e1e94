//! Time: the only place that reads the wall clock, and sees when it jumps against the others; where a machine's sleep is seen;
//! and where tasks wait.
//!
//! Limits and waits are by the monotonic clock, which stands still while the machine sleeps. The clock since boot does not:
//! what it has gone more is the sleep. A clock that was set is neither.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use custody::wire::ClockState;
use rustix::time::{ClockId, clock_gettime};

/// A difference above this between the wall clock and the one that it is held against is a jump and a record. Time servers slew
/// smaller ones.
pub const JUMP_MIN: Duration = Duration::from_secs(5);
/// Less than this is no sleep: the two clocks are read one after the other.
const SLEEP_MIN: Duration = Duration::from_secs(1);

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

/// What the clocks say at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since the Unix epoch, in microseconds.
    pub wall_us: u64,
    /// Since boot, with sleep.
    pub boot: Duration,
    /// Since boot, without.
    pub monotonic: Duration,
}

/// Where the clocks are read; a test has others.
#[derive(Clone)]
pub struct Clocks(Arc<dyn Fn() -> Now + Send + Sync>);

impl Clocks {
    /// Of this machine.
    pub fn real() -> Self {
        let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        Self::of(move || Now { wall_us: now_us(), boot: read(ClockId::Boottime), monotonic: read(ClockId::Monotonic) })
    }

    /// Others.
    pub fn of(read: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

/// What a look at the clocks finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The wall clock jumped; against the clock since boot, so that a sleep is none.
    pub jump: Option<Jump>,
    /// The machine slept.
    pub slept: Option<Duration>,
}

/// Compares the clocks from one look to the next.
pub struct JumpWatch {
    clocks: Clocks,
    last: Now,
}

impl JumpWatch {
    /// From now on.
    pub fn over(clocks: Clocks) -> Self {
        let last = (clocks.0)();
        Self { clocks, last }
    }

    /// What happened since the last look.
    pub fn look(&mut self) -> Seen {
        let now = (self.clocks.0)();
        let last = std::mem::replace(&mut self.last, now);
        let passed = |now: Duration, before: Duration| now.saturating_sub(before);
        let (boot, awake) = (passed(now.boot, last.boot), passed(now.monotonic, last.monotonic));
        let slept = Some(boot.saturating_sub(awake)).filter(|slept| *slept >= SLEEP_MIN);
        Seen { jump: jump_between(last.wall_us, boot, now.wall_us), slept }
    }
}

impl Jump {
    /// The sleep of a machine that does not sleep, by its word.
    pub fn of_sleep(slept: Duration) -> Self {
        Self { forward_us: u64::try_from(slept.as_micros()).unwrap_or(u64::MAX), backward_us: 0 }
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

    /// Sleep, a clock that is set, both, and neither.
    #[test]
    fn a_sleep_is_no_jump_and_a_jump_is_no_sleep() {
        let hour = Duration::from_secs(3_600);
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap();
        let cases = [
            ((us(hour), hour, hour), (None, None)),
            ((us(hour), hour, Duration::ZERO), (None, Some(hour))),
            ((us(hour), Duration::ZERO, Duration::ZERO), (Some(us(hour)), None)),
            ((us(hour) * 2, hour, Duration::ZERO), (Some(us(hour)), Some(hour))),
        ];
        for ((wall_us, boot, monotonic), (jump, slept)) in cases {
            let now = Arc::new(std::sync::Mutex::new(Now::default()));
            let clocks = Arc::clone(&now);
            let mut watch = JumpWatch::over(Clocks::of(move || *clocks.lock().unwrap()));
            *now.lock().unwrap() = Now { wall_us, boot, monotonic };
            let seen = watch.look();
            assert_eq!((seen.jump.map(|jump| jump.forward_us), seen.slept), (jump, slept));
            assert_eq!(watch.look(), Seen::default(), "it is seen once");
        }
    }
}
