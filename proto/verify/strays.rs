//! Objects that nothing refers to. They are noted and refute nothing: a crash leaves locked orphans.
//!
//! Names are looked at as they come, and no more are kept than a verdict lists: an archive has as many as it likes.

use std::collections::BTreeSet;

use super::{Archive, Log, Unreadable};
use crate::{
    id::WorkspaceId,
    verdict::{FINDINGS_MAX, Verdict},
};

/// The least of some names, and how many there are.
#[derive(Default)]
struct Strays {
    least: BTreeSet<String>,
    count: u64,
}

impl Strays {
    fn take(&mut self, name: &str) {
        self.count = self.count.saturating_add(1);
        self.least.insert(name.to_owned());
        if self.least.len() > FINDINGS_MAX {
            self.least.pop_last();
        }
    }

    /// Finds them in the order of their names.
    fn find(self, workspace: Option<WorkspaceId>, folder: &str, text: &str, verdict: &mut Verdict) {
        let more = self.count.saturating_sub(self.least.len() as u64);
        for name in self.least {
            verdict.find("unreferenced", workspace, format!("{folder}/{name}"), text.to_owned());
        }
        verdict.findings_more = verdict.findings_more.saturating_add(more);
    }
}

/// Objects of a workspace's folder whose names are not those that `named` gives for their numbers.
pub(super) fn find_in(
    objects: &impl Archive,
    workspace: WorkspaceId,
    folder: &str,
    named: impl Fn(usize) -> Option<String>,
    verdict: &mut Verdict,
) -> Result<(), Unreadable> {
    let folder = format!("workspaces/{workspace}/{folder}");
    let mut strays = Strays::default();
    objects.each(&folder, &mut |name| {
        let number = name.split_once('-').and_then(|(number, _)| number.parse().ok());
        if number.and_then(&named).as_deref() != Some(name) {
            strays.take(name);
        }
    })?;
    strays.find(Some(workspace), &folder, "nothing in the log refers to it", verdict);
    Ok(())
}

/// Folders of workspaces that the log does not know.
pub(super) fn find_workspaces(objects: &impl Archive, log: &Log, verdict: &mut Verdict) -> Result<(), Unreadable> {
    let known: BTreeSet<String> = log.workspaces.iter().map(|workspace| workspace.id.to_string()).collect();
    let mut strays = Strays::default();
    // Names of one folder come one after the other.
    let mut last = String::new();
    objects.each("workspaces", &mut |name| {
        let folder = name.split('/').next().unwrap_or_default();
        if folder != last {
            last = folder.to_owned();
            if !known.contains(folder) {
                strays.take(folder);
            }
        }
    })?;
    strays.find(None, "workspaces", "no such workspace in the log", verdict);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_are_kept_and_all_are_counted_in_whatever_order_they_come() {
        let name = |number: u64| format!("{number:05}");
        let mut strays = Strays::default();
        // 7 has no common divisor with the number of names: each comes once.
        (0..3_000).for_each(|at| strays.take(&name(at * 7 % 3_000)));
        assert_eq!(strays.least.len(), FINDINGS_MAX);
        let mut verdict = Verdict::default();
        verdict.find("dropped", None, String::new(), String::new());
        strays.find(None, "workspaces", "", &mut verdict);
        assert_eq!((verdict.findings.len(), verdict.findings_more), (FINDINGS_MAX, 2_001));
        assert_eq!(verdict.findings[1].place, "workspaces/00000");
        assert_eq!(verdict.findings[999].place, "workspaces/00998");
    }
}
