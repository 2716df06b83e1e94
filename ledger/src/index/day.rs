//! One folder of the index: the records of a run of commits that were received on one UTC day.
//!
//! What must hold: what a folder holds is said by the payload of its own commit, which changes with its documents at once; a
//! folder whose documents are not as many as it says, whose schema is another, or that cannot be read, is thrown away and built
//! again: nothing in it is not in the store.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::DateTime;
use custody::{id::WorkspaceId, query::Field, record::BATCH_RECORDS_MAX};
use serde::{Deserialize, Serialize};
use tantivy::{
    Directory, Index, IndexReader, IndexWriter, ReloadPolicy, Searcher, TantivyError, Term,
    directory::MmapDirectory,
    indexer::{IndexWriterOptions, LogMergePolicy, MergePolicy, NoMergePolicy},
};

use super::schema;
use crate::{
    durable,
    store::StoreError,
    tail::{CommittedBatch, Tail},
    workspace::DAY_US,
};

/// Memory of the writer in bytes: some 300,000 documents, more than are written between two commits.
const WRITER_BYTES: usize = 128 << 20;
/// Documents of a segment that is merged no further: merging it again would cost minutes for nothing.
const MERGED_MAX: usize = 5_000_000;
/// Memory of a writer that only merges, in bytes: the least that Tantivy takes.
const MERGER_BYTES: usize = 16 << 20;
/// Documents of a folder: past it another of the same day begins. A batch more may come, and all of it becomes one segment.
pub(super) const DOCUMENTS_MAX: u64 = 20_000_000;
/// Documents that Tantivy can number in one segment.
const SEGMENT_DOCUMENTS_MAX: u64 = 1 << 31;
const _: () = assert!(DOCUMENTS_MAX + BATCH_RECORDS_MAX as u64 <= SEGMENT_DOCUMENTS_MAX);
/// Where the folder lies that was last found to hold something else than the store, for whoever wants to know why.
const DIFFERED: &str = "differed";

/// What a folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Payload {
    /// Version of the schema.
    pub(super) version: u64,
    /// UTC day, in days since the Unix epoch.
    pub(super) day: u64,
    /// First commit index.
    pub(super) first: u64,
    /// Commit index after the last.
    pub(super) next: u64,
    /// Documents.
    pub(super) count: u64,
    /// Least and greatest time of a record by its own clock.
    pub(super) at: (u64, u64),
    /// Least and greatest time of receipt.
    pub(super) received: (u64, u64),
    /// Commit index of its last batch, and what [`CommittedBatch::digest`] says of it in hex: whether this is still the store that it
    /// was made from.
    pub(super) last: (u64, String),
}

impl Payload {
    fn new(day: u64, first: u64) -> Self {
        let none = (u64::MAX, 0);
        Self {
            version: schema::VERSION,
            day,
            first,
            next: first,
            count: 0,
            at: none,
            received: none,
            last: (0, String::new()),
        }
    }

    /// Whether it was made from this store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn is_of(&self, tail: &Tail) -> Result<bool, StoreError> {
        if self.next > tail.committed() {
            return Ok(false);
        }
        let last = tail.batch(self.last.0)?;
        Ok(self.count == 0 || last.is_some_and(|batch| batch.digest() == self.last.1))
    }

    /// Name of its folder: day and first commit index.
    fn name(&self) -> String {
        format!("{}-{:016x}", day_name(self.day), self.first)
    }
}

/// A day as people write it, of days since the Unix epoch.
pub(super) fn day_name(day: u64) -> String {
    let seconds = i64::try_from(day).unwrap_or(i64::MAX).saturating_mul(86_400);
    DateTime::from_timestamp(seconds, 0).unwrap_or_default().format("%Y-%m-%d").to_string()
}

/// A folder that can be searched.
#[derive(Clone)]
pub(super) struct Day {
    /// What it holds.
    pub(super) payload: Payload,
    /// Its documents.
    pub(super) searcher: Searcher,
}

impl Day {
    /// How many of its documents are of a workspace.
    pub(super) fn records_of(&self, workspace: WorkspaceId) -> tantivy::Result<u64> {
        let term = Term::from_field_text(schema::number_of(Field::Workspace), &workspace.to_string());
        self.searcher.doc_freq(&term)
    }
}

/// Why a folder is thrown away, or not written.
#[derive(Debug)]
pub(super) enum DayError {
    /// Tantivy.
    Index(TantivyError),
    /// The file system.
    Files(std::io::Error),
    /// Its documents are not those that it says it has.
    Differs {
        /// Documents that it says it has.
        said: u64,
        /// Documents that there are.
        found: u64,
    },
    /// It does not say what it holds, or was made by another program.
    Foreign,
}

impl std::fmt::Display for DayError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(_) => f.write_str("use a folder of the index"),
            Self::Files(_) => f.write_str("use the folder of the index"),
            Self::Differs { said, found } => {
                write!(f, "find {said} documents in a folder of the index: there are {found}")
            }
            Self::Foreign => f.write_str("read what a folder of the index holds: another version made it"),
        }
    }
}

impl std::error::Error for DayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Index(source) => Some(source),
            Self::Files(source) => Some(source),
            Self::Differs { .. } | Self::Foreign => None,
        }
    }
}

impl From<TantivyError> for DayError {
    fn from(source: TantivyError) -> Self {
        Self::Index(source)
    }
}

impl From<std::io::Error> for DayError {
    fn from(source: std::io::Error) -> Self {
        Self::Files(source)
    }
}

/// A folder that is open.
struct Folder {
    index: Index,
    reader: IndexReader,
}

impl Folder {
    fn open(root: &Root, path: &Path) -> Result<(Self, Payload), DayError> {
        let index = Index::open(root.directory(path)?)?;
        let payload = index.load_metas()?.payload.and_then(|payload| serde_json::from_str::<Payload>(&payload).ok());
        let payload = payload.filter(|payload| payload.version == schema::VERSION).ok_or(DayError::Foreign)?;
        Ok((Self::of(index)?, payload))
    }

    fn of(index: Index) -> Result<Self, DayError> {
        // Loaded when this says so: what can be searched, and what memory may let go, change together.
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Self { index, reader })
    }

    /// What can be searched, counted again.
    fn day(&self, payload: &Payload) -> Result<Day, DayError> {
        self.reader.reload()?;
        let searcher = self.reader.searcher();
        let found = searcher.num_docs();
        if found != payload.count {
            return Err(DayError::Differs { said: payload.count, found });
        }
        Ok(Day { payload: payload.clone(), searcher })
    }
}

/// Where the folders lie.
#[derive(Clone)]
pub(super) struct Root {
    path: PathBuf,
    /// What goes wrong with what is written there.
    #[cfg(test)]
    pub(super) faults: crate::rig::faults::Faults,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            #[cfg(test)]
            faults: crate::rig::faults::Faults::default(),
        }
    }

    /// Makes the place itself.
    pub(super) fn make(&self) -> Result<(), std::io::Error> {
        durable::create_dir(&self.path, 0o700)
    }

    fn directory(&self, path: &Path) -> Result<Box<dyn Directory>, DayError> {
        let directory = MmapDirectory::open(path).map_err(TantivyError::from)?;
        #[cfg(test)]
        let directory = super::tests::faulty::Faulty { inner: directory, faults: self.faults.clone() };
        Ok(Box::new(directory))
    }

    /// Folders, with the first commit index that their names say; oldest first.
    pub(super) fn list(&self) -> Result<Vec<(u64, PathBuf)>, std::io::Error> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.path)? {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let first = name.rsplit_once('-').and_then(|(_, first)| u64::from_str_radix(first, 16).ok());
            // Whatever else lies here is not ours.
            found.extend(first.map(|first| (first, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Where a folder lies.
    pub(super) fn path(&self, payload: &Payload) -> PathBuf {
        self.path.join(payload.name())
    }

    /// Opens a folder for searching.
    ///
    /// # Errors
    /// [`DayError`].
    pub(super) fn open(&self, path: &Path) -> Result<Day, DayError> {
        let (folder, payload) = Folder::open(self, path)?;
        folder.day(&payload)
    }

    /// A new folder.
    pub(super) fn create(&self, day: u64, first: u64) -> Result<Writing, DayError> {
        let payload = Payload::new(day, first);
        let path = self.path(&payload);
        // What a crash left under this name was never committed.
        remove(&path)?;
        fs::create_dir_all(&path)?;
        let builder = Index::builder().schema(schema::schema()).settings(schema::settings());
        let index = builder.open_or_create(self.directory(&path)?)?;
        Writing::over(self, Folder::of(index)?, payload)
    }

    /// Goes on with a folder.
    pub(super) fn resume(&self, path: &Path) -> Result<Writing, DayError> {
        let (folder, payload) = Folder::open(self, path)?;
        folder.day(&payload)?;
        Writing::over(self, folder, payload)
    }

    /// Makes one segment of a folder to which nothing is added any more. A crash leaves it as it was, or done.
    ///
    /// # Errors
    /// [`DayError`].
    pub(super) fn merge(&self, path: &Path) -> Result<Day, DayError> {
        let (folder, payload) = Folder::open(self, path)?;
        let segments = folder.index.searchable_segment_ids()?;
        if segments.len() > 1 {
            crate::failpoint::hit("day-merging");
            let mut writer = self.writer(&folder.index, MERGER_BYTES, Box::new(NoMergePolicy))?;
            writer.merge(&segments).wait()?;
            crate::failpoint::hit("day-merged");
            writer.wait_merging_threads()?;
        }
        folder.day(&payload)
    }

    fn writer(&self, index: &Index, bytes: usize, policy: Box<dyn MergePolicy>) -> Result<IndexWriter, DayError> {
        #[cfg(test)]
        super::tests::faulty::strike(&self.faults, "index:writer")?;
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(bytes)
            // One, so that documents come into segments in the order of their ranks.
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer = index.writer_with_options(options)?;
        writer.set_merge_policy(policy);
        Ok(writer)
    }

    /// Takes a folder away that is not what the store has, and keeps it until the next such.
    pub(super) fn set_aside(&self, path: &Path) -> Result<(), std::io::Error> {
        let aside = self.path.join(DIFFERED);
        remove(&aside)?;
        durable::move_folder(path, &aside)
    }
}

/// A folder that is being written.
pub(super) struct Writing {
    folder: Folder,
    writer: IndexWriter,
    /// As of what was added, committed or not.
    payload: Payload,
    committed: u64,
    #[cfg(test)]
    faults: crate::rig::faults::Faults,
}

impl Writing {
    fn over(root: &Root, folder: Folder, payload: Payload) -> Result<Self, DayError> {
        let mut policy = LogMergePolicy::default();
        policy.set_max_docs_before_merge(MERGED_MAX);
        let writer = root.writer(&folder.index, WRITER_BYTES, Box::new(policy))?;
        Ok(Self {
            folder,
            writer,
            committed: payload.count,
            payload,
            #[cfg(test)]
            faults: root.faults.clone(),
        })
    }

    pub(super) fn payload(&self) -> &Payload {
        &self.payload
    }

    /// Documents that are not committed.
    pub(super) fn pending(&self) -> u64 {
        self.payload.count - self.committed
    }

    /// Whether a batch belongs here. A clock that went back a little makes no new day: a folder holds a run of commits. One that had jumped
    /// ahead, and was set right, does: else this folder would take all days until that one.
    pub(super) fn takes(&self, received_at: u64) -> bool {
        let day = received_at / DAY_US;
        day <= self.payload.day && self.payload.day <= day + 1 && self.payload.count < DOCUMENTS_MAX
    }

    /// Adds the records of a batch.
    pub(super) fn add(&mut self, batch: &CommittedBatch) -> Result<(), DayError> {
        for (index, facts) in batch.facts().iter().enumerate() {
            #[cfg(test)]
            if self.faults.strike("index:add").is_some() {
                continue;
            }
            self.writer.add_document(schema::document(batch.rank(index), facts))?;
            let at = facts.number(Field::At).unwrap_or_default();
            self.payload.at = (self.payload.at.0.min(at), self.payload.at.1.max(at));
        }
        let received = batch.leaf.received_at;
        self.payload.received = (self.payload.received.0.min(received), self.payload.received.1.max(received));
        self.payload.count += batch.records().len() as u64;
        self.payload.last = (batch.commit_index, batch.digest());
        Ok(())
    }

    /// Everything before this commit index is added.
    pub(super) fn passed(&mut self, next: u64) {
        self.payload.next = next;
    }

    /// Makes what was added outlast a crash, and gives what can be searched then.
    pub(super) fn commit(&mut self) -> Result<Day, DayError> {
        let payload = serde_json::to_string(&self.payload).map_err(std::io::Error::from)?;
        crate::failpoint::hit("index-before-commit");
        let mut prepared = self.writer.prepare_commit()?;
        prepared.set_payload(&payload);
        crate::failpoint::hit("index-prepared");
        prepared.commit()?;
        crate::failpoint::hit("index-after-commit");
        self.committed = self.payload.count;
        self.folder.day(&self.payload)
    }

    /// Ends the writing of this folder, once what merges has merged.
    pub(super) fn end(self) -> Result<(), DayError> {
        Ok(self.writer.wait_merging_threads()?)
    }
}

/// Removes a folder. Whoever still searches it has its files open.
pub(super) fn remove(path: &Path) -> Result<(), std::io::Error> {
    match fs::remove_dir_all(path) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Days that can be searched, newest first, replaced whole.
pub(super) type Shown = Arc<Vec<Day>>;
