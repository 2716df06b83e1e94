//! What an archive says, as `verifier show` prints it.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::{
    process::{Home, binary},
    shim::done,
};

/// All records of a workspace, in their order, as the JSON that `verifier show` prints.
pub fn records(home: &Home, workspace: &str) -> Vec<Value> {
    records_of(&home.archive(), &home.policy(), workspace)
}

/// The same of an archive that is anywhere.
///
/// # Panics
/// When it cannot be shown.
pub fn records_of(archive: &Path, policy: &Path, workspace: &str) -> Vec<Value> {
    let mut command = Command::new(binary("verifier"));
    command.arg("show").arg(archive).arg(format!("{workspace}/0..")).arg("--policy").arg(policy).arg("--json");
    let said = done("verifier show", &command.output().expect("the verifier runs"));
    said.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

/// A field of a record, if it is text.
pub fn word<'a>(record: &'a Value, name: &str) -> &'a str {
    record["record"][name].as_str().unwrap_or_default()
}
