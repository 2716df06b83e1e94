//! Test rig: a ledger's core in one process, over real files, with gateways that sign and check; and the oracle.
//!
//! [`Rig::check`] is the oracle: it re-reads the archive as an auditor would and holds it against what was promised.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    FORMAT_VERSION,
    batch::{Header, Submitted, encode_signed, seal_header},
    id::{Epoch, GatewayId, HeaderHash, ObjectHash, RootHash, WorkspaceId},
    key::{self, Context},
    log::encode_entry,
    policy::Policy,
    record,
    statement::{Roots, encode_signed as encode_statement, possession},
    verify::{InTurn, Options},
    wire::{
        self, ClockState, OpeningReason, Role, WriterClass, from_ledger::Message, log_entry, record::Kind,
        statement::Action,
    },
};
use ed25519_dalek::SigningKey;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};

use faults::{Faults, Faulty};

use crate::{
    admit,
    alarm::Alarms,
    archive::{Archive, open_folder},
    commit::{Arrived, Chains, KnownHeads, Limits, Opening, Parts, REQUESTS_MAX, Request, State, Unopened, Writer},
    fence::Fence,
    log_view::{FenceState, LogView},
    metrics::Metrics,
    own_keys::OwnKeys,
    publish::{PublishError, Publisher},
    store::{Family, Notes, Store, statement_key},
    tail::Tail,
};

pub(crate) mod faults;
pub(crate) mod rng;
mod table;

pub(crate) const ORIGIN: &str = "ledger.test/rig";
/// For one request to the archive: a folder answers in milliseconds, and what hangs is to be seen soon.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

pub(crate) fn signing(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub(crate) fn root() -> SigningKey {
    signing(1)
}

/// Signs the rig's heads.
pub(crate) fn head_key() -> SigningKey {
    signing(3)
}

/// A folder that is removed at the end.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("custody-{name}-{}", custody::id::hex(&crate::keys::random::<6>())));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A running core.
pub(crate) struct Rig {
    pub(crate) dir: PathBuf,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) mark: watch::Receiver<u64>,
    pub(crate) alarms: Alarms,
    pub(crate) chains: Chains,
    pub(crate) view: Arc<RwLock<LogView>>,
    pub(crate) fence: Fence,
    /// Gone when nothing of the core is left: sealing goes on for a moment in a thread that cannot be aborted.
    pub(crate) store: std::sync::Weak<Store>,
    pub(crate) publishing: tokio::task::JoinHandle<PublishError>,
    writer: std::thread::JoinHandle<()>,
}

pub(crate) fn statement(
    workspace: Option<WorkspaceId>,
    serial: u64,
    previous: ObjectHash,
    checkpoint: (u64, ObjectHash),
    action: Action,
) -> Bytes {
    let statement = wire::Statement {
        version: FORMAT_VERSION,
        origin: ORIGIN.to_owned(),
        workspace: workspace.map(Into::into),
        serial,
        previous: previous.into(),
        checkpoint_size: checkpoint.0,
        checkpoint_hash: checkpoint.1.into(),
        issued_at: crate::clock::now_us(),
        era: 1,
        action: Some(action),
        ..Default::default()
    }
    .encode_to_vec();
    let signature = key::sign(&root(), Context::Statement, &statement);
    encode_statement(&statement, signature).into()
}

pub(crate) fn enrol(
    workspace: Option<WorkspaceId>,
    role: Role,
    key: &SigningKey,
    gateway: Option<GatewayId>,
) -> Action {
    let public = key::public(key);
    let proof = key::sign(key, Context::Possession, &possession(ORIGIN, workspace, role, public, gateway));
    Action::Enrol(wire::Enrol {
        role: role as i32,
        public_key: Bytes::copy_from_slice(&public.to_bytes()),
        gateway: gateway.map(Into::into),
        name: String::new(),
        possession: Some(Bytes::copy_from_slice(&proof)),
    })
}

fn genesis() -> Vec<Bytes> {
    let mut statements = Vec::new();
    let mut previous = ObjectHash::ZERO;
    let keys = [(Role::Record, 2, Some(GatewayId([0xfe; 16]))), (Role::Head, 3, None), (Role::Log, 4, None)];
    for (serial, (role, n, gateway)) in (0..).zip(keys) {
        let action = enrol(None, role, &signing(n), gateway);
        let object = statement(None, serial, previous, (0, ObjectHash::ZERO), action);
        previous = custody::hash::object_hash(&object);
        statements.push(object);
    }
    let create = Action::Create(wire::Create { name: "ledger".to_owned() });
    statements.push(statement(Some(WorkspaceId([0xee; 16])), 0, ObjectHash::ZERO, (0, ObjectHash::ZERO), create));
    statements
}

pub(crate) fn policy() -> Policy {
    Policy::fresh(ORIGIN, key::public(&root()), key::public(&signing(9)))
}

fn roots() -> Roots {
    policy().roots().unwrap()
}

impl Rig {
    /// Starts over the folders in `dir`, with small segments.
    pub(crate) async fn start(dir: &Path) -> Result<Self, PublishError> {
        Self::start_with(dir, &Faults::default(), Limits { cut_leaves: 40, ..Limits::default() }).await
    }

    /// Starts over the folders in `dir`, with faults before them.
    pub(crate) async fn start_with(dir: &Path, faults: &Faults, limits: Limits) -> Result<Self, PublishError> {
        let faulty = |place, folder: &str| {
            Arc::new(Faulty { inner: open_folder(&dir.join(folder)).unwrap(), faults: faults.clone(), place })
        };
        let (archive, fence) = (faulty("archive", "archive"), faulty("fence", "fence-store"));
        let mut store = Store::open(&dir.join("store"), 8 << 20, 32 << 20)?;
        store.faults = faults.clone();
        let store = Arc::new(store);
        std::fs::create_dir_all(dir.join("staging")).unwrap();
        let mut first = Vec::new();
        if store.last(Family::Log, &[])?.is_none() {
            for object in genesis() {
                let signed = custody::statement::Signed::parse(&object).unwrap();
                let key = statement_key(signed.workspace(), signed.statement.serial);
                store.commit_one(Family::Statements, key, &[&0_u64.to_be_bytes()[..], &object].concat())?;
                first.push(Bytes::from(encode_entry(log_entry::Entry::Statement(object))));
            }
        }
        let view = Arc::new(RwLock::new(Publisher::load_view(&store, ORIGIN, &signing(4))?));
        let mark = store.number("queue_mark")?.unwrap_or(0);
        let alarms = Alarms::new();
        let fence_state = Arc::new(FenceState::default());
        let writer_digest = custody::hash::sha256(&[dir.as_os_str().as_encoded_bytes()]);
        let chain = crate::commit::ledger_chain(&store, ORIGIN, roots())?.unwrap();
        let mut publisher = Publisher {
            store: Arc::clone(&store),
            archive: Archive::over(archive, REQUEST_LIMIT),
            fence: Fence::over(fence, ORIGIN, writer_digest, store.number("term")?.is_some()).await?,
            staging: dir.join("staging"),
            origin: ORIGIN.to_owned(),
            key: signing(4),
            chain,
            term: 0,
            incarnation: 0,
            view: Arc::clone(&view),
            fence_state: Arc::clone(&fence_state),
            alarms: alarms.clone(),
            mark: watch::Sender::new(mark),
            pending_mark: mark,
            untold: Vec::new(),
        };
        publisher.start(first).await?;
        let mark = publisher.mark.subscribe();
        let (wake, woken) = mpsc::channel(1);
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let chains = Chains::default();
        let held = Arc::downgrade(&store);
        let writer = Writer::load(Parts {
            origin: ORIGIN.to_owned(),
            head_key: signing(3),
            record_key: signing(2),
            own_keys: OwnKeys::of(&signing(2), &signing(3), &signing(4)),
            term: publisher.term,
            chains: Arc::clone(&chains),
            tail: Arc::new(Tail::open(&store)?),
            store,
            view: Arc::clone(&view),
            fence: fence_state,
            publisher: wake,
            mark: mark.clone(),
            alarms: alarms.clone(),
            metrics: Metrics::new(),
            limits,
            roots: roots(),
        })?;
        let fence = publisher.fence.clone();
        let publishing = tokio::spawn(publisher.run(woken, requests.clone()));
        let writer = std::thread::spawn(move || writer.run(queue));
        Ok(Self { dir: dir.to_owned(), requests, mark, alarms, chains, view, fence, store: held, publishing, writer })
    }

    /// Ends as a crash would, as far as a process can: nothing is drained.
    pub(crate) async fn stop(self) {
        self.publishing.abort();
        self.publishing.await.ok();
        drop(self.requests);
        tokio::task::spawn_blocking(move || self.writer.join().unwrap()).await.unwrap();
        while self.store.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// A checkpoint for a statement to name.
    pub(crate) fn seen(&self) -> (u64, ObjectHash) {
        let view = self.view.read().unwrap();
        let checkpoint = &view.checkpoint.as_ref().unwrap().checkpoint;
        (checkpoint.size, checkpoint.hash())
    }

    pub(crate) async fn submit(&self, object: Bytes) -> Result<u64, String> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Statement(object, reply)).await.unwrap();
        answer.await.unwrap().map(|state| state.queue_number)
    }

    pub(crate) async fn inspect<T: Send + 'static>(&self, look: impl FnOnce(&Writer) -> T + Send + 'static) -> T {
        self.try_inspect(look).await.unwrap()
    }

    /// `None` if it shared a group with what broke the writer.
    async fn try_inspect<T: Send + 'static>(&self, look: impl FnOnce(&Writer) -> T + Send + 'static) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let look = move |writer: &Writer| {
            reply.send(look(writer)).ok();
        };
        self.requests.send(Request::Inspect(Box::new(look))).await.unwrap();
        answer.await.ok()
    }

    /// The next statement of a workspace's chain, signed by the root.
    pub(crate) async fn say(&self, id: WorkspaceId, action: Action) -> Result<u64, String> {
        let head = self.inspect(move |writer| writer.chain_head(Some(id))).await;
        let (serial, previous) = head.map_or((0, ObjectHash::ZERO), |head| (head.count, head.hash));
        self.submit(statement(Some(id), serial, previous, self.seen(), action)).await
    }

    /// The next statement of the ledger's chain, signed by the root.
    pub(crate) async fn say_of_ledger(&self, action: Action) -> Result<u64, String> {
        let head = self.inspect(|writer| writer.chain_head(None)).await.unwrap();
        self.submit(statement(None, head.count, head.hash, self.seen(), action)).await
    }

    /// The store, while it runs.
    pub(crate) fn store(&self) -> Arc<Store> {
        self.store.upgrade().unwrap()
    }

    /// Creates a workspace and enrols a gateway in it.
    pub(crate) async fn workspace(&self, n: u8) -> (WorkspaceId, Peer) {
        let id = WorkspaceId([n; 16]);
        self.say(id, Action::Create(wire::Create { name: format!("w{n}") })).await.unwrap();
        let peer = Peer::new(id, n);
        self.say(id, enrol(Some(id), Role::Gateway, &peer.key, Some(peer.gateway))).await.unwrap();
        (id, peer)
    }

    /// Cuts everything and waits until it is archived.
    pub(crate) async fn cut(&self) {
        let number = self.ask_cut(None).await.await.unwrap();
        let mut mark = self.mark.clone();
        tokio::select! {
            biased;
            reached = mark.wait_for(|mark| *mark >= number) => drop(reached.unwrap()),
            () = self.until(|writer, _| matches!(writer.state(), State::Poisoned(_))) => {
                panic!("poisoned: {:?}", self.alarms.latched());
            }
        }
    }

    /// Waits until the writer's state or whatever else is as it must be.
    pub(crate) async fn until(&self, is_so: impl Fn(&Writer, &Alarms) -> bool + Clone + Send + 'static) {
        let alarms = self.alarms.clone();
        loop {
            let (is_so, alarms) = (is_so.clone(), alarms.clone());
            if self.try_inspect(move |writer| is_so(writer, &alarms)).await == Some(true) {
                return;
            }
            // Not to keep the writer from what is waited for.
            crate::clock::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks for a cut of one workspace or all, and waits for nothing.
    pub(crate) async fn ask_cut(&self, workspace: Option<WorkspaceId>) -> oneshot::Receiver<u64> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Cut(workspace, reply)).await.unwrap();
        answer
    }

    /// The oracle: the archive verifies, and holds at least these positions.
    pub(crate) fn check(&self, positions: &BTreeMap<WorkspaceId, u64>) {
        let verdict = check_archive(&self.dir.join("archive"));
        assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);
        let records: u64 = positions.values().sum();
        assert!(verdict.counts.records >= records, "{} records, {records} promised", verdict.counts.records);
        assert_eq!(verdict.exit_code(&policy().required), 0);
    }
}

/// Verifies an archive folder with the policy of this rig.
pub(crate) fn check_archive(folder: &Path) -> custody::verdict::Verdict {
    let archive = verifier::reader::Folder::open(folder).unwrap();
    custody::verify::run(&archive, &policy(), &Options { as_of: crate::clock::now_us(), ..Options::default() }, &InTurn)
        .unwrap()
}

/// A gateway.
pub(crate) struct Peer {
    pub(crate) workspace: WorkspaceId,
    pub(crate) gateway: GatewayId,
    pub(crate) key: SigningKey,
    pub(crate) epoch: Epoch,
    pub(crate) next_batch: u64,
    pub(crate) next_record: u64,
    pub(crate) previous: HeaderHash,
    pub(crate) last_head: Bytes,
}

impl Peer {
    pub(crate) fn new(workspace: WorkspaceId, n: u8) -> Self {
        Self {
            workspace,
            gateway: GatewayId([n | 0x80; 16]),
            key: signing(n | 0x80),
            epoch: Epoch(crate::keys::random()),
            next_batch: 0,
            next_record: 0,
            previous: HeaderHash::ZERO,
            last_head: Bytes::new(),
        }
    }

    /// The next batch, with `count` calls.
    pub(crate) fn batch(&mut self, count: usize) -> Submitted {
        let next = self.next_record;
        self.batch_of((0..count as u64).map(|n| Bytes::from(call(next + n))))
    }

    /// The next batch, with these records.
    pub(crate) fn batch_of(&mut self, of_calls: impl Iterator<Item = Bytes>) -> Submitted {
        let mut records = Vec::new();
        if self.next_batch == 0 {
            records.push(Bytes::from(opened()));
        }
        records.extend(of_calls);
        let mut header = Header {
            origin: ORIGIN.to_owned(),
            workspace: self.workspace,
            gateway: self.gateway,
            key_id: key::public(&self.key).id(Role::Gateway),
            epoch: self.epoch,
            batch_number: self.next_batch,
            first_record: self.next_record,
            record_count: 0,
            previous: self.previous,
            opening_reason: (self.previous == HeaderHash::ZERO).then_some(OpeningReason::First),
            batch_root: RootHash::ZERO,
            last_head: self.last_head.clone(),
            dropped: 0,
            drop_reason: None,
            heartbeat: records.is_empty(),
            close: false,
            created_at: crate::clock::now_us(),
        };
        let seed = crate::keys::random();
        seal_header(&mut header, &seed, &records);
        let batch = Submitted::parse(encode_signed(&header.encode(), &self.key, &seed, &records).into()).unwrap();
        self.previous = batch.header_hash();
        self.next_batch += 1;
        self.next_record = batch.header.next_record();
        batch
    }

    /// Begins a new epoch, which continues the last one.
    pub(crate) fn new_epoch(&mut self) {
        (self.epoch, self.next_batch, self.next_record) = (Epoch(crate::keys::random()), 0, 0);
    }

    /// The head that it holds, as ingest checks it.
    pub(crate) fn held(&self, rig: &Rig, bytes: &Bytes) -> Result<Option<admit::Held>, admit::Reject> {
        let peer = admit::Peer { origin: ORIGIN.to_owned(), workspace: self.workspace, gateway: self.gateway };
        admit::held_head(bytes, &peer, rig.chains.read().unwrap().ledger.as_ref().unwrap())
    }

    /// Opens a stream.
    pub(crate) async fn open(&self, rig: &Rig, stream: u64) -> Result<mpsc::Receiver<wire::FromLedger>, String> {
        let (outbox, answers) = mpsc::channel(4096);
        let (reply, answer) = oneshot::channel();
        let last_head = self.held(rig, &self.last_head).unwrap().map(Box::new);
        let opening = Opening {
            stream,
            workspace: self.workspace,
            gateway: self.gateway,
            last_head,
            outbox,
            alive: watch::Sender::new(()),
            known: KnownHeads::default(),
            in_flight: (64, 1 << 24),
            reply,
        };
        rig.requests.send(Request::Open(Box::new(opening))).await.unwrap();
        let opened = answer.await.map_err(|_| "the writer broke before it answered".to_owned())?;
        opened.map_err(|(Unopened::Later(why) | Unopened::Refused(why))| why)?;
        // The rig's gateways hold nobody to the key chains.
        rig.requests.send(Request::Greeted(stream)).await.unwrap();
        Ok(answers)
    }

    /// Waits for the receipt of a batch and takes over its head; `None` if it is pushed back or the stream is closed.
    pub(crate) async fn receipt(
        &mut self,
        answers: &mut mpsc::Receiver<wire::FromLedger>,
        number: u64,
    ) -> Option<wire::BatchInclusion> {
        loop {
            match answers.recv().await?.message.unwrap() {
                Message::Receipt(bytes) => {
                    let receipt = wire::Receipt::decode(bytes).unwrap();
                    self.last_head = receipt.signed_head.clone();
                    if let Some(found) = receipt.batches.iter().find(|b| b.batch_number == number) {
                        return Some(found.clone());
                    }
                }
                Message::Pushback(_) => return None,
                Message::Rejection(rejection) => panic!("{rejection:?}"),
                _ => {}
            }
        }
    }

    /// Sends a batch, as a stream does that has looked at the head that it holds.
    pub(crate) async fn submit(&mut self, rig: &Rig, stream: u64, batch: Submitted) {
        let held = self.held(rig, &batch.header.last_head).unwrap();
        let notes = Notes::of(&batch.records);
        let arrived = Arrived { notes, receipts: admit::receipts(&batch), batch, held };
        rig.requests.send(Request::Batch(stream, Box::new(arrived), permits().await)).await.unwrap();
    }

    /// Sends a batch and waits for its receipt; takes over the head.
    pub(crate) async fn send(
        &mut self,
        rig: &Rig,
        stream: u64,
        answers: &mut mpsc::Receiver<wire::FromLedger>,
        batch: Submitted,
    ) -> Result<wire::BatchInclusion, Message> {
        let number = batch.header.batch_number;
        self.submit(rig, stream, batch).await;
        loop {
            match answers.recv().await.and_then(|answer| answer.message).unwrap() {
                Message::Receipt(bytes) => {
                    let receipt = wire::Receipt::decode(bytes).unwrap();
                    self.last_head = receipt.signed_head.clone();
                    if let Some(found) = receipt.batches.iter().find(|b| b.batch_number == number) {
                        return Ok(found.clone());
                    }
                }
                other @ (Message::Rejection(_) | Message::Pushback(_)) => return Err(other),
                _ => {}
            }
        }
    }
}

/// Room for one batch.
pub(crate) async fn permits() -> crate::commit::Room {
    let room = Arc::new(tokio::sync::Semaphore::new(3));
    let one = || async { Arc::clone(&room).acquire_owned().await.unwrap() };
    [one().await, one().await, one().await]
}

fn opened() -> Vec<u8> {
    let opened = wire::Opened {
        product: "rig".to_owned(),
        product_version: "1".to_owned(),
        configuration_digest: Bytes::from_static(&[0; 32]),
        clock: ClockState::Unknown as i32,
        class: WriterClass::Intermittent as i32,
        silence_us_max: 0,
    };
    record::encode(Kind::GatewayEvent(wire::GatewayEvent {
        at: crate::clock::now_us(),
        event: Some(wire::gateway_event::Event::Opened(opened)),
    }))
}

fn call(number: u64) -> Vec<u8> {
    record::encode(Kind::Call(wire::Call {
        call_number: number,
        phase: 1,
        mode: 1,
        server: "s".to_owned(),
        decision: 1,
        started_at: crate::clock::now_us(),
        outcome: 1,
        ..Default::default()
    }))
}
