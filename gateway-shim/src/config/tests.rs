//! A good file is read, every lie is named, and the template is the truth about every key.

use super::*;

const GOOD: &str = r#"
[gateway]
origin = "log.example"
workspace = "01010101010101010101010101010101"
id = "02020202020202020202020202020202"
key = "gateway.key"
tls_key = "tls.key"
enrolment = "enrolment.json"
[ledger]
endpoint = "https://localhost:7443"
[spool]
dir = "spool"
[fork]
dir = "forks"
[serve]
listen = "127.0.0.1:8080"
[servers.everything]
url = "http://127.0.0.1:3001/mcp"
"#;

#[test]
fn a_good_file_is_read_and_every_lie_is_named() {
    Config::parse(GOOD).unwrap();
    for (from, to, says) in [
        ("127.0.0.1:8080", "0.0.0.0:8080", "serve.listen is not on loopback, and there is no TLS"),
        ("8080\"", "8080\"\ncertificate = \"a.pem\"", "both of certificate and key"),
        ("8080\"", "8080\"\nhosts = [\"https://a\"]", "serve.hosts"),
        ("https://localhost", "http://localhost", "plaintext"),
        ("https://localhost", "ftp://localhost", "neither"),
        ("\"01010101", "\"0101", "gateway.workspace"),
        ("servers.everything", "servers.every__thing", "is no name"),
        ("servers.everything", "servers.everything_", "is no name"),
        ("servers.everything", "servers.\"every/thing\"", "is no name"),
        ("[servers.everything]\nurl = \"http://127.0.0.1:3001/mcp\"\n", "", "no server behind it"),
        ("dir = \"spool\"", "dir = \"spool\"\nmib_max = 7", "spool.mib_max is 7; hint: 8 to 65536"),
        ("dir = \"spool\"", "dir = \"spool\"\nbananas = 7", "unknown field `bananas`"),
        ("http://127.0.0.1:3001/mcp", "ftp://127.0.0.1:3001/mcp", "servers.everything.url"),
        ("http://127.0.0.1:3001/mcp", "/mcp", "servers.everything.url"),
        ("3001/mcp\"", "3001/mcp\"\nca = \"ca.pem\"", "servers.everything.ca"),
        ("3001/mcp\"", "3001/mcp\"\nidle_s_max = 1", "servers.everything.idle_s_max is 1; hint: 10 to 86400"),
        ("3001/mcp\"", "3001/mcp\"\n[servers.everything.credential]", "needs one of file and environment"),
        ("3001/mcp\"", "3001/mcp\"\ncredential = { file = \"a\", header = \"Mcp-Name\" }", "credential.header"),
        ("3001/mcp\"", "3001/mcp\"\nlimits = { cpu_s_max = 9 }", "for a command alone"),
    ] {
        let faults = Config::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(faults.contains(says), "{to}: {faults}");
    }
}

#[test]
fn a_hosted_server_may_have_an_authority_of_its_own() {
    let hosted = GOOD.replace("http://127.0.0.1:3001", "https://mcp.example");
    Config::parse(&hosted).unwrap();
    let mut own = Config::parse(&format!("{hosted}ca = \"ca.pem\"\n")).unwrap();
    own.take_paths_from(Path::new("/etc/custody"));
    assert_eq!(own.servers["everything"].ca.clone().unwrap(), Path::new("/etc/custody/ca.pem"));
}

#[test]
fn a_proof_in_one_place_alone_is_warned_of() {
    let warnings = Config::parse(GOOD).unwrap().warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("fork.second is missing"), "{warnings:?}");
    let second = GOOD.replace("dir = \"forks\"", "dir = \"forks\"\nsecond = \"http://elsewhere.example/forks\"");
    assert!(Config::parse(&second).unwrap().warnings().is_empty());
}

#[test]
fn plaintext_is_for_loopback_alone() {
    let plain = |host: &str| GOOD.replace("https://localhost:7443\"", &format!("http://{host}:1\"\nplaintext = true"));
    Config::parse(&plain("127.0.0.1")).unwrap();
    Config::parse(&plain("[::1]")).unwrap();
    Config::parse(&plain("ledger.example")).unwrap_err();
}

/// Whatever is left out, the fault says where it belongs and where an example of it is.
#[test]
fn what_is_missing_is_named_with_its_section() {
    let lines: Vec<&str> = GOOD.trim().lines().collect();
    let mut section = "";
    for (at, line) in lines.iter().enumerate() {
        section = if line.starts_with('[') { line } else { section };
        let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| *key != "url") else { continue };
        let without = [&lines[..at], &lines[at + 1..]].concat().join("\n");
        let faults = Config::parse(&without).unwrap_err().to_string();
        for says in
            [&format!("in {section}: "), &format!("missing field `{key}`"), "hint: gateway-shim config template"]
        {
            assert!(faults.contains(says), "{key}: {faults}");
        }
    }
    let faults = Config::parse(&GOOD.replace("[spool]\ndir = \"spool\"\n", "")).unwrap_err().to_string();
    assert!(faults.contains("missing field `spool`"), "{faults}");
}

/// The template with its lines of these kinds made true.
fn template(examples: bool) -> String {
    let open = |line: &str| {
        let Some(rest) = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')) else { return line.to_owned() };
        rest.to_owned()
    };
    let (mut example, mut table) = (false, false);
    let mut text = String::new();
    for line in TEMPLATE.lines() {
        let prose = line.starts_with("# ");
        // A paragraph of prose says that what follows has no default: one key, or a whole section.
        table = (table || (example && line.starts_with("#["))) && !line.is_empty();
        example = if prose { example || line.contains("No default") } else { example };
        text += &if example && !examples { line.to_owned() } else { open(line) };
        text.push('\n');
        example = table || (example && prose);
    }
    text
}

#[test]
fn the_template_has_every_key_and_its_default() {
    let read = |text: &str| -> Config { toml::from_str(text).unwrap_or_else(|why| panic!("{why}\n{text}")) };
    let shown = |config: Config| format!("{config:#?}");
    assert_eq!(shown(read(TEMPLATE)), shown(read(&template(false))), "a default is another");
    let all = template(true);
    read(&all);
    // The fields of the sections, as the source has them.
    let source = [
        include_str!("../config.rs"),
        include_str!("process.rs"),
        include_str!("serve.rs"),
        include_str!("servers.rs"),
        include_str!("../access/oidc.rs"),
    ]
    .concat();
    let sections = source.split("#[serde(deny_unknown_fields").skip(1).filter_map(|text| text.split("\n}").next());
    let fields = sections.flat_map(|section| section.lines().filter_map(|line| line.strip_prefix("    pub ")));
    let keys: Vec<&str> = fields.filter_map(|field| field.split_once(':')).map(|(name, _)| name).collect();
    assert!(keys.len() > 50, "{keys:?}");
    let sections =
        ["gateway", "ledger", "spool", "batch", "fork", "serve", "servers", "relay", "digest", "identity_provider"];
    let tables = ["credential", "environment", "limits", "sandbox"];
    for key in
        keys.into_iter().filter(|key| !sections.contains(key) && !tables.contains(key) && *key != "identity_provider")
    {
        assert!(all.contains(&format!("\n{key} = ")), "{key} is not in the template");
    }
    assert!(all.contains("\n[serve.identity_provider]"));
    for table in tables {
        assert!(all.contains(&format!("\n[servers.everything.{table}]")), "{table} is not in the template");
    }
    assert!(all.contains("\n[serve.identity_provider]"));
}

/// As it stands it can be used but for what depends on the place: which way in, and which server.
#[test]
fn the_template_has_one_choice_left_in_each_way() {
    let faults = Config::parse(TEMPLATE).unwrap_err();
    assert_eq!(faults.0, ["servers.everything needs one of url and command", "relay needs one of listen and socket"]);
}

#[test]
fn folders_that_cannot_be_are_named() {
    let dir = crate::testing::TempDir::new();
    let mut config = Config::parse(GOOD).unwrap();
    config.take_paths_from(dir.path());
    config.check_folders().unwrap();
    // One that is not there yet is made where there is a folder to make it in.
    config.fork.second = Some(dir.path().join("proofs").display().to_string());
    config.check_folders().unwrap();
    config.fork.second = Some(dir.path().join("not/mounted").display().to_string());
    crate::durable::create_new(&config.spool.dir, b"a file", false).unwrap();
    let faults = config.check_folders().unwrap_err().0;
    assert!(faults.len() == 2 && faults.iter().all(|fault| fault.contains("hint: ")), "{faults:?}");
    assert!(faults[0].starts_with("spool.dir: ") && faults[1].starts_with("fork.second: "), "{faults:?}");
    let refused = crate::durable::create_dir(&config.spool.dir, 0o700).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::NotADirectory);
}

#[test]
fn a_certificate_of_another_gateway_is_named_with_what_differs() {
    let enrolment = |uris: &[&str]| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let (authority, key, hash) = (String::new(), String::new(), String::new());
        Enrolment { version: 1, certificate, authority, root_public_key: key, root_successor_hash: hash, era: 0 }
    };
    let config = Config::parse(GOOD).unwrap();
    let (mine, other) = ("01".repeat(16), "07".repeat(16));
    let uri =
        |origin: &str, workspace: &str| format!("custody://{origin}/workspace/{workspace}/gateway/{}", "02".repeat(16));
    config.check_holder(&enrolment(&[&uri("log.example", &mine)])).unwrap();
    let faults = config.check_holder(&enrolment(&[&uri("log.example/b", &other)])).unwrap_err().0;
    assert!(faults.len() == 2 && faults[0].contains("is of log.example/b") && faults[1].contains(&other), "{faults:?}");
    let two = [&*uri("log.example", &mine), &*uri("log.example", &other)];
    for none in [&[][..], &["custody://log.example/admin/a"], &two] {
        let faults = config.check_holder(&enrolment(none)).unwrap_err().to_string();
        assert!(faults.contains("no certificate of a gateway"), "{faults}");
    }
}
