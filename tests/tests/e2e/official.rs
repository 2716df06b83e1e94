//! What others wrote, and we did not change: the official clients and servers, and the official conformance suite, through the
//! gateway-shim. The scripts that put them together are in `scripts/`; what must come out of the suite is in `docs/CONFORMANCE.md`.

use std::process::Command;

use custody_tests::shim::done;

use crate::relay::{installed, repository};

/// Revision of MCP that the suite asks about; a soak asks about all (`CUSTODY_REVISIONS`, with blanks between them).
const REVISIONS: &str = "2025-11-25";

/// Runs a script, which judges by itself, and ends what it started.
fn script(name: &str, args: &[&str]) {
    let mut command = Command::new(installed("CUSTODY_PYTHON", "venv/bin/python"));
    command.arg(repository().join("tests/scripts").join(name)).args(args);
    command.env("CUSTODY_CONFORMANCE_DIR", installed("CUSTODY_CONFORMANCE_DIR", "conformance"));
    command.env("CUSTODY_NODE_DIR", installed("CUSTODY_NODE_DIR", "node"));
    done(name, &command.output().unwrap());
}

#[test]
fn official_clients_call_official_servers_and_the_archive_says_what_they_saw() {
    script("official.py", &[]);
}

#[test]
fn the_conformance_suite_says_the_same_of_a_server_behind_the_shim() {
    let revisions = std::env::var("CUSTODY_REVISIONS").unwrap_or_else(|_| REVISIONS.to_owned());
    script("conformance.py", &revisions.split_whitespace().collect::<Vec<_>>());
}
