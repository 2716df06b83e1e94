//! Newtypes for what is easily confused: ids of 16 bytes, hashes of 32, and counters. All print as hex or decimal.

use std::fmt;

use crate::strict::Malformed;

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(half), 16).unwrap_or('?'));
        }
    }
    out
}

/// The bytes of an even number of lower-case hex digits; anything else is `None`.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte.checked_sub(b'0'),
        b'a'..=b'f' => byte.checked_sub(b'a').and_then(|low| low.checked_add(10)),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some((digit(high)? << 4) | digit(low)?)).collect()
}

macro_rules! bytes_newtype {
    ($($(#[$doc:meta])* $name:ident($len:literal);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// All bytes zero: stands for "none" where a field is required.
            pub const ZERO: Self = Self([0; $len]);

            /// From lower-case hex.
            pub fn from_hex(text: &str) -> Option<Self> {
                Self::try_from(unhex(text)?.as_slice()).ok()
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = Malformed;
            fn try_from(bytes: &[u8]) -> Result<Self, Malformed> {
                bytes.try_into().map(Self).map_err(|_| Malformed::new(stringify!($name), 0, "wrong length"))
            }
        }

        impl From<$name> for bytes::Bytes {
            fn from(value: $name) -> Self {
                Self::copy_from_slice(&value.0)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex(&self.0))
            }
        }
    )*};
}

bytes_newtype! {
    /// A workspace: random, for ever.
    WorkspaceId(16);
    /// A gateway: random, for ever; its keys change.
    GatewayId(16);
    /// One run of a gateway: random, new at each start.
    Epoch(16);
    /// A person or service: random, one per person in the organisation.
    MemberId(16);
    /// A key in its role: hash of role and public key.
    KeyId(32);
    /// A leaf of one of the trees.
    LeafHash(32);
    /// A root of one of the trees.
    RootHash(32);
    /// Keyed BLAKE3 of a batch header.
    HeaderHash(32);
    /// SHA-256 of the bytes of an object of the archive.
    ObjectHash(32);
}

/// 0-based number of a record in its workspace's stream; contiguous, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// 0-based number of a segment in its workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

/// Number of leaves of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeSize(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for TreeSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_strict_and_reversible() {
        assert_eq!(unhex(&hex(&[0, 1, 0xfe, 0xff])), Some(vec![0, 1, 0xfe, 0xff]));
        for bad in ["0", "0G", "AB", " 00", "0x"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
