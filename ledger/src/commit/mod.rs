//! The writer: one thread that gives positions, writes with fsync, signs heads and answers.
//!
//! What must hold: nothing is answered before [`Store::commit`] returned; a write that fails poisons the writer, whose
//! memory may then be ahead of the disk; heads are signed for what is on disk and for nothing else; a cut and whatever
//! caused it are one write. Requests wait in one bounded queue; whatever is there when a write begins shares it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use bytes::Bytes;
use custody::{
    batch::Submitted,
    id::{GatewayId, KeyId, WorkspaceId},
    key,
    statement::{Chain, ChainHead, Roots},
    wire::{self, Role, from_ledger::Message},
};
use ed25519_dalek::SigningKey;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::{
    admit::{Held, Shown},
    alarm::{Alarm, Alarms},
    clock, failpoint,
    log_view::{FenceState, LogView, Published, report},
    metrics::Metrics,
    own_keys::OwnKeys,
    store::{Family, Halves, Notes, Store, StoreError, StoreMemory},
    tail::{CommittedBatch, News, Tail},
    workspace::{Standing, Trees, Workspace},
};

mod batches;
mod cuts;
mod equivocations;
mod held;
mod limits;
#[cfg(test)]
mod old_tests;
mod on_record;
mod own;
mod receipts;
mod statements;
mod streams;
#[cfg(test)]
mod tests;

pub use held::KnownHeads;
pub use limits::Limits;
pub use on_record::{OnRecord, Untaken, put_on_record};
pub use own::{OwnWriter, number};
pub use statements::{StatementState, ledger_chain, log_index_key, stored as stored_statement};

/// Requests that may wait for the writer: some thousand batches, bounded again in bytes by each stream.
pub const REQUESTS_MAX: usize = 1_024;
/// Requests that share one write: more would make the first wait for the last.
const GROUP_REQUESTS_MAX: usize = 512;
/// Bytes of batches that share one write: a few milliseconds of disk.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// Names a stream within this process.
pub type StreamId = u64;

/// What a batch takes until it is answered: one of its stream's batches, its bytes of the stream's, and of all streams'.
pub type Room = [OwnedSemaphorePermit; 3];

/// Something for the writer to do.
pub enum Request {
    /// A gateway has come.
    Open(Box<Opening>),
    /// It has the statements of both chains that it was to be sent.
    Greeted(StreamId),
    /// It has gone.
    Close(StreamId),
    /// A batch, and the room that it takes until it is answered.
    Batch(StreamId, Box<Arrived>, Room),
    /// A `SignedStatement`.
    Statement(Bytes, oneshot::Sender<Result<StatementState, String>>),
    /// Cut this workspace's segment, or all; answered with the queue number that must be published.
    Cut(Option<WorkspaceId>, oneshot::Sender<u64>),
    /// Segments were archived.
    Published(Vec<Published>),
    /// An invariant of sealing or publishing broke, in words; the alarm was raised.
    Poison(String),
    /// A record of the ledger's own.
    Record(Box<wire::record::Kind>),
    /// Rows and the records that tell of them.
    OnRecord(Box<OnRecord>),
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

/// A batch as far as a stream can look at it.
pub struct Arrived {
    /// It passed [`crate::admit::check`].
    pub batch: Submitted,
    /// What its rows for questions follow from.
    pub notes: Notes,
    /// The forensic receipts that it shows.
    pub receipts: Vec<Shown>,
    /// The head that it holds, if this stream was not sent it.
    pub held: Option<Held>,
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
    pub last_head: Option<Box<Held>>,
    /// Where answers go: bounded, and a stream that does not read is closed.
    pub outbox: mpsc::Sender<wire::FromLedger>,
    /// Dropped when the writer closes the stream.
    pub alive: watch::Sender<()>,
    /// Empty; shared with the stream's task.
    pub known: KnownHeads,
    /// Limits, for the welcome.
    pub in_flight: (u32, u32),
    /// Whether it was opened, and how many statements of both chains it must be sent before its welcome; why if not.
    pub reply: oneshot::Sender<Result<[u64; 2], Unopened>>,
}

/// Why a stream was not opened, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// Not now: the ledger takes nothing as it is, and the same again may go well later.
    Later(String),
    /// Somebody must do something first.
    Refused(String),
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
pub type Chains = Arc<RwLock<KnownChains>>;

/// The ledger's key chain and every workspace's.
#[derive(Clone, Debug, Default)]
pub struct KnownChains {
    /// The ledger's; `None` before the writer has read it.
    pub ledger: Option<Arc<Chain>>,
    /// By workspace.
    pub workspaces: HashMap<WorkspaceId, Arc<Chain>>,
}

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
    /// These and the log's: none of them is ended while this process signs with it.
    pub own_keys: OwnKeys,
    /// Number of this start.
    pub term: u64,
    /// Shared with ingest.
    pub chains: Chains,
    /// Shared with the index, and with all who ask.
    pub tail: Arc<Tail>,
    /// Shared with the publisher.
    pub view: Arc<RwLock<LogView>>,
    /// Shared with the publisher.
    pub fence: Arc<FenceState>,
    /// Wakes the publisher.
    pub publisher: mpsc::Sender<()>,
    /// Number of queue rows that are published.
    pub mark: watch::Receiver<u64>,
    /// Raised here.
    pub alarms: Alarms,
    /// Counted here.
    pub metrics: Metrics,
    /// When segments are cut.
    pub limits: Limits,
    /// The audit policy's roots.
    pub roots: Roots,
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
    streams: HashMap<StreamId, streams::Stream>,
    trees: Trees,
    own: OwnWriter,
    equivocations: equivocations::Counts,
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
    /// Statements of this group, by their keys in the database, with their queue numbers.
    statements: HashMap<[u8; 24], (Bytes, u64)>,
    receipts: BTreeMap<StreamId, Vec<wire::BatchInclusion>>,
    /// Digests of forensic receipts that this group shows for the first time.
    shown: HashSet<Vec<u8>>,
    rejections: Vec<(StreamId, Message)>,
    touched: BTreeSet<WorkspaceId>,
    /// Batches with records.
    batches: Vec<CommittedBatch>,
    /// Calls that begin or end.
    halves: Halves,
    /// Given back when the group is answered.
    room: Vec<Room>,
    cut: bool,
    /// A statement took effect.
    chains: bool,
    answers: Vec<Answer>,
    /// Requests that are served when the write is done.
    after: Vec<Request>,
}

impl<'a> Group<'a> {
    fn new(change: crate::store::Change<'a>) -> Self {
        Self {
            change,
            places: HashMap::new(),
            statements: HashMap::new(),
            receipts: BTreeMap::new(),
            shown: HashSet::new(),
            rejections: Vec::new(),
            touched: BTreeSet::new(),
            batches: Vec::new(),
            halves: Halves::default(),
            room: Vec::new(),
            cut: false,
            chains: false,
            answers: Vec::new(),
            after: Vec::new(),
        }
    }
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
        let commit_index = parts.store.next_number(Family::Commits)?.unwrap_or(0);
        let mark = parts.store.number("queue_mark")?.unwrap_or(0);
        let queue_next = parts.store.next_number(Family::Queue)?.unwrap_or(mark);
        let head_key_id = key::public(&parts.head_key).id(Role::Head);
        let trees = Trees::new(parts.limits.leaves_read_of_one, parts.limits.leaves_read_of_all);
        let own = OwnWriter::load(&parts.record_key, &ledger_chain, &workspaces);
        let mut writer = Self {
            parts,
            state: State::Serving,
            head_key_id,
            ledger_chain: Arc::new(ledger_chain),
            roots,
            workspaces,
            order,
            streams: HashMap::new(),
            trees,
            own,
            equivocations: equivocations::Counts::default(),
            commit_index,
            queue_next,
            disk_low: false,
            clock: clock::Watch::new(),
            ended: false,
        };
        writer.recall_lost_history()?;
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

    /// What the store holds in memory.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn store_memory(&self) -> Result<StoreMemory, StoreError> {
        self.parts.store.memory()
    }

    /// Trees of cut segments.
    pub fn trees(&self) -> &Trees {
        &self.trees
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
        let workspaces = self.workspaces.iter().map(|(id, workspace)| (*id, Arc::clone(&workspace.chain))).collect();
        let chains = KnownChains { ledger: Some(Arc::clone(&self.ledger_chain)), workspaces };
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
                bytes += if let Request::Batch(_, arrived, _) = &next { arrived.batch.bytes.len() } else { 0 };
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
        let mut group = Group::new(store.change());
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
        let Group { change, receipts, rejections, touched, batches, halves, cut, chains, answers, after, room, .. } =
            group;
        if !change.is_empty() {
            // A crash before this line returns loses what nobody was told; after it, what everybody may be told.
            let began = Instant::now();
            if let Err(why) = store.commit(change) {
                self.poison(&why);
                return;
            }
            self.parts.metrics.add("custody_commits_total", 1);
            self.parts.metrics.observe("custody_commit_seconds", began.elapsed());
            // Before anybody is told: whoever was answered finds it.
            self.parts.tail.publish(News { batches, begun: halves.begun, ended: halves.ended }, self.commit_index);
        }
        if cut {
            for id in &touched {
                self.workspaces.get_mut(id).into_iter().for_each(Workspace::forget_epochs);
            }
        }
        failpoint::hit("commit-before-answer");
        if chains {
            // Before any head that names the new statements: a gateway may hold it in its very next batch.
            self.share_chains();
        }
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
        self.trees.settle();
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
        if why.is_no_room() {
            self.parts.alarms.raise(Alarm::DiskFull, "a write found no room: give it room, and start the ledger again");
        }
        self.state = State::Poisoned(text);
        self.streams.clear();
    }

    fn decide(&mut self, request: Request, group: &mut Group<'_>) -> Result<(), StoreError> {
        match request {
            Request::Open(_)
            | Request::Greeted(_)
            | Request::Close(_)
            | Request::Published(_)
            | Request::Inspect(_) => group.after.push(request),
            Request::Batch(stream, arrived, room) => {
                group.room.push(room);
                self.take_batch(stream, *arrived, group)?;
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
            Request::OnRecord(told) => self.take_on_record(*told, group)?,
            Request::Poison(why) => {
                self.state = State::Poisoned(why);
                self.streams.clear();
            }
            Request::Tick { disk_low } => {
                if disk_low && !self.disk_low {
                    self.parts.alarms.raise(Alarm::DiskFull, "batches are refused until there is room");
                }
                self.disk_low = disk_low;
                self.parts.store.keep_synced()?;
                self.tell_equivocations(false, group)?;
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
            Request::Greeted(stream) => self.welcome(stream)?,
            Request::Close(stream) => drop(self.streams.remove(&stream)),
            Request::Published(published) => self.tell_archived(&published)?,
            Request::Inspect(look) => look(self),
            _ => {}
        }
        Ok(())
    }

    fn drain(&mut self, reply: oneshot::Sender<u64>, group: &mut Group<'_>) -> Result<(), StoreError> {
        if self.state == State::Serving {
            self.tell_equivocations(true, group)?;
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
}
