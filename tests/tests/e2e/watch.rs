//! What is out of the ordinary: on record once, whatever is killed; the same again in a replay; switched off and suppressed by those who may.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    sync::mpsc,
};

use bytes::Bytes;
use custody::{
    id::MemberId,
    record,
    wire::{self, Decision, Outcome, Phase, record::Kind},
};
use custody_tests::{
    peer::{Gateway, now_us, opened, random},
    process::{Home, Process, SETTINGS, binary, end, offline, soon, text},
    shown::{records, word},
};
use serde_json::Value;

use crate::search::{found, token};

fn refused(number: u64, member: MemberId) -> Bytes {
    record::encode(Kind::Call(wire::Call {
        call_number: number,
        phase: Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        member: Some(member.into()),
        server: "github".to_owned(),
        target: Some(wire::call::Target::Tool("delete_repo".to_owned())),
        decision: Decision::Denied as i32,
        started_at: now_us(),
        outcome: Outcome::Denied as i32,
        ..Default::default()
    }))
    .into()
}

/// A tool that changed and that nobody accepted.
fn changed(tool: &str) -> Bytes {
    record::encode(Kind::ToolDefinition(wire::ToolDefinition {
        at: now_us(),
        change: wire::DefinitionChange::Changed as i32,
        action: wire::DefinitionAction::Warned as i32,
        server: "github".to_owned(),
        target: Some(wire::tool_definition::Target::Tool(tool.to_owned())),
        digest_before: Some(Bytes::from_static(&[1; 32])),
        digest_after: Some(Bytes::from_static(&[2; 32])),
        ..Default::default()
    }))
    .into()
}

/// Alarms that were raised, as their records; those in the archive.
fn raised(home: &Home) -> Vec<Value> {
    home.say(&["cut"]);
    let mut alarms: Vec<Value> = records(home, "ledger").into_iter().filter(|shown| shown["kind"] == "alarm").collect();
    alarms.retain(|shown| word(shown, "phase") == "raised");
    alarms
}

/// Waits until an alarm of this name is about this tool or member, and gives all.
fn until(home: &Home, name: &str, about: &str) -> Vec<Value> {
    soon(|| {
        let alarms = raised(home);
        let is = |shown: &Value| word(shown, "name") == name && shown.to_string().contains(about);
        alarms.iter().any(is).then_some(alarms)
    })
}

fn names(alarms: &[Value], about: &str) -> Vec<String> {
    let of = alarms.iter().filter(|shown| shown.to_string().contains(about));
    of.map(|shown| word(shown, "name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_on_record_once_and_again_in_a_replay_byte_for_byte() {
    let home = Home::new("watch", SETTINGS);
    let mut process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut tool = 0;
    for point in ["watch-raised", "watch-told"] {
        for _ in 0..2 {
            end(&process);
            process = home.spawn(&[("CUSTODY_FAILPOINT", &format!("{point}:1"))]);
            assert!(process.wait_serving(), "{}", process.log().join("\n"));
            let session = gateway.connect(home.grpc).await.unwrap();
            tool += 1;
            let mut all: Vec<Bytes> = if gateway.header().opens() { vec![opened()] } else { Vec::new() };
            all.push(changed(&format!("tool{tool}_")));
            let batch = gateway.sign(gateway.header(), &all);
            gateway.keep(batch.clone());
            session.send(batch).await.ok();
            let status = process.wait_end();
            assert!(status.code().is_none(), "{point}: {status:?}");
            process = home.start();
            let mut session = gateway.connect(home.grpc).await.unwrap();
            for batch in &gateway.waiting {
                session.send(batch.bytes.clone()).await.unwrap();
            }
            gateway.settle(&mut session).await.unwrap();
            until(&home, "incident", &format!("tool{tool}_"));
        }
    }
    // What it remembered is lost, and then damaged.
    let file = home.dir.join("data/watch");
    for damage in [false, true] {
        end(&process);
        if damage {
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            custody_tests::process::write(&file, &bytes);
        } else {
            std::fs::remove_file(&file).unwrap();
        }
        process = home.start();
        tool += 1;
        let mut session = gateway.connect(home.grpc).await.unwrap();
        gateway.ship(&mut session, vec![changed(&format!("tool{tool}_"))]).await;
        until(&home, "incident", &format!("tool{tool}_"));
    }
    let alarms = raised(&home);
    for number in 1..=tool {
        assert_eq!(names(&alarms, &format!("tool{number}_")), ["incident", "tool-definition-changed"], "{alarms:#?}");
    }
    let said = home.say(&["replay"]);
    assert!(said.contains("12 alarms on record were raised again, byte for byte; 0 were not; 0 were raised"), "{said}");
    // Where it stands: the record of the changed tool itself.
    let of_payments = records(&home, "payments");
    let alarm = &alarms.last().unwrap()["record"];
    let position = alarm["positions"][0].as_u64().unwrap();
    let cause = of_payments.iter().find(|shown| shown["position"] == position).unwrap();
    assert!(cause.to_string().contains(&format!("tool{tool}_")), "{cause}");
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_switched_off_suppressed_tested_and_held_against_the_past() {
    let home = Home::new("rules", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let member = || MemberId(random());
    let [first, second, third, fourth] = [member(), member(), member(), member()];
    let burst = |member: MemberId| (0..6).map(|number| refused(number, member)).collect::<Vec<_>>();
    gateway.ship(&mut session, burst(first)).await;
    let alarms = until(&home, "denied-burst", &first.to_string());
    assert_eq!(names(&alarms, &first.to_string()), ["denied-burst"]);
    let alarm = alarms.iter().find(|shown| shown["record"]["name"] == "denied-burst").unwrap();
    assert_eq!(alarm["record"]["positions"].as_array().unwrap().len(), 5);

    home.say(&["rule", "off", "denied-burst", "payments", "--reason", "migration"]);
    gateway.ship(&mut session, burst(second)).await;
    home.say(&["rule", "on", "denied-burst", "payments", "--reason", "migrated"]);
    gateway.ship(&mut session, burst(third)).await;
    let alarms = until(&home, "denied-burst", &third.to_string());
    assert_eq!(names(&alarms, &second.to_string()), Vec::<String>::new(), "it was off");

    // A suppression is about one name and one entity.
    let place = alarm["position"].as_u64().unwrap().to_string();
    home.say(&["alarm", "dispose", &place, "benign", "--reason", "drill"]);
    home.say(&["alarm", "suppress", &place, "--for", "1d", "--reason", "drill"]);
    gateway.ship(&mut session, burst(first)).await;
    gateway.ship(&mut session, burst(fourth)).await;
    let alarms = until(&home, "denied-burst", &fourth.to_string());
    assert_eq!(names(&alarms, &first.to_string()), ["denied-burst"]);
    let dispositions = records(&home, "ledger").into_iter().filter(|shown| shown["kind"] == "disposition");
    let kinds: Vec<String> = dispositions.map(|shown| word(&shown, "kind").to_owned()).collect();
    assert_eq!(kinds, ["benign", "suppressed"]);
    assert!(
        home.say(&["replay"])
            .contains("3 alarms on record were raised again, byte for byte; 0 were not; 0 were raised")
    );
    for (args, words) in [
        (&["rule", "off", "no-such", "payments", "--reason", "x"][..], "no such rule"),
        (&["rule", "off", "denied-burst", "nowhere", "--reason", "x"], "no workspace nowhere"),
        (&["alarm", "dispose", "0", "true", "--reason", "x"], "no alarm stands there"),
        (&["alarm", "suppress", &place, "--for", "soon", "--reason", "x"], "no span of time"),
    ] {
        let done = home.try_say(args);
        assert!(!done.status.success() && text(&done.stderr).contains(words), "{args:?}: {}", text(&done.stderr));
    }
    seen_by_those_whose_workspace_it_is(&home);
    held_against_the_past(&home);
    what_became_of_alarms(&home, &alarms);
    end(&process);
}

/// An analyst hears of alarms about the workspaces of their token, though not of the ledger's own records.
fn seen_by_those_whose_workspace_it_is(home: &Home) {
    home.workspace("research");
    let tokens = ["payments", "research"].map(|name| token(home, name, "analyst", &["--workspace", name]));
    let asked = |workspace: &str, args: &[&str]| found(home, &tokens[usize::from(workspace == "research")], args);
    let alarms = asked("payments", &["alarm:denied-burst", "--alarms", "--json"]);
    assert_eq!(alarms.lines().count(), 3, "{alarms}");
    assert_eq!(asked("payments", &["alarm:denied-burst", "--alarms", "--json", "--limit", "2", "--all"]), alarms);
    assert_eq!(asked("payments", &["alarm:denied-burst workspace:payments", "--alarms", "--json"]), alarms);
    assert_eq!(asked("payments", &["severity:high", "--alarms", "--json"]), "");
    assert_eq!(asked("research", &["--alarms", "--json"]), "");
    assert_eq!(asked("payments", &["kind:alarm", "--json"]), "");
}

/// Dispositions give each rule its share of false alarms: the newest of each alarm counts.
fn what_became_of_alarms(home: &Home, alarms: &[Value]) {
    let of = |name: &str| {
        let listed = home.say(&["rule", "list", "--json"]);
        let all = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.into_iter().find(|listed| listed["name"] == name).unwrap()
    };
    let before = of("denied-burst");
    assert_eq!((&before["alarms"], &before["disposed"]["benign"]), (&3.into(), &1.into()), "{before}");
    assert_eq!(before["questions"], serde_json::json!(["kind:call decision:denied"]));
    let places = alarms.iter().filter(|shown| word(shown, "name") == "denied-burst");
    let places: Vec<String> = places.map(|shown| shown["position"].to_string()).collect();
    for (place, was) in
        [(&places[0], "true"), (&places[1], "true"), (&places[1], "false"), (&places[2], "acknowledged")]
    {
        home.say(&["alarm", "dispose", place, was, "--reason", "looked"]);
    }
    let after = of("denied-burst");
    assert_eq!(after["disposed"], serde_json::json!({"true": 1, "false": 1, "benign": 0}), "{after}");
    assert_eq!(after["false_ratio"], 0.5);
    let table = home.say(&["rule", "list"]);
    let row = table.lines().find(|line| line.starts_with("denied-burst")).unwrap();
    assert_eq!(row.split_whitespace().skip(1).take(5).collect::<Vec<_>>(), ["medium", "3", "2", "50", "%"], "{row}");
    assert!(table.contains("counted: the ledger's own records from 0 to before"), "{table}");
    assert!(offline(&["rule", "list", "--ships"]).starts_with("NAME"));
    // A question of a rule is one that an analyst may ask.
    let token = token(home, "payments-again", "analyst", &["--workspace", "payments"]);
    let question = before["questions"][0].as_str().unwrap();
    assert_eq!(found(home, &token, &[question, "--count"]).trim(), "30");
}

fn tried(args: &[&str]) -> Output {
    Command::new(binary("ledger")).args(args).output().unwrap()
}

/// A rule of one's own, from its first draft to when it would have fired.
fn held_against_the_past(home: &Home) {
    assert!(offline(&["rule", "test"]).contains("samples, all as they must"));
    assert!(offline(&["rule", "lint"]).contains("nothing is wrong"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ledger/rules");
    let shipped = std::fs::read_to_string(folder.join("denied-burst.yml")).unwrap();
    let own = home.dir.join("own.yml");
    let own_text = own.to_str().unwrap().to_owned();
    let draft = |text: String| custody_tests::process::write(&own, text.as_bytes());
    draft(shipped.replace("name: denied-burst", "name: my-burst").replace("gte: 5", "gte: 6"));
    let done = tried(&["rule", "test", &own_text]);
    assert!(!done.status.success() && text(&done.stdout).contains("my-burst must fire and does not"));
    draft(shipped.replace("name: denied-burst", "name: my-burst"));
    assert!(offline(&["rule", "test", &own_text]).contains("4 samples, all as they must"));
    let said = home.say(&["rule", "backtest", &own_text, "--since", "1h"]);
    assert!(said.contains("my-burst would have fired 4 times in 1h"), "{said}");
    draft(shipped.replace("decision: denied", "decison: denied"));
    let done = tried(&["rule", "lint", &own_text]);
    assert!(!done.status.success() && text(&done.stderr).contains("no record has a field decison"));
}

/// Phases of a condition on record, in order; what the watch raised under the same name is none.
fn conditions(home: &Home, name: &str) -> Vec<String> {
    home.say(&["cut"]);
    let alarms = records(home, "ledger").into_iter().filter(|shown| shown["kind"] == "alarm");
    let phases = alarms.filter(|shown| word(shown, "name") == name).map(|shown| word(&shown, "phase").to_owned());
    phases.filter(|phase| phase != "raised").collect()
}

/// Killed at both sides of the write: of what begins, and of what ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_begins_and_ends_once_on_record_whatever_is_killed() {
    let home = Home::new("conditions", SETTINGS);
    let mut process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let killed_at = |point: &str| home.spawn(&[("CUSTODY_FAILPOINT", &format!("{point}:1"))]);
    let dead = |process: &Process| {
        let status = process.wait_end();
        assert!(status.code().is_none(), "{status:?}: {}", process.log().join("\n"));
    };
    end(&process);
    process = killed_at("watch-condition-raised");
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let (header, records) = (gateway.header(), gateway.records(1));
    let second = custody::batch::Header { created_at: header.created_at + 1, ..header.clone() };
    let (first, second) = (gateway.sign(header, &records), gateway.sign(second, &records));
    gateway.keep(first.clone());
    session.send(first).await.unwrap();
    gateway.settle(&mut session).await.unwrap();
    session.send(second).await.unwrap();
    dead(&process);
    // It stands, and is told at the start, behind which the next kill is.
    dead(&killed_at("watch-condition-told"));
    process = home.start();
    assert_eq!(conditions(&home, "equivocation"), ["began"]);
    end(&process);
    process = killed_at("watch-condition-raised");
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    home.say(&["acknowledge", "equivocation"]);
    dead(&process);
    dead(&killed_at("watch-condition-told"));
    process = home.start();
    assert_eq!(conditions(&home, "equivocation"), ["began", "ended"]);
    end(&process);
}

/// What a gateway may not write never becomes a record, and is a condition that names the gateway.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_an_unauthorised_kind_is_a_condition_of_its_gateway() {
    let home = Home::new("refused", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship(&mut session, vec![changed("tool_")]).await;
    let alarm = record::encode(Kind::Alarm(wire::Alarm {
        at: now_us(),
        phase: wire::AlarmPhase::Raised as i32,
        severity: wire::Severity::Low as i32,
        name: "x".to_owned(),
        ..Default::default()
    }));
    session.send(gateway.sign(gateway.header(), &[alarm.into()])).await.unwrap();
    let rejection = gateway.refusal(&mut session).await.unwrap();
    assert_eq!(rejection.reason(), wire::RejectReason::Unauthorised);
    let began = soon(|| {
        home.say(&["cut"]);
        records(&home, "ledger").into_iter().find(|shown| word(shown, "name") == "batch-unauthorised")
    });
    assert_eq!((word(&began, "phase"), word(&began, "severity")), ("began", "high"));
    assert_eq!(word(&began, "gateway"), gateway.gateway.to_string());
    assert_eq!(word(&began, "workspace"), gateway.header().workspace.to_string());
    end(&process);
}

/// A kill between the receiver's yes and the note of it: it hears the same again, and all that follows in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_hears_everything_in_order_whatever_is_killed() {
    let (port, got) = receiver();
    let home = Home::new("webhook-killed", SETTINGS);
    webhook(&home, port);
    let process = home.spawn(&[("CUSTODY_FAILPOINT", "watch-webhook-taken:1")]);
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship(&mut session, vec![changed("one_")]).await;
    assert!(process.wait_end().code().is_none());
    let process = home.start();
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship(&mut session, vec![changed("two_")]).await;
    let mut ids: Vec<String> = Vec::new();
    let mut last = String::new();
    while !last.contains("two_") {
        let (_, body) = got.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        let said: Value = serde_json::from_str(&body).unwrap();
        for alarm in said["alarms"].as_array().into_iter().flatten() {
            ids.push(alarm["id"].as_str().unwrap().to_owned());
            last = alarm.to_string();
        }
    }
    // Refused, taken, and taken once more after the kill; then the next.
    let places: Vec<u64> = ids.iter().map(|id| id.split_once('/').unwrap().1.parse().unwrap()).collect();
    let times = |place: u64| places.iter().filter(|other| **other == place).count();
    assert_eq!(times(places[0]), 3, "{ids:?}");
    assert!(places.windows(2).all(|two| two[1] > two[0] || two[1] == places[0]), "in order: {ids:?}");
    let on_record = raised(&home).into_iter().map(|shown| shown["position"].as_u64().unwrap());
    assert!(on_record.take(4).all(|place| times(place) > 0), "none is left out: {ids:?}");
    end(&process);
}

/// What a receiver got, whole: its signature and its body. The first alarms it does not take.
fn receiver() -> (u16, mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // More than it gets in half a minute.
    let (got, all) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        let mut refused = false;
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut signature, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).unwrap() <= 2 {
                    break;
                }
                let (name, value) = line.trim_end().split_once(": ").unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "custody-signature" => signature = value.to_owned(),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let refuses = !refused && text(&body).contains(r#""type":"alarms""#);
            refused |= refuses;
            let status = if refuses { "503 Service Unavailable" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            if got.send((signature, text(&body))).is_err() {
                return;
            }
        }
    });
    (port, all)
}

const SECRET: &[u8] = b"sixteen bytes, and some more";

/// Alarms go to this port from the next start on.
fn webhook(home: &Home, port: u16) {
    let secret = home.dir.join("webhook.secret");
    custody_tests::process::write(&secret, SECRET);
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let more = format!(
        "{SETTINGS}watch.webhook_url = \"http://127.0.0.1:{port}/a-secret-path\"\nwatch.webhook_secret_file = \"webhook.secret\"\n\
         watch.heartbeat_seconds = 2\n"
    );
    home.configure(&more);
}

/// HMAC-SHA256 (RFC 2104), written here so that the test believes nobody.
fn hmac(secret: &[u8], message: &[u8]) -> String {
    let pad = |with: u8| (0..64).map(|at| secret.get(at).copied().unwrap_or(0) ^ with).collect::<Vec<u8>>();
    let inner = custody::hash::sha256(&[&pad(0x36), message]);
    custody::id::hex(&custody::hash::sha256(&[&pad(0x5c), &inner]))
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_are_sent_until_they_are_taken_signed_and_a_heartbeat_between() {
    let (port, got) = receiver();
    let home = Home::new("webhook", SETTINGS);
    webhook(&home, port);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    gateway.ship(&mut session, vec![changed("tool_")]).await;
    let (mut alarms, mut beats) = (Vec::new(), 0);
    while alarms.len() < 2 || beats == 0 {
        let (signature, body) = got.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
        let (time, sum) = signature.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
        assert_eq!(sum, hmac(SECRET, format!("{time}.{body}").as_bytes()));
        let said: Value = serde_json::from_str(&body).unwrap();
        match said["type"].as_str().unwrap() {
            "heartbeat" => beats += 1,
            _ => alarms.push(said["alarms"].clone()),
        }
    }
    // Once it was not taken: the same again.
    let names = |of: &Value| of.as_array().unwrap().iter().map(|of| of["alarm"]["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&alarms[0]), ["incident", "tool-definition-changed"]);
    assert_eq!(alarms[0], alarms[1]);
    let ids: Vec<&str> = alarms[0].as_array().unwrap().iter().map(|of| of["id"].as_str().unwrap()).collect();
    assert!(ids[0] < ids[1] && ids[0].contains('/'), "{ids:?}");
    end(&process);
    let log = process.log().join("\n");
    assert!(
        log.contains("it answered 503") && !log.contains("a-secret-path") && !log.contains("sixteen bytes"),
        "{log}"
    );
}
