//! Batches in the writer: whether one is next, and the place that it gets, in memory and in the group's write.

use std::time::Instant;

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    batch::{Header, NotNext, Numbering, Submitted},
    segment::{Content, Entry, Leaf, encode_entry as encode_leaf},
    wire::{self, LeafKind, RejectReason, from_ledger::Message},
};
use prost::Message as _;

use super::{Arrived, Group, State, StreamId, Writer, held::Judged};
use crate::{
    admit::{self, Held, REMOVED, Reject},
    clock,
    refusals::Refused,
    store::{EpochRow, Family, LeafPlace, Notes, StoreError, batch_key, call_rows, epoch_key, leaf_key, numbered},
    tail::CommittedBatch,
    workspace::Unread,
};

/// What becomes of a batch.
enum Decided {
    Append,
    Again(Box<wire::BatchInclusion>),
    AgainNow(Box<wire::BatchInclusion>),
    Reject(Reject),
    Later(String),
    Equivocation { keep: bool },
}

/// Where the batch is that has a number already.
enum Taken {
    Now(Box<wire::BatchInclusion>),
    Before(LeafPlace),
}

impl Writer {
    pub(super) fn take_batch(
        &mut self,
        stream: StreamId,
        Arrived { batch, notes, receipts, held }: Arrived,
        group: &mut Group<'_>,
    ) -> Result<(), StoreError> {
        let mut decided = self.decide_batch(&batch, group)?;
        // Whatever becomes a leaf, an equivocation too, brings the head that it holds into the archive.
        if let (Decided::Append | Decided::Equivocation { keep: true }, Some(held)) = (&decided, held)
            && let Some(refusal) = self.decide_held(stream, &batch.header, &held)?
        {
            decided = refusal;
        }
        match decided {
            Decided::Append => {
                let header = batch.header.clone();
                let place = self.append(LeafKind::Batch, batch, &notes, group)?;
                self.judge_receipts(&header, place.first_position, &receipts, group)?;
                group.receipts.entry(stream).or_default().push(place);
            }
            // It is part of this very write; whoever sent it last may have come back since, and hears it too.
            Decided::AgainNow(place) => {
                let receipts = group.receipts.entry(stream).or_default();
                if !receipts.contains(&place) {
                    receipts.push(*place);
                }
            }
            Decided::Again(inclusion) => {
                self.parts.metrics.add("custody_batches_repeated_total", 1);
                group.receipts.entry(stream).or_default().push(*inclusion);
            }
            Decided::Reject(reject) => {
                self.parts.metrics.add("custody_batches_rejected_total", 1);
                if let Some(what) = Refused::of(reject.reason) {
                    let header = &batch.header;
                    self.parts.alarms.refusals().note(what, header.workspace, header.gateway, clock::now_us());
                }
                group.rejections.push((stream, Message::Rejection(reject.message(&batch.header))));
            }
            Decided::Later(detail) => {
                self.parts.metrics.add("custody_pushbacks_total", 1);
                let header = &batch.header;
                group.rejections.push((
                    stream,
                    Message::Pushback(wire::Pushback {
                        epoch: header.epoch.into(),
                        batch_number: header.batch_number,
                        retry_after_ms: 1_000,
                        detail,
                    }),
                ));
            }
            Decided::Equivocation { keep } => {
                let header = batch.header.clone();
                self.take_equivocation(batch, keep, group)?;
                let detail =
                    "another header stands under this number (hint: sign again what has no receipt, in a new epoch)";
                let reject = Reject::new(RejectReason::Equivocation, detail);
                group.rejections.push((stream, Message::Rejection(reject.message(&header))));
            }
        }
        Ok(())
    }

    /// What becomes of a batch that could be taken, if the head that it holds stands in the way.
    fn decide_held(&mut self, stream: StreamId, header: &Header, held: &Held) -> Result<Option<Decided>, StoreError> {
        if self.knows(stream, held) {
            return Ok(None);
        }
        let later = |detail: &str| Some(Decided::Later(detail.to_owned()));
        Ok(match self.judge_head(header.workspace, header.gateway, held)? {
            Judged::Good(_) | Judged::Superseded => {
                if let Some(stream) = self.streams.get(&stream) {
                    stream.known.learn(held.bytes().clone());
                }
                None
            }
            Judged::Later => later("too many old heads were looked up just now"),
            Judged::Refused(reject) => Some(Decided::Reject(reject)),
            Judged::Lost => later("the ledger takes no batches: it cannot extend the head that is held"),
        })
    }

    /// Whether the batch is next; everything else about it was checked before, but the keys may have changed since.
    fn decide_batch(&mut self, batch: &Submitted, group: &Group<'_>) -> Result<Decided, StoreError> {
        let header = &batch.header;
        if self.state != State::Serving {
            return Ok(Decided::Later(format!("the ledger takes no batches: {}", self.state.name())));
        }
        let Some(workspace) = self.workspaces.get(&header.workspace) else {
            return Ok(Decided::Reject(Reject::new(RejectReason::Unauthorised, "no such workspace")));
        };
        if workspace.chain.is_removed() {
            return Ok(Decided::Reject(Reject::new(RejectReason::Removed, REMOVED)));
        }
        if let Err(reject) = admit::may_sign(&workspace.chain, header) {
            // What was taken before its key ended has a receipt, and whoever asks again gets it.
            return match self.taken(batch, group)? {
                Some((taken, hash)) if hash == batch.header_hash().0 => self.decide_repeated(batch, taken),
                _ => Ok(Decided::Reject(reject)),
            };
        }
        let numbering = workspace.gateways.get(&header.gateway).map(|gateway| &gateway.numbering);
        if numbering.is_none_or(|known| !known.epochs.contains_key(&header.epoch))
            && let Some(row) = self.stored_epoch(header)?
        {
            // An epoch that is over: nothing is next in it.
            return if header.batch_number <= row.last_batch { self.decide_taken(batch, group) } else { Ok(closed()) };
        }
        let admitted = numbering.map_or_else(|| Numbering::default().admit(header), |known| known.admit(header));
        match admitted {
            Ok(()) if self.disk_low => Ok(no_room()),
            Ok(()) if self.backlog() > self.parts.limits.unpublished_max => {
                Ok(Decided::Later("too many segments wait for the archive".to_owned()))
            }
            Ok(()) if workspace.unarchived_segments() > self.parts.limits.unpublished_share() => {
                Ok(Decided::Later("too many segments of the workspace wait for the archive".to_owned()))
            }
            Ok(()) if workspace.unarchived_bytes() > self.parts.limits.workspace_bytes => {
                Ok(Decided::Later("the workspace's room is used up until its segments are archived".to_owned()))
            }
            Ok(()) => Ok(Decided::Append),
            Err(NotNext::Taken) => self.decide_taken(batch, group),
            Err(NotNext::Gap { expected }) => Ok(Decided::Reject(gap(expected))),
            Err(NotNext::UnknownEpoch) => Ok(Decided::Reject(gap(0))),
            Err(NotNext::Closed) => Ok(closed()),
            Err(NotNext::Broken(rule)) => Ok(Decided::Reject(Reject::new(RejectReason::Equivocation, rule))),
        }
    }

    /// Queue rows that are not published.
    fn backlog(&self) -> u64 {
        self.queue_next.saturating_sub(*self.parts.mark.borrow())
    }

    /// The batch that has this one's number, if one was taken: in this very write or before; and its header's hash.
    fn taken(&self, batch: &Submitted, group: &Group<'_>) -> Result<Option<(Taken, [u8; 32])>, StoreError> {
        let header = &batch.header;
        let key = batch_key(header.workspace, header.gateway, header.epoch, header.batch_number);
        if let Some((place, hash)) = group.places.get(&key) {
            return Ok(Some((Taken::Now(Box::new(place.clone())), *hash)));
        }
        let Some(value) = self.parts.store.value(Family::Batches, &key)? else { return Ok(None) };
        let hash = value.get(16..48).and_then(|hash| hash.try_into().ok()).ok_or(StoreError::Damaged("a batch"))?;
        Ok(Some((Taken::Before(LeafPlace::decode(&value)?), hash)))
    }

    fn decide_repeated(&mut self, batch: &Submitted, taken: Taken) -> Result<Decided, StoreError> {
        match taken {
            Taken::Now(place) => Ok(Decided::AgainNow(place)),
            Taken::Before(place) => self.decide_again(batch, place),
        }
    }

    fn decide_taken(&mut self, batch: &Submitted, group: &Group<'_>) -> Result<Decided, StoreError> {
        let (taken, hash) = self.taken(batch, group)?.ok_or(StoreError::Damaged("a batch that was committed"))?;
        if hash == batch.header_hash().0 {
            return self.decide_repeated(batch, taken);
        }
        // Not even the proof has room on a disk that is full; it will be sent again.
        if self.disk_low {
            return Ok(no_room());
        }
        Ok(Decided::Equivocation { keep: self.copies(&batch.header)? == 0 })
    }

    /// Gives a batch its place, in memory and in the group's write.
    pub(super) fn append(
        &mut self,
        kind: LeafKind,
        batch: Submitted,
        notes: &Notes,
        group: &mut Group<'_>,
    ) -> Result<wire::BatchInclusion, StoreError> {
        let lost = StoreError::Damaged("a workspace");
        let id = batch.header.workspace;
        let (header, hash, opened) = (batch.header.clone(), batch.header_hash(), batch.opened());
        let workspace = self.workspaces.get_mut(&id).ok_or(lost)?;
        let leaf =
            Leaf { kind, first_position: workspace.next_position, received_at: clock::now_us(), term: self.parts.term };
        let bytes = encode_leaf(&leaf, batch.bytes.clone());
        let place = LeafPlace { segment: workspace.open.number, leaf: workspace.open.tree.size() };
        group.change.put(Family::Entries, leaf_key(id, place.segment, place.leaf), &bytes);
        group.change.put(Family::Commits, self.commit_index.to_be_bytes(), leaf_key(id, place.segment, place.leaf));
        if kind == LeafKind::Batch {
            let noted = (self.commit_index, notes);
            call_rows(&self.parts.store, &mut group.change, &batch, noted, &mut group.halves)?;
        }
        self.commit_index += 1;
        let inclusion = inclusion(&header, place, &leaf);
        let entry = Entry { leaf, content: Content::Batch(Box::new(batch)) };
        workspace.open.take(&entry, bytes.len());
        if kind == LeafKind::Batch {
            let key = batch_key(id, header.gateway, header.epoch, header.batch_number);
            group.change.put(Family::Batches, &key, [&place.encode()[..], &hash.0].concat());
            group.places.insert(key, (inclusion.clone(), hash.0));
            if header.record_count > 0 {
                group.change.put(Family::Positions, numbered(id, leaf.first_position), place.encode());
            }
            let gateway = workspace.gateways.entry(header.gateway).or_default();
            gateway.numbering.take(&header, hash);
            let row = gateway.rows.entry(header.epoch).or_default();
            update_row(row, &header, hash.0, leaf.received_at, self.commit_index, opened.as_ref());
            group.change.put(Family::Epochs, epoch_key(id, header.gateway, header.epoch), row.encode_to_vec());
            workspace.next_position += u64::from(header.record_count);
            self.parts.metrics.add("custody_records_total", u64::from(header.record_count));
            self.parts.metrics.add("custody_batches_total", 1);
            group.batches.extend(CommittedBatch::of(self.commit_index - 1, entry));
        }
        group.touched.insert(id);
        let full = workspace.open.bytes >= self.parts.limits.cut_bytes
            || workspace.open.tree.size() >= self.parts.limits.cut_leaves;
        if full {
            self.cut(id, group);
        }
        Ok(inclusion)
    }

    /// A batch that stands in the database. Of a segment that is cut the tree may have to be read, which is not done as often
    /// as anybody likes.
    fn decide_again(&mut self, batch: &Submitted, place: LeafPlace) -> Result<Decided, StoreError> {
        let lost = || StoreError::Damaged("a leaf that was committed");
        let header = &batch.header;
        let stored = self.parts.store.value(Family::Entries, leaf_key(header.workspace, place.segment, place.leaf))?;
        let entry = stored.map(Entry::parse).transpose().map_err(|_| lost())?;
        let mut inclusion = inclusion(header, place, &entry.ok_or_else(lost)?.leaf);
        let workspace = self.workspaces.get(&header.workspace).ok_or_else(lost)?;
        if place.segment != workspace.open.number {
            let store = &self.parts.store;
            let tree = match self.trees.look(store, workspace, place.segment, header.gateway, Instant::now()) {
                Ok(tree) => tree,
                Err(Unread::Later) => {
                    return Ok(Decided::Later("too many old segments were looked up just now".to_owned()));
                }
                Err(Unread::Failed(why)) => return Err(why),
            };
            workspace.lead_to_end(&tree, &mut inclusion).ok_or_else(lost)?;
        }
        Ok(Decided::Again(Box::new(inclusion)))
    }
}

/// Where a batch stands; its paths come when the receipt is made.
fn inclusion(header: &Header, place: LeafPlace, leaf: &Leaf) -> wire::BatchInclusion {
    wire::BatchInclusion {
        version: FORMAT_VERSION,
        epoch: header.epoch.into(),
        batch_number: header.batch_number,
        segment: place.segment,
        leaf_index: place.leaf,
        first_position: leaf.first_position,
        received_at: leaf.received_at,
        term: leaf.term,
        ..Default::default()
    }
}

fn closed() -> Decided {
    Decided::Reject(Reject::new(RejectReason::Equivocation, "the epoch was closed (hint: open a new one)"))
}

fn no_room() -> Decided {
    Decided::Later("no room on the ledger's disk".to_owned())
}

fn gap(expected: u64) -> Reject {
    Reject {
        reason: RejectReason::Gap,
        detail: format!("batches before it are missing (hint: send from {expected} on)"),
        expected_batch: expected,
    }
}

fn update_row(
    row: &mut EpochRow,
    header: &Header,
    hash: [u8; 32],
    received_at: u64,
    commit_index: u64,
    opened: Option<&wire::Opened>,
) {
    if header.opens() {
        row.opened_at_index = commit_index;
        row.key_id = header.key_id.into();
    }
    if let Some(opened) = opened {
        row.always_on = opened.class() == wire::WriterClass::AlwaysOn;
        row.silence_us_max = opened.silence_us_max;
    }
    row.last_batch = header.batch_number;
    row.next_record = header.next_record();
    row.last_header_hash = Bytes::copy_from_slice(&hash);
    row.closed = header.close;
    row.heard_at = received_at;
}
