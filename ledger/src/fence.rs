//! The fence: where terms and log indexes are claimed, so that one writer at a time extends the log.
//!
//! What must hold: create-if-absent truly refuses a second object of one name, which is tried at every start. A claim names
//! all its entries in full, so that whoever finds it can complete it. A claim begins where the one before ended, so that the
//! name of its first index is enough. A claim is this ledger's own only if its nonce comes from the *instance*, a secret that
//! each start makes and keeps in its database beside the term: machine, folder and term can be copied before a start, and two
//! copies that start have the same ones. The fence is not evidence.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use custody::{FORMAT_VERSION, hash::sha256, log::parse_claim, wire};
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, path::Path as Name};
use prost::Message as _;

use crate::{
    archive::{ArchiveError, Requests, open_folder},
    clock, keys,
};

/// Time for one request: a claim is small, and three reads must fit into
/// [`FENCE_SECONDS_MAX`](crate::log_view::FENCE_SECONDS_MAX).
const REQUEST_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 8 });

/// Holds the origin: made once, so that an empty fence is not taken for one without claims.
const MARK: &str = "fence/origin";

/// Outcome of a claim.
#[derive(Debug, PartialEq)]
pub enum Claimed {
    /// It stands, and is ours.
    Won,
    /// Another one stands there: somebody else's, or our own from before an error whose outcome we did not learn.
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
    requests: Requests,
    origin: String,
    writer: [u8; 32],
    /// Of the start whose claims are our own; `None` before the first one that made one.
    instance: Option<Instance>,
}

/// Random bytes that one start makes, and keeps in its database before its first claim.
pub type Instance = [u8; 16];

impl Fence {
    /// A folder, tried for whether it refuses. `writer` tells this machine and data directory from others.
    ///
    /// # Errors
    /// [`FenceError`].
    pub async fn folder(path: &Path, origin: &str, writer: [u8; 32], used_before: bool) -> Result<Self, FenceError> {
        if used_before && !path.is_dir() {
            return Err(FenceError::Lost);
        }
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
        let requests = Requests::new(REQUEST_LIMIT);
        let fence = Self { store, requests, origin: origin.to_owned(), writer, instance: None };
        let unmarked = fence.get(MARK.to_owned()).await?.is_none();
        // A ledger from before there were marks knows its fence by the claim that its log began with.
        if unmarked && (!used_before || fence.claim_at(0).await?.is_some()) {
            fence.create(&Name::from(MARK), Bytes::from(origin.to_owned())).await?;
        }
        fence.check_mark().await?;
        fence.try_refusal().await?;
        Ok(fence)
    }

    /// The same fence for another start: claims are its own if they were made under this instance.
    #[must_use]
    pub fn of_instance(&self, instance: Option<Instance>) -> Self {
        Self { instance, ..self.clone() }
    }

    async fn try_refusal(&self) -> Result<(), FenceError> {
        let probe = Name::from(format!("fence/probe/{}", custody::id::hex(&keys::random::<8>())));
        self.create(&probe, Bytes::from_static(b"first")).await?;
        let second = self.create(&probe, Bytes::from_static(b"second")).await?;
        let store = Arc::clone(&self.store);
        self.requests.run(async move { store.delete(&probe).await }).await?;
        if second { Err(FenceError::DoesNotRefuse) } else { Ok(()) }
    }

    async fn get(&self, name: String) -> Result<Option<Bytes>, ArchiveError> {
        let (store, name) = (Arc::clone(&self.store), Name::from(name));
        match self.requests.run(async move { store.get(&name).await?.bytes().await }).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ArchiveError::Store(object_store::Error::NotFound { .. })) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// The fence is the one that this log has always had. A folder that was removed reads as one without claims.
    async fn check_mark(&self) -> Result<(), FenceError> {
        match self.get(MARK.to_owned()).await? {
            Some(mark) if mark == self.origin.as_bytes() => Ok(()),
            _ => Err(FenceError::Lost),
        }
    }

    async fn create(&self, name: &Name, bytes: Bytes) -> Result<bool, ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let (store, name) = (Arc::clone(&self.store), name.clone());
        match self.requests.run(async move { store.put_opts(&name, bytes.into(), options).await }).await {
            Ok(_) => Ok(true),
            Err(ArchiveError::Store(object_store::Error::AlreadyExists { .. })) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Digest of this machine and data directory.
    pub fn writer(&self) -> &[u8] {
        &self.writer
    }

    /// Whether a claim was made under this instance. A database from before there were instances knows its claims by
    /// machine and data directory.
    pub fn is_own(&self, claim: &wire::Claim) -> bool {
        match &self.instance {
            Some(instance) => claim.nonce == nonce(instance, claim.first_index)[..],
            None => claim.writer == self.writer.as_slice(),
        }
    }

    /// The claim whose first index is `index`.
    ///
    /// # Errors
    /// [`FenceError`].
    pub async fn read(&self, index: u64) -> Result<Option<wire::Claim>, FenceError> {
        let claim = self.claim_at(index).await?;
        if claim.is_none() {
            self.check_mark().await?;
        }
        Ok(claim)
    }

    async fn claim_at(&self, index: u64) -> Result<Option<wire::Claim>, FenceError> {
        let Some(bytes) = self.get(format!("fence/log/{index}")).await? else { return Ok(None) };
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
        let instance = self.instance.unwrap_or_else(keys::random);
        let claim = wire::Claim {
            version: FORMAT_VERSION,
            origin: self.origin.clone(),
            term,
            first_index: index,
            writer: Bytes::copy_from_slice(&self.writer),
            at: clock::now_us(),
            nonce: Bytes::copy_from_slice(&nonce(&instance, index)),
            entries: entries.to_vec(),
        };
        self.check_mark().await?;
        let name = Name::from(format!("fence/log/{index}"));
        let created = self.create(&name, claim.encode_to_vec().into()).await;
        // Read in any case, and with it the mark: a claim that went into a folder that is not the fence is none.
        self.check_mark().await?;
        match self.read(index).await? {
            Some(found) if found == claim => Ok(Claimed::Won),
            Some(found) => Ok(Claimed::Lost(Box::new(found))),
            None => Err(created.err().map_or(FenceError::Store(ArchiveError::TimedOut), FenceError::Store)),
        }
    }
}

/// Tells a claim of this instance from every other; looks random to whoever does not hold the instance.
fn nonce(instance: &Instance, index: u64) -> [u8; 16] {
    let digest = sha256(&[b"custody/v1/claim-nonce\n", instance, &index.to_be_bytes()]);
    let mut nonce = [0; 16];
    nonce.copy_from_slice(&digest[..16]);
    nonce
}
