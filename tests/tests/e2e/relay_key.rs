//! The key of a real relay changes: too early, because it is lost, and because others know it. Nothing that was acknowledged is
//! lost or stands twice.

use custody_tests::{
    oracle::{Expected, check_ledger},
    process::{Home, Process, end, free_port, text, write},
    shim::Shim,
};

use crate::relay::{archived_calls, call, connect};

/// Keys of these names, enrolled and configured in place of those before.
fn change_keys(home: &Home, shim: &Shim, name: &str) {
    let file = |name: &str| shim.dir.join(name).to_str().unwrap().to_owned();
    let names = |config: &str, key: &str, value: &str| {
        let line = |line: &str| match line.split_once(" = ") {
            Some((of, _)) if of == key => format!("{key} = \"{value}\""),
            _ => line.to_owned(),
        };
        config.lines().map(line).collect::<Vec<_>>().join("\n")
    };
    let (key, tls, answer) = (format!("{name}.key"), format!("{name}-tls.key"), format!("{name}-enrolment.json"));
    let config = std::fs::read_to_string(shim.dir.join("shim.toml")).unwrap();
    let config = names(&names(&names(&config, "key", &key), "tls_key", &tls), "enrolment", &answer);
    write(&shim.dir.join("shim.toml"), config.as_bytes());
    shim.say(&["key", "new", "--key", &key, "--tls-key", &tls]);
    let request = format!("{name}-request.json");
    shim.say(&["request", "--config", "shim.toml", "--out", &request]);
    let (request, answer) = (file(&request), file(&answer));
    home.say_as_root(&["gateway", "enrol", &request, "--name", &shim.workspace, "--out", &answer]);
}

/// Ids of the workspace's keys, in the order of their enrolment.
fn key_ids(home: &Home, shim: &Shim) -> Vec<String> {
    let list = home.say(&["key", "list", "--workspace", &shim.workspace]);
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|id| id.len() == 64).map(Into::into).collect()
}

async fn put(port: u16, tools: std::ops::Range<u32>) {
    let mut client = connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
    for number in tools {
        client.put(call(&format!("tool-{number}"))).await.unwrap();
    }
}

fn check(home: &Home, shim: &Shim, records: u32) {
    home.say(&["cut"]);
    check_ledger(&home.archive(), &home.policy(), &Expected::default());
    let mut archived: Vec<String> = archived_calls(home, &shim.workspace).into_iter().map(|(tool, _)| tool).collect();
    archived.sort();
    let mut expected: Vec<String> = (0..records).map(|number| format!("tool-{number}")).collect();
    expected.sort();
    assert_eq!(archived, expected);
}

/// Batches of four, so that a kill leaves some that are signed and two records that are not, while the ledger is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_changes_too_early_is_lost_or_is_revoked_takes_nothing_with_it() {
    let home = Home::new("relay-key", "");
    let ledger = home.start();
    let port = free_port();
    let listen = format!("listen = \"127.0.0.1:{port}\"\n[batch]\nrecords_max = 4\nage_ms_max = 10000");
    let shim = Shim::enrol(&home, "rekeyed", &listen);
    let relay = shim.start();
    ledger.kill();
    put(port, 0..6).await;
    relay.kill();

    let ledger = home.start();
    change_keys(&home, &shim, "two");
    let refused = shim.command().output().unwrap();
    let complained = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{complained}");
    assert!(complained.contains("is not ended") && complained.contains("gateway-shim key lost"), "{complained}");
    shim.say(&["key", "lost", "--config", "shim.toml"]);
    let relay: Process = shim.start();
    put(port, 6..8).await;
    end(&relay);
    check(&home, &shim, 8);

    let relay = shim.start();
    ledger.kill();
    put(port, 8..14).await;
    relay.kill();
    let ledger = home.start();
    let ids = key_ids(&home, &shim);
    assert_eq!(ids.len(), 2);
    home.say_as_root(&["key", "revoke", &ids[1], "--workspace", &shim.workspace]);
    change_keys(&home, &shim, "three");
    shim.say(&["key", "lost", "--config", "shim.toml"]);
    let relay = shim.start();
    put(port, 14..16).await;
    end(&relay);
    check(&home, &shim, 16);
    drop(ledger);
}
