//! What asking takes: `bench search FOLDER [RECORDS]`. The ledger's own store, index and executors, in this process, over records of
//! several days; batches are put into the store as the writer puts them there, without gateways and signatures that are checked.
//!
//! What must hold: the index is at rest or catching up, and each figure says which; the questions are of records that there are.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ::ledger::{
    alarm::Alarms,
    index::{Follower, Index, Question},
    metrics::Metrics,
    store::{Family, Halves, LeafPlace, Notes, Rank, Store, call_rows, leaf_key, numbered},
    tail::{Chunk, News, Tail},
};
use bytes::Bytes;
use custody::{
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId, hex},
    query::{Expr, Field, HistogramWish, PercentilesWish, Text, Want, Wishes},
    record,
    segment::{Content, Entry, Leaf, encode_entry},
    wire::{LeafKind, record::Kind},
};
use ed25519_dalek::SigningKey;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    Done, print,
    records::{self, BEGINNING},
};

/// Records of a batch.
const BATCH: u64 = 256;
/// Over which the records are spread.
const DAYS: u64 = 5;
const DAY_US: u64 = 86_400_000_000;
/// Each question is asked so often; sums of everything less often.
const TIMES: usize = 200;
const SUMS: usize = 20;
/// Records a second that come in while questions are asked, and for how long.
const INTAKE: u64 = 20_000;
const INTAKE_SECONDS: u64 = 20;
const WORKSPACE: WorkspaceId = WorkspaceId([0x77; 16]);

/// A store that fills as the writer fills it.
struct Filling {
    store: Arc<Store>,
    tail: Arc<Tail>,
    key: SigningKey,
    committed: u64,
    records: u64,
    /// Microseconds between two records.
    pace_us: u64,
}

impl Filling {
    fn batch(&self) -> Done<(Submitted, Leaf)> {
        let time = |number: u64| BEGINNING + number * self.pace_us;
        let numbers = self.records..self.records + BATCH;
        let received_at = time(numbers.end);
        let records: Vec<Bytes> = numbers
            .map(|number| {
                let mut call = records::call(1, number, true);
                call.started_at = time(number);
                record::encode(Kind::Call(call)).into()
            })
            .collect();
        let mut header = Header {
            origin: "bench.example/custody".to_owned(),
            workspace: WORKSPACE,
            gateway: GatewayId([2; 16]),
            key_id: KeyId([3; 32]),
            epoch: Epoch([4; 16]),
            batch_number: self.committed + 1,
            first_record: self.records,
            record_count: 0,
            previous: HeaderHash([5; 32]),
            opening_reason: None,
            batch_root: RootHash::ZERO,
            last_head: Bytes::new(),
            dropped: 0,
            drop_reason: None,
            heartbeat: false,
            close: false,
            created_at: received_at,
        };
        seal_header(&mut header, &[9; 32], &records);
        let batch = Submitted::parse(encode_signed(&header.encode(), &self.key, &[9; 32], &records).into());
        let batch = batch.map_err(|why| why.to_string())?;
        Ok((batch, Leaf { kind: LeafKind::Batch, first_position: self.records, received_at, term: 1 }))
    }

    /// So many batches in one write.
    fn commit(&mut self, batches: u64) -> Done {
        let (mut news, mut halves, mut change) = (News::default(), Halves::default(), self.store.change());
        for _ in 0..batches {
            let (batch, leaf) = self.batch()?;
            let place = LeafPlace { segment: 0, leaf: self.committed };
            let key = leaf_key(WORKSPACE, 0, place.leaf);
            change.put(Family::Entries, key, encode_entry(&leaf, batch.bytes.clone()));
            change.put(Family::Commits, self.committed.to_be_bytes(), key);
            change.put(Family::Positions, numbered(WORKSPACE, leaf.first_position), place.encode());
            let notes = Notes::of(&batch.records);
            call_rows(&self.store, &mut change, &batch, (self.committed, &notes), &mut halves)?;
            let entry = Entry { leaf, content: Content::Batch(Box::new(batch)) };
            news.chunks.extend(Chunk::of(self.committed, entry));
            self.committed += 1;
            self.records += BATCH;
        }
        self.store.commit(change)?;
        self.tail.publish(news, self.committed);
        Ok(())
    }
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> Done<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

fn is(field: Field, text: &str) -> Expr {
    Expr::test(field, Want::Texts(vec![Text::Exact(text.to_owned())]))
}

fn like(field: Field, pattern: &str) -> Expr {
    Expr::test(field, Want::Texts(vec![Text::Pattern(pattern.to_owned())]))
}

/// Median and 99th of a hundred, in milliseconds.
fn timed(name: &str, times: usize, mut ask: impl FnMut(usize) -> Done<usize>) -> Done {
    let mut took = Vec::new();
    let mut hits = 0;
    for at in 0..times {
        let began = Instant::now();
        hits = ask(at)?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    told(name, hits, took);
    Ok(())
}

fn told(name: &str, hits: usize, mut took: Vec<f64>) {
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    print(&json!({ "question": name, "asked": took.len(), "hits": hits, "p50_ms": at(50), "p99_ms": at(99) }));
}

/// Asks for pages, counts and sums, as of one moment.
struct Asker<'a> {
    index: &'a Index,
    seen: BTreeSet<WorkspaceId>,
    members: Vec<String>,
}

impl<'a> Asker<'a> {
    fn new(index: &'a Index) -> Self {
        let member = |number: u64| hex(&records::call(1, number * 97, false).member.unwrap_or_default());
        Self { index, seen: BTreeSet::from([WORKSPACE]), members: (0..TIMES as u64).map(member).collect() }
    }

    fn question<'b>(&'b self, expr: &'b Expr) -> Question<'b> {
        let until = Instant::now() + Duration::from_secs(60);
        Question { workspaces: &self.seen, expr, pinned: self.index.tail().committed(), until }
    }

    fn newest(&self, expr: &Expr, fetch: bool) -> Done<usize> {
        let question = self.question(expr);
        let page = self.index.newest(&question, Rank::first_of(question.pinned), 100)?;
        let mut chunk: Option<Arc<Chunk>> = None;
        for rank in page.ranks.iter().filter(|_| fetch) {
            if chunk.as_ref().is_none_or(|chunk| chunk.commit_index != rank.commit_index()) {
                chunk = self.index.tail().chunk(rank.commit_index())?;
            }
            chunk.as_ref().and_then(|chunk| chunk.records().get(rank.index())).ok_or("a record is gone")?;
        }
        Ok(page.ranks.len())
    }

    fn sums(&self, expr: &Expr, wishes: &Wishes, rolled: bool) -> Done<usize> {
        let (tally, whole, from_rollups) = self.index.tally(&self.question(expr), wishes)?;
        if !whole || from_rollups != rolled {
            return Err("sums were made in another way".into());
        }
        Ok(usize::try_from(tally.count)?)
    }

    /// Some of all sorts.
    fn mixed(&self, at: usize) -> Expr {
        let member = is(Field::Member, &self.members[at % self.members.len()]);
        match at % 7 {
            0 => member,
            1 => Expr::All(vec![member, is(Field::Outcome, "tool_error")]),
            2 => like(Field::Tool, "github/*"),
            3 => Expr::All(vec![member, Expr::Not(Box::new(is(Field::Server, "files")))]),
            4 => Expr::test(Field::Duration, Want::Numbers(vec![(200_000, u64::MAX)])),
            5 => Expr::All(vec![like(Field::Tool, "*/delete"), Expr::Any(vec![member, is(Field::Client, "cursor")])]),
            _ => Expr::EVERYTHING,
        }
    }
}

fn questions(asker: &Asker<'_>) -> Done {
    let by_member = |at: usize| is(Field::Member, &asker.members[at]);
    timed("newest 100 by member", TIMES, |at| asker.newest(&by_member(at), false))?;
    timed("newest 100 by member, records read", TIMES, |at| asker.newest(&by_member(at), true))?;
    timed("newest 100 of all", TIMES, |_| asker.newest(&Expr::EVERYTHING, false))?;
    timed("newest 100 of all, records read", TIMES, |_| asker.newest(&Expr::EVERYTHING, true))?;
    let rare = Expr::All(vec![by_member(0), is(Field::Outcome, "tool_error"), like(Field::Tool, "github/*")]);
    timed("newest 100 by member, outcome and pattern", TIMES, |_| asker.newest(&rare, false))?;
    let none = Expr::All(vec![by_member(0), is(Field::Outcome, "timeout")]);
    timed("newest 100, none there", TIMES, |_| asker.newest(&none, false))?;
    let slow = Expr::test(Field::Duration, Want::Numbers(vec![(300_000, u64::MAX)]));
    timed("newest 100 slower than 300 ms", TIMES, |_| asker.newest(&slow, false))?;
    timed("count by member", TIMES, |at| Ok(usize::try_from(asker.index.count(&asker.question(&by_member(at)))?.0)?))?;
    let trace = hex(&records::call(1, 12_345, true).trace.map(|trace| trace.trace_id).unwrap_or_default());
    timed("by trace", TIMES, |_| asker.newest(&is(Field::Trace, &trace), true))?;
    let hourly = |field| Wishes {
        histogram: Some(HistogramWish { field, width: 3_600_000_000, split: Some(Field::Outcome) }),
        ..Wishes::default()
    };
    timed("hourly by outcome, index", SUMS, |_| asker.sums(&Expr::EVERYTHING, &hourly(Field::Received), false))?;
    timed("hourly by outcome, rollups", TIMES, |_| asker.sums(&Expr::EVERYTHING, &hourly(Field::At), true))?;
    let percentiles = Some(PercentilesWish { field: Field::Duration, by: Some(Field::Tool) });
    let by_tool = Wishes { percentiles, ..Wishes::default() };
    timed("tool by percentiles of duration", SUMS, |_| asker.sums(&Expr::EVERYTHING, &by_tool, false))
}

/// Questions while records come in; and how long a record takes from its commit until it is found.
fn under_intake(mut filling: Filling, asker: &Asker<'_>) -> Done {
    let pause = Duration::from_micros(1_000_000 * BATCH / INTAKE);
    let intake = std::thread::spawn(move || -> Result<u64, String> {
        let (began, mut late) = (Instant::now(), 0);
        for batch in 0..INTAKE * INTAKE_SECONDS / BATCH {
            filling.commit(1).map_err(|why| why.to_string())?;
            let due = pause * u32::try_from(batch).unwrap_or(u32::MAX);
            match due.checked_sub(began.elapsed()) {
                Some(left) => std::thread::park_timeout(left),
                None => late += 1,
            }
        }
        Ok(late)
    });
    let (mut took, mut hits, mut found) = (Vec::new(), 0, Vec::new());
    let mut at = 0;
    while !intake.is_finished() {
        let began = Instant::now();
        hits = asker.newest(&asker.mixed(at), true)?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        at += 1;
        // The newest that is committed is the newest of all that is found.
        let (began, committed) = (Instant::now(), asker.index.tail().committed());
        let everything = Expr::EVERYTHING;
        let question = asker.question(&everything);
        let newest = asker.index.newest(&question, Rank::first_of(question.pinned), 1)?;
        if newest.ranks.first().is_none_or(|rank| rank.commit_index() + 1 < committed) {
            return Err("what was committed was not found".into());
        }
        found.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let late = intake.join().map_err(|_| "intake broke off")??;
    print(&json!({ "intake_per_second": INTAKE, "batches_late": late }));
    told("first page of mixed questions, under intake", hits, took);
    told("committed to found, under intake", 1, found);
    Ok(())
}

/// Runs it.
pub(crate) fn run(folder: &Path, records: u64) -> Done {
    let store = Arc::new(Store::open(&folder.join("store"), 64 << 20, 64 << 20)?);
    let tail = Arc::new(Tail::open(&store)?);
    let pace_us = DAYS * DAY_US / records.max(1);
    let key = SigningKey::from_bytes(&[7; 32]);
    // Open until the last question, whoever fills it.
    let _open = Arc::clone(&store);
    let mut filling = Filling { store, tail: Arc::clone(&tail), key, committed: 0, records: 0, pace_us };
    let began = Instant::now();
    while filling.records < records {
        filling.commit(16)?;
    }
    print(&json!({ "stored": filling.records, "seconds": began.elapsed().as_secs_f64() }));
    let told = (Alarms::new(), Metrics::new());
    let follower = Follower::open(folder.join("index"), Arc::clone(&tail), 3_650, told)?;
    let index = follower.index();
    let (stop, stopped) = watch::channel(());
    let runtime = tokio::runtime::Handle::current();
    let began = Instant::now();
    let thread = std::thread::spawn(move || follower.run(&runtime, stopped));
    while index.indexed_through() < filling.committed {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs_f64();
    print(&json!({ "indexed": filling.records, "seconds": seconds, "per_second": filling.records as f64 / seconds }));
    let (stored, asker) = (filling.records, Asker::new(&index));
    print(&json!({ "index_bytes_per_record": size(&folder.join("index"))? as f64 / stored as f64 }));
    questions(&asker)?;
    under_intake(filling, &asker)?;
    drop(stop);
    thread.join().map_err(|_| "the index broke off")?;
    Ok(())
}
