//! Where callers meet the writer: they write into the journal themselves, under a lock, and the writer's thread signs and waits
//! for the disk without it.
//!
//! What must hold: nothing waits for the disk under the lock but what happens seldom (a new file of the journal, a new epoch, a
//! full spool); a call of strict mode has its answer after the sync that covers its intent, one of relaxed mode when the
//! intent is written, unless what was written before waits for the disk too long; a batch is signed by the thread alone.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use custody::wire::{self, record::Kind};
use futures::FutureExt as _;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Begun, CallName, Command, Ending, Fetch, GROUP_MAX, Group, QUEUE_MAX, RecordName, Refused, Writer, unless_full,
};
use crate::spool::{SpoolError, Syncing};

/// What both sides share.
struct Shared {
    /// `None` once its life is over.
    writer: Mutex<Option<Writer>>,
    woken: Notify,
}

/// The callers' side. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// The writer's thread.
pub struct Life {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
}

/// Both sides of a writer.
pub fn desk(writer: Writer) -> (Desk, Life) {
    let shared = Arc::new(Shared { writer: Mutex::new(Some(writer)), woken: Notify::new() });
    let (commands, taken) = mpsc::channel(QUEUE_MAX);
    (Desk { shared: Arc::clone(&shared), commands }, Life { shared, commands: taken })
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

/// Closed when what it is for is durable; an error when the writer ended before.
pub(crate) type Durable = oneshot::Receiver<()>;

impl Desk {
    /// A call begins, behind [`Self::caught_up`]. It may be forwarded once what is given beside its name says so, or at once if
    /// nothing is.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn begin(&self, call: wire::Call) -> Result<Begun, Refused> {
        let call = super::checked(call)?;
        self.with(|writer| writer.begin(call))?
    }

    /// A call has ended. Its record is written when this returns, or owed.
    pub(crate) fn finish(&self, call: CallName, ending: Ending, answer: Option<oneshot::Sender<()>>) {
        // Without a writer the next start finds it unfinished.
        self.with(|writer| writer.finish(call.number, ending, answer)).ok();
    }

    /// So many records are not made.
    pub(crate) fn lose(&self, number: u64) {
        // Without a writer nobody declares anything any more.
        self.with(|writer| writer.lose(number)).ok();
    }

    /// A record, whole, behind [`Self::caught_up`].
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) fn record(&self, kind: Kind) -> Result<(RecordName, Durable), Refused> {
        self.with(|writer| writer.record(kind))?
    }

    /// Records that have their place however full it is, all of them or none; none of them waits behind others.
    ///
    /// # Errors
    /// [`Refused`]: but for [`Refused::Stopped`], none of them is on record.
    pub(crate) fn record_all(&self, kinds: Vec<Kind>) -> Result<Durable, Refused> {
        self.with(|writer| writer.record_all(kinds))?.map(|(_, durable)| durable)
    }

    /// Batches to send, by order; read without the writer.
    ///
    /// # Errors
    /// [`Refused::Stopped`].
    pub(crate) async fn fetch(&self, fetch: Fetch) -> Result<Vec<(u64, Bytes)>, Refused> {
        let Fetch { from, unreceived, count_max, bytes_max } = fetch;
        let find = |writer: &mut Writer| {
            Ok((writer.spool.find(from, unreceived, count_max, bytes_max), writer.spool.reader()))
        };
        let (found, reader) = self.with(find)?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let read = tokio::task::spawn_blocking(move || reader.read(&found)).await.map_err(|_| Refused::Stopped)?;
        self.with(|_| read)
    }

    /// Asks the writer's thread and waits for its answer.
    ///
    /// # Errors
    /// What the writer says; [`Refused::Stopped`] when it has ended.
    pub(crate) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> Command,
    ) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        self.tell(command(answer)).await?;
        answered.await.map_err(|_| Refused::Stopped)?
    }

    /// Tells the writer's thread.
    ///
    /// # Errors
    /// [`Refused::Stopped`] when it has ended.
    pub(crate) async fn tell(&self, command: Command) -> Result<(), Refused> {
        self.commands.send(command).await.map_err(|_| Refused::Stopped)
    }

    /// Waits while more records are unsigned than the writer should have before it. Apart from what comes behind it, so that no
    /// future holds a call that it hands on at once.
    ///
    /// # Errors
    /// [`Refused::Stopped`].
    pub(crate) async fn caught_up(&self) -> Result<(), Refused> {
        while let Some(later) = self.with(|writer| Ok(writer.later()))? {
            later.await.map_err(|_| Refused::Stopped)?;
        }
        Ok(())
    }

    /// Does something with the writer. What the disk does not do ends it.
    fn with<T>(&self, what: impl FnOnce(&mut Writer) -> Result<T, SpoolError>) -> Result<T, Refused> {
        // A caller that panicked in the middle of it left nothing to rely on.
        let mut locked = self.shared.writer.lock().map_err(|_| Refused::Stopped)?;
        let writer = locked.as_mut().filter(|writer| writer.failed.is_none()).ok_or(Refused::Stopped)?;
        let done = what(writer);
        let wake = writer.has_written() | done.is_err();
        let done = done.map_err(|error| {
            writer.failed = Some(error);
            Refused::Stopped
        });
        drop(locked);
        if wake {
            self.shared.woken.notify_one();
        }
        done
    }
}

impl Life {
    /// The writer's life: until all who could ask are gone, or the disk fails.
    ///
    /// # Errors
    /// [`SpoolError`]: nothing more can be promised; start again.
    pub async fn run(mut self) -> Result<(), SpoolError> {
        let ended = self.live().await;
        // Nobody is answered any more, and the folder is another's.
        drop(self.shared.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
        ended
    }

    async fn live(&mut self) -> Result<(), SpoolError> {
        let mut taken = Vec::with_capacity(GROUP_MAX);
        loop {
            let wait = self.with(|writer| Ok(writer.next_deadline()))?;
            let come = async {
                tokio::select! {
                    count = self.commands.recv_many(&mut taken, GROUP_MAX) => count > 0,
                    () = self.shared.woken.notified() => true,
                }
            };
            // A timer would take its millisecond even for no time at all.
            let come = match wait.is_zero() {
                true => come.now_or_never(),
                false => tokio::time::timeout(wait, come).await.ok(),
            };
            if come == Some(false) {
                return Ok(());
            }
            self.turn(&mut taken)?;
        }
    }

    /// What has come, what is due, and the sync of all of it.
    fn turn(&self, taken: &mut Vec<Command>) -> Result<(), SpoolError> {
        let ticked = self.with(|writer| {
            for command in taken.drain(..) {
                writer.take(command)?;
            }
            unless_full(writer.tick())
        })?;
        let signed = self.sign_due()?;
        let waiting = self.with(|writer| {
            writer.disk_full = !(ticked && signed);
            writer.has_written();
            writer.begin_sync()
        })?;
        let Some((group, syncing)) = waiting else { return Ok(()) };
        let began = Instant::now();
        let synced = syncing.map(Syncing::wait).transpose()?;
        self.with(|writer| writer.end_sync(synced, began.elapsed()))?;
        group.release();
        Ok(())
    }

    /// Signs every batch that is due, without the lock: only this thread changes what a batch is made of.
    fn sign_due(&self) -> Result<bool, SpoolError> {
        while let Some(unsigned) = self.with(|writer| writer.next_due(false))? {
            let signed = unsigned.sign();
            if !self.with(|writer| unless_full(writer.take_signed(signed)))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn with<T>(&self, what: impl FnOnce(&mut Writer) -> Result<T, SpoolError>) -> Result<T, SpoolError> {
        let panicked = || SpoolError::Disk(std::io::Error::other("a caller broke off in the middle of a write"));
        let mut locked = self.shared.writer.lock().map_err(|_| panicked())?;
        let writer = locked.as_mut().ok_or_else(panicked)?;
        match writer.failed.take() {
            Some(error) => Err(error),
            None => what(writer),
        }
    }
}

/// Since when what is written waits for the disk, and who waits with it.
#[derive(Default)]
pub(super) struct Waiting {
    /// Answers that the next sync releases.
    pub(super) group: Group,
    /// Somebody waits: the sync begins at once.
    pub(super) urgent: bool,
    /// The oldest write that no sync has begun for.
    pub(super) written: Option<Instant>,
    /// The oldest write that the sync is for that goes on now.
    pub(super) syncing: Option<Instant>,
    /// The thread has to be told.
    pub(super) wake: bool,
}

impl Waiting {
    /// Something was written.
    pub(super) fn wrote(&mut self) {
        if self.written.is_none() {
            (self.written, self.wake) = (Some(Instant::now()), true);
        }
    }

    /// Whoever gets this waits for the next sync, which begins at once.
    pub(super) fn durable(&mut self) -> Durable {
        let (answer, durable) = oneshot::channel();
        self.group.tell(answer);
        self.wake |= !std::mem::replace(&mut self.urgent, true);
        durable
    }

    /// How long the oldest write waits for the disk already.
    pub(super) fn since(&self) -> Option<Instant> {
        self.syncing.or(self.written)
    }
}
