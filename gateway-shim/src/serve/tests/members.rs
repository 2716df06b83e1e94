//! Who may do what: tokens, rules, and what is somebody else's.

use super::*;

pub(super) const BOB: &str = "b0b00000000000000000000000000001";
/// Tools alone, and of these one less.
const TOOLS: &str = "[[rules]]\nid = \"not-fails\"\neffect = \"deny\"\neveryone = true\ntools = [\"test/fails\"]\nmethods = \
                     [\"*\"]\n[[rules]]\nid = \"tools\"\neffect = \"allow\"\neveryone = true\ntools = [\"test/*\"]\n";

pub(super) fn waits() -> Waits {
    Waits { head: listen::HEAD_LIMIT, body: BODY_LIMIT }
}

/// Two members with these rules, in front of a server at this address; and the header of the second.
pub(super) async fn two(address: std::net::SocketAddr, rules: &str) -> (Bench, String) {
    let (text, tokens) = policy(&[ALICE, BOB], rules);
    let access = Access::of(&text, None).unwrap();
    let server = format!("url = \"http://{address}/mcp\"\n");
    (Bench::with_access(&server, waits(), access, tokens[0].clone()).await, tokens[1].clone())
}

pub(super) fn refusals(calls: &[wire::Call]) -> Vec<(String, Outcome)> {
    let denied = calls.iter().filter(|call| call.decision() == wire::Decision::Denied);
    denied.map(|call| (call.rule.clone(), call.outcome())).collect()
}

/// Other gateways do not record these ("Not logged"); here each is a record, whatever the request was.
#[tokio::test]
async fn nobody_calls_without_a_good_token_and_every_attempt_is_on_record() {
    let bench = odd_bench().await;
    let wrong = format!("{}{}", &bench.token[..bench.token.len() - 4], "0000");
    let unknown = format!("Bearer cst_{}_{}", "0".repeat(32), "0".repeat(64));
    let mut expected = Vec::new();
    for method in [Method::POST, Method::GET, Method::DELETE] {
        for (value, rule) in [
            ("Basic Zm9v", "shim/wrong-token"),
            ("", "shim/wrong-token"),
            (&*wrong, "shim/wrong-token"),
            (&*unknown, "shim/wrong-token"),
        ] {
            let (status, headers, _) = bench.send(method.clone(), &[("authorization", value)], HELLO).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {rule}");
            assert!(text(&headers, "www-authenticate").unwrap().starts_with("Bearer "));
            expected.push((rule.to_owned(), Outcome::Unauthenticated));
        }
    }
    // Twice is as good as wrong: who is behind might read the other one.
    let twice = [("authorization", bench.token.as_str()), ("authorization", bench.token.as_str())];
    assert_eq!(bench.post(&twice, HELLO).await.0, StatusCode::UNAUTHORIZED);
    expected.push(("shim/wrong-token".to_owned(), Outcome::Unauthenticated));
    let bare = hyper::Request::post(format!("http://{}/mcp/test", bench.address)).body(Full::from(HELLO)).unwrap();
    let answer = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>().request(bare).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    expected.push(("shim/no-token".to_owned(), Outcome::Unauthenticated));
    let calls = bench.calls().await;
    assert_eq!(refusals(&calls), expected);
    // Whose token it would be is known by its id, and nobody by a token that is unknown.
    assert_eq!(calls.iter().filter(|call| call.member.is_some()).count(), 3);
}

#[tokio::test]
async fn what_no_rule_allows_reaches_no_server_and_no_client_falls_back() {
    let (bench, _) = two(odd_server().await, TOOLS).await;
    bench.post(&[], HELLO).await;
    let session = [(SESSION, "session-1"), (PROTOCOL, "2025-11-25")];
    assert_eq!(bench.post(&session, &tool_call(1, "echo")).await.0, StatusCode::OK);
    let mut expected = Vec::new();
    for (id, (method, params, rule)) in [
        ("tools/call", r#"{"name":"fails"}"#, "not-fails"),
        ("prompts/get", r#"{"name":"echo"}"#, "shim/default-deny"),
        ("resources/read", r#"{"uri":"file:///a"}"#, "shim/default-deny"),
        ("resources/subscribe", r#"{"uri":"file:///a"}"#, "shim/default-deny"),
        ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"a"}}"#, "shim/default-deny"),
        ("sampling/createMessage", "{}", "shim/default-deny"),
        ("nobody/knows", "{}", "shim/default-deny"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
        let (status, _, answer) = bench.post(&session, &body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status, &answer["id"], &answer["error"]["code"]), (StatusCode::OK, &json!(id), &json!(1_005)));
        expected.push((rule.to_owned(), Outcome::Denied));
    }
    // What a session is made of is allowed to whoever may call anything.
    let list = r#"{"jsonrpc":"2.0","id":9,"method":"tools/list"}"#;
    // This server has no answer to it.
    assert_eq!(bench.post(&session, list).await.0, StatusCode::BAD_GATEWAY);
    let calls = bench.calls().await;
    assert_eq!(refusals(&calls), expected);
    let of_session = calls.iter().filter(|call| call.rule == "shim/session").count();
    assert_eq!(of_session, 2, "initialize and tools/list");
}

/// Neither used nor seen: it is answered as one that is not there.
#[tokio::test]
async fn a_session_is_of_whoever_began_it() {
    let (bench, bob) = two(odd_server().await, ALL).await;
    bench.post(&[], HELLO).await;
    let theirs = [(SESSION, "session-1"), ("authorization", bob.as_str())];
    let none = [(SESSION, "session-2"), ("authorization", bob.as_str())];
    let note = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    let answer = r#"{"jsonrpc":"2.0","id":9,"result":{}}"#;
    let call = tool_call(1, "echo");
    for (method, body) in [
        (Method::POST, call.as_str()),
        (Method::POST, note),
        (Method::POST, answer),
        (Method::GET, ""),
        (Method::DELETE, ""),
    ] {
        let (status, _, seen) = bench.send(method.clone(), &theirs, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {body}");
        assert_eq!(seen, bench.send(method, &none, body).await.2, "what is another's is told from what is not there");
    }
    // The server gives everybody the same id: bob gets none, and alice keeps hers.
    let (status, headers, _) = bench.post(&[("authorization", bob.as_str())], HELLO).await;
    assert!(status == StatusCode::BAD_GATEWAY && !headers.contains_key(SESSION));
    assert_eq!(bench.post(&[(SESSION, "session-1")], &call).await.0, StatusCode::OK);
    let refused = refusals(&bench.calls().await);
    assert!(refused.len() == 10 && refused.iter().all(|(rule, _)| rule == "shim/not-yours"), "{refused:?}");
}

/// A request of the server that its client may not be asked goes no further; the server is told, and it is on record.
#[tokio::test]
async fn the_server_asks_nobody_for_what_no_rule_allows() {
    let (bench, _) = two(odd_server().await, TOOLS).await;
    bench.post(&[], HELLO).await;
    let (_, _, body) = bench.post(&[(SESSION, "session-1")], &tool_call(3, "stream")).await;
    let body = String::from_utf8_lossy(&body);
    assert!(!body.contains("sampling") && body.contains("result"), "{body}");
    let calls = bench.calls().await;
    let asked = calls.iter().find(|call| call.from_server).unwrap();
    let said = (asked.decision(), asked.outcome(), asked.rule.as_str());
    assert_eq!(said, (wire::Decision::Denied, Outcome::Denied, "shim/default-deny"));
    let (call, link) = (calls.iter().find(|call| summary(call).1 == "stream").unwrap(), asked.link.as_ref().unwrap());
    assert_eq!((link.kind(), link.call_number), (wire::LinkKind::Nested, call.call_number));
}

/// A server that says when a call reached it and when its connection is gone, and answers nothing but that it lists nothing.
async fn silent_server() -> (std::net::SocketAddr, tokio::sync::mpsc::Receiver<&'static str>) {
    let (said, seen) = tokio::sync::mpsc::channel(8);
    struct Gone(tokio::sync::mpsc::Sender<&'static str>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.try_send("gone").unwrap();
        }
    }
    let answer = move |request: HttpRequest| {
        let said = said.clone();
        async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            if String::from_utf8_lossy(&body).contains("tools/list") {
                return error(StatusCode::NOT_FOUND, "null", -32_601, "no");
            }
            said.send("reached").await.unwrap();
            let gone = Gone(said);
            std::future::pending::<()>().await;
            drop(gone);
            Response::new(Body::empty())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    (address, seen)
}

/// Of two members who wait, the one whose rule is gone is cut, with the connection to the server; the other waits on.
#[tokio::test]
async fn a_change_of_access_cuts_what_is_open_and_nobody_else() {
    let (address, mut seen) = silent_server().await;
    let of = |member: &str| {
        format!("[[rules]]\nid = \"{}\"\neffect = \"allow\"\nmembers = [\"{member}\"]\ntools = [\"*\"]\n", &member[..4])
    };
    let (text, tokens) = policy(&[ALICE, BOB], &(of(ALICE) + &of(BOB)));
    let access = Access::of(&text, None).unwrap();
    let server = format!("url = \"http://{address}/mcp\"\n");
    let bench = Bench::with_access(&server, waits(), access, tokens[0].clone()).await;
    let call = tool_call(1, "waits");
    let theirs = [("authorization", tokens[1].as_str())];
    let (mut mine, mut other) = (Box::pin(bench.post(&[], &call)), Box::pin(bench.post(&theirs, &call)));
    within(async {
        for _ in 0..2 {
            tokio::select! {
                _ = &mut mine => panic!("nobody answered"),
                _ = &mut other => panic!("nobody answered"),
                seen = seen.recv() => assert_eq!(seen, Some("reached")),
            }
        }
    })
    .await;
    let without = Access::of(&text.replace(&of(ALICE), ""), None).unwrap();
    bench.front.shared.cuts.look(&without, clock::now_us());
    let (status, _, body) = within(async {
        tokio::select! { cut = &mut mine => cut, _ = &mut other => panic!("the other was cut") }
    })
    .await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["id"], &body["error"]["code"]), (StatusCode::OK, &json!(1), &json!(1_007)));
    let gone = within(async {
        tokio::select! { gone = seen.recv() => gone, _ = &mut other => panic!("the other was cut") }
    })
    .await;
    assert_eq!(gone, Some("gone"));
    assert!(seen.try_recv().is_err());
    bench.front.shared.cuts.look(&Access::of("version = 1\n", None).unwrap(), clock::now_us());
    within(other).await;
    drop(mine);
    let ended: Vec<_> = bench.calls().await.iter().map(|call| (call.rule.clone(), call.outcome())).collect();
    assert_eq!(ended, vec![("a11c".into(), Outcome::Revoked), ("b0b0".into(), Outcome::Revoked)]);
}

/// Without a session no answer would be known for one to what a server asks, whoever's call it asks in.
#[tokio::test]
async fn a_server_asks_nobody_without_a_session() {
    let (bench, bob) = two(odd_server().await, ALL).await;
    for headers in [vec![], vec![("authorization", bob.as_str())]] {
        let (_, _, body) = bench.post(&headers, &tool_call(1, "stream")).await;
        let body = String::from_utf8_lossy(&body);
        assert!(!body.contains("sampling") && body.contains("result"), "{body}");
    }
    let calls = bench.calls().await;
    assert_eq!(refusals(&calls), vec![("shim/malformed".to_owned(), Outcome::Malformed); 2]);
    let (asked, made): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.from_server);
    let of = |call: &wire::Call| (call.member.clone(), call.call_number);
    let linked = |call: &wire::Call| (call.member.clone(), call.link.as_ref().unwrap().call_number);
    assert!(asked.iter().map(|call| linked(call)).eq(made.iter().map(|call| of(call))));
}

/// Streams are cut as well, and so are the processes of sessions.
#[tokio::test]
async fn a_change_of_access_ends_streams_and_processes() {
    let bench = stdio_bench().await;
    let session = begin(&bench).await;
    let stream = bench.open(&session).await;
    let Some(Server::Stdio(_)) = bench.front.proxies.get("test").map(|proxy| &proxy.server) else { panic!() };
    bench.front.shared.cuts.look(&Access::of("version = 1\n", None).unwrap(), clock::now_us());
    assert!(within(stream.collect()).await.unwrap().to_bytes().is_empty());
    let calls = bench.calls().await;
    let stream = calls.iter().find(|call| summary(call).0 == "GET").unwrap();
    assert_eq!(stream.outcome(), Outcome::Revoked);
}

/// The member's own token and cookies stay here; the server gets the shim's credential, and its word on that stays here too.
#[tokio::test]
async fn only_the_shims_own_credential_reaches_a_server() {
    let answer = |request: HttpRequest| async move {
        let headers = request.headers();
        assert!(!headers.contains_key(header::COOKIE) && !headers.contains_key(header::PROXY_AUTHORIZATION));
        let good = headers.get_all(header::AUTHORIZATION).iter().eq(["Bearer canary-of-the-shim"]);
        let mut answer = json(StatusCode::OK, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into());
        if !good {
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, "Bearer".parse().unwrap());
        }
        answer.headers_mut().insert(header::SET_COOKIE, "a=b".parse().unwrap());
        answer
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    let dir = TempDir::new();
    let file = dir.path().join("token");
    for (secret, status) in [("canary-of-the-shim\n", StatusCode::OK), ("another", StatusCode::BAD_GATEWAY)] {
        durable::replace(&file, secret.as_bytes()).unwrap();
        let credential = format!("url = \"http://{address}/mcp\"\ncredential = {{ file = {file:?} }}\n");
        let bench = Bench::new(&credential).await;
        let sent = [("cookie", "c=d"), ("proxy-authorization", "Basic Zm9v")];
        let (seen, headers, _) = bench.post(&sent, &tool_call(1, "echo")).await;
        assert_eq!(seen, status);
        assert!(!headers.contains_key(header::SET_COOKIE) && !headers.contains_key(header::WWW_AUTHENTICATE));
        assert!(!format!("{:?}", bench.records().await).contains("canary"));
    }
}

/// A server that is not there is as one that somebody made up, and what they made up is not on record.
#[tokio::test]
async fn whoever_is_known_reaches_only_servers_that_are_there() {
    let bench = odd_bench().await;
    let uri = format!("http://{}/mcp/canary", bench.address);
    let request = hyper::Request::post(uri).header("authorization", &bench.token).body(Full::from(HELLO)).unwrap();
    let answer = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>().request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let records = bench.records().await;
    assert!(!format!("{records:?}").contains("canary"));
    let Kind::Call(call) = records.last().unwrap() else { panic!("{records:?}") };
    assert_eq!((call.server.as_str(), call.member.is_some()), ("", true));
}
