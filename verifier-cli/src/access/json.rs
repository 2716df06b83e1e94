//! The answer for programs. The schema is stable: fields may come, none changes its meaning or goes without a new number.

use custody::{
    access::{Holder, Member},
    id::{MemberId, hex},
    verdict::State,
    wire::{AccessRule, Decision},
};
use serde_json::{Value, json};

use super::{
    Answer, Names, OfGateway, Question, When,
    effect::{Effect, Part},
    find::{Could, Doubt, Listed, Made, Who, could, in_order},
};
use crate::{
    report::{self, Subject},
    time,
};

const SCHEMA: &str = "custody/access/1";

/// The answer as JSON, one object.
pub fn json(answer: &Answer, subject: &Subject<'_>, question: &Question) -> String {
    let asked = match question.when {
        When::At(at) => json!({ "at": time::text(at) }),
        When::Between(from, to) => json!({ "from": time::text(from), "to": time::text(to) }),
    };
    let faults = answer.verdict.faults.iter().map(|fault| {
        json!({
            "check": fault.check.name(), "is_refuted": fault.state == State::Refuted, "place": fault.place,
            "expected": fault.expected, "found": fault.found,
        })
    });
    let code = answer.exit_code();
    let workspaces = answer.verdict.workspaces.iter();
    let changes = answer.gateways.chunk_by(|a, b| a.workspace == b.workspace).flat_map(in_order);
    report::to_text(&json!({
        "schema": SCHEMA,
        "conclusion": report::conclusion(code),
        "exit_code": code,
        "archive": report::conclusion(answer.verdict.exit_code(&answer.policy.required)),
        "origin": answer.policy.origin,
        "workspaces": workspaces.map(|(id, name)| json!({"id": id.to_string(), "name": name})).collect::<Vec<_>>(),
        "policy_fingerprint": subject.fingerprint,
        "as_of": time::text(subject.options.as_of),
        "asked": asked,
        "faults": faults.collect::<Vec<_>>(),
        "findings": answer.verdict.findings,
        "not_excluded": subject.not_excluded(),
        "changes": changes.map(|(of, change)| listed(of, change, &answer.names)).collect::<Vec<_>>(),
        "gateways": answer.gateways.iter().map(|of| gateway(of, answer, question)).collect::<Vec<_>>(),
    }))
}

/// The answer where something could not be read.
pub fn unreadable_json(why: &str) -> String {
    report::unreadable(SCHEMA, why)
}

fn gateway(of: &OfGateway, answer: &Answer, question: &Question) -> Value {
    let names = &answer.names;
    let mut out = json!({
        "workspace": of.workspace.to_string(),
        "gateway": of.gateway.to_string(),
        "heard_from": time::text(of.begun_at),
        "heard_to": time::text(of.heard_at),
        "received_to": time::text(of.received_at),
        "had_begun": of.is_begun,
        "doubts": of.doubts.iter().map(doubt).collect::<Vec<_>>(),
        "notes": of.notes.iter().map(doubt).collect::<Vec<_>>(),
    });
    if let (When::At(at), Value::Object(out)) = (question.when, &mut out) {
        out.insert("in_force".to_owned(), in_force(of, names, question, at));
    }
    out
}

fn doubt(doubt: &Doubt) -> Value {
    json!({ "name": doubt.name, "text": doubt.text })
}

fn made(made: &Made, names: &Names) -> Value {
    json!({
        "first_position": made.first,
        "last_position": made.last,
        "at": time::text(made.at),
        "received_at": time::text(made.received_at),
        "actor": match &made.actor {
            Who::Member(id) => json!({ "member": id.to_string(), "name": names.name(id) }),
            Who::System(system) => json!({ "system": system }),
        },
        "reason": made.reason,
        "ticket": made.ticket,
        "policy_digest_before": made.before.as_deref().map(hex),
        "policy_digest_after": hex(&made.after),
    })
}

fn in_force(of: &OfGateway, names: &Names, question: &Question, at: u64) -> Value {
    let state = &of.state;
    let Some(digest) = state.digest else { return Value::Null };
    let asked = state.members.iter().filter(|(id, _)| question.member.is_none_or(|asked| asked == **id));
    let members = asked.map(|(id, of)| {
        let tokens = state.tokens_of(id, at).map(|(token, holder)| token_json(token, holder, names));
        let mut value = member(id, of, names);
        if let Value::Object(out) = &mut value {
            out.insert("groups".to_owned(), json!(of.groups));
            out.insert("tokens".to_owned(), tokens.collect());
            if let Some(tool) = &question.tool {
                out.insert("could_call".to_owned(), could_json(&could(state, id, at, tool, &question.method)));
            }
        }
        value
    });
    json!({
        "policy_digest": hex(&digest),
        "since": of.since.as_ref().map(|since| made(since, names)),
        "members": members.collect::<Vec<_>>(),
        "agents": state.agents.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "servers": state.servers,
        "rules": state.rules.0.iter().map(rule).collect::<Vec<_>>(),
        "limits": state.limits.iter().map(limit).collect::<Vec<_>>(),
    })
}

fn could_json(could: &Could) -> Value {
    match could {
        Some((allowed, rule)) => json!({ "allowed": allowed, "rule": rule }),
        None => json!({ "allowed": false, "rule": null }),
    }
}

fn listed(of: &OfGateway, change: &Listed, names: &Names) -> Value {
    let mut value = made(&change.made, names);
    let calls = change.calls.iter().map(|(id, before, after)| {
        json!({
            "member": id.to_string(), "name": names.name(id), "before": could_json(before), "after": could_json(after),
        })
    });
    if let Value::Object(out) = &mut value {
        out.insert("workspace".to_owned(), of.workspace.to_string().into());
        out.insert("gateway".to_owned(), of.gateway.to_string().into());
        out.insert("records_missing_before".to_owned(), change.has_gap.into());
        out.insert("cut_short".to_owned(), change.cut_short.into());
        out.insert("whole_policy".to_owned(), change.is_whole.into());
        out.insert("changed".to_owned(), change.effects.iter().map(|of| effect(of, names)).collect());
        out.insert("calls".to_owned(), calls.collect());
    }
    value
}

fn effect(effect: &Effect, names: &Names) -> Value {
    let (kind, id, before) = part(&effect.before, names);
    let (.., after) = part(&effect.after, names);
    json!({ "part": kind, "id": id, "before": before, "after": after })
}

/// What a part is, which, and what it says; null where it is not there.
fn part(part: &Part, names: &Names) -> (&'static str, String, Value) {
    match part {
        Part::Member(id, of) => ("member", id.to_string(), of.as_ref().map_or(Value::Null, |of| member(id, of, names))),
        Part::Group(id, group, is_in) => ("group", id.to_string(), if *is_in { json!(group) } else { Value::Null }),
        Part::Agent(id, is_there) => ("agent", id.to_string(), if *is_there { json!(true) } else { Value::Null }),
        Part::Token(id, holder) => {
            ("token", hex(id), holder.as_ref().map_or(Value::Null, |holder| token_json(id, holder, names)))
        }
        Part::Rule(id, of) => {
            let value = of.as_ref().map_or(Value::Null, |(place, of)| {
                let mut value = rule(of);
                if let Value::Object(out) = &mut value {
                    out.insert("place".to_owned(), json!(place));
                }
                value
            });
            ("rule", id.clone(), value)
        }
        Part::Limit(id, of) => ("limit", id.clone(), of.as_ref().map_or(Value::Null, limit)),
        Part::Server(name, labels) => ("server", name.clone(), json!(labels)),
    }
}

fn member(id: &MemberId, of: &Member, names: &Names) -> Value {
    let owner = of.owner.map(|id| id.to_string());
    json!({ "member": id.to_string(), "name": names.name(id), "owner": owner, "labels": of.labels })
}

fn token_json(id: &[u8], holder: &Holder, names: &Names) -> Value {
    json!({
        "token": hex(id),
        "member": holder.member.to_string(),
        "name": names.name(&holder.member),
        "agent": holder.agent.map(|agent| agent.to_string()),
        "expires_at": time::text(holder.expires_at),
    })
}

/// Whom and what a rule or a limit is about.
fn scope(of: &AccessRule) -> Value {
    let members: Vec<String> = of.members.iter().map(|id| hex(id)).collect();
    json!({ "id": of.id, "members": members, "groups": of.groups, "tools": of.tools })
}

fn rule(of: &AccessRule) -> Value {
    let mut value = scope(of);
    if let Value::Object(out) = &mut value {
        let effect = if of.effect() == Decision::Allowed { "allowed" } else { "denied" };
        out.insert("effect".to_owned(), effect.into());
        out.insert("methods".to_owned(), json!(of.methods));
        out.insert("organisation".to_owned(), of.organisation.into());
    }
    value
}

fn limit(of: &AccessRule) -> Value {
    let mut value = scope(of);
    if let Value::Object(out) = &mut value {
        for (name, number) in [
            ("calls_per_minute", of.calls_per_minute),
            ("calls_per_day", of.calls_per_day),
            ("concurrent_calls", of.concurrent_calls),
            ("request_bytes_max", of.request_bytes_max),
            ("response_bytes_max", of.response_bytes_max),
        ] {
            out.insert(name.to_owned(), (number > 0).then_some(number).into());
        }
        out.insert("shared".to_owned(), of.shared.into());
    }
    value
}
