//! Answers whose stream ends when its member may not hear it any more, and whose record ends with it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use custody::wire::Outcome;
use futures::future::BoxFuture;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{Answer, open::Running};
use crate::writer::Ending;

struct Watched {
    body: Body,
    cut: BoxFuture<'static, ()>,
    ends: Option<(Running, Ending)>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some((running, ending)) = self.ends.take() {
            running.end(ending);
        }
    }
}

fn watched(answer: Answer, running: Running, ends: Option<Ending>) -> Answer {
    let cut = Box::pin({
        let running = running.clone();
        async move { running.cut().await }
    });
    answer.map(|body| Body::new(Watched { body, cut, ends: ends.map(|ending| (running, ending)) }))
}

/// A stream that ends when its call may not go on; an answer that is all there stays as it is.
pub(super) fn until_cut(answer: Answer, running: Option<Running>) -> Answer {
    match running {
        Some(running) if HttpBody::size_hint(answer.body()).exact().is_none() => watched(answer, running, None),
        _ => answer,
    }
}

/// An answer that is all that there is of its call: the call ends when it does.
pub(super) fn ends(answer: Answer, running: Running) -> Answer {
    let status = answer.status();
    let ending = match status.is_success() {
        true => Ending::of(Outcome::Ok),
        false => Ending { error_code: Some(u32::from(status.as_u16())), ..Ending::of(Outcome::HttpError) },
    };
    watched(answer, running, Some(ending))
}
