//! A client's servers as sections of `shim.toml`, with what changes in meaning. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    FILL_IN,
    read::{Configuration, Found},
    secret::{hides_one, is_of_who, is_secret, names_one},
};
use crate::config::{BETWEEN, is_variable};

mod container;
mod http;
mod words;

use words::{Replaced, pinned, replaced};

/// Folder of the files that hold secrets, beside the configuration.
pub(super) const SECRETS: &str = "secrets";
/// Longest name of a server.
const NAME_MAX: usize = 64;
/// What is said of itself in a client's entry, or concerns the client alone: nothing is lost without it.
const OF_THE_CLIENT: [&str; 12] = [
    "type",
    "transport",
    "command",
    "args",
    "env",
    "envFile",
    "url",
    "serverUrl",
    "headers",
    "disabled",
    "description",
    "gallery",
];
/// Lists of tools that the client calls without asking.
const APPROVED: [&str; 3] = ["autoApprove", "alwaysAllow", "trustedTools"];

/// One server, ready to be written.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    pub(super) name: String,
    lines: Vec<String>,
    tables: Vec<(String, Vec<String>)>,
    /// Files with secrets: path from the configuration's folder, and text.
    pub(super) files: Vec<(String, String)>,
    pub(super) changes: Vec<String>,
    pub(super) to_do: Vec<String>,
    /// Tools that the client calls without asking.
    approved: Vec<String>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    pub(super) servers: Vec<Server>,
    /// Names as the client has them, and why they are not taken.
    pub(super) left_out: Vec<(String, String)>,
}

impl Taken {
    /// Their sections.
    pub(super) fn toml(&self) -> String {
        let sections: Vec<String> = self.servers.iter().map(Server::toml).collect();
        sections.join("\n")
    }

    /// Rules that the client's own lists suggest.
    pub(super) fn rules(&self) -> String {
        let of = |server: &Server| {
            let tools: Vec<String> =
                server.approved.iter().map(|tool| quoted(&format!("{}/{tool}", server.name))).collect();
            format!(
                "[[rules]]\nid = \"imported-{}\"\neffect = \"allow\"\ngroups = [\"{FILL_IN}\"]\ntools = [{}]\n",
                server.name,
                tools.join(", ")
            )
        };
        let some = self.servers.iter().filter(|server| !server.approved.is_empty());
        some.map(of).collect::<Vec<_>>().join("\n")
    }
}

/// Converts all that can be.
pub(super) fn all(found: &Configuration) -> Taken {
    let (mut taken, mut names) = (Taken::default(), BTreeSet::new());
    for server in &found.servers {
        match one(found, server, &mut names) {
            Ok(server) => taken.servers.push(server),
            Err(why) => taken.left_out.push((printable(&server.name), why)),
        }
    }
    taken
}

fn one(all: &Configuration, found: &Found, names: &mut BTreeSet<String>) -> Result<Server, String> {
    let text = |key: &str| found.entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = if text("type").is_empty() { text("transport") } else { text("type") };
    let url = if text("url").is_empty() { text("serverUrl") } else { text("url") };
    if found.entry.get("disabled").and_then(Value::as_bool) == Some(true) {
        return Err(
            "the client has it switched off; hint: switch it on there and import again, if somebody needs it".into()
        );
    }
    if kind == "sse" || (kind.is_empty() && url.trim_end_matches('/').ends_with("/sse")) {
        return Err("it speaks HTTP+SSE of 2024-11-05, which is no longer part of MCP, and the shim does not; hint: most of these \
                    have a Streamable HTTP address as well, often ending in /mcp: ask whoever runs it, then add it by hand"
            .into());
    }
    if !["", "stdio", "http", "streamable-http", "streamableHttp"].contains(&kind) {
        return Err(format!("its type {} is none that the shim speaks; hint: stdio and http are", printable(kind)));
    }
    let mut server = Server { name: name(&found.name, names), ..Server::default() };
    let mut of = Converting { all, out: &mut server };
    if of.out.name != found.name {
        of.change(format!("it was called {}; records, rules and URLs have the new name", printable(&found.name)));
    }
    if let Some(project) = &found.project {
        of.change(format!("it was for the project {} alone, and now is for all who are allowed", printable(project)));
    }
    let command = command(&found.entry);
    match (url.is_empty(), command.is_empty()) {
        (false, _) => {
            let headers = found.entry.get("headers").and_then(Value::as_object).cloned();
            of.http(url, &headers.unwrap_or_default(), all.client.replaces())?;
        }
        (true, false) => match http::bridged(&command) {
            Some(bridged) => of.bridge(bridged, &found.entry)?,
            None => of.stdio(&command, &found.entry),
        },
        (true, true) => return Err("it has neither url nor command; hint: does the client itself use it?".into()),
    }
    of.rest(&found.entry);
    Ok(server)
}

fn command(entry: &Map<String, Value>) -> Vec<String> {
    let program = entry.get("command").and_then(Value::as_str).filter(|program| !program.is_empty());
    let arguments = entry.get("args").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    program.into_iter().chain(arguments).map(str::to_owned).collect()
}

/// A name that may stand in records, paths and before tools; each once.
fn name(named: &str, names: &mut BTreeSet<String>) -> String {
    let fits = |letter: char| if letter.is_ascii_alphanumeric() || "_.:@+-".contains(letter) { letter } else { '-' };
    let mut name: String = named.chars().map(fits).take(NAME_MAX - 4).collect();
    while name.contains(BETWEEN) {
        name = name.replace(BETWEEN, "_");
    }
    // Before the `__` of a tool's name, it would end one character earlier.
    name.truncate(name.trim_end_matches('_').len());
    if name.is_empty() {
        name.push_str("server");
    }
    let plain = name.clone();
    let mut count = 1;
    while !names.insert(name.clone()) {
        count += 1;
        name = format!("{plain}-{count}");
    }
    name
}

/// TOML's spelling of a text.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// What others wrote, fit for a report: bounded, and of one line.
fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

impl Server {
    fn toml(&self) -> String {
        let mut out = format!("[servers.{}]\n{}\n", quoted(&self.name), self.lines.join("\n"));
        for (table, lines) in &self.tables {
            out.push_str(&format!("\n[servers.{}.{table}]\n{}\n", quoted(&self.name), lines.join("\n")));
        }
        out
    }
}

struct Converting<'a> {
    all: &'a Configuration,
    out: &'a mut Server,
}

impl Converting<'_> {
    fn change(&mut self, what: String) {
        self.out.changes.push(what);
    }

    fn left(&mut self, what: String) {
        self.out.to_do.push(what);
    }

    fn line(&mut self, key: &str, value: &str) {
        self.out.lines.push(format!("{key} = {}", quoted(value)));
    }

    /// What stands in a value once the client's own placeholders are gone, as far as anybody can know.
    fn replaced(&self, value: &str) -> Replaced {
        if self.all.client.replaces() { replaced(value) } else { Replaced { text: value.to_owned(), open: Vec::new() } }
    }

    /// What a placeholder stood for, and what to do.
    fn open(&mut self, place: &str, open: &[String]) {
        for placeholder in open {
            let asked = placeholder.strip_prefix("input:").map(|id| {
                let how = self.all.inputs.get(id).filter(|how| !how.is_empty());
                how.map_or_else(
                    || "VS Code asked each person for it".to_owned(),
                    |how| format!("VS Code asked each person for it: {how}"),
                )
            });
            let was = asked.unwrap_or_else(|| "the client put a value of each person's own machine there".to_owned());
            let placeholder = printable(placeholder);
            self.left(format!(
                "put a value in the place of {FILL_IN} in {place}, where ${{{placeholder}}} stood; {was}"
            ));
        }
    }

    fn stdio(&mut self, command: &[String], entry: &Map<String, Value>) {
        let (command, moved) = container::without_secrets(command);
        let mut variables = entry.get("env").and_then(Value::as_object).cloned().unwrap_or_default();
        variables.extend(moved.into_iter().map(|(name, value)| (name, Value::String(value))));
        let is_container = container::is_one(&command);
        let (mut words, mut after_secret, mut option) = (Vec::new(), false, String::new());
        for (at, word) in command.iter().enumerate() {
            let Replaced { text, open } = self.replaced(word);
            let hidden = after_secret || hides_one(&text) || (!is_container && is_of_who(&option, &text));
            // A container's `-eNAME` is whole: what follows is no value of it.
            let is_joined = is_container && text.starts_with("-e") && text.len() > 2;
            let is_option = text.starts_with('-') && !text.contains('=') && !is_joined;
            after_secret = is_option && names_one(&text);
            option = if is_option { text.clone() } else { String::new() };
            if hidden {
                self.left(format!(
                    "argument {at} looks like a secret and was left out: everybody on a machine sees arguments; hint: most servers \
                     take it from a variable, in environment_file; else put it in the place of {FILL_IN}"
                ));
                words.push(quoted(&without_secret(&text)));
                continue;
            }
            self.open(&format!("argument {at} of its command"), &open);
            words.push(quoted(&text));
            if text.starts_with("./") || text.starts_with("../") {
                self.left(format!("argument {at}, {}, is a path from the client's folder; hint: write the whole path, or servers.NAME.directory", printable(&text)));
            }
        }
        self.out.lines.push(format!("command = [{}]", words.join(", ")));
        if let Some(package) = pinned(&command) {
            self.left(format!(
                "it runs whatever version of {} the registry has that day; hint: pin one, {}, and see with access what changes",
                printable(&package.name),
                package.hint
            ));
        }
        self.environment(&variables);
        self.environment_file(entry.get("envFile").and_then(Value::as_str));
        if let Some(folder) = entry.get("cwd").and_then(Value::as_str) {
            let Replaced { text, open } = self.replaced(folder);
            self.line("directory", &text);
            self.open("its directory", &open);
            if !text.starts_with('/') {
                self.left("its directory was taken from the client's folder, and now is from that of shim.toml; hint: write the whole path".into());
            }
        }
    }

    fn environment(&mut self, variables: &Map<String, Value>) {
        let (mut plain, mut secret, mut moved) = (Vec::new(), String::new(), Vec::new());
        let path = format!("{SECRETS}/{}.env", self.out.name);
        for (name, value) in variables {
            let value = match value {
                Value::String(value) => value.clone(),
                Value::Null => continue,
                other => other.to_string(),
            };
            if !is_variable(name) || value.contains(['\n', '\0']) {
                self.left(format!(
                    "the variable {} is not taken over: its name or value is none that a line can have",
                    printable(name)
                ));
                continue;
            }
            let Replaced { text, open } = self.replaced(&value);
            if open.is_empty() && !is_secret(name, &text) {
                plain.push(format!("{name} = {}", quoted(&text)));
                continue;
            }
            self.open(&format!("{path}, {name}"), &open);
            secret.push_str(&format!("{name}={text}\n"));
            moved.push(name.clone());
        }
        if !plain.is_empty() {
            self.out.tables.push(("environment".to_owned(), plain));
        }
        if !secret.is_empty() {
            self.line("environment_file", &path);
            self.change(format!("{} moved into {path}, mode 0600: shim.toml holds no secret", moved.join(", ")));
            self.out.files.push((path, secret));
        }
    }

    fn environment_file(&mut self, file: Option<&str>) {
        let Some(file) = file else { return };
        self.left(format!(
            "its envFile {} is not taken over; hint: copy its lines, without quotes and `export`, into the file that \
             environment_file names, mode 0600",
            printable(file)
        ));
    }

    /// What is left of the entry.
    fn rest(&mut self, entry: &Map<String, Value>) {
        for (key, value) in entry {
            if APPROVED.contains(&key.as_str()) {
                let tools = value.as_array().into_iter().flatten().filter_map(Value::as_str);
                self.out.approved.extend(tools.filter(|tool| custody::strict::is_token(tool)).map(str::to_owned));
                self.change(format!("{key} has no meaning for the shim: it asks nobody, a rule allows or denies"));
            } else if key == "oauth" || key == "auth" || key == "headersHelper" {
                self.left(format!(
                    "{key} is not taken over: the shim signs in nowhere by itself; hint: a token of a service account, in \
                     servers.NAME.credential"
                ));
            } else if key == "cwd" && self.out.lines.iter().any(|line| line.starts_with("directory")) {
                // Said where it was taken over.
            } else if !OF_THE_CLIENT.contains(&key.as_str()) {
                self.change(format!(
                    "{} is not taken over: it means something to {} alone",
                    printable(key),
                    self.all.client.name()
                ));
            }
        }
    }
}

/// An argument without its secret: of `--option=value` the option stays.
fn without_secret(word: &str) -> String {
    let plain = |option: &str| option.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    match word.split_once('=').filter(|(option, _)| option.starts_with('-') && plain(option)) {
        Some((option, _)) => format!("{option}={FILL_IN}"),
        None => FILL_IN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The server is read back out of `SERVER__TOOL`.
    #[test]
    fn a_name_ends_where_the_name_of_a_tool_begins() {
        let mut names = BTreeSet::new();
        for (named, taken) in [("a", "a"), ("a_", "a-2"), ("b__c___d", "b_c_d"), ("__", "server"), ("ä ö", "---")] {
            let taken_over = name(named, &mut names);
            assert_eq!(taken_over, taken);
            let tool = format!("{taken_over}{BETWEEN}_tool");
            assert_eq!(tool.split_once(BETWEEN), Some((taken, "_tool")));
        }
    }
}
