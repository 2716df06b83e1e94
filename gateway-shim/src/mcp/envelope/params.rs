//! What is read of the parameters of a message: what it is decided on, and what a record says of it.
//!
//! What must hold: what is decided on here is one thing to every reader, or the message is refused.

use custody::hash::text_digest;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, value::RawValue};

use super::{Known, Malformed, no_message, object, text};

#[derive(Default)]
pub(super) struct Params<'a> {
    pub(super) name: Option<String>,
    pub(super) meta: Option<Meta>,
    pub(super) client: Option<ClientInfo>,
    pub(super) protocol: Option<String>,
    pub(super) request_id: Option<Value>,
    pub(super) progress: Option<Value>,
    pub(super) uri: Option<&'a RawValue>,
    pub(super) of: Option<&'a RawValue>,
    pub(super) listens: Option<&'a RawValue>,
    pub(super) task: Option<String>,
    pub(super) state: Option<[u8; 32]>,
}

#[derive(Default, Deserialize)]
pub(super) struct Meta {
    pub(super) traceparent: Option<String>,
    #[serde(rename = "progressToken")]
    pub(super) progress: Option<Value>,
    #[serde(rename = "io.modelcontextprotocol/clientInfo")]
    pub(super) client: Option<ClientInfo>,
    #[serde(rename = "io.modelcontextprotocol/protocolVersion")]
    pub(super) protocol: Option<String>,
    #[serde(default, rename = "io.modelcontextprotocol/clientCapabilities")]
    pub(super) capabilities: Capabilities,
    #[serde(rename = "io.modelcontextprotocol/subscriptionId")]
    pub(super) subscription: Option<Value>,
}

/// Other forms than these say nothing of tasks.
#[derive(Default)]
pub(super) struct Capabilities {
    pub(super) tasks: bool,
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let said = Value::deserialize(deserializer)?;
        let tasks = said.get("extensions").and_then(|extensions| extensions.get("io.modelcontextprotocol/tasks"));
        Ok(Self { tasks: tasks.is_some() })
    }
}

#[derive(Default, Deserialize)]
pub(super) struct ClientInfo {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) version: String,
}

/// What `completion/complete` completes. It is decided on that, so it must be one thing to every reader.
pub(super) fn reference(of: &RawValue) -> Result<Option<String>, Malformed> {
    let Ok(object) = object(of.get(), Known(["type", "name", "uri"])) else {
        return no_message("in params: ref is not in form");
    };
    let [_, name, uri] = object.values();
    match (object.fault, name, uri) {
        (Some(fault), ..) => no_message(format!("in params: in ref: {fault}")),
        (None, Some(_), Some(_)) => no_message("in params: ref names a prompt and a resource"),
        (None, name, uri) => of_params("ref", name.or(uri)),
    }
}

/// The resources that a subscription is about.
pub(super) fn resources(listens: &RawValue) -> Result<Vec<String>, Malformed> {
    let Ok(object) = object(listens.get(), Known(["resourceSubscriptions"])) else {
        return no_message("in params: notifications is not in form");
    };
    if let Some(fault) = object.fault {
        return no_message(format!("in params: in notifications: {fault}"));
    }
    let [uris] = object.values();
    let uris = uris.map(|uris| serde_json::from_str::<Option<Vec<String>>>(uris.get())).transpose();
    let in_form = uris.map_err(|_| Malformed::no_message("in params: resourceSubscriptions is no list of texts"))?;
    Ok(in_form.flatten().unwrap_or_default())
}

pub(super) fn params(raw: Option<&RawValue>) -> Result<Params<'_>, Malformed> {
    let Some(raw) = raw.map(RawValue::get).filter(|raw| *raw != "null") else { return Ok(Params::default()) };
    if !raw.starts_with('{') {
        // Whoever reads a list by its places finds names where none is read here.
        return no_message("params is no object");
    }
    let known = Known([
        "name",
        "_meta",
        "clientInfo",
        "protocolVersion",
        "requestId",
        "progressToken",
        "uri",
        "ref",
        "taskId",
        "requestState",
        "notifications",
        // These are only for the server, which must not read two of them.
        "arguments",
        "inputResponses",
    ]);
    let Ok(object) = object(raw, known) else { return no_message("a key of params is no text in Unicode") };
    let [name, meta, client, protocol, request_id, progress, uri, of, task, state, listens, ..] = object.values();
    if let Some(fault) = object.fault {
        return no_message(format!("in params: {fault}"));
    }
    Ok(Params {
        name: of_params("name", name)?,
        meta: of_params("_meta", meta)?,
        client: of_params("clientInfo", client)?,
        protocol: of_params("protocolVersion", protocol)?,
        request_id: of_params("requestId", request_id)?,
        progress: of_params("progressToken", progress)?,
        // Other methods may give these names to something else.
        uri,
        of,
        listens,
        task: text(task),
        state: of_params::<String>("requestState", state)?.map(|state| text_digest(state.as_bytes())),
    })
}

pub(super) fn of_params<'a, T: Deserialize<'a>>(
    key: &str,
    value: Option<&'a RawValue>,
) -> Result<Option<T>, Malformed> {
    let Some(value) = value else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|_| Malformed::no_message(format!("in params: {key} is not in form")))
}
