//! Verification of an archive: pure, in the order of FORMAT.md 13, with nothing believed but the audit policy.
//!
//! [`run`] walks the log, then each workspace in scope in the order of creation. A fault in the log ends the run; a fault in
//! a workspace ends that workspace, and what comes after it there is not claimed. The caller brings the objects
//! ([`Archive`]) and, if it likes, several processors ([`Workers`]); the verdict does not depend on them.

use std::ops::Range;

use bytes::Bytes;

use crate::{
    head::SignedHead,
    note::SignedCheckpoint,
    policy::Policy,
    segment::Seal,
    statement::Roots,
    strict::{self, table},
    verdict::{Check, Fault, Verdict, is_omitted},
    wire,
};

mod known;
mod log;
mod segment;
mod silence;
mod strays;
mod witnesses;
mod workspace;

pub use known::{KNOWN_BYTES_MAX, Known, known_in, parse_known};
pub use log::{Cosignature, Log, Term, last_seals_hash};

/// An object could not be read: neither there nor missing. Verification ends without a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// The objects of an archive.
pub trait Archive: Sync {
    /// An object's bytes; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`Unreadable`].
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable>;

    /// Names of all objects below a folder, relative to it, sorted.
    ///
    /// # Errors
    /// [`Unreadable`].
    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable>;

    /// Gives `see` the name of each object below a folder, relative to it: each once, those of one folder after one another,
    /// in any order besides. Whoever has very many gives them as it reads them.
    ///
    /// # Errors
    /// [`Unreadable`].
    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        self.list(folder)?.iter().for_each(|name| see(name));
        Ok(())
    }

    /// Content of one zstd frame that must be exactly `length` bytes long; `None` if it is not, or something follows.
    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes>;
}

impl<A: Archive> Archive for &A {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        (**self).get(name)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        (**self).list(folder)
    }

    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        (**self).each(folder, see)
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        (**self).expand(frame, length)
    }
}

/// Runs independent work, perhaps on several processors.
pub trait Workers: Sync {
    /// Does `work` for each of `tasks`, in any order, and gives the results to `take` in the order of the tasks until it
    /// says `false`. At most a few results wait at a time.
    fn ordered<T: Sync, R: Send>(&self, tasks: &[T], work: impl Fn(&T) -> R + Sync, take: impl FnMut(R) -> bool);
}

/// One after the other.
#[derive(Clone, Copy, Debug)]
pub struct InTurn;

impl Workers for InTurn {
    fn ordered<T: Sync, R: Send>(&self, tasks: &[T], work: impl Fn(&T) -> R + Sync, mut take: impl FnMut(R) -> bool) {
        for task in tasks {
            if !take(work(task)) {
                return;
            }
        }
    }
}

/// What the auditor asks besides the policy.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Time of the question, microseconds: ages, expiry and silence are measured from here.
    pub as_of: u64,
    /// Verify the archive as it was when the log had this size.
    pub at_size: Option<u64>,
    /// Only segments with a leaf received at or after this time, and their neighbours.
    pub since: Option<u64>,
    /// Only segments with a leaf received at or before this time, and their neighbours.
    pub until: Option<u64>,
    /// What the auditor knows from elsewhere.
    pub known: Vec<Known>,
}

impl Options {
    /// Whether something is known that the archive can be held against: of a checkpoint past [`Self::at_size`] nothing is
    /// asked.
    fn has_known(&self) -> bool {
        let is_later = |known: &Known| matches!(known, Known::Checkpoint(known) if self.at_size.is_some_and(|size| known.checkpoint.size > size));
        !self.known.iter().all(is_later)
    }

    /// Whether a period was asked for.
    pub fn has_period(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    fn is_since(&self, seal: &Seal) -> bool {
        self.since.is_none_or(|since| seal.last_received_at >= since)
    }

    fn is_until(&self, seal: &Seal) -> bool {
        self.until.is_none_or(|until| seal.first_received_at <= until)
    }

    /// Whether a segment has something of the period that was asked for.
    fn asks_for(&self, seal: &Seal) -> bool {
        self.is_since(seal) && self.is_until(seal)
    }

    /// Which of a workspace's segments are examined (FORMAT.md, 13.4): a run without a hole, and one more on either side.
    ///
    /// What a seal says of times is the ledger's word, and nothing checks it where the segment is not examined. So the
    /// first and the last one that the period asks for are found by one bound each, and the neighbours are examined too: a
    /// ledger that dates a segment out of the period has to show one that is dated so.
    pub fn run_of(&self, seals: &[Seal]) -> Range<usize> {
        let from = seals.iter().position(|seal| self.is_since(seal)).unwrap_or(seals.len());
        let to = seals.iter().rposition(|seal| self.is_until(seal)).map_or(0, |at| at.saturating_add(1));
        from.min(to).saturating_sub(1)..from.max(to).saturating_add(1).min(seals.len())
    }
}

/// A fault, or an object that could not be read.
#[derive(Debug)]
pub(crate) enum Stop {
    Fault(Box<Fault>),
    Unreadable(Unreadable),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(Box::new(fault))
    }
}

impl From<Unreadable> for Stop {
    fn from(why: Unreadable) -> Self {
        Self::Unreadable(why)
    }
}

/// Verifies an archive.
///
/// # Errors
/// [`Unreadable`] when an object could not be read, or the policy has no usable keys.
pub fn run(
    archive: &impl Archive,
    policy: &Policy,
    options: &Options,
    workers: &impl Workers,
) -> Result<Verdict, Unreadable> {
    let mut verdict = Verdict { known_given: options.has_known(), ..Verdict::default() };
    let roots = policy.roots().map_err(|why| Unreadable(why.to_string()))?;
    let log = match Log::read(archive, policy, roots, options.at_size, &mut verdict) {
        Ok(log) => log,
        Err(Stop::Unreadable(why)) => return Err(why),
        Err(Stop::Fault(fault)) => {
            verdict.faults.push(*fault);
            forget_omitted(&mut verdict);
            witnesses::say(None, policy, options, &mut verdict);
            return Ok(verdict);
        }
    };
    let scope = policy.workspaces().map_err(|why| Unreadable(why.to_string()))?;
    for id in scope.iter().flatten() {
        if !log.workspaces.iter().any(|w| w.id == *id) {
            let place = format!("log of {} entries", log.checkpoint.checkpoint.size);
            let fault = Fault::new(Check::WorkspacePresent, place, format!("workspace {id}"), "no such workspace");
            verdict.faults.push(fault.of(*id));
        }
    }
    let in_scope = |workspace: &&log::WorkspaceLog| scope.as_ref().is_none_or(|ids| ids.contains(&workspace.id));
    let workspaces: Vec<&log::WorkspaceLog> = log.workspaces.iter().filter(in_scope).collect();
    let begun = known::Knowledge::new(options, &log);
    let mut knowledge = begun.clone();
    let mut open_epochs = Vec::new();
    let walk = Walking { archive, policy, options, log: &log, begun: &begun };
    walk.each(&workspaces, workers, |part| {
        part.outcome?;
        verdict.add(part.verdict);
        knowledge.add(part.knowledge);
        open_epochs.extend(part.open_epochs);
        Ok(())
    })?;
    verdict.nothing_in_period = options.has_period() && verdict.counts.segments_in_period == 0;
    verdict.faults.extend(knowledge.faults());
    for place in knowledge.unsigned() {
        let text = "known from elsewhere, but no key signed it that this archive has: it is another ledger's, or the archive \
                    ends before that key was enrolled";
        verdict.find("unsigned", None, format!("known file on {place}"), text.to_owned());
    }
    silence::find(&log, &open_epochs, options, &mut verdict);
    strays::find_beside(archive, &log, &mut verdict)?;
    forget_omitted(&mut verdict);
    let short = knowledge.falls_short(workspaces.iter().map(|workspace| workspace.id));
    witnesses::say(Some((&log, &knowledge, short)), policy, options, &mut verdict);
    Ok(verdict)
}

/// A workspace with no more than this part of all segments is one task among others; the segments of a greater one are
/// tasks themselves. Then the last task to end keeps the other processors waiting for a hundredth of the time at most, and
/// a thousand small workspaces are not walked one after the other.
const SHARE_OF_SHORT: usize = 100;

/// What walks workspaces.
struct Walking<'a, A> {
    archive: &'a A,
    policy: &'a Policy,
    options: &'a Options,
    log: &'a Log,
    begun: &'a known::Knowledge<'a>,
}

/// What one workspace comes to.
struct Part<'a> {
    verdict: Verdict,
    knowledge: known::Knowledge<'a>,
    open_epochs: Vec<silence::OpenEpoch>,
    outcome: Result<(), Unreadable>,
}

impl<'a, A: Archive> Walking<'a, A> {
    /// Walks the workspaces and gives what each comes to, in their order, until one could not be read.
    fn each(
        &self,
        workspaces: &[&'a log::WorkspaceLog],
        workers: &impl Workers,
        mut take: impl FnMut(Part<'a>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        let total: usize = workspaces.iter().map(|workspace| workspace.seals.len()).sum();
        let is_short = |workspace: &log::WorkspaceLog| {
            workspace.seals.len() <= 1 || workspace.seals.len().saturating_mul(SHARE_OF_SHORT) <= total
        };
        for run in workspaces.chunk_by(|one, next| is_short(one) && is_short(next)) {
            if let [workspace] = run {
                take(self.walk(workspace, workers))?;
                continue;
            }
            let mut outcome = Ok(());
            workers.ordered(
                run,
                |workspace| self.walk(workspace, &InTurn),
                |part| {
                    outcome = take(part);
                    outcome.is_ok()
                },
            );
            outcome?;
        }
        Ok(())
    }

    fn walk(&self, workspace: &'a log::WorkspaceLog, workers: &impl Workers) -> Part<'a> {
        let mut part = Part {
            verdict: Verdict::default(),
            knowledge: self.begun.without_faults(),
            open_epochs: Vec::new(),
            outcome: Ok(()),
        };
        part.verdict.counts.workspaces = 1;
        part.verdict.workspaces.push((workspace.id, workspace.name().to_owned()));
        let Walking { archive, policy, options, log, .. } = *self;
        let mut walk = workspace::Walk::new(archive, policy, options, log, workspace, &mut part.knowledge);
        match walk.run(workers, &mut part.verdict) {
            Ok(()) => {
                part.open_epochs = walk.open_epochs();
                walk.find_never_heard(&mut part.verdict);
            }
            Err(Stop::Unreadable(why)) => part.outcome = Err(why),
            Err(Stop::Fault(fault)) => part.verdict.faults.push(fault.of(workspace.id)),
        }
        part
    }
}

/// A build that leaves a check out does not report it where the check also ends the walk. Nothing happens in any other.
fn forget_omitted(verdict: &mut Verdict) {
    verdict.faults.retain(|fault| !is_omitted(fault.check));
}

/// Verifies the log alone: for whoever makes evidence or copies out of an archive. The inner error is the first check that
/// did not pass.
///
/// # Errors
/// [`Unreadable`].
pub fn log(archive: &impl Archive, policy: &Policy, at_size: Option<u64>) -> Result<Result<Log, Fault>, Unreadable> {
    let roots = policy.roots().map_err(|why| Unreadable(why.to_string()))?;
    match Log::read(archive, policy, roots, at_size, &mut Verdict::default()) {
        Ok(log) => Ok(Ok(log)),
        Err(Stop::Fault(fault)) => Ok(Err(*fault)),
        Err(Stop::Unreadable(why)) => Err(why),
    }
}

/// Reads an archive's newest checkpoint without verifying anything but its form: for messages to people.
///
/// # Errors
/// [`Unreadable`].
pub fn newest_checkpoint(archive: &impl Archive) -> Result<Option<SignedCheckpoint>, Unreadable> {
    let sizes = archive.list(crate::archive::CHECKPOINTS)?;
    let Some(size) = sizes.iter().filter_map(|name| crate::archive::number(name)).max() else { return Ok(None) };
    Ok(archive.get(&crate::archive::checkpoint(size))?.and_then(|bytes| SignedCheckpoint::parse(&bytes).ok()))
}

/// The head that a batch header carries, if it carries one in form.
pub(crate) fn held_head(bytes: &[u8]) -> Option<Result<SignedHead, strict::NotStrict>> {
    (!bytes.is_empty()).then(|| SignedHead::parse(bytes))
}

/// Reads a receipt.
pub(crate) fn parse_receipt(bytes: &[u8]) -> Option<wire::Receipt> {
    strict::decode(&table::RECEIPT, bytes).ok()
}

/// Roots and chain of the ledger's keys after some entries of the log.
#[derive(Clone, Debug)]
pub struct LedgerState {
    /// Number of log entries after which this holds.
    pub from_index: u64,
    /// The keys.
    pub chain: std::sync::Arc<crate::statement::Chain>,
    /// The roots.
    pub roots: Roots,
}
