//! Keyed BLAKE3 of many short inputs at once: the same hashes as one by one, several in the lanes of one processor.
//!
//! The `blake3` crate fills the lanes from one long input only, and ours are short: a record has five blocks, and to hash
//! them one after the other was half of all the work of verifying. So the whole blocks of inputs of the same length go
//! through the crate's own many-lane function, and each input's last block, which may be part of one, by itself. Nothing of
//! BLAKE3 is written anew here but the order of the blocks and their flags.
//!
//! What must hold: every hash is what `blake3::keyed_hash` says, which a test asks for all lengths. The crate calls
//! `platform` undocumented; `Cargo.toml` therefore names the minor version that this was written for.

use blake3::{
    BLOCK_LEN, CHUNK_LEN, IncrementCounter,
    platform::{Platform, le_bytes_from_words_32, words_from_le_bytes_32},
};

/// Inputs that are taken together: four times the lanes of the widest processor, and what fits into its nearest cache.
pub(crate) const TOGETHER: usize = 64;

/// Flags of a block (BLAKE3, 2.2, table 3).
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// State between two blocks.
type Chaining = [u32; 8];

/// `blake3::keyed_hash` of each input, in order, at the end of `out`.
pub(crate) fn keyed_hashes(key: &[u8; 32], inputs: &[&[u8]], out: &mut Vec<[u8; 32]>) {
    let (platform, words) = (Platform::detect(), words_from_le_bytes_32(key));
    for some in inputs.chunks(TOGETHER) {
        let mut states = [words; TOGETHER];
        let leading = some.iter().map(|input| blocks_before_last(input));
        let (least, most) = (leading.clone().min().unwrap_or(0), leading.max().unwrap_or(0));
        for blocks in least.max(1)..=most.min(BLOCKS_MAX) {
            take_blocks(platform, &words, some, blocks, &mut states);
        }
        for (input, state) in some.iter().zip(states) {
            out.push(if input.len() > CHUNK_LEN {
                *blake3::keyed_hash(key, input).as_bytes()
            } else {
                last_block(platform, state, input)
            });
        }
    }
}

/// `blake3::keyed_hash` of each two neighbours of `nodes` at the end of `out`; one that is left over is left out.
pub(crate) fn keyed_pairs(key: &[u8; 32], nodes: &[[u8; 32]], out: &mut Vec<[u8; 32]>) {
    let (platform, words) = (Platform::detect(), words_from_le_bytes_32(key));
    let (pairs, _) = nodes.as_flattened().as_chunks::<BLOCK_LEN>();
    let pairs: Vec<&[u8; BLOCK_LEN]> = pairs.iter().collect();
    let begin = out.len();
    out.resize(begin.saturating_add(pairs.len()), [0; 32]);
    let Some(hashes) = out.get_mut(begin..) else { return };
    let (start, end) = (CHUNK_START, CHUNK_END | ROOT);
    platform.hash_many(&pairs, &words, 0, IncrementCounter::No, KEYED_HASH, start, end, hashes.as_flattened_mut());
}

/// Blocks before the last one in a chunk.
const BLOCKS_MAX: usize = 15;

/// Whole blocks that more of the input follows.
fn blocks_before_last(input: &[u8]) -> usize {
    input.len().saturating_sub(1) / BLOCK_LEN
}

/// Puts the state after `blocks` blocks for each input that has so many before its last.
fn take_blocks(platform: Platform, key: &Chaining, inputs: &[&[u8]], blocks: usize, states: &mut [Chaining]) {
    macro_rules! of_length {
        ($($count:literal)*) => {
            match blocks {
                $($count => take_bytes::<{ $count * BLOCK_LEN }>(platform, key, inputs, states),)*
                _ => {}
            }
        };
    }
    of_length!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

fn take_bytes<const N: usize>(platform: Platform, key: &Chaining, inputs: &[&[u8]], states: &mut [Chaining]) {
    let is_so_long = |input: &&[u8]| blocks_before_last(input).checked_mul(BLOCK_LEN) == Some(N);
    let (mut together, mut places) = (Vec::with_capacity(TOGETHER), Vec::with_capacity(TOGETHER));
    for (input, state) in inputs.iter().zip(states).filter(|(input, _)| is_so_long(input)) {
        let Some(blocks) = input.first_chunk::<N>() else { continue };
        together.push(blocks);
        places.push(state);
    }
    let mut hashes = [[0; 32]; TOGETHER];
    let bytes = hashes.as_flattened_mut();
    platform.hash_many(&together, key, 0, IncrementCounter::No, KEYED_HASH, CHUNK_START, 0, bytes);
    for (state, hash) in places.into_iter().zip(&hashes) {
        *state = words_from_le_bytes_32(hash);
    }
}

/// The hash of an input of one chunk, after all its blocks but the last.
fn last_block(platform: Platform, mut state: Chaining, input: &[u8]) -> [u8; 32] {
    let before = blocks_before_last(input);
    let rest = input.get(before.saturating_mul(BLOCK_LEN)..).unwrap_or_default();
    let mut block = [0; BLOCK_LEN];
    if let Some(begin) = block.get_mut(..rest.len()) {
        begin.copy_from_slice(rest);
    }
    let length = u8::try_from(rest.len()).unwrap_or(u8::MAX);
    let start = if before == 0 { CHUNK_START } else { 0 };
    platform.compress_in_place(&mut state, &block, length, 0, KEYED_HASH | start | CHUNK_END | ROOT);
    le_bytes_from_words_32(&state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    const KEY: [u8; 32] = [7; 32];

    fn one_by_one(inputs: &[&[u8]]) -> Vec<[u8; 32]> {
        inputs.iter().map(|input| *blake3::keyed_hash(&KEY, input).as_bytes()).collect()
    }

    fn together(inputs: &[&[u8]]) -> Vec<[u8; 32]> {
        let mut found = Vec::new();
        keyed_hashes(&KEY, inputs, &mut found);
        found
    }

    #[test]
    fn every_length_has_the_hash_that_the_crate_gives_it() {
        let bytes: Vec<u8> = (0..3 * CHUNK_LEN).map(|at| at as u8).collect();
        for length in 0..bytes.len() {
            let input = &bytes[..length];
            // Alone, and in more lanes than any processor has and one more.
            assert_eq!(together(&[input]), one_by_one(&[input]), "{length}");
            let many = vec![input; 17];
            assert_eq!(together(&many), one_by_one(&many), "{length}");
        }
    }

    #[test]
    fn lengths_may_be_mixed_in_any_number() {
        let mut rng = Rng::for_test("lengths_may_be_mixed_in_any_number");
        for count in (0..=2 * TOGETHER + 1).chain([4_096]) {
            let most = *rng.pick(&[1, 65, 300, 400, 1_025, 5_000]);
            let inputs: Vec<Vec<u8>> = (0..count)
                .map(|_| {
                    let length = rng.index(most);
                    rng.bytes(length)
                })
                .collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            assert_eq!(together(&inputs), one_by_one(&inputs), "{count} inputs");
        }
    }

    #[test]
    fn neighbours_are_hashed_in_pairs() {
        let mut rng = Rng::for_test("neighbours_are_hashed_in_pairs");
        for count in 0..70 {
            let nodes: Vec<[u8; 32]> = (0..count).map(|_| rng.node()).collect();
            let pairs: Vec<Vec<u8>> = nodes.chunks_exact(2).map(|pair| pair.concat()).collect();
            let mut found = vec![[1; 32]];
            keyed_pairs(&KEY, &nodes, &mut found);
            let pairs: Vec<&[u8]> = pairs.iter().map(Vec::as_slice).collect();
            assert_eq!(found, [vec![[1; 32]], one_by_one(&pairs)].concat(), "{count} nodes");
        }
    }
}
