//! Whose answer it is: in a session one id is one open call, and a stream that is taken up again answers the call that it was of.

use tokio_stream::StreamExt as _;

use super::{
    members::{BOB, refusals, waits},
    *,
};
use crate::access::tests::put_in_force;

/// All tools but one.
const NOT_HIDDEN: &str = "[[rules]]\nid = \"no\"\neffect = \"deny\"\neveryone = true\ntools = [\"test/hidden\"]\n\
                          methods = [\"*\"]\n[[rules]]\nid = \"all\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n\
                          methods = [\"*\"]\n";

/// A server of sessions whose streams may be taken up again. It ends the stream of a call at once, and answers where that is
/// taken up again; but `stays` stays open, and `whole` is an answer of which half comes. What it was called is told.
async fn resumable_server(called: tokio::sync::mpsc::Sender<String>) -> std::net::SocketAddr {
    let answer = move |request: HttpRequest| {
        let called = called.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let behind = text(&parts.headers, LAST_EVENT);
            let sse = |text: String, ends: bool| {
                let first = tokio_stream::once(Ok::<_, std::convert::Infallible>(text));
                let mut answer = match ends {
                    true => Response::new(Body::from_stream(first)),
                    false => Response::new(Body::from_stream(first.chain(futures::stream::pending()))),
                };
                answer.headers_mut().insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
                answer
            };
            let list = r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"seen"},{"name":"hidden"}]}}"#;
            let done = r#"{"jsonrpc":"2.0","id":7,"result":{"text":"done"}}"#;
            match behind {
                Some("list-1") => return sse(format!("id: list-2\ndata: {list}\n\n"), true),
                Some("polls-1") => return sse("id: polls-2\ndata:\n\n".into(), true),
                // Once more, as a server that counts wrongly might.
                Some("polls-2") => return sse(format!("id: polls-3\ndata: {done}\n\ndata: {list}\n\n"), true),
                Some(_) => return sse(format!("data: {done}\n\n"), true),
                None => {}
            }
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            let tool = value["params"]["name"].as_str().unwrap_or_default();
            match value["method"].as_str().unwrap_or_default() {
                "initialize" => {
                    let mut answer = json(StatusCode::OK, r#"{"jsonrpc":"2.0","id":0,"result":{}}"#.into());
                    answer.headers_mut().insert(SESSION, "s".parse().unwrap());
                    answer
                }
                // The shim's own question has another id.
                "tools/list" if value["id"] != 7 => {
                    json(StatusCode::OK, list.replace("\"id\":7", &format!("\"id\":{}", value["id"])).into())
                }
                "tools/list" => sse(format!("id: list-1\ndata:\n\nid: list-2\ndata: {list}\n\n"), true),
                "tools/call" => {
                    called.send(tool.to_owned()).await.unwrap();
                    let first = format!("id: {tool}-1\ndata:\n\n");
                    match tool {
                        "whole" => {
                            let mut answer = sse("{".to_owned(), false);
                            answer.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
                            answer
                        }
                        _ => sse(first, tool == "polls"),
                    }
                }
                _ => stdio::empty(StatusCode::ACCEPTED),
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", any(answer))).await.unwrap() });
    address
}

struct Resumed {
    bench: Bench,
    policy: String,
    called: tokio::sync::mpsc::Receiver<String>,
}

const OF_SESSION: [(&str, &str); 2] = [(SESSION, "s"), (PROTOCOL, "2025-11-25")];

impl Resumed {
    async fn new() -> Self {
        let (told, called) = tokio::sync::mpsc::channel(16);
        let (policy, tokens) = policy(&[ALICE, BOB], NOT_HIDDEN);
        let access = Access::of(&policy, None).unwrap();
        let url = format!("url = \"http://{}/mcp\"\n", resumable_server(told).await);
        let bench = Bench::with_access(&url, waits(), access, tokens[0].clone()).await;
        bench.post(&[], HELLO).await;
        Self { bench, policy, called }
    }

    async fn list(&self) -> String {
        let body = r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":"no copy of it is kept"}}"#;
        let (_, _, body) = within(self.bench.post(&OF_SESSION, body)).await;
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// Takes the stream up again behind this event.
    async fn behind(&self, event: &str) -> String {
        let headers = [&OF_SESSION[..], &[(LAST_EVENT, event)]].concat();
        let (_, _, body) = within(self.bench.send(Method::GET, &headers, "")).await;
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// A call that stays open, as far as its first event.
    async fn stays(&mut self) -> hyper::body::Incoming {
        let request = hyper::Request::post(format!("http://{}/mcp/test", self.bench.address))
            .header(SESSION, "s")
            .header("authorization", &self.bench.token)
            .header("content-type", "application/json");
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = request.body(Full::from(tool_call(7, "stays"))).unwrap();
        let mut stream = within(client.request(request)).await.unwrap().into_body();
        within(stream.frame()).await.unwrap().unwrap();
        assert_eq!(self.called.recv().await.as_deref(), Some("stays"));
        stream
    }

    fn is_open(&self) -> bool {
        self.bench.front.proxies["test"].open.state("s", "n7").is_some()
    }
}

/// A list that was cut to what its member may see stays cut, whatever is asked under its id by then.
#[tokio::test]
async fn a_replayed_answer_is_of_the_call_that_it_was_of_and_of_no_other_under_its_id() {
    let mut resumed = Resumed::new().await;
    let list = resumed.list().await;
    assert!(list.contains("seen") && !list.contains("hidden"), "{list}");
    let stays = resumed.stays().await;
    let replayed = resumed.behind("list-1").await;
    assert!(replayed.contains("seen") && !replayed.contains("hidden"), "{replayed}");
    assert!(resumed.is_open(), "the answer to the list is none to the call");
    // What nobody has seen is of no call.
    assert_eq!(resumed.behind("unheard-of").await, "");
    let answered = resumed.behind("stays-1").await;
    assert!(answered.contains("done"), "{answered}");
    assert!(!resumed.is_open());
    drop(stays);
    let calls = resumed.bench.calls().await;
    let of = |method: &str| calls.iter().filter(move |call| summary(call).0 == method).collect::<Vec<_>>();
    let (list, call) = (of("tools/list")[0], of("tools/call")[0]);
    assert_eq!((list.outcome(), call.outcome()), (Outcome::Ok, Outcome::Ok));
    let linked: Vec<_> = of("GET").iter().map(|call| call.link.as_ref().map(|link| link.call_number)).collect();
    assert_eq!(linked, [Some(list.call_number), None, Some(call.call_number)]);
}

/// A client whose server ends its streams takes each up again, and the answer ends its call once.
#[tokio::test]
async fn a_call_may_be_polled_and_its_answer_be_had_again() {
    let mut resumed = Resumed::new().await;
    within(resumed.bench.post(&OF_SESSION, &tool_call(7, "polls"))).await;
    assert_eq!(resumed.called.recv().await.as_deref(), Some("polls"));
    assert!(resumed.is_open());
    assert_eq!(resumed.behind("polls-1").await, "id: polls-2\ndata:\n\n");
    assert!(resumed.is_open());
    for _ in 0..2 {
        let answered = resumed.behind("polls-2").await;
        assert!(answered.contains("done") && !answered.contains("hidden"), "{answered}");
        assert!(!resumed.is_open());
    }
    let calls = resumed.bench.calls().await;
    let polls: Vec<_> = calls.iter().filter(|call| summary(call).1 == "polls").map(wire::Call::outcome).collect();
    assert_eq!(polls, [Outcome::Ok]);
}

/// What a call has given is kept from whoever may not make it any more, though it has ended.
#[tokio::test]
async fn an_answer_is_not_had_again_by_whoever_may_not_ask_for_it_any_more() {
    let mut resumed = Resumed::new().await;
    within(resumed.bench.post(&OF_SESSION, &tool_call(7, "polls"))).await;
    assert_eq!(resumed.called.recv().await.as_deref(), Some("polls"));
    assert!(resumed.behind("polls-1").await.contains("polls-2"));
    assert!(resumed.behind("polls-2").await.contains("done"));
    put_in_force(&resumed.bench.access, &resumed.policy.replace("test/hidden", "test/polls"));
    let again = resumed.behind("polls-2").await;
    assert!(again.contains("1007") && again.contains("\"id\":7") && !again.contains("done"), "{again}");
}

/// Nobody could tell the answers apart, and the place of a call within its limits is its own until its end.
#[tokio::test]
async fn an_id_is_of_one_open_call_of_its_session() {
    let mut resumed = Resumed::new().await;
    let stays = resumed.stays().await;
    for _ in 0..3 {
        let (status, _, body) = within(resumed.bench.post(&OF_SESSION, &tool_call(7, "stays"))).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (status, &body["id"], &body["error"]["code"]),
            (StatusCode::BAD_REQUEST, &json!(7), &json!(-32_600))
        );
    }
    assert!(resumed.called.try_recv().is_err(), "none of them reached the server");
    assert!(resumed.behind("stays-1").await.contains("done"));
    // When its answer was heard, its id is free.
    drop(stays);
    drop(resumed.stays().await);
    assert!(resumed.behind("stays-1").await.contains("done"));
    let calls = resumed.bench.calls().await;
    let mut outcomes: Vec<_> =
        calls.iter().filter(|call| summary(call).1 == "stays").map(wire::Call::outcome).collect();
    outcomes.sort();
    let refused = Outcome::Malformed;
    assert_eq!(refusals(&calls), vec![("shim/malformed".to_owned(), refused); 3]);
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok, refused, refused, refused]);
}

/// However a call ends, nothing of it is left behind: its id is free.
#[tokio::test]
async fn a_call_that_is_cut_leaves_its_id() {
    let mut resumed = Resumed::new().await;
    {
        let call = tool_call(7, "whole");
        let mut whole = Box::pin(resumed.bench.post(&OF_SESSION, &call));
        within(async {
            tokio::select! {
                _ = &mut whole => panic!("nobody answered"),
                called = resumed.called.recv() => assert_eq!(called.as_deref(), Some("whole")),
            }
        })
        .await;
        assert!(resumed.is_open());
        resumed.bench.front.shared.cuts.look(&Access::of("version = 1\n", None).unwrap(), clock::now_us());
        let (_, _, body) = within(whole).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], json!(refusal::CODE_REVOKED));
    }
    assert!(!resumed.is_open());
}
