//! The audit policy: what an auditor holds, and trusts instead of the archive (FORMAT.md, 12).
//!
//! `policy.json` is read strictly: an unknown key is an error, for a key that a verifier passes over is a demand unmet.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    hash::{root_successor, sha256},
    id::{WorkspaceId, hex, unhex},
    key::PublicKey,
    statement::Roots,
    verdict::Claim,
};

/// Greatest length of a policy file in bytes.
pub const POLICY_BYTES_MAX: usize = 1 << 20;

/// The policy as the file has it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Format version of this file: 1.
    pub version: u32,
    /// Name of the log.
    pub origin: String,
    /// Which workspaces must be there.
    pub scope: Scope,
    /// Root keys by era, the first one first.
    pub roots: Vec<Root>,
    /// Who may cosign.
    #[serde(default)]
    pub witnesses: Vec<Witness>,
    /// How many of them must have.
    #[serde(default)]
    pub quorum: u32,
    /// Age in seconds beyond which their word on "this is the newest" counts no more; 0: not asked.
    #[serde(default)]
    pub greatest_age_seconds: u64,
    /// Days that records must be kept; 0: for ever.
    #[serde(default)]
    pub minimum_retention_days: u64,
    /// The claims without which the archive is not accepted.
    #[serde(default = "first_three")]
    pub required: Vec<Claim>,
    /// Known checkpoints, heads and receipts, each as a file for `--known` would have it.
    #[serde(default)]
    pub known: Vec<String>,
}

/// Which workspaces must be there.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every entry of the log must have its seal.
    Organisation,
    /// Those named, by id in hex.
    Workspaces(Vec<String>),
}

/// One era of the root key.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Number of the era, from 1.
    pub era: u32,
    /// Ed25519 public key in hex.
    pub public_key: String,
    /// Hash of the next era's key in hex.
    pub successor_hash: String,
}

/// A witness.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Name of its key.
    pub name: String,
    /// Ed25519 public key in hex.
    pub public_key: String,
}

fn first_three() -> Vec<Claim> {
    vec![Claim::Unaltered, Claim::Authorised, Claim::Complete]
}

/// Why a policy cannot be used; the text completes "the audit policy ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPolicy(pub String);

impl std::fmt::Display for BadPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the audit policy {}", self.0)
    }
}

impl std::error::Error for BadPolicy {}

impl Policy {
    /// The policy of a fresh organisation: one root and its successor, no witnesses, the first three claims.
    pub fn fresh(origin: &str, root: PublicKey, successor: PublicKey) -> Self {
        let root = Root {
            era: 1,
            public_key: hex(&root.to_bytes()),
            successor_hash: hex(&root_successor(&successor.to_bytes())),
        };
        Self {
            version: 1,
            origin: origin.to_owned(),
            scope: Scope::Organisation,
            roots: vec![root],
            witnesses: Vec::new(),
            quorum: 0,
            greatest_age_seconds: 0,
            minimum_retention_days: 0,
            required: first_three(),
            known: Vec::new(),
        }
    }

    /// Reads a policy file.
    ///
    /// # Errors
    /// [`BadPolicy`] for another version, unknown keys, and keys or ids that are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPolicy> {
        if bytes.len() > POLICY_BYTES_MAX {
            return Err(BadPolicy("is longer than 1 MiB".to_owned()));
        }
        let form = |why: &dyn std::fmt::Display| BadPolicy(format!("is not in form: {why}"));
        let policy: Self = serde_json::from_slice(bytes).map_err(|why| form(&why))?;
        // The library also takes a list for an object, and an object with one key for a name.
        let given: Map<String, Value> = serde_json::from_slice(bytes).map_err(|why| form(&why))?;
        let read = serde_json::to_value(&policy).map_err(|why| form(&why))?;
        if given.iter().any(|(key, value)| read.get(key) != Some(value)) {
            return Err(form(&"a value of another type than it should have"));
        }
        if policy.version != 1 {
            return Err(BadPolicy(format!("has version {}, and this program knows 1", policy.version)));
        }
        policy.roots()?;
        policy.witness_keys()?;
        policy.workspaces()?;
        let distinct = |values: &mut Vec<String>| {
            let count = values.len();
            values.sort_unstable();
            values.dedup();
            values.len() == count
        };
        let mut eras: Vec<String> = policy.roots.iter().map(|root| root.era.to_string()).collect();
        let mut names: Vec<String> = policy.witnesses.iter().map(|witness| witness.name.clone()).collect();
        let mut keys: Vec<String> = policy.witnesses.iter().map(|witness| witness.public_key.clone()).collect();
        if !(distinct(&mut eras) && distinct(&mut names) && distinct(&mut keys)) {
            return Err(BadPolicy("names an era, a witness or a witness's key twice".to_owned()));
        }
        if let Scope::Workspaces(ids) = &policy.scope
            && (ids.is_empty() || !distinct(&mut ids.clone()))
        {
            return Err(BadPolicy("has a scope without a workspace, or with one twice".to_owned()));
        }
        // Whoever requires nothing would get exit code 0 for anything that is not refuted.
        let mut required: Vec<String> = policy.required.iter().map(|claim| format!("{claim:?}")).collect();
        if required.is_empty() {
            return Err(BadPolicy("requires no claim: leave out `required` for the first three".to_owned()));
        }
        if !distinct(&mut required) {
            return Err(BadPolicy("requires a claim twice".to_owned()));
        }
        if policy.quorum as usize > policy.witnesses.len() {
            return Err(BadPolicy("asks for more witnesses than it names".to_owned()));
        }
        Ok(policy)
    }

    /// The root keys.
    ///
    /// # Errors
    /// [`BadPolicy`] for no root, or for a key or hash that is none.
    pub fn roots(&self) -> Result<Roots, BadPolicy> {
        let bad = |era| BadPolicy(format!("has no usable root key or successor for era {era}"));
        let mut eras = Vec::new();
        for root in &self.roots {
            let key = unhex(&root.public_key).and_then(|bytes| PublicKey::new(&bytes)).ok_or_else(|| bad(root.era))?;
            let next = unhex(&root.successor_hash).and_then(|bytes| bytes.try_into().ok());
            eras.push((root.era, key, next.ok_or_else(|| bad(root.era))?));
        }
        Roots::new(eras).ok_or_else(|| BadPolicy("names no root key".to_owned()))
    }

    /// The witnesses by name.
    ///
    /// # Errors
    /// [`BadPolicy`] for a key that is none.
    pub fn witness_keys(&self) -> Result<Vec<(String, PublicKey)>, BadPolicy> {
        let key = |witness: &Witness| {
            let key = unhex(&witness.public_key).and_then(|bytes| PublicKey::new(&bytes));
            let key = key.ok_or_else(|| BadPolicy(format!("has no usable key for witness {}", witness.name)))?;
            Ok((witness.name.clone(), key))
        };
        self.witnesses.iter().map(key).collect()
    }

    /// The workspaces named; `None` for the whole organisation.
    ///
    /// # Errors
    /// [`BadPolicy`] for an id that is none.
    pub fn workspaces(&self) -> Result<Option<Vec<WorkspaceId>>, BadPolicy> {
        let Scope::Workspaces(ids) = &self.scope else { return Ok(None) };
        let id = |text: &String| {
            WorkspaceId::from_hex(text).ok_or_else(|| BadPolicy(format!("names a workspace {text} that is no id")))
        };
        ids.iter().map(id).collect::<Result<_, _>>().map(Some)
    }
}

/// Fingerprint of a policy file: SHA-256 of its bytes, in groups of four digits, to be compared by eye or voice.
pub fn fingerprint(bytes: &[u8]) -> String {
    let digits = hex(&sha256(&[bytes]));
    let groups: Vec<&str> =
        (0..digits.len()).step_by(4).filter_map(|at| digits.get(at..at.saturating_add(4))).collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_read(change: impl FnOnce(&mut Value)) -> bool {
        let mut policy = serde_json::to_value(crate::golden_tests::audit_policy()).unwrap();
        change(&mut policy);
        Policy::parse(&serde_json::to_vec(&policy).unwrap()).is_ok()
    }

    #[test]
    fn a_value_has_one_type() {
        assert!(is_read(|_| {}));
        assert!(is_read(|policy| policy["scope"] = json!("organisation")));
        assert!(!is_read(|policy| policy["scope"] = json!({"organisation": null})));
        assert!(is_read(|policy| policy["required"] = json!(["unaltered"])));
        assert!(!is_read(|policy| policy["required"] = json!([{"unaltered": null}])));
        assert!(!is_read(|policy| policy["required"] = json!([])), "nothing is required, so anything would do");
        assert!(!is_read(|policy| policy["required"] = json!(["unaltered", "unaltered"])));
        let alpha = "a1".repeat(16);
        assert!(is_read(|policy| policy["scope"] = json!({"workspaces": [alpha]})));
        assert!(!is_read(|policy| policy["scope"] = json!({"workspaces": [alpha, alpha]})));
        let values = |object: &Value| object.as_object().unwrap().values().cloned().collect::<Vec<_>>();
        let in_order = |root: &Value| json!([root["era"], root["public_key"], root["successor_hash"]]);
        assert!(!is_read(|policy| policy["roots"][0] = in_order(&policy["roots"][0])));
        assert!(!is_read(|policy| *policy = values(policy).into()));
        assert!(!is_read(|policy| policy["witnesses"] = Value::Null));
    }
}
