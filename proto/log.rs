//! The log: entries, their bundles and tiles (c2sp.org/tlog-tiles), and claims in the fence (FORMAT.md, 10).

use bytes::Bytes;
use prost::Message as _;

use crate::{
    FORMAT_VERSION,
    id::{ObjectHash, WorkspaceId},
    merkle::{LogTree, Node, Tree},
    statement::Signed,
    strict::{self, Malformed, NotStrict, table},
    wire::{self, log_entry},
};

/// Entries or hashes in a full tile.
pub const TILE_WIDTH: u64 = 256;
/// Greatest length of an entry in bytes: tiles give it two bytes of length.
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Greatest number of entries of a log that we take in: 64 bytes of memory each.
pub const LOG_ENTRIES_MAX: u64 = 1 << 32;

/// An entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A segment's seal.
    Seal {
        /// Whose segment.
        workspace: WorkspaceId,
        /// Its number.
        segment: u64,
        /// SHA-256 of the seal.
        seal: ObjectHash,
    },
    /// A statement in full.
    Statement(Box<Signed>),
    /// A start of the ledger.
    TermStart(wire::TermStart),
}

impl Entry {
    /// Reads an entry.
    ///
    /// # Errors
    /// [`NotStrict`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NotStrict> {
        let raw: wire::LogEntry = strict::decode(&table::LOG_ENTRY, bytes)?;
        match raw.entry {
            Some(log_entry::Entry::Seal(seal)) => Ok(Self::Seal {
                workspace: seal.workspace.as_ref().try_into()?,
                segment: seal.segment,
                seal: seal.seal_hash.as_ref().try_into()?,
            }),
            Some(log_entry::Entry::Statement(object)) => Ok(Self::Statement(Box::new(Signed::parse(&object)?))),
            Some(log_entry::Entry::TermStart(start)) => Ok(Self::TermStart(start)),
            None => Err(Malformed::new("LogEntry", 0, "missing").into()),
        }
    }
}

/// Bytes of an entry.
pub fn encode_entry(entry: log_entry::Entry) -> Vec<u8> {
    wire::LogEntry { version: FORMAT_VERSION, entry: Some(entry) }.encode_to_vec()
}

/// Bytes of the entry for a seal.
pub fn encode_seal_entry(workspace: WorkspaceId, segment: u64, seal: ObjectHash) -> Vec<u8> {
    let reference = wire::SealReference { workspace: workspace.into(), segment, seal_hash: seal.into() };
    encode_entry(log_entry::Entry::Seal(reference))
}

/// Path of a tile: `level` a number or `entries`, `width` 1 to 256.
pub fn tile_path(level: &str, number: u64, width: u64) -> String {
    let mut digits = format!("{:03}", number.checked_rem(1000).unwrap_or(0));
    let mut rest = number.checked_div(1000).unwrap_or(0);
    while rest > 0 {
        digits = format!("x{:03}/{digits}", rest.checked_rem(1000).unwrap_or(0));
        rest = rest.checked_div(1000).unwrap_or(0);
    }
    let partial = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{digits}{partial}")
}

/// Puts entries into a bundle: two big-endian bytes of length before each.
pub fn encode_bundle<E: AsRef<[u8]>>(entries: &[E]) -> Vec<u8> {
    let mut bundle = Vec::new();
    for entry in entries {
        let length = u16::try_from(entry.as_ref().len()).unwrap_or(u16::MAX);
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(entry.as_ref());
    }
    bundle
}

/// Takes a bundle of `width` entries apart.
///
/// # Errors
/// [`Malformed`] for another number of entries, or bytes left over.
pub fn parse_bundle(mut bundle: Bytes, width: u64) -> Result<Vec<Bytes>, Malformed> {
    let fault = || Malformed::new("entry bundle", 0, "the entries do not fill it");
    let mut entries = Vec::new();
    for _ in 0..width {
        let (length, _) = bundle.split_first_chunk::<2>().ok_or_else(fault)?;
        let end = usize::from(u16::from_be_bytes(*length)).checked_add(2).ok_or_else(fault)?;
        if end > bundle.len() {
            return Err(fault());
        }
        entries.push(bundle.slice(2..end));
        bundle = bundle.split_off(end);
    }
    if bundle.is_empty() { Ok(entries) } else { Err(fault()) }
}

/// Hash of the tile at `level` and `number` with `width` hashes, from a tree that has all its leaves.
pub fn tile(tree: &Tree<LogTree>, level: u32, number: u64, width: u64) -> Option<Vec<Node>> {
    let span = 1_u64.checked_shl(level.checked_mul(8)?)?;
    let first = number.checked_mul(TILE_WIDTH)?;
    (first..first.checked_add(width)?).map(|at| tree.complete(at.checked_mul(span)?, span)).collect()
}

/// The tiles that a tree of `size` leaves has: level, number, width; level `None` for entry bundles. With `from` only those
/// that a tree of `from` leaves has not.
pub fn tiles_between(from: u64, size: u64) -> Vec<(Option<u32>, u64, u64)> {
    let mut tiles = Vec::new();
    let mut level = 0_u32;
    let (mut old, mut new) = (from, size);
    while new > 0 {
        if new > old {
            let first = old.checked_div(TILE_WIDTH).unwrap_or(0);
            let last = new.saturating_sub(1).checked_div(TILE_WIDTH).unwrap_or(0);
            for number in first..=last {
                let width = new.saturating_sub(number.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH);
                if level == 0 {
                    tiles.push((None, number, width));
                }
                tiles.push((Some(level), number, width));
            }
        }
        (old, new) = (old.checked_div(TILE_WIDTH).unwrap_or(0), new.checked_div(TILE_WIDTH).unwrap_or(0));
        level = level.saturating_add(1);
    }
    tiles
}

/// Reads a claim.
///
/// # Errors
/// [`NotStrict`].
pub fn parse_claim(bytes: &[u8]) -> Result<wire::Claim, NotStrict> {
    strict::decode(&table::CLAIM, bytes)
}

#[cfg(test)]
mod tests;
