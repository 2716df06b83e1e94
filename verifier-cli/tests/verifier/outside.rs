//! What others wrote reaches a person's terminal, and the arithmetic of what is printed: names, texts, numbers, files.

use std::{path::Path, process::Command};

use bytes::Bytes;
use custody::{
    evidence, record,
    wire::{self, record::Kind},
};
use serde_json::Value;
use verifier::{
    make_evidence::{What, make},
    reader::Source,
    report,
};

use crate::{
    commands::{Place, run},
    ledger::{call, opened, policy},
};

const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;VERIFIED\u{7}\r\nhint: \u{202e}run me\u{9b}1m";

/// Nothing but lines of what is seen.
fn assert_harmless(output: &std::process::Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(bytes).unwrap();
        let odd = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(odd, None, "{text}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("hint: \\u202e")), "a line of its own: {text}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn names_of_objects_and_files_are_never_obeyed_by_a_terminal() {
    let place = Place::new();
    place.ledger.put(&format!("log/checkpoints/{HOSTILE}"), b"x");
    for more in [&[][..], &["--json"]] {
        let output = place.verify("2026-03-01T12:00:00Z", more);
        assert_harmless(&output);
        assert!(String::from_utf8_lossy(&output.stdout).contains("\\u001b[2J"));
    }
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let named = place.write(&HOSTILE.replace('/', ""), b"no archive, policy or evidence");
    let (archive, policy, named) = (text(&archive), text(&policy), text(&named));
    for arguments in [
        &["verify", archive, "--policy", named][..],
        &["verify", named, "--policy", policy],
        &["verify", archive, "--policy", policy, "--known", named],
        &["evidence", "check", named, "--policy", policy],
        &["show", archive, &format!("{HOSTILE}/0")],
        &["show", archive, &format!("{HOSTILE}/0"), "--policy", policy],
        &["show", archive, HOSTILE],
        &["export", archive, "--policy", policy, "--workspace", HOSTILE, "--out", named],
        &["access", archive, "--policy", policy, "--at", "2026-03-01", "--workspace", HOSTILE],
        &["access", archive, "--policy", policy, "--at", "2026-03-02", "--tool", &format!("mail/{HOSTILE}")],
        &["access", archive, "--policy", policy, "--at", "2026-03-02", "--tool", "mail/x", "--method", HOSTILE],
        &["access", archive, "--policy", policy, "--at", HOSTILE],
        &["access", archive, "--policy", policy, "--at", "2026-03-01", "--names", named],
    ] {
        let output = run(arguments);
        assert!(matches!(output.status.code(), Some(1 | 2 | 64)), "{arguments:?}");
        assert_harmless(&output);
    }
}

/// The one text of records that may hold any character.
fn search() -> Bytes {
    record::encode(Kind::Search(wire::Search {
        at: 1_772_323_200_000_000,
        actor: "admin".to_owned(),
        decision: wire::Decision::Allowed as i32,
        query: HOSTILE.to_owned(),
        ..Default::default()
    }))
    .into()
}

#[test]
fn the_text_of_records_and_policies_is_never_obeyed_by_a_terminal() {
    let mut place = Place::new();
    let source = Source::open(&place.path("archive")).unwrap();
    let what = What::Positions { workspace: "acme".to_owned(), first: 0, end: Some(1) };
    let proof = make(&source, &policy(), &what).unwrap();
    let mut shown = evidence::check(&proof.to_bytes(), &policy()).unwrap().unwrap();
    shown.records[0].bytes = search();
    let said = report::evidence_text(&proof, &shown, &policy(), "");
    let expected = "\\u001b[2J\\u001b]0;VERIFIED\\u0007\\u000d\\u000ahint: \\u202erun me\\u009b1m\n";
    assert!(said.contains(expected), "{said}");
    let mut workspace = place.ledger.create(0xc3, "far");
    let mut gateway = place.ledger.enrol(&mut workspace, 0x44);
    place.ledger.take(&mut workspace, &mut gateway, &[search(), call(0)]);
    place.ledger.cut(&mut workspace);
    place.ledger.publish();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let (archive, policy) = (text(&archive), text(&policy));
    let range = format!("{}/0..2", workspace.id);
    let mut hostile = self::policy();
    hostile.origin = HOSTILE.to_owned();
    hostile.witnesses[0].name = HOSTILE.to_owned();
    hostile.known = vec![HOSTILE.to_owned()];
    place.write_policy(&hostile);
    for (arguments, has_text) in [
        (&["show", archive, &range][..], true),
        (&["show", archive, &range, "--json"], true),
        (&["verify", archive, "--policy", policy], false),
        (&["show", archive, &range, "--policy", policy], false),
        (&["access", archive, "--policy", policy, "--at", "2026-03-01"], false),
        (&["access", archive, "--policy", policy, "--between", "2026-03-01", "2026-03-02", "--json"], false),
    ] {
        let output = run(arguments);
        assert_harmless(&output);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!has_text || (output.status.code() == Some(0) && said.contains("\\u202erun me")), "{said}");
    }
}

#[test]
fn numbers_of_others_overflow_nothing() {
    let mut place = Place::new();
    place.ledger.cosign(1 << 63);
    let source = Source::open(&place.path("archive")).unwrap();
    let what = What::Positions { workspace: "acme".to_owned(), first: 0, end: Some(15) };
    let proof = make(&source, &policy(), &what).unwrap();
    let mut shown = evidence::check(&proof.to_bytes(), &policy()).unwrap().unwrap();
    for (index, record) in (0_u64..).zip(&mut shown.records) {
        (record.position, record.received_at) = ((u64::MAX - 2).saturating_add(index), u64::MAX);
    }
    let text = report::evidence_text(&proof, &shown, &policy(), "");
    assert!(text.contains("positions 18446744073709551613 to 18446744073709551615"), "{text}");
    assert!(text.contains("signed the log's summary at 9223372036854775808 s"), "{text}");
    assert!(report::evidence_json(Ok((&proof, &shown)), &policy(), "").contains("9223372036854775808 s"));
    let mut workspace = place.ledger.create(0xc3, "far");
    let mut gateway = place.ledger.enrol(&mut workspace, 0x44);
    workspace.position = u64::MAX - 1;
    place.ledger.take(&mut workspace, &mut gateway, &[opened(), call(0), call(1)]);
    place.ledger.cut(&mut workspace);
    place.ledger.publish();
    let (archive, policy) = (place.path("archive"), place.path("policy.json"));
    let range = format!("{}/{}..{}", workspace.id, u64::MAX - 1, u64::MAX);
    for more in [&[][..], &["--policy", policy.to_str().unwrap()]] {
        let output = run([&["show", archive.to_str().unwrap(), &range], more].concat());
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)) && why.contains("hint: "), "{why}");
    }
    assert!(matches!(place.verify("2026-03-01T12:00:00Z", &[]).status.code(), Some(1 | 2)));
}

#[test]
fn a_pipe_a_device_or_a_folder_is_no_policy_and_no_evidence_and_nobody_waits() {
    let place = Place::new();
    let pipe = place.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (archive, policy, folder) = (place.path("archive"), place.path("policy.json"), place.path(""));
    let (archive, policy) = (text(&archive), text(&policy));
    for odd in [text(&pipe), "/dev/zero", text(&folder)] {
        for arguments in [
            &["verify", archive, "--policy", odd][..],
            &["verify", archive, "--policy", policy, "--known", odd],
            &["evidence", "check", odd, "--policy", policy],
            &["evidence", "check", odd, "--policy", policy, "--json"],
            &["fingerprint", odd],
        ] {
            let output =
                Command::new("timeout").args(["20", env!("CARGO_BIN_EXE_verifier")]).args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            let why = String::from_utf8(output.stderr).unwrap();
            // A folder may hold evidence; this one holds none.
            let of_folder = arguments[0] == "evidence" && odd == text(&folder);
            let said =
                if of_folder { "no file in it ends with .tlog-proof\nhint: " } else { "not a regular file\nhint: " };
            assert!(why.contains(said), "{why}");
        }
    }
}

#[test]
fn a_size_without_a_checkpoint_shows_nothing_to_be_false() {
    let place = Place::new();
    for size in ["0", "5", "18446744073709551615"] {
        let output = place.verify("2026-03-01T12:00:00Z", &["--at-size", size, "--json"]);
        assert_eq!(output.status.code(), Some(2), "{size}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((answer["conclusion"].as_str(), answer["exit_code"].as_u64()), (Some("undecided"), Some(2)));
        assert_eq!(answer["first_failing_check"], "checkpoint-present");
        assert_eq!(answer["faults"][0]["state"], "undecided");
        let found = answer["faults"][0]["found"].as_str().unwrap();
        assert!(found.contains("checkpoints of sizes from 4 to "), "{found}");
    }
    // Without any checkpoint there is something to judge, whatever the size.
    std::fs::remove_dir_all(place.path("archive/log/checkpoints")).unwrap();
    assert_eq!(place.verify("2026-03-01T12:00:00Z", &["--at-size", "5"]).status.code(), Some(1));
}

#[test]
fn evidence_says_which_required_claims_it_cannot_show() {
    let place = Place::new();
    let mut asked = policy();
    asked.required = custody::verdict::Claim::ALL.to_vec();
    asked.quorum = 1;
    place.write_policy(&asked);
    let (archive, policy, out) = (place.path("archive"), place.path("policy.json"), place.path("evidence"));
    let (archive, policy, out) = (text(&archive), text(&policy), text(&out));
    assert_eq!(run(["evidence", "make", archive, "--policy", policy, "acme/2", "--out", out]).status.code(), Some(0));
    let output = run(["evidence", "check", out, "--policy", policy]);
    let said = String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("The policy also requires what no evidence file can show"), "{said}");
    assert!(said.contains("that the organisation keeps no second history"), "{said}");
    let shown: Value =
        serde_json::from_slice(&run(["evidence", "check", out, "--policy", policy, "--json"]).stdout).unwrap();
    let expected = serde_json::json!(["complete", "not_rolled_back", "not_rewritten", "dated"]);
    assert_eq!(shown["required_not_shown"], expected);
}
