//! Tiles, bundles and their paths, against `tlog_tiles` and against the tree itself.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    merkle::{self, log_leaf},
    testing::Rng,
};

fn tree(size: u64) -> Tree<LogTree> {
    (0..size).map(|at| log_leaf(&at.to_be_bytes()).0).collect()
}

#[test]
fn paths_are_those_of_the_specification() {
    for (number, width, path) in [
        (0, 256, "tile/0/000"),
        (5, 1, "tile/0/005.p/1"),
        (999, 255, "tile/0/999.p/255"),
        (1_000, 256, "tile/0/x001/000"),
        (1_234_067, 256, "tile/0/x001/x234/067"),
        (1_234_067, 7, "tile/0/x001/x234/067.p/7"),
        (u64::MAX, 256, "tile/0/x018/x446/x744/x073/x709/x551/615"),
    ] {
        assert_eq!(tile_path("0", number, width), path);
    }
    assert_eq!(tile_path("entries", 1_000, 3), "tile/entries/x001/000.p/3");
    let mut rng = Rng::for_test("paths_are_those_of_the_specification");
    for _ in 0..2_000 {
        let (level, number) = (rng.below(8), rng.integer(1 << 56));
        let width = 1 + rng.below(256);
        // Theirs has the height of tiles in its path, which C2SP leaves out.
        let theirs = tlog_tiles::Tile::new(8, level as u8, number, width as u32, false).path();
        assert_eq!(format!("tile/8/{}", &tile_path(&level.to_string(), number, width)["tile/".len()..]), theirs);
    }
}

#[test]
fn new_tiles_are_those_of_another_implementation() {
    let mut rng = Rng::for_test("new_tiles_are_those_of_another_implementation");
    let edges = [0, 1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 131_072, 131_073];
    for _ in 0..3_000 {
        let mut sizes = [*rng.pick(&edges), rng.below(140_000)];
        sizes.sort_unstable();
        let [from, size] = sizes;
        let ours: BTreeSet<(u32, u64, u64)> =
            tiles_between(from, size).into_iter().filter_map(|(level, n, w)| Some((level?, n, w))).collect();
        let theirs = tlog_tiles::Tile::new_tiles(8, from, size);
        let theirs = theirs.iter().map(|t| (u32::from(t.level()), t.level_index(), u64::from(t.width()))).collect();
        assert_eq!(ours, theirs, "from {from} to {size}");
    }
}

/// What the tiles of a level hold, when the newest width of each counts.
fn covered(tiles: &[(Option<u32>, u64, u64)], level: Option<u32>) -> BTreeMap<u64, u64> {
    tiles.iter().filter(|(of, _, _)| *of == level).map(|(_, number, width)| (*number, *width)).collect()
}

#[test]
fn tiles_cover_a_growing_log_exactly() {
    let mut rng = Rng::for_test("tiles_cover_a_growing_log_exactly");
    for _ in 0..100 {
        let (mut size, mut stored) = (0, BTreeMap::new());
        for _ in 0..6 {
            let bits = 1 + rng.below(17);
            let next = size + rng.below(1 << bits);
            for (level, number, width) in tiles_between(size, next) {
                assert!((1..=TILE_WIDTH).contains(&width));
                let before = stored.insert((level, number), width);
                assert!(before.is_none_or(|before| before < width), "a tile is written once at each width");
            }
            size = next;
            let all: BTreeMap<_, _> =
                tiles_between(0, size).into_iter().map(|(level, number, width)| ((level, number), width)).collect();
            assert_eq!(stored, all, "{size}");
        }
        let tiles = tiles_between(0, size);
        let mut hashes = size;
        for level in 0..8 {
            let widths: u64 = covered(&tiles, Some(level)).values().sum();
            assert_eq!(widths, hashes, "level {level} of {size}");
            hashes /= TILE_WIDTH;
        }
        assert_eq!(covered(&tiles, None), covered(&tiles, Some(0)), "a bundle for each tile of leaves");
    }
    assert!(tiles_between(5, 5).is_empty() && tiles_between(0, 0).is_empty() && tiles_between(9, 3).is_empty());
}

#[test]
fn a_tile_holds_the_roots_of_its_subtrees() {
    let tree = tree(66_000);
    let bottom = tile(&tree, 0, 3, 256).unwrap();
    assert_eq!(bottom, tree.leaves()[768..1024]);
    let above = tile(&tree, 1, 0, 256).unwrap();
    assert_eq!(above[3], merkle::root_of::<LogTree>(&bottom).0);
    assert_eq!(tile(&tree, 2, 0, 1).unwrap(), [merkle::root_of::<LogTree>(&above).0]);
    assert_eq!(tile(&tree, 1, 1, 1).unwrap().len(), 1);
    for (level, number, width) in [(0, 257, 209), (1, 1, 2), (2, 0, 2), (7, 0, 1), (8, 0, 1), (u32::MAX, 0, 1)] {
        assert_eq!(tile(&tree, level, number, width), None, "{level}/{number}.p/{width}");
    }
    assert_eq!(tile(&tree, 0, u64::MAX, 1), None);
}

#[test]
fn a_bundle_is_exactly_its_entries() {
    let entries = [vec![1_u8; 3], vec![], vec![2; 300], vec![3; ENTRY_BYTES_MAX]];
    let bundle = encode_bundle(&entries);
    let read = |bytes: &[u8], width| parse_bundle(Bytes::copy_from_slice(bytes), width);
    assert_eq!(read(&bundle, 4).unwrap(), entries);
    assert!(read(&bundle, 3).is_err() && read(&bundle, 5).is_err() && read(&bundle, u64::MAX).is_err());
    assert!(read(&[&bundle[..], &[0]].concat(), 4).is_err());
    for end in 0..bundle.len().min(400) {
        assert!(read(&bundle[..end], 4).is_err(), "cut at {end}");
    }
    assert!(read(&[], 0).unwrap().is_empty());
}

#[test]
fn a_checkpoint_is_read_alike_by_another_implementation() {
    let world = crate::golden_tests::World::new();
    let note = world.checkpoint();
    let theirs = tlog_tiles::Checkpoint::from_bytes(note.checkpoint.text().as_bytes()).unwrap();
    assert_eq!((theirs.origin(), theirs.size()), (note.checkpoint.origin.as_str(), note.checkpoint.size));
    assert_eq!(theirs.hash().0, note.checkpoint.root.0);
    assert_eq!(theirs.to_bytes(), note.checkpoint.text().into_bytes());
}
