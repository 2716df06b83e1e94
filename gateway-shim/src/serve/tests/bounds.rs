//! What one member, or one server, may take of what is everybody's.

use tokio::sync::{Semaphore, mpsc};

use super::{
    members::{BOB, refusals, waits},
    *,
};
use crate::serve::upstream::TELLS_MAX;

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
    for body in [&tool_call(2, "slow"), ping, note] {
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
            may.add_permits(3);
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
        busy.len() >= 3 && busy.iter().all(|refusal| *refusal == ("shim/busy".into(), Outcome::OverLimit)),
        "{busy:?}"
    );
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
            let mut answer = Response::new(Body::from(text));
            answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            answer
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
