//! Open heads and receipts: what the ledger promises to a gateway, and the checks by which the gateway holds it to that
//! (FORMAT.md, 7).

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use prost::Message as _;

use crate::{
    FORMAT_VERSION,
    hash::Use,
    id::{KeyId, RootHash, WorkspaceId},
    key::{Context, PublicKey, sign},
    merkle::{self, HistoryTree, Node, SegmentTree},
    segment,
    statement::ChainHead,
    strict::{self, NotStrict, table},
    wire,
};

/// What an open head says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are described in head.proto")]
pub struct Head {
    pub origin: String,
    pub workspace: WorkspaceId,
    pub key_id: KeyId,
    pub incarnation: u64,
    pub term: u64,
    pub segment: u64,
    pub size: u64,
    pub root: RootHash,
    pub history_root: RootHash,
    pub ledger_chain: ChainHead,
    pub workspace_chain: ChainHead,
    pub at: u64,
    pub unfenced: bool,
}

impl Head {
    /// Reads head bytes.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let raw: wire::OpenHead = strict::decode(&table::OPEN_HEAD, bytes)?;
        Ok(Self {
            workspace: raw.workspace.as_ref().try_into()?,
            key_id: raw.key_id.as_ref().try_into()?,
            incarnation: raw.incarnation,
            term: raw.term,
            segment: raw.segment,
            size: raw.size,
            root: raw.root.as_ref().try_into()?,
            history_root: raw.history_root.as_ref().try_into()?,
            ledger_chain: ChainHead::from_wire(raw.ledger_chain.as_ref()),
            workspace_chain: ChainHead::from_wire(raw.workspace_chain.as_ref()),
            at: raw.at,
            unfenced: raw.unfenced,
            origin: raw.origin,
        })
    }

    /// Strict bytes of this head.
    pub fn encode(&self) -> Vec<u8> {
        wire::OpenHead {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            workspace: self.workspace.into(),
            key_id: self.key_id.into(),
            incarnation: self.incarnation,
            term: self.term,
            segment: self.segment,
            size: self.size,
            root: self.root.into(),
            history_root: self.history_root.into(),
            ledger_chain: Some(self.ledger_chain.to_wire()),
            workspace_chain: Some(self.workspace_chain.to_wire()),
            at: self.at,
            unfenced: self.unfenced,
        }
        .encode_to_vec()
    }

    /// Signs this head: bytes of a `SignedHead`.
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let head = self.encode();
        let signature = Bytes::copy_from_slice(&sign(key, Context::Head, &head));
        wire::SignedHead { version: FORMAT_VERSION, head: head.into(), signature }.encode_to_vec()
    }
}

/// A head with its signature, read but not yet believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// What is said.
    pub head: Head,
    head_bytes: Bytes,
    signature: Bytes,
}

impl SignedHead {
    /// Reads a `SignedHead`.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let outer: wire::SignedHead = strict::decode(&table::SIGNED_HEAD, bytes)?;
        Ok(Self { head: Head::parse(&outer.head)?, head_bytes: outer.head, signature: outer.signature })
    }

    /// Whether `key` signed it.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        key.verifies(Context::Head, &self.head_bytes, &self.signature)
    }
}

/// Leaf of a workspace's history: the final head of one segment.
pub fn history_leaf(segment: u64, size: u64, root: &RootHash) -> Node {
    Use::HistoryLeaf.hasher().number(segment).number(size).fixed(&root.0).finish()
}

/// The hashes of a proof; `None` if one has not 32 bytes.
pub fn nodes(path: &[Bytes]) -> Option<Vec<Node>> {
    path.iter().map(|hash| hash.as_ref().try_into().ok()).collect()
}

/// Hashes as a message carries them.
pub fn to_path(nodes: &[Node]) -> Vec<Bytes> {
    nodes.iter().map(|node| Bytes::copy_from_slice(node)).collect()
}

/// Whether `proof` takes `old` to `new`: the same workspace, only grown (FORMAT.md, 7.3).
pub fn is_consistent(old: &Head, new: &Head, proof: &wire::HeadConsistency) -> bool {
    let (Some(segment_path), Some(inclusion_path), Some(history_path)) =
        (nodes(&proof.segment_path), nodes(&proof.inclusion_path), nodes(&proof.history_path))
    else {
        return false;
    };
    let grown = old.term <= new.term
        && old.incarnation <= new.incarnation
        && old.ledger_chain.count <= new.ledger_chain.count
        && old.workspace_chain.count <= new.workspace_chain.count;
    if old.origin != new.origin || old.workspace != new.workspace || !grown {
        return false;
    }
    if old.segment == new.segment {
        return proof.final_size.is_none()
            && proof.final_root.is_none()
            && inclusion_path.is_empty()
            && history_path.is_empty()
            && old.history_root == new.history_root
            && merkle::verify_consistency::<SegmentTree>(old.size, new.size, &old.root, &new.root, &segment_path);
    }
    let final_root = proof.final_root.as_ref().and_then(|root| RootHash::try_from(root.as_ref()).ok());
    let (Some(size), Some(root)) = (proof.final_size, final_root) else { return false };
    let leaf = crate::id::LeafHash(history_leaf(old.segment, size, &root));
    merkle::verify_consistency::<SegmentTree>(old.size, size, &old.root, &root, &segment_path)
        && merkle::verify_inclusion::<HistoryTree>(old.segment, new.segment, &leaf, &inclusion_path, &new.history_root)
        && merkle::verify_consistency::<HistoryTree>(
            old.segment,
            new.segment,
            &old.history_root,
            &new.history_root,
            &history_path,
        )
}

/// Whether `inclusion` shows under `head` the batch with this header and signature.
pub fn includes_batch(head: &Head, inclusion: &wire::BatchInclusion, header: &[u8], signature: &[u8]) -> bool {
    let (Some(path), Some(history_path)) = (nodes(&inclusion.path), nodes(&inclusion.history_path)) else {
        return false;
    };
    let leaf = segment::Leaf {
        kind: wire::LeafKind::Batch,
        first_position: inclusion.first_position,
        received_at: inclusion.received_at,
        term: inclusion.term,
    };
    let leaf = crate::id::LeafHash(leaf.hash(header, signature));
    if inclusion.segment == head.segment {
        return inclusion.final_size.is_none()
            && inclusion.final_root.is_none()
            && history_path.is_empty()
            && merkle::verify_inclusion::<SegmentTree>(inclusion.leaf_index, head.size, &leaf, &path, &head.root);
    }
    let final_root = inclusion.final_root.as_ref().and_then(|root| RootHash::try_from(root.as_ref()).ok());
    let (Some(size), Some(root)) = (inclusion.final_size, final_root) else { return false };
    let final_leaf = crate::id::LeafHash(history_leaf(inclusion.segment, size, &root));
    merkle::verify_inclusion::<SegmentTree>(inclusion.leaf_index, size, &leaf, &path, &root)
        && merkle::verify_inclusion::<HistoryTree>(
            inclusion.segment,
            head.segment,
            &final_leaf,
            &history_path,
            &head.history_root,
        )
}

#[cfg(test)]
mod tests;
