//! Whole things taken away, put elsewhere or put there twice: objects, leaves, records, statements, entries of the log.

use std::collections::BTreeMap;

use bytes::Bytes;
use custody::{archive, id::WorkspaceId, log::encode_bundle, strict::table, wire::LeafKind};

use super::{
    Golden, ObjectMap, Strength,
    object::Parts,
    tamper::{ChainAndSerial, change, mend, present, relink, substitute},
    target::Target,
    wire,
};
use crate::golden::{
    self,
    ledger::{Ledger, LogItem},
    render::{At, Liar, Truth, render},
};

pub(super) fn older(golden: &Golden, checkpoint: &str) -> Result<ObjectMap, String> {
    let Target::Checkpoint(which) = Target::parse(&format!("checkpoint {checkpoint}"))? else {
        return Err("not a checkpoint".to_owned());
    };
    let size = which.size(&golden.ledger);
    let mut ledger = golden.ledger.clone();
    ledger.publications.retain(|publication| publication.checkpoint.size <= size);
    ledger.log.truncate(usize::try_from(size).map_err(|why| why.to_string())?);
    let sealed: Vec<At> = ledger
        .log
        .iter()
        .filter_map(|item| if let LogItem::Seal(id, segment) = item { Some((*id, *segment)) } else { None })
        .collect();
    let log = ledger.log.clone();
    let is_in_log = |object: &Bytes| {
        let entry = custody::log::encode_entry(custody::wire::log_entry::Entry::Statement(object.clone()));
        log.iter().any(|item| matches!(item, LogItem::Entry(bytes) if *bytes == entry))
    };
    ledger.statements.retain(is_in_log);
    ledger.workspaces.retain(|workspace| workspace.statements.first().is_some_and(is_in_log));
    for workspace in &mut ledger.workspaces {
        let id = workspace.id;
        let mut number = 0;
        workspace.segments.retain(|_| {
            number += 1;
            sealed.contains(&(id, number - 1))
        });
        let leaves = workspace.segments.iter().flat_map(|segment| &segment.leaves);
        let statements = leaves.filter(|committed| committed.leaf.kind == LeafKind::Statement).count();
        workspace.statements.truncate(1 + statements);
    }
    Ok(render(&ledger, &mut Truth).objects)
}

/// Cuts off the end of an object, a frame, a list of records, or the log.
pub(super) fn truncate(golden: &Golden, strength: Strength, target: &Target, keep: i64) -> Result<ObjectMap, String> {
    let length = move |all: usize| -> Result<usize, String> {
        let kept = if keep < 0 { i64::try_from(all).unwrap_or(0) + keep } else { keep };
        usize::try_from(kept).ok().filter(|kept| *kept < all).ok_or_else(|| format!("{keep} of {all} cuts nothing"))
    };
    if let Target::Record(..) = target {
        return rearrange(golden, strength, target, |records| {
            records.truncate(length(records.len())?);
            Ok(())
        });
    }
    if let Target::Entry(at, _) = target {
        return hold(golden, strength, target, |ledger| {
            let leaves = &mut segment_mut(ledger, *at)?.leaves;
            leaves.truncate(length(leaves.len())?);
            Ok(())
        });
    }
    let cut = move |bytes: &[u8]| Ok(bytes.get(..length(bytes.len())?).unwrap_or_default().to_vec());
    change(golden, strength, target, false, None, Box::new(cut))
}

fn segment_mut(ledger: &mut Ledger, at: At) -> Result<&mut golden::ledger::Segment, String> {
    let workspace = ledger.workspaces.iter_mut().find(|w| w.id == at.0).ok_or("no such workspace")?;
    let number = usize::try_from(at.1).map_err(|why| why.to_string())?;
    workspace.segments.get_mut(number).ok_or_else(|| "no such segment".to_owned())
}

/// Changes what the ledger holds, and renders it.
fn hold(
    golden: &Golden,
    strength: Strength,
    target: &Target,
    change: impl FnOnce(&mut Ledger) -> Result<(), String>,
) -> Result<ObjectMap, String> {
    let mut ledger = golden.ledger.clone();
    change(&mut ledger)?;
    relink(&mut ledger);
    present(golden, strength, target, render(&ledger, &mut Truth))
}

/// Rearranges the records of a batch; beyond raw the header gets their root and number, and positions follow.
fn rearrange(
    golden: &Golden,
    strength: Strength,
    target: &Target,
    change: impl FnOnce(&mut Vec<Vec<u8>>) -> Result<(), String>,
) -> Result<ObjectMap, String> {
    let (Some(at), Some(leaf)) = (target.segment(), target.leaf()) else { return Err("not in a batch".to_owned()) };
    hold(golden, strength, target, |ledger| {
        let committed = segment_mut(ledger, at)?.leaves.get_mut(leaf).ok_or("no such leaf")?;
        let batch = wire::elements(&table::SIGNED_BATCH, &committed.signed, "records", change)?;
        committed.signed = if strength == Strength::Raw { batch } else { mend(&batch)? }.into();
        Ok(())
    })
}

/// Changes the list of the log's entries.
struct LogEditor<F>(Option<F>);

impl<F: FnOnce(&mut Vec<Vec<u8>>)> Liar for LogEditor<F> {
    fn log(&mut self, entries: &mut Vec<Vec<u8>>) {
        if let Some(change) = self.0.take() {
            change(entries);
        }
    }
}

/// Changes the log's entries around `index`: beyond raw the trees over them, in raw the one bundle.
fn relog(
    golden: &Golden,
    strength: Strength,
    index: usize,
    change: impl FnOnce(&mut Vec<Vec<u8>>),
) -> Result<ObjectMap, String> {
    if strength != Strength::Raw {
        let rendered = render(&golden.ledger, &mut LogEditor(Some(change)));
        return present(golden, strength, &Target::LogEntry(index), rendered);
    }
    let mut objects = golden.rendered.objects.clone();
    let name = Target::LogEntry(index).object_name(&golden.ledger, &golden.rendered).ok_or("no bundle")?;
    let mut entries = golden.rendered.entries.clone();
    change(&mut entries);
    let bundle = entries.chunks(256).nth(index / 256).ok_or("no bundle")?;
    objects.insert(name, encode_bundle(bundle).into());
    Ok(objects)
}

pub(super) fn remove(golden: &Golden, strength: Strength, target: &Target) -> Result<ObjectMap, String> {
    if strength == Strength::Raw && !matches!(target, Target::Entry(..) | Target::Record(..) | Target::LogEntry(_)) {
        let mut objects = golden.rendered.objects.clone();
        if let Target::Workspace(id) = target {
            let prefix = format!("workspaces/{id}/");
            objects.retain(|name, _| !name.starts_with(&prefix));
        } else {
            let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
            objects.remove(&name).ok_or_else(|| format!("no object {name}"))?;
        }
        return Ok(objects);
    }
    match target {
        Target::LogEntry(index) => {
            let index = *index;
            relog(golden, strength, index, move |entries| drop(entries.remove(index)))
        }
        Target::Record(_, _, record) => rearrange(golden, strength, target, |records| {
            if *record >= records.len() {
                return Err("no such record".to_owned());
            }
            records.remove(*record);
            Ok(())
        }),
        Target::Entry(at, leaf) => hold(golden, strength, target, |ledger| {
            let segment = segment_mut(ledger, *at)?;
            if *leaf >= segment.leaves.len() {
                return Err("no such leaf".to_owned());
            }
            segment.leaves.remove(*leaf);
            Ok(())
        }),
        Target::Segment(at) => hold(golden, strength, target, |ledger| remove_segment(ledger, *at)),
        Target::Statement(chain, serial) => {
            hold(golden, strength, target, |ledger| remove_statement(ledger, (*chain, *serial)))
        }
        Target::Workspace(id) => hold(golden, strength, target, |ledger| {
            ledger.workspaces.retain(|workspace| workspace.id != *id);
            ledger.log.retain(|item| match item {
                LogItem::Seal(of, _) => of != id,
                LogItem::Entry(bytes) => !is_about(bytes, *id),
            });
            Ok(())
        }),
        _ => Err("that is not removed so".to_owned()),
    }
}

fn is_about(entry: &[u8], id: WorkspaceId) -> bool {
    match custody::log::Entry::parse(entry) {
        Ok(custody::log::Entry::Statement(signed)) => signed.workspace() == Some(id),
        _ => false,
    }
}

/// Takes a segment out of the ledger, and numbers those after it anew.
fn remove_segment(ledger: &mut Ledger, (id, number): At) -> Result<(), String> {
    let workspace = ledger.workspaces.iter_mut().find(|w| w.id == id).ok_or("no such workspace")?;
    let at = usize::try_from(number).map_err(|why| why.to_string())?;
    if at >= workspace.segments.len() {
        return Err("no such segment".to_owned());
    }
    workspace.segments.remove(at);
    ledger.log.retain(|item| !matches!(item, LogItem::Seal(of, of_number) if (*of, *of_number) == (id, number)));
    for item in &mut ledger.log {
        if let LogItem::Seal(of, of_number) = item
            && *of == id
            && *of_number > number
        {
            *of_number -= 1;
        }
    }
    Ok(())
}

/// Takes a statement out of its chain, and the leaf or entry with it.
fn remove_statement(ledger: &mut Ledger, (chain, serial): ChainAndSerial) -> Result<(), String> {
    let statements = statements_mut(ledger, chain)?;
    if serial >= statements.len() {
        return Err("no such statement".to_owned());
    }
    let object = statements.remove(serial);
    let entry = custody::log::encode_entry(custody::wire::log_entry::Entry::Statement(object.clone()));
    ledger.log.retain(|item| !matches!(item, LogItem::Entry(bytes) if *bytes == entry));
    let serial = serial as u64;
    let mut empty: Vec<At> = Vec::new();
    for workspace in &mut ledger.workspaces {
        for (number, segment) in (0_u64..).zip(&mut workspace.segments) {
            segment.leaves.retain(|committed| committed.signed != object);
            if segment.leaves.is_empty() {
                empty.push((workspace.id, number));
            }
            if chain.is_none() && segment.header.ledger_chain.count > serial {
                segment.header.ledger_chain.count -= 1;
            }
        }
    }
    empty.into_iter().rev().try_for_each(|at| remove_segment(ledger, at))
}

pub(super) fn swap(golden: &Golden, strength: Strength, one: &Target, other: &Target) -> Result<ObjectMap, String> {
    match (one, other) {
        (Target::LogEntry(a), Target::LogEntry(b)) => {
            let (a, b) = (*a, *b);
            relog(golden, strength, a, move |entries| entries.swap(a, b))
        }
        (Target::Entry(at, a), Target::Entry(with, b)) if at == with => hold(golden, strength, one, |ledger| {
            segment_mut(ledger, *at)?.leaves.swap(*a, *b);
            Ok(())
        }),
        (Target::Record(_, _, a), Target::Record(_, _, b)) => rearrange(golden, strength, one, |records| {
            records.swap(*a, *b);
            Ok(())
        }),
        (Target::Segment(a), Target::Segment(b)) if strength != Strength::Raw => {
            hold(golden, strength, one, |ledger| {
                let leaves = std::mem::take(&mut segment_mut(ledger, *a)?.leaves);
                let others = std::mem::replace(&mut segment_mut(ledger, *b)?.leaves, leaves);
                segment_mut(ledger, *a)?.leaves = others;
                Ok(())
            })
        }
        (Target::Seal(_), Target::Seal(_)) if strength != Strength::Raw => {
            let mut liar = OtherSeals(BTreeMap::from([
                (seal_at(one)?, object(golden, other)?.to_vec()),
                (seal_at(other)?, object(golden, one)?.to_vec()),
            ]));
            present(golden, strength, one, render(&golden.ledger, &mut liar))
        }
        (Target::Statement(chain, a), Target::Statement(of, b)) if chain == of && strength != Strength::Raw => {
            hold(golden, strength, one, |ledger| swap_statements(ledger, *chain, *a, *b))
        }
        _ if strength == Strength::Raw => {
            let mut objects = golden.rendered.objects.clone();
            let name = |target: &Target| target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object");
            let (a, b) = (name(one)?, name(other)?);
            let (first, second) = (objects.get(&a).cloned(), objects.get(&b).cloned());
            objects.insert(a, second.ok_or("no such object")?);
            objects.insert(b, first.ok_or("no such object")?);
            Ok(objects)
        }
        _ => Err("those are not swapped so".to_owned()),
    }
}

/// Seals that stand where others should.
struct OtherSeals(BTreeMap<At, Vec<u8>>);

impl Liar for OtherSeals {
    fn seal_bytes(&mut self, at: At, bytes: &mut Vec<u8>) {
        if let Some(other) = self.0.remove(&at) {
            *bytes = other;
        }
    }
}

fn seal_at(target: &Target) -> Result<At, String> {
    if let Target::Seal(at) = target { Ok(*at) } else { Err("not a seal".to_owned()) }
}

/// The object that a target is.
fn object(golden: &Golden, target: &Target) -> Result<Bytes, String> {
    let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
    golden.rendered.objects.get(&name).cloned().ok_or_else(|| format!("no object {name}"))
}

/// Two statements of a chain change places, as objects and as leaves or entries.
fn swap_statements(ledger: &mut Ledger, chain: Option<WorkspaceId>, a: usize, b: usize) -> Result<(), String> {
    let statements = statements_mut(ledger, chain)?;
    let (Some(first), Some(second)) = (statements.get(a).cloned(), statements.get(b).cloned()) else {
        return Err("no such statement".to_owned());
    };
    statements.swap(a, b);
    let aside = b"neither of the two";
    for (old, new) in [(&first[..], &aside[..]), (&second[..], &first[..]), (&aside[..], &second[..])] {
        substitute(ledger, old, new);
    }
    Ok(())
}

fn statements_mut(ledger: &mut Ledger, chain: Option<WorkspaceId>) -> Result<&mut Vec<Bytes>, String> {
    Ok(match chain {
        None => &mut ledger.statements,
        Some(id) => &mut ledger.workspaces.iter_mut().find(|w| w.id == id).ok_or("no such workspace")?.statements,
    })
}

pub(super) fn duplicate(golden: &Golden, strength: Strength, target: &Target) -> Result<ObjectMap, String> {
    match target {
        Target::LogEntry(index) => {
            let index = *index;
            relog(golden, strength, index, move |entries| entries.insert(index, entries[index].clone()))
        }
        Target::Entry(at, leaf) => hold(golden, strength, target, |ledger| {
            let segment = segment_mut(ledger, *at)?;
            let again = segment.leaves.get(*leaf).ok_or("no such leaf")?.clone();
            segment.leaves.insert(*leaf, again);
            Ok(())
        }),
        Target::Record(_, _, record) => rearrange(golden, strength, target, |records| {
            let again = records.get(*record).ok_or("no such record")?.clone();
            records.insert(*record, again);
            Ok(())
        }),
        Target::Segment(at) if strength != Strength::Raw => hold(golden, strength, target, |ledger| {
            let again = segment_mut(ledger, *at)?.clone();
            let workspace = ledger.workspaces.iter_mut().find(|w| w.id == at.0).ok_or("no such workspace")?;
            let number = workspace.segments.len() as u64;
            workspace.segments.push(again);
            ledger.log.push(LogItem::Seal(at.0, number));
            Ok(())
        }),
        Target::Roster(_) => change(golden, strength, target, false, None, Box::new(|bytes| Ok(bytes.repeat(2)))),
        _ => {
            // The same bytes under a name that is not taken.
            let (mut objects, bytes) = (golden.rendered.objects.clone(), object(golden, target)?);
            let again = second_name(golden, target, &bytes).ok_or("that is not duplicated so")?;
            match objects.insert(again, bytes) {
                None => Ok(objects),
                Some(_) => Err("the name is taken".to_owned()),
            }
        }
    }
}

/// A name for a second copy of an object.
fn second_name(golden: &Golden, target: &Target, bytes: &[u8]) -> Option<String> {
    let hash = custody::hash::object_hash(bytes);
    let width = |of: usize| (bytes.len() / of) as u64;
    Some(match target {
        Target::Segment(at) => archive::segment(at.0, at.1 + 900, hash),
        Target::Seal(at) => archive::seal(at.0, at.1 + 900, hash),
        Target::Statement(chain, serial) => archive::statement(*chain, *serial as u64 + 900, hash),
        Target::Checkpoint(which) => archive::checkpoint(which.size(&golden.ledger) - 1),
        Target::Cosignature(which, _) => archive::cosignature(which.size(&golden.ledger), "witness.example/zwei"),
        Target::Tile(level, number) => archive::tile(Some(*level), number + 900, width(32)),
        Target::Bundle(number) => archive::tile(None, number + 900, 256),
        _ => return None,
    })
}

pub(super) fn replace(
    golden: &Golden,
    strength: Strength,
    target: &Target,
    source: &Golden,
    with: &Target,
) -> Result<ObjectMap, String> {
    if let (Target::Entry(at, leaf), Target::Entry(from, from_leaf)) = (target, with) {
        let mut source = source.ledger.clone();
        let other = segment_mut(&mut source, *from)?.leaves.get(*from_leaf).ok_or("no such leaf")?.clone();
        return hold(golden, strength, target, |ledger| {
            let committed = segment_mut(ledger, *at)?.leaves.get_mut(*leaf).ok_or("no such leaf")?;
            committed.signed = other.signed;
            Ok(())
        });
    }
    let whole = object(source, with)?;
    let bytes = match with {
        Target::Roster(_) => Parts::of(&whole)?.roster,
        Target::Record(at, leaf, record) => {
            let mut source = source.ledger.clone();
            let batch = segment_mut(&mut source, *at)?.leaves.get(*leaf).ok_or("no such leaf")?.signed.clone();
            let mut found = Vec::new();
            wire::inside(&table::SIGNED_BATCH, &batch, "records", *record, |record| {
                found.clone_from(&record);
                Ok(record)
            })?;
            let bytes = found;
            let mend_batch = strength != Strength::Raw;
            return change(golden, strength, target, mend_batch, None, Box::new(move |_| Ok(bytes.clone())));
        }
        _ => whole.to_vec(),
    };
    change(golden, strength, target, false, None, Box::new(move |_| Ok(bytes.clone())))
}
