//! Heads that gateways hold: every one of them must lie on the history, because it is archived inside the batch and every
//! verifier will ask (FORMAT.md, 13.4 step 12).
//!
//! What must hold: a head that this ledger signed and cannot extend means that history was lost here, and makes it read-only
//! until an incarnation, also after a restart; no head that anybody else can make does so. The common case, a head that
//! this very stream was sent, costs a comparison.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use custody::{
    id::{GatewayId, WorkspaceId},
    merkle::{SegmentTree, Tree},
    wire::RejectReason,
};

use super::{State, StreamId, Writer};
use crate::{
    admit::{Held, Reject},
    alarm::Alarm,
    clock,
    refusals::Refused,
    store::{Family, StoreError},
    workspace::{Lies, Unread},
};

/// Heads of one stream that are known by their bytes: as many as it may have batches in flight, each signed under another
/// one; at some 400 bytes each they are the greater part of a stream's memory.
const KNOWN_MAX: usize = 64;

/// Name in the store of the incarnation within which history was lost.
pub(super) const UNEXTENDABLE: &str = "unextendable";

/// Heads that the writer sent on a stream, or found good: shared with the stream's task.
#[derive(Clone, Debug, Default)]
pub struct KnownHeads(Arc<Mutex<VecDeque<Bytes>>>);

impl KnownHeads {
    /// Whether a head is known by its bytes.
    pub fn knows(&self, bytes: &Bytes) -> bool {
        // From the newest on: that is the one asked for.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().any(|known| known == bytes)
    }

    pub(crate) fn learn(&self, bytes: Bytes) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.pop_front();
        }
        known.push_back(bytes);
    }
}

/// What the writer makes of a head.
pub(super) enum Judged {
    /// It lies on the history; with the tree of its segment, if that is cut.
    Good(Option<Arc<Tree<SegmentTree>>>),
    /// Of an earlier incarnation: said and done, and nothing extends it.
    Superseded,
    /// Looked at again later: too many trees were read just now.
    Later,
    /// It says what no verifier would accept.
    Refused(Reject),
    /// It is ours, and we cannot extend it: the ledger is read-only now.
    Lost,
}

impl Writer {
    /// A head that passed [`crate::admit::held_head`].
    pub(super) fn judge_head(
        &mut self,
        id: WorkspaceId,
        gateway: GatewayId,
        held: &Held,
    ) -> Result<Judged, StoreError> {
        let head = held.head();
        let ledger = Arc::clone(&self.ledger_chain);
        let Some(workspace) = self.workspaces.get(&id) else {
            return Ok(Judged::Refused(Reject::new(RejectReason::Unauthorised, "no such workspace")));
        };
        let (store, trees, now) = (&self.parts.store, &mut self.trees, Instant::now());
        let mut tree = None;
        let placed = workspace.place(head, &ledger, |segment| {
            let found = trees.look(store, workspace, segment, gateway, now)?;
            Ok(Arc::clone(tree.insert(found)))
        });
        let lies = match placed {
            Ok(lies) => lies,
            Err(Unread::Later) => return Ok(Judged::Later),
            Err(Unread::Failed(why)) => return Err(why),
        };
        match lies {
            Lies::Here => return Ok(Judged::Good(tree)),
            Lies::Superseded => return Ok(Judged::Superseded),
            Lies::Beyond => {
                let detail =
                    "the head that is held is of an earlier incarnation, and of a segment that is not there yet";
                return Ok(Judged::Refused(Reject::new(RejectReason::Forged, detail)));
            }
            Lies::Nowhere => {}
        }
        // Whoever has a key that was revoked can sign what it likes: its word refutes nothing.
        if ledger.key(&head.key_id).is_none_or(|key| key.revoked) {
            let detail = "the head that is held is of a revoked key and not of this history";
            return Ok(Judged::Refused(Reject::new(RejectReason::Forged, detail)));
        }
        self.refuse_history(held, gateway)?;
        Ok(Judged::Lost)
    }

    /// Whether a stream was sent this head, or brought it before.
    pub(super) fn knows(&self, stream: StreamId, held: &Held) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.known.knows(held.bytes()))
    }

    /// A gateway holds a head of ours that we cannot extend: history was lost here. Read-only until an incarnation; a crash
    /// after the write does not forget it, and before it nobody was told.
    fn refuse_history(&mut self, held: &Held, gateway: GatewayId) -> Result<(), StoreError> {
        let head = held.head();
        let text = format!(
            "gateway {gateway} holds segment {} size {} of workspace {}, which this ledger does not have",
            head.segment, head.size, head.workspace
        );
        if self.state == State::Serving {
            let incarnation = self.ledger_chain.incarnation();
            self.parts.store.commit_one(Family::Meta, UNEXTENDABLE, &incarnation.to_be_bytes())?;
            self.state = State::ReadOnly(text.clone());
        }
        self.parts.alarms.raise(Alarm::HeadNotExtendable, text);
        self.parts.alarms.refusals().note(Refused::Fork, head.workspace, gateway, clock::now_us());
        Ok(())
    }

    /// At a start: read-only while the incarnation within which history was lost is the current one.
    pub(super) fn recall_lost_history(&mut self) -> Result<(), StoreError> {
        if self.parts.store.number(UNEXTENDABLE)? == Some(self.ledger_chain.incarnation()) {
            let text = "before this start a gateway held a head that this ledger could not extend";
            self.parts.alarms.raise(Alarm::HeadNotExtendable, text);
            self.state = State::ReadOnly(text.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_heads_of_a_stream_are_known() {
        let known = KnownHeads::default();
        let heads: Vec<Bytes> = (0..=KNOWN_MAX).map(|n| Bytes::from(n.to_string())).collect();
        heads.iter().for_each(|head| known.learn(head.clone()));
        assert!(!known.knows(&heads[0]) && heads[1..].iter().all(|head| known.knows(head)));
    }
}
