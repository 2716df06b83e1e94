//! What intake, index and watch keep up with together: `bench keep-up FOLDER [RECORDS]`.
//!
//! What must hold: a rate counts as kept up with only if nobody falls further behind while it lasts; the index alone is
//! measured over the same store in the same run.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ::ledger::{alarm::Alarms, index::Follower, metrics::Metrics, store::Store, tail::Tail};
use serde_json::json;
use tokio::sync::{oneshot, watch};

use crate::{
    Done,
    ask::{BATCH, GATEWAYS, Service, filled, pace_us},
    ledger::Ledger,
    load::{self, Gateway},
    print,
};

/// Records before the first that count.
const WARM: u64 = GATEWAYS * BATCH * 100;
/// How long a rate lasts, and between two looks at who is behind.
const SECONDS: u64 = 40;
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Each rate is so much of the one before, or that of it.
const STEP: f64 = 0.85;
const STEPS: usize = 8;
/// Whoever is less behind than this many seconds of intake at the end keeps up: the index commits every two seconds, and may take as
/// long for it.
const BEHIND_SECONDS_MAX: f64 = 5.0;

/// How far behind index and watch are, again and again, until it is told to end.
async fn looks(ledger: &Ledger, mut over: oneshot::Receiver<()>) -> Done<Vec<[u64; 2]>> {
    let (mut seen, mut ticks) = (Vec::new(), tokio::time::interval(LOOK_EVERY));
    loop {
        tokio::select! {
            _ = &mut over => return Ok(seen),
            _ = ticks.tick() => seen.push(ledger.lags().await?),
        }
    }
}

/// Whether this rate is kept up with.
async fn keeps_up(
    (ledger, service): (&Ledger, &Service),
    gateways: Vec<Gateway>,
    rate: f64,
) -> Done<(Vec<Gateway>, bool)> {
    let mut gateways = gateways;
    let batches = rate / BATCH as f64;
    load::sign(&mut gateways, (batches * SECONDS as f64) as u64 / GATEWAYS, BATCH, true);
    let (end, over) = oneshot::channel();
    let sent = async {
        let sent = load::run(gateways, Some(batches)).await;
        end.send(()).ok();
        sent
    };
    let (sent, seen) = tokio::join!(sent, looks(ledger, over));
    let ((gateways, outcome), seen) = (sent?, seen?);
    let caught_up = service.caught_up(ledger).await?;
    // The most in each quarter of the time, in seconds of intake.
    let most = |who: usize| -> Vec<f64> {
        let quarters = seen.chunks(seen.len().div_ceil(4).max(1));
        quarters.filter_map(|part| part.iter().map(|lags| lags[who]).max()).map(|lag| lag as f64 / batches).collect()
    };
    let behind = [most(0), most(1)];
    let kept = behind.iter().all(|most| most.last().is_some_and(|most| *most < BEHIND_SECONDS_MAX));
    let at = |share| outcome.latency.value_at_quantile(share) as f64 / 1e3;
    print(&json!({
        "offered": rate, "rate": outcome.records as f64 / outcome.seconds, "kept": kept, "p50_ms": at(0.5), "p99_ms": at(0.99),
        "index_behind": behind[0], "watch_behind": behind[1], "caught_up_seconds": caught_up.map(|took| took.as_secs_f64()),
    }));
    Ok((gateways, kept))
}

/// The index alone over a store that nobody else has open: records a second.
fn index_alone(folder: &Path, store: &Path, records: u64) -> Done {
    let store = Arc::new(Store::open(store, 64 << 20, 64 << 20)?);
    let tail = Arc::new(Tail::open(&store)?);
    let follower =
        Follower::open(folder.join("index-alone"), Arc::clone(&tail), 3_650, (Alarms::new(), Metrics::new()))?;
    let index = follower.index();
    let (stop, stopped) = watch::channel(());
    let runtime = tokio::runtime::Handle::current();
    let began = Instant::now();
    let thread = std::thread::spawn(move || follower.run(&runtime, stopped));
    while index.indexed_through() < tail.committed() {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs_f64();
    print(&json!({ "index_alone_records": records, "seconds": seconds, "per_second": records as f64 / seconds }));
    drop(stop);
    thread.join().map_err(|_| "the index broke off")?;
    Ok(())
}

/// Runs it.
pub(crate) async fn run(folder: &Path, records: u64) -> Done {
    // What warms it up is on no clock.
    let (ledger, mut gateways, service) = filled(folder, WARM, pace_us(20 * records)).await?;
    let _alone = gateways.pop();
    load::sign(&mut gateways, records / BATCH / GATEWAYS, BATCH, true);
    let began = Instant::now();
    let outcome;
    (gateways, outcome) = load::run(gateways, None).await?;
    let durable = began.elapsed();
    let [index, watch] = service.caught_up(&ledger).await?.map(|took| (durable + took).as_secs_f64());
    let each = |seconds: f64| outcome.records as f64 / seconds;
    print(&json!({
        "burst": outcome.records, "durable_per_second": each(durable.as_secs_f64()), "indexed_per_second": each(index),
        "watched_per_second": each(watch), "together_per_second": each(index.max(watch)),
    }));
    let mut sent = outcome.records + WARM;
    let mut rate = each(index.max(watch));
    // Up for as long as it is kept up with, else down until it is.
    let mut first = None;
    for _ in 0..STEPS {
        let kept;
        (gateways, kept) = keeps_up((&ledger, &service), gateways, rate).await?;
        sent += (rate * SECONDS as f64) as u64;
        if kept != *first.get_or_insert(kept) {
            break;
        }
        rate *= if kept { 1.0 / STEP } else { STEP };
    }
    drop((gateways, service));
    let config = ledger.end().await?;
    tokio::task::block_in_place(|| index_alone(folder, &config.paths.data.join("store"), sent))
}
