//! Gateways' streams in the writer: welcome, receipts, statements, archived news. Everything here shows heads, so it runs
//! only after the write that the heads cover has returned.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::PoisonError,
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    head::{Head, to_path},
    id::{Epoch, GatewayId, WorkspaceId},
    wire::{self, RejectReason, from_ledger::Message},
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};

use super::{
    Opening, State, StreamId, Unopened, Writer,
    held::{Judged, KnownHeads},
    statements,
};
use crate::{
    admit::{self, REMOVED},
    clock,
    log_view::Published,
    store::{EpochRow, Store, StoreError},
    workspace::Workspace,
};

/// A gateway that is connected.
pub(super) struct Stream {
    pub(super) workspace: WorkspaceId,
    pub(super) gateway: GatewayId,
    /// Last head that was sent.
    head: Option<Head>,
    /// All that was sent, and what it brought that is good.
    pub(super) known: KnownHeads,
    ledger_statements: u64,
    workspace_statements: u64,
    outbox: mpsc::Sender<wire::FromLedger>,
    /// Dropped with the stream, after the outbox: its task ends.
    _alive: watch::Sender<()>,
}

impl Writer {
    fn sign_head(&self, workspace: &Workspace) -> (Head, Bytes) {
        let unfenced = !self.parts.fence.is_fresh();
        let head = workspace.head(self.standing(), self.head_key_id, self.parts.term, clock::now_us(), unfenced);
        let signed = head.sign(&self.parts.head_key).into();
        (head, signed)
    }

    pub(super) fn answer(
        &mut self,
        receipts: BTreeMap<StreamId, Vec<wire::BatchInclusion>>,
        touched: &BTreeSet<WorkspaceId>,
    ) -> Result<(), StoreError> {
        let mut heads: HashMap<WorkspaceId, (Head, Bytes)> = HashMap::new();
        for id in touched {
            if let Some(workspace) = self.workspaces.get(id) {
                heads.insert(*id, self.sign_head(workspace));
            }
        }
        for (stream, mut batches) in receipts {
            let Some(id) = self.streams.get(&stream).map(|s| s.workspace) else { continue };
            let Some(workspace) = self.workspaces.get(&id) else { continue };
            let (head, signed) = heads.entry(id).or_insert_with(|| self.sign_head(workspace)).clone();
            for inclusion in &mut batches {
                workspace.complete_inclusion(&self.parts.store, inclusion)?;
            }
            self.send_receipt(stream, head, signed, batches)?;
        }
        Ok(())
    }

    /// Sends what the stream lacks of the chains, then the receipt.
    fn send_receipt(
        &mut self,
        id: StreamId,
        head: Head,
        signed: Bytes,
        batches: Vec<wire::BatchInclusion>,
    ) -> Result<(), StoreError> {
        self.send_statements(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let receipt = receipt(&self.parts.store, workspace, stream.head.as_ref(), signed.clone(), batches)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head = Some(head);
            stream.known.learn(signed);
        }
        self.send(id, Message::Receipt(receipt.encode_to_vec().into()));
        Ok(())
    }

    /// Never waits: a stream that does not read what it asked for is closed.
    pub(super) fn send(&mut self, id: StreamId, message: Message) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.outbox.try_send(wire::FromLedger { message: Some(message) }).is_err() {
            tracing::warn!(workspace = %stream.workspace, gateway = %stream.gateway, "the stream does not keep up: closed");
            self.streams.remove(&id);
        }
    }

    fn send_statements(&mut self, id: StreamId) -> Result<(), StoreError> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let chains = [
            (None, stream.ledger_statements, self.ledger_chain.head().count),
            (Some(workspace.id), stream.workspace_statements, workspace.chain.head().count),
        ];
        for (chain, from, to) in chains {
            for serial in from..to {
                let object = statements::stored(&self.parts.store, chain, serial)?;
                self.send(id, Message::Statement(object));
            }
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            (stream.ledger_statements, stream.workspace_statements) = (chains[0].2, chains[1].2);
        }
        Ok(())
    }

    pub(super) fn open(&mut self, opening: Opening) -> Result<(), StoreError> {
        let Opening { stream, workspace: id, gateway, last_head, outbox, alive, known, in_flight, reply, .. } = opening;
        let head = match self.may_open(id, gateway, last_head.as_deref())? {
            Ok(head) => head,
            Err(why) => {
                drop(reply.send(Err(why)));
                return Ok(());
            }
        };
        if let (Some(held), Some(_)) = (&last_head, &head) {
            known.learn(held.bytes().clone());
        }
        let workspace = self.workspaces.get(&id).ok_or(StoreError::Damaged("a workspace"))?;
        let row = workspace.gateways.get(&gateway).and_then(|g| {
            let epoch = g.numbering.last_opened?;
            Some((epoch, g.rows.get(&epoch)?.clone()))
        });
        drop(reply.send(Ok(())));
        let entry = Stream {
            workspace: id,
            gateway,
            head,
            ledger_statements: opening.ledger_statements,
            workspace_statements: opening.workspace_statements,
            known,
            outbox,
            _alive: alive,
        };
        // One stream for each gateway: the newest one is the one that lives. Two machines with one gateway's key show here
        // alone as long as each takes up where the other stopped.
        let before = self.streams.len();
        self.streams.retain(|_, other| (other.workspace, other.gateway) != (id, gateway));
        if self.streams.len() < before {
            self.parts.metrics.add("custody_streams_replaced_total", 1);
            tracing::warn!(workspace = %id, %gateway, "a new stream of this gateway replaces its older one");
        }
        self.streams.insert(stream, entry);
        self.welcome(stream, row, in_flight)
    }

    /// Whether a stream may be opened; the head that its receipts go on from, or why not.
    fn may_open(
        &mut self,
        id: WorkspaceId,
        gateway: GatewayId,
        last_head: Option<&admit::Held>,
    ) -> Result<Result<Option<Head>, Unopened>, StoreError> {
        // Heads are signed by whoever may extend the log, and by nobody else.
        if self.state != State::Serving {
            let state = self.state.name();
            return Ok(Err(Unopened::Later(format!(
                "the ledger takes no batches: {state} (hint: `ledger status` says why)"
            ))));
        }
        let refused = |why: &str| Ok(Err(Unopened::Refused(why.to_owned())));
        let Some(workspace) = self.workspaces.get(&id) else {
            return refused("no such workspace (hint: ledger workspace add)");
        };
        if let Err(reject) = admit::may_come(&workspace.chain, gateway) {
            return refused(&reject.detail);
        }
        let Some(held) = last_head else { return Ok(Ok(None)) };
        Ok(match self.judge_head(id, gateway, held)? {
            Judged::Good => Ok(Some(held.head().clone())),
            Judged::Superseded => Ok(None),
            Judged::Later => {
                Err(Unopened::Later("too many old heads were looked up just now (hint: try again)".to_owned()))
            }
            Judged::Refused(reject) => return refused(&reject.detail),
            Judged::Lost => return refused("the ledger cannot extend the head that this gateway holds"),
        })
    }

    fn welcome(
        &mut self,
        id: StreamId,
        row: Option<(Epoch, EpochRow)>,
        in_flight: (u32, u32),
    ) -> Result<(), StoreError> {
        self.send_statements(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let (head, signed) = self.sign_head(workspace);
        let receipt = receipt(&self.parts.store, workspace, stream.head.as_ref(), signed.clone(), Vec::new())?;
        let published = workspace.published;
        let workspace_id = workspace.id;
        let welcome = wire::Welcome {
            receipt: receipt.encode_to_vec().into(),
            epoch: row.as_ref().map_or_else(Bytes::new, |(epoch, _)| (*epoch).into()),
            next_batch: row.as_ref().map_or(0, |(_, row)| row.last_batch + 1),
            last_header_hash: row.map_or_else(Bytes::new, |(_, row)| row.last_header_hash),
            batches_in_flight_max: in_flight.0,
            bytes_in_flight_max: in_flight.1,
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head = Some(head);
            stream.known.learn(signed);
        }
        self.send(id, Message::Welcome(welcome));
        // Everything up to the newest archived segment is archived: one receipt tells the gateway so.
        if let Some(segment) = published.checked_sub(1)
            && let Some(done) = statements::published_segment(&self.parts.store, workspace_id, segment)?
        {
            self.send_archived(id, &done);
        }
        Ok(())
    }

    pub(super) fn tell_archived(&mut self, published: &[Published]) -> Result<(), StoreError> {
        for done in published {
            let Some(workspace) = self.workspaces.get_mut(&done.workspace) else { continue };
            workspace.take_published(done.segment);
            self.parts.metrics.add("custody_segments_archived_total", 1);
            let Some(workspace) = self.workspaces.get(&done.workspace) else { continue };
            let (head, signed) = self.sign_head(workspace);
            let of_workspace = |(id, stream): (&StreamId, &Stream)| (stream.workspace == done.workspace).then_some(*id);
            let streams: Vec<StreamId> = self.streams.iter().filter_map(of_workspace).collect();
            for id in streams {
                // The archived segment must lie in the history of the gateway's head: send a newer one if it does not.
                let behind =
                    self.streams.get(&id).is_some_and(|s| s.head.as_ref().is_none_or(|h| h.segment <= done.segment));
                if behind {
                    self.send_receipt(id, head.clone(), signed.clone(), Vec::new())?;
                }
                self.send_archived(id, done);
            }
            self.end_streams_of_removed(done.workspace);
        }
        Ok(())
    }

    /// Streams of a workspace that was removed live on until all of it is archived: gateways then know that they may let go
    /// of what they hold, and could not come back to hear it.
    fn end_streams_of_removed(&mut self, id: WorkspaceId) {
        let Some(workspace) = self.workspaces.get(&id) else { return };
        if !workspace.chain.is_removed() || workspace.published < workspace.open.number {
            return;
        }
        let of_workspace = |(stream, of): (&StreamId, &Stream)| (of.workspace == id).then_some(*stream);
        let streams: Vec<StreamId> = self.streams.iter().filter_map(of_workspace).collect();
        for stream in streams {
            let (reason, detail) = (RejectReason::Removed.into(), REMOVED.to_owned());
            self.send(stream, Message::Rejection(wire::Rejection { reason, detail, ..Default::default() }));
            self.streams.remove(&stream);
        }
    }

    fn send_archived(&mut self, id: StreamId, done: &Published) {
        let Some(stream) = self.streams.get(&id) else { return };
        let Some(head) = &stream.head else { return };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return };
        let receipt = {
            let view = self.parts.view.read().unwrap_or_else(PoisonError::into_inner);
            let Some(checkpoint) = &view.checkpoint else { return };
            let log_path = view.tree.inclusion(done.log_index, checkpoint.checkpoint.size);
            let history_path = workspace.history.inclusion(done.segment, head.segment);
            let (Some(log_path), Some(history_path)) = (log_path, history_path) else { return };
            wire::ArchivedReceipt {
                version: FORMAT_VERSION,
                seal: done.seal.clone(),
                log_index: done.log_index,
                log_path: to_path(&log_path),
                checkpoint: checkpoint.to_bytes().into(),
                history_size: head.segment,
                history_path: to_path(&history_path),
            }
        };
        self.send(id, Message::Archived(receipt.encode_to_vec().into()));
    }
}

/// A receipt under the newest head, consistent with the last one sent.
fn receipt(
    store: &Store,
    workspace: &Workspace,
    last: Option<&Head>,
    signed: Bytes,
    batches: Vec<wire::BatchInclusion>,
) -> Result<wire::Receipt, StoreError> {
    let consistency = match last {
        Some(head) => workspace.consistency(store, head.segment, head.size)?,
        None => None,
    };
    Ok(wire::Receipt { version: FORMAT_VERSION, signed_head: signed, consistency, batches })
}
