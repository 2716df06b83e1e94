//! The calls of one trace, as a tree.
//!
//! What must hold: a call stands under the one that it continues or was made within, as its gateway signed it, and under no other: whatever a
//! client says of its spans is shown with the record, and makes no edge.

use std::collections::HashMap;

use custody::{
    id::{Epoch, GatewayId},
    wire::{self, record::Kind},
};
use prost::Message as _;

use super::{Seen, answer};
use crate::tail::One;

/// Names a call within its gateway.
type CallName = (GatewayId, Epoch, u64);

struct Node {
    at: u64,
    name: Option<CallName>,
    /// The call that it continues.
    after: Option<CallName>,
    hit: wire::Hit,
}

impl Node {
    fn of(one: &One, seen: &Seen) -> Option<Self> {
        let (place, hit) = (one.batch.place(one.index)?, answer::hit(one, seen)?);
        let Ok(wire::Record { kind: Some(Kind::Call(call)), .. }) = wire::Record::decode(hit.record.clone()) else {
            return Some(Self { at: hit.received_at, name: None, after: None, hit });
        };
        let after = call.link.as_ref().map(|link| {
            let epoch = link.epoch.as_ref().and_then(|epoch| <[u8; 16]>::try_from(epoch.as_ref()).ok());
            (place.gateway, epoch.map_or(place.epoch, Epoch), link.call_number)
        });
        Some(Self { at: call.started_at, name: Some((place.gateway, place.epoch, call.call_number)), after, hit })
    }
}

/// Whether the way up from a call ends: a gateway can sign a circle, whose calls then stand by themselves.
fn ends(from: usize, after: impl Fn(usize) -> Option<usize>, most: usize) -> bool {
    std::iter::successors(Some(from), |at| after(*at)).take(most + 1).count() <= most
}

/// Puts the records of a trace in the order of a tree.
pub(super) fn tree(ones: &[One], seen: &Seen) -> Vec<wire::TraceStep> {
    let mut nodes: Vec<Node> = ones.iter().filter_map(|one| Node::of(one, seen)).collect();
    nodes.sort_by(|one, other| {
        let key = |node: &Node| (node.at, node.hit.received_at, node.hit.position);
        key(one).cmp(&key(other)).then_with(|| one.hit.workspace.cmp(&other.hit.workspace))
    });
    let named: HashMap<CallName, usize> =
        nodes.iter().enumerate().filter_map(|(at, node)| Some((node.name?, at))).collect();
    let after = |at: usize| nodes[at].after.and_then(|name| named.get(&name)).copied();
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut tops = Vec::new();
    for at in 0..nodes.len() {
        match after(at) {
            Some(parent) if ends(at, after, nodes.len()) => below[parent].push(at),
            _ => tops.push(at),
        }
    }
    let mut steps: Vec<wire::TraceStep> = Vec::with_capacity(nodes.len());
    let mut waiting: Vec<(usize, Option<u32>)> = tops.into_iter().rev().map(|top| (top, None)).collect();
    while let Some((at, parent)) = waiting.pop() {
        let place = u32::try_from(steps.len()).ok();
        waiting.extend(below[at].iter().rev().map(|child| (*child, place)));
        steps.push(wire::TraceStep { hit: Some(nodes[at].hit.clone()), parent });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_up_that_comes_back_does_not_end() {
        let after = |at: usize| [Some(1), Some(2), None, Some(4), Some(3), Some(5), Some(3)][at];
        let ended: Vec<bool> = (0..7).map(|at| ends(at, after, 7)).collect();
        assert_eq!(ended, [true, true, true, false, false, false, false]);
    }
}
