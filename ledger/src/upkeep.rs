//! Looks at the ledger once a second, from outside the writer: what waits for the archive, and how much room is left.
//!
//! What it finds becomes gauges and alarms, and alarms that could not be kept are kept here; else it changes nothing.

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
    log_view::{FenceState, LogView},
    metrics::Metrics,
};

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
            self.alarms.keep_pending();
            let (reply, answer) = oneshot::channel();
            // Whoever asked may be gone; then nobody wants the answer.
            let look = Request::Inspect(Box::new(move |writer| {
                reply.send((writer.queue_next(), writer.store_memory())).ok();
            }));
            if self.writer.send(look).await.is_err() {
                return;
            }
            let Ok((next, memory)) = answer.await else { return };
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
        }
    }

    fn look_at_disk(&self) {
        let Ok(free) = durable::free_bytes(&self.data) else { return };
        if free < self.disk_low_bytes {
            self.alarms.raise(Alarm::DiskLow, format!("{} MiB are free", free >> 20));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_timed_from_when_it_came_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lag = Lag::new(start);
        assert_eq!(lag.look(0, 0, at(50)), None);
        assert_eq!(lag.look(1, 0, at(60)), Some(Duration::from_secs(10)));
        assert_eq!(lag.look(3, 0, at(70)), Some(Duration::from_secs(20)));
        assert_eq!(lag.look(3, 1, at(80)), Some(Duration::ZERO), "progress starts it anew");
        assert_eq!(lag.look(3, 1, at(90)), Some(Duration::from_secs(10)));
        assert_eq!(lag.look(3, 3, at(95)), None);
        assert_eq!(lag.look(4, 3, at(96)), Some(Duration::from_secs(1)));
    }
}
