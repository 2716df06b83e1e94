//! An archive in a tar file: indexed once, then each object is one positioned read.
//!
//! Readers of tar disagree where a file is odd, and who disagrees can be shown different archives. So what is odd is refused:
//! links, devices, sparse files, two members of one name, a member below a file, a file with the name of a folder, two extension
//! headers in a row, sizes that a pax header overrides, fields that are not as every writer writes them, a missing end, and
//! anything but zeros after it.

use std::{collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::Path, path::PathBuf};

use ::tar::{EntryType, Header};
use bytes::Bytes;
use custody::verify::{Archive, Unreadable};

use super::{
    NAME_BYTES_MAX, NAMES_MAX, below, bytes_max, expand, failed, is_of_archive, is_safe, no_archive, refused, room,
    too_many,
};
use crate::output::plain;

const BLOCK: u64 = 512;
/// Where fields of a header begin and end (POSIX.1-2017, pax, "ustar Interchange Format").
const SIZE: (usize, usize) = (124, 136);
const CHECKSUM: (usize, usize) = (148, 156);
const PREFIX: (usize, usize) = (345, 500);
const KIND: (usize, usize) = (156, 157);
/// Mode, owner, group, time, two numbers of a device.
const OTHER_NUMBERS: [(usize, usize); 6] = [(100, 108), (108, 116), (116, 124), (136, 148), (329, 337), (337, 345)];
/// Greatest length of a pax header in bytes: names of ours need a few hundred.
const PAX_BYTES_MAX: u64 = 65_536;
/// Greatest number of bytes after the end of the last member: tar pads to 10 KiB, or to a tape's block of 1 MiB.
const PADDING_BYTES_MAX: u64 = 1 << 20;

/// A tar file with the objects of an archive as members, at its top or below one folder.
#[derive(Debug)]
pub struct Tar {
    path: PathBuf,
    file: File,
    /// Offset and length of each member.
    members: BTreeMap<String, Place>,
}

/// Offset and length of a file in the tar.
type Place = (u64, u64);

impl Tar {
    /// Opens a tar file and indexes it.
    ///
    /// # Errors
    /// [`Unreadable`] with what is odd about it.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let file = File::open(path).map_err(|why| failed(path, &why))?;
        let length = file.metadata().map_err(|why| failed(path, &why))?.len();
        let mut indexer =
            Indexer { path, file: &file, length, offset: 0, members: BTreeMap::new(), last_folder: String::new() };
        indexer.run()?;
        let members = without_top(indexer.members);
        if !members.keys().any(|name| is_of_archive(name)) {
            return Err(no_archive(path));
        }
        Ok(Self { path: path.to_path_buf(), file, members })
    }
}

impl Archive for Tar {
    fn get(&self, name: &str) -> Result<Option<Bytes>, Unreadable> {
        let Some((offset, length)) = self.members.get(name) else { return Ok(None) };
        let length = (*length).min(bytes_max(name).saturating_add(1));
        let mut bytes = Vec::with_capacity(room(length));
        bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        self.file.read_exact_at(&mut bytes, *offset).map_err(|why| failed(&self.path, &why))?;
        Ok(Some(bytes.into()))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, Unreadable> {
        let mut names = Vec::new();
        self.each(folder, &mut |name| names.push(name.to_owned()))?;
        Ok(names)
    }

    fn each(&self, folder: &str, see: &mut dyn FnMut(&str)) -> Result<(), Unreadable> {
        let from = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let names = self.members.range(from..).map_while(|(name, _)| below(name, folder));
        names.for_each(see);
        Ok(())
    }

    fn expand(&self, frame: &[u8], length: u64) -> Option<Bytes> {
        expand(frame, length)
    }
}

/// The files. `tar cf copy.tar archive` puts one folder on top of all members: it is taken off.
fn without_top(members: BTreeMap<String, Option<Place>>) -> BTreeMap<String, Place> {
    let top = members.keys().next().and_then(|name| name.split('/').next()).unwrap_or_default().to_owned();
    let is_on_top =
        |(name, place): (&String, &Option<Place>)| below(name, &top).is_some() || (*name == top && place.is_none());
    let is_wrapped = top != "log" && top != "workspaces" && members.iter().all(is_on_top);
    let files = members.into_iter().filter_map(|(name, place)| Some((name, place?)));
    if !is_wrapped {
        return files.collect();
    }
    files.filter_map(|(name, place)| Some((below(&name, &top)?.to_owned(), place))).collect()
}

struct Indexer<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
    offset: u64,
    /// Each name that was seen, with the place of a file; a folder has none.
    members: BTreeMap<String, Option<Place>>,
    /// Folder of the last member.
    last_folder: String,
}

impl Indexer<'_> {
    fn run(&mut self) -> Result<(), Unreadable> {
        // Name from an extension header, for the member that follows it.
        let mut long_name: Option<String> = None;
        let mut is_extended = false;
        while let Some(header) = self.header()? {
            self.check_fields(&header)?;
            let size = header.entry_size().map_err(|_| self.odd("a size that is no number"))?;
            let start = self.offset;
            let end = start.checked_add(size).filter(|end| *end <= self.length);
            let end = end.ok_or_else(|| self.odd("a member reaches past the end: the file is truncated"))?;
            self.offset = end.next_multiple_of(BLOCK);
            let kind = header.entry_type();
            let extends = matches!(kind, EntryType::XHeader | EntryType::GNULongName | EntryType::XGlobalHeader);
            // Of two for one member some readers take both, some the last, and some forget the first at a global one.
            if is_extended && extends {
                return Err(self.odd("an extension header that is followed by another one"));
            }
            is_extended = extends && kind != EntryType::XGlobalHeader;
            match kind {
                EntryType::XHeader => {
                    long_name = self.pax_name(start, size)?;
                }
                EntryType::XGlobalHeader => {
                    if self.pax_name(start, size)?.is_some() {
                        return Err(self.odd("a global header that names a member"));
                    }
                }
                EntryType::GNULongName => {
                    long_name = Some(self.gnu_name(start, size)?);
                }
                // Some readers pass over its content, and some read it as headers.
                EntryType::Directory if size > 0 => return Err(self.odd("a folder with content")),
                EntryType::Directory => self.take_folder(&header, long_name.take())?,
                EntryType::Regular => {
                    let name = self.name(&header, long_name.take())?;
                    self.take(&name, Some((start, size)))?;
                }
                other => return Err(self.odd(&format!("a member of kind {other:?}, and an archive holds only files"))),
            }
        }
        if is_extended { Err(self.odd("an extension header without a member")) } else { Ok(()) }
    }

    /// The next header; `None` at the end, which must be there and followed by nothing but zeros.
    fn header(&mut self) -> Result<Option<Header>, Unreadable> {
        let mut header = Header::new_old();
        let read = self.file.read_exact_at(header.as_mut_bytes(), self.offset);
        read.map_err(|_| self.odd("no end: the file is truncated, or no tar file"))?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            let left = self.length.saturating_sub(self.offset);
            if left > PADDING_BYTES_MAX || self.bytes(self.offset, left)?.iter().any(|byte| *byte != 0) {
                return Err(self.odd("something follows the end"));
            }
            return Ok(None);
        }
        // The checksum counts its own 8 bytes as spaces.
        let sum: u32 = (0..).zip(header.as_bytes()).map(|(at, byte)| checksum_part(at, *byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.odd("a wrong checksum: not a tar file, or a damaged or compressed one"));
        }
        self.offset = self.offset.saturating_add(BLOCK);
        Ok(Some(header))
    }

    /// Where a field is not as every writer writes it, readers differ: some take it for another number, some for the end of
    /// the file. Great owners and times may be binary; a size never is below 8 GiB.
    fn check_fields(&self, header: &Header) -> Result<(), Unreadable> {
        let bytes = header.as_bytes();
        let field = |(from, to): (usize, usize)| bytes.get(from..to).unwrap_or_default();
        let is_binary = |field: &[u8]| matches!(field.first(), Some(0x80 | 0xff));
        let is_octal = |field: &[u8], or_empty| {
            let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
            text.iter().all(|byte| (b'0'..=b'7').contains(byte)) && (or_empty || !text.is_empty())
        };
        if !is_octal(field(SIZE), false) || !is_octal(field(CHECKSUM), false) {
            return Err(self.odd("a size that is no number"));
        }
        if !OTHER_NUMBERS.into_iter().map(field).all(|field| is_octal(field, true) || is_binary(field)) {
            return Err(self.odd("an owner, a mode or a time that is no number"));
        }
        if header.as_ustar().is_none() && field(PREFIX).iter().any(|byte| *byte != 0) {
            return Err(self.odd("the beginning of a name where this format has none"));
        }
        // Before there was a kind for them, a file of such a name was a folder: some readers go by that even where an extension
        // header names it otherwise, and read its content as headers.
        if field(KIND) == [0] && header.path_bytes().ends_with(b"/") {
            return Err(self.odd("a file that has the name of a folder"));
        }
        Ok(())
    }

    fn name(&self, header: &Header, long_name: Option<String>) -> Result<String, Unreadable> {
        long_name.map_or_else(|| self.utf8(&header.path_bytes()), Ok)
    }

    fn take_folder(&mut self, header: &Header, long_name: Option<String>) -> Result<(), Unreadable> {
        let name = self.name(header, long_name)?;
        // The archive itself, as `tar cf copy.tar -C archive .` writes it.
        if name == "." || name == "./" {
            return Ok(());
        }
        self.take(name.strip_suffix('/').unwrap_or(&name), None)
    }

    fn take(&mut self, name: &str, place: Option<Place>) -> Result<(), Unreadable> {
        let name = name.strip_prefix("./").unwrap_or(name);
        if !is_safe(name) {
            return Err(self.odd(&format!("no object can be named {name:?}")));
        }
        if self.members.len() >= NAMES_MAX {
            return Err(too_many(self.path));
        }
        self.refuse_below_a_file(name, place.is_some())?;
        if self.members.insert(name.to_owned(), place).is_some() {
            return Err(self.odd(&format!("two members are named {}", plain(name))));
        }
        Ok(())
    }

    /// Unpacked, a member below a file would take its place, or would not be there.
    fn refuse_below_a_file(&mut self, name: &str, is_file: bool) -> Result<(), Unreadable> {
        let below_it = format!("{name}/");
        let next = self.members.range(below_it.clone()..).next();
        let mut is_odd = is_file && next.is_some_and(|(next, _)| next.starts_with(&below_it));
        // Members come folder by folder: what lies above the last one was looked at.
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder != self.last_folder {
            let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
            is_odd |=
                ends.filter_map(|end| folder.get(..end)).any(|above| matches!(self.members.get(above), Some(Some(_))));
            self.last_folder = folder.to_owned();
        }
        if is_odd {
            Err(self.odd(&format!("a member below another one that is a file: {}", plain(name))))
        } else {
            Ok(())
        }
    }

    fn gnu_name(&self, start: u64, size: u64) -> Result<String, Unreadable> {
        if size > NAME_BYTES_MAX as u64 + 1 {
            return Err(self.odd("a name that is too long"));
        }
        let bytes = self.extension(start, size)?;
        let name = bytes.strip_suffix(&[0]).ok_or_else(|| self.odd("a name without its end"))?;
        self.utf8(name)
    }

    /// Content of a header that speaks of the next member. Some readers take its last block whole: nothing else is in it.
    fn extension(&self, start: u64, size: u64) -> Result<Vec<u8>, Unreadable> {
        let padding = size.next_multiple_of(BLOCK).saturating_sub(size);
        if self.bytes(start.saturating_add(size), padding)?.iter().any(|byte| *byte != 0) {
            return Err(self.odd("something after the end of an extension header"));
        }
        self.bytes(start, size)
    }

    /// The `path` of a pax header; times and owners in it do not matter, sizes and sparse maps would.
    fn pax_name(&self, start: u64, size: u64) -> Result<Option<String>, Unreadable> {
        if size > PAX_BYTES_MAX {
            return Err(self.odd("an extension header that is too long"));
        }
        let bytes = self.extension(start, size)?;
        // Each line begins with its length: an empty one ends what one reader takes, a sign what another takes.
        let is_line = |line: &[u8]| line.first().is_some_and(u8::is_ascii_digit) && line.ends_with(b"\n");
        if !bytes.split_inclusive(|byte| *byte == b'\n').all(is_line) {
            return Err(self.odd("a malformed extension header"));
        }
        let mut name = None;
        for extension in ::tar::PaxExtensions::new(&bytes) {
            let extension = extension.map_err(|_| self.odd("a malformed extension header"))?;
            match extension.key_bytes() {
                b"path" => name = Some(self.utf8(extension.value_bytes())?),
                key if key == b"size" || key.starts_with(b"GNU.sparse") => {
                    return Err(self.odd("an extension header that changes the size of a member"));
                }
                _ => {}
            }
        }
        Ok(name)
    }

    fn bytes(&self, start: u64, length: u64) -> Result<Vec<u8>, Unreadable> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, start).map_err(|why| failed(self.path, &why))?;
        Ok(bytes)
    }

    fn utf8(&self, bytes: &[u8]) -> Result<String, Unreadable> {
        String::from_utf8(bytes.to_vec()).map_err(|_| self.odd("a name that is not UTF-8"))
    }

    fn odd(&self, what: &str) -> Unreadable {
        let hint = "hint: unpack it into an empty folder and verify that, or make it again with `tar --format=ustar`";
        refused(self.path, &format!("at byte {}: {what}\n{hint}", self.offset))
    }
}

fn checksum_part(at: usize, byte: u8) -> u32 {
    if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) }
}
