//! The shim's own ports, for callers on this machine: accepts connections, as many as there are places.
//!
//! What must hold: a caller that says nothing loses its connection after seconds, so that places and file descriptors come
//! back; whoever comes when no place is free gets that of the connection that has carried no request for longest, as the
//! ledger's port does with handshakes, so that nobody who does nothing holds up somebody who does; a connection that carries
//! a request is never ended for another, and while all carry one, whoever comes waits; one that takes nothing of what is
//! written to it ends, whatever it carries; no member's requests are on more
//! connections than their share.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use custody::id::MemberId;
use futures::{future::BoxFuture, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Notify,
};
use tokio_stream::{Stream, StreamExt as _};

use crate::clock;

/// How long the head of a request, or the beginning of an HTTP/2 connection, may take: on one machine milliseconds.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Connections of one port at a time, where the configuration says nothing of it; each is a file descriptor (`files.rs`).
pub const CONNECTIONS_MAX: usize = 256;
/// After a failure to accept, most often for want of file descriptors: others may be given back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may take nothing of what is written to it: what it carries may have been cut, and nobody learns that.
const TAKEN_LIMIT: Duration = Duration::from_secs(60);
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
pub const PREFACE_BYTES: usize = 24;

/// Connections of a port.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// At a time.
    pub connections: usize,
    /// Of these that carry requests of one member.
    pub of_member: usize,
}

/// One connection among those of its port.
struct Place {
    id: u64,
    /// Requests that it carries now.
    carried: usize,
    /// Grows from one to the next that carries nothing: the least has carried nothing for longest.
    idle_since: u64,
    ending: Arc<Ending>,
}

/// What a connection is told when another takes its place.
#[derive(Default)]
struct Ending {
    asked: AtomicBool,
    waker: AtomicWaker,
}

impl Ending {
    fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Wakes the task that looks when it is asked later.
    fn is_asked(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.asked.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Places {
    open: Vec<Place>,
    /// Requests that are carried for each member.
    of_member: HashMap<MemberId, usize>,
    /// Counts what makes ids and turns of being idle.
    next: u64,
}

/// All connections of a port.
struct Port {
    bounds: Bounds,
    places: Mutex<Places>,
    /// A place has become free, or carries nothing any more.
    changed: Notify,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place: a free one, or that of the connection that has carried nothing for longest, once it has ended.
    async fn place(self: &Arc<Self>) -> (Load, Arc<Ending>) {
        loop {
            if let Some(taken) = self.take() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn take(self: &Arc<Self>) -> Option<(Load, Arc<Ending>)> {
        let mut places = self.lock();
        if places.open.len() >= self.bounds.connections {
            let ending = places.open.iter().any(|place| place.ending.asked.load(Ordering::Acquire));
            let idle = places.open.iter().filter(|place| place.carried == 0 && !ending);
            if let Some(oldest) = idle.min_by_key(|place| place.idle_since) {
                oldest.ending.ask();
            }
            return None;
        }
        let (id, ending) = (places.turn(), Arc::<Ending>::default());
        places.open.push(Place { id, carried: 0, idle_since: id, ending: Arc::clone(&ending) });
        Some((Load { port: Arc::clone(self), id, uid: None }, ending))
    }
}

impl Places {
    fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn leave(&mut self, member: &MemberId) {
        let Some(own) = self.of_member.get_mut(member) else { return };
        *own -= 1;
        if *own == 0 {
            self.of_member.remove(member);
        }
    }

    fn of(&mut self, id: u64) -> Option<&mut Place> {
        self.open.iter_mut().find(|place| place.id == id)
    }
}

/// What one connection carries: whoever serves it says here when a request begins.
#[derive(Clone)]
pub struct Load {
    port: Arc<Port>,
    id: u64,
    /// Account of whoever is at the other end, as this system says; `None` where it cannot.
    pub uid: Option<u32>,
}

/// Whoever is at the other end of a connection.
pub trait Peer {
    /// Their account on this machine, as the system says, not they.
    fn uid(&self) -> Option<u32>;

    /// What is written goes out at once, and does not wait for more: an event of a stream is small, and somebody waits for it.
    fn write_at_once(&self) {}
}

impl Peer for TcpStream {
    fn uid(&self) -> Option<u32> {
        None
    }

    fn write_at_once(&self) {
        // A connection that cannot be set so is one that has ended.
        self.set_nodelay(true).ok();
    }
}

impl Peer for UnixStream {
    fn uid(&self) -> Option<u32> {
        self.peer_cred().ok().map(|peer| peer.uid())
    }
}

impl Load {
    /// A request, which the connection carries until this is dropped.
    pub fn request(&self) -> Carried {
        self.carry(&mut self.port.lock(), None)
    }

    fn carry(&self, places: &mut Places, member: Option<MemberId>) -> Carried {
        if let Some(place) = places.of(self.id) {
            place.carried += 1;
        }
        Carried(self.clone(), member)
    }

    /// A request of this member; none, if as many of theirs are carried as one may have.
    pub fn request_of(&self, member: MemberId) -> Option<Carried> {
        let mut places = self.port.lock();
        let own = places.of_member.entry(member).or_default();
        if *own >= self.port.bounds.of_member {
            return None;
        }
        *own += 1;
        Some(self.carry(&mut places, Some(member)))
    }

    /// The connection is no more.
    fn end(&self) {
        self.port.lock().open.retain(|place| place.id != self.id);
        self.port.changed.notify_one();
    }
}

/// A request that a connection carries.
pub struct Carried(Load, Option<MemberId>);

impl Drop for Carried {
    fn drop(&mut self) {
        let Load { port, id, .. } = &self.0;
        {
            let mut places = port.lock();
            let now = places.turn();
            if let Some(member) = &self.1 {
                places.leave(member);
            }
            // The connection may have ended before its request.
            let Some(place) = places.of(*id) else { return };
            place.carried -= 1;
            place.idle_since = now;
        }
        port.changed.notify_one();
    }
}

/// A connection, which has its place until it is dropped.
pub struct Connection<S> {
    stream: S,
    /// Bytes that are still to come, and until when.
    awaited: Option<(usize, BoxFuture<'static, ()>)>,
    /// Until when it may take nothing, while something waits for it.
    stalled: Option<BoxFuture<'static, ()>>,
    ending: Arc<Ending>,
    load: Load,
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.load.end();
    }
}

/// The connections of a listener. One whose first `awaited` bytes do not come within `limit` ends.
pub fn bounded<S: Peer + Send + 'static>(
    incoming: impl Stream<Item = io::Result<S>> + Send + Unpin,
    awaited: usize,
    limit: Duration,
) -> impl Stream<Item = io::Result<Connection<S>>> + Send {
    bounded_by(Bounds { connections: CONNECTIONS_MAX, of_member: CONNECTIONS_MAX }, incoming, awaited, limit)
}

/// The same, with other bounds.
pub fn bounded_by<S: Peer + Send + 'static>(
    bounds: Bounds,
    incoming: impl Stream<Item = io::Result<S>> + Send + Unpin,
    awaited: usize,
    limit: Duration,
) -> impl Stream<Item = io::Result<Connection<S>>> + Send {
    let port = Arc::new(Port { bounds, places: Mutex::default(), changed: Notify::new() });
    futures::stream::unfold((incoming, port), move |(mut incoming, port)| async move {
        let stream = loop {
            match incoming.next().await? {
                Ok(stream) => break stream,
                Err(why) => {
                    tracing::warn!(%why, "a connection was not accepted");
                    clock::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        // Behind the one that waits here, others wait in the system's queue.
        let (mut load, ending) = port.place().await;
        load.uid = stream.uid();
        stream.write_at_once();
        let silence: BoxFuture<'static, ()> = Box::pin(clock::sleep(limit));
        let awaited = (awaited > 0).then_some((awaited, silence));
        Some((Ok(Connection { stream, awaited, stalled: None, ending, load }), (incoming, port)))
    })
}

impl<S> Connection<S> {
    /// What it carries.
    pub fn load(&self) -> Load {
        self.load.clone()
    }

    /// An error, once another connection takes its place.
    fn go_on(&self, cx: &Context<'_>) -> io::Result<()> {
        if self.ending.is_asked(cx) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// What became of a write; an error, if nothing was taken for too long.
    fn taken(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(clock::sleep(TAKEN_LIMIT)));
        if stalled.as_mut().poll(cx).is_ready() { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { written }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.go_on(cx)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some((missing, limit)) = &mut self.awaited {
            *missing = missing.saturating_sub(buffer.filled().len() - before);
            if *missing == 0 {
                self.awaited = None;
            } else if limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.go_on(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.taken(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.go_on(cx)?;
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
        self.go_on(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.taken(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream},
        net::TcpListener,
    };
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::testing::within;

    /// An event of a stream is a small write behind another one: it must not wait until the first is acknowledged.
    #[tokio::test]
    async fn what_is_written_to_a_client_goes_out_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut connections = Box::pin(bounded(TcpListenerStream::new(listener), 0, HEAD_LIMIT));
        let connection = within(connections.next()).await.unwrap().unwrap();
        assert!(connection.stream.nodelay().unwrap());
    }

    impl Peer for DuplexStream {
        fn uid(&self) -> Option<u32> {
            None
        }
    }

    /// Its place is somebody else's then. One that takes a little from time to time stays.
    #[tokio::test]
    async fn a_connection_that_takes_nothing_ends() {
        let (mut client, stream) = tokio::io::duplex(1);
        let incoming = futures::stream::iter([Ok(stream)]);
        let mut connections = Box::pin(bounded(incoming, 0, HEAD_LIMIT));
        let mut connection = connections.next().await.unwrap().unwrap();
        async fn written(connection: &mut Connection<DuplexStream>) -> Poll<Result<usize, io::ErrorKind>> {
            let written = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *connection).poll_write(cx, b"x"))).await;
            written.map_err(|why| why.kind())
        }
        let passed = || Some(Box::pin(std::future::ready(())) as BoxFuture<'static, ()>);
        assert_eq!((written(&mut connection).await, connection.stalled.is_some()), (Poll::Ready(Ok(1)), false));
        assert_eq!((written(&mut connection).await, connection.stalled.is_some()), (Poll::Pending, true));
        connection.stalled = passed();
        client.read_u8().await.unwrap();
        assert_eq!((written(&mut connection).await, connection.stalled.is_some()), (Poll::Ready(Ok(1)), false));
        connection.stalled = passed();
        assert_eq!(written(&mut connection).await, Poll::Ready(Err(io::ErrorKind::TimedOut)));
    }
}
