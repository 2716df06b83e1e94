//! Seal → archive → claim → entries → tiles → checkpoint: how a cut segment becomes part of the organisation's history.
//!
//! The write path is [`Publisher::step`], read from top to bottom; after each line a comment says where a crash leaves us.
//! Recovery runs the same code on the same bytes: what was claimed is completed from the claim itself.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    archive as names,
    hash::object_hash,
    id::WorkspaceId,
    log::{Entry, TILE_WIDTH, encode_bundle, encode_entry, encode_seal_entry, tile, tiles_between},
    merkle::{LogTree, Tree, log_leaf},
    note::{Checkpoint, SignedCheckpoint, sign_checkpoint},
    wire::{self, log_entry},
};
use ed25519_dalek::SigningKey;
use futures::{StreamExt as _, stream};
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use crate::{
    alarm::{Alarm, Alarms},
    archive::{Archive, ArchiveError},
    clock,
    commit::{Request, log_index_key},
    failpoint,
    fence::{Claimed, FENCE_SECONDS_MAX, Fence, FenceError},
    seal::{self, SealError, Sealed, Staged, object_names},
    store::{Family, QueueRow, Store, StoreError, numbered},
};

/// Entries of one claim: a claim stays under 64 KiB of seals, and a checkpoint waits for at most so many segments.
const ENTRIES_MAX: usize = 256;
/// After so long no further segment joins a claim: gateways keep what is sealed, but not published, in their spools.
const GATHER_MAX: Duration = Duration::from_secs(2);
/// Segments that are sealed at one time, each with its object of some 16 MiB in memory: while one waits for the disk another
/// is compressed.
const SEALING_MAX: usize = 2;

/// The log as it stands; shared with whoever proves.
#[derive(Debug, Default)]
pub struct LogView {
    /// All entries' hashes.
    pub tree: Tree<LogTree>,
    /// The newest checkpoint that was read back.
    pub checkpoint: Option<SignedCheckpoint>,
}

/// What reading the fence has told; shared with the writer.
#[derive(Debug)]
pub struct FenceState {
    started: Instant,
    read_at_ms: AtomicU64,
    fenced: AtomicBool,
}

impl Default for FenceState {
    fn default() -> Self {
        Self { started: Instant::now(), read_at_ms: AtomicU64::new(0), fenced: AtomicBool::new(false) }
    }
}

impl FenceState {
    /// The fence was read just now, and nobody else's claim stood there.
    pub fn seen(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.read_at_ms.store(now.max(1), Ordering::Release);
    }

    /// Another writer owns the log.
    pub fn fence_off(&self) {
        self.fenced.store(true, Ordering::Release);
    }

    /// Whether another writer owns the log.
    pub fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Whether the fence was read lately enough to sign heads without `unfenced`.
    pub fn is_fresh(&self) -> bool {
        let read = self.read_at_ms.load(Ordering::Acquire);
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        read > 0 && now.saturating_sub(read) <= FENCE_SECONDS_MAX * 1000
    }
}

/// Why publishing stops or waits.
#[derive(Debug)]
pub enum PublishError {
    /// The store; the writer is of no use any more.
    Store(StoreError),
    /// The archive; the same again may work.
    Archive(ArchiveError),
    /// The fence; the same again may work.
    Fence(FenceError),
    /// A segment cannot be sealed.
    Seal(SealError),
    /// Another writer has claimed with a higher term.
    Fenced,
    /// The database does not hold what the log already names: an old copy.
    Stale,
}

impl std::fmt::Display for PublishError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Store(_) => "publish: the store fails",
            Self::Archive(_) => "publish: the archive fails",
            Self::Fence(_) => "publish: the fence fails",
            Self::Seal(_) => "publish: a segment cannot be sealed",
            Self::Fenced => "publish: another writer owns the log (hint: stop one of the two)",
            Self::Stale => "publish: this database is an older copy (hint: start the newer one, or recover)",
        })
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Archive(source) => Some(source),
            Self::Fence(source) => Some(source),
            Self::Seal(source) => Some(source),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($source:ty => $kind:ident),*) => {$(
        impl From<$source> for PublishError {
            fn from(source: $source) -> Self {
                Self::$kind(source)
            }
        }
    )*};
}

from!(StoreError => Store, ArchiveError => Archive, FenceError => Fence, SealError => Seal);

/// A segment that is archived, under a checkpoint that was read back.
#[derive(Clone, Debug)]
pub struct Published {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which.
    pub segment: u64,
    /// Its seal.
    pub seal: Bytes,
    /// Index of its entry in the log.
    pub log_index: u64,
}

/// The one task that extends the log.
pub struct Publisher {
    /// The database.
    pub store: Arc<Store>,
    /// Where objects go.
    pub archive: Archive,
    /// Where indexes are claimed.
    pub fence: Fence,
    /// Folder of objects that are not archived yet.
    pub staging: PathBuf,
    /// Name of the log.
    pub origin: String,
    /// Signs checkpoints.
    pub key: SigningKey,
    /// Number of this start.
    pub term: u64,
    /// Number of the incarnation.
    pub incarnation: u64,
    /// Shared with whoever proves.
    pub view: Arc<RwLock<LogView>>,
    /// Shared with the writer.
    pub fence_state: Arc<FenceState>,
    /// Raised here.
    pub alarms: Alarms,
    /// Number of queue rows that are published.
    pub mark: watch::Sender<u64>,
    /// Number of queue rows that are in the log, but perhaps not yet under a checkpoint.
    pub pending_mark: u64,
    /// Segments that are in the log, and of which nobody was told yet.
    pub untold: Vec<Published>,
}

impl Publisher {
    /// Reads the log from the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load_view(store: &Store, origin: &str, key: &SigningKey) -> Result<LogView, StoreError> {
        let mut view = LogView::default();
        let mut published = Tree::default();
        let size = store.number("published_size")?.unwrap_or(0);
        for step in store.scan(Family::Log, &[], &[]) {
            let leaf = log_leaf(&step?.1).0;
            view.tree.push(leaf);
            published = if view.tree.size() == size { view.tree.clone() } else { published };
        }
        if size > 0 {
            let checkpoint = Checkpoint { origin: origin.to_owned(), size, root: published.root() };
            view.checkpoint = Some(sign_checkpoint(checkpoint, key));
        }
        Ok(view)
    }

    fn size(&self) -> u64 {
        self.view.read().unwrap_or_else(PoisonError::into_inner).tree.size()
    }

    /// Completes every claim below our own, then claims the next index with this start's term.
    ///
    /// # Errors
    /// [`PublishError`]; `Stale` and `Fenced` are for good.
    pub async fn start(&mut self, genesis: Vec<Bytes>) -> Result<(), PublishError> {
        let known_term = self.store.number("term")?.unwrap_or(0);
        // A database that another machine or folder wrote last: its writer may still sign heads for a while.
        let last_writer = self.store.value(Family::Meta, "writer")?;
        let mut waits = last_writer.is_some_and(|last| last.as_ref() != self.fence.writer());
        while let Some(claim) = self.fence.read(self.size()).await? {
            if claim.term > known_term {
                return Err(PublishError::Stale);
            }
            waits |= !self.fence.is_own(&claim);
            self.append(&claim.entries)?;
        }
        self.publish_checkpoint().await?;
        self.term = known_term + 1;
        // A crash after this line leaves a term that was never claimed; the next start takes the one after it.
        self.store.commit_one(Family::Meta, "term", &self.term.to_be_bytes())?;
        let start = wire::TermStart { term: self.term, incarnation: self.incarnation, at: clock::now_us() };
        let mut entries = if self.size() == 0 { genesis } else { Vec::new() };
        entries.push(encode_entry(log_entry::Entry::TermStart(start)).into());
        if let Claimed::Lost(_) = self.fence.claim(self.size(), self.term, &entries).await? {
            return Err(PublishError::Fenced);
        }
        self.append(&entries)?;
        self.untold.clear();
        if waits {
            tracing::warn!(seconds = FENCE_SECONDS_MAX, "the last writer was on another machine: waiting it out");
            clock::sleep(Duration::from_secs(FENCE_SECONDS_MAX)).await;
        }
        self.store.commit_one(Family::Meta, "writer", self.fence.writer())?;
        self.fence_state.seen();
        self.put_statements(&entries).await?;
        self.publish_checkpoint().await
    }

    /// Takes what waits in the queue, until there is nothing; then sleeps until woken.
    pub async fn run(mut self, mut wake: mpsc::Receiver<()>, writer: mpsc::Sender<Request>) -> PublishError {
        let mut wait = Duration::from_secs(1);
        loop {
            match self.step(&writer).await {
                Ok(true) => wait = Duration::from_secs(1),
                Ok(false) => {
                    if wake.recv().await.is_none() {
                        return PublishError::Fenced;
                    }
                }
                Err(why) => {
                    let Some(alarm) = self.retries(&why) else { return why };
                    self.alarms.raise(alarm, report(&why));
                    // Back off to half a minute: a store that is down for an hour is asked 120 times.
                    clock::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    /// The alarm for an error after which the same again may work; `None` ends publishing.
    fn retries(&self, why: &PublishError) -> Option<Alarm> {
        match why {
            PublishError::Archive(ArchiveError::Differs(_)) => {
                self.alarms.raise(Alarm::ReadBackDiffers, report(why));
                None
            }
            PublishError::Archive(_) => Some(Alarm::ArchiveFailing),
            PublishError::Fence(FenceError::Store(_) | FenceError::Lost) => Some(Alarm::FenceUnreachable),
            PublishError::Seal(SealError::Staging(_)) => Some(Alarm::DiskFull),
            PublishError::Seal(SealError::RootsDisagree | SealError::Differs) => {
                self.alarms.raise(Alarm::RootsDisagree, report(why));
                None
            }
            PublishError::Fenced | PublishError::Fence(_) => {
                self.fence_state.fence_off();
                self.alarms.raise(Alarm::Fenced, report(why));
                None
            }
            PublishError::Stale => {
                self.alarms.raise(Alarm::StaleDatabase, report(why));
                None
            }
            PublishError::Store(_) | PublishError::Seal(_) => {
                self.alarms.raise(Alarm::Poisoned, report(why));
                None
            }
        }
    }

    /// Publishes what waits, up to one claim's worth; `false` if nothing waits.
    async fn step(&mut self, writer: &mpsc::Sender<Request>) -> Result<bool, PublishError> {
        // What an error left in the log without a checkpoint comes first: perhaps nothing else ever waits.
        self.publish_checkpoint().await?;
        self.tell(writer).await;
        let rows = self.waiting()?;
        if rows.is_empty() {
            return Ok(false);
        }
        let (entries, staged) = self.prepare(rows).await?;
        self.put_statements(&entries).await?;
        // A crash up to here leaves objects that nothing refers to yet; the next run puts the same bytes again.
        failpoint::hit("publish-before-claim");
        let first = self.size();
        if let Claimed::Lost(claim) = self.fence.claim(first, self.term, &entries).await? {
            if claim.term != self.term || !self.fence.is_own(&claim) {
                return Err(PublishError::Fenced);
            }
            // Our own claim, from before an error whose outcome we did not learn: what it names is what counts.
            self.append(&claim.entries)?;
            self.publish_checkpoint().await?;
            return Ok(true);
        }
        // A crash from here on leaves a claim that names all its entries, whose objects are archived: a start completes it.
        failpoint::hit("publish-after-claim");
        self.fence_state.seen();
        self.append(&entries)?;
        failpoint::hit("publish-after-entries");
        self.publish_checkpoint().await?;
        for object in &staged {
            if let Err(why) = object.discard() {
                tracing::warn!(%why, "a staged segment stays on disk");
            }
        }
        self.tell(writer).await;
        Ok(true)
    }

    /// Tells the writer what is archived.
    async fn tell(&mut self, writer: &mpsc::Sender<Request>) {
        let published = std::mem::take(&mut self.untold);
        // The writer may be gone while draining; what it would tell the gateways they ask for when they come back.
        if !published.is_empty() && writer.send(Request::Published(published)).await.is_err() {
            tracing::debug!("the writer has ended");
        }
    }

    fn waiting(&self) -> Result<Vec<QueueRow>, StoreError> {
        let mut rows = Vec::new();
        for step in self.store.scan(Family::Queue, &[], &[]).take(ENTRIES_MAX) {
            rows.push(QueueRow::decode(step?.1).map_err(|_| StoreError::Damaged("the queue"))?);
        }
        Ok(rows)
    }

    /// The entries that the rows become, in the rows' order, and the objects that lie staged for them. All that the entries
    /// name is archived then.
    async fn prepare(&self, rows: Vec<QueueRow>) -> Result<(Vec<Bytes>, Vec<Staged>), PublishError> {
        let began = Instant::now();
        let (mut entries, mut staged) = (Vec::new(), Vec::new());
        let mut preparing = stream::iter(rows)
            .take_while(|_| std::future::ready(began.elapsed() < GATHER_MAX))
            .map(|row| async move {
                let Some(id) = row.workspace else { return Ok((row.entry, None)) };
                let done = self.seal_and_put(&id, row.segment).await?;
                let hash = object_hash(&done.seal_bytes);
                let entry = Bytes::from(encode_seal_entry(done.seal.workspace, row.segment, hash));
                Ok::<_, PublishError>((entry, Some(done.staged)))
            })
            .buffered(SEALING_MAX);
        while let Some(prepared) = preparing.next().await {
            let (entry, object) = prepared?;
            entries.push(entry);
            staged.extend(object);
        }
        Ok((entries, staged))
    }

    async fn seal_and_put(&self, id: &[u8], segment: u64) -> Result<Sealed, PublishError> {
        let id = WorkspaceId::try_from(id).map_err(|_| StoreError::Damaged("the queue"))?;
        let (store, staging) = (Arc::clone(&self.store), self.staging.clone());
        let sealed = tokio::task::spawn_blocking(move || seal::seal(&store, &staging, id, segment)).await;
        let done = sealed.map_err(|_| SealError::RootsDisagree)??;
        for (serial, bytes) in &done.statements {
            let name = names::statement(Some(id), *serial, object_hash(bytes));
            self.archive.put(&name, bytes.clone()).await?;
        }
        let (object_name, seal_name) = object_names(&done.seal, &done.seal_bytes);
        self.archive.put(&object_name, done.object.clone()).await?;
        failpoint::hit("archive-after-segment");
        self.archive.put(&seal_name, done.seal_bytes.clone()).await?;
        failpoint::hit("archive-after-seal");
        Ok(done)
    }

    /// Statements that are log entries in full are objects of their own as well.
    async fn put_statements(&self, entries: &[Bytes]) -> Result<(), PublishError> {
        for entry in entries {
            let Ok(Entry::Statement(signed)) = Entry::parse(entry) else { continue };
            let signature = signed.signature.as_ref().try_into().map_err(|_| StoreError::Damaged("a statement"))?;
            let bytes = custody::statement::encode_signed(&signed.statement_bytes, signature);
            let name = names::statement(signed.workspace(), signed.statement.serial, signed.hash);
            self.archive.put(&name, bytes.into()).await?;
        }
        Ok(())
    }

    /// Makes claimed entries part of the log here, and takes from the queue what they were made of, in one write.
    fn append(&mut self, entries: &[Bytes]) -> Result<(), PublishError> {
        let first = self.size();
        let mut change = self.store.change();
        let mut queue = self.store.scan(Family::Queue, &[], &[]);
        let mut mark = self.pending_mark;
        let mut published = Vec::new();
        for (index, entry) in (first..).zip(entries) {
            change.put(Family::Log, index.to_be_bytes(), entry);
            let needs_row = match Entry::parse(entry) {
                Ok(Entry::Seal { workspace, segment, .. }) => {
                    change.put(Family::Meta, log_index_key(workspace, segment), index.to_be_bytes());
                    let seal = self.store.value(Family::Seals, numbered(workspace, segment))?;
                    let seal = seal.ok_or(PublishError::Stale)?;
                    published.push(Published { workspace, segment, seal, log_index: index });
                    true
                }
                Ok(Entry::Statement(_)) => first > 0,
                _ => false,
            };
            if needs_row {
                let (key, value) = queue.next().ok_or(PublishError::Stale)??;
                let row = QueueRow::decode(value).map_err(|_| StoreError::Damaged("the queue"))?;
                if !is_made_of(entry, &row) {
                    return Err(PublishError::Stale);
                }
                change.delete(Family::Queue, &key);
                mark = crate::store::as_number(&key)? + 1;
            }
        }
        change.put(Family::Meta, "queue_mark", mark.to_be_bytes());
        drop(queue);
        self.store.commit(change)?;
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            view.tree.push(log_leaf(entry).0);
        }
        drop(view);
        self.pending_mark = mark;
        self.untold.extend(published);
        Ok(())
    }

    /// Tiles, then the checkpoint, each read back; then everything up to here is *archived*.
    async fn publish_checkpoint(&mut self) -> Result<(), PublishError> {
        let from = self.store.number("published_size")?.unwrap_or(0);
        let size = self.size();
        if size > from {
            for (level, number, width) in tiles_between(from, size) {
                let bytes = self.tile(level, number, width)?;
                self.archive.put(&names::tile(level, number, width), bytes).await?;
            }
            failpoint::hit("publish-after-tiles");
            let root = self.view.read().unwrap_or_else(PoisonError::into_inner).tree.root();
            let signed = sign_checkpoint(Checkpoint { origin: self.origin.clone(), size, root }, &self.key);
            self.archive.put(&names::checkpoint(size), signed.to_bytes().into()).await?;
            failpoint::hit("publish-after-checkpoint");
            self.store.commit_one(Family::Meta, "published_size", &size.to_be_bytes())?;
            self.view.write().unwrap_or_else(PoisonError::into_inner).checkpoint = Some(signed);
            failpoint::hit("publish-after-mark");
        }
        // Not in one statement: the borrow would still be held when the value is replaced.
        let before = *self.mark.borrow();
        self.mark.send_replace(self.pending_mark.max(before));
        Ok(())
    }

    fn tile(&self, level: Option<u32>, number: u64, width: u64) -> Result<Bytes, PublishError> {
        let Some(level) = level else {
            let from = (number * TILE_WIDTH).to_be_bytes();
            let entries = self.store.scan(Family::Log, &[], &from).take(usize::try_from(width).unwrap_or(0));
            let entries: Vec<Bytes> = entries.map(|step| step.map(|(_, entry)| entry)).collect::<Result<_, _>>()?;
            return Ok(encode_bundle(&entries).into());
        };
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let hashes = tile(&view.tree, level, number, width).ok_or(StoreError::Damaged("the log"))?;
        Ok(hashes.concat().into())
    }
}

fn is_made_of(entry: &[u8], row: &QueueRow) -> bool {
    match (&row.workspace, Entry::parse(entry)) {
        (Some(id), Ok(Entry::Seal { workspace, segment, .. })) => *id == workspace.0[..] && row.segment == segment,
        (None, _) => row.entry == entry,
        _ => false,
    }
}

/// An error with its sources, for the log.
pub fn report(why: &dyn std::error::Error) -> String {
    let mut text = why.to_string();
    let mut source = why.source();
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text
}

/// Reads the fence every so often: another's claim fences this writer off, and a fresh read lets heads be signed plainly.
pub async fn watch_fence(
    fence: Fence,
    view: Arc<RwLock<LogView>>,
    state: Arc<FenceState>,
    alarms: Alarms,
    term: u64,
    every: Duration,
) {
    loop {
        clock::sleep(every).await;
        let index = view.read().unwrap_or_else(PoisonError::into_inner).tree.size();
        match fence.read(index).await {
            Ok(Some(claim)) if claim.term != term || !fence.is_own(&claim) => {
                state.fence_off();
                alarms.raise(Alarm::Fenced, format!("term {} stands in the fence, ours is {term}", claim.term));
                return;
            }
            Ok(_) => state.seen(),
            Err(why) => alarms.raise(Alarm::FenceUnreachable, report(&why)),
        }
    }
}
