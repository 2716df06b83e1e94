//! `gateway-shim init`: a folder to begin from, with a commented configuration and access policy. It overwrites nothing.

use std::path::{Path, PathBuf};

use clap::Args;
use custody::id::hex;

use super::{
    Done, Failed,
    output::{print, say},
};
use crate::{access::policy, config::TEMPLATE, durable, random};

/// Name of the configuration in its folder.
pub(super) const CONFIGURATION: &str = "shim.toml";
/// Name of the access policy there, as the configuration has it by default.
pub(super) const POLICY: &str = "access.toml";

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Folder, which is made if it is not there.
    dir: PathBuf,
    #[command(flatten)]
    facts: Facts,
}

/// What may be known already.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Facts {
    /// Origin of the organisation's log, as the ledger has it.
    #[arg(long)]
    origin: Option<String>,
    /// Workspace id, as `ledger workspace add` printed it.
    #[arg(long)]
    workspace: Option<String>,
    /// Name of this gateway, for people.
    #[arg(long)]
    name: Option<String>,
    /// `https://HOST:PORT` of the ledger.
    #[arg(long)]
    ledger: Option<String>,
    /// For a machine that sleeps: the gateway promises no heartbeats.
    #[arg(long)]
    laptop: bool,
}

pub(super) fn run(args: &InitArgs) -> Done {
    let dir = &args.dir;
    let create = |path: &Path, text: &str| {
        durable::create_new(path, text.as_bytes(), false).map_err(|error| Failed::not_written(path, &error))
    };
    durable::create_dir(dir, 0o755).map_err(|error| Failed::not_written(dir, &error))?;
    create(&dir.join(CONFIGURATION), &configuration(&args.facts, ""))?;
    create(&dir.join(POLICY), &policy(""))?;
    say(&format!("made {} and {}", dir.join(CONFIGURATION).display(), dir.join(POLICY).display()));
    print(&next(dir));
    Ok(0)
}

/// What to do then.
fn next(dir: &Path) -> String {
    let file = |name: &str| dir.join(name).display().to_string();
    let shim = file(CONFIGURATION);
    format!(
        "Next:\n  1. gateway-shim key new --key {} --tls-key {}\n  2. look through {shim}: origin, workspace, the ledger's \
         endpoint, and a section for each MCP server\n     (gateway-shim import makes those from a client's configuration)\n  3. \
         gateway-shim request --config {shim} --out {}\n     and the ledger's operator answers it with {}\n  4. gateway-shim \
         check --config {shim}\n  5. gateway-shim serve --config {shim}, then gateway-shim member add and member grant",
        file("gateway.key"),
        file("tls.key"),
        file("request.json"),
        file("enrolment.json"),
    )
}

/// The template, for a shim that serves: with an id of its own, what is known, and these sections of servers in place of the
/// example, which stays as a comment where there are none.
pub(super) fn configuration(facts: &Facts, servers: &str) -> String {
    let (mut out, mut in_servers, mut in_relay) = (Vec::new(), false, false);
    for paragraph in TEMPLATE.trim_end().split("\n\n") {
        let heads = |section: &str| paragraph.lines().any(|line| line.starts_with(section));
        if heads("[") {
            (in_servers, in_relay) = (heads("[servers."), heads("[relay]"));
        }
        match (in_relay, in_servers) {
            (true, _) => {}
            (_, true) if servers.is_empty() => out.push(commented(paragraph)),
            (_, true) => {}
            _ => out.push(with(facts, paragraph)),
        }
    }
    if !servers.is_empty() {
        out.push(
            "# The servers that it stands in front of; `gateway-shim config template` has every key of their sections."
                .into(),
        );
        out.push(servers.trim_end().to_owned());
    }
    format!("{}\n", out.join("\n\n"))
}

/// A paragraph in which nothing holds.
fn commented(paragraph: &str) -> String {
    let line = |line: &str| if line.starts_with('#') || line.is_empty() { line.to_owned() } else { format!("#{line}") };
    paragraph.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A paragraph of the template with what is known.
fn with(facts: &Facts, paragraph: &str) -> String {
    let id = hex(&random::bytes::<16>());
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let line = |line: &str| {
        let key = line.trim_start_matches('#').split(" = ").next().unwrap_or_default();
        let known = match key {
            "id" => Some(id.as_str()),
            "origin" => facts.origin.as_deref(),
            "workspace" => facts.workspace.as_deref(),
            "name" => facts.name.as_deref(),
            "endpoint" => facts.ledger.as_deref(),
            "class" => facts.laptop.then_some("intermittent"),
            _ => None,
        };
        known.map_or_else(|| line.to_owned(), |known| format!("{key} = {}", quoted(known)))
    };
    paragraph.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The template of an access policy, with rules that are suggested, as comments.
pub(super) fn policy(rules: &str) -> String {
    let template = policy::TEMPLATE.trim_end();
    match rules.is_empty() {
        true => format!("{template}\n"),
        false => format!(
            "{template}\n\n# What the client called without asking, as rules: look at each, name a group, and take the `#` away.\n{}\n",
            rules.lines().map(|line| format!("#{line}")).collect::<Vec<_>>().join("\n")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_is_one_once_it_has_a_server_and_the_policy_is_one() {
        let facts = Facts { origin: Some("example.org/custody".into()), laptop: true, ..Facts::default() };
        let none = Config::parse(&configuration(&facts, "")).unwrap_err().to_string();
        assert_eq!(none.matches("hint: ").count(), 1, "a server is missing, and nothing else: {none}");
        let config =
            Config::parse(&configuration(&facts, "[servers.files]\nurl = \"http://127.0.0.1:1/mcp\"\n")).unwrap();
        assert_eq!(config.gateway.origin, "example.org/custody");
        assert_eq!(config.gateway.class, crate::config::Class::Intermittent);
        assert!(config.relay.is_none() && config.servers.len() == 1);
        let other =
            Config::parse(&configuration(&facts, "[servers.files]\nurl = \"http://127.0.0.1:1/mcp\"\n")).unwrap();
        assert_ne!(config.gateway.id, other.gateway.id, "each gateway has an id of its own");
        crate::access::Policy::parse(&policy("[[rules]]\nid = \"a\"\n"), None).unwrap();
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = crate::testing::TempDir::new();
        let args = InitArgs { dir: dir.path().join("new"), facts: Facts::default() };
        run(&args).unwrap();
        let before = std::fs::read(args.dir.join(CONFIGURATION)).unwrap();
        assert!(run(&args).unwrap_err().text.contains("there is a file of this name; hint: "));
        assert_eq!(std::fs::read(args.dir.join(CONFIGURATION)).unwrap(), before);
    }
}
