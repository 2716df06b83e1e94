//! The shim's own ports, for callers on this machine: accepts connections, as many as there are places.
//!
//! What must hold: a caller that says nothing loses its connection after seconds, so that places and file descriptors come
//! back; whoever finds none waits in the system's queue, and is served next.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_stream::{Stream, StreamExt as _};

use crate::clock;

/// How long the head of a request, or the beginning of an HTTP/2 connection, may take: on one machine milliseconds.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Connections of one port at a time. Each may have one to an MCP server behind it: 512 file descriptors of the 1,024 that
/// a process commonly has, beside some 70 of the spool.
pub const CONNECTIONS_MAX: usize = 256;
/// After a failure to accept, most often for want of file descriptors: others may be given back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
pub const PREFACE_BYTES: usize = 24;

/// A connection, which has its place until it is dropped.
pub struct Connection<S> {
    stream: S,
    /// Bytes that are still to come, and until when.
    awaited: Option<(usize, BoxFuture<'static, ()>)>,
    _place: OwnedSemaphorePermit,
}

/// The connections of a listener. One whose first `awaited` bytes do not come within `limit` ends.
pub fn bounded<S: Send + 'static>(
    incoming: impl Stream<Item = io::Result<S>> + Send + Unpin,
    awaited: usize,
    limit: Duration,
) -> impl Stream<Item = io::Result<Connection<S>>> + Send {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures::stream::unfold((incoming, places), move |(mut incoming, places)| async move {
        let place = Arc::clone(&places).acquire_owned().await.ok()?;
        let stream = loop {
            match incoming.next().await? {
                Ok(stream) => break stream,
                Err(why) => {
                    tracing::warn!(%why, "a connection was not accepted");
                    clock::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let silence: BoxFuture<'static, ()> = Box::pin(clock::sleep(limit));
        let awaited = (awaited > 0).then_some((awaited, silence));
        Some((Ok(Connection { stream, awaited, _place: place }), (incoming, places)))
    })
}

impl<S> Connection<S> {
    /// What was accepted.
    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
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
