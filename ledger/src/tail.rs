//! What was committed, batch by batch, for those who walk it: the newest from memory, the rest from the store.
//!
//! What must hold: the writer hands a batch over after it is on disk and before anybody is told of it, so whoever was answered
//! finds it here; the writer waits for nobody; memory has a bound, past which the oldest are read from the store instead.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, PoisonError, RwLock, Weak},
};

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted},
    id::{WorkspaceId, hex},
    query::{Facts, Place},
    segment::{Content, Entry, Leaf},
    wire::{self, LeafKind},
};
use prost::Message as _;
use tokio::sync::watch;

use crate::store::{Family, Rank, Store, StoreError};

/// Records kept in memory: two commits of the index and as many again while it is busy, with their facts some 250 MB at the most.
const RECORDS_MAX: usize = 200_000;
/// Bytes of batches kept in memory.
const BYTES_MAX: usize = 64 << 20;
/// Calls that run and are kept in memory: more than all gateways together should have; of more the oldest are passed over, which
/// the answer says.
const RUNNING_MAX: usize = 65_536;

/// One batch that was committed.
#[derive(Debug)]
pub struct CommittedBatch {
    /// Under which index.
    pub commit_index: u64,
    /// What the ledger added.
    pub leaf: Leaf,
    submitted: Box<Submitted>,
    facts: OnceLock<Vec<Facts>>,
}

impl CommittedBatch {
    /// Of an entry; `None` for what takes no position.
    pub fn of(commit_index: u64, entry: Entry) -> Option<Self> {
        match (entry.content, entry.leaf.kind) {
            (Content::Batch(batch), LeafKind::Batch) => {
                Some(Self { commit_index, leaf: entry.leaf, submitted: batch, facts: OnceLock::new() })
            }
            _ => None,
        }
    }

    /// Whose.
    pub fn workspace(&self) -> WorkspaceId {
        self.submitted.header.workspace
    }

    /// What its gateway signed.
    pub fn header(&self) -> &Header {
        &self.submitted.header
    }

    /// Its records.
    pub fn records(&self) -> &[Bytes] {
        &self.submitted.records
    }

    /// Place of a record.
    pub fn place(&self, index: usize) -> Option<Place> {
        let index = u32::try_from(index).ok()?;
        Place::of(&self.submitted.header, self.leaf.first_position, self.leaf.received_at, index)
    }

    /// Rank of a record.
    pub fn rank(&self, index: usize) -> Rank {
        Rank::new(self.commit_index, u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Tells it from any other, in hex.
    pub fn digest(&self) -> String {
        hex(&self.leaf.hash(&self.submitted.header_bytes, &self.submitted.signature))
    }

    /// What its records say; made when first asked for.
    pub fn facts(&self) -> &[Facts] {
        self.facts.get_or_init(|| (0..self.records().len()).map(|index| self.fact(index)).collect())
    }

    /// What one record says.
    pub fn fact(&self, index: usize) -> Facts {
        let record = self.records().get(index).and_then(|bytes| wire::Record::decode(bytes.clone()).ok());
        match (self.place(index), record) {
            (Some(place), Some(record)) => Facts::of(&place, &record),
            _ => Facts::default(),
        }
    }
}

/// One record of a batch.
#[derive(Clone, Debug)]
pub struct One {
    /// Its batch.
    pub batch: Arc<CommittedBatch>,
    /// 0-based.
    pub index: usize,
}

/// A call that runs.
#[derive(Clone, Debug, Default)]
pub struct Intent(Arc<OnceLock<Option<(Facts, One)>>>);

/// What a group of commits brought.
#[derive(Default)]
pub struct News {
    /// Batches with records.
    pub batches: Vec<CommittedBatch>,
    /// Intents that stand from now on.
    pub begun: Vec<Rank>,
    /// Intents that stand no longer.
    pub ended: Vec<Rank>,
}

#[derive(Default)]
struct Inner {
    committed: u64,
    batches: BTreeMap<u64, Arc<CommittedBatch>>,
    records: usize,
    bytes: usize,
    running: BTreeMap<Rank, Intent>,
    /// Calls that run and are not kept.
    running_unkept: usize,
}

impl Inner {
    /// Takes the oldest out. It is let go by whoever has given the lock back: facts are many small pieces, and the writer waits.
    fn take_first(&mut self) -> Option<Arc<CommittedBatch>> {
        let (_, batch) = self.batches.pop_first()?;
        self.records -= batch.records().len();
        self.bytes -= batch.submitted.bytes.len();
        Some(batch)
    }

    /// Lets the oldest calls go that are too many.
    fn bound_running(&mut self) {
        while self.running.len() > RUNNING_MAX {
            self.running.pop_first();
            self.running_unkept += 1;
        }
    }
}

/// The end of what was committed. Shared by the writer, the index and all who ask.
pub struct Tail {
    /// It does not keep the store open.
    store: Weak<Store>,
    inner: RwLock<Inner>,
    committed: watch::Sender<u64>,
}

/// Calls that run, at one moment.
pub struct RunningCalls {
    /// Next commit index at that moment.
    pub committed: u64,
    /// Newest first.
    pub intents: Vec<(Rank, Intent)>,
    /// There were more.
    pub cut: bool,
}

impl Tail {
    /// Of a store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(store: &Arc<Store>) -> Result<Self, StoreError> {
        let committed = store.next_number(Family::Commits)?.unwrap_or(0);
        let mut running = BTreeMap::new();
        for step in store.scan(Family::Running, &[], &[]) {
            running.insert(Rank::decode(&step?.0)?, Intent::default());
        }
        let mut inner = Inner { committed, running, ..Inner::default() };
        inner.bound_running();
        Ok(Self { store: Arc::downgrade(store), inner: RwLock::new(inner), committed: watch::Sender::new(committed) })
    }

    /// Takes what is on disk, up to the next commit index `committed`.
    pub fn publish(&self, news: News, committed: u64) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for batch in news.batches {
            inner.records += batch.records().len();
            inner.bytes += batch.submitted.bytes.len();
            inner.batches.insert(batch.commit_index, Arc::new(batch));
        }
        for rank in news.begun {
            inner.running.insert(rank, Intent::default());
        }
        for rank in news.ended {
            if inner.running.remove(&rank).is_none() {
                inner.running_unkept = inner.running_unkept.saturating_sub(1);
            }
        }
        inner.bound_running();
        let mut gone = Vec::new();
        while inner.records > RECORDS_MAX || inner.bytes > BYTES_MAX {
            gone.extend(inner.take_first());
        }
        inner.committed = committed;
        drop(inner);
        self.committed.send_replace(committed);
    }

    /// Next commit index.
    pub fn committed(&self) -> u64 {
        *self.committed.borrow()
    }

    /// Hears of what is committed.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.committed.subscribe()
    }

    /// Lets those go from memory that are before `commit_index`: others have them.
    pub fn trim(&self, commit_index: u64) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut gone = Vec::new();
        while inner.batches.first_key_value().is_some_and(|(first, _)| *first < commit_index) {
            gone.extend(inner.take_first());
        }
        drop(inner);
    }

    /// The store, while the ledger runs.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn store(&self) -> Result<Arc<Store>, StoreError> {
        self.store.upgrade().ok_or(StoreError::Closed)
    }

    /// What was committed under an index; `None` if it has no records, or is not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn batch(&self, commit_index: u64) -> Result<Option<Arc<CommittedBatch>>, StoreError> {
        let held = {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            inner.batches.get(&commit_index).map(Arc::clone)
        };
        if held.is_some() {
            return Ok(held);
        }
        let entry = self.store()?.committed(commit_index)?;
        Ok(entry.and_then(|entry| CommittedBatch::of(commit_index, entry)).map(Arc::new))
    }

    /// One record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn one(&self, rank: Rank) -> Result<Option<One>, StoreError> {
        let found = self.batch(rank.commit_index())?.map(|batch| One { batch, index: rank.index() });
        Ok(found.filter(|one| one.index < one.batch.records().len()))
    }

    /// The record at a position.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn at_position(&self, workspace: WorkspaceId, position: u64) -> Result<Option<One>, StoreError> {
        let entry = self.store()?.at_position(workspace, position)?;
        // Its rank is not asked for: only who walks needs one.
        let batch = entry.and_then(|(_, entry)| CommittedBatch::of(0, entry)).map(Arc::new);
        Ok(batch.and_then(|batch| {
            let index = usize::try_from(position - batch.leaf.first_position).ok()?;
            (index < batch.records().len()).then_some(One { batch, index })
        }))
    }

    /// The calls that run now.
    pub fn running(&self) -> RunningCalls {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let intents = inner.running.iter().rev().map(|(rank, intent)| (*rank, intent.clone())).collect();
        RunningCalls { committed: inner.committed, intents, cut: inner.running_unkept > 0 }
    }

    /// What an intent says, and where it stands; read when first asked for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn intent<'a>(&self, rank: Rank, intent: &'a Intent) -> Result<Option<&'a (Facts, One)>, StoreError> {
        if let Some(known) = intent.0.get() {
            return Ok(known.as_ref());
        }
        let found = self.one(rank)?.map(|one| (one.batch.fact(one.index), one));
        Ok(intent.0.get_or_init(|| found).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::Dir;

    #[test]
    fn calls_past_the_bound_are_told_of_until_they_end() {
        let dir = Dir::new("tail");
        let store = Arc::new(Store::open(&dir.0.join("store"), 8 << 20, 32 << 20).unwrap());
        let tail = Tail::open(&store).unwrap();
        let ranks: Vec<Rank> = (0..=RUNNING_MAX as u64).map(Rank).collect();
        tail.publish(News { begun: ranks.clone(), ..News::default() }, 1);
        assert_eq!((tail.running().intents.len(), tail.running().cut), (RUNNING_MAX, true));
        tail.publish(News { ended: vec![ranks[9]], ..News::default() }, 2);
        assert!(tail.running().cut, "another one ended");
        tail.publish(News { ended: vec![ranks[0]], ..News::default() }, 3);
        assert_eq!((tail.running().intents.len(), tail.running().cut), (RUNNING_MAX - 1, false));
    }
}
