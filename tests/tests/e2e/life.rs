//! The processes of servers that are programs: commands show, stop and start them, and none outlives the shim, however it ends.

use std::{path::Path, process::Command, time::Instant};

use custody_tests::process::{Home, Process, WAIT, binary, free_port};

use crate::relay::Shim;

/// Says which process it is and which it started, and heeds nobody.
const SERVER: &str = "trap '' TERM; sleep 1000 & echo $$ $! >> pids; wait; wait";

/// What comes soon, or the test fails.
fn soon<T>(look: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + 2 * WAIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "what the test waits for does not come");
        std::thread::yield_now();
    }
}

/// The line in which a server of the shim said who it is, once it is there.
fn pids(shim: &Path, line: usize) -> Vec<String> {
    soon(|| {
        let text = std::fs::read_to_string(shim.join("pids")).unwrap_or_default();
        let line = text.split_inclusive('\n').nth(line).filter(|line| line.ends_with('\n'))?;
        Some(line.split_whitespace().map(str::to_owned).collect())
    })
}

fn wait_for_the_end_of(pids: &[String]) {
    let ended = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    soon(|| pids.iter().all(ended).then_some(()));
}

#[test]
fn servers_are_shown_stopped_and_started_and_none_outlives_the_shim() {
    let home = Home::new("life", "");
    let ledger = home.start();
    let port = free_port();
    let serve = format!(
        "socket = \"relay.sock\"\n[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.files]\ncommand = [\"sh\", \"-c\", {SERVER:?}]\n\
         start = \"always\"\nready_s_max = 600\nstop_s_max = 1\n"
    );
    let shim = Shim::enrol(&home, "programs", &serve);
    let mut command = Command::new(binary("gateway-shim"));
    let process = Process::spawn(command.args(["serve", "--config", "shim.toml"]).current_dir(&shim.dir));
    assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
    let said = |verb: &[&str]| {
        let mut command = Command::new(binary("gateway-shim"));
        let out =
            command.arg("server").args(verb).args(["--config", "shim.toml"]).current_dir(&shim.dir).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let first = pids(&shim.dir, 0);
    assert_eq!(first.len(), 2);
    let stopped = said(&["stop", "files"]);
    assert!(stopped.contains("stopped") && stopped.contains("hint: gateway-shim server start files"), "{stopped}");
    wait_for_the_end_of(&first);
    assert!(said(&["list"]).contains("signal 9"), "it heeds nothing else");
    said(&["start", "files"]);
    let second = pids(&shim.dir, 1);
    process.kill();
    wait_for_the_end_of(&second);
    drop(ledger);
}
