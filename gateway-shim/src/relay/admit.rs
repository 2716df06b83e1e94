//! Which records a caller may hand to the relay: those in form that a gateway may write, and that can be honest. Pure.
//!
//! What must hold: a record is refused with the name of its field, the cause and the next move, and never mended. The format
//! (FORMAT.md, 5) lets more pass, and a verifier refutes none of it: here stands a caller who can still be told.

use custody::{
    record,
    strict::{NotStrict, table},
    wire::{self, Decision, Outcome, Phase, PutRequest, gateway_event::Event, record::Kind},
};
use prost::Message as _;
use tonic::Status;

/// Call numbers below this are given by the relay; a caller that writes intents and outcomes itself uses those above.
pub const CALLER_NUMBERS_FROM: u64 = 1 << 32;
/// How far ahead of this machine's clock a time may be, in microseconds: a clock that was set between.
const AHEAD_MAX_US: u64 = 86_400 * 1_000_000;
/// How long ago a time may be: records of old calls may be handed in later, but seconds or milliseconds read as 1970.
const AGO_MAX_US: u64 = 10 * 366 * 86_400 * 1_000_000;

/// A record as the writer takes it.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub(super) fn check(request: PutRequest, now_us: u64) -> Result<Kind, Status> {
    admit(request, now_us)
        .map_err(|text| Status::invalid_argument(format!("{text}; mend the record, do not send it again as it is")))
}

fn admit(request: PutRequest, now_us: u64) -> Result<Kind, String> {
    let Some(mut record) = request.record else {
        return Err("PutRequest.record is missing; hint: one record in each request".into());
    };
    if record.version == 0 {
        record.version = custody::FORMAT_VERSION;
    }
    let Some(kind) = record.kind.clone() else { return Err("Record.kind is missing; hint: a call, for one".into()) };
    let known = record::check(&record.encode_to_vec()).map_err(in_names)?;
    if !known.may_be_written_by(wire::Role::Gateway, false) {
        return Err(format!(
            "Record.kind is {}, which a gateway may not write; hint: call, access_change, tool_definition or gateway_event",
            known.name()
        ));
    }
    match &kind {
        Kind::GatewayEvent(wire::GatewayEvent { event: Some(Event::Opened(_)), .. }) => {
            return Err("GatewayEvent.opened is written by the relay itself; hint: leave it out".into());
        }
        Kind::GatewayEvent(event) => check_time("GatewayEvent.at", event.at, now_us)?,
        Kind::AccessChange(change) => check_time("AccessChange.at", change.at, now_us)?,
        Kind::ToolDefinition(definition) => check_time("ToolDefinition.at", definition.at, now_us)?,
        Kind::Call(call) => check_call(call, now_us)?,
        _ => {}
    }
    Ok(kind)
}

fn check_call(call: &wire::Call, now_us: u64) -> Result<(), String> {
    match (call.phase(), call.call_number) {
        (Phase::Complete, 0) | (_, CALLER_NUMBERS_FROM..) => {}
        (Phase::Complete, number) => {
            return Err(format!(
                "Call.call_number of a complete call is {number}, and numbers below 2^32 are the relay's; hint: 0, or one of at \
                 least 2^32"
            ));
        }
        (_, number) => {
            return Err(format!(
                "Call.call_number of an intent or an outcome is {number}; hint: both carry the same, of your choice, at least \
                 2^32"
            ));
        }
    }
    // What only a call that was made can end as, or be.
    let made = [Outcome::Ok, Outcome::ToolError, Outcome::InputRequired, Outcome::Deferred, Outcome::Running];
    if call.decision() == Decision::Denied && made.contains(&call.outcome()) {
        let outcome = call.outcome().as_str_name();
        return Err(format!(
            "Call.outcome is {outcome}, and Call.decision is DECISION_DENIED: a call that was denied was not made; hint: the \
             outcome of one is OUTCOME_DENIED"
        ));
    }
    let doubled = (1..).zip(&call.extensions).find_map(|(after, extension)| {
        let again = call.extensions.iter().skip(after).any(|other| other.key == extension.key);
        again.then_some(&extension.key)
    });
    if let Some(key) = doubled {
        return Err(format!("Call.extensions holds the key {key} twice; hint: each key once"));
    }
    check_time("Call.started_at", call.started_at, now_us)
}

/// Whether a time can be true; none may be left out.
fn check_time(name: &str, at_us: u64, now_us: u64) -> Result<(), String> {
    let hint = "hint: microseconds since 1970, UTC";
    if at_us > now_us.saturating_add(AHEAD_MAX_US) {
        return Err(format!("{name} is {at_us}, more than a day ahead of this machine's clock; {hint}"));
    }
    if at_us != 0 && at_us < now_us.saturating_sub(AGO_MAX_US) {
        return Err(format!("{name} is {at_us}, more than ten years ago; {hint}"));
    }
    Ok(())
}

/// A rule of the format that a record breaks, with the names of message and field and what may stand there.
fn in_names(why: NotStrict) -> String {
    let NotStrict::Malformed(malformed) = why else {
        return format!("Record.version: {why}; hint: leave it out");
    };
    match malformed.field(&table::RECORD) {
        Some((message, field)) => {
            format!("{}.{} ({}): {}; hint: {}", message.name, field.name, field.tag, malformed.rule(), field.allowed())
        }
        None => format!("the record breaks a rule of the format: {malformed}"),
    }
}
