//! What should be found: campaigns of somebody who should not be there, or of a program gone wild. Written before any detector.
//!
//! Each has a victim or a culprit, a beginning, and steps at a pace: once is 24 calls over six hours, for everybody, whatever the account
//! does on a usual day (a person here makes some 10 to 90 calls). Each kind is seen at each pace as seeds go by. Many kinds leave no trace but
//! in numbers; some cannot be told from work at all, and belong here all the same.

use super::{Company, DAY, HOUR, Item, MINUTE, Plan, SECOND, TOOLS, Twist, catalogue::Class, people, people::Account};
use crate::dice::Dice;
use custody::wire::{self, record::Kind};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CampaignKind {
    /// A token is used through a gateway of another team while its owner works.
    StolenToken,
    /// Tools are tried that are refused.
    DeniedBurst,
    /// A tool is refused, and then allowed to another agent of the same member.
    DeniedThenAllowed,
    /// Tool after tool is called once: what is there?
    Enumeration,
    /// Much is read, and then something goes out that is as large.
    ReadManyThenSend,
    /// What takes away is called again and again.
    DestructiveBurst,
    /// An agent asks the same thing of the same tool without end.
    RunawayLoop,
    /// Work in the middle of the person's night.
    OffHours,
    /// An account that was silent for weeks acts.
    DormantAwakened,
    /// A tool's definition changes, and nobody accepted it.
    RugPull,
    /// A server that nobody knows answers.
    ShadowServer,
    /// A tool becomes slow and fails: something stands between.
    LatencyShift,
    /// Somebody uses a little more every day.
    CreepingScope,
    /// More of the same.
    RateSpike,
}

impl CampaignKind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::StolenToken,
        Self::DeniedBurst,
        Self::DeniedThenAllowed,
        Self::Enumeration,
        Self::ReadManyThenSend,
        Self::DestructiveBurst,
        Self::RunawayLoop,
        Self::OffHours,
        Self::DormantAwakened,
        Self::RugPull,
        Self::ShadowServer,
        Self::LatencyShift,
        Self::CreepingScope,
        Self::RateSpike,
    ];

    /// Whether its pace makes it harder to see: the others are seen by one record, by what they add day by day, or by calls of seconds.
    pub fn has_pace(self) -> bool {
        !matches!(self, Self::CreepingScope | Self::RunawayLoop | Self::RugPull | Self::ShadowServer)
    }
}

/// One campaign.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// What happens.
    pub kind: CampaignKind,
    /// Number of the account.
    pub account: u64,
    /// Its member's id.
    pub member: bytes::Bytes,
    /// Pace in quarters: 4 is once, which is 24 calls over six hours.
    pub pace_quarters: u64,
    /// When it begins, in microseconds from the plan's beginning.
    pub start: u64,
    /// Steps.
    pub steps: u64,
    /// Records that it made so far.
    pub records: u64,
}

/// Paces: once, somewhat more, twice, and loud.
const PACES: [u64; 4] = [4, 6, 8, 40];

/// The campaigns of a plan: of each kind as many as it says, each at another pace and with another account.
pub(super) fn campaigns(plan: &Plan, accounts: &mut [Account], dice: &mut Dice) -> Vec<Campaign> {
    let mut campaigns = Vec::new();
    let (first, last) = (plan.warm_up_days * DAY, plan.days.saturating_sub(1).max(plan.warm_up_days + 1) * DAY);
    if plan.warm_up_days >= plan.days || plan.people == 0 {
        return campaigns;
    }
    for (at, kind) in CampaignKind::ALL
        .iter()
        .cycle()
        .take(CampaignKind::ALL.len() * usize::try_from(plan.campaigns_of_each).unwrap_or_default())
        .enumerate()
    {
        // Accounts are spread over the company, so that few have two.
        let account = (at as u64 * 7 + dice.within(0..7)) % plan.people;
        // By seed too, so that no kind is tied to a pace.
        let paced = (at as u64 + plan.seed) % PACES.len() as u64;
        let pace_quarters = plan.pace_quarters.unwrap_or_else(|| PACES[usize::try_from(paced).unwrap_or_default()]);
        if let (CampaignKind::DormantAwakened, Some(person)) =
            (kind, &mut accounts[usize::try_from(account).unwrap_or_default()].person)
        {
            person.leaves_on_day = plan.warm_up_days / 3;
        }
        let begins = accounts[usize::try_from(account).unwrap_or_default()]
            .person
            .as_ref()
            .map_or(9, |person| person.begins_hour_utc);
        let hour = if *kind == CampaignKind::OffHours { (begins + 15) % 24 } else { (begins + 3) % 24 };
        let day = dice.within(first / DAY..(last / DAY).max(first / DAY + 1));
        let steps = match kind {
            CampaignKind::RugPull | CampaignKind::DeniedThenAllowed => 8,
            CampaignKind::CreepingScope => 24,
            _ => 6 * pace_quarters,
        };
        campaigns.push(Campaign {
            kind: *kind,
            account,
            member: people::id(plan.seed, 1, account),
            pace_quarters,
            start: day * DAY + hour * HOUR + dice.within(0..HOUR),
            steps,
            records: 0,
        });
    }
    campaigns
}

fn tool_of(class: Class, dice: &mut Dice) -> usize {
    let all: Vec<usize> = (0..TOOLS.len()).filter(|tool| TOOLS[*tool].class == class).collect();
    all[usize::try_from(dice.within(0..all.len() as u64)).unwrap_or_default()]
}

impl Company {
    /// One step of a campaign, and when the next is due.
    pub(super) fn campaign(&mut self, at: u64, index: usize, step: u64) {
        let campaign = self.campaigns[index].clone();
        let account = self.accounts[usize::try_from(campaign.account).unwrap_or_default()].clone();
        let mut twist = Twist { campaign: Some(index), ..Twist::default() };
        let mut agent = 0;
        let mut tool = None;
        use CampaignKind as C;
        match campaign.kind {
            C::StolenToken => {
                twist.gateway = Some((account.gateway + 1) % self.plan.people);
                tool = Some(tool_of(Class::Read, &mut self.dice));
            }
            C::DeniedBurst => {
                twist.denied = true;
                tool = Some(tool_of(Class::Destructive, &mut self.dice));
            }
            C::DeniedThenAllowed => {
                twist.denied = step < campaign.steps / 2;
                agent = u64::from(!twist.denied);
                tool = Some(52);
            }
            C::Enumeration => tool = Some(usize::try_from(step).unwrap_or_default() % TOOLS.len()),
            C::ReadManyThenSend => {
                let sends = step % 6 == 5;
                tool = Some(if sends { 22 } else { tool_of(Class::Read, &mut self.dice) });
                twist.response_times = if sends { 1 } else { 8 };
                twist.request_bytes = sends.then_some(1 << 19);
            }
            C::DestructiveBurst => tool = Some(tool_of(Class::Destructive, &mut self.dice)),
            C::RunawayLoop => {
                tool = Some(12);
                twist.request_bytes = Some(211);
            }
            C::OffHours | C::RateSpike | C::DormantAwakened => tool = Some(tool_of(Class::Read, &mut self.dice)),
            C::LatencyShift => {
                tool = Some(42);
                (twist.slow_times, twist.fails_percent) = (4, 20);
            }
            C::CreepingScope => tool = Some(usize::try_from(step * 5 + 3).unwrap_or_default() % TOOLS.len()),
            C::RugPull if step > 0 => {
                twist.definition = 1_000_000 + index as u64;
                tool = Some(30);
            }
            C::RugPull => self.definition(at, index, &account, "files", "read_file", wire::DefinitionChange::Changed),
            C::ShadowServer => self.definition(at, index, &account, "helper", "fetch", wire::DefinitionChange::Seen),
        }
        if let Some(tool) = tool {
            self.call(at, &account, agent, tool, &twist);
        }
        self.campaigns[index].records += 1;
        if step + 1 < campaign.steps {
            let pause = self.pause(&campaign, step);
            self.schedule(at + pause, super::Actor::Campaign(index, step + 1));
        }
    }

    /// Until the next step: a working day holds what the pace says.
    fn pause(&mut self, campaign: &Campaign, step: u64) -> u64 {
        match campaign.kind {
            CampaignKind::CreepingScope => 5 * HOUR + self.dice.within(0..HOUR),
            CampaignKind::RunawayLoop => 4 * SECOND + self.dice.within(0..SECOND),
            CampaignKind::ReadManyThenSend if step % 6 == 4 => 2 * SECOND,
            _ => 60 * MINUTE / campaign.pace_quarters + self.dice.within(0..MINUTE),
        }
    }

    fn definition(
        &mut self,
        at: u64,
        index: usize,
        account: &Account,
        server: &str,
        tool: &str,
        change: wire::DefinitionChange,
    ) {
        let seen = change == wire::DefinitionChange::Seen;
        let record = Kind::ToolDefinition(wire::ToolDefinition {
            at,
            change: change as i32,
            action: wire::DefinitionAction::Warned as i32,
            server: server.to_owned(),
            target: Some(wire::tool_definition::Target::Tool(format!(
                "{tool}{}",
                if seen { format!("_{index}") } else { String::new() }
            ))),
            digest_before: (!seen).then(|| people::digest(7, 30, 0)),
            digest_after: Some(people::digest(8, index as u64, self.campaigns[index].records)),
            ..Default::default()
        });
        let received_at = at + account.lag_us + SECOND;
        self.give(Item { team: account.team, gateway: account.gateway, received_at, record, campaign: Some(index) });
    }
}
