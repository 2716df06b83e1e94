//! `gateway-shim config`: the configuration file and the files that it names. Nothing else is asked: `check` does that.

use std::io::Write as _;

use clap::Subcommand;

use super::{At, Done, EXIT_FAILED, Failed, say};
use crate::{
    config::{Config, TEMPLATE},
    gateway, serve,
};

#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Prints one with every key: its unit, default, bounds and reason.
    Template,
    /// Says all that is wrong with it and with the files that it names, and the next move; asks nobody else.
    Check(At),
}

pub(super) fn run(verb: &ConfigVerb) -> Done {
    match verb {
        ConfigVerb::Template => {
            let printed = std::io::stdout().write_all(TEMPLATE.as_bytes());
            printed.map_err(|error| Failed::of(EXIT_FAILED, &error))?;
        }
        ConfigVerb::Check(at) => {
            let config = at.load()?;
            files(&config)?;
            for warning in config.warnings() {
                say(&format!("warning: {warning}"));
            }
            say("the configuration can be used");
        }
    }
    Ok(0)
}

/// Looks at every file that a start reads.
///
/// # Errors
/// All that is wrong with them.
pub fn files(config: &Config) -> Result<(), Failed> {
    gateway::check(config)?;
    Ok(serve::check(config)?)
}
