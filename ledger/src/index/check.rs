//! Whether the index holds what the store does: each folder's documents, with all that they say, against the records of its commits.
//!
//! What must hold: both sides are summed in a way that no order changes, so that a document that is lost, doubled, foreign or
//! says something else shows; whoever asked for a check hears of it once it is on record. A folder that differs raises its alarm and is taken out
//! of answers at once, before that: a crash between leaves a folder that the next night finds again, and no record that it was found twice. It
//! reads as much as there is and takes only what others leave of processor and time.

use std::{
    hash::{DefaultHasher, Hasher as _},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    query::{Facts, Field, Kind},
    wire::{LedgerEvent, LedgerEventKind, record::Kind as Record},
};
use tantivy::SegmentReader;
use tokio::sync::{mpsc, watch};

use super::{Folder, Index, Wish, day::Day, find::AskError, schema::RANK};
use crate::{
    alarm::{Alarm, Alarms},
    clock,
    commit::{Request, Untaken, number, put_on_record},
    directory::Because,
    log_view::report,
    metrics::Metrics,
    priority::{LAST, stand_back},
    store::{Family, Rank, StoreError},
    tail::CommittedBatch,
    workspace::DAY_US,
};

/// What it is called on record.
const CHECK: &str = "index.check";
/// Name of the UTC day on which all that was due was looked at, among the store's numbers.
const CHECKED: &str = "index_checked";
/// How often it looks whether a new day has begun, and how long it waits after a failure.
const EVERY: Duration = Duration::from_secs(60);
/// Nights between two looks at a folder to which nothing is added any more: reading all of the hot days each night would cost a
/// disk more than it finds.
const NIGHTS: u64 = 30;
/// Days whose folders are looked at every night.
const NEW_DAYS: u64 = 2;
/// Documents or commits between two looks whether to go on.
const LOOKS: u32 = 4_096;
/// Findings that wait for whoever asked, and askers that wait.
const WAITING_MAX: usize = 16;

/// One folder, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Which.
    pub folder: Folder,
    /// It does not hold what the store does.
    pub differs: bool,
}

/// What an administrator asks for.
pub struct Asked {
    /// A UTC day; `None`: all.
    day: Option<u64>,
    because: Because,
    told: mpsc::Sender<Finding>,
}

/// A folder, looked at; or why no more is told, in words.
pub type Finding = Result<Checked, String>;

/// Where checks are asked for.
#[derive(Clone)]
pub struct Checks(mpsc::Sender<Asked>);

impl Checks {
    /// Has the folders of a UTC day, or all, looked at; what came of it once it is on record. `None`: the ledger is ending, or
    /// others wait.
    pub fn ask(&self, day: Option<u64>, because: Because) -> Option<mpsc::Receiver<Finding>> {
        let (told, findings) = mpsc::channel(WAITING_MAX);
        self.0.try_send(Asked { day, because, told }).ok()?;
        Some(findings)
    }
}

/// Documents, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    documents: u64,
    sum: u64,
}

/// Spreads the bits of a number over all of another.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn of_text(field: Field, text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u8(field as u8);
    hasher.write(text);
    hasher.finish()
}

fn of_number(field: Field, number: u64) -> u64 {
    mix(number ^ mix(field as u64 + 1))
}

impl Sum {
    fn document(&mut self, rank: u64) {
        self.documents += 1;
        self.sum = self.sum.wrapping_add(mix(!rank));
    }

    /// One thing that a document says.
    fn says(&mut self, rank: u64, what: u64) {
        self.sum = self.sum.wrapping_add(mix(mix(rank) ^ what));
    }

    fn facts(&mut self, rank: Rank, facts: &Facts) {
        self.document(rank.0);
        for (field, text) in facts.all_texts() {
            let what = if field.kind() == Kind::Unique { of_number(field, 1) } else { of_text(field, text.as_bytes()) };
            self.says(rank.0, what);
        }
        facts.all_numbers().for_each(|(field, number)| self.says(rank.0, of_number(field, number)));
    }

    /// Takes a segment in; `false`: not to the end.
    fn segment(&mut self, reader: &SegmentReader, go_on: impl Fn() -> bool) -> tantivy::Result<bool> {
        let columns = reader.fast_fields();
        let ranks = columns.column_first_or_default::<u64>(RANK)?;
        let documents = reader.max_doc();
        (0..documents).for_each(|document| self.document(ranks.get_val(document)));
        for field in Field::ALL {
            let said = if field.kind() == Kind::Text {
                let Some(column) = columns.str(field.name())? else { continue };
                let mut texts = Vec::with_capacity(column.num_terms());
                let mut stream = column.dictionary().stream()?;
                while stream.advance() {
                    texts.push(of_text(*field, stream.key()));
                }
                let text = |ord: u64| usize::try_from(ord).ok().and_then(|ord| texts.get(ord)).copied();
                let ords = column.ords();
                self.column(documents, &go_on, |sum, document| {
                    let rank = ranks.get_val(document);
                    ords.values_for_doc(document).for_each(|ord| sum.says(rank, text(ord).unwrap_or_default()));
                })
            } else {
                let Some(column) = columns.column_opt::<u64>(field.name())? else { continue };
                self.column(documents, &go_on, |sum, document| {
                    let rank = ranks.get_val(document);
                    column.values_for_doc(document).for_each(|number| sum.says(rank, of_number(*field, number)));
                })
            };
            if !said {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn column(&mut self, documents: u32, go_on: &impl Fn() -> bool, take: impl Fn(&mut Self, u32)) -> bool {
        (0..documents).all(|document| {
            take(self, document);
            document % LOOKS != 0 || go_on()
        })
    }
}

/// Whether a folder holds what the store does; `None`: not looked at to the end.
pub(super) fn differs(index: &Index, day: &Day, go_on: impl Fn() -> bool) -> Result<Option<bool>, AskError> {
    let mut stored = Sum::default();
    let store = index.tail().store()?;
    for commit_index in day.payload.first..day.payload.next {
        let entry = store.committed(commit_index)?;
        if let Some(batch) = entry.and_then(|entry| CommittedBatch::of(commit_index, entry)) {
            for (at, facts) in batch.facts().iter().enumerate() {
                stored.facts(batch.rank(at), facts);
            }
        }
        if !go_on() {
            return Ok(None);
        }
    }
    let mut found = Sum::default();
    for reader in day.searcher.segment_readers() {
        match found.segment(reader, &go_on) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(why) => {
                tracing::error!(why = report(&why), "a folder of the index cannot be read");
                return Ok(Some(true));
            }
        }
    }
    // Of one that is done the files do not change any more, and each carries its own checksum; what is looked up in them and
    // never summed is looked at in this way.
    let whole = day.searcher.segment_readers().len() > 1
        || day.searcher.index().validate_checksum().map_or(true, |damaged| damaged.is_empty());
    Ok(Some(found != stored || !whole))
}

/// What became of a look at some folders.
#[derive(Clone, Copy, Default)]
struct Outcome {
    folders: u64,
    records: u64,
    differing: u64,
}

/// Looks at the index every night, and when it is asked to. One thread.
pub struct Checker {
    index: Arc<Index>,
    writer: mpsc::Sender<Request>,
    asked: mpsc::Receiver<Asked>,
    alarms: Alarms,
    metrics: Metrics,
    /// What came of a night, while it cannot be put on record.
    unput: Option<(u64, Outcome)>,
}

impl Checker {
    /// Of an index; and where checks are asked for.
    pub fn new(
        index: Arc<Index>,
        writer: mpsc::Sender<Request>,
        (alarms, metrics): (Alarms, Metrics),
    ) -> (Self, Checks) {
        let (asks, asked) = mpsc::channel(WAITING_MAX);
        (Self { index, writer, asked, alarms, metrics, unput: None }, Checks(asks))
    }

    /// Looks until `stop` is dropped.
    pub fn run(mut self, runtime: &tokio::runtime::Handle, mut stop: watch::Receiver<()>) {
        stand_back("the check of the index", LAST);
        let mut asked = None;
        while stop.has_changed().is_ok() {
            let done = match asked.take() {
                Some(asked) => self.check_asked(asked, runtime, &stop),
                None => self.check_due(clock::now_us() / DAY_US, runtime, &stop),
            };
            match done {
                Ok(()) => {}
                Err(AskError::Store(StoreError::Closed)) => return,
                Err(why) => tracing::error!(why = report(&why), "the index was not held against the store"),
            }
            let asking = &mut self.asked;
            asked = runtime.block_on(async {
                tokio::select! {
                    _ = stop.changed() => None,
                    asked = asking.recv() => asked,
                    () = clock::sleep(EVERY) => None,
                }
            });
        }
    }

    fn check_asked(
        &self,
        asked: Asked,
        runtime: &tokio::runtime::Handle,
        stop: &watch::Receiver<()>,
    ) -> Result<(), AskError> {
        let shown = self.index.shown();
        let wanted = shown.iter().filter(|day| asked.day.is_none_or(|wanted| day.payload.day == wanted));
        let mut findings = Vec::new();
        let checked = self.check(wanted, stop, |found| findings.push(Ok(found)));
        let told = match &checked {
            Ok(Some(outcome)) if self.put(*outcome, asked.because, Vec::new(), runtime) => findings,
            Ok(Some(_)) => vec![Err("what came of the check cannot be put on record now".to_owned())],
            Ok(None) => vec![Err("the ledger is ending".to_owned())],
            Err(_) => vec![Err("the records cannot be read (hint: the ledger's log says why)".to_owned())],
        };
        // Whoever asked may be gone.
        told.into_iter().all(|found| asked.told.blocking_send(found).is_ok());
        checked.map(drop)
    }

    /// Once a day: what is new, and of the rest those whose turn it is.
    pub(super) fn check_due(
        &mut self,
        today: u64,
        runtime: &tokio::runtime::Handle,
        stop: &watch::Receiver<()>,
    ) -> Result<(), AskError> {
        let store = self.index.tail().store()?;
        let row = (Family::Meta, Bytes::from_static(CHECKED.as_bytes()), Bytes::copy_from_slice(&today.to_be_bytes()));
        match store.number(CHECKED)? {
            Some(checked) if checked == today => return Ok(()),
            Some(_) => {}
            // There was no night yet.
            None => {
                let mut change = store.change();
                change.put(row.0, row.1, row.2);
                return Ok(store.derive(change)?);
            }
        }
        let known = self.unput.take().filter(|(night, _)| *night == today).map(|(_, outcome)| outcome);
        let shown = self.index.shown();
        let due = shown.iter().filter(|day| is_due(day.payload.day, today));
        let outcome = if known.is_some() { known } else { self.check(due, stop, drop)? };
        if let Some(outcome) = outcome
            && !self.put(outcome, Because::default(), vec![row], runtime)
        {
            self.unput = Some((today, outcome));
        }
        Ok(())
    }

    /// `None`: not to the end.
    fn check<'a>(
        &self,
        days: impl Iterator<Item = &'a Day>,
        stop: &watch::Receiver<()>,
        mut tell: impl FnMut(Checked),
    ) -> Result<Option<Outcome>, AskError> {
        let (mut outcome, began) = (Outcome::default(), Instant::now());
        for day in days {
            let differs = match differs(&self.index, day, || stop.has_changed().is_ok()) {
                Ok(Some(differs)) => differs,
                Ok(None) => return Ok(None),
                Err(why @ AskError::Store(StoreError::Closed)) => return Err(why),
                // The others are looked at all the same.
                Err(why) => {
                    let name = super::day_name(day.payload.day);
                    self.alarms
                        .raise(Alarm::IndexFailing, format!("a folder of {name} cannot be checked: {}", report(&why)));
                    continue;
                }
            };
            outcome.folders += 1;
            outcome.records += day.payload.count;
            if differs {
                outcome.differing += 1;
                let name = super::day_name(day.payload.day);
                self.alarms
                    .raise(Alarm::IndexDiffers, format!("a folder of {name} holds something else than the store"));
                self.index.wish(Wish::Differs(day.payload.first));
            }
            tell(Checked { folder: day.payload.clone().into(), differs });
        }
        self.metrics.observe("custody_index_check_seconds", began.elapsed());
        Ok(Some(outcome))
    }

    /// Puts it on record; `false`: it could not be.
    fn put(
        &self,
        outcome: Outcome,
        because: Because,
        rows: Vec<(Family, Bytes, Bytes)>,
        runtime: &tokio::runtime::Handle,
    ) -> bool {
        let event = LedgerEvent {
            at: clock::now_us(),
            kind: LedgerEventKind::Scrub as i32,
            action: CHECK.to_owned(),
            outcome: if outcome.differing == 0 { "ok" } else { "differs" }.to_owned(),
            actor: because.actor,
            reason: because.reason,
            ticket: because.ticket,
            details: vec![
                number("folders", outcome.folders),
                number("records", outcome.records),
                number("differing", outcome.differing),
            ],
            ..LedgerEvent::default()
        };
        match runtime.block_on(put_on_record(&self.writer, rows, vec![Record::LedgerEvent(event)])) {
            Some(Ok(())) => true,
            Some(Err(Untaken::Later(why))) => {
                tracing::warn!(why, "what came of a check of the index cannot be put on record now");
                false
            }
            Some(Err(Untaken::Held(_))) | None => false,
        }
    }
}

/// Whether the folders of a day are looked at tonight.
fn is_due(day: u64, today: u64) -> bool {
    day + NEW_DAYS >= today || day % NIGHTS == today % NIGHTS
}
