//! Shows records: as a table for people, as JSON lines for programs.
//!
//! A record is printed from its bytes along the table of the strict form, so that every field of every kind is there under
//! the name that it has in `record.proto`, and nothing else. Member ids stay ids: who they are is for the directory to say.

use custody::{
    id::hex,
    record::{self, RecordKind},
    segment::{Content, Entry, Seal},
    strict::{Field, Kind, Message, NotStrict, Presence, table},
    verify::Archive,
    wire::{self, LeafKind},
};
use serde_json::{Map, Value, json};

use crate::{
    failure::Failure,
    output::plain,
    segments::{Opened, covering},
    time,
};

/// A record with its place.
#[derive(Debug)]
pub struct Shown {
    /// Its place in the workspace.
    pub position: u64,
    /// Ledger's clock.
    pub received_at: u64,
    /// Who signed it, in hex.
    pub gateway: String,
    /// In which run, in hex.
    pub epoch: String,
    /// Its number in that run.
    pub number: u64,
    /// What it is.
    pub kind: RecordKind,
    /// What it says.
    pub fields: Map<String, Value>,
}

/// Gives the records from `first` up to `end`, or to the last one, to `take`, in order, until it says `false`.
///
/// # Errors
/// [`Failure`].
pub fn each(
    objects: &impl Archive,
    seals: &[Seal],
    first: u64,
    end: Option<u64>,
    mut take: impl FnMut(Shown) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let (covered, end) = covering(seals, first, end)?;
    for seal in covered {
        let opened = Opened::read(objects, seal)?;
        for frame in opened.frames(first, end) {
            for entry in opened.entries(frame)? {
                if !each_of_entry(&entry, first, end, &mut take)? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn each_of_entry(
    entry: &Entry,
    first: u64,
    end: u64,
    take: &mut impl FnMut(Shown) -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let Content::Batch(batch) = &entry.content else { return Ok(true) };
    if entry.leaf.kind != LeafKind::Batch {
        return Ok(true);
    }
    for (index, bytes) in (0_u64..).zip(&batch.records) {
        // Where nothing is verified, an entry may say any position and any number.
        let position = entry.leaf.first_position.checked_add(index).ok_or_else(past_the_last)?;
        if (first..end).contains(&position) {
            let odd = |why: NotStrict| Failure::Unreadable(format!("the record at position {position}: {why}"));
            let goes_on = take(Shown {
                position,
                received_at: entry.leaf.received_at,
                gateway: batch.header.gateway.to_string(),
                epoch: batch.header.epoch.to_string(),
                number: batch.header.first_record.checked_add(index).ok_or_else(past_the_last)?,
                kind: record::check(bytes).map_err(odd)?,
                fields: fields(bytes),
            })?;
            if !goes_on {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn past_the_last() -> Failure {
    let why = "a batch counts positions or records past the last number that there is";
    Failure::Unreadable(format!("{why}\nhint: `verifier verify` says what else is wrong"))
}

/// Fields of a record that [`record::check`] passed, below its kind.
pub fn fields(record: &[u8]) -> Map<String, Value> {
    let whole = object(&table::RECORD, record);
    let kind = whole.into_iter().find_map(|(_, value)| match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    kind.unwrap_or_default()
}

/// A record as a JSON object, wherever one is shown: its place in the workspace, when it was received (microseconds), gateway and epoch in
/// hex, its number there, and what it says.
pub fn json_object(
    position: u64,
    received_at: u64,
    [gateway, epoch]: [&str; 2],
    number: u64,
    kind: Option<RecordKind>,
    fields: &Map<String, Value>,
) -> Map<String, Value> {
    let object = json!({
        "position": position,
        "received_at": time::text(received_at),
        "gateway": gateway,
        "epoch": epoch,
        "number": number,
        "kind": kind.map_or("", RecordKind::name).replace(' ', "_"),
        "record": fields,
    });
    if let Value::Object(object) = object { object } else { Map::new() }
}

/// One JSON line for a record.
pub fn json_line(shown: &Shown) -> String {
    let names = [shown.gateway.as_str(), shown.epoch.as_str()];
    let object = json_object(shown.position, shown.received_at, names, shown.number, Some(shown.kind), &shown.fields);
    Value::Object(object).to_string()
}

/// Heading of the table.
pub const HEADING: &str = "POSITION    TIME                         GATEWAY   KIND             WHAT";

/// Fields that come first in the table, because they answer who, what and how it ended; the others follow by name.
const FIRST: [&str; 12] = [
    "decision", "outcome", "phase", "action", "change", "state", "severity", "name", "server", "tool", "method",
    "member",
];

/// One line of the table for a record.
pub fn table_line(shown: &Shown) -> String {
    let at = ["started_at", "at"].iter().find_map(|name| shown.fields.get(*name)).and_then(Value::as_str);
    format!(
        "{:<11} {:<28} {:<9} {:<16} {}",
        shown.position,
        at.map_or_else(|| time::text(shown.received_at), str::to_owned),
        shown.gateway.get(..8).unwrap_or_default(),
        shown.kind.name(),
        what(&shown.fields)
    )
}

/// The fields of a record in one line for people, those first that answer who, what and how it ended.
pub fn what(fields: &Map<String, Value>) -> String {
    let mut what = Vec::new();
    describe(fields, &mut what);
    what.sort_by_key(|(name, _)| FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()));
    let what: Vec<String> = what.into_iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    what.join(" ")
}

fn describe<'a>(fields: &'a Map<String, Value>, what: &mut Vec<(&'a str, String)>) {
    // Digests and sizes are for the JSON form.
    let is_noise = |name: &str| {
        let noise = ["digest", "nonce", "commitment", "ciphertext", "bytes", "trace", "receipt", "protocol", "mode"];
        name == "at" || name == "started_at" || noise.iter().any(|part| name.contains(part))
    };
    for (name, value) in fields.iter().filter(|(name, _)| !is_noise(name)) {
        match value {
            Value::Object(inner) => describe(inner, what),
            Value::Array(list) => what.push((name, format!("[{}]", list.len()))),
            Value::String(text) => what.push((name, text.clone())),
            other => what.push((name, other.to_string())),
        }
    }
}

/// A message in strict form as a JSON object.
fn object(message: &'static Message, mut bytes: &[u8]) -> Map<String, Value> {
    let mut out = Map::new();
    while let Some((key, rest)) = varint(bytes) {
        bytes = rest;
        let field = message.fields.iter().find(|field| u64::from(field.tag) == key >> 3);
        let (Some(field), Some((number, rest))) = (field, varint(bytes)) else { break };
        bytes = rest;
        let mut content: &[u8] = &[];
        if key & 7 == 2 {
            let Some(split) = usize::try_from(number).ok().and_then(|at| bytes.split_at_checked(at)) else { break };
            (content, bytes) = split;
        }
        if let Presence::Repeated { .. } = field.presence {
            let list = out.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.extend(elements(field, content));
            }
        } else {
            out.insert(field.name.to_owned(), value(message, field, number, content));
        }
    }
    out
}

fn elements(field: &'static Field, mut content: &[u8]) -> Vec<Value> {
    if !matches!(field.kind, Kind::Integer { .. }) {
        return vec![value(&table::RECORD, field, 0, content)];
    }
    let mut numbers = Vec::new();
    while let Some((number, rest)) = varint(content) {
        numbers.push(number.into());
        content = rest;
    }
    numbers
}

fn value(message: &'static Message, field: &'static Field, number: u64, content: &[u8]) -> Value {
    match &field.kind {
        Kind::Version => number.into(),
        // Only times have this bound.
        Kind::Integer { max: 253_402_300_799_999_999 } => time::text(number).into(),
        // The 32 bits of a two's complement: JSON-RPC errors are negative.
        Kind::Integer { .. } if field.name == "error_code" => {
            u32::try_from(number).map_or_else(|_| number.into(), |bits| bits.cast_signed().into())
        }
        Kind::Integer { .. } => number.into(),
        Kind::Bool => true.into(),
        Kind::Enum { .. } => enum_name(message.name, field.name, number).into(),
        Kind::Bytes { .. } => hex(content).into(),
        Kind::Text { .. } => String::from_utf8_lossy(content).into(),
        Kind::Message(inner) => object(inner, content).into(),
    }
}

/// The name of an enum's value, without the enum's own name before it, as in `tool_error`.
fn enum_name(message: &str, field: &str, number: u64) -> String {
    macro_rules! name {
        ($of:ident, $prefix:literal) => {
            i32::try_from(number)
                .ok()
                .and_then(|number| wire::$of::try_from(number).ok())
                .map(|value| value.as_str_name().trim_start_matches($prefix).to_ascii_lowercase())
        };
    }
    let name = match (message, field) {
        ("Call", "phase") => name!(Phase, "PHASE_"),
        ("Call", "mode") => name!(Mode, "MODE_"),
        ("Call", "outcome") => name!(Outcome, "OUTCOME_"),
        (_, "decision" | "effect") => name!(Decision, "DECISION_"),
        ("Link", "kind") => name!(LinkKind, "LINK_KIND_"),
        ("AccessChange", "action") => name!(AccessAction, "ACCESS_ACTION_"),
        ("ToolDefinition", "change") => name!(DefinitionChange, "DEFINITION_CHANGE_"),
        ("ToolDefinition", "action") => name!(DefinitionAction, "DEFINITION_ACTION_"),
        ("Opened", "clock") => name!(ClockState, "CLOCK_STATE_"),
        ("Opened", "class") => name!(WriterClass, "WRITER_CLASS_"),
        ("ServerLife", "state") => name!(ServerState, "SERVER_STATE_"),
        ("Delivery", "state") => name!(DeliveryState, "DELIVERY_STATE_"),
        ("LedgerEvent", "kind") => name!(LedgerEventKind, "LEDGER_EVENT_KIND_"),
        ("Alarm", "phase") => name!(AlarmPhase, "ALARM_PHASE_"),
        ("Alarm", "severity") => name!(Severity, "SEVERITY_"),
        ("Disposition", "kind") => name!(DispositionKind, "DISPOSITION_KIND_"),
        _ => None,
    };
    name.unwrap_or_else(|| number.to_string())
}

/// One varint off the front of bytes in strict form.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use custody::wire::record::Kind as Record;

    use super::*;

    /// Every message that a record may hold, found along the table.
    fn reachable(message: &'static Message, found: &mut Vec<&'static Message>) {
        if !found.iter().any(|known| known.name == message.name) {
            found.push(message);
            for field in message.fields {
                if let Kind::Message(inner) = field.kind {
                    reachable(inner, found);
                }
            }
        }
    }

    #[test]
    fn every_enum_of_a_record_has_its_names() {
        let mut messages = Vec::new();
        reachable(&table::RECORD, &mut messages);
        let mut enums = 0;
        for message in messages {
            for field in message.fields {
                if let Kind::Enum { max } = field.kind {
                    enums += 1;
                    for number in 1..=max {
                        let name = enum_name(message.name, field.name, number);
                        assert!(name.parse::<u64>().is_err(), "{} {} {number}", message.name, field.name);
                    }
                }
            }
        }
        assert_eq!(enums, 18);
    }

    #[test]
    fn a_call_shows_all_its_fields() {
        let bytes = record::encode(Record::Call(wire::Call {
            call_number: 300,
            phase: wire::Phase::Complete as i32,
            mode: wire::Mode::Strict as i32,
            member: Some(vec![0xab; 16].into()),
            target: Some(wire::call::Target::Tool("echo".into())),
            decision: wire::Decision::Allowed as i32,
            started_at: 1_772_323_200_000_001,
            outcome: wire::Outcome::ToolError as i32,
            error_code: Some((-32_602_i32).cast_unsigned()),
            extensions: vec![wire::Extension { key: "k/n".into(), value: Some(wire::extension::Value::Number(0)) }],
            ..Default::default()
        }));
        assert_eq!(record::check(&bytes), Ok(RecordKind::Call));
        let expected = json!({
            "call_number": 300, "phase": "complete", "mode": "strict", "member": "ab".repeat(16), "tool": "echo",
            "decision": "allowed", "started_at": "2026-03-01T00:00:00.000001Z", "outcome": "tool_error",
            "error_code": -32_602, "extensions": [{"key": "k/n", "number": 0}],
        });
        assert_eq!(Value::Object(fields(&bytes)), expected);
    }

    #[test]
    fn packed_numbers_are_listed() {
        let bytes = record::encode(Record::Alarm(wire::Alarm {
            at: 1,
            phase: wire::AlarmPhase::Raised as i32,
            severity: wire::Severity::High as i32,
            name: "fork".into(),
            positions: vec![1, 300, 70_000],
            ..Default::default()
        }));
        assert_eq!(record::check(&bytes), Ok(RecordKind::Alarm));
        assert_eq!(fields(&bytes)["positions"], json!([1, 300, 70_000]));
    }
}
