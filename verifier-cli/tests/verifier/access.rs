//! `verifier access`: who could call what, out of archives in which that changes, is cut short, is missing, is set back or is
//! dated against the order of things; what is known is said, and what is not.

use std::path::PathBuf;

use bytes::Bytes;
use custody::{
    record,
    wire::{
        self, AccessAction as Action, AccessChange, AccessRule, Decision, OpeningReason, access_change::Actor,
        record::Kind,
    },
};
use serde_json::{Value, json};

use crate::{
    commands::run,
    ledger::{Gateway, Ledger, Workspace, call, opened, policy},
    reports::compare,
};

mod lost;

const ADA: [u8; 16] = [0xa1; 16];
const BOB: [u8; 16] = [0xb2; 16];
const DAY: u64 = 86_400_000_000;

/// A workspace with one gateway, and what happens there.
struct Story {
    dir: tempfile::TempDir,
    ledger: Ledger,
    workspace: Workspace,
    gateway: Gateway,
    digest: Option<u8>,
    /// When it is asked of.
    as_of: &'static str,
}

fn change(action: Action, of: AccessChange) -> AccessChange {
    AccessChange { action: action as i32, ..of }
}

fn of(member: [u8; 16]) -> AccessChange {
    AccessChange { member: Some(member.to_vec().into()), ..AccessChange::default() }
}

fn rule(id: &str, effect: Decision, place: u32, rule: AccessRule) -> AccessChange {
    let rule = AccessRule { id: id.into(), effect: effect as i32, ..rule };
    change(Action::RuleAdded, AccessChange { rule: Some(rule), place: Some(place), ..AccessChange::default() })
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The first policy: Ada is of the staff, who may do all with mail; Bob may nothing; and nobody deletes.
fn beginning(at: u64) -> Vec<AccessChange> {
    let token = |id: u8, member| {
        let (token, agent) = (Some(vec![id; 16].into()), Some(vec![0xa9; 16].into()));
        change(Action::TokenIssued, AccessChange { token, agent, expires_at: Some(at + DAY), ..of(member) })
    };
    let deny = AccessRule { tools: texts(&["*/delete_*"]), organisation: true, ..AccessRule::default() };
    let allow = AccessRule { groups: texts(&["staff"]), tools: texts(&["mail/*"]), ..AccessRule::default() };
    let limit = AccessRule {
        id: "minute".into(),
        effect: Decision::Allowed as i32,
        tools: texts(&["*"]),
        calls_per_minute: 60,
        ..AccessRule::default()
    };
    vec![
        change(Action::AgentAdded, AccessChange { agent: Some(vec![0xa9; 16].into()), ..AccessChange::default() }),
        change(Action::MemberAdded, of(ADA)),
        change(Action::GroupJoined, AccessChange { group: "staff".into(), ..of(ADA) }),
        change(Action::MemberAdded, AccessChange { owner: Some(ADA.to_vec().into()), ..of(BOB) }),
        token(0x77, ADA),
        token(0x88, BOB),
        rule("no-delete", Decision::Denied, 0, deny),
        rule("staff", Decision::Allowed, 1, allow),
        change(Action::LimitChanged, AccessChange { rule: Some(limit), ..AccessChange::default() }),
        change(
            Action::ServerChanged,
            AccessChange {
                server: "mail".into(),
                labels: texts(&["owner:ops", "effect:send"]),
                ..AccessChange::default()
            },
        ),
        change(Action::PolicyApplied, AccessChange::default()),
    ]
}

/// Bob gets to read.
fn granted() -> Vec<AccessChange> {
    let allow =
        AccessRule { members: vec![BOB.to_vec().into()], tools: texts(&["mail/read"]), ..AccessRule::default() };
    vec![rule("grant-1", Decision::Allowed, 2, allow)]
}

/// Ada leaves, and the rule is not for her alone.
fn left() -> Vec<AccessChange> {
    let deny = AccessRule { tools: texts(&["*/delete_*", "*/drop"]), organisation: true, ..AccessRule::default() };
    vec![
        change(Action::GroupLeft, AccessChange { group: "staff".into(), ..of(ADA) }),
        rule("no-delete", Decision::Denied, 0, deny),
    ]
}

impl Story {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(&dir.path().join("archive"));
        let mut workspace = ledger.create(0xa1, "acme");
        let mut gateway = ledger.enrol(&mut workspace, 0x11);
        ledger.take(&mut workspace, &mut gateway, &[opened()]);
        let story = Self { dir, ledger, workspace, gateway, digest: None, as_of: "2026-03-01T12:00:00Z" };
        story.write_policy(&policy());
        story
    }

    fn write_policy(&self, policy: &custody::policy::Policy) {
        let file = std::fs::File::create(self.path("policy.json")).unwrap();
        serde_json::to_writer(file, policy).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn take(&mut self, records: &[Bytes]) {
        self.ledger.take(&mut self.workspace, &mut self.gateway, records);
    }

    /// A change that was made at this time, from the digest before to this one.
    fn write(&mut self, at: u64, before: Option<u8>, after: u8, parts: &[AccessChange]) {
        let bytes = |digest: u8| Bytes::from(vec![digest; 32]);
        let record = |part: &AccessChange| {
            let actor = if before.is_none() { None } else { Some(Actor::ActorMember(ADA.to_vec().into())) };
            Bytes::from(record::encode(Kind::AccessChange(AccessChange {
                at,
                actor: actor.or(Some(Actor::ActorSystem("uid:0".into()))),
                reason: if before.is_none() { "start" } else { "review" }.into(),
                ticket: if before.is_none() { "" } else { "SEC-7" }.into(),
                policy_digest_before: before.map(bytes),
                policy_digest_after: bytes(after),
                ..part.clone()
            })))
        };
        self.take(&parts.iter().map(record).collect::<Vec<_>>());
        self.digest = Some(after);
    }

    /// The next change, made now; when that was.
    fn change(&mut self, parts: &[AccessChange]) -> u64 {
        let at = self.ledger.tick();
        let before = self.digest;
        self.write(at, before, before.map_or(1, |digest| digest + 1), parts);
        at
    }

    /// One that says all, one that grants, one that takes away; heard of after. When they were made.
    fn usual() -> (Self, [u64; 3]) {
        let mut story = Self::new();
        let at = story.ledger.clock;
        let first = story.change(&beginning(at));
        story.ledger.cut(&mut story.workspace);
        let second = story.change(&granted());
        story.ledger.cut(&mut story.workspace);
        let third = story.change(&left());
        story.end();
        (story, [first, second, third])
    }

    /// The gateway is heard once more, and all is sealed and published.
    fn end(&mut self) {
        self.take(&[spooling()]);
        self.publish();
    }

    fn publish(&mut self) {
        self.ledger.cut(&mut self.workspace);
        self.ledger.publish();
    }

    /// It is asked years later, when segments may have gone.
    fn years_later(&mut self) {
        self.as_of = "2036-03-01T00:00:00Z";
        self.write_policy(&custody::policy::Policy { minimum_retention_days: 30, ..policy() });
    }

    /// Objects of its segments, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let folder = self.path(&format!("archive/workspaces/{}/segments", self.workspace.id));
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    fn ask(&self, more: &[&str]) -> (i32, String) {
        let (archive, policy) = (self.path("archive"), self.path("policy.json"));
        let fixed = ["access", archive.to_str().unwrap(), "--policy", policy.to_str().unwrap()];
        let output = run(fixed.iter().chain(&["--as-of", self.as_of]).chain(more));
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    fn json(&self, more: &[&str]) -> (i32, Value) {
        let (code, said) = self.ask(&[more, &["--json"]].concat());
        (code, serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}")))
    }

    fn at(&self, at: u64, more: &[&str]) -> (i32, Value) {
        let (code, answer) = self.json(&[&["--at", &time(at)], more].concat());
        (code, answer["gateways"][0].clone())
    }

    /// Who could call a tool then.
    fn callers(&self, at: u64, tool: &str) -> Value {
        let (_, gateway) = self.at(at, &["--tool", tool]);
        let members = gateway["in_force"]["members"].as_array().unwrap_or(&Vec::new()).clone();
        let could = |member: &Value| {
            let allowed = member["could_call"]["allowed"] == true;
            json!([member["member"].as_str().unwrap()[..2], allowed, member["could_call"]["rule"]])
        };
        members.iter().map(could).collect()
    }

    /// Names of what is not known.
    fn doubts(&self, at: u64) -> Vec<String> {
        let (code, gateway) = self.at(at, &[]);
        let doubts = names(&gateway["doubts"]);
        assert_eq!(code, if doubts.is_empty() { 0 } else { 2 }, "{gateway:#}");
        doubts
    }

    /// Names of what the clocks disagree on.
    fn notes(&self, at: u64) -> Vec<String> {
        names(&self.at(at, &[]).1["notes"])
    }
}

/// A record that is of no change and no call.
fn spooling() -> Bytes {
    let event = wire::gateway_event::Event::Delivery(wire::Delivery {
        state: wire::DeliveryState::Spooling as i32,
        ..wire::Delivery::default()
    });
    record::encode(Kind::GatewayEvent(wire::GatewayEvent { at: 1, event: Some(event) })).into()
}

fn names(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|of| of["name"].as_str().unwrap().to_owned()).collect()
}

fn time(at: u64) -> String {
    verifier::time::text(at)
}

#[test]
fn who_could_call_what_before_and_after_each_change() {
    let (story, [first, second, third]) = Story::usual();
    let deny = "shim/default-deny";
    for (at, tool, callers) in [
        (first, "mail/send", json!([["a1", true, "staff"], ["b2", false, deny]])),
        (second - 1, "mail/read", json!([["a1", true, "staff"], ["b2", false, deny]])),
        (second, "mail/read", json!([["a1", true, "staff"], ["b2", true, "grant-1"]])),
        (second, "mail/delete_all", json!([["a1", false, "no-delete"], ["b2", false, "no-delete"]])),
        (third - 1, "mail/send", json!([["a1", true, "staff"], ["b2", false, deny]])),
        (third, "mail/send", json!([["a1", false, deny], ["b2", false, deny]])),
        (third, "mail/read", json!([["a1", false, deny], ["b2", true, "grant-1"]])),
    ] {
        assert_eq!(story.callers(at, tool), callers, "{tool} at {}", time(at));
    }
    assert_eq!(story.doubts(second), [""; 0]);
    // Before the first change it had begun, and nobody knows with which policy; before its first batch it had not.
    assert_eq!(story.doubts(first - 1), ["no-policy"]);
    let (code, gateway) = story.at(first - 3_600_000_000, &[]);
    assert_eq!((code, &gateway["had_begun"], &gateway["in_force"]), (0, &json!(false), &Value::Null));
    // After it was last heard, what is known is shown, and is no more than that.
    let (code, gateway) = story.at(third + DAY, &[]);
    assert_eq!((code, &gateway["doubts"][0]["name"]), (2, &"not-heard-since".into()));
    assert_eq!(gateway["in_force"]["policy_digest"], "03".repeat(32));
    // A token is good until its time, and that is no change.
    assert_eq!(gateway["in_force"]["members"][0]["tokens"], json!([]));
    let token = &story.at(third, &[]).1["in_force"]["members"][0]["tokens"][0];
    assert_eq!((&token["agent"], &token["token"]), (&"a9".repeat(16).into(), &"77".repeat(16).into()));
}

#[test]
fn what_changed_who_changed_it_and_why() {
    let (story, [first, _, third]) = Story::usual();
    let between = |from, to, more: &[&str]| {
        let (code, answer) = story.json(&[&["--between", &time(from), &time(to)], more].concat());
        assert_eq!(code, 0, "{answer:#}");
        answer["changes"].as_array().unwrap().clone()
    };
    let all = between(first, third, &[]);
    assert_eq!(all.len(), 2, "the first is in force at the beginning");
    assert_eq!((&all[0]["actor"]["member"], &all[0]["reason"]), (&"a1".repeat(16).into(), &"review".into()));
    assert_eq!((&all[0]["ticket"], &all[0]["policy_digest_after"]), (&"SEC-7".into(), &"02".repeat(32).into()));
    assert_eq!((&all[0]["changed"][0]["part"], &all[0]["changed"][0]["before"]), (&"rule".into(), &Value::Null));
    let rule = &all[1]["changed"][1];
    assert_eq!(rule["before"]["tools"], json!(["*/delete_*"]));
    assert_eq!(rule["after"]["tools"], json!(["*/delete_*", "*/drop"]));
    assert_eq!(all[1]["changed"][0], json!({"part": "group", "id": "a1".repeat(16), "before": "staff", "after": null}));
    assert_eq!(between(third, third + 1, &[]), [Value::Null; 0], "what was in force at A was changed before");
    // Of a tool, only what changed who could call it; of a member, only what is of it.
    let of_tool = between(first, third, &["--tool", "mail/send"]);
    assert_eq!(of_tool.len(), 1);
    assert_eq!(of_tool[0]["calls"][0]["before"], json!({"allowed": true, "rule": "staff"}));
    assert_eq!(of_tool[0]["calls"][0]["after"], json!({"allowed": false, "rule": "shim/default-deny"}));
    assert_eq!(between(first, third, &["--member", &"b2".repeat(16)]).len(), 2, "his rule, and one for all");
    assert_eq!(between(first, third, &["--member", &"b2".repeat(16), "--tool", "mail/read"]).len(), 1);
}

#[test]
fn changes_of_several_gateways_stand_in_order_of_position_and_each_has_its_own_policy() {
    let mut story = Story::new();
    let mut other = story.ledger.enrol(&mut story.workspace, 0x22);
    story.ledger.take(&mut story.workspace, &mut other, &[opened()]);
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    std::mem::swap(&mut story.gateway, &mut other);
    story.digest = None;
    story.change(&beginning(at)[..4]);
    std::mem::swap(&mut story.gateway, &mut other);
    story.digest = Some(1);
    let last = story.change(&granted());
    std::mem::swap(&mut story.gateway, &mut other);
    story.end();
    std::mem::swap(&mut story.gateway, &mut other);
    story.end();
    let (code, answer) = story.json(&["--between", &time(first - 1), &time(last)]);
    let gateways: Vec<&str> =
        answer["changes"].as_array().unwrap().iter().map(|change| &change["gateway"].as_str().unwrap()[..2]).collect();
    assert_eq!((code, gateways), (0, vec!["11", "22", "11"]));
    let (_, answer) = story.json(&["--at", &time(last), "--gateway", &"22".repeat(16)]);
    assert_eq!(answer["gateways"].as_array().unwrap().len(), 1);
    assert_eq!(answer["gateways"][0]["in_force"]["rules"], json!([]), "the grant is the other's");
}

#[test]
fn answers_as_people_read_them() {
    let (story, [first, second, third]) = Story::usual();
    compare("access_at", story.ask(&["--at", &time(second)]).1.as_bytes());
    compare("access_tool", story.ask(&["--at", &time(third + DAY), "--tool", "mail/read"]).1.as_bytes());
    let between = ["--between", &time(first - 1), &time(third)];
    compare("access_between", story.ask(&between).1.as_bytes());
    compare(
        "access_between_json",
        story.ask(&[&between[..], &["--tool", "mail/send", "--json"]].concat()).1.as_bytes(),
    );
}

#[test]
fn nothing_is_said_of_a_refuted_archive_and_an_undecided_one_is_called_so() {
    let (mut story, [_, second, _]) = Story::usual();
    let mut asked = policy();
    asked.required = custody::verdict::Claim::ALL.to_vec();
    story.write_policy(&asked);
    let (code, said) = story.ask(&["--at", &time(second)]);
    assert!(
        code == 2 && said.contains("UNDECIDED. Nothing is shown to be false") && said.contains("grant-1"),
        "{said}"
    );
    story.write_policy(&policy());
    let other = story.ledger.create(0xb2, "beta");
    story.ledger.publish();
    std::fs::remove_file(&story.segments()[1]).unwrap();
    for more in [&[][..], &["--workspace", "acme"]] {
        let (code, said) = story.ask(&[&["--at", &time(second)], more].concat());
        assert!(code == 1 && said.contains("REFUTED") && said.contains("segment-present"), "{said}");
        assert!(!said.contains("grant-1") && !said.contains("GATEWAY"), "{said}");
    }
    let (code, answer) = story.json(&["--at", &time(second)]);
    assert_eq!((code, &answer["conclusion"], &answer["gateways"]), (1, &"refuted".into(), &json!([])));
    // Another workspace holds.
    let (code, answer) = story.json(&["--at", &time(second), "--workspace", "beta"]);
    assert_eq!((code, &answer["workspaces"][0]["id"]), (0, &other.id.to_string().into()));
    // A log that does not hold is refuted too.
    std::fs::remove_dir_all(story.path("archive/log/checkpoints")).unwrap();
    assert_eq!(story.json(&["--at", &time(second)]).0, 1);
}

#[test]
fn what_is_missing_makes_the_answer_undecided_until_all_is_said_anew() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    // Two that nobody wrote: the gateway's numbers have no gap, its policies have.
    let lost = story.ledger.tick();
    story.digest = Some(7);
    let after = story.change(&granted());
    let anew = story.ledger.tick();
    story.write(anew, None, 9, &beginning(at));
    let last = story.change(&left());
    story.end();
    assert_eq!(story.doubts(first), ["gap-after"]);
    assert_eq!(story.doubts(lost), ["gap-after"]);
    assert_eq!(story.doubts(after), ["gap"]);
    assert_eq!(story.doubts(anew), [""; 0]);
    assert_eq!(story.doubts(last), [""; 0]);
    let (code, answer) = story.json(&["--between", &time(first), &time(last)]);
    let gateway = &answer["gateways"][0];
    assert_eq!((code, &gateway["doubts"][0]["name"]), (2, &"gap".into()));
    let missing: Vec<&Value> =
        answer["changes"].as_array().unwrap().iter().map(|change| &change["records_missing_before"]).collect();
    assert_eq!(missing, [true, false, false]);
}

#[test]
fn a_call_that_names_a_policy_of_no_record_is_a_doubt() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    let second = story.change(&granted());
    // Calls name the policy of fives.
    story.take(&[call(1), call(2)]);
    let third = story.change(&left());
    story.end();
    assert_eq!(story.doubts(first), [""; 0]);
    assert_eq!(story.doubts(second), ["other-policy"]);
    assert_eq!(story.doubts(third), [""; 0]);
    let fourth = story.change(&granted());
    story.take(&[call(3)]);
    let fifth = story.ledger.tick();
    story.write(fifth, Some(4), 6, &left());
    story.take(&[call(4), call(5)]);
    story.write(fifth + 1, Some(6), 5, &granted());
    story.take(&[call(6)]);
    story.end();
    assert_eq!([fourth, fifth].map(|at| story.doubts(at)), [["other-policy"], ["other-policy"]]);
    assert_eq!(story.doubts(fifth + 1), [""; 0], "this one is on record");
}

#[test]
fn what_was_lost_or_is_no_longer_kept_may_have_been_a_change() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    story.gateway.dropped = 3;
    story.take(&[call(0)]);
    story.end();
    assert_eq!(story.doubts(first), ["dropped", "other-policy"]);
    let (mut story, [first, second, third]) = Story::usual();
    // Years later the segment with the second change has gone, as it may.
    story.years_later();
    std::fs::remove_file(&story.segments()[2]).unwrap();
    assert_eq!(story.doubts(first), ["gap-after", "not-kept"]);
    assert_eq!(story.doubts(second), ["gap-after", "not-kept"]);
    assert_eq!(story.doubts(third), ["gap", "last-change-open"], "it stands beside what has gone");
    // So has the first: what was before is not known, not even whether there was a gateway.
    std::fs::remove_file(&story.segments()[1]).unwrap();
    assert_eq!(story.doubts(first - DAY), ["gap-after", "not-kept"]);
    assert_eq!(story.doubts(third), ["gap", "last-change-open"]);
    // That the next change goes on with what was in force says nothing of between, and all of what is in force from there on.
    let mut story = Story::new();
    let first = story.change(&beginning(at));
    story.ledger.cut(&mut story.workspace);
    story.take(&[spooling()]);
    story.ledger.cut(&mut story.workspace);
    story.take(&[spooling()]);
    story.change(&granted());
    let third = story.change(&left());
    story.end();
    story.years_later();
    std::fs::remove_file(&story.segments()[2]).unwrap();
    assert_eq!(story.doubts(first), ["not-kept"], "two that undid one another may have been there");
    let (code, gateway) = story.at(third, &[]);
    assert_eq!((code, &gateway["doubts"]), (2, &json!([])), "the archive is undecided, and this is not");
    // What had no records has lost none.
    let mut story = Story::new();
    let first = story.change(&beginning(at));
    story.ledger.cut(&mut story.workspace);
    story.take(&[]);
    story.ledger.cut(&mut story.workspace);
    story.end();
    story.years_later();
    std::fs::remove_file(&story.segments()[2]).unwrap();
    assert_eq!(story.at(first, &[]).1["doubts"], json!([]));
}

#[test]
fn order_is_position_and_where_the_clocks_disagree_it_is_said() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    let ahead = story.ledger.tick();
    // Its clock runs a day ahead, and is then set right.
    story.write(ahead + DAY, Some(1), 2, &granted());
    let received = story.ledger.tick();
    story.end();
    assert_eq!((story.doubts(received).len(), story.notes(received)), (0, vec!["clock-ahead".to_owned()]));
    assert_eq!(story.callers(received, "mail/read")[1], json!(["b2", false, "shim/default-deny"]));
    let right = story.change(&left());
    story.end();
    // What comes before it in order was made before it, whatever it is dated.
    assert_eq!(story.callers(right, "mail/read")[1], json!(["b2", true, "grant-1"]));
    assert_eq!(story.notes(right), ["received-later", "clock-set-back"]);
    assert_eq!((story.doubts(right).len(), story.notes(first)), (0, vec!["received-later".to_owned()]));
    assert_eq!(story.notes(first + 2_000), [""; 0], "by then it had come");
}
