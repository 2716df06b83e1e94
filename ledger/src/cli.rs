//! The command line: what an operator types.
//!
//! Commands that talk to a running ledger do so over its Admin service, with the administrator's certificate that the
//! configuration names; they hold no decision of the ledger's. Commands that touch the root key talk to nobody. Exit codes
//! are those of [`ExitReason`].

mod admin;
mod alarm;
mod asker;
mod bundle;
mod chain;
mod gateway;
mod hold;
mod key;
mod member;
mod offline;
mod output;
mod reindex;
mod rule;
mod search;
mod show;
mod sign;
mod status;
#[cfg(test)]
mod tests;
mod token;
mod vault;
mod words;
mod workspace;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use custody::{id::hex, strict};
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

use self::output::say;
use crate::{
    config::Config,
    exit::ExitReason,
    init::{CONFIG_FILE, Made, Plan, init},
    keys,
    log_view::report,
    server,
};

/// Greatest length in bytes of a request, statement or answer file that a command reads.
const INPUT_BYTES_MAX: u64 = 1 << 20;

/// The ledger of a chain of custody for AI agents' tool calls.
#[derive(Debug, Parser)]
#[command(name = "ledger", version, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// Which ledger.
#[derive(Clone, Debug, Args)]
struct At {
    /// Configuration file of the ledger.
    #[arg(long, default_value = CONFIG_FILE)]
    config: PathBuf,
}

impl At {
    fn load(&self) -> Result<Config, Fault> {
        Config::load(&self.config).map_err(|why| Fault::of(ExitReason::Configuration, &why))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new ledger: keys, certificates, configuration, audit policy. Overwrites nothing.
    Init(InitArgs),
    /// Look at a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run a ledger.
    Serve(ServeArgs),
    /// Make a ledger if there is none, and run it without TLS on loopback: for trying out.
    Dev(DevArgs),
    /// Offline work with the root key.
    #[command(subcommand)]
    Root(offline::RootCommand),
    /// Workspaces.
    #[command(subcommand)]
    Workspace(workspace::WorkspaceCommand),
    /// Gateways.
    #[command(subcommand)]
    Gateway(gateway::GatewayCommand),
    /// Keys and registrars.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Legal holds.
    #[command(subcommand)]
    Hold(hold::HoldCommand),
    /// People: ids, names, erasures, disclosures.
    #[command(subcommand)]
    Member(member::MemberCommand),
    /// The vault that holds members' keys.
    #[command(subcommand)]
    Vault(vault::VaultCommand),
    /// API tokens of those who ask questions.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Ask for records, with an API token; every question is on record.
    Search(Box<search::SearchArgs>),
    /// Show one record, with an API token, and make what proves it.
    Show(show::ShowArgs),
    /// Show the calls of one trace as a tree, with an API token.
    Trace(show::TraceArgs),
    /// Rules and detectors of what is out of the ordinary.
    #[command(subcommand)]
    Rule(rule::RuleCommand),
    /// What somebody made of an alarm of the watch.
    #[command(subcommand)]
    Alarm(alarm::AlarmCommand),
    /// Raise the alarms on record once more, from the records, and compare them byte for byte.
    Replay {
        #[command(flatten)]
        at: At,
    },
    /// Statements as such.
    #[command(subcommand)]
    Statement(chain::StatementCommand),
    /// How the ledger is: heads, segments, lag, fence, certificates, gateways, alarms.
    Status(status::StatusArgs),
    /// Build the index again from the store, or hold it against the store; questions are answered all the while.
    Reindex(reindex::ReindexArgs),
    /// Cut open segments now and wait until they are archived: somebody wants evidence.
    Cut(CutArgs),
    /// Take an alarm back, when its cause is gone and somebody has acted.
    Acknowledge {
        #[command(flatten)]
        at: At,
        /// Its name, as `ledger status` shows it.
        alarm: String,
    },
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Folder of the new ledger.
    #[arg(long)]
    dir: PathBuf,
    /// Name of the organisation's log, such as example.org/custody. It never changes.
    #[arg(long)]
    origin: String,
    /// Write the root key here instead of under DIR/root, best onto a medium that goes into a safe.
    #[arg(long)]
    root_key_out: Option<PathBuf>,
    /// File of mode 0600 with a passphrase that seals root key and successor.
    #[arg(long)]
    root_passphrase_file: Option<PathBuf>,
    /// File of mode 0600 with a passphrase that seals the ledger's other keys; the server reads it at every start.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a file, check every value, and say what is wrong.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a commented file with the defaults.
    Template,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    at: At,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogForm::Json)]
    log: LogForm,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum LogForm {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

#[derive(Debug, Args)]
struct DevArgs {
    /// Folder; a new one under the temporary folder if none is named.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CutArgs {
    #[command(flatten)]
    at: At,
    /// Only this workspace, by name or id.
    #[arg(long)]
    workspace: Option<String>,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Fault {
    reason: ExitReason,
    text: String,
}

impl Fault {
    fn new(reason: ExitReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }

    fn failure(text: impl Into<String>) -> Self {
        Self::new(ExitReason::Failure, text)
    }

    /// An error and its causes. Hints stand on lines of their own, after the causes.
    fn of(reason: ExitReason, why: &dyn std::error::Error) -> Self {
        Self::new(reason, format!("failed to {}", report(why)))
    }

    fn failed(why: &dyn std::error::Error) -> Self {
        Self::of(ExitReason::Failure, why)
    }
}

impl From<keys::KeyError> for Fault {
    fn from(why: keys::KeyError) -> Self {
        Self::failed(&why)
    }
}

type Done = Result<(), Fault>;

/// Runs the program with the arguments of the process.
pub fn main() -> ExitReason {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(why) => {
            output::usage(&why);
            return if why.use_stderr() { ExitReason::Usage } else { ExitReason::Done };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            output::complain(&format!("failed to start: {why}"));
            return ExitReason::Failure;
        }
    };
    let done = runtime.block_on(Box::pin(run(line.command)));
    // A thread that hangs in a dead archive must not hold the process.
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitReason::Done,
        Err(fault) => {
            output::complain(&fault.text);
            fault.reason
        }
    }
}

async fn run(command: Command) -> Done {
    match command {
        Command::Init(args) => make(&args),
        Command::Config(ConfigCommand::Check { file }) => check(&file),
        Command::Config(ConfigCommand::Template) => {
            say(Config::template().trim_end());
            Ok(())
        }
        Command::Serve(args) => {
            start_log(args.log);
            serve(args.at.load()?).await
        }
        Command::Dev(args) => dev(args).await,
        Command::Root(command) => offline::run(&command),
        Command::Workspace(command) => workspace::run(command).await,
        Command::Gateway(command) => gateway::run(command).await,
        Command::Key(command) => key::run(command).await,
        Command::Hold(command) => hold::run(command).await,
        Command::Member(command) => member::run(command).await,
        Command::Vault(command) => vault::run(command),
        Command::Token(command) => token::run(command).await,
        Command::Rule(command) => rule::run(command).await,
        Command::Alarm(command) => alarm::run(command).await,
        Command::Replay { at } => alarm::replay(at).await,
        Command::Search(args) => search::run(*args).await,
        Command::Show(args) => show::show(args).await,
        Command::Trace(args) => show::trace(args).await,
        Command::Statement(command) => chain::run(command).await,
        Command::Status(args) => status::run(args).await,
        Command::Reindex(args) => reindex::run(args).await,
        Command::Cut(args) => cut(args).await,
        Command::Acknowledge { at, alarm } => acknowledge(&at, &alarm).await,
    }
}

fn make(args: &InitArgs) -> Done {
    let made = init(&Plan {
        dir: args.dir.clone(),
        origin: args.origin.clone(),
        root_key_out: args.root_key_out.clone(),
        root_passphrase_file: args.root_passphrase_file.clone(),
        passphrase_file: args.passphrase_file.clone(),
        plaintext_loopback: false,
    })
    .map_err(|why| Fault::failed(&why))?;
    tell_made(&made);
    say(&format!("start it:        ledger serve --config {}", made.config.display()));
    Ok(())
}

fn tell_made(made: &Made) {
    say(&format!("configuration:   {}", made.config.display()));
    say(&format!("audit policy:    {}", made.policy.display()));
    say(&format!("  fingerprint:   {}", made.fingerprint));
    say("                 give the policy to every auditor, and read the fingerprint to them by another way");
    say(&format!("root key:        {}", made.root_key.display()));
    say(&format!("its successor:   {}", made.successor_key.display()));
    say(
        "                 move both offline now, each to another place: whoever has the root key decides who may write,",
    );
    say("                 and the successor takes over when the root key is lost or known to others");
}

fn check(file: &Path) -> Done {
    let config = Config::load(file).map_err(|why| Fault::of(ExitReason::Configuration, &why))?;
    say(&format!("{}: good; origin {}, digest {}", file.display(), config.origin, config.digest()));
    Ok(())
}

fn start_log(form: LogForm) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_span_events(FmtSpan::NONE).with_writer(std::io::stderr);
    let started = match form {
        LogForm::Json => log.json().flatten_event(true).try_init(),
        LogForm::Text => log.with_ansi(false).try_init(),
    };
    if let Err(why) = started {
        output::complain(&format!("the log is already started: {why}"));
    }
}

async fn serve(config: Config) -> Done {
    let ended = Box::pin(server::run(config, None)).await;
    ended.map_err(|ended| Fault::new(ended.reason, ended.text))
}

async fn dev(args: DevArgs) -> Done {
    let fresh = || std::env::temp_dir().join(format!("custody-{}", hex(&keys::random::<6>())));
    let dir = args.dir.unwrap_or_else(fresh);
    let file = dir.join(CONFIG_FILE);
    if !file.exists() {
        let made = init(&Plan {
            dir: dir.clone(),
            origin: "localhost/custody".to_owned(),
            root_key_out: None,
            root_passphrase_file: None,
            passphrase_file: None,
            plaintext_loopback: true,
        })
        .map_err(|why| Fault::failed(&why))?;
        tell_made(&made);
    }
    let config = Config::load(&file).map_err(|why| Fault::of(ExitReason::Configuration, &why))?;
    say(&format!("\nserving on {} (gRPC) and {} (HTTP); in another terminal:", config.listen.grpc, config.listen.http));
    let root = dir.join("root/root.key");
    say(&format!("  ledger workspace add NAME --root-key {} --config {}", root.display(), file.display()));
    say(&format!("  ledger status --config {}\n", file.display()));
    start_log(LogForm::Text);
    serve(config).await
}

async fn cut(args: CutArgs) -> Done {
    let mut ledger = admin::Ledger::connect(args.at.load()?).await?;
    let workspace = match &args.workspace {
        Some(name) => Some(ledger.workspace(name).await?),
        None => None,
    };
    let size = ledger.cut(workspace).await?;
    say(&format!("cut and archived; the log has {size} entries"));
    Ok(())
}

async fn acknowledge(at: &At, alarm: &str) -> Done {
    let mut ledger = admin::Ledger::connect(at.load()?).await?;
    if !ledger.acknowledge(alarm).await? {
        return Err(Fault::failure(format!("no alarm {alarm} stands\nhint: ledger status shows those that do")));
    }
    say(&format!("{alarm} is taken back; it is raised again if its cause comes again"));
    Ok(())
}

/// An input file of bounded length.
fn read_input(path: &Path) -> Result<Vec<u8>, Fault> {
    read_input_or(path, "is the path right?")
}

/// An input file of bounded length; what to do if there is none.
fn read_input_or(path: &Path, otherwise: &str) -> Result<Vec<u8>, Fault> {
    let fault = |why: std::io::Error| {
        let missing = why.kind() == std::io::ErrorKind::NotFound;
        let hint = if missing { format!("\nhint: {otherwise}") } else { String::new() };
        Fault::failure(format!("failed to read {}: {why}{hint}", path.display()))
    };
    if std::fs::metadata(path).map_err(fault)?.len() > INPUT_BYTES_MAX {
        return Err(Fault::failure(format!("failed to read {}: it is longer than 1 MiB", path.display())));
    }
    std::fs::read(path).map_err(fault)
}

fn is_there(path: &Path) -> Fault {
    let hint = "hint: nothing is overwritten; name another file, or move this one away";
    Fault::failure(format!("failed to write {}: it is there already\n{hint}", path.display()))
}

/// A text that stands in a statement as it is; empty only where it may be left out.
fn check_token(what: &str, text: &str, bytes_max: usize, may_be_empty: bool) -> Done {
    if text.len() <= bytes_max && (strict::is_token(text) || (may_be_empty && text.is_empty())) {
        return Ok(());
    }
    let least = if may_be_empty { "at most" } else { "1 to" };
    Err(Fault::new(
        ExitReason::Usage,
        format!("{what} has {least} {bytes_max} characters of [A-Za-z0-9_./:@+-], and {text:?} has not"),
    ))
}

/// An output file where nothing may be.
fn write_output(path: &Path, bytes: &[u8]) -> Done {
    crate::durable::create_new(path, bytes, 0o644).map_err(|why| match why.kind() {
        std::io::ErrorKind::AlreadyExists => is_there(path),
        std::io::ErrorKind::NotFound => {
            Fault::failure(format!("failed to write {}: {why}\nhint: make its folder first", path.display()))
        }
        _ => Fault::failure(format!("failed to write {}: {why}", path.display())),
    })
}
