//! Fuzzing of what this package parses itself: tar files, zstd frames, times and places. The parsers of the contract have
//! theirs in `proto/fuzz_tests.rs`, and the rules are the same: a fixed number of inputs in the normal tests,
//! `CUSTODY_FUZZ_SECONDS` for long runs, `CUSTODY_SEED` and `CUSTODY_ROUND` to resume or repeat one.
//!
//! No input may panic, ask for more memory than it has itself, or get two answers. Whatever is accepted must be read in the
//! same way by somebody else's reader: who disagrees can be shown different archives.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use custody::{
    hash::object_hash,
    segment::FRAME_BYTES_MAX,
    verify::{Archive as _, Unreadable},
};
use tar::{Builder, EntryType, Header};
use verifier::{
    make_evidence::What,
    reader::{Tar, expand},
    time,
};

use crate::dice::Dice;

/// Runs `once` for each of `inputs` rounds, or for as long as the environment says.
fn rounds(name: &str, inputs: u64, mut once: impl FnMut(&mut Dice)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("CUSTODY_SEED").unwrap_or(0xC0_57_0D_11);
    let first = number("CUSTODY_ROUND").unwrap_or(0);
    let long = number("CUSTODY_FUZZ_SECONDS").map(Duration::from_secs);
    let begun = Instant::now();
    let mut told = Told { name, seed, round: first };
    while long.map_or(told.round - first < inputs, |long| begun.elapsed() < long) {
        once(&mut Dice::new(seed ^ told.round.wrapping_mul(0x9e37_79b9)));
        told.round += 1;
    }
}

/// Says at the end, also of a failure, how to have it again.
struct Told<'a> {
    name: &'a str,
    seed: u64,
    round: u64,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        println!("{}: ended at CUSTODY_SEED={} CUSTODY_ROUND={}", self.name, self.seed, self.round);
    }
}

fn below(dice: &mut Dice, bound: usize) -> usize {
    usize::try_from(dice.within(0..bound.max(1) as u64)).unwrap()
}

/// Changes some bytes, cuts, or repeats.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..dice.within(1..4) {
        let at = below(dice, bytes.len());
        match dice.within(0..6) {
            _ if bytes.is_empty() => bytes.push(dice.roll() as u8),
            0 => bytes[at] ^= 1 << dice.within(0..8),
            1 => bytes[at] = [0, 0x7f, 0x80, 0xff, b'\n', b' ', b'/', b'.', b'0', b'9'][below(dice, 10)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.roll() as u8),
            4 => drop(bytes.remove(at)),
            _ => {
                let end = (at + below(dice, 40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

const BLOCK: usize = 512;
/// Where each field of a tar header begins and ends: name, mode, uid, gid, size, mtime, kind, link, magic, version, owner,
/// group, two device numbers, prefix.
const FIELDS: [(usize, usize); 15] = [
    (0, 100),
    (100, 108),
    (108, 116),
    (116, 124),
    (124, 136),
    (136, 148),
    (156, 157),
    (157, 257),
    (257, 263),
    (263, 265),
    (265, 297),
    (297, 329),
    (329, 337),
    (337, 345),
    (345, 500),
];

/// Tar files as several programs write them.
fn tars() -> Vec<Vec<u8>> {
    let long = format!("workspaces/a/segments/0-{}", "f".repeat(120));
    let build = |header: fn() -> Header, top: &str, long: &str| {
        let mut builder = Builder::new(Vec::new());
        for (name, content) in [("log/checkpoints/7", "seven"), ("log/tile/0/000", ""), (long, "a longer one")] {
            let mut header = header();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_772_323_200);
            builder.append_data(&mut header, format!("{top}{name}"), content.as_bytes()).unwrap();
        }
        let mut header = header();
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        builder.append_data(&mut header, format!("{top}log/"), &[][..]).unwrap();
        builder.into_inner().unwrap()
    };
    let pax = b"27 path=log/checkpoints/10\n20 mtime=1772323200\n";
    let mut extended = Header::new_ustar();
    extended.set_entry_type(EntryType::XHeader);
    extended.set_size(pax.len() as u64);
    extended.set_cksum();
    let mut with_pax = [extended.as_bytes().as_slice(), pax].concat();
    with_pax.resize(2 * BLOCK, 0);
    with_pax.extend(build(Header::new_ustar, "", "log/x"));
    vec![
        build(Header::new_gnu, "", &long),
        build(Header::new_gnu, "./", "log/y"),
        build(Header::new_ustar, "copy/", &long),
        with_pax,
    ]
}

/// Changes fields and blocks, and nearly always mends the sum that would show it.
fn mutate_tar(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    for _ in 0..dice.within(1..3) {
        let blocks = (bytes.len() / BLOCK).max(1);
        let start = below(dice, blocks) * BLOCK;
        match dice.within(0..10) {
            _ if bytes.len() < BLOCK => mutate(dice, bytes),
            0 => mutate(dice, bytes),
            1 => drop(bytes.drain(start..start + BLOCK)),
            2 => {
                let seed = &seeds[below(dice, seeds.len())];
                let from = below(dice, seed.len() / BLOCK) * BLOCK;
                bytes.splice(start..start, seed[from..from + BLOCK].iter().copied());
            }
            3 => drop(bytes.splice(start..start, [0; BLOCK])),
            _ => mutate_header(dice, &mut bytes[start..start + BLOCK]),
        }
    }
}

fn mutate_header(dice: &mut Dice, block: &mut [u8]) {
    let (from, to) = FIELDS[below(dice, FIELDS.len())];
    let texts: [&[u8]; 18] = [
        b"",
        b"0",
        b"5",
        b"00000000005",
        b"0000000000 5",
        b" 5 ",
        b"+5",
        b"5\0\x001",
        b"0o5",
        b"1_0",
        b"-1",
        b"99",
        b"x/y",
        b"log/x\0y",
        b"log/x/",
        b"ustar\x0000",
        b"ustar  ",
        b"\x80\x01\0\0\0\0\0\0\0\0\0\x05",
    ];
    match dice.within(0..5) {
        0 => block[from + below(dice, to - from)] = dice.roll() as u8,
        1 => block[from..to].fill([0, 0xff, b' ', b'7'][below(dice, 4)]),
        2 => block[156] = b"\x0001234567xgLKSVMDAX"[below(dice, 19)],
        3 => {
            let at = from + below(dice, to - from);
            block[at..to].fill(0);
        }
        _ => {
            let text = texts[below(dice, texts.len())];
            let length = text.len().min(to - from);
            block[from..to].fill(0);
            block[from..from + length].copy_from_slice(&text[..length]);
        }
    }
    if dice.within(0..20) > 0 {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Names and contents of a tar, or why not.
type Read = Result<BTreeMap<String, Vec<u8>>, Unreadable>;

fn read(path: &Path) -> Read {
    let tar = Tar::open(path)?;
    let mut found = BTreeMap::new();
    for name in tar.list("")? {
        let bytes = tar.get(&name)?.unwrap();
        found.insert(name, bytes.to_vec());
    }
    Ok(found)
}

/// Names of members as others read them, with the hash of each file's content and `None` for a folder.
type Theirs = BTreeMap<String, Option<String>>;

/// As Python's `tarfile` reads them; `None` where it refuses one.
fn read_by_python(dir: &Path) -> BTreeMap<String, Option<Theirs>> {
    const PROGRAM: &str = "
import hashlib, json, os, sys, tarfile
def read(path):
    try:
        with tarfile.open(path, 'r:') as tar:
            of = [(m.name, None if m.isdir() else hashlib.sha256(tar.extractfile(m).read()).hexdigest()) for m in tar]
            assert len(dict(of)) == len(of) and [name.encode() for name in dict(of)]
            return dict(of)
    except Exception:
        return None
folder = sys.argv[1]
print(json.dumps({name: read(os.path.join(folder, name)) for name in os.listdir(folder)}))
";
    let python = std::env::var_os("CUSTODY_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python).arg("-c").arg(PROGRAM).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of files as this reader gives them: without `./`, and without one folder on top of all.
fn normal(read: &Theirs) -> BTreeMap<String, String> {
    let plain = read.iter().map(|(name, hash)| (name.strip_prefix("./").unwrap_or(name).trim_end_matches('/'), hash));
    let plain: BTreeMap<&str, &Option<String>> = plain.filter(|(name, _)| !["", "."].contains(name)).collect();
    let top = plain.keys().next().and_then(|name| name.split('/').next()).unwrap_or_default();
    let below = |name: &str| Some(name.strip_prefix(top)?.strip_prefix('/')?.to_owned());
    let is_on_top = |(name, hash): (&&str, &&Option<String>)| below(name).is_some() || (*name == top && hash.is_none());
    let is_wrapped = !["log", "workspaces"].contains(&top) && plain.iter().all(is_on_top);
    let files = plain.iter().filter_map(|(name, hash)| Some((*name, hash.as_ref()?.clone())));
    files.map(|(name, hash)| (if is_wrapped { below(name).unwrap() } else { name.to_owned() }, hash)).collect()
}

/// Tars that are held against Python's reading at a time.
const HELD_AT_ONCE: usize = 500;

fn hold_against_python(dir: &Path, accepted: &mut BTreeMap<String, BTreeMap<String, String>>) {
    for (file, theirs) in read_by_python(dir) {
        let ours = accepted.remove(&file).unwrap();
        let path = dir.join(&file);
        if let Some(theirs) = theirs {
            let kept = std::env::temp_dir().join(format!("custody-{file}"));
            if normal(&theirs) != ours {
                std::fs::copy(&path, &kept).unwrap();
            }
            assert_eq!(normal(&theirs), ours, "kept as {}", kept.display());
        }
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn tars_are_refused_or_read_as_others_read_them() {
    let seeds = tars();
    let dir = tempfile::tempdir().unwrap();
    let mut accepted: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut count = 0;
    let mut try_one = |bytes: &[u8], must: bool| {
        let path = dir.path().join(format!("{count}.tar"));
        std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes)).unwrap();
        let found = read(&path);
        assert_eq!(found, read(&path), "the same answer twice");
        assert!(found.is_ok() || !must, "{found:?}");
        let Ok(found) = found else { return std::fs::remove_file(path).unwrap() };
        assert!(found.len() * BLOCK <= bytes.len() && found.values().map(Vec::len).sum::<usize>() <= bytes.len());
        let hashed = found.iter().map(|(name, content)| (name.clone(), object_hash(content).to_string())).collect();
        accepted.insert(format!("{count}.tar"), hashed);
        count += 1;
        if accepted.len() >= HELD_AT_ONCE {
            hold_against_python(dir.path(), &mut accepted);
        }
    };
    seeds.iter().for_each(|seed| try_one(seed, true));
    rounds("tar", 3_000, |dice| {
        let mut bytes = seeds[below(dice, seeds.len())].clone();
        mutate_tar(dice, &mut bytes, &seeds);
        try_one(&bytes, false);
    });
    hold_against_python(dir.path(), &mut accepted);
    assert!(count > 300, "only {count} were accepted: the mutations are too rough");
}

#[test]
fn frames_are_refused_or_expanded_to_the_length_they_say() {
    let mut dice = Dice::new(7);
    let random: Vec<u8> = (0..3_000).map(|_| dice.roll() as u8).collect();
    let contents = [b"".to_vec(), b"custody ".repeat(200), random, vec![0; 70_000]];
    let with = |content: &Vec<u8>, level, checksum| {
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        compressor.include_checksum(checksum).unwrap();
        compressor.compress(content).unwrap()
    };
    let seeds: Vec<(Vec<u8>, u64)> = contents
        .iter()
        .flat_map(|content| [(3, false), (1, true), (-5, false)].map(|(level, sum)| (content, level, sum)))
        .map(|(content, level, sum)| (with(content, level, sum), content.len() as u64))
        .collect();
    let good = &seeds[3];
    let mut accepted = 0;
    rounds("frame", 20_000, |dice| {
        let (frame, length) = &seeds[below(dice, seeds.len())];
        let (mut frame, mut length) = (frame.clone(), *length);
        mutate(dice, &mut frame);
        if dice.within(0..8) == 0 {
            length = [0, 1, length + 1, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, u64::MAX][below(dice, 6)];
        }
        let found = expand(&frame, length);
        assert_eq!(found, expand(&frame, length), "the same answer twice");
        if let Some(content) = found {
            accepted += 1;
            assert_eq!(content.len() as u64, length);
            assert!(length <= FRAME_BYTES_MAX);
            assert_eq!(zstd::stream::decode_all(frame.as_slice()).unwrap(), content, "as a streaming decoder reads it");
        }
        // What was fed before leaves nothing behind.
        assert_eq!(expand(&good.0, good.1).unwrap(), contents[1]);
    });
    assert!(accepted > 100, "only {accepted} were accepted: the mutations are too rough");
}

#[test]
fn times_and_places_are_refused_or_mean_what_they_say() {
    let times = ["2026-03-01T12:00:00Z", "2026-03-01", "1970-01-01T00:00:00.000001+00:00", "9999-12-31T23:59:60Z"];
    let places =
        ["acme/7", "acme/7..9", "a/b/0..1", "11111111111111111111111111111111/22222222222222222222222222222222/3"];
    let (mut read_times, mut read_places) = (0, 0);
    rounds("words", 20_000, |dice| {
        let mut text = times[below(dice, times.len())].as_bytes().to_vec();
        mutate(dice, &mut text);
        if let Some(micros) = std::str::from_utf8(&text).ok().and_then(|text| time::parse(text).ok()) {
            read_times += 1;
            assert_eq!(time::parse(&time::text(micros)), Ok(micros));
        }
        let mut text = places[below(dice, places.len())].as_bytes().to_vec();
        mutate(dice, &mut text);
        if let Some(what) = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()) {
            read_places += 1;
            if let What::Positions { first, end, .. } = what {
                assert!(end.is_none_or(|end| first < end));
            }
        }
    });
    assert!(read_times > 100 && read_places > 100, "{read_times} {read_places}");
}
