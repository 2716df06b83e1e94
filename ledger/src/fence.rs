//! The fence: where terms and log indexes are claimed, so that one writer at a time extends the log.
//!
//! What must hold: create-if-absent truly refuses a second object of one name, which is tried at every start. A claim names
//! all its entries in full, so that any successor can complete it. A claim begins where the one before ended, so that the
//! name of its first index is enough. The fence is not evidence.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use custody::{FORMAT_VERSION, log::parse_claim, wire};
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, path::Path as Name};
use prost::Message as _;

use crate::{
    archive::{ArchiveError, in_time, open_folder},
    clock, keys,
};

/// A fence was read not longer ago than this, in seconds, or heads carry `unfenced`; a successor waits as long.
pub const FENCE_SECONDS_MAX: u64 = 30;

/// Time for one request: a claim is small, and three reads must fit into [`FENCE_SECONDS_MAX`].
const REQUEST_LIMIT: Duration = Duration::from_secs(8);

/// Holds the origin: made once, so that an empty fence is not taken for one without claims.
const MARK: &str = "fence/origin";

/// Outcome of a claim.
#[derive(Debug, PartialEq)]
pub enum Claimed {
    /// It stands, and is ours.
    Won,
    /// Another's stands there.
    Lost(Box<wire::Claim>),
}

/// Why the fence is of no use.
#[derive(Debug)]
pub enum FenceError {
    /// The store failed; the same again may work.
    Store(ArchiveError),
    /// It took a second object under one name: no fence at all.
    DoesNotRefuse,
    /// What stands there is no claim of this log.
    Foreign(u64),
    /// It is empty, or another log's, and this ledger has used it before: whoever else may write cannot be seen there.
    Lost,
}

impl std::fmt::Display for FenceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(_) => f.write_str("use the fence"),
            Self::DoesNotRefuse => f.write_str(
                "fence: its store takes a second object of one name (hint: use a plain, unversioned bucket or a folder)",
            ),
            Self::Lost => f.write_str(
                "find this log's fence where it was (hint: put the old fence back; an empty one would let two writers in)",
            ),
            Self::Foreign(index) => write!(f, "read the claim of index {index} in the fence: it is not of this log"),
        }
    }
}

impl std::error::Error for FenceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

impl From<ArchiveError> for FenceError {
    fn from(source: ArchiveError) -> Self {
        Self::Store(source)
    }
}

/// The fence of one log.
#[derive(Clone, Debug)]
pub struct Fence {
    store: Arc<dyn ObjectStore>,
    origin: String,
    writer: [u8; 32],
}

impl Fence {
    /// A folder, tried for whether it refuses. `writer` tells this machine and data directory from others.
    ///
    /// # Errors
    /// [`FenceError`].
    pub async fn folder(path: &Path, origin: &str, writer: [u8; 32], used_before: bool) -> Result<Self, FenceError> {
        let store = open_folder(path).map_err(ArchiveError::from)?;
        Self::over(store, origin, writer, used_before).await
    }

    /// Over any store, tried for whether it refuses. A ledger that has claimed a term before (`used_before`) finds its mark
    /// there; at its first start it makes one.
    ///
    /// # Errors
    /// [`FenceError`].
    pub async fn over(
        store: Arc<dyn ObjectStore>,
        origin: &str,
        writer: [u8; 32],
        used_before: bool,
    ) -> Result<Self, FenceError> {
        let fence = Self { store, origin: origin.to_owned(), writer };
        let probe = Name::from(format!("fence/probe/{}", custody::id::hex(&keys::random::<8>())));
        fence.create(&probe, Bytes::from_static(b"first")).await?;
        let second = fence.create(&probe, Bytes::from_static(b"second")).await?;
        in_time(REQUEST_LIMIT, fence.store.delete(&probe)).await?;
        if second {
            return Err(FenceError::DoesNotRefuse);
        }
        if !used_before {
            fence.create(&Name::from(MARK), Bytes::from(origin.to_owned())).await?;
        }
        fence.check_mark().await?;
        Ok(fence)
    }

    /// The fence is the one that this log has always had. A folder that was removed reads as one without claims.
    async fn check_mark(&self) -> Result<(), FenceError> {
        let read = async { self.store.get(&Name::from(MARK)).await?.bytes().await };
        match in_time(REQUEST_LIMIT, read).await {
            Ok(mark) if mark == self.origin.as_bytes() => Ok(()),
            Ok(_) | Err(ArchiveError::Store(object_store::Error::NotFound { .. })) => Err(FenceError::Lost),
            Err(why) => Err(why.into()),
        }
    }

    async fn create(&self, name: &Name, bytes: Bytes) -> Result<bool, ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match in_time(REQUEST_LIMIT, self.store.put_opts(name, bytes.into(), options)).await {
            Ok(_) => Ok(true),
            Err(ArchiveError::Store(object_store::Error::AlreadyExists { .. })) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Digest of this machine and data directory.
    pub fn writer(&self) -> &[u8] {
        &self.writer
    }

    /// Whether a claim is by this machine and data directory.
    pub fn is_own(&self, claim: &wire::Claim) -> bool {
        claim.writer == self.writer.as_slice()
    }

    /// The claim whose first index is `index`.
    ///
    /// # Errors
    /// [`FenceError`].
    pub async fn read(&self, index: u64) -> Result<Option<wire::Claim>, FenceError> {
        let name = Name::from(format!("fence/log/{index}"));
        let read = async { self.store.get(&name).await?.bytes().await };
        let bytes = match in_time(REQUEST_LIMIT, read).await {
            Ok(bytes) => bytes,
            Err(ArchiveError::Store(object_store::Error::NotFound { .. })) => {
                self.check_mark().await?;
                return Ok(None);
            }
            Err(why) => return Err(why.into()),
        };
        let claim = parse_claim(&bytes).map_err(|_| FenceError::Foreign(index))?;
        if claim.origin != self.origin || claim.first_index != index {
            return Err(FenceError::Foreign(index));
        }
        Ok(Some(claim))
    }

    /// Claims the indexes from `index` on for `entries`. After a lost answer the fence itself says who won.
    ///
    /// # Errors
    /// [`FenceError`]; then nobody knows, and the same call again finds out.
    pub async fn claim(&self, index: u64, term: u64, entries: &[Bytes]) -> Result<Claimed, FenceError> {
        let claim = wire::Claim {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            term,
            first_index: index,
            writer: Bytes::copy_from_slice(&self.writer),
            at: clock::now_us(),
            nonce: Bytes::copy_from_slice(&keys::random::<16>()),
            entries: entries.to_vec(),
        };
        self.check_mark().await?;
        let name = Name::from(format!("fence/log/{index}"));
        let created = self.create(&name, claim.encode_to_vec().into()).await;
        if matches!(created, Ok(true)) {
            return Ok(Claimed::Won);
        }
        match self.read(index).await? {
            Some(found) if found.nonce == claim.nonce => Ok(Claimed::Won),
            Some(found) => Ok(Claimed::Lost(Box::new(found))),
            None => Err(created.err().map_or(FenceError::Store(ArchiveError::TimedOut), FenceError::Store)),
        }
    }
}
