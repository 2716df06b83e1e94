//! Records as lines of a file: JSON for programs, CSV for spreadsheets.

use std::fmt::Write as _;

use custody::{id::hex, query::Field, wire};
use verifier::time;

use super::{Seen, json};
use crate::tail::One;

/// Columns of a file of comma-separated values: what answers who, what, when and how it ended.
const COLUMNS: [Field; 14] = [
    Field::Kind,
    Field::Member,
    Field::Agent,
    Field::Client,
    Field::Server,
    Field::Tool,
    Field::Method,
    Field::Decision,
    Field::Outcome,
    Field::ErrorCode,
    Field::Rule,
    Field::Action,
    Field::Reason,
    Field::Trace,
];

/// What a file begins with.
pub(super) fn head(format: wire::ExportFormat) -> Vec<u8> {
    let wire::ExportFormat::Csv = format else { return Vec::new() };
    let named: Vec<&str> = COLUMNS.iter().map(|field| field.name()).collect();
    format!(
        "workspace,position,at,received_at,gateway,name,duration_us,request_bytes,response_bytes,{}\r\n",
        named.join(",")
    )
    .into_bytes()
}

/// A record's line.
pub(super) fn line(format: wire::ExportFormat, one: &One, seen: &Seen, names: &[wire::MemberName], out: &mut Vec<u8>) {
    let Some(hit) = super::answer::hit(one, seen) else { return };
    if format == wire::ExportFormat::Csv {
        out.extend_from_slice(csv(one, &hit, names).as_bytes());
    } else {
        out.extend_from_slice(json::hit(&hit, names).to_string().as_bytes());
        out.push(b'\n');
    }
}

fn csv(one: &One, hit: &wire::Hit, names: &[wire::MemberName]) -> String {
    let facts = one.batch.fact(one.index);
    let name = names.iter().find(|known| facts.texts(Field::Member).any(|member| member == hex(&known.member)));
    let number = |field: Field| facts.number(field).map_or_else(String::new, |number| number.to_string());
    let mut cells = vec![
        hit.workspace_name.clone(),
        hit.position.to_string(),
        facts.number(Field::At).map_or_else(String::new, time::text),
        time::text(hit.received_at),
        hex(&hit.gateway),
        name.map_or_else(String::new, |known| known.name.clone()),
        number(Field::Duration),
        number(Field::RequestBytes),
        number(Field::ResponseBytes),
    ];
    cells.extend(COLUMNS.iter().map(|field| facts.texts(*field).collect::<Vec<_>>().join(" ")));
    let mut line = String::new();
    for (at, text) in cells.iter().enumerate() {
        line.push_str(if at > 0 { "," } else { "" });
        cell(text, &mut line);
    }
    line.push_str("\r\n");
    line
}

/// One cell (RFC 4180). What a spreadsheet would take for a formula, and is no number, is made a text by an apostrophe.
fn cell(text: &str, out: &mut String) {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<i64>().is_err();
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) {
        write!(out, "\"{}\"", text.replace('"', "\"\"")).ok();
    } else {
        out.push_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        let as_cell = |text: &str| {
            let mut out = String::new();
            cell(text, &mut out);
            out
        };
        assert_eq!(as_cell("=1+1"), "'=1+1");
        assert_eq!(as_cell("-32602"), "-32602");
        assert_eq!(as_cell("@a,\"b\""), "\"'@a,\"\"b\"\"\"");
        assert_eq!(as_cell("github/list"), "github/list");
    }
}
