//! The command line: what is parsed, what is refused, and offline work with the root key.

use clap::CommandFactory as _;
use custody::{
    key::{self, Context},
    statement::Signed,
    wire::{self, statement::Action},
};
use prost::Message as _;

use super::*;

fn line(words: &[&str]) -> Result<Line, clap::Error> {
    Line::try_parse_from([&["ledger"], words].concat())
}

#[test]
fn the_command_line_is_sound() {
    Line::command().debug_assert();
    line(&["init", "--dir", "d", "--origin", "o"]).unwrap();
    line(&["serve", "--config", "c"]).unwrap();
    line(&["workspace", "add", "n", "--root-key", "k"]).unwrap();
    line(&["gateway", "enrol", "r.json", "--name", "n", "--registrar-key", "k", "--out", "a.json"]).unwrap();
    line(&["key", "revoke", "ab", "--workspace", "w", "--void", "3,4", "--request-out", "r"]).unwrap();
    line(&["key", "delegate", "--new-key", "k", "--enrolments-max", "2", "--root-key", "k"]).unwrap();
    line(&["key", "enrol", "--role", "head", "--public-key", "ab", "--possession", "cd", "--root-key", "k"]).unwrap();
    line(&["hold", "set", "--workspace", "w", "--since", "t", "--root-key", "k"]).unwrap();
    line(&["status", "--json"]).unwrap();
    line(&["root", "sign", "r", "--key", "k", "--policy", "p", "--out", "o"]).unwrap();
    for wrong in [
        &["init", "--dir", "d"][..],
        &["workspace", "add", "n", "--root-key", "k", "--request-out", "r"],
        &["key", "delegate", "--new-key", "k", "--public-key", "ab", "--enrolments-max", "2"],
        &["unknown"],
        &[],
    ] {
        let why = line(wrong).unwrap_err();
        assert!(why.use_stderr(), "{wrong:?}");
    }
    assert!(!line(&["--help"]).unwrap_err().use_stderr());
}

#[test]
fn faults_put_the_hint_last() {
    let why = Config::load(Path::new("no such file")).unwrap_err();
    let fault = Fault::of(ExitReason::Configuration, &why);
    let lines: Vec<&str> = fault.text.lines().collect();
    assert!(lines[0].starts_with("failed to read the configuration no such file: "), "{}", fault.text);
    assert!(lines[1].starts_with("hint: "), "{}", fault.text);
}

#[test]
fn the_root_signs_a_request_offline() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = init(&Plan {
        dir: path("ledger"),
        origin: "example.org/custody".to_owned(),
        root_key_out: Some(path("root.key")),
        root_passphrase_file: None,
        passphrase_file: None,
        plaintext_loopback: false,
    });
    let made = made.unwrap();
    let root = keys::load(&made.root_key, None).unwrap();
    let said = wire::Statement {
        version: 1,
        origin: "example.org/custody".to_owned(),
        workspace: Some(vec![1; 16].into()),
        previous: vec![0; 32].into(),
        checkpoint_hash: vec![0; 32].into(),
        issued_at: 1,
        era: 1,
        action: Some(Action::Create(wire::Create { name: "payments".to_owned() })),
        ..Default::default()
    };
    let bytes = said.encode_to_vec();
    std::fs::File::create(path("request")).and_then(|mut file| std::io::Write::write_all(&mut file, &bytes)).unwrap();
    let sign_with = |key: &Path, request: &str, out: Option<PathBuf>| {
        let (request, key, policy) = (path(request), key.to_owned(), made.policy.clone());
        offline::run(&offline::RootCommand::Sign { request, key, policy, out, passphrase_file: None })
    };
    let sign = |request: &str, out| sign_with(&made.root_key, request, out);
    // Nothing is signed with another key than the one that the statement needs.
    assert!(sign_with(&made.successor_key, "request", None).unwrap_err().text.contains("nothing was signed"));
    assert!(!path("request.stmt").exists());
    sign("request", None).unwrap();
    let signed = Signed::parse(&std::fs::read(path("request.stmt")).unwrap()).unwrap();
    assert_eq!(signed.statement_bytes, bytes);
    assert!(key::public(&root).verifies(Context::Statement, &bytes, &signed.signature));
    assert!(sign("request", None).is_err(), "the signed statement was overwritten");
    offline::run(&offline::RootCommand::Show { file: path("request.stmt") }).unwrap();
    // Neither what is no statement, nor what is signed already, nor a registrar's is signed.
    assert!(sign("request.stmt", Some(path("again"))).is_err());
    assert!(sign("root.key", Some(path("again"))).is_err());
    let of_registrar = wire::Statement { registrar: Some(vec![2; 32].into()), ..said };
    crate::durable::create_new(&path("registrar"), &of_registrar.encode_to_vec(), 0o644).unwrap();
    assert!(sign("registrar", Some(path("again"))).is_err());
    assert!(!path("again").exists());
}
