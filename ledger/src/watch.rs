//! The watch: a follower that walks the records in the order of commit and says what is out of the ordinary.
//!
//! What must hold: alarms are functions of records ([`engine`]); an alarm and how far the watch has told are in one write, so that a
//! crash anywhere neither loses one nor tells it twice; what is remembered is written down every so often, is of no use to anybody
//! else, and is made again from the store when it is lost. The watch waits for the store and never the other way round. What depends
//! on the clock or on this machine is a condition ([`conditions`]), on record when it begins and when it ends.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::WorkspaceId,
    record,
    segment::{Content, Entry},
    statement::RESERVED_NAME,
    wire::{self, Extension, LeafKind, LedgerEvent, LedgerEventKind, extension, record::Kind},
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use self::{engine::Engine, view::View};
use crate::{
    alarm::{Alarm, Alarms},
    clock,
    commit::{Chains, Request, Untaken, put_on_record},
    index::Index,
    log_view::report,
    metrics::Metrics,
    priority::{BEHIND, stand_back},
    store::{Family, Store, StoreError},
    tail::{CommittedBatch, One, Tail},
};

pub use conditions::SILENT as GATEWAY_SILENT;

pub mod baseline;
mod conditions;
pub mod engine;
mod memory;
pub mod replay;
pub mod risk;
pub mod rules;
pub mod sigma;
pub mod tally;
pub mod teller;
#[cfg(test)]
mod tests;
pub mod view;
pub mod webhook;

/// Name of the commit index up to which alarms are on record, among the store's numbers.
const TOLD: &str = "watch_told";
/// Name of the digest of the rules that were loaded last, among the store's values.
const RULES: &str = "watch_rules";
/// Commits in one step, before anything else is looked at.
const STEP: u64 = 256;
/// Alarms of one commit: they are one write, and a batch of 1 MiB holds them however long they are. More are counted in one more.
const OF_COMMIT_MAX: usize = 256;
/// How often conditions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often what is remembered is written down, and after how many records: what a start has to walk again.
const WRITE_EVERY: Duration = Duration::from_secs(300);
const WRITE_RECORDS: u64 = 2_000_000;
/// How long it waits after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the watch does not go on.
#[derive(Debug)]
enum Stuck {
    Store(StoreError),
    /// The writer takes nothing now, in words.
    Later(String),
    /// The ledger is ending.
    Ending,
}

impl From<StoreError> for Stuck {
    fn from(source: StoreError) -> Self {
        match source {
            StoreError::Closed => Self::Ending,
            source => Self::Store(source),
        }
    }
}

/// What a watch is made of.
pub struct Watch {
    engine: Engine,
    rules: Arc<str>,
    tail: Arc<Tail>,
    writer: mpsc::Sender<Request>,
    chains: Chains,
    alarms: Alarms,
    metrics: Metrics,
    file: PathBuf,
    /// Next commit.
    next: u64,
    /// Alarms of commits before it are on record.
    told: u64,
    /// A commit was begun, and the store broke off in the middle.
    half_looked_at: bool,
    /// Records since what is remembered was written down, and when that was.
    since: (u64, Instant),
    looked: Option<Instant>,
    conditions: conditions::Conditions,
    /// What it remembered was of use.
    remembered: bool,
    progress: Progress,
    index: Arc<Index>,
}

/// How far the watch is: for whoever tells others that it watches.
#[derive(Clone, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Commits below it were looked at; `None`: nobody looks any more.
    pub fn next(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|next| *next != u64::MAX)
    }
}

impl Drop for Watch {
    /// Also of one that broke off.
    fn drop(&mut self) {
        self.progress.0.store(u64::MAX, Ordering::Relaxed);
    }
}

/// One walk over what was committed: of the watch, of a replay.
pub struct Walk<'a> {
    /// What was committed.
    pub tail: &'a Tail,
    /// The ledger's own workspace.
    pub own: Option<WorkspaceId>,
}

impl Walk<'_> {
    /// What one commit raises; and how many records it has.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn take(&self, engine: &mut Engine, commit_index: u64) -> Result<(Vec<wire::Alarm>, u64), StoreError> {
        let Some(batch) = self.tail.batch(commit_index)? else {
            let entry = self.tail.store()?.committed(commit_index)?;
            return Ok((entry.map(|entry| equivocation(engine, &entry)).unwrap_or_default(), 0));
        };
        let mut alarms = Vec::new();
        let is_own = self.own == Some(batch.workspace());
        for (index, facts) in batch.facts().iter().enumerate() {
            let Some(place) = batch.place(index) else { continue };
            let own = if is_own { record_of(&batch, index) } else { None };
            if let Some(Kind::Disposition(said)) = own.as_ref().and_then(|record| record.kind.as_ref())
                && let Some(of) = self.alarm(said)?
            {
                engine.disposition(said, &of);
            }
            let view = View { place: &place, facts, own: own.as_ref(), labels: &[] };
            alarms.extend(engine.take(&view, (index == 0).then(|| batch.header())));
        }
        if batch.records().is_empty() {
            alarms = engine.header(batch.header(), batch.leaf.received_at);
        }
        let mut more = engine.dropped();
        if alarms.len() > OF_COMMIT_MAX {
            more += alarms.split_off(OF_COMMIT_MAX).len() as u64;
        }
        if more > 0 {
            alarms.push(engine.cut(batch.workspace(), batch.leaf.received_at, more));
        }
        Ok((alarms, batch.records().len() as u64))
    }

    /// The alarm that a disposition is about.
    fn alarm(&self, said: &wire::Disposition) -> Result<Option<wire::Alarm>, StoreError> {
        let Ok(workspace) = WorkspaceId::try_from(said.workspace.as_ref()) else { return Ok(None) };
        Ok(self.tail.at_position(workspace, said.position)?.as_ref().and_then(alarm_at))
    }
}

/// The alarm that a record is.
pub fn alarm_at(one: &One) -> Option<wire::Alarm> {
    match record_of(&one.batch, one.index)?.kind {
        Some(Kind::Alarm(alarm)) => Some(alarm),
        _ => None,
    }
}

fn record_of(batch: &CommittedBatch, index: usize) -> Option<wire::Record> {
    batch.records().get(index).and_then(|bytes| wire::Record::decode(bytes.clone()).ok())
}

fn equivocation(engine: &mut Engine, entry: &Entry) -> Vec<wire::Alarm> {
    match (&entry.content, entry.leaf.kind) {
        (Content::Batch(batch), LeafKind::Equivocation) => engine.equivocation(&batch.header, entry.leaf.received_at),
        _ => Vec::new(),
    }
}

/// The ledger's own workspace.
pub fn own_workspace(chains: &Chains) -> Option<WorkspaceId> {
    let chains = chains.read().unwrap_or_else(PoisonError::into_inner);
    chains.workspaces.iter().find(|(_, chain)| chain.name() == RESERVED_NAME).map(|(id, _)| *id)
}

impl Watch {
    /// Takes up what was remembered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        (engine, rules): (Engine, Arc<str>),
        file: PathBuf,
        (tail, chains, writer): (Arc<Tail>, Chains, mpsc::Sender<Request>),
        ((alarms, metrics, progress), index): ((Alarms, Metrics, Progress), Arc<Index>),
    ) -> Result<Self, StoreError> {
        let store = tail.store()?;
        let told = store.number(TOLD)?.unwrap_or(0);
        let conditions = conditions::Conditions::open(&store)?;
        conditions.recall(alarms.refusals(), clock::now_us());
        let since = (0, Instant::now());
        let mut watch = Self {
            engine,
            rules,
            tail,
            writer,
            chains,
            alarms,
            metrics,
            file,
            next: 0,
            told,
            half_looked_at: false,
            since,
            looked: None,
            conditions,
            remembered: false,
            progress,
            index,
        };
        watch.remember()?;
        Ok(watch)
    }

    /// Goes on from what was written down last, or from the first record.
    fn remember(&mut self) -> Result<(), StoreError> {
        self.next = match memory::read(&self.file, &self.tail)? {
            Some((next, bytes)) if self.engine.remember(&bytes) => {
                self.remembered = true;
                next
            }
            Some(_) => {
                tracing::warn!("what the watch remembered is of another version; it walks the store again");
                0
            }
            None => 0,
        };
        self.half_looked_at = false;
        Ok(())
    }

    /// After a commit that was half looked at: the same must not be looked at twice.
    fn begin_again(&mut self) -> Result<(), Stuck> {
        match Engine::new(&self.rules) {
            Ok(engine) => self.engine = engine,
            // They were read at the start.
            Err(why) => tracing::error!(%why, "the rules cannot be read any more"),
        }
        Ok(self.remember()?)
    }

    /// Follows until `stop` is dropped.
    pub fn run(mut self, runtime: &tokio::runtime::Handle, mut stop: watch::Receiver<()>) {
        stand_back("the watch", BEHIND);
        let mut news = self.tail.watch();
        while stop.has_changed().is_ok() {
            let pause = match self.step(runtime, &stop) {
                Ok(true) => continue,
                Ok(false) => LOOK_EVERY,
                // What was looked at and not told is looked at again by the next start: nothing of it is written down.
                Err(Stuck::Ending) => return,
                Err(Stuck::Later(why)) => {
                    tracing::warn!(why, "an alarm waits: it cannot be put on record now");
                    PAUSE
                }
                Err(Stuck::Store(why)) => {
                    tracing::error!(why = report(&why), "the watch stands still");
                    self.alarms.raise(Alarm::WatchFailing, report(&why));
                    PAUSE
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stop.changed() => {}
                    _ = news.changed() => {}
                    () = clock::sleep(pause) => {}
                }
            });
        }
        if !self.half_looked_at {
            self.write();
        }
    }

    /// Some commits; `false`: there is nothing to do now.
    fn step(&mut self, runtime: &tokio::runtime::Handle, stop: &watch::Receiver<()>) -> Result<bool, Stuck> {
        self.tell_progress();
        // First: they are told also while records cannot be looked at.
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY) {
            self.look(runtime)?;
            self.looked = Some(Instant::now());
        }
        if self.half_looked_at {
            self.begin_again()?;
        }
        let own = own_workspace(&self.chains);
        if own.is_some() {
            self.load_rules(runtime)?;
        }
        let committed = self.tail.committed();
        let end = committed.min(self.next.saturating_add(STEP));
        let worked = self.next < end;
        while self.next < end && stop.has_changed().is_ok() {
            let walk = Walk { tail: &self.tail, own };
            self.half_looked_at = true;
            let (raised, records) = walk.take(&mut self.engine, self.next)?;
            self.half_looked_at = false;
            // Of what was walked again after a start, those before were told.
            if !raised.is_empty() && self.next >= self.told {
                self.tell(raised, runtime, stop)?;
            }
            self.next += 1;
            self.since.0 += records;
        }
        self.tell_progress();
        if self.since.0 >= WRITE_RECORDS || (self.since.0 > 0 && self.since.1.elapsed() >= WRITE_EVERY) {
            self.write();
        }
        Ok(worked)
    }

    fn tell_progress(&self) {
        self.progress.0.store(self.next, Ordering::Relaxed);
        self.metrics.set("custody_watch_lag_commits", self.tail.committed().saturating_sub(self.next));
    }

    /// Puts rules and this ledger's detectors in force, if others were.
    fn load_rules(&self, runtime: &tokio::runtime::Handle) -> Result<(), Stuck> {
        let digest = self.engine.digest();
        if self.tail.store()?.value(Family::Meta, RULES)?.is_some_and(|known| known == digest[..]) {
            return Ok(());
        }
        let detail = |key: &str, value| Extension { key: key.to_owned(), value: Some(value) };
        let known = self.engine.rules().known().len() as u64;
        let mut event = LedgerEvent {
            at: clock::now_us(),
            kind: LedgerEventKind::Configuration as i32,
            action: engine::RULES_LOAD.to_owned(),
            outcome: "ok".to_owned(),
            details: vec![
                detail("rules", extension::Value::Digest(Bytes::copy_from_slice(&digest))),
                detail("count", extension::Value::Number(known)),
            ],
            ..LedgerEvent::default()
        };
        // What was committed from the first of these to the second was looked at by no rules, if the last run did not end well. Who has
        // lost what was remembered cannot say so.
        if self.remembered {
            event.details.push(detail("looked_at_before", extension::Value::Number(self.next.max(self.told))));
            event.details.push(detail("committed", extension::Value::Number(self.tail.committed())));
        }
        let row = (Family::Meta, Bytes::from_static(RULES.as_bytes()), Bytes::copy_from_slice(&digest));
        self.record(vec![row], vec![Kind::LedgerEvent(event)], runtime)
    }

    /// Puts alarms on record, and that they are.
    fn tell(
        &mut self,
        raised: Vec<wire::Alarm>,
        runtime: &tokio::runtime::Handle,
        stop: &watch::Receiver<()>,
    ) -> Result<(), Stuck> {
        let told = self.next + 1;
        for alarm in &raised {
            let severity = alarm.severity().as_str_name().trim_start_matches("SEVERITY_").to_ascii_lowercase();
            let workspace = custody::id::hex(alarm.workspace.as_deref().unwrap_or_default());
            tracing::warn!(alarm = alarm.name, severity, workspace, positions = ?alarm.positions, "out of the ordinary");
        }
        crate::failpoint::hit("watch-raised");
        let count = raised.len() as u64;
        let row = (Family::Meta, Bytes::from_static(TOLD.as_bytes()), Bytes::copy_from_slice(&told.to_be_bytes()));
        let records: Vec<Kind> = raised.into_iter().map(Kind::Alarm).collect();
        let mut times = 0_u64;
        loop {
            // It is the same alarm however often it is tried: nothing is walked twice for it.
            match self.record(vec![row.clone()], records.clone(), runtime) {
                Err(Stuck::Later(_)) if stop.has_changed().is_err() => return Err(Stuck::Ending),
                Err(Stuck::Later(why)) => {
                    self.tell_progress();
                    times += 1;
                    // A ledger that takes nothing for a day must not fill its log with that.
                    if times.is_power_of_two() {
                        tracing::warn!(why, times, "alarms wait: they cannot be put on record now");
                    }
                }
                told => break told?,
            }
            runtime.block_on(clock::sleep(PAUSE));
        }
        crate::failpoint::hit("watch-told");
        self.told = told;
        self.metrics.add("custody_alarms_on_record_total", count);
        Ok(())
    }

    fn look(&mut self, runtime: &tokio::runtime::Handle) -> Result<(), Stuck> {
        let store: Arc<Store> = self.tail.store()?;
        let workspaces: Vec<WorkspaceId> = {
            let chains = self.chains.read().unwrap_or_else(PoisonError::into_inner);
            chains.workspaces.keys().copied().collect()
        };
        let now = clock::now_us();
        // What the index says is next is past batches without records too, of which it commits nothing.
        let followers = [(conditions::INDEX_LAGGING, self.index.progress().0), (conditions::WATCH_LAGGING, self.next)];
        let of = conditions::Of { store: &store, workspaces: &workspaces, alarms: &self.alarms, followers: &followers };
        let stand = self.conditions.standing(&of, now)?;
        let (rows, records) = self.conditions.change(&stand, now);
        if records.is_empty() {
            return Ok(());
        }
        // A crash before the write: it is told by the next start; behind it: the store has that it was.
        crate::failpoint::hit("watch-condition-raised");
        self.record(rows, records.into_iter().map(Kind::Alarm).collect(), runtime)?;
        crate::failpoint::hit("watch-condition-told");
        self.conditions.stand(&stand);
        Ok(())
    }

    /// On disk when it returns.
    fn record(
        &self,
        rows: Vec<(Family, Bytes, Bytes)>,
        records: Vec<Kind>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<(), Stuck> {
        match runtime.block_on(put_on_record(&self.writer, rows, records)) {
            Some(Ok(())) => Ok(()),
            Some(Err(Untaken::Later(why))) => Err(Stuck::Later(why)),
            Some(Err(Untaken::Held(_))) | None => Err(Stuck::Ending),
        }
    }

    /// Writes down what is remembered. That it could not is no loss: a start then walks more.
    fn write(&mut self) {
        let written = self
            .engine
            .remembered()
            .and_then(|bytes| memory::write(&self.file, &self.tail, self.next, &bytes).map_err(|why| why.to_string()));
        if let Err(why) = written {
            tracing::warn!(why, "what the watch remembers cannot be written down; a start will walk more of the store");
        }
        self.since = (0, Instant::now());
    }
}

/// An alarm's bytes: what a replay compares.
pub fn bytes_of(alarm: &wire::Alarm) -> Vec<u8> {
    record::encode(Kind::Alarm(alarm.clone()))
}
