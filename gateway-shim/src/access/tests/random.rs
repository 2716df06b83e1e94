//! Random policies: the quick decision is the contract's, and the records of a change say all of it.

use std::collections::BTreeSet;

use custody::{
    access::{Rules, State},
    wire::Decision,
};

use super::*;
use crate::{
    access::{
        plan::wire_rule,
        policy::{Agent, Limit, Member, OnChange, Rule, Scope, Server, Subject, Token},
    },
    testing::{Dice, seed},
};

fn id(number: u64) -> MemberId {
    MemberId([u8::try_from(number).unwrap(); 16])
}

fn some<T>(dice: &mut Dice, most: u64, mut one: impl FnMut(&mut Dice) -> T) -> Vec<T> {
    (0..dice.below(most + 1)).map(|_| one(dice)).collect()
}

fn pick(dice: &mut Dice, from: &[&str]) -> String {
    from[usize::try_from(dice.below(from.len() as u64)).unwrap()].to_owned()
}

fn group(dice: &mut Dice) -> String {
    format!("g{}", dice.below(5))
}

fn scope(dice: &mut Dice) -> Scope {
    const TOOLS: [&str; 12] = ["*", "a/*", "b/*", "*/x", "a/x", "a/y", "b/x", "a/x*", "*/*y", "a*/x", "c/", "a/*/z"];
    let mut tools = some(dice, 3, |dice| pick(dice, &TOOLS));
    tools.push(pick(dice, &TOOLS));
    let members: BTreeSet<_> = some(dice, 2, |dice| id(dice.below(6))).into_iter().collect();
    let groups = some(dice, 2, group).into_iter().collect();
    Scope { members, groups, tools }
}

/// A policy of whatever, which a checked text could have.
fn policy(dice: &mut Dice) -> Policy {
    const METHODS: [&str; 6] = ["tools/call", "*", "tools/*", "resources/read", "prompts/get", "*/list"];
    let mut policy = Policy { digest: [dice.below(256).to_le_bytes()[0]; 32], ..Policy::default() };
    for number in some(dice, 6, |dice| dice.below(6)) {
        let owner = (dice.below(4) == 0).then(|| id(dice.below(6)));
        let subject = (dice.below(4) == 0).then_some(Subject::Digest([7; 32]));
        let groups = some(dice, 3, group).into_iter().collect();
        policy.members.insert(id(number), Member { groups, owner, subject, revoked: dice.below(5) == 0 });
    }
    for number in some(dice, 3, |dice| 100 + dice.below(3)) {
        policy.agents.insert(id(number), Agent::default());
    }
    for name in some(dice, 3, |dice| pick(dice, &["a", "b", "c"])) {
        let on_change = if dice.below(2) == 0 { OnChange::Warn } else { OnChange::Quarantine };
        policy.servers.insert(name, Server { check_arguments: dice.below(2) == 0, on_change, ..Server::default() });
    }
    let mut ids: Vec<u64> = (0..12).collect();
    for organisation in [true, false] {
        for _ in 0..dice.below(6) {
            let number = ids.swap_remove(usize::try_from(dice.below(ids.len() as u64)).unwrap());
            let mut methods = some(dice, 2, |dice| pick(dice, &METHODS));
            methods.push(pick(dice, &METHODS));
            let allow = !organisation && dice.below(3) > 0;
            policy.rules.push(Rule {
                id: format!("r{number}").into(),
                allow,
                organisation,
                scope: scope(dice),
                methods,
            });
        }
    }
    for number in 0..dice.below(4) {
        policy.limits.push(Limit {
            id: format!("l{}", (number + dice.below(2) * 4)).into(),
            scope: scope(dice),
            shared: dice.below(2) == 0,
            calls_per_minute: Some(1 + dice.below(3)),
            calls_per_day: None,
            concurrent_calls: None,
            request_bytes_max: None,
            response_bytes_max: None,
        });
    }
    let members: Vec<MemberId> = policy.members.keys().copied().collect();
    for member in members {
        let token = Token {
            sha256: [1; 32],
            member,
            agent: id(100 + dice.below(3)),
            issued_at: 0,
            expires_at: 10 + dice.below(3),
            revoked: dice.below(4) == 0,
        };
        policy.tokens.insert([u8::try_from(dice.below(8)).unwrap(); 16], token);
    }
    policy
}

#[test]
fn the_quick_decision_is_the_contracts() {
    let seed = seed();
    let mut dice = Dice::new(seed);
    let somebody = alice("").1;
    let mut decided = std::collections::BTreeMap::<&str, u32>::new();
    for _ in 0..600 {
        let policy = policy(&mut dice);
        let rules = Rules(policy.rules.iter().map(wire_rule).collect());
        let compiled = Compiled::new(Arc::new(policy));
        for _ in 0..80 {
            let groups: BTreeSet<String> = some(&mut dice, 2, group).into_iter().collect();
            let caller = Caller { groups: groups.into_iter().collect(), member: id(dice.below(7)), ..somebody.clone() };
            let server = pick(&mut dice, &["a", "b", "c", "aa"]);
            let name = pick(&mut dice, &["x", "y", "xy", "", "x/z", "é"]);
            let name = (dice.below(4) > 0).then_some(name.as_str());
            let method = pick(&mut dice, &["tools/call", "tools/list", "resources/read", "prompts/get", "initialize"]);
            let asked = Ask { server: &server, method: &method, name, from_server: false, request_bytes: 0 };
            let (decision, rule) = rules.decide(&caller.member, &caller.groups, &server, name, &method);
            let judgement = compiled.judge(&caller, &asked);
            let expected = (decision == Decision::Allowed, rule);
            assert_eq!((judgement.allowed, &*judgement.rule), expected, "SEED={seed} {caller:?} {asked:?}");
            let reach = rules.may_reach(&caller.member, &caller.groups, &server);
            assert_eq!(compiled.may_reach(&caller, &server), reach, "SEED={seed} {caller:?} {server}");
            let kind = match rule.strip_prefix("shim/") {
                Some("session") => "session",
                Some(_) => "default",
                None if decision == Decision::Allowed => "allowed",
                None => "denied",
            };
            *decided.entry(kind).or_default() += 1;
        }
    }
    assert!(decided.len() == 4 && decided.values().all(|times| *times > 300), "{decided:?}");
}

/// While a change waits, nothing is allowed that either of both does not allow, and no more is refused than that.
#[test]
fn what_waits_narrows_and_does_no_more() {
    let seed = seed();
    let mut dice = Dice::new(seed);
    let somebody = alice("").1;
    let (mut narrowed, mut same) = (0, 0);
    for _ in 0..300 {
        let (old, new) = (Arc::new(policy(&mut dice)), Arc::new(policy(&mut dice)));
        let [before, after] = [&old, &new].map(|policy| Compiled::new(Arc::clone(policy)));
        let both = Compiled::narrowed(&[Arc::clone(&old), Arc::clone(&new)]);
        for _ in 0..40 {
            let member = id(dice.below(7));
            let groups = |policy: &Policy| {
                policy.members.get(&member).map(|member| member.groups.iter().cloned().collect()).unwrap_or_default()
            };
            let [caller, then] =
                [&old, &new].map(|policy| Caller { member, groups: groups(policy), ..somebody.clone() });
            let server = pick(&mut dice, &["a", "b", "c", "aa"]);
            let name = pick(&mut dice, &["x", "y", "xy", ""]);
            let method = pick(&mut dice, &["tools/call", "tools/list", "resources/read", "initialize"]);
            let asked =
                Ask { server: &server, method: &method, name: Some(&name), from_server: false, request_bytes: 0 };
            let (was, is, now) =
                (before.judge(&caller, &asked), after.judge(&then, &asked), both.judge(&caller, &asked));
            assert_eq!(now.allowed, was.allowed && is.allowed, "SEED={seed} {caller:?} {asked:?}");
            let rule = if was.allowed && !is.allowed { "shim/change-pending" } else { &*was.rule };
            assert_eq!((&*now.rule, now.policy), (rule, old.digest), "SEED={seed} {caller:?} {asked:?}");
            let reach = before.may_reach(&caller, &server) && after.may_reach(&then, &server);
            assert_eq!(both.may_reach(&caller, &server), reach, "SEED={seed} {caller:?} {server}");
            narrowed += u32::from(was.allowed && !is.allowed);
            same += u32::from(now.allowed);
        }
    }
    assert!(narrowed > 100 && same > 100, "{narrowed} {same}");
}

#[test]
fn the_records_of_a_change_say_all_of_it() {
    let seed = seed();
    let mut dice = Dice::new(seed);
    let why = Reason { actor: Actor::System("test".into()), account: None, code: "test".into(), ticket: String::new() };
    for _ in 0..600 {
        let (old, new) = (policy(&mut dice), policy(&mut dice));
        let records = |from: &Policy, to: &Policy, at, before| -> Vec<_> {
            plan(from, to).iter().map(|change| change.record(at, &why, before, to.digest)).collect()
        };
        let replayed = |records: &[custody::wire::AccessChange], mut state: State| {
            for change in records {
                // Each is a record that admit and every verifier take.
                let bytes = custody::record::encode(custody::wire::record::Kind::AccessChange(change.clone()));
                custody::record::check(&bytes).unwrap_or_else(|error| panic!("SEED={seed} {error:?} {change:?}"));
                state.replay(change);
            }
            state
        };
        let nothing = Policy::default();
        let first = replayed(&records(&nothing, &old, 1, None), State::default());
        let change = records(&old, &new, 2, Some(old.digest));
        // A crash after any of the records, and then all of them.
        let cut = usize::try_from(dice.below(change.len() as u64 + 1)).unwrap();
        let after = replayed(&change, replayed(&change[..cut], first));
        let whole = replayed(&records(&nothing, &new, 3, None), State::default());
        let of = |state: &State| {
            let limits: std::collections::BTreeMap<_, _> =
                state.limits.iter().map(|limit| (limit.id.clone(), limit.clone())).collect();
            (
                state.members.clone(),
                state.agents.clone(),
                state.servers.clone(),
                state.tokens.clone(),
                state.rules.clone(),
                limits,
            )
        };
        assert_eq!(of(&after), of(&whole), "SEED={seed} {old:?} {new:?}");
        assert_eq!((after.misfits, whole.misfits), (0, 0), "SEED={seed} {old:?} {new:?}");
        assert!(plan(&new, &new).is_empty());
    }
}

/// What a decision costs among few and among many; printed, because no time is certain on a machine that does more.
#[test]
fn many_members_and_tools_cost_little_more_than_few() {
    let policy = |members: u32, tools: u32| {
        let mut policy = Policy::default();
        for number in 0..members {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let groups = (0..3).map(|at| format!("g{}", (number + at * 7) % 50)).collect();
            policy.members.insert(MemberId(id), Member { groups, ..Member::default() });
        }
        // A grant for each tool to a group, one for each tenth member, and some denials for all.
        for number in 0..tools {
            let scope = Scope {
                groups: [format!("g{}", number % 50)].into(),
                tools: vec![format!("s{}/t{number}", number % 20)],
                ..Scope::default()
            };
            let methods = vec!["tools/call".to_owned()];
            policy.rules.push(Rule {
                id: format!("t{number}").into(),
                allow: true,
                organisation: false,
                scope,
                methods,
            });
        }
        for (number, member) in policy.members.keys().enumerate().filter(|(at, _)| at % 10 == 0) {
            let scope = Scope { members: [*member].into(), tools: vec!["s1/*".into()], ..Scope::default() };
            let methods = vec!["tools/call".to_owned()];
            policy.rules.push(Rule {
                id: format!("m{number}").into(),
                allow: true,
                organisation: false,
                scope,
                methods,
            });
        }
        Compiled::new(Arc::new(policy))
    };
    let mut dice = Dice::new(1);
    for (members, tools) in [(10, 10), (10_000, 1_000)] {
        let compiled = policy(members, tools);
        let caller = alice("").1;
        let mut times: Vec<u128> = Vec::new();
        let mut allowed = 0;
        for _ in 0..20_000 {
            let number = u32::try_from(dice.below(u64::from(members))).unwrap();
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            let member = MemberId(id);
            let groups = compiled.policy.members[&member].groups.iter().cloned().collect();
            let caller = Caller { member, groups, ..caller.clone() };
            let tool = dice.below(u64::from(tools));
            let (server, name) = (format!("s{}", tool % 20), format!("t{tool}"));
            let begun = std::time::Instant::now();
            let judgement = compiled.judge(&caller, &ask(&server, &name));
            times.push(begun.elapsed().as_nanos());
            allowed += u32::from(judgement.allowed);
        }
        times.sort_unstable();
        assert!(allowed > 100 && allowed < 19_900, "{allowed}");
        println!("{members} members, {tools} tools: p50 {} ns, p99 {} ns", times[10_000], times[19_800]);
    }
}
