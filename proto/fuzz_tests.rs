//! Fuzzing on the stable toolchain: structure-aware mutation of the golden corpus over every parser of outside bytes.
//!
//! No input may panic or overflow, and whatever is accepted is written again as the same bytes. A fixed number of inputs in
//! the normal tests; `CUSTODY_FUZZ_SECONDS` for long runs, `CUSTODY_SEED` and `CUSTODY_ROUND` to resume or repeat one. What
//! fails is kept in `proto/testdata/crashes`, and is tried again first.

use crate::testing::{Rng, put_varint};

/// Changes `bytes` in one or a few places; `others` are there to be spliced in.
pub(crate) fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..=rng.below(3).min(rng.below(3)) {
        once(rng, bytes, others);
    }
}

fn once(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.push(rng.next() as u8);
        return;
    }
    let at = rng.index(bytes.len());
    match rng.below(14) {
        0 | 1 => bytes[at] ^= 1 << rng.below(8),
        2 => bytes[at] = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'"', b'0']),
        3 => bytes.truncate(at),
        4 => bytes.insert(at, rng.next() as u8),
        5 => drop(bytes.remove(at)),
        6 => {
            let other = if others.is_empty() { bytes.clone() } else { rng.pick(others).clone() };
            let from = rng.index(other.len().max(1)).min(other.len());
            let to = (from + rng.index(64)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        7 => {
            // A number, where one may stand.
            let mut varint = Vec::new();
            put_varint(rng.integer(u64::MAX), &mut varint);
            bytes.splice(at..at + 1, varint);
        }
        8 => bytes[at] = bytes[at].wrapping_add(if rng.one_in(2) { 1 } else { 255 }),
        // The same number, not minimal.
        9 => bytes.splice(at..at + 1, [bytes[at] | 0x80, 0]).for_each(drop),
        10 => {
            let end = (at + rng.index(40)).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => rearrange(rng, bytes),
    }
}

/// Spans of the fields at the top of a message, or of one message inside it.
fn spans(bytes: &[u8], start: usize) -> Vec<(usize, usize, Option<usize>)> {
    let mut out = Vec::new();
    let mut at = start;
    while at < bytes.len() {
        let begin = at;
        let Some(key) = varint(bytes, &mut at) else { break };
        let mut inside = None;
        match key & 7 {
            0 => drop(varint(bytes, &mut at)),
            2 => {
                let Some(length) = varint(bytes, &mut at) else { break };
                inside = Some(at);
                let Some(end) = usize::try_from(length).ok().and_then(|l| at.checked_add(l)) else { break };
                at = end;
            }
            _ => break,
        }
        if at > bytes.len() {
            break;
        }
        out.push((begin, at, inside));
    }
    out
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Swaps, doubles or drops whole fields, or changes a field inside and mends the length around it.
fn rearrange(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let fields = spans(bytes, 0);
    if fields.is_empty() {
        return;
    }
    let (from, to, inside) = *rng.pick(&fields);
    let field = bytes[from..to].to_vec();
    match (rng.below(4), inside) {
        (0, _) => drop(bytes.drain(from..to)),
        (1, _) => drop(bytes.splice(to..to, field)),
        (2, _) => {
            let (other, _, _) = *rng.pick(&fields);
            bytes.drain(from..to);
            let at = other.min(bytes.len());
            bytes.splice(at..at, field);
        }
        (_, Some(inside)) => {
            let mut content = bytes[inside..to].to_vec();
            if rng.one_in(2) {
                rearrange(rng, &mut content)
            } else {
                once(rng, &mut content, &[])
            }
            let mut at = from;
            varint(bytes, &mut at);
            let mut mended = bytes[from..at].to_vec();
            put_varint(content.len() as u64, &mut mended);
            mended.extend_from_slice(&content);
            bytes.splice(from..to, mended);
        }
        _ => {}
    }
}
