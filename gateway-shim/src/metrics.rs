//! `/metrics`, in Prometheus' text form, on a loopback address of its own (`serve.metrics`).
//!
//! What must hold: every metric is declared in the table below with its meaning, and `docs/SHIPPING.md` shows the same table (a
//! test compares); labels are names of servers, of which there is a bound (`seen.rs`), and words of the contract: never the
//! name of a member, a tool or a client. It shows what `gateway-shim status` shows.

use std::{convert::Infallible, fmt::Write as _};

use bytes::Bytes;
use custody::wire;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};

use crate::{
    clock,
    config::Config,
    control::Controlled,
    listen::{self, Connection},
    seen::{BUCKETS_US, Seen},
};

/// Name, kind and meaning of every metric.
pub const TABLE: &[(&str, &str, &str)] = &[
    (
        "custody_gateway_calls_total",
        "counter",
        "calls that have ended and are on record, by server, decision and outcome",
    ),
    ("custody_gateway_refusals_total", "counter", "refusals on record, by the rule of the shim, or `policy`"),
    ("custody_gateway_calls_running", "gauge", "calls that have begun and not ended"),
    ("custody_gateway_taking", "gauge", "1 while records are taken"),
    ("custody_gateway_spool_bytes", "gauge", "bytes of the spool's files"),
    ("custody_gateway_spool_bytes_max", "gauge", "their bound, `spool.mib_max`"),
    ("custody_gateway_records_unsigned", "gauge", "records that are in no batch yet"),
    ("custody_gateway_batches_unshipped", "gauge", "batches without a receipt of the ledger"),
    ("custody_gateway_batches_kept", "gauge", "batches that the ledger has not archived"),
    ("custody_gateway_ledger_connected", "gauge", "1 while the ledger takes batches"),
    ("custody_gateway_receipt_timestamp_seconds", "gauge", "when the last receipt came that holds, in Unix time"),
    ("custody_gateway_sync_seconds", "histogram", "time until the disk had what was recorded together"),
    ("custody_gateway_delivery", "gauge", "1 for how a server's records are delivered now"),
    ("custody_gateway_server", "gauge", "1 for the state of an MCP server now"),
    ("custody_gateway_open_files", "gauge", "file descriptors that are open"),
];

/// The address, taken.
pub struct Port(TcpListener);

impl Port {
    /// Takes the address that the configuration names; `None` when it names none.
    ///
    /// # Errors
    /// When it cannot be taken; in words, with the next move.
    pub async fn bind(config: &Config) -> Result<Option<Self>, String> {
        let Some(address) = config.serve.as_ref().and_then(|serve| serve.metrics) else { return Ok(None) };
        let bound = TcpListener::bind(address).await;
        let named =
            |why| format!("listen on {address}: {why}; hint: serve.metrics names the address; is it another's?");
        bound.map(|listener| Some(Self(listener))).map_err(named)
    }

    /// Answers until it is dropped.
    pub async fn serve(self, controlled: Controlled) {
        if let Ok(address) = self.0.local_addr() {
            tracing::info!(%address, "serving /metrics");
        }
        let incoming = listen::bounded(TcpListenerStream::new(self.0), 0, listen::HEAD_LIMIT);
        let mut connections = std::pin::pin!(incoming);
        while let Some(Ok(connection)) = connections.next().await {
            tokio::spawn(speak(controlled.clone(), connection));
        }
    }
}

async fn speak(controlled: Controlled, stream: Connection<tokio::net::TcpStream>) {
    let load = stream.load();
    let answer = service_fn(move |request: Request<Incoming>| {
        let carried = load.request();
        let (controlled, path) = (controlled.clone(), request.uri().path().to_owned());
        async move {
            let _carried = carried;
            Ok::<_, Infallible>(answer(&controlled, &path).await)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(listen::HEAD_LIMIT);
    // What a client does to its own connection is no event.
    builder.serve_connection(TokioIo::new(stream), answer).await.ok();
}

async fn answer(controlled: &Controlled, path: &str) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => {
            let status = controlled.shown(clock::now_us()).await;
            (StatusCode::OK, text(&status, controlled.seen(), open_files()))
        }
        _ => (StatusCode::NOT_FOUND, "there is nothing here; hint: /metrics\n".to_owned()),
    };
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// How many file descriptors this process has open; 0 where this system does not say.
fn open_files() -> u64 {
    // One of them is that of the folder while it is read.
    std::fs::read_dir("/proc/self/fd").map_or(0, |found| found.count().saturating_sub(1) as u64)
}

/// Writes the lines of one metric after the other.
struct Page(String);

impl Page {
    /// Writing to a string cannot fail.
    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).unwrap_or_default();
    }

    fn begin(&mut self, name: &str) {
        let known = TABLE.iter().find(|(known, ..)| *known == name);
        let (_, kind, help) = known.copied().unwrap_or((name, "untyped", ""));
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn one(&mut self, name: &str, value: u64) {
        self.begin(name);
        self.push(format_args!("{name} {value}\n"));
    }
}

/// The end of a name of the contract, as a word.
fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}

/// All of them.
fn text(status: &wire::ShimStatusResponse, seen: &Seen, open_files: u64) -> String {
    let mut page = Page(String::new());
    let name = "custody_gateway_calls_total";
    page.begin(name);
    for server in &status.servers {
        for of in &server.calls {
            let decision = word(of.decision().as_str_name(), "DECISION_");
            let outcome = word(of.outcome().as_str_name(), "OUTCOME_");
            let labels = format!("server=\"{}\",decision=\"{decision}\",outcome=\"{outcome}\"", server.name);
            page.push(format_args!("{name}{{{labels}}} {}\n", of.count));
        }
    }
    let name = "custody_gateway_refusals_total";
    page.begin(name);
    for (class, count) in seen.refusals() {
        page.push(format_args!("{name}{{rule=\"{class}\"}} {count}\n"));
    }
    let (spool, ledger) = (status.spool.clone().unwrap_or_default(), status.ledger.clone().unwrap_or_default());
    page.one("custody_gateway_calls_running", spool.running);
    page.one("custody_gateway_taking", u64::from(status.state == "serving"));
    page.one("custody_gateway_spool_bytes", spool.bytes);
    page.one("custody_gateway_spool_bytes_max", spool.bytes_max);
    page.one("custody_gateway_records_unsigned", spool.unsigned);
    page.one("custody_gateway_batches_unshipped", spool.unshipped);
    page.one("custody_gateway_batches_kept", spool.held);
    page.one("custody_gateway_ledger_connected", u64::from(ledger.connected));
    page.one("custody_gateway_receipt_timestamp_seconds", ledger.receipt_at / 1_000_000);
    syncs(&mut page, seen);
    let name = "custody_gateway_delivery";
    page.begin(name);
    for server in status.servers.iter().filter(|server| server.delivery != 0) {
        let state = word(server.delivery().as_str_name(), "DELIVERY_STATE_");
        page.push(format_args!("{name}{{server=\"{}\",state=\"{state}\"}} 1\n", server.name));
    }
    let name = "custody_gateway_server";
    page.begin(name);
    for server in status.servers.iter().filter(|server| !server.state.is_empty()) {
        page.push(format_args!("{name}{{server=\"{}\",state=\"{}\"}} 1\n", server.name, server.state));
    }
    page.one("custody_gateway_open_files", open_files);
    page.0
}

fn syncs(page: &mut Page, seen: &Seen) {
    let (name, syncs) = ("custody_gateway_sync_seconds", seen.syncs());
    page.begin(name);
    let mut count = 0_u64;
    for (bound, bucket) in BUCKETS_US.iter().zip(&syncs.buckets) {
        count += bucket;
        page.push(format_args!("{name}_bucket{{le=\"{}\"}} {count}\n", seconds(*bound)));
    }
    count += syncs.buckets.last().copied().unwrap_or(0);
    page.push(format_args!("{name}_bucket{{le=\"+Inf\"}} {count}\n"));
    page.push(format_args!("{name}_sum {}\n{name}_count {count}\n", seconds(syncs.sum_us)));
}

/// Microseconds as seconds, exactly.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_page_is_as_prometheus_reads_it() {
        let count = |decision: wire::Decision, outcome: wire::Outcome, count| wire::ShimCount {
            decision: decision as i32,
            outcome: outcome as i32,
            count,
        };
        let calls = vec![
            count(wire::Decision::Allowed, wire::Outcome::Ok, 12),
            count(wire::Decision::Denied, wire::Outcome::OverLimit, 3),
        ];
        let status = wire::ShimStatusResponse {
            state: "serving".to_owned(),
            spool: Some(wire::ShimSpool {
                running: 2,
                bytes: 4_096,
                bytes_max: 1 << 30,
                held: 9,
                ..Default::default()
            }),
            ledger: Some(wire::ShimLedger { connected: true, receipt_at: 7_900_000, ..Default::default() }),
            servers: vec![wire::ShimServer {
                name: "files".to_owned(),
                state: "running".to_owned(),
                delivery: wire::DeliveryState::Flowing as i32,
                calls,
                ..Default::default()
            }],
            ..Default::default()
        };
        let seen = Seen::default();
        for took_us in [50, 51, 10_000_000] {
            seen.synced(Duration::from_micros(took_us));
        }
        let text = text(&status, &seen, 31);
        insta::assert_snapshot!(text);
        for (name, ..) in TABLE {
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} is declared and not shown");
        }
        assert!(!text.contains("untyped"), "something is shown and not declared");
    }

    #[test]
    fn the_manual_shows_the_table() {
        let manual = include_str!("../../docs/SHIPPING.md");
        for (name, kind, help) in TABLE {
            let row = format!("\n| `{name}` | {kind} | {help} |\n");
            assert!(manual.contains(&row), "the manual lacks{row}");
        }
    }
}
