//! A segment object taken apart and put together again without believing in it.

use bytes::Bytes;
use custody::{
    segment::{Object, split_frame},
    wire,
};
use prost::Message as _;

/// The parts of an object. The golden ones have one frame.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Bytes of the header.
    pub header: Vec<u8>,
    /// Content of the frame.
    pub content: Vec<u8>,
    /// The compressed frame; made anew from the content if `None`.
    pub frame: Option<Vec<u8>>,
    /// The index; made anew from the rest if `None`.
    pub index: Option<Vec<u8>>,
    /// Bytes of the roster.
    pub roster: Vec<u8>,
}

impl Parts {
    /// Takes apart what the golden writer wrote.
    ///
    /// # Errors
    /// In words.
    pub fn of(object: &[u8]) -> Result<Self, String> {
        let parsed = Object::parse(Bytes::copy_from_slice(object)).map_err(|why| why.to_string())?;
        let [frame] = parsed.frames.as_slice() else { return Err("not one frame".to_owned()) };
        let compressed = parsed.frame(frame).ok_or("no frame")?;
        let length = usize::try_from(frame.content_length).map_err(|why| why.to_string())?;
        let content = zstd::bulk::decompress(compressed, length).map_err(|why| why.to_string())?;
        let header_end = usize::try_from(frame.offset).map_err(|why| why.to_string())?;
        let header = object.get(12..header_end).ok_or("no header")?.to_vec();
        Ok(Self { header, content, frame: None, index: None, roster: parsed.roster_bytes.to_vec() })
    }

    /// The index that goes with these parts.
    pub fn index(&self) -> Vec<u8> {
        let compressed = self.compressed();
        let entries = split_frame(Bytes::copy_from_slice(&self.content)).unwrap_or_default();
        let position =
            |bytes: &Bytes| custody::segment::Entry::parse(bytes.clone()).ok().map(|e| e.leaf.first_position);
        let frame = wire::SegmentFrame {
            offset: 12 + self.header.len() as u64,
            length: compressed.len() as u64,
            content_length: self.content.len() as u64,
            first_leaf: 0,
            leaf_count: entries.len().max(1) as u64,
            first_position: entries.first().and_then(position).unwrap_or(0),
        };
        wire::SegmentIndex { version: 1, frames: vec![frame] }.encode_to_vec()
    }

    fn compressed(&self) -> Vec<u8> {
        self.frame.clone().unwrap_or_else(|| zstd::bulk::compress(&self.content, 3).unwrap_or_default())
    }

    /// The object's bytes.
    pub fn join(&self) -> Vec<u8> {
        let index = self.index.clone().unwrap_or_else(|| self.index());
        let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes();
        [
            &b"CUSTODY1"[..],
            &length(&self.header),
            &self.header,
            &self.compressed(),
            &index,
            &self.roster,
            &length(&index),
            &length(&self.roster),
            b"1YDOTSUC",
        ]
        .concat()
    }
}
