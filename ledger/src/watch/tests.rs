//! The watch without a ledger: what is usual stays quiet, what is not is found, and what is remembered may be written down anywhere.

use custody::{
    batch::Header,
    id::{Epoch, GatewayId, HeaderHash, KeyId, MemberId, RootHash, WorkspaceId, hex},
    query::{Facts, Field, Place},
};

use super::{
    baseline::{Baselines, Detector, Unusual},
    engine::Engine,
    teller::{Finds, Judged, Teller},
    *,
};
use crate::rig::rng::Rng;

const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// A Monday, 00:00 UTC.
const START: u64 = 20_514 * DAY;
const WORKSPACE: WorkspaceId = WorkspaceId([7; 16]);

/// A call in words; what is not said is usual.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: u64,
    member: u8,
    agent: u8,
    gateway: u8,
    server: &'static str,
    tool: &'static str,
    denied: bool,
    failed: bool,
    request: u64,
    response: u64,
    duration: u64,
}

impl Said {
    fn at(at: u64) -> Self {
        Self {
            at,
            member: 1,
            agent: 1,
            gateway: 1,
            server: "files",
            tool: "read",
            denied: false,
            failed: false,
            request: 100 + at / SECOND % 50,
            response: 2_000,
            duration: 10_000,
        }
    }

    fn record(&self) -> wire::Record {
        let outcome = match (self.denied, self.failed) {
            (true, _) => wire::Outcome::Denied,
            (_, true) => wire::Outcome::ToolError,
            _ => wire::Outcome::Ok,
        };
        let call = wire::Call {
            phase: wire::Phase::Complete as i32,
            member: Some(Bytes::copy_from_slice(&[self.member; 16])),
            agent: Some(Bytes::copy_from_slice(&[self.agent; 16])),
            server: self.server.to_owned(),
            target: Some(wire::call::Target::Tool(self.tool.to_owned())),
            decision: if self.denied { wire::Decision::Denied } else { wire::Decision::Allowed } as i32,
            started_at: self.at,
            duration_us: self.duration,
            outcome: outcome as i32,
            request_bytes: self.request,
            response_bytes: self.response,
            ..Default::default()
        };
        wire::Record { version: 1, kind: Some(Kind::Call(call)) }
    }

    fn place(&self, position: u64) -> Place {
        Place {
            workspace: WORKSPACE,
            gateway: GatewayId([self.gateway; 16]),
            epoch: Epoch([1; 16]),
            position,
            number: position,
            received_at: self.at,
            gap: false,
        }
    }
}

/// Four weeks of two members who call from nine to five on working days, and a service that deletes now and then.
fn usual() -> Vec<Said> {
    let mut calls = Vec::new();
    for day in (0..28).filter(|day| day % 7 < 5) {
        for hour in 9..17 {
            for minute in [3, 17, 41] {
                let at = START + day * DAY + hour * HOUR + minute * MINUTE;
                calls.push(Said::at(at));
                calls.push(Said { member: 2, agent: 2, gateway: 2, ..Said::at(at + SECOND) });
                calls.push(Said {
                    member: 2,
                    agent: 2,
                    gateway: 2,
                    server: "mail",
                    tool: "send",
                    ..Said::at(at + 2 * SECOND)
                });
            }
        }
        let at = START + day * DAY + 12 * HOUR;
        calls.push(Said { member: 2, agent: 2, gateway: 2, tool: "delete_file", ..Said::at(at) });
    }
    calls.sort_by_key(|call| call.at);
    calls
}

/// Detectors by what each finds in calls on the fifth Monday at ten, after four usual weeks.
fn unusual(detector: Detector) -> Vec<Said> {
    let ten = START + 28 * DAY + 10 * HOUR;
    let run = |times: u64, pause: u64, of: &dyn Fn(Said) -> Said| -> Vec<Said> {
        (0..times).map(|number| of(Said::at(ten + number * pause))).collect()
    };
    match detector {
        Detector::FirstTool => run(1, SECOND, &|call| Said { tool: "write", ..call }),
        Detector::FirstServer => run(1, SECOND, &|call| Said { server: "mail", tool: "send", ..call }),
        Detector::NewServer => run(1, SECOND, &|call| Said { server: "shadow", ..call }),
        Detector::Refusals => run(4, MINUTE, &|call| Said { denied: true, ..call }),
        Detector::RefusedThenAllowed => {
            let mut calls = run(3, MINUTE, &|call| Said { denied: true, ..call });
            calls.push(Said { agent: 9, ..Said::at(ten + HOUR) });
            calls
        }
        Detector::Rate => run(40, 20 * SECOND, &|call| call),
        Detector::Loop => run(20, 10 * SECOND, &|call| Said { request: 211, ..call }),
        Detector::Destructive => run(5, MINUTE, &|call| Said { tool: "delete_file", ..call }),
        Detector::OffHours => vec![Said::at(ten + 15 * HOUR)],
        Detector::FirstGateway => run(1, MINUTE, &|call| Said { gateway: 8, ..call }),
        Detector::TwoGateways => run(2, MINUTE, &|call| Said { gateway: 1 + u8::from(call.at > ten), ..call }),
        Detector::Dormant => vec![Said::at(ten + 20 * DAY)],
        Detector::BigRequest => run(1, SECOND, &|call| Said { request: 1 << 19, ..call }),
        Detector::BigResponse => run(1, SECOND, &|call| Said { response: 1 << 24, ..call }),
        Detector::Shift => run(12, 10 * MINUTE, &|call| Said { duration: 90_000, failed: true, ..call }),
    }
}

fn found(baselines: &mut Baselines, calls: &[Said]) -> Vec<Detector> {
    let mut found = Vec::new();
    for (position, call) in (0..).zip(calls) {
        let place = call.place(position);
        let facts = Facts::of(&place, &call.record());
        let view = View { place: &place, facts: &facts, own: None, labels: &[] };
        found.extend(baselines.take(&view).into_iter().map(|unusual| unusual.detector));
    }
    found
}

#[test]
fn four_usual_weeks_are_quiet_and_each_detector_finds_what_it_is_for() {
    let usual = usual();
    for detector in Detector::ALL {
        let mut baselines = Baselines::default();
        assert_eq!(found(&mut baselines, &usual), [], "in usual weeks");
        let calls = unusual(*detector);
        assert!(found(&mut baselines, &calls).contains(detector), "{} finds nothing", detector.name());
    }
}

#[test]
fn a_workspace_learns_for_a_week_before_anything_is_unusual() {
    let calls: Vec<Said> = (0..7 * 24)
        .map(|hour| Said { member: u8::try_from(hour % 200).unwrap(), ..Said::at(START + hour * HOUR) })
        .collect();
    assert_eq!(found(&mut Baselines::default(), &calls), []);
}

/// Calls of eight members at random times, with bursts of refusals and deletions.
fn random_calls(name: &str) -> Vec<Said> {
    let mut dice = Rng::for_test(name);
    let tools = [("files", "read"), ("files", "delete_file"), ("mail", "send"), ("db", "query"), ("db", "drop_table")];
    let mut at = START;
    let mut calls = Vec::new();
    while calls.len() < 4_000 {
        at += dice.below(20 * MINUTE);
        let (server, tool) = tools[usize::try_from(dice.below(5)).unwrap()];
        let member = u8::try_from(dice.below(8)).unwrap();
        let burst = if dice.below(40) == 0 { 12 } else { 1 };
        let denied = dice.below(6) == 0;
        for number in 0..burst {
            calls.push(Said {
                member,
                agent: member,
                gateway: member,
                server,
                tool,
                denied,
                ..Said::at(at + number * SECOND)
            });
        }
    }
    calls
}

fn new(text: &str) -> Engine {
    Engine::new(text).unwrap()
}

/// Puts an engine's rules in force as the ledger does.
fn load(engine: &mut Engine, digest: [u8; 32]) {
    let detail =
        Extension { key: "rules".to_owned(), value: Some(extension::Value::Digest(Bytes::copy_from_slice(&digest))) };
    let load = LedgerEvent { action: engine::RULES_LOAD.to_owned(), details: vec![detail], ..LedgerEvent::default() };
    let load = wire::Record { version: 1, kind: Some(Kind::LedgerEvent(load)) };
    let place = Said::at(START).place(0);
    let facts = Facts::of(&place, &load);
    assert!(engine.take(&View { place: &place, facts: &facts, own: Some(&load), labels: &[] }, None).is_empty());
}

/// The alarms of calls, as bytes; what is remembered goes through a file's bytes after each `every` calls.
fn alarms(engine: &mut Engine, text: &str, calls: &[Said], every: usize) -> Vec<Vec<u8>> {
    let mut alarms = Vec::new();
    for (number, call) in (1_usize..).zip(calls) {
        if number.is_multiple_of(every) {
            let bytes = engine.remembered().unwrap();
            *engine = new(text);
            assert!(engine.remember(&bytes));
        }
        let place = call.place(number as u64);
        let facts = Facts::of(&place, &call.record());
        let view = View { place: &place, facts: &facts, own: None, labels: &[] };
        alarms.extend(engine.take(&view, None).iter().map(bytes_of));
    }
    alarms
}

#[test]
fn what_is_remembered_may_be_written_down_anywhere() {
    let text = rules::all(None).unwrap();
    let calls = random_calls("what is remembered");
    let run = |every| {
        let mut engine = new(&text);
        let digest = engine.digest();
        load(&mut engine, digest);
        alarms(&mut engine, &text, &calls, every)
    };
    let whole = run(usize::MAX);
    assert!(whole.len() > 20, "{} alarms", whole.len());
    assert_eq!(run(37), whole);
    for alarm in &whole {
        record::check(alarm).unwrap();
    }
}

#[test]
fn after_other_rules_a_replay_gives_what_was_given_then() {
    let (one, other) = (rules::all(None).unwrap(), rules::all(None).unwrap() + "\n# another version\n");
    let calls = random_calls("other rules");
    let (before, after) = calls.split_at(calls.len() / 2);
    // As it was: the first rules, a file, and a start with the others.
    let mut first = new(&one);
    let digest = first.digest();
    load(&mut first, digest);
    assert!(!alarms(&mut first, &one, before, usize::MAX).is_empty());
    let file = first.remembered().unwrap();
    let mut then = new(&other);
    assert!(then.remember(&file));
    let digest_then = then.digest();
    load(&mut then, digest_then);
    let given = alarms(&mut then, &other, after, usize::MAX);
    // Once more, from the first record, with the others alone.
    let mut again = new(&other);
    load(&mut again, digest);
    assert!(alarms(&mut again, &other, before, usize::MAX).is_empty(), "those rules are not here");
    load(&mut again, digest_then);
    assert!(given.len() > 10);
    assert_eq!(alarms(&mut again, &other, after, usize::MAX), given);
}

#[test]
fn other_rules_begin_with_the_record_that_loads_them_and_keep_what_is_usual() {
    let mut engine = Engine::new(&rules::all(None).unwrap()).unwrap();
    assert!(!engine.in_force());
    let calls = random_calls("other rules");
    assert!(alarms(&mut engine, &rules::all(None).unwrap(), &calls, usize::MAX).is_empty(), "no rules are in force");
    let bytes = engine.remembered().unwrap();
    let (_, one) = rules::SHIPPED[0];
    let mut other = Engine::new(one).unwrap();
    assert!(other.remember(&bytes) && !other.in_force());
    assert!(!other.remember(b"no state"));
}

#[test]
fn an_entity_that_an_alarm_cannot_hold_as_an_id_is_named_or_digested() {
    let member = MemberId([5; 16]);
    for (tool, named) in [("read", true), ("a tool with spaces", false)] {
        let mut engine = Engine::new(&rules::all(None).unwrap()).unwrap();
        engine.put_in_force();
        let change = wire::ToolDefinition {
            at: START,
            change: wire::DefinitionChange::Changed as i32,
            action: wire::DefinitionAction::Warned as i32,
            server: "files".to_owned(),
            target: Some(wire::tool_definition::Target::Tool(tool.to_owned())),
            ..Default::default()
        };
        let place = Said::at(START).place(1);
        let facts = Facts::of(&place, &wire::Record { version: 1, kind: Some(Kind::ToolDefinition(change)) });
        let alarms = engine.take(&View { place: &place, facts: &facts, own: None, labels: &[] }, None);
        let about = alarms[0].details[0].key.clone();
        assert_eq!(about == "about/tool/files/read", named, "{about}");
        assert!(about.starts_with("about/tool/") && !about.contains(&hex(&member.0)));
        assert!(alarms.iter().all(|alarm| record::check(&bytes_of(alarm)).is_ok()));
    }
}

#[test]
fn drops_that_a_heartbeat_declares_are_told_once_an_hour() {
    let mut engine = new(&rules::all(None).unwrap());
    engine.put_in_force();
    let header = Header {
        origin: "example.org/log".to_owned(),
        workspace: WORKSPACE,
        gateway: GatewayId([2; 16]),
        key_id: KeyId([3; 32]),
        epoch: Epoch([4; 16]),
        batch_number: 5,
        first_record: 9,
        record_count: 0,
        previous: HeaderHash::ZERO,
        opening_reason: None,
        batch_root: RootHash::ZERO,
        last_head: Bytes::new(),
        dropped: 3,
        drop_reason: Some(wire::DropReason::SpoolFull),
        heartbeat: true,
        close: false,
        created_at: START,
    };
    let told = [START, START + 59 * MINUTE, START + 61 * MINUTE].map(|at| engine.header(&header, at));
    assert_eq!(told.each_ref().map(Vec::len), [1, 0, 1]);
    let alarm = &told[0][0];
    assert_eq!((alarm.name.as_str(), alarm.gateway.as_deref()), ("records-dropped", Some(&[2; 16][..])));
    assert_eq!((alarm.details[0].key.as_str(), alarm.positions.len()), ("dropped", 0));
    record::check(&bytes_of(alarm)).unwrap();
}

#[test]
fn a_detector_that_ships_off_adds_nothing_until_a_workspace_switches_it_on() {
    let (rules, digest) = (std::collections::BTreeMap::new(), [0; 32]);
    let place = Said::at(START).place(1);
    let facts = Facts::of(&place, &Said::at(START).record());
    let view = View { place: &place, facts: &facts, own: None, labels: &[] };
    let mut teller = Teller::with_incident_at(100);
    let raised = |teller: &mut Teller, detector: Detector, all_on| {
        let unusual = vec![Unusual { detector, points: 100, about: (Field::Member, detector.name().to_owned()) }];
        teller.take(&view, Finds { unusual, ..Finds::default() }, &Judged { rules: &rules, digest: &digest, all_on })
    };
    for detector in Detector::ALL {
        let told = raised(&mut teller, *detector, false).len();
        assert_eq!(told, usize::from(!detector.ships_off()), "{}", detector.name());
    }
    assert_eq!(raised(&mut Teller::with_incident_at(100), Detector::Rate, true).len(), 1, "all are on");
    teller.switch(&LedgerEvent {
        action: engine::RULE_ON.to_owned(),
        workspace: Some(Bytes::copy_from_slice(&WORKSPACE.0)),
        details: vec![Extension { key: "rule/rate".to_owned(), value: None }],
        ..Default::default()
    });
    assert_eq!(raised(&mut teller, Detector::Rate, false).len(), 1, "the workspace wants it");
}
