//! What of an archive an answer is made of: each gateway's access changes in their order, and what tells that some are missing.
//!
//! What must hold: it is called for an archive that was verified, so that here nothing is judged; all segments are read once, on
//! all processors. Memory grows with the number of access changes, and not with that of other records.

use std::collections::{BTreeMap, BTreeSet};

use custody::{
    access::{History, Recorded},
    id::{Epoch, GatewayId, WorkspaceId},
    record::{self, RecordKind},
    segment::{Content, Seal},
    statement::RESERVED_NAME,
    strict::NotStrict,
    verdict::Check,
    verify::{Archive, Log, Workers as _},
    wire::{LeafKind, OpeningReason, record::Kind},
};

use crate::{
    failure::Failure,
    segments::{Opened, seals_of},
    workers::AllCores,
};

/// A workspace, and who was heard in it.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) id: WorkspaceId,
    pub(super) name: String,
    pub(super) gateways: BTreeMap<GatewayId, Heard>,
}

/// What was heard of a gateway.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) history: History,
    /// Where records may be missing.
    pub(super) breaks: Vec<Break>,
    /// Positions of calls that name an access policy which no record before them has: the first after each change.
    pub(super) foreign: Vec<u64>,
    /// When it signed the first batch that is here, by its clock; unless the archive ends or begins there, nothing was before.
    pub(super) begun_at: u64,
    /// Where that one is.
    pub(super) begun_position: u64,
    /// When it signed the last one, and when that was received.
    pub(super) heard_at: u64,
    pub(super) received_at: u64,
    /// Digests of the policies that it had up to here.
    digests: BTreeSet<Digest>,
    /// Since the last change a foreign call was seen.
    is_foreign: bool,
}

/// Before this position records may be missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Break {
    pub(super) position: u64,
    pub(super) why: Why,
}

/// Why records may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    StateLost,
    Rewound,
    Dropped,
    /// A segment is not in the archive.
    NotKept,
}

type Digest = [u8; 32];

/// What is taken of one segment.
enum Part {
    /// Nothing: it is not there.
    NotKept,
    Batches(Vec<Batch>),
}

struct Batch {
    gateway: GatewayId,
    epoch: Epoch,
    position: u64,
    why: Vec<Why>,
    created_at: u64,
    received_at: u64,
    found: Vec<Found>,
}

enum Found {
    Change(Box<Recorded>),
    /// A call names the policy that decided.
    Policy(u64, Digest),
    /// Another record than of a change: the first in the segment, or since the last change.
    Other,
}

/// The access changes of the workspaces in scope, but the ledger's own, where there can be none.
///
/// # Errors
/// [`Failure`].
pub(super) fn read(
    objects: &impl Archive,
    log: &Log,
    scope: &[(WorkspaceId, String)],
) -> Result<Vec<Workspace>, Failure> {
    let mut read = Vec::new();
    for (id, name) in scope.iter().filter(|(_, name)| name != RESERVED_NAME) {
        let mut workspace = Workspace { id: *id, name: name.clone(), gateways: BTreeMap::new() };
        let mut not_kept = Vec::new();
        let seals = seals_of(objects, log, *id)?;
        let mut outcome = Ok(());
        let mut at = seals.iter();
        AllCores::new().ordered(
            &seals,
            |seal| part(objects, seal),
            |part| {
                let next = at.next().map_or(0, Seal::next_position);
                match part {
                    Ok(Part::NotKept) => {
                        let gone = Break { position: next, why: Why::NotKept };
                        workspace.gateways.values_mut().for_each(|heard| heard.not_kept(&[gone]));
                        not_kept.push(gone);
                    }
                    Ok(Part::Batches(batches)) => {
                        batches.into_iter().for_each(|batch| take(&mut workspace.gateways, batch, &not_kept));
                    }
                    Err(failure) => outcome = Err(failure),
                }
                outcome.is_ok()
            },
        );
        outcome?;
        read.push(workspace);
    }
    Ok(read)
}

impl Heard {
    fn lose(&mut self, gone: Break) {
        self.breaks.push(gone);
        self.history.lost();
    }

    fn not_kept(&mut self, gone: &[Break]) {
        if !gone.is_empty() {
            self.breaks.extend(gone);
            self.history.not_kept();
        }
    }
}

/// Takes a batch, after all before it. Of a gateway that is new here, what is not kept may have more.
fn take(gateways: &mut BTreeMap<GatewayId, Heard>, batch: Batch, not_kept: &[Break]) {
    let heard = gateways.entry(batch.gateway).or_insert_with(|| {
        let mut heard = Heard { begun_at: batch.created_at, begun_position: batch.position, ..Heard::default() };
        heard.not_kept(not_kept);
        heard
    });
    (heard.heard_at, heard.received_at) = (batch.created_at, batch.received_at);
    batch.why.into_iter().for_each(|why| heard.lose(Break { position: batch.position, why }));
    for found in batch.found {
        match found {
            Found::Change(recorded) => {
                heard.digests.extend(Digest::try_from(recorded.change.policy_digest_after.as_ref()));
                heard.is_foreign = false;
                heard.history.push(*recorded);
            }
            Found::Other => heard.history.followed(batch.epoch),
            Found::Policy(position, digest) => {
                if !heard.is_foreign && !heard.digests.contains(&digest) {
                    heard.is_foreign = true;
                    heard.foreign.push(position);
                    heard.history.lost();
                }
            }
        }
    }
}

fn part(objects: &impl Archive, seal: &Seal) -> Result<Part, Failure> {
    let opened = match Opened::read(objects, seal) {
        // What had no records has lost none.
        Err(Failure::Refuted(fault)) if fault.check == Check::SegmentPresent && seal.record_count == 0 => {
            return Ok(Part::Batches(Vec::new()));
        }
        // Verification has judged whether it may be missing.
        Err(Failure::Refuted(fault)) if fault.check == Check::SegmentPresent => return Ok(Part::NotKept),
        opened => opened?,
    };
    let mut batches = Vec::new();
    let mut named: BTreeMap<GatewayId, Named> = BTreeMap::new();
    for frame in &opened.object.frames {
        for entry in opened.entries(frame)? {
            let Content::Batch(batch) = &entry.content else { continue };
            if entry.leaf.kind != LeafKind::Batch {
                continue;
            }
            let (header, position) = (&batch.header, entry.leaf.first_position);
            let opens = match header.opening_reason {
                Some(OpeningReason::StateLost) => Some(Why::StateLost),
                Some(OpeningReason::Rewound) => Some(Why::Rewound),
                _ => None,
            };
            let why = opens.into_iter().chain((header.dropped > 0).then_some(Why::Dropped)).collect();
            let named = named.entry(header.gateway).or_default();
            let (mut found, epoch) = (Vec::new(), header.epoch);
            for (position, bytes) in (position..).zip(&batch.records) {
                let odd = |why: NotStrict| Failure::Unreadable(format!("the record at position {position}: {why}"));
                let kind = record::kind(bytes);
                if kind != Some(RecordKind::AccessChange) && !std::mem::replace(&mut named.other, true) {
                    found.push(Found::Other);
                }
                match kind {
                    Some(RecordKind::AccessChange) => {
                        let Some(Kind::AccessChange(change)) = record::decode(bytes).map_err(odd)?.kind else {
                            continue;
                        };
                        *named = Named::default();
                        let received_at = entry.leaf.received_at;
                        found.push(Found::Change(Box::new(Recorded { position, received_at, epoch, change })));
                    }
                    Some(RecordKind::Call) => {
                        found.extend(named.see(bytes).map(|digest| Found::Policy(position, digest)));
                    }
                    _ => {}
                }
            }
            let (gateway, created_at) = (header.gateway, header.created_at);
            let received_at = entry.leaf.received_at;
            batches.push(Batch { gateway, epoch, position, why, created_at, received_at, found });
        }
    }
    Ok(Part::Batches(batches))
}

/// What was seen of a gateway in this segment since the last change: policies that calls name, and any other record.
#[derive(Default)]
struct Named {
    last: Digest,
    seen: BTreeSet<Digest>,
    other: bool,
}

/// Tag 20, wire type 2, 32 bytes.
const POLICY_KEY: [u8; 3] = [0xa2, 0x01, 0x20];

impl Named {
    /// The policy that a call names, if none before it did.
    fn see(&mut self, call: &[u8]) -> Option<Digest> {
        // Nearly every call names what the one before it named: then nothing is decoded.
        if !self.seen.is_empty() && has(call, &self.last) {
            return None;
        }
        let Some(Kind::Call(call)) = record::decode(call).ok()?.kind else { return None };
        self.last = call.access_policy_digest?.as_ref().try_into().ok()?;
        self.seen.insert(self.last).then_some(self.last)
    }
}

/// Whether a call has the field with this digest. What looks like one within another field would have to hold the digest too.
fn has(call: &[u8], digest: &Digest) -> bool {
    let [first, key @ ..] = POLICY_KEY;
    let mut rest = call;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = rest.get(at + 1..).unwrap_or_default();
        if rest.strip_prefix(&key).is_some_and(|field| field.starts_with(digest)) {
            return true;
        }
    }
    false
}
