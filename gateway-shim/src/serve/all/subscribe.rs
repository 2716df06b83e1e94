//! `subscriptions/listen` at all servers at once (2026-07-28): one subscription of the client's is one at each server that
//! speaks so, and what they tell is one stream.
//!
//! What must hold: each server's subscription is decided on and recorded as at `/mcp/SERVER`, and is about that server's
//! resources alone; what is not allowed at one is refused as a whole, as there; the first thing that the client hears is what
//! the servers agreed to; when it goes, every server is told.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::BodyDataStream, http::StatusCode};
use bytes::Bytes;
use futures::{future::join_all, stream};
use serde_json::{Map, Value, json};
use tokio_stream::StreamExt as _;

use super::{OwnRecord, lists, streams};
use crate::{
    mcp::{
        envelope::{self, Message, Request},
        splice, sse,
    },
    serve::{
        Answer, Front,
        proxy::{Came, Proxy},
        queue,
        refusal::{CODE_DENIED, CODE_OVER_LIMIT, CODE_UNREACHABLE, error, json, own_code},
        stdio,
    },
};

/// How long a server may take to agree: the client hears nothing before all have, or have not.
const AGREE_WAIT: Duration = Duration::from_secs(10);
/// Chunks on their way to a client that reads slowly; then the servers wait, too.
const CHUNKS_MAX: usize = 64;
const FILTER: [&str; 2] = ["params", "notifications"];
const RESOURCES: &str = "resourceSubscriptions";
const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";

/// The stream of a server that has agreed.
struct Agreed {
    chunks: BodyDataStream,
    reader: sse::Reader,
    /// What came behind its agreement.
    pieces: Vec<sse::Piece>,
    /// What it agreed to.
    to: Map<String, Value>,
}

/// What came instead of an agreement: an answer, if there was one, and whether that is the shim's own refusal of what is not
/// allowed.
#[derive(Default)]
struct Instead {
    said: Option<String>,
    is_ours: bool,
}

/// What the last of a server's answers says; the client gets one of all.
type Last = Arc<Mutex<Option<Vec<u8>>>>;

impl Front {
    pub(super) async fn subscribe(
        &self,
        came: &Came,
        request: &Request,
        body: &Bytes,
        mut record: OwnRecord,
    ) -> Answer {
        let of_server = self.resources_by_server(came, request, body).await;
        let asks = self.reachable(&came.caller).filter(|proxy| !self.all.needs_session(&proxy.name)).map(|proxy| {
            let body = about(body, of_server.get(&proxy.name).map_or(&[][..], Vec::as_slice));
            self.agreed(came, proxy, body)
        });
        let (mut agreed, mut refused) = (Vec::new(), None);
        for heard in join_all(asks).await {
            match heard {
                Ok(server) => agreed.push(server),
                // What the access policy says stands above what a server does.
                Err(Instead { said, is_ours: true }) => return instead(&mut record, said.unwrap_or_default()),
                Err(Instead { said, .. }) => refused = refused.or(said),
            }
        }
        match (agreed.is_empty(), refused) {
            (true, Some(said)) => instead(&mut record, said),
            (true, None) => {
                record.answered(Some(CODE_UNREACHABLE));
                let text = "no server here agrees to a subscription; hint: ask one at /mcp/NAME";
                error(StatusCode::OK, &request.raw_id, CODE_UNREACHABLE, text)
            }
            (false, _) => joined(agreed, request.raw_id.clone(), record),
        }
    }

    /// The resources that a subscription is about, by the servers that have them; nobody has the others.
    async fn resources_by_server(
        &self,
        came: &Came,
        request: &Request,
        body: &Bytes,
    ) -> BTreeMap<Arc<str>, Vec<String>> {
        let is_known = |uri: &String| self.of_resource(&came.caller, uri).is_some();
        if !request.resources.iter().all(is_known) {
            self.learn_resources(came, None, request, body).await;
        }
        let mut of_server: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for uri in &request.resources {
            if let Some(server) = self.of_resource(&came.caller, uri) {
                of_server.entry(server).or_default().push(uri.clone());
            }
        }
        of_server
    }

    /// Asks one server, and reads until it has agreed.
    ///
    /// # Errors
    /// What it gives instead.
    async fn agreed(&self, came: &Came, proxy: &Arc<Proxy>, body: Bytes) -> Result<Agreed, Instead> {
        let agreed = async {
            let answer = proxy.message(came.clone(), body).await;
            if !streams::is_stream(&answer) {
                let is_ours = own_code(&answer).is_some_and(|code| [CODE_DENIED, CODE_OVER_LIMIT].contains(&code));
                let said = lists::read(answer).await.filter(|said| !said.is_empty());
                return Err(Instead { said, is_ours });
            }
            let (mut chunks, mut reader) = (answer.into_body().into_data_stream(), sse::Reader::default());
            while let Some(Ok(chunk)) = chunks.next().await {
                let mut pieces = reader.push(&chunk).into_iter();
                while let Some(piece) = pieces.next() {
                    match said(&piece) {
                        Said::Agreed(to) => return Ok(Agreed { chunks, reader, pieces: pieces.collect(), to }),
                        Said::Answer => {
                            let said = piece.data.and_then(|data| String::from_utf8(data).ok());
                            return Err(Instead { said, is_ours: false });
                        }
                        Said::Else => {}
                    }
                }
            }
            Err(Instead::default())
        };
        tokio::time::timeout(AGREE_WAIT, agreed).await.unwrap_or_else(|_| Err(Instead::default()))
    }
}

/// The subscription of the client with these resources alone.
fn about(body: &Bytes, resources: &[String]) -> Bytes {
    let whole = std::str::from_utf8(body).unwrap_or_default();
    let filter =
        splice::value(whole, &FILTER).and_then(|filter| serde_json::from_str::<Map<String, Value>>(filter).ok());
    let Some(mut filter) = filter else { return body.clone() };
    match resources.is_empty() {
        true => drop(filter.remove(RESOURCES)),
        false => drop(filter.insert(RESOURCES.to_owned(), resources.into())),
    }
    splice::replace(body, &FILTER, &Value::Object(filter).to_string()).map_or_else(|| body.clone(), Bytes::from)
}

/// The code of an answer that is an error.
fn code(said: &str) -> Option<i32> {
    splice::value(said, &["error", "code"]).and_then(|code| code.parse().ok())
}

/// What a server, or the shim in front of it, answered instead of agreeing.
fn instead(record: &mut OwnRecord, said: String) -> Answer {
    record.answered(code(&said));
    json(StatusCode::OK, said.into())
}

enum Said {
    Agreed(Map<String, Value>),
    Answer,
    Else,
}

fn said(piece: &sse::Piece) -> Said {
    let Some(data) = &piece.data else { return Said::Else };
    match envelope::parse(data) {
        Ok(Message::Answer { .. }) => Said::Answer,
        Ok(Message::Notification { method, .. }) if method == ACKNOWLEDGED => {
            let to = std::str::from_utf8(data).ok().and_then(|data| splice::value(data, &FILTER));
            Said::Agreed(to.and_then(|to| serde_json::from_str(to).ok()).unwrap_or_default())
        }
        _ => Said::Else,
    }
}

/// What all have agreed to: what any has.
fn all_of<'a>(agreed: impl Iterator<Item = &'a Map<String, Value>>) -> Map<String, Value> {
    let mut all = Map::new();
    for (key, value) in agreed.flatten() {
        match (all.get_mut(key), value) {
            (Some(Value::Array(known)), Value::Array(more)) => known.extend(more.iter().cloned()),
            (Some(Value::Bool(known)), Value::Bool(more)) => *known |= more,
            (Some(_), _) => {}
            (None, value) => drop(all.insert(key.clone(), value.clone())),
        }
    }
    all
}

/// One stream of all, whose record ends with it, as `cancelled` if its client goes: what was agreed to, what the servers tell, and, when all have ended theirs, the answer.
fn joined(agreed: Vec<Agreed>, raw_id: String, mut record: OwnRecord) -> Answer {
    let id: Value = serde_json::from_str(&raw_id).unwrap_or_default();
    let meta = json!({"io.modelcontextprotocol/subscriptionId": id});
    let params = json!({"_meta": meta, "notifications": all_of(agreed.iter().map(|server| &server.to))});
    let first = json!({"jsonrpc": "2.0", "method": ACKNOWLEDGED, "params": params}).to_string();
    let (events, heard) = queue::queue(CHUNKS_MAX);
    let last = Last::default();
    for server in agreed {
        tokio::spawn(server.tell(events.clone(), Arc::clone(&last)));
    }
    drop(events);
    let end = stream::once(async move {
        let said = last.lock().unwrap_or_else(PoisonError::into_inner).take();
        record.answered(said.as_deref().and_then(|said| code(std::str::from_utf8(said).ok()?)));
        let result = || json!({"jsonrpc": "2.0", "id": id, "result": {"resultType": "complete", "_meta": meta}});
        sse::event(&said.unwrap_or_else(|| result().to_string().into()))
    });
    stdio::events(tokio_stream::once(sse::event(first.as_bytes())).chain(heard.filter_map(Result::ok)).chain(end))
}

impl Agreed {
    /// Passes on what a server tells until it ends, or until nobody hears any more: then its stream ends, which tells it.
    async fn tell(mut self, events: queue::Sender, last: Last) {
        let mut pieces = std::mem::take(&mut self.pieces);
        loop {
            let mut out = Vec::new();
            for piece in pieces {
                match said(&piece) {
                    Said::Agreed(_) => {}
                    Said::Answer => {
                        let error = piece.data.filter(|data| {
                            std::str::from_utf8(data).is_ok_and(|data| splice::value(data, &["error"]).is_some())
                        });
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = error;
                    }
                    // No such stream is taken up again.
                    Said::Else if piece.id.is_some() => out.extend(sse::with_id(&piece.raw, None)),
                    Said::Else => out.extend(piece.raw),
                }
            }
            if !out.is_empty() && events.send(Ok(out.into())).await.is_err() {
                return;
            }
            let chunk = tokio::select! {
                chunk = self.chunks.next() => chunk,
                () = events.closed() => return,
            };
            let Some(Ok(chunk)) = chunk else { return };
            pieces = self.reader.push(&chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_asked_about_its_own_resources() {
        let body =
            r#"{"id":1.0,"params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a","b"]}}}"#;
        let of = |resources: &[String]| {
            String::from_utf8(about(&Bytes::from_static(body.as_bytes()), resources).to_vec()).unwrap()
        };
        let expected = |resources: &str| {
            format!(r#"{{"id":1.0,"params":{{"notifications":{{{resources}"toolsListChanged":true}}}}}}"#)
        };
        assert_eq!(of(&["b".to_owned()]), expected(r#""resourceSubscriptions":["b"],"#));
        assert_eq!(of(&[]), expected(""));
        let none = Bytes::from_static(br#"{"id":1}"#);
        assert_eq!(about(&none, &[]), none);
    }

    #[test]
    fn what_any_server_agrees_to_is_agreed_to() {
        let of = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let agreed = [
            of(r#"{"toolsListChanged":true,"resourceSubscriptions":["a"]}"#),
            of(r#"{"toolsListChanged":false,"promptsListChanged":true,"resourceSubscriptions":["b"]}"#),
            of("{}"),
        ];
        let all = r#"{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["a","b"]}"#;
        assert_eq!(all_of(agreed.iter()), of(all));
    }
}
