//! Lies about evidence files, each an edit by name. What a liar can compute again is computed again.

use bytes::Bytes;
use custody::{
    evidence::Proof,
    merkle::Node,
    strict::table,
    wire::{EvidenceBatch, EvidenceSegment, LeafKind},
};
use prost::Message as _;

use super::{
    Golden,
    wire::{self, How},
};
use crate::golden;

/// An evidence file of the golden archive, edited.
pub(super) fn edit(golden: &Golden, of: &str, edit: &str) -> Result<Vec<u8>, String> {
    let mut files = golden::evidence_files(&golden.ledger, &golden.rendered);
    let other = files.get("ledgers-own").cloned().ok_or("no such evidence")?;
    let mut proof = files.remove(of).ok_or("no such evidence")?;
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
