//! Limits: how much of what is allowed may be called, and how large it may be.
//!
//! A minute and a day are those of the UTC clock: `calls_per_minute` counts from second 0 to second 59, `calls_per_day` from
//! midnight to midnight. A clock that is set back does not begin a minute or a day anew. A call is counted when it is let
//! in, under all limits that apply, or under none if one of them refuses it. Only requests of clients that ask for
//! something are counted: those of a session ([`access::SESSION_METHODS`]) and those of servers are not.
//!
//! What must hold: counts are by a limit's id and survive a change of the policy; those of a day survive a restart too, but for
//! the last [`super::engine::KEEP_EVERY`] before a crash; a place among the calls in progress is
//! given back whatever becomes of the call; memory is bounded.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use custody::{access, id::MemberId};
use serde::{Deserialize, Serialize};

use super::{
    Ask, Caller, OverLimit,
    policy::{DAY_US, Limit},
};

/// Counts that are kept: of each limit one for each member who called today. A hundred bytes each; beyond this calls that
/// would need one more are refused.
const COUNTS_MAX: usize = 1_000_000;
/// Counts at which it is first looked which are over.
const PRUNE_AT: usize = 4_096;
const MINUTE_US: u64 = 60_000_000;

/// Whose count it is: of a limit, and of a member unless the limit is shared.
type Whose = (Arc<str>, Option<MemberId>);

#[derive(Debug, Default)]
struct Count {
    /// Which minute, and how many in it.
    minute: (u64, u64),
    day: (u64, u64),
    running: u64,
}

#[derive(Debug)]
struct Counts {
    of: HashMap<Whose, Count>,
    prune_at: usize,
    /// Something was counted since they were last written down.
    changed: bool,
}

/// The counts of a day, as they are written down.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    version: u32,
    /// Days since the Unix epoch.
    day: u64,
    /// Limit, member unless it is shared, and how many.
    counts: Vec<(String, Option<String>, u64)>,
}

/// All counts. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Counting(Arc<Mutex<Counts>>);

impl Default for Counting {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Counts { of: HashMap::new(), prune_at: PRUNE_AT, changed: false })))
    }
}

/// A place among the calls in progress, within all limits. It is given back when this is dropped.
#[derive(Debug)]
pub struct Slot {
    /// A longer response is cut, and ends as `over_limit`; none: no limit.
    pub response_bytes_max: Option<u64>,
    held: Vec<Whose>,
    counting: Counting,
}

#[cfg(test)]
impl Slot {
    /// One that counts nowhere.
    pub(crate) fn of_test() -> Self {
        Self { response_bytes_max: None, held: Vec::new(), counting: Counting::default() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let mut counts = self.counting.lock();
        for whose in &self.held {
            if let Some(count) = counts.of.get_mut(whose) {
                count.running = count.running.saturating_sub(1);
            }
        }
    }
}

impl Counting {
    /// Takes a place under all of these limits, which apply to the request.
    pub(super) fn enter<'a>(
        &self,
        limits: impl Iterator<Item = &'a Limit>,
        caller: &Caller,
        ask: &Ask<'_>,
        now_us: u64,
    ) -> Result<Slot, OverLimit> {
        let mut slot = Slot { response_bytes_max: None, held: Vec::new(), counting: self.clone() };
        if ask.from_server || access::SESSION_METHODS.contains(&ask.method) {
            return Ok(slot);
        }
        let limits: Vec<&Limit> = limits.collect();
        for limit in &limits {
            if limit.request_bytes_max.is_some_and(|most| ask.request_bytes > most) {
                return Err(OverLimit { limit: Arc::clone(&limit.id), retry_after_s: None });
            }
            let least = [slot.response_bytes_max, limit.response_bytes_max].into_iter().flatten().min();
            slot.response_bytes_max = least;
        }
        let counted = |limit: &&&Limit| {
            limit.calls_per_minute.is_some() || limit.calls_per_day.is_some() || limit.concurrent_calls.is_some()
        };
        let counted: Vec<(&Limit, Whose)> = limits
            .iter()
            .filter(counted)
            .map(|limit| (*limit, (Arc::clone(&limit.id), (!limit.shared).then_some(caller.member))))
            .collect();
        if counted.is_empty() {
            return Ok(slot);
        }
        let mut counts = self.lock();
        counts.prune(now_us);
        for (limit, whose) in &counted {
            let over = |seconds| OverLimit { limit: Arc::clone(&limit.id), retry_after_s: Some(seconds) };
            match counts.of.get(whose) {
                Some(count) => count.check(limit, now_us).map_err(over)?,
                None if counts.of.len() >= COUNTS_MAX => return Err(over(left_s(now_us, MINUTE_US))),
                None => {}
            }
        }
        // Nothing refuses it from here on, so it counts everywhere.
        for (_, whose) in counted {
            counts.of.entry(whose.clone()).or_default().add(now_us);
            slot.held.push(whose);
        }
        counts.changed = true;
        drop(counts);
        Ok(slot)
    }

    /// What was counted today under limits of the day, if anything was since the last time.
    pub(super) fn today<'a>(&self, limits: impl Iterator<Item = &'a Limit>, now_us: u64) -> Option<Kept> {
        let daily: HashSet<&str> =
            limits.filter(|limit| limit.calls_per_day.is_some()).map(|limit| &*limit.id).collect();
        let day = now_us / DAY_US;
        let mut counts = self.lock();
        if !std::mem::take(&mut counts.changed) || daily.is_empty() {
            return None;
        }
        let today = |(whose, count): (&Whose, &Count)| {
            let counted = daily.contains(&*whose.0) && count.day.0 == day;
            counted.then(|| (whose.0.to_string(), whose.1.map(|id| id.to_string()), count.day.1))
        };
        Some(Kept { version: 1, day, counts: counts.of.iter().filter_map(today).collect() })
    }

    /// Goes on from what was written down, if that was today.
    pub(super) fn go_on(&self, kept: Kept, now_us: u64) {
        if kept.version != 1 || kept.day != now_us / DAY_US {
            return;
        }
        let mut counts = self.lock();
        for (limit, member, number) in kept.counts.into_iter().take(COUNTS_MAX) {
            let whose = (Arc::from(limit), member.as_deref().and_then(MemberId::from_hex));
            counts.of.entry(whose).or_default().day = (kept.day, number);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Count {
    /// Whether one more is within the limit; else the seconds after which it may be.
    fn check(&self, limit: &Limit, now_us: u64) -> Result<(), u64> {
        let full = |(window, count): (u64, u64), length, most: Option<u64>| {
            most.is_some_and(|most| window >= now_us / length && count >= most)
        };
        if full(self.day, DAY_US, limit.calls_per_day) {
            return Err(left_s(now_us, DAY_US));
        }
        if full(self.minute, MINUTE_US, limit.calls_per_minute) {
            return Err(left_s(now_us, MINUTE_US));
        }
        // Nobody knows when a call ends.
        if limit.concurrent_calls.is_some_and(|most| self.running >= most) { Err(1) } else { Ok(()) }
    }

    fn add(&mut self, now_us: u64) {
        for (window, length) in [(&mut self.minute, MINUTE_US), (&mut self.day, DAY_US)] {
            if now_us / length > window.0 {
                *window = (now_us / length, 0);
            }
            window.1 = window.1.saturating_add(1);
        }
        self.running = self.running.saturating_add(1);
    }
}

impl Counts {
    /// Lets go what counts nothing any more; each look at all of them is paid for by as many calls.
    fn prune(&mut self, now_us: u64) {
        if self.of.len() < self.prune_at {
            return;
        }
        self.of.retain(|_, count| count.running > 0 || count.day.0 >= now_us / DAY_US);
        self.prune_at = (self.of.len() * 2).max(PRUNE_AT);
    }
}

/// Seconds until the window ends, at least one.
fn left_s(now_us: u64, length_us: u64) -> u64 {
    (length_us - now_us % length_us).div_ceil(1_000_000)
}
