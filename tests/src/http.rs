//! HTTP/1.1 as tests speak it, on bare connections: a request that is sent as it is written, and a server that answers as it is
//! told.
//!
//! What must hold: one connection carries one request; what a test says reaches the other side byte for byte, and no library
//! mends it on the way.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Headers, in their order.
pub type Headers = Vec<(String, String)>;

/// A request or an answer as it came.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// The first line.
    pub line: String,
    /// Its headers; names in lower case.
    pub headers: Headers,
    /// Its body; of one in chunks, the chunks together.
    pub body: Bytes,
}

impl Heard {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The status of an answer; 0 if the line has none.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What to answer with.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status, with its reason.
    pub status: &'static str,
    /// Headers besides the length.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// 200 with JSON.
    pub fn json(body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status: "200 OK", headers, body: body.into() }
    }

    /// 200 with a stream of events, each of one message.
    pub fn events(messages: &[String]) -> Self {
        let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
        let events: String = messages.iter().map(|message| format!("data: {message}\n\n")).collect();
        Self { status: "200 OK", headers, body: events.into() }
    }

    /// With this status instead.
    #[must_use]
    pub fn status(self, status: &'static str) -> Self {
        Self { status, ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

fn torn(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, what.to_owned())
}

/// Reads one request or answer, up to its length or, without one, to the end of the connection.
async fn hear(stream: &mut TcpStream, has_length: bool) -> io::Result<Heard> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(torn("the connection ended within a head"));
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let (line, rest) = text.split_once("\r\n").unwrap_or((&text, ""));
    let pair =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let mut heard =
        Heard { line: line.to_owned(), headers: rest.lines().filter_map(pair).collect(), ..Heard::default() };
    let mut body = bytes.split_off(head + 4);
    let length = heard.header("content-length").and_then(|length| length.parse::<usize>().ok());
    match length {
        Some(length) => {
            while body.len() < length {
                if stream.read_buf(&mut body).await? == 0 {
                    return Err(torn("the connection ended within a body"));
                }
            }
        }
        None if has_length => {}
        None => drop(stream.read_to_end(&mut body).await?),
    }
    heard.body = match heard.header("transfer-encoding") {
        Some("chunked") => whole(&body)?.into(),
        _ => body.into(),
    };
    Ok(heard)
}

/// The chunks of a body, together.
fn whole(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").ok_or_else(|| torn("a chunk has no length"))?;
        let length = std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let length = length.ok_or_else(|| torn("a chunk has no length"))?;
        if length == 0 {
            return Ok(whole);
        }
        let chunk = rest.get(end + 2..end + 2 + length).ok_or_else(|| torn("a chunk ends too early"))?;
        whole.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).ok_or_else(|| torn("a chunk ends too early"))?;
    }
}

/// One request on a connection of its own, and its answer.
///
/// # Errors
/// When the other side is not there, or goes away before its answer is whole.
pub async fn ask(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(to).await?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    hear(&mut stream, false).await
}

/// Serves for as long as the runtime lives. `answer` gives what is to be answered; nothing: the request is held until its
/// connection ends.
///
/// # Panics
/// If no port is free.
pub async fn serve<A, F>(answer: A) -> SocketAddr
where
    A: Fn(Heard) -> F + Send + Sync + 'static,
    F: Future<Output = Option<Answer>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of the loopback address");
    let (address, answer) = (listener.local_addr().expect("it is bound"), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let Ok(heard) = hear(&mut stream, true).await else { return };
                let Some(Answer { status, headers, body }) = answer(heard).await else {
                    // Whoever asked may say no more; their end is what is waited for.
                    stream.read_u8().await.ok();
                    return;
                };
                let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                // Whoever asked may be gone by now.
                stream.write_all(&[head.as_bytes(), b"\r\n", &body].concat()).await.ok();
            });
        }
    });
    address
}
