//! One form for each address; groups of one workspace; entries that open for their own key alone; the disclosure file.

use super::*;

const ORIGIN: &str = "log.example/custody";

fn contents(name: &str, groups: usize) -> wire::DirectoryContents {
    wire::DirectoryContents {
        version: crate::FORMAT_VERSION,
        name: name.into(),
        address: "ada@example.com".into(),
        groups: (0..groups).map(|n| format!("{}/{n}", "11".repeat(16))).collect(),
    }
}

#[test]
fn an_address_has_one_form() {
    for said in ["ada@example.com", " Ada@EXAMPLE.com\n", "\tADA@example.COM", "ada@example.com\u{c}"] {
        assert_eq!(Address::parse(said).unwrap().as_str(), "ada@example.com", "{said:?}");
    }
    // What looks alike to a program that is generous is somebody else, or nobody.
    assert_ne!(Address::parse("ada+x@example.com"), Address::parse("ada@example.com"));
    assert_eq!(Address::parse("E-00042").unwrap().as_str(), "e-00042");
    let longest = "a".repeat(ADDRESS_BYTES_MAX);
    assert!(Address::parse(&longest).is_ok());
    let longer = "a".repeat(ADDRESS_BYTES_MAX + 1);
    let bad = [
        "",
        "  ",
        "a b@c",
        "ada@",
        "@c",
        "a@b@c",
        "ada@example.com.",
        "ада@example.com",
        "a\u{a0}b",
        "a\u{7f}b",
        &longer,
    ];
    for bad in bad {
        assert!(Address::parse(bad).is_err(), "{bad:?}");
    }
    assert!(!format!("{:?}", Address::parse("ada@example.com")).contains("ada"));
}

#[test]
fn names_are_trimmed_and_of_one_line() {
    assert_eq!(parse_name("  深町 純 ").unwrap(), "深町 純");
    assert_eq!(parse_name("").unwrap(), "");
    assert!(parse_name("a\nb").is_err() && parse_name(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
}

#[test]
fn a_workspace_says_its_own_groups_and_no_others() {
    let (one, two) = (WorkspaceId([1; 16]), WorkspaceId([2; 16]));
    let first = groups_with(&[], one, ["dev", "a/b", "dev"]).unwrap();
    assert_eq!(first, ["a/b", "dev"].map(|group| format!("{one}/{group}")));
    let both = groups_with(&first, two, ["dev"]).unwrap();
    assert_eq!(both.len(), 3);
    assert_eq!(groups_with(&both, one, [""; 0]).unwrap(), [format!("{two}/dev")]);
    assert!(groups_with(&[], one, ["in words"]).is_err() && groups_with(&[], one, [""]).is_err());
    let many = (0..=GROUPS_MAX).map(|n| n.to_string());
    assert!(groups_with(&[], one, many).is_err());
}

#[test]
fn an_entry_opens_for_its_member_key_and_revision_alone() {
    let (member, key) = (MemberId([0xa1; 16]), [0x4b; 32]);
    let said = contents("Ada Lovelace", 2);
    let entry = seal((ORIGIN, member, 2), &key, [7; 24], 1, &said).unwrap();
    assert_eq!(open(ORIGIN, member, &key, &entry), Ok(said));
    assert_eq!(open(ORIGIN, member, &[0x4c; 32], &entry), Err(Unopened::OtherKey));
    assert_eq!(open("log.example/other", member, &key, &entry), Err(Unopened::OtherKey));
    assert_eq!(open(ORIGIN, MemberId([0xa2; 16]), &key, &entry), Err(Unopened::OtherKey));
    // A ciphertext under another key that bears this key's commitment: two names for one entry are not to be had.
    let other = seal((ORIGIN, member, 2), &[0x4c; 32], [7; 24], 1, &contents("Somebody else", 0)).unwrap();
    let forged = wire::DirectoryEntry { ciphertext: other.ciphertext, ..entry.clone() };
    assert_eq!(open(ORIGIN, member, &key, &forged), Err(Unopened::Broken));
    let moved = wire::DirectoryEntry { revision: 3, ..entry };
    assert_eq!(open(ORIGIN, member, &key, &moved), Err(Unopened::Broken));
}

/// Two auditors would else see two people in one address, or a group twice: an entry opens to what a writer makes, or it is broken.
#[test]
fn an_entry_opens_to_contents_in_form_alone() {
    let (member, key) = (MemberId([0xa1; 16]), [0x4b; 32]);
    let opens = |said: &wire::DirectoryContents| {
        let entry = seal((ORIGIN, member, 0), &key, [7; 24], 1, said).unwrap();
        open(ORIGIN, member, &key, &entry)
    };
    let good = contents("Ada Lovelace", 2);
    assert!(contents_in_form(&good) && opens(&good).is_ok());
    assert!(opens(&contents("", 0)).is_ok(), "a name may be absent");
    let group = |name: &str| format!("{}/{name}", "11".repeat(16));
    let with = |change: &dyn Fn(&mut wire::DirectoryContents)| {
        let mut said = good.clone();
        change(&mut said);
        said
    };
    for (what, bad) in [
        ("a capital", with(&|said| said.address = "Ada@example.com".into())),
        ("white space around the address", with(&|said| said.address = "ada@example.com ".into())),
        ("no address", with(&|said| said.address = String::new())),
        ("a letter beyond ASCII", with(&|said| said.address = "\u{430}da@example.com".into())),
        ("a control character", with(&|said| said.name = "Ada\u{85}Eve".into())),
        ("white space at an end", with(&|said| said.name = "Ada\u{a0}".into())),
        ("descending groups", with(&|said| said.groups.reverse())),
        ("a group twice", with(&|said| said.groups = vec![group("a"), group("a")])),
        ("a group without its workspace", with(&|said| said.groups = vec!["dev".into()])),
        ("a workspace in capitals", with(&|said| said.groups = vec![format!("{}/a", "AB".repeat(16))])),
        ("a group without a name", with(&|said| said.groups = vec![group("")])),
        ("a group in words", with(&|said| said.groups = vec![group("in words")])),
        ("a longer group", with(&|said| said.groups = vec![group(&"x".repeat(GROUP_BYTES_MAX + 1))])),
    ] {
        assert_eq!(opens(&bad), Err(Unopened::Broken), "{what}");
    }
}

#[test]
fn an_entry_holds_so_much_and_no_more() {
    let mut said = contents("", 0);
    said.groups = (0..GROUPS_MAX).map(|n| format!("{}/{n:0>128}", "11".repeat(16))).collect();
    assert!(seal((ORIGIN, MemberId([1; 16]), 0), &[1; 32], [7; 24], 1, &said).is_err());
    said.groups.truncate(20);
    let entry = seal((ORIGIN, MemberId([1; 16]), 0), &[1; 32], [7; 24], 1, &said).unwrap();
    let record = crate::record::encode(wire::record::Kind::DirectoryEntry(entry));
    assert_eq!(crate::record::check(&record), Ok(crate::record::RecordKind::DirectoryEntry));
}

#[test]
fn a_disclosure_file_is_read_strictly() {
    let of = |revision| Disclosed { revision, key: [0x4b; 32] };
    let members = BTreeMap::from([(MemberId([1; 16]), of(0)), (MemberId([2; 16]), of(7))]);
    let disclosure = Disclosure { origin: ORIGIN.into(), members };
    let text = disclosure.to_text();
    assert_eq!(Disclosure::parse(text.as_bytes()), Ok(disclosure.clone()));
    assert!(!format!("{disclosure:?}").contains("75"));
    let lines: Vec<&str> = text.lines().collect();
    let swapped = [lines[0], lines[1], lines[3], lines[2], ""].join("\n");
    let twice = [lines[0], lines[1], lines[2], lines[2], ""].join("\n");
    let bad = [
        text.trim_end().to_owned(),
        text.replace("/names", "/name"),
        text.replace(' ', "  "),
        text.replace(" 7 ", " 07 "),
        text.to_uppercase(),
        format!("{text}\n"),
        [lines[0], lines[1], ""].join("\n"),
        swapped,
        twice,
    ];
    for bad in bad {
        assert!(Disclosure::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}
