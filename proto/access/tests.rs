//! Patterns fit as their plainest description says.

use super::*;
use crate::{
    testing::Rng,
    wire::{AccessAction, AccessChange},
};

/// The description itself, slow.
fn plainly(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', after @ ..] => (0..=text.len()).any(|at| plainly(after, &text[at..])),
        [wanted, after @ ..] => text.first() == Some(wanted) && plainly(after, &text[1..]),
    }
}

#[test]
fn a_star_stands_for_any_bytes() {
    let mut rng = Rng::for_test("a_star_stands_for_any_bytes");
    let (mut fit, mut not) = (0, 0);
    for _ in 0..50_000 {
        let mut word = |letters: &[u8], most| -> String {
            (0..rng.below(most)).map(|_| char::from(letters[rng.index(letters.len())])).collect()
        };
        let (pattern, text) = (word(b"ab*/", 7), word(b"ab/", 9));
        let expected = plainly(pattern.as_bytes(), text.as_bytes());
        assert_eq!(fits(&pattern, &text), expected, "{pattern} {text}");
        if expected { fit += 1 } else { not += 1 }
    }
    assert!(fit > 1_000 && not > 1_000, "{fit} {not}");
}

#[test]
fn a_pattern_is_of_a_server_and_of_a_name_there() {
    assert!(fits_tool("*", "mail", None) && fits_tool("*", "mail", Some("file:///x")));
    assert!(fits_tool("mail/*", "mail", None) && fits_tool("mail/*", "mail", Some("a/b")));
    assert!(fits_tool("mail/send", "mail", Some("send")));
    // No name of a tool reaches into the server's half, and no server's into the tool's.
    assert!(!fits_tool("mail/send", "mail/send", None) && !fits_tool("*/send", "mail", Some("x/send2")));
    assert!(!fits_tool("mail/send", "mail", None) && !fits_tool("mail/send", "mail2", Some("send")));
    assert!(
        fits_tool("*/delete_*", "mail", Some("delete_all")) && !fits_tool("*/delete_*", "mail", Some("Delete_all"))
    );
}

fn member(byte: u8) -> MemberId {
    MemberId([byte; 16])
}

fn rule(id: &str, effect: Decision, groups: &[&str], tools: &[&str], methods: &[&str]) -> AccessRule {
    let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    AccessRule {
        id: id.into(),
        effect: effect as i32,
        groups: all(groups),
        tools: all(tools),
        methods: all(methods),
        ..Default::default()
    }
}

#[test]
fn the_first_rule_that_applies_decides_and_nothing_else_allows() {
    let (allow, deny) = (Decision::Allowed, Decision::Denied);
    let rules = Rules(vec![
        rule("no-delete", deny, &[], &["*/delete_*"], &[]),
        rule("no-mail", deny, &["interns"], &["mail/*"], &["*"]),
        rule("staff", allow, &["staff"], &["mail/*", "files/read"], &[]),
        rule("resources", allow, &["staff"], &["files/*"], &["resources/*"]),
    ]);
    let decide = |groups: &[&str], server, name, method| {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        let (decision, rule) = rules.decide(&member(1), &groups, server, name, method);
        (decision == allow, rule.to_owned())
    };
    let call = |groups: &[&str], server, name| decide(groups, server, Some(name), "tools/call");
    assert_eq!(call(&["staff"], "mail", "send"), (true, "staff".into()));
    assert_eq!(call(&["staff"], "mail", "delete_all"), (false, "no-delete".into()));
    assert_eq!(call(&["staff", "interns"], "mail", "send"), (false, "no-mail".into()));
    assert_eq!(call(&["staff"], "files", "write"), (false, DEFAULT_DENY.into()));
    assert_eq!(call(&[], "mail", "send"), (false, DEFAULT_DENY.into()));
    assert_eq!(decide(&["staff"], "files", Some("file:///etc/x"), "resources/read"), (true, "resources".into()));
    assert_eq!(decide(&["staff"], "mail", Some("send"), "prompts/get"), (false, DEFAULT_DENY.into()));
    // A session with whom something may be called.
    assert_eq!(decide(&["staff"], "mail", None, "initialize"), (true, SESSION.into()));
    assert_eq!(decide(&["staff"], "other", None, "initialize"), (false, DEFAULT_DENY.into()));
    assert_eq!(decide(&["staff", "interns"], "mail", None, "tools/list"), (false, "no-mail".into()));
    assert_eq!(decide(&["staff"], "mail", None, "Tools/list"), (false, DEFAULT_DENY.into()));
}

#[test]
fn records_say_who_could_call_what() {
    let mut state = State::default();
    let (mut before, mut at) = (None, 10_u64);
    let mut tell = |state: &mut State, after: u8, changes: &[AccessChange]| {
        at += 10;
        for change in changes {
            let (policy_digest_before, policy_digest_after) = (before.clone(), vec![after; 32].into());
            state.replay(&AccessChange { at, policy_digest_before, policy_digest_after, ..change.clone() });
        }
        before = Some(vec![after; 32].into());
    };
    let change = |action: AccessAction| AccessChange {
        action: action as i32,
        member: Some(member(1).into()),
        token: Some(vec![7; 16].into()),
        agent: Some(member(2).into()),
        group: "staff".into(),
        ..Default::default()
    };
    let staff = rule("staff", Decision::Allowed, &["staff"], &["mail/*"], &[]);
    let none = rule("none", Decision::Denied, &[], &["*"], &[]);
    let place = |rule: &AccessRule, place| AccessChange {
        rule: Some(rule.clone()),
        place: Some(place),
        ..change(AccessAction::RuleAdded)
    };
    let issued = AccessChange { expires_at: Some(100), ..change(AccessAction::TokenIssued) };
    let first = [change(AccessAction::MemberAdded), change(AccessAction::GroupJoined), place(&staff, 0), issued];
    tell(&mut state, 1, &first);
    let asked = |state: &State, at| {
        let decided = state.decide(&member(1), at, "mail", Some("send"), "tools/call");
        decided.map(|(decision, rule)| (decision, rule.to_owned()))
    };
    let allowed = Some((Decision::Allowed, "staff".to_owned()));
    assert_eq!(asked(&state, 99), allowed);
    assert_eq!(asked(&state, 100), None, "expired");
    tell(&mut state, 2, &[place(&none, 0)]);
    assert_eq!(asked(&state, 99), Some((Decision::Denied, "none".into())));
    tell(&mut state, 3, &[place(&none, 1)]);
    assert_eq!(asked(&state, 99), allowed, "the rule was moved");
    tell(&mut state, 4, &[change(AccessAction::GroupLeft)]);
    assert_eq!(asked(&state, 99), Some((Decision::Denied, "none".into())));
    tell(&mut state, 5, &[change(AccessAction::MemberRevoked)]);
    tell(&mut state, 6, &[change(AccessAction::MemberAdded), change(AccessAction::GroupJoined)]);
    assert_eq!((asked(&state, 99), state.gaps), (None, 0), "tokens went with the member");
}

#[test]
fn what_is_missing_is_counted_and_what_a_crash_cut_short_is_not() {
    let digest = |byte: u8| Some(vec![byte; 32].into());
    let change = |at, before: Option<u8>, after: u8| AccessChange {
        at,
        action: AccessAction::MemberAdded as i32,
        member: Some(member(after).into()),
        policy_digest_before: before.and_then(digest),
        policy_digest_after: vec![after; 32].into(),
        ..Default::default()
    };
    let mut state = State::default();
    for (change, gaps, members) in [
        (change(1, None, 1), 0, 1),
        (change(2, None, 1), 0, 1),
        (change(3, Some(1), 2), 0, 2),
        (change(3, Some(1), 2), 0, 2),
        (change(4, Some(1), 2), 0, 2),
        (change(5, Some(7), 8), 1, 3),
        (change(6, Some(8), 9), 1, 4),
        (change(7, None, 4), 1, 1),
    ] {
        state.replay(&change);
        assert_eq!((state.gaps, state.members.len()), (gaps, members), "{}", change.at);
    }
}
