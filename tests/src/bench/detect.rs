//! How good the watch is: `bench detect FOLDER FIRST COUNT`, over companies of so many seeds from the first.
//!
//! What must hold: nothing of a label reaches a detector; the first three weeks are learning and are not counted; a unit is a member's
//! day, and is a hit if a campaign's record is in it; detectors are held against two controls of as many alerts as they gave: member-days
//! drawn by chance, and those with the most calls in an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ::ledger::watch::{
    baseline::Baselines,
    engine::{Engine, INCIDENT},
    event::Event,
    rules,
    sigma::{Rules as _, Sigma},
};
use custody::{
    id::{Epoch, GatewayId, WorkspaceId},
    query::{Facts, Field, Place},
    wire::{self, Severity},
};
use custody_tests::company::{CampaignKind, Company, DAY, HOUR, Item, Plan};
use serde_json::json;

use crate::{Done, print};

/// A company: people, and days of which the first three weeks are for learning.
const PEOPLE: u64 = 120;
const DAYS: u64 = 35;
/// The rates of alarms are told for so many agents.
const PER_AGENTS: u64 = 1_000;

/// A member's day in a team.
type Unit = (u64, String, u64);

#[derive(Default)]
struct Seen {
    /// Most calls of an hour, and whether a campaign's record is in it.
    units: HashMap<Unit, (u64, bool)>,
    hours: HashMap<(Unit, u64), u64>,
    agents: BTreeSet<String>,
    /// Units that each detector, or rule, gave, with the campaigns that it hit.
    found: BTreeMap<String, (BTreeSet<Unit>, BTreeSet<usize>)>,
    /// Campaign of the records that have one.
    labelled: HashMap<(u64, u64), usize>,
    began: BTreeMap<usize, u64>,
    /// Alarms that somebody is called for: those that hit nothing, and when each campaign was hit first.
    false_alarms: u64,
    hit: BTreeMap<usize, u64>,
    alarms: u64,
}

struct Bench {
    plan: Plan,
    engine: Engine,
    baselines: Baselines,
    sigma: Sigma,
    positions: Vec<u64>,
    seen: Seen,
}

fn team_id(team: u64) -> WorkspaceId {
    let mut id = [0x51; 16];
    id[..8].copy_from_slice(&team.to_be_bytes());
    WorkspaceId(id)
}

impl Bench {
    fn new(plan: &Plan) -> Done<Self> {
        let text = rules::all(None)?;
        let mut engine = Engine::new(&text)?;
        engine.put_in_force();
        Ok(Self {
            plan: plan.clone(),
            engine,
            baselines: Baselines::default(),
            sigma: Sigma::new(&text)?,
            positions: vec![0; usize::try_from(plan.teams)?],
            seen: Seen::default(),
        })
    }

    fn take(&mut self, item: Item) -> Done {
        let position = &mut self.positions[usize::try_from(item.team)?];
        *position += 1;
        let place = Place {
            workspace: team_id(item.team),
            gateway: GatewayId({
                let mut id = [0x61; 16];
                id[..8].copy_from_slice(&item.gateway.to_be_bytes());
                id
            }),
            epoch: Epoch([1; 16]),
            position: *position,
            number: *position,
            received_at: item.received_at,
            gap: false,
        };
        let facts = Facts::of(&place, &wire::Record { version: 1, kind: Some(item.record) });
        let event = Event { place: &place, facts: &facts, own: None, labels: &[] };
        let start = self.plan.first_day * DAY;
        let counts = item.received_at >= start + self.plan.warm_up_days * DAY;
        let member = event.text(Field::Member).unwrap_or("-").to_owned();
        let unit: Unit = (item.team, member, (item.received_at - start) / DAY);
        if let Some(agent) = event.text(Field::Agent) {
            self.seen.agents.insert(agent.to_owned());
        }
        if let Some(campaign) = item.campaign {
            self.seen.labelled.insert((item.team, place.position), campaign);
            self.seen.began.entry(campaign).or_insert(item.received_at);
        }
        let mut names: Vec<String> =
            self.baselines.take(&event).iter().map(|found| found.detector.name().to_owned()).collect();
        if facts.call_phase().is_none_or(|(_, phase)| phase != wire::Phase::Intent) {
            names.extend(self.sigma.take(&event).into_iter().map(|found| found.rule));
        }
        let alarms = self.engine.take(&event, None);
        if !counts {
            return Ok(());
        }
        self.seen.count(&unit, item.received_at / HOUR, item.campaign);
        for name in names {
            let found = self.seen.found.entry(name).or_default();
            found.0.insert(unit.clone());
            found.1.extend(item.campaign);
        }
        for alarm in alarms.iter().filter(|alarm| matches!(alarm.severity(), Severity::High | Severity::Critical)) {
            self.seen.alarm(item.team, alarm);
        }
        Ok(())
    }
}

impl Seen {
    fn count(&mut self, unit: &Unit, hour: u64, campaign: Option<usize>) {
        let calls = self.hours.entry((unit.clone(), hour)).or_default();
        *calls += 1;
        let of = self.units.entry(unit.clone()).or_default();
        *of = (of.0.max(*calls), of.1 || campaign.is_some());
    }

    fn alarm(&mut self, team: u64, alarm: &wire::Alarm) {
        self.alarms += 1;
        let hit: BTreeSet<usize> =
            alarm.positions.iter().filter_map(|position| self.labelled.get(&(team, *position)).copied()).collect();
        self.false_alarms += u64::from(hit.is_empty());
        if hit.is_empty() && std::env::var_os("CUSTODY_SHOW").is_some() {
            print(
                &json!({ "name": alarm.name, "reasons": alarm.details.iter().map(|detail| format!("{}={:?}", detail.key, detail.value)).collect::<Vec<_>>() }),
            );
        }
        for campaign in hit {
            self.hit.entry(campaign).or_insert(alarm.at);
        }
    }

    /// Share of the units of a detector that a campaign is in, in thousandths; the same of both controls.
    fn precision(&self, of: &BTreeSet<Unit>) -> (u64, u64, u64) {
        let thousandths = |hits: usize, all: usize| (hits * 1_000 / all.max(1)) as u64;
        let hits = of.iter().filter(|unit| self.units.get(*unit).is_some_and(|unit| unit.1)).count();
        let positive = self.units.values().filter(|unit| unit.1).count();
        let mut loud: Vec<(u64, bool)> = self.units.values().copied().collect();
        loud.sort_unstable_by_key(|unit| std::cmp::Reverse(unit.0));
        let of_loud = loud.iter().take(of.len()).filter(|unit| unit.1).count();
        (thousandths(hits, of.len()), thousandths(positive, self.units.len()), thousandths(of_loud, of.len()))
    }
}

/// What a detector, or a rule, named.
#[derive(Default)]
struct Named {
    /// Member-days.
    units: u64,
    /// Sums of the three shares, each weighted by its units.
    shares: [u64; 3],
    /// Campaigns hit, by seed.
    campaigns: BTreeSet<(u64, usize)>,
}

#[derive(Default)]
struct Sums {
    seeds: u64,
    agents: u64,
    alarms: u64,
    false_alarms: u64,
    records: u64,
    /// By kind: campaigns, those that were hit, microseconds until then.
    kinds: BTreeMap<CampaignKind, (u64, u64, Vec<u64>)>,
    detectors: BTreeMap<String, Named>,
}

/// Runs the companies and prints what was found.
pub(crate) fn run(first: u64, count: u64) -> Done {
    let mut sums = Sums::default();
    let mut spent = std::time::Duration::ZERO;
    for seed in first..first + count {
        let plan = Plan::of(seed, PEOPLE, DAYS);
        let mut company = Company::new(plan.clone());
        let mut bench = Bench::new(&plan)?;
        let began = std::time::Instant::now();
        for item in company.by_ref() {
            bench.take(item)?;
            sums.records += 1;
        }
        spent += began.elapsed();
        let seen = bench.seen;
        sums.seeds += 1;
        sums.agents += seen.agents.len() as u64;
        sums.alarms += seen.alarms;
        sums.false_alarms += seen.false_alarms;
        for (index, campaign) in company.campaigns().iter().enumerate() {
            let of = sums.kinds.entry(campaign.kind).or_default();
            let Some(began) = seen.began.get(&index) else { continue };
            of.0 += 1;
            if let Some(hit) = seen.hit.get(&index) {
                of.1 += 1;
                of.2.push(hit.saturating_sub(*began));
            }
        }
        for (name, (units, campaigns)) in &seen.found {
            let of = sums.detectors.entry(name.clone()).or_default();
            let shares = seen.precision(units);
            let weight = units.len() as u64;
            of.units += weight;
            of.shares.iter_mut().zip([shares.0, shares.1, shares.2]).for_each(|(sum, share)| *sum += share * weight);
            of.campaigns.extend(campaigns.iter().map(|campaign| (seed, *campaign)));
        }
    }
    tell(&sums, spent);
    Ok(())
}

fn tell(sums: &Sums, spent: std::time::Duration) {
    let days = (DAYS - DAYS * 3 / 5) * sums.seeds;
    let agents = sums.agents / sums.seeds.max(1);
    let rate = |alarms: u64| alarms * PER_AGENTS * 100 / (days * agents).max(1);
    let (all, hit) = sums.kinds.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
    print(&json!({
        "seeds": sums.seeds, "agents": agents, "records": sums.records,
        "records_per_second": sums.records as f64 / spent.as_secs_f64(),
        "campaigns": all, "hit": hit,
        "alarms_per_day_per_1000_agents": rate(sums.alarms) as f64 / 100.0,
        "false_per_day_per_1000_agents": rate(sums.false_alarms) as f64 / 100.0,
        "of_alarms": [INCIDENT, "high", "critical"],
    }));
    for (kind, (all, hit, times)) in &sums.kinds {
        let mut times = times.clone();
        times.sort_unstable();
        let middle = times.get(times.len() / 2).map(|time| time / 60_000_000);
        print(&json!({ "campaign": format!("{kind:?}"), "all": all, "hit": hit, "minutes_until": middle }));
    }
    for (name, Named { units, shares, campaigns }) in &sums.detectors {
        let [own, chance, loud] = shares.map(|sum| sum as f64 / (*units).max(1) as f64 / 1_000.0);
        print(&json!({
            "detector": name, "member_days": units, "precision": own, "by_chance": chance, "by_most_calls": loud,
            "campaigns": campaigns.len(), "beats_both": own > chance && own > loud,
        }));
    }
}
