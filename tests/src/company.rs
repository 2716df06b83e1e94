//! A company's traffic, made from a seed: members with habits, agents, tools, service accounts, seasons, what changes for good
//! reasons, and campaigns of somebody who should not be there. It measures detectors, and fills a ledger for measurements.
//!
//! What must hold: the same plan gives the same records on every machine, so all numbers are whole; two seeds have no person, token,
//! agent or gateway in common; records come in the order of their receipt, and memory does not grow with their number; labels
//! ([`Item::campaign`], [`Company::campaigns`]) stand beside the records and never in them. What campaigns look like was written down before
//! any detector was.

mod campaigns;
mod catalogue;
mod changes;
mod people;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use custody::wire::{self, record::Kind};

pub use campaigns::{Campaign, CampaignKind};
pub use catalogue::{Class, TOOLS, Tool};
pub use changes::{Change, ChangeKind};
use people::{Account, Person};

use crate::dice::Dice;

/// Microseconds.
pub const SECOND: u64 = 1_000_000;
/// Microseconds.
pub const MINUTE: u64 = 60 * SECOND;
/// Microseconds.
pub const HOUR: u64 = 60 * MINUTE;
/// Microseconds.
pub const DAY: u64 = 24 * HOUR;

/// Which company, and how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything follows from it; it is also part of every id.
    pub seed: u64,
    /// UTC day on which it begins, in days since the Unix epoch; a Monday makes reports easy to read.
    pub first_day: u64,
    /// Days.
    pub days: u64,
    /// Workspaces: teams.
    pub teams: u64,
    /// People; each has one or two agents.
    pub people: u64,
    /// Service accounts, which run by a schedule.
    pub services: u64,
    /// Day of the plan from which campaigns may begin: detectors learn before it.
    pub warm_up_days: u64,
    /// Campaigns of each kind.
    pub campaigns_of_each: u64,
    /// Pace of all campaigns in quarters, of which four are 24 calls over six hours; `None`: each at another.
    pub pace_quarters: Option<u64>,
    /// Changes for good reasons of each kind, beside those that happen anyway.
    pub changes_of_each: u64,
}

impl Plan {
    /// A company of so many people for so many days.
    pub fn of(seed: u64, people: u64, days: u64) -> Self {
        Self {
            seed,
            first_day: 20_514,
            days,
            teams: (people / 40).clamp(1, 12),
            people,
            services: people / 10 + 1,
            warm_up_days: days * 3 / 5,
            campaigns_of_each: 1,
            pace_quarters: None,
            changes_of_each: 0,
        }
    }
}

/// One record, and who signs it.
#[derive(Clone, Debug)]
pub struct Item {
    /// Index of the workspace.
    pub team: u64,
    /// Index of the gateway; a gateway is of one workspace.
    pub gateway: u64,
    /// When the ledger gets it, microseconds since the Unix epoch.
    pub received_at: u64,
    /// What it says.
    pub record: Kind,
    /// Index of the campaign that it belongs to; not in the record.
    pub campaign: Option<usize>,
}

/// Somebody or something that acts at a time of its own.
#[derive(Clone, Debug)]
enum Actor {
    /// A person's day: sessions are begun in it.
    Day(usize),
    /// A session, with so many calls to go.
    Session(Session),
    /// A service account's next run.
    Service(usize),
    /// A step of a campaign.
    Campaign(usize, u64),
    /// A change for a good reason.
    Change(u64),
}

/// A person at work with an agent.
#[derive(Clone, Debug)]
struct Session {
    account: usize,
    agent: u64,
    server: usize,
    left: u64,
}

/// The traffic, in the order of receipt.
pub struct Company {
    plan: Plan,
    dice: Dice,
    accounts: Vec<Account>,
    campaigns: Vec<Campaign>,
    changes: Vec<Change>,
    /// Who acts next, and when; as many as there are people, sessions and campaigns at a time.
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    actors: std::collections::HashMap<u64, Actor>,
    next_actor: u64,
    ready: VecDeque<Item>,
    calls: Vec<u64>,
}

impl Company {
    /// From a plan.
    pub fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let mut accounts = people::accounts(&plan, &mut dice);
        let campaigns = campaigns::campaigns(&plan, &mut accounts, &mut dice);
        let changes = changes::changes(&plan, &mut accounts);
        let gateways = plan.teams * 2 + plan.people;
        let mut company = Self {
            plan,
            dice,
            accounts,
            campaigns,
            changes,
            agenda: BinaryHeap::new(),
            actors: std::collections::HashMap::new(),
            next_actor: 0,
            ready: VecDeque::new(),
            calls: vec![0; usize::try_from(gateways).unwrap_or_default()],
        };
        company.begin();
        company
    }

    /// The campaigns: what a detector should find.
    pub fn campaigns(&self) -> &[Campaign] {
        &self.campaigns
    }

    /// Number of gateways.
    pub fn gateways(&self) -> u64 {
        self.calls.len() as u64
    }

    /// First microsecond.
    pub fn start(&self) -> u64 {
        self.plan.first_day * DAY
    }

    /// Microsecond after the last.
    pub fn end(&self) -> u64 {
        self.start() + self.plan.days * DAY
    }

    fn schedule(&mut self, at: u64, actor: Actor) {
        self.agenda.push(Reverse((at, self.next_actor)));
        self.actors.insert(self.next_actor, actor);
        self.next_actor += 1;
    }

    fn begin(&mut self) {
        let start = self.start();
        for index in 0..self.accounts.len() {
            match &self.accounts[index].person {
                Some(person) => {
                    let first = start + person.joins_on_day * DAY;
                    self.schedule(first, Actor::Day(index));
                }
                None => {
                    let offset = self.dice.within(0..self.accounts[index].every_us);
                    self.schedule(start + offset, Actor::Service(index));
                }
            }
        }
        for index in 0..self.campaigns.len() {
            let at = start + self.campaigns[index].start;
            self.schedule(at, Actor::Campaign(index, 0));
        }
        for team in 0..self.plan.teams {
            self.schedule(start, Actor::Change(team));
        }
        self.schedule_changes();
    }

    fn act(&mut self, at: u64, actor: Actor) {
        match actor {
            Actor::Day(index) => self.day(at, index),
            Actor::Session(session) => self.step(at, session),
            Actor::Service(index) => self.service(at, index),
            Actor::Campaign(index, step) => self.campaign(at, index, step),
            Actor::Change(team) => self.change(at, team),
        }
    }

    /// Plans a person's sessions of one day of their own: how many by weekday, month and mood, when by their hours.
    fn day(&mut self, at: u64, index: usize) {
        let account = self.accounts[index].clone();
        let Some(person) = &account.person else { return };
        let day = (at - self.start()) / DAY;
        if day >= person.leaves_on_day {
            return;
        }
        let sessions = person.sessions_on(&self.plan, day, &mut self.dice);
        for _ in 0..sessions {
            let begins = at + person.time_of_day(&mut self.dice);
            let session = Session {
                account: index,
                agent: self.dice.within(0..person.agents),
                server: catalogue::server_of(person.role, &mut self.dice),
                left: 2 + self.dice.within(0..6) * self.dice.within(1..7),
            };
            self.schedule(begins, Actor::Session(session));
        }
        self.schedule(at + DAY, Actor::Day(index));
    }

    /// One call of a session, and when the next is due.
    fn step(&mut self, at: u64, mut session: Session) {
        let account = self.accounts[session.account].clone();
        // Now and then another server: an agent reads here and writes there.
        if self.dice.within(0..9) == 0
            && let Some(person) = &account.person
        {
            session.server = catalogue::server_of(person.role, &mut self.dice);
        }
        let tool = catalogue::tool_of(session.server, account.writes, &mut self.dice);
        self.call(at, &account, session.agent, tool, &Twist::default());
        session.left -= 1;
        if session.left > 0 {
            // Seconds between the calls of an agent, and sometimes a person who reads.
            let gap =
                if self.dice.within(0..8) == 0 { 20 + self.dice.within(0..160) } else { 1 + self.dice.within(0..12) };
            let due = at + gap * SECOND + self.dice.within(0..SECOND);
            self.schedule(due, Actor::Session(session));
        }
    }

    /// A run of a service account: the same tools in the same order.
    fn service(&mut self, at: u64, index: usize) {
        let account = self.accounts[index].clone();
        let mut when = at;
        for step in 0..account.steps {
            let tool = account.tools[usize::try_from(step).unwrap_or_default() % account.tools.len()];
            self.call(when, &account, 0, tool, &Twist::default());
            when += SECOND + self.dice.within(0..2 * SECOND);
        }
        self.schedule(at + account.every_us, Actor::Service(index));
    }

    /// The next item; `None` once the plan is over.
    fn make(&mut self) -> Option<Item> {
        loop {
            // Whatever an actor makes is of its own time or later, and what is ready is given in order.
            let due = self.agenda.peek().map(|Reverse((at, _))| *at);
            if let Some(item) = self.ready.front()
                && due.is_none_or(|due| item.received_at <= due)
            {
                return self.ready.pop_front();
            }
            let Reverse((at, number)) = self.agenda.pop()?;
            let actor = self.actors.remove(&number)?;
            if at < self.end() {
                self.act(at, actor);
            }
        }
    }

    fn give(&mut self, item: Item) {
        let place = self.ready.partition_point(|ready| ready.received_at <= item.received_at);
        self.ready.insert(place, item);
    }
}

impl Iterator for Company {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        self.make().filter(|item| item.received_at < self.end() + DAY)
    }
}

/// What is not as usual about a call.
#[derive(Clone, Debug, Default)]
struct Twist {
    campaign: Option<usize>,
    /// From another gateway than the account's own.
    gateway: Option<u64>,
    denied: bool,
    /// Sizes of this many times the usual.
    response_times: u64,
    request_bytes: Option<u64>,
    /// It takes so many times as long, and fails so often in a hundred.
    slow_times: u64,
    fails_percent: u64,
    definition: u64,
}

impl Company {
    /// Makes a call and gives it, with its intent apart if it runs for long.
    fn call(&mut self, at: u64, account: &Account, agent: u64, tool: usize, twist: &Twist) {
        let of = &TOOLS[tool % TOOLS.len()];
        let gateway = twist.gateway.unwrap_or(account.gateway);
        let number = &mut self.calls[usize::try_from(gateway).unwrap_or_default()];
        *number += 1;
        let call_number = *number;
        let spread = |dice: &mut Dice, log2: u64| (1_u64 << log2) + dice.roll() % (1 << log2) * (1 + dice.within(0..3));
        let duration = spread(&mut self.dice, of.duration_log2) * twist.slow_times.max(1);
        let dice_percent = self.dice.within(0..1_000);
        let denied = twist.denied || dice_percent < 6;
        let failed = !denied && self.dice.within(0..1_000) < of.errors_per_mille + twist.fails_percent * 10;
        let outcome = match (denied, failed) {
            (true, _) => wire::Outcome::Denied,
            (_, true) if self.dice.within(0..4) == 0 => wire::Outcome::Timeout,
            (_, true) => wire::Outcome::ToolError,
            _ => wire::Outcome::Ok,
        };
        let request = twist.request_bytes.unwrap_or_else(|| spread(&mut self.dice, of.request_log2));
        let response = if denied { 0 } else { spread(&mut self.dice, of.response_log2) * twist.response_times.max(1) };
        let duration_us = if denied { 300 } else { duration };
        let client = people::client(account, agent, (at - self.start()) / DAY);
        let call = wire::Call {
            call_number,
            phase: wire::Phase::Complete as i32,
            mode: wire::Mode::Relaxed as i32,
            member: Some(people::id(self.plan.seed, 1, account.number)),
            token: Some(people::id(self.plan.seed, 2, account.number * 4 + agent)),
            agent: Some(people::id(self.plan.seed, 3, account.number * 4 + agent)),
            client: Some(wire::call::Client::ClientName(client.0.to_owned())),
            client_release: Some(wire::call::ClientRelease::ClientVersion(client.1)),
            server: of.server.to_owned(),
            target: Some(wire::call::Target::Tool(self.name_of(account.team, tool, at))),
            request: Some(wire::call::Request::Method("tools/call".to_owned())),
            protocol: "2025-06-18".to_owned(),
            decision: if denied { wire::Decision::Denied } else { wire::Decision::Allowed } as i32,
            rule: if denied {
                "shim/default-deny".to_owned()
            } else {
                format!("{}-{:?}", of.server, of.class).to_lowercase()
            },
            access_policy_digest: Some(people::digest(self.plan.seed, 4, account.team)),
            definition_digest: Some(people::digest(7, tool as u64, twist.definition)),
            started_at: at,
            duration_us,
            outcome: outcome as i32,
            request_bytes: request,
            response_bytes: response,
            ..Default::default()
        };
        let item = |received_at, call| Item {
            team: account.team,
            gateway,
            received_at,
            record: Kind::Call(call),
            campaign: twist.campaign,
        };
        let on_the_way = account.lag_us + self.dice.within(0..SECOND);
        if duration_us > 2 * SECOND {
            let intent = wire::Call {
                phase: wire::Phase::Intent as i32,
                outcome: wire::Outcome::Running as i32,
                duration_us: 0,
                response_bytes: 0,
                ..call.clone()
            };
            self.give(item(at + 2 * SECOND + on_the_way, intent));
            let outcome = wire::Call { phase: wire::Phase::Outcome as i32, ..call };
            self.give(item(at + duration_us + 2 * SECOND + on_the_way, outcome));
        } else {
            self.give(item(at + duration_us + on_the_way, call));
        }
    }

    /// Good reasons, one team at a time: a tool's definition that changes and is accepted, a server that gets its labels.
    fn change(&mut self, at: u64, team: u64) {
        let day = (at - self.start()) / DAY;
        let record = if day == 0 {
            let server = catalogue::SERVERS[usize::try_from(team).unwrap_or_default() % catalogue::SERVERS.len()];
            Kind::AccessChange(wire::AccessChange {
                at,
                action: wire::AccessAction::ServerChanged as i32,
                actor: Some(wire::access_change::Actor::ActorSystem("policy-apply".to_owned())),
                reason: "setup".to_owned(),
                server: server.to_owned(),
                labels: catalogue::labels(server),
                policy_digest_after: people::digest(self.plan.seed, 4, team),
                ..Default::default()
            })
        } else {
            let tool = usize::try_from(self.dice.roll()).unwrap_or_default() % TOOLS.len();
            let of = &TOOLS[tool];
            Kind::ToolDefinition(wire::ToolDefinition {
                at,
                change: wire::DefinitionChange::Changed as i32,
                action: wire::DefinitionAction::Accepted as i32,
                server: of.server.to_owned(),
                target: Some(wire::tool_definition::Target::Tool(of.name.to_owned())),
                digest_before: Some(people::digest(7, tool as u64, 0)),
                digest_after: Some(people::digest(7, tool as u64, day)),
                actor: Some(wire::tool_definition::Actor::ActorSystem("release".to_owned())),
                reason: "release".to_owned(),
                ..Default::default()
            })
        };
        let gateway = self.plan.people + team * 2;
        self.give(Item { team, gateway, received_at: at + SECOND, record, campaign: None });
        let days = 2 + self.dice.within(0..5);
        self.schedule(at + DAY * days + HOUR * (8 + team % 8), Actor::Change(team));
    }
}

impl Person {
    /// Minutes into the day, in UTC, at which a session begins: around two humps of the person's working hours.
    fn time_of_day(&self, dice: &mut Dice) -> u64 {
        let hump = if dice.within(0..5) < 3 { 2 * 60 } else { 6 * 60 };
        let minutes = self.begins_hour_utc * 60 + hump + dice.within(0..150) + dice.within(0..150);
        (minutes - 150) % (24 * 60) * MINUTE + dice.within(0..MINUTE)
    }
}
