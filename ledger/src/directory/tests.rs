//! One id for each address, whoever asks and whenever the process ends; erasures, holds, disclosures, and what is on record.

use std::{collections::BTreeMap, path::Path};

use custody::{
    id::hex,
    record,
    segment::{Content, Entry},
    wire::statement::Action,
};

use super::*;
use crate::{
    rig::{Dir, ORIGIN, Rig},
    store::Family,
};

/// Gateways of two workspaces.
const A: (WorkspaceId, GatewayId) = (WorkspaceId([5; 16]), GatewayId([0x85; 16]));
const B: (WorkspaceId, GatewayId) = (WorkspaceId([6; 16]), GatewayId([0x86; 16]));

fn vault(dir: &Path) -> Vault {
    let folder = dir.join("vault");
    std::fs::create_dir_all(&folder).unwrap();
    Vault::open(&folder, None).or_else(|_| Vault::create(&folder, None)).unwrap()
}

/// Does something with a directory over the rig's store, in a thread of its own.
async fn with<T: Send + 'static>(rig: &Rig, work: impl FnOnce(&mut Directory) -> T + Send + 'static) -> T {
    let (dir, store, requests) = (rig.dir.clone(), rig.store(), rig.requests.clone());
    let done = tokio::task::spawn_blocking(move || {
        let mut directory = Directory::open(ORIGIN, vault(&dir), &store, requests).unwrap();
        drop(store);
        work(&mut directory)
    });
    done.await.unwrap()
}

fn because() -> Because {
    Because { actor: "ada".into(), reason: "request".into(), ticket: "T-1".into() }
}

/// Who asks, and of whom: name, address, groups.
type Said<'a> = ((WorkspaceId, GatewayId), &'a str, &'a str, &'a [&'a str]);

/// Asks as one group.
fn enrol(directory: &mut Directory, asked: &[Said<'_>]) -> Vec<Result<MemberId, Refusal>> {
    let (tell, told) = std::sync::mpsc::sync_channel(GROUP_MAX);
    let asked = asked.iter().map(|((workspace, gateway), name, address, groups)| {
        let groups = Some((*workspace, groups.iter().map(|group| (*group).to_owned()).collect()));
        let enrolment = Enrolment::new(address, name, groups, By::Gateway(*workspace, *gateway)).unwrap();
        let tell = tell.clone();
        let told: Told = Box::new(move |member| tell.send(member).unwrap());
        (enrolment, told)
    });
    directory.enrol(asked.collect());
    drop(tell);
    told.iter().collect()
}

fn one(directory: &mut Directory, address: &str) -> Result<MemberId, Refusal> {
    enrol(directory, &[(A, "", address, &[])]).remove(0)
}

/// All records of the reserved workspace, in order.
fn records(store: &Store) -> Vec<Kind> {
    let mut found = Vec::new();
    for step in store.scan(Family::Entries, &[0xee; 16], &[]) {
        let Content::Batch(batch) = Entry::parse(step.unwrap().1).unwrap().content else { continue };
        found.extend(batch.records.iter().map(|bytes| record::decode(bytes).unwrap().kind.unwrap()));
    }
    found
}

/// Its events of people: action, outcome and member.
fn events(store: &Store) -> Vec<(LedgerEventKind, String, String, Option<MemberId>)> {
    let event = |kind: Kind| match kind {
        Kind::LedgerEvent(event) if event.action.starts_with("member.") => Some((
            event.kind(),
            event.action.clone(),
            event.outcome.clone(),
            event.member.as_deref().map(|member| MemberId::try_from(member).unwrap()),
        )),
        _ => None,
    };
    records(store).into_iter().filter_map(event).collect()
}

fn entries(store: &Store) -> Vec<DirectoryEntry> {
    let entry = |kind| if let Kind::DirectoryEntry(entry) = kind { Some(entry) } else { None };
    records(store).into_iter().filter_map(entry).collect()
}

/// A gateway names whoever has no name, and takes away no name that another workspace brought; it says groups of its own
/// workspace by the id alone; and asking who somebody is changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_overwrites_no_name_and_says_groups_by_the_id() {
    let dir = Dir::new("name");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (shown, refused) = with(&rig, |directory| {
        let ada = enrol(directory, &[(A, "", "ada@example.com", &["dev"])]).remove(0).unwrap();
        assert_eq!(enrol(directory, &[(A, "Ada", "ada@example.com", &["dev"])]).remove(0), Ok(ada));
        assert_eq!(enrol(directory, &[(B, "Somebody Else", "ada@example.com", &["ops"])]).remove(0), Ok(ada));
        let mut ask = |enrolment: Enrolment| {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            directory.enrol(vec![(enrolment, Box::new(move |member| tell.send(member).unwrap()))]);
            told.recv().unwrap()
        };
        let by = |(workspace, gateway): (WorkspaceId, GatewayId)| By::Gateway(workspace, gateway);
        assert_eq!(ask(Enrolment::new("ada@example.com", "", None, by(B)).unwrap()), Ok(ada));
        let groups = (A.0, vec!["on-call".to_owned()]);
        assert_eq!(ask(Enrolment::of_member(ada, groups.clone(), by(A)).unwrap()), Ok(ada));
        let refused = ask(Enrolment::of_member(MemberId([9; 16]), groups, by(A)).unwrap());
        let shown = directory.show("ada@example.com", &because()).unwrap().remove(0);
        (shown, refused)
    })
    .await;
    assert!(matches!(refused, Err(Refusal::Never(_))), "{refused:?}");
    let contents = shown.contents.unwrap();
    assert_eq!((contents.name.as_str(), contents.address.as_str()), ("Ada", "ada@example.com"));
    assert_eq!(contents.groups, [format!("{}/on-call", A.0), format!("{}/ops", B.0)]);
    assert_eq!(entries(&rig.store()).len(), 4, "who only asks writes nothing");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_one_member_whoever_asks() {
    let dir = Dir::new("one");
    let rig = Rig::start(&dir.0).await.unwrap();
    let ids = with(&rig, |directory| {
        let mut ids = enrol(
            directory,
            &[
                (A, "Ada", "Ada@Example.com", &["dev"]),
                (B, "", " ada@example.com ", &["ops"]),
                (A, "Eve", "eve@example.com", &[]),
            ],
        );
        // The same again says nothing new.
        ids.extend(enrol(directory, &[(A, "Ada", "ada@example.com", &["dev"]), (B, "", "ADA@example.com", &["ops"])]));
        ids.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    })
    .await;
    assert_eq!([ids[1], ids[3], ids[4]], [ids[0]; 3]);
    assert_ne!(ids[2], ids[0]);
    let revisions: Vec<(MemberId, u64)> = entries(&rig.store())
        .iter()
        .map(|entry| (MemberId::try_from(entry.member.as_ref()).unwrap(), entry.revision))
        .collect();
    assert_eq!(revisions, [(ids[0], 0), (ids[0], 1), (ids[2], 0)]);
    assert_eq!(events(&rig.store()).len(), 3, "who brought each entry is on record");
    // Another process of the same ledger knows the same.
    let (again, shown) = with(&rig, move |directory| {
        (one(directory, "EVE@example.com"), directory.show("ada", &because()).unwrap().remove(0))
    })
    .await;
    assert_eq!(again, Ok(ids[2]));
    let contents = shown.contents.unwrap();
    assert_eq!((shown.member, contents.name.as_str(), contents.address.as_str()), (ids[0], "Ada", "ada@example.com"));
    assert_eq!(contents.groups, [format!("{}/dev", A.0), format!("{}/ops", B.0)]);
    // No address is in any record.
    for step in rig.store().scan(Family::Entries, &[], &[]) {
        assert!(!step.unwrap().1.windows(12).any(|at| at == b"@example.com"));
    }
    rig.cut().await;
    rig.check(&BTreeMap::new());
    rig.stop().await;
}

/// The order of key and entry: what a crash between the two leaves is a key that opens nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_key_and_entry_harms_nobody() {
    let dir = Dir::new("between");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (path, store) = (dir.0.clone(), rig.store());
    let lost = tokio::task::spawn_blocking(move || {
        // A writer that is gone: the entry is never committed, and nobody is told an id.
        let (writer, _) = mpsc::channel(1);
        one(&mut Directory::open(ORIGIN, vault(&path), &store, writer).unwrap(), "ada@example.com")
    });
    assert!(matches!(lost.await.unwrap(), Err(Refusal::Later(..))));
    assert_eq!(vault(&dir.0).members().count(), 1);
    assert!(rig.store().members(MemberId::ZERO).next().is_none());
    let member = with(&rig, |directory| one(directory, "ada@example.com")).await.unwrap();
    assert_eq!(vault(&dir.0).members().count(), 2, "the key without an entry stays, and is nobody's");
    let again = with(&rig, |directory| one(directory, "ada@example.com")).await;
    assert_eq!(again, Ok(member));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_whose_entry_was_refused_is_the_next_ones() {
    let dir = Dir::new("spare");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (path, store, requests) = (dir.0.clone(), rig.store(), rig.requests.clone());
    let done = tokio::task::spawn_blocking(move || {
        let (writer, mut queue) = mpsc::channel(1);
        let refusing = std::thread::spawn(move || {
            let Some(Request::OnRecord(people)) = queue.blocking_recv() else { panic!("no change") };
            people.reply.send(Err(Untaken::Later("a test".into()))).unwrap();
            // From here on it is the real one.
            while let Some(request) = queue.blocking_recv() {
                requests.blocking_send(request).unwrap_or_else(|_| panic!("the writer is gone"));
            }
        });
        let mut directory = Directory::open(ORIGIN, vault(&path), &store, writer).unwrap();
        drop(store);
        assert_eq!(one(&mut directory, "ada@example.com"), Err(Refusal::Later(LATER_MS, "a test".into())));
        let member = one(&mut directory, "eve@example.com").unwrap();
        drop(directory);
        refusing.join().unwrap();
        (member, vault(&path).members().collect::<Vec<_>>())
    });
    let (member, keys) = done.await.unwrap();
    assert_eq!(keys, [member], "refusals fill no vault");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_member_is_gone_and_a_hold_stands_in_the_way() {
    let dir = Dir::new("erase");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (workspace, _) = rig.workspace(5).await;
    let member = with(&rig, |directory| one(directory, "ada@example.com")).await.unwrap();
    let kept = std::fs::read(dir.0.join("vault").join(crate::vault::FILE)).unwrap();

    let hold = wire::Hold { hold: vec![9; 16].into(), since: 1, until: None };
    rig.say(workspace, Action::Hold(hold)).await.unwrap();
    let held = with(&rig, move |directory| directory.erase(member, false, &because())).await;
    assert_eq!(held, Err(Refusal::Held(1)));
    assert!(vault(&dir.0).key(member).is_some());
    let lacking = Because { ticket: String::new(), ..because() };
    assert!(matches!(with(&rig, move |d| d.erase(member, true, &lacking)).await, Err(Refusal::Never(_))));

    let (at, again) = with(&rig, move |directory| directory.erase(member, true, &because())).await.unwrap();
    assert!(at > 0 && !again);
    assert!(vault(&dir.0).key(member).is_none());
    let told: Vec<_> = events(&rig.store()).into_iter().skip(1).collect();
    let of = |kind, outcome: &str| (kind, "member.erase".to_owned(), outcome.to_owned(), Some(member));
    assert_eq!(told, [of(LedgerEventKind::Administration, "legal_hold"), of(LedgerEventKind::Erasure, "ok")]);

    // A copy of the vault from before does not bring it back, and who has the address now is somebody else.
    crate::durable::write(&dir.0.join("vault").join(crate::vault::FILE), &kept, 0o600).unwrap();
    let (once_more, shown, other) = with(&rig, move |directory| {
        let once_more = directory.erase(member, false, &because());
        let shown = directory.show(&hex(&member.0), &because()).unwrap().remove(0);
        (once_more, shown, one(directory, "ada@example.com").unwrap())
    })
    .await;
    assert!(vault(&dir.0).key(member).is_none());
    assert_eq!(once_more, Ok((at, true)));
    assert_eq!((shown.standing, shown.erased_at), (Standing::Erased, at));
    assert!(shown.contents.is_none());
    assert_ne!(other, member);
    rig.cut().await;
    rig.check(&BTreeMap::new());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_available_is_not_an_erasure() {
    let dir = Dir::new("lost");
    let rig = Rig::start(&dir.0).await.unwrap();
    let member = with(&rig, |directory| one(directory, "ada@example.com")).await.unwrap();
    crate::durable::remove(&dir.0.join("vault").join(crate::vault::FILE)).unwrap();
    let (listed, refused) = with(&rig, move |directory| {
        (directory.list(None, true, &because()).unwrap(), directory.disclose(&[member], &because()))
    })
    .await;
    assert_eq!((listed.0.len(), listed.0[0].standing), (1, Standing::KeyNotAvailable));
    let Err(Refusal::Never(why)) = refused else { panic!("disclosed: {refused:?}") };
    assert!(why.contains("no record says that it was erased") && why.contains("hint:"), "{why}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disclosed_is_on_record_and_opens_for_whoever_has_the_file() {
    let dir = Dir::new("disclose");
    let rig = Rig::start(&dir.0).await.unwrap();
    let (ada, disclosure) = with(&rig, |directory| {
        let ada = enrol(directory, &[(A, "Ada", "ada@example.com", &[])]).remove(0).unwrap();
        one(directory, "eve@example.com").unwrap();
        (ada, directory.disclose(&[ada, ada], &because()).unwrap())
    })
    .await;
    assert_eq!(disclosure.members.keys().copied().collect::<Vec<_>>(), [ada]);
    let opened: Vec<bool> = entries(&rig.store())
        .iter()
        .map(|entry| directory::open(ORIGIN, ada, &disclosure.members[&ada].key, entry).is_ok_and(|c| c.name == "Ada"))
        .collect();
    assert_eq!(opened, [true, false]);
    let last = events(&rig.store()).pop().unwrap();
    assert_eq!(last, (LedgerEventKind::Disclosure, "member.disclose".into(), "ok".into(), Some(ada)));
    rig.stop().await;
}

/// Through the thread: what is asked at once shares its writes, and each hears its own answer.
#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_hear_one_id_each() {
    let dir = Dir::new("many");
    let rig = Rig::start(&dir.0).await.unwrap();
    let store = rig.store();
    let directory = Directory::open(ORIGIN, vault(&dir.0), &store, rig.requests.clone()).unwrap();
    drop(store);
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    let thread = std::thread::spawn(move || directory.run(asked));
    let mut answers = Vec::new();
    for number in 0..3 * GROUP_MAX {
        let (tell, told) = oneshot::channel();
        // Two of three are about the same person, in two workspaces.
        let (by, address) = match number % 3 {
            0 => (By::Gateway(A.0, A.1), "ada@example.com".to_owned()),
            1 => (By::Gateway(B.0, B.1), "Ada@example.com".to_owned()),
            _ => (By::Gateway(A.0, A.1), format!("{number}@example.com")),
        };
        let enrolment = Enrolment::new(&address, "", None, by).unwrap();
        let told_to: Told = Box::new(move |member| drop(tell.send(member)));
        asks.send(Ask::Enrol(enrolment, told_to)).await.unwrap_or_else(|_| panic!("the directory is gone"));
        answers.push(told);
    }
    let mut ids = std::collections::BTreeSet::new();
    for told in answers {
        ids.insert(told.await.unwrap().unwrap());
    }
    assert_eq!(ids.len(), GROUP_MAX + 1);
    let listed = ask(&asks, |directory| directory.list(None, false, &because())).await.unwrap();
    assert_eq!(listed.0.len(), GROUP_MAX + 1);
    assert!(listed.0.iter().all(|view| view.contents.is_none()));
    drop(asks);
    tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
    rig.stop().await;
}
