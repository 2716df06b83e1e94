//! Conditions: what depends on the clock or on this machine. They begin and end, and both are on record; no replay gives them again.
//!
//! What must hold: which ones stand is in the store, written with the record that says so, so that a restart neither begins one twice
//! nor forgets to end one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    id::{GatewayId, WorkspaceId},
    wire::{self, AlarmPhase, Severity},
};

use crate::{
    alarm::Alarms,
    refusals::{Refusals, Refused},
    store::{Family, Rank, Store, StoreError},
};

/// An always-on gateway is silent beyond its word.
pub const SILENT: &str = "gateway-silent";
/// A call that runs for so long has most likely no end.
const WITHOUT_OUTCOME: &str = "call-without-outcome";
const RUNNING_US: u64 = 3_600_000_000;
/// Running calls that are looked at, the oldest: more say nothing more of who has some.
const RUNNING_LOOKED_AT: usize = 1_024;
/// What the index has not, or the watch has not looked at, was received longer ago than this.
pub(super) const INDEX_LAGGING: &str = "index-lagging";
/// See [`INDEX_LAGGING`].
pub(super) const WATCH_LAGGING: &str = "watch-lagging";
const LAG_US: u64 = 60_000_000;
/// Names of conditions among the store's values begin so.
const PREFIX: &[u8] = b"condition/";
/// Conditions that stand at a time: more gateways than that are not silent one by one.
const STANDING_MAX: usize = 4_096;
/// Records of one change: what one write of the ledger's own takes.
const CHANGES_MAX: usize = 64;

/// Name, workspace and gateway.
type Condition = (String, Option<WorkspaceId>, Option<GatewayId>);
/// What stands.
pub(super) type Standing = BTreeMap<Condition, Severity>;

/// Conditions that are on record as begun.
pub(super) struct Conditions(Standing);

/// What is looked at.
pub(super) struct Of<'a> {
    pub(super) store: &'a Store,
    pub(super) workspaces: &'a [WorkspaceId],
    pub(super) alarms: &'a Alarms,
    /// Conditions of followers that lag, each with the commit that is its follower's next.
    pub(super) followers: &'a [(&'static str, u64)],
}

/// Whose calls run for too long.
fn without_outcome(store: &Store, now_us: u64) -> Result<BTreeSet<(WorkspaceId, GatewayId)>, StoreError> {
    let mut of = BTreeSet::new();
    for step in store.scan(Family::Running, &[], &[]).take(RUNNING_LOOKED_AT) {
        let (rank, call) = step?;
        let damaged = || StoreError::Damaged("a running call");
        let (workspace, rest) = call.split_first_chunk::<16>().ok_or_else(damaged)?;
        let of_call = (WorkspaceId(*workspace), GatewayId(*rest.first_chunk::<16>().ok_or_else(damaged)?));
        if of.contains(&of_call) {
            continue;
        }
        let received_at = store.committed(Rank::decode(&rank)?.commit_index())?.map(|entry| entry.leaf.received_at);
        // In the order of their receipt.
        if received_at.is_none_or(|at| now_us.saturating_sub(at) <= RUNNING_US) {
            break;
        }
        of.insert(of_call);
    }
    Ok(of)
}

fn name_of(condition: &Condition) -> Bytes {
    let (name, workspace, gateway) = condition;
    let text = |id: Option<String>| id.unwrap_or_else(|| "-".to_owned());
    let (workspace, gateway) = (text(workspace.map(|id| id.to_string())), text(gateway.map(|id| id.to_string())));
    [PREFIX, format!("{name}/{workspace}/{gateway}").as_bytes()].concat().into()
}

fn named(name: &[u8]) -> Option<Condition> {
    let text = std::str::from_utf8(name.strip_prefix(PREFIX)?).ok()?;
    let mut parts = text.split('/');
    let (name, workspace, gateway) = (parts.next()?, parts.next()?, parts.next()?);
    Some((name.to_owned(), WorkspaceId::from_hex(workspace), GatewayId::from_hex(gateway)))
}

impl Conditions {
    /// Those that are on record as begun.
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        let mut standing = Standing::new();
        for step in store.scan(Family::Meta, PREFIX, &[]) {
            let (key, value) = step?;
            // One that ended is kept as an empty value.
            if let (Some(condition), [severity]) = (named(&key), value.as_ref()) {
                let severity = Severity::try_from(i32::from(*severity)).unwrap_or(Severity::Unspecified);
                standing.insert(condition, severity);
            }
        }
        Ok(Self(standing))
    }

    /// What was refused before this start is not over with it.
    pub(super) fn recall(&self, refusals: &Refusals, now_us: u64) {
        for (name, workspace, gateway) in self.0.keys() {
            // A ledger that can tell of a fork's end has one no more.
            let what = Refused::ALL.into_iter().find(|what| what.name() == name && *what != Refused::Fork);
            if let (Some(what), Some(workspace), Some(gateway)) = (what, workspace, gateway) {
                refusals.note(what, *workspace, *gateway, now_us);
            }
        }
    }

    /// What stands now.
    pub(super) fn standing(&self, of: &Of<'_>, now_us: u64) -> Result<Standing, StoreError> {
        let mut standing = Standing::new();
        for (alarm, ..) in of.alarms.latched() {
            standing.insert((alarm.name().to_owned(), None, None), Severity::High);
        }
        // One that has told nothing yet is at its beginning.
        for (name, next) in of.followers.iter().filter(|(_, next)| *next > 0) {
            let received_at = of.store.committed(*next)?.map(|entry| entry.leaf.received_at);
            if received_at.is_some_and(|at| now_us.saturating_sub(at) > LAG_US) {
                standing.insert(((*name).to_owned(), None, None), Severity::Medium);
            }
        }
        let mut of_gateway = |name: &str, workspace, gateway, severity| {
            let condition = (name.to_owned(), Some(workspace), Some(gateway));
            // Of very many those that are on record stay there.
            if standing.len() < STANDING_MAX || self.0.contains_key(&condition) {
                standing.insert(condition, severity);
            }
        };
        for (what, workspace, gateway) in of.alarms.refusals().standing(now_us) {
            let severity = if what == Refused::Fork { Severity::Critical } else { Severity::High };
            of_gateway(what.name(), workspace, gateway, severity);
        }
        for workspace in of.workspaces {
            for (gateway, _) in of.store.silent_gateways(*workspace, now_us)? {
                of_gateway(SILENT, *workspace, gateway, Severity::Medium);
            }
        }
        for (workspace, gateway) in without_outcome(of.store, now_us)? {
            of_gateway(WITHOUT_OUTCOME, workspace, gateway, Severity::Low);
        }
        Ok(standing)
    }

    /// What began and what ended; some of them if there are many, and those of gateways last.
    fn differing(&self, now: &Standing) -> Vec<(AlarmPhase, Condition, Severity)> {
        let began = now.iter().filter(|(condition, _)| !self.0.contains_key(*condition));
        let ended = self.0.iter().filter(|(condition, _)| !now.contains_key(*condition));
        let began = began.map(|(condition, severity)| (AlarmPhase::Began, condition.clone(), *severity));
        let ended = ended.map(|(condition, severity)| (AlarmPhase::Ended, condition.clone(), *severity));
        let mut all: Vec<_> = began.chain(ended).collect();
        all.sort_by_key(|(_, condition, _)| condition.2.is_some());
        all.truncate(CHANGES_MAX);
        all
    }

    /// Rows and records of what began and what ended.
    pub(super) fn change(&self, now: &Standing, now_us: u64) -> (Vec<(Family, Bytes, Bytes)>, Vec<wire::Alarm>) {
        let told = |(phase, condition, severity): (AlarmPhase, Condition, Severity)| {
            let value = match (phase, u8::try_from(severity as i32)) {
                (AlarmPhase::Began, Ok(severity)) => Bytes::copy_from_slice(&[severity]),
                _ => Bytes::new(),
            };
            let alarm = wire::Alarm {
                at: now_us,
                phase: phase as i32,
                severity: severity as i32,
                name: condition.0.clone(),
                workspace: condition.1.map(Into::into),
                gateway: condition.2.map(Into::into),
                ..wire::Alarm::default()
            };
            ((Family::Meta, name_of(&condition), value), alarm)
        };
        self.differing(now).into_iter().map(told).unzip()
    }

    /// What `change` told is on record.
    pub(super) fn stand(&mut self, now: &Standing) {
        for (phase, condition, severity) in self.differing(now) {
            if phase == AlarmPhase::Began {
                self.0.insert(condition, severity);
            } else {
                self.0.remove(&condition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rig::{Dir, Rig},
        tail::Tail,
    };

    fn of(name: &str, gateway: u32) -> Condition {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&gateway.to_be_bytes());
        (name.to_owned(), Some(WorkspaceId([1; 16])), Some(GatewayId(id)))
    }

    #[test]
    fn each_begins_and_ends_once_on_record_and_over_restarts() {
        let dir = Dir::new("conditions");
        let store = Store::open(&dir.0, 8 << 20, 32 << 20).unwrap();
        let mut conditions = Conditions::open(&store).unwrap();
        let mut now: Standing = (0..100).map(|gateway| (of(SILENT, gateway), Severity::Medium)).collect();
        now.insert(("roots-disagree".to_owned(), None, None), Severity::High);
        let mut told = Vec::new();
        let mut step = |conditions: &mut Conditions, now: &Standing| {
            let (rows, alarms) = conditions.change(now, 7);
            let mut change = store.change();
            rows.into_iter().for_each(|(family, key, value)| change.put(family, key, value));
            store.derive(change).unwrap();
            conditions.stand(now);
            told.extend(alarms.iter().map(|alarm| (alarm.phase(), alarm.name.clone(), alarm.gateway.clone())));
            alarms.len()
        };
        // An operator's own come first, however many gateways are silent.
        assert_eq!(
            [step(&mut conditions, &now), step(&mut conditions, &now), step(&mut conditions, &now)],
            [64, 37, 0]
        );
        let mut again = Conditions::open(&store).unwrap();
        assert_eq!(again.0, now);
        now.retain(|condition, _| *condition != of(SILENT, 3));
        assert_eq!([step(&mut again, &now), step(&mut again, &now)], [1, 0]);
        assert_eq!(Conditions::open(&store).unwrap().0, now);
        assert_eq!(told[0], (AlarmPhase::Began, "roots-disagree".to_owned(), None));
        assert_eq!(told.last().unwrap().0, AlarmPhase::Ended);
        assert_eq!(told.len(), 102);
    }

    #[test]
    fn what_is_refused_stands_for_its_gateway_and_over_a_restart() {
        let dir = Dir::new("refused");
        let store = Store::open(&dir.0, 8 << 20, 32 << 20).unwrap();
        let alarms = Alarms::new();
        let (workspace, gateway) = (WorkspaceId([1; 16]), GatewayId([2; 16]));
        let of = Of { store: &store, workspaces: &[], alarms: &alarms, followers: &[] };
        let mut conditions = Conditions::open(&store).unwrap();
        alarms.refusals().note(Refused::Fork, workspace, gateway, 100);
        alarms.refusals().note(Refused::Unauthorised, workspace, gateway, 100);
        let told = |conditions: &mut Conditions, of: &Of<'_>, at| {
            let now = conditions.standing(of, at).unwrap();
            let (rows, alarms) = conditions.change(&now, at);
            let mut change = store.change();
            rows.into_iter().for_each(|(family, key, value)| change.put(family, key, value));
            store.derive(change).unwrap();
            conditions.stand(&now);
            let told = |alarm: wire::Alarm| (alarm.name.clone(), alarm.phase(), alarm.severity(), alarm.gateway);
            alarms.into_iter().map(told).collect::<Vec<_>>()
        };
        let id = || Some(Bytes::from(gateway));
        let unauthorised = |phase| ("batch-unauthorised".to_owned(), phase, Severity::High, id());
        let fork = |phase| ("fork".to_owned(), phase, Severity::Critical, id());
        let (began, ended) = (AlarmPhase::Began, AlarmPhase::Ended);
        assert_eq!(told(&mut conditions, &of, 200), [unauthorised(began), fork(began)]);
        // A restart, which knows of no refusal yet.
        let alarms = Alarms::new();
        let of = Of { alarms: &alarms, ..of };
        let mut again = Conditions::open(&store).unwrap();
        again.recall(alarms.refusals(), 300);
        // That it can tell says that the fork is over.
        assert_eq!(told(&mut again, &of, 400), [fork(ended)]);
        assert_eq!(told(&mut again, &of, 300 + crate::refusals::OVER_US), [unauthorised(ended)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn lag_and_calls_without_outcome_stand_from_their_threshold_on() {
        let dir = Dir::new("lag");
        let rig = Rig::start(&dir.0).await.unwrap();
        let (workspace, mut peer) = rig.workspace(8).await;
        let mut answers = peer.open(&rig, 1).await.unwrap();
        let batch = peer.batch(1);
        peer.send(&rig, 1, &mut answers, batch).await.unwrap();
        let store = rig.store.upgrade().unwrap();
        let tail = Tail::open(&store).unwrap();
        let last = tail.committed() - 1;
        let batch = tail.batch(last).unwrap().unwrap();
        let received_at = batch.leaf.received_at;
        // A call whose intent is the batch's first record.
        let call = [&workspace.0[..], &peer.gateway.0, &[0; 24]].concat();
        let mut change = store.change();
        change.put(Family::Running, batch.rank(0).encode(), call);
        store.derive(change).unwrap();
        let (alarms, conditions) = (Alarms::new(), Conditions::open(&store).unwrap());
        let names = |next: u64, at: u64| {
            let of = Of { store: &store, workspaces: &[], alarms: &alarms, followers: &[(INDEX_LAGGING, next)] };
            conditions.standing(&of, at).unwrap().into_keys().collect::<Vec<_>>()
        };
        let lags = (INDEX_LAGGING.to_owned(), None, None);
        let runs = (WITHOUT_OUTCOME.to_owned(), Some(workspace), Some(peer.gateway));
        assert_eq!(names(last, received_at + LAG_US), []);
        assert_eq!(names(last, received_at + LAG_US + 1), std::slice::from_ref(&lags));
        assert_eq!(names(last + 1, received_at + RUNNING_US), []);
        assert_eq!(names(last, received_at + RUNNING_US + 1), [runs, lags]);
        drop(store);
        rig.stop().await;
    }
}
