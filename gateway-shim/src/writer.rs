//! The one writer of the spool: numbers records, signs batches, and answers when the disk has them.
//!
//! It runs on a thread of its own and owns the spool and the key. Whatever waits is taken together, written, made durable by
//! one sync, and only then answered. Calls that begin and end are paired here: one record if the call ends within two
//! seconds, else its intent and its outcome.
//!
//! What must hold: no answer before the sync that covers it; no batch is shown to the client (`client.rs`) before it is
//! durable, so that no number is ever signed twice.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    batch::{encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash},
    record,
    wire::{self, DeliveryState, DropReason, OpeningReason, gateway_event::Event, record::Kind},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    batcher::{self, Limits, Place, Saying},
    clock::{self, JumpWatch},
    config::WhenFull,
    key::{self, Name},
    spool::{Dropped, Entry, Intent, Receipts, Received, Recorded, Spool, SpoolError},
};

/// A call that still runs after this long ships its intent as a record of its own.
pub const INTENT_AFTER: Duration = Duration::from_secs(2);
/// Commands taken together before one sync: as many as wait, up to what keeps the group's answer under a few milliseconds.
const GROUP_MAX: usize = 1_024;
/// Commands that may wait: with a sync of 10 ms, what 100,000 records a second need.
pub const QUEUE_MAX: usize = 4_096;
/// Calls in progress at a time: each is a few hundred bytes of memory and of each snapshot.
pub const RUNNING_MAX: usize = 65_536;
/// How often the two clocks are compared, and what was let go is counted in the journal at the latest.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

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
    /// The spool is full of what the ledger does not hold: try again when the ledger is back.
    SpoolFull,
    /// As above, and the configuration says to let the record go; the loss is declared.
    Dropped,
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
            Self::SpoolFull => "record: the spool is full; hint: is the ledger reachable?",
            Self::Dropped => "record: the spool is full, and the loss was declared",
            Self::Busy => "record: too many calls are in progress",
            Self::Draining => "record: the gateway is ending",
            Self::Stopped => "record: the gateway has stopped",
            Self::NotARecord => "record: not a record that a gateway may write",
        })
    }
}

impl std::error::Error for Refused {}

/// Ticket of a call in progress.
pub type Ticket = u64;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its outcome.
    pub outcome: wire::Outcome,
    /// JSON-RPC error code or HTTP status.
    pub error_code: Option<u32>,
    /// Bytes of the answer.
    pub response_bytes: u64,
}

impl Ending {
    /// An ending with nothing but its outcome.
    pub fn of(outcome: wire::Outcome) -> Self {
        Self { outcome, error_code: None, response_bytes: 0 }
    }
}

type Answer<T> = oneshot::Sender<Result<T, Refused>>;

/// What the writer is asked.
#[derive(Debug)]
pub enum Command {
    /// A record, whole.
    Record(Box<Kind>, Answer<RecordName>),
    /// A call begins.
    Begin(Box<wire::Call>, Answer<Ticket>),
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
    /// A new epoch that continues nothing; what has no receipt is signed again in it.
    Rewind(OpeningReason, Answer<()>),
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

/// What others may watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Order that the next batch will get.
    pub next_order: u64,
    /// Batches without a receipt.
    pub unreceived: u64,
}

/// What the writer needs to know.
pub struct Settings {
    /// Who signs.
    pub who: Name,
    /// With what.
    pub key: SigningKey,
    /// When batches are due.
    pub limits: Limits,
    /// What a full spool does.
    pub when_full: WhenFull,
    /// What the opening record says, besides the clock.
    pub opened: wire::Opened,
}

/// A call in progress, as memory holds it; the spool holds the same.
struct Running {
    call: wire::Call,
    since: Instant,
    shipped: bool,
}

/// The writer. [`Writer::open`] recovers, [`Writer::run`] is its life.
pub struct Writer {
    spool: Spool,
    settings: Settings,
    running: HashMap<Ticket, Running>,
    /// Calls in the order of their beginning, until their intent is due; some have ended.
    young: VecDeque<(Instant, Ticket)>,
    next_call: u64,
    oldest_pending: Option<Instant>,
    last_batch: Instant,
    delivery: DeliveryState,
    /// Records let go since the journal last counted them.
    dropped: u64,
    counted_at: Instant,
    draining: bool,
    clock: JumpWatch,
    progress: watch::Sender<Progress>,
}

/// Answers that wait for the group's sync.
#[derive(Default)]
struct Group(Vec<Box<dyn FnOnce() + Send>>);

impl Group {
    fn answer<T: Send + 'static>(&mut self, to: Answer<T>, what: Result<T, Refused>) {
        // Nobody may be waiting any more; what was written stays written.
        self.0.push(Box::new(move || drop(to.send(what))));
    }

    fn release(self) {
        for answer in self.0 {
            answer();
        }
    }
}

impl Writer {
    /// Ends the epoch that a crash or a kill left open, and opens a new one. What the old one had in progress ends as
    /// `unknown`.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn open(spool: Spool, settings: Settings) -> Result<(Self, watch::Receiver<Progress>), SpoolError> {
        let (progress, watching) = watch::channel(Progress::default());
        let mut writer = Self {
            spool,
            settings,
            running: HashMap::new(),
            young: VecDeque::new(),
            next_call: 1,
            oldest_pending: None,
            last_batch: Instant::now(),
            delivery: DeliveryState::Flowing,
            dropped: 0,
            counted_at: Instant::now(),
            draining: false,
            clock: JumpWatch::default(),
            progress,
        };
        let previous = writer.end_old_epoch()?;
        let reason = (previous == HeaderHash::ZERO).then_some(OpeningReason::First);
        writer.open_epoch(previous, reason)?;
        writer.sign_due(true)?;
        writer.sync()?;
        Ok((writer, watching))
    }

    /// Signs what the old epoch left, with `close`. Gives the hash of its last header.
    fn end_old_epoch(&mut self) -> Result<HeaderHash, SpoolError> {
        let Some(place) = self.spool.state().place.clone() else { return Ok(HeaderHash::ZERO) };
        if !place.closed {
            // The journal goes on in a new file, because a crash may have torn the end of the old one.
            self.spool.turn(|_| {})?;
            self.end_unfinished()?;
            self.close()?;
            self.spool.sync()?;
        }
        Ok(self.spool.state().place.as_ref().map_or(HeaderHash::ZERO, |place| place.previous))
    }

    /// Calls that nobody will end any more: their intents, if those were not shipped, and `unknown`.
    fn end_unfinished(&mut self) -> Result<u64, SpoolError> {
        let unfinished: Vec<Intent> = self.spool.state().intents.values().cloned().collect();
        for intent in &unfinished {
            let Some(call) = intent.call() else { continue };
            if !intent.shipped {
                self.append(intent_of(call.clone()), Some(intent.call), true)?;
            }
            let ending = Ending::of(wire::Outcome::Unknown);
            self.append(outcome_of(call, &ending, 0), Some(intent.call), false)?;
        }
        self.running.clear();
        Ok(unfinished.len() as u64)
    }

    /// Opens an epoch in a new file of the spool.
    fn open_epoch(&mut self, previous: HeaderHash, reason: Option<OpeningReason>) -> Result<(), SpoolError> {
        let mut opened = self.settings.opened.clone();
        opened.clock = clock::state() as i32;
        let bytes = record::encode(event(Event::Opened(opened))).into();
        let place = Place::opening(Epoch(key::random()), key::key_id(&self.settings.key), previous, reason);
        tracing::info!(epoch = %place.epoch, ?reason, "epoch opened");
        self.spool.turn(|state| state.open(place, batcher::Pending { number: 0, bytes }))?;
        self.oldest_pending = Some(Instant::now());
        Ok(())
    }

    /// The writer's life: until all who could ask are gone, or the disk fails.
    ///
    /// # Errors
    /// [`SpoolError`]: nothing more can be promised; start again.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), SpoolError> {
        let mut batch = Vec::with_capacity(GROUP_MAX);
        loop {
            let waited = tokio::time::timeout(self.next_deadline(), commands.recv_many(&mut batch, GROUP_MAX)).await;
            if waited == Ok(0) {
                return Ok(());
            }
            let mut group = Group::default();
            for command in batch.drain(..) {
                self.take(command, &mut group)?;
            }
            self.tick()?;
            self.sign_due(false)?;
            self.sync()?;
            group.release();
        }
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        self.spool.sync()?;
        let state = self.spool.state();
        let progress = Progress { next_order: state.next_order, unreceived: state.unreceived.len() as u64 };
        self.progress.send_if_modified(|now| {
            let changed = *now != progress;
            *now = progress;
            changed
        });
        Ok(())
    }

    /// How long nothing has to happen.
    fn next_deadline(&self) -> Duration {
        let limits = &self.settings.limits;
        let batch = self.oldest_pending.map(|since| limits.age_max.saturating_sub(since.elapsed()));
        let intent = self.young.front().map(|(since, _)| INTENT_AFTER.saturating_sub(since.elapsed()));
        let heartbeat = limits.heartbeat_after.saturating_sub(self.last_batch.elapsed());
        [Some(CLOCK_LOOK), batch, intent, Some(heartbeat)].into_iter().flatten().min().unwrap_or(CLOCK_LOOK)
    }

    fn take(&mut self, command: Command, group: &mut Group) -> Result<(), SpoolError> {
        match command {
            Command::Record(kind, answer) => {
                let done = self.record(*kind)?;
                group.answer(answer, done);
            }
            Command::Begin(call, answer) => {
                let done = self.begin(*call)?;
                group.answer(answer, done);
            }
            Command::Finish(ticket, ending, answer) => {
                self.finish(ticket, &ending)?;
                if let Some(answer) = answer {
                    group.answer(answer, Ok(()));
                }
            }
            Command::Fetch(fetch, answer) => {
                // Only what was synced is shown: this group's batches are signed after its commands were taken.
                let Fetch { from, unreceived, count_max, bytes_max } = fetch;
                let batches = self.spool.fetch(from, unreceived, count_max, bytes_max)?;
                group.answer(answer, Ok(batches));
            }
            Command::Receipts(receipts, answer) => {
                self.spool.append(Entry::Receipts(receipts))?;
                group.answer(answer, Ok(()));
            }
            Command::Archived(segment, answer) => {
                self.spool.append(Entry::Archived(segment))?;
                group.answer(answer, Ok(()));
            }
            Command::Unreceived(from, answer) => {
                if self.spool.state().held.range(from..).any(|(_, held)| held.segment.is_some()) {
                    self.spool.append(Entry::Unreceived(from))?;
                }
                group.answer(answer, Ok(()));
            }
            Command::Statement(statement, answer) => {
                self.spool.keep_statement(statement)?;
                group.answer(answer, Ok(()));
            }
            Command::Rewind(reason, answer) => {
                self.rewind(reason)?;
                group.answer(answer, Ok(()));
            }
            Command::OrderOf(epoch, number, answer) => {
                let order = self.spool.state().order_of(epoch, number);
                group.answer(answer, Ok(order));
            }
            Command::Drain(answer) => {
                let unfinished = self.drain()?;
                group.answer(answer, Ok(unfinished));
            }
        }
        Ok(())
    }

    /// Room for a record of so many bytes, or why there is none.
    fn room(&mut self, bytes: usize) -> Result<Result<(), Refused>, SpoolError> {
        if self.draining {
            return Ok(Err(Refused::Draining));
        }
        if self.spool.has_room(bytes) {
            self.delivery(DeliveryState::Flowing)?;
            return Ok(Ok(()));
        }
        match self.spool.make_room(bytes) {
            Ok(gone) => {
                tracing::warn!(batches = gone, "spool full: let go of batches that the ledger holds, not yet archived");
                self.delivery(DeliveryState::Spooling)?;
                Ok(Ok(()))
            }
            Err(SpoolError::Full) if self.settings.when_full == WhenFull::Drop => {
                self.delivery(DeliveryState::FailOpen)?;
                self.dropped += 1;
                Ok(Err(Refused::Dropped))
            }
            Err(SpoolError::Full) => {
                self.delivery(DeliveryState::Refusing)?;
                Ok(Err(Refused::SpoolFull))
            }
            Err(error) => Err(error),
        }
    }

    /// Records a change of how records are delivered; the reserve of the spool has room for that.
    fn delivery(&mut self, state: DeliveryState) -> Result<(), SpoolError> {
        if self.delivery == state {
            return Ok(());
        }
        self.delivery = state;
        tracing::warn!(?state, "delivery");
        let delivery = wire::Delivery { server: String::new(), state: state as i32 };
        self.append(event(Event::Delivery(delivery)), None, false).map(drop)
    }

    fn record(&mut self, mut kind: Kind) -> Result<Result<RecordName, Refused>, SpoolError> {
        if let Kind::Call(call) = &mut kind
            && call.call_number == 0
        {
            call.call_number = self.next_call;
            self.next_call += 1;
        }
        let bytes = record::encode(kind.clone());
        let known = record::check(&bytes).is_ok_and(|kind| kind.may_be_written_by(wire::Role::Gateway, false));
        if !known {
            return Ok(Err(Refused::NotARecord));
        }
        if let Err(refused) = self.room(bytes.len())? {
            return Ok(Err(refused));
        }
        refuse_full(self.append(kind, None, false))
    }

    /// Counts what was let go, before a later record takes its number.
    fn count_dropped(&mut self) -> Result<(), SpoolError> {
        self.counted_at = Instant::now();
        match std::mem::take(&mut self.dropped) {
            0 => Ok(()),
            count => {
                let reason = DropReason::SpoolFull as i32;
                self.spool.append(Entry::Dropped(Dropped { count, reason }))
            }
        }
    }

    fn append(&mut self, kind: Kind, call: Option<u64>, ships_intent: bool) -> Result<RecordName, SpoolError> {
        self.count_dropped()?;
        let record = Bytes::from(record::encode(kind));
        let number = self.spool.state().next_number;
        self.spool.append(Entry::Recorded(Recorded { number, record, call, ships_intent }))?;
        self.oldest_pending.get_or_insert_with(Instant::now);
        let epoch = self.spool.state().place.as_ref().map_or(Epoch::ZERO, |place| place.epoch);
        Ok(RecordName { gateway: self.settings.who.gateway, epoch, number })
    }

    fn begin(&mut self, mut call: wire::Call) -> Result<Result<Ticket, Refused>, SpoolError> {
        call.call_number = self.next_call;
        if record::check(&record::encode(intent_of(call.clone()))).is_err() {
            return Ok(Err(Refused::NotARecord));
        }
        if self.running.len() >= RUNNING_MAX {
            return Ok(Err(Refused::Busy));
        }
        // Room for intent and outcome: once a call was let through, its outcome finds its place.
        let bytes = Bytes::from(call.encode_to_vec());
        if let Err(refused) = self.room(bytes.len() * 3)? {
            return Ok(Err(refused));
        }
        let ticket = self.next_call;
        self.next_call += 1;
        let intent = Intent { call: ticket, bytes, shipped: false };
        let appended = refuse_full(self.spool.append(Entry::Intent(intent)))?;
        Ok(appended.map(|()| {
            let since = Instant::now();
            self.running.insert(ticket, Running { call, since, shipped: false });
            self.young.push_back((since, ticket));
            ticket
        }))
    }

    fn finish(&mut self, ticket: Ticket, ending: &Ending) -> Result<(), SpoolError> {
        // A drain may have ended it as unknown.
        let Some(running) = self.running.remove(&ticket) else { return Ok(()) };
        let duration_us = u64::try_from(running.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let kind = match running.shipped {
            true => outcome_of(running.call, ending, duration_us),
            false => complete_of(running.call, ending, duration_us),
        };
        self.append(kind, Some(ticket), false).map(drop)
    }

    /// What is due by time alone: intents of long calls, a look at the clock.
    fn tick(&mut self) -> Result<(), SpoolError> {
        if self.counted_at.elapsed() >= CLOCK_LOOK {
            self.count_dropped()?;
        }
        while let Some((_, ticket)) = self.young.pop_front_if(|(since, _)| since.elapsed() >= INTENT_AFTER) {
            let Some(running) = self.running.get_mut(&ticket) else { continue };
            running.shipped = true;
            let intent = intent_of(running.call.clone());
            self.append(intent, Some(ticket), true)?;
        }
        if let Some(jump) = self.clock.look()
            && !self.draining
        {
            tracing::warn!(forward_us = jump.forward_us, backward_us = jump.backward_us, "the wall clock jumped");
            let jump = wire::ClockJump { forward_us: jump.forward_us, backward_us: jump.backward_us };
            self.append(event(Event::ClockJump(jump)), None, false)?;
        }
        Ok(())
    }

    /// Signs every batch that is due; all that are pending with `now`.
    fn sign_due(&mut self, now: bool) -> Result<(), SpoolError> {
        let limits = self.settings.limits;
        loop {
            let state = self.spool.state();
            let Some(place) = state.place.as_ref().filter(|place| !place.closed) else { return Ok(()) };
            let old = self.oldest_pending.is_some_and(|since| since.elapsed() >= limits.age_max);
            let due = now || old || batcher::is_full(place, &state.pending, &limits);
            let silent = self.last_batch.elapsed() >= limits.heartbeat_after;
            match state.pending.is_empty() {
                true if silent => self.sign(false)?,
                false if due => self.sign(false)?,
                _ => return Ok(()),
            }
        }
    }

    /// Signs the next batch; it is sent after the sync.
    fn sign(&mut self, close: bool) -> Result<(), SpoolError> {
        let state = self.spool.state();
        let Some(place) = state.place.clone() else { return Ok(()) };
        let cut = batcher::cut(&place, &state.pending, &self.settings.limits);
        let records: Vec<Bytes> = state.pending.iter().take(cut.count).map(|record| record.bytes.clone()).collect();
        let last = cut.count == state.pending.len();
        let first = if records.is_empty() { state.next_number } else { place.next_record + cut.dropped };
        let saying = Saying {
            last_head: state.last_head.clone(),
            drop_reason: state.drop_reason.unwrap_or(DropReason::SpoolFull),
            close: close && last && (records.is_empty() || first + cut.count as u64 == state.next_number),
            created_at: clock::now_us(),
        };
        let mut header = batcher::header(&self.settings.who, &place, first, records.len(), saying);
        let seed = key::random();
        seal_header(&mut header, &seed, &records);
        let batch = encode_signed(&header.encode(), &self.settings.key, &seed, &records);
        self.spool.append(Entry::Batch(batch.into()))?;
        self.last_batch = Instant::now();
        if last {
            self.oldest_pending = None;
        }
        Ok(())
    }

    /// Signs all that is left, the last batch with `close`.
    fn close(&mut self) -> Result<(), SpoolError> {
        self.count_dropped()?;
        while self.spool.state().place.as_ref().is_some_and(|place| !place.closed) {
            self.sign(true)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<u64, SpoolError> {
        self.draining = true;
        let unfinished = self.end_unfinished()?;
        self.close()?;
        Ok(unfinished)
    }

    /// What the ledger has no receipt for is signed again, in a new epoch that continues nothing. Batch by batch: a crash
    /// between leaves the rest unreceived under its old name, and the ledger's next rejection leads here again.
    fn rewind(&mut self, reason: OpeningReason) -> Result<(), SpoolError> {
        while !self.spool.state().pending.is_empty() {
            self.sign(false)?;
        }
        self.spool.sync()?;
        let end = self.spool.state().next_order;
        self.open_epoch(HeaderHash::ZERO, Some(reason))?;
        while let Some((order, batch)) = self.spool.fetch(0, true, 1, usize::MAX)?.pop().filter(|(at, _)| *at < end) {
            tracing::warn!(order, "a batch without a receipt is signed again");
            let batch = wire::SignedBatch::decode(batch).unwrap_or_default();
            for record in batch.records.into_iter().filter(|record| record::opened(record).is_none()) {
                let number = self.spool.state().next_number;
                self.spool.append(Entry::Recorded(Recorded { number, record, call: None, ships_intent: false }))?;
            }
            self.spool.append(Entry::SignedAgain(order))?;
            self.sign_due(true)?;
            self.spool.sync()?;
        }
        if self.draining {
            self.close()?;
        }
        Ok(())
    }
}

/// A full disk refuses one record; anything else ends the writer.
fn refuse_full<T>(done: Result<T, SpoolError>) -> Result<Result<T, Refused>, SpoolError> {
    match done {
        Ok(value) => Ok(Ok(value)),
        Err(SpoolError::Full) => Ok(Err(Refused::SpoolFull)),
        Err(error) => Err(error),
    }
}

fn event(event: Event) -> Kind {
    Kind::GatewayEvent(wire::GatewayEvent { at: clock::now_us(), event: Some(event) })
}

fn intent_of(mut call: wire::Call) -> Kind {
    call.phase = wire::Phase::Intent as i32;
    call.outcome = wire::Outcome::Running as i32;
    Kind::Call(call)
}

fn outcome_of(call: wire::Call, ending: &Ending, duration_us: u64) -> Kind {
    ended(call, wire::Phase::Outcome, ending, duration_us)
}

fn complete_of(call: wire::Call, ending: &Ending, duration_us: u64) -> Kind {
    ended(call, wire::Phase::Complete, ending, duration_us)
}

fn ended(mut call: wire::Call, phase: wire::Phase, ending: &Ending, duration_us: u64) -> Kind {
    call.phase = phase as i32;
    call.outcome = ending.outcome as i32;
    call.error_code = ending.error_code;
    call.response_bytes = ending.response_bytes;
    call.duration_us = duration_us;
    Kind::Call(call)
}

/// The receipts of one message, as the spool keeps them.
pub fn receipts(head: Bytes, received: impl IntoIterator<Item = (u64, u64)>) -> Receipts {
    let received = received.into_iter().map(|(order, segment)| Received { order, segment });
    Receipts { head, received: received.collect() }
}
