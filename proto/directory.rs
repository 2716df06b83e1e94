//! Directory entries: names of people, readable with that member's key alone (FORMAT.md, 5.4).
//!
//! What is computed here is what both writer and reader need besides XChaCha20-Poly1305 itself, which whoever holds the
//! vault brings. No verifier opens an entry.

use crate::{
    hash::Use,
    id::MemberId,
    strict::{self, NotStrict, table},
    wire,
};

/// Greatest length in bytes of what is encrypted: the record's limit less the authentication tag.
pub const CONTENTS_BYTES_MAX: usize = 4_096 - 16;

const LABEL: &[u8] = b"custody/v1/directory-entry";

/// What the field `key_commitment` holds: XChaCha20-Poly1305 alone lets one ciphertext open under two keys, and then two
/// auditors could be shown two names.
pub fn key_commitment(origin: &str, member: MemberId, key: &[u8; 32]) -> [u8; 32] {
    Use::MemberKey.hasher().string(origin.as_bytes()).fixed(&member.0).fixed(key).finish()
}

/// What is authenticated beside the ciphertext: an entry is of this log, member and revision, or does not open.
pub fn associated_data(origin: &str, member: MemberId, revision: u64) -> Vec<u8> {
    let length = u32::try_from(origin.len()).unwrap_or(u32::MAX).to_be_bytes();
    [LABEL, &[0], &length, origin.as_bytes(), &member.0, &revision.to_be_bytes()].concat()
}

/// Reads what was decrypted.
///
/// # Errors
/// Why it is not in strict form.
pub fn parse_contents(bytes: &[u8]) -> Result<wire::DirectoryContents, NotStrict> {
    strict::decode(&table::DIRECTORY_CONTENTS, bytes)
}
