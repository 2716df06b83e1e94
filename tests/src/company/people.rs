//! Who works there: people with roles, hours, time zones and moods, and service accounts with schedules.

use bytes::Bytes;
use custody::hash::sha256;

use super::{HOUR, MINUTE, Plan, SECOND, TOOLS, catalogue};
use crate::dice::Dice;

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Developer,
    Support,
    Finance,
    Analyst,
    Operations,
}

/// A person's habits.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) role: Role,
    /// Hour at which the working day begins, in UTC.
    pub(super) begins_hour_utc: u64,
    /// Sessions of a usual working day.
    usual: u64,
    pub(super) agents: u64,
    /// Day of the plan on which they join: most are there from the first.
    pub(super) joins_on_day: u64,
    /// Day of the plan from which they do nothing any more.
    pub(super) leaves_on_day: u64,
    /// Works at the weekend in every so-many-eth week, on call.
    on_call_every: u64,
    /// Day of the plan on which a week off begins.
    holiday: u64,
}

/// Who calls: a person, or a service.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) number: u64,
    pub(super) team: u64,
    pub(super) gateway: u64,
    pub(super) person: Option<Person>,
    /// Uses tools that change something.
    pub(super) writes: bool,
    /// How long records lie on the gateway: a laptop ships every few seconds, and some are far away.
    pub(super) lag_us: u64,
    /// Of a service: time between two runs, calls of a run, tools in their order.
    pub(super) every_us: u64,
    pub(super) steps: u64,
    pub(super) tools: Vec<usize>,
}

/// An id of 16 bytes: the seed is part of it, so that no two companies have one in common.
pub(super) fn id(seed: u64, what: u64, number: u64) -> Bytes {
    digest(seed, what, number).slice(..16)
}

/// A digest.
pub(super) fn digest(seed: u64, what: u64, number: u64) -> Bytes {
    Bytes::copy_from_slice(&sha256(&[&seed.to_be_bytes(), &what.to_be_bytes(), &number.to_be_bytes()]))
}

/// Everybody, people first.
pub(super) fn accounts(plan: &Plan, dice: &mut Dice) -> Vec<Account> {
    let mut accounts = Vec::new();
    for number in 0..plan.people {
        let team = number % plan.teams;
        // One team in three is far away.
        let zone = [8, 8, 16][usize::try_from(team % 3).unwrap_or_default()];
        let role = [Role::Developer, Role::Support, Role::Developer, Role::Finance, Role::Analyst, Role::Operations];
        let person = Person {
            role: role[usize::try_from(dice.within(0..6)).unwrap_or_default()],
            begins_hour_utc: zone + dice.within(0..3),
            usual: 1 + dice.within(0..5) + dice.within(0..4),
            agents: 1 + dice.within(0..2),
            // One in twenty joins later.
            joins_on_day: if dice.within(0..20) == 0 { dice.within(0..plan.days) } else { 0 },
            leaves_on_day: u64::MAX,
            on_call_every: if dice.within(0..4) == 0 { 3 + dice.within(0..3) } else { 0 },
            holiday: dice.within(0..plan.days * 3),
        };
        accounts.push(Account {
            number,
            team,
            gateway: number,
            writes: dice.within(0..4) > 0,
            lag_us: if dice.within(0..30) == 0 { HOUR } else { dice.within(SECOND..5 * SECOND) },
            person: Some(person),
            every_us: 0,
            steps: 0,
            tools: Vec::new(),
        });
    }
    for service in 0..plan.services {
        let team = service % plan.teams;
        let tools =
            (0..2 + dice.within(0..4)).map(|_| usize::try_from(dice.within(0..TOOLS.len() as u64)).unwrap_or_default());
        let tools: Vec<usize> =
            tools.filter(|tool| TOOLS[*tool].class != catalogue::Class::Destructive).chain([0]).collect();
        accounts.push(Account {
            number: plan.people + service,
            team,
            // The team's always-on gateway.
            gateway: plan.people + team * 2 + 1,
            person: None,
            writes: true,
            lag_us: SECOND,
            every_us: [5, 10, 15, 30, 60, 240][usize::try_from(dice.within(0..6)).unwrap_or_default()] * MINUTE,
            steps: 1 + dice.within(0..12),
            tools,
        });
    }
    accounts
}

impl Person {
    /// Sessions on a day of the plan.
    pub(super) fn sessions_on(&self, plan: &Plan, day: u64, dice: &mut Dice) -> u64 {
        // The Unix epoch was a Thursday.
        let date = plan.first_day + day;
        let (weekday, week) = ((date + 3) % 7, date / 7);
        if (self.holiday..self.holiday + 7).contains(&day) {
            return 0;
        }
        let on_call = self.on_call_every > 0 && week.is_multiple_of(self.on_call_every);
        if weekday >= 5 {
            return if on_call { dice.within(0..3) } else { u64::from(dice.within(0..25) == 0) };
        }
        // Fridays are slow; at a quarter's end finance is not.
        let quarter_end = date % 91 > 86 && self.role == Role::Finance;
        let usual = if weekday == 4 { self.usual.div_ceil(2) } else { self.usual };
        let usual = if quarter_end { usual * 3 } else { usual };
        usual / 2 + dice.within(0..usual + 1)
    }
}

/// An agent's client, and its version, which rolls on every other week, not for everybody on one day.
pub(super) fn client(account: &Account, agent: u64, day: u64) -> (&'static str, String) {
    if account.person.is_none() {
        return ("custody-agent", "2.1.0".to_owned());
    }
    let names = ["claude-code", "cursor", "copilot", "vscode"];
    let name = names[usize::try_from((account.number + agent * 3) % 4).unwrap_or_default()];
    (name, format!("1.{}.0", (day + account.number % 5) / 14))
}
