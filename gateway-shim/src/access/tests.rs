//! What the endpoint is told: who calls, and whether it may.

use custody::id::hex;

use super::*;

const ALICE: &str = "a11ce000000000000000000000000001";
const AGENT: &str = "a9000000000000000000000000000001";

/// A policy of one member with one token, and these rules; and the header with the token.
fn access(rules: &str) -> (Access, String) {
    let token = OneTimeToken::random();
    let text = format!(
        "version = 1\n[members.{ALICE}]\ngroups = [\"staff\"]\n[agents.{AGENT}]\n{rules}\n[[tokens]]\nid = \"{}\"\nsha256 = \
         \"{}\"\nmember = \"{ALICE}\"\nagent = \"{AGENT}\"\nissued_at = 2026-11-01T00:00:00Z\nexpires_at = \
         2026-12-01T00:00:00Z\n",
        hex(&token.id()),
        hex(&token.sha256())
    );
    (Access::of(&text, None).unwrap(), format!("Bearer {}", token.reveal()))
}

const NOW: u64 = 1_795_000_000_000_000;

fn ask<'a>(server: &'a str, name: &'a str) -> Ask<'a> {
    Ask { server, method: "tools/call", name: Some(name), from_server: false, request_bytes: 0 }
}

#[test]
fn the_first_rule_that_fits_decides() {
    let (access, header) = access(
        "[[rules]]\nid = \"no-delete\"\neffect = \"deny\"\neveryone = true\ntools = [\"*/delete_*\"]\n[[rules]]\nid = \
         \"staff\"\neffect = \"allow\"\ngroups = [\"staff\"]\ntools = [\"mail/*\"]\n",
    );
    let caller = access.authenticate(Some(&header), NOW).unwrap();
    let decided = |server, name| {
        let judgement = access.judge(&caller, &ask(server, name));
        (judgement.allowed, judgement.rule.to_string())
    };
    assert_eq!(decided("mail", "send"), (true, "staff".into()));
    assert_eq!(decided("mail", "delete_all"), (false, "no-delete".into()));
    assert_eq!(decided("files", "read"), (false, "shim/default-deny".into()));
    assert!(access.may_reach(&caller, "mail") && !access.may_reach(&caller, "files"));
    let list = Ask { method: "tools/list", name: None, ..ask("mail", "") };
    assert_eq!(access.judge(&caller, &list).rule.as_ref(), "shim/session");
}
