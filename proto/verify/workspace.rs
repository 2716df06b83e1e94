//! One workspace: its seals, its key chain, its segments in order, and what ties them to one another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Archive, Log, Options, Stop, Workers,
    known::Knowledge,
    log::WorkspaceLog,
    segment::{self, Report, Task, What},
    strays,
};
use crate::{
    archive,
    batch::Numbering,
    hash::object_hash,
    head::history_leaf,
    id::{Epoch, GatewayId, HeaderHash, ObjectHash, RootHash, WorkspaceId},
    merkle::{HistoryTree, SegmentTree, Tree},
    policy::Policy,
    segment::Seal,
    statement::Chain,
    verdict::{Check, Fault, Verdict, ensure},
    wire::LeafKind,
};

mod batches;
mod chain;
mod period;
mod rosters;

/// Segments whose trees are kept in memory: nearly every head that a batch holds points into these.
const TREES_KEPT: usize = 2;

pub(super) struct Walk<'a, 'k, A> {
    objects: &'a A,
    policy: &'a Policy,
    options: &'a Options,
    log: &'a Log,
    workspace: &'a WorkspaceLog,
    knowledge: &'k mut Knowledge<'a>,
    /// Shared, so that tasks refer to them.
    seals: Arc<Vec<Seal>>,
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
    /// Nor was it at some time in this run, or a segment is missing: a gateway may have been heard there.
    has_gap: bool,
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
            seals: Arc::default(),
            history: Tree::default(),
            chain: Arc::new(Chain::new(&log.origin, Some(workspace.id))),
            gateways: BTreeMap::new(),
            trees: BTreeMap::new(),
            older_heads: BTreeMap::new(),
            day: None,
            term: 0,
            unknown_past: false,
            has_gap: false,
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
            let counts = &mut verdict.counts;
            counts.newest_sealed_at = counts.newest_sealed_at.max(Some(seal.sealed_at));
            counts.hear(seal.sealed_at, self.options.as_of);
            counts.hear(seal.last_received_at, self.options.as_of);
            Arc::make_mut(&mut self.seals).push(seal);
        }
        Ok(())
    }

    fn read_segments(&mut self, workers: &impl Workers, verdict: &mut Verdict) -> Result<(), Stop> {
        let seals = Arc::clone(&self.seals);
        let range = self.options.run_of(&seals);
        period::find_misdated(self.workspace, &seals, &range, self.options.as_of, verdict);
        let in_period = seals.iter().filter(|seal| self.options.asks_for(seal)).count() as u64;
        verdict.counts.segments_in_period = in_period;
        verdict.counts.segments_not_examined = seals.len().saturating_sub(range.len()) as u64;
        self.unknown_past = range.start > 0;
        let run = seals.iter().zip(&self.workspace.seals).take(range.end).skip(range.start);
        let chain = Arc::clone(&self.chain);
        let tasks: Vec<Task<'_>> =
            run.map(|(seal, (log_index, _))| Task { seal, log_index: *log_index, chain: &chain }).collect();
        self.has_gap = self.unknown_past;
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
    fn miss_segment(&mut self, task: &Task<'_>, stop: Stop, verdict: &mut Verdict) -> Result<(), Stop> {
        let seal = task.seal;
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
        (self.unknown_past, self.has_gap) = (true, true);
        Ok(())
    }

    fn take_segment(&mut self, task: &Task<'_>, report: Report, verdict: &mut Verdict) -> Result<(), Stop> {
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
        period::find_in_period(self.id(), &name, &report.leaves, self.options, verdict);
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

    fn find_unreferenced(&self, verdict: &mut Verdict) -> Result<(), Stop> {
        let segment = |number: usize| Some((number, self.seals.get(number)?.object_sha256));
        let seal = |number: usize| Some((number, self.workspace.seals.get(number)?.1));
        // The one that creates the workspace stands in the log, and here as well.
        let statement = |serial: usize| {
            let count = (serial as u64).checked_add(1)?;
            Some((serial, self.chain.head_at(count)?.hash))
        };
        let name = |(number, hash): (usize, ObjectHash)| format!("{number}-{hash}");
        strays::find_in(self.objects, self.id(), "segments", |at| segment(at).map(name), verdict)?;
        strays::find_in(self.objects, self.id(), "seals", |at| seal(at).map(name), verdict)?;
        strays::find_in(self.objects, self.id(), "statements", |at| statement(at).map(name), verdict)?;
        Ok(())
    }
}
