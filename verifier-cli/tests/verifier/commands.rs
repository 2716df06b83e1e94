//! The program from its command line: what it prints, and its exit codes.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use custody::policy::{Policy, Scope};
use serde_json::Value;

use crate::ledger::{self, BEGINNING, Ledger, Workspace};

/// A small archive with its policy, in a folder that goes away.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) ledger: Ledger,
    pub(crate) workspaces: Vec<Workspace>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, workspaces) = ledger::small(&dir.path().join("archive"));
        let place = Self { dir, ledger, workspaces };
        place.write_policy(&ledger::policy());
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, bytes)).unwrap();
        path
    }

    pub(crate) fn write_policy(&self, policy: &Policy) {
        self.write("policy.json", &serde_json::to_vec_pretty(policy).unwrap());
    }

    /// `verifier verify` on the archive.
    pub(crate) fn verify(&self, as_of: &str, more: &[&str]) -> Output {
        let (archive, policy) = (self.path("archive"), self.path("policy.json"));
        let fixed = ["verify".as_ref(), archive.as_os_str(), "--policy".as_ref(), policy.as_os_str()];
        let as_of = ["--as-of", as_of].map(OsStr::new);
        run(fixed.into_iter().chain(as_of).chain(more.iter().map(OsStr::new)))
    }

    fn verdict(&self, more: &[&str]) -> (Value, i32) {
        self.verdict_at("2026-03-01T12:00:00Z", more)
    }

    fn verdict_at(&self, as_of: &str, more: &[&str]) -> (Value, i32) {
        let output = self.verify(as_of, &[more, &["--json"]].concat());
        (serde_json::from_slice(&output.stdout).unwrap(), output.status.code().unwrap())
    }

    /// The first object below a folder of the archive.
    pub(crate) fn object(&self, folder: &str) -> PathBuf {
        let mut names: Vec<PathBuf> =
            fs::read_dir(self.path("archive").join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names.remove(0)
    }
}

pub(crate) fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_verifier")).args(arguments).output().unwrap()
}

fn claim<'a>(verdict: &'a Value, name: &str) -> &'a str {
    let claims = verdict["claims"].as_array().unwrap();
    claims.iter().find(|claim| claim["claim"] == name).unwrap()["state"].as_str().unwrap()
}

fn tar(place: &Place, arguments: &[&str]) -> PathBuf {
    let out = place.path("archive.tar");
    let status = Command::new("tar").arg("-cf").arg(&out).arg("-C").args(arguments).status().unwrap();
    assert!(status.success());
    out
}

#[test]
fn an_archive_verifies_as_a_folder_and_as_a_tar() {
    let place = Place::new();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["conclusion"]), (0, &"verified".into()), "{verdict:#}");
    assert_eq!(verdict["counts"]["records"], 18);
    let dir = place.path("");
    let (dir, archive) = (dir.to_str().unwrap(), place.path("archive"));
    let policy = place.path("policy.json");
    for arguments in [
        vec![dir, "archive"],
        vec![archive.to_str().unwrap(), "."],
        vec![dir, "--format=ustar", "archive"],
        vec![dir, "--format=pax", "archive"],
    ] {
        let tar = tar(&place, &arguments);
        let output = run(["verify", tar.to_str().unwrap(), "--policy", policy.to_str().unwrap(), "--json"]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_changed_byte_is_refuted_and_named() {
    let place = Place::new();
    let object = place.object(&format!("workspaces/{}/segments", place.workspaces[0].id));
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&object).unwrap();
    fs::File::create(&object).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["first_failing_check"]), (1, &"segment-sha256".into()));
    assert_eq!(claim(&verdict, "unaltered"), "refuted");
    assert_eq!(claim(&verdict, "authorised"), "undecided");
    fs::remove_file(&object).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["first_failing_check"]), (1, &"segment-present".into()));
}

#[test]
fn an_object_below_cosignatures_is_judged_by_its_first_component_alone() {
    for (name, check, exit) in [("1", "cosignature", 1), ("1/w", "cosignature", 1), ("w", "", 0), ("999", "", 0)] {
        let place = Place::new();
        let path = place.path("archive/log/cosignatures").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        place.write(path.to_str().unwrap(), b"no line of a note\n");
        let (verdict, code) = place.verdict(&[]);
        assert_eq!((verdict["first_failing_check"].as_str().unwrap_or_default(), code), (check, exit), "{name}");
    }
}

#[test]
fn exit_codes_tell_apart_what_is_wrong() {
    let place = Place::new();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let (archive, policy) = (archive.to_str().unwrap(), policy.to_str().unwrap());
    let broken = place.write("broken.json", b"{}");
    let broken = broken.to_str().unwrap();
    for (arguments, code) in [
        (&["verify", archive, "--policy", policy][..], 0),
        (&["--help"], 0),
        (&["--version"], 0),
        (&["fingerprint", policy], 0),
        (&["verify", archive], 64),
        (&["verify", archive, "--policy", policy, "--as-of", "yesterday"], 64),
        (&["verify", archive, "--policy", policy, "--frobnicate"], 64),
        (&["verify", archive, "--policy", policy, "--at-size", "04"], 64),
        (&["verify", archive, "--policy", policy, "--at-size", "+4"], 64),
        (&["evidence", "make", archive, "--policy", policy, "acme", "--out", "/nowhere/x"], 64),
        (&["evidence", "make", archive, "--policy", policy, "acme/01", "--out", "/nowhere/x"], 64),
        (&["show", archive, "acme/0..02", "--policy", policy], 64),
        (&[], 64),
        (&["verify", "/nowhere", "--policy", policy], 2),
        (&["verify", "/dev/null", "--policy", policy], 2),
        (&["verify", archive, "--policy", "/nowhere"], 2),
        (&["verify", archive, "--policy", broken], 2),
        (&["verify", archive, "--policy", archive], 2),
        (&["verify", broken, "--policy", policy], 2),
        (&["verify", archive, "--policy", policy, "--known", "/nowhere"], 2),
        (&["verify", archive, "--policy", policy, "--known", policy], 2),
        (&["verify", archive, "--policy", policy, "--known", broken], 2),
        (&["evidence", "make", archive, "--policy", policy, "acme/99", "--out", "/nowhere/x"], 2),
        (&["evidence", "make", archive, "--policy", policy, "nobody/0", "--out", "/nowhere/x"], 2),
        (&["evidence", "check", broken, "--policy", policy], 1),
        (&["show", archive, "acme/0"], 2),
        (&["show", archive, "acme/15..99", "--policy", policy], 2),
        (&["show", archive, "acme/99..", "--policy", policy], 2),
        (&["show", archive, "acme/..", "--policy", policy], 64),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        let has_hint = said.contains("\nhint: ");
        assert!(has_hint || !(code == 2 || arguments.concat().contains("/0")), "{arguments:?}: {said}");
    }
}

#[test]
fn what_cannot_be_read_is_said_in_json_too() {
    let place = Place::new();
    std::os::unix::fs::symlink("/etc/hostname", place.path("archive/log/checkpoints/99")).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["conclusion"], &verdict["exit_code"]), (2, &"unreadable".into(), &2.into()));
    assert_eq!(verdict["schema"], "custody/verdict/1");
    assert!(verdict["unreadable"].as_str().unwrap().contains("log/checkpoints/99"));
    let (policy, broken) = (place.path("policy.json"), place.write("broken.json", b"{}"));
    for (file, policy, word) in [(&place.path("nothing"), &policy, "nothing"), (&broken, &broken, "policy")] {
        let fixed = ["evidence".as_ref(), "check".as_ref(), file.as_os_str(), "--policy".as_ref(), policy.as_os_str()];
        let output = run(fixed.into_iter().chain([OsStr::new("--json")]));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &said["conclusion"]), (Some(2), &"unreadable".into()));
        assert_eq!((&said["schema"], &said["exit_code"]), (&"custody/evidence/1".into(), &2.into()));
        assert!(said["unreadable"].as_str().unwrap().contains(word), "{said}");
    }
}

#[test]
fn what_is_known_shows_an_older_copy() {
    let place = Place::new();
    let newest = place.object("log/checkpoints");
    let sizes = |place: &Place| {
        let names = fs::read_dir(place.path("archive/log/checkpoints")).unwrap();
        let mut sizes: Vec<u64> =
            names.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        sizes.sort_unstable();
        sizes
    };
    let size = *sizes(&place).last().unwrap();
    let known = place.write("known", &fs::read(newest.with_file_name(size.to_string())).unwrap());
    let known = known.to_str().unwrap();
    let (verdict, code) = place.verdict(&["--known", known]);
    assert_eq!((code, claim(&verdict, "not_rolled_back")), (0, "verified"));
    assert_eq!(claim(&place.verdict(&[]).0, "not_rolled_back"), "undecided");
    // The same archive as it was before: complete in itself, and refuted by what is known.
    fs::remove_file(newest.with_file_name(size.to_string())).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, claim(&verdict, "complete")), (0, "verified"), "{verdict:#}");
    let (verdict, code) = place.verdict(&["--known", known]);
    assert_eq!((code, &verdict["first_failing_check"]), (1, &"known-checkpoint".into()));
}

/// FORMAT.md, 13.5: what the policy holds counts as given first.
#[test]
fn what_the_policy_knows_comes_before_what_is_given_beside() {
    let place = Place::new();
    let checkpoint = |size: u64| place.path("archive/log/checkpoints").join(size.to_string());
    let size = (0..99).rev().find(|size| checkpoint(*size).exists()).unwrap();
    let before = (0..size).rev().find(|size| checkpoint(*size).exists()).unwrap();
    let [newest, beside] = [size, before].map(|size| fs::read(checkpoint(size)).unwrap());
    fs::remove_file(checkpoint(size)).unwrap();
    fs::remove_file(checkpoint(before)).unwrap();
    let beside = place.write("beside", &beside);
    place.write_policy(&Policy { known: vec![String::from_utf8(newest).unwrap()], ..ledger::policy() });
    let (verdict, code) = place.verdict(&["--known", beside.to_str().unwrap()]);
    let places = verdict["faults"].as_array().unwrap().iter().map(|fault| fault["place"].as_str().unwrap());
    let expected = [size, before].map(|size| format!("log/checkpoints/{size}"));
    assert_eq!((code, places.collect::<Vec<_>>()), (1, expected.each_ref().map(String::as_str).to_vec()));
}

#[test]
fn witnesses_decide_what_the_ledger_alone_cannot() {
    let place = Place::new();
    let mut policy = ledger::policy();
    (policy.quorum, policy.greatest_age_seconds) = (1, 86_400);
    policy.required = custody::verdict::Claim::ALL.to_vec();
    place.write_policy(&policy);
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["conclusion"]), (2, &"undecided".into()));
    place.ledger.cosign(BEGINNING / 1_000_000 + 60);
    let (verdict, code) = place.verdict(&[]);
    assert_eq!(code, 0, "{verdict:#}");
    // A day and more later the witness's word on "the newest" counts no more.
    let (verdict, code) = place.verdict_at("2026-03-04", &[]);
    assert_eq!((code, claim(&verdict, "not_rolled_back")), (2, "undecided"));
    assert_eq!(claim(&verdict, "not_rewritten"), "verified");
}

#[test]
fn a_period_and_an_earlier_size_can_be_asked_for() {
    let place = Place::new();
    let (verdict, code) = place.verdict(&["--until", "2026-03-01T00:00:00.020Z"]);
    assert_eq!(code, 0, "{verdict:#}");
    assert!(verdict["counts"]["records"].as_u64().unwrap() < 18);
    let (verdict, code) = place.verdict(&["--since", "2026-03-01T00:00:00.036Z"]);
    assert_eq!(code, 0, "{verdict:#}");
    assert!(verdict["counts"]["records"].as_u64().unwrap() < 18);
    assert!(verdict["counts"]["segments_not_examined"].as_u64().unwrap() > 0);
    // The neighbours are examined, for the ledger alone says that nothing of the period is in them. But nothing is shown of it.
    let (verdict, code) = place.verdict(&["--since", "2099-01-01T00:00:00Z"]);
    let counts = &verdict["counts"];
    assert_eq!((code, &counts["segments"], &counts["segments_in_period"]), (2, &2.into(), &0.into()), "{verdict:#}");
    let (verdict, code) = place.verdict(&["--at-size", "4"]);
    assert_eq!((code, &verdict["counts"]["workspaces"]), (0, &0.into()), "{verdict:#}");
}

fn export(archive: &Path, policy: &Path, workspace: &str, out: &Path) -> Output {
    run([
        "export".as_ref(),
        archive.as_os_str(),
        "--policy".as_ref(),
        policy.as_os_str(),
        "--workspace".as_ref(),
        workspace.as_ref(),
        "--out".as_ref(),
        out.as_os_str(),
    ])
}

#[test]
fn an_export_verifies_by_itself_and_holds_no_other_workspace() {
    let place = Place::new();
    let beta = &place.workspaces[1];
    let (archive, policy, out) = (place.path("archive"), place.path("policy.json"), place.path("out"));
    let output = export(&archive, &policy, "beta/eu", &out);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let again = export(&archive, &policy, "beta/eu", &out);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("hint: nothing is overwritten"));
    let (archive, policy) = (out.join("archive"), out.join("policy.json"));
    let narrowed = Policy::parse(&fs::read(&policy).unwrap()).unwrap();
    assert_eq!(narrowed.scope, Scope::Workspaces(vec![beta.id.to_string()]));
    assert!(!archive.join(format!("workspaces/{}", place.workspaces[0].id)).exists());
    let verify = |policy: &Path| {
        let output =
            run(["verify".as_ref(), archive.as_os_str(), "--policy".as_ref(), policy.as_os_str(), "--json".as_ref()]);
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), output.status.code())
    };
    let (verdict, code) = verify(&policy);
    assert_eq!((code, &verdict["counts"]["records"]), (Some(0), &3.into()));
    // Under the policy of the whole organisation the other workspace is missing.
    let (verdict, code) = verify(&place.path("policy.json"));
    assert_eq!((code, &verdict["first_failing_check"]), (Some(1), &"seal-present".into()));
}

/// Nobody hands out what its receiver would refute, or what the policy in hand does not speak of.
#[test]
fn what_is_refuted_or_out_of_scope_is_not_exported() {
    let place = Place::new();
    let (archive, policy, out) = (place.path("archive"), place.path("policy.json"), place.path("out"));
    let object = place.object(&format!("workspaces/{}/segments", place.workspaces[0].id));
    let mut bytes = fs::read(&object).unwrap();
    bytes[100] ^= 1;
    place.write(object.to_str().unwrap(), &bytes);
    let refused = export(&archive, &policy, "acme", &out);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("segment-sha256") && said.contains("hint: ") && !out.exists(), "{said}");
    // The lie is about the other workspace.
    assert_eq!(export(&archive, &policy, "beta/eu", &out).status.code(), Some(0));
    let narrowed = out.join("policy.json");
    let beyond = export(&archive, &narrowed, "acme", &place.path("beyond"));
    let said = String::from_utf8_lossy(&beyond.stderr);
    assert_eq!(beyond.status.code(), Some(2), "{said}");
    assert!(said.contains("not in the policy's scope\nhint: ") && !place.path("beyond").exists(), "{said}");
}

#[test]
fn an_export_says_what_its_policy_asks_for_in_vain() {
    let place = Place::new();
    let mut policy = ledger::policy();
    policy.required.push(custody::verdict::Claim::Dated);
    place.write_policy(&policy);
    let output = export(&place.path("archive"), &place.path("policy.json"), "acme", &place.path("out"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("it could not be shown that third parties confirm the times")
            && place.path("out/policy.json").exists(),
        "{said}"
    );
}

/// What is no archive is not refuted: somebody named another folder. An archive without its checkpoints is.
#[test]
fn a_folder_that_is_no_archive_is_unreadable() {
    let place = Place::new();
    let (top, policy) = (place.path(""), place.path("policy.json"));
    let log = place.path("archive/log");
    let tar = tar(&place, &[log.to_str().unwrap(), "."]);
    for wrong in [&top, &log, &tar] {
        let output = run(["verify".as_ref(), wrong.as_os_str(), "--policy".as_ref(), policy.as_os_str()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{}: {said}", wrong.display());
        assert!(said.contains("hint: is this the archive's top folder?"), "{said}");
    }
    fs::remove_dir_all(place.path("archive/log/checkpoints")).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["first_failing_check"]), (1, &"checkpoint-present".into()));
    fs::remove_dir_all(&log).unwrap();
    let (verdict, code) = place.verdict(&[]);
    assert_eq!((code, &verdict["first_failing_check"]), (1, &"checkpoint-present".into()));
}

/// Exit code of a command whose reader leaves before the first byte, and what it says on standard error.
fn unread(arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_verifier")).args(arguments).stdout(writer).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A closed pipe is no failure, and makes no refuted archive a verified one.
#[test]
fn a_reader_that_leaves_changes_no_exit_code() {
    let place = Place::new();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let (archive, policy) = (archive.to_str().unwrap(), policy.to_str().unwrap());
    let quiet = |code: i32| (Some(code), String::new());
    for arguments in [
        &["show", archive, "acme/0..15", "--policy", policy][..],
        &["show", archive, "acme/0..15", "--policy", policy, "--json"],
        &["verify", archive, "--policy", policy],
        &["verify", archive, "--policy", policy, "--json"],
        &["fingerprint", policy],
        &["--help"],
        &["verify", "--help"],
        &["--version"],
    ] {
        assert_eq!(unread(arguments), quiet(0), "{arguments:?}");
    }
    fs::remove_dir_all(place.path("archive/log/checkpoints")).unwrap();
    assert_eq!(unread(&["verify", archive, "--policy", policy]), quiet(1));
}

#[test]
fn records_are_shown_with_and_without_a_policy() {
    let place = Place::new();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let (archive, policy) = (archive.to_str().unwrap(), policy.to_str().unwrap());
    let id = place.workspaces[0].id.to_string();
    let lines = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let table = lines(&["show", archive, "acme/0..15", "--policy", policy]);
    assert_eq!(table.len(), 16);
    assert!(table[0].starts_with("POSITION") && table[3].contains("outcome=ok"), "{table:#?}");
    let json = lines(&["show", archive, &format!("{id}/3..7"), "--json"]);
    let values: Vec<Value> = json.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values.iter().map(|value| value["position"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 4, 5, 6]);
    assert_eq!(values[0]["kind"], "gateway_event");
    assert_eq!(values[1]["record"]["tool"].as_str().map(str::is_empty), Some(false));
}

#[test]
fn a_file_that_is_made_is_on_disk_under_its_name() {
    let place = Place::new();
    let (trace, out) = (place.path("trace"), place.path("new/folder/evidence"));
    let paths = [place.path("archive"), place.path("policy.json"), out];
    let [archive, policy, file] = paths.each_ref().map(|path| path.as_os_str());
    let status = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_verifier"))
        .args([
            "evidence".as_ref(),
            "make".as_ref(),
            archive,
            "--policy".as_ref(),
            policy,
            "acme/1".as_ref(),
            "--out".as_ref(),
            file,
        ])
        .status()
        .unwrap();
    assert!(status.success());
    let trace = fs::read_to_string(trace).unwrap();
    // Each new name, from the top down, and the bytes before the name that leads to them.
    let folder = fs::canonicalize(place.path("")).unwrap();
    let out = folder.join("new/folder/evidence");
    let synced: Vec<&str> =
        trace.lines().filter_map(|line| line.split_once('<')?.1.split_once('>')).map(|l| l.0).collect();
    let expected = [&folder, &folder.join("new"), &out, &folder.join("new/folder")];
    assert_eq!(synced, expected.map(|path| path.to_str().unwrap()), "{trace}");
}
