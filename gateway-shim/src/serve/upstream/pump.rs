//! A stream from a server to a client: each event goes on when it was read as a whole.
//!
//! What must hold: what the server asks for in it is on record before the client sees it; an event that two readers might read
//! differently, that is too long to be read, or that answers nothing that was asked, does not pass; a client that does not
//! read keeps no call beyond its time, nor beyond a change of access.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use custody::wire::Outcome;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::{Own, of_status};
use crate::{
    clock,
    mcp::{
        envelope::{self, Message},
        sse,
    },
    serve::{
        LAST_EVENT,
        open::{self, Running},
        proxy::{Came, Proxy, Server},
        queue::{self, Chunk},
        refusal::{CODE_OVER_LIMIT, CODE_REVOKED, CODE_TOO_LONG, REVOKED, Refusal, error_body},
        sessions,
    },
    writer::Ending,
};

/// Chunks on their way to a client that reads slowly.
pub(super) const CHUNKS_MAX: usize = 16;
/// How long an answer is read on after its client has gone: a lost connection is not a cancellation.
pub(super) const READ_ON: Duration = Duration::from_secs(60);
/// How long a stream that answers nothing may last.
const STREAM_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The request whose answer is a stream that lasts as long as its client wants.
const LISTEN: &str = "subscriptions/listen";

/// A stream from the server to the client.
pub(super) struct Pump {
    proxy: Arc<Proxy>,
    /// Of the client's request, for an answer to the server.
    came: Came,
    session: Option<String>,
    reader: sse::Reader,
    status: StatusCode,
    own: Own,
    /// It is the stream of a session, which answers no request,
    is_stream: bool,
    /// or this one, whose stream it takes up again.
    resumed: Option<sessions::Own>,
    /// Its answer was seen: there is one.
    answered: bool,
    bytes: u64,
}

/// Gives a client what is for it, however slowly it reads, for as long as its call may go on. Whether it is there.
///
/// # Errors
/// How its call ended meanwhile.
async fn give(
    chunks: &queue::Sender,
    chunk: Chunk,
    until: Instant,
    running: Option<&Running>,
) -> Result<bool, Outcome> {
    tokio::select! {
        biased;
        () = open::cut(running) => Err(Outcome::Revoked),
        given = chunks.send(chunk) => Ok(given.is_ok()),
        () = clock::sleep_until(until) => Err(Outcome::Timeout),
    }
}

/// What becomes of a message.
enum Passes {
    AsItIs,
    Instead(Bytes),
    Not,
}

impl Pump {
    pub(super) fn new(
        proxy: Arc<Proxy>,
        came: Came,
        session: Option<String>,
        own: Own,
        is_stream: bool,
        status: StatusCode,
    ) -> Self {
        let mut behind = came.headers.get_all(LAST_EVENT).iter();
        let resumed = match (&session, behind.next(), behind.next()) {
            // Of two, the server may read the other one.
            (Some(session), Some(event), None) if is_stream => proxy.sessions.call_of(session, event.as_bytes()),
            _ => None,
        };
        Self {
            proxy,
            came,
            session,
            reader: sse::Reader::default(),
            status,
            own,
            is_stream,
            resumed,
            answered: false,
            bytes: 0,
        }
    }

    fn running(&self) -> Option<&Running> {
        self.own.running.as_ref()
    }

    /// Whether the client ends what it asked for by closing the stream.
    fn ends_with_client(&self) -> bool {
        self.is_stream || self.own.modern || self.own.id.is_empty()
    }

    fn lasts(&self) -> bool {
        self.is_stream || self.running().is_some_and(|running| running.method() == LISTEN)
    }

    pub(super) async fn run(mut self, mut body: Incoming, chunks: queue::Sender, deadline: Instant) {
        let until_end = if self.lasts() { Instant::now() + STREAM_MAX } else { deadline };
        let mut gone_at: Option<Instant> = None;
        let running = self.own.running.clone();
        let ended = loop {
            let until = gone_at.map_or(until_end, |at| at + READ_ON);
            let frame = tokio::select! {
                frame = timeout_at(until, body.frame()) => frame,
                () = open::cut(running.as_ref()) => break Outcome::Revoked,
                () = chunks.closed(), if gone_at.is_none() => {
                    gone_at = Some(Instant::now());
                    if self.ends_with_client() {
                        break Outcome::Cancelled;
                    }
                    continue;
                }
            };
            let chunk = match frame {
                Err(_) => break Outcome::Timeout,
                Ok(None) => {
                    // What is left unfinished goes on as well: a client may read it.
                    let Some(rest) = self.reader.rest() else { break Outcome::Ok };
                    let rest = Ok(self.admit(vec![rest]).await);
                    break give(&chunks, rest, until, running.as_ref()).await.err().unwrap_or(Outcome::Ok);
                }
                Ok(Some(Err(error))) => {
                    tracing::warn!(%error, server = %self.proxy.name, "the MCP server broke off");
                    let broken = Err(std::io::Error::other("the MCP server broke off"));
                    let given = give(&chunks, broken, until, running.as_ref()).await;
                    break given.err().unwrap_or(Outcome::TransportError);
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    Err(_) => continue,
                },
            };
            self.bytes += chunk.len() as u64;
            let pieces = self.reader.push(&chunk);
            let mut passes = self.admit(pieces).await;
            let over = self.over_limit();
            if let Some((code, text)) = over {
                tracing::warn!(server = %self.proxy.name, "{text}");
                passes = [passes, self.told(code, text)].concat().into();
            }
            if gone_at.is_none() && !passes.is_empty() {
                match give(&chunks, Ok(passes), until, running.as_ref()).await {
                    Ok(true) => {}
                    Ok(false) => gone_at = Some(Instant::now()),
                    Err(ended) => break ended,
                }
            }
            if over.is_some() {
                break Outcome::OverLimit;
            }
        };
        if ended == Outcome::Revoked {
            // Whoever does not read is not waited for.
            chunks.send_now(Ok(self.told(CODE_REVOKED, REVOKED)));
        }
        // The connection to the server ends with its body: nobody reads what may not pass.
        drop((chunks, body));
        self.end(ended, deadline).await;
    }

    fn over_limit(&self) -> Option<(i32, &'static str)> {
        if self.reader.over_limit {
            return Some((CODE_TOO_LONG, "the MCP server's event is longer than 16 MiB, so it was not passed on"));
        }
        let most = self.running().map_or(u64::MAX, Running::response_bytes_max);
        (self.bytes > most).then_some((CODE_OVER_LIMIT, "the answer is longer than the access policy allows"))
    }

    /// What the client reads instead of what does not pass: an answer to its request, if it waits for one here.
    fn told(&self, code: i32, text: &str) -> Bytes {
        if self.is_stream || self.own.id.is_empty() {
            return Bytes::new();
        }
        sse::event(&error_body(&self.own.raw_id, code, text))
    }

    async fn admit(&mut self, pieces: Vec<sse::Piece>) -> Bytes {
        let mut admitted = Vec::new();
        for piece in pieces {
            if let (Some(id), Some(session), Some(call)) = (&piece.id, &self.session, self.call()) {
                self.proxy.sessions.event(session, id, &call);
            }
            let passes = match &piece.data {
                Some(data) => self.message(data).await,
                None => Passes::AsItIs,
            };
            match passes {
                Passes::AsItIs => admitted.extend(piece.raw),
                Passes::Instead(data) => admitted.extend(sse::with_data(&piece.raw, &data)),
                Passes::Not => {}
            }
        }
        admitted.into()
    }

    /// The call that this stream answers, and none else: another one's answer is not cut to what this one's may be.
    fn call(&self) -> Option<sessions::Own> {
        let own = || Some(sessions::Own { id: self.own.id.clone(), running: self.own.running.clone()? });
        if self.is_stream { self.resumed.clone() } else { own() }
    }

    /// Takes note of a message, and decides whether it goes on.
    async fn message(&mut self, bytes: &[u8]) -> Passes {
        match envelope::parse(bytes) {
            // What is only counted has no call.
            Ok(Message::Answer { id, .. }) if self.own.running.is_none() && id == self.own.id => Passes::AsItIs,
            Ok(Message::Answer { id, ending, next }) => {
                let Some(running) = self.asked(&id) else {
                    // It might be a list that is not cut to what this member may see.
                    self.proxy.unread(bytes.len());
                    return Passes::Not;
                };
                // One that has ended is cut no more, and what it gave is not for whoever may not ask for it any more.
                if self.is_stream && !running.may_go_on(&self.proxy.shared.access, clock::now_us()) {
                    running.end(Ending::of(Outcome::Revoked));
                    return Passes::Instead(running.error(CODE_REVOKED, REVOKED));
                }
                // The header is not of a call whose stream is taken up again.
                let ending = if self.is_stream { ending } else { self.own.with_receipt(ending) };
                match self.proxy.hear(&running, bytes, ending, next).await {
                    Some(instead) => Passes::Instead(instead),
                    None => Passes::AsItIs,
                }
            }
            Ok(Message::Request(request)) => {
                let session = self.session.clone().unwrap_or_default();
                let asked = match self.own.modern {
                    // Without sessions no server asks so (MCP 2026-07-28), and no client could answer.
                    true => {
                        self.proxy.unread(bytes.len());
                        Err(Refusal::asks_nobody())
                    }
                    false => self.proxy.ask_back(&session, self.running(), &request, bytes.len()).await,
                };
                match asked {
                    Ok(()) => Passes::AsItIs,
                    Err(refusal) => {
                        if let Server::Http(server) = &self.proxy.server {
                            let told = error_body(&request.raw_id, refusal.code, &refusal.text);
                            server.tell(&self.came, told.into());
                        }
                        Passes::Not
                    }
                }
            }
            Ok(Message::Notification { method, task, resource, .. }) => {
                self.proxy.noted(&method);
                match self.proxy.may_hear(task.as_deref(), resource.as_deref(), &self.came.caller) {
                    true => Passes::AsItIs,
                    false => Passes::Not,
                }
            }
            // Another reader might find a request in it.
            Err(_) => {
                self.proxy.unread(bytes.len());
                Passes::Not
            }
        }
    }

    /// The call that an answer is for.
    fn asked(&mut self, id: &str) -> Option<Running> {
        let call = self.call().filter(|call| call.id == id && !self.answered)?;
        self.answered = true;
        // Whoever hears the answer may use its id again.
        if let Some(session) = &self.session {
            self.proxy.open.leave(session, id, &call.running);
        }
        Some(call.running)
    }

    async fn end(mut self, ended: Outcome, deadline: Instant) {
        let Some(running) = self.own.running.clone() else { return };
        let mut ending = Ending { response_bytes: self.bytes, ..Ending::of(ended) };
        if !self.status.is_success() && ended != Outcome::OverLimit {
            ending = of_status(self.status, ending);
        } else if ended == Outcome::Ok && !self.is_stream {
            // It ended well, without an answer that could be read; if there was one, the call has ended before.
            ending.outcome = Outcome::TransportError;
        } else if ended == Outcome::Cancelled && self.is_stream {
            // So does every stream that answers nothing.
            ending.outcome = Outcome::Ok;
        }
        let mut entered = self.own.entered.take();
        let may_be_resumed = self.reader.resumable
            && self.status.is_success()
            && ![Outcome::Timeout, Outcome::OverLimit, Outcome::Revoked].contains(&ended);
        let cancelled = entered.as_ref().and_then(open::Entered::cancelled);
        if cancelled == Some(true) && ended != Outcome::Revoked {
            ending.outcome = Outcome::Cancelled;
        } else if let Some(entered) = entered.as_mut().filter(|_| cancelled.is_some() && may_be_resumed) {
            // The client may take the stream up again; the answer is then seen there.
            tokio::select! {
                () = clock::sleep_until(deadline) => ending.outcome = Outcome::Timeout,
                () = running.cut() => {}
                () = entered.left() => {}
            }
        }
        running.end(ending);
        if !self.is_stream {
            running.retire();
        }
    }
}

#[cfg(test)]
mod tests {
    use custody::id::MemberId;

    use super::*;
    use crate::{
        access::{Access, Caller},
        serve::admit,
    };

    /// It has the place of its call, at the server and within its limits.
    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_as_any_other() {
        let cuts = open::Cuts::default();
        let caller = Caller::anybody(MemberId([1; 16]), None);
        let running = cuts.begin(admit::asked_of_session(&"test".into(), &caller, 0), "tools/call", "1");
        let (chunks, unread) = queue::queue(1);
        let until = Instant::now();
        let more = || give(&chunks, Ok(Bytes::from_static(b"x")), until, Some(&running));
        assert_eq!(more().await, Ok(true));
        assert_eq!(more().await, Err(Outcome::Timeout));
        cuts.look(&Access::of("version = 1\n", None).unwrap(), clock::now_us());
        assert_eq!(more().await, Err(Outcome::Revoked));
        drop(unread);
        assert_eq!(give(&chunks, Ok(Bytes::new()), until, None).await, Ok(false));
    }
}
