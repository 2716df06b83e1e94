//! What the auditor knows from elsewhere: checkpoints, heads and receipts that this archive must have (FORMAT.md, 13.5).

use std::collections::{BTreeMap, BTreeSet};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Log, Options, Unreadable, parse_receipt};
use crate::{
    archive,
    head::{Head, SignedHead},
    id::WorkspaceId,
    merkle::{HistoryTree, SegmentTree, Tree},
    note::SignedCheckpoint,
    policy::Policy,
    segment::{Content, Entry, Seal},
    verdict::{Check, Fault},
    wire::{self, LeafKind, Role},
};

/// Greatest length of a known file in bytes: a receipt of 256 batches with the longest paths, as base64.
pub const KNOWN_BYTES_MAX: usize = 2_097_152;

/// Something that the auditor got from somebody else than the archive's keeper.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// A checkpoint of the log.
    Checkpoint(SignedCheckpoint),
    /// An open head of a workspace.
    Head(Box<SignedHead>),
    /// A receipt: a head, and batches under it.
    Receipt(Box<SignedHead>, Vec<wire::BatchInclusion>),
}

/// Reads a `--known` file: a signed note, or a line `custody/v1/head` or `custody/v1/receipt` with base64 after it.
///
/// # Errors
/// In words, completing "the known file ...".
pub fn parse_known(bytes: &[u8]) -> Result<Known, String> {
    if bytes.len() > KNOWN_BYTES_MAX {
        return Err(format!("has more than {KNOWN_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
    // One newline and nothing else may end the line: what white space is differs from language to language.
    let decode = |encoded: &str| {
        let encoded = encoded.strip_suffix('\n').unwrap_or(encoded);
        STANDARD.decode(encoded).map_err(|_| "is not base64 after its label".to_owned())
    };
    if let Some(encoded) = text.strip_prefix("custody/v1/head ") {
        let signed = SignedHead::parse(&decode(encoded)?).map_err(|why| format!("is no signed head: {why}"))?;
        return Ok(Known::Head(Box::new(signed)));
    }
    if let Some(encoded) = text.strip_prefix("custody/v1/receipt ") {
        let receipt = parse_receipt(&decode(encoded)?).ok_or("is no receipt")?;
        let signed = SignedHead::parse(&receipt.signed_head).map_err(|why| format!("is no receipt: {why}"))?;
        return Ok(Known::Receipt(Box::new(signed), receipt.batches));
    }
    let signed =
        SignedCheckpoint::parse(bytes).map_err(|why| format!("is neither head, receipt nor checkpoint: {why}"))?;
    Ok(Known::Checkpoint(signed))
}

/// The known files that a policy holds.
///
/// # Errors
/// [`Unreadable`] for one that is none.
pub fn known_in(policy: &Policy) -> Result<Vec<Known>, Unreadable> {
    let known = policy.known.iter().map(|text| parse_known(text.as_bytes()));
    known.collect::<Result<_, _>>().map_err(|why| Unreadable(format!("the known file in the policy {why}")))
}

/// What was seen of a known thing. It is shown by itself alone, never by the batches of a receipt: these were there in an
/// older copy too.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The archive has it.
    shown: bool,
    /// Something of it is not as it says.
    contradicted: bool,
}

/// Holds what is known against what the archive turns out to have.
#[derive(Clone)]
pub(super) struct Knowledge<'a> {
    options: &'a Options,
    log: &'a Log,
    /// What was seen of each known thing, in their order.
    seen: Vec<Seen>,
    faults: Vec<Fault>,
    /// Known things that no key signed which this log has: another log's, or an archive that ends before their key came.
    unsigned: BTreeMap<usize, String>,
    /// Workspaces that verified to their end and have no records: of these there is nothing to know.
    empty: BTreeSet<WorkspaceId>,
}

impl<'a> Knowledge<'a> {
    pub(super) fn new(options: &'a Options, log: &'a Log) -> Self {
        let seen = vec![Seen::default(); options.known.len()];
        let (unsigned, empty) = (BTreeMap::new(), BTreeSet::new());
        let mut knowledge = Self { options, log, seen, faults: Vec::new(), unsigned, empty };
        for (at, known) in options.known.iter().enumerate() {
            match known {
                Known::Checkpoint(signed) => knowledge.check_checkpoint(at, signed),
                Known::Head(signed) | Known::Receipt(signed, _) => knowledge.check_head(at, signed),
            }
        }
        knowledge
    }

    /// For the walk through one workspace, whose own finds [`Self::add`] takes.
    pub(super) fn without_faults(&self) -> Self {
        Self { faults: Vec::new(), ..self.clone() }
    }

    /// Takes what the walk through one workspace found. What is known of another one it has left as it was.
    pub(super) fn add(&mut self, of_workspace: Self) {
        for (seen, found) in self.seen.iter_mut().zip(of_workspace.seen) {
            seen.shown |= found.shown;
            seen.contradicted |= found.contradicted;
        }
        self.faults.extend(of_workspace.faults);
        self.empty.extend(of_workspace.empty);
    }

    /// The known thing itself was compared.
    fn see(&mut self, at: usize, agrees: bool) {
        if let Some(seen) = self.seen.get_mut(at) {
            if agrees { seen.shown = true } else { seen.contradicted = true }
        }
    }

    fn is_contradicted(&self, at: usize) -> bool {
        self.seen.get(at).is_some_and(|seen| seen.contradicted)
    }

    fn check_checkpoint(&mut self, at: usize, signed: &SignedCheckpoint) {
        let known = &signed.checkpoint;
        let place = archive::checkpoint(known.size);
        // With `--at-size` the archive is asked how it was before that checkpoint.
        if self.options.at_size.is_some_and(|size| known.size > size) {
            return;
        }
        let mut keys = self.log.ledger.last().into_iter().flat_map(|state| state.chain.keys());
        if !keys.any(|(_, key)| key.role == Role::Log && signed.is_signed_by(key.public_key)) {
            self.unsigned.insert(at, place);
            return;
        }
        let root = self.log.tree.root_at(known.size);
        let agrees = known.origin == self.log.origin && root == Some(known.root);
        self.see(at, agrees);
        if !agrees {
            let found = match root {
                Some(root) => format!("root {root} at that size"),
                None => format!("a log of {} entries", self.log.checkpoint.checkpoint.size),
            };
            let expected = format!("{} entries of {} with root {}", known.size, known.origin, known.root);
            self.faults.push(Fault::new(Check::KnownCheckpoint, place, expected, found));
        }
    }

    /// Whoever signed a known head is a head key of this ledger, and its workspace is in the log.
    fn check_head(&mut self, at: usize, signed: &SignedHead) {
        let head = &signed.head;
        let place = head_place(head);
        let newest = self.log.ledger.last().and_then(|state| state.chain.key(&head.key_id));
        let key = newest.filter(|key| key.role == Role::Head && head.origin == self.log.origin);
        if !key.is_some_and(|key| signed.is_signed_by(key.public_key)) {
            self.unsigned.insert(at, place);
            return;
        }
        if !self.log.workspaces.iter().any(|workspace| workspace.id == head.workspace) {
            self.see(at, false);
            let fault =
                Fault::new(self.check_of(at), place, format!("workspace {}", head.workspace), "no such workspace");
            self.faults.push(fault.of(head.workspace));
        }
    }

    fn check_of(&self, at: usize) -> Check {
        match self.options.known.get(at) {
            Some(Known::Receipt(..)) => Check::KnownReceipt,
            _ => Check::KnownHead,
        }
    }

    /// Known heads of a workspace that somebody of this log signed, with the batches of a receipt.
    fn heads(&self, workspace: WorkspaceId) -> Vec<(usize, &'a Head, &'a [wire::BatchInclusion])> {
        let known = self.options.known.iter().enumerate().filter_map(|(at, known)| match known {
            Known::Head(signed) => Some((at, &signed.head, [].as_slice())),
            Known::Receipt(signed, batches) => Some((at, &signed.head, batches.as_slice())),
            Known::Checkpoint(_) => None,
        });
        known.filter(|(at, head, _)| head.workspace == workspace && !self.unsigned.contains_key(at)).collect()
    }

    /// Segments that a known head or receipt points into.
    pub(super) fn segments(&self, workspace: WorkspaceId) -> BTreeSet<u64> {
        let of_head = |(_, head, batches): (usize, &Head, &[wire::BatchInclusion])| {
            let mut segments: Vec<u64> = batches.iter().map(|batch| batch.segment).collect();
            segments.push(head.segment);
            segments
        };
        self.heads(workspace).into_iter().flat_map(of_head).collect()
    }

    /// A segment that verified: whether the known heads and batches in it are there.
    pub(super) fn see_segment(&mut self, workspace: WorkspaceId, number: u64, incarnation: u64, entries: &[Entry]) {
        let tree: Tree<SegmentTree> = entries.iter().map(Entry::leaf_hash).collect();
        let known = self.heads(workspace);
        for (at, head, batches) in known {
            if head.incarnation < incarnation {
                continue;
            }
            if head.segment == number {
                self.see(at, tree.root_at(head.size) == Some(head.root));
            }
            for batch in batches.iter().filter(|batch| batch.segment == number) {
                let entry = usize::try_from(batch.leaf_index).ok().and_then(|leaf| entries.get(leaf));
                if !entry.is_some_and(|entry| is_batch(entry, batch)) {
                    self.see(at, false);
                }
            }
        }
    }

    /// A workspace that verified: known heads must lie on its history.
    pub(super) fn see_workspace(&mut self, workspace: WorkspaceId, seals: &[Seal], history: &Tree<HistoryTree>) {
        if seals.iter().all(|seal| seal.record_count == 0) {
            self.empty.insert(workspace);
        }
        let known = self.heads(workspace);
        for (at, head, _) in known {
            let seal = usize::try_from(head.segment).ok().and_then(|at| seals.get(at));
            if seal.is_some_and(|seal| head.incarnation < seal.incarnation) {
                continue;
            }
            let history_agrees = history.root_at(head.segment) == Some(head.history_root);
            // The head of a segment that is not sealed yet proves by its history that nothing sealed is missing; its
            // leaves are not in the archive, so unless there are none the archive was not shown to have them.
            if history_agrees && seal.is_none() && head.size == 0 {
                self.see(at, true);
            }
            if history_agrees && !self.is_contradicted(at) {
                continue;
            }
            self.see(at, false);
            let found = match (seals.len() as u64).checked_sub(head.segment) {
                None => format!("only {} segments: the archive is older than the head", seals.len()),
                Some(_) => "another history".to_owned(),
            };
            let fault = Fault::new(self.check_of(at), head_place(head), format!("root {}", head.root), found);
            self.faults.push(fault.of(workspace));
        }
    }

    pub(super) fn faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Known things without a signature of this log.
    pub(super) fn unsigned(&self) -> impl Iterator<Item = &String> {
        self.unsigned.values()
    }

    /// Why what is known does not show that these workspaces are no older copy; `None` if it does. (A fault says it
    /// better.)
    pub(super) fn falls_short(&self, workspaces: impl Iterator<Item = WorkspaceId>) -> Option<String> {
        if self.seen.is_empty() {
            return Some("nothing that this ledger signed was given as known from elsewhere".to_owned());
        }
        let unseen = self.seen.iter().filter(|seen| !seen.shown || seen.contradicted).count();
        if unseen > 0 {
            return Some(format!("{unseen} of {} known files could not be found in the archive", self.seen.len()));
        }
        // A checkpoint is over all of the log, a head over one workspace.
        if self.options.known.iter().any(|known| matches!(known, Known::Checkpoint(_))) {
            return None;
        }
        let silent = workspaces.filter(|id| !self.empty.contains(id) && self.heads(*id).is_empty()).count();
        (silent > 0).then(|| format!("no known file speaks of {silent} workspaces that have records"))
    }

    /// Whether something known has a signature that could not be shown to be this log's.
    pub(super) fn has_unsigned(&self) -> bool {
        !self.unsigned.is_empty()
    }
}

fn head_place(head: &Head) -> String {
    format!("workspaces/{} segment {} size {}", head.workspace, head.segment, head.size)
}

fn is_batch(entry: &Entry, known: &wire::BatchInclusion) -> bool {
    let Content::Batch(batch) = &entry.content else { return false };
    entry.leaf.kind == LeafKind::Batch
        && batch.header.epoch.0[..] == known.epoch
        && batch.header.batch_number == known.batch_number
        && entry.leaf.first_position == known.first_position
}
