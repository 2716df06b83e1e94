//! The gateway as a library: opens everything, takes records, drains.
//!
//! A record is durable in the spool when [`Gateway::record`] returns; a call of strict mode is when [`Gateway::begin`] does, one
//! of relaxed mode is written and durable soon after. Whoever forwards it calls [`Running::end`] afterwards. Shipping goes on behind that, whether the ledger is there or not.
//! `serve` and `relay` use exactly this.

use std::{sync::Arc, time::Duration};

use custody::{
    id::MemberId,
    wire::{self, record::Kind},
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    certificate,
    client::{self, Client, EnrolError, Link, Question, Questions, Stop, Tls},
    clock,
    config::{Config, Faults, ForkConfig},
    durable::{Disk, Folder},
    forensic::Signers,
    fork,
    key::{self, KeyError, Name},
    receipt::Checker,
    seen::Seen,
    spool::{self, Opener, Spool, SpoolError},
    writer::{
        CallName, Carried, Command, Desk, Ending, FULL_WAIT, Life, Progress, RecordName, Refused, Settings, Waits,
        Writer, desk,
    },
};

/// Why a gateway does not open.
#[derive(Debug)]
pub enum OpenError {
    /// The configuration, or a file that it names.
    Config(Faults),
    /// A key file.
    Key(KeyError),
    /// The spool.
    Spool(SpoolError),
    /// What the spool kept of the ledger's words does not hold under the pinned root.
    Chain(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(faults) => faults.fmt(f),
            Self::Key(error) => error.fmt(f),
            Self::Spool(error) => error.fmt(f),
            Self::Chain(why) => {
                write!(f, "replay the key chains from the pinned root: {why}; hint: was this enrolled anew?")
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spool(error) => error.source(),
            _ => None,
        }
    }
}

impl From<Faults> for OpenError {
    fn from(faults: Faults) -> Self {
        Self::Config(faults)
    }
}

impl From<KeyError> for OpenError {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<SpoolError> for OpenError {
    fn from(error: SpoolError) -> Self {
        Self::Spool(error)
    }
}

/// How a gateway ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// The ledger shows two histories; a drain waits until the proof is written and sent.
    Fork,
    /// The ledger will take nothing more of this gateway.
    Refused(String),
    /// The disk failed.
    Disk(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fork => f.write_str("the ledger shows two histories"),
            Self::Refused(why) => write!(f, "the ledger refuses this gateway: {why}"),
            Self::Disk(why) => write!(f, "failed to {why}"),
        }
    }
}

/// What a drain left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Calls that had not ended; they are recorded as `unknown`.
    pub unfinished: u64,
    /// Batches that the ledger has not confirmed; they are in the spool for the next start.
    pub unshipped: u64,
}

/// A running gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gateway {
    desk: Desk,
    progress: watch::Receiver<Progress>,
    ended: watch::Receiver<Option<Ended>>,
    drain_wait: Duration,
    shipping: Arc<Shipping>,
    seen: Seen,
    questions: mpsc::Sender<Question>,
}

/// The shipping task, which ends with the last gateway that uses it, and the writer's thread with that.
#[derive(Debug)]
struct Shipping {
    task: tokio::task::JoinHandle<()>,
    /// Its other end is the task's: closed when that is over.
    over: watch::Receiver<()>,
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a gateway is made of, besides its disk.
pub struct Parts {
    /// Who it is.
    pub who: Name,
    /// How it writes.
    pub settings: Settings,
    /// Where it ships to.
    pub link: Link,
    /// What it trusts.
    pub roots: custody::statement::Roots,
    /// Where the proof of a fork goes.
    pub fork: ForkConfig,
    /// How long a drain may ship.
    pub drain_wait: Duration,
}

impl Gateway {
    /// Opens the gateway that a configuration describes.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let parts = parts(config)?;
        let folder = Folder::open(&config.spool.dir).map_err(SpoolError::from)?;
        Self::start(Box::new(folder), spool::Limits::of_mib(config.spool.mib_max), parts)
    }

    /// Opens a gateway over a disk: recovers the spool, signs what the old epoch left, opens a new one, and starts the two
    /// tasks. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn start(disk: Box<dyn Disk>, limits: spool::Limits, parts: Parts) -> Result<Self, OpenError> {
        let spool = Spool::open(disk, limits, &parts.settings.opener())?;
        let mut checker = Checker::new(parts.who.clone(), parts.roots);
        for statement in spool.statements() {
            checker.statement(statement).map_err(|refusal| OpenError::Chain(refusal.to_string()))?;
        }
        if !spool.state().last_head.is_empty() {
            let head = spool.state().last_head.clone();
            checker.resume(&head).map_err(|refusal| OpenError::Chain(refusal.to_string()))?;
        }
        let key_id = key::key_id(&parts.settings.key);
        let settings = Settings { signers: checker.signers(), ..parts.settings };
        let (writer, progress) = Writer::open(spool, settings)?;
        let seen = writer.seen();
        let (desk, life) = desk(writer);
        let (ending, ended) = watch::channel(None);
        let ending = Arc::new(ending);
        write_on_a_thread(life, Arc::clone(&ending))?;
        let (questions, asked) = mpsc::channel(client::QUEUE_MAX);
        let client = Client {
            who: parts.who.clone(),
            key_id,
            link: parts.link,
            checker,
            desk: desk.clone(),
            progress: progress.clone(),
            seen: seen.clone(),
            questions: Questions::new(asked),
        };
        let (running, over) = watch::channel(());
        let task = tokio::spawn(async move {
            let _running = running;
            let end = |end| ending.send_if_modified(|now| now.is_none() && now.replace(end).is_none());
            match client.run().await {
                Stop::Fork(fork) => {
                    // First of all nothing more is taken: telling others may take its time.
                    end(Ended::Fork);
                    fork::report(&parts.who, &fork, &parts.fork).await;
                }
                Stop::Refused { reason } => drop(end(Ended::Refused(reason))),
                // The writer says itself why it ended, or was asked to.
                Stop::Writer => {}
            }
        });
        let shipping = Arc::new(Shipping { task, over });
        Ok(Self { desk, progress, ended, drain_wait: parts.drain_wait, shipping, seen, questions })
    }

    /// Records a fact; durable in the spool when this returns. A call number of zero is given one.
    ///
    /// # Errors
    /// [`Refused`]: then it is not recorded.
    pub async fn record(&self, kind: Kind) -> Result<RecordName, Refused> {
        self.submit(kind).await?.durable().await
    }

    /// Writes a record, behind all that were written before: for callers who have many on their way to the disk.
    ///
    /// # Errors
    /// [`Refused`]: then it is not recorded.
    pub async fn submit(&self, kind: Kind) -> Result<Recording, Refused> {
        self.ready()?;
        self.desk.caught_up().await?;
        let (name, durable) = self.desk.record(kind)?;
        Ok(Recording { name, durable })
    }

    /// Records that are not made, because there was no room for them: they are declared as dropped.
    pub fn lose(&self, number: u64) {
        self.desk.lose(number);
    }

    /// Records changes of access or of the life of servers, all of them, one behind the other with nothing between, or none.
    /// They are durable when this returns. They have their place also where calls find none.
    ///
    /// # Errors
    /// [`Refused`]: but for [`Refused::Stopped`], none of them is on record.
    pub async fn record_all(&self, kinds: Vec<Kind>) -> Result<(), Refused> {
        self.ready()?;
        self.desk.record_all(kinds)?.await.map_err(|_| Refused::Stopped)
    }

    /// A call begins. In strict mode its intent is durable when this returns, in relaxed mode it is written, so that it
    /// outlives this process, and durable within 5 ms. So it may be forwarded. Phase, outcome and call number are set here.
    ///
    /// # Errors
    /// [`Refused`]: then it must not be forwarded, except with [`Refused::Dropped`]: that one goes without a record, and is
    /// declared.
    pub async fn begin(&self, call: wire::Call) -> Result<Running, Refused> {
        self.ready()?;
        self.desk.caught_up().await?;
        let begun = self.desk.begin(call)?;
        // From here on: whoever gives up waiting has cancelled it.
        let running = Running { desk: self.desk.clone(), name: begun.name, ended: false };
        match begun.durable {
            Some(durable) => durable.await.map(|()| running).map_err(|_| Refused::Stopped),
            None => Ok(running),
        }
    }

    /// The one id of a person in all workspaces, from the ledger, which makes it if the address is new to it. `groups` are all
    /// of the person's in this gateway's workspace; an empty name leaves the one that is known. The same again is safe.
    ///
    /// # Errors
    /// [`EnrolError`], with the next move.
    pub async fn enrol_member(&self, name: &str, address: &str, groups: &[String]) -> Result<MemberId, EnrolError> {
        self.ask(client::enrolment(name, address, groups)?).await
    }

    /// The same id, and nothing that is known of the person is changed.
    ///
    /// # Errors
    /// [`EnrolError`], with the next move.
    pub async fn member_of(&self, address: &str) -> Result<MemberId, EnrolError> {
        self.ask(wire::EnrolMember { id_alone: true, ..client::enrolment("", address, &[])? }).await
    }

    /// All groups of a member in this gateway's workspace, for the ledger's directory.
    ///
    /// # Errors
    /// [`EnrolError`], with the next move.
    pub async fn tell_groups(&self, member: MemberId, groups: &[String]) -> Result<MemberId, EnrolError> {
        self.ask(wire::EnrolMember { member: member.into(), groups: groups.to_vec(), ..Default::default() }).await
    }

    async fn ask(&self, asked: wire::EnrolMember) -> Result<MemberId, EnrolError> {
        self.ready().map_err(|_| EnrolError::Stopped)?;
        client::enrol(&self.questions, client::ENROL_WAIT, asked).await
    }

    fn ready(&self) -> Result<(), Refused> {
        if self.ended.borrow().is_some() { Err(Refused::Stopped) } else { Ok(()) }
    }

    /// Waits until the gateway ends by itself, and says why.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ended::Disk(String::new())),
            Err(_) => Ended::Disk("the writer is gone".to_owned()),
        }
    }

    /// Why it ended by itself, if it did.
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// What it shows of itself.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What the writer has and the ledger has not.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Takes no more records, closes the epoch, and ships what is left within the configured time. After a fork it waits for
    /// the proof instead.
    ///
    /// # Errors
    /// [`Refused::Stopped`] when it has ended by itself; [`Refused::SpoolFull`] when the disk had no space for the end of the
    /// epoch in all that time: the next start writes it.
    pub async fn drain(&self) -> Result<Drained, Refused> {
        let deadline = tokio::time::Instant::now() + self.drain_wait;
        let drained = self.drain_until(deadline).await;
        if matches!(self.has_ended(), Some(Ended::Fork)) {
            // Nothing is ever sent: it closes when the task is over.
            let mut over = self.shipping.over.clone();
            while over.changed().await.is_ok() {}
        }
        self.shipping.task.abort();
        drained
    }

    async fn drain_until(&self, deadline: tokio::time::Instant) -> Result<Drained, Refused> {
        let unfinished = loop {
            match self.desk.ask(Command::Drain).await {
                Err(Refused::SpoolFull) if tokio::time::Instant::now() < deadline => clock::sleep(FULL_WAIT).await,
                done => break done?,
            }
        };
        let mut progress = self.progress.clone();
        let shipped = progress.wait_for(|progress| progress.unreceived == 0);
        tokio::select! {
            _ = tokio::time::timeout_at(deadline, shipped) => {}
            _ = self.ended() => {}
        }
        Ok(Drained { unfinished, unshipped: self.progress().unreceived })
    }
}

/// The writer's thread has a runtime of its own, so that its waits for the disk hold up nobody.
fn write_on_a_thread(writer: Life, ending: Arc<watch::Sender<Option<Ended>>>) -> Result<(), SpoolError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let life = move || {
        if let Err(error) = runtime.block_on(writer.run()) {
            let cause = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
            tracing::error!(%error, cause, "the spool failed");
            ending.send_if_modified(|now| now.is_none() && now.replace(Ended::Disk(error.to_string())).is_none());
        }
    };
    std::thread::Builder::new().name("spool".into()).spawn(life)?;
    Ok(())
}

/// Goes on without the key of an epoch that was not ended, which is lost: what waits in the spool for its signature is signed
/// with the key that the configuration names, in an epoch of its own. The next start ships it. `None`: no key is needed but
/// that one.
///
/// # Errors
/// [`OpenError`].
pub fn go_on_without_key(config: &Config) -> Result<Option<Carried>, OpenError> {
    let Parts { settings, .. } = parts(config)?;
    let folder = Folder::open(&config.spool.dir).map_err(SpoolError::from)?;
    let opener = Opener { old_key_lost: true, ..settings.opener() };
    let spool = Spool::open(Box::new(folder), spool::Limits::of_mib(config.spool.mib_max), &opener)?;
    Ok(Writer::carry_over(spool, settings)?)
}

/// Reads every file that a start reads, but the spool's, and looks whether the folders can be used.
///
/// # Errors
/// [`OpenError`], of the configuration or a key.
pub fn check(config: &Config) -> Result<(), OpenError> {
    parts(config)?;
    Ok(config.check_folders()?)
}

/// Connects to the ledger once, with its certificates, and says nothing there.
///
/// # Errors
/// Why that is not possible, with the next move.
pub async fn reach_ledger(config: &Config) -> Result<(), String> {
    let parts = parts(config).map_err(|why| why.to_string())?;
    parts.link.reach().await
}

/// When the certificate ends that is shown to the ledger; `None` without one.
///
/// # Errors
/// [`OpenError`].
pub fn certificate_until_us(config: &Config) -> Result<Option<u64>, OpenError> {
    let (enrolment, _) = config.enrolment()?;
    if config.ledger.endpoint.starts_with("http://") {
        return Ok(None);
    }
    let tls = tls(config, enrolment.authority, enrolment.certificate)?;
    Ok(certificate::validity(&tls.certificate).map(|validity| validity.not_after_us))
}

fn parts(config: &Config) -> Result<Parts, OpenError> {
    let (enrolment, roots) = config.enrolment()?;
    let who = config.name();
    let opened = wire::Opened {
        product: crate::PRODUCT.to_owned(),
        product_version: crate::VERSION.to_owned(),
        configuration_digest: bytes::Bytes::copy_from_slice(&config.digest),
        clock: 0,
        class: wire::WriterClass::from(config.gateway.class) as i32,
        silence_us_max: config.gateway.silence_s * 1_000_000,
    };
    let settings = Settings {
        who: who.clone(),
        key: key::read_signing(&config.gateway.key)?,
        limits: config.batch_limits(),
        when_full: config.spool.when_full,
        away_max: Duration::from_secs(config.spool.away_s_max),
        waits: Waits::default(),
        clocks: clock::Clocks::real(),
        servers: config.servers.iter().map(|(name, server)| (name.clone(), server.when_full)).collect(),
        signers: Signers::default(),
        receipt_metadata: config.servers.iter().map(|(name, of)| (name.clone(), of.receipt_metadata.clone())).collect(),
        opened,
    };
    let tls = match config.ledger.endpoint.starts_with("http://") {
        true => None,
        false => Some(tls(config, enrolment.authority, enrolment.certificate)?),
    };
    let link = Link { endpoint: config.ledger.endpoint.clone(), tls };
    let drain_wait = Duration::from_secs(config.gateway.drain_s);
    Ok(Parts { who, settings, link, roots, fork: config.fork.clone(), drain_wait })
}

/// The certificate that lasts longest, of the enrolment or renewed since; one that was renewed for another key does not count.
fn tls(config: &Config, authority: String, enrolled: String) -> Result<Tls, OpenError> {
    let renewed = config.gateway.enrolment.with_extension("certificate.pem");
    let lasts = |pem: &str| certificate::validity(pem).map(|validity| validity.not_after_us);
    let newer = std::fs::read_to_string(&renewed).ok().filter(|pem| lasts(pem) > lasts(&enrolled));
    let host = config.ledger.endpoint.parse::<hyper::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    let server_name = config.ledger.server_name.clone().or(host).unwrap_or_default();
    let key = key::read_secret(&config.gateway.tls_key)?;
    let mut tls = Tls { server_name, authority, certificate: enrolled, key, renewed };
    if let Some(newer) = newer {
        let enrolled = std::mem::replace(&mut tls.certificate, newer);
        match tls.check() {
            Ok(()) => return Ok(tls),
            Err(_) => tls.certificate = enrolled,
        }
    }
    match tls.check() {
        Ok(()) => Ok(tls),
        Err(why) => Err(Faults(vec![why]).into()),
    }
}

/// A record on its way to the disk.
#[derive(Debug)]
pub struct Recording {
    name: RecordName,
    durable: oneshot::Receiver<()>,
}

impl Recording {
    /// Waits until it is durable.
    ///
    /// # Errors
    /// [`Refused::Stopped`]: then nobody knows whether it is recorded.
    pub async fn durable(self) -> Result<RecordName, Refused> {
        self.durable.await.map(|()| self.name).map_err(|_| Refused::Stopped)
    }
}

/// A call in progress. Dropped without [`Self::finish`] or [`Self::end`], it ends as `cancelled`.
#[derive(Debug)]
pub struct Running {
    desk: Desk,
    name: CallName,
    ended: bool,
}

impl Running {
    /// What later calls that continue this one link to.
    pub fn name(&self) -> CallName {
        self.name
    }

    /// The call ended so. Its record is written, so that it outlives this process, and durable with the next sync, some
    /// milliseconds later: a power cut before that ends it as `unknown`. Without a writer it ends so at the next start.
    pub fn end(mut self, ending: Ending) {
        self.ended = true;
        self.desk.finish(self.name, ending, None);
    }

    /// The call ended so; durable in the spool when this returns.
    ///
    /// # Errors
    /// [`Refused::Stopped`] when the writer has ended: the next start finds the call unfinished.
    pub async fn finish(mut self, ending: Ending) -> Result<(), Refused> {
        self.ended = true;
        let (answer, answered) = oneshot::channel();
        self.desk.finish(self.name, ending, Some(answer));
        answered.await.map_err(|_| Refused::Stopped)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.desk.finish(self.name, Ending::of(wire::Outcome::Cancelled), None);
        }
    }
}

#[cfg(test)]
mod away_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod key_tests;
#[cfg(test)]
mod mode_tests;
#[cfg(test)]
mod tests;
