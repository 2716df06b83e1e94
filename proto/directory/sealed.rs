//! XChaCha20-Poly1305 over directory entries (FORMAT.md, 5.4).
//!
//! What must hold: the commitment is compared before anything is decrypted; randomness is the caller's.

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use prost::Message as _;

use super::{CONTENTS_BYTES_MAX, Unfit, associated_data, contents_in_form, key_commitment, parse_contents};
use crate::{id::MemberId, wire};

/// Why an entry does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// It is another member's, or commits to another key.
    OtherKey,
    /// It commits to this key, and does not decrypt with it, or to nothing in form: whoever wrote it did it wrong.
    Broken,
}

impl std::fmt::Display for Unopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OtherKey => "the entry commits to another key",
            Self::Broken => "the entry commits to this key and does not open with it, or not to contents in form",
        })
    }
}

impl std::error::Error for Unopened {}

/// Encrypts what an entry says. The nonce is random and new.
///
/// # Errors
/// That the contents are longer than an entry holds.
pub fn seal(
    (origin, member, revision): (&str, MemberId, u64),
    key: &[u8; 32],
    nonce: [u8; 24],
    at: u64,
    contents: &wire::DirectoryContents,
) -> Result<wire::DirectoryEntry, Unfit> {
    let contents = contents.encode_to_vec();
    if contents.len() > CONTENTS_BYTES_MAX {
        return Err(Unfit("name, address and groups together have more than 4,080 bytes"));
    }
    let payload = Payload { msg: &contents, aad: &associated_data(origin, member, revision) };
    let sealed = XChaCha20Poly1305::new(&(*key).into()).encrypt(&XNonce::from(nonce), payload);
    Ok(wire::DirectoryEntry {
        at,
        member: member.into(),
        revision,
        nonce: nonce.to_vec().into(),
        key_commitment: key_commitment(origin, member, key).to_vec().into(),
        ciphertext: sealed.map_err(|_| Unfit("the contents are longer than the cipher takes"))?.into(),
    })
}

/// Decrypts an entry with its member's key.
///
/// # Errors
/// [`Unopened`].
pub fn open(
    origin: &str,
    member: MemberId,
    key: &[u8; 32],
    entry: &wire::DirectoryEntry,
) -> Result<wire::DirectoryContents, Unopened> {
    if entry.member.as_ref() != member.0 || entry.key_commitment.as_ref() != key_commitment(origin, member, key) {
        return Err(Unopened::OtherKey);
    }
    let nonce: [u8; 24] = entry.nonce.as_ref().try_into().map_err(|_| Unopened::Broken)?;
    let payload = Payload { msg: &entry.ciphertext, aad: &associated_data(origin, member, entry.revision) };
    let opened = XChaCha20Poly1305::new(&(*key).into()).decrypt(&XNonce::from(nonce), payload);
    let contents = parse_contents(&opened.map_err(|_| Unopened::Broken)?).map_err(|_| Unopened::Broken)?;
    if contents_in_form(&contents) { Ok(contents) } else { Err(Unopened::Broken) }
}
