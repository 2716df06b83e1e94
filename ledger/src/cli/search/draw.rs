//! Answers as people read them: tables, bars, and how complete it all is.

use std::fmt::Write as _;

use custody::{
    id::hex,
    record,
    wire::{self, Hit, MemberName},
};
use verifier::{output::plain, show, time};

use super::super::output::table;

/// Letters of the longest bar.
const BAR: u64 = 40;
/// A record that came so much later than it says that it happened shows both times, in microseconds.
const LATE_US: u64 = 60_000_000;

fn number(of: u64) -> String {
    let digits = of.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn bar(count: u64, most: u64) -> String {
    let eighths = count.saturating_mul(BAR * 8) / most.max(1);
    let parts = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let mut bar = "█".repeat(usize::try_from(eighths / 8).unwrap_or_default());
    if let Some(part) =
        usize::try_from(eighths % 8).ok().and_then(|part| part.checked_sub(1)).and_then(|at| parts.get(at))
    {
        bar.push(*part);
    }
    if bar.is_empty() && count > 0 {
        bar.push('▏');
    }
    bar
}

const HEADING: [&str; 5] = ["PLACE", "TIME", "GATEWAY", "KIND", "WHAT"];

/// A page.
pub(super) fn hits(hits: &[Hit], names: &[MemberName], heading: bool) -> String {
    let heading = heading.then(|| HEADING.map(str::to_owned).to_vec());
    table(&heading.into_iter().chain(hits.iter().map(|hit| row(hit, names))).collect::<Vec<_>>())
}

/// The calls of a trace, each below the one that it belongs under.
pub(in super::super) fn steps(told: &wire::TraceResponse) -> String {
    let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
    let mut depths: Vec<usize> = Vec::new();
    for step in &told.steps {
        let above = step.parent.and_then(|parent| depths.get(usize::try_from(parent).ok()?));
        let depth = above.map_or(0, |depth| depth + 1);
        depths.push(depth);
        let mut row = step.hit.as_ref().map(|hit| row(hit, &told.names)).unwrap_or_default();
        if let Some(what) = row.last_mut().filter(|_| depth > 0) {
            *what = format!("{}└ {what}", "  ".repeat(depth - 1));
        }
        rows.push(row);
    }
    format!("{}\n{}", table(&rows), footer(told.steps.len() as u64, None, told.completeness.as_ref()))
}

fn row(hit: &Hit, names: &[MemberName]) -> Vec<String> {
    let fields = show::fields(&hit.record);
    let said = ["started_at", "at"].iter().find_map(|name| fields.get(*name)).and_then(|value| value.as_str());
    let received = time::text(hit.received_at);
    let at = said.map_or_else(|| received.clone(), str::to_owned);
    let mut what = show::what(&fields);
    for known in names {
        let id = hex(&known.member);
        what = what.replace(&id, &format!("{} ({})", plain(&known.name), id.get(..8).unwrap_or_default()));
    }
    if custody::query::instant(&at).is_some_and(|at| hit.received_at.abs_diff(at) > LATE_US) {
        write!(what, " received={received}").ok();
    }
    vec![
        format!("{}/{}", plain(&hit.workspace_name), hit.position),
        at,
        hex(&hit.gateway).get(..8).unwrap_or_default().to_owned(),
        record::kind(&hit.record).map_or("?", record::RecordKind::name).to_owned(),
        what,
    ]
}

/// How much of it this is, and how complete.
pub(super) fn footer(shown: u64, total: Option<u64>, complete: Option<&wire::Completeness>) -> String {
    let mut out = total.map_or_else(|| number(shown), |total| format!("{} of {}", number(shown), number(total)));
    let Some(complete) = complete else { return out };
    let (records, indexed) = (number(complete.records), number(complete.indexed));
    write!(out, "; of {records} records, indexed through {indexed}").ok();
    if complete.cut_short {
        out.push_str("; CUT SHORT: the time for one question was over (hint: ask for a shorter time with since:)");
    }
    let (over, silent): (Vec<_>, Vec<_>) = complete.silent.iter().partition(|silent| silent.ended_at > 0);
    for (silences, is, are) in
        [(silent, "is silent", "are silent"), (over, "was silent for a time", "were silent for a time")]
    {
        match silences.len() {
            0 => {}
            1 => write!(out, "; 1 gateway {is}").unwrap_or_default(),
            many => write!(out, "; {many} gateways {are}").unwrap_or_default(),
        }
    }
    out
}

fn values(values: &[wire::Counted], names: &[MemberName]) -> Vec<Vec<String>> {
    let most = values.iter().map(|value| value.count).max().unwrap_or_default();
    let row = |value: &wire::Counted| vec![called(&value.value, names), number(value.count), bar(value.count, most)];
    values.iter().map(row).collect()
}

fn called(value: &str, names: &[MemberName]) -> String {
    let known = names.iter().find(|known| hex(&known.member) == value);
    known.map_or_else(
        || plain(value),
        |known| format!("{} ({})", plain(&known.name), value.get(..8).unwrap_or_default()),
    )
}

/// Sums.
pub(super) fn sums(answer: &wire::SummariseResponse) -> String {
    let mut out = String::new();
    for facet in &answer.facets {
        let shown = facet.values.len() as u64;
        let more =
            if facet.distinct > shown { format!(", the first {shown} of {}", facet.distinct) } else { String::new() };
        writeln!(out, "{}{more}", facet.field.to_uppercase()).ok();
        writeln!(out, "{}", table(&values(&facet.values, &answer.names))).ok();
    }
    if !answer.buckets.is_empty() {
        let most = answer.buckets.iter().map(|bucket| bucket.count).max().unwrap_or_default();
        let mut rows = Vec::new();
        let mut next = answer.buckets.first().map_or(0, |bucket| bucket.start);
        for bucket in &answer.buckets {
            if bucket.start > next {
                rows.push(vec!["...".to_owned()]);
            }
            next = bucket.start + answer.width_us;
            let split: Vec<String> = bucket
                .values
                .iter()
                .map(|value| format!("{} {}", called(&value.value, &answer.names), number(value.count)))
                .collect();
            let start = time::text(bucket.start);
            let start = start.get(..16).unwrap_or_default().replace('T', " ");
            rows.push(vec![start, number(bucket.count), bar(bucket.count, most), split.join(", ")]);
        }
        writeln!(out, "{}", table(&rows)).ok();
    }
    if !answer.percentiles.is_empty() {
        let mut rows = vec![["", "RECORDS", "P50", "P95", "P99"].map(str::to_owned).to_vec()];
        for ranked in &answer.percentiles {
            let value = if ranked.value.is_empty() { "all".to_owned() } else { called(&ranked.value, &answer.names) };
            rows.push(
                [value, number(ranked.count)]
                    .into_iter()
                    .chain(ranked.values.iter().map(|value| number(*value)))
                    .collect(),
            );
        }
        writeln!(out, "{}", table(&rows)).ok();
    }
    writeln!(out, "{}", footer(answer.count, None, answer.completeness.as_ref())).ok();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_drawn_to_scale() {
        let counted = |value: &str, count| wire::Counted { value: value.to_owned(), count };
        let answer = wire::SummariseResponse {
            count: 12_431,
            facets: vec![wire::FacetCounts {
                field: "outcome".to_owned(),
                values: vec![counted("ok", 12_000), counted("denied", 430), counted("timeout", 1)],
                distinct: 4,
            }],
            width_us: 3_600_000_000,
            buckets: [(0, 5), (1, 10), (7, 1)]
                .map(|(hour, count)| wire::Bucket {
                    start: 1_772_323_200_000_000 + hour * 3_600_000_000,
                    count,
                    values: vec![counted("ok", count)],
                })
                .to_vec(),
            percentiles: vec![wire::Ranked {
                value: "github/list".to_owned(),
                count: 7,
                values: vec![1_000, 20_000, 300_000],
            }],
            completeness: Some(wire::Completeness {
                records: 20_000,
                indexed: 19_990,
                cut_short: false,
                silent: vec![wire::SilentGateway::default()],
            }),
            ..Default::default()
        };
        insta::assert_snapshot!(sums(&answer));
    }
}
