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
    id::{GatewayId, WorkspaceId},
    merkle::{SegmentTree, Tree},
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
    store::StoreError,
    workspace::Workspace,
};

/// A gateway that is connected.
pub(super) struct Stream {
    pub(super) workspace: WorkspaceId,
    pub(super) gateway: GatewayId,
    /// Last head that was sent, or that it came with.
    head: Option<Last>,
    /// Its task sends it the statements that it lacks; until then it is told nothing else.
    greeting: bool,
    /// All that was sent, and what it brought that is good.
    pub(super) known: KnownHeads,
    ledger_statements: u64,
    workspace_statements: u64,
    /// Limits, for its welcome.
    in_flight: (u32, u32),
    outbox: mpsc::Sender<wire::FromLedger>,
    /// Dropped with the stream, after the outbox: its task ends.
    _alive: watch::Sender<()>,
}

/// A head that a gateway has, and what leads on from it.
#[derive(Debug)]
struct Last {
    head: Head,
    /// How its segment goes on to its end, once it is cut.
    rest: Option<Vec<Bytes>>,
}

impl Last {
    /// The open head.
    fn open(head: Head) -> Self {
        Self { head, rest: None }
    }
}

impl Stream {
    /// A segment of its workspace was cut: what leads on from the head within it is kept, so that its tree need not be.
    pub(super) fn take_cut(&mut self, workspace: &Workspace, segment: u64, tree: &Tree<SegmentTree>) {
        if let Some(last) = self.head.as_mut().filter(|last| last.head.segment == segment) {
            last.rest = workspace.rest(tree, segment, last.head.size);
        }
    }
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
                // What was appended stands by now in the open segment, or in one that this group cut.
                let cut = self.trees.just_cut(id, inclusion.segment).filter(|_| inclusion.final_size.is_none());
                let led = cut.map_or(Some(()), |tree| workspace.lead_to_end(tree, inclusion));
                led.and_then(|()| workspace.complete_inclusion(inclusion))
                    .ok_or(StoreError::Damaged("a leaf that was committed"))?;
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
        let receipt = receipt(workspace, stream.head.as_ref(), signed.clone(), batches);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.head = Some(Last::open(head));
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

    /// Those that came since its greeting, or since it was last told something: a few. One that does not take them is closed.
    fn send_statements(&mut self, id: StreamId) -> Result<(), StoreError> {
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let chains = [
            (None, stream.ledger_statements, self.ledger_chain.head().count),
            (Some(workspace.id), stream.workspace_statements, workspace.chain.head().count),
        ];
        for (chain, from, to) in chains {
            for serial in from..to {
                if !self.streams.contains_key(&id) {
                    return Ok(());
                }
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
        let counts = [self.ledger_chain.head().count, workspace.chain.head().count];
        drop(reply.send(Ok(counts)));
        let entry = Stream {
            workspace: id,
            gateway,
            head,
            greeting: true,
            // The stream's task sends what it lacks of these.
            ledger_statements: counts[0],
            workspace_statements: counts[1],
            in_flight,
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
        Ok(())
    }

    /// Whether a stream may be opened; the head that its receipts go on from, or why not.
    fn may_open(
        &mut self,
        id: WorkspaceId,
        gateway: GatewayId,
        last_head: Option<&admit::Held>,
    ) -> Result<Result<Option<Last>, Unopened>, StoreError> {
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
            Judged::Good(tree) => {
                let head = held.head().clone();
                let workspace = self.workspaces.get(&id).zip(tree);
                let rest = workspace.and_then(|(workspace, tree)| workspace.rest(&tree, head.segment, head.size));
                Ok(Some(Last { head, rest }))
            }
            Judged::Superseded => Ok(None),
            Judged::Later => {
                Err(Unopened::Later("too many old heads were looked up just now (hint: try again)".to_owned()))
            }
            Judged::Refused(reject) => return refused(&reject.detail),
            Judged::Lost => return refused("the ledger cannot extend the head that this gateway holds"),
        })
    }

    /// The stream has all statements that stood when it was opened.
    pub(super) fn welcome(&mut self, id: StreamId) -> Result<(), StoreError> {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.greeting = false;
        }
        self.send_statements(id)?;
        let Some(stream) = self.streams.get(&id) else { return Ok(()) };
        let Some(workspace) = self.workspaces.get(&stream.workspace) else { return Ok(()) };
        let row = workspace.gateways.get(&stream.gateway).and_then(|known| {
            let epoch = known.numbering.last_opened?;
            Some((epoch, known.rows.get(&epoch)?.clone()))
        });
        let in_flight = stream.in_flight;
        let (head, signed) = self.sign_head(workspace);
        let receipt = receipt(workspace, stream.head.as_ref(), signed.clone(), Vec::new());
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
            stream.head = Some(Last::open(head));
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
            // Who is not welcome yet hears it with the welcome.
            let of_workspace = |(id, stream): (&StreamId, &Stream)| {
                (stream.workspace == done.workspace && !stream.greeting).then_some(*id)
            };
            let streams: Vec<StreamId> = self.streams.iter().filter_map(of_workspace).collect();
            for id in streams {
                // The archived segment must lie in the history of the gateway's head: send a newer one if it does not.
                let is_behind = |last: &Last| last.head.segment <= done.segment;
                let behind = self.streams.get(&id).is_some_and(|s| s.head.as_ref().is_none_or(is_behind));
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
        let Some(Last { head, .. }) = &stream.head else { return };
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
    workspace: &Workspace,
    last: Option<&Last>,
    signed: Bytes,
    batches: Vec<wire::BatchInclusion>,
) -> wire::Receipt {
    let consistency =
        last.and_then(|Last { head, rest }| workspace.consistency(head.segment, head.size, rest.as_deref()));
    wire::Receipt { version: FORMAT_VERSION, signed_head: signed, consistency, batches }
}
