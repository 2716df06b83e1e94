//! A gateway asks who somebody is: bounded, and answered beside its batches.
//!
//! What must hold: what waits is bounded for each stream and for all; a gateway asks so often and no more, whatever streams it
//! has; who may not come is told nothing of people.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use custody::{
    id::{GatewayId, MemberId, WorkspaceId},
    wire::{self, EnrolMember, from_ledger::Message, member_enrolled::Answer},
};
use tokio::sync::mpsc;

use super::{Inner, Pump, RATE_SECONDS};
use crate::{
    admit::{self, REMOVED},
    directory::{Ask, By, Enrolment, Refusal},
};

/// Questions of one stream that are not answered: a person who types has one, and a list that is read in has what keeps the
/// vault's writes full.
pub(super) const ASKED_MAX: usize = 64;
/// Questions of one gateway within [`RATE_SECONDS`]: a list of ten thousand members takes some minutes, and a vault is not
/// filled before somebody notices.
pub(super) const ASKED_IN_RATE_MAX: u32 = 400;

impl Inner {
    /// Milliseconds to wait if the gateway asked too often.
    fn take_asked(&self, gateway: (WorkspaceId, GatewayId)) -> Result<(), u32> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let window = Duration::from_secs(RATE_SECONDS);
        // Whoever has asked nothing for a while is forgotten: as many stand here as ask.
        asked.retain(|_, (since, _)| now.duration_since(*since) < window);
        let (since, used) = asked.entry(gateway).or_insert((now, 0));
        if *used >= ASKED_IN_RATE_MAX {
            let left = window.saturating_sub(now.duration_since(*since));
            return Err(u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1));
        }
        *used += 1;
        Ok(())
    }
}

impl Pump {
    /// Hands the question to the directory, whose thread answers; `false` at the end of the stream.
    pub(super) fn enrol(&self, asked: &EnrolMember) -> bool {
        let number = asked.number;
        match self.ask(asked) {
            Ok(()) => true,
            Err(refusal) => self.answer(message(number, Err(refusal))),
        }
    }

    fn ask(&self, asked: &EnrolMember) -> Result<(), Refusal> {
        let (workspace, gateway) = (self.peer.workspace, self.peer.gateway);
        let never = |why: &str| Refusal::Never(why.to_owned());
        let chain = self.inner.chain(workspace).ok_or_else(|| never("no such workspace"))?;
        admit::may_come(&chain, gateway).map_err(|reject| Refusal::Never(reject.detail))?;
        if chain.is_removed() {
            return Err(never(REMOVED));
        }
        self.inner.take_asked((workspace, gateway)).map_err(|wait| Refusal::Later(wait, "it asks too often".into()))?;
        let (by, groups) = (By::Gateway(workspace, gateway), (workspace, asked.groups.clone()));
        let enrolment = match MemberId::try_from(asked.member.as_ref()) {
            Ok(member) => Enrolment::of_member(member, groups, by)?,
            Err(_) if !asked.member.is_empty() => return Err(never("an id has 16 bytes")),
            Err(_) if asked.id_alone => Enrolment::new(&asked.address, "", None, by)?,
            Err(_) => Enrolment::new(&asked.address, &asked.name, Some(groups), by)?,
        };
        let later = || Refusal::Later(1_000, "too many questions wait".to_owned());
        let place = Arc::clone(&self.asked).try_acquire_owned().map_err(|_| later())?;
        let (outbox, number) = (self.outbox.clone(), asked.number);
        let told = move |member| {
            // The stream may have ended meanwhile.
            if let Some(outbox) = outbox.upgrade() {
                drop(outbox.try_send(wire::FromLedger { message: Some(message(number, member)) }));
            }
            drop(place);
        };
        match self.inner.directory.try_send(Ask::Enrol(enrolment, Box::new(told))) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(later()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Refusal::Later(1_000, "the ledger is ending".to_owned())),
        }
    }
}

fn message(number: u64, member: Result<MemberId, Refusal>) -> Message {
    let refusal = |retry_after_ms, detail| Answer::Refusal(wire::MemberRefusal { retry_after_ms, detail });
    let answer = match member {
        Ok(member) => Answer::Member(member.into()),
        Err(Refusal::Later(wait, why)) => refusal(wait.max(1), why),
        Err(Refusal::Never(why)) => refusal(0, why),
        Err(Refusal::Held(_)) => refusal(0, "a legal hold stands".to_owned()),
    };
    Message::MemberEnrolled(wire::MemberEnrolled { number, answer: Some(answer) })
}
