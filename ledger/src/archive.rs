//! The archive: objects put once and read back, over `object_store`. Only this file and `fence.rs` name that crate.
//!
//! What must hold: [`Archive::put`] returns when the object is there, whole, and was read back and compared; the same
//! object again is no error, another under its name is. Every request has a limit in time, so that a store that hangs is a
//! store that fails; and only so many are under way at a time, so that one that hangs takes no more than so many threads.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, local::LocalFileSystem, path::Path as Name};
use tokio::sync::Semaphore;

use verifier::reader::NAMES_MAX;

use crate::durable;

/// Requests to one store that are under way at a time, those that were given up among them: enough for what is sealed and
/// for readers over HTTP, and few beside the 512 threads that the process has for calls that block.
const REQUESTS_MAX: usize = 16;

/// Why an object is not in the archive, or could not be read.
#[derive(Debug)]
pub enum ArchiveError {
    /// The store refused or failed; the same again may work.
    Store(object_store::Error),
    /// No answer within the limit; whether it was done is unknown, and the same again is safe.
    TimedOut,
    /// What is there under this name is not what was put. Never repaired by itself.
    Differs(String),
    /// What was put long ago is not there: another folder, or one that is not mounted. Nothing may be put into that.
    Gone(String),
}

impl std::fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(_) => f.write_str("use the archive's store"),
            Self::TimedOut => f.write_str("get an answer from the store within the limit"),
            Self::Differs(name) => write!(f, "find in the archive what was put there: {name} holds other bytes"),
            Self::Gone(name) => write!(
                f,
                "find in the archive what was put there before: no {name} of this log \
                 (hint: is the archive mounted, and is archive.folder the right one?)"
            ),
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
    requests: Requests,
}

impl Archive {
    /// A folder; every put is fsynced with its directory. It is made if it is not there, unless it was `used_before`: then it
    /// is somewhere else, and a new one would be taken for it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn folder(path: &Path, limit: Duration, used_before: bool) -> Result<Self, ArchiveError> {
        if used_before && !path.is_dir() {
            return Err(ArchiveError::Gone("folder".to_owned()));
        }
        Ok(Self { folder: Some(path.to_owned()), ..Self::over(open_folder(path)?, limit) })
    }

    /// Over any store.
    pub fn over(store: Arc<dyn ObjectStore>, limit: Duration) -> Self {
        Self { store, folder: None, requests: Requests::new(limit) }
    }

    /// Puts an object, reads it back and compares. Idempotent.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Name::from(name);
        let (store, payload) = (Arc::clone(&self.store), bytes.clone().into());
        match self.requests.run(async move { store.put_opts(&path, payload, options).await }).await {
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
            Some(_) => Err(ArchiveError::Differs(name.to_owned())),
            None => Err(ArchiveError::Gone(name.to_owned())),
        }
    }

    /// In a folder, an object that a killed process put may not have been synced; a store says that it has an object only when
    /// it lasts.
    async fn sync_existing(&self, name: &str) -> Result<(), ArchiveError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let path = folder.join(name);
        let failed = |source| object_store::Error::Generic { store: "folder", source };
        let sync = async move {
            match tokio::task::spawn_blocking(move || durable::sync_existing(&folder, &path)).await {
                Ok(done) => done.map_err(|why| failed(Box::new(why))),
                Err(why) => Err(failed(Box::new(why))),
            }
        };
        self.requests.run(sync).await
    }

    /// An object's bytes; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, ArchiveError> {
        let (store, path) = (Arc::clone(&self.store), Name::from(name));
        match self.requests.run(async move { store.get(&path).await?.bytes().await }).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ArchiveError::Store(object_store::Error::NotFound { .. })) => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// Names of the objects below a folder, relative to it, sorted.
    ///
    /// # Errors
    /// [`ArchiveError`], also where there are more than [`NAMES_MAX`].
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, ArchiveError> {
        use futures::TryStreamExt as _;
        let (store, prefix) = (Arc::clone(&self.store), Name::from(folder));
        let names = self.requests.run(async move {
            let listed = store.list(Some(&prefix)).map_ok(|object| object.location.to_string());
            let mut names: Vec<String> = futures::StreamExt::take(listed, NAMES_MAX + 1).try_collect().await?;
            if names.len() > NAMES_MAX {
                let source = format!("more than {NAMES_MAX} objects below {prefix}").into();
                return Err(object_store::Error::Generic { store: "archive", source });
            }
            names.sort_unstable();
            Ok(names)
        });
        let below = |name: String| name.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned);
        Ok(names.await?.into_iter().filter_map(below).collect())
    }

    /// Whether it is still the archive that it was: whatever is put into another one is not archived.
    ///
    /// # Errors
    /// [`ArchiveError::Gone`] unless the object of this name is there and `is_ours`; else those of [`Self::get`].
    pub async fn still_holds(&self, name: &str, is_ours: impl FnOnce(&[u8]) -> bool) -> Result<(), ArchiveError> {
        match self.get(name).await? {
            Some(found) if is_ours(&found) => Ok(()),
            _ => Err(ArchiveError::Gone(name.to_owned())),
        }
    }
}

/// A folder as a store, with fsync.
pub(crate) fn open_folder(path: &Path) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    durable::create_dir(path, 0o755)
        .map_err(|source| object_store::Error::Generic { store: "folder", source: Box::new(source) })?;
    Ok(Arc::new(LocalFileSystem::new_with_prefix(path)?.with_fsync(true)))
}

/// Requests to one store: each for at most so long, and so many at a time. Clones share the room.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    limit: Duration,
    room: Arc<Semaphore>,
}

impl Requests {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, room: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Awaits a request for at most the limit. One that is given up keeps its place until its thread comes back from the
    /// store: of a store that hangs the next ones only wait for a place, in no thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, object_store::Error>> + Send + 'static,
    ) -> Result<T, ArchiveError> {
        let room = Arc::clone(&self.room);
        let answer = async {
            let Ok(place) = room.acquire_owned().await else { return Err(ArchiveError::TimedOut) };
            let asked = tokio::spawn(async move {
                let done = request.await;
                drop(place);
                done
            });
            match asked.await {
                Ok(done) => Ok(done?),
                Err(why) => Err(object_store::Error::JoinError { source: why }.into()),
            }
        };
        tokio::time::timeout(self.limit, answer).await.unwrap_or(Err(ArchiveError::TimedOut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_that_is_there_already_counts_once_it_and_its_folders_are_synced() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::folder(folder.path(), Duration::from_secs(10), false).unwrap();
        archive.put("log/tile/0/000", Bytes::from_static(b"tile")).await.unwrap();
        durable::recorder::watch(folder.path());
        // Another process: it does not know whether the one before got to its syncs.
        let archive = Archive::folder(folder.path(), Duration::from_secs(10), true).unwrap();
        archive.put("log/tile/0/000", Bytes::from_static(b"tile")).await.unwrap();
        let expected = [
            ("sync", "log/tile/0/000"),
            ("sync-folder", "log/tile/0"),
            ("sync-folder", "log/tile"),
            ("sync-folder", "log"),
        ];
        let steps = durable::recorder::take(folder.path());
        for (step, path) in expected {
            assert!(steps.contains(&(step, folder.path().join(path))), "{step} {path}: {steps:?}");
        }
        // One that fails and is there all the same.
        let faults = crate::rig::faults::Faults::default();
        faults.arm(&["archive:put:"], crate::rig::faults::Mode::DoThenErr, 1);
        let inner = open_folder(folder.path()).unwrap();
        let store = crate::rig::faults::Faulty { inner, faults: faults.clone(), place: "archive" };
        let faulty = Archive::over(Arc::new(store), Duration::from_secs(10));
        let faulty = Archive { folder: Some(folder.path().to_owned()), ..faulty };
        faulty.put("log/tile/0/001", Bytes::from_static(b"tile")).await.unwrap();
        assert_eq!(faults.struck(), 1);
        let steps = durable::recorder::take(folder.path());
        assert!(steps.contains(&("sync", folder.path().join("log/tile/0/001"))), "{steps:?}");
        let other = archive.put("log/tile/0/000", Bytes::from_static(b"else")).await;
        assert!(matches!(other, Err(ArchiveError::Differs(_))), "{other:?}");
    }
}
