//! Forensic receipts of tool runtimes, from an answer to its record (FORMAT.md, 5.5): never asked for, never waited for.
//!
//! What must hold: the whole receipt, whose metadata is text of the tool's own, is kept only of a signer that the workspace
//! enrolled, and only if each name in that metadata is on the server's list. What is no receipt is passed on all the same, and
//! leaves no trace in the record.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody::{
    forensic::{JSON_BYTES_MAX, Receipt},
    statement::Chain,
    wire::{self, Role},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Header of an answer that has it where the result's `_meta` has none, as base64 of its JSON.
pub const HEADER: &str = "custody-forensic-receipt";

/// Keys that sign receipts in this workspace, as far as its statements have come; shared between who hears of them and the
/// writer.
#[derive(Clone, Debug, Default)]
pub struct Signers(Arc<RwLock<BTreeSet<[u8; 32]>>>);

impl Signers {
    /// Takes over what a workspace's chain says now.
    pub fn learn(&self, chain: &Chain) {
        let signs = chain.keys().filter(|(_, key)| key.role == Role::Receipt && !key.revoked && !key.retired);
        let now = signs.map(|(_, key)| key.public_key.to_bytes()).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn has(&self, key: &[u8]) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(|signer| signer == key)
    }
}

/// Takes out of a receipt what is not kept; `listed` are the names that may stand at the top of a kept one's metadata.
pub fn cut(receipt: &mut wire::ForensicReceipt, signers: &Signers, listed: &[String]) {
    let kept = signers.has(&receipt.signer)
        && Receipt::parse(&receipt.whole)
            .is_ok_and(|whole| whole.metadata_keys.iter().all(|name| listed.contains(name)));
    if !kept {
        receipt.whole.clear();
    }
}

/// What is read of a result's `_meta`.
#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow, rename = "custody/forensic-receipt")]
    receipt: Option<&'a RawValue>,
}

/// The receipt in a result's `_meta`.
pub fn of_meta(meta: &str) -> Option<wire::ForensicReceipt> {
    of_json(serde_json::from_str::<Meta<'_>>(meta).ok()?.receipt?.get().as_bytes())
}

/// The receipt in its JSON, whole as far as it is short enough.
pub fn of_json(json: &[u8]) -> Option<wire::ForensicReceipt> {
    Receipt::parse(json).ok().map(|receipt| receipt.to_wire(true))
}

/// The receipt in a header.
pub fn of_header(value: &[u8]) -> Option<wire::ForensicReceipt> {
    // Base64 is four thirds as long.
    if value.len() > JSON_BYTES_MAX / 3 * 4 + 4 {
        return None;
    }
    of_json(&STANDARD.decode(value).ok()?)
}

#[cfg(test)]
pub(crate) mod tests {
    use custody::{
        key,
        statement::{Roots, Signed, encode_signed},
        wire::statement::Action,
    };
    use prost::Message as _;

    use super::*;

    pub(crate) const SIMPLE: &str = r#"{"timestamp": "2026-11-20T16:19:42.423359+00:00",
        "payload_hash": "1650123c32fc7ea9128a40190ba04d3243ce82de37d80da9923b5e8204dac901",
        "public_key": "ZxnuPglkdaC9bJMgIJVKEIQweBduMgiQlxs3p88NOeg=",
        "signature": "N5OmWrR88y28xgPwUZ+RDY8aYf5dCN4MQzI70nd4BOdimNQEQQ6EI7xP0a1mPKS3nMMPz/rInHI8Z4UnG+F2Dg==",
        "metadata": {"tool": "query_db", "server": "crm"}}"#;

    /// A chain in which the root enrolled this receipt signer, and revoked it perhaps.
    fn chain(signer: &[u8], revoked: bool) -> Chain {
        let root = key::public(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]));
        let roots = Roots::new([(1, root, [2; 32])]).unwrap();
        let workspace = custody::id::WorkspaceId([9; 16]);
        let key_id = key::PublicKey::new(signer).unwrap().id(Role::Receipt);
        let enrol =
            wire::Enrol { role: Role::Receipt as i32, public_key: signer.to_vec().into(), ..Default::default() };
        let create = wire::Create { name: "team".into() };
        let mut actions = vec![Action::Create(create), Action::Enrol(enrol)];
        if revoked {
            actions.push(Action::Revoke(wire::Revoke { key_id: key_id.into(), void_serials: Vec::new() }));
        }
        let mut chain = Chain::new("log.example", Some(workspace));
        for action in actions {
            let head = chain.head();
            let genesis = head.count == 0;
            let statement = wire::Statement {
                version: custody::FORMAT_VERSION,
                origin: "log.example".into(),
                workspace: Some(workspace.into()),
                serial: head.count,
                previous: head.hash.into(),
                checkpoint_size: u64::from(!genesis),
                checkpoint_hash: vec![u8::from(!genesis); 32].into(),
                issued_at: 1_700_000_000_000_000,
                era: 1,
                action: Some(action),
                ..Default::default()
            }
            .encode_to_vec();
            let signature =
                key::sign(&ed25519_dalek::SigningKey::from_bytes(&[1; 32]), key::Context::Statement, &statement);
            let signed = Signed::parse(&encode_signed(&statement, signature)).unwrap();
            chain = chain.extended(&signed, &roots).unwrap().0;
        }
        chain
    }

    #[test]
    fn a_receipt_is_kept_whole_of_an_enrolled_signer_and_with_listed_names_alone() {
        let whole = of_json(SIMPLE.as_bytes()).unwrap();
        let signer = whole.signer.to_vec();
        let signers = Signers::default();
        let cut = |listed: &[&str]| {
            let mut receipt = whole.clone();
            cut(&mut receipt, &signers, &listed.iter().map(ToString::to_string).collect::<Vec<_>>());
            let same = wire::ForensicReceipt { whole: whole.whole.clone(), ..receipt.clone() };
            assert_eq!(same, whole, "nothing else is cut");
            !receipt.whole.is_empty()
        };
        let (all, half) = (["server", "tool", "more"], ["server"]);
        assert!(!cut(&all), "the signer is not enrolled");
        signers.learn(&chain(&signer, false));
        assert!(cut(&all));
        assert!(!cut(&half), "a name is not on the list");
        assert!(!cut(&[]), "there is no list");
        signers.learn(&chain(&signer, true));
        assert!(!cut(&all), "the signer is revoked");
    }

    #[test]
    fn a_header_says_the_same_as_a_result() {
        let encoded = STANDARD.encode(SIMPLE);
        assert_eq!(of_header(encoded.as_bytes()), of_json(SIMPLE.as_bytes()));
        assert_eq!(of_header(SIMPLE.as_bytes()), None);
        assert_eq!(of_header(&vec![b'A'; JSON_BYTES_MAX * 2]), None);
    }
}
