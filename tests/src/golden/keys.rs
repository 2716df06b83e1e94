//! Keys and ids of the golden archive: each from a fixed seed that its label gives, so that two runs make the same bytes.

use custody::id::{Epoch, GatewayId, KeyId, MemberId, WorkspaceId};
use custody::key::{self, PublicKey};
use custody::wire::Role;
use ed25519_dalek::SigningKey;

/// Name of the golden log.
pub const ORIGIN: &str = "ledger.example/golden";
/// Names of the witnesses that the witnessed policy knows.
pub const WITNESSES: [&str; 2] = ["witness.example/one", "witness.example/two"];

/// 32 fixed bytes for a label.
pub fn seed(label: &str) -> [u8; 32] {
    *blake3::hash(format!("custody golden {label}").as_bytes()).as_bytes()
}

/// The signing key of this label.
pub fn signing(label: &str) -> SigningKey {
    SigningKey::from_bytes(&seed(&format!("key {label}")))
}

/// Its public half.
pub fn public(label: &str) -> PublicKey {
    key::public(&signing(label))
}

/// Its id in a role.
pub fn id(label: &str, role: Role) -> KeyId {
    public(label).id(role)
}

/// 16 fixed bytes for a label.
pub fn short(label: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().zip(seed(&format!("id {label}"))) {
        *to = from;
    }
    out
}

/// Id of the workspace of this name.
pub fn workspace(name: &str) -> WorkspaceId {
    WorkspaceId(short(&format!("workspace {name}")))
}

/// Id of a gateway.
pub fn gateway(name: &str) -> GatewayId {
    GatewayId(short(&format!("gateway {name}")))
}

/// Id of an epoch.
pub fn epoch(name: &str) -> Epoch {
    Epoch(short(&format!("epoch {name}")))
}

/// Id of a member.
pub fn member(name: &str) -> MemberId {
    MemberId(short(&format!("member {name}")))
}
