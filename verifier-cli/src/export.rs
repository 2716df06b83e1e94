//! What one workspace's auditor gets: the whole log, which shows that nothing of the workspace is kept back; the
//! workspace's own objects; and a policy whose scope is that workspace. It verifies by itself.

use std::path::Path;

use custody::{
    id::WorkspaceId,
    policy::{Policy, Scope},
    verify::{self, Archive, Known, parse_known},
};

use crate::{failure::Failure, output, segments::find_workspace};

/// What an export holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Number of objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the narrowed policy, whose fingerprint the auditor compares.
    pub policy: Vec<u8>,
}

/// Writes `archive/` and `policy.json` into `out`, which must be new or empty.
///
/// # Errors
/// [`Failure`].
pub fn export(objects: &impl Archive, policy: &Policy, said: &str, out: &Path) -> Result<Exported, Failure> {
    let log = verify::log(objects, policy, None)?.map_err(|fault| Failure::Refuted(Box::new(fault)))?;
    let workspace = find_workspace(&log, said)?;
    if std::fs::read_dir(out).is_ok_and(|mut inside| inside.next().is_some()) {
        let why = format!("{} is not empty\nhint: nothing is overwritten; name a new folder", out.display());
        return Err(Failure::Unreadable(why));
    }
    let mut exported = Exported { workspace, objects: 0, bytes: 0, policy: narrowed(policy, workspace)? };
    for folder in ["log".to_owned(), format!("workspaces/{workspace}")] {
        for name in objects.list(&folder)? {
            let name = format!("{folder}/{name}");
            let bytes = objects.get(&name)?;
            let bytes = bytes.ok_or_else(|| Failure::Unreadable(format!("{name} went away while it was copied")))?;
            output::create(&name.split('/').fold(out.join("archive"), |path, part| path.join(part)), &bytes)?;
            exported.objects += 1;
            exported.bytes += bytes.len() as u64;
        }
    }
    output::create(&out.join("policy.json"), &exported.policy)?;
    Ok(exported)
}

/// The policy for this workspace alone. Known heads of other workspaces go, because nothing here could confirm them.
fn narrowed(policy: &Policy, workspace: WorkspaceId) -> Result<Vec<u8>, Failure> {
    let mut policy = policy.clone();
    policy.scope = Scope::Workspaces(vec![workspace.to_string()]);
    policy.known.retain(|known| match parse_known(known.as_bytes()) {
        Ok(Known::Head(signed) | Known::Receipt(signed, _)) => signed.head.workspace == workspace,
        Ok(Known::Checkpoint(_)) | Err(_) => true,
    });
    let mut text = serde_json::to_vec_pretty(&policy).map_err(|why| Failure::Unreadable(why.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
