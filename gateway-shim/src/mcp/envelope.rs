//! The envelope of one JSON-RPC message: kind, id, method, tool, `_meta`.

use custody::{
    hash::text_digest,
    id::unhex,
    strict::is_token,
    wire::{self, Outcome, call},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use crate::{
    forensic,
    writer::{Ending, Learnt},
};

mod params;

use params::{of_params, params, reference, resources};

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
        /// Id of the task that `notifications/tasks` tells of.
        task: Option<String>,
        /// Key of the id of the `subscriptions/listen` that it belongs to.
        subscription: Option<String>,
        /// URI of the resource that `notifications/resources/updated` tells of.
        resource: Option<String>,
    },
    /// The answer to a request.
    Answer {
        /// Key of that request's id.
        id: String,
        /// How the call ended.
        ending: Ending,
        /// What its result says of what comes next; most say nothing.
        next: Option<Box<Next>>,
    },
}

/// What a result says of what comes next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// The task that goes on, or is told of.
    pub task: Option<Task>,
    /// Digest of the state that the next round brings back.
    pub state: Option<[u8; 32]>,
    /// Methods of what the server asks the client for.
    pub asks: Vec<String>,
}

/// A task, as a result tells of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Task {
    /// The server's id of it.
    pub id: String,
    /// How it ended, if it has.
    pub ended: Option<Outcome>,
}

/// A request.
#[derive(Debug, Default)]
pub struct Request {
    /// Equal for equal ids, whatever their spelling.
    pub id: String,
    /// The id as it was spelt, for an answer of our own.
    pub raw_id: String,
    /// Its method.
    pub method: String,
    /// What it names: a tool, a prompt, or the URI of a resource.
    pub name: Option<String>,
    /// The task that it is about.
    pub task: Option<String>,
    /// Digest of the state that it brings back from the round before.
    pub state: Option<[u8; 32]>,
    /// URIs of the resources that `subscriptions/listen` wants to hear of (2026-07-28).
    pub resources: Vec<String>,
    /// Its client says that it knows tasks (2026-07-28).
    pub knows_tasks: bool,
    /// As it says of itself in `initialize` or in `_meta`.
    pub client: Option<(String, String)>,
    /// Protocol version that it speaks or asks for.
    pub protocol: Option<String>,
    /// W3C.
    pub trace: Option<wire::TraceContext>,
    /// Key of its progress token.
    pub progress: Option<String>,
}

/// JSON-RPC's code for what is not JSON.
const NOT_JSON: i32 = -32_700;
/// JSON-RPC's code for what is JSON, and not one message that may be sent.
pub const NOT_A_MESSAGE: i32 = -32_600;

/// Greatest number that every reader tells from its neighbours (RFC 7493, 2.2).
const ID_MAX: u64 = (1 << 53) - 1;
const NO_ID: &str = "the id is neither a text nor a whole number below 2^53";

/// Why a body is no message, as an error of JSON-RPC says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// JSON-RPC's.
    pub code: i32,
    /// In words, of characters that need no escape in JSON.
    pub text: String,
    /// The id as it was spelt, of what is a request as far as it can be read.
    pub raw_id: Option<String>,
    /// It is several messages in one body.
    pub is_batch: bool,
}

impl Malformed {
    fn not_json(text: &str) -> Self {
        Self { code: NOT_JSON, text: text.to_owned(), raw_id: None, is_batch: false }
    }

    fn no_message(text: impl Into<String>) -> Self {
        Self { code: NOT_A_MESSAGE, text: text.into(), raw_id: None, is_batch: false }
    }
}

fn no_message<T>(text: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed::no_message(text))
}

/// Keys of one object of a message: all versions together know some dozens, and each is compared before anybody has decided whether
/// its sender may ask for anything.
const KEYS_MAX: usize = 4_096;

/// Keys of an object that are read. A reader of one is given the values that stand under them, and reads all of the object.
struct Known<const N: usize>([&'static str; N]);

/// What stands under the known keys of an object.
struct Object<'a, const N: usize> {
    /// Of each key: how often it was seen, and the value.
    values: [(usize, Option<&'a RawValue>); N],
    /// The first key that another reader might read differently.
    fault: Option<String>,
}

impl<'a, const N: usize> Object<'a, N> {
    /// The value of each key that stands once.
    fn values(&self) -> [Option<&'a RawValue>; N] {
        self.values.map(|(count, value)| value.filter(|_| count == 1))
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for Known<N> {
    type Value = Object<'de, N>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Known<N> {
    type Value = Object<'de, N>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object { values: [(0, None); N], fault: None };
        let mut keys = 0;
        while let Some(key) = map.next_key::<String>()? {
            keys += 1;
            if keys > KEYS_MAX {
                object.fault = Some(format!("there are more than {KEYS_MAX} keys"));
                // Nothing in it is looked at any more, but that it ends.
                map.next_value::<IgnoredAny>()?;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(object);
            }
            let mut places = self.0.iter().zip(&mut object.values);
            let Some((known, (count, value))) = places.find(|(known, _)| is_alike(known, &key)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            (*count, *value) = (*count + 1, Some(map.next_value()?));
            if key != *known {
                // Whoever reads it as that one has two.
                *count += 1;
                let text = || format!("a key is {known} but for the case of its letters");
                object.fault.get_or_insert_with(text);
            } else if *count > 1 {
                object.fault.get_or_insert_with(|| format!("the key {known} stands twice"));
            }
        }
        Ok(object)
    }
}

/// Whether a key is `known` but for the case of its letters: some servers (Go's `encoding/json`) read it as that one.
pub(crate) fn is_alike(known: &str, key: &str) -> bool {
    if key.is_ascii() {
        return known.eq_ignore_ascii_case(key);
    }
    // Letters that only fold to one of ASCII: U+212A and U+017F. Letter by letter: most keys differ in their first.
    fold(known).eq(fold(key))
}

fn fold(key: &str) -> impl Iterator<Item = char> {
    key.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase)
}

fn object<const N: usize>(text: &str, known: Known<N>) -> serde_json::Result<Object<'_, N>> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let object = known.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(object)
}

/// The envelope of a message; what is null is there all the same, but for `params` and `error`.
struct Raw<'a> {
    id: Option<&'a RawValue>,
    method: Option<String>,
    params: Option<&'a RawValue>,
    result: Option<&'a RawValue>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
struct RawError {
    code: i64,
}

/// A request of the server within a result.
#[derive(Deserialize)]
struct Asked {
    method: String,
}

/// Reads the envelope of a body that is one message.
///
/// # Errors
/// [`Malformed`]; also for several messages in one body, which no version since 2025-06-18 allows.
pub fn parse(body: &[u8]) -> Result<Message, Malformed> {
    // JSON is UTF-8 (RFC 8259, 8.1). What is only skipped here would else not be looked at, and readers differ over it.
    let body = std::str::from_utf8(body).map_err(|_| Malformed::not_json("the body is not UTF-8, so it is no JSON"))?;
    let known = Known(["jsonrpc", "id", "method", "params", "result", "error"]);
    let read = object(body, known).map_err(|_| match serde_json::from_str::<&RawValue>(body).map(RawValue::get) {
        Err(_) => Malformed::not_json("the body is not JSON"),
        Ok(json) if json.starts_with('[') => Malformed {
            is_batch: true,
            ..Malformed::no_message("the body holds several messages; send each by itself")
        },
        Ok(json) if json.starts_with('{') => Malformed::no_message("a key of the message is no text in Unicode"),
        Ok(_) => Malformed::no_message("the body is JSON, but no object"),
    })?;
    let ([_, id, ..], [_, _, (methods, _), ..]) = (read.values(), read.values);
    // An answer has the id of the other side's request: none of ours may have it.
    let raw_id = id.filter(|id| methods > 0 && id_key(id).is_some()).map(|id| id.get().to_owned());
    message(read, body.len()).map_err(|malformed| Malformed { raw_id, ..malformed })
}

fn message(object: Object<'_, 6>, length: usize) -> Result<Message, Malformed> {
    let [jsonrpc, id, method, params, result, error] = object.values();
    if let Some(fault) = object.fault {
        return no_message(fault);
    }
    if text(jsonrpc) != Some("2.0".to_owned()) {
        return no_message("jsonrpc is not 2.0");
    }
    if method.is_some() && text(method).is_none() {
        return no_message("method is no text");
    }
    let error = match error.filter(|error| error.get() != "null") {
        Some(error) => match serde_json::from_str(error.get()) {
            Ok(error) => Some(error),
            Err(_) => return no_message("error holds no number as its code"),
        },
        None => None,
    };
    let raw = Raw { id, method: text(method), params, result, error };
    match (&raw.method, raw.id) {
        (Some(_), Some(_)) if raw.result.is_some() || raw.error.is_some() => {
            no_message("a request holds a result or an error")
        }
        (Some(_), Some(id)) => request(raw, id),
        // A request without an id would be done by a server that does not look, and nobody would have it on record.
        (Some(method), None) if !method.starts_with("notifications/") => {
            no_message("a request without an id, and no notification")
        }
        (Some(method), None) => {
            let params = self::params(raw.params)?;
            let method = method.clone();
            let cancels = params.request_id.as_ref().filter(|_| method == "notifications/cancelled").and_then(key);
            let progress = params.progress.as_ref().filter(|_| method == "notifications/progress").and_then(key);
            // In either era. One that names no task that can be read is about nobody's.
            let of_task = method == "notifications/tasks" || method.starts_with("notifications/tasks/");
            let task = of_task.then(|| params.task.unwrap_or_default());
            let meta = params.meta.unwrap_or_default();
            let subscription = meta.subscription.as_ref().and_then(key);
            let resource = match method == "notifications/resources/updated" {
                true => of_params("uri", params.uri)?,
                false => None,
            };
            Ok(Message::Notification { method, cancels, progress, task, subscription, resource })
        }
        (None, Some(id)) => {
            // An error about a request whose id could not be read has the id null, and answers nobody.
            let id = match id_key(id) {
                Some(id) => id,
                None if id.get() == "null" => String::new(),
                None => return no_message(NO_ID),
            };
            let Some((ending, next)) = ending(&raw)? else {
                return no_message("neither a method, nor a result, nor an error");
            };
            Ok(Message::Answer { id, ending: Ending { response_bytes: length as u64, ..ending }, next })
        }
        (None, None) => no_message("neither a method nor an id"),
    }
}

fn text(value: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(value?.get()).ok()
}

fn request(raw: Raw<'_>, id: &RawValue) -> Result<Message, Malformed> {
    let key = match id_key(id) {
        Some(key) => key,
        None if id.get() == "null" => return no_message("the id of a request is null"),
        None => return no_message(NO_ID),
    };
    let method = raw.method.unwrap_or_default();
    let params = params(raw.params)?;
    let meta = params.meta.unwrap_or_default();
    let client = params.client.filter(|_| method == "initialize").or(meta.client);
    Ok(Message::Request(Box::new(Request {
        id: key,
        raw_id: id.get().to_owned(),
        name: match method.as_str() {
            "tools/call" | "prompts/get" => params.name,
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => of_params("uri", params.uri)?,
            "completion/complete" => params.of.map(reference).transpose()?.flatten(),
            _ => None,
        },
        resources: match (method.as_str(), params.listens) {
            ("subscriptions/listen", Some(listens)) => resources(listens)?,
            _ => Vec::new(),
        },
        task: params.task.filter(|_| method.starts_with("tasks/")),
        state: params.state,
        knows_tasks: meta.capabilities.tasks,
        client: client.map(|client| (client.name, client.version)),
        protocol: params.protocol.filter(|_| method == "initialize").or(meta.protocol),
        trace: meta.traceparent.as_deref().and_then(trace),
        progress: meta.progress.as_ref().and_then(self::key),
        method,
    })))
}

/// The key of an id that is this number.
pub fn number_key(id: u64) -> String {
    format!("n{id}")
}

/// Readers differ over other numbers than these: 7.0 is 7 to one and not to the other, and beyond 2^53 two are one. Who waits
/// for the answer would not know it.
fn id_key(id: &RawValue) -> Option<String> {
    let id = serde_json::from_str::<Value>(id.get()).ok()?;
    let is_whole = id.as_i64().is_some_and(|number| number.unsigned_abs() <= ID_MAX);
    key(&id).filter(|_| id.is_string() || is_whole)
}

/// Strings and numbers never have the same key.
fn key(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(format!("s{text}")),
        Value::Number(number) => Some(format!("n{number}")),
        _ => None,
    }
}

type Ended = Option<(Ending, Option<Box<Next>>)>;

/// How an answer says that its call ended, and what comes next; `None` without result and error.
fn ending(raw: &Raw<'_>) -> Result<Ended, Malformed> {
    if let Some(error) = &raw.error {
        // The 32 bits of its two's complement; a code beyond 32 bits is not JSON-RPC's.
        let code = i32::try_from(error.code).ok().map(i32::cast_unsigned);
        return Ok(Some((Ending { error_code: code, ..Ending::of(Outcome::RpcError) }, None)));
    }
    let Some(result) = raw.result.map(RawValue::get) else { return Ok(None) };
    if !result.starts_with('{') {
        return Ok(Some((Ending::of(Outcome::Ok), None)));
    }
    let known = Known([
        "isError",
        "resultType",
        "requestState",
        "inputRequests",
        "task",
        "taskId",
        "status",
        "result",
        "_meta",
    ]);
    let Ok(object) = object(result, known) else { return no_message("a key of the result is no text in Unicode") };
    let [is_error, kind, state, asks, created, id, status, of_task, meta] = object.values();
    if let Some(fault) = object.fault {
        return no_message(format!("in the result: {fault}"));
    }
    let kind = text(kind);
    let outcome = match kind.as_deref() {
        _ if is_error.is_some_and(is_true) => Outcome::ToolError,
        Some("input_required") => Outcome::InputRequired,
        Some("task") => Outcome::Deferred,
        // 2025-11-25
        None if created.is_some_and(|task| self::task(task.get()).is_some()) => Outcome::Deferred,
        _ => Outcome::Ok,
    };
    let asks: std::collections::BTreeMap<String, Asked> = match asks.filter(|asks| asks.get() != "null") {
        Some(asks) => serde_json::from_str(asks.get())
            .map_err(|_| Malformed::no_message("in the result: inputRequests is not in form"))?,
        None => std::collections::BTreeMap::new(),
    };
    let flat = text(id).zip(text(status)).map(|(id, status)| Task { id, ended: task_outcome(&status, of_task) });
    let next = Next {
        task: created.and_then(|task| self::task(task.get())).or(flat),
        state: text(state).map(|state| text_digest(state.as_bytes())),
        asks: asks.into_values().map(|asked| asked.method).collect(),
    };
    let learnt = meta
        .and_then(|meta| forensic::of_meta(meta.get()))
        .map(|receipt| Box::new(Learnt { receipt: Some(receipt), ..Learnt::default() }));
    Ok(Some((Ending { learnt, ..Ending::of(outcome) }, (next != Next::default()).then(|| Box::new(next)))))
}

fn is_true(value: &RawValue) -> bool {
    value.get() == "true"
}

/// A task that a result of 2025-11-25 holds.
fn task(text: &str) -> Option<Task> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(rename = "taskId")]
        id: String,
        status: String,
    }
    let Raw { id, status } = serde_json::from_str(text).ok()?;
    Some(Task { id, ended: task_outcome(&status, None) })
}

/// How a task ended, if its status says that it has.
fn task_outcome(status: &str, result: Option<&RawValue>) -> Option<Outcome> {
    let known = || object(result?.get(), Known(["isError"])).ok();
    match status {
        "completed" if known().is_some_and(|object| object.values().into_iter().flatten().any(is_true)) => {
            Some(Outcome::ToolError)
        }
        "completed" => Some(Outcome::Ok),
        "failed" => Some(Outcome::RpcError),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    }
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
mod tests;
