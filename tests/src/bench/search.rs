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
    query::{Expr, Field, Text, Want},
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
/// Each question is asked so often.
const TIMES: usize = 200;
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
fn timed(name: &str, mut ask: impl FnMut(usize) -> Done<usize>) -> Done {
    let mut times = Vec::new();
    let mut hits = 0;
    for at in 0..TIMES {
        let began = Instant::now();
        hits = ask(at)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    print(&json!({ "question": name, "hits": hits, "p50_ms": times[TIMES / 2], "p99_ms": times[TIMES * 99 / 100] }));
    Ok(())
}

fn questions(index: &Index, committed: u64) -> Done {
    let seen = BTreeSet::from([WORKSPACE]);
    let members: Vec<String> =
        (0..TIMES as u64).map(|number| hex(&records::call(1, number * 97, false).member.unwrap_or_default())).collect();
    let newest = |expr: &Expr, fetch: bool| -> Done<usize> {
        let until = Instant::now() + Duration::from_secs(60);
        let question = Question { workspaces: &seen, expr, pinned: committed, until };
        let page = index.newest(&question, Rank::first_of(committed), 100)?;
        if fetch {
            for rank in &page.ranks {
                index.tail().one(*rank)?.ok_or("a record is gone")?;
            }
        }
        Ok(page.ranks.len())
    };
    let count = |expr: &Expr| -> Done<usize> {
        let until = Instant::now() + Duration::from_secs(60);
        let question = Question { workspaces: &seen, expr, pinned: committed, until };
        Ok(usize::try_from(index.count(&question)?.0)?)
    };
    timed("newest 100 by member", |at| newest(&is(Field::Member, &members[at]), false))?;
    timed("newest 100 by member, records read", |at| newest(&is(Field::Member, &members[at]), true))?;
    timed("newest 100 of all", |_| newest(&Expr::EVERYTHING, false))?;
    timed("newest 100 of all, records read", |_| newest(&Expr::EVERYTHING, true))?;
    let rare = Expr::All(vec![
        is(Field::Member, &members[0]),
        is(Field::Outcome, "tool_error"),
        like(Field::Tool, "github/*"),
    ]);
    timed("newest 100 by member, outcome and pattern", |_| newest(&rare, false))?;
    let none = Expr::All(vec![is(Field::Member, &members[0]), is(Field::Outcome, "timeout")]);
    timed("newest 100, none there", |_| newest(&none, false))?;
    let slow = Expr::test(Field::Duration, Want::Numbers(vec![(300_000, u64::MAX)]));
    timed("newest 100 slower than 300 ms", |_| newest(&slow, false))?;
    timed("count by member", |at| count(&is(Field::Member, &members[at])))?;
    let trace = hex(&records::call(1, 12_345, true).trace.map(|trace| trace.trace_id).unwrap_or_default());
    timed("by trace", |_| newest(&is(Field::Trace, &trace), false))?;
    Ok(())
}

/// Runs it.
pub(crate) fn run(folder: &Path, records: u64) -> Done {
    let store = Arc::new(Store::open(&folder.join("store"), 64 << 20, 64 << 20)?);
    let tail = Arc::new(Tail::open(&store)?);
    let pace_us = DAYS * DAY_US / records.max(1);
    let key = SigningKey::from_bytes(&[7; 32]);
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
    questions(&index, filling.committed)?;
    drop(stop);
    thread.join().map_err(|_| "the index broke off")?;
    print(&json!({ "index_bytes_per_record": size(&folder.join("index"))? as f64 / filling.records as f64 }));
    Ok(())
}
