//! Statements in the writer: judged against the chain, stored, made a leaf that cuts the segment, and queued for the log.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use custody::{
    id::{ObjectHash, WorkspaceId},
    note::Checkpoint,
    segment::{Content, Entry, Leaf, encode_entry as encode_leaf},
    statement::{Chain, KeyState, Refused, Roots, Signed},
    wire::{self, LeafKind, LedgerEventKind, Role, statement::Action},
};
use prost::Message as _;
use tokio::sync::oneshot;

use super::{Group, State, Writer};
use crate::{
    clock,
    log_view::Published,
    store::{Family, LeafPlace, QueueRow, Store, StoreError, as_number, leaf_key, numbered, statement_key},
    workspace::Workspace,
};

/// Where a statement has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatementState {
    /// Number of its queue row; archived when that is published.
    pub queue_number: u64,
}

/// Object bytes and queue number of a statement, from its row.
fn kept(row: Bytes) -> Result<(Bytes, u64), StoreError> {
    let number = row.get(..8).ok_or(StoreError::Damaged("a statement"))?;
    Ok((row.slice(8..), as_number(number)?))
}

/// Object bytes of a stored statement.
///
/// # Errors
/// [`StoreError`].
pub fn stored(store: &Store, chain: Option<WorkspaceId>, serial: u64) -> Result<Bytes, StoreError> {
    let row = store.value(Family::Statements, statement_key(chain, serial))?;
    kept(row.ok_or(StoreError::Damaged("a statement"))?).map(|(object, _)| object)
}

/// Replays every chain that the store has: the ledger's, and one for each workspace.
pub(super) fn load_chains(store: &Store, origin: &str, roots: Roots) -> Result<(Chain, Roots, Vec<Chain>), StoreError> {
    let damaged = || StoreError::Damaged("a statement");
    let mut ledger = Chain::new(origin, None);
    let mut now = roots;
    let mut chains: Vec<Chain> = Vec::new();
    for step in store.scan(Family::Statements, &[], &[]) {
        let (_, value) = step?;
        let signed = Signed::parse(value.get(8..).unwrap_or_default()).map_err(|_| damaged())?;
        match signed.workspace() {
            // Zeros sort first: the ledger's chain is complete before any workspace's.
            None => ledger.apply(&signed, &mut now).map_err(|_| damaged())?,
            Some(id) => {
                if chains.last().is_none_or(|chain| chain.workspace() != Some(id)) {
                    chains.push(Chain::new(origin, Some(id)));
                }
                let mut with_past = now.clone().with_past();
                let chain = chains.last_mut().ok_or_else(damaged)?;
                chain.apply(&signed, &mut with_past).map_err(|_| damaged())?;
            }
        }
    }
    Ok((ledger, now, chains))
}

/// The ledger's key chain as the store has it; `None` if it cannot have come about under these roots, which are then
/// another ledger's.
///
/// # Errors
/// [`StoreError`].
pub fn ledger_chain(store: &Store, origin: &str, mut roots: Roots) -> Result<Option<Chain>, StoreError> {
    let mut chain = Chain::new(origin, None);
    for step in store.scan(Family::Statements, &WorkspaceId::ZERO.0, &[]) {
        let object = step?.1;
        let signed = Signed::parse(object.get(8..).unwrap_or_default());
        let signed = signed.map_err(|_| StoreError::Damaged("a statement"))?;
        if chain.apply(&signed, &mut roots).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(chain))
}

/// Number of a workspace's segments that are in the log: those before the first one that still waits.
pub(super) fn published_segments(store: &Store, id: WorkspaceId, open: u64) -> Result<u64, StoreError> {
    for step in store.scan(Family::Queue, &[], &[]) {
        let row = QueueRow::decode(step?.1).map_err(|_| StoreError::Damaged("the queue"))?;
        if row.workspace.as_deref() == Some(&id.0[..]) {
            return Ok(row.segment);
        }
    }
    Ok(open)
}

/// Key of the log index of a segment's seal.
pub fn log_index_key(workspace: WorkspaceId, segment: u64) -> Vec<u8> {
    [b"log_index/", &numbered(workspace, segment)[..]].concat()
}

/// A published segment.
pub(super) fn published_segment(
    store: &Store,
    workspace: WorkspaceId,
    segment: u64,
) -> Result<Option<Published>, StoreError> {
    let seal = store.value(Family::Seals, numbered(workspace, segment))?;
    let index = store.value(Family::Meta, log_index_key(workspace, segment))?;
    let (Some(seal), Some(index)) = (seal, index) else { return Ok(None) };
    Ok(Some(Published { workspace, segment, seal, log_index: as_number(&index)? }))
}

impl Writer {
    pub(super) fn take_statement(
        &mut self,
        object: &Bytes,
        reply: oneshot::Sender<Result<StatementState, String>>,
        group: &mut Group<'_>,
    ) -> Result<(), StoreError> {
        match self.judge(object, group)? {
            Ok(state) => {
                group.chains = true;
                group.answers.push(Box::new(move |_| drop(reply.send(Ok(state)))));
            }
            Err(why) => drop(reply.send(Err(why))),
        }
        Ok(())
    }

    fn judge(&mut self, object: &Bytes, group: &mut Group<'_>) -> Result<Result<StatementState, String>, StoreError> {
        let signed = match Signed::parse(object) {
            Ok(signed) => signed,
            Err(why) => return Ok(Err(format!("the statement is not in form: {why}"))),
        };
        let chain = signed.workspace();
        let key = statement_key(chain, signed.statement.serial);
        let stands = match group.statements.get(&key) {
            Some((found, number)) => Some((found.clone(), *number)),
            None => self.parts.store.value(Family::Statements, key)?.map(kept).transpose()?,
        };
        if let Some((found, number)) = stands {
            return Ok(if found == *object {
                Ok(StatementState { queue_number: number })
            } else {
                Err("another statement has this serial (hint: prepare it again)".to_owned())
            });
        }
        if self.state != State::Serving {
            return Ok(Err(format!(
                "the ledger takes no statements: {} (hint: `ledger status` says why)",
                self.state.name()
            )));
        }
        if !self.names_a_checkpoint(&signed) {
            return Ok(Err("the statement names no checkpoint of this log (hint: prepare it again)".to_owned()));
        }
        let judged = match chain {
            None => self.take_ledger_statement(&signed, object, group),
            Some(id) => self.take_workspace_statement(id, &signed, object, group),
        };
        if let Err(why) = judged {
            return Ok(Err(format!("the statement {why}")));
        }
        let number = self.queue_next - 1;
        group.change.put(Family::Statements, key, [&number.to_be_bytes()[..], object].concat());
        group.statements.insert(key, (object.clone(), number));
        self.own.event(LedgerEventKind::Administration, action_name(&signed), "ok", |event| {
            event.workspace = chain.map(Into::into);
            event.reason.clone_from(&signed.statement.reason);
            event.ticket.clone_from(&signed.statement.ticket);
        });
        Ok(Ok(StatementState { queue_number: number }))
    }

    /// Zeros before the log began; else a checkpoint of this log.
    fn names_a_checkpoint(&self, signed: &Signed) -> bool {
        let view = self.parts.view.read().unwrap_or_else(PoisonError::into_inner);
        let size = signed.statement.checkpoint_size;
        if size == 0 {
            return view.tree.size() == 0 && signed.statement.checkpoint_hash == ObjectHash::ZERO.0[..];
        }
        let root = view.tree.root_at(size);
        let checkpoint = root.map(|root| Checkpoint { origin: self.parts.origin.clone(), size, root });
        checkpoint.is_some_and(|checkpoint| checkpoint.hash().0[..] == signed.statement.checkpoint_hash)
    }

    fn take_ledger_statement(&mut self, signed: &Signed, object: &Bytes, group: &mut Group<'_>) -> Result<(), String> {
        self.parts.own_keys.refusal(&signed.statement).map_or(Ok(()), Err)?;
        let extended = self.ledger_chain.extended(signed, &self.roots);
        let (chain, roots) = extended.map_err(|why| refusal(why, signed, &self.roots))?;
        // The statement cuts every segment; whatever comes after the cut names the new chain.
        self.cut_some(None, group);
        self.ledger_chain = Arc::new(chain);
        self.roots = roots;
        self.enqueue_statement(object, group);
        Ok(())
    }

    fn take_workspace_statement(
        &mut self,
        id: WorkspaceId,
        signed: &Signed,
        object: &Bytes,
        group: &mut Group<'_>,
    ) -> Result<(), String> {
        if let Some(Action::Create(create)) = &signed.statement.action {
            if self.workspaces.values().any(|known| known.chain.name() == create.name) {
                return Err(
                    "names a workspace that exists (hint: ledger workspace list; choose another name)".to_owned()
                );
            }
            if self.workspaces.contains_key(&id) {
                return Err("creates a workspace that exists".to_owned());
            }
            let mut chain = Chain::new(&self.parts.origin, Some(id));
            chain.apply(signed, &mut self.roots.clone()).map_err(|why| refusal(why, signed, &self.roots))?;
            self.workspaces.insert(id, Workspace::new(id, chain));
            self.order.push(id);
            self.enqueue_statement(object, group);
            return Ok(());
        }
        if let Some(Action::Enrol(enrol)) = &signed.statement.action {
            self.check_id_free(enrol)?;
        }
        let workspace = self
            .workspaces
            .get_mut(&id)
            .ok_or("is of a workspace that does not exist (hint: ledger workspace list)")?;
        let extended = workspace.chain.extended(signed, &self.roots);
        let (chain, _) = extended.map_err(|why| refusal(why, signed, &self.roots))?;
        let leaf = Leaf {
            kind: LeafKind::Statement,
            first_position: workspace.next_position,
            received_at: clock::now_us(),
            term: self.parts.term,
        };
        let bytes = encode_leaf(&leaf, object.clone());
        let place = LeafPlace { segment: workspace.open.number, leaf: workspace.open.tree.size() };
        let key = leaf_key(id, place.segment, place.leaf);
        group.change.put(Family::Entries, key, &bytes);
        group.change.put(Family::Commits, self.commit_index.to_be_bytes(), key);
        self.commit_index += 1;
        let entry = Entry { leaf, content: Content::Statement(Box::new(signed.clone())) };
        workspace.open.take(&entry, bytes.len());
        let removed = chain.is_removed();
        // Cut under the chain as it held within the segment; the new one holds from the next on.
        self.cut(id, group);
        if let Some(workspace) = self.workspaces.get_mut(&id) {
            workspace.chain = Arc::new(chain);
        }
        if removed {
            self.enqueue_statement(object, group);
        }
        Ok(())
    }
}

impl Writer {
    /// The ledger's own batches stand in any workspace under its record key's gateway id: no gateway has the same.
    fn check_id_free(&self, enrol: &wire::Enrol) -> Result<(), String> {
        let own = |key: &KeyState| key.role == Role::Record && key.gateway.map(Bytes::from) == enrol.gateway;
        if enrol.role() == Role::Gateway && self.ledger_chain.keys().any(|(_, key)| own(key)) {
            return Err("enrols a gateway under the ledger's own id (hint: make another gateway id)".to_owned());
        }
        Ok(())
    }
}

/// What is wrong with a statement, for whoever handed it in.
fn refusal(why: Refused, signed: &Signed, roots: &Roots) -> String {
    if why.is_of_signer() {
        let era = roots.current();
        return format!(
            "{why} (hint: the root of era {era} signs now, in a succession its successor; what an earlier root signs is refused)"
        );
    }
    let shows = match &signed.statement.action {
        Some(Action::Hold(_) | Action::Release(_)) => "hold",
        Some(Action::Delegate(_) | Action::Enrol(_) | Action::Retire(_) | Action::Revoke(_) | Action::Suspect(_)) => {
            "key"
        }
        _ => "statement",
    };
    let of = if signed.workspace().is_some() { " --workspace NAME" } else { "" };
    format!("{why} (hint: `ledger {shows} list{of}` shows what stands; if others signed meanwhile, prepare it again)")
}

/// The verb of a statement, as administration's record has it.
fn action_name(signed: &Signed) -> &'static str {
    match &signed.statement.action {
        Some(Action::Create(_)) => "workspace.create",
        Some(Action::Remove(_)) => "workspace.remove",
        Some(Action::Delegate(_)) => "registrar.delegate",
        Some(Action::Enrol(_)) => "key.enrol",
        Some(Action::Retire(_)) => "key.retire",
        Some(Action::Revoke(_)) => "key.revoke",
        Some(Action::Suspect(_)) => "key.suspect",
        Some(Action::Hold(_)) => "hold.set",
        Some(Action::Release(_)) => "hold.release",
        Some(Action::SucceedRoot(_)) => "root.succeed",
        Some(Action::Incarnation(_)) => "ledger.incarnation",
        None => "statement",
    }
}

impl Writer {
    /// Object bytes of a statement.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn stored_statement(&self, chain: Option<WorkspaceId>, serial: u64) -> Result<Bytes, StoreError> {
        stored(&self.parts.store, chain, serial)
    }
}
