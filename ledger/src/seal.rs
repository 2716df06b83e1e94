//! Cut segment → object and seal. Deterministic from what the store holds, but for the time of sealing.
//!
//! What must hold: three roots agree (the one that grew with each leaf, `rs_merkle`'s, and one computed again from the
//! object's bytes read back from disk), or nothing is published. The object lies in the staging folder, fsynced, before the
//! seal that names its hashes is stored; the seal is stored, fsynced, before either is put into the archive.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use custody::{
    archive as names,
    hash::{Use, node, object_hash},
    id::{WorkspaceId, unhex},
    merkle::{Node, SegmentTree, Tree},
    segment::{Content, Entry, Object, Seal, SegmentHeader, Writer, object_blake3, split_frame},
};
use prost::Message as _;
use rs_merkle::{Hasher, MerkleTree};

use crate::{
    clock, durable, failpoint,
    store::{CutRow, Family, Store, StoreError, numbered},
};

/// zstd level: what was measured at 52-56 bytes a record with trace context; higher levels cost more than they save.
const ZSTD_LEVEL: i32 = 3;

/// Why a segment is not sealed.
#[derive(Debug)]
pub enum SealError {
    /// The store.
    Store(StoreError),
    /// The staging folder.
    Staging(std::io::Error),
    /// The three roots differ: nothing may be published.
    RootsDisagree,
    /// The object on disk is not the one whose hashes the stored seal names.
    Differs,
}

impl std::fmt::Display for SealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Store(_) => "read the segment from the store",
            Self::Staging(_) => "write the segment to the staging folder",
            Self::RootsDisagree => "compute one root in three ways: they disagree",
            Self::Differs => "build the object that the stored seal names",
        })
    }
}

impl std::error::Error for SealError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            Self::Staging(source) => Some(source),
            _ => None,
        }
    }
}

impl From<StoreError> for SealError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

impl From<std::io::Error> for SealError {
    fn from(source: std::io::Error) -> Self {
        Self::Staging(source)
    }
}

/// A sealed segment, ready for the archive.
#[derive(Debug)]
pub struct Sealed {
    /// What the seal says.
    pub seal: Seal,
    /// Seal bytes.
    pub seal_bytes: Bytes,
    /// Object bytes.
    pub object: Bytes,
    /// Statement objects among its leaves: serial, bytes.
    pub statements: Vec<(u64, Bytes)>,
}

/// Where an object lies until the log names it.
fn staged(staging: &Path, workspace: WorkspaceId, segment: u64) -> PathBuf {
    staging.join(format!("{workspace}-{segment}"))
}

/// Forgets a staged object: it is in the archive now, and the log names it.
///
/// # Errors
/// Those of the file system.
pub fn unstage(staging: &Path, workspace: WorkspaceId, segment: u64) -> std::io::Result<()> {
    durable::remove(&staged(staging, workspace, segment))
}

/// Removes what earlier runs left in the staging folder: objects of segments that `is_done`, and files that never got their
/// name. Others' files are left alone.
///
/// # Errors
/// [`SealError::Staging`], and what `is_done` says.
pub fn sweep(staging: &Path, is_done: impl Fn(WorkspaceId, u64) -> Result<bool, StoreError>) -> Result<(), SealError> {
    for file in std::fs::read_dir(staging)? {
        let path = file?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let segment = name.split_once('-').and_then(|(id, segment)| {
            let id = WorkspaceId::try_from(unhex(id)?.as_slice()).ok()?;
            Some((id, segment.parse().ok()?))
        });
        let left = match segment {
            Some((id, segment)) => is_done(id, segment)?,
            None => durable::is_temporary(name),
        };
        if left {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

/// Seals a segment that was cut. The same call after a crash gives the same seal.
///
/// # Errors
/// [`SealError`].
pub fn seal(store: &Store, staging: &Path, workspace: WorkspaceId, segment: u64) -> Result<Sealed, SealError> {
    let key = numbered(workspace, segment);
    let row = store.value(Family::Cuts, key)?.ok_or(StoreError::Damaged("a cut"))?;
    let row = CutRow::decode(row).map_err(|_| StoreError::Damaged("a cut"))?;
    let mut seal = Seal::parse(&row.seal).map_err(|_| StoreError::Damaged("a cut"))?;
    let path = staged(staging, workspace, segment);
    if let Some(seal_bytes) = store.value(Family::Seals, key)? {
        let seal = Seal::parse(&seal_bytes).map_err(|_| StoreError::Damaged("a seal"))?;
        let is_sealed = |object: &Vec<u8>| object_hash(object) == seal.object_sha256;
        let object = match std::fs::read(&path).ok().filter(is_sealed) {
            Some(object) => object.into(),
            // Lost or damaged: built again, it must be the one that the seal names.
            None => stage(store, &seal, &row.roster, &path)?,
        };
        if object_hash(&object) != seal.object_sha256 {
            return Err(SealError::Differs);
        }
        let statements = check_roots(&seal, &object)?;
        return Ok(Sealed { seal, seal_bytes, object, statements });
    }
    let object = stage(store, &seal, &row.roster, &path)?;
    let statements = check_roots(&seal, &object)?;
    seal.object_length = object.len() as u64;
    seal.object_blake3 = object_blake3(&object);
    seal.object_sha256 = object_hash(&object);
    seal.sealed_at = clock::now_us();
    let seal_bytes = Bytes::from(seal.encode());
    store.commit_one(Family::Seals, key, &seal_bytes)?;
    failpoint::hit("seal-after-seal");
    Ok(Sealed { seal, seal_bytes, object, statements })
}

/// Builds the object, makes it last, and reads it back.
fn stage(store: &Store, seal: &Seal, roster: &[u8], path: &Path) -> Result<Bytes, SealError> {
    let object = build(store, seal, roster, compress)?;
    failpoint::hit("seal-before-staging");
    durable::write(path, &object, 0o600)?;
    failpoint::hit("seal-after-staging");
    // Not two copies of it in memory.
    drop(object);
    Ok(std::fs::read(path)?.into())
}

fn build(
    store: &Store,
    seal: &Seal,
    roster: &[u8],
    compress: fn(&[u8]) -> std::io::Result<Vec<u8>>,
) -> Result<Vec<u8>, SealError> {
    let header = SegmentHeader {
        origin: seal.origin.clone(),
        workspace: seal.workspace,
        segment: seal.segment,
        incarnation: seal.incarnation,
        first_position: seal.first_position,
        ledger_chain: seal.ledger_chain,
        workspace_chain: seal.workspace_chain,
    };
    let mut writer = Writer::new(&header);
    for step in store.scan(Family::Entries, &numbered(seal.workspace, seal.segment), &[]) {
        let (_, bytes) = step?;
        let entry = Entry::parse(bytes.clone()).map_err(|_| StoreError::Damaged("a leaf"))?;
        writer.push(&bytes, entry.leaf.first_position, compress)?;
    }
    Ok(writer.finish(roster, compress)?)
}

fn compress(content: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(content, ZSTD_LEVEL)
}

/// `rs_merkle` with our hash; its own default would not tell leaves from nodes.
#[derive(Clone)]
struct SegmentHasher;

impl Hasher for SegmentHasher {
    type Hash = Node;

    fn hash(data: &[u8]) -> Node {
        Use::SegmentLeaf.hasher().fixed(data).finish()
    }

    fn concat_and_hash(left: &Node, right: Option<&Node>) -> Node {
        right.map_or(*left, |right| node(Use::SegmentNode, left, right))
    }
}

/// Reads the object as a stranger would and compares the roots. Gives the statements among the leaves.
fn check_roots(seal: &Seal, object: &Bytes) -> Result<Vec<(u64, Bytes)>, SealError> {
    let parsed = Object::parse(object.clone()).map_err(|_| SealError::RootsDisagree)?;
    let mut leaves: Vec<Node> = Vec::new();
    let mut statements = Vec::new();
    for frame in &parsed.frames {
        let length = usize::try_from(frame.content_length).map_err(|_| SealError::RootsDisagree)?;
        let content = parsed.frame(frame).ok_or(SealError::RootsDisagree)?;
        let content = zstd::bulk::decompress(content, length).map_err(|_| SealError::RootsDisagree)?;
        let content = Bytes::from(content);
        for bytes in split_frame(content).map_err(|_| SealError::RootsDisagree)? {
            let entry = Entry::parse(bytes).map_err(|_| SealError::RootsDisagree)?;
            leaves.push(entry.leaf_hash());
            if let Content::Statement(signed) = &entry.content {
                let signature = signed.signature.as_ref().try_into().map_err(|_| SealError::RootsDisagree)?;
                let bytes = custody::statement::encode_signed(&signed.statement_bytes, signature);
                statements.push((signed.statement.serial, bytes.into()));
            }
        }
    }
    let again = leaves.iter().copied().collect::<Tree<SegmentTree>>().root();
    let built = MerkleTree::<SegmentHasher>::from_leaves(&leaves).root();
    if built != Some(seal.root.0) || again != seal.root || leaves.len() as u64 != seal.size {
        return Err(SealError::RootsDisagree);
    }
    Ok(statements)
}

/// Names of the objects of a sealed segment.
pub fn object_names(seal: &Seal, seal_bytes: &[u8]) -> (String, String) {
    (
        names::segment(seal.workspace, seal.segment, seal.object_sha256),
        names::seal(seal.workspace, seal.segment, object_hash(seal_bytes)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::{Dir, Rig};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_frame_that_does_not_expand_is_damage_and_no_full_disk() {
        let dir = Dir::new("frame");
        let rig = Rig::start(&dir.0).await.unwrap();
        let (id, _) = rig.workspace(41).await;
        rig.cut().await;
        let store = rig.store.upgrade().unwrap();
        let row = CutRow::decode(store.value(Family::Cuts, numbered(id, 0)).unwrap().unwrap()).unwrap();
        let seal = Seal::parse(&row.seal).unwrap();
        let sound = build(&store, &seal, &row.roster, compress).unwrap();
        assert_eq!(check_roots(&seal, &sound.into()).unwrap().len(), 1);
        let damaged = build(&store, &seal, &row.roster, |_| Ok(b"no frame of zstd".to_vec())).unwrap();
        let checked = check_roots(&seal, &damaged.into());
        assert!(matches!(checked, Err(SealError::RootsDisagree)), "{checked:?}");
        drop(store);
        rig.stop().await;
    }
}
