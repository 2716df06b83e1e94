//! Trees of segments that are cut: a row of leaf hashes each in the store, and the newest ones used in memory.
//!
//! What must hold: what is in memory has one bound for all workspaces together, but for trees that this very group cut, which
//! were in memory before; every tree that is read is counted, for its gateway and for all, and beyond what they may read
//! nobody's is: the writer does nothing else meanwhile. A tree that is read has the root that was signed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use custody::{
    id::{GatewayId, WorkspaceId},
    merkle::{SegmentTree, Tree},
    segment::Entry,
};

use super::Workspace;
use crate::store::{Family, Store, StoreError, numbered};

/// Bytes of trees in memory: eight of the greatest. Who comes back holds a head of one of the newest segments, and repeats
/// batches of one.
const BYTES_MAX: usize = 32 << 20;
/// Bytes of a tree for each leaf: two hashes.
const LEAF_BYTES: usize = 64;
/// What a tree of few leaves costs all the same, to read and to keep, in leaves: so there are at most some hundred.
const TREE_LEAVES: u64 = 1_024;
/// Within which time looks are counted; no test waits for it.
const WITHIN: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 10 });
/// As many times as dear is a segment that was cut before the store had rows of leaf hashes: all its batches are read.
const WITHOUT_ROW: u64 = 64;

/// Why a tree is not there.
#[derive(Debug)]
pub enum Unread {
    /// Too many were read just now.
    Later,
    /// The store cannot give it.
    Failed(StoreError),
}

impl From<StoreError> for Unread {
    fn from(why: StoreError) -> Self {
        Self::Failed(why)
    }
}

type Name = (WorkspaceId, u64);

/// Trees in memory, and who had some read.
pub struct Trees {
    /// Cut by the group that is being served.
    cut: HashMap<Name, Arc<Tree<SegmentTree>>>,
    /// The others, that was used last at the end.
    kept: VecDeque<(Name, Arc<Tree<SegmentTree>>)>,
    looks: Looks,
    /// How many were read from the store.
    reads: u64,
}

impl Trees {
    /// None yet. Within ten seconds one gateway may have so many leaves read, and all together so many.
    pub fn new(of_one_max: u64, of_all_max: u64) -> Self {
        let looks = Looks { of_one_max, of_all_max, since: None, all: 0, of_one: HashMap::new() };
        Self { cut: HashMap::new(), kept: VecDeque::new(), looks, reads: 0 }
    }

    /// Takes the tree of a segment that is cut now.
    pub fn take_cut(&mut self, workspace: WorkspaceId, segment: u64, tree: Tree<SegmentTree>) {
        self.cut.insert((workspace, segment), Arc::new(tree));
    }

    /// The tree of a segment that was cut by the group that is being served.
    pub fn just_cut(&self, workspace: WorkspaceId, segment: u64) -> Option<&Tree<SegmentTree>> {
        self.cut.get(&(workspace, segment)).map(Arc::as_ref)
    }

    /// The group is answered: its trees are as good as any others.
    pub fn settle(&mut self) {
        for (name, tree) in std::mem::take(&mut self.cut) {
            self.keep(name, tree);
        }
    }

    /// How many trees were read from the store since the start.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// The tree of a cut segment, for a gateway.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn look(
        &mut self,
        store: &Store,
        workspace: &Workspace,
        segment: u64,
        gateway: GatewayId,
        now: Instant,
    ) -> Result<Arc<Tree<SegmentTree>>, Unread> {
        let name = (workspace.id, segment);
        if let Some(tree) = self.cut.get(&name) {
            return Ok(Arc::clone(tree));
        }
        if let Some(at) = self.kept.iter().position(|(kept, _)| *kept == name)
            && let Some((_, tree)) = self.kept.remove(at)
        {
            self.kept.push_back((name, Arc::clone(&tree)));
            return Ok(tree);
        }
        if !self.looks.may(name.0, gateway, now) {
            return Err(Unread::Later);
        }
        self.reads += 1;
        let (tree, leaves) = read(store, workspace, segment)?;
        self.looks.take(name.0, gateway, leaves);
        let tree = Arc::new(tree);
        self.keep(name, Arc::clone(&tree));
        Ok(tree)
    }

    fn keep(&mut self, name: Name, tree: Arc<Tree<SegmentTree>>) {
        self.kept.push_back((name, tree));
        while self.bytes() > BYTES_MAX {
            self.kept.pop_front();
        }
    }

    /// Bytes that are kept.
    fn bytes(&self) -> usize {
        let leaves: u64 = self.kept.iter().map(|(_, tree)| tree.size() + TREE_LEAVES).sum();
        usize::try_from(leaves).unwrap_or(usize::MAX).saturating_mul(LEAF_BYTES)
    }
}

/// The tree of a cut segment from the store, and what that cost, in leaves.
///
/// # Errors
/// [`StoreError`]; `Damaged` also if it is not the tree whose root was signed.
pub fn read(store: &Store, workspace: &Workspace, segment: u64) -> Result<(Tree<SegmentTree>, u64), StoreError> {
    let damaged = StoreError::Damaged("the leaf hashes of a segment");
    let Some((size, root)) = workspace.final_head(segment) else { return Err(damaged) };
    let key = numbered(workspace.id, segment);
    let (tree, cost) = match store.value(Family::Leaves, key)? {
        Some(row) => {
            let (leaves, rest) = row.as_chunks::<32>();
            if !rest.is_empty() {
                return Err(damaged);
            }
            (leaves.iter().copied().collect::<Tree<SegmentTree>>(), size)
        }
        None => {
            let mut tree = Tree::default();
            for step in store.scan(Family::Entries, &key, &[]) {
                let entry = Entry::parse(step?.1).map_err(|_| StoreError::Damaged("a leaf"))?;
                tree.push(entry.leaf_hash());
            }
            (tree, size.saturating_mul(WITHOUT_ROW))
        }
    };
    if (tree.size(), tree.root()) != (size, root) {
        return Err(damaged);
    }
    Ok((tree, cost.saturating_add(TREE_LEAVES)))
}

/// Leaves that were read lately.
struct Looks {
    of_one_max: u64,
    of_all_max: u64,
    since: Option<Instant>,
    all: u64,
    /// Of gateways that had some read within the time: so no more of them than there are looks.
    of_one: HashMap<(WorkspaceId, GatewayId), u64>,
}

impl Looks {
    /// Whether there is anything left. What a look costs is known after it: the last one may cost more than that.
    fn may(&mut self, workspace: WorkspaceId, gateway: GatewayId, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WITHIN) {
            (self.since, self.all) = (Some(now), 0);
            self.of_one.clear();
        }
        let own = self.of_one.get(&(workspace, gateway)).copied().unwrap_or(0);
        own < self.of_one_max && self.all < self.of_all_max
    }

    fn take(&mut self, workspace: WorkspaceId, gateway: GatewayId, leaves: u64) {
        self.all = self.all.saturating_add(leaves);
        let own = self.of_one.entry((workspace, gateway)).or_default();
        *own = own.saturating_add(leaves);
    }
}

#[cfg(test)]
mod tests {
    use custody::segment::SEGMENT_LEAVES_MAX;

    use super::*;

    const WORKSPACE: WorkspaceId = WorkspaceId([1; 16]);

    #[test]
    fn one_gateway_and_all_together_have_few_leaves_read_within_a_while() {
        let (start, mut looks) = (Instant::now(), Trees::new(8 * SEGMENT_LEAVES_MAX, 128 * SEGMENT_LEAVES_MAX).looks);
        let greatest = |looks: &mut Looks, n: u16, now: Instant| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_be_bytes());
            let may = looks.may(WORKSPACE, GatewayId(id), now);
            if may {
                looks.take(WORKSPACE, GatewayId(id), SEGMENT_LEAVES_MAX);
            }
            may
        };
        assert_eq!((0..100).filter(|_| greatest(&mut looks, 0, start)).count(), 8);
        assert!(greatest(&mut looks, 1, start), "another gateway has its own");
        let others = (2..1_000).flat_map(|n| [n; 8]).filter(|n| greatest(&mut looks, *n, start)).count();
        assert_eq!(others, 128 - 9, "of all gateways together");
        assert!(greatest(&mut looks, 0, start + WITHIN));
        assert_eq!(looks.of_one.len(), 1, "who looked before is forgotten");
    }

    #[test]
    fn what_is_kept_has_one_bound_and_what_was_used_last_stays() {
        let mut trees = Trees::new(0, 0);
        for segment in 0..200 {
            let tree = (0..4_096_u32).map(|n| [n.to_le_bytes()[0]; 32]).collect();
            trees.take_cut(WORKSPACE, segment, tree);
            assert!(trees.just_cut(WORKSPACE, segment).is_some());
            trees.settle();
            assert!(trees.just_cut(WORKSPACE, segment).is_none());
            assert!(trees.bytes() <= BYTES_MAX);
        }
        let kept: Vec<u64> = trees.kept.iter().map(|((_, segment), _)| *segment).collect();
        assert_eq!(kept, (200 - kept.len() as u64..200).collect::<Vec<_>>());
        assert!(kept.len() > 50, "{}", kept.len());
    }
}
