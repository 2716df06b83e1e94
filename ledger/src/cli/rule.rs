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
        sigma::{RULES_BYTES_MAX, Rule, Rules as _, Sigma},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum RuleCommand {
    /// The rules in force and the detectors, how many alarms each raised, and what became of them: of an incident, each of its reasons counts.
    List {
        #[command(flatten)]
        at: At,
        /// Those that ship, without asking a ledger.
        #[arg(long)]
        ships: bool,
        /// A JSON object a line, with runbooks and the questions by which a rule's records are found.
        #[arg(long)]
        json: bool,
    },
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
        RuleCommand::List { at, ships, json } => list(at, ships, json).await,
        RuleCommand::Test { files } => test(&read(&files)?),
        RuleCommand::Lint { files } => lint(&read(&files)?),
        RuleCommand::Backtest { at, files, since } => backtest(at, read(&files)?, &since).await,
        RuleCommand::Off { at, rule, workspace, why } => switch(at, rule, &workspace, true, why).await,
        RuleCommand::On { at, rule, workspace, why } => switch(at, rule, &workspace, false, why).await,
    }
}

/// What `list` shows of one rule or detector.
struct Listed<'a> {
    name: &'a str,
    severity: String,
    about: &'a str,
    rule: Option<&'a Rule>,
    ships_off: bool,
    /// Of a ledger.
    tally: Option<wire::RuleTally>,
}

impl Listed<'_> {
    fn disposed(tally: &wire::RuleTally) -> u64 {
        tally.true_positives + tally.false_positives + tally.benign
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![self.name.to_owned(), self.severity.clone()];
        if let Some(tally) = &self.tally {
            let disposed = Self::disposed(tally);
            let share = (tally.false_positives * 100).checked_div(disposed);
            let share = share.map_or_else(|| "-".to_owned(), |share| format!("{share} %"));
            row.extend([tally.alarms.to_string(), disposed.to_string(), share]);
        }
        row.push(if self.ships_off { format!("{} (ships off)", self.about) } else { self.about.to_owned() });
        row
    }

    fn json(&self, sigma: &Sigma) -> serde_json::Value {
        let mut shown = serde_json::json!({
            "name": self.name, "severity": self.severity, "about": self.about, "ships_off": self.ships_off,
        });
        if let Some(rule) = self.rule {
            shown["runbook"] = rule.runbook.as_str().into();
            shown["tags"] = rule.tags.clone().into();
            shown["entity"] = rule.entity.as_str().into();
            shown["counts"] = sigma.counts(self.name).into();
            shown["questions"] = sigma.questions(self.name).into();
        }
        if let Some(tally) = &self.tally {
            let disposed = Self::disposed(tally);
            shown["alarms"] = tally.alarms.into();
            shown["disposed"] = serde_json::json!({
                "true": tally.true_positives, "false": tally.false_positives, "benign": tally.benign
            });
            shown["false_ratio"] = (disposed > 0).then(|| tally.false_positives as f64 / disposed as f64).into();
        }
        shown
    }
}

async fn list(at: At, ships: bool, json: bool) -> Done {
    let told = if ships { None } else { Some(Ledger::connect(at.load()?).await?.rules().await?) };
    let text = told.as_ref().map_or_else(|| read(&[]), |told| Ok(told.rules.clone()))?;
    let sigma = Sigma::new(&text).map_err(refused)?;
    let tally = |name: &str| {
        let told = told.as_ref()?;
        let known = told.tallies.iter().find(|tally| tally.name == name).cloned();
        Some(known.unwrap_or_default())
    };
    let rules = sigma.known().iter().map(|(name, rule)| Listed {
        name,
        severity: rule.severity.as_str_name().trim_start_matches("SEVERITY_").to_ascii_lowercase(),
        about: &rule.title,
        rule: Some(rule),
        ships_off: rule.ships_off,
        tally: tally(name),
    });
    let detectors = Detector::ALL.iter().map(|detector| Listed {
        name: detector.name(),
        severity: "risk".to_owned(),
        about: detector.about(),
        rule: None,
        ships_off: detector.ships_off(),
        tally: tally(detector.name()),
    });
    let all = rules.chain(detectors);
    if json {
        all.for_each(|listed| say(&listed.json(&sigma).to_string()));
        return Ok(());
    }
    let counted: &[&str] = if ships { &[] } else { &["ALARMS", "DISPOSED", "FALSE"] };
    let heading = ["NAME", "SEVERITY"].into_iter().chain(counted.iter().copied()).chain(["WHAT"]);
    let rows: Vec<Vec<String>> =
        [heading.map(str::to_owned).collect()].into_iter().chain(all.map(|of| of.row())).collect();
    say(table(&rows).trim_end());
    if let Some(told) = told {
        say(&format!("counted: the ledger's own records from {} to before {}", told.counted_from, told.counted_to));
    }
    Ok(())
}

fn test(text: &str) -> Done {
    let done = rules::sampled(text).map_err(refused)?;
    let wrong: Vec<&Sampled> = done.iter().filter(|sample| sample.fired != sample.must_fire).collect();
    for sample in &wrong {
        let what = if sample.must_fire { "must fire and does not" } else { "must stay quiet and fires" };
        say(&format!("{} {what}: {}", sample.rule, sample.records));
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
