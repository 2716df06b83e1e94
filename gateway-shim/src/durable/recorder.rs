//! A disk in memory that remembers every call, so that a test can stand at any point of the past and ask what a power
//! failure there leaves: what was not yet synced may be there, be gone, or be torn.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex},
};

use super::{Disk, Reading, Syncing};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create(String),
    Append(String, Vec<u8>),
    Truncate(String, u64),
    Sync(String),
    SyncDir,
    Remove(String),
}

/// What happens to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// All of it reached the disk.
    Kept,
    /// None of it did.
    Dropped,
    /// File contents came through by half, names as they were synced.
    Torn,
    /// Names came through, contents did not.
    NamesOnly,
    /// Removals came through, nothing else.
    RemovalsOnly,
    /// All of it reached the disk but removals: what was removed is back, with its contents.
    RemovalsLost,
}

pub(crate) const ALL_UNSYNCED: [Unsynced; 6] = [
    Unsynced::Kept,
    Unsynced::Dropped,
    Unsynced::Torn,
    Unsynced::NamesOnly,
    Unsynced::RemovalsOnly,
    Unsynced::RemovalsLost,
];

/// Which syncs do nothing, for the test that shows that each is needed.
pub(crate) type Ignored = fn(&[Op], &Op) -> bool;

/// A call that fails once.
#[derive(Clone, Copy)]
pub(crate) struct Fault {
    /// The first one of these.
    pub(crate) at: fn(&Op) -> bool,
    /// With this.
    pub(crate) kind: io::ErrorKind,
    /// It is done all the same, or not at all; an append, by half.
    pub(crate) stored: bool,
}

#[derive(Default)]
struct Inner {
    ops: Vec<Op>,
    files: BTreeMap<String, Vec<u8>>,
    /// Bytes that fit; appends beyond fail half-way.
    room: Option<usize>,
    faults: Vec<Fault>,
    ignored: Option<Ignored>,
    /// Syncs of files, or reads of their parts, wait until they are let go, as for a slow disk.
    holds: Option<Held>,
    waits: Arc<Condvar>,
}

/// What waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Syncs,
    Reads,
}

/// Shared with the test that looks at it.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Inner>>);

impl Recorder {
    /// With these files, all of them durable.
    pub(crate) fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self(Arc::new(Mutex::new(Inner { files, ..Inner::default() })))
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.0.lock().unwrap().ops.clone()
    }

    /// How many of the calls so far are of this kind.
    pub(crate) fn count(&self, of_kind: fn(&Op) -> bool) -> usize {
        self.0.lock().unwrap().ops.iter().filter(|op| of_kind(op)).count()
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.lock().unwrap().files.clone()
    }

    pub(crate) fn limit(&self, room: Option<usize>) {
        self.0.lock().unwrap().room = room;
    }

    /// One more call that is to fail.
    pub(crate) fn fail(&self, fault: Fault) {
        self.0.lock().unwrap().faults.push(fault);
    }

    /// Whether all calls that were to fail have come.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().unwrap().faults.is_empty()
    }

    /// From here on these wait.
    pub(crate) fn hold(&self, held: Held) {
        self.0.lock().unwrap().holds = Some(held);
    }

    /// They go on.
    pub(crate) fn let_go(&self) {
        let mut inner = self.0.lock().unwrap();
        inner.holds = None;
        inner.waits.notify_all();
    }

    fn wait(&self, held: Held) {
        let mut inner = self.0.lock().unwrap();
        let waits = Arc::clone(&inner.waits);
        while inner.holds == Some(held) {
            inner = waits.wait(inner).unwrap();
        }
    }

    /// Answers these syncs without doing them.
    pub(crate) fn ignore(&self, ignored: Ignored) {
        self.0.lock().unwrap().ignored = Some(ignored);
    }
}

/// The files that a power failure after `ops` leaves of what began as `files`.
pub(crate) fn after_power_failure(
    files: &BTreeMap<String, Vec<u8>>,
    ops: &[Op],
    unsynced: Unsynced,
) -> BTreeMap<String, Vec<u8>> {
    // Content by file, as written and as synced; names as written and as synced.
    let mut written = files.clone();
    let mut synced = files.clone();
    let mut names: Vec<String> = files.keys().cloned().collect();
    let mut removed: Vec<String> = Vec::new();
    for op in ops {
        match op {
            Op::Create(name) => {
                written.insert(name.clone(), Vec::new());
                synced.insert(name.clone(), Vec::new());
                removed.retain(|gone| gone != name);
            }
            Op::Append(name, bytes) => written.entry(name.clone()).or_default().extend(bytes),
            Op::Truncate(name, length) => {
                written.entry(name.clone()).or_default().truncate(usize::try_from(*length).unwrap());
            }
            Op::Sync(name) => {
                synced.insert(name.clone(), written.get(name).cloned().unwrap_or_default());
            }
            Op::SyncDir => {
                for gone in removed.drain(..) {
                    written.remove(&gone);
                    synced.remove(&gone);
                }
                names = written.keys().cloned().collect();
            }
            Op::Remove(name) => removed.push(name.clone()),
        }
    }
    let mut left = BTreeMap::new();
    for name in written.keys() {
        let (was, is) = (names.contains(name), !removed.contains(name));
        let there = match unsynced {
            Unsynced::Kept | Unsynced::NamesOnly => is,
            Unsynced::Dropped | Unsynced::Torn => was,
            Unsynced::RemovalsOnly => was && is,
            Unsynced::RemovalsLost => true,
        };
        if !there {
            continue;
        }
        let (new, old) = (&written[name], &synced[name]);
        let content = match unsynced {
            Unsynced::Kept | Unsynced::RemovalsLost => new.clone(),
            Unsynced::Torn if new.len() > old.len() => new[..old.len() + (new.len() - old.len()) / 2].to_vec(),
            _ => old.clone(),
        };
        left.insert(name.clone(), content);
    }
    left
}

impl Inner {
    /// Takes the fault that is meant for this call.
    fn fault(&mut self, op: &Op) -> Option<Fault> {
        let at = self.faults.iter().position(|fault| (fault.at)(op))?;
        Some(self.faults.remove(at))
    }
}

/// What a call with this fault answers.
fn answer(fault: Option<Fault>) -> io::Result<()> {
    fault.map_or(Ok(()), |fault| Err(fault.kind.into()))
}

impl Disk for Recorder {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn reading(&self) -> Reading {
        let disk = self.clone();
        Arc::new(move |name, offset, length| {
            disk.wait(Held::Reads);
            let offset = usize::try_from(offset).unwrap();
            let inner = disk.0.lock().unwrap();
            let bytes = inner.files.get(name).ok_or(io::ErrorKind::NotFound)?;
            bytes.get(offset..offset + length).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        })
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let op = Op::Create(name.to_owned());
        let fault = inner.fault(&op);
        if fault.is_none_or(|fault| fault.stored) {
            if inner.files.insert(name.to_owned(), Vec::new()).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            inner.ops.push(op);
        }
        answer(fault)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let used: usize = inner.files.values().map(Vec::len).sum();
        let full = inner.room.is_some_and(|room| used + bytes.len() > room);
        let full = full.then_some(Fault { at: |_| true, kind: io::ErrorKind::StorageFull, stored: false });
        let fault = full.or_else(|| inner.fault(&Op::Append(name.to_owned(), bytes.to_vec())));
        let taken = if fault.is_none_or(|fault| fault.stored) { bytes } else { &bytes[..bytes.len() / 2] };
        inner.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?.extend(taken);
        inner.ops.push(Op::Append(name.to_owned(), taken.to_vec()));
        answer(fault)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?.truncate(usize::try_from(length).unwrap());
        inner.ops.push(Op::Truncate(name.to_owned(), length));
        Ok(())
    }

    fn syncing(&mut self, name: &str) -> io::Result<Syncing> {
        let (disk, op) = (self.clone(), Op::Sync(name.to_owned()));
        Ok(Box::new(move || {
            disk.wait(Held::Syncs);
            disk.synced(op)
        }))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.synced(Op::SyncDir)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        inner.ops.push(Op::Remove(name.to_owned()));
        Ok(())
    }
}

impl Recorder {
    fn synced(&self, op: Op) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let fault = inner.fault(&op);
        let done = fault.is_none_or(|fault| fault.stored);
        if done && !inner.ignored.is_some_and(|ignored| ignored(&inner.ops, &op)) {
            inner.ops.push(op);
        }
        answer(fault)
    }
}
