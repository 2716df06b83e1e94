//! `gateway-shim key` and `request`: the gateway's own keys, and its enrolment.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{At, Done, EXIT_FAILED, Failed, say};
use crate::{durable, gateway, key, writer::Carried};

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Makes the signing key and the TLS key, in new files with mode 0600.
    New {
        /// File of the key that signs batches.
        #[arg(long)]
        key: PathBuf,
        /// File of the TLS key.
        #[arg(long)]
        tls_key: PathBuf,
    },
    /// The key before this one is lost, and a start asks for it: goes on with the key that the configuration names.
    Lost(At),
}

#[derive(Debug, Args)]
pub struct RequestArgs {
    #[command(flatten)]
    at: At,
    /// Where to write it.
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(verb: KeyVerb) -> Done {
    match verb {
        KeyVerb::New { key, tls_key } => {
            key::create(&key, &tls_key).map_err(|error| Failed::of(EXIT_FAILED, &error))?;
            say(&format!("made {} and {}; keep both secret", key.display(), tls_key.display()));
            Ok(0)
        }
        KeyVerb::Lost(at) => lost(&at),
    }
}

pub(super) fn request(args: &RequestArgs) -> Done {
    let (config, out) = (args.at.load()?, &args.out);
    let failed = |error: key::KeyError| Failed::of(EXIT_FAILED, &error);
    let signing = key::read_signing(&config.gateway.key).map_err(failed)?;
    let tls = key::read_secret(&config.gateway.tls_key).map_err(failed)?;
    let request = key::enrolment_request(&config.name(), &config.gateway.name, &signing, &tls).map_err(failed)?;
    let mut json = serde_json::to_vec_pretty(&request).map_err(|error| Failed::of(EXIT_FAILED, &error))?;
    json.push(b'\n');
    durable::create_new(out, &json, false).map_err(|error| Failed::not_written(out, &error))?;
    say(&format!(
        "wrote {}; hint: ledger gateway enrol takes it, and answers with {}",
        out.display(),
        config.gateway.enrolment.display()
    ));
    Ok(0)
}

/// Goes on without a key that is lost, and says what became of what waited for it.
fn lost(at: &At) -> Done {
    match gateway::go_on_without_key(&at.load()?)? {
        Some(Carried { old_epoch, old_key, epoch, records, unfinished }) => say(&format!(
            "epoch {old_epoch} of the key {old_key} stays unended; epoch {epoch} of gateway.key goes on behind it, with \
             {records} records and {unfinished} calls that waited there; hint: start the gateway, which ships them, and \
             keep what was printed here: it has their new names"
        )),
        None => say("no epoch in the spool waits for another key; nothing was changed; hint: start the gateway"),
    }
    Ok(0)
}
