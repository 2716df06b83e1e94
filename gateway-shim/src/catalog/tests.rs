//! The engine over a real gateway: what is on record, what is kept, and what a member sees.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use custody::{record, wire};
use serde_json::{Value, json};

use super::*;
use crate::testing::{TempDir, server::Server, within};

struct Bench {
    ledger: Server,
    gateway: Gateway,
    dir: TempDir,
    catalog: Catalog,
}

const WARN: Policy = Policy { on_change: OnChange::Warn, check_arguments: false };
const QUARANTINE: Policy = Policy { on_change: OnChange::Quarantine, check_arguments: false };
const CHECKED: Policy = Policy { on_change: OnChange::Warn, check_arguments: true };

fn tools(tools: &Value) -> Arc<List> {
    let message = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}).to_string();
    match list::read(Kind::Tools, &message.into()).unwrap() {
        list::Answer::List(list) => list.into(),
        list::Answer::Other => panic!(),
    }
}

/// Of the member with the id of sevens.
fn reason(code: &str) -> Reason {
    let actor = crate::access::Actor::Member(custody::id::MemberId([7; 16]));
    Reason { actor, code: code.into(), ticket: "SEC-7".into(), account: None }
}

fn call(arguments: &Value) -> Vec<u8> {
    json!({"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":arguments}}).to_string().into()
}

impl Bench {
    async fn new() -> Self {
        let (ledger, dir) = (Server::start().await, TempDir::new());
        let gateway = ledger.gateway(&dir).await;
        let catalog = Catalog::open(dir.path().join("pins"), gateway.clone()).unwrap();
        Self { ledger, gateway, dir, catalog }
    }

    /// As the next start has it.
    fn again(&self) -> Catalog {
        Catalog::open(self.dir.path().join("pins"), self.gateway.clone()).unwrap()
    }

    /// What was recorded of definitions: tool, change, action.
    async fn records(self) -> Vec<(String, wire::DefinitionChange, wire::DefinitionAction)> {
        assert_eq!(self.gateway.drain().await.unwrap().unshipped, 0);
        let records = self.ledger.shared.ledger.lock().unwrap().records();
        let told = |bytes: &Vec<u8>| match record::decode(bytes).unwrap().kind {
            Some(RecordKind::ToolDefinition(one)) => match &one.target {
                Some(wire::tool_definition::Target::Tool(tool)) => Some((tool.clone(), one.change(), one.action())),
                _ => Some((String::new(), one.change(), one.action())),
            },
            _ => None,
        };
        records.iter().map(|bytes| bytes.to_vec()).filter_map(|bytes| told(&bytes)).collect()
    }
}

async fn observe(catalog: &Catalog, policy: Policy, listed: &Value) {
    catalog.observe("s", policy, Kind::Tools, &[tools(listed)], Some([0; 8])).await.unwrap();
}

#[tokio::test]
async fn a_changed_tool_is_on_record_hidden_and_refused_until_it_is_accepted() {
    use wire::{DefinitionAction as Action, DefinitionChange as What};
    let bench = Bench::new().await;
    observe(&bench.catalog, QUARANTINE, &json!([{"name": "x"}, {"name": "y"}])).await;
    let changed = json!([{"name": "x", "description": "now it also sends"}, {"name": "y"}]);
    observe(&bench.catalog, QUARANTINE, &changed).await;
    let list = tools(&changed);
    for catalog in [bench.catalog.clone(), bench.again()] {
        let view = catalog.view("s", Kind::Tools, &list, |_| true, false, None);
        let seen: Value = serde_json::from_slice(&view).unwrap();
        assert_eq!(seen["result"]["tools"], json!([{"name": "y"}]));
        let refusal = catalog.check_call("s", QUARANTINE, "x", &call(&json!({}))).unwrap_err();
        assert_eq!(refusal.rule, RULE_QUARANTINED);
        assert!(catalog.check_call("s", QUARANTINE, "y", &call(&json!({}))).unwrap().is_some());
        assert!(catalog.check_call("s", QUARANTINE, "unheard", b"{}").is_err());
        assert_eq!(catalog.check_call("s", WARN, "unheard", b"{}"), Ok(None));
    }
    let why = reason("reviewed");
    assert!(matches!(bench.catalog.accept("s", "y", None, &why).await, Err(NotAccepted::NotQuarantined)));
    // Something else than what somebody has looked at, and a reason that no record may hold.
    let another = bench.catalog.accept("s", "x", Some([7; 32]), &why).await;
    assert!(matches!(another, Err(NotAccepted::Another)));
    let unrecordable = bench.catalog.accept("s", "x", None, &reason("two words")).await;
    assert!(matches!(unrecordable, Err(NotAccepted::Unrecordable)));
    assert!(bench.catalog.check_call("s", QUARANTINE, "x", b"{}").is_err());
    let offered = list.elements[0].digest;
    assert_eq!(bench.catalog.accept("s", "x", offered, &why).await.unwrap().after, offered);
    for catalog in [bench.catalog.clone(), bench.again()] {
        let digest = catalog.check_call("s", QUARANTINE, "x", b"{}").unwrap();
        assert_eq!(digest, list.elements[0].digest);
        assert_eq!(
            catalog.view("s", Kind::Tools, &list, |name| name == "x", false, None).len(),
            list.view(|one| one.name == "x", false, None).len()
        );
    }
    let expected = [
        ("x", What::Seen, Action::Pinned),
        ("y", What::Seen, Action::Pinned),
        ("x", What::Changed, Action::Quarantined),
        ("x", What::Changed, Action::Accepted),
    ];
    assert_eq!(bench.records().await, expected.map(|(tool, what, action)| (tool.to_owned(), what, action)));
}

/// Between the records and the pins that tell of them a crash repeats a record, and loses nothing.
#[tokio::test]
async fn the_record_is_durable_before_the_pins_are() {
    use wire::{DefinitionAction as Action, DefinitionChange as What};
    let bench = Bench::new().await;
    observe(&bench.catalog, WARN, &json!([{"name": "x"}])).await;
    let file = bench.dir.path().join("pins");
    let before = std::fs::read(&file).unwrap();
    let changed = json!([{"name": "x", "title": "other"}]);
    // As if it had ended there: what it has in memory, and on disk, is what was before.
    let blocked = Catalog::open(file.clone(), bench.gateway.clone()).unwrap();
    let in_the_way = bench.dir.path().join("pins.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let failed = blocked.observe("s", WARN, Kind::Tools, &[tools(&changed)], Some([0; 8])).await;
    assert!(matches!(failed, Err(Unobserved::NotKept(_))), "{failed:?}");
    assert_eq!((std::fs::read(&file).unwrap(), blocked.pins()), (before, bench.catalog.pins()));
    std::fs::remove_dir(&in_the_way).unwrap();
    let after = bench.again();
    observe(&after, WARN, &changed).await;
    assert_eq!(bench.again().pins(), after.pins());
    let changes = (("x".to_owned(), What::Changed, Action::Warned), ("x".to_owned(), What::Changed, Action::Warned));
    let records = bench.records().await;
    assert_eq!(records, [("x".to_owned(), What::Seen, Action::Pinned), changes.0, changes.1]);
}

/// Without a record nothing is pinned, and the list does not go on.
#[tokio::test]
async fn what_cannot_be_recorded_is_not_pinned() {
    let bench = Bench::new().await;
    bench.gateway.drain().await.unwrap();
    let listed = tools(&json!([{"name": "x"}]));
    let failed = bench.catalog.observe("s", WARN, Kind::Tools, &[listed], Some([0; 8])).await;
    assert!(matches!(failed, Err(Unobserved::NotRecorded(_))), "{failed:?}");
    assert!(!bench.catalog.pins().knows("s") && !bench.dir.path().join("pins").exists());
}

#[tokio::test]
async fn pins_that_cannot_be_read_are_no_start() {
    let bench = Bench::new().await;
    durable::replace(&bench.dir.path().join("pins"), b"{").unwrap();
    let fault = Catalog::open(bench.dir.path().join("pins"), bench.gateway.clone()).err().unwrap().to_string();
    assert!(fault.contains("hint: restore it"), "{fault}");
}

#[tokio::test]
async fn arguments_are_held_against_the_pinned_schema() {
    let bench = Bench::new().await;
    let schema =
        |of: &str| json!([{"name": "x", "inputSchema": {"properties": {"a": {"type": of}}}}, {"name": "none"}]);
    observe(&bench.catalog, CHECKED, &schema("integer")).await;
    let check = |tool: &str, arguments: &Value| bench.catalog.check_call("s", CHECKED, tool, &call(arguments));
    assert!(check("x", &json!({"a": 1})).is_ok());
    let refusal = check("x", &json!({"a": "canary"})).unwrap_err();
    assert_eq!((refusal.rule, refusal.text.contains("canary")), (RULE_SCHEMA, false));
    assert!(refusal.text.contains("/properties/a/type"), "{}", refusal.text);
    for unknown in ["none", "unheard"] {
        assert_eq!(check(unknown, &json!({})).unwrap_err().rule, RULE_SCHEMA, "{unknown}");
    }
    observe(&bench.catalog, CHECKED, &schema("string")).await;
    assert!(check("x", &json!({"a": "s"})).is_ok() && check("x", &json!({"a": 1})).is_err());
    // What is in quarantine is not asked what it takes.
    let held = Policy { on_change: OnChange::Quarantine, ..CHECKED };
    observe(&bench.catalog, held, &schema("boolean")).await;
    let refusal = bench.catalog.check_call("s", held, "x", &call(&json!({"a": true}))).unwrap_err();
    assert_eq!(refusal.rule, RULE_QUARANTINED);
}

/// A hundred calls that come at once make one request, and wait for it; so does what comes when the list has changed.
#[tokio::test]
async fn a_server_is_asked_once_and_again_when_it_says_that_it_has_changed() {
    let bench = Bench::new().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let walk = || {
        let (asked, catalog) = (Arc::clone(&asked), bench.catalog.clone());
        async move {
            tokio::task::yield_now().await;
            observe(&catalog, WARN, &json!([{"name": "x"}])).await;
            asked.fetch_add(1, Relaxed);
            Ok(())
        }
    };
    for round in 1..=2 {
        let calls = (0..100).map(|_| async {
            bench.catalog.ensure("s", known_by(None, None), walk).await;
            assert!(bench.catalog.check_call("s", WARN, "x", b"{}").unwrap().is_some());
        });
        within(futures::future::join_all(calls)).await;
        assert_eq!(asked.load(Relaxed), round);
        bench.catalog.changed("other", "notifications/tools/list_changed");
        bench.catalog.changed("s", "notifications/prompts/list_changed");
        within(bench.catalog.ensure("s", known_by(None, None), walk)).await;
        assert_eq!(asked.load(Relaxed), round);
        bench.catalog.changed("s", "notifications/tools/list_changed");
    }
    // Whoever has a credential of its own is asked for by itself; and after a failure nobody asks at once.
    let in_vain = || {
        asked.fetch_add(1, Relaxed);
        async { Err("it is away".to_owned()) }
    };
    let member = known_by(Some(custody::id::MemberId([7; 16])), None);
    within(bench.catalog.ensure("s", member, in_vain)).await;
    within(bench.catalog.ensure("s", member, in_vain)).await;
    assert_eq!(asked.load(Relaxed), 3);
}

/// A server that lists something else each time makes a bounded number of records, and keeps up nobody else.
#[tokio::test]
async fn what_changes_without_end_is_not_taken_note_of_without_end() {
    let bench = Bench::new().await;
    observe(&bench.catalog, WARN, &json!([{"name": "x"}])).await;
    bench
        .catalog
        .budget("s", |left| {
            *left = 2;
            true
        })
        .unwrap();
    let list = |n: u32| tools(&json!([{"name": "x", "n": n}]));
    for n in 0..2 {
        bench.catalog.observe("s", WARN, Kind::Tools, &[list(n)], Some([0; 8])).await.unwrap();
    }
    let failed = bench.catalog.observe("s", WARN, Kind::Tools, &[list(2)], Some([0; 8])).await;
    assert!(matches!(failed, Err(Unobserved::TooFast)), "{failed:?}");
    // What has not changed goes on, and so does everybody else.
    bench.catalog.observe("s", WARN, Kind::Tools, &[list(1)], Some([0; 8])).await.unwrap();
    bench.catalog.observe("t", WARN, Kind::Tools, &[list(2)], Some([0; 8])).await.unwrap();
    assert_eq!(bench.records().await.len(), 4);
    let mut budget = Budget { left: 0, minute: Instant::now() - Duration::from_secs(150) };
    assert_eq!((*budget.left(), *budget.left()), (2 * CHANGES_PER_MINUTE, 2 * CHANGES_PER_MINUTE));
}

/// A tool in quarantine, what somebody decided about it and could not be kept, and the files as a crash there leaves them: pins
/// of before, the decision.
async fn decided() -> (Bench, Vec<u8>, Vec<u8>) {
    let bench = Bench::new().await;
    observe(&bench.catalog, QUARANTINE, &json!([{"name": "x"}])).await;
    observe(&bench.catalog, QUARANTINE, &json!([{"name": "x", "title": "other"}])).await;
    std::fs::create_dir(bench.dir.path().join("pins.new")).unwrap();
    let failed = bench.catalog.accept("s", "x", None, &reason("reviewed")).await;
    assert!(matches!(failed, Err(NotAccepted::Unfinished(Unobserved::NotKept(_)))), "{failed:?}");
    assert_eq!(bench.catalog.pins().standing("s", "x"), Standing::Quarantined);
    let read = |name| std::fs::read(bench.dir.path().join(name)).unwrap();
    let (pins, owed) = (read("pins"), read("pins.change.json"));
    (bench, pins, owed)
}

/// Whatever the last step of an acceptance was, the next start makes the rest: nothing that is on record stays undone.
#[tokio::test]
async fn what_was_decided_before_a_crash_is_on_record_and_in_force_after_it() {
    use wire::{DefinitionAction as Action, DefinitionChange as What};
    let (bench, before, owed) = decided().await;
    let offered = bench.catalog.pins().offered("s", "x").flatten().unwrap();
    let (after, _) = bench.catalog.pins().accept("s", "x", &reason("reviewed")).unwrap();
    // The old pins, where its record may be there or not, and the new ones.
    for (pins, records) in [(before, 1), (after.bytes(), 0)] {
        let bench = Bench::new().await;
        let file = |name| bench.dir.path().join(name);
        durable::replace(&file("pins"), &pins).unwrap();
        durable::replace(&file("pins.change.json"), &owed).unwrap();
        let next = bench.again();
        within(async {
            while file("pins.change.json").exists() || next.pins().standing("s", "x") != Standing::InForce(offered) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(bench.again().pins(), next.pins());
        let accepted = ("x".to_owned(), What::Changed, Action::Accepted);
        assert_eq!(bench.records().await, vec![accepted; records]);
    }
    let bench = Bench::new().await;
    durable::replace(&bench.dir.path().join("pins.change.json"), b"{}").unwrap();
    let fault = check(&bench.dir.path().join("pins")).unwrap_err().to_string();
    assert!(fault.contains("hint: start the version that wrote it"), "{fault}");
}

/// What is on record comes in force before the pins tell of anything else, and not in the place of what is there then.
#[tokio::test]
async fn no_pin_changes_before_what_was_decided_is_in_force() {
    use wire::{DefinitionAction as Action, DefinitionChange as What};
    let (bench, ..) = decided().await;
    let another = tools(&json!([{"name": "x", "title": "yet another"}]));
    let list = |whole| bench.catalog.observe("s", QUARANTINE, Kind::Tools, std::slice::from_ref(&another), whole);
    assert!(matches!(list(Some([0; 8])).await, Err(Unobserved::NotKept(_))));
    std::fs::remove_dir(bench.dir.path().join("pins.new")).unwrap();
    list(Some([0; 8])).await.unwrap();
    assert!(!bench.dir.path().join("pins.change.json").exists());
    assert_eq!(bench.catalog.pins().offered("s", "x"), Some(another.elements[0].digest));
    let mut records = bench.records().await;
    assert_eq!(records.pop(), Some(("x".to_owned(), What::Changed, Action::Quarantined)));
    assert_eq!(records.pop(), Some(("x".to_owned(), What::Changed, Action::Accepted)));
}

/// Whoever is told that nothing has changed finds nothing of it later.
#[tokio::test]
async fn a_decision_that_was_refused_leaves_nothing() {
    let bench = Bench::new().await;
    observe(&bench.catalog, QUARANTINE, &json!([{"name": "x"}])).await;
    observe(&bench.catalog, QUARANTINE, &json!([{"name": "x", "title": "other"}])).await;
    let blocked = bench.again();
    bench.gateway.drain().await.unwrap();
    let failed = bench.catalog.accept("s", "x", None, &reason("reviewed")).await;
    assert!(matches!(failed, Err(NotAccepted::Unobserved(Unobserved::NotRecorded(_)))), "{failed:?}");
    assert!(!bench.dir.path().join("pins.change.json").exists());
    std::fs::create_dir(bench.dir.path().join("pins.change.json.new")).unwrap();
    let failed = blocked.accept("s", "x", None, &reason("reviewed")).await;
    assert!(matches!(failed, Err(NotAccepted::Unobserved(Unobserved::NotKept(_)))), "{failed:?}");
    assert_eq!(bench.again().pins().standing("s", "x"), Standing::Quarantined);
}
