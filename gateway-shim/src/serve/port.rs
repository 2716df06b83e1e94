//! The port of the proxy: the life of its connections, and what each carries.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::Extension;
use custody::id::MemberId;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;

use super::{
    arrive::{self, NotRead, Taking},
    places::Place,
    *,
};
use crate::{
    listen::{Bounds, Carried, Connection},
    mcp::envelope::{self, Message},
};

/// Bytes of a request's head: a caller's token and what belongs to MCP have a few thousand.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Bytes of a body that comes beyond its member's share: a notification has some hundred, and what a person answers to a server
/// some thousand. On all connections that `serve` may have by itself (512) they are 32 MiB.
const BEYOND_BYTES_MAX: usize = 64 << 10;

/// A body whose connection carries its request until it has gone out.
struct Carries {
    body: Body,
    _carried: Carrying,
}

impl HttpBody for Carries {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a connection carries, until it is dropped.
pub(super) struct Carrying {
    _carried: Carried,
    /// Of what has no answer, beyond the share of its member.
    _place: Option<Place>,
}

impl From<Carried> for Carrying {
    fn from(carried: Carried) -> Self {
        Self { _carried: carried, _place: None }
    }
}

impl Shared {
    /// A body that has come, and what its connection carries. Its member's share is asked before it is read, because whatever
    /// has come of it is in memory until its end comes.
    pub(super) async fn arrives(
        &self,
        load: &Load,
        came: &Came,
        body: Body,
        taking: Taking<'_>,
    ) -> Result<(Bytes, Carrying), NotRead> {
        match load.request_of(came.caller.member) {
            Some(carried) => Ok((arrive::read(&came.headers, body, taking).await?, carried.into())),
            None => Box::pin(self.arrives_beyond(load, came, body, taking)).await,
        }
    }

    /// The same beyond the member's share: what has no answer may still come, and whether it is that says the body. So a short
    /// one is read, and one that is longer refused as soon as that is seen.
    async fn arrives_beyond(
        &self,
        load: &Load,
        came: &Came,
        body: Body,
        taking: Taking<'_>,
    ) -> Result<(Bytes, Carrying), NotRead> {
        let refused = |bytes| NotRead::Refused(Refusal::connections(), bytes);
        let bytes_max = BEYOND_BYTES_MAX.min(taking.bytes_max);
        let said = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if said > bytes_max {
            return Err(refused(said));
        }
        let body = match arrive::read(&came.headers, body, Taking { bytes_max, ..taking }).await {
            Ok(body) => body,
            Err(NotRead::Refused(_, bytes)) => return Err(refused(bytes)),
            Err(torn) => return Err(torn),
        };
        match self.carried(load, came.caller.member, &body) {
            Some(carried) => Ok((body, carried)),
            None => Err(refused(body.len())),
        }
    }

    /// What comes in this body, as its connection carries it; none, if its member has too much that waits. What has no answer
    /// has a share of its own, because calls may wait for it that have all of theirs.
    fn carried(&self, load: &Load, member: MemberId, body: &[u8]) -> Option<Carrying> {
        if let Some(carried) = load.request_of(member) {
            return Some(carried.into());
        }
        if matches!(envelope::parse(body), Ok(Message::Request(_)) | Err(_)) {
            return None;
        }
        let place = self.notes.enter(member).ok()?;
        Some(Carrying { _carried: load.request(), _place: Some(place) })
    }
}

/// The answer to a request that its connection carries.
pub(super) fn carry(answer: Answer, carried: impl Into<Carrying>) -> Answer {
    let carried = carried.into();
    answer.map(|body| Body::new(Carries { body, _carried: carried }))
}

/// Serves until `stop`, then lets requests that were accepted end within `wait`.
///
/// # Errors
/// When the listener has no address.
pub async fn serve(
    front: Arc<Front>,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
    wait: Duration,
) -> std::io::Result<()> {
    let servers = front.proxies.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    tracing::info!(address = %listener.local_addr()?, servers, "serving /mcp");
    let counting = [tokio::spawn(count_on(Arc::clone(&front))), tokio::spawn(cut_on(Arc::clone(&front)))];
    let since = clock::now_us();
    // Each connection has an end of this channel: it hears there that it is to end, and by it we see that it has.
    let (draining, drain) = watch::channel(false);
    let tallying = tokio::spawn({
        let (front, drain) = (Arc::clone(&front), drain.clone());
        async move { front.shared.tally_on(drain).await }
    });
    let mut stop = std::pin::pin!(stop);
    let bounds = Bounds { connections: front.config.connections_max, of_member: front.config.member_connections_max };
    {
        let incoming = listen::bounded_by(bounds, TcpListenerStream::new(listener), 0, front.waits.head);
        let mut connections = std::pin::pin!(incoming);
        while let Some(Ok(connection)) = tokio::select! {
            connection = connections.next() => connection,
            () = &mut stop => None,
        } {
            tokio::spawn(begin(Arc::clone(&front), connection, drain.clone()));
        }
    }
    drop(drain);
    draining.send_replace(true);
    if tokio::time::timeout(wait, draining.closed()).await.is_err() {
        tracing::warn!("connections that are still open are cut");
    }
    for task in counting {
        task.abort();
    }
    // It writes to its end what it has begun.
    drop(tallying.await);
    front.processes.stop_all().await;
    front.shared.flush_refusals().await;
    front.flush_counts(since).await;
    Ok(())
}

/// Speaks TLS where there is a certificate.
async fn begin(front: Arc<Front>, connection: Connection<TcpStream>, drain: watch::Receiver<bool>) {
    let load = connection.load();
    let Some(tls) = &front.tls else { return speak(front, connection, load, drain).await };
    if let Some(stream) = tls.accept(connection).await {
        speak(Arc::clone(&front), stream, load, drain).await;
    }
}

/// The life of one connection.
async fn speak<S>(front: Arc<Front>, stream: S, load: Load, mut drain: watch::Receiver<bool>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(front.waits.head).max_buf_size(HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(front.router().layer(Extension(load)));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // What a client does to its own connection is no event.
        _ = connection.as_mut() => return,
        _ = drain.wait_for(|draining| *draining) => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
}
