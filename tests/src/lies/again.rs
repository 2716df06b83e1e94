//! Lies about what is read without having been examined, or is read in two ways: objects outside of the period, segments
//! that are read again for a head or a statement, heads whose own segment is not there, frames that decoders read differently.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody::{
    archive,
    batch::Header,
    hash::object_hash,
    head::{Head, SignedHead, history_leaf},
    id::{RootHash, WorkspaceId},
    merkle::{HistoryTree, Tree},
    segment::{Content, Entry, Seal, encode_entry},
    wire::{self, LeafKind, Role, Roster, SegmentFrame, SegmentIndex},
};
use prost::Message as _;

use super::{
    GOLDEN, Golden, ObjectMap,
    object::Parts,
    scenario::{one_more_hold, sequel},
};
use crate::golden::{
    self, Variant, keys,
    ledger::{Batch, BatchHook, Hooks},
    records,
    render::{At, Liar, render},
};

/// Archives that are made from the golden one.
pub(super) fn objects(name: &str, golden: &Golden) -> Option<Result<ObjectMap, String>> {
    let alpha = keys::workspace("alpha");
    Some(match name {
        "epoch-twice-in-a-roster" => rendered(golden, ((alpha, 16), LieIn::Roster(twice))),
        "roster-in-another-order" => rendered(golden, ((alpha, 16), LieIn::Roster(|roster| roster.entries.reverse()))),
        "leaves-miscounted-and-their-statement-removed" => without_last_statement(|frame| frame.leaf_count += 1),
        "first-position-wrong-and-its-statement-removed" => without_last_statement(|frame| frame.first_position += 1),
        "block-longer-than-the-window" => rendered(golden, ((alpha, 17), LieIn::Parts(one_block))),
        "seal-of-another-size-outside-of-the-period" => Ok(other_size(golden, (alpha, 14))),
        _ => return None,
    })
}

/// Stories that go another way.
pub(super) fn hooks(name: &str) -> Option<Hooks> {
    Some(match name {
        // Outside of the period the number is there twice; in it the second is called an equivocation of itself.
        "batch-twice-outside-of-the-period-and-called-an-equivocation" => sequel(|l| {
            let leaves = l.workspace("alpha").segments.get(15).map(|segment| segment.leaves.clone());
            let is_other = |kind| kind == LeafKind::Equivocation;
            let other = leaves.into_iter().flatten().find(|committed| is_other(committed.leaf.kind));
            let Some(other) = other else { return };
            l.append("alpha", LeafKind::Batch, other.signed.clone());
            l.cut_all();
            for _ in 0..2 {
                l.wait(600_000_000);
                let calls = records::calls(9, 1, l.now());
                l.submit_batch("alpha", Batch::new("g6", "s1", calls));
                l.cut_all();
            }
            l.wait(600_000_000);
            l.append("alpha", LeafKind::Equivocation, other.signed);
            l.cut_all();
        }),
        _ => return None,
    })
}

/// What is changed in one segment.
enum LieIn {
    Roster(fn(&mut Roster)),
    Parts(fn(&mut Parts)),
    Size,
}

impl Liar for (At, LieIn) {
    fn roster(&mut self, at: At, bytes: &mut Vec<u8>) {
        if let (true, LieIn::Roster(change)) = (at == self.0, &self.1)
            && let Ok(mut roster) = Roster::decode(bytes.as_slice())
        {
            change(&mut roster);
            *bytes = roster.encode_to_vec();
        }
    }

    fn object(&mut self, at: At, bytes: &mut Vec<u8>) {
        if let (true, LieIn::Parts(change)) = (at == self.0, &self.1)
            && let Ok(mut parts) = Parts::of(bytes)
        {
            change(&mut parts);
            *bytes = parts.join();
        }
    }

    fn seal(&mut self, at: At, seal: &mut Seal) {
        if let (true, LieIn::Size) = (at == self.0, &self.1) {
            seal.size += 1;
        }
    }
}

fn rendered(golden: &Golden, mut liar: (At, LieIn)) -> Result<ObjectMap, String> {
    Ok(render(&golden.ledger, &mut liar).objects)
}

/// Two entries of one epoch, of which the second says another number.
fn twice(roster: &mut Roster) {
    if let Some(mut again) = roster.entries.first().cloned() {
        again.last_batch += 1;
        roster.entries.insert(1, again);
    }
}

/// The content as one block that is stored as it is, in a frame whose window is 1 KiB.
fn one_block(parts: &mut Parts) {
    let length = u32::try_from(parts.content.len()).unwrap_or(0);
    let block = (length << 3 | 1).to_le_bytes();
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0x80, 0];
    parts.frame = Some([&header[..], &length.to_le_bytes(), &block[..3], &parts.content].concat());
}

/// The index of the last segment says something else of its frame, and the object of the statement in it is gone: what is
/// said first depends on whether the segment can be taken apart.
fn without_last_statement(change: fn(&mut SegmentFrame)) -> Result<ObjectMap, String> {
    struct InIndex(At, fn(&mut SegmentFrame));
    impl Liar for InIndex {
        fn object(&mut self, at: At, bytes: &mut Vec<u8>) {
            if let (true, Ok(mut parts)) = (at == self.0, Parts::of(bytes))
                && let Ok(mut index) = SegmentIndex::decode(parts.index().as_slice())
            {
                index.frames.iter_mut().for_each(self.1);
                parts.index = Some(index.encode_to_vec());
                *bytes = parts.join();
            }
        }
    }
    let workspace = keys::workspace("beta");
    let ledger = golden::tell(Variant::Plain, one_more_hold(None));
    let place = ledger.workspaces.iter().find(|place| place.id == workspace).ok_or("no such workspace")?;
    let last = (place.segments.len() as u64).checked_sub(1).ok_or("no segment")?;
    let mut objects = render(&ledger, &mut InIndex((workspace, last), change)).objects;
    let (serial, statement) = (0_u64..).zip(&place.statements).last().ok_or("no statement")?;
    objects.remove(&archive::statement(Some(workspace), serial, object_hash(statement))).ok_or("no object")?;
    Ok(objects)
}

/// A seal says one leaf too many, and a gateway that takes part holds a head of so many. No later head contradicts it.
fn other_size(golden: &Golden, at: At) -> ObjectMap {
    let mut hooks = Hooks::default();
    let history = history_before(golden, at);
    let segment = golden.ledger.workspaces.iter().find(|place| place.id == at.0);
    let sealed = segment.and_then(|place| place.segments.get(usize::try_from(at.1).unwrap_or(usize::MAX))).cloned();
    for label in golden.ledger.labels.iter().filter(|(_, place)| place.0 == at.0 && place.1 > at.1 + 1).map(|(l, _)| l)
    {
        let sealed = sealed.clone();
        let lies = label.ends_with("/e2/10");
        let hook: BatchHook = Box::new(move |header: &mut Header, _| {
            let held = SignedHead::parse(&header.last_head).ok().filter(|_| lies);
            let head = held.zip(sealed.as_ref()).map(|(held, sealed)| Head {
                incarnation: sealed.header.incarnation,
                segment: at.1,
                size: sealed.leaves.len() as u64 + 1,
                root: RootHash([7; 32]),
                history_root: history,
                ledger_chain: sealed.header.ledger_chain,
                workspace_chain: sealed.header.workspace_chain,
                key_id: keys::id("head-2", Role::Head),
                ..held.head
            });
            header.last_head = head.map(|head| head.sign(&keys::signing("head-2"))).unwrap_or_default().into();
        });
        hooks.batches.insert(label.clone(), hook);
    }
    render(&golden::tell(Variant::Plain, hooks), &mut (at, LieIn::Size)).objects
}

fn seals_of(golden: &Golden, workspace: WorkspaceId) -> BTreeMap<u64, Seal> {
    let names = golden.rendered.seal_names.iter().filter(|(at, _)| at.0 == workspace);
    let seals = names.filter_map(|(at, name)| Some((at.1, Seal::parse(golden.rendered.objects.get(name)?).ok()?)));
    seals.collect()
}

fn history_before(golden: &Golden, at: At) -> RootHash {
    let mut history = Tree::<HistoryTree>::default();
    for (number, seal) in seals_of(golden, at.0).range(..at.1) {
        history.push(history_leaf(*number, seal.size, &seal.root));
    }
    history.root()
}

/// A receipt that the archive cannot show: its head is of a segment that is not sealed, or superseded, and its batch is in
/// every copy of the archive.
pub(super) fn receipt(name: &str) -> Option<Vec<u8>> {
    let golden = &*GOLDEN;
    let beta = keys::workspace("beta");
    let seals = seals_of(golden, beta);
    let (last, newest) = seals.last_key_value()?;
    let (segment, incarnation, history_root) = match name {
        "head-of-the-open-segment" => (last + 1, newest.incarnation, history_before(golden, (beta, last + 1))),
        "superseded-head" => {
            let (number, _) = seals.iter().find(|(_, seal)| seal.incarnation > 0)?;
            (*number, 0, RootHash([6; 32]))
        }
        _ => return None,
    };
    let head = Head {
        origin: golden.ledger.origin.clone(),
        workspace: beta,
        key_id: keys::id("head-2", Role::Head),
        incarnation,
        term: golden.ledger.term,
        segment,
        size: 3,
        root: RootHash([7; 32]),
        history_root,
        ledger_chain: newest.ledger_chain,
        workspace_chain: newest.workspace_chain,
        at: newest.sealed_at,
        unfenced: false,
    };
    let place = golden.ledger.workspaces.iter().find(|place| place.id == beta)?;
    let (segment, committed) = (0_u64..).zip(&place.segments).find_map(|(number, segment)| {
        segment.leaves.first().filter(|first| first.leaf.kind == LeafKind::Batch).map(|first| (number, first))
    })?;
    let entry = Entry::parse(encode_entry(&committed.leaf, committed.signed.clone()).into()).ok()?;
    let Content::Batch(batch) = entry.content else { return None };
    let inclusion = wire::BatchInclusion {
        version: 1,
        epoch: batch.header.epoch.into(),
        batch_number: batch.header.batch_number,
        segment,
        leaf_index: 0,
        first_position: committed.leaf.first_position,
        received_at: committed.leaf.received_at,
        term: committed.leaf.term,
        ..Default::default()
    };
    let signed_head = head.sign(&keys::signing("head-2")).into();
    let receipt = wire::Receipt { version: 1, signed_head, consistency: None, batches: vec![inclusion] };
    Some(format!("custody/v1/receipt {}\n", STANDARD.encode(receipt.encode_to_vec())).into_bytes())
}
