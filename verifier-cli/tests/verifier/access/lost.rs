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
        assert_eq!(story.doubts(denied), &["state-lost"][..usize::from(is_lost)]);
        let (code, answer) = story.json(&["--between", &time(denied - 1), &time(again)]);
        assert_eq!(answer["changes"][0]["cut_short"], json!(false));
        assert!(code == 2 || !is_lost, "{answer:#}");
    }
}

#[test]
fn of_a_change_beside_what_is_not_kept_there_may_be_more_records() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let begun = story.change(&beginning(at));
    let (first, second, third) = (story.ledger.tick(), story.ledger.tick(), story.ledger.tick());
    // Each goes over the end of a segment: the first by its last record, the second by its first.
    story.write(first, Some(1), 2, &left()[..1]);
    story.ledger.cut(&mut story.workspace);
    story.write(first, Some(1), 2, &left()[1..]);
    story.write(second, Some(2), 3, &granted());
    story.ledger.cut(&mut story.workspace);
    story.write(second, Some(2), 3, &left()[..1]);
    story.write(third, Some(3), 4, &granted());
    story.end();
    for at in [begun, first, second, third] {
        assert_eq!(story.doubts(at), [""; 0]);
    }
    story.years_later();
    std::fs::remove_file(&story.segments()[2]).unwrap();
    assert_eq!(story.at(begun, &[]).1["doubts"], json!([]));
    assert_eq!(story.doubts(first), ["last-change-open", "not-kept"]);
    assert_eq!(story.doubts(third), ["last-change-open"], "no digest tells it");
}

#[test]
fn a_change_whose_records_were_lost_on_the_way_may_have_more_of_them() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let first = story.ledger.tick();
    story.write(first, None, 1, &beginning(at)[..4]);
    story.gateway.dropped = 2;
    story.write(first, None, 1, &beginning(at)[4..]);
    story.end();
    assert_eq!(story.doubts(first), ["last-change-open"], "also where it says that it is whole");
}

#[test]
fn a_policy_that_was_cut_short_was_none_and_one_that_is_said_anew_takes_the_place_of_one_of_the_same_time() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    let cut = story.ledger.tick();
    story.write(cut, None, 1, &beginning(at)[..2]);
    story.gateway.reopen(None);
    story.take(&[opened()]);
    let whole = story.ledger.tick();
    story.write(whole, None, 1, &beginning(at));
    story.end();
    assert_eq!(story.doubts(cut), ["no-policy"]);
    assert_eq!(story.doubts(whole), [""; 0]);
    let anew = story.ledger.tick();
    story.write(anew, None, 2, &[change(Action::MemberAdded, of(ADA))]);
    story.gateway.reopen(None);
    story.take(&[opened()]);
    story.write(anew, None, 2, &[change(Action::MemberAdded, of(BOB))]);
    story.end();
    let members = story.at(anew, &[]).1["in_force"]["members"].as_array().unwrap().clone();
    assert_eq!(members.iter().map(|member| &member["member"]).collect::<Vec<_>>(), [&json!("b2".repeat(16))]);
    assert_eq!(story.doubts(anew), [""; 0]);
}

#[test]
fn what_a_gateway_lost_before_its_first_batch_may_have_let_somebody_in() {
    let mut story = Story::new();
    let mut other = story.ledger.enrol(&mut story.workspace, 0x22);
    other.reopen(Some(OpeningReason::StateLost));
    story.ledger.take(&mut story.workspace, &mut other, &[opened()]);
    std::mem::swap(&mut story.gateway, &mut other);
    let at = story.ledger.clock;
    story.change(&beginning(at));
    story.end();
    let (code, answer) = story.json(&["--at", &time(at - DAY), "--gateway", &"22".repeat(16)]);
    assert_eq!((code, names(&answer["gateways"][0]["doubts"])), (2, vec!["state-lost".to_owned()]));
}

#[test]
fn what_changed_since_a_time_of_which_nobody_knows_what_was_in_force_is_not_known() {
    let mut story = Story::new();
    let at = story.ledger.clock;
    story.change(&beginning(at));
    story.digest = Some(7);
    let odd = story.change(&granted());
    let anew = story.ledger.tick();
    story.write(anew, None, 9, &beginning(at));
    story.end();
    assert_eq!(story.doubts(anew), [""; 0]);
    let (code, answer) = story.json(&["--between", &time(odd), &time(anew)]);
    assert_eq!((code, names(&answer["gateways"][0]["doubts"])), (2, vec!["gap".to_owned()]));
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
