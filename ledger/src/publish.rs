//! Seal → archive → claim → entries → tiles → checkpoint: how a cut segment becomes part of the organisation's history.
//!
//! The write path is [`Publisher::step`], read from top to bottom; after each line a comment says where a crash leaves us.
//! Recovery runs the same code on the same bytes: what was claimed is completed from the claim itself.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    archive as names,
    hash::object_hash,
    id::WorkspaceId,
    key,
    log::{Entry, TILE_WIDTH, encode_bundle, encode_entry, encode_seal_entry, tile, tiles_between},
    merkle::{Tree, log_leaf},
    note::{Checkpoint, SignedCheckpoint, sign_checkpoint},
    statement::Chain,
    wire::{self, Role, log_entry},
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
    fence::{Claimed, Fence, FenceError, Instance},
    keys,
    log_view::{Asked, FENCE_SECONDS_MAX, FenceState, LogView, Published, report},
    seal::{self, SealError, Sealed, object_names},
    store::{Family, QueueRow, Store, StoreError, numbered},
};

/// How long a successor on another machine waits, until the last writer's heads carry `unfenced`.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { FENCE_SECONDS_MAX });
/// Entries of one claim: a claim stays under 64 KiB of seals, and a checkpoint waits for at most so many segments.
const ENTRIES_MAX: usize = 256;
/// After so long no further segment joins a claim: gateways keep what is sealed, but not published, in their spools.
const GATHER_MAX: Duration = Duration::from_secs(2);
/// Segments that are sealed at one time, each with its object of some 16 MiB in memory: while one waits for the disk another
/// is compressed.
const SEALING_MAX: usize = 2;

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
    /// The log itself does not name the key of its checkpoints yet.
    LogKey,
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
            Self::LogKey => {
                "sign checkpoints with the key in log.key: its enrolment is not archived yet\nhint: put the log.key back that was \
                 there before, start, and type `ledger cut`: when that ends it is archived; then end the ledger, put the new one in \
                 its place, and start again"
            }
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
    /// The ledger's own chain, as the store had it before this start.
    pub chain: Chain,
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
        self.check_archive().await?;
        self.term = self.store.number("term")?.unwrap_or(0);
        // A database that another machine or folder wrote last: its writer may still sign heads for a while.
        let last_writer = self.store.value(Family::Meta, "writer")?;
        let mut waits = last_writer.is_some_and(|last| last.as_ref() != self.fence.writer());
        while let Some(claim) = self.fence.read(self.size()).await? {
            self.fence_state.claimed(claim.term);
            // Whoever else made it, at an equal or even at a lower term, has acknowledged what this database lacks.
            if !self.owns(&claim)? {
                return Err(PublishError::Stale);
            }
            waits |= claim.writer != self.fence.writer();
            self.complete(&claim).await?;
        }
        self.check_log_key()?;
        self.publish_checkpoint().await?;
        // The writer, which is not there yet, reads from the store what is published.
        self.untold.clear();
        seal::sweep(&self.staging, |id, segment| {
            Ok(self.store.value(Family::Meta, log_index_key(id, segment))?.is_some())
        })?;
        self.begin_term()?;
        failpoint::hit("start-after-term");
        self.claim_term(&genesis).await?;
        if waits {
            tracing::warn!(
                seconds = SUCCESSOR_WAIT.as_secs(),
                "the last writer was on another machine, in another folder or before a restart of this machine, and may sign heads \
                 for so long: waiting it out, and no port is open before; it may be ended meanwhile"
            );
            clock::sleep(SUCCESSOR_WAIT).await;
        }
        let asked = Asked::now();
        if self.fence.read(self.size()).await?.is_some() {
            return Err(PublishError::Fenced);
        }
        failpoint::hit("start-before-writer");
        self.store.commit_one(Family::Meta, "writer", self.fence.writer())?;
        self.fence_state.seen(asked);
        self.publish_checkpoint().await
    }

    /// Claims the term of this start; the first start of all claims what `init` made, too.
    async fn claim_term(&mut self, genesis: &[Bytes]) -> Result<(), PublishError> {
        let start = wire::TermStart { term: self.term, incarnation: self.incarnation, at: clock::now_us() };
        let start: Bytes = encode_entry(log_entry::Entry::TermStart(start)).into();
        loop {
            let first = if self.size() == 0 { genesis } else { &[] };
            let entries = [first, std::slice::from_ref(&start)].concat();
            // A claim is the commit point: all that it names is in the archive before it is made.
            self.put_statements(&entries).await?;
            match self.fence.claim(self.size(), self.term, &entries).await? {
                Claimed::Won => {
                    self.fence_state.claimed(self.term);
                    // A crash from here on leaves a claim of this database's own, which the next start completes.
                    failpoint::hit("start-after-claim");
                    return self.append(&entries);
                }
                // Of an earlier start, and longer on its way than that start lived.
                Claimed::Lost(claim) if self.owns(&claim)? => self.complete(&claim).await?,
                Claimed::Lost(claim) => {
                    self.fence_state.claimed(claim.term);
                    return Err(PublishError::Fenced);
                }
            }
        }
    }

    /// Takes the entries of a claim of this database's own into the log. What they name is archived, unless a program from before
    /// that was so made the claim: so statements are put again.
    async fn complete(&mut self, claim: &wire::Claim) -> Result<(), PublishError> {
        self.put_statements(&claim.entries).await?;
        self.append(&claim.entries)
    }

    /// A checkpoint counts only if the log that it stands for names its key. A key whose enrolment still waits in the queue is
    /// not there: the term that this start claims comes before what waits.
    fn check_log_key(&self) -> Result<(), PublishError> {
        let mut waiting = 0;
        for step in self.store.scan(Family::Queue, &[], &[]) {
            let row = QueueRow::decode(step?.1).map_err(|_| StoreError::Damaged("the queue"))?;
            let of_ledger = |entry: &Entry| matches!(entry, Entry::Statement(signed) if signed.workspace().is_none());
            waiting +=
                u64::from(row.workspace.is_none() && Entry::parse(&row.entry).is_ok_and(|entry| of_ledger(&entry)));
        }
        let named = self.chain.head().count.saturating_sub(waiting);
        let id = key::public(&self.key).id(Role::Log);
        let known = self.chain.key_at(&id, named).filter(|known| known.role == Role::Log && !known.revoked);
        known.map(|_| ()).ok_or(PublishError::LogKey)
    }

    /// Takes the next term, and an instance by which its claims are known from those of a copy that takes the same term.
    fn begin_term(&mut self) -> Result<(), StoreError> {
        self.term = self.store.number("term")?.unwrap_or(0) + 1;
        let instance: Instance = keys::random();
        self.fence = self.fence.of_instance(Some(instance));
        let mut change = self.store.change();
        change.put(Family::Meta, "term", self.term.to_be_bytes());
        change.put(Family::Meta, instance_key(self.term), instance);
        // A crash after this line leaves a term that was never claimed; the next start takes the one after it.
        self.store.commit(change)
    }

    /// Whether this database, and no copy of it, made a claim.
    fn owns(&self, claim: &wire::Claim) -> Result<bool, StoreError> {
        if claim.term > self.store.number("term")?.unwrap_or(0) {
            return Ok(false);
        }
        let instance = self.store.value(Family::Meta, instance_key(claim.term))?;
        let instance = instance.map(|value| Instance::try_from(value.as_ref()));
        let instance = instance.transpose().map_err(|_| StoreError::Damaged("an instance"))?;
        Ok(self.fence.of_instance(instance).is_own(claim))
    }

    /// Takes what waits in the queue, until there is nothing; then sleeps until woken. Ends only when it is fenced: whatever
    /// else is wrong, reads and proofs go on.
    pub async fn run(mut self, mut wake: mpsc::Receiver<()>, writer: mpsc::Sender<Request>) -> PublishError {
        let mut wait = Duration::from_secs(1);
        loop {
            let why = match self.step(&writer).await {
                Ok(true) => {
                    wait = Duration::from_secs(1);
                    continue;
                }
                // Nobody is left to wake it once the writer has ended.
                Ok(false) if wake.recv().await.is_none() => return std::future::pending().await,
                Ok(false) => continue,
                Err(why) => why,
            };
            let (alarm, next) = judge(&why);
            self.alarms.raise(alarm, report(&why));
            match next {
                Next::Again => {
                    // Back off to half a minute: a store that is down for an hour is asked 120 times.
                    clock::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
                Next::Never => {
                    // A writer that has ended refuses everything already.
                    writer.send(Request::Poison(report(&why))).await.ok();
                    return std::future::pending().await;
                }
                Next::End => {
                    self.fence_state.fence_off();
                    return why;
                }
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
        self.check_archive().await?;
        let entries = self.prepare(rows).await?;
        self.put_statements(&entries).await?;
        // Again: what was put into a folder that is not the archive any more is not archived.
        self.check_archive().await?;
        // A crash up to here leaves objects that nothing refers to yet; the next run puts the same bytes again.
        failpoint::hit("publish-before-claim");
        let asked = Asked::now();
        let entries = match self.fence.claim(self.size(), self.term, &entries).await? {
            Claimed::Won => {
                self.fence_state.seen(asked);
                entries
            }
            // Our own claim, from before an error whose outcome we did not learn: what it names is what counts. It is no word
            // on what stands behind it by now.
            Claimed::Lost(claim) if self.owns(&claim)? => claim.entries,
            Claimed::Lost(_) => return Err(PublishError::Fenced),
        };
        // A crash from here on leaves a claim that names all its entries, whose objects are archived: a start completes it.
        failpoint::hit("publish-after-claim");
        self.append(&entries)?;
        failpoint::hit("publish-after-entries");
        self.publish_checkpoint().await?;
        self.tell(writer).await;
        Ok(true)
    }

    /// Tells the writer what is archived, of which no copy must be staged any more.
    async fn tell(&mut self, writer: &mpsc::Sender<Request>) {
        let published = std::mem::take(&mut self.untold);
        for done in &published {
            if let Err(why) = seal::unstage(&self.staging, done.workspace, done.segment) {
                tracing::warn!(%why, "a staged segment stays on disk until the next start");
            }
        }
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

    /// The entries that the rows become, in the rows' order. All that they name is archived then.
    async fn prepare(&self, rows: Vec<QueueRow>) -> Result<Vec<Bytes>, PublishError> {
        let (began, failed) = (Instant::now(), AtomicBool::new(false));
        let mut outcome = Ok(Vec::new());
        let mut preparing = stream::iter(rows)
            .take_while(|_| std::future::ready(began.elapsed() < GATHER_MAX && !failed.load(Ordering::Relaxed)))
            .map(|row| self.prepare_one(row))
            .buffered(SEALING_MAX);
        // To the end, also after an error: a seal that went on in its thread would be stored beside the one of the next try.
        while let Some(prepared) = preparing.next().await {
            failed.fetch_or(prepared.is_err(), Ordering::Relaxed);
            match (prepared, &mut outcome) {
                (Ok(entry), Ok(entries)) => entries.push(entry),
                (Err(why), Ok(_)) => outcome = Err(why),
                (_, Err(_)) => {}
            }
        }
        outcome
    }

    async fn prepare_one(&self, row: QueueRow) -> Result<Bytes, PublishError> {
        let Some(id) = row.workspace else { return Ok(row.entry) };
        let done = self.seal_and_put(&id, row.segment).await?;
        Ok(encode_seal_entry(done.seal.workspace, row.segment, object_hash(&done.seal_bytes)).into())
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
                Ok(Entry::Seal { workspace, segment, seal: hash }) => {
                    change.put(Family::Meta, log_index_key(workspace, segment), index.to_be_bytes());
                    let seal = self.store.value(Family::Seals, numbered(workspace, segment))?;
                    let seal = seal.filter(|seal| object_hash(seal) == hash).ok_or(PublishError::Stale)?;
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
                failpoint::hit("publish-between-tiles");
            }
            failpoint::hit("publish-after-tiles");
            let root = self.view.read().unwrap_or_else(PoisonError::into_inner).tree.root();
            let signed = sign_checkpoint(Checkpoint { origin: self.origin.clone(), size, root }, &self.key);
            let signed = self.put_checkpoint(signed).await?;
            failpoint::hit("publish-after-checkpoint");
            self.check_archive().await?;
            self.store.commit_one(Family::Meta, "published_size", &size.to_be_bytes())?;
            self.view.write().unwrap_or_else(PoisonError::into_inner).checkpoint = Some(signed);
            failpoint::hit("publish-after-mark");
        }
        // Not in one statement: the borrow would still be held when the value is replaced.
        let before = *self.mark.borrow();
        self.mark.send_replace(self.pending_mark.max(before));
        Ok(())
    }

    /// Puts a checkpoint. One of the same size and root that an earlier start put under the log key of its time counts as well.
    async fn put_checkpoint(&self, signed: SignedCheckpoint) -> Result<SignedCheckpoint, ArchiveError> {
        let name = names::checkpoint(signed.checkpoint.size);
        let put = self.archive.put(&name, signed.to_bytes().into()).await;
        let Err(ArchiveError::Differs(_)) = put else { return put.map(|()| signed) };
        let found = self.archive.get(&name).await?.and_then(|found| SignedCheckpoint::parse(&found).ok());
        let mut log_keys =
            self.chain.keys().map(|(_, known)| known).filter(|known| known.role == Role::Log && !known.revoked);
        let same = found.filter(|found| found.checkpoint == signed.checkpoint);
        same.filter(|found| log_keys.any(|known| found.is_signed_by(known.public_key)))
            .map_or_else(|| put.map(|()| signed), Ok)
    }

    /// The archive is the one that this log has always had: it holds the newest checkpoint. A folder that is not mounted takes
    /// objects like any other, and gateways that were told *archived* would let go of the only copies.
    async fn check_archive(&self) -> Result<(), ArchiveError> {
        let newest = {
            let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
            view.checkpoint.as_ref().map(|signed| (signed.checkpoint.size, signed.checkpoint.hash()))
        };
        let Some((size, hash)) = newest else { return Ok(()) };
        let is_ours = |found: &[u8]| SignedCheckpoint::parse(found).is_ok_and(|found| found.checkpoint.hash() == hash);
        self.archive.still_holds(&names::checkpoint(size), is_ours).await
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

/// What an error means for publishing.
enum Next {
    /// The same again may work.
    Again,
    /// Nothing is published any more; reads and proofs go on.
    Never,
    /// Another writer owns the log: the process ends.
    End,
}

fn judge(why: &PublishError) -> (Alarm, Next) {
    match why {
        PublishError::Archive(ArchiveError::Differs(_)) => (Alarm::ReadBackDiffers, Next::Never),
        PublishError::Archive(_) => (Alarm::ArchiveFailing, Next::Again),
        PublishError::Fence(FenceError::Store(_) | FenceError::Lost) => (Alarm::FenceUnreachable, Next::Again),
        PublishError::Seal(SealError::Staging(_)) => (Alarm::DiskFull, Next::Again),
        PublishError::Seal(SealError::RootsDisagree | SealError::Differs) => (Alarm::RootsDisagree, Next::Never),
        PublishError::Fenced | PublishError::Fence(_) => (Alarm::Fenced, Next::End),
        PublishError::Stale => (Alarm::StaleDatabase, Next::Never),
        PublishError::Store(why) | PublishError::Seal(SealError::Store(why)) if why.is_no_room() => {
            (Alarm::DiskFull, Next::Never)
        }
        PublishError::Store(_) | PublishError::Seal(_) | PublishError::LogKey => (Alarm::Poisoned, Next::Never),
    }
}

fn instance_key(term: u64) -> Vec<u8> {
    [b"instance/", &term.to_be_bytes()[..]].concat()
}

fn is_made_of(entry: &[u8], row: &QueueRow) -> bool {
    match (&row.workspace, Entry::parse(entry)) {
        (Some(id), Ok(Entry::Seal { workspace, segment, .. })) => *id == workspace.0[..] && row.segment == segment,
        (None, _) => row.entry == entry,
        _ => false,
    }
}

mod look;

pub use look::{follow_fence, watch_fence};

#[cfg(test)]
mod tests;
