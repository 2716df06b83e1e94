//! A question as text again: what the record of a search keeps, and what binds a page to the question of the page before.
//!
//! What must hold: the text reads as the same question ([`Expr::plain`]), at any time later.

use std::fmt;

use super::{Expr, Field, Kind, Test, Text, Want, time};

impl Expr {
    /// The same question without groups of one, and with one way to say that nothing matches.
    #[must_use]
    pub fn plain(&self) -> Self {
        let each = |each: &[Self]| each.iter().map(Self::plain).collect::<Vec<_>>();
        match self {
            Self::All(all) | Self::Any(all) if all.len() == 1 => all.first().map_or(Self::EVERYTHING, Self::plain),
            Self::Any(any) if any.is_empty() => Self::Not(Box::new(Self::EVERYTHING)),
            Self::All(all) => Self::All(each(all)),
            Self::Any(any) => Self::Any(each(any)),
            Self::Not(expr) => Self::Not(Box::new(expr.plain())),
            Self::Test(test) => Self::Test(test.clone()),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, outermost: bool) -> fmt::Result {
        match self {
            Self::Test(test) => write!(f, "{test}"),
            Self::Not(expr) => {
                f.write_str("-")?;
                expr.write(f, false)
            }
            Self::All(each) => write_each(f, each, " ", outermost),
            Self::Any(each) if each.is_empty() => f.write_str("-()"),
            Self::Any(each) => write_each(f, each, " | ", outermost),
        }
    }
}

fn write_each(f: &mut fmt::Formatter<'_>, each: &[Expr], between: &str, outermost: bool) -> fmt::Result {
    if let [one] = each {
        return one.write(f, outermost);
    }
    f.write_str(if outermost { "" } else { "(" })?;
    for (at, expr) in each.iter().enumerate() {
        f.write_str(if at > 0 { between } else { "" })?;
        expr.write(f, false)?;
    }
    f.write_str(if outermost { "" } else { ")" })
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, true)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field.name();
        match &self.want {
            Want::Present if self.field.kind() == Kind::Flag => write!(f, "{field}:true"),
            Want::Present => write!(f, "has:{field}"),
            Want::Texts(texts) => {
                write!(f, "{field}:")?;
                for (at, text) in texts.iter().enumerate() {
                    write!(f, "{}{text}", if at > 0 { "," } else { "" })?;
                }
                Ok(())
            }
            Want::Numbers(ranges) => {
                write!(f, "{field}:")?;
                for (at, (least, most)) in ranges.iter().enumerate() {
                    f.write_str(if at > 0 { "," } else { "" })?;
                    if *least > 0 {
                        number(f, self.field, *least)?;
                    }
                    f.write_str("..")?;
                    if *most < u64::MAX {
                        number(f, self.field, *most)?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn number(f: &mut fmt::Formatter<'_>, field: Field, number: u64) -> fmt::Result {
    match field.kind() {
        Kind::Time => f.write_str(&time::text(number)),
        Kind::Duration => write!(f, "{number}us"),
        Kind::Size => write!(f, "{number}B"),
        _ => write!(f, "{number}"),
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => f.write_str(pattern),
            Self::Exact(text) => {
                let plain =
                    |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'@' | b'+' | b':');
                if !text.is_empty() && text.bytes().all(plain) {
                    return f.write_str(text);
                }
                f.write_str("\"")?;
                for letter in text.chars() {
                    f.write_str(if matches!(letter, '"' | '\\') { "\\" } else { "" })?;
                    write!(f, "{letter}")?;
                }
                f.write_str("\"")
            }
        }
    }
}
