//! What the auditor knows from elsewhere: checkpoints, heads and receipts that this archive must have (FORMAT.md, 13.5).

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Log, Options, parse_receipt};
use crate::{
    archive,
    head::{Head, SignedHead},
    id::WorkspaceId,
    merkle::{HistoryTree, SegmentTree, Tree},
    note::{Checkpoint, SignedCheckpoint},
    segment::Seal,
    verdict::{Check, Fault},
    wire,
};

/// Something that the auditor got from somebody else than the archive's keeper.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// A checkpoint of the log.
    Checkpoint(Checkpoint),
    /// An open head of a workspace.
    Head(Box<Head>),
    /// A receipt: a head, and batches under it.
    Receipt(Box<Head>, Vec<wire::BatchInclusion>),
}

/// Reads a `--known` file: a signed note, or a line `custody/v1/head` or `custody/v1/receipt` with base64 after it.
///
/// # Errors
/// In words, completing "the known file ...".
pub fn parse_known(bytes: &[u8]) -> Result<Known, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
    let decode =
        |encoded: &str| STANDARD.decode(encoded.trim()).map_err(|_| "is not base64 after its label".to_owned());
    if let Some(encoded) = text.strip_prefix("custody/v1/head ") {
        let signed = SignedHead::parse(&decode(encoded)?).map_err(|why| format!("is no signed head: {why}"))?;
        return Ok(Known::Head(Box::new(signed.head)));
    }
    if let Some(encoded) = text.strip_prefix("custody/v1/receipt ") {
        let receipt = parse_receipt(&decode(encoded)?).ok_or("is no receipt")?;
        let signed = SignedHead::parse(&receipt.signed_head).map_err(|why| format!("is no receipt: {why}"))?;
        return Ok(Known::Receipt(Box::new(signed.head), receipt.batches));
    }
    let signed =
        SignedCheckpoint::parse(bytes).map_err(|why| format!("is neither head, receipt nor checkpoint: {why}"))?;
    Ok(Known::Checkpoint(signed.checkpoint))
}

/// Holds what is known against what the archive turns out to have.
pub(super) struct Knowledge<'a> {
    options: &'a Options,
    /// For each known head: whether its root was found as it says; `None` until its segment was read.
    roots: Vec<Option<bool>>,
    faults: Vec<Fault>,
    /// Known things that the archive was shown to have.
    shown: usize,
}

impl<'a> Knowledge<'a> {
    pub(super) fn new(options: &'a Options, log: &Log) -> Self {
        let mut knowledge = Self { options, roots: vec![None; options.known.len()], faults: Vec::new(), shown: 0 };
        for known in &options.known {
            if let Known::Checkpoint(checkpoint) = known {
                knowledge.check_checkpoint(checkpoint, log);
            }
        }
        knowledge
    }

    fn check_checkpoint(&mut self, known: &Checkpoint, log: &Log) {
        let root = log.tree.root_at(known.size);
        if known.origin == log.origin && root == Some(known.root) {
            self.shown = self.shown.saturating_add(1);
            return;
        }
        let found = match root {
            Some(root) => format!("root {root} at that size"),
            None => format!("a log of {} entries", log.checkpoint.checkpoint.size),
        };
        let expected = format!("{} entries of {} with root {}", known.size, known.origin, known.root);
        self.faults.push(Fault::new(Check::KnownCheckpoint, archive::checkpoint(known.size), expected, found));
    }

    fn heads(&self) -> impl Iterator<Item = (usize, &'a Head)> + use<'a> {
        self.options.known.iter().enumerate().filter_map(|(at, known)| match known {
            Known::Head(head) | Known::Receipt(head, _) => Some((at, head.as_ref())),
            Known::Checkpoint(_) => None,
        })
    }

    /// A segment was verified: its tree says whether the known heads in it are true.
    pub(super) fn see_segment(&mut self, workspace: WorkspaceId, number: u64, tree: Option<&Tree<SegmentTree>>) {
        let Some(tree) = tree else { return };
        for (at, head) in self.heads().filter(|(_, head)| head.workspace == workspace && head.segment == number) {
            if let Some(known) = self.roots.get_mut(at) {
                *known = Some(tree.root_at(head.size) == Some(head.root));
            }
        }
    }

    /// A workspace was verified: known heads in it must lie on its history.
    pub(super) fn see_workspace(&mut self, workspace: WorkspaceId, seals: &[Seal], history: &Tree<HistoryTree>) {
        for (at, head) in self.heads().filter(|(_, head)| head.workspace == workspace) {
            let place = format!("workspaces/{workspace} segment {} size {}", head.segment, head.size);
            let check = match self.options.known.get(at) {
                Some(Known::Receipt(..)) => Check::KnownReceipt,
                _ => Check::KnownHead,
            };
            let seal = usize::try_from(head.segment).ok().and_then(|at| seals.get(at));
            if seal.is_some_and(|seal| head.incarnation < seal.incarnation) {
                continue;
            }
            // A head of the segment that comes after the last seal proves by its history that nothing sealed is missing.
            let history_agrees = history.root_at(head.segment) == Some(head.history_root);
            let root_agrees = seal.is_none() || self.roots.get(at).copied().flatten() == Some(true);
            if history_agrees && root_agrees && self.receipt_agrees(at, head) {
                // Leaves that no seal holds yet are not in the archive: it was not shown to have them.
                let held = seal.is_some() || head.size == 0;
                self.shown = self.shown.saturating_add(usize::from(held));
                continue;
            }
            let found = match (seals.len() as u64).checked_sub(head.segment) {
                None => format!("only {} segments: the archive is older than the head", seals.len()),
                Some(_) => "another history".to_owned(),
            };
            self.faults.push(Fault::new(check, place, format!("root {}", head.root), found).of(workspace));
        }
    }

    /// The leaves of a known receipt lie under its own head, which lies on the archive's history.
    fn receipt_agrees(&self, at: usize, head: &Head) -> bool {
        let Some(Known::Receipt(_, batches)) = self.options.known.get(at) else { return true };
        batches.iter().all(|batch| batch.segment <= head.segment)
    }

    pub(super) fn faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Everything known was found, and something was known.
    pub(super) fn shows_newest(&self) -> bool {
        self.shown > 0 && self.shown == self.options.known.len()
    }
}
