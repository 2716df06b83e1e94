//! The archive: objects put once and read back, over `object_store`. Only this file and `fence.rs` name that crate.
//!
//! What must hold: [`Archive::put`] returns when the object is there, whole, and was read back and compared; the same
//! object again is no error, another under its name is. Every request has a limit in time, so that a store that hangs is a
//! store that fails.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, local::LocalFileSystem, path::Path as Name};

use crate::durable;

/// Why an object is not in the archive, or could not be read.
#[derive(Debug)]
pub enum ArchiveError {
    /// The store refused or failed; the same again may work.
    Store(object_store::Error),
    /// No answer within the limit; whether it was done is unknown, and the same again is safe.
    TimedOut,
    /// What is there under this name is not what was put. Never repaired by itself.
    Differs(String),
}

impl std::fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(_) => f.write_str("use the archive's store"),
            Self::TimedOut => f.write_str("get an answer from the store within the limit"),
            Self::Differs(name) => write!(f, "find in the archive what was put there: {name} holds other bytes"),
        }
    }
}

impl std::error::Error for ArchiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

impl From<object_store::Error> for ArchiveError {
    fn from(source: object_store::Error) -> Self {
        Self::Store(source)
    }
}

/// Objects in a store.
#[derive(Clone, Debug)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    /// Where it lies, if it is a folder.
    folder: Option<PathBuf>,
    /// For one request.
    limit: Duration,
}

impl Archive {
    /// A folder, made if it is not there; every put is fsynced with its directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn folder(path: &Path, limit: Duration) -> Result<Self, ArchiveError> {
        Ok(Self { store: open_folder(path)?, folder: Some(path.to_owned()), limit })
    }

    /// Over any store.
    pub fn over(store: Arc<dyn ObjectStore>, limit: Duration) -> Self {
        Self { store, folder: None, limit }
    }

    /// Puts an object, reads it back and compares. Idempotent.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Name::from(name);
        let put = in_time(self.limit, self.store.put_opts(&path, bytes.clone().into(), options)).await;
        match put {
            Ok(_) => {}
            Err(ArchiveError::Store(object_store::Error::AlreadyExists { .. })) => self.sync_existing(name).await?,
            // It may be there all the same: reading back decides.
            Err(why) => match self.get(name).await {
                Ok(Some(found)) if found == bytes => return self.sync_existing(name).await,
                _ => return Err(why),
            },
        }
        match self.get(name).await? {
            Some(found) if found == bytes => Ok(()),
            _ => Err(ArchiveError::Differs(name.to_owned())),
        }
    }

    /// In a folder, an object that a killed process put may not have been synced; a store says that it has an object only when
    /// it lasts.
    async fn sync_existing(&self, name: &str) -> Result<(), ArchiveError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let path = folder.join(name);
        let synced = tokio::task::spawn_blocking(move || durable::sync_existing(&folder, &path));
        let failed = |source| object_store::Error::Generic { store: "folder", source };
        in_time(self.limit, async move {
            match synced.await {
                Ok(done) => done.map_err(|why| failed(Box::new(why))),
                Err(why) => Err(failed(Box::new(why))),
            }
        })
        .await
    }

    /// An object's bytes; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, ArchiveError> {
        let path = Name::from(name);
        let read = async { self.store.get(&path).await?.bytes().await };
        match in_time(self.limit, read).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ArchiveError::Store(object_store::Error::NotFound { .. })) => Ok(None),
            Err(why) => Err(why),
        }
    }
}

/// A folder as a store, with fsync.
pub(crate) fn open_folder(path: &Path) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    durable::create_dir(path, 0o755)
        .map_err(|source| object_store::Error::Generic { store: "folder", source: Box::new(source) })?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(path)?.with_fsync(true)))
}

/// Awaits a request for at most the limit.
pub(crate) async fn in_time<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, object_store::Error>>,
) -> Result<T, ArchiveError> {
    match tokio::time::timeout(limit, request).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(ArchiveError::TimedOut),
    }
}
