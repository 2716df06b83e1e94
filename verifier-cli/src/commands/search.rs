//! `verifier search`: a question, out of the segments alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use custody::{
    id::WorkspaceId,
    query::{self, Expr, Field, HistogramWish, Kind, PercentilesWish, Tally, Wishes},
    verify::{self, Log},
};
use verifier::{
    failure::Failure,
    output::plain,
    reader::Source,
    search::{Answer, Question, search},
    segments::find_workspace,
    show, time,
};

use super::{answer, read_policy};
use crate::cli::Search;

/// Values of a facet that are shown.
const VALUES: usize = 50;
/// Least width of a bucket, as of a running ledger.
const WIDTH_US_MIN: u64 = 1_000_000;
/// Parts of a thousand that percentiles are told for.
const THOUSANDTHS: [u32; 3] = [500, 950, 990];

pub(super) fn run(asked: &Search) -> Result<u8, Failure> {
    let (policy, _) = read_policy(&asked.policy)?;
    let objects = Source::open(&asked.archive)?;
    let log = verify::log(&objects, &policy, None)?.map_err(|fault| Failure::Refuted(Box::new(fault)))?;
    let question = question(asked, &log)?;
    let found = search(&objects, &log, &question)?;
    answer(&if asked.json { as_json(&found) } else { as_text(asked, &question, &log, &found) })?;
    Ok(0)
}

fn question(asked: &Search, log: &Log) -> Result<Question, Failure> {
    let expr =
        query::parse(&asked.query, time::now()).map_err(|fault| Failure::Unreadable(fault.drawn(&asked.query)))?;
    let named = query::names(&expr);
    if let Some((field, name)) = named.iter().find(|(field, _)| *field != Field::Workspace) {
        let why = format!("{}:{} names somebody, and an archive holds ids", field.name(), plain(name));
        return Err(Failure::Unreadable(format!("{why}\nhint: ask by id; `verifier names` shows whose it is")));
    }
    let of_name = |_: Field, name: &str| -> Vec<String> {
        log.workspaces.iter().filter(|known| known.name() == name).map(|known| known.id.to_string()).collect()
    };
    let workspaces: BTreeSet<WorkspaceId> = match asked.workspace.as_slice() {
        [] => log.workspaces.iter().map(|known| known.id).collect(),
        said => said.iter().map(|said| find_workspace(log, said)).collect::<Result<_, _>>()?,
    };
    let wishes = wishes(asked)?;
    let sums = asked.count || wishes != Wishes::default();
    let expr: Expr = query::with_ids(&expr, &of_name);
    Ok(Question { expr, workspaces, limit: if sums { 0 } else { asked.limit }, wishes })
}

/// What is summed up of all that match.
fn wishes(asked: &Search) -> Result<Wishes, Failure> {
    let field = |name: &String, fits: fn(Kind) -> bool| {
        Field::named(name).filter(|field| fits(field.kind())).ok_or_else(|| {
            let why = format!("{name:?} is no field that can be counted or measured so");
            Failure::Unreadable(format!("{why}\nhint: docs/QUERY.md lists the fields"))
        })
    };
    let counted = |name: &String| field(name, |kind| kind == Kind::Text);
    let measured = |name: &String| field(name, |kind| matches!(kind, Kind::Duration | Kind::Size));
    let width = query::span(&asked.width).filter(|width| *width >= WIDTH_US_MIN).ok_or_else(|| {
        Failure::Unreadable(format!("--width {:?} is no span of a second or more\nhint: as 1h or 5m", asked.width))
    })?;
    let split = asked.split.as_ref().map(counted).transpose()?;
    let by = asked.by.as_ref().map(counted).transpose()?;
    Ok(Wishes {
        facets: asked.facet.iter().map(counted).collect::<Result<_, _>>()?,
        histogram: asked.histogram.then_some(HistogramWish { field: Field::At, width, split }),
        percentiles: match &asked.percentiles {
            Some(name) => Some(PercentilesWish { field: measured(name)?, by }),
            None => None,
        },
    })
}

fn as_json(found: &Answer) -> String {
    let mut out = String::new();
    for hit in &found.hits {
        let line = show::json_line(&hit.shown);
        writeln!(out, "{{\"workspace\":\"{}\",{}", hit.workspace, line.strip_prefix('{').unwrap_or_default()).ok();
    }
    out
}

/// Most first, and of as many by name.
fn greatest(values: &BTreeMap<String, u64>) -> Vec<(&String, &u64)> {
    let mut values: Vec<_> = values.iter().collect();
    values.sort_by(|one, other| other.1.cmp(one.1).then_with(|| one.0.cmp(other.0)));
    values.truncate(VALUES);
    values
}

fn sums(wishes: &Wishes, tally: &Tally, out: &mut String) {
    for (field, values) in wishes.facets.iter().zip(&tally.facets) {
        writeln!(out, "{}", field.name().to_uppercase()).ok();
        for (value, count) in greatest(values) {
            writeln!(out, "{count:>12}  {}", plain(value)).ok();
        }
    }
    for (start, bucket) in &tally.buckets {
        let values = greatest(&bucket.values).into_iter().map(|(value, count)| format!("{} {count}", plain(value)));
        writeln!(out, "{:>12}  {}  {}", bucket.count, time::text(*start), values.collect::<Vec<_>>().join(", ")).ok();
    }
    if !tally.levels.is_empty() {
        writeln!(out, "{:>12}  {:>12}  {:>12}  {:>12}", "RECORDS", "P50", "P95", "P99").ok();
    }
    for (value, levels) in &tally.levels {
        let [p50, p95, p99] = THOUSANDTHS.map(|part| levels.percentile(part));
        writeln!(out, "{:>12}  {p50:>12}  {p95:>12}  {p99:>12}  {}", levels.count(), plain(value)).ok();
    }
    if tally.cut_short {
        writeln!(out, "CUT SHORT: there are more values or spans than are told apart").ok();
    }
}

fn as_text(asked: &Search, question: &Question, log: &Log, found: &Answer) -> String {
    let mut out = String::new();
    if asked.count {
        return format!("{}\n", found.tally.count);
    }
    sums(&question.wishes, &found.tally, &mut out);
    for workspace in &question.workspaces {
        let mut hits = found.hits.iter().filter(|hit| hit.workspace == *workspace).peekable();
        if hits.peek().is_some() {
            let name = log.workspaces.iter().find(|known| known.id == *workspace).map_or("", |known| known.name());
            writeln!(out, "workspace {} ({workspace})\n{}", plain(name), show::HEADING).ok();
            for hit in hits {
                writeln!(out, "{}", show::table_line(&hit.shown)).ok();
            }
        }
    }
    let (shown, count) = (found.hits.len(), found.tally.count);
    writeln!(
        out,
        "{shown} of {count} that match; {} records looked at, out of objects that the log names; whether all of it holds \
         `verifier verify` says",
        found.looked_at
    )
    .ok();
    out
}
