//! The answer for people.

use std::fmt::{self, Write as _};

use custody::{
    access::{DEFAULT_DENY, IDENTITY_PROVIDER, Member, State, is_of},
    id::{MemberId, hex},
    verdict::State as Decided,
    wire::{AccessRule, Decision},
};

use super::{
    Answer, Names, OfGateway, Question, When,
    effect::{Effect, Part},
    find::{Could, Listed, Made, Who, could, in_order},
};
use crate::{
    output::plain,
    report::{self, Subject, paragraph, words, write_fault},
    time,
};

/// What holds of every answer.
const ALWAYS: [&str; 4] = [
    "Order is the position of a record, never its time. A time is the gateway's own clock; beside it stands when the ledger received the \
     record, by the ledger's clock. What was in force at a time is what the last change made, in order of position, that a gateway \
     dated at or before that time, with all changes before it.",
    "What a gateway had not yet shipped, or the ledger had not yet sealed, is not here: of each gateway it is known only what it \
     signed up to when it was last heard. Of the last change that is here it is not known whether it has more records.",
    "That an access policy allows a call is not that it was made, nor that nothing else refused it: limits, quarantined tools, \
     schemas and servers may have. Tokens end at their time without a change: a member without a good one is not let in. The policy is the gateway's word, and its \
     administrators'.",
    "A gateway that enforces no access policy of its own (a relay) has no records of one: then nothing here says who could call what \
     through it.",
];

/// The answer as text.
pub fn text(answer: &Answer, subject: &Subject<'_>, question: &Question) -> String {
    let mut out = String::new();
    // Writing to a String never fails.
    write_answer(&mut out, answer, subject, question).unwrap_or_default();
    out
}

fn write_answer(out: &mut String, answer: &Answer, subject: &Subject<'_>, question: &Question) -> fmt::Result {
    match question.when {
        When::At(at) => writeln!(out, "WHO COULD CALL WHAT at {}\n", time::text(at))?,
        When::Between(a, b) => {
            writeln!(out, "WHAT CHANGED IN WHO COULD CALL WHAT from {} to {}\n", time::text(a), time::text(b))?;
        }
    }
    writeln!(out, "Log          {}", plain(&answer.policy.origin))?;
    for (at, (id, name)) in answer.verdict.workspaces.iter().enumerate() {
        writeln!(out, "{:<13}{} ({id})", if at == 0 { "Workspaces" } else { "" }, plain(name))?;
    }
    writeln!(out, "As of        {}", time::text(subject.options.as_of))?;
    writeln!(out, "Policy       {}", subject.fingerprint)?;
    writeln!(out, "             compare this fingerprint with the one that you were given by another way\n")?;
    write_conclusion(out, answer)?;
    if answer.exit_code() == 1 {
        return Ok(());
    }
    write_exceptions(out, answer)?;
    match question.when {
        When::At(at) => {
            for of in &answer.gateways {
                writeln!(out, "\nGATEWAY {} of workspace {}", of.gateway, plain(&of.workspace_name))?;
                write_heard(out, "  Heard     ", of)?;
                write_state(out, of, answer, question, at)?;
            }
        }
        When::Between(..) => {
            for gateways in answer.gateways.chunk_by(|a, b| a.workspace == b.workspace) {
                write_changes(out, gateways, answer, question)?;
            }
        }
    }
    if answer.gateways.is_empty() {
        out.push_str("\nOf no gateway anything is known there.\n");
    }
    out.push_str("\nWHAT THIS RESTS ON, AND WHAT IT DOES NOT EXCLUDE\n");
    for sentence in ALWAYS.map(str::to_owned).into_iter().chain(subject.not_excluded()) {
        paragraph(out, "  - ", &sentence);
    }
    Ok(())
}

fn write_conclusion(out: &mut String, answer: &Answer) -> fmt::Result {
    out.push_str("CONCLUSION\n");
    let (verdict, required) = (&answer.verdict, &answer.policy.required);
    let doubts = answer.gateways.iter().filter(|of| !of.doubts.is_empty()).count();
    let is_open = verdict.exit_code(required) == 2;
    let text = match answer.exit_code() {
        0 => "VERIFIED. What follows is what verified records say, and none that it needs is missing.".to_owned(),
        1 => {
            let first = verdict.faults.iter().find(|fault| fault.state == Decided::Refuted);
            let why = first.map_or("", |fault| words::check(fault.check));
            paragraph(
                out,
                "  ",
                &format!(
                    "REFUTED. This archive is not what it says it is. {why} Who could call what is not said of it."
                ),
            );
            if let Some(fault) = first {
                write_fault(out, fault)?;
            }
            "`verifier verify` says what else is wrong; --workspace asks of one workspace, which may hold.".to_owned()
        }
        _ if is_open && doubts > 0 => format!(
            "UNDECIDED. Nothing is shown to be false, but {}; and of {doubts} of the gateways the records do not say it all.",
            report::undecided(verdict, required)
        ),
        _ if is_open => {
            format!("UNDECIDED. Nothing is shown to be false, but {}.", report::undecided(verdict, required))
        }
        _ => format!("UNDECIDED. The records are verified, but of {doubts} of the gateways they do not say it all."),
    };
    paragraph(out, "  ", &text);
    Ok(())
}

fn write_exceptions(out: &mut String, answer: &Answer) -> fmt::Result {
    out.push_str("\nEXCEPTIONS\n");
    let begun = out.len();
    for of in &answer.gateways {
        let whose = format!("gateway {} of workspace {}", of.gateway, plain(&of.workspace_name));
        for doubt in &of.doubts {
            paragraph(out, "  ! ", &format!("Of {whose} {} [{}].", plain(&doubt.text), doubt.name));
        }
        for note in &of.notes {
            paragraph(out, "  * ", &format!("Changes of {whose}, {} [{}].", plain(&note.text), note.name));
        }
    }
    let mut names: Vec<&'static str> = answer.verdict.findings.iter().map(|finding| finding.name).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        paragraph(out, "  * ", &format!("{} [{name}; `verifier verify` says where]", words::finding(name)));
    }
    if out.len() == begun {
        out.push_str("  none\n");
    }
    Ok(())
}

fn who(who: &Who, names: &Names) -> String {
    match who {
        Who::Member(id) => format!("member {}", names.of(id)),
        Who::System(name) => format!("system {name}"),
    }
}

fn why(made: &Made) -> String {
    let ticket = if made.ticket.is_empty() { "none".to_owned() } else { made.ticket.clone() };
    format!("reason {}, ticket {ticket}", made.reason)
}

fn place(of: &OfGateway, made: &Made) -> String {
    let workspace = plain(&of.workspace_name);
    match made.first == made.last {
        true => format!("{workspace}/{}", made.first),
        false => format!("{workspace}/{} to {workspace}/{}", made.first, made.last),
    }
}

fn write_heard(out: &mut String, mark: &str, of: &OfGateway) -> fmt::Result {
    let [begun, heard, received] = [of.begun_at, of.heard_at, of.received_at].map(time::text);
    writeln!(out, "{mark} from {begun} to {heard}; the last was received {received}")
}

fn write_state(out: &mut String, of: &OfGateway, answer: &Answer, question: &Question, at: u64) -> fmt::Result {
    let (Some(digest), Some(since)) = (of.state.digest, &of.since) else {
        let why = match (of.is_begun, of.doubts.is_empty()) {
            (true, _) => "no access policy of it is on record",
            (false, true) => "it had not begun",
            (false, false) => "it had not begun, as far as its records here say",
        };
        return writeln!(out, "  Then       {why}");
    };
    writeln!(out, "  Policy     {}", hex(&digest))?;
    writeln!(
        out,
        "  Since      {} by its clock, {}, received {}",
        time::text(since.at),
        place(of, since),
        time::text(since.received_at)
    )?;
    writeln!(out, "  Changed by {}; {}", who(&since.actor, &answer.names), why(since))?;
    if question.tool.is_some() {
        return write_callers(out, of, answer, question, at);
    }
    if question.member.is_none() {
        write_policy(out, &of.state, &answer.names)?;
    }
    out.push_str("  Members\n");
    let asked = of.state.members.iter().filter(|(id, _)| question.member.is_none_or(|asked| asked == **id));
    let mut none = true;
    for (id, member) in asked {
        none = false;
        write_member(out, (id, member), &of.state, &answer.names, at)?;
    }
    if none {
        out.push_str("    none\n");
    }
    Ok(())
}

fn write_policy(out: &mut String, state: &State, names: &Names) -> fmt::Result {
    out.push_str("  Servers\n");
    for (name, labels) in &state.servers {
        writeln!(out, "    {name}  {}", labels.join(" "))?;
    }
    if state.servers.is_empty() {
        out.push_str("    none\n");
    }
    writeln!(out, "  Rules      the first that fits decides; what none fits is denied ({DEFAULT_DENY})")?;
    for (place, rule) in state.rules.0.iter().enumerate() {
        writeln!(out, "    {:<3} {}: {}", place + 1, rule.id, rule_words(rule, names))?;
    }
    if !state.limits.is_empty() {
        out.push_str("  Limits     all that fit apply\n");
    }
    for limit in &state.limits {
        writeln!(out, "    {}: {}", limit.id, limit_words(limit, names))?;
    }
    let agents: Vec<String> = state.agents.iter().map(|agent| names.of(agent)).collect();
    writeln!(out, "  Agents     {}", if agents.is_empty() { "none".to_owned() } else { agents.join(" ") })
}

fn write_member(
    out: &mut String,
    (id, member): (&MemberId, &Member),
    state: &State,
    names: &Names,
    at: u64,
) -> fmt::Result {
    writeln!(out, "    {}: {}", names.of(id), member_words(member, names))?;
    let groups: Vec<String> = member.groups.iter().cloned().collect();
    if !groups.is_empty() {
        writeln!(out, "      in groups {}", groups.join(" "))?;
    }
    let mut is_let_in = member.labels.iter().any(|label| label == IDENTITY_PROVIDER);
    for (token, holder) in state.tokens_of(id, at) {
        is_let_in = true;
        let agent = holder.agent.map_or_else(String::new, |agent| format!(" through agent {}", names.of(&agent)));
        writeln!(out, "      token {}{agent}, good until {}", hex(token), time::text(holder.expires_at))?;
    }
    if !is_let_in {
        out.push_str("      could call nothing: no token of it was good\n");
        return Ok(());
    }
    for rule in state.rules.0.iter().filter(|rule| is_of(rule, id, &groups)) {
        let may = if rule.effect() == Decision::Allowed { "yes" } else { "no" };
        writeln!(out, "      {may:<4} {}, by {}", what(rule), rule.id)?;
    }
    writeln!(out, "      no   all else, by {DEFAULT_DENY}")
}

fn write_callers(out: &mut String, of: &OfGateway, answer: &Answer, question: &Question, at: u64) -> fmt::Result {
    let Some(tool) = &question.tool else { return Ok(()) };
    writeln!(out, "  Who could call {tool} ({})", plain(&question.method))?;
    let members = of.state.members.keys().filter(|id| question.member.is_none_or(|asked| asked == **id));
    let mut all: Vec<(&MemberId, Could)> =
        members.map(|id| (id, could(&of.state, id, at, tool, &question.method))).collect();
    all.sort_by_key(|(_, could)| !matches!(could, Some((true, _))));
    for (id, could) in &all {
        writeln!(out, "    {}: {}", answer.names.of(id), could_words(could))?;
    }
    if all.is_empty() {
        out.push_str("    nobody\n");
    }
    Ok(())
}

fn could_words(could: &Could) -> String {
    match could {
        Some((true, rule)) => format!("yes, by {rule}"),
        Some((false, rule)) => format!("no, by {rule}"),
        None => "no, not let in".to_owned(),
    }
}

/// The changes of a workspace, of all its gateways, in order of position.
fn write_changes(out: &mut String, gateways: &[OfGateway], answer: &Answer, question: &Question) -> fmt::Result {
    let Some(first) = gateways.first() else { return Ok(()) };
    writeln!(out, "\nWORKSPACE {} ({})", plain(&first.workspace_name), first.workspace)?;
    for of in gateways {
        write_heard(out, &format!("  gateway {} heard", of.gateway), of)?;
    }
    let changes = in_order(gateways);
    for (of, change) in &changes {
        write_change(out, of, change, answer, question)?;
    }
    if changes.is_empty() {
        out.push_str("  no change of what was asked for\n");
    }
    Ok(())
}

fn write_change(
    out: &mut String,
    of: &OfGateway,
    change: &Listed,
    answer: &Answer,
    question: &Question,
) -> fmt::Result {
    let (made, names) = (&change.made, &answer.names);
    writeln!(
        out,
        "\n  {}  {} by its clock, received {}",
        place(of, made),
        time::text(made.at),
        time::text(made.received_at)
    )?;
    writeln!(out, "    at      gateway {}", of.gateway)?;
    writeln!(out, "    by      {}", who(&made.actor, names))?;
    writeln!(out, "    why     {}", why(made))?;
    let mut lines: Vec<String> = Vec::new();
    if change.has_gap {
        lines.push("! records of changes are missing before this one, or are not what they should be".to_owned());
    }
    if made.before.is_none() {
        lines.push("the gateway begins anew: what was before does not count".to_owned());
    }
    if change.cut_short {
        lines.push("cut short, and written once more later: this took no effect".to_owned());
    }
    lines.extend(change.effects.iter().map(|effect| effect_words(effect, names)));
    if change.effects.is_empty() && !change.cut_short {
        lines.push("no member, token, rule, limit or server: the text alone, or what was written before".to_owned());
    }
    if change.is_whole {
        lines.push("a whole policy was applied".to_owned());
    }
    for (at, line) in lines.iter().enumerate() {
        writeln!(out, "    {:<7} {line}", if at == 0 { "what" } else { "" })?;
    }
    if let Some(tool) = question.tool.as_ref().filter(|_| !change.calls.is_empty()) {
        writeln!(out, "    calls   of {tool} ({})", plain(&question.method))?;
    }
    for (id, before, after) in &change.calls {
        writeln!(out, "            {}: {} -> {}", names.of(id), could_words(before), could_words(after))?;
    }
    writeln!(out, "    policy  {}", hex(&made.after))
}

fn effect_words(effect: &Effect, names: &Names) -> String {
    let both = |what: &str, before: Option<String>, after: Option<String>| match (before, after) {
        (Some(before), Some(after)) if before == after => format!("~ {what}: {after}"),
        (Some(before), Some(after)) => format!("~ {what}: {before} -> {after}"),
        (None, Some(after)) => format!("+ {what}: {after}"),
        (Some(before), None) => format!("- {what}: {before}"),
        (None, None) => what.to_owned(),
    };
    let sign = |is_there: bool| if is_there { '+' } else { '-' };
    match (&effect.before, &effect.after) {
        (Part::Member(id, before), Part::Member(_, after)) => {
            let words = |of: &Option<Member>| of.as_ref().map(|of| member_words(of, names));
            let and = if after.is_none() { "; its groups and tokens go with it" } else { "" };
            both(&format!("member {}", names.of(id)), words(before), words(after)) + and
        }
        (Part::Group(..), Part::Group(id, group, is_in)) => {
            format!("{} member {} in group {group}", sign(*is_in), names.of(id))
        }
        (Part::Agent(..), Part::Agent(id, is_there)) => format!("{} agent {}", sign(*is_there), names.of(id)),
        (Part::Token(id, before), Part::Token(_, after)) => {
            let words = |of: &custody::access::Holder| {
                let agent = of.agent.map_or_else(String::new, |agent| format!(" through agent {}", names.of(&agent)));
                format!("of member {}{agent}, good until {}", names.of(&of.member), time::text(of.expires_at))
            };
            both(&format!("token {}", hex(id)), before.as_ref().map(words), after.as_ref().map(words))
        }
        (Part::Rule(id, before), Part::Rule(_, after)) => match (before, after) {
            (Some((from, old)), Some((to, new))) if old == new => {
                format!("~ rule {id}: from place {} to place {}", from + 1, to + 1)
            }
            _ => {
                let words = |of: &(usize, AccessRule)| format!("{}, at place {}", rule_words(&of.1, names), of.0 + 1);
                both(&format!("rule {id}"), before.as_ref().map(words), after.as_ref().map(words))
            }
        },
        (Part::Limit(id, before), Part::Limit(_, after)) => {
            let words = |of: &AccessRule| limit_words(of, names);
            both(&format!("limit {id}"), before.as_ref().map(words), after.as_ref().map(words))
        }
        (Part::Server(name, before), Part::Server(_, after)) => {
            let words = |labels: &Vec<String>| labels.join(" ");
            both(&format!("server {name}"), before.as_ref().map(words), after.as_ref().map(words))
        }
        // Both are of one record.
        _ => String::new(),
    }
}

fn member_words(member: &Member, names: &Names) -> String {
    let what = member
        .owner
        .map_or_else(|| "a person".to_owned(), |id| format!("a service that {} answers for", names.of(&id)));
    match member.labels.as_slice() {
        [] => what,
        [label] if label == IDENTITY_PROVIDER => format!("{what}, by the identity provider's word"),
        labels => format!("{what}, {}", labels.join(" ")),
    }
}

/// Whom a rule or a limit is about.
fn whom(rule: &AccessRule, names: &Names) -> String {
    let member = |id: &bytes::Bytes| {
        MemberId::try_from(id.as_ref()).map_or_else(|_| hex(id), |id| format!("member {}", names.of(&id)))
    };
    let groups = rule.groups.iter().map(|group| format!("group {group}"));
    let whom: Vec<String> = rule.members.iter().map(member).chain(groups).collect();
    if whom.is_empty() { "everyone".to_owned() } else { whom.join(", ") }
}

/// What a rule is about: tools, and methods where they are not `tools/call` alone.
fn what(rule: &AccessRule) -> String {
    let methods = match rule.methods.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["tools/call"] => String::new(),
        ["*"] => " by any method".to_owned(),
        methods => format!(" by {}", methods.join(" ")),
    };
    format!("{}{methods}", rule.tools.join(" "))
}

fn rule_words(rule: &AccessRule, names: &Names) -> String {
    let effect = if rule.effect() == Decision::Allowed { "allow" } else { "deny" };
    let above = if rule.organisation { ", the organisation's" } else { "" };
    format!("{effect} {}: {}{above}", whom(rule, names), what(rule))
}

fn limit_words(limit: &AccessRule, names: &Names) -> String {
    let numbers = [
        (limit.calls_per_minute, "calls a minute"),
        (limit.calls_per_day, "calls a day"),
        (limit.concurrent_calls, "calls at a time"),
        (limit.request_bytes_max, "bytes of a request"),
        (limit.response_bytes_max, "bytes of a response"),
    ];
    let numbers = numbers.into_iter().filter(|(number, _)| *number > 0);
    let numbers: Vec<String> = numbers.map(|(number, of)| format!("{number} {of}")).collect();
    let whose = if limit.shared { "all together" } else { "each" };
    format!("{}: {}, {whose}: {}", whom(limit, names), limit.tools.join(" "), numbers.join(", "))
}
