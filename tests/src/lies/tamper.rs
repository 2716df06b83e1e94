//! Follows recipes: on single objects, on what the ledger holds, or on what is computed from it. Edits stand here; what
//! takes whole things away, or puts them elsewhere, is in [`super::whole`].

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody::{
    batch::{BATCH_BYTES_MAX, record_leaves},
    merkle::{BatchTree, root_of},
    note::Checkpoint,
    strict::table,
    wire::LeafKind,
};

use super::{
    Golden, Lie, OTHER, ObjectMap, Recipe, Strength, again, made,
    object::Parts,
    scenario,
    target::{Target, Which},
    whole,
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
        Recipe::Scenario { name } => match made::objects(name, golden).or_else(|| again::objects(name, golden)) {
            Some(objects) => objects,
            None => {
                let ledger = golden::tell(Variant::Plain, scenario::hooks(name)?);
                Ok(render(&ledger, &mut Truth).objects)
            }
        },
        Recipe::Evidence { .. } => Err("evidence is no archive".to_owned()),
        Recipe::Known { .. } => Ok(golden.rendered.objects.clone()),
        Recipe::OtherOrigin {} => Ok(OTHER.rendered.objects.clone()),
        Recipe::Older { checkpoint } => whole::older(golden, checkpoint),
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
        Recipe::Truncate { target, keep } => whole::truncate(golden, strength, &Target::parse(target)?, *keep),
        Recipe::Remove { target } => whole::remove(golden, strength, &Target::parse(target)?),
        Recipe::Swap { target, with } => whole::swap(golden, strength, &Target::parse(target)?, &Target::parse(with)?),
        Recipe::Duplicate { target } => whole::duplicate(golden, strength, &Target::parse(target)?),
        Recipe::Replace { target, with, other_origin } => {
            let source = if *other_origin { &*OTHER } else { golden };
            whole::replace(golden, strength, &Target::parse(target)?, source, &Target::parse(with)?)
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

pub(super) type EditBytes = Box<dyn Fn(&[u8]) -> Result<Vec<u8>, String>>;

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
pub(super) fn mend(batch: &[u8]) -> Result<Vec<u8>, String> {
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
pub(super) fn change(
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
pub(super) fn present(
    golden: &Golden,
    strength: Strength,
    target: &Target,
    rendered: Rendered,
) -> Result<ObjectMap, String> {
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

pub(super) type ChainAndSerial = (Option<custody::id::WorkspaceId>, usize);

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
pub(super) fn substitute(ledger: &mut Ledger, old: &[u8], new: &[u8]) {
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
pub(super) fn relink(ledger: &mut Ledger) {
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
