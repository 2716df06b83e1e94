//! All servers behind one URL, `/mcp`: tools and prompts are named `SERVER__NAME`, resources by their URIs.
//!
//! What must hold: whatever goes to a server goes through that server's [`Proxy`], which decides and records as at `/mcp/SERVER`;
//! of a body that goes on only a name or an id changes; a session is of whoever began it, and begins one at each server when
//! that is first asked something.
//!
//! Which era (docs/decisions/0014): with sessions, every server is asked in a session of its own, its GET stream is part of the
//! one here, and its requests come with its name; without, each request goes as it is to a server that speaks so. It says that it
//! speaks without sessions (`server/discover`) when every server that the member may reach does, because clients of both eras
//! then miss nothing; else it declines as older servers do, and they begin a session. Nothing is translated: what a server cannot be asked
//! here is told with the address where it can.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
};
use bytes::Bytes;
use custody::{access, wire::Outcome};
use futures::future::join_all;
use tokio::time::Instant;

use super::{
    Answer, Front, METHOD, NAME, PROTOCOL, SESSION, admit,
    arrive::{NotRead, Taking},
    port,
    proxy::{Came, Proxy},
    refusal::{CODE_ELSEWHERE, CODE_NO_SESSION, Refusal, error, json, own_code},
    sessions::{self, Speaker},
    stdio, text,
};
use crate::{
    access::{Caller, Judgement},
    config::BETWEEN,
    gateway,
    listen::Load,
    mcp::{
        envelope::{self, Message, Request},
        headers::{self, Era, encoded},
        splice,
    },
    server::probe::DISCOVER,
    writer::{Ending, Refused},
};

mod hears;
mod joint;
mod lists;
mod streams;
mod subscribe;

use joint::{Joint, Joints};
use lists::Routes;

/// Versions that a session may speak; the last is spoken to whoever asks for another.
const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// JSON-RPC's code for parameters that are none.
const NO_SUCH: i32 = -32_602;
/// The same for a method that is none.
const NO_METHOD: i32 = -32_601;
/// What a session with all servers can; whether a tool takes part in it says the tool.
const CAPABILITIES: &str = r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"completions":{},"logging":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}}}"#;
/// The same without sessions.
const CAPABILITIES_SINCE: &str = r#"{"tools":{"listChanged":true},"prompts":{"listChanged":true},"resources":{"subscribe":true,"listChanged":true},"completions":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
/// How long it is believed that a server does not speak without sessions.
const ERA_FOR: Duration = Duration::from_secs(300);

/// What the one endpoint keeps.
#[derive(Default)]
pub(super) struct All {
    joints: Joints,
    routes: Mutex<Routes>,
    lists: lists::Budget,
    /// Servers that were seen not to speak without sessions, and until when that is believed.
    with_sessions: Mutex<BTreeMap<String, Instant>>,
}

impl All {
    fn seen(&self, server: &str, speaks: bool) {
        let mut with_sessions = self.with_sessions.lock().unwrap_or_else(PoisonError::into_inner);
        match speaks {
            true => drop(with_sessions.remove(server)),
            false => drop(with_sessions.insert(server.to_owned(), Instant::now() + ERA_FOR)),
        }
    }

    fn needs_session(&self, server: &str) -> bool {
        let with_sessions = self.with_sessions.lock().unwrap_or_else(PoisonError::into_inner);
        with_sessions.get(server).is_some_and(|until| Instant::now() < *until)
    }
}

/// Where a server is asked that cannot be asked here.
fn at_its_own(server: &str, why: &str) -> String {
    format!("the server {server} {why}; hint: ask it at /mcp/{server}")
}

/// Where a request goes.
enum To {
    /// To this server, with this body.
    One(Arc<Proxy>, Bytes),
    /// It names what no server has; in words.
    Nobody(&'static str),
    /// It names nothing.
    All,
}

const NO_NAME: &str =
    "there is nothing of this name; hint: names here begin with that of their server, as SERVER__NAME";
const NO_RESOURCE: &str = "no server here lists this; hint: ask the one that has it at /mcp/NAME";
const NO_TASK: &str = "there is no such task";

fn result(id: &str, result: &str) -> Answer {
    json(StatusCode::OK, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).into())
}

/// The record of what is answered here; `None` if it is let go unrecorded, and declared.
struct OwnRecord(Option<gateway::Running>);

impl OwnRecord {
    fn end(&mut self, ending: Ending) {
        if let Some(record) = self.0.take() {
            record.end(ending);
        }
    }

    /// It was answered so.
    fn answered(&mut self, error: Option<i32>) {
        self.end(match error {
            None => Ending::of(Outcome::Ok),
            Some(code) => Ending { error_code: Some(code.cast_unsigned()), ..Ending::of(Outcome::RpcError) },
        });
    }
}

impl Front {
    fn reachable<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a Arc<Proxy>> {
        self.proxies.values().filter(|proxy| self.shared.access.may_reach(caller, &proxy.name))
    }

    /// Whether somebody may ask whether anybody is here: whoever may at any server. They may be nobody any more, since the body
    /// of a request comes behind its head.
    fn judge_ping(&self, caller: &Caller) -> Judgement {
        let (rule, policy) = (access::DEFAULT_DENY.into(), self.shared.access.digest());
        let mut judgement = Judgement { allowed: false, rule, policy, nobody: None };
        for proxy in self.proxies.values() {
            let asked = admit::asked_of_session(&proxy.name, caller, 0);
            judgement = self.shared.access.judge(caller, &asked.ask());
            if judgement.allowed {
                break;
            }
        }
        judgement
    }

    /// Begins the record of what is answered here; refused to whoever may reach nothing. It ends when it is known how.
    async fn own(&self, came: &Came, request: &Request, bytes: usize) -> Result<OwnRecord, Refusal> {
        self.own_as(&request.method, came, request, bytes).await
    }

    /// The same for what has no body: at the pace of what it is decided as, like a stream at `/mcp/SERVER`.
    async fn own_stream(&self, came: &Came, method: &str) -> Result<OwnRecord, Refusal> {
        let request = Request { method: method.to_owned(), ..Request::default() };
        self.own_as(admit::OF_SESSION, came, &request, 0).await
    }

    /// The same, at the pace of this method.
    async fn own_as(&self, paced: &str, came: &Came, request: &Request, bytes: usize) -> Result<OwnRecord, Refusal> {
        let allowed = self.reachable(&came.caller).next().is_some();
        let rule = if allowed { access::SESSION } else { access::DEFAULT_DENY }.into();
        let nobody = if allowed { None } else { self.judge_ping(&came.caller).nobody };
        let judgement = Judgement { allowed, rule, policy: self.shared.access.digest(), nobody };
        let mut call = self.shared.describe("", Some(request), &Speaker::default(), Some(&came.caller), bytes as u64);
        if !judgement.allowed {
            let refusal = Refusal::denied(&judgement);
            self.shared.refuse(call, &refusal).await;
            return Err(refusal);
        }
        let enter = || self.shared.pace.enter(came.caller.member, paced).map_err(|over| Refusal::over_limit(&over));
        if let Err(refusal) = sessions::check_kept(&request.method, bytes).and_then(|()| enter()) {
            self.shared.refuse(call, &refusal).await;
            return Err(refusal);
        }
        super::told::allowed(&mut call, &judgement);
        match self.shared.gateway.begin(call).await {
            Ok(record) => Ok(OwnRecord(Some(record))),
            Err(Refused::Dropped) => Ok(OwnRecord(None)),
            Err(refused) => Err(refused.into()),
        }
    }

    async fn refuse_all(&self, came: &Came, request: Option<&Request>, bytes: usize, refusal: Refusal) -> Answer {
        let call = self.shared.describe("", request, &Speaker::default(), Some(&came.caller), bytes as u64);
        self.shared.refuse(call, &refusal).await;
        refusal.answer(request.map_or("null", |request| &request.raw_id))
    }

    pub(super) async fn handle_all(&self, load: &Load, method: Method, came: Came, body: Body) -> Answer {
        match method {
            Method::POST => {
                let bytes_max = self.config.request_kib_max * 1_024;
                let taking = Taking { bytes_max, wait: self.waits.body, counts: &self.counts };
                let (body, carried) = match self.shared.arrives(load, &came, body, taking).await {
                    Ok(arrived) => arrived,
                    Err(NotRead::Refused(refusal, bytes)) => return self.refuse_all(&came, None, bytes, refusal).await,
                    Err(NotRead::Torn(answer)) => return answer,
                };
                port::carry(self.message_to_all(came, body).await, carried)
            }
            Method::GET | Method::DELETE if came.said().era() == Era::Legacy => {
                let Some(carried) = load.request_of(came.caller.member) else {
                    return self.refuse_all(&came, None, 0, Refusal::connections()).await;
                };
                let joint = came.session().and_then(|id| self.all.joints.of(id, &came.caller));
                let answer = match (joint, method) {
                    (None, _) => self.refuse_all(&came, None, 0, Refusal::not_yours()).await,
                    (Some(joint), Method::GET) => self.hear_all(came, joint).await,
                    (Some(joint), _) => self.end_all(&came, &joint).await,
                };
                port::carry(answer, carried)
            }
            _ => {
                let text = "POST alone, from 2026-07-28 on; GET and DELETE of a session before";
                self.refuse_all(&came, None, 0, Refusal::no_method(StatusCode::METHOD_NOT_ALLOWED, text)).await
            }
        }
    }

    async fn message_to_all(&self, came: Came, body: Bytes) -> Answer {
        let message = match envelope::parse(&body) {
            Ok(message) => message,
            Err(malformed) => return self.refuse_all(&came, None, body.len(), Refusal::malformed(malformed)).await,
        };
        let era = match &message {
            Message::Request(request) => headers::check(&came.said(), request),
            _ => Ok(came.said().era()),
        };
        let of_message = match &message {
            Message::Request(request) => Some(&**request),
            _ => None,
        };
        let came = match era {
            Ok(era) => came.in_era(era),
            Err(mismatch) => {
                return self.refuse_all(&came, of_message, body.len(), Refusal::mismatch(mismatch)).await;
            }
        };
        let joint = match came.session().map(|id| self.all.joints.of(id, &came.caller)) {
            Some(None) => return self.refuse_all(&came, of_message, body.len(), Refusal::not_yours()).await,
            joint => joint.flatten(),
        };
        match message {
            Message::Request(request) => self.request_to_all(came, joint, *request, body).await,
            message => self.note_to_all(&came, joint, message, body).await,
        }
    }

    async fn request_to_all(&self, came: Came, joint: Option<Arc<Joint>>, request: Request, body: Bytes) -> Answer {
        if joint.is_none() && !came.is_modern() && request.method != "initialize" && request.method != "server/discover"
        {
            let refusal = Refusal::no_method(StatusCode::BAD_REQUEST, "Bad Request: no session; begin with initialize");
            return self.refuse_all(&came, Some(&request), body.len(), refusal).await;
        }
        match self.route_or_learn(&came, joint.as_ref(), &request, &body).await {
            To::One(proxy, body) => return self.to_one(&proxy, &came, joint.as_ref(), body).await,
            To::Nobody(text) => {
                return self.refuse_all(&came, Some(&request), body.len(), Refusal::no_such(text)).await;
            }
            To::All => {}
        }
        if admit::is_counted(&request.method) {
            let judgement = self.judge_ping(&came.caller);
            if !judgement.allowed {
                return self.refuse_all(&came, Some(&request), body.len(), Refusal::denied(&judgement)).await;
            }
            self.counts.pings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return result(&request.raw_id, "{}");
        }
        let is_known = match request.method.as_str() {
            "subscriptions/listen" => joint.is_none() && came.is_modern(),
            "initialize" | "server/discover" | "logging/setLevel" => true,
            method => lists::key(method).is_some(),
        };
        if !is_known {
            let status = if came.is_modern() { StatusCode::NOT_FOUND } else { StatusCode::OK };
            return self.refuse_all(&came, Some(&request), body.len(), Refusal::no_such_method(status)).await;
        }
        let mut record = match self.own(&came, &request, body.len()).await {
            Ok(record) => record,
            Err(refusal) => return refusal.answer(&request.raw_id),
        };
        let answer = match request.method.as_str() {
            "initialize" => self.begin(&came, &request, body),
            "server/discover" => self.discover(&came, &request).await,
            "subscriptions/listen" => return self.subscribe(&came, &request, &body, record).await,
            "logging/setLevel" => {
                if let Some(joint) = joint {
                    *joint.level.lock().unwrap_or_else(PoisonError::into_inner) = Some(body.clone());
                    self.to_begun(&came, &joint, &body).await;
                }
                result(&request.raw_id, "{}")
            }
            method => {
                let key = lists::key(method).unwrap_or_default();
                self.list(&came, joint.as_ref(), &request, &body, key).await
            }
        };
        record.answered(own_code(&answer));
        answer
    }

    /// A session with all servers; each is begun when it is first asked something.
    fn begin(&self, came: &Came, request: &Request, body: Bytes) -> Answer {
        let asked = request.protocol.as_deref().and_then(|version| VERSIONS.iter().find(|known| **known == version));
        let version = asked.or(VERSIONS.last()).copied().unwrap_or_default();
        let id = self.all.joints.begin(came.caller.clone(), body);
        let mut answer = result(
            &request.raw_id,
            &format!(
                r#"{{"protocolVersion":"{version}","capabilities":{CAPABILITIES},"serverInfo":{{"name":"{}","version":"{}"}}}}"#,
                crate::PRODUCT,
                crate::VERSION
            ),
        );
        if let Ok(id) = HeaderValue::from_str(&id) {
            answer.headers_mut().insert(SESSION, id);
        }
        answer
    }

    /// Says that the era without sessions is spoken, if all servers speak it.
    async fn discover(&self, came: &Came, request: &Request) -> Answer {
        if !came.is_modern() {
            return no_session(&request.raw_id);
        }
        // Asked as the shim itself asks: what one client makes of its question is no news of a server to the others.
        let own = Came { caller: came.caller.clone(), headers: of_discover() };
        let own = &own;
        let asks = self.reachable(&came.caller).map(|proxy| async move {
            let answer = proxy.message(own.clone(), Bytes::from_static(DISCOVER.as_bytes())).await;
            let status = answer.status();
            let text = lists::read(answer).await.unwrap_or_default();
            let speaks = status.is_success() && said(&text, &["result"]).is_some();
            // One that is not reached now, or not by this member, or that asks for something else, may speak so all the same.
            if speaks || declines(status, &text) {
                self.all.seen(&proxy.name, speaks);
            }
            (!speaks).then(|| proxy.name.to_string())
        });
        let not: Vec<String> = join_all(asks).await.into_iter().flatten().collect();
        if !not.is_empty() {
            let text =
                format!("Bad Request: no session; begin with initialize: {} here speaks so alone", not.join(", "));
            return error(StatusCode::BAD_REQUEST, &request.raw_id, CODE_NO_SESSION, &text);
        }
        let said = format!(
            r#"{{"resultType":"complete","supportedVersions":["{}"],"capabilities":{CAPABILITIES_SINCE},"serverInfo":{{"name":"{}","version":"{}"}},"ttlMs":0,"cacheScope":"private"}}"#,
            headers::MODERN_FROM,
            crate::PRODUCT,
            crate::VERSION
        );
        result(&request.raw_id, &said)
    }

    /// Where a request goes; a resource that nobody has listed here is looked for once.
    async fn route_or_learn(&self, came: &Came, joint: Option<&Arc<Joint>>, request: &Request, body: &Bytes) -> To {
        let to = self.route(&came.caller, request, body);
        if !matches!(to, To::Nobody(NO_RESOURCE)) || request.name.is_none() {
            return to;
        }
        self.learn_resources(came, joint, request, body).await;
        self.route(&came.caller, request, body)
    }

    fn route(&self, caller: &Caller, request: &Request, body: &Bytes) -> To {
        let by_name = |path: &[&str]| {
            let (server, name) = request.name.as_deref()?.split_once(BETWEEN)?;
            let proxy = self.proxies.get(server)?;
            let name = serde_json::to_string(name).ok()?;
            Some(To::One(Arc::clone(proxy), Bytes::from(splice::replace(body, path, &name)?)))
        };
        let by_uri = || {
            let proxy = self.proxies.get(&*self.of_resource(caller, request.name.as_deref()?)?)?;
            Some(To::One(Arc::clone(proxy), body.clone()))
        };
        let of_task = || {
            let task = request.task.as_deref()?;
            let mut of = self.proxies.values().filter(|proxy| proxy.has_begun(task, caller));
            match (of.next()?, of.next()) {
                (proxy, None) => Some(To::One(Arc::clone(proxy), body.clone())),
                _ => Some(To::Nobody("several servers have a task of this id; hint: ask the one at /mcp/NAME")),
            }
        };
        match request.method.as_str() {
            "tools/call" | "prompts/get" => by_name(&["params", "name"]).unwrap_or(To::Nobody(NO_NAME)),
            "completion/complete" => {
                by_name(&["params", "ref", "name"]).or_else(by_uri).unwrap_or(To::Nobody(NO_RESOURCE))
            }
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                by_uri().unwrap_or(To::Nobody(NO_RESOURCE))
            }
            "tasks/get" | "tasks/result" | "tasks/update" | "tasks/cancel" => of_task().unwrap_or(To::Nobody(NO_TASK)),
            _ => To::All,
        }
    }

    /// The server that has a resource, of those that somebody may reach.
    fn of_resource(&self, caller: &Caller, uri: &str) -> Option<Arc<str>> {
        let routes = self.all.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.of(uri, |server| self.shared.access.may_reach(caller, server))
    }

    /// Passes a message to one server, in its own session.
    async fn to_one(&self, proxy: &Arc<Proxy>, came: &Came, joint: Option<&Arc<Joint>>, body: Bytes) -> Answer {
        let Ok(Message::Request(request)) = envelope::parse(&body) else {
            return self.refuse_all(came, None, body.len(), Refusal::not_yours()).await;
        };
        let elsewhere =
            |why: &str| error(StatusCode::OK, &request.raw_id, CODE_ELSEWHERE, &at_its_own(&proxy.name, why));
        let mut there = match joint {
            Some(joint) => match joint.session(proxy, came).await {
                Ok(there) => there,
                Err(Some(said)) => {
                    let said = splice::replace(said.as_bytes(), &["id"], &request.raw_id).unwrap_or_default();
                    return json(StatusCode::OK, said.into());
                }
                Err(None) => return elsewhere("begins no session here"),
            },
            None if self.all.needs_session(&proxy.name) => return elsewhere("speaks with sessions alone"),
            None => came.clone(),
        };
        if let Some(header) = there.headers.get_mut(NAME)
            && let Some(name) = request.name.as_deref().and_then(|name| HeaderValue::from_str(&encoded(name)).ok())
        {
            *header = name;
        }
        let mut answer = proxy.message(there, body).await;
        match joint.and_then(|joint| HeaderValue::from_str(joint.id()).ok()) {
            Some(id) => {
                answer.headers_mut().insert(SESSION, id);
                streams::with_own_ids(answer, &proxy.name)
            }
            None => answer,
        }
    }

    /// Passes a message to every server that was begun, and reads no answer.
    async fn to_begun(&self, came: &Came, joint: &Joint, body: &Bytes) {
        for (proxy, there) in joint.begun(&self.proxies, came) {
            drop(proxy.message(there, body.clone()).await);
        }
    }

    /// What has no answer: an answer to a request of a server, a cancellation, or what concerns all.
    async fn note_to_all(&self, came: &Came, joint: Option<Arc<Joint>>, message: Message, body: Bytes) -> Answer {
        let Some(joint) = joint else {
            return self.refuse_all(came, None, body.len(), Refusal::answers_nothing()).await;
        };
        match message {
            Message::Answer { .. } => self.back_to(came, &joint, streams::of_answer(&body), body.len()).await,
            Message::Notification { progress: Some(_), .. } => {
                self.back_to(came, &joint, streams::of_progress(&body), body.len()).await
            }
            Message::Notification { cancels: Some(id), .. } => {
                let begun = joint.begun(&self.proxies, came);
                let waits =
                    begun.iter().find(|(proxy, there)| there.session().is_some_and(|s| proxy.waits_for(s, &id)));
                match waits {
                    Some((proxy, there)) => proxy.message(there.clone(), body).await,
                    // Whose answer has not begun: a client's id is of one request, and the others do not know it.
                    None => {
                        self.to_begun(came, &joint, &body).await;
                        stdio::empty(StatusCode::ACCEPTED)
                    }
                }
            }
            // Each server was told when its session began.
            Message::Notification { method, .. } if method == "notifications/initialized" => {
                stdio::empty(StatusCode::ACCEPTED)
            }
            _ => {
                self.to_begun(came, &joint, &body).await;
                stdio::empty(StatusCode::ACCEPTED)
            }
        }
    }

    /// Passes on what is for the one server that it names.
    async fn back_to(&self, came: &Came, joint: &Joint, to: Option<(String, Bytes)>, bytes: usize) -> Answer {
        let Some((server, body)) = to.filter(|(server, _)| self.proxies.contains_key(server)) else {
            return self.refuse_all(came, None, bytes, Refusal::answers_nothing()).await;
        };
        match joint.begun(&self.proxies, came).into_iter().find(|(proxy, _)| *proxy.name == *server) {
            Some((proxy, there)) => proxy.message(there, body).await,
            None => self.refuse_all(came, None, bytes, Refusal::not_yours()).await,
        }
    }

    async fn end_all(&self, came: &Came, joint: &Arc<Joint>) -> Answer {
        let mut record = match self.own_stream(came, "DELETE").await {
            Ok(record) => record,
            Err(refusal) => return refusal.answer("null"),
        };
        self.all.joints.end(joint.id(), &came.caller);
        joint.end();
        // Each waits for its process to end.
        let begun = joint.begun(&self.proxies, came).into_iter();
        join_all(begun.map(|(proxy, there)| async move { drop(proxy.stream(Method::DELETE, there).await) })).await;
        record.answered(None);
        stdio::empty(StatusCode::OK)
    }
}

/// The headers of the shim's own question about the era.
fn of_discover() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    let accepts = HeaderValue::from_static("application/json, text/event-stream");
    let (version, method) =
        (HeaderValue::from_static(headers::MODERN_FROM), HeaderValue::from_static("server/discover"));
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, json), (header::ACCEPT, accepts)]);
    headers.extend([(HeaderName::from_static(PROTOCOL), version), (HeaderName::from_static(METHOD), method)]);
    headers
}

/// Whether a server says that it does not know the question, as those of the era before do: there is no such method, nothing
/// at this address without a session, or no session.
fn declines(status: StatusCode, text: &str) -> bool {
    let code = said(text, &["error", "code"]).and_then(|code| code.parse::<i32>().ok());
    match status {
        StatusCode::NOT_FOUND => true,
        StatusCode::BAD_REQUEST => code.is_none_or(|code| code == CODE_NO_SESSION || code == NO_METHOD),
        _ => code == Some(NO_METHOD),
    }
}

/// What servers of the era before answer to `server/discover`.
fn no_session(raw_id: &str) -> Answer {
    let text = "Bad Request: no session; begin with initialize";
    error(StatusCode::BAD_REQUEST, raw_id, CODE_NO_SESSION, text)
}

/// The proxies by name.
type Proxies = BTreeMap<String, Arc<Proxy>>;

/// What a server said in its `initialize`.
fn said<'a>(answer: &'a str, path: &[&str]) -> Option<&'a str> {
    splice::value(answer, path)
}

/// A header's text of an answer.
fn of_answer<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    text(answer.headers(), name)
}
