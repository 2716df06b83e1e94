//! The store: everything the ledger must remember, in one RocksDB directory.
//!
//! What must hold: a write that matters is one synced `WriteBatch` ([`Store::commit`]); nothing is answered before it
//! returns, and what was answered is there at the next start, or there is no start ([`synced`]). The directory carries a format
//! version: a newer one is refused. Only this file names RocksDB.

use std::{io, path::Path};

use bytes::Bytes;
use custody::id::WorkspaceId;
pub use rocksdb::perf::MemoryUsageStats as StoreMemory;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, ErrorKind,
    IteratorMode, MergeOperands, Options, WriteOptions, compaction_filter::Decision as CompactionDecision,
};

mod asked;
mod rows;
mod synced;
#[cfg(test)]
mod tests;

pub use asked::{Cell, Cells, Halves, Notes, Rank, Rollup, Running, call_rows, take_back};
pub use rows::{
    ApiTokenRow, CutRow, EpochRow, LeafPlace, MemberRow, QueueRow, SILENCE_GRACE_US, as_number, batch_key, epoch_key,
    leaf_key, numbered, numbering, statement_key,
};
use synced::Synced;

/// Version of this layout; a database with a newer one is not opened.
pub const STORE_VERSION: u64 = MIGRATIONS.len() as u64;

/// Brings a database to a version from the one before. It may run again after a crash.
type Migration = fn(&Store) -> Result<(), StoreError>;

/// To version 1, 2 and so on.
const MIGRATIONS: &[Migration] = &[to_version_1, to_version_2, to_version_3, to_version_4, asked::to_version_5];

/// Version 1 is the first that was ever written with its number; what stands in such a database is as in one without.
fn to_version_1(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

/// Version 2 has the family `Leaves`, which is made when the database is opened. Segments that were cut before have no row there:
/// who wants one reads the segment.
fn to_version_2(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

/// Version 3 has the family `Receipts`. What was shown before has no row there, and was never judged.
fn to_version_3(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

/// Version 4 has the family `Members`, which is made when the database is opened. No program before it wrote a directory entry.
fn to_version_4(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

/// What stands in a directory.
#[derive(Default)]
struct Found {
    /// Version of the layout; `None` if there is no database yet, or a crash left it without.
    version: Option<u64>,
    /// Changes that can be read.
    changes: u64,
}

/// Looks at the database in `dir`, without changing it.
fn look(dir: &Path) -> Result<Found, StoreError> {
    // RocksDB names its current manifest in this file; where it is missing there is no database.
    if !dir.join("CURRENT").exists() {
        return Ok(Found::default());
    }
    let options = Options::default();
    let meta = Family::Meta.name();
    if !DB::list_cf(&options, dir)?.iter().any(|family| family == meta) {
        return Ok(Found::default());
    }
    let db = DB::open_cf_for_read_only(&options, dir, [meta], false)?;
    let Some(family) = db.cf_handle(meta) else { return Ok(Found::default()) };
    let version = db.get_cf(family, "version")?.map(|value| as_number(&value)).transpose()?;
    Ok(Found { version, changes: db.latest_sequence_number() })
}

/// The column families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Single values by name: version, term, instance, marks.
    Meta,
    /// workspace, segment, leaf → `SegmentEntry` bytes.
    Entries,
    /// workspace, gateway, epoch, batch number → segment, leaf, header hash.
    Batches,
    /// workspace, first position → segment, leaf; of batches with records.
    Positions,
    /// commit index → workspace, segment, leaf: the order in which followers walk.
    Commits,
    /// workspace, gateway, epoch → [`EpochRow`].
    Epochs,
    /// workspace, segment → [`CutRow`]: the segment is closed, perhaps not archived yet.
    Cuts,
    /// workspace, segment → its leaf hashes, one after the other: its tree without its batches, written with its cut.
    Leaves,
    /// workspace, segment → seal bytes, fsynced before anything of it is put anywhere.
    Seals,
    /// chain (workspace, or zeros for the ledger's), serial → `SignedStatement` bytes.
    Statements,
    /// number → [`QueueRow`]: what must become log entries, in this order.
    Queue,
    /// index → log entry bytes.
    Log,
    /// digest of a forensic receipt that was found valid, or digest and "withheld" of one that was not kept whole → workspace,
    /// position of the call that showed it first.
    Receipts,
    /// member → [`MemberRow`]: the newest directory entry, written with its record.
    Members,
    /// token → [`ApiTokenRow`]: who may ask.
    ApiTokens,
    /// workspace, gateway, call number, epoch → [`Running`]: a call whose intent was shipped, and that has no outcome yet.
    Intents,
    /// rank of an intent → its key in `Intents`.
    Running,
    /// rank of the record that ended it, rank of an intent.
    Ended,
    /// [`Rollup`] → [`Cells`]: counts by the minute and by the hour.
    Rollups,
    /// kind of id, workspace, id, commit index → indexes in that batch, two bytes each.
    Ids,
}

impl Family {
    const ALL: [Self; 20] = [
        Self::Meta,
        Self::Entries,
        Self::Batches,
        Self::Positions,
        Self::Commits,
        Self::Epochs,
        Self::Cuts,
        Self::Leaves,
        Self::Seals,
        Self::Statements,
        Self::Queue,
        Self::Log,
        Self::Receipts,
        Self::Members,
        Self::ApiTokens,
        Self::Intents,
        Self::Running,
        Self::Ended,
        Self::Rollups,
        Self::Ids,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Entries => "entries",
            Self::Batches => "batches",
            Self::Positions => "positions",
            Self::Commits => "commits",
            Self::Epochs => "epochs",
            Self::Cuts => "cuts",
            Self::Leaves => "leaves",
            Self::Seals => "seals",
            Self::Statements => "statements",
            Self::Queue => "queue",
            Self::Log => "log",
            Self::Receipts => "receipts",
            Self::Members => "members",
            Self::ApiTokens => "api_tokens",
            Self::Intents => "intents",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Rollups => "rollups",
            Self::Ids => "ids",
        }
    }
}

/// What the store cannot do, and what the caller would do about it.
#[derive(Debug)]
pub enum StoreError {
    /// The database did not do it; after a failed write nobody knows what is stored.
    Database(rocksdb::Error),
    /// A value does not read as what was written: damage, or another program's work.
    Damaged(&'static str),
    /// So many changes were on disk, and may have been answered for, and can no longer be read.
    Lost(u64),
    /// How far the store was synced cannot be written down, or read.
    Synced(io::Error),
    /// A newer program wrote this directory.
    Newer(u64),
    /// The ledger is ending.
    Closed,
}

/// The next move when what was written is not what is read.
const DAMAGED: &str = "hint: start no older copy of it, and leave data/ as it is; look at the disk (dmesg, SMART), then see \"The \
                       store is damaged\" in docs/OPERATIONS.md";

impl StoreError {
    /// Whether another process has the database open.
    fn is_in_use(&self) -> bool {
        matches!(self, Self::Database(why) if why.as_ref().contains("lock file"))
    }

    /// Whether the disk had no room for a write.
    pub fn is_no_room(&self) -> bool {
        match self {
            // RocksDB gives the reason in words alone.
            Self::Database(why) => why.as_ref().contains("No space left on device"),
            Self::Synced(why) => why.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    /// Whether what is on disk is not what was written there: no other start mends that.
    pub fn is_damaged(&self) -> bool {
        match self {
            Self::Database(why) => why.kind() == ErrorKind::Corruption,
            Self::Synced(why) => why.kind() == io::ErrorKind::InvalidData,
            Self::Damaged(_) | Self::Lost(_) => true,
            Self::Newer(_) | Self::Closed => false,
        }
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(_) if self.is_in_use() => f.write_str(
                "use the database: another process has it open\nhint: one data folder has one ledger; look at the one that runs with \
                 `ledger status`, or end it first",
            ),
            Self::Database(_) | Self::Synced(_) if self.is_no_room() => f.write_str(
                "use the database\nhint: the disk of data/ is full: give it room, as under disk-full in docs/OPERATIONS.md, and start the \
                 ledger again",
            ),
            Self::Database(_) if self.is_damaged() => write!(f, "use the database: it is damaged\n{DAMAGED}"),
            Self::Database(_) => f.write_str("use the database"),
            Self::Damaged(what) => write!(f, "read {what} from the database: it is damaged\n{DAMAGED}"),
            Self::Lost(changes) => write!(
                f,
                "read the database: it is damaged, and its last {changes} changes, which were on disk, are gone\n{DAMAGED}"
            ),
            Self::Synced(_) if self.is_damaged() => write!(f, "read {} beside the database\n{DAMAGED}", synced::FILE),
            Self::Synced(_) => write!(f, "use {} beside the database", synced::FILE),
            Self::Closed => f.write_str("use the database: the ledger is ending (hint: try again)"),
            Self::Newer(version) => write!(
                f,
                "open a database of version {version}, newer than this program's {STORE_VERSION} (hint: start the newer program)"
            ),
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Database(source) => Some(source),
            Self::Synced(source) => Some(source),
            Self::Damaged(_) | Self::Lost(_) | Self::Newer(_) | Self::Closed => None,
        }
    }
}

impl From<rocksdb::Error> for StoreError {
    fn from(source: rocksdb::Error) -> Self {
        Self::Database(source)
    }
}

/// Many changes, written at once or not at all.
pub struct Change<'a> {
    store: &'a Store,
    batch: rocksdb::WriteBatch,
    /// What it changes, by name.
    #[cfg(test)]
    names: String,
}

impl Change<'_> {
    /// Sets a value.
    pub fn put(&mut self, family: Family, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        #[cfg(test)]
        self.names.push_str(&format!(" {}/{}", family.name(), String::from_utf8_lossy(key.as_ref())));
        self.batch.put_cf(self.store.family(family), key, value);
    }

    /// Adds to the counts of a rollup, which nobody has to read for it.
    pub fn add(&mut self, rollup: &Rollup, cells: &Cells) {
        self.batch.merge_cf(self.store.family(Family::Rollups), rollup.encode(), cells.encode());
    }

    /// Removes all values from `from` up to `to`, which stays.
    pub fn delete_range(&mut self, family: Family, from: &[u8], to: &[u8]) {
        self.batch.delete_range_cf(self.store.family(family), from, to);
    }

    /// Removes a value.
    pub fn delete(&mut self, family: Family, key: impl AsRef<[u8]>) {
        self.batch.delete_cf(self.store.family(family), key);
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }
}

/// The open database. One process at a time: RocksDB holds a lock on the directory.
pub struct Store {
    db: DB,
    cache: Cache,
    synced: Synced,
    /// What goes wrong with its writes.
    #[cfg(test)]
    pub(crate) faults: crate::rig::faults::Faults,
}

impl Store {
    /// Opens or makes the database in `dir`, with so much memory for blocks read and for what is not yet sorted to disk.
    ///
    /// RocksDB takes damage in its write-ahead log for the trace of a power cut, goes back to the last change before it and throws
    /// the rest away. So it is looked at first, and nothing is opened for writing unless all is there.
    ///
    /// # Errors
    /// [`StoreError`], also when another process has it open.
    pub fn open(dir: &Path, cache_bytes: usize, write_buffer_bytes: usize) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_db_write_buffer_size(write_buffer_bytes);
        options.set_max_total_wal_size(256 << 20);
        options.set_recycle_log_file_num(4);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(4);
        options.set_max_log_file_size(16 << 20);
        options.set_wal_bytes_per_sync(1 << 20);
        options.set_bytes_per_sync(1 << 20);
        let cache = Cache::new_lru_cache(cache_bytes);
        // Before the look: whatever another process writes meanwhile is no loss.
        let synced = synced::read(dir).map_err(StoreError::Synced)?;
        // Before anything is made or changed here: a newer program may have families that this one does not know.
        let Found { version, changes } = look(dir)?;
        let from = version.unwrap_or(STORE_VERSION);
        if from > STORE_VERSION {
            return Err(StoreError::Newer(from));
        }
        if let Some(lost) = synced.and_then(|synced| synced.checked_sub(changes)).filter(|lost| *lost > 0) {
            return Err(StoreError::Lost(lost));
        }
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache, write_buffer_bytes))
        });
        let db = DB::open_cf_descriptors(&options, dir, families)?;
        let store = Self {
            synced: Synced::open(dir, db.latest_sequence_number()).map_err(StoreError::Synced)?,
            db,
            cache,
            #[cfg(test)]
            faults: crate::rig::faults::Faults::default(),
        };
        store.migrate(from)?;
        Ok(store)
    }

    /// Brings a database of an older version to this one, a version at a time; each step is done before the version says so.
    fn migrate(&self, from: u64) -> Result<(), StoreError> {
        for (version, step) in (1..).zip(MIGRATIONS).skip_while(|(version, _)| *version <= from) {
            step(self)?;
            self.commit_one(Family::Meta, "version", &u64::to_be_bytes(version))?;
        }
        if self.number("version")?.is_none() {
            self.commit_one(Family::Meta, "version", &STORE_VERSION.to_be_bytes())?;
        }
        Ok(())
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        match self.db.cf_handle(family.name()) {
            Some(handle) => handle,
            None => unreachable!("all families are made when the database is opened"),
        }
    }

    /// An empty set of changes.
    pub fn change(&self) -> Change<'_> {
        Change {
            store: self,
            batch: rocksdb::WriteBatch::default(),
            #[cfg(test)]
            names: String::new(),
        }
    }

    /// Writes all changes and returns when they are on disk.
    ///
    /// # Errors
    /// [`StoreError::Database`]; whether the changes are stored is then unknown.
    pub fn commit(&self, change: Change<'_>) -> Result<(), StoreError> {
        crate::failpoint::hit("store-before-commit");
        let mut options = WriteOptions::default();
        options.set_sync(true);
        #[cfg(test)]
        let fault = self.faults.strike(&format!("store:commit:{}", change.names));
        #[cfg(test)]
        if fault == Some(crate::rig::faults::Mode::Refuse) {
            return Err(StoreError::Damaged("an injected fault"));
        }
        self.db.write_opt(change.batch, &options)?;
        // A crash before this line returns leaves a lower number than could stand there, which no start minds.
        self.synced.note(|| self.db.latest_sequence_number()).map_err(StoreError::Synced)?;
        #[cfg(test)]
        if fault.is_some() {
            return Err(StoreError::Damaged("an injected fault"));
        }
        crate::failpoint::hit("store-after-commit");
        Ok(())
    }

    /// Writes what can be made again from the rest, and returns when it, and all that was written before, is on disk. Nobody waits
    /// for it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn derive(&self, change: Change<'_>) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(change.batch, &options)?)
    }

    /// The same without waiting for the disk. Of many changes some at a time: while one is written, the writer waits.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn derive_soon(&self, change: Change<'_>) -> Result<(), StoreError> {
        Ok(self.db.write(change.batch)?)
    }

    /// Makes the note of how far the store was synced outlast a power cut, too. To be called every second: a change does not wait
    /// for this.
    ///
    /// # Errors
    /// [`StoreError::Synced`].
    pub fn keep_synced(&self) -> Result<(), StoreError> {
        self.synced.keep().map_err(StoreError::Synced)
    }

    /// [`Self::commit`] of a single value.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_one(&self, family: Family, key: impl AsRef<[u8]>, value: &[u8]) -> Result<(), StoreError> {
        let mut change = self.change();
        change.put(family, key, value);
        self.commit(change)
    }

    /// A value.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn value(&self, family: Family, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        Ok(self.db.get_cf(self.family(family), key)?.map(Bytes::from))
    }

    /// A number of the family `Meta`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        self.value(Family::Meta, name)?.map(|value| as_number(&value)).transpose()
    }

    /// The number after the last key of a family whose keys are numbers; `None` while it is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_number(&self, family: Family) -> Result<Option<u64>, StoreError> {
        let last = self.last(family, &[])?;
        last.map(|(key, _)| as_number(&key)?.checked_add(1).ok_or(StoreError::Damaged("a number"))).transpose()
    }

    /// Values whose keys begin with `prefix`, in order, from `start` (inclusive, after the prefix) on.
    ///
    /// # Errors
    /// Each step may fail with [`StoreError::Database`].
    pub fn scan<'a>(
        &'a self,
        family: Family,
        prefix: &[u8],
        start: &[u8],
    ) -> impl Iterator<Item = Result<(Bytes, Bytes), StoreError>> + use<'a> {
        let prefix = prefix.to_vec();
        let from = [prefix.as_slice(), start].concat();
        let steps = self.db.iterator_cf(self.family(family), IteratorMode::From(&from, Direction::Forward));
        steps
            .map(|step| step.map(|(key, value)| (Bytes::from(key), Bytes::from(value))).map_err(StoreError::from))
            .take_while(move |step| step.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix)))
    }

    /// All workspaces that have a statement.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn workspaces(&self) -> Result<Vec<WorkspaceId>, StoreError> {
        let (mut found, mut after) = (Vec::new(), Vec::new());
        while let Some(step) = self.scan(Family::Statements, &[], &after).next() {
            let (key, _) = step?;
            let id = key.get(..16).and_then(|id| WorkspaceId::try_from(id).ok());
            let id = id.ok_or(StoreError::Damaged("a statement's key"))?;
            after = [&id.0[..], &[0xff; 9]].concat();
            found.extend((id != WorkspaceId::ZERO).then_some(id));
        }
        Ok(found)
    }

    /// The last value whose key begins with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn last(&self, family: Family, prefix: &[u8]) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        self.last_up_to(family, prefix, &[0xff; 64])
    }

    /// The last value whose key begins with `prefix` and goes no further than `most` after it.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn last_up_to(&self, family: Family, prefix: &[u8], most: &[u8]) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let end = [prefix, most].concat();
        let mut steps = self.db.iterator_cf(self.family(family), IteratorMode::From(&end, Direction::Reverse));
        let found = steps.next().transpose()?.filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, value)| (Bytes::from(key), Bytes::from(value))))
    }

    /// Bytes of memory that the database holds.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn memory(&self) -> Result<StoreMemory, StoreError> {
        Ok(rocksdb::perf::get_memory_usage_stats(Some(&[&self.db]), Some(&[&self.cache]))?)
    }
}

/// Sums of what is there and what came; what does not read as counts is left out, and shows in a comparison with the index.
#[expect(clippy::unnecessary_wraps, reason = "as the database asks for it")]
fn add_cells(_: &[u8], there: Option<&[u8]>, came: &MergeOperands) -> Option<Vec<u8>> {
    let mut sum = Cells::default();
    there.into_iter().chain(came).for_each(|cells| sum.take(cells));
    Some(sum.encode())
}

fn family_options(family: Family, cache: &Cache, write_buffer_bytes: usize) -> Options {
    let mut options = Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    options.set_block_based_table_factory(&table);
    // Two that are full and on their way to disk, one that fills, and one for all the other families.
    options.set_write_buffer_size(write_buffer_bytes / 4);
    if family == Family::Rollups {
        options.set_merge_operator_associative("cells", add_cells);
        // What retention took back counts nothing, and goes when the database sorts its files: a removal of ours might come
        // between a sum and what the writer adds to it.
        options.set_compaction_filter("counted", |_, _, cells| match cells {
            [] => CompactionDecision::Remove,
            _ => CompactionDecision::Keep,
        });
    }
    if matches!(family, Family::Entries | Family::Leaves) {
        // Batches are written once and read once more, and leaf hashes seldom: blob files spare them every compaction.
        options.set_enable_blob_files(true);
        options.set_min_blob_size(512);
        // The disk, not the processor, is what a busy ledger runs out of first: hot batches take half the room and bandwidth.
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_enable_blob_gc(true);
    }
    options
}
