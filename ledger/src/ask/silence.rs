//! Gateways that were silent inside the time that was asked for: of them an answer may lack calls that nobody has told of yet.
//!
//! What must hold: whoever asks hears of gateways in workspaces that it asks of, and of no others, though what tells of a silence that is over
//! is a record of the ledger's own.

use std::collections::HashMap;

use custody::{
    id::{GatewayId, WorkspaceId},
    query::{Expr, Field, Text, Want},
    record::RecordKind,
    wire::{self, AlarmPhase},
};
use tonic::Status;

use super::{
    Asking, Compiled,
    alarms::{self, Wanted},
    broken,
    cursor::Cursor,
};
use crate::{
    clock,
    store::{Rank, SILENCE_GRACE_US},
    watch,
};

/// Silences of one answer: of more the newest.
const SILENCES_MAX: usize = 256;
/// Alarms that are looked at: those of other workspaces stand between.
const LOOKED_MAX: usize = 8_192;

/// Silences that are over, out of what tells of them, newest first: those that ended and did not begin past `most`.
fn over(alarms: &[(wire::Alarm, WorkspaceId, GatewayId)], most: u64) -> Vec<wire::SilentGateway> {
    let mut began: HashMap<(WorkspaceId, GatewayId), usize> = HashMap::new();
    let mut silences: Vec<wire::SilentGateway> = Vec::new();
    for (alarm, workspace, gateway) in alarms {
        if alarm.phase() == AlarmPhase::Ended {
            began.insert((*workspace, *gateway), silences.len());
            silences.push(wire::SilentGateway {
                workspace: (*workspace).into(),
                gateway: (*gateway).into(),
                ended_at: alarm.at,
                ..Default::default()
            });
        } else if let Some(silence) = began.remove(&(*workspace, *gateway)).and_then(|at| silences.get_mut(at)) {
            silence.heard_at = alarm.at;
        }
    }
    silences.retain(|silence| silence.heard_at <= most);
    silences
}

impl Asking {
    /// Gateways of the workspaces asked that are silent, or were so inside the time that is asked for; and whether there may be more.
    pub(super) async fn silent(&self, asked: &Compiled) -> Result<(Vec<wire::SilentGateway>, bool), Status> {
        let (store, now_us) = (self.store()?, clock::now_us());
        let (mut silent, mut words) = (Vec::new(), HashMap::new());
        for workspace in &asked.seen.ids {
            for (gateway, row) in store.newest_epochs(*workspace).map_err(|why| broken(&why))? {
                if row.is_silent(now_us) {
                    silent.push(wire::SilentGateway {
                        workspace: (*workspace).into(),
                        gateway: gateway.into(),
                        heard_at: row.heard_at,
                        silence_us_max: row.silence_us_max,
                        ended_at: 0,
                    });
                }
                words.insert(bytes::Bytes::from(gateway), row.silence_us_max);
            }
        }
        drop(store);
        let Some(own) = watch::own_workspace(&self.0.chains) else { return Ok((silent, false)) };
        let bounds = [Field::At, Field::Received].map(|field| asked.expr.bounds(field));
        let [least, most] = [bounds[0].0.max(bounds[1].0), bounds[0].1.min(bounds[1].1)];
        let is = |field, text: &str| Expr::test(field, Want::Texts(vec![Text::Exact(text.to_owned())]));
        let expr = Expr::All(vec![
            is(Field::Kind, RecordKind::Alarm.name()),
            is(Field::Alarm, watch::GATEWAY_SILENT),
            Expr::test(Field::At, Want::Numbers(vec![(least, u64::MAX)])),
        ]);
        let (from, ids) = (Cursor { last: Rank::first_of(asked.from.pinned), ..asked.from }, asked.seen.ids.clone());
        let alarms = self.work(move |index, until| {
            let mut alarms = Vec::new();
            let all = Wanted { own, expr: &expr, from, until, most: LOOKED_MAX };
            let cut_short = alarms::each(index, &all, |_, raised| {
                let about = raised.workspace.filter(|workspace| ids.contains(workspace)).zip(raised.gateway);
                alarms.extend(about.map(|(workspace, gateway)| (raised.alarm, workspace, gateway)));
                alarms.len() >= 2 * SILENCES_MAX
            })?;
            Ok((alarms, cut_short))
        });
        let (alarms, cut_short) = alarms.await?;
        let mut past = over(&alarms, u64::MAX);
        for silence in &mut past {
            // It was noticed when the gateway had been silent beyond its word.
            let word = words.get(&silence.gateway).copied().unwrap_or_default();
            silence.silence_us_max = word;
            silence.heard_at = silence.heard_at.saturating_sub(word + SILENCE_GRACE_US);
        }
        past.retain(|silence| silence.heard_at <= most);
        silent.extend(past);
        silent.truncate(SILENCES_MAX);
        Ok((silent, cut_short))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_counts_where_it_and_the_time_overlap() {
        let alarm = |gateway: u8, at, phase: AlarmPhase| {
            let alarm = wire::Alarm { at, phase: phase as i32, ..Default::default() };
            (alarm, WorkspaceId([1; 16]), GatewayId([gateway; 16]))
        };
        // Newest first; of the last one the beginning came before what was read.
        let (began, ended) = (AlarmPhase::Began, AlarmPhase::Ended);
        let alarms = [
            alarm(2, 90, began),
            alarm(1, 80, ended),
            alarm(1, 70, began),
            alarm(1, 50, ended),
            alarm(1, 40, began),
            alarm(3, 30, ended),
        ];
        let silences = |most| over(&alarms, most).iter().map(|of| (of.heard_at, of.ended_at)).collect::<Vec<_>>();
        assert_eq!(silences(u64::MAX), [(70, 80), (40, 50), (0, 30)]);
        assert_eq!(silences(60), [(40, 50), (0, 30)]);
    }
}
