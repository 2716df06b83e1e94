//! An identity provider's word on who calls: a JWT (RFC 7519), held against the provider's keys (RFC 7517). Pure.
//!
//! What must hold: only what a key of the set has signed with an algorithm of that key's own kind is believed; never `none`, and
//! no algorithm in which whoever can check can also sign (`HS256` and the like); what is not understood is refused; no part
//! of a JWT is in what this says of it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Why;

/// Longest JWT in bytes: a thousand groups fit, and a header of HTTP has little more.
pub(super) const JWT_BYTES_MAX: usize = 16_384;
/// Longest set of keys in bytes, and most keys in it: providers have a handful.
pub(super) const JWKS_BYTES_MAX: usize = 262_144;
const KEYS_MAX: usize = 64;

/// The keys of a provider, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Vec<(String, Key)>);

#[derive(Clone, Debug)]
struct Key {
    /// The one algorithm that the set names for it.
    only: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(custody::key::PublicKey),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
    /// The same by its newer name (RFC 9864).
    Ed25519,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Map<String, Value>>,
}

/// The first part of a JWT. What it holds besides says nothing of how to check it, but `crit` and what that names.
#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    kid: String,
    crit: Option<Value>,
    b64: Option<Value>,
}

impl Keys {
    /// Reads a set. Keys of kinds that are not used here, or for encryption, are passed over.
    pub(super) fn parse(json: &[u8]) -> Result<Self, &'static str> {
        if json.len() > JWKS_BYTES_MAX {
            return Err("the set is longer than 256 KiB");
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| "it is no JSON Web Key Set")?;
        let keys: Vec<_> = set.keys.iter().take(KEYS_MAX).filter_map(key).collect();
        if keys.is_empty() {
            Err("it holds no key with a kid for RS256, PS256, ES256, ES384 or EdDSA")
        } else {
            Ok(Self(keys))
        }
    }

    fn of(&self, kid: &str) -> Option<&Key> {
        self.0.iter().find(|(known, _)| known == kid).map(|(_, key)| key)
    }
}

fn key(entry: &Map<String, Value>) -> Option<(String, Key)> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    if text("use").is_some_and(|used| used != "sig") {
        return None;
    }
    let point = |length: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        // Uncompressed, as ring takes it.
        (x.len() == length && y.len() == length).then(|| [vec![4], x, y].concat())
    };
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => Material::Rsa { n: bytes("n")?, e: bytes("e")? },
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(custody::key::PublicKey::new(&bytes("x")?)?),
        _ => return None,
    };
    let only = match entry.get("alg") {
        None => None,
        // For an algorithm that is not taken here it is no key at all.
        Some(named) => Some(Algorithm::deserialize(named).ok()?),
    };
    Some((text("kid")?.to_owned(), Key { only, material }))
}

impl Key {
    fn has_signed(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let rsa = |parameters: &'static RsaParameters| match &self.material {
            Material::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok(),
            _ => false,
        };
        if self.only.is_some_and(|only| only.kind() != algorithm.kind()) {
            return false;
        }
        match (algorithm, &self.material) {
            (Algorithm::RS256, _) => rsa(&RSA_PKCS1_2048_8192_SHA256),
            (Algorithm::RS384, _) => rsa(&RSA_PKCS1_2048_8192_SHA384),
            (Algorithm::RS512, _) => rsa(&RSA_PKCS1_2048_8192_SHA512),
            (Algorithm::PS256, _) => rsa(&RSA_PSS_2048_8192_SHA256),
            (Algorithm::PS384, _) => rsa(&RSA_PSS_2048_8192_SHA384),
            (Algorithm::PS512, _) => rsa(&RSA_PSS_2048_8192_SHA512),
            (Algorithm::ES256, Material::P256(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            (Algorithm::ES384, Material::P384(point)) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature).is_ok()
            }
            (Algorithm::EdDSA | Algorithm::Ed25519, Material::Ed25519(key)) => key.verifies_plain(message, signature),
            _ => false,
        }
    }
}

impl Algorithm {
    /// Two names of one algorithm are one.
    fn kind(self) -> Self {
        if self == Self::Ed25519 { Self::EdDSA } else { self }
    }
}

/// What a JWT must say, besides being signed.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) leeway_us: u64,
}

/// What is not known of a JWT until another set of keys was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No key has this id.
    UnknownKey,
    /// As for a token.
    For(Why),
}

/// The claims of a JWT that holds, and when it ends.
pub(super) fn check(
    jwt: &str,
    keys: &Keys,
    expected: &Expected,
    now_us: u64,
) -> Result<(Map<String, Value>, u64), Refusal> {
    let malformed = || Refusal::For(Why::Malformed);
    let wrong = || Refusal::For(Why::Wrong);
    if jwt.len() > JWT_BYTES_MAX {
        return Err(malformed());
    }
    let (message, signature) = jwt.rsplit_once('.').ok_or_else(malformed)?;
    let (header, claims) = message.split_once('.').ok_or_else(malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed());
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| malformed())?;
    if header.crit.is_some() || header.b64.is_some() {
        return Err(malformed());
    }
    let key = keys.of(&header.kid).ok_or(Refusal::UnknownKey)?;
    if !key.has_signed(header.alg, message.as_bytes(), &decode(signature)?) {
        return Err(wrong());
    }
    let claims: Map<String, Value> = serde_json::from_slice(&decode(claims)?).map_err(|_| malformed())?;
    let is = |value: Option<&Value>, text: &str| value.and_then(Value::as_str) == Some(text);
    let audience = claims.get("aud");
    let among =
        audience.and_then(Value::as_array).is_some_and(|all| all.iter().any(|one| is(Some(one), &expected.audience)));
    if !is(claims.get("iss"), &expected.issuer) || !(is(audience, &expected.audience) || among) {
        return Err(wrong());
    }
    let ends_at = seconds(claims.get("exp")).ok_or_else(malformed)?.saturating_add(expected.leeway_us);
    let begins_at = claims.get("nbf").map(|at| seconds(Some(at)).ok_or_else(malformed)).transpose()?;
    if begins_at.is_some_and(|at| at > now_us.saturating_add(expected.leeway_us)) {
        return Err(wrong());
    }
    if ends_at <= now_us { Err(Refusal::For(Why::Expired)) } else { Ok((claims, ends_at)) }
}

/// Seconds since the Unix epoch as microseconds; a fraction is dropped.
pub(super) fn seconds(value: Option<&Value>) -> Option<u64> {
    let number = value?;
    let whole = number.as_u64().or_else(|| {
        let text = number.as_f64().filter(|at| (0.0..1e12).contains(at))?.trunc().to_string();
        text.parse().ok()
    });
    whole?.checked_mul(1_000_000)
}
