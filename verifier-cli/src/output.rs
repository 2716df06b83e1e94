//! The only place that writes to the terminal or makes files.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::Path,
};

use crate::failure::Failure;

/// Writes an answer to standard output; `false` when the reader of a pipe has gone, as `head` does when it has enough: that is
/// no failure, and what is found to be so stays so.
///
/// # Errors
/// [`io::Error`] of any other kind.
pub fn answer(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    is_read(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The same for what somebody else wrote.
///
/// # Errors
/// As above.
pub fn is_read(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Writes a message to standard error.
pub fn message(text: &str) {
    // Nobody is left to be told when standard error is gone.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Makes a file that must not be there yet, and its folders; it is on disk, under its name, when this returns.
///
/// # Errors
/// [`Failure::Unreadable`], also when it is there.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |why: io::Error| {
        let hint = if why.kind() == io::ErrorKind::AlreadyExists {
            "\nhint: nothing is overwritten; name a new file"
        } else {
            ""
        };
        Failure::Unreadable(format!("cannot write {}: {why}{hint}", path.display()))
    };
    let folder = folder_of(path);
    make_folder(folder).map_err(failed)?;
    let mut file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    sync_folder(folder).map_err(failed)
}

/// Where a file or folder is.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes a folder and those above it; each new one's name is on disk when this returns.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() || folder == Path::new(".") {
        return Ok(());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        made => made,
    }?;
    sync_folder(above)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Reads a file of at most `limit` bytes that the caller named.
///
/// # Errors
/// [`Failure::Unreadable`].
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    use io::Read as _;
    let failed = |why: io::Error| Failure::Unreadable(format!("cannot read {}: {why}", path.display()));
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(Failure::Unreadable(format!("{} is longer than {limit} bytes", path.display())));
    }
    Ok(bytes)
}
