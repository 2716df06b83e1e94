//! The clock: the only place that reads wall-clock time or waits for it.
//!
//! Order is position, never time; what is read here dates records and drives limits, and nothing else. [`Watch`] sees a
//! wall clock that jumps, which is an alarm and a record, because it makes every date after it doubtful.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::failpoint;

/// How far, in microseconds, wall clock and monotonic clock may part between two looks: NTP slews at most 500 ppm,
/// so five seconds are hours of slewing, while every step that misdates records noticeably is seen.
pub const JUMP_US_MIN: u64 = 5_000_000;

/// Microseconds since 1970-01-01T00:00:00Z; zero for a clock before that.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_add_signed(failpoint::clock_shift_us())
}

/// Waits. For tasks that look at something every so often; never to guess that something else has happened.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub async fn sleep(how_long: Duration) {
    tokio::time::sleep(how_long).await;
}

/// The wall clock moved by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// What the clock should have said: the last reading and the monotonic time since, in microseconds.
    pub expected_us: u64,
    /// What it said.
    pub found_us: u64,
}

impl Jump {
    /// How far, in microseconds; negative if backwards.
    pub fn by_us(self) -> i64 {
        let distance = i64::try_from(self.found_us.abs_diff(self.expected_us)).unwrap_or(i64::MAX);
        if self.found_us < self.expected_us { -distance } else { distance }
    }
}

/// Compares the wall clock with the monotonic one.
#[derive(Clone, Debug)]
pub struct Watch {
    wall_us: u64,
    monotonic: Instant,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Begins to watch now.
    pub fn new() -> Self {
        Self { wall_us: now_us(), monotonic: Instant::now() }
    }

    /// Looks now. A jump is told once: the next look starts from what the clock says by then.
    pub fn look(&mut self) -> Option<Jump> {
        self.look_at(now_us(), Instant::now())
    }

    fn look_at(&mut self, wall_us: u64, monotonic: Instant) -> Option<Jump> {
        let passed = monotonic.saturating_duration_since(self.monotonic).as_micros();
        let expected_us = self.wall_us.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        let jumped = wall_us.abs_diff(expected_us) > JUMP_US_MIN;
        // Only a jump moves the origin: else a clock that runs away slowly would never be seen.
        if jumped {
            *self = Self { wall_us, monotonic };
        }
        jumped.then_some(Jump { expected_us, found_us: wall_us })
    }
}

/// A time as people read it, `2026-01-31T23:59:59.000000Z`.
pub fn display(time_us: u64) -> String {
    let time = i64::try_from(time_us).ok().and_then(chrono::DateTime::from_timestamp_micros);
    time.map_or_else(
        || format!("{time_us} us after 1970"),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_seen_once_in_both_directions() {
        let start = Instant::now();
        let mut watch = Watch { wall_us: 1_000_000_000, monotonic: start };
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(watch.look_at(1_010_000_000, later(10)), None);
        assert_eq!(watch.look_at(1_025_000_000, later(20)), None, "five seconds exactly are not yet a jump");
        let jump = watch.look_at(1_000_000_000, later(30)).unwrap();
        assert_eq!(jump, Jump { expected_us: 1_030_000_000, found_us: 1_000_000_000 });
        assert_eq!(jump.by_us(), -30_000_000);
        assert_eq!(watch.look_at(1_001_000_000, later(31)), None);
        assert_eq!(watch.look_at(1_012_000_000, later(32)).unwrap().by_us(), 10_000_000);
    }

    #[test]
    fn slow_drift_adds_up() {
        let start = Instant::now();
        let mut watch = Watch { wall_us: 1_000_000_000, monotonic: start };
        let jumps: Vec<Jump> = (1..=7)
            .filter_map(|n| watch.look_at(1_000_000_000 + n * 11_000_000, start + Duration::from_secs(10 * n)))
            .collect();
        assert_eq!(jumps.len(), 1);
        assert_eq!(jumps[0].by_us(), 6_000_000);
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!(display(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(display(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
    }
}
