//! One company, walked once: what was found, what each trial made of it, and what the controls would have said.
//!
//! What must hold: nothing of a label reaches the engine or a trial; all trials hear of the same finds; the first three weeks count nowhere.
//! There are no batches here, so no exact finding but those of a record itself: what signatures tell is not measured.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use ::ledger::watch::{
    engine::Engine,
    risk::points_of,
    rules,
    teller::{Finds, Judged, Teller},
    view::View,
};
use custody::{
    id::{Epoch, GatewayId, WorkspaceId},
    query::{Facts, Field, Place},
    wire::{self, Severity},
};
use custody_tests::{
    company::{Campaign, Change, Company, DAY, HOUR, Item, Plan},
    dice::Dice,
};

use super::curve::Outcome;
use crate::Done;

/// A member's day in a team.
pub(super) type Unit = (u64, String, u64);

/// What of the finds a trial hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layers {
    All,
    NoRules,
    NoBaselines,
    /// Nothing adds up: only what is an alarm by itself.
    NoRisk,
}

impl Layers {
    pub(super) const ABLATION: [Self; 3] = [Self::NoRules, Self::NoBaselines, Self::NoRisk];

    fn of(self, finds: &Finds, severity: impl Fn(&str) -> Severity) -> Finds {
        let mut heard =
            Finds { exact: finds.exact.clone(), rules: finds.rules.clone(), unusual: finds.unusual.clone() };
        match self {
            Self::NoRules => heard.rules.clear(),
            Self::NoBaselines => heard.unusual.clear(),
            Self::All | Self::NoRisk => {}
        }
        if self == Self::NoRisk {
            heard.rules.retain(|found| points_of(severity(&found.rule)) >= 100);
            heard.unusual.retain(|found| found.points >= 100);
        }
        heard
    }
}

/// The finds as one setting hears and tells them.
pub(super) struct Trial {
    pub(super) layers: Layers,
    pub(super) incident_at: u64,
    teller: Teller,
    pub(super) alarms: Vec<wire::Alarm>,
    /// When each campaign was hit first.
    pub(super) hit: BTreeMap<usize, u64>,
    pub(super) false_alarms: u64,
}

impl Trial {
    pub(super) fn new(layers: Layers, incident_at: u64) -> Self {
        let teller = Teller::with_incident_at(incident_at);
        Self { layers, incident_at, teller, alarms: Vec::new(), hit: BTreeMap::new(), false_alarms: 0 }
    }
}

/// A member-day, as the controls see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Day {
    /// Most calls of an hour.
    pub(super) calls: u64,
    /// Pairs of the member and a tool that were never seen before.
    pub(super) firsts: u64,
    pub(super) chance: u64,
    pub(super) campaigns: BTreeSet<usize>,
}

pub(super) struct Walked {
    pub(super) trials: Vec<Trial>,
    pub(super) days: BTreeMap<Unit, Day>,
    /// Units that each detector, or rule, gave, with the campaigns that it hit.
    pub(super) found: BTreeMap<String, (BTreeSet<Unit>, BTreeSet<usize>)>,
    pub(super) began: BTreeMap<usize, u64>,
    pub(super) campaigns: Vec<Campaign>,
    pub(super) changes: Vec<Change>,
    pub(super) agent_days: u64,
    pub(super) records: u64,
    /// What engine and the first trial took.
    pub(super) spent: Duration,
}

impl Walked {
    /// Of a trial.
    pub(super) fn outcome(&self, trial: &Trial) -> Outcome {
        Outcome {
            agent_days: self.agent_days,
            alarms: trial.alarms.len() as u64,
            false_alarms: trial.false_alarms,
            campaigns: self.began.len() as u64,
            hit: trial.hit.len() as u64,
        }
    }

    /// Of a control that names these days.
    pub(super) fn named(&self, is: impl Fn(&Day) -> bool) -> Outcome {
        let named: Vec<&Day> = self.days.values().filter(|day| is(day)).collect();
        let hit: BTreeSet<usize> = named.iter().flat_map(|day| day.campaigns.iter().copied()).collect();
        Outcome {
            agent_days: self.agent_days,
            alarms: named.len() as u64,
            false_alarms: named.iter().filter(|day| day.campaigns.is_empty()).count() as u64,
            campaigns: self.began.len() as u64,
            hit: hit.len() as u64,
        }
    }
}

struct Walker {
    plan: Plan,
    engine: Engine,
    positions: Vec<u64>,
    pairs: HashSet<(u64, String, String)>,
    hours: HashMap<(Unit, u64), u64>,
    agents: BTreeSet<String>,
    labelled: HashMap<(u64, u64), usize>,
    walked: Walked,
}

fn id(kind: u8, number: u64) -> [u8; 16] {
    let mut id = [kind; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    id
}

/// A team's workspace.
pub(super) fn team_id(team: u64) -> WorkspaceId {
    WorkspaceId(id(0x51, team))
}

/// Walks a company with trials, the first of which is what ships.
pub(super) fn walk(plan: &Plan, trials: Vec<Trial>) -> Done<Walked> {
    let mut engine = Engine::new(&rules::all(None)?)?;
    engine.put_in_force();
    let mut company = Company::new(plan.clone());
    let walked = Walked {
        trials,
        days: BTreeMap::new(),
        found: BTreeMap::new(),
        began: BTreeMap::new(),
        campaigns: Vec::new(),
        changes: company.changes().to_vec(),
        agent_days: 0,
        records: 0,
        spent: Duration::ZERO,
    };
    let mut walker = Walker {
        plan: plan.clone(),
        engine,
        positions: vec![0; usize::try_from(plan.teams)?],
        pairs: HashSet::new(),
        hours: HashMap::new(),
        agents: BTreeSet::new(),
        labelled: HashMap::new(),
        walked,
    };
    for item in company.by_ref() {
        walker.take(item)?;
    }
    let mut walked = walker.walked;
    walked.campaigns = company.campaigns().to_vec();
    walked.agent_days = (plan.days - plan.warm_up_days) * walker.agents.len() as u64;
    let mut dice = Dice::new(plan.seed);
    walked.days.values_mut().for_each(|day| day.chance = dice.within(0..10_000));
    Ok(walked)
}

impl Walker {
    fn take(&mut self, item: Item) -> Done {
        let position = &mut self.positions[usize::try_from(item.team)?];
        *position += 1;
        let place = Place {
            workspace: team_id(item.team),
            gateway: GatewayId(id(0x61, item.gateway)),
            epoch: Epoch([1; 16]),
            position: *position,
            number: *position,
            received_at: item.received_at,
            gap: false,
        };
        let facts = Facts::of(&place, &wire::Record { version: 1, kind: Some(item.record) });
        let view = View { place: &place, facts: &facts, own: None, labels: &[] };
        if let Some(campaign) = item.campaign {
            self.labelled.insert((item.team, place.position), campaign);
            self.walked.began.entry(campaign).or_insert(item.received_at);
        }
        self.walked.records += 1;
        let start = self.plan.first_day * DAY;
        let counts = item.received_at >= start + self.plan.warm_up_days * DAY;
        let member = view.text(Field::Member).unwrap_or("-").to_owned();
        if let Some(agent) = view.text(Field::Agent).filter(|agent| !self.agents.contains(*agent)) {
            self.agents.insert(agent.to_owned());
        }
        let tool = view.text(Field::Tool).unwrap_or("-").to_owned();
        let is_first = self.pairs.insert((item.team, member.clone(), tool));
        let began = Instant::now();
        let finds = self.engine.find(&view, None);
        self.walked.spent += began.elapsed();
        let unit: Unit = (item.team, member, (item.received_at - start) / DAY);
        if counts {
            self.count(&unit, item.received_at / HOUR, is_first, item.campaign);
        }
        if !finds.is_empty() {
            if counts {
                let unusual = finds.unusual.iter().map(|found| found.detector.name());
                for name in unusual.chain(finds.rules.iter().map(|found| found.rule.as_str())) {
                    let found = self.walked.found.entry(name.to_owned()).or_default();
                    found.0.insert(unit.clone());
                    found.1.extend(item.campaign);
                }
            }
            self.tell(&view, &finds, counts);
        }
        Ok(())
    }

    fn count(&mut self, unit: &Unit, hour: u64, is_first: bool, campaign: Option<usize>) {
        let calls = self.hours.entry((unit.clone(), hour)).or_default();
        *calls += 1;
        let day = self.walked.days.entry(unit.clone()).or_default();
        day.calls = day.calls.max(*calls);
        day.firsts += u64::from(is_first);
        day.campaigns.extend(campaign);
    }

    fn tell(&mut self, view: &View<'_>, finds: &Finds, counts: bool) {
        let rules = self.engine.rules().known();
        let digest = self.engine.digest();
        let severity = |name: &str| rules.get(name).map_or(Severity::Low, |rule| rule.severity);
        let workspace = view.place.workspace;
        for trial in &mut self.walked.trials {
            let heard = trial.layers.of(finds, severity);
            let began = Instant::now();
            let alarms = trial.teller.take(view, heard, &Judged { rules, digest: &digest, all_on: false });
            if trial.layers == Layers::All && trial.incident_at == 100 {
                self.walked.spent += began.elapsed();
            }
            let called = |alarm: &wire::Alarm| matches!(alarm.severity(), Severity::High | Severity::Critical);
            for alarm in alarms.into_iter().filter(|alarm| counts && called(alarm)) {
                let team = u64::from_be_bytes(*workspace.0.first_chunk().unwrap_or(&[0; 8]));
                let labels = alarm.positions.iter().filter_map(|position| self.labelled.get(&(team, *position)));
                let hit: BTreeSet<usize> = labels.copied().collect();
                trial.false_alarms += u64::from(hit.is_empty());
                hit.into_iter().for_each(|campaign| {
                    trial.hit.entry(campaign).or_insert(alarm.at);
                });
                trial.alarms.push(alarm);
            }
        }
    }
}
