//! What is remembered of one member, one tool, and one member with one tool.

use serde::{Deserialize, Serialize};

use super::{DAY_US, Detector, HOUR_US, Key, MINUTE_US, Seen, takes_away};

/// Hours of a week.
const WEEK: u64 = 168;
/// Calls of an hour are kept as so many sixteenths, so that a quarter of one is not lost.
const PART: u64 = 16;
/// Repeated requests that are remembered of a member.
const RECENT: usize = 4;
/// Gateways that are remembered of a member: of who has more, none is new.
const GATEWAYS_MAX: usize = 16;
/// Within which two gateways are used at one time.
const AT_ONE_TIME_US: u64 = 15 * MINUTE_US;
/// A request that is repeated within this is of one loop.
const LOOP_US: u64 = 10 * MINUTE_US;
/// Calls that make a loop.
const LOOP_CALLS: u32 = 20;
/// After which an account was silent for long.
const DORMANT_US: u64 = 14 * DAY_US;
/// Calls from which on a profile says something.
const CALLS_MIN: u64 = 50;
/// Least length in bytes of what is far longer than usual.
const BIG_BYTES: u64 = 64 << 10;
/// The newest calls of a member with a tool, of which a shift is told.
const NEWEST: u32 = 12;

/// How often something is in a day, and usually.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Daily {
    day: u64,
    today: u32,
    /// In sixteenths, of days on which the member was there: a quarter of the newest, and the rest of those before.
    usual: u32,
}

impl Daily {
    /// One more, or none; how often today, and usually.
    fn take(&mut self, at: u64, more: bool) -> (u32, u32) {
        let day = at / DAY_US;
        if day != self.day {
            self.usual = self.usual - self.usual / 4 + self.today.saturating_mul(4).min(1 << 20);
            (self.day, self.today) = (day, 0);
        }
        self.today = self.today.saturating_add(u32::from(more));
        (self.today, self.usual / 16)
    }
}

/// A request that a member repeats.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Repeated {
    of: (Key, u64),
    since: u64,
    last: u64,
    times: u32,
}

/// A member in a workspace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Profile {
    first: u64,
    last: u64,
    calls: u64,
    /// Calls of each hour of the week, in sixteenths: a quarter of the newest, and the rest of those before.
    week: Vec<u32>,
    hour: u64,
    in_hour: u32,
    /// Calls of the busiest hour, in sixteenths; fades by a sixteenth with each day.
    busiest: u64,
    denied: Daily,
    destructive: Daily,
    /// Gateways, and when the member last used them.
    gateways: Vec<(Key, u64)>,
    repeated: Vec<Repeated>,
}

impl Profile {
    pub(super) fn new(at: u64) -> Self {
        Self {
            first: at,
            last: at,
            calls: 0,
            week: vec![0; usize::try_from(WEEK).unwrap_or_default()],
            hour: at / HOUR_US,
            in_hour: 0,
            busiest: 0,
            denied: Daily::default(),
            destructive: Daily::default(),
            gateways: Vec::new(),
            repeated: Vec::new(),
        }
    }

    pub(super) fn touched(&self) -> u64 {
        self.last
    }

    pub(super) fn age(&self, at: u64) -> u64 {
        at.saturating_sub(self.first)
    }

    /// Calls of this hour of the week, in sixteenths.
    fn usual(&self, hour: u64) -> u64 {
        self.week.get(usize::try_from(hour % WEEK).unwrap_or_default()).map_or(0, |calls| u64::from(*calls))
    }

    /// Hours that are over become part of what is usual.
    fn pass_hours(&mut self, now: u64) {
        if now <= self.hour {
            return;
        }
        // After two weeks of silence nothing is left that could fade.
        for hour in self.hour..now.min(self.hour + 2 * WEEK) {
            let calls = if hour == self.hour { u64::from(self.in_hour) } else { 0 };
            if let Some(usual) = self.week.get_mut(usize::try_from(hour % WEEK).unwrap_or_default()) {
                let new = u32::try_from(calls * PART / 4).unwrap_or(u32::MAX / 4).min(u32::MAX / 4);
                *usual = *usual - usual.div_ceil(4) + new;
            }
        }
        self.busiest = self.busiest.max(u64::from(self.in_hour) * PART);
        for _ in self.hour / 24..(now / 24).min(self.hour / 24 + 60) {
            self.busiest -= self.busiest / 16;
        }
        (self.hour, self.in_hour) = (now, 0);
    }

    pub(super) fn take(&mut self, seen: &Seen<'_>, found: &mut impl FnMut(Detector, u32)) {
        if self.calls >= 20 && seen.at.saturating_sub(self.last) > DORMANT_US {
            found(Detector::Dormant, 100);
        }
        let established = self.calls >= CALLS_MIN && self.age(seen.at) > 7 * DAY_US;
        self.pass_hours(seen.at / HOUR_US);
        self.in_hour = self.in_hour.saturating_add(1);
        if established {
            found(Detector::Rate, self.rate());
            found(Detector::OffHours, self.off_hours());
        }
        let (today, usual) = self.denied.take(seen.at, seen.denied);
        if seen.denied && today >= 4 && today > 3 * usual + 1 && today.is_multiple_of(4) {
            found(Detector::Refusals, 50);
        }
        let takes_away = takes_away(seen.tool) && !seen.denied;
        let (today, usual) = self.destructive.take(seen.at, takes_away);
        if takes_away && today >= 5 && today > 3 * usual + 1 && today.is_multiple_of(5) {
            found(Detector::Destructive, 50);
        }
        let (is_new, elsewhere) = self.gateway(seen);
        found(Detector::FirstGateway, if is_new && established { 60 } else { 0 });
        found(Detector::TwoGateways, if is_new && elsewhere && established { 100 } else { 0 });
        found(Detector::Loop, self.repeats(seen));
        (self.last, self.calls) = (self.last.max(seen.at), self.calls + 1);
    }

    /// Points for this many calls in this hour: at the first that is too many, and at each doubling.
    fn rate(&self) -> u32 {
        let usual = [WEEK - 1, 0, 1].map(|beside| self.usual(self.hour + beside)).into_iter().max().unwrap_or(0) / PART;
        let most = (3 * usual + 3 * usual.isqrt() + 20).max(2 * self.busiest / PART + 10);
        let calls = u64::from(self.in_hour);
        if calls == most || (calls > most && calls.is_multiple_of(most) && (calls / most).is_power_of_two()) {
            40
        } else {
            0
        }
    }

    /// Points for calls in an hour around which there never were any.
    fn off_hours(&self) -> u32 {
        let idle = [WEEK - 2, WEEK - 1, 0, 1, 2].iter().all(|beside| self.usual(self.hour + beside) == 0);
        // The same hour of other days: who works at night on Monday may do so on Tuesday.
        let of_days = (0..7).map(|day| self.usual(self.hour + day * 24)).sum::<u64>();
        if idle && of_days == 0 && matches!(self.in_hour, 1 | 3 | 10) { 25 } else { 0 }
    }

    /// Whether a gateway is new to this member, and whether another is in use at the same time.
    fn gateway(&mut self, seen: &Seen<'_>) -> (bool, bool) {
        let elsewhere = self
            .gateways
            .iter()
            .any(|(gateway, last)| *gateway != seen.gateway && seen.at.saturating_sub(*last) < AT_ONE_TIME_US);
        if let Some((_, last)) = self.gateways.iter_mut().find(|(gateway, _)| *gateway == seen.gateway) {
            *last = seen.at;
            return (false, elsewhere);
        }
        let full = self.gateways.len() >= GATEWAYS_MAX;
        if full {
            let oldest = self.gateways.iter().enumerate().min_by_key(|(_, (_, last))| *last).map(|(at, _)| at);
            oldest.map(|at| self.gateways.swap_remove(at));
        }
        self.gateways.push((seen.gateway, seen.at));
        (!full, elsewhere)
    }

    fn repeats(&mut self, seen: &Seen<'_>) -> u32 {
        let of = (super::key(7, seen.workspace, [seen.tool]), seen.request);
        self.repeated.retain(|known| seen.at.saturating_sub(known.last) < LOOP_US);
        if let Some(known) = self.repeated.iter_mut().find(|known| known.of == of) {
            if seen.at.saturating_sub(known.since) >= 2 * LOOP_US {
                (known.since, known.times) = (seen.at, 0);
            }
            (known.last, known.times) = (seen.at, known.times.saturating_add(1));
            return if known.times == LOOP_CALLS { 100 } else { 0 };
        }
        if self.repeated.len() >= RECENT {
            self.repeated.remove(0);
        }
        self.repeated.push(Repeated { of, since: seen.at, last: seen.at, times: 1 });
        0
    }
}

/// A tool in a workspace.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ToolSeen {
    pub(super) last: u64,
    calls: u64,
    failed: u64,
    /// Calls by their duration: each place is half of a doubling.
    durations: Vec<u32>,
    /// Longest request and response in bytes, of calls that were not far longer.
    request_max: u64,
    response_max: u64,
}

/// Place of a duration: two for each doubling.
fn place(duration: u64) -> usize {
    let doublings = duration.max(1).ilog2();
    let half = doublings > 0 && (duration >> (doublings - 1)) & 1 == 1;
    usize::try_from(doublings * 2 + u32::from(half)).unwrap_or_default()
}

impl ToolSeen {
    /// Whether a call was slow, its request far longer than all before, and its response.
    pub(super) fn compare(&self, duration: u64, request: u64, response: u64) -> (bool, bool, bool) {
        let beyond: u64 = self.durations.iter().skip(place(duration)).map(|calls| u64::from(*calls)).sum();
        let enough = self.calls >= 200;
        let slow = enough && beyond * 20 < self.calls;
        let big = |bytes: u64, most: u64| enough && bytes >= BIG_BYTES && bytes > most.saturating_mul(8);
        (slow, big(request, self.request_max), big(response, self.response_max))
    }

    fn fails_seldom(&self) -> bool {
        self.calls >= 200 && self.failed * 8 < self.calls
    }

    pub(super) fn take(&mut self, seen: &Seen<'_>) {
        if seen.denied {
            return;
        }
        self.last = seen.at;
        self.calls += 1;
        self.failed += u64::from(seen.failed);
        let place = place(seen.duration);
        if self.durations.len() <= place {
            self.durations.resize(place + 1, 0);
        }
        if let Some(calls) = self.durations.get_mut(place) {
            *calls = calls.saturating_add(1);
        }
        self.request_max = self.request_max.max(seen.request);
        self.response_max = self.response_max.max(seen.response);
        // So that what was usual a year ago fades.
        if self.calls >= 20_000 {
            self.calls = 0;
            for calls in &mut self.durations {
                *calls /= 2;
                self.calls += u64::from(*calls);
            }
            self.failed /= 2;
        }
    }
}

/// A member with a tool.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Use {
    /// When it was last used; 0: never.
    pub(super) last: u64,
    /// That were allowed.
    pub(super) calls: u32,
    /// A bit for each of the newest calls: it was slow, it failed.
    slow: u16,
    failed: u16,
    request_max: u64,
    response_max: u64,
    /// Refusals since `refused_at`, and to which agent the last one was.
    refused: u32,
    refused_at: u64,
    refused_agent: Key,
}

impl Use {
    pub(super) fn take(&mut self, seen: &Seen<'_>, big: (bool, bool), found: &mut impl FnMut(Detector, u32)) {
        let agent = super::key(8, seen.workspace, [seen.agent]);
        if seen.denied {
            if agent != self.refused_agent || seen.at.saturating_sub(self.refused_at) > DAY_US {
                (self.refused, self.refused_at) = (0, seen.at);
            }
            (self.refused, self.refused_agent) = (self.refused + 1, agent);
        } else {
            if self.refused >= 3 && agent != self.refused_agent && seen.at.saturating_sub(self.refused_at) < 2 * DAY_US
            {
                found(Detector::RefusedThenAllowed, 100);
                self.refused = 0;
            }
            let far = |bytes: u64, most: u64| self.calls == 0 || bytes > most.saturating_mul(4);
            if big.0 && far(seen.request, self.request_max) {
                found(Detector::BigRequest, 100);
            }
            if big.1 && far(seen.response, self.response_max) {
                found(Detector::BigResponse, 40);
            }
            self.calls = self.calls.saturating_add(1);
            self.request_max = self.request_max.max(seen.request);
            self.response_max = self.response_max.max(seen.response);
        }
        self.last = seen.at;
    }

    /// Whether the newest calls are slow, or fail, as those of others with this tool do not.
    pub(super) fn shifts(&mut self, slow: bool, failed: bool, tool: &ToolSeen) -> bool {
        let newest = (1_u16 << NEWEST) - 1;
        let before = (self.slow.count_ones() >= 8, self.failed.count_ones() >= 6);
        self.slow = (self.slow << 1 | u16::from(slow)) & newest;
        self.failed = (self.failed << 1 | u16::from(failed)) & newest;
        let now = (self.slow.count_ones() >= 8, self.failed.count_ones() >= 6);
        (now.0 && !before.0) || (now.1 && !before.1 && tool.fails_seldom())
    }
}
