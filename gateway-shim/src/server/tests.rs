//! The processes of one server: their bounds, their failures, the one that stands ready. Without stage and guard, which
//! `tests/life.rs` starts as they are built.

use custody::{id::MemberId, record, wire, wire::record::Kind};

use super::{
    pool::{Doing, Lease, Owner, Refused},
    *,
};
use crate::{
    config::{Limits, ProcessConfig, Sandbox, Start},
    testing::{TempDir, server::Server, within},
};

const ONE: Owner = Some(MemberId([1; 16]));
const OTHER: Owner = Some(MemberId([2; 16]));
/// Answers that it declines, so that nobody waits for it.
const ANSWERS: &str =
    r#"while read -r line; do echo '{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":""}}'; done"#;

struct Bench {
    ledger: Server,
    gateway: Gateway,
    servers: Servers,
    _dir: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let (ledger, dir) = (Server::start().await, TempDir::new());
        let gateway = ledger.gateway(&dir).await;
        Self { ledger, gateway, servers: Servers::default(), _dir: dir }
    }

    fn add(&self, command: &[&str], change: impl FnOnce(&mut ProcessConfig)) -> Arc<Pool> {
        let mut config = ProcessConfig {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            environment: BTreeMap::new(),
            environment_file: None,
            directory: ".".into(),
            start: Start::OnDemand,
            idle_s_max: 600,
            ready_s_max: 30,
            stop_s_max: 5,
            sessions_max: 3,
            member_sessions_max: 2,
            failures_max: 2,
            limits: Limits::default(),
            sandbox: Sandbox::default(),
        };
        change(&mut config);
        self.servers.add("test", config, self.gateway.clone())
    }

    async fn states(self) -> Vec<wire::ServerState> {
        assert_eq!(self.gateway.drain().await.unwrap().unshipped, 0);
        let records = self.ledger.shared.ledger.lock().unwrap().records();
        let state = |bytes: &bytes::Bytes| match record::decode(bytes).unwrap().kind {
            Some(Kind::GatewayEvent(wire::GatewayEvent {
                event: Some(wire::gateway_event::Event::ServerLife(life)),
                ..
            })) => Some(life.state()),
            _ => None,
        };
        records.iter().filter_map(state).collect()
    }
}

/// Holds a process as a session does: until somebody asks for its end.
fn hold(started: launch::Started, lease: Lease) {
    tokio::spawn(async move {
        lease.asked_to_end().await;
        drop((started.stdin, started.stdout));
        lease.end(started.process, wire::ServerState::Stopped).await;
    });
}

#[tokio::test]
async fn processes_have_a_bound_for_all_and_for_each_member_until_they_end() {
    let bench = Bench::new().await;
    let pool = bench.add(&["cat"], |_| ());
    for owner in [ONE, ONE, OTHER] {
        let (started, lease) = pool.start(owner).await.unwrap();
        hold(started, lease);
        if owner == ONE {
            continue;
        }
        assert_eq!(pool.start(OTHER).await.err(), Some(Refused::TooMany));
    }
    let listed = bench.servers.list().remove(0);
    assert_eq!((listed.doing, listed.processes.len(), listed.starts), (Doing::Running, 3, 3));
    let stopped = within(bench.servers.stop("test")).await.unwrap();
    assert_eq!((stopped.doing, stopped.processes.len(), stopped.crashes), (Doing::Stopped, 0, 0));
    assert_eq!(pool.start(ONE).await.err(), Some(Refused::Stopped));
    assert_eq!(bench.servers.start("test").unwrap().doing, Doing::Idle);
    for _ in 0..2 {
        let (started, lease) = pool.start(ONE).await.unwrap();
        hold(started, lease);
    }
    assert_eq!(pool.start(ONE).await.err(), Some(Refused::TooManyOfMember));
    assert_eq!(within(bench.servers.restart("test")).await.unwrap().doing, Doing::Idle);
    assert!(bench.servers.start("other").unwrap_err().to_string().contains("hint:"));
    use wire::ServerState::{Started, Stopped};
    let states = bench.states().await;
    assert_eq!(states.iter().filter(|state| **state == Started).count(), 5);
    assert_eq!(states.iter().filter(|state| **state == Stopped).count(), 5);
}

/// Whoever ended a session and begins the next one at once meets the process that is ending: its place is waited for, within
/// bounds; that of another member's is of no use where one's own are too many.
#[tokio::test]
async fn a_place_that_becomes_free_is_waited_for() {
    let bench = Bench::new().await;
    for (all, own) in [(1, 1), (9, 1)] {
        let bounds = |config: &mut ProcessConfig| (config.sessions_max, config.member_sessions_max) = (all, own);
        let pool = bench.add(&["cat"], bounds);
        let (started, lease) = pool.start(ONE).await.unwrap();
        let refused = if all == 1 { Refused::TooMany } else { Refused::TooManyOfMember };
        assert_eq!(pool.start(ONE).await.err(), Some(refused.clone()), "it does not end");
        lease.ending().ask();
        let mut next = std::pin::pin!(pool.start(ONE));
        assert!(futures::poll!(&mut next).is_pending(), "it is ending");
        if all > 1 {
            let (started, of_other) = pool.start(OTHER).await.unwrap();
            assert_eq!(pool.start(OTHER).await.err(), Some(refused), "what ends is not theirs");
            drop(started.stdin);
            of_other.end(started.process, wire::ServerState::Stopped).await;
            assert!(futures::poll!(&mut next).is_pending(), "that one was another member's");
        }
        drop((started.stdin, started.stdout));
        lease.end(started.process, wire::ServerState::Stopped).await;
        let (started, lease) = within(next).await.unwrap();
        drop(started.stdin);
        lease.end(started.process, wire::ServerState::Stopped).await;
    }
    let pool = bench.add(&["cat"], |config| (config.sessions_max, config.ready_s_max) = (1, 0));
    let (_started, lease) = pool.start(ONE).await.unwrap();
    lease.ending().ask();
    assert_eq!(Box::pin(within(pool.start(ONE))).await.err(), Some(Refused::TooMany), "nobody waits for ever");
}

#[tokio::test]
async fn a_server_that_fails_to_start_is_left_alone_until_its_time_or_somebodys_word() {
    let bench = Bench::new().await;
    let pool = bench.add(&["no-such-program-anywhere"], |_| ());
    assert_eq!(pool.start(ONE).await.err(), Some(Refused::Failed));
    assert!(matches!(pool.start(ONE).await.err(), Some(Refused::Later(_))));
    let status = pool.status();
    assert!(matches!(status.doing, Doing::BackingOff(_)), "{status:?}");
    assert_eq!((status.failures, status.crashes, status.starts), (1, 1, 0));
    assert_eq!(status.last.unwrap().state, wire::ServerState::Crashed);
    assert_eq!(bench.servers.start("test").unwrap().doing, Doing::Idle);
    assert_eq!(pool.start(ONE).await.err(), Some(Refused::Failed));
    assert_eq!(bench.states().await, [wire::ServerState::Crashed; 2]);
}

/// A process that ends before it has answered anything counts as one that did not start; one that has answered does not.
#[tokio::test]
async fn only_what_never_answered_makes_others_wait() {
    let bench = Bench::new().await;
    let pool = bench.add(&["cat"], |_| ());
    for answered in [true, false] {
        let (started, lease) = pool.start(ONE).await.unwrap();
        if answered {
            lease.answered();
        }
        drop((started.stdin, started.stdout));
        lease.end(started.process, wire::ServerState::Crashed).await;
        assert_eq!(pool.status().failures, u32::from(!answered));
    }
    assert!(matches!(pool.start(OTHER).await.err(), Some(Refused::Later(_))));
}

#[tokio::test]
async fn one_stands_ready_and_whoever_takes_it_makes_room_for_the_next() {
    let bench = Bench::new().await;
    let pool = bench.add(&["sh", "-c", ANSWERS], |config| config.start = Start::Always);
    let ready = async || loop {
        let spare = pool.status().processes.into_iter().find(|process| process.spare);
        if let Some(spare) = spare {
            return spare.pid;
        }
        tokio::task::yield_now().await;
    };
    let first = within(ready()).await;
    assert_eq!(pool.sessionless(), Some(false), "it was asked before anybody used it");
    let (started, lease) = pool.start(ONE).await.unwrap();
    assert_eq!(started.process.pid().as_raw_nonzero().get(), first);
    hold(started, lease);
    let second = within(ready()).await;
    assert_ne!(first, second);
    // Killed, it is replaced once its time to wait has passed; here somebody says so at once.
    rustix::process::kill_process(rustix::process::Pid::from_raw(second).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    within(async {
        while pool.status().failures == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    bench.servers.start("test").unwrap();
    assert_ne!(within(ready()).await, second);
    within(bench.servers.stop_all()).await;
    assert!(pool.status().processes.is_empty());
    use wire::ServerState::{Crashed, Started, Stopped};
    let states = bench.states().await;
    let count = |state| states.iter().filter(|seen| **seen == state).count();
    assert_eq!((count(Started), count(Crashed), count(Stopped)), (3, 1, 2));
}

/// It says nothing: whoever looks sees it, and whoever stops the server waits for its end.
#[tokio::test]
async fn a_process_that_is_asked_whether_it_can_stand_ready_is_listed_and_stopped() {
    let bench = Bench::new().await;
    let pool = bench.add(&["cat"], |config| (config.start, config.ready_s_max) = (Start::Always, 600));
    // What `cat` says is no answer.
    within(async {
        while pool.status().processes.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let status = pool.status();
    assert_eq!((status.doing, status.processes.len(), status.processes[0].spare), (Doing::Running, 1, false));
    within(bench.servers.stop_all()).await;
    let status = pool.status();
    assert_eq!((status.doing, status.processes.len()), (Doing::Stopped, 0));
    let last = status.last.expect("it has ended");
    assert_eq!(last.state, wire::ServerState::Stopped);
    // By itself, or over a pipe that nobody reads any more.
    assert!(!matches!(last.exit.signal, Some(9 | 15)), "{last:?}: its stdin was left open");
    assert_eq!(bench.states().await, [wire::ServerState::Started, wire::ServerState::Stopped]);
}

/// One that nobody uses ends by itself when its stdin is closed, however long it may take.
#[tokio::test]
async fn a_process_that_stands_ready_is_asked_to_end_before_it_is_made_to() {
    let bench = Bench::new().await;
    let pool = bench.add(&["sh", "-c", ANSWERS], |config| config.start = Start::Always);
    within(async {
        while !pool.status().processes.iter().any(|process| process.spare) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let pid = pool.status().processes[0].pid;
    // As nobody uses it, only the end of its stdin can end it so.
    within(bench.servers.stop_all()).await;
    let last = pool.status().last.expect("it has ended");
    assert_eq!((last.state, last.exit.signal), (wire::ServerState::Stopped, None), "{pid} was made to end");
}

/// The shim takes no record any more.
#[tokio::test]
async fn what_cannot_be_recorded_does_not_run_and_is_no_failure_of_the_server() {
    let bench = Bench::new().await;
    let pool = bench.add(&["cat"], |_| ());
    bench.gateway.drain().await.unwrap();
    assert_eq!(pool.start(ONE).await.err(), Some(Refused::Unrecorded));
    let status = pool.status();
    assert_eq!((status.doing, status.processes.len(), status.starts, status.failures), (Doing::Idle, 0, 0, 0));
}
