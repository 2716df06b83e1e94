//! Tests of the configuration: every knob is bounded, unknown ones are refused by name.

use super::*;

#[test]
fn the_template_says_the_defaults() {
    assert_eq!(Config::parse(&Config::template()).unwrap(), Config::default());
    let bare = Config::parse("origin = \"example.org/custody\"").unwrap();
    assert_eq!(bare, Config::default());
    let again = toml::to_string(&bare).unwrap();
    assert_eq!(Config::parse(&again).unwrap(), bare);
}

#[test]
fn every_knob_of_the_template_has_a_reason() {
    let template = Config::template();
    let lines: Vec<&str> = template.lines().collect();
    let knobs = lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#') && line.contains(" = "));
    let mut count = 0;
    for (at, knob) in knobs {
        assert!(lines[at - 1].starts_with("# "), "{knob}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[test]
fn unknown_keys_and_sections_are_refused_by_name() {
    for (text, word) in [
        ("origin = \"a\"\n[ingest]\nstreams = 3\n", "streams"),
        ("origin = \"a\"\n[ingress]\n", "ingress"),
        ("origin = \"a\"\nstreams_max = 3\n", "streams_max"),
        ("", "origin"),
        ("origin = \"a\"\n[ingest]\nstreams_max = \"3\"\n", "streams_max"),
    ] {
        let why = Config::parse(text).unwrap_err().to_string();
        assert!(why.contains(word), "{word}: {why}");
    }
}

#[test]
fn values_out_of_bounds_are_refused_by_name() {
    for (text, key) in [
        ("[ingest]\nstreams_max = 0\n", "ingest.streams_max"),
        ("[segment]\nbytes_max = 67108865\n", "segment.bytes_max"),
        ("[fence]\nread_seconds = 21\n", "fence.read_seconds"),
        ("[fence]\nfolder = \"archive/fence\"\n", "fence.folder"),
        ("[listen]\ngrpc = \"0.0.0.0:1\"\nplaintext_loopback = true\n", "listen.plaintext_loopback"),
        ("[admin]\nurl = \"http://localhost:1\"\n", "admin.url"),
        ("[store]\ndisk_low_bytes = 1\n", "store.disk_full_bytes"),
        ("[tls]\nserver_names = []\n", "tls.server_names"),
        ("[drain]\nseconds_max = 0\n", "drain.seconds_max"),
    ] {
        let why = Config::parse(&format!("origin = \"a\"\n{text}")).unwrap_err().to_string();
        assert!(why.contains(key) && why.contains("hint:"), "{key}: {why}");
    }
    for origin in ["", "a b", "a+b", "a\\nb"] {
        assert!(Config::parse(&format!("origin = \"{origin}\"")).is_err(), "{origin}");
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.toml");
    crate::durable::create_new(&path, b"origin = \"a\"\n[paths]\nkeys = \"/elsewhere/keys\"\n", 0o644).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.paths.data, folder.path().join("data"));
    assert_eq!(config.paths.keys, Path::new("/elsewhere/keys"));
    assert_eq!(config.keys.passphrase_file, Path::new(""));
    assert!(Config::load(&folder.path().join("none")).unwrap_err().to_string().contains("ledger init"));
}
