//! Fuzzing on the stable toolchain: structure-aware mutation of the golden corpus over every parser of outside bytes.
//!
//! No input may panic or overflow, and whatever is accepted is written again as the same bytes. A fixed number of inputs in
//! the normal tests; `CUSTODY_FUZZ_SECONDS` for long runs, `CUSTODY_SEED` and `CUSTODY_ROUND` to resume or repeat one. What
//! fails is kept in `proto/testdata/crashes`, and is tried again first.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use prost::Message as _;

use crate::{
    batch::{Header, Numbering, Submitted},
    evidence::{self, Proof},
    forensic,
    golden_tests::{self, World},
    hash::object_hash,
    head::{SignedHead, includes_batch, is_consistent},
    id::{RootHash, WorkspaceId, hex, unhex},
    key::{PublicKey, public},
    log::{self, encode_bundle, parse_bundle, parse_claim},
    note::{Checkpoint, SignedCheckpoint, cosign, cosignature_time},
    policy::{Policy, fingerprint},
    record,
    segment::{self, Object, Seal, split_frame},
    statement::{Chain, Signed},
    strict::{self, table},
    testing::{
        AT, ROOT, Rng, WITNESS, WORKSPACE, key, ledger_chain, message, number, put_varint, reencode, roots,
        sign_statement, testdata, workspace_chain,
    },
    verify::{Known, parse_known},
    wire,
};

/// Changes `bytes` in one or a few places; `others` are there to be spliced in.
pub(crate) fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..=rng.below(3).min(rng.below(3)) {
        once(rng, bytes, others);
    }
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.push(rng.next() as u8);
        return;
    }
    let at = rng.index(bytes.len());
    match rng.below(14) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'"', b'0']),
        3 => bytes.truncate(at),
        4 => bytes.insert(at, rng.next() as u8),
        5 => drop(bytes.remove(at)),
        6 => {
            let other = if others.is_empty() { bytes.clone() } else { rng.pick(others).clone() };
            let from = rng.index(other.len().max(1)).min(other.len());
            let to = (from + rng.index(64)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        7 => {
            // A number, where one may stand.
            let mut varint = Vec::new();
            put_varint(rng.integer(u64::MAX), &mut varint);
            bytes.splice(at..at + 1, varint);
        }
        8 => bytes[at] = bytes[at].wrapping_add(if rng.one_in(2) { 1 } else { 255 }),
        // The same number, not minimal.
        9 => bytes.splice(at..at + 1, [bytes[at] | 0x80, 0]).for_each(drop),
        10 => {
            let end = (at + rng.index(40)).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => rearrange(rng, bytes),
    }
}

/// Spans of the fields at the top of a message, or of one message inside it.
fn spans(bytes: &[u8], start: usize) -> Vec<(usize, usize, Option<usize>)> {
    let mut out = Vec::new();
    let mut at = start;
    while at < bytes.len() {
        let begin = at;
        let Some(key) = varint(bytes, &mut at) else { break };
        let mut inside = None;
        match key & 7 {
            0 => drop(varint(bytes, &mut at)),
            2 => {
                let Some(length) = varint(bytes, &mut at) else { break };
                inside = Some(at);
                let Some(end) = usize::try_from(length).ok().and_then(|l| at.checked_add(l)) else { break };
                at = end;
            }
            _ => break,
        }
        if at > bytes.len() {
            break;
        }
        out.push((begin, at, inside));
    }
    out
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Swaps, doubles or drops whole fields, or changes a field inside and mends the length around it.
fn rearrange(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let fields = spans(bytes, 0);
    if fields.is_empty() {
        return;
    }
    let (from, to, inside) = *rng.pick(&fields);
    let field = bytes[from..to].to_vec();
    match (rng.below(4), inside) {
        (0, _) => drop(bytes.drain(from..to)),
        (1, _) => drop(bytes.splice(to..to, field)),
        (2, _) => {
            let (other, _, _) = *rng.pick(&fields);
            bytes.drain(from..to);
            let at = other.min(bytes.len());
            bytes.splice(at..at, field);
        }
        (_, Some(inside)) => {
            let mut content = bytes[inside..to].to_vec();
            if rng.one_in(2) {
                rearrange(rng, &mut content)
            } else {
                once(rng, &mut content, &[])
            }
            let mut at = from;
            varint(bytes, &mut at);
            let mut mended = bytes[from..at].to_vec();
            put_varint(content.len() as u64, &mut mended);
            mended.extend_from_slice(&content);
            bytes.splice(from..to, mended);
        }
        _ => {}
    }
}

/// Rounds of the normal tests: 6,000 inputs for each parser in each, fewer where one input is dear.
const ROUNDS: u64 = 5;

/// Gives bytes to a parser.
type Run = Box<dyn Fn(&[u8]) -> bool>;

/// A parser of outside bytes: whether it accepts them. Panics when it breaks its promise.
struct Target {
    name: String,
    run: Run,
    /// Where mutation begins.
    seeds: Vec<Vec<u8>>,
    /// How many times dearer than a walk along the table.
    cost: u64,
}

/// What is accepted as `name` is written again as the same bytes.
fn same(name: &str, bytes: &[u8]) -> bool {
    assert_eq!(reencode(message(name), bytes).as_deref(), Some(bytes), "{name} is not what it was read from");
    true
}

fn header(bytes: &[u8]) -> bool {
    let Ok(header) = Header::parse(bytes) else { return false };
    assert_eq!(header.encode(), bytes);
    let mut numbering = Numbering::default();
    drop(numbering.admit(&header));
    numbering.take(&header, crate::hash::header_hash(bytes));
    drop(numbering.admit(&header));
    same("BatchHeader", bytes)
}

fn submitted(bytes: &[u8]) -> bool {
    let Ok(batch) = Submitted::parse(Bytes::copy_from_slice(bytes)) else { return false };
    drop((batch.check_records(), batch.is_root_of_records(), batch.opened(), batch.header_hash()));
    assert_eq!(batch.header.record_count as usize, batch.records.len());
    same("SignedBatch", bytes)
}

fn record(bytes: &[u8]) -> bool {
    let Ok(kind) = record::check(bytes) else { return false };
    let _ = record::opened(bytes);
    let decoded = record::decode(bytes).expect("what is checked can be decoded");
    assert_eq!(record::encode(decoded.kind.expect("a kind")), bytes, "{kind:?}");
    true
}

fn signed_head(bytes: &[u8]) -> bool {
    let Ok(signed) = SignedHead::parse(bytes) else { return false };
    let outer: wire::SignedHead = strict::decode(&table::SIGNED_HEAD, bytes).unwrap();
    assert_eq!(signed.head.encode(), outer.head);
    same("SignedHead", bytes)
}

fn statement(bytes: &[u8]) -> bool {
    let Ok(signed) = Signed::parse(bytes) else { return false };
    for workspace in [None, Some(WORKSPACE)] {
        assert!(Chain::new("another origin", workspace).extended(&signed, &roots()).is_err());
    }
    let _ = signed.is_log_entry();
    assert_eq!(signed.statement.encode_to_vec(), signed.statement_bytes);
    same("SignedStatement", bytes)
}

/// The root signs whatever is in strict form: the chain takes or refuses it.
fn chain(bytes: &[u8]) -> bool {
    let Ok(said) = strict::decode::<wire::Statement>(&table::STATEMENT, bytes) else { return false };
    let signed = Signed::parse(&sign_statement(&said, ROOT)).expect("strict form");
    let chain = if said.workspace.is_some() { workspace_chain().chain } else { ledger_chain().chain };
    let Ok((next, roots)) = chain.extended(&signed, &roots()) else { return false };
    assert_eq!((next.head().count, next.head().hash), (chain.head().count + 1, signed.hash));
    assert!(next.extended(&signed, &roots).is_err(), "a statement is taken once");
    true
}

fn object(bytes: &[u8]) -> bool {
    let Ok(object) = Object::parse(Bytes::copy_from_slice(bytes)) else { return false };
    let header = wire::SegmentHeader {
        version: 1,
        origin: object.header.origin.clone(),
        workspace: object.header.workspace.into(),
        segment: object.header.segment,
        incarnation: object.header.incarnation,
        first_position: object.header.first_position,
        ledger_chain: Some(object.header.ledger_chain.to_wire()),
        workspace_chain: Some(object.header.workspace_chain.to_wire()),
    }
    .encode_to_vec();
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap().to_be_bytes();
    let mut again = [&b"CUSTODY1"[..], &length(&header), &header].concat();
    for frame in &object.frames {
        again.extend_from_slice(object.frame(frame).expect("a frame lies within its object"));
    }
    let index = wire::SegmentIndex { version: 1, frames: object.frames.clone() }.encode_to_vec();
    let roster = &object.roster_bytes;
    assert_eq!(object.roster.encode_to_vec(), *roster);
    again.extend_from_slice(&[&index, &roster[..], &length(&index), &length(roster), b"1YDOTSUC"].concat());
    assert_eq!(again, bytes, "a segment object is not what it was read from");
    true
}

fn frame(bytes: &[u8]) -> bool {
    let Ok(entries) = split_frame(Bytes::copy_from_slice(bytes)) else { return false };
    let whole = |entry: &Bytes| [&u32::try_from(entry.len()).unwrap().to_be_bytes()[..], entry].concat();
    assert_eq!(entries.iter().flat_map(whole).collect::<Vec<u8>>(), bytes);
    true
}

fn segment_entry(bytes: &[u8]) -> bool {
    let Ok(entry) = segment::Entry::parse(Bytes::copy_from_slice(bytes)) else { return false };
    let _ = (entry.leaf_hash(), entry.records());
    same("SegmentEntry", bytes)
}

fn log_entry(bytes: &[u8]) -> bool {
    log::Entry::parse(bytes).is_ok() && same("LogEntry", bytes)
}

/// Its first byte says how many entries there should be.
fn bundle(bytes: &[u8]) -> bool {
    let Some((width, bundle)) = bytes.split_first() else { return false };
    let Ok(entries) = parse_bundle(Bytes::copy_from_slice(bundle), u64::from(*width)) else { return false };
    assert_eq!(entries.len(), usize::from(*width));
    assert_eq!(encode_bundle(&entries), bundle);
    true
}

fn checkpoint(bytes: &[u8]) -> bool {
    let Ok(note) = SignedCheckpoint::parse(bytes) else { return false };
    assert_eq!(note.to_bytes(), bytes, "{}", String::from_utf8_lossy(bytes));
    true
}

fn proof(bytes: &[u8]) -> bool {
    drop(evidence::check(bytes, &golden_tests::audit_policy()).expect("a usable policy"));
    let Ok(proof) = Proof::parse(bytes) else { return false };
    assert_eq!(proof.to_bytes(), bytes, "an evidence file is not what it was read from");
    true
}

/// What stands in an object of cosignatures, put after the checkpoint that it is for.
fn cosignatures(checkpoint: &Checkpoint, bytes: &[u8]) -> bool {
    let note = [checkpoint.text().as_bytes(), b"\n", bytes].concat();
    let Ok(signed) = SignedCheckpoint::parse(&note) else { return false };
    assert_eq!(signed.to_bytes(), note, "{}", String::from_utf8_lossy(&note));
    let witness = public(&key(WITNESS));
    // Lines of other names and keys are passed over; what is left is not signed by chance.
    let time = |line| cosignature_time(&signed.checkpoint, line, "witness.example", witness);
    let signed_by = signed.signatures.iter().filter_map(time);
    signed_by.inspect(|time| assert_eq!(*time, AT / 1_000_000)).count() > 0
}

/// A known file is a line or a note, and one newline at most is all that may be left out of it.
fn known(bytes: &[u8]) -> bool {
    let Ok(known) = parse_known(bytes) else { return false };
    let (label, read) = match &known {
        Known::Checkpoint(note) => {
            assert_eq!(note.to_bytes(), bytes);
            return true;
        }
        Known::Head(head) => ("custody/v1/head ", head),
        Known::Receipt(head, _) => ("custody/v1/receipt ", head),
    };
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let said = STANDARD.decode(line.strip_prefix(label.as_bytes()).expect("its label")).expect("base64");
    assert_eq!([label.as_bytes(), STANDARD.encode(&said).as_bytes()].concat(), line);
    if let Known::Receipt(_, batches) = &known {
        let receipt: wire::Receipt = strict::decode(&table::RECEIPT, &said).unwrap();
        assert_eq!((&receipt.batches, SignedHead::parse(&receipt.signed_head).as_ref()), (batches, Ok(&**read)));
        return same("Receipt", &said);
    }
    assert_eq!(SignedHead::parse(&said).as_ref(), Ok(&**read));
    same("SignedHead", &said)
}

/// What is ours in an evidence file, within one that is otherwise right.
fn evidence_message(proof: &Proof, bytes: &[u8]) -> bool {
    let text = String::from_utf8(proof.to_bytes()).unwrap();
    let ours = STANDARD.encode(proof.evidence.encode_to_vec());
    let file = text.replace(&ours, &STANDARD.encode(bytes)).into_bytes();
    let shown = evidence::check(&file, &golden_tests::audit_policy()).expect("a usable policy");
    if let Ok(shown) = &shown {
        let said: wire::Evidence = strict::decode(&table::EVIDENCE, bytes).unwrap();
        assert_eq!(shown.records.len() as u64, said.record_count);
        let positions = said.first_position..said.first_position + said.record_count;
        assert!(shown.records.iter().map(|record| record.position).eq(positions));
        let golden = evidence::check(&proof.to_bytes(), &golden_tests::audit_policy()).unwrap().unwrap();
        assert!(shown.records.iter().all(|record| golden.records.contains(record)), "a record from nowhere");
    }
    shown.is_ok()
}

fn audit_policy(bytes: &[u8]) -> bool {
    let Ok(policy) = Policy::parse(bytes) else { return false };
    let again = serde_json::to_vec(&policy).unwrap();
    assert_eq!(Policy::parse(&again), Ok(policy));
    assert_eq!(fingerprint(bytes).len(), 79);
    true
}

/// What is kept of a receipt is that receipt again.
fn forensic_receipt(bytes: &[u8]) -> bool {
    let Ok(receipt) = forensic::Receipt::parse(bytes) else { return false };
    assert_eq!(forensic::Receipt::parse(receipt.whole()).as_ref(), Ok(&receipt));
    let kept = receipt.to_wire(true);
    let withheld = forensic::standing(&kept) == forensic::Standing::Withheld;
    assert_eq!(withheld, receipt.whole().len() > forensic::WHOLE_BYTES_MAX);
    true
}

fn hexadecimal(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Some(read) = unhex(text) else { return false };
    assert_eq!(hex(&read), text);
    assert_eq!(WorkspaceId::from_hex(text).is_some(), read.len() == 16);
    true
}

fn public_key(bytes: &[u8]) -> bool {
    let Some(key) = PublicKey::new(bytes) else { return false };
    assert_eq!(key.to_bytes(), bytes);
    true
}

/// Proofs of a receipt, whatever they hold, between heads that do not agree.
fn receipt(world: &World, bytes: &[u8]) -> bool {
    let Some(receipt) = crate::verify::parse_receipt(bytes) else { return false };
    let mut other = world.head.clone();
    other.root = RootHash([0x99; 32]);
    if let Some(consistency) = &receipt.consistency {
        assert!(!is_consistent(&other, &world.head, consistency));
    }
    for inclusion in &receipt.batches {
        assert!(!includes_batch(&other, inclusion, b"no header", &[0; 64]));
    }
    same("Receipt", bytes)
}

fn targets() -> Vec<Target> {
    let golden = golden_tests::all();
    let lines = |file: &str| -> Vec<Vec<u8>> {
        golden.iter().filter(|golden| golden.file.starts_with(file)).flat_map(|golden| golden.lines.clone()).collect()
    };
    let prefixed = |label: &str, file| -> Vec<Vec<u8>> {
        lines(file).iter().map(|line| format!("{label} {}", STANDARD.encode(line)).into_bytes()).collect()
    };
    let bundles = lines("log-bundle").into_iter().map(|bundle| [&[7][..], &bundle].concat()).collect();
    let heads = prefixed("custody/v1/head", "signed-head");
    let ended =
        prefixed("custody/v1/head", "signed-head").into_iter().map(|line| [&line[..], b"\n"].concat()).collect();
    let known_files = [heads, ended, prefixed("custody/v1/receipt", "receipt"), lines("checkpoint")].concat();
    let said = |object: &Vec<u8>| Signed::parse(object).unwrap().statement_bytes.to_vec();
    let statements = lines("signed-statement").iter().map(said).collect();
    let frames = lines("segment-entry").iter().map(|e| [&(e.len() as u32).to_be_bytes()[..], e].concat()).collect();
    let target = |name: &str, cost, seeds: Vec<Vec<u8>>, run: Run| {
        assert!(!seeds.is_empty(), "{name}");
        Target { name: name.into(), run, seeds, cost }
    };
    let world = World::new();
    let proof_of_world = world.proof();
    let checkpoint_of_world = world.checkpoint().checkpoint;
    let cosigned = cosign(&checkpoint_of_world, "witness.example", &key(WITNESS), AT / 1_000_000).text().into_bytes();
    let keys = (1..=10).map(|byte| crate::testing::public_bytes(byte).to_vec()).collect();
    let mut targets = vec![
        target("header", 1, lines("batch-header"), Box::new(header)),
        target("batch", 2, lines("signed-batch"), Box::new(submitted)),
        target("record", 1, lines("record-"), Box::new(record)),
        target("forensic-receipt", 1, forensic::tests::texts(), Box::new(forensic_receipt)),
        target("head", 1, lines("signed-head"), Box::new(signed_head)),
        target("statement", 2, lines("signed-statement"), Box::new(statement)),
        target("chain", 60, statements, Box::new(chain)),
        target("object", 2, lines("segment-object"), Box::new(object)),
        target("frame", 1, frames, Box::new(frame)),
        target("segment-entry", 2, lines("segment-entry"), Box::new(segment_entry)),
        target("log-entry", 1, lines("log-entry"), Box::new(log_entry)),
        target("bundle", 1, bundles, Box::new(bundle)),
        target("checkpoint", 1, lines("checkpoint"), Box::new(checkpoint)),
        target("proof", 40, lines("evidence-file"), Box::new(proof)),
        target("evidence", 60, lines("evidence"), Box::new(move |b| evidence_message(&proof_of_world, b))),
        target("policy", 10, lines("policy"), Box::new(audit_policy)),
        target("cosignatures", 20, vec![cosigned], Box::new(move |b| cosignatures(&checkpoint_of_world, b))),
        target("known", 2, known_files, Box::new(known)),
        target("claim", 1, lines("claim"), Box::new(|bytes| parse_claim(bytes).is_ok() && same("Claim", bytes))),
        target("seal", 1, lines("seal"), Box::new(|b| Seal::parse(b).is_ok_and(|seal| seal.encode() == b))),
        target("receipt", 2, lines("receipt"), Box::new(move |bytes| receipt(&world, bytes))),
        target("hex", 1, vec![hex(&[0xa5; 16]).into_bytes()], Box::new(hexadecimal)),
        target("public-key", 10, keys, Box::new(public_key)),
    ];
    let mut rng = Rng::for_test("strict corpus");
    for of in table::ALL {
        let made = (0..8).map(|_| crate::testing::generate(&mut rng, of));
        let of_golden =
            golden.iter().filter(|golden| golden.message == of.name).flat_map(|golden| golden.lines.clone());
        let seeds = of_golden.chain(made).collect();
        let run = move |bytes: &[u8]| strict::check(of, bytes).is_ok() && same(of.name, bytes);
        targets.push(target(&format!("strict-{}", of.name), 1, seeds, Box::new(run)));
    }
    targets
}

/// Runs one input; what fails is kept.
fn try_one(target: &Target, bytes: &[u8]) -> bool {
    match catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))) {
        Ok(accepted) => accepted,
        Err(panic) => {
            let hash = object_hash(bytes).to_string();
            let path = testdata("crashes").join(format!("{}-{}", target.name, &hash[..16]));
            #[expect(clippy::disallowed_methods, reason = "evidence of a failed test, kept for the next run")]
            fs::write(&path, bytes).unwrap();
            println!("kept as {}", path.display());
            resume_unwind(panic)
        }
    }
}

#[test]
fn every_parser_withstands_mutated_golden_bytes() {
    let targets = targets();
    let corpus: Vec<Vec<u8>> = targets.iter().flat_map(|t| &t.seeds).filter(|s| s.len() < 2_000).cloned().collect();
    for target in &targets {
        let accepted = target.seeds.iter().filter(|seed| try_one(target, seed)).count();
        assert!(accepted > 0, "{}: no seed is accepted", target.name);
    }
    let seed = Rng::for_test("every_parser_withstands_mutated_golden_bytes").next();
    let long = number("CUSTODY_FUZZ_SECONDS").map(Duration::from_secs);
    let (begun, mut round) = (Instant::now(), number("CUSTODY_ROUND").unwrap_or(0));
    loop {
        for target in &targets {
            // The whole name counts: two targets with one first letter would else be given the same dice.
            let name = u64::from_be_bytes(*object_hash(target.name.as_bytes()).0.first_chunk().unwrap());
            let mut rng = Rng::new(seed ^ round.wrapping_mul(0x9E37_79B9) ^ name);
            let mut accepted = 0_u64;
            let count = (6_000 / target.cost).max(30);
            for _ in 0..count {
                let mut bytes = rng.pick(&target.seeds).clone();
                mutate(&mut rng, &mut bytes, &corpus);
                accepted += u64::from(try_one(target, &bytes));
            }
            if round.is_multiple_of(100) {
                println!("round {round} {}: {accepted} of {count} accepted", target.name);
            }
        }
        round += 1;
        if long.map_or(round >= ROUNDS, |long| begun.elapsed() >= long) {
            println!("rounds up to {round} done; CUSTODY_ROUND={round} goes on from here");
            return;
        }
    }
}

#[test]
fn what_once_crashed_does_not_any_more() {
    let targets = targets();
    for found in fs::read_dir(testdata("crashes")).unwrap() {
        let path = found.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let Some((of, _)) = name.rsplit_once('-') else { continue };
        let target =
            targets.iter().find(|target| target.name == of).unwrap_or_else(|| panic!("{name}: no such parser"));
        (target.run)(&fs::read(&path).unwrap());
    }
}
