//! Other ids and tokens in a message whose other bytes stay as they are.
//!
//! Several clients of one member share a process over stdio, and each counts its requests from the same number. What must
//! hold: only the values that are named here change; back and forth gives the bytes that were. Pure.

use std::{collections::HashMap, ops::Range};

use serde_json::value::RawValue;

const ID: &[&str] = &["id"];
const PROGRESS_ASKED: &[&str] = &["params", "_meta", "progressToken"];
const PROGRESS: &[&str] = &["params", "progressToken"];
const SUBSCRIPTION: &[&str] = &["params", "_meta", "io.modelcontextprotocol/subscriptionId"];
const RESULT_SUBSCRIPTION: &[&str] = &["result", "_meta", "io.modelcontextprotocol/subscriptionId"];

/// A request that goes out under another id; its progress token, if it has one, becomes the same. Gives the token as it
/// was spelt.
pub fn request(body: &[u8], id: &str) -> (Vec<u8>, Option<String>) {
    let token = find(body, PROGRESS_ASKED).and_then(|place| body.get(place));
    let token = token.and_then(|token| std::str::from_utf8(token).ok()).map(str::to_owned);
    (replace(body, &[(ID, id), (PROGRESS_ASKED, id)]), token)
}

/// An answer under the id that its request had; so is the subscription that it names.
pub fn answer(body: &[u8], raw_id: &str) -> Vec<u8> {
    replace(body, &[(ID, raw_id), (RESULT_SUBSCRIPTION, raw_id)])
}

/// A notification with the progress token and the subscription of the request that it belongs to, as they were spelt there.
pub fn notification(body: &[u8], raw_id: &str, token: Option<&str>) -> Vec<u8> {
    let mut values = vec![(SUBSCRIPTION, raw_id)];
    values.extend(token.map(|token| (PROGRESS, token)));
    replace(body, &values)
}

/// The body with other values at these places; a place that is not there stays so.
fn replace(body: &[u8], values: &[(&[&str], &str)]) -> Vec<u8> {
    let mut places: Vec<(Range<usize>, &str)> =
        values.iter().filter_map(|(path, value)| Some((find(body, path)?, *value))).collect();
    places.sort_by_key(|(place, _)| place.start);
    let (mut out, mut done) = (Vec::with_capacity(body.len() + 32), 0);
    for (place, value) in places {
        out.extend_from_slice(body.get(done..place.start).unwrap_or_default());
        out.extend_from_slice(value.as_bytes());
        done = place.end;
    }
    out.extend_from_slice(body.get(done..).unwrap_or_default());
    out
}

/// Where a value stands.
fn find(body: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let whole = std::str::from_utf8(body).ok()?;
    let mut value = whole;
    for key in path {
        let object: HashMap<String, &RawValue> = serde_json::from_str(value).ok()?;
        value = object.get(*key)?.get();
    }
    // A value of a parsed text is a part of that text.
    let start = value.as_ptr().addr() - whole.as_ptr().addr();
    Some(start..start + value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changes_but_ids_and_tokens() {
        let body =
            br#" {"params" : {"_meta":{"progressToken" : "id" , "x":1.0e+2},"arguments":{"id":7,"progressToken":7}},
            "id":  7 ,"method":"tools/call","jsonrpc":"2.0"}"#;
        let (sent, token) = request(body, "41");
        let expected =
            br#" {"params" : {"_meta":{"progressToken" : 41 , "x":1.0e+2},"arguments":{"id":7,"progressToken":7}},
            "id":  41 ,"method":"tools/call","jsonrpc":"2.0"}"#;
        assert_eq!(String::from_utf8(sent).unwrap(), String::from_utf8(expected.to_vec()).unwrap());
        assert_eq!(token.as_deref(), Some("\"id\""));
        let told = br#"{"id":41,"result":{"id":41, "n":1.0e+2}}"#;
        assert_eq!(answer(told, "\"a\\u0062\""), br#"{"id":"a\u0062","result":{"id":41, "n":1.0e+2}}"#);
    }

    #[test]
    fn a_notification_gets_what_its_request_had() {
        let progress = br#"{"method":"notifications/progress","params":{"progressToken":41,"progress":41}}"#;
        let expected = br#"{"method":"notifications/progress","params":{"progressToken":"t","progress":41}}"#;
        assert_eq!(notification(progress, "7", Some("\"t\"")), expected);
        let changed = br#"{"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":41}}}"#;
        assert_eq!(
            notification(changed, "7", None),
            br#"{"params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#
        );
    }

    #[test]
    fn what_is_not_there_stays_so() {
        let body = br#"{"id":1,"method":"ping"}"#;
        assert_eq!(request(body, "2"), (br#"{"id":2,"method":"ping"}"#.to_vec(), None));
        for odd in [&b"not JSON"[..], b"[1]", b"", b"{\"params\":[1],\"id\":{}}"] {
            let back = notification(odd, "1", Some("2"));
            assert_eq!(back, odd);
        }
    }
}
