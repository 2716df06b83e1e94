//! Reads archives: a folder or a tar file, on this machine, with no network.
//!
//! What must hold: nothing outside the archive is ever read (no symlink is followed, no `..`), an object is read into
//! memory up to the limit of its kind and no further, and whatever cannot be read says so instead of counting as missing.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use custody::{
    log::{ENTRY_BYTES_MAX, TILE_WIDTH},
    note::NOTE_BYTES_MAX,
    segment::OBJECT_BYTES_MAX,
    verify::{Archive, Unreadable},
};

use crate::output::plain;

mod folder;
mod frame;
mod tar;

pub use folder::Folder;
pub use frame::expand;
pub use tar::Tar;

/// Greatest number of objects that a listing holds: 5 minutes a segment for 150 years, or about 2 GB of names.
pub const NAMES_MAX: usize = 1 << 24;
/// Greatest length of an object's name in bytes: the longest of ours has 172.
pub const NAME_BYTES_MAX: usize = 512;
/// Greatest depth of folders below the archive: tiles of a log of 2^63 entries lie at 10.
const DEPTH_MAX: usize = 16;

/// An archive on this machine.
#[derive(Debug)]
pub enum Source {
    /// A folder.
    Folder(Folder),
    /// A tar file, not compressed.
    Tar(Tar),
}

impl Source {
    /// Opens a folder or a tar file.
    ///
    /// # Errors
    /// [`Unreadable`] when there is neither, or the tar is not one that we accept.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let metadata = std::fs::metadata(path).map_err(|why| failed(path, &why))?;
        if metadata.is_dir() {
            return Folder::open(path).map(Self::Folder);
        }
        if !metadata.is_file() {
            return Err(refused(
                path,
                "neither a folder nor a file\nhint: a pipe cannot be read twice; save it to a file",
            ));
        }
        Tar::open(path).map(Self::Tar)
    }
}

impl Archive for Source {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        match self {
            Self::Folder(folder) => folder.get(name),
            Self::Tar(tar) => tar.get(name),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        match self {
            Self::Folder(of) => of.list(folder),
            Self::Tar(tar) => tar.list(folder),
        }
    }

    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        match self {
            Self::Folder(of) => of.each(folder, see),
            Self::Tar(tar) => tar.each(folder, see),
        }
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        expand(frame, length)
    }
}

/// Greatest length of the object of this name in bytes. What is longer is read one byte past it, so that its hash, its
/// form or its comparison fails: the verdict is then *refuted*, and memory stays bounded.
fn bytes_max(name: &str) -> u64 {
    let bundle = TILE_WIDTH.saturating_mul(ENTRY_BYTES_MAX as u64 + 2);
    match name.split('/').collect::<Vec<_>>().as_slice() {
        ["workspaces", _, "segments", _] => OBJECT_BYTES_MAX,
        // Statements and seals are at most 32 KiB.
        ["workspaces", _, _, _] | ["log", "statements", _] => 32_768,
        ["log", "tile", "entries", ..] => bundle,
        // 256 hashes.
        ["log", "tile", ..] => 8_192,
        ["log", "checkpoints" | "cosignatures", ..] => NOTE_BYTES_MAX as u64,
        _ => 1 << 20,
    }
}

/// Room for an object of this length, in bytes. Great ones get theirs in equal steps, so that the place that one leaves in
/// memory fits the next, which is a little longer; what is not written to costs nothing.
fn room(length: u64) -> usize {
    const STEP: u64 = 16 << 20;
    let rounded = if length < 1 << 20 { length } else { length.next_multiple_of(STEP) };
    usize::try_from(rounded).unwrap_or(0)
}

/// Whether every part of `name` stays below the archive.
fn is_safe(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && !name.contains(['\\', '\0'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && name.split('/').count() <= DEPTH_MAX
}

fn failed(path: &Path, why: &io::Error) -> Unreadable {
    let hint = match why.kind() {
        io::ErrorKind::NotFound => "name the archive's top folder, or a tar of it, that is there",
        io::ErrorKind::PermissionDenied => "run this as somebody who may read the whole archive, or copy it",
        _ => "copy the archive anew from where it is kept; this copy, or the disk, may be damaged",
    };
    Unreadable(format!("cannot read {}: {why}\nhint: {hint}", plain(path.display())))
}

fn refused(path: &Path, why: &str) -> Unreadable {
    Unreadable(format!("{}: {why}", plain(path.display())))
}

fn too_many(path: &Path) -> Unreadable {
    refused(path, &format!("more than {NAMES_MAX} objects\nhint: is this an archive's top folder?"))
}

/// Whether an archive has objects of such names: without one, what was named is something else.
fn is_of_archive(name: &str) -> bool {
    below(name, "log").or_else(|| below(name, "workspaces")).is_some()
}

fn no_archive(path: &Path) -> Unreadable {
    refused(path, "no archive: nothing in it is below log/ or workspaces/\nhint: is this the archive's top folder?")
}

/// The part of the name below `folder`.
fn below<'a>(name: &'a str, folder: &str) -> Option<&'a str> {
    if folder.is_empty() {
        return Some(name);
    }
    name.strip_prefix(folder)?.strip_prefix('/')
}

fn join(root: &Path, name: &str) -> PathBuf {
    name.split('/').fold(root.to_path_buf(), |path, part| path.join(part))
}

#[cfg(test)]
mod tests;
