//! The watch, for administrators: rules switched, alarms disposed of, and the walk once more. Each change is on record before its answer.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use custody::{
    id::WorkspaceId,
    record,
    strict::is_token,
    wire::{self, AlarmPhase, DispositionKind, Extension, LedgerEventKind, extension, record::Kind},
};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request as Call, Response, Status};

use super::{AdminService, Answer, members::because, workspace_id};
use crate::{
    clock,
    commit::{Untaken, put_on_record},
    store::StoreError,
    watch::{
        engine::{CUT, Engine, RULE_OFF, RULE_ON},
        own_workspace,
        replay::Replay,
        tally::{RECORDS_MAX, Tally, tallies},
    },
};

/// Commits between two messages of a replay.
const STEP: u64 = 2_000;
/// How long a message waits for whoever reads none.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// Messages that wait for whoever reads them.
const WAITING_MAX: usize = 4;

/// What a replay tells.
pub(super) type Replayed = Pin<Box<dyn Stream<Item = Result<wire::ReplayResponse, Status>> + Send>>;

fn broken(why: &StoreError) -> Status {
    tracing::error!(%why, "the records cannot be walked");
    Status::unavailable("the records cannot be read (hint: the ledger's log says why)")
}

pub(super) fn ending() -> Status {
    Status::unavailable("the ledger is ending (hint: try again)")
}

impl AdminService {
    fn engine(&self) -> Result<Engine, Status> {
        Engine::new(&self.rules).map_err(|why| Status::internal(why.to_string()))
    }

    pub(super) async fn tell(&self, record: Kind) -> Result<(), Status> {
        // What it says came from outside.
        if record::check(&record::encode(record.clone())).is_err() {
            return Err(Status::invalid_argument(
                "that cannot be put on record (hint: is the end of the suppression too far away?)",
            ));
        }
        let told = put_on_record(&self.writer, Vec::new(), vec![record]).await;
        told.ok_or_else(ending)?.map_err(|why| match why {
            Untaken::Later(why) => Status::unavailable(format!("nothing is done that cannot be recorded: {why}")),
            Untaken::Held(_) => ending(),
        })
    }

    pub(super) async fn rules_listed(&self) -> Answer<wire::ListRulesResponse> {
        let own = own_workspace(&self.chains).ok_or_else(ending)?;
        let tail = Arc::clone(&self.tail);
        let counted = tokio::task::spawn_blocking(move || tallies(&tail, own, RECORDS_MAX)).await;
        let (tallies, counted_from, counted_to) = counted.map_err(|_| ending())?.map_err(|why| broken(&why))?;
        let told = |(name, tally): (String, Tally)| wire::RuleTally {
            name,
            alarms: tally.alarms,
            true_positives: tally.true_positives,
            false_positives: tally.false_positives,
            benign: tally.benign,
        };
        let tallies = tallies.into_iter().map(told).collect();
        Ok(Response::new(wire::ListRulesResponse { rules: self.rules.to_string(), tallies, counted_from, counted_to }))
    }

    pub(super) async fn rule_switched(&self, call: Call<wire::SwitchRuleRequest>) -> Answer<wire::SwitchRuleResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let request = call.into_inner();
        let no_workspace = || Status::not_found("there is no such workspace (hint: ledger workspace list)");
        let workspace = workspace_id(&request.workspace)?.ok_or_else(no_workspace)?;
        if !self.engine()?.knows(&request.rule) {
            return Err(Status::not_found("there is no such rule (hint: ledger rule list)"));
        }
        let known = |id: &WorkspaceId| {
            self.chains.read().unwrap_or_else(std::sync::PoisonError::into_inner).workspaces.contains_key(id)
        };
        if !known(&workspace) {
            return Err(no_workspace());
        }
        let event = wire::LedgerEvent {
            at: clock::now_us(),
            kind: LedgerEventKind::Configuration as i32,
            action: if request.off { RULE_OFF } else { RULE_ON }.to_owned(),
            outcome: "ok".to_owned(),
            actor: because.actor,
            reason: because.reason,
            ticket: because.ticket,
            workspace: Some(workspace.into()),
            details: vec![Extension {
                key: format!("rule/{}", request.rule),
                value: Some(extension::Value::Number(1)),
            }],
            ..Default::default()
        };
        self.tell(Kind::LedgerEvent(event)).await?;
        Ok(Response::new(wire::SwitchRuleResponse {}))
    }

    pub(super) async fn disposed(&self, call: Call<wire::DisposeRequest>) -> Answer<wire::DisposeResponse> {
        let because = because(&call, call.get_ref().because.as_ref())?;
        let request = call.into_inner();
        let now = clock::now_us();
        let suppresses = request.kind() == DispositionKind::Suppressed;
        if request.kind() == DispositionKind::Unspecified || suppresses != (request.until > 0) {
            return Err(Status::invalid_argument("say what it was; a suppression, and nothing else, has an end"));
        }
        if suppresses && request.until <= now {
            return Err(Status::invalid_argument("the suppression would be over already"));
        }
        let own = own_workspace(&self.chains).ok_or_else(ending)?;
        let one = self.tail.at_position(own, request.position).map_err(|why| broken(&why))?;
        let nothing = || Status::not_found("no alarm stands there (hint: ledger search kind:alarm)");
        let alarm = one.and_then(|one| crate::watch::alarm_at(&one)).ok_or_else(nothing)?;
        if suppresses && (alarm.phase() != AlarmPhase::Raised || alarm.name == CUT) {
            return Err(Status::invalid_argument(
                "a condition is not suppressed: it is told once, when it begins (hint: an alarm of a rule or an incident is)",
            ));
        }
        let actor = Some(because.actor).filter(|actor| is_token(actor)).unwrap_or_else(|| "administrator".to_owned());
        let said = wire::Disposition {
            at: now,
            kind: request.kind,
            workspace: own.into(),
            position: request.position,
            actor,
            reason: because.reason,
            ticket: because.ticket,
            until: suppresses.then_some(request.until),
        };
        self.tell(Kind::Disposition(said)).await?;
        Ok(Response::new(wire::DisposeResponse {}))
    }

    pub(super) async fn replayed(&self, call: Call<wire::ReplayRequest>) -> Answer<Replayed> {
        let request = call.into_inner();
        let others = !request.rules.is_empty();
        let text = if others { Arc::from(request.rules) } else { Arc::clone(&self.rules) };
        let engine = Engine::new(&text).map_err(|why| Status::invalid_argument(why.to_string()))?;
        let busy = || Status::resource_exhausted("another replay is under way (hint: try again when it is done)");
        let place = Arc::clone(&self.replays).try_acquire_owned().map_err(|_| busy())?;
        let own = own_workspace(&self.chains);
        let (tail, since) = (Arc::clone(&self.tail), others.then_some(request.since));
        let (to, stream) = mpsc::channel(WAITING_MAX);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let told = Replay::new(&tail, own, engine, since).and_then(|mut replay| {
                loop {
                    // Whoever asked may be gone: nobody walks on for them, however long nobody reads.
                    let Some((alarms, more)) = replay.step(STEP, &|| to.is_closed())? else { return Ok(()) };
                    let (walked, committed) = replay.progress();
                    let alarms = alarms.iter().map(|alarm| Bytes::from(crate::watch::bytes_of(alarm))).collect();
                    let mut told = wire::ReplayResponse { walked, committed, alarms, outcome: None };
                    if !more {
                        told.outcome = Some(replay.outcome());
                        to.blocking_send(Ok(told)).ok();
                        return Ok(());
                    }
                    // Nor does somebody who reads nothing keep the one place for ever.
                    let sent = runtime.block_on(tokio::time::timeout(UNREAD_MAX, to.send(Ok(told))));
                    if !matches!(sent, Ok(Ok(()))) {
                        return Ok(());
                    }
                }
            });
            if let Err(why) = told {
                to.blocking_send(Err(broken(&why))).ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
