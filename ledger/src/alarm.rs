//! Alarms: facts that an operator must act on, named and latched.
//!
//! What must hold: an alarm that was raised stays until an operator acknowledges it, however often its cause comes and
//! goes; each has a section in `docs/OPERATIONS.md` under the heading `### alarm: NAME` (a test compares); what is raised
//! stands in the log at error level, in a metric and in `ledger status`. Details name no other workspace's data, no
//! secret and no network address.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::clock;

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

/// The alarms of this process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Alarms(Arc<Mutex<BTreeMap<Alarm, Latched>>>);

impl Alarms {
    /// None raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises an alarm. While it stands, raising it again counts it and keeps the first detail: that is nearest the cause.
    pub fn raise(&self, alarm: Alarm, detail: impl Into<String>) {
        let detail = detail.into();
        let mut latched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stands) = latched.get_mut(&alarm) {
            stands.times = stands.times.saturating_add(1);
            // A cause that returns a thousand times a second must not fill the disk with its own telling.
            if stands.times.is_power_of_two() {
                tracing::error!(alarm = alarm.name(), times = stands.times, "{detail}");
            }
            return;
        }
        tracing::error!(alarm = alarm.name(), "{detail}");
        latched.insert(alarm, Latched { detail, since_us: clock::now_us(), times: 1 });
    }

    /// Takes an alarm back by its name; `false` if none of that name stands.
    pub fn acknowledge(&self, name: &str) -> bool {
        let mut latched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Alarm::ALL.iter().find(|alarm| alarm.name() == name);
        let gone = known.is_some_and(|alarm| latched.remove(alarm).is_some());
        if gone {
            tracing::info!(alarm = name, "an operator acknowledged this alarm");
        }
        gone
    }

    /// The alarms that stand: which, the detail of the first time, and since when in microseconds.
    pub fn latched(&self) -> Vec<(Alarm, String, u64)> {
        let latched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        latched.iter().map(|(alarm, stands)| (*alarm, stands.detail.clone(), stands.since_us)).collect()
    }

    /// Whether this one stands.
    pub fn stands(&self, alarm: Alarm) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&alarm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
