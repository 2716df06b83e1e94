//! A small world of golden bytes: headers and batches, statements of both chains, a segment with its seal, a log, receipts and
//! evidence, each made from those before.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    batch::{self, Header},
    evidence::Proof,
    hash::{object_hash, root_successor},
    head::{self, Head, to_path},
    id::{HeaderHash, RootHash, hex},
    key::public,
    log::{encode_entry, encode_seal_entry},
    merkle::{BatchTree, HistoryTree, LogTree, SegmentTree, Tree, TreeHash as _, log_leaf},
    note::{self, Checkpoint},
    policy,
    record::encode as record,
    segment::{self, Leaf, Seal, SegmentHeader},
    statement::ChainHead,
    testing::{
        AT, EPOCH, GATEWAY, GATEWAY_ID, HEAD, LAST_ROOT, LEDGER_ID, LOG, NEXT_ROOT, ORIGIN, RECEIPT, RECORD, REGISTRAR,
        ROOT, WITNESS, WORKSPACE, Writer, key, key_id, ledger_chain, public_bytes, workspace_chain,
    },
    wire::{
        self, ClockState, DropReason, LeafKind, OpeningReason, Outcome, Phase, Role, WriterClass, log_entry,
        record::Kind as Is, statement::Action,
    },
};

use super::{fill, records::*};

/// The header of an epoch's first batch.
pub(super) fn opening_header() -> Header {
    Header {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        gateway: GATEWAY_ID,
        key_id: key_id(GATEWAY, Role::Gateway),
        epoch: EPOCH,
        batch_number: 0,
        first_record: 0,
        record_count: 1,
        previous: HeaderHash::ZERO,
        opening_reason: Some(OpeningReason::First),
        batch_root: RootHash([0xc4; 32]),
        last_head: Bytes::new(),
        dropped: 0,
        drop_reason: None,
        heartbeat: false,
        close: false,
        created_at: AT,
    }
}

/// The header of a later one.
pub(super) fn later_header() -> Header {
    Header {
        batch_number: 1,
        first_record: 4,
        record_count: 0,
        previous: HeaderHash([0xc5; 32]),
        opening_reason: None,
        batch_root: batch::empty_root(),
        heartbeat: true,
        ..opening_header()
    }
}

pub(super) fn headers() -> Vec<Vec<u8>> {
    let opening = |reason| Header { opening_reason: Some(reason), ..opening_header() };
    let dropping = |reason| Header { dropped: 4, drop_reason: Some(reason), ..later_header() };
    [
        opening(OpeningReason::First),
        opening(OpeningReason::StateLost),
        opening(OpeningReason::Rewound),
        Header { opening_reason: None, previous: HeaderHash([0xc6; 32]), ..opening_header() },
        dropping(DropReason::SpoolFull),
        dropping(DropReason::DiskFailed),
        dropping(DropReason::FailOpen),
        dropping(DropReason::Crashed),
        Header { last_head: bare_head().sign(&key(HEAD)).into(), ..later_header() },
        Header { heartbeat: false, close: true, ..later_header() },
    ]
    .map(|header| header.encode())
    .into()
}

pub(super) fn possessions() -> Vec<Vec<u8>> {
    let said = |workspace, role, byte, gateway| {
        crate::statement::possession(ORIGIN, workspace, role, public(&key(byte)), gateway)
    };
    vec![
        said(None, Role::Root, ROOT, None),
        said(Some(WORKSPACE), Role::Registrar, REGISTRAR, None),
        said(Some(WORKSPACE), Role::Gateway, GATEWAY, Some(GATEWAY_ID)),
        said(Some(WORKSPACE), Role::Receipt, RECEIPT, None),
        said(None, Role::Record, RECORD, Some(LEDGER_ID)),
        said(None, Role::Head, HEAD, None),
        said(None, Role::Log, LOG, None),
    ]
}

/// Every action that the ledger's chain knows.
pub(super) fn ledger_statements() -> Vec<Vec<u8>> {
    let mut writer = ledger_chain();
    writer.say(Action::Incarnation(wire::Incarnation {
        number: 1,
        log_size: 40,
        log_root: fill::<32>(0xc7),
        last_seals_hash: fill::<32>(0xc8),
    }));
    for (era, next, after) in [(2, NEXT_ROOT, LAST_ROOT), (3, LAST_ROOT, 30)] {
        let succeed = Action::SucceedRoot(wire::SucceedRoot {
            public_key: public_bytes(next),
            successor_hash: Bytes::copy_from_slice(&root_successor(&public(&key(after)).to_bytes())),
        });
        let mut statement = writer.draft(succeed);
        statement.era = era;
        writer.put(&statement, next).unwrap();
    }
    writer.say(Action::Suspect(wire::Suspect { key_id: key_id(HEAD, Role::Head).into(), since: 12 }));
    writer.say(Action::Retire(wire::Retire { key_id: key_id(RECORD, Role::Record).into() }));
    writer.say(Action::Revoke(wire::Revoke { key_id: key_id(LOG, Role::Log).into(), void_serials: Vec::new() }));
    writer.objects
}

/// Every action that a workspace's chain knows.
pub(super) fn workspace_statements() -> Vec<Vec<u8>> {
    let mut writer = workspace_chain();
    let unproven = Action::Enrol(wire::Enrol {
        role: Role::Receipt as i32,
        public_key: public_bytes(RECEIPT),
        gateway: None,
        name: String::new(),
        possession: None,
    });
    writer.say(unproven);
    let hold = |hold, until| Action::Hold(wire::Hold { hold, since: AT, until });
    writer.say(hold(fill::<16>(0xc9), None));
    writer.say_as_registrar(hold(fill::<16>(0xca), Some(AT + 1))).unwrap();
    writer.say(Action::Release(wire::Release { hold: fill::<16>(0xc9) }));
    writer.say(Action::Suspect(wire::Suspect { key_id: key_id(GATEWAY, Role::Gateway).into(), since: 3 }));
    writer.say_as_registrar(Action::Retire(wire::Retire { key_id: key_id(GATEWAY, Role::Gateway).into() })).unwrap();
    let registrar = key_id(REGISTRAR, Role::Registrar).into();
    writer.say(Action::Revoke(wire::Revoke { key_id: registrar, void_serials: vec![2] }));
    writer.say(Action::Remove(wire::Remove {}));
    writer.objects
}

pub(super) fn bare_head() -> Head {
    Head {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        key_id: key_id(HEAD, Role::Head),
        incarnation: 0,
        term: 0,
        segment: 0,
        size: 0,
        root: RootHash(SegmentTree::empty()),
        history_root: RootHash(HistoryTree::empty()),
        ledger_chain: ChainHead::GENESIS,
        workspace_chain: ChainHead::GENESIS,
        at: AT,
        unfenced: false,
    }
}

/// A zstd frame that holds its content as it is: the writers of other languages need no zstd to compare.
pub(crate) fn stored_frame(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    out.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
    let blocks: Vec<&[u8]> = content.chunks(1 << 17).collect();
    for (at, block) in blocks.iter().enumerate() {
        let last = u32::from(at + 1 == blocks.len());
        let header = last | u32::try_from(block.len()).unwrap() << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}

/// A roster that is not of a day's first segment, with nothing in it.
pub(super) fn later_roster() -> Vec<u8> {
    wire::Roster { version: 1, workspace: WORKSPACE.into(), segment: 3, full: false, entries: vec![] }.encode_to_vec()
}

/// A workspace with one sealed segment, and the log above it.
pub(crate) struct World {
    pub(crate) batches: Vec<Vec<u8>>,
    pub(super) leaves: Vec<(Leaf, Vec<u8>)>,
    pub(super) tree: Tree<SegmentTree>,
    pub(crate) head: Head,
    pub(super) roster: Vec<u8>,
    pub(crate) object: Vec<u8>,
    pub(crate) seal: Seal,
    pub(crate) log: Vec<Vec<u8>>,
    pub(super) log_tree: Tree<LogTree>,
    pub(super) ledger: Writer,
    pub(super) chain: Writer,
}

pub(super) const SEED: [u8; 32] = [0x5e; 32];

impl World {
    pub(crate) fn new() -> Self {
        let (ledger, chain) = (ledger_chain(), workspace_chain());
        let records = vec![
            gateway_event(opened(WriterClass::AlwaysOn, ClockState::Synchronised)),
            record(Is::Call(bare_call(Outcome::Running, Phase::Intent))),
            record(Is::Call(full_call())),
        ];
        let mut first = opening_header();
        batch::seal_header(&mut first, &SEED, &records);
        let mut second = Header {
            first_record: 5,
            previous: crate::hash::header_hash(&first.encode()),
            heartbeat: false,
            dropped: 2,
            drop_reason: Some(DropReason::SpoolFull),
            last_head: bare_head().sign(&key(HEAD)).into(),
            ..later_header()
        };
        let more = vec![record(Is::Call(bare_call(Outcome::Timeout, Phase::Outcome)))];
        batch::seal_header(&mut second, &SEED, &more);
        let batches = vec![
            batch::encode_signed(&first.encode(), &key(GATEWAY), &SEED, &records),
            batch::encode_signed(&second.encode(), &key(GATEWAY), &SEED, &more),
        ];
        let leaf = |kind, first_position, at| Leaf { kind, first_position, received_at: AT + at, term: 1 };
        let hold = Action::Hold(wire::Hold { hold: fill::<16>(0xc9), since: AT, until: None });
        let mut after = chain.clone();
        after.say(hold);
        let leaves = vec![
            (leaf(LeafKind::Batch, 0, 10), batches[0].clone()),
            (leaf(LeafKind::Batch, 3, 20), batches[1].clone()),
            (leaf(LeafKind::Equivocation, 4, 30), batches[1].clone()),
            (leaf(LeafKind::Statement, 4, 40), after.objects[3].clone()),
        ];
        Self::seal(ledger, chain, batches, leaves, &second)
    }

    pub(super) fn seal(
        ledger: Writer,
        chain: Writer,
        batches: Vec<Vec<u8>>,
        leaves: Vec<(Leaf, Vec<u8>)>,
        last: &Header,
    ) -> Self {
        let entries: Vec<Vec<u8>> = leaves.iter().map(|(l, b)| segment::encode_entry(l, b.clone().into())).collect();
        let parsed = entries.iter().map(|bytes| segment::Entry::parse(bytes.clone().into()).unwrap());
        let tree: Tree<SegmentTree> = parsed.map(|entry| entry.leaf_hash()).collect();
        let (ledger_head, chain_head) = (ledger.chain.head(), chain.chain.head());
        let header = SegmentHeader {
            origin: ORIGIN.into(),
            workspace: WORKSPACE,
            segment: 0,
            incarnation: 0,
            first_position: 0,
            ledger_chain: ledger_head,
            workspace_chain: chain_head,
        };
        let mut writer = segment::Writer::new(&header);
        for (entry, (leaf, _)) in entries.iter().zip(&leaves) {
            writer.push::<()>(entry, leaf.first_position, |content| Ok(stored_frame(content))).unwrap();
        }
        let roster = wire::Roster {
            version: 1,
            workspace: WORKSPACE.into(),
            segment: 0,
            full: true,
            entries: vec![wire::RosterEntry {
                gateway: GATEWAY_ID.into(),
                epoch: EPOCH.into(),
                last_batch: 1,
                next_record: 6,
                last_header_hash: crate::hash::header_hash(&last.encode()).into(),
                closed: true,
            }],
        }
        .encode_to_vec();
        let object = writer.finish::<()>(&roster, |content| Ok(stored_frame(content))).unwrap();
        let head = Head {
            incarnation: 1,
            term: 1,
            segment: 1,
            size: 2,
            root: tree.root_at(2).unwrap(),
            history_root: RootHash(head::history_leaf(0, 4, &tree.root())),
            ledger_chain: ledger_head,
            workspace_chain: chain_head,
            unfenced: true,
            ..bare_head()
        };
        let seal = Self::seal_of(&header, &tree, &roster, &object);
        let log = Self::log(&ledger, &chain, &seal);
        let log_tree = log.iter().map(|entry| log_leaf(entry).0).collect();
        Self { batches, leaves, tree, head, roster, object, seal, log, log_tree, ledger, chain }
    }

    pub(super) fn seal_of(header: &SegmentHeader, tree: &Tree<SegmentTree>, roster: &[u8], object: &[u8]) -> Seal {
        Seal {
            origin: header.origin.clone(),
            workspace: header.workspace,
            segment: 0,
            incarnation: 0,
            size: tree.size(),
            root: tree.root(),
            history_root: RootHash(HistoryTree::empty()),
            first_position: 0,
            record_count: 4,
            batch_count: 2,
            equivocation_count: 1,
            statement_count: 1,
            first_received_at: AT + 10,
            last_received_at: AT + 40,
            roster_hash: segment::roster_hash(roster),
            object_length: object.len() as u64,
            object_blake3: segment::object_blake3(object),
            object_sha256: object_hash(object),
            ledger_chain: header.ledger_chain,
            workspace_chain: header.workspace_chain,
            not_before_size: 0,
            not_before: [0; 32],
            sealed_at: AT + 50,
        }
    }

    pub(super) fn log(ledger: &Writer, chain: &Writer, seal: &Seal) -> Vec<Vec<u8>> {
        let statement = |object: &Vec<u8>| encode_entry(log_entry::Entry::Statement(object.clone().into()));
        let mut log: Vec<Vec<u8>> = ledger.objects.iter().map(statement).collect();
        log.push(encode_entry(log_entry::Entry::TermStart(wire::TermStart { term: 1, incarnation: 0, at: AT })));
        log.push(statement(&chain.objects[0]));
        log.push(encode_seal_entry(WORKSPACE, 0, object_hash(&seal.encode())));
        log.push(encode_entry(log_entry::Entry::TermStart(wire::TermStart { term: 2, incarnation: 1, at: AT + 60 })));
        log
    }

    pub(super) fn entries(&self) -> Vec<Vec<u8>> {
        self.leaves.iter().map(|(leaf, bytes)| segment::encode_entry(leaf, bytes.clone().into())).collect()
    }

    pub(super) fn inclusion(&self, number: u64, cut: bool) -> wire::BatchInclusion {
        let (leaf, _) = &self.leaves[usize::try_from(number).unwrap()];
        let size = if cut { self.tree.size() } else { 2 };
        wire::BatchInclusion {
            version: 1,
            epoch: EPOCH.into(),
            batch_number: number,
            segment: u64::from(!cut),
            leaf_index: number,
            first_position: leaf.first_position,
            received_at: leaf.received_at,
            term: leaf.term,
            path: to_path(&self.tree.inclusion(number, size).unwrap()),
            final_size: cut.then_some(size),
            final_root: cut.then(|| self.tree.root().into()),
            history_path: if cut { vec![fill::<32>(0xd1)] } else { Vec::new() },
        }
    }

    pub(super) fn receipts(&self) -> Vec<Vec<u8>> {
        let bare = wire::Receipt { version: 1, signed_head: self.head.sign(&key(HEAD)).into(), ..Default::default() };
        let consistency = wire::HeadConsistency {
            version: 1,
            final_size: Some(4),
            final_root: Some(self.tree.root().into()),
            segment_path: to_path(&self.tree.consistency(1, 4).unwrap()),
            inclusion_path: vec![fill::<32>(0xd2)],
            history_path: vec![fill::<32>(0xd3), fill::<32>(0xd4)],
        };
        let full = wire::Receipt {
            consistency: Some(consistency),
            batches: vec![self.inclusion(0, true), self.inclusion(1, false)],
            ..bare.clone()
        };
        vec![bare.encode_to_vec(), full.encode_to_vec()]
    }

    pub(crate) fn checkpoint(&self) -> note::SignedCheckpoint {
        let (size, root) = (self.log_tree.size(), self.log_tree.root());
        let mut signed = note::sign_checkpoint(Checkpoint { origin: ORIGIN.into(), size, root }, &key(LOG));
        let line = note::cosign(&signed.checkpoint, "witness.example", &key(WITNESS), AT / 1_000_000);
        signed.signatures.push(line);
        signed
    }

    pub(super) fn archived_receipt(&self) -> Vec<u8> {
        wire::ArchivedReceipt {
            version: 1,
            seal: self.seal.encode().into(),
            log_index: 5,
            log_path: to_path(&self.log_tree.inclusion(5, 7).unwrap()),
            checkpoint: self.checkpoint().to_bytes().into(),
            history_size: 2,
            history_path: vec![fill::<32>(0xd5)],
        }
        .encode_to_vec()
    }

    /// A seal with nothing at zero.
    pub(super) fn later_seal(&self) -> Seal {
        Seal {
            segment: 3,
            incarnation: 1,
            first_position: 4_000,
            not_before_size: 5,
            not_before: [0xd8; 32],
            ..self.seal.clone()
        }
    }

    pub(super) fn log_entries(&self) -> Vec<Vec<u8>> {
        let later = encode_seal_entry(WORKSPACE, 3, object_hash(&self.later_seal().encode()));
        self.log.iter().cloned().chain([later]).collect()
    }

    /// One that checks, and one of a run that crosses segments, for its form alone.
    pub(super) fn evidences(&self) -> Vec<Vec<u8>> {
        let whole = self.evidence();
        let mut crossing = whole.clone();
        let mut second = whole.segments[0].clone();
        second.log_index = 6;
        second.log_path = vec![fill::<32>(0xd9)];
        second.first_leaf = 2;
        crossing.segments.push(second);
        vec![whole.encode_to_vec(), crossing.encode_to_vec()]
    }

    pub(super) fn claim(&self) -> Vec<u8> {
        wire::Claim {
            version: 1,
            origin: ORIGIN.into(),
            term: 1,
            first_index: 5,
            writer: fill::<32>(0xd6),
            at: AT,
            nonce: fill::<16>(0xd7),
            entries: self.log[5..].iter().cloned().map(Into::into).collect(),
        }
        .encode_to_vec()
    }

    /// Records 1 to 3, and so a part of the first batch and the second.
    pub(crate) fn evidence(&self) -> wire::Evidence {
        let batch = |at: usize, first: u64| {
            let submitted = batch::Submitted::parse(self.batches[at].clone().into()).unwrap();
            let leaves: Tree<BatchTree> = batch::record_leaves(&SEED, &submitted.records).into_iter().collect();
            let (size, (leaf, _)) = (submitted.records.len() as u64, &self.leaves[at]);
            wire::EvidenceBatch {
                kind: leaf.kind as i32,
                first_position: leaf.first_position,
                received_at: leaf.received_at,
                term: leaf.term,
                signed: submitted.header_bytes.clone(),
                signature: submitted.signature.clone(),
                first_index: first,
                records: submitted.records[usize::try_from(first).unwrap()..].to_vec(),
                nonces: (first..size).map(|index| Bytes::copy_from_slice(&batch::nonce(&SEED, index))).collect(),
                path: to_path(&leaves.range(first, size, size).unwrap()),
            }
        };
        wire::Evidence {
            version: 1,
            workspace: WORKSPACE.into(),
            first_position: 1,
            record_count: 3,
            segments: vec![wire::EvidenceSegment {
                seal: self.seal.encode().into(),
                log_index: 5,
                log_path: Vec::new(),
                first_leaf: 0,
                leaves: vec![batch(0, 1), batch(1, 0)],
                path: to_path(&self.tree.range(0, 2, 4).unwrap()),
            }],
            ledger_chain: self.ledger.objects.iter().cloned().map(Into::into).collect(),
            workspace_chain: self.chain.objects.iter().cloned().map(Into::into).collect(),
        }
    }

    pub(crate) fn proof(&self) -> Proof {
        Proof {
            evidence: self.evidence(),
            index: 5,
            path: self.log_tree.inclusion(5, 7).unwrap(),
            checkpoint: self.checkpoint(),
        }
    }
}

pub(crate) fn audit_policy() -> policy::Policy {
    policy::Policy {
        version: 1,
        origin: ORIGIN.into(),
        scope: policy::Scope::Workspaces(vec![WORKSPACE.to_string()]),
        roots: vec![policy::Root {
            era: 1,
            public_key: hex(&public_bytes(ROOT)),
            successor_hash: hex(&root_successor(&public(&key(NEXT_ROOT)).to_bytes())),
        }],
        witnesses: vec![policy::Witness { name: "witness.example".into(), public_key: hex(&public_bytes(WITNESS)) }],
        quorum: 1,
        greatest_age_seconds: 86_400,
        minimum_retention_days: 365,
        required: crate::verdict::Claim::ALL.to_vec(),
        known: Vec::new(),
    }
}
