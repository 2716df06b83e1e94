//! Changes that cannot be finished, and files that somebody else changes: what is taken away is gone at once, what was refused
//! never comes, what was revoked does not come back by accident, and nobody's edit is lost.

use super::*;

fn kind(access: &Access, token: &OneTimeToken) -> Result<(), Why> {
    let header = format!("Bearer {}", token.reveal());
    access.authenticate(Some(&header), clock::now_us()).map(drop).map_err(|refused| refused.kind)
}

async fn token_of(engine: &Engine, id: &str) -> OneTimeToken {
    let issue = Edit::TokenIssue { member: member(id), agent: Some(member(AGENT)), days: None };
    edited(engine, issue).await.tokens.pop().unwrap()
}

/// A policy with a second member, in force.
async fn two(machine: &Arc<Machine>) -> Engine {
    machine.put(&paths().workspace, &policy().replace("[agents", &format!("[members.{BOB}]\n\n[agents")));
    open(machine).await.unwrap()
}

#[tokio::test]
async fn what_is_taken_away_is_gone_at_once_though_nothing_can_be_recorded() {
    let machine = machine();
    let engine = two(&machine).await;
    let (alice, bob) = (token_of(&engine, ALICE).await, token_of(&engine, BOB).await);
    let (access, digest, records) = (engine.access(), engine.access().digest(), machine.records.lock().unwrap().len());
    let caller = access.authenticate(Some(&format!("Bearer {}", alice.reveal())), clock::now_us()).unwrap();
    let mut changes = access.changes();
    changes.mark_unchanged();
    machine.is_full.store(true, SeqCst);
    // What a rule takes away is refused by a name of its own: no record says that rule yet.
    let deny = NewRule { everyone: true, tools: vec!["mail/send".into()], ..NewRule::default() };
    let said = edited(&engine, Edit::Deny(deny)).await.unfinished.unwrap();
    assert!(said.contains("refused already") && said.contains("hint: "), "{said}");
    let judged = access.judge(&caller, &ask("send"));
    assert_eq!((judged.allowed, &*judged.rule, judged.policy), (false, "shim/change-pending", digest));
    assert!(access.judge(&caller, &ask("read")).allowed);
    // And more than one.
    edited(&engine, Edit::MemberRevoke { member: member(ALICE) }).await.unfinished.unwrap();
    edited(&engine, Edit::TokenRevoke { token: bob.id() }).await.unfinished.unwrap();
    assert!(changes.has_changed().unwrap(), "what is open is looked at");
    let gone = |access: &Access| [&alice, &bob].map(|token| kind(access, token));
    assert_eq!(gone(&access), [Err(Why::Revoked), Err(Why::Revoked)]);
    assert!(matches!(access.still_allowed(&caller, &ask("read"), clock::now_us()), Err(Cut::Unauthenticated(_))));
    assert_eq!((access.digest(), machine.records.lock().unwrap().len()), (digest, records));
    let told = engine.differs().await.unwrap();
    assert!(told.starts_with("3 changes of the access policy are asked for"), "{told}");
    // A start that finds them goes on so.
    drop(engine);
    let engine = open(&machine).await.unwrap();
    assert_eq!(gone(&engine.access()), [Err(Why::Revoked), Err(Why::Revoked)]);
    engine.again().await;
    assert_eq!(machine.records.lock().unwrap().len(), records);
    machine.is_full.store(false, SeqCst);
    engine.again().await;
    let (state, policy) = (machine.replayed(), engine.policy().await);
    assert_eq!((state.digest, state.gaps, state.tokens.len()), (Some(policy.digest), 0, 0));
    assert_eq!((machine.file(&paths().pending()), engine.differs().await), (None, None));
    assert_eq!(gone(&engine.access()), [Err(Why::Revoked), Err(Why::Revoked)]);
}

/// Not even the folder takes anything: then a restart would forget it, and that is said.
#[tokio::test]
async fn what_cannot_even_be_written_down_is_refused_as_long_as_this_runs() {
    let machine = machine();
    let engine = two(&machine).await;
    let alice = token_of(&engine, ALICE).await;
    machine.left.store(0, SeqCst);
    let said = edited(&engine, Edit::TokenRevoke { token: alice.id() }).await.unfinished.unwrap();
    assert!(said.contains("a restart would forget that; hint"), "{said}");
    assert_eq!(kind(&engine.access(), &alice), Err(Why::Revoked));
    machine.left.store(usize::MAX, SeqCst);
    engine.again().await;
    assert_eq!((machine.replayed().tokens.len(), engine.differs().await), (0, None));
}

#[tokio::test]
async fn what_was_refused_never_comes() {
    let machine = machine();
    let engine = two(&machine).await;
    let (access, before) = (engine.access(), engine.policy().await.digest);
    machine.is_full.store(true, SeqCst);
    let grant = NewRule { everyone: true, tools: vec!["*".into()], ..NewRule::default() };
    for verb in [Edit::TokenIssue { member: member(ALICE), agent: None, days: None }, Edit::Grant(grant)] {
        let Err(ChangeError::Refused(said)) = engine.edit(verb, why()).await else { panic!("it cannot be recorded") };
        assert!(said.contains("nothing was changed"), "{said}");
    }
    machine.put(&paths().workspace, &policy().replace("mail/*", "*"));
    assert!(matches!(engine.apply(None, Allowance::default(), why()).await, Err(ChangeError::Refused(_))));
    machine.is_full.store(false, SeqCst);
    engine.again().await;
    assert_eq!((machine.file(&paths().pending()), access.digest()), (None, before));
    assert_eq!(open(&machine).await.unwrap().access().digest(), before);
}

#[tokio::test]
async fn a_rotation_that_waits_ends_the_old_token_and_the_new_one_is_good_once_it_is_on_record() {
    let machine = machine();
    let engine = two(&machine).await;
    let old = token_of(&engine, ALICE).await;
    machine.is_full.store(true, SeqCst);
    let rotated = edited(&engine, Edit::TokenRotate { token: old.id(), overlap_s: 0 }).await;
    let [new] = rotated.tokens.as_slice() else { panic!("it is shown") };
    assert!(rotated.unfinished.is_some());
    assert_eq!((kind(&engine.access(), &old), kind(&engine.access(), new)), (Err(Why::Revoked), Err(Why::Unknown)));
    machine.is_full.store(false, SeqCst);
    // Also over a restart: somebody has it.
    let engine = open(&machine).await.unwrap();
    assert_eq!((kind(&engine.access(), &old), kind(&engine.access(), new)), (Err(Why::Revoked), Ok(())));
}

/// Whatever the last write was before a crash: no token is good that nobody was shown.
#[tokio::test]
async fn a_token_that_nobody_saw_is_good_for_nobody() {
    for writes in 0.. {
        let machine = machine();
        let engine = two(&machine).await;
        machine.left.store(writes, SeqCst);
        let issue = Edit::TokenIssue { member: member(ALICE), agent: None, days: None };
        let whole = engine.edit(issue, why()).await.is_ok_and(|changed| changed.unfinished.is_none());
        drop(engine);
        machine.left.store(usize::MAX, SeqCst);
        let engine = open(&machine).await.unwrap();
        let (policy, state) = (engine.policy().await, machine.replayed());
        assert_eq!((state.digest, state.gaps), (Some(policy.digest), 0), "after {writes} writes");
        let good = policy.tokens.values().filter(|token| !token.revoked).count();
        assert_eq!((good, state.tokens.len()), if whole { (1, 1) } else { (0, 0) }, "after {writes} writes");
        if whole {
            assert!(writes > 5);
            return;
        }
    }
}

#[tokio::test]
async fn a_first_start_that_cannot_be_recorded_lets_nobody_in_and_goes_on() {
    let machine = machine();
    machine.is_full.store(true, SeqCst);
    let engine = open(&machine).await.unwrap();
    assert!(engine.policy().await.members.is_empty());
    assert!(engine.differs().await.unwrap().contains("1 changes"));
    machine.is_full.store(false, SeqCst);
    engine.again().await;
    assert_eq!((machine.replayed().digest, machine.replayed().gaps), (Some(engine.access().digest()), 0));
    assert_eq!(engine.policy().await.members.len(), 1);
}

#[tokio::test]
async fn what_waits_can_be_given_up_unless_it_may_be_on_record() {
    let machine = machine();
    let engine = two(&machine).await;
    let alice = token_of(&engine, ALICE).await;
    assert!(matches!(engine.abandon(why()).await, Err(ChangeError::Refused(_))));
    machine.is_full.store(true, SeqCst);
    edited(&engine, Edit::TokenRevoke { token: alice.id() }).await;
    let given_up = engine.abandon(why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(given_up.lines[0].starts_with("given up: - token"), "{:?}", given_up.lines);
    assert_eq!(kind(&engine.access(), &alice), Ok(()));
    assert!(given_up.warnings[0].contains("not on record yet; hint"), "{:?}", given_up.warnings);
    assert!(matches!(engine.abandon(why()).await, Err(ChangeError::Refused(_))), "it is given up already");
    // It goes on record as soon as there is room, also behind a start: by whom, why, and what was given back.
    let (records, digest) = (machine.records.lock().unwrap().len(), engine.access().digest());
    let engine = open(&machine).await.unwrap();
    assert_eq!(kind(&engine.access(), &alice), Ok(()));
    machine.is_full.store(false, SeqCst);
    engine.again().await;
    assert_eq!(machine.file(&paths().pending()), None);
    {
        let records = &machine.records.lock().unwrap()[records..];
        let [record] = records else { panic!("{records:?}") };
        assert_eq!((record.action(), record.token.as_deref()), (AccessAction::TokenIssued, Some(&alice.id()[..])));
        assert_eq!((record.reason.as_str(), record.actor_account), ("left", Some(1_000)));
        assert_eq!(record.policy_digest_before.as_deref(), Some(&digest[..]));
        assert_eq!(record.policy_digest_after, digest.to_vec());
    }
    let (state, policy) = (machine.replayed(), engine.policy().await);
    assert_eq!((state.digest, state.gaps, state.tokens.len()), (Some(policy.digest), 0, 1));
    assert_eq!(state.tokens[&alice.id()[..]].expires_at, policy.tokens[&alice.id()].expires_at);
    machine.is_full.store(true, SeqCst);
    edited(&engine, Edit::TokenRevoke { token: alice.id() }).await;
    let engine = open(&machine).await.unwrap();
    let Err(ChangeError::Refused(said)) = engine.abandon(why()).await else { panic!("it may be on record") };
    assert!(said.contains("hint: "), "{said}");
}

/// Somebody edits the file while a verb revokes a stolen token: applying the file later must not bring the token back.
#[tokio::test]
async fn applying_a_file_undoes_no_verb_and_brings_nothing_back_by_accident() {
    let machine = machine();
    let engine = two(&machine).await;
    let stolen = token_of(&engine, ALICE).await;
    let edit_of_somebody = machine.file(&paths().workspace).unwrap() + "[servers.files]\nowner = \"team\"\n";
    machine.put(&paths().workspace, &edit_of_somebody);
    let revoked = edited(&engine, Edit::TokenRevoke { token: stolen.id() }).await;
    assert!(revoked.warnings[0].contains("LACKS this change; hint"), "{:?}", revoked.warnings);
    assert_eq!(machine.file(&paths().workspace), Some(edit_of_somebody.clone()));
    let plan = engine.plan().await.unwrap();
    assert!(plan.warnings[0].contains("--over ") && plan.warnings[1].contains("--restore-revoked"), "{plan:?}");
    let over = Allowance { over: Some(plan.before), restore_revoked: false };
    let old = Allowance { over: Some([0; 32]), ..over };
    for (text, meant, says) in [
        (None, Allowance::default(), "would undo that; hint"),
        (Some(edit_of_somebody.clone()), Allowance::default(), "would undo that; hint"),
        (None, old, "no longer what --over names"),
        (None, over, "was revoked and would come back; hint"),
    ] {
        let Err(ChangeError::Refused(said)) = engine.apply(text, meant, why()).await else { panic!("{says}") };
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(kind(&engine.access(), &stolen), Err(Why::Revoked));
    // A restart forgets none of it.
    let engine = open(&machine).await.unwrap();
    assert!(engine.apply(None, Allowance::default(), why()).await.is_err());
    // Whoever means it says so.
    let meant = Allowance { restore_revoked: true, ..over };
    engine.apply(None, meant, why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kind(&engine.access(), &stolen), Ok(()));
    // What a file takes away does not come back by another one either.
    let without = machine.file(&paths().workspace).unwrap();
    let (without, with) = (without.split("[[tokens]]").next().unwrap().to_owned() + "[servers.files]\n", without);
    machine.put(&paths().workspace, &without);
    engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    let Err(ChangeError::Refused(said)) = engine.apply(Some(with), Allowance::default(), why()).await else {
        panic!("it came back")
    };
    assert!(said.contains("token"), "{said}");
}

/// A verb could not write its last file; somebody edits the file then; what goes on does not overwrite that.
#[tokio::test]
async fn a_change_that_goes_on_overwrites_nobodys_edit() {
    let machine = machine();
    let engine = two(&machine).await;
    // Written down, recorded, the organisation's copy and what is kept are there.
    machine.left.store(5, SeqCst);
    let join = |group: &str| Edit::GroupJoin { member: member(ALICE), group: group.into() };
    assert!(edited(&engine, join("night")).await.unfinished.is_some());
    machine.left.store(usize::MAX, SeqCst);
    let by_hand = machine.file(&paths().workspace).unwrap() + "# by hand\n";
    machine.put(&paths().workspace, &by_hand);
    let next = edited(&engine, join("day")).await;
    assert_eq!(machine.file(&paths().workspace), Some(by_hand));
    assert!(next.warnings.iter().any(|warning| warning.contains("LACKS")), "{:?}", next.warnings);
    assert!(engine.differs().await.unwrap().contains("lacks what verbs changed"));
    assert_eq!(engine.policy().await.members[&member(ALICE)].groups.len(), 3);
}

#[tokio::test]
async fn whoever_is_named_as_the_one_who_asks_is_a_member_and_the_account_is_on_record() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let of = |actor| Reason { actor, ..why() };
    let add = Edit::AgentAdd { agent: member(BOB) };
    for nobody in [BOB, AGENT] {
        let Err(ChangeError::Refused(said)) = engine.edit(add.clone(), of(Actor::Member(member(nobody)))).await else {
            panic!("nobody asked")
        };
        assert!(said.contains("is no member; hint"), "{said}");
    }
    engine.edit(add, of(Actor::Member(member(ALICE)))).await.unwrap_or_else(|error| panic!("{error}"));
    let records = machine.records.lock().unwrap();
    let last = records.last().unwrap();
    let alice = custody::wire::access_change::Actor::ActorMember(member(ALICE).into());
    assert_eq!((last.actor.as_ref(), last.actor_account), (Some(&alice), Some(1_000)));
    assert_eq!(records[0].actor_account, None, "nobody asked for the first");
}

/// The file follows each verb; then a deployment copies the version of a repository over it, or brings that version.
#[tokio::test]
async fn an_old_text_undoes_no_verb_wherever_it_comes_from() {
    let machine = machine();
    let engine = two(&machine).await;
    let token = token_of(&engine, ALICE).await;
    let old = machine.file(&paths().workspace).unwrap();
    let deny = NewRule { everyone: true, tools: vec!["mail/send".into()], ..NewRule::default() };
    let join = |group: &str| Edit::GroupJoin { member: member(BOB), group: group.into() };
    let leave = Edit::GroupLeave { member: member(ALICE), group: "staff".into() };
    for verb in [Edit::Deny(deny), join("night"), leave, Edit::RuleRemove { id: "staff".into() }] {
        assert!(edited(&engine, verb).await.warnings.is_empty(), "the file follows");
    }
    // An edit of something else, of what is in force, is applied; what verbs did is not forgotten by that.
    let labels = "[servers.files]\nowner = \"team\"\n";
    let edit = machine.file(&paths().workspace).unwrap() + labels;
    machine.put(&paths().workspace, &edit);
    engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    let engine = open(&machine).await.unwrap();
    machine.put(&paths().workspace, &old);
    for text in [None, Some(old.clone())] {
        let Err(ChangeError::Refused(said)) = engine.apply(text, Allowance::default(), why()).await else {
            panic!("it undid verbs")
        };
        for part in ["rule deny-1 (made", "in group night (added)", "in group staff (taken away)", "rule staff (taken"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("token"), "{said}");
    }
    assert!(engine.differs().await.unwrap().contains("lacks what verbs changed"));
    // The repair that is named: what is in force, to the byte, and the edit.
    let shown = engine.shown().await.text;
    assert_eq!(shown, edit);
    for text in [shown.clone(), shown + "[servers.more]\nowner = \"team\"\n"] {
        machine.put(&paths().workspace, &text);
        engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    }
    // Whoever saw what is in force may, and it is not asked again.
    let over = Allowance { over: Some(engine.access().digest()), restore_revoked: false };
    engine.apply(Some(old.clone()), over, why()).await.unwrap_or_else(|error| panic!("{error}"));
    engine.apply(Some(old), Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kind(&engine.access(), &token), Ok(()));
}

/// A leaked token was rotated: the file of before has its old end.
#[tokio::test]
async fn no_file_gives_a_token_back_the_time_that_it_was_taken() {
    let machine = machine();
    let engine = two(&machine).await;
    let leaked = token_of(&engine, ALICE).await;
    let old = machine.file(&paths().workspace).unwrap();
    edited(&engine, Edit::TokenRotate { token: leaked.id(), overlap_s: 5 }).await;
    let over = |engine: &Engine| Allowance { over: Some(engine.access().digest()), restore_revoked: false };
    for engine in [engine, open(&machine).await.unwrap()] {
        let Err(ChangeError::Refused(said)) = engine.apply(Some(old.clone()), Allowance::default(), why()).await else {
            panic!("it came back")
        };
        assert!(said.contains("would undo that") && said.contains(&hex(&leaked.id())), "{said}");
        let Err(ChangeError::Refused(said)) = engine.apply(Some(old.clone()), over(&engine), why()).await else {
            panic!("it came back")
        };
        assert!(said.contains("would be good beyond that; hint"), "{said}");
        let plan = engine.plan_of(old.clone()).await.unwrap();
        assert!(plan.warnings.iter().any(|warning| warning.contains("--restore-revoked")), "{plan:?}");
    }
    // Nor one whose end has passed by itself.
    let end = "2025-11-02T00:00:00Z";
    let issued = format!(
        "[[tokens]]\nid = \"{BOB}\"\nsha256 = \"{}\"\nmember = \"{BOB}\"\nagent = \"{AGENT}\"\n",
        "00".repeat(32)
    );
    let token = |end: &str| old.clone() + &issued + "issued_at = 2025-11-01T00:00:00Z\nexpires_at = " + end + "\n";
    let later = Policy::parse(&token(end).replace("2025", "2096"), None).unwrap();
    let back = Kept::default().back(&Policy::parse(&token(end), None).unwrap(), &later, clock::now_us());
    assert!(back.len() == 1 && back[0].contains("would be good beyond"), "{back:?}");
}

/// A deny waits, then it is taken back before it is on record: what is in force says the same as the last that was asked for.
#[tokio::test]
async fn what_is_said_of_a_change_that_waits_is_so() {
    let machine = machine();
    let engine = two(&machine).await;
    let alice = token_of(&engine, ALICE).await;
    let caller = engine.access().authenticate(Some(&format!("Bearer {}", alice.reveal())), clock::now_us()).unwrap();
    machine.is_full.store(true, SeqCst);
    let deny = NewRule { id: Some("no".into()), everyone: true, tools: vec!["mail/*".into()], ..NewRule::default() };
    edited(&engine, Edit::Deny(deny)).await.unfinished.unwrap();
    let said = edited(&engine, Edit::RuleRemove { id: "no".into() }).await.unfinished.unwrap();
    assert_eq!(machine.file(&paths().in_force()).as_ref(), Some(&engine.0.state.lock().await.newest().0.workspace));
    assert!(!said.contains("is in force") && said.contains("refused already"), "{said}");
    assert!(!engine.access().judge(&caller, &ask("send")).allowed);
    // Whom a change takes out is shown so.
    edited(&engine, Edit::MemberRevoke { member: member(BOB) }).await.unfinished.unwrap();
    let shown = engine.shown().await.lines;
    assert!(
        shown.iter().any(|line| line.starts_with(&format!("asked for, and not finished: - member {BOB}"))),
        "{shown:?}"
    );
    assert!(
        engine.narrowed().await.members[&member(BOB)].revoked && !engine.policy().await.members[&member(BOB)].revoked
    );
    machine.is_full.store(false, SeqCst);
    engine.again().await;
    assert!(
        engine.access().judge(&caller, &ask("send")).allowed && engine.narrowed().await.members[&member(BOB)].revoked
    );
}

/// Whatever the last write was: what was asked for still waits and is refused, or it was given up and that is on record.
#[tokio::test]
async fn a_crash_while_something_is_given_up_leaves_it_waiting_or_given_up() {
    for writes in 0.. {
        let machine = machine();
        let engine = two(&machine).await;
        let alice = token_of(&engine, ALICE).await;
        machine.is_full.store(true, SeqCst);
        edited(&engine, Edit::TokenRevoke { token: alice.id() }).await;
        let records = machine.records.lock().unwrap().len();
        machine.is_full.store(false, SeqCst);
        machine.left.store(writes, SeqCst);
        let ended = engine.abandon(why()).await;
        let whole = ended.as_ref().is_ok_and(|given_up| given_up.warnings.is_empty());
        assert_eq!(kind(&engine.access(), &alice).is_ok(), ended.is_ok(), "after {writes} writes");
        drop(engine);
        machine.left.store(usize::MAX, SeqCst);
        let engine = open(&machine).await.unwrap();
        let (state, policy) = (machine.replayed(), engine.policy().await);
        assert_eq!((state.digest, state.gaps), (Some(policy.digest), 0), "after {writes} writes");
        assert_eq!(kind(&engine.access(), &alice).is_ok(), writes > 0, "after {writes} writes");
        let last = machine.records.lock().unwrap()[records..].last().unwrap().action();
        let said = if writes > 0 { AccessAction::TokenIssued } else { AccessAction::TokenRevoked };
        assert_eq!((last, machine.file(&paths().pending())), (said, None), "after {writes} writes");
        if whole {
            assert!(writes > 4);
            return;
        }
    }
}

/// A verb that a crash cut short is known as one all the same.
#[tokio::test]
async fn a_crash_forgets_nothing_of_what_a_verb_did() {
    for writes in 1.. {
        let machine = machine();
        let engine = two(&machine).await;
        let old = machine.file(&paths().workspace).unwrap();
        machine.left.store(writes, SeqCst);
        let deny = NewRule { everyone: true, tools: vec!["mail/send".into()], ..NewRule::default() };
        let done = engine.edit(Edit::Deny(deny), why()).await;
        drop(engine);
        machine.left.store(usize::MAX, SeqCst);
        let engine = open(&machine).await.unwrap();
        assert_eq!(engine.policy().await.rules.len(), 3, "after {writes} writes");
        let Err(ChangeError::Refused(said)) = engine.apply(Some(old), Allowance::default(), why()).await else {
            panic!("it was undone after {writes} writes")
        };
        assert!(said.contains("rule deny-1"), "{said}");
        if done.is_ok_and(|done| done.unfinished.is_none()) {
            return;
        }
    }
}

/// The first rule that fits decides: one that a verb made does nothing behind another that decides otherwise.
#[tokio::test]
async fn applying_a_file_puts_no_rule_of_a_verb_behind_one_that_decides_otherwise() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let made = |id: &str, tools: &str| NewRule {
        id: Some(id.into()),
        everyone: true,
        tools: vec![tools.into()],
        ..NewRule::default()
    };
    edited(&engine, Edit::Deny(made("no", "mail/send"))).await;
    edited(&engine, Edit::Grant(made("yes", "files/read"))).await;
    let rule = |id: &str, effect: &str, tools: &str| {
        format!("[[rules]]\nid = \"{id}\"\neffect = \"{effect}\"\neveryone = true\ntools = [\"{tools}\"]\n")
    };
    let (no, yes) = (rule("no", "deny", "mail/send"), rule("yes", "allow", "files/read"));
    let (late, new) = (rule("late", "deny", "files/*"), rule("new", "allow", "mail/*"));
    let text =
        |first: &[&str], last: &[&str]| policy().replace("# Nothing", &(first.concat() + "# Nothing")) + &last.concat();
    let moved = text(&[], &[&no, &yes]);
    let widened = moved.replace("groups = [\"staff\"]\ntools", "everyone = true\ntools");
    assert_ne!(moved, widened);
    for (text, over, says) in [
        (moved.clone(), false, Some("rule no (made to stand before rule staff, which would come first), and would")),
        (text(&[&new, &no], &[&yes]), false, Some("rule no (made to stand before rule new,")),
        // What is denied besides undoes nothing, and the order of what decides alike is nobody's.
        (text(&[&rule("also", "deny", "*/x"), &no, &yes], &[&late, &new]), false, None),
        (text(&[&no, &late], &[&yes]), false, Some("rule yes (made to stand before rule late,")),
        // Whoever means it says so, and is not asked again; but for what allows more there.
        (moved.clone(), true, None),
        (moved + "# reviewed\n", false, None),
        (widened, false, Some("rule no (made to stand before rule staff,")),
    ] {
        let before = engine.access().digest();
        let meant = Allowance { over: over.then_some(before), restore_revoked: false };
        let warned = engine.plan_of(text.clone()).await.unwrap().warnings;
        let applied = engine.apply(Some(text), meant, why()).await.map_err(|why| why.to_string());
        match (says, applied) {
            (Some(says), Err(said)) => {
                assert!(said.contains(says) && warned[0].contains(says), "{said}, {warned:?}");
                assert_eq!((said.matches("made").count(), engine.access().digest()), (1, before), "{said}");
            }
            (None, Ok(_)) => assert!(over != warned.is_empty() && engine.access().digest() != before, "{warned:?}"),
            (says, applied) => panic!("{says:?}: {:?}", applied.map(|changed| changed.lines)),
        }
    }
}

#[tokio::test]
async fn applying_what_is_in_force_says_that_nothing_changes() {
    let machine = machine();
    let engine = open(&machine).await.unwrap();
    let (records, digest) = (machine.records.lock().unwrap().len(), engine.access().digest());
    let applied = engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(applied.lines[0].starts_with("nothing changes, and nothing is recorded"), "{:?}", applied.lines);
    assert_eq!((machine.records.lock().unwrap().len(), applied.digest, applied.unfinished), (records, digest, None));
    // The text alone is a change, and on record.
    machine.put(&paths().workspace, &(policy() + "# reviewed\n"));
    let applied = engine.apply(None, Allowance::default(), why()).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(applied.lines.is_empty() && machine.records.lock().unwrap().len() == records + 1, "{:?}", applied.lines);
}
