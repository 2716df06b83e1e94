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
    id::WorkspaceId,
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
    /// Where the object lies until the log names it.
    pub staged: Staged,
}

/// An object in the staging folder.
#[derive(Debug)]
pub struct Staged(PathBuf);

impl Staged {
    /// Forgets it: it is in the archive now, and the log names it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn discard(&self) -> std::io::Result<()> {
        durable::remove(&self.0)
    }
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
    let path = staging.join(format!("{workspace}-{segment}"));
    let stored = store.value(Family::Seals, key)?;
    let object = match (&stored, std::fs::read(&path)) {
        (Some(_), Ok(bytes)) => bytes,
        _ => build(store, &seal, &row.roster)?,
    };
    failpoint::hit("seal-before-staging");
    durable::write(&path, &object, 0o600)?;
    failpoint::hit("seal-after-staging");
    let read_back = Bytes::from(std::fs::read(&path)?);
    let statements = check_roots(&seal, &read_back)?;
    if let Some(bytes) = stored {
        let seal = Seal::parse(&bytes).map_err(|_| StoreError::Damaged("a seal"))?;
        if seal.object_sha256 != object_hash(&read_back) {
            return Err(SealError::Differs);
        }
        return Ok(Sealed { seal, seal_bytes: bytes, object: read_back, statements, staged: Staged(path) });
    }
    seal.object_length = read_back.len() as u64;
    seal.object_blake3 = object_blake3(&read_back);
    seal.object_sha256 = object_hash(&read_back);
    seal.sealed_at = clock::now_us();
    let seal_bytes = Bytes::from(seal.encode());
    store.commit_one(Family::Seals, key, &seal_bytes)?;
    failpoint::hit("seal-after-seal");
    Ok(Sealed { seal, seal_bytes, object: read_back, statements, staged: Staged(path) })
}

fn build(store: &Store, seal: &Seal, roster: &[u8]) -> Result<Vec<u8>, SealError> {
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
        let content = Bytes::from(zstd::bulk::decompress(content, length)?);
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
