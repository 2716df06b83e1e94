//! What one workspace's auditor gets: the whole log, which shows that nothing of the workspace is kept back; the
//! workspace's own objects; and a policy whose scope is that workspace. It verifies by itself: whoever hands it out learns
//! before anything is written what the auditor will be told, and what is refuted is not handed out.

use std::path::Path;

use custody::{
    id::WorkspaceId,
    policy::{Policy, Scope},
    verdict::{State, Verdict},
    verify::{self, Archive, Known, Options, known_in, parse_known},
};

use crate::{failure::Failure, output, segments::find_workspace, workers::AllCores};

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
    pub policy_bytes: Vec<u8>,
    /// That policy.
    pub policy: Policy,
    /// What verification under it says: nothing is refuted.
    pub verdict: Verdict,
}

/// Writes `archive/` and `policy.json` into `out`, which must be new or empty.
///
/// # Errors
/// [`Failure`], also for a workspace that the policy does not ask for, and for one of which something is refuted as of the
/// time `as_of` in microseconds.
pub fn export(
    objects: &impl Archive,
    policy: &Policy,
    said: &str,
    out: &Path,
    as_of: u64,
) -> Result<Exported, Failure> {
    let log = verify::log(objects, policy, None)?.map_err(|fault| Failure::Refuted(Box::new(fault)))?;
    let workspace = find_workspace(&log, said)?;
    if policy.workspaces()?.is_some_and(|scope| !scope.contains(&workspace)) {
        let why = format!("workspace {workspace} is not in the policy's scope");
        return Err(Failure::NotThere(format!("{why}\nhint: export with a policy that asks for it")));
    }
    if std::fs::read_dir(out).is_ok_and(|mut inside| inside.next().is_some()) {
        let why =
            format!("{} is not empty\nhint: nothing is overwritten; name a new folder", output::plain(out.display()));
        return Err(Failure::Unreadable(why));
    }
    let policy = narrowed(policy, &[workspace]);
    let verdict = judge(objects, &policy, as_of)?;
    let policy_bytes = to_bytes(&policy)?;
    let mut exported = Exported { workspace, objects: 0, bytes: 0, policy_bytes, policy, verdict };
    for folder in ["log".to_owned(), format!("workspaces/{workspace}")] {
        for name in objects.list(&folder)? {
            let name = format!("{folder}/{name}");
            let bytes = objects.get(&name)?;
            let bytes = bytes.ok_or_else(|| {
                Failure::Unreadable(format!("{} went away while it was copied", output::plain(&name)))
            })?;
            output::create(&name.split('/').fold(out.join("archive"), |path, part| path.join(part)), &bytes)?;
            exported.objects += 1;
            exported.bytes += bytes.len() as u64;
        }
    }
    output::create(&out.join("policy.json"), &exported.policy_bytes)?;
    Ok(exported)
}

/// What the auditor will be told; what is refuted is a failure.
fn judge(objects: &impl Archive, policy: &Policy, as_of: u64) -> Result<Verdict, Failure> {
    let options = Options { as_of, known: known_in(policy)?, ..Options::default() };
    let verdict = verify::run(objects, policy, &options, &AllCores::new())?;
    match verdict.faults.iter().find(|fault| fault.state == State::Refuted) {
        Some(fault) => Err(fault.clone().into()),
        None => Ok(verdict),
    }
}

/// The policy for these workspaces alone. Known heads of others go, because nothing here could confirm them.
pub(crate) fn narrowed(policy: &Policy, workspaces: &[WorkspaceId]) -> Policy {
    let mut policy = policy.clone();
    policy.scope = Scope::Workspaces(workspaces.iter().map(ToString::to_string).collect());
    policy.known.retain(|known| match parse_known(known.as_bytes()) {
        Ok(Known::Head(signed) | Known::Receipt(signed, _)) => workspaces.contains(&signed.head.workspace),
        Ok(Known::Checkpoint(_)) | Err(_) => true,
    });
    policy
}

fn to_bytes(policy: &Policy) -> Result<Vec<u8>, Failure> {
    let mut text = serde_json::to_vec_pretty(policy).map_err(|why| Failure::Unreadable(why.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
