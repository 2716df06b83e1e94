//! What the server says: answers, and requests of its own.
//!
//! What must hold: a request of the server is judged and on record before its client sees it, whether it comes by itself or in
//! a result; an answer that asks for what is not allowed, that is longer than it may be, or whose call was cut, does not pass.

use bytes::Bytes;
use custody::wire::{self, LinkKind, Outcome};

use super::*;
use crate::{
    mcp::{
        envelope::{Next, Task},
        splice,
    },
    serve::{
        counts,
        links::Deferred,
        refusal::{CODE_DENIED, CODE_OVER_LIMIT, DENIED},
    },
};

/// What a server may ask for in one result: each is a record on the disk, and is answered by a person, or by a model that is paid for.
pub(in super::super) const ASKS_MAX: usize = 32;

/// Why what a server asks for in a result does not pass.
struct Unasked(Outcome, i32, &'static str);

impl Proxy {
    /// The server asks the client of a session, or of the call that it answers: recorded like any other call, before the
    /// client sees it. Without a record it does not go on, unless the configuration says so.
    ///
    /// # Errors
    /// [`Refusal`]: what the server is told.
    pub(in super::super) async fn ask_back(
        &self,
        session: &str,
        by: Option<&Running>,
        request: &Request,
        bytes: usize,
    ) -> Result<(), Refusal> {
        if admit::is_counted(&request.method) {
            self.counts.pings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.pinged.insert(session, &request.id);
            return Ok(());
        }
        let owner = self.sessions.owner(session);
        let (caller, speaker) = match (by, owner) {
            (Some(by), owner) => (by.asked().caller.clone(), owner.map(|(_, speaker)| speaker).unwrap_or_default()),
            (None, Some(owner)) => owner,
            // Whose session it was is forgotten, and nobody may be asked.
            (None, None) => return Err(Refusal::not_yours()),
        };
        let mut call = self.shared.describe(&self.name, Some(request), &speaker, Some(&caller), bytes as u64);
        call.mode = wire::Mode::from(self.config.mode) as i32;
        call.from_server = true;
        call.link = linked(by.filter(|by| !is_stream(by)).and_then(Running::name), LinkKind::Nested);
        if !self.open.may_ask(session) {
            let busy = Refusal::busy("too many requests wait for the client in this session");
            return Err(self.refused(call, busy).await);
        }
        let asked = admit::asked_back(&self.name, &caller, &request.method, bytes as u64);
        if session.is_empty() {
            // Nobody's answer could be told from that of another member.
            let judgement = self.shared.access.judge(&caller, &asked.ask());
            let refusal = if judgement.allowed { Refusal::asks_nobody() } else { Refusal::denied(&judgement) };
            return Err(self.refused(call, refusal).await);
        }
        let running = self.admit(asked, &request.method, &request.raw_id, call).await?;
        if running.is_cut() {
            return Err(Refusal::not_yours());
        }
        self.open.begin_asked(session, &request.id, running, self.call_wait());
        Ok(())
    }

    /// The answer to a call. Ends the call; gives what passes instead of the answer, if the answer does not.
    pub(in super::super) async fn hear(
        &self,
        running: &Running,
        message: &[u8],
        mut ending: Ending,
        next: Option<Box<Next>>,
    ) -> Option<Bytes> {
        if running.is_cut() {
            return Some(running.error(CODE_REVOKED, REVOKED));
        }
        if message.len() as u64 > running.response_bytes_max() {
            running.end(Ending { outcome: Outcome::OverLimit, ..ending });
            return Some(running.error(CODE_OVER_LIMIT, "the answer is longer than the access policy allows"));
        }
        if let Some(next) = next {
            let asked = tokio::select! {
                asked = Box::pin(self.asks_within(running, &next.asks)) => asked,
                () = running.cut() => return Some(running.error(CODE_REVOKED, REVOKED)),
            };
            if let Err(Unasked(outcome, code, text)) = asked {
                running.end(Ending { outcome, ..ending });
                return Some(running.error(code, text));
            }
            // What is heard again, on a stream that was taken up again, was kept then.
            if !running.has_ended() {
                Box::pin(self.keep(running, *next, ending.outcome)).await;
            }
        }
        let shown = match &running.asked().list {
            Some(listing) => Box::pin(self.listed(running, listing, message, &mut ending)).await,
            None => self.shown(running, message),
        };
        running.end(ending);
        shown
    }

    /// What a member sees of an answer that is no list of definitions. `None`: all of it.
    fn shown(&self, running: &Running, message: &[u8]) -> Option<Bytes> {
        if running.method() != admit::LIST_OF_TASKS {
            return None;
        }
        // Of other members' tasks not even the number is told.
        let caller = &running.asked().caller;
        let own = |task: &str| self.is_own_task(task, caller);
        let unreadable = || running.error(super::super::refusal::CODE_UNREADABLE, "the list cannot be read");
        Some(splice::keep_tasks(message, own).map_or_else(unreadable, Bytes::from))
    }

    /// Whether all that the server asks for within a result is allowed; it is on record either way, up to what is refused. They
    /// are written one behind the other, and waited for together.
    async fn asks_within(&self, running: &Running, methods: &[String]) -> Result<(), Unasked> {
        let caller = &running.asked().caller;
        if methods.len() > ASKS_MAX {
            tracing::warn!(server = %self.name, asks = methods.len(), "a result asks for too much, and is not passed on");
            let text = "the answer asks for more than 32 things, so it was not passed on";
            let mut call = self.asked_within(running, &methods[0]);
            counts::number(&mut call, methods.len() as u64);
            self.refused(call, Refusal::asks_too_much()).await;
            return Err(Unasked(Outcome::OverLimit, CODE_OVER_LIMIT, text));
        }
        let mut recordings = Vec::with_capacity(methods.len());
        for method in methods {
            let asked = admit::asked_back(&self.name, caller, method, 0);
            let judgement = self.shared.access.judge(caller, &asked.ask());
            let mut call = self.asked_within(running, method);
            if !judgement.allowed {
                self.refused(call, Refusal::denied(&judgement)).await;
                return Err(Unasked(Outcome::Denied, CODE_DENIED, DENIED));
            }
            allowed(&mut call, &judgement);
            // The client's word on it comes with the next round of the call.
            (call.phase, call.outcome) = (wire::Phase::Complete as i32, Outcome::InputRequired as i32);
            recordings.push(self.gateway.submit(Kind::Call(call)).await);
        }
        for recording in recordings {
            let recorded = match recording {
                Ok(recording) => recording.durable().await.map(drop),
                Err(refused) => Err(refused),
            };
            match recorded {
                Ok(()) | Err(Refused::Dropped) => {}
                Err(refused) => {
                    tracing::warn!(%refused, "what a server asks does not go on, because it cannot be recorded");
                    return Err(Unasked(Outcome::Denied, CODE_DENIED, DENIED));
                }
            }
        }
        Ok(())
    }

    /// What a record says of a request of the server within a result.
    fn asked_within(&self, running: &Running, method: &str) -> wire::Call {
        let caller = &running.asked().caller;
        let mut call = self.shared.describe(&self.name, None, &Speaker::default(), Some(caller), 0);
        call.mode = wire::Mode::from(self.config.mode) as i32;
        (call.from_server, call.request) = (true, Some(envelope::method(method)));
        call.link = linked(running.name(), LinkKind::Nested);
        call
    }

    /// Keeps what a later request goes on from, and notes the end of a task.
    async fn keep(&self, running: &Running, next: Next, outcome: Outcome) {
        if let Some(state) = next.state.filter(|_| outcome == Outcome::InputRequired) {
            let number = running.asked().round + 1;
            self.links.asked_for_input(&state, running.asked(), Round { call: running.name(), number });
        }
        let Some(Task { id, ended }) = next.task else { return };
        if outcome == Outcome::Deferred {
            let record = Some(Box::new(self.completion(running)));
            self.links.deferred(&id, Deferred { asked: running.asked().clone(), call: running.name(), record });
        }
        let (Some(ended), Ok(_)) = (ended, self.links.task(&id, &running.asked().caller)) else { return };
        self.task_ended(&id, ended).await;
    }

    /// The record of a task's completion, which links to the call that began it.
    pub(in super::super) async fn task_ended(&self, id: &str, ended: Outcome) {
        let Some((mut call, begun)) = self.links.ended(id) else { return };
        call.duration_us = clock::now_us().saturating_sub(call.started_at);
        (call.phase, call.outcome) = (wire::Phase::Complete as i32, ended as i32);
        call.link = linked(begun, LinkKind::Task);
        if let Err(refused) = self.gateway.record(Kind::Call(call)).await {
            tracing::error!(%refused, "the completion of a task is not recorded");
        }
    }

    fn completion(&self, running: &Running) -> wire::Call {
        let asked = running.asked();
        let mut call = self.shared.describe(&self.name, None, &Speaker::default(), Some(&asked.caller), 0);
        call.mode = wire::Mode::from(self.config.mode) as i32;
        call.request = Some(envelope::method(&asked.method));
        call.target = asked.name.as_deref().map(envelope::target);
        if let Some(judgement) = running.judgement() {
            allowed(&mut call, judgement);
        }
        call
    }
}

/// Whether it is a stream of a session, which answers no request.
pub(in super::super) fn is_stream(running: &Running) -> bool {
    running.method() == "GET"
}
