//! Configurations as clients keep them: what is taken over, what is said, and that no secret is where it must not be.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{config::Config, testing::TempDir};

const SAMPLES: [(&str, read::Client); 4] = [
    ("claude_desktop_config.json", read::Client::ClaudeDesktop),
    (".claude.json", read::Client::ClaudeCode),
    ("cursor-mcp.json", read::Client::Cursor),
    (".vscode/mcp.json", read::Client::VsCode),
];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/import/testdata").join(name)
}

fn taken(name: &str) -> (read::Client, Taken) {
    let path = sample(name);
    let found = read::servers(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
    (found.client, convert::all(&found))
}

#[test]
fn each_client_is_known_and_what_changes_is_said() {
    for (name, client) in SAMPLES {
        let (found, taken) = taken(name);
        assert_eq!(found, client, "{name}");
        let said = report(found, &taken, Path::new("shim"));
        let shown = format!("{said}\n=== shim.toml\n{}\n=== rules\n{}", taken.toml(), taken.rules());
        assert!(!shown.contains("CANARY"), "a secret of {name} is in what everybody reads:\n{shown}");
        insta::assert_snapshot!(client.name(), shown);
    }
}

#[test]
fn what_is_written_is_a_configuration_and_secrets_are_their_owners_alone() {
    for (name, _) in SAMPLES {
        let dir = TempDir::new();
        let out = dir.path().join("shim");
        let args = ImportArgs { file: sample(name), out: out.clone() };
        run(&args).unwrap();
        let text = std::fs::read_to_string(out.join(init::CONFIGURATION)).unwrap();
        assert!(!text.contains("CANARY"), "{text}");
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.servers.len(), taken(name).1.servers.len());
        for (file, text) in taken(name).1.servers.iter().flat_map(|server| server.files.clone()) {
            let path = out.join(file);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let again = run(&args).unwrap_err();
        assert!(again.text.contains("already; hint: "), "{}", again.text);
        assert_eq!(std::fs::read_to_string(out.join(init::CONFIGURATION)).unwrap(), text, "nothing was changed");
    }
}

#[test]
fn what_is_no_configuration_is_said_with_the_next_move() {
    for text in ["", "{", "[]", "{}", r#"{"mcpServers": {}}"#, r#"{"mcpServers": 7}"#, r#"{"servers": {"a": 1}}"#] {
        let why = read::servers(text, Path::new("mcp.json")).unwrap_err();
        assert!(why.contains("hint: "), "{text}: {why}");
    }
}
