//! What fails around the ledger: archive, fence, disk, a second ledger, an old copy, a configuration, and the end of it all.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use custody_tests::{
    oracle::{self, Expected, check_ledger},
    peer::{Fault, Gateway, Heard, served, ship},
    process::{Home, Process, SETTINGS, WAIT, binary, end, offline, pause, text, write},
};

fn check_all(home: &Home, gateway: &Gateway) {
    oracle::check_all(home, &home.policy(), &[gateway]);
}

/// A folder that is out of reach: its name is another file's, so that every use of it fails, root's too.
struct Away {
    folder: PathBuf,
}

impl Away {
    #[expect(clippy::disallowed_methods, reason = "a folder of the test is moved away, nothing is written")]
    fn new(folder: &Path) -> Self {
        std::fs::rename(folder, folder.with_extension("away")).unwrap();
        write(folder, b"");
        Self { folder: folder.to_owned() }
    }

    #[expect(clippy::disallowed_methods, reason = "a folder of the test is moved back, nothing is written")]
    fn back(self) {
        std::fs::remove_file(&self.folder).unwrap();
        std::fs::rename(self.folder.with_extension("away"), &self.folder).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn intake_goes_on_while_the_archive_is_away_and_the_archive_catches_up() {
    let (home, process, mut gateway, mut session) = served("archive", SETTINGS).await;
    ship(&mut gateway, &mut session, 3).await;
    home.say(&["cut"]);
    let away = Away::new(&home.archive());
    ship(&mut gateway, &mut session, 3).await;
    let said = home.cut_in_vain();
    assert!(said.contains("hint:"), "{said}");
    assert!(process.wait_line("archive-failing"), "{}", process.log().join("\n"));
    assert!(home.alarm_stands("archive-failing"));
    ship(&mut gateway, &mut session, 3).await;
    assert_eq!(home.status()["state"], "serving");
    away.back();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    // The gateway hears it too, without coming back.
    let head = gateway.head().unwrap().segment;
    while gateway.archived < head {
        gateway.hear(&mut session).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_ledger_that_dies_is_told_so() {
    let (home, process, mut gateway, mut session) = served("dies", SETTINGS).await;
    ship(&mut gateway, &mut session, 3).await;
    let away = Away::new(&home.archive());
    let said = std::thread::scope(|scope| {
        let cutting = scope.spawn(|| home.refuses(&["cut"], 1));
        // Nothing else is to be archived.
        assert!(process.wait_line("archive-failing"), "{}", process.log().join("\n"));
        process.kill();
        cutting.join().unwrap()
    });
    assert!(said.contains("connection to the ledger ended before it answered") && said.contains("hint:"), "{said}");
    away.back();
    let process = home.start();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

/// Moves a folder of the test.
#[expect(clippy::disallowed_methods, reason = "a folder of the test is moved, nothing is written")]
fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_not_mounted_is_not_made_anew() {
    let (home, process, mut gateway, mut session) = served("mount", SETTINGS).await;
    ship(&mut gateway, &mut session, 3).await;
    home.say(&["cut"]);
    let away = home.archive().with_extension("away");
    rename(&home.archive(), &away);
    ship(&mut gateway, &mut session, 3).await;
    home.cut_in_vain();
    assert!(process.wait_line("archive-failing"), "{}", process.log().join("\n"));
    assert!(!home.archive().exists(), "another archive was made");
    process.kill();
    // Neither where there is nothing, nor on the empty mount point.
    for mounted in [false, true] {
        if mounted {
            std::fs::create_dir(home.archive()).unwrap();
        }
        let refused = home.spawn(&[]);
        assert_eq!(refused.wait_end().code(), Some(1), "{}", refused.log().join("\n"));
        let log = refused.log().join("\n");
        assert!(log.contains("hint: is the archive mounted"), "{log}");
        assert_eq!(home.archive().exists(), mounted);
    }
    std::fs::remove_dir(home.archive()).unwrap();
    rename(&away, &home.archive());
    let process = home.start();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_another_one_poisons_and_reads_go_on() {
    let (home, process, mut gateway, mut session) = served("differs", SETTINGS).await;
    ship(&mut gateway, &mut session, 3).await;
    home.say(&["cut"]);
    ship(&mut gateway, &mut session, 3).await;
    let size = home.status()["log_size"].as_u64().unwrap();
    // However many entries the next checkpoint has.
    let foreign: Vec<_> = (1..9).map(|more| home.archive().join(format!("log/checkpoints/{}", size + more))).collect();
    for path in &foreign {
        write(path, b"another's");
    }
    home.cut_in_vain();
    home.status_when("it is poisoned", |status| status["state"] == "poisoned").await;
    assert!(home.alarm_stands("read-back-differs"));
    assert!(home.say(&["workspace", "list"]).contains("payments"), "reads go on");
    match gateway.connect(home.grpc).await {
        Err(Fault::Refused(status)) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
        other => panic!("a poisoned ledger shows no heads: {:?}", other.err()),
    }
    process.kill();
    for path in &foreign {
        std::fs::remove_file(path).unwrap();
    }
    let process = home.start();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_while_the_fence_is_away_and_intake_goes_on() {
    let (home, process, mut gateway, mut session) = served("fence", SETTINGS).await;
    ship(&mut gateway, &mut session, 3).await;
    let size = home.status()["log_size"].as_u64().unwrap();
    let away = Away::new(&home.dir.join("fence"));
    assert!(process.wait_line("fence-unreachable"), "{}", process.log().join("\n"));
    ship(&mut gateway, &mut session, 3).await;
    home.cut_in_vain();
    assert_eq!(home.status()["log_size"].as_u64(), Some(size));
    assert!(home.alarm_stands("fence-unreachable"));
    away.back();
    home.say(&["cut"]);
    check_all(&home, &gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_ledgers_on_one_fence_the_first_stops_for_good() {
    let home = Home::new("two", SETTINGS);
    let first = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 2).await;
    home.say(&["cut"]);
    // Nothing is written now, so a copy of the running ledger's folder is whole.
    let kept = tempfile::tempdir().unwrap();
    let copy = home.copy(&kept.path().join("copy"), &home.shared());
    let second = copy.spawn(&[]);
    assert_eq!(first.wait_end().code(), Some(4), "{}", first.log().join("\n"));
    assert!(first.log().join("\n").contains("\"fenced\""), "{}", first.log().join("\n"));
    // The second waits until the first's heads are surely stale.
    assert!(second.wait_line("waiting it out"), "{}", second.log().join("\n"));
    // Whoever ends it meanwhile need not wait: it accepted nothing.
    second.terminate();
    assert_eq!(second.wait_end().code(), Some(0), "{}", second.log().join("\n"));
    assert!(second.log().join("\n").contains("ended before it served"), "{}", second.log().join("\n"));
    // Started again the first knows that its database is an older copy: it reads, and takes nothing.
    let stale = home.start();
    assert!(home.alarm_stands("stale-database"));
    assert_eq!(home.status()["state"], "read-only");
    assert!(matches!(gateway.connect(home.grpc).await, Err(Fault::Refused(_))));
    home.say(&["workspace", "list"]);
    let key = home.root_key().display().to_string();
    home.refuses(&["workspace", "add", "late", "--root-key", &key], 1);
    end(&stale);
    check_all(&home, &gateway);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_data_is_read_only_and_harms_nothing() {
    let (home, process, mut gateway, mut session) = served("stale", SETTINGS).await;
    ship(&mut gateway, &mut session, 2).await;
    end(&process);
    let kept = tempfile::tempdir().unwrap();
    let copy = home.copy(&kept.path().join("copy"), &home.shared());
    let process = home.start();
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 2).await;
    home.say(&["cut"]);
    let stale = copy.start();
    // The fence answers, and says who writes; only this copy may not.
    let told = |status: &serde_json::Value| status["fence_reachable"] == true && status["fence_term"] == 2;
    let status = copy.status_when("it knows the fence", told).await;
    assert!(status["state"] == "read-only" && status["term"] == 1, "{status:#}");
    assert!(status["state_reason"].as_str().unwrap().starts_with("a stale copy of term 1, and the fence is at 2"));
    assert!(copy.say(&["status"]).contains("reachable, at term 2: ANOTHER LEDGER WRITES"));
    assert!(copy.alarm_stands("stale-database"));
    let before = gateway.last_head();
    assert!(matches!(gateway.connect(copy.grpc).await, Err(Fault::Refused(_))));
    assert_eq!(gateway.last_head(), before, "a stale copy signed a head");
    end(&stale);
    ship(&mut gateway, &mut session, 2).await;
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

/// A file system of its own, where this machine lets us make one.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    pub(crate) fn mount(folder: &Path, megabytes: u32) -> Option<Self> {
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output().ok()?;
        mounted.status.success().then(|| Self(folder.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_batches_says_so_and_recovers() {
    let home = Home::new("disk", "");
    home.configure(
        "segment.age_seconds = 86400\nstore.disk_low_bytes = 33554432\nstore.disk_full_bytes = 33554432\nstore.cache_bytes = 8388608\n\
         store.write_buffer_bytes = 8388608\n",
    );
    let Some(disk) = Disk::mount(&home.dir.join("data"), 96) else {
        println!(
            "NOT CHECKED: no file system can be mounted here (hint: run as root), so no disk was full in this run"
        );
        return;
    };
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 3).await;
    write(&disk.0.join("ballast"), &vec![1; 80 << 20]);
    home.status_when("the disk is full", |status| status["alarms"].to_string().contains("disk-full")).await;
    let batch = gateway.batch(3);
    session.send(batch.clone()).await.unwrap();
    loop {
        match gateway.hear(&mut session).await.unwrap() {
            Heard::Pushback(pushback) => {
                assert!(pushback.retry_after_ms > 0 && !pushback.detail.is_empty(), "{pushback:?}");
                break;
            }
            heard => assert!(!matches!(heard, Heard::Receipt(1..)), "{heard:?}"),
        }
    }
    assert!(home.say(&["workspace", "list"]).contains("payments"), "reads go on");
    std::fs::remove_file(disk.0.join("ballast")).unwrap();
    // The same batch again, as the pushback asks, until it is taken.
    let taken = tokio::time::timeout(WAIT, async {
        while !gateway.waiting.is_empty() {
            session.send(batch.clone()).await.unwrap();
            if let Heard::Pushback(pushback) = gateway.hear(&mut session).await.unwrap() {
                pause(std::time::Duration::from_millis(u64::from(pushback.retry_after_ms))).await;
            }
        }
    });
    taken.await.expect("there is room again");
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_finds_no_room_poisons_and_a_start_with_room_goes_on() {
    let home = Home::new("enospc", "");
    home.configure(&format!("{SETTINGS}store.cache_bytes = 8388608\nstore.write_buffer_bytes = 8388608\n"));
    let Some(disk) = Disk::mount(&home.dir.join("data"), 64) else {
        println!("NOT CHECKED: no file system can be mounted here (hint: run as root), so no write found no room");
        return;
    };
    let process = home.start();
    let mut gateway = Gateway::enrol(&home, home.workspace("payments"));
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 3).await;
    fill(&disk.0.join("ballast"));
    // The file that is being written may have room of its own; then it is used up.
    while session.send(gateway.batch(100)).await.is_ok() && gateway.settle(&mut session).await.is_ok() {}
    let status = home.status_when("it is poisoned", |status| status["state"] == "poisoned").await;
    assert!(status["alarms"].to_string().contains("disk-full"), "{status:#}");
    assert!(home.say(&["workspace", "list"]).contains("payments"), "reads go on");
    // The alarms found no room either; a restart drops none of them once there is some.
    std::fs::remove_file(disk.0.join("ballast")).unwrap();
    assert!(process.wait_line("kept over a restart again"));
    process.kill();
    let process = home.start();
    assert!(home.alarm_stands("disk-full") && home.alarm_stands("poisoned"), "a restart dropped an alarm");
    let mut session = gateway.connect(home.grpc).await.unwrap();
    for batch in gateway.waiting.clone() {
        session.send(batch.bytes).await.unwrap();
    }
    gateway.settle(&mut session).await.unwrap();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
    fill(&disk.0.join("ballast"));
    let refused = home.spawn(&[]);
    assert_eq!(refused.wait_end().code(), Some(1), "{}", refused.log().join("\n"));
    let said = refused.log().join("\n");
    assert!(said.contains("hint: the disk of data/ is full"), "{said}");
}

/// What lies in a folder, and below it: names and bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_what_was_acknowledged_is_refused_before_anything_is_claimed() {
    let (home, process, mut gateway, mut session) = served("damaged", SETTINGS).await;
    ship(&mut gateway, &mut session, 9).await;
    process.kill();
    let files = contents(&home.dir.join("data/store"));
    let logs = files.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "log"));
    let (log, whole) = logs.max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let fence = contents(&home.dir.join("fence"));
    // In the middle, and in the last of all, which RocksDB takes for a write that a power cut tore.
    for at in [whole.len() / 2, whole.len() - 20] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        write(log, &damaged);
        let refused = home.spawn(&[]);
        assert_eq!(refused.wait_end().code(), Some(2), "{}", refused.log().join("\n"));
        let said = refused.log().join("\n");
        assert!(said.contains("it is damaged") && said.contains("hint: "), "{said}");
        assert!(contents(&home.dir.join("fence")) == fence, "a term was claimed");
        assert!(std::fs::read(log).unwrap() == damaged, "what is left of it was changed");
    }
    write(log, whole);
    let process = home.start();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_archives_everything_and_one_that_cannot_says_so() {
    let (home, process, mut gateway, mut session) =
        served("drain", &(SETTINGS.to_owned() + "drain.seconds_max = 1\n")).await;
    ship(&mut gateway, &mut session, 5).await;
    end(&process);
    check_all(&home, &gateway);
    let process = home.start();
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 5).await;
    let away = Away::new(&home.archive());
    process.terminate();
    assert_eq!(process.wait_end().code(), Some(3), "{}", process.log().join("\n"));
    let log = process.log().join("\n");
    assert!(log.contains("not archived") && log.contains("hint:"), "{log}");
    away.back();
    let process = home.start();
    home.say(&["cut"]);
    check_all(&home, &gateway);
    end(&process);
}

#[test]
fn a_configuration_that_cannot_be_used_is_named_with_the_next_move() {
    let home = Home::new("config", "");
    let good = std::fs::read_to_string(home.config()).unwrap();
    for (line, word) in [("[ingress]\n", "ingress"), ("[ingest.more]\n", "more"), ("x = = 1\n", "TOML")] {
        write(&home.config(), (good.clone() + line).as_bytes());
        let said = home.refuses(&["serve"], 2);
        assert!(said.contains(word), "{line}: {said}");
    }
    write(&home.config(), good.as_bytes());
    home.configure("segment.leaves_max = 65537\n");
    let said = home.refuses(&["serve"], 2);
    assert!(said.contains("segment.leaves_max") && said.contains("hint:"), "{said}");
    write(&home.config(), good.as_bytes());
    std::fs::remove_file(home.policy()).unwrap();
    assert!(home.refuses(&["serve"], 2).contains("policy"));
    let again =
        Command::new(binary("ledger")).args(["init", "--origin", "a/b", "--dir"]).arg(&home.dir).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
    assert_eq!(Command::new(binary("ledger")).arg("serv").output().unwrap().status.code(), Some(64));
}

#[test]
fn one_data_folder_has_one_ledger() {
    let home = Home::new("lock", SETTINGS);
    let process = home.start();
    let second = home.spawn(&[]);
    assert_eq!(second.wait_end().code(), Some(1), "{}", second.log().join("\n"));
    let log = second.log().join("\n");
    assert!(log.contains("another process has it open") && log.contains("\nhint:"), "{log}");
    assert_eq!(home.status()["state"], "serving");
    drop(process);
}

#[test]
fn a_ledger_that_is_there_and_does_not_go_on_is_waited_for_no_longer_than_asked() {
    let home = Home::new("stopped", SETTINGS);
    let process = home.start();
    let stopped = Command::new("kill").args(["-STOP", &process.id().to_string()]).status();
    assert!(stopped.unwrap().success());
    home.configure("admin.timeout_seconds = 1\n");
    let said = home.refuses(&["status"], 1);
    assert!(said.contains("did not answer") && said.contains("hint:"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_an_administrator_do_what_they_say() {
    let home = Home::new("admin", SETTINGS);
    let _process = home.start();
    let workspace = home.workspace("payments");
    let key = home.root_key().display().to_string();
    assert!(home.refuses(&["workspace", "add", "payments", "--root-key", &key], 1).contains("exists"));
    assert!(home.refuses(&["workspace", "add", "unsigned"], 64).contains("hint:"));
    let wrong = home.dir.join("root/root-successor.key").display().to_string();
    assert!(home.refuses(&["workspace", "add", "impostor", "--root-key", &wrong], 1).contains("not the root key"));
    // A registrar with a cap of one.
    let registrar = home.dir.join("registrar.key").display().to_string();
    offline(&["key", "make", &registrar]);
    let delegate = ["key", "delegate", "--workspace", "payments", "--enrolments-max", "1", "--new-key", &registrar];
    home.say_as_root(&delegate);
    let signing = ["--registrar-key", registrar.as_str()];
    let mut gateway = Gateway::enrol_signed(&home, workspace, &signing);
    let mut session = gateway.connect(home.grpc).await.unwrap();
    ship(&mut gateway, &mut session, 2).await;
    let (second, request) = Gateway::request(&home, workspace);
    let (asked, answered) = second.files(&home);
    write(asked.as_ref(), request.to_string().as_bytes());
    home.refuses(&[&["gateway", "enrol", &asked, "--out", &answered], &signing[..]].concat(), 1);
    // The same gateway offline: a request file, the root's signature, and the same command again.
    enrol_offline(&home, &asked, &answered);
    let id = custody::key::public(&gateway.key).id(custody::wire::Role::Gateway).to_string();
    home.say_as_root(&["key", "suspect", &id, "--workspace", "payments", "--since", "1"]);
    assert!(home.say(&["key", "list", "--workspace", "payments"]).contains("suspect since 1"));
    let since = ["--workspace", "payments", "--since", "2026-01-01T00:00:00Z"];
    let hold = home.say_as_root(&[&["hold", "set"], &since[..]].concat());
    let hold = hold.lines().find_map(|line| line.strip_prefix("hold ")).unwrap().to_owned();
    assert!(home.say(&["hold", "list", "--workspace", "payments"]).contains(&hold));
    home.say_as_root(&["hold", "release", "--workspace", "payments", &hold]);
    assert!(!home.say(&["hold", "list", "--workspace", "payments"]).contains(&hold));
    assert!(home.say(&["cut", "--workspace", "payments"]).contains("archived"));
    home.say_as_root(&["workspace", "remove", "payments"]);
    assert!(home.say(&["workspace", "list"]).contains("removed"));
    assert!(home.say(&["statement", "list", "--workspace", "payments"]).lines().count() > 5);
    let status = home.status();
    assert_eq!(status["state"], "serving");
    assert!(status["workspaces"].as_array().unwrap().iter().any(|known| known["removed"] == true));
    home.say(&["cut"]);
    let mut verify = Command::new(binary("verifier"));
    let verified = verify.arg("verify").arg(home.archive()).arg("--policy").arg(home.policy()).output().unwrap();
    // A suspect key leaves undecided what it signed, and says so.
    assert_eq!(verified.status.code(), Some(2), "{}", text(&verified.stdout));
    assert!(text(&verified.stdout).contains("suspect"), "{}", text(&verified.stdout));
}

fn enrol_offline(home: &Home, asked: &str, answered: &str) {
    let (request, signed) = (home.dir.join("enrol.request"), home.dir.join("enrol.stmt"));
    let (request, signed) = (request.display().to_string(), signed.display().to_string());
    home.say(&["gateway", "enrol", asked, "--out", answered, "--request-out", &request]);
    assert!(!Path::new(answered).exists());
    let sign = |key: &Path| {
        let mut sign = Command::new(binary("ledger"));
        sign.args(["root", "sign", &request, "--out", &signed, "--policy"]).arg(home.policy());
        sign.arg("--key").arg(key).output().unwrap()
    };
    let refused = sign(&home.dir.join("root/root-successor.key"));
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("nothing was signed") && !Path::new(&signed).exists());
    let done = sign(&home.root_key());
    assert!(done.status.success(), "{}", text(&done.stderr));
    home.say(&["statement", "submit", &signed]);
    home.say(&["statement", "submit", &signed]);
    let said = home.say(&["gateway", "enrol", asked, "--out", answered, "--request-out", "/dev/null/none"]);
    assert!(said.contains("enrolled already"), "{said}");
    assert!(Path::new(answered).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_development_server_serves_without_tls_and_ends_like_any_other() {
    let home = Home::new("dev", "listen.plaintext_loopback = true\n");
    home.configure(&format!("admin.url = \"http://127.0.0.1:{}\"\n", home.grpc));
    let process = Process::spawn(Command::new(binary("ledger")).arg("dev").arg("--dir").arg(&home.dir));
    assert!(process.wait_line("serving"), "{}", process.log().join("\n"));
    home.workspace("payments");
    assert_eq!(home.status()["state"], "serving");
    end(&process);
    let empty = Expected::default();
    assert_eq!(check_ledger(&home.archive(), &home.policy(), &empty), 0);
}

/// A panic is a fault of the program, and there should be none. If there is one a ledger that answers nobody must not stay there.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_breaks_off_ends_the_process() {
    let home = Home::new("broke-off", SETTINGS);
    // Its clock alone makes it pass there.
    let process = home.spawn(&[("CUSTODY_FAILPOINT", "commit-before-answer:3:panic")]);
    assert_eq!(process.wait_end().code(), Some(5), "{}", process.log().join("\n"));
    assert!(process.log().join("\n").contains("the writer broke off"), "{}", process.log().join("\n"));
    end(&home.start());
}
