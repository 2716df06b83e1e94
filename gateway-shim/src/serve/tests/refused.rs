//! What does not pass: who is told what, under which id, and what is on record.

use super::*;

#[tokio::test]
async fn what_is_refused_here_is_on_record_too() {
    let bench = odd_bench().await;
    let (status, _, body) = bench.post(&[], "[]").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&body).contains("-32600"));
    assert_eq!(bench.post(&[], "{").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(bench.post(&[], &"x".repeat(5 << 20)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(chunked(&bench, 5 << 20).await, StatusCode::PAYLOAD_TOO_LARGE);
    for (name, value) in [("origin", "https://evil.example"), ("host", "evil.example:80")] {
        assert_eq!(bench.post(&[(name, value)], HELLO).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(bench.send(Method::PUT, &[], "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.post(&[("origin", "http://localhost:3000")], HELLO).await.0, StatusCode::OK);
    let calls = bench.calls().await;
    let said: Vec<_> = calls.iter().map(|call| (call.decision(), call.outcome(), call.request_bytes)).collect();
    let denied = wire::Decision::Denied;
    assert_eq!(
        said,
        vec![
            (denied, Outcome::Malformed, 2),
            (denied, Outcome::Malformed, 1),
            // As long as it says, or longer than the limit.
            (denied, Outcome::OverLimit, 5 << 20),
            (denied, Outcome::OverLimit, 4 << 20),
            (denied, Outcome::Denied, 0),
            (denied, Outcome::Denied, 0),
            (denied, Outcome::Malformed, 0),
            (wire::Decision::Allowed, Outcome::Ok, HELLO.len() as u64),
        ]
    );
}

/// Posts so many bytes without saying how many.
async fn chunked(bench: &Bench, bytes: usize) -> StatusCode {
    let body = Body::from_stream(tokio_stream::iter([Ok::<_, std::convert::Infallible>(vec![b'x'; bytes])]));
    let request = hyper::Request::post(format!("http://{}/mcp/test", bench.address));
    let request = request.header("authorization", &bench.token).body(body).unwrap();
    Client::builder(TokioExecutor::new()).build_http::<Body>().request(request).await.unwrap().status()
}

/// Whoever is refused reads why, under the id of the request where it can be read.
#[tokio::test]
async fn an_error_of_our_own_says_its_cause_and_the_id() {
    let bench = odd_bench().await;
    for (body, id, says) in [
        (r#"{"jsonrpc":"2.0","id":"a","method":"ping","method":"ping"}"#, json!("a"), "the key method stands twice"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"x","params":{"name":5}}"#, json!(7), "name is not in form"),
        (r#"{"jsonrpc":"2.0","method":"x"}"#, json!(null), "without an id"),
        ("nonsense", json!(null), "not JSON"),
    ] {
        let (status, _, answer) = bench.post(&[], body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let text = answer["error"]["message"].as_str().unwrap();
        assert!(status == StatusCode::BAD_REQUEST && answer["id"] == id && text.contains(says), "{body}: {answer}");
    }
    let elsewhere = hyper::Request::post(format!("http://{}/else", bench.address)).body(Full::from(HELLO)).unwrap();
    let answer = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>().request(elsewhere).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("/mcp/"), "{body:?}");
    assert_eq!(bench.calls().await.len(), 4, "behind another path is no server, and no record");
}

/// The server would read another request than was decided on: without its session, or in another era.
#[tokio::test]
async fn what_a_client_keeps_from_the_server_is_no_request() {
    let bench = odd_bench().await;
    let task = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/result","params":{"taskId":"another's"}}"#;
    for kept in [SESSION, PROTOCOL, "mcp-method"] {
        let said = [("connection", kept), (PROTOCOL, "2026-07-28"), ("mcp-method", "tasks/result"), (SESSION, "one")];
        let (status, _, body) = bench.post(&said, task).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{kept}: {body:?}");
        assert!(String::from_utf8_lossy(&body).contains("not in Connection"), "{body:?}");
    }
    let outcomes: Vec<_> = bench.calls().await.iter().map(wire::Call::outcome).collect();
    assert_eq!(outcomes, [Outcome::Malformed; 3]);
}

/// What a process prints between its messages goes to nobody, and is one record of a minute.
#[tokio::test]
async fn lines_that_are_no_messages_are_on_record() {
    let bench = stdio_bench().await;
    let session = begin(&bench).await;
    let (_, answer, body) = bench.post(&[(SESSION, session.as_str())], &tool_call(1, "banner")).await;
    assert_eq!(text(&answer, "content-type"), Some("application/json"), "{body:?}");
    let calls = bench.calls().await;
    let unread = calls.iter().find(|call| call.outcome() == Outcome::Malformed).unwrap();
    let bytes = "Welcome!".len() + r#"{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","Method":"x"}"#.len();
    assert!(unread.from_server && unread.request.is_none() && unread.request_bytes == bytes as u64, "{unread:?}");
    assert_eq!((calls.len(), unread.decision()), (3, wire::Decision::Denied));
}

/// The first goes on; the second is told, under its id.
#[tokio::test]
async fn an_id_that_is_in_use_is_no_request() {
    let bench = stdio_bench().await;
    let session = begin(&bench).await;
    let headers = [(SESSION, session.as_str())];
    // Of two the one that comes later is told at once; which it is, is not decided here.
    let (silent, echo) = (tool_call(1, "silent"), tool_call(1, "silent"));
    let first = bench.post(&headers, &silent);
    let second = bench.post(&headers, &echo);
    let (status, _, body) = within(async {
        tokio::select! { told = first => told, told = second => told }
    })
    .await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["id"], &body["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(1), &json!(-32_600)));
    assert!(body["error"]["message"].as_str().unwrap().contains("another id"), "{body}");
    let outcomes: Vec<_> = bench.calls().await.iter().map(wire::Call::outcome).collect();
    assert!(outcomes.contains(&Outcome::Malformed), "{outcomes:?}");
}

/// An event that two readers might read differently reaches no client, and is on record.
#[tokio::test]
async fn an_event_that_is_no_message_does_not_pass() {
    let bench = odd_bench().await;
    let (_, _, body) = bench.post(&[], &tool_call(3, "twofold")).await;
    let body = String::from_utf8_lossy(&body);
    assert!(!body.contains("sampling") && body.contains("result"), "{body}");
    let calls = bench.calls().await;
    let said: Vec<_> = calls.iter().map(|call| (call.from_server, call.decision(), call.outcome())).collect();
    let (allowed, denied) = (wire::Decision::Allowed, wire::Decision::Denied);
    assert_eq!(said, vec![(false, allowed, Outcome::Ok), (true, denied, Outcome::Malformed)]);
}

#[tokio::test]
async fn what_is_refused_for_want_of_a_session_is_on_record() {
    let bench = stdio_bench().await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(bench.post(&[], note).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(bench.send(Method::GET, &[], "").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(bench.send(Method::DELETE, &[(SESSION, "none")], "").await.0, StatusCode::NOT_FOUND);
    let calls = bench.calls().await;
    let said: Vec<_> = calls.iter().map(|call| (call.decision(), call.outcome(), call.rule.as_str())).collect();
    let (allowed, denied) = (wire::Decision::Allowed, wire::Decision::Denied);
    let refused = (denied, Outcome::Denied, "shim/not-yours");
    assert_eq!(
        said,
        vec![(denied, Outcome::HttpError, "shim/not-yours"), (allowed, Outcome::HttpError, "all"), refused]
    );
}

/// A client may give up a call before the server has said anything, not even a status.
#[tokio::test]
async fn what_its_client_gave_up_is_cancelled_whenever_that_was() {
    let (came, mut coming) = tokio::sync::mpsc::channel::<()>(1);
    let (go, going) = tokio::sync::watch::channel(());
    let answer = move |request: HttpRequest| {
        let (came, mut going) = (came.clone(), going.clone());
        async move {
            let (_, body) = request.into_parts();
            let asked: Value = serde_json::from_slice(&axum::body::to_bytes(body, 1 << 20).await.unwrap()).unwrap();
            let mut answer = Response::new(Body::empty());
            match asked["method"].as_str() {
                Some("initialize") => {
                    answer = json(StatusCode::OK, r#"{"jsonrpc":"2.0","id":0,"result":{}}"#.into());
                    answer.headers_mut().insert(SESSION, "s".parse().unwrap());
                }
                Some("tools/call") => {
                    came.send(()).await.unwrap();
                    going.changed().await.unwrap();
                }
                _ => *answer.status_mut() = StatusCode::ACCEPTED,
            }
            answer
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    let bench = Bench::new(&format!("url = \"http://{address}/mcp\"\n")).await;
    bench.post(&[], HELLO).await;
    let (session, call) = ([(SESSION, "s")], tool_call(7, "slow"));
    let calling = bench.post(&session, &call);
    let giving_up = async {
        coming.recv().await.unwrap();
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
        assert_eq!(bench.post(&session, cancel).await.0, StatusCode::ACCEPTED);
        go.send(()).unwrap();
    };
    within(async { tokio::join!(calling, giving_up) }).await;
    let outcomes: Vec<_> = bench.calls().await.iter().map(wire::Call::outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Cancelled]);
}
