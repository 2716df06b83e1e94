//! `ledger show` and `ledger trace`: one record, and what proves it; the calls of one trace.

use std::path::PathBuf;

use clap::Args;
use custody::{archive, wire};
use verifier::output::{create, plain};

use super::{
    At, Done, Fault,
    asker::{Asker, refused},
    output::say,
    search::{cut_short_fault, draw, tell},
};
use crate::{ask::json, exit::ExitReason};

#[derive(Debug, Args)]
pub(super) struct Names {
    /// Show the names of people; needs the right and a reason.
    #[arg(long, requires = "reason")]
    names: bool,
    /// Why, as a code, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    at: At,
    /// Where it stands: `workspace/position`, the workspace by name or id.
    place: String,
    /// JSON.
    #[arg(long)]
    json: bool,
    /// Make a file that proves it, for `verifier evidence check`; its segment is cut and archived first.
    #[arg(long, value_name = "FILE")]
    evidence: Option<PathBuf>,
    #[command(flatten)]
    names: Names,
}

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    at: At,
    /// The W3C trace id, 32 hex digits.
    trace: String,
    /// Only in this workspace, by name or id; several times for several.
    #[arg(long)]
    workspace: Vec<String>,
    /// JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    names: Names,
}

/// One record.
pub(super) async fn show(args: ShowArgs) -> Done {
    let place = args.place.rsplit_once('/').and_then(|(of, position)| Some((of, archive::number(position)?)));
    let (workspace, position) = place.ok_or_else(|| {
        Fault::new(ExitReason::Usage, format!("{} is no place\nhint: as payments/17", plain(&args.place)))
    })?;
    let mut asker = Asker::connect(&args.at.load()?).await?;
    let request = asker.request(wire::ShowRequest {
        workspace: workspace.to_owned(),
        position,
        names: args.names.names,
        reason: args.names.reason,
        evidence: args.evidence.is_some(),
    });
    let shown = asker.remote.show(request).await.map_err(|why| refused(&why))?.into_inner();
    tell(shown.hit.as_slice(), &shown.names, args.json, true);
    let Some(file) = args.evidence else { return Ok(()) };
    create(&file, &shown.evidence).map_err(|why| Fault::failure(why.to_string()))?;
    if !args.json {
        let name = plain(file.display());
        say(&format!(
            "{name}: evidence, {} bytes; check it with: verifier evidence check {name} --policy policy.json",
            shown.evidence.len()
        ));
    }
    Ok(())
}

/// The calls of a trace.
pub(super) async fn trace(args: TraceArgs) -> Done {
    let mut asker = Asker::connect(&args.at.load()?).await?;
    let question = wire::Question {
        query: String::new(),
        workspaces: args.workspace,
        names: args.names.names,
        reason: args.names.reason,
    };
    let request = asker.request(wire::TraceRequest { trace: args.trace, question: Some(question) });
    let told = asker.remote.trace(request).await.map_err(|why| refused(&why))?.into_inner();
    let cut_short = told.completeness.as_ref().is_some_and(|complete| complete.cut_short);
    if args.json {
        say(&json::trace(&told).to_string());
    } else {
        say(draw::steps(&told).trim_end());
    }
    if args.json && cut_short { Err(cut_short_fault()) } else { Ok(()) }
}
