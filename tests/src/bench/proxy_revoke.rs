//! How long a revoked member still gets anything: part of `bench proxy`.
//!
//! What must hold: the time runs from when the command `member revoke` is started, as whoever types it sees it, to the first
//! answer that refuses; calls of another member go on as load meanwhile; a call that is answered behind a refusal ends the run.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use custody_tests::process::binary;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    Done, print,
    proxy::{Arm, message},
    proxy_setup::{Member, REVOKED, Running},
};

/// The load: connections of another member, and calls a second of each.
const LOAD: (usize, u64) = (8, 100);
/// Calls behind the first refusal, all of which must be refused.
const AFTER: usize = 10;
/// A member who still gets answers then is not revoked at all.
const LONGEST: Duration = Duration::from_secs(10);

/// Calls as fast as answers come, until one refuses: when that was.
async fn until_refused(arm: Arm, began: tokio::sync::oneshot::Sender<()>) -> Done<Instant> {
    let (mut stream, mut buffer) = (TcpStream::connect(arm.address).await?, Vec::with_capacity(4_096));
    stream.set_nodelay(true)?;
    let (mut began, mut refused_at, mut after) = (Some(began), None, 0);
    while after < AFTER {
        if stream.write_all(&arm.request("echo")).await.is_err() {
            // A refusal may close the connection.
            stream = TcpStream::connect(arm.address).await?;
            continue;
        }
        let Ok(Some((head, length))) = message(&mut stream, &mut buffer).await else {
            stream = TcpStream::connect(arm.address).await?;
            buffer.clear();
            continue;
        };
        let passed = buffer[head..].windows(8).any(|window| window == b"\"result\"");
        buffer.drain(..head + length);
        match (passed, refused_at) {
            (true, Some(_)) => return Err("a call was answered behind a refusal".into()),
            // The session stands before the clock starts.
            (true, None) => drop(began.take().map(|began| began.send(()))),
            (false, _) => {
                refused_at.get_or_insert_with(Instant::now);
                after += 1;
            }
        }
    }
    refused_at.ok_or_else(|| "no refusal".into())
}

/// Holds a stream open, until something comes behind its first event, or its end: when that was.
async fn until_cut(arm: Arm, began: tokio::sync::oneshot::Sender<()>) -> Done<Instant> {
    let (mut stream, mut buffer) = (TcpStream::connect(arm.address).await?, Vec::with_capacity(4_096));
    stream.write_all(&arm.request("stream")).await?;
    while !buffer.windows(10).any(|window| window == b": a stream") {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(format!("no stream: {}", String::from_utf8_lossy(&buffer)).into());
        }
    }
    began.send(()).map_err(|()| "nobody waits")?;
    loop {
        let from = buffer.len();
        let end = stream.read_buf(&mut buffer).await? == 0;
        if end || buffer[from..].windows(7).any(|window| window == b"cut off") {
            return Ok(Instant::now());
        }
    }
}

struct Times {
    refused: Histogram<u64>,
    cut: Histogram<u64>,
    command: Histogram<u64>,
}

async fn one(shim: &Running, member: &Member, times: &mut Times) -> Done {
    let arm = Arm::of(shim, &member.token());
    let ((calling, called), (opening, opened)) = (tokio::sync::oneshot::channel(), tokio::sync::oneshot::channel());
    let refused = tokio::spawn(until_refused(arm.clone(), calling));
    let cut = tokio::spawn(until_cut(arm, opening));
    // An error of theirs is told below.
    drop((called.await, opened.await));
    let from = Instant::now();
    let mut command = Command::new(binary("gateway-shim"));
    command.args(["member", "revoke", &member.id, "--config", "shim.toml", "--reason", "bench"]).current_dir(&shim.dir);
    let said = tokio::task::spawn_blocking(move || command.output()).await??;
    let ended = Instant::now();
    if !said.status.success() {
        return Err(String::from_utf8_lossy(&said.stderr).into());
    }
    let (refused, cut) = (tokio::time::timeout(LONGEST, refused).await???, tokio::time::timeout(LONGEST, cut).await???);
    for (histogram, until) in [(&mut times.refused, refused), (&mut times.cut, cut), (&mut times.command, ended)] {
        histogram.record(u64::try_from((until - from).as_micros())?)?;
    }
    Ok(())
}

pub(crate) async fn run(shim: &Running) -> Done {
    let load = Arm::of(shim, &shim.token());
    let loading = tokio::spawn(async move {
        loop {
            load.measure(LOAD.0, LOAD.1).await?;
        }
        #[expect(unreachable_code, reason = "names the type of the loop's errors")]
        Done::Ok(())
    });
    let histogram = || Histogram::<u64>::new(3);
    let mut times = Times { refused: histogram()?, cut: histogram()?, command: histogram()? };
    for member in &shim.members[..REVOKED] {
        one(shim, member, &mut times).await?;
        if loading.is_finished() {
            return Err("the load ended: calls of another member failed".into());
        }
    }
    loading.abort();
    for (what, of) in [("first refusal", times.refused), ("stream cut", times.cut), ("command", times.command)] {
        let at = |share| of.value_at_quantile(share) as f64 / 1e3;
        print(
            &json!({"revocation": what, "count": of.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "most_ms": at(1.0)}),
        );
    }
    Ok(())
}
