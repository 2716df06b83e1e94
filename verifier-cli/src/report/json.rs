//! The report for programs. The schema is stable: fields may come, none changes its meaning or goes without a new number.

use custody::{
    policy::Scope,
    verdict::{Claim, Counts, Fault, Finding},
};
use serde::Serialize;

use super::{Subject, claim_name, conclusion, state_name};
use crate::time;

const SCHEMA: &str = "custody/verdict/1";

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    conclusion: &'static str,
    exit_code: u8,
    origin: &'a str,
    scope: ScopeOf,
    policy_fingerprint: &'a str,
    asked: Asked,
    period: Period,
    claims: Vec<ClaimOf>,
    first_failing_check: Option<&'static str>,
    faults: Vec<FaultOf<'a>>,
    findings: &'a [Finding],
    findings_not_listed: u64,
    suspect_batches: u64,
    not_excluded: Vec<String>,
    counts: &'a Counts,
}

#[derive(Serialize)]
struct ScopeOf {
    /// `organisation` or `workspaces`.
    kind: &'static str,
    workspaces: Vec<WorkspaceOf>,
}

#[derive(Serialize)]
struct WorkspaceOf {
    id: String,
    name: String,
}

/// Times as RFC 3339.
#[derive(Serialize)]
struct Asked {
    as_of: String,
    at_size: Option<u64>,
    since: Option<String>,
    until: Option<String>,
    known: usize,
}

#[derive(Serialize)]
struct Period {
    first_received_at: Option<String>,
    last_received_at: Option<String>,
    newest_sealed_at: Option<String>,
    reaches_to: Option<String>,
}

#[derive(Serialize)]
struct ClaimOf {
    claim: &'static str,
    state: &'static str,
    required: bool,
    reason: String,
}

#[derive(Serialize)]
struct FaultOf<'a> {
    check: &'static str,
    claim: &'static str,
    state: &'static str,
    place: &'a str,
    workspace: Option<String>,
    expected: &'a str,
    found: &'a str,
}

impl<'a> From<&'a Fault> for FaultOf<'a> {
    fn from(fault: &'a Fault) -> Self {
        Self {
            check: fault.check.name(),
            claim: claim_name(fault.check.claim()),
            state: state_name(fault.state),
            place: &fault.place,
            workspace: fault.workspace.map(|id| id.to_string()),
            expected: &fault.expected,
            found: &fault.found,
        }
    }
}

/// The report as JSON, one object.
pub fn json(subject: &Subject<'_>) -> String {
    let Subject { verdict, policy, fingerprint, options } = *subject;
    let counts = &verdict.counts;
    let claim = |claim: Claim| {
        let (state, reason) = verdict.claim(claim);
        let required = subject.is_required(claim);
        ClaimOf { claim: claim_name(claim), state: state_name(state), required, reason }
    };
    let named =
        |(id, name): &(custody::id::WorkspaceId, String)| WorkspaceOf { id: id.to_string(), name: name.clone() };
    let kind = if policy.scope == Scope::Organisation { "organisation" } else { "workspaces" };
    to_text(&Report {
        schema: SCHEMA,
        conclusion: conclusion(subject.exit_code()),
        exit_code: subject.exit_code(),
        origin: &policy.origin,
        scope: ScopeOf { kind, workspaces: verdict.workspaces.iter().map(named).collect() },
        policy_fingerprint: fingerprint,
        asked: Asked {
            as_of: time::text(options.as_of),
            at_size: options.at_size,
            since: options.since.map(time::text),
            until: options.until.map(time::text),
            known: options.known.len(),
        },
        period: Period {
            first_received_at: counts.first_received_at.map(time::text),
            last_received_at: counts.last_received_at.map(time::text),
            newest_sealed_at: counts.newest_sealed_at.map(time::text),
            reaches_to: counts.reaches_to.map(time::text),
        },
        claims: Claim::ALL.map(claim).into(),
        first_failing_check: verdict.first_fault().map(|fault| fault.check.name()),
        faults: verdict.faults.iter().map(FaultOf::from).collect(),
        findings: &verdict.findings,
        findings_not_listed: verdict.findings_more,
        suspect_batches: verdict.suspect_batches,
        not_excluded: subject.not_excluded(),
        counts,
    })
}

/// The report where something could not be read.
pub fn unreadable_json(why: &str) -> String {
    unreadable(SCHEMA, why)
}

pub(crate) fn unreadable(schema: &str, why: &str) -> String {
    to_text(&serde_json::json!({
        "schema": schema,
        "conclusion": "unreadable",
        "exit_code": 2,
        "unreadable": why,
    }))
}

pub(crate) fn to_text(value: &impl Serialize) -> String {
    // Strings, numbers and lists alone: nothing that JSON could refuse.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
