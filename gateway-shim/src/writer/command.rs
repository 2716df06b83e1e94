//! What the writer is asked, how, and what it answers.

use std::time::Duration;

use bytes::Bytes;
use custody::{
    id::{Epoch, GatewayId},
    wire::{self, OpeningReason, record::Kind},
};
use tokio::sync::{mpsc, oneshot};

use crate::spool::{Receipts, Received};

/// A record's stable name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordName {
    /// The gateway.
    pub gateway: GatewayId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Number within the epoch.
    pub number: u64,
}

impl std::fmt::Display for RecordName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.gateway, self.epoch, self.number)
    }
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The spool is full of what the ledger does not hold, or its disk has no space: try again later.
    SpoolFull,
    /// As above, and the configuration says to let the record go; the loss is declared.
    Dropped,
    /// The ledger takes nothing, and calls of this server are refused then: try again when it is back.
    LedgerAway,
    /// Too many calls are in progress: try again soon.
    Busy,
    /// The gateway drains: try another one.
    Draining,
    /// The disk failed, or the gateway stopped for good.
    Stopped,
    /// Not a record that a gateway may write.
    NotARecord,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SpoolFull => {
                "record: the spool or its disk is full; hint: is the ledger reachable, and is there space on the disk?"
            }
            Self::Dropped => "record: the spool is full; it is declared as dropped: do not send it again",
            Self::LedgerAway => {
                "record: the ledger takes nothing, and when_full of this server is fail_closed; hint: is the ledger \
                 reachable?"
            }
            Self::Busy => "record: too many calls are in progress",
            Self::Draining => "record: the gateway is ending",
            Self::Stopped => "record: the gateway has stopped",
            Self::NotARecord => "record: not a record that a gateway may write",
        })
    }
}

impl std::error::Error for Refused {}

/// Of a call in progress: its number.
pub(super) type Ticket = u64;

/// What others call a call by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallName {
    /// The epoch in which it began.
    pub epoch: Epoch,
    /// Its number there.
    pub number: u64,
}

impl CallName {
    /// The link of a later call that continues this one so. It names the epoch: the later one may be of another.
    pub fn linked(&self, kind: wire::LinkKind) -> wire::Link {
        wire::Link { kind: kind as i32, epoch: Some(self.epoch.into()), call_number: self.number }
    }
}

/// How a call ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Its outcome.
    pub outcome: wire::Outcome,
    /// JSON-RPC error code or HTTP status.
    pub error_code: Option<u32>,
    /// Bytes of the answer.
    pub response_bytes: u64,
    /// What only its answer told; boxed, because most tell nothing.
    pub learnt: Option<Box<Learnt>>,
}

/// What the answer of a call told of it. What is `None` stays as it was when the call began; what would make the record one
/// that no gateway may write is left out, and logged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learnt {
    /// Digest of the pinned tool's definition.
    pub definition_digest: Option<[u8; 32]>,
    /// Digest of the conversation's name.
    pub conversation_digest: Option<[u8; 32]>,
    /// What the tool's runtime signed.
    pub receipt: Option<wire::ForensicReceipt>,
    /// The call that this one continued.
    pub link: Option<wire::Link>,
}

impl Learnt {
    /// Puts into a call what was learnt of it.
    pub(super) fn tell(&self, call: &mut wire::Call) {
        let bytes = |digest: [u8; 32]| Bytes::copy_from_slice(&digest);
        let Self { definition_digest, conversation_digest, receipt, link } = self.clone();
        call.definition_digest = definition_digest.map(bytes).or_else(|| call.definition_digest.take());
        call.conversation_digest = conversation_digest.map(bytes).or_else(|| call.conversation_digest.take());
        call.receipt = receipt.or_else(|| call.receipt.take());
        call.link = link.or_else(|| call.link.take());
    }
}

impl Ending {
    /// An ending with nothing but its outcome.
    pub fn of(outcome: wire::Outcome) -> Self {
        Self { outcome, ..Self::default() }
    }
}

/// Where an answer goes.
pub type Answer<T> = oneshot::Sender<Result<T, Refused>>;

/// What the writer is asked.
#[derive(Debug)]
pub enum Command {
    /// A record, whole.
    Record(Box<Kind>, Answer<RecordName>),
    /// A call begins.
    Begin(Box<wire::Call>, Answer<CallName>),
    /// A call has ended.
    Finish(Ticket, Ending, Option<Answer<()>>),
    /// Batches to send.
    Fetch(Fetch, Answer<Vec<(u64, Bytes)>>),
    /// A verified receipt: the head, and which batches it covers.
    Receipts(Receipts, Answer<()>),
    /// A verified archived receipt: the last segment that it covers.
    Archived(u64, Answer<()>),
    /// The ledger lost what it had from this order on.
    Unreceived(u64, Answer<()>),
    /// A verified statement.
    Statement(Bytes, Answer<()>),
    /// A new epoch, for this reason or behind the last receipt; what has none is signed again in it.
    Rewind(Option<OpeningReason>, Answer<()>),
    /// Where a batch stands in the spool.
    OrderOf(Epoch, u64, Answer<Option<u64>>),
    /// No more records: sign the last batches and close the epoch. Gives the number of calls that had not ended.
    Drain(Answer<u64>),
}

/// Which batches.
#[derive(Clone, Copy, Debug)]
pub struct Fetch {
    /// From this order on.
    pub from: u64,
    /// Only those without a receipt.
    pub unreceived: bool,
    /// At most so many.
    pub count_max: usize,
    /// At most so many bytes, but at least one batch.
    pub bytes_max: usize,
}

/// How long until the writer is asked again for what found the spool's disk full.
pub const FULL_WAIT: Duration = Duration::from_secs(1);

/// Asks the writer and waits for its answer.
///
/// # Errors
/// What the writer says; [`Refused::Stopped`] when it has ended.
pub async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
) -> Result<T, Refused> {
    let (answer, answered) = oneshot::channel();
    commands.send(command(answer)).await.map_err(|_| Refused::Stopped)?;
    answered.await.map_err(|_| Refused::Stopped)?
}

/// What others may watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Order that the next batch will get.
    pub next_order: u64,
    /// Batches without a receipt.
    pub unreceived: u64,
}

/// The receipts of one message, as the spool keeps them.
pub fn receipts(head: Bytes, received: impl IntoIterator<Item = (u64, u64)>) -> Receipts {
    let received = received.into_iter().map(|(order, segment)| Received { order, segment });
    Receipts { head, received: received.collect() }
}
