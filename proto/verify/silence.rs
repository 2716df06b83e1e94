//! How far the archive reaches, and who has fallen silent before that (FORMAT.md, 13.8).
//!
//! Whoever owns the ledger and its keys can stop sealing, and can give seals and leaves any time. So no single word decides:
//! the archive reaches to the greatest time that anybody signed, gateways and witnesses too; a gateway was heard at the
//! earlier of its own time and the ledger's; and an archive that reaches to long before the question is a finding itself.

use super::{Log, Options};
use crate::{archive, id::WorkspaceId, verdict::Verdict};

/// Microseconds of a UTC day.
pub(super) const DAY_US: u64 = 86_400_000_000;
/// An epoch that is neither closed nor continued for so long is a finding, and so is an archive that ends so long ago.
const UNHEARD_US: u64 = DAY_US.saturating_mul(3);

/// An epoch that nothing closed.
pub(super) struct OpenEpoch {
    pub(super) workspace: WorkspaceId,
    pub(super) place: String,
    /// The earlier of what the gateway and what the ledger say of its last batch.
    pub(super) heard_at: u64,
    /// Of a writer that promised to be always on.
    pub(super) silence_us_max: Option<u64>,
}

/// What an auditor should know of what is not in the archive any more. Of a period that ends before the archive does nothing
/// is said about what came after it.
pub(super) fn find(log: &Log, open_epochs: &[OpenEpoch], options: &Options, verdict: &mut Verdict) {
    for term in &log.terms {
        verdict.counts.hear(term.at, options.as_of);
    }
    for line in &log.cosignatures {
        verdict.counts.hear(line.at_s.saturating_mul(1_000_000), options.as_of);
    }
    if options.until.is_some() {
        return;
    }
    let reaches_to = verdict.counts.reaches_to.unwrap_or(0);
    for epoch in open_epochs {
        epoch.find(reaches_to, verdict);
    }
    // Who asks for an earlier size knows that it is old.
    let age = options.as_of.saturating_sub(reaches_to);
    if options.at_size.is_none() && age > UNHEARD_US {
        let place = archive::checkpoint(log.checkpoint.checkpoint.size);
        let text = match verdict.counts.reaches_to {
            Some(_) => format!("nothing in the archive is from the last {} before the question", in_words(age)),
            None => "no time in the archive is from before the question".to_owned(),
        };
        verdict.find("outdated", None, place, text);
    }
}

impl OpenEpoch {
    /// What an auditor should know of it, given how far the archive reaches.
    fn find(&self, reaches_to: u64, verdict: &mut Verdict) {
        let since = reaches_to.saturating_sub(self.heard_at);
        let mut find = |name, text: &str| {
            let text = format!("{text}: not heard for {} when the archive ends", in_words(since));
            verdict.find(name, Some(self.workspace), self.place.clone(), text);
        };
        if since > UNHEARD_US {
            find("unclosed", "neither closed nor continued");
        }
        // A segment of heartbeats alone is sealed daily, so the newest ones may not be archived yet.
        if self.silence_us_max.is_some_and(|allowed| since > allowed.saturating_add(DAY_US)) {
            find("silent", "silent beyond its word, and not closed");
        }
    }
}

/// A span in microseconds as days and hours, rounded down.
fn in_words(us: u64) -> String {
    let hours = us.checked_div(3_600_000_000).unwrap_or(0);
    let (days, hours) = (hours.checked_div(24).unwrap_or(0), hours.checked_rem(24).unwrap_or(0));
    format!("{days} d {hours} h")
}
