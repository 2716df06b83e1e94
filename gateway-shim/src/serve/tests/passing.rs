//! What passes between client and server is read by both as it was read here; and who is nobody any more gets nothing through.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    members::{refusals, waits},
    modern::headers,
    *,
};
use crate::access::tests::put_in_force;

const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
/// What a client is asked for that no rule allows.
const ASKS: &str = r#"{"jsonrpc":"2.0","id":9,"method":"sampling/createMessage","params":{}}"#;
const TOOLS: &str = "[[rules]]\nid = \"tools\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n";

fn call(id: u32, tool: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{{META},"name":"{tool}","arguments":{{}}}}}}"#
    )
}

/// What the server answers next: status, headers, body.
type Reply = (u16, Vec<(&'static str, &'static [u8])>, String);

/// A server that answers with anything, and notes what it heard: headers and body.
#[derive(Default)]
struct Evil {
    reply: Mutex<Reply>,
    heard: Mutex<Vec<(HeaderMap, String)>>,
}

impl Evil {
    async fn open() -> (Arc<Self>, String) {
        let evil = Arc::new(Self::default());
        let of_server = Arc::clone(&evil);
        let answer = move |request: HttpRequest| {
            let evil = Arc::clone(&of_server);
            async move { evil.answer(request).await }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
        (evil, format!("url = \"http://{address}/mcp\"\n"))
    }

    fn answers(&self, status: u16, headers: Vec<(&'static str, &'static [u8])>, body: impl Into<String>) {
        *self.reply.lock().unwrap() = (status, headers, body.into());
    }

    fn calls(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    async fn answer(&self, request: HttpRequest) -> Answer {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        // The shim itself asks what there is.
        if text.contains("tools/list") {
            let value: Value = serde_json::from_str(&text).unwrap();
            let schema = json!({"type": "object", "required": ["x"]});
            let tools = json!([{"name": "held", "inputSchema": schema}]);
            let list = json!({"jsonrpc": "2.0", "id": value["id"], "result": {"tools": tools}});
            return json(StatusCode::OK, list.to_string().into());
        }
        self.heard.lock().unwrap().push((parts.headers, text));
        let (status, headers, body) = self.reply.lock().unwrap().clone();
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(name, value);
        }
        answer.body(Body::from(body)).unwrap()
    }
}

/// The bench, the policy's text, and the server.
async fn evil_bench(rules: &str) -> (Bench, String, Arc<Evil>) {
    let (evil, url) = Evil::open().await;
    let (text, tokens) = policy(&[ALICE], rules);
    let access = Access::of(&text, None).unwrap();
    (Bench::with_access(&url, waits(), access, tokens[0].clone()).await, text, evil)
}

/// Compressed, in another charset, under a type that this reads and others do not: a client might find a request in it that
/// nobody decided on.
#[tokio::test]
async fn an_answer_that_a_client_might_read_in_another_way_does_not_pass() {
    let (bench, _, evil) = evil_bench(TOOLS).await;
    let events = format!("data: {ASKS}\n\n");
    let odd: [Vec<(&str, &[u8])>; 7] = [
        vec![("content-type", b"text/event-stream"), ("content-encoding", b"gzip")],
        vec![("content-type", b"text/event-stream; x=\xe9")],
        vec![("content-type", b"text/event-stream; charset=utf-7")],
        vec![("content-type", b"text/plain")],
        vec![("content-type", b"application/json; charset=utf-16")],
        vec![("content-type", b"application/json"), ("content-type", b"text/event-stream")],
        vec![],
    ];
    let count = odd.len();
    for headers_of_answer in odd {
        evil.answers(200, headers_of_answer.clone(), events.clone());
        let (status, _, body) = bench.post(&headers("tools/call", "a"), &call(1, "a")).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{headers_of_answer:?}");
        assert!(!text.contains("sampling") && text.contains("1009"), "{headers_of_answer:?} {text}");
        let (status, _, body) = bench.send(Method::GET, &[(PROTOCOL, "2025-11-25")], "").await;
        assert!(status == StatusCode::BAD_GATEWAY && !String::from_utf8_lossy(&body).contains("sampling"));
    }
    // Nor a request in the place of an answer, be it one that is only counted.
    evil.answers(200, vec![("content-type", b"application/json")], ASKS);
    let ping = format!(r#"{{"jsonrpc":"2.0","id":9,"method":"ping","params":{{{META}}}}}"#);
    for (method, name, body) in [("ping", "", ping), ("tools/call", "a", call(1, "a"))] {
        let (status, _, body) = bench.post(&headers(method, name), &body).await;
        assert!(status == StatusCode::BAD_GATEWAY && !String::from_utf8_lossy(&body).contains("sampling"), "{method}");
    }
    let calls = bench.calls().await;
    assert_eq!(calls.iter().filter(|call| call.outcome() == Outcome::TransportError).count(), 2 * count + 1);
}

/// A client follows a redirection with its token: to another server here, for a call that nobody decided on.
#[tokio::test]
async fn a_redirection_does_not_pass() {
    let (bench, _, evil) = evil_bench(ALL).await;
    evil.answers(307, vec![("location", b"/mcp/files")], "");
    let (status, seen, _) = bench.post(&headers("tools/call", "a"), &call(1, "a")).await;
    assert!(status == StatusCode::BAD_GATEWAY && !seen.contains_key(header::LOCATION));
    let calls = bench.calls().await;
    assert_eq!((calls[0].outcome(), calls[0].error_code), (Outcome::HttpError, Some(307)));
}

/// What the body means is not said by its client: the server reads it as it was read here.
#[tokio::test]
async fn a_request_goes_on_as_what_it_was_read_as() {
    let (bench, _, evil) = evil_bench(ALL).await;
    evil.answers(200, vec![("content-type", b"application/json")], r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let said = [
        ("content-type", "application/json; charset=utf-7"),
        ("content-encoding", "gzip"),
        ("x-forwarded-user", "admin"),
    ];
    let sent = [&headers("tools/call", "a")[..], &said].concat();
    assert_eq!(bench.send(Method::POST, &sent, &call(1, "a")).await.0, StatusCode::OK);
    let (heard, _) = evil.heard.lock().unwrap()[0].clone();
    assert_eq!(text(&heard, "content-type"), Some("application/json"));
    assert!(!heard.contains_key("content-encoding") && !heard.contains_key("x-forwarded-user"), "{heard:?}");
    assert_eq!(text(&heard, "mcp-name"), Some("a"));
}

/// A request whose head came before its member was revoked, and whose body after.
#[tokio::test]
async fn whoever_is_nobody_any_more_gets_nothing_through() {
    let rules = "[[rules]]\nid = \"staff\"\neffect = \"allow\"\ngroups = [\"staff\"]\ntools = [\"*\"]\n";
    let (bench, text, evil) = evil_bench(rules).await;
    let member = format!("[members.{ALICE}]\n");
    let staff = text.replace(&member, &format!("{member}groups = [\"staff\"]\n"));
    let (body, uri) = (call(1, "a"), "/mcp/test");
    evil.answers(200, vec![("content-type", b"application/json")], r#"{"jsonrpc":"2.0","id":1,"result":{}}"#);
    let changes = [
        ("shim/revoked-token", staff.replace(&member, &format!("{member}revoked = true\n"))),
        ("shim/revoked-token", format!("{staff}revoked = true\n")),
        ("shim/default-deny", text.clone()),
    ];
    for (_, change) in &changes {
        put_in_force(&bench.access, &staff);
        let mut stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
        let (first, rest) = body.split_at(9);
        let head = format!(
            "POST {uri} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: {}\r\nmcp-protocol-version: \
             2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: a\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            bench.token,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // It goes on once the head was read, and who calls was looked at.
        let mut said = [0; 25];
        within(stream.read_exact(&mut said)).await.unwrap();
        assert!(said.starts_with(b"HTTP/1.1 100"), "{}", said.escape_ascii());
        stream.write_all(first.as_bytes()).await.unwrap();
        put_in_force(&bench.access, change);
        stream.write_all(rest.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.contains("error") && !answer.contains("result"), "{answer}");
    }
    assert_eq!(evil.calls(), 0, "a call went on");
    let refused: Vec<String> = refusals(&bench.calls().await).into_iter().map(|(rule, _)| rule).collect();
    assert_eq!(refused, changes.map(|(rule, _)| rule));
}

/// What a client says is an answer reaches the server only if that has asked.
#[tokio::test]
async fn an_answer_to_nothing_goes_no_further() {
    let (bench, _, evil) = evil_bench(ALL).await;
    evil.answers(
        200,
        vec![("content-type", b"application/json"), (SESSION, b"one")],
        r#"{"jsonrpc":"2.0","id":0,"result":{}}"#,
    );
    bench.post(&[], HELLO).await;
    let session = [(SESSION, "one"), (PROTOCOL, "2025-11-25")];
    let (status, _, _) = bench.post(&session, r#"{"jsonrpc":"2.0","id":"x0","result":{"secret":1}}"#).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    // What stands twice, or in characters that nobody sees, is read as one or the other by whoever is behind.
    for twice in [[(SESSION, "one"), (SESSION, "two")], [(SESSION, "one"), (PROTOCOL, "\u{e9}")]] {
        let (status, _, _) = bench.post(&twice, &call(3, "a")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(evil.calls(), 1);
    let refused = refusals(&bench.calls().await);
    assert!(refused.len() == 3 && refused.iter().all(|(rule, _)| rule == "shim/malformed"), "{refused:?}");
}

/// What continues a task has no arguments of its own to be held against the tool's schema.
#[tokio::test]
async fn a_task_of_a_server_whose_arguments_are_checked_goes_on() {
    let (bench, _, evil) = evil_bench(&format!("[servers.test]\ncheck_arguments = true\n{ALL}")).await;
    let task = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","taskId":"t","status":"working"}}"#;
    evil.answers(200, vec![("content-type", b"application/json")], task);
    let held = call(1, "held").replace(r#""arguments":{}"#, r#""arguments":{"x":1}"#);
    assert_eq!(bench.post(&headers("tools/call", "held"), &held).await.0, StatusCode::OK);
    let get = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{{{META},"taskId":"t"}}}}"#);
    let (_, _, answer) = bench.post(&headers("tasks/get", ""), &get).await;
    assert!(String::from_utf8_lossy(&answer).contains("working"), "{answer:?}");
    assert_eq!(evil.calls(), 2);
}
