//! What a connection gets of a process: the answer as JSON if it comes first, else a stream that ends with it.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{
    super::{
        Answer,
        refusal::{CODE_UNREACHABLE, error, error_body, json},
    },
    session::{Hears, Told},
};
use crate::mcp::{envelope::Request, sse};

/// The answer as JSON if it comes first, else a stream that ends with it.
pub(super) async fn answer_of(request: &Request, hears: Hears) -> Answer {
    let Hears { mut messages, end, here } = hears;
    // Its sender goes with the request: the end is there by then.
    let first = messages.recv().await;
    let end = async move {
        let gone = Told::Failed(StatusCode::BAD_GATEWAY, CODE_UNREACHABLE, "the MCP server ended");
        let told = end.await.unwrap_or(gone);
        drop(here);
        told
    };
    let Some(first) = first else {
        return match end.await {
            Told::Answer(status, line) => json(status, line),
            Told::Failed(status, code, text) => error(status, &request.raw_id, code, text),
            Told::Over => events(tokio_stream::empty()),
        };
    };
    let rest = ReceiverStream::new(messages).map(|message| sse::event(&message));
    let raw_id = request.raw_id.clone();
    let end = futures::stream::once(async move {
        match end.await {
            Told::Answer(_, line) => sse::event(&line),
            Told::Failed(_, code, text) => sse::event(&error_body(&raw_id, code, text)),
            Told::Over => Bytes::new(),
        }
    });
    events(tokio_stream::once(sse::event(&first)).chain(rest).chain(end))
}

pub(in super::super) fn events(stream: impl tokio_stream::Stream<Item = Bytes> + Send + 'static) -> Answer {
    let mut answer = Response::new(Body::from_stream(stream.map(Ok::<_, std::convert::Infallible>)));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

pub(in super::super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}
