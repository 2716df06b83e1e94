//! JSON read strictly, with the place of each value in its text; and its canonical form, whose digest is a definition's. Pure.
//!
//! What must hold: of an object in which a key stands twice nothing is taken, because two readers might take two different
//! values; a text has one canonical form, and texts that mean different things have different ones.

use std::{fmt::Write as _, ops::Range};

use serde::{
    Deserializer as _,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Objects and arrays within one another that are read: each is a call of a function, and no schema that people write
/// comes near.
pub const DEPTH_MAX: usize = 64;

/// Why a text is not read: for people, with no word of the text itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable(pub &'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unreadable {}

const TWICE: Unreadable = Unreadable("a key stands twice in one object");
const NO_JSON: Unreadable = Unreadable("it is not JSON, or a text in it is not Unicode");

/// Keys and values of an object, in its order.
type Members<'a> = Vec<(String, &'a RawValue)>;

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            members.push((key, map.next_value()?));
        }
        let mut keys: Vec<&str> = members.iter().map(|(key, _): &(String, _)| key.as_str()).collect();
        keys.sort_unstable();
        match keys.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            true => Err(A::Error::custom(TWICE.0)),
            false => Ok(members),
        }
    }
}

/// What an object holds.
///
/// # Errors
/// [`Unreadable`]: it is none, or a key stands twice.
pub fn members(text: &str) -> Result<Members<'_>, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let read = deserializer.deserialize_map(Object);
    let read = read.and_then(|members| deserializer.end().map(|()| members));
    read.map_err(|error| if error.to_string().starts_with(TWICE.0) { TWICE } else { NO_JSON })
}

/// What an array holds.
///
/// # Errors
/// [`Unreadable`]: it is none.
pub fn elements(text: &str) -> Result<Vec<&RawValue>, Unreadable> {
    serde_json::from_str(text).map_err(|_| NO_JSON)
}

/// A text as JSON spells it.
///
/// # Errors
/// [`Unreadable`]: it is none.
pub fn text(value: &RawValue) -> Result<String, Unreadable> {
    serde_json::from_str(value.get()).map_err(|_| NO_JSON)
}

/// The value under a key that may be spelt in one way only: another reader may take no notice of the case of its letters.
///
/// # Errors
/// [`Unreadable`]: a key is this one but for the case of its letters.
pub fn value<'a>(members: &[(String, &'a RawValue)], known: &str) -> Result<Option<&'a RawValue>, Unreadable> {
    let mut found = None;
    for (key, value) in members {
        if key == known {
            found = Some(*value);
        } else if crate::mcp::envelope::is_alike(known, key) {
            return Err(Unreadable("a key is a known one but for the case of its letters"));
        }
    }
    Ok(found)
}

/// Where a part stands in the text that it was read from.
pub fn place(whole: &str, part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let range = start..start.checked_add(part.len())?;
    (range.end <= whole.len()).then_some(range)
}

/// The canonical form: no white space; keys in the order of their bytes; texts with no escape but those that JSON demands;
/// numbers, `true`, `false` and `null` as they were spelt.
///
/// # Errors
/// [`Unreadable`]: also when a key stands twice at any depth, or the depth is beyond [`DEPTH_MAX`].
pub fn canonical(text: &str) -> Result<String, Unreadable> {
    let mut out = String::with_capacity(text.len());
    canonical_value(text.trim_ascii(), 0, &mut out)?;
    Ok(out)
}

fn canonical_value(text: &str, depth: usize, out: &mut String) -> Result<(), Unreadable> {
    if depth > DEPTH_MAX {
        return Err(Unreadable("its objects and arrays stand deeper than 64 in one another"));
    }
    match text.as_bytes().first() {
        Some(b'{') => {
            let mut members = members(text)?;
            members.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            out.push('{');
            for (number, (key, value)) in members.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                canonical_text(key, out)?;
                out.push(':');
                canonical_value(value.get(), depth + 1, out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            out.push('[');
            for (number, value) in elements(text)?.iter().enumerate() {
                if number > 0 {
                    out.push(',');
                }
                canonical_value(value.get(), depth + 1, out)?;
            }
            out.push(']');
        }
        Some(b'"') => canonical_text(&serde_json::from_str::<String>(text).map_err(|_| NO_JSON)?, out)?,
        _ => {
            let known: &RawValue = serde_json::from_str(text).map_err(|_| NO_JSON)?;
            out.push_str(known.get());
        }
    }
    Ok(())
}

fn canonical_text(text: &str, out: &mut String) -> Result<(), Unreadable> {
    let spelt = serde_json::to_string(text).map_err(|_| NO_JSON)?;
    write!(out, "{spelt}").map_err(|_| NO_JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelling_does_not_change_the_canonical_form_and_every_change_of_meaning_does() {
        let one = canonical(r#"{"b": [1, 2.0, "\u0061\n"], "a":{"y":null,"x":true}}"#).unwrap();
        assert_eq!(one, r#"{"a":{"x":true,"y":null},"b":[1,2.0,"a\n"]}"#);
        assert_eq!(canonical(" {\"a\":{\"x\":true, \"y\":null},\n\"b\":[1,2.0,\"a\\u000A\"]}").unwrap(), one);
        for other in [
            r#"{"a":{"x":true,"y":null},"b":[1,2.00,"a\n"]}"#,
            r#"{"a":{"x":true,"y":null},"b":[2.0,1,"a\n"]}"#,
            r#"{"a":{"x":true},"b":[1,2.0,"a\n"]}"#,
            r#"{"a":{"x":true,"y":null},"b":[1,2.0,"a\\n"]}"#,
            r#"{"a":{"x":"true","y":null},"b":[1,2.0,"a\n"]}"#,
        ] {
            assert_ne!(canonical(other).unwrap(), one, "{other}");
        }
    }

    #[test]
    fn what_two_readers_might_read_differently_has_no_form() {
        assert_eq!(canonical(r#"{"a":[{"b":1,"\u0062":2}]}"#), Err(TWICE));
        for bad in ["{", "", "nul", "1 2", r#""\ud800""#, "{\"a\":01}", "{}{}", "[1]x"] {
            assert_eq!(canonical(bad), Err(NO_JSON), "{bad}");
        }
        let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(canonical(&deep(DEPTH_MAX)).is_ok());
        assert!(canonical(&deep(DEPTH_MAX + 1)).is_err());
        let members = members(r#"{"tools":1,"Tools":2}"#).unwrap();
        assert!(value(&members, "tools").is_err());
    }
}
