//! Answers as JSON: of the HTTP service, and of `ledger search --json`. `openapi.rs` describes the same.

use std::collections::BTreeSet;

use custody::{
    id::{MemberId, hex},
    record, wire,
};
use serde_json::{Map, Value, json};
use verifier::{show, time};

/// A record as an object: where it stands, and what it says under the names of `record.proto`.
pub fn hit(hit: &wire::Hit, names: &[wire::MemberName]) -> Value {
    let (gateway, epoch) = (hex(&hit.gateway), hex(&hit.epoch));
    let (kind, fields) = (record::kind(&hit.record), show::fields(&hit.record));
    let mut object = show::json_object(hit.position, hit.received_at, [&gateway, &epoch], hit.number, kind, &fields);
    object.insert("workspace".to_owned(), hex(&hit.workspace).into());
    object.insert("workspace_name".to_owned(), hit.workspace_name.as_str().into());
    let mut named = BTreeSet::new();
    if !names.is_empty() {
        fields.values().for_each(|value| ids(value, &mut named));
    }
    let members: Map<String, Value> = names
        .iter()
        .filter(|known| named.iter().any(|id| id[..] == known.member[..]))
        .map(|known| (hex(&known.member), known.name.as_str().into()))
        .collect();
    if !members.is_empty() {
        object.insert("names".to_owned(), members.into());
    }
    object.into()
}

/// Ids that a record names, wherever it does: every text of 32 hex digits.
fn ids(of: &Value, found: &mut BTreeSet<[u8; 16]>) {
    match of {
        Value::String(text) => found.extend(MemberId::from_hex(text).map(|id| id.0)),
        Value::Array(all) => all.iter().for_each(|value| ids(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| ids(value, found)),
        _ => {}
    }
}

/// How complete an answer is.
fn completeness(of: Option<&wire::Completeness>) -> Value {
    let of = of.cloned().unwrap_or_default();
    let moment = |at: u64| if at == 0 { Value::Null } else { time::text(at).into() };
    let silent = of.silent.iter().map(|silent| {
        json!({
            "workspace": hex(&silent.workspace),
            "gateway": hex(&silent.gateway),
            "heard_at": moment(silent.heard_at),
            "ended_at": moment(silent.ended_at),
        })
    });
    json!({"records": of.records, "indexed": of.indexed, "cut_short": of.cut_short, "silent": silent.collect::<Value>()})
}

/// A page.
pub fn page(answer: &wire::FindResponse) -> Value {
    let cursor = if answer.cursor.is_empty() { Value::Null } else { answer.cursor.as_str().into() };
    json!({
        "hits": answer.hits.iter().map(|of| hit(of, &answer.names)).collect::<Value>(),
        "cursor": cursor,
        "total": answer.total,
        "completeness": completeness(answer.completeness.as_ref()),
    })
}

/// Sums.
pub fn sums(answer: &wire::SummariseResponse) -> Value {
    let counted = |value: &wire::Counted| {
        let mut of = json!({"value": value.value, "count": value.count});
        let known = answer.names.iter().find(|known| hex(&known.member) == value.value);
        if let (Some(known), Value::Object(of)) = (known, &mut of) {
            of.insert("name".to_owned(), known.name.as_str().into());
        }
        of
    };
    let all = |values: &[wire::Counted]| values.iter().map(counted).collect::<Value>();
    let facets = answer
        .facets
        .iter()
        .map(|facet| json!({"field": facet.field, "distinct": facet.distinct, "values": all(&facet.values)}));
    let buckets = answer
        .buckets
        .iter()
        .map(|bucket| json!({"start": time::text(bucket.start), "count": bucket.count, "values": all(&bucket.values)}));
    let ranked = answer
        .percentiles
        .iter()
        .map(|ranked| json!({"value": ranked.value, "count": ranked.count, "values": ranked.values}));
    json!({
        "count": answer.count,
        "facets": facets.collect::<Value>(),
        "width_us": answer.width_us,
        "buckets": buckets.collect::<Value>(),
        "percentiles": ranked.collect::<Value>(),
        "from_rollups": answer.from_rollups,
        "completeness": completeness(answer.completeness.as_ref()),
    })
}

/// The calls of a trace.
pub fn trace(answer: &wire::TraceResponse) -> Value {
    let step = |step: &wire::TraceStep| {
        let of = step.hit.as_ref().map(|of| hit(of, &answer.names));
        json!({"hit": of, "parent": step.parent})
    };
    json!({
        "steps": answer.steps.iter().map(step).collect::<Value>(),
        "completeness": completeness(answer.completeness.as_ref()),
    })
}
