//! The gRPC ports: accept connections, do the TLS handshake, and hand on who is there.
//!
//! What must hold: the listener lives as long as the process, so a renewal of the server's certificate closes no port and
//! ends no stream (the next handshake has the new certificate, open connections go on with what they have); whoever says
//! nothing loses the connection after seconds; strangers can hold handshakes and nothing else, and of too many handshakes
//! the oldest ends, so that they lock nobody out; one certificate's holder has few connections, so that a gateway gone wild takes no other's place;
//! where nobody shows a certificate, one address has few.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{
    clock,
    pki::{self, Identity, Pki, ServerTls},
};

/// How long a handshake may take: three packets each way, over the worst line.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Handshakes at one time: 50 KiB each, and a millisecond of the processor. Of more the oldest ends: whoever holds thousands
/// open, and says nothing, pushes out its own.
const HANDSHAKES_MAX: usize = 256;
/// Connections of one holder of a certificate: a gateway has one, and a second while the first is not known to be dead.
const CONNECTIONS_OF_ONE_MAX: usize = 16;
/// Connections beyond one for each stream: administrators.
const CONNECTIONS_SPARE: usize = 64;
/// Connections that wait until gRPC takes them, which it does at once.
const WAITING_MAX: usize = 16;
/// After a failure to accept, most often for want of file descriptors: others may be given back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection, which counts until it is dropped.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Until something was heard: who has a connection and says nothing loses it.
    silence: Option<Silence>,
    _place: OwnedSemaphorePermit,
    _of_one: Option<OfOne>,
}

/// The time until the first bytes are due.
struct Silence(Pin<Box<dyn Future<Output = ()> + Send>>);

impl std::fmt::Debug for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Silence")
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match (Pin::new(&mut self.stream).poll_read(cx, buffer), &mut self.silence) {
            (Poll::Pending, Some(silence)) => silence.0.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            (Poll::Pending, None) => Poll::Pending,
            (heard, _) => {
                self.silence = None;
                heard
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// Tasks of which so many run at one time: a new one takes the place of the oldest. A flood of connections that do nothing
/// so pushes out itself, and whoever comes and does its work at once gets through.
#[derive(Debug)]
pub struct Newest {
    most: usize,
    tasks: VecDeque<AbortHandle>,
}

impl Newest {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self { most, tasks: VecDeque::new() }
    }

    /// Runs one more.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.retain(|task| !task.is_finished());
        if self.tasks.len() >= self.most
            && let Some(oldest) = self.tasks.pop_front()
        {
            oldest.abort();
        }
        self.tasks.push_back(tokio::spawn(task).abort_handle());
    }
}

/// Connections by the name in their certificate.
type Holders = Arc<Mutex<HashMap<String, usize>>>;

/// One connection of a holder, until it is dropped.
#[derive(Debug)]
struct OfOne {
    holders: Holders,
    name: String,
}

impl OfOne {
    /// `None` if the holder has as many as it may.
    fn take(holders: &Holders, name: String) -> Option<Self> {
        let mut counts = holders.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(name.clone()).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Self { holders: Arc::clone(holders), name })
    }
}

impl Drop for OfOne {
    fn drop(&mut self) {
        let mut counts = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

/// Connections as gRPC takes them.
pub type Connections<S> = ReceiverStream<io::Result<Connection<S>>>;

/// Accepts without TLS.
pub fn plain(listener: TcpListener, streams_max: usize) -> Connections<TcpStream> {
    let (taken, connections) = mpsc::channel(WAITING_MAX);
    let places = Arc::new(Semaphore::new(streams_max.saturating_add(CONNECTIONS_SPARE)));
    tokio::spawn(async move {
        loop {
            // Until somebody leaves, whoever comes waits in the system's queue.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Some(stream) = accept(&listener, &taken).await else { return };
            if taken.send(Ok(Connection { stream, silence: None, _place: place, _of_one: None })).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(connections)
}

/// Who comes to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comers {
    /// Whoever has a certificate of the authority.
    Certified,
    /// Anybody: who they are is asked of each request.
    Anybody,
}

/// Accepts those who come, each with the server's certificate of that moment.
///
/// # Errors
/// In words, if the certificate that is there cannot be used.
pub fn secure(
    listener: TcpListener,
    streams_max: usize,
    pki: Arc<Pki>,
    comers: Comers,
) -> Result<Connections<TlsStream<TcpStream>>, String> {
    secure_within(HANDSHAKE_LIMIT, listener, streams_max, pki, comers)
}

fn secure_within(
    limit: Duration,
    listener: TcpListener,
    streams_max: usize,
    pki: Arc<Pki>,
    comers: Comers,
) -> Result<Connections<TlsStream<TcpStream>>, String> {
    let mut renewals = pki.renewals();
    let mut acceptor = acceptor(&pki.server_tls(), comers)?;
    let (taken, connections) = mpsc::channel(WAITING_MAX);
    let mut handshakes = Newest::new(HANDSHAKES_MAX);
    let door = Arc::new(Door {
        places: Arc::new(Semaphore::new(streams_max.saturating_add(CONNECTIONS_SPARE))),
        holders: Holders::default(),
        comers,
        limit,
        taken,
    });
    tokio::spawn(async move {
        loop {
            let Some(stream) = accept(&listener, &door.taken).await else { return };
            if renewals.has_changed().unwrap_or(false) {
                renewals.mark_unchanged();
                match self::acceptor(&pki.server_tls(), comers) {
                    Ok(fresh) => acceptor = fresh,
                    Err(why) => tracing::error!(why, "the renewed certificate cannot be used; the old one stays"),
                }
            }
            let (acceptor, door) = (acceptor.clone(), Arc::clone(&door));
            handshakes.spawn(async move {
                let greeted = tokio::time::timeout(limit, acceptor.accept(stream)).await;
                // Who it was that failed is nobody's business but theirs, and garbage on a port is no event.
                if let Ok(Ok(stream)) = greeted {
                    door.admit(stream).await;
                }
            });
        }
    });
    Ok(ReceiverStream::new(connections))
}

/// The next connection; `None` once nobody takes them any more.
async fn accept<T>(listener: &TcpListener, taken: &mpsc::Sender<T>) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = taken.closed() => return None,
        };
        match accepted {
            Ok((stream, _)) => {
                // Without it an answer may wait for the next one; that it cannot be set harms nobody.
                stream.set_nodelay(true).ok();
                return Some(stream);
            }
            Err(why) => {
                tracing::warn!(%why, "a connection was not accepted");
                clock::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a connection passes after its handshake.
struct Door {
    places: Arc<Semaphore>,
    holders: Holders,
    comers: Comers,
    /// How long a connection may last without a word.
    limit: Duration,
    taken: mpsc::Sender<io::Result<Connection<TlsStream<TcpStream>>>>,
}

impl Door {
    async fn admit(&self, stream: TlsStream<TcpStream>) {
        let name = match self.comers {
            Comers::Certified => {
                let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                leaf.and_then(|leaf| pki::peer_identity(leaf)).map(|identity| Identity::uri(&identity))
            }
            Comers::Anybody => stream.get_ref().0.peer_addr().ok().map(|address| address.ip().to_string()),
        };
        // The authority signs nothing without a name but the server's own certificate, which is for no client.
        let Some(name) = name else { return };
        let Some(of_one) = OfOne::take(&self.holders, name.clone()) else {
            tracing::warn!(name, most = CONNECTIONS_OF_ONE_MAX, "refused: too many connections of one holder");
            return;
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!(name, "refused: too many connections");
            return;
        };
        // gRPC is gone only at the end of the process.
        let silence = Some(Silence(Box::pin(clock::sleep(self.limit))));
        self.taken.send(Ok(Connection { stream, silence, _place: place, _of_one: Some(of_one) })).await.ok();
    }
}

/// Whether the server's certificate and key can be used: looked at before anybody is told that the ledger serves.
///
/// # Errors
/// In words.
pub fn check(tls: &ServerTls) -> Result<(), String> {
    acceptor(tls, Comers::Certified).map(drop)
}

fn acceptor(tls: &ServerTls, comers: Comers) -> Result<TlsAcceptor, String> {
    let words = |why: &dyn std::fmt::Display| format!("use the server's certificate: {why}");
    let pem = |text: &str| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        all.map_err(|why| words(&why))
    };
    let mut roots = RootCertStore::empty();
    for authority in pem(&tls.authority)? {
        roots.add(authority).map_err(|why| words(&why))?;
    }
    let provider = Arc::new(default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let clients = match comers {
        Comers::Certified => clients.build().map_err(|why| words(&why))?,
        Comers::Anybody => WebPkiClientVerifier::no_client_auth(),
    };
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).map_err(|why| words(&why))?;
    let config = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13, &TLS12]);
    let config = config.map_err(|why| words(&why))?.with_client_cert_verifier(clients);
    let mut config = config.with_single_cert(pem(&tls.certificate)?, key).map_err(|why| words(&why))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    if comers == Comers::Anybody {
        // Those who ask may speak plain HTTP, too.
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::{
        TlsConnector,
        rustls::{ClientConfig, pki_types::ServerName},
    };
    use tokio_stream::StreamExt as _;

    use super::*;
    use crate::config::Config;

    /// Only bounds a failure.
    const WAIT: Duration = Duration::from_secs(60);

    /// A port, and how the administrator comes in.
    async fn port(
        folder: &Path,
        limit: Duration,
    ) -> (std::net::SocketAddr, Connections<TlsStream<TcpStream>>, TlsConnector) {
        let mut config = Config::new("example.org/custody");
        config.resolve(folder);
        crate::durable::create_dir(&config.paths.tls, 0o700).unwrap();
        Pki::create(&config, None).unwrap();
        let pki = Arc::new(Pki::open(&config).unwrap());
        let pem = |name: &str| std::fs::read(config.paths.tls.join(name)).unwrap();
        let certificates = |pem: &[u8]| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificates(&pem("authority.pem")).remove(0)).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&pem("admin.key")).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let client = client.with_protocol_versions(&[&TLS13]).unwrap().with_root_certificates(roots);
        let client = client.with_client_auth_cert(certificates(&pem("admin.pem")), key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = secure_within(limit, listener, 8, pki, Comers::Certified).unwrap();
        (address, connections, TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test]
    async fn whoever_holds_handshakes_open_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        // No handshake ends by itself.
        let (address, mut connections, connector) = port(folder.path(), Duration::from_secs(86_400)).await;
        let mut silent = Vec::new();
        for _ in 0..=HANDSHAKES_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let comes = async {
            let stream = TcpStream::connect(address).await.unwrap();
            connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
        };
        let came = tokio::time::timeout(WAIT, async { tokio::join!(comes, connections.next()) }).await;
        let (_held, taken) = came.expect("nobody comes in");
        assert!(taken.unwrap().is_ok());
        // The oldest one's place was taken; the newest ones have theirs.
        assert!(tokio::time::timeout(WAIT, silent[0].read(&mut [0])).await.unwrap().is_ok_and(|bytes| bytes == 0));
        let newest = silent.last().unwrap();
        assert!(newest.try_read(&mut [0]).is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock));
    }

    #[tokio::test]
    async fn whoever_says_nothing_loses_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        let (address, _connections, _) = port(folder.path(), Duration::from_millis(50)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(tokio::time::timeout(WAIT, silent.read(&mut [0])).await.unwrap().is_ok_and(|bytes| bytes == 0));
    }

    #[test]
    fn one_holder_has_few_connections_and_gets_them_back() {
        let holders = Holders::default();
        let held: Vec<_> = (0..CONNECTIONS_OF_ONE_MAX).map(|_| OfOne::take(&holders, "a".to_owned())).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(OfOne::take(&holders, "a".to_owned()).is_none());
        assert!(OfOne::take(&holders, "b".to_owned()).is_some());
        drop(held);
        assert!(holders.lock().unwrap().is_empty());
        assert!(OfOne::take(&holders, "a".to_owned()).is_some());
    }

    #[tokio::test]
    async fn the_port_is_given_back_when_nobody_takes_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (taken, connections) = mpsc::channel::<io::Result<()>>(1);
        drop(connections);
        assert!(accept(&listener, &taken).await.is_none());
    }
}
