//! A trace of the ledger's system calls: between the write of a batch to the store's log and the receipt on the socket a
//! sync of that log returned. SIGKILL keeps the page cache, so no kill of a process can show this.

use std::{collections::HashMap, process::Command};

use custody_tests::{
    peer::Gateway,
    process::{Home, Process, binary},
};

/// A receipt holds a signed head and an inclusion; what HTTP/2 says for itself is a few dozen bytes.
const RECEIPT_BYTES_MIN: u64 = 300;
const BATCHES: usize = 12;

/// What a trace tells of the order of things.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Writes to the store's log.
    writes: usize,
    /// Its syncs that returned.
    syncs: usize,
    /// Writes of a receipt's size to the gRPC port.
    receipts: usize,
    /// Those that began while something written was not synced.
    early: usize,
}

/// Reads a trace of `strace -f -yy`: calls in the order in which they began, with the ends of those that were interrupted.
fn read(trace: &str, port: u16) -> Told {
    let mut told = Told::default();
    let mut begun: HashMap<&str, (bool, usize)> = HashMap::new();
    let mut synced = 0;
    for line in trace.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let of_log = call.contains("/store/") && call.contains(".log>");
        let ended = |call: &str| call.trim_end().ends_with("= 0");
        if let Some(call) = call.strip_prefix("<... ") {
            let syncs = call.starts_with("fdatasync") || call.starts_with("fsync");
            if let Some((true, written)) = begun.remove(process).filter(|_| syncs && ended(call)) {
                synced = synced.max(written);
                told.syncs += 1;
            }
            continue;
        }
        let name = call.split('(').next().unwrap_or_default();
        match name {
            "write" | "pwrite64" | "writev" if of_log => told.writes += 1,
            "fdatasync" | "fsync" if of_log => {
                if call.contains("<unfinished") {
                    begun.insert(process, (true, told.writes));
                } else if ended(call) {
                    synced = synced.max(told.writes);
                    told.syncs += 1;
                }
            }
            "write" | "writev" | "sendto" | "sendmsg" if call.contains(&format!(":{port}->")) => {
                let length = call.rsplit("= ").next().and_then(|length| length.trim().parse().ok());
                // One that was interrupted is counted as long: what it told has begun to leave.
                if length.unwrap_or(u64::MAX) >= RECEIPT_BYTES_MIN {
                    told.receipts += 1;
                    told.early += usize::from(synced < told.writes);
                }
            }
            _ => {}
        }
    }
    told
}

#[test]
fn a_trace_with_the_answer_before_the_sync_is_seen() {
    let write = "7 write(9</d/store/000004.log>, \"\"..., 500) = 500\n";
    let sync = "7 fdatasync(9</d/store/000004.log>) = 0\n";
    let answer = "8 writev(12<TCP:[127.0.0.1:20001->127.0.0.1:40000]>, [...], 1) = 700\n";
    let small = "8 writev(12<TCP:[127.0.0.1:20001->127.0.0.1:40000]>, [...], 1) = 35\n";
    let begun = "7 fdatasync(9</d/store/000004.log> <unfinished ...>\n";
    let ended = "7 <... fdatasync resumed>) = 0\n";
    let early = |lines: &[&str]| read(&lines.concat(), 20_001).early;
    assert_eq!(early(&[write, sync, answer]), 0);
    assert_eq!(early(&[write, small, begun, ended, answer]), 0);
    assert_eq!(early(&[write, answer, sync]), 1);
    assert_eq!(early(&[write, begun, answer, ended]), 1);
    assert_eq!(early(&[write, begun, write, ended, answer]), 1);
    assert_eq!(early(&[write, "7 fdatasync(9</d/store/000004.log>) = -1 EIO\n", answer]), 1);
    assert_eq!(read(&[write, sync, answer].concat(), 20_001), Told { writes: 1, syncs: 1, receipts: 1, early: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_receipt_leaves_before_the_sync_of_its_batch_returned() {
    let traced = Command::new("strace").args(["-f", "-e", "trace=fsync", "true"]).output();
    if !traced.is_ok_and(|traced| traced.status.success()) {
        let skipped = std::env::var("CUSTODY_NO_STRACE").is_ok_and(|set| set == "1");
        println!("NOT CHECKED: strace cannot run here, so nothing shows that the sync comes before the answer");
        assert!(skipped, "strace is missing or may not trace (hint: apt-get install strace, or CUSTODY_NO_STRACE=1)");
        return;
    }
    let home = Home::new("sync", "segment.age_seconds = 86400\nfence.read_seconds = 20\n");
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    home.say(&["cut"]);
    process.terminate();
    assert_eq!(process.wait_end().code(), Some(0));
    // The ledger stays this test's own child; strace looks on from aside.
    let trace = home.dir.join("trace");
    let mut command = Command::new("strace");
    command.args([
        "-D",
        "-f",
        "-yy",
        "-e",
        "trace=fdatasync,fsync,write,writev,pwrite64,sendto,sendmsg",
        "-s",
        "0",
        "-o",
    ]);
    command.arg(&trace).arg(binary("ledger")).arg("serve").arg("--config").arg(home.config());
    let process = Process::spawn(&mut command);
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    // One at a time: whatever is written to the store's log then is this batch.
    for _ in 0..BATCHES {
        let batch = gateway.batch(4);
        session.send(batch).await.unwrap();
        gateway.settle(&mut session).await.unwrap();
    }
    process.kill();
    let told = read(&std::fs::read_to_string(&trace).unwrap(), home.grpc);
    println!("{told:?}");
    assert!(told.writes >= BATCHES && told.syncs >= BATCHES && told.receipts >= BATCHES, "{told:?}");
    assert_eq!(told.early, 0, "a receipt left before its batch was synced: {told:?}");
}
