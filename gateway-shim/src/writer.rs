//! The one writer of the spool: numbers records, signs batches, and answers when they are kept.
//!
//! Callers write into the journal through [`desk`], each under its lock; the writer's thread does everything else: it signs what is
//! due, waits for the disk, and answers all that one sync made durable. Calls that begin and end are paired here: one record if
//! the call ends within two seconds, else its intent and its outcome.
//!
//! What must hold: no intent of strict mode is answered before the sync that covers it; no relaxed one before it is written,
//! which a killed process cannot undo, nor while anything has waited for the disk for 5 ms; no batch is shown to the client
//! (`client.rs`) before it is durable, so that no number is ever signed twice; no batch is signed with another key than its
//! epoch's. An outcome is written when its call has ended and holds up nobody: it is durable with the next sync, at most some
//! milliseconds later, and a power cut before that makes it `unknown`. A disk without space refuses and ends nothing: what is
//! owed by then (the outcome of a call that was let through, a count of drops, a batch that is due) is kept in memory and
//! written when there is space again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::{Epoch, HeaderHash},
    record,
    wire::{self, DropReason, OpeningReason, gateway_event::Event, record::Kind},
};
use prost::Message as _;
use tokio::sync::{oneshot, watch};

use crate::{
    clock::{JUMP_MIN, Jump, JumpWatch},
    seen::{Counted, Seen},
    spool::{Dropped, Entry, Intent, Recorded, Spool, SpoolError, Synced, Syncing},
};

mod command;
mod delivery;
mod desk;
mod epoch;
mod kinds;
mod must;
mod rewind;
mod settings;
mod shown;
mod sign;

use command::Ticket;
pub use command::{
    Answer, CallName, Command, Ending, FULL_WAIT, Fetch, Learnt, Progress, RecordName, Refused, receipts,
};
use delivery::Deliveries;
pub use desk::{Desk, Life, desk};
use desk::{Durable, Waiting};
pub use epoch::Carried;
use kinds::{complete_of, event, intent_of, outcome_of};
pub use settings::{Settings, Waits};

/// A call that still runs after this long ships its intent as a record of its own.
pub const INTENT_AFTER: Duration = Duration::from_secs(2);
/// How long a write waits for the disk at most, before what comes behind it in relaxed mode waits with it. So a power cut takes
/// no more relaxed calls than those of so long.
const RELAXED_MAX: Duration = Duration::from_millis(5);
/// A sync begins at the latest so long after what it is for was written: with the timer's millisecond and a sync of 2 ms it is
/// over within [`RELAXED_MAX`]. What nobody waits for shares it: outcomes, batches, receipts.
const SYNC_AFTER: Duration = Duration::from_millis(2);
/// Commands taken together: as many as wait, up to what takes under a few milliseconds.
const GROUP_MAX: usize = 1_024;
/// Commands that may wait: one caller, the client, has one at a time.
const QUEUE_MAX: usize = 64;
/// Records without a signature behind which callers wait: two of the largest batches.
const PENDING_MAX: usize = 8_192;
/// Calls in progress at a time: each is a few hundred bytes of memory and of each snapshot.
pub const RUNNING_MAX: usize = 65_536;
/// How often the two clocks are compared, what was let go is counted in the journal at the latest, and what a full disk
/// refused is tried again.
const CLOCK_LOOK: Duration = Duration::from_secs(1);
/// Events of the gateway itself that wait for space on the disk, some for each server; the newest are let go, and counted as
/// dropped.
const OWED_MAX: usize = 1_024;

/// How a frame is written: owed, or new.
type Write = fn(&mut Spool, Entry) -> Result<(), SpoolError>;

/// A call in progress, as memory holds it; the spool holds the call, and whether its intent is a record already.
struct Running {
    call: wire::Call,
    since: Instant,
}

/// The end of a call, until it is written.
struct Ended {
    ticket: Ticket,
    ending: Ending,
    duration_us: u64,
    answer: Option<oneshot::Sender<()>>,
}

/// A call that has begun.
pub(crate) struct Begun {
    /// Its name.
    pub(crate) name: CallName,
    /// It may be forwarded after this, or at once.
    pub(crate) durable: Option<Durable>,
}

/// The writer. [`Writer::open`] recovers, [`desk`] is its life.
pub struct Writer {
    spool: Spool,
    settings: Arc<Settings>,
    running: HashMap<Ticket, Running>,
    /// Calls in the order of their beginning, until their intent is due; some have ended.
    young: VecDeque<(Instant, Ticket)>,
    next_call: u64,
    oldest_pending: Option<Instant>,
    last_batch: Instant,
    /// Calls that have ended and found the disk full.
    ended: VecDeque<Ended>,
    /// The gateway's own events that did.
    owed: VecDeque<Kind>,
    deliveries: Deliveries,
    /// Records let go since the journal last counted them.
    dropped: u64,
    /// Why: the gravest of what these were let go for.
    drop_reason: DropReason,
    counted_at: Instant,
    /// When it was last tried to set the spool's reserve aside again.
    reserve_at: Instant,
    /// The machine slept, and the epoch of before has not ended.
    woke: bool,
    /// Something that is due found no space.
    disk_full: bool,
    draining: bool,
    clock: JumpWatch,
    progress: watch::Sender<Progress>,
    seen: Seen,
    waiting: Waiting,
    /// Why it ends.
    failed: Option<SpoolError>,
}

/// Answers that wait for the group's sync.
#[derive(Default)]
struct Group(Vec<Box<dyn FnOnce() + Send>>);

impl Group {
    fn answer<T: Send + 'static>(&mut self, to: Answer<T>, what: Result<T, Refused>) {
        // Nobody may be waiting any more; what was written stays written.
        self.0.push(Box::new(move || drop(to.send(what))));
    }

    fn tell(&mut self, to: oneshot::Sender<()>) {
        self.0.push(Box::new(move || to.send(()).unwrap_or_default()));
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
        let (mut writer, watching) = Self::over(spool, settings);
        let previous = writer.end_old_epoch()?;
        let reason = (previous == HeaderHash::ZERO).then_some(OpeningReason::First);
        writer.open_epoch(previous, reason)?;
        writer.sign_due(true)?;
        writer.sync()?;
        Ok((writer, watching))
    }

    fn over(spool: Spool, settings: Settings) -> (Self, watch::Receiver<Progress>) {
        let (progress, watching) = watch::channel(Progress::default());
        let deliveries = Deliveries::over(&spool);
        let clock = JumpWatch::over(settings.clocks.clone());
        let writer = Self {
            spool,
            settings: Arc::new(settings),
            running: HashMap::new(),
            young: VecDeque::new(),
            next_call: 1,
            oldest_pending: None,
            last_batch: Instant::now(),
            ended: VecDeque::new(),
            owed: VecDeque::new(),
            deliveries,
            dropped: 0,
            drop_reason: DropReason::SpoolFull,
            counted_at: Instant::now(),
            reserve_at: Instant::now(),
            woke: false,
            disk_full: false,
            draining: false,
            clock,
            progress,
            seen: Seen::default(),
            waiting: Waiting::default(),
            failed: None,
        };
        (writer, watching)
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        self.spool.sync()?;
        self.show_progress();
        Ok(())
    }

    fn show_progress(&self) {
        let state = self.spool.state();
        self.show();
        let progress = Progress { next_order: self.spool.shown(), unreceived: state.unreceived.len() as u64 };
        self.progress.send_if_modified(|now| {
            let changed = *now != progress;
            *now = progress;
            changed
        });
    }

    /// Notes whether there is something to sync, and says whether the thread has to be told.
    fn has_written(&mut self) -> bool {
        if self.spool.waits() {
            self.waiting.wrote();
        }
        std::mem::take(&mut self.waiting.wake)
    }

    /// Those who wait, and the sync that they wait for; `None` while there is time for more to share it.
    fn begin_sync(&mut self) -> Result<Option<(Group, Option<Syncing>)>, SpoolError> {
        self.show_progress();
        let after = self.settings.waits.sync_after;
        let waiting = &mut self.waiting;
        let is_due = match waiting.written {
            Some(since) => waiting.urgent || since.elapsed() >= after,
            None => !waiting.group.0.is_empty(),
        };
        if !is_due {
            return Ok(None);
        }
        waiting.urgent = false;
        waiting.syncing = waiting.written.take();
        Ok(Some((std::mem::take(&mut waiting.group), self.spool.syncing()?)))
    }

    /// `took`: how long it waited for the disk.
    fn end_sync(&mut self, synced: Option<Synced>, took: Duration) -> Result<(), SpoolError> {
        if synced.is_some() {
            self.seen.synced(took);
        }
        self.spool.synced(synced)?;
        self.waiting.syncing = None;
        self.show_progress();
        Ok(())
    }

    /// How long nothing has to happen.
    fn next_deadline(&self) -> Duration {
        let sync = match self.waiting.written {
            Some(_) if self.waiting.urgent => Some(Duration::ZERO),
            Some(since) => Some(self.settings.waits.sync_after.saturating_sub(since.elapsed())),
            None => (!self.waiting.group.0.is_empty()).then_some(Duration::ZERO),
        };
        let limits = &self.settings.limits;
        let batch = self.oldest_pending.map(|since| limits.age_max.saturating_sub(since.elapsed()));
        let intent = self.young.front().map(|(since, _)| INTENT_AFTER.saturating_sub(since.elapsed()));
        let heartbeat = Some(limits.heartbeat_after.saturating_sub(self.last_batch.elapsed()));
        let due = [batch, intent, heartbeat].map(|due| due.filter(|_| !self.disk_full));
        [sync, Some(CLOCK_LOOK)].into_iter().chain(due).flatten().min().unwrap_or(CLOCK_LOOK)
    }

    fn take(&mut self, command: Command) -> Result<(), SpoolError> {
        match command {
            Command::Receipts(receipts, answer) => {
                let done = self.spool.append(Entry::Receipts(receipts));
                give(answer, refuse_full(done)?);
            }
            Command::Archived(segment, answer) => {
                let done = self.spool.append(Entry::Archived(segment));
                give(answer, refuse_full(done)?);
            }
            Command::Unreceived(from, answer) => {
                let some = self.spool.state().held.range(from..).any(|(_, held)| held.segment.is_some());
                let done = if some { self.spool.append(Entry::Unreceived(from)) } else { Ok(()) };
                self.deliveries.await_again(&self.spool);
                give(answer, refuse_full(done)?);
            }
            Command::Statement(statement, answer) => {
                let done = self.spool.keep_statement(statement);
                give(answer, refuse_full(done)?);
            }
            Command::Rewind(reason, answer) => {
                let done = self.rewind(reason);
                give(answer, refuse_full(done)?);
            }
            Command::OrderOf(epoch, number, answer) => {
                let order = self.spool.state().order_of(epoch, number);
                give(answer, Ok(order));
            }
            Command::Linked(linked) => self.deliveries.linked(linked),
            Command::Drain(answer) => {
                let done = refuse_full(self.drain())?;
                self.waiting.group.answer(answer, done);
                self.waiting.urgent = true;
            }
        }
        Ok(())
    }

    /// For a caller who has to wait until more is signed.
    fn later(&mut self) -> Option<Durable> {
        let behind = self.spool.state().pending.len() >= PENDING_MAX && !self.disk_full && !self.draining;
        behind.then(|| self.waiting.durable())
    }

    fn record(&mut self, mut kind: Kind) -> Result<Result<(RecordName, Durable), Refused>, SpoolError> {
        if must::must(&kind) {
            let done = self.record_all(vec![kind])?;
            return Ok(done.and_then(|(name, durable)| Ok((name.ok_or(Refused::NotARecord)?, durable))));
        }
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
        let server = server_of(&kind).to_owned();
        if let Err(refused) = self.room(&server, bytes.len())? {
            return Ok(Err(refused));
        }
        let done = self.write(Spool::append_new, kind, None, false);
        let done = self.or_refused(&server, done)?;
        Ok(done.map(|name| (name, self.waiting.durable())))
    }

    /// Counts what was let go, before a later record takes its number.
    fn count_dropped(&mut self, write: Write) -> Result<(), SpoolError> {
        if self.dropped > 0 {
            self.in_an_epoch()?;
            let reason = self.drop_reason as i32;
            write(&mut self.spool, Entry::Dropped(Dropped { count: self.dropped, reason }))?;
        }
        // Only now: a count that found the disk full is still to be declared.
        (self.dropped, self.drop_reason, self.counted_at) = (0, DropReason::SpoolFull, Instant::now());
        Ok(())
    }

    /// Writes a record that is owed.
    fn append(&mut self, kind: Kind, call: Option<u64>, ships_intent: bool) -> Result<RecordName, SpoolError> {
        self.write(Spool::append, kind, call, ships_intent)
    }

    fn write(
        &mut self,
        write: Write,
        kind: Kind,
        call: Option<u64>,
        ships_intent: bool,
    ) -> Result<RecordName, SpoolError> {
        self.in_an_epoch()?;
        self.count_dropped(write)?;
        let counted = Counted::of(&kind);
        let record = Bytes::from(record::encode(kind));
        let number = self.spool.state().next_number;
        write(&mut self.spool, Entry::Recorded(Recorded { number, record, call, ships_intent }))?;
        if let Some(counted) = counted {
            self.seen.count(counted);
        }
        self.oldest_pending.get_or_insert_with(Instant::now);
        Ok(RecordName { gateway: self.settings.who.gateway, epoch: self.epoch(), number })
    }

    fn epoch(&self) -> Epoch {
        self.spool.state().place.as_ref().map_or(Epoch::ZERO, |place| place.epoch)
    }

    /// No record goes into an epoch that has ended: while there is no space for the next one, it waits for that.
    fn in_an_epoch(&self) -> Result<(), SpoolError> {
        match self.spool.state().place.as_ref().is_some_and(|place| place.closed) {
            true => Err(SpoolError::Full),
            false => Ok(()),
        }
    }

    fn begin(&mut self, mut call: wire::Call) -> Result<Result<Begun, Refused>, SpoolError> {
        let ticket = self.next_call;
        call.call_number = ticket;
        if self.running.len() >= RUNNING_MAX {
            return Ok(Err(Refused::Busy));
        }
        // Room for intent and outcome: once a call was let through, its outcome finds its place.
        let bytes = Bytes::from(call.encode_to_vec());
        if let Err(refused) = self.room(&call.server, bytes.len() * 3)? {
            return Ok(Err(refused));
        }
        self.next_call += 1;
        let late = self.waiting.since().is_some_and(|since| since.elapsed() >= self.settings.waits.relaxed_max);
        let intent = Intent { call: ticket, bytes, shipped: false };
        let appended = self.in_an_epoch().and_then(|()| self.spool.append_new(Entry::Intent(intent)));
        if let Err(refused) = self.or_refused(&call.server, appended)? {
            return Ok(Err(refused));
        }
        let strict = call.mode() != wire::Mode::Relaxed;
        let durable = (strict || late).then(|| self.waiting.durable());
        let since = Instant::now();
        self.running.insert(ticket, Running { call, since });
        self.young.push_back((since, ticket));
        Ok(Ok(Begun { name: CallName { epoch: self.epoch(), number: ticket }, durable }))
    }

    fn finish(
        &mut self,
        ticket: Ticket,
        mut ending: Ending,
        answer: Option<oneshot::Sender<()>>,
    ) -> Result<(), SpoolError> {
        if let Some(running) = self.running.get(&ticket) {
            self.settings.cut_receipt(&running.call.server, &mut ending);
        }
        // A drain may have ended it as unknown.
        let since = self.running.get(&ticket).map_or(Duration::ZERO, |running| running.since.elapsed());
        let duration_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        self.ended.push_back(Ended { ticket, ending, duration_us, answer });
        unless_full(self.write_ended()).map(drop)
    }

    /// Writes the ends of calls, in the order in which they came.
    fn write_ended(&mut self) -> Result<(), SpoolError> {
        while let Some(ended) = self.ended.front() {
            if let Some(running) = self.running.get(&ended.ticket) {
                let (call, ticket) = (running.call.clone(), ended.ticket);
                let shipped = self.spool.state().intents.get(&ticket).is_some_and(|intent| intent.shipped);
                let kind = match shipped {
                    true => outcome_of(call, &ended.ending, ended.duration_us),
                    false => complete_of(call, &ended.ending, ended.duration_us),
                };
                self.append(kind, Some(ticket), false)?;
                self.running.remove(&ticket);
            }
            let answer = self.ended.pop_front().and_then(|ended| ended.answer);
            if let Some(answer) = answer {
                self.waiting.group.tell(answer);
            }
        }
        Ok(())
    }

    /// The intent of a call that still runs becomes a record of its own.
    fn ship_intent(&mut self, ticket: Ticket) -> Result<(), SpoolError> {
        match self.running.get(&ticket) {
            Some(running) => self.append(intent_of(running.call.clone()), Some(ticket), true).map(drop),
            None => Ok(()),
        }
    }

    /// A jump of the wall clock is a record. So is the sleep of a machine that promised not to; any other ends its epoch with it.
    fn look_at_clocks(&mut self) -> Result<(), SpoolError> {
        let seen = self.clock.look();
        if self.draining {
            return Ok(());
        }
        let may_sleep = self.settings.opened.class() == wire::WriterClass::Intermittent;
        self.woke |= may_sleep && seen.slept.is_some();
        let slept = seen.slept.filter(|slept| !may_sleep && *slept > JUMP_MIN).map(Jump::of_sleep);
        for jump in [slept, seen.jump].into_iter().flatten() {
            tracing::warn!(forward_us = jump.forward_us, backward_us = jump.backward_us, "the wall clock jumped");
            let jump = wire::ClockJump { forward_us: jump.forward_us, backward_us: jump.backward_us };
            self.owe(event(Event::ClockJump(jump)));
        }
        if self.woke { self.wake() } else { Ok(()) }
    }

    /// What is due by time alone: what found the disk full, intents of long calls, a look at the clock.
    fn tick(&mut self) -> Result<(), SpoolError> {
        if self.reserve_at.elapsed() >= CLOCK_LOOK {
            self.reserve_at = Instant::now();
            self.spool.restore_reserve()?;
        }
        self.look_at_clocks()?;
        if !self.draining {
            self.write_owed()?;
        }
        self.tick_deliveries()?;
        self.write_ended()?;
        while let Some((_, ticket)) = self.young.front().filter(|(since, _)| since.elapsed() >= INTENT_AFTER).copied() {
            self.ship_intent(ticket)?;
            self.young.pop_front();
        }
        // Last, because it does not take the reserve: a count each second would use it up in days.
        if self.counted_at.elapsed() >= CLOCK_LOOK {
            self.count_dropped(Spool::append_new)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<u64, SpoolError> {
        self.draining = true;
        self.write_ended()?;
        self.write_owed()?;
        let unfinished = self.end_unfinished()?;
        self.close()?;
        Ok(unfinished)
    }
}

/// The server that a record is about; empty for none.
fn server_of(kind: &Kind) -> &str {
    match kind {
        Kind::Call(call) => &call.server,
        Kind::ToolDefinition(definition) => &definition.server,
        _ => "",
    }
}

/// A call that a gateway may record. One without a mode is of strict mode.
fn checked(mut call: wire::Call) -> Result<wire::Call, Refused> {
    if call.mode() == wire::Mode::Unspecified {
        call.mode = wire::Mode::Strict as i32;
    }
    match record::check(&record::encode(intent_of(call.clone()))) {
        Ok(_) => Ok(call),
        Err(_) => Err(Refused::NotARecord),
    }
}

/// Answers before the sync: what is known of the ledger is asked for again when a power cut takes it, and whatever stands on it
/// stands behind it in the journal.
fn give<T>(to: Answer<T>, what: Result<T, Refused>) {
    // Nobody may be waiting any more; what was written stays written.
    drop(to.send(what));
}

/// A full disk refuses what is asked; anything else ends the writer.
fn refuse_full<T>(done: Result<T, SpoolError>) -> Result<Result<T, Refused>, SpoolError> {
    match done {
        Ok(value) => Ok(Ok(value)),
        Err(SpoolError::Full) => Ok(Err(Refused::SpoolFull)),
        Err(error) => Err(error),
    }
}

/// What a full disk stops is tried again at the next tick; anything else ends the writer.
/// Whether it was done.
fn unless_full(done: Result<(), SpoolError>) -> Result<bool, SpoolError> {
    match done {
        Ok(()) => Ok(true),
        Err(SpoolError::Full) => Ok(false),
        Err(error) => Err(error),
    }
}
