//! Answers in other clothes: over HTTP as the served document describes them, as evidence that a stranger checks, as a tree, and
//! offline; all say the same.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use bytes::Bytes;
use custody::{
    id::MemberId,
    record,
    wire::{self, record::Kind},
};
use custody_tests::{
    peer::{Gateway, Session, random},
    process::{Home, SETTINGS, binary, end, soon, text},
};
use serde_json::Value;

use super::{
    relay::installed,
    search::{found, of_number, token},
};

const TRACE: [u8; 16] = [0xab; 16];

/// A call of a trace, each third of the calls within the one before it.
fn call(number: u64, member: MemberId) -> Bytes {
    let within = wire::Link { kind: wire::LinkKind::Nested as i32, epoch: None, call_number: number.saturating_sub(1) };
    let mut call = of_number(number, member);
    // In the order of their numbers, however fast they are made.
    call.started_at += number;
    call.trace = Some(wire::TraceContext { trace_id: TRACE.to_vec().into(), span_id: vec![7; 8].into(), flags: 1 });
    call.link = (number % 3 == 1).then_some(within);
    record::encode(Kind::Call(call)).into()
}

async fn ship(gateway: &mut Gateway, session: &mut Session, calls: std::ops::Range<u64>, member: MemberId) {
    gateway.ship(session, calls.map(|number| call(number, member))).await;
}

/// Runs a program that must end well, or not; what it printed.
fn says(program: &str, args: &[&str], token: Option<&PathBuf>, code: i32) -> String {
    let mut command = Command::new(binary(program));
    command.args(args).env(
        "CUSTODY_API_TOKEN",
        token.map(|file| std::fs::read_to_string(file).unwrap().trim().to_owned()).unwrap_or_default(),
    );
    let done = command.output().unwrap();
    let said = text(&done.stdout) + &text(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{args:?}: {said}");
    said
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|why| panic!("{why}: {said}"))
}

/// What is refused says why and the next move, and each refusal is on record.
fn refused_as_over_grpc(home: &Home, refused: &Value) {
    let of = |name: &str| {
        let [status, error] = refused[name].as_array().unwrap().as_slice() else { panic!("{name}") };
        (
            status.as_u64().unwrap(),
            error["code"].as_str().unwrap().to_owned(),
            error["hint"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(of("no token"), of("a token that nobody has"));
    assert_eq!(
        (of("no token").0, of("another workspace").0, of("no such record").0, of("no such path").0),
        (401, 404, 404, 404)
    );
    assert!(of("a parameter that nobody knows").2.contains("query, workspace, names, reason"));
    assert_eq!((of("one given twice").0, of("no trace").1.as_str()), (400, "invalid_argument"));
    assert_eq!(refused["no question"][1]["start"], 0);
    assert_eq!(refused["no question"][1]["end"], 7);
    // Each is on record as over gRPC, also what could not be read: but not what no token vouches for.
    home.say(&["cut"]);
    let on_record = custody_tests::shown::records(home, "ledger");
    let searches = on_record.iter().filter(|shown| shown["kind"] == "search").map(|shown| &shown["record"]);
    let denied = searches.clone().filter(|search| search["decision"] == "denied").count();
    assert_eq!(denied, 5, "{:#?}", searches.collect::<Vec<_>>());
    assert_eq!(refused["no question"][1]["message"], "the question names a field that there is not");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_the_answers_are_as_the_document_says_and_the_same_as_over_grpc() {
    let home = Home::new("web", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    home.workspace("research");
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let member = MemberId(random());
    ship(&mut gateway, &mut session, 0..40, member).await;
    let admin = token(&home, "root", "admin", &["--workspace", "payments"]);
    let mut python = Command::new(installed("CUSTODY_PYTHON", "venv/bin/python"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/web.py");
    let authority = home.dir.join("tls/authority.pem");
    python
        .arg(script)
        .arg(format!("https://localhost:{}", home.ask))
        .arg(&authority)
        .args(["payments", &"ab".repeat(16)]);
    python.env("CUSTODY_API_TOKEN", std::fs::read_to_string(&admin).unwrap().trim());
    let mut python = python.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(python.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    if line != "following\n" {
        let mut why = String::new();
        python.stderr.take().unwrap().read_to_string(&mut why).unwrap();
        panic!("{line}{why}");
    }
    ship(&mut gateway, &mut session, 40..45, member).await;
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    assert!(python.wait().unwrap().success());
    let answers = json(&said);

    let place = |hit: &Value| (hit["position"].as_u64().unwrap(), hit["record"].clone());
    let (first, next) = (&answers["/v1/search"], &answers["next"]);
    assert_eq!((&first["total"], first["hits"].as_array().unwrap().len()), (&40.into(), 10));
    let pages: Vec<_> = [first, next].iter().flat_map(|page| page["hits"].as_array().unwrap()).map(place).collect();
    let shown = found(&home, &admin, &["kind:call call:<40", "--json", "--limit", "20"]);
    assert_eq!(pages, shown.lines().map(|line| place(&json(line))).collect::<Vec<_>>());
    let exported: Vec<Value> = answers["/v1/export"].as_str().unwrap().lines().map(json).collect();
    let all = found(&home, &admin, &["kind:call call:<40", "--json", "--all"]);
    assert_eq!(exported, all.lines().map(json).collect::<Vec<_>>());
    assert_eq!(answers["csv"].as_str().unwrap().lines().count(), 41);
    let summary = &answers["/v1/summary"];
    assert_eq!((&summary["count"], &summary["facets"][1]["distinct"]), (&40.into(), &2.into()));
    assert_eq!(summary["facets"][0]["values"][1], serde_json::json!({"value": "denied", "count": 8}));
    let of_cli = found(
        &home,
        &admin,
        &["kind:call call:<40", "--json", "--facet", "outcome", "--histogram", "--width", "1d", "--split", "outcome"],
    );
    assert_eq!(json(&of_cli)["buckets"], summary["buckets"]);
    assert_eq!(answers["followed"][0], "record");
    assert_eq!(answers["followed"][1]["record"]["call_number"], 44);

    refused_as_over_grpc(&home, &answers["refused"]);
    // The one file over HTTP is what the auditor's program takes.
    let file = home.dir.join("one.tlog-proof");
    custody_tests::process::write(
        &file,
        answers["/v1/records/{workspace}/{position}/evidence"].as_str().unwrap().as_bytes(),
    );
    let checked = says(
        "verifier",
        &["evidence", "check", file.to_str().unwrap(), "--policy", home.policy().to_str().unwrap()],
        None,
        0,
    );
    assert!(checked.contains("position 1"), "{checked}");
    end(&process);
}

/// Lies about what was handed out, each named.
fn lies(home: &Home, records: &str, check: &impl Fn(&PathBuf, i32) -> String) {
    // A line that says something else than its evidence, and a file that is missing.
    let said = records.replacen("denied", "allowed", 1);
    let lines = home.dir.join("denied/records-000001.jsonl");
    custody_tests::process::write(&lines, said.as_bytes());
    assert!(check(&home.dir.join("denied"), 1).contains("says something else in records-*.jsonl"));
    custody_tests::process::write(&lines, records.as_bytes());
    let file = home.dir.join("all/question.json");
    let question = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(check(&home.dir.join("all"), 2).contains("it broke off, or was taken apart"));
    custody_tests::process::write(&file, &question);
    assert!(check(&home.dir.join("all"), 0).contains("40 records"));
    // A lie in one of them is named; so is a folder that is not empty.
    let files = std::fs::read_dir(home.dir.join("denied")).unwrap().map(|file| file.unwrap().path());
    let within = files
        .filter(|path| path.is_dir())
        .flat_map(|path| std::fs::read_dir(path).unwrap())
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&within).unwrap();
    let at = bytes.len() / 2;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    custody_tests::process::write(&within, &bytes);
    let refuted = check(&home.dir.join("denied"), 1);
    assert!(
        refuted.matches(": verified: ").count() == 7 && refuted.contains(within.file_name().unwrap().to_str().unwrap()),
        "{refuted}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_proven_to_a_stranger_also_what_was_not_archived_yet() {
    let home = Home::new("proven", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut other = Gateway::enrol(&home, home.workspace("research"));
    let member = MemberId(random());
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 0..20, member).await;
    home.say(&["cut"]);
    ship(&mut gateway, &mut session, 20..40, member).await;
    let mut elsewhere = other.connect(home.grpc).await.unwrap();
    ship(&mut other, &mut elsewhere, 0..5, member).await;
    let auditor = token(&home, "auditor", "auditor", &["--workspace", "payments"]);
    let analyst = token(&home, "analyst", "analyst", &["--workspace", "payments"]);
    let (config, policy) = (home.config(), home.policy());
    let config = ["--config", config.to_str().unwrap()];
    let fetch = |token: &PathBuf, query: &str, folder: &str, code: i32| {
        let folder = home.dir.join(folder);
        let args = [&["search", query, "--evidence", folder.to_str().unwrap()][..], &config].concat();
        (says("ledger", &args, Some(token), code), folder)
    };
    let (refused, _) = fetch(&analyst, "outcome:denied", "analyst", 1);
    assert!(refused.contains("the role analyst may not do this"), "{refused}");
    // Denied calls stand apart, four in each segment, the second of which is open.
    let (said, folder) = fetch(&auditor, "outcome:denied", "denied", 0);
    assert!(said.contains("8 records, in 8 evidence files, checked under the policy"), "{said}");
    let check = |folder: &PathBuf, code: i32| {
        says(
            "verifier",
            &["evidence", "check", folder.to_str().unwrap(), "--policy", policy.to_str().unwrap()],
            None,
            code,
        )
    };
    assert!(check(&folder, 0).contains("8 evidence files verified, 8 records"));
    let question = json(&std::fs::read_to_string(folder.join("question.json")).unwrap());
    assert_eq!((&question["question"], &question["records"]), (&"outcome:denied".into(), &8.into()));
    let records = std::fs::read_to_string(folder.join("records-000001.jsonl")).unwrap();
    let live: Vec<Value> = found(&home, &auditor, &["outcome:denied", "--json"]).lines().map(json).collect();
    assert_eq!(records.lines().map(json).collect::<Vec<_>>(), live);
    // Neighbours are one file, over the border of two segments too.
    let (said, folder) = fetch(&auditor, "kind:call", "all", 0);
    assert!(said.contains("40 records, in 1 evidence files"), "{said}");
    assert!(check(&folder, 0).contains("1 evidence files verified, 40 records"));
    lies(&home, &records, &check);
    assert!(fetch(&auditor, "", "denied", 64).0.contains("not a new or empty folder"));
    // One record; and nobody proves what he does not see.
    let one = home.dir.join("one.tlog-proof");
    let show = |place: &str, code: i32| {
        let args = [&["show", place, "--evidence", one.to_str().unwrap()][..], &config].concat();
        says("ledger", &args, Some(&analyst), code)
    };
    assert!(show("payments/7", 0).contains("payments/7"));
    assert!(check(&one, 0).contains("position 7"));
    assert!(show("research/1", 1).contains("there is no such workspace for this token"));
    assert!(show("payments/41", 1).contains("no record stands there"));
    assert!(show("payments", 64).contains("is no place"));
    end(&process);
}

fn sums_are_the_same_offline(home: &Home, analyst: &PathBuf) {
    let offline = |args: &[&str]| {
        let (archive, policy) = (home.archive(), home.policy());
        let all = [&["search", archive.to_str().unwrap(), "kind:call", "--policy", policy.to_str().unwrap()][..], args]
            .concat();
        says("verifier", &all, None, 0)
    };
    let live = json(&found(
        home,
        analyst,
        &[
            "kind:call",
            "--json",
            "--histogram",
            "--width",
            "1d",
            "--split",
            "outcome",
            "--percentiles",
            "duration",
            "--by",
            "tool",
        ],
    ));
    let sums =
        offline(&["--histogram", "--width", "1d", "--split", "outcome", "--percentiles", "duration", "--by", "tool"]);
    for bucket in live["buckets"].as_array().unwrap() {
        let line = format!("{:>12}  {}", bucket["count"], bucket["start"].as_str().unwrap());
        assert!(sums.contains(&line), "{line}\n{sums}");
    }
    for ranked in live["percentiles"].as_array().unwrap() {
        let [p50, p95, p99] = [0, 1, 2].map(|at| ranked["values"][at].as_u64().unwrap());
        let line =
            format!("{:>12}  {p50:>12}  {p95:>12}  {p99:>12}  {}", ranked["count"], ranked["value"].as_str().unwrap());
        assert!(sums.contains(&line), "{line}\n{sums}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_trace_are_a_tree_and_what_follows_is_shown_as_it_comes() {
    let home = Home::new("trace", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let member = MemberId(random());
    let analyst = token(&home, "ann", "analyst", &[]);
    let config = home.config();
    let mut follow = Command::new(binary("ledger"));
    follow.args(["search", "outcome:denied", "--follow", "--json", "--config", config.to_str().unwrap()]);
    follow.env("CUSTODY_API_TOKEN", std::fs::read_to_string(&analyst).unwrap().trim());
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    // It follows once its beginning is on record.
    soon(|| {
        home.say(&["cut"]);
        let on_record = custody_tests::shown::records(&home, "ledger");
        on_record.iter().any(|shown| shown["kind"] == "search").then_some(())
    });
    ship(&mut gateway, &mut session, 0..10, member).await;
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let heard: Vec<u64> =
        lines.take(2).map(|line| json(&line.unwrap())["record"]["call_number"].as_u64().unwrap()).collect();
    assert_eq!(heard, [4, 9]);
    follow.kill().unwrap();
    follow.wait().unwrap();

    let trace = |more: &[&str], code: i32| {
        let args = [&["trace"][..], more, &["--config", config.to_str().unwrap()]].concat();
        says("ledger", &args, Some(&analyst), code)
    };
    let told = json(&trace(&[&"ab".repeat(16), "--json"], 0));
    let steps: Vec<(u64, Option<u64>)> = told["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step["hit"]["record"]["call_number"].as_u64().unwrap_or(0), step["parent"].as_u64()))
        .collect();
    let within = |number: u64| (number % 3 == 1).then(|| number - 1);
    assert_eq!(steps, (0..10).map(|number| (number, within(number))).collect::<Vec<_>>());
    assert_eq!(trace(&[&"ab".repeat(16)], 0).matches('└').count(), 3);
    // Of the same trace elsewhere whoever does not see it hears nothing.
    let mut other = Gateway::enrol(&home, home.workspace("research"));
    let mut elsewhere = other.connect(home.grpc).await.unwrap();
    ship(&mut other, &mut elsewhere, 0..5, member).await;
    let blind = token(&home, "blind", "analyst", &["--workspace", "payments"]);
    let args = ["trace", &"ab".repeat(16), "--json", "--config", config.to_str().unwrap()];
    let steps = |token: &PathBuf| json(&says("ledger", &args, Some(token), 0))["steps"].as_array().unwrap().len();
    assert_eq!((steps(&blind), steps(&analyst)), (10, 15));
    assert!(trace(&[&"cd".repeat(16)], 0).contains("\n0; of 17 records"));
    trace(&["xyz"], 1);

    home.say(&["cut"]);
    sums_are_the_same_offline(&home, &analyst);
    end(&process);
}
