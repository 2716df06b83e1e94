//! Hashes: keyed BLAKE3 with a key for each use, SHA-256 for the log and for objects (FORMAT.md, 3).
//!
//! Inputs are fixed-width big-endian integers, fixed-length ids and strings with a 4-byte length before them, so that two
//! different inputs never give the same bytes.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::id::{HeaderHash, KeyId, ObjectHash};

mod many;

pub(crate) use many::{TOGETHER, keyed_hashes, keyed_pairs};

/// One use of keyed BLAKE3; its key is `derive_key(context, "")`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Use {
    /// Leaf of a batch tree.
    BatchLeaf,
    /// Inner node of a batch tree.
    BatchNode,
    /// Leaf of a segment tree.
    SegmentLeaf,
    /// Inner node of a segment tree.
    SegmentNode,
    /// Leaf of a workspace's history.
    HistoryLeaf,
    /// Inner node of a workspace's history.
    HistoryNode,
    /// A batch header, as the next header names it.
    Header,
    /// A roster, as its seal names it.
    Roster,
    /// A segment object, as its seal names it.
    Segment,
    /// A key in its role.
    KeyId,
    /// A root key, as the era before commits to it.
    RootSuccessor,
    /// The last seals that an incarnation continues.
    LastSeals,
    /// Text of a caller that is not a token.
    Text,
    /// A member's key, as a directory entry commits to it.
    MemberKey,
}

const CONTEXTS: [(Use, &str); 14] = [
    (Use::BatchLeaf, "custody/v1/batch-leaf"),
    (Use::BatchNode, "custody/v1/batch-node"),
    (Use::SegmentLeaf, "custody/v1/segment-leaf"),
    (Use::SegmentNode, "custody/v1/segment-node"),
    (Use::HistoryLeaf, "custody/v1/history-leaf"),
    (Use::HistoryNode, "custody/v1/history-node"),
    (Use::Header, "custody/v1/header-hash"),
    (Use::Roster, "custody/v1/roster-hash"),
    (Use::Segment, "custody/v1/segment-hash"),
    (Use::KeyId, "custody/v1/key-id"),
    (Use::RootSuccessor, "custody/v1/root-successor"),
    (Use::LastSeals, "custody/v1/last-seals"),
    (Use::Text, "custody/v1/text"),
    (Use::MemberKey, "custody/v1/member-key"),
];

static KEYS: LazyLock<[[u8; 32]; 14]> = LazyLock::new(|| CONTEXTS.map(|(_, context)| blake3::derive_key(context, &[])));

impl Use {
    /// The context string from which the key is derived.
    pub fn context(self) -> &'static str {
        CONTEXTS.get(self as usize).map_or("", |(_, context)| context)
    }

    /// This use's key.
    #[inline]
    pub fn key(self) -> [u8; 32] {
        KEYS.get(self as usize).copied().unwrap_or_default()
    }

    /// A hasher with this use's key.
    pub fn hasher(self) -> Input {
        Input(blake3::Hasher::new_keyed(&self.key()))
    }
}

/// Collects the input of one hash.
pub struct Input(blake3::Hasher);

impl Input {
    /// Bytes whose length is fixed by the format.
    #[must_use]
    pub fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }

    /// A big-endian integer of 8 bytes.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.update(&number.to_be_bytes());
        self
    }

    /// A string: its length as 4 big-endian bytes, then its bytes. No input of ours is 4 GiB long.
    #[must_use]
    pub fn string(mut self, bytes: &[u8]) -> Self {
        self.0.update(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// The hash of what was collected.
    pub fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// Hash of two children, for the three BLAKE3 trees.
#[inline]
pub fn node(of: Use, left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut both = [0; 64];
    let (first, second) = both.split_at_mut(32);
    first.copy_from_slice(left);
    second.copy_from_slice(right);
    *blake3::keyed_hash(&of.key(), &both).as_bytes()
}

/// Hash of a batch header, as the next header and the roster name it.
pub fn header_hash(header: &[u8]) -> HeaderHash {
    HeaderHash(Use::Header.hasher().fixed(header).finish())
}

/// Id of a public key in a role; `role` is the number of the enum `Role`.
pub fn key_id(role: u32, public_key: &[u8; 32]) -> KeyId {
    KeyId(Use::KeyId.hasher().fixed(&role.to_be_bytes()).fixed(public_key).finish())
}

/// What a root era says of the next root key before that is ever used.
pub fn root_successor(public_key: &[u8; 32]) -> [u8; 32] {
    Use::RootSuccessor.hasher().fixed(public_key).finish()
}

/// Digest of a caller's text that is no token.
pub fn text_digest(text: &[u8]) -> [u8; 32] {
    Use::Text.hasher().fixed(text).finish()
}

/// SHA-256 of an object's bytes: its name in the archive, and how others refer to it.
pub fn object_hash(bytes: &[u8]) -> ObjectHash {
    ObjectHash(sha256(&[bytes]))
}

/// SHA-256 of the parts, one after the other.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_use_has_a_key_of_its_own() {
        let mut keys = KEYS.to_vec();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), CONTEXTS.len());
        for (at, (of, context)) in CONTEXTS.iter().enumerate() {
            assert_eq!(*of as usize, at);
            assert_eq!(of.context(), *context);
        }
    }
}
