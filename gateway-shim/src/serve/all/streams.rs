//! Requests of servers in the streams of one client: each server counts its own from the same number, so their ids become
//! `SERVER__ID` on the way to the client, and what they were on the way back.

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

const ID: [&str; 1] = ["id"];

/// An answer in whose stream the requests of this server have ids that are no other server's.
pub(super) fn with_own_ids(answer: Answer, server: &str) -> Answer {
    let content = text(answer.headers(), header::CONTENT_TYPE.as_str()).unwrap_or_default().to_ascii_lowercase();
    if !content.starts_with("text/event-stream") {
        return answer;
    }
    let server = server.to_owned();
    answer.map(|body| {
        let state = Some((body.into_data_stream(), sse::Reader::default(), server));
        Body::from_stream(stream::unfold(state, |state| async move {
            let (mut chunks, mut reader, server) = state?;
            match chunks.next().await {
                Some(Ok(chunk)) => {
                    let out: Vec<u8> =
                        reader.push(&chunk).into_iter().flat_map(|piece| renamed(piece, &server)).collect();
                    Some((Ok::<_, axum::Error>(Bytes::from(out)), Some((chunks, reader, server))))
                }
                Some(Err(why)) => Some((Err(why), None)),
                None => {
                    let rest = reader.rest().map(|piece| renamed(piece, &server)).unwrap_or_default();
                    Some((Ok(Bytes::from(rest)), None))
                }
            }
        }))
    })
}

fn renamed(piece: sse::Piece, server: &str) -> Vec<u8> {
    let Some(data) = &piece.data else { return piece.raw };
    let Ok(Message::Request(request)) = envelope::parse(data) else { return piece.raw };
    let id = serde_json::to_string(&format!("{server}{BETWEEN}{}", request.raw_id)).unwrap_or_default();
    match splice::replace(data, &ID, &id) {
        Some(data) => sse::with_data(&piece.raw, &data),
        None => piece.raw,
    }
}

/// The server whose request an answer is for, and the answer under the id that the request had there.
pub(super) fn own_id(body: &[u8]) -> Option<(String, Bytes)> {
    let id = splice::value(std::str::from_utf8(body).ok()?, &ID)?;
    let id: String = serde_json::from_str(id).ok()?;
    let (server, raw_id) = id.split_once(BETWEEN)?;
    serde_json::from_str::<&RawValue>(raw_id).ok()?;
    Some((server.to_owned(), splice::replace(body, &ID, raw_id)?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_as_it_was() {
        for id in ["1", "\"a__b\"", "\"\\u00e4\"", "-7"] {
            let asked = format!("id: 5\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"roots/list\"}}\n\n");
            let piece = sse::Reader::default().push(asked.as_bytes()).pop().unwrap();
            let renamed = renamed(piece, "files");
            let data = sse::Reader::default().push(&renamed).pop().unwrap().data.unwrap();
            let there = splice::value(std::str::from_utf8(&data).unwrap(), &ID).unwrap().to_owned();
            assert!(there.starts_with("\"files__"), "{there}");
            let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":{there},\"result\":{{}}}}");
            let (server, back) = own_id(answer.as_bytes()).unwrap();
            assert_eq!(server, "files");
            assert_eq!(back, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}"));
        }
        assert!(own_id(br#"{"jsonrpc":"2.0","id":1,"result":{}}"#).is_none());
        assert!(own_id(br#"{"jsonrpc":"2.0","id":"files__}","result":{}}"#).is_none());
    }
}
