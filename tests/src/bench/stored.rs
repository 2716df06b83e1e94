//! Batches as they lie in a ledger's store, put there as the writer puts them, without gateways and signatures that are checked.

use ::ledger::store::{Change, Family, LeafPlace, leaf_key, numbered};
use bytes::Bytes;
use custody::{
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, KeyId, RootHash, WorkspaceId},
    segment::{Leaf, encode_entry},
    wire::LeafKind,
};
use ed25519_dalek::SigningKey;

use crate::Done;

/// The batch of this commit, which begins at this position.
pub(crate) fn batch(
    key: &SigningKey,
    workspace: WorkspaceId,
    (committed, position): (u64, u64),
    received_at: u64,
    records: &[Bytes],
) -> Done<(Submitted, Leaf)> {
    let mut header = Header {
        origin: "bench.example/custody".to_owned(),
        workspace,
        gateway: GatewayId([2; 16]),
        key_id: KeyId([3; 32]),
        epoch: Epoch([4; 16]),
        batch_number: committed + 1,
        first_record: position,
        record_count: 0,
        previous: HeaderHash([5; 32]),
        opening_reason: None,
        batch_root: RootHash::ZERO,
        last_head: Bytes::new(),
        dropped: 0,
        drop_reason: None,
        heartbeat: false,
        close: false,
        created_at: received_at,
    };
    seal_header(&mut header, &[9; 32], records);
    let batch = Submitted::parse(encode_signed(&header.encode(), key, &[9; 32], records).into());
    let batch = batch.map_err(|why| why.to_string())?;
    Ok((batch, Leaf { kind: LeafKind::Batch, first_position: position, received_at, term: 1 }))
}

/// Its rows.
pub(crate) fn put(change: &mut Change<'_>, committed: u64, batch: &Submitted, leaf: &Leaf) {
    let (workspace, place) = (batch.header.workspace, LeafPlace { segment: 0, leaf: committed });
    let key = leaf_key(workspace, 0, committed);
    change.put(Family::Entries, key, encode_entry(leaf, batch.bytes.clone()));
    change.put(Family::Commits, committed.to_be_bytes(), key);
    change.put(Family::Positions, numbered(workspace, leaf.first_position), place.encode());
}
