//! All servers behind one URL, `/mcp`: tools and prompts are named `SERVER__NAME`, resources by their URIs.
//!
//! What must hold: whatever goes to a server goes through that server's [`Proxy`], which decides and records as at `/mcp/SERVER`;
//! of a body that goes on only a name or an id changes; a session is of whoever began it, and begins one at each server when
//! that is first asked something.
//!
//! It speaks the era without sessions when every server that the member may reach does; else it declines `server/discover` as
//! older servers do, and clients of both eras begin a session. What it does not do: the GET stream, and taking streams up
//! again (405); `subscriptions/listen`. Whoever needs these asks the server at its own address.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode},
};
use bytes::Bytes;
use custody::{
    access,
    wire::{self, Outcome, record::Kind},
};
use futures::future::join_all;

use super::{
    Answer, Front, SESSION, admit,
    arrive::{self, NotRead},
    port,
    proxy::{Came, Proxy},
    refusal::{CODE_NO_SESSION, Refusal, error, json},
    sessions::Speaker,
    stdio, text,
};
use crate::{
    access::{Caller, Judgement},
    config::BETWEEN,
    listen::Load,
    mcp::{
        envelope::{self, Message, Request},
        headers::{self, Era, encoded},
        splice,
    },
};

mod joint;
mod lists;
mod streams;

use joint::{Joint, Joints};
use lists::Routes;

/// Versions that a session may speak; the last is spoken to whoever asks for another.
const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// JSON-RPC's codes for a method and for parameters that are none.
const NO_METHOD: i32 = -32_601;
const NO_SUCH: i32 = -32_602;

/// What the one endpoint keeps.
#[derive(Default)]
pub(super) struct All {
    joints: Joints,
    routes: Mutex<Routes>,
}

fn result(id: &str, result: &str) -> Answer {
    json(StatusCode::OK, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#).into())
}

impl Front {
    fn reachable<'a>(&'a self, caller: &'a Caller) -> impl Iterator<Item = &'a Arc<Proxy>> {
        self.proxies.values().filter(|proxy| self.shared.access.may_reach(caller, &proxy.name))
    }

    /// Puts on record what is answered here; refused to whoever may reach nothing.
    async fn own(&self, came: &Came, request: &Request, bytes: usize) -> Result<(), Refusal> {
        let allowed = self.reachable(&came.caller).next().is_some();
        let rule = if allowed { access::SESSION } else { access::DEFAULT_DENY }.into();
        let judgement = Judgement { allowed, rule, policy: self.shared.access.digest() };
        let mut call = self.shared.describe("", Some(request), &Speaker::default(), Some(&came.caller), bytes as u64);
        if !judgement.allowed {
            let refusal = Refusal::denied(&judgement);
            self.shared.refuse(call, &refusal).await;
            return Err(refusal);
        }
        super::proxy::allowed(&mut call, &judgement);
        (call.phase, call.outcome) = (wire::Phase::Complete as i32, Outcome::Ok as i32);
        self.shared.gateway.record(Kind::Call(call)).await.map(drop).map_err(Refusal::from)
    }

    async fn refuse_all(&self, came: &Came, request: Option<&Request>, bytes: usize, refusal: Refusal) -> Answer {
        let call = self.shared.describe("", request, &Speaker::default(), Some(&came.caller), bytes as u64);
        self.shared.refuse(call, &refusal).await;
        refusal.answer(request.map_or("null", |request| &request.raw_id))
    }

    pub(super) async fn handle_all(&self, load: &Load, method: Method, came: Came, body: Body) -> Answer {
        match method {
            Method::POST => {
                let most = self.config.request_kib_max * 1_024;
                let body = match arrive::read(&came.headers, body, most, self.waits.body, &self.counts).await {
                    Ok(body) => body,
                    Err(NotRead::Torn(answer)) => return answer,
                    Err(NotRead::TooLong(bytes)) => {
                        return self.refuse_all(&came, None, bytes, Refusal::too_long(most)).await;
                    }
                };
                let Some(carried) = load.request_of(came.caller.member) else {
                    return self.refuse_all(&came, None, body.len(), Refusal::connections()).await;
                };
                port::carry(self.message_to_all(came, body).await, carried)
            }
            Method::DELETE if came.said().era() == Era::Legacy => self.end_all(&came).await,
            _ => {
                let refusal = Refusal::no_method(StatusCode::METHOD_NOT_ALLOWED, "POST or DELETE");
                self.refuse_all(&came, None, 0, refusal).await
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
        if let Some(to) = self.route(&came.caller, &request, &body) {
            return match to {
                Some((proxy, body)) => self.to_one(&proxy, &came, joint.as_deref(), body).await,
                None => error(StatusCode::OK, &request.raw_id, NO_SUCH, "there is nothing of this name"),
            };
        }
        if admit::is_counted(&request.method) {
            return result(&request.raw_id, "{}");
        }
        if let Err(refusal) = self.own(&came, &request, body.len()).await {
            return refusal.answer(&request.raw_id);
        }
        match request.method.as_str() {
            "initialize" => self.begin(&came, &request, body),
            "server/discover" => self.discover(&came, &request).await,
            "logging/setLevel" => {
                if let Some(joint) = joint {
                    self.to_begun(&came, &joint, &body).await;
                }
                result(&request.raw_id, "{}")
            }
            method => match lists::key(method) {
                Some(key) => self.list(&came, joint.as_deref(), &request, &body, key).await,
                None => {
                    let status = if came.is_modern() { StatusCode::NOT_FOUND } else { StatusCode::OK };
                    error(status, &request.raw_id, NO_METHOD, "there is no such method here")
                }
            },
        }
    }

    /// A session with all servers; each is begun when it is first asked something.
    fn begin(&self, came: &Came, request: &Request, body: Bytes) -> Answer {
        let asked = request.protocol.as_deref().and_then(|version| VERSIONS.iter().find(|known| **known == version));
        let version = asked.or(VERSIONS.last()).copied().unwrap_or_default();
        let id = self.all.joints.begin(came.caller.clone(), body);
        let mut answer = result(
            &request.raw_id,
            &format!(
                r#"{{"protocolVersion":"{version}","capabilities":{{"tools":{{}},"prompts":{{}},"resources":{{"subscribe":true}},"completions":{{}},"logging":{{}}}},"serverInfo":{{"name":"{}","version":"{}"}}}}"#,
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
        let asks = self.reachable(&came.caller).map(|proxy| async move {
            let answer = proxy.message(came.clone(), lists::ask("server/discover", request, None)).await;
            answer.status().is_success() && lists::read(answer).await.is_some()
        });
        if !join_all(asks).await.into_iter().all(|speaks| speaks) {
            return no_session(&request.raw_id);
        }
        let said = format!(
            r#"{{"resultType":"complete","supportedVersions":["{}"],"capabilities":{{"tools":{{}},"prompts":{{}},"resources":{{}},"completions":{{}}}},"serverInfo":{{"name":"{}","version":"{}"}},"ttlMs":0,"cacheScope":"private"}}"#,
            headers::MODERN_FROM,
            crate::PRODUCT,
            crate::VERSION
        );
        result(&request.raw_id, &said)
    }

    /// The server that a request names and the body as it is there; `None` within if there is none, `None` if it names nothing.
    fn route(&self, caller: &Caller, request: &Request, body: &Bytes) -> Option<Option<(Arc<Proxy>, Bytes)>> {
        let by_name = |path: &[&str]| {
            let (server, name) = request.name.as_deref()?.split_once(BETWEEN)?;
            let proxy = self.proxies.get(server)?;
            let name = serde_json::to_string(name).ok()?;
            Some((Arc::clone(proxy), Bytes::from(splice::replace(body, path, &name)?)))
        };
        let by_uri = || {
            let routes = self.all.routes.lock().unwrap_or_else(PoisonError::into_inner);
            let server = routes.of(request.name.as_deref()?, |server| self.shared.access.may_reach(caller, server))?;
            Some((Arc::clone(self.proxies.get(&*server)?), body.clone()))
        };
        let of_task = || {
            let task = request.task.as_deref()?;
            let proxy = self.proxies.values().find(|proxy| proxy.is_own_task(task, caller))?;
            Some((Arc::clone(proxy), body.clone()))
        };
        match request.method.as_str() {
            "tools/call" | "prompts/get" => Some(by_name(&["params", "name"])),
            "completion/complete" => Some(by_name(&["params", "ref", "name"]).or_else(by_uri)),
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => Some(by_uri()),
            "tasks/get" | "tasks/result" | "tasks/update" | "tasks/cancel" => Some(of_task()),
            _ => None,
        }
    }

    /// Passes a message to one server, in its own session.
    async fn to_one(&self, proxy: &Arc<Proxy>, came: &Came, joint: Option<&Joint>, body: Bytes) -> Answer {
        let mut there = match joint {
            Some(joint) => match joint.session(proxy, came).await {
                Ok(there) => there,
                Err(answer) => return answer,
            },
            None => came.clone(),
        };
        if let (Some(header), Ok(Message::Request(request))) =
            (there.headers.get_mut(super::NAME), envelope::parse(&body))
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
            Message::Answer { .. } => match streams::own_id(&body) {
                Some((server, body)) if self.proxies.contains_key(&server) => {
                    let there = joint.begun(&self.proxies, came).into_iter().find(|(proxy, _)| *proxy.name == *server);
                    match there {
                        Some((proxy, there)) => return proxy.message(there, body).await,
                        None => return self.refuse_all(came, None, body.len(), Refusal::not_yours()).await,
                    }
                }
                _ => return self.refuse_all(came, None, body.len(), Refusal::answers_nothing()).await,
            },
            Message::Notification { cancels: Some(id), .. } => {
                for (proxy, there) in joint.begun(&self.proxies, came) {
                    if there.session().is_some_and(|session| proxy.open.state(session, &id).is_some()) {
                        return proxy.message(there, body).await;
                    }
                }
            }
            // Each server was told when its session began.
            Message::Notification { method, .. } if method == "notifications/initialized" => {}
            _ => self.to_begun(came, &joint, &body).await,
        }
        stdio::empty(StatusCode::ACCEPTED)
    }

    async fn end_all(&self, came: &Came) -> Answer {
        let Some(joint) = came.session().and_then(|id| self.all.joints.end(id, &came.caller)) else {
            return self.refuse_all(came, None, 0, Refusal::not_yours()).await;
        };
        for (proxy, there) in joint.begun(&self.proxies, came) {
            drop(proxy.stream(Method::DELETE, there).await);
        }
        stdio::empty(StatusCode::OK)
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
