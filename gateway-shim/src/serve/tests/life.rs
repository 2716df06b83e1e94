//! What a server over stdio answers without a session, and how its processes end by themselves.

use super::*;
use crate::access::tests::put_in_force;

/// A server of both eras in a few lines of shell: it says in each answer which process it is, and answers `first` only when
/// it is asked `second`, so that two requests wait at a time.
const BOTH: &str = r#"
first=
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\("*[^,"]*"*\),.*/\1/p')
  case "$line" in
    *'"server/discover"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"]}}\n' "$id";;
    *'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25"}}\n' "$id";;
    *'"first"'*) first=$id; token=$(printf '%s' "$line" | sed -n 's/.*"progressToken":\([^,}]*\).*/\1/p')
                 printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s}}\n' "$token";;
    *'"second"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"of":"second","pid":"%s"}}\n' "$id" $$
                  printf '{"jsonrpc":"2.0","id":%s,"result":{"of":"first","pid":"%s"}}\n' "$first" $$;;
    *'"subscriptions/listen"'*) printf '{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%s}}}\n' "$id"
                 printf '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%s}}\n' "$id";;
    *'"nowhere"'*) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\n' "$id";;
    *'"crash"'*) exit 7;;
    *'"asks"'*) printf '{"jsonrpc":"2.0","id":5,"method":"sampling/createMessage"}\n'
                while IFS= read -r told; do case "$told" in *'"id":5,'*) break;; esac; done
                printf '{"jsonrpc":"2.0","id":%s,"result":{"told":%s}}\n' "$id" "$told";;
  esac
done
"#;

async fn bench_of(script: &str, more: &str) -> Bench {
    let script = toml::Value::String(script.into());
    Bench::new(&format!("command = [\"sh\", \"-c\", {script}]\n{more}")).await
}

/// A request that says its version itself.
fn ask(id: &Value, method: &str, name: &str) -> String {
    let meta = json!({"io.modelcontextprotocol/protocolVersion":"2026-07-28",
        "io.modelcontextprotocol/clientCapabilities":{},"progressToken":id});
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"{method}\",\"params\":{{\"name\":\"{name}\",\"_meta\":{meta}}}}}"
    )
}

/// The headers that repeat it.
fn said<'a>(method: &'a str, name: &'a str) -> Vec<(&'static str, &'a str)> {
    let mut said = vec![(PROTOCOL, "2026-07-28"), ("mcp-method", method)];
    if method == "tools/call" {
        said.push(("mcp-name", name));
    }
    said
}

impl Bench {
    async fn ask(&self, id: &Value, method: &str, name: &str) -> (StatusCode, HeaderMap, Bytes) {
        within(self.post(&said(method, name), &ask(id, method, name))).await
    }
}

fn events(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(body);
    text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
}

fn lives(records: &[Kind]) -> Vec<(wire::ServerState, Option<u32>, Option<u32>)> {
    records
        .iter()
        .filter_map(|kind| match kind {
            Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::ServerLife(life)), .. }) => {
                Some((life.state(), life.exit_code, life.signal))
            }
            _ => None,
        })
        .collect()
}

/// Two clients of one member count from the same number, and each gets its own answer, progress and token back.
#[tokio::test]
async fn what_is_asked_without_a_session_shares_a_process_and_is_not_mixed_up() {
    let bench = bench_of(BOTH, "").await;
    let uri = format!("http://{}/mcp/test", bench.address);
    let mut request = hyper::Request::post(uri).header("authorization", &bench.token);
    for (name, value) in said("tools/call", "first") {
        request = request.header(name, value);
    }
    let request = request.body(Full::from(ask(&json!("same"), "tools/call", "first"))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let (parts, mut first) = within(client.request(request)).await.unwrap().into_parts();
    let progress = within(first.frame()).await.unwrap().unwrap().into_data().unwrap();
    // The first waits: it has said how far it is.
    let (_, headers, second) = bench.ask(&json!("same"), "tools/call", "second").await;
    let first = [progress, within(first.collect()).await.unwrap().to_bytes()].concat();
    assert_eq!(text(&parts.headers, "content-type"), Some("text/event-stream"));
    assert!(!headers.contains_key(SESSION));
    let second: Value = serde_json::from_slice(&second).unwrap();
    let first = events(&first);
    assert_eq!((&second["id"], &second["result"]["of"]), (&json!("same"), &json!("second")));
    assert_eq!((&first[1]["id"], &first[1]["result"]["of"]), (&json!("same"), &json!("first")));
    assert_eq!(first[0]["params"]["progressToken"], json!("same"));
    assert_eq!(first[1]["result"]["pid"], second["result"]["pid"], "one process");
    let (status, _, _) = bench.ask(&json!(1), "nowhere", "x").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (_, _, listened) = bench.ask(&json!("l"), "subscriptions/listen", "x").await;
    let listened = events(&listened);
    assert_eq!(listened[0]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], json!("l"));
    assert_eq!(listened.len(), 1, "the server ended it, and the stream ended");
    let (_, _, asked) = bench.ask(&json!(2), "tools/call", "asks").await;
    let asked: Value = serde_json::from_slice(&asked).unwrap();
    assert_eq!(
        asked["result"]["told"]["error"]["code"],
        json!(refusal::CODE_DENIED),
        "no server asks without a session"
    );
    let (status, _, _) = bench.ask(&json!(3), "tools/call", "crash").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let (_, _, body) = bench.ask(&json!(4), "tools/call", "second").await;
    assert!(!body.is_empty(), "another process");
    let lives = lives(&bench.records().await);
    use wire::ServerState::{Crashed, Started, Stopped};
    assert_eq!(lives[..3], [(Started, None, None), (Crashed, Some(7), None), (Started, None, None)]);
    assert_eq!((lives.len(), lives[3].0), (4, Stopped));
}

/// Two members never speak with one process.
#[tokio::test]
async fn each_member_has_a_process_of_its_own() {
    const BOB: &str = "b0b00000000000000000000000000002";
    let (policy, tokens) = policy(&[ALICE, BOB], ALL);
    let script = toml::Value::String(BOTH.into());
    let waits = Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT };
    let access = Access::of(&policy, None).unwrap();
    let config = format!("command = [\"sh\", \"-c\", {script}]\n");
    let bench = Bench::with_access(&config, waits, access, tokens[0].clone()).await;
    let mut pids = Vec::new();
    for token in [&tokens[0], &tokens[1], &tokens[0]] {
        let headers = [said("tools/call", "second"), vec![("authorization", token.as_str())]].concat();
        let (_, _, body) = within(bench.post(&headers, &ask(&json!(1), "tools/call", "second"))).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        pids.push(body["result"]["pid"].clone());
    }
    assert!(pids[0].is_string() && pids[0] == pids[2] && pids[0] != pids[1], "{pids:?}");
    let owners: std::collections::BTreeSet<_> =
        bench.front.processes().list()[0].processes.iter().map(|process| process.owner.map(|id| id.0)).collect();
    assert_eq!(owners.len(), 2, "and the list says whose each is");
}

/// What is asked without a session has none that could be cut: its process would work on for somebody who may do nothing.
#[tokio::test]
async fn the_process_of_a_member_who_may_ask_nothing_any_more_ends_at_once() {
    const BOB: &str = "b0b00000000000000000000000000002";
    const CAROL: &str = "ca701000000000000000000000000003";
    let (policy, tokens) = policy(&[ALICE, BOB, CAROL], ALL);
    // Alice has two tokens, and Carol none.
    let policy = policy.replace(&format!("member = \"{CAROL}\""), &format!("member = \"{ALICE}\""));
    let script = toml::Value::String(BOTH.into());
    let waits = Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT };
    let access = Access::of(&policy, None).unwrap();
    let config = format!("command = [\"sh\", \"-c\", {script}]\n");
    let bench = Bench::with_access(&config, waits, access, tokens[0].clone()).await;
    let mut pids = Vec::new();
    let [alice, bob, other] = [&tokens[0], &tokens[1], &tokens[2]];
    let pid = async |token: &str| {
        let headers = [said("tools/call", "second"), vec![("authorization", token)]].concat();
        let (_, _, body) = within(bench.post(&headers, &ask(&json!(1), "tools/call", "second"))).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        body["result"]["pid"].clone()
    };
    for token in [alice, bob, other, alice] {
        pids.push(pid(token).await);
    }
    assert!(pids[0] == pids[2] && pids[0] != pids[1], "{pids:?}");
    let listed = || {
        let servers = bench.front.processes().list();
        servers[0].processes.iter().filter_map(|process| process.owner).map(|id| id.to_string()).collect::<Vec<_>>()
    };
    // The token that was used last is revoked. The other one is good, and what it asked goes on.
    let first = policy.find("[[tokens]]\n").unwrap() + "[[tokens]]\n".len();
    let without = format!("{}revoked = true\n{}", &policy[..first], &policy[first..]);
    put_in_force(&bench.access, &without);
    bench.front.proxies["test"].cut_sessions();
    assert_eq!(pid(other).await, pids[0], "the process is still theirs");
    // Now she may ask nothing, with whichever; Bob may.
    put_in_force(
        &bench.access,
        &without.replace(&format!("[members.{ALICE}]"), &format!("[members.{ALICE}]\nrevoked = true")),
    );
    within(async {
        while listed() != [BOB] {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(pid(bob).await, pids[1]);
    let lives = lives(&bench.records().await);
    use wire::ServerState::{Started, Stopped};
    assert_eq!(lives.iter().map(|life| life.0).collect::<Vec<_>>(), [Started, Started, Stopped, Stopped]);
}

/// Clients of both eras take an error without a body of that revision for a server of sessions alone.
#[tokio::test]
async fn a_server_that_knows_sessions_alone_is_asked_once_and_then_no_more() {
    let declines = r#"
while IFS= read -r line; do
  case "$line" in
    *'"server/discover"'*) printf '{"jsonrpc":"2.0","id":"custody/discover","error":{"code":-32601,"message":"no"}}\n';;
    *) printf '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-11-25"}}\n';;
  esac
done
"#;
    let bench = bench_of(declines, "").await;
    for _ in 0..3 {
        let (status, _, body) = bench.ask(&json!(1), "server/discover", "x").await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, &body["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(CODE_NO_SESSION)));
    }
    begin(&bench).await;
    let lives = lives(&bench.records().await);
    let states: Vec<_> = lives.iter().map(|(state, ..)| *state).collect();
    use wire::ServerState::{Started, Stopped};
    assert_eq!(states, [Started, Stopped, Started, Stopped]);
}

#[tokio::test]
async fn a_process_that_nobody_asks_ends_and_its_session_with_it() {
    let bench = bench_of(BOTH, "idle_s_max = 1\n").await;
    let session = begin(&bench).await;
    within(async {
        while !bench.front.processes().list()[0].processes.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (status, ..) = bench.post(&[(SESSION, &session)], r#"{"jsonrpc":"2.0","id":1,"method":"nowhere"}"#).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let lives = lives(&bench.records().await);
    use wire::ServerState::{Started, Stopped};
    assert_eq!(lives.iter().map(|(state, ..)| *state).collect::<Vec<_>>(), [Started, Stopped]);
}

#[tokio::test]
async fn a_process_that_does_not_answer_its_first_request_is_ended() {
    let bench = bench_of("while read -r line; do :; done", "ready_s_max = 1\nstop_s_max = 1\n").await;
    let (status, _, _) = bench.post(&[], HELLO).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    // It failed, so nobody starts another at once.
    assert_eq!(bench.post(&[], HELLO).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let lives = lives(&bench.records().await);
    assert_eq!((lives.len(), lives[1].0), (2, wire::ServerState::Unreachable));
}

/// A member who asks first what a server rightly does not answer keeps nobody from it, under whichever id.
#[tokio::test]
async fn what_a_client_asks_in_vain_is_no_failure_of_its_server() {
    let script = r#"
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\("*[^,"]*"*\),.*/\1/p')
  case "$line" in
    *'"progressToken":{}'*) ;;
    *) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25"}}\n' "$id";;
  esac
done
"#;
    let bench = bench_of(script, "ready_s_max = 1\nstop_s_max = 1\nfailures_max = 1\n").await;
    let odd = HELLO.replace(r#""params":{"#, r#""params":{"_meta":{"progressToken":{}},"#);
    assert_ne!(odd, HELLO);
    assert_eq!(bench.post(&[], &odd).await.0, StatusCode::BAD_GATEWAY);
    begin(&bench).await;
    let states: Vec<_> = lives(&bench.records().await).into_iter().map(|life| life.0).collect();
    use wire::ServerState::{Started, Stopped};
    assert_eq!(states[..3], [Started, Stopped, Started]);
}

/// Whoever asked is gone before the process has said what it is: it is listed, can be stopped, and its end is on record.
#[tokio::test]
async fn a_process_that_is_asked_for_a_client_which_left_is_seen_to_its_end() {
    let bench = bench_of("while read -r line; do :; done", "ready_s_max = 600\nstop_s_max = 1\n").await;
    let listed = || bench.front.processes().list()[0].processes.len();
    let begun = async {
        while listed() == 0 {
            tokio::task::yield_now().await;
        }
    };
    let id = json!(1);
    tokio::select! {
        answer = bench.ask(&id, "tools/call", "x") => panic!("it says nothing, and was answered: {answer:?}"),
        () = within(begun) => {}
    }
    // Its connection is closed by now. Whether the shim has seen that or not:
    within(bench.front.processes().stop_all()).await;
    assert_eq!(listed(), 0);
    use wire::ServerState::{Started, Stopped};
    let states: Vec<_> = lives(&bench.records().await).into_iter().map(|life| life.0).collect();
    assert_eq!(states, [Started, Stopped]);
}

/// A client leaves at any moment of a start.
#[tokio::test]
async fn no_process_is_left_of_a_session_whose_client_left_while_it_began() {
    let bench =
        bench_of("while read -r line; do :; done", "ready_s_max = 600\nstop_s_max = 1\nmember_sessions_max = 64\n")
            .await;
    for turns in (0..600).step_by(20) {
        let some_turns = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = some_turns => {}
            answer = bench.post(&[], HELLO) => panic!("it says nothing, and was answered: {answer:?}"),
        }
    }
    within(bench.front.processes().stop_all()).await;
    let lives = lives(&bench.records().await);
    use wire::ServerState::{Started, Stopped};
    let count = |state| lives.iter().filter(|life| life.0 == state).count();
    assert_eq!(count(Started), count(Stopped), "{lives:?}");
    assert_eq!(count(Started) + count(Stopped), lives.len(), "{lives:?}");
}
