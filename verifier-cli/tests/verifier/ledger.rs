//! A small ledger that writes archives, for the tests of this package: fixed keys, a clock that counts, no I/O but the
//! files it makes. It shares the formats with the verifier, and none of the verifier's reading.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION, archive,
    batch::{self, Header, Numbering},
    hash::object_hash,
    head::{Head, history_leaf},
    id::{Epoch, GatewayId, HeaderHash, ObjectHash, RootHash, WorkspaceId},
    key::{Context, public, sign},
    log::{encode_bundle, encode_entry, encode_seal_entry, tile, tiles_between},
    merkle::{HistoryTree, LogTree, SegmentTree, Tree, log_leaf},
    note::{Checkpoint, SignedCheckpoint, cosign, sign_checkpoint},
    policy::{Policy, Witness},
    record,
    segment::{self, Leaf, Seal, SegmentHeader, Writer},
    statement::{ChainHead, Signed, encode_signed, possession},
    wire::{self, LeafKind, OpeningReason, Role, log_entry, record::Kind, statement::Action},
};
use ed25519_dalek::SigningKey;

pub(crate) const ORIGIN: &str = "log.example/acme";
/// 2026-03-01T00:00:00Z.
pub(crate) const BEGINNING: u64 = 1_772_323_200_000_000;

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

const ROOT: u8 = 1;
const RECORD: u8 = 2;
const HEAD: u8 = 3;
const LOG: u8 = 4;
pub(crate) const WITNESS: u8 = 9;

pub(crate) struct Ledger {
    pub(crate) dir: PathBuf,
    pub(crate) clock: u64,
    /// What it writes into leaves and seals instead of the time.
    pub(crate) pretends: Option<u64>,
    tree: Tree<LogTree>,
    entries: Vec<Vec<u8>>,
    published: u64,
    chain: ChainHead,
    last_checkpoint: Option<SignedCheckpoint>,
}

pub(crate) struct Workspace {
    pub(crate) id: WorkspaceId,
    pub(crate) name: String,
    chain: ChainHead,
    pub(crate) segment: u64,
    pub(crate) position: u64,
    history: Tree<HistoryTree>,
    filling: Option<Filling>,
    gateways: BTreeMap<GatewayId, Numbering>,
    day: Option<u64>,
}

struct Filling {
    writer: Writer,
    tree: Tree<SegmentTree>,
    first_position: u64,
    chain: ChainHead,
    counts: [u64; 3],
    times: (u64, u64),
    bytes: u64,
    touched: Vec<(GatewayId, Epoch)>,
}

pub(crate) struct Gateway {
    pub(crate) id: GatewayId,
    pub(crate) key: SigningKey,
    pub(crate) epoch: Epoch,
    batch_number: u64,
    pub(crate) next_record: u64,
    previous: HeaderHash,
    held: Bytes,
    reason: OpeningReason,
    /// Records that it says to have lost before its next batch.
    pub(crate) dropped: u64,
}

fn compress(content: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(content, 3)
}

impl Ledger {
    /// A ledger with its three keys, in a folder that is not there yet.
    pub(crate) fn new(dir: &Path) -> Self {
        let mut ledger = Self {
            dir: dir.to_owned(),
            clock: BEGINNING,
            pretends: None,
            tree: Tree::default(),
            entries: Vec::new(),
            published: 0,
            chain: ChainHead::GENESIS,
            last_checkpoint: None,
        };
        for (role, seed) in [(Role::Record, RECORD), (Role::Head, HEAD), (Role::Log, LOG)] {
            let gateway = (role == Role::Record).then_some(GatewayId([0xee; 16]));
            let object = ledger.statement(None, ledger.chain, enrol(None, role, &key(seed), gateway));
            ledger.chain = ChainHead { count: ledger.chain.count + 1, hash: object_hash(&object) };
            ledger.put(&archive::statement(None, ledger.chain.count - 1, ledger.chain.hash), &object);
            ledger.enter(encode_entry(log_entry::Entry::Statement(object.into())));
        }
        let start = wire::TermStart { term: 1, incarnation: 0, at: ledger.tick() };
        ledger.enter(encode_entry(log_entry::Entry::TermStart(start)));
        ledger.publish();
        ledger
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1_000;
        self.clock
    }

    /// The time that the ledger says it is.
    fn said(&mut self) -> u64 {
        let at = self.tick();
        self.pretends.unwrap_or(at)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).unwrap();
    }

    fn enter(&mut self, entry: Vec<u8>) {
        self.tree.push(log_leaf(&entry).0);
        self.entries.push(entry);
    }

    fn statement(&mut self, workspace: Option<WorkspaceId>, chain: ChainHead, action: Action) -> Vec<u8> {
        let issued_at = self.tick();
        let seen = self.last_checkpoint.as_ref().map(|signed| &signed.checkpoint);
        let said = wire::Statement {
            version: FORMAT_VERSION,
            origin: ORIGIN.to_owned(),
            workspace: workspace.map(Into::into),
            serial: chain.count,
            previous: chain.hash.into(),
            checkpoint_size: seen.map_or(0, |seen| seen.size),
            checkpoint_hash: seen.map_or(ObjectHash::ZERO, Checkpoint::hash).into(),
            issued_at,
            era: 1,
            registrar: None,
            reason: "test".to_owned(),
            ticket: String::new(),
            action: Some(action),
        };
        let bytes = prost_bytes(&said);
        encode_signed(&bytes, sign(&key(ROOT), Context::Statement, &bytes))
    }

    pub(crate) fn create(&mut self, seed: u8, name: &str) -> Workspace {
        let id = WorkspaceId([seed; 16]);
        let action = Action::Create(wire::Create { name: name.to_owned() });
        let object = self.statement(Some(id), ChainHead::GENESIS, action);
        let hash = object_hash(&object);
        self.put(&archive::statement(Some(id), 0, hash), &object);
        self.enter(encode_entry(log_entry::Entry::Statement(object.into())));
        Workspace {
            id,
            name: name.to_owned(),
            chain: ChainHead { count: 1, hash },
            segment: 0,
            position: 0,
            history: Tree::default(),
            filling: None,
            gateways: BTreeMap::new(),
            day: None,
        }
    }

    /// Enrols a gateway: a statement, which cuts the segment.
    pub(crate) fn enrol(&mut self, workspace: &mut Workspace, seed: u8) -> Gateway {
        let (id, signer) = (GatewayId([seed; 16]), key(seed));
        let action = enrol(Some(workspace.id), Role::Gateway, &signer, Some(id));
        self.say(workspace, action);
        Gateway {
            id,
            key: signer,
            epoch: Epoch([seed ^ 0x5a; 16]),
            batch_number: 0,
            next_record: 0,
            previous: HeaderHash::ZERO,
            held: Bytes::new(),
            reason: OpeningReason::First,
            dropped: 0,
        }
    }

    /// A statement of a workspace's chain.
    pub(crate) fn say(&mut self, workspace: &mut Workspace, action: Action) {
        let object = self.statement(Some(workspace.id), workspace.chain, action);
        let signed = Signed::parse(&object).unwrap();
        self.put(&archive::statement(Some(workspace.id), workspace.chain.count, signed.hash), &object);
        self.append(workspace, LeafKind::Statement, &signed.statement_bytes, &signed.signature, object, 0);
        let next = ChainHead { count: workspace.chain.count + 1, hash: signed.hash };
        self.cut(workspace);
        workspace.chain = next;
    }

    fn append(
        &mut self,
        workspace: &mut Workspace,
        kind: LeafKind,
        signed: &[u8],
        signature: &[u8],
        object: Vec<u8>,
        records: u64,
    ) {
        let leaf = Leaf { kind, first_position: workspace.position, received_at: self.said(), term: 1 };
        let (segment, chain, ledger_chain) = (workspace.segment, workspace.chain, self.chain);
        let (id, position) = (workspace.id, workspace.position);
        let filling = workspace.filling.get_or_insert_with(|| Filling {
            writer: Writer::new(&SegmentHeader {
                origin: ORIGIN.to_owned(),
                workspace: id,
                segment,
                incarnation: 0,
                first_position: position,
                ledger_chain,
                workspace_chain: chain,
            }),
            tree: Tree::default(),
            first_position: position,
            chain,
            counts: [0; 3],
            times: (leaf.received_at, leaf.received_at),
            bytes: 0,
            touched: Vec::new(),
        });
        let entry = segment::encode_entry(&leaf, object.into());
        filling.bytes += entry.len() as u64;
        filling.tree.push(leaf.hash(signed, signature));
        filling.writer.push(&entry, position, compress).unwrap();
        filling.counts[kind as usize - 1] += 1;
        filling.times.0 = filling.times.0.min(leaf.received_at);
        filling.times.1 = filling.times.1.max(leaf.received_at);
        // A hostile ledger counts past the last position.
        workspace.position = workspace.position.wrapping_add(records);
    }

    /// Puts what is no entry into the segment that fills.
    pub(crate) fn put_no_entry(&self, workspace: &mut Workspace) {
        let position = workspace.position;
        workspace.filling.as_mut().unwrap().writer.push(b"no entry", position, compress).unwrap();
    }

    /// Takes a batch of these records, as a gateway would send it.
    pub(crate) fn take(&mut self, workspace: &mut Workspace, gateway: &mut Gateway, records: &[Bytes]) {
        let (header, bytes) = gateway.batch(workspace.id, records, self.tick());
        self.append(
            workspace,
            LeafKind::Batch,
            &header,
            &sign(&gateway.key, Context::Batch, &header),
            bytes,
            records.len() as u64,
        );
        let (parsed, hash) = (Header::parse(&header).unwrap(), custody::hash::header_hash(&header));
        workspace.gateways.entry(gateway.id).or_default().take(&parsed, hash);
        let touched = &mut workspace.filling.as_mut().unwrap().touched;
        if !touched.contains(&(gateway.id, gateway.epoch)) {
            touched.push((gateway.id, gateway.epoch));
        }
        let filling = workspace.filling.as_ref().unwrap();
        if filling.bytes >= segment::SEGMENT_BYTES_MAX || filling.tree.size() >= segment::SEGMENT_LEAVES_MAX {
            self.cut(workspace);
        }
    }

    /// The open head after a group commit, as every gateway in it gets it.
    pub(crate) fn receipt(&mut self, workspace: &Workspace, gateways: &mut [&mut Gateway]) {
        let Some(filling) = &workspace.filling else { return };
        let head = Head {
            origin: ORIGIN.to_owned(),
            workspace: workspace.id,
            key_id: public(&key(HEAD)).id(Role::Head),
            incarnation: 0,
            term: 1,
            segment: workspace.segment,
            size: filling.tree.size(),
            root: filling.tree.root(),
            history_root: workspace.history.root(),
            ledger_chain: self.chain,
            workspace_chain: filling.chain,
            at: self.clock,
            unfenced: false,
        };
        let signed = Bytes::from(head.sign(&key(HEAD)));
        for gateway in gateways {
            gateway.held = signed.clone();
        }
    }

    pub(crate) fn cut(&mut self, workspace: &mut Workspace) {
        let Some(filling) = workspace.filling.take() else { return };
        let day = filling.times.0 / 86_400_000_000;
        let full = workspace.day.replace(day) != Some(day);
        let roster = roster(workspace, &filling.touched, full);
        let object = filling.writer.finish(&roster, compress).unwrap();
        let seal = Seal {
            origin: ORIGIN.to_owned(),
            workspace: workspace.id,
            segment: workspace.segment,
            incarnation: 0,
            size: filling.tree.size(),
            root: filling.tree.root(),
            history_root: workspace.history.root(),
            first_position: filling.first_position,
            record_count: workspace.position.wrapping_sub(filling.first_position),
            batch_count: filling.counts[0],
            equivocation_count: filling.counts[1],
            statement_count: filling.counts[2],
            first_received_at: filling.times.0,
            last_received_at: filling.times.1,
            roster_hash: segment::roster_hash(&roster),
            object_length: object.len() as u64,
            object_blake3: segment::object_blake3(&object),
            object_sha256: object_hash(&object),
            ledger_chain: self.chain,
            workspace_chain: filling.chain,
            not_before_size: 0,
            not_before: [0; 32],
            sealed_at: self.said(),
        };
        let bytes = seal.encode();
        self.put(&archive::segment(workspace.id, workspace.segment, seal.object_sha256), &object);
        self.put(&archive::seal(workspace.id, workspace.segment, object_hash(&bytes)), &bytes);
        self.enter(encode_seal_entry(workspace.id, workspace.segment, object_hash(&bytes)));
        workspace.history.push(history_leaf(workspace.segment, seal.size, &seal.root));
        workspace.segment += 1;
    }

    /// Tiles and a checkpoint over all entries so far.
    pub(crate) fn publish(&mut self) -> SignedCheckpoint {
        let size = self.tree.size();
        for (level, number, width) in tiles_between(self.published, size) {
            let bytes = match level {
                Some(level) => tile(&self.tree, level, number, width).unwrap().concat(),
                None => {
                    let first = (number * 256) as usize;
                    encode_bundle(&self.entries[first..first + width as usize])
                }
            };
            self.put(&archive::tile(level, number, width), &bytes);
        }
        let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size, root: self.tree.root() };
        let signed = sign_checkpoint(checkpoint, &key(LOG));
        self.put(&archive::checkpoint(size), &signed.to_bytes());
        self.published = size;
        self.last_checkpoint = Some(signed.clone());
        signed
    }

    /// A witness's line under the newest checkpoint.
    pub(crate) fn cosign(&self, at_seconds: u64) {
        let checkpoint = &self.last_checkpoint.as_ref().unwrap().checkpoint;
        let line = cosign(checkpoint, "witness.example", &key(WITNESS), at_seconds);
        self.put(&archive::cosignature(checkpoint.size, "witness.example"), line.text().as_bytes());
    }
}

pub(crate) fn policy() -> Policy {
    let public_key = custody::id::hex(&public(&key(WITNESS)).to_bytes());
    Policy {
        witnesses: vec![Witness { name: "witness.example".to_owned(), public_key }],
        ..Policy::fresh(ORIGIN, public(&key(ROOT)), public(&key(ROOT + 100)))
    }
}

fn enrol(workspace: Option<WorkspaceId>, role: Role, signer: &SigningKey, gateway: Option<GatewayId>) -> Action {
    let possessed = possession(ORIGIN, workspace, role, public(signer), gateway);
    Action::Enrol(wire::Enrol {
        role: role as i32,
        public_key: Bytes::copy_from_slice(&public(signer).to_bytes()),
        gateway: gateway.map(Into::into),
        name: "test".to_owned(),
        possession: Some(Bytes::copy_from_slice(&sign(signer, Context::Possession, &possessed))),
    })
}

fn roster(workspace: &Workspace, touched: &[(GatewayId, Epoch)], full: bool) -> Vec<u8> {
    let mut entries = Vec::new();
    for (gateway, numbering) in &workspace.gateways {
        for (epoch, state) in &numbering.epochs {
            if touched.contains(&(*gateway, *epoch)) || (full && !state.closed) {
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
    let (id, segment) = (workspace.id.into(), workspace.segment);
    prost_bytes(&wire::Roster { version: FORMAT_VERSION, workspace: id, segment, full, entries })
}

fn prost_bytes(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}

impl Gateway {
    /// Begins another epoch; with a reason it knows nothing of the one before.
    pub(crate) fn reopen(&mut self, reason: Option<OpeningReason>) {
        self.epoch = Epoch([self.epoch.0[0].wrapping_add(1); 16]);
        (self.batch_number, self.next_record) = (0, 0);
        if let Some(reason) = reason {
            (self.previous, self.reason) = (HeaderHash::ZERO, reason);
        }
    }

    /// The next batch: header bytes, and the whole.
    fn batch(&mut self, workspace: WorkspaceId, records: &[Bytes], at: u64) -> (Vec<u8>, Vec<u8>) {
        let dropped = std::mem::take(&mut self.dropped);
        self.next_record += dropped;
        let mut header = Header {
            origin: ORIGIN.to_owned(),
            workspace,
            gateway: self.id,
            key_id: public(&self.key).id(Role::Gateway),
            epoch: self.epoch,
            batch_number: self.batch_number,
            first_record: self.next_record,
            record_count: 0,
            previous: self.previous,
            opening_reason: (self.previous == HeaderHash::ZERO).then_some(self.reason),
            batch_root: RootHash::ZERO,
            last_head: self.held.clone(),
            dropped,
            drop_reason: (dropped > 0).then_some(wire::DropReason::SpoolFull),
            heartbeat: records.is_empty(),
            close: false,
            created_at: at,
        };
        let mut seed = [self.id.0[0]; 32];
        seed[..8].copy_from_slice(&self.batch_number.to_be_bytes());
        batch::seal_header(&mut header, &seed, records);
        let bytes = header.encode();
        self.previous = custody::hash::header_hash(&bytes);
        self.batch_number += 1;
        self.next_record += records.len() as u64;
        let whole = batch::encode_signed(&bytes, &self.key, &seed, records);
        (bytes, whole)
    }
}

pub(crate) fn opened() -> Bytes {
    opened_as(wire::WriterClass::Intermittent)
}

/// The record of a writer of this class, that will never be silent for more than ten minutes.
pub(crate) fn opened_as(class: wire::WriterClass) -> Bytes {
    let event = wire::gateway_event::Event::Opened(wire::Opened {
        product: "test".to_owned(),
        product_version: "1".to_owned(),
        configuration_digest: vec![7; 32].into(),
        clock: wire::ClockState::Synchronised as i32,
        class: class as i32,
        silence_us_max: 600_000_000,
    });
    record::encode(Kind::GatewayEvent(wire::GatewayEvent { at: BEGINNING, event: Some(event) })).into()
}

/// A call as gateways write them by the thousand, with trace context; different for each number.
pub(crate) fn call(number: u64) -> Bytes {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let id = |kind: u8, of: u64| {
        let mut bytes = [kind; 16];
        bytes[8..].copy_from_slice(&of.wrapping_mul(0xd6e8_feb8_6659_fd93).to_be_bytes());
        Some(Bytes::copy_from_slice(&bytes))
    };
    let trace = [mixed.to_be_bytes(), mixed.rotate_left(17).to_be_bytes()].concat();
    let ok = mixed >> 60 != 0;
    record::encode(Kind::Call(wire::Call {
        call_number: number,
        phase: wire::Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        member: id(1, mixed >> 58),
        token: id(2, mixed >> 58),
        agent: id(3, mixed >> 57),
        client: Some(wire::call::Client::ClientName("claude-desktop".to_owned())),
        client_release: Some(wire::call::ClientRelease::ClientVersion("1.4.2".to_owned())),
        server: "files".to_owned(),
        target: Some(wire::call::Target::Tool(
            ["read_file", "write_file", "search"][(mixed >> 40) as usize % 3].to_owned(),
        )),
        request: Some(wire::call::Request::Method("tools/call".to_owned())),
        protocol: "2025-06-18".to_owned(),
        decision: wire::Decision::Allowed as i32,
        rule: "default".to_owned(),
        access_policy_digest: Some(vec![5; 32].into()),
        definition_digest: Some(vec![6; 32].into()),
        started_at: BEGINNING + number * 137,
        duration_us: 1_000 + (mixed >> 46),
        outcome: if ok { wire::Outcome::Ok } else { wire::Outcome::ToolError } as i32,
        request_bytes: 100 + (mixed >> 54),
        response_bytes: 400 + (mixed >> 50),
        trace: Some(wire::TraceContext {
            trace_id: trace.clone().into(),
            span_id: Bytes::copy_from_slice(&trace[4..12]),
            flags: 1,
        }),
        ..Default::default()
    }))
    .into()
}

/// Two workspaces, three gateways, several segments, heartbeats; records over segment borders. Everything published.
pub(crate) fn small(dir: &Path) -> (Ledger, Vec<Workspace>) {
    let mut ledger = Ledger::new(dir);
    let mut acme = ledger.create(0xa1, "acme");
    let mut beta = ledger.create(0xb2, "beta/eu");
    let mut one = ledger.enrol(&mut acme, 0x11);
    let mut two = ledger.enrol(&mut acme, 0x22);
    let mut three = ledger.enrol(&mut beta, 0x33);
    ledger.take(&mut acme, &mut one, &[opened(), call(0), call(1)]);
    ledger.take(&mut acme, &mut two, &[opened()]);
    ledger.receipt(&acme, &mut [&mut one, &mut two]);
    ledger.take(&mut beta, &mut three, &[opened(), call(0), call(1)]);
    ledger.cut(&mut acme);
    ledger.publish();
    ledger.take(&mut acme, &mut one, &[]);
    ledger.take(&mut acme, &mut two, &(2..9).map(call).collect::<Vec<_>>());
    ledger.receipt(&acme, &mut [&mut two]);
    ledger.take(&mut acme, &mut one, &[]);
    ledger.cut(&mut acme);
    ledger.take(&mut acme, &mut one, &[]);
    ledger.cut(&mut acme);
    ledger.take(&mut acme, &mut one, &(9..12).map(call).collect::<Vec<_>>());
    ledger.take(&mut acme, &mut two, &[call(12)]);
    ledger.cut(&mut acme);
    ledger.cut(&mut beta);
    ledger.publish();
    (ledger, vec![acme, beta])
}
