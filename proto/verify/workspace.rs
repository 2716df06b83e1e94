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
    /// Chain after so many statements, for each count that a seal names, and the newest.
    chains: BTreeMap<u64, Arc<Chain>>,
    gateways: BTreeMap<GatewayId, Gateway>,
    /// Trees of the last segments, by number.
    trees: BTreeMap<u64, Tree<SegmentTree>>,
    /// Heads that point into older segments: what they say of `(segment, size)`, and where they stand.
    older_heads: BTreeMap<(u64, u64), (RootHash, String)>,
    day: Option<u64>,
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
            chains: BTreeMap::new(),
            gateways: BTreeMap::new(),
            trees: BTreeMap::new(),
            older_heads: BTreeMap::new(),
            day: None,
        }
    }

    pub(super) fn run(&mut self, workers: &impl Workers, verdict: &mut Verdict) -> Result<(), Stop> {
        self.read_seals(verdict)?;
        self.read_chain()?;
        self.read_segments(workers, verdict)?;
        self.check_older_heads(verdict)?;
        self.find_silence(verdict);
        self.find_unreferenced(verdict)?;
        self.knowledge.see_workspace(self.workspace.id, &self.seals, &self.history);
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
            self.chains.entry(chain.head().count).or_insert_with(|| Arc::new(chain.clone()));
            // The statements that cut this segment are signed by the root in force within it.
            if let Some(state) = self.log.ledger_after(seal.ledger_chain.count) {
                roots = state.roots.clone();
            }
        }
        self.finish_chain(chain, roots)
    }

    /// Statements that cut the last segment: they stand in no seal yet, but as its last leaves and as objects.
    fn finish_chain(&mut self, mut chain: Chain, mut roots: Roots) -> Result<(), Stop> {
        let cut_by = self.seals.last().map_or(0, |seal| seal.statement_count);
        if cut_by > 0 {
            for signed in self.last_statements()? {
                self.read_statement(signed.statement.serial, signed.hash)?;
                self.apply(&mut chain, &signed, &mut roots)?;
            }
        }
        let removed = self.workspace.removed.as_ref().map(|(_, signed)| signed.hash);
        let ended = chain.is_removed().then(|| chain.head().hash);
        let place = || format!("statements of workspace {}", self.id());
        ensure(Check::WorkspaceCreated, removed == ended || (removed.is_none() && ended.is_some()), place, || {
            (format!("the end that the log names: {removed:?}"), format!("{ended:?}"))
        })?;
        self.chains.insert(chain.head().count, Arc::new(chain));
        Ok(())
    }

    /// Statements among the leaves of the last segment, read without believing anything yet.
    fn last_statements(&self) -> Result<Vec<Signed>, Stop> {
        let Some(seal) = self.seals.last() else { return Ok(Vec::new()) };
        let name = archive::segment(self.id(), seal.segment, seal.object_sha256);
        let Some(bytes) = self.objects.get(&name)? else { return Ok(Vec::new()) };
        if object_hash(&bytes) != seal.object_sha256 {
            return Ok(Vec::new());
        }
        let Ok(object) = Object::parse(bytes) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for frame in &object.frames {
            let content = object.frame(frame).and_then(|bytes| self.objects.expand(bytes, frame.content_length));
            let entries = content.and_then(|content| crate::segment::split_frame(content).ok()).unwrap_or_default();
            for entry in entries.into_iter().filter_map(|bytes| Entry::parse(bytes).ok()) {
                if let Content::Statement(signed) = entry.content {
                    found.push(*signed);
                }
            }
        }
        Ok(found)
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
        let Some((_, newest)) = self.chains.last_key_value() else { return Ok(()) };
        let newest = Arc::clone(newest);
        let in_period = |seal: &&Seal| {
            self.options.since.is_none_or(|since| seal.last_received_at >= since)
                && self.options.until.is_none_or(|until| seal.first_received_at <= until)
        };
        let tasks: Vec<Task> = self
            .seals
            .iter()
            .filter(in_period)
            .filter_map(|seal| {
                let at = usize::try_from(seal.segment).ok()?;
                let (log_index, _) = self.workspace.seals.get(at)?;
                let chain = Arc::clone(self.chains.get(&seal.workspace_chain.count)?);
                Some(Task { seal: seal.clone(), log_index: *log_index, chain, newest: Arc::clone(&newest) })
            })
            .collect();
        let mut unknown_past = tasks.first().is_some_and(|task| task.seal.segment > 0);
        let (objects, log) = (self.objects, self.log);
        let mut outcome = Ok(());
        let mut at = tasks.iter();
        workers.ordered(
            &tasks,
            |task| segment::check(objects, log, task),
            |report| {
                let Some(task) = at.next() else { return false };
                let taken = match report {
                    Ok(report) => self.take_segment(task, report, unknown_past, verdict),
                    Err(stop) => self.miss_segment(task, stop, verdict).map(|()| unknown_past = true),
                };
                outcome = taken;
                outcome.is_ok()
            },
        );
        outcome
    }

    /// A segment that may have expired leaves no answer and an unknown past; any other fault ends the workspace.
    fn miss_segment(&mut self, task: &Task, stop: Stop, verdict: &mut Verdict) -> Result<(), Stop> {
        let expired =
            segment::may_have_expired(&stop, &task.seal, self.policy.minimum_retention_days, self.options.as_of);
        let Stop::Fault(fault) = stop else { return Err(stop) };
        if !expired {
            return Err(Stop::Fault(fault));
        }
        verdict.faults.push(fault.undecided().of(self.id()));
        self.gateways.clear();
        self.trees.clear();
        self.day = None;
        Ok(())
    }

    fn take_segment(
        &mut self,
        task: &Task,
        report: Report,
        unknown_past: bool,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let number = task.seal.segment;
        let name = archive::segment(self.id(), number, task.seal.object_sha256);
        self.trees.insert(number, report.tree);
        while self.trees.len() > TREES_KEPT {
            self.trees.pop_first();
        }
        let mut touched: BTreeSet<(GatewayId, Epoch)> = BTreeSet::new();
        let mut statements = Vec::new();
        for (at, leaf) in (0_u64..).zip(&report.leaves) {
            let place = || format!("{name} leaf {at}");
            match &leaf.what {
                What::Statement(hash) => statements.push(*hash),
                What::Batch(_) if !statements.is_empty() => {
                    ensure(Check::EntryStatement, false, place, || ("no batch after a statement", "one"))?;
                }
                What::Batch(batch) if leaf.kind == LeafKind::Equivocation => {
                    self.check_equivocation(batch, unknown_past, &place(), verdict)?;
                }
                What::Batch(batch) => {
                    touched.insert((batch.header.gateway, batch.header.epoch));
                    self.take_batch(task, at, batch, leaf.received_at, unknown_past, &place(), verdict)?;
                }
            }
        }
        self.check_statements(task, &statements, &name)?;
        self.check_roster(task, &report.object, &touched, unknown_past, &name)?;
        self.knowledge.see_segment(self.id(), number, self.trees.get(&number));
        let counts = &mut verdict.counts;
        counts.segments = counts.segments.saturating_add(1);
        counts.batches = counts.batches.saturating_add(task.seal.batch_count);
        counts.records = counts.records.saturating_add(task.seal.record_count);
        let first = task.seal.first_received_at;
        counts.first_received_at = Some(counts.first_received_at.map_or(first, |before| before.min(first)));
        counts.last_received_at = counts.last_received_at.max(Some(task.seal.last_received_at));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "a leaf, where it stands and what is known around it")]
    fn take_batch(
        &mut self,
        task: &Task,
        at: u64,
        batch: &Batch,
        received_at: u64,
        unknown_past: bool,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let id = self.id();
        let header = &batch.header;
        let gateway = self.gateways.entry(header.gateway).or_default();
        gateway.numbering.unknown_past = unknown_past;
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
        let agrees = seal.is_some_and(|seal| {
            head.incarnation == seal.incarnation
                && (head.ledger_chain == seal.ledger_chain || earlier(head.ledger_chain, seal.ledger_chain))
                && (head.workspace_chain == seal.workspace_chain || earlier(head.workspace_chain, seal.workspace_chain))
                && head.size <= seal.size
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
        let name = archive::segment(self.id(), number, seal.object_sha256);
        let Some(bytes) = self.objects.get(&name)? else { return Ok(None) };
        let Ok(object) = Object::parse(bytes) else { return Ok(None) };
        let mut tree = Tree::default();
        for frame in &object.frames {
            let content = object.frame(frame).and_then(|bytes| self.objects.expand(bytes, frame.content_length));
            let entries = content.and_then(|content| crate::segment::split_frame(content).ok()).unwrap_or_default();
            for entry in entries.into_iter().filter_map(|bytes| Entry::parse(bytes).ok()) {
                tree.push(entry.leaf_hash());
            }
        }
        Ok((tree.root() == seal.root).then_some(tree))
    }

    fn check_equivocation(
        &mut self,
        batch: &Batch,
        unknown_past: bool,
        place: &str,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let header = &batch.header;
        let epoch = self.gateways.get(&header.gateway).and_then(|g| g.numbering.epochs.get(&header.epoch));
        let taken = epoch.is_some_and(|epoch| {
            header.batch_number < epoch.last_batch
                || (header.batch_number == epoch.last_batch && batch.hash != epoch.last_header_hash)
        });
        ensure(
            Check::Equivocation,
            taken || (epoch.is_none() && unknown_past),
            || place.to_owned(),
            || ("another header under a number that is taken", format!("batch {}", header.batch_number)),
        )?;
        let text = format!("gateway {} signed two batches {}", header.gateway, header.batch_number);
        verdict.find("equivocation", Some(self.id()), place.to_owned(), text);
        Ok(())
    }

    fn check_statements(&self, task: &Task, found: &[ObjectHash], name: &str) -> Result<(), Stop> {
        let first = task.seal.workspace_chain.count;
        let after = first.saturating_add(task.seal.statement_count);
        let chained = self.chains.get(&after).map(|chain| chain.head().hash);
        let last = found.last().copied().unwrap_or(task.seal.workspace_chain.hash);
        ensure(
            Check::EntryStatement,
            chained == Some(last) || (chained.is_none() && found.is_empty()),
            || name.to_owned(),
            || (format!("the statements that lead to {chained:?}"), format!("{found:?}")),
        )?;
        Ok(())
    }

    fn check_roster(
        &mut self,
        task: &Task,
        object: &Object,
        touched: &BTreeSet<(GatewayId, Epoch)>,
        unknown_past: bool,
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
        let holds = if unknown_past {
            expected.iter().all(|entry| roster.entries.contains(entry))
        } else {
            expected == roster.entries
        };
        ensure(Check::Roster, holds, place, || {
            (format!("the last numbers of {} epochs", expected.len()), format!("{} others", roster.entries.len()))
        })?;
        if unknown_past {
            self.learn_epochs(&roster.entries);
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

    fn find_silence(&self, verdict: &mut Verdict) {
        let now = verdict.counts.newest_sealed_at.unwrap_or(0);
        for (id, gateway) in &self.gateways {
            for (epoch, state) in &gateway.numbering.epochs {
                let Some(writer) = gateway.writers.get(epoch).filter(|_| !state.closed) else { continue };
                let place = format!("gateway {id} epoch {epoch}");
                let continued = gateway.numbering.last_opened != Some(*epoch);
                let since = now.saturating_sub(writer.last_received_at);
                if !continued && since > UNCLOSED_US {
                    let text = "neither closed nor continued for three days".to_owned();
                    verdict.find("unclosed", Some(self.id()), place.clone(), text);
                }
                // A segment of heartbeats alone is sealed daily, so the newest ones may not be archived yet.
                let allowed = writer.silence_us_max.saturating_add(DAY_US);
                if writer.always_on && !continued && since > allowed {
                    verdict.find("silent", Some(self.id()), place, "nothing since, and not closed".to_owned());
                }
            }
        }
    }

    fn find_unreferenced(&self, verdict: &mut Verdict) -> Result<(), Stop> {
        let names = |folder: &str| self.objects.list(&format!("workspaces/{}/{folder}", self.id()));
        let segments: BTreeSet<String> =
            self.seals.iter().map(|seal| format!("{}-{}", seal.segment, seal.object_sha256)).collect();
        let seals: BTreeSet<String> =
            (0_u64..).zip(&self.workspace.seals).map(|(number, (_, hash))| format!("{number}-{hash}")).collect();
        for (folder, referred) in [("segments", segments), ("seals", seals)] {
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
