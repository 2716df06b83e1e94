//! A ledger in memory: takes batches and statements, cuts, publishes. It signs with fixed keys and keeps fixed time, and it
//! refuses nothing: hooks may make any batch or statement say what it should not.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use custody::{
    batch::{Header, encode_signed, seal_header},
    hash::header_hash,
    head::{Head, history_leaf},
    id::{HeaderHash, RootHash, WorkspaceId},
    log::encode_entry,
    merkle::{HistoryTree, SegmentTree, Tree},
    note::{Checkpoint, cosign},
    segment::{Leaf, SegmentHeader},
    statement::ChainHead,
    wire::{self, DropReason, LeafKind, OpeningReason, Role, log_entry},
};

use super::{keys, records, render};

mod statements;

/// A leaf as it was committed.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What the ledger gave it.
    pub leaf: Leaf,
    /// `SignedBatch` or `SignedStatement`.
    pub signed: Bytes,
}

impl Committed {
    fn read(&self) -> Option<custody::segment::Entry> {
        let bytes = custody::segment::encode_entry(&self.leaf, self.signed.clone());
        custody::segment::Entry::parse(bytes.into()).ok()
    }

    /// How many positions it takes; none for what cannot be read.
    pub fn records(&self) -> u64 {
        self.read().map_or(0, |entry| entry.records())
    }

    /// Hash in the segment's tree; zeros for what cannot be read.
    pub fn hash(&self) -> [u8; 32] {
        self.read().map_or([0; 32], |entry| entry.leaf_hash())
    }
}

/// A segment that was cut.
#[derive(Clone, Debug)]
pub struct Segment {
    /// As its object begins.
    pub header: SegmentHeader,
    /// In order.
    pub leaves: Vec<Committed>,
    /// When it was sealed.
    pub sealed_at: u64,
    /// Newest cosigned checkpoint then.
    pub not_before: (u64, [u8; 32]),
}

/// A workspace of the ledger.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// How far its chain has come.
    pub chain: ChainHead,
    /// Objects of its statements by serial.
    pub statements: Vec<Bytes>,
    /// What was cut.
    pub segments: Vec<Segment>,
    /// Leaves of the segment that fills.
    pub open: Vec<Committed>,
    history: Tree<HistoryTree>,
    first_position: u64,
    next_position: u64,
}

impl Workspace {
    /// Leaves positions out: the next batch stands further on.
    pub fn skip_positions(&mut self, count: u64) {
        (self.first_position, self.next_position) = (self.first_position + count, self.next_position + count);
    }

    /// Computes the history anew from the segments as they are.
    pub fn rebuild_history(&mut self) {
        self.history = Tree::default();
        for (number, segment) in (0_u64..).zip(&self.segments) {
            let tree: Tree<SegmentTree> = segment.leaves.iter().map(Committed::hash).collect();
            self.history.push(history_leaf(number, tree.size(), &tree.root()));
        }
    }

    /// Opens the last segment again, as if it had not been cut; gives the chain's head that held in it.
    pub fn uncut(&mut self) -> Option<ChainHead> {
        let segment = self.segments.pop()?;
        self.first_position = segment.header.first_position;
        self.open = segment.leaves;
        self.rebuild_history();
        Some(segment.header.workspace_chain)
    }
}

/// An entry of the log, as far as it does not follow from segments.
#[derive(Clone, Debug)]
pub enum LogItem {
    /// These bytes.
    Entry(Vec<u8>),
    /// The seal of a segment.
    Seal(WorkspaceId, u64),
}

/// A checkpoint that was published.
#[derive(Clone, Debug)]
pub struct Publication {
    /// What it said.
    pub checkpoint: Checkpoint,
    /// Label of the log key that signed.
    pub key: &'static str,
    /// Cosignature lines by witness.
    pub cosignatures: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
struct EpochState {
    headers: Vec<(HeaderHash, Header)>,
    next_record: u64,
}

#[derive(Clone, Debug, Default)]
struct Writer {
    epochs: BTreeMap<String, EpochState>,
    last_epoch: Option<String>,
    head: Bytes,
}

/// What a gateway sends, before it is numbered and signed.
#[derive(Clone, Debug)]
pub struct Batch {
    gateway: String,
    key: String,
    epoch: String,
    records: Vec<Bytes>,
    dropped: Option<(u64, DropReason)>,
    reason: Option<OpeningReason>,
    close: bool,
    always_on: bool,
}

impl Batch {
    /// Of this gateway's epoch, signed with the key of the gateway's own name.
    pub fn new(gateway: &str, epoch: &str, records: Vec<Bytes>) -> Self {
        Self {
            gateway: gateway.to_owned(),
            key: gateway.to_owned(),
            epoch: epoch.to_owned(),
            records,
            dropped: None,
            reason: None,
            close: false,
            always_on: true,
        }
    }

    /// Signed with another key.
    #[must_use]
    pub fn key(mut self, label: &str) -> Self {
        label.clone_into(&mut self.key);
        self
    }

    /// Ends its epoch.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.close = true;
        self
    }

    /// Declares drops before its first record.
    #[must_use]
    pub fn dropped(mut self, count: u64, reason: DropReason) -> Self {
        self.dropped = Some((count, reason));
        self
    }

    /// Opens its epoch without naming the one before.
    #[must_use]
    pub fn reason(mut self, reason: OpeningReason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// Opens its epoch as a writer that may sleep.
    #[must_use]
    pub fn intermittent(mut self) -> Self {
        self.always_on = false;
        self
    }
}

/// Changes a batch before its gateway signs it.
pub type BatchHook = Box<dyn Fn(&mut Header, &mut Vec<Bytes>) + Send + Sync>;
/// Changes a statement before it is signed; gives the label of another key to sign with, if any.
pub type StatementHook = Box<dyn Fn(&mut wire::Statement) -> Option<&'static str> + Send + Sync>;
/// Goes on with the story where it ends, before the last checkpoint.
pub type Sequel = Box<dyn Fn(&mut Ledger) + Send + Sync>;

/// Where a story lies although its signers sign: by label of batch (`alpha/g1/e1/0`) or statement (`alpha/3`, `keys/2`).
#[derive(Default)]
pub struct Hooks {
    /// Batches by label.
    pub batches: BTreeMap<String, BatchHook>,
    /// Statements by label.
    pub statements: BTreeMap<String, StatementHook>,
    /// Batches that the ledger never takes, although their gateway goes on.
    pub lost: Vec<String>,
    /// What happens after the end.
    pub sequel: Option<Sequel>,
}

/// The ledger.
#[derive(Clone)]
pub struct Ledger {
    /// Name of the log.
    pub origin: String,
    /// Entries of the log.
    pub log: Vec<LogItem>,
    /// In the order of creation.
    pub workspaces: Vec<Workspace>,
    /// Statements on the ledger's own keys.
    pub statements: Vec<Bytes>,
    /// Checkpoints in order.
    pub publications: Vec<Publication>,
    /// Labels of batches with workspace, segment and leaf.
    pub labels: BTreeMap<String, (WorkspaceId, u64, usize)>,
    hooks: Arc<Hooks>,
    writers: BTreeMap<(WorkspaceId, String), Writer>,
    /// How far the chain of the ledger's own keys has come.
    pub chain: ChainHead,
    clock: u64,
    /// Number of the last start.
    pub term: u64,
    /// Number of the last recovery.
    pub incarnation: u64,
    head_key: &'static str,
    log_key: &'static str,
    record_key: &'static str,
    root: (u32, &'static str),
}

impl Ledger {
    /// An empty ledger at this time.
    pub fn new(origin: &str, clock: u64, hooks: Hooks) -> Self {
        Self {
            origin: origin.to_owned(),
            log: Vec::new(),
            workspaces: Vec::new(),
            statements: Vec::new(),
            publications: Vec::new(),
            labels: BTreeMap::new(),
            hooks: Arc::new(hooks),
            writers: BTreeMap::new(),
            chain: ChainHead::GENESIS,
            clock,
            term: 0,
            incarnation: 0,
            head_key: "head-1",
            log_key: "log-1",
            record_key: "record-1",
            root: (1, "root-1"),
        }
    }

    /// Goes on as a hook says.
    pub fn follow_sequel(&mut self) {
        let hooks = Arc::clone(&self.hooks);
        if let Some(sequel) = &hooks.sequel {
            sequel(self);
        }
    }

    /// Time now.
    pub fn now(&self) -> u64 {
        self.clock
    }

    /// Lets time pass, in microseconds.
    pub fn wait(&mut self, us: u64) {
        self.clock += us;
    }

    /// Sets the clock, also back.
    pub fn set_clock(&mut self, us: u64) {
        self.clock = us;
    }

    /// Signs heads with another key from now on.
    pub fn use_head_key(&mut self, label: &'static str) {
        self.head_key = label;
    }

    /// Signs statements with the root of another era from now on.
    pub fn use_root(&mut self, era: u32, label: &'static str) {
        self.root = (era, label);
    }

    /// The workspace of this name.
    ///
    /// # Panics
    /// If it was not created.
    pub fn workspace(&mut self, name: &str) -> &mut Workspace {
        let id = keys::workspace(name);
        self.workspaces.iter_mut().find(|w| w.id == id).expect("the story creates it first")
    }

    /// The last head that a gateway holds: a `SignedHead`.
    pub fn held_head(&self, workspace: &str, gateway: &str) -> Bytes {
        let key = (keys::workspace(workspace), gateway.to_owned());
        self.writers.get(&key).map(|writer| writer.head.clone()).unwrap_or_default()
    }

    /// A start of the ledger.
    pub fn start_term(&mut self) {
        self.term += 1;
        self.clock += 1_000;
        let start = wire::TermStart { term: self.term, incarnation: self.incarnation, at: self.clock };
        self.log.push(LogItem::Entry(encode_entry(log_entry::Entry::TermStart(start))));
    }

    /// Takes a batch: the gateway numbers and signs it, the ledger appends it and answers with a head.
    pub fn submit_batch(&mut self, workspace: &str, batch: Batch) {
        self.clock += 1_500_000;
        let id = keys::workspace(workspace);
        let at = self.clock - 20_000;
        let writer = self.writers.entry((id, batch.gateway.clone())).or_default();
        let opens = !writer.epochs.contains_key(&batch.epoch);
        let before = writer.last_epoch.as_ref().and_then(|epoch| writer.epochs.get(epoch));
        let last_of_before = before.and_then(|epoch| epoch.headers.last()).map(|(hash, _)| *hash);
        let epoch = writer.epochs.entry(batch.epoch.clone()).or_default();
        let (dropped, drop_reason) = batch.dropped.map_or((0, None), |(count, reason)| (count, Some(reason)));
        let mut records = batch.records;
        let (previous, opening_reason) = match (opens, batch.reason, last_of_before) {
            (false, ..) => (epoch.headers.last().map_or(HeaderHash::ZERO, |(hash, _)| *hash), None),
            (true, None, Some(last)) => (last, None),
            (true, reason, _) => (HeaderHash::ZERO, Some(reason.unwrap_or(OpeningReason::First))),
        };
        if opens {
            records.insert(0, records::opened(at, batch.always_on));
            writer.last_epoch = Some(batch.epoch.clone());
        }
        let role = if batch.key == self.record_key { Role::Record } else { Role::Gateway };
        let number = epoch.headers.len() as u64;
        let label = format!("{workspace}/{}/{}/{number}", batch.gateway, batch.epoch);
        let mut header = Header {
            origin: self.origin.clone(),
            workspace: id,
            gateway: keys::gateway(&batch.gateway),
            key_id: keys::id(&batch.key, role),
            epoch: keys::epoch(&batch.epoch),
            batch_number: number,
            first_record: epoch.next_record + dropped,
            record_count: 0,
            previous,
            opening_reason,
            batch_root: RootHash::ZERO,
            last_head: writer.head.clone(),
            dropped,
            drop_reason,
            heartbeat: records.is_empty() && !batch.close,
            close: batch.close,
            created_at: at,
        };
        if let Some(hook) = self.hooks.batches.get(&label) {
            hook(&mut header, &mut records);
        }
        let seed = keys::seed(&format!("seed {label}"));
        seal_header(&mut header, &seed, &records);
        let bytes = header.encode();
        let signed = Bytes::from(encode_signed(&bytes, &keys::signing(&batch.key), &seed, &records));
        epoch.next_record = header.next_record();
        epoch.headers.push((header_hash(&bytes), header));
        if self.hooks.lost.contains(&label) {
            return;
        }
        self.append(workspace, LeafKind::Batch, signed);
        let place = self.workspace(workspace);
        let place = (id, place.segments.len() as u64, place.open.len() - 1);
        self.labels.insert(label, place);
        let head = self.sign_head(workspace);
        if let Some(writer) = self.writers.get_mut(&(id, batch.gateway)) {
            writer.head = head;
        }
    }

    /// A gateway signs other records under a number that it used; the ledger keeps the copy.
    pub fn equivocate(&mut self, workspace: &str, gateway: &str, epoch: &str, number: usize, records: &[Bytes]) {
        self.clock += 1_500_000;
        let id = keys::workspace(workspace);
        let writer = self.writers.get(&(id, gateway.to_owned()));
        let used = writer.and_then(|w| w.epochs.get(epoch)).and_then(|epoch| epoch.headers.get(number));
        let Some((_, header)) = used else { return };
        let mut header = header.clone();
        let seed = keys::seed(&format!("seed again {workspace}/{gateway}/{epoch}/{number}"));
        seal_header(&mut header, &seed, records);
        let signed = encode_signed(&header.encode(), &keys::signing(gateway), &seed, records);
        self.append(workspace, LeafKind::Equivocation, signed.into());
    }

    /// Takes again what was lost, as its gateway sends it once more; no head goes back.
    pub fn replay(&mut self, workspace: &str, lost: &Committed) {
        self.clock += 1_500_000;
        self.append(workspace, LeafKind::Batch, lost.signed.clone());
    }

    /// Takes the last leaf back out of the segment that fills.
    pub fn take_back(&mut self, workspace: &str) -> Option<Committed> {
        let place = self.workspace(workspace);
        let last = place.open.pop()?;
        place.next_position = last.leaf.first_position;
        Some(last)
    }

    /// The machine is lost, and with it what was not cut.
    pub fn lose(&mut self, workspace: &str) -> Vec<Committed> {
        let place = self.workspace(workspace);
        place.next_position = place.first_position;
        let (id, segment) = (place.id, place.segments.len() as u64);
        let lost = std::mem::take(&mut place.open);
        self.labels.retain(|_, at| (at.0, at.1) != (id, segment));
        lost
    }

    /// Appends a leaf to the segment that fills.
    pub fn append(&mut self, workspace: &str, kind: LeafKind, signed: Bytes) {
        let (term, received_at) = (self.term, self.clock);
        let place = self.workspace(workspace);
        let leaf = Leaf { kind, first_position: place.next_position, received_at, term };
        let committed = Committed { leaf, signed };
        place.next_position += committed.records();
        place.open.push(committed);
    }

    /// Signs the open head of a workspace: bytes of a `SignedHead`.
    pub fn sign_head(&mut self, workspace: &str) -> Bytes {
        let (clock, term, incarnation, chain) = (self.clock, self.term, self.incarnation, self.chain);
        let (label, origin) = (self.head_key, self.origin.clone());
        let place = self.workspace(workspace);
        let tree: Tree<SegmentTree> = place.open.iter().map(Committed::hash).collect();
        let head = Head {
            origin,
            workspace: place.id,
            key_id: keys::id(label, Role::Head),
            incarnation,
            term,
            segment: place.segments.len() as u64,
            size: tree.size(),
            root: tree.root(),
            history_root: place.history.root(),
            ledger_chain: chain,
            workspace_chain: place.chain,
            at: clock,
            unfenced: false,
        };
        head.sign(&keys::signing(label)).into()
    }

    /// Cuts a workspace's open segment; nothing if it is empty.
    pub fn cut(&mut self, workspace: WorkspaceId) {
        self.clock += 200_000;
        let cosigned = self.publications.iter().rev().find(|p| !p.cosignatures.is_empty());
        let not_before = cosigned.map_or((0, [0; 32]), |publication| {
            let lines: String = publication.cosignatures.iter().map(|(_, line)| line.as_str()).collect();
            (publication.checkpoint.size, custody::hash::sha256(&[lines.as_bytes()]))
        });
        let (sealed_at, incarnation, ledger_chain) = (self.clock, self.incarnation, self.chain);
        let Some(place) = self.workspaces.iter_mut().find(|w| w.id == workspace && !w.open.is_empty()) else { return };
        let leaves = std::mem::take(&mut place.open);
        let tree: Tree<SegmentTree> = leaves.iter().map(Committed::hash).collect();
        let segment = place.segments.len() as u64;
        place.history.push(history_leaf(segment, tree.size(), &tree.root()));
        let header = SegmentHeader {
            origin: self.origin.clone(),
            workspace,
            segment,
            incarnation,
            first_position: place.first_position,
            ledger_chain,
            workspace_chain: place.chain,
        };
        place.first_position = place.next_position;
        place.segments.push(Segment { header, leaves, sealed_at, not_before });
        self.log.push(LogItem::Seal(workspace, segment));
    }

    /// Cuts every workspace that has something to cut.
    pub fn cut_all(&mut self) {
        let ids: Vec<_> = self.workspaces.iter().map(|w| w.id).collect();
        for id in ids {
            self.cut(id);
        }
    }

    /// Publishes a checkpoint of the log as it is, cosigned by the first `witnesses`.
    pub fn publish(&mut self, witnesses: usize) {
        self.clock += 300_000;
        let rendered = render::render(self, &mut render::Truth);
        let size = self.log.len() as u64;
        let checkpoint =
            Checkpoint { origin: self.origin.clone(), size, root: rendered.root.unwrap_or(RootHash::ZERO) };
        let time = self.clock / 1_000_000 + 2;
        let line = |name: &str| (name.to_owned(), cosign(&checkpoint, name, &keys::signing(name), time).text());
        let cosignatures = keys::WITNESSES.into_iter().take(witnesses).map(line).collect();
        self.publications.push(Publication { checkpoint, key: self.log_key, cosignatures });
    }
}

/// A chain's head after one more object.
pub fn after(chain: ChainHead, object: &[u8]) -> ChainHead {
    ChainHead { count: chain.count + 1, hash: custody::hash::object_hash(object) }
}
