//! Evidence for a run of records of the golden archive, made from what the ledger holds: as a writer would, and for lies.

use custody::{
    batch::{Submitted, nonce, record_leaves},
    evidence::Proof,
    head::to_path,
    id::WorkspaceId,
    merkle::{BatchTree, LogTree, SegmentTree, Tree, log_leaf},
    note::SignedCheckpoint,
    wire::{self, LeafKind},
};

use super::{
    ledger::{Committed, Ledger, LogItem, Segment},
    render::Rendered,
};

/// Evidence for the records from position `first` up to `end` of a workspace; `None` if they are not all there.
pub fn make(ledger: &Ledger, rendered: &Rendered, workspace: WorkspaceId, first: u64, end: u64) -> Option<Proof> {
    let place = ledger.workspaces.iter().find(|place| place.id == workspace)?;
    let log: Tree<LogTree> = rendered.entries.iter().map(|entry| log_leaf(entry).0).collect();
    let mut segments = Vec::new();
    for segment in &place.segments {
        if let Some(shown) = show_segment(segment, first, end) {
            let number = segment.header.segment;
            let is_seal = |item: &LogItem| matches!(item, LogItem::Seal(id, of) if (*id, *of) == (workspace, number));
            let log_index = ledger.log.iter().position(is_seal)? as u64;
            let seal = rendered.objects.get(rendered.seal_names.get(&(workspace, number))?)?.clone();
            let log_path = to_path(&log.inclusion(log_index, log.size())?);
            segments.push(wire::EvidenceSegment { seal, log_index, log_path, ..shown });
        }
    }
    // The path of the last seal stands in the lines of the tlog-proof.
    let last = segments.last_mut()?;
    last.log_path.clear();
    let (index, path) = (last.log_index, log.inclusion(last.log_index, log.size())?);
    let newest = place.segments.iter().find(|s| Some(s.header.segment) == seal_number(last))?;
    let counts = (newest.header.ledger_chain.count, newest.header.workspace_chain.count);
    let take = |objects: &[bytes::Bytes], count: u64| {
        objects.iter().take(usize::try_from(count).unwrap_or(0)).cloned().collect()
    };
    let checkpoint = rendered.objects.get(&custody::archive::checkpoint(log.size()))?;
    let evidence = wire::Evidence {
        version: 1,
        workspace: workspace.into(),
        first_position: first,
        record_count: end - first,
        segments,
        ledger_chain: take(&ledger.statements, counts.0),
        workspace_chain: take(&place.statements, counts.1),
    };
    Some(Proof { evidence, index, path, checkpoint: SignedCheckpoint::parse(checkpoint).ok()? })
}

fn seal_number(part: &wire::EvidenceSegment) -> Option<u64> {
    custody::segment::Seal::parse(&part.seal).ok().map(|seal| seal.segment)
}

/// The leaves of a segment from the one with the run's first record to the one with its last; `None` for none.
fn show_segment(segment: &Segment, first: u64, end: u64) -> Option<wire::EvidenceSegment> {
    let start_of = |committed: &Committed| committed.leaf.first_position;
    let end_of = |committed: &Committed| committed.leaf.first_position + committed.records();
    let has = |committed: &Committed| committed.records() > 0 && start_of(committed) < end && end_of(committed) > first;
    let from = segment.leaves.iter().position(has)?;
    let to = segment.leaves.iter().rposition(has)?;
    // A run that goes on in the next segment shows this one to its end.
    let last_position = segment.leaves.iter().map(end_of).max()?;
    let to = if end > last_position { segment.leaves.len() - 1 } else { to };
    let begins_before = first < segment.header.first_position;
    let from = if begins_before { 0 } else { from };
    let tree: Tree<SegmentTree> = segment.leaves.iter().map(Committed::hash).collect();
    let leaves = segment
        .leaves
        .get(from..=to)?
        .iter()
        .map(|committed| show_leaf(committed, first, end))
        .collect::<Option<_>>()?;
    let path = to_path(&tree.range(from as u64, to as u64 + 1, tree.size())?);
    Some(wire::EvidenceSegment { first_leaf: from as u64, leaves, path, ..Default::default() })
}

/// A leaf with those of its records that are in the run.
pub(crate) fn show_leaf(committed: &Committed, first: u64, end: u64) -> Option<wire::EvidenceBatch> {
    let leaf = committed.leaf;
    let mut shown = wire::EvidenceBatch {
        kind: leaf.kind as i32,
        first_position: leaf.first_position,
        received_at: leaf.received_at,
        term: leaf.term,
        ..Default::default()
    };
    if leaf.kind == LeafKind::Statement {
        let signed = custody::statement::Signed::parse(&committed.signed).ok()?;
        (shown.signed, shown.signature) = (signed.statement_bytes, signed.signature);
        return Some(shown);
    }
    let batch = Submitted::parse(committed.signed.clone()).ok()?;
    (shown.signed, shown.signature) = (batch.header_bytes.clone(), batch.signature.clone());
    let count = batch.records.len() as u64;
    if leaf.kind != LeafKind::Batch || count == 0 {
        return Some(shown);
    }
    let low = first.saturating_sub(leaf.first_position).min(count);
    let high = (end - leaf.first_position).min(count);
    let tree: Tree<BatchTree> = record_leaves(&batch.seed, &batch.records).into_iter().collect();
    shown.first_index = low;
    shown.records = batch.records.get(usize::try_from(low).ok()?..usize::try_from(high).ok()?)?.to_vec();
    shown.nonces = to_path(&(low..high).map(|index| nonce(&batch.seed, index)).collect::<Vec<_>>());
    shown.path = to_path(&tree.range(low, high, count)?);
    Some(shown)
}
