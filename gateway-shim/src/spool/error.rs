//! Why the spool did not do what was asked, and what to do about it.

use std::io;

use custody::id::{Epoch, KeyId};

use crate::key::Name;

/// Why the spool did not do what was asked.
#[derive(Debug)]
pub enum SpoolError {
    /// No space, and nothing that may be let go. Nothing changed: the same may be asked again when there is space.
    Full,
    /// The disk failed; what was written since the last sync is in doubt. Only a new start helps.
    Disk(io::Error),
    /// A file is not what was written. A crash does not do this.
    Damaged(String),
    /// It is of this gateway, and the opener is another. Nothing was written.
    OfAnother(Name),
    /// This epoch is not ended, and only this key may: the opener has another. Nothing was written or signed.
    OtherKey(Epoch, KeyId),
    /// A version that this program does not know wrote it.
    Newer,
}

impl std::fmt::Display for SpoolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => {
                f.write_str("write to the spool: its disk has no space; hint: make room, some MiB are enough")
            }
            Self::Disk(error) if error.kind() == io::ErrorKind::WouldBlock => f.write_str(
                "open the spool: another process uses it; hint: does a relay or serve with this configuration run?",
            ),
            Self::Disk(_) => f.write_str("use the spool's disk"),
            Self::Damaged(file) => write!(
                f,
                "read the spool: {file} is damaged; hint: move the folder away and keep it, the next start then declares \
                 that its state was lost"
            ),
            Self::OfAnother(Name { origin, workspace, gateway }) => write!(
                f,
                "open the spool: it is of gateway {gateway} in workspace {workspace} of {origin}, and the configuration \
                 names another; hint: give each gateway a spool.dir of its own, or mend gateway.id, gateway.workspace \
                 or gateway.origin"
            ),
            Self::OtherKey(epoch, key_id) => write!(
                f,
                "open the spool: its epoch {epoch} is not ended and only the key {key_id} may end it, which is not \
                 gateway.key; nothing was changed; hint: put that key back, start and stop the gateway, and change the \
                 key then; if that key is lost: gateway-shim key lost --config FILE"
            ),
            Self::Newer => f.write_str("open the spool: a newer gateway-shim wrote it; hint: run that one"),
        }
    }
}

impl std::error::Error for SpoolError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Its own text says all of it.
            Self::Disk(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Self::Disk(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl SpoolError {
    /// Of a write that was taken back: a disk without space is full, whatever else fails is in doubt.
    pub(super) fn of_write(error: io::Error) -> Self {
        if is_full(&error) { Self::Full } else { Self::Disk(error) }
    }
}

/// Whether a write failed for want of space alone.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
