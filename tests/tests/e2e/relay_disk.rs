//! The real relay on a disk that somebody else fills, and what its configuration is refused for.

use std::{
    io::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use custody_tests::{
    process::{Home, WAIT, binary, end, free_port, pause, text},
    shim::Shim,
};
use tonic::Code;

use crate::{
    failing::Disk,
    relay::{archived_calls, call, connect},
};

/// Fills what is free but for so many bytes.
fn fill_but(disk: &Disk, bytes: u64) {
    let mut ballast = std::fs::File::create(disk.0.join("ballast")).unwrap();
    while ballast.write_all(&[1; 4_096]).is_ok() {}
    let length = ballast.metadata().unwrap().len();
    ballast.set_len(length - bytes).unwrap();
}

/// Nobody makes room: what was acknowledged is shipped once the ledger comes up, also by a relay that was killed and starts
/// on the full disk, and what is archived makes the room for new records.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_on_a_full_disk_ships_what_it_holds_and_recovers_by_itself() {
    let home = Home::new("relay-disk", "segment.age_seconds = 1\n");
    let ledger = home.start();
    let port = free_port();
    let shim = Shim::enrol(&home, "full", &format!("listen = \"127.0.0.1:{port}\""));
    ledger.kill();
    let state = shim.dir.join("state");
    std::fs::create_dir(&state).unwrap();
    let Some(disk) = Disk::mount(&state, 16) else {
        println!("NOT CHECKED: no file system can be mounted here (hint: run as root), so no spool's disk was full");
        return;
    };
    let relay = shim.start();
    fill_but(&disk, 200 << 10);
    let mut client = connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
    let mut acknowledged = Vec::new();
    let refused = loop {
        let tool = format!("tool-{}", acknowledged.len());
        match client.put(call(&tool)).await {
            Ok(_) => acknowledged.push(tool),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("hint: "), "{refused:?}");
    relay.kill();
    let relay = shim.start();
    let mut client = connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
    assert_eq!(client.put(call("none")).await.unwrap_err().code(), Code::ResourceExhausted);
    let ledger = home.start();
    let began = Instant::now();
    while let Err(refused) = client.put(call("again")).await {
        assert!(began.elapsed() < 2 * WAIT, "no room was made: {refused:?}\n{}", relay.log().join("\n"));
        // As the table of SHIPPING.md says; the archive takes a second.
        pause(Duration::from_millis(200)).await;
    }
    acknowledged.push("again".to_owned());
    end(&relay);
    home.say(&["cut"]);
    let mut archived: Vec<String> = archived_calls(&home, "full").into_iter().map(|(tool, _)| tool).collect();
    println!("{} records were acknowledged before the disk was full", acknowledged.len() - 1);
    assert!(acknowledged.len() > 100, "too few for a disk that was full");
    archived.sort();
    acknowledged.sort();
    assert_eq!(archived, acknowledged);
    drop(ledger);
}

/// The key of one gateway with the certificate of another: no ledger lets that in.
#[test]
fn a_key_of_another_gateway_is_refused_at_the_start_and_by_the_check() {
    let home = Home::new("relay-keys", "");
    let ledger = home.start();
    let one = Shim::enrol(&home, "one", &format!("listen = \"127.0.0.1:{}\"", free_port()));
    let other = Shim::enrol(&home, "other", &format!("listen = \"127.0.0.1:{}\"", free_port()));
    std::fs::copy(other.dir.join("tls.key"), one.dir.join("tls.key")).unwrap();
    for verb in [&["config", "check"][..], &["relay"]] {
        let mut command = Command::new(binary("gateway-shim"));
        let said = command.args(verb).args(["--config", "shim.toml"]).current_dir(&one.dir).output().unwrap();
        let complained = text(&said.stderr);
        assert_eq!(said.status.code(), Some(78), "{verb:?}: {complained}");
        assert!(complained.contains("gateway.tls_key is not the key") && complained.contains("hint: "), "{complained}");
    }
    drop(ledger);
}
