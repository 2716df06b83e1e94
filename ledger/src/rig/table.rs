//! The fault table: each write of the ledger × {it fails and is not stored, it fails but is stored}, and what must come of it.
//!
//! Each row runs a ledger with one fault, then starts it again without one, and holds it against what its gateway was
//! promised: every batch with a receipt stands at its position, none stands twice, the head that the gateway holds is on the
//! history, the archive verifies.

use std::{collections::BTreeMap, path::Path};

use custody::{batch::Submitted, wire::Role};
use tokio::sync::oneshot;

use super::{
    Dir, Peer, Rig, enrol,
    faults::{Faults, Mode},
    statement,
};
use crate::{
    alarm::Alarms,
    commit::{Limits, Request, State, Writer},
    durable::recorder,
};

/// What a run with the fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It goes on by itself.
    GoesOn,
    /// It is poisoned: reads and proofs go on, writes wait for the next start.
    Poisoned,
    /// It does not start; the next start does.
    NoStart,
}

use Outcome::{GoesOn, NoStart, Poisoned};

/// Where a fault strikes.
enum At {
    /// A write to a store, at the start.
    Start(&'static [&'static str]),
    /// The same, while it runs.
    Run(&'static [&'static str]),
    /// A step of a file in the staging folder, while it runs.
    Staging([Option<&'static str>; 2]),
}

/// Name of the write; where; what comes of it if it is not stored, and if it is.
const ROWS: &[(&str, At, [Outcome; 2])] = &[
    ("term", At::Start(&["store:commit:", " meta/term "]), [NoStart, NoStart]),
    ("claim of the term", At::Start(&["fence:put:fence/log/"]), [NoStart, GoesOn]),
    ("the term's entry", At::Start(&["store:commit:", " log/"]), [NoStart, NoStart]),
    ("writer", At::Start(&["store:commit: meta/writer"]), [NoStart, NoStart]),
    ("tile of the term", At::Start(&["archive:put:log/tile/"]), [NoStart, GoesOn]),
    ("checkpoint of the term", At::Start(&["archive:put:log/checkpoints/"]), [NoStart, GoesOn]),
    ("mark of the term's checkpoint", At::Start(&["store:commit: meta/published_size"]), [NoStart, NoStart]),
    ("group commit", At::Run(&["store:commit:", " commits/"]), [Poisoned, Poisoned]),
    ("cut", At::Run(&["store:commit:", " cuts/"]), [Poisoned, Poisoned]),
    ("staged object", At::Staging([Some("fill"), Some("sync-folder")]), [GoesOn, GoesOn]),
    ("seal in the store", At::Run(&["store:commit: seals/"]), [Poisoned, Poisoned]),
    ("segment in the archive", At::Run(&["archive:put:workspaces/", "/segments/"]), [GoesOn, GoesOn]),
    ("seal in the archive", At::Run(&["archive:put:workspaces/", "/seals/"]), [GoesOn, GoesOn]),
    ("statement in the archive", At::Run(&["archive:put:workspaces/", "/statements/"]), [GoesOn, GoesOn]),
    ("claim", At::Run(&["fence:put:fence/log/"]), [GoesOn, GoesOn]),
    ("entries", At::Run(&["store:commit:", " log/"]), [Poisoned, Poisoned]),
    ("tile", At::Run(&["archive:put:log/tile/"]), [GoesOn, GoesOn]),
    ("checkpoint", At::Run(&["archive:put:log/checkpoints/"]), [GoesOn, GoesOn]),
    ("mark of the checkpoint", At::Run(&["store:commit: meta/published_size"]), [Poisoned, Poisoned]),
    ("removal of a staged object", At::Staging([Some("remove"), None]), [GoesOn, GoesOn]),
];

/// What a gateway was promised.
struct Promised {
    peer: Peer,
    /// Records with a receipt.
    records: u64,
    waiting: Option<Submitted>,
    stream: u64,
}

impl Promised {
    /// Sends what waits, then `more` batches; `false` when the ledger takes no more.
    async fn ship(&mut self, rig: &Rig, more: usize) -> bool {
        self.stream += 1;
        let Ok(mut answers) = self.peer.open(rig, self.stream).await else { return false };
        for _ in 0..more {
            let batch = self.waiting.take().unwrap_or_else(|| self.peer.batch(3));
            self.waiting = Some(batch.clone());
            let number = batch.header.batch_number;
            let records = u64::from(batch.header.record_count);
            self.peer.submit(rig, self.stream, batch).await;
            let Some(place) = self.peer.receipt(&mut answers, number).await else { return false };
            assert_eq!(place.first_position, self.records, "lost or doubled");
            self.records += records;
            self.waiting = None;
        }
        true
    }
}

/// One row in one mode: what the run with the fault did.
async fn run(dir: &Path, at: &At, mode: Mode) -> Outcome {
    let rig = Rig::start(dir).await.unwrap();
    let (id, peer) = rig.workspace(31).await;
    let mut promised = Promised { peer, records: 0, waiting: None, stream: 0 };
    assert!(promised.ship(&rig, 2).await);
    rig.cut().await;
    rig.stop().await;
    let faults = Faults::default();
    if let At::Start(words) = at {
        faults.arm(words, mode, 1);
    }
    let outcome = match Rig::start_with(dir, &faults, Limits::default()).await {
        Err(_) => NoStart,
        Ok(rig) => {
            let outcome = run_with(&rig, &faults, at, mode, &mut promised).await;
            rig.stop().await;
            outcome
        }
    };
    assert_eq!(faults.struck() + recorder::failed(&dir.join("staging")), 1, "the fault struck");
    let rig = Rig::start(dir).await.unwrap();
    assert!(promised.ship(&rig, 3).await, "a restart goes on");
    rig.cut().await;
    rig.check(&BTreeMap::from([(id, promised.records)]));
    assert!(rig.alarms.latched().is_empty(), "{:?}", rig.alarms.latched());
    rig.stop().await;
    let staged = std::fs::read_dir(dir.join("staging")).unwrap().count();
    assert_eq!(staged, 0, "something stays staged");
    outcome
}

async fn run_with(rig: &Rig, faults: &Faults, at: &At, mode: Mode, promised: &mut Promised) -> Outcome {
    // Its own record of the start is written now: what strikes next is a batch.
    rig.inspect(|_| ()).await;
    match at {
        At::Start(_) => {}
        At::Run(words) => faults.arm(words, mode, 1),
        At::Staging(steps) => {
            let step = if mode == Mode::Refuse { steps[0] } else { steps[1] };
            recorder::fail_once(&rig.dir.join("staging"), step.unwrap());
        }
    }
    // Batches, a statement, and a cut of everything: each write of the table comes at least once.
    promised.ship(rig, 2).await;
    let (id, other) = (promised.peer.workspace, Peer::new(promised.peer.workspace, 32));
    let head = rig.inspect(move |writer| writer.chain_head(Some(id))).await.unwrap();
    let action = enrol(Some(id), Role::Gateway, &other.key, Some(other.gateway));
    let object = statement(Some(id), head.count, head.hash, rig.seen(), action);
    rig.requests.send(Request::Statement(object, oneshot::channel().0)).await.unwrap();
    let answer = rig.ask_cut(None).await;
    let published = async {
        let Ok(number) = answer.await else { return std::future::pending().await };
        rig.mark.clone().wait_for(|mark| *mark >= number).await.unwrap();
    };
    let is_poisoned = |writer: &Writer, _: &Alarms| matches!(writer.state(), State::Poisoned(_));
    tokio::select! {
        () = rig.until(is_poisoned) => {}
        () = published => {}
    }
    if rig.inspect(|writer| matches!(writer.state(), State::Poisoned(_))).await { Poisoned } else { GoesOn }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_one_write_loses_or_doubles_anything() {
    let mut running = Vec::new();
    for (name, at, expected) in ROWS {
        for (mode, expected) in [Mode::Refuse, Mode::DoThenErr].into_iter().zip(expected) {
            if let At::Staging([_, None]) = at
                && mode == Mode::DoThenErr
            {
                continue;
            }
            running.push(tokio::spawn(async move {
                let dir = Dir::new("fault");
                let outcome = run(&dir.0, at, mode).await;
                assert_eq!(outcome, *expected, "{name}, {mode:?}");
                format!("| {name} | {} | {outcome:?} |", if mode == Mode::Refuse { "not stored" } else { "stored" })
            }));
        }
    }
    for row in running {
        println!("{}", row.await.unwrap());
    }
}
