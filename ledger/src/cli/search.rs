//! `ledger search`: asks for records, for sums, for what comes in, and for evidence.

use std::path::PathBuf;

use clap::Args;
use custody::wire;

use super::{
    At, Done, Fault,
    asker::{Asker, refused},
    bundle,
    output::{say, write},
};
use crate::{ask::json, exit::ExitReason};

pub(super) mod draw;

/// Records that `--all` takes at a time.
const PAGE: u32 = 1_000;

#[derive(Debug, Args)]
pub(super) struct SearchArgs {
    #[command(flatten)]
    at: At,
    /// The question, as docs/QUERY.md has it; empty: everything.
    #[arg(default_value = "", allow_hyphen_values = true)]
    query: String,
    /// Only this workspace, by name or id; several times for several.
    #[arg(long)]
    workspace: Vec<String>,
    /// Records to show, newest first.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// All that match, not only the newest.
    #[arg(long, conflicts_with = "follow")]
    all: bool,
    /// Only how many match.
    #[arg(long)]
    count: bool,
    /// Count the values of a field; several times for several.
    #[arg(long, value_name = "FIELD")]
    facet: Vec<String>,
    /// When: draw how many there were in each span of time.
    #[arg(long)]
    histogram: bool,
    /// Width of a span of the histogram, as 1h or 5m.
    #[arg(long, default_value = "1h", requires = "histogram")]
    width: String,
    /// Tell apart the values of this field in the histogram.
    #[arg(long, value_name = "FIELD", requires = "histogram")]
    split: Option<String>,
    /// How great: the 50th, 95th and 99th of a hundred of duration, request_bytes or response_bytes.
    #[arg(long, value_name = "FIELD")]
    percentiles: Option<String>,
    /// Tell apart the values of this field in the percentiles.
    #[arg(long, value_name = "FIELD", requires = "percentiles")]
    by: Option<String>,
    /// Alarms about the workspaces, which the watch raised; the question is about the alarms, as `severity:high`.
    #[arg(long, conflicts_with_all = ["follow", "csv", "count", "facet", "histogram", "percentiles"])]
    alarms: bool,
    /// Show what comes in from now on, until it is ended.
    #[arg(long)]
    follow: bool,
    /// JSON, a line for each record.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values of all that match; the role must be allowed to export.
    #[arg(long, conflicts_with = "follow")]
    csv: bool,
    /// Put evidence of all that match into this new folder, for `verifier evidence check`; the role must be allowed to export.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["follow", "csv", "json", "count", "facet", "histogram", "percentiles", "alarms"])]
    evidence: Option<PathBuf>,
    /// Show the names of people; needs the right and a reason.
    #[arg(long, requires = "reason")]
    names: bool,
    /// Why, as a code, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

impl SearchArgs {
    fn question(&self) -> wire::Question {
        wire::Question {
            query: self.query.clone(),
            workspaces: self.workspace.clone(),
            names: self.names,
            reason: self.reason.clone(),
        }
    }

    fn sums(&self) -> Result<Option<wire::SummariseRequest>, Fault> {
        if self.facet.is_empty() && !self.histogram && self.percentiles.is_none() {
            return Ok(None);
        }
        let width = custody::query::span(&self.width).ok_or_else(|| {
            Fault::new(ExitReason::Usage, format!("--width {:?} is no span of time\nhint: as 1h or 5m", self.width))
        })?;
        Ok(Some(wire::SummariseRequest {
            question: Some(self.question()),
            facets: self.facet.iter().map(|field| wire::Facet { field: field.clone(), limit: 0 }).collect(),
            histogram: self.histogram.then(|| wire::Histogram {
                field: "at".to_owned(),
                width_us: width,
                split: self.split.clone().unwrap_or_default(),
            }),
            percentiles: self.percentiles.as_ref().map(|field| wire::Percentiles {
                field: field.clone(),
                thousandths: Vec::new(),
                by: self.by.clone().unwrap_or_default(),
                limit: 0,
            }),
        }))
    }
}

pub(super) async fn run(args: SearchArgs) -> Done {
    let config = args.at.load()?;
    let mut asker = Asker::connect(&config).await?;
    if let Some(folder) = &args.evidence {
        return bundle::fetch(&mut asker, &config, args.question(), folder).await;
    }
    if args.csv {
        return export(&mut asker, &args).await;
    }
    if args.follow {
        return follow(&mut asker, &args).await;
    }
    if let Some(sums) = args.sums()? {
        let request = asker.request(sums);
        let answer = asker.remote.summarise(request).await.map_err(|why| refused(&why))?.into_inner();
        match args.json {
            true => say(&json::sums(&answer).to_string()),
            false => say(draw::sums(&answer).trim_end()),
        }
        return Ok(());
    }
    find(&mut asker, &args).await
}

async fn find(asker: &mut Asker, args: &SearchArgs) -> Done {
    let mut cursor = String::new();
    let (mut shown, mut total, mut cut_short) = (0_u64, None, false);
    loop {
        let first = cursor.is_empty();
        let limit = if args.all { PAGE } else { args.limit };
        let request = asker.request(wire::FindRequest {
            question: Some(args.question()),
            limit: if args.count { 1 } else { limit },
            cursor,
            count: first && (args.count || !args.json),
        });
        let answer = match args.alarms {
            true => asker.remote.alarms(request).await,
            false => asker.remote.find(request).await,
        };
        let answer = answer.map_err(|why| refused(&why))?.into_inner();
        total = total.or(answer.total);
        let mut completeness = answer.completeness.unwrap_or_default();
        cut_short |= completeness.cut_short;
        completeness.cut_short = cut_short;
        shown += answer.hits.len() as u64;
        if args.count {
            say(&total.unwrap_or_default().to_string());
        } else {
            tell(&answer.hits, &answer.names, args.json, first);
        }
        if args.all && !args.count && !answer.cursor.is_empty() {
            cursor = answer.cursor;
            continue;
        }
        // What a program reads has no other place for it.
        return match (args.json || args.count, cut_short) {
            (true, true) => Err(cut_short_fault()),
            (true, false) => Ok(()),
            (false, _) => {
                say(&draw::footer(shown, total, Some(&completeness)));
                Ok(())
            }
        };
    }
}

pub(super) fn cut_short_fault() -> Fault {
    Fault::failure("the answer was cut short: there may be more\nhint: ask for a shorter time, with since: and until:")
}

pub(super) fn tell(hits: &[wire::Hit], names: &[wire::MemberName], json: bool, heading: bool) {
    if json {
        hits.iter().for_each(|hit| say(&json::hit(hit, names).to_string()));
    } else if !hits.is_empty() {
        say(draw::hits(hits, names, heading).trim_end());
    }
}

async fn follow(asker: &mut Asker, args: &SearchArgs) -> Done {
    let request = asker.request(wire::FollowRequest { question: Some(args.question()) });
    let mut stream = asker.remote.follow(request).await.map_err(|why| refused(&why))?.into_inner();
    let mut heading = true;
    while let Some(answer) = stream.message().await.map_err(|why| refused(&why))? {
        tell(&answer.hits, &answer.names, args.json, heading);
        heading = false;
    }
    Ok(())
}

async fn export(asker: &mut Asker, args: &SearchArgs) -> Done {
    let request =
        asker.request(wire::ExportRequest { question: Some(args.question()), format: wire::ExportFormat::Csv as i32 });
    let mut stream = asker.remote.export(request).await.map_err(|why| refused(&why))?.into_inner();
    let mut whole = false;
    while let Some(part) = stream.message().await.map_err(|why| refused(&why))? {
        if write(&part.bytes).is_err() {
            // Whoever reads no further has seen enough.
            return Ok(());
        }
        whole |= part.completeness.is_some();
        if part.completeness.is_some_and(|complete| complete.cut_short) {
            return Err(cut_short_fault());
        }
    }
    let broke_off =
        || Fault::failure("the answer broke off before its end\nhint: ask again; the ledger's log says why");
    whole.then_some(()).ok_or_else(broke_off)
}
