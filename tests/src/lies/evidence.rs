//! Lies about evidence files, each an edit by name. What a liar can compute again is computed again.

use bytes::Bytes;
use custody::{
    batch::{Header, Submitted},
    evidence::Proof,
    hash::object_hash,
    head::to_path,
    log::encode_seal_entry,
    merkle::{LogTree, Node, SegmentTree, Tree, log_leaf},
    note::{Checkpoint, sign_checkpoint},
    segment::{Leaf, Seal},
    statement::{ChainHead, Signed},
    strict::table,
    wire::{EvidenceBatch, EvidenceSegment, LeafKind},
};
use prost::Message as _;

use super::{
    Golden,
    wire::{self, How},
};
use crate::golden::{self, keys, ledger::Committed};

/// An evidence file of the golden archive, edited.
pub(super) fn edit(golden: &Golden, of: &str, edit: &str) -> Result<Vec<u8>, String> {
    let mut files = golden::evidence_files(&golden.ledger, &golden.rendered);
    let other = files.get("ledgers-own").cloned().ok_or("no such evidence")?;
    let mut proof = files.remove(of).ok_or("no such evidence")?;
    if let Some(forged) = forge(golden, edit) {
        return forged.map(|proof| proof.to_bytes());
    }
    let before = proof.to_bytes();
    let file = match bytes_edit(edit, &proof) {
        Some(file) => file,
        None => {
            let known = edit_proof(edit, &mut proof, &other) || edit_segment(edit, &mut proof);
            known.then(|| proof.to_bytes()).ok_or_else(|| format!("no such edit: {edit}"))?
        }
    };
    if file == before { Err("the edit changes nothing".to_owned()) } else { Ok(file) }
}

/// A run that never stood in any archive: whoever has the log's key alone signs a seal over batches that gateways did sign.
fn forge(golden: &Golden, edit: &str) -> Option<Result<Proof, String>> {
    if let Some(proof) = sealed_again(golden, edit) {
        return Some(Ok(proof));
    }
    let picks: &[usize] = match edit {
        "batch-left-out-and-signed-again" => &[0, 2],
        "batch-three-times-and-signed-again" => &[0, 0, 0],
        "batches-in-another-order-and-signed-again" => &[1, 0],
        "positions-past-the-greatest" => &[0, 1],
        "statement-that-is-none"
        | "statement-of-long-ago"
        | "equivocation-that-nobody-signed"
        | "more-batches-counted-than-there-are" => &[0, 1],
        "equivocation-as-a-batch" => &[],
        _ => return None,
    };
    let leaves = if picks.is_empty() { beside_its_equivocation(golden) } else { of_one_epoch(golden, picks) };
    let first_position = (edit == "positions-past-the-greatest").then_some(u64::MAX - 2);
    Some(
        leaves
            .and_then(|leaves| sign_again(golden, leaves, first_position, edit))
            .ok_or_else(|| "no such batches".to_owned()),
    )
}

/// Batches of alpha with all their records, each with its header. What is called an equivocation is shown as a batch.
fn batches(golden: &Golden, kind: LeafKind) -> Vec<(Header, Committed)> {
    let alpha = golden.ledger.workspaces.iter().find(|place| place.id == keys::workspace("alpha"));
    let committed = alpha.into_iter().flat_map(|place| &place.segments).flat_map(|segment| &segment.leaves);
    let of_kind = committed.filter(|committed| committed.leaf.kind == kind).filter_map(|committed| {
        let batch = Submitted::parse(committed.signed.clone()).ok()?;
        let leaf = Leaf { kind: LeafKind::Batch, ..committed.leaf };
        (!batch.records.is_empty()).then(|| (batch.header, Committed { leaf, signed: committed.signed.clone() }))
    });
    of_kind.collect()
}

/// These of the first batches of an epoch that has enough of them.
fn of_one_epoch(golden: &Golden, picks: &[usize]) -> Option<Vec<Committed>> {
    let all = batches(golden, LeafKind::Batch);
    let of_epoch = |epoch| all.iter().filter(move |(header, _)| header.epoch == epoch).collect::<Vec<_>>();
    // The last one: its key is still in force where the seal stands.
    let many = all.iter().rev().map(|(header, _)| of_epoch(header.epoch)).find(|epoch| epoch.len() > 2)?;
    picks.iter().map(|pick| Some(many.get(*pick)?.1.clone())).collect()
}

/// A batch, and the other one that its gateway signed under the same number.
fn beside_its_equivocation(golden: &Golden) -> Option<Vec<Committed>> {
    let (other, equivocation) = batches(golden, LeafKind::Equivocation).into_iter().next()?;
    let is_twin = |header: &Header| (header.epoch, header.batch_number) == (other.epoch, other.batch_number);
    let (_, batch) = batches(golden, LeafKind::Batch).into_iter().find(|(header, _)| is_twin(header))?;
    Some(vec![batch, equivocation])
}

/// One segment with these leaves and positions as they come, in a log of its seal alone.
fn sign_again(golden: &Golden, leaves: Vec<Committed>, first_position: Option<u64>, edit: &str) -> Option<Proof> {
    let mut proof = golden::evidence_files(&golden.ledger, &golden.rendered).remove("over-segments")?;
    let part = proof.evidence.segments.last()?;
    let mut seal = Seal::parse(&part.seal).ok()?;
    seal.first_position = first_position.unwrap_or(seal.first_position);
    let mut next = seal.first_position;
    let mut tree: Tree<SegmentTree> = Tree::default();
    let mut shown = Vec::new();
    for mut committed in leaves {
        committed.leaf.first_position = next;
        next = next.saturating_add(committed.records());
        // From its own beginning: the greatest position is not far from some of these.
        let at_zero = Committed { leaf: Leaf { first_position: 0, ..committed.leaf }, ..committed };
        let leaf = golden::evidence::show_leaf(&at_zero, 0, u64::MAX)?;
        tree.push(
            Leaf { first_position: committed.leaf.first_position, ..at_zero.leaf }.hash(&leaf.signed, &leaf.signature),
        );
        seal.record_count = if shown.is_empty() { 0 } else { seal.record_count } + leaf.records.len() as u64;
        shown.push(EvidenceBatch { first_position: committed.leaf.first_position, ..leaf });
    }
    if let Some(other) = other_leaf(edit, &proof, shown.last()?) {
        let leaf = Leaf {
            kind: other.kind(),
            first_position: other.first_position,
            received_at: other.received_at,
            term: other.term,
        };
        tree.push(leaf.hash(&other.signed, &other.signature));
        shown.push(other);
    }
    let of = |kind| shown.iter().filter(|leaf| leaf.kind() == kind).count() as u64;
    (seal.batch_count, seal.equivocation_count) = (of(LeafKind::Batch), of(LeafKind::Equivocation));
    seal.statement_count = of(LeafKind::Statement);
    seal.first_received_at = shown.iter().map(|leaf| leaf.received_at).min()?;
    seal.last_received_at = shown.iter().map(|leaf| leaf.received_at).max()?;
    if edit == "more-batches-counted-than-there-are" {
        seal.batch_count += 1;
    }
    (seal.size, seal.root) = (tree.size(), tree.root());
    (proof.evidence.first_position, proof.evidence.record_count) = (seal.first_position, seal.record_count);
    proof.evidence.segments = vec![EvidenceSegment { leaves: shown, ..Default::default() }];
    Some(log_again(proof, &[seal]))
}

/// A leaf that takes no position, after the last batch: what the liar would put there.
fn other_leaf(edit: &str, proof: &Proof, last: &EvidenceBatch) -> Option<EvidenceBatch> {
    let bare = EvidenceBatch {
        first_position: last.first_position.saturating_add(last.records.len() as u64),
        records: Vec::new(),
        nonces: Vec::new(),
        path: Vec::new(),
        first_index: 0,
        ..last.clone()
    };
    Some(match edit {
        "statement-that-is-none" => EvidenceBatch {
            kind: LeafKind::Statement as i32,
            signed: Bytes::from_static(b"no statement at all"),
            ..bare
        },
        "statement-of-long-ago" => {
            let said = Signed::parse(proof.evidence.workspace_chain.get(1)?).ok()?;
            let kind = LeafKind::Statement as i32;
            EvidenceBatch { kind, signed: said.statement_bytes, signature: said.signature, ..bare }
        }
        "equivocation-that-nobody-signed" => {
            EvidenceBatch { kind: LeafKind::Equivocation as i32, signature: flip(&last.signature), ..bare }
        }
        _ => return None,
    })
}

/// The last seal of a run over several segments says something else, and the log is signed anew.
fn sealed_again(golden: &Golden, edit: &str) -> Option<Proof> {
    let proof = golden::evidence_files(&golden.ledger, &golden.rendered).remove("over-segments")?;
    let seals = proof.evidence.segments.iter().map(|part| Seal::parse(&part.seal).ok());
    let mut seals: Vec<Seal> = seals.collect::<Option<_>>()?;
    let earlier = |head: ChainHead, statements: &[Bytes]| {
        let before = statements.get(usize::try_from(head.count).ok()?.checked_sub(2)?)?;
        Some(ChainHead { count: head.count - 1, hash: object_hash(before) })
    };
    let last = seals.last_mut()?;
    match edit {
        "workspace-chain-taken-back" => {
            last.workspace_chain = earlier(last.workspace_chain, &proof.evidence.workspace_chain)?;
        }
        "ledger-chain-taken-back" => last.ledger_chain = earlier(last.ledger_chain, &proof.evidence.ledger_chain)?,
        "seal-of-another-incarnation" => last.incarnation += 1,
        _ => return None,
    }
    Some(log_again(proof, &seals))
}

/// A log of these seals alone, and a checkpoint of it.
fn log_again(mut proof: Proof, seals: &[Seal]) -> Proof {
    let mut log: Tree<LogTree> = Tree::default();
    for (part, seal) in proof.evidence.segments.iter_mut().zip(seals) {
        part.seal = seal.encode().into();
        part.log_index = log.size();
        log.push(log_leaf(&encode_seal_entry(seal.workspace, seal.segment, object_hash(&part.seal))).0);
    }
    let path = |index| log.inclusion(index, log.size()).unwrap_or_default();
    proof.index = log.size() - 1;
    proof.path = path(proof.index);
    for part in &mut proof.evidence.segments {
        let is_last = part.log_index == proof.index;
        part.log_path = if is_last { Vec::new() } else { to_path(&path(part.log_index)) };
    }
    let checkpoint = Checkpoint { size: log.size(), root: log.root(), ..proof.checkpoint.checkpoint };
    proof.checkpoint = sign_checkpoint(checkpoint, &keys::signing("log-1"));
    proof
}

/// Edits on the file's text.
fn bytes_edit(edit: &str, proof: &Proof) -> Option<Vec<u8>> {
    let text = String::from_utf8(proof.to_bytes()).ok()?;
    let inside = |path: &str, how: How| {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let edited = wire::edit(&table::EVIDENCE, &proof.evidence.encode_to_vec(), path, how).ok()?;
        let line = |bytes: &[u8]| format!("extra {}", STANDARD.encode(bytes));
        Some(text.replace(&line(&proof.evidence.encode_to_vec()), &line(&edited)).into_bytes())
    };
    match edit {
        "another-first-line" => Some(text.replacen("@v1", "@v2", 1).into_bytes()),
        "no-extra-line" => Some(text.replacen("extra ", "extri ", 1).into_bytes()),
        "index-with-a-leading-zero" => Some(text.replacen("index ", "index 0", 1).into_bytes()),
        "cut-in-the-middle" => Some(text.as_bytes().get(..text.len() / 2)?.to_vec()),
        "unknown-field" => inside("record_count", How::Unknown),
        "future-version" => inside("version", How::Set(2)),
        "future-version-in-a-cut-file" => inside("version", How::Set(2)).map(|mut file| {
            file.truncate(file.len() - 1);
            file
        }),
        "position-said-twice" => inside("first_position", How::Twice),
        _ => None,
    }
}

fn flip(bytes: &Bytes) -> Bytes {
    let mut edited = bytes.to_vec();
    let middle = edited.len() / 2;
    if let Some(byte) = edited.get_mut(middle) {
        *byte ^= 1;
    }
    edited.into()
}

/// Edits around the segments.
fn edit_proof(edit: &str, proof: &mut Proof, other: &Proof) -> bool {
    let evidence = &mut proof.evidence;
    match edit {
        "index-of-another-entry" => {
            proof.index -= 1;
            if let Some(part) = evidence.segments.last_mut() {
                part.log_index -= 1;
            }
        }
        "path-flipped" => flip_node(proof.path.first_mut()),
        "path-too-long" => proof.path.push([0; 32]),
        "path-too-short" => drop(proof.path.pop()),
        "index-beyond-the-log" => {
            proof.index += proof.checkpoint.checkpoint.size;
            if let Some(part) = evidence.segments.last_mut() {
                part.log_index = proof.index;
            }
        }
        "checkpoint-of-another-root" => proof.checkpoint.checkpoint.root.0[3] ^= 1,
        "checkpoint-of-another-size" => proof.checkpoint.checkpoint.size += 1,
        "checkpoint-of-another-origin" => "ledger.example/other".clone_into(&mut proof.checkpoint.checkpoint.origin),
        "one-record-more-said" => evidence.record_count += 1,
        "one-record-less-said" => evidence.record_count -= 1,
        "another-first-position-said" => evidence.first_position += 1,
        "another-workspace-said" => evidence.workspace = other.evidence.workspace.clone(),
        "ledger-chain-cut" => drop(evidence.ledger_chain.pop()),
        "ledger-chain-flipped" => flip_last(&mut evidence.ledger_chain),
        "workspace-chain-cut" => drop(evidence.workspace_chain.pop()),
        "workspace-chain-flipped" => flip_last(&mut evidence.workspace_chain),
        "workspace-chain-of-another-workspace" => evidence.workspace_chain = other.evidence.workspace_chain.clone(),
        "segment-left-out" => drop(evidence.segments.remove(0)),
        "no-segment" => evidence.segments.clear(),
        "segments-swapped" => evidence.segments.swap(0, 1),
        _ => return false,
    }
    true
}

fn flip_node(node: Option<&mut Node>) {
    if let Some(node) = node {
        node[5] ^= 1;
    }
}

fn flip_last(objects: &mut [Bytes]) {
    if let Some(last) = objects.last_mut() {
        *last = flip(last);
    }
}

/// Edits within the first segment shown.
fn edit_segment(edit: &str, proof: &mut Proof) -> bool {
    if edit == "index-in-no-batch" {
        // Bound by no hash: such a leaf has no records to count.
        let mut leaves = proof.evidence.segments.iter_mut().flat_map(|part| &mut part.leaves);
        let Some(leaf) = leaves.find(|leaf| leaf.kind() != LeafKind::Batch) else { return false };
        leaf.first_index = 5;
        return true;
    }
    let Some(part) = proof.evidence.segments.first_mut() else { return false };
    match edit {
        "seal-flipped" => part.seal = flip(&part.seal),
        "first-leaf-moved" => part.first_leaf += 1,
        "segment-path-flipped" => flip_path(&mut part.path),
        "segment-path-too-long" => part.path.push(Bytes::from_static(&[0; 32])),
        "leaf-left-out" => drop(part.leaves.remove(0)),
        "leaf-shown-twice" => {
            let again = part.leaves.first().cloned().unwrap_or_default();
            part.leaves.insert(0, again);
        }
        _ => return edit_leaf(edit, part),
    }
    true
}

fn flip_path(path: &mut [Bytes]) {
    if let Some(first) = path.first_mut() {
        *first = flip(first);
    }
}

fn edit_leaf(edit: &str, part: &mut EvidenceSegment) -> bool {
    let Some(leaf) = part.leaves.first_mut() else { return false };
    let EvidenceBatch { records, nonces, path, .. } = leaf;
    match edit {
        "received-later" => leaf.received_at += 1_000_000,
        "position-moved" => leaf.first_position += 1,
        "term-changed" => leaf.term += 1,
        "header-flipped" => leaf.signed = flip(&leaf.signed),
        "signature-flipped" => leaf.signature = flip(&leaf.signature),
        "record-flipped" => records[0] = flip(&records[0]),
        "nonce-flipped" => nonces[0] = flip(&nonces[0]),
        "batch-path-flipped" => flip_path(path),
        "batch-path-too-long" => path.push(Bytes::from_static(&[0; 32])),
        "first-index-moved" => leaf.first_index += 1,
        "index-beyond-the-batch" => leaf.first_index += 4_096,
        "record-left-out" => drop((records.remove(0), nonces.remove(0))),
        "record-shown-twice" => {
            records.insert(0, records[0].clone());
            nonces.insert(0, nonces[0].clone());
        }
        "records-swapped" => {
            records.swap(0, 1);
            nonces.swap(0, 1);
        }
        "nonce-left-out" => drop(nonces.pop()),
        _ => return false,
    }
    true
}
