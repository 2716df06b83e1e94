//! When a server that failed to start may be tried again: pure, by the moment that it is told.
//!
//! What must hold: a start that fails makes the next wait longer, up to a limit, and nobody else tries while one is being
//! tried; as many failures in a row as the configuration says, and nothing is tried until somebody says so.

use std::time::Duration;

use tokio::time::Instant;

/// The wait after the first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait: a minute more does not matter to whoever waits for a server that was mended.
const LONGEST: Duration = Duration::from_secs(60);

/// Why nothing is started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// Later.
    Until(Instant),
    /// Not before somebody says so.
    GivenUp,
}

/// The failures of one server.
#[derive(Clone, Debug)]
pub struct Backoff {
    failures_max: u32,
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// None so far.
    pub fn new(failures_max: u32) -> Self {
        Self { failures_max, failures: 0, until: None }
    }

    /// In a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether one may be started, which `trial` at most may take to be good or bad.
    ///
    /// # Errors
    /// [`NotNow`].
    pub fn try_start(&mut self, now: Instant, trial: Duration) -> Result<(), NotNow> {
        self.state(now)?;
        if self.failures > 0 {
            self.until = Some(now + trial);
        }
        Ok(())
    }

    /// Whether one could be started.
    ///
    /// # Errors
    /// [`NotNow`].
    pub fn state(&self, now: Instant) -> Result<(), NotNow> {
        if self.failures >= self.failures_max {
            return Err(NotNow::GivenUp);
        }
        self.until.filter(|until| *until > now).map_or(Ok(()), |until| Err(NotNow::Until(until)))
    }

    /// It did not start, or ended before it had answered anything. `dice` spreads the waits of many servers.
    pub fn failed(&mut self, now: Instant, dice: u8) {
        let doubled = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // Between one half and the whole.
        self.until = Some(now + doubled / 2 + doubled / 2 * u32::from(dice) / 255);
    }

    /// It answered; or somebody says that it is to be tried.
    pub fn clear(&mut self) {
        (self.failures, self.until) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAL: Duration = Duration::from_secs(30);

    #[test]
    fn waits_grow_to_a_limit_and_end_when_it_answers() {
        let start = Instant::now();
        let mut backoff = Backoff::new(100);
        let mut waits = Vec::new();
        for _ in 0..40 {
            backoff.failed(start, 255);
            let Err(NotNow::Until(until)) = backoff.state(start) else { panic!("it may start at once") };
            waits.push((until - start).as_secs());
        }
        assert_eq!(waits[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits[39], 60);
        backoff.clear();
        assert_eq!((backoff.try_start(start, TRIAL), backoff.failures()), (Ok(()), 0));
    }

    #[test]
    fn dice_take_at_most_half_of_a_wait() {
        let start = Instant::now();
        for dice in 0..=255 {
            let mut backoff = Backoff::new(100);
            backoff.failed(start, dice);
            let Err(NotNow::Until(until)) = backoff.state(start) else { panic!("it may start at once") };
            assert!((FIRST / 2..=FIRST).contains(&(until - start)), "{dice}");
        }
    }

    #[test]
    fn one_tries_at_a_time_after_a_failure() {
        let start = Instant::now();
        let mut backoff = Backoff::new(100);
        assert!(backoff.try_start(start, TRIAL).is_ok() && backoff.try_start(start, TRIAL).is_ok());
        backoff.failed(start, 0);
        let later = start + LONGEST;
        assert_eq!(backoff.try_start(later, TRIAL), Ok(()));
        assert_eq!(backoff.try_start(later, TRIAL), Err(NotNow::Until(later + TRIAL)));
        backoff.clear();
        assert!(backoff.try_start(later, TRIAL).is_ok() && backoff.try_start(later, TRIAL).is_ok());
    }

    #[test]
    fn failures_have_a_limit() {
        let start = Instant::now();
        let mut backoff = Backoff::new(2);
        backoff.failed(start, 0);
        backoff.failed(start, 0);
        assert_eq!(backoff.try_start(start + 2 * LONGEST, TRIAL), Err(NotNow::GivenUp));
        backoff.clear();
        assert_eq!(backoff.try_start(start, TRIAL), Ok(()));
    }
}
