//! What is on its way to one client that reads slowly.
//!
//! What must hold: it is bounded in chunks and in bytes, however long the events of a server are; one that is longer than all of
//! it goes alone.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

/// Bytes that wait for one client; usual events have some thousand.
const BYTES_MAX: usize = 1 << 20;

/// What passes, or why nothing more does.
pub(super) type Chunk = Result<Bytes, std::io::Error>;

/// The client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The end where chunks come in. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    chunks: mpsc::Sender<(Chunk, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

/// A queue of so many chunks: the end where they come in, and the one where they go out.
pub(super) fn queue(chunks_max: usize) -> (Sender, BoxStream<'static, Chunk>) {
    let (chunks, waiting) = mpsc::channel(chunks_max);
    // Its room is given back when it goes out.
    let out = ReceiverStream::new(waiting).map(|(chunk, _)| chunk);
    (Sender { chunks, room: Arc::new(Semaphore::new(BYTES_MAX)) }, Box::pin(out))
}

fn room_of(chunk: &Chunk) -> u32 {
    let bytes = chunk.as_ref().map_or(0, Bytes::len);
    u32::try_from(bytes.min(BYTES_MAX)).unwrap_or(u32::MAX)
}

impl Sender {
    /// Waits until there is room.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) async fn send(&self, chunk: Chunk) -> Result<(), Gone> {
        let room = Arc::clone(&self.room).acquire_many_owned(room_of(&chunk)).await.map_err(|_| Gone)?;
        self.chunks.send((chunk, room)).await.map_err(|_| Gone)
    }

    /// Lets it go, if there is no room.
    pub(super) fn send_now(&self, chunk: Chunk) {
        if let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(room_of(&chunk)) {
            drop(self.chunks.try_send((chunk, room)));
        }
    }

    /// Returns when the client is gone.
    pub(super) async fn closed(&self) {
        self.chunks.closed().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.chunks.is_closed()
    }

    /// Whether both are of the same queue.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.chunks.same_channel(&other.chunks)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_holds_so_many_bytes_and_one_that_is_longer_alone() {
        let (sender, mut out) = queue(16);
        let send = |bytes: usize| sender.send(Ok(vec![0; bytes].into())).now_or_never();
        assert_eq!((send(BYTES_MAX - 1), send(1), send(1)), (Some(Ok(())), Some(Ok(())), None));
        assert_eq!(out.next().await.unwrap().unwrap().len(), BYTES_MAX - 1);
        assert_eq!(send(2 * BYTES_MAX), None);
        assert_eq!(out.next().await.unwrap().unwrap().len(), 1);
        assert_eq!((send(2 * BYTES_MAX), send(1)), (Some(Ok(())), None));
        sender.send_now(Ok(vec![0].into()));
        // Whoever waits for room learns that nobody reads.
        let waits = sender.send(Ok(vec![0].into()));
        let (sent, ()) = tokio::join!(waits, async { drop(out) });
        assert_eq!((sent, sender.is_closed()), (Err(Gone), true));
    }
}
