//! The worked examples of `docs/FORMAT.md`, in hex, made from fixed values: one record on its way from bytes to checkpoint
//! (section 15), a directory entry (5.4), and an access policy (5.6). `CUSTODY_BLESS=1` writes them again.

use std::{fmt::Write as _, fs, path::Path};

use bytes::Bytes;
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use prost::Message as _;

use crate::{
    batch::{Header, nonce, record_leaf, record_leaves, seal_header},
    directory,
    hash::{Use, header_hash, object_hash},
    head::history_leaf,
    id::{HeaderHash, KeyId, MemberId, RootHash, hex},
    key::{Context, public, sign},
    log::encode_seal_entry,
    merkle::{self, BatchTree, LogTree, SegmentTree, log_leaf},
    note::{Checkpoint, sign_checkpoint},
    record,
    segment::Leaf,
    testing::{AT, EPOCH, GATEWAY, GATEWAY_ID, LOG, ORIGIN, WORKSPACE, key},
    wire::{self, LeafKind, OpeningReason, Role, record::Kind},
};

const SEED: [u8; 32] = [0x5e; 32];

fn records() -> Vec<Vec<u8>> {
    let opened = wire::Opened {
        product: "example".into(),
        product_version: "1".into(),
        configuration_digest: Bytes::from_static(&[0xc0; 32]),
        clock: 1,
        class: 1,
        silence_us_max: 600_000_000,
    };
    let event = wire::GatewayEvent { at: AT, event: Some(wire::gateway_event::Event::Opened(opened)) };
    let call = wire::Call {
        phase: 1,
        mode: 1,
        server: "files".into(),
        target: Some(wire::call::Target::Tool("read_text_file".into())),
        request: Some(wire::call::Request::Method("tools/call".into())),
        decision: 1,
        started_at: AT,
        duration_us: 1_250,
        outcome: 1,
        ..Default::default()
    };
    vec![record::encode(Kind::GatewayEvent(event)), record::encode(Kind::Call(call))]
}

/// A step: what it is, and its bytes.
fn step(out: &mut String, what: &str, bytes: &[u8]) {
    let digits = hex(bytes);
    writeln!(out, "{what} ({} bytes)\n", bytes.len()).unwrap();
    for line in digits.as_bytes().chunks(96) {
        writeln!(out, "    {}", std::str::from_utf8(line).unwrap()).unwrap();
    }
    out.push('\n');
}

fn example() -> String {
    let mut out = String::from("\n");
    let (header, signature) = batch_steps(&mut out);
    segment_and_log_steps(&mut out, &header, &signature);
    out
}

/// From records to the signed header; header and signature.
fn batch_steps(out: &mut String) -> (Vec<u8>, [u8; 64]) {
    let gateway_key = key(GATEWAY);
    let records = records();
    step(
        out,
        "seed of the gateway's key, and its public key after it",
        &[&gateway_key.to_bytes()[..], &public(&gateway_key).to_bytes()].concat(),
    );
    let key_id: KeyId = public(&gateway_key).id(Role::Gateway);
    step(
        out,
        "key id: keyed BLAKE3 `custody/v1/key-id` over the role as 4 bytes (00000003) and the public key",
        &key_id.0,
    );
    step(out, "key of `custody/v1/batch-leaf`: derive_key(that context, nothing)", &Use::BatchLeaf.key());
    step(out, "record 0, the record of the writer", &records[0]);
    step(out, "record 1, a call", &records[1]);
    step(out, "seed of the batch", &SEED);
    let nonces = [nonce(&SEED, 0), nonce(&SEED, 1)];
    step(out, "nonce of record 1: keyed BLAKE3 with the seed as key over 0000000000000001", &nonces[1]);
    let leaf = record_leaf(&nonces[1], &records[1], &mut Vec::new());
    step(out, "leaf of record 1: keyed over nonce, length as 4 bytes, record", &leaf);
    let leaves = record_leaves(&SEED, &records);
    let root = merkle::root_of::<BatchTree>(&leaves);
    step(out, "batch root: keyed BLAKE3 `custody/v1/batch-node` over both leaves", &root.0);
    let mut header = Header {
        origin: ORIGIN.to_owned(),
        workspace: WORKSPACE,
        gateway: GATEWAY_ID,
        key_id,
        epoch: EPOCH,
        batch_number: 0,
        first_record: 0,
        record_count: 0,
        previous: HeaderHash::ZERO,
        opening_reason: Some(OpeningReason::First),
        batch_root: RootHash::ZERO,
        last_head: Bytes::new(),
        dropped: 0,
        drop_reason: None,
        heartbeat: false,
        close: false,
        created_at: AT,
    };
    seal_header(&mut header, &SEED, &records);
    let header = header.encode();
    step(out, "header", &header);
    let signature = sign(&gateway_key, Context::Batch, &header);
    step(out, "signature over `custody/v1/batch`, 00, header", &signature);
    step(out, "header hash: keyed BLAKE3 `custody/v1/header-hash` over the header", &header_hash(&header).0);
    (header, signature)
}

/// From the signed header to the checkpoint.
fn segment_and_log_steps(out: &mut String, header: &[u8], signature: &[u8; 64]) {
    let log_key = key(LOG);
    let place = Leaf { kind: LeafKind::Batch, first_position: 0, received_at: AT, term: 1 };
    let segment_leaf = place.hash(header, signature);
    step(
        out,
        "segment leaf: keyed over kind 01, first position 0, received-at, term 1 (8 bytes each), header and signature with lengths",
        &segment_leaf,
    );
    let segment_root = merkle::root_of::<SegmentTree>(&[segment_leaf]);
    step(out, "root of a segment with this one leaf: the leaf", &segment_root.0);
    step(
        out,
        "history leaf of segment 0, size 1: keyed over both as 8 bytes, and the root",
        &history_leaf(0, 1, &segment_root),
    );
    let seal = object_hash(b"the seal's bytes stand here");
    let entry = encode_seal_entry(WORKSPACE, 0, seal);
    step(out, "log entry for a seal whose SHA-256 is that of the ASCII text `the seal's bytes stand here`", &entry);
    let entry_leaf = log_leaf(&entry).0;
    step(out, "its leaf: SHA-256 over 00 and the entry; the root of a log of one", &entry_leaf);
    let log_root = merkle::root_of::<LogTree>(&[entry_leaf]);
    let checkpoint = Checkpoint { origin: ORIGIN.to_owned(), size: 1, root: log_root };
    step(out, "checkpoint hash, as statements name it: SHA-256 over the three lines", &checkpoint.hash().0);
    out.push_str("the checkpoint, signed by the log key\n\n");
    let note = String::from_utf8(sign_checkpoint(checkpoint, &log_key).to_bytes()).unwrap();
    for line in note.lines() {
        writeln!(out, "    {line}").unwrap();
    }
    out.push('\n');
}

/// A directory entry: commitment, associated data, contents, ciphertext.
fn directory_example() -> String {
    let (key, member, revision, nonce) = ([0x4b; 32], MemberId([0xa1; 16]), 2, XNonce::from([0xbf; 24]));
    let contents = wire::DirectoryContents {
        version: crate::FORMAT_VERSION,
        name: "Ada Lovelace".into(),
        address: "ada@example.com".into(),
        groups: ["dev", "on-call"].map(|group| format!("{}/{group}", "11".repeat(16))).to_vec(),
    };
    let contents = contents.encode_to_vec();
    let data = directory::associated_data(ORIGIN, member, revision);
    let cipher = XChaCha20Poly1305::new(&key.into());
    let ciphertext = cipher.encrypt(&nonce, Payload { msg: &contents, aad: &data }).unwrap();
    let commitment = directory::key_commitment(ORIGIN, member, &key);
    let lines = [&commitment[..], &data, &contents, &ciphertext].map(|bytes| format!("    {}\n", hex(bytes)));
    format!("\n{}\n", lines.concat())
}

/// A policy, the records of its first start, and calls with what is decided of them.
fn access_example() -> String {
    let (ada, agent, token) = ([0xa1; 16], [0xa2; 16], [0xa3; 16]);
    let policy = format!(
        "version = 1\n[members.{}]\ngroups = [\"dev\"]\n[agents.{}]\n[[rules]]\nid = \"no-rm\"\neffect = \"deny\"\neveryone = \
         true\ntools = [\"*/rm\"]\n[[rules]]\nid = \"dev\"\neffect = \"allow\"\ngroups = [\"dev\"]\ntools = [\"files/*\"]\n[[tokens]]\nid \
         = \"{}\"\nsha256 = \"{}\"\nmember = \"{0}\"\nagent = \"{1}\"\nissued_at = 2026-01-01T00:00:00Z\nexpires_at = \
         2026-01-02T00:00:00Z\n",
        hex(&ada),
        hex(&agent),
        hex(&token),
        "00".repeat(32)
    );
    let digest = crate::access::policy_digest(policy.as_bytes(), None);
    let rule = |id: &str, effect, group: Option<&str>, tool: &str| wire::AccessRule {
        id: id.into(),
        effect,
        groups: group.map(Into::into).into_iter().collect(),
        tools: vec![tool.into()],
        methods: vec!["tools/call".into()],
        ..Default::default()
    };
    let change = |action: wire::AccessAction| wire::AccessChange {
        at: 1_767_225_600_000_000,
        action: action as i32,
        actor: Some(wire::access_change::Actor::ActorSystem("start".into())),
        reason: "first".into(),
        policy_digest_after: Bytes::copy_from_slice(&digest),
        ..Default::default()
    };
    let member = Some(Bytes::copy_from_slice(&ada));
    let of_agent = Some(Bytes::copy_from_slice(&agent));
    use wire::AccessAction as Action;
    let rules = [rule("no-rm", 2, None, "*/rm"), rule("dev", 1, Some("dev"), "files/*")];
    let placed = |place: u32| wire::AccessChange {
        rule: rules.get(place as usize).cloned(),
        place: Some(place),
        ..change(Action::RuleAdded)
    };
    let changes = [
        wire::AccessChange { agent: of_agent.clone(), ..change(Action::AgentAdded) },
        wire::AccessChange { member: member.clone(), ..change(Action::MemberAdded) },
        wire::AccessChange { member: member.clone(), group: "dev".into(), ..change(Action::GroupJoined) },
        wire::AccessChange {
            member,
            agent: of_agent,
            token: Some(Bytes::copy_from_slice(&token)),
            expires_at: Some(1_767_312_000_000_000),
            ..change(Action::TokenIssued)
        },
        placed(0),
        placed(1),
        change(Action::PolicyApplied),
    ];
    let mut out = String::from("\n");
    policy.lines().for_each(|line| writeln!(out, "    {line}").unwrap());
    out.push('\n');
    step(&mut out, "digest of the policy", &digest);
    let mut state = crate::access::State::default();
    for change in changes {
        let name = change.action().as_str_name().trim_start_matches("ACCESS_ACTION_").to_owned();
        let bytes = record::encode(Kind::AccessChange(change.clone()));
        record::check(&bytes).unwrap();
        step(&mut out, &format!("`{name}`"), &bytes);
        state.replay(&change);
    }
    assert_eq!(state.digest, Some(digest));
    out.push_str("| server | method | names | decision | rule |\n| --- | --- | --- | --- | --- |\n");
    for (server, method, name) in [
        ("files", "tools/call", Some("read")),
        ("files", "tools/call", Some("rm")),
        ("mail", "tools/call", Some("send")),
        ("files", "resources/read", Some("file:///a")),
        ("files", "ping", None),
        ("mail", "tools/list", None),
    ] {
        let (decision, rule) = state.decide(&MemberId(ada), 1_767_225_600_000_001, server, name, method).unwrap();
        let decision = if decision == wire::Decision::Allowed { "`allowed`" } else { "`denied`" };
        let name = name.map_or_else(String::new, |name| format!("`{name}`"));
        writeln!(out, "| `{server}` | `{method}` | {name} | {decision} | `{rule}` |").unwrap();
    }
    out.push('\n');
    out
}

#[test]
fn the_worked_examples_in_the_manual_are_made_again() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FORMAT.md");
    let manual = fs::read_to_string(&path).unwrap();
    let mut made = manual.clone();
    for (name, example) in [("directory", directory_example()), ("access", access_example()), ("worked", example())] {
        let [begin, end] = ["begin", "end"].map(|edge| format!("<!-- {name} example: {edge} -->\n"));
        let (before, rest) = made.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        made = format!("{before}{begin}{example}{end}{after}");
    }
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a file of the repository, written on request")]
        fs::write(&path, &made).unwrap();
        return;
    }
    let differ = made.lines().zip(manual.lines()).find(|(made, found)| made != found);
    assert!(made == manual, "docs/FORMAT.md is not what the code makes (CUSTODY_BLESS=1 writes it again): {differ:?}");
}
