//! The command line of `verifier`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use custody::archive;
use verifier::{make_evidence::What, time};

/// Checks a Custody archive or evidence file offline, trusting nothing but the audit policy.
#[derive(Debug, Parser)]
#[command(name = "verifier", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 all required claims verified, 1 something refuted, 2 undecided or unreadable, \
                          64 wrong arguments";

/// Of claims evidence shows but two (FORMAT, section 14), so that here 0 cannot speak of all that the policy requires.
const EVIDENCE_EXIT_CODES: &str = "\
Exit codes: 0 the records that the file holds are unaltered and were signed by those allowed to; of the policy's other claims \
(complete, not_rolled_back, not_rewritten, dated) and of its quorum of witnesses 0 says nothing, required or not: `verifier \
verify` does; 1 something refuted, 2 undecided or unreadable, 64 wrong arguments";

const NAMES_EXIT_CODES: &str = "\
Exit codes: 0 every member of the file was opened, and nothing is wrong with an entry; 1 an entry does not open with the file's \
key, or something else is wrong with it; 2 unreadable; 64 wrong arguments. Whether the archive as such holds `verifier verify` says";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Verify a whole archive: a folder or a tar file
    #[command(after_help = EXIT_CODES)]
    Verify(Verify),
    /// Make or check evidence: one file that proves a record, or a run of records
    #[command(subcommand)]
    Evidence(Evidence),
    /// Verify and copy out what the auditor of one workspace gets: the log, the workspace's objects, a policy for it
    #[command(after_help = EXIT_CODES)]
    Export(Export),
    /// Show records as a table or as JSON lines
    Show(Show),
    /// Show who members are, as far as a disclosure file opens it, and who was erased
    #[command(after_help = NAMES_EXIT_CODES)]
    Names(Names),
    /// Print a policy file's fingerprint, to be compared by eye or voice
    Fingerprint {
        /// The policy file
        policy: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Folder or tar file
    pub(crate) archive: PathBuf,
    /// The audit policy, `policy.json`
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// A checkpoint, head or receipt that you have from elsewhere; may be given several times
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) known: Vec<PathBuf>,
    /// Time of the question, RFC 3339; now by default
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(crate) as_of: Option<u64>,
    /// Only segments with something received at or after this time, by the ledger's word, and one before
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(crate) since: Option<u64>,
    /// Only segments with something received at or before this time, by the ledger's word, and one after
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(crate) until: Option<u64>,
    /// Verify the archive as it was when the log had this many entries
    #[arg(long, value_name = "N", value_parser = number)]
    pub(crate) at_size: Option<u64>,
    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn number(text: &str) -> Result<u64, String> {
    let why = "not a number\nhint: digits alone, without leading zeros, as a file below log/checkpoints is named";
    archive::number(text).ok_or_else(|| why.to_owned())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Evidence {
    /// Make an evidence file
    Make {
        /// Folder or tar file
        archive: PathBuf,
        /// The audit policy, `policy.json`
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// `workspace/position`, `workspace/A..B` (B not included), `workspace/A..` (to the last) or `gateway/epoch/number`; a
        /// workspace by id or name
        what: What,
        /// The file to make; must not be there yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Check an evidence file
    #[command(after_help = EVIDENCE_EXIT_CODES)]
    Check {
        /// The evidence file
        file: PathBuf,
        /// The audit policy, `policy.json`
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// Print what it shows as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Folder or tar file
    pub(crate) archive: PathBuf,
    /// The audit policy, `policy.json`
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Id or name
    #[arg(long)]
    pub(crate) workspace: String,
    /// Folder to make; must be new or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Folder or tar file
    pub(crate) archive: PathBuf,
    /// The audit policy, `policy.json`
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// What opens names, as `ledger member disclose` writes it
    #[arg(long, value_name = "FILE")]
    pub(crate) disclosure: PathBuf,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Folder or tar file
    pub(crate) archive: PathBuf,
    /// `workspace/position`, `workspace/A..B` (B not included) or `workspace/A..` (to the last)
    pub(crate) range: What,
    /// The audit policy; without it the workspace is named by its id, and nothing is verified but what seals name
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}
