//! Edits on the bytes of a message, field by field, by the names that the contract gives them. What comes out is in strict
//! form unless the edit is about that.

use custody::strict::{Field, Kind, Message, Presence};

/// What is done to a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One bit turns: the lowest of a number, the lowest of the middle byte of bytes or text.
    Flip,
    /// A number becomes this one.
    Set(u64),
    /// It is left out.
    Clear,
    /// A field that nobody knows follows it.
    Unknown,
    /// It stands twice.
    Twice,
    /// It changes places with the one before.
    Descending,
    /// Its number, or its length, takes a byte more than it needs.
    Padded,
    /// Its last byte is missing.
    Shorter,
}

impl How {
    /// From its name in a lie's file.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.split_once(' ') {
            Some(("set", number)) => Self::Set(number.parse().map_err(|_| format!("no number: {number}"))?),
            None => match text {
                "flip" => Self::Flip,
                "clear" => Self::Clear,
                "unknown" => Self::Unknown,
                "twice" => Self::Twice,
                "descending" => Self::Descending,
                "padded" => Self::Padded,
                "shorter" => Self::Shorter,
                _ => return Err(format!("no such edit: {text}")),
            },
            Some(_) => return Err(format!("no such edit: {text}")),
        })
    }
}

#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

/// One field as it stands.
#[derive(Clone, Debug)]
struct Part {
    tag: u32,
    value: Value,
    padded: bool,
}

fn varint(out: &mut Vec<u8>, mut number: u64, padded: bool) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    let last = u8::try_from(number).unwrap_or(0);
    if padded {
        out.extend_from_slice(&[last | 0x80, 0]);
    } else {
        out.push(last);
    }
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn split(mut bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let key = read_varint(&mut bytes)?;
        let tag = u32::try_from(key >> 3).ok()?;
        let number = read_varint(&mut bytes)?;
        let value = if key & 7 == 0 {
            Value::Number(number)
        } else {
            let (content, rest) = bytes.split_at_checked(usize::try_from(number).ok()?)?;
            bytes = rest;
            Value::Bytes(content.to_vec())
        };
        parts.push(Part { tag, value, padded: false });
    }
    Some(parts)
}

fn join(parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        match &part.value {
            Value::Number(number) => {
                varint(&mut out, u64::from(part.tag) << 3, false);
                varint(&mut out, *number, part.padded);
            }
            Value::Bytes(content) => {
                varint(&mut out, (u64::from(part.tag) << 3) | 2, false);
                varint(&mut out, content.len() as u64, part.padded);
                out.extend_from_slice(content);
            }
        }
    }
    out
}

/// Edits the field at `path` (names, and the index of a repeated field's element after its name) of a `message`.
///
/// # Errors
/// In words, when there is no such field.
pub fn edit(message: &'static Message, bytes: &[u8], path: &str, how: How) -> Result<Vec<u8>, String> {
    let names: Vec<&str> = path.split('.').collect();
    edit_at(message, bytes, &names, how).map_err(|why| format!("{} {path}: {why}", message.name))
}

fn edit_at(message: &'static Message, bytes: &[u8], names: &[&str], how: How) -> Result<Vec<u8>, String> {
    let [name, rest @ ..] = names else { return Err("no field is named".to_owned()) };
    let field = message.fields.iter().find(|field| field.name == *name).ok_or("no such field")?;
    let mut parts = split(bytes).ok_or("not a message")?;
    let (index, rest) = match (field.presence, rest) {
        (Presence::Repeated { .. }, [index, rest @ ..]) => (index.parse::<usize>().map_err(|_| "no index")?, rest),
        _ => (0, rest),
    };
    let at = parts.iter().enumerate().filter(|(_, part)| part.tag == field.tag).map(|(at, _)| at).nth(index);
    match (at, &field.kind) {
        (Some(at), Kind::Message(inner)) if !rest.is_empty() => {
            let part = parts.get_mut(at).ok_or("no such element")?;
            let Value::Bytes(content) = &part.value else { return Err("not a message".to_owned()) };
            part.value = Value::Bytes(edit_at(inner, content, rest, how)?);
        }
        (Some(at), _) => edit_part(&mut parts, at, field, how)?,
        (None, _) => add_part(&mut parts, field, how)?,
    }
    Ok(join(&parts))
}

fn edit_part(parts: &mut Vec<Part>, at: usize, field: &Field, how: How) -> Result<(), String> {
    let part = parts.get_mut(at).ok_or("no such element")?;
    match (how, &mut part.value) {
        // The values of an enum begin at 1.
        (How::Flip, Value::Number(number)) if matches!(field.kind, Kind::Enum { .. }) => {
            *number = if *number == 1 { 2 } else { *number - 1 };
        }
        (How::Flip, Value::Number(number)) => *number ^= 1,
        (How::Flip, Value::Bytes(content)) => {
            let middle = content.len() / 2;
            *content.get_mut(middle).ok_or("empty")? ^= 1;
        }
        (How::Set(value), Value::Number(number)) => *number = value,
        (How::Set(_), Value::Bytes(_)) => return Err("bytes are not set to a number".to_owned()),
        (How::Padded, _) => part.padded = true,
        (How::Shorter, Value::Bytes(content)) => drop(content.pop()),
        (How::Shorter, Value::Number(number)) => *number >>= 7,
        (How::Clear, _) => drop(parts.remove(at)),
        (How::Unknown, _) => parts.insert(at + 1, Part { tag: 1_000, value: Value::Number(1), padded: false }),
        (How::Twice, _) => {
            let again = part.clone();
            parts.insert(at, again);
        }
        (How::Descending, _) => parts.swap(at, at.checked_sub(1).ok_or("nothing stands before it")?),
    }
    // What is zero and may be left out is left out, so that the edit stays in strict form.
    let zero = matches!(parts.get(at), Some(Part { value: Value::Number(0), tag, .. }) if *tag == field.tag);
    if zero && matches!(field.presence, Presence::Implicit) {
        parts.remove(at);
    }
    Ok(())
}

/// A field that is not there gets the least value besides zero.
fn add_part(parts: &mut Vec<Part>, field: &Field, how: How) -> Result<(), String> {
    let number = match how {
        How::Flip => 1,
        How::Set(number) => number,
        _ => return Err("the field is not there".to_owned()),
    };
    let value = match &field.kind {
        Kind::Integer { .. } | Kind::Bool | Kind::Enum { .. } | Kind::Version => Value::Number(number),
        Kind::Bytes { min, .. } => Value::Bytes(vec![1; usize::try_from(*min).unwrap_or(0).max(1)]),
        Kind::Text { .. } => Value::Bytes(b"x".to_vec()),
        Kind::Message(_) => return Err("a message that is not there".to_owned()),
    };
    let at = parts.iter().position(|part| part.tag > field.tag).unwrap_or(parts.len());
    parts.insert(at, Part { tag: field.tag, value, padded: false });
    Ok(())
}

/// Paths of all fields of a `message` and of the messages inside it, for [`edit`]: of those that are not there too, and of each
/// element of those that are repeated.
///
/// # Errors
/// In words, when the bytes are no message.
pub fn paths(message: &'static Message, bytes: &[u8]) -> Result<Vec<String>, String> {
    let parts = split(bytes).ok_or("not a message")?;
    let mut found = Vec::new();
    for field in message.fields {
        let own: Vec<&Part> = parts.iter().filter(|part| part.tag == field.tag).collect();
        let repeated = matches!(field.presence, Presence::Repeated { .. });
        for index in 0..own.len().max(1) {
            let name = if repeated { format!("{}.{index}", field.name) } else { field.name.to_owned() };
            if let (Kind::Message(inner), Some(Part { value: Value::Bytes(content), .. })) =
                (&field.kind, own.get(index))
            {
                found.extend(paths(inner, content)?.into_iter().map(|path| format!("{name}.{path}")));
            }
            found.push(name);
        }
    }
    Ok(found)
}

/// The content of a bytes field, replaced by what `change` makes of it.
///
/// # Errors
/// In words, also what `change` says.
pub fn inside(
    message: &'static Message,
    bytes: &[u8],
    name: &str,
    index: usize,
    change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let field = message.fields.iter().find(|field| field.name == name).ok_or("no such field")?;
    let mut parts = split(bytes).ok_or("not a message")?;
    let part = parts.iter_mut().filter(|part| part.tag == field.tag).nth(index);
    let part = part.ok_or_else(|| format!("{} has no {name} {index}", message.name))?;
    let Value::Bytes(content) = &mut part.value else { return Err("not bytes".to_owned()) };
    *content = change(std::mem::take(content))?;
    Ok(join(&parts))
}

/// Lets `change` rearrange the elements of a repeated bytes field.
///
/// # Errors
/// In words.
pub fn elements(
    message: &'static Message,
    bytes: &[u8],
    name: &str,
    change: impl FnOnce(&mut Vec<Vec<u8>>) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let field = message.fields.iter().find(|field| field.name == name).ok_or("no such field")?;
    let parts = split(bytes).ok_or("not a message")?;
    let (own, mut others): (Vec<Part>, Vec<Part>) = parts.into_iter().partition(|part| part.tag == field.tag);
    let content = |part: Part| if let Value::Bytes(content) = part.value { Some(content) } else { None };
    let mut values: Vec<Vec<u8>> = own.into_iter().filter_map(content).collect();
    change(&mut values)?;
    let at = others.iter().position(|part| part.tag > field.tag).unwrap_or(others.len());
    let own = values.into_iter().map(|value| Part { tag: field.tag, value: Value::Bytes(value), padded: false });
    others.splice(at..at, own);
    Ok(join(&others))
}
