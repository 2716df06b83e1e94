//! Shape of headers, the tree under a signature, and the numbering of gateways against a naive model.

use super::*;
use crate::{
    key::public,
    testing::{AT, EPOCH, GATEWAY, GATEWAY_ID, LOG, ORIGIN, RECORD, Rng, WORKSPACE, key, key_id, number},
    wire::{Role, record::Kind},
};

fn opening() -> Header {
    Header {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        gateway: GATEWAY_ID,
        key_id: key_id(GATEWAY, Role::Gateway),
        epoch: EPOCH,
        batch_number: 0,
        first_record: 0,
        record_count: 2,
        previous: HeaderHash::ZERO,
        opening_reason: Some(OpeningReason::First),
        batch_root: RootHash([3; 32]),
        last_head: Bytes::new(),
        dropped: 0,
        drop_reason: None,
        heartbeat: false,
        close: false,
        created_at: AT,
    }
}

fn later() -> Header {
    Header { batch_number: 1, first_record: 2, previous: HeaderHash([4; 32]), opening_reason: None, ..opening() }
}

fn fits(header: &Header) -> bool {
    let bytes = header.encode();
    match Header::parse(&bytes) {
        Ok(read) => {
            assert_eq!((&read, read.encode()), (header, bytes));
            true
        }
        Err(_) => false,
    }
}

/// A change to a header, and whether it is still in shape.
type Case = (&'static str, fn(&mut Header), bool);

fn check_cases(base: &Header, cases: &[Case]) {
    assert!(fits(base));
    for (name, change, good) in cases {
        let mut header = base.clone();
        change(&mut header);
        assert_eq!(fits(&header), *good, "{name}");
    }
}

#[test]
fn an_opening_header_has_its_shape() {
    check_cases(
        &opening(),
        &[
            ("each reason", |h| h.opening_reason = Some(OpeningReason::StateLost), true),
            ("each reason", |h| h.opening_reason = Some(OpeningReason::Rewound), true),
            ("no reason and no header before", |h| h.opening_reason = None, false),
            ("a reason and a header before", |h| h.previous = HeaderHash([1; 32]), false),
            ("a header before", |h| (h.opening_reason, h.previous) = (None, HeaderHash([1; 32])), true),
            ("no record of the writer", |h| h.record_count = 0, false),
            ("no record, as a heartbeat", |h| (h.record_count, h.heartbeat) = (0, true), false),
            ("numbers that begin at 5", |h| h.first_record = 5, false),
            ("drops before the first", |h| (h.first_record, h.dropped, h.drop_reason) = (5, 5, DROPPED), true),
            ("drops that took no number", |h| (h.dropped, h.drop_reason) = (5, DROPPED), false),
            ("opens and closes", |h| h.close = true, true),
            ("greatest number of records", |h| h.record_count = 4_096, true),
            ("one more", |h| h.record_count = 4_097, false),
        ],
    );
}

const DROPPED: Option<DropReason> = Some(DropReason::SpoolFull);

#[test]
fn a_later_header_has_its_shape() {
    check_cases(
        &later(),
        &[
            ("no header before", |h| h.previous = HeaderHash::ZERO, false),
            ("a reason to open", |h| h.opening_reason = Some(OpeningReason::Rewound), false),
            ("an empty batch is a heartbeat", |h| h.record_count = 0, false),
            ("a heartbeat", |h| (h.record_count, h.heartbeat) = (0, true), true),
            ("an empty batch may close", |h| (h.record_count, h.close) = (0, true), true),
            ("a heartbeat does not close", |h| (h.record_count, h.heartbeat, h.close) = (0, true, true), false),
            ("a heartbeat with records", |h| h.heartbeat = true, false),
            ("records and close", |h| h.close = true, true),
            ("drops without a reason", |h| h.dropped = 1, false),
            ("a reason without drops", |h| h.drop_reason = DROPPED, false),
            ("drops", |h| (h.dropped, h.drop_reason) = (2, DROPPED), true),
            ("more drops than numbers", |h| (h.dropped, h.drop_reason) = (3, DROPPED), false),
            ("the last numbers", |h| h.first_record = u64::MAX - 2, true),
            ("numbers past the last", |h| h.first_record = u64::MAX - 1, false),
            ("the last batch number", |h| h.batch_number = u64::MAX - 1, true),
            ("a batch number past it", |h| h.batch_number = u64::MAX, false),
            ("a head of the greatest length", |h| h.last_head = vec![1; 1_024].into(), true),
            ("a longer one", |h| h.last_head = vec![1; 1_025].into(), false),
        ],
    );
}

#[test]
fn the_open_flag_is_that_of_batch_0() {
    for (header, open) in [(opening(), false), (later(), true)] {
        let mut raw = wire::BatchHeader::decode(header.encode().as_slice()).unwrap();
        assert_eq!(raw.open, !open);
        raw.open = open;
        assert!(Header::parse(&raw.encode_to_vec()).is_err());
    }
}

fn records(count: usize) -> Vec<Vec<u8>> {
    let call =
        |number| wire::Call { call_number: number, phase: 1, mode: 1, decision: 1, outcome: 1, ..Default::default() };
    (0..count as u64).map(|number| record::encode(Kind::Call(call(number)))).collect()
}

const SEED: [u8; 32] = [5; 32];

fn signed(count: usize) -> (Header, Vec<u8>) {
    let (mut header, records) = (opening(), records(count));
    seal_header(&mut header, &SEED, &records);
    let bytes = encode_signed(&header.encode(), &key(GATEWAY), &SEED, &records);
    (header, bytes)
}

#[test]
fn a_signed_batch_comes_back_as_it_was_made() {
    let (header, bytes) = signed(3);
    let batch = Submitted::parse(bytes.clone().into()).unwrap();
    assert_eq!((&batch.header, &batch.bytes[..], batch.seed), (&header, &bytes[..], SEED));
    assert!(batch.is_root_of_records() && batch.is_signed_by(public(&key(GATEWAY))));
    assert!(!batch.is_signed_by(public(&key(LOG))));
    assert_eq!(batch.check_records(), Ok(vec![RecordKind::Call; 3]));
    assert_eq!(batch.header_hash(), header_hash(&header.encode()));
    assert!(batch.opened().is_none(), "a call says nothing of its writer");
}

/// The batch of [`signed`], taken apart, changed and put together.
fn changed(change: impl FnOnce(&mut wire::SignedBatch)) -> Result<Submitted, NotStrict> {
    let mut raw = wire::SignedBatch::decode(signed(3).1.as_slice()).unwrap();
    change(&mut raw);
    Submitted::parse(raw.encode_to_vec().into())
}

#[test]
fn a_changed_batch_is_refused_by_form_signature_or_root() {
    let root = |change: fn(&mut wire::SignedBatch)| changed(change).unwrap().is_root_of_records();
    assert!(root(|_| ()));
    assert!(!root(|raw| raw.records.swap(0, 1)));
    assert!(!root(|raw| raw.seed = vec![6; 32].into()));
    assert!(!root(|raw| raw.records[2] = raw.records[1].clone()));
    assert!(changed(|raw| drop(raw.records.pop())).is_err());
    assert!(changed(|raw| raw.records.push(vec![1].into())).is_err());
    assert!(changed(|raw| raw.seed = vec![6; 31].into()).is_err());
    let other = changed(|raw| raw.header = later_with_three().encode().into()).unwrap();
    assert!(!other.is_signed_by(public(&key(GATEWAY))));
    let bad = changed(|raw| raw.records[1] = vec![9, 9].into()).unwrap();
    assert!(bad.check_records().is_err() && !bad.is_root_of_records());
}

fn later_with_three() -> Header {
    Header { record_count: 3, ..later() }
}

#[test]
fn a_batch_has_at_most_one_mebibyte() {
    let of_length = |length: usize| {
        let mut raw = wire::SignedBatch::decode(signed(1).1.as_slice()).unwrap();
        let mut header = opening();
        header.record_count = 17;
        raw.header = header.encode().into();
        raw.records = vec![vec![1_u8; 61_600].into(); 17];
        let missing = length - raw.encode_to_vec().len();
        raw.records[16] = vec![1_u8; 61_600 + missing].into();
        assert_eq!(raw.encoded_len(), length);
        Submitted::parse(raw.encode_to_vec().into())
    };
    assert!(of_length(BATCH_BYTES_MAX - 1).is_ok() && of_length(BATCH_BYTES_MAX).is_ok());
    assert!(of_length(BATCH_BYTES_MAX + 1).is_err());
}

#[test]
fn leaves_hide_their_siblings_and_bind_their_records() {
    let leaves = record_leaves(&SEED, &[b"same", b"same"]);
    assert_ne!(leaves[0], leaves[1], "equal records have leaves of their own");
    assert_ne!(leaves, record_leaves(&[6; 32], &[b"same", b"same"]), "another seed, other leaves");
    // The length before a record keeps it apart from its nonce.
    let mut scratch = Vec::new();
    assert_ne!(record_leaf(&[0; 32], b"ab", &mut scratch), record_leaf(&[0; 32], b"a", &mut scratch));
    assert_eq!(empty_root(), merkle::root_of::<BatchTree>(&[]));
}

#[test]
fn the_record_of_the_writer_is_found_in_first_place() {
    let said = wire::Opened { product: "p".into(), clock: 1, class: 1, ..Default::default() };
    let event = wire::GatewayEvent { at: AT, event: Some(wire::gateway_event::Event::Opened(said)) };
    let opened = record::encode(Kind::GatewayEvent(event));
    let found = |mut header: Header, records: Vec<Vec<u8>>| {
        seal_header(&mut header, &SEED, &records);
        let bytes = encode_signed(&header.encode(), &key(RECORD), &SEED, &records);
        Submitted::parse(bytes.into()).unwrap().opened().is_some()
    };
    let call = records(1).remove(0);
    assert!(found(opening(), vec![opened.clone(), call.clone()]));
    assert!(!found(opening(), vec![call.clone(), opened.clone()]));
    assert!(!found(later(), vec![opened, call]));
}

/// What a gateway did, kept in the simplest way there is: all its headers in order.
#[derive(Default)]
struct Model {
    taken: Vec<(Header, HeaderHash)>,
}

impl Model {
    /// Whether `header` may be next, from the whole history.
    fn admits(&self, header: &Header) -> bool {
        let of_epoch: Vec<_> = self.taken.iter().filter(|(h, _)| h.epoch == header.epoch).collect();
        let Some((last, hash)) = of_epoch.last() else {
            let opened_last = self.taken.iter().rev().find(|(h, _)| h.batch_number == 0).map(|(h, _)| h.epoch);
            let end = self.taken.iter().rev().find(|(h, _)| Some(h.epoch) == opened_last).map(|(_, hash)| *hash);
            let continues = match header.opening_reason {
                None => end == Some(header.previous),
                Some(OpeningReason::First) => end.is_none(),
                Some(_) => true,
            };
            return header.batch_number == 0 && continues;
        };
        let newest = self.taken.iter().rev().find(|(h, _)| h.batch_number == 0).map(|(h, _)| h.epoch);
        !last.close
            && newest == Some(header.epoch)
            && header.batch_number == last.batch_number + 1
            && header.key_id == last.key_id
            && header.previous == *hash
            && header.first_record == last.first_record + u64::from(last.record_count) + header.dropped
    }
}

/// A header that mostly follows what is there.
fn next_header(rng: &mut Rng, model: &Model) -> Header {
    let epoch = Epoch([rng.below(4) as u8; 16]);
    let last = model.taken.iter().rev().find(|(h, _)| h.epoch == epoch);
    let dropped = if rng.one_in(4) { 1 + rng.below(3) } else { 0 };
    let mut header = match last {
        Some((before, hash)) => Header {
            epoch,
            batch_number: before.batch_number + 1,
            first_record: before.next_record() + dropped,
            previous: *hash,
            opening_reason: None,
            ..opening()
        },
        None => {
            let reason = *rng.pick(&[OpeningReason::First, OpeningReason::StateLost, OpeningReason::Rewound]);
            let end = model.taken.last().map(|(_, hash)| *hash).filter(|_| rng.one_in(2));
            Header {
                epoch,
                first_record: dropped,
                previous: end.unwrap_or(HeaderHash::ZERO),
                opening_reason: end.is_none().then_some(reason),
                ..opening()
            }
        }
    };
    (header.dropped, header.drop_reason) = (dropped, (dropped > 0).then_some(DropReason::Crashed));
    header.record_count = 1 + rng.below(4) as u32;
    header.close = rng.one_in(12);
    header.created_at = AT + rng.below(1_000);
    match rng.below(24) {
        0 => header.batch_number += 1 + rng.below(2),
        1 => header.batch_number = header.batch_number.saturating_sub(1),
        2 => header.first_record += 1,
        3 => header.previous = HeaderHash([8; 32]),
        4 => header.key_id = KeyId([8; 32]),
        5 => header.epoch = Epoch([rng.below(5) as u8; 16]),
        _ => {}
    }
    header
}

#[test]
fn numbering_agrees_with_a_model_that_keeps_everything() {
    let mut rng = Rng::for_test("numbering_agrees_with_a_model_that_keeps_everything");
    let (mut admitted, mut refused) = (0, 0);
    for _ in 0..number("CUSTODY_ROUNDS").unwrap_or(300) {
        let (mut numbering, mut model) = (Numbering::default(), Model::default());
        for _ in 0..40 {
            let header = next_header(&mut rng, &model);
            if Header::parse(&header.encode()).is_err() {
                continue;
            }
            let verdict = numbering.admit(&header);
            assert_eq!(verdict.is_ok(), model.admits(&header), "{verdict:?}: {header:?}");
            if verdict.is_ok() {
                let hash = header_hash(&header.encode());
                numbering.take(&header, hash);
                assert_eq!(numbering.admit(&header), Err(NotNext::Taken), "a batch is taken once");
                model.taken.push((header, hash));
                admitted += 1;
            } else {
                refused += 1;
            }
        }
        no_number_is_used_twice(&model);
    }
    println!("{admitted} admitted, {refused} refused");
    assert!(admitted > refused / 4 && refused > admitted / 20);
}

/// Within an epoch the records and the drops fill the numbers without a gap.
fn no_number_is_used_twice(model: &Model) {
    let mut next: BTreeMap<Epoch, u64> = BTreeMap::new();
    for (header, _) in &model.taken {
        let expected = next.entry(header.epoch).or_insert(0);
        assert_eq!(header.first_record, *expected + header.dropped);
        *expected = header.next_record();
    }
}

#[test]
fn what_does_not_follow_is_named() {
    let (mut numbering, first) = (Numbering::default(), opening());
    assert_eq!(numbering.admit(&later()), Err(NotNext::UnknownEpoch));
    let hash = header_hash(&first.encode());
    numbering.take(&first, hash);
    let next = Header { previous: hash, ..later() };
    assert_eq!(numbering.admit(&next), Ok(()));
    assert_eq!(numbering.admit(&Header { batch_number: 3, ..next.clone() }), Err(NotNext::Gap { expected: 1 }));
    assert_eq!(numbering.admit(&Header { batch_number: 0, ..next.clone() }), Err(NotNext::Taken));
    let broken = |header: Header| matches!(numbering.admit(&header), Err(NotNext::Broken(_)));
    assert!(broken(Header { key_id: KeyId([1; 32]), ..next.clone() }));
    assert!(broken(Header { previous: HeaderHash([1; 32]), ..next.clone() }));
    assert!(broken(Header { first_record: 3, ..next.clone() }));
    assert!(broken(Header { epoch: Epoch([9; 16]), ..first.clone() }), "a second first epoch");
    numbering.take(&Header { close: true, ..next.clone() }, HeaderHash([6; 32]));
    assert_eq!(numbering.admit(&Header { batch_number: 2, ..next }), Err(NotNext::Closed));
    let continuing =
        Header { epoch: Epoch([9; 16]), opening_reason: None, previous: HeaderHash([6; 32]), ..first.clone() };
    assert_eq!(numbering.admit(&continuing), Ok(()));
    // A past that is not known lets a stream begin anywhere, once.
    let mut unknown = Numbering { unknown_past: true, ..Numbering::default() };
    let middle = Header { batch_number: 41, first_record: 900, ..later() };
    assert_eq!(unknown.admit(&middle), Ok(()));
    unknown.take(&middle, HeaderHash([5; 32]));
    assert_eq!(unknown.admit(&Header { batch_number: 43, ..middle.clone() }), Err(NotNext::Gap { expected: 42 }));
    // What was seen in its middle is what a new epoch must continue, and ends with it, whether or not it was closed.
    let next = |previous| Header { epoch: Epoch([9; 16]), opening_reason: None, previous, ..opening() };
    assert!(matches!(unknown.admit(&next(HeaderHash([6; 32]))), Err(NotNext::Broken(_))));
    assert_eq!(unknown.admit(&next(HeaderHash([5; 32]))), Ok(()));
    unknown.take(&next(HeaderHash([5; 32])), HeaderHash([7; 32]));
    assert!(unknown.epochs[&middle.epoch].closed);
    // Once the open epochs are known, one may still continue what was closed before the run, and nothing goes on in its middle.
    let told = Numbering { unknown_beginning: true, ..Numbering::default() };
    assert_eq!(told.admit(&next(HeaderHash([6; 32]))), Ok(()));
    assert_eq!(told.admit(&middle), Err(NotNext::UnknownEpoch));
    assert!(matches!(Numbering::default().admit(&next(HeaderHash([6; 32]))), Err(NotNext::Broken(_))));
}
