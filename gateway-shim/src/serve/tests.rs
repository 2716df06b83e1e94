//! The proxy between a real HTTP client and tiny MCP servers: bytes pass as they are, and every request is on record.

use std::process::Command;

use axum::routing::any;
use custody::{
    id::hex,
    record,
    wire::{self, Outcome, Phase, gateway_event::Event, record::Kind},
};
use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http1;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    refusal::{CODE_NOT_RECORDED, CODE_TOO_LONG, json},
    *,
};
use crate::{
    access::OneTimeToken,
    testing::{TempDir, server, within},
};

mod all;
mod bounds;
mod hears;
mod life;
mod listed;
mod members;
mod modern;
mod passing;
mod receipts;
mod refused;
mod resumed;
mod tls;
mod withdrawn;

const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"tester","version":"1.0"}}}"#;

/// Everything for everybody.
const ALL: &str = "[[rules]]\nid = \"all\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\nmethods = [\"*\"]\n";

/// Members, each with a token, and these rules: the policy's text, and the headers of the members.
fn policy(members: &[&str], rules: &str) -> (String, Vec<String>) {
    let agent = "a9".repeat(16);
    let mut text = format!("version = 1\n[agents.{agent}]\n");
    let time = |day: i64| {
        let us = i64::try_from(clock::now_us()).unwrap() + day * 86_400_000_000;
        chrono::DateTime::from_timestamp_micros(us).unwrap().format("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let (issued, expires) = (time(-1), time(1));
    let (mut tokens, mut headers) = (String::new(), Vec::new());
    for member in members {
        let token = OneTimeToken::random();
        text += &format!("[members.{member}]\n");
        tokens += &format!(
            "[[tokens]]\nid = \"{}\"\nsha256 = \"{}\"\nmember = \"{member}\"\nagent = \"{agent}\"\nissued_at = \
             {issued}\nexpires_at = {expires}\n",
            hex(&token.id()),
            hex(&token.sha256())
        );
        headers.push(format!("Bearer {}", token.reveal()));
    }
    (format!("{text}{rules}\n{tokens}"), headers)
}

/// The one member of most tests.
const ALICE: &str = "a11ce000000000000000000000000001";

struct Bench {
    /// The header of the one member.
    token: String,
    access: Access,
    front: Arc<Front>,
    ledger: server::Server,
    gateway: Gateway,
    address: std::net::SocketAddr,
    path: &'static str,
    stop: Option<oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

fn config(text: &str) -> (ServeConfig, BTreeMap<String, ServerConfig>) {
    let server = toml::from_str(text).unwrap();
    (toml::from_str("listen = \"127.0.0.1:0\"\n").unwrap(), [("test".to_owned(), server)].into())
}

impl Bench {
    async fn new(text: &str) -> Self {
        Self::with_waits(text, Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT }).await
    }

    async fn with_waits(text: &str, waits: Waits) -> Self {
        let (policy, tokens) = policy(&[ALICE], ALL);
        Self::with_access(text, waits, Access::of(&policy, None).unwrap(), tokens[0].clone()).await
    }

    async fn with_access(text: &str, waits: Waits, access: Access, token: String) -> Self {
        Self::with_servers(config(text).1, waits, access, token, "/mcp/test").await
    }

    async fn with_servers(
        servers: BTreeMap<String, ServerConfig>,
        waits: Waits,
        access: Access,
        token: String,
        path: &'static str,
    ) -> Self {
        Self::with_serve("", servers, waits, access, token, path).await
    }

    /// With more in the section `[serve]`.
    async fn with_serve(
        more: &str,
        servers: BTreeMap<String, ServerConfig>,
        waits: Waits,
        access: Access,
        token: String,
        path: &'static str,
    ) -> Self {
        let (ledger, dir) = (server::Server::start().await, TempDir::new());
        let gateway = ledger.gateway(&dir).await;
        let mut serving: ServeConfig = toml::from_str(&format!("listen = \"127.0.0.1:0\"\n{more}")).unwrap();
        serving.dir = dir.path().join("state");
        let mut front = Front::new(gateway.clone(), access.clone(), serving, &servers).unwrap();
        Arc::get_mut(&mut front).unwrap().waits = waits;
        let of_bench = Arc::clone(&front);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            stopped.await.ok();
        };
        let serving =
            tokio::spawn(async move { serve(front, listener, stopped, Duration::from_secs(2)).await.unwrap() });
        Self { token, access, front: of_bench, ledger, gateway, address, path, stop: Some(stop), serving, _dir: dir }
    }

    /// Status, headers and body of an answer.
    async fn send(&self, method: Method, headers: &[(&str, &str)], body: &str) -> (StatusCode, HeaderMap, Bytes) {
        let mut request = hyper::Request::builder().method(method).uri(format!("http://{}{}", self.address, self.path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", &self.token);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn post(&self, headers: &[(&str, &str)], body: &str) -> (StatusCode, HeaderMap, Bytes) {
        let accept = [("accept", "application/json, text/event-stream"), ("content-type", "application/json")];
        self.send(Method::POST, &[&accept, headers].concat(), body).await
    }

    /// The stream of a session.
    async fn open(&self, session: &str) -> hyper::body::Incoming {
        let uri = format!("http://{}/mcp/test", self.address);
        let request = hyper::Request::get(uri).header(SESSION, session).header("authorization", &self.token);
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        client.request(request.body(Full::default()).unwrap()).await.unwrap().into_body()
    }

    /// All records that were made, after a drain, but for those of what the shim asks itself (`listed`).
    async fn records(self) -> Vec<Kind> {
        let is_own = |kind: &Kind| matches!(kind, Kind::Call(call) if call.rule == "shim/own");
        self.all_records().await.into_iter().filter(|kind| !is_own(kind)).collect()
    }

    async fn all_records(mut self) -> Vec<Kind> {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.await.unwrap();
        assert_eq!(self.gateway.drain().await.unwrap().unshipped, 0);
        let records = self.ledger.shared.ledger.lock().unwrap().records();
        records.iter().filter_map(|bytes| record::decode(bytes).unwrap().kind).collect()
    }

    async fn calls(self) -> Vec<wire::Call> {
        let call = |kind| match kind {
            // On a slow machine a call may be in progress for so long that its intent is a record of its own.
            Kind::Call(call) if call.phase() != Phase::Intent => Some(call),
            _ => None,
        };
        self.records().await.into_iter().filter_map(call).collect()
    }
}

fn summary(call: &wire::Call) -> (String, String, Phase, Outcome) {
    let method = match &call.request {
        Some(wire::call::Request::Method(method)) => method.clone(),
        Some(wire::call::Request::MethodDigest(_)) => "digest".into(),
        None => String::new(),
    };
    let tool = match &call.target {
        Some(wire::call::Target::Tool(tool)) => tool.clone(),
        Some(wire::call::Target::ToolDigest(_)) => "digest".into(),
        None => String::new(),
    };
    (method, tool, call.phase(), call.outcome())
}

fn tool_call(id: u32, tool: &str) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":tool,"arguments":{"secret":"canary-argument"}}})
        .to_string()
}

/// A request with two methods, for whoever reads the second key as the first; and the answer.
fn twofold(id: &Value) -> String {
    let asked = r#"{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","Method":"x"}"#;
    format!("data: {asked}\n\ndata: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n\n")
}

fn sse(text: String) -> Answer {
    let mut answer = Response::new(Body::from(text));
    answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
    answer
}

/// A server whose answers are not what a JSON library would write, so that only the original bytes pass for them.
async fn odd_server() -> std::net::SocketAddr {
    async fn answer(request: HttpRequest) -> Answer {
        let (parts, body) = request.into_parts();
        assert!(!parts.headers.contains_key(header::AUTHORIZATION), "the caller's credentials came through");
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        if parts.method == Method::DELETE {
            return Response::new(Body::from("bye"));
        }
        let Ok(value) = serde_json::from_slice::<Value>(&body) else {
            return sse(format!(": {} {:?}\n\n", parts.method, parts.headers.get("last-event-id")));
        };
        let id = &value["id"];
        let mut answer = match (value["method"].as_str(), value["params"]["name"].as_str()) {
            (Some("initialize"), _) => {
                let text =
                    format!("{{\"jsonrpc\":\"2.0\", \"id\":{id}, \"result\":{{\"protocolVersion\":\"2025-11-25\"}}}}");
                let mut answer = json(StatusCode::OK, text.into());
                answer.headers_mut().insert(SESSION, "session-1".parse().unwrap());
                answer
            }
            (_, Some("echo")) => {
                let text =
                    format!("{{\"result\" : {{ \"n\":1.0e+2,\"text\":{body:?} }},\"id\":{id},\"jsonrpc\":\"2.0\"}}");
                json(StatusCode::OK, text.replace("\\\"", "'").replace("b\"", "\"").into())
            }
            (_, Some("fails")) => json(
                StatusCode::OK,
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"isError\":true}}}}").into(),
            ),
            (_, Some("stream")) => sse(format!(
                "id: 1\ndata:\n\nevent: message\ndata: {{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"sampling/createMessage\"}}\n\n\
                 data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}}\r\n\r\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\ndata: \"result\":{{}}}}\n\n"
            )),
            (_, Some("twofold")) => sse(twofold(id)),
            (_, Some("long")) => sse(format!(
                "data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/before\"}}\n\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"sampling/createMessage\",\"params\":{{\"x\":\"{}\"}}}}\n\n\
                 data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n\n",
                "x".repeat(16 << 20)
            )),
            (_, Some("teapot")) => {
                let mut answer = Response::new(Body::from("no"));
                *answer.status_mut() = StatusCode::IM_A_TEAPOT;
                answer
            }
            (Some("unknown"), _) => json(
                StatusCode::NOT_FOUND,
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32601,\"message\":\"m\"}}}}").into(),
            ),
            _ => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::ACCEPTED;
                answer
            }
        };
        answer.headers_mut().insert("mcp-odd", "kept".parse().unwrap());
        answer
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

async fn odd_bench() -> Bench {
    let address = odd_server().await;
    Bench::new(&format!("url = \"http://{address}/mcp\"\n")).await
}

#[tokio::test]
async fn http_bytes_pass_as_they_are_and_every_request_is_on_record() {
    let bench = odd_bench().await;
    let (status, headers, _) = bench.post(&[], HELLO).await;
    assert_eq!((status, text(&headers, SESSION)), (StatusCode::OK, Some("session-1")));
    let session = [(SESSION, "session-1"), (PROTOCOL, "2025-11-25")];
    let (_, headers, body) = bench.post(&session, &tool_call(1, "echo")).await;
    assert!(body.starts_with(b"{\"result\" : { \"n\":1.0e+2,"), "{body:?}");
    assert_eq!(text(&headers, "mcp-odd"), Some("kept"));
    bench.post(&session, &tool_call(2, "fails")).await;
    let (_, headers, body) = bench.post(&session, &tool_call(3, "stream")).await;
    assert!(text(&headers, "content-type").unwrap().starts_with("text/event-stream"));
    assert!(body.starts_with(b"id: 1\ndata:\n\nevent: message\n"), "{body:?}");
    let (status, _, _) = bench.post(&session, r#"{"jsonrpc":"2.0","id":9,"error":{"code":-1,"message":"m"}}"#).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    assert_eq!(bench.post(&session, &tool_call(4, "teapot")).await.0, StatusCode::IM_A_TEAPOT);
    let unknown = r#"{"jsonrpc":"2.0","id":"five","method":"unknown"}"#;
    assert_eq!(bench.post(&session, unknown).await.0, StatusCode::NOT_FOUND);
    bench.post(&session, r#"{"jsonrpc":"2.0","id":6,"method":"ping"}"#).await;
    let (_, _, body) = bench.send(Method::GET, &[(SESSION, "session-1"), ("last-event-id", "7")], "").await;
    assert_eq!(body, ": GET Some(\"7\")\n\n");
    // A farewell that is no JSON is read by nobody.
    let (status, _, body) = bench.send(Method::DELETE, &session, "").await;
    assert_eq!((status, body.len()), (StatusCode::OK, 0));
    let (digest, token) = (bench.access.digest(), bench.token.rsplit_once('_').unwrap().1.to_owned());
    let records = bench.records().await;
    let counts = records.iter().find_map(|kind| match kind {
        Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::Counts(counts)), .. }) => Some(counts),
        _ => None,
    });
    assert_eq!((counts.unwrap().pings, counts.unwrap().progress), (1, 1));
    let calls: Vec<wire::Call> = records
        .iter()
        .filter_map(|kind| if let Kind::Call(call) = kind { Some((**Box::new(call)).clone()) } else { None })
        .collect();
    let mut seen: Vec<_> = calls.iter().map(summary).collect();
    seen.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    let of = |method: &str, tool: &str, outcome| (method.into(), tool.into(), Phase::Complete, outcome);
    assert_eq!(
        seen,
        vec![
            of("DELETE", "", Outcome::Ok),
            of("GET", "", Outcome::Ok),
            of("initialize", "", Outcome::Ok),
            of("sampling/createMessage", "", Outcome::RpcError),
            of("tools/call", "echo", Outcome::Ok),
            of("tools/call", "fails", Outcome::ToolError),
            of("tools/call", "stream", Outcome::Ok),
            of("tools/call", "teapot", Outcome::HttpError),
            of("unknown", "", Outcome::RpcError),
        ]
    );
    for call in &calls {
        assert_eq!(call.client, Some(wire::call::Client::ClientName("tester".into())), "{call:?}");
        let (protocol, server, rule) = (call.protocol.as_str(), call.server.as_str(), call.rule.as_str());
        assert_eq!((protocol, server, rule), ("2025-11-25", "test", "all"));
        assert_eq!(call.member.as_deref().map(hex).as_deref(), Some(ALICE));
        assert!(call.token.is_some() && call.agent.is_some());
        assert_eq!(call.access_policy_digest.as_deref(), Some(&digest[..]));
        assert_eq!(call.from_server, summary(call).0.starts_with("sampling"));
    }
    let all = format!("{records:?}");
    assert!(
        !all.contains("canary") && !all.contains(&token) && !all.contains("127.0.0.1"),
        "an argument, a token or an address is on record"
    );
}

/// Four times as many as there are places: nothing, half a head, or a head whose body never comes. They lose their places,
/// another member is served, and what was never asked is one record.
#[tokio::test]
async fn whoever_says_half_keeps_nobody_out_and_fills_no_record() {
    use std::io::Write as _;
    let limit = Duration::from_millis(100);
    let address = odd_server().await;
    let text = format!("url = \"http://{address}/mcp\"\n");
    let (of_access, tokens) = policy(&[ALICE, members::BOB], ALL);
    let access = Access::of(&of_access, None).unwrap();
    let bench = Bench::with_access(&text, Waits { head: limit, body: limit }, access, tokens[0].clone()).await;
    let (port, token) = (bench.address, bench.token.clone());
    let halves = tokio::task::spawn_blocking(move || {
        let connect = |number: usize| {
            let mut stream = std::net::TcpStream::connect(port).unwrap();
            let whole_head = format!(
                "POST /mcp/test HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\ncontent-length: 100\r\n\r\n{{"
            );
            stream.write_all(["", "POST /mcp/test HTTP/1.1\r\nhost:", &whole_head][number % 3].as_bytes()).unwrap();
            stream
        };
        (0..4 * listen::CONNECTIONS_MAX).map(connect).collect::<Vec<_>>()
    });
    let halves = halves.await.unwrap();
    let (status, _, _) = within(bench.post(&[("authorization", &tokens[1])], &tool_call(1, "echo"))).await;
    assert_eq!(status, StatusCode::OK);
    drop(halves);
    let outcomes: Vec<_> = bench.calls().await.iter().map(|call| (call.decision(), call.outcome())).collect();
    let one = (wire::Decision::Denied, Outcome::Malformed);
    assert_eq!(outcomes, vec![(wire::Decision::Allowed, Outcome::Ok), one]);
}

/// An event that is too long to be read might be a request of the server: neither it nor what is behind it goes on, the
/// client is told, and the call ends with that.
#[tokio::test]
async fn an_event_that_cannot_be_read_ends_its_stream_and_is_an_outcome() {
    for session in [&[(SESSION, "session-1")][..], &[]] {
        let bench = odd_bench().await;
        bench.post(&[], HELLO).await;
        let (_, _, body) = bench.post(session, &tool_call(7, "long")).await;
        let body = String::from_utf8_lossy(&body);
        assert!(body.len() < 1_000 && body.contains("before") && !body.contains("sampling"), "{}", body.len());
        let told: Value = serde_json::from_str(body.trim_end().rsplit_once("data: ").unwrap().1).unwrap();
        assert_eq!((&told["id"], &told["error"]["code"]), (&json!(7), &json!(CODE_TOO_LONG)));
        let calls = bench.calls().await;
        assert_eq!((calls.len(), summary(&calls[1]).3), (2, Outcome::OverLimit));
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_outcome() {
    let bench = Bench::new("url = \"http://127.0.0.1:1/mcp\"\n").await;
    let (status, _, body) = bench.post(&[], &tool_call(1, "echo")).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["id"], 1);
    let calls = bench.calls().await;
    assert_eq!(summary(&calls[0]).3, Outcome::TransportError);
}

#[tokio::test]
async fn without_a_record_there_is_no_call() {
    let bench = odd_bench().await;
    bench.gateway.drain().await.unwrap();
    let (status, _, body) = bench.post(&[], &tool_call(1, "echo")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["code"], CODE_NOT_RECORDED);
}

/// A server's request that cannot be recorded reaches no client, and the server is told; what stands around it passes.
#[tokio::test]
async fn without_a_record_the_server_asks_nobody() {
    let (told, mut telling) = tokio::sync::mpsc::channel::<Bytes>(4);
    let (go, going) = tokio::sync::watch::channel(());
    let answer = move |request: HttpRequest| {
        let (told, mut going) = (told.clone(), going.clone());
        async move {
            let (parts, body) = request.into_parts();
            if parts.method == Method::POST && !parts.headers.contains_key(SESSION) {
                let mut answer = json(StatusCode::OK, r#"{"jsonrpc":"2.0","id":0,"result":{}}"#.into());
                answer.headers_mut().insert(SESSION, "s".parse().unwrap());
                return answer;
            }
            if parts.method == Method::POST {
                told.send(axum::body::to_bytes(body, 1 << 20).await.unwrap()).await.unwrap();
                return Response::new(Body::empty());
            }
            // Cut where a chunk may be cut: nothing of the request goes on before all of it was read.
            let chunks = [
                "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/before\"}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":\"q\",",
                "\"method\":\"sampling/createMessage\"}\n\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/after\"}\n\n",
            ];
            let begins = futures::stream::once(async move {
                going.changed().await.unwrap();
                Ok::<_, std::convert::Infallible>("")
            });
            let stream = begins.chain(tokio_stream::iter(chunks.map(Ok)));
            let mut answer = Response::new(Body::from_stream(stream));
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            answer
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    let bench = Bench::new(&format!("url = \"http://{address}/mcp\"\n")).await;
    bench.post(&[], HELLO).await;
    // The stream is open when nothing can be recorded any more.
    let stream = bench.open("s").await;
    bench.gateway.drain().await.unwrap();
    go.send(()).unwrap();
    let body = stream.collect().await.unwrap().to_bytes();
    let line = |method: &str| format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"{method}\"}}\n\n");
    assert_eq!(String::from_utf8_lossy(&body), line("notifications/before") + &line("notifications/after"));
    let told: Value = serde_json::from_slice(&telling.recv().await.unwrap()).unwrap();
    assert_eq!((&told["id"], &told["error"]["code"]), (&json!("q"), &json!(CODE_NOT_RECORDED)));
}

#[tokio::test]
async fn without_a_record_a_process_asks_nobody() {
    let bench = stdio_bench().await;
    let session = begin(&bench).await;
    let headers = [(SESSION, session.as_str())];
    let mut stream = bench.open(&session).await;
    bench.gateway.drain().await.unwrap();
    let note = r#"{"jsonrpc":"2.0","method":"notifications/ask"}"#;
    assert_eq!(bench.post(&headers, note).await.0, StatusCode::ACCEPTED);
    let first = stream.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("told-77"), "{first:?}");
}

/// A server over stdio in a few lines of shell: answers by tool name, with progress before one of them.
const SHELL_SERVER: &str = r#"
while IFS= read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
    *'"tools/list"'*) own=$(printf '%s' "$line" | sed -n 's/.*"id":"\([^"]*\)".*/\1/p')
                      printf '{"jsonrpc":"2.0","id":"%s","result":{"tools":[{"name":"echo"}]}}\n' "$own";;
    *'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25"}}\n' "$id";;
    *'"progress"'*) printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p"}}\n'
                   printf '{"jsonrpc":"2.0","id":%s,"result":{"odd" :  1.0}}\n' "$id";;
    *'"environment"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"text":"%s|%s"}}\n' "$id" "$GIVEN" "$HOME";;
    *'"crash"'*) exit 7;;
    *'"silent"'*) ;;
    *'"banner"'*) printf 'Welcome!\n\n'
                 printf '{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","Method":"x"}\n'
                 printf '{"jsonrpc":"2.0","id":%s,"result":{}}\n' "$id";;
    *'notifications/ask"'*) printf '{"jsonrpc":"2.0","id":77,"method":"sampling/createMessage"}\n';;
    *1003*) printf '{"jsonrpc":"2.0","method":"notifications/told-%s"}\n' "$id";;
    *'"echo"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{}}\n' "$id";;
  esac
done
"#;

async fn stdio_bench() -> Bench {
    assert!(Command::new("sh").arg("-c").arg("true").status().unwrap().success());
    let script = toml::Value::String(SHELL_SERVER.into());
    Bench::new(&format!("command = [\"sh\", \"-c\", {script}]\nsessions_max = 2\n[environment]\nGIVEN = \"given\"\n"))
        .await
}

async fn begin(bench: &Bench) -> String {
    let (status, headers, _) = bench.post(&[], HELLO).await;
    assert_eq!(status, StatusCode::OK);
    text(&headers, SESSION).unwrap().to_owned()
}

#[tokio::test]
async fn stdio_sessions_live_and_die() {
    let bench = stdio_bench().await;
    // A client of both eras asks this first, and then falls back to `initialize`.
    let discover = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#;
    assert_eq!(bench.post(&[], discover).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(bench.post(&[(SESSION, "none")], discover).await.0, StatusCode::NOT_FOUND);
    let session = begin(&bench).await;
    let headers = [(SESSION, session.as_str())];
    let (_, answer, body) = bench.post(&headers, &tool_call(1, "echo").replace(',', ",\n")).await;
    assert_eq!(text(&answer, "content-type"), Some("application/json"));
    assert_eq!(body, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}");
    let with_progress =
        r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"progress","_meta":{"progressToken":"p"}}}"#;
    let (_, answer, body) = bench.post(&headers, with_progress).await;
    assert_eq!(text(&answer, "content-type"), Some("text/event-stream"));
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains("notifications/progress") && body.contains("\"odd\" :  1.0"), "{body}");
    let (_, _, body) = bench.post(&headers, &tool_call(3, "environment")).await;
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["result"]["text"], "given|", "only what it is given");
    let (status, _, body) = bench.post(&headers, &tool_call(4, "crash")).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{body:?}");
    while bench.post(&headers, &tool_call(5, "echo")).await.0 != StatusCode::NOT_FOUND {}
    let session = begin(&bench).await;
    assert_eq!(bench.send(Method::DELETE, &[(SESSION, session.as_str())], "").await.0, StatusCode::OK);
    let records = bench.records().await;
    let lives: Vec<_> = records
        .iter()
        .filter_map(|kind| match kind {
            Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::ServerLife(life)), .. }) => Some(life.state()),
            _ => None,
        })
        .collect();
    use wire::ServerState::{Crashed, Started, Stopped};
    assert_eq!(lives, vec![Started, Crashed, Started, Stopped]);
    let outcome = |tool: &str| {
        records.iter().find_map(|kind| match kind {
            Kind::Call(call) if summary(call).1 == tool => Some(summary(call).3),
            _ => None,
        })
    };
    assert_eq!(outcome("echo"), Some(Outcome::Ok));
    // The shim has asked the process itself what it lists.
    let is_pinned = |kind: &Kind| matches!(kind, Kind::Call(call) if call.definition_digest.is_some());
    assert!(records.iter().any(is_pinned));
    assert_eq!(outcome("progress"), Some(Outcome::Ok));
    assert_eq!(outcome("crash"), Some(Outcome::TransportError));
}

#[tokio::test]
async fn stdio_sessions_have_a_limit() {
    let bench = stdio_bench().await;
    begin(&bench).await;
    let second = begin(&bench).await;
    assert_eq!(bench.post(&[], HELLO).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(bench.send(Method::DELETE, &[(SESSION, second.as_str())], "").await.0, StatusCode::OK);
    begin(&bench).await;
}
