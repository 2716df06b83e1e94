//! Offline work with the root key: shows what a request says and signs it. Talks to nobody.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use custody::{
    id::hex,
    key::{self, Context},
    statement::{Signed, encode_signed},
    strict::{self, NotStrict, table},
    wire,
};

use super::{Done, Fault, output::say, read_input, sign::check_root, words, write_output};
use crate::keys::{self, Passphrase};

#[derive(Debug, Subcommand)]
pub(super) enum RootCommand {
    /// Show in words what a request says, and sign it.
    Sign {
        /// The request, as --request-out wrote it.
        request: PathBuf,
        /// File with the root key of the statement's era; in a succession that of the successor.
        #[arg(long)]
        key: PathBuf,
        /// The audit policy, which says whose key that is: with any other nothing is signed.
        #[arg(long)]
        policy: PathBuf,
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
        RootCommand::Sign { request, key, policy, out, passphrase_file } => {
            let bytes = read_input(request)?;
            let said: wire::Statement =
                strict::decode(&table::STATEMENT, &bytes).map_err(|why| no_statement(request, &why))?;
            if said.registrar.is_some() {
                return Err(Fault::failure(
                    "this statement is a registrar's, and the root cannot sign it\nhint: prepare it again, without --registrar-key",
                ));
            }
            say(&words::statement(&said));
            let passphrase = passphrase_file.as_deref().map(Passphrase::from_file).transpose()?;
            let key = keys::load(key, passphrase.as_ref())?;
            if !check_root(policy, &said, &key)? {
                return Err(Fault::failure(format!(
                    "the audit policy does not tell whose key era {} has; nothing was signed\nhint: add the roots since to a copy of it \
                     (docs/OPERATIONS.md, \"The root key is lost or known to others\")",
                    said.era
                )));
            }
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
    let said = strict::decode(&table::STATEMENT, &bytes).map_err(|why| no_statement(path, &why))?;
    Ok((said, false))
}

fn no_statement(path: &Path, why: &NotStrict) -> Fault {
    Fault::failure(format!(
        "{} is no statement of a version that this program knows: {why}\nhint: a command with --request-out makes a request, and \
         `ledger root sign` a signed statement",
        path.display()
    ))
}
