//! The program `verifier`: its command line, and the exit codes: 0 all required claims verified, 1 something refuted,
//! 2 undecided or unreadable, 64 usage.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use verifier::output;

mod cli;
mod commands;

/// Wrong arguments, as in `sysexits.h`.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(why) => {
            // Help and version are errors to clap that it prints to standard output.
            if why.use_stderr() {
                // It repeats the arguments, which may be names of files that others made: in them line breaks are not ours.
                let shown = std::env::args_os().map(|argument| output::plain(argument.to_string_lossy()));
                let why = cli::Arguments::try_parse_from(shown).err().unwrap_or(why);
                output::message(why.render().to_string().trim_end());
                return ExitCode::from(USAGE);
            }
            return ExitCode::from(if output::is_read(why.print()).is_ok() { 0 } else { 2 });
        }
    };
    match commands::run(arguments.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output::message(&format!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}
