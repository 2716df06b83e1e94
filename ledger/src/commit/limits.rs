//! The writer's limits: when a segment is cut, and when batches wait. A workspace alone never uses up what all share.

use custody::segment::{SEGMENT_BYTES_MAX, SEGMENT_LEAVES_MAX};

/// When segments are cut, and when batches wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Microseconds after a segment's first record at which it is cut.
    pub cut_age_us: u64,
    /// Microseconds after its first leaf at which a segment of heartbeats alone is cut.
    pub heartbeat_age_us: u64,
    /// Uncompressed bytes at which it is cut.
    pub cut_bytes: u64,
    /// Leaves at which it is cut.
    pub cut_leaves: u64,
    /// Queue rows that may wait for the archive before batches are pushed back.
    pub unpublished_max: u64,
    /// Uncompressed bytes of one workspace that may wait for the archive before its batches are pushed back.
    pub workspace_bytes: u64,
    /// Free bytes on the data disk below which batches are refused.
    pub disk_low_bytes: u64,
    /// Leaves of cut segments that one gateway may have read within ten seconds.
    pub leaves_read_of_one: u64,
    /// The same for all gateways together.
    pub leaves_read_of_all: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cut_age_us: 300_000_000,
            heartbeat_age_us: crate::workspace::DAY_US,
            workspace_bytes: u64::MAX,
            cut_bytes: SEGMENT_BYTES_MAX,
            cut_leaves: SEGMENT_LEAVES_MAX,
            unpublished_max: 4_096,
            disk_low_bytes: 1 << 30,
            // Eight of the greatest segments: a good gateway needs one or two, after a long absence or a restart of the ledger.
            leaves_read_of_one: 8 * SEGMENT_LEAVES_MAX,
            // A greatest segment takes the writer some milliseconds, these a tenth of its time.
            leaves_read_of_all: 128 * SEGMENT_LEAVES_MAX,
        }
    }
}

impl Limits {
    /// Segments of one workspace that may wait for the archive: a quarter, so that no workspace alone stops the others.
    pub(super) fn unpublished_share(&self) -> u64 {
        (self.unpublished_max / 4).max(1)
    }
}
