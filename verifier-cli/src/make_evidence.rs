//! Makes evidence: one file that proves a record, or a run of records, to somebody who holds the audit policy alone.
//!
//! The archive is believed as little as by `verify`: the log is verified, every object is held against its hash, and the
//! finished file goes through `custody::evidence::check` before it is handed out.

use std::collections::HashMap;

use bytes::Bytes;
use custody::{
    archive,
    batch::{nonce, record_leaves},
    evidence::{self, EVIDENCE_BYTES_MAX, Proof},
    head::to_path,
    id::{Epoch, GatewayId, WorkspaceId},
    merkle::{BatchTree, SegmentTree, Tree},
    note::SignedCheckpoint,
    policy::Policy,
    segment::{Content, Entry, Seal},
    statement::{ChainHead, Signed, encode_signed},
    verdict::{Check, Fault},
    verify::{self, Archive, Log},
    wire::{self, LeafKind},
};

use crate::{
    failure::Failure,
    segments::{Opened, find_workspace, run_end, seal_of, seals_of},
};

/// Greatest number of records in one file: what fits into it with a hundred bytes each, and their nonces.
pub const RECORDS_MAX: u64 = 400_000;

/// Greatest number of segments in one file, as the format has it.
const SEGMENTS_MAX: usize = 1024;
/// Seals, and statements, that are kept: some hundred bytes each.
const KEPT_MAX: usize = 8_192;

/// Which records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Positions from `first` up to, not including, `end`, in a workspace by id or name.
    Positions {
        /// Id in hex, or name.
        workspace: String,
        /// First position.
        first: u64,
        /// Position after the last; `None` for all that are there.
        end: Option<u64>,
    },
    /// One record by its stable name.
    Record {
        /// Who signed it.
        gateway: GatewayId,
        /// In which run.
        epoch: Epoch,
        /// Its number in that run.
        number: u64,
    },
}

impl std::str::FromStr for What {
    type Err = String;

    /// Reads `workspace/position`, `workspace/A..B`, `workspace/A..` or `gateway/epoch/number`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let why = "not workspace/position, workspace/A..B (B not included), workspace/A.. or gateway/epoch/number";
            format!("{why}\nhint: numbers are digits alone, without leading zeros, and A is below B")
        };
        let (front, last) = text.rsplit_once('/').ok_or_else(wrong)?;
        if let Some((gateway, epoch)) = front.split_once('/')
            && let (Some(gateway), Some(epoch)) = (GatewayId::from_hex(gateway), Epoch::from_hex(epoch))
        {
            return Ok(Self::Record { gateway, epoch, number: archive::number(last).ok_or_else(wrong)? });
        }
        let (first, end) = range(last).ok_or_else(wrong)?;
        Ok(Self::Positions { workspace: front.to_owned(), first, end })
    }
}

/// Reads `A..B`, `A..` or a single position.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (first, end) = match text.split_once("..") {
        Some((first, "")) => (archive::number(first)?, None),
        Some((first, end)) => (archive::number(first)?, Some(archive::number(end)?)),
        None => (archive::number(text)?, Some(archive::number(text)?.checked_add(1)?)),
    };
    end.is_none_or(|end| first < end).then_some((first, end))
}

/// Makes evidence, and checks it.
///
/// # Errors
/// [`Failure`].
pub fn make(objects: &impl Archive, policy: &Policy, what: &What) -> Result<Proof, Failure> {
    Maker::open(objects, policy.clone())?.make(what)
}

/// Makes evidence of one archive again and again: its log is verified once, and of the segments the last one stays open. What
/// is archived later it does not see.
pub struct Maker<A> {
    objects: A,
    policy: Policy,
    log: Log,
    /// Sizes of the log that have a checkpoint, ascending.
    checkpoints: Vec<u64>,
    /// Those that were read, by workspace and number: of a run that is looked for few are.
    seals: HashMap<(WorkspaceId, u64), Seal>,
    /// Statements of the chains, by name.
    statements: HashMap<String, Bytes>,
    open: Option<Leaves>,
}

/// A segment that is open.
struct Leaves {
    workspace: WorkspaceId,
    segment: u64,
    tree: Tree<SegmentTree>,
    entries: Vec<Entry>,
}

impl<A: Archive> Maker<A> {
    /// Verifies the log.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn open(objects: A, policy: Policy) -> Result<Self, Failure> {
        let log = verify::log(&objects, &policy, None)?.map_err(|fault| Failure::Refuted(Box::new(fault)))?;
        let names = objects.list(archive::CHECKPOINTS)?;
        let mut checkpoints: Vec<u64> = names.iter().filter_map(|name| archive::number(name)).collect();
        checkpoints.retain(|size| *size <= log.checkpoint.checkpoint.size);
        checkpoints.sort_unstable();
        let (seals, statements) = (HashMap::new(), HashMap::new());
        Ok(Self { objects, policy, log, checkpoints, seals, statements, open: None })
    }

    /// Entries of the log that was verified.
    pub fn log_size(&self) -> u64 {
        self.log.checkpoint.checkpoint.size
    }

    /// Position after the last that is archived in a workspace.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn archived(&mut self, workspace: WorkspaceId) -> Result<u64, Failure> {
        match self.segments(workspace).checked_sub(1) {
            Some(last) => Ok(self.seal(workspace, last)?.next_position()),
            None => Ok(0),
        }
    }

    /// Makes evidence, and checks it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn make(&mut self, what: &What) -> Result<Proof, Failure> {
        let (workspace, first, end) = match what {
            What::Positions { workspace, first, end } => (find_workspace(&self.log, workspace)?, *first, *end),
            What::Record { gateway, epoch, number } => {
                let (workspace, position) = find_record(&self.objects, &self.log, *gateway, *epoch, *number)?;
                (workspace, position, Some(position.saturating_add(1)))
            }
        };
        let held = self.archived(workspace)?;
        let end = run_end(first, end, held)?;
        if end.saturating_sub(first) > RECORDS_MAX {
            let why = format!("more than {RECORDS_MAX} records do not fit into one file\nhint: ask for smaller ranges");
            return Err(Failure::NotThere(why));
        }
        let covered = self.covering(workspace, first, end)?;
        let proof = self.proof(workspace, &covered, (first, end))?;
        let bytes = proof.to_bytes();
        if bytes.len() > EVIDENCE_BYTES_MAX {
            let why = "the evidence would be longer than 64 MiB\nhint: ask for smaller ranges";
            return Err(Failure::NotThere(why.to_owned()));
        }
        match evidence::check(&bytes, &self.policy)? {
            Ok(_) => Ok(proof),
            Err(fault) => Err(fault.into()),
        }
    }

    /// How many segments of a workspace the log names.
    fn segments(&self, workspace: WorkspaceId) -> u64 {
        let known = self.log.workspaces.iter().find(|known| known.id == workspace);
        known.map_or(0, |known| known.seals.len() as u64)
    }

    fn seal(&mut self, workspace: WorkspaceId, segment: u64) -> Result<Seal, Failure> {
        if let Some(seal) = self.seals.get(&(workspace, segment)) {
            return Ok(seal.clone());
        }
        let seal = seal_of(&self.objects, &self.log, workspace, segment)?;
        if self.seals.len() >= KEPT_MAX {
            self.seals.clear();
        }
        self.seals.insert((workspace, segment), seal.clone());
        Ok(seal)
    }

    /// Seals of the segments that hold the positions from `first` up to `end`, which are there.
    fn covering(&mut self, workspace: WorkspaceId, first: u64, end: u64) -> Result<Vec<Seal>, Failure> {
        let (mut from, mut until) = (0, self.segments(workspace));
        while from < until {
            let middle = from.midpoint(until);
            if self.seal(workspace, middle)?.next_position() <= first { from = middle + 1 } else { until = middle }
        }
        let mut covered = Vec::new();
        for segment in from..self.segments(workspace) {
            let seal = self.seal(workspace, segment)?;
            if seal.first_position >= end {
                break;
            }
            if covered.len() >= SEGMENTS_MAX {
                let why =
                    format!("the records lie in more than {SEGMENTS_MAX} segments, which do not fit into one file");
                return Err(Failure::NotThere(format!("{why}\nhint: ask for smaller ranges")));
            }
            covered.push(seal);
        }
        Ok(covered)
    }

    fn proof(&mut self, workspace: WorkspaceId, covered: &[Seal], run: (u64, u64)) -> Result<Proof, Failure> {
        let last = covered.last().ok_or_else(|| Failure::NotThere("no segment holds the records".to_owned()))?;
        let index = self.log_index(workspace, last)?;
        let checkpoint = self.checkpoint(index)?;
        let size = checkpoint.checkpoint.size;
        let mut segments = Vec::new();
        for seal in covered {
            let at = self.log_index(workspace, seal)?;
            let is_last = seal.segment == last.segment;
            let log_path = if is_last { Vec::new() } else { to_path(&self.log_path(at, size)?) };
            let mut part = self.segment(workspace, seal, run)?;
            (part.seal, part.log_index, part.log_path) = (seal.encode().into(), at, log_path);
            segments.push(part);
        }
        let evidence = wire::Evidence {
            version: custody::FORMAT_VERSION,
            workspace: workspace.into(),
            first_position: run.0,
            record_count: run.1.saturating_sub(run.0),
            segments,
            ledger_chain: self.ledger_chain(size)?,
            workspace_chain: self.workspace_chain(workspace, last.workspace_chain)?,
        };
        Ok(Proof { evidence, index, path: self.log_path(index, size)?, checkpoint })
    }

    fn log_index(&self, workspace: WorkspaceId, seal: &Seal) -> Result<u64, Failure> {
        let known = self.log.workspaces.iter().find(|known| known.id == workspace);
        let at = usize::try_from(seal.segment).ok();
        let index = known.zip(at).and_then(|(known, at)| known.seals.get(at)).map(|(index, _)| *index);
        index.ok_or_else(|| Failure::NotThere(format!("segment {} is not in the log", seal.segment)))
    }

    fn log_path(&self, index: u64, size: u64) -> Result<Vec<[u8; 32]>, Failure> {
        let path = self.log.tree.inclusion(index, size);
        path.ok_or_else(|| Failure::NotThere(format!("entry {index} is not in a log of {size}")))
    }

    /// The earliest checkpoint that covers the entry and that enough witnesses signed; without such, the earliest one.
    fn checkpoint(&self, index: u64) -> Result<SignedCheckpoint, Failure> {
        let witnesses = self.policy.witness_keys()?;
        let mut earliest = None;
        for size in self.checkpoints.iter().filter(|size| **size > index) {
            let checkpoint = self.cosigned(*size)?;
            let signed = witnesses.iter().filter(|(name, key)| checkpoint.cosigned_at(name, *key).is_some()).count();
            if signed >= self.policy.quorum as usize {
                return Ok(checkpoint);
            }
            earliest.get_or_insert(checkpoint);
        }
        earliest.ok_or_else(|| Failure::NotThere(format!("no checkpoint covers log entry {index}")))
    }

    /// A checkpoint with the cosignature lines that stand beside it. What is not in form is left out: it proves nothing.
    fn cosigned(&self, size: u64) -> Result<SignedCheckpoint, Failure> {
        let name = archive::checkpoint(size);
        let bytes = self.objects.get(&name)?.unwrap_or_default();
        let mut signed = SignedCheckpoint::parse(&bytes)
            .map_err(|why| Fault::new(Check::CheckpointForm, &name, "a signed note", why))?;
        let folder = format!("{}/{size}", archive::COSIGNATURES);
        for witness in self.objects.list(&folder)? {
            let lines = self.objects.get(&format!("{folder}/{witness}"))?.unwrap_or_default();
            let note = [signed.checkpoint.text().as_bytes(), b"\n", &lines].concat();
            if let Ok(note) = SignedCheckpoint::parse(&note) {
                signed.signatures.extend(note.signatures);
            }
        }
        signed.signatures.truncate(custody::note::SIGNATURES_MAX);
        Ok(signed)
    }

    /// Statements of the ledger's own chain among the first `size` entries of the log.
    fn ledger_chain(&mut self, size: u64) -> Result<Vec<Bytes>, Failure> {
        let states = self.log.ledger.iter().skip(1).take_while(|state| state.from_index <= size);
        let heads: Vec<ChainHead> = states.map(|state| state.chain.head()).collect();
        heads.into_iter().map(|head| self.statement(None, head)).collect()
    }

    /// Statements of the workspace's chain up to `head`, found from there backwards.
    fn workspace_chain(&mut self, workspace: WorkspaceId, mut head: ChainHead) -> Result<Vec<Bytes>, Failure> {
        let known = self.log.workspaces.iter().find(|known| known.id == workspace);
        let create = known.map(|known| &known.create).ok_or_else(|| Failure::NotThere("no workspace".to_owned()))?;
        let signature = create.signature.as_ref().try_into().unwrap_or([0; 64]);
        let create = Bytes::from(encode_signed(&create.statement_bytes, signature));
        let mut chain = Vec::new();
        while head.count > 1 {
            let object = self.statement(Some(workspace), head)?;
            let form = |why| Fault::form(Check::StatementForm, format!("statement {}", head.count - 1), &why);
            let previous = Signed::parse(&object).map_err(form)?.statement.previous;
            let hash = previous.as_ref().try_into().unwrap_or(custody::id::ObjectHash::ZERO);
            head = ChainHead { count: head.count - 1, hash };
            chain.push(object);
        }
        chain.push(create);
        chain.reverse();
        Ok(chain)
    }

    fn statement(&mut self, workspace: Option<WorkspaceId>, head: ChainHead) -> Result<Bytes, Failure> {
        let name = archive::statement(workspace, head.count.saturating_sub(1), head.hash);
        if let Some(known) = self.statements.get(&name) {
            return Ok(known.clone());
        }
        let missing = || Fault::new(Check::StatementPresent, &name, "the statement that the chain names", "no object");
        let object = self.objects.get(&name)?.ok_or_else(missing)?;
        if self.statements.len() >= KEPT_MAX {
            self.statements.clear();
        }
        self.statements.insert(name, object.clone());
        Ok(object)
    }

    /// The part of a segment that the run takes, without seal and log path: from the leaf with the run's first record
    /// (or the segment's first leaf, if the run began before) to the leaf with its last (or the segment's last leaf).
    fn segment(
        &mut self,
        workspace: WorkspaceId,
        seal: &Seal,
        (first, end): (u64, u64),
    ) -> Result<wire::EvidenceSegment, Failure> {
        let is_open = |open: &&mut Leaves| (open.workspace, open.segment) == (workspace, seal.segment);
        if self.open.as_mut().filter(is_open).is_none() {
            self.open = None;
            self.open = Some(Leaves::read(&self.objects, workspace, seal)?);
        }
        let open = self.open.as_ref().ok_or_else(|| Failure::NotThere("no segment is open".to_owned()))?;
        let begins_before = first < seal.first_position;
        let (mut first_leaf, mut leaves) = (None, Vec::new());
        for (at, entry) in (0_u64..).zip(&open.entries) {
            let span = (entry.leaf.first_position, entry.leaf.first_position.saturating_add(entry.records()));
            let has_some = span.0 < end && first < span.1;
            let began = begins_before || first_leaf.is_some();
            let goes_on = began && span.1 < end;
            if has_some || goes_on {
                first_leaf.get_or_insert(at);
                leaves.push(leaf(entry, first, end));
            }
        }
        let first_leaf = first_leaf.unwrap_or(0);
        let after = first_leaf.saturating_add(leaves.len() as u64);
        let path = open.tree.range(first_leaf, after, open.tree.size()).unwrap_or_default();
        Ok(wire::EvidenceSegment { first_leaf, leaves, path: to_path(&path), ..Default::default() })
    }
}

impl Leaves {
    fn read(objects: &impl Archive, workspace: WorkspaceId, seal: &Seal) -> Result<Self, Failure> {
        let opened = Opened::read(objects, seal)?;
        let (mut tree, mut entries) = (Tree::<SegmentTree>::default(), Vec::new());
        for frame in &opened.object.frames {
            for entry in opened.entries(frame)? {
                tree.push(entry.leaf_hash());
                entries.push(entry);
            }
        }
        Ok(Self { workspace, segment: seal.segment, tree, entries })
    }
}

/// A leaf with those of its records that lie in the run.
fn leaf(entry: &Entry, first: u64, end: u64) -> wire::EvidenceBatch {
    let mut shown = wire::EvidenceBatch {
        kind: entry.leaf.kind as i32,
        first_position: entry.leaf.first_position,
        received_at: entry.leaf.received_at,
        term: entry.leaf.term,
        ..Default::default()
    };
    let batch = match &entry.content {
        Content::Statement(signed) => {
            (shown.signed, shown.signature) = (signed.statement_bytes.clone(), signed.signature.clone());
            return shown;
        }
        Content::Batch(batch) => batch,
    };
    (shown.signed, shown.signature) = (batch.header_bytes.clone(), batch.signature.clone());
    let count = entry.records();
    if entry.leaf.kind != LeafKind::Batch || count == 0 {
        return shown;
    }
    let from = first.saturating_sub(entry.leaf.first_position).min(count);
    let until = end.saturating_sub(entry.leaf.first_position).min(count);
    let tree: Tree<BatchTree> = record_leaves(&batch.seed, &batch.records).into_iter().collect();
    shown.first_index = from;
    for (index, record) in (0_u64..).zip(&batch.records) {
        if (from..until).contains(&index) {
            shown.records.push(record.clone());
            shown.nonces.push(Bytes::copy_from_slice(&nonce(&batch.seed, index)));
        }
    }
    shown.path = to_path(&tree.range(from, until, count).unwrap_or_default());
    shown
}

/// Workspace and position of a record by its stable name. Rosters tell which segments have its epoch, so that few are
/// taken apart.
fn find_record(
    objects: &impl Archive,
    log: &Log,
    gateway: GatewayId,
    epoch: Epoch,
    number: u64,
) -> Result<(WorkspaceId, u64), Failure> {
    for known in &log.workspaces {
        for seal in seals_of(objects, log, known.id)? {
            let opened = Opened::read(objects, &seal)?;
            let touched = opened.object.roster.entries.iter().any(|entry| {
                entry.gateway.as_ref() == gateway.as_ref()
                    && entry.epoch.as_ref() == epoch.as_ref()
                    && entry.next_record > number
            });
            if !touched {
                continue;
            }
            for frame in &opened.object.frames {
                for entry in opened.entries(frame)? {
                    if let Some(position) = position_in(&entry, gateway, epoch, number) {
                        return Ok((known.id, position));
                    }
                }
            }
        }
    }
    let why = format!("no record {gateway}/{epoch}/{number} in this archive");
    Err(Failure::NotThere(format!("{why}\nhint: newer records follow when their segment is sealed")))
}

fn position_in(entry: &Entry, gateway: GatewayId, epoch: Epoch, number: u64) -> Option<u64> {
    let Content::Batch(batch) = &entry.content else { return None };
    let header = &batch.header;
    let index = number.checked_sub(header.first_record)?;
    let holds = entry.leaf.kind == LeafKind::Batch
        && (header.gateway, header.epoch) == (gateway, epoch)
        && index < u64::from(header.record_count);
    holds.then(|| entry.leaf.first_position.saturating_add(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_as_it_is_written() {
        let (gateway, epoch) = ("11".repeat(16), "22".repeat(16));
        let positions = |workspace: &str, first, end| What::Positions { workspace: workspace.to_owned(), first, end };
        for (text, what) in [
            ("acme/17", Some(positions("acme", 17, Some(18)))),
            ("acme/eu/5..9", Some(positions("acme/eu", 5, Some(9)))),
            ("acme/eu/5..", Some(positions("acme/eu", 5, None))),
            (
                &format!("{gateway}/{epoch}/3"),
                Some(What::Record { gateway: GatewayId([0x11; 16]), epoch: Epoch([0x22; 16]), number: 3 }),
            ),
            ("acme", None),
            ("acme/9..9", None),
            ("acme/9..3", None),
            ("acme/-1", None),
            ("acme/01", None),
            ("acme/+1", None),
            ("acme/01..9", None),
            ("acme/1..09", None),
            (&format!("{gateway}/{epoch}/03"), None),
        ] {
            assert_eq!(text.parse::<What>().ok(), what, "{text}");
        }
    }
}
