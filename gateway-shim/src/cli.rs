//! The command line: what is parsed, who answers, and how a failure is said. A file for each family of verbs.
//!
//! What must hold: exit codes mean what `docs/SHIPPING.md` says; each error is one sentence that ends with the next move; no
//! secret is an argument, and none is printed but a new token, once, to standard output; a running shim is spoken to over its
//! control socket alone.
//!
//! Exit codes: 0 drained and all shipped; 1 failed to start or to run; 3 drained, and batches are left in the spool for the
//! next start; 4 the ledger takes nothing more of this gateway; 5 the ledger shows two histories (a fork); 64 usage;
//! 78 the configuration cannot be used.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Config, Faults},
    gateway::OpenError,
    spool::SpoolError,
};

mod config;
mod key;
mod output;
mod running;
mod server;
mod status;

pub use config::files;
pub use output::say;

/// It failed to start or to run.
pub const EXIT_FAILED: u8 = 1;
/// Drained, and batches are left in the spool.
pub const EXIT_UNSHIPPED: u8 = 3;
/// The ledger takes nothing more of this gateway.
pub const EXIT_REFUSED: u8 = 4;
/// The ledger shows two histories.
pub const EXIT_FORK: u8 = 5;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 64;
/// The configuration, or a file that it names, cannot be used.
pub const EXIT_CONFIG: u8 = 78;

/// Records every tool call that passes, signs it, and ships it to the ledger.
#[derive(Debug, Parser)]
#[command(name = "gateway-shim", version, about)]
pub struct Line {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct At {
    /// Configuration file.
    #[arg(long)]
    config: PathBuf,
}

impl At {
    /// Reads it.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn load(&self) -> Result<Config, Failed> {
        Ok(Config::read(&self.config)?)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Stands in front of MCP servers.
    Serve(At),
    /// Takes records of other gateways on this machine.
    Relay(At),
    /// What a verb does that ends at once.
    #[command(flatten)]
    Said(Said),
    /// What the shim starts itself as, to become an MCP server; nothing for people.
    #[command(hide = true)]
    Become {
        /// What the process does to itself.
        plan: String,
        /// Program and arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// What the shim starts beside itself, to end what it would leave; nothing for people.
    #[command(hide = true)]
    Guard,
}

/// Verbs that say something and end.
#[derive(Debug, Subcommand)]
pub enum Said {
    /// Keys of this gateway.
    Key {
        /// What to do with them.
        #[command(subcommand)]
        verb: key::KeyVerb,
    },
    /// Writes the request that `ledger gateway enrol` takes.
    Request(key::RequestArgs),
    /// The configuration file.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        verb: config::ConfigVerb,
    },
    /// What a running shim does: its spool, its ledger, its servers, who may come in.
    Status(status::StatusArgs),
    /// MCP servers that are programs of this machine: their processes.
    Server {
        /// What to do with them.
        #[command(subcommand)]
        verb: server::ServerVerb,
    },
}

/// What went wrong, and the exit code.
#[derive(Debug)]
pub struct Failed {
    /// Exit code.
    pub code: u8,
    /// Behind "failed to".
    pub text: String,
}

impl Failed {
    /// With its own words.
    pub fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// What an error and its causes say.
    pub fn of(code: u8, error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        Self { code, text: causes.map(ToString::to_string).collect::<Vec<_>>().join(": ") }
    }

    /// The configuration lacks a section.
    pub fn missing(section: &str) -> Self {
        let hint = "hint: gateway-shim config template has the section with every key";
        Self::new(EXIT_CONFIG, format!("use the configuration: it has no [{section}]; {hint}"))
    }

    fn not_written(path: &Path, error: &std::io::Error) -> Self {
        let path = path.display();
        let text = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                format!("write {path}: there is a file of this name; hint: another name, or move it away")
            }
            std::io::ErrorKind::NotFound => format!("write {path}: its folder is not there; hint: make it"),
            _ => format!("write {path}: {error}; hint: may this account write there, and is there space?"),
        };
        Self::new(EXIT_FAILED, text)
    }
}

impl From<Faults> for Failed {
    fn from(faults: Faults) -> Self {
        Self::of(EXIT_CONFIG, &faults)
    }
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        let code = match &error {
            OpenError::Config(_)
            | OpenError::Key(_)
            | OpenError::Spool(SpoolError::OfAnother(_) | SpoolError::OtherKey(..) | SpoolError::Newer) => EXIT_CONFIG,
            OpenError::Spool(_) | OpenError::Chain(_) => EXIT_FAILED,
        };
        Self::of(code, &error)
    }
}

/// How a verb went: the exit code.
pub type Done = Result<u8, Failed>;

/// Reads the command line; else the exit code, and its help or what is wrong with it is printed.
///
/// # Errors
/// The exit code.
pub fn parse() -> Result<Verb, u8> {
    Line::try_parse().map(|line| line.verb).map_err(|error| {
        let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
        if error.print().is_ok() { code } else { EXIT_FAILED }
    })
}

/// Does what ends at once.
///
/// # Errors
/// [`Failed`].
pub async fn run(said: Said) -> Done {
    match said {
        Said::Key { verb } => key::run(verb),
        Said::Request(args) => key::request(&args),
        Said::Config { verb } => config::run(&verb),
        Said::Status(args) => status::run(args).await,
        Said::Server { verb } => server::run(verb).await,
    }
}

#[cfg(test)]
mod tests;
