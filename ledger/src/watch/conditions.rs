//! Conditions: what depends on the clock or on this machine. They begin and end, and both are on record; no replay gives them again.
//!
//! What must hold: which ones stand is in the store, written with the record that says so, so that a restart neither begins one twice
//! nor forgets to end one.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{
    id::{GatewayId, WorkspaceId},
    wire::{self, AlarmPhase, Severity},
};

use crate::{
    alarm::Alarms,
    store::{Family, Store, StoreError},
};

/// A call that runs for so long has most likely no end.
const RUNNING_US: u64 = 3_600_000_000;
/// Names of conditions among the store's values begin so.
const PREFIX: &[u8] = b"condition/";
/// Conditions that stand at a time: more gateways than that are not silent one by one.
const STANDING_MAX: usize = 4_096;
/// Records of one change: what one write of the ledger's own takes.
const CHANGES_MAX: usize = 64;

/// What stands: by name, workspace and gateway.
pub(super) type Standing = BTreeMap<(String, Option<WorkspaceId>, Option<GatewayId>), Severity>;

/// Conditions that are on record as begun.
pub(super) struct Conditions(Standing);

/// What stands now.
pub(super) fn standing(
    store: &Store,
    workspaces: &[WorkspaceId],
    alarms: &Alarms,
    now_us: u64,
) -> Result<Standing, StoreError> {
    let mut standing = Standing::new();
    for (alarm, ..) in alarms.latched() {
        standing.insert((alarm.name().to_owned(), None, None), Severity::High);
    }
    for workspace in workspaces {
        for (gateway, _) in store.silent_gateways(*workspace, now_us)? {
            standing.insert(("gateway-silent".to_owned(), Some(*workspace), Some(gateway)), Severity::Medium);
        }
    }
    if oldest_running(store)?.is_some_and(|since| now_us.saturating_sub(since) > RUNNING_US) {
        standing.insert(("call-without-outcome".to_owned(), None, None), Severity::Low);
    }
    while standing.len() > STANDING_MAX {
        standing.pop_last();
    }
    Ok(standing)
}

/// When the ledger received the oldest intent whose call has no outcome.
fn oldest_running(store: &Store) -> Result<Option<u64>, StoreError> {
    let Some(first) = store.scan(Family::Running, &[], &[]).next() else { return Ok(None) };
    let rank = crate::store::Rank::decode(&first?.0)?;
    Ok(store.committed(rank.commit_index())?.map(|entry| entry.leaf.received_at))
}

fn name_of(condition: &(String, Option<WorkspaceId>, Option<GatewayId>)) -> Bytes {
    let (name, workspace, gateway) = condition;
    let text = |id: Option<String>| id.unwrap_or_else(|| "-".to_owned());
    let (workspace, gateway) = (text(workspace.map(|id| id.to_string())), text(gateway.map(|id| id.to_string())));
    [PREFIX, format!("{name}/{workspace}/{gateway}").as_bytes()].concat().into()
}

fn named(name: &[u8]) -> Option<(String, Option<WorkspaceId>, Option<GatewayId>)> {
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

    /// Rows and records of what began and what ended; some of them if there are many.
    pub(super) fn change(&self, now: &Standing, now_us: u64) -> (Vec<(Family, Bytes, Bytes)>, Vec<wire::Alarm>) {
        let began = now.iter().filter(|(condition, _)| !self.0.contains_key(*condition));
        let ended = self.0.iter().filter(|(condition, _)| !now.contains_key(*condition));
        let began = began.map(|(condition, severity)| (AlarmPhase::Began, condition, *severity));
        let ended = ended.map(|(condition, severity)| (AlarmPhase::Ended, condition, *severity));
        began
            .chain(ended)
            .take(CHANGES_MAX)
            .map(|(phase, condition, severity)| {
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
                ((Family::Meta, name_of(condition), value), alarm)
            })
            .unzip()
    }

    /// What `change` told is on record.
    pub(super) fn stand(&mut self, now: Standing) {
        let began: Vec<_> = now
            .iter()
            .filter(|(condition, _)| !self.0.contains_key(*condition))
            .map(|(condition, _)| condition.clone())
            .collect();
        let ended: Vec<_> = self.0.keys().filter(|condition| !now.contains_key(*condition)).cloned().collect();
        for condition in began.into_iter().chain(ended).take(CHANGES_MAX) {
            match now.get(&condition) {
                Some(severity) => self.0.insert(condition, *severity),
                None => self.0.remove(&condition),
            };
        }
    }
}
