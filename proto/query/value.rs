//! What is wanted of a field: texts and patterns, ranges of numbers, times and sizes, flags.

use super::{
    Expr, Field, Kind, Text, Want,
    parse::{Fault, kinds},
    read::{Sign, Token},
    time,
};

/// The condition that a name and its values stand for.
///
/// # Errors
/// [`Fault`].
pub(super) fn condition(name: &str, token: &Token, values: &[Token], now_us: u64) -> Result<Expr, Fault> {
    match name {
        "has" => {
            let present = values.iter().map(|value| {
                let (text, _) = word(value);
                Field::named(text).map(|field| Expr::test(field, Want::Present)).ok_or_else(|| unknown(text, value))
            });
            let mut present: Vec<Expr> = present.collect::<Result<_, _>>()?;
            return Ok(if present.len() == 1 { present.pop().unwrap_or(Expr::EVERYTHING) } else { Expr::Any(present) });
        }
        "since" | "until" => {
            let [value] = values else {
                let why = "has several times where one is wanted".to_owned();
                return Err(Fault::new(
                    token.start,
                    values.last().map_or(token.end, |value| value.end),
                    why,
                    "write one",
                ));
            };
            let (text, _) = word(value);
            let (first, _) = time::read(text, now_us).ok_or_else(|| not(Field::At, value))?;
            let range = if name == "since" { (first, u64::MAX) } else { (0, first.saturating_sub(1)) };
            return Ok(Expr::test(Field::At, Want::Numbers(vec![range])));
        }
        _ => {}
    }
    let field = Field::named(name).ok_or_else(|| unknown(name, token))?;
    match field.kind() {
        Kind::Flag => flag(field, values),
        Kind::Text | Kind::Unique => {
            let texts = values.iter().map(|value| one_text(field, value)).collect::<Result<_, _>>()?;
            Ok(Expr::test(field, Want::Texts(texts)))
        }
        _ => {
            let ranges = values.iter().map(|value| range(field, value, now_us)).collect::<Result<_, _>>()?;
            Ok(Expr::test(field, Want::Numbers(ranges)))
        }
    }
}

fn word(token: &Token) -> (&str, bool) {
    match &token.sign {
        Sign::Word { text, quoted } => (text, *quoted),
        _ => ("", false),
    }
}

/// How far two words are apart: letters to change, add or leave out.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut left = at.saturating_add(1);
        let mut next = vec![left];
        for (pair, wanted) in row.windows(2).zip(&other) {
            let [above_left, above] = pair else { break };
            let same = above_left.saturating_add(usize::from(letter != *wanted));
            left = same.min(above.saturating_add(1)).min(left.saturating_add(1));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

fn unknown(name: &str, token: &Token) -> Fault {
    let known = Field::ALL.iter().map(|field| field.name()).chain(["since", "until", "has"]);
    let short: String = name.chars().take(40).collect();
    let nearest = known.min_by_key(|known| distance(&short, known)).unwrap_or("tool");
    let hint = format!(
        "did you mean {nearest}? docs/QUERY.md lists the fields; a colon that is meant stands in quotation marks"
    );
    Fault::new(token.start, token.end, "names a field that there is not".to_owned(), hint)
}

fn not(field: Field, token: &Token) -> Fault {
    let why = format!("wants of {} what it cannot be: it holds {}", field.name(), kinds(field));
    Fault::new(token.start, token.end, why, format!("{} is: {}", field.name(), field.about()))
}

/// A text that is wanted; unquoted, each `*` stands for any letters.
pub(super) fn text(text: &str, quoted: bool) -> Text {
    if !quoted && text.contains('*') { Text::Pattern(text.to_owned()) } else { Text::Exact(text.to_owned()) }
}

/// A tool that is wanted: without its server, of any.
pub(super) fn tool(wanted: &str, quoted: bool) -> Text {
    match wanted.contains('/') || wanted.is_empty() {
        true => text(wanted, quoted),
        // A star that is meant cannot be told from one that is not; no tool's name has one.
        false => Text::Pattern(format!("*/{wanted}")),
    }
}

/// All texts of a field that has only some.
fn words(field: Field) -> Option<&'static [&'static str]> {
    Some(match field {
        Field::Kind => &[
            "call",
            "access_change",
            "tool_definition",
            "gateway_event",
            "directory_entry",
            "ledger_event",
            "search",
            "alarm",
            "disposition",
        ],
        Field::Decision => &["allowed", "denied"],
        Field::Phase => &["complete", "intent", "outcome"],
        Field::Mode => &["strict", "relaxed"],
        Field::Change => &["seen", "changed", "vanished"],
        Field::Severity => &["low", "medium", "high", "critical"],
        Field::Outcome => &[
            "ok",
            "tool_error",
            "rpc_error",
            "http_error",
            "transport_error",
            "timeout",
            "cancelled",
            "denied",
            "unauthenticated",
            "revoked",
            "malformed",
            "over_limit",
            "input_required",
            "deferred",
            "running",
            "unknown",
        ],
        _ => return None,
    })
}

fn one_text(field: Field, token: &Token) -> Result<Text, Fault> {
    let (wanted, quoted) = word(token);
    let found = if field == Field::Tool { tool(wanted, quoted) } else { text(wanted, quoted) };
    if let (Some(words), Text::Exact(text)) = (words(field), &found)
        && !words.contains(&text.as_str())
    {
        let why = format!("wants of {} what it never is", field.name());
        return Err(Fault::new(token.start, token.end, why, format!("it is one of: {}", words.join(", "))));
    }
    if field.kind() == Kind::Unique && matches!(found, Text::Pattern(_)) {
        let why = format!("wants a pattern of {}, which is found whole alone", field.name());
        return Err(Fault::new(token.start, token.end, why, "write the whole id"));
    }
    Ok(found)
}

fn flag(field: Field, values: &[Token]) -> Result<Expr, Fault> {
    let holds = Expr::test(field, Want::Present);
    match values {
        [value] if word(value).0 == "true" => Ok(holds),
        [value] if word(value).0 == "false" => Ok(Expr::Not(Box::new(holds))),
        other => Err(other.first().map_or_else(|| unknown(field.name(), &nowhere()), |value| not(field, value))),
    }
}

fn nowhere() -> Token {
    Token { sign: Sign::Comma, start: 0, end: 0 }
}

/// One value of a field of numbers: both ends, which are included.
fn range(field: Field, token: &Token, now_us: u64) -> Result<(u64, u64), Fault> {
    let (said, _) = word(token);
    let bad = || not(field, token);
    let value = |text: &str| number(field, text, now_us).ok_or_else(bad);
    let (least, most) = if let Some((from, to)) = said.split_once("..") {
        let least = if from.is_empty() { 0 } else { value(from)?.0 };
        (least, if to.is_empty() { u64::MAX } else { value(to)?.1 })
    } else if let Some(rest) = said.strip_prefix(">=") {
        (value(rest)?.0, u64::MAX)
    } else if let Some(rest) = said.strip_prefix("<=") {
        (0, value(rest)?.1)
    } else if let Some(rest) = said.strip_prefix('>') {
        (value(rest)?.1.checked_add(1).ok_or_else(bad)?, u64::MAX)
    } else if let Some(rest) = said.strip_prefix('<') {
        (0, value(rest)?.0.checked_sub(1).ok_or_else(bad)?)
    } else if field.kind() == Kind::Time && time::is_span(said) {
        (value(said)?.0, u64::MAX)
    } else {
        value(said)?
    };
    if least > most {
        let why = "has a range that ends before it begins".to_owned();
        return Err(Fault::new(token.start, token.end, why, "write the lesser end first"));
    }
    Ok((least, most))
}

/// First and last number that a text may stand for: a day is all its microseconds.
fn number(field: Field, text: &str, now_us: u64) -> Option<(u64, u64)> {
    let exact = |number: Option<u64>| number.map(|number| (number, number));
    match field.kind() {
        Kind::Time => time::read(text, now_us),
        Kind::Duration => exact(time::span(text)),
        Kind::Size => exact(size(text)),
        _ => exact(text.parse().ok()),
    }
}

/// A size in bytes.
fn size(text: &str) -> Option<u64> {
    let units = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    time::scaled(text, &units)
}
