//! What happens when the ledger shows two histories: the proof goes to a file and to a second address, and the gateway ends
//! with an exit code of its own.

use std::path::{Path, PathBuf};

use custody::id::hex;
use http_body_util::Full;
use hyper::{Method, Request, header};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Serialize;

use crate::{clock, config::ForkConfig, durable, key::Name, receipt::Fork};

/// Longest wait for the second address: the process ends in any case, with the file.
const SECOND_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Serialize)]
struct Proof<'a> {
    version: u32,
    finding: &'a str,
    origin: &'a str,
    workspace: String,
    gateway: String,
    /// What the ledger signed before, and what it signed now; hex of the bytes as received.
    before: String,
    now: String,
    message: String,
    found_at_us: u64,
}

/// Writes the proof, and sends it to the second address. Gives the file's path, if it could be written.
pub async fn report(who: &Name, fork: &Fork, config: &ForkConfig) -> Option<PathBuf> {
    let found_at_us = clock::now_us();
    let proof = Proof {
        version: 1,
        finding: fork.finding,
        origin: &who.origin,
        workspace: who.workspace.to_string(),
        gateway: who.gateway.to_string(),
        before: hex(&fork.before),
        now: hex(&fork.now),
        message: hex(&fork.message),
        found_at_us,
    };
    let json = serde_json::to_vec_pretty(&proof).unwrap_or_default();
    let name = format!("fork-{}-{found_at_us}.json", who.gateway);
    let file = put(&config.dir, &name, &json);
    let shown = file.as_ref().map_or_else(|| "none could be written".to_owned(), |file| file.display().to_string());
    tracing::error!(finding = fork.finding, file = shown, "FORK: the ledger shows two histories; keep this file");
    match config.second.as_deref() {
        Some(url) if url.contains("://") => match tokio::time::timeout(SECOND_WAIT, post(url, json)).await {
            Ok(Ok(())) => tracing::error!("the proof was sent to the second address"),
            _ => tracing::error!("failed to send the proof to the second address"),
        },
        Some(folder) => {
            put(Path::new(folder), &name, &json);
        }
        None => {}
    }
    file
}

fn put(folder: &Path, name: &str, json: &[u8]) -> Option<PathBuf> {
    let path = folder.join(name);
    let written = durable::create_dir(folder, 0o755).and_then(|()| durable::create_new(&path, json, false));
    match written {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::error!(folder = %folder.display(), %error, "failed to write the proof of a fork");
            None
        }
    }
}

async fn post(url: &str, json: Vec<u8>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(json))?;
    let answer = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>().request(request).await?;
    if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string().into()) }
}
