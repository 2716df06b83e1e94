//! Receipts on random histories: what is true is shown, and nothing else.

use super::*;
use crate::{
    id::{LeafHash, ObjectHash},
    merkle::{Tree, TreeHash as _},
    testing::{AT, HEAD, LOG, ORIGIN, Rng, WORKSPACE, key, key_id, number},
    wire::{LeafKind, Role},
};

fn nothing() -> Head {
    Head {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        key_id: key_id(HEAD, Role::Head),
        incarnation: 0,
        term: 1,
        segment: 0,
        size: 0,
        root: RootHash(SegmentTree::empty()),
        history_root: RootHash(HistoryTree::empty()),
        ledger_chain: ChainHead::GENESIS,
        workspace_chain: ChainHead { count: 2, hash: ObjectHash([4; 32]) },
        at: AT,
        unfenced: false,
    }
}

/// Everything that a ledger holds of one workspace.
struct History {
    segments: Vec<Tree<SegmentTree>>,
    history: Tree<HistoryTree>,
    /// Segment, leaf, first position, received-at of each batch.
    batches: Vec<(u64, u64, u64)>,
}

const HEADER: &[u8] = b"header";
const SIGNATURE: [u8; 64] = [7; 64];

fn leaf(position: u64) -> segment::Leaf {
    segment::Leaf { kind: LeafKind::Batch, first_position: position, received_at: AT + position, term: 1 }
}

impl History {
    fn random(rng: &mut Rng) -> Self {
        let count = 1 + rng.below(9);
        let (mut segments, mut history, mut batches) = (Vec::new(), Tree::default(), Vec::new());
        let mut position = 0;
        for segment in 0..count {
            let mut tree = Tree::default();
            for at in 0..1 + rng.below(20) {
                batches.push((segment, at, position));
                tree.push(leaf(position).hash(HEADER, &SIGNATURE));
                position += 1 + rng.below(5);
            }
            if segment + 1 < count {
                history.push(history_leaf(segment, tree.size(), &tree.root()));
            }
            segments.push(tree);
        }
        Self { segments, history, batches }
    }

    fn head(&self, segment: u64, size: u64) -> Head {
        let tree = &self.segments[usize::try_from(segment).unwrap()];
        let (root, history_root) = (tree.root_at(size).unwrap(), self.history.root_at(segment).unwrap());
        Head { segment, size, root, history_root, ..nothing() }
    }

    fn any_head(&self, rng: &mut Rng) -> Head {
        let segment = rng.below(self.segments.len() as u64);
        let size = rng.below(self.segments[usize::try_from(segment).unwrap()].size() + 1);
        self.head(segment, size)
    }

    fn consistency(&self, old: &Head, new: &Head) -> wire::HeadConsistency {
        let tree = &self.segments[usize::try_from(old.segment).unwrap()];
        let crossed = old.segment != new.segment;
        let until = if crossed { tree.size() } else { new.size };
        let path = |nodes: Option<Vec<Node>>| if crossed { to_path(&nodes.unwrap()) } else { Vec::new() };
        wire::HeadConsistency {
            version: 1,
            final_size: crossed.then_some(until),
            final_root: crossed.then(|| tree.root().into()),
            segment_path: to_path(&tree.consistency(old.size, until).unwrap()),
            inclusion_path: path(self.history.inclusion(old.segment, new.segment)),
            history_path: path(self.history.consistency(old.segment, new.segment)),
        }
    }

    fn inclusion(&self, (segment, index, position): (u64, u64, u64), head: &Head) -> wire::BatchInclusion {
        let tree = &self.segments[usize::try_from(segment).unwrap()];
        let cut = segment != head.segment;
        let size = if cut { tree.size() } else { head.size };
        wire::BatchInclusion {
            version: 1,
            epoch: vec![3; 16].into(),
            batch_number: index,
            segment,
            leaf_index: index,
            first_position: position,
            received_at: AT + position,
            term: 1,
            path: to_path(&tree.inclusion(index, size).unwrap()),
            final_size: cut.then_some(size),
            final_root: cut.then(|| tree.root().into()),
            history_path: if cut { to_path(&self.history.inclusion(segment, head.segment).unwrap()) } else { vec![] },
        }
    }
}

/// A change with its name.
type Change<T> = (&'static str, fn(&mut T));

/// Each way to change a list of hashes a little.
fn bent(path: &[Bytes]) -> Vec<Vec<Bytes>> {
    let mut out = vec![[path, &[vec![9; 32].into()]].concat()];
    for at in 0..path.len() {
        let mut other = path.to_vec();
        let mut hash = other[at].to_vec();
        hash[0] ^= 1;
        other[at] = hash.into();
        out.push(other);
        let mut shorter = path.to_vec();
        shorter.remove(at);
        out.push(shorter);
        let mut short = path.to_vec();
        short[at] = short[at].slice(..31);
        out.push(short);
    }
    out
}

fn rounds() -> u64 {
    number("CUSTODY_ROUNDS").unwrap_or(150)
}

#[test]
fn any_two_heads_of_a_history_are_consistent_and_no_other_proof_shows_it() {
    let mut rng = Rng::for_test("any_two_heads_of_a_history_are_consistent_and_no_other_proof_shows_it");
    for _ in 0..rounds() {
        let history = History::random(&mut rng);
        let (mut old, mut new) = (history.any_head(&mut rng), history.any_head(&mut rng));
        if (old.segment, old.size) > (new.segment, new.size) {
            (old, new) = (new, old);
        }
        let proof = history.consistency(&old, &new);
        assert!(is_consistent(&old, &new, &proof));
        assert!(proof.segment_path.len() + proof.inclusion_path.len() + proof.history_path.len() <= 60);
        if old != new {
            assert!(!is_consistent(&new, &old, &proof), "backwards");
        }
        bend_consistency(&old, &new, &proof);
    }
}

fn bend_consistency(old: &Head, new: &Head, proof: &wire::HeadConsistency) {
    let refused = |proof: wire::HeadConsistency, what: &str| assert!(!is_consistent(old, new, &proof), "{what}");
    for path in bent(&proof.segment_path) {
        refused(wire::HeadConsistency { segment_path: path, ..proof.clone() }, "segment path");
    }
    for path in bent(&proof.inclusion_path) {
        refused(wire::HeadConsistency { inclusion_path: path, ..proof.clone() }, "inclusion path");
    }
    for path in bent(&proof.history_path) {
        refused(wire::HeadConsistency { history_path: path, ..proof.clone() }, "history path");
    }
    let final_size = proof.final_size.map_or(Some(new.size), |size| Some(size + 1));
    refused(wire::HeadConsistency { final_size, ..proof.clone() }, "final size");
    refused(wire::HeadConsistency { final_root: Some(vec![1; 32].into()), ..proof.clone() }, "final root");
    if proof.final_size.is_some() {
        refused(wire::HeadConsistency { final_size: None, ..proof.clone() }, "no final size");
        refused(wire::HeadConsistency { final_root: None, ..proof.clone() }, "no final root");
    }
    // Sizes are not among these: a root does not say how many leaves it has, and one proof may fit several sizes. That is
    // why size and segment are under the head's signature, and in the leaf of a final head.
    let changes: [Change<Head>; 4] = [
        ("origin", |head| head.origin.push('x')),
        ("workspace", |head| head.workspace.0[0] ^= 1),
        ("root", |head| head.root.0[0] ^= 1),
        ("history root", |head| head.history_root.0[0] ^= 1),
    ];
    for (what, change) in changes {
        // Every tree begins with the empty one; and what fills after a cut says nothing about the segment before.
        let open = what == "root" && (old.segment != new.segment || (old.size == 0 && new.size > 0));
        let mut other = new.clone();
        change(&mut other);
        assert_eq!(is_consistent(old, &other, proof), open, "{what} of the new head");
        let mut other = old.clone();
        change(&mut other);
        assert!(!is_consistent(&other, new, proof), "{what} of the old head");
    }
    let elsewhere = Head { segment: old.segment + 1, ..old.clone() };
    assert!(!is_consistent(&elsewhere, new, proof), "segment of the old head");
    let later = Head { term: new.term + 1, ..old.clone() };
    assert!(!is_consistent(&later, new, proof), "terms never fall");
}

#[test]
fn every_batch_of_a_history_is_included_and_no_other_proof_shows_it() {
    let mut rng = Rng::for_test("every_batch_of_a_history_is_included_and_no_other_proof_shows_it");
    for _ in 0..rounds() {
        let history = History::random(&mut rng);
        let batch = *rng.pick(&history.batches);
        let head = history.any_head(&mut rng);
        if (head.segment, head.size) <= (batch.0, batch.1) {
            continue;
        }
        let proof = history.inclusion(batch, &head);
        let shows = |head: &Head, proof: &wire::BatchInclusion| includes_batch(head, proof, HEADER, &SIGNATURE);
        assert!(shows(&head, &proof));
        assert!(!includes_batch(&head, &proof, b"another", &SIGNATURE));
        assert!(!includes_batch(&head, &proof, HEADER, &[8; 64]));
        for path in bent(&proof.path) {
            assert!(!shows(&head, &wire::BatchInclusion { path, ..proof.clone() }));
        }
        for history_path in bent(&proof.history_path) {
            assert!(!shows(&head, &wire::BatchInclusion { history_path, ..proof.clone() }));
        }
        bend_inclusion(&head, &proof);
    }
}

fn bend_inclusion(head: &Head, proof: &wire::BatchInclusion) {
    let changes: [Change<wire::BatchInclusion>; 9] = [
        ("segment", |p| p.segment += 1),
        ("leaf index", |p| p.leaf_index += 1),
        ("first position", |p| p.first_position += 1),
        ("received at", |p| p.received_at += 1),
        ("term", |p| p.term += 1),
        ("final size", |p| p.final_size = Some(p.final_size.map_or(1, |size| size + 1))),
        ("final root", |p| p.final_root = Some(vec![1; 32].into())),
        ("leaf far out", |p| p.leaf_index = u64::MAX),
        ("segment far out", |p| p.segment = u64::MAX),
    ];
    for (what, change) in changes {
        let mut other = proof.clone();
        change(&mut other);
        assert!(!includes_batch(head, &other, HEADER, &SIGNATURE), "{what}");
    }
    if proof.final_size.is_some() {
        let open = wire::BatchInclusion { final_size: None, final_root: None, ..proof.clone() };
        assert!(!includes_batch(head, &open, HEADER, &SIGNATURE), "a cut segment has a final head");
    }
}

#[test]
fn a_fork_is_not_consistent() {
    let mut rng = Rng::for_test("a_fork_is_not_consistent");
    for _ in 0..rounds() {
        let (one, mut other) = (History::random(&mut rng), History::random(&mut rng));
        // The same first segment, then another history.
        other.segments[0] = [[9; 32]].into_iter().chain(one.segments[0].leaves().iter().copied()).collect();
        let mut history = Tree::default();
        for (number, tree) in (0..).zip(&other.segments[..other.segments.len() - 1]) {
            history.push(history_leaf(number, tree.size(), &tree.root()));
        }
        other.history = history;
        let (old, new) = (one.head(0, 1), other.any_head(&mut rng));
        if new.segment > 0 || new.size > 0 {
            assert!(!is_consistent(&old, &new, &other.consistency(&other.head(0, 1), &new)));
        }
    }
}

#[test]
fn a_head_is_read_as_it_was_signed() {
    let head = Head { unfenced: true, segment: 3, size: 9, incarnation: 2, ..nothing() };
    let bytes = head.sign(&key(HEAD));
    let signed = SignedHead::parse(&bytes).unwrap();
    assert_eq!(signed.head, head);
    assert!(signed.is_signed_by(crate::key::public(&key(HEAD))));
    assert!(!signed.is_signed_by(crate::key::public(&key(LOG))));
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1;
        let accepted = SignedHead::parse(&other).is_ok_and(|s| s.is_signed_by(crate::key::public(&key(HEAD))));
        assert!(!accepted, "byte {at}");
    }
    assert_eq!(Head::parse(&head.encode()), Ok(head));
}

#[test]
fn hashes_of_another_length_are_no_path() {
    assert_eq!(nodes(&[vec![1; 31].into()]), None);
    assert_eq!(nodes(&to_path(&[[1; 32], [2; 32]])), Some(vec![[1; 32], [2; 32]]));
    let (one, other) = (history_leaf(1, 2, &RootHash([3; 32])), history_leaf(2, 1, &RootHash([3; 32])));
    assert_ne!(LeafHash(one), LeafHash(other));
}
