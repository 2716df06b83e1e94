//! `gateway-shim relay`: gateways in any language hand over plain records on this machine; here they are numbered, signed,
//! spooled and shipped.
//!
//! What must hold: only loopback or a Unix socket of mode 0600 is listened on; over the socket whoever hands over a record shows
//! the secret of this relay ([`cookie`](crate::cookie)), which a server in its sandbox cannot read; a record is answered when it is durable; what
//! is not a record that a gateway may write is refused with the rule that it breaks, never repaired; connections have the
//! limits of `listen.rs`.

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use custody::wire::{
    PutRequest, PutResponse,
    relay_server::{Relay, RelayServer},
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{TcpListenerStream, UnixListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    service::interceptor::InterceptedService,
    transport::{Server, server::Connected},
};

use crate::{
    clock,
    config::Config,
    cookie::Cookie,
    durable,
    gateway::{Gateway, Recording},
    listen::{self, Carried, Load},
    writer::Refused,
};

mod admit;

pub use admit::CALLER_NUMBERS_FROM;
use admit::check;

/// Name of the file, in the folder that is this relay's alone, with what callers over the socket show.
pub const SECRET: &str = "relay.secret";
/// Records of one stream that are on their way to the disk at once: they share a sync.
const SHIP_AT_ONCE: usize = 256;
/// What one stream may send ahead, in bytes. HTTP/2 counts small frames against half of the connection's window, 256 bytes
/// each: 32 streams of the smallest records stay within that, so that a fast caller is slowed down and not cut off.
const STREAM_WINDOW_BYTES: u32 = 16 << 10;
/// The same for a connection.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Streams of one connection.
const STREAMS_MAX: u32 = 32;
/// Longest request in bytes: a record and its frame. All streams of all connections together are 8,192.
const REQUEST_BYTES_MAX: usize = custody::record::RECORD_BYTES_MAX + 64;
/// A connection that is silent for so long is asked whether it is there, and ends if it does not answer for as long again:
/// on one machine an answer takes milliseconds, and a process that was stopped comes back within seconds or not at all.
const ALIVE_AFTER: Duration = Duration::from_secs(20);
/// The service.
#[derive(Clone, Debug)]
pub struct RelayService {
    gateway: Gateway,
}

impl RelayService {
    /// Over a running gateway.
    pub fn new(gateway: Gateway) -> Self {
        Self { gateway }
    }

    async fn submit(&self, request: PutRequest) -> Result<Recording, Status> {
        let kind = check(request, clock::now_us())?;
        self.gateway.submit(kind).await.map_err(status)
    }
}

async fn answer(recording: Recording) -> Result<PutResponse, Status> {
    let name = recording.durable().await.map_err(status)?;
    Ok(PutResponse { gateway: name.gateway.into(), epoch: name.epoch.into(), number: name.number })
}

/// Which code each refusal has, and so whether to send again; `docs/SHIPPING.md` has the same table.
fn status(refused: Refused) -> Status {
    let code = match refused {
        Refused::SpoolFull | Refused::LedgerAway | Refused::Busy => tonic::Code::ResourceExhausted,
        Refused::Dropped => tonic::Code::DataLoss,
        Refused::Draining | Refused::Stopped => tonic::Code::Unavailable,
        Refused::NotARecord => tonic::Code::InvalidArgument,
    };
    Status::new(code, format!("failed to {refused}"))
}

impl<S> Connected for listen::Connection<S> {
    type ConnectInfo = Load;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.load()
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<PutResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for RelayService {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let _carried = carried(&request);
        answer(self.submit(request.into_inner()).await?).await.map(Response::new)
    }

    type ShipStream = Answers;

    async fn ship(&self, request: Request<Streaming<PutRequest>>) -> Result<Response<Answers>, Status> {
        let service = self.clone();
        let carried = carried(&request);
        let requests = request.into_inner();
        // One after the other to the writer, so that numbers ascend with the requests; together to the disk.
        let submitted = requests.then(move |request| {
            let service = service.clone();
            async move { service.submit(request?).await }
        });
        let put = until_refused(submitted).map(|submitted| async move { answer(submitted?).await });
        let answers = futures::StreamExt::buffered(put, SHIP_AT_ONCE);
        let answers = until_refused(answers).map(move |answer| {
            // As long as the stream is there.
            let _carried = &carried;
            answer
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Says that the connection of this request carries one.
fn carried<T>(request: &Request<T>) -> Option<Carried> {
    request.extensions().get::<Load>().map(Load::request)
}

/// Ends behind the first refusal: the caller decides what comes then.
fn until_refused<T>(
    answers: impl Stream<Item = Result<T, Status>> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let mut refused = false;
    answers.take_while(move |answer| {
        let on = !refused;
        refused |= answer.is_err();
        on
    })
}

/// Where callers come in.
pub enum Port {
    /// Loopback.
    Tcp(TcpListener),
    /// Its path, and what its callers show.
    Unix(UnixListener, PathBuf, Cookie),
}

impl Port {
    /// Takes the address or the socket; who comes waits until [`Self::serve`].
    ///
    /// # Errors
    /// When it cannot be taken; in words, with the next move.
    pub async fn bind(config: &Config) -> Result<Self, String> {
        let of_relay = config.relay.as_ref();
        if let Some(path) = of_relay.and_then(|relay| relay.socket.as_ref()) {
            let named = |why| format!("listen on the socket {}: {why}; hint: relay.socket names it", path.display());
            durable::create_private_dir(config.control_dir()).map_err(named)?;
            // It stays the same from one start to the next: callers stay, too.
            let secret = Cookie::kept(&config.relay_secret())?;
            return listen_unix(path).map(|listener| Self::Unix(listener, path.clone(), secret)).map_err(named);
        }
        let Some(address) = of_relay.and_then(|relay| relay.listen) else {
            return Err("listen: relay has neither listen nor socket".into());
        };
        let bound = TcpListener::bind(address).await;
        bound.map(Self::Tcp).map_err(|why| {
            format!("listen on {address}: {why}; hint: does one run there already? relay.listen names the address")
        })
    }

    /// Serves until `stop`, then finishes what was accepted within `wait`: a stream that its caller keeps open is cut.
    ///
    /// # Errors
    /// When the port fails.
    pub async fn serve(self, gateway: Gateway, stop: impl Future<Output = ()>, wait: Duration) -> Result<(), BoxError> {
        self.serve_with(gateway, stop, wait, listen::HEAD_LIMIT).await
    }

    async fn serve_with(
        self,
        gateway: Gateway,
        stop: impl Future<Output = ()>,
        wait: Duration,
        head_limit: Duration,
    ) -> Result<(), BoxError> {
        let service = RelayServer::new(RelayService::new(gateway)).max_decoding_message_size(REQUEST_BYTES_MAX);
        let mut server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_MAX)
            .http2_keepalive_interval(Some(ALIVE_AFTER))
            .http2_keepalive_timeout(Some(ALIVE_AFTER));
        let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
        let graceful = async move {
            stop.await;
            // The other side may be gone already.
            stopping.send(()).ok();
        };
        let cut = async {
            drop(stopped.await);
            clock::sleep(wait).await;
        };
        match self {
            Self::Unix(listener, path, secret) => {
                let router = server.add_service(InterceptedService::new(service, secret));
                tracing::info!(socket = %path.display(), "relay listens");
                let incoming = UnixListenerStream::new(listener);
                let connections = listen::bounded(incoming, listen::PREFACE_BYTES, head_limit);
                tokio::select! {
                    ended = router.serve_with_incoming_shutdown(connections, graceful) => ended?,
                    () = cut => tracing::warn!("connections that are still open are cut"),
                }
                std::fs::remove_file(path)?;
            }
            Self::Tcp(listener) => {
                let router = server.add_service(service);
                tracing::info!(address = %listener.local_addr()?, "relay listens");
                let incoming = TcpListenerStream::new(listener);
                let connections = listen::bounded(incoming, listen::PREFACE_BYTES, head_limit);
                tokio::select! {
                    ended = router.serve_with_incoming_shutdown(connections, graceful) => ended?,
                    () = cut => tracing::warn!("connections that are still open are cut"),
                }
            }
        }
        Ok(())
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Takes the path of a socket; one that nobody answers on any more is replaced.
fn listen_unix(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another relay listens on this socket"));
    }
    durable::bind_private(path, |socket| UnixListener::bind(socket))
}

#[cfg(test)]
mod tests;
