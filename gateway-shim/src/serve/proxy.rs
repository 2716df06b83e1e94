//! The proxy in front of one server: who asks what, whether that goes on, and what is on record of it.
//!
//! What must hold: nothing goes on that the access policy does not allow, in either direction, nor before its intent is
//! recorded; what is not the caller's (a session, a task, a round) is not there for them.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{
    body::Body,
    http::{Method, StatusCode},
};
use bytes::Bytes;
use custody::wire::{self, LinkKind, Outcome, record::Kind};

use super::{
    Answer, LAST_EVENT, PROTOCOL, SESSION, Shared, admit,
    arrive::{NotRead, Taking},
    counts::Counts,
    credential::Credentials,
    links::{Links, Round},
    open::{self, Asked, OpenCalls, Running},
    places::{Place, Places},
    port,
    refusal::{CODE_NO_SESSION, CODE_REVOKED, REVOKED, Refusal, error},
    sessions::{self, Pinged, Sessions, Speaker},
    stdio, text,
    told::allowed,
    upstream, watched,
};
use crate::{
    access::{Ask, Caller},
    catalog, clock,
    config::{Faults, ServeConfig, ServerConfig},
    gateway::Gateway,
    listen::Load,
    mcp::{
        envelope::{self, Message, Request},
        headers::{self, Era},
    },
    server::{self, Launcher, Servers},
    writer::{CallName, Ending, Refused},
};

mod came;
mod hear;
mod listed;

pub(super) use came::Came;
pub(super) use hear::is_stream;
pub(super) use listed::Listing;

/// Key of the number of a round.
const ROUND: &str = "shim/round";
/// Key of the number of resources that a subscription is about.
const RESOURCES: &str = "shim/resources";
/// Resources that one subscription may be about: each is decided on, now and at every change of access.
const RESOURCES_MAX: usize = 1_024;

/// Whatever answers: a server over HTTP, or processes over stdio.
pub(super) enum Server {
    Http(Box<upstream::Upstream>),
    Stdio(Arc<stdio::Stdio>),
}

impl Server {
    fn of(name: &str, config: &ServerConfig, processes: &Servers, gateway: &Gateway) -> Result<Self, Faults> {
        Ok(match &config.url {
            Some(url) => {
                let credentials = Credentials::of(name, config)?;
                Self::Http(Box::new(upstream::Upstream::new(name, url, config.ca.as_deref(), credentials)?))
            }
            None => Self::Stdio(stdio::Stdio::new(processes.add(name, config.process(), gateway.clone()))),
        })
    }

    /// Reads every file that a start reads, and rehearses the start of a program.
    ///
    /// # Errors
    /// [`Faults`].
    pub(super) fn check(name: &str, config: &ServerConfig) -> Result<(), Faults> {
        match &config.url {
            Some(url) => {
                let credentials = Credentials::of(name, config)?;
                upstream::Upstream::new(name, url, config.ca.as_deref(), credentials).map(drop)
            }
            None => {
                let rehearsed = server::launch::rehearse(&Launcher::default(), &config.process());
                rehearsed.map_err(|why| Faults(vec![format!("servers.{name}: failed to {why}")]))
            }
        }
    }
}

/// The proxy in front of one server.
pub struct Proxy {
    pub(super) name: Arc<str>,
    pub(super) gateway: Gateway,
    pub(super) shared: Arc<Shared>,
    config: ServerConfig,
    request_bytes_max: usize,
    pub(super) sessions: Sessions,
    links: Links,
    pub(super) counts: Counts,
    pub(super) open: OpenCalls,
    pinged: Pinged,
    pub(super) notes: Places,
    /// Requests of the shim itself.
    own_asked: AtomicU64,
    pub(super) server: Server,
}

/// What a request goes on from.
#[derive(Default)]
struct Continued {
    begun: Option<Asked>,
    link: Option<wire::Link>,
    round: Option<u64>,
}

fn linked(call: Option<CallName>, kind: LinkKind) -> Option<wire::Link> {
    call.map(|call| call.linked(kind))
}

impl Proxy {
    pub(super) fn new(
        shared: Arc<Shared>,
        serve: &ServeConfig,
        name: &str,
        config: &ServerConfig,
        processes: &Servers,
    ) -> Result<Self, Faults> {
        let server = Server::of(name, config, processes, &shared.gateway)?;
        Ok(Self {
            name: name.into(),
            gateway: shared.gateway.clone(),
            shared,
            config: config.clone(),
            request_bytes_max: serve.request_kib_max * 1_024,
            sessions: Sessions::default(),
            links: Links::default(),
            counts: Counts::default(),
            open: OpenCalls::default(),
            pinged: Pinged::default(),
            notes: Places::of_notes(),
            own_asked: AtomicU64::new(0),
            server,
        })
    }

    pub(super) fn call_wait(&self) -> Duration {
        Duration::from_secs(self.config.call_s_max)
    }

    /// What passes without an answer is counted.
    pub(super) fn count(&self, method: &str) {
        self.counts.count(method);
    }

    /// What the server says and nobody can read.
    pub(super) fn unread(&self, bytes: usize) {
        self.counts.unread(bytes);
    }

    fn speaker(&self, came: &Came) -> Speaker {
        let mut speaker = came.session().and_then(|id| self.sessions.of(id, &came.caller).ok()).unwrap_or_default();
        if let Some(protocol) = text(&came.headers, PROTOCOL) {
            speaker.protocol = Some(protocol.to_owned());
        }
        speaker
    }

    /// What a record says of a request, before it is known how it ends.
    fn describe(&self, came: &Came, request: Option<&Request>, bytes: usize) -> wire::Call {
        let mut call = self.shared.describe(&self.name, request, &self.speaker(came), Some(&came.caller), bytes as u64);
        call.mode = wire::Mode::from(self.config.mode) as i32;
        call
    }

    /// Judges a request and makes its intent durable: then it may go on.
    async fn admit(&self, asked: Asked, method: &str, raw_id: &str, mut call: wire::Call) -> Result<Running, Refusal> {
        // Entered before it is judged: a change of access that comes between reaches it.
        let running = self.shared.cuts.begin(asked, method, raw_id);
        let (caller, ask) = (&running.asked().caller, running.asked().ask());
        let judgement = self.shared.access.judge(caller, &ask);
        if !judgement.allowed {
            return Err(self.refused(call, Refusal::denied(&judgement)).await);
        }
        for ask in running.asked().asks().skip(1) {
            let judgement = self.shared.access.judge(caller, &ask);
            if !judgement.allowed {
                // It is the resource that the record names.
                call.target = ask.name.map(envelope::target);
                return Err(self.refused(call, Refusal::denied(&judgement)).await);
            }
        }
        // What a server asks goes to a client on the connection that it has.
        if !running.asked().from_server {
            if let Err(over) = self.shared.pace.enter(caller.member, ask.method) {
                return Err(self.refused(call, Refusal::over_limit(&over)).await);
            }
            match self.shared.places.enter(caller.member) {
                Ok(place) => running.holds(place),
                Err(busy) => return Err(self.refused(call, busy).await),
            }
        }
        let slot = match self.shared.access.enter(caller, &ask) {
            Ok(slot) => slot,
            Err(over) => return Err(self.refused(call, Refusal::over_limit(&over)).await),
        };
        allowed(&mut call, &judgement);
        let record = match self.gateway.begin(call).await {
            Ok(record) => Some(record),
            // The configuration lets calls pass when the spool is full, and the loss is declared.
            Err(Refused::Dropped) => None,
            Err(refused) => return Err(refused.into()),
        };
        running.begun(record, slot, judgement);
        Ok(running)
    }

    /// Puts a refusal on record.
    fn refused(&self, call: wire::Call, refusal: Refusal) -> impl Future<Output = Refusal> {
        let recorded = self.shared.refuse(call, &refusal);
        async move {
            recorded.await;
            refusal
        }
    }

    /// The place of what goes to the server: its own, or one for what is only counted.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) fn place(&self, caller: &Caller, running: Option<&Running>) -> Result<Option<Place>, Refusal> {
        match running {
            Some(running) => Ok(running.take_place()),
            None => self.shared.places.enter(caller.member).map(Some),
        }
    }

    pub(super) async fn refuse(
        &self,
        came: &Came,
        request: Option<&Request>,
        bytes: usize,
        refusal: Refusal,
    ) -> Answer {
        let raw_id = request.map_or("null", |request| request.raw_id.as_str());
        self.refused(self.describe(came, request, bytes), refusal).await.answer(raw_id)
    }

    /// Whether the session that a request names is the caller's.
    fn check_session(&self, came: &Came) -> Result<(), Refusal> {
        match came.session().is_none_or(|id| self.sessions.is_of(id, &came.caller)) {
            true => Ok(()),
            false => Err(Refusal::not_yours()),
        }
    }

    /// Whether a task is one that the caller began.
    pub(super) fn has_begun(&self, task: &str, caller: &Caller) -> bool {
        self.links.task(task, caller).is_ok()
    }

    /// Whether the caller began any task.
    pub(super) fn has_tasks_of(&self, caller: &Caller) -> bool {
        self.links.has_tasks_of(caller)
    }

    /// Whether a request of this session waits for its answer.
    pub(super) fn waits_for(&self, session: &str, id: &str) -> bool {
        match &self.server {
            Server::Http(_) => self.open.state(session, id).is_some(),
            Server::Stdio(server) => server.waits_for(session, id),
        }
    }

    /// Whether a task is the caller's, who may still call what began it.
    pub(super) fn is_own_task(&self, id: &str, caller: &Caller) -> bool {
        let task = self.links.task(id, caller);
        task.is_ok_and(|task| self.shared.access.judge(caller, &task.asked.ask()).allowed)
    }

    /// Whether somebody may hear that a resource has changed.
    fn may_hear_of(&self, uri: &str, caller: &Caller) -> bool {
        let (method, from_server, request_bytes) = (admit::OF_RESOURCE, false, 0);
        let ask = Ask { server: &self.name, method, name: Some(uri), from_server, request_bytes };
        self.shared.access.judge(caller, &ask).allowed
    }

    /// Whether what a server tells of is for this caller to hear.
    pub(super) fn may_hear(&self, task: Option<&str>, resource: Option<&str>, caller: &Caller) -> bool {
        task.is_none_or(|task| self.is_own_task(task, caller))
            && resource.is_none_or(|uri| self.may_hear_of(uri, caller))
    }

    /// What a request goes on from: a task, or a round.
    fn continued(&self, caller: &Caller, request: &Request, era: Era) -> Result<Continued, Refusal> {
        if admit::is_of_task(request) {
            if era == Era::Modern && !request.knows_tasks {
                return Err(Refusal::knows_no_tasks());
            }
            let task = request.task.as_deref().ok_or_else(Refusal::no_such_task)?;
            let task = self.links.task(task, caller).map_err(|_| Refusal::no_such_task())?;
            // Whoever reads the record finds there what it was decided as.
            let link = linked(task.call, LinkKind::Task);
            return Ok(Continued { begun: Some(task.asked), link, ..Continued::default() });
        }
        let Some(state) = &request.state else { return Ok(Continued::default()) };
        let of = (request.method.as_str(), request.name.as_deref());
        let Round { call, number } = self.links.round(state, caller, of).map_err(|_| Refusal::not_yours_state())?;
        Ok(Continued { begun: None, link: linked(call, LinkKind::Round), round: Some(number) })
    }

    /// A request with a body.
    pub(super) async fn post(self: &Arc<Self>, came: Came, body: Body, load: &Load, wait: Duration) -> Answer {
        let taking = Taking { bytes_max: self.request_bytes_max, wait, counts: &self.counts };
        let (body, carried) = match self.shared.arrives(load, &came, body, taking).await {
            Ok(arrived) => arrived,
            Err(NotRead::Refused(refusal, bytes)) => return self.refuse(&came, None, bytes, refusal).await,
            Err(NotRead::Torn(answer)) => return answer,
        };
        port::carry(self.message(came, body).await, carried)
    }

    pub(super) async fn message(self: &Arc<Self>, came: Came, body: Bytes) -> Answer {
        match envelope::parse(&body) {
            Err(malformed) => {
                let raw_id = malformed.raw_id.clone();
                let call = self.describe(&came, None, body.len());
                self.refused(call, Refusal::malformed(malformed)).await.answer(raw_id.as_deref().unwrap_or("null"))
            }
            Ok(Message::Request(request)) => self.request(came, *request, body).await,
            Ok(message) => Box::pin(self.note(came, message, body)).await,
        }
    }

    /// What has no answer of its own: a notification, or the answer to a request of the server.
    async fn note(self: &Arc<Self>, came: Came, message: Message, body: Bytes) -> Answer {
        let era = came.said().era();
        let came = came.in_era(era);
        let asked = admit::asked_of_session(&self.name, &came.caller, body.len() as u64);
        let judgement = self.shared.access.judge(&came.caller, &asked.ask());
        let refusal = match (&message, came.session()) {
            _ if !judgement.allowed => Some(Refusal::denied(&judgement)),
            (Message::Answer { .. }, None) => Some(Refusal::answers_nothing()),
            _ => self.check_session(&came).err(),
        };
        // Before it is said that the server has an answer, there is a way for it.
        let (place, refusal) = match refusal.map_or_else(|| self.notes.enter(came.caller.member), Err) {
            Ok(place) => (Some(place), None),
            Err(refusal) => (None, Some(refusal)),
        };
        let refusal = refusal.or_else(|| match (&message, came.session()) {
            (Message::Answer { id, ending, .. }, Some(session)) if !self.answers(session, id, ending) => {
                Some(Refusal::answers_nothing())
            }
            _ => None,
        });
        if let Some(refusal) = refusal {
            return self.refuse(&came, None, body.len(), refusal).await;
        }
        if let Message::Notification { method, cancels, .. } = message {
            self.count(&method);
            match (came.session(), cancels) {
                (Some(session), Some(id)) => self.open.cancelled(session, &id),
                // Without a session the id might be that of another member's request.
                (None, Some(_)) => return stdio::empty(StatusCode::ACCEPTED),
                _ => {}
            }
        }
        match &self.server {
            Server::Http(server) => server.pass(self, Method::POST, came, body, (place, None)).await,
            Server::Stdio(server) => {
                let answer = server.pass(&came.headers, &body).await;
                drop(place);
                self.unless_refused(&came, body.len(), answer).await
            }
        }
    }

    /// Whether a client's answer is one to what the server asked in this session; ends that.
    fn answers(&self, session: &str, id: &str, ending: &Ending) -> bool {
        match self.open.take(open::Side::Server, session, id) {
            Some(running) => running.end(ending.clone()),
            None => return self.pinged.take(session, id),
        }
        true
    }

    pub(super) async fn request(self: &Arc<Self>, came: Came, request: Request, body: Bytes) -> Answer {
        let era = match headers::check(&came.said(), &request) {
            Ok(era) => era,
            Err(mismatch) => return self.refuse(&came, Some(&request), body.len(), Refusal::mismatch(mismatch)).await,
        };
        let came = came.in_era(era);
        let continued = self.check_session(&came).and_then(|()| self.continued(&came.caller, &request, era));
        let continued = match continued {
            Ok(continued) => continued,
            Err(refusal) => return self.refuse(&came, Some(&request), body.len(), refusal).await,
        };
        let begun = continued.begun.as_ref();
        let mut asked = admit::asked(&self.name, &came.caller, &request, begun, body.len() as u64);
        if admit::is_counted(&request.method) {
            let judgement = self.shared.access.judge(&came.caller, &asked.ask());
            if !judgement.allowed {
                return self.refuse(&came, Some(&request), body.len(), Refusal::denied(&judgement)).await;
            }
            self.counts.pings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return self.forward(came, request, body, None).await;
        }
        let mut call = self.describe(&came, Some(&request), body.len());
        call.link = continued.link;
        if let Some(number) = continued.round {
            asked.round = number;
            let value = Some(wire::extension::Value::Number(number));
            call.extensions.push(wire::Extension { key: ROUND.to_owned(), value });
        }
        if !asked.resources.is_empty() {
            let value = Some(wire::extension::Value::Number(asked.resources.len() as u64));
            call.extensions.push(wire::Extension { key: RESOURCES.to_owned(), value });
        }
        asked.list = self.listing(&came, &request, &body);
        let refused = match self.before(&came, &request, &asked, &body, &mut call).await {
            Err(refusal) => Err(self.refused(call, refusal).await),
            Ok(()) => self.admit(asked, &request.method, &request.raw_id, call).await,
        };
        match refused {
            Err(refusal) => refusal.answer(&request.raw_id),
            Ok(running) if running.is_cut() => error(StatusCode::OK, &request.raw_id, CODE_REVOKED, REVOKED),
            Ok(running) => match self.list_again(&running, &request.raw_id) {
                Some(answer) => answer,
                None => self.forward(came, request, body, Some(running)).await,
            },
        }
    }

    /// What is looked at before a request goes on, besides the access policy: whether the tool is as it was, and whether the
    /// arguments fit it.
    async fn before(
        self: &Arc<Self>,
        came: &Came,
        request: &Request,
        asked: &Asked,
        body: &Bytes,
        call: &mut wire::Call,
    ) -> Result<(), Refusal> {
        // Whoever may not do it is told just that, and makes the shim ask for nothing.
        if !self.shared.access.judge(&came.caller, &asked.ask()).allowed {
            return Ok(());
        }
        sessions::check_kept(&request.method, body.len())?;
        if came.session().is_some_and(|session| self.waits_for(session, &request.id)) {
            return Err(Refusal::id_in_use());
        }
        if asked.resources.len() > RESOURCES_MAX {
            return Err(Refusal::too_many(RESOURCES_MAX));
        }
        if let Server::Http(server) = &self.server {
            server.check_credential(&came.caller)?;
        }
        // What continues a task has no arguments; it is decided as the call that began it, and that was looked at.
        if request.method != asked.method {
            return Ok(());
        }
        self.check_tool(came, &asked.ask(), body, call).await
    }

    async fn forward(self: &Arc<Self>, came: Came, request: Request, body: Bytes, running: Option<Running>) -> Answer {
        let begins = (request.method == "initialize").then(|| {
            let (client, protocol) = (request.client.clone(), request.protocol.clone());
            let speaker = Speaker { client, protocol, capabilities: catalog::capabilities(&body) };
            (came.caller.clone(), speaker)
        });
        let raw_id = request.raw_id.clone();
        let answer = match &self.server {
            Server::Http(server) => server.request(self, came, request, body, running).await,
            Server::Stdio(server) => {
                let cut = running.clone();
                let answered = Box::pin(server.request(self, &came.headers, &came.caller, request, &body, running));
                tokio::select! {
                    answer = answered => watched::until_cut(answer, cut),
                    () = open::cut(cut.as_ref()) => error(StatusCode::OK, &raw_id, CODE_REVOKED, REVOKED),
                }
            }
        };
        if let Some((caller, speaker)) = begins
            && let Some(session) = text(answer.headers(), SESSION)
            && self.sessions.begin(session, &caller, speaker).is_err()
        {
            tracing::error!(server = %self.name, "the MCP server gave out the id of another member's session");
            return error(StatusCode::BAD_GATEWAY, &raw_id, CODE_NO_SESSION, "the MCP server began no session");
        }
        answer
    }

    /// The stream of a session, or its end.
    pub(super) async fn stream(self: &Arc<Self>, method: Method, came: Came) -> Answer {
        if came.said().era() == Era::Modern {
            let refusal = Refusal::no_method(StatusCode::METHOD_NOT_ALLOWED, "POST alone, from 2026-07-28 on");
            return self.refuse(&came, None, 0, refusal).await;
        }
        if let Err(refusal) = self.check_session(&came) {
            return self.refuse(&came, None, 0, refusal).await;
        }
        let mut call = self.describe(&came, None, 0);
        call.request = Some(envelope::method(method.as_str()));
        let event = came.headers.get(LAST_EVENT).filter(|_| method == Method::GET);
        if let (Some(session), Some(event)) = (came.session(), event) {
            let resumed = self.sessions.call_of(session, event.as_bytes());
            call.link = linked(resumed.and_then(|own| own.running.name()), LinkKind::Resumed);
        }
        let asked = admit::asked_of_session(&self.name, &came.caller, 0);
        let running = match self.admit(asked, method.as_str(), "null", call).await {
            Ok(running) => running,
            Err(refusal) => return refusal.answer("null"),
        };
        let answer = match (&self.server, &method) {
            (Server::Http(server), _) => {
                let place = running.take_place();
                server.pass(self, method.clone(), came.clone(), Bytes::new(), (place, Some(running))).await
            }
            (Server::Stdio(server), &Method::GET) => watched::ends(server.listen(&came.headers), running),
            (Server::Stdio(server), _) => watched::ends(server.end(&came.headers), running),
        };
        if method == Method::DELETE
            && answer.status().is_success()
            && let Some(session) = came.session()
        {
            self.sessions.end(session);
        }
        answer
    }

    pub(super) async fn no_method(&self, came: &Came) -> Answer {
        let refusal = Refusal::no_method(StatusCode::METHOD_NOT_ALLOWED, "POST, GET or DELETE");
        self.refuse(came, None, 0, refusal).await
    }

    /// Puts an answer of our own that is a refusal on record: no such session.
    async fn unless_refused(&self, came: &Came, bytes: usize, answer: Answer) -> Answer {
        if answer.status().is_client_error() {
            let call = self.describe(came, None, bytes);
            let mut refusal = Refusal::not_yours();
            refusal.outcome = Outcome::HttpError;
            self.refused(call, refusal).await;
        }
        answer
    }

    /// Whether this caller may ask nothing here any more.
    pub(super) fn may_ask_nothing(&self, caller: &Caller) -> bool {
        let asked = admit::asked_of_session(&self.name, caller, 0);
        self.shared.access.still_allowed(caller, &asked.ask(), clock::now_us()).is_err()
    }

    /// Cuts what may not go on any more: sessions whose member may ask nothing here, and their processes, also those that are
    /// asked without a session.
    pub(super) fn cut_sessions(&self) {
        let is_out = |caller: &Caller| self.may_ask_nothing(caller);
        let ended = self.sessions.end_of(is_out);
        if let Server::Stdio(server) = &self.server {
            ended.iter().for_each(|id| server.end_session(id));
            server.end_shared(is_out);
        }
    }
}
