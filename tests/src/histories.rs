//! Seeded histories of access changes, each in an archive of its own with questions about it, for whoever reads them by FORMAT.md
//! 5.6: changes in one piece or in several, cut short and written again, given up, set back, lost, no longer kept, that do not
//! fit, and dated against their order or all at one time.

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use custody::{
    access::{IDENTITY_PROVIDER, State},
    id::MemberId,
    policy::Policy,
    record,
    wire::{
        AccessAction as Action, AccessChange, AccessRule, Decision, DropReason, OpeningReason, Role,
        access_change::Actor, record::Kind,
    },
};
use serde_json::{Value, json};

use crate::{
    dice::Dice,
    golden::{
        self, BEGINNING, DAY, keys,
        ledger::{Batch, Hooks, Ledger},
        objects, records, render,
    },
};

const WORKSPACE: &str = "alpha";
/// Questions about each archive, of a time and of what was between two.
const QUESTIONS: usize = 9;
const SECOND: u64 = 1_000_000;

type Digest = [u8; 32];

/// One gateway, and what its policy holds as far as nothing odd happened.
struct Gateway {
    label: &'static str,
    epoch: u32,
    state: State,
    digest: Option<Digest>,
}

/// How a change is written down.
#[derive(Clone, Copy)]
struct Change {
    at: u64,
    before: Option<Digest>,
    after: Digest,
}

struct Tale {
    dice: Dice,
    ledger: Ledger,
    gateways: Vec<Gateway>,
    digests: Vec<Digest>,
    /// Times about which a question is worth asking.
    times: Vec<u64>,
    last_at: u64,
}

/// Writes `count` histories below a folder, from this seed on: `archive/`, `policy.json`, and the questions in `access.json`.
///
/// # Errors
/// What the file system says.
pub fn write(folder: &Path, count: u64, seed: u64) -> io::Result<()> {
    (seed..seed + count).try_for_each(|seed| write_one(&folder.join(format!("access-{seed:05}")), seed))
}

fn write_one(folder: &Path, seed: u64) -> io::Result<()> {
    let mut tale = Tale::begin(seed);
    let steps = tale.dice.within(3..20);
    for _ in 0..steps {
        let who = tale.below(tale.gateways.len());
        tale.step(who);
    }
    tale.end();
    let mut objects = render::render(&tale.ledger, &mut render::Truth).objects;
    let (mut policy, mut as_of) = (golden::policy(), tale.ledger.now());
    if tale.one_in(3) {
        (policy, as_of) = (golden::short_lived_policy(), BEGINNING + 400 * DAY);
        tale.forget(&mut objects);
    }
    let asked = json!({ "as_of": as_of, "questions": tale.questions() });
    write_objects(folder, &objects, &policy)?;
    objects::write_one(&folder.join("access.json"), asked.to_string().as_bytes())
}

fn write_objects(folder: &Path, objects: &BTreeMap<String, Bytes>, policy: &Policy) -> io::Result<()> {
    objects::write_all(objects, &folder.join("archive"))?;
    objects::write_one(&folder.join("policy.json"), &golden::policy_bytes(policy))
}

fn said(action: Action) -> AccessChange {
    AccessChange { action: action as i32, ..AccessChange::default() }
}

fn id(label: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&keys::short(label)))
}

fn call(number: u64, at: u64, policy: Option<Digest>) -> Bytes {
    let access_policy_digest = policy.map(|digest| Bytes::copy_from_slice(&digest));
    record::encode(Kind::Call(custody::wire::Call { access_policy_digest, ..records::plain_call(number, at) })).into()
}

impl Tale {
    fn begin(seed: u64) -> Self {
        let mut l = Ledger::new(keys::ORIGIN, BEGINNING, Hooks::default());
        l.enrol(None, None, Role::Record, "record-1", "ledger");
        l.enrol(None, None, Role::Head, "head-1", "");
        l.enrol(None, None, Role::Log, "log-1", "");
        l.start_term();
        l.publish(0);
        l.create(WORKSPACE);
        let gateways = ["g1", "g2"].map(|label| {
            l.enrol(Some(WORKSPACE), None, Role::Gateway, label, label);
            Gateway { label, epoch: 0, state: State::default(), digest: None }
        });
        l.publish(0);
        let (dice, last_at) = (Dice::new(seed), l.now());
        Self { dice, ledger: l, gateways: gateways.into(), digests: Vec::new(), times: vec![last_at - SECOND], last_at }
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.dice.within(0..end as u64)).unwrap_or(0)
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.dice.within(0..times) == 0
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }

    fn some<T: Clone>(&mut self, all: &[T], one_in: u64) -> Vec<T> {
        all.iter().filter(|_| self.one_in(one_in)).cloned().collect()
    }

    /// The gateway sends these records, in the life that it has now.
    fn send(&mut self, who: usize, records: Vec<Bytes>, reason: Option<OpeningReason>) {
        let gateway = &self.gateways[who];
        let mut batch =
            Batch::new(gateway.label, &format!("{}/{}", gateway.label, gateway.epoch), records).intermittent();
        batch = reason.into_iter().fold(batch, Batch::reason);
        if self.one_in(25) {
            let lost = self.dice.within(1..4);
            batch = batch.dropped(lost, DropReason::SpoolFull);
        }
        self.ledger.submit_batch(WORKSPACE, batch);
        // By the gateway's clock.
        let now = self.ledger.now() - 20_000;
        self.times.push(now);
    }

    fn step(&mut self, who: usize) {
        let now = self.ledger.now();
        match self.dice.within(0..20) {
            0..=6 => self.change(who),
            7..=10 => self.cut_short(who),
            11 => self.say_anew(who),
            12 | 13 => {
                let digest = if self.one_in(6) { Some(keys::seed("no record's")) } else { self.gateways[who].digest };
                self.send(who, vec![call(1, now, digest)], None);
            }
            14 => self.begin_life(who),
            15 => {
                self.gateways[who].epoch += 1;
                let reason = self.of(&[OpeningReason::StateLost, OpeningReason::Rewound]);
                self.send(who, Vec::new(), Some(reason));
            }
            16 => self.send(who, Vec::new(), None),
            17 | 18 => self.ledger.cut_all(),
            _ => {
                let time = self.of(&[60 * SECOND, DAY]);
                self.ledger.wait(time);
            }
        }
    }

    /// A new life of the gateway goes on from the one before; now or with what it writes next.
    fn begin_life(&mut self, who: usize) {
        if self.one_in(4) {
            let gateway = &self.gateways[who];
            let epoch = format!("{}/{}", gateway.label, gateway.epoch);
            let last = Batch::new(gateway.label, &epoch, Vec::new()).intermittent().close();
            self.ledger.submit_batch(WORKSPACE, last);
        }
        self.gateways[who].epoch += 1;
        if self.one_in(2) {
            self.send(who, Vec::new(), None);
        }
    }

    fn digest(&mut self) -> Digest {
        if self.one_in(6) && !self.digests.is_empty() {
            let known = self.digests.clone();
            return self.of(&known);
        }
        let new = keys::seed(&format!("policy {}", self.digests.len()));
        self.digests.push(new);
        new
    }

    fn time(&mut self) -> u64 {
        let now = self.ledger.now();
        let at = match self.dice.within(0..12) {
            0 | 1 => self.last_at,
            2 => now - self.dice.within(0..60 * SECOND),
            3 => now + self.dice.within(0..10 * SECOND),
            _ => now,
        };
        self.last_at = at;
        self.times.push(at);
        at
    }

    /// What the next change of a gateway's policy is, and its records.
    fn draft(&mut self, who: usize) -> (Change, Vec<AccessChange>) {
        let mut before = self.gateways[who].digest.filter(|_| !self.one_in(8));
        if before.is_none() {
            self.gateways[who].state = State::default();
        } else if self.one_in(20) {
            before = Some(keys::seed("lost"));
        }
        let edits = if before.is_none() { 3..9 } else { 1..5 };
        let mut records: Vec<AccessChange> = (0..self.dice.within(edits)).map(|_| self.edit(who)).collect();
        if self.one_in(4) {
            records.push(said(Action::PolicyApplied));
        }
        (Change { at: self.time(), before, after: self.digest() }, records)
    }

    fn encode(&mut self, of: Change, records: &[AccessChange]) -> Vec<Bytes> {
        let actor = self.of(&["start", "uid:7", IDENTITY_PROVIDER]);
        let actor = if self.one_in(2) {
            Actor::ActorSystem(actor.into())
        } else {
            Actor::ActorMember(keys::short("ada").to_vec().into())
        };
        let whole = |part: &AccessChange| AccessChange {
            at: of.at,
            actor: Some(actor.clone()),
            reason: "review".to_owned(),
            ticket: "SEC-7".to_owned(),
            policy_digest_before: of.before.map(|digest| Bytes::copy_from_slice(&digest)),
            policy_digest_after: Bytes::copy_from_slice(&of.after),
            ..part.clone()
        };
        records.iter().map(|part| record::encode(Kind::AccessChange(whole(part))).into()).collect()
    }

    /// Writes a change down, in one piece or with something between two.
    fn write(&mut self, who: usize, of: Change, records: &[AccessChange]) {
        let mut encoded = self.encode(of, records);
        self.gateways[who].digest = Some(of.after);
        if encoded.len() > 1 && self.one_in(4) {
            let at = 1 + self.below(encoded.len() - 1);
            let rest = encoded.split_off(at);
            self.send(who, std::mem::replace(&mut encoded, rest), None);
            match self.dice.within(0..4) {
                0 => self.ledger.cut_all(),
                1 => self.send(who, vec![call(1, of.at, Some(of.after))], None),
                2 => self.send(1 - who, Vec::new(), None),
                _ => {}
            }
        }
        self.send(who, encoded, None);
    }

    fn change(&mut self, who: usize) {
        let (of, records) = self.draft(who);
        self.write(who, of, &records);
        if self.one_in(2) {
            let now = self.ledger.now();
            self.send(who, vec![call(2, now, Some(of.after))], None);
        }
    }

    /// A crash leaves the first records of a change; then it is written again, as far as that goes.
    fn cut_short(&mut self, who: usize) {
        let digest = self.gateways[who].digest;
        let (mut of, records) = self.draft(who);
        for _ in 0..self.dice.within(1..4) {
            let count = 1 + self.below(records.len());
            self.write(who, of, &records[..count]);
            self.gateways[who].digest = digest;
            if self.one_in(8) {
                self.send(who, vec![records::gateway_events(of.at).swap_remove(0)], None);
            }
            self.between_lives(who);
            of.at = self.time();
        }
        if !self.one_in(4) {
            self.write(who, of, &records);
        }
    }

    fn between_lives(&mut self, who: usize) {
        let (now, digest) = (self.ledger.now(), self.gateways[who].digest);
        match self.dice.within(0..12) {
            0 => self.ledger.cut_all(),
            1 => {
                self.gateways[who].epoch += 1;
                self.send(who, Vec::new(), Some(OpeningReason::Rewound));
            }
            2 => {
                self.begin_life(who);
                self.send(who, vec![call(3, now, Some(keys::seed("no record's")))], None);
            }
            3 => {
                self.begin_life(who);
                self.send(who, vec![call(3, now, digest)], None);
            }
            4 | 5 => {
                self.begin_life(who);
                self.say_anew(who);
            }
            // The same life: no crash at all.
            6 => {}
            _ => self.begin_life(who),
        }
    }

    /// A change that changes no policy, as of one that was given up.
    fn say_anew(&mut self, who: usize) {
        let Some(digest) = self.gateways[who].digest else { return };
        let records: Vec<AccessChange> = (0..self.dice.within(1..3)).map(|_| self.edit(who)).collect();
        let at = self.time();
        self.write(who, Change { at, before: Some(digest), after: digest }, &records);
    }

    fn edit(&mut self, who: usize) -> AccessChange {
        let made = if self.one_in(2) || self.gateways[who].state.members.is_empty() {
            self.edit_member(who)
        } else {
            self.edit_rest(who)
        };
        self.gateways[who].state.replay(&made);
        made
    }

    fn edit_member(&mut self, who: usize) -> AccessChange {
        let known: Vec<MemberId> = self.gateways[who].state.members.keys().copied().collect();
        let name = self.of(&["ada", "bob", "eve"]);
        // Now and then of who is no member.
        let member = if known.is_empty() || self.one_in(30) { id(name) } else { Some(self.of(&known).into()) };
        let of = |action| AccessChange { member: member.clone(), ..said(action) };
        let token = id(&format!("token {}", self.dice.within(0..5)));
        let agent = if self.one_in(8) { None } else { id("agent builder") };
        let until = Some(self.ledger.now() + self.dice.within(0..120 * SECOND)).filter(|_| !self.one_in(20));
        let group = self.of(&["dev", "ops"]).to_owned();
        match self.dice.within(0..12) {
            _ if known.is_empty() => AccessChange { member: id(name), ..said(Action::MemberAdded) },
            0 | 1 => {
                let labels = if self.one_in(3) { vec![IDENTITY_PROVIDER.to_owned()] } else { Vec::new() };
                let owner = id("ada").filter(|_| self.one_in(4));
                AccessChange { member: id(name), owner, labels, ..said(Action::MemberAdded) }
            }
            2 => of(Action::MemberRevoked),
            3..=5 => AccessChange { group, ..of(Action::GroupJoined) },
            6 => AccessChange { group, ..of(Action::GroupLeft) },
            7..=9 => AccessChange { token, agent, expires_at: until, ..of(Action::TokenIssued) },
            10 => {
                AccessChange { token, agent, expires_at: until.filter(|_| self.one_in(2)), ..of(Action::TokenRotated) }
            }
            _ => AccessChange { token, agent, ..of(Action::TokenRevoked) },
        }
    }

    fn edit_rest(&mut self, who: usize) -> AccessChange {
        let server = self.of(&["files", "mail"]).to_owned();
        let agent = id(self.of(&["agent builder", "agent tester"]));
        let labels = self.some(&["owner:ops".to_owned(), "effect:send".to_owned()], 2);
        match self.dice.within(0..12) {
            0..=5 => {
                let (rule, rules) = (self.rule(), &self.gateways[who].state.rules.0);
                let others = rules.iter().filter(|known| known.id != rule.id).count();
                // Now and then past the end, or nowhere.
                let end = others + 1 + usize::from(self.one_in(30));
                let place = u32::try_from(self.below(end)).ok().filter(|_| !self.one_in(40));
                AccessChange { rule: Some(rule), place, ..said(Action::RuleAdded) }
            }
            6 => AccessChange { rule: Some(self.rule()), ..said(Action::RuleRemoved) },
            7 => AccessChange { rule: Some(self.limit()), ..said(Action::LimitChanged) },
            8 => AccessChange { rule: Some(self.limit()), ..said(Action::LimitRemoved) },
            9 => AccessChange { server, labels, ..said(Action::ServerChanged) },
            10 => AccessChange { server, ..said(Action::ServerRemoved) },
            _ => AccessChange { agent, ..said(self.of(&[Action::AgentAdded, Action::AgentRemoved])) },
        }
    }

    fn rule(&mut self) -> AccessRule {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        AccessRule {
            id: format!("r{}", self.dice.within(0..5)),
            effect: self.of(&[Decision::Allowed, Decision::Allowed, Decision::Denied]) as i32,
            members: self.some(&["ada", "bob", "eve"].map(|name| keys::short(name).to_vec().into()), 3),
            groups: self.some(&texts(&["dev", "ops"]), 3),
            tools: self.some(&texts(&["files/*", "*/rm", "mail/send", "mail", "f*s/r*d", "*/*", "*"]), 4),
            methods: self.some(&texts(&["tools/call", "*", "resources/*", "ping", "*/list"]), 5),
            organisation: self.one_in(4),
            ..AccessRule::default()
        }
    }

    fn limit(&mut self) -> AccessRule {
        AccessRule {
            id: format!("r{}", self.dice.within(0..2)),
            effect: Decision::Allowed as i32,
            tools: vec!["*".to_owned()],
            calls_per_minute: self.dice.within(0..60),
            response_bytes_max: self.dice.within(0..2) * 4_096,
            shared: self.one_in(2),
            ..AccessRule::default()
        }
    }

    fn end(&mut self) {
        for who in 0..self.gateways.len() {
            if self.one_in(2) {
                let (now, digest) = (self.ledger.now(), self.gateways[who].digest);
                self.send(who, vec![call(4, now, digest)], None);
            }
        }
        self.ledger.cut_all();
        self.ledger.publish(0);
    }

    /// Some segments are past their retention.
    fn forget(&mut self, objects: &mut BTreeMap<String, Bytes>) {
        let folder = format!("workspaces/{}/segments/", keys::workspace(WORKSPACE));
        let names: Vec<String> = objects.keys().filter(|name| name.starts_with(&folder)).cloned().collect();
        for name in self.some(&names, 3) {
            objects.remove(&name);
        }
    }

    fn questions(&mut self) -> Vec<Value> {
        let times = self.times.clone();
        let mut questions = Vec::new();
        for number in 0..QUESTIONS {
            let mut some = || self.of(&times) + self.dice.within(0..3) - 1;
            let (one, other) = (some(), some());
            let tool = ["files/read", "files/rm", "mail/send"].get(self.below(5));
            let method = self.of(&["tools/call", "tools/call", "resources/read", "ping", "tools/list"]);
            let method = if tool.is_some() { method } else { "tools/call" };
            questions.push(if number % 3 == 2 {
                json!({ "at": null, "between": [one.min(other), one.max(other)], "tool": tool, "method": method })
            } else {
                json!({ "at": one, "between": null, "tool": tool, "method": method })
            });
        }
        questions
    }
}
