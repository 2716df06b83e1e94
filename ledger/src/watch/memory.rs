//! What the watch remembers, as a file: so that a start need not walk everything.
//!
//! What must hold: a file that is of another store, damaged or of another version is of no use and says so; nothing is lost with it.

use std::{fs, io, path::Path};

use crate::{durable, store::StoreError, tail::Tail};

/// What the file begins with; to be raised with every change of what is in it.
const MAGIC: &[u8; 16] = b"custody-watch/2\n";
/// Permissions: it says who does what.
const MODE: u32 = 0o600;
/// Bytes of the file as it is unpacked, at most: profiles and pairs at their bounds.
const BYTES_MAX: usize = 1 << 30;
/// How hard it is packed: quickly.
const LEVEL: i32 = 1;

/// The digest of the newest batch with records before a commit: no other store has it there. Heartbeats and statements are passed over,
/// a few hundred at most; of a store that has nothing else it is empty.
fn mark(tail: &Tail, next: u64) -> Result<String, StoreError> {
    for commit_index in (next.saturating_sub(1_024)..next).rev() {
        if let Some(batch) = tail.batch(commit_index)?
            && !batch.records().is_empty()
        {
            return Ok(batch.digest());
        }
    }
    Ok(String::new())
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

/// Writes it, with the next commit.
pub(super) fn write(file: &Path, tail: &Tail, next: u64, bytes: &[u8]) -> io::Result<()> {
    let mark = mark(tail, next).map_err(damaged)?;
    if bytes.len() > BYTES_MAX {
        return Err(damaged("it is longer than a start would take"));
    }
    let packed = zstd::bulk::compress(bytes, LEVEL)?;
    let length = u64::try_from(mark.len()).map_err(damaged)?;
    let whole = [&MAGIC[..], &next.to_be_bytes(), &length.to_be_bytes(), mark.as_bytes(), &packed].concat();
    let sum = custody::hash::sha256(&[&whole]);
    durable::write(file, &[&whole[..], &sum].concat(), MODE)
}

/// The next commit, and what was remembered before it; `None`: there is none, or it is of no use, which is told.
///
/// # Errors
/// [`StoreError`]: whether it is of use cannot be said now.
pub(super) fn read(file: &Path, tail: &Tail) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
    let read = match unpack(file) {
        Ok(None) => return Ok(None),
        Ok(Some((next, known, bytes))) if next <= tail.committed() && mark(tail, next)? == known => Ok((next, bytes)),
        Ok(Some(_)) => Err(damaged("it is of another store")),
        Err(why) => Err(why),
    };
    match read {
        Ok(read) => Ok(Some(read)),
        Err(why) => {
            let file = file.display();
            tracing::warn!(%file, %why, "what the watch remembered is of no use; it walks the store again");
            Ok(None)
        }
    }
}

/// Next commit, mark and bytes.
fn unpack(file: &Path) -> io::Result<Option<(u64, String, Vec<u8>)>> {
    let bytes = match fs::read(file) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let (whole, sum) = bytes.split_last_chunk::<32>().ok_or_else(|| damaged("it is cut"))?;
    if custody::hash::sha256(&[whole]) != *sum {
        return Err(damaged("its sum differs"));
    }
    let rest = whole.strip_prefix(MAGIC).ok_or_else(|| damaged("it is of another version"))?;
    let (next, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut"))?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut"))?;
    let length = usize::try_from(u64::from_be_bytes(*length)).map_err(damaged)?;
    let (known, packed) = rest.split_at_checked(length).ok_or_else(|| damaged("it is cut"))?;
    let known = String::from_utf8(known.to_vec()).map_err(damaged)?;
    Ok(Some((u64::from_be_bytes(*next), known, zstd::bulk::decompress(packed, BYTES_MAX)?)))
}
