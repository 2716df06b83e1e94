//! Files that must last: the only place of the ledger that writes, renames or removes a file of its own.
//!
//! What must hold: after a function here has returned, a power cut changes nothing any more (it may undo a [`remove`], and take
//! a [`Slot`] back to what it held before). A file is seen whole or not at all, because its bytes reach the disk under another name first; and its name lasts,
//! because the folder is synced, too.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// In the name of a file whose bytes are not synced yet.
const TEMPORARY_MARK: &str = ".tmp.";
/// Tells two writes of one process apart; another process has another number before it.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Puts `bytes` under `path` with exactly the permissions `mode`, in the place of what was there.
///
/// # Errors
/// Those of the file system. The old file is then still there, whole.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    // A crash before the rename leaves a file with [`TEMPORARY_MARK`] in its name, which nobody reads.
    if let Err(why) = note("name", path).and_then(|()| fs::rename(&temporary, path)) {
        discard(&temporary);
        return Err(why);
    }
    sync_dir(parent(path))
}

/// Puts `bytes` under `path`, where nothing may be.
///
/// # Errors
/// `AlreadyExists` if something is there, which is then untouched; else those of the file system.
pub fn create_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    // A link refuses an existing name, which a rename would replace.
    let linked = note("name", path).and_then(|()| fs::hard_link(&temporary, path));
    discard(&temporary);
    linked?;
    sync_dir(parent(path))
}

/// Removes a file; that there is none is no error. A power cut may bring it back: nothing that must be gone is removed so.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match note("remove", path).and_then(|()| fs::remove_file(path)) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// A few bytes that are written over in place, again and again, and synced now and then: after a crash of the process the file
/// holds what was put last, after a power cut that or what was put before, but nothing older than the last sync. They are fewer
/// than a sector has, so never half of each.
pub struct Slot {
    file: File,
    path: PathBuf,
}

impl Slot {
    /// The file at `path`, made with these bytes if there is none.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, first: &[u8], mode: u32) -> io::Result<Self> {
        if !path.try_exists()? {
            write(path, first, mode)?;
        }
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes these bytes, as many as before, in the place of what was there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn put(&self, bytes: &[u8]) -> io::Result<()> {
        note("put", &self.path)?;
        self.file.write_all_at(bytes, 0)
    }

    /// Makes what was put last outlast a power cut.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn sync(&self) -> io::Result<()> {
        note("sync", &self.path)?;
        self.file.sync_data()
    }
}

/// Removes what a process that was killed left of its writes of `path`: these files hold what the file held once, or was to hold.
/// They do not come back. Nobody else may be writing it.
///
/// # Errors
/// Those of the file system; some may then still be there.
pub fn remove_temporaries(path: &Path) -> io::Result<()> {
    let folder = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begins = format!("{name}{TEMPORARY_MARK}");
    let mut found = false;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&begins) {
            remove(&entry.path())?;
            found = true;
        }
    }
    if found { sync_dir(folder) } else { Ok(()) }
}

/// Whether a file of this name was on its way to its own name when its process ended.
pub fn is_temporary(name: &str) -> bool {
    name.contains(TEMPORARY_MARK)
}

/// Makes the names in a folder last.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(folder: &Path) -> io::Result<()> {
    note("sync-folder", folder)?;
    File::open(folder)?.sync_all()
}

/// Gives a folder another name, under which nothing may be.
///
/// # Errors
/// Those of the file system.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn move_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(parent(to))
}

/// Makes a file that is there already last, with its names from `root` down: a process that was killed between its write and
/// its syncs leaves one that everybody can read and a power cut takes away.
///
/// # Errors
/// Those of the file system.
pub fn sync_existing(root: &Path, path: &Path) -> io::Result<()> {
    sync_file(&File::open(path)?, path)?;
    for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
        sync_dir(folder)?;
    }
    Ok(())
}

/// Makes a folder with the permissions `mode`, and those above it that are missing. That it is there already is no error.
///
/// # Errors
/// Those of the file system.
pub fn create_dir(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = parent(folder);
    create_dir(above, mode)?;
    note("name", folder)?;
    match fs::DirBuilder::new().mode(mode).create(folder) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(why),
        _ => sync_dir(above),
    }
}

/// Bytes that the file system under `path` can still take from this process.
///
/// # Errors
/// Those of the file system.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let room = rustix::fs::statvfs(path)?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// The bytes, synced, under a name beside `path`.
fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut temporary = name.to_os_string();
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!("{TEMPORARY_MARK}{}.{number}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let filled = fill(&temporary, bytes, mode);
    if let Err(why) = filled {
        if why.kind() != io::ErrorKind::AlreadyExists {
            discard(&temporary);
        }
        return Err(why);
    }
    Ok(temporary)
}

fn fill(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken from the mode.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    note("fill", path)?;
    file.write_all(bytes)?;
    sync_file(&file, path)
}

fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    note("sync", path)?;
    file.sync_all()
}

/// Called before each step that changes the disk or waits for it: tests look on, and let it fail.
#[cfg(not(test))]
fn note(_: &'static str, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use recorder::note;

/// The steps under the folders that a test watches, in their order; a test may let the next one of a kind fail.
#[cfg(test)]
pub(crate) mod recorder {
    use std::{
        collections::BTreeMap,
        io,
        path::{Path, PathBuf},
        sync::Mutex,
    };

    #[derive(Default)]
    struct Watched {
        steps: Vec<(&'static str, PathBuf)>,
        fails: Option<&'static str>,
        failed: u64,
    }

    static WATCHED: Mutex<BTreeMap<PathBuf, Watched>> = Mutex::new(BTreeMap::new());

    /// From now on the steps under `root` are kept.
    pub(crate) fn watch(root: &Path) {
        WATCHED.lock().unwrap().entry(root.to_owned()).or_default();
    }

    /// The steps since then.
    pub(crate) fn take(root: &Path) -> Vec<(&'static str, PathBuf)> {
        WATCHED.lock().unwrap().get_mut(root).map(|watched| std::mem::take(&mut watched.steps)).unwrap_or_default()
    }

    /// The next step of this kind under `root` fails, and is not done.
    pub(crate) fn fail_once(root: &Path, step: &'static str) {
        WATCHED.lock().unwrap().entry(root.to_owned()).or_default().fails = Some(step);
    }

    /// How many failed so.
    pub(crate) fn failed(root: &Path) -> u64 {
        WATCHED.lock().unwrap().get(root).map_or(0, |watched| watched.failed)
    }

    pub(super) fn note(step: &'static str, path: &Path) -> io::Result<()> {
        for (root, watched) in WATCHED.lock().unwrap().iter_mut() {
            if !path.starts_with(root) {
                continue;
            }
            if watched.fails == Some(step) {
                watched.fails = None;
                watched.failed += 1;
                return Err(io::Error::other("an injected fault"));
            }
            watched.steps.push((step, path.to_owned()));
        }
        Ok(())
    }
}

/// A temporary file that stays behind harms nobody, and the failure that led here is the one to tell.
fn discard(temporary: &Path) {
    if let Err(why) = fs::remove_file(temporary) {
        tracing::warn!(error = %why, "a temporary file stays behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_whole_files_with_the_mode_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn create_new_touches_nothing_that_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        create_new(&path, b"one", 0o600).unwrap();
        assert_eq!(create_new(&path, b"two", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("folder");
        fs::create_dir(&occupied).unwrap();
        write(&occupied, b"bytes", 0o600).unwrap_err();
        assert!(occupied.is_dir());
        assert_eq!(names(folder.path()), ["folder"]);
    }

    /// Replays the steps, each prefix a power cut that keeps nothing but what was synced: a file under its own name is whole
    /// from the first moment, and at the end every name lasts.
    fn check_lasting(steps: &[(&'static str, PathBuf)]) {
        let (mut filled, mut folders) = (Vec::new(), Vec::new());
        for (step, path) in steps {
            match *step {
                "fill" => filled.push(path.clone()),
                "sync" => filled.retain(|dirty| dirty != path),
                "name" => {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let temporary = |dirty: &PathBuf| {
                        let dirty = dirty.file_name().unwrap().to_str().unwrap();
                        dirty.starts_with(&format!("{name}{TEMPORARY_MARK}"))
                    };
                    assert!(!filled.iter().any(temporary), "{name} has a name before its bytes are synced: {steps:?}");
                    folders.push(parent(path).to_owned());
                }
                "sync-folder" => folders.retain(|dirty| dirty != path),
                _ => {}
            }
        }
        assert!(filled.is_empty() && folders.is_empty(), "a power cut takes {filled:?}, {folders:?}: {steps:?}");
    }

    #[test]
    fn a_power_cut_takes_nothing_of_what_was_answered() {
        let folder = tempfile::tempdir().unwrap();
        let (root, path) = (folder.path(), folder.path().join("a"));
        recorder::watch(root);
        let steps = |what: &str| {
            let steps = recorder::take(root);
            assert!(!steps.is_empty(), "{what} was recorded");
            check_lasting(&steps);
            steps
        };
        write(&path, b"one", 0o600).unwrap();
        steps("write");
        create_new(&root.join("b"), b"one", 0o600).unwrap();
        steps("create_new");
        create_dir(&root.join("x/y"), 0o700).unwrap();
        assert_eq!(steps("create_dir").iter().filter(|(step, _)| *step == "name").count(), 2);
        File::create(root.join("x/y/c")).unwrap().write_all(b"of a process that was killed").unwrap();
        sync_existing(root, &root.join("x/y/c")).unwrap();
        let expected = [("sync", "x/y/c"), ("sync-folder", "x/y"), ("sync-folder", "x"), ("sync-folder", "")];
        assert_eq!(steps("sync_existing"), expected.map(|(step, path)| (step, root.join(path))));
    }

    #[test]
    fn what_a_killed_write_left_is_removed_for_good_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (root, path) = (folder.path(), folder.path().join("a"));
        for name in ["a", "a.tmp.7.0", "a.tmp.7.1", "ab.tmp.7.0", "a.tmp"] {
            File::create(root.join(name)).unwrap();
        }
        recorder::watch(root);
        remove_temporaries(&path).unwrap();
        assert_eq!(names(root), ["a", "a.tmp", "ab.tmp.7.0"]);
        let steps = recorder::take(root);
        assert_eq!(steps.last(), Some(&("sync-folder", root.to_owned())), "a power cut brings them back: {steps:?}");
        remove_temporaries(&path).unwrap();
        assert!(recorder::take(root).is_empty(), "nothing is to be done");
    }

    #[test]
    fn folders_are_made_with_their_mode_and_removal_is_idempotent() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x/y");
        create_dir(&deep, 0o700).unwrap();
        create_dir(&deep, 0o700).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap().permissions().mode() & 0o777, 0o700);
        write(&deep.join("a"), b"", 0o600).unwrap();
        remove(&deep.join("a")).unwrap();
        remove(&deep.join("a")).unwrap();
        assert!(names(&deep).is_empty());
        assert!(free_bytes(folder.path()).unwrap() > 0);
    }
}
