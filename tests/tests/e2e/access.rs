//! Who could call what, out of an archive: what a running gateway-shim was told to change, by its file and by its verbs, is what
//! an auditor reads years later, with who changed it and why.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
};

use custody_tests::{
    process::{Home, Process, SETTINGS, binary, end, free_port, text, write},
    shim::{Shim, done},
};
use serde_json::{Value, json};

const POLICY: &str = "version = 1\n[servers.mail]\nowner = \"ops\"\neffects = [\"read\", \"send\"]\n\
                      [[rules]]\nid = \"staff\"\neffect = \"allow\"\ngroups = [\"staff\"]\ntools = [\"mail/*\"]\n";

/// A verb of the shim, which must succeed; what it printed and said.
fn verb(shim: &Shim, args: &[&str]) -> String {
    let mut command = Command::new(binary("gateway-shim"));
    let output = command.args(args).args(["--config", "shim.toml"]).current_dir(&shim.dir).output().unwrap();
    done("gateway-shim", &output) + &text(&output.stderr)
}

/// Adds a person; the id that the ledger gave.
fn add(shim: &Shim, person: &str, groups: &[&str]) -> String {
    write(&shim.dir.join("person"), person.as_bytes());
    let fixed = ["member", "add", "--person", "person", "--reason", "joined", "--ticket", "HR-1"];
    let said = verb(shim, &[&fixed[..], groups].concat());
    let line = said.lines().find_map(|line| line.split_once("member ")).unwrap_or_else(|| panic!("{said}"));
    line.1.split_whitespace().next().unwrap().to_owned()
}

/// `verifier access`.
fn ask(home: &Home, more: &[&str]) -> Output {
    let mut command = Command::new(binary("verifier"));
    command.arg("access").arg(home.archive()).arg("--policy").arg(home.policy());
    command.args(more).output().unwrap()
}

fn answer(home: &Home, more: &[&str]) -> (Option<i32>, Value) {
    let done = ask(home, &[more, &["--json"]].concat());
    let answer = serde_json::from_slice(&done.stdout).unwrap_or_else(|why| panic!("{why}: {}", text(&done.stderr)));
    (done.status.code(), answer)
}

/// Who could call a tool at a time: the member, and the rule by which.
fn callers(home: &Home, at: &Value, tool: &str) -> Vec<(String, String)> {
    let (code, answer) = answer(home, &["--at", at.as_str().unwrap(), "--tool", tool]);
    assert_eq!(code, Some(0), "{answer:#}");
    let members = answer["gateways"][0]["in_force"]["members"].as_array().unwrap();
    let could = members.iter().filter(|member| member["could_call"]["allowed"] == true);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    could.map(|member| (word(&member["member"]), word(&member["could_call"]["rule"]))).collect()
}

/// Somebody without a token is refused: a record, which says that the change before it has no more records.
fn knock(port: u16) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /mcp/mail HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

fn started(shim: &Shim) -> Process {
    let process = Process::spawn(&mut shim.serving());
    assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
    process
}

/// One microsecond before a time as the verifier writes it.
fn just_before(at: &Value) -> Value {
    let at = chrono::DateTime::parse_from_rfc3339(at.as_str().unwrap()).unwrap();
    (at - chrono::Duration::microseconds(1)).to_rfc3339().into()
}

#[test]
fn an_archive_says_who_could_call_what_before_and_after_who_changed_it_and_why() {
    let home = Home::new("access", SETTINGS);
    let ledger = home.start();
    let dir = home.dir.join("shim-team");
    std::fs::create_dir(&dir).unwrap();
    write(&dir.join("access.toml"), POLICY.as_bytes());
    let port = free_port();
    let sections = format!("[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.mail]\ncommand = [\"false\"]\n");
    let shim = Shim::with(&home, "team", &sections);
    let process = started(&shim);
    let ada = add(&shim, "Ada Lovelace\nada@example.com\n", &["--groups", "staff"]);
    let bob = add(&shim, "Bob\nbob@example.com\n", &[]);
    let project = ["--reason", "project", "--ticket", "SEC-7", "--actor", &ada];
    verb(
        &shim,
        &[&["member", "grant", "--member", &bob, "--tools", "mail/read", "--id", "bob-reads"], &project[..]].concat(),
    );
    // A start between, which goes on with what was in force.
    end(&process);
    let process = started(&shim);
    verb(
        &shim,
        &["member", "deny", "--everyone", "--tools", "mail/delete_*", "--id", "none-deletes", "--reason", "review"],
    );
    let file = std::fs::read_to_string(shim.dir.join("access.toml")).unwrap();
    write(&shim.dir.join("access.toml"), file.replace("[\"mail/*\"]", "[\"mail/*\", \"files/*\"]").as_bytes());
    verb(&shim, &["access", "apply", "--reason", "quarterly-review", "--ticket", "SEC-31"]);
    verb(&shim, &["member", "revoke", &ada, "--reason", "left", "--ticket", "HR-9"]);
    knock(port);
    end(&process);
    let names = home.dir.join("ada.names");
    home.say(&["member", "disclose", &ada, "--out", names.to_str().unwrap(), "--reason", "audit"]);
    home.say(&["cut"]);
    end(&ledger);

    let (code, all) = answer(&home, &["--between", "2020-01-01", "2120-01-01"]);
    assert_eq!((code, &all["archive"]), (Some(2), &json!("verified")), "{all:#}");
    let gateway = &all["gateways"][0];
    assert_eq!(gateway["doubts"][0]["name"], "not-heard-since", "nobody knows what comes until 2120");
    let (code, all) = answer(&home, &["--between", "2020-01-01", gateway["heard_to"].as_str().unwrap()]);
    assert_eq!((code, &all["conclusion"]), (Some(0), &json!("verified")), "{all:#}");
    let changes = all["changes"].as_array().unwrap().clone();
    let of = |rule: &str, reason: &str| {
        let is = |change: &&Value| {
            change["reason"] == reason && change["changed"].as_array().unwrap().iter().any(|part| part["id"] == rule)
        };
        changes.iter().find(is).unwrap_or_else(|| panic!("{changes:#?}"))
    };

    // The grant: who, why, and what it was about.
    let granted = of("bob-reads", "project");
    assert_eq!((&granted["actor"]["member"], &granted["ticket"]), (&json!(ada), &json!("SEC-7")));
    assert_eq!(granted["changed"][0]["after"]["members"], json!([bob]));
    let by = |member: &String, rule: &str| (member.clone(), rule.to_owned());
    assert_eq!(callers(&home, &just_before(&granted["at"]), "mail/read"), [by(&ada, "staff")]);
    let mut both = vec![by(&ada, "staff"), by(&bob, "bob-reads")];
    both.sort();
    assert_eq!(callers(&home, &granted["at"], "mail/read"), both);
    // The denial, after the restart.
    let denied = of("none-deletes", "review");
    assert_eq!(callers(&home, &just_before(&denied["at"]), "mail/delete_all"), [by(&ada, "staff")]);
    assert_eq!(callers(&home, &denied["at"], "mail/delete_all"), []);
    assert!(denied["actor"]["system"].as_str().unwrap().starts_with("uid:"), "{denied:#}");
    // The file: the whole rule as it was, and as it is.
    let applied = of("staff", "quarterly-review");
    assert_eq!((&applied["ticket"], &applied["whole_policy"]), (&json!("SEC-31"), &json!(true)));
    let rule = &applied["changed"][0];
    assert_eq!(
        (&rule["before"]["tools"], &rule["after"]["tools"]),
        (&json!(["mail/*"]), &json!(["mail/*", "files/*"]))
    );
    // The digest is what anybody computes of the file.
    let digest = custody::id::hex(&custody::hash::sha256(&[&std::fs::read(shim.dir.join("access.toml")).unwrap()]));
    assert_eq!(changes.last().unwrap()["policy_digest_after"], digest);
    // The end of Ada's access, and nobody else's.
    let revoked = of(&ada, "left");
    assert_eq!(callers(&home, &just_before(&revoked["at"]), "mail/send"), [by(&ada, "staff")]);
    assert_eq!(callers(&home, &revoked["at"], "mail/send"), []);
    assert_eq!(callers(&home, &revoked["at"], "mail/read"), [by(&bob, "bob-reads")]);

    // As a person reads it, with the name that was disclosed, and no other.
    let at = revoked["at"].as_str().unwrap();
    let before = just_before(&revoked["at"]);
    let with_names = ["--names", names.to_str().unwrap()];
    let said = text(
        &ask(&home, &[&["--at", before.as_str().unwrap(), "--workspace", "team"], &with_names[..]].concat()).stdout,
    );
    for words in
        [&format!("{ada} (Ada Lovelace <ada@example.com>): a person"), "yes  mail/* files/*, by staff", "VERIFIED."]
    {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    assert!(!said.contains("Bob"), "{said}");
    let between = ["--between", before.as_str().unwrap(), at, "--tool", "mail/send"];
    let said = text(&ask(&home, &[&between, &with_names[..]].concat()).stdout);
    for words in ["reason left, ticket HR-9", "(Ada Lovelace <ada@example.com>): yes, by staff -> no, not let in"] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }

    // Of an archive in which a byte is another, nothing is said.
    let object =
        home.archive().join("workspaces").join(all["gateways"][0]["workspace"].as_str().unwrap()).join("segments");
    let object = std::fs::read_dir(object).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    write(&object, &bytes);
    let refuted = ask(&home, &["--at", at]);
    let said = text(&refuted.stdout);
    assert!(refuted.status.code() == Some(1) && said.contains("REFUTED") && !said.contains(&ada), "{said}");
}
