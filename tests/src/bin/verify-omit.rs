//! Test-only: verifies an archive or an evidence file without one named check, and prints the verdict as JSON:
//! `verify-omit ARCHIVE POLICY CHECK AS-OF [KNOWN...]`. The shipped verifier has no such switch; this binary exists in
//! builds with the feature `omit-check` alone.

use std::{error::Error, path::Path, process::ExitCode};

use custody::{policy::Policy, verdict::OMITTED, verify::Options};
use custody_tests::golden::objects::Objects;
use custody_tests::verdict;

#[expect(clippy::print_stdout, reason = "the verdict is what it is asked for")]
fn main() -> ExitCode {
    match verify(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("verify-omit: {why}");
            ExitCode::FAILURE
        }
    }
}

fn verify(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let [archive, policy, check, as_of, known @ ..] = arguments else {
        return Err("usage: verify-omit ARCHIVE POLICY CHECK AS-OF [KNOWN...]".into());
    };
    OMITTED.set(check.clone())?;
    let known = known.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let (archive, policy) = (Path::new(archive), Policy::parse(&std::fs::read(policy)?)?);
    let outcome = if archive.is_file() {
        verdict::check_evidence(&std::fs::read(archive)?, &policy)?
    } else {
        let asked = Options { as_of: as_of.parse()?, ..Options::default() };
        verdict::verify(&Objects::read(archive)?, &policy, asked, &known)?
    };
    Ok(serde_json::to_string(&outcome)?)
}
