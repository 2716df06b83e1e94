//! The server: opens, recovers, starts every part in order, serves, and drains in reverse. Only this file knows them all.

use std::{
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

use custody::{policy::Policy, wire::ingest_server::IngestServer};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::{service::Routes, transport::Server};

use self::{
    followers::{read_rules, start_index, start_watching, webhook},
    helpers::{Helpers, broke_off},
    open::Opened,
};
use crate::{
    admin::{AdminService, Authority},
    admit::Peer,
    alarm::{Alarm, Alarms},
    archive::Archive,
    ask::{Asking, Prover},
    clock,
    commit::{Chains, Limits, Parts, REQUESTS_MAX, Request, State, Writer},
    config::Config,
    directory::{ASKS_MAX, Ask, Directory, Unopened},
    exit::ExitReason,
    fence::Fence,
    http,
    index::{Index, check::Checks},
    ingest::{IngestService, Limits as IngestLimits},
    listen::{self, Comers},
    log_view::{FenceState, LogView, report},
    metrics::Metrics,
    pki::{Identity, Pki},
    publish::{PublishError, Publisher, follow_fence, watch_fence},
    store::{Store, StoreError},
    tail::Tail,
    upkeep::{Upkeep, renew_certificates},
    vault::Vault,
    watch::Progress,
};

mod drain;
mod followers;
mod helpers;
mod open;

/// Longest gRPC message from a gateway: a batch of 1 MiB and its frame.
const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Streams of one connection: a gateway has one, and an administrator's command makes one call at a time. Without TLS a program
/// that stands for many gateways puts some dozens on one.
const STREAMS_OF_CONNECTION_MAX: u32 = 64;

/// Connections of those who ask: people with a console each, and some programs.
const ASKING_MAX: usize = 256;

/// Why a port ended that gives no reason.
const NOBODY_LISTENS: &str = "it takes no connections any more (hint: start the ledger again)";

/// How long the end waits for threads that are in the store: a write and a segment that is being sealed take less.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Why the ledger did not start, or ended: what to exit with, and what to say.
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub reason: ExitReason,
    /// For people.
    pub text: String,
}

impl Ended {
    fn new(reason: ExitReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    fn fenced() -> Self {
        Self::new(ExitReason::Fenced, "another writer owns the log")
    }

    fn poisoned(text: impl Into<String>) -> Self {
        Self::new(ExitReason::Poisoned, text)
    }

    fn failed(what: &str, why: &dyn std::error::Error) -> Self {
        Self::new(ExitReason::Failure, format!("failed to {what}: {}", report(why)))
    }

    /// The store cannot be used; of one that is damaged another start makes nothing better.
    fn store(what: &str, why: &StoreError) -> Self {
        let failed = Self::failed(what, why);
        if why.is_damaged() { Self { reason: ExitReason::Configuration, ..failed } } else { failed }
    }

    /// Starting again does not help before somebody has mended a file.
    fn unusable(why: &dyn std::error::Error) -> Self {
        Self::new(ExitReason::Configuration, format!("failed to {}", report(why)))
    }
}

/// Runs a ledger until it is told to end. `ready` is told the addresses in use once it serves.
///
/// # Errors
/// [`Ended`] for everything but a clean drain.
pub async fn run(config: Config, ready: Option<oneshot::Sender<Addresses>>) -> Result<(), Ended> {
    let mut asked = Box::pin(asked_to_end());
    let started = tokio::select! {
        started = start(&config) => started?,
        // What a start leaves behind the next one completes, wherever it was.
        () = &mut asked => {
            tracing::info!("ended before it served: this start accepted nothing");
            return Ok(());
        }
    };
    let (parts, read_only) = started;
    serve(config, parts, read_only, ready, asked).await
}

/// Opens everything and claims the next term; with it, why the ledger is read-only if its data folder is an old copy.
async fn start(config: &Config) -> Result<(Opened, Option<String>), Ended> {
    let mut parts = open::open(config).await?;
    let started = parts.publisher.start(std::mem::take(&mut parts.genesis)).await;
    let read_only = match started {
        Ok(()) => None,
        Err(why @ (PublishError::Stale | PublishError::Fenced)) => {
            let (own, fences) = (parts.publisher.term, parts.publisher.fence_state.term());
            let text = format!("a stale copy of term {own}, and the fence is at {fences} or later: {}", report(&why));
            parts.alarms.raise(Alarm::StaleDatabase, text.clone());
            Some(text)
        }
        Err(why @ PublishError::LogKey) => return Err(Ended::unusable(&why)),
        Err(PublishError::Store(why)) => return Err(Ended::store("start the log", &why)),
        Err(why) => return Err(Ended::failed("start the log", &why)),
    };
    Ok((parts, read_only))
}

/// Where the ledger listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC.
    pub grpc: std::net::SocketAddr,
    /// HTTP.
    pub http: std::net::SocketAddr,
    /// gRPC of those who ask.
    pub ask: std::net::SocketAddr,
}

impl Authority for Pki {
    fn issue(&self, request: &str, identity: &Identity) -> Result<String, String> {
        Self::issue(self, request, identity)
    }

    fn certificates(&self) -> Vec<(String, u64)> {
        Self::certificates(self)
    }
}

/// What every part shares with the writer.
struct Shared {
    requests: mpsc::Sender<Request>,
    directory: mpsc::Sender<Ask>,
    tail: Arc<Tail>,
    chains: Chains,
    view: Arc<RwLock<LogView>>,
    fence: Arc<FenceState>,
    mark: watch::Receiver<u64>,
    alarms: Alarms,
    metrics: Metrics,
    pki: Arc<Pki>,
    /// How far the watch is.
    progress: Progress,
}

async fn serve(
    config: Config,
    opened: Opened,
    read_only: Option<String>,
    ready: Option<oneshot::Sender<Addresses>>,
    asked: impl Future<Output = ()>,
) -> Result<(), Ended> {
    let serving = read_only.is_none();
    let (fence, term) = (opened.publisher.fence.clone(), opened.publisher.term);
    let alarms = opened.alarms.clone();
    let store = Arc::downgrade(&opened.store);
    let policy = opened.policy.clone();
    let (wake, woken) = mpsc::channel(1);
    let (publisher, shared, mut writer, directory) = start_writer(&config, opened, read_only, wake.clone())?;
    let archive = publisher.archive.clone();
    let (index, indexing) = start_index(&config, &shared)?;
    let asking = asking(&store, Arc::clone(&index.0), (archive.clone(), policy), &shared)?;
    let rules = read_rules(&config)?;
    let watching_records = start_watching(&config, &rules, &shared, &index.0)?;
    let requests = shared.requests.clone();
    // A stale copy owns no term: whatever waits in it was published by another, or never will be.
    let mut publishing: JoinHandle<PublishError> = match serving {
        true => tokio::spawn(publisher.run(woken, requests.clone())),
        false => tokio::spawn(std::future::pending()),
    };
    let mut helpers = start_helpers(&config, &shared, directory)?;
    let mut watching = start_watch(&config, &shared, fence, term, serving);
    let services = Services {
        config: config.clone(),
        pki: Arc::clone(&shared.pki),
        ingest: ingest_service(&config, &shared, Weak::clone(&store)),
        admin: admin_service(&config, &shared, (rules, index), Weak::clone(&store)),
        asking,
    };
    let state = http::state(&shared.metrics, &shared.alarms, &shared.view, archive, requests.clone());
    let outcome = match services.listen(&mut helpers, state).await {
        Ok(addresses) => {
            if let Some(ready) = ready {
                ready.send(addresses).ok();
            }
            tracing::info!(grpc = %addresses.grpc, http = %addresses.http, term, "serving");
            let ended = tokio::select! {
                // Others notice when the writer ends, too: it is the one to be named.
                biased;
                () = asked => None,
                _ = &mut writer.ended => Some(Ended::poisoned("the writer broke off (hint: the log has why)")),
                why = &mut publishing => Some(match why {
                    Ok(PublishError::Fenced) => Ended::fenced(),
                    Ok(why) => Ended::poisoned(report(&why)),
                    Err(_) => broke_off(ExitReason::Poisoned, "the publisher"),
                }),
                ended = &mut watching => Some(match ended {
                    Ok(()) => Ended::fenced(),
                    Err(_) => broke_off(ExitReason::Failure, "the watch of the fence"),
                }),
                ended = helpers.ended() => Some(ended),
            };
            let limit = Duration::from_secs(config.drain.seconds_max);
            match ended {
                None => drain::drain(limit, &requests, shared.mark.clone(), serving).await,
                Some(ended) => Err(ended),
            }
        }
        Err(why) => Err(why),
    };
    watching.abort();
    helpers.abort();
    drop((shared, wake));
    // A task that has ended was heard already, and is not to be asked again.
    if !publishing.is_finished() {
        publishing.abort();
        publishing.await.ok();
    }
    // Before the writer: it may wait for its word.
    watching_records.end().await;
    indexing.end().await;
    close(requests, writer.thread, store).await;
    alarms.keep_pending();
    outcome
}

/// Ends the writer, whatever streams still hold, and waits until nobody has the store open: a process that ends while a
/// thread is in RocksDB is aborted by it, and its exit code says nothing.
async fn close(requests: mpsc::Sender<Request>, writer: std::thread::JoinHandle<()>, store: Weak<Store>) {
    requests.send(Request::End).await.ok();
    let closed = async {
        tokio::task::spawn_blocking(move || writer.join()).await.ok();
        while store.strong_count() > 0 {
            clock::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(CLOSE_LIMIT, closed).await.is_err() {
        tracing::warn!("the store is still in use at the end");
    }
}

/// The writer's thread.
struct Running {
    thread: std::thread::JoinHandle<()>,
    /// Answers when it has ended, by a panic too.
    ended: oneshot::Receiver<()>,
}

/// The writer's thread, and what others share with it.
fn start_writer(
    config: &Config,
    opened: Opened,
    read_only: Option<String>,
    wake: mpsc::Sender<()>,
) -> Result<(Publisher, Shared, Running, oneshot::Receiver<()>), Ended> {
    let Opened { store, alarms, metrics, publisher, keys: [record, head], own_keys, roots, pki, vault, .. } = opened;
    let (requests, queue) = mpsc::channel(REQUESTS_MAX);
    let tail = Tail::open(&store).map_err(|why| Ended::store("read the store", &why))?;
    let (directory, directory_ended) = start_directory(config, vault, &store, requests.clone())?;
    let shared = Shared {
        requests,
        directory,
        tail: Arc::new(tail),
        chains: Chains::default(),
        view: Arc::clone(&publisher.view),
        fence: Arc::clone(&publisher.fence_state),
        mark: publisher.mark.subscribe(),
        alarms,
        metrics,
        pki,
        progress: Progress::default(),
    };
    let parts = Parts {
        store,
        origin: config.origin.clone(),
        head_key: head,
        record_key: record,
        own_keys,
        term: publisher.term,
        chains: Arc::clone(&shared.chains),
        tail: Arc::clone(&shared.tail),
        view: Arc::clone(&shared.view),
        fence: Arc::clone(&shared.fence),
        publisher: wake,
        mark: shared.mark.clone(),
        alarms: shared.alarms.clone(),
        metrics: shared.metrics.clone(),
        limits: limits(config),
        roots,
    };
    let mut writer = Writer::load(parts).map_err(|why| Ended::store("read the store", &why))?;
    if let Some(why) = read_only {
        writer.set_state(State::ReadOnly(why));
    }
    let (runs, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
        let _runs = runs;
        writer.run(queue);
    });
    let thread = thread.map_err(|why| Ended::failed("start the writer", &why))?;
    Ok((publisher, shared, Running { thread, ended }, directory_ended))
}

/// The directory's thread: where it is asked, and what hears its end. It ends when nobody can ask any more.
fn start_directory(
    config: &Config,
    vault: Vault,
    store: &Arc<Store>,
    requests: mpsc::Sender<Request>,
) -> Result<(mpsc::Sender<Ask>, oneshot::Receiver<()>), Ended> {
    let directory = Directory::open(&config.origin, vault, store, requests).map_err(|why| match why {
        Unopened::Store(why) => Ended::store("read the directory", &why),
        Unopened::Vault(why) => Ended::unusable(&why),
    })?;
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let (runs, ended) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("directory".to_owned()).spawn(move || {
        let _runs = runs;
        directory.run(asked);
    });
    thread.map_err(|why| Ended::failed("start the directory", &why))?;
    Ok((asks, ended))
}

/// The task that looks at the fence: for a writer until another has come, for a stale copy for ever.
fn start_watch(config: &Config, shared: &Shared, fence: Fence, term: u64, serving: bool) -> JoinHandle<()> {
    let every = Duration::from_secs(config.fence.read_seconds);
    let (view, state, alarms) = (Arc::clone(&shared.view), Arc::clone(&shared.fence), shared.alarms.clone());
    if serving {
        return tokio::spawn(watch_fence(fence, view, state, alarms, term, every));
    }
    let index = view.read().unwrap_or_else(PoisonError::into_inner).tree.size();
    tokio::spawn(follow_fence(fence, index, state, alarms, every))
}

fn asking(
    store: &Weak<Store>,
    index: Arc<Index>,
    (archive, policy): (Archive, Policy),
    shared: &Shared,
) -> Result<Asking, Ended> {
    let store = store.upgrade().ok_or_else(|| Ended::new(ExitReason::Failure, "the store was closed"))?;
    let queues = (shared.requests.clone(), shared.directory.clone());
    let prover = Prover::new(archive, policy, shared.mark.clone(), shared.alarms.clone());
    let asking = Asking::open(index, &store, Arc::clone(&shared.chains), queues, prover, shared.metrics.clone());
    asking.map_err(|why| Ended::store("open the key of cursors", &why))
}

/// Tasks that look at something every so often.
fn start_helpers(config: &Config, shared: &Shared, directory: oneshot::Receiver<()>) -> Result<Helpers, Ended> {
    let (disk_low_bytes, lag_max) = Upkeep::bounds(config);
    let upkeep = Upkeep {
        writer: shared.requests.clone(),
        mark: shared.mark.clone(),
        view: Arc::clone(&shared.view),
        fence: Arc::clone(&shared.fence),
        alarms: shared.alarms.clone(),
        metrics: shared.metrics.clone(),
        data: config.paths.data.clone(),
        disk_low_bytes,
        lag_max,
    };
    let data = config.paths.data.clone();
    let (pki, alarms) = (Arc::clone(&shared.pki), shared.alarms.clone());
    let mut helpers = Helpers::default();
    let tick = tick(shared.requests.clone(), data, limits(config), shared.metrics.clone());
    helpers.spawn("the directory", async move {
        directory.await.ok();
        "it answers nobody any more (hint: the log has why)".to_owned()
    });
    helpers.spawn_with_writer("the writer's clock", tick);
    helpers.spawn_with_writer("the look at disk and lag", upkeep.run());
    helpers.spawn_with_writer("the renewal of certificates", renew_certificates(pki, alarms));
    if let Some(webhook) = webhook(config, shared)? {
        helpers.spawn_with_writer("the webhook", webhook.run());
    }
    Ok(helpers)
}

fn admin_service(
    config: &Config,
    shared: &Shared,
    (rules, index): (Arc<str>, (Arc<Index>, Checks)),
    store: Weak<Store>,
) -> AdminService {
    AdminService {
        origin: config.origin.clone(),
        writer: shared.requests.clone(),
        tail: Arc::clone(&shared.tail),
        index,
        watch: shared.progress.clone(),
        chains: Arc::clone(&shared.chains),
        rules,
        replays: Arc::new(Semaphore::new(1)),
        directory: shared.directory.clone(),
        store,
        mark: shared.mark.clone(),
        view: Arc::clone(&shared.view),
        fence: Arc::clone(&shared.fence),
        alarms: shared.alarms.clone(),
        authority: Arc::clone(&shared.pki) as Arc<dyn Authority>,
        plaintext: config.listen.plaintext_loopback,
        archive: "folder, not WORM".to_owned(),
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        cut_age_us: config.segment.age_seconds * 1_000_000,
        heartbeat_age_us: config.segment.heartbeat_age_seconds * 1_000_000,
        workspace_bytes: if config.ingest.disk_bytes_max == 0 { u64::MAX } else { config.ingest.disk_bytes_max },
        cut_bytes: config.segment.bytes_max,
        cut_leaves: u64::from(config.segment.leaves_max),
        unpublished_max: u64::from(config.publish.unarchived_segments_max),
        disk_low_bytes: config.store.disk_full_bytes,
        ..Limits::default()
    }
}

fn ingest_service(config: &Config, shared: &Shared, store: Weak<Store>) -> IngestService {
    let limits = IngestLimits {
        batches_in_flight: config.ingest.batches_in_flight_max,
        bytes_in_flight: config.ingest.bytes_in_flight_max,
        bytes_in_flight_total: config.ingest.bytes_in_flight_total_max,
        streams: config.ingest.streams_max,
        records_per_second: config.ingest.records_per_second_max,
        idle: Duration::from_secs(config.ingest.idle_seconds_max),
        plaintext: config.listen.plaintext_loopback,
    };
    let pki = Arc::clone(&shared.pki);
    let renew = move |peer: &Peer, request: &str| {
        let identity =
            Identity::Gateway { origin: peer.origin.clone(), workspace: peer.workspace, gateway: peer.gateway };
        pki.issue(request, &identity)
    };
    let queues = (shared.requests.clone(), shared.directory.clone());
    let refusals = shared.alarms.refusals().clone();
    IngestService::new(&config.origin, limits, queues, Arc::clone(&shared.chains), Arc::new(renew), (store, refusals))
}

/// What answers on the ports.
struct Services {
    config: Config,
    pki: Arc<Pki>,
    ingest: IngestService,
    admin: AdminService,
    asking: Asking,
}

impl Services {
    async fn listen(self, helpers: &mut Helpers, http: http::HttpState) -> Result<Addresses, Ended> {
        let bind = |why: std::io::Error| Ended::failed("listen (hint: is another process on this port?)", &why);
        if !self.config.listen.plaintext_loopback {
            let hint =
                "hint: certificate and key in the folder tls/ belong together; put it back from its backup, whole";
            let unusable = |why: String| Ended::new(ExitReason::Configuration, format!("failed to {why}\n{hint}"));
            listen::check(&self.pki.server_tls()).map_err(unusable)?;
        }
        let grpc = TcpListener::bind(self.config.listen.grpc).await.map_err(bind)?;
        let web = TcpListener::bind(self.config.listen.http).await.map_err(bind)?;
        let ask = TcpListener::bind(self.config.listen.ask).await.map_err(bind)?;
        let address = |listener: &TcpListener| listener.local_addr().map_err(bind);
        let addresses = Addresses { grpc: address(&grpc)?, http: address(&web)?, ask: address(&ask)? };
        let questions = self.serve_questions(ask)?;
        helpers.spawn("the port of those who ask", async move {
            questions.await.map_or_else(|why| why, |()| NOBODY_LISTENS.to_owned())
        });
        helpers.spawn("the HTTP port", async move {
            http::serve(web, http).await;
            NOBODY_LISTENS.to_owned()
        });
        helpers.spawn("the gRPC port", async move {
            self.serve_grpc(grpc).await.map_or_else(|why| why, |()| NOBODY_LISTENS.to_owned())
        });
        Ok(addresses)
    }

    /// Questions: anybody may come, and shows a token with each.
    fn serve_questions(
        &self,
        listener: TcpListener,
    ) -> Result<impl Future<Output = Result<(), String>> + Send + use<>, Ended> {
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .max_concurrent_streams(STREAMS_OF_CONNECTION_MAX)
            .accept_http1(true)
            .add_routes(Routes::from(self.asking.clone().router()));
        let secure = match self.config.listen.plaintext_loopback {
            true => Err(listener),
            false => {
                let pki = Arc::clone(&self.pki);
                let unusable = |why: String| Ended::new(ExitReason::Configuration, format!("failed to {why}"));
                Ok(listen::secure(listener, ASKING_MAX, pki, Comers::Anybody).map_err(unusable)?)
            }
        };
        Ok(async move {
            let served = match secure {
                Ok(connections) => router.serve_with_incoming(connections).await,
                Err(listener) => router.serve_with_incoming(listen::plain(listener, ASKING_MAX)).await,
            };
            served.map_err(|why| report(&why))
        })
    }

    async fn serve_grpc(self, listener: TcpListener) -> Result<(), String> {
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .max_concurrent_streams(STREAMS_OF_CONNECTION_MAX)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(IngestServer::new(self.ingest).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(self.admin.server());
        let streams = self.config.ingest.streams_max as usize;
        let served = match self.config.listen.plaintext_loopback {
            true => router.serve_with_incoming(listen::plain(listener, streams)).await,
            false => router.serve_with_incoming(listen::secure(listener, streams, self.pki, Comers::Certified)?).await,
        };
        served.map_err(|why| report(&why))
    }
}

/// Once a second: the writer looks at what is due; the disk is looked at here.
async fn tick(requests: mpsc::Sender<Request>, data: std::path::PathBuf, limits: Limits, metrics: Metrics) {
    loop {
        clock::sleep(Duration::from_secs(1)).await;
        let free = rustix::fs::statvfs(&data).map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize);
        metrics.set("custody_disk_free_bytes", free);
        if requests.send(Request::Tick { disk_low: free < limits.disk_low_bytes }).await.is_err() {
            return;
        }
    }
}

/// Waits for SIGTERM or SIGINT. They are heard from the call on, not from the first wait: whoever was told that this ledger
/// serves may end it at once, and ends it with a drain.
fn asked_to_end() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut int)) = signals else { return std::future::pending().await };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}
