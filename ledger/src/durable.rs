//! Files that must last: the only place of the ledger that writes, renames or removes a file of its own.
//!
//! What must hold: after a function here has returned, a power cut changes nothing any more. A file is seen whole or not at
//! all, because its bytes reach the disk under another name first; and its name lasts, because the folder is synced, too.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// Tells two writes of one process apart; another process has another number before it.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Puts `bytes` under `path` with exactly the permissions `mode`, in the place of what was there.
///
/// # Errors
/// Those of the file system. The old file is then still there, whole.
#[expect(clippy::disallowed_methods, reason = "this is the durable-file module")]
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    // A crash before the rename leaves a file with `.tmp.` in its name, which nobody reads.
    if let Err(why) = fs::rename(&temporary, path) {
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
    let linked = fs::hard_link(&temporary, path);
    discard(&temporary);
    linked?;
    sync_dir(parent(path))
}

/// Removes a file; that there is none is no error.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why),
        Ok(()) => sync_dir(parent(path)),
    }
}

/// Makes the names in a folder last.
///
/// # Errors
/// Those of the file system.
pub fn sync_dir(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a file that is there already last, with its names from `root` down: a process that was killed between its write and
/// its syncs leaves one that everybody can read and a power cut takes away.
///
/// # Errors
/// Those of the file system.
pub fn sync_existing(root: &Path, path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
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
    temporary.push(format!(".tmp.{}.{number}", std::process::id()));
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
    file.write_all(bytes)?;
    file.sync_all()
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
