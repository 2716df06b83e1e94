//! The body of a request: all of it, or why not.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::LengthLimitError;

use super::{
    Answer,
    counts::{Arriving, Counts},
    refusal::{CODE_TIMEOUT, Refusal, error},
    text,
};

/// How a body is taken.
#[derive(Clone, Copy)]
pub(super) struct Taking<'a> {
    pub(super) bytes_max: usize,
    /// How long it may take.
    pub(super) wait: Duration,
    /// Where it is counted if it does not come.
    pub(super) counts: &'a Counts,
}

/// Why a body is not there.
pub(super) enum NotRead {
    /// It is not taken, with its bytes: as many as it says, or at least as many as it may have.
    Refused(Refusal, usize),
    /// The rest of it did not come in time, which is counted; and what its caller is told.
    Torn(Answer),
}

pub(super) async fn read(headers: &HeaderMap, body: Body, taking: Taking<'_>) -> Result<Bytes, NotRead> {
    let Taking { bytes_max, wait, counts } = taking;
    let mut arriving = Arriving(Some(counts));
    let body = tokio::time::timeout(wait, axum::body::to_bytes(body, bytes_max)).await;
    let too_long = |why: &axum::Error| std::error::Error::source(why).is_some_and(|why| why.is::<LengthLimitError>());
    match body {
        Ok(Ok(body)) => {
            arriving.0 = None;
            Ok(body)
        }
        Ok(Err(why)) if too_long(&why) => {
            arriving.0 = None;
            let said = text(headers, header::CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
            Err(NotRead::Refused(Refusal::too_long(bytes_max), said.unwrap_or(bytes_max)))
        }
        Ok(Err(_)) | Err(_) => {
            let text = "the rest of the request did not come in time";
            let mut answer = error(StatusCode::REQUEST_TIMEOUT, "null", CODE_TIMEOUT, text);
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Err(NotRead::Torn(answer))
        }
    }
}
