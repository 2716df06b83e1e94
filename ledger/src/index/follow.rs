//! The follower: walks what was committed into folders, the newest first, and then what is missing before.
//!
//! What must hold: see [`super`]. A folder that is over is merged to one segment in a thread of its own, from which a crash may
//! take it at any moment; nothing else is begun below its name meanwhile.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use custody::{id::unhex, query::Kind};
use rustix::io::Errno;
use tokio::sync::{mpsc, watch};

use super::{
    Index, WISHES_MAX, Wish,
    day::{self, Day, DayError, Payload, Root, Writing},
    id_key,
};
use crate::{
    alarm::{Alarm, Alarms},
    clock,
    log_view::report,
    metrics::Metrics,
    priority::{BEHIND, stand_back},
    store::{Family, StoreError},
    tail::{CommittedBatch, Tail},
    workspace::DAY_US,
};

/// Documents that are not committed at most: what a search walks in memory takes some milliseconds.
const PENDING_MAX: u64 = 50_000;
/// How long a document waits at most for the commit that takes it out of memory; commits of a few documents each are what
/// makes an index slow.
const COMMIT_AFTER: Duration = Duration::from_secs(2);
/// Commits of the store in one step, before anything else is looked at.
const STEP: u64 = 256;
/// Rows of ids in one write: a millisecond, for which the writer waits.
pub(super) const IDS_AT_ONCE: usize = 256;
/// How long it waits after a failure, the first time; each further time twice as long, up to a minute.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a folder that could not be merged is left as it is.
const MERGE_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// Why the index does not go on.
#[derive(Debug)]
pub(super) enum Stuck {
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
pub(super) struct Filler {
    /// First commit that is in no folder before.
    pub(super) start: u64,
    /// Next commit.
    next: u64,
    /// Where it ends; `None`: it follows the newest.
    end: Option<u64>,
    pub(super) writing: Option<Writing>,
    /// When the oldest document was added that is not committed.
    since: Option<Instant>,
    /// Keys and values of ids that go with them.
    ids: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Filler {
    pub(super) fn new(start: u64, end: Option<u64>) -> Self {
        Self { start, next: start, end, writing: None, since: None, ids: Vec::new() }
    }

    fn writes(&self, first: u64) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.payload().first == first)
    }
}

/// A folder that is being merged.
pub(super) struct Merging {
    first: u64,
    thread: JoinHandle<Result<Day, DayError>>,
}

/// Keeps the index. One thread; whoever asks has an [`Index`].
pub struct Follower {
    pub(super) index: Arc<Index>,
    pub(super) root: Root,
    pub(super) days_max: u64,
    alarms: Alarms,
    metrics: Metrics,
    wishes: mpsc::Receiver<Wish>,
    pub(super) live: Filler,
    /// What is missing before; the last is the newest, and is built first.
    pub(super) gaps: Vec<Filler>,
    /// Folders that are over, and were not merged yet.
    over: Vec<Writing>,
    pub(super) merging: Option<Merging>,
    /// Since when folders are not merged, because one could not be.
    unmerged_since: Option<Instant>,
    /// The folders that there are were taken up.
    taken: bool,
}

impl Follower {
    /// Opens the folders below `root` and throws away those of no use.
    ///
    /// # Errors
    /// [`StoreError`]; of the folders none, but that there is no place for them.
    pub fn open(root: PathBuf, tail: Arc<Tail>, days_max: u64, told: (Alarms, Metrics)) -> Result<Self, StoreError> {
        Self::open_at(Root::new(root), tail, days_max, told)
    }

    /// The same, below a root that tests prepare.
    pub(super) fn open_at(
        root: Root,
        tail: Arc<Tail>,
        days_max: u64,
        (alarms, metrics): (Alarms, Metrics),
    ) -> Result<Self, StoreError> {
        let (wish, wishes) = mpsc::channel(WISHES_MAX);
        let index = Arc::new(Index::new(tail, wish));
        let live = Filler::new(0, None);
        let (gaps, over) = (Vec::new(), Vec::new());
        let mut follower = Self {
            index,
            root,
            days_max,
            alarms,
            metrics,
            wishes,
            live,
            gaps,
            over,
            merging: None,
            unmerged_since: None,
            taken: false,
        };
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

    /// Takes up the folders. Until it has, nothing is known of any, so that nothing is built: it could be in the place of one.
    fn take_folders(&mut self) -> Result<(), Stuck> {
        self.taken = false;
        self.over.clear();
        self.gaps.clear();
        self.live = Filler::new(0, None);
        self.index.show(Vec::clear);
        self.root.make()?;
        let mut next = self.index.floor()?;
        let mut newest = None;
        for (first, path) in self.root.list()? {
            let of_use = match self.root.open(&path) {
                Ok(day) if first >= next && day.payload.first == first && day.payload.is_of(&self.index.tail)? => {
                    Some(day)
                }
                Ok(_) => None,
                // It is of use, perhaps: the machine has no room to open it now.
                Err(why) if is_passing(&why) => return Err(Stuck::Day(why)),
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
        // One that cannot be gone on with stays as it is, and the next begins behind it.
        self.live.writing = newest.and_then(|path| self.root.resume(&path).ok());
        if let Some(writing) = &self.live.writing {
            self.live.start = writing.payload().first;
        }
        self.taken = true;
        Ok(())
    }

    /// Follows until `stop` is dropped. What is being merged then stays as it was.
    pub fn run(mut self, runtime: &tokio::runtime::Handle, mut stop: watch::Receiver<()>) {
        stand_back("the index", BEHIND);
        let mut news = self.index.tail.watch();
        let mut pause = PAUSE_FIRST;
        let mut wish = None;
        while stop.has_changed().is_ok() {
            let limit = match self.turn(wish.take()) {
                Ok(true) => continue,
                Ok(false) => {
                    pause = PAUSE_FIRST;
                    self.live.since.map_or(PAUSE_MAX, |since| COMMIT_AFTER.saturating_sub(since.elapsed()))
                }
                Err(Stuck::Store(StoreError::Closed)) => return,
                Err(why) => {
                    self.raise(&why);
                    self.begin_again();
                    // Whatever comes in meanwhile: what failed for want of room fails the next time, too.
                    runtime.block_on(async {
                        tokio::select! {
                            _ = stop.changed() => {}
                            () = clock::sleep(pause) => {}
                        }
                    });
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            };
            let wishes = &mut self.wishes;
            wish = runtime.block_on(async {
                tokio::select! {
                    _ = stop.changed() => None,
                    _ = news.changed() => None,
                    wish = wishes.recv() => wish,
                    () = clock::sleep(limit) => None,
                }
            });
        }
        if let Err(why) = self.commit_live() {
            self.raise(&why);
        }
    }

    /// What somebody wishes, and one step. `false`: there is nothing to do now.
    pub(super) fn turn(&mut self, wish: Option<Wish>) -> Result<bool, Stuck> {
        if !self.taken {
            self.take_folders()?;
        }
        match wish.or_else(|| self.wishes.try_recv().ok()) {
            Some(Wish::Rebuild(day, reply)) => {
                let built = self.throw_away(|payload| day.is_none_or(|day| payload.day == day), false)?;
                // Whoever asked may be gone.
                reply.send(built).ok();
            }
            Some(Wish::Differs(first)) => {
                self.metrics.add("custody_index_rebuilt_total", 1);
                self.throw_away(|payload| payload.first == first, true)?;
            }
            Some(Wish::Look) | None => {}
        }
        self.step()
    }

    /// One step: the newest first, then what is missing. `false`: there is nothing to do now.
    pub(super) fn step(&mut self) -> Result<bool, Stuck> {
        let committed = self.index.tail.committed();
        let mut live = std::mem::replace(&mut self.live, Filler::new(0, None));
        let worked = self.fill(&mut live, committed);
        self.live = live;
        self.tell_progress(committed);
        if worked? {
            return Ok(true);
        }
        self.end_merging(false);
        self.begin_merging();
        // While one is merged no other is built: what waits to be merged would pile up.
        if self.merging.is_none()
            && let Some(mut gap) = self.gaps.pop()
        {
            let end = gap.end.unwrap_or(0);
            let worked = self.fill(&mut gap, end);
            if gap.next < end || worked.is_err() {
                self.gaps.push(gap);
            } else {
                self.finish(&mut gap)?;
            }
            worked?;
            return Ok(true);
        }
        self.forget_rows()
    }

    fn tell_progress(&self, committed: u64) {
        let indexed = self.index.indexed_through();
        // With nothing that waits for a commit, what was walked has no more records.
        let through = if self.live.since.is_none() { self.live.next } else { indexed.min(self.live.next) };
        let missing = self.gaps.iter().map(|gap| gap.end.unwrap_or(0).saturating_sub(gap.next)).sum();
        self.index.through.store(through, Ordering::Relaxed);
        self.index.missing.store(missing, Ordering::Relaxed);
        self.metrics.set("custody_index_lag_commits", committed.saturating_sub(through) + missing);
    }

    /// Some commits of a run up to `until`; `false`: there are none.
    fn fill(&mut self, run: &mut Filler, until: u64) -> Result<bool, Stuck> {
        let end = until.min(run.next.saturating_add(STEP));
        let worked = run.next < end;
        while run.next < end {
            if let Some(batch) = self.index.tail.batch(run.next)?
                && !batch.records().is_empty()
            {
                self.add(run, &batch)?;
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

    fn add(&mut self, run: &mut Filler, batch: &CommittedBatch) -> Result<(), Stuck> {
        if run.writing.as_ref().is_some_and(|writing| !writing.takes(batch.leaf.received_at)) {
            self.finish(run)?;
        }
        if run.writing.is_none() {
            let day = batch.leaf.received_at / DAY_US;
            if run.end.is_none() {
                self.forget_old(day)?;
                self.forget_ended()?;
            }
            run.writing = Some(self.root.create(day, run.start)?);
        }
        let Some(writing) = &mut run.writing else { return Ok(()) };
        writing.add(batch)?;
        run.ids.extend(id_rows(batch));
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

    pub(super) fn commit_live(&mut self) -> Result<(), Stuck> {
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
            crate::failpoint::hit("day-over");
            self.over.push(writing);
        }
        Ok(())
    }

    /// Shows what was merged, if it is done or is to be waited for.
    pub(super) fn end_merging(&mut self, wait: bool) {
        let Some(merging) = self.merging.take_if(|merging| wait || merging.thread.is_finished()) else { return };
        let why = match merging.thread.join() {
            Ok(Ok(merged)) => {
                self.index.show(|days| {
                    // It may have been thrown away meanwhile.
                    if let Some(known) = days.iter_mut().find(|known| known.payload == merged.payload) {
                        *known = merged;
                    }
                });
                self.metrics.add("custody_index_merged_total", 1);
                return;
            }
            Ok(Err(why)) => report(&why),
            Err(_) => "its thread broke off".to_owned(),
        };
        if self.index.shown().iter().any(|day| day.payload.first == merging.first) {
            self.unmerged_since = Some(Instant::now());
            self.alarms.raise(Alarm::IndexFailing, format!("a folder was not merged to one segment: {why}"));
        }
    }

    /// Merges a folder to which nothing is added any more: one that is over, or that a crash left.
    pub(super) fn begin_merging(&mut self) {
        let waits = self.unmerged_since.is_some_and(|since| since.elapsed() < MERGE_AGAIN_AFTER);
        if self.merging.is_some() || waits && self.over.is_empty() {
            return;
        }
        let writing = self.over.pop();
        let written = |first| self.live.writes(first) || self.gaps.iter().any(|gap| gap.writes(first));
        let parts = |day: &Day| day.searcher.segment_readers().len() > 1 && !written(day.payload.first);
        let found = match &writing {
            Some(writing) => Some(writing.payload().clone()),
            None => self.index.shown().iter().find(|day| parts(day)).map(|day| day.payload.clone()),
        };
        let Some(payload) = found else { return };
        let (root, path, index) = (self.root.clone(), self.root.path(&payload), self.index());
        let thread = std::thread::Builder::new().name("index merge".to_owned()).spawn(move || {
            let done = writing.map_or(Ok(()), Writing::end).and_then(|()| root.merge(&path));
            index.wish(Wish::Look);
            done
        });
        match thread {
            Ok(thread) => self.merging = Some(Merging { first: payload.first, thread }),
            Err(why) => {
                tracing::warn!(%why, "no thread to merge a folder of the index in; it stays as it is for an hour");
                self.unmerged_since = Some(Instant::now());
            }
        }
    }

    /// Takes folders out of every answer and off the disk; what they held is built again, and is walked in the store meanwhile.
    fn throw_away(&mut self, which: impl Fn(&Payload) -> bool, aside: bool) -> Result<Vec<Payload>, Stuck> {
        let shown = self.index.shown();
        let gone: Vec<Payload> =
            shown.iter().map(|day| &day.payload).filter(|payload| which(payload)).cloned().collect();
        self.index.show(|days| days.retain(|day| !gone.contains(&day.payload)));
        for payload in &gone {
            let first = payload.first;
            let mut end = payload.next;
            if self.live.writes(first) {
                // What comes now is found as quickly as before: it goes into a folder of its own.
                end = self.live.next;
                self.live = Filler::new(end, None);
            }
            self.over.retain(|writing| writing.payload().first != first);
            self.gaps.iter_mut().filter(|gap| gap.writes(first)).for_each(|gap| end = gap.end.unwrap_or(end));
            self.gaps.retain(|gap| !gap.writes(first));
            self.gaps.push(Filler::new(first, Some(end)));
            let path = self.root.path(payload);
            if aside { self.root.set_aside(&path)? } else { day::remove(&path)? }
        }
        self.gaps.sort_by_key(|gap| gap.start);
        Ok(gone)
    }

    pub(super) fn raise(&self, why: &Stuck) {
        let (alarm, text) = match why {
            Stuck::Day(why @ DayError::Differs { .. }) => (Alarm::IndexDiffers, report(why)),
            Stuck::Day(why) => (Alarm::IndexFailing, report(why)),
            Stuck::Store(why) => (Alarm::IndexFailing, report(why)),
        };
        self.alarms.raise(alarm, text);
    }

    /// What is missing below the floor is missed no more.
    pub(super) fn clip_gaps(&mut self, floor: u64) {
        for gap in self.gaps.iter_mut().filter(|gap| gap.start < floor) {
            // The folder that it was filling goes, and with it what was not committed.
            *gap = Filler::new(floor, gap.end);
        }
        self.gaps.retain(|gap| gap.end.is_none_or(|end| gap.next < end));
    }

    /// After a failure nobody knows what a writer holds: it goes, and what it has committed is opened again, or built again.
    pub(super) fn begin_again(&mut self) {
        // Whatever is below a name is looked at, and perhaps made anew.
        self.end_merging(true);
        if let Err(why) = self.take_folders() {
            self.raise(&why);
        }
    }
}

/// Rows of the ids in a batch, which hardly two records share: one for each id and batch.
pub(super) fn id_rows(batch: &CommittedBatch) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (index, facts) in (0_u16..).zip(batch.facts()) {
        for (field, text) in facts.all_texts().filter(|(field, _)| field.kind() == Kind::Unique) {
            let mut key = id_key(field, batch.workspace(), &unhex(text).unwrap_or_default());
            key.extend_from_slice(&batch.commit_index.to_be_bytes());
            rows.entry(key).or_default().extend_from_slice(&index.to_be_bytes());
        }
    }
    rows.into_iter()
}

/// Whether it is the machine that has too little now, and not the folder that is of no use.
fn is_passing(why: &DayError) -> bool {
    let no_room = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(why);
    while let Some(why) = cause {
        let code = why.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if code.is_some_and(|code| no_room.contains(&code)) {
            return true;
        }
        cause = why.source();
    }
    false
}
