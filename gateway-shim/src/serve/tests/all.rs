//! All servers behind one URL: names, lists, sessions, and requests of servers, in both eras.

use super::{
    members::{refusals, waits},
    modern::headers,
    *,
};

/// A server of both eras with one tool besides `echo`, which it is asked by its own name, and resources.
pub(super) async fn server_of(own: &'static str) -> std::net::SocketAddr {
    let answer = move |request: HttpRequest| async move {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        if parts.method == Method::DELETE {
            return Response::new(Body::empty());
        }
        let value: Value = serde_json::from_slice(&body).unwrap();
        let result = match (value["method"].as_str().unwrap_or_default(), value["params"]["cursor"].as_str()) {
            ("initialize", _) => json!({"protocolVersion":"2025-06-18"}),
            ("server/discover", _) => json!({"supportedVersions":["2026-07-28"]}),
            ("tools/list", None) => json!({"tools":[{"name":"echo","x":1.50}],"nextCursor":"more"}),
            ("tools/list", Some("more")) => json!({"tools":[{"name":own}]}),
            ("resources/list", _) => json!({"resources":[{"uri":format!("of://{own}/a"),"name":"a"}]}),
            ("resources/read" | "tools/call", _) => json!({"server":own,"body":String::from_utf8_lossy(&body),
                "version":parts.headers.get(PROTOCOL).map(|value| value.to_str().unwrap())}),
            _ => {
                let mut answer = Response::new(Body::empty());
                *answer.status_mut() = StatusCode::ACCEPTED;
                return answer;
            }
        };
        let asks = value["params"]["name"] == "asks";
        let text = json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string();
        let mut answer = match asks {
            true => {
                let asked = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;
                sse(format!("data: {asked}\n\ndata: {text}\n\n"))
            }
            false => json(StatusCode::OK, text.into()),
        };
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

/// Two servers, `a` and `b`, and these rules.
async fn bench_of(rules: &str) -> Bench {
    let (text, tokens) = policy(&[ALICE], rules);
    let access = Access::of(&text, None).unwrap();
    let mut servers = BTreeMap::new();
    for name in ["a", "b"] {
        let url = format!("url = \"http://{}/mcp\"\n", server_of(name).await);
        servers.insert(name.to_owned(), toml::from_str(&url).unwrap());
    }
    Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await
}

pub(super) fn value(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(body)))
}

fn names(list: &Value) -> Vec<String> {
    list["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn one_session_reaches_every_server_and_each_is_asked_in_its_own() {
    let bench = bench_of(ALL).await;
    let discover = r#"{"jsonrpc":"2.0","id":0,"method":"server/discover"}"#;
    assert_eq!(bench.post(&[], discover).await.0, StatusCode::BAD_REQUEST, "a client of both eras begins a session");
    let (status, answer, body) = bench.post(&[], HELLO).await;
    assert_eq!((status, &value(&body)["result"]["protocolVersion"]), (StatusCode::OK, &json!("2025-11-25")));
    let session = text(&answer, SESSION).unwrap().to_owned();
    let of_session = [(SESSION, session.as_str()), (PROTOCOL, "2025-11-25")];
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let (_, _, body) = bench.post(&of_session, list).await;
    assert_eq!(names(&value(&body)), ["a__echo", "a__a", "b__echo", "b__b"]);
    assert!(String::from_utf8_lossy(&body).contains("1.50") || String::from_utf8_lossy(&body).contains("1.5"));
    // Only the name changes, and each server hears the version that it chose.
    let call =
        r#"{"jsonrpc":"2.0", "id" : 2,"method":"tools/call","params":{"arguments":{"n":1.0e1},"name":"b__echo"}}"#;
    let (_, headers, body) = bench.post(&of_session, call).await;
    let said = value(&body)["result"].clone();
    assert_eq!(said["body"], call.replace("b__echo", "echo"));
    assert_eq!((&said["server"], &said["version"]), (&json!("b"), &json!("2025-06-18")));
    assert_eq!(text(&headers, SESSION), Some(session.as_str()));
    for (id, name) in ["c__echo", "echo", ""].into_iter().enumerate() {
        let (_, _, body) = bench.post(&of_session, &tool_call(u32::try_from(id).unwrap(), name)).await;
        assert_eq!(value(&body)["error"]["code"], -32_602, "{name}");
    }
    let page = r#"{"jsonrpc":"2.0","id":6,"method":"tools/list","params":{"cursor":"of nobody"}}"#;
    assert_eq!(value(&bench.post(&of_session, page).await.2)["error"]["code"], -32_602);
    // A resource is where it was listed.
    let list = r#"{"jsonrpc":"2.0","id":3,"method":"resources/list"}"#;
    assert_eq!(value(&bench.post(&of_session, list).await.2)["result"]["resources"].as_array().unwrap().len(), 2);
    let read = r#"{"jsonrpc":"2.0","id":4,"method":"resources/read","params":{"uri":"of://b/a"}}"#;
    assert_eq!(value(&bench.post(&of_session, read).await.2)["result"]["server"], "b");
    // What a server asks has an id of its own, and its answer comes back.
    let (_, _, body) = bench.post(&of_session, &tool_call(5, "b__asks")).await;
    assert!(String::from_utf8_lossy(&body).contains(r#""id":"b__1""#), "{body:?}");
    let answer = r#"{"jsonrpc":"2.0","id":"b__1","result":{"roots":[]}}"#;
    assert_eq!(bench.post(&of_session, answer).await.0, StatusCode::ACCEPTED);
    assert_eq!(bench.send(Method::PUT, &of_session, "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(bench.send(Method::DELETE, &of_session, "").await.0, StatusCode::OK);
    assert_eq!(bench.post(&of_session, list).await.0, StatusCode::NOT_FOUND);
    let calls = bench.calls().await;
    let at = |server: &str, method: &str, tool: &str| {
        let found = calls.iter().filter(|call| {
            let (of, name, ..) = summary(call);
            (call.server.as_str(), of.as_str(), name.as_str()) == (server, method, tool)
        });
        found.map(wire::Call::outcome).collect::<Vec<_>>()
    };
    assert_eq!(at("b", "tools/call", "echo"), [Outcome::Ok]);
    // What no server has is refused here, and that is on record as well.
    assert_eq!(at("", "tools/call", "c__echo"), [Outcome::Denied]);
    assert_eq!((at("a", "initialize", ""), at("b", "initialize", "")), (vec![Outcome::Ok], vec![Outcome::Ok]));
    assert_eq!(at("b", "roots/list", ""), [Outcome::Ok]);
    assert_eq!(at("b", "DELETE", ""), [Outcome::Ok]);
}

/// Each server's own rules hold, as at its own address.
#[tokio::test]
async fn a_member_reaches_only_what_the_policy_allows_and_sees_no_other_server() {
    let only_a = "[[rules]]\nid = \"a\"\neffect = \"allow\"\neveryone = true\ntools = [\"a/echo\"]\n";
    let bench = bench_of(only_a).await;
    let (_, answer, _) = bench.post(&[], HELLO).await;
    let of_session = [(SESSION, text(&answer, SESSION).unwrap()), (PROTOCOL, "2025-11-25")];
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let (_, _, body) = bench.post(&of_session, list).await;
    assert!(names(&value(&body)).iter().all(|name| name.starts_with("a__")), "{body:?}");
    for (name, code) in [("a__a", 1_005), ("b__echo", 1_005)] {
        let (_, _, body) = bench.post(&of_session, &tool_call(2, name)).await;
        assert_eq!(value(&body)["error"]["code"], code, "{name}");
    }
    let (_, _, body) = bench.post(&of_session, &tool_call(3, "a__echo")).await;
    assert_eq!(value(&body)["result"]["server"], "a");
    assert!(refusals(&bench.calls().await).iter().all(|(rule, _)| rule == "shim/default-deny"));
}

#[tokio::test]
async fn without_sessions_all_are_one_when_every_server_speaks_so() {
    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let bench = bench_of(ALL).await;
    let ask = |method: &str, more: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{META}{more}}}}}"#)
    };
    let (status, _, body) = bench.post(&headers("server/discover", ""), &ask("server/discover", "")).await;
    assert_eq!((status, &value(&body)["result"]["supportedVersions"]), (StatusCode::OK, &json!(["2026-07-28"])));
    let (_, answer, body) = bench.post(&headers("tools/list", ""), &ask("tools/list", "")).await;
    let list = value(&body);
    assert_eq!((names(&list).len(), &list["result"]["cacheScope"]), (4, &json!("private")));
    assert!(!answer.contains_key(SESSION));
    // The header that repeats the name is as the body is.
    let call = ask("tools/call", r#","name":"a__läse""#);
    let (status, _, body) = bench.post(&headers("tools/call", "=?base64?YV9fbMOkc2U=?="), &call).await;
    assert_eq!((status, &value(&body)["result"]["body"]), (StatusCode::OK, &json!(call.replace("a__läse", "läse"))));
    assert!(refusals(&bench.calls().await).is_empty());
}

/// A server may list without end: no more is read than one answer has room for, and the list goes on behind a cursor.
#[tokio::test]
async fn of_a_list_without_end_no_more_is_read_than_is_shown() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let of_server = Arc::clone(&asked);
    let answer = move |request: HttpRequest| {
        let asked = Arc::clone(&of_server);
        async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap();
            let result = match value["method"].as_str() {
                Some("prompts/list") => {
                    let page = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let prompts: Vec<_> = (0..1_500).map(|number| json!({"name": format!("p{number}")})).collect();
                    json!({"prompts": prompts, "nextCursor": page.to_string()})
                }
                _ => json!({"protocolVersion": "2025-11-25"}),
            };
            json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string().into())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("url = \"http://{}/mcp\"\n", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    let (policy, tokens) = policy(&[ALICE], ALL);
    let servers = [("a".to_owned(), toml::from_str(&url).unwrap())].into();
    let access = Access::of(&policy, None).unwrap();
    let bench = Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await;
    let (_, answer, _) = bench.post(&[], HELLO).await;
    let of_session = [(SESSION, text(&answer, SESSION).unwrap()), (PROTOCOL, "2025-11-25")];
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"prompts/list"}"#;
    let listed = value(&bench.post(&of_session, list).await.2);
    assert_eq!(listed["result"]["prompts"].as_array().unwrap().len(), 3_000);
    assert_eq!(listed["result"]["nextCursor"], json!("a__\"1\""));
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 3);
}

/// Servers whose long lists are there first take nothing from the list of one that comes before them by name.
#[tokio::test]
async fn no_server_crowds_another_out_of_the_list() {
    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let are_there = Arc::new(tokio::sync::Semaphore::new(0));
    let mut servers = BTreeMap::new();
    for (name, prompts) in [("a", 20), ("b", 82), ("c", 82)] {
        let are_there = Arc::clone(&are_there);
        let answer = move |request: HttpRequest| {
            let are_there = Arc::clone(&are_there);
            async move {
                let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
                let value: Value = serde_json::from_slice(&body).unwrap();
                let page = |prompts, next: Value| {
                    let prompt = json!({"name": "p", "description": "x".repeat(100_000)});
                    json!({"prompts": vec![prompt; prompts], "nextCursor": next})
                };
                let result = match (name, value["params"]["cursor"].is_string()) {
                    ("a", _) => {
                        drop(are_there.acquire_many(2).await.unwrap());
                        page(prompts, Value::Null)
                    }
                    (_, false) => page(prompts, json!("more")),
                    // Its first page has its room by now.
                    (_, true) => {
                        are_there.add_permits(1);
                        page(0, Value::Null)
                    }
                };
                json(StatusCode::OK, json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string().into())
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("url = \"http://{}/mcp\"\n", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
        servers.insert(name.to_owned(), toml::from_str(&url).unwrap());
    }
    let (policy, tokens) = policy(&[ALICE], ALL);
    let access = Access::of(&policy, None).unwrap();
    let bench = Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await;
    let mut listed = Vec::new();
    for cursor in ["", r#","cursor":"b__""#, r#","cursor":"c__""#] {
        let list = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"prompts/list","params":{{{META}{cursor}}}}}"#);
        let said = value(&bench.post(&headers("prompts/list", ""), &list).await.2);
        listed.push((said["result"]["prompts"].as_array().unwrap().len(), said["result"]["nextCursor"].clone()));
    }
    assert_eq!(listed, [(20, json!("b__")), (82, json!("c__")), (82, Value::Null)]);
}

/// Only what a server says to the shim's own question tells its era, and only if that is that it does not know it.
#[tokio::test]
async fn no_client_tells_the_others_that_a_server_speaks_with_sessions_alone() {
    let answer = |code: i32| {
        any(move |request: HttpRequest| async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let value: Value = serde_json::from_slice(&body).unwrap();
            let has_all = value["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"].is_object();
            let said = match value["method"].as_str() {
                Some("server/discover") if code != 0 || !has_all => {
                    json!({"jsonrpc":"2.0","id":value["id"],"error":{"code":code.min(-1),"message":"m"}})
                }
                _ => json!({"jsonrpc":"2.0","id":value["id"],"result":{}}),
            };
            json(StatusCode::OK, said.to_string().into())
        })
    };
    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
    let ask = |method: &str, more: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{META}{more}}}}}"#)
    };
    // One that speaks so, one that wants something else now, and one that does not know it.
    for (code, discovered, called) in [
        (0, StatusCode::OK, "result"),
        (-32_602, StatusCode::BAD_REQUEST, "result"),
        (-32_601, StatusCode::BAD_REQUEST, "error"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("url = \"http://{}/mcp\"\n", listener.local_addr().unwrap());
        let router = Router::new().route("/mcp", answer(code));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (policy, tokens) = policy(&[ALICE], ALL);
        let servers = [("a".to_owned(), toml::from_str(&url).unwrap())].into();
        let access = Access::of(&policy, None).unwrap();
        let bench = Bench::with_servers(servers, waits(), access, tokens[0].clone(), "/mcp").await;
        let (status, ..) = bench.post(&headers("server/discover", ""), &ask("server/discover", "")).await;
        assert_eq!(status, discovered, "{code}");
        let call = ask("tools/call", r#","name":"a__x""#);
        let said = value(&bench.post(&headers("tools/call", "a__x"), &call).await.2);
        assert!(said[called].is_object(), "{code}: {said}");
    }
}
