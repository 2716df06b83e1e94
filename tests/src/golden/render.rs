//! From what a ledger holds to the objects of its archive. All that follows from something else is computed here, and at
//! each step a [`Liar`] may put something else in its place; what is computed later follows the lie.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    archive,
    batch::Numbering,
    hash::object_hash,
    head::history_leaf,
    id::{Epoch, GatewayId, ObjectHash, RootHash, WorkspaceId},
    log::{encode_bundle, encode_seal_entry, tile, tiles_between},
    merkle::{HistoryTree, LogTree, SegmentTree, Tree, log_leaf},
    note::{Checkpoint, sign_checkpoint},
    segment::{Content, Entry, Seal, SegmentHeader, Writer, encode_entry, object_blake3, roster_hash},
    wire::{LeafKind, Roster, RosterEntry},
};
use prost::Message as _;

use super::{
    keys,
    ledger::{Committed, Ledger, LogItem, Segment},
};

/// Which segment of which workspace.
pub type At = (WorkspaceId, u64);

/// Changes what is computed, each where it is computed. Nothing by default.
pub trait Liar {
    /// The bytes of one entry of a segment.
    fn entry(&mut self, _at: At, _leaf: usize, _bytes: &mut Vec<u8>) {}
    /// The bytes of a segment's roster.
    fn roster(&mut self, _at: At, _roster: &mut Vec<u8>) {}
    /// The whole object of a segment.
    fn object(&mut self, _at: At, _object: &mut Vec<u8>) {}
    /// A seal.
    fn seal(&mut self, _at: At, _seal: &mut Seal) {}
    /// A seal's bytes.
    fn seal_bytes(&mut self, _at: At, _bytes: &mut Vec<u8>) {}
    /// The entries of the log.
    fn log(&mut self, _entries: &mut Vec<Vec<u8>>) {}
    /// A checkpoint before it is signed.
    fn checkpoint(&mut self, _checkpoint: &mut Checkpoint) {}
}

/// No lie at all.
pub struct Truth;

impl Liar for Truth {}

/// The objects of an archive, and where the important ones are.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// By name.
    pub objects: BTreeMap<String, Bytes>,
    /// Names of segment objects.
    pub segment_names: BTreeMap<At, String>,
    /// Names of seals.
    pub seal_names: BTreeMap<At, String>,
    /// Hashes of seals.
    pub seals: BTreeMap<At, ObjectHash>,
    /// Entries of the log.
    pub entries: Vec<Vec<u8>>,
    /// Root of all entries; `None` before they are known.
    pub root: Option<RootHash>,
}

/// Makes the archive.
pub fn render(ledger: &Ledger, liar: &mut impl Liar) -> Rendered {
    let mut out = Rendered::default();
    for workspace in &ledger.workspaces {
        let mut rosters = Rosters::default();
        let mut history = Tree::<HistoryTree>::default();
        for (number, segment) in (0_u64..).zip(&workspace.segments) {
            render_segment((workspace.id, number), segment, &mut rosters, &mut history, liar, &mut out);
        }
        for (serial, object) in (0_u64..).zip(&workspace.statements) {
            let name = archive::statement(Some(workspace.id), serial, object_hash(object));
            out.objects.insert(name, object.clone());
        }
    }
    for (serial, object) in (0_u64..).zip(&ledger.statements) {
        out.objects.insert(archive::statement(None, serial, object_hash(object)), object.clone());
    }
    render_log(ledger, liar, &mut out);
    out
}

fn render_segment(
    at: At,
    segment: &Segment,
    rosters: &mut Rosters,
    history: &mut Tree<HistoryTree>,
    liar: &mut impl Liar,
    out: &mut Rendered,
) {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for (leaf, committed) in segment.leaves.iter().enumerate() {
        let mut bytes = encode_entry(&committed.leaf, committed.signed.clone());
        liar.entry(at, leaf, &mut bytes);
        entries.push(bytes);
    }
    let mut roster = rosters.of(at, &segment.leaves).encode_to_vec();
    liar.roster(at, &mut roster);
    let mut object = write_object(&segment.header, &entries, &roster);
    liar.object(at, &mut object);
    let mut seal = seal_of(at, segment, &entries, &roster, &object, history.root());
    liar.seal(at, &mut seal);
    history.push(history_leaf(at.1, seal.size, &seal.root));
    let mut bytes = seal.encode();
    liar.seal_bytes(at, &mut bytes);
    let (name, seal_name) =
        (archive::segment(at.0, at.1, object_hash(&object)), archive::seal(at.0, at.1, object_hash(&bytes)));
    out.seals.insert(at, object_hash(&bytes));
    out.segment_names.insert(at, name.clone());
    out.seal_names.insert(at, seal_name.clone());
    out.objects.insert(name, object.into());
    out.objects.insert(seal_name, bytes.into());
}

/// Writes a segment object around entries; of what is no entry any more, the position counts on from the one before.
pub fn write_object(header: &SegmentHeader, entries: &[Vec<u8>], roster: &[u8]) -> Vec<u8> {
    let compress = |content: &[u8]| zstd::bulk::compress(content, 3);
    let mut writer = Writer::new(header);
    let mut position = header.first_position;
    for bytes in entries {
        position = Entry::parse(bytes.clone().into()).map_or(position, |entry| entry.leaf.first_position);
        writer.push(bytes, position, compress).expect("memory takes what is written");
    }
    writer.finish(roster, compress).expect("memory takes what is written")
}

fn seal_of(
    (workspace, number): At,
    segment: &Segment,
    entries: &[Vec<u8>],
    roster: &[u8],
    object: &[u8],
    history_root: RootHash,
) -> Seal {
    // Of an entry that a lie left unreadable the seal says what the ledger knows of it.
    let read = |(bytes, committed): (&Vec<u8>, &Committed)| match Entry::parse(bytes.clone().into()) {
        Ok(entry) => (entry.leaf, entry.records(), entry.leaf_hash()),
        Err(_) => (committed.leaf, committed.records(), committed.hash()),
    };
    let parsed: Vec<_> = entries.iter().zip(&segment.leaves).map(read).collect();
    let tree: Tree<SegmentTree> = parsed.iter().map(|(_, _, hash)| *hash).collect();
    let of = |kind: LeafKind| parsed.iter().filter(|(leaf, ..)| leaf.kind == kind).count() as u64;
    let times = || parsed.iter().map(|(leaf, ..)| leaf.received_at);
    let header = &segment.header;
    Seal {
        origin: header.origin.clone(),
        workspace,
        segment: number,
        incarnation: header.incarnation,
        size: tree.size(),
        root: tree.root(),
        history_root,
        first_position: header.first_position,
        record_count: parsed.iter().map(|(_, records, _)| records).sum(),
        batch_count: of(LeafKind::Batch),
        equivocation_count: of(LeafKind::Equivocation),
        statement_count: of(LeafKind::Statement),
        first_received_at: times().min().unwrap_or(0),
        last_received_at: times().max().unwrap_or(0),
        roster_hash: roster_hash(roster),
        object_length: object.len() as u64,
        object_blake3: object_blake3(object),
        object_sha256: object_hash(object),
        ledger_chain: header.ledger_chain,
        workspace_chain: header.workspace_chain,
        not_before_size: segment.not_before.0,
        not_before: segment.not_before.1,
        sealed_at: segment.sealed_at,
    }
}

/// What the rosters of one workspace say, segment after segment.
#[derive(Default)]
struct Rosters {
    gateways: BTreeMap<GatewayId, Numbering>,
    day: Option<u64>,
}

impl Rosters {
    fn of(&mut self, (workspace, segment): At, leaves: &[Committed]) -> Roster {
        let day = leaves.iter().map(|committed| committed.leaf.received_at).min().unwrap_or(0) / 86_400_000_000;
        let full = self.day.replace(day) != Some(day);
        let mut touched: BTreeSet<(GatewayId, Epoch)> = BTreeSet::new();
        for committed in leaves.iter().filter(|committed| committed.leaf.kind == LeafKind::Batch) {
            let bytes = encode_entry(&committed.leaf, committed.signed.clone());
            let Ok(Entry { content: Content::Batch(batch), .. }) = Entry::parse(bytes.into()) else { continue };
            touched.insert((batch.header.gateway, batch.header.epoch));
            self.gateways.entry(batch.header.gateway).or_default().take(&batch.header, batch.header_hash());
        }
        let mut entries = Vec::new();
        for (gateway, numbering) in &self.gateways {
            for (epoch, state) in &numbering.epochs {
                if touched.contains(&(*gateway, *epoch)) || (full && !state.closed) {
                    entries.push(RosterEntry {
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
        Roster { version: 1, workspace: workspace.into(), segment, full, entries }
    }
}

fn render_log(ledger: &Ledger, liar: &mut impl Liar, out: &mut Rendered) {
    let entry = |item: &LogItem| match item {
        LogItem::Entry(bytes) => Some(bytes.clone()),
        LogItem::Seal(id, segment) => Some(encode_seal_entry(*id, *segment, *out.seals.get(&(*id, *segment))?)),
    };
    let mut entries: Vec<Vec<u8>> = ledger.log.iter().filter_map(entry).collect();
    liar.log(&mut entries);
    let tree: Tree<LogTree> = entries.iter().map(|bytes| log_leaf(bytes).0).collect();
    let size = tree.size();
    let mut from = 0;
    let newest = ledger.publications.last().map_or(0, |publication| publication.checkpoint.size);
    for publication in &ledger.publications {
        // A log that a lie made longer or shorter ends in the newest checkpoint all the same.
        let last = publication.checkpoint.size == newest;
        let told = if last { size } else { publication.checkpoint.size };
        let Some(root) = tree.root_at(told).filter(|_| told > from) else { continue };
        put_tiles(&tree, &entries, from, told, &mut out.objects);
        from = told;
        let mut checkpoint = Checkpoint { origin: ledger.origin.clone(), size: told, root };
        liar.checkpoint(&mut checkpoint);
        let signed = sign_checkpoint(checkpoint, &keys::signing(publication.key));
        out.objects.insert(archive::checkpoint(told), signed.to_bytes().into());
        for (witness, line) in &publication.cosignatures {
            out.objects.insert(archive::cosignature(told, witness), line.clone().into());
        }
    }
    out.root = Some(tree.root());
    out.entries = entries;
}

/// Tiles and bundles that a tree of `size` has beyond one of `from`.
pub fn put_tiles(
    tree: &Tree<LogTree>,
    entries: &[Vec<u8>],
    from: u64,
    size: u64,
    objects: &mut BTreeMap<String, Bytes>,
) {
    for (level, number, width) in tiles_between(from, size) {
        let bytes = match level {
            Some(level) => tile(tree, level, number, width).map(|hashes| hashes.concat()),
            None => {
                let first = usize::try_from(number * 256).unwrap_or(usize::MAX);
                let width = usize::try_from(width).unwrap_or(0);
                entries.get(first..first + width).map(encode_bundle)
            }
        };
        if let Some(bytes) = bytes {
            objects.insert(archive::tile(level, number, width), bytes.into());
        }
    }
}
