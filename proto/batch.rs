//! Batches: the header that a gateway signs, the tree of its records, and the numbering that shows what is missing
//! (FORMAT.md, 6).
//!
//! What arrives goes through [`Submitted::parse`] (form and shape), [`Submitted::is_signed_by`], [`Submitted::check_records`]
//! and [`Numbering::admit`]. The ledger and every verifier run exactly this code.

use std::collections::BTreeMap;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use prost::Message as _;

use crate::{
    FORMAT_VERSION,
    hash::{TOGETHER, Use, header_hash, keyed_hashes},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId},
    key::{Context, PublicKey, sign},
    merkle::{self, BatchTree, Node, TreeHash},
    record::{self, RecordKind},
    strict::{self, Malformed, NotStrict, table},
    wire::{self, DropReason, OpeningReason},
};

/// Greatest length of a `SignedBatch` in bytes: with 4,096 records a few percent of a segment, and one range read.
pub const BATCH_BYTES_MAX: usize = 1_048_576;

/// A batch header whose shape is right.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are described in batch.proto")]
pub struct Header {
    pub origin: String,
    pub workspace: WorkspaceId,
    pub gateway: GatewayId,
    pub key_id: KeyId,
    pub epoch: Epoch,
    pub batch_number: u64,
    pub first_record: u64,
    pub record_count: u32,
    pub previous: HeaderHash,
    pub opening_reason: Option<OpeningReason>,
    pub batch_root: RootHash,
    /// A `SignedHead`; empty for none.
    pub last_head: Bytes,
    pub dropped: u64,
    pub drop_reason: Option<DropReason>,
    pub heartbeat: bool,
    pub close: bool,
    pub created_at: u64,
}

impl Header {
    /// Whether this is its epoch's first batch.
    pub fn opens(&self) -> bool {
        self.batch_number == 0
    }

    /// Number that the epoch's next record will have.
    pub fn next_record(&self) -> u64 {
        self.first_record.saturating_add(u64::from(self.record_count))
    }

    /// Reads header bytes.
    ///
    /// # Errors
    /// [`NotStrict`], also for flags and reasons that do not fit together (FORMAT.md, 6.2).
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        Self::from_wire(strict::decode(&table::BATCH_HEADER, bytes)?).map_err(NotStrict::from)
    }

    fn from_wire(raw: wire::BatchHeader) -> Result<Self, Malformed> {
        let reasons = (raw.opening_reason.map(|_| raw.opening_reason()), raw.drop_reason.map(|_| raw.drop_reason()));
        let header = Self {
            workspace: raw.workspace.as_ref().try_into()?,
            gateway: raw.gateway.as_ref().try_into()?,
            key_id: raw.key_id.as_ref().try_into()?,
            epoch: raw.epoch.as_ref().try_into()?,
            batch_number: raw.batch_number,
            first_record: raw.first_record,
            record_count: raw.record_count,
            previous: raw.previous_header_hash.as_ref().try_into()?,
            opening_reason: reasons.0,
            batch_root: raw.batch_root.as_ref().try_into()?,
            last_head: raw.last_head,
            dropped: raw.dropped,
            drop_reason: reasons.1,
            heartbeat: raw.heartbeat,
            close: raw.close,
            created_at: raw.created_at,
            origin: raw.origin,
        };
        header.check_shape(raw.open).map_err(|rule| Malformed::new("BatchHeader", 0, rule))?;
        Ok(header)
    }

    fn check_shape(&self, open: bool) -> Result<(), &'static str> {
        let count = u64::from(self.record_count);
        let rules = [
            (open == self.opens(), "open is set in batch 0 and in no other"),
            (
                self.opening_reason.is_some() == (self.opens() && self.previous == HeaderHash::ZERO),
                "an opening reason stands where a first batch names no header, and nowhere else",
            ),
            (self.opens() || self.previous != HeaderHash::ZERO, "a later batch names the header before it"),
            (self.drop_reason.is_some() == (self.dropped > 0), "a drop has a reason, and a reason a drop"),
            (!(self.opens() && count == 0), "an opening batch has the record of its writer"),
            (self.heartbeat == (count == 0 && !self.close), "a heartbeat is a batch of none that does not close"),
            (self.first_record >= self.dropped, "the records dropped have numbers"),
            (!self.opens() || self.first_record == self.dropped, "an epoch's records begin at number 0"),
            (self.first_record.checked_add(count).is_some(), "record numbers have 64 bits"),
            (self.batch_number < u64::MAX, "batch numbers have 64 bits"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(rule))
    }

    /// Strict bytes of this header.
    pub fn encode(&self) -> Vec<u8> {
        wire::BatchHeader {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            workspace: self.workspace.into(),
            gateway: self.gateway.into(),
            key_id: self.key_id.into(),
            epoch: self.epoch.into(),
            batch_number: self.batch_number,
            first_record: self.first_record,
            record_count: self.record_count,
            previous_header_hash: self.previous.into(),
            opening_reason: self.opening_reason.map(|reason| reason as i32),
            batch_root: self.batch_root.into(),
            last_head: self.last_head.clone(),
            dropped: self.dropped,
            drop_reason: self.drop_reason.map(|reason| reason as i32),
            open: self.opens(),
            heartbeat: self.heartbeat,
            close: self.close,
            created_at: self.created_at,
        }
        .encode_to_vec()
    }
}

/// Nonce of the record with this index in its batch.
#[inline]
pub fn nonce(seed: &[u8; 32], index: u64) -> Node {
    *blake3::keyed_hash(seed, &index.to_be_bytes()).as_bytes()
}

/// Leaf of a record in its batch's tree. `scratch` spares an allocation for each record.
#[inline]
pub fn record_leaf(nonce: &Node, record: &[u8], scratch: &mut Vec<u8>) -> Node {
    scratch.clear();
    put_leaf_input(nonce, record, scratch);
    *blake3::keyed_hash(&Use::BatchLeaf.key(), scratch).as_bytes()
}

#[inline]
fn put_leaf_input(nonce: &Node, record: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(nonce);
    out.extend_from_slice(&u32::try_from(record.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(record);
}

/// Leaves of a batch's tree: [`record_leaf`] of each record, many at once.
pub fn record_leaves<R: AsRef<[u8]>>(seed: &[u8; 32], records: &[R]) -> Vec<Node> {
    let mut leaves = Vec::with_capacity(records.len());
    let mut inputs = Vec::with_capacity(TOGETHER.saturating_mul(512));
    let mut index: u64 = 0;
    for some in records.chunks(TOGETHER) {
        inputs.clear();
        for record in some {
            put_leaf_input(&nonce(seed, index), record.as_ref(), &mut inputs);
            index = index.saturating_add(1);
        }
        let mut rest = inputs.as_slice();
        let mut next = |record: &R| {
            let length = record.as_ref().len().saturating_add(LEAF_INPUT_BYTES);
            rest.split_off(..length.min(rest.len())).unwrap_or_default()
        };
        let parts: Vec<&[u8]> = some.iter().map(&mut next).collect();
        keyed_hashes(&Use::BatchLeaf.key(), &parts, &mut leaves);
    }
    leaves
}

/// What stands before the record in the input of its leaf: nonce and length.
const LEAF_INPUT_BYTES: usize = 36;

/// Bytes of a signed batch: what a gateway sends and its spool keeps.
///
/// `header` must already hold the record count and the root of `records` under `seed` (see [`seal_header`]).
pub fn encode_signed<R: Into<Bytes> + Clone>(
    header: &[u8],
    key: &SigningKey,
    seed: &[u8; 32],
    records: &[R],
) -> Vec<u8> {
    wire::SignedBatch {
        version: FORMAT_VERSION,
        header: Bytes::copy_from_slice(header),
        signature: Bytes::copy_from_slice(&sign(key, Context::Batch, header)),
        seed: Bytes::copy_from_slice(seed),
        records: records.iter().cloned().map(Into::into).collect(),
    }
    .encode_to_vec()
}

/// Puts count and root of `records` into `header`.
pub fn seal_header<R: AsRef<[u8]>>(header: &mut Header, seed: &[u8; 32], records: &[R]) {
    header.record_count = u32::try_from(records.len()).unwrap_or(u32::MAX);
    header.batch_root = merkle::root_of::<BatchTree>(&record_leaves(seed, records));
}

/// A batch in strict form, nothing about it believed yet.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// As they came; what is stored.
    pub bytes: Bytes,
    /// The bytes under the signature.
    pub header_bytes: Bytes,
    /// The header.
    pub header: Header,
    /// The gateway's.
    pub signature: Bytes,
    /// Makes the nonces.
    pub seed: [u8; 32],
    /// Not yet checked.
    pub records: Vec<Bytes>,
}

impl Submitted {
    /// Reads a `SignedBatch`: form, limits, and that header and records agree in number.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: Bytes) -> Result<Self, NotStrict> {
        if bytes.len() > BATCH_BYTES_MAX {
            return Err(Malformed::new("SignedBatch", 0, "longer than 1 MiB").into());
        }
        let batch: wire::SignedBatch = strict::decode_shared(&table::SIGNED_BATCH, bytes.clone())?;
        let header = Header::parse(&batch.header)?;
        if header.record_count as usize != batch.records.len() {
            return Err(Malformed::new("SignedBatch", 5, "not as many records as the header says").into());
        }
        let seed = batch.seed.as_ref().try_into().map_err(|_| Malformed::new("SignedBatch", 4, "wrong length"))?;
        Ok(Self { bytes, header_bytes: batch.header, header, signature: batch.signature, seed, records: batch.records })
    }

    /// Whether `key` signed the header.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        key.verifies(Context::Batch, &self.header_bytes, &self.signature)
    }

    /// Hash of the header.
    pub fn header_hash(&self) -> HeaderHash {
        header_hash(&self.header_bytes)
    }

    /// Whether the records are those whose root the header names.
    pub fn is_root_of_records(&self) -> bool {
        merkle::root_of::<BatchTree>(&record_leaves(&self.seed, &self.records)) == self.header.batch_root
    }

    /// Checks the form of every record and gives their kinds in order.
    ///
    /// # Errors
    /// [`NotStrict`] of the first record that is not in form.
    pub fn check_records(&self) -> Result<Vec<RecordKind>, NotStrict> {
        self.records.iter().map(|bytes| record::check(bytes)).collect()
    }

    /// The record of the writer, where this batch opens an epoch and has one in first place.
    pub fn opened(&self) -> Option<wire::Opened> {
        self.header.opens().then(|| record::opened(self.records.first()?)).flatten()
    }
}

/// What is known of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochState {
    /// The only key that signs in it; `None` while only a roster told of the epoch.
    pub key_id: Option<KeyId>,
    /// Number of its last batch.
    pub last_batch: u64,
    /// Number that its next record will have.
    pub next_record: u64,
    /// Hash of its last header.
    pub last_header_hash: HeaderHash,
    /// A batch with `close` has come.
    pub closed: bool,
}

/// Why a batch does not follow what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotNext {
    /// The number is taken by a batch with this header hash: the same batch again, or an equivocation.
    Taken,
    /// Numbers are missing before it.
    Gap {
        /// The batch number that comes next.
        expected: u64,
    },
    /// The epoch is unknown and this is not its first batch.
    UnknownEpoch,
    /// The epoch was closed.
    Closed,
    /// It breaks the chain of headers, record numbers or keys.
    Broken(&'static str),
}

/// Numbering of one gateway in one workspace: which batch may come next (FORMAT.md, 6.4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbering {
    /// Every epoch so far.
    pub epochs: BTreeMap<Epoch, EpochState>,
    /// The epoch that opened last: that of the last batch, for no other is open.
    pub last_opened: Option<Epoch>,
    /// What came before is not known (expired, or outside the period asked for): an unknown epoch may go on anywhere, and a
    /// new one may continue what was never seen.
    pub unknown_past: bool,
    /// Nor was it at some time before: of a gateway of which no epoch is known one may have ended then, and a new one may
    /// continue that.
    pub unknown_beginning: bool,
}

impl Numbering {
    /// The numbering of a run that is shown out of a longer history and has `header` as this gateway's first.
    ///
    /// Whoever took it had its epoch open, and only the one that opened last is: so the next epoch has to continue this one.
    pub fn from_middle(header: &Header, hash: HeaderHash) -> Self {
        let mut numbering = Self::default();
        numbering.take(header, hash);
        numbering
    }

    /// Whether `header` is the next batch of its epoch, or opens a new one.
    ///
    /// # Errors
    /// [`NotNext`].
    pub fn admit(&self, header: &Header) -> Result<(), NotNext> {
        let Some(epoch) = self.epochs.get(&header.epoch) else { return self.admit_opening(header) };
        let expected = epoch.last_batch.saturating_add(1);
        if header.batch_number < expected {
            return Err(NotNext::Taken);
        }
        if epoch.closed {
            return Err(NotNext::Closed);
        }
        if header.batch_number > expected {
            return Err(NotNext::Gap { expected });
        }
        if epoch.key_id.is_some_and(|key| key != header.key_id) {
            return Err(NotNext::Broken("the key changed within an epoch"));
        }
        if header.previous != epoch.last_header_hash {
            return Err(NotNext::Broken("another header stood before this one"));
        }
        if epoch.next_record.checked_add(header.dropped) != Some(header.first_record) {
            return Err(NotNext::Broken("record numbers are missing or used twice"));
        }
        Ok(())
    }

    fn admit_opening(&self, header: &Header) -> Result<(), NotNext> {
        if self.unknown_past && self.last_opened.is_none() {
            return Ok(());
        }
        if !header.opens() {
            return if self.unknown_past { Ok(()) } else { Err(NotNext::UnknownEpoch) };
        }
        let last = self.last_opened.and_then(|epoch| self.epochs.get(&epoch));
        if self.unknown_beginning && last.is_none() {
            return Ok(());
        }
        match (header.opening_reason, last) {
            (None, Some(last)) if header.previous == last.last_header_hash => Ok(()),
            (None, _) => Err(NotNext::Broken("a new epoch does not continue the gateway's last one")),
            (Some(OpeningReason::First), Some(_)) => {
                Err(NotNext::Broken("a gateway calls an epoch its first that is not"))
            }
            (Some(_), _) => Ok(()),
        }
    }

    /// Takes a batch that [`Self::admit`] let through.
    pub fn take(&mut self, header: &Header, hash: HeaderHash) {
        let state = EpochState {
            key_id: Some(header.key_id),
            last_batch: header.batch_number,
            next_record: header.next_record(),
            last_header_hash: hash,
            closed: header.close,
        };
        if self.last_opened != Some(header.epoch) {
            // The epoch before is over: what came after this would chain to nothing.
            if let Some(before) = self.last_opened.and_then(|epoch| self.epochs.get_mut(&epoch)) {
                before.closed = true;
            }
            self.last_opened = Some(header.epoch);
        }
        self.epochs.insert(header.epoch, state);
    }
}

/// Root of a batch without records.
pub fn empty_root() -> RootHash {
    RootHash(BatchTree::empty())
}

#[cfg(test)]
mod tests;
