//! Segments: leaves, the object that holds them, the roster and the seal (FORMAT.md, 9).
//!
//! The object is `CUSTODY1`, the length of its header, the header, zstd frames, index, roster, the lengths of those two and
//! `1YDOTSUC`. This file reads and writes everything but zstd itself, which the caller brings.

use std::ops::Range;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    FORMAT_VERSION,
    batch::Submitted,
    hash::Use,
    id::{ObjectHash, RootHash, WorkspaceId},
    merkle::Node,
    statement::{ChainHead, Signed},
    strict::{self, Malformed, NotStrict, table},
    wire::{self, LeafKind},
};

/// Uncompressed bytes at which a segment is cut.
pub const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Leaves at which a segment is cut: what `rs_merkle` builds in 20 MB.
pub const SEGMENT_LEAVES_MAX: u64 = 65_536;
/// Greatest length of a segment object: what is cut, one batch more, and its index and roster, even if nothing compresses.
pub const OBJECT_BYTES_MAX: u64 = 160 << 20;
/// Greatest sum of the uncompressed lengths of an object's frames: what is cut, one batch more, and the statements that share
/// the cut. Without it 160 MiB of frames could ask a verifier for 190 GiB of memory.
pub const CONTENT_BYTES_MAX: u64 = 96 << 20;
/// Uncompressed bytes at which a frame ends.
pub const FRAME_BYTES: usize = 1 << 20;
/// Greatest uncompressed length of a frame: one that just did not end, and one entry more.
pub const FRAME_BYTES_MAX: u64 = 3 << 20;

const MAGIC: &[u8; 8] = b"CUSTODY1";
const TAIL: &[u8; 8] = b"1YDOTSUC";
const TRAILER_BYTES: usize = 16;

/// What the ledger adds to what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What it is.
    pub kind: LeafKind,
    /// Position of the first record, or the next position for what takes none.
    pub first_position: u64,
    /// Ledger's clock, microseconds.
    pub received_at: u64,
    /// Term in which it was committed.
    pub term: u64,
}

impl Leaf {
    /// Hash of the leaf with the bytes that were signed and their signature.
    pub fn hash(&self, signed: &[u8], signature: &[u8]) -> Node {
        Use::SegmentLeaf
            .hasher()
            .fixed(&[self.kind as u8])
            .number(self.first_position)
            .number(self.received_at)
            .number(self.term)
            .string(signed)
            .string(signature)
            .finish()
    }
}

/// What an entry of a segment carries.
#[derive(Clone, Debug)]
pub enum Content {
    /// A batch, or the second copy of an equivocation.
    Batch(Box<Submitted>),
    /// A statement of the workspace's chain.
    Statement(Box<Signed>),
}

/// One leaf of a segment with its content, in strict form.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the ledger added.
    pub leaf: Leaf,
    /// What came.
    pub content: Content,
}

impl Entry {
    /// Reads a `SegmentEntry`, its content included; records are not looked into.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: Bytes) -> Result<Self, NotStrict> {
        let raw: wire::SegmentEntry = strict::decode_shared(&table::SEGMENT_ENTRY, bytes)?;
        let leaf =
            Leaf { kind: raw.kind(), first_position: raw.first_position, received_at: raw.received_at, term: raw.term };
        let content = match leaf.kind {
            LeafKind::Statement => Content::Statement(Box::new(Signed::parse(&raw.signed)?)),
            _ => Content::Batch(Box::new(Submitted::parse(raw.signed)?)),
        };
        Ok(Self { leaf, content })
    }

    /// Hash of the leaf.
    pub fn leaf_hash(&self) -> Node {
        match &self.content {
            Content::Batch(batch) => self.leaf.hash(&batch.header_bytes, &batch.signature),
            Content::Statement(signed) => self.leaf.hash(&signed.statement_bytes, &signed.signature),
        }
    }

    /// How many positions it takes.
    pub fn records(&self) -> u64 {
        match (&self.content, self.leaf.kind) {
            (Content::Batch(batch), LeafKind::Batch) => u64::from(batch.header.record_count),
            _ => 0,
        }
    }
}

/// Bytes of a `SegmentEntry` around what came.
pub fn encode_entry(leaf: &Leaf, signed: Bytes) -> Vec<u8> {
    wire::SegmentEntry {
        version: FORMAT_VERSION,
        kind: leaf.kind as i32,
        first_position: leaf.first_position,
        received_at: leaf.received_at,
        term: leaf.term,
        signed,
    }
    .encode_to_vec()
}

/// Where a segment stands, as its object's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are described in segment.proto")]
pub struct SegmentHeader {
    pub origin: String,
    pub workspace: WorkspaceId,
    pub segment: u64,
    pub incarnation: u64,
    pub first_position: u64,
    pub ledger_chain: ChainHead,
    pub workspace_chain: ChainHead,
}

impl SegmentHeader {
    fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let raw: wire::SegmentHeader = strict::decode(&table::SEGMENT_HEADER, bytes)?;
        Ok(Self {
            workspace: raw.workspace.as_ref().try_into()?,
            segment: raw.segment,
            incarnation: raw.incarnation,
            first_position: raw.first_position,
            ledger_chain: ChainHead::from_wire(raw.ledger_chain.as_ref()),
            workspace_chain: ChainHead::from_wire(raw.workspace_chain.as_ref()),
            origin: raw.origin,
        })
    }

    fn encode(&self) -> Vec<u8> {
        wire::SegmentHeader {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            workspace: self.workspace.into(),
            segment: self.segment,
            incarnation: self.incarnation,
            first_position: self.first_position,
            ledger_chain: Some(self.ledger_chain.to_wire()),
            workspace_chain: Some(self.workspace_chain.to_wire()),
        }
        .encode_to_vec()
    }

    /// Whether the seal speaks of this segment.
    pub fn agrees_with(&self, seal: &Seal) -> bool {
        self.origin == seal.origin
            && self.workspace == seal.workspace
            && self.segment == seal.segment
            && self.incarnation == seal.incarnation
            && self.first_position == seal.first_position
            && self.ledger_chain == seal.ledger_chain
            && self.workspace_chain == seal.workspace_chain
    }
}

/// A segment object taken apart; frames still compressed.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it stands.
    pub header: SegmentHeader,
    /// Its frames, which fill the room between header and index.
    pub frames: Vec<wire::SegmentFrame>,
    /// Last numbers of every epoch touched.
    pub roster: wire::Roster,
    /// The roster's bytes, whose hash the seal names.
    pub roster_bytes: Bytes,
    bytes: Bytes,
}

impl Object {
    /// Reads a segment object.
    ///
    /// # Errors
    /// [`NotStrict`], also for frames that leave a gap, overlap, or reach past the index.
    pub fn parse(bytes: Bytes) -> Result<Self, NotStrict> {
        let fault = |rule| NotStrict::from(Malformed::new("segment object", 0, rule));
        let layout = Layout::parse(&bytes).ok_or_else(|| fault("the outer shape is wrong"))?;
        let part = |range: &Range<usize>| bytes.get(range.clone()).ok_or_else(|| fault("the outer shape is wrong"));
        let header = SegmentHeader::parse(part(&layout.header)?)?;
        let index: wire::SegmentIndex = strict::decode(&table::SEGMENT_INDEX, part(&layout.index)?)?;
        let roster_bytes = Bytes::copy_from_slice(part(&layout.roster)?);
        let roster = strict::decode(&table::ROSTER, &roster_bytes)?;
        let mut end = layout.header.end as u64;
        let (mut leaves, mut content, mut position) = (0_u64, 0_u64, header.first_position);
        for frame in &index.frames {
            if frame.offset != end || frame.length == 0 || frame.leaf_count == 0 {
                return Err(fault("a frame does not follow the one before"));
            }
            if frame.first_leaf != leaves || frame.first_position < position {
                return Err(fault("a frame's numbers do not follow the one before"));
            }
            position = frame.first_position;
            leaves = leaves.checked_add(frame.leaf_count).ok_or_else(|| fault("too many leaves"))?;
            content = content.saturating_add(frame.content_length);
            end = end.checked_add(frame.length).ok_or_else(|| fault("too long"))?;
        }
        if end != layout.index.start as u64 {
            return Err(fault("the frames do not reach to the index"));
        }
        if content > CONTENT_BYTES_MAX {
            return Err(fault("more content than a segment may have"));
        }
        Ok(Self { header, frames: index.frames, roster, roster_bytes, bytes })
    }

    /// Lets the frames' bytes go, once nobody will read them.
    #[must_use]
    pub fn without_frames(mut self) -> Self {
        self.bytes = Bytes::new();
        self
    }

    /// Compressed bytes of a frame.
    pub fn frame(&self, frame: &wire::SegmentFrame) -> Option<&[u8]> {
        let start = usize::try_from(frame.offset).ok()?;
        let end = start.checked_add(usize::try_from(frame.length).ok()?)?;
        self.bytes.get(start..end)
    }
}

struct Layout {
    header: Range<usize>,
    index: Range<usize>,
    roster: Range<usize>,
}

impl Layout {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() as u64 > OBJECT_BYTES_MAX || !bytes.starts_with(MAGIC) || !bytes.ends_with(TAIL) {
            return None;
        }
        let header_start = MAGIC.len().checked_add(4)?;
        let header_end = header_start.checked_add(number(bytes.get(MAGIC.len()..header_start)?)?)?;
        let trailer = bytes.len().checked_sub(TRAILER_BYTES)?;
        let (index_length, roster_length) = bytes.get(trailer..trailer.checked_add(8)?)?.split_at_checked(4)?;
        let roster_start = trailer.checked_sub(number(roster_length)?)?;
        let index_start = roster_start.checked_sub(number(index_length)?)?;
        let layout =
            Self { header: header_start..header_end, index: index_start..roster_start, roster: roster_start..trailer };
        (header_end <= index_start).then_some(layout)
    }
}

fn number(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?)).ok()
}

/// Takes the entries of an uncompressed frame apart: 4 bytes of length before each.
///
/// # Errors
/// [`NotStrict`] when the lengths do not fill the frame.
pub fn split_frame(mut content: Bytes) -> Result<Vec<Bytes>, NotStrict> {
    let fault = || NotStrict::from(Malformed::new("frame", 0, "the entries do not fill it"));
    let mut entries = Vec::new();
    while !content.is_empty() {
        let length = content.get(..4).and_then(number).ok_or_else(fault)?;
        let end = length.checked_add(4).filter(|end| *end <= content.len() && length > 0).ok_or_else(fault)?;
        entries.push(content.slice(4..end));
        content = content.split_off(end);
    }
    Ok(entries)
}

/// Writes a segment object; the caller compresses.
pub struct Writer {
    bytes: Vec<u8>,
    frames: Vec<wire::SegmentFrame>,
    pending: Vec<u8>,
    pending_leaves: u64,
    pending_position: u64,
    leaves: u64,
}

impl Writer {
    /// Begins an object.
    pub fn new(header: &SegmentHeader) -> Self {
        let encoded = header.encode();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&length_prefix(encoded.len()));
        bytes.extend_from_slice(&encoded);
        Self {
            bytes,
            frames: Vec::new(),
            pending: Vec::new(),
            pending_leaves: 0,
            pending_position: header.first_position,
            leaves: 0,
        }
    }

    /// Adds an entry whose first position is `position`; ends the frame with `compress` when it is full.
    ///
    /// # Errors
    /// What `compress` says.
    pub fn push<E>(
        &mut self,
        entry: &[u8],
        position: u64,
        compress: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        if self.pending_leaves == 0 {
            self.pending_position = position;
        }
        self.pending.extend_from_slice(&length_prefix(entry.len()));
        self.pending.extend_from_slice(entry);
        self.pending_leaves = self.pending_leaves.saturating_add(1);
        if self.pending.len() >= FRAME_BYTES { self.end_frame(compress) } else { Ok(()) }
    }

    fn end_frame<E>(&mut self, compress: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<(), E> {
        if self.pending_leaves == 0 {
            return Ok(());
        }
        let compressed = compress(&self.pending)?;
        self.frames.push(wire::SegmentFrame {
            offset: self.bytes.len() as u64,
            length: compressed.len() as u64,
            content_length: self.pending.len() as u64,
            first_leaf: self.leaves,
            leaf_count: self.pending_leaves,
            first_position: self.pending_position,
        });
        self.bytes.extend_from_slice(&compressed);
        self.leaves = self.leaves.saturating_add(self.pending_leaves);
        self.pending.clear();
        self.pending_leaves = 0;
        Ok(())
    }

    /// Ends the object with the roster's bytes.
    ///
    /// # Errors
    /// What `compress` says.
    pub fn finish<E>(
        mut self,
        roster: &[u8],
        compress: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        self.end_frame(compress)?;
        let index = wire::SegmentIndex { version: FORMAT_VERSION, frames: self.frames }.encode_to_vec();
        self.bytes.extend_from_slice(&index);
        self.bytes.extend_from_slice(roster);
        self.bytes.extend_from_slice(&length_prefix(index.len()));
        self.bytes.extend_from_slice(&length_prefix(roster.len()));
        self.bytes.extend_from_slice(TAIL);
        Ok(self.bytes)
    }
}

fn length_prefix(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Hash of a roster's bytes, as its seal names it.
pub fn roster_hash(roster: &[u8]) -> [u8; 32] {
    Use::Roster.hasher().fixed(roster).finish()
}

/// BLAKE3 of a segment object, as its seal names it.
pub fn object_blake3(object: &[u8]) -> [u8; 32] {
    Use::Segment.hasher().fixed(object).finish()
}

/// What a seal says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are described in segment.proto")]
pub struct Seal {
    pub origin: String,
    pub workspace: WorkspaceId,
    pub segment: u64,
    pub incarnation: u64,
    pub size: u64,
    pub root: RootHash,
    pub history_root: RootHash,
    pub first_position: u64,
    pub record_count: u64,
    pub batch_count: u64,
    pub equivocation_count: u64,
    pub statement_count: u64,
    pub first_received_at: u64,
    pub last_received_at: u64,
    pub roster_hash: [u8; 32],
    pub object_length: u64,
    pub object_blake3: [u8; 32],
    pub object_sha256: ObjectHash,
    pub ledger_chain: ChainHead,
    pub workspace_chain: ChainHead,
    pub not_before_size: u64,
    pub not_before: [u8; 32],
    pub sealed_at: u64,
}

impl Seal {
    /// Reads a seal.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let raw: wire::Seal = strict::decode(&table::SEAL, bytes)?;
        Ok(Self {
            workspace: raw.workspace.as_ref().try_into()?,
            segment: raw.segment,
            incarnation: raw.incarnation,
            size: raw.size,
            root: raw.root.as_ref().try_into()?,
            history_root: raw.history_root.as_ref().try_into()?,
            first_position: raw.first_position,
            record_count: raw.record_count,
            batch_count: raw.batch_count,
            equivocation_count: raw.equivocation_count,
            statement_count: raw.statement_count,
            first_received_at: raw.first_received_at,
            last_received_at: raw.last_received_at,
            roster_hash: fixed(&raw.roster_hash)?,
            object_length: raw.object_length,
            object_blake3: fixed(&raw.object_blake3)?,
            object_sha256: raw.object_sha256.as_ref().try_into()?,
            ledger_chain: ChainHead::from_wire(raw.ledger_chain.as_ref()),
            workspace_chain: ChainHead::from_wire(raw.workspace_chain.as_ref()),
            not_before_size: raw.not_before_size,
            not_before: fixed(&raw.not_before)?,
            sealed_at: raw.sealed_at,
            origin: raw.origin,
        })
    }

    /// Strict bytes of this seal.
    pub fn encode(&self) -> Vec<u8> {
        wire::Seal {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            workspace: self.workspace.into(),
            segment: self.segment,
            incarnation: self.incarnation,
            size: self.size,
            root: self.root.into(),
            history_root: self.history_root.into(),
            first_position: self.first_position,
            record_count: self.record_count,
            batch_count: self.batch_count,
            equivocation_count: self.equivocation_count,
            statement_count: self.statement_count,
            first_received_at: self.first_received_at,
            last_received_at: self.last_received_at,
            roster_hash: Bytes::copy_from_slice(&self.roster_hash),
            object_length: self.object_length,
            object_blake3: Bytes::copy_from_slice(&self.object_blake3),
            object_sha256: self.object_sha256.into(),
            ledger_chain: Some(self.ledger_chain.to_wire()),
            workspace_chain: Some(self.workspace_chain.to_wire()),
            not_before_size: self.not_before_size,
            not_before: Bytes::copy_from_slice(&self.not_before),
            sealed_at: self.sealed_at,
        }
        .encode_to_vec()
    }

    /// Position after the segment's last record.
    pub fn next_position(&self) -> u64 {
        self.first_position.saturating_add(self.record_count)
    }
}

fn fixed(bytes: &[u8]) -> Result<[u8; 32], Malformed> {
    bytes.try_into().map_err(|_| Malformed::new("Seal", 0, "wrong length"))
}
