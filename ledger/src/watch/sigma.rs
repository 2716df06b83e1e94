//! Sigma rules: read, looked over, and run. The one place that knows the crate that runs them.
//!
//! What must hold: what a rule gives follows from the rules, their state and the records in their order, so that a replay gives it
//! again; the state has a bound, and is let go as a whole when it is full, which is the same on every machine; a correlation never
//! mixes workspaces. A rule that cannot be run is refused when it is read, with the reason and its name.

use std::{collections::BTreeMap, sync::Arc};

use custody::{
    query::{Field, Kind, span},
    strict::is_token,
    wire::Severity,
};
use rsigma_eval::{
    CorrelationAction, CorrelationConfig, CorrelationEngine, CorrelationEventMode, CorrelationSnapshot, Engine,
    LogSourceExtractor, RuleFieldSet, TimestampFallback,
    result::{DetectionBody, EvaluationResult, ResultBody, RuleHeader},
};
use rsigma_parser::{
    CorrelationCondition, CorrelationRule, CorrelationType, Level, Severity as Badness, SigmaCollection, SigmaRule,
    lint_yaml_str, parse_sigma_yaml,
};
use serde::{Deserialize, Serialize};

use self::tree::Tree;
use super::view::{Fields, View};

#[cfg(test)]
mod tests;
mod tree;

/// Groups that correlations hold at a time: two kilobytes each for where their records stand, and as much for their window at the most.
const GROUPS_MAX: usize = 50_000;
/// Records of one group in its window: the newest. A threshold above it could never be reached, and is refused.
const OF_GROUP_MAX: usize = 256;
/// Longest name: with `reason/` before it, it is the key of a detail.
const NAME_MAX: usize = 48;
/// Records between two looks at the bound.
const LOOK_EVERY: u64 = 4_096;
/// Positions that a finding names: as many as an alarm holds.
pub const POSITIONS_MAX: usize = 64;
/// Bytes of all rules together.
pub const RULES_BYTES_MAX: usize = 1 << 20;
/// Rules together: each is looked at for each record.
pub const RULES_MAX: usize = 256;

/// What can be found by rules.
pub trait Rules: Send {
    /// What a record gives.
    fn take(&mut self, view: &View<'_>) -> Vec<Found>;
    /// The rules, by name.
    fn known(&self) -> &BTreeMap<String, Rule>;
    /// What they remember.
    ///
    /// # Errors
    /// If it cannot be written down.
    fn remembered(&mut self) -> Result<String, serde_json::Error>;
    /// Takes what was remembered; `false`: it is of no use, and nothing was taken.
    fn remember(&mut self, text: &str) -> bool;
    /// Forgets everything.
    fn forget(&mut self);
}

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Name of the rule.
    pub rule: String,
    /// Positions in the workspace: the newest of those that made it, in order.
    pub positions: Vec<u64>,
}

/// What is known of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its sentence.
    pub title: String,
    /// How bad it is.
    pub severity: Severity,
    /// What to do, in a line.
    pub runbook: String,
    /// Where it belongs: OWASP MCP Top 10, MITRE ATLAS.
    pub tags: Vec<String>,
    /// How long the same of the same entity is told once, in microseconds.
    pub quiet_us: u64,
    /// Field whose value the alarm is about.
    pub entity: String,
    /// It ships switched off: it did not prove itself, and a workspace that wants it switches it on.
    pub ships_off: bool,
}

/// Why rules are refused, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(name: &str, why: impl std::fmt::Display) -> Refused {
    Refused(format!("rule {name}: {why}"))
}

/// Samples of a rule: each is a run of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Samples {
    /// The rule fires.
    pub fires: Vec<Vec<String>>,
    /// It does not.
    pub quiet: Vec<Vec<String>>,
}

/// Sigma rules with what they remember.
pub struct Sigma {
    collection: SigmaCollection,
    engine: CorrelationEngine,
    plain: Plain,
    /// Of those that are told: by the id that the crate knows.
    names: BTreeMap<String, String>,
    known: BTreeMap<String, Rule>,
    samples: BTreeMap<String, Samples>,
    taken: u64,
}

/// What is written down of it.
#[derive(Serialize, Deserialize)]
struct Remembered {
    taken: u64,
    correlations: CorrelationSnapshot,
}

/// What both kinds of rule say of themselves.
struct Said<'a> {
    name: Option<&'a String>,
    id: Option<&'a String>,
    title: &'a str,
    level: Option<Level>,
    tags: &'a [String],
    /// Of the attributes that are ours.
    more: &'a dyn Fn(&str) -> Option<String>,
}

impl Said<'_> {
    /// Looks it over. Gives the id by which the crate knows it, and its name.
    fn rule(&self) -> Result<(String, String, Rule), Refused> {
        let name = self.name.ok_or_else(|| Refused(format!("a rule has no name: {:?}", self.title)))?;
        if !is_token(name) || name.len() > NAME_MAX {
            return Err(refused(name, "its name is not 1 to 48 characters of [A-Za-z0-9_./:@+-]"));
        }
        let id = self.id.ok_or_else(|| refused(name, "it has no id"))?;
        let severity = match self.level {
            Some(Level::Low | Level::Informational) => Severity::Low,
            Some(Level::Medium) => Severity::Medium,
            Some(Level::High) => Severity::High,
            Some(Level::Critical) => Severity::Critical,
            None => return Err(refused(name, "it has no level")),
        };
        let runbook = (self.more)("custody.runbook").unwrap_or_default();
        let entity = (self.more)("custody.entity").unwrap_or_else(|| "member".to_owned());
        if Field::named(&entity).is_none_or(|field| field.kind() != Kind::Text) {
            return Err(refused(
                name,
                format!("custody.entity: {entity} is no field (hint: docs/QUERY.md lists them)"),
            ));
        }
        let quiet = (self.more)("custody.quiet").unwrap_or_else(|| "1h".to_owned());
        let quiet_us =
            span(&quiet).ok_or_else(|| refused(name, format!("custody.quiet: {quiet} is no span of time, as 1h")))?;
        let ships_off = (self.more)("custody.off").is_some_and(|off| off == "true");
        let (title, tags) = (self.title.to_owned(), self.tags.to_vec());
        let rule = Rule { title, severity, runbook, tags, quiet_us, entity, ships_off };
        Ok((id.clone(), name.clone(), rule))
    }
}

fn detection(rule: &SigmaRule) -> Result<(String, String, Rule), Refused> {
    let more = |key: &str| rule.custom_attributes.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let said = Said {
        name: rule.name.as_ref(),
        id: rule.id.as_ref(),
        title: &rule.title,
        level: rule.level,
        tags: &rule.tags,
        more: &more,
    };
    let (id, name, known) = said.rule()?;
    let source = &rule.logsource;
    let service = source.service.as_deref().unwrap_or_default();
    if source.product.as_deref() != Some("mcp") || !matches!(service, "gateway" | "ledger") {
        return Err(refused(&name, "its log source is not product mcp, service gateway or ledger"));
    }
    Ok((id, name, known))
}

fn correlation(rule: &CorrelationRule) -> Result<(String, String, Rule), Refused> {
    let more = |key: &str| rule.custom_attributes.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    Said {
        name: rule.name.as_ref(),
        id: rule.id.as_ref(),
        title: &rule.title,
        level: rule.level,
        tags: &rule.tags,
        more: &more,
    }
    .rule()
}

/// Whether its threshold is a number of records.
fn is_number(of: CorrelationType) -> bool {
    matches!(of, CorrelationType::EventCount | CorrelationType::ValueCount)
}

/// Reads rules and binds their correlations to one workspace each.
fn read(text: &str) -> Result<SigmaCollection, Refused> {
    if text.len() > RULES_BYTES_MAX {
        return Err(Refused(format!("the rules have more than {RULES_BYTES_MAX} bytes")));
    }
    let mut collection = parse_sigma_yaml(text).map_err(|why| Refused(why.to_string()))?;
    if let Some(why) = collection.errors.first() {
        return Err(Refused(why.clone()));
    }
    let fields = RuleFieldSet::collect(&collection, &[], true);
    if let Some(field) = fields.names().find(|name| Field::named(name).is_none()) {
        return Err(Refused(format!("no record has a field {field} (hint: docs/QUERY.md lists the fields)")));
    }
    let attributes = collection.rules.iter().flat_map(|rule| rule.custom_attributes.keys());
    let attributes = attributes.chain(collection.correlations.iter().flat_map(|rule| rule.custom_attributes.keys()));
    if let Some(name) = attributes.into_iter().find(|name| name.starts_with("rsigma.")) {
        return Err(Refused(format!("the attribute {name} would lift a bound (hint: leave it out)")));
    }
    for rule in &mut collection.correlations {
        if let CorrelationCondition::Threshold { predicates, .. } = &rule.condition
            && is_number(rule.correlation_type)
            && predicates.iter().any(|(_, number)| *number > OF_GROUP_MAX as u64)
        {
            let name = rule.name.as_deref().unwrap_or(&rule.title);
            return Err(refused(name, format!("a correlation counts to {OF_GROUP_MAX} at most")));
        }
        if !rule.group_by.iter().any(|field| field == "workspace") {
            rule.group_by.insert(0, "workspace".to_owned());
        }
    }
    Ok(collection)
}

fn samples(collection: &SigmaCollection) -> Result<BTreeMap<String, Samples>, Refused> {
    let of_rules = collection.rules.iter().map(|rule| (&rule.name, &rule.custom_attributes));
    let of_both = of_rules.chain(collection.correlations.iter().map(|rule| (&rule.name, &rule.custom_attributes)));
    let mut all = BTreeMap::new();
    for (name, more) in of_both {
        let (Some(name), Some(value)) = (name, more.get("custody.samples")) else { continue };
        let value = serde_json::to_value(value).map_err(|why| refused(name, why))?;
        all.insert(name.clone(), serde_json::from_value(value).map_err(|why| refused(name, why))?);
    }
    Ok(all)
}

/// What the crate's own lint has against rules, in words.
pub fn lint(text: &str) -> Vec<String> {
    let bad = lint_yaml_str(text).into_iter();
    let bad = bad.filter(|warning| matches!(warning.severity, Badness::Error | Badness::Warning));
    // It knows no tags of tools and models.
    let bad = bad.filter(|warning| !["owasp", "atlas"].iter().any(|known| warning.message.contains(known)));
    bad.map(|warning| format!("{}: {} ({})", warning.rule, warning.message, warning.path)).collect()
}

fn new_engine(collection: &SigmaCollection) -> Result<CorrelationEngine, Refused> {
    let mut engine = CorrelationEngine::new(CorrelationConfig {
        timestamp_fallback: TimestampFallback::Skip,
        // Its own way of letting go depends on the order of a hash table: `look` has another.
        max_state_entries: usize::MAX,
        max_group_entries: Some(OF_GROUP_MAX),
        action_on_match: CorrelationAction::Reset,
        correlation_event_mode: CorrelationEventMode::Refs,
        max_correlation_events: POSITIONS_MAX,
        ..CorrelationConfig::default()
    });
    engine.set_logsource_extractor(Some(LogSourceExtractor::new()));
    engine.add_collection(collection).map_err(|why| Refused(why.to_string()))?;
    Ok(engine)
}

/// Rules that are about one record.
struct Plain {
    /// In the order of the collection, each with its tree, and what the crate is told when it holds.
    trees: Vec<(Option<Tree>, EvaluationResult)>,
    /// Those without one, run by the crate.
    rest: Engine,
    any_rest: bool,
}

impl Plain {
    fn of(collection: &SigmaCollection) -> Result<Self, Refused> {
        let mut rest = Engine::new();
        rest.set_logsource_extractor(Some(LogSourceExtractor::new()));
        let mut of_rest = SigmaCollection { filters: collection.filters.clone(), ..SigmaCollection::new() };
        let mut trees = Vec::new();
        for rule in &collection.rules {
            // A filter changes what a rule says.
            let tree = if collection.filters.is_empty() { Tree::of(rule) } else { None };
            if tree.is_none() {
                of_rest.rules.push(rule.clone());
            }
            trees.push((tree, holding(rule)));
        }
        rest.add_collection(&of_rest).map_err(|why| Refused(why.to_string()))?;
        Ok(Self { trees, rest, any_rest: !of_rest.rules.is_empty() })
    }

    /// Those that hold, in the order of the collection.
    fn find(&self, fields: &Fields<'_>) -> Vec<EvaluationResult> {
        let mut of_rest = if self.any_rest { self.rest.evaluate(fields) } else { Vec::new() };
        let mut found = Vec::new();
        for (tree, holding) in &self.trees {
            match tree {
                Some(tree) if tree.holds(fields) => found.push(holding.clone()),
                Some(_) => {}
                None => found.extend(of_rest.extract_if(.., |of| of.header.rule_id == holding.header.rule_id)),
            }
        }
        found
    }
}

/// What the crate says of a rule that holds; of it, nothing but the id is used.
fn holding(rule: &SigmaRule) -> EvaluationResult {
    EvaluationResult {
        header: RuleHeader {
            rule_title: String::new(),
            rule_id: rule.id.clone(),
            level: None,
            tags: Vec::new(),
            custom_attributes: Arc::default(),
            enrichments: None,
        },
        body: ResultBody::Detection(DetectionBody {
            matched_selections: Vec::new(),
            matched_fields: Vec::new(),
            event: None,
        }),
    }
}

impl Sigma {
    /// From YAML, one document for each rule.
    ///
    /// # Errors
    /// [`Refused`], with the rule's name.
    pub fn new(text: &str) -> Result<Self, Refused> {
        let collection = read(text)?;
        let (mut known, mut names) = (BTreeMap::new(), BTreeMap::new());
        let all = collection.rules.iter().map(detection).chain(collection.correlations.iter().map(correlation));
        for rule in all {
            let (id, name, rule) = rule?;
            if names.insert(id.clone(), name.clone()).is_some() {
                return Err(refused(&name, format!("the id {id} is another rule's too")));
            }
            if known.insert(name.clone(), rule).is_some() {
                return Err(refused(&name, "another has its name"));
            }
        }
        if known.len() > RULES_MAX {
            return Err(Refused(format!("there are more than {RULES_MAX} rules")));
        }
        // What only feeds a correlation is told by it alone.
        for of in collection.correlations.iter().filter(|rule| !rule.generate).flat_map(|rule| &rule.rules) {
            let name = names.get(of).unwrap_or(of).clone();
            names.retain(|_, known| *known != name);
            known.remove(&name);
        }
        let engine = new_engine(&collection)?;
        let plain = Plain::of(&collection)?;
        let samples = samples(&collection)?;
        Ok(Self { collection, engine, plain, names, known, samples, taken: 0 })
    }

    /// Samples, by the name of their rule.
    pub fn samples(&self) -> &BTreeMap<String, Samples> {
        &self.samples
    }

    /// What a rule asks of single records, as questions of the query language; of a correlation, what it counts. Empty if they cannot
    /// be asked of the past.
    pub fn questions(&self, name: &str) -> Vec<String> {
        let counted = self.collection.correlations.iter().find(|rule| rule.name.as_deref() == Some(name));
        let parts = counted.map_or_else(|| vec![name], |rule| rule.rules.iter().map(String::as_str).collect());
        let rules = self.collection.rules.iter().zip(&self.plain.trees);
        let of_parts = rules.filter(|(rule, _)| {
            [&rule.name, &rule.id].into_iter().flatten().any(|known| parts.contains(&known.as_str()))
        });
        of_parts.filter_map(|(_, (tree, _))| tree.as_ref()?.question()).collect()
    }

    /// Whether a rule counts records, or is about each.
    pub fn counts(&self, name: &str) -> bool {
        self.collection.correlations.iter().any(|rule| rule.name.as_deref() == Some(name))
    }

    /// Whether our trees and the crate give the same.
    pub fn agrees(&self, view: &View<'_>) -> bool {
        let fields = Fields::of(view);
        let ids = |found: Vec<EvaluationResult>| found.into_iter().map(|of| of.header.rule_id).collect::<Vec<_>>();
        ids(self.plain.find(&fields)) == ids(self.engine.evaluate(&fields))
    }

    /// Lets groups go that are over; all of them if there are too many all the same.
    fn look(&mut self, now: i64) {
        self.taken += 1;
        if self.taken.is_multiple_of(LOOK_EVERY) {
            self.engine.evict_expired(now);
            if self.engine.state_count() > GROUPS_MAX {
                self.forget_groups();
            }
        }
    }

    fn forget_groups(&mut self) {
        // It was made from the same rules before.
        if let Ok(engine) = new_engine(&self.collection) {
            self.engine = engine;
        }
    }

    fn found(&self, result: &EvaluationResult, view: &View<'_>) -> Option<Found> {
        let rule = self.names.get(result.header.rule_id.as_ref()?)?.clone();
        let mut positions = match &result.body {
            ResultBody::Detection(_) => vec![view.place.position],
            ResultBody::Correlation(body) => {
                let refs = body.event_refs.iter().flatten();
                refs.filter_map(|of| of.id.as_ref()?.parse().ok()).collect()
            }
        };
        positions.sort_unstable();
        positions.dedup();
        Some(Found { rule, positions })
    }
}

impl Rules for Sigma {
    fn take(&mut self, view: &View<'_>) -> Vec<Found> {
        let now = i64::try_from(view.place.received_at / 1_000_000).unwrap_or(i64::MAX);
        self.look(now);
        let fields = Fields::of(view);
        let results = self.engine.process_with_detections(&fields, self.plain.find(&fields), now);
        results.iter().filter_map(|result| self.found(result, view)).collect()
    }

    fn known(&self) -> &BTreeMap<String, Rule> {
        &self.known
    }

    fn remembered(&mut self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&Remembered { taken: self.taken, correlations: self.engine.export_state() })
    }

    fn remember(&mut self, text: &str) -> bool {
        let Ok(remembered) = serde_json::from_str::<Remembered>(text) else { return false };
        self.forget();
        self.taken = remembered.taken;
        self.engine.import_state(remembered.correlations)
    }

    fn forget(&mut self) {
        self.taken = 0;
        self.forget_groups();
    }
}
