//! Files that must last: the only place that writes, renames or removes them.
//!
//! What must hold: nothing counts as durable before the sync that covers it has returned, and a new or renamed file not
//! before its directory was synced. The spool sees only [`Disk`], so that a test can stand between it and the files and
//! replay every prefix of what was asked, with whatever was not yet synced dropped or torn.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Mode of secrets and of everything in the spool: the owner alone.
const MODE_SECRET: u32 = 0o600;

/// One directory of flat files, as the spool uses it.
///
/// An implementation MUST keep the order of calls on one file, and MUST NOT return from [`Self::sync`] or
/// [`Self::sync_dir`] before what was written before survives a power failure.
pub trait Disk: Send {
    /// Names of all files, in no order.
    ///
    /// # Errors
    /// As the file system says.
    fn list(&self) -> io::Result<Vec<String>>;
    /// All bytes of a file.
    ///
    /// # Errors
    /// As the file system says.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// `length` bytes from `offset` on.
    ///
    /// # Errors
    /// As the file system says; also when there are fewer.
    fn read_at(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// An empty file. It is there after a crash only once it and the directory were synced.
    ///
    /// # Errors
    /// As the file system says; also when there is one of that name.
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// As the file system says; some of the bytes may then be there.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file to `length` bytes: takes back an append that failed.
    ///
    /// # Errors
    /// As the file system says.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// Waits until the file's bytes are durable.
    ///
    /// # Errors
    /// As the file system says. What was written since the last sync is then in doubt for good.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Waits until names that were created, renamed or removed are durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync_dir(&mut self) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// As the file system says.
    fn remove(&mut self, name: &str) -> io::Result<()>;
}

/// A real directory, locked for this process.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    open: HashMap<String, File>,
    /// Held as long as the folder is: two shims on one spool would sign the same numbers twice.
    _lock: File,
}

const LOCK: &str = "lock";

impl Folder {
    /// Opens `dir`, making it (mode 0700) if it is not there.
    ///
    /// # Errors
    /// As the file system says; `WouldBlock` when another process holds it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        if !dir.is_dir() {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
            sync_parent(dir)?;
        }
        let lock = options().create(true).truncate(false).open(dir.join(LOCK))?;
        lock.try_lock().map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "another process uses this folder"))?;
        Ok(Self { dir: dir.to_owned(), open: HashMap::new(), _lock: lock })
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new().read(true).append(true).open(self.dir.join(name))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get_mut(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(MODE_SECRET);
    options
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names: io::Result<Vec<String>> = names.collect();
        Ok(names?.into_iter().filter(|name| name != LOCK).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn read_at(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.open.get(name) {
            Some(file) => file.read_exact_at(&mut bytes, offset)?,
            None => File::open(self.dir.join(name))?.read_exact_at(&mut bytes, offset)?,
        }
        Ok(bytes)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true).mode(MODE_SECRET);
        let file = options.open(self.dir.join(name))?;
        self.open.insert(name.to_owned(), file);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all(bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        fs::remove_file(self.dir.join(name))
    }
}

/// Writes a new file, with mode 0600 if it is a secret; durable when this returns.
///
/// # Errors
/// As the file system says; `AlreadyExists` rather than overwriting.
pub fn create_new(path: &Path, bytes: &[u8], secret: bool) -> io::Result<()> {
    let mode = if secret { MODE_SECRET } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    sync_parent(path)
}

/// Puts `bytes` in place of a file, or makes it: after a crash there is the old one or the new one, whole.
///
/// # Errors
/// As the file system says.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = options().create(true).truncate(true).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A crash here leaves the old file, and a `.new` that the next replacement overwrites.
    fs::rename(&new, path)?;
    sync_parent(path)
}

/// Makes a socket's file its owner's alone.
///
/// # Errors
/// As the file system says.
pub fn restrict(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(MODE_SECRET))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

#[cfg(test)]
pub(crate) mod recorder;
