//! What changes for good reasons, on purpose: somebody new, a release, a quarter's end, a night on call. Detectors should stay quiet.
//!
//! What must hold: a plan without changes has the traffic that it had before there were any; what is here is in no record.

use bytes::Bytes;

use custody::wire::{self, DefinitionChange, record::Kind};

use super::{
    Actor, Company, DAY, HOUR, Item, Plan, Session, TOOLS, catalogue, people,
    people::{Account, Role},
};
use crate::dice::Dice;

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// Somebody's first week.
    NewHire,
    /// A tool is replaced by its next version, for a whole team.
    ToolRelease,
    /// The last days of a quarter, in which finance works three times as much.
    QuarterEnd,
    /// Somebody is called in the middle of their night, and works for a few hours.
    OnCallNight,
}

impl ChangeKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NewHire, Self::ToolRelease, Self::QuarterEnd, Self::OnCallNight];
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which.
    pub kind: ChangeKind,
    /// Of which team; of a quarter's end, of all.
    pub team: Option<u64>,
    /// Ids of those whom it is about.
    pub members: Vec<Bytes>,
    /// Microseconds from the plan's beginning: from, and before.
    pub from: u64,
    /// See `from`.
    pub until: u64,
    /// Of a release: index of the tool.
    pub(super) tool: Option<usize>,
    /// Of a night: number of the account.
    account: Option<u64>,
}

/// The changes of a plan, on days that are scored.
pub(super) fn changes(plan: &Plan, accounts: &mut [Account]) -> Vec<Change> {
    let mut dice = Dice::new(plan.seed ^ 0x5eed_c4a6);
    let mut changes = Vec::new();
    let member = |account: u64| people::id(plan.seed, 1, account);
    for _ in 0..plan.changes_of_each {
        let day = |dice: &mut Dice| dice.within(plan.warm_up_days..plan.days - 4);
        let (hired, called) = (dice.within(0..plan.people), dice.within(0..plan.people));
        let (team, tool) = (dice.within(0..plan.teams), usize::try_from(dice.within(0..10)).unwrap_or_default() * 6);
        let of_team = accounts.iter().filter(|account| account.team == team).map(|account| member(account.number));
        let (of_team, joins) = (of_team.collect(), day(&mut dice));
        if let Some(person) =
            accounts.get_mut(usize::try_from(hired).unwrap_or_default()).and_then(|of| of.person.as_mut())
        {
            person.joins_on_day = joins;
        }
        let change = |kind, team, members, from: u64, days: u64| Change {
            kind,
            team,
            members,
            from: from * DAY,
            until: (from + days) * DAY,
            tool: None,
            account: None,
        };
        changes.push(change(ChangeKind::NewHire, None, vec![member(hired)], joins, 7));
        let release = change(ChangeKind::ToolRelease, Some(team), of_team, day(&mut dice), 3);
        changes.push(Change { tool: Some(tool), ..release });
        let night = change(ChangeKind::OnCallNight, None, vec![member(called)], day(&mut dice), 2);
        changes.push(Change { account: Some(called), ..night });
    }
    let ends = (plan.warm_up_days..plan.days).find(|day| (plan.first_day + day) % 91 > 86);
    if let Some(day) = ends.filter(|_| plan.changes_of_each > 0) {
        let of_finance =
            accounts.iter().filter(|of| of.person.as_ref().is_some_and(|person| person.role == Role::Finance));
        let members = of_finance.map(|account| member(account.number)).collect();
        let (from, until) = (day * DAY, (day + 4) * DAY);
        changes.push(Change {
            kind: ChangeKind::QuarterEnd,
            team: None,
            members,
            from,
            until,
            tool: None,
            account: None,
        });
    }
    changes
}

impl Company {
    /// The changes: what a detector should not find.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Sessions of the nights on call (work as by day, at the wrong hour), and what releases say of themselves.
    pub(super) fn schedule_changes(&mut self) {
        let start = self.start();
        for change in self.changes.clone() {
            if let (Some(team), Some(tool)) = (change.team, change.tool) {
                self.release(start + change.from + 9 * HOUR, team, tool);
            }
            let account = change.account.and_then(|number| usize::try_from(number).ok());
            let Some((index, person)) = account.and_then(|at| Some((at, self.accounts.get(at)?.person.clone()?)))
            else {
                continue;
            };
            for hour in 0..3 {
                let server = catalogue::server_of(person.role, &mut self.dice);
                let left = 5 + self.dice.within(0..15);
                let at = start + change.from + ((person.begins_hour_utc + 15) % 24 + hour) * HOUR;
                self.schedule(at, Actor::Session(Session { account: index, agent: 0, server, left }));
            }
        }
    }

    /// The old tool goes and the next version comes, and somebody accepted both.
    fn release(&mut self, at: u64, team: u64, tool: usize) {
        let of = &TOOLS[tool];
        let gateway = self.plan.people + team * 2;
        let next = (DefinitionChange::Seen, format!("{}_v2", of.name));
        for (change, name) in [(DefinitionChange::Vanished, of.name.to_owned()), next] {
            let record = Kind::ToolDefinition(wire::ToolDefinition {
                at,
                change: change as i32,
                action: wire::DefinitionAction::Accepted as i32,
                server: of.server.to_owned(),
                target: Some(wire::tool_definition::Target::Tool(name)),
                digest_before: (change == DefinitionChange::Vanished).then(|| people::digest(7, tool as u64, 0)),
                digest_after: (change == DefinitionChange::Seen).then(|| people::digest(9, tool as u64, at)),
                actor: Some(wire::tool_definition::Actor::ActorSystem("release".to_owned())),
                reason: "release".to_owned(),
                ..Default::default()
            });
            self.give(Item { team, gateway, received_at: at, record, campaign: None });
        }
    }

    /// The name of a tool of a team: that of its next version once there is one.
    pub(super) fn name_of(&self, team: u64, tool: usize, at: u64) -> String {
        let (tool, since) = (tool % TOOLS.len(), at.saturating_sub(self.start()));
        let is =
            |change: &Change| change.tool == Some(tool) && change.team == Some(team) && since >= change.from + 9 * HOUR;
        let name = TOOLS[tool].name;
        if self.changes.iter().any(is) { format!("{name}_v2") } else { name.to_owned() }
    }
}
