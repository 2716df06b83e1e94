//! Golden files: one file of hex for each message, a message a line, built from fixed values and keys. They freeze every
//! number, enum, limit, context and hash of version 1; writers in other languages compare against them; fuzzing starts from
//! them. `CUSTODY_BLESS=1` writes them again, which is right only for what is new.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    batch, directory,
    evidence::Proof,
    hash::{Use, root_successor, text_digest},
    head,
    id::{MemberId, ObjectHash, RootHash, hex},
    key::{Context, public, sign},
    log::encode_bundle,
    merkle::{BatchTree, HistoryTree, LogTree, Node, SegmentTree, TreeHash as _, log_leaf},
    note::{TYPE_COSIGNATURE, TYPE_LOG, verifier_key},
    policy,
    segment::{self, Leaf, Seal},
    strict::{Kind, Presence, table},
    testing::{GATEWAY, HEAD, LOG, ORIGIN, Rng, WITNESS, WORKSPACE, key, key_id, message, testdata},
    wire::{self, LeafKind, Role},
};

mod records;
mod world;

use records::*;
pub(crate) use world::*;

/// What one file holds.
pub(crate) struct Golden {
    /// Name in `proto/testdata/golden`, without its ending.
    pub(crate) file: &'static str,
    /// Message of the table; empty for what is not a message.
    pub(crate) message: &'static str,
    /// A line of hex each.
    pub(crate) lines: Vec<Vec<u8>>,
}

fn fill<const N: usize>(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte; N])
}

/// All files.
pub(crate) fn all() -> Vec<Golden> {
    let golden = |file, message, lines| Golden { file, message, lines };
    let world = World::new();
    vec![
        golden("record-call", "Record", calls()),
        golden("record-access-change", "Record", access_changes()),
        golden("record-tool-definition", "Record", tool_definitions()),
        golden("record-gateway-event", "Record", gateway_events()),
        golden("record-directory-entry", "Record", vec![directory_entry()]),
        golden("directory-contents", "DirectoryContents", directory_contents()),
        golden("record-ledger-event", "Record", ledger_events()),
        golden("record-search", "Record", searches()),
        golden("record-alarm", "Record", alarms()),
        golden("record-disposition", "Record", dispositions()),
        golden("batch-header", "BatchHeader", headers()),
        golden("signed-batch", "SignedBatch", world.batches.clone()),
        golden("possession", "Possession", possessions()),
        golden("signed-statement-ledger", "SignedStatement", ledger_statements()),
        golden("signed-statement-workspace", "SignedStatement", workspace_statements()),
        golden("open-head", "OpenHead", vec![world.head.encode(), bare_head().encode()]),
        golden("signed-head", "SignedHead", vec![world.head.sign(&key(HEAD)), bare_head().sign(&key(HEAD))]),
        golden("receipt", "Receipt", world.receipts()),
        golden("archived-receipt", "ArchivedReceipt", vec![world.archived_receipt()]),
        golden("segment-entry", "SegmentEntry", world.entries()),
        golden("segment-object", "", vec![world.object.clone()]),
        golden("roster", "Roster", vec![world.roster.clone(), later_roster()]),
        golden("seal", "Seal", vec![world.seal.encode(), world.later_seal().encode()]),
        golden("log-entry", "LogEntry", world.log_entries()),
        golden("log-bundle", "", vec![encode_bundle(&world.log)]),
        golden("claim", "Claim", vec![world.claim()]),
        golden("checkpoint", "", vec![world.checkpoint().to_bytes()]),
        golden("evidence", "Evidence", world.evidences()),
        golden("evidence-file", "", vec![world.proof().to_bytes()]),
        golden("policy", "", vec![policy_file()]),
    ]
}

fn policy_file() -> Vec<u8> {
    serde_json::to_vec(&audit_policy()).unwrap()
}

/// Compares with a file of `proto/testdata/golden`, or writes it when that is asked for.
fn compare(file: &str, text: &str) {
    let path = testdata("golden").join(file);
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a file of the repository, written on request")]
        fs::write(&path, text).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    for (at, (is, was)) in text.lines().zip(stored.lines()).enumerate() {
        assert_eq!(is, was, "{file} line {}: the format changed", at + 1);
    }
    assert_eq!(text.lines().count(), stored.lines().count(), "{file}");
}

#[test]
fn messages_are_the_golden_files() {
    for golden in all() {
        let text: String = golden.lines.iter().map(|line| format!("{}\n", hex(line))).collect();
        compare(&format!("{}.hex", golden.file), &text);
        for (at, line) in golden.lines.iter().enumerate().filter(|_| !golden.message.is_empty()) {
            let checked = crate::strict::check(message(golden.message), line);
            assert_eq!(checked, Ok(()), "{} line {}", golden.file, at + 1);
        }
    }
    let known: BTreeSet<String> = all().iter().map(|golden| format!("{}.hex", golden.file)).collect();
    for found in fs::read_dir(testdata("golden")).unwrap() {
        let name = found.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name) || !name.ends_with(".hex"), "{name} is nobody's");
    }
}

#[test]
fn golden_objects_are_whole() {
    let world = World::new();
    for bytes in &world.batches {
        let submitted = batch::Submitted::parse(bytes.clone().into()).unwrap();
        assert!(submitted.is_root_of_records() && submitted.is_signed_by(public(&key(GATEWAY))));
        submitted.check_records().unwrap();
    }
    let object = segment::Object::parse(world.object.clone().into()).unwrap();
    assert!(object.header.agrees_with(&world.seal));
    assert_eq!(Seal::parse(&world.seal.encode()).unwrap(), world.seal);
    let shown = crate::evidence::check(&world.proof().to_bytes(), &audit_policy()).unwrap().unwrap();
    assert_eq!(shown.records.iter().map(|r| r.position).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(shown.records.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2, 5]);
    assert_eq!(policy::Policy::parse(&policy_file()).unwrap(), audit_policy());
    for golden in all().iter().filter(|golden| golden.message == "Record") {
        for line in &golden.lines {
            crate::record::check(line).unwrap();
        }
    }
}

/// Notes each field and each value of an enum that stands in `bytes`.
fn note_fields(of: &'static crate::strict::Message, mut bytes: &[u8], seen: &mut BTreeSet<(&'static str, u32, u64)>) {
    while !bytes.is_empty() {
        let key = prost::encoding::decode_varint(&mut bytes).unwrap();
        let number = prost::encoding::decode_varint(&mut bytes).unwrap();
        let tag = u32::try_from(key >> 3).unwrap();
        let field = of.fields.iter().find(|field| field.tag == tag).unwrap();
        seen.insert((of.name, tag, if matches!(field.kind, Kind::Enum { .. }) { number } else { 0 }));
        if key & 7 == 2 {
            let (content, rest) = bytes.split_at(usize::try_from(number).unwrap());
            bytes = rest;
            match (of.name, field.name, &field.kind) {
                (_, _, Kind::Message(inner)) => note_fields(inner, content, seen),
                ("SignedStatement", "statement", _) => note_fields(&table::STATEMENT, content, seen),
                _ => {}
            }
        }
    }
}

#[test]
fn golden_files_have_every_field_and_every_value_of_an_enum() {
    let mut seen = BTreeSet::new();
    for golden in all().iter().filter(|golden| !golden.message.is_empty()) {
        golden.lines.iter().for_each(|line| note_fields(message(golden.message), line, &mut seen));
    }
    let index = wire::SegmentIndex { version: 1, frames: vec![] };
    note_fields(&table::SEGMENT_INDEX, &index.encode_to_vec(), &mut seen);
    // These stand inside the segment object, whose parser reads them; a few enums have values that another place writes.
    let inside = ["SegmentHeader", "SegmentIndex", "SegmentFrame"];
    let never = [("EvidenceBatch", 1, 2), ("EvidenceBatch", 1, 3), ("Enrol", 1, 1), ("Enrol", 1, 2)];
    for of in table::ALL.iter().filter(|of| !inside.contains(&of.name)) {
        for field in of.fields {
            let values = match field.kind {
                Kind::Enum { max } => 1..=max,
                _ => 0..=0,
            };
            for value in values.filter(|value| !never.contains(&(of.name, field.tag, *value))) {
                assert!(seen.contains(&(of.name, field.tag, value)), "{} {} {value}", of.name, field.name);
            }
        }
    }
}

macro_rules! names {
    ($out:expr, $($name:ident)*) => {
        $(for number in 1.. {
            let Ok(value) = wire::$name::try_from(number) else { break };
            writeln!($out, "{} {number} {}", stringify!($name), value.as_str_name()).unwrap();
        })*
    };
}

#[test]
fn enums_and_fields_are_the_golden_table() {
    let mut out = String::new();
    names!(&mut out, Phase Mode Decision Outcome LinkKind AccessAction DefinitionChange DefinitionAction WriterClass
        ClockState ServerState DeliveryState LedgerEventKind Severity AlarmPhase DispositionKind OpeningReason DropReason
        LeafKind Role);
    for of in table::ALL {
        for field in of.fields {
            let kind = match &field.kind {
                Kind::Message(inner) => format!("Message {}", inner.name),
                other => format!("{other:?}"),
            };
            let presence = match field.presence {
                Presence::OneOf { first, required } => format!("OneOf from {first}, required: {required}"),
                other => format!("{other:?}"),
            };
            writeln!(out, "{} {} {}: {kind}, {presence}", of.name, field.tag, field.name).unwrap();
        }
    }
    compare("table.txt", &out);
}

/// What `table.txt` leaves out: the services, and what is said on them alone. A program of last year still speaks to one
/// of today if these only grow.
#[test]
fn numbers_are_the_golden_numbers() {
    compare("numbers.txt", include_str!(concat!(env!("OUT_DIR"), "/numbers.txt")));
}

#[test]
fn hashes_signatures_and_keys_are_golden() {
    let mut out = String::new();
    let mut line = |name: &str, bytes: &[u8]| writeln!(out, "{name} {}", hex(bytes)).unwrap();
    let (left, right): (Node, Node) = ([1; 32], [2; 32]);
    for of in [
        Use::BatchLeaf,
        Use::BatchNode,
        Use::SegmentLeaf,
        Use::SegmentNode,
        Use::HistoryLeaf,
        Use::HistoryNode,
        Use::Header,
        Use::Roster,
        Use::Segment,
        Use::KeyId,
        Use::RootSuccessor,
        Use::LastSeals,
        Use::Text,
        Use::MemberKey,
    ] {
        line(of.context(), &of.key());
    }
    line("nonce 0", &batch::nonce(&SEED, 0));
    line("nonce 4095", &batch::nonce(&SEED, 4095));
    line("record-leaf", &batch::record_leaf(&left, b"record", &mut Vec::new()));
    line("batch-node", &BatchTree::node(&left, &right));
    line("batch-empty", &BatchTree::empty());
    line("segment-node", &SegmentTree::node(&left, &right));
    line("segment-empty", &SegmentTree::empty());
    line("history-leaf", &head::history_leaf(7, 8, &RootHash(left)));
    line("history-node", &HistoryTree::node(&left, &right));
    line("history-empty", &HistoryTree::empty());
    line("log-leaf", &log_leaf(b"entry").0);
    line("log-node", &LogTree::node(&left, &right));
    line("log-empty", &LogTree::empty());
    let leaf = Leaf { kind: LeafKind::Equivocation, first_position: 1, received_at: 2, term: 3 };
    line("segment-leaf", &leaf.hash(b"signed", &[4; 64]));
    line("header-hash", crate::hash::header_hash(b"header").as_ref());
    line("text-digest", &text_digest(b"text"));
    line("root-successor", &root_successor(&left));
    line("last-seals", &crate::verify::last_seals_hash(&[(WORKSPACE, 3, ObjectHash(right))]));
    let member = MemberId([0xa1; 16]);
    line("member-key", &directory::key_commitment(ORIGIN, member, &[0x4b; 32]));
    line("directory-entry", &directory::associated_data(ORIGIN, member, 2));
    line("key-id", public(&key(GATEWAY)).id(Role::Gateway).as_ref());
    for context in [Context::Batch, Context::Head, Context::Statement, Context::Possession] {
        line(context.label(), &sign(&key(GATEWAY), context, b"message"));
    }
    line("checkpoint-hash", World::new().checkpoint().checkpoint.hash().as_ref());
    line("verifier-key log", verifier_key(ORIGIN, TYPE_LOG, public(&key(LOG))).as_bytes());
    line("verifier-key witness", verifier_key("witness.example", TYPE_COSIGNATURE, public(&key(WITNESS))).as_bytes());
    compare("hashes.txt", &out);
}

#[test]
fn format_md_shows_the_golden_directory_entry() {
    let text = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FORMAT.md")).unwrap();
    let member = MemberId([0xa1; 16]);
    let contents = directory_contents().swap_remove(0);
    assert_eq!(directory::parse_contents(&contents).unwrap().name, "Ada Lovelace");
    let commitment = directory::key_commitment(ORIGIN, member, &[0x4b; 32]);
    let parts = [&commitment[..], &directory::associated_data(ORIGIN, member, 2), &contents];
    let shown: String = parts.iter().map(|part| format!("    {}\n", hex(part))).collect();
    assert!(text.contains(&shown), "docs/FORMAT.md 5.4 should show\n{shown}");
    assert_ne!(directory::key_commitment(ORIGIN, MemberId([0xa2; 16]), &[0x4b; 32]), commitment);
    assert_ne!(directory::key_commitment("log.example/other", member, &[0x4b; 32]), commitment);
}

#[test]
fn a_changed_evidence_file_shows_nothing() {
    let world = World::new();
    let (bytes, policy) = (world.proof().to_bytes(), audit_policy());
    let whole = crate::evidence::check(&bytes, &policy).unwrap().unwrap();
    let mut rng = Rng::for_test("a_changed_evidence_file_shows_nothing");
    for _ in 0..400 {
        let mut other = bytes.clone();
        let at = rng.index(other.len());
        other[at] ^= 1 << rng.below(7);
        let shown = crate::evidence::check(&other, &policy).unwrap();
        // Cosignatures are not this check's concern: their line may be changed or of another witness.
        let cosignature = at + 170 > bytes.len();
        assert!(shown.is_err() || (cosignature && shown.as_ref() == Ok(&whole)), "byte {at}: {shown:?}");
    }
}

#[test]
fn an_evidence_file_has_nothing_that_is_not_read() {
    let mut proof = World::new().proof();
    proof.path = vec![[7; 32]; 64];
    assert_eq!(Proof::parse(&proof.to_bytes()).as_ref(), Ok(&proof));
    proof.path.push([7; 32]);
    assert!(Proof::parse(&proof.to_bytes()).is_err(), "a 65th hash");
    let text = String::from_utf8(World::new().proof().to_bytes()).unwrap();
    for index in ["+5", "05", "5 ", "", "-5", "18446744073709551616"] {
        let other = text.replacen("\nindex 5\n", &format!("\nindex {index}\n"), 1);
        assert!(Proof::parse(other.as_bytes()).is_err(), "{index:?}");
    }
    let doubled = text.replacen("\nindex", "\nextra AA==\nindex", 1);
    assert!(Proof::parse(doubled.as_bytes()).is_err());
}

#[test]
fn a_delegated_enrolment_is_possible_to_void() {
    let objects = workspace_statements();
    assert_eq!(objects.len(), 11);
    let mut chain = crate::statement::Chain::new(ORIGIN, Some(WORKSPACE));
    let mut roots = crate::testing::roots();
    for object in &objects {
        chain.apply(&crate::statement::Signed::parse(object).unwrap(), &mut roots).unwrap();
    }
    let gateway = chain.key(&key_id(GATEWAY, Role::Gateway)).unwrap();
    assert!(gateway.revoked && gateway.retired && chain.is_removed());
    assert_eq!(gateway.suspect_since, Some(0));
}
