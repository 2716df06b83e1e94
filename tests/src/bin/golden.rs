//! Writes the golden archive, its policies and known files into a folder: `golden DIR`.

use std::{path::Path, process::ExitCode};

use custody_tests::golden::{self, Variant, ledger::Hooks};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [folder] => golden::write(&golden::tell(Variant::Plain, Hooks::default()), Path::new(folder)),
        _ => Err(std::io::Error::other("usage: golden DIR")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("golden: {why}");
            ExitCode::FAILURE
        }
    }
}
