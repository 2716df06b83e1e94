//! Rows that are changed and the records that tell of it, in one write: of people, of API tokens; or records alone that must be
//! on disk before something is done or shown.
//!
//! What must hold: a row and its record are on disk together or not at all; an erasure is decided where legal holds are, so that
//! none can come between; nothing is answered before the write.

use bytes::Bytes;
use custody::wire::{LedgerEventKind, record::Kind};
use tokio::sync::{mpsc, oneshot};

use super::{Group, Request, State, Writer, number};
use crate::store::{Family, StoreError};

/// Rows and records that are one change. At most some hundred records of at most 5 KiB: they share a batch of 1 MiB.
pub struct OnRecord {
    /// Values that stand from now on: family, key, value.
    pub rows: Vec<(Family, Bytes, Bytes)>,
    /// What tells of it, in this order.
    pub records: Vec<Kind>,
    /// It is an erasure, which a legal hold refuses; `true`: not this one.
    pub erasure: Option<bool>,
    /// Hears when it is on disk.
    pub reply: oneshot::Sender<Result<(), Untaken>>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untaken {
    /// Not now, in words.
    Later(String),
    /// So many legal holds stand; that it was refused is on record.
    Held(usize),
}

/// Puts rows and records that are no erasure on disk, through the writer: they are there when this returns. `None`: the ledger is ending.
pub async fn put_on_record(
    writer: &mpsc::Sender<Request>,
    rows: Vec<(Family, Bytes, Bytes)>,
    records: Vec<Kind>,
) -> Option<Result<(), Untaken>> {
    let (reply, answer) = oneshot::channel();
    let told = OnRecord { rows, records, erasure: None, reply };
    writer.send(Request::OnRecord(Box::new(told))).await.ok()?;
    answer.await.ok()
}

impl Writer {
    pub(super) fn take_on_record(&mut self, told: OnRecord, group: &mut Group<'_>) -> Result<(), StoreError> {
        let OnRecord { rows, mut records, erasure, reply } = told;
        let ready = self.own_is_ready(records.len());
        let later = match self.state {
            State::Serving if !ready => Some("too many of its own records wait".to_owned()),
            // An erasure needs no room to speak of.
            State::Serving if self.disk_low && erasure.is_none() => Some("no room on the ledger's disk".to_owned()),
            State::Serving => None,
            _ => Some(format!("the ledger takes nothing: {}", self.state.name())),
        };
        if let Some(why) = later {
            drop(reply.send(Err(Untaken::Later(why))));
            return Ok(());
        }
        let holds = self.workspaces.values().map(|workspace| workspace.chain.holds().count()).sum::<usize>();
        let mut outcome = Ok(());
        if let (Some(forced), true) = (erasure, holds > 0) {
            for record in &mut records {
                let Kind::LedgerEvent(event) = record else { continue };
                event.details.push(number("legal_holds", u64::try_from(holds).unwrap_or(u64::MAX)));
                if !forced {
                    // What did not happen is no erasure.
                    event.kind = LedgerEventKind::Administration as i32;
                    event.outcome = "legal_hold".to_owned();
                }
            }
            outcome = if forced { Ok(()) } else { Err(Untaken::Held(holds)) };
        }
        if outcome.is_ok() {
            for (family, key, value) in rows {
                group.change.put(family, key, value);
            }
        }
        records.into_iter().for_each(|record| self.own.push(record));
        // At once: whatever else this group brings, rows do not go without their records.
        self.append_own(group)?;
        group.answers.push(Box::new(move |_| drop(reply.send(outcome))));
        Ok(())
    }
}
