//! Every part of a receipt is changed once, and refused; what contradicts an earlier signed word is a fork.

use custody::{
    batch::{encode_signed, seal_header},
    id::{GatewayId, HeaderHash},
};
use prost::Message as _;

use super::*;
use crate::{
    batcher::{Place, Saying, header},
    testing::ledger::Ledger,
};

const GATEWAY: GatewayId = GatewayId([9; 16]);

struct Story {
    ledger: Ledger,
    checker: Checker,
    key: ed25519_dalek::SigningKey,
    place: Place,
    sent: Vec<(Epoch, u64, Sent)>,
}

impl Story {
    fn new() -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
        let ledger = Ledger::new(GATEWAY, &key);
        let mut checker = Checker::new(ledger.who(GATEWAY), ledger.roots());
        for statement in ledger.ledger_statements.iter().chain(&ledger.workspace_statements) {
            assert_eq!(checker.statement(statement), Ok(true));
            assert_eq!(checker.statement(statement), Ok(false), "twice is once");
        }
        let place = Place::opening(
            Epoch([1; 16]),
            crate::key::key_id(&key),
            HeaderHash::ZERO,
            Some(wire::OpeningReason::First),
        );
        Self { ledger, checker, key, place, sent: Vec::new() }
    }

    fn send(&mut self) -> (Epoch, u64) {
        let records = [Bytes::from_static(b"a record")];
        let saying = Saying {
            last_head: self.checker.last_head(),
            drop_reason: wire::DropReason::SpoolFull,
            close: false,
            created_at: 1,
        };
        let who = self.ledger.who(GATEWAY);
        let mut header = header(&who, &self.place, self.place.next_record, 1, saying);
        seal_header(&mut header, &[0; 32], &records);
        let bytes = header.encode();
        self.place = self.place.after(&header, custody::hash::header_hash(&bytes));
        let batch = Bytes::from(encode_signed(&bytes, &self.key, &[0; 32], &records));
        let raw = wire::SignedBatch::decode(batch.clone()).unwrap();
        self.sent.push((header.epoch, header.batch_number, Sent { header: raw.header, signature: raw.signature }));
        self.ledger.append(batch).unwrap();
        (header.epoch, header.batch_number)
    }

    fn check(&mut self, receipt: &wire::Receipt) -> Result<Accepted, Refusal> {
        let sent = self.sent.clone();
        self.checker.receipt(&receipt.encode_to_vec().into(), |epoch, number| {
            sent.iter().find(|(e, n, _)| (*e, *n) == (epoch, number)).map(|(_, _, sent)| sent.clone())
        })
    }

    fn accept(&mut self, names: &[(Epoch, u64)]) -> Accepted {
        let receipt = self.ledger.receipt(&self.checker.last_head(), names);
        self.check(&receipt).unwrap()
    }

    fn archived(&mut self, receipt: &wire::ArchivedReceipt) -> Result<u64, Refusal> {
        self.checker.archived(&receipt.encode_to_vec().into())
    }
}

fn refuses(result: &Result<Accepted, Refusal>, why: &str) {
    match result {
        Err(Refusal::Worthless(text)) => assert!(text.contains(why), "{text:?} instead of {why:?}"),
        other => panic!("{other:?} instead of {why:?}"),
    }
}

#[test]
fn receipts_are_accepted_within_and_across_segments() {
    let mut story = Story::new();
    let first = story.send();
    assert_eq!(story.accept(&[first]).durable, vec![Durable { epoch: first.0, number: 0, segment: 0 }]);
    let (second, third) = (story.send(), story.send());
    assert_eq!(story.accept(&[second, third]).durable.len(), 2);
    story.ledger.cut();
    let fourth = story.send();
    // The batches of the segment before as well, through the history.
    let durable = story.accept(&[third, fourth]).durable;
    assert_eq!(durable.iter().map(|batch| batch.segment).collect::<Vec<_>>(), vec![0, 1]);
    for _ in 0..5 {
        story.ledger.cut();
    }
    story.accept(&[]);
    assert_eq!(story.archived(&story.ledger.archived(0)), Ok(0));
    assert_eq!(story.archived(&story.ledger.archived(3)), Ok(3));
}

#[test]
fn every_changed_part_of_a_receipt_is_refused() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    story.send();
    story.ledger.cut();
    let name = story.send();
    let (before, good) = (story.checker.clone(), story.ledger.receipt(&story.checker.last_head(), &[name]));
    let mut head_forged = good.clone();
    let mut head = story.ledger.head();
    head.at += 1;
    head_forged.signed_head = head.sign(&story.key).into();
    refuses(&story.check(&head_forged), "signature");
    let with_head = |change: &dyn Fn(&mut Head)| {
        let mut head = story.ledger.head();
        change(&mut head);
        wire::Receipt { signed_head: head.sign(&story.ledger.head_key).into(), ..good.clone() }
    };
    let cases = [
        (with_head(&|head| head.origin = "other".into()), "another origin"),
        (with_head(&|head| head.workspace.0[0] ^= 1), "another origin"),
        (with_head(&|head| head.key_id.0[0] ^= 1), "not enrolled"),
        (with_head(&|head| head.ledger_chain.hash.0[0] ^= 1), "statements"),
        (with_head(&|head| head.workspace_chain.hash.0[0] ^= 1), "statements"),
        (with_head(&|head| head.workspace_chain.count += 1), "statements"),
    ];
    for (receipt, why) in cases {
        refuses(&story.check(&receipt), why);
    }
    let inclusion = |change: &dyn Fn(&mut wire::BatchInclusion)| {
        let mut receipt = good.clone();
        change(&mut receipt.batches[0]);
        receipt
    };
    for receipt in [
        inclusion(&|batch| batch.first_position += 1),
        inclusion(&|batch| batch.received_at += 1),
        inclusion(&|batch| batch.term += 1),
        inclusion(&|batch| batch.leaf_index += 1),
        inclusion(&|batch| batch.segment = 0),
        inclusion(&|batch| batch.path.push(Bytes::from_static(&[0; 32]))),
    ] {
        refuses(&story.check(&receipt), "does not include");
    }
    assert_eq!(story.checker.last_head(), before.last_head(), "a refusal changes nothing");
    story.check(&good).unwrap();
}

#[test]
fn a_revoked_head_key_signs_nothing_more() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    let revoke = wire::Revoke { key_id: story.ledger.head().key_id.into(), void_serials: vec![] };
    story.ledger.say(None, wire::statement::Action::Revoke(revoke));
    let statement = story.ledger.ledger_statements.last().unwrap().clone();
    story.checker.statement(&statement).unwrap();
    let receipt = story.ledger.receipt(&story.checker.last_head(), &[]);
    refuses(&story.check(&receipt), "not enrolled");
}

#[test]
fn a_head_that_goes_back_behind_a_statement_is_refused() {
    let mut story = Story::new();
    let before = story.ledger.clone();
    story.ledger.enrol(None, Role::Log, &ed25519_dalek::SigningKey::from_bytes(&[8; 32]), None);
    let statement = story.ledger.ledger_statements.last().unwrap().clone();
    story.checker.statement(&statement).unwrap();
    let first = story.send();
    story.accept(&[first]);
    // The same content, signed as if the statement had never been.
    let mut head = story.ledger.head();
    head.ledger_chain = before.head().ledger_chain;
    let mut receipt = story.ledger.receipt(&story.checker.last_head(), &[]);
    receipt.signed_head = head.sign(&story.ledger.head_key).into();
    refuses(&story.check(&receipt), "goes back");
}

#[test]
fn a_second_history_is_a_fork() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    let mut other = story.ledger.clone();
    let second = story.send();
    story.accept(&[second]);
    let held = story.checker.last_head();
    // The ledger goes on from a copy that never had the second batch.
    other.cut();
    let lie = wire::Receipt { consistency: story.ledger.receipt(&held, &[]).consistency, ..other.receipt(&[], &[]) };
    let Err(Refusal::Fork(fork)) = story.check(&lie) else { panic!("a fork was accepted") };
    assert_eq!((&fork.before, &fork.now), (&held, &other.signed_head()));
    // Nor does it help to leave the proof out.
    assert!(matches!(story.check(&other.receipt(&[], &[])), Err(Refusal::Fork(_))));
    assert_eq!(story.checker.last_head(), held);
}

#[test]
fn only_a_signed_incarnation_may_break_a_history() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    let mut recovered = Ledger::new(GATEWAY, &story.key);
    recovered.incarnation = 1;
    assert!(matches!(story.check(&recovered.receipt(&[], &[])), Err(Refusal::Fork(_))), "the root said nothing");
    let incarnation = wire::Incarnation {
        number: 1,
        log_size: 0,
        log_root: RootHash::ZERO.into(),
        last_seals_hash: RootHash::ZERO.into(),
    };
    recovered.say(None, wire::statement::Action::Incarnation(incarnation));
    let statement = recovered.ledger_statements.last().unwrap().clone();
    story.checker.statement(&statement).unwrap();
    let accepted = story.check(&recovered.receipt(&[], &[])).unwrap();
    assert!(accepted.new_incarnation);
}

#[test]
fn every_changed_part_of_an_archived_receipt_is_refused() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    story.ledger.cut();
    story.accept(&[]);
    let good = story.ledger.archived(0);
    let change = |change: &dyn Fn(&mut wire::ArchivedReceipt)| {
        let mut receipt = good.clone();
        change(&mut receipt);
        receipt
    };
    let seal = |change_seal: &dyn Fn(&mut wire::Seal)| {
        let mut seal = wire::Seal::decode(good.seal.clone()).unwrap();
        change_seal(&mut seal);
        change(&|receipt| receipt.seal = seal.encode_to_vec().into())
    };
    let other_log = SignedCheckpoint::parse(&good.checkpoint).unwrap().checkpoint;
    let stranger = custody::note::sign_checkpoint(other_log, &story.key).to_bytes();
    for (receipt, why) in [
        (seal(&|seal| seal.size += 1), "not in the log"),
        (seal(&|seal| seal.root = RootHash([1; 32]).into()), "not in the log"),
        (seal(&|seal| seal.origin = "other".into()), "another origin"),
        (change(&|receipt| receipt.log_index += 1), "not in the log"),
        (change(&|receipt| receipt.log_path.push(Bytes::from_static(&[0; 32]))), "not in the log"),
        (change(&|receipt| receipt.checkpoint = stranger.clone().into()), "no enrolled log key"),
        (change(&|receipt| receipt.checkpoint = Bytes::from_static(b"nonsense")), "malformed checkpoint"),
        (change(&|receipt| receipt.history_size += 1), "does not hold"),
    ] {
        match story.archived(&receipt) {
            Err(Refusal::Worthless(text)) => assert!(text.contains(why), "{text:?} instead of {why:?}"),
            other => panic!("{other:?} instead of {why:?}"),
        }
    }
    assert_eq!(story.archived(&good), Ok(0));
}

#[test]
fn a_seal_against_the_history_is_a_fork() {
    let mut story = Story::new();
    let first = story.send();
    story.accept(&[first]);
    let mut other = story.ledger.clone();
    story.ledger.cut();
    story.accept(&[]);
    // The log binds a segment that is not what the heads promised.
    let mut liar = Story::new();
    liar.send();
    liar.send();
    other = {
        let mut ledger = liar.ledger;
        ledger.cut();
        drop(other);
        ledger
    };
    assert!(matches!(story.archived(&other.archived(0)), Err(Refusal::Fork(_))));
    // Two checkpoints of one size.
    assert_eq!(story.archived(&story.ledger.archived(0)), Ok(0));
    let Err(Refusal::Fork(fork)) = story.archived(&other.archived(0)) else { panic!("a fork was accepted") };
    assert!(fork.finding.contains("checkpoints"));
}
