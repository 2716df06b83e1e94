//! Whether an MCP server answers, for `gateway-shim check`: asks what it speaks and calls nothing.
//!
//! What must hold: it sends what any client sends first, `server/discover` or `initialize`, and ends a session that it began; it
//! waits so long and no longer; no secret and nothing that the server says but numbers is in what it tells.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use custody::id::MemberId;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::{credential::Credentials, tls};
use crate::config::ServerConfig;

/// How long one answer may take.
const WAIT: Duration = Duration::from_secs(10);
/// Bytes of an answer that are read: to say hello a server needs a few thousand.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const DISCOVER: &str = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"custody-check","version":"1"}}}}"#;
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"custody-check","version":"1"}}}"#;

type Http = Client<hyper_rustls::HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What one question came to.
struct Answered {
    status: StatusCode,
    session: Option<HeaderValue>,
    /// It is a result, and no error.
    result: bool,
}

/// Asks a server over HTTP what it speaks.
///
/// # Errors
/// Why it cannot be used, in words, with the next move.
pub async fn probe(name: &str, url: &str, config: &ServerConfig) -> Result<&'static str, String> {
    let first = |faults: crate::config::Faults| faults.0.join("; ");
    let credentials = Credentials::of(name, config).map_err(first)?;
    // Nobody has this id: the server's own secret, if it has one for all.
    let credential = credentials.and_then(|credentials| credentials.header(MemberId([0; 16])).ok());
    let uri: hyper::Uri = url.parse().map_err(|_| "its url is no URL; hint: servers.NAME.url".to_owned())?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(WAIT));
    let https = uri.scheme_str() == Some("https");
    let connector = tls::connector(&format!("servers.{name}"), http, https, config.ca.as_deref()).map_err(first)?;
    let client: Http = Client::builder(TokioExecutor::new()).build(connector);
    let asked = ask(&client, &uri, credential.as_ref(), DISCOVER, "server/discover").await?;
    if asked.status.is_success() && asked.result {
        return Ok("answers, without sessions (2026-07-28 and later)");
    }
    refused(asked.status, credential.is_some())?;
    let begun = ask(&client, &uri, credential.as_ref(), INITIALIZE, "initialize").await?;
    if let Some(session) = &begun.session {
        end(&client, &uri, credential.as_ref(), session).await;
    }
    refused(begun.status, credential.is_some())?;
    match begun.status.is_success() && begun.result {
        true => Ok("answers, with sessions (up to 2025-11-25)"),
        false => Err(format!(
            "it answers neither server/discover nor initialize as an MCP server does (HTTP {}, {}); hint: is the path in its url right? \
             /mcp and / are common",
            asked.status.as_u16(),
            begun.status.as_u16()
        )),
    }
}

fn refused(status: StatusCode, has_credential: bool) -> Result<(), String> {
    if ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
        return Ok(());
    }
    let hint = match has_credential {
        true => "hint: is the secret that credential names still good there?",
        false => "hint: it wants to know who calls: servers.NAME.credential",
    };
    Err(format!("it refuses the shim (HTTP {}); {hint}", status.as_u16()))
}

fn request(
    method: Method,
    uri: &hyper::Uri,
    credential: Option<&(HeaderName, HeaderValue)>,
    body: &'static str,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from_static(body.as_bytes())));
    *request.method_mut() = method;
    *request.uri_mut() = uri.clone();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    if let Some((name, value)) = credential {
        headers.insert(name.clone(), value.clone());
    }
    request
}

async fn ask(
    client: &Http,
    uri: &hyper::Uri,
    credential: Option<&(HeaderName, HeaderValue)>,
    body: &'static str,
    method: &'static str,
) -> Result<Answered, String> {
    let mut request = request(Method::POST, uri, credential, body);
    if method == "server/discover" {
        let headers = request.headers_mut();
        headers.insert("mcp-protocol-version", HeaderValue::from_static("2026-07-28"));
        headers.insert("mcp-method", HeaderValue::from_static(method));
    }
    let hint = "hint: does it run, and is its url right?";
    let told = async {
        let answer = client.request(request).await.map_err(|why| {
            let causes = std::iter::successors(Some(&why as &dyn std::error::Error), |why| why.source());
            let last = causes.last().map(ToString::to_string).unwrap_or_default();
            format!("it cannot be reached: {last}; {hint}")
        })?;
        let (status, session) = (answer.status(), answer.headers().get("mcp-session-id").cloned());
        let mut body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let mut seen: Vec<u8> = Vec::new();
        // A stream may stay open behind its answer.
        while let Some(Ok(frame)) = body.frame().await {
            seen.extend(frame.into_data().unwrap_or_default());
            if holds(&seen, b"\"result\"") || holds(&seen, b"\"error\"") {
                break;
            }
        }
        Ok(Answered { status, session, result: holds(&seen, b"\"result\"") })
    };
    tokio::time::timeout(WAIT, told).await.unwrap_or_else(|_| Err(format!("it does not answer within 10 s; {hint}")))
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|at| at == part)
}

async fn end(client: &Http, uri: &hyper::Uri, credential: Option<&(HeaderName, HeaderValue)>, session: &HeaderValue) {
    let mut request = request(Method::DELETE, uri, credential, "");
    request.headers_mut().insert("mcp-session-id", session.clone());
    // A server need not take it; then the session ends by itself.
    tokio::time::timeout(WAIT, client.request(request)).await.ok();
}
