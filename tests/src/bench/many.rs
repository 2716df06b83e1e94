//! Many small workspaces: what a thousand of them cost at ten calls a minute each. Time is compressed: calls and the age at
//! which segments are cut come [`FASTER`] times as fast, and every figure is divided again.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    Done,
    ledger::Ledger,
    load::{self, Gateway},
    print,
};

/// How much faster than life.
const FASTER: u64 = 10;
/// Seconds after its first record at which a segment is cut, in life.
const AGE_SECONDS: u64 = 300;
/// Calls of a workspace a minute, in life.
const CALLS: u64 = 10;
/// Workspaces that share a connection.
const SHARED: usize = 50;
/// Commands at once while everything is enrolled.
const AT_ONCE: usize = 128;

/// Runs for so many real seconds after every workspace was cut once.
pub(crate) async fn run(folder: &Path, workspaces: u64, seconds: u64) -> Done {
    let ledger = Ledger::start(&folder.join("ledger"), false, |config| {
        config.segment.age_seconds = AGE_SECONDS / FASTER;
        config.publish.unarchived_segments_max = 65_536;
    })
    .await?;
    let ledger = Arc::new(ledger);
    let began = Instant::now();
    let (mut making, turns) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    for number in 0..workspaces {
        let (ledger, turns) = (Arc::clone(&ledger), Arc::clone(&turns));
        making.spawn(async move {
            let _turn = turns.acquire_owned().await?;
            ledger.workspace(&format!("w{number}"), 1).await
        });
    }
    let mut chains = Vec::new();
    while let Some(made) = making.join_next().await {
        chains.extend(made??);
    }
    print(&json!({"run": "enrolled", "workspaces": workspaces, "seconds": began.elapsed().as_secs_f64()}));
    let mut gateways = Vec::new();
    let mut channel = None;
    for (at, chain) in chains.into_iter().enumerate() {
        if at % SHARED == 0 {
            channel = Some(ledger.connect(chain.workspace, chain.gateway).await?);
        }
        let Some(channel) = channel.clone() else { continue };
        gateways.push(Gateway::over(channel, chain).await?);
    }
    let rate = (workspaces * CALLS * FASTER) as f64 / 60.0;
    let calls = |seconds: u64| (seconds * CALLS * FASTER).div_ceil(60);
    // Until every segment has been cut once the ledger has an easy time.
    load::sign(&mut gateways, calls(AGE_SECONDS / FASTER), 1, true);
    (gateways, _) = load::run(gateways, Some(rate)).await?;
    let (before, found) = (ledger.used()?, ledger.archived()?);
    load::sign(&mut gateways, calls(seconds), 1, true);
    let began = Instant::now();
    let (_gateways, outcome) = load::run(gateways, Some(rate)).await?;
    let life = began.elapsed().as_secs_f64() * FASTER as f64;
    let (after, now) = (ledger.used()?, ledger.archived()?);
    let year = Duration::from_secs(365 * 86_400).as_secs_f64() / life;
    let objects: std::collections::BTreeMap<_, _> = now
        .into_iter()
        .map(|(kind, (count, bytes))| {
            let (old, old_bytes) = found.get(&kind).copied().unwrap_or_default();
            (kind, json!({"a_year": (count - old) as f64 * year, "bytes_a_year": (bytes - old_bytes) as f64 * year}))
        })
        .collect();
    let puts: f64 = objects.values().filter_map(|kind| kind["a_year"].as_f64()).sum();
    let at = |share| outcome.latency.value_at_quantile(share) as f64 / 1e3;
    print(&json!({
        "run": "many", "workspaces": workspaces, "records": outcome.records, "life_seconds": life,
        "cores": (after.0 - before.0) / life, "ledger_mib": after.1, "objects": objects, "puts_a_year": puts,
        "dollars_a_year": puts / 1_000.0 * 0.005, "p50_ms": at(0.5), "p99_ms": at(0.99),
    }));
    Ok(())
}
