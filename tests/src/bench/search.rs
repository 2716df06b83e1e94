//! What asking takes: `bench search FOLDER [RECORDS]`. The ledger's own store, index and executors, in this process, over records of
//! several days; batches are put into the store as the writer puts them there, without gateways and signatures that are checked.
//!
//! What must hold: the index is at rest or catching up, and each figure says which; the questions are of records that there are.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ::ledger::{
    alarm::Alarms,
    index::{Follower, Index},
    metrics::Metrics,
    store::{Halves, Notes, Rank, Store, call_rows},
    tail::{CommittedBatch, News, Tail},
};
use bytes::Bytes;
use custody::{
    batch::Submitted,
    id::WorkspaceId,
    query::Expr,
    record,
    segment::{Content, Entry, Leaf},
    wire::record::Kind,
};
use ed25519_dalek::SigningKey;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    Done, print,
    questions::{self, Executor},
    records::{self, BEGINNING},
    stored,
};

/// Records of a batch.
const BATCH: u64 = 256;
/// Over which the records are spread.
const DAYS: u64 = 5;
const DAY_US: u64 = 86_400_000_000;
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
        stored::batch(&self.key, WORKSPACE, (self.committed, self.records), received_at, &records)
    }

    /// So many batches in one write.
    fn commit(&mut self, batches: u64) -> Done {
        let (mut news, mut halves, mut change) = (News::default(), Halves::default(), self.store.change());
        for _ in 0..batches {
            let (batch, leaf) = self.batch()?;
            stored::put(&mut change, self.committed, &batch, &leaf);
            let notes = Notes::of(&batch.records);
            call_rows(&self.store, &mut change, &batch, (self.committed, &notes), &mut halves)?;
            let entry = Entry { leaf, content: Content::Batch(Box::new(batch)) };
            news.batches.extend(CommittedBatch::of(self.committed, entry));
            self.committed += 1;
            self.records += BATCH;
        }
        self.store.commit(change)?;
        self.tail.publish(news, self.committed);
        Ok(())
    }
}

/// Bytes of all files below a folder.
pub(crate) fn size(folder: &Path) -> Done<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Questions while records come in; and how long a record takes from its commit until it is found.
fn under_intake(mut filling: Filling, index: &Index, executor: &Executor<'_>) -> Done {
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
    let mixed = questions::mixed().iter().map(|query| questions::parsed(query)).collect::<Done<Vec<_>>>()?;
    let mut turns = mixed.iter().cycle();
    while !intake.is_finished() {
        let began = Instant::now();
        hits = turns.next().map_or(Ok(0), |expr| executor.newest(expr, true))?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        // The newest that is committed is the newest of all that is found.
        let (began, committed) = (Instant::now(), index.tail().committed());
        let everything = Expr::EVERYTHING;
        let question = executor.question(&everything);
        let newest = index.newest(&question, Rank::first_of(question.pinned), 1)?;
        if newest.ranks.first().is_none_or(|rank| rank.commit_index() + 1 < committed) {
            return Err("what was committed was not found".into());
        }
        found.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let late = intake.join().map_err(|_| "intake broke off")??;
    print(&json!({ "intake_per_second": INTAKE, "batches_late": late }));
    questions::told("executor", "first page of fifty mixed questions, under intake", hits, took);
    questions::told("executor", "committed to found, under intake", 1, found);
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
    print(&json!({ "index_bytes_per_record": size(&folder.join("index"))? as f64 / filling.records as f64 }));
    let executor = Executor::new(&index, WORKSPACE);
    tokio::runtime::Handle::current().block_on(executor.all())?;
    under_intake(filling, &index, &executor)?;
    drop(stop);
    thread.join().map_err(|_| "the index broke off")?;
    Ok(())
}
