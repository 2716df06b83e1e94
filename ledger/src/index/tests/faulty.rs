//! A folder whose writes go wrong, each by its name: `index:writer`, `index:open:FILE`, `index:replace:FILE`, `index:sync`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tantivy::{
    Directory,
    directory::{
        DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr,
        error::{DeleteError, LockError, OpenReadError, OpenWriteError},
    },
};

use crate::rig::faults::{Faults, Mode};

/// Fails as a full disk does, if that was planned.
pub(in crate::index) fn strike(faults: &Faults, line: &str) -> io::Result<()> {
    match faults.strike(line) {
        Some(Mode::Refuse) => Err(io::Error::new(io::ErrorKind::StorageFull, "an injected fault")),
        _ => Ok(()),
    }
}

/// A folder on a disk with faults.
#[derive(Clone, Debug)]
pub(in crate::index) struct Faulty {
    pub(in crate::index) inner: MmapDirectory,
    pub(in crate::index) faults: Faults,
}

impl Directory for Faulty {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.inner.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        let why = |io_error| OpenWriteError::IoError { io_error: Arc::new(io_error), filepath: PathBuf::from(path) };
        strike(&self.faults, &format!("index:open:{}", path.display())).map_err(why)?;
        self.inner.open_write(path)
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        self.inner.atomic_read(path)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        strike(&self.faults, &format!("index:replace:{}", path.display()))?;
        self.inner.atomic_write(path, data)
    }

    fn sync_directory(&self) -> io::Result<()> {
        strike(&self.faults, "index:sync")?;
        self.inner.sync_directory()
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.inner.acquire_lock(lock)
    }

    fn watch(&self, watch_callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(watch_callback)
    }
}
