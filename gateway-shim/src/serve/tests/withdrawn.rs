//! What was begun goes on only as long as its member may do it: tasks, rounds, and what a subscription tells of.

use custody::{
    access::Rules,
    id::MemberId,
    wire::{AccessRule, Decision},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    all::server_of,
    members::{refusals, waits},
    modern::{body, headers, modern_server},
    *,
};
use crate::access::tests::put_in_force;

/// All but these tools.
fn all_but(tools: &str) -> String {
    format!("[[rules]]\nid = \"no\"\neffect = \"deny\"\neveryone = true\ntools = [{tools}]\nmethods = [\"*\"]\n{ALL}")
}

/// One member with these rules, and the policy's text.
async fn bench_of(address: std::net::SocketAddr, rules: &str, path: &'static str) -> (Bench, String) {
    let (text, tokens) = policy(&[ALICE], rules);
    let access = Access::of(&text, None).unwrap();
    let servers = config(&format!("url = \"http://{address}/mcp\"\n")).1;
    (Bench::with_servers(servers, waits(), access, tokens[0].clone(), path).await, text)
}

fn code(answer: &[u8]) -> Value {
    let answer: Value = serde_json::from_slice(answer).unwrap();
    answer["error"]["code"].clone()
}

#[tokio::test]
async fn whoever_may_not_call_a_tool_any_more_has_lost_its_tasks_and_rounds() {
    for (path, server) in [("/mcp/test", ""), ("/mcp", "test__")] {
        withdrawn(path, server).await;
    }
}

async fn withdrawn(path: &'static str, server: &'static str) {
    let (bench, text) = bench_of(modern_server().await, ALL, path).await;
    for (id, tool) in [(1, "slow"), (2, "asks")] {
        let tool = format!("{server}{tool}");
        bench.post(&headers("tools/call", &tool), &body(id, "tools/call", &format!(r#""name":"{tool}""#))).await;
    }
    let asking = &bench;
    let of_task = |method: &'static str| async move {
        let of_task = r#""taskId":"canary-task","inputResponses":{}"#;
        asking.post(&headers(method, "canary-task"), &body(3, method, of_task)).await.2
    };
    let round = |tool: &str| {
        let round = format!(r#""name":"{server}{tool}","requestState":"canary-state","inputResponses":{{}}"#);
        (format!("{server}{tool}"), body(4, "tools/call", &round))
    };
    let list = body(5, "tasks/list", "");
    let listed = bench.post(&headers("tasks/list", ""), &list).await.2;
    assert!(String::from_utf8_lossy(&listed).contains("canary-task"));
    // A round is of its call: a server might go on with that, and another one would be decided on.
    let (named, other) = round("echo");
    assert_eq!(code(&bench.post(&headers("tools/call", &named), &other).await.2), -32_602);

    put_in_force(&bench.access, &text.replace(ALL, &all_but("\"test/slow\", \"test/asks\"")));
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        assert_eq!(code(&of_task(method).await), 1_005, "{method}");
    }
    let (named, next) = round("asks");
    let of_round = headers("tools/call", &named);
    assert_eq!(code(&bench.post(&of_round, &next).await.2), 1_005);
    let listed = bench.post(&headers("tasks/list", ""), &list).await.2;
    assert!(!String::from_utf8_lossy(&listed).contains("canary"), "{listed:?}");

    put_in_force(&bench.access, &text);
    for method in ["tasks/update", "tasks/cancel", "tasks/get"] {
        assert_eq!(code(&of_task(method).await), Value::Null, "{method}");
    }
    assert_eq!(code(&bench.post(&of_round, &next).await.2), Value::Null);
    let denied: Vec<_> =
        bench.calls().await.iter().filter(|call| call.rule == "no").map(|call| summary(call).0).collect();
    assert_eq!(denied, ["tasks/get", "tasks/update", "tasks/cancel", "tools/call"]);
}

/// A server that acknowledges whatever is asked, and tells of both resources at once.
async fn telling_server() -> std::net::SocketAddr {
    async fn answer(_: HttpRequest) -> Answer {
        let told = |method: &str, params: &str| {
            format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/{method}\",\"params\":{{{params}}}}}\n\n")
        };
        let updated = |uri: &str| told("resources/updated", &format!("\"uri\":\"{uri}\""));
        let events = [told("subscriptions/acknowledged", ""), updated("of://b"), updated("of://a")].concat();
        let stream = tokio_stream::once(Ok::<_, std::convert::Infallible>(events)).chain(futures::stream::pending());
        let mut answer = Response::new(Body::from_stream(stream));
        answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
        answer
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

fn listen(uris: &str) -> String {
    body(1, "subscriptions/listen", &format!(r#""notifications":{{"resourceSubscriptions":[{uris}]}}"#))
}

#[tokio::test]
async fn nobody_listens_to_a_resource_that_they_may_not_subscribe_to() {
    let only_a = "[[rules]]\nid = \"a\"\neffect = \"allow\"\neveryone = true\ntools = [\"test/of://a\"]\nmethods = \
                  [\"resources/subscribe\"]\n";
    let (bench, text) = bench_of(telling_server().await, only_a, "/mcp/test").await;
    let of_listen = headers("subscriptions/listen", "");
    assert_eq!(code(&bench.post(&of_listen, &listen(r#""of://a","of://b""#)).await.2), 1_005);
    let many = (0..1_025).map(|_| r#""of://a""#).collect::<Vec<_>>().join(",");
    assert_eq!(code(&bench.post(&of_listen, &listen(&many)).await.2), 1_006);
    // A list that a server might read in another way.
    for odd in [r#"1"#, r#""of://a"],"ResourceSubscriptions":["of://b""#] {
        assert_eq!(bench.post(&of_listen, &listen(odd)).await.0, StatusCode::BAD_REQUEST, "{odd}");
    }
    let mut request = hyper::Request::post(format!("http://{}/mcp/test", bench.address));
    for (name, value) in &of_listen {
        request = request.header(*name, *value);
    }
    let request = request.header("authorization", &bench.token).body(Full::from(listen(r#""of://a""#))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut stream = within(client.request(request)).await.unwrap().into_body();
    let mut heard = String::new();
    while !heard.contains("of://a") {
        let frame = within(stream.frame()).await.unwrap().unwrap();
        heard += &String::from_utf8_lossy(&frame.into_data().unwrap());
    }
    assert!(heard.contains("acknowledged") && !heard.contains("of://b"), "{heard}");
    // What is open goes on only while all of it is allowed: the member may still reach the server.
    put_in_force(&bench.access, &text.replace("of://a", "of://c"));
    let rest = within(stream.collect()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&rest).contains("1007"), "{rest:?}");
    let calls = bench.calls().await;
    let seen: Vec<_> = calls.iter().map(|call| (summary(call).1, call.outcome())).collect();
    let none = String::new;
    assert_eq!(
        seen,
        [
            ("of://b".to_owned(), Outcome::Denied),
            (none(), Outcome::OverLimit),
            (none(), Outcome::Malformed),
            (none(), Outcome::Malformed),
            (none(), Outcome::Revoked),
        ]
    );
    // As a reader of the records holds it against the rules (FORMAT.md, 5.6): by the resource, not by the method.
    let rule = AccessRule {
        effect: Decision::Allowed as i32,
        tools: vec!["test/of://a".to_owned()],
        methods: vec!["resources/subscribe".to_owned()],
        ..AccessRule::default()
    };
    let (rules, member) = (Rules(vec![rule]), MemberId::try_from(calls[0].member.as_deref().unwrap()).unwrap());
    let decided = |method| rules.decide(&member, &[], "test", Some("of://b"), method);
    assert_eq!((calls[0].decision(), calls[0].rule.as_str()), decided("resources/subscribe"));
    assert_eq!(decided("subscriptions/listen").0, Decision::Allowed);
    let number = calls[4].extensions.iter().find(|one| one.key == "shim/resources").unwrap();
    assert_eq!(number.value, Some(wire::extension::Value::Number(1)));
}

/// What is answered without a server is for nobody else either: its head came before the change, and its body after.
#[tokio::test]
async fn whoever_is_nobody_any_more_has_no_answer_to_a_ping() {
    let (bench, text) = bench_of(server_of("a").await, ALL, "/mcp").await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let (_, headers, _) = bench.post(&[], HELLO).await;
    let session = super::text(&headers, SESSION).unwrap();
    let answer = bench.post(&[(SESSION, session)], ping).await.2;
    assert_eq!(answer, r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let member = format!("[members.{ALICE}]\n");
    let revoked = text.replace(&member, &format!("{member}revoked = true\n"));
    for (change, status) in [(text.replace(ALL, ""), "HTTP/1.1 200"), (revoked, "HTTP/1.1 401")] {
        put_in_force(&bench.access, &text);
        let mut stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
        let head = format!(
            "POST /mcp HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: {}\r\nmcp-session-id: \
             {session}\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            bench.token,
            ping.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // It goes on once the head was read, and who calls was looked at.
        let mut said = [0; 25];
        within(stream.read_exact(&mut said)).await.unwrap();
        put_in_force(&bench.access, &change);
        stream.write_all(ping.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(status) && !answer.contains("result"), "{answer}");
    }
    let refused: Vec<String> = refusals(&bench.calls().await).into_iter().map(|(rule, _)| rule).collect();
    assert_eq!(refused, ["shim/default-deny", "shim/revoked-token"]);
}
