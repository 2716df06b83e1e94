//! What each command does: read the files, ask the library, print.

use std::path::Path;

use custody::{
    directory::{DISCLOSURE_BYTES_MAX, Disclosure},
    evidence::{self, EVIDENCE_BYTES_MAX, Proof},
    id::WorkspaceId,
    policy::{POLICY_BYTES_MAX, Policy, fingerprint},
    verdict::{Check, Fault},
    verify::{self, KNOWN_BYTES_MAX, Known, Options, known_in, parse_known},
};
use verifier::{
    bundle::{Comparison, EVIDENCE_SUFFIX, QUESTION, RECORDS_SUFFIX, Worth},
    export,
    failure::Failure,
    make_evidence::{self, What},
    names,
    output::{self, plain},
    progress::Watched,
    reader::Source,
    report::{self, Subject},
    segments, show, time,
    workers::AllCores,
};

mod access;
mod search;

use crate::cli::{Command, Evidence, Export, Names, Show, Verify};

/// Runs a command and says the exit code.
pub(crate) fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Verify(verify) => run_verify(&verify),
        Command::Evidence(Evidence::Make { archive, policy, what, out }) => {
            let (policy, _) = read_policy(&policy)?;
            let proof = make_evidence::make(&Source::open(&archive)?, &policy, &what)?;
            let bytes = proof.to_bytes();
            output::create(&out, &bytes)?;
            let count = proof.evidence.record_count;
            let records = if count == 1 { "record" } else { "records" };
            answer(&format!(
                "{}: evidence of {count} {records}, {} bytes, checked\n",
                plain(out.display()),
                bytes.len()
            ))?;
            Ok(0)
        }
        Command::Evidence(Evidence::Check { file, policy, json }) if file.is_dir() => check_all(&file, &policy, json),
        Command::Evidence(Evidence::Check { file, policy, json }) => check_evidence(&file, &policy, json),
        Command::Export(export) => run_export(&export),
        Command::Show(show) => run_show(&show),
        Command::Search(asked) => search::run(&asked),
        Command::Names(names) => run_names(&names),
        Command::Access(asked) => access::run(&asked),
        Command::Fingerprint { policy } => {
            let (_, printed) = read_policy(&policy)?;
            answer(&format!("{printed}\n"))?;
            Ok(0)
        }
    }
}

fn run_verify(asked: &Verify) -> Result<u8, Failure> {
    let unreadable = |failure: Failure| -> Result<u8, Failure> {
        if asked.json {
            answer(&report::unreadable_json(&failure.to_string()))?;
        }
        Err(failure)
    };
    let prepared = read_policy(&asked.policy).and_then(|(policy, printed)| {
        let options = Options {
            as_of: asked.as_of.unwrap_or_else(time::now),
            at_size: asked.at_size,
            since: asked.since,
            until: asked.until,
            known: read_known(&asked.known, &policy)?,
        };
        let archive = Watched::new(Source::open(&asked.archive)?, &policy, &options);
        Ok((policy, printed, options, archive))
    });
    let (policy, printed, options, archive) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return unreadable(failure),
    };
    let verdict = verify::run(&archive, &policy, &options, &AllCores::new());
    archive.finish();
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(why) => return unreadable(why.into()),
    };
    let subject = Subject { verdict: &verdict, policy: &policy, fingerprint: &printed, options: &options };
    answer(&if asked.json { report::json(&subject) } else { report::text(&subject) })?;
    Ok(verdict.exit_code(&policy.required))
}

fn check_evidence(file: &Path, policy: &Path, json: bool) -> Result<u8, Failure> {
    let read = || -> Result<_, Failure> {
        let (policy, printed) = read_policy(policy)?;
        let bytes = output::read(file, EVIDENCE_BYTES_MAX)?;
        let outcome = evidence::check(&bytes, &policy)?;
        Ok((policy, printed, bytes, outcome))
    };
    let (policy, printed, bytes, outcome) = match read() {
        Ok(read) => read,
        Err(failure) => {
            if json {
                answer(&report::evidence_unreadable_json(&failure.to_string()))?;
            }
            return Err(failure);
        }
    };
    let outcome = outcome.and_then(|shown| {
        let proof = Proof::parse(&bytes);
        proof.map(|proof| (proof, shown)).map_err(|why| Fault::form(Check::EvidenceForm, "the file", &why))
    });
    match outcome {
        Ok((proof, shown)) => {
            answer(&if json {
                report::evidence_json(Ok((&proof, &shown)), &policy, &printed)
            } else {
                report::evidence_text(&proof, &shown, &policy, &printed)
            })?;
            Ok(if shown.suspect > 0 { 2 } else { 0 })
        }
        Err(fault) => {
            answer(&if json {
                report::evidence_json(Err(&fault), &policy, &printed)
            } else {
                report::evidence_refused(&fault)
            })?;
            Ok(Failure::from(fault).exit_code())
        }
    }
}

/// Every evidence file of a folder, as a search hands them out, and what goes with them: a line for each, and the worst of their exit
/// codes, refuted before undecided.
fn check_all(folder: &Path, policy: &Path, json: bool) -> Result<u8, Failure> {
    let (policy, printed) = read_policy(policy)?;
    let files = output::files(folder, EVIDENCE_SUFFIX)?;
    let records = output::files(folder, RECORDS_SUFFIX)?;
    if files.is_empty() && records.is_empty() {
        let why = format!("{}: no file in it ends with {EVIDENCE_SUFFIX}", plain(folder.display()));
        return Err(Failure::NotThere(format!("{why}\nhint: name an evidence file, or a folder that holds some")));
    }
    let name = |file: &Path| file.strip_prefix(folder).unwrap_or(file).to_string_lossy().into_owned();
    let mut comparison = Comparison::default();
    let mut told = Told { json, worst: [false; 2], reads: true };
    for file in &records {
        let read = output::read(file, EVIDENCE_BYTES_MAX).map_err(|why| why.to_string());
        if let Err(why) = read.and_then(|bytes| comparison.lines(&bytes)) {
            told.line(&name(file), 2, &format!("undecided: {why}"))?;
        }
    }
    let question = folder.join(QUESTION);
    if question.exists() {
        let read = output::read(&question, EVIDENCE_BYTES_MAX).map_err(|why| why.to_string());
        if let Err(why) = read.and_then(|bytes| comparison.question(&bytes)) {
            told.line(QUESTION, 2, &format!("undecided: {why}"))?;
        }
    }
    for file in &files {
        let file_name = name(file);
        let (code, found) = match output::read(file, EVIDENCE_BYTES_MAX) {
            Err(why) => (2, format!("undecided: {why}")),
            Ok(bytes) => match comparison.proof(&file_name, &bytes, &policy)? {
                Worth::Proven(shown) => (0, report::evidence_line(&shown)),
                Worth::Suspect(some) => (2, format!("undecided: {some} records of a key in doubt")),
                Worth::Differs(why) => (1, format!("REFUTED: {why}")),
                Worth::Not(fault) => {
                    let failure = Failure::Refuted(Box::new(fault));
                    let word = if failure.exit_code() == 1 { "REFUTED" } else { "undecided" };
                    (failure.exit_code(), format!("{word}: {failure}"))
                }
            },
        };
        told.line(&file_name, code, found.lines().next().unwrap_or_default())?;
    }
    let whole = comparison.end();
    if let Err(why) = &whole {
        told.line(&name(folder), 2, &format!("undecided: {why}"))?;
    }
    let code = told.code();
    let (files, records) = whole.unwrap_or_default();
    if !json && code == 0 {
        answer(&format!("{files} evidence files verified, {records} records; policy\n  {printed}\n"))?;
    }
    Ok(code)
}

/// What was found of each file.
struct Told {
    json: bool,
    /// Something was refuted; something was undecided.
    worst: [bool; 2],
    /// Somebody still reads: whether or not, all is looked at.
    reads: bool,
}

impl Told {
    fn line(&mut self, name: &str, code: u8, found: &str) -> Result<(), Failure> {
        self.worst[0] |= code == 1;
        self.worst[1] |= code == 2;
        let line = match self.json {
            true => serde_json::json!({"file": name, "exit_code": code, "found": found}).to_string(),
            false => format!("{}: {}", plain(name), plain(found)),
        };
        self.reads = self.reads && answer(&format!("{line}\n"))?;
        Ok(())
    }

    fn code(&self) -> u8 {
        match self.worst {
            [true, _] => 1,
            [false, true] => 2,
            [false, false] => 0,
        }
    }
}

fn run_export(asked: &Export) -> Result<u8, Failure> {
    let (policy, _) = read_policy(&asked.policy)?;
    let exported = export::export(&Source::open(&asked.archive)?, &policy, &asked.workspace, &asked.out, time::now())?;
    let (verdict, required) = (&exported.verdict, &exported.policy.required);
    let code = verdict.exit_code(required);
    let open = if code == 0 { String::new() } else { format!(", but {}", report::undecided(verdict, required)) };
    answer(&format!(
        "{}: workspace {}, {} objects, {} bytes, nothing in them refuted{open}\npolicy.json has the fingerprint\n  {}\nverify it with\n  verifier verify {} --policy {}\n",
        plain(asked.out.display()),
        exported.workspace,
        exported.objects,
        exported.bytes,
        fingerprint(&exported.policy_bytes),
        plain(asked.out.join("archive").display()),
        plain(asked.out.join("policy.json").display()),
    ))?;
    Ok(code)
}

fn run_show(asked: &Show) -> Result<u8, Failure> {
    let archive = Source::open(&asked.archive)?;
    let What::Positions { workspace, first, end } = &asked.range else {
        let why =
            "records are shown by workspace and position\nhint: workspace/position, workspace/A..B or workspace/A..";
        return Err(Failure::NotThere(why.to_owned()));
    };
    let seals = match &asked.policy {
        Some(file) => {
            let (policy, _) = read_policy(file)?;
            let log = verify::log(&archive, &policy, None)??;
            segments::seals_of(&archive, &log, segments::find_workspace(&log, workspace)?)?
        }
        None => {
            let hint = "hint: without --policy a workspace is named by its id in hex, as under workspaces/";
            let id = WorkspaceId::from_hex(workspace);
            let id = id.ok_or_else(|| Failure::NotThere(format!("no workspace id: {}\n{hint}", plain(workspace))))?;
            segments::seals_listed(&archive, id)?
        }
    };
    let mut heading = if asked.json { String::new() } else { format!("{}\n", show::HEADING) };
    // Whoever reads may have enough before all is shown; and what cannot be shown has no heading.
    show::each(&archive, &seals, *first, *end, |shown| {
        let line = if asked.json { show::json_line(&shown) } else { show::table_line(&shown) };
        answer(&format!("{}{line}\n", std::mem::take(&mut heading)))
    })?;
    Ok(0)
}

fn run_names(asked: &Names) -> Result<u8, Failure> {
    let (policy, _) = read_policy(&asked.policy)?;
    let disclosure = read_disclosure(&asked.disclosure)?;
    let found = names::read(&Source::open(&asked.archive)?, &policy, &disclosure)?;
    let mut wrong = false;
    for (member, of) in &found {
        let disclosed = disclosure.members.contains_key(member);
        wrong |= !of.wrong.is_empty();
        let line = if asked.json { names::json_line } else { names::table_line };
        if !answer(&format!("{}\n", line(*member, of, disclosed)))? {
            break;
        }
    }
    Ok(u8::from(wrong))
}

fn read_disclosure(path: &Path) -> Result<Disclosure, Failure> {
    Disclosure::parse(&output::read(path, DISCLOSURE_BYTES_MAX)?).map_err(|why| {
        let hint = "hint: name a file that `ledger member disclose` wrote";
        Failure::Unreadable(format!("{}: {why}\n{hint}", plain(path.display())))
    })
}

/// Whether somebody still reads.
fn answer(text: &str) -> Result<bool, Failure> {
    output::answer(text).map_err(|why| Failure::Unreadable(format!("cannot write the answer: {why}")))
}

/// A policy and its fingerprint.
fn read_policy(path: &Path) -> Result<(Policy, String), Failure> {
    let bytes = output::read(path, POLICY_BYTES_MAX)?;
    let policy = Policy::parse(&bytes).map_err(|why| Failure::of_policy(path, &why))?;
    Ok((policy, fingerprint(&bytes)))
}

/// What the auditor knows: what the policy says, and the files named.
fn read_known(files: &[std::path::PathBuf], policy: &Policy) -> Result<Vec<Known>, Failure> {
    let mut known = known_in(policy)?;
    for file in files {
        let bytes = output::read(file, KNOWN_BYTES_MAX)?;
        let hint =
            "hint: a known file is a checkpoint, or one line that begins with custody/v1/head or custody/v1/receipt";
        let wrong = |why| Failure::Unreadable(format!("the known file {} {why}\n{hint}", plain(file.display())));
        known.push(parse_known(&bytes).map_err(wrong)?);
    }
    Ok(known)
}
