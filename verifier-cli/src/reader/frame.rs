//! One zstd frame, and nothing but one (RFC 8878, 3.1.1): a plain frame that says how long its content is, needs no
//! dictionary and a window of at most 8 MiB, and ends where the bytes end (FORMAT.md, 9.3).
//!
//! A decoder that has the whole frame and room for all of its content forgives blocks that are longer than they may be; one
//! that reads it as a stream does not. So the blocks are walked here, and given to a streaming decoder one by one.

use std::cell::RefCell;

use bytes::Bytes;
use custody::segment::FRAME_BYTES_MAX;
use zstd::zstd_safe::{DCtx, InBuffer, MAGICNUMBER, OutBuffer};

/// Greatest window in bytes: what RFC 8878 asks every decoder to support.
const WINDOW_BYTES_MAX: u64 = 8 << 20;
/// Greatest length of a block in bytes, whatever the window (RFC 8878, 3.1.1.2.4).
const BLOCK_BYTES_MAX: u64 = 128 << 10;
/// Bytes of a block's header, and of a checksum of the content.
const BLOCK_HEADER_BYTES: usize = 3;
const CHECKSUM_BYTES: usize = 4;

thread_local! {
    /// A decoder takes 160 kB, which is not allocated anew for each frame.
    static DECODER: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Content of one zstd frame that must be exactly `length` bytes long; `None` if it is not, or something follows.
pub fn expand(frame: &[u8], length: u64) -> Option<Bytes> {
    let header = Header::read(frame).filter(|header| header.content_length == length && length <= FRAME_BYTES_MAX)?;
    let content = DECODER.with_borrow_mut(|slot| {
        let decoder = match slot {
            Some(decoder) => decoder,
            None => slot.insert(DCtx::try_create()?),
        };
        decode(decoder, frame, &header)
    })?;
    (content.len() as u64 == length).then(|| content.into())
}

fn decode(decoder: &mut DCtx<'_>, frame: &[u8], header: &Header) -> Option<Vec<u8>> {
    decoder.init().ok()?;
    let mut content = Vec::with_capacity(usize::try_from(header.content_length).ok()?);
    let (head, mut rest) = frame.split_at_checked(header.length)?;
    feed(decoder, head, &mut content)?;
    loop {
        let block = Block::read(rest).filter(|block| block.says <= header.block_bytes_max)?;
        let end = block.length + if block.is_last && header.has_checksum { CHECKSUM_BYTES } else { 0 };
        let (bytes, after) = rest.split_at_checked(end)?;
        let before = content.len();
        let is_done = feed(decoder, bytes, &mut content)?;
        if (content.len() - before) as u64 > header.block_bytes_max {
            return None;
        }
        if block.is_last {
            return (is_done && after.is_empty()).then_some(content);
        }
        rest = after;
    }
}

/// Gives the decoder all of these bytes; whether the frame ended with them. `None` if it does not take them, or has no room.
fn feed(decoder: &mut DCtx<'_>, bytes: &[u8], content: &mut Vec<u8>) -> Option<bool> {
    let mut input = InBuffer::around(bytes);
    let filled = content.len();
    let left = decoder.decompress_stream(&mut OutBuffer::around_pos(content, filled), &mut input).ok()?;
    (input.pos() == bytes.len()).then_some(left == 0)
}

/// What the header of a plain frame says.
struct Header {
    length: usize,
    content_length: u64,
    block_bytes_max: u64,
    has_checksum: bool,
}

impl Header {
    /// `None` for anything but a plain frame without dictionary and reserved bit, of a stated length and a moderate window.
    fn read(frame: &[u8]) -> Option<Self> {
        let (magic, rest) = frame.split_first_chunk::<4>()?;
        let (descriptor, rest) = rest.split_first()?;
        let (reserved, dictionary) = (descriptor & 0x08, descriptor & 0x03);
        let single_segment = descriptor & 0x20 != 0;
        let (window, rest) = if single_segment {
            (None, rest)
        } else {
            let (window, rest) = rest.split_first()?;
            let base = 1_u64 << (10 + (window >> 3));
            (Some(base + base / 8 * u64::from(window & 7)), rest)
        };
        let size_bytes = match descriptor >> 6 {
            0 if single_segment => 1,
            0 => return None,
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let (size, rest) = rest.split_at_checked(size_bytes)?;
        let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
        let content_length = if size_bytes == 2 { size + 256 } else { size };
        let is_plain = *magic == MAGICNUMBER.to_le_bytes() && reserved == 0 && dictionary == 0;
        let header = Self {
            length: frame.len() - rest.len(),
            content_length,
            block_bytes_max: window.unwrap_or(content_length).min(BLOCK_BYTES_MAX),
            has_checksum: descriptor & 0x04 != 0,
        };
        (is_plain && window.is_none_or(|window| window <= WINDOW_BYTES_MAX)).then_some(header)
    }
}

/// Where a block ends.
struct Block {
    /// Bytes, its header included.
    length: usize,
    /// The length that its header says: of one byte that is repeated, how often; otherwise of what follows.
    says: u64,
    is_last: bool,
}

impl Block {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [low, middle, high] = *bytes.first_chunk::<BLOCK_HEADER_BYTES>()?;
        let bits = u32::from_le_bytes([low, middle, high, 0]);
        let says = bits >> 3;
        let follows = match bits >> 1 & 3 {
            1 => 1,
            // A type that is reserved; and a compressed block has two headers at least, which a stream decoder lets pass.
            3 => return None,
            2 if says == 0 => return None,
            _ => usize::try_from(says).ok()?,
        };
        Some(Self { length: BLOCK_HEADER_BYTES + follows, says: says.into(), is_last: bits & 1 == 1 })
    }
}
