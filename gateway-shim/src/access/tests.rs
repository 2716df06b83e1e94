//! What the endpoint is told: who calls, whether it may, and how much of it.

use custody::id::hex;

use super::*;

mod faults;
mod random;

const ALICE: &str = "a11ce000000000000000000000000001";
const BOB: &str = "b0b00000000000000000000000000001";
const AGENT: &str = "a9000000000000000000000000000001";
/// 2096-11-22: what asks the clock must find no token's end behind it.
const NOW: u64 = 4_004_388_000_000_000;

/// A token of a member in a policy's text.
fn token_text(token: &OneTimeToken, member: &str, more: &str) -> String {
    format!(
        "[[tokens]]\nid = \"{}\"\nsha256 = \"{}\"\nmember = \"{member}\"\nagent = \"{AGENT}\"\nissued_at = \
         2096-11-01T00:00:00Z\nexpires_at = 2096-12-01T00:00:00Z\n{more}\n",
        hex(&token.id()),
        hex(&token.sha256())
    )
}

/// A policy of two members with these rules; Alice is staff.
fn policy_text(rules: &str, tokens: &str) -> String {
    format!(
        "version = 1\n[members.{ALICE}]\ngroups = [\"staff\"]\n[members.{BOB}]\n[agents.{AGENT}]\n{rules}\n{tokens}"
    )
}

/// Puts another text in force.
pub(crate) fn put_in_force(access: &Access, text: &str) {
    access.swap(Compiled::new(Arc::new(Policy::parse(text, None).unwrap())));
}

/// A policy of these rules, and Alice.
fn alice(rules: &str) -> (Access, Caller) {
    let token = OneTimeToken::random();
    let access = Access::of(&policy_text(rules, &token_text(&token, ALICE, "")), None).unwrap();
    let caller = access.authenticate(Some(&format!("Bearer {}", token.reveal())), NOW).unwrap();
    (access, caller)
}

fn ask<'a>(server: &'a str, name: &'a str) -> Ask<'a> {
    Ask { server, method: "tools/call", name: Some(name), from_server: false, request_bytes: 0 }
}

const STAFF: &str = "[[rules]]\nid = \"staff\"\neffect = \"allow\"\ngroups = [\"staff\"]\ntools = [\"mail/*\"]\n";

#[test]
fn the_first_rule_that_fits_decides_and_is_named() {
    let deny = "[[rules]]\nid = \"no-delete\"\neffect = \"deny\"\neveryone = true\ntools = [\"*/delete_*\"]\n";
    let (access, caller) = alice(&format!("{deny}{STAFF}"));
    let decided = |server, name| {
        let judgement = access.judge(&caller, &ask(server, name));
        assert_eq!(judgement.policy, access.digest());
        (judgement.allowed, judgement.rule.to_string())
    };
    assert_eq!(decided("mail", "send"), (true, "staff".into()));
    assert_eq!(decided("mail", "delete_all"), (false, "no-delete".into()));
    assert_eq!(decided("files", "read"), (false, "shim/default-deny".into()));
    assert!(access.may_reach(&caller, "mail") && !access.may_reach(&caller, "files"));
    let list = Ask { method: "tools/list", name: None, ..ask("mail", "") };
    assert_eq!(access.judge(&caller, &list).rule.as_ref(), "shim/session");
    assert!(!access.judge(&caller, &Ask { server: "files", ..list }).allowed);
}

#[test]
fn the_organisations_rules_stand_above() {
    let above =
        "version = 1\n[[rules]]\nid = \"org-no-send\"\neffect = \"deny\"\neveryone = true\ntools = [\"*/send\"]\n";
    let text = policy_text(STAFF, "");
    let access = Access::of(&text, Some(above)).unwrap();
    let caller =
        Caller { groups: ["staff".to_owned()].into(), ..Caller::anybody(MemberId::from_hex(ALICE).unwrap(), None) };
    assert_eq!(access.judge(&caller, &ask("mail", "send")).rule.as_ref(), "org-no-send");
    assert_eq!(access.judge(&caller, &ask("mail", "read")).rule.as_ref(), "staff");
    assert_ne!(access.digest(), Access::of(&text, None).unwrap().digest());
}

#[test]
fn a_token_is_known_by_its_secret_and_nothing_else_is_said_of_it() {
    let tokens = [(); 5].map(|()| OneTimeToken::random());
    let [good, revoked, of_revoked, expired, unknown] = &tokens;
    let carol = "ca501000000000000000000000000001";
    let all = [
        token_text(good, ALICE, ""),
        token_text(revoked, ALICE, "revoked = true"),
        token_text(of_revoked, carol, ""),
        token_text(expired, BOB, "").replace("2096-12-01", "2096-11-02"),
    ]
    .concat();
    let members = format!("{STAFF}[members.{carol}]\nrevoked = true\n");
    let access = Access::of(&policy_text(&members, &all), None).unwrap();
    let said = |authorization: &str| {
        let answer = access.authenticate(Some(authorization), NOW);
        answer.map(|caller| caller.member.to_string()).map_err(|refused| (refused.kind, refused.caller.is_some()))
    };
    let bearer = |token: &OneTimeToken| format!("Bearer {}", token.reveal());
    assert_eq!(said(&bearer(good)), Ok(ALICE.to_owned()));
    assert_eq!(said(&bearer(good).replace("Bearer", "bearer")), Ok(ALICE.to_owned()));
    assert_eq!(said(&bearer(revoked)), Err((Why::Revoked, true)));
    assert_eq!(said(&bearer(of_revoked)), Err((Why::Revoked, true)));
    assert_eq!(said(&bearer(expired)), Err((Why::Expired, true)));
    assert_eq!(said(&bearer(unknown)), Err((Why::Unknown, false)));
    // Whoever knows the id alone learns nothing of the token: not even that it was revoked.
    for token in &tokens[..4] {
        let secret = bearer(unknown).rsplit_once('_').unwrap().1.to_owned();
        let wrong = format!("Bearer cst_{}_{secret}", hex(&token.id()));
        assert_eq!(said(&wrong), Err((Why::Wrong, true)));
    }
    for malformed in ["", "Bearer", "Bearer ", "Basic eDp5", &good.reveal(), &bearer(good)[..90], "Bearer cst__"] {
        assert_eq!(said(malformed), Err((Why::Malformed, false)), "{malformed}");
    }
    assert_eq!(access.authenticate(None, NOW).unwrap_err().kind, Why::Absent);
    let nothing_shown = format!("{access:?} {:?}", access.authenticate(Some(&bearer(good)), NOW));
    for token in &tokens {
        let secret = token.reveal().rsplit_once('_').unwrap().1.to_owned();
        assert!(!nothing_shown.contains(&secret) && !nothing_shown.contains(&hex(&token.sha256())));
    }
}

/// The body of a request may come slowly: whose time is over by then gets nothing through.
#[test]
fn a_token_that_ended_since_its_request_began_lets_nothing_through() {
    let token = OneTimeToken::random();
    // One whose end is behind every clock.
    let text = policy_text(STAFF, &token_text(&token, ALICE, "")).replace("2096", "2025");
    let access = Access::of(&text, None).unwrap();
    let then = NOW - 71 * 365 * policy::DAY_US - 18 * policy::DAY_US;
    let caller = access.authenticate(Some(&format!("Bearer {}", token.reveal())), then).unwrap();
    let judgement = access.judge(&caller, &ask("mail", "send"));
    assert_eq!(
        (judgement.allowed, judgement.nobody, &*judgement.rule),
        (false, Some(Why::Expired), Why::Expired.rule())
    );
    assert!(!access.may_reach(&caller, "mail"));
}

#[test]
fn a_change_cuts_whom_it_is_about_and_nobody_else() {
    let (mine, others) = (OneTimeToken::random(), OneTimeToken::random());
    let rules = "[[rules]]\nid = \"all\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n";
    let tokens = |more: &str| [token_text(&mine, ALICE, more), token_text(&others, BOB, "")].concat();
    let access = Access::of(&policy_text(rules, &tokens("")), None).unwrap();
    let caller = |token: &OneTimeToken| access.authenticate(Some(&format!("Bearer {}", token.reveal())), NOW).unwrap();
    let (alice, bob) = (caller(&mine), caller(&others));
    let mut changes = access.changes();
    let still = |caller, now| access.still_allowed(caller, &ask("mail", "send"), now);
    assert!(still(&alice, NOW).is_ok() && !changes.has_changed().unwrap());

    let swap = |rules: &str, more: &str| {
        put_in_force(&access, &policy_text(rules, &tokens(more)));
    };
    swap(rules, "revoked = true");
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let Err(Cut::Unauthenticated(cut)) = still(&alice, NOW) else { panic!("the token was revoked") };
    assert_eq!((cut.kind, cut.caller.unwrap().member), (Why::Revoked, alice.member));
    assert!(still(&bob, NOW).is_ok());

    let deny = format!(
        "[[rules]]\nid = \"not-staff\"\neffect = \"deny\"\ngroups = [\"staff\"]\ntools = [\"mail/*\"]\n{rules}"
    );
    swap(&deny, "");
    let Err(Cut::Denied(judgement)) = still(&alice, NOW) else { panic!("the rule denies") };
    assert_eq!((judgement.rule.as_ref(), judgement.policy), ("not-staff", access.digest()));
    assert!(still(&bob, NOW).is_ok());

    swap(rules, "");
    let Err(Cut::Unauthenticated(cut)) = still(&bob, NOW + 10 * policy::DAY_US) else { panic!("it has expired") };
    assert_eq!(cut.kind, Why::Expired);
}

fn over(access: &Access, caller: &Caller, ask: &Ask<'_>, now_us: u64) -> Result<Slot, (String, Option<u64>)> {
    let now = access.now();
    let entered = access.0.counting.enter(now.limits(caller, ask), caller, ask, now_us);
    entered.map_err(|over| (over.limit.to_string(), over.retry_after_s))
}

fn limited(limits: &str) -> (Access, Caller, Caller) {
    let (access, alice) = alice(&format!("{STAFF}{limits}"));
    let bob = Caller { member: MemberId::from_hex(BOB).unwrap(), groups: [].into(), ..alice.clone() };
    (access, alice, bob)
}

#[test]
fn calls_are_counted_in_the_minutes_and_days_of_the_clock_for_each_member() {
    let (access, alice, bob) = limited(
        "[[limits]]\nid = \"few\"\neveryone = true\ntools = [\"mail/*\"]\ncalls_per_minute = 2\ncalls_per_day = 3\n",
    );
    let midnight = NOW / policy::DAY_US * policy::DAY_US + policy::DAY_US;
    let minute = 60_000_000;
    let enter = |caller, now| over(&access, caller, &ask("mail", "send"), now).map(drop);
    let few = |seconds| Err(("few".to_owned(), Some(seconds)));
    let noon = midnight - 12 * 60 * minute;
    assert_eq!(enter(&alice, noon + 59_000_000), Ok(()));
    assert_eq!(enter(&alice, noon + 59_000_000), Ok(()));
    assert_eq!(enter(&alice, noon + 59_500_000), few(1));
    assert_eq!(enter(&alice, noon - minute), few(60), "a clock that is set back begins no minute anew");
    assert_eq!(enter(&bob, noon + 59_500_000), Ok(()), "a count of his own");
    assert_eq!(enter(&alice, noon + minute), Ok(()));
    assert_eq!(enter(&alice, noon + 2 * minute), few(12 * 3_600 - 120), "three today");
    // A clock that is set back brings nothing.
    assert_eq!(enter(&alice, noon - 60 * minute), few(13 * 3_600));
    assert_eq!(enter(&alice, midnight), Ok(()));
    // Elsewhere, in a session, and for what a server asks nothing is counted.
    for _ in 0..5 {
        assert!(over(&access, &alice, &ask("files", "read"), noon).is_ok());
        let list = Ask { method: "tools/list", name: None, ..ask("mail", "") };
        assert!(over(&access, &alice, &list, midnight).is_ok());
        assert!(over(&access, &alice, &Ask { from_server: true, ..ask("mail", "send") }, midnight).is_ok());
    }
}

#[test]
fn a_place_is_given_back_and_a_refused_call_counts_nowhere() {
    let (access, alice, bob) = limited(
        "[[limits]]\nid = \"together\"\neveryone = true\nshared = true\nconcurrent_calls = 2\n[[limits]]\nid = \
         \"one\"\ngroups = [\"staff\"]\nconcurrent_calls = 1\ncalls_per_day = 2\n",
    );
    let enter = |caller| over(&access, caller, &ask("mail", "send"), NOW);
    let first = enter(&alice).unwrap();
    assert_eq!(enter(&alice).map(drop), Err(("one".into(), Some(1))));
    let second = enter(&bob).unwrap();
    assert_eq!(enter(&bob).map(drop), Err(("together".into(), Some(1))));
    drop(second);
    drop(first);
    // The refused ones took none of the two of the day.
    drop(enter(&alice).unwrap());
    assert_eq!(enter(&alice).map(drop).unwrap_err().0, "one");
    // Counts survive a change of the policy.
    access.swap(Compiled::new(Arc::clone(&access.now().policy)));
    assert_eq!(enter(&alice).map(drop).unwrap_err().0, "one");
}

#[test]
fn sizes_are_limited_by_the_least_of_all_that_apply() {
    let (access, alice, bob) = limited(
        "[[limits]]\nid = \"large\"\neveryone = true\nrequest_bytes_max = 100\nresponse_bytes_max = 1000\n[[limits]]\nid = \
         \"small\"\ngroups = [\"staff\"]\nrequest_bytes_max = 10\nresponse_bytes_max = 2000\n",
    );
    let enter = |caller, request_bytes| over(&access, caller, &Ask { request_bytes, ..ask("mail", "send") }, NOW);
    assert_eq!(enter(&alice, 10).unwrap().response_bytes_max, Some(1_000));
    assert_eq!(enter(&alice, 11).map(drop), Err(("small".into(), None)));
    assert!(enter(&bob, 100).is_ok());
    assert_eq!(enter(&bob, 101).map(drop), Err(("large".into(), None)));
}
