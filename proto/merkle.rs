//! Merkle trees of the RFC 6962 shape: building, proofs, and our own strict verification (RFC 9162, 2.1.3.2 and 2.1.4.2).
//!
//! Verification accepts exactly one proof for each question: lengths are exact, an index lies below its size, nothing is
//! left over. The empty tree has a root and no proofs.

use std::marker::PhantomData;

use crate::{
    hash::{Use, keyed_pairs, node, sha256},
    id::{LeafHash, RootHash},
};

/// A node: a leaf hash, an inner hash or a root.
pub type Node = [u8; 32];

/// Hash functions of one tree.
pub trait TreeHash {
    /// Hash of two children.
    fn node(left: &Node, right: &Node) -> Node;
    /// Root of the tree without leaves.
    fn empty() -> Node;
    /// Hashes of each two neighbours, at the end of `above`; a node that is left over is left out.
    fn pairs(level: &[Node], above: &mut Vec<Node>) {
        let (pairs, _) = level.as_chunks::<2>();
        above.extend(pairs.iter().map(|[left, right]| Self::node(left, right)));
    }
}

macro_rules! blake3_tree {
    ($($(#[$doc:meta])* $name:ident: $leaf:ident, $node:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}

        impl TreeHash for $name {
            fn node(left: &Node, right: &Node) -> Node {
                node(Use::$node, left, right)
            }
            fn empty() -> Node {
                Use::$leaf.hasher().finish()
            }
            fn pairs(level: &[Node], above: &mut Vec<Node>) {
                keyed_pairs(&Use::$node.key(), level, above);
            }
        }
    )*};
}

blake3_tree! {
    /// The records of one batch.
    BatchTree: BatchLeaf, BatchNode;
    /// The leaves of one segment.
    SegmentTree: SegmentLeaf, SegmentNode;
    /// The final heads of a workspace's segments.
    HistoryTree: HistoryLeaf, HistoryNode;
}

/// The log: RFC 6962 with SHA-256.
#[derive(Clone, Copy, Debug)]
pub enum LogTree {}

impl TreeHash for LogTree {
    fn node(left: &Node, right: &Node) -> Node {
        sha256(&[&[1], left, right])
    }
    fn empty() -> Node {
        sha256(&[])
    }
}

/// Leaf hash of a log entry (RFC 6962, 2.1).
pub fn log_leaf(entry: &[u8]) -> LeafHash {
    LeafHash(sha256(&[&[0], entry]))
}

/// Whether `proof` shows that `leaf` is number `index` of the tree with `size` leaves and `root` (RFC 9162, 2.1.3.2).
pub fn verify_inclusion<H: TreeHash>(index: u64, size: u64, leaf: &LeafHash, proof: &[Node], root: &RootHash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last) = (index, size.saturating_sub(1));
    let mut hash = leaf.0;
    for sibling in proof {
        match climb(&mut at, &mut last) {
            Some(Side::Left) => hash = H::node(sibling, &hash),
            Some(Side::Right) => hash = H::node(&hash, sibling),
            None => return false,
        }
    }
    last == 0 && hash == root.0
}

/// Where the next hash of a proof stands.
enum Side {
    Left,
    Right,
}

/// A step of the RFC's loops: from the node `at` of a level whose last one is `last` up to where the next hash is used up.
/// `None` at the root.
fn climb(at: &mut u64, last: &mut u64) -> Option<Side> {
    if *last == 0 {
        return None;
    }
    let side = if *at & 1 == 1 || at == last { Side::Left } else { Side::Right };
    while matches!(side, Side::Left) && *at & 1 == 0 && *at != 0 {
        (*at, *last) = (*at >> 1, *last >> 1);
    }
    (*at, *last) = (*at >> 1, *last >> 1);
    Some(side)
}

/// Whether `proof` shows that the tree with `size` leaves and `root` begins with the one of `old_size` and `old_root`
/// (RFC 9162, 2.1.4.2). Every tree begins with the empty one, and with itself, without a proof.
pub fn verify_consistency<H: TreeHash>(
    old_size: u64,
    size: u64,
    old_root: &RootHash,
    root: &RootHash,
    proof: &[Node],
) -> bool {
    if old_size > size {
        return false;
    }
    if old_size == size {
        return proof.is_empty() && old_root == root;
    }
    if old_size == 0 {
        return proof.is_empty() && old_root.0 == H::empty();
    }
    let (mut at, mut last) = (old_size.saturating_sub(1), size.saturating_sub(1));
    let mut rest = proof.iter();
    let mut next = if old_size.is_power_of_two() { Some(&old_root.0) } else { rest.next() };
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let Some(first) = next.take() else { return false };
    let (mut old_hash, mut hash) = (*first, *first);
    for sibling in rest {
        match climb(&mut at, &mut last) {
            Some(Side::Left) => (old_hash, hash) = (H::node(sibling, &old_hash), H::node(sibling, &hash)),
            Some(Side::Right) => hash = H::node(&hash, sibling),
            None => return false,
        }
    }
    last == 0 && old_hash == old_root.0 && hash == root.0
}

/// Whether `proof` shows that `leaves` are the run from `first` on, with nothing between, of the tree with `size` leaves
/// and `root`. The proof holds the roots of the greatest subtrees outside the run, from left to right (FORMAT.md, 3.4).
pub fn verify_range<H: TreeHash>(first: u64, size: u64, leaves: &[Node], proof: &[Node], root: &RootHash) -> bool {
    let count = u64::try_from(leaves.len()).unwrap_or(u64::MAX);
    let Some(end) = first.checked_add(count).filter(|end| *end <= size && count > 0) else { return false };
    let mut fold = RangeFold::<H> { first, end, leaves: leaves.iter(), proof: proof.iter(), hash: PhantomData };
    let computed = fold.subtree(0, size);
    computed == Some(root.0) && fold.leaves.next().is_none() && fold.proof.next().is_none()
}

struct RangeFold<'a, H> {
    first: u64,
    end: u64,
    leaves: std::slice::Iter<'a, Node>,
    proof: std::slice::Iter<'a, Node>,
    hash: PhantomData<H>,
}

impl<H: TreeHash> RangeFold<'_, H> {
    /// Root of the leaves from `low` up to `high`. The depth is at most 64, as sizes have 64 bits.
    fn subtree(&mut self, low: u64, high: u64) -> Option<Node> {
        if high <= self.first || low >= self.end {
            return self.proof.next().copied();
        }
        if high.checked_sub(low)? == 1 {
            return self.leaves.next().copied();
        }
        let middle = low.checked_add(split(high.checked_sub(low)?))?;
        let left = self.subtree(low, middle)?;
        let right = self.subtree(middle, high)?;
        Some(H::node(&left, &right))
    }
}

/// Greatest power of two below `size`, for `size` above 1 (RFC 6962, 2.1); 0 for smaller ones.
fn split(size: u64) -> u64 {
    match size {
        0 | 1 => 0,
        _ => 1_u64.checked_shl(63_u32.saturating_sub(size.saturating_sub(1).leading_zeros())).unwrap_or(0),
    }
}

/// A tree in memory: all its complete nodes, 64 bytes a leaf. Grows by one leaf at a time, answers for every size so far.
#[derive(Debug, Clone)]
pub struct Tree<H> {
    /// `levels[k]` holds the roots of the complete subtrees of 2^k leaves.
    levels: Vec<Vec<Node>>,
    hash: PhantomData<H>,
}

impl<H: TreeHash> Default for Tree<H> {
    fn default() -> Self {
        Self { levels: vec![Vec::new()], hash: PhantomData }
    }
}

impl<H: TreeHash> FromIterator<Node> for Tree<H> {
    /// All at once, level by level, which is several times as fast as leaf by leaf.
    fn from_iter<I: IntoIterator<Item = Node>>(leaves: I) -> Self {
        let mut levels = vec![leaves.into_iter().collect::<Vec<_>>()];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let mut above = Vec::with_capacity(level.len() >> 1);
            H::pairs(level, &mut above);
            levels.push(above);
        }
        Self { levels, hash: PhantomData }
    }
}

impl<H: TreeHash> Tree<H> {
    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The leaves in order.
    pub fn leaves(&self) -> &[Node] {
        self.levels.first().map_or(&[], Vec::as_slice)
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Node) {
        let mut carry = leaf;
        for level in &mut self.levels {
            level.push(carry);
            let (pairs, rest) = level.as_chunks::<2>();
            let Some([left, right]) = pairs.last().filter(|_| rest.is_empty()) else { return };
            carry = H::node(left, right);
        }
        self.levels.push(vec![carry]);
    }

    /// Root of all leaves.
    pub fn root(&self) -> RootHash {
        self.root_at(self.size()).unwrap_or(RootHash::ZERO)
    }

    /// Root of the first `size` leaves; `None` if there are fewer.
    pub fn root_at(&self, size: u64) -> Option<RootHash> {
        if size > self.size() {
            return None;
        }
        if size == 0 {
            return Some(RootHash(H::empty()));
        }
        self.subtree(0, size).map(RootHash)
    }

    fn subtree(&self, low: u64, high: u64) -> Option<Node> {
        let width = high.checked_sub(low)?;
        if width.is_power_of_two() {
            let level = usize::try_from(width.trailing_zeros()).ok()?;
            let at = usize::try_from(low.checked_div(width)?).ok()?;
            return self.levels.get(level)?.get(at).copied();
        }
        let middle = low.checked_add(split(width))?;
        Some(H::node(&self.subtree(low, middle)?, &self.subtree(middle, high)?))
    }

    /// Root of the complete subtree of `width` leaves (a power of two) from `first` on; `None` if it is not complete.
    pub fn complete(&self, first: u64, width: u64) -> Option<Node> {
        let end = first.checked_add(width)?;
        (width.is_power_of_two() && end <= self.size()).then(|| self.subtree(first, end)).flatten()
    }

    /// Inclusion proof of leaf `index` in the tree of the first `size` leaves; `None` outside the tree.
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Node>> {
        if index >= size || size > self.size() {
            return None;
        }
        let mut path = Vec::new();
        let (mut low, mut high) = (0, size);
        while high.checked_sub(low)? > 1 {
            let middle = low.checked_add(split(high.checked_sub(low)?))?;
            if index < middle {
                path.push(self.subtree(middle, high)?);
                high = middle;
            } else {
                path.push(self.subtree(low, middle)?);
                low = middle;
            }
        }
        path.reverse();
        Some(path)
    }

    /// Consistency proof from the first `old_size` leaves to the first `size`; `None` outside the tree.
    pub fn consistency(&self, old_size: u64, size: u64) -> Option<Vec<Node>> {
        if old_size > size || size > self.size() {
            return None;
        }
        let mut path = Vec::new();
        if old_size == 0 || old_size == size {
            return Some(path);
        }
        let (mut low, mut high, mut whole) = (0_u64, size, true);
        while old_size != high {
            let middle = low.checked_add(split(high.checked_sub(low)?))?;
            if old_size <= middle {
                path.push(self.subtree(middle, high)?);
                high = middle;
            } else {
                path.push(self.subtree(low, middle)?);
                (low, whole) = (middle, false);
            }
        }
        if !whole {
            path.push(self.subtree(low, high)?);
        }
        path.reverse();
        Some(path)
    }

    /// Range proof of the leaves from `first` up to `end` in the tree of the first `size`; `None` outside the tree.
    pub fn range(&self, first: u64, end: u64, size: u64) -> Option<Vec<Node>> {
        if first >= end || end > size || size > self.size() {
            return None;
        }
        let mut path = Vec::new();
        self.collect_outside(first, end, 0, size, &mut path)?;
        Some(path)
    }

    fn collect_outside(&self, first: u64, end: u64, low: u64, high: u64, path: &mut Vec<Node>) -> Option<()> {
        if high <= first || low >= end {
            path.push(self.subtree(low, high)?);
            return Some(());
        }
        if first <= low && high <= end {
            return Some(());
        }
        let middle = low.checked_add(split(high.checked_sub(low)?))?;
        self.collect_outside(first, end, low, middle, path)?;
        self.collect_outside(first, end, middle, high, path)
    }
}

/// Root of the tree over `leaves`, level by level: for verifiers, who need no proofs. A node without a neighbour rises as it
/// is, which gives the shape of RFC 6962.
pub fn root_of<H: TreeHash>(leaves: &[Node]) -> RootHash {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        let mut above = Vec::with_capacity(level.len().div_ceil(2));
        H::pairs(&level, &mut above);
        let (_, left_over) = level.as_chunks::<2>();
        above.extend_from_slice(left_over);
        level = above;
    }
    RootHash(level.first().copied().unwrap_or_else(H::empty))
}

#[cfg(test)]
mod tests;
