//! How good the watch is: `bench detect FOLDER FIRST COUNT`, over companies of so many seeds from the first.
//!
//! What must hold: nothing of a label reaches a detector; the first three weeks are learning and are not counted; all settings hear of the
//! same finds; controls are told at the same recall, and their days count as hits more easily than alarms do; a unit is a member's day; a
//! share of campaigns or days has Wilson's interval, as seeds that agree would leave it none.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use custody_tests::company::{CampaignKind, Change, ChangeKind, DAY, HOUR, Plan};
use serde_json::{Value, json};

use self::{
    curve::{DRAWS_SEED, Outcome, Setting, at_recall, over_seeds, wilson},
    walk::{Day, Layers, Trial, Unit, Walked, team_id, walk},
};
use crate::{Done, print};

mod curve;
mod replay;
mod walk;

/// A company: people, and days of which the first three weeks are for learning.
const PEOPLE: u64 = 120;
const DAYS: u64 = 35;
/// Points of an incident, as they ship and as they do not.
const SHIPPED: u64 = 100;
const POINTS: [u64; 16] = [20, 30, 40, 50, 60, 80, 90, 120, 150, 200, 250, 300, 400, 600, 1_000, 100_000];
/// Recalls at which rates are told, in hundredths.
const RECALLS: [u64; 4] = [50, 75, 90, 95];
/// Paces of the slow and of the loud, in quarters of 24 calls over six hours.
const PACES: [u64; 5] = [2, 4, 6, 8, 20];
/// Records of the store that is walked once more.
const REPLAYED: u64 = 1_000_000;
/// Good reasons of each kind in one company.
const CHANGES: u64 = 3;

/// Runs the companies and prints what was found.
pub(crate) fn run(folder: &Path, first: u64, count: u64) -> Done {
    let trials = || {
        let curve = POINTS.iter().map(|points| Trial::new(Layers::All, *points));
        let ablation = Layers::ABLATION.into_iter().map(|layers| Trial::new(layers, SHIPPED));
        [Trial::new(Layers::All, SHIPPED)].into_iter().chain(curve).chain(ablation).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for seed in first..first + count {
        all.push(walk(&Plan::of(seed, PEOPLE, DAYS), trials())?);
    }
    tell_whole(&all);
    tell_curves(&all);
    tell_ablation(&all);
    tell_campaigns(&all);
    tell_detectors(&all);
    drop(all);
    // Half of the seeds: each pace is a company of its own.
    let half = first..first + count.div_ceil(2);
    for pace in PACES {
        tell_pace(pace, half.clone())?;
    }
    tell_changes(half)?;
    replay::run(folder, REPLAYED)
}

fn outcomes(all: &[Walked], layers: Layers, points: u64) -> Vec<Outcome> {
    let is = |trial: &&Trial| trial.layers == layers && trial.incident_at == points;
    all.iter().filter_map(|walked| walked.trials.iter().find(is).map(|trial| walked.outcome(trial))).collect()
}

fn figures(outcomes: &[Outcome]) -> Value {
    let (rate, rate_of) = over_seeds(outcomes, Outcome::rate);
    let (false_rate, false_of) = over_seeds(outcomes, Outcome::false_rate);
    let sum = Outcome::sum(outcomes.iter().copied());
    json!({
        "campaigns": sum.campaigns, "hit": sum.hit, "recall": sum.recall(), "recall_95": wilson(sum.hit, sum.campaigns),
        "alarms_per_day_per_1000_agents": rate, "alarms_95": rate_of,
        "false_per_day_per_1000_agents": false_rate, "false_95": false_of,
    })
}

fn tell_whole(all: &[Walked]) {
    let (records, spent) = all
        .iter()
        .fold((0, 0.0), |(records, spent), walked| (records + walked.records, spent + walked.spent.as_secs_f64()));
    print(&json!({
        "seeds": all.len(), "records": records, "records_per_second": records as f64 / spent,
        "draws_seed": DRAWS_SEED, "as_it_ships": figures(&outcomes(all, Layers::All, SHIPPED)),
    }));
}

/// The curve of the watch, and rates at fixed recalls of the watch and its controls.
fn tell_curves(all: &[Walked]) {
    let mut points: Vec<u64> = POINTS.iter().copied().chain([SHIPPED]).collect();
    points.sort_unstable();
    let watch: Vec<Setting> =
        points.iter().map(|at| Setting { at: *at, outcomes: outcomes(all, Layers::All, *at) }).collect();
    for setting in &watch {
        print(&json!({ "incident_at": setting.at, "gives": figures(&setting.outcomes) }));
    }
    let control = |settings: Vec<u64>, is: &dyn Fn(&Day, u64) -> bool| -> Vec<Setting> {
        let of = |at: u64| all.iter().map(|walked| walked.named(|day| is(day, at))).collect();
        settings.into_iter().map(|at| Setting { at, outcomes: of(at) }).collect()
    };
    let all = [
        ("the watch", watch),
        ("days by chance, of 10,000", control((1..=100).map(|at| at * at).collect(), &|day, at| day.chance < at)),
        ("days with so many calls in an hour", control((1..=120).collect(), &|day, at| day.calls >= at)),
        ("days with so many first tools", control((1..=30).collect(), &|day, at| day.firsts >= at)),
    ];
    for (name, settings) in &all {
        for recall in RECALLS {
            let (found, interval) = at_recall(settings, recall as f64 / 100.0);
            print(&json!({
                "at_recall": recall, "of": name, "alarms_per_day_per_1000_agents": found.map(|(rate, _)| rate),
                "alarms_95": interval, "setting": found.map(|(_, at)| at),
            }));
        }
    }
}

fn tell_ablation(all: &[Walked]) {
    for layers in [Layers::All].into_iter().chain(Layers::ABLATION) {
        print(&json!({ "layers": format!("{layers:?}"), "gives": figures(&outcomes(all, layers, SHIPPED)) }));
    }
}

fn tell_campaigns(all: &[Walked]) {
    // Of each kind how many there are, after how long they were hit, and of each pace how many were hit of how many.
    type Kind = (u64, Vec<u64>, BTreeMap<u64, [u64; 2]>);
    let mut kinds: BTreeMap<CampaignKind, Kind> = BTreeMap::new();
    for walked in all {
        let Some(trial) = walked.trials.first() else { continue };
        for (index, began) in &walked.began {
            let campaign = &walked.campaigns[*index];
            let of = kinds.entry(campaign.kind).or_default();
            let hit = trial.hit.get(index);
            of.0 += 1;
            of.1.extend(hit.map(|hit| hit.saturating_sub(*began)));
            let paced = of.2.entry(campaign.pace_quarters).or_default();
            *paced = [paced[0] + u64::from(hit.is_some()), paced[1] + 1];
        }
    }
    for (kind, (all, mut times, paces)) in kinds {
        times.sort_unstable();
        let at = |tenths: usize| {
            times.get((times.len() * tenths / 10).min(times.len().max(1) - 1)).map(|time| time / 60_000_000)
        };
        let hit = times.len() as u64;
        print(&json!({
            "campaign": format!("{kind:?}"), "all": all, "hit": hit, "recall_95": wilson(hit, all),
            "minutes_until_of_those_hit": { "half": at(5), "nine_tenths": at(9) }, "by_pace_quarters": paces,
        }));
    }
}

/// What a detector, or a rule, named.
#[derive(Default)]
struct Named {
    units: u64,
    /// Of them with a campaign; as many by chance, and of those with the most calls.
    with: [f64; 3],
    /// Campaigns hit, by seed.
    campaigns: BTreeSet<(usize, usize)>,
}

fn tell_detectors(all: &[Walked]) {
    let mut named: BTreeMap<&str, Named> = BTreeMap::new();
    for (seed, walked) in all.iter().enumerate() {
        let mut loud: Vec<&Day> = walked.days.values().collect();
        loud.sort_by_key(|day| std::cmp::Reverse(day.calls));
        let positive = loud.iter().filter(|day| !day.campaigns.is_empty()).count();
        for (name, (units, campaigns)) in &walked.found {
            let of = named.entry(name).or_default();
            let hit = |unit: &&Unit| walked.days.get(*unit).is_some_and(|day| !day.campaigns.is_empty());
            of.units += units.len() as u64;
            of.with[0] += units.iter().filter(hit).count() as f64;
            of.with[1] += (units.len() * positive) as f64 / loud.len().max(1) as f64;
            of.with[2] += loud.iter().take(units.len()).filter(|day| !day.campaigns.is_empty()).count() as f64;
            of.campaigns.extend(campaigns.iter().map(|campaign| (seed, *campaign)));
        }
    }
    for (name, Named { units, with, campaigns }) in &named {
        let [own, chance, loud] = with.map(|with| with / (*units).max(1) as f64);
        let [low, _] = wilson(with[0] as u64, *units);
        print(&json!({
            "detector": name, "member_days": units, "precision": own, "at_least": low, "by_chance": chance,
            "by_most_calls": loud, "campaigns": campaigns.len(), "shown": low > chance && low > loud,
        }));
    }
}

/// Campaigns that all keep one pace; those kinds that have none are not counted.
fn tell_pace(pace: u64, seeds: std::ops::Range<u64>) -> Done {
    let mut all = Vec::new();
    for seed in seeds {
        let plan = Plan { pace_quarters: Some(pace), ..Plan::of(seed, PEOPLE, DAYS) };
        all.push(walk(&plan, vec![Trial::new(Layers::All, SHIPPED)])?);
    }
    let mut kinds: BTreeMap<CampaignKind, [u64; 2]> = BTreeMap::new();
    for (walked, trial) in all.iter().filter_map(|walked| Some((walked, walked.trials.first()?))) {
        for index in walked.began.keys().filter(|index| walked.campaigns[**index].kind.has_pace()) {
            let of = kinds.entry(walked.campaigns[*index].kind).or_default();
            *of = [of[0] + u64::from(trial.hit.contains_key(index)), of[1] + 1];
        }
    }
    let [hit, campaigns] = kinds.values().fold([0, 0], |sum, of| [sum[0] + of[0], sum[1] + of[1]]);
    let kinds: BTreeMap<String, [u64; 2]> = kinds.into_iter().map(|(kind, of)| (format!("{kind:?}"), of)).collect();
    print(&json!({
        "pace": pace as f64 / 4.0, "seeds": all.len(), "campaigns": campaigns, "hit": hit,
        "recall": hit as f64 / campaigns.max(1) as f64, "recall_95": wilson(hit, campaigns), "hit_by_kind": kinds,
    }));
    Ok(())
}

/// Companies without campaigns and with good reasons to change: what is raised, and about whom.
fn tell_changes(seeds: std::ops::Range<u64>) -> Done {
    let (mut agent_days, mut alarms, mut others) = (0, 0, 0);
    let mut kinds: BTreeMap<ChangeKind, (u64, u64, BTreeMap<String, u64>)> = BTreeMap::new();
    for seed in seeds {
        // Three weeks later, so that a quarter ends in the days that are scored.
        let plan = Plan { campaigns_of_each: 0, changes_of_each: CHANGES, ..Plan::of(seed, PEOPLE, DAYS) };
        let plan = Plan { first_day: plan.first_day + 21, ..plan };
        let walked = walk(&plan, vec![Trial::new(Layers::All, SHIPPED)])?;
        agent_days += walked.agent_days;
        walked.changes.iter().for_each(|change| kinds.entry(change.kind).or_default().0 += 1);
        for alarm in walked.trials.iter().flat_map(|trial| &trial.alarms) {
            alarms += 1;
            let since = alarm.at - plan.first_day * DAY;
            let is_of = |change: &&Change| {
                let by = alarm
                    .member
                    .as_ref()
                    .map_or(change.kind == ChangeKind::ToolRelease, |of| change.members.contains(of));
                let there = change.team.is_none_or(|team| alarm.workspace.as_deref() == Some(&team_id(team).0[..]));
                by && there && (change.from..change.until + 2 * HOUR).contains(&since)
            };
            let Some(change) = walked.changes.iter().find(is_of) else {
                others += 1;
                continue;
            };
            let of = kinds.entry(change.kind).or_default();
            of.1 += 1;
            let reasons = alarm.details.iter().filter_map(|detail| detail.key.strip_prefix("reason/"));
            reasons.chain([alarm.name.as_str()]).for_each(|reason| *of.2.entry(reason.to_owned()).or_default() += 1);
        }
    }
    for (kind, (changes, alarms, reasons)) in &kinds {
        print(&json!({ "change": format!("{kind:?}"), "changes": changes, "alarms": alarms, "reasons": reasons }));
    }
    print(&json!({
        "without_campaigns": { "alarms": alarms, "about_no_change": others, "agent_days": agent_days,
            "alarms_per_day_per_1000_agents": f64::from(alarms) * 1_000.0 / agent_days.max(1) as f64 },
    }));
    Ok(())
}
