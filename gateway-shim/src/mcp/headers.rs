//! What the headers of a request repeat of its body: method, name and version (MCP 2026-07-28, Streamable HTTP). Pure.
//!
//! What must hold: it is decided on the body alone, and a request whose headers say something else goes no further, because
//! whoever is behind here might go by them. Header names are of either case, values are not.

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::envelope::Request;

/// First version without sessions, whose headers repeat the body.
pub const MODERN_FROM: &str = "2026-07-28";
/// JSON-RPC's code for headers that differ from the body.
pub const MISMATCH: i32 = -32_020;
const ENCODED: (&str, &str) = ("=?base64?", "?=");
/// Methods whose name must stand in a header, too.
const NAMED: [&str; 3] = ["tools/call", "prompts/get", "resources/read"];

/// Which of the two ways of speaking a request is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// Sessions, up to 2025-11-25.
    Legacy,
    /// None, from 2026-07-28 on.
    Modern,
}

/// A header as it came: absent, once, or in a form that two readers might read differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Header<'a> {
    /// There is none.
    #[default]
    Absent,
    /// Its value.
    Is(&'a str),
    /// It stands twice, or is no ASCII.
    Unclear,
}

/// The headers of a request that repeat its body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a> {
    /// `MCP-Protocol-Version`
    pub version: Header<'a>,
    /// `Mcp-Method`
    pub method: Header<'a>,
    /// `Mcp-Name`
    pub name: Header<'a>,
}

/// What is wrong with the headers, in words of characters that need no escape in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch(pub &'static str);

/// Whether a version is of the era without sessions.
pub fn is_modern(version: &str) -> bool {
    // Versions are dates, so they are in order as texts.
    version.len() == MODERN_FROM.len() && version >= MODERN_FROM
}

impl Headers<'_> {
    /// The era of a request without a body, or of one that is none.
    pub fn era(&self) -> Era {
        match self.version {
            Header::Is(version) if is_modern(version) => Era::Modern,
            _ => Era::Legacy,
        }
    }
}

/// Holds the headers against the body.
///
/// # Errors
/// [`Mismatch`].
pub fn check(headers: &Headers<'_>, request: &Request) -> Result<Era, Mismatch> {
    // What `initialize` asks for is not what it is sent in.
    let in_body = request.protocol.as_deref().filter(|_| request.method != "initialize");
    let modern_body = in_body.is_some_and(is_modern);
    let modern = modern_body || headers.era() == Era::Modern;
    match (headers.version, in_body) {
        (Header::Unclear, _) => return Err(Mismatch("MCP-Protocol-Version stands twice or is no ASCII")),
        (Header::Is(header), Some(body)) if header != body => {
            return Err(Mismatch("MCP-Protocol-Version is not the version in _meta of the body"));
        }
        (Header::Absent, Some(_)) if modern_body => return Err(Mismatch("MCP-Protocol-Version is missing")),
        _ => {}
    }
    match headers.method {
        Header::Unclear => return Err(Mismatch("Mcp-Method stands twice or is no ASCII")),
        Header::Is(method) if method != request.method => {
            return Err(Mismatch("Mcp-Method is not the method of the body"));
        }
        Header::Absent if modern => return Err(Mismatch("Mcp-Method is missing")),
        _ => {}
    }
    check_name(headers.name, request, modern)?;
    Ok(if modern { Era::Modern } else { Era::Legacy })
}

fn check_name(header: Header<'_>, request: &Request, modern: bool) -> Result<(), Mismatch> {
    let body = request.name.as_deref().or(request.task.as_deref());
    match (header, body) {
        (Header::Unclear, _) => Err(Mismatch("Mcp-Name stands twice or is no ASCII")),
        (Header::Is(header), Some(body)) => match decoded(header) {
            Some(name) if name == body => Ok(()),
            Some(_) => Err(Mismatch("Mcp-Name is not the name in the body")),
            None => Err(Mismatch("Mcp-Name is not Base64 of UTF-8")),
        },
        (Header::Is(_), None) => Err(Mismatch("Mcp-Name is there, and the body names nothing")),
        (Header::Absent, Some(_)) if modern && NAMED.contains(&request.method.as_str()) => {
            Err(Mismatch("Mcp-Name is missing"))
        }
        _ => Ok(()),
    }
}

/// The value of a header that may be Base64 of what does not fit one.
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix(ENCODED.0).and_then(|rest| rest.strip_suffix(ENCODED.1)) {
        Some(encoded) => String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::envelope::{self, Message};

    fn request(method: &str, params: &str) -> Request {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params}}}}}"#);
        let Ok(Message::Request(request)) = envelope::parse(body.as_bytes()) else { panic!("{body}") };
        *request
    }

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;

    fn call(name: &str) -> Request {
        request("tools/call", &format!(r#""name":"{name}",{META}"#))
    }

    fn said<'a>(version: &'a str, method: &'a str, name: &'a str) -> Headers<'a> {
        let header = |text: &'a str| if text.is_empty() { Header::Absent } else { Header::Is(text) };
        Headers { version: header(version), method: header(method), name: header(name) }
    }

    #[test]
    fn headers_that_differ_from_the_body_are_found() {
        let good = said("2026-07-28", "tools/call", "echo");
        assert_eq!(check(&good, &call("echo")), Ok(Era::Modern));
        for (headers, says) in [
            // The header names what is allowed, the body something else.
            (said("2026-07-28", "tools/call", "allowed"), "Mcp-Name is not the name"),
            (said("2026-07-28", "tools/call", "ECHO"), "Mcp-Name is not the name"),
            (said("2026-07-28", "Tools/Call", "echo"), "Mcp-Method is not"),
            (said("2026-07-28", "tools/list", "echo"), "Mcp-Method is not"),
            (said("2026-07-28", "", "echo"), "Mcp-Method is missing"),
            (said("2026-07-28", "tools/call", ""), "Mcp-Name is missing"),
            (said("", "tools/call", "echo"), "Version is missing"),
            (said("2025-11-25", "tools/call", "echo"), "Version is not"),
            (said("2026-07-28", "tools/call", "=?base64?!?="), "not Base64"),
            (Headers { name: Header::Unclear, ..good }, "Mcp-Name stands twice"),
            (Headers { method: Header::Unclear, ..good }, "Mcp-Method stands twice"),
            (Headers { version: Header::Unclear, ..good }, "Version stands twice"),
        ] {
            let Mismatch(text) = check(&headers, &call("echo")).unwrap_err();
            assert!(text.contains(says), "{headers:?}: {text}");
        }
        let nothing = check(&said("2026-07-28", "tools/list", "echo"), &request("tools/list", META));
        assert!(nothing.unwrap_err().0.contains("names nothing"));
    }

    #[test]
    fn a_name_that_does_not_fit_a_header_is_read_as_base64() {
        let headers = said("2026-07-28", "tools/call", "=?base64?bMOkc2U=?=");
        assert_eq!(check(&headers, &call("läse")), Ok(Era::Modern));
        // Only what is marked exactly so is encoded.
        let plain = said("2026-07-28", "tools/call", "=?BASE64?bMOkc2U=?=");
        assert!(check(&plain, &call("läse")).is_err());
        assert_eq!(check(&plain, &call("=?BASE64?bMOkc2U=?=")), Ok(Era::Modern));
    }

    #[test]
    fn the_era_before_needs_no_such_headers_and_may_not_lie_in_them() {
        let old = request("tools/call", r#""name":"echo""#);
        assert_eq!(check(&said("2025-11-25", "", ""), &old), Ok(Era::Legacy));
        assert_eq!(check(&Headers::default(), &old), Ok(Era::Legacy));
        assert!(check(&said("2025-11-25", "tools/call", "other"), &old).is_err());
        // It asks for a version, and is not sent in one.
        let hello = request("initialize", r#""protocolVersion":"2026-07-28""#);
        assert_eq!(check(&Headers::default(), &hello), Ok(Era::Legacy));
        // Without the version in its body the server is asked, which knows what it needs.
        let bare = request("tools/call", r#""name":"echo""#);
        assert_eq!(check(&said("2026-07-28", "tools/call", "echo"), &bare), Ok(Era::Modern));
    }
}
