//! The log: checkpoint, entries, tiles, the ledger's own key chain, terms, incarnations, and what it says of workspaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{Archive, LedgerState, Stop};
use crate::{
    archive,
    hash::Use,
    id::{ObjectHash, RootHash, WorkspaceId},
    log::{Entry, LOG_ENTRIES_MAX, TILE_WIDTH, encode_bundle, parse_bundle, tile},
    merkle::{LogTree, Tree, log_leaf},
    note::{Checkpoint, SignedCheckpoint, TYPE_COSIGNATURE, cosignature_time, note_key_hash},
    policy::Policy,
    statement::{Chain, KeyState, Roots, Signed},
    verdict::{Check, Fault, Verdict, ensure},
    wire::{self, Role, statement::Action},
};

/// What the log says of one workspace.
#[derive(Clone, Debug)]
pub struct WorkspaceLog {
    /// Its id.
    pub id: WorkspaceId,
    /// The statement that created it.
    pub create: Signed,
    /// Roots in force then.
    pub roots: Roots,
    /// Log index, and hash, of each segment's seal, by segment number.
    pub seals: Vec<(u64, ObjectHash)>,
    /// The statement that removed it, with its log index.
    pub removed: Option<(u64, Signed)>,
}

impl WorkspaceLog {
    /// Its name.
    pub fn name(&self) -> &str {
        match &self.create.statement.action {
            Some(Action::Create(create)) => &create.name,
            _ => "",
        }
    }
}

/// A start of the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Term {
    /// Log index of its entry.
    pub index: u64,
    /// Its number.
    pub number: u64,
    /// When it began, by the ledger's clock.
    pub at: u64,
}

/// A valid cosignature by a witness of the policy.
#[derive(Clone, Debug)]
pub struct Cosignature {
    /// The object that it stands in.
    pub place: String,
    /// Of which checkpoint.
    pub size: u64,
    /// Name of the witness.
    pub witness: String,
    /// Seconds, by the witness's clock.
    pub at_s: u64,
}

/// A log that verified.
#[derive(Clone, Debug)]
pub struct Log {
    /// Name of the log.
    pub origin: String,
    /// The checkpoint that everything hangs from.
    pub checkpoint: SignedCheckpoint,
    /// Cosignatures of it and of earlier checkpoints, in the order of their objects.
    pub cosignatures: Vec<Cosignature>,
    /// All entries' hashes.
    pub tree: Tree<LogTree>,
    /// The ledger's keys over time, ascending; the first holds before any statement.
    pub ledger: Vec<LedgerState>,
    /// Each start of the ledger, in order.
    pub terms: Vec<Term>,
    /// Log index of each incarnation, the first being number 1.
    pub incarnations: Vec<u64>,
    /// In the order of creation.
    pub workspaces: Vec<WorkspaceLog>,
}

impl Log {
    /// The ledger's keys as the first `size` entries leave them.
    pub fn ledger_at(&self, size: u64) -> Option<&LedgerState> {
        self.ledger.iter().rev().find(|state| state.from_index <= size)
    }

    /// The ledger's keys after `count` statements of their chain.
    pub fn ledger_after(&self, count: u64) -> Option<&LedgerState> {
        self.ledger.iter().find(|state| state.chain.head().count == count)
    }

    /// Whether a statement names a checkpoint among the first `size` entries; zeros only where no term had begun.
    pub(super) fn names_checkpoint(&self, said: &wire::Statement, size: u64) -> bool {
        let named = said.checkpoint_size;
        if named == 0 {
            let genesis = self.terms.iter().all(|term| term.index >= size);
            return genesis && said.checkpoint_hash == ObjectHash::ZERO.0[..];
        }
        let root = self.tree.root_at(named).filter(|_| named <= size);
        root.is_some_and(|root| {
            let checkpoint = Checkpoint { origin: self.origin.clone(), size: named, root };
            checkpoint.hash().0[..] == said.checkpoint_hash
        })
    }

    /// Number of the incarnation in force before entry `index`.
    pub fn incarnation_at(&self, index: u64) -> u64 {
        self.incarnations.iter().filter(|at| **at < index).count() as u64
    }

    pub(super) fn read(
        objects: &impl Archive,
        policy: &Policy,
        roots: Roots,
        at_size: Option<u64>,
        verdict: &mut Verdict,
    ) -> Result<Self, Stop> {
        let names = objects.list(archive::CHECKPOINTS)?;
        let mut sizes = Vec::new();
        for name in names {
            match archive::number(&name) {
                Some(size) => sizes.push(size),
                None => {
                    let place = format!("{}/{name}", archive::CHECKPOINTS);
                    verdict.find("unreferenced", None, place, "not the name of a checkpoint".to_owned());
                }
            }
        }
        sizes.sort_unstable();
        let size = choose_size(&sizes, at_size)?;
        let checkpoint = read_checkpoint(objects, policy, size)?;
        let (entries, tree) = read_entries(objects, &checkpoint)?;
        check_tiles(objects, &entries, &tree, verdict)?;
        let mut log = Self {
            origin: policy.origin.clone(),
            checkpoint,
            cosignatures: Vec::new(),
            tree,
            ledger: vec![LedgerState { from_index: 0, chain: Arc::new(Chain::new(&policy.origin, None)), roots }],
            terms: Vec::new(),
            incarnations: Vec::new(),
            workspaces: Vec::new(),
        };
        log.take_entries(&entries)?;
        log.check_signature(&log.checkpoint)?;
        for other in sizes.into_iter().filter(|other| *other < size) {
            log.check_other(&read_checkpoint(objects, policy, other)?)?;
        }
        log.read_cosignatures(objects, policy, verdict)?;
        log.check_statement_objects(objects, verdict)?;
        log.find_doubt(verdict);
        verdict.counts.log_entries = size;
        Ok(log)
    }

    fn take_entries(&mut self, entries: &[Bytes]) -> Result<(), Stop> {
        let mut places: BTreeMap<WorkspaceId, usize> = BTreeMap::new();
        let mut names: BTreeSet<String> = BTreeSet::new();
        for (index, bytes) in (0_u64..).zip(entries) {
            let place = || format!("log entry {index}");
            let entry = Entry::parse(bytes).map_err(|why| Fault::form(Check::LogEntryForm, place(), &why))?;
            if let Entry::Statement(signed) = &entry {
                ensure(Check::StatementCheckpoint, self.names_checkpoint(&signed.statement, index), place, || {
                    (
                        "a checkpoint of this log from before",
                        format!("one of size {}", signed.statement.checkpoint_size),
                    )
                })?;
            }
            match entry {
                Entry::TermStart(start) => {
                    let last = self.terms.last().map_or(0, |term| term.number);
                    let incarnation = self.incarnation_at(index);
                    let holds = start.term > last && start.incarnation == incarnation;
                    ensure(Check::TermOrder, holds, place, || {
                        let found = format!("term {} of incarnation {}", start.term, start.incarnation);
                        (format!("a term above {last} of incarnation {incarnation}"), found)
                    })?;
                    self.terms.push(Term { index, number: start.term, at: start.at });
                }
                Entry::Statement(signed) if signed.workspace().is_none() => {
                    self.take_ledger_statement(index, &signed)?
                }
                Entry::Statement(signed) => self.take_workspace_statement(index, *signed, &mut places, &mut names)?,
                Entry::Seal { workspace, segment, seal } => {
                    let known = places.get(&workspace).and_then(|at| self.workspaces.get_mut(*at));
                    let expected = known.as_ref().map(|w| w.seals.len() as u64);
                    let open = known.as_ref().is_some_and(|w| w.removed.is_none());
                    ensure(Check::SealOrder, expected == Some(segment) && open, place, || match expected {
                        Some(next) if open => {
                            (format!("segment {next} of workspace {workspace}"), format!("segment {segment}"))
                        }
                        Some(_) => ("nothing more of a removed workspace".to_owned(), format!("segment {segment}")),
                        None => ("a workspace that was created".to_owned(), format!("workspace {workspace}")),
                    })
                    .map_err(|fault| fault.of(workspace))?;
                    if let Some(known) = known {
                        known.seals.push((index, seal));
                    }
                }
            }
        }
        Ok(())
    }

    fn take_ledger_statement(&mut self, index: u64, signed: &Signed) -> Result<(), Stop> {
        let place = || format!("log entry {index}");
        let Some(state) = self.ledger.last() else { return Ok(()) };
        let (mut chain, mut roots) = (Chain::clone(&state.chain), state.roots.clone());
        if let Err(why) = chain.apply(signed, &mut roots) {
            ensure(Check::LedgerChain, false, place, || {
                ("the next statement of the ledger's chain", format!("one that {why}"))
            })?;
        }
        if let Some(Action::Incarnation(said)) = &signed.statement.action {
            let root = self.tree.root_at(said.log_size).filter(|_| said.log_size <= index);
            let holds = root.is_some_and(|root| root.0 == *said.log_root)
                && self.last_seals_hash(said.log_size) == *said.last_seals_hash;
            ensure(Check::Incarnation, holds, place, || {
                ("the log as it was when it was continued", format!("another at size {}", said.log_size))
            })?;
            self.incarnations.push(index);
        }
        self.ledger.push(LedgerState { from_index: index.saturating_add(1), chain: Arc::new(chain), roots });
        Ok(())
    }

    fn take_workspace_statement(
        &mut self,
        index: u64,
        signed: Signed,
        places: &mut BTreeMap<WorkspaceId, usize>,
        names: &mut BTreeSet<String>,
    ) -> Result<(), Stop> {
        let place = || format!("log entry {index}");
        let Some(id) = signed.workspace() else { return Ok(()) };
        let refuse = |found: String| {
            Fault::new(Check::WorkspaceCreated, place(), "a new workspace, or the end of one", found).of(id)
        };
        match &signed.statement.action {
            Some(Action::Create(create)) => {
                let Some(state) = self.ledger.last() else { return Ok(()) };
                let roots = state.roots.clone();
                let mut chain = Chain::new(&self.origin, Some(id));
                if let Err(why) = chain.apply(&signed, &mut roots.clone()) {
                    ensure(Check::WorkspaceCreated, false, place, || {
                        ("a statement by the root", format!("one that {why}"))
                    })?;
                }
                let fresh = !places.contains_key(&id) && names.insert(create.name.clone());
                ensure(Check::WorkspaceCreated, fresh, place, || {
                    ("an id and a name that are new", format!("workspace {id} named {}", create.name))
                })?;
                places.insert(id, self.workspaces.len());
                self.workspaces.push(WorkspaceLog { id, create: signed, roots, seals: Vec::new(), removed: None });
            }
            Some(Action::Remove(_)) => {
                let known = places.get(&id).and_then(|at| self.workspaces.get_mut(*at));
                let known = known.filter(|w| w.removed.is_none());
                known.ok_or_else(|| refuse("the end of a workspace that is not there".to_owned()))?.removed =
                    Some((index, signed));
            }
            _ => return Err(refuse("another statement".to_owned()).into()),
        }
        Ok(())
    }

    /// Hash over the last seal of each workspace among the first `size` entries, by ascending id.
    fn last_seals_hash(&self, size: u64) -> [u8; 32] {
        let mut last: Vec<_> = self
            .workspaces
            .iter()
            .filter_map(|w| {
                let before = w.seals.iter().zip(0_u64..).filter(|((index, _), _)| *index < size);
                before.last().map(|((_, hash), segment)| (w.id, segment, *hash))
            })
            .collect();
        last.sort_unstable();
        last_seals_hash(&last)
    }

    fn check_signature(&self, signed: &SignedCheckpoint) -> Result<(), Stop> {
        let size = signed.checkpoint.size;
        let keys = self.ledger_at(size).into_iter().flat_map(|state| state.chain.keys());
        let mut valid = keys.filter(|(_, key)| key.role == Role::Log && !key.revoked);
        let holds = valid.any(|(_, key)| signed.is_signed_by(key.public_key));
        ensure(
            Check::CheckpointSignature,
            holds,
            || archive::checkpoint(size),
            || ("a signature by a log key in force there", "none"),
        )?;
        Ok(())
    }

    /// The checkpoint that everything hangs from may be of a key that is in doubt there: then nothing is authorised for sure.
    fn find_doubt(&self, verdict: &mut Verdict) {
        let size = self.checkpoint.checkpoint.size;
        let keys = self.ledger.last().into_iter().flat_map(|state| state.chain.keys());
        let doubted = |key: &KeyState| key.role == Role::Log && key.suspect_since.is_some_and(|since| size > since);
        for (id, _) in keys.filter(|(_, key)| doubted(key) && self.checkpoint.is_signed_by(key.public_key)) {
            let text = format!("the checkpoint is signed by key {id}, which is in doubt there");
            verdict.find("suspect-key", None, archive::checkpoint(size), text);
            verdict.suspect_batches = verdict.suspect_batches.saturating_add(1);
        }
    }

    fn check_other(&self, other: &SignedCheckpoint) -> Result<(), Stop> {
        self.check_signature(other)?;
        let size = other.checkpoint.size;
        let root = self.tree.root_at(size).unwrap_or(RootHash::ZERO);
        ensure(
            Check::Fork,
            root == other.checkpoint.root,
            || archive::checkpoint(size),
            || (format!("root {root}"), format!("root {}, signed by the log: two histories", other.checkpoint.root)),
        )?;
        Ok(())
    }

    fn read_cosignatures(
        &mut self,
        objects: &impl Archive,
        policy: &Policy,
        verdict: &mut Verdict,
    ) -> Result<(), Stop> {
        let witnesses = policy.witness_keys().unwrap_or_default();
        for name in objects.list(archive::COSIGNATURES)? {
            let place = format!("{}/{name}", archive::COSIGNATURES);
            let size = archive::number(name.split_once('/').map_or(name.as_str(), |(size, _)| size));
            let Some(root) = size.and_then(|size| self.tree.root_at(size)) else {
                verdict.find("unreferenced", None, place, "a cosignature of no checkpoint in this log".to_owned());
                continue;
            };
            let mut checkpoint = self.checkpoint.checkpoint.clone();
            (checkpoint.size, checkpoint.root) = (size.unwrap_or(0), root);
            let mut note = checkpoint.text().into_bytes();
            note.push(b'\n');
            note.extend_from_slice(&objects.get(&place)?.unwrap_or_default());
            let signed = SignedCheckpoint::parse(&note)
                .map_err(|why| Fault::new(Check::Cosignature, &place, "signature lines", why))?;
            let mut of_witness = false;
            let mut counts = false;
            for line in signed.signatures {
                // A line of another name or key is another's business, as C2SP has it.
                let Some((witness, key)) = witnesses.iter().find(|(name, _)| *name == line.name) else { continue };
                of_witness = true;
                if line.key_hash != note_key_hash(witness, TYPE_COSIGNATURE, *key) {
                    continue;
                }
                let at_s = cosignature_time(&checkpoint, &line, witness, *key);
                ensure(
                    Check::Cosignature,
                    at_s.is_some(),
                    || place.clone(),
                    || ("the witness's signature", "one that does not verify"),
                )?;
                counts = true;
                let valid =
                    |at_s| Cosignature { place: place.clone(), size: checkpoint.size, witness: witness.clone(), at_s };
                self.cosignatures.extend(at_s.map(valid));
            }
            let named = |(name, _): &(String, _)| archive::cosignature(checkpoint.size, name) == place;
            if !counts && (of_witness || witnesses.iter().any(named)) {
                let text =
                    "stands under the name of a witness of the policy, but no line in it is by that witness's key";
                verdict.find("uncounted", None, place, text.to_owned());
            }
        }
        Ok(())
    }

    /// The ledger's statements, which the log has in full, are also objects of their own.
    fn check_statement_objects(&self, objects: &impl Archive, verdict: &mut Verdict) -> Result<(), Stop> {
        let folder = archive::statements(None);
        let mut strange: BTreeSet<String> =
            objects.list(&folder)?.into_iter().map(|name| format!("{folder}/{name}")).collect();
        for state in self.ledger.iter().skip(1) {
            let head = state.chain.head();
            let name = archive::statement(None, head.count.saturating_sub(1), head.hash);
            strange.remove(&name);
            let object = objects.get(&name)?;
            let found = object.as_ref().map(|bytes| crate::hash::object_hash(bytes));
            ensure(
                Check::LedgerStatement,
                found == Some(head.hash),
                || name.clone(),
                || {
                    (
                        format!("SHA-256 {}", head.hash),
                        found.map_or_else(|| "no object".to_owned(), |h| format!("SHA-256 {h}")),
                    )
                },
            )?;
        }
        for name in strange {
            verdict.find("unreferenced", None, name, "no statement on the ledger's keys".to_owned());
        }
        Ok(())
    }
}

/// Hash over `(workspace, segment, seal)`, which are in ascending order.
pub fn last_seals_hash(last: &[(WorkspaceId, u64, ObjectHash)]) -> [u8; 32] {
    let start = Use::LastSeals.hasher();
    last.iter().fold(start, |input, (id, segment, hash)| input.fixed(&id.0).number(*segment).fixed(&hash.0)).finish()
}

/// The size of the checkpoint that is verified.
fn choose_size(sizes: &[u64], at_size: Option<u64>) -> Result<u64, Fault> {
    let fault =
        |wanted: String, found: String| Fault::new(Check::CheckpointPresent, archive::CHECKPOINTS, wanted, found);
    let (Some(least), Some(greatest)) = (sizes.first(), sizes.last()) else {
        return Err(fault("a checkpoint".to_owned(), "none".to_owned()));
    };
    match at_size {
        None => Ok(*greatest),
        Some(size) if sizes.contains(&size) => Ok(size),
        // No ledger signs a checkpoint of every size: that there is none of this one shows nothing to be false.
        Some(size) => {
            let found = format!("{} checkpoints of sizes from {least} to {greatest}", sizes.len());
            Err(fault(format!("a checkpoint of size {size}, which was asked for"), found).undecided())
        }
    }
}

fn read_checkpoint(objects: &impl Archive, policy: &Policy, size: u64) -> Result<SignedCheckpoint, Stop> {
    let name = archive::checkpoint(size);
    let bytes = objects.get(&name)?.unwrap_or_default();
    let signed = SignedCheckpoint::parse(&bytes)
        .map_err(|why| Fault::new(Check::CheckpointForm, &name, "a signed note", why))?;
    let found = &signed.checkpoint;
    ensure(
        Check::CheckpointForm,
        found.size == size && size <= LOG_ENTRIES_MAX,
        || name.clone(),
        || (format!("size {size}, at most {LOG_ENTRIES_MAX}"), format!("size {}", found.size)),
    )?;
    ensure(
        Check::CheckpointOrigin,
        found.origin == policy.origin,
        || name.clone(),
        || (&policy.origin, &found.origin),
    )?;
    Ok(signed)
}

fn read_entries(objects: &impl Archive, signed: &SignedCheckpoint) -> Result<(Vec<Bytes>, Tree<LogTree>), Stop> {
    let size = signed.checkpoint.size;
    let mut entries: Vec<Bytes> = Vec::new();
    let mut number = 0_u64;
    while (entries.len() as u64) < size {
        let width = size.saturating_sub(entries.len() as u64).min(TILE_WIDTH);
        entries.extend(read_bundle(objects, number, width)?);
        number = number.saturating_add(1);
    }
    let tree: Tree<LogTree> = entries.iter().map(|entry| log_leaf(entry).0).collect();
    let root = tree.root();
    ensure(
        Check::LogRoot,
        root == signed.checkpoint.root,
        || archive::checkpoint(size),
        || (format!("root {}", signed.checkpoint.root), format!("entries with root {root}")),
    )?;
    Ok((entries, tree))
}

/// The first `width` entries of a bundle, from the object of that width or, if it is gone, from the narrowest wider one.
fn read_bundle(objects: &impl Archive, number: u64, width: u64) -> Result<Vec<Bytes>, Stop> {
    let exact = archive::tile(None, number, width);
    let widths = width..=TILE_WIDTH;
    for candidate in widths {
        let name = archive::tile(None, number, candidate);
        if let Some(bytes) = objects.get(&name)? {
            let parsed = parse_bundle(bytes, candidate);
            let mut entries =
                parsed.map_err(|why| Fault::new(Check::LogEntries, &name, format!("{candidate} entries"), why))?;
            entries.truncate(usize::try_from(width).unwrap_or(usize::MAX));
            return Ok(entries);
        }
    }
    Err(Fault::new(Check::LogEntries, exact, format!("{width} entries"), "no object").into())
}

/// Every tile and bundle that is there holds what the entries say.
fn check_tiles(
    objects: &impl Archive,
    entries: &[Bytes],
    tree: &Tree<LogTree>,
    verdict: &mut Verdict,
) -> Result<(), Stop> {
    for name in objects.list(archive::TILES)? {
        let place = format!("{}/{name}", archive::TILES);
        let Some((level, number, width)) = parse_tile_name(&name) else {
            verdict.find("unreferenced", None, place, "not the name of a tile".to_owned());
            continue;
        };
        let expected = match level {
            None => {
                let first = number.checked_mul(TILE_WIDTH).and_then(|first| usize::try_from(first).ok());
                let end = first.and_then(|first| first.checked_add(usize::try_from(width).ok()?));
                first.zip(end).and_then(|(first, end)| entries.get(first..end)).map(encode_bundle)
            }
            Some(level) => tile(tree, level, number, width).map(|hashes| hashes.concat()),
        };
        let Some(expected) = expected else {
            verdict.find("unreferenced", None, place, "beyond the checkpoint".to_owned());
            continue;
        };
        let found = objects.get(&place)?;
        ensure(
            Check::LogTile,
            found.as_deref() == Some(expected.as_slice()),
            || place.clone(),
            || ("the hashes or entries of this tree", "others"),
        )?;
    }
    Ok(())
}

/// Level (`None` for entries), number and width of a tile from its path below `log/tile`.
fn parse_tile_name(name: &str) -> Option<(Option<u32>, u64, u64)> {
    let (level, rest) = name.split_once('/')?;
    let level = if level == "entries" { None } else { Some(u32::try_from(archive::number(level)?).ok()?) };
    let (path, width) = match rest.split_once(".p/") {
        Some((path, width)) => (path, archive::number(width).filter(|w| (1..TILE_WIDTH).contains(w))?),
        None => (rest, TILE_WIDTH),
    };
    let number: u64 = path.replace(['x', '/'], "").parse().ok()?;
    let canonical = archive::tile(level, number, width);
    (canonical.strip_prefix(archive::TILES)?.strip_prefix('/') == Some(name)).then_some((level, number, width))
}
