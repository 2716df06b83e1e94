//! What a running gateway shows of itself: counts, gauges, the way to the ledger. `control.rs` and `metrics.rs` read it.
//!
//! What must hold: the writer and the client fill it, and decide nothing by it; it has a bound, whatever callers send, because
//! it is kept for so many servers alone; it holds no name of a member, a tool or a client. A call is counted where its record
//! is written, so that these counts and the records say the same.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use custody::{
    id::Epoch,
    wire::{Decision, DeliveryState, Outcome, Phase, record::Kind},
};

use crate::clock;

/// Servers that are counted apart: a relay's callers choose their names. What is of another is counted under [`OTHERS`].
const SERVERS_MAX: usize = 256;
/// Name for those. No server can have it: it is no token.
pub const OTHERS: &str = "(others)";
/// Upper bounds of the buckets of a sync, in microseconds: a fast one is 50 us, a stuck disk seconds.
pub const BUCKETS_US: [u64; 14] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];
/// Refusals are counted by the rules that the shim itself decides; all those of a policy are one class.
pub const BY_POLICY: &str = "policy";

/// Where the writer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The open one; `None` before the first.
    pub epoch: Option<Epoch>,
    /// Number that the next record gets.
    pub next_record: u64,
    /// Calls in progress.
    pub running: u64,
    /// Records without a signature.
    pub unsigned: u64,
    /// Batches without a receipt.
    pub unshipped: u64,
    /// Batches that are kept.
    pub held: u64,
    /// Of all files of the spool.
    pub spool_bytes: u64,
}

/// The way to the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Whether it takes batches.
    pub connected: bool,
    /// Since when that is so; 0 before the first attempt.
    pub since_us: u64,
    /// Why it is not connected, with the next move.
    pub why: String,
    /// When the last receipt was accepted; 0 for never since the start.
    pub receipt_at_us: u64,
    /// What its head names.
    pub segment: u64,
    /// Leaves of that.
    pub leaves: u64,
    /// End of the certificate that is shown to the ledger; 0 without one.
    pub certificate_until_us: u64,
}

/// What was recorded of one server.
#[derive(Clone, Debug, Default)]
pub struct OfServer {
    /// How its records are delivered; `None` for as those of all.
    pub delivery: Option<DeliveryState>,
    /// Calls that have ended, by decision and outcome.
    pub calls: BTreeMap<(Decision, Outcome), u64>,
}

/// Durations of what was synced.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// One more than there are bounds: the last is everything above.
    pub buckets: [u64; BUCKETS_US.len() + 1],
    /// All of them together.
    pub sum_us: u64,
}

/// What is counted of a record.
pub struct Counted {
    server: String,
    decision: Decision,
    outcome: Outcome,
    refusal: Option<&'static str>,
}

impl Counted {
    /// Of a call that has ended; an intent is none.
    pub fn of(kind: &Kind) -> Option<Self> {
        let Kind::Call(call) = kind else { return None };
        let (decision, outcome) = (call.decision(), call.outcome());
        let refusal = (decision == Decision::Denied).then(|| class(&call.rule));
        let ended = call.phase() != Phase::Intent;
        ended.then(|| Self { server: call.server.clone(), decision, outcome, refusal })
    }
}

#[derive(Default)]
struct Inner {
    standing: Standing,
    reached: Reached,
    servers: BTreeMap<String, OfServer>,
    /// By class.
    refusals: BTreeMap<&'static str, u64>,
    syncs: Histogram,
    started_at_us: u64,
}

/// What a running gateway shows of itself. Clones share it.
#[derive(Clone)]
pub struct Seen(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Seen").field(&self.standing()).finish()
    }
}

impl Default for Seen {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Inner { started_at_us: clock::now_us(), ..Inner::default() })))
    }
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record of a call was written.
    pub fn count(&self, counted: Counted) {
        let mut inner = self.lock();
        let key = (counted.decision, counted.outcome);
        *inner.of(&counted.server).calls.entry(key).or_default() += 1;
        if let Some(class) = counted.refusal {
            *inner.refusals.entry(class).or_default() += 1;
        }
    }

    /// How records of a server are delivered from now on; the empty name is that of all.
    pub fn delivery(&self, server: &str, state: DeliveryState) {
        self.lock().of(server).delivery = Some(state);
    }

    /// The writer stands here.
    pub fn stands(&self, standing: Standing) {
        self.lock().standing = standing;
    }

    /// A sync of the spool took so long.
    pub fn synced(&self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BUCKETS_US.partition_point(|bound| *bound < took_us);
        let mut inner = self.lock();
        if let Some(bucket) = inner.syncs.buckets.get_mut(at) {
            *bucket += 1;
        }
        inner.syncs.sum_us = inner.syncs.sum_us.saturating_add(took_us);
    }

    /// The ledger takes batches, from a gateway whose certificate ends then.
    pub fn connected(&self, certificate_until_us: Option<u64>) {
        let reached = &mut self.lock().reached;
        (reached.connected, reached.since_us, reached.why) = (true, clock::now_us(), String::new());
        reached.certificate_until_us = certificate_until_us.unwrap_or_default();
    }

    /// The ledger takes nothing, for this reason.
    pub fn lost(&self, why: &str) {
        let reached = &mut self.lock().reached;
        // The reason may change while it stays away.
        if reached.connected || reached.since_us == 0 {
            reached.since_us = clock::now_us();
        }
        (reached.connected, reached.why) = (false, why.to_owned());
    }

    /// A receipt was accepted.
    pub fn receipt(&self, segment: u64, leaves: u64) {
        let reached = &mut self.lock().reached;
        (reached.receipt_at_us, reached.segment, reached.leaves) = (clock::now_us(), segment, leaves);
    }

    /// Where the writer stands.
    pub fn standing(&self) -> Standing {
        self.lock().standing
    }

    /// The way to the ledger.
    pub fn reached(&self) -> Reached {
        self.lock().reached.clone()
    }

    /// What was recorded of each server.
    pub fn servers(&self) -> BTreeMap<String, OfServer> {
        self.lock().servers.clone()
    }

    /// Refusals by class.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.lock().refusals.clone()
    }

    /// How long syncs took.
    pub fn syncs(&self) -> Histogram {
        self.lock().syncs.clone()
    }

    /// When this gateway was opened.
    pub fn started_at_us(&self) -> u64 {
        self.lock().started_at_us
    }
}

impl Inner {
    fn of(&mut self, server: &str) -> &mut OfServer {
        let known = self.servers.len() < SERVERS_MAX || self.servers.contains_key(server);
        self.servers.entry(if known { server.to_owned() } else { OTHERS.to_owned() }).or_default()
    }
}

/// Rules that the shim itself decides; what is none of these is a policy's.
pub const CLASSES: [&str; 15] = [
    "no-token",
    "wrong-token",
    "expired-token",
    "revoked-token",
    "default-deny",
    "malformed",
    "header-mismatch",
    "batch",
    "over-limit",
    "schema",
    "session",
    "not-recorded",
    "quarantined",
    "not-yours",
    BY_POLICY,
];

fn class(rule: &str) -> &'static str {
    let own = rule.strip_prefix("shim/");
    own.and_then(|own| CLASSES.iter().find(|class| **class == own)).copied().unwrap_or(BY_POLICY)
}

#[cfg(test)]
mod tests {
    use custody::wire;

    use super::*;

    fn call(server: &str, phase: Phase, decision: Decision, rule: &str) -> Kind {
        let outcome = if phase == Phase::Intent { Outcome::Running } else { Outcome::Ok };
        let (phase, outcome, decision) = (phase as i32, outcome as i32, decision as i32);
        Kind::Call(wire::Call {
            phase,
            server: server.into(),
            outcome,
            decision,
            rule: rule.into(),
            ..Default::default()
        })
    }

    fn count(seen: &Seen, kind: &Kind) {
        Counted::of(kind).into_iter().for_each(|counted| seen.count(counted));
    }

    #[test]
    fn a_call_is_counted_once_and_a_refusal_by_its_class() {
        let seen = Seen::default();
        for phase in [Phase::Intent, Phase::Outcome, Phase::Complete] {
            count(&seen, &call("files", phase, Decision::Allowed, "all"));
        }
        for rule in ["shim/no-token", "shim/unheard-of", "no-deletes"] {
            count(&seen, &call("files", Phase::Complete, Decision::Denied, rule));
        }
        let files = &seen.servers()["files"];
        assert_eq!(files.calls[&(Decision::Allowed, Outcome::Ok)], 2);
        assert_eq!(files.calls[&(Decision::Denied, Outcome::Ok)], 3);
        assert_eq!(files.calls.len(), 2);
        assert_eq!(seen.refusals(), BTreeMap::from([("no-token", 1), (BY_POLICY, 2)]));
    }

    #[test]
    fn whatever_callers_name_it_has_a_bound() {
        let seen = Seen::default();
        let all = |name: &str| call(name, Phase::Complete, Decision::Allowed, "");
        for name in 0..SERVERS_MAX * 2 {
            count(&seen, &all(&name.to_string()));
        }
        assert_eq!(seen.servers().len(), SERVERS_MAX + 1);
        assert_eq!(seen.servers()[OTHERS].calls[&(Decision::Allowed, Outcome::Ok)], SERVERS_MAX as u64);
        count(&seen, &all("0"));
        assert_eq!(seen.servers()["0"].calls[&(Decision::Allowed, Outcome::Ok)], 2);
    }

    #[test]
    fn the_ledger_is_away_since_it_went_and_not_since_the_last_attempt() {
        let seen = Seen::default();
        seen.connected(Some(7));
        seen.lost("one");
        let since = seen.reached().since_us;
        seen.lost("two");
        assert_eq!(
            seen.reached(),
            Reached { since_us: since, why: "two".into(), certificate_until_us: 7, ..Default::default() }
        );
    }
}
