//! What the shim asks a server itself: for the list of its tools, page by page; and what of a call's body is looked at. Pure,
//! but for the asking, which is the caller's.
//!
//! It asks as whoever gave occasion for it: in the same session, where there is one, with the same credential and version. So
//! it sees what the member would, begins no session of its own, and needs no negotiation.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use serde_json::json;

use super::{
    json::{Unreadable, members, value},
    list::{Answer, Kind, List, read},
};
use crate::mcp::{
    envelope::{self, Message},
    sse,
};

/// Pages that are asked for: with the tools that are kept of one server, some hundred on each.
const PAGES_MAX: usize = 64;
/// Bytes of all pages together.
const BYTES_MAX: usize = 32 << 20;
/// First version in which each request says all that it needs.
const STATELESS_FROM: &str = "2026-07-28";

/// The body of a request for a page, of the version that is spoken; and the id under which it is answered, as it is spelt.
pub fn body(protocol: Option<&str>, cursor: Option<&str>, number: u64) -> (Bytes, String) {
    let id = json!(format!("custody-{number}"));
    let mut params = serde_json::Map::new();
    if let Some(cursor) = cursor {
        params.insert("cursor".into(), cursor.into());
    }
    if let Some(protocol) = protocol.filter(|protocol| is_stateless(protocol)) {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": protocol,
            "io.modelcontextprotocol/clientInfo": {"name": crate::PRODUCT, "version": crate::VERSION},
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        params.insert("_meta".into(), meta);
    }
    let id_spelt = id.to_string();
    let body = json!({"jsonrpc": "2.0", "id": id, "method": "tools/list", "params": params});
    (body.to_string().into(), id_spelt)
}

/// Whether a version is one in which each request says all that it needs, and lists say who may be given them again.
pub fn is_stateless(protocol: &str) -> bool {
    protocol >= STATELESS_FROM
}

/// The message that answers the request with this id, in the body of an HTTP response.
pub fn answer(is_stream: bool, body: &Bytes, id: &str) -> Option<Bytes> {
    let is_it = |message: &[u8]| {
        let id = serde_json::from_str::<String>(id).ok().map(|id| format!("s{id}"));
        matches!(envelope::parse(message), Ok(Message::Answer { id: of, .. }) if Some(&of) == id.as_ref())
    };
    if !is_stream {
        return is_it(body).then(|| body.clone());
    }
    let mut reader = sse::Reader::default();
    let mut pieces = reader.push(body);
    pieces.extend(reader.rest());
    pieces.into_iter().filter_map(|piece| piece.data).find(|data| is_it(data)).map(Bytes::from)
}

/// Asks for all pages. `ask` is given the cursor of one, and gives the message that answers it.
///
/// # Errors
/// In words, why not all of them came.
pub async fn pages<F>(mut ask: impl FnMut(Option<String>) -> F) -> Result<Vec<Arc<List>>, String>
where
    F: Future<Output = Result<Bytes, String>>,
{
    let (mut pages, mut bytes, mut cursor) = (Vec::<Arc<List>>::new(), 0, None);
    loop {
        let message = ask(cursor.take()).await?;
        bytes += message.len();
        if bytes > BYTES_MAX {
            return Err("its list is longer than 32 MiB".to_owned());
        }
        let page = match read(Kind::Tools, &message) {
            Ok(Answer::List(page)) => *page,
            Ok(Answer::Other) => return Err("it answers with no list".to_owned()),
            Err(why) => return Err(why.to_string()),
        };
        cursor = page.next_cursor.clone();
        pages.push(page.into());
        if cursor.is_none() {
            return Ok(pages);
        }
        if pages.len() == PAGES_MAX {
            return Err(format!("its list has more than {PAGES_MAX} pages"));
        }
    }
}

/// The arguments of a call, of a body that the envelope's reader has read.
///
/// # Errors
/// [`Unreadable`].
pub fn arguments(body: &[u8]) -> Result<Option<&str>, Unreadable> {
    let body = std::str::from_utf8(body).map_err(|_| Unreadable("it is not UTF-8"))?;
    let envelope = members(body)?;
    let Some(params) = value(&envelope, "params")? else { return Ok(None) };
    let params = members(params.get())?;
    Ok(value(&params, "arguments")?.map(|arguments| arguments.get()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_request_says_what_its_version_needs() {
        let (old, id) = body(Some("2025-11-25"), None, 7);
        let expected = json!({"jsonrpc": "2.0", "id": "custody-7", "method": "tools/list", "params": {}});
        assert_eq!((serde_json::from_slice::<Value>(&old).unwrap(), id.as_str()), (expected, "\"custody-7\""));
        let (new, _) = body(Some("2026-07-28"), Some("c"), 7);
        let new: Value = serde_json::from_slice(&new).unwrap();
        assert_eq!(new["params"]["cursor"], "c");
        assert_eq!(new["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
        assert!(new["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"].is_object());
        let Message::Request(read) = envelope::parse(&body(None, Some("\"\\"), 8).0).unwrap() else { panic!() };
        assert_eq!(read.method, "tools/list");
    }

    #[test]
    fn the_answer_is_found_among_what_a_server_says() {
        let message = r#"{"jsonrpc":"2.0","id":"custody-7","result":{"tools":[]}}"#;
        let stream = format!(
            "id: 1\ndata:\n\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/x\"}}\n\n\
             data: {{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{{}}}}\n\ndata: {message}\n\n"
        );
        let found =
            |is_stream, body: &str| answer(is_stream, &Bytes::copy_from_slice(body.as_bytes()), "\"custody-7\"");
        assert_eq!(found(true, &stream).as_deref(), Some(message.as_bytes()));
        assert_eq!(found(false, message).as_deref(), Some(message.as_bytes()));
        assert_eq!(found(false, &message.replace("-7", "-8")), None);
        assert_eq!(found(true, ": nothing\n\n"), None);
    }

    #[tokio::test]
    async fn all_pages_are_asked_for_and_no_more() {
        let asked = AtomicUsize::new(0);
        let page = |cursor: Option<String>| {
            let number = asked.fetch_add(1, Relaxed);
            assert_eq!(cursor, (number > 0).then(|| format!("c{number}")));
            let next = if number < 2 { format!(r#","nextCursor":"c{}""#, number + 1) } else { String::new() };
            let text = format!(r#"{{"result":{{"tools":[{{"name":"t{number}"}}]{next}}}}}"#);
            async move { Ok(Bytes::from(text)) }
        };
        let pages_read = pages(page).await.unwrap();
        let names: Vec<_> = pages_read.iter().flat_map(|page| &page.elements).map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["t0", "t1", "t2"]);
        let endless = async |_| Ok(Bytes::from_static(br#"{"result":{"tools":[],"nextCursor":"again"}}"#));
        assert!(pages(endless).await.unwrap_err().contains("64 pages"));
        let long = format!(r#"{{"result":{{"tools":[],"nextCursor":"x","x":"{}"}}}}"#, "x".repeat(12 << 20));
        let long = async |_| Ok(Bytes::from(long.clone()));
        assert!(pages(long).await.unwrap_err().contains("32 MiB"));
        let error = async |_| Ok(Bytes::from_static(br#"{"error":{"code":1}}"#));
        assert!(pages(error).await.is_err());
    }

    #[test]
    fn arguments_are_found_as_they_were_spelt() {
        let of = |params: &str| {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            arguments(body.as_bytes()).map(|arguments| arguments.map(str::to_owned))
        };
        assert_eq!(of(r#"{"name":"x","arguments": {"a" : 1.0}}"#), Ok(Some(r#"{"a" : 1.0}"#.to_owned())));
        assert_eq!(of(r#"{"name":"x"}"#), Ok(None));
        assert!(of(r#"{"arguments":{},"arguments":{}}"#).is_err());
    }
}
