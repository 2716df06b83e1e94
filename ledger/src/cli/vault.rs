//! The vault's backup, and how it comes back without those who were erased since. Both work without a running ledger.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use custody::{id::MemberId, policy::Policy, record::RecordKind, statement::RESERVED_NAME, verify};
use verifier::{
    failure::Failure,
    reader::Source,
    segments::{find_workspace, seals_of},
    show,
};

use super::{At, Done, Fault, output::say, read_input};
use crate::{
    config::Config,
    durable,
    keys::Passphrase,
    store::{Store, StoreError},
    vault::Vault,
};

/// Memory for the look at the store: a row for each member, read once.
const LOOK_BYTES: usize = 8 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum VaultCommand {
    /// Copy the vault to a new file, sealed under a passphrase as the vault itself is. The ledger may run meanwhile.
    Backup {
        #[command(flatten)]
        at: At,
        /// The file to make; must not be there yet.
        #[arg(long)]
        out: PathBuf,
        /// File of mode 0600 with the passphrase that seals the copy; without it the one of the ledger's keys, if it has one.
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
    /// Make the vault from a copy, without the keys of members who were erased since, as archive and store have it. The ledger is
    /// stopped, and no vault is there.
    Restore {
        #[command(flatten)]
        at: At,
        /// The copy.
        file: PathBuf,
        /// File of mode 0600 with the passphrase that sealed the copy, if it is another than that of the ledger's keys.
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
}

fn keys_of(members: usize) -> String {
    format!("the keys of {members} member{}", if members == 1 { "" } else { "s" })
}

/// The passphrase of the ledger's own keys.
fn own(config: &Config) -> Result<Option<Passphrase>, Fault> {
    Ok(Passphrase::from_places(&config.keys.passphrase_file, &config.keys.passphrase_variable)?)
}

fn named(config: &Config, file: Option<&Path>) -> Result<Option<Passphrase>, Fault> {
    match file {
        Some(file) => Ok(Some(Passphrase::from_file(file)?)),
        None => own(config),
    }
}

pub(super) fn run(command: VaultCommand) -> Done {
    match command {
        VaultCommand::Backup { at, out, passphrase_file } => {
            let config = at.load()?;
            let passphrase = named(&config, passphrase_file.as_deref())?;
            let vault = Vault::open(&config.paths.vault, own(&config)?).map_err(|why| Fault::failed(&why))?;
            vault.back_up(&out, passphrase.as_ref()).map_err(|why| Fault::failed(&why))?;
            say(&format!("{}: {}", out.display(), keys_of(vault.members().count())));
            match passphrase {
                Some(_) => say("it is sealed under the passphrase: keep that elsewhere"),
                None => say("it is not sealed: whoever reads it opens every name\nhint: --passphrase-file seals it"),
            }
            Ok(())
        }
        VaultCommand::Restore { at, file, passphrase_file } => {
            let config = at.load()?;
            let passphrase = named(&config, passphrase_file.as_deref())?;
            let mut erased = erased_in_archive(&config)?;
            erased.extend(erased_in_store(&config.paths.data.join("store"))?);
            durable::create_dir(&config.paths.vault, 0o700)
                .map_err(|why| Fault::failure(format!("failed to make {}: {why}", config.paths.vault.display())))?;
            let restored = Vault::restore(&config.paths.vault, own(&config)?, &file, passphrase.as_ref(), &erased);
            let (vault, left_out) = restored.map_err(|why| Fault::failed(&why))?;
            say(&format!("restored {}", keys_of(vault.members().count())));
            let known = erased.len();
            say(&format!("left out {left_out} of those who were erased since the copy; erasures on record: {known}"));
            Ok(())
        }
    }
}

/// Whom the records of the reserved workspace name as erased, in segments that the log names.
fn erased_in_archive(config: &Config) -> Result<BTreeSet<MemberId>, Fault> {
    let unreadable = |why: &dyn std::fmt::Display| {
        Fault::failure(format!(
            "failed to read who was erased from the archive {}: {why}\nhint: without it keys of erased members would come back; put the \
             archive or a copy of it where the configuration says",
            config.archive.folder.display()
        ))
    };
    let policy = read_input(&config.paths.policy)?;
    let policy = Policy::parse(&policy).map_err(|why| unreadable(&why))?;
    let read = || -> Result<BTreeSet<MemberId>, Failure> {
        let archive = Source::open(&config.archive.folder)?;
        let log = verify::log(&archive, &policy, None)??;
        let seals = seals_of(&archive, &log, find_workspace(&log, RESERVED_NAME)?)?;
        let mut erased = BTreeSet::new();
        if seals.last().is_none_or(|seal| seal.next_position() == 0) {
            return Ok(erased);
        }
        show::each(&archive, &seals, 0, None, |shown| {
            let field = |name: &str| shown.fields.get(name).and_then(|value| value.as_str());
            if shown.kind == RecordKind::LedgerEvent && field("kind") == Some("erasure") {
                erased.extend(field("member").and_then(MemberId::from_hex));
            }
            Ok(true)
        })?;
        Ok(erased)
    };
    read().map_err(|why| unreadable(&why))
}

/// Whom the store knows as erased; nobody where there is no store.
fn erased_in_store(folder: &Path) -> Result<BTreeSet<MemberId>, Fault> {
    if !folder.join("CURRENT").exists() {
        return Ok(BTreeSet::new());
    }
    let failed = |why: StoreError| {
        let hint = "\nhint: stop the ledger first; one process at a time has the store";
        let Fault { reason, text } = Fault::failed(&why);
        Fault::new(reason, format!("{text}{hint}"))
    };
    let store = Store::open(folder, LOOK_BYTES, LOOK_BYTES).map_err(failed)?;
    let mut erased = BTreeSet::new();
    for step in store.members(MemberId::ZERO) {
        let (member, row) = step.map_err(failed)?;
        if row.erased_at > 0 {
            erased.insert(member);
        }
    }
    Ok(erased)
}
