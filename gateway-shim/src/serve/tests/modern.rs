//! The era without sessions (2026-07-28): headers that repeat the body, rounds, tasks, subscriptions.

use super::{
    members::{refusals, two},
    *,
};

const VERSION: &str = "2026-07-28";
const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;

pub(super) fn body(id: u32, method: &str, params: &str) -> String {
    let params = if params.is_empty() { META.to_owned() } else { format!("{META},{params}") };
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}"#)
}

pub(super) fn headers<'a>(method: &'a str, name: &'a str) -> Vec<(&'a str, &'a str)> {
    let mut headers = vec![(PROTOCOL, VERSION), ("mcp-method", method)];
    headers.extend((!name.is_empty()).then_some(("mcp-name", name)));
    headers
}

/// A server of this era, by the tool that is called.
pub(super) async fn modern_server() -> std::net::SocketAddr {
    async fn answer(request: HttpRequest) -> Answer {
        let (parts, body) = request.into_parts();
        assert!(!parts.headers.contains_key(SESSION) && !parts.headers.contains_key(LAST_EVENT));
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let params = &value["params"];
        let result = match (value["method"].as_str().unwrap_or_default(), params["name"].as_str().unwrap_or_default()) {
            ("tools/call", "asks") if params["requestState"].is_null() => json!({"resultType":"input_required",
                "requestState":"canary-state", "inputRequests":{"a":{"method":"elicitation/create","params":{}}}}),
            ("tools/call", "slow") => json!({"resultType":"task","taskId":"canary-task","status":"working"}),
            ("tasks/get", _) => json!({"resultType":"complete","taskId":"canary-task","status":"completed",
                "result":{"isError":true}}),
            ("tasks/list", _) => json!({"tasks":[{"taskId":"canary-task"},{"taskId":"canary-other"}]}),
            ("tools/call", "streams") => {
                let asked = r#"{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage"}"#;
                let answer = json!({"jsonrpc":"2.0","id":value["id"],"result":{"resultType":"complete"}});
                return sse(format!("data: {asked}\n\ndata: {answer}\n\n"));
            }
            ("tools/call", "param") => json!({"region": parts.headers["mcp-param-region"].to_str().unwrap()}),
            ("nobody/knows", _) => {
                let error = json!({"jsonrpc":"2.0","id":value["id"],"error":{"code":-32_601,"message":"m"}});
                return json(StatusCode::NOT_FOUND, error.to_string().into());
            }
            _ => json!({"resultType":"complete"}),
        };
        json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string().into())
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

#[tokio::test]
async fn it_is_decided_on_the_body_and_headers_that_differ_are_refused() {
    let (bench, _) = two(modern_server().await, ALL).await;
    let call = body(1, "tools/call", r#""name":"echo""#);
    for wrong in [
        headers("tools/call", "allowed"),
        headers("tools/call", "Echo"),
        headers("tools/call", "=?base64?YWxsb3dlZA==?="),
        headers("tools/list", "echo"),
        headers("tools/call", ""),
        vec![("mcp-method", "tools/call"), ("mcp-name", "echo")],
        [headers("tools/call", "echo"), vec![("mcp-name", "allowed")]].concat(),
    ] {
        let (status, _, answer) = bench.post(&wrong, &call).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let said = (status, &answer["id"], &answer["error"]["code"]);
        assert_eq!(said, (StatusCode::BAD_REQUEST, &json!(1), &json!(-32_020)), "{wrong:?}");
    }
    // A session and a place in a stream are of the era before, and nothing is asked about them.
    let good = [headers("tools/call", "=?base64?ZWNobw==?="), vec![(SESSION, "none"), (LAST_EVENT, "1")]].concat();
    assert_eq!(bench.post(&good, &call).await.0, StatusCode::OK);
    let refused = refusals(&bench.calls().await);
    assert!(
        refused.len() == 7
            && refused
                .iter()
                .all(|(rule, outcome)| { (rule.as_str(), *outcome) == ("shim/header-mismatch", Outcome::Malformed) }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_is_not_the_shims_passes_as_it_is() {
    let (bench, _) = two(modern_server().await, ALL).await;
    let with_param = [headers("tools/call", "param"), vec![("mcp-param-region", "us-west1")]].concat();
    let (_, _, answer) = bench.post(&with_param, &body(1, "tools/call", r#""name":"param""#)).await;
    assert!(String::from_utf8_lossy(&answer).contains("us-west1"));
    let (status, _, answer) = bench.post(&headers("nobody/knows", ""), &body(2, "nobody/knows", "")).await;
    assert!(status == StatusCode::NOT_FOUND && String::from_utf8_lossy(&answer).contains("-32601"));
    for method in [Method::GET, Method::DELETE] {
        let (status, _, _) = bench.send(method, &[(PROTOCOL, VERSION)], "").await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    }
    let outcomes: Vec<_> = bench.calls().await.iter().map(wire::Call::outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::RpcError, Outcome::Malformed, Outcome::Malformed]);
}

#[tokio::test]
async fn rounds_are_linked_and_are_of_whoever_began_them() {
    let (bench, bob) = two(modern_server().await, ALL).await;
    let first = headers("tools/call", "asks");
    let (_, _, answer) = bench.post(&first, &body(1, "tools/call", r#""name":"asks""#)).await;
    assert!(String::from_utf8_lossy(&answer).contains("elicitation"));
    let next = body(2, "tools/call", r#""name":"asks","requestState":"canary-state","inputResponses":{}"#);
    let theirs = [first.clone(), vec![("authorization", bob.as_str())]].concat();
    let (_, _, answer) = bench.post(&theirs, &next).await;
    assert!(String::from_utf8_lossy(&answer).contains("error"));
    // A server may read these as the state that it gave, and go on with what is not decided on.
    let of_another = next.replace(r#""name":"asks""#, r#""name":"allowed""#);
    let longer = next.replace("canary-state", r"canary-state\n");
    for (name, odd) in [("allowed", of_another), ("asks", longer)] {
        let (_, _, answer) = bench.post(&headers("tools/call", name), &odd).await;
        assert!(String::from_utf8_lossy(&answer).contains("of no call"), "{odd}");
    }
    bench.post(&first, &next).await;
    let records = bench.records().await;
    assert!(!format!("{records:?}").contains("canary"));
    let calls: Vec<_> = records
        .iter()
        .filter_map(|kind| match kind {
            Kind::Call(call) => Some(call),
            _ => None,
        })
        .collect();
    let said: Vec<_> = calls.iter().map(|call| (summary(call).0, call.from_server, call.outcome())).collect();
    let call = || "tools/call".to_owned();
    // The request within the result is on record before the client sees it, which is before its call has ended.
    assert_eq!(
        said,
        vec![
            ("elicitation/create".into(), true, Outcome::InputRequired),
            (call(), false, Outcome::InputRequired),
            (call(), false, Outcome::Denied),
            (call(), false, Outcome::Denied),
            (call(), false, Outcome::Denied),
            (call(), false, Outcome::Ok),
        ]
    );
    let link = |call: &wire::Call| call.link.as_ref().map(|link| (link.kind(), link.call_number));
    let number = calls[1].call_number;
    assert_eq!(link(calls[0]), Some((wire::LinkKind::Nested, number)));
    assert_eq!(link(calls[5]), Some((wire::LinkKind::Round, number)));
    assert_eq!(calls[5].extensions[0].value, Some(wire::extension::Value::Number(2)));
}

/// What a server asks for in a result is decided on as if it asked by itself.
#[tokio::test]
async fn a_result_that_asks_for_what_is_not_allowed_does_not_pass() {
    let tools = "[[rules]]\nid = \"tools\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n";
    let (bench, _) = two(modern_server().await, tools).await;
    let (_, _, answer) = bench.post(&headers("tools/call", "asks"), &body(1, "tools/call", r#""name":"asks""#)).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!(1_005)));
    let calls = bench.calls().await;
    let said: Vec<_> = calls.iter().map(|call| (call.from_server, call.decision(), call.outcome())).collect();
    let (allowed, denied) = (wire::Decision::Allowed, wire::Decision::Denied);
    assert_eq!(said, vec![(true, denied, Outcome::Denied), (false, allowed, Outcome::Denied)]);
}

/// Without a session nobody could answer it: it reaches no client, and the server is told.
#[tokio::test]
async fn a_server_asks_nobody_in_a_stream_without_a_session() {
    let (bench, _) = two(modern_server().await, ALL).await;
    let call = body(1, "tools/call", r#""name":"streams""#);
    let (_, _, answer) = bench.post(&headers("tools/call", "streams"), &call).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("complete") && !answer.contains("sampling"), "{answer}");
    let outcomes: Vec<_> = bench.calls().await.iter().map(|call| (call.from_server, call.outcome())).collect();
    assert_eq!(outcomes, [(false, Outcome::Ok), (true, Outcome::Malformed)]);
}

#[tokio::test]
async fn a_task_is_of_whoever_began_it_and_its_end_is_linked_to_its_call() {
    let (bench, bob) = two(modern_server().await, ALL).await;
    bench.post(&headers("tools/call", "slow"), &body(1, "tools/call", r#""name":"slow""#)).await;
    let poll = body(2, "tasks/get", r#""taskId":"canary-task""#);
    let of_poll = headers("tasks/get", "canary-task");
    let theirs = [of_poll.clone(), vec![("authorization", bob.as_str())]].concat();
    let (_, _, answer) = bench.post(&theirs, &poll).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["error"]["code"], -32_602);
    let ignorant = poll.replace(r#""io.modelcontextprotocol/tasks":{}"#, "");
    let (status, _, answer) = bench.post(&of_poll, &ignorant).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((status, &answer["error"]["code"]), (StatusCode::BAD_REQUEST, &json!(-32_021)));
    for _ in 0..2 {
        let (_, _, answer) = bench.post(&of_poll, &poll).await;
        assert!(String::from_utf8_lossy(&answer).contains("completed"));
    }
    // Of a list a member sees their own.
    let list = body(3, "tasks/list", "");
    let (_, _, answer) = bench.post(&headers("tasks/list", ""), &list).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("canary-task") && !answer.contains("canary-other"), "{answer}");
    let records = bench.records().await;
    assert!(!format!("{records:?}").contains("canary"));
    let calls: Vec<_> = records
        .iter()
        .filter_map(|kind| match kind {
            Kind::Call(call) => Some(call),
            _ => None,
        })
        .collect();
    let began = calls.iter().find(|call| call.outcome() == Outcome::Deferred).unwrap();
    let (ended, asked): (Vec<&wire::Call>, Vec<_>) =
        calls.iter().copied().filter(|call| call.link.is_some()).partition(|call| summary(call).1 == "slow");
    assert_eq!(ended.len(), 1, "a task ends once");
    // What is asked about it is decided as what began it, and names that.
    assert!(!asked.is_empty() && asked.iter().all(|call| call.link == ended[0].link), "{asked:?}");
    let link = ended[0].link.as_ref().unwrap();
    assert_eq!((link.kind(), link.call_number), (wire::LinkKind::Task, began.call_number));
    assert_eq!((summary(ended[0]).1.as_str(), ended[0].outcome()), ("slow", Outcome::ToolError));
    let refused: Vec<_> = calls.iter().filter(|call| call.rule == "shim/not-yours").collect();
    assert!(refused.len() == 2 && refused.iter().all(|call| call.outcome() == Outcome::Denied));
}

/// It lasts as long as its client wants; its end is told to the server, and is `cancelled`.
#[tokio::test]
async fn closing_a_subscription_is_its_cancellation() {
    let (gone, mut going) = tokio::sync::mpsc::channel::<()>(1);
    let answer = move |_: HttpRequest| {
        let gone = gone.clone();
        async move {
            let stream = futures::stream::unfold(Some(gone), |gone| async move {
                let gone = gone?;
                let event = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\"}\n\n";
                match gone.capacity() {
                    1 => {
                        gone.try_send(()).unwrap();
                        Some((Ok::<_, std::convert::Infallible>(event), Some(gone)))
                    }
                    _ => std::future::pending().await,
                }
            });
            let mut answer = Response::new(Body::from_stream(stream));
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            answer
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving =
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    let (bench, _) = two(address, ALL).await;
    let mut request = hyper::Request::post(format!("http://{}/mcp/test", bench.address));
    for (name, value) in headers("subscriptions/listen", "") {
        request = request.header(name, value);
    }
    let request = request.header("authorization", &bench.token);
    let request = request.body(Full::from(body(1, "subscriptions/listen", ""))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut stream = client.request(request).await.unwrap().into_body();
    within(stream.frame()).await.unwrap().unwrap();
    within(going.recv()).await.unwrap();
    drop((stream, client));
    // The server sees its connection gone: what it held for that is dropped.
    serving.abort();
    assert!(within(going.recv()).await.is_none());
    let calls = bench.calls().await;
    assert_eq!(calls.iter().map(wire::Call::outcome).collect::<Vec<_>>(), [Outcome::Cancelled]);
}
