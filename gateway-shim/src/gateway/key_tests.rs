//! A gateway's key changes, as planned, too early, and because it is lost or known to others: whatever was acknowledged is
//! shipped once, and no batch is signed with another key than the one that it names.

use std::collections::BTreeMap;

use custody::{
    id::{GatewayId, WorkspaceId},
    key::public,
    wire::{OpeningReason, Outcome, Phase, RejectReason, Role},
};
use ed25519_dalek::SigningKey;

use super::{
    tests::{arrived, call, complete, shipped, tools},
    *,
};
use crate::{
    durable::recorder::{ALL_UNSYNCED, Op, Recorder, Unsynced, after_power_failure},
    testing::{
        TempDir, logged,
        server::{GATEWAY, Server, Trick},
        within,
    },
};

const LIMITS: spool::Limits = spool::Limits { bytes_max: 8 << 20, file_bytes_max: 20_000, reserve_bytes: 100_000 };

type Files = BTreeMap<String, Vec<u8>>;

/// Batches of four records, and only of four, but for the first and the last of an epoch.
fn parts(server: &Server, dir: &TempDir, key: &SigningKey) -> Parts {
    let mut parts = server.parts(dir);
    parts.settings.limits.age_max = Duration::from_secs(86_400);
    parts.settings.key = key.clone();
    parts
}

fn start(server: &Server, dir: &TempDir, disk: &Recorder, key: &SigningKey) -> Result<Gateway, OpenError> {
    Gateway::start(Box::new(disk.clone()), LIMITS, parts(server, dir, key))
}

/// The way on when the old key is lost.
fn carry_over(server: &Server, dir: &TempDir, disk: &Recorder, key: &SigningKey) -> Option<Carried> {
    let settings = parts(server, dir, key).settings;
    let opener = Opener { old_key_lost: true, ..settings.opener() };
    let spool = Spool::open(Box::new(disk.clone()), LIMITS, &opener).unwrap();
    Writer::carry_over(spool, settings).unwrap()
}

/// What a kill left, with the ledger away: records that are shipped, signed and unsigned, and a call that had begun.
struct Left {
    server: Server,
    dir: TempDir,
    files: Files,
    /// Names of the records that have no signature.
    unsigned: Vec<RecordName>,
    new: SigningKey,
}

const RECORDS: usize = 10;

impl Left {
    async fn behind() -> Self {
        let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
        let new = key::generate();
        {
            let mut ledger = server.shared.ledger.lock().unwrap();
            let workspace = ledger.workspace;
            ledger.enrol(Some(workspace), Role::Gateway, &new, Some(GATEWAY));
        }
        let gateway = start(&server, &dir, &disk, &server.key).unwrap();
        let mut names = Vec::new();
        for number in 0..4 {
            names.push(gateway.record(complete(&format!("tool-{number}"))).await.unwrap());
        }
        within(shipped(&gateway)).await;
        server.kill();
        // The stream that is open ends with its next batch.
        server.tricks([Trick::Lose]);
        for number in 4..RECORDS {
            names.push(gateway.record(complete(&format!("tool-{number}"))).await.unwrap());
        }
        let running = gateway.begin(call("cut-off")).await.unwrap();
        let files = disk.files();
        drop((gateway, running));
        Self { server, dir, files, unsigned: names.split_off(8), new }
    }

    /// A ledger that stands where the first one stood, and what a kill left for it.
    async fn again(&self) -> Server {
        let server = Server::with_key(self.server.key.clone()).await;
        *server.shared.ledger.lock().unwrap() = self.server.shared.ledger.lock().unwrap().clone();
        server
    }

    fn disk(&self) -> Recorder {
        Recorder::with(self.files.clone())
    }

    /// Everything that was acknowledged is there once and in its order, under the key that it names, and nothing is a
    /// finding.
    fn check(&self, server: &Server) {
        let mut expected: Vec<_> =
            (0..RECORDS).map(|number| (format!("tool-{number}"), Phase::Complete, Outcome::Ok)).collect();
        expected.push(("cut-off".to_owned(), Phase::Intent, Outcome::Running));
        expected.push(("cut-off".to_owned(), Phase::Outcome, Outcome::Unknown));
        assert_eq!(arrived(server), expected);
        let ledger = server.shared.ledger.lock().unwrap();
        for stored in &ledger.stored {
            let header = &stored.batch.header;
            let key = [&self.server.key, &self.new].into_iter().find(|key| key::key_id(key) == header.key_id).unwrap();
            assert!(stored.batch.is_signed_by(public(key)), "batch {} is false", header.batch_number);
            assert_eq!(header.dropped, 0);
        }
        let reasons: Vec<_> = ledger.stored.iter().filter_map(|stored| stored.batch.header.opening_reason).collect();
        assert_eq!(reasons, [OpeningReason::First], "there is a finding");
    }

    /// Starts with the new key and ships.
    async fn ships(&self, server: &Server, disk: &Recorder) {
        let gateway = start(server, &self.dir, disk, &self.new).unwrap();
        assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
        self.check(server);
    }
}

#[tokio::test]
async fn a_key_that_is_changed_too_early_is_refused_and_put_back_it_goes_on() {
    let left = Left::behind().await;
    let (server, disk) = (left.again().await, left.disk());
    let Err(OpenError::Spool(error)) = start(&server, &left.dir, &disk, &left.new) else { panic!("it started") };
    assert!(matches!(error, SpoolError::OtherKey(_, key) if key == key::key_id(&left.server.key)), "{error}");
    assert!(error.to_string().contains("hint: put that key back"), "{error}");
    assert!(disk.ops().is_empty(), "something was written: {:?}", disk.ops());

    let gateway = start(&server, &left.dir, &disk, &left.server.key).unwrap();
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    left.check(&server);
    // And now is the time.
    drop(gateway);
    left.ships(&server, &Recorder::with(disk.files())).await;
}

#[tokio::test]
async fn without_the_lost_key_everything_is_shipped_once_and_names_are_logged() {
    const WORDS: &str = "signed by another key, under new names";
    logged(WORDS);
    let left = Left::behind().await;
    let (server, disk) = (left.again().await, left.disk());
    let carried = carry_over(&server, &left.dir, &disk, &left.new).unwrap();
    assert_eq!((carried.records, carried.unfinished), (2, 1));
    assert_eq!(carried.old_key, key::key_id(&left.server.key));
    assert_eq!(carry_over(&server, &left.dir, &Recorder::with(disk.files()), &left.new), None, "once is enough");
    left.ships(&server, &Recorder::with(disk.files())).await;
    let epoch = carried.epoch.to_string();
    let line = logged(WORDS).into_iter().find(|line| line["fields"]["new_epoch"] == epoch.as_str()).unwrap();
    let number = |name: &str| line["fields"][name].as_u64().unwrap();
    assert_eq!(line["fields"]["old_epoch"], left.unsigned[0].epoch.to_string());
    assert_eq!((number("old_first"), number("old_last")), (left.unsigned[0].number, left.unsigned[1].number));
    let ledger = server.shared.ledger.lock().unwrap();
    let stored = ledger.stored.iter().find(|stored| stored.batch.header.epoch == carried.epoch).unwrap();
    let at = usize::try_from(number("new_first") - stored.batch.header.first_record).unwrap();
    let Some(Kind::Call(first)) = custody::record::decode(&stored.batch.records[at]).unwrap().kind else { panic!() };
    assert_eq!(first.target, Some(wire::call::Target::Tool("tool-8".into())));
}

/// Wherever a crash ends it, doing the same again ships everything once.
#[tokio::test]
async fn a_crash_on_the_way_past_a_lost_key_loses_nothing() {
    let left = Left::behind().await;
    let disk = left.disk();
    carry_over(&left.server, &left.dir, &disk, &left.new).unwrap();
    let ops = disk.ops();
    assert!(ops.len() > 4);
    for end in 0..=ops.len() {
        for unsynced in ALL_UNSYNCED {
            let files = after_power_failure(&left.files, &ops[..end], unsynced);
            let (server, disk) = (left.again().await, Recorder::with(files));
            carry_over(&server, &left.dir, &disk, &left.new);
            left.ships(&server, &Recorder::with(disk.files())).await;
        }
    }
}

/// An epoch of which nothing was ever signed is nobody's: the new one stands in its place, with what it would have named.
#[tokio::test]
async fn an_epoch_without_a_signature_goes_on_as_if_it_had_not_been_opened() {
    let (server, dir, disk) = (Server::start().await, TempDir::new(), Recorder::default());
    let gateway = start(&server, &dir, &disk, &server.key).unwrap();
    drop(gateway);
    // The snapshot that opens the epoch is the first file; its batch comes behind it.
    let ops = disk.ops();
    let end = ops.iter().position(|op| *op == Op::SyncDir).unwrap() + 1;
    let files = after_power_failure(&BTreeMap::new(), &ops[..end], Unsynced::Dropped);
    let (other, new) = (Server::start().await, key::generate());
    let disk = Recorder::with(files);
    assert!(matches!(start(&other, &dir, &disk, &new), Err(OpenError::Spool(SpoolError::OtherKey(..)))));
    let carried = carry_over(&other, &dir, &disk, &new).unwrap();
    assert_eq!((carried.records, carried.unfinished), (0, 0));
    let gateway = start(&other, &dir, &Recorder::with(disk.files()), &new).unwrap();
    gateway.record(complete("first")).await.unwrap();
    assert_eq!(gateway.drain().await.unwrap().unshipped, 0);
    assert_eq!(tools(&other), ["first"]);
    let ledger = other.shared.ledger.lock().unwrap();
    assert_eq!(ledger.stored[0].batch.header.opening_reason, Some(OpeningReason::First));
    assert!(ledger.stored.iter().all(|stored| stored.batch.header.key_id == key::key_id(&new)));
}

/// A key that was replaced because others know it is revoked at once, and what it signed is not on record everywhere yet.
#[tokio::test]
async fn what_a_replaced_key_signed_and_nobody_takes_is_signed_again() {
    for reason in [RejectReason::Revoked, RejectReason::Unauthorised, RejectReason::Forged] {
        for clean in [false, true] {
            let left = Left::behind().await;
            let (server, mut disk) = (left.again().await, left.disk());
            server.shared.script.lock().unwrap().refused = Some((key::key_id(&left.server.key), reason));
            match clean {
                true => {
                    // A start with the old key and a stop, while the ledger is away.
                    let mut parts = parts(&left.server, &left.dir, &left.server.key);
                    parts.drain_wait = Duration::ZERO;
                    let gateway = Gateway::start(Box::new(disk.clone()), LIMITS, parts).unwrap();
                    assert!(gateway.drain().await.unwrap().unshipped > 0);
                }
                false => drop(carry_over(&server, &left.dir, &disk, &left.new)),
            }
            disk = Recorder::with(disk.files());
            left.ships(&server, &disk).await;
        }
    }
}

#[tokio::test]
async fn a_spool_of_another_gateway_workspace_or_origin_is_refused() {
    let left = Left::behind().await;
    let others: [fn(&mut Name); 3] = [
        |who| who.gateway = GatewayId([1; 16]),
        |who| who.workspace = WorkspaceId([1; 16]),
        |who| who.origin = "log.example/other".into(),
    ];
    for change in others {
        let disk = left.disk();
        let mut parts = parts(&left.server, &left.dir, &left.server.key);
        change(&mut parts.who);
        parts.settings.who = parts.who.clone();
        let Err(OpenError::Spool(error)) = Gateway::start(Box::new(disk.clone()), LIMITS, parts) else {
            panic!("it started")
        };
        assert!(matches!(&error, SpoolError::OfAnother(owner) if owner.gateway == GATEWAY), "{error}");
        assert!(error.to_string().contains("hint: "), "{error}");
        assert!(disk.ops().is_empty(), "something was written: {:?}", disk.ops());
    }
}
