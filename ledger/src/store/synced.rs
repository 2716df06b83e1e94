//! How far the store was synced: the number of changes that are on disk, in a small file beside the database.
//!
//! What must hold: the number is written after the sync of the change that it counts, so it is never ahead of the disk; and no
//! change waits for a sync of it, so after a power cut it may be behind, by a second ([`Synced::keep`]). A database that holds
//! fewer changes has lost some that may have been answered for, whatever took them. RocksDB itself cannot tell: a record that was
//! damaged in its write-ahead log looks like one that a power cut tore while it was being written.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use custody::hash::sha256;

use crate::durable::Slot;

/// Name of the file, in the database's folder; RocksDB passes over names that it does not know.
pub(super) const FILE: &str = "SYNCED";
/// Permissions: what it says is no secret, and no other user's business.
const MODE: u32 = 0o600;
/// The number and as much of its hash as tells damage from a number.
const LENGTH: usize = 16;

/// The number of changes that were synced, as far as is known.
pub(super) struct Synced {
    slot: Slot,
    known: Mutex<Known>,
}

struct Known {
    changes: u64,
    /// The number outlasts a power cut, too.
    kept: bool,
}

fn encode(changes: u64) -> [u8; LENGTH] {
    let number = changes.to_be_bytes();
    let hash = sha256(&[b"custody/v1/synced\n", &number]);
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&number);
    bytes[8..].copy_from_slice(&hash[..8]);
    bytes
}

/// The number beside the database in `dir`; `None` if none was ever written, by an older program say.
///
/// # Errors
/// Those of the file system; `InvalidData` if it is no such number.
pub(super) fn read(dir: &Path) -> io::Result<Option<u64>> {
    let bytes = match fs::read(dir.join(FILE)) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let number = bytes.first_chunk().map(|number| u64::from_be_bytes(*number));
    let whole = number.filter(|number| encode(*number)[..] == bytes);
    whole.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
}

impl Synced {
    /// Beside the database in `dir`, which holds so many changes.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn open(dir: &Path, changes: u64) -> io::Result<Self> {
        let slot = Slot::open(&dir.join(FILE), &encode(changes), MODE)?;
        slot.put(&encode(changes))?;
        Ok(Self { slot, known: Mutex::new(Known { changes, kept: false }) })
    }

    /// Writes down how many changes are on disk now. Of two that come at one time the later is not overtaken by the earlier.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn note(&self, changes: impl FnOnce() -> u64) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changes();
        if now > known.changes {
            self.slot.put(&encode(now))?;
            *known = Known { changes: now, kept: false };
        }
        Ok(())
    }

    /// Syncs the number, if that was not done since it last grew. To be called every second.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn keep(&self) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.kept {
            self.slot.sync()?;
            known.kept = true;
        }
        Ok(())
    }
}
