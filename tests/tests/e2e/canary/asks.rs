//! What clients ask that say canaries wherever a client may say anything: what passes, and every kind of refusal.

use std::{net::SocketAddr, sync::Arc};

use custody_tests::{
    canary::{CORE, canary},
    http::{self, Heard},
};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::server::Seen;

/// More than one request may have (`serve.request_kib_max` of the test).
const TOO_LONG: usize = 80 << 10;
const VERSION: &str = "2026-07-28";

/// A client with a token.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) at: SocketAddr,
    pub(super) token: String,
}

/// The name of a tool with which its server does this.
pub(super) fn tool(word: &str) -> String {
    format!("{word} {}", canary("tool"))
}

fn capabilities() -> Value {
    json!({"extensions": {"io.modelcontextprotocol/tasks": {}}, canary("capability"): {}})
}

impl Client {
    /// A request with headers that all have canaries in them, and these.
    async fn ask(&self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Heard {
        let [agent, cookie, id, param, trace] =
            ["user-agent", "cookie", "request-id", "param", "traceparent"].map(canary);
        let cookie = format!("session={cookie}");
        let mut headers = vec![
            ("accept", "application/json, text/event-stream"),
            ("content-type", "application/json"),
            ("user-agent", agent.as_str()),
            ("cookie", cookie.as_str()),
            ("x-request-id", id.as_str()),
            ("mcp-param-region", param.as_str()),
            ("traceparent", trace.as_str()),
            ("kanarie7f3a-header", "1"),
        ];
        let named = more.iter().any(|(name, _)| *name == "authorization");
        headers.extend((!named).then_some(("authorization", self.token.as_str())));
        headers.extend(more.iter().filter(|(_, value)| !value.is_empty()));
        http::ask(self.at, method, path, &headers, body.as_bytes()).await.unwrap()
    }

    async fn post(&self, path: &str, more: &[(&str, &str)], body: &Value) -> Heard {
        self.ask("POST", path, more, &body.to_string()).await
    }

    /// Begins a session at a server; its id.
    async fn begin(&self, path: &str) -> String {
        let hello = json!({"jsonrpc": "2.0", "id": canary("id"), "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {canary("capability"): {}},
            "clientInfo": {"name": canary("client"), "version": canary("client-version"), "title": canary("client")}}});
        let answer = self.post(path, &[], &hello).await;
        let session = answer.header("mcp-session-id").unwrap_or_else(|| panic!("no session: {answer:?}")).to_owned();
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized", "params": {"x": canary("params")}});
        self.post(path, &[("mcp-session-id", &session)], &ready).await;
        session
    }

    /// A call within a session, with more members of its parameters.
    async fn call(&self, path: &str, session: &str, tool: &str, id: &Value) -> Heard {
        let body = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {
            "name": tool, "arguments": {"secret": canary("argument"), canary("argument-key"): [1]},
            "_meta": {"progressToken": canary("progress-token"), "traceparent": canary("trace"),
                "tracestate": canary("trace"), canary("meta"): canary("meta")}}});
        self.post(path, &[("mcp-session-id", session)], &body).await
    }

    /// A request of 2026-07-28. `name`: what it is about, also in its header.
    async fn modern(&self, path: &str, method: &str, name: (&str, &str), more: &Value) -> Heard {
        let mut params = json!({"_meta": {"io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": capabilities(),
            "io.modelcontextprotocol/clientInfo": {"name": canary("client"), "version": canary("client-version")},
            "progressToken": canary("progress-token"), "baggage": canary("baggage")}});
        if let (Some(params), Some(more)) = (params.as_object_mut(), more.as_object()) {
            params.extend(more.clone());
            params.extend((!name.0.is_empty()).then(|| (name.0.to_owned(), name.1.into())));
        }
        let body = json!({"jsonrpc": "2.0", "id": canary("id"), "method": method, "params": params});
        let headers = [("mcp-protocol-version", VERSION), ("mcp-method", method), ("mcp-name", name.1)];
        self.post(path, &headers, &body).await
    }

    /// All that may pass in a session at a server over HTTP.
    pub(super) async fn legacy(&self, seen: &Arc<Seen>) {
        let session = self.begin("/mcp/web").await;
        let of_session = [("mcp-session-id", session.as_str()), ("last-event-id", "kanarie7f3a-event~")];
        let listed = self
            .post(
                "/mcp/web",
                &of_session,
                &json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list",
            "params": {"cursor": canary("cursor")}}),
            )
            .await;
        assert!(listed.text().contains(&canary("description")), "{listed:?}");
        for word in [
            "echo",
            "fails",
            "receipt",
            "streams",
            "rpc-error",
            "http-error",
            "unauthorized",
            "no-json",
            "other-id",
            "breaks",
            "unlisted",
            "denied",
            "limited",
        ] {
            let answer = self.call("/mcp/web", &session, &tool(word), &json!(canary(word))).await;
            let passes = ["echo", "fails", "receipt", "streams", "rpc-error", "http-error"].contains(&word);
            assert!(!passes || answer.text().contains(CORE), "{word}: {answer:?}");
        }
        self.call("/mcp/web", &session, super::CONTROL, &json!(1)).await;
        for (method, name) in [("resources/read", "uri"), ("prompts/get", "name"), ("kanarie7f3a/method~", "name")] {
            let value = format!("file:///{}", canary("uri"));
            let body = json!({"jsonrpc": "2.0", "id": canary("id"), "method": method, "params": {name: value}});
            self.post("/mcp/web", &of_session[..1], &body).await;
        }
        // The client's answer to what the server asked, and one to what nobody asked.
        for id in ["server-id", "nobody"] {
            let answer = json!({"jsonrpc": "2.0", "id": canary(id), "result": {"content": canary("client-answer")}});
            self.post("/mcp/web", &of_session[..1], &answer).await;
        }
        let held = tokio::spawn({
            let (client, session) = (self.clone(), session.clone());
            async move { client.call("/mcp/web", &session, &tool("held"), &json!(canary("held"))).await }
        });
        seen.held.subscribe().wait_for(|held| *held == 1).await.unwrap();
        let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params":
            {"requestId": canary("held"), "reason": canary("reason")}});
        self.post("/mcp/web", &of_session[..1], &cancel).await;
        held.await.unwrap();
        self.ask("GET", "/mcp/web", &of_session, "").await;
        self.ask("DELETE", "/mcp/web", &of_session[..1], "").await;
    }

    /// All that may pass without a session, rounds and tasks among it.
    pub(super) async fn stateless(&self) {
        for path in ["/mcp/modern", "/mcp/program"] {
            self.modern(path, "server/discover", ("", ""), &json!({})).await;
            self.modern(path, "tools/list", ("", ""), &json!({})).await;
            let arguments = json!({"arguments": {"secret": canary("argument")}});
            for word in ["echo", "receipt", "streams", "denied", "rpc-error", "babble"] {
                self.modern(path, "tools/call", ("name", &tool(word)), &arguments).await;
            }
        }
        let asked = self.modern("/mcp/modern", "tools/call", ("name", &tool("asks")), &json!({})).await;
        assert_eq!(asked.json()["result"]["requestState"], canary("state"), "{asked:?}");
        for state in ["state", "other-state"] {
            let round = json!({"requestState": canary(state), "inputResponses": {canary("input"): {"content": canary("input")}}});
            self.modern("/mcp/modern", "tools/call", ("name", &tool("asks")), &round).await;
        }
        let began = self.modern("/mcp/modern", "tools/call", ("name", &tool("deferred")), &json!({})).await;
        assert_eq!(began.json()["result"]["taskId"], canary("task"), "{began:?}");
        for task in ["task", "other-task"] {
            self.modern("/mcp/modern", "tasks/get", ("taskId", &canary(task)), &json!({})).await;
        }
        self.modern(
            "/mcp/checked",
            "tools/call",
            ("name", &tool("echo")),
            &json!({"arguments": {canary("needed"): canary("argument")}}),
        )
        .await;
        for (server, word) in [("doubled", "echo"), ("slow", "silent"), ("gone", "echo"), ("closed", "echo")] {
            let path = format!("/mcp/{server}");
            self.modern(&path, "tools/call", ("name", &tool(word)), &json!({})).await;
            self.modern(&path, "tools/list", ("", ""), &json!({})).await;
        }
    }

    /// A program in a session, and all servers at one address.
    pub(super) async fn others(&self) {
        let session = self.begin("/mcp/program").await;
        for word in ["echo", "babble", "crash"] {
            self.call("/mcp/program", &session, &tool(word), &json!(canary("id"))).await;
        }
        let all = self.begin("/mcp").await;
        for method in ["tools/list", "resources/list", "kanarie7f3a/method~"] {
            self.post(
                "/mcp",
                &[("mcp-session-id", &all)],
                &json!({"jsonrpc": "2.0", "id": canary("id"), "method": method}),
            )
            .await;
        }
        for name in [format!("web__{}", tool("echo")), tool("nowhere"), format!("kanarie7f3a__{}", tool("echo"))] {
            self.call("/mcp", &all, &name, &json!(canary("id"))).await;
        }
        self.call("/mcp", &canary("session"), "web__x", &json!(1)).await;
        self.ask("DELETE", "/mcp", &[("mcp-session-id", &all)], "").await;
    }

    /// What is refused, whoever asks.
    pub(super) async fn refused(&self, tokens: &[String]) {
        let call = json!({"jsonrpc": "2.0", "id": canary("id"), "method": "tools/call", "params":
            {"name": tool("echo"), "arguments": {"secret": canary("argument")}}});
        for token in tokens {
            for path in ["/mcp/web", "/mcp/program", "/mcp", "/mcp/kanarie7f3a"] {
                self.post(path, &[("authorization", token)], &call).await;
            }
        }
        let wrong = [
            format!("kanarie7f3a {call}"),
            format!("[{call},{call}]"),
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{{\"x\":\"{0}\"}},\"method\":\"{0}\"}}", canary("id")),
            format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{0}\",\"Method\":\"{0}\"}}", canary("method")),
            json!({"jsonrpc": "1.0", canary("key"): canary("value")}).to_string(),
            format!("{}\u{0}", canary("zero")),
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":\"{}\"}}",
                CORE.repeat(TOO_LONG / CORE.len())
            ),
        ];
        for path in ["/mcp/web", "/mcp/program", "/mcp"] {
            for body in &wrong {
                self.ask("POST", path, &[], body).await;
            }
            for (header, value) in [
                ("mcp-name", "other kanarie7f3a~"),
                ("mcp-method", "kanarie7f3a~"),
                ("mcp-protocol-version", "kanarie7f3a~"),
                ("mcp-protocol-version", VERSION),
                ("mcp-session-id", "kanarie7f3a-other~"),
                ("origin", "http://kanarie7f3a.example"),
                ("mcp-name", "=?base64?a2FuYXJpZTdmM2E=?="),
            ] {
                self.post(path, &[(header, value)], &call).await;
            }
            self.ask("kanarie7f3a", path, &[], "").await;
            self.ask("GET", path, &[("mcp-session-id", "kanarie7f3a-other~"), ("last-event-id", "kanarie7f3a~")], "")
                .await;
            self.ask("DELETE", path, &[("mcp-session-id", "kanarie7f3a-other~")], "").await;
            let query = format!("{path}?token=kanarie7f3a&x={}", canary("query"));
            self.post(&query, &[], &call).await;
        }
        self.post("/mcp/kanarie7f3a~", &[], &call).await;
        self.post("/kanarie7f3a/~", &[], &call).await;
        // Half a request.
        let mut half = TcpStream::connect(self.at).await.unwrap();
        let head = format!(
            "POST /mcp/web HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ncontent-length: 900\r\n\r\n",
            self.token
        );
        half.write_all(format!("{head}{call}").as_bytes()).await.unwrap();
    }
}
