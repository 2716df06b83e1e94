//! What one member, or one server, may take of what is everybody's.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Semaphore, mpsc},
};

use super::{
    members::{BOB, refusals, waits},
    *,
};
use crate::serve::{sessions::KEPT_BYTES_MAX, upstream::TELLS_MAX};

/// Two members in front of the server at this address, with more in `[serve]`; and the header of the second.
async fn bounded(more: &str, address: std::net::SocketAddr, rules: &str) -> (Bench, String) {
    let (text, tokens) = policy(&[ALICE, BOB], rules);
    let access = Access::of(&text, None).unwrap();
    let servers = config(&format!("url = \"http://{address}/mcp\"\n")).1;
    (Bench::with_serve(more, servers, waits(), access, tokens[0].clone(), "/mcp/test").await, tokens[1].clone())
}

async fn listening(router: Router) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A server that says of each request that it is there, and answers when it may; what asks for the list has its answer at once.
async fn slow_server() -> (std::net::SocketAddr, mpsc::UnboundedReceiver<String>, Arc<Semaphore>) {
    #[expect(clippy::disallowed_methods, reason = "the test sends a handful")]
    let (came, coming) = mpsc::unbounded_channel();
    let may = Arc::new(Semaphore::new(0));
    let go = Arc::clone(&may);
    let answer = move |request: HttpRequest| {
        let (came, go) = (came.clone(), Arc::clone(&go));
        async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            if value["method"] != "tools/list" {
                came.send(value["method"].as_str().unwrap_or_default().to_owned()).unwrap();
                go.acquire().await.unwrap().forget();
            }
            json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":{"tools":[]}}).to_string().into())
        }
    };
    (listening(Router::new().route("/mcp", any(answer))).await, coming, may)
}

/// A member whose calls are slow, and whose connections are gone, has as many as their share, and everybody else is served.
#[tokio::test]
async fn nobody_takes_the_places_of_others_at_a_server() {
    let (address, mut coming, may) = slow_server().await;
    let (bench, bob) = bounded("calls_open_max = 16\nmember_calls_open_max = 2\n", address, ALL).await;
    for id in 0..2 {
        let body = tool_call(id, "slow");
        let call = bench.post(&[], &body);
        // Its connection is closed when the server has it.
        within(async {
            tokio::select! { _ = call => panic!("it is slow"), _ = coming.recv() => {} }
        })
        .await;
    }
    let ping = r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
    // What has no answer needs no place among those that wait for it.
    let noted = bench.post(&[], note);
    within(async {
        tokio::select! { _ = noted => panic!("it is slow"), _ = coming.recv() => {} }
    })
    .await;
    for body in [&tool_call(2, "slow"), ping] {
        let (status, headers, told) = within(bench.post(&[], body)).await;
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((status, &told["error"]["code"]), (StatusCode::OK, &json!(1_006)), "{told}");
        assert_eq!(text(&headers, "retry-after"), Some("1"));
    }
    let (body, of_bob) = (tool_call(4, "slow"), [("authorization", bob.as_str())]);
    let call = bench.post(&of_bob, &body);
    let (status, ..) = within(async {
        tokio::join!(call, async {
            coming.recv().await.unwrap();
            may.add_permits(4);
        })
        .0
    })
    .await;
    assert_eq!(status, StatusCode::OK);
    // The places come back with the answers, though nobody reads these.
    may.add_permits(16);
    while within(bench.post(&[], &tool_call(5, "slow"))).await.1.contains_key("retry-after") {}
    let calls = bench.calls().await;
    let busy = refusals(&calls);
    assert!(
        busy.len() >= 2 && busy.iter().all(|refusal| *refusal == ("shim/busy".into(), Outcome::OverLimit)),
        "{busy:?}"
    );
}

/// Calls that have all places may wait for what their client answers; and what the server does not have is not recorded as given.
#[tokio::test]
async fn an_answer_has_a_way_to_its_server_or_is_none() {
    let answers = Arc::new(Semaphore::new(0));
    let (asks, go) = (r#"data: {"jsonrpc":"2.0","id":"q","method":"roots/list"}"#, Arc::clone(&answers));
    let answer = move |request: HttpRequest| {
        let go = Arc::clone(&go);
        async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap();
            let Some(method) = value["method"].as_str() else {
                go.add_permits(1);
                return stdio::empty(StatusCode::ACCEPTED);
            };
            let result = json!({"jsonrpc":"2.0","id":value["id"],"result":{"tools":[]}}).to_string();
            if method != "tools/call" {
                let mut answer = json(StatusCode::OK, result.into());
                answer.headers_mut().insert(SESSION, "s".parse().unwrap());
                return answer;
            }
            let last = futures::stream::once(async move {
                go.acquire().await.unwrap().forget();
                Ok::<_, std::convert::Infallible>(format!("data: {result}\n\n"))
            });
            let stream = tokio_stream::once(Ok(format!("{asks}\n\n"))).chain(last);
            let mut answer = Response::new(Body::from_stream(stream));
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            answer
        }
    };
    let address = listening(Router::new().route("/mcp", any(answer))).await;
    let most = "calls_open_max = 1\nmember_calls_open_max = 1\nmember_connections_max = 1\n";
    let (bench, _) = bounded(most, address, ALL).await;
    bench.post(&[], HELLO).await;
    let request = hyper::Request::post(format!("http://{}/mcp/test", bench.address))
        .header(SESSION, "s")
        .header("authorization", &bench.token)
        .header("content-type", "application/json");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = request.body(Full::from(tool_call(7, "asks"))).unwrap();
    let mut called = within(client.request(request)).await.unwrap().into_body();
    within(called.frame()).await.unwrap().unwrap();
    let answer = r#"{"jsonrpc":"2.0","id":"q","result":{"roots":[]}}"#;
    let alice = custody::id::MemberId::from_hex(ALICE).unwrap();
    // As many are on their way to the server as may be, and then as many are on the port.
    for places in [&bench.front.proxies["test"].notes, &bench.front.shared.notes] {
        let taken: Vec<_> = std::iter::from_fn(|| places.enter(alice).ok()).collect();
        let (_, _, told) = within(bench.post(&[(SESSION, "s")], answer)).await;
        assert!(String::from_utf8_lossy(&told).contains("1006"), "{told:?}");
        drop(taken);
    }
    assert_eq!(within(bench.post(&[(SESSION, "s")], answer)).await.0, StatusCode::ACCEPTED);
    within(called.collect()).await.unwrap();
    let calls = bench.calls().await;
    let outcomes: Vec<_> = calls.iter().map(|call| (summary(call).0, call.outcome())).collect();
    for method in ["tools/call", "roots/list"] {
        assert!(outcomes.contains(&(method.to_owned(), Outcome::Ok)), "{outcomes:?}");
    }
    assert_eq!(refusals(&calls), vec![("shim/busy".to_owned(), Outcome::OverLimit); 2]);
}

/// A server whose requests are refused, and that does not listen, is told of some of them at a time.
#[tokio::test]
async fn a_server_that_does_not_listen_is_not_told_everything() {
    #[expect(clippy::disallowed_methods, reason = "the test sends a handful")]
    let (told, mut telling) = mpsc::unbounded_channel();
    let answer = move |request: HttpRequest| {
        let told = told.clone();
        async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            if value["method"].is_null() {
                told.send(()).unwrap();
                return std::future::pending().await;
            }
            let mut text = String::new();
            for id in 0..100 {
                text += &format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"sampling/createMessage\"}}\n\n");
            }
            text += &format!("data: {{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{{}}}}\n\n", value["id"]);
            sse(text)
        }
    };
    let address = listening(Router::new().route("/mcp", any(answer))).await;
    let tools = "[[rules]]\nid = \"tools\"\neffect = \"allow\"\neveryone = true\ntools = [\"test/*\"]\n";
    let (bench, _) = bounded("", address, tools).await;
    let (status, _, body) = within(bench.post(&[], &tool_call(1, "asks"))).await;
    assert!(status == StatusCode::OK && !String::from_utf8_lossy(&body).contains("sampling"));
    for _ in 0..TELLS_MAX {
        within(telling.recv()).await.unwrap();
    }
    drop(bench.calls().await);
    assert!(telling.try_recv().is_err(), "it is told of more at a time");
}

/// Streams and requests of one member take no more connections than their share, and everybody else has the others.
#[tokio::test]
async fn nobody_takes_the_connections_of_others() {
    let (address, mut coming, may) = slow_server().await;
    let (bench, bob) = bounded("member_connections_max = 2\n", address, ALL).await;
    let (a, b) = (tool_call(1, "slow"), tool_call(2, "slow"));
    let own = [bench.post(&[], &a), bench.post(&[], &b)];
    let others = async {
        for _ in 0..2 {
            coming.recv().await.unwrap();
        }
        for (method, body) in [(Method::POST, HELLO), (Method::GET, ""), (Method::DELETE, "")] {
            let (status, _, told) = bench.send(method, &[], body).await;
            let told: Value = serde_json::from_slice(&told).unwrap();
            assert_eq!((status, &told["error"]["code"]), (StatusCode::OK, &json!(1_006)), "{told}");
        }
        may.add_permits(3);
        bench.post(&[("authorization", &bob)], &tool_call(3, "slow")).await.0
    };
    let (own, of_bob) = within(async { tokio::join!(futures::future::join_all(own), others) }).await;
    assert!(of_bob == StatusCode::OK && own.iter().all(|(status, ..)| *status == StatusCode::OK));
    assert_eq!(refusals(&bench.calls().await), vec![("shim/busy".to_owned(), Outcome::OverLimit); 3]);
}

/// Sends the head of a request with a body of this kind, and what comes of it, and gives the connection and what is said first.
async fn begun(bench: &Bench, of_body: &str, body: &str) -> (tokio::net::TcpStream, String) {
    let mut stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    let (path, token) = (bench.path, &bench.token);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\nexpect: 100-continue\r\n{of_body}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut said = String::new();
    // Whoever has sent it all waits for the answer, and else it is news that the rest may come.
    let awaited = if body.is_empty() { "HTTP/1.1 " } else { "HTTP/1.1 200" };
    while !said.contains(awaited) {
        let mut more = [0; 4_096];
        let bytes = within(stream.read(&mut more)).await.unwrap();
        assert!(bytes > 0, "it ended behind {said:?}");
        said += &String::from_utf8_lossy(&more[..bytes]);
    }
    (stream, said)
}

/// Nobody fills the memory with bodies that never end: beyond a member's share what might be an answer still comes, and it is
/// short.
#[tokio::test]
async fn a_body_that_has_not_come_yet_is_of_its_members_share() {
    let (mut bench, bob) = bounded("member_connections_max = 1\n", odd_server().await, ALL).await;
    for path in ["/mcp/test", "/mcp"] {
        bench.path = path;
        let (_, headers, _) = bench.post(&[], HELLO).await;
        let session = [(SESSION, text(&headers, SESSION).unwrap())];
        let (waits, said) = begun(&bench, "content-length: 4000000", "").await;
        assert!(said.starts_with("HTTP/1.1 100"), "{said}");
        let (status, _, told) = bench.post(&[], HELLO).await;
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((status, &told["error"]["code"]), (StatusCode::OK, &json!(1_006)), "{path} {told}");
        let note = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
        assert_eq!(bench.post(&session, note).await.0, StatusCode::ACCEPTED, "{path}");
        // That it is too long is seen by what it says of itself, or once so much has come.
        let (_, said) = begun(&bench, "content-length: 65537", "").await;
        assert!(said.starts_with("HTTP/1.1 200"), "{path} {said}");
        let chunk = format!("{:x}\r\n{}\r\n", 70_000, "x".repeat(70_000));
        begun(&bench, "transfer-encoding: chunked", &chunk).await;
        let (_, _, told) = bench.post(&[("authorization", &bob)], HELLO).await;
        assert!(!String::from_utf8_lossy(&told).contains("1006"), "{path} {told:?}");
        drop(waits);
        while within(bench.post(&[], HELLO)).await.1.contains_key("retry-after") {}
    }
    let calls = bench.calls().await;
    let refused = refusals(&calls);
    // What was torn off is on record as well.
    let busy = refused.iter().filter(|one| **one == ("shim/busy".into(), Outcome::OverLimit)).count();
    assert!(busy >= 6, "{refused:?}");
    assert_eq!(calls.iter().filter(|call| call.request_bytes == 65_537).count(), 2);
}

/// What one member is refused beyond their share is one record with its number, by rule and outcome; so is what whoever has a
/// token's id and not its secret tries, which is not that member's.
#[tokio::test]
async fn refusals_without_end_are_records_that_count_them() {
    let tools = "[[rules]]\nid = \"tools\"\neffect = \"allow\"\neveryone = true\ntools = [\"test/*\"]\n";
    let (bench, bob) = bounded("", odd_server().await, tools).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"nobody/knows"}"#;
    let wrong = format!("{}0000", &bob[..bob.len() - 4]);
    for _ in 0..150 {
        bench.post(&[], body).await;
        assert_eq!(bench.post(&[("authorization", &wrong)], body).await.0, StatusCode::UNAUTHORIZED);
    }
    bench.post(&[("authorization", &bob)], body).await;
    // What is counted is in no memory for long: nobody need stop for it.
    within(async {
        while bench.front.shared.refusals.unwritten() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // What else they try is not behind that noise.
    let other = r#"{"jsonrpc":"2.0","id":2,"method":"prompts/get","params":{"name":"x"}}"#;
    bench.post(&[], other).await;
    let calls = bench.calls().await;
    let number = |call: &wire::Call| match call.extensions.first().and_then(|extension| extension.value.clone()) {
        Some(wire::extension::Value::Number(number)) => number,
        _ => 1,
    };
    let mut counted: BTreeMap<(String, String), (usize, u64)> = BTreeMap::new();
    for call in &calls {
        let whose = (call.member.as_deref().map(hex).unwrap_or_default(), call.rule.clone());
        let (records, refusals) = counted.entry(whose).or_default();
        (*records, *refusals) = (*records + 1, *refusals + number(call));
    }
    let of = |member: &str, rule: &str| counted[&(member.to_owned(), rule.to_owned())];
    // Those of one second are one record, and nobody knows how many seconds it took.
    let ((of_member, refused), (of_token, wrong)) = (of(ALICE, "shim/default-deny"), of(BOB, "shim/wrong-token"));
    assert_eq!((refused, wrong), (151, 150));
    assert!((122..150).contains(&of_member) && (31..150).contains(&of_token), "{of_member} {of_token}");
    assert_eq!(calls.iter().filter(|call| summary(call).1 == "x").count(), 1);
    assert_eq!(of(BOB, "shim/default-deny"), (1, 1));
}

/// What no limit of the policy is about is a record each time all the same.
#[tokio::test]
async fn nobody_fills_the_spool_with_what_a_session_is_made_of() {
    let (mut bench, bob) = bounded("", odd_server().await, ALL).await;
    bench.front.shared.pace.fill(custody::id::MemberId::from_hex(ALICE).unwrap());
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let hers = [list, HELLO];
    for path in ["/mcp/test", "/mcp"] {
        bench.path = path;
        for body in hers {
            let (_, headers, told) = bench.post(&[], body).await;
            let told: Value = serde_json::from_slice(&told).unwrap();
            let is_over = (told["error"]["code"] == 1_006, headers.contains_key("retry-after"));
            assert!(is_over == (true, true) || (path, body) == ("/mcp", list), "{path} {told}");
            let (_, _, told) = bench.post(&[("authorization", &bob)], body).await;
            assert!(!String::from_utf8_lossy(&told).contains("1006"), "{path} {told:?}");
        }
    }
    let calls = bench.calls().await;
    let over: Vec<_> = calls.iter().filter(|call| call.rule == "shim/over-limit").collect();
    assert!(over.len() == 3 && over.iter().all(|call| call.member.as_deref().map(hex).as_deref() == Some(ALICE)));
}

/// What is kept as long as its session is no way to take the memory of everybody.
#[tokio::test]
async fn what_a_session_keeps_of_its_client_is_short() {
    let (mut bench, _) = bounded("", odd_server().await, ALL).await;
    let of_level = r#"{"jsonrpc":"2.0","id":7,"method":"logging/setLevel","params":{"level":"info"}}"#;
    for path in ["/mcp/test", "/mcp"] {
        bench.path = path;
        let (_, headers, _) = bench.post(&[], HELLO).await;
        let session = [(SESSION, text(&headers, SESSION).unwrap())];
        for (of_session, short) in [(&[][..], HELLO), (&session, of_level)] {
            // As long as it may be, and a byte longer.
            let fill = |bytes: usize| short.replacen('{', &format!("{{{}", " ".repeat(bytes - short.len())), 1);
            let (_, headers, told) = bench.post(of_session, &fill(KEPT_BYTES_MAX)).await;
            assert!(
                !headers.contains_key("retry-after") && !String::from_utf8_lossy(&told).contains("1004"),
                "{told:?}"
            );
            let (status, headers, told) = bench.post(of_session, &fill(KEPT_BYTES_MAX + 1)).await;
            let told: Value = serde_json::from_slice(&told).unwrap();
            assert_eq!((status, &told["error"]["code"]), (StatusCode::OK, &json!(CODE_TOO_LONG)), "{path} {told}");
            assert!(told["error"]["message"].as_str().unwrap().contains("hint") && told["id"].is_number(), "{told}");
            assert!(!headers.contains_key(SESSION), "a session began");
        }
    }
    // A call may be longer.
    let call = tool_call(1, "test__echo").replacen('{', &format!("{{{}", " ".repeat(KEPT_BYTES_MAX)), 1);
    assert!(!String::from_utf8_lossy(&bench.post(&[], &call).await.2).contains("1004"));
    let calls = bench.calls().await;
    let over: Vec<_> = calls.iter().filter(|call| call.rule == "shim/over-limit").collect();
    let longer = |call: &&wire::Call| call.request_bytes == KEPT_BYTES_MAX as u64 + 1;
    assert!(over.len() == 4 && over.iter().all(longer), "{over:?}");
}

/// A stream and the end of a session are a record each time, at `/mcp` as at a server's own address.
#[tokio::test]
async fn a_stream_of_all_servers_is_no_way_around_the_pace() {
    let (mut bench, bob) = bounded("", odd_server().await, ALL).await;
    bench.path = "/mcp";
    let (_, of_alice, _) = bench.post(&[], HELLO).await;
    let bob = [("authorization", bob.as_str())];
    let (_, of_bob, _) = bench.post(&bob, HELLO).await;
    bench.front.shared.pace.fill(custody::id::MemberId::from_hex(ALICE).unwrap());
    let hers = [(SESSION, text(&of_alice, SESSION).unwrap())];
    for method in [Method::GET, Method::DELETE] {
        let (_, headers, told) = within(bench.send(method.clone(), &hers, "")).await;
        assert!(String::from_utf8_lossy(&told).contains("1006"), "{method} {told:?}");
        assert!(headers.contains_key("retry-after"), "{method}");
    }
    let his = [bob[0], (SESSION, text(&of_bob, SESSION).unwrap())];
    assert_eq!(within(bench.send(Method::DELETE, &his, "")).await.0, StatusCode::OK);
    assert_eq!(refusals(&bench.calls().await), vec![("shim/over-limit".to_owned(), Outcome::OverLimit); 2]);
}

/// What a server asks for in one result is judged and recorded whole, or not at all where it is too much.
#[tokio::test]
async fn a_result_that_asks_without_end_is_one_record() {
    let answer = |request: HttpRequest| async {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
        let asks = value["params"]["name"].as_str().and_then(|name| name.parse().ok()).unwrap_or(0);
        let asks: serde_json::Map<_, _> =
            (0..asks).map(|id: u32| (id.to_string(), json!({"method": "elicitation/create", "params": {}}))).collect();
        let result = json!({"resultType": "input_required", "requestState": "s", "inputRequests": asks});
        json(StatusCode::OK, json!({"jsonrpc": "2.0", "id": value["id"], "result": result}).to_string().into())
    };
    let address = listening(Router::new().route("/mcp", any(answer))).await;
    let (bench, _) = bounded("", address, ALL).await;
    let (_, _, few) = bench.post(&[], &tool_call(1, "32")).await;
    let (_, _, many) = bench.post(&[], &tool_call(2, "33")).await;
    let [few, many]: [Value; 2] = [few, many].map(|told| serde_json::from_slice(&told).unwrap());
    assert_eq!(few["result"]["inputRequests"].as_object().unwrap().len(), 32);
    assert_eq!(many["error"]["code"], 1_006);
    let calls = bench.calls().await;
    let asked: Vec<_> = calls.iter().filter(|call| call.from_server).collect();
    assert_eq!(asked.len(), 33);
    let (last, allowed) = asked.split_last().unwrap();
    assert!(allowed.iter().all(|call| call.outcome() == Outcome::InputRequired));
    let number = wire::extension::Value::Number(33);
    assert_eq!((last.rule.as_str(), last.extensions[0].value.clone()), ("shim/over-limit", Some(number)));
    let of_calls: Vec<_> = calls.iter().filter(|call| !call.from_server).map(wire::Call::outcome).collect();
    assert_eq!(of_calls, [Outcome::InputRequired, Outcome::OverLimit]);
}

/// A client that can do less is listed less. Nothing of that is held against the others, whose tools are in force.
#[tokio::test]
async fn what_one_client_is_not_listed_is_kept_from_nobody() {
    let answer = |request: HttpRequest| async {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let session = if value["params"]["capabilities"]["roots"].is_null() { "less" } else { "all" };
        let session = text(&parts.headers, SESSION).unwrap_or(session).to_owned();
        let result = match value["method"].as_str().unwrap() {
            "initialize" => json!({"protocolVersion": "2025-11-25"}),
            "tools/list" if session == "all" => json!({"tools": [{"name": "any"}, {"name": "roots"}]}),
            "tools/list" => json!({"tools": [{"name": "any"}]}),
            _ => json!({"content": []}),
        };
        let message = json!({"jsonrpc": "2.0", "id": value["id"], "result": result}).to_string();
        let mut answer = json(StatusCode::OK, message.into());
        answer.headers_mut().insert(SESSION, session.parse().unwrap());
        answer
    };
    let address = listening(Router::new().route("/mcp", any(answer))).await;
    let rules = format!("[servers.test]\non_change = \"quarantine\"\n{ALL}");
    let (bench, bob) = bounded("", address, &rules).await;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let can = HELLO.replace(r#""capabilities":{}"#, r#""capabilities":{"roots":{}}"#);
    let bob = ("authorization", bob.as_str());
    for _ in 0..2 {
        bench.post(&[bob], HELLO).await;
        bench.post(&[], &can).await;
        let (_, _, all) = bench.post(&[(SESSION, "all")], list).await;
        assert!(String::from_utf8_lossy(&all).contains("roots"), "{all:?}");
        let (_, _, less) = bench.post(&[bob, (SESSION, "less")], list).await;
        assert!(!String::from_utf8_lossy(&less).contains("roots"), "{less:?}");
        let (_, _, called) = bench.post(&[(SESSION, "all")], &tool_call(2, "roots")).await;
        assert!(String::from_utf8_lossy(&called).contains("content"), "{called:?}");
    }
    assert_eq!(refusals(&bench.calls().await), []);
}
