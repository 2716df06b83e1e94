//! What servers say in the streams of one client. Each counts its own requests, progress and events from the same number, so
//! these become `SERVER__ID` on the way to the client, and what they were on the way back.
//!
//! What must hold: nothing else changes; what comes back names the server that it is for.

use axum::{body::Body, http::header};
use bytes::Bytes;
use futures::stream;
use serde_json::value::RawValue;
use tokio_stream::StreamExt as _;

use crate::{
    config::BETWEEN,
    mcp::{
        envelope::{self, Message},
        splice, sse,
    },
    serve::{Answer, text},
};

const ID: &[&str] = &["id"];
/// The token under which a server wants to hear how far the client is with its request.
const PROGRESS_ASKED: &[&str] = &["params", "_meta", "progressToken"];
const PROGRESS: &[&str] = &["params", "progressToken"];
const CANCELLED: &[&str] = &["params", "requestId"];

/// Whether an answer is a stream of events.
pub(super) fn is_stream(answer: &Answer) -> bool {
    let content = text(answer.headers(), header::CONTENT_TYPE.as_str()).unwrap_or_default();
    answer.status().is_success() && content.to_ascii_lowercase().starts_with("text/event-stream")
}

/// An answer in whose stream what this server counts is no other server's.
pub(super) fn with_own_ids(answer: Answer, server: &str) -> Answer {
    if !is_stream(&answer) {
        return answer;
    }
    let server = server.to_owned();
    answer.map(|body| {
        let state = Some((body.into_data_stream(), sse::Reader::default(), server));
        Body::from_stream(stream::unfold(state, |state| async move {
            let (mut chunks, mut reader, server) = state?;
            let named = |piece| of_call(piece, &server);
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    let out: Vec<u8> = reader.push(&chunk).into_iter().flat_map(named).collect();
                    Some((Ok::<_, axum::Error>(Bytes::from(out)), Some((chunks, reader, server))))
                }
                Some(Err(why)) => Some((Err(why), None)),
                None => {
                    let rest = reader.rest().map(named).unwrap_or_default();
                    Some((Ok(Bytes::from(rest)), None))
                }
            }
        }))
    })
}

/// A piece of the stream that answers a call: its place in it is named by the server.
fn of_call(piece: sse::Piece, server: &str) -> Vec<u8> {
    let id = piece.id.as_deref().map(|id| std::str::from_utf8(id).unwrap_or_default());
    match id.map(|id| (!id.is_empty()).then(|| own(server, id))) {
        Some(id) => sse::with_id(&renamed(piece, server), id.as_deref()),
        None => renamed(piece, server),
    }
}

/// A server and what it said.
pub(super) fn own(server: &str, said: &str) -> String {
    format!("{server}{BETWEEN}{said}")
}

/// A piece in which the ids and tokens that a server chose are its own. Its id, if it has one, stays.
pub(super) fn renamed(piece: sse::Piece, server: &str) -> Vec<u8> {
    let Some(data) = &piece.data else { return piece.raw };
    let paths: &[&[&str]] = match envelope::parse(data) {
        Ok(Message::Request(_)) => &[ID, PROGRESS_ASKED],
        Ok(Message::Notification { cancels: Some(_), .. }) => &[CANCELLED],
        _ => return piece.raw,
    };
    let mut renamed = data.clone();
    for path in paths {
        let value = std::str::from_utf8(&renamed).ok().and_then(|data| splice::value(data, path));
        let Some(value) = value.map(|value| own(server, value)) else { continue };
        let value = serde_json::to_string(&value).unwrap_or_default();
        renamed = splice::replace(&renamed, path, &value).unwrap_or(renamed);
    }
    sse::with_data(&piece.raw, &renamed)
}

/// The server that is named at this place, and the message with what stood there.
fn back(body: &[u8], path: &[&str]) -> Option<(String, Bytes)> {
    let said = splice::value(std::str::from_utf8(body).ok()?, path)?;
    let said: String = serde_json::from_str(said).ok()?;
    let (server, raw) = said.split_once(BETWEEN)?;
    serde_json::from_str::<&RawValue>(raw).ok()?;
    Some((server.to_owned(), splice::replace(body, path, raw)?.into()))
}

/// The server whose request an answer is for, and the answer under the id that the request had there.
pub(super) fn of_answer(body: &[u8]) -> Option<(String, Bytes)> {
    back(body, ID)
}

/// The server whose request a client's progress is about, and the notification with the token that it had there.
pub(super) fn of_progress(body: &[u8]) -> Option<(String, Bytes)> {
    back(body, PROGRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(events: &str) -> sse::Piece {
        sse::Reader::default().push(events.as_bytes()).pop().unwrap()
    }

    fn data(events: &[u8]) -> String {
        let data = sse::Reader::default().push(events).pop().unwrap().data.unwrap();
        String::from_utf8(data).unwrap()
    }

    #[test]
    fn an_id_comes_back_as_it_was() {
        for id in ["1", "\"a__b\"", "\"\\u00e4\"", "-7"] {
            let asked = format!("id: 5\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"roots/list\"}}\n\n");
            let data = data(&of_call(first(&asked), "files"));
            let there = splice::value(&data, ID).unwrap().to_owned();
            assert!(there.starts_with("\"files__"), "{there}");
            let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":{there},\"result\":{{}}}}");
            let (server, back) = of_answer(answer.as_bytes()).unwrap();
            assert_eq!(server, "files");
            assert_eq!(back, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}"));
        }
        assert!(of_answer(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#).is_none());
        assert!(of_answer(br#"{"jsonrpc":"2.0","id":"files__}","result":{}}"#).is_none());
    }

    /// A client's progress and a server's second thought find the request that they are about.
    #[test]
    fn tokens_and_cancellations_are_of_the_server_that_said_them() {
        let asked = r#"data: {"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"_meta":{"progressToken":7},"n":1.0}}"#;
        let asked = data(&of_call(first(&format!("{asked}\n\n")), "files"));
        let token = splice::value(&asked, PROGRESS_ASKED).unwrap();
        assert!(token == "\"files__7\"" && asked.contains("\"n\":1.0"), "{asked}");
        let progress = |token: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1}}}}"#
            )
        };
        let (server, back) = of_progress(progress(token).as_bytes()).unwrap();
        assert_eq!((server.as_str(), back), ("files", Bytes::from(progress("7"))));
        let cancelled = r#"data: {"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        let cancelled = data(&of_call(first(&format!("{cancelled}\n\n")), "files"));
        assert!(cancelled.contains(r#""requestId":"files__1""#), "{cancelled}");
        // What is about the client's own requests stays.
        let told =
            "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":7}}\n\n";
        assert_eq!(of_call(first(told), "files"), told.as_bytes());
    }

    #[test]
    fn a_place_in_a_stream_is_named_by_its_server() {
        assert_eq!(of_call(first("id: 5\ndata:\n\n"), "files"), b"id: files__5\ndata:\n\n");
        assert_eq!(of_call(first("id:\ndata: x\n\n"), "files"), b"data: x\n\n");
        assert_eq!(of_call(first(": still here\n"), "files"), b": still here\n");
    }
}
