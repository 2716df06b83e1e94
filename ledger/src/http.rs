//! Plain HTTP: metrics, health, and the public log as C2SP expects it (c2sp.org/tlog-tiles).
//!
//! Everything here is public or harmless: the log shows ids, numbers and hashes. Nothing is written, and nothing is read
//! but what the archive already has under a checkpoint. Tiles never change, so anybody may keep them for ever; the
//! checkpoint grows, so nobody may keep it for longer than seconds.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    },
    response::Response,
    routing::get,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    alarm::Alarms,
    archive::Archive,
    clock,
    commit::{self, Request},
    listen::Newest,
    log_view::LogView,
    metrics::Metrics,
};

/// How long the writer may take to say how it is: it answers between two commits, which take milliseconds. Whoever asks for
/// health wants to know rather than to wait.
const PROBE_SECONDS_MAX: u64 = 5;
/// How long the head of a request may take, also the next one of a connection that is kept.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a connection may last: a client that reads its answer byte by byte holds a place, and others want it.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// Bytes of a request's head: no path here has a hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Connections at one time, each of 30 KiB. Of more the oldest ends: thousands that hold one and ask nothing push out each
/// other, and an operator who asks is answered in milliseconds.
const CONNECTIONS_MAX: usize = 256;
/// After a failure to accept, most often for want of file descriptors: others may be given back meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const BYTES: &str = "application/octet-stream";
const FOR_EVER: &str = "public, max-age=31536000, immutable";
const FOR_SECONDS: &str = "public, max-age=5";
const NEVER: &str = "no-store";

/// The files of the log.
pub trait LogFiles: Send + Sync {
    /// The newest checkpoint that was read back from the archive.
    fn checkpoint(&self) -> Option<Vec<u8>>;

    /// A file by its path below `log/`, which has been checked to be a tile's.
    fn tile(&self, path: &str) -> BoxFuture<'static, Result<Option<Bytes>, String>>;
}

/// How the writer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Takes batches.
    pub serving: bool,
    /// One word.
    pub state: &'static str,
    /// Commits in the store.
    pub commit_index: u64,
    /// Number of this start.
    pub term: u64,
}

/// Asks the writer.
pub trait Probe: Send + Sync {
    /// `None` if the writer has ended.
    fn pulse(&self) -> BoxFuture<'static, Option<Pulse>>;
}

/// What the answers are made of.
#[derive(Clone)]
pub struct HttpState {
    metrics: Metrics,
    alarms: Alarms,
    log: Arc<dyn LogFiles>,
    probe: Arc<dyn Probe>,
}

impl HttpState {
    /// From its parts.
    pub fn new(metrics: Metrics, alarms: Alarms, log: Arc<dyn LogFiles>, probe: Arc<dyn Probe>) -> Self {
        Self { metrics, alarms, log, probe }
    }
}

/// The state of a running ledger.
pub fn state(
    metrics: &Metrics,
    alarms: &Alarms,
    view: &Arc<RwLock<LogView>>,
    archive: Archive,
    requests: mpsc::Sender<Request>,
) -> HttpState {
    let log = Published { view: Arc::clone(view), archive };
    HttpState::new(metrics.clone(), alarms.clone(), Arc::new(log), Arc::new(Asking(requests)))
}

struct Published {
    view: Arc<RwLock<LogView>>,
    archive: Archive,
}

impl LogFiles for Published {
    fn checkpoint(&self) -> Option<Vec<u8>> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.checkpoint.as_ref().map(|signed| signed.to_bytes())
    }

    fn tile(&self, path: &str) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
        let (archive, name) = (self.archive.clone(), format!("log/{path}"));
        Box::pin(async move { archive.get(&name).await.map_err(|why| why.to_string()) })
    }
}

struct Asking(mpsc::Sender<Request>);

impl Probe for Asking {
    fn pulse(&self) -> BoxFuture<'static, Option<Pulse>> {
        let requests = self.0.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let look = move |writer: &commit::Writer| {
                let pulse = Pulse {
                    serving: *writer.state() == commit::State::Serving,
                    state: writer.state().name(),
                    commit_index: writer.commit_index(),
                    term: writer.term(),
                };
                drop(reply.send(pulse));
            };
            requests.send(Request::Inspect(Box::new(look))).await.ok()?;
            answer.await.ok()
        })
    }
}

/// Answers on a port, until it is dropped.
pub async fn serve(listener: TcpListener, state: HttpState) {
    serve_with(listener, state, HEAD_LIMIT).await;
}

async fn serve_with(listener: TcpListener, state: HttpState, head_limit: Duration) {
    let mut connections = Newest::new(CONNECTIONS_MAX);
    let router = router(state);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_limit).max_buf_size(HEAD_BYTES_MAX);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(why) => {
                tracing::warn!(%why, "a connection was not accepted");
                clock::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // What a client does to its own connection is no event.
            tokio::time::timeout(CONNECTION_LIMIT, connection).await.ok();
        });
    }
}

/// All paths.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/log/checkpoint", get(checkpoint))
        .route("/log/tile/{*path}", get(tile))
        .with_state(state)
}

fn answer(status: StatusCode, kind: &'static str, keep: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(keep));
    response
}

async fn pulse(state: &HttpState) -> Option<Pulse> {
    let asked = tokio::time::timeout(Duration::from_secs(PROBE_SECONDS_MAX), state.probe.pulse());
    asked.await.ok().flatten()
}

async fn metrics(State(state): State<HttpState>) -> Response {
    if let Some(pulse) = pulse(&state).await {
        state.metrics.set("custody_commit_index", pulse.commit_index);
        state.metrics.set("custody_term", pulse.term);
        state.metrics.set("custody_serving", u64::from(pulse.serving));
    } else {
        state.metrics.set("custody_serving", 0);
    }
    answer(StatusCode::OK, PROMETHEUS, NEVER, state.metrics.text(&state.alarms))
}

/// Whether the process is of use at all: reads and proofs are served in every state, so only a writer that does not answer
/// is unhealthy.
async fn health(State(state): State<HttpState>) -> Response {
    match pulse(&state).await {
        Some(pulse) => answer(StatusCode::OK, TEXT, NEVER, format!("{}\n", pulse.state)),
        None => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, "the writer does not answer\n"),
    }
}

/// Whether batches are taken.
async fn ready(State(state): State<HttpState>) -> Response {
    match pulse(&state).await {
        Some(pulse) if pulse.serving => answer(StatusCode::OK, TEXT, NEVER, format!("{}\n", pulse.state)),
        Some(pulse) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, format!("{}\n", pulse.state)),
        None => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, "the writer does not answer\n"),
    }
}

async fn checkpoint(State(state): State<HttpState>) -> Response {
    match state.log.checkpoint() {
        Some(bytes) => answer(StatusCode::OK, TEXT, FOR_SECONDS, bytes),
        None => answer(StatusCode::NOT_FOUND, TEXT, NEVER, "nothing is published yet\n"),
    }
}

async fn tile(State(state): State<HttpState>, Path(path): Path<String>) -> Response {
    let path = format!("tile/{path}");
    if !is_tile(&path) {
        return answer(StatusCode::NOT_FOUND, TEXT, NEVER, "no tile has such a name\n");
    }
    match state.log.tile(&path).await {
        Ok(Some(bytes)) => answer(StatusCode::OK, BYTES, FOR_EVER, bytes),
        // It may be there soon, so nobody may keep this answer.
        Ok(None) => answer(StatusCode::NOT_FOUND, TEXT, NEVER, "no such tile\n"),
        Err(why) => {
            tracing::warn!(error = %why, "a tile could not be read");
            answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, NEVER, "the archive does not answer\n")
        }
    }
}

/// Whether a path is one that [`custody::log::tile_path`] makes.
fn is_tile(path: &str) -> bool {
    let Some((level, rest)) = path.strip_prefix("tile/").and_then(|rest| rest.split_once('/')) else { return false };
    let (digits, width) = match rest.split_once(".p/") {
        None => (rest, None),
        Some((digits, width)) => (digits, Some(width)),
    };
    let plain: String = digits.split('/').map(|part| part.strip_prefix('x').unwrap_or(part)).collect();
    let number = plain.parse::<u64>().ok();
    let width = width.map_or(Some(custody::log::TILE_WIDTH), |text| text.parse().ok());
    let canonical = |number: u32| number < 8 && number.to_string() == level;
    let level_fits = level == "entries" || level.parse().is_ok_and(canonical);
    let same = |(number, width)| width > 0 && custody::log::tile_path(level, number, width) == path;
    level_fits && number.zip(width).is_some_and(same)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::alarm::Alarm;

    /// Only bounds a failure.
    const WAIT: Duration = Duration::from_secs(60);

    struct Files;

    impl LogFiles for Files {
        fn checkpoint(&self) -> Option<Vec<u8>> {
            Some(b"example.org/custody\n3\n".to_vec())
        }

        fn tile(&self, path: &str) -> BoxFuture<'static, Result<Option<Bytes>, String>> {
            let found = match path {
                "tile/0/000.p/3" | "tile/entries/x001/234" => Ok(Some(Bytes::from(path.to_owned()))),
                "tile/1/000" => Err("away".to_owned()),
                _ => Ok(None),
            };
            Box::pin(async move { found })
        }
    }

    struct Alive(Option<Pulse>);

    impl Probe for Alive {
        fn pulse(&self) -> BoxFuture<'static, Option<Pulse>> {
            let pulse = self.0.clone();
            Box::pin(async move { pulse })
        }
    }

    fn ask_blocking(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    async fn ask(pulse: Option<Pulse>, paths: &[&str]) -> Vec<String> {
        let (metrics, alarms) = (Metrics::new(), Alarms::new());
        metrics.add("custody_records_total", 41);
        alarms.raise(Alarm::DiskLow, "x");
        let state = HttpState::new(metrics, alarms, Arc::new(Files), Arc::new(Alive(pulse)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, state));
        let mut answers = Vec::new();
        for path in paths {
            let path = (*path).to_owned();
            answers.push(tokio::task::spawn_blocking(move || ask_blocking(address, &path)).await.unwrap());
        }
        server.abort();
        answers
    }

    fn has(answer: &str, parts: &[&str]) {
        for part in parts {
            assert!(answer.contains(part), "{part:?} is not in {answer}");
        }
    }

    #[tokio::test]
    async fn whoever_does_not_ask_loses_the_connection() {
        let state = HttpState::new(Metrics::new(), Alarms::new(), Arc::new(Files), Arc::new(Alive(None)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve_with(listener, state, Duration::from_millis(50)));
        let said = |text: &'static str| {
            tokio::task::spawn_blocking(move || {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.write_all(text.as_bytes()).unwrap();
                let mut answer = Vec::new();
                // The end of the connection ends the read, whether it was closed or reset.
                stream.read_to_end(&mut answer).ok();
                String::from_utf8(answer).unwrap()
            })
        };
        // Nothing at all, half a head, and a connection that was kept after its first answer.
        for (text, answers) in [
            ("", 0),
            ("GET /log/checkpoint HTTP/1.1\r\nhost:", 0),
            ("GET /log/checkpoint HTTP/1.1\r\nhost: a\r\n\r\n", 1),
        ] {
            let answer = said(text).await.unwrap();
            assert_eq!(answer.matches("200 OK").count(), answers, "{text:?}: {answer}");
        }
        server.abort();
    }

    #[tokio::test]
    async fn an_operator_is_answered_while_others_hold_connections_and_ask_nothing() {
        let pulse = Pulse { serving: true, state: "serving", ..Pulse::default() };
        let state = HttpState::new(Metrics::new(), Alarms::new(), Arc::new(Files), Arc::new(Alive(Some(pulse))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // None of them ends by itself.
        let server = tokio::spawn(serve_with(listener, state, Duration::from_secs(86_400)));
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS_MAX {
            silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let asking = tokio::task::spawn_blocking(move || ask_blocking(address, "/healthz"));
        let answered = tokio::time::timeout(WAIT, asking).await;
        let Ok(answer) = answered else {
            // Whoever asks in vain waits for these.
            drop(silent);
            panic!("nobody answered");
        };
        has(&answer.unwrap(), &["200 OK", "serving"]);
        // The oldest has lost its place, and the newest has one.
        let ended = tokio::time::timeout(WAIT, silent[0].read(&mut [0])).await;
        assert!(ended.unwrap().is_ok_and(|bytes| bytes == 0));
        let newest = silent.last().unwrap().try_read(&mut [0]);
        assert!(newest.is_err_and(|why| why.kind() == std::io::ErrorKind::WouldBlock));
        server.abort();
    }

    #[tokio::test]
    async fn the_log_is_served_as_tiles() {
        let pulse = Pulse { serving: true, state: "serving", commit_index: 7, term: 2 };
        let paths = [
            "/log/checkpoint",
            "/log/tile/0/000.p/3",
            "/log/tile/entries/x001/234",
            "/log/tile/0/001",
            "/log/tile/1/000",
            "/log/tile/0/../../secret",
            "/metrics",
            "/healthz",
            "/readyz",
            "/nothing",
        ];
        let answers = ask(Some(pulse), &paths).await;
        has(&answers[0], &["200 OK", "text/plain; charset=utf-8", "max-age=5", "example.org/custody\n3\n"]);
        has(&answers[1], &["200 OK", "application/octet-stream", "immutable", "tile/0/000.p/3"]);
        has(&answers[2], &["200 OK", "tile/entries/x001/234"]);
        has(&answers[3], &["404", "no-store"]);
        has(&answers[4], &["503", "the archive does not answer"]);
        has(&answers[5], &["404"]);
        has(&answers[6], &["200 OK", "version=0.0.4", "custody_records_total 41", "custody_commit_index 7"]);
        has(&answers[6], &["custody_serving 1", "custody_alarm{name=\"disk-low\"} 1"]);
        has(&answers[7], &["200 OK", "serving"]);
        has(&answers[8], &["200 OK"]);
        has(&answers[9], &["404"]);
    }

    #[tokio::test]
    async fn a_ledger_that_refuses_writes_is_healthy_and_not_ready() {
        let pulse = Pulse { serving: false, state: "read-only", ..Pulse::default() };
        let answers = ask(Some(pulse), &["/healthz", "/readyz"]).await;
        has(&answers[0], &["200 OK", "read-only"]);
        has(&answers[1], &["503", "read-only"]);
        let answers = ask(None, &["/healthz", "/readyz", "/metrics"]).await;
        has(&answers[0], &["503", "does not answer"]);
        has(&answers[1], &["503"]);
        has(&answers[2], &["200 OK", "custody_serving 0"]);
    }

    #[test]
    fn only_tile_paths_are_tiles() {
        for good in ["tile/0/000", "tile/entries/999.p/255", "tile/7/x001/x002/003"] {
            assert!(is_tile(good), "{good}");
        }
        for bad in [
            "tile/0/0",
            "tile/8/000",
            "tile/00/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/03",
            "tile/0/000.p/007",
            "tile/0/000.p/+7",
            "tile/0/000.p/1000",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/x001",
            "tile/0/1234",
            "tile/0/../x",
            "tile/a/000",
            "tile/0/",
            "tile/0",
            "tile/+1/000",
            "tile/0/+01",
        ] {
            assert!(!is_tile(bad), "{bad}");
        }
    }
}
