//! `gateway-shim serve` in front of a tiny MCP server, killed under load: no call passes that is not on record.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex},
};

use custody_tests::{
    dice::Dice,
    oracle::{Expected, check_ledger},
    process::{Home, Process, WAIT, binary, end, free_port, variable},
    shim::Shim,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::relay::archived_calls;

const KILLS: u64 = 3;
const CALLERS: u64 = 8;

/// Body of a request, if all of it comes.
pub(crate) async fn request(stream: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
        let body = bytes.get(head.len() + 4..)?;
        if body.len() >= length {
            return serde_json::from_slice(body).ok();
        }
    }
}

/// Notes the tool of every call that reaches it.
async fn answer(listener: TcpListener, reached: Arc<Mutex<HashSet<String>>>, progress: watch::Sender<usize>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (reached, progress) = (Arc::clone(&reached), progress.clone());
        tokio::spawn(async move {
            let Some(call) = request(&mut stream).await else { return };
            // The shim itself asks what tools there are.
            let listed = call["method"] == "tools/list";
            if !listed {
                let mut reached = reached.lock().unwrap();
                reached.insert(call["params"]["name"].as_str().unwrap().to_owned());
                progress.send_replace(reached.len());
            }
            let result = if listed { json!({"tools": []}) } else { json!({}) };
            let body = json!({"jsonrpc": "2.0", "id": call["id"], "result": result}).to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
            // The proxy may be gone by now.
            stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.ok();
        });
    }
}

/// One call after the other, each with a tool of its own; what is not answered is not asked again.
async fn call_on(proxy: SocketAddr, token: String, caller: u64, mut serving: watch::Receiver<u64>) {
    for number in 0_u64.. {
        let run = *serving.borrow_and_update();
        if run == u64::MAX {
            return;
        }
        let body = json!({"jsonrpc": "2.0", "id": number, "method": "tools/call",
            "params": {"name": format!("tool-{caller}-{number}")}})
        .to_string();
        let head = format!(
            "POST /mcp/test HTTP/1.1\r\nhost: localhost\r\nauthorization: {token}\r\ncontent-type: application/json\r\n\
             connection: close"
        );
        let asked = async {
            let mut stream = TcpStream::connect(proxy).await?;
            let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(request.as_bytes()).await?;
            stream.read_to_end(&mut Vec::new()).await
        };
        if !asked.await.is_ok_and(|bytes| bytes > 0) && *serving.borrow() == run {
            tokio::time::timeout(2 * WAIT, serving.changed()).await.expect("the proxy comes back").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_passes_the_proxy_without_a_record_however_often_it_is_killed() {
    let (kills, seed) = (variable("CUSTODY_KILLS", KILLS), variable("CUSTODY_SEED", 1));
    println!("CUSTODY_SEED={seed} CUSTODY_KILLS={kills}");
    let home = Home::new("serve-kill", "segment.age_seconds = 1\n");
    let ledger = home.start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (server, port) = (listener.local_addr().unwrap(), free_port());
    let of_serve = format!("[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.test]\nurl = \"http://{server}/mcp\"");
    let token = Shim::with_member(&home, "proxied", &"a1".repeat(16));
    let shim = Shim::enrol(&home, "proxied", &format!("socket = \"relay.sock\"\n{of_serve}"));
    let start = || {
        let mut command = Command::new(binary("gateway-shim"));
        command.args(["serve", "--config", "shim.toml"]).current_dir(&shim.dir);
        let process = Process::spawn(&mut command);
        assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
        process
    };
    let (reached, (progress, mut reaching)) = (Arc::default(), watch::channel(0));
    tokio::spawn(answer(listener, Arc::clone(&reached), progress));
    let (up, serving) = watch::channel(0);
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut process = start();
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| tokio::spawn(call_on(proxy, token.clone(), caller, serving.clone()))).collect();
    let mut dice = Dice::new(seed);
    for kill in 0..kills {
        let until = *reaching.borrow_and_update() + usize::try_from(dice.within(50..400)).unwrap();
        let waited = tokio::time::timeout(2 * WAIT, reaching.wait_for(|count| *count >= until)).await;
        assert!(waited.is_ok_and(|waited| waited.is_ok()), "no calls: {}", process.log().join("\n"));
        process.kill();
        println!("kill {kill} after {until} calls");
        process = start();
        up.send_replace(kill + 1);
    }
    up.send_replace(u64::MAX);
    for caller in callers {
        caller.await.unwrap();
    }
    end(&process);
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let recorded: HashSet<String> = archived_calls(&home, "proxied").into_iter().map(|(tool, _)| tool).collect();
    let reached = reached.lock().unwrap();
    println!("{} calls reached the server, {} are on record", reached.len(), recorded.len());
    let missing: Vec<_> = reached.difference(&recorded).collect();
    assert!(missing.is_empty(), "calls passed that are not on record: {missing:?}");
    drop(ledger);
}
