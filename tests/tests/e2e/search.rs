//! Questions: found as soon as it is acknowledged, over pages, restarts and a lost index; each on record; and who may see what. No
//! answer, error or count says anything of a workspace that a token does not see.

use std::{path::PathBuf, process::Command};

use bytes::Bytes;
use custody::{
    id::MemberId,
    record,
    wire::{self, Decision, EnrolMember, Outcome, Phase, from_gateway, query_client::QueryClient, record::Kind},
};
use custody_tests::{
    peer::{ANSWER, Gateway, Heard, Session, now_us, opened, random},
    process::{Home, SETTINGS, binary, end, soon, text},
    shown::records,
};
use serde_json::Value;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// A call of this member; everything else follows from the number.
pub(crate) fn call(number: u64, member: MemberId) -> Bytes {
    record::encode(Kind::Call(of_number(number, member))).into()
}

/// What it says.
pub(crate) fn of_number(number: u64, member: MemberId) -> wire::Call {
    let denied = number % 5 == 4;
    wire::Call {
        call_number: number,
        phase: Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        member: Some(member.into()),
        server: "github".to_owned(),
        target: Some(wire::call::Target::Tool(
            ["list", "delete_repo"][usize::try_from(number % 2).unwrap()].to_owned(),
        )),
        decision: if denied { Decision::Denied } else { Decision::Allowed } as i32,
        started_at: now_us(),
        duration_us: number * 1_000,
        outcome: if denied { Outcome::Denied } else { Outcome::Ok } as i32,
        ..Default::default()
    }
}

pub(crate) async fn ship(gateway: &mut Gateway, session: &mut Session, calls: std::ops::Range<u64>, member: MemberId) {
    gateway.ship(session, calls.map(|number| call(number, member))).await;
}

/// A token in a file.
pub(crate) fn token(home: &Home, name: &str, role: &str, more: &[&str]) -> PathBuf {
    let file = home.dir.join(format!("{name}.token"));
    home.say(&[&["token", "add", name, "--role", role, "--out", file.to_str().unwrap()], more].concat());
    file
}

/// Asks with a token: code, and what it printed on both ways out.
fn ask(home: &Home, token: &PathBuf, args: &[&str]) -> (i32, String) {
    let secret = std::fs::read_to_string(token).unwrap();
    let mut command = Command::new(binary("ledger"));
    command.arg("search").args(args).arg("--config").arg(home.config()).env("CUSTODY_API_TOKEN", secret.trim());
    let done = command.output().unwrap();
    (done.status.code().unwrap(), text(&done.stdout) + &text(&done.stderr))
}

/// What a question that must be answered printed.
pub(crate) fn found(home: &Home, token: &PathBuf, args: &[&str]) -> String {
    let (code, said) = ask(home, token, args);
    assert_eq!(code, 0, "{args:?}: {said}");
    said
}

pub(crate) fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

/// Searches on record: decision, query, hits, whether names were shown.
fn on_record(home: &Home) -> Vec<(String, String, u64, bool)> {
    let of = |shown: &Value| {
        let record = &shown["record"];
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        (text("decision"), text("query"), record["hits"].as_u64().unwrap_or(0), record["names_shown"] == true)
    };
    records(home, "ledger").iter().filter(|shown| shown["kind"] == "search").map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_found_by_whoever_may_and_each_question_is_on_record() {
    let home = Home::new("search", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let (ada, eve) = (MemberId(random()), MemberId(random()));
    let analyst = token(&home, "ann", "analyst", &[]);
    ship(&mut gateway, &mut session, 0..40, ada).await;
    // At once, whatever the index has.
    assert_eq!(found(&home, &analyst, &["kind:call", "--count"]), "40\n");
    assert_eq!(found(&home, &analyst, &["kind:call", "--count", "--json"]), "40\n");
    ship(&mut gateway, &mut session, 40..100, eve).await;
    assert_eq!(found(&home, &analyst, &[&format!("member:{eve}"), "--count"]), "60\n");
    let all = lines(&found(&home, &analyst, &["kind:call", "--json", "--all"]));
    assert_eq!(all.len(), 100);
    let positions: Vec<u64> = all.iter().map(|line| line["position"].as_u64().unwrap()).collect();
    assert!(positions.is_sorted_by(|newer, older| newer > older), "{positions:?}");
    assert_eq!((&all[0]["workspace_name"], &all[0]["record"]["call_number"]), (&"payments".into(), &99.into()));
    let few = found(&home, &analyst, &["tool:delete_* decision:denied duration:>50ms", "--limit", "3"]);
    assert!(few.contains("3 of 5; of 101 records, indexed through"), "{few}");
    let sums =
        found(&home, &analyst, &["kind:call", "--facet", "outcome", "--facet", "tool", "--percentiles", "duration"]);
    for part in ["ok            80", "denied        20", "github/delete_repo  50", "P95"] {
        assert!(sums.contains(part.split("  ").next().unwrap()), "{part} is not in\n{sums}");
    }
    let drawn = found(&home, &analyst, &["kind:call", "--histogram", "--split", "outcome", "--width", "1d"]);
    assert!(drawn.contains("ok 80, denied 20"), "{drawn}");
    let (code, wrong) = ask(&home, &analyst, &["outcom:ok"]);
    assert!(code == 1 && wrong.contains("^^^^^^^") && wrong.contains("did you mean outcome?"), "{wrong}");
    let (code, unknown) = ask(&home, &analyst, &["kind:call", "--csv"]);
    assert!(code == 1 && unknown.contains("may not do this"), "{unknown}");
    let csv = found(&home, &token(&home, "siem", "exporter", &[]), &["kind:call", "--csv"]);
    assert_eq!(csv.lines().count(), 101, "{csv}");

    // The same after a restart, and without the index, which is built again.
    end(&process);
    for lost in [false, true] {
        if lost {
            std::fs::remove_dir_all(home.dir.join("data/index")).unwrap();
        }
        let process = home.start();
        assert_eq!(lines(&found(&home, &analyst, &["kind:call", "--json", "--all"])), all);
        assert_eq!(found(&home, &analyst, &["kind:call outcome:denied", "--count"]), "20\n");
        end(&process);
    }
    let process = home.start();
    home.say(&["cut"]);
    let seen = on_record(&home);
    let allowed = seen.iter().filter(|(decision, ..)| decision == "allowed").count();
    assert_eq!(allowed, 13, "{seen:#?}");
    assert_eq!(seen.iter().filter(|(decision, ..)| decision == "denied").count(), 2, "{seen:#?}");
    assert!(seen.contains(&("allowed".into(), format!("member:{eve}"), 1, false)), "{seen:#?}");
    assert!(seen.iter().any(|(_, _, hits, _)| *hits == 100));
    let places = [
        &format!("member:{eve} -outcome:ok"),
        "kind:call",
        "tool:delete_* decision:denied duration:>50ms",
        "-kind:call",
    ];
    same_offline(&home, &analyst, &places);
    end(&process);
}

/// Whoever trusts none of us finds the same in a copy of the archive.
fn same_offline(home: &Home, token: &PathBuf, queries: &[&str]) {
    let offline = |args: &[&str]| {
        let mut command = Command::new(binary("verifier"));
        command.arg("search").arg(home.archive()).args(args).arg("--policy").arg(home.policy());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", text(&done.stderr));
        text(&done.stdout)
    };
    let place = |line: &Value| (line["workspace"].clone(), line["position"].clone(), line["record"].clone());
    for query in queries {
        let of_all = offline(&[query, "--workspace", "payments", "--json", "--limit", "1000"]);
        let of_all: Vec<_> = lines(&of_all).iter().map(place).collect();
        let live: Vec<_> = lines(&found(home, token, &[query, "--json", "--all"])).iter().map(place).collect();
        assert_eq!(of_all, live, "{query}");
        assert_eq!(offline(&[query, "--workspace", "payments", "--count"]), format!("{}\n", live.len()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_hears_nothing_of_workspaces_that_it_does_not_see() {
    let home = Home::new("roles", SETTINGS);
    let process = home.start();
    let ids = ["payments", "research"].map(|name| home.workspace(name));
    let member = MemberId(random());
    for (workspace, calls) in ids.into_iter().zip([0..30, 100..170]) {
        let mut gateway = Gateway::enrol(&home, workspace);
        let mut session = gateway.connect(home.grpc).await.unwrap();
        ship(&mut gateway, &mut session, calls, member).await;
    }
    let one = token(&home, "one", "analyst", &["--workspace", "payments"]);
    let auditor = token(&home, "auditor", "auditor", &["--workspace", "payments"]);
    let exporter = token(&home, "exporter", "exporter", &["--workspace", "payments"]);
    let every = token(&home, "every", "analyst", &[]);
    assert_eq!(found(&home, &every, &["kind:call", "--count"]), "100\n");
    let hidden = |said: &str| {
        let named = said.contains("research") || said.contains(&ids[1].to_string());
        assert!(!named, "another workspace shows: {said}");
    };
    let other = ids[1].to_string();
    let of_other = format!("workspace:{other}");
    for asked in [&one, &auditor] {
        for args in [
            &["kind:call", "--count"][..],
            &["--json", "--all"],
            &[&format!("member:{member}"), "--count"],
            &["--facet", "workspace", "--facet", "member"],
            &["kind:call", "--histogram", "--split", "workspace"],
            &["--percentiles", "duration", "--by", "workspace"],
            &[&of_other, "--count"],
            &["workspace:research", "--count"],
            &["-workspace:payments", "--count"],
            &["outcom:ok"],
        ] {
            hidden(&ask(&home, asked, args).1.replace(&of_other, "").replace("workspace:research", ""));
        }
        assert_eq!(found(&home, asked, &["kind:call", "--count"]), "30\n");
        assert_eq!(found(&home, asked, &[&of_other, "--count"]), "0\n");
        assert_eq!(found(&home, asked, &["-workspace:payments", "--count"]), "0\n");
        // Of how much there is it hears its own alone: the writer's record and thirty calls.
        assert!(found(&home, asked, &["kind:call", "--limit", "1"]).contains("1 of 30; of 31 records"));
        // What it does not see is as what is not there.
        let errors = ["research", &other, "nothing"].map(|name| ask(&home, asked, &["", "--workspace", name]));
        assert!(errors.iter().all(|error| *error == errors[0] && error.0 == 1), "{errors:?}");
    }
    let csv = found(&home, &exporter, &["", "--csv"]);
    hidden(&csv);
    assert_eq!(csv.lines().count(), 32);
    // The ledger's own records are for those who look over all shoulders.
    assert!(!found(&home, &every, &["kind:search", "--count"]).starts_with('9'));
    assert_eq!(found(&home, &every, &["kind:search", "--count"]), "0\n");
    let all = token(&home, "all", "auditor", &[]);
    assert_ne!(found(&home, &all, &["kind:search", "--count"]), "0\n");
    // A cursor is its holder's alone.
    let cursors = pages(&home, &[&one, &every]).await;
    assert!(cursors.iter().all(|status| *status == tonic::Code::InvalidArgument), "{cursors:?}");

    let unknown = home.dir.join("unknown.token");
    custody_tests::process::write(&unknown, format!("cqt_{}_{}", "ab".repeat(16), "cd".repeat(32)).as_bytes());
    let listed = home.say(&["token", "list"]);
    let id = listed.lines().find(|line| line.contains(" one ")).unwrap().split(' ').next().unwrap();
    home.say(&["token", "revoke", id, "--reason", "left"]);
    let refusals = [&unknown, &one].map(|token| ask(&home, token, &["kind:call"]));
    assert!(refusals[0] == refusals[1] && refusals[0].1.contains("no such token"), "{refusals:?}");
    end(&process);
    assert!(!process.log().iter().any(|line| line.contains("cqt_")), "a token is in the log");
}

async fn asker(home: &Home) -> QueryClient<Channel> {
    let authority = std::fs::read(home.dir.join("tls/authority.pem")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    let endpoint = Endpoint::from_shared(format!("https://localhost:{}", home.ask)).unwrap().tls_config(tls).unwrap();
    QueryClient::new(endpoint.connect().await.unwrap())
}

fn request<T>(token: &PathBuf, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value = format!("Bearer {}", std::fs::read_to_string(token).unwrap().trim());
    request.metadata_mut().insert("authorization", value.parse().unwrap());
    request
}

fn question(query: &str) -> Option<wire::Question> {
    Some(wire::Question { query: query.to_owned(), ..Default::default() })
}

/// Takes a page with each token and gives its cursor to the other one, and to another question: what they hear.
async fn pages(home: &Home, tokens: &[&PathBuf; 2]) -> Vec<tonic::Code> {
    let mut asker = asker(home).await;
    let find = |query: &str, cursor: &str| wire::FindRequest {
        question: question(query),
        limit: 10,
        cursor: cursor.to_owned(),
        count: false,
    };
    // A time that is told from now means the same on each page.
    let recent = "kind:call since:24h";
    let mut heard = Vec::new();
    for (token, other) in [(tokens[0], tokens[1]), (tokens[1], tokens[0])] {
        let first = asker.find(request(token, find(recent, ""))).await.unwrap().into_inner();
        let second = asker.find(request(token, find(recent, &first.cursor))).await.unwrap().into_inner();
        assert!(
            second.hits[0].position < first.hits[9].position || second.hits[0].workspace != first.hits[9].workspace
        );
        heard.push(asker.find(request(other, find(recent, &first.cursor))).await.unwrap_err().code());
        heard.push(asker.find(request(token, find("", &first.cursor))).await.unwrap_err().code());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_on_record_at_both_ends_and_lasts_no_longer_than_its_token() {
    let home = Home::new("streams", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let member = MemberId(random());
    let [admin, analyst, auditor, exporter] =
        ["admin", "analyst", "auditor", "exporter"].map(|role| token(&home, role, role, &[]));
    let mut asker = asker(&home).await;
    let follow = |query: &str| wire::FollowRequest { question: question(query) };
    let show = || wire::ShowRequest { workspace: "payments".to_owned(), position: 1, ..Default::default() };

    let mut following = asker.follow(request(&analyst, follow("kind:call outcome:denied"))).await.unwrap().into_inner();
    // A workspace that is made later is followed too.
    let mut later = Gateway::enrol(&home, home.workspace("later"));
    ship(&mut gateway, &mut session, 0..20, member).await;
    let mut heard = Vec::new();
    while heard.len() < 4 {
        heard.extend(following.message().await.unwrap().unwrap().hits.iter().map(|hit| hit.position));
    }
    assert_eq!(heard, [5, 10, 15, 20]);
    let mut other = later.connect(home.grpc).await.unwrap();
    ship(&mut later, &mut other, 0..5, member).await;
    let hit = following.message().await.unwrap().unwrap().hits[0].clone();
    assert_eq!((hit.workspace_name.as_str(), hit.position), ("later", 5));

    // Who may what, by the code of the answer.
    let mut codes = Vec::new();
    for token in [&admin, &analyst, &auditor, &exporter] {
        let shown = asker.show(request(token, show())).await.map(|shown| shown.into_inner().hit.unwrap().position);
        let followed = asker.follow(request(token, follow(""))).await;
        codes.push((shown.is_ok_and(|position| position == 1), followed.map_err(|why| why.code()).err()));
    }
    let denied = Some(tonic::Code::PermissionDenied);
    assert_eq!(codes, [(true, None), (true, None), (true, denied), (false, None)]);

    // Whoever leaves early is on record with what was sent: of 60,000 records the first parts.
    for start in 0..15 {
        ship(&mut gateway, &mut session, 20 + start * 4_000..20 + (start + 1) * 4_000, member).await;
    }
    let wanted = wire::ExportRequest { question: question("kind:call"), ..Default::default() };
    let mut exported = asker.export(request(&exporter, wanted)).await.unwrap().into_inner();
    assert!(!exported.message().await.unwrap().unwrap().bytes.is_empty());
    drop(exported);

    let listed = home.say(&["token", "list"]);
    let id = listed.lines().find(|line| line.contains(" analyst ")).unwrap().split(' ').next().unwrap();
    home.say(&["token", "revoke", id, "--reason", "left"]);
    ship(&mut gateway, &mut session, 60_020..60_040, member).await;
    // It may be behind; what was sent before is all that it hears.
    let mut followed = 5;
    let ended = loop {
        match following.message().await {
            Ok(Some(heard)) => {
                followed += heard.hits.len() as u64;
                assert!(heard.hits.iter().all(|hit| hit.position <= 60_020), "{heard:?}");
            }
            ended => break ended.unwrap_err(),
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unauthenticated, "{ended}");
    // The end of the export is on record when it is noticed that nobody reads.
    let mut many = soon(|| {
        home.say(&["cut"]);
        let of = |(decision, _, hits, _): (String, String, u64, bool)| (decision == "allowed").then_some(hits);
        let many: Vec<u64> = on_record(&home).into_iter().filter_map(of).filter(|hits| *hits > 1).collect();
        (many.len() >= 2).then_some(many)
    });
    many.retain(|hits| *hits != followed);
    assert!(many.len() == 1 && (100..60_000).contains(&many[0]), "{many:?}");
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_for_those_who_may_see_them_and_say_why() {
    let home = Home::new("named", SETTINGS);
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    let asked =
        EnrolMember { number: 1, name: "Ada Lovelace".into(), address: "ada@example.com".into(), ..Default::default() };
    session.say(from_gateway::Message::EnrolMember(asked)).await.unwrap();
    let told = tokio::time::timeout(ANSWER, async {
        loop {
            if let Heard::Member(told) = gateway.hear(&mut session).await.unwrap() {
                return told.answer.unwrap();
            }
        }
    });
    let wire::member_enrolled::Answer::Member(ada) = told.await.unwrap() else { panic!("no id") };
    let ada = MemberId::try_from(ada.as_ref()).unwrap();
    ship(&mut gateway, &mut session, 0..3, ada).await;
    let (plain, named) = (token(&home, "plain", "analyst", &[]), token(&home, "named", "analyst", &["--names"]));
    let by_name = "member:\"ada lovelace\"";
    for (token, args) in
        [(&plain, &[by_name][..]), (&named, &[by_name]), (&plain, &["", "--names", "--reason", "case-7"])]
    {
        let (code, said) = ask(&home, token, args);
        assert!(code == 1 && !said.contains("Lovelace ("), "{said}");
    }
    let shown = found(&home, &named, &[by_name, "--names", "--reason", "case-7"]);
    assert!(
        shown.contains(&format!("member=Ada Lovelace ({})", &ada.to_string()[..8])) && shown.contains("3 of 3"),
        "{shown}"
    );
    assert!(!found(&home, &named, &["kind:call"]).contains("Lovelace"));
    home.say(&["cut"]);
    let seen = on_record(&home);
    assert!(seen.contains(&("allowed".into(), format!("member:{ada}"), 3, true)), "{seen:#?}");
    assert!(!format!("{seen:?}").to_lowercase().contains("lovelace"));
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_stage_of_the_index_loses_and_doubles_no_hit() {
    let home = Home::new("index-killed", SETTINGS);
    let mut process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let analyst = token(&home, "ann", "analyst", &[]);
    let member = MemberId(random());
    let mut calls = 0;
    for point in ["index-before-commit", "index-prepared", "index-after-commit"] {
        for passage in [1, 2] {
            end(&process);
            process = home.spawn(&[("CUSTODY_FAILPOINT", &format!("{point}:{passage}"))]);
            assert!(process.wait_serving(), "{}", process.log().join("\n"));
            // Until it is killed; what it acknowledged must be found.
            while let Ok(mut session) = gateway.connect(home.grpc).await {
                let mut records: Vec<Bytes> = if gateway.header().opens() { vec![opened()] } else { Vec::new() };
                records.extend((calls..calls + 7).map(|number| call(number, member)));
                if gateway.waiting.is_empty() {
                    let batch = gateway.sign(gateway.header(), &records);
                    gateway.keep(batch);
                    calls += 7;
                }
                let waiting: Vec<Bytes> = gateway.waiting.iter().map(|batch| batch.bytes.clone()).collect();
                for batch in waiting {
                    if session.send(batch).await.is_err() {
                        break;
                    }
                }
                gateway.settle(&mut session).await.ok();
            }
            process.wait_end();
            process = home.start();
            let mut session = gateway.connect(home.grpc).await.unwrap();
            for batch in &gateway.waiting {
                session.send(batch.bytes.clone()).await.unwrap();
            }
            gateway.settle(&mut session).await.unwrap();
            let all = lines(&found(&home, &analyst, &["kind:call", "--json", "--all"]));
            let numbers: Vec<u64> =
                all.iter().rev().map(|line| line["record"]["call_number"].as_u64().unwrap_or(0)).collect();
            assert_eq!(numbers, (0..calls).collect::<Vec<_>>(), "after {point}:{passage}");
            assert_eq!(found(&home, &analyst, &["kind:call", "--count"]), format!("{calls}\n"));
        }
    }
    end(&process);
}
