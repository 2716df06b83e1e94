//! The key chain of a workspace: found from its last seal backwards, replayed from its beginning on.

use std::sync::Arc;

use super::{
    super::{
        Archive, Stop,
        segment::{self, Task},
    },
    Walk,
};
use crate::{
    archive,
    hash::object_hash,
    id::ObjectHash,
    segment::{Content, Entry, Object, Seal},
    statement::{Chain, Roots, Signed},
    verdict::{Check, Fault, ensure},
};

impl<A: Archive> Walk<'_, '_, A> {
    /// The chain's statements, found from the last head backwards, and replayed from the first one on.
    pub(super) fn read_chain(&mut self) -> Result<(), Stop> {
        self.check_creation()?;
        let mut statements = Vec::new();
        let (mut next, last) = match self.seals.last() {
            Some(seal) => (seal.workspace_chain.hash, seal.workspace_chain.count),
            None => (self.workspace.create.hash, 1),
        };
        for serial in (1..last).rev() {
            let signed = self.read_statement(serial, next)?;
            next = ObjectHash::try_from(signed.statement.previous.as_ref()).unwrap_or(ObjectHash::ZERO);
            statements.push(signed);
        }
        let place = || archive::statements(Some(self.id()));
        let created = self.workspace.create.hash;
        ensure(Check::SealWorkspaceChain, next == created, place, || (format!("created by {created}"), next))?;
        let mut roots = self.workspace.roots.clone();
        let mut chain = Chain::new(&self.log.origin, Some(self.id()));
        self.apply(&mut chain, &self.workspace.create, &mut roots)?;
        let mut following = statements.iter().rev();
        for seal in self.seals.iter() {
            while chain.head().count < seal.workspace_chain.count {
                let Some(signed) = following.next() else { break };
                self.apply(&mut chain, signed, &mut roots)?;
            }
            let name = || format!("seal of segment {}", seal.segment);
            ensure(Check::SealWorkspaceChain, chain.head() == seal.workspace_chain, name, || {
                (format!("{:?}", chain.head()), format!("{:?}", seal.workspace_chain))
            })?;
            ensure(Check::WorkspaceCreated, !chain.is_removed(), name, || {
                ("nothing more of a removed workspace", "a segment")
            })?;
            // The statements that cut this segment are signed by the root in force within it.
            if let Some(state) = self.log.ledger_after(seal.ledger_chain.count) {
                roots = state.roots.clone();
            }
        }
        self.finish_chain(chain, roots)
    }

    /// The log has the first statement in full, so its object need not be there; one that is must be that statement.
    pub(super) fn check_creation(&self) -> Result<(), Stop> {
        let hash = self.workspace.create.hash;
        let name = archive::statement(Some(self.id()), 0, hash);
        let found = self.objects.get(&name)?.map_or(hash, |bytes| object_hash(&bytes));
        Ok(ensure(Check::StatementForm, found == hash, || name, || (hash, found))?)
    }

    /// Statements that cut the last segment: they stand in no seal yet, but as its last leaves and as objects. Where that
    /// object cannot be read, whoever checks the segment says so.
    pub(super) fn finish_chain(&mut self, mut chain: Chain, mut roots: Roots) -> Result<(), Stop> {
        let cut_by = self.seals.last().map_or(0, |seal| seal.statement_count);
        let last = if cut_by > 0 { self.last_statements()? } else { Some(Vec::new()) };
        let readable = last.is_some();
        for signed in last.unwrap_or_default() {
            self.read_statement(signed.statement.serial, signed.hash)?;
            self.apply(&mut chain, &signed, &mut roots)?;
        }
        // A removal is in the log after the segment that it cuts: an archive may end between the two.
        let removed = self.workspace.removed.as_ref().map(|(_, signed)| signed.hash);
        let ended = chain.is_removed().then(|| chain.head().hash);
        let place = || format!("statements of workspace {}", self.id());
        ensure(Check::WorkspaceCreated, !readable || removed.is_none() || removed == ended, place, || {
            (format!("the end that the log names: {removed:?}"), format!("{ended:?}"))
        })?;
        self.chain = Arc::new(chain);
        Ok(())
    }

    /// Statements among the leaves of the last segment, read without believing anything yet.
    pub(super) fn last_statements(&self) -> Result<Option<Vec<Signed>>, Stop> {
        let Some(seal) = self.seals.last() else { return Ok(None) };
        let Some(entries) = self.entries_of(seal)? else { return Ok(None) };
        let statement = |entry: Entry| match entry.content {
            Content::Statement(signed) => Some(*signed),
            Content::Batch(_) => None,
        };
        Ok(Some(entries.into_iter().filter_map(statement).collect()))
    }

    /// Entries of a segment whose object has the right hash and can be taken apart, without further checks; `None` if not.
    pub(super) fn entries_of(&self, seal: &Seal) -> Result<Option<Vec<Entry>>, Stop> {
        let name = archive::segment(self.id(), seal.segment, seal.object_sha256);
        let Some(bytes) = self.objects.get(&name)?.filter(|bytes| object_hash(bytes) == seal.object_sha256) else {
            return Ok(None);
        };
        let Ok(object) = Object::parse(bytes) else { return Ok(None) };
        let mut found = Vec::new();
        for frame in &object.frames {
            match segment::read_frame(self.objects, &object, frame, &name) {
                Ok(entries) => found.extend(entries),
                Err(Stop::Fault(_)) => return Ok(None),
                Err(stop) => return Err(stop),
            }
        }
        Ok(Some(found))
    }

    pub(super) fn read_statement(&self, serial: u64, hash: ObjectHash) -> Result<Signed, Stop> {
        let name = archive::statement(Some(self.id()), serial, hash);
        let Some(bytes) = self.objects.get(&name)? else {
            return Err(
                Fault::new(Check::StatementPresent, &name, "the statement that the chain names", "no object").into()
            );
        };
        let found = object_hash(&bytes);
        ensure(Check::StatementForm, found == hash, || name.clone(), || (hash, found))?;
        Ok(Signed::parse(&bytes).map_err(|why| Fault::form(Check::StatementForm, &name, &why))?)
    }

    pub(super) fn apply(&self, chain: &mut Chain, signed: &Signed, roots: &mut Roots) -> Result<(), Stop> {
        let size = self.log.checkpoint.checkpoint.size;
        let place = || archive::statement(Some(self.id()), signed.statement.serial, signed.hash);
        let seen = signed.is_log_entry() || self.log.names_checkpoint(&signed.statement, size);
        ensure(Check::StatementCheckpoint, seen, place, || {
            ("a checkpoint of this log", format!("one of size {}", signed.statement.checkpoint_size))
        })?;
        if let Err(why) = chain.apply(signed, roots) {
            let place = archive::statement(Some(self.id()), signed.statement.serial, signed.hash);
            ensure(
                Check::WorkspaceChain,
                false,
                || place,
                || ("the next statement of the chain", format!("one that {why}")),
            )?;
        }
        Ok(())
    }

    /// The statements that stand as leaves are those of the chain, one by one.
    pub(super) fn check_statements(&self, task: &Task<'_>, found: &[ObjectHash], name: &str) -> Result<(), Stop> {
        let after = task.seal.workspace_chain.count;
        for (count, hash) in (after.saturating_add(1)..).zip(found) {
            let chained = self.chain.head_at(count).map(|head| head.hash);
            ensure(
                Check::EntryStatement,
                chained == Some(*hash),
                || name.to_owned(),
                || (format!("statement {chained:?} of the chain"), hash.to_string()),
            )?;
        }
        Ok(())
    }
}
