//! The program `ledger`; what it does stands in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    ledger::cli::main().into()
}
