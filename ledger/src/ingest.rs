//! Ingest: gateways' streams, from the wire to the writer and back; decode, check, hand to the writer, pass answers back.
//!
//! What must hold: nothing here decides ([`admit`] and the writer do); a stream holds at most so many batches and bytes that
//! are not answered, and a gateway at most so many streams; one that says nothing for too long, or does not read its answers,
//! is closed, and with its end nothing of it is left; what one gateway does costs no other more than its share of the
//! processor.

use std::{
    collections::HashMap,
    ops::Range,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    id::{GatewayId, WorkspaceId},
    statement::Chain,
    wire::{self, RejectReason, from_gateway, from_ledger::Message, ingest_server::Ingest},
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request as Call, Response, Status, Streaming};

use crate::{
    admit::{self, Held, Peer, Reject},
    clock,
    commit::{Arrived, Chains, KnownHeads, Opening, Request, Unopened, stored_statement},
    directory::Ask,
    pki::{self, Identity},
    refusals::{Refusals, Refused},
    store::{Notes, Store},
};

mod enrol;

/// Answers that may wait for one stream: as many as batches in flight, and news of segments that are archived.
const OUTBOX_MAX: usize = 4_096;
/// Statements that a greeting reads and sends at one time; the next ones when the line has taken these. At a few hundred bytes
/// each, 64 KiB at most, they take little memory, and a round trip for so many costs nothing.
const STATEMENTS_AT_ONCE: u64 = 64;
/// Streams of one gateway at once: it uses one; a new one may come before the old one's end was noticed.
const GATEWAY_STREAMS_MAX: u32 = 4;
/// How long a stream may wait before it says whose it is: a round trip and a slow start take far less.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// How long an ended stream has for what it was told last, the reason for its end among it: a round trip over the worst line.
const FAREWELL_LIMIT: Duration = Duration::from_secs(2);
/// Seconds over which a workspace's rate is taken.
const RATE_SECONDS: u64 = 10;

/// Limits of intake.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Batches of a stream not yet answered.
    pub batches_in_flight: u32,
    /// Bytes of a stream not yet answered.
    pub bytes_in_flight: u32,
    /// Bytes of all streams not yet answered.
    pub bytes_in_flight_total: u64,
    /// Streams at once.
    pub streams: u32,
    /// Records a second of one workspace; 0: none.
    pub records_per_second: u64,
    /// Without a message for so long a stream is closed.
    pub idle: Duration,
    /// Plaintext: the first message is taken at its word.
    pub plaintext: bool,
}

/// The service.
#[derive(Clone)]
pub struct IngestService {
    inner: Arc<Inner>,
}

struct Inner {
    origin: String,
    limits: Limits,
    writer: mpsc::Sender<Request>,
    chains: Chains,
    streams: Mutex<Streams>,
    next_stream: AtomicU64,
    rates: Mutex<HashMap<WorkspaceId, (Instant, u64)>>,
    directory: mpsc::Sender<Ask>,
    /// How often gateways asked who somebody is.
    asked: Mutex<HashMap<(WorkspaceId, GatewayId), (Instant, u32)>>,
    /// Bytes on their way to the writer, of all streams: memory has a bound whatever their number.
    room: Arc<Semaphore>,
    renew: Renew,
    /// Where the statements are. Whoever is greeted does not keep it open.
    store: Weak<Store>,
    refusals: Refusals,
}

/// Streams that are open.
#[derive(Default)]
struct Streams {
    all: u32,
    /// By what their certificates say, before the first message.
    of_gateway: HashMap<(WorkspaceId, GatewayId), u32>,
}

/// Makes a new certificate from a request, for a peer that proved who it is.
pub type Renew = Arc<dyn Fn(&Peer, &str) -> Result<String, String> + Send + Sync>;

impl IngestService {
    /// Over the queues of the writer and the directory.
    pub fn new(
        origin: &str,
        limits: Limits,
        (writer, directory): (mpsc::Sender<Request>, mpsc::Sender<Ask>),
        chains: Chains,
        renew: Renew,
        (store, refusals): (Weak<Store>, Refusals),
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                origin: origin.to_owned(),
                limits,
                writer,
                chains,
                streams: Mutex::default(),
                next_stream: AtomicU64::new(1),
                rates: Mutex::new(HashMap::new()),
                directory,
                asked: Mutex::new(HashMap::new()),
                room: Arc::new(Semaphore::new(
                    usize::try_from(limits.bytes_in_flight_total).unwrap_or(usize::MAX >> 3),
                )),
                renew,
                store,
                refusals,
            }),
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::FromLedger, Status>> + Send>>;

#[tonic::async_trait]
impl Ingest for IngestService {
    type SubmitStream = Answers;

    async fn submit(&self, call: Call<Streaming<wire::FromGateway>>) -> Result<Response<Answers>, Status> {
        let certificate = call.peer_certs().and_then(|chain| chain.first().map(|leaf| leaf.to_vec()));
        let mut incoming = call.into_inner();
        let inner = Arc::clone(&self.inner);
        let named = inner.named(certificate.as_deref())?;
        // Before anything that it sends is read.
        named.as_ref().map_or(Ok(()), |named| inner.may_come(named))?;
        let guard = Counted::new(&inner, named.as_ref())?;
        let first = tokio::time::timeout(HELLO_LIMIT, incoming.next()).await;
        let Ok(Some(Ok(wire::FromGateway { message: Some(from_gateway::Message::Hello(hello)) }))) = first else {
            return Err(Status::invalid_argument("the first message is not a greeting (hint: send Hello first)"));
        };
        let peer = inner.peer(&hello, named)?;
        let (outbox, answers) = mpsc::channel(OUTBOX_MAX);
        let stream = inner.next_stream.fetch_add(1, Ordering::AcqRel);
        // The writer holds the only strong ends: when it closes a stream, both the gateway and the task see the end of it.
        let answering = outbox.downgrade();
        let (alive, gone) = watch::channel(());
        let known = KnownHeads::default();
        let last_head = inner.last_head(&peer, &hello)?;
        let in_flight = (inner.limits.batches_in_flight, inner.limits.bytes_in_flight);
        let shared = known.clone();
        let opening = |reply| Opening {
            stream,
            workspace: peer.workspace,
            gateway: peer.gateway,
            last_head,
            outbox,
            alive,
            known: shared,
            in_flight,
            reply,
        };
        let counts = inner.open(opening).await?;
        let has = [hello.ledger_statements, hello.workspace_statements];
        let hearing = Hearing(Arc::new(Mutex::new(Some(answers))));
        let (hears, heard) = oneshot::channel();
        let answers = Heard { hearing: hearing.clone(), _hears: hears };
        let pump = Pump {
            places: Arc::new(Semaphore::new(inner.limits.batches_in_flight as usize)),
            asked: Arc::new(Semaphore::new(enrol::ASKED_MAX)),
            room: Arc::new(Semaphore::new(inner.limits.bytes_in_flight as usize)),
            inner,
            stream,
            peer,
            outbox: answering,
            gone,
            known,
            held: None,
            hearing,
            heard,
            _guard: guard,
        };
        tokio::spawn(pump.run(incoming, [has[0]..counts[0], has[1]..counts[1]]));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// What the gateway is told. It ends with the stream's task: whoever reads nothing keeps nothing in memory here.
#[derive(Clone)]
struct Hearing(Arc<Mutex<Option<mpsc::Receiver<wire::FromLedger>>>>);

/// The same for whoever sends it. Dropped when all is sent, or nobody is there to read it.
struct Heard {
    hearing: Hearing,
    _hears: oneshot::Sender<()>,
}

impl Stream for Heard {
    type Item = Result<wire::FromLedger, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(answers) => answers.poll_recv(context).map(|answer| answer.map(Ok)),
            None => Poll::Ready(None),
        }
    }
}

/// Counts a stream until it is dropped.
struct Counted {
    inner: Arc<Inner>,
    gateway: Option<(WorkspaceId, GatewayId)>,
}

impl Counted {
    fn new(inner: &Arc<Inner>, named: Option<&Peer>) -> Result<Self, Status> {
        let gateway = named.map(|peer| (peer.workspace, peer.gateway));
        let mut streams = inner.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.all >= inner.limits.streams {
            return Err(Status::resource_exhausted("too many streams (hint: try again in a minute)"));
        }
        if let Some(gateway) = gateway {
            let own = streams.of_gateway.entry(gateway).or_insert(0);
            if *own >= GATEWAY_STREAMS_MAX {
                return Err(Status::resource_exhausted("too many streams of this gateway (hint: it needs one)"));
            }
            *own += 1;
        }
        streams.all += 1;
        Ok(Self { inner: Arc::clone(inner), gateway })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut streams = self.inner.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.all -= 1;
        let Some(gateway) = self.gateway else { return };
        if let Some(own) = streams.of_gateway.get_mut(&gateway) {
            *own -= 1;
            if *own == 0 {
                streams.of_gateway.remove(&gateway);
            }
        }
    }
}

impl Inner {
    /// Whom the certificate names; `None` where there is none and plaintext was asked for.
    fn named(&self, certificate: Option<&[u8]>) -> Result<Option<Peer>, Status> {
        match certificate.map(pki::peer_identity) {
            None if self.limits.plaintext => Ok(None),
            None => Err(Status::unauthenticated("no client certificate (hint: enrol the gateway)")),
            Some(Some(Identity::Gateway { origin, workspace, gateway })) => {
                Ok(Some(Peer { origin, workspace, gateway }))
            }
            Some(_) => Err(Status::permission_denied("the certificate is no gateway's (hint: enrol the gateway)")),
        }
    }

    /// The keys of a gateway may have ended before its certificate.
    fn may_come(&self, peer: &Peer) -> Result<(), Status> {
        // Of a chain that is not known the writer says so.
        let Some(chain) = self.chain(peer.workspace).filter(|_| peer.origin == self.origin) else { return Ok(()) };
        admit::may_come(&chain, peer.gateway).map_err(|reject| Status::failed_precondition(reject.detail))
    }

    /// Who is there: as the certificate says, or where plaintext was asked for as the greeting says.
    fn peer(&self, hello: &wire::Hello, named: Option<Peer>) -> Result<Peer, Status> {
        let said = Peer {
            origin: hello.origin.clone(),
            workspace: WorkspaceId::try_from(hello.workspace.as_ref()).map_err(|_| bad_id())?,
            gateway: GatewayId::try_from(hello.gateway.as_ref()).map_err(|_| bad_id())?,
        };
        if said.origin != self.origin {
            return Err(Status::failed_precondition(
                "this is the ledger of another origin (hint: check the configuration)",
            ));
        }
        if named.is_some_and(|named| named != said) {
            return Err(Status::permission_denied(
                "the certificate is another gateway's (hint: use the one from its enrolment)",
            ));
        }
        Ok(said)
    }

    async fn open(
        &self,
        opening: impl FnOnce(oneshot::Sender<Result<[u64; 2], Unopened>>) -> Opening,
    ) -> Result<[u64; 2], Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        self.writer.send(Request::Open(Box::new(opening(reply)))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(|why| match why {
            Unopened::Later(why) => Status::unavailable(why),
            Unopened::Refused(why) => Status::failed_precondition(why),
        })
    }

    fn last_head(&self, peer: &Peer, hello: &wire::Hello) -> Result<Option<Box<Held>>, Status> {
        let held = self.held_head(peer, &hello.last_head).map_err(|reject| match reject.reason {
            RejectReason::Malformed | RejectReason::FutureVersion => Status::invalid_argument(reject.detail),
            _ => Status::failed_precondition(reject.detail),
        })?;
        Ok(held.map(Box::new))
    }

    fn held_head(&self, peer: &Peer, bytes: &Bytes) -> Result<Option<Held>, Reject> {
        let ledger = self.chains.read().unwrap_or_else(PoisonError::into_inner).ledger.clone();
        match ledger {
            Some(ledger) => admit::held_head(bytes, peer, &ledger),
            None => Ok(None),
        }
    }

    fn chain(&self, workspace: WorkspaceId) -> Option<Arc<Chain>> {
        self.chains.read().unwrap_or_else(PoisonError::into_inner).workspaces.get(&workspace).map(Arc::clone)
    }

    /// Statements of a chain, in order; `None` if the ledger is ending or its store is damaged, which the writer will find.
    async fn statements(&self, chain: Option<WorkspaceId>, serials: Range<u64>) -> Option<Vec<Bytes>> {
        let store = Weak::clone(&self.store);
        let read = move || {
            let store = store.upgrade()?;
            serials.map(|serial| stored_statement(&store, chain, serial).ok()).collect()
        };
        tokio::task::spawn_blocking(read).await.ok()?
    }

    /// Takes a batch of so many records off the workspace's rate; milliseconds to wait if there are none left. A heartbeat
    /// costs as much as a record, and one batch always passes: a limit below a full batch slows, and does not stop.
    fn take_rate(&self, workspace: WorkspaceId, records: u32) -> Result<(), u32> {
        let records = u64::from(records.max(1));
        if self.limits.records_per_second == 0 {
            return Ok(());
        }
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, used) = rates.entry(workspace).or_insert((now, 0));
        if now.duration_since(*since) >= Duration::from_secs(RATE_SECONDS) {
            (*since, *used) = (now, 0);
        }
        if *used > 0 && *used + records > self.limits.records_per_second * RATE_SECONDS {
            let left = Duration::from_secs(RATE_SECONDS).saturating_sub(now.duration_since(*since));
            return Err(u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1));
        }
        *used += records;
        Ok(())
    }
}

fn bad_id() -> Status {
    Status::invalid_argument("workspace and gateway ids have 16 bytes")
}

/// One stream's task.
struct Pump {
    inner: Arc<Inner>,
    stream: u64,
    peer: Peer,
    outbox: mpsc::WeakSender<wire::FromLedger>,
    /// Ends when the writer closes the stream.
    gone: watch::Receiver<()>,
    /// Heads that the writer sent or found good.
    known: KnownHeads,
    /// The last one that was checked here and is not known yet.
    held: Option<Held>,
    hearing: Hearing,
    /// Ends when nobody hears any more.
    heard: oneshot::Receiver<()>,
    /// Batches of this stream on their way to the writer.
    places: Arc<Semaphore>,
    /// Bytes of this stream on their way to the writer.
    room: Arc<Semaphore>,
    /// Its questions on their way to the directory.
    asked: Arc<Semaphore>,
    _guard: Counted,
}

impl Pump {
    async fn run(mut self, mut incoming: Streaming<wire::FromGateway>, lacks: [Range<u64>; 2]) {
        let mut gone = self.gone.clone();
        // A stream that the writer has closed ends at once, whether or not its gateway says anything more.
        let mut on = tokio::select! {
            _ = gone.changed() => false,
            on = self.greet(lacks) => on,
        };
        while on {
            on = tokio::select! {
                _ = gone.changed() => false,
                on = self.step(&mut incoming) => on,
            };
        }
        // A writer that has ended needs no farewell.
        drop(self.inner.writer.send(Request::Close(self.stream)).await);
        // The writer drops the outbox, which wakes whoever sends the answers; what is left of them goes now, or never.
        drop(gone.changed().await);
        tokio::time::timeout(FAREWELL_LIMIT, &mut self.heard).await.ok();
        self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Sends the statements that the gateway lacks, as fast as its line takes them, and has the writer welcome it then; `false`
    /// if it takes none for too long. Whatever these chains have come to, and however often a gateway greets, costs the writer
    /// nothing.
    async fn greet(&self, lacks: [Range<u64>; 2]) -> bool {
        for (chain, lacks) in [None, Some(self.peer.workspace)].into_iter().zip(lacks) {
            let mut from = lacks.start;
            while from < lacks.end {
                let to = lacks.end.min(from + STATEMENTS_AT_ONCE);
                let Some(page) = self.inner.statements(chain, from..to).await else { return false };
                let Some(outbox) = self.outbox.upgrade() else { return false };
                let Some(room) = self.emptied(&outbox).await else { return false };
                for (room, object) in room.zip(page) {
                    room.send(wire::FromLedger { message: Some(Message::Statement(object)) });
                }
                from = to;
            }
        }
        let Some(outbox) = self.outbox.upgrade() else { return false };
        // The writer waits for nobody: it finds all the room that there is.
        self.emptied(&outbox).await.is_some() && self.inner.writer.send(Request::Greeted(self.stream)).await.is_ok()
    }

    /// All the room of the outbox, once what was in it has gone; `None` if that takes too long.
    async fn emptied<'a>(
        &self,
        outbox: &'a mpsc::Sender<wire::FromLedger>,
    ) -> Option<mpsc::PermitIterator<'a, wire::FromLedger>> {
        let all = outbox.reserve_many(outbox.max_capacity());
        tokio::time::timeout(self.inner.limits.idle, all).await.ok()?.ok()
    }

    /// Serves one message; `false` at the end.
    async fn step(&mut self, incoming: &mut Streaming<wire::FromGateway>) -> bool {
        let next = tokio::time::timeout(self.inner.limits.idle, incoming.next()).await;
        let Ok(Some(Ok(message))) = next else { return false };
        match message.message {
            Some(from_gateway::Message::Batch(bytes)) => self.batch(bytes).await,
            Some(from_gateway::Message::RenewCertificate(request)) => self.renew(&request),
            Some(from_gateway::Message::EnrolMember(asked)) => self.enrol(&asked),
            Some(from_gateway::Message::Hello(_)) | None => false,
        }
    }

    fn answer(&self, message: Message) -> bool {
        let Some(outbox) = self.outbox.upgrade() else { return false };
        outbox.try_send(wire::FromLedger { message: Some(message) }).is_ok()
    }

    /// Whose stream it is has proven who it is, whatever the batch says.
    fn refused(&self, reason: RejectReason) {
        if let Some(what) = Refused::of(reason) {
            self.inner.refusals.note(what, self.peer.workspace, self.peer.gateway, clock::now_us());
        }
    }

    async fn batch(&mut self, bytes: Bytes) -> bool {
        let batch = match admit::read(bytes) {
            Ok(batch) => batch,
            Err(reject) => {
                self.refused(reject.reason);
                let rejection =
                    wire::Rejection { reason: reject.reason as i32, detail: reject.detail, ..Default::default() };
                return self.answer(Message::Rejection(rejection));
            }
        };
        let header = &batch.header;
        if let Err(retry_after_ms) = self.inner.take_rate(self.peer.workspace, header.record_count) {
            return self.answer(Message::Pushback(wire::Pushback {
                epoch: header.epoch.into(),
                batch_number: header.batch_number,
                retry_after_ms,
                detail: "the workspace's rate is used up".to_owned(),
            }));
        }
        let Some(chain) = self.inner.chain(self.peer.workspace) else { return false };
        let checked = admit::check(&batch, &self.peer, &chain).and_then(|()| self.held(&header.last_head));
        let held = match checked {
            Ok(held) => held,
            Err(reject) => {
                self.refused(reject.reason);
                return self.answer(Message::Rejection(reject.message(header)));
            }
        };
        let receipts = admit::receipts(&batch);
        // Room and queue are bounded: a full one makes this stream wait, and with it its sender, by the transport's flow
        // control. The permits come back when the writer has answered.
        let bytes = u32::try_from(batch.bytes.len()).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.places).acquire_owned().await;
        let own = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        let shared = Arc::clone(&self.inner.room).acquire_many_owned(bytes).await;
        let (Ok(place), Ok(own), Ok(shared)) = (place, own, shared) else { return false };
        let notes = Notes::of(&batch.records);
        let arrived = Arrived { batch, notes, receipts, held };
        self.inner.writer.send(Request::Batch(self.stream, Box::new(arrived), [place, own, shared])).await.is_ok()
    }

    /// The head that a batch holds, checked as far as it can be here; `None` if there is none, or it is known. A signature
    /// is checked once for each head that is not: many batches hold the same.
    fn held(&mut self, bytes: &Bytes) -> Result<Option<Held>, Reject> {
        if bytes.is_empty() || self.known.knows(bytes) {
            return Ok(None);
        }
        if self.held.as_ref().is_none_or(|held| held.bytes() != bytes) {
            self.held = self.inner.held_head(&self.peer, bytes)?;
        }
        Ok(self.held.clone())
    }

    /// A new certificate, for whom may come: a gateway whose keys are revoked ends with its certificate at the latest.
    fn renew(&self, request: &str) -> bool {
        let Some(chain) = self.inner.chain(self.peer.workspace) else { return false };
        if let Err(reject) = admit::may_come(&chain, self.peer.gateway) {
            tracing::warn!(gateway = %self.peer.gateway, why = reject.detail, "a certificate was not renewed");
            return false;
        }
        match (self.inner.renew)(&self.peer, request) {
            Ok(certificate) => self.answer(Message::Certificate(certificate)),
            Err(why) => {
                tracing::warn!(gateway = %self.peer.gateway, why, "a certificate was not renewed");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
