//! `ledger reindex`: folders of the index built again from the store, or held against it.

use chrono::{Datelike as _, NaiveDate};
use clap::Args;
use custody::wire;

use super::{
    At, Done, Fault,
    admin::Ledger,
    member::Why,
    output::{say, table},
};
use crate::{exit::ExitReason, index::day_name};

/// Days of the Common Era before 1970.
const EPOCH_DAYS: i32 = 719_163;

#[derive(Debug, Args)]
pub(super) struct ReindexArgs {
    #[command(flatten)]
    at: At,
    /// Only what was received on this UTC day, as 2026-11-28.
    #[arg(long, value_name = "YYYY-MM-DD")]
    day: Option<String>,
    /// Hold it against the store and say whether it differs; only what does is built again.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    why: Why,
}

pub(super) async fn run(args: ReindexArgs) -> Done {
    let day = args.day.as_deref().map(read_day).transpose()?;
    let mut ledger = Ledger::connect(args.at.load()?).await?;
    let request = wire::ReindexRequest { day, check: args.check, because: Some(args.why.because()?) };
    let mut folders = Vec::new();
    ledger.reindex(request, |told| folders.extend(told.folders)).await?;
    say(report(&folders, args.check).trim_end());
    if args.check && folders.iter().any(|folder| folder.built_again) {
        return Err(Fault::failure("the index differed\nhint: see index-differs in docs/OPERATIONS.md"));
    }
    Ok(())
}

fn read_day(text: &str) -> Result<u64, Fault> {
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let day = day.and_then(|day| u64::try_from(day.num_days_from_ce().checked_sub(EPOCH_DAYS)?).ok());
    day.ok_or_else(|| Fault::new(ExitReason::Usage, format!("--day {text:?} is no day\nhint: as 2026-11-28, in UTC")))
}

fn report(folders: &[wire::IndexFolder], check: bool) -> String {
    if folders.is_empty() {
        return "the index has no folder of then".to_owned();
    }
    let mut rows = vec![["DAY", "RECORDS", "STATE"].map(str::to_owned).to_vec()];
    for folder in folders {
        let state = match (check, folder.built_again) {
            (true, false) => "as the store",
            (true, true) => "DIFFERED, is built again",
            (false, _) => "is built again",
        };
        rows.push(vec![day_name(folder.day), folder.records.to_string(), state.to_owned()]);
    }
    let after = if folders.iter().any(|folder| folder.built_again) {
        "\nquestions are answered from the store meanwhile; `ledger status` shows how many commits the index lacks"
    } else {
        ""
    };
    format!("{}{after}", table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_read_as_it_is_written() {
        for (text, day) in [("1970-01-01", 0), ("2026-11-28", 20_785)] {
            assert_eq!(read_day(text).unwrap(), day);
            assert_eq!(day_name(day), text);
        }
        for wrong in ["", "yesterday", "2026-13-01", "1969-12-31", "2026-11-28T00:00"] {
            assert!(read_day(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_becomes_of_folders_is_as_people_read_it() {
        let folder = |day, built_again| wire::IndexFolder { day, records: 1_000, built_again };
        insta::assert_snapshot!(report(&[folder(20_785, true), folder(20_784, false)], true));
        assert!(report(&[], false).contains("no folder"));
    }
}
