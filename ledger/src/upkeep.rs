//! Looks at the ledger every so often, from outside the writer: what waits for the archive, how much room is left, and which
//! certificates end.
//!
//! What it finds becomes gauges and alarms, alarms that could not be kept are kept here, and certificates are renewed; else it
//! changes nothing.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    alarm::{Alarm, Alarms},
    clock,
    commit::Request,
    config::Config,
    durable,
    log_view::{FenceState, LogView, report},
    metrics::Metrics,
    pki::Pki,
};

#[cfg(test)]
mod tests;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

/// What is looked at.
pub struct Upkeep {
    /// The writer's queue.
    pub writer: mpsc::Sender<Request>,
    /// First queue row that is not published.
    pub mark: watch::Receiver<u64>,
    /// The log.
    pub view: Arc<RwLock<LogView>>,
    /// What the fence told.
    pub fence: Arc<FenceState>,
    /// Raised here.
    pub alarms: Alarms,
    /// Set here.
    pub metrics: Metrics,
    /// On whose disk there must be room.
    pub data: PathBuf,
    /// Alarm below so many free bytes.
    pub disk_low_bytes: u64,
    /// Alarm when something has waited for so long without any progress.
    pub lag_max: Duration,
}

impl Upkeep {
    /// The bounds come from the configuration.
    pub fn bounds(config: &Config) -> (u64, Duration) {
        (config.store.disk_low_bytes, Duration::from_secs(config.publish.alarm_seconds))
    }

    /// Looks until the writer has ended.
    pub async fn run(self) {
        let mut lag = Lag::new(Instant::now());
        loop {
            clock::sleep(EVERY).await;
            if self.look(&mut lag).await.is_none() {
                return;
            }
        }
    }

    /// `None` once the writer has ended.
    async fn look(&self, lag: &mut Lag) -> Option<()> {
        self.alarms.keep_pending();
        let (reply, answer) = oneshot::channel();
        // Whoever asked may be gone; then nobody wants the answer.
        let look = Request::Inspect(Box::new(move |writer| {
            reply.send((writer.queue_next(), writer.store_memory())).ok();
        }));
        self.writer.send(look).await.ok()?;
        let (next, memory) = answer.await.ok()?;
        if let Ok(memory) = memory {
            self.metrics.set("custody_store_buffer_bytes", memory.mem_table_total);
            self.metrics.set("custody_store_cache_bytes", memory.cache_total);
            self.metrics.set("custody_store_index_bytes", memory.mem_table_readers_total);
        }
        let mark = *self.mark.borrow();
        self.metrics.set("custody_unpublished", next.saturating_sub(mark));
        if let Some(waited) = lag.look(next, mark, Instant::now()).filter(|waited| *waited > self.lag_max) {
            let waiting = next.saturating_sub(mark);
            self.alarms.raise(Alarm::SealsLagging, format!("{waiting} wait, the first for {} s", waited.as_secs()));
        }
        self.metrics.set("custody_fence_reachable", u64::from(self.fence.is_fresh()));
        let size = self.view.read().unwrap_or_else(PoisonError::into_inner).tree.size();
        self.metrics.set("custody_log_size", size);
        self.look_at_disk();
        Some(())
    }

    fn look_at_disk(&self) {
        let Ok(free) = durable::free_bytes(&self.data) else { return };
        if free < self.disk_low_bytes {
            self.alarms.raise(Alarm::DiskLow, format!("{} MiB are free", free >> 20));
        }
    }
}

/// At the latest every hour: certificates past two thirds of their life are made anew; one that nears its end all the same is
/// an alarm.
pub async fn renew_certificates(pki: Arc<Pki>, alarms: Alarms) {
    loop {
        look_at_certificates(&pki, &alarms, clock::now_us());
        clock::sleep(pki.next_look(clock::now_us())).await;
    }
}

fn look_at_certificates(pki: &Pki, alarms: &Alarms, now_us: u64) {
    match pki.renew_due(now_us) {
        Ok(renewed) if !renewed.is_empty() => tracing::info!(?renewed, "certificates renewed"),
        Ok(_) => {}
        Err(why) => alarms.raise(Alarm::CertificateExpiring, report(&why)),
    }
    for name in pki.expiring(now_us) {
        alarms.raise(Alarm::CertificateExpiring, format!("{name} ends soon"));
    }
}

/// Since when the first of what waits has waited.
struct Lag {
    mark: u64,
    since: Instant,
}

impl Lag {
    fn new(now: Instant) -> Self {
        Self { mark: 0, since: now }
    }

    /// How long the row at the mark has waited; `None` if nothing waits.
    fn look(&mut self, next: u64, mark: u64, now: Instant) -> Option<Duration> {
        if mark != self.mark || next <= mark {
            (self.mark, self.since) = (mark, now);
        }
        (next > mark).then(|| now.saturating_duration_since(self.since))
    }
}
