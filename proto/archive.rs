//! Names of the objects of an archive (FORMAT.md, 11). Numbers are decimal without leading zeros; ids and hashes are hex.

use crate::id::{ObjectHash, WorkspaceId};

/// A canonical number: decimal digits without sign or leading zeros, of at most 64 bits.
pub fn number(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

/// `workspaces/<id>/segments/<n>-<sha256>`.
pub fn segment(workspace: WorkspaceId, number: u64, hash: ObjectHash) -> String {
    format!("workspaces/{workspace}/segments/{number}-{hash}")
}

/// `workspaces/<id>/seals/<n>-<hash>`.
pub fn seal(workspace: WorkspaceId, number: u64, hash: ObjectHash) -> String {
    format!("workspaces/{workspace}/seals/{number}-{hash}")
}

/// `workspaces/<id>/statements/<serial>-<hash>`, or `log/statements/<serial>-<hash>` for the ledger's own chain.
pub fn statement(workspace: Option<WorkspaceId>, serial: u64, hash: ObjectHash) -> String {
    format!("{}/{serial}-{hash}", statements(workspace))
}

/// Folder of a chain's statements.
pub fn statements(workspace: Option<WorkspaceId>) -> String {
    workspace.map_or_else(|| "log/statements".to_owned(), |id| format!("workspaces/{id}/statements"))
}

/// Folder of the checkpoints.
pub const CHECKPOINTS: &str = "log/checkpoints";
/// Folder of the cosignatures.
pub const COSIGNATURES: &str = "log/cosignatures";
/// Folder of the tiles.
pub const TILES: &str = "log/tile";

/// `log/checkpoints/<size>`.
pub fn checkpoint(size: u64) -> String {
    format!("{CHECKPOINTS}/{size}")
}

/// `log/cosignatures/<size>/<witness>`; characters of the name other than `[A-Za-z0-9._-]` become `_`.
pub fn cosignature(size: u64, witness: &str) -> String {
    let name: String =
        witness.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    format!("{COSIGNATURES}/{size}/{name}")
}

/// `log/<tile path>`.
pub fn tile(level: Option<u32>, number: u64, width: u64) -> String {
    let level = level.map_or_else(|| "entries".to_owned(), |level| level.to_string());
    format!("log/{}", crate::log::tile_path(&level, number, width))
}
