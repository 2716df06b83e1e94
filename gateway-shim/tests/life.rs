//! A server's process as the built shim starts it: what it gets, what it may reach, and how it ends.
//!
//! Each test runs real programs (`sh`, `bash` for its TCP, `env`), and the stage and the guard of the program itself.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gateway_shim::{
    config::{Limits, ProcessConfig, Profile, Sandbox, Start},
    server::{
        Launcher,
        guard::Guard,
        launch::{Started, launch},
        sandbox, stage,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

const SHIM: &str = env!("CARGO_BIN_EXE_gateway-shim");

fn launcher() -> Launcher {
    Launcher::Program(SHIM.into())
}

fn bash(script: &str, directory: &Path) -> ProcessConfig {
    let command = ["bash", "-c", script].map(str::to_owned).to_vec();
    ProcessConfig {
        command,
        environment: BTreeMap::new(),
        environment_file: None,
        directory: directory.to_owned(),
        start: Start::OnDemand,
        idle_s_max: 600,
        ready_s_max: 30,
        stop_s_max: 5,
        sessions_max: 1,
        member_sessions_max: 1,
        failures_max: 1,
        limits: Limits::default(),
        sandbox: Sandbox::default(),
    }
}

async fn start(config: &ProcessConfig) -> Result<Started, String> {
    launch(&launcher(), &Guard::new(launcher()), config, std::future::ready(Ok(()))).await
}

/// What a process says until it ends by itself.
async fn said(config: &ProcessConfig) -> String {
    let mut started = start(config).await.expect("it starts");
    let mut said = String::new();
    started.stdout.read_to_string(&mut said).await.expect("it says text");
    drop(started.stdin);
    started.process.end(Duration::from_secs(30)).await;
    said
}

/// Waits until a process is gone, or a zombie that nobody reaps.
fn gone(pid: &str) {
    let dead = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    soon(dead);
}

/// Waits for what comes soon, or fails.
fn soon(come: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !come() {
        assert!(Instant::now() < until, "what the test waits for does not come");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_process_gets_what_it_is_given_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a folder");
    let secret = std::fs::File::create(dir.path().join("inherited")).expect("a file");
    // As whatever starts the shim may leave one open.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).expect("the flag goes");
    let mut config = bash("", dir.path());
    config.command = vec!["env".into()];
    config.environment.insert("GIVEN".into(), "given".into());
    let environment = said(&config).await;
    let names: Vec<_> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert_eq!(names, ["GIVEN", "PATH"]);
    let script =
        "pwd; for fd in /proc/$$/fd/*; do readlink $fd; done; ulimit -c; ulimit -n; ulimit -v; ulimit -t; ulimit -f";
    let mut config = bash(script, dir.path());
    config.limits = Limits {
        memory_mib_max: Some(512),
        open_files_max: Some(64),
        cpu_s_max: Some(77),
        file_mib_max: Some(3),
        processes_max: None,
    };
    let said = said(&config).await;
    assert!(said.starts_with(dir.path().to_str().expect("a name")) && !said.contains("inherited"), "{said}");
    let limits: Vec<_> = said.lines().rev().take(5).collect();
    // Files in blocks of 1 KiB.
    assert_eq!(limits, ["3072", "77", "524288", "64", "0"], "{said}");
}

/// Who leads a session can join no other group, so that it and its group are always what is signalled.
#[tokio::test]
async fn a_process_leads_its_session_and_its_group() {
    let dir = tempfile::tempdir().expect("a folder");
    let said =
        said(&bash("read -r pid _ _ _ group session _ < /proc/$$/stat; echo $pid $group $session", dir.path())).await;
    let ids: Vec<_> = said.split_whitespace().collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{said}");
}

/// Each line of the script says whether something was done.
const TRIES: &str = r#"
try() { if eval "$2" >/dev/null 2>&1; then echo "$1 done"; else echo "$1 refused"; fi; }
try read-outside 'cat "$OUTSIDE/file"'
try list-outside 'ls "$OUTSIDE"'
try write-outside 'echo x > "$OUTSIDE/new"'
try remove-outside 'rm "$OUTSIDE/file"'
try read-named 'cat "$NAMED/file"'
try write-named 'echo x > "$NAMED/new"'
try write-inside 'echo x > "$INSIDE/new" && mkdir "$INSIDE/folder" && mv "$INSIDE/new" "$INSIDE/folder/" && echo y >> "$INSIDE/folder/new"'
try run 'env'
try connect-allowed 'exec 3<>/dev/tcp/127.0.0.1/$ALLOWED'
try connect-elsewhere 'exec 3<>/dev/tcp/127.0.0.1/$ELSEWHERE'
try signal-outside 'kill -0 $PPID'
try signal-own 'sleep 60 & kill $!'
try read-cookie 'cat "$OUTSIDE/control.cookie"'
try read-environment 'cat "/proc/$PPID/environ"'
try read-memory 'cat "/proc/$PPID/maps"'
try in-a-child 'bash -c "cat $OUTSIDE/file"'
"#;

async fn tries(profile: Profile) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a folder");
    let [outside, named, inside] = ["outside", "named", "inside"].map(|name| dir.path().join(name));
    for folder in [&outside, &named, &inside] {
        std::fs::create_dir(folder).expect("a folder");
        std::fs::File::create(folder.join("file")).expect("a file");
    }
    gateway_shim::cookie::Cookie::fresh(&outside.join(gateway_shim::control::COOKIE)).expect("a cookie");
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [allowed, elsewhere] = [0, 1].map(|at: usize| listeners[at].local_addr().expect("an address").port());
    let mut config = bash(TRIES, dir.path());
    for (name, value) in [("OUTSIDE", &outside), ("NAMED", &named), ("INSIDE", &inside)] {
        config.environment.insert(name.into(), value.display().to_string());
    }
    config.environment.insert("ALLOWED".into(), allowed.to_string());
    config.environment.insert("ELSEWHERE".into(), elsewhere.to_string());
    // The server's bounds are none of what prepares it.
    config.limits.open_files_max = Some(32);
    if profile != Profile::None {
        config.sandbox = Sandbox { profile, write: vec![inside], connect: Some(vec![allowed]), ..Sandbox::default() };
    }
    if profile == Profile::Confined {
        config.sandbox.read = vec![named];
    }
    said(&config).await.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn without_a_sandbox_a_server_may_do_all_that_the_shim_may() {
    let tried = tries(Profile::None).await;
    assert!(tried.len() == 16 && tried.iter().filter(|line| line.ends_with("done")).count() == 15, "{tried:?}");
}

#[tokio::test]
async fn a_confined_server_reaches_what_is_named() {
    let tried = tries(Profile::Confined).await;
    let expected = [
        "read-outside refused",
        "list-outside refused",
        "write-outside refused",
        "remove-outside refused",
        "read-named done",
        "write-named refused",
        "write-inside done",
        "run done",
        "connect-allowed done",
        "connect-elsewhere refused",
        "signal-outside refused",
        "signal-own done",
        "read-cookie refused",
        "read-environment refused",
        "read-memory refused",
        "in-a-child refused",
    ];
    assert_eq!(tried, expected, "{}", sandbox::report().join("\n"));
}

#[tokio::test]
async fn a_read_only_server_writes_what_is_named() {
    let tried = tries(Profile::ReadOnly).await;
    let expected = [
        "read-outside done",
        "list-outside done",
        "write-outside refused",
        "remove-outside refused",
        "read-named done",
        "write-named refused",
        "write-inside done",
        "run done",
        "connect-allowed done",
        "connect-elsewhere refused",
        "signal-outside refused",
        "signal-own done",
        // So it can speak over the control socket: SHIPPING.md says so.
        "read-cookie done",
        "read-environment refused",
        "read-memory refused",
        "in-a-child done",
    ];
    assert_eq!(tried, expected);
}

#[tokio::test]
async fn what_cannot_be_kept_starts_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let mark = dir.path().join("ran");
    let script = format!("echo ran > {}", mark.display());
    let config = bash(&script, dir.path());
    let sandboxed = |sandbox| ProcessConfig { sandbox, ..config.clone() };
    let elsewhere = dir.path().join("nowhere");
    let confined = Sandbox { profile: Profile::Confined, ..Sandbox::default() };
    for (config, why) in [
        (sandboxed(Sandbox { read: vec![elsewhere.clone()], ..confined.clone() }), "sandbox.read"),
        (ProcessConfig { directory: elsewhere, ..config.clone() }, "directory"),
        (ProcessConfig { command: vec!["no-such-program".into()], ..config.clone() }, "no program no-such-program"),
    ] {
        let error = start(&config).await.expect_err("it does not start");
        assert!(error.contains(why) && error.contains("hint:"), "{error}");
    }
    let unrecorded = std::future::ready(Err("put it on record".to_owned()));
    let error = launch(&launcher(), &Guard::new(launcher()), &config, unrecorded).await.expect_err("it does not start");
    assert!(error.contains("on record") && !mark.exists(), "{error}");
}

/// The shim that said nothing more is gone: nobody would end this server.
#[test]
fn a_server_runs_only_once_the_shim_has_said_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let plan = stage::Plan { directory: dir.path().into(), limits: Limits::default(), sandbox: Sandbox::default() };
    let plan = serde_json::to_string(&plan).expect("a plan");
    let run = |stdin: &[u8]| {
        let mut child = Command::new(SHIM)
            .args(["become", &plan, "--", "sh", "-c", "echo ran"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("a pipe").write_all(stdin).expect("it reads");
        let out = child.wait_with_output().expect("it ends");
        (out.status.code(), String::from_utf8(out.stdout).expect("text"))
    };
    assert_eq!(run(b""), (Some(i32::from(stage::EXIT_NOT_KEPT)), "ready\n".into()));
    assert_eq!(run(b"\n"), (Some(0), "ready\nran\n".into()));
}

#[tokio::test]
async fn a_process_ends_with_its_whole_group() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut started =
        start(&bash("trap '' TERM; sleep 1000 & echo $!; wait; wait", dir.path())).await.expect("it starts");
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut started.stdout, &mut line).await.expect("a line");
    drop((started.stdin, started.stdout));
    let exit = started.process.end(Duration::ZERO).await;
    assert_eq!(exit.signal, Some(9), "it does not end by itself, nor by SIGTERM");
    gone(line.trim());
    // Whoever ends by itself leaves nobody either.
    let mut started = start(&bash("sleep 1000 & echo $!; exit 3", dir.path())).await.expect("it starts");
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut started.stdout, &mut line).await.expect("a line");
    let exit = started.process.end(Duration::from_secs(30)).await;
    assert_eq!(exit.code, Some(3));
    gone(line.trim());
}

#[test]
fn the_guard_ends_what_the_shim_leaves() {
    let mut guard =
        Command::new(SHIM).arg("guard").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut left = Command::new("sleep").arg("1000").process_group(0).spawn().expect("it starts");
    let mut ended = Command::new("sleep").arg("1000").process_group(0).spawn().expect("it starts");
    let mut stdin = guard.stdin.take().expect("a pipe");
    writeln!(stdin, "+{}\n+{}\n-{}", left.id(), ended.id(), ended.id()).expect("it reads");
    // Its shim ends first, whatever a service's manager sends to all.
    let pid = |child: &std::process::Child| Pid::from_raw(child.id().cast_signed()).expect("a number");
    let catches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", guard.id())).expect("it lives");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask").trim();
        u64::from_str_radix(mask, 16).expect("hex") & 1 << 14 != 0
    };
    soon(catches);
    kill_process(pid(&guard), Signal::TERM).ok();
    drop(stdin);
    assert_eq!(left.wait().expect("it ends").signal(), Some(9));
    assert_eq!(guard.wait().expect("it ends").code(), Some(0));
    assert_eq!(ended.try_wait().expect("it is a child"), None, "what has ended is another's by now");
    ended.kill().expect("it ends");
    ended.wait().expect("it ends");
    let mut said = String::new();
    guard.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(said, "");
}

#[test]
fn the_report_says_what_this_kernel_keeps() {
    let report = sandbox::report();
    assert!(report[0].starts_with("sandbox: ") && report.len() == 7, "{report:?}");
}
