//! Rules and detectors: what there is, whether rules are sound, what they would have found, and switching them.

use std::{fs, path::PathBuf};

use clap::Subcommand;
use custody::wire::{self, record::Kind};
use prost::Message as _;
use verifier::time;

use super::{
    At, Done, Fault,
    admin::Ledger,
    member::Why,
    output::{say, table},
};
use crate::{
    clock,
    exit::ExitReason,
    watch::{
        baseline::Detector,
        engine::Engine,
        rules::{self, Sampled},
        sigma::{RULES_BYTES_MAX, Rules as _, Sigma},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum RuleCommand {
    /// The rules that ship, and the detectors.
    List,
    /// Run the samples of rules: those that must fire, and those that must not.
    Test {
        /// Files of Sigma rules; none: the rules that ship.
        files: Vec<PathBuf>,
    },
    /// Say what is wrong with rules, also with those that run.
    Lint {
        /// Files of Sigma rules; none: the rules that ship.
        files: Vec<PathBuf>,
    },
    /// Say when rules would have fired, over the records that a ledger has.
    Backtest {
        #[command(flatten)]
        at: At,
        /// Files of Sigma rules.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// How far back, as 30d.
        #[arg(long, default_value = "30d")]
        since: String,
    },
    /// Switch a rule or a detector off in a workspace.
    Off {
        #[command(flatten)]
        at: At,
        /// Its name.
        rule: String,
        /// The workspace, by name or id.
        workspace: String,
        #[command(flatten)]
        why: Why,
    },
    /// Switch it on again.
    On {
        #[command(flatten)]
        at: At,
        /// Its name.
        rule: String,
        /// The workspace, by name or id.
        workspace: String,
        #[command(flatten)]
        why: Why,
    },
}

fn read(files: &[PathBuf]) -> Result<String, Fault> {
    if files.is_empty() {
        return rules::all(None).map_err(|why| Fault::failure(why.to_string()));
    }
    let mut texts = Vec::new();
    for file in files {
        let text = fs::read_to_string(file);
        let text = text.map_err(|why| Fault::failure(format!("failed to read {}: {why}", file.display())))?;
        if text.len() > RULES_BYTES_MAX {
            return Err(Fault::failure(format!("{} has more than {RULES_BYTES_MAX} bytes", file.display())));
        }
        texts.push(text);
    }
    Ok(texts.join("\n---\n"))
}

fn refused(why: impl std::fmt::Display) -> Fault {
    Fault::failure(format!("failed to read the rules: {why}"))
}

pub(super) async fn run(command: RuleCommand) -> Done {
    match command {
        RuleCommand::List => list(),
        RuleCommand::Test { files } => test(&read(&files)?),
        RuleCommand::Lint { files } => lint(&read(&files)?),
        RuleCommand::Backtest { at, files, since } => backtest(at, read(&files)?, &since).await,
        RuleCommand::Off { at, rule, workspace, why } => switch(at, rule, &workspace, true, why).await,
        RuleCommand::On { at, rule, workspace, why } => switch(at, rule, &workspace, false, why).await,
    }
}

fn list() -> Done {
    let text = read(&[])?;
    let sigma = Sigma::new(&text).map_err(refused)?;
    let heading = ["NAME", "SEVERITY", "WHAT"].map(str::to_owned).to_vec();
    let mut rows = vec![heading];
    for (name, rule) in sigma.known() {
        let severity = rule.severity.as_str_name().trim_start_matches("SEVERITY_").to_ascii_lowercase();
        rows.push(vec![
            name.clone(),
            severity,
            if rule.ships_off { format!("{} (ships off)", rule.title) } else { rule.title.clone() },
        ]);
    }
    for detector in Detector::ALL {
        rows.push(vec![detector.name().to_owned(), "risk".to_owned(), detector.about().to_owned()]);
    }
    say(table(&rows).trim_end());
    Ok(())
}

fn test(text: &str) -> Done {
    let done = rules::sampled(text).map_err(refused)?;
    let wrong: Vec<&Sampled> = done.iter().filter(|sample| sample.fired != sample.must_fire).collect();
    for sample in &wrong {
        let what = if sample.must_fire { "must fire and does not" } else { "must stay quiet and fires" };
        say(&format!("{} {what}: {}", sample.rule, sample.events));
    }
    if done.is_empty() {
        return Err(Fault::failure(
            "the rules have no samples\nhint: custody.samples in a rule holds them (docs/DETECTION.md)",
        ));
    }
    if wrong.is_empty() {
        say(&format!("{} samples, all as they must", done.len()));
        return Ok(());
    }
    Err(Fault::failure(format!("{} of {} samples are not as they must", wrong.len(), done.len())))
}

fn lint(text: &str) -> Done {
    Engine::new(text).map_err(refused)?;
    let wrong = rules::linted(text).map_err(refused)?;
    if wrong.is_empty() {
        say("nothing is wrong with them");
        return Ok(());
    }
    wrong.iter().for_each(|what| say(what));
    Err(Fault::failure(format!("{} things are wrong", wrong.len())))
}

async fn switch(at: At, rule: String, workspace: &str, off: bool, why: Why) -> Done {
    let mut ledger = Ledger::connect(at.load()?).await?;
    let workspace = ledger.workspace(workspace).await?.into();
    ledger.switch_rule(wire::SwitchRuleRequest { rule, workspace, off, because: Some(why.because()?) }).await?;
    say(if off { "it is off there, from the next record on" } else { "it is on there, from the next record on" });
    Ok(())
}

async fn backtest(at: At, text: String, since: &str) -> Done {
    let back = custody::query::span(since).ok_or_else(|| {
        Fault::new(ExitReason::Usage, format!("--since {since:?} is no span of time\nhint: as 30d or 12h"))
    })?;
    let names = Sigma::new(&text).map_err(refused)?.known().clone();
    let mut ledger = Ledger::connect(at.load()?).await?;
    let since_us = clock::now_us().saturating_sub(back);
    let mut counts: std::collections::BTreeMap<String, u64> = names.keys().map(|name| (name.clone(), 0)).collect();
    ledger
        .replay(wire::ReplayRequest { rules: text, since: since_us }, |told| {
            for bytes in &told.alarms {
                let record = wire::Record::decode(bytes.clone()).unwrap_or_default();
                let Some(Kind::Alarm(alarm)) = record.kind else { continue };
                let Some(count) = counts.get_mut(&alarm.name) else { continue };
                *count += 1;
                say(&format!("{} {} {}", time::text(alarm.at), alarm.name, super::alarm::about(&alarm)));
            }
        })
        .await?;
    for (name, count) in counts {
        say(&format!("{name} would have fired {count} times in {since}"));
    }
    Ok(())
}
