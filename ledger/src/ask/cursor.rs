//! Cursors: where a page ends, for the next one.
//!
//! What must hold: a cursor is good for the question that it was given for and the token that asked it; it tells
//! its holder nothing, because commit indexes count what others do. So it is encrypted, and the question, as it was written, is
//! bound to it: what depends on the moment (`24h`) is read again as of the first page, whose moment is in the cursor.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody::wire;
use prost::Message as _;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::{
    keys,
    store::{Family, Rank, Store, StoreError},
};

/// Where a page ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Next commit index when the first page was asked for.
    pub(super) pinned: u64,
    /// The last record of the page.
    pub(super) last: Rank,
    /// Records that there were then, of the workspaces that were asked.
    pub(super) records: u64,
    /// When it was asked for, in microseconds: what `24h` means on every page.
    pub(super) now_us: u64,
}

/// What binds a cursor: whose it is, and the question as it was written.
pub(super) fn bound(holder: &str, asked: &wire::Question) -> Vec<u8> {
    let mut bytes = format!("{holder} ").into_bytes();
    asked.encode(&mut bytes).ok();
    bytes
}

/// Makes cursors and reads them.
pub(super) struct Cursors(LessSafeKey);

impl Cursors {
    /// With the store's own key, so that a restart breaks no page off.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(store: &Store) -> Result<Self, StoreError> {
        const NAME: &str = "cursor_key";
        let key = match store.value(Family::Meta, NAME)? {
            Some(key) => key.as_ref().try_into().map_err(|_| StoreError::Damaged("the key of cursors"))?,
            None => {
                let key: [u8; 32] = keys::random();
                let mut change = store.change();
                change.put(Family::Meta, NAME, key);
                store.derive(change)?;
                key
            }
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|_| StoreError::Damaged("the key of cursors"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// As text.
    pub(super) fn seal(&self, cursor: Cursor, question: &[u8]) -> String {
        let nonce: [u8; NONCE_LEN] = keys::random();
        let mut bytes = [cursor.pinned, cursor.last.0, cursor.records, cursor.now_us].map(u64::to_be_bytes).concat();
        let sealed =
            self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(question), &mut bytes);
        // Some bytes are below every limit of the cipher.
        sealed.map_or_else(|_| String::new(), |()| URL_SAFE_NO_PAD.encode([&nonce[..], &bytes].concat()))
    }

    /// From text; `None` if it is not of this question.
    pub(super) fn read(&self, text: &str, question: &[u8]) -> Option<Cursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let open = self.0.open_in_place(nonce, Aad::from(question), &mut sealed).ok()?;
        let mut numbers = open.chunks_exact(8).map(|part| part.try_into().map(u64::from_be_bytes).ok());
        let mut next = || numbers.next().flatten();
        Some(Cursor { pinned: next()?, last: Rank(next()?), records: next()?, now_us: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::Dir;

    #[test]
    fn a_cursor_is_good_for_its_question_alone_and_outlasts_a_restart() {
        let dir = Dir::new("cursor");
        let cursor = Cursor { pinned: 7, last: Rank(99), records: 1_000, now_us: 5 };
        let open = || Cursors::open(&Store::open(&dir.0.join("store"), 8 << 20, 32 << 20).unwrap()).unwrap();
        let text = open().seal(cursor, b"a");
        let again = open();
        assert_eq!(again.read(&text, b"a"), Some(cursor));
        assert_eq!(again.read(&text, b"b"), None);
        assert_eq!(again.read(&text[1..], b"a"), None);
        assert_eq!(again.read("", b"a"), None);
        assert_ne!(again.seal(cursor, b"a"), text);
    }
}
