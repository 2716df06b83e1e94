//! Load: batches signed in advance, sent when due (open loop) or as fast as receipts come (closed loop).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::sync::Semaphore;

use crate::{
    Done,
    gateway::{Chain, Signed, Stream},
    ledger::Ledger,
};

/// Batches of one gateway on their way in the closed loop: what the ledger allows.
const WINDOW: usize = 64;

/// A gateway with its stream.
pub(crate) struct Gateway {
    pub(crate) chain: Chain,
    stream: Stream,
    ready: Vec<Signed>,
}

/// How a run went.
pub(crate) struct Outcome {
    pub(crate) records: u64,
    pub(crate) batches: u64,
    pub(crate) seconds: f64,
    /// Microseconds from when a batch was due to its durable receipt.
    pub(crate) latency: Histogram<u64>,
}

impl Gateway {
    /// Connects, opens an epoch, and waits for its first receipt.
    pub(crate) async fn connect(ledger: &Ledger, chain: Chain) -> Done<Self> {
        let channel = ledger.connect(chain.workspace, chain.gateway).await?;
        Self::over(channel, chain).await
    }

    /// Ships one call and waits until it is acknowledged: its number.
    pub(crate) async fn ship_one(&mut self) -> Done<u64> {
        let batch = self.chain.calls(1, true);
        self.stream.sending().batch(batch.bytes).await?;
        loop {
            let (numbers, head) = self.stream.receipts().await?;
            self.chain.last_head = head;
            if numbers.contains(&batch.number) {
                return Ok(batch.first_record);
            }
        }
    }

    /// The same over a connection that others share.
    pub(crate) async fn over(channel: tonic::transport::Channel, mut chain: Chain) -> Done<Self> {
        let mut stream = Stream::open(channel, &chain).await?;
        stream.sending().batch(chain.opening().bytes).await?;
        loop {
            let (numbers, head) = stream.receipts().await?;
            chain.last_head = head;
            if !numbers.is_empty() {
                return Ok(Self { chain, stream, ready: Vec::new() });
            }
        }
    }
}

/// Signs so many batches for each gateway, on all cores.
pub(crate) fn sign(gateways: &mut [Gateway], batches: u64, records: u64, with_trace: bool) {
    let share = gateways.len().div_ceil(2);
    std::thread::scope(|scope| {
        for some in gateways.chunks_mut(share) {
            scope.spawn(move || {
                for gateway in some {
                    gateway.ready = (0..batches).map(|_| gateway.chain.calls(records, with_trace)).collect();
                }
            });
        }
    });
}

/// Sends everything that was signed. `rate`: batches a second over all gateways; none: as fast as receipts come.
pub(crate) async fn run(gateways: Vec<Gateway>, rate: Option<f64>) -> Done<(Vec<Gateway>, Outcome)> {
    let count = gateways.len();
    let began = Instant::now() + Duration::from_millis(20);
    let mut tasks = Vec::new();
    for (at, gateway) in gateways.into_iter().enumerate() {
        // Gateways take turns, so that the whole load is even.
        let due = rate.map(|rate| {
            let gap = count as f64 / rate;
            (gap * at as f64 / count as f64, gap)
        });
        tasks.push(tokio::spawn(one(gateway, began, due)));
    }
    let mut outcome = Outcome { records: 0, batches: 0, seconds: 0.0, latency: Histogram::new(3)? };
    let mut back = Vec::new();
    for task in tasks {
        let (gateway, part) = task.await??;
        back.push(gateway);
        outcome.records += part.records;
        outcome.batches += part.batches;
        outcome.seconds = outcome.seconds.max(part.seconds);
        outcome.latency.add(part.latency)?;
    }
    Ok((back, outcome))
}

async fn one(mut gateway: Gateway, began: Instant, due: Option<(f64, f64)>) -> Done<(Gateway, Outcome)> {
    let ready = std::mem::take(&mut gateway.ready);
    let (batches, records) = (ready.len() as u64, ready.iter().map(|batch| batch.records).sum());
    let first = ready.first().map_or(0, |batch| batch.number);
    // When each batch was due, in microseconds after the beginning; of the closed loop: when it was sent.
    let times: Arc<Vec<AtomicU64>> = Arc::new((0..batches).map(|_| AtomicU64::new(0)).collect());
    let window = Arc::new(Semaphore::new(if due.is_some() { Semaphore::MAX_PERMITS } else { WINDOW }));
    let sending = {
        let (out, times, window) = (gateway.stream.sending(), Arc::clone(&times), Arc::clone(&window));
        tokio::spawn(async move {
            tokio::time::sleep_until(began.into()).await;
            for (at, batch) in ready.into_iter().enumerate() {
                window.acquire().await?.forget();
                let when = match due {
                    Some((offset, gap)) => Duration::from_secs_f64(offset + gap * at as f64),
                    None => began.elapsed(),
                };
                times[at].store(when.as_micros() as u64, Ordering::Release);
                if began.elapsed() < when {
                    tokio::time::sleep_until((began + when).into()).await;
                }
                out.batch(batch.bytes).await?;
            }
            Done::Ok(())
        })
    };
    let mut latency = Histogram::new(3)?;
    let mut answered = 0;
    while answered < batches {
        let (numbers, head) = gateway.stream.receipts().await?;
        gateway.chain.last_head = head;
        let now = began.elapsed().as_micros() as u64;
        for number in &numbers {
            let at = usize::try_from(number - first)?;
            let sent = times.get(at).ok_or("a receipt for what was not sent")?.load(Ordering::Acquire);
            latency.record(now.saturating_sub(sent).max(1))?;
        }
        answered += numbers.len() as u64;
        if due.is_none() {
            window.add_permits(numbers.len());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    sending.await??;
    Ok((gateway, Outcome { records, batches, seconds, latency }))
}
