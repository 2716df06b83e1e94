//! One zstd frame, and nothing but one (RFC 8878, 3.1.1): a plain frame that says how long its content is, needs no
//! dictionary and a window of at most 8 MiB, and ends where the bytes end.

use std::cell::RefCell;

use bytes::Bytes;
use custody::segment::FRAME_BYTES_MAX;
use zstd::{bulk::Decompressor, zstd_safe};

/// Greatest window in bytes: what RFC 8878 asks every decoder to support.
const WINDOW_BYTES_MAX: u64 = 8 << 20;

thread_local! {
    /// A decoder takes 160 kB, which is not allocated anew for each frame.
    static DECODER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Content of one zstd frame that must be exactly `length` bytes long; `None` if it is not, or something follows.
pub fn expand(frame: &[u8], length: u64) -> Option<Bytes> {
    if length > FRAME_BYTES_MAX || !is_plain(frame) {
        return None;
    }
    if zstd_safe::get_frame_content_size(frame).ok()?? != length
        || zstd_safe::find_frame_compressed_size(frame).ok()? != frame.len()
    {
        return None;
    }
    let mut content = Vec::with_capacity(usize::try_from(length).ok()?);
    DECODER.with_borrow_mut(|slot| {
        let decoder = match slot {
            Some(decoder) => decoder,
            None => slot.insert(Decompressor::new().ok()?),
        };
        decoder.decompress_to_buffer(frame, &mut content).ok()
    })?;
    (content.len() as u64 == length).then(|| content.into())
}

/// Whether the frame header is of a plain frame without dictionary, reserved bits and too great a window.
fn is_plain(frame: &[u8]) -> bool {
    let Some((magic, rest)) = frame.split_first_chunk::<4>() else { return false };
    let [descriptor, window, ..] = rest else { return false };
    let single_segment = descriptor & 0x20 != 0;
    let (reserved, dictionary) = (descriptor & 0x08, descriptor & 0x03);
    let base = 1_u64 << (10 + (window >> 3));
    let bytes = base + base / 8 * u64::from(window & 7);
    *magic == zstd_safe::MAGICNUMBER.to_le_bytes()
        && reserved == 0
        && dictionary == 0
        && (single_segment || bytes <= WINDOW_BYTES_MAX)
}
