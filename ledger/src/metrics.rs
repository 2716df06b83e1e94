//! Counters, gauges and histograms, and their text form for Prometheus.
//!
//! Every metric is declared in the table below with its meaning; `docs/OPERATIONS.md` shows the same table (a test
//! compares), and a test reads the sources for names that are not declared. Counting is one atomic addition. There are no
//! labels made of outside data, so that the number of series has a bound.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::alarm::{Alarm, Alarms};

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
    /// Durations in seconds.
    Histogram,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Upper bounds of a histogram's buckets in microseconds: a fast fsync is 50 us, a stuck archive a minute.
const BUCKETS_US: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// Name, kind and meaning of every metric.
pub const TABLE: &[(&str, Kind, &str)] = &[
    ("custody_records_total", Kind::Counter, "records committed"),
    ("custody_batches_total", Kind::Counter, "batches committed"),
    ("custody_batches_repeated_total", Kind::Counter, "batches sent again, answered with the receipt they had"),
    ("custody_batches_rejected_total", Kind::Counter, "batches refused for good"),
    ("custody_pushbacks_total", Kind::Counter, "batches sent back to be tried again later"),
    ("custody_equivocations_total", Kind::Counter, "batches signed twice under one number"),
    ("custody_streams_replaced_total", Kind::Counter, "streams that a newer one of the same gateway ended"),
    ("custody_commits_total", Kind::Counter, "group commits, each with one fsync"),
    ("custody_commit_seconds", Kind::Histogram, "time of a group commit, fsync included"),
    ("custody_segments_cut_total", Kind::Counter, "segments cut"),
    ("custody_segments_archived_total", Kind::Counter, "segments archived"),
    ("custody_unpublished", Kind::Gauge, "segments and statements cut or taken and not yet under a checkpoint"),
    ("custody_log_size", Kind::Gauge, "entries of the published log"),
    ("custody_commit_index", Kind::Gauge, "commits in the store"),
    ("custody_serving", Kind::Gauge, "1 while batches are taken"),
    ("custody_term", Kind::Gauge, "term of this start"),
    ("custody_fence_reachable", Kind::Gauge, "1 if the last read of the fence succeeded"),
    ("custody_disk_free_bytes", Kind::Gauge, "free bytes under the data folder"),
    ("custody_searches_total", Kind::Counter, "questions on record, refused ones too"),
    (
        "custody_searches_pushed_back_total",
        Kind::Counter,
        "questions refused because too much is asked: they make no record",
    ),
    ("custody_searches_unknown_total", Kind::Counter, "questions with a token that is not known, or stands no longer"),
    ("custody_webhook_sent_total", Kind::Counter, "messages with alarms that the webhook took"),
    ("custody_webhook_failures_total", Kind::Counter, "messages and heartbeats that the webhook did not take"),
    ("custody_webhook_lag_commits", Kind::Gauge, "commits behind which the webhook is while it does not take one"),
    ("custody_watch_lag_commits", Kind::Gauge, "commits that the watch has not looked at yet"),
    ("custody_alarms_on_record_total", Kind::Counter, "alarms of the watch that were put on record"),
    (
        "custody_index_lag_commits",
        Kind::Gauge,
        "commits that the index does not have: they are searched in memory, or in the store",
    ),
    ("custody_index_commits_total", Kind::Counter, "commits of the index"),
    ("custody_index_commit_seconds", Kind::Histogram, "time of a commit of the index"),
    (
        "custody_index_rebuilt_total",
        Kind::Counter,
        "folders of the index thrown away because they were of no use, to be built again",
    ),
    (
        "custody_index_merged_total",
        Kind::Counter,
        "folders of the index that became one segment when their day was over",
    ),
    ("custody_index_check_seconds", Kind::Histogram, "time in which the index was held against the store"),
    ("custody_store_buffer_bytes", Kind::Gauge, "memory of what was written and is not yet sorted to disk"),
    ("custody_store_cache_bytes", Kind::Gauge, "memory of blocks that were read"),
    ("custody_store_index_bytes", Kind::Gauge, "memory of the indexes of the store's files"),
];

#[derive(Default)]
struct Cell {
    /// Counter or gauge; the sum in microseconds of a histogram.
    value: AtomicU64,
    /// One more than there are bounds: the last is everything above.
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
}

/// All metrics of this process. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Vec<Cell>>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        Self(Arc::new(TABLE.iter().map(|_| Cell::default()).collect()))
    }

    /// A name that is not declared counts nothing; the tests see to it that there is none.
    fn cell(&self, name: &str, kinds: &[Kind]) -> Option<&Cell> {
        let at = TABLE.iter().position(|(known, kind, _)| *known == name && kinds.contains(kind))?;
        self.0.get(at)
    }

    /// Counts up.
    pub fn add(&self, name: &str, by: u64) {
        if let Some(cell) = self.cell(name, &[Kind::Counter, Kind::Gauge]) {
            cell.value.fetch_add(by, Ordering::Relaxed);
        }
    }

    /// Takes from a gauge.
    pub fn sub(&self, name: &str, by: u64) {
        if let Some(cell) = self.cell(name, &[Kind::Gauge]) {
            cell.value.fetch_sub(by, Ordering::Relaxed);
        }
    }

    /// Sets a gauge.
    pub fn set(&self, name: &str, to: u64) {
        if let Some(cell) = self.cell(name, &[Kind::Gauge]) {
            cell.value.store(to, Ordering::Relaxed);
        }
    }

    /// Adds a duration to a histogram.
    pub fn observe(&self, name: &str, took: Duration) {
        let Some(cell) = self.cell(name, &[Kind::Histogram]) else { return };
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BUCKETS_US.partition_point(|bound| *bound < took_us);
        if let Some(bucket) = cell.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        cell.value.fetch_add(took_us, Ordering::Relaxed);
    }

    /// Value of a counter or gauge.
    pub fn value(&self, name: &str) -> u64 {
        self.cell(name, &[Kind::Counter, Kind::Gauge]).map_or(0, |cell| cell.value.load(Ordering::Relaxed))
    }

    /// All of them in Prometheus' text form, version 0.0.4, and a gauge for every alarm there is.
    pub fn text(&self, alarms: &Alarms) -> String {
        let mut out = String::new();
        for ((name, kind, help), cell) in TABLE.iter().zip(self.0.iter()) {
            push(&mut out, format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name()));
            match kind {
                Kind::Counter | Kind::Gauge => {
                    push(&mut out, format_args!("{name} {}\n", cell.value.load(Ordering::Relaxed)));
                }
                Kind::Histogram => histogram(&mut out, name, cell),
            }
        }
        let name = "custody_alarm";
        push(&mut out, format_args!("# HELP {name} 1 while the alarm stands\n# TYPE {name} gauge\n"));
        for alarm in Alarm::ALL {
            let stands = u8::from(alarms.stands(*alarm));
            push(&mut out, format_args!("{name}{{name=\"{}\"}} {stands}\n", alarm.name()));
        }
        out
    }
}

/// Writing to a string cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}

fn histogram(out: &mut String, name: &str, cell: &Cell) {
    let mut count = 0_u64;
    for (bound, bucket) in BUCKETS_US.iter().zip(&cell.buckets) {
        count = count.saturating_add(bucket.load(Ordering::Relaxed));
        push(out, format_args!("{name}_bucket{{le=\"{}\"}} {count}\n", seconds(*bound)));
    }
    let above = cell.buckets.last().map_or(0, |bucket| bucket.load(Ordering::Relaxed));
    count = count.saturating_add(above);
    push(out, format_args!("{name}_bucket{{le=\"+Inf\"}} {count}\n"));
    push(out, format_args!("{name}_sum {}\n{name}_count {count}\n", seconds(cell.value.load(Ordering::Relaxed))));
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn the_text_says_what_was_counted() {
        let (metrics, alarms) = (Metrics::new(), Alarms::new());
        metrics.add("custody_records_total", 5);
        metrics.add("custody_records_total", 2);
        metrics.set("custody_log_size", 9);
        metrics.sub("custody_log_size", 1);
        metrics.observe("custody_commit_seconds", Duration::from_micros(50));
        metrics.observe("custody_commit_seconds", Duration::from_micros(51));
        metrics.observe("custody_commit_seconds", Duration::from_secs(100));
        alarms.raise(Alarm::DiskLow, "x");
        let text = metrics.text(&alarms);
        for line in [
            "# TYPE custody_records_total counter",
            "custody_records_total 7",
            "custody_log_size 8",
            "custody_commit_seconds_bucket{le=\"0.000050\"} 1",
            "custody_commit_seconds_bucket{le=\"0.000100\"} 2",
            "custody_commit_seconds_bucket{le=\"60.000000\"} 2",
            "custody_commit_seconds_bucket{le=\"+Inf\"} 3",
            "custody_commit_seconds_sum 100.000101",
            "custody_commit_seconds_count 3",
            "custody_alarm{name=\"disk-low\"} 1",
            "custody_alarm{name=\"fenced\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_manual_shows_the_table() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        for (name, kind, help) in TABLE {
            let row = format!("\n| `{name}` | {} | {help} |\n", kind.name());
            assert!(manual.contains(&row), "the manual lacks{row}");
        }
    }

    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("src/metrics.rs") {
                found.push(fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn what_is_declared_is_counted_and_nothing_else() {
        let mut texts = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
        let mut used = std::collections::BTreeSet::new();
        for text in &texts {
            for call in ["metrics.add(", "metrics.sub(", "metrics.set(", "metrics.observe("] {
                for rest in text.split(call).skip(1) {
                    let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else {
                        continue;
                    };
                    assert!(TABLE.iter().any(|(known, ..)| *known == name), "{name} is not declared");
                    used.insert(name);
                }
            }
        }
        for (known, ..) in TABLE {
            assert!(used.contains(known), "{known} is declared and never counted");
        }
    }
}
