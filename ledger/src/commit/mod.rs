//! The writer: one thread that gives positions, writes with fsync, signs heads and answers.
//!
//! What must hold: nothing is answered before [`Store::commit`] returned; a write that fails poisons the writer, whose
//! memory may then be ahead of the disk; heads are signed for what is on disk and for nothing else; a cut and whatever
//! caused it are one write. Requests wait in one bounded queue; whatever is there when a write begins shares it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    batch::{NotNext, Submitted},
    head::{Head, SignedHead, to_path},
    id::{Epoch, GatewayId, KeyId, WorkspaceId},
    key,
    log::encode_entry,
    segment::{Content, Entry, Leaf, SEGMENT_BYTES_MAX, SEGMENT_LEAVES_MAX, encode_entry as encode_leaf},
    statement::{Chain, ChainHead, Roots},
    wire::{self, LeafKind, RejectReason, Role, from_ledger::Message, log_entry},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    alarm::{Alarm, Alarms},
    clock, failpoint,
    ingest::admit::{self, Reject},
    metrics::Metrics,
    publish::{FenceState, LogView, Published, report},
    store::{EpochRow, Family, LeafPlace, QueueRow, Store, StoreError, batch_key, epoch_key, leaf_key, numbered},
    workspace::{Standing, Workspace},
};

mod own;
mod statements;

pub use own::OwnWriter;
pub use statements::{StatementState, ledger_chain, log_index_key};

/// Requests that may wait for the writer: some thousand batches, bounded again in bytes by each stream.
pub const REQUESTS_MAX: usize = 1_024;
/// Requests that share one write: more would make the first wait for the last.
const GROUP_REQUESTS_MAX: usize = 512;
/// Bytes of batches that share one write: a few milliseconds of disk.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Names a stream within this process.
pub type StreamId = u64;

/// Something for the writer to do.
pub enum Request {
    /// A gateway has come.
    Open(Box<Opening>),
    /// It has gone.
    Close(StreamId),
    /// A batch that passed [`admit::check`], and the room that it takes until it is answered.
    Batch(StreamId, Box<Submitted>, [OwnedSemaphorePermit; 2]),
    /// A `SignedStatement`.
    Statement(Bytes, oneshot::Sender<Result<StatementState, String>>),
    /// Cut this workspace's segment, or all; answered with the queue number that must be published.
    Cut(Option<WorkspaceId>, oneshot::Sender<u64>),
    /// Segments were archived.
    Published(Vec<Published>),
    /// A record of the ledger's own.
    Record(Box<wire::record::Kind>),
    /// Look at the writer's state.
    Inspect(Box<dyn FnOnce(&Writer) + Send>),
    /// A second has passed.
    Tick {
        /// The data disk has less room than batches need.
        disk_low: bool,
    },
    /// Refuse batches from now on, cut everything, close the ledger's own epoch; answered with the queue number.
    Drain(oneshot::Sender<u64>),
    /// The last request: the writer ends, though others may still hold a sender.
    End,
}

/// A gateway's first message, checked as far as the stream can.
pub struct Opening {
    /// Names the stream.
    pub stream: StreamId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// Which.
    pub gateway: GatewayId,
    /// Last head that the gateway keeps.
    pub last_head: Option<SignedHead>,
    /// Statements of the ledger's chain that it has.
    pub ledger_statements: u64,
    /// Statements of the workspace's chain that it has.
    pub workspace_statements: u64,
    /// Where answers go: bounded, and a stream that does not read is closed.
    pub outbox: mpsc::Sender<wire::FromLedger>,
    /// Limits, for the welcome.
    pub in_flight: (u32, u32),
    /// Whether it was opened; in words if not.
    pub reply: oneshot::Sender<Result<(), String>>,
}

struct Stream {
    workspace: WorkspaceId,
    gateway: GatewayId,
    /// Last head that was sent.
    head: Option<Head>,
    ledger_statements: u64,
    workspace_statements: u64,
    outbox: mpsc::Sender<wire::FromLedger>,
}

/// What this ledger does with writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes batches.
    Serving,
    /// Serves reads and proofs; why.
    ReadOnly(String),
    /// Another writer owns the log.
    Fenced,
    /// An invariant broke; which.
    Poisoned(String),
    /// Ends soon.
    Draining,
}

impl State {
    /// One word for status and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::ReadOnly(_) => "read-only",
            Self::Fenced => "fenced",
            Self::Poisoned(_) => "poisoned",
            Self::Draining => "draining",
        }
    }
}

/// Key chains as ingest sees them, replaced whole when a statement takes effect.
pub type Chains = Arc<RwLock<HashMap<WorkspaceId, Arc<Chain>>>>;

/// Everything that the writer is made of.
pub struct Parts {
    /// The database.
    pub store: Arc<Store>,
    /// Name of the log.
    pub origin: String,
    /// Signs heads.
    pub head_key: SigningKey,
    /// Signs the ledger's own batches.
    pub record_key: SigningKey,
    /// Number of this start.
    pub term: u64,
    /// Shared with ingest.
    pub chains: Chains,
    /// Shared with the publisher.
    pub view: Arc<RwLock<LogView>>,
    /// Shared with the publisher.
    pub fence: Arc<FenceState>,
    /// Wakes the publisher.
    pub publisher: mpsc::Sender<()>,
    /// Raised here.
    pub alarms: Alarms,
    /// Counted here.
    pub metrics: Metrics,
    /// When segments are cut.
    pub limits: Limits,
    /// The audit policy's roots.
    pub roots: Roots,
}

/// When segments are cut, and when batches wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Microseconds after a segment's first record at which it is cut.
    pub cut_age_us: u64,
    /// Microseconds after its first leaf at which a segment of heartbeats alone is cut.
    pub heartbeat_age_us: u64,
    /// Uncompressed bytes at which it is cut.
    pub cut_bytes: u64,
    /// Leaves at which it is cut.
    pub cut_leaves: u64,
    /// Queue rows that may wait for the archive before batches are pushed back.
    pub unpublished_max: u64,
    /// Uncompressed bytes of one workspace that may wait for the archive before its batches are pushed back.
    pub workspace_bytes: u64,
    /// Free bytes on the data disk below which batches are refused.
    pub disk_low_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cut_age_us: 300_000_000,
            heartbeat_age_us: crate::workspace::DAY_US,
            workspace_bytes: u64::MAX,
            cut_bytes: SEGMENT_BYTES_MAX,
            cut_leaves: SEGMENT_LEAVES_MAX,
            unpublished_max: 4_096,
            disk_low_bytes: 1 << 30,
        }
    }
}

/// The one writer.
pub struct Writer {
    parts: Parts,
    state: State,
    head_key_id: KeyId,
    ledger_chain: Arc<Chain>,
    roots: Roots,
    workspaces: BTreeMap<WorkspaceId, Workspace>,
    /// In which order they were created; of a cut of all.
    order: Vec<WorkspaceId>,
    streams: HashMap<StreamId, Stream>,
    own: OwnWriter,
    commit_index: u64,
    queue_next: u64,
    disk_low: bool,
    clock: clock::Watch,
    ended: bool,
}

/// What is told to somebody once the write is on disk.
type Answer = Box<dyn FnOnce(&Writer) + Send>;

/// What one write brings about, until it is written.
struct Group<'a> {
    change: crate::store::Change<'a>,
    /// Batches of this group that are not in the database yet.
    places: HashMap<Vec<u8>, (wire::BatchInclusion, [u8; 32])>,
    receipts: BTreeMap<StreamId, Vec<wire::BatchInclusion>>,
    rejections: Vec<(StreamId, Message)>,
    touched: BTreeSet<WorkspaceId>,
    /// Given back when the group is answered.
    room: Vec<[OwnedSemaphorePermit; 2]>,
    cut: bool,
    answers: Vec<Answer>,
    /// Requests that are served when the write is done.
    after: Vec<Request>,
}

impl Writer {
    /// Reads the state from the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(parts: Parts) -> Result<Self, StoreError> {
        let (ledger_chain, roots, chains) = statements::load_chains(&parts.store, &parts.origin, parts.roots.clone())?;
        let mut workspaces = BTreeMap::new();
        let mut order = Vec::new();
        for chain in chains {
            let Some(id) = chain.workspace() else { continue };
            let mut workspace = Workspace::load(&parts.store, id, chain)?;
            let published = statements::published_segments(&parts.store, id, workspace.open.number)?;
            workspace.resume_publishing(&parts.store, published)?;
            order.push(id);
            workspaces.insert(id, workspace);
        }
        let last = |family| {
            parts.store.last(family, &[]).map(|found| found.and_then(|(key, _)| crate::store::as_number(&key).ok()))
        };
        let commit_index = last(Family::Commits)?.map_or(0, |index| index + 1);
        let mark = parts.store.number("queue_mark")?.unwrap_or(0);
        let queue_next = last(Family::Queue)?.map_or(mark, |number| number + 1);
        let head_key_id = key::public(&parts.head_key).id(Role::Head);
        let own = OwnWriter::load(&parts.record_key, &ledger_chain, &workspaces);
        let writer = Self {
            parts,
            state: State::Serving,
            head_key_id,
            ledger_chain: Arc::new(ledger_chain),
            roots,
            workspaces,
            order,
            streams: HashMap::new(),
            own,
            commit_index,
            queue_next,
            disk_low: false,
            clock: clock::Watch::new(),
            ended: false,
        };
        writer.share_chains();
        Ok(writer)
    }

    /// How it stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Refuses writes from now on.
    pub fn set_state(&mut self, state: State) {
        self.state = state;
    }

    /// The workspaces.
    pub fn workspaces(&self) -> impl Iterator<Item = &Workspace> {
        self.order.iter().filter_map(|id| self.workspaces.get(id))
    }

    /// The ledger's keys.
    pub fn ledger_chain(&self) -> &Chain {
        &self.ledger_chain
    }

    /// Number of the next commit.
    pub fn commit_index(&self) -> u64 {
        self.commit_index
    }

    /// Number of the next queue row.
    pub fn queue_next(&self) -> u64 {
        self.queue_next
    }

    /// Number of this start.
    pub fn term(&self) -> u64 {
        self.parts.term
    }

    /// Whether a gateway has a stream open.
    pub fn is_connected(&self, workspace: WorkspaceId, gateway: GatewayId) -> bool {
        self.streams.values().any(|stream| (stream.workspace, stream.gateway) == (workspace, gateway))
    }

    fn share_chains(&self) {
        let chains = self.workspaces.iter().map(|(id, workspace)| (*id, Arc::clone(&workspace.chain))).collect();
        *self.parts.chains.write().unwrap_or_else(PoisonError::into_inner) = chains;
    }

    fn standing(&self) -> Standing<'_> {
        Standing {
            origin: &self.parts.origin,
            incarnation: self.ledger_chain.incarnation(),
            ledger_chain: self.ledger_chain.head(),
        }
    }

    /// Works until it is told to end, or every sender of requests is gone.
    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut held = Vec::new();
        while let Some(first) = requests.blocking_recv() {
            held.push(first);
            let mut bytes = 0;
            while held.len() < GROUP_REQUESTS_MAX && bytes < GROUP_BYTES_MAX {
                let Ok(next) = requests.try_recv() else { break };
                bytes += if let Request::Batch(_, batch, _) = &next { batch.bytes.len() } else { 0 };
                held.push(next);
            }
            self.serve(held.drain(..));
            if self.ended {
                return;
            }
        }
    }

    /// One group: decide, write, sign, answer.
    pub fn serve(&mut self, requests: impl Iterator<Item = Request>) {
        let store = Arc::clone(&self.parts.store);
        let mut group = Group {
            change: store.change(),
            places: HashMap::new(),
            receipts: BTreeMap::new(),
            rejections: Vec::new(),
            touched: BTreeSet::new(),
            room: Vec::new(),
            cut: false,
            answers: Vec::new(),
            after: Vec::new(),
        };
        if self.parts.fence.is_fenced() && self.state == State::Serving {
            self.state = State::Fenced;
        }
        for request in requests {
            if let Err(why) = self.decide(request, &mut group) {
                self.poison(&why);
                return;
            }
        }
        if let Err(why) = self.append_own(&mut group) {
            self.poison(&why);
            return;
        }
        let Group { change, receipts, rejections, touched, cut, answers, after, room, .. } = group;
        if !change.is_empty() {
            // A crash before this line returns loses what nobody was told; after it, what everybody may be told.
            let began = Instant::now();
            if let Err(why) = store.commit(change) {
                self.poison(&why);
                return;
            }
            self.parts.metrics.add("custody_commits_total", 1);
            self.parts.metrics.observe("custody_commit_seconds", began.elapsed());
        }
        failpoint::hit("commit-before-answer");
        for request in after {
            if let Err(why) = self.show(request) {
                self.poison(&why);
                return;
            }
        }
        for (stream, message) in rejections {
            self.send(stream, message);
        }
        if let Err(why) = self.answer(receipts, &touched) {
            self.poison(&why);
            return;
        }
        for answer in answers {
            answer(self);
        }
        drop(room);
        if cut {
            // A full channel means that the publisher is awake already.
            self.parts.publisher.try_send(()).ok();
        }
    }

    /// An invariant broke: what is in memory may be ahead of the disk. Reads go on, writes are refused.
    fn poison(&mut self, why: &StoreError) {
        let text = report(why);
        self.parts.alarms.raise(Alarm::Poisoned, text.clone());
        self.state = State::Poisoned(text);
        self.streams.clear();
    }

    fn decide(&mut self, request: Request, group: &mut Group<'_>) -> Result<(), StoreError> {
        match request {
            Request::Open(_) | Request::Close(_) | Request::Published(_) | Request::Inspect(_) => {
                group.after.push(request)
            }
            Request::Batch(stream, batch, room) => {
                group.room.push(room);
                self.take_batch(stream, *batch, group)?;
            }
            Request::Statement(object, reply) => self.take_statement(&object, reply, group)?,
            Request::Cut(workspace, reply) => {
                self.cut_some(workspace, group);
                let number = self.queue_next;
                group.answers.push(Box::new(move |_| {
                    reply.send(number).ok();
                }));
            }
            Request::Record(kind) => self.own.push(*kind),
            Request::Tick { disk_low } => {
                if disk_low && !self.disk_low {
                    self.parts.alarms.raise(Alarm::DiskFull, "batches are refused until there is room");
                }
                self.disk_low = disk_low;
                self.tick(group);
            }
            Request::Drain(reply) => self.drain(reply, group)?,
            Request::End => self.ended = true,
        }
        Ok(())
    }

    /// What shows heads or the writer's state to somebody waits for the write: whoever was shown what the disk does not hold
    /// would have proof of a fork after a crash.
    fn show(&mut self, request: Request) -> Result<(), StoreError> {
        match request {
            Request::Open(opening) => self.open(*opening)?,
            Request::Close(stream) => drop(self.streams.remove(&stream)),
            Request::Published(published) => self.tell_archived(&published)?,
            Request::Inspect(look) => look(self),
            _ => {}
        }
        Ok(())
    }

    fn drain(&mut self, reply: oneshot::Sender<u64>, group: &mut Group<'_>) -> Result<(), StoreError> {
        if self.state == State::Serving {
            self.own.close();
            self.append_own(group)?;
            self.cut_some(None, group);
            self.state = State::Draining;
        }
        let number = self.queue_next;
        group.answers.push(Box::new(move |_| {
            reply.send(number).ok();
        }));
        Ok(())
    }

    fn take_batch(&mut self, stream: StreamId, batch: Submitted, group: &mut Group<'_>) -> Result<(), StoreError> {
        let decided = self.decide_batch(&batch, group)?;
        match decided {
            Decided::Append => {
                let place = self.append(LeafKind::Batch, batch, group)?;
                group.receipts.entry(stream).or_default().push(place);
            }
            // It is part of this very write; whoever sent it last may have come back since, and hears it too.
            Decided::AgainNow(place) => {
                let receipts = group.receipts.entry(stream).or_default();
                if !receipts.contains(&place) {
                    receipts.push(*place);
                }
            }
            Decided::Again(place) => {
                self.parts.metrics.add("custody_batches_repeated_total", 1);
                let inclusion = self.inclusion_of(&batch, place)?;
                group.receipts.entry(stream).or_default().push(inclusion);
            }
            Decided::Reject(reject) => {
                self.parts.metrics.add("custody_batches_rejected_total", 1);
                group.rejections.push((stream, Message::Rejection(reject.message(&batch.header))));
            }
            Decided::Later(detail) => {
                self.parts.metrics.add("custody_pushbacks_total", 1);
                let header = &batch.header;
                group.rejections.push((
                    stream,
                    Message::Pushback(wire::Pushback {
                        epoch: header.epoch.into(),
                        batch_number: header.batch_number,
                        retry_after_ms: 1_000,
                        detail,
                    }),
                ));
            }
            Decided::Equivocation { keep } => {
                let header = batch.header.clone();
                self.keep_equivocation(batch, keep, group)?;
                let detail =
                    "another header stands under this number (hint: sign again what has no receipt, in a new epoch)";
                let reject = Reject::new(RejectReason::Equivocation, detail);
                group.rejections.push((stream, Message::Rejection(reject.message(&header))));
            }
        }
        Ok(())
    }

    /// Whether the batch is next; everything else about it was checked before, but the keys may have changed since.
    fn decide_batch(&self, batch: &Submitted, group: &Group<'_>) -> Result<Decided, StoreError> {
        let header = &batch.header;
        if self.state != State::Serving {
            return Ok(Decided::Later(format!("the ledger takes no batches: {}", self.state.name())));
        }
        let Some(workspace) = self.workspaces.get(&header.workspace) else {
            return Ok(Decided::Reject(Reject::new(RejectReason::Unauthorised, "no such workspace")));
        };
        if workspace.chain.is_removed() {
            return Ok(Decided::Reject(Reject::new(RejectReason::Removed, "the workspace was removed")));
        }
        if let Err(reject) = admit::signer(&workspace.chain, header) {
            return Ok(Decided::Reject(reject));
        }
        let numbering = workspace.gateways.get(&header.gateway).map(|gateway| &gateway.numbering);
        let admitted =
            numbering.map_or_else(|| custody::batch::Numbering::default().admit(header), |known| known.admit(header));
        match admitted {
            Ok(()) if self.disk_low => Ok(Decided::Later("no room on the ledger's disk".to_owned())),
            Ok(()) if self.backlog() > self.parts.limits.unpublished_max => {
                Ok(Decided::Later("too many segments wait for the archive".to_owned()))
            }
            Ok(()) if workspace.unarchived_bytes() > self.parts.limits.workspace_bytes => {
                Ok(Decided::Later("the workspace's room is used up until its segments are archived".to_owned()))
            }
            Ok(()) => Ok(Decided::Append),
            Err(NotNext::Taken) => self.decide_taken(batch, group),
            Err(NotNext::Gap { expected }) => Ok(Decided::Reject(gap(expected))),
            Err(NotNext::UnknownEpoch) => Ok(Decided::Reject(gap(0))),
            Err(NotNext::Closed) => Ok(Decided::Reject(Reject::new(
                RejectReason::Equivocation,
                "the epoch was closed (hint: open a new one)",
            ))),
            Err(NotNext::Broken(rule)) => Ok(Decided::Reject(Reject::new(RejectReason::Equivocation, rule))),
        }
    }

    fn backlog(&self) -> u64 {
        let mark = self.parts.store.number("queue_mark").ok().flatten().unwrap_or(0);
        self.queue_next.saturating_sub(mark)
    }

    fn decide_taken(&self, batch: &Submitted, group: &Group<'_>) -> Result<Decided, StoreError> {
        let header = &batch.header;
        let key = batch_key(header.workspace, header.gateway, header.epoch, header.batch_number);
        if let Some((place, hash)) = group.places.get(&key)
            && *hash == batch.header_hash().0
        {
            return Ok(Decided::AgainNow(Box::new(place.clone())));
        }
        let found = match group.places.get(&key) {
            Some((place, hash)) => Some((LeafPlace { segment: place.segment, leaf: place.leaf_index }, *hash)),
            None => match self.parts.store.value(Family::Batches, &key)? {
                Some(value) => {
                    let hash = value.get(16..48).and_then(|hash| hash.try_into().ok());
                    Some((LeafPlace::decode(&value)?, hash.ok_or(StoreError::Damaged("a batch"))?))
                }
                None => None,
            },
        };
        let (place, hash) = found.ok_or(StoreError::Damaged("a batch that was committed"))?;
        if hash == batch.header_hash().0 {
            return Ok(Decided::Again(place));
        }
        let workspace = self.workspaces.get(&header.workspace);
        let row = workspace.and_then(|w| w.gateways.get(&header.gateway)).and_then(|g| g.rows.get(&header.epoch));
        Ok(Decided::Equivocation { keep: row.is_some_and(|row| row.equivocations == 0) })
    }

    fn keep_equivocation(&mut self, batch: Submitted, keep: bool, group: &mut Group<'_>) -> Result<(), StoreError> {
        let header = batch.header.clone();
        self.parts.metrics.add("custody_equivocations_total", 1);
        self.parts.alarms.raise(
            Alarm::Equivocation,
            format!("gateway {} signed two batches {} in epoch {}", header.gateway, header.batch_number, header.epoch),
        );
        if keep {
            self.append(LeafKind::Equivocation, batch, group)?;
        }
        let Some(workspace) = self.workspaces.get_mut(&header.workspace) else { return Ok(()) };
        let row = workspace.gateways.get_mut(&header.gateway).and_then(|gateway| gateway.rows.get_mut(&header.epoch));
        let Some(row) = row else { return Ok(()) };
        row.equivocations += 1;
        group.change.put(
            Family::Epochs,
            epoch_key(header.workspace, header.gateway, header.epoch),
            row.encode_to_vec(),
        );
        self.own.equivocation(&header, row.equivocations);
        Ok(())
    }

    /// Gives a batch its place, in memory and in the group's write.
    fn append(
        &mut self,
        kind: LeafKind,
        batch: Submitted,
        group: &mut Group<'_>,
    ) -> Result<wire::BatchInclusion, StoreError> {
        let lost = StoreError::Damaged("a workspace");
        let id = batch.header.workspace;
        let (header, hash, opened) = (batch.header.clone(), batch.header_hash(), batch.opened());
        let workspace = self.workspaces.get_mut(&id).ok_or(lost)?;
        let leaf =
            Leaf { kind, first_position: workspace.next_position, received_at: clock::now_us(), term: self.parts.term };
        let bytes = encode_leaf(&leaf, batch.bytes.clone());
        let place = LeafPlace { segment: workspace.open.number, leaf: workspace.open.tree.size() };
        group.change.put(Family::Entries, leaf_key(id, place.segment, place.leaf), &bytes);
        group.change.put(Family::Commits, self.commit_index.to_be_bytes(), leaf_key(id, place.segment, place.leaf));
        self.commit_index += 1;
        let inclusion = wire::BatchInclusion {
            version: FORMAT_VERSION,
            epoch: header.epoch.into(),
            batch_number: header.batch_number,
            segment: place.segment,
            leaf_index: place.leaf,
            first_position: leaf.first_position,
            received_at: leaf.received_at,
            term: leaf.term,
            ..Default::default()
        };
        let entry = Entry { leaf, content: Content::Batch(Box::new(batch)) };
        workspace.open.take(&entry, bytes.len());
        if kind == LeafKind::Batch {
            let key = batch_key(id, header.gateway, header.epoch, header.batch_number);
            group.change.put(Family::Batches, &key, [&place.encode()[..], &hash.0].concat());
            group.places.insert(key, (inclusion.clone(), hash.0));
            if header.record_count > 0 {
                group.change.put(Family::Positions, numbered(id, leaf.first_position), place.encode());
            }
            let gateway = workspace.gateways.entry(header.gateway).or_default();
            gateway.numbering.take(&header, hash);
            let row = gateway.rows.entry(header.epoch).or_default();
            update_row(row, &header, hash.0, leaf.received_at, self.commit_index, opened.as_ref());
            group.change.put(Family::Epochs, epoch_key(id, header.gateway, header.epoch), row.encode_to_vec());
            workspace.next_position += u64::from(header.record_count);
            self.parts.metrics.add("custody_records_total", u64::from(header.record_count));
            self.parts.metrics.add("custody_batches_total", 1);
        }
        group.touched.insert(id);
        let full = workspace.open.bytes >= self.parts.limits.cut_bytes
            || workspace.open.tree.size() >= self.parts.limits.cut_leaves;
        if full {
            self.cut(id, group);
        }
        Ok(inclusion)
    }

    fn inclusion_of(&self, batch: &Submitted, place: LeafPlace) -> Result<wire::BatchInclusion, StoreError> {
        let lost = || StoreError::Damaged("a leaf that was committed");
        let header = &batch.header;
        let stored = self.parts.store.value(Family::Entries, leaf_key(header.workspace, place.segment, place.leaf))?;
        let entry = stored.map(Entry::parse).transpose().map_err(|_| lost())?;
        let leaf = entry.ok_or_else(lost)?.leaf;
        Ok(wire::BatchInclusion {
            version: FORMAT_VERSION,
            epoch: header.epoch.into(),
            batch_number: header.batch_number,
            segment: place.segment,
            leaf_index: place.leaf,
            first_position: leaf.first_position,
            received_at: leaf.received_at,
            term: leaf.term,
            ..Default::default()
        })
    }

    /// Cuts the open segment if it has a leaf: the row for the sealer, and its place in the queue.
    fn cut(&mut self, id: WorkspaceId, group: &mut Group<'_>) {
        if self.state != State::Serving {
            return;
        }
        let standing = Standing {
            origin: &self.parts.origin,
            incarnation: self.ledger_chain.incarnation(),
            ledger_chain: self.ledger_chain.head(),
        };
        let Some(workspace) = self.workspaces.get_mut(&id).filter(|w| w.open.tree.size() > 0) else { return };
        let segment = workspace.open.number;
        self.parts.metrics.add("custody_segments_cut_total", 1);
        let row = workspace.cut(standing);
        group.change.put(Family::Cuts, numbered(id, segment), row.encode_to_vec());
        self.enqueue(QueueRow { workspace: Some(id.into()), segment, entry: Bytes::new() }, group);
        group.touched.insert(id);
    }

    fn enqueue(&mut self, row: QueueRow, group: &mut Group<'_>) {
        group.change.put(Family::Queue, self.queue_next.to_be_bytes(), row.encode_to_vec());
        self.queue_next += 1;
        group.cut = true;
    }

    fn cut_some(&mut self, workspace: Option<WorkspaceId>, group: &mut Group<'_>) {
        let ids = workspace.map_or_else(|| self.order.clone(), |id| vec![id]);
        for id in ids {
            self.cut(id, group);
        }
    }

    /// Cuts what is due, and looks at clock and disk.
    fn tick(&mut self, group: &mut Group<'_>) {
        let now = clock::now_us();
        if let Some(jump) = self.clock.look() {
            self.parts.alarms.raise(Alarm::ClockJumped, format!("by {} us", jump.by_us()));
            self.own.clock_jumped(jump);
        }
        let (age, heartbeat_age) = (self.parts.limits.cut_age_us, self.parts.limits.heartbeat_age_us);
        let due = |workspace: &Workspace| {
            let open = &workspace.open;
            let old = open.first_record_at.is_some_and(|at| now.saturating_sub(at) >= age || now < at);
            let heartbeats = open.times.is_some_and(|(first, _)| now.saturating_sub(first) >= heartbeat_age);
            old || heartbeats || (open.first_record_at.is_none() && open.closes)
        };
        let ids: Vec<_> = self.workspaces.values().filter(|w| due(w)).map(|w| w.id).collect();
        for id in ids {
            self.cut(id, group);
        }
    }

    fn sign_head(&self, workspace: &Workspace) -> (Head, Bytes) {
        let unfenced = !self.parts.fence.is_fresh();
        let head = workspace.head(self.standing(), self.head_key_id, self.parts.term, clock::now_us(), unfenced);
        let signed = head.sign(&self.parts.head_key).into();
        (head, signed)
    }

    fn answer(
        &mut self,
        receipts: BTreeMap<StreamId, Vec<wire::BatchInclusion>>,
        touched: &BTreeSet<WorkspaceId>,
    ) -> Result<(), StoreError> {
        let mut heads: HashMap<WorkspaceId, (Head, Bytes)> = HashMap::new();
        for id in touched {
            if let Some(workspace) = self.workspaces.get(id) {
                heads.insert(*id, self.sign_head(workspace));
            }
        }
        for (stream, mut batches) in receipts {
            let Some(id) = self.streams.get(&stream).map(|s| s.workspace) else { continue };
            let Some(workspace) = self.workspaces.get(&id) else { continue };
            let (head, signed) = heads.entry(id).or_insert_with(|| self.sign_head(workspace)).clone();
            for inclusion in &mut batches {
                workspace.complete_inclusion(&self.parts.store, inclusion)?;
            }
            self.send_receipt(stream, head, signed, batches)?;
        }
        Ok(())
    }

    /// Sends what the stream lacks of the chains, then the receipt.
    fn send_receipt(
        &mut self,
        id: StreamId,
        head: Head,
        signed: Bytes,
        batches: Vec<wire::BatchInclusion>,
    ) -> Result<(), StoreError> {
        self.send_statements(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let receipt = receipt(&self.parts.store, workspace, stream.head.as_ref(), signed, batches)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head = Some(head);
        }
        self.send(id, Message::Receipt(receipt.encode_to_vec().into()));
        Ok(())
    }

    /// Never waits: a stream that does not read what it asked for is closed.
    fn send(&mut self, id: StreamId, message: Message) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.outbox.try_send(wire::FromLedger { message: Some(message) }).is_err() {
            tracing::warn!(workspace = %stream.workspace, gateway = %stream.gateway, "the stream does not keep up: closed");
            self.streams.remove(&id);
        }
    }

    fn send_statements(&mut self, id: StreamId) -> Result<(), StoreError> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let chains = [
            (None, stream.ledger_statements, self.ledger_chain.head().count),
            (Some(workspace.id), stream.workspace_statements, workspace.chain.head().count),
        ];
        for (chain, from, to) in chains {
            for serial in from..to {
                let object = statements::stored(&self.parts.store, chain, serial)?;
                self.send(id, Message::Statement(object));
            }
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            (stream.ledger_statements, stream.workspace_statements) = (chains[0].2, chains[1].2);
        }
        Ok(())
    }

    fn open(&mut self, opening: Opening) -> Result<(), StoreError> {
        let Opening { stream, workspace: id, gateway, last_head, outbox, in_flight, reply, .. } = opening;
        // Heads are signed by whoever may extend the log, and by nobody else.
        if self.state != State::Serving {
            drop(reply.send(Err(format!("the ledger takes no batches: {}", self.state.name()))));
            return Ok(());
        }
        let Some(workspace) = self.workspaces.get(&id) else {
            drop(reply.send(Err("no such workspace (hint: ledger workspace add)".to_owned())));
            return Ok(());
        };
        let head = match last_head {
            None => None,
            Some(signed) => {
                if !self.is_ours(&signed) {
                    drop(reply.send(Err("the last head was not signed by this ledger".to_owned())));
                    return Ok(());
                }
                if !workspace.extends(&self.parts.store, &signed.head)? {
                    self.refuse_history(&signed.head, gateway);
                    drop(reply.send(Err("the ledger cannot extend the head that this gateway holds".to_owned())));
                    return Ok(());
                }
                Some(signed.head)
            }
        };
        let row = workspace.gateways.get(&gateway).and_then(|g| {
            let epoch = g.numbering.last_opened?;
            Some((epoch, g.rows.get(&epoch)?.clone()))
        });
        drop(reply.send(Ok(())));
        let entry = Stream {
            workspace: id,
            gateway,
            head,
            ledger_statements: opening.ledger_statements,
            workspace_statements: opening.workspace_statements,
            outbox,
        };
        // One stream for each gateway: the newest one is the one that lives.
        self.streams.retain(|_, other| (other.workspace, other.gateway) != (id, gateway));
        self.streams.insert(stream, entry);
        self.welcome(stream, row, in_flight)
    }

    fn welcome(
        &mut self,
        id: StreamId,
        row: Option<(Epoch, EpochRow)>,
        in_flight: (u32, u32),
    ) -> Result<(), StoreError> {
        self.send_statements(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let (head, signed) = self.sign_head(workspace);
        let receipt = receipt(&self.parts.store, workspace, stream.head.as_ref(), signed, Vec::new())?;
        let published = workspace.published;
        let workspace_id = workspace.id;
        let welcome = wire::Welcome {
            receipt: receipt.encode_to_vec().into(),
            epoch: row.as_ref().map_or_else(Bytes::new, |(epoch, _)| (*epoch).into()),
            next_batch: row.as_ref().map_or(0, |(_, row)| row.last_batch + 1),
            last_header_hash: row.map_or_else(Bytes::new, |(_, row)| row.last_header_hash),
            batches_in_flight_max: in_flight.0,
            bytes_in_flight_max: in_flight.1,
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head = Some(head);
        }
        self.send(id, Message::Welcome(welcome));
        // Everything up to the newest archived segment is archived: one receipt tells the gateway so.
        if let Some(segment) = published.checked_sub(1)
            && let Some(done) = statements::published_segment(&self.parts.store, workspace_id, segment)?
        {
            self.send_archived(id, &done);
        }
        Ok(())
    }

    fn is_ours(&self, signed: &SignedHead) -> bool {
        let key = self.ledger_chain.key(&signed.head.key_id).filter(|key| key.role == Role::Head);
        key.is_some_and(|key| signed.is_signed_by(key.public_key))
    }

    /// A gateway holds a head of ours that we cannot extend: history was lost here. Read-only until an incarnation.
    fn refuse_history(&mut self, head: &Head, gateway: GatewayId) {
        let text = format!(
            "gateway {gateway} holds segment {} size {} of workspace {}, which this ledger does not have",
            head.segment, head.size, head.workspace
        );
        self.parts.alarms.raise(Alarm::HeadNotExtendable, text.clone());
        if self.state == State::Serving {
            self.state = State::ReadOnly(text);
        }
    }

    fn tell_archived(&mut self, published: &[Published]) -> Result<(), StoreError> {
        for done in published {
            let Some(workspace) = self.workspaces.get_mut(&done.workspace) else { continue };
            workspace.take_published(done.segment);
            self.parts.metrics.add("custody_segments_archived_total", 1);
            let Some(workspace) = self.workspaces.get(&done.workspace) else { continue };
            let (head, signed) = self.sign_head(workspace);
            let of_workspace = |(id, stream): (&StreamId, &Stream)| (stream.workspace == done.workspace).then_some(*id);
            let streams: Vec<StreamId> = self.streams.iter().filter_map(of_workspace).collect();
            for id in streams {
                // The archived segment must lie in the history of the gateway's head: send a newer one if it does not.
                let behind =
                    self.streams.get(&id).is_some_and(|s| s.head.as_ref().is_none_or(|h| h.segment <= done.segment));
                if behind {
                    self.send_receipt(id, head.clone(), signed.clone(), Vec::new())?;
                }
                self.send_archived(id, done);
            }
        }
        Ok(())
    }

    fn send_archived(&mut self, id: StreamId, done: &Published) {
        let Some(stream) = self.streams.get(&id) else { return };
        let Some(head) = &stream.head else { return };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return };
        let receipt = {
            let view = self.parts.view.read().unwrap_or_else(PoisonError::into_inner);
            let Some(checkpoint) = &view.checkpoint else { return };
            let log_path = view.tree.inclusion(done.log_index, checkpoint.checkpoint.size);
            let history_path = workspace.history.inclusion(done.segment, head.segment);
            let (Some(log_path), Some(history_path)) = (log_path, history_path) else { return };
            wire::ArchivedReceipt {
                version: FORMAT_VERSION,
                seal: done.seal.clone(),
                log_index: done.log_index,
                log_path: to_path(&log_path),
                checkpoint: checkpoint.to_bytes().into(),
                history_size: head.segment,
                history_path: to_path(&history_path),
            }
        };
        self.send(id, Message::Archived(receipt.encode_to_vec().into()));
    }

    /// Chain head for a statement that comes next.
    pub fn chain_head(&self, workspace: Option<WorkspaceId>) -> Option<ChainHead> {
        match workspace {
            None => Some(self.ledger_chain.head()),
            Some(id) => Some(self.workspaces.get(&id)?.chain.head()),
        }
    }

    /// Era of the root that signs now.
    pub fn era(&self) -> u32 {
        self.roots.current()
    }

    fn enqueue_statement(&mut self, object: &Bytes, group: &mut Group<'_>) {
        let entry = encode_entry(log_entry::Entry::Statement(object.clone())).into();
        self.enqueue(QueueRow { workspace: None, segment: 0, entry }, group);
    }
}

#[cfg(test)]
mod tests;

enum Decided {
    Append,
    Again(LeafPlace),
    AgainNow(Box<wire::BatchInclusion>),
    Reject(Reject),
    Later(String),
    Equivocation { keep: bool },
}

fn gap(expected: u64) -> Reject {
    Reject {
        reason: RejectReason::Gap,
        detail: format!("batches before it are missing (hint: send from {expected} on)"),
        expected_batch: expected,
    }
}

fn update_row(
    row: &mut EpochRow,
    header: &custody::batch::Header,
    hash: [u8; 32],
    received_at: u64,
    commit_index: u64,
    opened: Option<&wire::Opened>,
) {
    if header.opens() {
        row.opened_at_index = commit_index;
        row.key_id = header.key_id.into();
    }
    if let Some(opened) = opened {
        row.always_on = opened.class() == wire::WriterClass::AlwaysOn;
        row.silence_us_max = opened.silence_us_max;
    }
    row.last_batch = header.batch_number;
    row.next_record = header.next_record();
    row.last_header_hash = Bytes::copy_from_slice(&hash);
    row.closed = header.close;
    row.heard_at = received_at;
}

/// A receipt under the newest head, consistent with the last one sent.
fn receipt(
    store: &Store,
    workspace: &Workspace,
    last: Option<&Head>,
    signed: Bytes,
    batches: Vec<wire::BatchInclusion>,
) -> Result<wire::Receipt, StoreError> {
    let consistency = match last {
        Some(head) => workspace.consistency(store, head.segment, head.size)?,
        None => None,
    };
    Ok(wire::Receipt { version: FORMAT_VERSION, signed_head: signed, consistency, batches })
}
