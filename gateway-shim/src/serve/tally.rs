//! Refusals: how many have a record each, and the number of the rest.
//!
//! What must hold: every refusal is a record, or is counted in one, or is declared as dropped; no member, no server that asks
//! what it may not, and nobody who has no good token fills the spool with them. Whoever has a token's id and not its secret is
//! not the member whose token it is, and takes nothing of that member's share. What is counted is in memory alone, so it is written
//! every second, as many kinds as a disk bears: the end of a process, however it comes, takes no more than that with it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    hash::sha256,
    wire::{self, Outcome},
};
use tokio::sync::watch;

use super::{Shared, counts, sessions::Speaker};
use crate::{access::Why, clock};

/// Refusals of one member in a minute that have a record each: more than a person makes, or a client that lists what it has.
const OF_MEMBER_MAX: u64 = 120;
/// The same beyond that, of what this member was not refused before in that minute: by noise nobody hides what else they try.
const FIRSTS_MAX: u64 = 60;
/// The same of one token with a wrong secret.
const OF_TOKEN_MAX: u64 = 30;
/// The same of all whom nobody knows, those with a wrong secret among them.
const STRANGERS_MAX: u64 = 600;
/// Kinds of refusals that are counted apart in a minute; what is beyond is counted by rule and outcome alone.
const KINDS_MAX: usize = 4_096;

/// Kinds that are written each second, until all are at the end of a minute.
const KINDS_A_SECOND: usize = 16;
/// How often that is.
const SECOND: Duration = Duration::from_secs(1);
const SECONDS_A_MINUTE: u32 = 60;

/// Whose share of records a refusal takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Member(Bytes),
    FirstsOf(Bytes),
    Token(Bytes),
    Strangers,
}

/// What refusals that are counted together have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Kind {
    server: String,
    member: Option<Bytes>,
    token: Option<Bytes>,
    agent: Option<Bytes>,
    rule: String,
    outcome: i32,
    from_server: bool,
}

#[derive(Debug, Default)]
struct Minute {
    recorded: HashMap<Whose, u64>,
    more: HashMap<Kind, u64>,
    /// What members were refused on record, by digest: as much as their shares are.
    told: HashSet<[u8; 32]>,
}

/// What a refusal is of: whose, where, of what, and by which rule.
fn what(call: &wire::Call, member: &[u8]) -> [u8; 32] {
    let asked = format!("{:?} {:?} {:?} {:?}", call.server, call.request, call.target, call.rule);
    sha256(&[member, asked.as_bytes()])
}

impl Minute {
    fn takes(&mut self, whose: Whose, most: u64) -> bool {
        let taken = self.recorded.entry(whose).or_default();
        *taken = taken.saturating_add(1);
        *taken <= most
    }

    /// One of a member.
    fn tells(&mut self, member: &Bytes, call: &wire::Call) -> bool {
        let what = what(call, member);
        let tells = self.takes(Whose::Member(member.clone()), OF_MEMBER_MAX)
            || (!self.told.contains(&what) && self.takes(Whose::FirstsOf(member.clone()), FIRSTS_MAX));
        if tells {
            self.told.insert(what);
        }
        tells
    }
}

/// The refusals of a minute.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Minute>);

impl Tally {
    /// Whether this refusal has a record of its own; else it is counted.
    fn records(&self, call: &wire::Call, outcome: Outcome) -> bool {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = match (&call.member, &call.token) {
            (Some(_), Some(token)) if call.rule == Why::Wrong.rule() => {
                minute.takes(Whose::Token(token.clone()), OF_TOKEN_MAX) && minute.takes(Whose::Strangers, STRANGERS_MAX)
            }
            (Some(member), _) => minute.tells(member, call),
            (None, _) => minute.takes(Whose::Strangers, STRANGERS_MAX),
        };
        if !recorded {
            let by_rule = Kind { rule: call.rule.clone(), outcome: outcome as i32, ..Kind::default() };
            let kind = Kind {
                server: call.server.clone(),
                member: call.member.clone(),
                token: call.token.clone(),
                agent: call.agent.clone(),
                from_server: call.from_server,
                ..by_rule.clone()
            };
            let is_apart = minute.more.len() < KINDS_MAX || minute.more.contains_key(&kind);
            *minute.more.entry(if is_apart { kind } else { by_rule }).or_default() += 1;
        }
        recorded
    }

    /// Some of what was counted, within the minute.
    fn take_some(&self) -> Vec<(Kind, u64)> {
        let mut minute = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let some: Vec<Kind> = minute.more.keys().take(KINDS_A_SECOND).cloned().collect();
        some.into_iter().filter_map(|kind| minute.more.remove_entry(&kind)).collect()
    }

    /// How much is counted and not written.
    #[cfg(test)]
    pub(super) fn unwritten(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).more.values().sum()
    }

    /// What was counted; a new minute begins.
    fn take(&self) -> HashMap<Kind, u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).more
    }
}

impl Shared {
    /// Puts a refusal on record that has its rule, or counts it.
    pub(super) async fn tally(&self, call: wire::Call, outcome: Outcome) {
        if self.refusals.records(&call, outcome) {
            self.record_refused(call, outcome, 1).await;
        }
    }

    /// Writes what was only counted, until it is told to stop; what it has begun to write it writes.
    pub(super) async fn tally_on(&self, mut stop: watch::Receiver<bool>) {
        for second in 1_u32.. {
            tokio::select! {
                () = clock::sleep(SECOND) => {}
                _ = stop.changed() => return,
            }
            match second % SECONDS_A_MINUTE {
                0 => self.flush_refusals().await,
                _ => self.write_counted(self.refusals.take_some()).await,
            }
        }
    }

    /// Writes all that was only counted since the last time.
    pub(super) async fn flush_refusals(&self) {
        self.write_counted(self.refusals.take()).await;
    }

    async fn write_counted(&self, counted: impl IntoIterator<Item = (Kind, u64)>) {
        for (kind, number) in counted {
            tracing::warn!(server = kind.server, rule = kind.rule, count = number, "refusals are recorded as one");
            let mut call = self.describe(&kind.server, None, &Speaker::default(), None, 0);
            (call.member, call.token, call.agent) = (kind.member, kind.token, kind.agent);
            (call.rule, call.from_server) = (kind.rule, kind.from_server);
            call.access_policy_digest = Some(self.access.digest().to_vec().into());
            counts::number(&mut call, number);
            self.record_refused(call, Outcome::try_from(kind.outcome).unwrap_or_default(), number).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(member: u8, token: u8, rule: &str) -> wire::Call {
        let id = |id: u8| (id > 0).then(|| Bytes::from(vec![id; 16]));
        wire::Call { member: id(member), token: id(token), rule: rule.into(), ..wire::Call::default() }
    }

    fn recorded(tally: &Tally, call: &wire::Call, times: u64) -> u64 {
        (0..times).map(|_| u64::from(tally.records(call, Outcome::Denied))).sum()
    }

    #[test]
    fn each_has_a_share_of_records_and_nothing_is_lost() {
        let tally = Tally::default();
        let wrong = Why::Wrong.rule();
        assert_eq!(recorded(&tally, &of(1, 1, "no"), 500), OF_MEMBER_MAX);
        // Another's share is not touched, nor a member's by whoever has no more than the id of a token.
        assert_eq!(recorded(&tally, &of(2, 2, wrong), 500), OF_TOKEN_MAX);
        assert_eq!(recorded(&tally, &of(2, 2, "no"), 1), 1);
        assert_eq!(recorded(&tally, &of(0, 0, wrong), 1_000), STRANGERS_MAX - OF_TOKEN_MAX);
        let counted = tally.take();
        assert_eq!((counted.len(), counted.values().sum::<u64>()), (3, 2_001 - OF_MEMBER_MAX - STRANGERS_MAX - 1));
        assert_eq!(recorded(&tally, &of(1, 1, "no"), 1), 1, "another minute");
        assert!(tally.take().is_empty());
    }

    /// Noise does not hide what else a member tries, and what else they try is no noise without end.
    #[test]
    fn what_a_member_was_not_refused_before_is_a_record_behind_the_noise() {
        let tally = Tally::default();
        let at = |server: u32| wire::Call { server: server.to_string(), ..of(1, 1, "no") };
        assert_eq!(recorded(&tally, &of(1, 1, "no"), 500), OF_MEMBER_MAX);
        assert_eq!(recorded(&tally, &at(0), 500), 1);
        assert_eq!(recorded(&tally, &of(1, 1, "other"), 500), 1);
        assert_eq!((1..500).map(|server| recorded(&tally, &at(server), 2)).sum::<u64>(), FIRSTS_MAX - 2);
    }

    #[test]
    fn what_is_counted_is_taken_by_and_by() {
        let tally = Tally::default();
        recorded(&tally, &of(1, 1, "no"), OF_MEMBER_MAX + 7);
        let some = tally.take_some();
        assert_eq!(some.iter().map(|(_, number)| number).sum::<u64>(), 7);
        assert!(tally.take_some().is_empty());
        assert_eq!(recorded(&tally, &of(1, 1, "no"), 1), 0, "it is the same minute");
        for rule in 0..FIRSTS_MAX * 2 {
            recorded(&tally, &of(1, 1, &rule.to_string()), 2);
        }
        assert_eq!(tally.take_some().len(), KINDS_A_SECOND);
        assert!(tally.unwritten() > 0);
    }

    #[test]
    fn what_is_counted_has_a_bound_and_is_counted_all_the_same() {
        let tally = Tally::default();
        recorded(&tally, &of(1, 1, "no"), OF_MEMBER_MAX);
        for server in 0..KINDS_MAX as u64 + 9 + FIRSTS_MAX {
            tally.records(&wire::Call { server: server.to_string(), ..of(1, 1, "no") }, Outcome::Denied);
        }
        let counted = tally.take();
        assert_eq!((counted.len(), counted.values().sum::<u64>()), (KINDS_MAX + 1, KINDS_MAX as u64 + 9));
    }
}
