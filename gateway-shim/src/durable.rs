//! Files that must last: the only place that writes, renames or removes them.
//!
//! What must hold: nothing counts as durable before the sync that covers it has returned, and a new or renamed file not
//! before its directory was synced. The spool sees only [`Disk`], so that a test can stand between it and the files and
//! replay every prefix of what was asked, with whatever was not yet synced dropped or torn.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Mode of secrets and of everything in the spool: the owner alone.
const MODE_SECRET: u32 = 0o600;
const MODE_FOLDER: u32 = 0o700;

/// Makes durable what was written to a file before this was made: for a thread that does not write.
pub type Syncing = Box<dyn FnOnce() -> io::Result<()> + Send>;
/// Reads so many bytes of the file of this name, from this offset on: for a thread that does not write.
pub type Reading = Arc<dyn Fn(&str, u64, usize) -> io::Result<Vec<u8>> + Send + Sync>;

/// One directory of flat files, as the spool uses it.
///
/// An implementation MUST keep the order of calls on one file, and MUST NOT return from [`Self::sync`], from what
/// [`Self::syncing`] gives or from [`Self::sync_dir`] before what was written before survives a power failure.
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
    /// What reads parts of files; it fails also when there are fewer bytes.
    fn reading(&self) -> Reading;
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
    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.syncing(name)?()
    }
    /// The same, to be done later. What is written meanwhile may be durable by it or not.
    ///
    /// # Errors
    /// As the file system says.
    fn syncing(&mut self, name: &str) -> io::Result<Syncing>;
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
    /// The file that was written to last. No more than this one is kept open: a spool has a file for each 16 MiB that wait.
    open: Option<(String, Arc<File>)>,
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
        Ok(Self { dir: dir.to_owned(), open: None, _lock: lock(dir, LOCK)? })
    }

    fn file(&mut self, name: &str) -> io::Result<&Arc<File>> {
        let open = match self.open.take() {
            Some(open) if open.0 == name => open,
            _ => (name.to_owned(), Arc::new(OpenOptions::new().append(true).open(self.dir.join(name))?)),
        };
        Ok(&self.open.insert(open).1)
    }
}

/// Makes the folder `dir` (mode 0700), if it is not there, and holds its file `name` until the answer is dropped or this process
/// ends, however it does.
///
/// # Errors
/// As the file system says; `WouldBlock` when another process holds it.
pub fn lock(dir: &Path, name: &str) -> io::Result<File> {
    create_dir(dir, MODE_FOLDER)?;
    let lock = options().create(true).truncate(false).open(dir.join(name))?;
    lock.try_lock().map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "another process uses this folder"))?;
    Ok(lock)
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

    fn reading(&self) -> Reading {
        let dir = self.dir.clone();
        Arc::new(move |name, offset, length| {
            let mut bytes = vec![0; length];
            File::open(dir.join(name))?.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(MODE_SECRET);
        let file = options.open(self.dir.join(name))?;
        self.open = Some((name.to_owned(), Arc::new(file)));
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.as_ref().write_all(bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn syncing(&mut self, name: &str) -> io::Result<Syncing> {
        let file = Arc::clone(self.file(name)?);
        Ok(Box::new(move || file.sync_data()))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.take_if(|open| open.0 == name);
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
    sync_file(&file)?;
    sync_parent(path)
}

/// Puts `bytes` in place of a file, which keeps its mode, or makes it with mode 0600: after a crash there is the old one or
/// the new one, whole.
///
/// # Errors
/// As the file system says.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = options().create(true).truncate(true).open(&new)?;
    if let Ok(old) = fs::metadata(path) {
        file.set_permissions(old.permissions())?;
    }
    file.write_all(bytes)?;
    sync_file(&file)?;
    // A crash here leaves the old file, and a `.new` that the next replacement overwrites.
    fs::rename(&new, path)?;
    sync_parent(path)
}

/// Removes a file; durable when this returns.
///
/// # Errors
/// As the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_parent(path)
}

/// Free bytes of the file system where this folder is, for accounts that are not root; `None` where it does not say.
pub fn free_bytes(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes of the files of a folder; 0 for one that is not there.
pub fn bytes_in(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Makes a folder with the permissions `mode`, and those above it that are missing; durable when this returns. That it is
/// there already is no error.
///
/// # Errors
/// As the file system says.
pub fn create_dir(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    create_dir(parent(folder), mode)?;
    match fs::DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Err(_) if !folder.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        _ => sync_parent(folder),
    }
}

/// The same with the mode of everything that is this shim's alone.
///
/// # Errors
/// As the file system says.
pub fn create_private_dir(folder: &Path) -> io::Result<()> {
    create_dir(folder, MODE_FOLDER)
}

/// Makes a socket at `path` that is its owner's alone from its first moment: `bind` makes it in a folder that nobody else
/// can enter, and it is moved out only with its mode set. What stands at `path` is replaced.
///
/// # Errors
/// As the file system says.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn bind_private<L>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<L>) -> io::Result<L> {
    // A short name: the path of a socket has at most 107 bytes.
    let folder = parent(path).join(format!(".{}", custody::id::hex(&crate::random::bytes::<4>())));
    fs::DirBuilder::new().mode(MODE_FOLDER).create(&folder)?;
    let socket = folder.join("s");
    let bound = bind(&socket).and_then(|listener| {
        fs::set_permissions(&socket, fs::Permissions::from_mode(MODE_SECRET))?;
        fs::rename(&socket, path)?;
        Ok(listener)
    });
    fs::remove_dir_all(&folder)?;
    bound
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn sync_file(file: &File) -> io::Result<()> {
    #[cfg(test)]
    tests::fail_if_asked(tests::SyncOf::File)?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tests::fail_if_asked(tests::SyncOf::Folder)?;
    File::open(parent(path))?.sync_all()
}

#[cfg(test)]
pub(crate) mod recorder;

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::Cell, os::unix::net::UnixListener};

    use super::*;
    use crate::testing::TempDir;

    /// What is synced.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub(crate) enum SyncOf {
        File,
        Folder,
    }

    thread_local! {
        static FAILS: Cell<Option<SyncOf>> = const { Cell::new(None) };
    }

    /// The next sync of this kind on this thread fails.
    pub(crate) fn fail_next(what: SyncOf) {
        FAILS.set(Some(what));
    }

    pub(super) fn fail_if_asked(what: SyncOf) -> io::Result<()> {
        if FAILS.get() != Some(what) {
            return Ok(());
        }
        FAILS.set(None);
        Err(io::Error::other("the disk failed"))
    }

    /// A file is new or old, whole, only if it is synced before it has its name, and its name after that.
    #[test]
    fn files_are_synced_before_their_name_counts_and_the_folder_after() {
        let dir = TempDir::new();
        let (made, replaced, folder) =
            (dir.path().join("made"), dir.path().join("replaced"), dir.path().join("folder"));
        for what in [SyncOf::File, SyncOf::Folder] {
            fail_next(what);
            assert!(create_new(&made, b"new", true).is_err());
            fs::remove_file(&made).unwrap();
            replace(&replaced, b"old").unwrap();
            fail_next(what);
            assert!(replace(&replaced, b"new").is_err());
            let there: &[u8] = if what == SyncOf::File { b"old" } else { b"new" };
            assert_eq!(fs::read(&replaced).unwrap(), there);
        }
        fail_next(SyncOf::Folder);
        assert!(create_dir(&folder, 0o700).is_err());
    }

    #[test]
    fn a_socket_is_its_owners_alone_from_its_first_moment() {
        let dir = TempDir::new();
        let path = dir.path().join("relay.sock");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let listener = bind_private(&path, |socket| {
            assert_eq!(mode(parent(socket)), 0o700, "others could reach it while its mode is the umask's");
            assert!(!path.exists());
            UnixListener::bind(socket)
        });
        assert_eq!(mode(&path), 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(listener.unwrap());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["relay.sock"], "nothing else is left");
        let refused = bind_private(&path, |_| Err::<UnixListener, _>(io::Error::other("no")));
        assert!(refused.is_err() && fs::read_dir(dir.path()).unwrap().count() == 1);
    }

    #[test]
    fn a_folder_holds_one_file_open_however_many_there_are() {
        let dir = TempDir::new();
        let mut folder = Folder::open(dir.path()).unwrap();
        let held = || fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        for name in (0..20).map(|n: u8| n.to_string()) {
            folder.create(&name).unwrap();
            folder.append(&name, name.as_bytes()).unwrap();
            folder.append("0", b"more").unwrap();
            folder.sync(&name).unwrap();
        }
        // The lock and the last one.
        assert_eq!(held().filter(|path| path.starts_with(dir.path())).count(), 2);
        assert_eq!(folder.reading()("7", 0, 1).unwrap(), b"7");
        folder.remove("19").unwrap();
        assert_eq!(held().filter(|path| path.starts_with(dir.path())).count(), 1);
        assert_eq!(folder.read("0").unwrap().len(), 1 + 20 * 4);
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let dir = TempDir::new();
        let deep = dir.path().join("a/b/c");
        create_dir(&deep, 0o700).unwrap();
        create_dir(&deep, 0o700).unwrap();
        assert_eq!(fs::metadata(deep.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
