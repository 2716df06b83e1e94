//! One workspace: its seals, its key chain, its segments in order, and what ties them to one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Archive, Log, Options, Stop, Workers,
    known::Knowledge,
    log::WorkspaceLog,
    segment::{self, Batch, Report, Task, What},
};
use crate::{
    archive,
    batch::{EpochState, Numbering},
    hash::object_hash,
    head::{Head, history_leaf},
    id::{Epoch, GatewayId, HeaderHash, ObjectHash, RootHash, WorkspaceId},
    merkle::{HistoryTree, SegmentTree, Tree},
    policy::Policy,
    segment::{Content, Entry, Object, Seal, roster_hash},
    statement::{Chain, ChainHead, Roots, Signed},
    verdict::{Check, Fault, Verdict, ensure},
    wire::{LeafKind, OpeningReason, RosterEntry, WriterClass},
};

/// Microseconds of a UTC day.
const DAY_US: u64 = 86_400_000_000;
/// An epoch that is neither closed nor continued for so long is a finding.
const UNCLOSED_US: u64 = DAY_US.saturating_mul(3);
/// Segments whose trees are kept in memory: nearly every head that a batch holds points into these.
const TREES_KEPT: usize = 2;

pub(super) struct Walk<'a, 'k, A> {
    objects: &'a A,
    policy: &'a Policy,
    options: &'a Options,
    log: &'a Log,
    workspace: &'a WorkspaceLog,
    knowledge: &'k mut Knowledge<'a>,
    seals: Vec<Seal>,
    history: Tree<HistoryTree>,
    /// The key chain as it stands at the end of the archive.
    chain: Arc<Chain>,
    gateways: BTreeMap<GatewayId, Gateway>,
    /// Trees of the last segments, by number.
    trees: BTreeMap<u64, Tree<SegmentTree>>,
    /// Heads that point into older segments: what they say of `(segment, size)`, and where they stand.
    older_heads: BTreeMap<(u64, u64), (RootHash, String)>,
    day: Option<u64>,
    /// Term of the last leaf.
    term: u64,
    /// What came before the first segment read is not known.
    unknown_past: bool,
    /// Equivocations whose other copy must be looked up: gateway, epoch, number, header hash, where.
    equivocations: Vec<(GatewayId, Epoch, u64, HeaderHash, String)>,
}

#[derive(Default)]
struct Gateway {
    numbering: Numbering,
    writers: BTreeMap<Epoch, Writer>,
}

struct Writer {
    always_on: bool,
    silence_us_max: u64,
    last_created_at: u64,
    last_received_at: u64,
}

impl<'a, 'k, A: Archive> Walk<'a, 'k, A> {
    pub(super) fn new(
        objects: &'a A,
        policy: &'a Policy,
        options: &'a Options,
        log: &'a Log,
        workspace: &'a WorkspaceLog,
        knowledge: &'k mut Knowledge<'a>,
    ) -> Self {
        Self {
            objects,
            policy,
            options,
            log,
            workspace,
            knowledge,
            seals: Vec::new(),
            history: Tree::default(),
            chain: Arc::new(Chain::new(&log.origin, Some(workspace.id))),
            gateways: BTreeMap::new(),
            trees: BTreeMap::new(),
            older_heads: BTreeMap::new(),
            day: None,
            term: 0,
            unknown_past: false,
            equivocations: Vec::new(),
        }
    }

    pub(super) fn run(&mut self, workers: &impl Workers, verdict: &mut Verdict) -> Result<(), Stop> {
        self.read_seals(verdict)?;
        self.read_chain()?;
        self.read_segments(workers, verdict)?;
        self.check_older_heads(verdict)?;
        self.check_equivocations()?;
        self.find_unreferenced(verdict)?;
        self.check_known()?;
        Ok(())
    }

    /// What the auditor knows of this workspace. Segments that it points into are read once more: there are few.
    fn check_known(&mut self) -> Result<(), Stop> {
        for number in self.knowledge.segments(self.id()) {
            let Some(seal) = usize::try_from(number).ok().and_then(|at| self.seals.get(at)) else { continue };
            if let Some(entries) = self.entries_of(seal)? {
                self.knowledge.see_segment(self.id(), number, seal.incarnation, &entries);
            }
        }
        self.knowledge.see_workspace(self.id(), &self.seals, &self.history);
        Ok(())
    }

    fn id(&self) -> WorkspaceId {
        self.workspace.id
    }

    fn read_seals(&mut self, verdict: &mut Verdict) -> Result<(), Stop> {
        let mut position = 0;
        let mut statements = 1;
        for (segment, (log_index, hash)) in (0_u64..).zip(&self.workspace.seals) {
            let name = archive::seal(self.id(), segment, *hash);
            let place = || name.clone();
            let Some(bytes) = self.objects.get(&name)? else {
                return Err(Fault::new(Check::SealPresent, &name, "the seal that the log names", "no object").into());
            };
            let found = object_hash(&bytes);
            ensure(Check::SealHash, found == *hash, place, || (hash, found))?;
            let seal = Seal::parse(&bytes).map_err(|why| Fault::form(Check::SealForm, &name, &why))?;
            let incarnation = self.log.incarnation_at(*log_index);
            let bound = (&seal.origin, seal.workspace, seal.segment, seal.incarnation);
            let expected = (&self.log.origin, self.id(), segment, incarnation);
            ensure(Check::SealBinding, bound == expected, place, || (format!("{expected:?}"), format!("{bound:?}")))?;
            ensure(Check::SealPosition, seal.first_position == position, place, || (position, seal.first_position))?;
            let root = self.history.root();
            ensure(Check::SealHistory, seal.history_root == root, place, || (root, seal.history_root))?;
            let ledger = self.log.ledger_at(*log_index).map(|state| state.chain.head());
            ensure(Check::SealLedgerChain, ledger == Some(seal.ledger_chain), place, || {
                (format!("{ledger:?}"), format!("{:?}", seal.ledger_chain))
            })?;
            ensure(Check::SealWorkspaceChain, seal.workspace_chain.count == statements, place, || {
                (format!("{statements} statements"), seal.workspace_chain.count)
            })?;
            position = seal.next_position();
            statements = statements.saturating_add(seal.statement_count);
            self.history.push(history_leaf(segment, seal.size, &seal.root));
            let newest = verdict.counts.newest_sealed_at;
            verdict.counts.newest_sealed_at = newest.max(Some(seal.sealed_at));
            self.seals.push(seal);
        }
        Ok(())
    }

    /// The chain's statements, found from the last head backwards, and replayed from the first one on.
    fn read_chain(&mut self) -> Result<(), Stop> {
        self.check_creation()?;
        let mut statements = Vec::new();
        let (mut next, last) = match self.seals.last() {
            Some(seal) => (seal.workspace_chain.hash, seal.workspace_chain.count),
            None => (self.workspace.create.hash, 1),
        };
        for serial in (1..last).rev() {
            let signed = self.read_statement(serial, next)?;
            next = ObjectHash::try_from(signed.statement.previous.as_ref()).unwrap_or(ObjectHash::ZERO);
            statements.push(signed);
        }
        let place = || archive::statements(Some(self.id()));
        let created = self.workspace.create.hash;
        ensure(Check::SealWorkspaceChain, next == created, place, || (format!("created by {created}"), next))?;
        let mut roots = self.workspace.roots.clone();
        let mut chain = Chain::new(&self.log.origin, Some(self.id()));
        self.apply(&mut chain, &self.workspace.create, &mut roots)?;
        let mut following = statements.iter().rev();
        for seal in &self.seals {
            while chain.head().count < seal.workspace_chain.count {
                let Some(signed) = following.next() else { break };
                self.apply(&mut chain, signed, &mut roots)?;
            }
            let name = || format!("seal of segment {}", seal.segment);
            ensure(Check::SealWorkspaceChain, chain.head() == seal.workspace_chain, name, || {
                (format!("{:?}", chain.head()), format!("{:?}", seal.workspace_chain))
            })?;
            ensure(Check::WorkspaceCreated, !chain.is_removed(), name, || {
                ("nothing more of a removed workspace", "a segment")
            })?;
            // The statements that cut this segment are signed by the root in force within it.
            if let Some(state) = self.log.ledger_after(seal.ledger_chain.count) {
                roots = state.roots.clone();
            }
        }
        self.finish_chain(chain, roots)
    }

    /// The log has the first statement in full, so its object need not be there; one that is must be that statement.
    fn check_creation(&self) -> Result<(), Stop> {
        let hash = self.workspace.create.hash;
        let name = archive::statement(Some(self.id()), 0, hash);
        let found = self.objects.get(&name)?.map_or(hash, |bytes| object_hash(&bytes));
        Ok(ensure(Check::StatementForm, found == hash, || name, || (hash, found))?)
    }

    /// Statements that cut the last segment: they stand in no seal yet, but as its last leaves and as objects. Where that
    /// object cannot be read, whoever checks the segment says so.
    fn finish_chain(&mut self, mut chain: Chain, mut roots: Roots) -> Result<(), Stop> {
        let cut_by = self.seals.last().map_or(0, |seal| seal.statement_count);
        let last = if cut_by > 0 { self.last_statements()? } else { Some(Vec::new()) };
        let readable = last.is_some();
        for signed in last.unwrap_or_default() {
            self.read_statement(signed.statement.serial, signed.hash)?;
            self.apply(&mut chain, &signed, &mut roots)?;
        }
        // A removal is in the log after the segment that it cuts: an archive may end between the two.
        let removed = self.workspace.removed.as_ref().map(|(_, signed)| signed.hash);
        let ended = chain.is_removed().then(|| chain.head().hash);
        let place = || format!("statements of workspace {}", self.id());
        ensure(Check::WorkspaceCreated, !readable || removed.is_none() || removed == ended, place, || {
            (format!("the end that the log names: {removed:?}"), format!("{ended:?}"))
        })?;
        self.chain = Arc::new(chain);
        Ok(())
    }

    /// Statements among the leaves of the last segment, read without believing anything yet.
    fn last_statements(&self) -> Result<Option<Vec<Signed>>, Stop> {
        let Some(seal) = self.seals.last() else { return Ok(None) };
        let Some(entries) = self.entries_of(seal)? else { return Ok(None) };
        let statement = |entry: Entry| match entry.content {
            Content::Statement(signed) => Some(*signed),
            Content::Batch(_) => None,
        };
        Ok(Some(entries.into_iter().filter_map(statement).collect()))
    }

    /// Entries of a segment whose object has the right hash, without further checks; `None` if it cannot be read.
    fn entries_of(&self, seal: &Seal) -> Result<Option<Vec<Entry>>, Stop> {
        let name = archive::segment(self.id(), seal.segment, seal.object_sha256);
        let Some(bytes) = self.objects.get(&name)?.filter(|bytes| object_hash(bytes) == seal.object_sha256) else {
            return Ok(None);
        };
        let Ok(object) = Object::parse(bytes) else { return Ok(None) };
        let mut found = Vec::new();
        for frame in &object.frames {
            let content = object.frame(frame).and_then(|bytes| self.objects.expand(bytes, frame.content_length));
            let Some(Ok(entries)) = content.map(crate::segment::split_frame) else { return Ok(None) };
            for bytes in entries {
                let Ok(entry) = Entry::parse(bytes) else { return Ok(None) };
                found.push(entry);
            }
        }
        Ok(Some(found))
    }

    fn read_statement(&self, serial: u64, hash: ObjectHash) -> Result<Signed, Stop> {
        let name = archive::statement(Some(self.id()), serial, hash);
        let Some(bytes) = self.objects.get(&name)? else {
            return Err(
                Fault::new(Check::StatementPresent, &name, "the statement that the chain names", "no object").into()
            );
        };
        let found = object_hash(&bytes);
        ensure(Check::StatementForm, found == hash, || name.clone(), || (hash, found))?;
        Ok(Signed::parse(&bytes).map_err(|why| Fault::form(Check::StatementForm, &name, &why))?)
    }

    fn apply(&self, chain: &mut Chain, signed: &Signed, roots: &mut Roots) -> Result<(), Stop> {
        let size = self.log.checkpoint.checkpoint.size;
        let place = || archive::statement(Some(self.id()), signed.statement.serial, signed.hash);
        let seen = signed.is_log_entry() || self.log.names_checkpoint(&signed.statement, size);
        ensure(Check::StatementCheckpoint, seen, place, || {
            ("a checkpoint of this log", format!("one of size {}", signed.statement.checkpoint_size))
        })?;
        if let Err(why) = chain.apply(signed, roots) {
            let place = archive::statement(Some(self.id()), signed.statement.serial, signed.hash);
            ensure(
                Check::WorkspaceChain,
                false,
                || place,
                || ("the next statement of the chain", format!("one that {why}")),
            )?;
        }
        Ok(())
    }

    fn read_segments(&mut self, workers: &impl Workers, verdict: &mut Verdict) -> Result<(), Stop> {
        let in_period = |seal: &Seal| {
            self.options.since.is_none_or(|since| seal.last_received_at >= since)
                && self.options.until.is_none_or(|until| seal.first_received_at <= until)
        };
        // From the first to the last segment of the period without a hole: a clock that jumped must not make one.
        let first = self.seals.iter().position(in_period).unwrap_or(self.seals.len());
        let last = self.seals.iter().rposition(in_period).map_or(0, |at| at.saturating_add(1));
        let run = self.seals.iter().zip(&self.workspace.seals).take(last).skip(first);
        let tasks: Vec<Task> = run
            .map(|(seal, (log_index, _))| Task {
                seal: seal.clone(),
                log_index: *log_index,
                chain: Arc::clone(&self.chain),
            })
            .collect();
        self.unknown_past = first > 0;
        let (objects, log) = (self.objects, self.log);
        let mut outcome = Ok(());
        let mut at = tasks.iter();
        workers.ordered(
            &tasks,
            |task| segment::check(objects, log, task),
            |report| {
                let Some(task) = at.next() else { return false };
                outcome = match report {
                    Ok(report) => self.take_segment(task, report, verdict),
                    Err(stop) => self.miss_segment(task, stop, verdict),
                };
                outcome.is_ok()
            },
        );
        outcome
    }

    /// A segment that may have expired leaves no answer and an unknown past; any other fault ends the workspace.
    fn miss_segment(&mut self, task: &Task, stop: Stop, verdict: &mut Verdict) -> Result<(), Stop> {
        let seal = &task.seal;
        let overlaps = |until: Option<u64>, since: u64| {
            since <= seal.last_received_at && until.is_none_or(|until| until >= seal.first_received_at)
        };
        let held = self.chain.holds().any(|(_, hold)| overlaps(hold.until, hold.since));
        let days = self.policy.minimum_retention_days;
        let expired = !held && segment::may_have_expired(&stop, seal, days, self.options.as_of);
        let Stop::Fault(fault) = stop else { return Err(stop) };
        if !expired {
            return Err(Stop::Fault(fault));
        }
        verdict.faults.push(fault.undecided().of(self.id()));
        self.gateways.clear();
        self.trees.clear();
        self.day = None;
        self.unknown_past = true;
        Ok(())
    }

    fn take_segment(&mut self, task: &Task, report: Report, verdict: &mut Verdict) -> Result<(), Stop> {
        let number = task.seal.segment;
        let name = archive::segment(self.id(), number, task.seal.object_sha256);
        self.trees.insert(number, report.tree);
        while self.trees.len() > TREES_KEPT {
            self.trees.pop_first();
        }
        if let Some(leaf) = report.before_term {
            // No fault: a clock may be set back. But nobody else has to know of it for a ledger to date what it holds so.
            let text = "said to have been received before the start of the ledger that received it".to_owned();
            verdict.find("received-before-term", Some(self.id()), format!("{name} leaf {leaf}"), text);
        }
        let mut touched: BTreeSet<(GatewayId, Epoch)> = BTreeSet::new();
        let mut statements = Vec::new();
        for (at, leaf) in (0_u64..).zip(&report.leaves) {
            let place = || format!("{name} leaf {at}");
            ensure(Check::EntryTerm, leaf.term >= self.term, place, || {
                (format!("a term from {} on", self.term), leaf.term)
            })?;
            self.term = leaf.term;
            match &leaf.what {
                What::Statement(hash) => statements.push(*hash),
                What::Batch(_) if !statements.is_empty() => {
                    ensure(Check::EntryStatement, false, place, || ("no batch after a statement", "one"))?;
                }
                What::Batch(batch) if leaf.kind == LeafKind::Equivocation => {
                    self.check_equivocation(batch, &place(), verdict)?;
                }
                What::Batch(batch) => {
                    touched.insert((batch.header.gateway, batch.header.epoch));
                    self.take_batch(task, at, batch, leaf.received_at, &place(), verdict)?;
                }
            }
        }
        self.check_statements(task, &statements, &name)?;
        self.check_roster(task, &report.object, &touched, &name)?;
        let counts = &mut verdict.counts;
        counts.segments = counts.segments.saturating_add(1);
        counts.batches = counts.batches.saturating_add(task.seal.batch_count);
        counts.records = counts.records.saturating_add(task.seal.record_count);
        let first = task.seal.first_received_at;
        counts.first_received_at = Some(counts.first_received_at.map_or(first, |before| before.min(first)));
        counts.last_received_at = counts.last_received_at.max(Some(task.seal.last_received_at));
        Ok(())
    }

    fn take_batch(
        &mut self,
        task: &Task,
        at: u64,
        batch: &Batch,
        received_at: u64,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let id = self.id();
        let header = &batch.header;
        let gateway = self.gateways.entry(header.gateway).or_default();
        gateway.numbering.unknown_past = self.unknown_past;
        let admitted = gateway.numbering.admit(header);
        ensure(
            Check::Numbering,
            admitted.is_ok(),
            || place.to_owned(),
            || {
                let known = gateway.numbering.epochs.get(&header.epoch);
                let expected = known.map_or_else(
                    || "a new epoch that continues the gateway's last one".to_owned(),
                    |e| format!("batch {} from record {}", e.last_batch.saturating_add(1), e.next_record),
                );
                let found = format!("batch {} from record {}: {admitted:?}", header.batch_number, header.first_record);
                (expected, format!("gateway {} epoch {}: {found}", header.gateway, header.epoch))
            },
        )?;
        gateway.numbering.take(header, batch.hash);
        let mut find = |name, text: String| verdict.find(name, Some(id), place.to_owned(), text);
        match header.opening_reason {
            Some(OpeningReason::StateLost) => {
                find(
                    "state-lost",
                    format!("gateway {} lost what it knew: records before may be missing", header.gateway),
                );
            }
            Some(OpeningReason::Rewound) => {
                find("rewound", format!("gateway {} had used numbers before that it did not know of", header.gateway));
            }
            _ => {}
        }
        if header.dropped > 0 {
            let why = header.drop_reason.map_or("", |reason| reason.as_str_name());
            find("dropped", format!("gateway {} declares {} records dropped: {why}", header.gateway, header.dropped));
        }
        if batch.suspect {
            find("suspect-key", format!("signed by key {}, which is in doubt there", header.key_id));
        }
        if let Some(opened) = &batch.opened {
            let always_on = opened.class() == WriterClass::AlwaysOn;
            let writer = Writer {
                always_on,
                silence_us_max: opened.silence_us_max,
                last_created_at: header.created_at,
                last_received_at: received_at,
            };
            gateway.writers.insert(header.epoch, writer);
        } else if let Some(writer) = gateway.writers.get_mut(&header.epoch) {
            let silent = header.created_at.saturating_sub(writer.last_created_at);
            if writer.always_on && writer.silence_us_max > 0 && silent > writer.silence_us_max {
                find(
                    "silent",
                    format!(
                        "gateway {} was silent for {} s",
                        header.gateway,
                        silent.checked_div(1_000_000).unwrap_or(0)
                    ),
                );
            }
            (writer.last_created_at, writer.last_received_at) = (header.created_at, received_at);
        }
        verdict.counts.dropped = verdict.counts.dropped.saturating_add(header.dropped);
        verdict.suspect_batches = verdict.suspect_batches.saturating_add(u64::from(batch.suspect));
        match &batch.held {
            Some(head) => self.check_held_head(task.seal.segment, at, head, place, verdict),
            None => Ok(()),
        }
    }

    /// The head that a batch holds lies before the batch and on this history.
    fn check_held_head(
        &mut self,
        segment: u64,
        leaf: u64,
        head: &Head,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        verdict.counts.heads = verdict.counts.heads.saturating_add(1);
        if head.unfenced {
            let text = "a head that was signed while the fence was out of reach".to_owned();
            verdict.find("unfenced", Some(self.id()), place.to_owned(), text);
        }
        self.find_doubt(head, place, verdict);
        let seal = usize::try_from(head.segment).ok().and_then(|at| self.seals.get(at));
        if let Some(seal) = seal.filter(|seal| head.incarnation < seal.incarnation) {
            let text = format!("a head of incarnation {}; the segment is of {}", head.incarnation, seal.incarnation);
            verdict.find("superseded", Some(self.id()), place.to_owned(), text);
            return Ok(());
        }
        let before = head.segment < segment || (head.segment == segment && head.size <= leaf);
        let history = self.history.root_at(head.segment);
        // A head of none may be older than the statement that came before the segment's first leaf.
        let earlier = |of_head: ChainHead, of_seal: ChainHead| of_head.count <= of_seal.count && head.size == 0;
        let chained = self.chain.head_at(head.workspace_chain.count) == Some(head.workspace_chain);
        let agrees = seal.is_some_and(|seal| {
            head.incarnation == seal.incarnation
                && (head.ledger_chain == seal.ledger_chain || earlier(head.ledger_chain, seal.ledger_chain))
                && (head.workspace_chain == seal.workspace_chain || earlier(head.workspace_chain, seal.workspace_chain))
                && head.size <= seal.size
                && chained
        });
        let says = || format!("head of segment {} size {} root {}", head.segment, head.size, head.root);
        ensure(
            Check::HeldHead,
            before && agrees && history == Some(head.history_root),
            || place.to_owned(),
            || ("a head of this history from before the batch", says()),
        )?;
        let Some(tree) = self.trees.get(&head.segment) else {
            let older = (head.root, place.to_owned());
            let known = self.older_heads.entry((head.segment, head.size)).or_insert(older);
            return Ok(ensure(
                Check::HeldHead,
                known.0 == head.root,
                || place.to_owned(),
                || (format!("root {}, as another batch holds", known.0), says()),
            )?);
        };
        let root = tree.root_at(head.size);
        Ok(ensure(Check::HeldHead, root == Some(head.root), || place.to_owned(), || (format!("{:?}", root), says()))?)
    }

    /// A head may be of a key that is in doubt where its segment was sealed: whoever else had that key could have made it.
    fn find_doubt(&self, head: &Head, place: &str, verdict: &mut Verdict) {
        let newest = self.log.ledger.last().and_then(|state| state.chain.key(&head.key_id));
        let Some(since) = newest.and_then(|key| key.suspect_since) else { return };
        let sealed = usize::try_from(head.segment).ok().and_then(|at| self.workspace.seals.get(at));
        if sealed.is_none_or(|(index, _)| *index >= since) {
            let text = format!("holds a head signed by key {}, which is in doubt there", head.key_id);
            verdict.find("suspect-key", Some(self.id()), place.to_owned(), text);
            verdict.suspect_batches = verdict.suspect_batches.saturating_add(1);
        }
    }

    /// Heads that point further back than the trees in memory: those segments are read once more.
    fn check_older_heads(&mut self, verdict: &mut Verdict) -> Result<(), Stop> {
        let older = std::mem::take(&mut self.older_heads);
        let mut tree: Option<(u64, Option<Tree<SegmentTree>>)> = None;
        for ((segment, size), (root, place)) in older {
            if tree.as_ref().is_none_or(|(number, _)| *number != segment) {
                tree = Some((segment, self.tree_of(segment)?));
            }
            let Some((_, Some(tree))) = &tree else {
                verdict.counts.heads_not_checked = verdict.counts.heads_not_checked.saturating_add(1);
                continue;
            };
            let found = tree.root_at(size);
            ensure(
                Check::HeldHead,
                found == Some(root),
                || place,
                || (format!("segment {segment} size {size}: {found:?}"), root),
            )?;
        }
        Ok(())
    }

    /// The tree of a segment that was verified before; `None` if its object is not there.
    fn tree_of(&self, number: u64) -> Result<Option<Tree<SegmentTree>>, Stop> {
        let Some(seal) = usize::try_from(number).ok().and_then(|at| self.seals.get(at)) else { return Ok(None) };
        let Some(entries) = self.entries_of(seal)? else { return Ok(None) };
        let tree: Tree<SegmentTree> = entries.iter().map(Entry::leaf_hash).collect();
        Ok((tree.root() == seal.root).then_some(tree))
    }

    fn check_equivocation(&mut self, batch: &Batch, place: &str, verdict: &mut Verdict) -> Result<(), Stop> {
        let header = &batch.header;
        let epoch = self.gateways.get(&header.gateway).and_then(|g| g.numbering.epochs.get(&header.epoch));
        let taken = epoch.is_some_and(|epoch| header.batch_number <= epoch.last_batch);
        ensure(
            Check::Equivocation,
            taken || (epoch.is_none() && self.unknown_past),
            || place.to_owned(),
            || ("another header under a number that is taken", format!("batch {}", header.batch_number)),
        )?;
        let name = (header.gateway, header.epoch, header.batch_number, batch.hash, place.to_owned());
        self.equivocations.push(name);
        let text = format!("gateway {} signed two batches {}", header.gateway, header.batch_number);
        verdict.find("equivocation", Some(self.id()), place.to_owned(), text);
        Ok(())
    }

    /// The copy that took the number is another one: else a gateway would be blamed for sending a batch again. There are
    /// few of these, so the segments are read once more rather than every header's hash kept.
    fn check_equivocations(&mut self) -> Result<(), Stop> {
        let mut open = std::mem::take(&mut self.equivocations);
        for seal in &self.seals {
            if open.is_empty() {
                return Ok(());
            }
            for entry in self.entries_of(seal)?.unwrap_or_default() {
                let (Content::Batch(batch), LeafKind::Batch) = (&entry.content, entry.leaf.kind) else { continue };
                let header = &batch.header;
                let number = (header.gateway, header.epoch, header.batch_number);
                let (same, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|o| (o.0, o.1, o.2) == number);
                open = rest;
                for (.., hash, place) in same {
                    ensure(
                        Check::Equivocation,
                        batch.header_hash() != hash,
                        || place,
                        || ("another header than the one that took the number", "the same"),
                    )?;
                }
            }
        }
        Ok(())
    }

    /// The statements that stand as leaves are those of the chain, one by one.
    fn check_statements(&self, task: &Task, found: &[ObjectHash], name: &str) -> Result<(), Stop> {
        let after = task.seal.workspace_chain.count;
        for (count, hash) in (after.saturating_add(1)..).zip(found) {
            let chained = self.chain.head_at(count).map(|head| head.hash);
            ensure(
                Check::EntryStatement,
                chained == Some(*hash),
                || name.to_owned(),
                || (format!("statement {chained:?} of the chain"), hash.to_string()),
            )?;
        }
        Ok(())
    }

    fn check_roster(
        &mut self,
        task: &Task,
        object: &Object,
        touched: &BTreeSet<(GatewayId, Epoch)>,
        name: &str,
    ) -> Result<(), Stop> {
        let day = task.seal.first_received_at.checked_div(DAY_US).unwrap_or(0);
        let first_of_day = self.day != Some(day);
        let known_day = self.day.is_some() || task.seal.segment == 0;
        self.day = Some(day);
        let roster = &object.roster;
        let place = || name.to_owned();
        ensure(Check::Roster, roster_hash(&object.roster_bytes) == task.seal.roster_hash, place, || {
            ("the roster that the seal names", "another")
        })?;
        let bound = roster.workspace.as_ref() == self.id().as_ref() && roster.segment == task.seal.segment;
        ensure(Check::Roster, bound && (!known_day || roster.full == first_of_day), place, || {
            (
                format!("segment {}, full: {first_of_day}", task.seal.segment),
                format!("segment {}, full: {}", roster.segment, roster.full),
            )
        })?;
        let mut expected = Vec::new();
        for (gateway, state) in &self.gateways {
            for (epoch, state) in &state.numbering.epochs {
                if touched.contains(&(*gateway, *epoch)) || (roster.full && !state.closed) {
                    expected.push(roster_entry(*gateway, *epoch, state));
                }
            }
        }
        let holds = if self.unknown_past {
            expected.iter().all(|entry| roster.entries.contains(entry))
        } else {
            expected == roster.entries
        };
        ensure(Check::Roster, holds, place, || {
            (format!("the last numbers of {} epochs", expected.len()), format!("{} others", roster.entries.len()))
        })?;
        if self.unknown_past {
            self.learn_epochs(&roster.entries);
            // A full roster has told every open epoch: from here on a new one opens as it must.
            self.unknown_past = !roster.full;
        }
        Ok(())
    }

    /// Epochs that only a roster tells of, where the past is not known.
    fn learn_epochs(&mut self, entries: &[RosterEntry]) {
        for entry in entries {
            let ids = (GatewayId::try_from(entry.gateway.as_ref()), Epoch::try_from(entry.epoch.as_ref()));
            let (Ok(gateway), Ok(epoch)) = ids else { continue };
            let state = EpochState {
                key_id: None,
                last_batch: entry.last_batch,
                next_record: entry.next_record,
                last_header_hash: HeaderHash::try_from(entry.last_header_hash.as_ref()).unwrap_or(HeaderHash::ZERO),
                closed: entry.closed,
            };
            self.gateways.entry(gateway).or_default().numbering.epochs.entry(epoch).or_insert(state);
        }
    }

    /// Epochs that are open at the end: whether they are silent or unclosed depends on how far the whole archive reaches.
    pub(super) fn open_epochs(&self) -> Vec<OpenEpoch> {
        let mut open = Vec::new();
        for (id, gateway) in &self.gateways {
            for (epoch, state) in gateway.numbering.epochs.iter().filter(|(_, state)| !state.closed) {
                let Some(writer) = gateway.writers.get(epoch) else { continue };
                open.push(OpenEpoch {
                    workspace: self.id(),
                    place: format!("gateway {id} epoch {epoch} batch {}", state.last_batch),
                    heard_at: writer.last_received_at,
                    silence_us_max: writer.always_on.then_some(writer.silence_us_max),
                });
            }
        }
        open
    }

    fn find_unreferenced(&self, verdict: &mut Verdict) -> Result<(), Stop> {
        let names = |folder: &str| self.objects.list(&format!("workspaces/{}/{folder}", self.id()));
        let segments: BTreeSet<String> =
            self.seals.iter().map(|seal| format!("{}-{}", seal.segment, seal.object_sha256)).collect();
        let seals: BTreeSet<String> =
            (0_u64..).zip(&self.workspace.seals).map(|(number, (_, hash))| format!("{number}-{hash}")).collect();
        let counts = 1..=self.chain.head().count;
        let heads = counts.filter_map(|count| self.chain.head_at(count));
        // The one that creates the workspace stands in the log, and here as well.
        let statements: BTreeSet<String> =
            heads.map(|head| format!("{}-{}", head.count.saturating_sub(1), head.hash)).collect();
        for (folder, referred) in [("segments", segments), ("seals", seals), ("statements", statements)] {
            for name in names(folder)? {
                if !referred.contains(&name) {
                    let place = format!("workspaces/{}/{folder}/{name}", self.id());
                    verdict.find("unreferenced", Some(self.id()), place, "nothing in the log refers to it".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// An epoch that nothing closed.
pub(super) struct OpenEpoch {
    workspace: WorkspaceId,
    place: String,
    heard_at: u64,
    /// Of a writer that promised to be always on.
    silence_us_max: Option<u64>,
}

impl OpenEpoch {
    /// What an auditor should know of it, given the newest time in the archive.
    pub(super) fn find(&self, now: u64, verdict: &mut Verdict) {
        let since = now.saturating_sub(self.heard_at);
        if since > UNCLOSED_US {
            let text = "neither closed nor continued for three days".to_owned();
            verdict.find("unclosed", Some(self.workspace), self.place.clone(), text);
        }
        // A segment of heartbeats alone is sealed daily, so the newest ones may not be archived yet.
        if self.silence_us_max.is_some_and(|allowed| since > allowed.saturating_add(DAY_US)) {
            let text = "nothing since, and not closed".to_owned();
            verdict.find("silent", Some(self.workspace), self.place.clone(), text);
        }
    }
}

/// A roster's line for an epoch.
pub(super) fn roster_entry(gateway: GatewayId, epoch: Epoch, state: &EpochState) -> RosterEntry {
    RosterEntry {
        gateway: gateway.into(),
        epoch: epoch.into(),
        last_batch: state.last_batch,
        next_record: state.next_record,
        last_header_hash: state.last_header_hash.into(),
        closed: state.closed,
    }
}
