//! The ledger's own keys: rotated, wrong, lost with the data folder, and changed before their enrolment was archived.

use std::path::Path;

use super::administration::public_of;
use custody::{id::KeyId, wire::Role};
use custody_tests::{
    oracle::check_all,
    peer::{Gateway, ship},
    process::{Home, SETTINGS, end, offline},
};

/// The id of a key of the ledger's own chain.
fn key_of(home: &Home, role: Role, file: &Path) -> KeyId {
    let id = public_of(file).id(role);
    assert!(home.say(&["key", "list"]).contains(&id.to_string()));
    id
}

#[expect(clippy::disallowed_methods, reason = "a key file is put in the place of another, as an operator does it")]
fn put_in_place(new: &Path, old: &Path) {
    std::fs::rename(new, old).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_ledgers_own_keys_is_rotated_and_a_wrong_one_does_not_start() {
    let home = Home::new("rotate", SETTINGS);
    let mut process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let root = home.root_key().display().to_string();
    for (name, role) in [("head", Role::Head), ("log", Role::Log), ("record", Role::Record)] {
        let mut session = gateway.connect(home.grpc).await.unwrap();
        ship(&mut gateway, &mut session, 2).await;
        let current = home.dir.join(format!("keys/{name}.key"));
        let old = key_of(&home, role, &current);
        // While the ledger signs with it nobody revokes it.
        let said = home.refuses(&["key", "revoke", &old.to_string(), "--root-key", &root], 1);
        assert!(said.contains("ends a key that this ledger signs with") && said.contains("hint:"), "{said}");
        let new = home.dir.join(format!("new-{name}.key"));
        offline(&["key", "make", new.to_str().unwrap()]);
        // A key that nobody enrolled: the ledger does not start, and says what to do.
        let kept = home.dir.join("kept.key");
        end(&process);
        put_in_place(&current, &kept);
        put_in_place(&new, &current);
        let wrong = home.spawn(&[]);
        assert_eq!(wrong.wait_end().code(), Some(2), "{name}: {}", wrong.log().join("\n"));
        let log = wrong.log().join("\n");
        assert!(log.contains("is not enrolled") && log.contains("hint:"), "{log}");
        put_in_place(&current, &new);
        put_in_place(&kept, &current);
        process = home.start();
        home.say_as_root(&["key", "enrol", "--role", name, "--new-key", new.to_str().unwrap()]);
        end(&process);
        put_in_place(&current, &kept);
        put_in_place(&new, &current);
        process = home.start();
        let mut session = gateway.connect(home.grpc).await.unwrap();
        ship(&mut gateway, &mut session, 2).await;
        home.say_as_root(&["key", "retire", &old.to_string()]);
        home.say_as_root(&["key", "revoke", &old.to_string()]);
        ship(&mut gateway, &mut session, 2).await;
        home.say(&["cut"]);
        // The revoked key put back does not start.
        end(&process);
        put_in_place(&current, &new);
        put_in_place(&kept, &current);
        let revoked = home.spawn(&[]);
        assert_eq!(revoked.wait_end().code(), Some(2), "{name}: {}", revoked.log().join("\n"));
        assert!(revoked.log().join("\n").contains("was revoked"), "{}", revoked.log().join("\n"));
        put_in_place(&new, &current);
        process = home.start();
    }
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 2).await;
    end(&process);
    check_all(&home, &home.policy(), &[&gateway]);
    // Without the data folder that knows the new keys it is that which is missing.
    let (data, away) = (home.dir.join("data"), home.dir.join("away"));
    put_in_place(&data, &away);
    let lost = home.spawn(&[]);
    let (code, log) = (lost.wait_end().code(), lost.log().join("\n"));
    let named =
        ["nothing ever ran in the data folder", "is its volume mounted?", "hint:"].map(|word| log.contains(word));
    assert!(code == Some(2) && named == [true; 3], "{code:?} {log}");
    put_in_place(&data, &home.dir.join("empty"));
    put_in_place(&away, &data);
    end(&home.start());
}

/// A new log key, whose enrolment ends the ledger at this passage of a fail point.
fn enrol_and_die(home: &Home, fail_point: &str) -> std::path::PathBuf {
    let new = home.dir.join("new-log.key");
    offline(&["key", "make", new.to_str().unwrap()]);
    let process = home.spawn(&[("CUSTODY_FAILPOINT", fail_point)]);
    assert!(process.wait_serving(), "{}", process.log().join("\n"));
    let root = home.root_key().display().to_string();
    let new_key = new.to_str().unwrap();
    home.refuses(&["key", "enrol", "--role", "log", "--new-key", new_key, "--root-key", &root], 1);
    assert!(process.wait_end().code().is_none(), "{}", process.log().join("\n"));
    new
}

#[tokio::test(flavor = "multi_thread")]
async fn no_checkpoint_is_signed_by_a_log_key_that_the_log_does_not_name_yet() {
    let home = Home::new("early", SETTINGS);
    end(&home.start());
    // It is in the store, and nothing of it is in the log.
    let new = enrol_and_die(&home, "publish-before-claim:1");
    let (current, kept) = (home.dir.join("keys/log.key"), home.dir.join("kept.key"));
    put_in_place(&current, &kept);
    put_in_place(&new, &current);
    let early = home.spawn(&[]);
    let (code, log) = (early.wait_end().code(), early.log().join("\n"));
    assert!(code == Some(2) && log.contains("not archived yet") && log.contains("hint:"), "{code:?} {log}");
    // What the hint says.
    put_in_place(&current, &new);
    put_in_place(&kept, &current);
    let process = home.start();
    home.say(&["cut"]);
    end(&process);
    put_in_place(&new, &current);
    let process = home.start();
    home.workspace("payments");
    end(&process);
    check_all(&home, &home.policy(), &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_the_last_log_key_signed_is_not_signed_again() {
    let home = Home::new("between", SETTINGS);
    end(&home.start());
    // The start's own checkpoint comes first; the enrolment's is in the archive, and the ledger does not know it.
    let new = enrol_and_die(&home, "publish-after-checkpoint:2");
    put_in_place(&new, &home.dir.join("keys/log.key"));
    let process = home.start();
    home.workspace("payments");
    end(&process);
    check_all(&home, &home.policy(), &[]);
}
