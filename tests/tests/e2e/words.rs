//! What people read: the help of every command, and errors with their next move. Each text is kept beside this file; whoever
//! changes one looks at the difference and keeps the new text with `INSTA_UPDATE=always`.

use std::process::Command;

use custody_tests::process::{Home, binary, text, write};

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
