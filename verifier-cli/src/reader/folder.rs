//! An archive in a folder.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use custody::verify::{Archive, Unreadable};

use super::{NAMES_MAX, bytes_max, expand, failed, is_of_archive, is_safe, join, no_archive, refused, room, too_many};

/// A folder with the objects of an archive as files.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Opens a folder. The folder itself may be reached over a symlink; nothing in it may be one. All names in it are
    /// looked at here, so that what no archive holds is refused wherever it lies, and not only where a check leads there.
    ///
    /// # Errors
    /// [`Unreadable`] when it is not there, is no archive, or holds what an archive cannot hold.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let root = fs::canonicalize(path).map_err(|why| failed(path, &why))?;
        let folder = Self { root };
        let mut is_archive = false;
        folder.each("", &mut |name| is_archive |= is_of_archive(name))?;
        if is_archive { Ok(folder) } else { Err(no_archive(path)) }
    }

    /// The path of `name` if it is there; each part of the way is looked at, so that no symlink leads elsewhere.
    fn find(&self, name: &str) -> Result<Option<(PathBuf, fs::Metadata)>, Unreadable> {
        if !is_safe(name) {
            return Err(refused(&self.root, &format!("no object can be named {name:?}")));
        }
        let mut path = self.root.clone();
        let mut found = None;
        for part in name.split('/') {
            path.push(part);
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Ok(None);
                }
                Err(why) => return Err(failed(&path, &why)),
            };
            if metadata.is_symlink() {
                return Err(refused(&path, "a symlink, which an archive cannot hold\nhint: copy the files themselves"));
            }
            found = Some(metadata);
        }
        Ok(found.map(|metadata| (path, metadata)))
    }

    /// Gives `take` the name of each file below `folder`, as the system lists them.
    fn walk(&self, folder: &Path, prefix: &str, take: &mut Take<'_>) -> Result<(), Unreadable> {
        for entry in fs::read_dir(folder).map_err(|why| failed(folder, &why))? {
            let path = entry.map_err(|why| failed(folder, &why))?.path();
            let part = path.file_name().and_then(|name| name.to_str());
            let part = part.ok_or_else(|| refused(&path, "a name that is not UTF-8, and no object has one\nhint: an archive's folder holds nothing else; move it elsewhere"))?;
            let name = if prefix.is_empty() { part.to_owned() } else { format!("{prefix}/{part}") };
            if !is_safe(&name) {
                return Err(refused(
                    &path,
                    "too deep, or a name that no object can have\nhint: an archive's folder holds nothing else; move it elsewhere",
                ));
            }
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                // A ledger that is writing into this archive names a file anew when it is whole: gone is not there.
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                Err(why) => return Err(failed(&path, &why)),
            };
            if metadata.is_dir() {
                self.walk(&path, &name, take)?;
            } else if metadata.is_file() {
                take(name)?;
            } else {
                let why =
                    "neither a file nor a folder, and an archive holds nothing else\nhint: copy the files themselves";
                return Err(refused(&path, why));
            }
        }
        Ok(())
    }

    fn walk_below(&self, folder: &str, take: &mut Take<'_>) -> Result<(), Unreadable> {
        if folder.is_empty() {
            self.walk(&self.root, "", take)
        } else if self.find(folder)?.is_some_and(|(_, metadata)| metadata.is_dir()) {
            self.walk(&join(&self.root, folder), "", take)
        } else {
            Ok(())
        }
    }
}

/// What is done with each name.
type Take<'a> = dyn FnMut(String) -> Result<(), Unreadable> + 'a;

impl Archive for Folder {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        let Some((path, metadata)) = self.find(name)? else { return Ok(None) };
        if metadata.is_dir() {
            return Ok(None);
        }
        if !metadata.is_file() {
            return Err(refused(&path, "not a regular file\nhint: copy the files themselves"));
        }
        let limit = bytes_max(name).saturating_add(1);
        let mut bytes = Vec::with_capacity(room(metadata.len().min(limit)));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(failed(&path, &why)),
        };
        file.take(limit).read_to_end(&mut bytes).map_err(|why| failed(&path, &why))?;
        Ok(Some(bytes.into()))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        let mut names = Vec::new();
        self.walk_below(folder, &mut |name| {
            if names.len() >= NAMES_MAX {
                return Err(too_many(&self.root));
            }
            names.push(name);
            Ok(())
        })?;
        names.sort_unstable();
        Ok(names)
    }

    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        self.walk_below(folder, &mut |name| {
            see(&name);
            Ok(())
        })
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        expand(frame, length)
    }
}
