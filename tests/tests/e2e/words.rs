//! What people read: the help of every command, the commands of the documents, and errors with their next move. Each text is kept beside this file; whoever
//! changes one looks at the difference and keeps the new text with `INSTA_UPDATE=always`.

use std::{path::Path, process::Command};

use custody_tests::process::{Home, Process, binary, text, write};

const PROGRAMS: [&str; 3] = ["ledger", "gateway-shim", "verifier"];

/// The help of a command and of all that are under it.
fn help(program: &str, path: &[String], out: &mut String) {
    let done = Command::new(binary(program)).args(path).arg("--help").output().unwrap();
    assert!(done.status.success(), "{program} {path:?}: {}", text(&done.stderr));
    let said = text(&done.stdout);
    out.push_str(&format!("$ {} --help\n{said}\n", [&[program.to_owned()], path].concat().join(" ")));
    let listed = said.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A command stands two columns in; what explains it stands further in.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        help(program, &[path, &[name.to_owned()]].concat(), out);
    }
}

#[test]
fn the_help_of_the_ledger() {
    let mut out = String::new();
    help("ledger", &[], &mut out);
    insta::assert_snapshot!(out);
}

#[test]
fn the_help_of_the_shim() {
    let mut out = String::new();
    help("gateway-shim", &[], &mut out);
    insta::assert_snapshot!(out);
}

/// What documents say in the place of an id or a key, with its digits in hex.
const PLACES: [(&str, usize); 7] =
    [("KEYID", 64), ("OLDKEYID", 64), ("HEX", 64), ("HOLDID", 32), ("MEMBERID", 32), ("TOKENID", 32), ("POSITION", 1)];

/// The commands in a document's blocks of code that run one of the programs, as their words; what a shell does is left out.
fn argument_lists(document: &str) -> Vec<(&'static str, Vec<String>)> {
    let (mut fenced, mut found) = (false, Vec::new());
    for line in document.lines() {
        fenced ^= line.starts_with("```");
        let Some(code) = line.strip_prefix(if fenced { "" } else { "    " }) else { continue };
        let code = code.split(" #").next().unwrap_or_default().trim_end_matches(" &");
        for command in code.split(" && ") {
            let mut words = command.split_whitespace().map(str::to_owned);
            let name = words.next().unwrap_or_default();
            let program = PROGRAMS.iter().find(|program| name.rsplit('/').next() == Some(program));
            found.extend(program.map(|program| (*program, words.collect())));
        }
    }
    found
}

/// Every command of the documents is one that the programs take. It is run where no file is and none can be made, and so fails
/// for want of one, after its words were read: with another code than 64.
#[test]
fn the_programs_take_the_commands_of_the_documents() {
    const NOWHERE: &str = "/proc";
    for (name, least) in [("README.md", 2), ("docs/OPERATIONS.md", 20), ("docs/SHIPPING.md", 20)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
        let all = argument_lists(&std::fs::read_to_string(path).unwrap());
        assert!(all.len() >= least, "{name} has {} commands", all.len());
        for (program, words) in all {
            let meant = words.iter().map(|word| match PLACES.iter().find(|(place, _)| place == word) {
                Some((_, digits)) => "1".repeat(*digits),
                None if word.starts_with('/') => format!("{NOWHERE}{word}"),
                None => word.clone(),
            });
            let mut command = Command::new(binary(program));
            let ran = Process::spawn(command.args(meant).current_dir(NOWHERE).env("TMPDIR", NOWHERE));
            let (code, said) = (ran.wait_end().code(), ran.log().join("\n"));
            assert!(code.is_some_and(|code| code != 64), "{name}: {program} {}: {code:?}\n{said}", words.join(" "));
        }
    }
}

/// What a command complains of, with the folder's name out of it.
fn complaint(home: &Home, args: &[&str]) -> String {
    let done = home.try_say(args);
    let said = text(&done.stderr).replace(&home.dir.display().to_string(), "DIR");
    // The log says the time.
    let told = said.lines().filter(|line| !line.starts_with('{'));
    let told: String = told.map(|line| format!("{line}\n")).collect();
    format!("$ ledger {}\n{told}(code {})\n\n", args.join(" "), done.status.code().unwrap())
}

#[test]
fn errors_end_with_the_next_move() {
    let home = Home::new("words", "listen.grpc = \"127.0.0.1:1\"\nadmin.url = \"https://localhost:1\"\n");
    let mut out = complaint(&home, &["status"]);
    out.push_str(&complaint(&home, &["workspace", "add", "payments"]));
    let file = |name: &str| home.dir.join(name);
    let good = std::fs::read(file("keys/head.key")).unwrap();
    let policy = std::fs::read(home.policy()).unwrap();
    let mode = |name: &str, mode| {
        std::fs::set_permissions(file(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode("keys/head.key", 0o644);
    out.push_str(&complaint(&home, &["serve"]));
    mode("keys/head.key", 0o600);
    write(&file("keys/head.key"), &std::fs::read(file("keys/log.key")).unwrap());
    // Which key it is differs from run to run.
    let said = complaint(&home, &["serve"]);
    let id = said.split(['(', ')']).find(|word| word.len() == 64).unwrap();
    out.push_str(&said.replace(id, "KEYID"));
    write(&file("keys/head.key"), &good);
    write(&home.policy(), b"{}");
    out.push_str(&complaint(&home, &["serve"]));
    write(&home.policy(), &policy);
    let kept = |name: &str| std::fs::read(file(name)).unwrap();
    for (name, bad) in [
        ("keys/log.key", None),
        ("vault/members.vault", None),
        ("tls/authority.key", None),
        ("tls/authority.pem", None),
        ("tls/server.pem", Some(b"garbage")),
        ("vault/members.vault", Some(b"damaged")),
    ] {
        let good = kept(name);
        match bad {
            Some(bytes) => write(&file(name), bytes),
            None => std::fs::remove_file(file(name)).unwrap(),
        }
        out.push_str(&complaint(&home, &["serve"]));
        write(&file(name), &good);
        mode(name, 0o600);
    }
    write(&file("tls/admin.pem"), b"garbage");
    out.push_str(&complaint(&home, &["status"]));
    home.configure("segment.leaves_max = 0\n");
    out.push_str(&complaint(&home, &["serve"]));
    std::fs::remove_file(home.config()).unwrap();
    out.push_str(&complaint(&home, &["serve"]));
    insta::assert_snapshot!(out);
}
