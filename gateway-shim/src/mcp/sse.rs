//! Server-sent events, read before their forwarding: bytes and data of each complete event, from chunks cut anywhere.

/// Greatest event in bytes, as the greatest JSON answer that is read: memory of each stream. Behind a longer one the stream
/// is not read on: in it, or behind it, might be a request of the server, and what cannot be read cannot be recorded.
pub const EVENT_BYTES_MAX: usize = 16 << 20;
/// Readers skip it at the beginning of a stream.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Bytes of a stream as they came, and the data of the event that they are; no data for what is no event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// As they came.
    pub raw: Vec<u8>,
    /// The event's.
    pub data: Option<Vec<u8>>,
    /// Id of the event, behind which the stream may be taken up again.
    pub id: Option<Vec<u8>>,
}

/// Reads a stream chunk by chunk. All pieces together are the stream, byte for byte, up to an event that is too long.
#[derive(Debug, Default)]
pub struct Reader {
    /// Bytes since the last piece.
    raw: Vec<u8>,
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The event has a line that is no comment.
    has_field: bool,
    /// The last byte was a carriage return: a line feed behind it ends no second line.
    returned: bool,
    /// The first line has ended.
    begun: bool,
    id: Option<Vec<u8>>,
    /// An event had an id: the stream may be taken up again on another connection.
    pub resumable: bool,
    /// An event was longer than [`EVENT_BYTES_MAX`]: nothing of it went on, and nothing behind it is read.
    pub over_limit: bool,
}

impl Reader {
    /// Takes a chunk; gives the pieces that end in it.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for byte in chunk {
            if self.over_limit {
                break;
            }
            let feed_after_return = std::mem::replace(&mut self.returned, *byte == b'\r') && *byte == b'\n';
            if feed_after_return && self.raw.is_empty() {
                // The second half of the line end before: it goes at once, for readers that wait for it.
                match pieces.last_mut() {
                    Some(last) => last.raw.push(*byte),
                    None => pieces.push(Piece { raw: vec![*byte], ..Piece::default() }),
                }
                continue;
            }
            self.raw.push(*byte);
            match byte {
                b'\n' if feed_after_return => {}
                b'\n' | b'\r' => pieces.extend(self.end_line()),
                _ => self.line.push(*byte),
            }
            if self.raw.len() > EVENT_BYTES_MAX {
                // What was kept of it is of no use any more.
                *self = Self { over_limit: true, resumable: self.resumable, ..Self::default() };
            }
        }
        pieces
    }

    /// The stream has ended: what is left of it, read as if its event were whole.
    pub fn rest(&mut self) -> Option<Piece> {
        // The end of the line that was begun, and an empty one.
        let piece = self.end_line().or_else(|| self.end_line());
        piece.filter(|piece| !piece.raw.is_empty())
    }

    fn unread(&mut self) -> Piece {
        Piece { raw: std::mem::take(&mut self.raw), ..Piece::default() }
    }

    /// The line that ends here; a piece if it ends an event, or is a comment outside of any.
    fn end_line(&mut self) -> Option<Piece> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            let (data, has_data) = (std::mem::take(&mut self.data), std::mem::take(&mut self.has_data));
            self.has_field = false;
            let (data, id) = ((has_data && !data.is_empty()).then_some(data), self.id.take());
            return Some(Piece { data, id, ..self.unread() });
        }
        if line.first() == Some(&b':') {
            return (!self.has_field).then(|| self.unread());
        }
        self.has_field = true;
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
            b"id" => {
                self.resumable = true;
                self.id = Some(value.to_vec());
            }
            _ => {}
        }
        None
    }
}

/// One event around a message of a stdio server, which is one line to that: a carriage return may stand between tokens, and
/// ends a line of an event.
pub fn event(message: &[u8]) -> bytes::Bytes {
    with_data(b"event: message", message).into()
}

/// The lines of an event but for those of one field, each with its end.
fn without(raw: &[u8], field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let lines = raw.split(|byte| *byte == b'\n').flat_map(|line| line.split(|byte| *byte == b'\r'));
    for line in lines.filter(|line| !line.is_empty()) {
        let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        if line.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(b":")) {
            continue;
        }
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out
}

/// An event under another id, or under none; all that is no id stays.
pub fn with_id(raw: &[u8], id: Option<&str>) -> Vec<u8> {
    let mut out = id.map(|id| format!("id: {id}\n").into_bytes()).unwrap_or_default();
    out.extend_from_slice(&without(raw, b"id"));
    out.push(b'\n');
    out
}

/// An event with other data: its id and all that is not data stay.
pub fn with_data(raw: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = without(raw, b"data");
    for line in data.split(|byte| matches!(byte, b'\n' | b'\r')) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_wherever_the_chunks_are_cut() {
        let stream =
            b": hi\nid: 1\ndata:\n\nevent: message\ndata: {\"a\":1,\r\ndata: \"b\":2}\r\n\r\ndata: x\r\rdata: cut";
        let expected = vec![b"{\"a\":1,\n\"b\":2}".to_vec(), b"x".to_vec()];
        let check = |chunks: &[&[u8]]| {
            let mut reader = Reader::default();
            let mut pieces: Vec<Piece> = chunks.iter().flat_map(|chunk| reader.push(chunk)).collect();
            let events: Vec<Vec<u8>> = pieces.iter().filter_map(|piece| piece.data.clone()).collect();
            assert_eq!(events, expected, "{chunks:?}");
            assert!(reader.resumable);
            // An event that only the end of the stream ends is still seen.
            let rest = reader.rest().unwrap();
            assert_eq!(rest.data.as_deref(), Some(&b"cut"[..]));
            pieces.push(rest);
            assert_eq!(pieces.into_iter().flat_map(|piece| piece.raw).collect::<Vec<u8>>(), stream);
        };
        for cut in 0..stream.len() {
            check(&[&stream[..cut], &stream[cut..]]);
        }
        check(&stream.chunks(1).collect::<Vec<_>>());
    }

    /// A reader may wait for the line feed behind a carriage return, and a comment keeps a connection alive.
    #[test]
    fn nothing_is_held_back_that_ends_something() {
        let mut reader = Reader::default();
        for chunk in ["data: x\r\n\r\n", "\n", ": still here\r\n", "\r\n"] {
            let raw: Vec<u8> = reader.push(chunk.as_bytes()).into_iter().flat_map(|piece| piece.raw).collect();
            assert_eq!(raw, chunk.as_bytes());
        }
        assert_eq!(reader.push(b"data: x\n"), vec![]);
    }

    #[test]
    fn an_event_with_other_data_keeps_its_id() {
        let raw = b"\xef\xbb\xbfid: 7\r\nevent: message\r\ndata: a\ndata:b\n: comment\nretry: 5\r\r";
        let other = with_data(raw, b"{\"x\":\n1}");
        assert_eq!(other, b"id: 7\nevent: message\n: comment\nretry: 5\ndata: {\"x\":\ndata: 1}\n\n");
        let pieces = Reader::default().push(&other);
        let read = pieces.last().unwrap();
        assert_eq!((read.data.as_deref(), read.id.as_deref()), (Some(&b"{\"x\":\n1}"[..]), Some(&b"7"[..])));
    }

    #[test]
    fn an_event_under_another_id_keeps_its_data() {
        let raw = b"id: 7\r\nevent: message\r\nid:8\r\ndata: a\r\ndata:b\r\n\r\n";
        assert_eq!(with_id(raw, Some("a__8")), b"id: a__8\nevent: message\ndata: a\ndata:b\n\n");
        assert_eq!(with_id(raw, None), b"event: message\ndata: a\ndata:b\n\n");
        // What only says from where the stream may be taken up again.
        assert_eq!(with_id(b"id: 7\ndata:\n\n", Some("x")), b"id: x\ndata:\n\n");
    }

    #[test]
    fn a_message_with_a_carriage_return_is_one_event() {
        assert_eq!(event(b"{}"), &b"event: message\ndata: {}\n\n"[..]);
        let pieces = Reader::default().push(&event(b"{\r\r\"id\":1}"));
        assert_eq!((pieces.len(), pieces[0].data.as_deref()), (1, Some(&b"{\n\n\"id\":1}"[..])));
    }

    #[test]
    fn a_byte_order_mark_hides_no_event() {
        let pieces = Reader::default().push(b"\xef\xbb\xbfdata: x\n\n");
        assert_eq!(pieces[0].data.as_deref(), Some(&b"x"[..]));
    }

    #[test]
    fn an_endless_event_takes_no_endless_memory_and_ends_the_reading() {
        let mut reader = Reader::default();
        let chunk = [b'a'; 1 << 20];
        assert_eq!(reader.push(b"data: x\n\ndata: ")[0].data.as_deref(), Some(&b"x"[..]));
        for pushed in 1..40 {
            assert_eq!(reader.push(&chunk), []);
            assert_eq!(reader.over_limit, pushed >= EVENT_BYTES_MAX >> 20);
            assert!(reader.line.len() + reader.data.len() + reader.raw.len() <= 2 * EVENT_BYTES_MAX);
        }
        assert_eq!(reader.push(b"\n\ndata: y\n\n"), []);
        assert_eq!(reader.rest(), None);
    }
}
