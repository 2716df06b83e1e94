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
        let mode = std::fs::metadata(out.join(init::CONFIGURATION)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
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

/// What is written and said of a configuration, and the files with secrets.
fn converted(text: &str, name: &str) -> (String, Vec<(String, String)>) {
    let found = read::servers(text, Path::new(name)).unwrap();
    let taken = convert::all(&found);
    let said = format!("{}\n{}", report(found.client, &taken, Path::new("shim")), taken.toml());
    Config::parse(&init::configuration(&init::Facts::default(), &taken.toml())).unwrap();
    (said, taken.servers.into_iter().flat_map(|server| server.files).collect())
}

/// Each entry has a secret where people put them; none but those that clients need may be written or said.
#[test]
fn a_secret_is_seen_wherever_it_stands() {
    let (said, files) = converted(
        r#"{"mcpServers": {
            "pg": {"command": "npx", "args": ["-y", "pg@1", "postgresql://app:CANARY@db.example/app?sslmode=require"]},
            "dock": {"command": "docker", "args": ["run", "-e", "API_KEY=CANARYone", "--env=DB_PASSWORD=CANARYtwo", "mcp/foo:1.2"],
                     "env": {"LEVEL": "info"}},
            "gateway": {"command": "npx", "args": ["-y", "g@3", "--header", "Authorization: Bearer CANARY", "--header=X-Api-Key: CANARY"]},
            "path": {"command": "npx", "args": ["mcp-remote@0.1.2", "https://mcp.example/api/s/CANARYZjA5YzU4ZTktMmQ3Ny00/mcp"]},
            "mysql": {"command": "uvx", "args": ["mysql==1", "--dsn", "mysql://u:CANARY@h/db?charset=utf8", "./a?token=CANARY"]},
            "proxy": {"command": "uvx", "args": ["mcp-proxy==1.0", "--transport", "streamablehttp", "https://mcp.example/s/CANARYZjA5YzU4ZTkt2/mcp"]},
            "hook": {"command": "npx", "args": ["-y", "hook@1"], "env": {"SLACK_URL": "https://hooks.example/services/T1/B1/CANARY1234abcdEFGH1234"}},
            "my": {"command": "my-mcp", "args": ["-u", "root", "-pCANARY", "--user", "admin:CANARY", "--pin", "CANARY", "--basic", "el:CANARY"]},
            "es": {"command": "es-mcp", "args": ["pg://a:CANARY/w@db/x"], "env": {"ES_LOGIN": "el:CANARY", "TOKENS": "CANARY", "OUR_PATS": "CANARY", "PASSCODE": "CANARY", "PASSKEY": "CANARY"}},
            "joined": {"command": "docker", "args": ["run", "-eAPI_KEY", "-eTOKEN", "-u", "node:node", "mcp/foo:1.2"]},
            "shell": {"command": "sh", "args": ["-c", "TOKEN=CANARY exec node server.js"]},
            "line": {"command": "TOKEN=CANARY node", "env": {"HEADERS": "{\"Authorization\": \"CANARYthree\"}"}},
            "user": {"url": "https://CANARY:CANARY@mcp.example/CANARY0123456789/mcp?a=1&sig=CANARY#CANARY"}
        }}"#,
        "claude_desktop_config.json",
    );
    assert!(!said.contains("CANARY"), "{said}");
    let kept = |file: &str| files.iter().find(|(name, _)| name == file).map(|(_, text)| text.as_str());
    assert_eq!(kept("secrets/dock.env"), Some("API_KEY=CANARYone\nDB_PASSWORD=CANARYtwo\n"));
    assert!(
        said.contains(r#"command = ["docker", "run", "-e", "API_KEY", "--env=DB_PASSWORD", "mcp/foo:1.2"]"#),
        "{said}"
    );
    assert!(
        said.contains(r#"command = ["docker", "run", "-eAPI_KEY", "-eTOKEN", "-u", "node:node", "mcp/foo:1.2"]"#),
        "{said}"
    );
    assert!(said.contains(r#"command = ["npx", "-y", "g@3", "--header", "FILL-IN", "--header=FILL-IN"]"#), "{said}");
    assert!(said.contains(r#"url = "https://mcp.example/api/s/FILL-IN/mcp""#), "{said}");
    assert!(said.contains(r#"url = "https://mcp.example/FILL-IN/mcp""#), "{said}");
    assert_eq!(kept("secrets/line.env").map(|text| text.contains("CANARYthree")), Some(true));
}

/// The form that `connect claude-desktop` prints, and that of Cursor, where the client has a placeholder of its own.
#[test]
fn a_bridge_puts_the_variables_of_its_entry_into_its_headers() {
    let entry = |value: &str| {
        format!(
            r#"{{"mcpServers": {{"rem": {{"command": "npx", "args": ["mcp-remote@0.1.2", "https://remote.example/mcp", "--header",
            "Authorization:${{AUTH_HEADER}}", "--allow-http"], "env": {{"AUTH_HEADER": "{value}", "NODE_OPTIONS": "x"}}}}}}}}"#
        )
    };
    for name in ["claude_desktop_config.json", "mcp.json"] {
        let (said, files) = converted(&entry("Bearer CANARY"), name);
        assert_eq!(files, [("secrets/rem.token".to_owned(), "CANARY".to_owned())], "{said}");
        assert!(
            said.contains("prefix = \"Bearer \"") && !said.contains("TO DO: give") && !said.contains("CANARY"),
            "{said}"
        );
        assert!(
            said.contains("NODE_OPTIONS is not taken over") && said.contains("--allow-http is not taken over"),
            "{said}"
        );
    }
    let (said, files) = converted(&entry("Bearer ${env:OURS}"), "mcp.json");
    assert!(
        files.is_empty() && said.contains("environment = \"OURS\"") && said.contains("the variable OURS"),
        "{said}"
    );
    // What the entry does not say, the bridge took from each person's environment, whatever the client is.
    let (said, files) = converted(&entry("").replace("\"AUTH_HEADER\"", "\"OTHER\""), "claude_desktop_config.json");
    assert!(files.is_empty() && said.contains("give the shim the variable AUTH_HEADER"), "{said}");
    let sse = entry("x").replace("--allow-http\"", "--transport\", \"sse-only\"");
    let found = read::servers(&sse, Path::new("mcp.json")).unwrap();
    assert!(convert::all(&found).left_out[0].1.contains("HTTP+SSE"));
}

#[test]
fn the_credential_is_the_header_that_has_one_and_a_socket_is_left_out() {
    for of_no_secret in ["A-Org", "X-Zone"] {
        let (said, files) = converted(
            &format!(
                r#"{{"mcpServers": {{"h": {{"url": "https://x.example/mcp", "headers": {{"{of_no_secret}": "${{env:ORG}}",
                "Authorization": "Bearer CANARY", "X-Api-Key": "CANARY"}}}}}}}}"#
            ),
            "mcp.json",
        );
        assert!(said.contains("header = \"Authorization\"") && !said.contains("CANARY"), "{said}");
        assert_eq!(files, [("secrets/h.token".to_owned(), "CANARY".to_owned())]);
        for other in [of_no_secret, "X-Api-Key"] {
            assert!(said.contains(&format!("TO DO: the header {other} is not taken over")), "{said}");
        }
    }
    let (said, _) = converted(r#"{"servers": {"h": {"url": "${input:where}/mcp"}}}"#, "mcp.json");
    assert!(said.contains("url = \"https://FILL-IN/mcp\""), "{said}");
    for url in ["unix:///run/mcp.sock", "pipe://./mcp", "C:\\\\mcp", "/run/mcp.sock"] {
        let found =
            read::servers(&format!(r#"{{"servers": {{"h": {{"url": "{url}"}}}}}}"#), Path::new("mcp.json")).unwrap();
        let taken = convert::all(&found);
        assert!(taken.servers.is_empty() && taken.left_out[0].1.contains("neither https:// nor http://"), "{url}");
    }
}
