//! The syntax tree of a question, and the norm of what it means.

use super::{Facts, Field};
use crate::access::fits;

/// What is asked of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// All of these hold; of none, everything matches.
    All(Vec<Self>),
    /// One of these holds; of none, nothing matches.
    Any(Vec<Self>),
    /// It does not hold.
    Not(Box<Self>),
    /// A field is as wanted.
    Test(Test),
}

/// One field, and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Test {
    /// Which.
    pub field: Field,
    /// What.
    pub want: Want,
}

/// What is wanted of a field. A field that a record does not have is none of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// The record has it; of a flag, that it holds.
    Present,
    /// It has one of these texts.
    Texts(Vec<Text>),
    /// Its number is in one of these ranges, both ends included.
    Numbers(Vec<(u64, u64)>),
}

/// A text that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Text {
    /// This one.
    Exact(String),
    /// One that the pattern fits: each `*` stands for any bytes, also none.
    Pattern(String),
}

impl Text {
    /// Whether it is this one.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == text,
            Self::Pattern(pattern) => fits(pattern, text),
        }
    }
}

impl Expr {
    /// Matches every record.
    pub const EVERYTHING: Self = Self::All(Vec::new());

    /// A test.
    pub fn test(field: Field, want: Want) -> Self {
        Self::Test(Test { field, want })
    }

    /// Whether a record is as asked. This is what a question means; every other way to answer it must give the same.
    pub fn matches(&self, facts: &Facts) -> bool {
        match self {
            Self::All(all) => all.iter().all(|expr| expr.matches(facts)),
            Self::Any(any) => any.iter().any(|expr| expr.matches(facts)),
            Self::Not(expr) => !expr.matches(facts),
            Self::Test(test) => test.matches(facts),
        }
    }

    /// Least and greatest number that a field can have in a record that matches, as far as the question says so without a *not*.
    pub fn bounds(&self, field: Field) -> (u64, u64) {
        let all = (u64::MIN, u64::MAX);
        match self {
            Self::All(exprs) => exprs
                .iter()
                .map(|expr| expr.bounds(field))
                .fold(all, |(least, most), (from, to)| (least.max(from), most.min(to))),
            Self::Any(exprs) => {
                let each = exprs.iter().map(|expr| expr.bounds(field));
                each.reduce(|(least, most), (from, to)| (least.min(from), most.max(to))).unwrap_or(all)
            }
            Self::Test(Test { field: of, want: Want::Numbers(ranges) }) if *of == field => {
                let least = ranges.iter().map(|(least, _)| *least).min();
                let most = ranges.iter().map(|(_, most)| *most).max();
                least.zip(most).unwrap_or(all)
            }
            Self::Test(_) | Self::Not(_) => all,
        }
    }
}

impl Test {
    fn matches(&self, facts: &Facts) -> bool {
        match &self.want {
            Want::Present => facts.has(self.field),
            Want::Texts(texts) => facts.texts(self.field).any(|text| texts.iter().any(|wanted| wanted.fits(text))),
            Want::Numbers(ranges) => facts
                .number(self.field)
                .is_some_and(|number| ranges.iter().any(|(least, most)| (*least..=*most).contains(&number))),
        }
    }
}
