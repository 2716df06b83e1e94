//! Which headers pass between a client and a server, and what the body of an answer is. Pure.
//!
//! What must hold: a header that is not named here stays here, so that nobody says who they are, or what their words mean, past
//! the shim; the body of an answer is read by the client exactly as it was read here: as JSON or as events, in UTF-8, not
//! compressed. Every other body does not pass.

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::SESSION;
use crate::{forensic, serve::LAST_EVENT};

/// Of a request, besides MCP's own.
const OF_REQUEST: [&str; 6] = ["accept", LAST_EVENT, "traceparent", "tracestate", "baggage", "user-agent"];
/// Of an answer, besides MCP's own. What a redirection says stays here: a client that followed it with the member's token would
/// call what nobody decided on.
const OF_ANSWER: [&str; 5] = ["allow", "cache-control", forensic::HEADER, "retry-after", "x-accel-buffering"];
/// How MCP's own headers begin; intermediaries pass on those that they do not know.
const OF_MCP: &str = "mcp-";

/// What the body of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// JSON, in UTF-8.
    Json,
    /// Events, in UTF-8.
    Events,
    /// Two readers might read it differently.
    Other,
}

impl Content {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
        let Some(said) = single(headers, header::CONTENT_TYPE.as_str()) else { return Self::Other };
        if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
            return Self::Other;
        }
        let mut parts = said.split(';').map(|part| part.trim().to_ascii_lowercase());
        let essence = parts.next().unwrap_or_default();
        let mut charsets = parts.filter_map(|part| {
            Some(part.split_once('=')?.1.trim_matches('"').to_owned()).filter(|_| part.starts_with("charset"))
        });
        if !charsets.all(|charset| charset == "utf-8" || charset == "utf8") {
            return Self::Other;
        }
        match essence.as_str() {
            "application/json" => Self::Json,
            "text/event-stream" => Self::Events,
            _ => Self::Other,
        }
    }

    /// As the client is told.
    fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Json => Some(HeaderValue::from_static("application/json")),
            Self::Events => Some(HeaderValue::from_static("text/event-stream")),
            Self::Other => None,
        }
    }
}

/// A header that stands once, in visible characters.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// What of a client's request goes to the server. A body is JSON in UTF-8, for it was read as that.
pub(super) fn of_request(method: &Method, headers: &HeaderMap) -> HeaderMap {
    let mut out = passing(headers, &OF_REQUEST);
    if method == Method::POST {
        out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    out
}

/// What of a server's answer goes to the client, with a body that is this.
pub(super) fn of_answer(headers: &HeaderMap, content: Content) -> HeaderMap {
    let mut out = passing(headers, &OF_ANSWER);
    if single(headers, SESSION).is_none() {
        out.remove(SESSION);
    }
    if let Some(value) = content.header() {
        out.insert(header::CONTENT_TYPE, value);
    }
    out
}

/// Names of headers that are of one connection alone, as its other end says.
fn of_connection(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
}

/// Whether a client would have the server not read what it is decided by here: both must read the same request.
pub(in super::super) fn keeps_back(headers: &HeaderMap) -> bool {
    let is_known = |name: String| name.starts_with(OF_MCP) || OF_REQUEST.contains(&name.as_str());
    of_connection(headers).any(is_known)
        || headers.get_all(header::CONNECTION).iter().any(|value| value.to_str().is_err())
}

fn passing(headers: &HeaderMap, known: &[&str]) -> HeaderMap {
    let about_connection: Vec<String> = of_connection(headers).collect();
    let passes = |name: &HeaderName| {
        let name = name.as_str();
        (name.starts_with(OF_MCP) || known.contains(&name)) && !about_connection.iter().any(|kept| kept == name)
    };
    let mut out = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
        out.append(name.clone(), value.clone());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &[u8])]) -> HeaderMap {
        let one = |(name, value): &(&str, &[u8])| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap())
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn a_body_is_what_every_reader_takes_it_for() {
        for (said, content) in [
            (&b"application/json"[..], Content::Json),
            (b"Application/JSON; charset=UTF-8", Content::Json),
            (b"text/event-stream;charset=\"utf-8\"", Content::Events),
            (b"text/event-stream; charset=utf-7", Content::Other),
            (b"application/json; charset=utf-8; charset=utf-16", Content::Other),
            (b"application/json; charset = utf-16", Content::Other),
            (b"application/json; x=\xe9", Content::Other),
            (b"text/plain", Content::Other),
            (b"", Content::Other),
        ] {
            assert_eq!(Content::of(&headers(&[("content-type", said)])), content, "{}", said.escape_ascii());
        }
        let json = ("content-type", &b"application/json"[..]);
        assert_eq!(Content::of(&headers(&[json, ("content-encoding", b"identity")])), Content::Json);
        assert_eq!(Content::of(&headers(&[json, ("content-encoding", b"gzip")])), Content::Other);
        assert_eq!(Content::of(&headers(&[json, json])), Content::Other);
        assert_eq!(Content::of(&headers(&[])), Content::Other);
    }

    #[test]
    fn nothing_that_is_decided_by_is_kept_from_the_server() {
        for (said, keeps) in [
            (&b"keep-alive, TE"[..], false),
            (b"keep-alive, Mcp-Session-Id", true),
            (b"MCP-Protocol-Version", true),
            (b"close,last-event-id", true),
            (b"mcp-method\xff", true),
        ] {
            assert_eq!(keeps_back(&headers(&[("connection", said)])), keeps, "{}", said.escape_ascii());
        }
        assert!(keeps_back(&headers(&[("connection", b"close"), ("connection", b"mcp-name")])));
    }

    #[test]
    fn a_header_that_is_not_known_stays_here() {
        let came = headers(&[
            ("accept", b"application/json"),
            ("mcp-param-tenant", b"a"),
            ("mcp-hop", b"b"),
            ("connection", b"keep-alive, Mcp-Hop"),
            ("content-type", b"application/json; charset=utf-7"),
            ("content-encoding", b"gzip"),
            ("authorization", b"Bearer secret"),
            ("cookie", b"session=1"),
            ("x-forwarded-user", b"admin"),
            ("x-http-method-override", b"DELETE"),
            ("origin", b"https://example.org"),
        ]);
        let goes = of_request(&Method::POST, &came);
        let mut names: Vec<_> = goes.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "content-type", "mcp-param-tenant"]);
        assert_eq!(single(&goes, "content-type"), Some("application/json"));
        let answer = headers(&[
            ("location", b"/mcp/files"),
            ("set-cookie", b"a=b"),
            ("www-authenticate", b"Bearer"),
            ("mcp-session-id", b"one"),
            ("mcp-session-id", b"two"),
            ("content-type", b"text/event-stream; charset=utf-8"),
        ]);
        let passes = of_answer(&answer, Content::Events);
        assert_eq!(passes.len(), 1);
        assert_eq!(single(&passes, "content-type"), Some("text/event-stream"));
    }
}
