//! Receipts of tool runtimes: in a result, in a header, in both, and what is none.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use custody::forensic::Receipt;

use super::*;
use crate::forensic::{HEADER, tests::SIMPLE};

/// Another one of the same form.
fn other() -> String {
    SIMPLE.replace("query_db", "other_db")
}

/// A server that answers by the tool: which receipt stands in the result and which in the header, as JSON or as a stream.
async fn signing_server() -> std::net::SocketAddr {
    async fn answer(request: HttpRequest) -> Answer {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        let tool = value["params"]["name"].as_str().unwrap_or_default();
        let mut result = json!({});
        if tool.contains("meta") {
            result["_meta"] = json!({"custody/forensic-receipt": serde_json::from_str::<Value>(SIMPLE).unwrap()});
        }
        let body = json!({"jsonrpc":"2.0","id":value["id"],"result":result}).to_string();
        let mut answer = json(StatusCode::OK, body.clone().into());
        if tool.contains("stream") {
            answer = Response::new(Body::from(format!("data: {body}\n\n")));
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
        }
        for (word, json) in [("same", SIMPLE.to_owned()), ("other", other()), ("none", "{}".into())] {
            if tool.contains(word) {
                answer.headers_mut().append(HEADER, BASE64_STANDARD.encode(json).parse().unwrap());
            }
        }
        answer
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

#[tokio::test]
async fn a_receipt_is_taken_from_the_result_else_from_a_header_that_stands_once() {
    let digest = |json: &str| Some(Receipt::parse(json.as_bytes()).unwrap().to_wire(true).digest);
    let (simple, other) = (digest(SIMPLE), digest(&other()));
    let cases = [
        ("nothing", None),
        ("meta", simple.clone()),
        ("same", simple.clone()),
        ("meta-same", simple.clone()),
        // The client keeps the result: its word is the one on record.
        ("meta-other", simple.clone()),
        ("other", other.clone()),
        // Nobody can tell which of two it is, nor what is none.
        ("same-other", None),
        ("none", None),
        ("meta-none", simple.clone()),
        ("stream", None),
        ("stream-meta", simple.clone()),
        ("stream-same", simple.clone()),
        ("stream-meta-other", simple),
        ("stream-other", other),
    ];
    let bench = Bench::new(&format!("url = \"http://{}/mcp\"\n", signing_server().await)).await;
    for (number, (tool, _)) in cases.iter().enumerate() {
        let (status, headers, _) = bench.post(&[], &tool_call(u32::try_from(number).unwrap(), tool)).await;
        assert_eq!(status, StatusCode::OK);
        // It passes like any other header.
        let has = ["same", "other", "none"].iter().any(|word| tool.contains(word));
        assert_eq!(headers.contains_key(HEADER), has, "{tool}");
    }
    let calls = bench.calls().await;
    for (tool, expected) in cases {
        let call = calls.iter().find(|call| summary(call).1 == tool).unwrap();
        assert_eq!(call.receipt.as_ref().map(|receipt| receipt.digest.clone()), expected, "{tool}");
        // Nobody enrolled this signer, so nothing of the tool's own text is kept.
        assert!(call.receipt.as_ref().is_none_or(|receipt| receipt.whole.is_empty()));
    }
}
