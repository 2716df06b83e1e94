//! How much a check of arguments takes, known before it is begun. Pure.
//!
//! A schema of a few lines can ask for more looks than there is time for: when it names a part of itself twice at one place, and
//! that another one twice, or when it contains itself more than once. The first is seen from the schema alone; for a schema
//! that contains itself the looks at these arguments are counted: each pair of subschema and value once, so that the counting
//! takes a time that is bounded by their product. What is counted is never less than what the check takes.

use std::collections::HashMap;

use serde_json::Value;

/// Pairs of subschema and value that are counted, each with some 100 bytes of memory.
const PAIRS_MAX: usize = 200_000;
/// Calls within one another while counting.
const DEPTH_MAX: usize = 1_024;

/// Of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Its subschemas, with what each reference leads to in its place: looks at one value.
    Unfolded(u64),
    /// It contains itself.
    Endless,
}

/// Which values a subschema looks at.
enum At<'a> {
    /// The one that the schema looks at.
    Same,
    /// What stands under this key.
    Key(&'a str),
    /// All that stand in it.
    Inside,
}

const SAME: [&str; 5] = ["not", "if", "then", "else", "contentSchema"];
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const SAME_MAPS: [&str; 2] = ["dependentSchemas", "dependencies"];
const INSIDE: [&str; 7] = [
    "items",
    "additionalItems",
    "unevaluatedItems",
    "contains",
    "additionalProperties",
    "unevaluatedProperties",
    "propertyNames",
];
const INSIDE_LISTS: [&str; 2] = ["prefixItems", "items"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// The subschemas of one, and where its references lead.
fn parts<'a>(root: &'a Value, schema: &'a Value) -> Result<Vec<(At<'a>, &'a Value)>, &'static str> {
    let at = |key: &str| schema.get(key);
    if !std::ptr::eq(root, schema) && at("$id").is_some_and(Value::is_string) {
        return Err("a part of it has a name of its own ($id)");
    }
    let list = |key: &str| at(key).and_then(Value::as_array).into_iter().flatten();
    let map = |key: &str| at(key).and_then(Value::as_object).into_iter().flatten();
    let mut parts = Vec::new();
    parts.extend(SAME.iter().filter_map(|key| at(key)).map(|part| (At::Same, part)));
    parts.extend(SAME_LISTS.iter().flat_map(|key| list(key)).map(|part| (At::Same, part)));
    parts.extend(SAME_MAPS.iter().flat_map(|key| map(key)).map(|(_, part)| (At::Same, part)));
    parts.extend(map("properties").map(|(key, part)| (At::Key(key), part)));
    parts.extend(map("patternProperties").map(|(_, part)| (At::Inside, part)));
    parts.extend(INSIDE.iter().filter_map(|key| at(key)).map(|part| (At::Inside, part)));
    parts.extend(INSIDE_LISTS.iter().flat_map(|key| list(key)).map(|part| (At::Inside, part)));
    for reference in REFERENCES.iter().filter_map(|key| at(key)).filter_map(Value::as_str) {
        parts.push((At::Same, target(root, reference)?));
    }
    Ok(parts)
}

/// Where a reference leads: always within the schema.
fn target<'a>(root: &'a Value, reference: &str) -> Result<&'a Value, &'static str> {
    const NOWHERE: &str = "it refers to what is not in it";
    let fragment = reference.strip_prefix('#').ok_or(NOWHERE)?;
    if fragment.is_empty() {
        return Ok(root);
    }
    if fragment.starts_with('/') {
        // A pointer with characters that a URI has no place for is none that people write.
        return root.pointer(fragment).filter(|_| !fragment.contains('%')).ok_or(NOWHERE);
    }
    let mut left = vec![root];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(values) => {
                let is_it = |key: &str| values.get(key).and_then(Value::as_str) == Some(fragment);
                if is_it("$anchor") || is_it("$dynamicAnchor") {
                    return Ok(value);
                }
                left.extend(values.values());
            }
            _ => {}
        }
    }
    Err(NOWHERE)
}

fn address(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

/// How much a schema is.
///
/// # Errors
/// In words, why it cannot be used.
pub(super) fn size(schema: &Value) -> Result<Size, &'static str> {
    let mut known = HashMap::new();
    let unfolded = unfolded(schema, schema, 0, &mut known)?;
    Ok(unfolded.map_or(Size::Endless, Size::Unfolded))
}

/// None, if it contains itself; in `known` a part whose size is not known yet is one that is being looked at.
fn unfolded(
    root: &Value,
    schema: &Value,
    depth: usize,
    known: &mut HashMap<usize, Option<u64>>,
) -> Result<Option<u64>, &'static str> {
    if let Some(known) = known.get(&address(schema)) {
        return Ok(*known);
    }
    if depth > DEPTH_MAX {
        return Err("its parts stand deeper than 1,024 in one another");
    }
    known.insert(address(schema), None);
    let mut whole = Some(1_u64);
    for (_, part) in parts(root, schema)? {
        let part = unfolded(root, part, depth + 1, known)?;
        whole = whole.zip(part).map(|(whole, part)| whole.saturating_add(part));
    }
    known.insert(address(schema), whole);
    Ok(whole)
}

/// How many looks at a value, and at what is in it, a schema takes; none, if that is too much to count.
pub(super) fn looks(schema: &Value, value: &Value) -> Option<u64> {
    Counting { root: schema, known: HashMap::new() }.looks(schema, value, 0)
}

struct Counting<'a> {
    root: &'a Value,
    /// By the places of subschema and value; none while it is being counted.
    known: HashMap<(usize, usize), Option<u64>>,
}

impl<'a> Counting<'a> {
    fn looks(&mut self, schema: &'a Value, value: &Value, depth: usize) -> Option<u64> {
        let pair = (address(schema), address(value));
        if let Some(known) = self.known.get(&pair) {
            // Whoever comes to the same place while it is being counted goes round in a circle.
            return *known;
        }
        if depth > DEPTH_MAX || self.known.len() >= PAIRS_MAX {
            return None;
        }
        self.known.insert(pair, None);
        let mut whole = 1_u64;
        for (at, part) in parts(self.root, schema).ok()? {
            match (at, value) {
                (At::Same, _) => whole = whole.saturating_add(self.looks(part, value, depth + 1)?),
                (At::Key(key), Value::Object(values)) => {
                    let Some(value) = values.get(key) else { continue };
                    whole = whole.saturating_add(self.looks(part, value, depth + 1)?);
                }
                (At::Inside, Value::Object(values)) => {
                    for value in values.values() {
                        whole = whole.saturating_add(self.looks(part, value, depth + 1)?);
                    }
                }
                (At::Inside, Value::Array(values)) => {
                    for value in values {
                        whole = whole.saturating_add(self.looks(part, value, depth + 1)?);
                    }
                }
                _ => {}
            }
        }
        self.known.insert(pair, Some(whole));
        Some(whole)
    }
}
