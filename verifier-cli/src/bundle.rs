//! Evidence of all that a question found, as one tar: a file of proof for each run of neighbours (`WORKSPACE/FIRST-LAST.tlog-proof`), the
//! records as JSON lines (`records-N.jsonl`), and what was asked (`question.json`).
//!
//! What must hold: whoever unpacks one believes it as little as anything else: a name leads nowhere but into the folder, a file is bounded,
//! each piece of evidence is held against the audit policy, and what the records say, and how many they are, against the evidence.

use std::{
    collections::HashMap,
    io::{self, Read},
    ops::Range,
    path::Path,
};

use custody::{
    evidence::{self, EVIDENCE_BYTES_MAX, Proven, Shown},
    hash::sha256,
    id::WorkspaceId,
    policy::{BadPolicy, Policy},
    record,
    verdict::Fault,
};
use serde_json::{Map, Value};

use crate::{
    failure::Failure,
    output::{create, plain},
    show,
};

/// How the names of evidence files end where there are many.
pub const EVIDENCE_SUFFIX: &str = ".tlog-proof";
/// How the names of files of records end.
pub const RECORDS_SUFFIX: &str = ".jsonl";
/// What was asked.
pub const QUESTION: &str = "question.json";

/// A bundle that is being made, in memory until its bytes are taken.
pub struct Making {
    tar: tar::Builder<Vec<u8>>,
    at: u64,
    pages: u64,
    files: u64,
}

impl Making {
    /// An empty one, of this time in microseconds.
    pub fn new(at: u64) -> Self {
        Self { tar: tar::Builder::new(Vec::new()), at, pages: 0, files: 0 }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(self.at / 1_000_000);
        self.tar.append_data(&mut header, name, bytes)
    }

    /// Records, as JSON lines.
    ///
    /// # Errors
    /// Those of the tar.
    pub fn records(&mut self, lines: &[u8]) -> io::Result<()> {
        self.pages += 1;
        self.file(&format!("records-{:06}.jsonl", self.pages), lines)
    }

    /// What proves a run.
    ///
    /// # Errors
    /// Those of the tar.
    pub fn proof(&mut self, workspace: WorkspaceId, run: &Range<u64>, evidence: &[u8]) -> io::Result<()> {
        self.files += 1;
        self.file(&format!("{workspace}/{}-{}{EVIDENCE_SUFFIX}", run.start, run.end.saturating_sub(1)), evidence)
    }

    /// Files of proof so far.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// What was asked, in JSON; gives the last bytes.
    ///
    /// # Errors
    /// Those of the tar.
    pub fn end(mut self, question: &[u8]) -> io::Result<Vec<u8>> {
        self.file(QUESTION, question)?;
        self.tar.into_inner()
    }

    /// The bytes that are done.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.tar.get_mut())
    }

    /// How many these are.
    pub fn ready(&self) -> usize {
        self.tar.get_ref().len()
    }
}

/// A bundle's files, held against each other and against the policy: what the records say is what the evidence proves, and all of it is there.
#[derive(Default)]
pub struct Comparison {
    /// What lines say of records that no evidence has proven yet, by workspace and position.
    said: HashMap<(WorkspaceId, u64), [u8; 32]>,
    lines: u64,
    /// What `question.json` counts: records, and files.
    counted: Option<(u64, u64)>,
    files: u64,
    records: u64,
}

/// What one file of proof is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It proves these records.
    Proven(Shown),
    /// It proves them, and so many were signed by a key in doubt.
    Suspect(u64),
    /// It proves nothing, and why.
    Not(Fault),
    /// It proves something else than the bundle says, in words.
    Differs(String),
}

/// What tells a record from any other, whoever says it.
fn said(of: &Map<String, Value>) -> [u8; 32] {
    let words = ["workspace", "position", "received_at", "gateway", "epoch", "number", "kind", "record"];
    let parts = words.map(|word| of.get(word).map_or_else(String::new, Value::to_string));
    sha256(&[parts.join("\n").as_bytes()])
}

fn proven(workspace: WorkspaceId, of: &Proven) -> [u8; 32] {
    let (gateway, epoch) = (of.gateway.to_string(), of.epoch.to_string());
    let (kind, fields) = (record::kind(&of.bytes), show::fields(&of.bytes));
    let mut object = show::json_object(of.position, of.received_at, [&gateway, &epoch], of.number, kind, &fields);
    object.insert("workspace".to_owned(), workspace.to_string().into());
    said(&object)
}

impl Comparison {
    /// A file of records.
    ///
    /// # Errors
    /// In words.
    pub fn lines(&mut self, bytes: &[u8]) -> Result<(), String> {
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: Map<String, Value> = serde_json::from_slice(line).map_err(|why| format!("no record: {why}"))?;
            let workspace = line.get("workspace").and_then(Value::as_str).and_then(WorkspaceId::from_hex);
            let place =
                workspace.zip(line.get("position").and_then(Value::as_u64)).ok_or("a record without a place")?;
            if self.said.insert(place, said(&line)).is_some() {
                return Err(format!("{}/{} stands there twice", place.0, place.1));
            }
            self.lines += 1;
        }
        Ok(())
    }

    /// What was asked, and how much came of it.
    ///
    /// # Errors
    /// In words.
    pub fn question(&mut self, bytes: &[u8]) -> Result<(), String> {
        let told: Value = serde_json::from_slice(bytes).map_err(|why| format!("no question: {why}"))?;
        let counted = told["records"].as_u64().zip(told["files"].as_u64());
        self.counted = Some(counted.ok_or("it does not say how much there is")?);
        Ok(())
    }

    /// A file of proof. A folder that has no records is one of evidence alone, which proves what it proves.
    ///
    /// # Errors
    /// [`BadPolicy`].
    pub fn proof(&mut self, name: &str, bytes: &[u8], policy: &Policy) -> Result<Worth, BadPolicy> {
        let shown = match evidence::check(bytes, policy)? {
            Ok(shown) => shown,
            Err(fault) => return Ok(Worth::Not(fault)),
        };
        self.files += 1;
        self.records += shown.records.len() as u64;
        if self.lines > 0 {
            let ends = [shown.records.first(), shown.records.last()].map(|end| end.map_or(0, |record| record.position));
            if name != format!("{}/{}-{}{EVIDENCE_SUFFIX}", shown.workspace, ends[0], ends[1]) {
                return Ok(Worth::Differs(format!("it proves {}/{} to {}", shown.workspace, ends[0], ends[1])));
            }
            for record in &shown.records {
                let place = (shown.workspace, record.position);
                match self.said.remove(&place) {
                    Some(said) if said == proven(shown.workspace, record) => {}
                    Some(_) => {
                        return Ok(Worth::Differs(format!(
                            "{}/{} says something else in records-*.jsonl",
                            place.0, place.1
                        )));
                    }
                    None => return Ok(Worth::Differs(format!("{}/{} is not in records-*.jsonl", place.0, place.1))),
                }
            }
        }
        Ok(if shown.suspect > 0 { Worth::Suspect(shown.suspect) } else { Worth::Proven(shown) })
    }

    /// Files and records that were proven; in words, what is missing.
    ///
    /// # Errors
    /// In words.
    pub fn end(self) -> Result<(u64, u64), String> {
        match self.counted {
            None if self.lines > 0 => Err("there is no question.json: it broke off, or was taken apart".to_owned()),
            Some(counted) if counted != (self.records, self.files) => Err(format!(
                "{} records in {} files were found, and here are {} in {}",
                counted.0, counted.1, self.records, self.files
            )),
            _ if !self.said.is_empty() => Err(format!("{} records are proven by no file", self.said.len())),
            _ => Ok((self.files, self.records)),
        }
    }
}

fn is_plain(name: &Path) -> bool {
    let fits = |part: &str| {
        !part.starts_with('.') && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let text = name.to_str().unwrap_or_default();
    text.split('/').count() <= 2 && text.split('/').all(|part| !part.is_empty() && fits(part))
}

/// Puts a bundle into a folder, and gives files and records that are proven under the policy, if there is one.
///
/// # Errors
/// [`Failure`] where it is no bundle, is not whole, or does not prove what it says, and where a file cannot be made: none is overwritten.
pub fn unpack(bundle: impl Read, folder: &Path, policy: Option<&Policy>) -> Result<Option<(u64, u64)>, Failure> {
    let broken = |why: io::Error| Failure::Unreadable(format!("the bundle cannot be read: {why}"));
    let mut comparison = Comparison::default();
    let mut tar = tar::Archive::new(bundle);
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.into_owned();
        if !is_plain(&path) || !entry.header().entry_type().is_file() || entry.size() > EVIDENCE_BYTES_MAX as u64 {
            return Err(Failure::Unreadable(format!("a file that no bundle holds: {}", plain(path.display()))));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        create(&folder.join(&path), &bytes)?;
        let Some(policy) = policy else { continue };
        let name = path.to_string_lossy();
        let wrong = |why: String| Failure::NotThere(format!("{}: {why}", plain(&name)));
        if !name.ends_with(EVIDENCE_SUFFIX) {
            let read = if name == QUESTION { comparison.question(&bytes) } else { comparison.lines(&bytes) };
            read.map_err(wrong)?;
            continue;
        }
        match comparison.proof(&name, &bytes, policy)? {
            Worth::Proven(_) => {}
            Worth::Suspect(some) => return Err(wrong(format!("{some} records were signed by a key in doubt"))),
            Worth::Not(fault) => return Err(fault.into()),
            Worth::Differs(why) => return Err(wrong(why)),
        }
    }
    match policy {
        Some(_) => comparison.end().map(Some).map_err(Failure::NotThere),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["records-000001.jsonl", "question.json", "0102/3-4.tlog-proof"] {
            assert!(is_plain(Path::new(name)), "{name}");
        }
        for name in ["", "/etc/passwd", "../x", "a/../x", "a/b/c", "a//b", ".x", "a/.x", "a b", "a\\b"] {
            assert!(!is_plain(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn what_is_made_in_parts_is_unpacked_whole_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let mut making = Making::new(1_772_323_200_000_000);
        making.records(b"{}\n").unwrap();
        let mut bytes = making.take();
        making.proof(WorkspaceId([1; 16]), &(3..5), b"no evidence").unwrap();
        assert!(making.ready() > 0);
        bytes.extend(making.take());
        bytes.extend(making.end(b"{}").unwrap());
        assert_eq!(unpack(&bytes[..], folder.path(), None).unwrap(), None);
        let file = folder.path().join(format!("{}/3-4.tlog-proof", WorkspaceId([1; 16])));
        assert_eq!(std::fs::read(file).unwrap(), b"no evidence");
        assert!(unpack(&bytes[..], folder.path(), None).is_err());
        // One that breaks off within a file; of one that breaks off between two the counts tell.
        let other = tempfile::tempdir().unwrap();
        assert!(unpack(&bytes[..700], other.path(), None).is_err());
    }
}
