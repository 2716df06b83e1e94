//! Writes an archive of any size, for measuring: `RECORDS=1000000 DIR=... cargo test -p verifier-cli --test verifier bulk`. Without
//! these variables it writes a few thousand records, and checks that they verify.

use custody::verify::{self, InTurn, Options};
use verifier::reader::Source;

use crate::ledger::{BEGINNING, Ledger, call, opened, policy};

const BATCH: u64 = 256;
/// Batches in a group commit: under load several wait for one sync, and get one head.
const GROUP: u64 = 4;

fn write(ledger: &mut Ledger, records: u64) {
    let mut workspace = ledger.create(0xa1, "bulk");
    let mut gateway = ledger.enrol(&mut workspace, 0x11);
    ledger.take(&mut workspace, &mut gateway, &[opened()]);
    let (mut number, mut batches) = (1, 0);
    while number < records {
        let end = records.min(number + BATCH);
        ledger.take(&mut workspace, &mut gateway, &(number..end).map(call).collect::<Vec<_>>());
        batches += 1;
        if batches % GROUP == 0 {
            ledger.receipt(&workspace, &mut [&mut gateway]);
        }
        number = end;
    }
    ledger.cut(&mut workspace);
    ledger.publish();
}

#[test]
fn a_bulk_archive_verifies() {
    let records = std::env::var("RECORDS").map_or(5_000, |text| text.parse().unwrap());
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var("DIR").map_or_else(|_| temporary.path().to_owned(), Into::into);
    let archive = dir.join("archive");
    write(&mut Ledger::new(&archive), records);
    std::fs::File::create(dir.join("policy.json"))
        .and_then(|file| Ok(serde_json::to_writer_pretty(file, &policy())?))
        .unwrap();
    let source = Source::open(&archive).unwrap();
    let options = Options { as_of: BEGINNING, ..Options::default() };
    let verdict = verify::run(&source, &policy(), &options, &InTurn).unwrap();
    assert_eq!(verdict.faults, []);
    assert_eq!(verdict.counts.records, records);
}
