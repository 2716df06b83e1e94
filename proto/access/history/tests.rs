//! What was in force at any place and any time is what a model says that was told of each change by hand.

use bytes::Bytes;

use super::*;
use crate::{
    access::{Holder, Member, Rules},
    id::MemberId,
    testing::Rng,
    wire::{AccessAction as Action, AccessRule, access_change::Actor},
};

/// A policy and all that makes changes of it.
struct World {
    rng: Rng,
    /// What the policy holds, changed by hand.
    model: State,
    digest: Option<[u8; 32]>,
    told: Vec<Told>,
    position: u64,
}

/// One change as it was written.
struct Told {
    at: u64,
    records: Vec<AccessChange>,
    /// Which life of the gateway: a crash ends one.
    epoch: u8,
    /// What is in force once it was, whatever comes later.
    in_force: (State, Option<[u8; 32]>),
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Real,
    Anew,
    CutShort,
    Again,
    SaidAnew,
}

fn id(number: u64) -> MemberId {
    MemberId([u8::try_from(number).unwrap(); 16])
}

fn some_rule(rng: &mut Rng) -> AccessRule {
    AccessRule {
        id: format!("r{}", rng.below(5)),
        effect: 1 + i32::from(rng.one_in(2)),
        tools: vec![format!("s{}/*", rng.below(4))],
        ..Default::default()
    }
}

impl World {
    fn new(rng: Rng) -> Self {
        Self { rng, model: State::default(), digest: None, told: Vec::new(), position: 0 }
    }

    /// Some part of the policy changes: its record, and the model by hand.
    fn edit(&mut self) -> Option<AccessChange> {
        if self.rng.one_in(2) { self.edit_member() } else { self.edit_rest() }
    }

    fn edit_member(&mut self) -> Option<AccessChange> {
        let World { rng, model, .. } = self;
        let members: Vec<MemberId> = model.members.keys().copied().collect();
        let tokens: Vec<Bytes> = model.tokens.keys().cloned().collect();
        let change = |action: Action| AccessChange { action: action as i32, ..Default::default() };
        let who = if members.is_empty() { id(0) } else { members[rng.index(members.len())] };
        let of = |action, member: MemberId| AccessChange { member: Some(member.into()), ..change(action) };
        Some(match rng.below(7) {
            0 => {
                let (member, owner) = (id(rng.below(5)), rng.one_in(3).then(|| id(9)));
                model.members.insert(member, Member { owner, ..Member::default() });
                AccessChange { owner: owner.map(Into::into), ..of(Action::MemberAdded, member) }
            }
            1 => {
                model.members.remove(&who)?;
                model.tokens.retain(|_, holder| holder.member != who);
                of(Action::MemberRevoked, who)
            }
            2 | 3 => {
                let group = format!("g{}", rng.below(3));
                let groups = &mut model.members.get_mut(&who)?.groups;
                let joined = groups.insert(group.clone()) || !groups.remove(&group);
                AccessChange { group, ..of(if joined { Action::GroupJoined } else { Action::GroupLeft }, who) }
            }
            4 => {
                model.members.get(&who)?;
                let (token, expires_at) = (Bytes::from(vec![u8::try_from(rng.below(6)).unwrap(); 16]), rng.below(9));
                model.tokens.insert(token.clone(), Holder { member: who, agent: None, expires_at });
                AccessChange { token: Some(token), expires_at: Some(expires_at), ..of(Action::TokenIssued, who) }
            }
            _ => {
                let token = tokens.get(rng.index(tokens.len().max(1)))?.clone();
                let until = rng.one_in(2).then(|| rng.below(9));
                match until {
                    Some(until) => model.tokens.get_mut(&token)?.expires_at = until,
                    None => drop(model.tokens.remove(&token)),
                }
                let action = if until.is_some() || rng.one_in(2) { Action::TokenRotated } else { Action::TokenRevoked };
                AccessChange { token: Some(token), expires_at: until, ..change(action) }
            }
        })
    }

    fn edit_rest(&mut self) -> Option<AccessChange> {
        let World { rng, model, .. } = self;
        let change = |action: Action| AccessChange { action: action as i32, ..Default::default() };
        Some(match rng.below(5) {
            0 | 1 => {
                let rule = some_rule(rng);
                model.rules.0.retain(|known| known.id != rule.id);
                if rng.one_in(4) {
                    return Some(AccessChange { rule: Some(rule), ..change(Action::RuleRemoved) });
                }
                let place = rng.index(model.rules.0.len() + 1);
                model.rules.0.insert(place, rule.clone());
                let place = u32::try_from(place).ok();
                AccessChange { rule: Some(rule), place, ..change(Action::RuleAdded) }
            }
            2 => {
                let limit = some_rule(rng);
                match model.limits.iter_mut().find(|known| known.id == limit.id) {
                    Some(_) if rng.one_in(2) => {
                        model.limits.retain(|known| known.id != limit.id);
                        return Some(AccessChange { rule: Some(limit), ..change(Action::LimitRemoved) });
                    }
                    Some(known) => *known = limit.clone(),
                    None => model.limits.push(limit.clone()),
                }
                AccessChange { rule: Some(limit), ..change(Action::LimitChanged) }
            }
            3 => {
                let (server, labels) = (format!("s{}", rng.below(3)), vec![format!("owner:{}", rng.below(3))]);
                if rng.one_in(3) {
                    model.servers.remove(&server);
                    return Some(AccessChange { server, ..change(Action::ServerRemoved) });
                }
                model.servers.insert(server.clone(), labels.clone());
                AccessChange { server, labels, ..change(Action::ServerChanged) }
            }
            _ => {
                let agent = id(100 + rng.below(3));
                let known = model.agents.insert(agent) || !model.agents.remove(&agent);
                let action = if known { Action::AgentAdded } else { Action::AgentRemoved };
                AccessChange { agent: Some(agent.into()), ..change(action) }
            }
        })
    }

    /// All that the policy holds.
    fn whole(&self) -> Vec<AccessChange> {
        let change = |action: Action| AccessChange { action: action as i32, ..Default::default() };
        let of = |action, member: &MemberId| AccessChange { member: Some((*member).into()), ..change(action) };
        let mut all = Vec::new();
        for (member, said) in &self.model.members {
            all.push(AccessChange { owner: said.owner.map(Into::into), ..of(Action::MemberAdded, member) });
            let joined = |group: &String| AccessChange { group: group.clone(), ..of(Action::GroupJoined, member) };
            all.extend(said.groups.iter().map(joined));
        }
        all.extend(
            self.model
                .agents
                .iter()
                .map(|agent| AccessChange { agent: Some((*agent).into()), ..change(Action::AgentAdded) }),
        );
        all.extend(self.model.tokens.iter().map(|(token, holder)| AccessChange {
            token: Some(token.clone()),
            expires_at: Some(holder.expires_at),
            ..of(Action::TokenIssued, &holder.member)
        }));
        all.extend((0..).zip(&self.model.rules.0).map(|(place, rule)| AccessChange {
            rule: Some(rule.clone()),
            place: Some(place),
            ..change(Action::RuleAdded)
        }));
        all.extend(
            self.model
                .limits
                .iter()
                .map(|limit| AccessChange { rule: Some(limit.clone()), ..change(Action::LimitChanged) }),
        );
        all.extend(self.model.servers.iter().map(|(server, labels)| AccessChange {
            server: server.clone(),
            labels: labels.clone(),
            ..change(Action::ServerChanged)
        }));
        all.push(change(Action::PolicyApplied));
        all
    }

    fn tell(&mut self, kind: Kind, records: &[AccessChange], digests: (Option<[u8; 32]>, [u8; 32]), model: State) {
        // A clock that goes forward, but for when it does not; no two changes have one time.
        let count = self.told.len() as u64;
        let at = (count + if self.rng.one_in(6) { self.rng.below(20) } else { 10 }) * 1_000 + count;
        let bytes = |digest: [u8; 32]| Bytes::copy_from_slice(&digest);
        let whole = |change: &AccessChange| AccessChange {
            at,
            actor: Some(Actor::ActorSystem("test".into())),
            reason: "test".into(),
            policy_digest_before: digests.0.map(bytes),
            policy_digest_after: bytes(digests.1),
            ..change.clone()
        };
        let digest = if kind == Kind::CutShort { self.digest } else { Some(digests.1) };
        let last = self.told.last();
        let crashed = matches!(kind, Kind::Again) || last.is_some_and(|last| last.kind == Kind::CutShort);
        let epoch = last.map_or(0, |last| last.epoch.wrapping_add(u8::from(crashed)));
        self.told.push(Told {
            at,
            records: records.iter().map(whole).collect(),
            epoch,
            in_force: (model, digest),
            kind,
        });
        self.digest = digest;
    }

    /// Something happens at the gateway.
    fn step(&mut self) {
        let old = self.model.clone();
        let mut next = [0; 32];
        next[..8].copy_from_slice(&(self.told.len() as u64 + 1).to_be_bytes());
        let Some(before) = self.digest.filter(|_| !self.rng.one_in(25)) else {
            let all = self.whole();
            return self.tell(Kind::Anew, &all, (None, next), old);
        };
        if self.rng.one_in(8)
            && let Some(said) = self.said_anew()
        {
            return self.tell(Kind::SaidAnew, &said, (Some(before), before), old);
        }
        let edits: Vec<AccessChange> = (0..=self.rng.below(4)).filter_map(|_| self.edit()).collect();
        let model = self.model.clone();
        if edits.is_empty() {
            return;
        }
        if edits.len() > 1 && self.rng.one_in(2) {
            for _ in 0..=self.rng.below(2) {
                let cut = 1 + self.rng.index(edits.len() - 1);
                self.tell(Kind::CutShort, &edits[..cut], (Some(before), next), old.clone());
                self.model = old.clone();
                if self.rng.one_in(3)
                    && let Some(said) = self.said_anew()
                {
                    self.tell(Kind::SaidAnew, &said, (Some(before), before), old.clone());
                }
            }
            self.model = model.clone();
        }
        self.tell(Kind::Real, &edits, (Some(before), next), model.clone());
        if edits.len() == 1 && self.rng.one_in(4) {
            self.tell(Kind::Again, &edits, (Some(before), next), model);
        }
    }

    /// Some member with the groups that it has.
    fn said_anew(&mut self) -> Option<Vec<AccessChange>> {
        let members: Vec<MemberId> = self.model.members.keys().copied().collect();
        let member = *members.get(self.rng.index(members.len().max(1)))?;
        let whole = self.whole();
        let of = whole.into_iter().filter(|change| {
            change.member.as_deref() == Some(member.as_ref())
                && matches!(change.action(), Action::MemberAdded | Action::GroupJoined)
        });
        Some(of.collect())
    }

    fn history(&mut self, without: Option<usize>) -> History {
        let mut history = History::default();
        for (_, told) in self.told.iter().enumerate().filter(|(at, _)| Some(*at) != without) {
            for change in &told.records {
                self.position += 1;
                let epoch = Epoch([told.epoch; 16]);
                history.push(Recorded { position: self.position, received_at: 0, epoch, change: change.clone() });
            }
        }
        history
    }
}

type Parts<'a> = (
    &'a std::collections::BTreeMap<MemberId, Member>,
    &'a BTreeSet<MemberId>,
    &'a std::collections::BTreeMap<String, Vec<String>>,
    &'a std::collections::BTreeMap<Bytes, Holder>,
    &'a Rules,
    &'a Vec<AccessRule>,
);

fn parts(state: &State) -> Parts<'_> {
    (&state.members, &state.agents, &state.servers, &state.tokens, &state.rules, &state.limits)
}

#[test]
fn what_was_in_force_is_what_a_model_says_at_every_place_and_time() {
    let mut rng = Rng::for_test("what_was_in_force_is_what_a_model_says_at_every_place_and_time");
    let mut kinds = std::collections::BTreeMap::<String, u32>::new();
    let nothing = State::default();
    for _ in 0..150 {
        let mut world = World::new(Rng::new(rng.next()));
        (0..40).for_each(|_| world.step());
        let history = world.history(None);
        let changes = history.changes();
        assert_eq!(changes.len(), world.told.len());
        for (count, told) in (1..).zip(&world.told) {
            let state = in_force(changes.iter().take(count));
            assert_eq!(parts(&state), parts(&told.in_force.0), "change {count}, {:?}", told.kind);
            assert_eq!((state.digest, state.gaps, state.misfits), (told.in_force.1, 0, 0), "change {count}");
            assert!(state.is_whole());
            assert_eq!(changes[count - 1].cut_short, told.kind == Kind::CutShort, "change {count}");
            *kinds.entry(format!("{:?}", told.kind)).or_default() += 1;
            // Of a time: the last one that was made by then, wherever it is.
            let at = world.told[rng.index(world.told.len())].at + rng.below(2);
            let last = world.told.iter().rposition(|told| told.at <= at);
            let expected = last.map(|last| &world.told[last].in_force);
            let found = history.at(at);
            assert_eq!(found.digest, expected.and_then(|(_, digest)| *digest));
            assert_eq!(parts(&found), parts(expected.map_or(&nothing, |(model, _)| model)));
        }
    }
    assert!(kinds.len() == 5 && kinds.values().all(|times| *times > 50), "{kinds:?}");
}

#[test]
fn a_change_that_is_missing_is_noticed_until_all_is_said_anew() {
    let mut rng = Rng::for_test("a_change_that_is_missing_is_noticed_until_all_is_said_anew");
    let (mut noticed, mut healed) = (0, 0);
    for _ in 0..400 {
        let mut world = World::new(Rng::new(rng.next()));
        (0..30).for_each(|_| world.step());
        let gone = rng.index(world.told.len() - 1);
        let [missing, next] = [&world.told[gone], &world.told[gone + 1]];
        // What was written again, or will be, is not missing; nor need anybody miss it if all is said anew at once.
        let odd = |kind| matches!(kind, Kind::Again | Kind::SaidAnew | Kind::CutShort);
        let before_is_odd =
            gone > 0 && world.told[gone - 1].kind != Kind::Real && world.told[gone - 1].kind != Kind::Anew;
        if odd(missing.kind) || next.kind == Kind::Anew || next.kind == Kind::Again || before_is_odd {
            continue;
        }
        let anew = world.told.iter().skip(gone + 1).position(|told| told.kind == Kind::Anew).map(|at| gone + 1 + at);
        let history = world.history(Some(gone));
        let changes = history.changes();
        for count in gone + 1..=changes.len() {
            let state = in_force(changes.iter().take(count));
            // Without the one that is gone all that follow are one place further on.
            let is_whole = anew.is_some_and(|anew| count >= anew);
            let only_cut_short = changes.iter().take(count).skip(gone).all(|change| change.cut_short);
            if only_cut_short {
                continue;
            }
            assert_eq!(state.is_whole(), is_whole, "{gone} is gone, {count} of {} count, anew {anew:?}", changes.len());
            if is_whole { healed += 1 } else { noticed += 1 }
        }
    }
    assert!(noticed > 500 && healed > 500, "{noticed} {healed}");
}

#[test]
fn a_record_that_does_not_fit_is_counted() {
    let digests = |change: AccessChange| AccessChange {
        policy_digest_before: Some(vec![1; 32].into()),
        policy_digest_after: vec![2; 32].into(),
        ..change
    };
    let change = |action: Action| AccessChange { action: action as i32, ..Default::default() };
    let member = |number| Some(id(number).into());
    let rule = || Some(AccessRule { id: "r".into(), ..Default::default() });
    let mut begun = State::default();
    begun.replay(&AccessChange {
        member: member(1),
        policy_digest_after: vec![1; 32].into(),
        ..change(Action::MemberAdded)
    });
    assert!(begun.is_whole());
    let token = || Some(vec![3; 16].into());
    for (fits, odd) in [
        (true, AccessChange { member: member(1), group: "g".into(), ..change(Action::GroupJoined) }),
        (false, AccessChange { member: member(2), group: "g".into(), ..change(Action::GroupJoined) }),
        (false, AccessChange { member: member(1), ..change(Action::GroupLeft) }),
        (true, AccessChange { member: member(1), token: token(), expires_at: Some(9), ..change(Action::TokenIssued) }),
        (false, AccessChange { member: member(2), token: token(), expires_at: Some(9), ..change(Action::TokenIssued) }),
        (false, AccessChange { member: member(1), token: token(), ..change(Action::TokenIssued) }),
        (true, AccessChange { token: token(), ..change(Action::TokenRevoked) }),
        (false, change(Action::TokenRotated)),
        (true, AccessChange { rule: rule(), place: Some(0), ..change(Action::RuleAdded) }),
        (false, AccessChange { rule: rule(), place: Some(1), ..change(Action::RuleAdded) }),
        (false, AccessChange { rule: rule(), ..change(Action::RuleAdded) }),
        (true, AccessChange { rule: rule(), ..change(Action::RuleRemoved) }),
        (false, change(Action::LimitChanged)),
        (false, change(Action::MemberRevoked)),
        (false, change(Action::AgentAdded)),
        (false, change(Action::ServerRemoved)),
        (true, change(Action::PolicyApplied)),
    ] {
        let mut state = begun.clone();
        state.replay(&digests(odd.clone()));
        assert_eq!((state.is_whole(), state.gaps), (fits, 0), "{odd:?}");
    }
}
