//! Reports: what a verdict means, for an auditor who never heard of a Merkle tree ([`text`]) and for programs ([`json`]).
//!
//! The text begins with scope, period, conclusion, exceptions and what is not excluded; details follow. Both say the same.

use custody::{
    policy::{Policy, Scope},
    verdict::{Claim, State, Verdict},
    verify::Options,
};

mod evidence;
mod json;
mod text;
pub(crate) mod words;

pub use evidence::{evidence_json, evidence_line, evidence_refused, evidence_text, evidence_unreadable_json};
pub use json::{json, unreadable_json};
pub(crate) use json::{to_text, unreadable};
pub(crate) use text::{paragraph, write_fault};
pub use text::{text, undecided};

/// All that a report speaks of.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What verification says.
    pub verdict: &'a Verdict,
    /// By which policy.
    pub policy: &'a Policy,
    /// The policy file's fingerprint.
    pub fingerprint: &'a str,
    /// What was asked.
    pub options: &'a Options,
}

impl Subject<'_> {
    fn exit_code(&self) -> u8 {
        self.verdict.exit_code(&self.policy.required)
    }

    fn is_required(&self, claim: Claim) -> bool {
        self.verdict.requires(claim, &self.policy.required)
    }

    fn state(&self, claim: Claim) -> State {
        self.verdict.claim(claim).0
    }

    /// What this verdict leaves open, each as a sentence.
    pub(crate) fn not_excluded(&self) -> Vec<String> {
        let mut open = vec![
            "Calls that never passed a recording gateway are not here, and nothing here could show them.".to_owned(),
            "Whoever administers a gateway, or holds its key, can make it record what did not happen.".to_owned(),
        ];
        if self.state(Claim::NotRolledBack) == State::Undecided {
            open.push(
                "This may be an older or shortened copy, as a whole, of one workspace or of one gateway's records: the newest seal \
                 is the ledger's own, and nothing from outside the archive says how far it must reach. To exclude that, give \
                 --known with a checkpoint, and receipts or heads that gateways kept."
                    .to_owned(),
            );
        }
        let known = self.options.known.len();
        if self.state(Claim::NotRolledBack) == State::Verified && known > 0 {
            open.push(format!(
                "This copy reaches at least as far as what you know from elsewhere ({known} given). Records that came \
                 after that, and of other workspaces and gateways than it speaks of, could still be missing from its end."
            ));
        }
        if self.state(Claim::NotRewritten) != State::Verified {
            open.push(
                "The organisation holds all of its own signing keys, and with the log's key alone it could have left out \
                 whole parts of a workspace and signed the log anew; no independent witness says that this log is the \
                 only one."
                    .to_owned(),
            );
        }
        if self.state(Claim::Dated) != State::Verified {
            open.push("Times are the word of the organisation's own clocks; no third party confirms them.".to_owned());
        }
        if self.options.has_period() {
            open.push(format!(
                "Only the period that was asked for was examined, with one segment more on either side; of {} segments nothing \
                 was read but their seals. What belongs to the period is decided by when the ledger says that it received \
                 something: at either end it could have dated records out of it.",
                self.verdict.counts.segments_not_examined
            ));
        }
        if self.options.since.is_some() && self.verdict.counts.segments_not_examined > 0 {
            open.push(
                "Of a gateway that the first segment examined does not have, the first records in the period could be missing: \
                 nothing examined says where its numbers stood."
                    .to_owned(),
            );
        }
        if let Scope::Workspaces(_) = self.policy.scope {
            open.push("The organisation's other workspaces were not examined.".to_owned());
        }
        if self.verdict.counts.heads_not_checked > 0 {
            open.push(format!(
                "{} receipts that gateways hold point into records that are no longer kept, and were not checked.",
                self.verdict.counts.heads_not_checked
            ));
        }
        open
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Verified => "verified",
        State::Undecided => "undecided",
        State::Refuted => "refuted",
    }
}

pub(crate) fn conclusion(exit_code: u8) -> &'static str {
    match exit_code {
        0 => "verified",
        1 => "refuted",
        _ => "undecided",
    }
}

fn claim_name(claim: Claim) -> &'static str {
    match claim {
        Claim::Unaltered => "unaltered",
        Claim::Authorised => "authorised",
        Claim::Complete => "complete",
        Claim::NotRolledBack => "not_rolled_back",
        Claim::NotRewritten => "not_rewritten",
        Claim::Dated => "dated",
    }
}
