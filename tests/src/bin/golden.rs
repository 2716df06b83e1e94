//! Writes the golden archive, its policies and known files into a folder (`golden DIR`), every lie about it as a folder of
//! its own with `expected.json` (`golden --lies DIR` for archives, `golden --evidence DIR` for evidence files), or so many histories of access changes from a
//! seed on (`golden --access DIR COUNT SEED`), or prints where everything stands (`golden --places`), for who writes a lie.

use std::{io, path::Path, process::ExitCode};

use custody_tests::{
    golden::{self, objects::write_one},
    histories,
    lies::{self, GOLDEN},
};

const USAGE: &str =
    "usage: golden DIR | golden --lies DIR | golden --evidence DIR | golden --access DIR COUNT SEED | golden --places";

/// No folder is made under the name of an option that there is not.
fn is_option(argument: &str) -> bool {
    argument.starts_with('-')
}

#[expect(clippy::print_stdout, reason = "the text is what it is asked for")]
fn help() {
    println!("{USAGE}");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["--help" | "-h"] => {
            help();
            Ok(())
        }
        ["--places"] => {
            places();
            Ok(())
        }
        ["--lies", folder] if !is_option(folder) => write_lies(Path::new(folder), false),
        ["--evidence", folder] if !is_option(folder) => write_lies(Path::new(folder), true),
        ["--access", folder, count, seed] if !is_option(folder) => match (count.parse(), seed.parse()) {
            (Ok(count), Ok(seed)) => histories::write(Path::new(folder), count, seed),
            _ => Err(io::Error::other(USAGE)),
        },
        [folder] if !is_option(folder) => golden::write(&GOLDEN.ledger, Path::new(folder)),
        _ => Err(io::Error::other(USAGE)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("golden: {why}");
            ExitCode::FAILURE
        }
    }
}

fn write_lies(folder: &Path, of_evidence: bool) -> io::Result<()> {
    for (name, lie) in lies::read_all()?.into_iter().filter(|(_, lie)| lie.is_of_evidence() == of_evidence) {
        let place = folder.join(&name);
        let told = lie.tell().map_err(|why| io::Error::other(format!("{name}: {why}")))?;
        told.write(&place)?;
        write_one(&place.join("expected.json"), &serde_json::to_vec_pretty(&lie.expected)?)?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the list is what it is asked for")]
fn places() {
    for workspace in &GOLDEN.ledger.workspaces {
        for (number, segment) in workspace.segments.iter().enumerate() {
            for (at, leaf) in segment.leaves.iter().enumerate() {
                let here = |place: &&(_, u64, usize)| **place == (workspace.id, number as u64, at);
                let label = GOLDEN.ledger.labels.iter().find(|(_, place)| here(place)).map(|(label, _)| label.as_str());
                let (kind, position) = (leaf.leaf.kind.as_str_name(), leaf.leaf.first_position);
                println!("{} {number}/{at} {kind} position {position} {}", workspace.id, label.unwrap_or(""));
            }
        }
    }
    for (index, entry) in GOLDEN.rendered.entries.iter().enumerate() {
        match custody::log::Entry::parse(entry) {
            Ok(custody::log::Entry::TermStart(start)) => println!("log {index} term {}", start.term),
            Ok(custody::log::Entry::Seal { workspace, segment, .. }) => {
                println!("log {index} seal {workspace}/{segment}")
            }
            Ok(custody::log::Entry::Statement(signed)) => {
                println!("log {index} statement {:?} {}", signed.workspace(), signed.statement.serial);
            }
            Err(why) => println!("log {index} {why}"),
        }
    }
    for publication in &GOLDEN.ledger.publications {
        println!("checkpoint {} {}", publication.checkpoint.size, publication.cosignatures.len());
    }
}
