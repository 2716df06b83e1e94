//! Real receipts of the real SDK, in the results and headers of a tiny MCP server, through the real shim and the real ledger:
//! each call's record has its receipt, and the archive says what the ledger found it to be.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use custody::{
    forensic::Receipt,
    id::hex,
    key::PublicKey,
    wire::{self, Role},
};
use custody_tests::{
    http::{self, Answer, Heard},
    oracle::{Expected, check_ledger},
    process::{Home, Process, SETTINGS, end, free_port, write},
    shim::Shim,
};
use serde_json::{Value, json};

use crate::relay::{path, repository, verifier};

const WORKSPACE: &str = "signed";
/// Each tool, and the receipt that its answers show: in the result, and in the header.
const TOOLS: [(&str, Option<&str>, Option<&str>); 9] = [
    ("absent", None, None),
    ("in-result", Some("simple"), None),
    ("in-header", None, Some("no-metadata")),
    ("in-both", Some("random-1"), Some("random-3")),
    ("changed", None, Some("simple-bad-payload_hash")),
    ("again", None, Some("simple")),
    // Names in its metadata are not on the server's list.
    ("withheld", Some("random-0"), None),
    ("rotated", Some("after-rotation"), None),
    ("later", Some("random-5"), None),
];

fn vectors() -> Value {
    let file = repository().join("proto/testdata/receipts/sovereign.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// As the SDK wrote it.
fn receipt(vectors: &Value, name: &str) -> Value {
    let cases = vectors["cases"].as_array().unwrap();
    cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("no {name}"))["receipt"].clone()
}

fn to_wire(vectors: &Value, name: &str) -> wire::ForensicReceipt {
    Receipt::parse(receipt(vectors, name).to_string().as_bytes()).unwrap().to_wire(true)
}

/// Answers each tool with its receipt.
fn answer(asked: &Heard, vectors: &Value) -> Answer {
    let call = asked.json();
    let of_tool = TOOLS.iter().find(|(tool, ..)| call["params"]["name"] == *tool);
    let mut result = if call["method"] == "tools/list" { json!({"tools": []}) } else { json!({"content": []}) };
    let (_, in_result, in_header) = of_tool.copied().unwrap_or_default();
    if let Some(name) = in_result {
        result["_meta"] = json!({"custody/forensic-receipt": receipt(vectors, name)});
    }
    let answer = Answer::json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}).to_string());
    match in_header {
        Some(name) => {
            let encoded = BASE64_STANDARD.encode(receipt(vectors, name).to_string());
            answer.header("custody-forensic-receipt", &encoded)
        }
        None => answer,
    }
}

/// A shim with its ledger, and how it is asked.
struct Served<'a> {
    home: &'a Home,
    shim: Shim,
    port: u16,
    token: String,
}

impl Served<'_> {
    /// Starts it; every statement of its workspace has come to it by then.
    fn start(&self) -> Process {
        let process = Process::spawn(&mut self.shim.serving());
        for line in ["serving /mcp", "connected to the ledger"] {
            assert!(process.wait_line(line), "{}", process.log().join("\n"));
        }
        process
    }

    /// The answer to a call of this tool.
    async fn call(&self, tool: &str) -> Heard {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}).to_string();
        let headers = [("authorization", self.token.as_str()), ("content-type", "application/json")];
        let to = ([127, 0, 0, 1], self.port).into();
        let heard = http::ask(to, "POST", "/mcp/test", &headers, body.as_bytes()).await.unwrap();
        assert_eq!(heard.status(), 200, "{tool}: {heard:?}");
        heard
    }

    fn enrol(&self, more: &[&str]) {
        let of = ["key", "enrol", "--workspace", WORKSPACE, "--role", "receipt", "--name", "tool-runtime"];
        self.home.say_as_root(&[&of, more].concat());
    }
}

/// Records of a workspace, as the verifier shows them from this archive.
fn shown(archive: &Path, policy: &Path, range: &str) -> Vec<Value> {
    let shown = verifier(&["show", path(archive), range, "--policy", path(policy), "--json"]);
    shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the ledger found at each position of the workspace.
fn findings(home: &Home) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for record in shown(&home.archive(), &home.policy(), "ledger/0..") {
        let event = &record["record"];
        if event["action"] != "receipt.finding" {
            continue;
        }
        for detail in event["details"].as_array().unwrap().iter().filter(|detail| detail["key"] == "position") {
            let outcome = event["outcome"].as_str().unwrap().to_owned();
            let position = detail["number"].as_u64().unwrap_or_else(|| panic!("{detail}"));
            assert_eq!(found.insert(position, outcome), None, "two findings of one record");
        }
    }
    found
}

/// The records of the workspace, once each call has the receipt that was shown, and the finding that is due.
fn judged(home: &Home, vectors: &Value) -> Vec<Value> {
    let found = findings(home);
    let records = shown(&home.archive(), &home.policy(), &format!("{WORKSPACE}/0.."));
    let calls: Vec<_> = records.iter().filter(|record| record["record"]["method"] == "tools/call").collect();
    let seen = calls.iter().map(|call| {
        let receipt = &call["record"]["receipt"];
        let finding = found.get(&call["position"].as_u64().unwrap()).map_or("none", String::as_str);
        (call["record"]["tool"].as_str().unwrap(), finding, receipt["whole"].is_string())
    });
    let expected = [
        ("absent", "none", false),
        ("in-result", "valid", true),
        ("in-header", "valid", true),
        ("in-both", "valid", true),
        ("changed", "bad", true),
        ("again", "replayed", true),
        ("withheld", "withheld", false),
        ("rotated", "unknown-key", false),
        ("rotated", "valid", true),
        ("later", "revoked", false),
    ];
    assert_eq!(seen.collect::<Vec<_>>(), expected);
    for call in &calls {
        let tool = call["record"]["tool"].as_str().unwrap();
        let (_, in_result, in_header) = TOOLS.iter().find(|(of, ..)| *of == tool).unwrap();
        // Where both have one, the result's is on record.
        let Some(name) = in_result.or(*in_header) else { continue };
        assert_eq!(call["record"]["receipt"]["digest"], hex(&to_wire(vectors, name).digest), "{tool}");
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tool_signed_is_in_the_record_and_what_the_ledger_found_is_in_the_archive() {
    let vectors = vectors();
    let home = Home::new("receipts", SETTINGS);
    let ledger = home.start();
    let (of_server, port) = (vectors.clone(), free_port());
    let server = http::serve(move |asked| {
        let answer = answer(&asked, &of_server);
        async move { Some(answer) }
    })
    .await;
    let sections = format!(
        "[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.test]\nurl = \"http://{server}/mcp\"\n\
         receipt_metadata = [\"tool\", \"server\", \"m\", \"n\", \"s\", \"after\"]\n"
    );
    let token = Shim::with_member(&home, WORKSPACE, &"a1".repeat(16));
    let served = Served { home: &home, shim: Shim::with(&home, WORKSPACE, &sections), port, token };
    let first = to_wire(&vectors, "simple").signer;
    served.enrol(&["--public-key", &hex(&first)]);

    let process = served.start();
    for tool in ["absent", "in-result", "in-header", "in-both", "changed", "again", "withheld", "rotated"] {
        let answer = served.call(tool).await;
        assert_eq!(
            answer.header("custody-forensic-receipt").is_some(),
            ["in-header", "in-both", "changed", "again"].contains(&tool)
        );
    }
    end(&process);

    // The signer's key rotates: its successor follows by the signer's own word, and the old key is not good any more.
    let succession = home.dir.join("succession.json");
    write(&succession, vectors["succession"]["receipt"].to_string().as_bytes());
    served.enrol(&["--succession", path(&succession)]);
    let old = PublicKey::new(&first).unwrap().id(Role::Receipt).to_string();
    home.say_as_root(&["key", "revoke", "--workspace", WORKSPACE, &old]);
    let process = served.start();
    served.call("rotated").await;
    served.call("later").await;
    end(&process);
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());

    let records = judged(&home, &vectors);
    // What an auditor of this workspace gets has the receipts, too.
    let out = home.dir.join("exported");
    verifier(&[
        "export",
        path(&home.archive()),
        "--policy",
        path(&home.policy()),
        "--workspace",
        WORKSPACE,
        "--out",
        path(&out),
    ]);
    let exported = shown(&out.join("archive"), &out.join("policy.json"), &format!("{WORKSPACE}/0.."));
    assert_eq!(exported, records);
    end(&ledger);
}
