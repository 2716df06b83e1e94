//! The report for people.

use std::fmt::{self, Write as _};

use custody::{
    policy::Scope,
    verdict::{Check, Claim, Fault, State, Verdict},
};

use super::{Subject, state_name, words};
use crate::{output::plain, time};

/// Faults and findings of one name that are listed one by one; JSON has them all.
const LISTED: usize = 10;

/// The report as text.
pub fn text(subject: &Subject<'_>) -> String {
    let mut out = String::new();
    // Writing to a String never fails.
    write_report(&mut out, subject).unwrap_or_default();
    out
}

fn write_report(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    out.push_str("CUSTODY VERIFICATION REPORT\n\n");
    write_scope(out, subject)?;
    write_conclusion(out, subject)?;
    write_exceptions(out, subject)?;
    out.push_str("\nWHAT THIS DOES NOT EXCLUDE\n");
    for sentence in subject.not_excluded() {
        paragraph(out, "  - ", &sentence);
    }
    out.push_str("\n---------------------------------------- details ----------------------------------------\n");
    write_claims(out, subject)?;
    write_faults(out, subject)?;
    write_findings(out, subject)?;
    write_counts(out, subject)?;
    out.push_str(words::GLOSSARY);
    Ok(())
}

fn write_scope(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let Subject { verdict, policy, fingerprint, options } = subject;
    let counts = &verdict.counts;
    let named = |(id, name): &(_, String)| format!("{} ({id})", plain(name));
    let workspaces: Vec<String> = verdict.workspaces.iter().map(named).collect();
    let whole = if policy.scope == Scope::Organisation { "the whole organisation" } else { "named workspaces only" };
    writeln!(out, "Scope        records of {}, {whole}", plain(&policy.origin))?;
    for (at, workspace) in workspaces.iter().take(20).enumerate() {
        writeln!(out, "{:<13}{workspace}", if at == 0 { "Workspaces" } else { "" })?;
    }
    if workspaces.len() > 20 {
        writeln!(out, "{:13}and {} more", "", workspaces.len() - 20)?;
    }
    let period = match (counts.first_received_at, counts.last_received_at) {
        (Some(first), Some(last)) => format!("received from {} to {}", time::text(first), time::text(last)),
        _ => "no record".to_owned(),
    };
    writeln!(out, "Period       {period}")?;
    if let Some(reaches_to) = counts.reaches_to {
        writeln!(out, "             the archive reaches to {}; what came later is not in it", time::text(reaches_to))?;
    }
    if options.has_period() {
        let bound = |time: Option<u64>| time.map_or_else(|| "any time".to_owned(), time::text);
        writeln!(out, "             asked for: from {} to {}", bound(options.since), bound(options.until))?;
    }
    if let Some(size) = options.at_size {
        writeln!(out, "             as it was when the log had {size} entries")?;
    }
    writeln!(out, "As of        {}", time::text(options.as_of))?;
    writeln!(out, "Policy       {fingerprint}")?;
    writeln!(out, "             compare this fingerprint with the one that you were given by another way\n")
}

fn write_conclusion(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let verdict = subject.verdict;
    let text = match subject.exit_code() {
        0 => format!(
            "VERIFIED. The {} records examined are as they were signed: none was changed, removed, added or put in another \
             place afterwards, and each was signed by a key that was allowed to sign it.{}",
            verdict.counts.records,
            if subject.options.has_period() {
                " Only the period that was asked for was examined, as the ledger dates it, with one segment more on either side: \
                 of all else nothing is said, not even whether it is there."
            } else {
                ""
            }
        ),
        1 => {
            let first = verdict.faults.iter().find(|fault| fault.state == State::Refuted);
            let why = first.map_or("", |fault| words::check(fault.check));
            format!("REFUTED. This archive is not what it says it is. {why} Do not rely on it.")
        }
        _ => format!("UNDECIDED. Nothing is shown to be false, but {}.", undecided(verdict, &subject.policy.required)),
    };
    out.push_str("CONCLUSION\n");
    paragraph(out, "  ", &text);
    Ok(())
}

/// What is required and was not verified, as in "it could not be shown that ...".
pub fn undecided(verdict: &Verdict, required: &[Claim]) -> String {
    let is_open = |claim: &Claim| verdict.requires(*claim, required) && verdict.claim(*claim).0 != State::Verified;
    let open: Vec<&str> = Claim::ALL.into_iter().filter(is_open).map(words::claim).collect();
    format!("it could not be shown that {}", open.join("; nor that "))
}

fn write_exceptions(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let verdict = subject.verdict;
    out.push_str("\nEXCEPTIONS\n");
    for fault in verdict.faults.iter().take(LISTED) {
        let where_ = fault.workspace.map_or_else(|| "the log".to_owned(), |id| name_of(subject, id));
        let state = match (fault.state, fault.check) {
            (State::Refuted, _) => "",
            (_, Check::SegmentPresent) => {
                " (undecided: it may have been let go when the policy's retention had passed)"
            }
            (_, Check::CheckpointPresent) => {
                " (undecided: none of the size that was asked for was signed, or none is here)"
            }
            _ => " (undecided)",
        };
        paragraph(out, "  ! ", &format!("{} [{}{state}, in {where_}]", words::check(fault.check), fault.check.name()));
    }
    let mut names: Vec<&'static str> = verdict.findings.iter().map(|finding| finding.name).collect();
    names.sort_unstable();
    let more = if verdict.findings_more > 0 { "at least " } else { "" };
    for group in names.chunk_by(|a, b| a == b) {
        let Some(name) = group.first() else { continue };
        let times = if group.len() == 1 { "once".to_owned() } else { format!("{} times", group.len()) };
        paragraph(out, "  * ", &format!("{} [{name}, {more}{times}]", words::finding(name)));
    }
    if verdict.counts.dropped > 0 {
        writeln!(
            out,
            "  * {} records were lost before they were signed, and declared as lost.",
            verdict.counts.dropped
        )?;
    }
    if verdict.faults.is_empty() && verdict.findings.is_empty() {
        out.push_str("  none\n");
    }
    Ok(())
}

fn write_claims(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    out.push_str("\nTHE SIX CLAIMS\n");
    for claim in Claim::ALL {
        let (state, reason) = subject.verdict.claim(claim);
        let required = if subject.is_required(claim) { "required" } else { "not required" };
        writeln!(out, "  {:<10} {:<13} {}", state_name(state), required, words::claim(claim))?;
        if !reason.is_empty() {
            writeln!(out, "  {:<24} because: {}", "", plain(reason))?;
        }
    }
    Ok(())
}

fn write_faults(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let faults = &subject.verdict.faults;
    if faults.is_empty() {
        return Ok(());
    }
    out.push_str("\nCHECKS THAT DID NOT PASS, the first one first\n");
    for fault in faults.iter().take(LISTED) {
        write_fault(out, fault)?;
    }
    if faults.len() > LISTED {
        writeln!(out, "  and {} more; --json lists them all", faults.len() - LISTED)?;
    }
    Ok(())
}

pub(crate) fn write_fault(out: &mut String, fault: &Fault) -> fmt::Result {
    writeln!(out, "  {}  ({})", fault.check.name(), state_name(fault.state))?;
    writeln!(out, "    place     {}", plain(&fault.place))?;
    writeln!(out, "    expected  {}", plain(&fault.expected))?;
    writeln!(out, "    found     {}", plain(&fault.found))
}

fn write_findings(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let verdict = subject.verdict;
    if verdict.findings.is_empty() {
        return Ok(());
    }
    out.push_str("\nFINDINGS, which refute nothing\n");
    for finding in verdict.findings.iter().take(LISTED) {
        writeln!(out, "  {}: {}\n    at {}", finding.name, plain(&finding.text), plain(&finding.place))?;
    }
    let more = (verdict.findings.len() as u64).saturating_sub(LISTED as u64) + verdict.findings_more;
    if more > 0 {
        writeln!(out, "  and {more} more; --json lists the first thousand")?;
    }
    Ok(())
}

fn write_counts(out: &mut String, subject: &Subject<'_>) -> fmt::Result {
    let counts = &subject.verdict.counts;
    out.push_str("\nEXAMINED\n");
    for (what, number) in [
        ("workspaces", counts.workspaces),
        ("records", counts.records),
        ("batches, each signed by a gateway, or by the ledger for its own", counts.batches),
        ("segments, each sealed by the ledger", counts.segments),
        ("segments outside of the period, not examined", counts.segments_not_examined),
        ("entries of the log", counts.log_entries),
        ("receipts that gateways hold", counts.heads),
        ("records declared as lost", counts.dropped),
        ("things known from elsewhere", subject.options.known.len() as u64),
    ] {
        writeln!(out, "  {number:>14}  {what}")?;
    }
    Ok(())
}

fn name_of(subject: &Subject<'_>, workspace: custody::id::WorkspaceId) -> String {
    let known = subject.verdict.workspaces.iter().find(|(id, _)| *id == workspace);
    known.map_or_else(|| format!("workspace {workspace}"), |(_, name)| format!("workspace {}", plain(name)))
}

/// Breaks a paragraph at 92 columns; `mark` stands before its first line.
pub(crate) fn paragraph(out: &mut String, mark: &str, text: &str) {
    let indent = " ".repeat(mark.chars().count());
    let mut line = mark.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > 92 {
            out.push_str(&line);
            out.push('\n');
            line.clone_from(&indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    out.push_str(&line);
    out.push('\n');
}
