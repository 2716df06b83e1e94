//! One workspace in memory: its open segment, history, numbering and key chain, and the proofs they give.
//!
//! What must hold: this state is what the store holds after the last synced write; whoever changes one changes the other in
//! the same group, and a failed write poisons the writer, so that a state that ran ahead is never used.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    batch::Numbering,
    head::{Head, history_leaf, to_path},
    id::{Epoch, GatewayId, ObjectHash, RootHash, WorkspaceId},
    merkle::{HistoryTree, SegmentTree, Tree},
    segment::{Entry, Seal},
    statement::{Chain, ChainHead},
    wire::{self, LeafKind},
};
use prost::Message as _;

use crate::store::{CutRow, EpochRow, Family, Store, StoreError, numbered, numbering};

mod trees;

pub use trees::{Trees, Unread, read as read_tree};

/// Microseconds of a UTC day.
pub const DAY_US: u64 = 86_400_000_000;

/// The segment that is filling.
#[derive(Clone, Debug)]
pub struct Open {
    /// Its number.
    pub number: u64,
    /// Position of its first record.
    pub first_position: u64,
    /// Its leaves so far.
    pub tree: Tree<SegmentTree>,
    /// Uncompressed bytes of its entries.
    pub bytes: u64,
    /// Batches, equivocations, statements.
    pub counts: [u64; 3],
    /// Least and greatest received-at.
    pub times: Option<(u64, u64)>,
    /// Received-at of its first record: the cut is due some minutes later.
    pub first_record_at: Option<u64>,
    /// Epochs with a batch in it.
    pub touched: BTreeSet<(GatewayId, Epoch)>,
    /// A batch with `close` is in it.
    pub closes: bool,
}

impl Open {
    fn new(number: u64, first_position: u64) -> Self {
        Self {
            number,
            first_position,
            tree: Tree::default(),
            bytes: 0,
            counts: [0; 3],
            times: None,
            first_record_at: None,
            touched: BTreeSet::new(),
            closes: false,
        }
    }

    /// Takes note of a leaf.
    pub fn take(&mut self, entry: &Entry, bytes: usize) {
        self.tree.push(entry.leaf_hash());
        self.bytes += bytes as u64;
        let at = entry.leaf.received_at;
        self.times = Some(self.times.map_or((at, at), |(least, greatest)| (least.min(at), greatest.max(at))));
        let kind = match entry.leaf.kind {
            LeafKind::Equivocation => 1,
            LeafKind::Statement => 2,
            _ => 0,
        };
        self.counts[kind] += 1;
        if entry.records() > 0 && self.first_record_at.is_none() {
            self.first_record_at = Some(at);
        }
        if let (custody::segment::Content::Batch(batch), LeafKind::Batch) = (&entry.content, entry.leaf.kind) {
            self.touched.insert((batch.header.gateway, batch.header.epoch));
            self.closes |= batch.header.close;
        }
    }
}

/// A gateway's epochs here: those that are open, the last one, and those that the open segment's roster will name. Any other is
/// closed, and in the store alone: a gateway that opens epochs without end fills no memory.
#[derive(Clone, Debug, Default)]
pub struct Gateway {
    /// Which batch may come next.
    pub numbering: Numbering,
    /// What is stored.
    pub rows: BTreeMap<Epoch, EpochRow>,
}

/// Final head of a cut segment, and what stood in its seal besides.
#[derive(Clone, Copy, Debug)]
struct Final {
    size: u64,
    root: RootHash,
    incarnation: u64,
    /// Statements of the ledger's chain that held within it, and of the workspace's.
    statements: [u64; 2],
}

/// Where a head lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// On this history.
    Here,
    /// In a segment of a later incarnation: a verifier lists it and says no more.
    Superseded,
    /// Of an earlier incarnation, in a segment that no later one has reached, or under keys that were lost: no batch may hold
    /// it.
    Beyond,
    /// Nowhere.
    Nowhere,
}

/// A workspace.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its keys.
    pub chain: Arc<Chain>,
    /// What is filling.
    pub open: Open,
    /// Position that the next record gets.
    pub next_position: u64,
    /// Final heads of the cut segments.
    pub history: Tree<HistoryTree>,
    finals: Vec<Final>,
    /// UTC day of the last cut segment's first leaf.
    last_day: Option<u64>,
    /// By gateway.
    pub gateways: BTreeMap<GatewayId, Gateway>,
    /// Segments that are archived and under a checkpoint.
    pub published: u64,
    /// Uncompressed bytes of each segment that is cut and not archived.
    unarchived: VecDeque<(u64, u64)>,
}

impl Final {
    fn of(seal: &Seal) -> Self {
        Self {
            size: seal.size,
            root: seal.root,
            incarnation: seal.incarnation,
            statements: [seal.ledger_chain.count, seal.workspace_chain.count],
        }
    }
}

/// What stands besides the tree in heads and seals.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// Name of the log.
    pub origin: &'a str,
    /// Number of the incarnation.
    pub incarnation: u64,
    /// The ledger's key chain.
    pub ledger_chain: ChainHead,
}

impl Workspace {
    /// A workspace without a leaf.
    pub fn new(id: WorkspaceId, chain: Chain) -> Self {
        Self {
            id,
            chain: Arc::new(chain),
            open: Open::new(0, 0),
            next_position: 0,
            history: Tree::default(),
            finals: Vec::new(),
            last_day: None,
            gateways: BTreeMap::new(),
            published: 0,
            unarchived: VecDeque::new(),
        }
    }

    /// Reads what the store holds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn load(store: &Store, id: WorkspaceId, chain: Chain) -> Result<Self, StoreError> {
        let mut workspace = Self::new(id, chain);
        for step in store.scan(Family::Cuts, &id.0, &[]) {
            let (_, value) = step?;
            let row = CutRow::decode(value).map_err(|_| StoreError::Damaged("a cut"))?;
            let seal = Seal::parse(&row.seal).map_err(|_| StoreError::Damaged("a cut"))?;
            workspace.finals.push(Final::of(&seal));
            workspace.history.push(history_leaf(seal.segment, seal.size, &seal.root));
            workspace.last_day = Some(seal.first_received_at / DAY_US);
            workspace.next_position = seal.next_position();
            workspace.open = Open::new(seal.segment + 1, seal.next_position());
        }
        for (gateway, epoch, row) in store.epochs(id)? {
            workspace.gateways.entry(gateway).or_default().rows.insert(epoch, row);
        }
        for gateway in workspace.gateways.values_mut() {
            gateway.numbering = numbering(&gateway.rows)?;
        }
        let number = workspace.open.number;
        for step in store.scan(Family::Entries, &numbered(id, number), &[]) {
            let (_, value) = step?;
            let length = value.len();
            let entry = Entry::parse(value).map_err(|_| StoreError::Damaged("a leaf"))?;
            workspace.next_position += entry.records();
            workspace.open.take(&entry, length);
        }
        workspace.forget_epochs();
        Ok(workspace)
    }

    /// The open head as it is now.
    pub fn head(&self, standing: Standing<'_>, key_id: custody::id::KeyId, term: u64, at: u64, unfenced: bool) -> Head {
        Head {
            origin: standing.origin.to_owned(),
            workspace: self.id,
            key_id,
            incarnation: standing.incarnation,
            term,
            segment: self.open.number,
            size: self.open.tree.size(),
            root: self.open.tree.root(),
            history_root: self.history.root(),
            ledger_chain: standing.ledger_chain,
            workspace_chain: self.chain.head(),
            at,
            unfenced,
        }
    }

    /// Closes the open segment: what its seal will say, and its roster; and its tree. The next segment is open afterwards.
    ///
    /// Call with at least one leaf.
    pub fn cut(&mut self, standing: Standing<'_>) -> (CutRow, Tree<SegmentTree>) {
        let (first_at, last_at) = self.open.times.unwrap_or((0, 0));
        let day = first_at / DAY_US;
        let roster = self.roster(self.last_day != Some(day)).encode_to_vec();
        let seal = Seal {
            origin: standing.origin.to_owned(),
            workspace: self.id,
            segment: self.open.number,
            incarnation: standing.incarnation,
            size: self.open.tree.size(),
            root: self.open.tree.root(),
            history_root: self.history.root(),
            first_position: self.open.first_position,
            record_count: self.next_position - self.open.first_position,
            batch_count: self.open.counts[0],
            equivocation_count: self.open.counts[1],
            statement_count: self.open.counts[2],
            first_received_at: first_at,
            last_received_at: last_at,
            roster_hash: custody::segment::roster_hash(&roster),
            object_length: 0,
            object_blake3: [0; 32],
            object_sha256: ObjectHash::ZERO,
            ledger_chain: standing.ledger_chain,
            workspace_chain: self.chain.head(),
            not_before_size: 0,
            not_before: [0; 32],
            sealed_at: 0,
        };
        self.last_day = Some(day);
        self.history.push(history_leaf(seal.segment, seal.size, &seal.root));
        self.finals.push(Final::of(&seal));
        let next = Open::new(seal.segment + 1, self.next_position);
        let done = std::mem::replace(&mut self.open, next);
        self.unarchived.push_back((done.number, done.bytes));
        (CutRow { seal: seal.encode().into(), roster: roster.into() }, done.tree)
    }

    /// Segments before `published` are archived. At a start the sizes of the others are read from the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resume_publishing(&mut self, store: &Store, published: u64) -> Result<(), StoreError> {
        self.published = published;
        for segment in published..self.open.number {
            let mut bytes = 0;
            for step in store.scan(Family::Entries, &numbered(self.id, segment), &[]) {
                bytes += step?.1.len() as u64;
            }
            self.unarchived.push_back((segment, bytes));
        }
        Ok(())
    }

    /// A segment is archived, and with it all before it.
    pub fn take_published(&mut self, segment: u64) {
        self.published = self.published.max(segment + 1);
        self.unarchived.retain(|(number, _)| *number > segment);
    }

    /// Segments that are cut and not archived.
    pub fn unarchived_segments(&self) -> u64 {
        self.unarchived.len() as u64
    }

    /// Uncompressed bytes that are not archived yet.
    pub fn unarchived_bytes(&self) -> u64 {
        self.open.bytes + self.unarchived.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// Epochs that are closed and in no roster to come are in the store, and go from memory. Call when the store has all that
    /// is known of them: after the write of a cut.
    pub fn forget_epochs(&mut self) {
        let touched = &self.open.touched;
        for (id, gateway) in &mut self.gateways {
            let Gateway { numbering, rows, .. } = gateway;
            let last = numbering.last_opened;
            numbering
                .epochs
                .retain(|epoch, state| !state.closed || Some(*epoch) == last || touched.contains(&(*id, *epoch)));
            rows.retain(|epoch, _| numbering.epochs.contains_key(epoch));
        }
    }

    fn roster(&self, full: bool) -> wire::Roster {
        let mut entries = Vec::new();
        for (gateway, known) in &self.gateways {
            for (epoch, state) in &known.numbering.epochs {
                if self.open.touched.contains(&(*gateway, *epoch)) || (full && !state.closed) {
                    entries.push(wire::RosterEntry {
                        gateway: (*gateway).into(),
                        epoch: (*epoch).into(),
                        last_batch: state.last_batch,
                        next_record: state.next_record,
                        last_header_hash: state.last_header_hash.into(),
                        closed: state.closed,
                    });
                }
            }
        }
        wire::Roster { version: FORMAT_VERSION, workspace: self.id.into(), segment: self.open.number, full, entries }
    }

    fn sealed(&self, segment: u64) -> Option<&Final> {
        usize::try_from(segment).ok().and_then(|at| self.finals.get(at))
    }

    fn final_head(&self, segment: u64) -> Option<(u64, RootHash)> {
        self.sealed(segment).map(|sealed| (sealed.size, sealed.root))
    }

    /// Where `head` lies, by the rules of `held-head` (FORMAT.md, 13.4 step 12): a batch that is appended now may hold it if
    /// and only if every verifier will find it there. `tree` gives the tree of a segment that is cut, and is asked for no
    /// other.
    ///
    /// # Errors
    /// Those of `tree`.
    pub fn place<E>(
        &self,
        head: &Head,
        ledger: &Chain,
        tree: impl FnOnce(u64) -> Result<Arc<Tree<SegmentTree>>, E>,
    ) -> Result<Lies, E> {
        // The open segment's seal will name what holds now: a statement cuts it first.
        let sealed = match self.sealed(head.segment) {
            Some(sealed) => *sealed,
            None => Final {
                size: self.open.tree.size(),
                root: self.open.tree.root(),
                incarnation: ledger.incarnation(),
                statements: [ledger.head().count, self.chain.head().count],
            },
        };
        if head.incarnation < sealed.incarnation {
            let told =
                head.segment <= self.open.number && ledger.head_at(head.ledger_chain.count) == Some(head.ledger_chain);
            return Ok(if told { Lies::Superseded } else { Lies::Beyond });
        }
        let chains = [(head.ledger_chain, ledger), (head.workspace_chain, &*self.chain)];
        // A head of none may be older than the statement that came before the segment's first leaf.
        let chained = chains.iter().zip(sealed.statements).all(|((named, chain), count)| {
            let known = chain.head_at(named.count) == Some(*named);
            known && (named.count == count || (named.count < count && head.size == 0))
        });
        let bound = head.segment <= self.open.number
            && head.incarnation == sealed.incarnation
            && head.size <= sealed.size
            && self.history.root_at(head.segment) == Some(head.history_root);
        if !chained || !bound {
            return Ok(Lies::Nowhere);
        }
        let root = match head.segment == self.open.number {
            true => self.open.tree.root_at(head.size),
            false => tree(head.segment)?.root_at(head.size),
        };
        Ok(if root == Some(head.root) { Lies::Here } else { Lies::Nowhere })
    }

    /// How a cut segment goes on from its first `size` leaves to its end: this is so for ever.
    pub fn rest(&self, tree: &Tree<SegmentTree>, segment: u64, size: u64) -> Option<Vec<Bytes>> {
        let (final_size, _) = self.final_head(segment)?;
        tree.consistency(size, final_size).map(|path| to_path(&path))
    }

    /// Consistency from `(segment, size)` to the open head; `None` if that is not behind it. Of a segment that is cut, `rest`
    /// is how it goes on.
    pub fn consistency(&self, segment: u64, size: u64, rest: Option<&[Bytes]>) -> Option<wire::HeadConsistency> {
        let mut proof = wire::HeadConsistency { version: FORMAT_VERSION, ..Default::default() };
        if segment == self.open.number {
            proof.segment_path = to_path(&self.open.tree.consistency(size, self.open.tree.size())?);
            return Some(proof);
        }
        let (final_size, final_root) = self.final_head(segment)?;
        proof.segment_path = rest?.to_vec();
        proof.final_size = Some(final_size);
        proof.final_root = Some(final_root.into());
        proof.inclusion_path = to_path(&self.history.inclusion(segment, self.open.number)?);
        proof.history_path = to_path(&self.history.consistency(segment, self.open.number)?);
        Some(proof)
    }

    /// Puts the path from a leaf of a cut segment to its final head into `inclusion`, whose segment and leaf are set: this is
    /// so for ever.
    pub fn lead_to_end(&self, tree: &Tree<SegmentTree>, inclusion: &mut wire::BatchInclusion) -> Option<()> {
        let (size, root) = self.final_head(inclusion.segment)?;
        inclusion.path = to_path(&tree.inclusion(inclusion.leaf_index, size)?);
        inclusion.final_size = Some(size);
        inclusion.final_root = Some(root.into());
        Some(())
    }

    /// Puts the path to the open head into `inclusion`: from its leaf, or where its segment is cut from the final head, to
    /// which it leads already.
    pub fn complete_inclusion(&self, inclusion: &mut wire::BatchInclusion) -> Option<()> {
        if inclusion.segment == self.open.number {
            inclusion.path = to_path(&self.open.tree.inclusion(inclusion.leaf_index, self.open.tree.size())?);
            return Some(());
        }
        inclusion.final_size?;
        inclusion.history_path = self.history_path(inclusion.segment)?;
        Some(())
    }

    /// Inclusion of a cut segment in the history of the open head.
    pub fn history_path(&self, segment: u64) -> Option<Vec<Bytes>> {
        self.history.inclusion(segment, self.open.number).map(|path| to_path(&path))
    }
}
