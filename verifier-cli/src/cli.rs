//! The command line of `verifier`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use custody::{
    archive,
    id::{GatewayId, MemberId},
};
use verifier::{access::Tool, make_evidence::What, time};

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

const SEARCH_EXIT_CODES: &str = "\
Exit codes: 0 answered; 1 the log, or an object that it names, is refuted, and nothing else is said; 2 unreadable, or no question; \
64 wrong arguments. Whether the archive as such holds `verifier verify` says";

const NAMES_EXIT_CODES: &str = "\
Exit codes: 0 every member of the file was opened, and nothing is wrong with an entry; 1 an entry does not open with the file's \
key, or something else is wrong with it; 2 unreadable; 64 wrong arguments. Whether the archive as such holds `verifier verify` says";

const ACCESS_EXIT_CODES: &str = "\
A time is that of a gateway's own clock, and order is the position of a record: what was in force at a time is what the last change \
made, in that order, that the gateway dated at or before it, with all changes before that one. Beside it the answer has when the \
ledger received the record.

Exit codes: 0 the archive verifies, and of each gateway the records say it all; 1 something in the archive is refuted, and nothing \
else is said; 2 undecided: so is the archive, or records of changes are missing, or the question's time is after what was last heard \
of a gateway (what is known is shown); 64 wrong arguments";

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
    /// Ask for records, in the language of `ledger search`, out of the segments alone
    #[command(after_help = SEARCH_EXIT_CODES)]
    Search(Search),
    /// Show who members are, as far as a disclosure file opens it, and who was erased
    #[command(after_help = NAMES_EXIT_CODES)]
    Names(Names),
    /// Show who could call what at a time, or what changed in that between two times, who changed it and why
    #[command(after_help = ACCESS_EXIT_CODES)]
    Access(Access),
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
        /// The evidence file, or a folder of them as `ledger search --evidence` makes it
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
pub(crate) struct Search {
    /// Folder or tar file
    pub(crate) archive: PathBuf,
    /// The question, as docs/QUERY.md has it; empty: everything
    #[arg(default_value = "", allow_hyphen_values = true)]
    pub(crate) query: String,
    /// The audit policy, `policy.json`
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Only this workspace, by id or name; several times for several
    #[arg(long)]
    pub(crate) workspace: Vec<String>,
    /// Records to show, the newest
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
    /// Only how many match
    #[arg(long)]
    pub(crate) count: bool,
    /// Count the values of a field; several times for several
    #[arg(long, value_name = "FIELD")]
    pub(crate) facet: Vec<String>,
    /// How many there were in each span of time
    #[arg(long)]
    pub(crate) histogram: bool,
    /// Width of a span of the histogram, as 1h or 5m
    #[arg(long, default_value = "1h", requires = "histogram")]
    pub(crate) width: String,
    /// Tell apart the values of this field in the histogram
    #[arg(long, value_name = "FIELD", requires = "histogram")]
    pub(crate) split: Option<String>,
    /// How great: the 50th, 95th and 99th of a hundred of duration, request_bytes or response_bytes
    #[arg(long, value_name = "FIELD")]
    pub(crate) percentiles: Option<String>,
    /// Tell apart the values of this field in the percentiles
    #[arg(long, value_name = "FIELD", requires = "percentiles")]
    pub(crate) by: Option<String>,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
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
#[command(group(ArgGroup::new("when").required(true).args(["at", "between"])))]
pub(crate) struct Access {
    /// Folder or tar file; all of it that the answer rests on is verified first
    pub(crate) archive: PathBuf,
    /// The audit policy, `policy.json`
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// What was in force at this time, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(crate) at: Option<u64>,
    /// What changed from what was in force at A to what was at B: each change, in order of position
    #[arg(long, value_names = ["A", "B"], num_args = 2, value_parser = time::parse)]
    pub(crate) between: Option<Vec<u64>>,
    /// Of this workspace alone, by id or name; nothing else is then verified
    #[arg(long)]
    pub(crate) workspace: Option<String>,
    /// Of this gateway alone
    #[arg(long, value_name = "ID", value_parser = gateway_id)]
    pub(crate) gateway: Option<GatewayId>,
    /// Of this member alone
    #[arg(long, value_name = "ID", value_parser = member_id)]
    pub(crate) member: Option<MemberId>,
    /// Who could call this tool of this server, by which rule; between two times, only changes that changed it
    #[arg(long, value_name = "SERVER/TOOL")]
    pub(crate) tool: Option<Tool>,
    /// By this method instead: then `--tool` names what its requests do, as in docs/FORMAT.md, 5.6
    #[arg(long, default_value = "tools/call", requires = "tool")]
    pub(crate) method: String,
    /// What opens names, as `ledger member disclose` writes it; without it members are shown by their ids
    #[arg(long, value_name = "FILE")]
    pub(crate) names: Option<PathBuf>,
    /// A checkpoint, head or receipt that you have from elsewhere; may be given several times
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) known: Vec<PathBuf>,
    /// Time of the question, RFC 3339, from which ages are measured; now by default
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    pub(crate) as_of: Option<u64>,
    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn gateway_id(text: &str) -> Result<GatewayId, String> {
    GatewayId::from_hex(text).ok_or_else(|| NO_ID.to_owned())
}

fn member_id(text: &str) -> Result<MemberId, String> {
    MemberId::from_hex(text).ok_or_else(|| NO_ID.to_owned())
}

const NO_ID: &str = "not an id\nhint: 32 hex digits in lower case, as `verifier access` shows them without this";

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
