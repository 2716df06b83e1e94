//! Who is not heard any more: what is found does not depend on what the ledger says of the time, and an old archive does not
//! call every gateway silent.

use custody::{
    verify::{InTurn, Options, run},
    wire::{self, Role, WriterClass, statement::Action},
};
use verifier::reader::Source;

use crate::ledger::{BEGINNING, Gateway, Ledger, Workspace, call, opened_as, policy};

const DAY: u64 = 86_400_000_000;
/// The end of the year 9999.
const LAST_TIME: u64 = 253_402_300_799_999_999;

/// A ledger with two gateways that promised to be always on and were heard on the first day.
struct Story {
    dir: tempfile::TempDir,
    ledger: Ledger,
    workspace: Workspace,
    gateways: [Gateway; 2],
}

impl Story {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::new(&dir.path().join("archive"));
        let mut workspace = ledger.create(1, "acme");
        let gateways = [0x11, 0x12].map(|seed| ledger.enrol(&mut workspace, seed));
        let mut story = Self { dir, ledger, workspace, gateways };
        for gateway in 0..2 {
            story.hear(gateway, &[opened_as(WriterClass::AlwaysOn), call(1)]);
        }
        story
    }

    fn hear(&mut self, gateway: usize, records: &[bytes::Bytes]) {
        self.ledger.take(&mut self.workspace, &mut self.gateways[gateway], records);
        self.ledger.cut(&mut self.workspace);
    }

    /// Only the second gateway goes on, this many days after the beginning.
    fn second_goes_on(&mut self, days: u64) {
        self.ledger.clock = BEGINNING + days * DAY;
        self.hear(1, &[call(2)]);
    }

    /// What is found at the end: names, with the gateway where it is of one.
    fn findings(&mut self, as_of: u64) -> Vec<String> {
        self.ledger.publish();
        let source = Source::open(&self.dir.path().join("archive")).unwrap();
        let verdict = run(&source, &policy(), &Options { as_of, ..Options::default() }, &InTurn).unwrap();
        assert_eq!(verdict.faults, []);
        let at_end = verdict.findings.iter().filter(|finding| !finding.place.contains(" leaf "));
        at_end
            .map(|finding| match finding.place.strip_prefix("gateway ") {
                Some(gateway) => format!("{} {}", finding.name, &gateway[..2]),
                None => finding.name.to_owned(),
            })
            .collect()
    }
}

#[test]
fn a_gateway_that_is_not_heard_while_another_is_falls_silent() {
    let mut story = Story::new();
    assert_eq!(story.findings(BEGINNING + DAY), [""; 0]);
    story.second_goes_on(2);
    assert_eq!(
        story.findings(BEGINNING + 2 * DAY + 1),
        [""; 0],
        "the second had not gone on then, and this was no silence"
    );
    assert_eq!(story.findings(BEGINNING + 3 * DAY), ["silent 11"]);
    story.second_goes_on(5);
    assert_eq!(story.findings(BEGINNING + 6 * DAY), ["unclosed 11", "silent 11"]);
}

#[test]
fn no_time_that_the_ledger_says_hides_it() {
    for pretends in [0, BEGINNING, LAST_TIME] {
        let mut story = Story::new();
        story.ledger.pretends = Some(pretends);
        story.hear(0, &[call(2)]);
        story.second_goes_on(5);
        let found = story.findings(BEGINNING + 6 * DAY);
        assert!(found.contains(&"unclosed 11".to_owned()) && found.contains(&"silent 11".to_owned()), "{found:?}");
        assert!(!found.contains(&"outdated".to_owned()), "{found:?}");
    }
}

#[test]
fn an_archive_that_ends_long_ago_is_found_once_and_names_no_gateway() {
    let mut story = Story::new();
    assert_eq!(story.findings(BEGINNING + 3 * DAY), [""; 0]);
    assert_eq!(story.findings(BEGINNING + 3 * DAY + 3_600_000_000), ["outdated"]);
    assert_eq!(story.findings(BEGINNING + 4_000 * DAY), ["outdated"]);
    // Nor does it help to seal what nobody else speaks of.
    story.ledger.pretends = Some(LAST_TIME);
    story.second_goes_on(1);
    assert_eq!(story.findings(BEGINNING + 7 * DAY), ["outdated"]);
}

#[test]
fn a_gateway_that_was_enrolled_and_of_which_nothing_is_there_is_named() {
    let mut story = Story::new();
    let unheard = story.ledger.enrol(&mut story.workspace, 0x13);
    assert_eq!(story.findings(BEGINNING + DAY), ["never-heard"]);
    let key_id = custody::key::public(&unheard.key).id(Role::Gateway).into();
    story.ledger.say(&mut story.workspace, Action::Retire(wire::Retire { key_id }));
    assert_eq!(story.findings(BEGINNING + DAY), [""; 0], "who wants it so says so");
}
