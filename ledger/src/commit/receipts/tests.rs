//! Real receipts of the real SDK, shown by gateways of two workspaces: what the ledger says of each, and that it says it once.

use bytes::Bytes;
use custody::{
    forensic::Receipt,
    id::WorkspaceId,
    record,
    segment::{Content, Entry},
    wire::{self, record::Kind, statement::Action},
};
use serde_json::value::RawValue;

use super::*;
use crate::rig::{Dir, Peer, Rig};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    receipt: Box<RawValue>,
    signer: String,
}

#[derive(serde::Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

fn receipt(name: &str) -> Receipt {
    let vectors: Vectors =
        serde_json::from_str(include_str!("../../../../proto/testdata/receipts/sovereign.json")).unwrap();
    let case = vectors.cases.into_iter().find(|case| case.name == name).unwrap();
    assert!(!case.signer.is_empty());
    Receipt::parse(case.receipt.get().as_bytes()).unwrap()
}

fn call(receipt: &Receipt, whole: bool) -> Bytes {
    let call = wire::Call {
        call_number: 1,
        phase: wire::Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        decision: wire::Decision::Allowed as i32,
        outcome: wire::Outcome::Ok as i32,
        receipt: Some(receipt.to_wire(whole)),
        ..Default::default()
    };
    record::encode(Kind::Call(call)).into()
}

fn enrol_signer(receipt: &Receipt) -> Action {
    Action::Enrol(wire::Enrol {
        role: Role::Receipt as i32,
        public_key: receipt.signer.to_vec().into(),
        gateway: None,
        name: "tool-runtime".to_owned(),
        possession: None,
    })
}

/// Outcome, workspace and positions of every finding, in order.
fn findings(rig: &Rig) -> Vec<(String, WorkspaceId, Vec<u64>)> {
    let store = rig.store.upgrade().unwrap();
    let entries = store.scan(Family::Entries, &[0xee; 16], &[]);
    let batches = entries.map(|row| Entry::parse(row.unwrap().1).unwrap());
    let records = batches.flat_map(|entry| match entry.content {
        Content::Batch(batch) => batch.records,
        _ => Vec::new(),
    });
    let found = records.filter_map(|bytes| match record::decode(&bytes).unwrap().kind? {
        Kind::LedgerEvent(event) if event.kind() == LedgerEventKind::ReceiptFinding => {
            let positions = event.details.iter().filter(|detail| detail.key == "position");
            let positions = positions.map(|detail| match detail.value {
                Some(wire::extension::Value::Number(position)) => position,
                _ => panic!("no number"),
            });
            let workspace = WorkspaceId(event.workspace.as_ref()?.as_ref().try_into().unwrap());
            Some((event.outcome, workspace, positions.collect()))
        }
        _ => None,
    });
    found.collect()
}

async fn show(rig: &Rig, peer: &mut Peer, stream: u64, records: Vec<Bytes>) -> u64 {
    let mut answers = peer.open(rig, stream).await.unwrap();
    let batch = peer.batch_of(records.into_iter());
    let opens = u64::from(batch.header.opens());
    // The record of the writer stands before the calls.
    peer.send(rig, stream, &mut answers, batch).await.unwrap().first_position + opens
}

#[tokio::test(flavor = "multi_thread")]
async fn each_receipt_is_judged_and_a_replay_is_found_wherever_it_is_shown() {
    let dir = Dir::new("receipts");
    let mut rig = Rig::start(&dir.0).await.unwrap();
    let (one, mut first) = rig.workspace(5).await;
    let (two, mut second) = rig.workspace(6).await;
    let (good, other) = (receipt("simple"), receipt("random-0"));
    let (bad, foreign) = (receipt("simple-bad-metadata"), receipt("after-rotation"));
    let at = show(&rig, &mut first, 1, vec![call(&good, true)]).await;
    let mut expected = vec![("unknown-key".to_owned(), one, vec![at])];
    assert_eq!(findings(&rig), expected);

    for id in [one, two] {
        rig.say(id, enrol_signer(&good)).await.unwrap();
    }
    rig.cut().await;
    let shown = [(&good, true), (&bad, true), (&foreign, true), (&other, false), (&good, true)];
    let at = show(&rig, &mut first, 2, shown.map(|(receipt, whole)| call(receipt, whole)).to_vec()).await;
    for (finding, place) in [("valid", 0), ("bad", 1), ("unknown-key", 2), ("replayed", 4), ("withheld", 3)] {
        expected.push((finding.to_owned(), one, vec![at + place]));
    }
    assert_eq!(findings(&rig), expected);

    // In another workspace, and after a restart.
    rig.stop().await;
    rig = Rig::start(&dir.0).await.unwrap();
    let at = show(&rig, &mut second, 3, vec![call(&good, true), call(&other, true)]).await;
    expected.push(("valid".to_owned(), two, vec![at + 1]));
    expected.push(("replayed".to_owned(), two, vec![at]));
    assert_eq!(findings(&rig), expected);

    let key_id = PublicKey::new(&good.signer).unwrap().id(Role::Receipt);
    let revoke = Action::Revoke(wire::Revoke { key_id: key_id.into(), ..Default::default() });
    rig.say(one, revoke).await.unwrap();
    rig.cut().await;
    let at = show(&rig, &mut first, 4, vec![call(&receipt("random-1"), true)]).await;
    expected.push(("revoked".to_owned(), one, vec![at]));
    assert_eq!(findings(&rig), expected);

    rig.cut().await;
    rig.check(&BTreeMap::from([(one, 7), (two, 2)]));
    rig.stop().await;
}

/// A server whose receipts are kept by their digests alone, which is the default, is no place to show one again.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_found_where_the_receipt_is_withheld_too() {
    let dir = Dir::new("receipts-withheld");
    let mut rig = Rig::start(&dir.0).await.unwrap();
    let (one, mut first) = rig.workspace(5).await;
    let (two, mut second) = rig.workspace(6).await;
    let (good, other) = (receipt("simple"), receipt("random-0"));
    for id in [one, two] {
        rig.say(id, enrol_signer(&good)).await.unwrap();
    }
    rig.cut().await;
    // Within one batch: valid, then by its digest; by its digest twice, then whole.
    let shown = [(&good, true), (&good, false), (&other, false), (&other, false), (&other, true)];
    let at = show(&rig, &mut first, 1, shown.map(|(receipt, whole)| call(receipt, whole)).to_vec()).await;
    let mut expected = vec![
        ("valid".to_owned(), one, vec![at, at + 4]),
        ("replayed".to_owned(), one, vec![at + 1, at + 3]),
        ("withheld".to_owned(), one, vec![at + 2]),
    ];
    assert_eq!(findings(&rig), expected);

    // In another workspace, and after a restart.
    rig.stop().await;
    rig = Rig::start(&dir.0).await.unwrap();
    let late = receipt("random-1");
    let shown = [&good, &other, &late].map(|receipt| call(receipt, false));
    let at = show(&rig, &mut second, 2, shown.to_vec()).await;
    expected.push(("replayed".to_owned(), two, vec![at, at + 1]));
    expected.push(("withheld".to_owned(), two, vec![at + 2]));
    assert_eq!(findings(&rig), expected);
    let at = show(&rig, &mut second, 3, vec![call(&late, false)]).await;
    expected.push(("replayed".to_owned(), two, vec![at]));
    assert_eq!(findings(&rig), expected);
    rig.stop().await;
}

/// What a batch brings about has a bound, whatever it shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_replays_is_one_finding_that_counts_them() {
    let dir = Dir::new("receipts-many");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (id, mut peer) = rig.workspace(5).await;
    rig.say(id, enrol_signer(&receipt("simple"))).await.unwrap();
    rig.cut().await;
    let at = show(&rig, &mut peer, 1, vec![call(&receipt("simple"), true); 100]).await;
    let positions = (at + 1..at + 1 + POSITIONS_MAX as u64).collect();
    assert_eq!(findings(&rig), [("valid".to_owned(), id, vec![at]), ("replayed".to_owned(), id, positions)]);
    rig.stop().await;
}
