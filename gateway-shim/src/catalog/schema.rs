//! Whether the arguments of a call fit the input schema of its tool's pinned definition.
//!
//! What must hold: nothing is fetched, from a file or from the network; a schema of a server, and the arguments of a caller,
//! take a bounded time, whatever they are; what cannot be held against its schema does not fit it; what is said of a misfit
//! is a place in the schema, which are the server's words, and no value and no key of the arguments.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use super::json::{self, Unreadable};

mod cost;

/// Schemas that are kept compiled: the tools that are in use at one time, of all servers.
const COMPILED_MAX: usize = 1_024;
/// Bytes of a schema.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Bytes of arguments that are held against a schema: a text of some hundred pages.
pub const ARGUMENTS_BYTES_MAX: usize = 1 << 20;
/// Looks at a subschema, as `cost` counts them, that one check may take: each is well below a microsecond.
const LOOKS_MAX: u64 = 4_000_000;
/// Attempts of a pattern at one text, where it looks ahead or behind; without that it takes one.
const ATTEMPTS_MAX: usize = 10_000;
/// Bytes of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Why arguments do not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// They do not, because of this place in the schema: a JSON pointer.
    At(String),
    /// They are not read for certain.
    Unreadable(Unreadable),
    /// The schema cannot be used.
    Schema(&'static str),
    /// It would take too long, or they are too long.
    TooMuch,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(place) => write!(f, "the arguments do not fit the tool's input schema, at {place}"),
            Self::Unreadable(why) => write!(f, "the arguments cannot be read for certain: {why}"),
            Self::Schema(why) => write!(f, "the tool's input schema cannot be used: {why}"),
            Self::TooMuch => f.write_str("the arguments are too much to be held against the tool's input schema"),
        }
    }
}

/// A schema, ready to be used.
struct Compiled {
    validator: Validator,
    schema: Value,
    size: cost::Size,
}

/// Compiled schemas by the digest of the definition that they are of; the oldest go first.
#[derive(Default)]
pub struct Schemas(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    by_digest: BTreeMap<[u8; 32], Arc<Result<Compiled, &'static str>>>,
    order: VecDeque<[u8; 32]>,
}

impl Schemas {
    /// Holds arguments against the input schema of the definition with this digest; a call without arguments has none, `{}`.
    ///
    /// # Errors
    /// [`Misfit`].
    pub fn check(&self, digest: [u8; 32], schema: &str, arguments: Option<&str>) -> Result<(), Misfit> {
        let compiled = self.compiled(digest, schema);
        let compiled = compiled.as_ref().as_ref().map_err(|why| Misfit::Schema(why))?;
        let arguments = arguments.unwrap_or("{}");
        if arguments.len() > ARGUMENTS_BYTES_MAX {
            return Err(Misfit::TooMuch);
        }
        json::canonical(arguments).map_err(Misfit::Unreadable)?;
        let arguments: Value = serde_json::from_str(arguments)
            .map_err(|_| Misfit::Unreadable(Unreadable("a number in it is too great")))?;
        let looks = match compiled.size {
            cost::Size::Unfolded(size) => size.saturating_mul(count(&arguments)),
            cost::Size::Endless => cost::looks(&compiled.schema, &arguments).unwrap_or(u64::MAX),
        };
        if looks > LOOKS_MAX {
            return Err(Misfit::TooMuch);
        }
        // Bound to a variable: the error borrows the arguments.
        let misfit = compiled.validator.validate(&arguments).err().map(|error| error.schema_path().to_string());
        misfit.map_or(Ok(()), |place| Err(Misfit::At(if place.is_empty() { "/".to_owned() } else { place })))
    }

    fn compiled(&self, digest: [u8; 32], schema: &str) -> Arc<Result<Compiled, &'static str>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().by_digest.get(&digest) {
            return Arc::clone(known);
        }
        let compiled = Arc::new(compile(schema));
        let mut kept = lock();
        if kept.by_digest.insert(digest, Arc::clone(&compiled)).is_none() {
            kept.order.push_back(digest);
        }
        while kept.order.len() > COMPILED_MAX {
            let oldest = kept.order.pop_front();
            oldest.map(|oldest| kept.by_digest.remove(&oldest));
        }
        compiled
    }
}

fn compile(schema: &str) -> Result<Compiled, &'static str> {
    if schema.len() > SCHEMA_BYTES_MAX {
        return Err("it is longer than 64 KiB");
    }
    let schema: Value = serde_json::from_str(schema).map_err(|_| "it is not JSON, or a number in it is too great")?;
    let size = cost::size(&schema)?;
    let patterns = PatternOptions::fancy_regex().backtrack_limit(ATTEMPTS_MAX).size_limit(PATTERN_BYTES_MAX);
    let options = jsonschema::options().offline().with_pattern_options(patterns.dfa_size_limit(PATTERN_BYTES_MAX));
    let validator = options.build(&schema).map_err(|_| "it is no JSON schema, or refers to what is not in it")?;
    Ok(Compiled { validator, schema, size })
}

/// How many values there are.
fn count(value: &Value) -> u64 {
    let mut left = vec![value];
    let mut count = 0;
    while let Some(value) = left.pop() {
        count += 1;
        match value {
            Value::Array(values) => left.extend(values),
            Value::Object(values) => left.extend(values.values()),
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests;
