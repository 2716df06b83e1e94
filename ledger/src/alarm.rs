//! Alarms: facts that an operator must act on, named and latched.
//!
//! What must hold: an alarm that was raised stays until an operator acknowledges it, however often its cause comes and
//! goes; each has a section in `docs/OPERATIONS.md` under the heading `### alarm: NAME` (a test compares); what is raised
//! stands in the log at error level, in a metric and in `ledger status`, and in a file, so that a restart drops none: a file
//! of its own, because the store may be what is broken. An alarm that cannot be kept now, most often for want of room, is
//! raised all the same, and kept as soon as it can be. Details name no other workspace's data, no secret and no network
//! address.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{clock, durable, refusals::Refusals};

/// Permissions of the file: what it says is no secret, and no other user's business.
const FILE_MODE: u32 = 0o600;

macro_rules! alarms {
    ($($(#[$doc:meta])* $member:ident = $name:literal,)*) => {
        /// What can be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Alarm {
            $($(#[$doc])* $member,)*
        }

        impl Alarm {
            /// Every alarm.
            pub const ALL: &[Self] = &[$(Self::$member,)*];

            /// Its name, as in the log, in metrics, in `ledger status` and in the manual.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$member => $name,)*
                }
            }
        }
    };
}

alarms! {
    /// An invariant broke: writes are refused until a restart has re-read everything; reads and proofs go on.
    Poisoned = "poisoned",
    /// Another writer owns the log: this one has stopped for good.
    Fenced = "fenced",
    /// The fence holds a higher term than the database: this data directory is an old copy, and is read-only.
    StaleDatabase = "stale-database",
    /// At a cut the three ways of computing the segment's root gave different roots: nothing was published.
    RootsDisagree = "roots-disagree",
    /// An object read back from disk or archive is not what was written.
    ReadBackDiffers = "read-back-differs",
    /// The archive refuses or does not answer; segments wait.
    ArchiveFailing = "archive-failing",
    /// The fence cannot be read or written: heads carry `unfenced`, and nothing is published.
    FenceUnreachable = "fence-unreachable",
    /// No room left for writes: batches are refused until there is.
    DiskFull = "disk-full",
    /// Room for writes is running out.
    DiskLow = "disk-low",
    /// The wall clock moved by itself by more than 5 s.
    ClockJumped = "clock-jumped",
    /// A gateway signed two different batches under one number.
    Equivocation = "equivocation",
    /// A certificate nears its end and was not renewed.
    CertificateExpiring = "certificate-expiring",
    /// A segment has waited for the archive for longer than the bound allows.
    SealsLagging = "seals-lagging",
    /// A gateway holds a head that this ledger cannot extend: history was lost here, and an incarnation is needed.
    HeadNotExtendable = "head-not-extendable",
    /// The store on disk is of a format that this program does not know.
    StoreFormat = "store-format",
    /// The index cannot be written: searches walk the store instead, and become slow.
    IndexFailing = "index-failing",
    /// A folder of the index had not the documents that it should have: it was thrown away and is built again.
    IndexDiffers = "index-differs",
    /// The watch cannot go on: nothing new is found that is out of the ordinary.
    WatchFailing = "watch-failing",
    /// What alarms are sent to does not take them.
    WebhookFailing = "webhook-failing",
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// An alarm that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Latched {
    detail: String,
    since_us: u64,
    times: u64,
}

/// An alarm as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    name: String,
    detail: String,
    since_us: u64,
}

/// The alarms of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Alarms {
    standing: Arc<Mutex<Standing>>,
    file: Option<Arc<PathBuf>>,
    refusals: Refusals,
}

#[derive(Debug, Default)]
struct Standing {
    latched: BTreeMap<Alarm, Latched>,
    /// The file says something else: it could not be written.
    unkept: bool,
}

impl Alarms {
    /// None raised, and none kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that stand in `file`, where they are kept from now on.
    pub fn kept(file: &Path) -> Self {
        let latched = read(file).unwrap_or_else(|why| {
            tracing::warn!(%why, "the alarms of earlier runs cannot be read");
            BTreeMap::new()
        });
        for (alarm, stands) in &latched {
            tracing::warn!(alarm = alarm.name(), "stands since an earlier run: {}", stands.detail);
        }
        let standing = Standing { latched, unkept: false };
        let (standing, file) = (Arc::new(Mutex::new(standing)), Some(Arc::new(file.to_owned())));
        Self { standing, file, refusals: Refusals::default() }
    }

    /// What gateways are refused: told by whoever watches.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under the lock, so that the file is never older than what was told last.
    fn keep(&self, standing: &mut Standing) {
        let Some(file) = &self.file else { return };
        let kept = |(alarm, stands): (&Alarm, &Latched)| Kept {
            name: alarm.name().to_owned(),
            detail: stands.detail.clone(),
            since_us: stands.since_us,
        };
        let all: Vec<Kept> = standing.latched.iter().map(kept).collect();
        let written = serde_json::to_vec_pretty(&all).map_err(io::Error::from);
        match written.and_then(|bytes| durable::write(file, &bytes, FILE_MODE)) {
            // Told once, however often it is tried again.
            Err(why) if !standing.unkept => {
                standing.unkept = true;
                tracing::warn!(%why, "the alarms that stand would not outlive a restart now; tried again every second");
            }
            Err(_) => {}
            Ok(()) if standing.unkept => {
                standing.unkept = false;
                tracing::info!("the alarms that stand are kept over a restart again");
            }
            Ok(()) => {}
        }
    }

    /// Writes again what could not be kept when it was raised or taken back. To be called every so often, and at the end.
    pub fn keep_pending(&self) {
        let mut standing = self.standing();
        if standing.unkept {
            self.keep(&mut standing);
        }
    }

    /// Raises an alarm. While it stands, raising it again counts it and keeps the first detail: that is nearest the cause.
    pub fn raise(&self, alarm: Alarm, detail: impl Into<String>) {
        let detail = detail.into();
        let mut standing = self.standing();
        if let Some(stands) = standing.latched.get_mut(&alarm) {
            stands.times = stands.times.saturating_add(1);
            // A cause that returns a thousand times a second must not fill the disk with its own telling.
            if stands.times.is_power_of_two() {
                tracing::error!(alarm = alarm.name(), times = stands.times, "{detail}");
            }
            return;
        }
        tracing::error!(alarm = alarm.name(), "{detail}");
        standing.latched.insert(alarm, Latched { detail, since_us: clock::now_us(), times: 1 });
        self.keep(&mut standing);
    }

    /// Takes an alarm back by its name; `false` if none of that name stands.
    pub fn acknowledge(&self, name: &str) -> bool {
        let mut standing = self.standing();
        let known = Alarm::ALL.iter().find(|alarm| alarm.name() == name);
        let gone = known.is_some_and(|alarm| standing.latched.remove(alarm).is_some());
        if gone {
            self.keep(&mut standing);
            tracing::info!(alarm = name, "an operator acknowledged this alarm");
        }
        gone
    }

    /// The alarms that stand: which, the detail of the first time, and since when in microseconds.
    pub fn latched(&self) -> Vec<(Alarm, String, u64)> {
        let standing = self.standing();
        standing.latched.iter().map(|(alarm, stands)| (*alarm, stands.detail.clone(), stands.since_us)).collect()
    }

    /// Whether this one stands.
    pub fn stands(&self, alarm: Alarm) -> bool {
        self.standing().latched.contains_key(&alarm)
    }
}

/// Names that this program does not know are those of another version, and are passed over.
fn read(file: &Path) -> io::Result<BTreeMap<Alarm, Latched>> {
    let bytes = match fs::read(file) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        read => read?,
    };
    let kept: Vec<Kept> = serde_json::from_slice(&bytes)?;
    let known = |kept: Kept| {
        let alarm = Alarm::ALL.iter().find(|alarm| alarm.name() == kept.name)?;
        Some((*alarm, Latched { detail: kept.detail, since_us: kept.since_us, times: 1 }))
    };
    Ok(kept.into_iter().filter_map(known).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_outlive_a_restart_and_a_file_that_cannot_be_used_raises_them_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alarms.json");
        let first = Alarms::kept(&file);
        first.raise(Alarm::Equivocation, "gateway x");
        first.raise(Alarm::ClockJumped, "by 9 s");
        let again = Alarms::kept(&file);
        assert_eq!(again.latched(), first.latched());
        assert!(again.acknowledge("equivocation"));
        assert_eq!(Alarms::kept(&file).latched().len(), 1);
        // Damaged, or in a folder that is away.
        durable::write(&file, b"[{", 0o600).unwrap();
        for file in [file, folder.path().join("away/alarms.json")] {
            let alarms = Alarms::kept(&file);
            assert!(alarms.latched().is_empty());
            alarms.raise(Alarm::Poisoned, "x");
            assert!(alarms.stands(Alarm::Poisoned));
        }
    }

    #[test]
    fn an_alarm_that_found_no_room_is_kept_when_there_is_some() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alarms.json");
        let alarms = Alarms::kept(&file);
        durable::recorder::fail_once(folder.path(), "fill");
        alarms.raise(Alarm::DiskFull, "x");
        assert!(Alarms::kept(&file).latched().is_empty(), "no fault was injected");
        // The disk stays full for a while.
        durable::recorder::fail_once(folder.path(), "sync");
        alarms.keep_pending();
        assert!(Alarms::kept(&file).latched().is_empty());
        alarms.keep_pending();
        assert_eq!(Alarms::kept(&file).latched(), alarms.latched());
        // What could not be taken back is taken back later; another that is raised meanwhile brings all with it.
        durable::recorder::fail_once(folder.path(), "fill");
        assert!(alarms.acknowledge("disk-full"));
        assert!(Alarms::kept(&file).stands(Alarm::DiskFull));
        alarms.raise(Alarm::DiskLow, "x");
        assert_eq!(Alarms::kept(&file).latched(), alarms.latched());
        // Nothing is written while nothing waits.
        durable::recorder::take(folder.path());
        alarms.keep_pending();
        assert!(durable::recorder::take(folder.path()).is_empty());
    }

    #[test]
    fn an_alarm_stands_until_acknowledged() {
        let alarms = Alarms::new();
        let other = alarms.clone();
        alarms.raise(Alarm::DiskLow, "4 GiB left");
        other.raise(Alarm::DiskLow, "3 GiB left");
        let latched = other.latched();
        assert_eq!(latched.len(), 1);
        assert_eq!((latched[0].0, latched[0].1.as_str()), (Alarm::DiskLow, "4 GiB left"));
        assert!(!alarms.acknowledge("disk-full"));
        assert!(!alarms.acknowledge("no such"));
        assert!(alarms.stands(Alarm::DiskLow));
        assert!(alarms.acknowledge("disk-low"));
        assert!(other.latched().is_empty());
    }

    #[test]
    fn the_manual_has_a_section_for_every_alarm_and_for_no_other() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        let mut sections: Vec<&str> = manual.lines().filter_map(|line| line.strip_prefix("### alarm: ")).collect();
        let mut names: Vec<&str> = Alarm::ALL.iter().map(|alarm| alarm.name()).collect();
        sections.sort_unstable();
        names.sort_unstable();
        assert_eq!(sections, names);
    }
}
