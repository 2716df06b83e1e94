//! What waits for the disk without the spool: syncs, and reads of batches. Meanwhile others write.

use bytes::Bytes;

use super::{
    SpoolError,
    frame::{self, Entry},
    name,
};
use crate::durable;

/// A sync that waits for the disk without the spool.
pub struct Syncing {
    pub(super) disk: durable::Syncing,
    pub(super) synced: Synced,
}

/// What a sync made durable, for [`Spool::synced`].
pub struct Synced {
    pub(super) file: u64,
    pub(super) length: u64,
    pub(super) next_order: u64,
}

impl Syncing {
    /// Waits for the disk.
    ///
    /// # Errors
    /// [`SpoolError::Disk`]: nobody may be answered.
    pub fn wait(self) -> Result<Synced, SpoolError> {
        (self.disk)()?;
        Ok(self.synced)
    }
}

/// Where a batch stands in the spool's files.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    pub(super) order: u64,
    pub(super) file: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
}

/// Reads batches without the spool.
#[derive(Clone)]
pub struct Reader(pub(super) durable::Reading);

impl Reader {
    /// Order and bytes of each.
    ///
    /// # Errors
    /// [`SpoolError::Disk`], also when it is not held any more and its file is gone; [`SpoolError::Damaged`].
    pub fn read(&self, found: &[Found]) -> Result<Vec<(u64, Bytes)>, SpoolError> {
        let read = |found: &Found| {
            let bytes = Bytes::from((self.0)(&name(found.file), found.offset, found.length)?);
            match frame::parse_one(found.file, found.offset, &bytes) {
                Some(Entry::Batch(batch)) => Ok((found.order, batch)),
                _ => Err(SpoolError::Damaged(name(found.file))),
            }
        };
        found.iter().map(read).collect()
    }
}
