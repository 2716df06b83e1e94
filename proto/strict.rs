//! The strict wire form: one encoding for each message, checked on the bytes by a walk along a table (FORMAT.md, 2).
//!
//! The table comes from the options in `proto/custody/v1/*.proto`. This walk is the norm; decoding with prost and encoding
//! again must give the same bytes for whatever passes, which tests and fuzzing hold against it. Nothing here allocates.

use std::fmt;

/// Shape of one message.
#[derive(Debug)]
pub struct Message {
    /// As in the .proto file.
    pub name: &'static str,
    /// In ascending order of their tags.
    pub fields: &'static [Field],
}

/// Shape of one field.
#[derive(Debug)]
pub struct Field {
    /// Number in the .proto file.
    pub tag: u32,
    /// Name in the .proto file.
    pub name: &'static str,
    /// Type and limits.
    pub kind: Kind,
    /// Whether it must, may or must not be there.
    pub presence: Presence,
}

/// Type and limits of a field.
#[derive(Debug)]
pub enum Kind {
    /// The format version: always there, read first.
    Version,
    /// A varint of at most `max`.
    Integer {
        /// Greatest value.
        max: u64,
    },
    /// A varint of 1.
    Bool,
    /// A varint of 1 to `max`.
    Enum {
        /// Greatest known value; all from 1 on are known.
        max: u64,
    },
    /// Bytes; lengths in bytes.
    Bytes {
        /// Least length.
        min: u64,
        /// Greatest length.
        max: u64,
    },
    /// UTF-8 text; lengths in bytes.
    Text {
        /// Least length.
        min: u64,
        /// Greatest length.
        max: u64,
        /// Allowed characters.
        text: Text,
    },
    /// A message inside this one.
    Message(&'static Message),
}

/// Which characters a text may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// Any UTF-8.
    Utf8,
    /// `[A-Za-z0-9_./:@+-]`.
    Token,
    /// As a token, with `*` besides.
    Pattern,
}

/// When a field is there.
#[derive(Debug, Clone, Copy)]
pub enum Presence {
    /// Always.
    Required,
    /// Unless it is zero or empty.
    Implicit,
    /// As the writer likes; zero may be written.
    Optional,
    /// Any number of times up to `count`; integers are packed.
    Repeated {
        /// Greatest number of elements.
        count: u64,
    },
    /// One of the group that begins with the tag `first`.
    OneOf {
        /// Least tag of the group.
        first: u32,
        /// One of the group must be there.
        required: bool,
    },
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStrict {
    /// A format version that this code does not know: nothing may be concluded from these bytes.
    FutureVersion(u64),
    /// Not the one encoding of a message of a known version.
    Malformed(Malformed),
}

/// Where bytes break the strict form, and which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    message: &'static str,
    tag: u32,
    rule: &'static str,
}

impl Malformed {
    /// At the field `tag` of `message` (0: the message as a whole), which breaks `rule`.
    pub const fn new(message: &'static str, tag: u32, rule: &'static str) -> Self {
        Self { message, tag, rule }
    }

    /// The message and the field, looked for in `root` and what stands in it. `None`: the rule is of a message as a whole, or of
    /// a field that no table has.
    pub fn field(&self, root: &'static Message) -> Option<(&'static Message, &'static Field)> {
        if root.name == self.message {
            return root.fields.iter().find(|field| field.tag == self.tag).map(|field| (root, field));
        }
        root.fields.iter().find_map(|field| match field.kind {
            Kind::Message(inner) => self.field(inner),
            _ => None,
        })
    }

    /// The rule, in words.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

impl Field {
    /// What may stand there, in words.
    pub fn allowed(&self) -> String {
        let length = |min: u64, max: u64| match (min, max) {
            (min, 0) => format!("at least {min}"),
            (0, max) => format!("at most {max}"),
            (min, max) if min == max => format!("{max}"),
            (min, max) => format!("{min} to {max}"),
        };
        let one = match &self.kind {
            Kind::Version => format!("{}", crate::FORMAT_VERSION),
            Kind::Integer { max } => format!("a number of at most {max}"),
            Kind::Bool => "true, or nothing".to_owned(),
            Kind::Enum { max } => format!("a value of 1 to {max}"),
            Kind::Bytes { min, max } => format!("{} bytes", length(*min, *max)),
            Kind::Text { min, max, text } => {
                let of = match text {
                    Text::Utf8 => "UTF-8",
                    Text::Token => "[A-Za-z0-9_./:@+-]",
                    Text::Pattern => "[A-Za-z0-9_./:@+*-]",
                };
                format!("{} bytes of {of}", length(*min, *max))
            }
            Kind::Message(inner) => format!("a {}", inner.name),
        };
        match self.presence {
            Presence::Repeated { count } => format!("at most {count} times {one}"),
            _ => one,
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, tag, rule } = self;
        let of = table::ALL.iter().find(|known| known.name == *message);
        let field = of.and_then(|of| of.fields.iter().find(|field| field.tag == *tag));
        match (tag, field) {
            (0, _) => write!(f, "{message}: {rule}"),
            (_, Some(field)) => write!(f, "{message} field {tag} ({}): {rule}", field.name),
            (_, None) => write!(f, "{message} field {tag}: {rule}"),
        }
    }
}

impl std::error::Error for Malformed {}

impl fmt::Display for NotStrict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FutureVersion(version) => write!(f, "format version {version} is newer than this program"),
            Self::Malformed(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for NotStrict {}

impl From<Malformed> for NotStrict {
    fn from(why: Malformed) -> Self {
        Self::Malformed(why)
    }
}

/// Checks that `bytes` are the strict form of `message` and decodes them.
///
/// # Errors
/// [`NotStrict`], with the first broken rule.
pub fn decode<M: prost::Message + Default>(message: &'static Message, bytes: &[u8]) -> Result<M, NotStrict> {
    check(message, bytes)?;
    M::decode(bytes).map_err(|_| Malformed::new(message.name, 0, "cannot be decoded").into())
}

/// As [`decode`], sharing the memory of `bytes` with the message's own bytes fields.
///
/// # Errors
/// [`NotStrict`], with the first broken rule.
pub fn decode_shared<M: prost::Message + Default>(
    message: &'static Message,
    bytes: bytes::Bytes,
) -> Result<M, NotStrict> {
    check(message, &bytes)?;
    M::decode(bytes).map_err(|_| Malformed::new(message.name, 0, "cannot be decoded").into())
}

/// Checks that `bytes` are the strict form of `message`.
///
/// # Errors
/// [`NotStrict`], with the first broken rule.
pub fn check(message: &'static Message, bytes: &[u8]) -> Result<(), NotStrict> {
    walk(message, bytes, &mut |_, _, _| ())
}

/// As [`check`], giving every enum's value to `see` on the way: message, tag, number.
///
/// # Errors
/// [`NotStrict`], with the first broken rule.
pub(crate) fn walk<S: FnMut(&'static Message, u32, u64)>(
    message: &'static Message,
    bytes: &[u8],
    see: &mut S,
) -> Result<(), NotStrict> {
    let mut rest = bytes;
    let mut fields = message.fields.iter();
    let mut current: Option<&Field> = None;
    let mut repeats: u64 = 0;
    let mut group: u32 = 0;
    while !rest.is_empty() {
        let fault = |tag, rule| NotStrict::from(Malformed::new(message.name, tag, rule));
        let key = varint(&mut rest).ok_or_else(|| fault(0, "a tag is not a minimal varint"))?;
        let tag = u32::try_from(key >> 3).map_err(|_| fault(0, "a tag is out of range"))?;
        let repeated = current.filter(|f| f.tag == tag && matches!(f.presence, Presence::Repeated { .. }));
        let field = match repeated {
            Some(field) => field,
            None => {
                repeats = 0;
                let found = advance(message, &mut fields, tag, group)?;
                if let Presence::OneOf { first, .. } = found.presence {
                    if group == first {
                        return Err(fault(tag, "a second field of a oneof"));
                    }
                    group = first;
                }
                found
            }
        };
        current = Some(field);
        if let Presence::Repeated { count } = field.presence {
            repeats = repeats.saturating_add(1);
            if repeats > count {
                return Err(fault(tag, "more elements than allowed"));
            }
            if repeats > 1 && matches!(field.kind, Kind::Integer { .. }) {
                return Err(fault(tag, "a packed field in two parts"));
            }
        }
        value(message, field, key & 7, &mut rest, see)?;
    }
    advance(message, &mut fields, u32::MAX, group).map(|_| ()).or_else(|why| match why {
        NotStrict::Malformed(Malformed { rule: END, .. }) => Ok(()),
        other => Err(other),
    })
}

/// The rule that [`advance`] names when no field of the table is left.
const END: &str = "unknown field, or one out of order";

/// Steps along the table to the field `tag`; whatever is stepped over must be allowed to be absent. `group` is the oneof
/// group that last had a value.
#[inline]
fn advance(
    message: &'static Message,
    fields: &mut std::slice::Iter<'static, Field>,
    tag: u32,
    group: u32,
) -> Result<&'static Field, NotStrict> {
    for field in fields.by_ref() {
        if field.tag == tag {
            return Ok(field);
        }
        if field.tag > tag {
            break;
        }
        let missing = match field.presence {
            Presence::Required => true,
            Presence::OneOf { first, required } => required && group != first && !has_later(message, first, field.tag),
            Presence::Implicit | Presence::Optional | Presence::Repeated { .. } => false,
        };
        if missing {
            return Err(Malformed::new(message.name, field.tag, "missing").into());
        }
    }
    Err(Malformed::new(message.name, if tag == u32::MAX { 0 } else { tag }, END).into())
}

/// Whether the oneof group `first` has a tag after `tag`; then the group may still get its value.
fn has_later(message: &'static Message, first: u32, tag: u32) -> bool {
    let of_group = |f: &&Field| matches!(f.presence, Presence::OneOf { first: g, .. } if g == first);
    message.fields.iter().filter(of_group).any(|f| f.tag > tag)
}

#[inline]
fn value<S: FnMut(&'static Message, u32, u64)>(
    message: &'static Message,
    field: &'static Field,
    wire: u64,
    rest: &mut &[u8],
    see: &mut S,
) -> Result<(), NotStrict> {
    let fault = |rule| NotStrict::from(Malformed::new(message.name, field.tag, rule));
    let packed = matches!((&field.kind, field.presence), (Kind::Integer { .. }, Presence::Repeated { .. }));
    let varint_expected = matches!(field.kind, Kind::Version | Kind::Integer { .. } | Kind::Bool | Kind::Enum { .. });
    let expected = if varint_expected && !packed { 0 } else { 2 };
    if wire != expected {
        return Err(fault("wrong wire type"));
    }
    if expected == 0 {
        let number = varint(rest).ok_or_else(|| fault("not a minimal varint"))?;
        if matches!(field.kind, Kind::Enum { .. }) {
            see(message, field.tag, number);
        }
        return scalar(message, field, number);
    }
    let length = varint(rest).ok_or_else(|| fault("a length is not a minimal varint"))?;
    let split = usize::try_from(length).ok().and_then(|at| rest.split_at_checked(at));
    let (content, after) = split.ok_or_else(|| fault("longer than what is left"))?;
    *rest = after;
    match &field.kind {
        Kind::Message(inner) => walk(inner, content, see),
        Kind::Bytes { min, max } => bounds(length, *min, *max, field.presence).map_err(fault),
        Kind::Text { min, max, text } => {
            bounds(length, *min, *max, field.presence).map_err(fault)?;
            if !characters(content, *text) {
                return Err(fault("a character that is not allowed"));
            }
            Ok(())
        }
        _ => packed_integers(message, field, content),
    }
}

fn packed_integers(message: &'static Message, field: &'static Field, content: &[u8]) -> Result<(), NotStrict> {
    let fault = |rule| NotStrict::from(Malformed::new(message.name, field.tag, rule));
    let (Kind::Integer { max }, Presence::Repeated { count }) = (&field.kind, field.presence) else {
        return Err(fault("wrong wire type"));
    };
    let mut left = content;
    let mut seen: u64 = 0;
    while !left.is_empty() {
        let number = varint(&mut left).ok_or_else(|| fault("not a minimal varint"))?;
        seen = seen.saturating_add(1);
        if number > *max || seen > count {
            return Err(fault("out of range"));
        }
    }
    if seen == 0 {
        return Err(fault("an empty packed field"));
    }
    Ok(())
}

#[inline]
fn scalar(message: &'static Message, field: &'static Field, number: u64) -> Result<(), NotStrict> {
    let fault = |rule| NotStrict::from(Malformed::new(message.name, field.tag, rule));
    let implicit_zero = number == 0 && matches!(field.presence, Presence::Implicit);
    let in_range = match field.kind {
        Kind::Version if number > u64::from(crate::FORMAT_VERSION) => return Err(NotStrict::FutureVersion(number)),
        Kind::Version => number == u64::from(crate::FORMAT_VERSION),
        Kind::Integer { max } => number <= max && !implicit_zero,
        Kind::Bool => number == 1,
        Kind::Enum { max } => (1..=max).contains(&number),
        _ => false,
    };
    if in_range { Ok(()) } else { Err(fault("out of range")) }
}

#[inline]
fn bounds(length: u64, min: u64, max: u64, presence: Presence) -> Result<(), &'static str> {
    if length == 0 && matches!(presence, Presence::Implicit) {
        return Err("empty, and written");
    }
    if length < min || (max > 0 && length > max) {
        return Err("wrong length");
    }
    Ok(())
}

#[inline]
fn characters(content: &[u8], text: Text) -> bool {
    // Without an early way out, which costs more than it saves on text that is nearly always right.
    let of = |byte: &u8| CLASSES.get(usize::from(*byte)).copied().unwrap_or(0);
    let all = |class: u8| content.iter().fold(class, |common, byte| common & of(byte)) != 0;
    match text {
        Text::Utf8 => std::str::from_utf8(content).is_ok(),
        Text::Token => all(1),
        Text::Pattern => all(2),
    }
}

/// For each byte: 1 in a token, 2 in a pattern. This runs for every text of every record.
#[expect(clippy::indexing_slicing, reason = "by a byte, into 256 places, when this is compiled")]
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut bytes: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_./:@+-";
    while let [byte, rest @ ..] = bytes {
        classes[*byte as usize] = 3;
        bytes = rest;
    }
    classes[b'*' as usize] = 2;
    classes
};

/// Whether `text` may stand in a record as it is: 1 to 128 characters of `[A-Za-z0-9_./:@+-]`.
pub fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len()) && characters(text.as_bytes(), Text::Token)
}

/// Takes one minimal varint of at most 64 bits off the front; most have one byte.
#[inline]
fn varint(rest: &mut &[u8]) -> Option<u64> {
    match rest {
        [byte, after @ ..] if byte & 0x80 == 0 => {
            let number = u64::from(*byte);
            *rest = after;
            Some(number)
        }
        _ => long_varint(rest),
    }
}

#[inline]
fn long_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    let mut shift: u32 = 0;
    let mut bytes = rest.iter();
    loop {
        let byte = *bytes.next()?;
        if shift == 63 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f).wrapping_shl(shift);
        if byte & 0x80 == 0 {
            *rest = bytes.as_slice();
            // Zero in the last byte of several: not minimal.
            return (byte != 0 || shift == 0).then_some(number);
        }
        shift = shift.wrapping_add(7);
    }
}

/// The table, one constant for each message.
pub mod table {
    use super::{Field, Kind, Message, Presence, Text};

    include!(concat!(env!("OUT_DIR"), "/strict_table.rs"));
}

#[cfg(test)]
mod tests;
