//! Lists on their way to members, tools that change behind them, and arguments that do not fit: with a server whose list
//! changes.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use custody::wire::{DefinitionAction as Action, DefinitionChange as What};

use super::{
    members::{BOB, waits},
    *,
};

const MODERN: &[(&str, &str)] = &[(PROTOCOL, "2026-07-28")];

/// What the server lists, and how often it was asked for it and called.
#[derive(Default)]
struct Shop {
    result: Mutex<String>,
    events: std::sync::atomic::AtomicBool,
    listed: AtomicUsize,
    called: AtomicUsize,
}

impl Shop {
    fn lists(&self, result: &str) {
        result.clone_into(&mut self.result.lock().unwrap());
    }

    async fn open(result: &str) -> (Arc<Self>, String) {
        let shop = Arc::new(Self::default());
        shop.lists(result);
        let of_server = Arc::clone(&shop);
        let answer = move |request: HttpRequest| {
            let shop = Arc::clone(&of_server);
            async move { shop.answer(request).await }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
        (shop, format!("url = \"http://{address}/mcp\"\n"))
    }

    async fn answer(&self, request: HttpRequest) -> Answer {
        let who = text(request.headers(), "authorization").unwrap_or_default().to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let result = match value["method"].as_str().unwrap() {
            "tools/list" => {
                self.listed.fetch_add(1, Relaxed);
                self.result.lock().unwrap().replace("WHO", &who)
            }
            "tools/call" => {
                self.called.fetch_add(1, Relaxed);
                "{}".to_owned()
            }
            other => panic!("{other}"),
        };
        let message = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, value["id"]);
        if !self.events.load(Relaxed) {
            return json(StatusCode::OK, message.into());
        }
        let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        let stream = format!("id: 7\ndata: {changed}\n\nid: 8\nevent: message\ndata: {message}\n\n");
        sse(stream)
    }
}

fn request(id: u32, method: &str, params: &Value) -> String {
    let mut params = params.clone();
    params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28"});
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

/// With what the policy says of the server, and rules; the header of a second member.
async fn bench(url: &str, labels: &str, rules: &str) -> (Bench, String) {
    let (text, tokens) = policy(&[ALICE, BOB], &format!("[servers.test]\n{labels}\n{rules}"));
    let bench = Bench::with_access(url, waits(), Access::of(&text, None).unwrap(), tokens[0].clone()).await;
    (bench, tokens[1].clone())
}

impl Bench {
    async fn tools(&self, id: u32, token: &str) -> Value {
        let headers = [MODERN, &[("mcp-method", "tools/list"), ("authorization", token)]].concat();
        let (_, _, body) = self.post(&headers, &request(id, "tools/list", &json!({}))).await;
        serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{body:?}"))
    }

    async fn call(&self, tool: &str, arguments: &Value) -> Value {
        let headers = [MODERN, &[("mcp-method", "tools/call"), ("mcp-name", tool)]].concat();
        let body = request(9, "tools/call", &json!({"name": tool, "arguments": arguments}));
        serde_json::from_slice(&self.post(&headers, &body).await.2).unwrap()
    }
}

/// Tool, change, action.
type Told = (String, What, Action);

/// What was recorded of definitions: tool, change, action; and of calls: tool or method, rule, whether there is a digest.
fn told(records: &[Kind]) -> (Vec<Told>, Vec<(String, String, bool)>) {
    let mut definitions = Vec::new();
    let mut calls = Vec::new();
    for record in records {
        match record {
            Kind::ToolDefinition(one) => {
                let Some(wire::tool_definition::Target::Tool(tool)) = &one.target else { panic!("{one:?}") };
                definitions.push((tool.clone(), one.change(), one.action()));
            }
            Kind::Call(call) => {
                let (method, tool, ..) = summary(call);
                let named = if tool.is_empty() { method } else { tool };
                calls.push((named, call.rule.clone(), call.definition_digest.is_some()));
            }
            _ => {}
        }
    }
    (definitions, calls)
}

/// Alice may read, Bob may do all: each sees that, byte for byte, as an answer to the own request, and for itself alone. The
/// server is asked once, until it says that something has changed.
#[tokio::test]
async fn each_member_sees_what_it_may_call_and_the_server_is_asked_once() {
    let list = r#"{"resultType":"complete", "tools":[ {"name":"read","n":1.0e2} , {"name":"write"}],"ttlMs":600000,"cacheScope":"public"}"#;
    let (shop, url) = Shop::open(list).await;
    let rules = format!(
        "[[rules]]\nid = \"read\"\neffect = \"allow\"\nmembers = [\"{ALICE}\"]\ntools = [\"test/read\"]\n\
         [[rules]]\nid = \"all\"\neffect = \"allow\"\nmembers = [\"{BOB}\"]\ntools = [\"*\"]\n"
    );
    let (bench, bob) = bench(&url, "", &rules).await;
    let alice = bench.token.clone();
    let headers = [MODERN, &[("mcp-method", "tools/list")]].concat();
    let (_, _, raw) = bench.post(&headers, &request(1, "tools/list", &json!({}))).await;
    let expected = list.replace(r#" , {"name":"write"}"#, "").replace("public", "private");
    assert_eq!(raw, format!(r#"{{"jsonrpc":"2.0","id":1,"result":{expected}}}"#));
    let seen = bench.tools(2, &bob).await;
    assert_eq!((&seen["id"], seen["result"]["tools"].as_array().unwrap().len()), (&json!(2), 2));
    assert_eq!(seen["result"]["cacheScope"], "private");
    let left = seen["result"]["ttlMs"].as_u64().unwrap();
    assert!(left > 0 && left <= 600_000);
    assert_eq!(bench.tools(3, &alice).await["result"]["tools"].as_array().unwrap().len(), 1);
    assert_eq!(shop.listed.load(Relaxed), 1);
    // It says so on the stream that answers a call.
    shop.events.store(true, Relaxed);
    let headers = [MODERN, &[("mcp-method", "tools/call"), ("mcp-name", "read")]].concat();
    let (_, _, heard) = bench.post(&headers, &request(9, "tools/call", &json!({"name": "read"}))).await;
    assert!(String::from_utf8_lossy(&heard).contains("list_changed"));
    shop.events.store(false, Relaxed);
    let seen = bench.tools(4, &bob).await;
    assert_eq!((seen["result"]["tools"].as_array().unwrap().len(), shop.listed.load(Relaxed)), (2, 2));
    let (_, calls) = told(&bench.all_records().await);
    assert_eq!(calls.iter().filter(|(method, ..)| method == "tools/list").count(), 4, "{calls:?}");
}

/// Within a stream of events a list is cut as well, and what else the event is stays.
#[tokio::test]
async fn a_list_in_an_event_is_cut_as_well() {
    let (shop, url) = Shop::open(r#"{"tools":[{"name":"read"},{"name":"write"}]}"#).await;
    shop.events.store(true, Relaxed);
    let rules = "[[rules]]\nid = \"read\"\neffect = \"allow\"\neveryone = true\ntools = [\"test/read\"]\n";
    let (bench, _) = bench(&url, "", rules).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    let (_, _, raw) = bench.post(&[(PROTOCOL, "2025-11-25")], body).await;
    let raw = String::from_utf8_lossy(&raw).into_owned();
    assert!(raw.contains("id: 8\n") && raw.contains("event: message\n"), "{raw}");
    assert!(raw.contains(r#"data: {"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read"}]}}"#), "{raw}");
    assert!(!raw.contains("write"));
}

/// Called before anybody listed it: the shim asks for the list itself, on record, and the call names the definition.
#[tokio::test]
async fn a_tool_is_pinned_before_it_is_called_for_the_first_time() {
    let (shop, url) = Shop::open(r#"{"tools":[{"name":"read"}]}"#).await;
    let (bench, _) = bench(&url, "", ALL).await;
    for _ in 0..2 {
        assert!(bench.call("read", &json!({})).await["result"].is_object());
    }
    assert!(bench.call("unheard", &json!({})).await["result"].is_object());
    assert_eq!((shop.listed.load(Relaxed), shop.called.load(Relaxed)), (1, 3));
    let (definitions, calls) = told(&bench.all_records().await);
    assert_eq!(definitions, [("read".to_owned(), What::Seen, Action::Pinned)]);
    let of = |named: &str, rule: &str, has: bool| (named.to_owned(), rule.to_owned(), has);
    let expected = [
        of("tools/list", "shim/own", false),
        of("read", "all", true),
        of("read", "all", true),
        of("unheard", "all", false),
    ];
    let mut calls = calls;
    calls.sort();
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(calls, expected);
}

/// A server that says in its tools whose mailbox they are for has not changed them when another member asks.
#[tokio::test]
async fn what_is_listed_with_one_credential_is_no_change_for_another() {
    let (_shop, url) = Shop::open(r#"{"tools":[{"name":"send","description":"as WHO"}]}"#).await;
    let secrets = TempDir::new();
    for member in [ALICE, BOB] {
        durable::replace(&secrets.path().join(member), format!("of-{member}\n").as_bytes()).unwrap();
    }
    let url = format!("{url}credentials = {:?}\n", secrets.path());
    let (bench, bob) = bench(&url, "on_change = \"quarantine\"", ALL).await;
    let token = bench.token.clone();
    for id in 0..2 {
        for token in [&token, &bob] {
            let tools = bench.tools(id, token).await["result"]["tools"].clone();
            assert_eq!(tools.as_array().map(Vec::len), Some(1), "{tools}");
        }
        assert!(bench.call("send", &json!({})).await["result"].is_object());
    }
    let (definitions, _) = told(&bench.all_records().await);
    let sent: Vec<_> = definitions.into_iter().map(|(_, what, action)| (what, action)).collect();
    assert_eq!(sent, [(What::Seen, Action::Pinned); 2]);
}

#[tokio::test]
async fn a_changed_tool_reaches_nobody_until_it_is_accepted() {
    let (shop, url) = Shop::open(r#"{"tools":[{"name":"send"},{"name":"read"}]}"#).await;
    let (bench, _) = bench(&url, "on_change = \"quarantine\"", ALL).await;
    let token = bench.token.clone();
    assert!(bench.call("send", &json!({})).await["result"].is_object());
    shop.lists(r#"{"tools":[{"name":"send","description":"and to me as well"},{"name":"read"}]}"#);
    assert_eq!(bench.tools(1, &token).await["result"]["tools"], json!([{"name": "read"}]));
    let called = shop.called.load(Relaxed);
    for _ in 0..2 {
        assert_eq!(bench.call("send", &json!({})).await["error"]["code"], 1_011);
    }
    assert_eq!(shop.called.load(Relaxed), called, "it has reached the server");
    let (actor, code, ticket) = (access::Actor::System("review".into()), "reviewed".into(), String::new());
    let why = access::Reason { actor, code, ticket, account: None };
    bench.front.catalog().accept("test", "send", None, &why).await.unwrap();
    assert_eq!(bench.tools(2, &token).await["result"]["tools"].as_array().unwrap().len(), 2);
    assert!(bench.call("send", &json!({})).await["result"].is_object());
    shop.lists(r#"{"tools":[{"name":"read"}]}"#);
    bench.tools(3, &token).await;
    assert_eq!(bench.call("send", &json!({})).await["error"]["code"], 1_011);
    let (definitions, calls) = told(&bench.all_records().await);
    let sent: Vec<_> = definitions.into_iter().filter(|(tool, ..)| tool == "send").map(|(_, a, b)| (a, b)).collect();
    let expected = [
        (What::Seen, Action::Pinned),
        (What::Changed, Action::Quarantined),
        (What::Changed, Action::Accepted),
        (What::Vanished, Action::Quarantined),
    ];
    assert_eq!(sent, expected);
    assert_eq!(
        calls.iter().filter(|(tool, rule, _)| (tool.as_str(), rule.as_str()) == ("send", "shim/quarantined")).count(),
        3
    );
}

#[tokio::test]
async fn arguments_that_do_not_fit_reach_no_server() {
    let schema = json!({"properties": {"a\"b": {"type": "integer"}}, "additionalProperties": false});
    let list = json!({"tools": [{"name": "read", "inputSchema": schema}]}).to_string();
    let (shop, url) = Shop::open(&list).await;
    let (bench, _) = bench(&url, "check_arguments = true", ALL).await;
    assert!(bench.call("read", &json!({"a\"b": 1})).await["result"].is_object());
    let refused = bench.call("read", &json!({"a\"b": "canary"})).await;
    assert_eq!(refused["error"]["code"], 1_012);
    let text = refused["error"]["message"].as_str().unwrap();
    assert!(text.ends_with("at /properties/a\"b/type") && !text.contains("canary"), "{text}");
    assert_eq!(bench.call("read", &json!({"canary": 1})).await["error"]["code"], 1_012);
    assert_eq!(shop.called.load(Relaxed), 1);
    let (_, calls) = told(&bench.all_records().await);
    assert_eq!(calls.iter().filter(|(_, rule, _)| rule == "shim/schema").count(), 2, "{calls:?}");
}

/// Another reader might find in it what this member may not see.
#[tokio::test]
async fn a_list_that_may_be_read_in_two_ways_does_not_pass() {
    let (_, url) = Shop::open(r#"{"tools":[],"Tools":[{"name":"canary"}]}"#).await;
    let (bench, _) = bench(&url, "", ALL).await;
    let token = bench.token.clone();
    let seen = bench.tools(1, &token).await;
    assert_eq!((&seen["error"]["code"], seen.to_string().contains("canary")), (&json!(1_009), false));
    let records = bench.all_records().await;
    let outcome = records.iter().find_map(|kind| match kind {
        Kind::Call(call) => Some(call.outcome()),
        _ => None,
    });
    assert_eq!(outcome, Some(Outcome::Malformed));
}
