//! The server: opens, recovers, starts every part in order, serves, and drains in reverse. Only this file knows them all.

use std::{
    fs,
    path::Path,
    sync::{Arc, RwLock, Weak},
    time::Duration,
};

use bytes::Bytes;
use custody::{
    hash::sha256,
    log::encode_entry,
    policy::Policy,
    statement::Signed,
    wire::{admin_server::AdminServer, ingest_server::IngestServer, log_entry},
};
use ed25519_dalek::SigningKey;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::transport::Server;

use crate::{
    admin::{AdminService, Authority},
    admit::Peer,
    alarm::{Alarm, Alarms},
    archive::Archive,
    clock,
    commit::{Chains, Limits, Parts, REQUESTS_MAX, Request, State, Writer},
    config::Config,
    durable,
    exit::ExitReason,
    fence::Fence,
    http,
    ingest::{IngestService, Limits as IngestLimits},
    keys, listen,
    log_view::{FenceState, LogView, report},
    metrics::Metrics,
    own_keys::OwnKeys,
    pki::{Identity, Pki},
    publish::{PublishError, Publisher, watch_fence},
    store::{Family, Store, StoreError, statement_key},
    upkeep::Upkeep,
    vault::Vault,
};

mod drain;

/// Longest gRPC message from a gateway: a batch of 1 MiB and its frame.
const MESSAGE_BYTES_MAX: usize = 2 << 20;

/// Where the alarms that stand outlive a restart.
const ALARMS_FILE: &str = "alarms.json";
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

    fn failed(what: &str, why: &dyn std::error::Error) -> Self {
        Self::new(ExitReason::Failure, format!("failed to {what}: {}", report(why)))
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
    let mut parts = open(&config).await?;
    let started = parts.publisher.start(std::mem::take(&mut parts.genesis)).await;
    let read_only = match started {
        Ok(()) => None,
        Err(why @ (PublishError::Stale | PublishError::Fenced)) => {
            parts.alarms.raise(Alarm::StaleDatabase, report(&why));
            Some(report(&why))
        }
        Err(why) => return Err(Ended::failed("start the log", &why)),
    };
    serve(config, parts, read_only, ready).await
}

/// Where the ledger listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// gRPC.
    pub grpc: std::net::SocketAddr,
    /// HTTP.
    pub http: std::net::SocketAddr,
}

impl Authority for Pki {
    fn issue(&self, request: &str, identity: &Identity) -> Result<String, String> {
        Self::issue(self, request, identity)
    }

    fn certificates(&self) -> Vec<(String, u64)> {
        Self::certificates(self)
    }
}

/// What is open before anything is served.
struct Opened {
    store: Arc<Store>,
    alarms: Alarms,
    metrics: Metrics,
    publisher: Publisher,
    keys: [SigningKey; 2],
    own_keys: OwnKeys,
    policy: Policy,
    pki: Arc<Pki>,
    genesis: Vec<Bytes>,
}

async fn open(config: &Config) -> Result<Opened, Ended> {
    let no_policy = |why: &dyn std::fmt::Display| {
        let text = format!(
            "failed to read the audit policy {}: {why}\nhint: put back the one that `ledger init` wrote, or its backup",
            config.paths.policy.display()
        );
        Ended::new(ExitReason::Configuration, text)
    };
    let policy = fs::read(&config.paths.policy).map_err(|why| no_policy(&why))?;
    let policy = Policy::parse(&policy).map_err(|why| no_policy(&why))?;
    let [record, head, log] = open_secrets(config)?;
    let staging = config.paths.data.join("staging");
    durable::create_dir(&staging, 0o700).map_err(|why| Ended::failed("make the data folder", &why))?;
    let alarms = Alarms::kept(&config.paths.data.join(ALARMS_FILE));
    let memory = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let (cache_bytes, write_buffer_bytes) = (memory(config.store.cache_bytes), memory(config.store.write_buffer_bytes));
    let store =
        Store::open(&config.paths.data.join("store"), cache_bytes, write_buffer_bytes).map_err(|why| match why {
            StoreError::Newer(_) => {
                alarms.raise(Alarm::StoreFormat, why.to_string());
                Ended::unusable(&why)
            }
            why => Ended::failed("open the store", &why),
        })?;
    let store = Arc::new(store);
    let limit = Duration::from_secs(config.archive.request_seconds_max);
    let used = |name: &str| store.number(name).map_err(|why| Ended::failed("read the store", &why));
    let archive = Archive::folder(&config.archive.folder, limit, used("published_size")?.is_some())
        .map_err(|why| Ended::failed("open the archive", &why))?;
    let writer = writer_digest(&config.paths.data);
    let used_before = used("term")?.is_some();
    let fence = Fence::folder(&config.fence.folder, &config.origin, writer, used_before).await;
    let fence = fence.map_err(|why| Ended::failed("open the fence", &why))?;
    let broken = |why: StoreError| Ended::failed("read the store", &why);
    let genesis =
        take_genesis(&store, &config.paths.genesis).map_err(|why| Ended::new(ExitReason::Configuration, why))?;
    let view = Publisher::load_view(&store, &config.origin, &log).map_err(broken)?;
    let mark = store.number("queue_mark").map_err(broken)?.unwrap_or(0);
    let roots = policy.roots().map_err(|why| Ended::new(ExitReason::Configuration, why.to_string()))?;
    let chain = crate::commit::ledger_chain(&store, &config.origin, roots).map_err(broken)?;
    let own_keys = OwnKeys::of(&record, &head, &log);
    own_keys.check(&chain).map_err(|why| Ended::new(ExitReason::Configuration, why))?;
    let publisher = Publisher {
        store: Arc::clone(&store),
        archive,
        fence,
        staging,
        origin: config.origin.clone(),
        key: log,
        term: 0,
        incarnation: chain.incarnation(),
        view: Arc::new(RwLock::new(view)),
        fence_state: Arc::new(FenceState::default()),
        alarms: alarms.clone(),
        mark: watch::Sender::new(mark),
        pending_mark: mark,
        untold: Vec::new(),
    };
    let pki = Pki::open(config).map_err(|why| Ended::unusable(&why))?;
    Ok(Opened {
        store,
        alarms,
        metrics: Metrics::new(),
        publisher,
        keys: [record, head],
        own_keys,
        policy,
        pki: Arc::new(pki),
        genesis,
    })
}

/// The keys for records, heads and the log. The vault is opened, too, although nothing needs it yet: a passphrase that does
/// not fit or a damaged file must show at a start, while there is a backup, and not when a name is to be erased.
fn open_secrets(config: &Config) -> Result<[SigningKey; 3], Ended> {
    let passphrase = || {
        keys::Passphrase::from_places(&config.keys.passphrase_file, &config.keys.passphrase_variable)
            .map_err(|why| Ended::unusable(&why))
    };
    let sealing = passphrase()?;
    let load = |name: &str| {
        let path = config.paths.keys.join(name);
        keys::load(&path, sealing.as_ref()).map_err(|why| Ended::unusable(&why))
    };
    let own = [load("record.key")?, load("head.key")?, load("log.key")?];
    Vault::open(&config.paths.vault, passphrase()?).map_err(|why| Ended::unusable(&why))?;
    Ok(own)
}

/// Tells this machine and data directory from others, without naming them.
fn writer_digest(data: &Path) -> [u8; 32] {
    use std::os::unix::fs::MetadataExt as _;
    let machine = fs::read("/etc/machine-id").unwrap_or_default();
    let path = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let inode = fs::metadata(&path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
    let text = format!("{}\n{}\n{}", path.display(), inode.0, inode.1);
    sha256(&[b"custody/v1/writer\n", &machine, b"\n", text.as_bytes()])
}

/// At the first start: the statements that `init` made go into the store, and become the log's first entries.
fn take_genesis(store: &Store, folder: &Path) -> Result<Vec<Bytes>, String> {
    let read = |why: StoreError| report(&why);
    if store.last(Family::Log, &[]).map_err(read)?.is_some() {
        return Ok(Vec::new());
    }
    let listing = fs::read_dir(folder)
        .map_err(|why| format!("failed to read the first statements: {why} (hint: ledger init)"))?;
    let mut files: Vec<_> = listing.filter_map(Result::ok).map(|file| file.path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "stmt"));
    files.sort();
    let mut change = store.change();
    let mut entries = Vec::new();
    for path in files {
        let object = Bytes::from(fs::read(&path).map_err(|why| format!("failed to read a first statement: {why}"))?);
        let signed = Signed::parse(&object).map_err(|why| format!("a first statement is not in form: {why}"))?;
        let key = statement_key(signed.workspace(), signed.statement.serial);
        change.put(Family::Statements, key, [&0_u64.to_be_bytes()[..], &object].concat());
        entries.push(Bytes::from(encode_entry(log_entry::Entry::Statement(object))));
    }
    store.commit(change).map_err(read)?;
    Ok(entries)
}

/// What every part shares with the writer.
struct Shared {
    requests: mpsc::Sender<Request>,
    chains: Chains,
    view: Arc<RwLock<LogView>>,
    fence: Arc<FenceState>,
    mark: watch::Receiver<u64>,
    alarms: Alarms,
    metrics: Metrics,
    pki: Arc<Pki>,
}

async fn serve(
    config: Config,
    opened: Opened,
    read_only: Option<String>,
    ready: Option<oneshot::Sender<Addresses>>,
) -> Result<(), Ended> {
    let serving = read_only.is_none();
    let (fence, term) = (opened.publisher.fence.clone(), opened.publisher.term);
    let store = Arc::downgrade(&opened.store);
    let (wake, woken) = mpsc::channel(1);
    let (publisher, shared, writer) = start_writer(&config, opened, read_only, wake.clone())?;
    let archive = publisher.archive.clone();
    let requests = shared.requests.clone();
    // A stale copy owns no term: whatever waits in it was published by another, or never will be.
    let mut publishing: JoinHandle<PublishError> = match serving {
        true => tokio::spawn(publisher.run(woken, requests.clone())),
        false => tokio::spawn(std::future::pending()),
    };
    let mut helpers = start_helpers(&config, &shared);
    let every = Duration::from_secs(config.fence.read_seconds);
    let (view, state) = (Arc::clone(&shared.view), Arc::clone(&shared.fence));
    let mut watching = match serving {
        true => tokio::spawn(watch_fence(fence, view, state, shared.alarms.clone(), term, every)),
        false => tokio::spawn(std::future::pending()),
    };
    let services = Services {
        config: config.clone(),
        pki: Arc::clone(&shared.pki),
        ingest: ingest_service(&config, requests.clone(), &shared.chains, &shared.pki),
        admin: admin_service(&config, &shared),
    };
    let state = http::state(&shared.metrics, &shared.alarms, &shared.view, archive, requests.clone());
    let asked = asked_to_end();
    let outcome = match services.listen(&mut helpers, state).await {
        Ok(addresses) => {
            if let Some(ready) = ready {
                ready.send(addresses).ok();
            }
            tracing::info!(grpc = %addresses.grpc, http = %addresses.http, term, "serving");
            let fenced = || Ended::new(ExitReason::Fenced, "another writer owns the log");
            let ended = tokio::select! {
                () = asked => None,
                why = &mut publishing => Some(match why {
                    Ok(PublishError::Fenced) => fenced(),
                    Ok(why) => Ended::new(ExitReason::Poisoned, report(&why)),
                    Err(_) => Ended::new(ExitReason::Poisoned, "the publisher broke off (hint: the log has why)"),
                }),
                _ = &mut watching => Some(fenced()),
            };
            let limit = Duration::from_secs(config.drain.seconds_max);
            match ended {
                None => drain::drain(limit, &requests, shared.mark.clone(), serving).await,
                Some(ended) => Err(ended),
            }
        }
        Err(why) => Err(why),
    };
    helpers.push(watching);
    for helper in helpers {
        helper.abort();
    }
    drop((shared, wake));
    // A task that has ended was heard already, and is not to be asked again.
    if !publishing.is_finished() {
        publishing.abort();
        publishing.await.ok();
    }
    close(requests, writer, store).await;
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

/// The writer's thread, and what others share with it.
fn start_writer(
    config: &Config,
    opened: Opened,
    read_only: Option<String>,
    wake: mpsc::Sender<()>,
) -> Result<(Publisher, Shared, std::thread::JoinHandle<()>), Ended> {
    let Opened { store, alarms, metrics, publisher, keys: [record, head], own_keys, policy, pki, .. } = opened;
    let (requests, queue) = mpsc::channel(REQUESTS_MAX);
    let shared = Shared {
        requests,
        chains: Chains::default(),
        view: Arc::clone(&publisher.view),
        fence: Arc::clone(&publisher.fence_state),
        mark: publisher.mark.subscribe(),
        alarms,
        metrics,
        pki,
    };
    let roots = policy.roots().map_err(|why| Ended::new(ExitReason::Configuration, why.to_string()))?;
    let parts = Parts {
        store,
        origin: config.origin.clone(),
        head_key: head,
        record_key: record,
        own_keys,
        term: publisher.term,
        chains: Arc::clone(&shared.chains),
        view: Arc::clone(&shared.view),
        fence: Arc::clone(&shared.fence),
        publisher: wake,
        mark: shared.mark.clone(),
        alarms: shared.alarms.clone(),
        metrics: shared.metrics.clone(),
        limits: limits(config),
        roots,
    };
    let mut writer = Writer::load(parts).map_err(|why| Ended::failed("read the store", &why))?;
    if let Some(why) = read_only {
        writer.set_state(State::ReadOnly(why));
    }
    let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || writer.run(queue));
    Ok((publisher, shared, thread.map_err(|why| Ended::failed("start the writer", &why))?))
}

/// Tasks that look at something every so often.
fn start_helpers(config: &Config, shared: &Shared) -> Vec<JoinHandle<()>> {
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
    vec![
        tokio::spawn(tick(shared.requests.clone(), data, limits(config), shared.metrics.clone())),
        tokio::spawn(renew_certificates(Arc::clone(&shared.pki), shared.alarms.clone())),
        tokio::spawn(upkeep.run()),
    ]
}

fn admin_service(config: &Config, shared: &Shared) -> AdminService {
    AdminService {
        origin: config.origin.clone(),
        writer: shared.requests.clone(),
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
    }
}

fn ingest_service(config: &Config, requests: mpsc::Sender<Request>, chains: &Chains, pki: &Arc<Pki>) -> IngestService {
    let limits = IngestLimits {
        batches_in_flight: config.ingest.batches_in_flight_max,
        bytes_in_flight: config.ingest.bytes_in_flight_max,
        bytes_in_flight_total: config.ingest.bytes_in_flight_total_max,
        streams: config.ingest.streams_max,
        records_per_second: config.ingest.records_per_second_max,
        idle: Duration::from_secs(config.ingest.idle_seconds_max),
        plaintext: config.listen.plaintext_loopback,
    };
    let pki = Arc::clone(pki);
    let renew = move |peer: &Peer, request: &str| {
        let identity =
            Identity::Gateway { origin: peer.origin.clone(), workspace: peer.workspace, gateway: peer.gateway };
        pki.issue(request, &identity)
    };
    IngestService::new(&config.origin, limits, requests, Arc::clone(chains), Arc::new(renew))
}

/// What answers on the ports.
struct Services {
    config: Config,
    pki: Arc<Pki>,
    ingest: IngestService,
    admin: AdminService,
}

impl Services {
    async fn listen(self, helpers: &mut Vec<JoinHandle<()>>, http: http::HttpState) -> Result<Addresses, Ended> {
        let bind = |why: std::io::Error| Ended::failed("listen (hint: is another process on this port?)", &why);
        if !self.config.listen.plaintext_loopback {
            let hint = "(hint: certificate and key in the folder tls/ belong together)";
            let unusable = |why: String| Ended::new(ExitReason::Configuration, format!("failed to {why} {hint}"));
            listen::check(&self.pki.server_tls()).map_err(unusable)?;
        }
        let grpc = TcpListener::bind(self.config.listen.grpc).await.map_err(bind)?;
        let web = TcpListener::bind(self.config.listen.http).await.map_err(bind)?;
        let addresses = Addresses { grpc: grpc.local_addr().map_err(bind)?, http: web.local_addr().map_err(bind)? };
        helpers.push(tokio::spawn(http::serve(web, http)));
        helpers.push(tokio::spawn(async move {
            if let Err(why) = self.serve_grpc(grpc).await {
                tracing::error!(why, "the gRPC side ended");
            }
        }));
        Ok(addresses)
    }

    async fn serve_grpc(self, listener: TcpListener) -> Result<(), String> {
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(IngestServer::new(self.ingest).max_decoding_message_size(MESSAGE_BYTES_MAX))
            .add_service(AdminServer::new(self.admin));
        let streams = self.config.ingest.streams_max as usize;
        let served = match self.config.listen.plaintext_loopback {
            true => router.serve_with_incoming(listen::plain(listener, streams)).await,
            false => router.serve_with_incoming(listen::secure(listener, streams, self.pki)?).await,
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

/// At the latest every hour: certificates past two thirds of their life are made anew; one that nears its end all the same is an alarm.
async fn renew_certificates(pki: Arc<Pki>, alarms: Alarms) {
    loop {
        match pki.renew_due(clock::now_us()) {
            Ok(renewed) if !renewed.is_empty() => tracing::info!(?renewed, "certificates renewed"),
            Ok(_) => {}
            Err(why) => alarms.raise(Alarm::CertificateExpiring, report(&why)),
        }
        for name in pki.expiring(clock::now_us()) {
            alarms.raise(Alarm::CertificateExpiring, format!("{name} ends soon"));
        }
        clock::sleep(pki.next_look(clock::now_us())).await;
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
