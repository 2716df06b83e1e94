//! What is read of messages, and what is refused because two readers might read it differently.

use super::*;

fn request(body: &str) -> Request {
    match parse(body.as_bytes()).unwrap() {
        Message::Request(request) => *request,
        other => panic!("{other:?}"),
    }
}

fn ending_of(body: &str) -> Ending {
    match parse(body.as_bytes()).unwrap() {
        Message::Answer { ending, .. } => ending,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_may_show_what_the_tools_runtime_signed() {
    let shown = |meta: &str| {
        let ending = ending_of(&format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"isError":true,"_meta":{meta}}}}}"#));
        assert_eq!(ending.outcome, Outcome::ToolError);
        ending.learnt.and_then(|learnt| learnt.receipt)
    };
    let receipt = forensic::tests::SIMPLE;
    assert_eq!(shown(&format!(r#"{{"custody/forensic-receipt":{receipt}}}"#)), forensic::of_json(receipt.as_bytes()));
    // What is none is passed on all the same, and leaves no trace.
    for none in ["{}", "{\"custody/forensic-receipt\":1}", "{\"custody/forensic-receipt\":{\"metadata\":{}}}", "7"] {
        assert_eq!(shown(none), None, "{none}");
    }
    let twice = format!(r#"{{"custody/forensic-receipt":{receipt},"custody/forensic-receipt":{receipt}}}"#);
    assert_eq!(shown(&twice), None);
}

#[test]
fn a_call_is_read_and_nothing_but_its_envelope() {
    let call = request(
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"name":"secret"},
        "_meta":{"progressToken":"p","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}"#,
    );
    assert_eq!((call.id.as_str(), call.raw_id.as_str(), call.name.as_deref()), ("n7", "7", Some("echo")));
    assert_eq!(call.progress.as_deref(), Some("sp"));
    assert_eq!(call.trace.unwrap().flags, 1);
    let hello = request(
        r#"{"jsonrpc":"2.0","id":"a","method":"initialize","params":{"protocolVersion":"2025-11-25",
        "clientInfo":{"name":"c","version":"1"}}}"#,
    );
    assert_eq!(hello.client, Some(("c".into(), "1".into())));
    assert_eq!(hello.protocol.as_deref(), Some("2025-11-25"));
}

#[test]
fn what_two_readers_might_read_differently_is_refused() {
    for (body, id, says) in [
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            Some("1"),
            "in params: the key name stands twice",
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}"#, Some("1"), "the key method"),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, None, "the key id stands twice"),
        (r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":"a","method":"ping"}"#, Some("\"a\""), "the key jsonrpc"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"tools/call"}"#, None, "is null"),
        (r#"{"jsonrpc":"2.0","id":{},"method":"tools/call"}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":7.0,"method":"tools/call"}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":7e0,"method":"tools/call"}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":9007199254740992,"method":"ping"}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":{},"result":{}}"#, None, "neither a text nor a whole number"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#, Some("1"), "holds a result"),
        (r#"{"jsonrpc":"2.0","id":1,"method":null,"error":{"code":1,"message":"m"}}"#, Some("1"), "method is no text"),
        (r#"{"jsonrpc":"2.0","id":1,"error":{"code":"x"}}"#, None, "no number as its code"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, None, "send each by itself"),
        ("7", None, "no object"),
        (r#"{"id":-15,"method":"ping"}"#, Some("-15"), "jsonrpc is not 2.0"),
        (r#"{"jsonrpc":"2.0","id":1}"#, None, "neither a method, nor a result, nor an error"),
        (r#"{"jsonrpc":"2.0"}"#, None, "neither a method nor an id"),
        (r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"}}"#, None, "without an id"),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"a"}}"#,
            Some("1"),
            "is method but for the case",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"Params":{"name":"b"}}"#,
            Some("1"),
            "is params but for the case",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"param\u017f":{"name":"b"}}"#,
            Some("1"),
            "is params but for the case",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            Some("1"),
            "in params: a key is name but for the case",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{},"arguments":{"x":1}}}"#,
            Some("1"),
            "in params: the key arguments stands twice",
        ),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":5}}"#, Some("1"), "name is not in form"),
        (r#"{"jsonrpc":"2.0","method":"notifications/x","ID":5,"Method":"tools/call"}"#, None, "is id but for"),
    ] {
        let malformed = parse(body.as_bytes()).unwrap_err();
        assert_eq!((malformed.code, malformed.raw_id.as_deref()), (NOT_A_MESSAGE, id), "{body}");
        assert!(malformed.text.contains(says), "{body}: {}", malformed.text);
    }
    let skipped = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":\"\xff\"}}";
    for body in [&skipped[..], b"{", b"{}{}"] {
        assert_eq!(parse(body).unwrap_err().code, NOT_JSON);
    }
}

/// What a request is decided on is named once, where every reader finds it, or the request is refused.
#[test]
fn what_a_request_names_deeper_down_is_read_as_strictly() {
    let named = |method: &str, params: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        match parse(body.as_bytes()) {
            Ok(Message::Request(request)) => Some(request.name),
            Ok(other) => panic!("{other:?}"),
            Err(malformed) => {
                assert_eq!((malformed.code, malformed.raw_id.as_deref()), (NOT_A_MESSAGE, Some("1")), "{body}");
                None
            }
        }
    };
    for (of, name) in [
        (r#"{"type":"ref/prompt","name":"p","title":"t"}"#, Some(Some("p"))),
        (r#"{"type":"ref/resource","uri":"file:///{x}"}"#, Some(Some("file:///{x}"))),
        (r#"{"type":"ref/prompt"}"#, Some(None)),
        (r#"{"type":"ref/resource","name":"harmless","uri":"test://secret/{x}"}"#, None),
        (r#"{"type":"ref/resource","uri":"harmless","uri":"test://secret/{x}"}"#, None),
        (r#"{"type":"ref/resource","uri":"harmless","URI":"test://secret/{x}"}"#, None),
        (r#"{"type":"ref/resource","uri":["test://secret/{x}"]}"#, None),
        (r#"["test://secret/{x}"]"#, None),
    ] {
        let name = name.map(|name| name.map(str::to_owned));
        assert_eq!(named("completion/complete", &format!(r#"{{"ref":{of}}}"#)), name, "{of}");
    }
    for params in [r#"{"uri":["file:///a"]}"#, r#"["file:///a"]"#, r#""file:///a""#] {
        assert_eq!(named("resources/read", params), None, "{params}");
    }
    // A state that is no text is none to be known by.
    assert_eq!(named("tools/call", r#"{"name":"a","requestState":["s"]}"#), None);
    assert_eq!(named("tools/call", r#"{"name":"a","requestState":null}"#), Some(Some("a".into())));
    assert_eq!(named("resources/read", r#"{"uri":null}"#), Some(None));
    // Other methods may give these names to something else, and nothing may be there at all.
    assert_eq!(named("nobody/knows", r#"{"uri":7,"ref":7}"#), Some(None));
    assert_eq!(named("tools/list", "null"), Some(None));
}

#[test]
fn outcomes_are_told_apart() {
    let answer = |rest: &str| ending_of(&format!(r#"{{"jsonrpc":"2.0","id":1,{rest}}}"#));
    assert_eq!(answer(r#""result":{"content":[]}"#).outcome, Outcome::Ok);
    assert_eq!(answer(r#""result":{"isError":true}"#).outcome, Outcome::ToolError);
    assert_eq!(answer(r#""result":{"resultType":"input_required"}"#).outcome, Outcome::InputRequired);
    assert_eq!(answer(r#""result":{"resultType":"task"}"#).outcome, Outcome::Deferred);
    let error = answer(r#""error":{"code":-32601,"message":"secret"}"#);
    assert_eq!((error.outcome, error.error_code), (Outcome::RpcError, Some((-32601_i32).cast_unsigned())));
}

#[test]
fn what_comes_next_is_read_of_both_eras() {
    let next = |rest: &str| match parse(format!(r#"{{"jsonrpc":"2.0","id":1,"result":{rest}}}"#).as_bytes()).unwrap() {
        Message::Answer { next, ending, .. } => (ending.outcome, next.map(|next| *next).unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let (outcome, said) = next(
        r#"{"resultType":"input_required","requestState":"s","inputRequests":{"a":{"method":"elicitation/create","params":{}}}}"#,
    );
    assert_eq!((outcome, said.asks.as_slice()), (Outcome::InputRequired, &["elicitation/create".to_owned()][..]));
    assert_eq!(said.state, Some(text_digest(b"s")));
    let task = |id: &str, ended| Some(Task { id: id.to_owned(), ended });
    let (outcome, said) = next(r#"{"resultType":"task","taskId":"t","status":"working"}"#);
    assert_eq!((outcome, said.task), (Outcome::Deferred, task("t", None)));
    let (outcome, said) = next(r#"{"task":{"taskId":"t","status":"working"}}"#);
    assert_eq!((outcome, said.task), (Outcome::Deferred, task("t", None)));
    for (status, result, ended) in [
        ("completed", r#","result":{"isError":true}"#, Outcome::ToolError),
        ("completed", "", Outcome::Ok),
        ("failed", "", Outcome::RpcError),
        ("cancelled", "", Outcome::Cancelled),
    ] {
        let (_, said) = next(&format!(r#"{{"resultType":"complete","taskId":"t","status":"{status}"{result}}}"#));
        assert_eq!(said.task, task("t", Some(ended)));
    }
    // A client might read the other one.
    let twofold = r#"{"jsonrpc":"2.0","id":1,"result":{"inputRequests":{},"inputRequests":{}}}"#;
    assert!(parse(twofold.as_bytes()).is_err());
}

#[test]
fn text_of_callers_is_a_token_or_a_digest() {
    assert!(matches!(target("read_file"), call::Target::Tool(_)));
    assert!(matches!(target("läse"), call::Target::ToolDigest(_)));
    assert!(matches!(client(&"x".repeat(129)), call::Client::ClientNameDigest(_)));
    assert!(matches!(client_release(""), call::ClientRelease::ClientVersionDigest(_)));
}

#[test]
fn only_a_whole_traceparent_counts() {
    for bad in [
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "",
    ] {
        assert_eq!(trace(bad), None, "{bad}");
    }
}

/// A completion is decided on what it completes, and a subscription on what it is about: each is one thing to every reader.
#[test]
fn what_is_named_deeper_down_is_read_as_strictly() {
    let params = |method: &str, params: &str| {
        parse(format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#).as_bytes())
    };
    for (of, name) in [
        (r#"{"type":"ref/prompt","name":"p"}"#, Some("p")),
        (r#"{"type":"ref/resource","uri":"file:///{x}"}"#, Some("file:///{x}")),
        (r#"{"type":"ref/prompt"}"#, None),
    ] {
        let Ok(Message::Request(request)) = params("completion/complete", &format!(r#"{{"ref":{of}}}"#)) else {
            panic!("{of}")
        };
        assert_eq!(request.name.as_deref(), name);
    }
    for of in [
        r#"{"type":"ref/resource","name":"allowed","uri":"file:///secret"}"#,
        r#"{"name":"allowed","name":"secret"}"#,
        r#"{"name":"allowed","Name":"secret"}"#,
        r#""allowed""#,
    ] {
        assert!(params("completion/complete", &format!(r#"{{"ref":{of}}}"#)).is_err(), "{of}");
    }
    let about = |notifications: &str| match params(
        "subscriptions/listen",
        &format!(r#"{{"notifications":{notifications}}}"#),
    ) {
        Ok(Message::Request(request)) => Some(request.resources),
        _ => None,
    };
    assert_eq!(about(r#"{"toolsListChanged":true}"#), Some(vec![]));
    assert_eq!(about(r#"{"resourceSubscriptions":null}"#), Some(vec![]));
    assert_eq!(about(r#"{"resourceSubscriptions":["a","b"]}"#), Some(vec!["a".into(), "b".into()]));
    for odd in [
        r#"[]"#,
        r#"{"resourceSubscriptions":["a",1]}"#,
        r#"{"resourceSubscriptions":["a"],"resourcesubscriptions":["b"]}"#,
    ] {
        assert_eq!(about(odd), None, "{odd}");
    }
}

/// Before anybody has decided whether its sender may ask for anything, every key is compared.
#[test]
fn keys_have_a_bound_and_are_compared_letter_by_letter() {
    let body = |keys: usize| {
        let keys: String = (0..keys).map(|key| format!(r#""é{key}":0,"#)).collect();
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{keys}"name":"x"}}}}"#)
    };
    let named = |body: &str| parse(body.as_bytes()).map(|message| matches!(message, Message::Request(_)));
    assert_eq!(named(&body(KEYS_MAX - 1)).ok(), Some(true));
    let too_many = named(&body(KEYS_MAX)).unwrap_err();
    assert!(too_many.text.contains("more than 4096 keys") && too_many.raw_id.as_deref() == Some("1"), "{too_many:?}");
    for (key, alike) in [("NaMe", true), ("\u{212a}ey", true), ("na", false), ("names", false), ("é", false)] {
        assert_eq!(is_alike("name", key) || is_alike("key", key), alike, "{key}");
    }
}

/// Of either era, and one that names no task is nobody's.
#[test]
fn what_tells_of_a_task_names_it() {
    let of = |method: &str, params: &str| {
        let note = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
        match parse(note.as_bytes()) {
            Ok(Message::Notification { task, .. }) => task,
            other => panic!("{other:?}"),
        }
    };
    for method in ["notifications/tasks", "notifications/tasks/status"] {
        assert_eq!(of(method, r#"{"taskId":"t"}"#).as_deref(), Some("t"));
        assert_eq!(of(method, r#"{"status":"working"}"#).as_deref(), Some(""));
    }
    assert_eq!(of("notifications/tasksets", r#"{"taskId":"t"}"#), None);
}
