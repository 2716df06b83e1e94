//! Frames of the spool's files: length, checksum, protobuf. The checksum covers file number and offset, so that bytes of
//! another place never pass for this one's.

use bytes::Bytes;
use prost::Message;

/// Length and checksum before each frame's bytes.
const HEADER_BYTES: usize = 12;
/// Greatest length of a frame's bytes: a snapshot of many calls in progress; more is not ours.
const FRAME_BYTES_MAX: usize = 256 << 20;

#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(oneof = "Entry", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    entry: Option<Entry>,
}

/// What one frame says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Entry {
    /// Everything before, but the batches.
    #[prost(message, boxed, tag = "1")]
    Snapshot(Box<Snapshot>),
    /// A record with its number.
    #[prost(message, tag = "2")]
    Recorded(Recorded),
    /// A call has begun.
    #[prost(message, tag = "3")]
    Intent(Intent),
    /// A `SignedBatch`, the next in order; in the statements' file a `SignedStatement`.
    #[prost(bytes = "bytes", tag = "4")]
    Batch(Bytes),
    /// A head that was verified, and the batches that it covers.
    #[prost(message, tag = "5")]
    Receipts(Receipts),
    /// All batches of the segments up to this one are archived.
    #[prost(uint64, tag = "6")]
    Archived(u64),
    /// All batches with a receipt up to this order are not kept any longer.
    #[prost(uint64, tag = "7")]
    LetGo(u64),
    /// The ledger lost the batches from this order on.
    #[prost(uint64, tag = "8")]
    Unreceived(u64),
    /// Numbers that no record bears.
    #[prost(message, tag = "9")]
    Dropped(Dropped),
    /// The records of the batch of this order are in later batches.
    #[prost(uint64, tag = "10")]
    SignedAgain(u64),
    /// All of this file before this offset was durable when this was written: whoever finds it damaged has not found what a
    /// crash tore.
    #[prost(uint64, tag = "11")]
    Durable(u64),
}

/// A record with its number.
#[derive(Clone, PartialEq, Message)]
pub struct Recorded {
    /// Within the epoch.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Strict bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub record: Bytes,
    /// The call that it belongs to, which it ends unless it ships the intent.
    #[prost(uint64, optional, tag = "3")]
    pub call: Option<u64>,
    /// It is the intent of a call that goes on.
    #[prost(bool, tag = "4")]
    pub ships_intent: bool,
}

/// A call has begun.
#[derive(Clone, PartialEq, Message)]
pub struct Intent {
    /// Call number.
    #[prost(uint64, tag = "1")]
    pub call: u64,
    /// A `Call` as far as it is known.
    #[prost(bytes = "bytes", tag = "2")]
    pub bytes: Bytes,
    /// It is in a record of its own already.
    #[prost(bool, tag = "3")]
    pub shipped: bool,
}

/// A receipt, as far as the spool needs it.
#[derive(Clone, PartialEq, Message)]
pub struct Receipts {
    /// A `SignedHead`.
    #[prost(bytes = "bytes", tag = "1")]
    pub head: Bytes,
    /// Batches that it covers.
    #[prost(message, repeated, tag = "2")]
    pub received: Vec<Received>,
}

/// A batch that the ledger holds durably.
#[derive(Clone, PartialEq, Message)]
pub struct Received {
    /// In the spool.
    #[prost(uint64, tag = "1")]
    pub order: u64,
    /// Where it stands in the ledger.
    #[prost(uint64, tag = "2")]
    pub segment: u64,
}

/// Numbers that no record bears.
#[derive(Clone, PartialEq, Message)]
pub struct Dropped {
    /// How many.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// A `DropReason`.
    #[prost(int32, tag = "2")]
    pub reason: i32,
}

/// Everything that the files before say, but the batches.
#[derive(Clone, PartialEq, Message)]
pub struct Snapshot {
    /// 2; 1 has no owner.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Where the gateway stands.
    #[prost(message, optional, tag = "2")]
    pub standing: Option<snapshot::Standing>,
    /// Records in no batch.
    #[prost(message, repeated, tag = "3")]
    pub pending: Vec<Recorded>,
    /// Of the next record.
    #[prost(uint64, tag = "4")]
    pub next_number: u64,
    /// A `DropReason`, or zero.
    #[prost(int32, tag = "5")]
    pub drop_reason: i32,
    /// Calls in progress.
    #[prost(message, repeated, tag = "6")]
    pub intents: Vec<Intent>,
    /// A `SignedHead`.
    #[prost(bytes = "bytes", tag = "7")]
    pub last_head: Bytes,
    /// Which batches are held.
    #[prost(message, repeated, tag = "8")]
    pub held: Vec<Range>,
    /// Of the next batch.
    #[prost(uint64, tag = "9")]
    pub next_order: u64,
    /// Whose spool it is.
    #[prost(message, optional, tag = "10")]
    pub owner: Option<snapshot::Owner>,
}

/// Parts of a snapshot.
pub(super) mod snapshot {
    use bytes::Bytes;

    /// Whose spool it is.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Owner {
        /// The organisation's log.
        #[prost(string, tag = "1")]
        pub origin: String,
        /// 16 bytes.
        #[prost(bytes = "bytes", tag = "2")]
        pub workspace: Bytes,
        /// 16 bytes.
        #[prost(bytes = "bytes", tag = "3")]
        pub gateway: Bytes,
    }

    /// Where the gateway stands.
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Standing {
        /// 16 bytes.
        #[prost(bytes = "bytes", tag = "1")]
        pub epoch: Bytes,
        /// 32 bytes.
        #[prost(bytes = "bytes", tag = "2")]
        pub key_id: Bytes,
        /// Number.
        #[prost(uint64, tag = "3")]
        pub next_batch: u64,
        /// Number.
        #[prost(uint64, tag = "4")]
        pub next_record: u64,
        /// 32 bytes.
        #[prost(bytes = "bytes", tag = "5")]
        pub previous: Bytes,
        /// An `OpeningReason`, or zero.
        #[prost(int32, tag = "6")]
        pub opening_reason: i32,
        /// Nothing follows in this epoch.
        #[prost(bool, tag = "7")]
        pub closed: bool,
    }
}

/// Held batches that follow each other and stand in one segment.
#[derive(Clone, PartialEq, Message)]
pub struct Range {
    /// Order.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Order.
    #[prost(uint64, tag = "2")]
    pub last: u64,
    /// Absent without a receipt.
    #[prost(uint64, optional, tag = "3")]
    pub segment: Option<u64>,
}

/// A frame and where it stands.
pub(super) struct Placed {
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) entry: Entry,
}

fn checksum(file: u64, offset: u64, bytes: &[u8]) -> [u8; 8] {
    // Any keyed hash does here: the checksum never leaves this machine.
    let hasher = custody::hash::Use::Text.hasher().number(file).number(offset).fixed(bytes);
    let [a, b, c, d, e, f, g, h, ..] = hasher.finish();
    [a, b, c, d, e, f, g, h]
}

pub(super) fn encode(file: u64, offset: u64, entry: Entry) -> Vec<u8> {
    let payload = Frame { entry: Some(entry) }.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&checksum(file, offset, &payload));
    bytes.extend_from_slice(&payload);
    bytes
}

/// The whole frame at the front of `bytes`, which stand at `offset`.
fn first(file: u64, offset: u64, bytes: &Bytes) -> Option<(Entry, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (check, _) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= FRAME_BYTES_MAX)?;
    let end = HEADER_BYTES.checked_add(length).filter(|end| *end <= bytes.len())?;
    let payload = bytes.slice(HEADER_BYTES..end);
    if checksum(file, offset, &payload) != *check {
        return None;
    }
    Some((Frame::decode(payload).ok()?.entry?, end))
}

pub(super) fn parse_one(file: u64, offset: u64, bytes: &Bytes) -> Option<Entry> {
    first(file, offset, bytes).map(|(entry, _)| entry)
}

/// All whole frames from the front on.
pub(super) fn parse(file: u64, bytes: &Bytes) -> Vec<Placed> {
    let mut frames = Vec::new();
    let mut offset = 0;
    while let Some((entry, length)) = first(file, offset as u64, &bytes.slice(offset..)) {
        frames.push(Placed { offset: offset as u64, length, entry });
        offset += length;
    }
    frames
}

/// Bytes of a [`Entry::Durable`]: a tag, and a number of up to ten bytes.
const DURABLE_BYTES: std::ops::RangeInclusive<usize> = 2..=11;

/// Whether anything behind `end`, where the whole frames of a file end, says that more than they was durable once: then it is
/// damage, and no crash, that ended them.
pub(super) fn was_durable_behind(file: u64, end: u64, bytes: &Bytes) -> bool {
    let from = usize::try_from(end).unwrap_or(usize::MAX);
    (from..bytes.len()).any(|offset| {
        let length = bytes.get(offset..).and_then(|rest| rest.split_first_chunk::<4>());
        let length = length.and_then(|(length, _)| usize::try_from(u32::from_le_bytes(*length)).ok());
        // Looked at first, because a checksum for each offset of a long file would take minutes.
        length.is_some_and(|length| DURABLE_BYTES.contains(&length))
            && matches!(parse_one(file, offset as u64, &bytes.slice(offset..)), Some(Entry::Durable(to)) if to > end)
    })
}

/// Whether bytes stand behind the first frame: it was whole once, because it is synced before anything follows.
pub(super) fn first_was_whole(bytes: &[u8]) -> bool {
    let Some((length, _)) = bytes.split_first_chunk::<4>() else { return false };
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    length > 0 && length.checked_add(HEADER_BYTES).is_some_and(|end| end < bytes.len())
}
