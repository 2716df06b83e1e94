//! `verifier search`: a question, out of the segments alone.

use std::{collections::BTreeSet, fmt::Write as _};

use custody::{
    id::WorkspaceId,
    query::{self, Expr, Field, Kind, Wishes},
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
    let facets = asked.facet.iter().map(|name| {
        Field::named(name).filter(|field| field.kind() == Kind::Text).ok_or_else(|| {
            Failure::Unreadable(format!(
                "{name:?} is no field that can be counted\nhint: docs/QUERY.md lists the fields"
            ))
        })
    });
    let wishes = Wishes { facets: facets.collect::<Result<_, _>>()?, ..Wishes::default() };
    let limit = if asked.count || !asked.facet.is_empty() { 0 } else { asked.limit };
    let expr: Expr = query::with_ids(&expr, &of_name);
    Ok(Question { expr, workspaces, limit, wishes })
}

fn as_json(found: &Answer) -> String {
    let mut out = String::new();
    for hit in &found.hits {
        let line = show::json_line(&hit.shown);
        writeln!(out, "{{\"workspace\":\"{}\",{}", hit.workspace, line.strip_prefix('{').unwrap_or_default()).ok();
    }
    out
}

fn as_text(asked: &Search, question: &Question, log: &Log, found: &Answer) -> String {
    let mut out = String::new();
    if asked.count {
        return format!("{}\n", found.tally.count);
    }
    for (field, values) in question.wishes.facets.iter().zip(&found.tally.facets) {
        writeln!(out, "{}", field.name().to_uppercase()).ok();
        let mut values: Vec<(&String, &u64)> = values.iter().collect();
        values.sort_by(|one, other| other.1.cmp(one.1).then_with(|| one.0.cmp(other.0)));
        for (value, count) in values.iter().take(VALUES) {
            writeln!(out, "{count:>12}  {}", plain(value)).ok();
        }
    }
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
