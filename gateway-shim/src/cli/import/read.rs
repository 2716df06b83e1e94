//! Whose configuration it is, and which servers it names. Pure.
//!
//! Claude Desktop: `claude_desktop_config.json`, `mcpServers`; nothing in it is replaced by the client. Claude Code: `.mcp.json`
//! and `~/.claude.json`, `mcpServers`, in the latter also for each of `projects`; `${NAME}` and `${NAME:-default}`. Cursor:
//! `mcp.json`, `mcpServers`; `${env:NAME}`, `${userHome}`, `${workspaceFolder}`. VS Code: `mcp.json`, `servers` and `inputs`
//! (or both below `mcp`, in its settings); these and `${input:ID}`.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value};

use super::jsonc;

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    ClaudeDesktop,
    ClaudeCode,
    Cursor,
    VsCode,
}

impl Client {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ClaudeDesktop => "Claude Desktop",
            Self::ClaudeCode => "Claude Code",
            Self::Cursor => "Cursor",
            Self::VsCode => "VS Code",
        }
    }

    /// Whether it puts values in place of `${...}`.
    pub(super) fn replaces(self) -> bool {
        self != Self::ClaudeDesktop
    }
}

/// A server as the client names it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) entry: Map<String, Value>,
    /// For one project alone.
    pub(super) project: Option<String>,
}

/// All that is of use.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub(super) client: Client,
    pub(super) servers: Vec<Found>,
    /// What VS Code asks of whoever starts a server, by id: how it asks.
    pub(super) inputs: BTreeMap<String, String>,
}

/// Reads a client's configuration.
///
/// # Errors
/// Why it is none, in words, with the next move.
pub(super) fn servers(text: &str, path: &Path) -> Result<Configuration, String> {
    let parsed: Result<Value, _> = serde_json::from_str(&jsonc::plain(text));
    let whole =
        parsed.map_err(|why| format!("line {} is not JSON; hint: does the client itself read it?", why.line()))?;
    let none = "it names no servers: neither mcpServers nor servers; hint: claude_desktop_config.json, .mcp.json, \
                .claude.json, .cursor/mcp.json and .vscode/mcp.json do";
    let below = whole.get("mcp").filter(|below| below.get("servers").is_some()).unwrap_or(&whole);
    let client = client(below, path).ok_or(none)?;
    let mut servers = of(below.get(if client == Client::VsCode { "servers" } else { "mcpServers" }), None);
    for (project, settings) in below.get("projects").and_then(Value::as_object).into_iter().flatten() {
        servers.extend(of(settings.get("mcpServers"), Some(project)));
    }
    if servers.is_empty() {
        return Err(none.to_owned());
    }
    Ok(Configuration { client, servers, inputs: inputs(below) })
}

fn client(whole: &Value, path: &Path) -> Option<Client> {
    if whole.get("servers").is_some_and(Value::is_object) {
        return Some(Client::VsCode);
    }
    let projects = whole.get("projects").is_some();
    if !projects && !whole.get("mcpServers").is_some_and(Value::is_object) {
        return None;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Some(match name.as_ref() {
        "claude_desktop_config.json" => Client::ClaudeDesktop,
        ".mcp.json" | ".claude.json" => Client::ClaudeCode,
        _ if projects => Client::ClaudeCode,
        _ if whole.get("globalShortcut").is_some() || whole.get("preferences").is_some() => Client::ClaudeDesktop,
        // Others who took the form over speak as Cursor does.
        _ => Client::Cursor,
    })
}

fn of(servers: Option<&Value>, project: Option<&String>) -> Vec<Found> {
    let servers = servers.and_then(Value::as_object).into_iter().flatten();
    let found = servers.filter_map(|(name, entry)| {
        let entry = entry.as_object()?.clone();
        Some(Found { name: name.clone(), entry, project: project.cloned() })
    });
    found.collect()
}

fn inputs(whole: &Value) -> BTreeMap<String, String> {
    let asked = whole.get("inputs").and_then(Value::as_array).into_iter().flatten();
    let asked = asked.filter_map(|input| {
        let id = input.get("id")?.as_str()?;
        let described = input.get("description").and_then(Value::as_str).unwrap_or_default();
        Some((id.to_owned(), described.chars().filter(|letter| !letter.is_control()).take(128).collect()))
    });
    asked.collect()
}
