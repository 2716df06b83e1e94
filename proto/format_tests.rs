//! The tables of `docs/FORMAT.md` say what the contract says: each message with its tags, names, types, presence and limits,
//! each enum with its numbers and names. Who writes another verifier reads them and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::strict::{Field, Kind, Message, Presence, Text, table};

/// Greatest time, 9999-12-31T23:59:59.999999Z: such a limit is called `time`.
const TIME_MAX_US: u64 = 253_402_300_799_999_999;

/// Every number of the contract, as the build lists it: by message and tag, kind and oneof.
struct Numbers {
    fields: BTreeMap<(String, u32), (String, String)>,
    enums: BTreeMap<String, Vec<String>>,
}

fn numbers() -> Numbers {
    let mut out = Numbers { fields: BTreeMap::new(), enums: BTreeMap::new() };
    for line in include_str!(concat!(env!("OUT_DIR"), "/numbers.txt")).lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["message", message, tag, _, kind, .., label] => {
                let at = ((*message).to_owned(), tag.parse().unwrap());
                out.fields.insert(at, ((*kind).to_owned(), (*label).to_owned()));
            }
            ["enum", of, number, name] if number.parse::<u32>().unwrap() > 0 => {
                let short = name.strip_prefix(&format!("{}_", upper_snake(of))).unwrap_or(name);
                let rows = out.enums.entry((*of).to_owned()).or_default();
                rows.push(format!("{} | `{short}`", number.parse::<u32>().unwrap()));
            }
            _ => {}
        }
    }
    out
}

fn upper_snake(name: &str) -> String {
    let letter = |(at, letter): (usize, char)| {
        let divided = at > 0 && letter.is_ascii_uppercase();
        [divided.then_some('_'), Some(letter.to_ascii_uppercase())].into_iter().flatten()
    };
    name.char_indices().flat_map(letter).collect()
}

/// A field's row, as far as the contract says it: all but its meaning.
fn row(of: &Message, field: &Field, numbers: &Numbers) -> String {
    let (declared, label) = &numbers.fields[&(of.name.to_owned(), field.tag)];
    let repeated = matches!(field.presence, Presence::Repeated { .. });
    let kind = match &field.kind {
        Kind::Version => "version".to_owned(),
        Kind::Integer { .. } if repeated => format!("{declared}, packed"),
        Kind::Enum { .. } => format!("enum `{declared}`"),
        Kind::Message(inner) => format!("message `{}`", inner.name),
        _ => declared.clone(),
    };
    let presence = match field.presence {
        Presence::Required => "required".to_owned(),
        Presence::Implicit => "implicit".to_owned(),
        Presence::Optional => "optional".to_owned(),
        Presence::Repeated { count } => format!("repeated, at most {count}"),
        Presence::OneOf { required: true, .. } => format!("oneof `{label}`"),
        Presence::OneOf { required: false, .. } => format!("oneof `{label}` (may be absent)"),
    };
    let natural = if declared == "uint32" { u64::from(u32::MAX) } else { u64::MAX };
    let length =
        |min: u64, max: u64| if min == max { format!("{max} bytes") } else { format!("{} to {max} bytes", min.max(1)) };
    let limits = match &field.kind {
        Kind::Version => "1".to_owned(),
        Kind::Integer { max } if *max == TIME_MAX_US => "time".to_owned(),
        Kind::Integer { max } if *max != natural => format!("at most {max}"),
        Kind::Bytes { min, max } => length(*min, *max),
        Kind::Text { min, max, text } => match text {
            Text::Utf8 => length(*min, *max),
            Text::Token => format!("{}, token", length(*min, *max)),
            Text::Pattern => format!("{}, pattern", length(*min, *max)),
        },
        _ => String::new(),
    };
    format!("{} | `{}` | {kind} | {presence} | {limits}", field.tag, field.name)
}

/// The rows under each heading `**...**` in bold, without the column that says the meaning.
fn tables() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FORMAT.md");
    let (mut tables, mut heading) = (BTreeMap::<String, Vec<String>>::new(), None);
    for line in fs::read_to_string(path).unwrap().lines() {
        if let Some(rest) = line.strip_prefix("**") {
            heading = rest.split_once("**").map(|(name, _)| name.to_owned());
            let known = heading.iter().any(|name| tables.insert(name.clone(), Vec::new()).is_some());
            assert!(!known, "FORMAT.md has {heading:?} twice");
        } else if line.starts_with('#') {
            heading = None;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let is_row = line.starts_with('|') && cells[0].parse::<u32>().is_ok();
        if let (Some(name), true) = (&heading, is_row) {
            tables.get_mut(name).unwrap().push(cells[..cells.len() - 1].join(" | "));
        }
    }
    tables
}

#[test]
fn the_tables_of_format_md_are_the_contract() {
    let (numbers, mut tables) = (numbers(), tables());
    let mut enums = BTreeSet::new();
    for of in table::ALL {
        let expected: Vec<String> = of.fields.iter().map(|field| row(of, field, &numbers)).collect();
        let found = tables.remove(&format!("`{}`", of.name)).unwrap_or_else(|| panic!("FORMAT.md has no {}", of.name));
        assert_eq!(found, expected, "the table of {}", of.name);
        let of_enum = |field: &&Field| matches!(field.kind, Kind::Enum { .. });
        let fields = of.fields.iter().filter(of_enum);
        enums.extend(fields.map(|field| numbers.fields[&(of.name.to_owned(), field.tag)].0.clone()));
    }
    for of in &enums {
        let found = tables.remove(&format!("enum `{of}`")).unwrap_or_else(|| panic!("FORMAT.md has no enum {of}"));
        assert_eq!(found, numbers.enums[of], "the enum {of}");
    }
    let strange: Vec<_> = tables.iter().filter(|(name, _)| name.contains('`')).collect();
    assert!(strange.is_empty(), "FORMAT.md describes what the contract does not have: {strange:?}");
}
