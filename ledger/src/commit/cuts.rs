//! Cuts in the writer: when a segment is closed, and what is written with that.
//!
//! What must hold: a cut and whatever caused it are one write; what is cut stands in the queue for the log, in the order of the
//! cuts.

use bytes::Bytes;
use custody::{id::WorkspaceId, log::encode_entry, wire::log_entry};
use prost::Message as _;

use super::{Group, State, Writer};
use crate::{
    alarm::Alarm,
    clock,
    store::{Family, QueueRow, numbered},
    workspace::{Standing, Workspace},
};

impl Writer {
    /// Cuts the open segment if it has a leaf: the row for the sealer, and its place in the queue.
    pub(super) fn cut(&mut self, id: WorkspaceId, group: &mut Group<'_>) {
        if self.state != State::Serving {
            return;
        }
        let standing = Standing {
            origin: &self.parts.origin,
            incarnation: self.ledger_chain.incarnation(),
            ledger_chain: self.ledger_chain.head(),
        };
        let Some(workspace) = self.workspaces.get_mut(&id).filter(|w| w.open.tree.size() > 0) else { return };
        let segment = workspace.open.number;
        self.parts.metrics.add("custody_segments_cut_total", 1);
        let (row, tree) = workspace.cut(standing);
        group.change.put(Family::Cuts, numbered(id, segment), row.encode_to_vec());
        group.change.put(Family::Leaves, numbered(id, segment), tree.leaves().as_flattened());
        // Who is told of nothing for long needs no tree afterwards.
        for stream in self.streams.values_mut().filter(|stream| stream.workspace == id) {
            stream.take_cut(workspace, segment, &tree);
        }
        self.trees.take_cut(id, segment, tree);
        self.enqueue(QueueRow { workspace: Some(id.into()), segment, entry: Bytes::new() }, group);
        group.touched.insert(id);
    }

    pub(super) fn enqueue(&mut self, row: QueueRow, group: &mut Group<'_>) {
        group.change.put(Family::Queue, self.queue_next.to_be_bytes(), row.encode_to_vec());
        self.queue_next += 1;
        group.cut = true;
    }

    pub(super) fn cut_some(&mut self, workspace: Option<WorkspaceId>, group: &mut Group<'_>) {
        let ids = workspace.map_or_else(|| self.order.clone(), |id| vec![id]);
        for id in ids {
            self.cut(id, group);
        }
    }

    /// Cuts what is due, and looks at clock and disk.
    pub(super) fn tick(&mut self, group: &mut Group<'_>) {
        let now = clock::now_us();
        if let Some(jump) = self.clock.look() {
            self.parts.alarms.raise(Alarm::ClockJumped, format!("by {} us", jump.by_us()));
            self.own.clock_jumped(jump);
        }
        let (age, heartbeat_age) = (self.parts.limits.cut_age_us, self.parts.limits.heartbeat_age_us);
        let due = |workspace: &Workspace| {
            let open = &workspace.open;
            let old = open.first_record_at.is_some_and(|at| now.saturating_sub(at) >= age || now < at);
            let heartbeats = open.times.is_some_and(|(first, _)| now.saturating_sub(first) >= heartbeat_age);
            old || heartbeats || (open.first_record_at.is_none() && open.closes)
        };
        let ids: Vec<_> = self.workspaces.values().filter(|w| due(w)).map(|w| w.id).collect();
        for id in ids {
            self.cut(id, group);
        }
    }

    pub(super) fn enqueue_statement(&mut self, object: &Bytes, group: &mut Group<'_>) {
        let entry = encode_entry(log_entry::Entry::Statement(object.clone())).into();
        self.enqueue(QueueRow { workspace: None, segment: 0, entry }, group);
    }
}
