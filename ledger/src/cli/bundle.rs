//! Evidence of all that a question finds, out of a tar that the ledger streams, into a folder.
//!
//! What must hold: the ledger is believed as little as anybody: every piece of evidence is held against the audit policy that lies here, if
//! one does, and there is as much of it as the ledger says.

use std::{
    io::{self, Read},
    path::Path,
};

use bytes::{Buf as _, Bytes};
use custody::{
    policy::{Policy, fingerprint},
    wire,
};
use tokio::sync::mpsc;
use verifier::{bundle::unpack, output::plain};

use super::{
    Done, Fault,
    asker::{Asker, refused},
    output::say,
    search::cut_short_fault,
};
use crate::{config::Config, exit::ExitReason};

/// Parts that wait to be written: 64 KiB each.
const WAITING_MAX: usize = 16;

/// The stream's bytes, for whoever reads in a thread.
struct Parts {
    parts: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.now = part,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.now.len());
        let (filled, _) = buffer.split_at_mut(length);
        self.now.copy_to_slice(filled);
        Ok(length)
    }
}

fn is_new(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or_else(|_| !folder.exists(), |mut files| files.next().is_none())
}

/// Has the ledger make evidence of all that match, and puts it into a folder.
pub(super) async fn fetch(asker: &mut Asker, config: &Config, question: wire::Question, folder: &Path) -> Done {
    if !is_new(folder) {
        let why = format!(
            "{} is not a new or empty folder\nhint: nothing is overwritten; name a new one",
            plain(folder.display())
        );
        return Err(Fault::new(ExitReason::Usage, why));
    }
    // On another machine there may be none.
    let bytes = match std::fs::read(&config.paths.policy) {
        Ok(bytes) => Some(bytes),
        Err(why) if why.kind() == io::ErrorKind::NotFound => None,
        Err(why) => return Err(Fault::of(ExitReason::Configuration, &why)),
    };
    let policy = match &bytes {
        Some(bytes) => Some(Policy::parse(bytes).map_err(|why| Fault::of(ExitReason::Configuration, &why))?),
        None => None,
    };
    let request = wire::ExportRequest { question: Some(question), format: wire::ExportFormat::Evidence as i32 };
    let request = asker.request(request);
    let mut stream = asker.remote.export(request).await.map_err(|why| refused(&why))?.into_inner();
    let (to, parts) = mpsc::channel(WAITING_MAX);
    let (into, under) = (folder.to_owned(), policy.clone());
    let unpacking =
        tokio::task::spawn_blocking(move || unpack(Parts { parts, now: Bytes::new() }, &into, under.as_ref()));
    let mut last = None;
    while let Some(part) = stream.message().await.map_err(|why| refused(&why))? {
        last = part.completeness.map(|complete| (complete, part.records));
        if to.send(part.bytes).await.is_err() {
            break;
        }
    }
    drop(to);
    let unpacked = unpacking.await.map_err(|why| Fault::of(ExitReason::Failure, &why))?;
    let Some((complete, records)) = last else {
        return Err(Fault::failure("the evidence broke off before its end\nhint: ask again, into a new folder"));
    };
    let proven = unpacked.map_err(|why| {
        let hint = format!("is {} the audit policy of this ledger?", plain(config.paths.policy.display()));
        Fault::failure(format!("{why}\nhint: {hint} `verifier evidence check` says more"))
    })?;
    if complete.cut_short {
        return Err(cut_short_fault());
    }
    let checked = match (proven, &bytes) {
        (Some((files, proven)), Some(bytes)) if proven == records => {
            format!("in {files} evidence files, checked under the policy {}", fingerprint(bytes))
        }
        (Some((_, proven)), _) => {
            return Err(Fault::failure(format!("{records} records were found, and the evidence has {proven}")));
        }
        (None, _) => "not checked: no audit policy is here".to_owned(),
    };
    let shown = plain(folder.display());
    say(&format!("{shown}: {records} records, {checked}"));
    say(&format!("an auditor checks them with: verifier evidence check {shown} --policy policy.json"));
    Ok(())
}
