//! House rules that no compiler keeps: names, length, who may use whom, which crates are in the tree.
//!
//! What must hold: an exception is named here, with its reason or its size, and the list of exceptions only shrinks. One
//! that is no longer needed fails as well, so that the list stays true.
#![expect(clippy::unwrap_used, reason = "a test that cannot read the tree fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

/// Lines that a file may have.
const LINES_MAX: usize = 600;
/// Files that are longer, and how long they may be.
const LONGER: &[(&str, usize)] = &[];

/// Words with a better one in the dictionary, as beginnings of words. Written in halves, so that this file passes.
const BANNED: &[(&str, &str)] = &[
    (concat!("seq", "no"), "position"),
    (concat!("thrott", "l"), "pushback"),
    (concat!("persi", "st"), "commit, keep"),
    (concat!("valid", "ate"), "admit, check"),
    (concat!("fina", "lize"), "seal"),
    (concat!("fina", "lise"), "seal"),
    (concat!("audit ", "path"), "inclusion proof"),
    (concat!("fn get", "_"), "the name without get"),
    (concat!("#[all", "ow"), "#[expect(.., reason)]"),
    (concat!("#![all", "ow"), "#![expect(.., reason)]"),
    (concat!("#[ign", "ore"), "a test that runs"),
];
/// The same for whole words.
const BANNED_WHOLE: &[(&str, &str)] =
    &[(concat!("t", "ip"), "open head"), (concat!("s", "th"), "checkpoint"), (concat!("not", "ary"), "witness")];
/// What others named: file and word.
const OTHERS_WORDS: &[(&str, &str)] = &[
    ("proto/hash.rs", concat!("fina", "lize")),
    ("ledger/src/index/check.rs", concat!("valid", "ate")),
    ("ledger/src/index/tests/faulty.rs", concat!("fn get", "_")),
    ("ledger/src/rig/faults.rs", concat!("fn get", "_")),
    ("ledger/src/watch/view.rs", concat!("fn get", "_")),
    ("gateway-shim/src/catalog/schema.rs", concat!("valid", "ate")),
];

/// The ledger's modules in the order of the data's way: each may use those before it.
const ORDER: &[&str] = &[
    "failpoint",
    "exit",
    "clock",
    "priority",
    "durable",
    "keys",
    "config",
    "refusals",
    "alarm",
    "metrics",
    "pki",
    "vault",
    "init",
    "own_keys",
    "listen",
    "store",
    "tail",
    "token",
    "workspace",
    "admit",
    "log_view",
    "commit",
    "directory",
    "ingest",
    "seal",
    "archive",
    "fence",
    "publish",
    "upkeep",
    "index",
    "watch",
    "ask",
    "http",
    "admin",
    "server",
    "cli",
];
/// Uses against the order that there still are.
const AGAINST_ORDER: &[(&str, &str)] = &[];

/// Heavy crates: which manifests may name them, and in which files of the programs (tests apart) they stand.
const HEAVY: &[(&str, &[&str], &[&str])] = &[
    ("rocksdb", &["ledger"], &["ledger/src/store.rs"]),
    ("object_store", &["ledger"], &["ledger/src/archive.rs", "ledger/src/fence.rs"]),
    ("tantivy", &["ledger"], &["ledger/src/index"]),
    ("rsigma_eval", &["ledger"], &["ledger/src/watch"]),
    ("rsigma_parser", &["ledger"], &["ledger/src/watch/sigma"]),
    ("rs_merkle", &["", "ledger"], &["ledger/src/seal.rs"]),
    ("axum", &["ledger", "gateway-shim"], &["gateway-shim/src/serve", "ledger/src/ask/web.rs", "ledger/src/http.rs"]),
    (
        "rcgen",
        &["ledger", "gateway-shim", "tests"],
        &[
            "gateway-shim/src/certificate.rs",
            "gateway-shim/src/key.rs",
            "gateway-shim/src/serve/tests/tls.rs",
            "ledger/src/pki.rs",
        ],
    ),
    (
        "tokio_rustls",
        &["ledger", "gateway-shim", "tests"],
        &[
            "gateway-shim/src/serve/tests/tls.rs",
            "gateway-shim/src/serve/tls.rs",
            "ledger/src/listen.rs",
            "ledger/src/watch/webhook.rs",
        ],
    ),
    ("argon2", &["ledger"], &["ledger/src/keys.rs"]),
    ("chacha20poly1305", &["", "ledger"], &["ledger/src/keys.rs", "proto/directory/sealed.rs"]),
    ("webpki", &["ledger", "gateway-shim"], &["gateway-shim/src/certificate.rs", "ledger/src/pki.rs"]),
    ("jsonschema", &["gateway-shim"], &["gateway-shim/src/catalog/schema.rs"]),
    ("unicode_security", &["gateway-shim"], &["gateway-shim/src/catalog/alike.rs"]),
    ("landlock", &["gateway-shim"], &["gateway-shim/src/server/sandbox.rs"]),
    ("tar", &["verifier-cli"], &["verifier-cli/src"]),
    (
        "tonic",
        &["", "ledger", "gateway-shim", "tests"],
        &[
            "gateway-shim/src/cli/running.rs",
            "gateway-shim/src/client",
            "gateway-shim/src/control",
            "gateway-shim/src/cookie.rs",
            "gateway-shim/src/relay",
            "ledger/src/admin",
            "ledger/src/ask",
            "ledger/src/cli/admin.rs",
            "ledger/src/cli/asker.rs",
            "ledger/src/ingest",
            "ledger/src/listen.rs",
            "ledger/src/server.rs",
        ],
    ),
];

/// Of these one copy is in the tree.
const ONCE: &[&str] = &[
    "tokio",
    "tonic",
    "prost",
    "hyper",
    "hyper-util",
    "h2",
    "axum",
    "rustls",
    "tokio-rustls",
    "ring",
    "rocksdb",
    "librocksdb-sys",
    "zstd",
    "zstd-sys",
    "blake3",
    "tower",
    "object_store",
    "rcgen",
    "tantivy",
];
/// Of these several are, because others ask for old ones; none of them is in what our own code names.
const SEVERAL: &[&str] = &[
    "base64",
    "bit-vec",
    "block-buffer",
    "const-oid",
    "cpufeatures",
    "crypto-common",
    "curve25519-dalek",
    "der",
    "digest",
    "ed25519",
    "ed25519-dalek",
    "fiat-crypto",
    "foldhash",
    "getrandom",
    "hashbrown",
    "itertools",
    "pkcs8",
    "prettyplease",
    "r-efi",
    "rand_core",
    "sha2",
    "shlex",
    "signature",
    "spki",
    "syn",
    "synstructure",
    "thiserror",
    "thiserror-impl",
    "windows-sys",
];
/// One provider of TLS is enough.
const NEVER: &[&str] = &["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file of ours with this ending, by its path from the root.
fn files(ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for top in ["build.rs", "proto", "verifier-cli", "ledger", "gateway-shim", "tests"] {
        walk(&root(), Path::new(top), ending, &mut found);
    }
    assert!(!found.is_empty(), "no file ends with .{ending}");
    found
}

fn walk(root: &Path, path: &Path, ending: &str, found: &mut BTreeMap<String, String>) {
    let whole = root.join(path);
    if whole.is_dir() {
        for entry in std::fs::read_dir(whole).unwrap() {
            walk(root, &path.join(entry.unwrap().file_name()), ending, found);
        }
    } else if path.extension().is_some_and(|end| end == ending) && !path.starts_with("tests/demo/node_modules") {
        found.insert(path.display().to_string(), std::fs::read_to_string(whole).unwrap());
    }
}

/// Whether a file is there for tests alone.
fn is_test(path: &str) -> bool {
    let of_tests =
        ["tests/", "gateway-shim/src/testing", "gateway-shim/tests", "verifier-cli/tests", "proto/testing.rs"];
    of_tests.iter().any(|start| path.starts_with(start))
        || path.ends_with("tests.rs")
        || path.starts_with("ledger/src/rig")
        || path == "ledger/src/failing.rs"
}

/// The code of a file without its comments and its tests.
fn code(text: &str) -> String {
    let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    own.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// Whether a path of code begins with this crate's name.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_' && letter != ':')
    })
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_first_what_it_is_for() {
    let silent = |(path, text): (String, String)| (!text.starts_with("//!")).then_some(path);
    none("no `//!` in the first line", &files("rs").into_iter().filter_map(silent).collect::<Vec<_>>());
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    let lengths: BTreeMap<String, usize> =
        files("rs").into_iter().map(|(path, text)| (path, text.lines().count())).collect();
    for (path, length) in &lengths {
        let most = LONGER.iter().find(|(long, _)| long == path).map_or(LINES_MAX, |(_, most)| *most);
        if *length > most {
            wrong.push(format!("{path} has {length} lines, and may have {most}"));
        }
    }
    for (path, _) in LONGER {
        if lengths.get(*path).is_none_or(|length| *length <= LINES_MAX) {
            wrong.push(format!("{path} is no longer too long: take it off the list"));
        }
    }
    none("length", &wrong);
}

#[test]
fn one_word_has_one_meaning() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for (path, text) in files("rs") {
        for (number, line) in text.lines().enumerate() {
            let small = line.to_lowercase();
            let whole: BTreeSet<&str> =
                small.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
            for (word, better) in BANNED_WHOLE.iter().filter(|(word, _)| whole.contains(word)) {
                wrong.push(format!("{path}:{}: {word}, say: {better}", number + 1));
            }
            for (word, better) in BANNED {
                if !small
                    .match_indices(word)
                    .any(|(at, _)| small[..at].chars().next_back().is_none_or(|c| !c.is_alphabetic()))
                {
                    continue;
                }
                if OTHERS_WORDS.contains(&(path.as_str(), word)) {
                    used.insert((path.clone(), *word));
                } else {
                    wrong.push(format!("{path}:{}: {word}..., say: {better}", number + 1));
                }
            }
        }
    }
    for (path, word) in OTHERS_WORDS {
        if !used.contains(&((*path).to_owned(), *word)) {
            wrong.push(format!("{path} has no {word}: take it off the list"));
        }
    }
    none("words", &wrong);
}

#[test]
fn no_path_of_a_machine_is_in_the_code() {
    let homes = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/t", "mp/"),
        concat!("/Us", "ers/"),
    ];
    let mut wrong = Vec::new();
    for (path, text) in files("rs").into_iter().chain(files("py")).chain(files("proto")).chain(files("toml")) {
        if homes.iter().any(|home| text.contains(home)) && !path.contains("node_modules") {
            wrong.push(path);
        }
    }
    none("names a folder of somebody's machine", &wrong);
}

/// Modules of the ledger that a module's own code names.
fn uses(text: &str) -> BTreeSet<String> {
    let code = code(text);
    let mut names = BTreeSet::new();
    let name = |text: &str| text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.insert(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut first = true;
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                _ if letter.is_whitespace() => {}
                _ if first && depth == 0 => {
                    names.insert(name(&list[at..]));
                    first = false;
                }
                _ => {}
            }
        }
    }
    names.remove("");
    names
}

#[test]
fn a_stage_uses_what_is_before_it() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    for (path, text) in files("rs") {
        let Some(rest) = path.strip_prefix("ledger/src/") else { continue };
        let module = rest.split('/').next().unwrap().trim_end_matches(".rs");
        if is_test(&path) || ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = place(module) else {
            wrong.push(format!("{module} has no place in the order"));
            continue;
        };
        // What is built for tests alone (the rig) may be hooked in anywhere.
        for other in uses(&text).into_iter().filter(|other| other != "rig") {
            let Some(at) = place(&other) else {
                wrong.push(format!("{path} uses {other}, which has no place in the order"));
                continue;
            };
            if at > own && AGAINST_ORDER.contains(&(module, &other)) {
                used.insert((module.to_owned(), other));
            } else if at > own {
                wrong.push(format!("{path} uses {other}, which comes after it"));
            }
        }
    }
    for (module, other) in AGAINST_ORDER {
        if !used.contains(&((*module).to_owned(), (*other).to_owned())) {
            wrong.push(format!("{module} does not use {other} any more: take it off the list"));
        }
    }
    none("the order of the stages", &wrong);
}

#[test]
fn heavy_crates_are_named_in_one_place() {
    let mut wrong = Vec::new();
    let manifests = ["", "verifier-cli", "ledger", "gateway-shim", "tests"];
    let texts = manifests.map(|folder| std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap());
    let sources = files("rs");
    for (name, may, places) in HEAVY {
        for (folder, text) in manifests.iter().zip(&texts) {
            let package = if *name == "webpki" { "rustls-webpki".to_owned() } else { name.replace('_', "-") };
            let names =
                text.lines().any(|line| [*name, &package].iter().any(|name| line.starts_with(&format!("{name} ="))));
            if names && !may.contains(folder) {
                wrong.push(format!("{folder}/Cargo.toml names {name}"));
            }
        }
        for (path, text) in &sources {
            if !is_test(path) && names_crate(&code(text), name) && !places.iter().any(|place| path.starts_with(place)) {
                wrong.push(format!("{path} names {name}"));
            }
        }
    }
    none("heavy crates", &wrong);
}

#[test]
fn one_copy_of_what_is_heavy_and_one_provider_of_tls() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut copies: BTreeMap<&str, usize> = BTreeMap::new();
    for name in lock.lines().filter_map(|line| line.strip_prefix("name = \"")) {
        *copies.entry(name.trim_end_matches('"')).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for name in ONCE.iter().filter(|name| copies.get(**name) != Some(&1)) {
        wrong.push(format!("{name}: {:?} copies", copies.get(*name)));
    }
    wrong.extend(NEVER.iter().filter(|name| copies.contains_key(**name)).map(|name| format!("{name} is in the tree")));
    for (name, count) in &copies {
        if *count > 1 && !SEVERAL.contains(name) {
            wrong.push(format!("{name}: {count} copies"));
        }
    }
    for name in SEVERAL.iter().filter(|name| copies.get(**name).is_none_or(|count| *count < 2)) {
        wrong.push(format!("{name} is there once: take it off the list"));
    }
    none("Cargo.lock", &wrong);
}

#[test]
fn the_contract_is_pure() {
    let mut wrong = Vec::new();
    let never = [
        "std::fs",
        "std::net",
        "std::time",
        "std::thread",
        "std::env",
        "std::process",
        "tokio",
        "async fn",
        "async move",
    ];
    for (path, text) in files("rs") {
        if !path.starts_with("proto/") || is_test(&path) {
            continue;
        }
        let code = code(&text);
        wrong.extend(never.iter().filter(|name| code.contains(**name)).map(|name| format!("{path} has {name}")));
        // Also as `use std::{fs, ..}`.
        for list in code.split("use std::{").skip(1).filter_map(|rest| rest.split("};").next()) {
            let names: Vec<&str> = list.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let named =
                ["fs", "net", "time", "thread", "env", "process"].into_iter().filter(|name| names.contains(name));
            wrong.extend(named.map(|name| format!("{path} uses std::{name}")));
        }
    }
    none("the contract has no clock, file, socket or thread", &wrong);
}

#[test]
fn the_verifier_needs_no_server() {
    let mut cargo = Command::new(env!("CARGO"));
    let tree = ["tree", "--offline", "--locked", "--package", "verifier-cli", "--edges", "normal", "--prefix", "none"];
    let tree = cargo.args(tree).current_dir(root()).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("custody") && names.contains("blake3"), "{tree}");
    let never = [
        "tonic",
        "tokio",
        "rocksdb",
        "object_store",
        "hyper",
        "axum",
        "rustls",
        "ring",
        "tantivy",
        "rs_merkle",
        "ledger",
        "gateway-shim",
    ];
    let found: Vec<String> =
        never.iter().filter(|name| names.contains(**name)).map(|name| (*name).to_owned()).collect();
    none("the verifier links", &found);
}

/// What stands between backticks.
fn spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// In a row of WEAK_SPOTS.md the tests of a file stand behind its path, and a lie is a path alone.
#[test]
fn every_test_that_a_weak_spot_names_is_there() {
    let table = std::fs::read_to_string(root().join("docs/WEAK_SPOTS.md")).unwrap();
    let (mut wrong, mut tests, mut lies) = (Vec::new(), 0, 0);
    for row in table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| weakness") && !line.starts_with("| ---"))
    {
        let shown_by = row.trim_end_matches('|').rsplit_once(" | ").map_or("", |(_, last)| last);
        let (mut file, mut named) = (None, 0);
        for span in spans(shown_by) {
            if span.contains('/') {
                file = std::fs::read_to_string(root().join(span)).ok();
                if file.is_none() {
                    wrong.push(format!("{span} is not there"));
                }
                lies += usize::from(span.ends_with(".toml"));
                named += usize::from(span.ends_with(".toml"));
                continue;
            }
            let is_test = |text: &String| {
                let before = text.split(&format!("fn {span}(")).next().filter(|before| before.len() < text.len());
                let last = before.and_then(|before| before.rsplit("\n\n").next());
                last.is_some_and(|attributes| attributes.contains("test]") || attributes.contains("test("))
            };
            if !file.as_ref().is_some_and(is_test) {
                wrong.push(format!("{span} is no test of the file before it"));
            }
            (tests, named) = (tests + 1, named + 1);
        }
        if named == 0 {
            wrong.push(format!("no test: {row}"));
        }
    }
    none("docs/WEAK_SPOTS.md", &wrong);
    assert!(tests > 30 && lies > 5, "the table was not read: {tests} tests, {lies} lies");
}

/// The README's commands build everything by the one profile of Cargo.toml: what is set beside it is one machine's, and what is
/// measured and shipped elsewhere would be built by it too.
#[test]
fn no_configuration_of_one_machines_builds_is_kept() {
    let listed = Command::new("git").args(["ls-files", ".cargo"]).current_dir(root()).output();
    // A tree without its history has nothing that says what is kept.
    let Some(listed) = listed.ok().filter(|listed| listed.status.success()) else { return };
    let kept = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
    none("files of a build's own configuration", &kept);
}
