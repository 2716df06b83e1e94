//! The store: everything the ledger must remember, in one RocksDB directory.
//!
//! What must hold: a write that matters is one synced `WriteBatch` ([`Store::commit`]); nothing is answered before it
//! returns. Keys are big-endian, so that a scan gives order. The directory carries a format version: a newer one is refused.
//! Only this file names RocksDB.

use std::path::Path;

use bytes::Bytes;
use custody::{
    batch::{EpochState, Numbering},
    id::{Epoch, GatewayId, HeaderHash, KeyId, WorkspaceId},
};
use prost::Message as _;
pub use rocksdb::perf::MemoryUsageStats as StoreMemory;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, IteratorMode,
    Options, WriteOptions,
};

/// Version of this layout; a database with a newer one is not opened.
pub const STORE_VERSION: u64 = MIGRATIONS.len() as u64;

/// Brings a database to a version from the one before. It may run again after a crash.
type Migration = fn(&Store) -> Result<(), StoreError>;

/// To version 1, 2 and so on.
const MIGRATIONS: &[Migration] = &[to_version_1];

/// Version 1 is the first that was ever written with its number; what stands in such a database is as in one without.
fn to_version_1(_: &Store) -> Result<(), StoreError> {
    Ok(())
}

/// Version of the database in `dir`, without changing it; `None` if there is none yet, or a crash left it without its version.
fn stored_version(dir: &Path) -> Result<Option<u64>, StoreError> {
    // RocksDB names its current manifest in this file; where it is missing there is no database.
    if !dir.join("CURRENT").exists() {
        return Ok(None);
    }
    let options = Options::default();
    let meta = Family::Meta.name();
    if !DB::list_cf(&options, dir)?.iter().any(|family| family == meta) {
        return Ok(None);
    }
    let db = DB::open_cf_for_read_only(&options, dir, [meta], false)?;
    let Some(family) = db.cf_handle(meta) else { return Ok(None) };
    let version = db.get_cf(family, "version")?.map(|value| as_number(&value)).transpose()?;
    version.filter(|version| *version > STORE_VERSION).map_or(Ok(version), |newer| Err(StoreError::Newer(newer)))
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
    /// workspace, segment → seal bytes, fsynced before anything of it is put anywhere.
    Seals,
    /// chain (workspace, or zeros for the ledger's), serial → `SignedStatement` bytes.
    Statements,
    /// number → [`QueueRow`]: what must become log entries, in this order.
    Queue,
    /// index → log entry bytes.
    Log,
}

impl Family {
    const ALL: [Self; 11] = [
        Self::Meta,
        Self::Entries,
        Self::Batches,
        Self::Positions,
        Self::Commits,
        Self::Epochs,
        Self::Cuts,
        Self::Seals,
        Self::Statements,
        Self::Queue,
        Self::Log,
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
            Self::Seals => "seals",
            Self::Statements => "statements",
            Self::Queue => "queue",
            Self::Log => "log",
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
    /// A newer program wrote this directory.
    Newer(u64),
}

impl StoreError {
    /// Whether another process has the database open.
    fn is_in_use(&self) -> bool {
        matches!(self, Self::Database(why) if why.as_ref().contains("lock file"))
    }

    /// Whether the disk had no room for a write.
    pub fn is_no_room(&self) -> bool {
        // RocksDB gives the reason in words alone.
        matches!(self, Self::Database(why) if why.as_ref().contains("No space left on device"))
    }
}

impl std::fmt::Display for StoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(_) if self.is_in_use() => f.write_str(
                "use the database: another process has it open\nhint: one data folder has one ledger; look at the one that runs with \
                 `ledger status`, or end it first",
            ),
            Self::Database(_) => f.write_str("use the database"),
            Self::Damaged(what) => {
                write!(f, "read {what} from the database: it is damaged (hint: restore from the archive)")
            }
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
            _ => None,
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
    /// What goes wrong with its writes.
    #[cfg(test)]
    pub(crate) faults: crate::rig::faults::Faults,
}

impl Store {
    /// Opens or makes the database in `dir`, with so much memory for blocks read and for what is not yet sorted to disk.
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
        // Before anything is made or changed here: a newer program may have families that this one does not know.
        let from = stored_version(dir)?.unwrap_or(STORE_VERSION);
        let families = Family::ALL.map(|family| {
            ColumnFamilyDescriptor::new(family.name(), family_options(family, &cache, write_buffer_bytes))
        });
        let store = Self {
            db: DB::open_cf_descriptors(&options, dir, families)?,
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
        #[cfg(test)]
        if fault.is_some() {
            return Err(StoreError::Damaged("an injected fault"));
        }
        crate::failpoint::hit("store-after-commit");
        Ok(())
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

    /// The last value whose key begins with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn last(&self, family: Family, prefix: &[u8]) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let mut end = prefix.to_vec();
        end.extend_from_slice(&[0xff; 64]);
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

fn family_options(family: Family, cache: &Cache, write_buffer_bytes: usize) -> Options {
    let mut options = Options::default();
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    options.set_block_based_table_factory(&table);
    // Two that are full and on their way to disk, one that fills, and one for all the other families.
    options.set_write_buffer_size(write_buffer_bytes / 4);
    if matches!(family, Family::Entries) {
        // Batches are written once and read once more: blob files spare them every compaction.
        options.set_enable_blob_files(true);
        options.set_min_blob_size(512);
        // The disk, not the processor, is what a busy ledger runs out of first: hot batches take half the room and bandwidth.
        options.set_blob_compression_type(DBCompressionType::Lz4);
        options.set_enable_blob_gc(true);
    }
    options
}

/// A big-endian number.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn as_number(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Damaged("a number"))
}

/// Key of workspace and number.
pub fn numbered(workspace: WorkspaceId, number: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..16].copy_from_slice(&workspace.0);
    key[16..].copy_from_slice(&number.to_be_bytes());
    key
}

/// Key of a leaf.
pub fn leaf_key(workspace: WorkspaceId, segment: u64, leaf: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..24].copy_from_slice(&numbered(workspace, segment));
    key[24..].copy_from_slice(&leaf.to_be_bytes());
    key
}

/// Key of a batch.
pub fn batch_key(workspace: WorkspaceId, gateway: GatewayId, epoch: Epoch, number: u64) -> Vec<u8> {
    [&workspace.0[..], &gateway.0, &epoch.0, &number.to_be_bytes()].concat()
}

/// Key of an epoch.
pub fn epoch_key(workspace: WorkspaceId, gateway: GatewayId, epoch: Epoch) -> Vec<u8> {
    [&workspace.0[..], &gateway.0, &epoch.0].concat()
}

/// Key of a statement; zeros stand for the ledger's chain.
pub fn statement_key(workspace: Option<WorkspaceId>, serial: u64) -> [u8; 24] {
    numbered(workspace.unwrap_or(WorkspaceId::ZERO), serial)
}

/// Where a leaf stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafPlace {
    /// Segment.
    pub segment: u64,
    /// Index in the segment.
    pub leaf: u64,
}

impl LeafPlace {
    /// As a value; for `Batches` the header hash follows.
    pub fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.segment.to_be_bytes());
        value[8..].copy_from_slice(&self.leaf.to_be_bytes());
        value
    }

    /// From the first 16 bytes of a value.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn decode(value: &[u8]) -> Result<Self, StoreError> {
        let (segment, rest) = value.split_at_checked(8).ok_or(StoreError::Damaged("a place"))?;
        let leaf = rest.get(..8).ok_or(StoreError::Damaged("a place"))?;
        Ok(Self { segment: as_number(segment)?, leaf: as_number(leaf)? })
    }
}

/// What is remembered of an epoch.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EpochRow {
    /// Commit index at which it opened: the last one opened is the gateway's current epoch.
    #[prost(uint64, tag = "1")]
    pub opened_at_index: u64,
    /// Key that signs in it.
    #[prost(bytes = "bytes", tag = "2")]
    pub key_id: Bytes,
    /// Number of its last batch.
    #[prost(uint64, tag = "3")]
    pub last_batch: u64,
    /// Number of its next record.
    #[prost(uint64, tag = "4")]
    pub next_record: u64,
    /// Hash of its last header.
    #[prost(bytes = "bytes", tag = "5")]
    pub last_header_hash: Bytes,
    /// It was closed.
    #[prost(bool, tag = "6")]
    pub closed: bool,
    /// Received-at of its last batch, microseconds.
    #[prost(uint64, tag = "7")]
    pub heard_at: u64,
    /// The writer promised to be always on.
    #[prost(bool, tag = "8")]
    pub always_on: bool,
    /// Its longest silence, microseconds.
    #[prost(uint64, tag = "9")]
    pub silence_us_max: u64,
    /// An equivocation in it was kept already; further copies are only counted.
    #[prost(uint64, tag = "10")]
    pub equivocations: u64,
}

impl EpochRow {
    /// The numbering's view.
    ///
    /// # Errors
    /// [`StoreError::Damaged`].
    pub fn state(&self) -> Result<EpochState, StoreError> {
        let damaged = |_| StoreError::Damaged("an epoch");
        Ok(EpochState {
            key_id: Some(KeyId::try_from(self.key_id.as_ref()).map_err(damaged)?),
            last_batch: self.last_batch,
            next_record: self.next_record,
            last_header_hash: HeaderHash::try_from(self.last_header_hash.as_ref()).map_err(damaged)?,
            closed: self.closed,
        })
    }
}

/// A segment that was cut: what its seal will say, but for the object's hashes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CutRow {
    /// A seal whose object fields are zeros.
    #[prost(bytes = "bytes", tag = "1")]
    pub seal: Bytes,
    /// Roster bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub roster: Bytes,
}

/// Something that must become an entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueueRow {
    /// A segment to be sealed: workspace and number.
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub workspace: Option<Bytes>,
    /// Segment number.
    #[prost(uint64, tag = "2")]
    pub segment: u64,
    /// Else the bytes of a log entry.
    #[prost(bytes = "bytes", tag = "3")]
    pub entry: Bytes,
}

impl Store {
    /// Numbering and rows of every gateway of a workspace.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn epochs(&self, workspace: WorkspaceId) -> Result<Vec<(GatewayId, Epoch, EpochRow)>, StoreError> {
        let damaged = |_| StoreError::Damaged("an epoch");
        let mut found = Vec::new();
        for step in self.scan(Family::Epochs, &workspace.0, &[]) {
            let (key, value) = step?;
            let gateway = GatewayId::try_from(key.get(16..32).unwrap_or_default()).map_err(damaged)?;
            let epoch = Epoch::try_from(key.get(32..48).unwrap_or_default()).map_err(damaged)?;
            let row = EpochRow::decode(value).map_err(|_| StoreError::Damaged("an epoch"))?;
            found.push((gateway, epoch, row));
        }
        Ok(found)
    }
}

/// Puts rows of one gateway into a numbering.
///
/// # Errors
/// [`StoreError::Damaged`].
pub fn numbering<'a>(rows: impl IntoIterator<Item = (&'a Epoch, &'a EpochRow)>) -> Result<Numbering, StoreError> {
    let mut numbering = Numbering::default();
    let mut newest = None;
    for (epoch, row) in rows {
        numbering.epochs.insert(*epoch, row.state()?);
        if newest.is_none_or(|at| row.opened_at_index >= at) {
            newest = Some(row.opened_at_index);
            numbering.last_opened = Some(*epoch);
        }
    }
    // An epoch is over once the next one has opened, whether or not it was closed.
    for (epoch, state) in &mut numbering.epochs {
        state.closed |= Some(*epoch) != numbering.last_opened;
    }
    Ok(numbering)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::Dir;

    fn families(dir: &Path) -> Vec<String> {
        let mut families = DB::list_cf(&Options::default(), dir).unwrap();
        families.sort();
        families
    }

    #[test]
    fn a_newer_database_is_refused_by_its_version_and_left_as_it_is() {
        let dir = Dir::new("newer");
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let db = DB::open_cf(&options, &dir.0, ["meta", "of-the-future"]).unwrap();
        db.put_cf(db.cf_handle("meta").unwrap(), "version", (STORE_VERSION + 1).to_be_bytes()).unwrap();
        drop(db);
        let opened = Store::open(&dir.0, 8 << 20, 32 << 20);
        assert!(
            matches!(opened, Err(StoreError::Newer(version)) if version == STORE_VERSION + 1),
            "{:?}",
            opened.err()
        );
        assert_eq!(families(&dir.0), ["default", "meta", "of-the-future"]);
    }

    #[test]
    fn an_older_database_is_migrated_and_keeps_what_it_holds() {
        let dir = Dir::new("older");
        let store = Store::open(&dir.0, 8 << 20, 32 << 20).unwrap();
        assert_eq!(store.number("version").unwrap(), Some(STORE_VERSION));
        store.commit_one(Family::Meta, "term", &7_u64.to_be_bytes()).unwrap();
        store.commit_one(Family::Meta, "version", &0_u64.to_be_bytes()).unwrap();
        drop(store);
        let store = Store::open(&dir.0, 8 << 20, 32 << 20).unwrap();
        assert_eq!(store.number("version").unwrap(), Some(STORE_VERSION));
        assert_eq!(store.number("term").unwrap(), Some(7));
    }
}
