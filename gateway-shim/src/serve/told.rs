//! What a record says of a request, and of its refusal.
//!
//! What must hold: nothing that a caller chose stands in it but as a token or a digest, no argument and no result; until it is
//! known that a request is allowed, its record says that it is not.

use custody::wire::{self, Outcome, record::Kind};
use futures::future::BoxFuture;

use super::{Shared, refusal::Refusal, sessions::Speaker};
use crate::{
    access::{Caller, Judgement},
    clock,
    mcp::envelope::{self, Request},
    writer::Refused,
};

fn said(text: Option<&String>) -> Option<&str> {
    text.filter(|text| !text.is_empty()).map(String::as_str)
}

/// Writes into a record that it was allowed, and why.
pub(super) fn allowed(call: &mut wire::Call, judgement: &Judgement) {
    call.decision = wire::Decision::Allowed as i32;
    judgement.rule.as_ref().clone_into(&mut call.rule);
    call.access_policy_digest = Some(judgement.policy.to_vec().into());
}

impl Shared {
    /// What a record says of a request; denied, until it is known that it is not.
    pub(super) fn describe(
        &self,
        server: &str,
        request: Option<&Request>,
        speaker: &Speaker,
        caller: Option<&Caller>,
        bytes: u64,
    ) -> wire::Call {
        let client = request.and_then(|request| request.client.as_ref()).or(speaker.client.as_ref());
        let protocol = request.and_then(|request| request.protocol.as_ref()).or(speaker.protocol.as_ref());
        let fits = |protocol: &&String| protocol.len() <= 32 && custody::strict::is_token(protocol);
        wire::Call {
            mode: wire::Mode::Strict as i32,
            member: caller.map(|caller| caller.member.into()),
            token: caller.and_then(|caller| caller.token).map(|token| token.to_vec().into()),
            agent: caller.and_then(|caller| caller.agent).map(Into::into),
            client: said(client.map(|(name, _)| name)).map(envelope::client),
            client_release: said(client.map(|(_, version)| version)).map(envelope::client_release),
            server: server.to_owned(),
            target: request.and_then(|request| request.name.as_deref()).map(envelope::target),
            request: request.map(|request| envelope::method(&request.method)),
            protocol: protocol.filter(fits).cloned().unwrap_or_default(),
            decision: wire::Decision::Denied as i32,
            started_at: clock::now_us(),
            request_bytes: bytes,
            trace: request.and_then(|request| request.trace.clone()),
            ..wire::Call::default()
        }
    }

    /// Puts a refusal on record; one for want of records cannot be. On the heap, like all that is seldom: it is part of what
    /// every request waits for.
    pub(super) fn refuse(&self, mut call: wire::Call, refusal: &Refusal) -> BoxFuture<'_, ()> {
        refusal.rule.as_ref().clone_into(&mut call.rule);
        let policy = refusal.policy.as_deref().copied().unwrap_or_else(|| self.access.digest());
        call.access_policy_digest = Some(policy.to_vec().into());
        Box::pin(self.tally(call, refusal.outcome))
    }

    /// Records so many refusals as one; what cannot be recorded is declared as dropped.
    pub(super) async fn record_refused(&self, mut call: wire::Call, outcome: Outcome, number: u64) {
        call.decision = wire::Decision::Denied as i32;
        (call.phase, call.outcome) = (wire::Phase::Complete as i32, outcome as i32);
        if let Err(refused) = self.gateway.record(Kind::Call(call)).await {
            tracing::error!(%refused, count = number, "a refusal is not recorded, and is declared as dropped");
            // One is declared already where the configuration lets records go.
            self.gateway.lose(number - u64::from(refused == Refused::Dropped));
        }
    }
}
