//! Which fault of a segment is named first does not depend on how its frames are read: form, then leaves, then the segment
//! as the seal has it, then what the leaves hold.

use bytes::Bytes;
use custody::{
    verdict::Check,
    verify::{self, InTurn, Options},
};
use verifier::reader::Source;

use crate::ledger::{BEGINNING, Gateway, Ledger, Workspace, call, opened, policy};

/// The first check that does not pass in a segment of several frames: the first of its leaves holds what is no record, and
/// `more` is done where the last frame is written.
fn first_fault(more: impl FnOnce(&mut Ledger, &mut Workspace, &mut Gateway)) -> Check {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::new(&dir.path().join("archive"));
    let mut workspace = ledger.create(0xa1, "acme");
    let mut gateway = ledger.enrol(&mut workspace, 0x11);
    ledger.take(&mut workspace, &mut gateway, &[opened(), Bytes::from_static(b"no record")]);
    let calls: Vec<Bytes> = (0..3_000).map(call).collect();
    for _ in 0..4 {
        ledger.take(&mut workspace, &mut gateway, &calls);
    }
    more(&mut ledger, &mut workspace, &mut gateway);
    ledger.cut(&mut workspace);
    ledger.publish();
    let source = Source::open(&ledger.dir).unwrap();
    let options = Options { as_of: BEGINNING, ..Options::default() };
    verify::run(&source, &policy(), &options, &InTurn).unwrap().faults[0].check
}

#[test]
fn faults_of_a_segment_have_one_order_however_its_frames_are_read() {
    assert_eq!(first_fault(|_, _, _| ()), Check::RecordForm);
    let counted_wrongly = |_: &mut Ledger, workspace: &mut Workspace, _: &mut Gateway| workspace.position += 1;
    assert_eq!(first_fault(counted_wrongly), Check::SealCounts);
    let out_of_place = |ledger: &mut Ledger, workspace: &mut Workspace, gateway: &mut Gateway| {
        workspace.position += 1;
        ledger.take(workspace, gateway, &[call(1)]);
    };
    assert_eq!(first_fault(out_of_place), Check::EntryPosition);
    let out_of_place_and_of_no_form = |ledger: &mut Ledger, workspace: &mut Workspace, gateway: &mut Gateway| {
        workspace.position += 1;
        ledger.take(workspace, gateway, &[call(1)]);
        ledger.put_no_entry(workspace);
    };
    assert_eq!(first_fault(out_of_place_and_of_no_form), Check::EntryForm);
}
