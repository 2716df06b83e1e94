//! Objects that nothing refers to. They are noted and refute nothing: a crash leaves locked orphans.
//!
//! Names are looked at as they come, and no more are kept than a verdict lists: an archive has as many as it likes.

use std::collections::BTreeSet;

use super::{Archive, Log, Unreadable};
use crate::{
    archive,
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

    /// Finds them in the order of their names, before which stands `before`.
    fn find(self, workspace: Option<WorkspaceId>, before: &str, text: &str, verdict: &mut Verdict) {
        let more = self.count.saturating_sub(self.least.len() as u64);
        for name in self.least {
            verdict.find("unreferenced", workspace, format!("{before}{name}"), text.to_owned());
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
    let folder = format!("workspaces/{workspace}/{folder}/");
    let mut strays = Strays::default();
    objects.each(folder.trim_end_matches('/'), &mut |name| {
        let number = name.split_once('-').and_then(|(number, _)| usize::try_from(archive::number(number)?).ok());
        if number.and_then(&named).as_deref() != Some(name) {
            strays.take(name);
        }
    })?;
    strays.find(Some(workspace), &folder, "nothing in the log refers to it", verdict);
    Ok(())
}

/// Folders of workspaces that the log does not know, and objects in no folder of an archive. What lies in those of the log is
/// seen where they are read, and what lies in a known workspace's when that is verified.
pub(super) fn find_beside(objects: &impl Archive, log: &Log, verdict: &mut Verdict) -> Result<(), Unreadable> {
    let known: BTreeSet<String> = log.workspaces.iter().map(|workspace| workspace.id.to_string()).collect();
    let (mut folders, mut others) = (Strays::default(), Strays::default());
    // Names of one folder come one after the other.
    let mut last = String::new();
    objects.each("", &mut |name| match name.splitn(4, '/').collect::<Vec<_>>().as_slice() {
        ["log", "checkpoints" | "cosignatures" | "statements" | "tile", _, ..] => {}
        ["workspaces", folder, ..] if !known.contains(*folder) => {
            if last != *folder {
                folders.take(folder);
                (*folder).clone_into(&mut last);
            }
        }
        ["workspaces", _, "seals" | "segments" | "statements", _] => {}
        _ => others.take(name),
    })?;
    others.find(None, "", "no object of an archive has such a name", verdict);
    folders.find(None, "workspaces/", "no such workspace in the log", verdict);
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
        strays.find(None, "workspaces/", "", &mut verdict);
        assert_eq!((verdict.findings.len(), verdict.findings_more), (FINDINGS_MAX, 2_001));
        assert_eq!(verdict.findings[1].place, "workspaces/00000");
        assert_eq!(verdict.findings[999].place, "workspaces/00998");
    }
}
