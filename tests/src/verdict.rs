//! A verdict as lies expect it: six claims, exit code, and the name of the first check that did not pass.

use std::collections::BTreeMap;

use custody::{
    policy::Policy,
    verdict::{Claim, State, Verdict, is_omitted},
    verify::{InTurn, Options, parse_known, run},
};
use serde::{Deserialize, Serialize};

use crate::golden::objects::Objects;

/// What verification says, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// 0 all required claims verified, 1 something refuted, 2 undecided.
    pub exit: u8,
    /// First check that did not pass; empty for none.
    #[serde(default)]
    pub first: String,
    /// How each claim stands.
    pub claims: BTreeMap<Claim, State>,
    /// Names of the findings, each once, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

/// Verifies an archive as the auditor would who asks this and holds these known files.
///
/// # Errors
/// In words, when there is no verdict.
pub fn verify(objects: &Objects, policy: &Policy, asked: Options, known: &[Vec<u8>]) -> Result<Outcome, String> {
    let known = known.iter().map(|file| parse_known(file)).collect::<Result<_, _>>()?;
    let options = Options { known, ..asked };
    let verdict = run(objects, policy, &options, &InTurn).map_err(|why| why.to_string())?;
    Ok(in_short(&verdict, policy))
}

/// Checks an evidence file as the auditor would. Of claims 4 to 6 evidence says nothing.
///
/// # Errors
/// In words, when there is no verdict.
pub fn check_evidence(file: &[u8], policy: &Policy) -> Result<Outcome, String> {
    let outcome = custody::evidence::check(file, policy).map_err(|why| why.to_string())?;
    let mut verdict = Verdict::default();
    verdict.faults.extend(outcome.err().filter(|fault| !is_omitted(fault.check)));
    for claim in [Claim::NotRolledBack, Claim::NotRewritten, Claim::Dated] {
        verdict.third_party.push((claim, State::Undecided, String::new()));
    }
    Ok(in_short(&verdict, policy))
}

fn in_short(verdict: &Verdict, policy: &Policy) -> Outcome {
    let mut findings: Vec<String> = verdict.findings.iter().map(|finding| finding.name.to_owned()).collect();
    findings.sort_unstable();
    findings.dedup();
    Outcome {
        exit: verdict.exit_code(&policy.required),
        first: verdict.first_fault().map_or_else(String::new, |fault| fault.check.name().to_owned()),
        claims: Claim::ALL.into_iter().map(|claim| (claim, verdict.claim(claim).0)).collect(),
        findings,
    }
}
