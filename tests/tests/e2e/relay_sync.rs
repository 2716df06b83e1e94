//! Traces of the shim's system calls: what it answers for, and the keys that it makes, were synced before, and so was every
//! folder on the way there. SIGKILL keeps the page cache, so no kill of a process can show this.

use std::{collections::HashMap, path::Path};

use custody_tests::{
    process::{Home, Process, free_port, traced},
    shim::Shim,
};

use crate::relay::{call, connect};

const RECORDS: usize = 12;
/// An answer holds two ids of 16 bytes; what HTTP/2 says for itself in between is shorter.
const ANSWER_BYTES_MIN: u64 = 50;

/// A system call that succeeded: its lines' numbers, its words, and what it gave.
#[derive(Debug, Clone)]
struct Call {
    began: usize,
    ended: usize,
    name: String,
    words: String,
    gave: String,
}

/// Reads a trace of `strace -f -yy`, with the calls that were interrupted put together.
fn read(trace: &str) -> Vec<Call> {
    let (mut calls, mut begun) = (Vec::new(), HashMap::new());
    for (at, line) in trace.lines().enumerate() {
        let Some((process, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(rest) = call.strip_prefix("<... ") {
            let Some((began, words)) = begun.remove(process) else { continue };
            calls.extend(finished(began, at, &format!("{words}{rest}")));
        } else if let Some((words, _)) = call.split_once(" <unfinished") {
            begun.insert(process, (at, words));
        } else {
            calls.extend(finished(at, at, call));
        }
    }
    calls
}

fn finished(began: usize, ended: usize, text: &str) -> Option<Call> {
    let (words, gave) = text.rsplit_once(" = ")?;
    let (name, words) = words.split_once('(')?;
    let failed = gave.starts_with('-') || gave.starts_with('?');
    let (name, words, gave) = (name.to_owned(), words.to_owned(), gave.trim().to_owned());
    (!failed).then_some(Call { began, ended, name, words, gave })
}

impl Call {
    fn syncs(&self, path: &str) -> bool {
        ["fsync", "fdatasync"].contains(&self.name.as_str()) && self.words.contains(&format!("<{path}>"))
    }

    fn writes(&self) -> bool {
        ["write", "writev", "pwrite64", "sendto", "sendmsg"].contains(&self.name.as_str())
    }

    /// The path in quotation marks of a call that makes one.
    fn made(&self) -> Option<&str> {
        let makes = self.name.starts_with("mkdir") || (self.name == "openat" && self.words.contains("O_EXCL"));
        self.words.split('"').nth(1).filter(|_| makes)
    }

    /// The file that is written to.
    fn file(&self) -> Option<&str> {
        let (_, rest) = self.words.split_once('<')?;
        rest.split_once('>').map(|(path, _)| path)
    }
}

/// Whether `path` was synced after `done` and before the call of line `before` began.
fn is_synced(calls: &[Call], path: &str, done: &Call, before: usize) -> bool {
    calls.iter().any(|call| call.syncs(path) && call.began > done.ended && call.ended < before)
}

/// What was not synced before each answer on this port: written bytes, new files, and the folders that name them.
fn unsynced(calls: &[Call], folder: &str, answers: &[usize]) -> Vec<String> {
    let mut missing = Vec::new();
    for answer in answers {
        for call in calls.iter().filter(|call| call.began < *answer) {
            let written =
                call.file().filter(|file| call.writes() && file.starts_with(folder) && file.ends_with(".log"));
            if let Some(file) = written.filter(|file| !is_synced(calls, file, call, *answer)) {
                missing.push(format!("bytes of {file} written on line {}", call.began));
            }
            let Some(path) = call.made().filter(|path| path.starts_with(folder) && !path.ends_with("lock")) else {
                continue;
            };
            let above = Path::new(path).parent().unwrap().to_str().unwrap();
            if !is_synced(calls, above, call, *answer) {
                missing.push(format!("the name {path} in its folder"));
            }
        }
    }
    missing
}

fn answers(calls: &[Call], port: u16) -> Vec<usize> {
    let of_port = |call: &&Call| call.writes() && call.words.contains(&format!(":{port}->"));
    let long = |call: &&Call| call.gave.parse::<u64>().is_ok_and(|bytes| bytes >= ANSWER_BYTES_MIN);
    calls.iter().filter(of_port).filter(long).map(|call| call.began).collect()
}

#[test]
fn a_trace_without_a_sync_is_seen() {
    let mkdir = "7 mkdir(\"/d/spool\", 0700) = 0\n";
    let above = "7 fsync(8</d>) = 0\n";
    let open = "7 openat(AT_FDCWD</d>, \"/d/spool/a.log\", O_RDWR|O_CREAT|O_EXCL|O_APPEND|O_CLOEXEC, 0600) = 9</d/spool/a.log>\n";
    let write = "7 write(9</d/spool/a.log>, \"\"..., 500) = 500\n";
    let sync = "7 fdatasync(9</d/spool/a.log>) = 0\n";
    let failed = "7 fdatasync(9</d/spool/a.log>) = -1 EIO (Input/output error)\n";
    let (begun, ended) = ("7 fdatasync(9</d/spool/a.log> <unfinished ...>\n", "7 <... fdatasync resumed>) = 0\n");
    let folder = "7 fsync(10</d/spool>) = 0\n";
    let answer = "8 writev(12<TCP:[127.0.0.1:7501->127.0.0.1:40000]>, [...], 2) = 90\n";
    let missing = |lines: &[&str]| {
        let calls = read(&lines.concat());
        let answers = answers(&calls, 7501);
        assert_eq!(answers.len(), 1);
        unsynced(&calls, "/d", &answers).len()
    };
    assert_eq!(missing(&[mkdir, above, open, write, sync, folder, answer]), 0);
    assert_eq!(missing(&[mkdir, above, open, write, begun, ended, folder, answer]), 0);
    assert_eq!(missing(&[mkdir, open, write, sync, folder, answer]), 1);
    assert_eq!(missing(&[mkdir, above, open, write, sync, answer]), 1);
    assert_eq!(missing(&[mkdir, above, open, write, folder, answer]), 1);
    assert_eq!(missing(&[mkdir, above, open, write, failed, folder, answer]), 1);
    assert_eq!(missing(&[mkdir, above, open, write, begun, folder, answer, ended]), 1);
    assert_eq!(missing(&[mkdir, above, open, sync, write, folder, answer]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_the_relay_leaves_before_its_record_is_synced() {
    let (home, port) = (Home::new("relay-sync", ""), free_port());
    let trace = home.dir.join("trace");
    let Some(mut command) = traced(&trace, "gateway-shim") else { return };
    let ledger = home.start();
    // Nothing but the records is written while they are answered: no batch is due, and no ledger answers.
    let late = format!("listen = \"127.0.0.1:{port}\"\n[batch]\nage_ms_max = 10000");
    let shim = Shim::enrol(&home, "synced", &late);
    ledger.kill();
    command.arg("relay").arg("--config").arg(shim.dir.join("shim.toml"));
    let relay = Process::spawn(&mut command);
    assert!(relay.wait_line("relay listens"), "{}", relay.log().join("\n"));
    let mut client = connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
    // One more than is looked for: of the last answer the kill may cut the trace.
    for number in 0..=RECORDS {
        client.put(call(&format!("tool-{number}"))).await.unwrap();
    }
    relay.kill();
    let calls = read(&std::fs::read_to_string(&trace).unwrap());
    let (answers, folder) = (answers(&calls, port), shim.dir.canonicalize().unwrap());
    let folder = folder.to_str().unwrap();
    let state = calls.iter().filter_map(Call::made).filter(|path| path.contains("/state")).count();
    let written = calls.iter().filter(|call| call.writes() && call.file().is_some_and(|file| file.starts_with(folder)));
    let written = written.count();
    println!("{} answers, {written} writes, {state} files and folders made", answers.len());
    assert!(answers.len() >= RECORDS && written >= RECORDS && state >= 4, "this trace shows nothing");
    let missing = unsynced(&calls, folder, &answers);
    assert!(missing.is_empty(), "answered before it was durable: {:#?}", &missing[..missing.len().min(8)]);
}

#[test]
fn new_keys_are_synced_with_the_folder_that_names_them() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().canonicalize().unwrap();
    let Some(mut command) = traced(&dir.join("trace"), "gateway-shim") else { return };
    let (key, tls) = (dir.join("gateway.key"), dir.join("tls.key"));
    command.args(["key", "new", "--key"]).arg(&key).arg("--tls-key").arg(&tls);
    let process = Process::spawn(&mut command);
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log().join("\n"));
    let calls = read(&std::fs::read_to_string(dir.join("trace")).unwrap());
    for path in [key, tls] {
        let path = path.to_str().unwrap();
        let made = calls.iter().find(|call| call.made() == Some(path)).expect("the key is made, and never overwritten");
        let written = calls.iter().find(|call| call.writes() && call.file() == Some(path)).expect("and written");
        assert!(is_synced(&calls, path, written, usize::MAX), "{path}");
        assert!(is_synced(&calls, dir.to_str().unwrap(), made, usize::MAX), "the folder of {path}");
    }
}
