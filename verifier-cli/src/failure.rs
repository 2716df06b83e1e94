//! Why a command other than `verify` could not do what it was asked; the kinds are those that exit differently.

use std::path::Path;

use custody::{
    policy::BadPolicy,
    verdict::{Fault, State},
    verify::Unreadable,
};

use crate::output::plain;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// An object, file or policy could not be read, or a file not written.
    Unreadable(String),
    /// What is asked for is not in the archive.
    NotThere(String),
    /// A check did not pass on the way.
    Refuted(Box<Fault>),
}

impl Failure {
    /// A policy file that cannot be used.
    pub fn of_policy(path: &Path, why: &BadPolicy) -> Self {
        let hint = "hint: name policy.json; ask whoever gave it to you, or see what a policy holds in docs/FORMAT.md";
        Self::Unreadable(format!("{}: {}\n{hint}", plain(path.display()), plain(why)))
    }

    /// 1 for what is refuted, else 2.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refuted(fault) if fault.state == State::Refuted => 1,
            _ => 2,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable(why) | Self::NotThere(why) => f.write_str(why),
            Self::Refuted(fault) => write!(
                f,
                "the check {} does not pass at {}: expected {}, found {}\nhint: `verifier verify` says what else is wrong",
                fault.check.name(),
                plain(&fault.place),
                plain(&fault.expected),
                plain(&fault.found)
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// One line, and the hint below it if there is one: the library's words may hold what a policy says.
fn with_hint(why: &str) -> String {
    match why.rsplit_once("\nhint: ") {
        Some((why, hint)) => format!("{}\nhint: {}", plain(why), plain(hint)),
        None => plain(why),
    }
}

impl From<Unreadable> for Failure {
    fn from(why: Unreadable) -> Self {
        Self::Unreadable(with_hint(&why.0))
    }
}

impl From<BadPolicy> for Failure {
    fn from(why: BadPolicy) -> Self {
        Self::Unreadable(format!(
            "{}\nhint: ask whoever gave it to you, or see what a policy holds in docs/FORMAT.md",
            plain(why)
        ))
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Refuted(Box::new(fault))
    }
}
