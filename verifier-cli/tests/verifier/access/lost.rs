//! Archives in which a crash or a loss left a part of a gateway's changes: what took effect, and what nobody can know.

use super::*;

#[test]
fn a_gateway_that_was_set_back_leaves_what_was_in_force_unknown_until_it_changes_it() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.change(&beginning(at));
    // A new epoch that goes on is none of that.
    story.gateway.reopen(None);
    story.take(&[opened()]);
    let second = story.change(&granted());
    story.take(&[spooling()]);
    story.gateway.reopen(Some(OpeningReason::Rewound));
    story.take(&[opened()]);
    let between = story.ledger.tick();
    story.end();
    assert_eq!(story.doubts(first), [""; 0]);
    assert_eq!(story.doubts(second), ["rewound"], "perhaps at once");
    assert_eq!(story.doubts(between), ["rewound"]);
    // That it goes on with what was in force says nothing of between: what was lost may have undone what it did.
    let third = story.change(&left());
    story.end();
    for (at, doubts) in [(first, &[][..]), (second, &["rewound"]), (between, &["rewound"]), (third, &[])] {
        assert_eq!(story.doubts(at), doubts);
    }
    for (from, to, code) in [(first, third, 2), (between, third, 2), (first, second - 1, 0), (third, third + 1, 0)] {
        let (found, answer) = story.json(&["--between", &time(from), &time(to)]);
        assert_eq!(found, code, "{answer:#}");
    }
}

#[test]
fn what_is_on_record_whole_is_not_cut_short_by_what_was_applied_again_after_a_loss() {
    for (is_followed, is_lost) in [(true, false), (true, true), (false, true)] {
        let mut story = Story::new();
        let at = story.ledger.clock;
        story.change(&beginning(at));
        let denied = story.ledger.tick();
        story.write(denied, Some(1), 2, &left()[..1]);
        if is_followed {
            story.take(&[spooling()]);
        }
        // Another change gave it back; that is on no record.
        story.gateway.reopen(is_lost.then_some(OpeningReason::StateLost));
        story.take(&[opened()]);
        let again = story.ledger.tick();
        story.write(again, Some(1), 2, &left());
        story.end();
        assert_eq!(story.callers(denied, "mail/send")[0], json!(["a1", false, "shim/default-deny"]));
        assert_eq!(story.doubts(denied), ["gap-after", "state-lost"][..1 + usize::from(is_lost)]);
        let (code, answer) = story.json(&["--between", &time(denied - 1), &time(again)]);
        assert_eq!(answer["changes"][0]["cut_short"], json!(false));
        assert!(code == 2 || !is_lost, "{answer:#}");
    }
}

#[test]
fn of_the_last_change_it_is_said_that_more_records_of_it_may_follow() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let cut = story.ledger.tick();
    story.write(cut, None, 1, &beginning(at)[..4]);
    story.take(&[]);
    story.publish();
    assert_eq!(story.doubts(cut), ["last-change-open"]);
    // A new life says nothing of it, nor does what goes on from it after a loss.
    story.gateway.reopen(Some(OpeningReason::StateLost));
    story.take(&[opened()]);
    let next = story.ledger.tick();
    story.write(next, Some(1), 2, &beginning(at)[1..2]);
    story.end();
    assert_eq!(story.doubts(cut), ["last-change-open", "state-lost"]);
    assert_eq!(story.doubts(next), ["last-change-open"]);
    // A change that says all does.
    let anew = story.ledger.tick();
    story.write(anew, None, 3, &beginning(at));
    story.take(&[]);
    story.publish();
    assert_eq!(story.doubts(anew), [""; 0], "its last record says that it is that");
    let last = story.change(&granted());
    story.take(&[]);
    story.publish();
    assert_eq!(story.doubts(last), ["last-change-open"]);
    story.end();
    assert_eq!(story.doubts(last), [""; 0]);
}

#[test]
fn a_gateway_whose_first_change_goes_on_from_another_had_begun_before() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    story.write(at, Some(1), 2, &beginning(at));
    story.end();
    let (code, gateway) = story.at(at - DAY, &[]);
    assert_eq!((code, &gateway["doubts"][0]["name"]), (2, &"gap-after".into()), "{gateway:#}");
    let said = story.ask(&["--at", &time(at - DAY)]).1;
    assert!(said.contains("had not begun, as far as its records here say"), "{said}");
}

#[test]
fn what_was_cut_short_took_no_effect_until_it_was_written_once_more() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    story.change(&beginning(at));
    let cut = story.ledger.tick();
    story.write(cut, Some(1), 2, &left()[..1]);
    // Once more, and once more.
    for _ in 0..2 {
        story.gateway.reopen(None);
        story.take(&[opened()]);
        let again = story.ledger.tick();
        story.write(again, Some(1), 2, &left()[..1]);
    }
    story.gateway.reopen(None);
    story.take(&[opened()]);
    let whole = story.ledger.tick();
    story.write(whole, Some(1), 2, &left());
    story.end();
    assert_eq!(story.callers(cut, "mail/send")[0], json!(["a1", true, "staff"]));
    assert_eq!(story.callers(whole, "mail/send")[0], json!(["a1", false, "shim/default-deny"]));
    assert_eq!(story.doubts(cut), [""; 0]);
    let (_, answer) = story.json(&["--between", &time(cut - 1), &time(whole)]);
    let changes = &answer["changes"];
    for cut in 0..3 {
        assert_eq!((&changes[cut]["cut_short"], &changes[cut]["changed"]), (&json!(true), &json!([])));
    }
    assert_eq!((&changes[3]["cut_short"], changes[3]["changed"].as_array().unwrap().len()), (&json!(false), 2));
}
