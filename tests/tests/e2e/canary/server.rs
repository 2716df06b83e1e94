//! MCP servers that say canaries wherever a server may say anything. What one does with a call is the first word of the
//! tool's name.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use custody_tests::{
    canary::{CORE, canary},
    http::{self, Answer, Heard},
};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// A server over stdio. Its stderr says what it read, as many do.
pub(super) const PROGRAM: &str = r#"while IFS= read -r line; do
  echo "read $line with $SECRET" >&2
  id=${line#*'"id":'}; id=${id%%[,\}]*}
  case $line in
    *'"server/discover"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"resultType":"complete"}}\n' "$id";;
    *'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"%s","version":"1"}}}\n' "$id" "$SECRET";;
    *'"tools/list"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"echo %s","description":"%s","inputSchema":{"type":"object"}}]}}\n' "$id" "$SECRET" "$SECRET";;
    *'"crash '*) exit 7;;
    *'"babble '*) printf 'Welcome, %s!\n{"jsonrpc":"2.0","id":%s,"Id":1,"method":"%s"}\n' "$SECRET" "$id" "$SECRET"
                  printf '{"jsonrpc":"2.0","id":"%s","method":"sampling/createMessage","params":{"text":"%s"}}\n' "$SECRET" "$SECRET"
                  printf '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"%s","message":"%s"}}\n' "$SECRET" "$SECRET"
                  printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%s"}]}}\n' "$id" "$SECRET";;
    *'"id":'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%s"}],"isError":true}}\n' "$id" "$SECRET";;
  esac
done"#;

/// What is known of the servers over HTTP from outside.
#[derive(Default)]
pub(super) struct Seen {
    /// What came there that has a canary in it: `arguments`, names of headers, `body`.
    pub(super) places: Mutex<BTreeSet<String>>,
    /// Calls that are held.
    pub(super) held: watch::Sender<u64>,
    cancelled: Notify,
}

/// Serves all of them, by their paths.
pub(super) async fn serve() -> (SocketAddr, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let of_server = Arc::clone(&seen);
    let answer = move |asked: Heard| {
        let seen = Arc::clone(&of_server);
        async move { seen.answer(&asked).await }
    };
    (http::serve(answer).await, seen)
}

fn result(id: &Value, result: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string()
}

fn content(more: &Value) -> Value {
    let mut content = json!({"content": [{"type": "text", "text": canary("result")}], "resultType": "complete"});
    if let (Some(content), Some(more)) = (content.as_object_mut(), more.as_object()) {
        content.extend(more.clone());
    }
    content
}

/// A receipt in form, by a signer whom nobody enrolled.
fn receipt() -> Value {
    json!({
        "timestamp": "2026-11-20T16:19:42.423359+00:00",
        "payload_hash": "1650123c32fc7ea9128a40190ba04d3243ce82de37d80da9923b5e8204dac901",
        "public_key": "ZxnuPglkdaC9bJMgIJVKEIQweBduMgiQlxs3p88NOeg=",
        "signature": "N5OmWrR88y28xgPwUZ+RDY8aYf5dCN4MQzI70nd4BOdimNQEQQ6EI7xP0a1mPKS3nMMPz/rInHI8Z4UnG+F2Dg==",
        "metadata": {"tool": canary("receipt"), canary("receipt-key"): 1},
    })
}

/// Tools whose names, descriptions and schemas have canaries; at `/doubled` one name stands twice.
fn tools(path: &str) -> Value {
    let tool = |name: &str| {
        let name = format!("{name} {}", canary("tool"));
        let schema = json!({"type": "object", "required": [canary("needed")], "properties": {canary("needed"): {"type": "integer"}}});
        json!({"name": name, "description": canary("description"), "title": canary("title"), "inputSchema": schema})
    };
    let twice = if path == "/doubled" { "echo" } else { "ecko" };
    json!({"tools": [tool("echo"), tool(twice)], "ttlMs": 1, "resultType": "complete"})
}

impl Seen {
    fn note(&self, asked: &Heard, call: &Value) {
        let mut places = self.places.lock().unwrap();
        places.extend(asked.headers.iter().filter(|(_, value)| value.contains(CORE)).map(|(name, _)| name.clone()));
        places.extend(call["params"]["arguments"].to_string().contains(CORE).then(|| "arguments".to_owned()));
        places.extend(asked.text().contains(CORE).then(|| "body".to_owned()));
    }

    async fn answer(&self, asked: &Heard) -> Option<Answer> {
        let call = asked.json();
        self.note(asked, &call);
        let mut words = asked.line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        let with_session = |answer: Answer| answer.header("mcp-session-id", &canary("session"));
        let asks = json!({"jsonrpc": "2.0", "id": canary("server-id"), "method": "elicitation/create",
            "params": {"message": canary("elicitation")}});
        Some(match (method, call["method"].as_str().unwrap_or_default()) {
            ("GET", _) => with_session(Answer::events(&[asks.to_string()]).header("x-odd", &canary("answer-header"))),
            ("DELETE", _) => Answer::json(canary("bye")),
            (_, "initialize") => with_session(Answer::json(result(
                &call["id"],
                &json!({"protocolVersion": "2025-11-25", "serverInfo": {"name": canary("server"), "version": canary("server")}}),
            ))),
            (_, "server/discover") => Answer::json(result(
                &call["id"],
                &json!({"supportedVersions": ["2026-07-28"], "resultType": "complete",
                    "_meta": {"io.modelcontextprotocol/serverInfo": {"name": canary("server"), "version": "1"}}}),
            )),
            (_, "tools/list") => Answer::json(result(&call["id"], &tools(&path))),
            (_, "tools/call") => return self.call(&call).await,
            (_, "tasks/get") => Answer::json(result(
                &call["id"],
                &json!({"resultType": "complete",
                "taskId": call["params"]["taskId"], "status": "completed", "result": content(&json!({}))}),
            )),
            (_, "notifications/cancelled") => {
                self.cancelled.notify_one();
                Answer::json("").status("202 Accepted")
            }
            _ if call["id"].is_null() || call["method"].is_null() => Answer::json("").status("202 Accepted"),
            _ => Answer::json(
                json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32_601,
                "message": canary("error"), "data": canary("error-data")}})
                .to_string(),
            )
            .status("404 Not Found"),
        })
    }

    async fn call(&self, call: &Value) -> Option<Answer> {
        let (id, name) = (&call["id"], call["params"]["name"].as_str().unwrap_or_default());
        let ok = |more: &Value| Answer::json(result(id, &content(more)));
        Some(match name.split(' ').next().unwrap_or_default() {
            "held" => {
                self.held.send_modify(|held| *held += 1);
                self.cancelled.notified().await;
                return Some(Answer::events(&[]));
            }
            "silent" => return None,
            "fails" => ok(&json!({"isError": true})),
            "receipt" => {
                ok(&json!({"_meta": {"custody/forensic-receipt": receipt()}})).header("x-odd", &canary("answer-header"))
            }
            "streams" => Answer::events(&[
                json!({"jsonrpc": "2.0", "method": "notifications/progress", "params":
                    {"progressToken": call["params"]["_meta"]["progressToken"], "message": canary("progress")}})
                .to_string(),
                json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": canary("message")}})
                    .to_string(),
                json!({"jsonrpc": "2.0", "id": canary("server-id"), "method": "sampling/createMessage",
                    "params": {"messages": [canary("sampling")]}})
                .to_string(),
                canary("no message"),
                format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{0}\",\"Method\":\"{0}\"}}", canary("twofold")),
                result(id, &content(&json!({}))),
            ]),
            "asks" if call["params"]["requestState"].is_null() => Answer::json(result(
                id,
                &json!({
                "resultType": "input_required", "requestState": canary("state"),
                "inputRequests": {canary("input"): {"method": "elicitation/create", "params": {"message": canary("input")}}}}),
            )),
            "deferred" => Answer::json(result(
                id,
                &json!({"resultType": "task", "taskId": canary("task"), "status": "working",
                "statusMessage": canary("status")}),
            )),
            "rpc-error" => Answer::json(
                json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32_000,
                "message": canary("error"), "data": {"why": canary("error-data")}}})
                .to_string(),
            ),
            "http-error" => {
                Answer::json(canary("http-body")).status("500 Internal Server Error").header("x-odd", &canary("odd"))
            }
            "unauthorized" => Answer::json(canary("http-body"))
                .status("401 Unauthorized")
                .header("www-authenticate", &format!("Bearer realm=\"{}\"", canary("realm"))),
            "no-json" => Answer::json(format!("{{\"{}\":", canary("no-json"))),
            "other-id" => Answer::json(result(&json!(canary("other-id")), &content(&json!({})))),
            // Longer than what follows: it breaks off.
            "breaks" => Answer { headers: vec![("transfer-encoding".into(), "chunked".into())], ..ok(&json!({})) },
            _ => ok(&json!({})),
        })
    }
}
