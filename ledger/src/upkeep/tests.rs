//! What upkeep finds, and where an operator sees it: in the log, among the metrics and in the status.

use std::{
    io::{self, Write},
    sync::Mutex,
};

use custody::wire::{self, admin_server::Admin as _};
use tokio::sync::Semaphore;

use super::*;
use crate::{
    admin::{AdminService, Authority},
    commit::Limits,
    config::Config,
    index::{Follower, check::Checker},
    pki::Identity,
    rig::{Dir, ORIGIN, Rig, faults::Faults},
    store::Store,
    tail::Tail,
    watch::Progress,
};

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Of this thread, as long as the guard lives; of errors alone.
    fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).with_writer(move || log.clone());
        tracing::subscriber::set_default(log.json().finish())
    }

    fn has(&self, alarm: Alarm) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap()).contains(&format!("\"alarm\":\"{alarm}\""))
    }
}

struct Nobody;

impl Authority for Nobody {
    fn issue(&self, _: &str, _: &Identity) -> Result<String, String> {
        Err("no authority".to_owned())
    }

    fn certificates(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// Upkeep over a running core, by these bounds.
fn over(rig: &Rig, mark: watch::Receiver<u64>, disk_low_bytes: u64, lag_max: Duration) -> Upkeep {
    Upkeep {
        writer: rig.requests.clone(),
        mark,
        view: Arc::clone(&rig.view),
        fence: Arc::default(),
        alarms: rig.alarms.clone(),
        metrics: Metrics::new(),
        data: rig.dir.clone(),
        disk_low_bytes,
        lag_max,
    }
}

/// An alarm that stands is told wherever an operator looks.
async fn check_told(upkeep: &Upkeep, log: &Log, alarm: Alarm) {
    assert!(upkeep.alarms.stands(alarm), "{alarm}");
    assert!(log.has(alarm), "{alarm} is not in the log");
    let metrics = upkeep.metrics.text(&upkeep.alarms);
    assert!(metrics.contains(&format!("custody_alarm{{name=\"{alarm}\"}} 1\n")), "{metrics}");
    let dir = Dir::new("upkeep-told");
    let store = Arc::new(Store::open(&dir.0, 8 << 20, 32 << 20).unwrap());
    let tail = Arc::new(Tail::open(&store).unwrap());
    let (told, own) = ((Alarms::new(), Metrics::new()), upkeep.writer.clone());
    let index = Follower::open(dir.0.join("index"), Arc::clone(&tail), 1, told.clone()).unwrap().index();
    let checks = Checker::new(Arc::clone(&index), own, told).1;
    let admin = AdminService {
        store: std::sync::Weak::new(),
        tail,
        index: (index, checks),
        watch: Progress::default(),
        chains: Arc::default(),
        rules: Arc::from(""),
        replays: Arc::new(Semaphore::new(1)),
        directory: mpsc::channel(1).0,
        origin: ORIGIN.to_owned(),
        writer: upkeep.writer.clone(),
        mark: upkeep.mark.clone(),
        view: Arc::clone(&upkeep.view),
        fence: Arc::clone(&upkeep.fence),
        alarms: upkeep.alarms.clone(),
        authority: Arc::new(Nobody),
        plaintext: true,
        archive: String::new(),
    };
    let status = admin.status(tonic::Request::new(wire::StatusRequest {})).await.unwrap().into_inner();
    assert!(status.alarms.iter().any(|said| said.starts_with(&format!("{alarm}: "))), "{:?}", status.alarms);
}

#[tokio::test]
async fn little_room_and_segments_that_wait_are_told() {
    let dir = Dir::new("upkeep");
    let rig = Rig::start_with(&dir.0, &Faults::default(), Limits::default()).await.unwrap();
    let log = Log::default();
    let _guard = log.keep();
    // Something waits, and as upkeep sees it the mark stands still.
    rig.workspace(1).await;
    let mark = watch::Sender::new(0);
    let now = Instant::now();
    let mut lag = Lag { mark: 0, since: now.checked_sub(Duration::from_secs(3_600)).unwrap() };
    let healthy = over(&rig, mark.subscribe(), 0, Duration::from_secs(86_400));
    healthy.look(&mut lag).await.unwrap();
    assert!(healthy.alarms.latched().is_empty(), "{:?}", healthy.alarms.latched());
    let upkeep = over(&rig, mark.subscribe(), u64::MAX, Duration::from_secs(600));
    upkeep.look(&mut lag).await.unwrap();
    check_told(&upkeep, &log, Alarm::DiskLow).await;
    check_told(&upkeep, &log, Alarm::SealsLagging).await;
    drop((healthy, upkeep));
    rig.stop().await;
}

#[tokio::test]
async fn a_certificate_that_ends_is_told() {
    let dir = Dir::new("certificates");
    let rig = Rig::start(&dir.0).await.unwrap();
    let mut config = Config::new(ORIGIN);
    config.resolve(&dir.0);
    durable::create_dir(&config.paths.tls, 0o700).unwrap();
    Pki::create(&config, None).unwrap();
    let pki = Pki::open(&config).unwrap();
    let upkeep = over(&rig, rig.mark.clone(), 0, Duration::MAX);
    let log = Log::default();
    let _guard = log.keep();
    look_at_certificates(&pki, &upkeep.alarms, clock::now_us());
    assert!(!upkeep.alarms.stands(Alarm::CertificateExpiring));
    // All are renewed but the authority, which nobody renews.
    let ends = pki.certificates().into_iter().map(|(_, end)| end).max().unwrap();
    look_at_certificates(&pki, &upkeep.alarms, ends - 1);
    check_told(&upkeep, &log, Alarm::CertificateExpiring).await;
    drop(upkeep);
    rig.stop().await;
}

#[test]
fn what_waits_is_timed_from_when_it_came_first() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut lag = Lag::new(start);
    assert_eq!(lag.look(0, 0, at(50)), None);
    assert_eq!(lag.look(1, 0, at(60)), Some(Duration::from_secs(10)));
    assert_eq!(lag.look(3, 0, at(70)), Some(Duration::from_secs(20)));
    assert_eq!(lag.look(3, 1, at(80)), Some(Duration::ZERO), "progress starts it anew");
    assert_eq!(lag.look(3, 1, at(90)), Some(Duration::from_secs(10)));
    assert_eq!(lag.look(3, 3, at(95)), None);
    assert_eq!(lag.look(4, 3, at(96)), Some(Duration::from_secs(1)));
}
