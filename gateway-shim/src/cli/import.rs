//! `gateway-shim import`: the servers of an MCP client's configuration, as sections of `shim.toml`, and what changes in meaning.
//!
//! What must hold: no secret enters `shim.toml`, the report or a log: it goes into a file of mode 0600, or is to be filled in, and
//! `shim.toml` is its owner's alone all the same; nothing is overwritten, and nothing of the client's file is changed; whatever cannot be taken over as it was is said. What is
//! decided is pure (`read.rs`, `convert.rs`), what is written is here.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Done, EXIT_FAILED, Failed, init,
    output::{print, say},
};
use crate::durable;

mod convert;
mod jsonc;
mod read;
mod secret;

use convert::Taken;

/// Longest file that is read, in bytes: Claude Code keeps its history in the same file.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// What stands where somebody must put something.
pub(super) const FILL_IN: &str = "FILL-IN";

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Configuration of Claude Desktop, Claude Code, Cursor or VS Code.
    file: PathBuf,
    /// Folder of shim.toml: made by `init` if it has none, else the servers are added to the one that is there.
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(args: &ImportArgs) -> Done {
    let shown = args.file.display();
    let refuse = |why: String| Failed::new(EXIT_FAILED, format!("import {shown}: {why}"));
    let length = std::fs::metadata(&args.file).map_err(|why| refuse(format!("{why}; hint: which file is it?")))?.len();
    if length > FILE_BYTES_MAX {
        return Err(refuse("it is longer than 64 MiB; hint: is it a client's configuration?".into()));
    }
    let text = std::fs::read_to_string(&args.file).map_err(|why| refuse(format!("{why}; hint: which file is it?")))?;
    let found = read::servers(&text, &args.file).map_err(refuse)?;
    let taken = convert::all(&found);
    let path = args.out.join(init::CONFIGURATION);
    let before = match std::fs::read_to_string(&path) {
        Ok(before) => Some(before),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(refuse(format!("{} cannot be read: {why}", path.display()))),
    };
    if let Some(name) = before.as_deref().and_then(|before| first_known(before, &taken)) {
        let hint = "hint: rename one of them, or import into a new folder";
        return Err(refuse(format!("{} has a server {name} already; {hint}", path.display())));
    }
    write(&args.out, before, &taken)?;
    print(&report(found.client, &taken, &args.out));
    Ok(0)
}

/// The first name that the configuration has already.
fn first_known<'a>(before: &str, taken: &'a Taken) -> Option<&'a str> {
    let known: toml::Table = before.parse().unwrap_or_default();
    let known = known.get("servers").and_then(toml::Value::as_table);
    let mut names = taken.servers.iter().map(|server| server.name.as_str());
    names.find(|name| known.is_some_and(|known| known.contains_key(*name)))
}

/// Secrets first: a crash leaves files that nothing names, never a name without its file.
fn write(dir: &Path, before: Option<String>, taken: &Taken) -> Result<(), Failed> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |why: std::io::Error| Failed::not_written(&path, &why)
    };
    let secrets = dir.join(convert::SECRETS);
    durable::create_dir(dir, 0o755).map_err(failed(dir))?;
    if taken.servers.iter().any(|server| !server.files.is_empty()) {
        durable::create_dir(&secrets, 0o700).map_err(failed(&secrets))?;
    }
    for (name, text) in taken.servers.iter().flat_map(|server| &server.files) {
        let path = dir.join(name);
        durable::create_new(&path, text.as_bytes(), true).map_err(failed(&path))?;
    }
    let path = dir.join(init::CONFIGURATION);
    let sections = taken.toml();
    match before {
        Some(before) => durable::replace(&path, format!("{}\n\n{sections}", before.trim_end()).as_bytes()),
        // Its owner's alone, as its secrets are: what was left out of an address is put back there by hand.
        None => durable::create_new(&path, init::configuration(&init::Facts::default(), &sections).as_bytes(), true),
    }
    .map_err(failed(&path))?;
    let policy = dir.join(init::POLICY);
    match durable::create_new(&policy, init::policy(&taken.rules()).as_bytes(), false) {
        Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {
            say(&format!(
                "{} is there, and stays as it is; the report below has the suggested rules",
                policy.display()
            ));
            Ok(())
        }
        done => done.map_err(failed(&policy)),
    }
}

/// What was done, what changes in meaning, and what is left to do.
fn report(client: read::Client, taken: &Taken, dir: &Path) -> String {
    let mut out = format!("{} servers of {}, in {}\n", taken.servers.len(), client.name(), init::CONFIGURATION);
    for server in &taken.servers {
        out.push_str(&format!("\n{}\n", server.name));
        out.extend(server.changes.iter().map(|line| format!("  - {}\n", line.replace("; hint: ", "\n    hint: "))));
        out.extend(server.to_do.iter().map(|line| format!("  TO DO: {}\n", line.replace("; hint: ", "\n    hint: "))));
    }
    for (name, why) in &taken.left_out {
        out.push_str(&format!("\n{name}: LEFT OUT\n  - {}\n", why.replace("; hint: ", "\n    hint: ")));
    }
    out.push_str("\nWhat changes for all of them\n");
    out.extend(ALL_CHANGE.iter().map(|line| format!("  - {line}\n")));
    let rules = taken.rules();
    if !rules.is_empty() {
        out.push_str(&format!("\nRules that the client's own lists suggest ({}, as comments)\n", init::POLICY));
        out.extend(rules.lines().map(|line| format!("  {line}\n")));
    }
    out.push_str(&format!("\nNext: gateway-shim check --config {}\n", dir.join(init::CONFIGURATION).display()));
    out
}

/// What changes in meaning, whatever the servers are.
const ALL_CHANGE: &[&str] = &[
    "Nothing is allowed until a rule of access.toml allows it; what the client approves by itself is on top of that.",
    "Servers with a command run under the account of the shim, no longer under each person's, with PATH and what the \
     configuration gives as their whole environment: no HOME, no SSH agent, no shell profile.",
    "A secret that each person had of their own is now one for all who are allowed to call; servers with a url can have one \
     for each member (servers.NAME.credentials).",
    "Take the servers out of the clients' own configuration (gateway-shim connect CLIENT prints what goes in): what a client \
     reaches by itself is on no record.",
];

#[cfg(test)]
mod tests;
