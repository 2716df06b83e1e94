//! A trace of the ledger's system calls: between the write of a batch to the store's log and the receipt on the socket a
//! sync of that log returned; a file's bytes are synced before it gets its name, and the folder before anything counts on
//! that name. SIGKILL keeps the page cache, so no kill of a process can show this.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use custody_tests::{
    peer::Gateway,
    process::{Home, Process, end, traced},
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

/// What a trace tells of the ledger's own files: staging, archive, fence, and what `init` makes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files {
    /// Files that got the name by which others find them, by the first folder of that name below the home.
    named: BTreeMap<String, usize>,
    /// Those whose bytes were not synced by then.
    unsynced: Vec<String>,
    /// Folders that held a new name and were not synced when a claim or a checkpoint, which count on them, got its own; or
    /// at the end.
    unsynced_folders: Vec<String>,
}

/// Between quotes: the names that a call was given. (Between angle brackets stand the paths of open files, among them the
/// working folder.)
fn names(call: &str) -> Vec<&str> {
    call.split('"').skip(1).step_by(2).collect()
}

/// Path of the open file that is a call's first argument.
fn opened(call: &str) -> Option<&str> {
    call.split_once('<')?.1.split_once('>').map(|(path, _)| path)
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned())
}

/// Calls in the order in which they ended, each whole: one that was interrupted is put together from its two halves.
fn whole_calls(trace: &str) -> Vec<String> {
    let (mut begun, mut calls) = (HashMap::new(), Vec::new());
    for line in trace.lines() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim();
        if let Some((first, _)) = call.split_once("<unfinished") {
            begun.insert(process, first.to_owned());
        } else if let Some((_, rest)) = call.strip_prefix("<... ").and_then(|rest| rest.split_once("resumed>")) {
            calls.push(begun.remove(process).unwrap_or_default() + rest);
        } else {
            calls.push(call.to_owned());
        }
    }
    calls
}

/// Below the home: what the store and the index do with their own files is their affair, and what a crash leaves of the index is
/// built again.
fn is_of_a_library(below: &str) -> bool {
    ["/data/store", "/data/index"].iter().any(|folder| below.starts_with(folder))
}

/// Reads a trace: every file is synced before it is linked or renamed into place, and every folder with a new name before a
/// claim or a checkpoint gets its own.
fn read_files(trace: &str, home: &str) -> Files {
    let mut files = Files::default();
    let (mut dirty, mut folders) = (BTreeSet::new(), BTreeSet::new());
    for call in whole_calls(trace) {
        let done = call.ends_with("= 0");
        let (open, given) = (opened(&call), names(&call));
        match call.split('(').next().unwrap_or_default() {
            "write" | "pwrite64" | "writev" => dirty.extend(open.map(str::to_owned)),
            "fsync" | "fdatasync" if done => {
                dirty.remove(open.unwrap_or_default());
                folders.remove(open.unwrap_or_default());
            }
            "mkdir" | "mkdirat" if done => folders.extend(
                given
                    .first()
                    .map(|path| parent(path))
                    .filter(|folder| !folder.strip_prefix(home).is_some_and(is_of_a_library)),
            ),
            "rename" | "renameat" | "renameat2" | "link" | "linkat" if done => {
                let [from, to] = given[..] else { continue };
                let Some(below) = to.strip_prefix(home).filter(|below| !is_of_a_library(below)) else { continue };
                let first = below.split('/').nth(1).unwrap_or_default();
                *files.named.entry(first.to_owned()).or_default() += 1;
                if dirty.contains(from) {
                    files.unsynced.push(to.to_owned());
                }
                if below.contains("/log/checkpoints/") || below.starts_with("/fence/log/") {
                    files.unsynced_folders.extend(folders.iter().filter(|folder| folder.starts_with(home)).cloned());
                }
                folders.insert(parent(to));
            }
            _ => {}
        }
    }
    files.unsynced_folders.extend(folders.into_iter().filter(|folder| folder.starts_with(home)));
    files
}

#[test]
fn a_trace_with_a_file_in_place_before_its_sync_is_seen() {
    let write = "7 write(9</h/data/staging/.tmp.1>, \"\"..., 500) = 500\n";
    let begins = "7 fsync(9</h/data/staging/.tmp.1> <unfinished ...>\n";
    let ends = "7 <... fsync resumed>) = 0\n";
    let name = "7 rename(\"/h/data/staging/.tmp.1\", \"/h/data/staging/a-1\") = 0\n";
    let folder = "8 fsync(10</h/data/staging>) = 0\n";
    let claim = "7 linkat(AT_FDCWD</w>, \"/h/fence/log/1#1\", AT_FDCWD</w>, \"/h/fence/log/1\", 0) = 0\n";
    let fence = "7 fsync(11</h/fence/log>) = 0\n";
    let told = |lines: &[&str]| {
        let files = read_files(&lines.concat(), "/h");
        (files.named.values().sum::<usize>(), files.unsynced.len(), files.unsynced_folders.len())
    };
    assert_eq!(told(&[write, begins, ends, name, folder, claim, fence]), (2, 0, 0));
    assert_eq!(told(&[write, begins, name, ends, folder]), (1, 1, 0));
    assert_eq!(told(&[write, name, folder]), (1, 1, 0));
    assert_eq!(told(&[write, begins, ends, name, claim, folder, fence]), (2, 0, 1));
    assert_eq!(told(&[write, begins, ends, name]), (1, 0, 1));
    assert_eq!(told(&[claim]), (1, 0, 1));
    let other = "7 fsync(9</h/data/staging/.tmp.2>) = 0\n";
    assert_eq!(told(&[write, other, name, folder]), (1, 1, 0));
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

#[expect(clippy::print_stdout, reason = "what was counted is told")]
fn check_files(trace: &str, home: &Path, places: &[&str]) {
    let files = read_files(trace, &home.display().to_string());
    println!("{files:?}");
    for place in places {
        assert!(files.named.contains_key(*place), "no file got a name in {place}: {files:?}");
    }
    assert!(files.unsynced.is_empty(), "a file got its name before its bytes were synced: {files:?}");
    assert!(files.unsynced_folders.is_empty(), "a folder was not synced in time: {files:?}");
}

#[test]
fn what_init_makes_outlasts_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (home, trace) = (folder.path().join("new/ledger"), folder.path().join("trace"));
    let Some(mut command) = traced(&trace, "ledger") else { return };
    let made = command.args(["init", "--origin", "custody.test/sync", "--dir"]).arg(&home).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    check_files(&std::fs::read_to_string(&trace).unwrap(), folder.path(), &["new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_receipt_leaves_before_the_sync_of_its_batch_returned() {
    let home = Home::new("sync", "segment.age_seconds = 86400\nfence.read_seconds = 20\n");
    let trace = home.dir.join("trace");
    let Some(mut command) = traced(&trace, "ledger") else { return };
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    home.say(&["cut"]);
    end(&process);
    let process = Process::spawn(command.arg("serve").arg("--config").arg(home.config()));
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    // One at a time: whatever is written to the store's log then is this batch.
    for _ in 0..BATCHES {
        gateway.ship_one(&mut session, 4).await;
    }
    home.say(&["cut"]);
    process.kill();
    let trace = std::fs::read_to_string(&trace).unwrap();
    check_files(&trace, &home.dir, &["data", "archive", "fence"]);
    let told = read(&trace, home.grpc);
    println!("{told:?}");
    assert!(told.writes >= BATCHES && told.syncs >= BATCHES && told.receipts >= BATCHES, "{told:?}");
    assert_eq!(told.early, 0, "a receipt left before its batch was synced: {told:?}");
}
