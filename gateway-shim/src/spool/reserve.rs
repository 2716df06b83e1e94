//! The reserve: bytes of the disk that the spool holds while there is room, and gives back when a write that must not wait
//! finds none. So a full disk stops new records and nothing else: what is in the spool is signed and shipped, receipts are
//! kept, and what is archived makes room.
//!
//! It promises nothing through a crash: at each start it is there whole, or is made again.

use std::io;

use super::{Limits, is_full};
use crate::{durable::Disk, random};

/// Its file.
pub(super) const NAME: &str = "reserve";
/// Bytes at most. A start on a full disk writes two snapshots and the batches that are due, some hundred KiB; the rest is
/// for ten days of heartbeats and their receipts, at 1 KiB in 200 s.
const BYTES_MAX: u64 = 4 << 20;

/// The reserve of one spool.
pub(super) struct Reserve {
    bytes: u64,
    there: bool,
}

impl Reserve {
    /// Finds it, or makes it if there is room.
    pub(super) fn open(disk: &mut dyn Disk, limits: &Limits) -> io::Result<Self> {
        let mut reserve = Self { bytes: limits.reserve_bytes.min(BYTES_MAX), there: false };
        if disk.list()?.iter().any(|name| name == NAME) {
            reserve.there = disk.read(NAME)?.len() as u64 == reserve.bytes;
            if !reserve.there {
                disk.remove(NAME)?;
            }
        }
        reserve.make(disk)?;
        Ok(reserve)
    }

    pub(super) fn is_there(&self) -> bool {
        self.there
    }

    /// What it takes of the disk now.
    pub(super) fn bytes(&self) -> u64 {
        if self.there { self.bytes } else { 0 }
    }

    /// Makes it if it is not there and there is room.
    pub(super) fn make(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        if self.there {
            return Ok(());
        }
        match write(disk, self.bytes) {
            Ok(()) => self.there = true,
            Err(error) if is_full(&error) => remove(disk)?,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives its bytes back to the disk; `false` if they are given already.
    pub(super) fn give(&mut self, disk: &mut dyn Disk) -> io::Result<bool> {
        if self.there {
            remove(disk)?;
        }
        Ok(std::mem::replace(&mut self.there, false))
    }
}

fn write(disk: &mut dyn Disk, bytes: u64) -> io::Result<()> {
    disk.create(NAME)?;
    let mut left = bytes;
    while left > 0 {
        // Random, because a file system that compresses would set nothing aside for zeros.
        let piece = random::bytes::<{ 64 << 10 }>();
        let length = left.min(piece.len() as u64);
        disk.append(NAME, piece.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default())?;
        left -= length;
    }
    // Some file systems find only here that there is no room.
    disk.sync(NAME)
}

fn remove(disk: &mut dyn Disk) -> io::Result<()> {
    match disk.remove(NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
