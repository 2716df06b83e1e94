//! Servers that are reached over HTTP, by the client itself or through a bridge on each person's machine. Pure.

use serde_json::{Map, Value};

use super::{
    super::{
        FILL_IN,
        secret::{hides_one, is_secret, is_secret_segment, names_one},
    },
    Converting, Replaced, SECRETS, printable, quoted, replaced,
};
use crate::config::is_variable;

/// What a bridge is told.
pub(super) struct Bridged {
    url: String,
    headers: Vec<(String, String)>,
    /// Options that the shim has no use for, without their values.
    options: Vec<String>,
    /// It is to speak what the shim does not.
    sse: bool,
}

/// The address behind a local bridge, and the headers that it is given.
pub(super) fn bridged(command: &[String]) -> Option<Bridged> {
    let at = command.iter().position(|word| word == "mcp-remote" || word.starts_with("mcp-remote@"))?;
    let rest = command.get(at + 1..)?;
    let url = rest.iter().find(|word| word.starts_with("https://") || word.starts_with("http://"))?.clone();
    let headers = rest.windows(2).filter_map(|pair| match pair {
        [option, value] if option == "--header" => value.split_once(':'),
        _ => None,
    });
    let headers = headers.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
    let plain = |word: &&String| word.starts_with("--") && *word != "--header" && !hides_one(word);
    let options = rest.iter().filter(plain).map(|word| printable(word)).collect();
    let sse = rest.windows(2).any(|pair| pair == ["--transport", "sse-only"]);
    Some(Bridged { url, headers, options, sse })
}

/// A value with what the entry itself says of its variables, and their names: the bridge put them in place, whatever the client.
fn with_own(value: &str, own: &Map<String, Value>, used: &mut Vec<String>) -> String {
    let mut out = value.to_owned();
    for (name, value) in own {
        let placeholder = format!("${{{name}}}");
        if let Some(value) = value.as_str().filter(|_| out.contains(&placeholder)) {
            out = out.replace(&placeholder, value);
            used.push(name.clone());
        }
    }
    out
}

/// An address without what is secret in it.
struct Address {
    kept: String,
    /// A name, a password or a query was left out.
    left_out: bool,
    /// Parts of its path were.
    filled: bool,
}

fn address(url: &str) -> Address {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (rest, fragment) = rest.split_once('#').map_or((rest, ""), |(rest, fragment)| (rest, fragment));
    let (plain, query) = rest.split_once('?').map_or((rest, ""), |(plain, query)| (plain, query));
    let (authority, path) = plain.split_once('/').map_or((plain, None), |(authority, path)| (authority, Some(path)));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let mut kept = if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") };
    let mut filled = false;
    for segment in path.into_iter().flat_map(|path| path.split('/')) {
        let secret = is_secret_segment(segment);
        filled |= secret;
        kept.push('/');
        kept.push_str(if secret { FILL_IN } else { segment });
    }
    let asked = query.split(['&', ';']).filter(|pair| !pair.is_empty());
    let secret =
        asked.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).any(|(name, value)| is_secret(name, value));
    if !query.is_empty() && !secret {
        kept.push('?');
        kept.push_str(query);
    }
    Address { kept, left_out: secret || host != authority || !fragment.is_empty(), filled }
}

/// How much a header is like the one credential that the shim sends: 0 most, 3 not at all.
fn rank(name: &str, value: &str) -> u8 {
    let placeholders = value.split("${").skip(1).filter_map(|rest| rest.split_once('}')).map(|(inside, _)| inside);
    let of_one = is_secret(name, value) || placeholders.into_iter().any(names_one);
    match (of_one, value.contains("${")) {
        (true, _) if name.eq_ignore_ascii_case("authorization") => 0,
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}

impl Converting<'_> {
    /// What a bridge was told, said to the shim.
    pub(super) fn bridge(&mut self, bridged: Bridged, entry: &Map<String, Value>) -> Result<(), String> {
        if bridged.sse {
            return Err("it is to speak HTTP+SSE of 2024-11-05 alone (--transport sse-only), and the shim does not; hint: ask whoever \
                        runs it for a Streamable HTTP address, then add it by hand"
                .into());
        }
        self.change(
            "it was reached through mcp-remote, a bridge on each person's machine; the shim reaches it itself".into(),
        );
        let own = entry.get("env").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut used = Vec::new();
        let headers = bridged.headers.iter();
        let headers = headers.map(|(name, value)| (name.clone(), Value::String(with_own(value, &own, &mut used))));
        let headers: Map<String, Value> = headers.collect();
        let unused: Vec<String> = own.keys().filter(|name| !used.contains(name)).map(|name| printable(name)).collect();
        if !unused.is_empty() {
            self.change(format!("{} is not taken over: it was for the bridge", unused.join(", ")));
        }
        if !bridged.options.is_empty() {
            self.change(format!("{} is not taken over: it was for the bridge", bridged.options.join(", ")));
        }
        // A bridge takes from each person's environment what its entry does not say.
        self.http(&bridged.url, &headers, true)
    }

    /// A server at an address. In its headers the client, or its bridge, puts values in place of `${...}`.
    pub(super) fn http(&mut self, url: &str, headers: &Map<String, Value>, replaces: bool) -> Result<(), String> {
        let Replaced { mut text, open } = self.replaced(url);
        let known = text.starts_with("https://") || text.starts_with("http://");
        match known || !text.starts_with(FILL_IN) {
            true if known => {}
            true => {
                return Err("its url is neither https:// nor http://: a socket or a pipe of each person's machine; hint: give it an \
                            address over HTTP, or its command"
                    .into());
            }
            false => text.insert_str(0, "https://"),
        }
        let Address { kept, left_out, filled } = address(&text);
        if left_out {
            self.left("its URL held a secret, which was left out of shim.toml; hint: does the server take it in a header? then \
                        servers.NAME.credential has it"
                .into());
        }
        if filled {
            self.left(format!(
                "a part of the path of its URL looks like a secret and was left out; hint: put it in the place of {FILL_IN}, and keep \
                 shim.toml its owner's alone (mode 0600)"
            ));
        }
        self.line("url", &kept);
        if kept.contains(FILL_IN) {
            self.open("its url", &open);
        }
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default())).collect();
        let sent = headers.iter().filter(|(name, value)| rank(name, value) < 3);
        let sent = sent.min_by_key(|(name, value)| rank(name, value)).copied();
        for (name, value) in &headers {
            if sent == Some((name, value)) {
                self.credential(name, value, replaces);
            } else if rank(name, value) < 3 {
                self.left(format!(
                    "the header {} is not taken over: the shim sends one credential; hint: which of them counts?",
                    printable(name)
                ));
            } else {
                self.change(format!(
                    "the header {} is not sent any more: the shim sends its own and one credential",
                    printable(name)
                ));
            }
        }
        Ok(())
    }

    /// The secret goes into a file, or stays in the shim's environment.
    fn credential(&mut self, name: &str, value: &str, replaces: bool) {
        let (prefix, secret) = ["Bearer ", "Basic ", "token "]
            .iter()
            .find_map(|prefix| Some((*prefix, value.strip_prefix(prefix)?)))
            .unwrap_or(("", value));
        let mut lines = vec![format!("header = {}", quoted(name)), format!("prefix = {}", quoted(prefix))];
        let variable = secret.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        let variable = variable.map(|name| name.strip_prefix("env:").unwrap_or(name)).filter(|name| is_variable(name));
        match variable.filter(|_| replaces) {
            Some(variable) => {
                lines.push(format!("environment = {}", quoted(variable)));
                self.left(format!(
                    "give the shim the variable {variable}: the client took it from each person's own environment"
                ));
            }
            None => {
                let path = format!("{SECRETS}/{}.token", self.out.name);
                let as_it_is = || Replaced { text: secret.to_owned(), open: Vec::new() };
                let Replaced { text, open } = if replaces { replaced(secret) } else { as_it_is() };
                lines.push(format!("file = {}", quoted(&path)));
                self.open(&path, &open);
                self.out.files.push((path.clone(), text));
                self.change(format!(
                    "the secret of the header {} is in {path} now, mode 0600, and the shim sends it for everybody",
                    printable(name)
                ));
            }
        }
        self.out.tables.push(("credential".to_owned(), lines));
    }
}
