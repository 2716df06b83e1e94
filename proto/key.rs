//! Ed25519 signatures, always over a context and a zero byte before the message, always verified strictly (FORMAT.md, 4).
//!
//! `verify_strict` refuses small-order A and R and non-canonical encodings; batch verification is never used, because it
//! accepts what single verification refuses.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::{hash, id::KeyId, wire::Role};

/// What a signature is about. No message signed under one parses under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A batch header, by a gateway's key or the ledger's record key.
    Batch,
    /// An open head, by the ledger's head key.
    Head,
    /// A statement, by the root or a registrar.
    Statement,
    /// Proof that the signer holds a new key.
    Possession,
}

impl Context {
    /// The bytes before the zero byte.
    pub fn label(self) -> &'static str {
        match self {
            Self::Batch => "custody/v1/batch",
            Self::Head => "custody/v1/head",
            Self::Statement => "custody/v1/statement",
            Self::Possession => "custody/v1/possession",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.label().as_bytes(), &[0], bytes].concat()
    }
}

/// A public key that is canonical and not of small order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// From 32 bytes; `None` for an encoding that is no point, not canonical, or a weak key.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let array: [u8; 32] = bytes.try_into().ok()?;
        let key = VerifyingKey::from_bytes(&array).ok()?;
        let canonical = key.to_edwards().compress().to_bytes() == array;
        (canonical && !key.is_weak()).then_some(Self(key))
    }

    /// The 32 bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// This key's id in a role.
    pub fn id(self, role: Role) -> KeyId {
        hash::key_id(role as u32, &self.to_bytes())
    }

    /// Whether `signature` is this key's, over `bytes` in `context`.
    pub fn verifies(self, context: Context, bytes: &[u8], signature: &[u8]) -> bool {
        self.verifies_plain(&context.message(bytes), signature)
    }

    /// Whether `signature` is this key's over exactly `message`: for signed notes, whose context is their own.
    pub fn verifies_plain(self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        self.0.verify_strict(message, &signature).is_ok()
    }
}

/// Signs `bytes` in `context`.
pub fn sign(key: &SigningKey, context: Context, bytes: &[u8]) -> [u8; 64] {
    sign_plain(key, &context.message(bytes))
}

/// Signs exactly `message`: for signed notes.
pub fn sign_plain(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    key.sign(message).to_bytes()
}

/// The public half.
pub fn public(key: &SigningKey) -> PublicKey {
    PublicKey(key.verifying_key())
}

#[cfg(test)]
mod tests;
