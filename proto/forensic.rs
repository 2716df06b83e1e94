//! Forensic receipts of tool runtimes: the JSON that the Sovereign SDK signs, read and verified (FORMAT.md, 5.5). Pure.
//!
//! What must hold: the signed bytes are made from what was received exactly as the SDK makes them (Python's `json.dumps` with
//! sorted keys), so that a receipt verifies whatever order, spacing or escapes it came in, and numbers are taken as they are
//! spelt; two readers never see two receipts in one text, so a key that stands twice is refused. A receipt binds neither a
//! call nor a key that anybody trusts: that its signer is enrolled, and that it was not shown before, is for whoever asks.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{id::unhex, key::PublicKey, wire};

/// Greatest length of a receipt's JSON in bytes: four times what a record may keep of it, for spaces and escapes.
pub const JSON_BYTES_MAX: usize = 16_384;
/// Greatest length in bytes of what a record keeps as `whole`.
pub const WHOLE_BYTES_MAX: usize = 4_096;
/// Values within values; the SDK's own have three.
const DEPTH_MAX: usize = 16;

/// What is not a forensic receipt, or not a succession, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAReceipt(&'static str);

impl std::fmt::Display for NotAReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotAReceipt {}

/// A receipt, read and not yet verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// SHA-256 of what was done, as the signer says.
    pub payload_hash: [u8; 32],
    /// The Ed25519 key that the receipt itself names: who it is, an enrolment says.
    pub signer: [u8; 32],
    /// The signature.
    pub signature: [u8; 64],
    /// Names at the top of its metadata.
    pub metadata_keys: Vec<String>,
    signed: Vec<u8>,
    whole: Vec<u8>,
}

impl Receipt {
    /// Reads a receipt.
    ///
    /// # Errors
    /// [`NotAReceipt`]: not the five members of a receipt, each in form.
    pub fn parse(json: &[u8]) -> Result<Self, NotAReceipt> {
        let members = members(json)?;
        let [metadata, payload_hash, public_key, signature, timestamp] =
            five(&members, ["metadata", "payload_hash", "public_key", "signature", "timestamp"])?;
        let is_object = metadata.get().starts_with('{');
        let keys = if is_object { object(metadata)?.into_keys().collect() } else { Vec::new() };
        if !is_object {
            return Err(NotAReceipt("its metadata is no object"));
        }
        text(timestamp)?;
        let payload = unhex(&text(payload_hash)?).and_then(|hash| <[u8; 32]>::try_from(hash).ok());
        let signer = STANDARD.decode(text(public_key)?).ok().and_then(|key| <[u8; 32]>::try_from(key).ok());
        let signed_by = STANDARD.decode(text(signature)?).ok().and_then(|bytes| <[u8; 64]>::try_from(bytes).ok());
        let (Some(payload_hash), Some(signer), Some(signature)) = (payload, signer, signed_by) else {
            return Err(NotAReceipt("its hash, key or signature has another length or spelling"));
        };
        let signed = dump(&members, |key| !matches!(key, "public_key" | "signature"))?;
        let whole = dump(&members, |_| true)?;
        Ok(Self { payload_hash, signer, signature, metadata_keys: keys, signed, whole })
    }

    /// SHA-256 of [`Receipt::whole`]: the same for one receipt, however it was spelt.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.whole).into()
    }

    /// All of it, spelt as the SDK would.
    pub fn whole(&self) -> &[u8] {
        &self.whole
    }

    /// Whether `key` signed it. The key in the receipt is not covered by its signature, and must be the same.
    pub fn is_signed_by(&self, key: PublicKey) -> bool {
        key.to_bytes() == self.signer && key.verifies_plain(&self.signed, &self.signature)
    }

    /// What a record says of it. The whole receipt is there if `keep_whole`, and it is short enough.
    pub fn to_wire(&self, keep_whole: bool) -> wire::ForensicReceipt {
        let whole = if keep_whole && self.whole.len() <= WHOLE_BYTES_MAX { self.whole.clone() } else { Vec::new() };
        wire::ForensicReceipt {
            digest: self.digest().to_vec().into(),
            payload_hash: self.payload_hash.to_vec().into(),
            signature: self.signature.to_vec().into(),
            signer: self.signer.to_vec().into(),
            whole: whole.into(),
        }
    }
}

/// What can be said of a receipt in a record from the record alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The key that it names signed it.
    Signed,
    /// It did not, or what is kept as the whole receipt is not what the other fields say.
    Bad,
    /// The whole receipt is not in the record, so nobody can tell.
    Withheld,
}

/// What the record says of the receipt, held against the whole receipt in it.
pub fn standing(kept: &wire::ForensicReceipt) -> Standing {
    if kept.whole.is_empty() {
        return Standing::Withheld;
    }
    let Ok(receipt) = Receipt::parse(&kept.whole) else { return Standing::Bad };
    let same = receipt.to_wire(true) == *kept;
    let signed = PublicKey::new(&receipt.signer).is_some_and(|key| receipt.is_signed_by(key));
    if same && signed { Standing::Signed } else { Standing::Bad }
}

/// A signer's word that another key follows its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The key that signed this.
    pub previous: [u8; 32],
    /// The key that follows.
    pub next: [u8; 32],
    signature: Vec<u8>,
    signed: Vec<u8>,
}

impl Succession {
    /// Reads a succession.
    ///
    /// # Errors
    /// [`NotAReceipt`]: not its four members, each in form.
    pub fn parse(json: &[u8]) -> Result<Self, NotAReceipt> {
        let members = members(json)?;
        let names = ["new_public_key", "previous_public_key", "rotation_timestamp", "succession_signature"];
        let [next, previous, timestamp, signature] = five(&members, names)?;
        text(timestamp)?;
        let key = |value| -> Result<Option<[u8; 32]>, NotAReceipt> {
            Ok(STANDARD.decode(text(value)?).ok().and_then(|key| key.try_into().ok()))
        };
        let (Some(previous), Some(next)) = (key(previous)?, key(next)?) else {
            return Err(NotAReceipt("its keys have another length or spelling"));
        };
        let signature = STANDARD.decode(text(signature)?).map_err(|_| NotAReceipt("its signature is no base64"))?;
        let signed = dump(&members, |key| key != "succession_signature")?;
        Ok(Self { previous, next, signature, signed })
    }

    /// Whether `trusted`, which somebody enrolled, hands over to the next key.
    pub fn is_signed_by(&self, trusted: PublicKey) -> bool {
        trusted.to_bytes() == self.previous && trusted.verifies_plain(&self.signed, &self.signature)
    }
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// The members of an object, none of them twice, in the order of their names' code points.
struct Unique<'a>(Members<'a>);

impl<'de> Deserialize<'de> for Unique<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    if members.insert(key, value).is_some() {
                        return Err(A::Error::custom("a member stands twice"));
                    }
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Reader).map(Self)
    }
}

fn members(json: &[u8]) -> Result<Members<'_>, NotAReceipt> {
    if json.len() > JSON_BYTES_MAX {
        return Err(NotAReceipt("it is longer than 16 KiB"));
    }
    let members = serde_json::from_slice::<Unique<'_>>(json);
    members.map(|unique| unique.0).map_err(|_| NotAReceipt("it is no JSON object whose members stand once"))
}

fn object(value: &RawValue) -> Result<Members<'_>, NotAReceipt> {
    let members = serde_json::from_str::<Unique<'_>>(value.get());
    members.map(|unique| unique.0).map_err(|_| NotAReceipt("an object in it has a member twice, or no text as a name"))
}

/// The values of exactly these members.
fn five<'a, const N: usize>(members: &Members<'a>, names: [&str; N]) -> Result<[&'a RawValue; N], NotAReceipt> {
    let values: Option<Vec<_>> = names.iter().map(|name| members.get(*name).copied()).collect();
    let values = values.filter(|values| members.len() == values.len()).and_then(|values| values.try_into().ok());
    values.ok_or(NotAReceipt("it has other members than the form says"))
}

fn text(value: &RawValue) -> Result<String, NotAReceipt> {
    serde_json::from_str(value.get()).map_err(|_| NotAReceipt("a member that should be a text is none"))
}

/// As Python's `json.dumps(.., sort_keys=True)` writes the members that are wanted.
fn dump(members: &Members<'_>, wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>, NotAReceipt> {
    let mut out = String::new();
    dump_members(members.iter().filter(|(key, _)| wanted(key)), 1, &mut out)?;
    Ok(out.into_bytes())
}

fn dump_members<'m, 'a: 'm>(
    members: impl Iterator<Item = (&'m String, &'m &'a RawValue)>,
    depth: usize,
    out: &mut String,
) -> Result<(), NotAReceipt> {
    out.push('{');
    for (index, (key, value)) in members.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        dump_text(key, out);
        out.push_str(": ");
        dump_value(value, depth, out)?;
    }
    out.push('}');
    Ok(())
}

fn dump_value(value: &RawValue, depth: usize, out: &mut String) -> Result<(), NotAReceipt> {
    if depth > DEPTH_MAX {
        return Err(NotAReceipt("it has more than 16 levels"));
    }
    let below = depth.saturating_add(1);
    match value.get().as_bytes().first() {
        Some(b'{') => dump_members(object(value)?.iter(), below, out)?,
        Some(b'[') => {
            let elements: Vec<&RawValue> =
                serde_json::from_str(value.get()).map_err(|_| NotAReceipt("it is no JSON"))?;
            out.push('[');
            for (index, element) in elements.into_iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                dump_value(element, below, out)?;
            }
            out.push(']');
        }
        Some(b'"') => dump_text(&text(value)?, out),
        // Numbers as they are spelt, and `true`, `false`, `null`.
        _ => out.push_str(value.get()),
    }
    Ok(())
}

/// A text in ASCII alone, in quotes.
fn dump_text(text: &str, out: &mut String) {
    out.push('"');
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(b'"') => out.push_str("\\\""),
            Ok(b'\\') => out.push_str("\\\\"),
            Ok(b'\n') => out.push_str("\\n"),
            Ok(b'\r') => out.push_str("\\r"),
            Ok(b'\t') => out.push_str("\\t"),
            Ok(0x08) => out.push_str("\\b"),
            Ok(0x0c) => out.push_str("\\f"),
            Ok(plain @ b' '..=b'~') => out.push(char::from(plain)),
            _ => {
                out.push_str("\\u");
                for shift in [12, 8, 4, 0] {
                    out.extend(char::from_digit(u32::from((unit >> shift) & 0xf), 16));
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
pub(crate) mod tests;
