//! Frames and folders that are not what they should be.

use std::os::unix::{ffi::OsStrExt as _, fs::symlink};

use super::*;

const CONTENT: &[u8] = b"custody custody custody custody custody custody";

fn frame() -> Vec<u8> {
    zstd::bulk::compress(CONTENT, 3).unwrap()
}

#[test]
fn a_frame_is_one_plain_frame_of_the_stated_length() {
    let (good, length) = (frame(), CONTENT.len() as u64);
    assert_eq!(expand(&good, length).as_deref(), Some(CONTENT));
    assert_eq!(expand(&good, length - 1), None);
    assert_eq!(expand(&good, length + 1), None);
    let skippable = [&0x184d_2a50_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), b"hide"].concat();
    for (what, bad) in [
        ("two frames", [good.clone(), good.clone()].concat()),
        ("a byte after it", [&good[..], &[0]].concat()),
        ("a skippable frame after it", [good.clone(), skippable.clone()].concat()),
        ("a skippable frame before it", [skippable, good.clone()].concat()),
        ("nothing", Vec::new()),
        ("cut short", good[..good.len() - 1].to_vec()),
    ] {
        assert_eq!(expand(&bad, length), None, "{what}");
        assert_eq!(expand(&bad, length * 2), None, "{what}");
    }
}

#[test]
fn a_frame_says_its_length_and_needs_no_dictionary_nor_a_great_window() {
    let length = CONTENT.len() as u64;
    let mut stream = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    io::Write::write_all(&mut stream, CONTENT).unwrap();
    assert_eq!(expand(&stream.finish().unwrap(), length), None, "a stream does not say its length");
    let with = |at: usize, bits: u8| {
        let mut bytes = frame();
        bytes[at] |= bits;
        bytes
    };
    assert_eq!(expand(&with(4, 0x01), length), None, "names a dictionary");
    assert_eq!(expand(&with(4, 0x08), length), None, "a reserved bit");
    // Magic, descriptor (8 bytes of length, no single segment), window of 2^41 bytes, length, one raw block that is last.
    let mut wide = vec![0x28, 0xb5, 0x2f, 0xfd, 0xc0, 31 << 3];
    wide.extend_from_slice(&1_u64.to_le_bytes());
    wide.extend_from_slice(&[0x09, 0, 0, b'x']);
    assert_eq!(expand(&wide, 1), None, "a window of 2 TiB");
    wide[5] = 13 << 3;
    assert_eq!(expand(&wide, 1).as_deref(), Some(&b"x"[..]), "a window of 8 MiB");
}

/// A frame of blocks that are stored as they are, or of one byte so often; without a window it is a single segment.
fn stored(window: Option<u8>, blocks: &[(&[u8], usize)]) -> (Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = blocks.iter().flat_map(|(block, times)| block.repeat(*times)).collect();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, if window.is_some() { 0x80 } else { 0xa0 }];
    frame.extend(window);
    frame.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
    for (at, (block, times)) in blocks.iter().enumerate() {
        let (last, repeated) = (usize::from(at + 1 == blocks.len()), usize::from(*times > 1));
        let header = last | repeated << 1 | (block.len() * times) << 3;
        frame.extend_from_slice(&u32::try_from(header).unwrap().to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    (frame, content)
}

/// Decoders that have the whole frame before them forgive too long a block, and others do not: the answer must be one.
#[test]
fn a_block_is_no_longer_than_the_window_and_128_kib() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| at as u8).collect();
    let expands = |window, blocks: &[(&[u8], usize)]| {
        let (frame, content) = stored(window, blocks);
        let found = expand(&frame, content.len() as u64);
        assert!(found.is_none() || found.as_deref() == Some(&content));
        found.is_some()
    };
    let (kib_1, mib_8) = (Some(0), Some(13 << 3));
    assert!(expands(None, &[(&bytes[..131_072], 1), (&bytes[..131_072], 1), (&bytes[..1], 1)]));
    assert!(!expands(None, &[(&bytes[..131_073], 1), (&bytes[..131_072], 1)]), "more than 128 KiB");
    assert!(!expands(mib_8, &[(&bytes[..131_073], 1)]), "more than 128 KiB, with a window of 8 MiB");
    assert!(expands(mib_8, &[(&bytes[..131_072], 1)]));
    assert!(expands(mib_8, &[(&bytes[7..8], 131_072)]));
    assert!(!expands(mib_8, &[(&bytes[7..8], 131_073)]), "one byte more often than that");
    assert!(expands(kib_1, &[(&bytes[..1_024], 1), (&bytes[..1_024], 1)]));
    assert!(!expands(kib_1, &[(&bytes[..1_025], 1)]), "more than the window");
    assert!(!expands(kib_1, &[(&bytes[7..8], 1_025)]), "one byte more often than the window is long");
    // A compressed block is short, and what it expands to is not. Its header said 2 MiB and a single segment before.
    let zeros = vec![0; 5_000];
    let compressed = zstd::bulk::compress(&zeros, 3).unwrap();
    assert_eq!(expand(&compressed, 5_000).as_deref(), Some(&zeros[..]));
    assert_eq!(compressed[4], 0x60, "a single segment with two bytes of length");
    let narrow = [&compressed[..4], &[0x40, 0], &compressed[5..]].concat();
    assert_eq!(expand(&narrow, 5_000), None, "a block that expands to more than the window");
    let wide = [&compressed[..4], &[0x40, 3 << 3], &compressed[5..]].concat();
    assert_eq!(expand(&wide, 5_000).as_deref(), Some(&zeros[..]), "a window of 8 KiB");
}

#[test]
fn a_bit_of_the_header_that_means_nothing_may_be_set_and_blocks_may_be_empty() {
    let (mut frame, content) = stored(None, &[(b"", 1), (b"custody", 1), (b"", 1)]);
    assert_eq!(expand(&frame, content.len() as u64).as_deref(), Some(&b"custody"[..]));
    frame[4] |= 0x10;
    assert_eq!(expand(&frame, content.len() as u64).as_deref(), Some(&b"custody"[..]), "Unused_bit");
    let at = frame.len() - 3;
    frame[at] &= !1;
    assert_eq!(expand(&frame, content.len() as u64), None, "no block is the last");
    frame[at] |= 7;
    assert_eq!(expand(&frame, content.len() as u64), None, "a block of the reserved type");
    frame[at] ^= 2;
    assert_eq!(expand(&frame, content.len() as u64), None, "a compressed block of nothing");
}

#[test]
fn expanding_is_bounded_whatever_a_frame_says() {
    let zeros = vec![0; FRAME_MAX + 1];
    let bomb = zstd::bulk::compress(&zeros, 3).unwrap();
    assert!(bomb.len() < 1_000);
    assert_eq!(expand(&bomb, zeros.len() as u64), None);
    assert_eq!(expand(&bomb, u64::MAX), None);
    assert_eq!(expand(&bomb, FRAME_MAX as u64), None);
}

const FRAME_MAX: usize = custody::segment::FRAME_BYTES_MAX as usize;

fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("log/checkpoints")).unwrap();
    put(&dir.path().join("log/checkpoints/7"), b"seven");
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).and_then(|mut file| io::Write::write_all(&mut file, bytes)).unwrap();
}

#[test]
fn a_folder_gives_what_is_there_and_nothing_outside_it() {
    let (dir, folder) = folder();
    assert_eq!(folder.get("log/checkpoints/7").unwrap().as_deref(), Some(&b"seven"[..]));
    assert_eq!(folder.get("log/checkpoints/8"), Ok(None));
    assert_eq!(folder.get("log/checkpoints"), Ok(None));
    assert_eq!(folder.get("log/checkpoints/7/8"), Ok(None));
    assert_eq!(folder.list("log").unwrap(), ["checkpoints/7"]);
    assert_eq!(folder.list("").unwrap(), ["log/checkpoints/7"]);
    assert_eq!(folder.list("workspaces").unwrap(), [""; 0]);
    for name in ["../x", "/etc/passwd", "log/../../x", "log//7", "log/./7", "", "log\\7"] {
        assert!(folder.get(name).is_err(), "{name:?}");
    }
    symlink("/etc/hostname", dir.path().join("log/checkpoints/9")).unwrap();
    assert!(folder.get("log/checkpoints/9").unwrap_err().0.contains("symlink"));
    assert!(folder.list("log").unwrap_err().0.contains("neither a file nor a folder"));
    symlink("/etc", dir.path().join("log/tile")).unwrap();
    assert!(folder.get("log/tile/hostname").unwrap_err().0.contains("symlink"));
}

#[test]
fn a_folder_with_anything_that_no_archive_holds_is_refused_wherever_it_is() {
    let not_utf8 = |name: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(name));
    let deep = PathBuf::from(format!("log/{}f", "a/".repeat(15)));
    for (expected, path) in [
        ("not UTF-8", not_utf8(b"\xff")),
        ("not UTF-8", not_utf8(b"log/x\xff")),
        ("no object can have", PathBuf::from("a\\b")),
        ("no object can have", PathBuf::from("log/a\\b/c")),
        ("too deep", deep),
    ] {
        let (dir, _) = folder();
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        put(&path, b"");
        let why = Folder::open(dir.path()).expect_err(expected).0;
        assert!(why.contains(expected), "{path:?}: {why}");
    }
    for name in ["x", "log/x", "log/checkpoints/x"] {
        let (dir, _) = folder();
        symlink("/none", dir.path().join(name)).unwrap();
        assert!(Folder::open(dir.path()).unwrap_err().0.contains("neither a file nor a folder"), "a symlink {name}");
        let (dir, _) = folder();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
        assert!(Folder::open(dir.path()).unwrap_err().0.contains("neither a file nor a folder"), "a socket {name}");
    }
    let (dir, _) = folder();
    put(&dir.path().join(".DS_Store"), b"");
    std::fs::create_dir(dir.path().join("other")).unwrap();
    assert!(Folder::open(dir.path()).is_ok(), "files and folders that nothing refers to");
}

#[test]
fn an_object_that_is_too_long_is_cut_one_byte_past_its_limit() {
    let (dir, folder) = folder();
    let limit = usize::try_from(bytes_max("log/checkpoints/7")).unwrap();
    put(&dir.path().join("log/checkpoints/7"), &vec![b'x'; limit * 2]);
    assert_eq!(folder.get("log/checkpoints/7").unwrap().unwrap().len(), limit + 1);
}

#[test]
fn every_kind_of_object_has_the_limit_of_its_format() {
    for (name, limit) in [
        ("workspaces/aa/segments/0-bb", OBJECT_BYTES_MAX),
        ("workspaces/aa/seals/0-bb", 32_768),
        ("workspaces/aa/statements/0-bb", 32_768),
        ("log/statements/0-bb", 32_768),
        ("log/checkpoints/7", 98_304),
        ("log/cosignatures/7/w", 98_304),
        ("log/tile/entries/000", 256 * 65_537),
        ("log/tile/entries/x001/000.p/9", 256 * 65_537),
        ("log/tile/0/000", 8_192),
        ("else", 1 << 20),
    ] {
        assert_eq!(bytes_max(name), limit, "{name}");
    }
}
