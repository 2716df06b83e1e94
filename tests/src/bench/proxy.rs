//! What the proxy adds to a call: `bench proxy FOLDER [ROUNDS]`. One fixed server of ours; each round measures every arm, in
//! another order each time, so that whatever this machine does besides is in all of them.
//!
//! What must hold: sessions stand before the clock starts, every call has arguments of its own, and each is due at a fixed
//! time: a caller that was held up counts that time too (no coordinated omission). A wrong answer ends the run. What one
//! fdatasync takes is measured in every round, on the disk of the spools.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    Done, print, proxy_relay, proxy_revoke,
    proxy_setup::{Running, Setup},
};

/// Connections at a time, and calls a second of each: well below what the slowest arm does, or queues would be measured.
const LOADS: [(usize, u64); 3] = [(1, 200), (8, 100), (32, 25)];
/// How long each arm is measured in one round.
const ARM: Duration = Duration::from_secs(2);
/// Syncs of each round.
const SYNCS: usize = 100;
/// Bytes that the fixed server answers with, besides the envelope.
const ANSWER_BYTES: usize = 256;

/// The fixed server: one answer to every request, with its id.
pub(crate) async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            // A caller that goes ends its connection.
            answer(stream).await.ok();
        });
    }
}

async fn answer(mut stream: TcpStream) -> Done {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4_096);
    loop {
        let Some((head, length)) = message(&mut stream, &mut buffer).await? else { return Ok(()) };
        let request: Value = serde_json::from_slice(&buffer[head..head + length])?;
        buffer.drain(..head + length);
        if request.get("id").is_none() {
            stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        let result = match request["method"].as_str().unwrap_or_default() {
            "initialize" => json!({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                "serverInfo": {"name": "fixed", "version": "1"}}),
            "server/discover" => json!({"resultType": "complete", "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}}, "ttlMs": 3_600_000, "cacheScope": "public"}),
            "tools/list" => {
                let tools = ["echo", "stream"].map(|name| json!({"name": name, "inputSchema": {"type": "object"}}));
                json!({"resultType": "complete", "ttlMs": 3_600_000, "cacheScope": "public", "tools": tools})
            }
            "tools/call" if request["params"]["name"] == "stream" => {
                // One event, and then nothing, until the caller goes.
                let event = ": a stream\n\n";
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
                while stream.read_buf(&mut buffer).await? != 0 {}
                return Ok(());
            }
            _ => json!({"resultType": "complete", "content": [{"type": "text", "text": "x".repeat(ANSWER_BYTES)}]}),
        };
        let body = json!({"jsonrpc": "2.0", "id": request["id"], "result": result}).to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    }
}

/// Reads one message of HTTP/1.1 with a length, or in chunks, into `buffer`; the lengths of its head and body. `None` at the end.
pub(crate) async fn message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Done<Option<(usize, usize)>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end])?.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = match length {
                Some(length) => Some(length.trim().parse()?),
                // In chunks; no chunk of ours, nor of the other proxy, has such an end within.
                None => buffer[end + 4..].windows(7).position(|at| at == b"\r\n0\r\n\r\n").map(|at| at + 7),
            };
            if let Some(length) = length.filter(|length| buffer.len() >= end + 4 + length) {
                return Ok(Some((end + 4, length)));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Where one arm's calls go.
#[derive(Clone)]
pub(crate) struct Arm {
    name: &'static str,
    pub(crate) address: SocketAddr,
    path: String,
    /// The tool's name there.
    tool: &'static str,
    /// Lines of each request's head.
    head: String,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Arm {
    /// One shim, as the member with this token reaches it.
    pub(crate) fn of(shim: &Running, token: &str) -> Self {
        let head = format!("authorization: Bearer {token}\r\n");
        Self { name: shim.name, address: shim.address, path: "/mcp/fixed".to_owned(), tool: "echo", head }
    }

    pub(crate) fn request(&self, tool: &str) -> Vec<u8> {
        let number = NUMBER.fetch_add(1, Relaxed);
        let body = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool,
            "arguments": {"message": format!("call {number}")},
            "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"}}}})
        .to_string();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n\
             mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n{}content-length: {}\r\n\r\n",
            self.path,
            self.head,
            body.len()
        );
        [head.as_bytes(), body.as_bytes()].concat()
    }

    async fn call(&self, stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Done {
        stream.write_all(&self.request(self.tool)).await?;
        let (head, length) = message(stream, buffer).await?.ok_or("the connection was closed")?;
        let right =
            buffer.starts_with(b"HTTP/1.1 200") && buffer[head..].windows(8).any(|window| window == b"\"result\"");
        if !right {
            return Err(format!("{}: {}", self.name, String::from_utf8_lossy(buffer)).into());
        }
        buffer.drain(..head + length);
        Ok(())
    }

    /// Times of calls in nanoseconds, from when each was due.
    pub(crate) async fn measure(&self, connections: usize, rate: u64) -> Done<Histogram<u64>> {
        let every = Duration::from_secs(1) / u32::try_from(rate)?;
        let begin = Instant::now() + Duration::from_millis(20);
        let callers = (0..connections).map(|which| {
            let arm = self.clone();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(arm.address).await?;
                stream.set_nodelay(true)?;
                let (mut buffer, mut times) = (Vec::with_capacity(4_096), Histogram::<u64>::new(3)?);
                for _ in 0..3 {
                    arm.call(&mut stream, &mut buffer).await?;
                }
                let mut due = begin + every * u32::try_from(which)? / u32::try_from(connections)?;
                while due < begin + ARM {
                    tokio::time::sleep_until(due.into()).await;
                    // The timer of Tokio counts milliseconds: a late beginning is its own, unless the call before was late.
                    let from = due.max(Instant::now().min(due + Duration::from_millis(2)));
                    arm.call(&mut stream, &mut buffer).await?;
                    times.record(u64::try_from(from.elapsed().as_nanos())?)?;
                    due += every;
                }
                Done::Ok(times)
            })
        });
        let callers: Vec<_> = callers.collect();
        let mut all = Histogram::<u64>::new(3)?;
        for caller in callers {
            all.add(caller.await??)?;
        }
        Ok(all)
    }
}

/// Microseconds of one fdatasync behind a write of 512 bytes, as the spool's.
fn syncs(folder: &Path) -> Done<f64> {
    let mut file = std::fs::File::create(folder.join("syncs"))?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[7; 512])?;
        let from = Instant::now();
        file.sync_data()?;
        times.push(from.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&mut times))
}

pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) async fn until_open(address: SocketAddr) -> Done {
    for _ in 0..600 {
        if TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("nothing listens on {address}").into())
}

/// Of one arm and load: p50 and p99 of each round, in microseconds.
#[derive(Default, Clone)]
struct Rounds(Vec<[f64; 2]>);

impl Rounds {
    fn medians(&self, of: impl Fn(usize, [f64; 2]) -> f64) -> f64 {
        median(&mut self.0.iter().enumerate().map(|(round, times)| of(round, *times)).collect::<Vec<f64>>())
    }
}

pub(crate) async fn run(folder: &Path, rounds: u64) -> Done {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let upstream_address = upstream.local_addr()?;
    tokio::spawn(serve(upstream));
    let relays = proxy_relay::Kind::ALL.map(|kind| proxy_relay::start(kind, upstream_address));

    let setup = Setup::new(folder, upstream_address)?;
    let plain = |name, address| Arm { name, address, path: "/mcp".to_owned(), tool: "echo", head: String::new() };
    let mut arms = vec![plain("direct", upstream_address)];
    for relay in &relays {
        let relay = relay.as_ref().map_err(ToString::to_string)?;
        arms.push(plain(relay.kind.name(), relay.address));
    }
    for shim in setup.shims.iter().chain([&setup.revoking]) {
        until_open(shim.address).await?;
    }
    arms.extend(setup.shims.iter().map(|shim| Arm::of(shim, &shim.token())));
    if let Some(address) = setup.other {
        until_open(address).await?;
        arms.push(Arm { path: "/".to_owned(), tool: "fixed/echo", ..plain("mcp-proxy 0.6.0", address) });
    }
    let mut figures = vec![vec![Rounds::default(); arms.len()]; LOADS.len()];
    let mut synced = Vec::new();
    for round in 0..rounds {
        synced.push(syncs(folder)?);
        for (load, (connections, rate)) in LOADS.into_iter().enumerate() {
            for step in 0..arms.len() {
                // Each round begins with another arm.
                let which = (step + usize::try_from(round)?) % arms.len();
                let times = arms[which].measure(connections, rate).await?;
                let at = |share| times.value_at_quantile(share) as f64 / 1e3;
                figures[load][which].0.push([at(0.5), at(0.99)]);
            }
        }
    }
    let sync_us = median(&mut synced);
    for (load, (connections, rate)) in LOADS.into_iter().enumerate() {
        // In each round against the direct call of the same round.
        let direct = figures[load][0].clone();
        for (arm, rounds) in arms.iter().zip(&figures[load]) {
            let added = |which: usize| rounds.medians(|round, times| times[which] - direct.0[round][which]);
            print(&json!({"arm": arm.name, "connections": connections, "rate": connections as u64 * rate,
                "p50_us": rounds.medians(|_, times| times[0]), "p99_us": rounds.medians(|_, times| times[1]),
                "added_p50_us": added(0), "added_p99_us": added(1), "sync_us": sync_us, "syncs": added(0) / sync_us}));
        }
    }
    proxy_revoke::run(&setup.revoking).await
}
