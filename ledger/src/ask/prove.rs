//! Evidence out of a running ledger: a file for each run of neighbours, made of what the archive holds.
//!
//! What must hold: nothing is proven out of the store: the archive is read as an auditor reads it, by the verifier's own code, under the
//! audit policy, and each file is checked before it leaves. Whoever wants evidence of what is not archived yet has its segment cut, at most
//! so often. One file is made at a time, so that memory holds one segment.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::WorkspaceId,
    policy::Policy,
    verdict::{Check, State},
    verify::Unreadable,
    wire,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};
use tonic::Status;
use verifier::{
    bundle::Making,
    failure::Failure,
    make_evidence::{Maker, What},
    reader::expand,
};

use super::{Asking, Seen, busy, ending, file};
use crate::{
    alarm::{Alarm, Alarms},
    archive::Archive,
    commit::Request,
    tail::One,
};

/// Segments of a workspace that are cut because somebody asked for evidence: each is an object of its own for years.
const CUT_EVERY: Duration = Duration::from_secs(60);
/// How long a cut may take until it is archived.
const ARCHIVED_LIMIT: Duration = Duration::from_secs(30);
/// How long one waits until it is its turn.
const TURN_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of one file of records in a bundle.
const RECORDS_BYTES: usize = 8 << 20;

/// What is needed to prove.
pub struct Prover {
    archive: Archive,
    policy: Policy,
    /// First number of the queue for the log that is not published.
    mark: watch::Receiver<u64>,
    alarms: Alarms,
    maker: Arc<tokio::sync::Mutex<Kept>>,
    cuts: Mutex<HashMap<WorkspaceId, Instant>>,
}

impl Prover {
    /// Of a ledger's archive, under its audit policy.
    pub fn new(archive: Archive, policy: Policy, mark: watch::Receiver<u64>, alarms: Alarms) -> Self {
        Self { archive, policy, mark, alarms, maker: Arc::default(), cuts: Mutex::default() }
    }

    /// Whether a segment may be cut for this.
    fn may_cut(&self, workspace: WorkspaceId) -> bool {
        let (now, mut cuts) = (Instant::now(), self.cuts.lock().unwrap_or_else(PoisonError::into_inner));
        cuts.retain(|_, at| now.duration_since(*at) < CUT_EVERY);
        let may = !cuts.contains_key(&workspace);
        cuts.entry(workspace).or_insert(now);
        may
    }
}

/// What makes evidence, with the mark at which the log was verified: before the mark moves there is nothing new to verify.
type Kept = Option<(u64, Maker<Reading>)>;

/// The archive, for whoever may wait.
struct Reading {
    archive: Archive,
    runtime: Handle,
}

impl custody::verify::Archive for Reading {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        self.runtime.block_on(self.archive.get(name)).map_err(|why| Unreadable(crate::log_view::report(&why)))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        self.runtime.block_on(self.archive.list(folder)).map_err(|why| Unreadable(crate::log_view::report(&why)))
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        expand(frame, length)
    }
}

/// What became of a wish for evidence.
enum Made {
    File(Vec<u8>),
    /// Not all of it is archived.
    NotYet,
    /// It does not fit into one file.
    TooLong,
}

/// Makes evidence; the log is verified anew where the last time it did not reach so far, and more was published since.
fn make(
    kept: &mut Kept,
    mark: u64,
    fresh: impl Fn() -> Result<Maker<Reading>, Failure>,
    run: &Run,
) -> Result<Made, Failure> {
    loop {
        let (of, maker) = match kept {
            Some(kept) => kept,
            None => kept.insert((mark, fresh()?)),
        };
        if maker.archived(run.workspace)? >= run.positions.end {
            let Range { start, end } = run.positions;
            let what = What::Positions { workspace: run.workspace.to_string(), first: start, end: Some(end) };
            return match maker.make(&what) {
                Ok(proof) => Ok(Made::File(proof.to_bytes())),
                // They are there, so that there are too many.
                Err(Failure::NotThere(_)) => Ok(Made::TooLong),
                Err(why) => Err(why),
            };
        }
        if *of == mark {
            return Ok(Made::NotYet);
        }
        *kept = None;
    }
}

/// Neighbours in a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) workspace: WorkspaceId,
    pub(super) positions: Range<u64>,
}

impl Run {
    /// Two halves; a single record has none.
    pub(super) fn halves(&self) -> Option<[Self; 2]> {
        let middle = self.positions.start.midpoint(self.positions.end);
        let half = |positions| Self { workspace: self.workspace, positions };
        let Range { start, end } = self.positions;
        (start < middle).then(|| [half(start..middle), half(middle..end)])
    }
}

/// Runs of neighbours among some positions, by workspace.
fn runs(places: BTreeSet<(WorkspaceId, u64)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (workspace, position) in places {
        match runs.last_mut().filter(|run| run.workspace == workspace && run.positions.end == position) {
            Some(run) => run.positions.end = position + 1,
            None => runs.push(Run { workspace, positions: position..position + 1 }),
        }
    }
    runs
}

impl Asking {
    /// Evidence of a run, whose segments are archived first; `None` where it does not fit into one file.
    pub(super) async fn prove(&self, run: &Run) -> Result<Option<Vec<u8>>, Status> {
        let mut made = self.proven(run).await?;
        if matches!(made, Made::NotYet) && self.archive(run.workspace).await? {
            made = self.proven(run).await?;
        }
        match made {
            Made::File(file) => Ok(Some(file)),
            Made::TooLong => Ok(None),
            Made::NotYet => Err(Status::failed_precondition(
                "it is durable, and not archived yet, so nothing proves it to a stranger (hint: ask again in a minute; ledger status says what \
                 waits)",
            )),
        }
    }

    async fn proven(&self, run: &Run) -> Result<Made, Status> {
        let prover = &self.0.prover;
        // Before a thread is taken: whoever waits here takes nobody's place.
        let turn = tokio::time::timeout(TURN_LIMIT, Arc::clone(&prover.maker).lock_owned());
        let mut kept = turn.await.map_err(|_| busy())?;
        let (mark, run, policy) = (*prover.mark.borrow(), run.clone(), prover.policy.clone());
        let (archive, runtime) = (prover.archive.clone(), Handle::current());
        let made = tokio::task::spawn_blocking(move || {
            let fresh = || Maker::open(Reading { archive: archive.clone(), runtime: runtime.clone() }, policy.clone());
            let made = make(&mut kept, mark, fresh, &run);
            if made.is_err() {
                // What is wrong may be mended meanwhile.
                *kept = None;
            }
            made
        });
        let made =
            made.await.map_err(|_| Status::internal("the evidence broke off (hint: the ledger's log says why)"))?;
        made.map_err(|why| self.unproven(&why))
    }

    /// Why there is no evidence: an archive that does not answer is another matter than one that lies.
    fn unproven(&self, why: &Failure) -> Status {
        tracing::error!(why = why.to_string(), "evidence cannot be made");
        let Failure::Refuted(fault) = why else {
            return Status::unavailable("the archive cannot be read now (hint: the ledger's log says why; ask again)");
        };
        if fault.state == State::Refuted && fault.check != Check::WorkspacePresent {
            self.0.prover.alarms.raise(Alarm::ReadBackDiffers, format!("{}: {}", fault.place, fault.check.name()));
        }
        Status::data_loss("the archive does not bear it out (hint: the ledger's log says where; verify the archive)")
    }

    /// Has a workspace's open segment cut, and waits until it is archived; `false` if one was cut a short time ago.
    async fn archive(&self, workspace: WorkspaceId) -> Result<bool, Status> {
        if !self.0.prover.may_cut(workspace) {
            return Ok(false);
        }
        let (reply, number) = oneshot::channel();
        self.0.writer.send(Request::Cut(Some(workspace), reply)).await.map_err(|_| ending())?;
        let number = number.await.map_err(|_| ending())?;
        let mut mark = self.0.prover.mark.clone();
        // Whether it was archived shows next.
        tokio::time::timeout(ARCHIVED_LIMIT, mark.wait_for(|mark| *mark >= number)).await.ok();
        Ok(true)
    }
}

/// What an evidence file cannot hold.
pub(super) fn too_long() -> Status {
    Status::out_of_range("evidence of one record does not fit into a file")
}

/// An export as evidence.
pub(super) struct Bundle {
    making: Making,
    at_us: u64,
}

fn broken(why: std::io::Error) -> Status {
    Status::internal(format!("the bundle broke off: {why}"))
}

impl Bundle {
    pub(super) fn new(at_us: u64) -> Self {
        Self { making: Making::new(at_us), at_us }
    }

    /// A page of records; gives the runs that are to be proven.
    pub(super) fn page(&mut self, ones: &[One], seen: &Seen, names: &[wire::MemberName]) -> Result<Vec<Run>, Status> {
        let mut lines = Vec::new();
        let places = ones.iter().filter_map(|one| one.batch.place(one.index));
        let runs = runs(places.map(|place| (place.workspace, place.position)).collect());
        for one in ones {
            file::line(wire::ExportFormat::JsonLines, one, seen, names, &mut lines);
            if lines.len() >= RECORDS_BYTES {
                self.making.records(&std::mem::take(&mut lines)).map_err(broken)?;
            }
        }
        if !lines.is_empty() {
            self.making.records(&lines).map_err(broken)?;
        }
        Ok(runs)
    }

    /// What proves a run.
    pub(super) fn proof(&mut self, run: &Run, evidence: &[u8]) -> Result<(), Status> {
        self.making.proof(run.workspace, &run.positions, evidence).map_err(broken)
    }

    /// What was asked, and how much came of it.
    pub(super) fn end(self, question: &str, records: u64, complete: &wire::Completeness) -> Result<Vec<u8>, Status> {
        let told = serde_json::json!({
            "question": question,
            "asked_at": verifier::time::text(self.at_us),
            "records": records,
            "files": self.making.files(),
            "of_records": complete.records,
            "cut_short": complete.cut_short,
        });
        self.making.end(told.to_string().as_bytes()).map_err(broken)
    }

    /// The bytes that are done, if they are so many.
    pub(super) fn take(&mut self, least: usize) -> Option<Vec<u8>> {
        (self.making.ready() >= least).then(|| self.making.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run_and_no_run_spans_workspaces() {
        let [one, other] = [1, 2].map(|id| WorkspaceId([id; 16]));
        let places = [(one, 5), (one, 3), (one, 4), (one, 9), (other, 10), (other, 11)];
        let told: Vec<_> = runs(places.into()).into_iter().map(|run| (run.workspace, run.positions)).collect();
        assert_eq!(told, [(one, 3..6), (one, 9..10), (other, 10..12)]);
    }
}
