//! What each check, finding and claim means, in words that need no other words.

use custody::verdict::{Check, Claim};

/// A claim, completing "it is shown that ...".
pub(super) fn claim(claim: Claim) -> &'static str {
    match claim {
        Claim::Unaltered => "no record was changed or put elsewhere after it was signed",
        Claim::Authorised => "every signer was allowed to sign what it signed",
        Claim::Complete => "no record that was signed is missing before the last one that is here of its gateway",
        Claim::NotRolledBack => "this is not an older or shortened copy",
        Claim::NotRewritten => "the organisation keeps no second history",
        Claim::Dated => "third parties confirm the times",
    }
}

/// What it means that a check did not pass.
pub(crate) fn check(check: Check) -> &'static str {
    log(check).or_else(|| workspace(check)).unwrap_or_else(|| batch(check))
}

fn log(check: Check) -> Option<&'static str> {
    Some(match check {
        Check::CheckpointPresent => "The signed summary of the log that everything hangs from is not there.",
        Check::CheckpointForm => "A signed summary of the log is damaged or is of another size than its name says.",
        Check::CheckpointOrigin => "The archive belongs to another organisation than the policy names.",
        Check::LogEntries => "Entries of the log are missing or damaged.",
        Check::LogRoot => "The log's entries are not those that its signed summary stands for.",
        Check::LogTile => "A file of the log's hashes does not agree with the log's entries.",
        Check::LogEntryForm => "An entry of the log is not in the required form.",
        Check::LedgerChain => {
            "A statement on the ledger's own keys was not signed by those who may, or does not follow."
        }
        Check::TermOrder => "The ledger's starts are not in order.",
        Check::Incarnation => "After a loss the ledger went on from another history than the root key had confirmed.",
        Check::StatementCheckpoint => {
            "A statement on keys or workspaces was made without sight of this log, or for another."
        }
        Check::WorkspaceCreated => "A workspace was created or removed without the root key, or twice.",
        Check::SealOrder => "A sealed part of a workspace is missing from the log, or out of order.",
        Check::CheckpointSignature => "The summary of the log lacks the signature of a key that was in force.",
        Check::Fork => "The ledger signed two histories that contradict each other.",
        Check::Cosignature => "A witness's signature beside the log does not verify.",
        Check::LedgerStatement => "A statement on the ledger's own keys is missing from the archive.",
        Check::WorkspacePresent => {
            "A workspace that the policy names is not there, or one is there that it does not name."
        }
        _ => return None,
    })
}

fn workspace(check: Check) -> Option<&'static str> {
    Some(match check {
        Check::SealPresent => "The description (seal) of a part of a workspace is missing.",
        Check::SealHash => "The description (seal) of a part of a workspace was exchanged or changed.",
        Check::SealForm => "The description (seal) of a part of a workspace is not in the required form.",
        Check::SealBinding => "A seal belongs to another organisation, workspace or place than it stands for.",
        Check::SealPosition => "Between two parts of a workspace positions are missing or used twice.",
        Check::SealHistory => "A seal names another past of the workspace than the archive has.",
        Check::SealLedgerChain => "A seal names other keys of the ledger than the log has there.",
        Check::SealWorkspaceChain => "A seal names other keys of the workspace than its statements give.",
        Check::StatementPresent => "A statement on who may sign in a workspace is missing.",
        Check::StatementForm => "A statement on who may sign in a workspace was exchanged or changed.",
        Check::WorkspaceChain => "A statement on who may sign in a workspace was not made by those who may make it.",
        Check::SegmentPresent => "A part of a workspace's records is missing.",
        Check::SegmentSha256 | Check::SegmentBlake3 => "A part of a workspace's records was exchanged or changed.",
        Check::SegmentForm => "A part of a workspace's records is not in the required form.",
        Check::EntryForm => "A batch of records is not in the required form.",
        Check::EntryPosition => "Positions within a part of a workspace are missing or used twice.",
        Check::EntryTerm => "A batch says that it was taken by a run of the ledger that had not begun, or was over.",
        Check::EntryStatement => "Statements on keys do not stand where they take effect.",
        Check::SegmentRoot => "Batches are not those that the ledger sealed.",
        Check::SealCounts => "A seal counts other records, batches or times than there are.",
        _ => return None,
    })
}

fn batch(check: Check) -> &'static str {
    match check {
        Check::BatchBinding => "A batch was signed for another organisation or workspace.",
        Check::KeyEnrolled => "A batch was signed with a key that nobody had allowed.",
        Check::KeyValid => "A batch was signed with a key that had been withdrawn.",
        Check::BatchSignature => "The gateway's signature under a batch does not verify.",
        Check::BatchRoot => "Records of a batch are not those that the gateway signed.",
        Check::RecordForm => "A record is not in the required form.",
        Check::RecordKind => "A signer wrote a kind of record that it may not write.",
        Check::WriterRecord => "A gateway began without saying who writes.",
        Check::HeldHeadSignature => "A gateway holds a receipt that the ledger did not sign.",
        Check::Numbering => "A gateway's batches or records have a gap in their numbers, or numbers used twice.",
        Check::Equivocation => "What is kept as a contradiction of a gateway is none.",
        Check::HeldHead => "A gateway holds a signed receipt that this archive contradicts.",
        Check::Roster => "The list of the gateways' last numbers does not agree with their batches.",
        Check::KnownCheckpoint => "The archive contradicts, or does not reach, a summary of the log that you know.",
        Check::KnownHead | Check::KnownReceipt => {
            "The archive contradicts, or does not reach, a receipt that you know."
        }
        Check::EvidenceForm => "The file is no evidence file, or a damaged one.",
        Check::EvidenceLog => "What the evidence shows does not lead to the signed summary of the log.",
        Check::EvidenceRun => "The evidence has a gap, or other records than it says.",
        _ => "A check did not pass.",
    }
}

/// What a finding means.
pub(crate) fn finding(name: &str) -> &'static str {
    match name {
        "state-lost" => "A gateway lost what it knew of its earlier records; some may be missing before that point.",
        "rewound" => "A gateway was set back to an earlier state, as by restoring a backup, and began anew.",
        "dropped" => "A gateway declared that it had lost records before it could sign them.",
        "silent" => "A gateway that promised to report at all times was silent for longer than it had promised.",
        "unclosed" => "A gateway's run was neither ended nor continued for days.",
        "suspect-key" => "Something was signed with a key that was later put in doubt.",
        "received-before-term" => {
            "The ledger says it received something before it had started; its clock may have been wrong."
        }
        "misdated" => {
            "What was left out of the period is dated against the order of things: perhaps it was dated out of it on purpose."
        }
        "equivocation" => "A gateway signed two different batches under one number.",
        "superseded" => "A gateway holds a receipt from before a loss of the ledger; it was replaced by the recovery.",
        "unfenced" => "The ledger could not be sure for a time that it was the only one writing.",
        "unreferenced" => {
            "There are files that nothing examined refers to, as a crash may leave them, or what came later than was asked for."
        }
        "never-heard" => {
            "A gateway was allowed to sign, and nothing that it signed is here: it was never used, or left out."
        }
        "outdated" => {
            "The archive ends days before the time of the question: of what happened since, nothing is known."
        }
        "uncounted" => {
            "A signature that should be a witness's was not counted: it is by another key, or from after the question."
        }
        "unsigned" => "Something was given as known from elsewhere that this ledger did not sign; it says nothing.",
        "not-checked" => "Something could not be checked because it is no longer kept.",
        _ => "Something that you should know.",
    }
}

/// The words of the details.
pub(super) const GLOSSARY: &str = "
WORDS
  record       one signed fact: a call of a tool, a change of rights, a start of a gateway
  gateway      the program between an AI client and its tools that signs what it sees
  batch        records under one signature of a gateway
  segment      a run of a workspace's batches in one file; its seal describes it
  log          the one list of all seals and key statements; a checkpoint is its signed summary
  witness      a third party that signs checkpoints, so that there cannot be two logs
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_sentence() {
        for of in Check::ALL {
            let sentence = check(*of);
            assert!(sentence != "A check did not pass.", "{}", of.name());
            assert!(sentence.ends_with('.'), "{}", of.name());
        }
    }
}
