//! The gRPC side of ingest: one stream for each gateway; decode, check, hand to the writer, pass answers back.
//!
//! What must hold: nothing here decides ([`super::admit`] and the writer do); a stream holds at most so many batches and
//! bytes that are not answered; one that says nothing for too long, or does not read its answers, is closed; what one
//! gateway does costs no other more than its share of the processor.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use custody::{
    head::SignedHead,
    id::{GatewayId, WorkspaceId},
    statement::Chain,
    wire::{self, from_gateway, from_ledger::Message, ingest_server::Ingest},
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request as Call, Response, Status, Streaming};

use super::admit::{self, Peer};
use crate::{
    commit::{Chains, Opening, Request},
    pki::{self, Identity},
};

/// Answers that may wait for one stream: as many as batches in flight, and the statements of a first greeting.
const OUTBOX_MAX: usize = 4_096;
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
    streams: AtomicU32,
    next_stream: AtomicU64,
    rates: Mutex<HashMap<WorkspaceId, (Instant, u64)>>,
    /// Bytes on their way to the writer, of all streams: memory has a bound whatever their number.
    room: Arc<Semaphore>,
    renew: Renew,
}

/// Makes a new certificate from a request, for a peer that proved who it is.
pub type Renew = Arc<dyn Fn(&Peer, &str) -> Result<String, String> + Send + Sync>;

impl IngestService {
    /// Over the writer's queue.
    pub fn new(origin: &str, limits: Limits, writer: mpsc::Sender<Request>, chains: Chains, renew: Renew) -> Self {
        Self {
            inner: Arc::new(Inner {
                origin: origin.to_owned(),
                limits,
                writer,
                chains,
                streams: AtomicU32::new(0),
                next_stream: AtomicU64::new(1),
                rates: Mutex::new(HashMap::new()),
                room: Arc::new(Semaphore::new(
                    usize::try_from(limits.bytes_in_flight_total).unwrap_or(usize::MAX >> 3),
                )),
                renew,
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
        if inner.streams.fetch_add(1, Ordering::AcqRel) >= inner.limits.streams {
            inner.streams.fetch_sub(1, Ordering::AcqRel);
            return Err(Status::resource_exhausted("too many streams (hint: try again in a minute)"));
        }
        let guard = Counted(Arc::clone(&inner));
        let first = tokio::time::timeout(Duration::from_secs(10), incoming.next()).await;
        let Ok(Some(Ok(wire::FromGateway { message: Some(from_gateway::Message::Hello(hello)) }))) = first else {
            return Err(Status::invalid_argument("the first message is not a greeting (hint: send Hello first)"));
        };
        let peer = inner.peer(&hello, certificate.as_deref())?;
        let (outbox, answers) = mpsc::channel(OUTBOX_MAX);
        let stream = inner.next_stream.fetch_add(1, Ordering::AcqRel);
        // The writer holds the only strong end: when it closes a stream, the gateway sees the end of it.
        let answering = outbox.downgrade();
        inner.open(stream, &peer, &hello, outbox).await?;
        let places = Arc::new(Semaphore::new(inner.limits.batches_in_flight as usize));
        let room = Arc::new(Semaphore::new(inner.limits.bytes_in_flight as usize));
        let pump = Pump { inner, stream, peer, outbox: answering, places, room, _guard: guard };
        tokio::spawn(pump.run(incoming));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(Ok))))
    }
}

/// Counts a stream until it is dropped.
struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inner {
    /// Who is there: as the certificate says, or where plaintext was asked for as the greeting says.
    fn peer(&self, hello: &wire::Hello, certificate: Option<&[u8]>) -> Result<Peer, Status> {
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
        let Some(der) = certificate else {
            let refused = || Status::unauthenticated("no client certificate (hint: enrol the gateway)");
            return if self.limits.plaintext { Ok(said) } else { Err(refused()) };
        };
        match pki::peer_identity(der) {
            Some(Identity::Gateway { origin, workspace, gateway })
                if (&origin, workspace, gateway) == (&said.origin, said.workspace, said.gateway) =>
            {
                Ok(said)
            }
            _ => Err(Status::permission_denied(
                "the certificate is another gateway's (hint: use the one from its enrolment)",
            )),
        }
    }

    async fn open(
        &self,
        stream: u64,
        peer: &Peer,
        hello: &wire::Hello,
        outbox: mpsc::Sender<wire::FromLedger>,
    ) -> Result<(), Status> {
        let last_head = match hello.last_head.is_empty() {
            true => None,
            false => {
                Some(SignedHead::parse(&hello.last_head).map_err(|why| Status::invalid_argument(why.to_string()))?)
            }
        };
        let (reply, answer) = oneshot::channel();
        let opening = Opening {
            stream,
            workspace: peer.workspace,
            gateway: peer.gateway,
            last_head,
            ledger_statements: hello.ledger_statements,
            workspace_statements: hello.workspace_statements,
            outbox,
            in_flight: (self.limits.batches_in_flight, self.limits.bytes_in_flight),
            reply,
        };
        let gone = || Status::unavailable("the ledger is ending (hint: try again)");
        self.writer.send(Request::Open(Box::new(opening))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(Status::failed_precondition)
    }

    fn chain(&self, workspace: WorkspaceId) -> Option<Arc<Chain>> {
        self.chains.read().unwrap_or_else(PoisonError::into_inner).get(&workspace).map(Arc::clone)
    }

    /// Takes so many records off the workspace's rate; milliseconds to wait if there are none left.
    fn take_rate(&self, workspace: WorkspaceId, records: u64) -> Result<(), u32> {
        if self.limits.records_per_second == 0 {
            return Ok(());
        }
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, used) = rates.entry(workspace).or_insert((now, 0));
        if now.duration_since(*since) >= Duration::from_secs(RATE_SECONDS) {
            (*since, *used) = (now, 0);
        }
        if *used + records > self.limits.records_per_second * RATE_SECONDS {
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
    /// Batches of this stream on their way to the writer.
    places: Arc<Semaphore>,
    /// Bytes of this stream on their way to the writer.
    room: Arc<Semaphore>,
    _guard: Counted,
}

impl Pump {
    async fn run(self, mut incoming: Streaming<wire::FromGateway>) {
        while let Ok(Some(Ok(message))) = tokio::time::timeout(self.inner.limits.idle, incoming.next()).await {
            let on = match message.message {
                Some(from_gateway::Message::Batch(bytes)) => self.batch(bytes).await,
                Some(from_gateway::Message::RenewCertificate(request)) => self.renew(&request),
                Some(from_gateway::Message::Hello(_)) | None => false,
            };
            // The writer drops the outbox of a stream that it closed.
            if !on || self.outbox.upgrade().is_none_or(|outbox| outbox.is_closed()) {
                break;
            }
        }
        // A writer that has ended needs no farewell.
        drop(self.inner.writer.send(Request::Close(self.stream)).await);
    }

    fn answer(&self, message: Message) -> bool {
        let Some(outbox) = self.outbox.upgrade() else { return false };
        outbox.try_send(wire::FromLedger { message: Some(message) }).is_ok()
    }

    async fn batch(&self, bytes: Bytes) -> bool {
        let batch = match admit::read(bytes) {
            Ok(batch) => batch,
            Err(reject) => {
                let rejection =
                    wire::Rejection { reason: reject.reason as i32, detail: reject.detail, ..Default::default() };
                return self.answer(Message::Rejection(rejection));
            }
        };
        let header = &batch.header;
        if let Err(retry_after_ms) = self.inner.take_rate(self.peer.workspace, u64::from(header.record_count)) {
            return self.answer(Message::Pushback(wire::Pushback {
                epoch: header.epoch.into(),
                batch_number: header.batch_number,
                retry_after_ms,
                detail: "the workspace's rate is used up".to_owned(),
            }));
        }
        let checked = match self.inner.chain(self.peer.workspace) {
            Some(chain) => admit::check(&batch, &self.peer, &chain),
            None => return false,
        };
        if let Err(reject) = checked {
            return self.answer(Message::Rejection(reject.message(header)));
        }
        // Room and queue are bounded: a full one makes this stream wait, and with it its sender, by the transport's flow
        // control. The permits come back when the writer has answered.
        let bytes = u32::try_from(batch.bytes.len()).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.places).acquire_owned().await;
        let own = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        let shared = Arc::clone(&self.inner.room).acquire_many_owned(bytes).await;
        let (Ok(place), Ok(own), Ok(shared)) = (place, own, shared) else { return false };
        self.inner.writer.send(Request::Batch(self.stream, Box::new(batch), [place, own, shared])).await.is_ok()
    }

    fn renew(&self, request: &str) -> bool {
        match (self.inner.renew)(&self.peer, request) {
            Ok(certificate) => self.answer(Message::Certificate(certificate)),
            Err(why) => {
                tracing::warn!(gateway = %self.peer.gateway, why, "a certificate was not renewed");
                true
            }
        }
    }
}
