//! Tar files that readers disagree about, or that ask for more than there is: each is refused with a clear word.

use std::{io::Write as _, path::Path};

use custody::verify::Archive as _;
use tar::{Builder, EntryType, Header};
use verifier::reader::Tar;

fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn member(name: &str, content: &[u8]) -> Vec<u8> {
    typed(name, EntryType::Regular, content)
}

fn typed(name: &str, kind: EntryType, content: &[u8]) -> Vec<u8> {
    let mut bytes = header(name.as_bytes(), kind, content.len() as u64).as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A member whose header says less than what its block holds.
fn cut(name: &str, kind: EntryType, content: &[u8], size: u64) -> Vec<u8> {
    let mut bytes = typed(name, kind, content);
    bytes[..512].copy_from_slice(header(name.as_bytes(), kind, size).as_bytes());
    bytes
}

/// A member with these bytes at a place of its header.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut changed = header(b"log/checkpoints/8", EntryType::Regular, 0);
    changed.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    changed.set_cksum();
    changed.as_bytes().to_vec()
}

fn pax(key: &str, value: &str) -> Vec<u8> {
    let length = (1..200).find(|length| format!("{length} {key}={value}\n").len() == *length).unwrap();
    typed("pax", EntryType::XHeader, format!("{length} {key}={value}\n").as_bytes())
}

fn global(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = pax(key, value);
    bytes[156] = b'g';
    let mut header = Header::from_byte_slice(&bytes[..512]).clone();
    header.set_cksum();
    [header.as_bytes(), &bytes[512..]].concat()
}

fn open(parts: &[Vec<u8>]) -> Result<Tar, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&parts.concat()).unwrap();
    Tar::open(file.path()).map_err(|why| why.0)
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

type Cases = Vec<(&'static str, Vec<Vec<u8>>)>;

#[test]
fn what_is_odd_is_refused_with_a_word() {
    for (expected, parts) in [odd_members(), odd_names(), odd_extensions()].concat() {
        let why = open(&parts).expect_err(expected);
        assert!(why.contains(expected) && why.contains("hint: "), "{expected}: {why}");
    }
}

fn odd_members() -> Cases {
    let good = member("log/checkpoints/7", b"seven");
    let raw = |kind, size| header(b"log/checkpoints/8", kind, size).as_bytes().to_vec();
    let mut damaged = good.clone();
    damaged[3] ^= 1;
    vec![
        ("a member of kind Symlink", vec![raw(EntryType::Symlink, 0), end()]),
        ("a member of kind Link", vec![raw(EntryType::Link, 0), end()]),
        ("a member of kind Char", vec![raw(EntryType::Char, 0), end()]),
        ("a member of kind Block", vec![raw(EntryType::Block, 0), end()]),
        ("a member of kind Fifo", vec![raw(EntryType::Fifo, 0), end()]),
        ("a member of kind GNUSparse", vec![raw(EntryType::GNUSparse, 0), end()]),
        ("a member of kind Continuous", vec![raw(EntryType::Continuous, 0), end()]),
        ("two members are named", vec![good.clone(), good.clone(), end()]),
        ("two members are named", vec![good.clone(), member("./log/checkpoints/7", b"x"), end()]),
        ("no object can be named", vec![member("../escape", b"x"), end()]),
        ("no object can be named", vec![member("/etc/passwd", b"x"), end()]),
        ("no object can be named", vec![member("log/../../escape", b"x"), end()]),
        ("reaches past the end", vec![raw(EntryType::Regular, 1 << 32), end()]),
        ("a size that is no number", vec![raw(EntryType::Regular, 1 << 40), end()]),
        ("a size that is no number", vec![raw(EntryType::Regular, u64::MAX), end()]),
        ("a size that is no number", vec![with(124, b"+5\0"), end()]),
        ("a size that is no number", vec![with(124, b"\0\0\0\0\0\0\0\0\0\0\0\0"), end()]),
        ("no number", vec![with(136, b"yesterday"), end()]),
        ("the beginning of a name where", vec![with(345, b"workspaces"), end()]),
        ("a folder with content", vec![raw(EntryType::Directory, 512), good.clone(), vec![0; 1024]]),
        ("a file that has the name of a folder", old_folder()),
        ("reaches past the end", vec![good[..514].to_vec()]),
        ("no end: the file is truncated", vec![good.clone()]),
        ("no end: the file is truncated", vec![good[..300].to_vec()]),
        ("no end: the file is truncated", vec![]),
        ("something follows the end", vec![good.clone(), end(), good.clone(), end()]),
        ("something follows the end", vec![good.clone(), vec![0; 2 << 20]]),
        ("a wrong checksum", vec![damaged, end()]),
        ("a wrong checksum", vec![vec![0x1f; 1024], end()]),
    ]
}

/// A file to those who go by its long name, and to others a folder whose content is another member.
fn old_folder() -> Vec<Vec<u8>> {
    let hidden = member("log/checkpoints/9", b"");
    let mut old = header(b"workspaces/", EntryType::Regular, hidden.len() as u64);
    old.as_mut_bytes()[156] = 0;
    old.set_cksum();
    let long_name = typed("l", EntryType::GNULongName, b"log/checkpoints/8\0");
    vec![long_name, old.as_bytes().to_vec(), hidden, end()]
}

fn odd_names() -> Cases {
    let good = member("log/checkpoints/7", b"seven");
    let folder = |name: &str| typed(name, EntryType::Directory, b"");
    let not_utf8 = header(b"log/\xff", EntryType::Directory, 0).as_bytes().to_vec();
    let deep = format!("{}log/", "a/".repeat(16));
    let unnamed = |name: &[u8]| vec![typed("l", EntryType::GNULongName, name), good.clone(), end()];
    vec![
        ("two members are named", vec![good.clone(), folder("log/checkpoints/7"), end()]),
        ("two members are named", vec![folder("log/checkpoints/7/"), good.clone(), end()]),
        ("that is a file: log/checkpoints/7/x", vec![good.clone(), member("log/checkpoints/7/x", b""), end()]),
        (
            "that is a file: log/checkpoints/7/x",
            vec![good.clone(), member("log/a", b""), folder("log/checkpoints/7/x"), end()],
        ),
        ("that is a file: log", vec![good.clone(), member("log", b""), end()]),
        (
            "that is a file: log/checkpoints/7",
            vec![folder("log/checkpoints/7/x"), member("a", b""), good.clone(), end()],
        ),
        ("two members are named", vec![folder("log/"), good.clone(), folder("./log"), end()]),
        ("no object can be named", vec![folder("a\\b"), good.clone(), end()]),
        ("no object can be named", vec![folder("log/../x"), good.clone(), end()]),
        ("no object can be named", vec![folder("log//"), good.clone(), end()]),
        ("no object can be named", vec![folder("/"), good.clone(), end()]),
        ("no object can be named", vec![folder(""), good.clone(), end()]),
        ("no object can be named", vec![folder(&deep), good.clone(), end()]),
        ("no object can be named", vec![pax("path", "/log"), folder("log"), good.clone(), end()]),
        ("a name that is not UTF-8", vec![not_utf8, good.clone(), end()]),
        ("no object can be named", vec![member("././copy/log/x", b""), end()]),
        ("no object can be named", vec![member("../log/x", b""), end()]),
        ("no object can be named", vec![member("/log/x", b""), end()]),
        ("no object can be named", vec![folder("copy"), member("copy/", b""), end()]),
        ("no object can be named", vec![good.clone(), member(".", b""), end()]),
        ("no object can be named", vec![good.clone(), member("./", b""), end()]),
        ("no object can be named", vec![good.clone(), member("", b""), end()]),
        ("no object can be named", unnamed(b".\0")),
        ("no object can be named", unnamed(b"\0")),
        ("no object can be named", vec![pax("path", ""), good.clone(), end()]),
        ("no object can be named", vec![pax("path", "./"), good.clone(), end()]),
    ]
}

fn odd_extensions() -> Cases {
    let long = typed("l", EntryType::GNULongName, b"log/x\0");
    let good = member("log/checkpoints/7", b"seven");
    let raw = |kind, size| header(b"log/checkpoints/8", kind, size).as_bytes().to_vec();
    vec![
        (
            "a name that is too long",
            vec![raw(EntryType::GNULongName, 1 << 10), vec![b'a'; 1 << 10], good.clone(), end()],
        ),
        ("reaches past the end", vec![raw(EntryType::GNULongName, 1 << 32), end()]),
        ("a name without its end", vec![typed("l", EntryType::GNULongName, b"log/x"), good.clone(), end()]),
        ("something after the end", vec![cut("l", EntryType::GNULongName, b"log/x\0y", 6), good.clone(), end()]),
        (
            "something after the end",
            vec![cut("pax", EntryType::XHeader, b"9 path=a\n9 path=b\n", 9), good.clone(), end()],
        ),
        ("followed by another one", vec![pax("path", "a"), pax("path", "b"), good.clone(), end()]),
        ("followed by another one", vec![pax("path", "log/x"), pax("comment", "x"), good.clone(), end()]),
        ("followed by another one", vec![long.clone(), long.clone(), good.clone(), end()]),
        ("followed by another one", vec![long.clone(), pax("comment", "x"), good.clone(), end()]),
        ("followed by another one", vec![pax("comment", "x"), long, good.clone(), end()]),
        ("followed by another one", vec![pax("path", "log/x"), global("comment", "x"), good.clone(), end()]),
        ("without a member", vec![pax("path", "a"), end()]),
        ("without a member", vec![good.clone(), pax("mtime", "1"), end()]),
        ("without a member", vec![good.clone(), typed("l", EntryType::GNULongName, b"log/x\0"), end()]),
        ("changes the size", vec![pax("size", "3"), good.clone(), end()]),
        ("changes the size", vec![pax("GNU.sparse.major", "1"), good.clone(), end()]),
        (
            "extension header that is too long",
            vec![typed("pax", EntryType::XHeader, &[b' '; 70_000]), good.clone(), end()],
        ),
        ("a malformed extension header", vec![typed("pax", EntryType::XHeader, b"9 nonsense"), good.clone(), end()]),
        ("a malformed extension header", vec![typed("pax", EntryType::XHeader, b"8 path=a"), good.clone(), end()]),
        ("a malformed extension header", vec![typed("pax", EntryType::XHeader, b"+10 path=a\n"), good.clone(), end()]),
        (
            "a malformed extension header",
            vec![typed("pax", EntryType::XHeader, b"9 path=a\n\n9 path=b\n"), good.clone(), end()],
        ),
        ("a global header that names", vec![global("path", "log/x"), good, end()]),
    ]
}

#[test]
fn names_come_from_whichever_header_has_them() {
    let long = format!("log/cosignatures/7/{}", "w".repeat(120));
    let gnu_name = [long.as_bytes(), &[0]].concat();
    let tar = open(&[
        member("log/checkpoints/7", b"seven"),
        typed("././@LongLink", EntryType::GNULongName, &gnu_name),
        member("short", b"gnu"),
        pax("path", "log/checkpoints/10"),
        member("short", b"pax"),
        pax("mtime", "1.5"),
        member("log/checkpoints/8", b""),
        end(),
    ])
    .unwrap();
    assert_eq!(tar.get(&long).unwrap().as_deref(), Some(&b"gnu"[..]));
    assert_eq!(tar.get("log/checkpoints/10").unwrap().as_deref(), Some(&b"pax"[..]));
    assert_eq!(tar.get("log/checkpoints/8").unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(tar.get("short"), Ok(None));
    assert_eq!(tar.list("log/checkpoints").unwrap(), ["10", "7", "8"]);
    assert_eq!(tar.list("").unwrap().len(), 4);
}

#[test]
fn one_folder_on_top_is_taken_off() {
    let tar =
        open(&[member("copy/log/checkpoints/7", b"seven"), member("copy/workspaces/a/seals/b", b""), end()]).unwrap();
    assert!(tar.get("log/checkpoints/7").unwrap().is_some());
    let folder = |name: &str| typed(name, EntryType::Directory, b"");
    let good = member("./copy/log/x", b"");
    let tar = open(&[folder("./"), folder("./copy/"), folder("./copy/log"), good.clone(), end()]).unwrap();
    assert_eq!(tar.list("").unwrap(), ["log/x"]);
    for other in
        [member("other/log/x", b""), folder("other"), folder("copy-of/"), member("x", b""), member("copied", b"")]
    {
        assert!(open(&[good.clone(), other, end()]).unwrap_err().contains("no archive"));
    }
}

#[test]
fn a_tar_that_shrinks_after_it_was_opened_is_unreadable_not_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let write = |path: &Path| {
        let mut builder = Builder::new(std::fs::File::create(path).unwrap());
        builder.append_data(&mut header(b"x", EntryType::Regular, 2048), "log/checkpoints/7", &[1; 2048][..]).unwrap();
        builder.finish().unwrap();
    };
    write(&path);
    let tar = Tar::open(&path).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(600).unwrap();
    assert!(tar.get("log/checkpoints/7").is_err());
}
