//! The GET stream of a session with all servers: what each says outside of any request, in one stream, which may be taken up
//! again behind any of its events.
//!
//! What must hold: each server's stream is asked for in its own session, decided on and recorded as at `/mcp/SERVER`; it is
//! taken up again behind the last event of that server that the client saw; nobody hears more when they may reach no server
//! any more.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError},
    time::Duration,
};

use axum::http::{HeaderValue, Method, StatusCode};
use custody::wire::Outcome;
use futures::stream::BoxStream;
use tokio::{task::AbortHandle, time::Instant};
use tokio_stream::StreamExt as _;

use super::{Joint, OwnRecord, Proxies, Refusal, streams};
use crate::{
    access::Caller,
    clock,
    config::BETWEEN,
    mcp::sse,
    serve::{
        Answer, Front, LAST_EVENT, LOOK_EVERY, SESSION, admit,
        proxy::{Came, Proxy},
        queue, stdio, text,
    },
    writer::Ending,
};

/// Chunks on their way to a client that reads slowly; then the servers wait, too.
const CHUNKS_MAX: usize = 64;
/// Events of one session behind which its stream may be taken up again.
const EVENTS_MAX: usize = 1_024;
/// Longest id of an event that is kept, in bytes: some hundred are usual.
const ID_BYTES_MAX: usize = 512;
/// How long a server's stream that ended is not asked for again: at first, and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// What the client saw of each server's stream, by the numbers of the events in the one that it hears.
#[derive(Debug, Default)]
pub(super) struct Seen {
    next: u64,
    events: VecDeque<(u64, Arc<str>, String)>,
    /// The last that is not in `events` any more.
    before: BTreeMap<Arc<str>, String>,
}

impl Seen {
    /// Gives the number of an event that a server calls so; none, if it is too long to be kept.
    fn number(&mut self, server: &Arc<str>, id: &[u8]) -> Option<u64> {
        let id = std::str::from_utf8(id).ok().filter(|id| (1..=ID_BYTES_MAX).contains(&id.len()))?;
        let number = self.next;
        self.next += 1;
        self.events.push_back((number, Arc::clone(server), id.to_owned()));
        while self.events.len() > EVENTS_MAX {
            if let Some((_, server, id)) = self.events.pop_front() {
                self.before.insert(server, id);
            }
        }
        Some(number)
    }

    /// The last event of each server, up to the one of this number.
    fn up_to(&self, number: u64) -> BTreeMap<Arc<str>, String> {
        let mut last = self.before.clone();
        for (_, server, id) in self.events.iter().take_while(|(seen, ..)| *seen <= number) {
            last.insert(Arc::clone(server), id.clone());
        }
        last
    }
}

/// Where a client takes up a stream again.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The stream of all, behind the event of this number.
    All(u64),
    /// The stream of a call at this server.
    Of(String, String),
}

/// The place that a client names; none, if it was never given here.
fn place(event: &str) -> Option<Place> {
    let (server, id) = event.split_once(BETWEEN)?;
    match server {
        "" => id.parse().ok().map(Place::All),
        server => Some(Place::Of(server.to_owned(), id.to_owned())),
    }
}

/// A client that hears all servers.
pub(super) struct Hears {
    events: queue::Sender,
    of: BTreeMap<Arc<str>, AbortHandle>,
    /// What looks whether it may be heard. Like those of the servers it can send, so the stream ends when all have ended.
    looks: AbortHandle,
    record: OwnRecord,
}

impl Drop for Hears {
    fn drop(&mut self) {
        self.of.values().chain([&self.looks]).for_each(AbortHandle::abort);
        // So ends every stream that answers nothing, unless it was cut.
        self.record.answered(None);
    }
}

impl Joint {
    /// The client hears from here on, and whatever it heard before ends: an event is for one stream.
    fn begin_hearing(
        &self,
        record: OwnRecord,
        look: impl FnOnce(queue::Sender) -> AbortHandle,
    ) -> BoxStream<'static, queue::Chunk> {
        let (events, heard) = queue::queue(CHUNKS_MAX);
        // What looks finds its own here, or what came behind it.
        let mut hears = self.hears.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = look(events.clone());
        *hears = Some(Hears { events, of: BTreeMap::new(), looks, record });
        heard
    }

    /// The client hears nothing more.
    pub(super) fn end(&self) {
        *self.hears.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends what the client hears, if it is still this, in this way.
    fn end_hearing(&self, events: &queue::Sender, outcome: Outcome) {
        let mut hears = self.hears.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut ended) = hears.take_if(|hears| hears.events.is(events)) {
            ended.record.end(Ending::of(outcome));
        }
    }

    /// If somebody hears: what this server says as well, in the session that was begun there.
    pub(super) fn hear(self: &Arc<Self>, proxy: &Arc<Proxy>, there: &Came, last: Option<String>) {
        let mut hears = self.hears.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(hears) = hears.as_mut().filter(|hears| !hears.events.is_closed()) else { return };
        let source = Source {
            joint: Arc::clone(self),
            proxy: Arc::clone(proxy),
            there: there.clone(),
            last,
            events: hears.events.clone(),
        };
        let task = tokio::spawn(source.run());
        if let Some(before) = hears.of.insert(Arc::clone(&proxy.name), task.abort_handle()) {
            before.abort();
        }
    }
}

/// The stream of one server, within that of all.
struct Source {
    joint: Arc<Joint>,
    proxy: Arc<Proxy>,
    there: Came,
    last: Option<String>,
    events: queue::Sender,
}

impl Source {
    /// Ends when the client is gone, when the server has no such stream, or when it may not be heard any more.
    async fn run(mut self) {
        let mut wait = AGAIN_FIRST;
        loop {
            self.there.headers.remove(LAST_EVENT);
            if let Some(last) = self.last.as_deref().and_then(|last| HeaderValue::from_str(last).ok()) {
                self.there.headers.insert(LAST_EVENT, last);
            }
            let answer = tokio::select! {
                answer = self.proxy.stream(Method::GET, self.there.clone()) => answer,
                () = self.events.closed() => return,
            };
            // The stream that the client had before may not have ended yet.
            if answer.status() != StatusCode::CONFLICT {
                if !streams::is_stream(&answer) {
                    return;
                }
                let begun = Instant::now();
                if self.pass(answer).await.is_err() {
                    return;
                }
                if begun.elapsed() > wait {
                    wait = AGAIN_FIRST;
                }
            }
            // A server may end its stream at any time, and means that it is asked for again.
            tokio::select! {
                () = clock::sleep(wait) => wait = AGAIN_MAX.min(wait * 2),
                () = self.events.closed() => return,
            }
        }
    }

    /// # Errors
    /// When nobody hears any more.
    async fn pass(&mut self, answer: Answer) -> Result<(), queue::Gone> {
        let mut chunks = answer.into_body().into_data_stream();
        let mut reader = sse::Reader::default();
        loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                () = self.events.closed() => return Err(queue::Gone),
            };
            let Some(Ok(chunk)) = chunk else { break };
            let pieces = reader.push(&chunk);
            self.send(pieces).await?;
        }
        // What ended unfinished may come again.
        Ok(())
    }

    async fn send(&mut self, pieces: Vec<sse::Piece>) -> Result<(), queue::Gone> {
        let mut out = Vec::new();
        for piece in pieces {
            let id = piece.id.clone();
            let mut raw = streams::renamed(piece, &self.proxy.name);
            if let Some(id) = id {
                let number =
                    self.joint.seen.lock().unwrap_or_else(PoisonError::into_inner).number(&self.proxy.name, &id);
                if number.is_some() {
                    self.last = String::from_utf8(id).ok();
                }
                raw = sse::with_id(&raw, number.map(|number| streams::own("", &number.to_string())).as_deref());
            }
            out.extend(raw);
        }
        if out.is_empty() { Ok(()) } else { self.events.send(Ok(out.into())).await }
    }
}

impl Front {
    /// The stream of a session with all servers, or that of one call again.
    pub(super) async fn hear_all(&self, came: Came, joint: Arc<Joint>) -> Answer {
        let place = text(&came.headers, LAST_EVENT).and_then(place);
        let mut answer = match place {
            Some(Place::Of(server, id)) => {
                let there = joint.begun(&self.proxies, &came).into_iter().find(|(proxy, _)| *proxy.name == *server);
                let id = HeaderValue::from_str(&id).ok();
                let (Some((proxy, mut there)), Some(id)) = (there, id) else {
                    return self.refuse_all(&came, None, 0, Refusal::not_yours()).await;
                };
                there.headers.insert(LAST_EVENT, id);
                streams::with_own_ids(proxy.stream(Method::GET, there).await, &server)
            }
            place => {
                let record = match self.own_stream(&came, "GET").await {
                    Ok(record) => record,
                    Err(refusal) => return refusal.answer("null"),
                };
                let last = match place {
                    Some(Place::All(number)) => joint.seen.lock().unwrap_or_else(PoisonError::into_inner).up_to(number),
                    _ => BTreeMap::new(),
                };
                let look = |events| {
                    tokio::spawn(self.until_out(came.caller.clone(), Arc::clone(&joint), events)).abort_handle()
                };
                let heard = joint.begin_hearing(record, look);
                // A session that begins from here on is heard by itself.
                for (proxy, there) in joint.begun(&self.proxies, &came) {
                    joint.hear(&proxy, &there, last.get(&proxy.name).cloned());
                }
                stdio::events(heard.filter_map(Result::ok))
            }
        };
        if let Ok(id) = HeaderValue::from_str(joint.id()) {
            answer.headers_mut().insert(SESSION, id);
        }
        answer
    }

    /// Ends what somebody hears when they may reach no server any more, or when their token is not good any more.
    fn until_out(
        &self,
        caller: Caller,
        joint: Arc<Joint>,
        events: queue::Sender,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (access, proxies): (_, Proxies) = (self.shared.access.clone(), self.proxies.clone());
        async move {
            let mut changes = access.changes();
            loop {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = clock::sleep(LOOK_EVERY) => {}
                    () = events.closed() => return joint.end_hearing(&events, Outcome::Ok),
                }
                let may = |proxy: &Arc<Proxy>| {
                    let asked = admit::asked_of_session(&proxy.name, &caller, 0);
                    access.still_allowed(&caller, &asked.ask(), clock::now_us()).is_ok()
                };
                if !proxies.values().any(may) {
                    return joint.end_hearing(&events, Outcome::Revoked);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_place_in_the_stream_of_each_server() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut seen = Seen::default();
        let numbers: Vec<_> = [(&a, "1"), (&b, "x"), (&a, "2")].map(|(of, id)| seen.number(of, id.as_bytes())).into();
        assert_eq!(numbers, [Some(0), Some(1), Some(2)]);
        let at = |seen: &Seen, number| {
            let last = seen.up_to(number);
            (last.get("a").cloned(), last.get("b").cloned())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!((at(&seen, 0), at(&seen, 1)), ((some("1"), None), (some("1"), some("x"))));
        assert_eq!(at(&seen, 2), (some("2"), some("x")));
        // What is no id, and what would fill the memory, has no place.
        for odd in [&b""[..], b"\xff", &[b'a'; ID_BYTES_MAX + 1]] {
            assert_eq!(seen.number(&a, odd), None);
        }
        for _ in 0..EVENTS_MAX {
            seen.number(&b, b"y");
        }
        // Of what is forgotten the last is known.
        assert_eq!((at(&seen, 3), seen.events.len()), ((some("2"), some("y")), EVENTS_MAX));
    }

    #[test]
    fn a_place_is_one_that_was_given_here() {
        assert_eq!(place("__7"), Some(Place::All(7)));
        assert_eq!(place("files__a__b"), Some(Place::Of("files".into(), "a__b".into())));
        assert_eq!((place("7"), place("__x"), place("")), (None, None, None));
    }
}
