//! A message with one value exchanged, or without some elements of a list: all other bytes stay as they are. Pure.
//!
//! What must hold: only the value that is named changes; what cannot be read for certain is not changed but refused.

use std::ops::Range;

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The value under one key of an object, if the key stands once.
struct Under<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Under<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Under<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut count) = (None, 0);
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0 {
                (found, count) = (Some(map.next_value()?), count + 1);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found.filter(|_| count == 1))
    }
}

/// The value at the end of a path of keys.
pub fn value<'a>(text: &'a str, path: &[&str]) -> Option<&'a str> {
    let mut text = text.trim();
    for key in path {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        text = Under(key).deserialize(&mut deserializer).ok()??.get();
    }
    Some(text)
}

/// Where a part of a text stands in it.
fn place(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    start..start + part.len()
}

/// The message with another value at the end of a path of keys; `None` if there is none.
pub fn replace(message: &[u8], path: &[&str], with: &str) -> Option<Vec<u8>> {
    let whole = std::str::from_utf8(message).ok()?;
    let Range { start, end } = place(whole, value(whole, path)?);
    Some([message.get(..start)?, with.as_bytes(), message.get(end..)?].concat())
}

/// The elements of the list at the end of a path, each as it stands.
pub fn elements<'a>(text: &'a str, path: &[&str]) -> Option<Vec<&'a RawValue>> {
    serde_json::from_str(value(text, path)?).ok()
}

/// The answer to `tasks/list` with the tasks alone that `own` says yes to.
pub fn keep_tasks(message: &[u8], own: impl Fn(&str) -> bool) -> Option<Vec<u8>> {
    const LIST: [&str; 2] = ["result", "tasks"];
    let whole = std::str::from_utf8(message).ok()?;
    if value(whole, &["error"]).is_some() {
        return Some(message.to_vec());
    }
    let is_own = |task: &&RawValue| {
        let id = value(task.get(), &["taskId"]).and_then(|id| serde_json::from_str::<String>(id).ok());
        id.is_some_and(|id| own(&id))
    };
    let kept: Vec<&str> = elements(whole, &LIST)?.into_iter().filter(is_own).map(RawValue::get).collect();
    replace(message, &LIST, &format!("[{}]", kept.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Dice, seed};

    #[test]
    fn only_the_named_value_changes() {
        let message = br#"{ "id" : 1.0 ,"params":{"x":{"name":"no"},"name" : "a","n":1e2}, "name":"no"}"#;
        let path = ["params", "name"];
        let changed = replace(message, &path, "\"b\"").unwrap();
        assert_eq!(changed, br#"{ "id" : 1.0 ,"params":{"x":{"name":"no"},"name" : "b","n":1e2}, "name":"no"}"#);
        assert_eq!(replace(&changed, &path, "\"a\"").unwrap(), message);
        assert_eq!(replace(message, &["params", "none"], "1"), None);
        assert_eq!(replace(br#"{"a":1,"a":2}"#, &["a"], "3"), None);
        assert_eq!(replace(b"[1]", &["a"], "3"), None);
    }

    /// Whatever stands around it: another value and back is what was, and what was read is where it was written.
    #[test]
    fn there_and_back_is_what_was() {
        let seed = seed();
        let mut dice = Dice::new(seed);
        let parts = [r#""name""#, r#"{"name":"deep"}"#, "[1,{\"name\":2}]", "1.50e+3", r#""\u00e4\"name\":""#, "null"];
        for _ in 0..2_000 {
            let mut pick = || parts[usize::try_from(dice.below(parts.len() as u64)).unwrap()];
            let (before, after, inner) = (pick(), pick(), pick());
            let named = r#""there""#;
            let message =
                format!("{{\"x\":{before},\"params\": {{ \"a\":{inner}, \"name\" :{named} ,\"z\":{after}}}}}");
            let path = ["params", "name"];
            assert_eq!(value(&message, &path), Some(named), "SEED={seed} {message}");
            let other = replace(message.as_bytes(), &path, inner).unwrap();
            let back = replace(&other, &path, named).unwrap();
            assert_eq!(String::from_utf8(back).unwrap(), message, "SEED={seed}");
            assert_eq!(other.len() + named.len(), message.len() + inner.len(), "SEED={seed}");
        }
    }

    #[test]
    fn of_others_tasks_nothing_is_left() {
        let list = br#"{"jsonrpc":"2.0","id":1,"result":{"tasks":[{"taskId":"a","n":1.0}, {"taskId":"b"},{"x":1}],"nextCursor":"c"}}"#;
        let own = keep_tasks(list, |id| id == "a").unwrap();
        assert_eq!(own, br#"{"jsonrpc":"2.0","id":1,"result":{"tasks":[{"taskId":"a","n":1.0}],"nextCursor":"c"}}"#);
        assert_eq!(keep_tasks(br#"{"result":{}}"#, |_| true), None);
    }
}
