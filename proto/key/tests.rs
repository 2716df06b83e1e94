//! What our verification accepts, pinned on published vectors: every edge of the curve (CCTV) and every known mistake of
//! implementations (Wycheproof).

use std::fs;

use serde::Deserialize;

use super::*;
use crate::{
    hash::sha256,
    id::{hex, unhex},
    testing::{GATEWAY, LOG, ROOT, key, vectors},
};

/// The answer that every verifier of ours gives: key, then signature.
fn accepts(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    PublicKey::new(key).is_some_and(|key| key.verifies_plain(message, signature))
}

#[derive(Deserialize)]
struct EdgeCase {
    number: u32,
    key: String,
    sig: String,
    msg: String,
    #[serde(default)]
    flags: Option<Vec<String>>,
}

#[test]
fn the_accepted_edge_cases_are_pinned() {
    let Some(folder) = vectors() else { return };
    let cases: Vec<EdgeCase> = serde_json::from_slice(&fs::read(folder.join("ed25519/cctv.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 914);
    let mut numbers = Vec::new();
    for case in &cases {
        let (public, signature) = (unhex(&case.key).unwrap(), unhex(&case.sig).unwrap());
        if accepts(&public, case.msg.as_bytes(), &signature) {
            let flags = case.flags.as_deref().unwrap_or_default();
            for forbidden in ["low_order_A", "low_order_R", "non_canonical_A", "non_canonical_R"] {
                assert!(!flags.iter().any(|flag| flag == forbidden), "case {}: {forbidden}", case.number);
            }
            numbers.push(case.number.to_string());
        }
    }
    // The numbers in decimal, with a comma between: so another implementation can compare its own.
    let digest = hex(&sha256(&[numbers.join(",").as_bytes()]));
    assert_eq!(
        (numbers.len(), digest.as_str()),
        (43, "36521713b91ca5d28544f38cd646b5494f5911399bfe4635a8bf2f2a88f13bcf")
    );
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wycheproof {
    test_groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    public_key: Pk,
    tests: Vec<Case>,
}

#[derive(Deserialize)]
struct Pk {
    pk: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    tc_id: u32,
    msg: String,
    sig: String,
    result: String,
}

#[test]
fn every_case_of_wycheproof_is_judged_as_it_should_be() {
    let Some(folder) = vectors() else { return };
    let set: Wycheproof = serde_json::from_slice(&fs::read(folder.join("ed25519/wycheproof.json")).unwrap()).unwrap();
    let mut count = 0;
    for group in &set.test_groups {
        let public = unhex(&group.public_key.pk).unwrap();
        for case in &group.tests {
            let (message, signature) = (unhex(&case.msg).unwrap(), unhex(&case.sig).unwrap());
            assert_eq!(accepts(&public, &message, &signature), case.result == "valid", "case {}", case.tc_id);
            count += 1;
        }
    }
    assert_eq!(count, 151);
}

#[test]
fn every_case_of_the_wycheproof_crate_is_judged_as_it_should_be() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let mut count = 0;
    for group in &set.test_groups {
        for case in &group.tests {
            let accepted = accepts(&group.key.pk, &case.msg, &case.sig);
            assert_eq!(accepted, !case.result.must_fail(), "case {}: {}", case.tc_id, case.comment);
            count += 1;
        }
    }
    assert!(count >= 145, "only {count} cases");
}

/// The 8 points of small order, and every encoding of them that is not canonical (FORMAT.md, 4).
const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

#[test]
fn weak_and_odd_keys_are_refused() {
    for weak in SMALL_ORDER {
        assert_eq!(PublicKey::new(&unhex(weak).unwrap()), None, "{weak}");
    }
    let strong = public(&key(ROOT)).to_bytes();
    assert!(PublicKey::new(&strong).is_some());
    assert!(PublicKey::new(&strong[..31]).is_none());
    assert!(PublicKey::new(&[&strong[..], &[0]].concat()).is_none());
    // y = 2 is no point; y = p + 3 is one, but not the canonical encoding of 3.
    let mut odd = [0; 32];
    odd[0] = 2;
    assert_eq!(PublicKey::new(&odd), None);
    for low in 0xed..=0xff_u8 {
        let mut encoding = [0xff; 32];
        (encoding[0], encoding[31]) = (low, 0x7f);
        assert_eq!(PublicKey::new(&encoding), None, "p + {}", low - 0xed);
    }
}

#[test]
fn a_signature_counts_for_one_context_one_message_and_one_key() {
    let contexts = [Context::Batch, Context::Head, Context::Statement, Context::Possession];
    let (one, other) = (public(&key(GATEWAY)), public(&key(LOG)));
    for signed in contexts {
        let signature = sign(&key(GATEWAY), signed, b"message");
        for context in contexts {
            assert_eq!(one.verifies(context, b"message", &signature), context == signed, "{signed:?} as {context:?}");
        }
        assert!(!one.verifies(signed, b"messag", &signature) && !other.verifies(signed, b"message", &signature));
        assert!(!one.verifies(signed, b"message", &signature[..63]) && !one.verifies(signed, b"message", &[]));
        assert!(!one.verifies_plain(b"message", &signature));
        for bit in 0..512 {
            let mut flipped = signature;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!one.verifies(signed, b"message", &flipped), "bit {bit}");
        }
        // The zero byte ends the label: a longer label cannot be made of a shorter one and a message.
        let whole = [signed.label().as_bytes(), b"\0", b"message"].concat();
        assert!(one.verifies_plain(&whole, &signature));
        assert!(!signed.label().contains('\0'));
    }
}

#[test]
fn a_key_has_another_id_in_another_role() {
    let key = public(&key(GATEWAY));
    let roles = [Role::Root, Role::Registrar, Role::Gateway, Role::Receipt, Role::Record, Role::Head, Role::Log];
    let mut ids = roles.map(|role| key.id(role)).to_vec();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), roles.len());
}
