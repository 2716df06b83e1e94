//! Offline work with the root key: shows what a request says and signs it. Talks to nobody.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use custody::{
    id::hex,
    key::{self, Context},
    statement::{Signed, encode_signed},
    strict::{self, table},
    wire,
};

use super::{Done, Fault, output::say, read_input, words, write_output};
use crate::keys::{self, Passphrase};

#[derive(Debug, Subcommand)]
pub(super) enum RootCommand {
    /// Show in words what a request says, and sign it.
    Sign {
        /// The request, as --request-out wrote it.
        request: PathBuf,
        /// File with the root key.
        #[arg(long)]
        key: PathBuf,
        /// File for the signed statement; REQUEST with the ending `.stmt` if none is named.
        #[arg(long)]
        out: Option<PathBuf>,
        /// File of mode 0600 with the passphrase of a sealed key.
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
    /// Print the public key of a key file: of the successor, say, which signs once the root key is lost.
    Public {
        /// The file.
        key: PathBuf,
        /// File of mode 0600 with the passphrase of a sealed key.
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
    /// Show in words what a request or a signed statement says, and sign nothing.
    Show {
        /// The file.
        file: PathBuf,
    },
}

pub(super) fn run(command: &RootCommand) -> Done {
    match command {
        RootCommand::Show { file } => {
            say(&words::statement(&read(file)?.0));
            Ok(())
        }
        RootCommand::Public { key, passphrase_file } => {
            let passphrase = passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
            let key = keys::load(key, passphrase.as_ref())?;
            say(&hex(&key::public(&key).to_bytes()));
            Ok(())
        }
        RootCommand::Sign { request, key, out, passphrase_file } => {
            let bytes = read_input(request)?;
            let said: wire::Statement =
                strict::decode(&table::STATEMENT, &bytes).map_err(|why| no_statement(request, &format!("{why:?}")))?;
            if said.registrar.is_some() {
                return Err(Fault::failure("this statement is a registrar's, and the root cannot sign it"));
            }
            say(&words::statement(&said));
            let passphrase = passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
            let key = keys::load(key, passphrase.as_ref())?;
            let object = encode_signed(&bytes, key::sign(&key, Context::Statement, &bytes));
            let out = out.clone().unwrap_or_else(|| request.with_extension("stmt"));
            write_output(&out, &object)?;
            say(&format!("signed; next, where the ledger is: ledger statement submit {}", out.display()));
            Ok(())
        }
    }
}

/// A request or a signed statement, and whether it is signed.
fn read(path: &Path) -> Result<(wire::Statement, bool), Fault> {
    let bytes = read_input(path)?;
    if let Ok(signed) = Signed::parse(&bytes) {
        return Ok((signed.statement, true));
    }
    let said = strict::decode(&table::STATEMENT, &bytes).map_err(|why| no_statement(path, &format!("{why:?}")))?;
    Ok((said, false))
}

fn no_statement(path: &Path, why: &str) -> Fault {
    Fault::failure(format!(
        "failed to read {}: it is no statement of a version that this program knows ({why})",
        path.display()
    ))
}
