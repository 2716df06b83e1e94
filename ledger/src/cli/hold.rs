//! Legal holds: set, release, list.

use clap::Subcommand;
use custody::{
    id::{hex, unhex},
    wire::{self, statement::Action},
};

use super::{
    At, Done, Fault,
    admin::Ledger,
    chain::replay,
    output::{say, table},
    sign::Signing,
};
use crate::{clock, exit::ExitReason, keys};

#[derive(Debug, Subcommand)]
pub(super) enum HoldCommand {
    /// Keep what was received in a span of time, whatever the retention says.
    Set {
        #[command(flatten)]
        at: At,
        /// Workspace by name or id.
        #[arg(long)]
        workspace: String,
        /// Begin of the span, as 2026-01-31T00:00:00Z.
        #[arg(long)]
        since: String,
        /// End of the span; none: without end.
        #[arg(long)]
        until: Option<String>,
        #[command(flatten)]
        signing: Signing,
    },
    /// End a hold.
    Release {
        #[command(flatten)]
        at: At,
        /// Workspace by name or id.
        #[arg(long)]
        workspace: String,
        /// Id of the hold.
        hold: String,
        #[command(flatten)]
        signing: Signing,
    },
    /// The holds that stand.
    List {
        #[command(flatten)]
        at: At,
        /// Workspace by name or id.
        #[arg(long)]
        workspace: String,
    },
}

pub(super) async fn run(command: HoldCommand) -> Done {
    match command {
        HoldCommand::Set { at, workspace, since, until, signing } => {
            let (since, until) = (time(&since)?, until.as_deref().map(time).transpose()?);
            if until.is_some_and(|until| until <= since) {
                return Err(Fault::new(
                    ExitReason::Usage,
                    "--until is not after --since\nhint: a hold without --until has no end",
                ));
            }
            let mut ledger = Ledger::connect(at.load()?).await?;
            let workspace = ledger.workspace(&workspace).await?;
            let id = keys::random::<16>();
            let hold = wire::Hold { hold: id.to_vec().into(), since, until };
            signing.say(&mut ledger, Some(workspace), Action::Hold(hold)).await?;
            say(&format!("hold {}", hex(&id)));
        }
        HoldCommand::Release { at, workspace, hold, signing } => {
            let id = unhex(&hold).filter(|id| id.len() == 16);
            let id = id.ok_or_else(|| {
                Fault::new(ExitReason::Usage, "a hold's id has 32 hex digits\nhint: ledger hold list")
            })?;
            let mut ledger = Ledger::connect(at.load()?).await?;
            let workspace = ledger.workspace(&workspace).await?;
            signing.say(&mut ledger, Some(workspace), Action::Release(wire::Release { hold: id.into() })).await?;
        }
        HoldCommand::List { at, workspace } => {
            let mut ledger = Ledger::connect(at.load()?).await?;
            let workspace = ledger.workspace(&workspace).await?;
            let chain = replay(&mut ledger, Some(workspace)).await?;
            let mut rows = vec![["hold", "since", "until"].map(str::to_owned).to_vec()];
            rows.extend(chain.holds().map(|(id, state)| {
                let until = state.until.map_or_else(|| "without end".to_owned(), clock::display);
                vec![hex(id), clock::display(state.since), until]
            }));
            say(table(&rows).trim_end());
        }
    }
    Ok(())
}

/// A time in microseconds.
fn time(text: &str) -> Result<u64, Fault> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros());
    let time = time.and_then(|time| u64::try_from(time).ok());
    time.ok_or_else(|| Fault::new(ExitReason::Usage, format!("{text} is no time\nhint: as 2026-01-31T00:00:00Z")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_strictly() {
        assert_eq!(time("1970-01-01T00:00:01.5Z").unwrap(), 1_500_000);
        assert_eq!(time("1970-01-01T01:00:00+01:00").unwrap(), 0);
        for bad in ["", "yesterday", "2026-01-31", "1969-12-31T23:59:59Z"] {
            assert!(time(bad).unwrap_err().text.contains("hint:"), "{bad}");
        }
    }
}
