//! What servers say by themselves, to a client of all of them: the GET stream of a session, and subscriptions without one.

use hyper::body::Incoming;

use super::{
    all::value,
    members::waits,
    modern::{body, headers},
    *,
};
use crate::access::tests::put_in_force;

/// A server of both eras that has a stream of its own: two events, the second of which asks; or, taken up again, where.
async fn telling_server(own: &'static str) -> std::net::SocketAddr {
    let answer = move |request: HttpRequest| async move {
        let (parts, body) = request.into_parts();
        if parts.method == Method::GET {
            return stream(match parts.headers.get(LAST_EVENT).map(|last| last.to_str().unwrap().to_owned()) {
                Some(last) => told("behind", &format!(r#""server":"{own}","last":"{last}""#)),
                None => format!(
                    "id: {own}-1\n{}id: {own}-2\ndata: {}\n\n",
                    told("tools/list_changed", &format!(r#""server":"{own}""#)),
                    r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#
                ),
            });
        }
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let result = match value["method"].as_str() {
            Some("initialize") => json!({"protocolVersion":"2025-11-25"}),
            Some("server/discover") => json!({"supportedVersions":["2026-07-28"]}),
            Some("tools/list") => json!({"tools":[{"name":"echo"}]}),
            Some("resources/list") => json!({"resources":[{"uri":format!("of://{own}/a"),"name":"a"}]}),
            Some("resources/templates/list") => json!({"resourceTemplates":[]}),
            Some("subscriptions/listen") => {
                let agreed = format!(r#""notifications":{}"#, value["params"]["notifications"]);
                let agreed = told("subscriptions/acknowledged", &agreed);
                return stream(agreed + &told("tools/list_changed", &format!(r#""server":"{own}""#)));
            }
            Some("tools/call") => json!({"server":own}),
            _ => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::ACCEPTED;
                return answer;
            }
        };
        let mut answer =
            json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string().into());
        if value["method"] == "initialize" {
            answer.headers_mut().insert(SESSION, format!("at-{own}").parse().unwrap());
        }
        answer
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

fn told(method: &str, params: &str) -> String {
    format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/{method}\",\"params\":{{{params}}}}}\n\n")
}

/// These events, and nothing more for as long as somebody hears.
fn stream(events: String) -> Answer {
    let stream = tokio_stream::once(Ok::<_, std::convert::Infallible>(events)).chain(futures::stream::pending());
    let mut answer = Response::new(Body::from_stream(stream));
    answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
    answer
}

/// Two servers, and the policy's text.
async fn bench() -> (Bench, String) {
    bench_with("").await
}

async fn bench_with(more: &str) -> (Bench, String) {
    let (text, tokens) = policy(&[ALICE], ALL);
    let mut servers = BTreeMap::new();
    for name in ["a", "b"] {
        let url = format!("url = \"http://{}/mcp\"\n", telling_server(name).await);
        servers.insert(name.to_owned(), toml::from_str(&url).unwrap());
    }
    let access = Access::of(&text, None).unwrap();
    (Bench::with_serve(more, servers, waits(), access, tokens[0].clone(), "/mcp").await, text)
}

/// Begins a session with all servers.
async fn begin(bench: &Bench) -> String {
    let (_, answer, _) = bench.post(&[], HELLO).await;
    text(&answer, SESSION).unwrap().to_owned()
}

/// A stream, and what came of it.
struct Heard {
    stream: Incoming,
    text: String,
}

impl Heard {
    async fn of(bench: &Bench, request: hyper::http::request::Builder, body: String) -> Self {
        let request = request.uri(format!("http://{}/mcp", bench.address)).header("authorization", &bench.token);
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = within(client.request(request.body(Full::from(body)).unwrap())).await.unwrap();
        assert!(text(answer.headers(), "content-type").unwrap().starts_with("text/event-stream"));
        Self { stream: answer.into_body(), text: String::new() }
    }

    async fn session(bench: &Bench, session: &str, last: Option<&str>) -> Self {
        let request = hyper::Request::get("/").header(SESSION, session).header(PROTOCOL, "2025-11-25");
        let request = match last {
            Some(last) => request.header(LAST_EVENT, last),
            None => request,
        };
        Self::of(bench, request, String::new()).await
    }

    /// Reads until all these words came.
    async fn until(&mut self, words: &[&str]) {
        let read = async {
            while !words.iter().all(|word| self.text.contains(word)) {
                let Some(frame) = self.stream.frame().await else { panic!("it ended: {}", self.text) };
                self.text += &String::from_utf8_lossy(&frame.unwrap().into_data().unwrap());
            }
        };
        within(read).await;
    }

    /// The number of the event in which these words stand.
    fn number(&self, words: &str) -> &str {
        let event = self.text.split("\n\n").find(|event| event.contains(words)).unwrap();
        event.lines().find_map(|line| line.strip_prefix("id: ")).unwrap()
    }
}

#[tokio::test]
async fn one_stream_has_what_every_server_says_and_goes_on_where_each_was() {
    let (bench, policy) = bench().await;
    let session = begin(&bench).await;
    let of_session = [(SESSION, session.as_str()), (PROTOCOL, "2025-11-25")];
    let mut heard = Heard::session(&bench, &session, None).await;
    // A server is heard from when it is first asked something.
    bench.post(&of_session, &tool_call(1, "a__echo")).await;
    heard.until(&[r#""server":"a""#, r#""id":"a__1""#]).await;
    assert!(!heard.text.contains(r#""b"#), "{}", heard.text);
    bench.post(&of_session, &tool_call(2, "b__echo")).await;
    heard.until(&[r#""server":"b""#, r#""id":"b__1""#]).await;
    // Its request is answered to it.
    let answer = r#"{"jsonrpc":"2.0","id":"b__1","result":{"roots":[]}}"#;
    assert_eq!(bench.post(&of_session, answer).await.0, StatusCode::ACCEPTED);
    assert_eq!(bench.post(&of_session, answer.replace("b__1", "c__1").as_str()).await.0, StatusCode::BAD_REQUEST);
    let places = [r#""id":"a__1""#, r#""id":"b__1""#, r#""server":"b""#].map(|words| heard.number(words).to_owned());
    assert!(places.iter().all(|place| place.starts_with("__")), "{places:?}");
    drop(heard);
    // Behind the last event; behind what a said, which was before b said anything; and in between.
    let behind = |server: &str, last: &str| format!(r#""server":"{server}","last":"{last}""#);
    for (place, words) in [
        (&places[1], [behind("a", "a-2"), behind("b", "b-2")]),
        (&places[0], [behind("a", "a-2"), told("tools/list_changed", r#""server":"b""#)]),
        (&places[2], [behind("a", "a-2"), behind("b", "b-1")]),
    ] {
        let mut heard = Heard::session(&bench, &session, Some(place)).await;
        heard.until(&words.each_ref().map(String::as_str)).await;
    }
    // Another token's session is not there, and a place at a server is in that server's stream.
    let mut of_call = Heard::session(&bench, &session, Some("b__x")).await;
    of_call.until(&[&behind("b", "x")]).await;
    assert_eq!(bench.send(Method::GET, &[(SESSION, "none")], "").await.0, StatusCode::NOT_FOUND);
    // Whoever may reach no server any more hears nothing more.
    let mut heard = Heard::session(&bench, &session, Some(&places[1])).await;
    heard.until(&[&behind("a", "a-2"), &behind("b", "b-2")]).await;
    put_in_force(&bench.access, &policy.replace(ALL, ""));
    within(heard.stream.collect()).await.unwrap();
    let calls = bench.calls().await;
    let of = |server: &str, method: &str| {
        calls.iter().filter(|call| (call.server.as_str(), summary(call).0.as_str()) == (server, method)).count()
    };
    assert!(of("a", "GET") >= 5 && of("b", "GET") >= 5 && of("", "GET") >= 5, "every stream is on record");
    let cut = calls.iter().filter(|call| call.server.is_empty() && call.outcome() == Outcome::Revoked);
    assert_eq!(cut.map(|call| summary(call).0).collect::<Vec<_>>(), ["GET"], "it was cut once");
    let roots: Vec<_> = calls.iter().filter(|call| summary(call).0 == "roots/list").map(wire::Call::outcome).collect();
    assert!(roots.contains(&Outcome::Ok), "{roots:?}");
}

/// What is answered at the one address is on record as it was answered, and when that is known.
#[tokio::test]
async fn what_is_answered_here_is_on_record_as_it_was_answered() {
    let (bench, _) = bench().await;
    let discover = r#"{"jsonrpc":"2.0","id":0,"method":"server/discover"}"#;
    assert_eq!(bench.post(&[], discover).await.0, StatusCode::BAD_REQUEST);
    let session = begin(&bench).await;
    let of_session = [(SESSION, session.as_str()), (PROTOCOL, "2025-11-25")];
    for (method, code) in [("tools/list", -32_602), ("subscriptions/listen", -32_601)] {
        let asked = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"cursor":"of nobody"}}}}"#);
        assert_eq!(value(&bench.post(&of_session, &asked).await.2)["error"]["code"], code, "{method}");
    }
    let heard = Heard::session(&bench, &session, None).await;
    assert_eq!(bench.send(Method::DELETE, &of_session, "").await.0, StatusCode::OK);
    within(heard.stream.collect()).await.unwrap();
    let mut request = hyper::Request::post("/");
    for (name, value) in headers("subscriptions/listen", "") {
        request = request.header(name, value);
    }
    let about = r#""notifications":{"toolsListChanged":true}"#;
    drop(Heard::of(&bench, request, body(7, "subscriptions/listen", about)).await);
    let calls = bench.calls().await;
    let here = calls.iter().filter(|call| call.server.is_empty());
    let mut said: Vec<_> = here.map(|call| (summary(call).0, call.decision(), call.outcome())).collect();
    said.sort_by(|a, b| (&a.0, a.2).cmp(&(&b.0, b.2)));
    let (allowed, denied) = (wire::Decision::Allowed, wire::Decision::Denied);
    let mut expected = [
        ("DELETE", allowed, Outcome::Ok),
        ("GET", allowed, Outcome::Ok),
        ("initialize", allowed, Outcome::Ok),
        ("server/discover", allowed, Outcome::RpcError),
        ("subscriptions/listen", denied, Outcome::Denied),
        ("subscriptions/listen", allowed, Outcome::Cancelled),
        ("tools/list", allowed, Outcome::RpcError),
    ]
    .map(|(method, decision, outcome)| (method.to_owned(), decision, outcome));
    expected.sort_by(|a, b| (&a.0, a.2).cmp(&(&b.0, b.2)));
    assert_eq!(said, expected);
}

/// Whoever hears again hears in one place, and no member's streams are on more connections than their share.
#[tokio::test]
async fn streams_of_all_servers_take_no_more_than_a_share_of_the_port() {
    let (bench, _) = bench_with("member_connections_max = 2\n").await;
    let [one, two, three] = [begin(&bench).await, begin(&bench).await, begin(&bench).await];
    let first = Heard::session(&bench, &one, None).await;
    let _again = Heard::session(&bench, &one, None).await;
    within(first.stream.collect()).await.unwrap();
    // Its place comes back when its end has gone out.
    let carried = || bench.send(Method::DELETE, &[(SESSION, "none"), (PROTOCOL, "2025-11-25")], "");
    while within(carried()).await.0 != StatusCode::NOT_FOUND {}
    let _other = Heard::session(&bench, &two, None).await;
    for method in [Method::GET, Method::DELETE] {
        let (status, _, told) = within(bench.send(method, &[(SESSION, &three), (PROTOCOL, "2025-11-25")], "")).await;
        assert_eq!((status, &value(&told)["error"]["code"]), (StatusCode::OK, &json!(1_006)));
    }
}

#[tokio::test]
async fn a_subscription_is_one_at_every_server_and_ends_with_its_client() {
    let (bench, _) = bench().await;
    let listen = |id, uris: &str| {
        let about = format!(r#""notifications":{{"toolsListChanged":true,"resourceSubscriptions":[{uris}]}}"#);
        body(id, "subscriptions/listen", &about)
    };
    let mut request = hyper::Request::post("/");
    for (name, value) in headers("subscriptions/listen", "") {
        request = request.header(name, value);
    }
    // Nobody has listed the resource here: the servers are asked who has it.
    let mut heard = Heard::of(&bench, request, listen(7, r#""of://b/a","of://nobody""#)).await;
    heard.until(&[r#""server":"a""#, r#""server":"b""#]).await;
    let events: Vec<Value> =
        heard.text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let agreed = json!({"toolsListChanged": true, "resourceSubscriptions": ["of://b/a"]});
    assert_eq!(events[0]["params"]["notifications"], agreed);
    assert_eq!(events[0]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 7);
    assert_eq!(heard.text.matches("acknowledged").count(), 1);
    drop(heard);
    let calls = bench.calls().await;
    let ended: Vec<_> = calls
        .iter()
        .filter(|call| summary(call).0 == "subscriptions/listen")
        .map(|call| (call.server.as_str(), call.outcome()))
        .collect();
    for server in ["a", "b"] {
        assert!(ended.contains(&(server, Outcome::Cancelled)), "{ended:?}");
    }
}

/// What a server says in the shim's own codes is a server's word, and no refusal of the access policy.
#[tokio::test]
async fn one_server_that_refuses_keeps_nobody_from_the_others() {
    async fn refuses(request: HttpRequest) -> Answer {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        error(StatusCode::OK, &value["id"].to_string(), 1_005, "no")
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [("b", telling_server("b").await), ("refuses", listener.local_addr().unwrap())];
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(refuses))).await.unwrap() });
    let server = |address| toml::from_str(&format!("url = \"http://{address}/mcp\"\n")).unwrap();
    let servers = addresses.map(|(name, address)| (name.to_owned(), server(address))).into();
    let (policy, tokens) = policy(&[ALICE], ALL);
    let access = Access::of(&policy, None).unwrap();
    let bench = Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await;
    let mut request = hyper::Request::post("/");
    for (name, value) in headers("subscriptions/listen", "") {
        request = request.header(name, value);
    }
    let about = r#""notifications":{"toolsListChanged":true}"#;
    let mut heard = Heard::of(&bench, request, body(7, "subscriptions/listen", about)).await;
    heard.until(&[r#""server":"b""#]).await;
}

/// A server that speaks without sessions alone, and one with them: nobody is told that there is one way for both.
#[tokio::test]
async fn a_server_that_cannot_be_asked_here_is_named_with_its_address() {
    async fn stateless(request: HttpRequest) -> Answer {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        match value["method"].as_str() {
            Some("initialize") => {
                let error = json!({"jsonrpc":"2.0","id":value["id"],"error":{"code":-32_601,"message":"m"}});
                json(StatusCode::NOT_FOUND, error.to_string().into())
            }
            _ => json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":{}}).to_string().into()),
        }
    }
    async fn with_sessions(request: HttpRequest) -> Answer {
        let version = request.headers().get(PROTOCOL).is_some_and(|version| version == "2026-07-28");
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        match value["method"].as_str() {
            _ if version => error(StatusCode::BAD_REQUEST, "null", CODE_NO_SESSION, "no session"),
            _ => json(
                StatusCode::OK,
                json!({"jsonrpc":"2.0","id":value["id"],"result":{"protocolVersion":"2025-11-25"}}).to_string().into(),
            ),
        }
    }
    let mut servers = BTreeMap::new();
    for (name, routes) in [("new", any(stateless)), ("old", any(with_sessions))] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", routes)).await.unwrap() });
        servers.insert(name.to_owned(), toml::from_str(&format!("url = \"http://{address}/mcp\"\n")).unwrap());
    }
    let (policy, tokens) = policy(&[ALICE], ALL);
    let access = Access::of(&policy, None).unwrap();
    let bench = Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await;
    // A client of both eras begins a session, and is told why.
    let (status, _, said) = bench.post(&headers("server/discover", ""), &body(1, "server/discover", "")).await;
    assert_eq!((status, &value(&said)["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(CODE_NO_SESSION)));
    assert!(value(&said)["error"]["message"].as_str().unwrap().contains("old here speaks so alone"));
    let call = |id, name: &str| body(id, "tools/call", &format!(r#""name":"{name}""#));
    // Whoever speaks without sessions all the same reaches what speaks so, and is told of the other.
    let (_, _, said) = bench.post(&headers("tools/call", "new__x"), &call(2, "new__x")).await;
    assert!(value(&said)["result"].is_object(), "{said:?}");
    let (_, _, said) = bench.post(&headers("tools/call", "old__x"), &call(3, "old__x")).await;
    let said = value(&said);
    assert_eq!((&said["id"], &said["error"]["code"]), (&json!(3), &json!(1_013)));
    assert!(said["error"]["message"].as_str().unwrap().ends_with("ask it at /mcp/old"), "{said}");
    // With a session it is the other way round, and the error is that of the server, under the id of the request.
    let session = begin(&bench).await;
    let of_session = [(SESSION, session.as_str()), (PROTOCOL, "2025-11-25")];
    assert!(value(&bench.post(&of_session, &tool_call(4, "old__x")).await.2)["result"].is_object());
    let said = value(&bench.post(&of_session, &tool_call(5, "new__x")).await.2);
    assert_eq!((&said["id"], &said["error"]["code"]), (&json!(5), &json!(-32_601)));
}
