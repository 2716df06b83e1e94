//! Weak spots that records of calls are known to have (docs/WEAK_SPOTS.md), where no other test shows that they are absent.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use custody_tests::{
    canary::files,
    http::{self, Answer, Heard},
    process::{Home, Process, end, free_port},
    shim::Shim,
    shown::{records, word},
};
use serde_json::json;

/// Calls at each server: enough that what an archive has but once counts little.
const CALLS: usize = 200;
/// Bytes of the archive for each record, with all that proves it. Rows of a database have many hundred.
const RECORD_BYTES_MAX: u64 = 200;

fn answer(asked: &Heard) -> Answer {
    let asked = asked.json();
    let result = if asked["method"] == "tools/list" { json!({"tools": []}) } else { json!({}) };
    Answer::json(json!({"jsonrpc": "2.0", "id": asked["id"], "result": result}).to_string())
}

fn bytes(folder: &Path) -> u64 {
    let mut all = Vec::new();
    files(folder, &mut all);
    all.iter().map(|path| std::fs::metadata(path).unwrap().len()).sum()
}

/// Whatever the configuration says of a server, each call of it that succeeds is on record, and who made it.
#[tokio::test(flavor = "multi_thread")]
async fn records_cannot_be_switched_off_and_cost_little() {
    let home = Home::new("weak", "segment.age_seconds = 86400\n");
    let ledger = home.start();
    let server = http::serve(|asked| std::future::ready(Some(answer(&asked)))).await;
    let (port, member) = (free_port(), "a1".repeat(16));
    let token = Shim::with_member(&home, "weak", &member);
    let servers = ["", "mode = \"relaxed\"\nwhen_full = \"fail_open\"\n", "when_full = \"fail_closed\"\n"];
    let section =
        |(number, more): (usize, &&str)| format!("[servers.s{number}]\nurl = \"http://{server}/mcp\"\n{more}");
    let sections: String = servers.iter().enumerate().map(section).collect();
    let shim = Shim::with(&home, "weak", &format!("[serve]\nlisten = \"127.0.0.1:{port}\"\n{sections}"));
    let process = Process::spawn(&mut shim.serving());
    assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
    home.say(&["cut"]);
    let before = bytes(&home.archive());
    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "t", "arguments": {"x": 1}}})
            .to_string();
    let headers = [("authorization", token.as_str()), ("content-type", "application/json")];
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let names: Vec<String> = (0..servers.len()).map(|number| format!("s{number}")).collect();
    for name in &names {
        for _ in 0..CALLS {
            let answer = http::ask(proxy, "POST", &format!("/mcp/{name}"), &headers, call.as_bytes()).await.unwrap();
            assert_eq!(answer.json()["result"], json!({}), "{answer:?}");
        }
    }
    end(&process);
    home.say(&["cut"]);
    let all = records(&home, "weak");
    for (name, server) in names.iter().zip(servers) {
        let of_server = |call: &&serde_json::Value| word(call, "server") == name && word(call, "tool") == "t";
        assert_eq!(all.iter().filter(of_server).count(), CALLS, "{server}");
    }
    let calls = all.iter().filter(|record| word(record, "tool") == "t");
    assert!(calls.clone().all(|call| word(call, "member") == member && word(call, "outcome") == "ok"));
    let each = (bytes(&home.archive()) - before) / all.len() as u64;
    println!("{each} bytes of the archive for each of {} records", all.len());
    assert!(each <= RECORD_BYTES_MAX, "{each} bytes for each record");
    drop(ledger);
}
