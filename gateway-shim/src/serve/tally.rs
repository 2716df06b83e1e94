//! Refusals: how many have a record each, and the number of the rest.
//!
//! What must hold: every refusal is a record, or is counted in one, or is declared as dropped; no member, no server that asks
//! what it may not, and nobody who has no good token fills the spool with them. Whoever has a token's id and not its secret is
//! not the member whose token it is, and takes nothing of that member's share.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use custody::wire::{self, Outcome};

use super::{Shared, counts, sessions::Speaker};
use crate::access::Why;

/// Refusals of one member in a minute that have a record each: more than a person makes, or a client that lists what it has.
const OF_MEMBER_MAX: u64 = 120;
/// The same of one token with a wrong secret.
const OF_TOKEN_MAX: u64 = 30;
/// The same of all whom nobody knows, those with a wrong secret among them.
const STRANGERS_MAX: u64 = 600;
/// Kinds of refusals that are counted apart in a minute; what is beyond is counted by rule and outcome alone.
const KINDS_MAX: usize = 4_096;

/// Whose share of records a refusal takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Member(Bytes),
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
}

impl Minute {
    fn takes(&mut self, whose: Whose, most: u64) -> bool {
        let taken = self.recorded.entry(whose).or_default();
        *taken = taken.saturating_add(1);
        *taken <= most
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
            (Some(member), _) => minute.takes(Whose::Member(member.clone()), OF_MEMBER_MAX),
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

    /// Writes what was only counted since the last time.
    pub(super) async fn flush_refusals(&self) {
        for (kind, number) in self.refusals.take() {
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

    #[test]
    fn what_is_counted_has_a_bound_and_is_counted_all_the_same() {
        let tally = Tally::default();
        recorded(&tally, &of(1, 1, "no"), OF_MEMBER_MAX);
        for server in 0..KINDS_MAX + 9 {
            assert!(!tally.records(&wire::Call { server: server.to_string(), ..of(1, 1, "no") }, Outcome::Denied));
        }
        let counted = tally.take();
        assert_eq!((counted.len(), counted.values().sum::<u64>()), (KINDS_MAX + 1, KINDS_MAX as u64 + 9));
    }
}
