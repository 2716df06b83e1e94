//! Each rule of the strict form, at its edge; and the form as a whole against prost, on generated messages.

use super::*;
use crate::testing::{Rng, generate, message, number, put_bytes, put_number, put_varint, reencode};

/// The rule that `bytes` break as a message of this name.
fn broken(name: &str, bytes: &[u8]) -> &'static str {
    match check(message(name), bytes) {
        Err(NotStrict::Malformed(why)) => why.rule,
        other => panic!("{name}: {other:?}"),
    }
}

fn fine(name: &str, bytes: &[u8]) {
    assert_eq!(check(message(name), bytes), Ok(()), "{name}");
    assert_eq!(reencode(message(name), bytes).as_deref(), Some(bytes), "{name}");
}

/// Fields from a list of tag and content, with wire type 2.
fn fields(parts: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (tag, content) in parts {
        put_bytes(*tag, content, &mut out);
    }
    out
}

/// `parts` after a version.
fn versioned(version: u64, parts: &[(u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(1, version, &mut out);
    out.extend_from_slice(&fields(parts));
    out
}

const UNKNOWN: &str = END;

#[test]
fn every_message_of_the_table_is_known_to_the_tests() {
    for of in table::ALL {
        reencode(of, &[]);
        let tags: Vec<u32> = of.fields.iter().map(|field| field.tag).collect();
        assert!(tags.is_sorted_by(|a, b| a < b), "{}", of.name);
        let mut groups: Vec<u32> = Vec::new();
        for field in of.fields {
            if let Presence::OneOf { first, .. } = field.presence {
                assert!(groups.last() == Some(&first) || !groups.contains(&first), "{}: contiguous oneof", of.name);
                groups.push(first);
            } else {
                groups.push(0);
            }
            assert!(!matches!(field.kind, Kind::Version) || field.tag == 1, "{}: the version comes first", of.name);
        }
    }
}

#[test]
fn tags_ascend_and_stand_once() {
    let (hash, id) = ([7; 32], [7; 16]);
    let reference = |parts: &[(u32, &[u8])]| fields(parts);
    fine("SealReference", &reference(&[(1, &id), (3, &hash)]));
    assert_eq!(broken("SealReference", &reference(&[(3, &hash), (1, &id)])), "missing");
    assert_eq!(broken("SealReference", &reference(&[(1, &id), (1, &id), (3, &hash)])), UNKNOWN);
    assert_eq!(broken("SealReference", &reference(&[(1, &id), (3, &hash), (1, &id)])), UNKNOWN);
    assert_eq!(broken("SealReference", &reference(&[(1, &id), (3, &hash), (4, &id)])), UNKNOWN);
    assert_eq!(broken("SealReference", &reference(&[(0, &id)])), UNKNOWN);
    assert_eq!(broken("SealReference", &reference(&[(1, &id)])), "missing");
    assert_eq!(broken("SealReference", &[]), "missing");
    assert_eq!(broken("Remove", &reference(&[(1, &id)])), UNKNOWN);
    fine("Remove", &[]);
    let mut far = Vec::new();
    put_varint(u64::MAX, &mut far);
    assert_eq!(broken("Remove", &far), "a tag is out of range");
}

#[test]
fn varints_are_minimal_and_have_64_bits() {
    let with_pings = |varint: &[u8]| [&[0x10][..], varint].concat();
    fine("Counts", &with_pings(&[0x7f]));
    fine("Counts", &with_pings(&[0x80, 0x01]));
    fine("Counts", &with_pings(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]));
    for padded in [&[0xff, 0x00][..], &[0x80, 0x80, 0x00], &[0x80], &[]] {
        assert_eq!(broken("Counts", &with_pings(padded)), "not a minimal varint", "{padded:x?}");
    }
    for too_long in [&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..], &[0xff; 11], &[0x80; 10]] {
        assert_eq!(broken("Counts", &with_pings(too_long)), "not a minimal varint");
    }
    assert_eq!(broken("Counts", &[0x90, 0x00, 0x01]), "a tag is not a minimal varint");
    assert_eq!(broken("Create", &[0x0a, 0x81, 0x00, b'a']), "a length is not a minimal varint");
    assert_eq!(broken("Create", &[0x0a, 0x02, b'a']), "longer than what is left");
    let endless = [&[0x0a][..], &[0xff; 9], &[0x01]].concat();
    assert_eq!(broken("Create", &endless), "longer than what is left");
}

#[test]
fn wire_types_are_those_of_the_table() {
    assert_eq!(broken("Counts", &[0x12, 0x01, 0x01]), "wrong wire type");
    assert_eq!(broken("Create", &[0x08, 0x01]), "wrong wire type");
    for group_or_fixed in [1, 3, 4, 5, 6, 7] {
        assert_eq!(broken("Counts", &[0x10 | group_or_fixed, 0, 0, 0, 0, 0, 0, 0, 0]), "wrong wire type");
    }
}

#[test]
fn zero_is_written_only_where_it_may_be() {
    assert_eq!(broken("Counts", &[0x10, 0x00]), "out of range");
    assert_eq!(broken("ServerLife", &[0x0a, 1, b's', 0x10, 0x00]), "out of range");
    fine("ServerLife", &[0x0a, 1, b's', 0x10, 0x01, 0x18, 0x00]);
    fine("Extension", &[0x0a, 1, b'k', 0x10, 0x00]);
    let delivery = [&[0x0a, 0][..], &[0x10, 0x01]].concat();
    assert_eq!(broken("Delivery", &delivery), "empty, and written");
    let open_false = |value| {
        let mut rule = fields(&[(1, b"r")]);
        put_number(2, 1, &mut rule);
        put_number(6, value, &mut rule);
        rule
    };
    fine("AccessRule", &open_false(1));
    assert_eq!(broken("AccessRule", &open_false(0)), "out of range");
    assert_eq!(broken("AccessRule", &open_false(2)), "out of range");
}

#[test]
fn an_enum_has_a_known_value_above_zero() {
    let life = |state| [&[0x0a, 1, b's', 0x10][..], &[state]].concat();
    for state in 1..=4 {
        fine("ServerLife", &life(state));
    }
    for state in [0, 5, 127] {
        assert_eq!(broken("ServerLife", &life(state)), "out of range");
    }
    assert_eq!(broken("ServerLife", &[0x0a, 1, b's']), "missing");
}

#[test]
fn one_of_a_oneof_stands_there() {
    let (key, digest) = ((1, &b"k"[..]), (3, &[9; 32][..]));
    fine("Extension", &fields(&[key, digest]));
    assert_eq!(broken("Extension", &fields(&[key])), "missing");
    let mut both = fields(&[key]);
    put_number(2, 5, &mut both);
    fine("Extension", &both);
    put_bytes(3, &[9; 32], &mut both);
    assert_eq!(broken("Extension", &both), "a second field of a oneof");
    assert_eq!(broken("Record", &versioned(1, &[])), "missing");
    assert_eq!(broken("Statement", &versioned(1, &[])), "missing");
    // A oneof that may be left out: the client of a call.
    let mut call = Vec::new();
    put_number(2, 1, &mut call);
    put_number(3, 1, &mut call);
    let bare = call.len();
    put_number(18, 1, &mut call);
    put_number(24, 1, &mut call);
    fine("Call", &call);
    let with = |client: &[(u32, &[u8])]| [&call[..bare], &fields(client), &call[bare..]].concat();
    fine("Call", &with(&[(7, b"c")]));
    fine("Call", &with(&[(8, &[1; 32]), (9, b"1.0")]));
    assert_eq!(broken("Call", &with(&[(7, b"c"), (8, &[1; 32])])), "a second field of a oneof");
}

#[test]
fn repeated_fields_are_bounded_and_integers_packed_once() {
    let index = |frames: usize| versioned(1, &vec![(2, &[][..]); frames]);
    fine("SegmentIndex", &index(65_536));
    assert_eq!(broken("SegmentIndex", &index(65_537)), "more elements than allowed");
    let revoke = |packed: &[&[u8]]| {
        let parts: Vec<(u32, &[u8])> = packed.iter().map(|bytes| (2, *bytes)).collect();
        [fields(&[(1, &[3; 32])]), fields(&parts)].concat()
    };
    fine("Revoke", &revoke(&[&[0, 1, 2, 0x80, 0x01]]));
    fine("Revoke", &revoke(&[&[5; 1024]]));
    assert_eq!(broken("Revoke", &revoke(&[&[5; 1025]])), "out of range");
    assert_eq!(broken("Revoke", &revoke(&[&[]])), "an empty packed field");
    assert_eq!(broken("Revoke", &revoke(&[&[0x80, 0x00]])), "not a minimal varint");
    assert_eq!(broken("Revoke", &revoke(&[&[1], &[2]])), "a packed field in two parts");
    let unpacked = [fields(&[(1, &[3; 32])]), vec![0x10, 0x05]].concat();
    assert_eq!(broken("Revoke", &unpacked), "wrong wire type");
}

#[test]
fn lengths_are_exact_at_their_bounds() {
    let create = |length: usize| fields(&[(1, &vec![b'a'; length])]);
    fine("Create", &create(1));
    fine("Create", &create(64));
    assert_eq!(broken("Create", &create(65)), "wrong length");
    assert_eq!(broken("Create", &create(0)), "wrong length");
    for wrong in [0, 31, 33] {
        assert_eq!(broken("Retire", &fields(&[(1, &vec![1; wrong])])), "wrong length");
    }
    let signed = |length: usize| versioned(1, &[(2, &vec![1; length]), (3, &[2; 64])]);
    fine("SignedStatement", &signed(16_384));
    assert_eq!(broken("SignedStatement", &signed(16_385)), "wrong length");
}

#[test]
fn integers_are_within_their_bounds() {
    let trace = |flags| {
        let mut out = fields(&[(1, &[1; 16]), (2, &[2; 8])]);
        put_number(3, flags, &mut out);
        out
    };
    fine("TraceContext", &trace(255));
    assert_eq!(broken("TraceContext", &trace(256)), "out of range");
    let since = |time| {
        let mut out = Vec::new();
        put_number(1, time, &mut out);
        out
    };
    fine("Counts", &since(253_402_300_799_999_999));
    assert_eq!(broken("Counts", &since(253_402_300_800_000_000)), "out of range");
    let exit = |code| {
        let mut out = fields(&[(1, b"s")]);
        put_number(2, 1, &mut out);
        put_number(3, code, &mut out);
        out
    };
    fine("ServerLife", &exit(u64::from(u32::MAX)));
    assert_eq!(broken("ServerLife", &exit(u64::from(u32::MAX) + 1)), "out of range");
}

#[test]
fn text_has_only_the_characters_of_its_kind() {
    for byte in 0..=255_u8 {
        let token = byte.is_ascii_alphanumeric() || b"_./:@+-".contains(&byte);
        let name = fields(&[(1, &[byte])]);
        assert_eq!(check(message("Create"), &name).is_ok(), token, "{byte}");
        let mut rule = fields(&[(1, b"r")]);
        put_number(2, 1, &mut rule);
        put_bytes(5, &[byte], &mut rule);
        assert_eq!(check(message("AccessRule"), &rule).is_ok(), token || byte == b'*', "{byte}");
        assert_eq!(is_token(&char::from(byte).to_string()), token);
    }
    assert!(!is_token(""));
    assert!(is_token(&"a".repeat(128)) && !is_token(&"a".repeat(129)));
    let query = |text: &[u8]| {
        let mut out = fields(&[(2, b"a")]);
        put_number(3, 1, &mut out);
        put_bytes(4, text, &mut out);
        out
    };
    fine("Search", &query("ü 🦀 \0".as_bytes()));
    for bad in [&[0xff][..], &[0xc3], &[0xc0, 0x80], &[0xed, 0xa0, 0x80], &[0xf4, 0x90, 0x80, 0x80]] {
        assert_eq!(broken("Search", &query(bad)), "a character that is not allowed");
    }
}

#[test]
fn the_version_is_read_before_anything_else() {
    let future = |version| versioned(version, &[(99, b"whatever comes"), (1, b"in any form")]);
    for version in [2, 3, u64::MAX] {
        assert_eq!(check(&table::SEAL, &future(version)), Err(NotStrict::FutureVersion(version)));
    }
    assert_eq!(broken("Seal", &future(0)), "out of range");
    assert_eq!(broken("Seal", &fields(&[(2, b"origin")])), "missing");
    assert_eq!(broken("Seal", &[0x08, 0x81, 0x00]), "not a minimal varint");
    // A newer message inside one that is known.
    let inner = versioned(2, &[]);
    let receipt = versioned(1, &[(2, &[1]), (3, &inner)]);
    assert_eq!(check(&table::RECEIPT, &receipt), Err(NotStrict::FutureVersion(2)));
}

#[test]
fn every_message_inside_a_message_is_checked() {
    let head = [&fields(&[(2, &[1; 32])])[..], &[0x18, 1]].concat();
    let entry = versioned(1, &[(4, &head)]);
    assert!(check(&table::LOG_ENTRY, &entry).is_err());
    let start = versioned(1, &[(4, &[0x08, 1])]);
    fine("LogEntry", &start);
}

/// Changes `bytes` a little, as a writer that is nearly right would.
fn disturb(rng: &mut Rng, bytes: &mut Vec<u8>) {
    crate::fuzz_tests::mutate(rng, bytes, &[]);
}

#[test]
fn what_passes_is_what_prost_writes() {
    let mut rng = Rng::for_test("what_passes_is_what_prost_writes");
    let rounds = number("CUSTODY_ROUNDS").unwrap_or(150);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for of in table::ALL {
        for round in 0..rounds {
            let bytes = generate(&mut rng, of);
            assert_eq!(check(of, &bytes), Ok(()), "{} round {round}: {}", of.name, crate::id::hex(&bytes));
            assert_eq!(reencode(of, &bytes).as_deref(), Some(&bytes[..]), "{} round {round}", of.name);
            for _ in 0..20 {
                let mut other = bytes.clone();
                disturb(&mut rng, &mut other);
                if check(of, &other).is_ok() {
                    accepted += 1;
                    assert_eq!(reencode(of, &other).as_deref(), Some(&other[..]), "{}: {other:x?}", of.name);
                } else {
                    refused += 1;
                }
            }
        }
    }
    println!("disturbed: {accepted} accepted, {refused} refused");
    assert!(accepted > 1_000 && refused > 1_000, "the disturbance is neither too weak nor too strong");
}

#[test]
fn every_prefix_of_a_message_but_the_whole_is_refused_or_a_message() {
    let mut rng = Rng::for_test("prefixes");
    for of in table::ALL {
        let bytes = generate(&mut rng, of);
        for end in 0..bytes.len() {
            if check(of, &bytes[..end]).is_ok() {
                assert_eq!(reencode(of, &bytes[..end]).as_deref(), Some(&bytes[..end]), "{}", of.name);
            }
        }
    }
}
