//! A ledger in memory, as a peer of tests: it signs real statements, heads, receipts and seals over real trees, and can be
//! told to misbehave. What the real ledger does is tested with the real ledger.

use bytes::Bytes;
use custody::{
    batch::{NotNext, Numbering, Submitted},
    hash::{object_hash, root_successor},
    head::{Head, SignedHead, history_leaf, to_path},
    id::{Epoch, GatewayId, HeaderHash, RootHash, WorkspaceId},
    key::{self, Context},
    log::encode_seal_entry,
    merkle::{HistoryTree, LogTree, SegmentTree, Tree, log_leaf},
    note::{Checkpoint, sign_checkpoint},
    segment::Leaf,
    statement::{ChainHead, Roots, encode_signed, possession},
    wire::{self, Role, statement::Action},
};
use ed25519_dalek::SigningKey;
use prost::Message as _;

use crate::key::Name;

pub(crate) const ORIGIN: &str = "log.example/test";

#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) batch: Submitted,
    segment: u64,
    leaf_index: u64,
    first_position: u64,
}

#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) root: SigningKey,
    pub(crate) head_key: SigningKey,
    pub(crate) log_key: SigningKey,
    pub(crate) workspace: WorkspaceId,
    pub(crate) ledger_statements: Vec<Bytes>,
    pub(crate) workspace_statements: Vec<Bytes>,
    ledger_chain: ChainHead,
    workspace_chain: ChainHead,
    segments: Vec<Tree<SegmentTree>>,
    history: Tree<HistoryTree>,
    log: Tree<LogTree>,
    seals: Vec<(Bytes, u64)>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) numbering: Numbering,
    position: u64,
    pub(crate) term: u64,
    pub(crate) incarnation: u64,
}

fn key_of(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

impl Ledger {
    /// With one workspace and one enrolled gateway.
    pub(crate) fn new(gateway: GatewayId, key: &SigningKey) -> Self {
        let mut ledger = Self {
            root: key_of(1),
            head_key: key_of(2),
            log_key: key_of(3),
            workspace: WorkspaceId([7; 16]),
            ledger_statements: Vec::new(),
            workspace_statements: Vec::new(),
            ledger_chain: ChainHead::GENESIS,
            workspace_chain: ChainHead::GENESIS,
            segments: vec![Tree::default()],
            history: Tree::default(),
            log: Tree::default(),
            seals: Vec::new(),
            stored: Vec::new(),
            numbering: Numbering::default(),
            position: 0,
            term: 1,
            incarnation: 0,
        };
        ledger.enrol(None, Role::Head, &key_of(2), None);
        ledger.enrol(None, Role::Log, &key_of(3), None);
        let workspace = Some(ledger.workspace);
        ledger.say(workspace, Action::Create(wire::Create { name: "demo".into() }));
        ledger.enrol(workspace, Role::Gateway, key, Some(gateway));
        ledger
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::new([(1, key::public(&self.root), root_successor(&[0; 32]))]).unwrap().with_past()
    }

    pub(crate) fn who(&self, gateway: GatewayId) -> Name {
        Name { origin: ORIGIN.into(), workspace: self.workspace, gateway }
    }

    pub(crate) fn enrol(
        &mut self,
        workspace: Option<WorkspaceId>,
        role: Role,
        key: &SigningKey,
        gateway: Option<GatewayId>,
    ) {
        let public = key::public(key);
        let proof = possession(ORIGIN, workspace, role, public, gateway);
        let enrol = wire::Enrol {
            role: role as i32,
            public_key: Bytes::copy_from_slice(&public.to_bytes()),
            gateway: gateway.map(Into::into),
            name: String::new(),
            possession: Some(Bytes::copy_from_slice(&key::sign(key, Context::Possession, &proof))),
        };
        self.say(workspace, Action::Enrol(enrol));
    }

    /// One statement more, signed by the root.
    pub(crate) fn say(&mut self, workspace: Option<WorkspaceId>, action: Action) {
        let chain = if workspace.is_some() { self.workspace_chain } else { self.ledger_chain };
        let statement = wire::Statement {
            version: 1,
            origin: ORIGIN.into(),
            workspace: workspace.map(Into::into),
            serial: chain.count,
            previous: chain.hash.into(),
            checkpoint_size: 0,
            checkpoint_hash: custody::id::ObjectHash::ZERO.into(),
            issued_at: 1,
            era: 1,
            registrar: None,
            reason: String::new(),
            ticket: String::new(),
            action: Some(action),
        }
        .encode_to_vec();
        let object = Bytes::from(encode_signed(&statement, key::sign(&self.root, Context::Statement, &statement)));
        let head = ChainHead { count: chain.count + 1, hash: object_hash(&object) };
        match workspace {
            Some(_) => {
                self.workspace_statements.push(object);
                self.workspace_chain = head;
            }
            None => {
                self.ledger_statements.push(object);
                self.ledger_chain = head;
            }
        }
    }

    fn segment(&self) -> u64 {
        self.segments.len() as u64 - 1
    }

    /// The newest head.
    pub(crate) fn head(&self) -> Head {
        let open = self.segments.last().unwrap();
        Head {
            origin: ORIGIN.into(),
            workspace: self.workspace,
            key_id: key::public(&self.head_key).id(Role::Head),
            incarnation: self.incarnation,
            term: self.term,
            segment: self.segment(),
            size: open.size(),
            root: open.root(),
            history_root: self.history.root(),
            ledger_chain: self.ledger_chain,
            workspace_chain: self.workspace_chain,
            at: 1,
            unfenced: false,
        }
    }

    pub(crate) fn signed_head(&self) -> Bytes {
        self.head().sign(&self.head_key).into()
    }

    /// `None` where there is no way from `old`.
    fn consistency(&self, old: &Head) -> Option<wire::HeadConsistency> {
        let new = self.head();
        let tree = self.segments.get(usize::try_from(old.segment).unwrap())?;
        let mut proof = wire::HeadConsistency { version: 1, ..Default::default() };
        proof.segment_path = to_path(&tree.consistency(old.size, tree.size())?);
        if old.segment < new.segment {
            proof.final_size = Some(tree.size());
            proof.final_root = Some(tree.root().into());
            proof.inclusion_path = to_path(&self.history.inclusion(old.segment, new.segment).unwrap());
            proof.history_path = to_path(&self.history.consistency(old.segment, new.segment).unwrap());
        }
        Some(proof)
    }

    /// Takes a batch as the real one would, or says why not.
    pub(crate) fn append(&mut self, bytes: Bytes) -> Result<(), wire::RejectReason> {
        let batch = Submitted::parse(bytes).map_err(|_| wire::RejectReason::Malformed)?;
        match self.numbering.admit(&batch.header) {
            Ok(()) => {}
            Err(NotNext::Taken) if self.find(batch.header.epoch, batch.header.batch_number, &batch).is_some() => {
                return Ok(());
            }
            Err(NotNext::Gap { .. } | NotNext::UnknownEpoch) => return Err(wire::RejectReason::Gap),
            Err(_) => return Err(wire::RejectReason::Equivocation),
        }
        self.numbering.take(&batch.header, batch.header_hash());
        let leaf = self.leaf(self.position);
        let segment = self.segment();
        let tree = self.segments.last_mut().unwrap();
        let leaf_index = tree.size();
        tree.push(leaf.hash(&batch.header_bytes, &batch.signature));
        let first_position = self.position;
        self.position += batch.records.len() as u64;
        self.stored.push(Stored { batch, segment, leaf_index, first_position });
        Ok(())
    }

    fn leaf(&self, first_position: u64) -> Leaf {
        Leaf { kind: wire::LeafKind::Batch, first_position, received_at: 5, term: 1 }
    }

    fn find(&self, epoch: Epoch, number: u64, batch: &Submitted) -> Option<&Stored> {
        self.stored.iter().find(|stored| {
            let header = &stored.batch.header;
            header.epoch == epoch && header.batch_number == number && stored.batch.bytes == batch.bytes
        })
    }

    fn inclusion(&self, stored: &Stored) -> wire::BatchInclusion {
        let tree = &self.segments[usize::try_from(stored.segment).unwrap()];
        let mut inclusion = wire::BatchInclusion {
            version: 1,
            epoch: stored.batch.header.epoch.into(),
            batch_number: stored.batch.header.batch_number,
            segment: stored.segment,
            leaf_index: stored.leaf_index,
            first_position: stored.first_position,
            received_at: 5,
            term: 1,
            path: to_path(&tree.inclusion(stored.leaf_index, tree.size()).unwrap()),
            ..Default::default()
        };
        if stored.segment < self.segment() {
            inclusion.final_size = Some(tree.size());
            inclusion.final_root = Some(tree.root().into());
            inclusion.history_path = to_path(&self.history.inclusion(stored.segment, self.segment()).unwrap());
        }
        inclusion
    }

    /// A receipt from the head `old` on, for the batches of these names.
    pub(crate) fn receipt(&self, old: &[u8], names: &[(Epoch, u64)]) -> wire::Receipt {
        let of = |(epoch, number): &(Epoch, u64)| {
            let header =
                |stored: &&Stored| stored.batch.header.epoch == *epoch && stored.batch.header.batch_number == *number;
            self.inclusion(self.stored.iter().find(header).unwrap())
        };
        wire::Receipt {
            version: 1,
            signed_head: self.signed_head(),
            consistency: SignedHead::parse(old).ok().and_then(|old| self.consistency(&old.head)),
            batches: names.iter().map(of).collect(),
        }
    }

    /// Cuts the open segment and seals it in the log. Gives its number.
    pub(crate) fn cut(&mut self) -> u64 {
        let number = self.segment();
        let tree = self.segments.last().unwrap();
        let seal = wire::Seal {
            version: 1,
            origin: ORIGIN.into(),
            workspace: self.workspace.into(),
            segment: number,
            incarnation: self.incarnation,
            size: tree.size(),
            root: tree.root().into(),
            history_root: self.history.root().into(),
            record_count: self.position,
            batch_count: tree.size(),
            first_received_at: 5,
            last_received_at: 5,
            roster_hash: RootHash::ZERO.into(),
            object_length: 1,
            object_blake3: RootHash::ZERO.into(),
            object_sha256: RootHash::ZERO.into(),
            ledger_chain: Some(self.ledger_chain.to_wire()),
            workspace_chain: Some(self.workspace_chain.to_wire()),
            not_before: RootHash::ZERO.into(),
            sealed_at: 6,
            ..Default::default()
        }
        .encode_to_vec();
        self.history.push(history_leaf(number, tree.size(), &tree.root()));
        let entry = encode_seal_entry(self.workspace, number, object_hash(&seal));
        self.seals.push((seal.into(), self.log.size()));
        self.log.push(log_leaf(&entry).0);
        self.segments.push(Tree::default());
        number
    }

    pub(crate) fn archived(&self, segment: u64) -> wire::ArchivedReceipt {
        let (seal, log_index) = self.seals[usize::try_from(segment).unwrap()].clone();
        let checkpoint = Checkpoint { origin: ORIGIN.into(), size: self.log.size(), root: self.log.root() };
        wire::ArchivedReceipt {
            version: 1,
            seal,
            log_index,
            log_path: to_path(&self.log.inclusion(log_index, self.log.size()).unwrap()),
            checkpoint: sign_checkpoint(checkpoint, &self.log_key).to_bytes().into(),
            history_size: self.segment(),
            history_path: to_path(&self.history.inclusion(segment, self.segment()).unwrap()),
        }
    }

    /// What a Welcome says of a gateway's last epoch.
    pub(crate) fn resume(&self) -> (Bytes, u64, HeaderHash) {
        match self.numbering.last_opened {
            Some(epoch) => {
                let state = &self.numbering.epochs[&epoch];
                (epoch.into(), state.last_batch + 1, state.last_header_hash)
            }
            None => (Bytes::new(), 0, HeaderHash::ZERO),
        }
    }

    /// Records of all batches, in order, without those about epochs.
    pub(crate) fn records(&self) -> Vec<Bytes> {
        let records = self.stored.iter().flat_map(|stored| stored.batch.records.clone());
        records.filter(|record| custody::record::opened(record).is_none()).collect()
    }
}
