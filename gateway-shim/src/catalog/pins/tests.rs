//! Tools that are seen, change, vanish and look like others; and what is kept of them.

use super::*;

const A: Digest = [1; 32];
const B: Digest = [2; 32];
const C: Digest = [3; 32];
/// What everybody sees, in most tests.
const V: View = [0; 8];

/// Somebody.
fn why() -> Reason {
    Reason { actor: Actor::System("review".into()), code: "reviewed".into(), ticket: "SEC-7".into(), account: None }
}

/// What has changed, in words.
fn told(change: &Change) -> String {
    let digest = |digest: Option<Digest>| digest.map_or_else(|| "-".to_owned(), |digest| digest[0].to_string());
    let (what, action) = (format!("{:?}", change.what), format!("{:?}", change.action));
    let resembles = change.resembles.as_deref().map(|key| format!(" like {key}")).unwrap_or_default();
    let sides = format!("{}>{}", digest(change.before), digest(change.after));
    format!("{} {} {sides} {}{resembles}", change.key, what.to_lowercase(), action.to_lowercase())
}

fn see(pins: &mut Pins, server: &str, listed: &[(&str, Digest)], on_change: OnChange) -> Vec<String> {
    let (next, changes) = pins.observe(server, listed.iter().copied(), Some(V), on_change, 0).unwrap();
    *pins = next;
    // What is kept is all that is known.
    assert_eq!(Pins::read(&pins.bytes()).as_ref(), Ok(&*pins));
    let record =
        |change: &Change| custody::record::encode(wire::record::Kind::ToolDefinition(change.record(server, 1)));
    changes.iter().map(|change| (record(change), told(change)).1).collect()
}

#[test]
fn where_the_policy_warns_a_change_is_told_once_and_goes_on() {
    let (mut pins, warn) = (Pins::default(), OnChange::Warn);
    assert_eq!(see(&mut pins, "s", &[("x", A), ("y", A)], warn), ["x seen ->1 pinned", "y seen ->1 pinned"]);
    assert!(see(&mut pins, "s", &[("y", A), ("x", A)], warn).is_empty());
    assert_eq!(see(&mut pins, "s", &[("x", B), ("y", A)], warn), ["x changed 1>2 warned"]);
    assert!(see(&mut pins, "s", &[("x", B), ("y", A)], warn).is_empty());
    assert_eq!(pins.standing("s", "x"), Standing::InForce(B));
    assert_eq!(see(&mut pins, "s", &[("x", B)], warn), ["y vanished 1>- warned"]);
    assert_eq!((pins.standing("s", "y"), pins.standing("s", "z")), (Standing::Unlisted, Standing::Unlisted));
    assert!(see(&mut pins, "s", &[("x", B)], warn).is_empty());
    assert_eq!(see(&mut pins, "s", &[("x", B), ("y", A)], warn), ["y seen ->1 pinned"]);
    assert_eq!(see(&mut pins, "s", &[], warn), ["x vanished 2>- warned", "y vanished 1>- warned"]);
    assert_eq!(see(&mut pins, "s", &[("y", C)], warn), ["y changed 1>3 warned"]);
    // On one page of several, what is not there may be on another.
    let (_, changes) = pins.observe("s", std::iter::empty(), None, warn, 0).unwrap();
    assert_eq!(changes, []);
}

#[test]
fn in_quarantine_a_change_is_hidden_until_somebody_accepts_it() {
    let (mut pins, quarantine) = (Pins::default(), OnChange::Quarantine);
    see(&mut pins, "s", &[("x", A)], quarantine);
    assert_eq!(pins.standing("s", "x"), Standing::InForce(A));
    assert!(
        pins.accept("s", "x", &why()).is_none() && pins.accept("t", "x", &why()).is_none(),
        "there is nothing to accept"
    );
    assert_eq!(see(&mut pins, "s", &[("x", B)], quarantine), ["x changed 1>2 quarantined"]);
    assert!(see(&mut pins, "s", &[("x", B)], quarantine).is_empty());
    assert_eq!(pins.standing("s", "x"), Standing::Quarantined);
    // Whatever it changes to, and whatever the policy says by now.
    assert_eq!(see(&mut pins, "s", &[("x", C)], OnChange::Warn), ["x changed 2>3 quarantined"]);
    assert_eq!(pins.quarantined().collect::<Vec<_>>(), [("s", "x", Some(A), Some(C))]);
    assert_eq!((pins.offered("s", "x"), pins.offered("s", "y")), (Some(Some(C)), None));
    let (accepted, change) = pins.accept("s", "x", &why()).unwrap();
    assert_eq!(told(&change), "x changed 1>3 accepted");
    // Who and why stand in its record, which is one that a gateway may write.
    let record = change.record("s", 1);
    assert_eq!(record.actor, Some(tool_definition::Actor::ActorSystem("review".into())));
    assert_eq!((record.reason.as_str(), record.ticket.as_str()), ("reviewed", "SEC-7"));
    let bytes = custody::record::encode(wire::record::Kind::ToolDefinition(record));
    assert_eq!(custody::record::check(&bytes), Ok(custody::record::RecordKind::ToolDefinition));
    assert_eq!(accepted.standing("s", "x"), Standing::InForce(C));
    // It may also become what it was.
    assert_eq!(see(&mut pins, "s", &[("x", A)], quarantine), ["x changed 3>1 pinned"]);
    assert_eq!(pins.standing("s", "x"), Standing::InForce(A));
}

#[test]
fn what_vanishes_into_quarantine_comes_back_into_it() {
    let (mut pins, quarantine) = (Pins::default(), OnChange::Quarantine);
    see(&mut pins, "s", &[("x", A)], quarantine);
    assert_eq!(see(&mut pins, "s", &[], quarantine), ["x vanished 1>- quarantined"]);
    let gone = pins.accept("s", "x", &why()).unwrap();
    assert_eq!((told(&gone.1).as_str(), gone.0.standing("s", "x")), ("x vanished 1>- accepted", Standing::Unlisted));
    assert_eq!(see(&mut pins, "s", &[("x", A)], quarantine), ["x seen ->1 quarantined"]);
    assert_eq!(pins.standing("s", "x"), Standing::Quarantined);
    let back = pins.accept("s", "x", &why()).unwrap();
    assert_eq!((told(&back.1).as_str(), back.0.standing("s", "x")), ("x seen 1>1 accepted", Standing::InForce(A)));
}

/// A change, and the change back, are no way out for what came into quarantine because it was gone.
#[test]
fn what_vanished_into_quarantine_is_let_out_by_somebody_alone() {
    let (mut pins, quarantine) = (Pins::default(), OnChange::Quarantine);
    see(&mut pins, "s", &[("x", A)], quarantine);
    see(&mut pins, "s", &[], quarantine);
    assert_eq!(see(&mut pins, "s", &[("x", A)], quarantine), ["x seen ->1 quarantined"]);
    assert_eq!(see(&mut pins, "s", &[("x", B)], quarantine), ["x changed 1>2 quarantined"]);
    assert_eq!(see(&mut pins, "s", &[("x", A)], quarantine), ["x changed 2>1 quarantined"]);
    assert_eq!(pins.standing("s", "x"), Standing::Quarantined);
    // One that had changed before, too, whatever the policy said when it went.
    let (mut changed, _) = pins.accept("s", "x", &why()).unwrap();
    see(&mut changed, "s", &[("x", B)], quarantine);
    see(&mut changed, "s", &[], OnChange::Warn);
    see(&mut changed, "s", &[("x", B)], quarantine);
    assert_eq!(see(&mut changed, "s", &[("x", A)], quarantine), ["x changed 2>1 quarantined"]);
    // Once accepted, it is like any other.
    let (mut accepted, _) = changed.accept("s", "x", &why()).unwrap();
    see(&mut accepted, "s", &[("x", C)], quarantine);
    assert_eq!(see(&mut accepted, "s", &[("x", A)], quarantine), ["x changed 3>1 pinned"]);
    let before = r#"{"version":1,"servers":{"s":[{"tool":"x","pinned":"AA","quarantined":true}]}}"#;
    let mut read = Pins::read(before.replace("AA", &hex(&A)).as_bytes()).unwrap();
    see(&mut read, "s", &[("x", B)], quarantine);
    assert_eq!(see(&mut read, "s", &[("x", A)], quarantine), ["x changed 2>1 quarantined"]);
}

#[test]
fn a_look_alike_names_the_tool_that_it_looks_like() {
    let (mut pins, warn) = (Pins::default(), OnChange::Warn);
    // One character more or less is common among the tools of one maker.
    let first = see(&mut pins, "mail", &[("send_email", A), ("send_emails", A), ("läse", A)], warn);
    assert_eq!(first.iter().filter(|change| change.contains("like")).count(), 0);
    assert_eq!(see(&mut pins, "x", &[("sendEmail", B)], warn), ["sendEmail seen ->2 warned like send_email"]);
    // The same name on another server is no look-alike.
    assert_eq!(see(&mut pins, "y", &[("send_email", B)], warn), ["send_email seen ->2 warned like sendEmail"]);
    assert_eq!(see(&mut pins, "z", &[("fetch", B)], warn), ["fetch seen ->2 pinned"]);
    // Cyrillic: neither name is a token.
    let seen = see(&mut pins, "evil", &[("ѕend_emаil", C), ("läsẹ", C)], OnChange::Quarantine);
    assert!(seen.iter().any(|seen| seen.ends_with("seen ->3 quarantined like send_email")), "{seen:?}");
    let other = key("läse");
    assert!(seen.iter().any(|seen| seen.ends_with(&format!("like {other}"))), "{seen:?}");
    assert_eq!(pins.standing("evil", "ѕend_emаil"), Standing::Quarantined);
    let (accepted, change) = pins.accept("evil", "ѕend_emаil", &why()).unwrap();
    assert!(told(&change).ends_with("seen ->3 accepted"));
    assert_eq!(accepted.standing("evil", "ѕend_emаil"), Standing::InForce(C));
    // Also by what the list of what is in quarantine shows.
    assert_eq!(pins.accept("evil", &key("ѕend_emаil"), &why()).unwrap().0, accepted);
    let kept = String::from_utf8(pins.bytes()).unwrap();
    assert!(kept.is_ascii() && kept.contains("send_email"), "a name that is no token is kept");
}

/// Nobody knows which of them is the real one.
#[test]
fn of_a_first_list_those_that_nobody_can_tell_apart_are_told() {
    let mut pins = Pins::default();
    let seen = see(&mut pins, "s", &[("read_file", A), ("read_fi1e", B), ("write", C)], OnChange::Quarantine);
    assert_eq!(
        seen,
        [
            "read_fi1e seen ->2 quarantined like read_file",
            "read_file seen ->1 quarantined like read_fi1e",
            "write seen ->3 pinned"
        ]
    );
}

/// A client that can do less is listed less, and a member has a credential of its own: that takes nothing from anybody. What a
/// view does not list any more is told, and has gone when the last one does not.
#[test]
fn what_others_are_not_listed_stays() {
    let (mut pins, quarantine, other) = (Pins::default(), OnChange::Quarantine, [1; 8]);
    let mut see = |view: View, listed: &[(&str, Digest)]| {
        let (next, changes) = pins.observe("s", listed.iter().copied(), Some(view), quarantine, 0).unwrap();
        // Over a restart.
        pins = Pins::read(&next.bytes()).unwrap();
        assert_eq!(pins, next);
        (changes.iter().map(told).collect::<Vec<_>>(), pins.standing("s", "y"))
    };
    let in_force = Standing::InForce(A);
    assert_eq!(see(V, &[("x", A), ("y", A)]), (vec!["x seen ->1 pinned".into(), "y seen ->1 pinned".into()], in_force));
    assert_eq!(see(other, &[("x", A)]), (vec![], in_force));
    assert_eq!(see(V, &[("x", A), ("y", A)]), (vec![], in_force));
    assert_eq!(see(other, &[("x", A), ("y", A)]), (vec![], in_force));
    assert_eq!(see(V, &[("x", A)]), (vec!["y vanished 1>- warned".into()], in_force));
    assert_eq!(see(V, &[("x", A)]), (vec![], in_force));
    assert_eq!(see(other, &[("x", A)]), (vec!["y vanished 1>- quarantined".into()], Standing::Quarantined));
    // More views than are told apart take nothing either.
    for view in 0..=u8::try_from(VIEWS_MAX).unwrap() {
        assert_eq!(see([view, 9, 9, 9, 9, 9, 9, 9], &[("x", A)]).0, Vec::<String>::new());
    }
    assert_eq!(see([200; 8], &[]).0, Vec::<String>::new());
}

/// Whoever listed a tool once, as a client that nobody uses, keeps it in force for some days at most.
#[test]
fn a_view_that_nobody_has_seen_for_days_holds_nothing() {
    let (mut pins, quarantine, other) = (Pins::default(), OnChange::Quarantine, [1; 8]);
    let mut see = |view: View, hour: u64, listed: &[(&str, Digest)]| {
        let now_us = (1_000 + hour) * HOUR_US;
        let (next, changes) = pins.observe("s", listed.iter().copied(), Some(view), quarantine, now_us).unwrap();
        pins = Pins::read(&next.bytes()).unwrap();
        assert_eq!(pins, next);
        (changes.iter().map(told).collect::<Vec<_>>(), pins.standing("s", "y"))
    };
    let (both, in_force, held) = ([("x", A), ("y", A)], Standing::InForce(A), Standing::Quarantined);
    see(V, 0, &both);
    see(other, 1, &both);
    assert_eq!(see(V, 2, &[("x", A)]), (vec!["y vanished 1>- warned".into()], in_force));
    assert_eq!(see(V, 1 + VIEW_HOURS_MAX, &[("x", A)]), (vec![], in_force));
    assert_eq!(see(V, 2 + VIEW_HOURS_MAX, &[("x", A)]), (vec!["y vanished 1>- quarantined".into()], held));
    assert_eq!(see(V, 3 + VIEW_HOURS_MAX, &[("x", A)]), (vec![], held));
    // What was listed to a client that can do more, and to nobody else, waits for that client however long.
    let known = see([2; 8], 200, &[("x", A), ("z", B)]);
    assert_eq!(known.0, ["z seen ->2 pinned"]);
    assert_eq!(see(V, 999, &[("x", A)]), (vec![], held));
    assert_eq!(see([2; 8], 1_999, &[("x", A), ("z", B)]), (vec![], held));
    // Old ones make room.
    for view in 0..u8::try_from(VIEWS_MAX).unwrap() {
        see([view, 9, 9, 9, 9, 9, 9, 9], 3_000, &[("x", A)]);
    }
    see([200; 8], 3_000 + VIEW_HOURS_MAX + 1, &[("x", A), ("w", C)]);
    let gone = see([200; 8], 3_000 + VIEW_HOURS_MAX + 1, &[("x", A)]);
    assert_eq!(gone.0, ["w vanished 3>- quarantined"]);
}

/// A server may write to whom a mailbox belongs into the definition of its tools.
#[test]
fn a_credential_has_pins_of_its_own() {
    let (mut pins, quarantine) = (Pins::default(), OnChange::Quarantine);
    let [alice, bob, eve] = [1, 2, 3].map(|member| pinned_as("mail", Some(MemberId([member; 16]))));
    see(&mut pins, &alice, &[("read_mails", A)], quarantine);
    assert_eq!(see(&mut pins, &bob, &[("read_mails", B)], quarantine), ["read_mails seen ->2 pinned"]);
    assert!(see(&mut pins, &alice, &[("read_mails", A)], quarantine).is_empty());
    assert_eq!(see(&mut pins, &bob, &[("read_mails", C)], quarantine), ["read_mails changed 2>3 quarantined"]);
    assert_eq!(pins.standing(&alice, "read_mails"), Standing::InForce(A));
    assert_eq!(pins.standing(&bob, "read_mails"), Standing::Quarantined);
    assert_eq!(pins.quarantined().next(), Some((bob.as_str(), "read_mails", Some(B), Some(C))));
    let (accepted, change) = pins.accept(&bob, "read_mails", &why()).unwrap();
    assert_eq!(accepted.standing(&bob, "read_mails"), Standing::InForce(C));
    assert_eq!(change.record(&bob, 1).server, "mail");
    // Another credential's tools are no look-alikes; another server's are.
    assert_eq!(see(&mut pins, &eve, &[("read_mail", A)], quarantine), ["read_mail seen ->1 pinned"]);
    assert!(see(&mut pins, "evil", &[("readmail", A)], quarantine)[0].contains("quarantined like read_mail"));
    // What was known before members had credentials is known of each.
    see(&mut pins, "old", &[("x", A)], quarantine);
    let of_alice = pinned_as("old", Some(MemberId([1; 16])));
    assert_eq!(pins.standing(&of_alice, "x"), Standing::InForce(A));
    assert_eq!(see(&mut pins, &of_alice, &[("x", B)], quarantine), ["x changed 1>2 quarantined"]);
    assert_eq!(pins.standing("old", "x"), Standing::InForce(A));
}

#[test]
fn no_server_fills_the_file() {
    let warn = OnChange::Warn;
    let names: Vec<String> = (0..=TOOLS_MAX).map(|number| format!("tool-{number:05}-{}", "x".repeat(7))).collect();
    let listed = |range: std::ops::Range<usize>| names[range].iter().map(|name| (name.as_str(), A)).collect::<Vec<_>>();
    let observe = |pins: &Pins, listed: Vec<(&str, Digest)>| pins.observe("s", listed.into_iter(), Some(V), warn, 0);
    assert_eq!(observe(&Pins::default(), listed(0..TOOLS_MAX + 1)).unwrap_err(), TooMany);
    let (full, _) = observe(&Pins::default(), listed(0..TOOLS_MAX)).unwrap();
    // What is gone makes room.
    let (next, _) = observe(&full, listed(1..2)).unwrap();
    let (next, changes) = observe(&next, listed(TOOLS_MAX..TOOLS_MAX + 1)).unwrap();
    assert_eq!((changes.len(), next.standing("s", &names[TOOLS_MAX])), (2, Standing::InForce(A)));
}

#[test]
fn a_file_that_is_not_in_form_is_not_read() {
    for (text, says) in [
        ("", "EOF"),
        (r#"{"version":2,"servers":{}}"#, "of version 2"),
        (r#"{"version":1,"servers":{},"more":1}"#, "unknown field"),
        (r#"{"version":1,"servers":{"s":[{"tool":"x"}]}}"#, "not in form"),
        (r#"{"version":1,"servers":{"s":[{"tool":"a b","pinned":"00"}]}}"#, "not in form"),
        (r#"{"version":1,"servers":{"s":[{"tool":"x","pinned":"00"}]}}"#, "not in form"),
    ] {
        let why = Pins::read(text.as_bytes()).unwrap_err();
        assert!(why.contains(says), "{text}: {why}");
    }
}
