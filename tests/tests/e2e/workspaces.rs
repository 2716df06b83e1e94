//! Two gateway-shims of two workspaces and one ledger: a person has one id in both, and a workspace that is removed takes no
//! record with it, nor anything of the other.

use std::net::{Ipv4Addr, SocketAddr};

use custody_tests::{
    http::{self, Answer, Heard},
    oracle::{Expected, check_ledger},
    process::{Home, Process, end, free_port, soon, text, write},
    shim::Shim,
    shown::{records, word},
};
use serde_json::{Value, json};

/// Everything for everybody.
const ACCESS: &str = "version = 1\n[[rules]]\nid = \"all\"\neffect = \"allow\"\neveryone = true\ntools = [\"*\"]\n";
const CALLS: usize = 5;

/// A workspace with its shim, and the one person in it.
struct Team {
    shim: Shim,
    process: Process,
    proxy: SocketAddr,
    member: String,
    token: String,
    called: usize,
}

impl Team {
    /// The shim of a new workspace, and the person as its people spell the address.
    fn new(home: &Home, name: &str, server: SocketAddr, person: &str) -> Self {
        let port = free_port();
        let serve = format!("[serve]\nlisten = \"127.0.0.1:{port}\"\n[servers.test]\nurl = \"http://{server}/mcp\"");
        Shim::policy(home, name, ACCESS);
        let shim = Shim::with(home, name, &serve);
        write(&shim.dir.join("person"), person.as_bytes());
        let process = Process::spawn(&mut shim.serving());
        assert!(process.wait_line("serving /mcp"), "{}", process.log().join("\n"));
        let add =
            ["member", "add", "--person", "person", "--groups", "people", "--reason", "joins", "--config", "shim.toml"];
        let added = shim.hear(&add);
        let said = text(&added.stderr);
        let member = said.lines().find_map(|line| line.strip_prefix("gateway-shim: member "));
        let member = member.unwrap_or_else(|| panic!("no id in {said}")).to_owned();
        let token = format!("Bearer {}", text(&added.stdout).trim());
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { shim, process, proxy, member, token, called: 0 }
    }

    fn tool(&self, number: usize) -> String {
        format!("{}-{number}", self.shim.workspace)
    }

    /// Some calls, each with a tool of its own.
    async fn call(&mut self) {
        for _ in 0..CALLS {
            let call =
                json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": self.tool(self.called)}});
            let headers = [("authorization", self.token.as_str()), ("content-type", "application/json")];
            let answer =
                http::ask(self.proxy, "POST", "/mcp/test", &headers, call.to_string().as_bytes()).await.unwrap();
            assert_eq!(answer.json()["result"], json!({}), "{answer:?}");
            self.called += 1;
        }
    }

    /// Waits until all its calls are in the archive, each as the person's; all records of the workspace.
    fn archived(&self, home: &Home) -> Vec<Value> {
        soon(|| {
            home.say(&["cut"]);
            let all = records(home, &self.shim.workspace);
            let own = |record: &&Value| record["kind"] == "call" && word(record, "rule") == "all";
            let calls: Vec<_> = all.iter().filter(own).map(|call| (word(call, "member"), word(call, "tool"))).collect();
            assert!(calls.iter().all(|(member, _)| *member == self.member), "{calls:?}");
            let tools: Vec<_> = (0..self.called).map(|number| self.tool(number)).collect();
            (calls.iter().map(|(_, tool)| *tool).eq(tools.iter())).then(|| all.clone())
        })
    }
}

fn answer(asked: &Heard) -> Answer {
    let asked = asked.json();
    let result = if asked["method"] == "tools/list" { json!({"tools": []}) } else { json!({}) };
    Answer::json(json!({"jsonrpc": "2.0", "id": asked["id"], "result": result}).to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_has_one_id_at_two_shims_and_removing_a_workspace_removes_no_record() {
    let home = Home::new("workspaces", "segment.age_seconds = 86400\n");
    let ledger = home.start();
    let server = http::serve(|asked| std::future::ready(Some(answer(&asked)))).await;
    let mut stays = Team::new(&home, "payments", server, "Ada Lovelace\nada@example.com\n");
    let mut goes = Team::new(&home, "search", server, "A. Lovelace\n Ada@EXAMPLE.com\n");
    assert_eq!(stays.member, goes.member, "one person, one id");
    assert_ne!(stays.token, goes.token);
    stays.call().await;
    goes.call().await;
    let (kept, before) = (stays.archived(&home), goes.archived(&home));
    check_ledger(&home.archive(), &home.policy(), &Expected::default());

    home.say_as_root(&["workspace", "remove", "search"]);
    stays.call().await;
    let more = stays.archived(&home);
    assert!(more.len() >= kept.len() + CALLS && more.starts_with(&kept), "the other workspace goes on");
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let after = records(&home, "search");
    assert!(after.starts_with(&before), "{} records before, {} after", before.len(), after.len());
    let shown = home.say(&["member", "show", &stays.member, "--reason", "support"]);
    assert!(shown.contains("payments/people search/people"), "{shown}");
    end(&stays.process);
    goes.process.kill();
    drop(ledger);
}
