//! The records that the writer itself makes, of calls, from how they began and ended, and of the gateway; and the words that its
//! log has for them.

use custody::{
    record,
    wire::{self, DeliveryState, OpeningReason, gateway_event::Event, record::Kind},
};

use super::Ending;
use crate::clock;

/// An event of the gateway, now.
pub(super) fn event(event: Event) -> Kind {
    Kind::GatewayEvent(wire::GatewayEvent { at: clock::now_us(), event: Some(event) })
}

/// The record of a call that has begun.
pub(super) fn intent_of(mut call: wire::Call) -> Kind {
    call.phase = wire::Phase::Intent as i32;
    call.outcome = wire::Outcome::Running as i32;
    Kind::Call(call)
}

/// The record of its end, when its intent is a record of its own.
pub(super) fn outcome_of(call: wire::Call, ending: &Ending, duration_us: u64) -> Kind {
    ended(call, wire::Phase::Outcome, ending, duration_us)
}

/// The one record of a call that was short.
pub(super) fn complete_of(call: wire::Call, ending: &Ending, duration_us: u64) -> Kind {
    ended(call, wire::Phase::Complete, ending, duration_us)
}

fn ended(mut call: wire::Call, phase: wire::Phase, ending: &Ending, duration_us: u64) -> Kind {
    call.phase = phase as i32;
    call.outcome = ending.outcome as i32;
    call.error_code = ending.error_code;
    call.response_bytes = ending.response_bytes;
    call.duration_us = duration_us;
    let Some(learnt) = &ending.learnt else { return Kind::Call(call) };
    let plain = call.clone();
    learnt.tell(&mut call);
    let kind = Kind::Call(call);
    if let Err(why) = record::check(&record::encode(kind.clone())) {
        // Signed, it would bar the way for all behind it.
        tracing::error!(call = plain.call_number, %why, "what was learnt of a call cannot be recorded");
        return Kind::Call(plain);
    }
    kind
}

/// Why an epoch was opened.
pub(super) fn opening_words(reason: Option<OpeningReason>) -> &'static str {
    match reason {
        None | Some(OpeningReason::Unspecified) => "it continues the one before",
        Some(OpeningReason::First) => "it is the first of this gateway",
        Some(OpeningReason::StateLost) => "what was known of the ones before is lost",
        Some(OpeningReason::Rewound) => "the ledger holds another batch under a number of the one before",
    }
}

/// How records are delivered.
pub(super) fn delivery_words(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Unspecified | DeliveryState::Flowing => "records flow",
        DeliveryState::Spooling => "batches that the ledger holds leave the spool before they are archived",
        DeliveryState::Refusing => "records are refused",
        DeliveryState::FailOpen => "records are let go, and counted",
    }
}
