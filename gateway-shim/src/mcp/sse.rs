//! Server-sent events, read beside their forwarding: the data of each complete event, from chunks cut anywhere.

/// Greatest event that is read; a longer one is forwarded unread.
pub const EVENT_BYTES_MAX: usize = 16 << 20;

/// Reads a stream chunk by chunk.
#[derive(Debug, Default)]
pub struct Reader {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a carriage return: a line feed behind it ends no second line.
    returned: bool,
    /// This event is too long to be read.
    skipping: bool,
    /// An event had an id: the stream may be taken up again on another connection.
    pub resumable: bool,
}

impl Reader {
    /// Takes a chunk; gives the data of the events that end in it.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        for byte in chunk {
            let feed_after_return = std::mem::replace(&mut self.returned, *byte == b'\r') && *byte == b'\n';
            match byte {
                b'\n' if feed_after_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ if self.line.len() + self.data.len() < EVENT_BYTES_MAX => self.line.push(*byte),
                _ => self.skipping = true,
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            let whole = std::mem::take(&mut self.has_data) && !std::mem::take(&mut self.skipping);
            return (whole && !data.is_empty()).then_some(data);
        }
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or_else(|| &line[at + 1..])),
            None => (&line[..], &[][..]),
        };
        match name {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"id" => self.resumable = true,
            _ => {}
        }
        None
    }
}

/// One event around a message of a stdio server, which is one line.
pub fn event(message: &[u8]) -> bytes::Bytes {
    [b"event: message\ndata: ", message, b"\n\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_wherever_the_chunks_are_cut() {
        let stream =
            b": hi\nid: 1\ndata:\n\nevent: message\ndata: {\"a\":1,\r\ndata: \"b\":2}\r\n\r\ndata: x\r\rdata: cut";
        let expected = vec![b"{\"a\":1,\n\"b\":2}".to_vec(), b"x".to_vec()];
        for cut in 0..stream.len() {
            let mut reader = Reader::default();
            let mut events = reader.push(&stream[..cut]);
            events.extend(reader.push(&stream[cut..]));
            assert_eq!(events, expected, "cut at {cut}");
            assert!(reader.resumable);
        }
        let mut reader = Reader::default();
        let events: Vec<_> = stream.iter().flat_map(|byte| reader.push(&[*byte])).collect();
        assert_eq!(events, expected);
    }

    #[test]
    fn an_endless_event_takes_no_endless_memory() {
        let mut reader = Reader::default();
        let chunk = [b'a'; 1 << 20];
        reader.push(b"data: ");
        for _ in 0..40 {
            assert!(reader.push(&chunk).is_empty());
        }
        assert!(reader.line.len() <= EVENT_BYTES_MAX);
        assert!(reader.push(b"\n\n").is_empty());
        assert_eq!(reader.push(b"data: y\n\n"), vec![b"y".to_vec()]);
    }
}
