//! The two pipes of a process: a line is a message.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, ChildStdout},
    sync::{mpsc, oneshot},
};

use super::{
    super::{Proxy, refusal::Refusal},
    session::Session,
};
use crate::mcp::envelope::{self, Message};

/// Greatest line of a process that is forwarded, as of an answer over HTTP; a longer one ends it, because nothing behind it can be
/// told apart.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Writes until it is told to stop, and closes the pipe then.
pub(super) async fn write_lines(
    mut stdin: ChildStdin,
    mut inbox: mpsc::Receiver<Bytes>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let line = tokio::select! {
            line = inbox.recv() => line,
            _ = &mut stopped => None,
        };
        let Some(line) = line else { return };
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        // A process that reads nothing more is ending: its stdout tells.
        tokio::select! {
            done = written => if done.is_err() { return },
            _ = &mut stopped => return,
        }
    }
}

/// Reads until the pipe ends, or holds what is no line.
pub(super) async fn read_lines(proxy: &Arc<Proxy>, session: &Arc<Session>, mut lines: BufReader<ChildStdout>) {
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        let whole = line.last() == Some(&b'\n');
        if !matches!(read, Ok(1..)) || (!whole && line.len() as u64 >= LINE_BYTES_MAX) {
            return;
        }
        let line = Bytes::from(line.trim_ascii().to_vec());
        match envelope::parse(&line) {
            Ok(Message::Answer { id, ending, next }) => {
                let Some(waiting) = session.asked(&id) else { continue };
                let code = ending.error_code;
                let instead = match waiting.running() {
                    Some(running) => proxy.hear(running, &line, ending, next).await,
                    None => None,
                };
                waiting.answered(code, line, instead);
            }
            // Without a session no server asks anything (MCP 2026-07-28), and there is nobody whom this could be for.
            Ok(Message::Request(request)) if session.id().is_none() => {
                proxy.unread(line.len());
                session.refuse(&request, &Refusal::asks_nobody());
            }
            Ok(Message::Request(request)) => {
                match proxy.ask_back(session.id().unwrap_or_default(), None, &request, line.len()).await {
                    Ok(()) => session.say(line, None, None),
                    Err(refusal) => session.refuse(&request, &refusal),
                }
            }
            Ok(Message::Notification { method, progress, subscription, cancels, task, resource }) => {
                proxy.noted(&method);
                let (task, resource) = (task.as_deref(), resource.as_deref());
                // Of a session it is the one who began it; without one, whose request it belongs to.
                let owner = session.id().and_then(|id| proxy.sessions.owner(id)).map(|(owner, _)| owner);
                let owner = owner.or_else(|| subscription.as_deref().and_then(|id| session.caller_of(id)));
                let is_about = task.is_some() || resource.is_some();
                if is_about && !owner.is_some_and(|owner| proxy.may_hear(task, resource, &owner)) {
                    continue;
                }
                if let Some(id) = cancels.filter(|_| session.id().is_none()) {
                    // A server that ends a subscription says so.
                    session.unsubscribed(&id);
                } else {
                    session.say(line, progress.as_deref(), subscription.as_deref());
                }
            }
            // Some servers print banners; empty lines are nothing.
            Err(_) if line.is_empty() => {}
            Err(_) => proxy.unread(line.len()),
        }
    }
}

/// A body as one line: line breaks in JSON stand between tokens only.
pub(super) fn one_line(body: &[u8]) -> Bytes {
    let mut line: Vec<u8> = body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
    line.push(b'\n');
    line.into()
}
