//! The real SDK's receipts verify, whatever spelling they come in, and every change of one is found.

use serde_json::{Value, json};

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../testdata/receipts/sovereign.json")).unwrap()
}

/// The file is read as text, so that numbers stay as the SDK spelt them.
#[derive(serde::Deserialize)]
struct Case<'a> {
    name: String,
    #[serde(borrow)]
    receipt: &'a RawValue,
    signer: String,
    valid: bool,
}

#[derive(serde::Deserialize)]
struct Vectors<'a> {
    #[serde(borrow)]
    cases: Vec<Case<'a>>,
}

fn cases() -> Vec<Case<'static>> {
    serde_json::from_str::<Vectors<'_>>(include_str!("../testdata/receipts/sovereign.json")).unwrap().cases
}

/// Receipts as the SDK spelt them.
pub(crate) fn texts() -> Vec<Vec<u8>> {
    cases().into_iter().map(|case| case.receipt.get().as_bytes().to_vec()).collect()
}

fn key(base64: &str) -> PublicKey {
    PublicKey::new(&STANDARD.decode(base64).unwrap()).unwrap()
}

#[test]
fn every_receipt_of_the_real_sdk_is_judged_as_it_should_be() {
    let (mut valid, mut invalid) = (0, 0);
    for case in cases() {
        let receipt = Receipt::parse(case.receipt.get().as_bytes()).unwrap();
        assert_eq!(receipt.is_signed_by(key(&case.signer)), case.valid, "{}", case.name);
        if case.valid { valid += 1 } else { invalid += 1 }
    }
    assert_eq!((valid, invalid), (64, 60));
}

#[test]
fn what_is_kept_is_the_receipt_and_says_the_same() {
    for case in cases() {
        let receipt = Receipt::parse(case.receipt.get().as_bytes()).unwrap();
        let again = Receipt::parse(receipt.whole()).unwrap();
        assert_eq!(again, receipt, "{}", case.name);
        let kept = receipt.to_wire(true);
        let signed_by_its_own = PublicKey::new(&receipt.signer).is_some_and(|key| receipt.is_signed_by(key));
        let expected = match kept.whole.is_empty() {
            true => Standing::Withheld,
            false if signed_by_its_own => Standing::Signed,
            false => Standing::Bad,
        };
        assert_eq!(standing(&kept), expected, "{}", case.name);
        assert_eq!(standing(&receipt.to_wire(false)), Standing::Withheld);
        // Each field of the record is held against the whole receipt.
        for change in [
            |kept: &mut wire::ForensicReceipt| kept.digest = vec![1; 32].into(),
            |kept: &mut wire::ForensicReceipt| kept.payload_hash = vec![1; 32].into(),
            |kept: &mut wire::ForensicReceipt| kept.signature = vec![1; 64].into(),
            |kept: &mut wire::ForensicReceipt| kept.signer = vec![1; 32].into(),
        ] {
            let mut changed = kept.clone();
            change(&mut changed);
            assert_ne!(standing(&changed), Standing::Signed, "{}", case.name);
        }
    }
}

/// Another reader may sort otherwise, put in spaces and write letters as they are: the signed bytes are the same.
#[test]
fn another_spelling_is_the_same_receipt() {
    for case in cases().into_iter().filter(|case| !case.receipt.get().contains(['.', 'e'])) {
        let value: Value = serde_json::from_str(case.receipt.get()).unwrap();
        let receipt = Receipt::parse(case.receipt.get().as_bytes()).unwrap();
        for spelling in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            assert_eq!(Receipt::parse(spelling.as_bytes()).unwrap(), receipt, "{}", case.name);
        }
    }
    let spelt = |json: &str| Receipt::parse(json.as_bytes()).map(|receipt| receipt.signed);
    let hash = "00".repeat(32);
    let (signer, signature) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 64]));
    let with = |metadata: &str| {
        spelt(&format!(
            r#"{{"signature":"{signature}","metadata":{metadata},"public_key":"{signer}",
               "timestamp":"t","payload_hash":"{hash}"}}"#
        ))
    };
    let signed =
        with("{\"\u{1F600}\":[1e+16,-0.0,true,null,{}],\"\u{ffff}\":\"/\u{7f}\\u0008\",\"a\":{\"b\":[]}}").unwrap();
    let expected = r#"{"metadata": {"a": {"b": []}, "\uffff": "/\u007f\b", "\ud83d\ude00": [1e+16, -0.0, true, null, {}]}, "payload_hash": ""#;
    assert_eq!(String::from_utf8(signed).unwrap(), format!("{expected}{hash}\", \"timestamp\": \"t\"}}"));
    for bad in ["[]", "null", "{\"a\":1,\"a\":1}", "{\"a\":{\"b\":1,\"b\":1}}", "{\"a\":NaN}", "{\"a\":\"\\ud800\"}"] {
        assert!(with(bad).is_err(), "{bad}");
    }
    for bad in ["Infinity", "-Infinity", "[NaN]", "\"\\udc00\\ud800\""] {
        assert!(with(&format!("{{\"a\":{bad}}}")).is_err(), "{bad}");
    }
}

/// The bounds are of what was received, and a number counts as a level, as an object does.
#[test]
fn sixteen_levels_and_sixteen_kibibytes_are_the_most() {
    let with = |metadata: &str| {
        let (signer, signature) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 64]));
        let hash = "00".repeat(32);
        format!(
            r#"{{"signature":"{signature}","metadata":{metadata},"public_key":"{signer}","timestamp":"t","payload_hash":"{hash}"}}"#
        )
    };
    // `metadata` is of level 1, what `a` names of level 2.
    let deep =
        |arrays: usize, inside: &str| with(&format!("{{\"a\":{}{inside}{}}}", "[".repeat(arrays), "]".repeat(arrays)));
    for (json, read) in [(deep(15, ""), true), (deep(16, ""), false), (deep(14, "1"), true), (deep(15, "1"), false)] {
        assert_eq!(Receipt::parse(json.as_bytes()).is_ok(), read, "{json}");
    }
    let short = with("{}");
    let spaced = |bytes: usize| format!("{}{short}", " ".repeat(bytes - short.len()));
    assert!(Receipt::parse(spaced(JSON_BYTES_MAX).as_bytes()).is_ok());
    assert!(Receipt::parse(spaced(JSON_BYTES_MAX + 1).as_bytes()).is_err(), "although its canonical text is short");
}

#[test]
fn what_is_no_receipt_is_refused() {
    let good = json!({"timestamp": "t", "payload_hash": "00".repeat(32), "public_key": STANDARD.encode([1; 32]),
        "signature": STANDARD.encode([2; 64]), "metadata": {}});
    Receipt::parse(good.to_string().as_bytes()).unwrap();
    let changes: [(&str, Value); 8] = [
        ("timestamp", json!(1)),
        ("payload_hash", json!("00")),
        ("payload_hash", json!("zz".repeat(32))),
        ("public_key", json!(STANDARD.encode([1; 31]))),
        ("signature", json!(STANDARD.encode([1; 65]))),
        ("signature", json!("no base64")),
        ("metadata", json!("x")),
        ("more", json!(1)),
    ];
    for (name, value) in changes {
        let mut bad = good.clone();
        bad[name] = value;
        assert!(Receipt::parse(bad.to_string().as_bytes()).is_err(), "{name}");
    }
    for bad in ["", "[]", "{}", "\"x\"", "{\"metadata\":{}}"] {
        assert!(Receipt::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let long = json!({"metadata": {"a": "x".repeat(JSON_BYTES_MAX)}});
    assert_eq!(Receipt::parse(long.to_string().as_bytes()), Err(NotAReceipt("it is longer than 16 KiB")));
}

#[test]
fn a_key_follows_another_by_that_ones_word_alone() {
    let vectors = vectors();
    let given = &vectors["succession"];
    let trusted = key(given["trusted_previous"].as_str().unwrap());
    let succession = Succession::parse(given["receipt"].to_string().as_bytes()).unwrap();
    assert!(succession.is_signed_by(trusted));
    let after = cases().into_iter().find(|case| case.name == "after-rotation").unwrap();
    assert_eq!(key(&after.signer).to_bytes(), succession.next);
    // Not by the new key's word, and not to a third.
    assert!(!succession.is_signed_by(PublicKey::new(&succession.next).unwrap()));
    let mut other = given["receipt"].clone();
    other["new_public_key"] = given["trusted_previous"].clone();
    assert!(!Succession::parse(other.to_string().as_bytes()).unwrap().is_signed_by(trusted));
}
