//! The envelope of one JSON-RPC message: kind, id, method, tool, `_meta`.

use std::collections::BTreeMap;

use custody::{
    hash::text_digest,
    id::unhex,
    strict::is_token,
    wire::{self, Outcome, call},
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use crate::writer::Ending;

/// A message, as far as it is read.
#[derive(Debug)]
pub enum Message {
    /// It asks for an answer.
    Request(Box<Request>),
    /// It asks for none.
    Notification {
        /// Its method.
        method: String,
        /// Key of the request that `notifications/cancelled` gives up.
        cancels: Option<String>,
        /// Key of the progress token of `notifications/progress`.
        progress: Option<String>,
    },
    /// The answer to a request.
    Answer {
        /// Key of that request's id.
        id: String,
        /// How the call ended.
        ending: Ending,
    },
}

/// A request.
#[derive(Debug)]
pub struct Request {
    /// Equal for equal ids, whatever their spelling.
    pub id: String,
    /// The id as it was spelt, for an answer of our own.
    pub raw_id: String,
    /// Its method.
    pub method: String,
    /// Name of the tool of `tools/call`.
    pub tool: Option<String>,
    /// As it says of itself in `initialize` or in `_meta`.
    pub client: Option<(String, String)>,
    /// Protocol version that it speaks or asks for.
    pub protocol: Option<String>,
    /// W3C.
    pub trace: Option<wire::TraceContext>,
    /// Key of its progress token.
    pub progress: Option<String>,
}

/// Why a body is no message. The text completes "the body ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not JSON, or the envelope does not fit; JSON-RPC code -32700.
    NotJson,
    /// JSON, but not one message; JSON-RPC code -32600.
    NotAMessage,
}

#[derive(Deserialize)]
struct Raw {
    jsonrpc: Option<String>,
    #[serde(default, deserialize_with = "present")]
    id: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    method: Option<String>,
    params: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    code: i64,
}

#[derive(Default, Deserialize)]
struct Params {
    name: Option<String>,
    #[serde(rename = "_meta")]
    meta: Option<Meta>,
    #[serde(rename = "clientInfo")]
    client: Option<ClientInfo>,
    #[serde(rename = "protocolVersion")]
    protocol: Option<String>,
    #[serde(rename = "requestId")]
    request_id: Option<Value>,
    #[serde(rename = "progressToken")]
    progress: Option<Value>,
}

#[derive(Default, Deserialize)]
struct Meta {
    traceparent: Option<String>,
    #[serde(rename = "progressToken")]
    progress: Option<Value>,
    #[serde(rename = "io.modelcontextprotocol/clientInfo")]
    client: Option<ClientInfo>,
    #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
    protocol: Option<String>,
}

#[derive(Default, Deserialize)]
struct ClientInfo {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

#[derive(Deserialize)]
struct RawResult {
    #[serde(default, rename = "isError")]
    is_error: bool,
    #[serde(rename = "resultType")]
    kind: Option<String>,
}

/// `null` is a value, too: an id that is null is not an id that is absent, and what has a method is no answer.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads the envelope of a body that is one message.
///
/// # Errors
/// [`Malformed`]; also for several messages in one body, which no version since 2025-06-18 allows.
pub fn parse(body: &[u8]) -> Result<Message, Malformed> {
    // JSON is UTF-8 (RFC 8259, 8.1). What is only skipped here would else not be looked at, and readers differ over it.
    let body = std::str::from_utf8(body).map_err(|_| Malformed::NotJson)?;
    let raw: Raw = serde_json::from_str(body).map_err(|_| match serde_json::from_str::<&RawValue>(body) {
        Ok(_) => Malformed::NotAMessage,
        Err(_) => Malformed::NotJson,
    })?;
    if raw.jsonrpc.as_deref() != Some("2.0")
        || has_double(body, &["jsonrpc", "id", "method", "params", "result", "error"])
    {
        return Err(Malformed::NotAMessage);
    }
    match (&raw.method, &raw.id) {
        (Some(_), Some(_)) if raw.result.is_none() && raw.error.is_none() => request(raw),
        // A request without an id would be done by a server that does not look, and nobody would have it on record.
        (Some(method), None) if !method.starts_with("notifications/") => Err(Malformed::NotAMessage),
        (Some(method), None) => {
            let params = params(raw.params.as_deref())?;
            let method = method.clone();
            let cancels = params.request_id.as_ref().filter(|_| method == "notifications/cancelled").and_then(key);
            let progress = params.progress.as_ref().filter(|_| method == "notifications/progress").and_then(key);
            Ok(Message::Notification { method, cancels, progress })
        }
        (None, Some(id)) => {
            // An error about a request whose id could not be read has the id null, and answers nobody.
            let id = id_key(id).unwrap_or_default();
            let ending = ending(&raw).ok_or(Malformed::NotAMessage)?;
            Ok(Message::Answer { id, ending: Ending { response_bytes: body.len() as u64, ..ending } })
        }
        _ => Err(Malformed::NotAMessage),
    }
}

fn request(raw: Raw) -> Result<Message, Malformed> {
    let (Some(id), Some(method)) = (raw.id, raw.method) else { return Err(Malformed::NotAMessage) };
    let key = id_key(&id).ok_or(Malformed::NotAMessage)?;
    let params = params(raw.params.as_deref())?;
    let meta = params.meta.unwrap_or_default();
    let client = params.client.filter(|_| method == "initialize").or(meta.client);
    Ok(Message::Request(Box::new(Request {
        id: key,
        raw_id: id.get().to_owned(),
        tool: params.name.filter(|_| method == "tools/call"),
        client: client.map(|client| (client.name, client.version)),
        protocol: params.protocol.filter(|_| method == "initialize").or(meta.protocol),
        trace: meta.traceparent.as_deref().and_then(trace),
        progress: meta.progress.as_ref().and_then(self::key),
        method,
    })))
}

fn params(raw: Option<&RawValue>) -> Result<Params, Malformed> {
    match raw {
        Some(raw)
            if raw.get().starts_with('{') && !has_double(raw.get(), &["name", "uri", "arguments", "requestId"]) =>
        {
            serde_json::from_str(raw.get()).map_err(|_| Malformed::NotAMessage)
        }
        Some(raw) if raw.get().starts_with('{') => Err(Malformed::NotAMessage),
        _ => Ok(Params::default()),
    }
}

/// Whether a key of this object is one of `known` but for the case of its letters: some servers (Go's `encoding/json`) read it
/// as that one, and would do something else than what is on record.
fn has_double(object: &str, known: &[&str]) -> bool {
    // Also letters that only fold to one of ASCII: U+212A and U+017F.
    let fold = |key: &str| key.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect::<String>();
    let keys: BTreeMap<String, IgnoredAny> = serde_json::from_str(object).unwrap_or_default();
    keys.keys().any(|key| !known.contains(&key.as_str()) && known.iter().any(|known| fold(known) == fold(key)))
}

fn id_key(id: &RawValue) -> Option<String> {
    serde_json::from_str::<Value>(id.get()).ok().as_ref().and_then(key)
}

/// Strings and numbers never have the same key.
fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(format!("s{text}")),
        Value::Number(number) => Some(format!("n{number}")),
        _ => None,
    }
}

fn ending(raw: &Raw) -> Option<Ending> {
    if let Some(error) = &raw.error {
        // The 32 bits of its two's complement; a code beyond 32 bits is not JSON-RPC's.
        let code = i32::try_from(error.code).ok().map(i32::cast_unsigned);
        return Some(Ending { error_code: code, ..Ending::of(Outcome::RpcError) });
    }
    let result = raw.result.as_deref()?;
    let said = serde_json::from_str::<RawResult>(result.get()).ok();
    let outcome = match said {
        Some(RawResult { is_error: true, .. }) => Outcome::ToolError,
        Some(RawResult { kind: Some(kind), .. }) if kind == "input_required" => Outcome::InputRequired,
        Some(RawResult { kind: Some(kind), .. }) if kind == "task" => Outcome::Deferred,
        _ => Outcome::Ok,
    };
    Some(Ending::of(outcome))
}

/// A `traceparent` of version 00 (W3C Trace Context, 3.2).
fn trace(text: &str) -> Option<wire::TraceContext> {
    let mut parts = text.split('-');
    let mut next = |length: usize| parts.next().and_then(unhex).filter(|bytes| bytes.len() == length);
    let version = next(1)?;
    let (trace_id, span_id, flags) = (next(16)?, next(8)?, next(1)?);
    let plain = version == [0] && parts.next().is_none();
    let set = trace_id.iter().any(|byte| *byte != 0) && span_id.iter().any(|byte| *byte != 0);
    (plain && set).then(|| wire::TraceContext {
        trace_id: trace_id.into(),
        span_id: span_id.into(),
        flags: u32::from(flags.first().copied().unwrap_or(0)),
    })
}

/// A caller's text as a record may hold it: as it is if it is a token, else its digest.
pub enum Text {
    /// At most 128 characters of `[A-Za-z0-9_./:@+-]`.
    Token(String),
    /// Anything else.
    Digest(bytes::Bytes),
}

impl Text {
    /// Of a caller's text.
    pub fn of(text: &str) -> Self {
        match is_token(text) {
            true => Self::Token(text.to_owned()),
            false => Self::Digest(bytes::Bytes::copy_from_slice(&text_digest(text.as_bytes()))),
        }
    }
}

/// The tool of a call.
pub fn target(name: &str) -> call::Target {
    match Text::of(name) {
        Text::Token(text) => call::Target::Tool(text),
        Text::Digest(digest) => call::Target::ToolDigest(digest),
    }
}

/// The method of a call.
pub fn method(name: &str) -> call::Request {
    match Text::of(name) {
        Text::Token(text) => call::Request::Method(text),
        Text::Digest(digest) => call::Request::MethodDigest(digest),
    }
}

/// The name of a client.
pub fn client(name: &str) -> call::Client {
    match Text::of(name) {
        Text::Token(text) => call::Client::ClientName(text),
        Text::Digest(digest) => call::Client::ClientNameDigest(digest),
    }
}

/// The version of a client.
pub fn client_release(version: &str) -> call::ClientRelease {
    match Text::of(version) {
        Text::Token(text) => call::ClientRelease::ClientVersion(text),
        Text::Digest(digest) => call::ClientRelease::ClientVersionDigest(digest),
    }
}

#[cfg(test)]
mod tests {
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
    fn a_call_is_read_and_nothing_but_its_envelope() {
        let call = request(
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"name":"secret"},
            "_meta":{"progressToken":"p","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}"#,
        );
        assert_eq!((call.id.as_str(), call.raw_id.as_str(), call.tool.as_deref()), ("n7", "7", Some("echo")));
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
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":null,"error":{"code":1,"message":"m"}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#,
            r#"{"id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"a"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"Params":{"name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"param\u017f":{"name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/x","ID":5,"Method":"tools/call"}"#,
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap_err(), Malformed::NotAMessage, "{body}");
        }
        let skipped = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"x\":\"\xff\"}}";
        assert_eq!(parse(skipped).unwrap_err(), Malformed::NotJson);
        assert_eq!(parse(b"{").unwrap_err(), Malformed::NotJson);
        assert_eq!(parse(b"{}{}").unwrap_err(), Malformed::NotJson);
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
}
