//! What a lie is about: an object of the archive, or something inside one.

use custody::{
    archive,
    id::WorkspaceId,
    strict::{Message, table},
};

use crate::golden::{keys, ledger::Ledger, render::At, render::Rendered};

/// A place in the golden archive. In a lie's file: `seal alpha/2`, `record alpha/2/0/3`, `checkpoint newest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A checkpoint by its place among all.
    Checkpoint(Which),
    /// A cosignature of a checkpoint, by number of the witness.
    Cosignature(Which, usize),
    /// An entry bundle of the newest checkpoint.
    Bundle(u64),
    /// A hash tile of the newest checkpoint: level and number.
    Tile(u32, u64),
    /// An entry of the log.
    LogEntry(usize),
    /// A statement object; `None` for the ledger's own chain.
    Statement(Option<WorkspaceId>, usize),
    /// What a statement says, inside its object.
    Said(Option<WorkspaceId>, usize),
    /// A seal.
    Seal(At),
    /// A segment object.
    Segment(At),
    /// Its header.
    Header(At),
    /// Its index.
    Index(At),
    /// Its roster.
    Roster(At),
    /// The content of its frame, before compression.
    Frame(At),
    /// A leaf as the object holds it.
    Entry(At, usize),
    /// The batch inside.
    Batch(At, usize),
    /// The batch's header.
    BatchHeader(At, usize),
    /// The signed head that the header holds.
    SignedHead(At, usize),
    /// The head itself.
    Head(At, usize),
    /// A record of the batch.
    Record(At, usize, usize),
    /// All objects of a workspace.
    Workspace(WorkspaceId),
}

/// A checkpoint by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first that was published.
    Oldest,
    /// One in the middle.
    Middle,
    /// The last but one.
    Previous,
    /// The last but one that a witness cosigned.
    Cosigned,
    /// The last.
    Newest,
}

impl Which {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "oldest" => Self::Oldest,
            "middle" => Self::Middle,
            "previous" => Self::Previous,
            "cosigned" => Self::Cosigned,
            "newest" => Self::Newest,
            _ => return None,
        })
    }

    /// Its size in this ledger's log.
    pub fn size(self, ledger: &Ledger) -> u64 {
        let all = &ledger.publications;
        let at = match self {
            Self::Oldest => 0,
            Self::Middle => all.len() / 2,
            Self::Previous => all.len().saturating_sub(2),
            Self::Cosigned => {
                let earlier = all.iter().rev().skip(1).position(|publication| !publication.cosignatures.is_empty());
                all.len().saturating_sub(2 + earlier.unwrap_or(0))
            }
            Self::Newest => all.len().saturating_sub(1),
        };
        all.get(at).map_or(0, |publication| publication.checkpoint.size)
    }
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| format!("no such target: {text}"))
    }

    fn read(text: &str) -> Option<Self> {
        let (kind, place) = text.split_once(' ')?;
        let parts: Vec<&str> = place.split(['/', ' ']).collect();
        let number = |at: usize| parts.get(at).and_then(|part| part.parse::<usize>().ok());
        let chain = || match parts.first() {
            Some(&"keys") => None,
            Some(name) => Some(keys::workspace(name)),
            None => None,
        };
        let at = || Some((keys::workspace(parts.first()?), number(1)? as u64));
        Some(match kind {
            "checkpoint" => Self::Checkpoint(Which::parse(place)?),
            "cosignature" => Self::Cosignature(Which::parse(parts.first()?)?, number(1)?),
            "bundle" => Self::Bundle(number(0)? as u64),
            "tile" => Self::Tile(u32::try_from(number(0)?).ok()?, number(1)? as u64),
            "log-entry" => Self::LogEntry(number(0)?),
            "statement" => Self::Statement(chain(), number(1)?),
            "said" => Self::Said(chain(), number(1)?),
            "seal" => Self::Seal(at()?),
            "segment" => Self::Segment(at()?),
            "header" => Self::Header(at()?),
            "index" => Self::Index(at()?),
            "roster" => Self::Roster(at()?),
            "frame" => Self::Frame(at()?),
            "entry" => Self::Entry(at()?, number(2)?),
            "batch" => Self::Batch(at()?, number(2)?),
            "batch-header" => Self::BatchHeader(at()?, number(2)?),
            "signed-head" => Self::SignedHead(at()?, number(2)?),
            "head" => Self::Head(at()?, number(2)?),
            "record" => Self::Record(at()?, number(2)?, number(3)?),
            "workspace" => Self::Workspace(keys::workspace(place)),
            _ => return None,
        })
    }

    /// The message that stands there, where it is one.
    pub fn message(&self) -> Option<&'static Message> {
        Some(match self {
            Self::LogEntry(_) => &table::LOG_ENTRY,
            Self::Statement(..) => &table::SIGNED_STATEMENT,
            Self::Said(..) => &table::STATEMENT,
            Self::Seal(_) => &table::SEAL,
            Self::Header(_) => &table::SEGMENT_HEADER,
            Self::Index(_) => &table::SEGMENT_INDEX,
            Self::Roster(_) => &table::ROSTER,
            Self::Entry(..) => &table::SEGMENT_ENTRY,
            Self::Batch(..) => &table::SIGNED_BATCH,
            Self::BatchHeader(..) => &table::BATCH_HEADER,
            Self::SignedHead(..) => &table::SIGNED_HEAD,
            Self::Head(..) => &table::OPEN_HEAD,
            Self::Record(..) => &table::RECORD,
            _ => return None,
        })
    }

    /// The segment that it lies in.
    pub fn segment(&self) -> Option<At> {
        match self {
            Self::Segment(at)
            | Self::Header(at)
            | Self::Index(at)
            | Self::Roster(at)
            | Self::Frame(at)
            | Self::Entry(at, _)
            | Self::Batch(at, _)
            | Self::BatchHeader(at, _)
            | Self::SignedHead(at, _)
            | Self::Head(at, _)
            | Self::Record(at, ..) => Some(*at),
            _ => None,
        }
    }

    /// The leaf that it lies in.
    pub fn leaf(&self) -> Option<usize> {
        match self {
            Self::Entry(_, leaf)
            | Self::Batch(_, leaf)
            | Self::BatchHeader(_, leaf)
            | Self::SignedHead(_, leaf)
            | Self::Head(_, leaf)
            | Self::Record(_, leaf, _) => Some(*leaf),
            _ => None,
        }
    }

    /// Name of the object that it is, or lies in, in the archive as it was rendered.
    pub fn object_name(&self, ledger: &Ledger, rendered: &Rendered) -> Option<String> {
        let newest = Which::Newest.size(ledger);
        let width = |number: u64, size: u64| size.checked_sub(number * 256).map(|left| left.min(256));
        match self {
            Self::Checkpoint(which) => Some(archive::checkpoint(which.size(ledger))),
            Self::Cosignature(which, witness) => {
                Some(archive::cosignature(which.size(ledger), keys::WITNESSES.get(*witness)?))
            }
            Self::Bundle(number) => Some(archive::tile(None, *number, width(*number, newest)?)),
            Self::Tile(level, number) => {
                let size = newest >> (8 * level);
                Some(archive::tile(Some(*level), *number, width(*number, size)?))
            }
            Self::LogEntry(index) => Self::Bundle(*index as u64 / 256).object_name(ledger, rendered),
            Self::Statement(chain, serial) | Self::Said(chain, serial) => {
                let objects = match chain {
                    None => &ledger.statements,
                    Some(id) => &ledger.workspaces.iter().find(|w| w.id == *id)?.statements,
                };
                let hash = custody::hash::object_hash(objects.get(*serial)?);
                Some(archive::statement(*chain, *serial as u64, hash))
            }
            Self::Seal(at) => rendered.seal_names.get(at).cloned(),
            Self::Workspace(_) => None,
            _ => rendered.segment_names.get(&self.segment()?).cloned(),
        }
    }
}
