//! The rules that come with the ledger, and rules of one's own; their samples, which fire and do not; and what is wrong with one.
//!
//! What must hold: every rule that ships has samples of both kinds, a runbook line, and tags of where it belongs; a test runs them all.

use std::{fs, io, path::Path};

use custody::{
    id::{Epoch, GatewayId, WorkspaceId},
    query::{Facts, Field, Place, span},
    wire,
};

use super::{
    sigma::{Refused, Rules as _, Sigma},
    view::View,
};

macro_rules! shipped {
    ($($name:literal)*) => {
        /// Name and text of each rule that ships.
        pub const SHIPPED: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../rules/", $name, ".yml")))),*];
    };
}

shipped! {
    "access-changed-often"
    "credential-tool-called"
    "denied-burst"
    "destructive-burst"
    "destructive-in-production"
    "gateway-fails-open"
    "gateway-refuses"
    "malformed-burst"
    "outcomes-unknown"
    "over-limit-burst"
    "personal-data-sent"
    "revoked-member-active"
    "revoked-token-used"
    "searches-refused"
    "server-asks-the-model"
    "server-asks-the-person"
    "server-crashes"
    "server-failing"
    "servers-probed"
    "shell-tool-called"
    "token-many-clients"
    "token-many-gateways"
    "tool-definition-changed"
    "tool-replaced"
    "tools-enumerated"
    "tools-listed-often"
    "unauthenticated-burst"
    "very-long-answer"
}

/// Files in a folder of rules, at most.
const FILES_MAX: usize = 256;
/// Records of one sample, at most.
const RECORDS_MAX: usize = 10_000;

/// The rules that ship, and those of a folder, in the order of their names.
///
/// # Errors
/// Of the folder.
pub fn all(folder: Option<&Path>) -> io::Result<String> {
    let mut texts: Vec<String> = SHIPPED.iter().map(|(_, text)| (*text).to_owned()).collect();
    if let Some(folder) = folder {
        let mut files = Vec::new();
        for file in fs::read_dir(folder)? {
            files.push(file?.path());
        }
        files.retain(|file| file.extension().is_some_and(|end| end == "yml" || end == "yaml"));
        files.sort();
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files of rules")));
        }
        for file in files {
            texts.push(fs::read_to_string(file)?);
        }
    }
    Ok(texts.join("\n---\n"))
}

/// How a rule did on one of its samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Rule.
    pub rule: String,
    /// The sample's records, as written.
    pub records: String,
    /// It must fire.
    pub must_fire: bool,
    /// It did.
    pub fired: bool,
}

/// Runs the samples of rules; each sample begins with nothing remembered.
///
/// # Errors
/// [`Refused`].
pub fn sampled(text: &str) -> Result<Vec<Sampled>, Refused> {
    let mut sigma = Sigma::new(text)?;
    let mut done = Vec::new();
    let all: Vec<(String, super::sigma::Samples)> =
        sigma.samples().iter().map(|(name, samples)| (name.clone(), samples.clone())).collect();
    for (rule, samples) in all {
        for (must_fire, records) in
            samples.fires.iter().map(|of| (true, of)).chain(samples.quiet.iter().map(|of| (false, of)))
        {
            sigma.forget();
            let fired = fires(&mut sigma, &rule, records)?;
            done.push(Sampled { rule: rule.clone(), records: records.join(" / "), must_fire, fired });
        }
    }
    Ok(done)
}

/// What is wrong with rules though they run, in words.
///
/// # Errors
/// [`Refused`].
pub fn linted(text: &str) -> Result<Vec<String>, Refused> {
    let sigma = Sigma::new(text)?;
    let mut wrong = Vec::new();
    for (name, rule) in sigma.known() {
        let samples = sigma.samples().get(name);
        let mut say = |is: bool, what: &str| wrong.extend(is.then(|| format!("{name}: {what}")));
        say(rule.runbook.is_empty(), "it has no custody.runbook: what is to be done at three in the morning?");
        say(
            !rule.tags.iter().any(|tag| tag.starts_with("owasp.mcp")),
            "no tag says where in the OWASP MCP Top 10 it belongs",
        );
        say(samples.is_none_or(|samples| samples.fires.is_empty()), "no sample fires it");
        say(samples.is_none_or(|samples| samples.quiet.is_empty()), "no sample leaves it quiet");
    }
    wrong.extend(super::sigma::lint(text));
    Ok(wrong)
}

/// Whether records fire a rule. One is written as `5x +10s field=value field=value`: how often, how long after the one before,
/// and what it says; what is not said is as of an allowed call.
fn fires(sigma: &mut Sigma, rule: &str, records: &[String]) -> Result<bool, Refused> {
    let (mut now, mut position, mut fired) = (1_000_000_000_000_000, 0, false);
    for text in records {
        let sample = Sample::read(text).ok_or_else(|| Refused(format!("rule {rule}: this is no sample: {text:?}")))?;
        for _ in 0..sample.times {
            now += sample.pause_us;
            position += 1;
            if position > RECORDS_MAX as u64 {
                return Err(Refused(format!("rule {rule}: a sample has more than {RECORDS_MAX} records")));
            }
            let place = sample.place(now, position);
            let own = sample.is_own.then(wire::Record::default);
            let facts =
                sample.facts(now).ok_or_else(|| Refused(format!("rule {rule}: a value does not fit: {text:?}")))?;
            let view = View { place: &place, facts: &facts, own: own.as_ref(), labels: &[] };
            if !sigma.agrees(&view) {
                return Err(Refused(format!(
                    "rule {rule}: our reading of it is not the crate's (hint: report it): {text:?}"
                )));
            }
            fired |= sigma.take(&view).iter().any(|found| found.rule == rule);
        }
    }
    Ok(fired)
}

struct Sample<'a> {
    times: u64,
    pause_us: u64,
    is_own: bool,
    values: Vec<(Field, &'a str)>,
}

impl<'a> Sample<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut sample = Self { times: 1, pause_us: 0, is_own: false, values: Vec::new() };
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            if let Some((name, value)) = word.split_once('=') {
                sample.values.push((Field::named(name)?, value));
            } else if let Some(pause) = word.strip_prefix('+') {
                sample.pause_us = span(pause)?;
            } else {
                sample.times = word.strip_suffix('x')?.parse().ok()?;
            }
        }
        let kind = sample.value(Field::Kind).unwrap_or("call");
        sample.is_own = matches!(kind, "search" | "ledger_event");
        let mut usual = vec![(Field::Kind, "call"), (Field::Gateway, "g1"), (Field::Workspace, "w1")];
        if kind == "call" {
            let of_call = [
                (Field::Member, "m1"),
                (Field::Agent, "a1"),
                (Field::Phase, "complete"),
                (Field::Decision, "allowed"),
                (Field::Outcome, "ok"),
            ];
            usual.extend(of_call);
        }
        if let Some((server, _)) = sample.value(Field::Tool).and_then(|tool| tool.split_once('/')) {
            usual.push((Field::Server, server));
        }
        for (field, value) in usual {
            if sample.value(field).is_none() {
                sample.values.push((field, value));
            }
        }
        Some(sample)
    }

    fn value(&self, field: Field) -> Option<&'a str> {
        self.values.iter().find(|(of, _)| *of == field).map(|(_, value)| *value)
    }

    fn facts(&self, now: u64) -> Option<Facts> {
        let now = now.to_string();
        let times = [(Field::At, now.as_str()), (Field::Received, now.as_str())];
        Facts::told(self.values.iter().copied().chain(times))
    }

    fn place(&self, now: u64, position: u64) -> Place {
        Place {
            workspace: WorkspaceId([1; 16]),
            gateway: GatewayId([2; 16]),
            epoch: Epoch([3; 16]),
            position,
            number: position,
            received_at: now,
            gap: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_that_ships_fires_on_its_samples_and_on_no_other() {
        let text = all(None).unwrap();
        let wrong: Vec<Sampled> =
            sampled(&text).unwrap().into_iter().filter(|sample| sample.fired != sample.must_fire).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(linted(&text).unwrap(), Vec::<String>::new());
        let rules = Sigma::new(&text).unwrap().known().len();
        assert!(rules >= 20, "{rules}");
    }

    #[test]
    fn the_folder_has_the_rules_that_ship_and_no_other() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<String> = files.map(|file| file.trim_end_matches(".yml").to_owned()).collect();
        files.sort();
        assert_eq!(files, SHIPPED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn rules_that_cannot_be_run_are_refused_with_the_reason() {
        let good = SHIPPED.iter().find(|(name, _)| *name == "revoked-token-used").unwrap().1;
        let cases = [
            (good.replace("outcome: revoked", "outcom: revoked"), "no record has a field outcom"),
            (good.replace("level: medium", "level: awful"), "level"),
            (good.replace("service: gateway", "service: dns"), "log source"),
            (good.replace("custody.entity: member", "custody.entity: who"), "custody.entity"),
            (good.replace("name: revoked-token-used", "name: two words"), "name"),
            (format!("{good}\n---\n{good}"), "another"),
            ("title: [".to_owned(), "YAML"),
            (format!("{good}{}", " ".repeat(super::super::sigma::RULES_BYTES_MAX)), "bytes"),
        ];
        for (text, words) in cases {
            let why = Sigma::new(&text).err().map(|why| why.to_string()).unwrap_or_default();
            assert!(why.contains(words), "{words}: {why}");
        }
    }
}
