//! `gateway-shim serve` in front of tiny MCP servers, killed under load: no call reaches a server that is not on record, and
//! what was going on when it was killed ends as `unknown`.
//!
//! `CUSTODY_SEED` replays the kills and `CUSTODY_KILLS` makes them more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use custody_tests::{
    dice::Dice,
    http::{self, Answer, Heard},
    oracle::{Expected, check_ledger},
    process::{Home, Process, WAIT, end, free_port, variable},
    shim::Shim,
    shown::{records, word},
};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Kills of `make test`.
const KILLS: u64 = 20;
/// The servers, each with the mode of its calls: two over HTTP, and a program, which ends with the shim.
const SERVERS: [(&str, &str); 3] = [("strict", "strict"), ("relaxed", "relaxed"), ("program", "strict")];
/// Callers of each server.
const CALLERS: u64 = 3;
/// Beginning of the name of a tool whose call nobody answers.
const HELD: &str = "held";
/// A server over stdio that writes down which tool is called before it answers; it never answers what is held.
const PROGRAM: &str = r#"while IFS= read -r line; do
  id=${line#*'"id":'}; id=${id%%[,\}]*}
  result='{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"t","version":"1"}}'
  case $line in
    *'"tools/list"'*) result='{"tools":[]}';;
    *'"tools/call"'*) tool=${line#*'"name":"'}; tool=${tool%%'"'*}; echo "$tool" >> reached; result='{}';;
  esac
  case $line in *'"held-'*) ;; *) printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$result";; esac
done"#;

/// What reached the servers over HTTP: the tool of each call.
#[derive(Default)]
struct Reached {
    tools: Mutex<BTreeSet<String>>,
    count: watch::Sender<u64>,
}

impl Reached {
    fn answer(&self, asked: &Heard) -> Option<Answer> {
        let call = asked.json();
        // The shim itself asks what tools there are.
        if call["method"] == "tools/list" {
            return Some(Answer::json(
                json!({"jsonrpc": "2.0", "id": call["id"], "result": {"tools": []}}).to_string(),
            ));
        }
        let tool = call["params"]["name"].as_str().unwrap().to_owned();
        let is_held = tool.starts_with(HELD);
        assert!(self.tools.lock().unwrap().insert(tool), "the shim forwarded a call twice");
        self.count.send_modify(|count| *count += 1);
        (!is_held).then(|| Answer::json(json!({"jsonrpc": "2.0", "id": call["id"], "result": {}}).to_string()))
    }
}

/// Where callers find the shim, and which of its runs serves; past the last, none does.
#[derive(Clone)]
struct Proxy {
    at: SocketAddr,
    token: String,
    serving: watch::Receiver<u64>,
}

impl Proxy {
    async fn ask(&self, server: &str, session: Option<&str>, body: &Value) -> std::io::Result<Heard> {
        let mut headers = vec![("authorization", self.token.as_str()), ("content-type", "application/json")];
        headers.extend(session.map(|session| ("mcp-session-id", session)));
        http::ask(self.at, "POST", &format!("/mcp/{server}"), &headers, body.to_string().as_bytes()).await
    }

    /// The session that a program needs; none for the others.
    async fn begin(&self, server: &str) -> std::io::Result<Option<String>> {
        if server != "program" {
            return Ok(None);
        }
        let hello =
            json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}});
        Ok(self.ask(server, None, &hello).await?.header("mcp-session-id").map(str::to_owned))
    }

    async fn call(&self, server: &str, session: Option<&str>, tool: &str) -> std::io::Result<Heard> {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}});
        self.ask(server, session, &call).await
    }

    /// One call that nobody answers: it is going on when the shim is killed.
    async fn hold(self, server: &'static str, run: u64) {
        if let Ok(session) = self.begin(server).await {
            self.call(server, session.as_deref(), &format!("{HELD}-{server}-{run}")).await.unwrap_err();
        }
    }

    /// One call after the other, each with a tool of its own, in every run; what is not answered is not asked again.
    async fn call_on(mut self, server: &'static str, caller: u64, last: u64) {
        let mut number = 0;
        loop {
            let run = *self.serving.borrow_and_update();
            if run > last {
                return;
            }
            if let Ok(session) = self.begin(server).await {
                loop {
                    number += 1;
                    let tool = format!("tool-{server}-{caller}-{number}");
                    if self.call(server, session.as_deref(), &tool).await.is_err() || *self.serving.borrow() > last {
                        break;
                    }
                }
            }
            if *self.serving.borrow() == run {
                tokio::time::timeout(2 * WAIT, self.serving.changed()).await.expect("the shim comes back").unwrap();
            }
        }
    }
}

/// Which phases and outcomes are on record of each call, by its run and number; and of which call each tool is.
#[derive(Default)]
struct Recorded {
    calls: BTreeMap<(String, u64), Vec<(String, String)>>,
    by_tool: BTreeMap<String, BTreeSet<(String, u64)>>,
}

impl Recorded {
    fn read(shown: &[Value]) -> Self {
        let mut read = Self::default();
        for record in shown.iter().filter(|record| record["kind"] == "call") {
            let number = record["record"]["call_number"].as_u64().unwrap_or_default();
            let call = (record["epoch"].as_str().unwrap().to_owned(), number);
            let (server, tool) = (word(record, "server"), word(record, "tool"));
            let mode = SERVERS.iter().find(|(name, _)| *name == server).map(|(_, mode)| *mode);
            assert_eq!(mode, Some(word(record, "mode")), "{record}");
            let said = (word(record, "phase").to_owned(), word(record, "outcome").to_owned());
            read.calls.entry(call.clone()).or_default().push(said);
            if !tool.is_empty() {
                read.by_tool.entry(tool.to_owned()).or_default().insert(call);
            }
        }
        read
    }

    /// Every call is one record, or an intent and how it ended; no number stands twice, and nothing is still running.
    fn check_calls(&self) {
        for (call, said) in &self.calls {
            let said: Vec<(&str, &str)> =
                said.iter().map(|(phase, outcome)| (phase.as_str(), outcome.as_str())).collect();
            let whole = match said.as_slice() {
                [("complete", outcome)] => !["running", "unknown"].contains(outcome),
                [("intent", "running"), ("outcome", outcome)] => *outcome != "running",
                _ => false,
            };
            assert!(whole, "the records of call {call:?} are {said:?}");
        }
    }

    /// How the one call of a tool ended.
    fn outcome(&self, tool: &str) -> &str {
        let calls: Vec<_> = self.by_tool.get(tool).into_iter().flatten().collect();
        assert_eq!(calls.len(), 1, "a call of {tool} reached its server, and on record are {calls:?}");
        self.calls[calls[0]].last().map_or("", |(_, outcome)| outcome)
    }
}

fn start(shim: &Shim) -> Process {
    let process = Process::spawn(&mut shim.serving());
    assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
    process
}

/// Every tool that reached a server.
fn all_reached(reached: &Reached, shim: &Path) -> BTreeSet<String> {
    let of_program = std::fs::read_to_string(shim.join("reached")).unwrap();
    let mut all = reached.tools.lock().unwrap().clone();
    for tool in of_program.lines() {
        assert!(all.insert(tool.to_owned()), "{tool} reached a server twice");
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_passes_the_proxy_without_a_record_however_often_it_is_killed() {
    let (kills, seed) = (variable("CUSTODY_KILLS", KILLS), variable("CUSTODY_SEED", 1));
    println!("CUSTODY_SEED={seed} CUSTODY_KILLS={kills}");
    let home = Home::new("serve-kill", "segment.age_seconds = 1\n");
    let ledger = home.start();
    let reached = Arc::new(Reached::default());
    let of_server = Arc::clone(&reached);
    let server = http::serve(move |asked| std::future::ready(of_server.answer(&asked))).await;
    let port = free_port();
    let token = Shim::with_member(&home, "proxied", &"a1".repeat(16));
    let shim = Shim::with(
        &home,
        "proxied",
        &format!(
            "[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.strict]\nurl = \"http://{server}/mcp\"\n\
             [servers.relaxed]\nurl = \"http://{server}/mcp\"\nmode = \"relaxed\"\n\
             [servers.program]\ncommand = [\"sh\", \"-c\", {}]",
            toml::Value::String(PROGRAM.into())
        ),
    );
    let (up, serving) = watch::channel(0);
    let proxy = Proxy { at: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), token, serving };
    let mut process = start(&shim);
    let callers: Vec<_> = SERVERS
        .iter()
        .flat_map(|(server, _)| (0..CALLERS).map(|caller| proxy.clone().call_on(server, caller, kills)))
        .map(tokio::spawn)
        .collect();
    let (mut dice, mut count, mut starting) = (Dice::new(seed), reached.count.subscribe(), Duration::ZERO);
    for run in 0..kills {
        let held: Vec<_> = SERVERS.map(|(server, _)| tokio::spawn(proxy.clone().hold(server, run))).into();
        let until = *count.borrow_and_update() + dice.within(20..200);
        let waited = tokio::time::timeout(2 * WAIT, count.wait_for(|count| *count >= until)).await;
        assert!(waited.is_ok_and(|waited| waited.is_ok()), "no calls: {}", process.log().join("\n"));
        process.kill();
        println!("kill {run} after {until} calls");
        let since = Instant::now();
        process = start(&shim);
        starting += since.elapsed();
        for held in held {
            held.await.unwrap();
        }
        up.send_replace(run + 1);
    }
    println!("a start after a kill took {:?}", starting / u32::try_from(kills.max(1)).unwrap());
    up.send_replace(kills + 1);
    for caller in callers {
        caller.await.unwrap();
    }
    end(&process);
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let recorded = Recorded::read(&records(&home, "proxied"));
    recorded.check_calls();
    let all = all_reached(&reached, &shim.dir);
    let mut unknown = BTreeMap::new();
    for tool in &all {
        let outcome = recorded.outcome(tool);
        assert!(["ok", "unknown"].contains(&outcome), "{tool} ended as {outcome}");
        let server = tool.split('-').nth(1).unwrap();
        *unknown.entry(server).or_insert(0) += u64::from(outcome == "unknown");
        assert!(outcome == "unknown" || !tool.starts_with(HELD), "{tool} was going on when the shim was killed");
    }
    println!("{} calls reached the servers, of {} on record; unknown: {unknown:?}", all.len(), recorded.by_tool.len());
    assert!(unknown.len() == SERVERS.len() && unknown.values().all(|count| *count > 0), "{unknown:?}");
    drop(ledger);
}
