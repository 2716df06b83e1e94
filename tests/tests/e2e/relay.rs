//! The real relay with the real ledger: the published examples in two languages, and what SIGKILL leaves of records that
//! were acknowledged.
//!
//! `CUSTODY_SEED` replays the kills and `CUSTODY_KILLS` makes them more.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use custody::wire::{self, PutRequest, record::Kind, relay_client::RelayClient};
use custody_tests::{
    dice::Dice,
    oracle::{Expected, check_ledger},
    process::{Home, WAIT, binary, end, free_port, variable},
    shim::{Shim, done},
    shown,
};
use serde_json::Value;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

/// Kills of `make test`.
const KILLS: u64 = 6;
/// Callers that have a record on its way at the same time.
const CALLERS: u64 = 4;

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

pub(crate) fn verifier(args: &[&str]) -> String {
    done(&format!("verifier {args:?}"), &Command::new(binary("verifier")).args(args).output().unwrap())
}

/// What a target of the Makefile installed; it names the folder, or it is the one of this repository.
pub(crate) fn installed(variable: &str, name: &str) -> PathBuf {
    let given = std::env::var_os(variable).map(PathBuf::from);
    let folder = given.unwrap_or_else(|| repository().join(".cache").join(name));
    let group = if name == "venv/bin/python" { "python" } else { name };
    assert!(folder.exists(), "{} is missing (hint: tests/scripts/setup.sh {group})", folder.display());
    folder
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Each example, with the program that runs it.
fn examples(home: &Home) -> [(&'static str, Command); 2] {
    let published = repository().join("gateway-shim/examples");
    let mut python = Command::new(installed("CUSTODY_PYTHON", "venv/bin/python"));
    python.arg(published.join("ship.py"));
    // The file as it is published, where its packages and the protos stand around it as in a clone after `npm ci`.
    let clone = home.dir.join("clone/gateway-shim/examples");
    std::fs::create_dir_all(&clone).unwrap();
    std::fs::copy(published.join("ship.ts"), clone.join("ship.ts")).unwrap();
    std::fs::copy(published.join("package.json"), clone.join("package.json")).unwrap();
    let packages = installed("CUSTODY_EXAMPLES_DIR", "examples").join("node_modules");
    std::os::unix::fs::symlink(packages, clone.join("node_modules")).unwrap();
    std::os::unix::fs::symlink(repository().join("proto"), home.dir.join("clone/proto")).unwrap();
    let mut node = Command::new(installed("CUSTODY_NODE_DIR", "node").join("node_modules/node/bin/node"));
    node.arg(clone.join("ship.ts"));
    [("ship.py", python), ("ship.ts", node)]
}

/// `docs/SHIPPING.md`, walked through: what the examples print is in the archive, and proven record by record.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_examples_ship_is_proven_by_the_names_that_they_print() {
    let home = Home::new("ship", "segment.age_seconds = 86400\n");
    let ledger = home.start();
    let port = free_port();
    let over_tcp = Shim::enrol(&home, "over-tcp", &format!("listen = \"127.0.0.1:{port}\""));
    let over_socket = Shim::enrol(&home, "over-socket", "socket = \"relay.sock\"");
    let [socket, secret] = ["relay.sock", "state/spool/relay.secret"].map(|name| over_socket.dir.join(name));
    let targets = [
        (&over_tcp, vec![format!("127.0.0.1:{port}")]),
        (&over_socket, vec![format!("unix:{}", path(&socket)), path(&secret).to_owned()]),
    ];
    let mut names = Vec::new();
    for ((example, program), number) in examples(&home).into_iter().zip(1..) {
        for (shim, target) in &targets {
            let relay = shim.start();
            let mut command = Command::new(program.get_program());
            let said = done(example, &command.args(program.get_args()).args(target).output().unwrap());
            let printed: Vec<String> = said.lines().map(str::to_owned).collect();
            assert_eq!(printed.len(), 3, "{example} over {target:?}, run {number}: {said}");
            names.extend(printed.into_iter().map(|name| (example, name)));
            end(&relay);
        }
    }
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let (archive, policy) = (home.archive(), home.policy());
    for ((example, name), number) in names.iter().zip(0..) {
        let file = home.dir.join(format!("{number}.evidence"));
        verifier(&["evidence", "make", path(&archive), "--policy", path(&policy), name, "--out", path(&file)]);
        let checked = verifier(&["evidence", "check", path(&file), "--policy", path(&policy)]);
        assert!(checked.contains(example), "the evidence of {name} is not of {example}'s call:\n{checked}");
    }
    assert_eq!(names.iter().map(|(_, name)| name).collect::<HashSet<_>>().len(), 12, "{names:?}");
    drop(ledger);
}

/// What callers share with whoever kills.
struct Load {
    target: String,
    stop: AtomicBool,
    /// Number of the run that serves now.
    serving: watch::Receiver<u64>,
    /// Tool of each record that was acknowledged, and its stable name.
    acknowledged: Mutex<HashMap<String, String>>,
    progress: watch::Sender<u64>,
}

/// A record whose tool tells it from others.
pub(crate) fn call(tool: &str) -> PutRequest {
    let call = wire::Call {
        phase: wire::Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        decision: wire::Decision::Allowed as i32,
        outcome: wire::Outcome::Ok as i32,
        server: "test".into(),
        target: Some(wire::call::Target::Tool(tool.into())),
        ..Default::default()
    };
    PutRequest { record: Some(wire::Record { version: 0, kind: Some(Kind::Call(call)) }) }
}

/// A client of the relay at this URL.
pub(crate) async fn connect(target: &str) -> Result<RelayClient<Channel>, tonic::transport::Error> {
    Ok(RelayClient::new(Endpoint::from_shared(target.to_owned())?.connect().await?))
}

/// Puts one record after the other, each with a tool of its own; what was not answered is not sent again.
async fn put_on(load: Arc<Load>, caller: u64) {
    let (mut serving, mut number) = (load.serving.clone(), 0_u64);
    while !load.stop.load(Ordering::Acquire) {
        let run = *serving.borrow_and_update();
        if let Ok(mut relay) = connect(&load.target).await {
            while !load.stop.load(Ordering::Acquire) {
                number += 1;
                let tool = format!("tool-{caller}-{number}");
                let Ok(put) = relay.put(call(&tool)).await else { break };
                let put = put.into_inner();
                let name =
                    format!("{}/{}/{}", custody::id::hex(&put.gateway), custody::id::hex(&put.epoch), put.number);
                load.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(tool, name);
                load.progress.send_modify(|count| *count += 1);
            }
        }
        if !load.stop.load(Ordering::Acquire) && *serving.borrow() == run {
            tokio::time::timeout(2 * WAIT, serving.changed()).await.expect("the relay comes back").unwrap();
        }
    }
}

/// Tool and stable name of every call in the archive.
pub(crate) fn archived_calls(home: &Home, workspace: &str) -> Vec<(String, String)> {
    let call = |shown: Value| {
        let tool = shown["record"]["tool"].as_str()?.to_owned();
        let part = |name: &str| shown[name].as_str().expect(name).to_owned();
        Some((tool, format!("{}/{}/{}", part("gateway"), part("epoch"), shown["number"])))
    };
    shown::records(home, workspace).into_iter().filter_map(call).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_the_relay_acknowledged_is_lost_or_doubled_however_often_it_is_killed() {
    let (kills, seed) = (variable("CUSTODY_KILLS", KILLS), variable("CUSTODY_SEED", 1));
    println!("CUSTODY_SEED={seed} CUSTODY_KILLS={kills}");
    let home = Home::new("kill", "segment.leaves_max = 48\nsegment.age_seconds = 1\n");
    let ledger = home.start();
    let port = free_port();
    let shim = Shim::enrol(&home, "killed", &format!("listen = \"127.0.0.1:{port}\""));
    let (up, serving) = watch::channel(0);
    let load = Arc::new(Load {
        target: format!("http://127.0.0.1:{port}"),
        stop: AtomicBool::new(false),
        serving,
        acknowledged: Mutex::default(),
        progress: watch::Sender::new(0),
    });
    let callers: Vec<_> = (0..CALLERS).map(|caller| tokio::spawn(put_on(Arc::clone(&load), caller))).collect();
    let (mut dice, mut progress) = (Dice::new(seed), load.progress.subscribe());
    for kill in 0..kills {
        let relay = shim.start();
        up.send_replace(kill + 1);
        let until = *progress.borrow_and_update() + dice.within(1..400);
        let reached = tokio::time::timeout(2 * WAIT, progress.wait_for(|count| *count >= until)).await;
        assert!(reached.is_ok_and(|reached| reached.is_ok()), "no answers: {}", relay.log().join("\n"));
        relay.kill();
        println!("kill {kill} after {until} acknowledged records");
    }
    let relay = shim.start();
    load.stop.store(true, Ordering::Release);
    up.send_replace(kills + 1);
    for caller in callers {
        caller.await.unwrap();
    }
    end(&relay);
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let archived = archived_calls(&home, &shim.workspace);
    let mut by_tool: HashMap<&str, Vec<&str>> = HashMap::new();
    for (tool, name) in &archived {
        by_tool.entry(tool).or_default().push(name);
    }
    for (tool, name) in load.acknowledged.lock().unwrap().iter() {
        assert_eq!(by_tool.get(tool.as_str()), Some(&vec![name.as_str()]), "{tool} is not there once, under its name");
    }
    assert!(by_tool.values().all(|names| names.len() == 1), "a record that nobody was answered for stands twice");
    println!("{} records acknowledged, {} archived", load.acknowledged.lock().unwrap().len(), archived.len());
    drop(ledger);
}
