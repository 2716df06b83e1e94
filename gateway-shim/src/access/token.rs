//! Tokens: 256 random bits, shown once; what is kept of one is the SHA-256 of its secret part.
//!
//! `cst_<id, 32 hex digits>_<secret, 64 hex digits>`. A token is found by its id and its secret compared in constant time.

use custody::id::{hex, unhex};
use subtle::ConstantTimeEq as _;

/// What a token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "cst_";

/// A token as its holder presents it. It is shown nowhere.
pub(super) struct Presented {
    /// Its id.
    pub(super) id: [u8; 16],
    secret: [u8; 32],
}

impl Presented {
    /// From the value of the header Authorization.
    pub(super) fn parse(authorization: &str) -> Option<Self> {
        let (id, secret) = bearer(authorization)?.strip_prefix(PREFIX)?.split_once('_')?;
        Some(Self { id: unhex(id)?.try_into().ok()?, secret: unhex(secret)?.try_into().ok()? })
    }

    /// Whether the secret is the one of which this is the SHA-256. Takes the same time whatever differs.
    pub(super) fn is(&self, sha256: &[u8; 32]) -> bool {
        custody::hash::sha256(&[&self.secret]).ct_eq(sha256).into()
    }
}

/// What follows the scheme `Bearer`, whose letters may be of either case (RFC 9110, 11.1).
pub(super) fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| rest.trim_matches(' '))
}

/// A token that was just made. It is shown once, to whoever asked for it, and kept nowhere.
pub struct OneTimeToken {
    id: [u8; 16],
    secret: [u8; 32],
}

impl OneTimeToken {
    /// A new one.
    pub fn random() -> Self {
        Self { id: crate::random::bytes(), secret: crate::random::bytes() }
    }

    /// Its id, which is no secret.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// What is kept of it.
    pub fn sha256(&self) -> [u8; 32] {
        custody::hash::sha256(&[&self.secret])
    }

    /// The token itself, for its holder alone.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", hex(&self.id), hex(&self.secret))
    }
}
