//! Threads that walk what was committed: the index, and the watch.
//!
//! What must hold: each ends before the store is closed, and writes down what it has.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{Ended, Shared};
use crate::{
    alarm::{Alarm, Alarms},
    config::Config,
    exit::ExitReason,
    index::{
        Follower, Index,
        check::{Checker, Checks},
    },
    watch::{
        Watch,
        engine::Engine,
        rules,
        webhook::{Wanted, Webhook},
    },
};

/// The thread of a follower.
pub(super) struct Following {
    thread: std::thread::JoinHandle<()>,
    stop: watch::Sender<()>,
}

impl Following {
    /// Runs it in a thread of its own.
    fn start(
        name: &'static str,
        (alarms, alarm): (Alarms, Alarm),
        run: impl FnOnce(&tokio::runtime::Handle, watch::Receiver<()>) + Send + 'static,
    ) -> Result<Self, Ended> {
        let (stop, stopped) = watch::channel(());
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // One that breaks off holds up nothing else, and must not do so unheard.
            if catch_unwind(AssertUnwindSafe(|| run(&runtime, stopped))).is_err() {
                alarms.raise(alarm, format!("the {name} broke off; the log has why"));
            }
        });
        let thread = thread.map_err(|why| Ended::failed("start a follower", &why))?;
        Ok(Self { thread, stop })
    }

    /// Lets it write down what it has.
    pub(super) async fn end(self) {
        drop(self.stop);
        tokio::task::spawn_blocking(move || self.thread.join()).await.ok();
    }
}

/// The index's threads: the one that follows, and the one that holds what that made against the store.
pub(super) struct Indexing {
    follower: Following,
    checker: Following,
}

impl Indexing {
    /// Lets them end.
    pub(super) async fn end(self) {
        self.checker.end().await;
        self.follower.end().await;
    }
}

pub(super) fn start_index(config: &Config, shared: &Shared) -> Result<((Arc<Index>, Checks), Indexing), Ended> {
    let (root, tail) = (config.paths.data.join("index"), Arc::clone(&shared.tail));
    let told = || (shared.alarms.clone(), shared.metrics.clone());
    let failing = || (shared.alarms.clone(), Alarm::IndexFailing);
    let follower = Follower::open(root, tail, config.index.days_max, told());
    let follower = follower.map_err(|why| Ended::store("open the index", &why))?;
    let index = follower.index();
    let (checker, checks) = Checker::new(Arc::clone(&index), shared.requests.clone(), told());
    let indexing = Indexing {
        follower: Following::start("index", failing(), move |runtime, stopped| follower.run(runtime, stopped))?,
        checker: Following::start("index check", failing(), move |runtime, stopped| checker.run(runtime, stopped))?,
    };
    Ok(((index, checks), indexing))
}

/// The rules that are in force: those that ship, and the operator's.
pub(super) fn read_rules(config: &Config) -> Result<Arc<str>, Ended> {
    let folder = Some(config.watch.rules.as_path()).filter(|folder| !folder.as_os_str().is_empty());
    rules::all(folder).map(Arc::from).map_err(|why| wrong_rules(&why))
}

fn wrong_rules(why: &dyn std::fmt::Display) -> Ended {
    let hint = "ledger rule lint FILE says what is wrong with a rule";
    Ended::new(ExitReason::Configuration, format!("failed to read the rules of watch.rules: {why}\nhint: {hint}"))
}

/// The watch; a rule that cannot be run lets no ledger start: nobody would notice that it is not there.
pub(super) fn start_watching(
    config: &Config,
    rules: &Arc<str>,
    shared: &Shared,
    index: &Arc<Index>,
) -> Result<Following, Ended> {
    let engine = Engine::new(rules).map_err(|why| wrong_rules(&why))?;
    let file = config.paths.data.join("watch");
    let parts = (Arc::clone(&shared.tail), Arc::clone(&shared.chains), shared.requests.clone());
    let told = (shared.alarms.clone(), shared.metrics.clone(), shared.progress.clone());
    let watch = Watch::open((engine, Arc::clone(rules)), file, parts, (told, Arc::clone(index)));
    let watch = watch.map_err(|why| Ended::store("read how far the watch has come", &why))?;
    Following::start("watch", (shared.alarms.clone(), Alarm::WatchFailing), move |runtime, stopped| {
        watch.run(runtime, stopped)
    })
}

/// Sends alarms elsewhere, if they are to be.
pub(super) fn webhook(config: &Config, shared: &Shared) -> Result<Option<Webhook>, Ended> {
    let watch = &config.watch;
    if watch.webhook_url.is_empty() {
        return Ok(None);
    }
    let wanted = Wanted {
        url: watch.webhook_url.clone(),
        secret_file: watch.webhook_secret_file.clone(),
        heartbeat: Duration::from_secs(watch.heartbeat_seconds),
    };
    let seen = (Arc::clone(&shared.tail), Arc::clone(&shared.chains));
    let told = (shared.alarms.clone(), shared.metrics.clone(), shared.progress.clone());
    let webhook = Webhook::open(wanted, &config.origin, seen, told);
    webhook
        .map(Some)
        .map_err(|why| Ended::new(ExitReason::Configuration, format!("failed to start the webhook: {why}")))
}
