//! Asks an archive: the same language, and the same meaning, as a running ledger's, out of the segments alone.
//!
//! What must hold: no index is trusted, because none is read: every record of the workspaces that are asked is looked at, out of
//! objects whose hashes the log names. An intent counts only while no later record of its call is there. Memory holds the newest
//! that match, and the calls that run; it does not grow with the archive.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
};

use custody::{
    id::{Epoch, GatewayId, WorkspaceId},
    query::{CallPart, Expr, Facts, Field, Place, Tally, Wishes},
    record,
    segment::{Content, Entry, Seal},
    strict::NotStrict,
    verify::{Archive, Log},
    wire::{LeafKind, Phase},
};

use crate::{
    failure::Failure,
    segments::{Opened, seals_of},
    show::{self, Shown},
};

/// Calls of one workspace that may run at one time: a gateway that begins calls and ends none fills no memory.
const RUNNING_MAX: usize = 1 << 20;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is wanted.
    pub expr: Expr,
    /// Of which workspaces.
    pub workspaces: BTreeSet<WorkspaceId>,
    /// How many of those that match are shown, the newest.
    pub limit: usize,
    /// What is summed up of all that match.
    pub wishes: Wishes,
}

/// A record that matches.
#[derive(Debug)]
pub struct Hit {
    /// Whose.
    pub workspace: WorkspaceId,
    /// The record.
    pub shown: Shown,
}

/// What is found.
#[derive(Debug)]
pub struct Answer {
    /// Newest first by the ledger's clock; of one moment by workspace, and in it by position.
    pub hits: Vec<Hit>,
    /// Of all that match.
    pub tally: Tally,
    /// Records that were looked at.
    pub looked_at: u64,
}

/// Where a record comes in the answer, its bytes, and who signed it: what is made of it when it is shown.
type Kept = Reverse<(u64, WorkspaceId, u64, bytes::Bytes, [u8; 16], [u8; 16], u64)>;

/// An intent, and what is shown of it if it matches.
type Intent = (CallPart, Option<(Facts, Kept)>);

struct Search<'a> {
    question: &'a Question,
    newest: BinaryHeap<Kept>,
    tally: Tally,
    looked_at: u64,
    /// Intents that stand, by gateway and call number.
    running: HashMap<(GatewayId, u64), Vec<Intent>>,
    /// How many these are.
    standing: usize,
}

impl Search<'_> {
    fn keep(&mut self, kept: Kept) {
        self.newest.push(kept);
        if self.newest.len() > self.question.limit {
            self.newest.pop();
        }
    }

    fn take(&mut self, place: &Place, bytes: &bytes::Bytes) -> Result<(), Failure> {
        let odd = |why: NotStrict| Failure::Unreadable(format!("the record at position {}: {why}", place.position));
        let facts = Facts::of(place, &record::decode(bytes).map_err(odd)?);
        self.looked_at = self.looked_at.saturating_add(1);
        let kept = Reverse((
            place.received_at,
            place.workspace,
            place.position,
            bytes.clone(),
            place.gateway.0,
            place.epoch.0,
            place.number,
        ));
        let matches = self.question.expr.matches(&facts);
        if let Some((call, phase)) = facts.call_phase().filter(|(_, phase)| *phase != Phase::Complete) {
            let started_at = facts.number(Field::At).unwrap_or_default();
            let part = CallPart { epoch: place.epoch, started_at, phase };
            let intents = self.running.entry((place.gateway, call)).or_default();
            let before = intents.len();
            intents.retain(|(intent, _)| !intent.is_ended_by(&part));
            self.standing -= before - intents.len();
            if phase == Phase::Intent {
                intents.push((part, matches.then_some((facts, kept))));
                self.standing += 1;
                if self.standing > RUNNING_MAX {
                    let why = format!("more than {RUNNING_MAX} calls of {} run at one time", place.workspace);
                    return Err(Failure::Unreadable(format!("{why}\nhint: a gateway begins calls and ends none")));
                }
                return Ok(());
            }
            if intents.is_empty() {
                self.running.remove(&(place.gateway, call));
            }
        }
        if matches {
            self.tally.take(&self.question.wishes, &facts);
            self.keep(kept);
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        let Content::Batch(batch) = &entry.content else { return Ok(()) };
        if entry.leaf.kind != LeafKind::Batch {
            return Ok(());
        }
        for (index, bytes) in (0_u32..).zip(&batch.records) {
            let place = Place::of(&batch.header, entry.leaf.first_position, entry.leaf.received_at, index);
            let place = place.ok_or_else(|| {
                Failure::Unreadable(
                    "a batch counts past the last number that there is\nhint: `verifier verify`".to_owned(),
                )
            })?;
            self.take(&place, bytes)?;
        }
        Ok(())
    }

    /// All records of one workspace, in order.
    fn workspace(&mut self, objects: &impl Archive, seals: &[Seal]) -> Result<(), Failure> {
        for seal in seals {
            let opened = Opened::read(objects, seal)?;
            for frame in &opened.object.frames {
                for entry in opened.entries(frame)? {
                    self.entry(&entry)?;
                }
            }
        }
        self.standing = 0;
        let standing = std::mem::take(&mut self.running).into_values().flatten();
        for (facts, kept) in standing.filter_map(|(_, matching)| matching) {
            self.tally.take(&self.question.wishes, &facts);
            self.keep(kept);
        }
        Ok(())
    }
}

/// Answers a question about a log that was verified.
///
/// # Errors
/// [`Failure`], also where an object is missing or another than the log names.
pub fn search(objects: &impl Archive, log: &Log, question: &Question) -> Result<Answer, Failure> {
    let (newest, running) = (BinaryHeap::new(), HashMap::new());
    let tally = Tally::new(&question.wishes);
    let mut search = Search { question, newest, tally, looked_at: 0, running, standing: 0 };
    for workspace in &question.workspaces {
        let seals = seals_of(objects, log, *workspace)?;
        search.workspace(objects, &seals)?;
    }
    let hits = search.newest.into_sorted_vec().into_iter().map(|Reverse(kept)| {
        let (received_at, workspace, position, bytes, gateway, epoch, number) = kept;
        let odd = |why: NotStrict| Failure::Unreadable(format!("the record at position {position}: {why}"));
        let shown = Shown {
            position,
            received_at,
            gateway: GatewayId(gateway).to_string(),
            epoch: Epoch(epoch).to_string(),
            number,
            kind: record::check(&bytes).map_err(odd)?,
            fields: show::fields(&bytes),
        };
        Ok(Hit { workspace, shown })
    });
    let hits = hits.collect::<Result<_, Failure>>()?;
    Ok(Answer { hits, tally: search.tally, looked_at: search.looked_at })
}
