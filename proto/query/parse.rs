//! From the text of a question to its tree (docs/QUERY.md).
//!
//! What must hold: every text gives a tree or a [`Fault`] that points into it; the tree has at most [`DEPTH_MAX`] levels and
//! [`CLAUSES_MAX`] tests, so that whoever answers does a bounded amount of work for each record; relative times become absolute
//! here, by the time that the caller gives, so that a tree means the same for ever.

use super::{
    Expr, Field, Kind, Text, Want,
    read::{Sign, Token, tokens},
    value,
};

/// Bytes of a question: some dozens of conditions, and what a record of the search keeps.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Groups within groups: more than anybody means, and far from any stack's end.
pub const DEPTH_MAX: usize = 32;
/// Values that are asked for in all: each costs a look at every record that is not indexed.
pub const CLAUSES_MAX: usize = 256;

/// Why a text is no question, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First byte of what is wrong.
    pub start: usize,
    /// Byte after it.
    pub end: usize,
    /// What is wrong, completing "the question ...".
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl Fault {
    pub(super) fn new(start: usize, end: usize, why: String, hint: impl Into<String>) -> Self {
        Self { start, end, why, hint: hint.into() }
    }

    /// The question with a line under it that shows the place, and what is wrong.
    pub fn drawn(&self, text: &str) -> String {
        // What a terminal would act on, or draw wider than one place, stands as a question mark.
        let plain = |part: &str| -> String {
            part.chars().map(|letter| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' }).collect()
        };
        let before = plain(text.get(..self.start).unwrap_or_default());
        let there = plain(text.get(self.start..self.end.max(self.start)).unwrap_or_default());
        let under = format!("{}{}", " ".repeat(before.len()), "^".repeat(there.len().max(1)));
        format!("{}\n{under}\nthe question {}\nhint: {}", plain(text), self.why, self.hint)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "understand the question at byte {}: it {} (hint: {})", self.start, self.why, self.hint)
    }
}

impl std::error::Error for Fault {}

/// Reads a question. `now_us` is what relative times count from.
///
/// # Errors
/// [`Fault`].
pub fn parse(text: &str, now_us: u64) -> Result<Expr, Fault> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, at: 0, clauses: 0, now_us, length: text.len() };
    let expr = parser.any(0)?;
    match parser.tokens.get(parser.at) {
        None => Ok(expr),
        Some(extra) => {
            let why = "has a parenthesis that nothing opened".to_owned();
            Err(Fault::new(extra.start, extra.end, why, "leave it out, or open one before"))
        }
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    clauses: usize,
    now_us: u64,
    length: usize,
}

fn is_word(token: Option<&Token>, wanted: &str) -> bool {
    matches!(token, Some(Token { sign: Sign::Word { text, quoted: false }, .. }) if text == wanted)
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<&Token> {
        let token = self.tokens.get(self.at);
        self.at = self.at.saturating_add(1);
        token
    }

    /// Alternatives, each of several conditions.
    fn any(&mut self, depth: usize) -> Result<Expr, Fault> {
        let mut begins = self.at;
        let mut each = vec![self.all(depth)?];
        while matches!(self.peek(), Some(Token { sign: Sign::Bar, .. })) || is_word(self.peek(), "OR") {
            let before = self.at == begins;
            let or = self.next().cloned();
            begins = self.at;
            each.push(self.all(depth)?);
            if let Some(or) = or.filter(|_| before || self.at == begins) {
                return Err(lonely(&or));
            }
        }
        match each.len() {
            1 => Ok(each.pop().unwrap_or(Expr::EVERYTHING)),
            _ => Ok(Expr::Any(each)),
        }
    }

    /// Conditions beside each other: all of them.
    fn all(&mut self, depth: usize) -> Result<Expr, Fault> {
        let mut all = Vec::new();
        loop {
            match self.peek() {
                None | Some(Token { sign: Sign::Close | Sign::Bar, .. }) => break,
                token if is_word(token, "OR") => break,
                token if is_word(token, "AND") => {
                    self.next();
                }
                Some(_) => all.push(self.one(depth)?),
            }
        }
        match all.len() {
            1 => Ok(all.pop().unwrap_or(Expr::EVERYTHING)),
            _ => Ok(Expr::All(all)),
        }
    }

    fn one(&mut self, depth: usize) -> Result<Expr, Fault> {
        let not = is_word(self.peek(), "NOT");
        let length = self.length;
        let Some(token) = self.next().cloned() else {
            return Err(Fault::new(
                length,
                length,
                "ends where something should follow".to_owned(),
                "say what is meant",
            ));
        };
        if depth > DEPTH_MAX {
            let why = format!("has more than {DEPTH_MAX} groups within groups");
            return Err(Fault::new(
                token.start,
                token.end,
                why,
                "take parentheses away: conditions beside each other all hold",
            ));
        }
        let below = depth.saturating_add(1);
        match token.sign {
            Sign::Minus => Ok(Expr::Not(Box::new(self.one(below)?))),
            Sign::Word { .. } if not => Ok(Expr::Not(Box::new(self.one(below)?))),
            Sign::Open => {
                let inner = self.any(below)?;
                self.close(&token)?;
                Ok(inner)
            }
            Sign::Field(ref name) => self.field(name, &token),
            Sign::Word { ref text, quoted } => {
                self.count(&token)?;
                Ok(anywhere(text, quoted))
            }
            Sign::Comma | Sign::Bar | Sign::Close => Err(lonely(&token)),
        }
    }

    fn close(&mut self, open: &Token) -> Result<(), Fault> {
        match self.next() {
            Some(Token { sign: Sign::Close, .. }) => Ok(()),
            _ => {
                let why = "has a parenthesis without its end".to_owned();
                Err(Fault::new(open.start, open.end, why, "close it with )"))
            }
        }
    }

    fn count(&mut self, token: &Token) -> Result<(), Fault> {
        self.clauses = self.clauses.saturating_add(1);
        if self.clauses > CLAUSES_MAX {
            let why = format!("asks for more than {CLAUSES_MAX} values");
            return Err(Fault::new(token.start, token.end, why, "use patterns and ranges, or ask in parts"));
        }
        Ok(())
    }

    fn field(&mut self, name: &str, token: &Token) -> Result<Expr, Fault> {
        let values = self.values(token)?;
        value::condition(name, token, &values, self.now_us)
    }

    /// The values behind a field: one, several with commas, or a group. What stands apart from the colon is something else.
    fn values(&mut self, field: &Token) -> Result<Vec<Token>, Fault> {
        let touches = self.peek().is_some_and(|value| value.start == field.end);
        let nothing = || {
            let why = "names a field and nothing that is wanted of it".to_owned();
            Fault::new(
                field.start,
                field.end,
                why,
                "write it behind the colon, as in outcome:ok; has:outcome asks whether it is there",
            )
        };
        let mut values = Vec::new();
        if !touches || !matches!(self.peek(), Some(Token { sign: Sign::Open, .. })) {
            loop {
                let value = self.next().cloned().filter(|value| matches!(value.sign, Sign::Word { .. }) && touches);
                let value = value.ok_or_else(nothing)?;
                self.count(&value)?;
                values.push(value);
                if !matches!(self.peek(), Some(Token { sign: Sign::Comma, .. })) {
                    return Ok(values);
                }
                self.next();
            }
        }
        let open = self.next().cloned();
        loop {
            match self.next().cloned() {
                Some(Token { sign: Sign::Close, .. }) if !values.is_empty() => return Ok(values),
                Some(Token { sign: Sign::Comma | Sign::Bar, .. }) => {}
                value if is_word(value.as_ref(), "OR") => {}
                Some(value) if matches!(value.sign, Sign::Word { .. }) => {
                    self.count(&value)?;
                    values.push(value);
                }
                Some(other) => {
                    let why = "has in a field's group what is no value".to_owned();
                    let hint =
                        "a group behind a field holds values alone, any of which is wanted, as in outcome:(ok timeout)";
                    return Err(Fault::new(other.start, other.end, why, hint));
                }
                None => {
                    return Err(open.as_ref().map_or_else(nothing, |open| {
                        Fault::new(
                            open.start,
                            open.end,
                            "has a parenthesis without its end".to_owned(),
                            "close it with )",
                        )
                    }));
                }
            }
        }
    }
}

fn lonely(token: &Token) -> Fault {
    let why = "has a sign with nothing beside it".to_owned();
    Fault::new(token.start, token.end, why, "write what is meant on both sides, or put the sign in quotation marks")
}

/// Fields in which a word is looked for that names none.
const ANYWHERE: [Field; 8] =
    [Field::Server, Field::Tool, Field::Method, Field::Client, Field::Rule, Field::Actor, Field::Alarm, Field::Ticket];

fn anywhere(text: &str, quoted: bool) -> Expr {
    let test = |field: &Field| {
        let text = if *field == Field::Tool { value::tool(text, quoted) } else { value::text(text, quoted) };
        Expr::test(*field, Want::Texts(vec![text]))
    };
    Expr::Any(ANYWHERE.iter().map(test).collect())
}

/// Texts that stand where an id should, and are none: names of people or workspaces, which somebody else knows.
pub fn names(expr: &Expr) -> Vec<(Field, String)> {
    let mut found = Vec::new();
    each_name(expr, &mut found);
    found.sort();
    found.dedup();
    found
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && crate::id::unhex(text).is_some()
}

/// Whether ids stand in this field, which people know by name.
pub fn is_named(field: Field) -> bool {
    matches!(field, Field::Member | Field::Owner | Field::Workspace)
}

fn each_name(expr: &Expr, found: &mut Vec<(Field, String)>) {
    match expr {
        Expr::All(each) | Expr::Any(each) => each.iter().for_each(|expr| each_name(expr, found)),
        Expr::Not(expr) => each_name(expr, found),
        Expr::Test(test) => {
            let Want::Texts(texts) = &test.want else { return };
            if is_named(test.field) {
                found.extend(texts.iter().filter_map(|text| match text {
                    Text::Exact(name) if !name.is_empty() && !is_id(name) => Some((test.field, name.clone())),
                    _ => None,
                }));
            }
        }
    }
}

/// The question with each name replaced by the ids that it stands for; by the empty text, which nothing has, if there are none.
#[must_use]
pub fn with_ids(expr: &Expr, ids: &impl Fn(Field, &str) -> Vec<String>) -> Expr {
    let each = |each: &[Expr]| each.iter().map(|expr| with_ids(expr, ids)).collect();
    match expr {
        Expr::All(all) => Expr::All(each(all)),
        Expr::Any(any) => Expr::Any(each(any)),
        Expr::Not(expr) => Expr::Not(Box::new(with_ids(expr, ids))),
        Expr::Test(test) => match &test.want {
            Want::Texts(texts) if is_named(test.field) => {
                let replaced = texts.iter().flat_map(|text| match text {
                    Text::Exact(name) if !is_id(name) => ids(test.field, name).into_iter().map(Text::Exact).collect(),
                    other => vec![other.clone()],
                });
                let mut replaced: Vec<Text> = replaced.collect();
                if replaced.is_empty() {
                    replaced.push(Text::Exact(String::new()));
                }
                Expr::test(test.field, Want::Texts(replaced))
            }
            _ => expr.clone(),
        },
    }
}

/// What a question asks for, in one word of the language.
pub(super) fn kinds(field: Field) -> &'static str {
    match field.kind() {
        Kind::Text | Kind::Unique => "a text",
        Kind::Duration => "a time span, as 2s or 100ms",
        Kind::Size => "a size, as 10kB or 1MiB",
        Kind::Number => "a number",
        Kind::Time => "a time, as 2026-11-27, 2026-11-27T10:00Z or 24h",
        Kind::Flag => "true or false",
    }
}
