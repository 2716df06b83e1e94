//! A ledger of its own for each section: the real program, with the configuration that `ledger init` makes but for ports
//! and the limits that a bench must not meet.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ::ledger::{
    config::Config,
    init::{Plan, init},
    keys,
};
use custody::{
    id::{GatewayId, WorkspaceId},
    key::{self, Context},
    statement::{encode_signed, possession},
    wire::{self, Role, admin_client::AdminClient, query_client::QueryClient, statement::Action},
};
use custody_tests::http;
use ed25519_dalek::SigningKey;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_stream::StreamExt as _;
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{Done, gateway::Chain};

const ORIGIN: &str = "bench.example/custody";
/// Time between two looks at the peak of memory: a segment is sealed in some 200 ms.
const PEAKS_EVERY: Duration = Duration::from_millis(50);
/// Ticks a second of the processor times in `/proc`.
const TICKS: f64 = 100.0;

/// A running ledger.
pub(crate) struct Ledger {
    child: Child,
    pub(crate) config: Config,
    root: SigningKey,
    pub(crate) admin: AdminClient<Channel>,
    tls: bool,
    authority: String,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Processor time of a process so far.
pub(crate) fn cpu_seconds(id: &str) -> Done<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / TICKS)
}

fn peak_mib(id: u32) -> Done<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    Ok(peak.unwrap_or(0_u64) / 1024)
}

/// Looks at the ledger's memory while something else goes on.
pub(crate) struct Peaks {
    stop: oneshot::Sender<()>,
    looking: JoinHandle<Done<Vec<u64>>>,
}

impl Peaks {
    /// The greatest of each tenth of the time.
    pub(crate) async fn tenths(self) -> Done<Vec<u64>> {
        self.stop.send(()).ok();
        let peaks = self.looking.await??;
        Ok(peaks.chunks(peaks.len().div_ceil(10).max(1)).filter_map(|tenth| tenth.iter().max().copied()).collect())
    }
}

fn free_port() -> Done<std::net::SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Ledger {
    /// Makes and starts one in `dir`. `tweak` changes its configuration.
    pub(crate) async fn start(dir: &Path, tls: bool, tweak: impl FnOnce(&mut Config)) -> Done<Self> {
        let plan = Plan {
            dir: dir.to_owned(),
            origin: ORIGIN.to_owned(),
            root_key_out: None,
            root_passphrase_file: None,
            passphrase_file: None,
            plaintext_loopback: !tls,
        };
        let made = init(&plan).map_err(|why| format!("init: {why}"))?;
        let mut config = Config::load(&made.config).map_err(|why| format!("configuration: {why}"))?;
        config.listen.grpc = free_port()?;
        config.listen.http = free_port()?;
        config.listen.ask = free_port()?;
        let scheme = if tls { "https" } else { "http" };
        config.admin.url = format!("{scheme}://localhost:{}", config.listen.grpc.port());
        config.ask.ask_url = format!("{scheme}://localhost:{}", config.listen.ask.port());
        config.ingest.records_per_second_max = 0;
        tweak(&mut config);
        std::io::Write::write_all(&mut std::fs::File::create(&made.config)?, toml::to_string(&config)?.as_bytes())?;
        let program = std::env::current_exe()?.with_file_name("ledger");
        let log = std::fs::File::create(dir.join("log"))?;
        let child = Command::new(program)
            .args([Path::new("serve"), Path::new("--config"), &made.config])
            // As in the unit file.
            .env("MALLOC_ARENA_MAX", "2")
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .spawn()?;
        let root = keys::load(&made.root_key, None).map_err(|why| why.to_string())?;
        let read = |name: &str| std::fs::read_to_string(config.paths.tls.join(name));
        let authority = read("authority.pem")?;
        let identity = tls.then(|| Ok::<_, std::io::Error>(Identity::from_pem(read("admin.pem")?, read("admin.key")?)));
        let channel = connect(&config.admin.url, &authority, identity.transpose()?).await?;
        let admin = AdminClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(Self { child, config, root, admin, tls, authority })
    }

    async fn say(&self, workspace: WorkspaceId, action: Action) -> Done {
        let mut admin = self.admin.clone();
        let request = wire::PrepareStatementRequest {
            workspace: workspace.into(),
            reason: "bench".to_owned(),
            action: Some(wire::Statement { action: Some(action), ..Default::default() }),
            ..Default::default()
        };
        let statement = admin.prepare_statement(request).await?.into_inner().statement;
        let signed = encode_signed(&statement, key::sign(&self.root, Context::Statement, &statement));
        admin.submit_statement(wire::SubmitStatementRequest { statement: signed.into() }).await?;
        Ok(())
    }

    /// A workspace with so many gateways enrolled.
    pub(crate) async fn workspace(&self, name: &str, gateways: u64) -> Done<Vec<Chain>> {
        let id = WorkspaceId(keys::random());
        self.say(id, Action::Create(wire::Create { name: name.to_owned() })).await?;
        let mut chains = Vec::new();
        for which in 0..gateways {
            let chain = Chain::new(ORIGIN, id, which);
            self.say(id, enrol(&chain)).await?;
            chains.push(chain);
        }
        Ok(chains)
    }

    /// A connection as this gateway.
    pub(crate) async fn connect(&self, workspace: WorkspaceId, gateway: GatewayId) -> Done<Channel> {
        if !self.tls {
            return connect(&self.config.admin.url, &self.authority, None).await;
        }
        let pair = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, gateway.to_string());
        let request = params.serialize_request(&pair)?.pem()?;
        let request = wire::IssueCertificateRequest { request, workspace: workspace.into(), gateway: gateway.into() };
        let certificate = self.admin.clone().issue_certificate(request).await?.into_inner().certificate;
        let identity = Identity::from_pem(certificate, pair.serialize_pem());
        connect(&self.config.admin.url, &self.authority, Some(identity)).await
    }

    /// A connection of those who ask.
    pub(crate) async fn asker(&self) -> Done<QueryClient<Channel>> {
        let channel = connect(&self.config.ask.ask_url, &self.authority, None).await?;
        Ok(QueryClient::new(channel).max_decoding_message_size(8 << 20))
    }

    /// A token of an analyst, as it is sent.
    pub(crate) async fn token(&self, name: String) -> Done<MetadataValue<Ascii>> {
        let token = wire::ApiToken { name, role: "analyst".to_owned(), ..Default::default() };
        let because = Some(wire::Because { reason: "bench".to_owned(), ..Default::default() });
        let request = wire::AddApiTokenRequest { token: Some(token), because };
        let secret = self.admin.clone().add_api_token(request).await?.into_inner().secret;
        Ok(format!("Bearer {secret}").parse()?)
    }

    /// Commits that the index, and that the watch has not done yet.
    pub(crate) async fn lags(&self) -> Done<[u64; 2]> {
        let text = http::ask(self.config.listen.http, "GET", "/metrics", &[], b"").await?.text();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            line.map(|value| value as u64).ok_or_else(|| format!("no metric {name}"))
        };
        Ok([value("custody_index_lag_commits ")?, value("custody_watch_lag_commits ")?])
    }

    /// Ends it in order: what it leaves on disk, for others to open.
    pub(crate) async fn end(mut self) -> Done<Config> {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status()?;
        let ended = tokio::task::block_in_place(|| self.child.wait())?;
        if !asked.success() || !ended.success() {
            return Err(format!("the ledger ended with {ended}").into());
        }
        Ok(self.config.clone())
    }

    /// Cuts every segment, and waits until all is archived.
    pub(crate) async fn cut(&self) -> Done {
        self.admin.clone().cut(wire::CutRequest::default()).await?;
        Ok(())
    }

    /// Segments that wait for the archive.
    pub(crate) async fn settled(&self) -> Done {
        while self.admin.clone().status(wire::StatusRequest {}).await?.into_inner().unpublished > 0 {
            let mut pause = tokio::time::interval(Duration::from_millis(100));
            pause.tick().await;
            pause.tick().await;
        }
        Ok(())
    }

    /// Seconds of processor time so far, and the peak of memory in MiB.
    pub(crate) fn used(&self) -> Done<(f64, u64)> {
        let id = self.child.id();
        Ok((cpu_seconds(&id.to_string())?, peak_mib(id)?))
    }

    /// The peak of memory in MiB, again and again from now on, each of the time since the one before.
    pub(crate) fn peaks(&self) -> Peaks {
        let id = self.child.id();
        let (stop, mut stopped) = oneshot::channel();
        let looking = tokio::spawn(async move {
            let (mut peaks, mut ticks) = (Vec::new(), tokio::time::interval(PEAKS_EVERY));
            loop {
                tokio::select! {
                    _ = &mut stopped => return Ok(peaks),
                    _ = ticks.tick() => {}
                }
                peaks.push(peak_mib(id)?);
                // Begins the peak anew at what is resident now.
                std::fs::write(format!("/proc/{id}/clear_refs"), "5")?;
            }
        });
        Peaks { stop, looking }
    }

    /// Number and bytes of the archive's objects by what they are: the folder below the workspace or the log.
    pub(crate) fn archived(&self) -> Done<std::collections::BTreeMap<String, (u64, u64)>> {
        let root = &self.config.archive.folder;
        let (mut found, mut folders) = (std::collections::BTreeMap::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                let path = entry.path();
                let mut parts = path.strip_prefix(root)?.iter().map(|part| part.to_string_lossy().into_owned());
                let top = parts.next().unwrap_or_default();
                let kind = if top == "workspaces" { parts.nth(1) } else { parts.next() };
                let sum: &mut (u64, u64) = found.entry(kind.unwrap_or(top)).or_default();
                *sum = (sum.0 + 1, sum.1 + entry.metadata()?.len());
            }
        }
        Ok(found)
    }
}

fn enrol(chain: &Chain) -> Action {
    let public = chain.public();
    let message = possession(ORIGIN, Some(chain.workspace), Role::Gateway, public, Some(chain.gateway));
    Action::Enrol(wire::Enrol {
        role: Role::Gateway as i32,
        public_key: public.to_bytes().to_vec().into(),
        gateway: Some(chain.gateway.into()),
        name: String::new(),
        possession: Some(key::sign(&chain.key, Context::Possession, &message).to_vec().into()),
    })
}

/// Connects, waiting for a ledger that is still starting.
async fn connect(url: &str, authority: &str, identity: Option<Identity>) -> Done<Channel> {
    let mut endpoint = Endpoint::from_shared(url.to_owned())?
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .tcp_nodelay(true);
    if url.starts_with("https") {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        endpoint = endpoint.tls_config(identity.into_iter().fold(tls, ClientTlsConfig::identity))?;
    }
    let tries = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(50)));
    let mut tries = tries.take(400);
    let mut last = None;
    while tries.next().await.is_some() {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(why) => last = Some(why),
        }
    }
    Err(last.map_or_else(|| "no connection".into(), Into::into))
}
