//! One segment by itself: object, entries, leaf tree, and each batch's signature, records and authority. Needs nothing of
//! the segments before it but the key state, so that several can be done at once.

use std::sync::Arc;

use bytes::Bytes;

use super::{Archive, Log, Stop, held_head};
use crate::{
    archive,
    batch::{Header, Submitted},
    hash::sha256,
    head::Head,
    id::{HeaderHash, ObjectHash},
    merkle::{SegmentTree, Tree},
    record::RecordKind,
    segment::{Content, Entry, FRAME_BYTES_MAX, Object, Seal, object_blake3, split_frame},
    statement::{Chain, KeyState, RESERVED_NAME, writer},
    verdict::{Check, Fault, State, ensure},
    wire::{self, LeafKind, Role},
};

/// What is asked of one segment.
pub(super) struct Task<'a> {
    pub(super) seal: &'a Seal,
    /// Index of the seal in the log.
    pub(super) log_index: u64,
    /// The workspace's keys at the end of the archive; the seal says how many of their statements hold in the segment.
    pub(super) chain: &'a Chain,
}

/// A leaf that passed by itself.
pub(super) struct Leaf {
    pub(super) kind: LeafKind,
    pub(super) received_at: u64,
    pub(super) term: u64,
    pub(super) what: What,
}

pub(super) enum What {
    Batch(Box<Batch>),
    Statement(ObjectHash),
}

pub(super) struct Batch {
    /// Without origin and head, which are checked.
    pub(super) header: Header,
    pub(super) hash: HeaderHash,
    pub(super) held: Option<Arc<Head>>,
    pub(super) opened: Option<wire::Opened>,
    /// Its key is suspect at this position.
    pub(super) suspect: bool,
}

/// A segment that passed by itself.
pub(super) struct Report {
    pub(super) object: Object,
    pub(super) leaves: Vec<Leaf>,
    pub(super) tree: Tree<SegmentTree>,
    /// The first leaf that says it came before its term began.
    pub(super) before_term: Option<u64>,
}

/// `None` where the object is not there and may have expired.
pub(super) fn check(objects: &impl Archive, log: &Log, task: &Task<'_>) -> Result<Report, Stop> {
    let seal = task.seal;
    let name = archive::segment(seal.workspace, seal.segment, seal.object_sha256);
    let Some(bytes) = objects.get(&name)? else {
        return Err(Fault::new(Check::SegmentPresent, &name, "the object that the seal names", "no object").into());
    };
    check_object(seal, &name, &bytes)?;
    let form = |why: &_| Fault::form(Check::SegmentForm, &name, why);
    let object = Object::parse(bytes).map_err(|why| form(&why))?;
    ensure(
        Check::SegmentForm,
        object.header.agrees_with(seal),
        || name.clone(),
        || ("the header of the segment that the seal speaks of", "another's"),
    )?;
    let reader =
        Reader { log, task, name: &name, position: seal.first_position, term: 0, before_term: None, last_head: None };
    let mut pass = Pass::new(reader);
    for frame in &object.frames {
        read_frame(objects, &object, frame, &name)?.into_iter().for_each(|entry| pass.take(entry));
    }
    pass.finish(object)
}

/// One pass over the leaves: a frame is let go before the next is read, so that a segment needs the memory of one frame.
/// That makes no difference to which fault is the first: those of form come before those of leaves, these before the
/// segment's own, and those of content last.
struct Pass<'a> {
    reader: Reader<'a>,
    tree: Tree<SegmentTree>,
    tally: Tally,
    leaves: Vec<Leaf>,
    leaf_fault: Option<Stop>,
    content_fault: Option<Stop>,
}

impl<'a> Pass<'a> {
    fn new(reader: Reader<'a>) -> Self {
        let (tree, tally, leaves) = (Tree::default(), Tally::default(), Vec::new());
        Self { reader, tree, tally, leaves, leaf_fault: None, content_fault: None }
    }

    fn take(&mut self, entry: Entry) {
        let at = self.tree.size();
        self.tree.push(entry.leaf_hash());
        self.tally.take(&entry);
        if self.leaf_fault.is_none() {
            self.leaf_fault = self.reader.check_leaf(at, &entry).err();
        }
        if self.leaf_fault.is_none() && self.content_fault.is_none() {
            match self.reader.check_content(at, entry) {
                Ok(leaf) => self.leaves.push(leaf),
                Err(stop) => self.content_fault = Some(stop),
            }
        }
    }

    fn finish(self, object: Object) -> Result<Report, Stop> {
        let Self { reader: Reader { task, name, before_term, .. }, tree, tally, leaves, leaf_fault, content_fault } =
            self;
        leaf_fault.map_or(Ok(()), Err)?;
        let seal = task.seal;
        ensure(
            Check::SegmentRoot,
            (tree.size(), tree.root()) == (seal.size, seal.root),
            || name.to_owned(),
            || {
                (
                    format!("{} leaves with root {}", seal.size, seal.root),
                    format!("{} with root {}", tree.size(), tree.root()),
                )
            },
        )?;
        tally.check(seal, name)?;
        content_fault.map_or(Ok(()), Err)?;
        Ok(Report { object: object.without_frames(), leaves, tree, before_term })
    }
}

fn check_object(seal: &Seal, name: &str, bytes: &[u8]) -> Result<(), Stop> {
    let hash = ObjectHash(sha256(&[bytes]));
    let (length, expected) = (bytes.len() as u64, (seal.object_length, seal.object_sha256));
    ensure(
        Check::SegmentSha256,
        (length, hash) == expected,
        || name.to_owned(),
        || (format!("{} bytes, SHA-256 {}", expected.0, expected.1), format!("{length} bytes, SHA-256 {hash}")),
    )?;
    ensure(
        Check::SegmentBlake3,
        object_blake3(bytes) == seal.object_blake3,
        || name.to_owned(),
        || ("the BLAKE3 that the seal names", "another"),
    )?;
    Ok(())
}

/// The entries of a frame, in form and where the index says that they are.
pub(super) fn read_frame(
    objects: &impl Archive,
    object: &Object,
    frame: &wire::SegmentFrame,
    name: &str,
) -> Result<Vec<Entry>, Stop> {
    let content = object.frame(frame).filter(|_| frame.content_length <= FRAME_BYTES_MAX);
    let content = content.and_then(|bytes| objects.expand(bytes, frame.content_length));
    let place = || format!("{name} frame at byte {}", frame.offset);
    let content = content.ok_or_else(|| {
        Fault::new(Check::SegmentForm, place(), format!("one zstd frame of {} bytes", frame.content_length), "none")
    })?;
    let parts: Vec<Bytes> = split_frame(content).map_err(|why| Fault::form(Check::SegmentForm, place(), &why))?;
    ensure(Check::SegmentForm, parts.len() as u64 == frame.leaf_count, place, || {
        (format!("{} entries", frame.leaf_count), parts.len().to_string())
    })?;
    let mut entries = Vec::with_capacity(parts.len());
    for (at, part) in (0_usize..).zip(parts) {
        let leaf = frame.first_leaf.saturating_add(at as u64);
        let entry =
            Entry::parse(part).map_err(|why| Fault::form(Check::EntryForm, format!("{name} leaf {leaf}"), &why))?;
        entries.push(entry);
    }
    let first = entries.first().map(|entry| entry.leaf.first_position);
    ensure(Check::SegmentForm, first == Some(frame.first_position), place, || {
        (format!("first position {}", frame.first_position), format!("{first:?}"))
    })?;
    Ok(entries)
}

/// What a seal counts.
#[derive(Default)]
struct Tally {
    records: u64,
    batches: u64,
    equivocations: u64,
    statements: u64,
    /// Least and greatest received-at.
    times: Option<(u64, u64)>,
}

impl Tally {
    fn take(&mut self, entry: &Entry) {
        self.records = self.records.saturating_add(entry.records());
        let at = entry.leaf.received_at;
        self.times = Some(self.times.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
        let count = match entry.leaf.kind {
            LeafKind::Batch => &mut self.batches,
            LeafKind::Equivocation => &mut self.equivocations,
            LeafKind::Statement => &mut self.statements,
            LeafKind::Unspecified => return,
        };
        *count = count.saturating_add(1);
    }

    fn check(&self, seal: &Seal, name: &str) -> Result<(), Stop> {
        let (first, last) = self.times.unwrap_or_default();
        let found = [self.records, self.batches, self.equivocations, self.statements, first, last];
        let expected = [
            seal.record_count,
            seal.batch_count,
            seal.equivocation_count,
            seal.statement_count,
            seal.first_received_at,
            seal.last_received_at,
        ];
        ensure(
            Check::SealCounts,
            found == expected,
            || name.to_owned(),
            || (format!("records, batches, equivocations, statements, times {expected:?}"), format!("{found:?}")),
        )?;
        Ok(())
    }
}

struct Reader<'a> {
    log: &'a Log,
    task: &'a Task<'a>,
    name: &'a str,
    position: u64,
    term: u64,
    before_term: Option<u64>,
    /// The head that the batch before held, checked: most batches of a group hold the same.
    last_head: Option<(Bytes, Arc<Head>)>,
}

impl Reader<'_> {
    fn place(&self, leaf: u64) -> String {
        format!("{} leaf {leaf}", self.name)
    }

    fn check_leaf(&mut self, at: u64, entry: &Entry) -> Result<(), Stop> {
        let leaf = &entry.leaf;
        ensure(
            Check::EntryPosition,
            leaf.first_position == self.position,
            || self.place(at),
            || (format!("position {}", self.position), leaf.first_position.to_string()),
        )?;
        self.position = self.position.saturating_add(entry.records());
        let mut begun = self.log.terms.iter().filter(|term| term.index < self.task.log_index);
        let began = begun.find(|term| term.number == leaf.term).map(|term| term.at);
        ensure(
            Check::EntryTerm,
            began.is_some() && leaf.term >= self.term,
            || self.place(at),
            || (format!("a term from {} on that had begun", self.term), leaf.term.to_string()),
        )?;
        self.term = leaf.term;
        if self.before_term.is_none() && began.is_some_and(|began| leaf.received_at < began) {
            self.before_term = Some(at);
        }
        Ok(())
    }

    fn check_content(&mut self, at: u64, entry: Entry) -> Result<Leaf, Stop> {
        let (kind, received_at, term) = (entry.leaf.kind, entry.leaf.received_at, entry.leaf.term);
        let what = match entry.content {
            Content::Statement(signed) => What::Statement(signed.hash),
            Content::Batch(batch) => What::Batch(Box::new(self.check_batch(at, entry.leaf.first_position, *batch)?)),
        };
        Ok(Leaf { kind, received_at, term, what })
    }

    fn check_batch(&mut self, at: u64, position: u64, batch: Submitted) -> Result<Batch, Stop> {
        let header = &batch.header;
        let bound = header.origin == self.log.origin && header.workspace == self.task.seal.workspace;
        ensure(
            Check::BatchBinding,
            bound,
            || self.place(at),
            || {
                (
                    format!("workspace {} of {}", self.task.seal.workspace, self.log.origin),
                    format!("{} of {}", header.workspace, header.origin),
                )
            },
        )?;
        let (key, suspect_since) = self.signer(at, header)?;
        let end = position.saturating_add(u64::from(header.record_count));
        let suspect = suspect_since.is_some_and(|since| position >= since || end > since);
        ensure(
            Check::BatchSignature,
            batch.is_signed_by(key.public_key),
            || self.place(at),
            || (format!("a signature by key {}", header.key_id), "one that does not verify"),
        )?;
        ensure(
            Check::BatchRoot,
            batch.is_root_of_records(),
            || self.place(at),
            || (format!("records with root {}", header.batch_root), "others"),
        )?;
        let kinds = batch.check_records().map_err(|why| Fault::form(Check::RecordForm, self.place(at), &why))?;
        self.check_authority(at, &kinds, key.role)?;
        let opened = batch.opened();
        ensure(
            Check::WriterRecord,
            !header.opens() || opened.is_some(),
            || self.place(at),
            || ("the record of the writer first", "none"),
        )?;
        let held = self.check_held_head(at, &header.last_head)?;
        let hash = batch.header_hash();
        let mut header = batch.header;
        (header.origin, header.last_head) = (String::new(), Bytes::new());
        Ok(Batch { header, hash, held, opened, suspect })
    }

    /// The key that signs the batch, and since which position it is in doubt.
    fn signer(&self, at: u64, header: &Header) -> Result<(KeyState, Option<u64>), Stop> {
        let seal = self.task.seal;
        let workspace = (self.task.chain, seal.workspace_chain.count);
        let ledger = self.log.ledger.last().map(|state| (&*state.chain, seal.ledger_chain.count));
        let key = ledger.and_then(|ledger| writer(workspace, ledger, &header.key_id, header.gateway));
        let Some(key) = key else {
            let fault = Fault::new(
                Check::KeyEnrolled,
                self.place(at),
                format!("a key of gateway {} alone", header.gateway),
                format!("key {}, which is not enrolled for it there", header.key_id),
            );
            return Err(fault.into());
        };
        let valid = !(key.revoked || key.retired && header.opens());
        ensure(
            Check::KeyValid,
            valid,
            || self.place(at),
            || {
                let found = if key.revoked { "a revoked key" } else { "a retired key that opens an epoch" };
                ("a key in force", format!("{found}: {}", header.key_id))
            },
        )?;
        let suspect_since = match key.role {
            Role::Gateway => key.suspect_since,
            // Of a key of the ledger the doubt begins at an index of the log: this segment's seal is after it, or not.
            _ => {
                let newest = self.log.ledger.last().and_then(|state| state.chain.key(&header.key_id));
                newest.and_then(|key| key.suspect_since).filter(|since| self.task.log_index >= *since).map(|_| 0)
            }
        };
        Ok((key, suspect_since))
    }

    fn check_authority(&self, at: u64, kinds: &[RecordKind], role: Role) -> Result<(), Stop> {
        let reserved = self.task.chain.name() == RESERVED_NAME;
        let wrong = kinds.iter().find(|kind| !kind.may_be_written_by(role, reserved));
        ensure(
            Check::RecordKind,
            wrong.is_none(),
            || self.place(at),
            || {
                let found = wrong.map_or("", |kind| kind.name());
                (format!("kinds that a {} key may write there", role.as_str_name()), found.to_owned())
            },
        )?;
        Ok(())
    }

    fn check_held_head(&mut self, at: u64, bytes: &Bytes) -> Result<Option<Arc<Head>>, Stop> {
        if let Some((last, head)) = &self.last_head
            && last == bytes
        {
            return Ok(Some(Arc::clone(head)));
        }
        let Some(parsed) = held_head(bytes) else { return Ok(None) };
        let signed = parsed.map_err(|why| Fault::form(Check::HeldHeadSignature, self.place(at), &why))?;
        let head = &signed.head;
        let state = self.log.ledger_after(head.ledger_chain.count).filter(|s| s.chain.head() == head.ledger_chain);
        let key = state.and_then(|state| state.chain.key(&head.key_id));
        let valid =
            key.is_some_and(|key| key.role == Role::Head && !key.revoked && signed.is_signed_by(key.public_key));
        let bound = head.origin == self.log.origin && head.workspace == self.task.seal.workspace;
        ensure(
            Check::HeldHeadSignature,
            valid && bound,
            || self.place(at),
            || ("an open head of this workspace, signed by the ledger", "one that is not"),
        )?;
        let head = Arc::new(signed.head);
        self.last_head = Some((Bytes::copy_from_slice(bytes), Arc::clone(&head)));
        Ok(Some(head))
    }
}

/// Whether a missing object may have expired: then there is no answer.
pub(super) fn may_have_expired(stop: &Stop, seal: &Seal, retention_days: u64, as_of: u64) -> bool {
    let Stop::Fault(fault) = stop else { return false };
    let kept_us = retention_days.saturating_mul(86_400_000_000);
    fault.check == Check::SegmentPresent
        && fault.state == State::Refuted
        && retention_days > 0
        && as_of.saturating_sub(seal.last_received_at) > kept_us
}
