//! The golden archive: one story of a ledger, told with fixed keys at fixed times, in which everything that the format knows
//! happens at least once. The same bytes come out every time; what tests, other verifiers and lies start from.

use std::{collections::BTreeMap, io, path::Path};

use bytes::Bytes;
use custody::{
    hash::root_successor,
    id::hex,
    policy::{Policy, Scope, Witness},
    verdict::Claim,
    wire::{self, DropReason, LedgerEventKind, OpeningReason, Role, statement::Action},
};

pub mod evidence;
pub mod keys;
pub mod ledger;
pub mod objects;
pub mod records;
pub mod render;

use ledger::{Batch, Hooks, Ledger};

/// 2026-01-05T08:00:00Z, in microseconds: when the story begins.
pub const BEGINNING: u64 = 1_767_600_000_000_000;
/// When it is told: the `as_of` of every verification.
pub const AS_OF: u64 = BEGINNING + 6 * DAY;
const MINUTE: u64 = 60_000_000;
/// Microseconds of a day.
pub const DAY: u64 = 86_400_000_000;
/// The ledger restarts so often on one bad morning that the log fills its first tile.
const RESTARTS: usize = 230;

/// Which story.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The plain one: claims 1 to 3 verified.
    #[default]
    Plain,
    /// At its end keys are called suspect: what they signed is undecided.
    Suspect,
}

/// Tells the story.
pub fn tell(variant: Variant, hooks: Hooks) -> Ledger {
    tell_as(keys::ORIGIN, variant, hooks)
}

/// Tells the story of a log of another name, with the same keys.
pub fn tell_as(origin: &str, variant: Variant, hooks: Hooks) -> Ledger {
    let mut ledger = Ledger::new(origin, BEGINNING, hooks);
    begin(&mut ledger);
    first_day(&mut ledger);
    second_day(&mut ledger);
    recovery(&mut ledger);
    last_day(&mut ledger);
    evening(&mut ledger);
    if variant == Variant::Suspect {
        doubts(&mut ledger);
    }
    ledger.follow_sequel();
    ledger.start_term();
    ledger.publish(2);
    ledger
}

/// Keys of the ledger, its own workspace, and the first checkpoint.
fn begin(l: &mut Ledger) {
    l.enrol(None, None, Role::Record, "record-1", "ledger");
    l.enrol(None, None, Role::Head, "head-1", "");
    l.enrol(None, None, Role::Log, "log-1", "");
    l.start_term();
    l.publish(0);
    l.create("ledger");
    let events = vec![
        records::ledger_event(l.now(), LedgerEventKind::Started, "serve"),
        records::ledger_event(l.now(), LedgerEventKind::Administration, "workspace.add"),
    ];
    l.submit_batch("ledger", Batch::new("ledger", "l1", events).key("record-1"));
    l.create("alpha");
    l.create("beta");
    l.create("gamma");
    l.publish(1);
}

/// Gateways are enrolled by the root and by a registrar, and write.
fn first_day(l: &mut Ledger) {
    l.delegate("alpha", "registrar-1", 3);
    l.enrol(Some("alpha"), None, Role::Gateway, "g1", "g1");
    l.enrol(Some("alpha"), Some("registrar-1"), Role::Gateway, "g2", "g2");
    l.enrol(Some("beta"), None, Role::Gateway, "h1", "h1");
    l.enrol(Some("beta"), None, Role::Gateway, "h2", "h2");
    l.enrol(Some("gamma"), None, Role::Gateway, "k1", "k1");
    l.publish(0);
    let now = l.now();
    l.submit_batch("alpha", Batch::new("g1", "e1", records::every_outcome(1, now)));
    l.submit_batch("beta", Batch::new("h1", "f1", records::calls(1, 4, now)));
    l.submit_batch("alpha", Batch::new("g2", "d1", records::calls(1, 2, now)).intermittent());
    let mut changes = records::access_changes(now);
    changes.extend(records::tool_definitions(now));
    l.submit_batch("alpha", Batch::new("g1", "e1", changes));
    l.submit_batch("gamma", Batch::new("k1", "k", records::calls(1, 2, now)));
    l.wait(MINUTE);
    l.submit_batch("alpha", Batch::new("g1", "e1", Vec::new()));
    l.submit_batch("beta", Batch::new("h2", "p1", records::calls(1, 3, now)));
    l.submit_batch("beta", Batch::new("h1", "f1", records::gateway_events(l.now())));
    l.equivocate("alpha", "g1", "e1", 1, &records::calls(90, 2, now));
    l.submit_batch("alpha", Batch::new("g2", "d1", records::calls(3, 2, now)).dropped(5, DropReason::SpoolFull));
    l.submit_batch("ledger", Batch::new("ledger", "l1", records::ledgers_own(now)).key("record-1"));
    l.cut_all();
    l.publish(1);
    l.submit_batch("alpha", Batch::new("ledger", "la", vec![records::alarm(l.now())]).key("record-1"));
    l.submit_batch("alpha", Batch::new("g1", "e1", records::calls(17, 3, now)));
    l.submit_batch("gamma", Batch::new("k1", "k", records::calls(3, 1, now)).close());
    l.submit_batch("beta", Batch::new("h1", "f1", records::calls(5, 2, now)));
    l.statement("gamma", None, Action::Remove(wire::Remove {}));
    l.publish(0);
}

/// Keys are rotated, in the ledger and in a workspace; a legal hold comes and goes.
fn second_day(l: &mut Ledger) {
    l.wait(DAY - 2 * 60 * MINUTE);
    let now = l.now();
    l.submit_batch("alpha", Batch::new("g2", "d1", records::calls(5, 2, now)));
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(1, 2, now)));
    l.enrol(None, None, Role::Head, "head-2", "");
    l.ledger_statement(Action::Retire(wire::Retire { key_id: keys::id("head-1", Role::Head).into() }));
    l.use_head_key("head-2");
    l.start_term();
    l.publish(1);
    let (since, hold) = (now - DAY, Bytes::copy_from_slice(&keys::short("hold 1")));
    l.statement("alpha", None, Action::Hold(wire::Hold { hold: hold.clone(), since, until: Some(now) }));
    l.enrol(Some("alpha"), Some("registrar-1"), Role::Gateway, "g1-new", "g1");
    let retired = keys::id("g1", Role::Gateway).into();
    l.statement("alpha", Some("registrar-1"), Action::Retire(wire::Retire { key_id: retired }));
    l.submit_batch("alpha", Batch::new("g1", "e1", records::calls(20, 2, now)).close());
    l.submit_batch("alpha", Batch::new("g1", "e2", records::calls(1, 2, now)).key("g1-new"));
    l.submit_batch("beta", Batch::new("h2", "p1", records::calls(4, 2, now)));
    l.submit_batch("beta", Batch::new("h2", "p2", records::calls(1, 1, now)).reason(OpeningReason::StateLost));
    l.cut_all();
    l.statement("alpha", None, Action::Release(wire::Release { hold }));
    l.submit_batch("alpha", Batch::new("g1", "e2", records::calls(3, 2, now)).key("g1-new"));
    l.submit_batch("ledger", Batch::new("ledger", "l1", vec![records::alarm(l.now())]).key("record-1"));
    l.cut_all();
    l.publish(0);
}

/// The machine is lost with what was durable and not archived; a new incarnation continues.
fn recovery(l: &mut Ledger) {
    l.wait(DAY);
    let now = l.now();
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(3, 2, now)));
    let lost = l.lose("beta");
    l.recover();
    for _ in 0..RESTARTS {
        l.start_term();
    }
    l.publish(1);
    l.submit_batch("beta", Batch::new("h2", "p2", records::calls(2, 1, now)));
    for batch in &lost {
        l.replay("beta", batch);
    }
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(5, 1, now)));
    l.submit_batch("alpha", Batch::new("g1", "e2", records::calls(5, 2, now)).key("g1-new"));
    let recovered = vec![records::ledger_event(l.now(), LedgerEventKind::Recovery, "recover")];
    l.submit_batch("ledger", Batch::new("ledger", "l2", recovered).key("record-1"));
    l.cut_all();
    l.publish(0);
}

/// A gateway's key and a registrar are revoked, the root is succeeded; the rest goes on.
fn last_day(l: &mut Ledger) {
    l.wait(DAY);
    let now = l.now();
    l.submit_batch("alpha", Batch::new("g1", "e2", records::calls(7, 2, now)).key("g1-new"));
    let key_id = keys::id("g2", Role::Gateway).into();
    l.statement("alpha", None, Action::Revoke(wire::Revoke { key_id, void_serials: Vec::new() }));
    l.enrol(Some("alpha"), None, Role::Gateway, "g6", "g6");
    l.enrol(Some("beta"), None, Role::Receipt, "runtime-1", "runtime");
    l.delegate("beta", "registrar-2", 1);
    l.enrol(Some("beta"), Some("registrar-2"), Role::Gateway, "h3", "h3");
    let serial = l.workspace("beta").chain.count - 1;
    let key_id = keys::id("registrar-2", Role::Registrar).into();
    l.statement("beta", None, Action::Revoke(wire::Revoke { key_id, void_serials: vec![serial] }));
    l.use_root(2, "root-2");
    l.ledger_statement(Action::SucceedRoot(wire::SucceedRoot {
        public_key: Bytes::copy_from_slice(&keys::public("root-2").to_bytes()),
        successor_hash: Bytes::copy_from_slice(&root_successor(&keys::public("root-3").to_bytes())),
    }));
    l.publish(0);
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(6, 3, now)));
    l.submit_batch("beta", Batch::new("h2", "p2", records::calls(3, 1, now)).close());
    let hold = Bytes::copy_from_slice(&keys::short("hold 2"));
    l.statement("beta", None, Action::Hold(wire::Hold { hold, since: now, until: None }));
    l.submit_batch("alpha", Batch::new("g1", "e2", records::calls(9, 2, now)).key("g1-new"));
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(9, 2, now)));
    l.submit_batch("alpha", Batch::new("g1", "e2", Vec::new()).key("g1-new"));
    l.cut_all();
}

/// Much happens that no root or registrar speaks of any more.
fn evening(l: &mut Ledger) {
    l.wait(9 * 60 * MINUTE);
    let now = l.now();
    let g1 = |records: Vec<Bytes>| Batch::new("g1", "e2", records).key("g1-new");
    l.submit_batch("alpha", g1(records::every_outcome(11, now)));
    l.submit_batch("alpha", Batch::new("g6", "s1", records::calls(1, 3, now)).intermittent());
    let mut changes = records::access_changes(now);
    changes.extend(records::tool_definitions(now));
    l.submit_batch("alpha", g1(changes));
    l.submit_batch("alpha", g1(Vec::new()));
    l.equivocate("alpha", "g6", "s1", 0, &[records::opened(now, false), records::calls(40, 1, now).swap_remove(0)]);
    l.submit_batch("alpha", Batch::new("g6", "s1", records::calls(4, 2, now)).dropped(2, DropReason::DiskFailed));
    l.submit_batch("beta", Batch::new("h1", "f2", records::gateway_events(now)));
    let reason = OpeningReason::Rewound;
    l.submit_batch("beta", Batch::new("h2", "p3", records::calls(1, 4, now)).reason(reason));
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(11, 2, now)));
    let mut own = records::ledgers_own(now);
    own.push(records::ledger_event(now, LedgerEventKind::Drill, "drill"));
    l.submit_batch("ledger", Batch::new("ledger", "l2", own).key("record-1"));
    l.cut_all();
    l.publish(1);
    l.submit_batch("alpha", Batch::new("ledger", "la", vec![records::alarm(now)]).key("record-1"));
    l.submit_batch("alpha", g1(records::calls(30, 3, now)));
    l.submit_batch("alpha", Batch::new("g6", "s1", records::calls(6, 2, now)));
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(13, 2, now)));
    l.cut_all();
    l.submit_batch("alpha", g1(records::calls(33, 1, now)));
    l.submit_batch("alpha", g1(records::calls(34, 2, now)).close());
    l.submit_batch("beta", Batch::new("h1", "f2", records::calls(15, 2, now)));
    l.cut_all();
}

/// What keys signed is called in doubt: a gateway's from a position on, the ledger's record key from a log index on.
pub(crate) fn doubts(l: &mut Ledger) {
    let (key_id, since) = (keys::id("g1-new", Role::Gateway).into(), 40);
    l.statement("alpha", None, Action::Suspect(wire::Suspect { key_id, since }));
    let (key_id, since) = (keys::id("record-1", Role::Record).into(), 60);
    l.ledger_statement(Action::Suspect(wire::Suspect { key_id, since }));
}

/// The audit policy of a fresh organisation.
pub fn policy() -> Policy {
    Policy::fresh(keys::ORIGIN, keys::public("root-1"), keys::public("root-2"))
}

/// A policy that names both witnesses and requires all six claims.
pub fn witnessed_policy() -> Policy {
    let witness = |name: &str| Witness { name: name.to_owned(), public_key: hex(&keys::public(name).to_bytes()) };
    Policy {
        witnesses: keys::WITNESSES.into_iter().map(witness).collect(),
        quorum: 2,
        greatest_age_seconds: 7 * 86_400,
        required: Claim::ALL.to_vec(),
        ..policy()
    }
}

/// A policy under which the oldest segments may have expired.
pub fn short_lived_policy() -> Policy {
    Policy { minimum_retention_days: 4, ..policy() }
}

/// A policy that looks at one workspace alone.
pub fn scoped_policy() -> Policy {
    Policy { scope: Scope::Workspaces(vec![keys::workspace("alpha").to_string()]), ..policy() }
}

/// A policy that requires the first so many claims and names nobody who could attest the last two.
pub fn demanding_policy(claims: usize) -> Policy {
    Policy { required: Claim::ALL.into_iter().take(claims).collect(), ..policy() }
}

/// All policies by name under which the golden archive is accepted.
pub fn policies() -> BTreeMap<&'static str, Policy> {
    BTreeMap::from([
        ("policy", policy()),
        ("witnessed", witnessed_policy()),
        ("short-lived", short_lived_policy()),
        ("scoped", scoped_policy()),
    ])
}

/// Bytes of a policy file.
pub fn policy_bytes(policy: &Policy) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(policy).expect("a policy is plain data");
    text.push(b'\n');
    text
}

/// Writes an archive as a folder, and `policy.json`, the other policies and the known files beside it.
///
/// # Errors
/// What the file system says.
pub fn write(ledger: &Ledger, folder: &Path) -> io::Result<()> {
    let rendered = render::render(ledger, &mut render::Truth);
    objects::write_all(&rendered.objects, &folder.join("archive"))?;
    for (name, policy) in policies() {
        objects::write_one(&folder.join(format!("{name}.json")), &policy_bytes(&policy))?;
    }
    for (name, proof) in evidence_files(ledger, &rendered) {
        objects::write_one(&folder.join("evidence").join(name), &proof.to_bytes())?;
    }
    for (name, bytes) in objects::known_files(ledger, &rendered) {
        objects::write_one(&folder.join("known").join(name), &bytes)?;
    }
    Ok(())
}

/// Evidence by name: one record, a run within a batch, one over batches, one over segments, one of the ledger's own.
pub fn evidence_files(
    ledger: &Ledger,
    rendered: &render::Rendered,
) -> BTreeMap<&'static str, custody::evidence::Proof> {
    let runs = [
        ("one-record", "alpha", 75, 76),
        ("within-a-batch", "alpha", 47, 52),
        ("over-batches", "alpha", 61, 71),
        ("over-segments", "alpha", 70, 79),
        ("ledgers-own", "ledger", 11, 13),
    ];
    let make = |(name, workspace, first, end)| {
        Some((name, evidence::make(ledger, rendered, keys::workspace(workspace), first, end)?))
    };
    runs.into_iter().filter_map(make).collect()
}
