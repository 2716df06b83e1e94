//! What verification says: six claims, each verified, refuted or undecided, and the checks behind them (FORMAT.md, 13).

use serde::{Deserialize, Serialize};

use crate::{id::WorkspaceId, strict::NotStrict};

/// One of the six things that a verdict says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// Bytes, trees, signatures, and heads that gateways hold.
    Unaltered,
    /// Every signer's key was valid there, and might write that.
    Authorised,
    /// Numbering, drops and rosters of each gateway in each workspace, up to the last batch of it that is sealed there.
    Complete,
    /// This is not an older or cut copy.
    NotRolledBack,
    /// The organisation has not made a second history with its own keys.
    NotRewritten,
    /// Third parties say when.
    Dated,
}

impl Claim {
    /// All six, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Unaltered, Self::Authorised, Self::Complete, Self::NotRolledBack, Self::NotRewritten, Self::Dated];
}

/// How a claim or a check stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Shown.
    Verified,
    /// Neither shown nor refuted.
    Undecided,
    /// Shown to be false.
    Refuted,
}

macro_rules! checks {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $claim:ident;)*) => {
        /// The checks, in the order in which they are made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Check {
            $($(#[$doc])* $variant,)*
        }

        impl Check {
            /// All checks in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The claim that falls with it.
            pub fn claim(self) -> Claim {
                match self { $(Self::$variant => Claim::$claim,)* }
            }
        }
    };
}

checks! {
    /// There is a checkpoint.
    CheckpointPresent = "checkpoint-present", Complete;
    /// Every checkpoint is a note of three lines and signatures, under its own size.
    CheckpointForm = "checkpoint-form", Unaltered;
    /// Every checkpoint is of the policy's origin.
    CheckpointOrigin = "checkpoint-origin", Unaltered;
    /// The entries up to the checkpoint's size are there.
    LogEntries = "log-entries", Complete;
    /// The entries' tree has the checkpoint's root.
    LogRoot = "log-root", Unaltered;
    /// The tiles hold the tree's hashes.
    LogTile = "log-tile", Unaltered;
    /// Every entry is in strict form.
    LogEntryForm = "log-entry-form", Unaltered;
    /// The ledger's own key statements form a chain that root keys signed.
    LedgerChain = "ledger-chain", Authorised;
    /// Terms rise.
    TermOrder = "term-order", Unaltered;
    /// Each incarnation continues the log that it names.
    Incarnation = "incarnation", Unaltered;
    /// A statement names a checkpoint of this log that its signer had seen; none only before the first term.
    StatementCheckpoint = "statement-checkpoint", Authorised;
    /// Workspaces are created once, by the root, under a name of their own, and removed once.
    WorkspaceCreated = "workspace-created", Authorised;
    /// A workspace's seals are numbered from 0 without a gap, after its creation.
    SealOrder = "seal-order", Complete;
    /// The log's key signed the checkpoint.
    CheckpointSignature = "checkpoint-signature", Unaltered;
    /// Every other checkpoint lies on the same history.
    Fork = "fork", Unaltered;
    /// The witnesses' lines that are there verify.
    Cosignature = "cosignature", Unaltered;
    /// Statement objects of the ledger's chain are there.
    LedgerStatement = "ledger-statement", Complete;
    /// Every workspace that the policy names is in the log.
    WorkspacePresent = "workspace-present", Complete;
    /// Every seal that the log names is there.
    SealPresent = "seal-present", Complete;
    /// It has the hash that the log names.
    SealHash = "seal-hash", Unaltered;
    /// It is in strict form.
    SealForm = "seal-form", Unaltered;
    /// It is of this origin, workspace, segment and incarnation.
    SealBinding = "seal-binding", Unaltered;
    /// Its positions begin where the segment before ended.
    SealPosition = "seal-position", Complete;
    /// Its history root is over the final heads of all earlier segments.
    SealHistory = "seal-history", Unaltered;
    /// It names the ledger's key chain as the log has it there.
    SealLedgerChain = "seal-ledger-chain", Authorised;
    /// It names the workspace's key chain as statements before it left it.
    SealWorkspaceChain = "seal-workspace-chain", Authorised;
    /// The statements of the workspace's chain are there.
    StatementPresent = "statement-present", Complete;
    /// They have the hashes by which they are named, and strict form.
    StatementForm = "statement-form", Unaltered;
    /// They form a chain that root and registrars signed.
    WorkspaceChain = "workspace-chain", Authorised;
    /// The segment object is there.
    SegmentPresent = "segment-present", Complete;
    /// It has the length and SHA-256 that the seal names.
    SegmentSha256 = "segment-sha256", Unaltered;
    /// It has the BLAKE3 that the seal names.
    SegmentBlake3 = "segment-blake3", Unaltered;
    /// Its parts are in form, and are those that the seal speaks of.
    SegmentForm = "segment-form", Unaltered;
    /// Its entries are in strict form.
    EntryForm = "entry-form", Unaltered;
    /// Their positions follow one another.
    EntryPosition = "entry-position", Complete;
    /// Their terms had begun, and never fall.
    EntryTerm = "entry-term", Unaltered;
    /// Statements come last, and are those of the chain.
    EntryStatement = "entry-statement", Authorised;
    /// Their tree has the seal's size and root.
    SegmentRoot = "segment-root", Unaltered;
    /// Counts and times are those of the seal.
    SealCounts = "seal-counts", Unaltered;
    /// Every batch is of this origin and workspace.
    BatchBinding = "batch-binding", Unaltered;
    /// Its key was enrolled there, for that gateway.
    KeyEnrolled = "key-enrolled", Authorised;
    /// Its key was not revoked, and opens no epoch after it was retired.
    KeyValid = "key-valid", Authorised;
    /// Its signature verifies.
    BatchSignature = "batch-signature", Unaltered;
    /// Its records have the root that was signed.
    BatchRoot = "batch-root", Unaltered;
    /// Its records are in strict form.
    RecordForm = "record-form", Unaltered;
    /// Its signer may write such records there.
    RecordKind = "record-kind", Authorised;
    /// An opening batch says who writes.
    WriterRecord = "writer-record", Complete;
    /// The head that it holds was signed by the ledger.
    HeldHeadSignature = "held-head-signature", Unaltered;
    /// Batches, records and epochs follow one another.
    Numbering = "numbering", Complete;
    /// A second copy that is kept as an equivocation is one.
    Equivocation = "equivocation", Unaltered;
    /// The head that a batch holds lies on this history.
    HeldHead = "held-head", Unaltered;
    /// The roster has the last numbers of every epoch that it should.
    Roster = "roster", Complete;
    /// The log has what the auditor knows of it.
    KnownCheckpoint = "known-checkpoint", NotRolledBack;
    /// The workspace has what the auditor knows of it.
    KnownHead = "known-head", NotRolledBack;
    /// The batches of a known receipt are there.
    KnownReceipt = "known-receipt", NotRolledBack;
    /// An evidence file is a tlog-proof with our message in its extra line.
    EvidenceForm = "evidence-form", Unaltered;
    /// Its seals are entries of the log under its checkpoint.
    EvidenceLog = "evidence-log", Unaltered;
    /// Its records are the run that it says, with nothing between.
    EvidenceRun = "evidence-run", Complete;
}

/// A check that did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub check: Check,
    /// Refuted, or undecided where a newer version or an expiry allows no answer.
    pub state: State,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// Object, leaf or record.
    pub place: String,
    /// In whose part of the archive; `None` in the log.
    pub workspace: Option<WorkspaceId>,
}

impl Fault {
    /// A refuted check.
    pub fn new(check: Check, place: impl Into<String>, expected: impl ToString, found: impl ToString) -> Self {
        Self {
            check,
            state: State::Refuted,
            expected: expected.to_string(),
            found: found.to_string(),
            place: place.into(),
            workspace: None,
        }
    }

    /// A form check on bytes that are not strict; of a future version the answer is undecided.
    pub fn form(check: Check, place: impl Into<String>, why: &NotStrict) -> Self {
        let mut fault = Self::new(check, place, "strict form of version 1", why);
        if matches!(why, NotStrict::FutureVersion(_)) {
            fault.state = State::Undecided;
        }
        fault
    }

    /// The same fault, in this workspace.
    #[must_use]
    pub fn of(mut self, workspace: WorkspaceId) -> Self {
        self.workspace = Some(workspace);
        self
    }

    /// The same fault, undecided.
    #[must_use]
    pub fn undecided(mut self) -> Self {
        self.state = State::Undecided;
        self
    }
}

/// Passes if `holds`; else a refuted check.
///
/// # Errors
/// The [`Fault`].
pub fn ensure<E: ToString, F: ToString>(
    check: Check,
    holds: bool,
    place: impl FnOnce() -> String,
    expected_and_found: impl FnOnce() -> (E, F),
) -> Result<(), Fault> {
    if holds || is_omitted(check) {
        return Ok(());
    }
    let (expected, found) = expected_and_found();
    Err(Fault::new(check, place(), expected, found))
}

/// Test-only: the check that this process leaves out. The shipped binary has no such switch.
#[cfg(feature = "omit-check")]
pub static OMITTED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Whether a test-only build leaves this check out.
#[cfg(feature = "omit-check")]
pub fn is_omitted(check: Check) -> bool {
    OMITTED.get().is_some_and(|name| name == check.name())
}

/// Whether a test-only build leaves this check out: never in this build.
#[cfg(not(feature = "omit-check"))]
pub const fn is_omitted(_: Check) -> bool {
    false
}

/// Something that an auditor should know and that refutes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable name, one of those of FORMAT.md, 13.8.
    pub name: &'static str,
    /// In whose part of the archive, as hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// Object, leaf, epoch or gateway.
    pub place: String,
    /// In words.
    pub text: String,
}

/// What verification says of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Checks that did not pass, in order.
    pub faults: Vec<Fault>,
    /// Exceptions that refute nothing.
    pub findings: Vec<Finding>,
    /// Findings past the first thousand, which are only counted.
    pub findings_more: u64,
    /// What was verified.
    pub counts: Counts,
    /// Workspaces in scope, with their names.
    pub workspaces: Vec<(WorkspaceId, String)>,
    /// Claims 4 to 6, which faults alone do not decide: state and the reason in words.
    pub third_party: Vec<(Claim, State, String)>,
    /// Batches whose key is suspect, batches that hold a head of a suspect key, and such checkpoints: "authorised" is then undecided.
    pub suspect_batches: u64,
    /// The auditor holds something to compare the archive with, so that claim 4 is required whatever the policy says: who
    /// gives it asks just that.
    pub known_given: bool,
    /// A period was asked for, and no segment has anything of it: nothing is then said of what records are.
    pub nothing_in_period: bool,
}

/// Greatest number of findings that are listed one by one.
pub const FINDINGS_MAX: usize = 1_000;

/// What was verified, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Entries of the log.
    pub log_entries: u64,
    /// Workspaces in scope.
    pub workspaces: u64,
    /// Segments.
    pub segments: u64,
    /// Segments that have something of the period that was asked for, by the ledger's times.
    pub segments_in_period: u64,
    /// Segments outside of the period, which nothing was read of but their seals.
    pub segments_not_examined: u64,
    /// Batches.
    pub batches: u64,
    /// Records.
    pub records: u64,
    /// Records declared as dropped.
    pub dropped: u64,
    /// Heads held by gateways and checked.
    pub heads: u64,
    /// Heads that point into segments that are not there any more.
    pub heads_not_checked: u64,
    /// Least and greatest received-at, microseconds.
    pub first_received_at: Option<u64>,
    /// Greatest received-at.
    pub last_received_at: Option<u64>,
    /// Greatest sealed-at, which is the ledger's word alone.
    pub newest_sealed_at: Option<u64>,
    /// Greatest time that anybody signed and that is not after the question: up to there the archive reaches.
    pub reaches_to: Option<u64>,
}

impl Counts {
    /// Takes a time that somebody signed. One after the question says nothing of how far the archive reached then.
    pub(crate) fn hear(&mut self, at: u64, as_of: u64) {
        self.reaches_to = self.reaches_to.max(Some(at).filter(|at| *at <= as_of));
    }

    fn add(&mut self, part: &Self) {
        for (sum, number) in [
            (&mut self.log_entries, part.log_entries),
            (&mut self.workspaces, part.workspaces),
            (&mut self.segments, part.segments),
            (&mut self.segments_in_period, part.segments_in_period),
            (&mut self.segments_not_examined, part.segments_not_examined),
            (&mut self.batches, part.batches),
            (&mut self.records, part.records),
            (&mut self.dropped, part.dropped),
            (&mut self.heads, part.heads),
            (&mut self.heads_not_checked, part.heads_not_checked),
        ] {
            *sum = sum.saturating_add(number);
        }
        // Nothing is the least of all options, so of the first times the one that is there counts.
        self.first_received_at = [self.first_received_at, part.first_received_at].into_iter().flatten().min();
        self.last_received_at = self.last_received_at.max(part.last_received_at);
        self.newest_sealed_at = self.newest_sealed_at.max(part.newest_sealed_at);
        self.reaches_to = self.reaches_to.max(part.reaches_to);
    }
}

impl Verdict {
    /// Adds a finding, or only counts it past the limit.
    pub fn find(&mut self, name: &'static str, workspace: Option<WorkspaceId>, place: String, text: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { name, workspace: workspace.map(|id| id.to_string()), place, text });
        } else {
            self.findings_more = self.findings_more.saturating_add(1);
        }
    }

    /// Takes what another part of the archive came to, as if it had been found here from the beginning.
    pub(crate) fn add(&mut self, part: Self) {
        self.faults.extend(part.faults);
        let room = FINDINGS_MAX.saturating_sub(self.findings.len());
        let over = part.findings.len().saturating_sub(room);
        self.findings.extend(part.findings.into_iter().take(room));
        self.findings_more = self.findings_more.saturating_add(part.findings_more).saturating_add(over as u64);
        self.counts.add(&part.counts);
        self.workspaces.extend(part.workspaces);
        self.suspect_batches = self.suspect_batches.saturating_add(part.suspect_batches);
    }

    /// How a claim stands, and why.
    pub fn claim(&self, claim: Claim) -> (State, String) {
        let own = self.faults.iter().filter(|fault| fault.check.claim() == claim);
        if let Some(worst) = own.max_by_key(|fault| (fault.state, std::cmp::Reverse(fault.check))) {
            return (worst.state, format!("{} at {}", worst.check.name(), worst.place));
        }
        if let Some((_, state, why)) = self.third_party.iter().find(|(of, _, _)| *of == claim) {
            return (*state, why.clone());
        }
        if let Some(first) = self.first_fault() {
            return (State::Undecided, format!("not examined past {} at {}", first.check.name(), first.place));
        }
        if claim == Claim::Authorised && self.suspect_batches > 0 {
            return (
                State::Undecided,
                format!("{} batches, heads or checkpoints by suspect keys", self.suspect_batches),
            );
        }
        if self.nothing_in_period {
            return (State::Undecided, "no segment has anything of the period that was asked for".to_owned());
        }
        (State::Verified, String::new())
    }

    /// The first check that did not pass.
    pub fn first_fault(&self) -> Option<&Fault> {
        self.faults.first()
    }

    /// Whether a claim is required: by the policy, or by what the auditor holds.
    pub fn requires(&self, claim: Claim, by_policy: &[Claim]) -> bool {
        by_policy.contains(&claim) || claim == Claim::NotRolledBack && self.known_given
    }

    /// Exit code: 0 all required claims verified, 1 something refuted, 2 undecided.
    pub fn exit_code(&self, required: &[Claim]) -> u8 {
        if Claim::ALL.iter().any(|claim| self.claim(*claim).0 == State::Refuted) {
            return 1;
        }
        let is_open = |claim: &Claim| self.requires(*claim, required) && self.claim(*claim).0 != State::Verified;
        if Claim::ALL.iter().any(is_open) { 2 } else { 0 }
    }
}
