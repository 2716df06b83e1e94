//! Who the members are, for an auditor who was given a disclosure file (FORMAT.md, 5.7), and what the archive says of everybody else.
//!
//! What must hold: a name is shown only where the entry in the archive commits to the key of the file; "erased" and "not disclosed"
//! are two things. Entries are read from segments that the log names, each held against its seal.

use std::collections::BTreeMap;

use custody::{
    directory::{self, Disclosure, Unopened},
    id::MemberId,
    policy::Policy,
    record::{self, RecordKind},
    segment::Content,
    statement::RESERVED_NAME,
    verify::{self, Archive},
    wire::{LeafKind, LedgerEventKind, record::Kind},
};
use serde_json::json;

use crate::{
    failure::Failure,
    output::plain,
    segments::{Opened, covering, find_workspace, seals_of},
    time,
};

/// What was found of one member.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Entries in the archive.
    pub entries: u64,
    /// Newest revision, where there is an entry.
    pub revision: Option<u64>,
    /// When a record says that it was erased.
    pub erased_at: Option<u64>,
    /// What the newest entry says, if the file opens it.
    pub contents: Option<custody::wire::DirectoryContents>,
    /// What is wrong: each makes the answer no good.
    pub wrong: Vec<String>,
}

/// Every member that the archive has an entry or an erasure of, and every member of the file.
///
/// # Errors
/// [`Failure`], also when the file is of another log.
pub fn read(
    objects: &impl Archive,
    policy: &Policy,
    disclosure: &Disclosure,
) -> Result<BTreeMap<MemberId, Found>, Failure> {
    if disclosure.origin != policy.origin {
        return Err(Failure::NotThere(format!(
            "the disclosure file is of the log {}, and the policy of {}\nhint: name the policy that belongs to it",
            plain(&disclosure.origin),
            plain(&policy.origin)
        )));
    }
    let log = verify::log(objects, policy, None)??;
    let seals = seals_of(objects, &log, find_workspace(&log, RESERVED_NAME)?)?;
    let mut found: BTreeMap<MemberId, Found> =
        disclosure.members.keys().map(|member| (*member, Found::default())).collect();
    if seals.last().is_some_and(|seal| seal.next_position() > 0) {
        let (covered, end) = covering(&seals, 0, None)?;
        for seal in covered {
            let opened = Opened::read(objects, seal)?;
            for frame in opened.frames(0, end) {
                for entry in opened.entries(frame)? {
                    let Content::Batch(batch) = &entry.content else { continue };
                    if entry.leaf.kind == LeafKind::Batch {
                        for bytes in &batch.records {
                            take(bytes, disclosure, &mut found)?;
                        }
                    }
                }
            }
        }
    }
    for (member, of) in &disclosure.members {
        let Some(known) = found.get_mut(member) else { continue };
        match known.revision {
            None => known.wrong.push("the archive has no entry of this member".to_owned()),
            Some(newest) if newest < of.revision => known.wrong.push(format!(
                "the archive ends at revision {newest}, and the file was made at revision {}",
                of.revision
            )),
            Some(_) => {}
        }
    }
    Ok(found)
}

fn take(bytes: &[u8], disclosure: &Disclosure, found: &mut BTreeMap<MemberId, Found>) -> Result<(), Failure> {
    let odd = |why| Failure::Unreadable(format!("a record of the workspace {RESERVED_NAME}: {why}"));
    let kind = record::check(bytes).map_err(odd)?;
    if !matches!(kind, RecordKind::DirectoryEntry | RecordKind::LedgerEvent) {
        return Ok(());
    }
    match record::decode(bytes).map_err(odd)?.kind {
        Some(Kind::LedgerEvent(event)) if event.kind() == LedgerEventKind::Erasure => {
            if let Some(Ok(member)) = event.member.as_deref().map(MemberId::try_from) {
                found.entry(member).or_default().erased_at.get_or_insert(event.at);
            }
        }
        Some(Kind::DirectoryEntry(entry)) => {
            let Ok(member) = MemberId::try_from(entry.member.as_ref()) else { return Ok(()) };
            let known = found.entry(member).or_default();
            known.entries = known.entries.saturating_add(1);
            if known.revision.is_some_and(|before| before >= entry.revision) {
                known.wrong.push(format!("revision {} comes after one that is not below it", entry.revision));
                return Ok(());
            }
            known.revision = Some(entry.revision);
            let Some(of) = disclosure.members.get(&member) else { return Ok(()) };
            known.contents = None;
            match directory::open(&disclosure.origin, member, &of.key, &entry) {
                Ok(contents) => known.contents = Some(contents),
                Err(why @ (Unopened::OtherKey | Unopened::Broken)) => {
                    known.wrong.push(format!("revision {}: {why}", entry.revision));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// One word for how a member stands.
fn state(of: &Found, disclosed: bool) -> &'static str {
    match (disclosed, of.erased_at, &of.contents) {
        (true, _, Some(_)) => "opened",
        (true, _, None) => "not opened",
        (false, Some(_), _) => "erased",
        (false, None, _) => "not disclosed",
    }
}

/// One line of the table for a member.
pub fn table_line(member: MemberId, of: &Found, disclosed: bool) -> String {
    let mut line = format!("{member}  {:<13}", state(of, disclosed));
    if let Some(revision) = of.revision {
        line.push_str(&format!("  revision {revision}"));
    }
    if let Some(contents) = &of.contents {
        let groups: Vec<String> = contents.groups.iter().map(plain).collect();
        line.push_str(&format!("  {} <{}> {}", plain(&contents.name), plain(&contents.address), groups.join(" ")));
    }
    if let Some(at) = of.erased_at {
        line.push_str(&format!("  erased {}", time::text(at)));
    }
    for wrong in &of.wrong {
        line.push_str(&format!("\n    wrong: {wrong}"));
    }
    line.trim_end().to_owned()
}

/// One JSON line for a member.
pub fn json_line(member: MemberId, of: &Found, disclosed: bool) -> String {
    let contents = of.contents.as_ref();
    json!({
        "member": member.to_string(),
        "state": state(of, disclosed).replace(' ', "_"),
        "entries": of.entries,
        "revision": of.revision,
        "erased_at": of.erased_at.map(time::text),
        "name": contents.map(|contents| &contents.name),
        "address": contents.map(|contents| &contents.address),
        "groups": contents.map(|contents| &contents.groups),
        "wrong": of.wrong,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use custody::{directory::Disclosed, wire};

    use super::*;

    const ORIGIN: &str = "log.example/custody";
    const MEMBER: MemberId = MemberId([0xa1; 16]);
    const KEY: [u8; 32] = [0x4b; 32];

    fn entry(key: &[u8; 32], revision: u64, name: &str) -> wire::DirectoryEntry {
        let (name, address) = (name.into(), "ada@example.com".into());
        let contents = wire::DirectoryContents { version: 1, name, address, ..Default::default() };
        directory::seal((ORIGIN, MEMBER, revision), key, [7; 24], 1, &contents).unwrap()
    }

    /// What is found in these records with the key, or without it.
    fn found(records: Vec<Kind>, disclosed: bool) -> Found {
        let mut disclosure = Disclosure { origin: ORIGIN.into(), ..Default::default() };
        if disclosed {
            disclosure.members.insert(MEMBER, Disclosed { revision: 0, key: KEY });
        }
        let mut found = BTreeMap::new();
        for kind in records {
            take(&record::encode(kind), &disclosure, &mut found).unwrap();
        }
        found.remove(&MEMBER).unwrap()
    }

    fn entries(entries: impl IntoIterator<Item = wire::DirectoryEntry>) -> Vec<Kind> {
        entries.into_iter().map(Kind::DirectoryEntry).collect()
    }

    #[test]
    fn the_newest_entry_is_shown_to_whoever_has_the_key() {
        let both = || entries([entry(&KEY, 0, "Ada"), entry(&KEY, 1, "Ada Lovelace")]);
        let opened = found(both(), true);
        assert_eq!(opened.contents.as_ref().unwrap().name, "Ada Lovelace");
        assert_eq!((opened.entries, opened.revision, opened.wrong.len()), (2, Some(1), 0));
        let closed = found(both(), false);
        assert!(closed.contents.is_none() && closed.wrong.is_empty());
        assert!(table_line(MEMBER, &closed, false).contains("not disclosed"));
    }

    #[test]
    fn an_entry_of_another_key_a_broken_one_and_one_that_was_not_counted_are_named() {
        let other = found(entries([entry(&[1; 32], 0, "Eve")]), true);
        assert!(other.contents.is_none() && other.wrong[0].contains("commits to another key"), "{other:?}");
        let mut broken = entry(&[1; 32], 0, "Eve");
        broken.key_commitment = entry(&KEY, 0, "").key_commitment;
        let broken = found(entries([broken]), true);
        assert!(broken.contents.is_none() && broken.wrong[0].contains("does not open"), "{broken:?}");
        let again = found(entries([entry(&KEY, 1, "Ada"), entry(&KEY, 1, "Eve")]), true);
        assert_eq!(again.contents.unwrap().name, "Ada", "the first of one number stands");
        assert_eq!(again.wrong.len(), 1);
    }

    #[test]
    fn an_erasure_is_another_finding_than_a_name_that_was_not_disclosed() {
        let erasure = |kind: LedgerEventKind| {
            Kind::LedgerEvent(wire::LedgerEvent {
                at: 5,
                kind: kind as i32,
                action: "member.erase".into(),
                outcome: "ok".into(),
                member: Some(MEMBER.into()),
                ..Default::default()
            })
        };
        let erased = found(vec![Kind::DirectoryEntry(entry(&KEY, 0, "Ada")), erasure(LedgerEventKind::Erasure)], false);
        assert_eq!(erased.erased_at, Some(5));
        assert!(table_line(MEMBER, &erased, false).contains("  erased "));
        // One that was refused is none.
        let records = vec![Kind::DirectoryEntry(entry(&KEY, 0, "Ada")), erasure(LedgerEventKind::Administration)];
        assert_eq!(found(records, false).erased_at, None);
    }
}
