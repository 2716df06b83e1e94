//! The one writer of the spool: numbers records, signs batches, and answers when the disk has them.
//!
//! It runs on a thread of its own and owns the spool and the key. Whatever waits is taken together, written, made durable by
//! one sync, and only then answered. Calls that begin and end are paired here: one record if the call ends within two
//! seconds, else its intent and its outcome.
//!
//! What must hold: no answer before the sync that covers it; no batch is shown to the client (`client.rs`) before it is
//! durable, so that no number is ever signed twice; no batch is signed with another key than its epoch's. A disk without space
//! refuses and ends nothing: what is owed by then (the outcome of a call that was let through, a count of drops, a batch that
//! is due) is kept in memory and written when there is space again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    batch::{encode_signed, seal_header},
    id::{Epoch, HeaderHash},
    record,
    wire::{self, DeliveryState, DropReason, OpeningReason, gateway_event::Event, record::Kind},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use crate::{
    batcher::{self, Limits, Saying},
    clock::{self, JumpWatch},
    config::WhenFull,
    key::{self, Name},
    random,
    seen::{Counted, Seen, Standing},
    spool::{Dropped, Entry, Intent, Opener, Recorded, Spool, SpoolError},
};

mod command;
mod epoch;
mod kinds;
mod rewind;

use command::Ticket;
pub use command::{
    Answer, CallName, Command, Ending, FULL_WAIT, Fetch, Learnt, Progress, RecordName, Refused, ask, receipts,
};
pub use epoch::Carried;
use kinds::{complete_of, delivery_words, event, intent_of, outcome_of};

/// A call that still runs after this long ships its intent as a record of its own.
pub const INTENT_AFTER: Duration = Duration::from_secs(2);
/// Commands taken together before one sync: as many as wait, up to what keeps the group's answer under a few milliseconds.
const GROUP_MAX: usize = 1_024;
/// Commands that may wait: with a sync of 10 ms, what 100,000 records a second need.
pub const QUEUE_MAX: usize = 4_096;
/// Calls in progress at a time: each is a few hundred bytes of memory and of each snapshot.
pub const RUNNING_MAX: usize = 65_536;
/// How often the two clocks are compared, what was let go is counted in the journal at the latest, and what a full disk
/// refused is tried again.
const CLOCK_LOOK: Duration = Duration::from_secs(1);
/// Events of the gateway itself that wait for space on the disk; the newest are let go, and counted as dropped.
const OWED_MAX: usize = 64;

/// What the writer needs to know.
pub struct Settings {
    /// Who signs.
    pub who: Name,
    /// With what.
    pub key: SigningKey,
    /// When batches are due.
    pub limits: Limits,
    /// What happens when a record cannot be kept, for all that is of none of `servers`.
    pub when_full: WhenFull,
    /// The same, for calls and definitions of these servers.
    pub servers: BTreeMap<String, WhenFull>,
    /// What the opening record says, besides the clock.
    pub opened: wire::Opened,
}

impl Settings {
    /// Who opens the spool.
    pub fn opener(&self) -> Opener {
        Opener { who: self.who.clone(), key_id: key::key_id(&self.key), old_key_lost: false }
    }
}

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
    answer: Option<Answer<()>>,
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
    /// Calls that have ended and found the disk full.
    ended: VecDeque<Ended>,
    /// The gateway's own events that did.
    owed: VecDeque<Kind>,
    delivery: DeliveryState,
    /// Records let go since the journal last counted them.
    dropped: u64,
    counted_at: Instant,
    /// When it was last tried to set the spool's reserve aside again.
    reserve_at: Instant,
    /// Something that is due found no space.
    disk_full: bool,
    draining: bool,
    clock: JumpWatch,
    progress: watch::Sender<Progress>,
    seen: Seen,
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
        let writer = Self {
            spool,
            settings,
            running: HashMap::new(),
            young: VecDeque::new(),
            next_call: 1,
            oldest_pending: None,
            last_batch: Instant::now(),
            ended: VecDeque::new(),
            owed: VecDeque::new(),
            delivery: DeliveryState::Flowing,
            dropped: 0,
            counted_at: Instant::now(),
            reserve_at: Instant::now(),
            disk_full: false,
            draining: false,
            clock: JumpWatch::default(),
            progress,
            seen: Seen::default(),
        };
        (writer, watching)
    }

    /// Where it shows how it goes.
    pub fn seen(&self) -> Seen {
        self.seen.clone()
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
            let ticked = unless_full(self.tick(&mut group))?;
            self.disk_full = !(unless_full(self.sign_due(false))? && ticked);
            self.sync()?;
            group.release();
        }
    }

    fn sync(&mut self) -> Result<(), SpoolError> {
        let (due, began) = (self.spool.is_due(), Instant::now());
        self.spool.sync()?;
        if due {
            self.seen.synced(began.elapsed());
        }
        self.show();
        let state = self.spool.state();
        let progress = Progress { next_order: state.next_order, unreceived: state.unreceived.len() as u64 };
        self.progress.send_if_modified(|now| {
            let changed = *now != progress;
            *now = progress;
            changed
        });
        Ok(())
    }

    fn show(&self) {
        let state = self.spool.state();
        self.seen.stands(Standing {
            epoch: Some(self.epoch()),
            next_record: state.next_number,
            running: self.running.len() as u64,
            unsigned: state.pending.len() as u64,
            unshipped: state.unreceived.len() as u64,
            held: state.held.len() as u64,
            spool_bytes: self.spool.bytes(),
        });
    }

    /// How long nothing has to happen.
    fn next_deadline(&self) -> Duration {
        if self.disk_full {
            return CLOCK_LOOK;
        }
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
                // A drain may have ended it as unknown.
                let since = self.running.get(&ticket).map_or(Duration::ZERO, |running| running.since.elapsed());
                let duration_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
                self.ended.push_back(Ended { ticket, ending, duration_us, answer });
                unless_full(self.write_ended(group))?;
            }
            Command::Fetch(fetch, answer) => {
                // Only what was synced is shown: this group's batches are signed after its commands were taken.
                let Fetch { from, unreceived, count_max, bytes_max } = fetch;
                let batches = self.spool.fetch(from, unreceived, count_max, bytes_max)?;
                group.answer(answer, Ok(batches));
            }
            Command::Receipts(receipts, answer) => {
                let done = self.spool.append(Entry::Receipts(receipts));
                group.answer(answer, refuse_full(done)?);
            }
            Command::Archived(segment, answer) => {
                let done = self.spool.append(Entry::Archived(segment));
                group.answer(answer, refuse_full(done)?);
            }
            Command::Unreceived(from, answer) => {
                let some = self.spool.state().held.range(from..).any(|(_, held)| held.segment.is_some());
                let done = if some { self.spool.append(Entry::Unreceived(from)) } else { Ok(()) };
                group.answer(answer, refuse_full(done)?);
            }
            Command::Statement(statement, answer) => {
                let done = self.spool.keep_statement(statement);
                group.answer(answer, refuse_full(done)?);
            }
            Command::Rewind(reason, answer) => {
                let done = self.rewind(reason);
                group.answer(answer, refuse_full(done)?);
            }
            Command::OrderOf(epoch, number, answer) => {
                let order = self.spool.state().order_of(epoch, number);
                group.answer(answer, Ok(order));
            }
            Command::Drain(answer) => {
                let done = self.drain(group);
                group.answer(answer, refuse_full(done)?);
            }
        }
        Ok(())
    }

    /// Room for a record of so many bytes, or why there is none.
    fn room(&mut self, bytes: usize) -> Result<Result<(), Refused>, SpoolError> {
        if self.draining {
            return Ok(Err(Refused::Draining));
        }
        let state = match self.spool.has_room(bytes) {
            true => Ok(DeliveryState::Flowing),
            false => self.spool.make_room(bytes).map(|gone| {
                tracing::warn!(batches = gone, "spool full: let go of batches that the ledger holds, not yet archived");
                DeliveryState::Spooling
            }),
        };
        let done = state.and_then(|state| self.delivery(state));
        self.or_refused(done)
    }

    /// A full spool or a full disk refuses one record, or lets it go and counts it; anything else ends the writer.
    fn or_refused<T>(&mut self, done: Result<T, SpoolError>) -> Result<Result<T, Refused>, SpoolError> {
        match done {
            Err(SpoolError::Full) if self.settings.when_full == WhenFull::FailOpen => {
                self.delivery(DeliveryState::FailOpen)?;
                self.dropped += 1;
                Ok(Err(Refused::Dropped))
            }
            Err(SpoolError::Full) => {
                self.delivery(DeliveryState::Refusing)?;
                Ok(Err(Refused::SpoolFull))
            }
            Err(error) => Err(error),
            Ok(value) => Ok(Ok(value)),
        }
    }

    /// Records a change of how records are delivered; the reserve of the spool has room for that. While the disk is full, a
    /// change for the worse waits for space, and there is none for the better.
    fn delivery(&mut self, state: DeliveryState) -> Result<(), SpoolError> {
        if self.delivery == state {
            return Ok(());
        }
        let change = event(Event::Delivery(wire::Delivery { server: String::new(), state: state as i32 }));
        match state {
            DeliveryState::Refusing | DeliveryState::FailOpen => {
                self.owe(change);
                unless_full(self.write_owed())?;
            }
            _ => {
                self.write_owed()?;
                self.append(change, None, false)?;
            }
        }
        self.delivery = state;
        self.seen.delivery("", state);
        tracing::warn!(state = delivery_words(state), "how records are delivered has changed");
        Ok(())
    }

    fn owe(&mut self, kind: Kind) {
        match self.owed.len() < OWED_MAX {
            true => self.owed.push_back(kind),
            false => self.dropped += 1,
        }
    }

    fn write_owed(&mut self) -> Result<(), SpoolError> {
        while let Some(kind) = self.owed.front().cloned() {
            self.append(kind, None, false)?;
            self.owed.pop_front();
        }
        Ok(())
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
        let done = self.write(Spool::append_new, kind, None, false);
        self.or_refused(done)
    }

    /// Counts what was let go, before a later record takes its number.
    fn count_dropped(&mut self, write: Write) -> Result<(), SpoolError> {
        if self.dropped > 0 {
            let reason = DropReason::SpoolFull as i32;
            write(&mut self.spool, Entry::Dropped(Dropped { count: self.dropped, reason }))?;
        }
        // Only now: a count that found the disk full is still to be declared.
        (self.dropped, self.counted_at) = (0, Instant::now());
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

    fn begin(&mut self, mut call: wire::Call) -> Result<Result<CallName, Refused>, SpoolError> {
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
        let appended = self.spool.append_new(Entry::Intent(intent));
        let appended = self.or_refused(appended)?;
        Ok(appended.map(|()| {
            let since = Instant::now();
            self.running.insert(ticket, Running { call, since });
            self.young.push_back((since, ticket));
            CallName { epoch: self.epoch(), number: ticket }
        }))
    }

    /// Writes the ends of calls, in the order in which they came.
    fn write_ended(&mut self, group: &mut Group) -> Result<(), SpoolError> {
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
                group.answer(answer, Ok(()));
            }
        }
        Ok(())
    }

    /// What is due by time alone: what found the disk full, intents of long calls, a look at the clock.
    fn tick(&mut self, group: &mut Group) -> Result<(), SpoolError> {
        if self.reserve_at.elapsed() >= CLOCK_LOOK {
            self.reserve_at = Instant::now();
            self.spool.restore_reserve()?;
        }
        if let Some(jump) = self.clock.look()
            && !self.draining
        {
            tracing::warn!(forward_us = jump.forward_us, backward_us = jump.backward_us, "the wall clock jumped");
            let jump = wire::ClockJump { forward_us: jump.forward_us, backward_us: jump.backward_us };
            self.owe(event(Event::ClockJump(jump)));
        }
        if !self.draining {
            self.write_owed()?;
        }
        self.write_ended(group)?;
        while let Some((_, ticket)) = self.young.front().filter(|(since, _)| since.elapsed() >= INTENT_AFTER).copied() {
            if let Some(running) = self.running.get(&ticket) {
                self.append(intent_of(running.call.clone()), Some(ticket), true)?;
            }
            self.young.pop_front();
        }
        // Last, because it does not take the reserve: a count each second would use it up in days.
        if self.counted_at.elapsed() >= CLOCK_LOOK {
            self.count_dropped(Spool::append_new)?;
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
        if place.key_id != key::key_id(&self.settings.key) {
            // Who opens a spool is asked for that (`Opener`); no batch may ever be false, so it is asked again.
            return Err(SpoolError::OtherKey(place.epoch, place.key_id));
        }
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
        let seed = random::bytes();
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
        self.count_dropped(Spool::append)?;
        while self.spool.state().place.as_ref().is_some_and(|place| !place.closed) {
            self.sign(true)?;
        }
        Ok(())
    }

    fn drain(&mut self, group: &mut Group) -> Result<u64, SpoolError> {
        self.draining = true;
        self.write_ended(group)?;
        self.write_owed()?;
        let unfinished = self.end_unfinished()?;
        self.close()?;
        Ok(unfinished)
    }
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
