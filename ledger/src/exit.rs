//! Exit codes: what whoever starts the ledger may rely on. `docs/OPERATIONS.md` says what to do about each.

use std::process::ExitCode;

/// Why a process of this program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitReason {
    /// Done; for `serve`: drained, and everything accepted is archived.
    Done = 0,
    /// Something failed; the text says what. Starting again may help.
    Failure = 1,
    /// The configuration, or a file that it names, cannot be used. Starting again does not help.
    Configuration = 2,
    /// Drained, but some segments are not archived yet: the next start does it.
    Unsealed = 3,
    /// Another writer owns the log. Never start again by itself.
    Fenced = 4,
    /// An invariant broke. Look before starting again.
    Poisoned = 5,
    /// The command line is wrong (sysexits.h, EX_USAGE).
    Usage = 64,
}

impl ExitReason {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::Done, Self::Failure, Self::Configuration, Self::Unsealed, Self::Fenced, Self::Poisoned, Self::Usage];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<ExitReason> for ExitCode {
    fn from(reason: ExitReason) -> Self {
        Self::from(reason.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_and_the_unit_file_know_every_code() {
        let manual = include_str!("../../docs/OPERATIONS.md");
        for reason in ExitReason::ALL {
            assert!(manual.contains(&format!("\n| {} | ", reason.code())), "{reason:?}");
        }
        let unit = include_str!("../systemd/custody-ledger.service");
        let never: Vec<String> =
            [ExitReason::Configuration, ExitReason::Fenced, ExitReason::Poisoned, ExitReason::Usage]
                .iter()
                .map(|reason| reason.code().to_string())
                .collect();
        assert!(unit.contains(&format!("RestartPreventExitStatus={}\n", never.join(" "))));
        // While archive or fence is away each start fails: the unit must not give up.
        assert!(unit.contains("\nStartLimitIntervalSec=0\n") && manual.contains("StartLimitIntervalSec=0"));
    }
}
