//! What ends a call: its answer, its time, or a change of access.

use custody::{id::MemberId, record, wire, wire::record::Kind};

use super::*;
use crate::testing::{TempDir, server::Server, within};

fn asked() -> Asked {
    let caller = Caller::anybody(MemberId([1; 16]), None);
    let (server, method, name) = ("test".into(), "tools/call".into(), Some("asked".into()));
    Asked {
        caller,
        server,
        method,
        name,
        from_server: true,
        request_bytes: 0,
        round: 1,
        list: None,
        resources: Vec::new(),
    }
}

fn slot() -> Slot {
    Slot::of(None)
}

fn judgement() -> Judgement {
    Judgement { allowed: true, rule: "all".into(), policy: [0; 32], nobody: None }
}

#[tokio::test]
async fn what_a_server_asks_in_vain_ends_as_timeout_and_has_a_bound_of_its_session() {
    let (server, dir) = (Server::start().await, TempDir::new());
    let gateway = server.gateway(&dir).await;
    let (open, cuts) = (OpenCalls::default(), Cuts::default());
    let call = wire::Call {
        mode: wire::Mode::Strict as i32,
        server: "test".into(),
        target: Some(wire::call::Target::Tool("asked".into())),
        decision: wire::Decision::Allowed as i32,
        ..Default::default()
    };
    let begin = async || {
        let record = gateway.begin(call.clone()).await.unwrap();
        let running = cuts.begin(asked(), "tools/call", "1");
        running.begun(Some(record), slot(), judgement());
        running
    };
    for id in 0..ASKED_MAX {
        assert!(open.may_ask("one"));
        let wait = if id == 0 { Duration::ZERO } else { Duration::from_secs(86_400) };
        open.begin_asked("one", &id.to_string(), begin().await, wait);
        if id == 0 {
            within(async {
                while !open.lock().by_session.is_empty() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
    open.begin_asked("one", "last", begin().await, Duration::from_secs(86_400));
    assert!(!open.may_ask("one") && open.may_ask("other"));
    open.take(Side::Server, "one", "7").unwrap().end(Ending::of(Outcome::Ok));
    assert!(open.may_ask("one"));
    drop(open);
    gateway.drain().await.unwrap();
    let records = server.shared.ledger.lock().unwrap().records();
    let outcomes: Vec<_> = records
        .iter()
        .filter_map(|bytes| match record::decode(bytes).unwrap().kind {
            Some(Kind::Call(call)) => Some(call.outcome()),
            _ => None,
        })
        .collect();
    assert!(outcomes.contains(&Outcome::Timeout), "{outcomes:?}");
}

/// Nothing is left behind a call, and a cut that comes before anybody waits for it is seen all the same.
#[tokio::test]
async fn a_cut_is_seen_whenever_it_comes_and_nothing_is_left_behind() {
    let cuts = Cuts::default();
    let nobody = Access::of("version = 1\n", None).unwrap();
    let running = cuts.begin(asked(), "tools/call", "1");
    running.begun(None, slot(), judgement());
    let waiting = tokio::spawn({
        let running = running.clone();
        async move { running.cut().await }
    });
    tokio::task::yield_now().await;
    cuts.look(&nobody, 0);
    within(waiting).await.unwrap();
    within(running.cut()).await;
    assert_eq!(cuts.lock().open.len(), 1);
    drop(running);
    assert_eq!(cuts.lock().open.len(), 0);
}
