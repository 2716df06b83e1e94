//! The sections: ingest over batch sizes and gateways, the headline rates, bytes per record and sealing.

use std::{path::Path, time::Instant};

use serde_json::json;

use crate::{
    Done,
    ledger::{Ledger, cpu_seconds},
    load::{self, Gateway, Outcome},
    print,
};

/// Batches of a closed-loop run: so many for each size that a run takes a few seconds.
fn batches(records: u64) -> u64 {
    match records {
        1 => 24_000,
        16 => 12_000,
        _ => 4_000,
    }
}

/// What else the machine did: the average length of its run queue in the last minute.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

fn report(name: &str, records: u64, gateways: usize, offered: Option<f64>, outcome: &Outcome, cpu: [f64; 3]) {
    let at = |share| outcome.latency.value_at_quantile(share) as f64 / 1e3;
    print(&json!({
        "run": name, "batch": records, "gateways": gateways, "offered": offered,
        "rate": outcome.records as f64 / outcome.seconds, "batches_rate": outcome.batches as f64 / outcome.seconds,
        "seconds": outcome.seconds, "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "max_ms": at(1.0),
        "ledger_cores": cpu[0] / outcome.seconds, "generator_cores": cpu[1] / outcome.seconds, "ledger_mib": cpu[2],
        "us_a_record": (cpu[0] + cpu[1]) * 1e6 / outcome.records as f64, "load": load_average(),
    }));
}

async fn measured(
    ledger: &Ledger,
    name: &str,
    gateways: Vec<Gateway>,
    records: u64,
    offered: Option<f64>,
) -> Done<(Vec<Gateway>, Outcome)> {
    let before = (ledger.used()?.0, cpu_seconds("self")?);
    let count = gateways.len();
    let (gateways, outcome) = load::run(gateways, offered.map(|rate| rate / records as f64)).await?;
    let (after, peak) = ledger.used()?;
    report(name, records, count, offered, &outcome, [after - before.0, cpu_seconds("self")? - before.1, peak as f64]);
    Ok((gateways, outcome))
}

async fn connected(ledger: &Ledger, name: &str, count: u64) -> Done<Vec<Gateway>> {
    let mut gateways = Vec::new();
    for chain in ledger.workspace(name, count).await? {
        gateways.push(Gateway::connect(ledger, chain).await?);
    }
    Ok(gateways)
}

/// Batch 1, 16, 256 × 1, 4, 16 gateways: the most that goes (closed loop), then half of it (open loop).
pub(crate) async fn ingest(folder: &Path, tls: bool) -> Done {
    let ledger = Ledger::start(&folder.join("ledger"), tls, |_| {}).await?;
    for count in [1, 4, 16] {
        let mut gateways = connected(&ledger, &format!("w{count}"), count).await?;
        for records in [1, 16, 256] {
            let each = batches(records) / count;
            load::sign(&mut gateways, each, records, true);
            let outcome;
            (gateways, outcome) = measured(&ledger, "closed", gateways, records, None).await?;
            ledger.settled().await?;
            let half = outcome.records as f64 / outcome.seconds / 2.0;
            // Three seconds of it.
            let each = (half * 3.0 / records as f64 / count as f64).max(1.0) as u64;
            load::sign(&mut gateways, each, records, true);
            (gateways, _) = measured(&ledger, "open", gateways, records, Some(half)).await?;
            ledger.settled().await?;
        }
    }
    Ok(())
}

/// The two aims: the most at batches of 256, and the latency at 50,000 records a second.
pub(crate) async fn headline(folder: &Path, tls: bool, total: u64) -> Done {
    let ledger = Ledger::start(&folder.join("ledger"), tls, |_| {}).await?;
    let mut gateways = connected(&ledger, "headline", 4).await?;
    for _ in 0..2 {
        load::sign(&mut gateways, total / 256 / 4, 256, true);
        (gateways, _) = measured(&ledger, "most", gateways, 256, None).await?;
        ledger.settled().await?;
    }
    for records in [256, 64, 16] {
        load::sign(&mut gateways, 50_000 * 6 / records / 4, records, true);
        (gateways, _) = measured(&ledger, "50,000/s", gateways, records, Some(50_000.0)).await?;
        ledger.settled().await?;
    }
    Ok(())
}

/// What can be kept up: as fast as receipts come, until everything is sealed and archived. The peaks of the ledger's
/// memory beside it, for two lengths.
pub(crate) async fn sustained(folder: &Path, total: u64) -> Done {
    for records in [total / 10, total] {
        let ledger = Ledger::start(&folder.join(format!("ledger-{records}")), true, |_| {}).await?;
        let mut gateways = connected(&ledger, "sustained", 4).await?;
        load::sign(&mut gateways, records / 256 / 4, 256, true);
        let (before, began, peaks) = (ledger.used()?.0, Instant::now(), ledger.peaks());
        let (_gateways, outcome) = load::run(gateways, None).await?;
        let tenths = peaks.tenths().await?;
        ledger.cut().await?;
        let seconds = began.elapsed().as_secs_f64();
        let after = ledger.used()?.0;
        print(&json!({
            "run": "sustained", "records": outcome.records, "durable_rate": outcome.records as f64 / outcome.seconds,
            "archived_rate": outcome.records as f64 / seconds, "ledger_cores": (after - before) / seconds,
            "ledger_mib": tenths, "load": load_average(),
        }));
    }
    Ok(())
}

/// Writes an archive for the verifier: so many records, through the real ledger, in shares that fit in memory.
pub(crate) async fn archive(folder: &Path, records: u64) -> Done {
    let ledger = Ledger::start(&folder.join("ledger"), true, |_| {}).await?;
    let mut gateways = connected(&ledger, "archive", 4).await?;
    let mut left = records;
    while left > 0 {
        let share = left.min(1_000_000);
        load::sign(&mut gateways, share.div_ceil(256 * 4), 256, true);
        (gateways, _) = load::run(gateways, None).await?;
        ledger.settled().await?;
        left -= share;
    }
    ledger.cut().await?;
    print(&json!({"run": "archive", "archive": ledger.config.archive.folder, "policy": ledger.config.paths.policy}));
    Ok(())
}

/// Bytes of the archive per record, and how long a full segment takes from the cut to the published checkpoint.
pub(crate) async fn size(folder: &Path, records: u64) -> Done {
    for with_trace in [true, false] {
        let ledger = Ledger::start(&folder.join(format!("ledger-{with_trace}")), true, |_| {}).await?;
        let mut gateways = connected(&ledger, "size", 1).await?;
        ledger.cut().await?;
        let bytes = |found: &std::collections::BTreeMap<String, (u64, u64)>| {
            found.values().map(|(_, bytes)| bytes).sum::<u64>()
        };
        let before = bytes(&ledger.archived()?);
        // Just below what cuts by itself: one segment of nearly 64 MiB.
        let length = crate::gateway::Chain::fixed(9).calls(256, with_trace).bytes.len() as u64 / 256;
        let count = records.min((62 << 20) / length);
        // One at a time, so that each header carries another head: the worst for compression.
        let mut sent = 0;
        while sent + 256 <= count {
            load::sign(&mut gateways, 1, 256, with_trace);
            let outcome;
            (gateways, outcome) = load::run(gateways, None).await?;
            sent += outcome.records;
        }
        let began = Instant::now();
        ledger.cut().await?;
        let seconds = began.elapsed().as_secs_f64();
        let found = ledger.archived()?;
        print(&json!({
            "run": "size", "trace": with_trace, "records": sent, "raw_bytes": length,
            "bytes": (bytes(&found) - before) as f64 / sent as f64,
            "seal_seconds": seconds, "seal_mib": (sent * length) as f64 / f64::from(1 << 20),
            "objects": found,
        }));
    }
    Ok(())
}
