//! Evidence of all that a question found, as one tar: a file of proof for each run of neighbours (`WORKSPACE/FIRST-LAST.tlog-proof`), the
//! records as JSON lines (`records-N.jsonl`), and what was asked (`question.json`).
//!
//! What must hold: whoever unpacks one believes it as little as anything else: a name leads nowhere but into the folder, a file is bounded,
//! and each piece of evidence is held against the audit policy.

use std::{
    io::{self, Read},
    ops::Range,
    path::Path,
};

use custody::{
    evidence::{self, EVIDENCE_BYTES_MAX},
    id::WorkspaceId,
    policy::Policy,
};

use crate::{
    failure::Failure,
    output::{create, plain},
};

/// How the names of evidence files end where there are many.
pub const EVIDENCE_SUFFIX: &str = ".tlog-proof";

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
        self.file("question.json", question)?;
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

/// What came out of a bundle.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Evidence files.
    pub files: u64,
    /// Records that they prove under the policy.
    pub records: u64,
    /// Those that the policy does not bear out, each with the check that says so.
    pub refuted: Vec<String>,
}

fn is_plain(name: &Path) -> bool {
    let fits = |part: &str| {
        !part.starts_with('.') && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let text = name.to_str().unwrap_or_default();
    text.split('/').count() <= 2 && text.split('/').all(|part| !part.is_empty() && fits(part))
}

/// Puts a bundle into a folder, and holds its evidence against a policy, if there is one.
///
/// # Errors
/// [`Failure`] where it is no bundle or a file cannot be made: none is overwritten.
pub fn unpack(bundle: impl Read, folder: &Path, policy: Option<&Policy>) -> Result<Unpacked, Failure> {
    let broken = |why: io::Error| Failure::Unreadable(format!("the bundle cannot be read: {why}"));
    let mut unpacked = Unpacked::default();
    let mut tar = tar::Archive::new(bundle);
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        if !is_plain(&name) || !entry.header().entry_type().is_file() || entry.size() > EVIDENCE_BYTES_MAX as u64 {
            return Err(Failure::Unreadable(format!("a file that no bundle holds: {}", plain(name.display()))));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        create(&folder.join(&name), &bytes)?;
        if !name.to_string_lossy().ends_with(EVIDENCE_SUFFIX) {
            continue;
        }
        unpacked.files += 1;
        let Some(policy) = policy else { continue };
        match evidence::check(&bytes, policy)? {
            Ok(shown) => unpacked.records += shown.records.len() as u64,
            Err(fault) => unpacked.refuted.push(format!("{}: {}", plain(name.display()), fault.check.name())),
        }
    }
    Ok(unpacked)
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
        let unpacked = unpack(&bytes[..], folder.path(), None).unwrap();
        assert_eq!(unpacked, Unpacked { files: 1, ..Unpacked::default() });
        let file = folder.path().join(format!("{}/3-4.tlog-proof", WorkspaceId([1; 16])));
        assert_eq!(std::fs::read(file).unwrap(), b"no evidence");
        assert!(unpack(&bytes[..], folder.path(), None).is_err());
        // One that breaks off between two files is one that lacks a file: who asked for it counts them.
        let other = tempfile::tempdir().unwrap();
        assert!(unpack(&bytes[..700], other.path(), None).is_err());
    }
}
