//! Every rule by which a statement is refused, and the effect of every action.

use super::*;
use crate::{
    key::public,
    testing::{
        AT, GATEWAY, GATEWAY_ID, HEAD, LAST_ROOT, LEDGER_ID, LOG, NEXT_ROOT, RECEIPT, RECORD, REGISTRAR, ROOT, Rng,
        WORKSPACE, Writer, create, delegate, enrol, key, key_id, ledger_chain, proof, public_bytes, roots,
        sign_statement, workspace_chain,
    },
};

const OTHER: u8 = 40;

fn gateway_key() -> KeyId {
    key_id(GATEWAY, Role::Gateway)
}

fn retire(id: KeyId) -> Action {
    Action::Retire(wire::Retire { key_id: id.into() })
}

fn revoke(id: KeyId, void_serials: &[u64]) -> Action {
    Action::Revoke(wire::Revoke { key_id: id.into(), void_serials: void_serials.to_vec() })
}

fn suspect(id: KeyId, since: u64) -> Action {
    Action::Suspect(wire::Suspect { key_id: id.into(), since })
}

fn hold(byte: u8, until: Option<u64>) -> Action {
    Action::Hold(wire::Hold { hold: vec![byte; 16].into(), since: AT, until })
}

fn release(byte: u8) -> Action {
    Action::Release(wire::Release { hold: vec![byte; 16].into() })
}

fn incarnation(number: u64) -> Action {
    Action::Incarnation(wire::Incarnation {
        number,
        log_size: 3,
        log_root: vec![1; 32].into(),
        last_seals_hash: vec![2; 32].into(),
    })
}

fn remove() -> Action {
    Action::Remove(wire::Remove {})
}

fn succession(new: u8, next: u8) -> Action {
    let successor = root_successor(&public(&key(next)).to_bytes());
    Action::SucceedRoot(wire::SucceedRoot { public_key: public_bytes(new), successor_hash: successor.to_vec().into() })
}

/// `action` by the root, refused with this text.
fn refused(writer: &Writer, action: Action, why: &str) {
    let statement = writer.draft(action);
    assert_eq!(writer.clone().put(&statement, ROOT), Err(Refused(leak(why))), "{statement:?}");
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

/// A statement of the gateway workspace, changed before it is signed, refused with this text.
fn refused_when(change: impl FnOnce(&mut wire::Statement), why: &str) {
    let mut writer = workspace_chain();
    let mut statement = writer.draft(hold(1, None));
    change(&mut statement);
    assert_eq!(writer.put(&statement, ROOT), Err(Refused(leak(why))));
}

const FORBIDDEN: &str = "says what its signer or chain may not say";

#[test]
fn a_statement_continues_its_own_chain_and_no_other() {
    refused_when(|s| s.origin = "log.example/other".into(), "is of another origin");
    refused_when(|s| s.workspace = Some(vec![9; 16].into()), "is of another chain");
    refused_when(|s| s.workspace = None, "is of another chain");
    refused_when(|s| s.serial += 1, "has a serial that does not follow");
    refused_when(|s| s.serial -= 1, "has a serial that does not follow");
    refused_when(|s| s.previous = vec![9; 32].into(), "names another predecessor");
    let mut writer = workspace_chain();
    writer.say(remove());
    refused(&writer, hold(1, None), "comes after the workspace was removed");
}

#[test]
fn a_statement_is_taken_once() {
    let mut writer = workspace_chain();
    let statement = writer.draft(hold(1, None));
    writer.put(&statement, ROOT).unwrap();
    assert_eq!(writer.put(&statement, ROOT), Err(Refused("has a serial that does not follow")));
}

#[test]
fn a_chain_has_an_end() {
    let mut writer = workspace_chain();
    writer.chain.head.count = CHAIN_STATEMENTS_MAX - 1;
    writer.say(hold(1, None));
    refused(&writer, hold(2, None), "is one more than a chain may have");
}

#[test]
fn only_root_and_registrar_in_force_sign() {
    let why = "has a signature that does not verify";
    let mut writer = workspace_chain();
    let statement = writer.draft(hold(1, None));
    assert_eq!(writer.clone().put(&statement, OTHER), Err(Refused(why)));
    assert_eq!(writer.clone().put(&statement, REGISTRAR), Err(Refused(why)));
    let object = sign_statement(&statement, ROOT);
    let mut signed = Signed::parse(&object).unwrap();
    signed.signature = vec![0; 64].into();
    assert_eq!(writer.chain.extended(&signed, &writer.roots).unwrap_err(), Refused(why));
    refused_when(|s| s.era = 0, "is of a root era that is not in force");
    refused_when(|s| s.era = 2, "is of a root era that is not in force");
    refused_when(|s| s.registrar = Some(vec![5; 32].into()), "is of a registrar that has no mandate");
    // A gateway's key is no registrar.
    refused_when(|s| s.registrar = Some(gateway_key().into()), "is of a registrar that has no mandate");
    // The registrar's signature under the registrar's name, but by the root.
    refused_when(|s| s.registrar = Some(key_id(REGISTRAR, Role::Registrar).into()), why);
    writer.say_as_registrar(hold(1, None)).unwrap();
    writer.say(revoke(key_id(REGISTRAR, Role::Registrar), &[]));
    assert_eq!(writer.say_as_registrar(hold(2, None)), Err(Refused("is of a registrar that has no mandate")));
    assert!(writer.chain.key(&gateway_key()).is_some_and(|key| !key.revoked), "what it enrolled stands");
}

#[test]
fn a_workspace_is_created_first_and_once() {
    let why = "creates what exists, or changes what does not";
    let mut writer = Writer::new(Some(WORKSPACE));
    refused(&writer, hold(1, None), why);
    refused(&writer, remove(), why);
    writer.say(create("payments"));
    assert_eq!((writer.chain.name(), writer.chain.is_removed()), ("payments", false));
    refused(&writer, create("again"), why);
    refused(&Writer::new(None), create("ledger-chain"), FORBIDDEN);
}

#[test]
fn removal_ends_a_workspace_but_never_the_reserved_one() {
    let mut writer = workspace_chain();
    assert_eq!(writer.say_as_registrar(remove()), Err(Refused(FORBIDDEN)));
    writer.say(remove());
    assert!(writer.chain.is_removed());
    let mut reserved = Writer::new(Some(WORKSPACE));
    reserved.say(create(RESERVED_NAME));
    refused(&reserved, remove(), FORBIDDEN);
    refused(&ledger_chain(), remove(), FORBIDDEN);
}

#[test]
fn the_root_delegates_within_a_number() {
    let mut writer = Writer::new(Some(WORKSPACE));
    writer.say(create("payments"));
    writer.say(delegate(1));
    assert_eq!(writer.say_as_registrar(delegate(9)), Err(Refused(FORBIDDEN)));
    writer.say_as_registrar(enrol(Some(WORKSPACE), Role::Gateway, GATEWAY, Some(GATEWAY_ID))).unwrap();
    let second = enrol(Some(WORKSPACE), Role::Gateway, OTHER, Some(GATEWAY_ID));
    let why = "is one enrolment more than the registrar may make";
    assert_eq!(writer.say_as_registrar(second.clone()), Err(Refused(why)));
    writer.say(second);
    refused(&writer, delegate(1), "brings a key that this chain had before");
    refused(&ledger_chain(), delegate(1), FORBIDDEN);
    let mut fresh = Writer::new(Some(WORKSPACE));
    fresh.say(create("payments"));
    let unproven = Action::Delegate(wire::Delegate {
        public_key: public_bytes(REGISTRAR),
        enrolments_max: 1,
        possession: proof(Some(WORKSPACE), Role::Gateway, REGISTRAR, None),
    });
    refused(&fresh, unproven, "lacks proof of possession");
    let weak = Action::Delegate(wire::Delegate {
        public_key: vec![0; 32].into(),
        enrolments_max: 1,
        possession: vec![0; 64].into(),
    });
    refused(&fresh, weak, "brings a weak key");
}

#[test]
fn an_enrolled_key_is_what_was_said() {
    let chain = workspace_chain().chain;
    let state = chain.key(&gateway_key()).unwrap();
    let expected = KeyState {
        role: Role::Gateway,
        public_key: public(&key(GATEWAY)),
        gateway: Some(GATEWAY_ID),
        serial: 2,
        name: "key-5".into(),
        retired: false,
        revoked: false,
        retired_by: None,
        revoked_by: None,
        suspect_since: None,
    };
    assert_eq!(*state, expected);
    assert_eq!(chain.keys().count(), 1);
    let ledger = ledger_chain().chain;
    let roles: BTreeSet<i32> = ledger.keys().map(|(_, key)| key.role as i32).collect();
    assert_eq!(roles, [Role::Record as i32, Role::Head as i32, Role::Log as i32].into());
}

#[test]
fn each_chain_enrols_its_own_roles() {
    let why = "enrols a role that has no place in this chain";
    let roles = [Role::Root, Role::Registrar, Role::Gateway, Role::Receipt, Role::Record, Role::Head, Role::Log];
    for role in roles {
        let writes = matches!(role, Role::Gateway | Role::Record).then_some(GATEWAY_ID);
        let mut workspace = workspace_chain();
        let statement = workspace.draft(enrol(Some(WORKSPACE), role, OTHER, writes));
        let allowed = matches!(role, Role::Gateway | Role::Receipt);
        let expected = if allowed { Ok(()) } else { Err(Refused(why)) };
        assert_eq!(workspace.put(&statement, ROOT), expected, "{role:?} in a workspace");
        let mut ledger = Writer::new(None);
        let statement = ledger.draft(enrol(None, role, OTHER, writes));
        let allowed = matches!(role, Role::Record | Role::Head | Role::Log);
        let expected = if allowed { Ok(()) } else { Err(Refused(why)) };
        assert_eq!(ledger.put(&statement, ROOT), expected, "{role:?} in the ledger's chain");
    }
    let mut reserved = Writer::new(Some(WORKSPACE));
    reserved.say(create(RESERVED_NAME));
    refused(&reserved, enrol(Some(WORKSPACE), Role::Gateway, GATEWAY, Some(GATEWAY_ID)), why);
    reserved.say(enrol(Some(WORKSPACE), Role::Receipt, RECEIPT, None));
}

#[test]
fn a_gateway_is_named_for_what_signs_batches_alone() {
    let why = "must name a gateway for a key that signs batches, and for no other";
    let writer = workspace_chain();
    refused(&writer, enrol(Some(WORKSPACE), Role::Gateway, OTHER, None), why);
    refused(&writer, enrol(Some(WORKSPACE), Role::Receipt, OTHER, Some(GATEWAY_ID)), why);
    refused(&Writer::new(None), enrol(None, Role::Record, RECORD, None), why);
    refused(&Writer::new(None), enrol(None, Role::Head, HEAD, Some(LEDGER_ID)), why);
}

#[test]
fn possession_is_proven_for_this_key_role_place_and_gateway() {
    let writer = workspace_chain();
    let with = |public: u8, possession| {
        Action::Enrol(wire::Enrol {
            role: Role::Gateway as i32,
            public_key: public_bytes(public),
            gateway: Some(GATEWAY_ID.into()),
            name: String::new(),
            possession,
        })
    };
    let here = Some(WORKSPACE);
    let wrong = [
        None,
        Some(vec![0; 64].into()),
        Some(proof(here, Role::Gateway, LOG, Some(GATEWAY_ID))),
        Some(proof(here, Role::Receipt, OTHER, Some(GATEWAY_ID))),
        Some(proof(here, Role::Gateway, OTHER, Some(LEDGER_ID))),
        Some(proof(here, Role::Gateway, OTHER, None)),
        Some(proof(None, Role::Gateway, OTHER, Some(GATEWAY_ID))),
        Some(proof(Some(WorkspaceId([9; 16])), Role::Gateway, OTHER, Some(GATEWAY_ID))),
    ];
    for possession in wrong {
        refused(&writer, with(OTHER, possession), "lacks proof of possession");
    }
    let right = proof(here, Role::Gateway, OTHER, Some(GATEWAY_ID));
    let mut enrolled = writer.clone();
    enrolled.say(with(OTHER, Some(right.clone())));
    refused(&enrolled, with(OTHER, Some(right)), "brings a key that this chain had before");
    refused(&writer, enrol(here, Role::Receipt, GATEWAY, None), "brings a key that this chain had before");
    refused(&writer, enrol(here, Role::Receipt, REGISTRAR, None), "brings a key that this chain had before");
    // A tool runtime's signer may not be ours to ask; but a proof that is there is right.
    let receipt = |possession| {
        Action::Enrol(wire::Enrol {
            role: Role::Receipt as i32,
            public_key: public_bytes(RECEIPT),
            possession,
            ..Default::default()
        })
    };
    refused(&writer, receipt(Some(vec![1; 64].into())), "lacks proof of possession");
    enrolled.say(receipt(None));
}

#[test]
fn keys_retire_are_revoked_and_come_under_suspicion() {
    let unknown = "names a key that is not enrolled";
    let mut writer = workspace_chain();
    for action in [retire(KeyId([9; 32])), revoke(KeyId([9; 32]), &[]), suspect(KeyId([9; 32]), 1)] {
        refused(&writer, action, unknown);
    }
    refused(&writer, retire(key_id(REGISTRAR, Role::Registrar)), unknown);
    writer.say(suspect(gateway_key(), 7));
    writer.say(suspect(gateway_key(), 9));
    assert_eq!(writer.chain.key(&gateway_key()).unwrap().suspect_since, Some(7), "the least stands");
    writer.say_as_registrar(suspect(gateway_key(), 3)).unwrap();
    assert_eq!(writer.chain.key(&gateway_key()).unwrap().suspect_since, Some(3));
    writer.say_as_registrar(retire(gateway_key())).unwrap();
    let state = writer.chain.key(&gateway_key()).unwrap().clone();
    assert!(state.retired && !state.revoked);
    writer.say_as_registrar(revoke(gateway_key(), &[])).unwrap();
    assert!(writer.chain.key(&gateway_key()).unwrap().revoked);
    let mut ledger = ledger_chain();
    ledger.say(suspect(key_id(HEAD, Role::Head), 4));
    ledger.say(retire(key_id(RECORD, Role::Record)));
    ledger.say(revoke(key_id(LOG, Role::Log), &[]));
    assert!(ledger.chain.key(&key_id(LOG, Role::Log)).unwrap().revoked);
}

#[test]
fn a_revoked_registrar_takes_what_is_named_with_it() {
    let mut writer = workspace_chain();
    let registrar = key_id(REGISTRAR, Role::Registrar);
    writer.say(enrol(Some(WORKSPACE), Role::Gateway, OTHER, Some(GATEWAY_ID)));
    writer.say_as_registrar(enrol(Some(WORKSPACE), Role::Receipt, RECEIPT, None)).unwrap();
    let why = "revokes a registrar without being the root";
    assert_eq!(writer.say_as_registrar(revoke(registrar, &[])), Err(Refused(why)));
    let why = "voids what that registrar did not enrol";
    for serial in [0, 1, 3, 5, u64::MAX] {
        refused(&writer, revoke(registrar, &[serial]), why);
    }
    refused(&writer, revoke(gateway_key(), &[2]), "voids serials of a key that is no registrar");
    writer.say(revoke(registrar, &[2]));
    let voided = writer.chain.key(&gateway_key()).unwrap();
    assert!(voided.revoked);
    assert_eq!(voided.suspect_since, Some(0), "from its beginning");
    for (byte, role) in [(OTHER, Role::Gateway), (RECEIPT, Role::Receipt)] {
        let spared = writer.chain.key(&key_id(byte, role)).unwrap();
        assert!(!spared.revoked && spared.suspect_since.is_none(), "{role:?}");
    }
}

#[test]
fn holds_stand_until_they_are_released() {
    let mut writer = workspace_chain();
    refused(&writer, release(1), "releases a hold that does not stand");
    writer.say(hold(1, None));
    writer.say_as_registrar(hold(2, Some(AT + 5))).unwrap();
    refused(&writer, hold(1, Some(AT)), "sets a hold that stands");
    let states: Vec<HoldState> = writer.chain.holds().map(|(_, state)| state.clone()).collect();
    assert_eq!(states, [HoldState { since: AT, until: None }, HoldState { since: AT, until: Some(AT + 5) }]);
    writer.say(release(1));
    assert_eq!(writer.chain.holds().map(|(id, _)| *id).collect::<Vec<_>>(), [[2; 16]]);
    refused(&writer, release(1), "releases a hold that does not stand");
    for action in [hold(1, None), release(1)] {
        refused(&ledger_chain(), action, FORBIDDEN);
    }
}

#[test]
fn incarnations_are_counted() {
    let mut ledger = ledger_chain();
    assert_eq!(ledger.chain.incarnation(), 0);
    for wrong in [0, 2, u64::MAX] {
        refused(&ledger, incarnation(wrong), "counts incarnations wrongly");
    }
    ledger.say(incarnation(1));
    ledger.say(incarnation(2));
    assert_eq!(ledger.chain.incarnation(), 2);
    refused(&workspace_chain(), incarnation(1), FORBIDDEN);
}

/// The ledger's chain after the second root took over.
fn succeeded() -> Writer {
    let mut ledger = ledger_chain();
    let mut statement = ledger.draft(succession(NEXT_ROOT, LAST_ROOT));
    statement.era = 2;
    ledger.put(&statement, NEXT_ROOT).unwrap();
    ledger
}

#[test]
fn a_root_is_succeeded_by_the_one_it_committed_to() {
    let why = "brings a root that was not committed to";
    let try_it = |new: u8, era: u32, signer: u8| {
        let mut ledger = ledger_chain();
        let mut statement = ledger.draft(succession(new, LAST_ROOT));
        statement.era = era;
        ledger.put(&statement, signer)
    };
    assert_eq!(try_it(NEXT_ROOT, 2, NEXT_ROOT), Ok(()));
    assert_eq!(try_it(OTHER, 2, OTHER), Err(Refused(why)));
    assert_eq!(try_it(NEXT_ROOT, 1, NEXT_ROOT), Err(Refused(why)));
    assert_eq!(try_it(NEXT_ROOT, 3, NEXT_ROOT), Err(Refused(why)));
    assert_eq!(try_it(NEXT_ROOT, 2, ROOT), Err(Refused("has a signature that does not verify")));
    let mut workspace = workspace_chain();
    let mut statement = workspace.draft(succession(NEXT_ROOT, LAST_ROOT));
    statement.era = 2;
    assert_eq!(workspace.put(&statement, NEXT_ROOT), Err(Refused(why)));
    let weak =
        Action::SucceedRoot(wire::SucceedRoot { public_key: vec![0; 32].into(), successor_hash: vec![1; 32].into() });
    refused(&ledger_chain(), weak, "brings a weak key");
}

#[test]
fn a_refused_succession_changes_no_root() {
    let ledger = ledger_chain();
    let mut statement = ledger.draft(succession(NEXT_ROOT, LAST_ROOT));
    statement.era = 2;
    let signed = Signed::parse(&sign_statement(&statement, OTHER)).unwrap();
    assert!(ledger.chain.extended(&signed, &ledger.roots).is_err());
    assert_eq!(ledger.roots, roots());
}

#[test]
fn the_era_before_signs_nothing_any_more() {
    let mut ledger = succeeded();
    assert_eq!(ledger.roots.current(), 2);
    let mut statement = ledger.draft(incarnation(1));
    statement.era = 1;
    let why = "is of a root era that is not in force";
    assert_eq!(ledger.clone().put(&statement, ROOT), Err(Refused(why)));
    // Who cannot know when a statement stood lets earlier eras count, but none that is yet to come.
    let mut lenient = ledger.clone();
    lenient.roots = lenient.roots.with_past();
    lenient.put(&statement, ROOT).unwrap();
    statement.era = 3;
    assert_eq!(ledger.clone().put(&statement, LAST_ROOT), Err(Refused(why)));
    ledger.say(incarnation(1));
}

#[test]
fn a_policy_that_names_the_next_era_must_agree_with_it() {
    let hash = |byte: u8| root_successor(&public(&key(byte)).to_bytes());
    let eras = |second: u8, after: u8| {
        let named = [(1, public(&key(ROOT)), hash(NEXT_ROOT)), (2, public(&key(second)), hash(after))];
        Roots::new(named).unwrap()
    };
    let take = |named: Roots| {
        let mut writer = ledger_chain();
        writer.roots = named;
        let mut statement = writer.draft(succession(NEXT_ROOT, LAST_ROOT));
        statement.era = 2;
        writer.put(&statement, NEXT_ROOT)
    };
    assert_eq!(take(eras(NEXT_ROOT, LAST_ROOT)), Ok(()));
    assert!(take(eras(OTHER, LAST_ROOT)).is_err() && take(eras(NEXT_ROOT, OTHER)).is_err());
    assert!(Roots::new([]).is_none());
    // A policy that was made later begins with a later era.
    assert_eq!(Roots::new([(4, public(&key(ROOT)), [0; 32])]).unwrap().current(), 4);
}

#[test]
fn only_what_everybody_must_see_is_a_log_entry() {
    let signed = |writer: &Writer, at: usize| Signed::parse(&writer.objects[at]).unwrap();
    let mut workspace = workspace_chain();
    workspace.say(remove());
    let entries: Vec<bool> = (0..4).map(|at| signed(&workspace, at).is_log_entry()).collect();
    assert_eq!(entries, [true, false, false, true]);
    let ledger = ledger_chain();
    assert!((0..3).all(|at| signed(&ledger, at).is_log_entry() && signed(&ledger, at).workspace().is_none()));
}

#[test]
fn a_changed_statement_never_continues_a_chain() {
    let writer = workspace_chain();
    let mut rng = Rng::for_test("a_changed_statement_never_continues_a_chain");
    let object = sign_statement(&writer.draft(hold(1, None)), ROOT);
    for _ in 0..500 {
        let mut other = object.clone();
        let at = rng.index(other.len());
        other[at] ^= 1 << rng.below(8);
        let taken = Signed::parse(&other).is_ok_and(|signed| writer.chain.extended(&signed, &writer.roots).is_ok());
        assert!(!taken, "byte {at}");
    }
}

#[test]
fn replay_gives_the_same_state_and_head() {
    let writer = workspace_chain();
    let (mut chain, mut roots) = (Chain::new(crate::testing::ORIGIN, Some(WORKSPACE)), roots());
    for object in &writer.objects {
        chain.apply(&Signed::parse(object).unwrap(), &mut roots).unwrap();
    }
    assert_eq!((&chain, roots), (&writer.chain, writer.roots.clone()));
    assert_eq!(chain.head(), ChainHead { count: 3, hash: object_hash(&writer.objects[2]) });
    assert_eq!(ChainHead::from_wire(Some(&chain.head().to_wire())), chain.head());
    assert_eq!(ChainHead::from_wire(None), ChainHead::GENESIS);
}
