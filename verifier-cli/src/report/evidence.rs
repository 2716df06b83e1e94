//! What a checked evidence file shows.

use custody::{
    evidence::{Proof, Shown},
    policy::Policy,
    verdict::{Claim, Fault, State},
};
use serde_json::{Value, json};

use super::{
    claim_name,
    json::{to_text, unreadable},
    state_name, text, words,
};
use crate::{output::plain, show, time};

const SCHEMA: &str = "custody/evidence/1";

/// Witnesses of the policy that signed the file's checkpoint, with the time of their word in seconds.
fn witnesses(proof: &Proof, policy: &Policy) -> Vec<(String, u64)> {
    let keys = policy.witness_keys().unwrap_or_default();
    let signed = |(name, key): (String, _)| Some((name.clone(), proof.checkpoint.cosigned_at(&name, key)?));
    keys.into_iter().filter_map(signed).collect()
}

/// What the policy requires and evidence says nothing of, beyond its own run (FORMAT, section 14).
fn not_shown(policy: &Policy) -> impl Iterator<Item = Claim> {
    let is_open = |claim: &Claim| !matches!(claim, Claim::Unaltered | Claim::Authorised);
    Claim::ALL.into_iter().filter(is_open).filter(|claim| policy.required.contains(claim))
}

/// What a file shows, in a line.
pub fn evidence_line(shown: &Shown) -> String {
    let [first, last] =
        [shown.records.first(), shown.records.last()].map(|end| end.map_or(0, |record| record.position));
    let run = if first == last { first.to_string() } else { format!("{first}..{}", last.saturating_add(1)) };
    format!("verified: {}/{run}", shown.workspace)
}

/// What a file shows, for people.
pub fn evidence_text(proof: &Proof, shown: &Shown, policy: &Policy, fingerprint: &str) -> String {
    let mut out = String::from("CUSTODY EVIDENCE\n\n");
    let count = shown.records.len() as u64;
    let first = shown.records.first().map_or(0, |record| record.position);
    let last = shown.records.last().map_or(0, |record| record.position);
    let origin = plain(&policy.origin);
    let which =
        if count == 1 { format!("position {first}") } else { format!("positions {first} to {last}, all of them") };
    out.push_str(&format!("Scope        records of {origin}, workspace {}, {which}\n", shown.workspace));
    out.push_str(&format!("Policy       {fingerprint}\n\nCONCLUSION\n"));
    let doubt = match shown.suspect {
        0 => "VERIFIED. What follows was signed by a key that was allowed to (a gateway's, or the ledger's for its own records);".to_owned(),
        some => format!(
            "UNDECIDED. {some} of the records were signed by a key that was put in doubt from there on: the signatures \
             verify, but whether its holder made them is open. Apart from that,"
        ),
    };
    let conclusion = "the ledger holds it at this place, in the one log whose signed summary is in this file; and within the \
                      positions shown nothing is left out.";
    text::paragraph(&mut out, "  ", &format!("{doubt} {conclusion}"));
    out.push_str("\nWHAT THIS DOES NOT EXCLUDE\n");
    let open: Vec<&str> = not_shown(policy).map(words::claim).collect();
    if !open.is_empty() {
        let open = format!(
            "The policy also requires what no evidence file can show for a whole archive: that {}. To know that, verify \
             the archive; exit code 0 says here only that the records below are unaltered and were signed by those \
             allowed to.",
            open.join("; that ")
        );
        text::paragraph(&mut out, "  - ", &open);
    }
    let witnesses = witnesses(proof, policy);
    if witnesses.is_empty() || (witnesses.len() as u64) < u64::from(policy.quorum) {
        let open =
            "The organisation holds all of its own keys, and no independent witness says that there is only this log.";
        text::paragraph(&mut out, "  - ", open);
        text::paragraph(&mut out, "  - ", "Times are the word of the organisation's own clocks.");
    }
    text::paragraph(&mut out, "  - ", "Whoever administers the gateway can make it record what did not happen.");
    text::paragraph(
        &mut out,
        "  - ",
        "A key may have been put in doubt, or a gateway found to lie, by what this file does not hold: it holds what was said \
         of keys up to the last part of the records that it shows.",
    );
    for (name, at) in &witnesses {
        out.push_str(&format!("\nWitness      {} signed the log's summary at {}\n", plain(name), time::seconds(*at)));
    }
    out.push_str("\nRECORDS\n");
    for record in &shown.records {
        let fields = show::fields(&record.bytes);
        let name = format!("{}/{}/{}", record.gateway, record.epoch, record.number);
        out.push_str(&format!("\n  position {}, received {}\n", record.position, time::text(record.received_at)));
        out.push_str(&format!("  signed as {name}\n"));
        for (name, value) in fields {
            let value = plain(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            out.push_str(&format!("    {name:<22} {value}\n"));
        }
    }
    out
}

/// What a file shows, or the check that does not pass, for programs.
pub fn evidence_json(outcome: Result<(&Proof, &Shown), &Fault>, policy: &Policy, fingerprint: &str) -> String {
    let (proof, shown) = match outcome {
        Ok(shown) => shown,
        Err(fault) => {
            return to_text(&json!({
                "schema": SCHEMA, "conclusion": state_name(fault.state),
                "exit_code": if fault.state == State::Refuted { 1 } else { 2 }, "policy_fingerprint": fingerprint,
                "first_failing_check": fault.check.name(), "place": fault.place, "expected": fault.expected,
                "found": fault.found, "meaning": words::check(fault.check),
            }));
        }
    };
    let record = |record: &custody::evidence::Proven| {
        json!({
            "position": record.position, "received_at": time::text(record.received_at),
            "gateway": record.gateway.to_string(), "epoch": record.epoch.to_string(), "number": record.number,
            "record": show::fields(&record.bytes),
        })
    };
    let witness = |(name, at): (String, u64)| json!({"name": name, "signed_at": time::seconds(at)});
    to_text(&json!({
        "schema": SCHEMA, "conclusion": if shown.suspect > 0 { "undecided" } else { "verified" },
        "exit_code": if shown.suspect > 0 { 2 } else { 0 }, "suspect_records": shown.suspect, "policy_fingerprint": fingerprint,
        "first_failing_check": Value::Null, "origin": policy.origin, "workspace": shown.workspace.to_string(),
        "log_size": shown.log_size, "witnesses": witnesses(proof, policy).into_iter().map(witness).collect::<Vec<_>>(),
        "required_not_shown": not_shown(policy).map(claim_name).collect::<Vec<_>>(),
        "records": shown.records.iter().map(record).collect::<Vec<_>>(),
    }))
}

/// The answer where the file, or the policy, could not be read.
pub fn evidence_unreadable_json(why: &str) -> String {
    unreadable(SCHEMA, why)
}

/// The check that a file does not pass, for people.
pub fn evidence_refused(fault: &Fault) -> String {
    let (mut out, verb) = (String::from("CUSTODY EVIDENCE\n\nCONCLUSION\n"), state_name(fault.state).to_uppercase());
    text::paragraph(&mut out, "  ", &format!("{verb}. {}", words::check(fault.check)));
    out.push('\n');
    // Writing to a String never fails.
    text::write_fault(&mut out, fault).unwrap_or_default();
    out
}
