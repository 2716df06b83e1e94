//! The text of a question, read letter by letter: words, values and signs, each with its place.
//!
//! What must hold: whatever the text is, the places stand at the borders of its characters, so that an error can point there.

use super::parse::{Fault, TEXT_BYTES_MAX};

/// One part of a question, and where it stands in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) sign: Sign,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Open,
    Close,
    /// `-` before something: it does not hold.
    Minus,
    Comma,
    Bar,
    /// The name of a field, up to its colon.
    Field(String),
    /// A word; quoted, its stars are no pattern.
    Word {
        text: String,
        quoted: bool,
    },
}

/// Letters that end a word.
fn ends(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '(' | ')' | ',' | '|' | '"')
}

/// Where the next word stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// It names a field, or is looked for anywhere.
    Start,
    /// Behind a field's colon, or behind a comma after such a value.
    Value,
    /// In the group behind a field.
    Group,
}

/// Takes a question apart.
///
/// # Errors
/// [`Fault`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Fault> {
    if text.len() > TEXT_BYTES_MAX {
        let why = format!("is longer than {TEXT_BYTES_MAX} bytes");
        return Err(Fault::new(0, 0, why, "ask for less at a time: ranges and patterns say much in few letters"));
    }
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = At::Start;
    let mut letters = text.char_indices().peekable();
    while let Some((start, letter)) = letters.next() {
        let touches = tokens.last().is_some_and(|token| token.end == start);
        if at == At::Value && !touches {
            at = At::Start;
        }
        let sign = match letter {
            _ if letter.is_whitespace() => continue,
            '(' => Sign::Open,
            ')' => Sign::Close,
            ',' => Sign::Comma,
            '|' => Sign::Bar,
            '"' => quoted(text, start, &mut letters)?,
            '-' if at == At::Start => Sign::Minus,
            _ => word(text, start, at != At::Start, &mut letters),
        };
        at = match (&sign, at) {
            (Sign::Field(_), _) => At::Value,
            (Sign::Open, At::Value) => At::Group,
            (Sign::Close, At::Group) => At::Start,
            (Sign::Word { .. } | Sign::Comma, At::Value) => At::Value,
            (_, At::Group) => At::Group,
            _ => At::Start,
        };
        let end = letters.peek().map_or(text.len(), |(at, _)| *at);
        tokens.push(Token { sign, start, end });
    }
    Ok(tokens)
}

type Letters<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn quoted(text: &str, start: usize, letters: &mut Letters<'_>) -> Result<Sign, Fault> {
    let mut inside = String::new();
    while let Some((_, letter)) = letters.next() {
        match letter {
            '"' => return Ok(Sign::Word { text: inside, quoted: true }),
            '\\' => inside.extend(letters.next().map(|(_, letter)| letter)),
            other => inside.push(other),
        }
    }
    let hint = "end it with \", or write \\\" for a quotation mark that is meant";
    Err(Fault::new(start, text.len(), "has a quotation mark without its end".to_owned(), hint))
}

/// A word, or a field's name if a colon ends it. A value goes on over colons: times have some.
fn word(text: &str, start: usize, is_value: bool, letters: &mut Letters<'_>) -> Sign {
    let mut end = text.len();
    while let Some((at, letter)) = letters.peek().copied() {
        if ends(letter) {
            end = at;
            break;
        }
        letters.next();
        if letter == ':' && !is_value {
            return Sign::Field(text.get(start..at).unwrap_or_default().to_owned());
        }
    }
    Sign::Word { text: text.get(start..end).unwrap_or_default().to_owned(), quoted: false }
}
