//! The segments of one workspace by position, for whatever reads records: evidence, `show`.
//!
//! A segment's bytes are held against its seal before anything in them is used; seals come from a verified log where there
//! is a policy, and from the folder's listing where there is none.

use custody::{
    archive,
    hash::object_hash,
    id::{ObjectHash, WorkspaceId},
    segment::{Entry, Object, Seal, split_frame},
    strict::NotStrict,
    verdict::{Check, Fault},
    verify::{Archive, Log},
    wire,
};

use crate::{failure::Failure, output::plain};

/// Finds a workspace of the log by its id in hex, or by its name.
///
/// # Errors
/// [`Failure::NotThere`], which lists those that are.
pub fn find_workspace(log: &Log, said: &str) -> Result<WorkspaceId, Failure> {
    let known: Vec<(WorkspaceId, &str)> = log.workspaces.iter().map(|known| (known.id, known.name())).collect();
    // A name may be another workspace's id: an id means that workspace.
    let by_id = known.iter().find(|(id, _)| id.to_string() == said);
    let found = by_id.or_else(|| known.iter().find(|(_, name)| *name == said));
    found.map(|(id, _)| *id).ok_or_else(|| {
        let list: Vec<String> = known.iter().map(|(id, name)| format!("{} ({id})", plain(name))).collect();
        Failure::NotThere(format!("no workspace {said:?} in this archive\nhint: it has {}", list.join(", ")))
    })
}

/// Seals of a workspace in order, as the log names them.
///
/// # Errors
/// [`Failure`] where one is missing or another.
pub fn seals_of(objects: &impl Archive, log: &Log, workspace: WorkspaceId) -> Result<Vec<Seal>, Failure> {
    let known = log.workspaces.iter().find(|known| known.id == workspace);
    let seals = known.map_or(&[][..], |known| &known.seals);
    (0_u64..).zip(seals).map(|(number, (_, hash))| read_seal(objects, workspace, number, *hash)).collect()
}

/// One seal of a workspace, which the log names.
///
/// # Errors
/// [`Failure`] where it is missing or another.
pub fn seal_of(objects: &impl Archive, log: &Log, workspace: WorkspaceId, segment: u64) -> Result<Seal, Failure> {
    let known = log.workspaces.iter().find(|known| known.id == workspace);
    let hash =
        known.zip(usize::try_from(segment).ok()).and_then(|(known, at)| known.seals.get(at)).map(|(_, hash)| *hash);
    let hash = hash.ok_or_else(|| Failure::NotThere(format!("segment {segment} is not in the log")))?;
    read_seal(objects, workspace, segment, hash)
}

/// Seals of a workspace in order, as they lie in its folder: nothing says that these are all, or the right ones.
///
/// # Errors
/// [`Failure`] where two have the same number.
pub fn seals_listed(objects: &impl Archive, workspace: WorkspaceId) -> Result<Vec<Seal>, Failure> {
    let mut found: Vec<(u64, ObjectHash)> = Vec::new();
    for name in objects.list(&format!("workspaces/{workspace}/seals"))? {
        let parts = name.split_once('-');
        let number = parts.and_then(|(number, hash)| Some((archive::number(number)?, ObjectHash::from_hex(hash)?)));
        found.extend(number);
    }
    found.sort_unstable();
    if found.is_empty() {
        let why = format!("no workspace {workspace} in this archive\nhint: the folder workspaces/ has those that are");
        return Err(Failure::NotThere(why));
    }
    if found.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
        let why = "two seals have the same number\nhint: give --policy, so that the log says which one counts";
        return Err(Failure::NotThere(why.to_owned()));
    }
    found.into_iter().map(|(number, hash)| read_seal(objects, workspace, number, hash)).collect()
}

fn read_seal(objects: &impl Archive, workspace: WorkspaceId, number: u64, hash: ObjectHash) -> Result<Seal, Failure> {
    let name = archive::seal(workspace, number, hash);
    let Some(bytes) = objects.get(&name)? else {
        return Err(Fault::new(Check::SealPresent, &name, "the seal that the log names", "no object").into());
    };
    let found = object_hash(&bytes);
    if found != hash {
        return Err(Fault::new(Check::SealHash, &name, hash, found).into());
    }
    Ok(Seal::parse(&bytes).map_err(|why| Fault::form(Check::SealForm, &name, &why))?)
}

/// Where a run of positions from `first` ends, of which `held` are there: at `end`, or with the last.
///
/// # Errors
/// [`Failure::NotThere`] where not all of it is there.
pub fn run_end(first: u64, end: Option<u64>, held: u64) -> Result<u64, Failure> {
    let until = end.unwrap_or(held);
    if first >= until || until > held {
        let asked = end.map_or_else(|| format!("{first}.."), |end| format!("{first}..{end}"));
        let why = format!("the workspace holds positions 0..{held} in this archive, and not {asked}");
        let hint = "hint: ask for some of those; newer records follow when their segment is sealed";
        return Err(Failure::NotThere(format!("{why}\n{hint}")));
    }
    Ok(until)
}

/// Segments that hold the positions from `first` up to `end`, or to the last one that is there, and the position after the
/// last of these.
///
/// # Errors
/// [`Failure::NotThere`] where not all of them are there.
pub fn covering(seals: &[Seal], first: u64, end: Option<u64>) -> Result<(&[Seal], u64), Failure> {
    let until = run_end(first, end, seals.last().map_or(0, Seal::next_position))?;
    let from = seals.partition_point(|seal| seal.next_position() <= first);
    let last = seals.partition_point(|seal| seal.first_position < until);
    Ok((seals.get(from..last).unwrap_or(&[]), until))
}

/// A segment object whose bytes are those that the seal names.
#[derive(Debug)]
pub struct Opened<'a, A> {
    objects: &'a A,
    name: String,
    /// The object.
    pub object: Object,
}

impl<'a, A: Archive> Opened<'a, A> {
    /// Reads the object of a seal.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn read(objects: &'a A, seal: &Seal) -> Result<Self, Failure> {
        let name = archive::segment(seal.workspace, seal.segment, seal.object_sha256);
        let Some(bytes) = objects.get(&name)? else {
            let expected = "the object that the seal names";
            return Err(Fault::new(Check::SegmentPresent, &name, expected, "no object").into());
        };
        let found = object_hash(&bytes);
        if found != seal.object_sha256 {
            return Err(Fault::new(Check::SegmentSha256, &name, seal.object_sha256, found).into());
        }
        let object = Object::parse(bytes).map_err(|why| Fault::form(Check::SegmentForm, &name, &why))?;
        Ok(Self { objects, name, object })
    }

    /// The entries of one frame.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn entries(&self, frame: &wire::SegmentFrame) -> Result<Vec<Entry>, Failure> {
        let place = || format!("{} frame at byte {}", self.name, frame.offset);
        let content = self.object.frame(frame).and_then(|bytes| self.objects.expand(bytes, frame.content_length));
        let Some(content) = content else {
            let expected = format!("one zstd frame of {} bytes", frame.content_length);
            return Err(Fault::new(Check::SegmentForm, place(), expected, "none").into());
        };
        let form = |why: NotStrict| Fault::form(Check::EntryForm, place(), &why);
        let entries = split_frame(content).map_err(form)?;
        Ok(entries.into_iter().map(|bytes| Entry::parse(bytes).map_err(form)).collect::<Result<_, _>>()?)
    }

    /// Frames that hold some of the positions from `first` up to `end`.
    pub fn frames(&self, first: u64, end: u64) -> impl Iterator<Item = &wire::SegmentFrame> {
        let frames = &self.object.frames;
        frames.iter().enumerate().filter_map(move |(at, frame)| {
            let next = frames.get(at + 1).map_or(u64::MAX, |next| next.first_position);
            (frame.first_position < end && first < next).then_some(frame)
        })
    }
}

#[cfg(test)]
mod tests {
    use custody::{
        segment::{CONTENT_BYTES_MAX, SegmentHeader, Writer},
        statement::ChainHead,
    };

    use super::*;

    /// An object whose frames say that they hold `mebibytes` of content, and hold none.
    fn object(mebibytes: u64) -> Vec<u8> {
        let header = SegmentHeader {
            origin: "log.example/a".to_owned(),
            workspace: WorkspaceId([1; 16]),
            segment: 0,
            incarnation: 0,
            first_position: 0,
            ledger_chain: ChainHead::GENESIS,
            workspace_chain: ChainHead::GENESIS,
        };
        let tiny = |_: &[u8]| Ok::<_, ()>(vec![0]);
        let mut writer = Writer::new(&header);
        for _ in 0..mebibytes {
            writer.push(&vec![0; (1 << 20) - 4], 0, tiny).unwrap();
        }
        let roster = [&[8, 1, 18, 16][..], &[1; 16]].concat();
        writer.finish(&roster, tiny).unwrap()
    }

    #[test]
    fn a_segment_cannot_ask_for_more_memory_than_one_may_have() {
        let limit = CONTENT_BYTES_MAX >> 20;
        assert!(Object::parse(object(limit).into()).is_ok());
        assert!(Object::parse(object(limit + 1).into()).is_err());
    }

    #[test]
    fn segments_are_found_by_position_whatever_is_empty() {
        let seal = |segment: u64, first_position: u64, record_count: u64| {
            let hash = ObjectHash::ZERO;
            Seal {
                origin: String::new(),
                workspace: WorkspaceId([1; 16]),
                segment,
                incarnation: 0,
                size: 0,
                root: custody::id::RootHash::ZERO,
                history_root: custody::id::RootHash::ZERO,
                first_position,
                record_count,
                batch_count: 0,
                equivocation_count: 0,
                statement_count: 0,
                first_received_at: 0,
                last_received_at: 0,
                roster_hash: [0; 32],
                object_length: 0,
                object_blake3: [0; 32],
                object_sha256: hash,
                ledger_chain: ChainHead::GENESIS,
                workspace_chain: ChainHead::GENESIS,
                not_before_size: 0,
                not_before: [0; 32],
                sealed_at: 0,
            }
        };
        let seals = [seal(0, 0, 0), seal(1, 0, 5), seal(2, 5, 0), seal(3, 5, 5), seal(4, 10, 0)];
        let found = |first, end| match covering(&seals, first, Some(end)) {
            Ok((covered, _)) => covered.iter().map(|seal| seal.segment).collect::<Vec<_>>(),
            Err(_) => Vec::new(),
        };
        assert_eq!(found(0, 1), [1]);
        assert_eq!(found(4, 5), [1]);
        assert_eq!(found(5, 6), [3]);
        assert_eq!(found(4, 6), [1, 2, 3]);
        assert_eq!(found(0, 10), [1, 2, 3]);
        assert_eq!(found(9, 11), [0; 0]);
        assert_eq!(found(3, 3), [0; 0]);
        let rest = |first| covering(&seals, first, None).map(|(covered, end)| (covered.len(), end));
        assert_eq!(rest(4).unwrap(), (3, 10));
        assert!(rest(10).is_err() && covering(&[], 0, None).is_err());
    }
}
