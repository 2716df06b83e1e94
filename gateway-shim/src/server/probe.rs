//! Asks a process that nobody uses yet whether it answers requests without a session (`server/discover`, MCP 2026-07-28).

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

use super::launch::Started;
use crate::mcp::envelope::{self, Message};

/// The question. Its id is none that a client uses by chance.
pub const DISCOVER: &str = r#"{"jsonrpc":"2.0","id":"custody/discover","method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"custody-gateway-shim","version":"1"}}}}"#;
/// Greatest line that is read of the answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// JSON-RPC code for a version that a server of that revision does not take; it names those that it does.
const UNSUPPORTED: u32 = (-32_022_i32).cast_unsigned();

/// What it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It does.
    Answers,
    /// An error: it speaks in sessions alone.
    Declines,
    /// Nothing in time.
    Silent,
    /// It ended over it.
    Ended,
}

/// Asks, and reads no further than the answer.
pub async fn probe(started: &mut Started, wait: Duration) -> Probed {
    tokio::time::timeout(wait, ask(started)).await.unwrap_or(Probed::Silent)
}

async fn ask(started: &mut Started) -> Probed {
    let asked = async {
        started.stdin.write_all(DISCOVER.as_bytes()).await?;
        started.stdin.write_all(b"\n").await?;
        started.stdin.flush().await
    };
    if asked.await.is_err() {
        return Probed::Ended;
    }
    loop {
        let mut line = Vec::new();
        let read = (&mut started.stdout).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) || !line.ends_with(b"\n") {
            return Probed::Ended;
        }
        // What it says besides is for nobody: nobody has asked it anything.
        match envelope::parse(line.trim_ascii()) {
            Ok(Message::Answer { ending, .. }) if ending.error_code.is_none() => return Probed::Answers,
            // A server of that revision names the versions that it takes: it is one.
            Ok(Message::Answer { ending, .. }) if ending.error_code == Some(UNSUPPORTED) => return Probed::Answers,
            Ok(Message::Answer { .. }) => return Probed::Declines,
            _ => {}
        }
    }
}
