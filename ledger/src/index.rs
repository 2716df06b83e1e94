//! The index: a follower that keeps every record of the store findable, in one folder for each UTC day of receipt.
//!
//! What must hold: the index waits for the store and never the other way round; how far it has come stands in its own commits
//! and nowhere else, so that a crash anywhere leaves a whole state, from which it goes on; after every commit the documents are
//! counted; what is missing, broken, of another version or of another store is thrown away and built again, and meanwhile is
//! walked in the store instead ([`find`]). So an answer is never wrong for want of the index, only slower, and says so.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use custody::{
    id::{WorkspaceId, unhex},
    query::Kind,
};
use tokio::sync::watch;

use self::day::{DayError, Shown, Writing};
use crate::{
    alarm::{Alarm, Alarms},
    clock, durable,
    log_view::report,
    metrics::Metrics,
    store::{Family, Rank, StoreError},
    tail::{Chunk, Tail},
    workspace::DAY_US,
};

mod compile;
mod day;
mod find;
mod schema;
mod sum;
#[cfg(test)]
mod tests;

use day::Day;
pub use find::{AskError, Page, Question};

/// Name of the floor among the store's numbers: commit index below which retention has let the index go.
const FLOOR: &str = "index_floor";
/// Name of the commit index before which nobody remembers when a call ended: pages that began before it are over.
const ENDED_FLOOR: &str = "ended_floor";
/// Documents that are not committed at most: what a search walks in memory takes some milliseconds.
const PENDING_MAX: u64 = 50_000;
/// How long a document waits at most for the commit that takes it out of memory; commits of a few documents each are what
/// makes an index slow.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// How far the index stands back.
const NICE: i32 = 10;
/// Commits of the store in one step, before anything else is looked at.
const STEP: u64 = 256;
/// Rows of ids in one write: a millisecond, for which the writer waits.
const IDS_AT_ONCE: usize = 256;
/// How long it waits after a failure, the first time; each further time twice as long, up to a minute.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What can be searched. Shared by the follower and all who ask.
pub struct Index {
    tail: Arc<Tail>,
    shown: RwLock<Shown>,
}

impl Index {
    /// Folders that can be searched, newest first.
    fn shown(&self) -> Shown {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is newer than the index, and all else that was committed.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Commit index after the newest that is indexed.
    pub fn indexed_through(&self) -> u64 {
        self.shown().first().map_or(0, |day| day.payload.next)
    }

    /// Records of a workspace that need no walk: they are indexed, or retention let them go.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn indexed(&self, workspace: WorkspaceId) -> Result<u64, AskError> {
        let dropped = self.tail.store()?.number(&dropped_name(workspace))?.unwrap_or(0);
        let folders = self.shown();
        let counts = folders.iter().map(|day| day.records_of(workspace));
        Ok(counts.sum::<tantivy::Result<u64>>()? + dropped)
    }

    fn show(&self, change: impl FnOnce(&mut Vec<Day>)) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        let mut days = shown.as_ref().clone();
        change(&mut days);
        days.sort_by_key(|day| std::cmp::Reverse(day.payload.first));
        *shown = Arc::new(days);
    }
}

/// Why the index does not go on.
#[derive(Debug)]
enum Stuck {
    Store(StoreError),
    Day(DayError),
}

impl From<StoreError> for Stuck {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

impl From<DayError> for Stuck {
    fn from(source: DayError) -> Self {
        Self::Day(source)
    }
}

impl From<std::io::Error> for Stuck {
    fn from(source: std::io::Error) -> Self {
        Self::Day(source.into())
    }
}

/// A run of commits that is being indexed.
struct Filler {
    /// First commit that is in no folder before.
    start: u64,
    /// Next commit.
    next: u64,
    /// Where it ends; `None`: it follows the newest.
    end: Option<u64>,
    writing: Option<Writing>,
    /// When the oldest document was added that is not committed.
    since: Option<Instant>,
    /// Keys and values of ids that go with them.
    ids: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Filler {
    fn new(start: u64, end: Option<u64>) -> Self {
        Self { start, next: start, end, writing: None, since: None, ids: Vec::new() }
    }
}

/// Keeps the index. One thread; whoever asks has an [`Index`].
pub struct Follower {
    index: Arc<Index>,
    root: PathBuf,
    days_max: u64,
    alarms: Alarms,
    metrics: Metrics,
    live: Filler,
    /// What is missing before; the last is the newest, and is built first.
    gaps: Vec<Filler>,
}

impl Follower {
    /// Opens the folders below `root` and throws away those of no use.
    ///
    /// # Errors
    /// [`StoreError`]; of the folders none, but that there is no place for them.
    pub fn open(
        root: PathBuf,
        tail: Arc<Tail>,
        days_max: u64,
        (alarms, metrics): (Alarms, Metrics),
    ) -> Result<Self, StoreError> {
        let index = Arc::new(Index { tail, shown: RwLock::default() });
        let live = Filler::new(0, None);
        let mut follower = Self { index, root, days_max, alarms, metrics, live, gaps: Vec::new() };
        match follower.take_folders() {
            Ok(()) => {}
            Err(Stuck::Store(why)) => return Err(why),
            Err(Stuck::Day(why)) => follower.raise(&Stuck::Day(why)),
        }
        Ok(follower)
    }

    /// What it keeps.
    pub fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    fn take_folders(&mut self) -> Result<(), Stuck> {
        durable::create_dir(&self.root, 0o700)?;
        let mut next = self.index.tail.store()?.number(FLOOR)?.unwrap_or(0);
        let mut newest = None;
        for (first, path) in day::list(&self.root)? {
            let of_use = match day::open(&path) {
                Ok(day) if first >= next && day.payload.first == first && day.payload.is_of(&self.index.tail)? => {
                    Some(day)
                }
                Ok(_) => None,
                Err(why) => {
                    tracing::warn!(folder = %path.display(), why = report(&why), "a folder of the index is built again");
                    None
                }
            };
            let Some(day) = of_use else {
                self.metrics.add("custody_index_rebuilt_total", 1);
                day::remove(&path)?;
                continue;
            };
            if first > next {
                self.gaps.push(Filler::new(next, Some(first)));
            }
            next = day.payload.next;
            self.index.show(|days| days.push(day));
            newest = Some(path);
        }
        self.live = Filler::new(next, None);
        self.live.writing = newest.and_then(|path| Writing::resume(&path).ok());
        if let Some(writing) = &self.live.writing {
            self.live.start = writing.payload().first;
        }
        Ok(())
    }

    /// Follows until `stop` is dropped.
    pub fn run(mut self, runtime: &tokio::runtime::Handle, mut stop: watch::Receiver<()>) {
        // Of this thread, and of those that it makes: where processors are short, intake and questions go first.
        if let Err(why) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%why, "the index runs at the priority of everything else");
        }
        let mut news = self.index.tail.watch();
        let mut pause = PAUSE_FIRST;
        while stop.has_changed().is_ok() {
            let limit = match self.step() {
                Ok(true) => {
                    pause = PAUSE_FIRST;
                    continue;
                }
                Ok(false) => self.live.since.map_or(PAUSE_MAX, |since| COMMIT_AFTER.saturating_sub(since.elapsed())),
                Err(Stuck::Store(StoreError::Closed)) => return,
                Err(why) => {
                    self.raise(&why);
                    self.begin_again();
                    pause = (pause * 2).min(PAUSE_MAX);
                    pause
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stop.changed() => {}
                    _ = news.changed() => {}
                    () = clock::sleep(limit) => {}
                }
            });
        }
        if let Err(why) = self.commit_live() {
            self.raise(&why);
        }
    }

    /// One step: the newest first, then what is missing. `false`: there is nothing to do now.
    fn step(&mut self) -> Result<bool, Stuck> {
        let committed = self.index.tail.committed();
        self.metrics.set("custody_index_lag_commits", committed.saturating_sub(self.index.indexed_through()));
        let mut live = std::mem::replace(&mut self.live, Filler::new(0, None));
        let worked = self.fill(&mut live, committed);
        self.live = live;
        if worked? {
            return Ok(true);
        }
        let Some(mut gap) = self.gaps.pop() else { return Ok(false) };
        let end = gap.end.unwrap_or(0);
        let worked = self.fill(&mut gap, end);
        if gap.next < end || worked.is_err() {
            self.gaps.push(gap);
        } else {
            self.finish(&mut gap)?;
        }
        worked?;
        Ok(true)
    }

    /// Some commits of a run up to `until`; `false`: there are none.
    fn fill(&mut self, run: &mut Filler, until: u64) -> Result<bool, Stuck> {
        let end = until.min(run.next.saturating_add(STEP));
        let worked = run.next < end;
        while run.next < end {
            if let Some(chunk) = self.index.tail.chunk(run.next)?
                && !chunk.records().is_empty()
            {
                self.add(run, &chunk)?;
            }
            run.next += 1;
            if let Some(writing) = &mut run.writing {
                writing.passed(run.next);
            }
        }
        let full = run.writing.as_ref().is_some_and(|writing| writing.pending() >= PENDING_MAX);
        if full || run.since.is_some_and(|since| since.elapsed() >= COMMIT_AFTER) {
            self.commit(run)?;
        }
        Ok(worked)
    }

    fn add(&mut self, run: &mut Filler, chunk: &Chunk) -> Result<(), Stuck> {
        if run.writing.as_ref().is_some_and(|writing| !writing.takes(chunk.leaf.received_at)) {
            self.finish(run)?;
        }
        if run.writing.is_none() {
            let day = chunk.leaf.received_at / DAY_US;
            self.forget_old(day)?;
            self.forget_ended()?;
            run.writing = Some(Writing::create(&self.root, day, run.start)?);
        }
        let Some(writing) = &mut run.writing else { return Ok(()) };
        writing.add(chunk)?;
        run.ids.extend(id_rows(chunk));
        let store = self.index.tail.store()?;
        while run.ids.len() > IDS_AT_ONCE {
            let mut change = store.change();
            run.ids.drain(..IDS_AT_ONCE).for_each(|(key, value)| change.put(Family::Ids, key, value));
            store.derive_soon(change)?;
        }
        run.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn commit(&mut self, run: &mut Filler) -> Result<(), Stuck> {
        let Some(writing) = &mut run.writing else { return Ok(()) };
        let began = Instant::now();
        let store = self.index.tail.store()?;
        let mut change = store.change();
        run.ids.drain(..).for_each(|(key, value)| change.put(Family::Ids, key, value));
        // Before the commit that lets memory forget them; what a crash leaves of it is written again.
        store.derive(change)?;
        let day = writing.commit()?;
        run.since = None;
        let (first, next, live) = (day.payload.first, day.payload.next, run.end.is_none());
        self.index.show(|days| {
            days.retain(|known| known.payload.first != first);
            days.push(day);
        });
        if live {
            self.index.tail.trim(next);
        }
        self.metrics.add("custody_index_commits_total", 1);
        self.metrics.observe("custody_index_commit_seconds", began.elapsed());
        Ok(())
    }

    fn commit_live(&mut self) -> Result<(), Stuck> {
        let mut live = std::mem::replace(&mut self.live, Filler::new(0, None));
        let done = if live.since.is_some() { self.commit(&mut live) } else { Ok(()) };
        self.live = live;
        done
    }

    /// The folder is full, its day is over, or its run is.
    fn finish(&mut self, run: &mut Filler) -> Result<(), Stuck> {
        self.commit(run)?;
        if let Some(writing) = run.writing.take() {
            run.start = writing.payload().next;
            writing.end()?;
        }
        Ok(())
    }

    /// Lets folders go that are past the hot days. The floor first: a crash between leaves folders below it, which the next
    /// start removes.
    fn forget_old(&mut self, today: u64) -> Result<(), Stuck> {
        let oldest = today.saturating_sub(self.days_max);
        let shown = self.index.shown();
        let Some(floor) = shown.iter().filter(|day| day.payload.day < oldest).map(|day| day.payload.next).max() else {
            return Ok(());
        };
        let store = self.index.tail.store()?;
        let mut change = store.change();
        change.put(Family::Meta, FLOOR, floor.to_be_bytes());
        for workspace in store.workspaces()? {
            let gone = shown.iter().filter(|day| day.payload.next <= floor);
            let gone: tantivy::Result<u64> = gone.map(|day| day.records_of(workspace)).sum();
            let name = dropped_name(workspace);
            let before = store.number(&name)?.unwrap_or(0);
            change.put(Family::Meta, name, (before + gone.map_err(DayError::from)?).to_be_bytes());
        }
        store.derive(change)?;
        self.index.show(|days| days.retain(|day| day.payload.first >= floor));
        self.gaps.retain(|gap| gap.start >= floor);
        for (first, path) in day::list(&self.root)? {
            if first < floor {
                day::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Forgets when calls ended of the days before the last one: only pages that began then would ask.
    fn forget_ended(&self) -> Result<(), Stuck> {
        let Some(before) = self.index.shown().first().map(|day| day.payload.first) else { return Ok(()) };
        let store = self.index.tail.store()?;
        let mut change = store.change();
        change.put(Family::Meta, ENDED_FLOOR, before.to_be_bytes());
        change.delete_range(Family::Ended, &[], &Rank::first_of(before).encode());
        Ok(store.derive(change)?)
    }

    fn raise(&self, why: &Stuck) {
        let (alarm, text) = match why {
            Stuck::Day(why @ DayError::Differs { .. }) => (Alarm::IndexDiffers, report(why)),
            Stuck::Day(why) => (Alarm::IndexFailing, report(why)),
            Stuck::Store(why) => (Alarm::IndexFailing, report(why)),
        };
        self.alarms.raise(alarm, text);
    }

    /// After a failure nobody knows what a writer holds: it goes, and what it has committed is opened again, or built again.
    fn begin_again(&mut self) {
        self.live.writing = None;
        for gap in &mut self.gaps {
            gap.writing = None;
        }
        self.index.show(Vec::clear);
        self.gaps.clear();
        if let Err(why) = self.take_folders() {
            self.raise(&why);
        }
    }
}

/// Name of the number of a workspace's records that retention let go from the index.
fn dropped_name(workspace: WorkspaceId) -> String {
    format!("index_dropped/{workspace}")
}

/// Key of an id of a workspace, up to where the commit index follows.
fn id_key(field: custody::query::Field, workspace: WorkspaceId, id: &[u8]) -> Vec<u8> {
    let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
    [&[field as u8][..], &workspace.0, &[length], id].concat()
}

/// Rows of the ids in a batch, which hardly two records share: one for each id and batch.
fn id_rows(chunk: &Chunk) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let mut rows: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = std::collections::BTreeMap::new();
    for (index, facts) in (0_u16..).zip(chunk.facts()) {
        for (field, text) in facts.all_texts().filter(|(field, _)| field.kind() == Kind::Unique) {
            let mut key = id_key(field, chunk.workspace(), &unhex(text).unwrap_or_default());
            key.extend_from_slice(&chunk.commit_index.to_be_bytes());
            rows.entry(key).or_default().extend_from_slice(&index.to_be_bytes());
        }
    }
    rows.into_iter()
}
