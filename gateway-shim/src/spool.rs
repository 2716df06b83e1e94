//! The spool: what this gateway recorded and signed, on its own disk, until the ledger has archived it.
//!
//! It is a journal in files of a few MiB. A file begins with a snapshot of all that the earlier ones said, except the signed
//! batches themselves, so that a file can go as soon as no batch in it is held any more. Frames carry a checksum over their
//! place and bytes; reading ends at the first that is not whole, which is where a crash cut an append short.
//!
//! What must hold:
//! - What [`Spool::append`] has written survives this process, and [`Spool::sync`] makes all of it durable at once (group
//!   commit): while [`Syncing`] waits for the disk more may be written, which the next one covers. No batch is sent before the
//!   sync that covers it.
//! - A batch is kept byte for byte until it is archived, or let go because the spool is full and the ledger has it durably.
//! - A file is removed only after what says that it is not needed is durable.
//! - A disk without space stops new records and nothing else, as long as the reserve (`reserve.rs`) lasts.
//! - What was durable and is damaged is refused, never taken for what a crash tore: each group that is synced together begins
//!   by saying how much was durable before it.
//! - Live and recovering, every frame takes effect through [`State::apply`].
//! - A spool is of one gateway, and an epoch of one key: nothing is written before both were looked at (`owner.rs`).
//!
//! Only the writer (`writer.rs`) uses it.

use std::{collections::BTreeMap, io};

use bytes::Bytes;
use custody::{batch::Submitted, id::Epoch};
use prost::Message as _;

use crate::durable::Disk;

mod apart;
mod error;
mod frame;
mod owner;
mod reserve;
mod state;

pub use apart::{Found, Reader, Synced, Syncing};
pub use error::SpoolError;
use error::is_full;
pub use frame::{Dropped, Entry, Intent, Receipts, Received, Recorded};
use frame::{Range, Snapshot};
pub use owner::Opener;
use reserve::Reserve;
use state::PENDING_COST;
pub use state::{Held, State};

/// Limits of a spool, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All files together.
    pub bytes_max: u64,
    /// A file that is longer is followed by a new one: small enough that space comes back soon, large enough that a
    /// snapshot is little beside it.
    pub file_bytes_max: u64,
    /// Kept free of records for what must still be written when the spool is full: batches, marks and snapshots. As many
    /// again, up to 4 MiB, are set aside on the disk for when that is full.
    pub reserve_bytes: u64,
}

impl Limits {
    /// For a spool of so many MiB, at least 8.
    pub fn of_mib(mib: u64) -> Self {
        let bytes_max = mib << 20;
        Self { bytes_max, file_bytes_max: (bytes_max / 8).min(16 << 20), reserve_bytes: bytes_max / 4 }
    }
}

fn name(file: u64) -> String {
    format!("spool-{file:016x}.log")
}

fn number(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_prefix("spool-")?.strip_suffix(".log")?, 16).ok()
}

/// Stands, during recovery, for a file that is not there.
const GONE: u64 = u64::MAX;
const STATEMENTS: &str = "statements.log";
/// Number under which the frames of the statements' file are checked.
const STATEMENTS_FILE: u64 = u64::MAX;

/// The spool, opened.
pub struct Spool {
    disk: Box<dyn Disk>,
    limits: Limits,
    state: State,
    statements: Vec<Bytes>,
    statements_length: u64,
    /// The file that grows.
    file: u64,
    length: u64,
    /// All files but the one that grows, and their lengths.
    older: BTreeMap<u64, u64>,
    /// Bytes of the file that grows that are durable, and how many of those its last frame about that tells.
    synced: u64,
    told: u64,
    /// Bytes of it that a sync was begun for.
    asked: u64,
    /// Batches below this order are durable.
    shown: u64,
    /// Files that nothing needs any more once so many bytes of the one that grows are durable.
    leaving: BTreeMap<u64, u64>,
    reserve: Reserve,
    /// The journal goes on in a new file at the next sync, whatever the length of this one.
    turn_due: bool,
}

impl Spool {
    /// Opens the spool and recovers what it says. Nothing is written to the journal until the first [`Self::turn`], which
    /// must be next, and nothing at all for an opener who may not.
    ///
    /// # Errors
    /// All kinds but [`SpoolError::Full`].
    pub fn open(disk: Box<dyn Disk>, limits: Limits, opener: &Opener) -> Result<Self, SpoolError> {
        let mut spool = Self {
            disk,
            limits,
            state: State::default(),
            statements: Vec::new(),
            statements_length: 0,
            file: 0,
            length: 0,
            older: BTreeMap::new(),
            synced: 0,
            told: 0,
            asked: 0,
            shown: 0,
            leaving: BTreeMap::new(),
            reserve: Reserve::of(&limits),
            turn_due: false,
        };
        let (base, dead) = spool.recover()?;
        opener.may_open(&spool.state)?;
        spool.state.owner = Some(opener.who.clone());
        if let Some(base) = base {
            // What was read may be from the memory of a machine whose gateway alone died.
            spool.disk.sync(&name(base))?;
        }
        spool.shown = spool.state.next_order;
        for file in dead {
            spool.disk.remove(&name(file))?;
        }
        spool.reserve.open(&mut *spool.disk)?;
        spool.recover_statements()?;
        Ok(spool)
    }

    /// The newest file whose snapshot is whole is the base; the newer one, if any, died at birth and was never relied on.
    /// Gives both. Only reads.
    fn recover(&mut self) -> Result<(Option<u64>, Vec<u64>), SpoolError> {
        let mut dead = Vec::new();
        let mut files: Vec<u64> = self.disk.list()?.iter().filter_map(|name| number(name)).collect();
        files.sort_unstable();
        let mut base = None;
        while let Some(file) = files.last().copied() {
            let bytes = Bytes::from(self.disk.read(&name(file))?);
            let frames = frame::parse(file, &bytes);
            self.file = self.file.max(file + 1);
            if matches!(frames.first(), Some(first) if matches!(first.entry, Entry::Snapshot(_))) {
                base = Some((file, bytes.len() as u64, frames));
                break;
            }
            if frame::first_was_whole(&bytes) {
                return Err(SpoolError::Damaged(name(file)));
            }
            dead.push(file);
            files.pop();
        }
        let Some((file, length, frames)) = base else { return Ok((None, dead)) };
        files.pop();
        let end = frames.last().map_or(0, |last| last.offset + last.length as u64);
        if end < length {
            if frame::was_durable_behind(file, end, &Bytes::from(self.disk.read(&name(file))?)) {
                return Err(SpoolError::Damaged(name(file)));
            }
            tracing::warn!(file = name(file), bytes = length - end, "the journal's end was torn before it was durable");
        }
        if let Some(Entry::Snapshot(snapshot)) = frames.first().map(|frame| &frame.entry) {
            self.find_held(&snapshot.held, &files)?;
        }
        self.older.insert(file, length);
        for frame in &frames {
            self.state.apply(&frame.entry, (file, frame.offset, frame.length))?;
        }
        match self.state.by_file.contains_key(&GONE) {
            true => Err(SpoolError::Damaged("a file with batches that are not archived".into())),
            false => Ok((Some(file), dead)),
        }
    }

    /// Finds the batches that a snapshot says are held in the files before it. One that is not there was archived since, and
    /// its file removed, or the spool is damaged: the frames behind the snapshot tell.
    fn find_held(&mut self, ranges: &[Range], files: &[u64]) -> Result<(), SpoolError> {
        for file in files {
            let bytes = Bytes::from(self.disk.read(&name(*file))?);
            self.older.insert(*file, bytes.len() as u64);
            let mut order = None;
            for frame in frame::parse(*file, &bytes) {
                match frame.entry {
                    Entry::Snapshot(snapshot) => order = Some(snapshot.next_order),
                    Entry::Batch(batch) => {
                        let damaged = || SpoolError::Damaged(name(*file));
                        let this = order.ok_or_else(damaged)?;
                        order = Some(this + 1);
                        let at = ranges.partition_point(|range| range.last < this);
                        let Some(range) = ranges.get(at).filter(|range| range.first <= this) else { continue };
                        let header = Submitted::parse(batch).map_err(|_| damaged())?.header;
                        self.state.is_of(&header);
                        let (epoch, number) = (header.epoch, header.batch_number);
                        let (offset, length) = (frame.offset, frame.length);
                        let held = Held { file: *file, offset, length, epoch, number, segment: range.segment };
                        self.state.hold(this, held);
                    }
                    _ => {}
                }
            }
        }
        for range in ranges {
            for order in range.first..=range.last {
                if !self.state.held.contains_key(&order) {
                    let (epoch, number, segment) = (Epoch::ZERO, order, range.segment);
                    self.state.hold(order, Held { file: GONE, offset: 0, length: 0, epoch, number, segment });
                }
            }
        }
        Ok(())
    }

    fn recover_statements(&mut self) -> Result<(), SpoolError> {
        if !self.disk.list()?.iter().any(|name| name == STATEMENTS) {
            // Its name lasts from the first file of the journal on, which is begun before any statement comes.
            self.disk.create(STATEMENTS)?;
        }
        let bytes = Bytes::from(self.disk.read(STATEMENTS)?);
        for frame in frame::parse(STATEMENTS_FILE, &bytes) {
            if let Entry::Batch(statement) = frame.entry {
                self.statements.push(statement);
            }
            self.statements_length = frame.offset + frame.length as u64;
        }
        if self.length == 0 && self.older.is_empty() && !self.statements.is_empty() {
            return Err(SpoolError::Damaged("the journal, of which no file is left,".into()));
        }
        // A statement that a crash cut short is asked for again.
        self.disk.truncate(STATEMENTS, self.statements_length)?;
        Ok(())
    }

    /// What the frames say.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// All statements of both chains, in the order in which they came.
    pub fn statements(&self) -> &[Bytes] {
        &self.statements
    }

    /// Keeps a statement; durable when this returns.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when the disk has no space; else [`SpoolError::Disk`].
    pub fn keep_statement(&mut self, statement: Bytes) -> Result<(), SpoolError> {
        let frame = frame::encode(STATEMENTS_FILE, self.statements_length, Entry::Batch(statement.clone()));
        self.with_reserve(|spool| spool.write(STATEMENTS, spool.statements_length, &frame))?;
        self.disk.sync(STATEMENTS)?;
        self.statements_length += frame.len() as u64;
        self.statements.push(statement);
        Ok(())
    }

    /// Whether something was written that no sync was begun for.
    pub fn waits(&self) -> bool {
        self.length > self.synced.max(self.asked)
    }

    /// Batches below this order are durable.
    pub fn shown(&self) -> u64 {
        self.shown
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.length + self.older.values().sum::<u64>() + self.reserve.bytes()
    }

    /// Whether a record of so many bytes may come: it is written twice, once by itself and once in its batch. While the
    /// reserve is given none may.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.has_room_for(1, bytes)
    }

    /// The same for so many records.
    pub fn has_room_for(&self, records: usize, bytes: usize) -> bool {
        self.reserve.is_there() && self.fits(records, bytes, self.limits.reserve_bytes)
    }

    /// Whether so many records may come that are owed: they may use half of what is kept free of others, and the reserve.
    pub fn has_owed_room_for(&self, records: usize, bytes: usize) -> bool {
        self.fits(records, bytes, self.limits.reserve_bytes / 2)
    }

    fn fits(&self, records: usize, bytes: usize, free: u64) -> bool {
        let need = (bytes as u64 + 2 * PENDING_COST * records as u64) * 2 + self.state.pending_bytes + free;
        self.bytes() + need <= self.limits.bytes_max
    }

    /// Sets the reserve aside again, if it was given and there is room now.
    ///
    /// # Errors
    /// [`SpoolError::Disk`].
    pub fn restore_reserve(&mut self) -> Result<(), SpoolError> {
        Ok(self.reserve.make(&mut *self.disk)?)
    }

    /// Writes a new record's frame; it is durable after [`Self::sync`]. It never takes the reserve.
    ///
    /// # Errors
    /// As [`Self::append_all`].
    pub fn append_new(&mut self, entry: Entry) -> Result<(), SpoolError> {
        match self.reserve.is_there() {
            true => self.write_all(&[entry]),
            false => Err(SpoolError::Full),
        }
    }

    /// Writes a frame that is owed; it is durable after [`Self::sync`].
    ///
    /// # Errors
    /// As [`Self::append_all`].
    pub fn append(&mut self, entry: Entry) -> Result<(), SpoolError> {
        self.append_all(&[entry])
    }

    /// Writes frames that are owed, all of them or none; they are durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`SpoolError::Full`] when the disk has no space and nothing was written; else [`SpoolError::Disk`].
    pub fn append_all(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        self.with_reserve(|spool| spool.write_all(entries))?;
        // What is archived in the file that grows makes room once the journal goes on in another.
        self.turn_due |= !self.reserve.is_there() && entries.iter().any(|entry| matches!(entry, Entry::Archived(_)));
        Ok(())
    }

    fn write_all(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        let (mut bytes, mut at, mut places) = (Vec::new(), self.length, Vec::new());
        // Once behind each sync.
        let durable = (self.synced > self.told).then_some(Entry::Durable(self.synced));
        for entry in durable.iter().chain(entries) {
            let frame = frame::encode(self.file, at, entry.clone());
            places.push((self.file, at, frame.len()));
            at += frame.len() as u64;
            bytes.extend(frame);
        }
        self.write(&name(self.file), self.length, &bytes)?;
        (self.length, self.told) = (at, self.synced);
        durable.iter().chain(entries).zip(places).try_for_each(|(entry, at)| self.state.apply(entry, at))
    }

    /// Does a write that is owed, and if it finds no space once more without the reserve.
    fn with_reserve(&mut self, write: impl Fn(&mut Self) -> Result<(), SpoolError>) -> Result<(), SpoolError> {
        match write(self) {
            Err(SpoolError::Full) if self.reserve.give(&mut *self.disk)? => {
                tracing::warn!(
                    "the spool's disk is full: no new records until it has space; hint: make room, some MiB"
                );
                // The file that grows makes room as soon as its batches are archived, if nothing comes behind them.
                self.turn_due = true;
                write(self)
            }
            done => done,
        }
    }

    /// Appends to a file of this length, and takes back what a failed append left.
    fn write(&mut self, name: &str, length: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        let Err(error) = self.disk.append(name, bytes) else { return Ok(()) };
        // Part of the bytes may be there, or all: what is written behind them later would never be read.
        self.disk.truncate(name, length)?;
        Err(SpoolError::of_write(error))
    }

    /// Makes everything that was appended durable, then takes back space.
    ///
    /// # Errors
    /// [`SpoolError::Disk`]: nobody may be answered.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        let synced = self.syncing()?.map(Syncing::wait).transpose()?;
        self.synced(synced)
    }

    /// What makes everything durable that was appended so far; `None` if it is.
    ///
    /// # Errors
    /// [`SpoolError::Disk`].
    pub fn syncing(&mut self) -> Result<Option<Syncing>, SpoolError> {
        if self.synced == self.length {
            return Ok(None);
        }
        self.asked = self.length;
        let synced = Synced { file: self.file, length: self.length, next_order: self.state.next_order };
        Ok(Some(Syncing { disk: self.disk.syncing(&name(self.file))?, synced }))
    }

    /// Takes back space behind a sync, and begins a new file when this one is long enough: what was appended since that sync is
    /// then synced here.
    ///
    /// # Errors
    /// [`SpoolError::Disk`]: nobody may be answered.
    pub fn synced(&mut self, synced: Option<Synced>) -> Result<(), SpoolError> {
        self.take_synced(synced);
        if self.length >= self.limits.file_bytes_max || self.turn_due {
            let rest = self.syncing()?.map(Syncing::wait).transpose()?;
            self.take_synced(rest);
            match self.begin_file(&self.state.snapshot()) {
                // The file goes on growing until there is space for a new one.
                Err(SpoolError::Full) => {}
                done => done?,
            }
        }
        self.collect()
    }

    fn take_synced(&mut self, synced: Option<Synced>) {
        // A file before this one was durable when this one was begun.
        if let Some(Synced { length, next_order, .. }) = synced.filter(|synced| synced.file == self.file) {
            self.synced = self.synced.max(length);
            self.shown = self.shown.max(next_order);
        }
    }

    /// Begins a new file with a snapshot of the state after `change`, all of it durable when this returns. A crash before
    /// that leaves the state before `change`. What was appended MUST be synced before.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when the disk has no space, and nothing changed; else [`SpoolError::Disk`].
    pub fn turn(&mut self, change: impl FnOnce(&mut State)) -> Result<(), SpoolError> {
        let mut after = self.state.clone();
        change(&mut after);
        self.begin_file(&after.snapshot())?;
        self.state = after;
        Ok(())
    }

    fn begin_file(&mut self, snapshot: &Snapshot) -> Result<(), SpoolError> {
        debug_assert!(self.synced == self.length, "a snapshot stands on batches that may be gone");
        let next = if self.length == 0 { self.file } else { self.file + 1 };
        let frame = frame::encode(next, 0, Entry::Snapshot(Box::new(snapshot.clone())));
        self.with_reserve(|spool| spool.make_file(next, &frame))?;
        if self.length > 0 {
            self.older.insert(self.file, self.length);
        }
        (self.file, self.length, self.turn_due) = (next, frame.len() as u64, false);
        (self.synced, self.told, self.asked, self.shown) = (self.length, 0, 0, self.state.next_order);
        self.leaving.values_mut().for_each(|durable| *durable = 0);
        Ok(())
    }

    fn make_file(&mut self, next: u64, frame: &[u8]) -> Result<(), SpoolError> {
        let begun = self.disk.create(&name(next)).and_then(|()| self.disk.append(&name(next), frame));
        if let Err(error) = begun {
            // All of it may be there: it must not come back with a crash, or it would count for more than what the file
            // before it says from here on.
            match self.disk.remove(&name(next)) {
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
            self.disk.sync_dir()?;
            return Err(SpoolError::of_write(error));
        }
        self.disk.sync(&name(next))?;
        // A crash here leaves a file that may be missing: the one before says everything that anybody relies on.
        Ok(self.disk.sync_dir()?)
    }

    /// Removes files that hold no batch any more, once what says so is durable.
    fn collect(&mut self) -> Result<(), SpoolError> {
        let held = &self.state.by_file;
        for file in self.older.keys().filter(|file| !held.contains_key(file)) {
            self.leaving.entry(*file).or_insert(self.length);
        }
        let gone = self.leaving.iter().filter(|(_, durable)| **durable <= self.synced);
        for file in gone.map(|(file, _)| *file).collect::<Vec<_>>() {
            self.disk.remove(&name(file))?;
            self.older.remove(&file);
            self.leaving.remove(&file);
        }
        Ok(())
    }

    /// Lets go of batches that the ledger holds durably, oldest first, until there is room for a record of so many bytes.
    /// Gives their number. On a full disk nothing is let go: what fills it may be another's, and would take that room too.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when that is not enough; else [`SpoolError::Disk`].
    pub fn make_room(&mut self, bytes: usize) -> Result<u64, SpoolError> {
        let before = self.state.held.len();
        while self.reserve.is_there() && !self.has_room(bytes) {
            let Some(last) = self.next_to_let_go() else { break };
            self.append(Entry::LetGo(last))?;
            self.sync()?;
        }
        let gone = (before - self.state.held.len()) as u64;
        if self.has_room(bytes) { Ok(gone) } else { Err(SpoolError::Full) }
    }

    /// The last batch in the oldest file, if all in it have a receipt: orders ascend with the files.
    fn next_to_let_go(&mut self) -> Option<u64> {
        let file = *self.older.keys().next()?;
        let mut held = self.state.held.iter().take_while(|(_, held)| held.file == file);
        held.try_fold(None, |_, (order, held)| held.segment.map(|_| Some(*order))).flatten()
    }

    /// Up to `count_max` held batches from `from` on that are durable, as long as they have fewer than `bytes_max` together
    /// (but at least one). With `unreceived` only those without a receipt.
    pub fn find(&self, from: u64, unreceived: bool, count_max: usize, bytes_max: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let orders: Box<dyn Iterator<Item = &u64>> = match unreceived {
            true => Box::new(self.state.unreceived.range(from..)),
            false => Box::new(self.state.held.range(from..).map(|(order, _)| order)),
        };
        for order in orders.take_while(|order| **order < self.shown) {
            let Some(held) = self.state.held.get(order) else { continue };
            if found.len() >= count_max || (bytes + held.length > bytes_max && !found.is_empty()) {
                break;
            }
            bytes += held.length;
            found.push(Found { order: *order, file: held.file, offset: held.offset, length: held.length });
        }
        found
    }

    /// Reads what was found, without the spool.
    pub fn reader(&self) -> Reader {
        Reader(self.disk.reading())
    }

    /// What [`Self::find`] finds, read.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn fetch(
        &self,
        from: u64,
        unreceived: bool,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, SpoolError> {
        self.reader().read(&self.find(from, unreceived, count_max, bytes_max))
    }
}

/// Bytes of an intent's record.
impl Intent {
    /// The call that has begun; `None` when the bytes are not a call's.
    pub fn call(&self) -> Option<custody::wire::Call> {
        custody::wire::Call::decode(self.bytes.clone()).ok()
    }
}

#[cfg(test)]
mod tests;
