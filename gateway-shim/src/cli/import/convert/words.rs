//! Placeholders of clients, and packages that a command runs. Pure.

use super::FILL_IN;

/// A value without placeholders.
pub(super) struct Replaced {
    pub(super) text: String,
    /// Those for which nobody but the client has a value; the mark to fill in stands in their place.
    pub(super) open: Vec<String>,
}

/// `${NAME:-default}` is its default; whatever else is a value of a person's own machine.
pub(super) fn replaced(value: &str) -> Replaced {
    let (mut out, mut rest) = (Replaced { text: String::new(), open: Vec::new() }, value);
    while let Some((before, inside)) = rest.split_once("${") {
        let Some((placeholder, after)) = inside.split_once('}') else { break };
        out.text.push_str(before);
        match (placeholder, placeholder.split_once(":-")) {
            ("pathSeparator" | "/", _) => out.text.push('/'),
            (_, Some((_, default))) => out.text.push_str(default),
            _ => {
                out.text.push_str(FILL_IN);
                out.open.push(placeholder.to_owned());
            }
        }
        rest = after;
    }
    out.text.push_str(rest);
    out
}

/// A package that runs in whatever version there is.
pub(super) struct Unpinned {
    pub(super) name: String,
    pub(super) hint: String,
}

/// The package that a command fetches, if it says no version.
pub(super) fn pinned(command: &[String]) -> Option<Unpinned> {
    let program = command.first()?.rsplit(['/', '\\']).next()?.trim_end_matches(".cmd").trim_end_matches(".exe");
    let words: Vec<&str> = command.iter().skip(1).map(String::as_str).collect();
    let first = |skipped: &[&str]| words.iter().find(|word| !word.starts_with('-') && !skipped.contains(word)).copied();
    let (name, pinned, hint) = match program {
        "npx" | "bunx" | "pnpx" | "pnpm" | "yarn" | "npm" | "bun" => {
            let name = first(&["dlx", "exec", "x"])?;
            let version = name.rsplit_once('@').filter(|(package, _)| !package.is_empty()).map(|(_, version)| version);
            (name, version.is_some_and(|version| version != "latest"), "as in name@1.2.3")
        }
        "uvx" | "uv" | "pipx" => {
            let name = first(&["tool", "run"])?;
            let version = name.split_once("==").or_else(|| name.split_once('@')).map(|(_, version)| version);
            (name, version.is_some_and(|version| version != "latest"), "as in name==1.2.3")
        }
        "docker" | "podman" => {
            let name = words
                .iter()
                .find(|word| word.contains('/') && !word.contains('=') && !word.starts_with(['-', '/', '.']))?;
            let tag = name.rsplit('/').next().and_then(|end| end.split_once(':')).map(|(_, tag)| tag);
            (
                *name,
                name.contains("@sha256:") || tag.is_some_and(|tag| tag != "latest"),
                "by a digest, as in name@sha256:...",
            )
        }
        _ => return None,
    };
    (!pinned).then(|| Unpinned { name: name.to_owned(), hint: hint.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_taken_and_what_nobody_knows_is_to_be_filled_in() {
        let Replaced { text, open } = replaced("${A:-x}/${env:B}${/}${input:c} ${cut");
        assert_eq!((text.as_str(), open), ("x/FILL-IN/FILL-IN ${cut", vec!["env:B".to_owned(), "input:c".to_owned()]));
    }

    #[test]
    fn what_runs_in_any_version_is_found() {
        for (line, unpinned) in [
            ("npx -y @scope/server /srv", Some("@scope/server")),
            ("npx -y @scope/server@1.2.3", None),
            ("npx server@latest", Some("server@latest")),
            ("/usr/bin/npx server@1", None),
            ("uvx mcp-server-git", Some("mcp-server-git")),
            ("uvx mcp-server-git==2.0", None),
            ("docker run -i --rm -e TOKEN ghcr.io/a/b", Some("ghcr.io/a/b")),
            ("docker run -v /srv:/srv ghcr.io/a/b:1.4", None),
            ("node server.js", None),
            ("npx", None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(pinned(&words).map(|found| found.name).as_deref(), unpinned, "{line}");
        }
    }
}
