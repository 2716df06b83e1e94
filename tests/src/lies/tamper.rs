//! Follows recipes: on single objects, on what the ledger holds, or on what is computed from it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody::{
    batch::{BATCH_BYTES_MAX, record_leaves},
    log::encode_bundle,
    merkle::{BatchTree, root_of},
    note::Checkpoint,
    strict::table,
    wire::LeafKind,
};

use super::{
    Golden, Lie, OTHER, ObjectMap, Recipe, Strength,
    object::Parts,
    scenario,
    target::{Target, Which},
    wire::{self, How},
};
use crate::golden::{
    self, Variant,
    ledger::{Ledger, LogItem, after},
    render::{At, Liar, Rendered, Truth, render},
};

/// Makes the archive that a lie presents.
pub(super) fn tamper(golden: &Golden, lie: &Lie) -> Result<ObjectMap, String> {
    let strength = lie.strength;
    match &lie.recipe {
        Recipe::Scenario { name } => match scenario::objects(name, golden) {
            Some(objects) => objects,
            None => {
                let ledger = golden::tell(Variant::Plain, scenario::hooks(name)?);
                Ok(render(&ledger, &mut Truth).objects)
            }
        },
        Recipe::Evidence { .. } => Err("evidence is no archive".to_owned()),
        Recipe::OtherOrigin {} => Ok(OTHER.rendered.objects.clone()),
        Recipe::Older { checkpoint } => older(golden, checkpoint),
        Recipe::Edit { target, field, how, mend_batch } => {
            let (target, how) = (Target::parse(target)?, How::parse(how)?);
            if strength == Strength::Raw && matches!(target, Target::Checkpoint(_) | Target::Cosignature(..)) {
                let named = field.clone();
                let edit = move |bytes: &[u8]| edit_signature_line(bytes, &named);
                return change(golden, strength, &target, false, None, Box::new(edit));
            }
            let (named, message) = (field.clone(), target.message());
            let edit = move |bytes: &[u8]| wire::edit(message.ok_or("not a message")?, bytes, &named, how);
            change(golden, strength, &target, *mend_batch, Some(field), Box::new(edit))
        }
        Recipe::FlipByte { target, byte } => {
            let byte = *byte;
            let flip = move |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = offset(byte, bytes.len())?;
                *bytes.get_mut(at).ok_or("beyond the end")? ^= 1;
                Ok(bytes)
            };
            change(golden, strength, &Target::parse(target)?, false, None, Box::new(flip))
        }
        Recipe::Truncate { target, keep } => truncate(golden, strength, &Target::parse(target)?, *keep),
        Recipe::Remove { target } => remove(golden, strength, &Target::parse(target)?),
        Recipe::Swap { target, with } => swap(golden, strength, &Target::parse(target)?, &Target::parse(with)?),
        Recipe::Duplicate { target } => duplicate(golden, strength, &Target::parse(target)?),
        Recipe::Replace { target, with, other_origin } => {
            let source = if *other_origin { &*OTHER } else { golden };
            replace(golden, strength, &Target::parse(target)?, source, &Target::parse(with)?)
        }
        Recipe::Text { target, find, replace } => {
            let (find, replace) = (find.clone(), replace.clone());
            let edit = move |bytes: &[u8]| {
                let text = String::from_utf8(bytes.to_vec()).map_err(|why| why.to_string())?;
                Ok(text.replacen(&unescape(&find), &unescape(&replace), 1).into_bytes())
            };
            change(golden, strength, &Target::parse(target)?, false, None, Box::new(edit))
        }
    }
}

/// Turns a bit in a part of a note's first signature line: `key_hash`, `time` (of a cosignature) or `signature`.
fn edit_signature_line(bytes: &[u8], part: &str) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bytes).map_err(|why| why.to_string())?;
    let line = text.lines().find(|line| line.starts_with("— ")).ok_or("no signature line")?;
    let (name, encoded) = line.rsplit_once(' ').ok_or("no signature line")?;
    let mut decoded = STANDARD.decode(encoded).map_err(|why| why.to_string())?;
    let at = match part {
        "key_hash" => 0,
        "time" => 11,
        "signature" => decoded.len() - 20,
        _ => return Err(format!("no such part of a signature line: {part}")),
    };
    *decoded.get_mut(at).ok_or("too short")? ^= 1;
    Ok(text.replacen(line, &format!("{name} {}", STANDARD.encode(decoded)), 1).into_bytes())
}

fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
}

fn offset(at: i64, length: usize) -> Result<usize, String> {
    let from = if at < 0 { i64::try_from(length).unwrap_or(0) + at } else { at };
    usize::try_from(from).ok().filter(|at| *at < length).ok_or_else(|| format!("{at} is beyond {length}"))
}

type EditBytes = Box<dyn Fn(&[u8]) -> Result<Vec<u8>, String>>;

/// Puts an edit where its target is computed.
struct Editor<'a> {
    target: &'a Target,
    edit: EditBytes,
    mend_batch: bool,
    /// Field of a checkpoint, and the checkpoint's size.
    field: Option<&'a str>,
    size: u64,
    entries: Option<usize>,
    failed: Option<String>,
}

impl Editor<'_> {
    fn put(&mut self, bytes: &mut Vec<u8>, edited: Result<Vec<u8>, String>) {
        match edited {
            Ok(edited) => *bytes = edited,
            Err(why) => self.failed = Some(why),
        }
    }

    fn edit_entry(&self, entry: &[u8]) -> Result<Vec<u8>, String> {
        let edit = |bytes: Vec<u8>| (self.edit)(&bytes);
        let batch = |change: &dyn Fn(Vec<u8>) -> Result<Vec<u8>, String>| {
            wire::inside(&table::SEGMENT_ENTRY, entry, "signed", 0, |batch| {
                let batch = change(batch)?;
                if self.mend_batch { mend(&batch) } else { Ok(batch) }
            })
        };
        let header = |change: &dyn Fn(Vec<u8>) -> Result<Vec<u8>, String>| {
            batch(&|bytes| wire::inside(&table::SIGNED_BATCH, &bytes, "header", 0, change))
        };
        let head = |change: &dyn Fn(Vec<u8>) -> Result<Vec<u8>, String>| {
            header(&|bytes| wire::inside(&table::BATCH_HEADER, &bytes, "last_head", 0, change))
        };
        match self.target {
            Target::Entry(..) => (self.edit)(entry),
            Target::Batch(..) => batch(&edit),
            Target::BatchHeader(..) => header(&edit),
            Target::SignedHead(..) => head(&edit),
            Target::Head(..) => head(&|bytes| wire::inside(&table::SIGNED_HEAD, &bytes, "head", 0, edit)),
            Target::Record(_, _, record) => {
                batch(&|bytes| wire::inside(&table::SIGNED_BATCH, &bytes, "records", *record, edit))
            }
            _ => Ok(entry.to_vec()),
        }
    }
}

/// Puts the root of a batch's records, and their number, into its header; the signature stays.
fn mend(batch: &[u8]) -> Result<Vec<u8>, String> {
    if batch.len() > BATCH_BYTES_MAX {
        return Err("too long".to_owned());
    }
    let raw: custody::wire::SignedBatch = prost::Message::decode(batch).map_err(|why| why.to_string())?;
    let seed: [u8; 32] = raw.seed.as_ref().try_into().map_err(|_| "no seed")?;
    let root = root_of::<BatchTree>(&record_leaves(&seed, &raw.records));
    wire::inside(&table::SIGNED_BATCH, batch, "header", 0, |header| {
        let header = wire::edit(&table::BATCH_HEADER, &header, "record_count", How::Set(raw.records.len() as u64))?;
        wire::inside(&table::BATCH_HEADER, &header, "batch_root", 0, |_| Ok(root.0.to_vec()))
    })
}

impl Liar for Editor<'_> {
    fn entry(&mut self, at: At, leaf: usize, bytes: &mut Vec<u8>) {
        if self.target.segment() == Some(at) && self.target.leaf() == Some(leaf) {
            let edited = self.edit_entry(bytes);
            self.put(bytes, edited);
        }
    }

    fn roster(&mut self, at: At, bytes: &mut Vec<u8>) {
        if *self.target == Target::Roster(at) {
            let edited = (self.edit)(bytes);
            self.put(bytes, edited);
        }
    }

    fn object(&mut self, at: At, bytes: &mut Vec<u8>) {
        let parts = |change: &dyn Fn(&mut Parts) -> Result<(), String>| {
            let mut parts = Parts::of(bytes)?;
            change(&mut parts)?;
            Ok(parts.join())
        };
        let edited = match self.target {
            Target::Segment(of) if *of == at => (self.edit)(bytes),
            Target::Header(of) if *of == at => parts(&|p| (self.edit)(&p.header).map(|new| p.header = new)),
            Target::Index(of) if *of == at => parts(&|p| (self.edit)(&p.index()).map(|new| p.index = Some(new))),
            Target::Frame(of) if *of == at => parts(&|p| (self.edit)(&p.content).map(|new| p.content = new)),
            _ => return,
        };
        self.put(bytes, edited);
    }

    fn seal_bytes(&mut self, at: At, bytes: &mut Vec<u8>) {
        if *self.target == Target::Seal(at) {
            let edited = (self.edit)(bytes);
            self.put(bytes, edited);
        }
    }

    fn log(&mut self, entries: &mut Vec<Vec<u8>>) {
        if let Target::LogEntry(index) = self.target
            && let Some(bytes) = entries.get_mut(*index)
        {
            let edited = (self.edit)(bytes);
            let mut put = std::mem::take(bytes);
            self.put(&mut put, edited);
            if let Some(bytes) = entries.get_mut(*index) {
                *bytes = put;
            }
        }
        self.entries = Some(entries.len());
    }

    fn checkpoint(&mut self, checkpoint: &mut Checkpoint) {
        if checkpoint.size != self.size {
            return;
        }
        match self.field {
            Some("origin") => "ledger.example/other".clone_into(&mut checkpoint.origin),
            Some("size") => checkpoint.size += 1,
            Some("root") => checkpoint.root.0[16] ^= 1,
            _ => {}
        }
    }
}

/// Edits the bytes of a target and, as the strength allows, what follows from them.
fn change(
    golden: &Golden,
    strength: Strength,
    target: &Target,
    mend_batch: bool,
    field: Option<&str>,
    edit: EditBytes,
) -> Result<ObjectMap, String> {
    let outermost = matches!(target, Target::Checkpoint(_) if strength == Strength::Raw)
        || matches!(target, Target::Cosignature(..) | Target::Bundle(_) | Target::Tile(..));
    if outermost {
        let mut objects = golden.rendered.objects.clone();
        let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
        let bytes = objects.get(&name).ok_or_else(|| format!("no object {name}"))?;
        let edited = edit(bytes)?;
        objects.insert(name, edited.into());
        return Ok(objects);
    }
    if let Target::Statement(chain, serial) | Target::Said(chain, serial) = target {
        return change_statement(golden, strength, (*chain, *serial), target, &edit);
    }
    let size = if let Target::Checkpoint(which) = target { which.size(&golden.ledger) } else { 0 };
    let mut editor = Editor { target, edit, mend_batch, field, size, entries: None, failed: None };
    let rendered = render(&golden.ledger, &mut editor);
    match editor.failed {
        Some(why) => Err(why),
        None => present(golden, strength, target, rendered),
    }
}

/// The archive that the liar presents, once all that follows was computed.
fn present(golden: &Golden, strength: Strength, target: &Target, rendered: Rendered) -> Result<ObjectMap, String> {
    match strength {
        Strength::Resigned | Strength::Colluding => Ok(rendered.objects),
        Strength::Mended => Ok(unsign(golden, rendered.objects)),
        Strength::Raw => {
            // Only the one object is changed, and keeps its name.
            let mut objects = golden.rendered.objects.clone();
            let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
            let made = target.object_name(&golden.ledger, &rendered).ok_or("no such object")?;
            let bytes = rendered.objects.get(&made).ok_or_else(|| format!("no object {made}"))?;
            objects.insert(name, bytes.clone());
            Ok(objects)
        }
    }
}

/// Under every checkpoint whose text changed stand the signatures that stood under the old text.
fn unsign(golden: &Golden, mut objects: ObjectMap) -> ObjectMap {
    let newest = custody::archive::checkpoint(Which::Newest.size(&golden.ledger));
    for (name, bytes) in &mut objects {
        let Some(_) = name.strip_prefix("log/checkpoints/") else { continue };
        let old = golden.rendered.objects.get(name).or_else(|| golden.rendered.objects.get(&newest));
        let split = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.split_once("\n\n").map(|(text, lines)| (text.to_owned(), lines.to_owned()))
        };
        if let (Some((text, _)), Some((_, lines))) = (split(bytes), old.and_then(|old| split(old))) {
            *bytes = format!("{text}\n\n{lines}").into();
        }
    }
    objects
}

type ChainAndSerial = (Option<custody::id::WorkspaceId>, usize);

/// Edits a statement: its object, and beyond raw the leaf or entry that carries it and every head of the chain after it.
fn change_statement(
    golden: &Golden,
    strength: Strength,
    (chain, serial): ChainAndSerial,
    target: &Target,
    edit: &EditBytes,
) -> Result<ObjectMap, String> {
    let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
    let old = golden.rendered.objects.get(&name).ok_or("no such object")?;
    let new = match target {
        Target::Said(..) => wire::inside(&table::SIGNED_STATEMENT, old, "statement", 0, |said| edit(&said))?,
        _ => edit(old)?,
    };
    if strength == Strength::Raw {
        let mut objects = golden.rendered.objects.clone();
        objects.insert(name, new.into());
        return Ok(objects);
    }
    let mut ledger = golden.ledger.clone();
    let statements = match chain {
        None => &mut ledger.statements,
        Some(id) => &mut ledger.workspaces.iter_mut().find(|w| w.id == id).ok_or("no such workspace")?.statements,
    };
    *statements.get_mut(serial).ok_or("no such statement")? = new.clone().into();
    substitute(&mut ledger, old, &new);
    relink(&mut ledger);
    present(golden, strength, target, render(&ledger, &mut Truth))
}

/// Puts other bytes where a statement stands, as leaf and as entry.
fn substitute(ledger: &mut Ledger, old: &[u8], new: &[u8]) {
    for leaf in ledger.workspaces.iter_mut().flat_map(|w| &mut w.segments).flat_map(|s| &mut s.leaves) {
        if leaf.signed == old {
            leaf.signed = bytes::Bytes::copy_from_slice(new);
        }
    }
    let entry = |bytes: &[u8]| {
        let bytes = bytes::Bytes::copy_from_slice(bytes);
        custody::log::encode_entry(custody::wire::log_entry::Entry::Statement(bytes))
    };
    let (before, after) = (entry(old), entry(new));
    for item in &mut ledger.log {
        if matches!(item, LogItem::Entry(bytes) if *bytes == before) {
            *item = LogItem::Entry(after.clone());
        }
    }
}

/// Changes what the ledger holds with its own clock, and signs all again.
pub(super) fn rewrite(golden: &Golden, change: impl FnOnce(&mut Ledger)) -> ObjectMap {
    let mut ledger = golden.ledger.clone();
    change(&mut ledger);
    relink(&mut ledger);
    render(&ledger, &mut Truth).objects
}

/// Makes headers name the chains, positions and numbers as they now are.
fn relink(ledger: &mut Ledger) {
    let heads = |statements: &[bytes::Bytes]| {
        let mut head = custody::statement::ChainHead::GENESIS;
        let mut all = vec![head];
        for object in statements {
            head = after(head, object);
            all.push(head);
        }
        all
    };
    let keys = heads(&ledger.statements);
    for workspace in &mut ledger.workspaces {
        let own = heads(&workspace.statements);
        let (mut position, mut count) = (0, 1_usize);
        for (number, segment) in (0_u64..).zip(&mut workspace.segments) {
            segment.header.segment = number;
            segment.header.first_position = position;
            let of_keys = usize::try_from(segment.header.ledger_chain.count).unwrap_or(0);
            segment.header.ledger_chain = keys.get(of_keys).copied().unwrap_or(segment.header.ledger_chain);
            segment.header.workspace_chain = own.get(count).copied().unwrap_or(segment.header.workspace_chain);
            for committed in &mut segment.leaves {
                committed.leaf.first_position = position;
                position += committed.records();
                count += usize::from(committed.leaf.kind == LeafKind::Statement);
            }
        }
    }
}

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
    let is_in_log = |object: &bytes::Bytes| {
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
fn truncate(golden: &Golden, strength: Strength, target: &Target, keep: i64) -> Result<ObjectMap, String> {
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

fn is_about(entry: &[u8], id: custody::id::WorkspaceId) -> bool {
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
    let statements = match chain {
        None => &mut ledger.statements,
        Some(id) => &mut ledger.workspaces.iter_mut().find(|w| w.id == id).ok_or("no such workspace")?.statements,
    };
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

fn swap(golden: &Golden, strength: Strength, one: &Target, other: &Target) -> Result<ObjectMap, String> {
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

fn duplicate(golden: &Golden, strength: Strength, target: &Target) -> Result<ObjectMap, String> {
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
        Target::Segment(at) | Target::Seal(at) => {
            // The same bytes under the next free number: nothing refers to them.
            let mut objects = golden.rendered.objects.clone();
            let name = target.object_name(&golden.ledger, &golden.rendered).ok_or("no such object")?;
            let bytes = objects.get(&name).ok_or("no such object")?.clone();
            let hash = custody::hash::object_hash(&bytes);
            let again = match target {
                Target::Segment(_) => custody::archive::segment(at.0, at.1 + 900, hash),
                _ => custody::archive::seal(at.0, at.1 + 900, hash),
            };
            objects.insert(again, bytes);
            Ok(objects)
        }
        _ => Err("that is not duplicated so".to_owned()),
    }
}

fn replace(
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
    let name = with.object_name(&source.ledger, &source.rendered).ok_or("no such object")?;
    let bytes = source.rendered.objects.get(&name).ok_or("no such object")?.to_vec();
    change(golden, strength, target, false, None, Box::new(move |_| Ok(bytes.clone())))
}
