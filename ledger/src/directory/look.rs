//! What people are shown of people: each time a record, before the answer.

use std::collections::BTreeMap;

use custody::{
    directory::{Address, Disclosed, Disclosure},
    id::MemberId,
    wire::{DirectoryContents, LedgerEventKind, record::Kind},
};

use super::{Because, Directory, Refusal, entry, event, opened, unknown};
use crate::store::MemberRow;

/// Members of one answer to a list: a page of a screen or two, so that the thread is nobody's for long.
pub(super) const PAGE_MAX: usize = 500;
/// Members of one disclosure: a record for each, all in one batch with what else waits.
pub(super) const DISCLOSED_AT_ONCE_MAX: usize = 256;

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its entry opens.
    Known,
    /// Its key was destroyed, which is on record.
    Erased,
    /// Its entry does not open, and no record says that it was erased.
    KeyNotAvailable,
}

/// What is shown of a member.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Who.
    pub member: MemberId,
    /// How it stands.
    pub standing: Standing,
    /// Of its newest entry.
    pub revision: u64,
    /// When that was written.
    pub entered_at: u64,
    /// When it was erased; 0: it was not.
    pub erased_at: u64,
    /// What the entry says, where that was asked for.
    pub contents: Option<DirectoryContents>,
}

impl Directory {
    fn view(&self, member: MemberId, row: &MemberRow) -> MemberView {
        let contents = opened(&self.origin, &self.vault, member, row).filter(|_| row.erased_at == 0);
        let standing = match &contents {
            _ if row.erased_at > 0 => Standing::Erased,
            Some(_) => Standing::Known,
            None => Standing::KeyNotAvailable,
        };
        let (revision, entered_at) = entry(row).map_or((0, 0), |entry| (entry.revision, entry.at));
        MemberView { member, standing, revision, entered_at, erased_at: row.erased_at, contents }
    }

    /// Members by id in hex, address or name; each is on record as shown.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn show(&self, who: &str, because: &Because) -> Result<Vec<MemberView>, Refusal> {
        let by_address = || Address::parse(who).ok().and_then(|address| self.index.with_address(&address));
        let found = match MemberId::from_hex(who) {
            Some(member) => vec![member],
            None => by_address().map_or_else(|| self.index.with_name(who.trim()), |member| vec![member]),
        };
        if found.len() > PAGE_MAX {
            return Err(Refusal::Never("too many people have that name (hint: ask by address)".to_owned()));
        }
        let mut views = Vec::new();
        for member in found {
            views.extend(self.row(member)?.map(|row| self.view(member, &row)));
        }
        if views.is_empty() {
            return Err(Refusal::Never(
                "nobody is known by that id, address or name (hint: ledger member list)".to_owned(),
            ));
        }
        let told = |view: &MemberView| {
            Kind::LedgerEvent(event(LedgerEventKind::Disclosure, "member.show", because, Some(view.member)))
        };
        self.commit(Vec::new(), views.iter().map(told).collect(), None)?;
        Ok(views)
    }

    /// Ids of whoever has an address or a name. Nothing is shown that was not known before: whoever asks tells of it.
    pub fn ids(&self, who: &str) -> Vec<MemberId> {
        let by_address = Address::parse(who).ok().and_then(|address| self.index.with_address(&address));
        by_address.map_or_else(|| self.index.with_name(who.trim()), |member| vec![member])
    }

    /// Names of members, as far as they can be opened. Whoever asks is on record before they are shown.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn names(&self, members: &[MemberId]) -> Result<Vec<(MemberId, String)>, Refusal> {
        let mut names = Vec::new();
        for member in members {
            let Some(row) = self.row(*member)? else { continue };
            let contents = self.view(*member, &row).contents;
            names.extend(contents.map(|contents| (*member, contents.name)).filter(|(_, name)| !name.is_empty()));
        }
        Ok(names)
    }

    /// The members after this one, and whether there are more. With names it is on record that so many were shown.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn list(
        &self,
        after: Option<MemberId>,
        names: bool,
        because: &Because,
    ) -> Result<(Vec<MemberView>, bool), Refusal> {
        let store = self.store()?;
        let mut views = Vec::new();
        let mut more = false;
        for step in store.members(after.unwrap_or(MemberId::ZERO)) {
            let (member, row) = step?;
            if Some(member) == after {
                continue;
            }
            if views.len() == PAGE_MAX {
                more = true;
                break;
            }
            let mut view = self.view(member, &row);
            view.contents = view.contents.filter(|_| names);
            views.push(view);
        }
        if names && !views.is_empty() {
            let mut event = event(LedgerEventKind::Disclosure, "member.list", because, None);
            event.details = vec![crate::commit::number("members", u64::try_from(views.len()).unwrap_or(u64::MAX))];
            self.commit(Vec::new(), vec![Kind::LedgerEvent(event)], None)?;
        }
        Ok((views, more))
    }

    /// What opens these members' entries; each is on record as disclosed.
    ///
    /// # Errors
    /// [`Refusal`], for all if one of them cannot be opened.
    pub fn disclose(&self, members: &[MemberId], because: &Because) -> Result<Disclosure, Refusal> {
        if members.is_empty() || members.len() > DISCLOSED_AT_ONCE_MAX {
            return Err(Refusal::Never(format!("a disclosure has 1 to {DISCLOSED_AT_ONCE_MAX} members at a time")));
        }
        let mut disclosed = BTreeMap::new();
        let mut records = Vec::new();
        for member in members {
            let row = self.row(*member)?.ok_or_else(|| unknown(*member))?;
            let view = self.view(*member, &row);
            let why = match view.standing {
                Standing::Known => None,
                Standing::Erased => Some("was erased, which is on record: nobody can open its entries any more"),
                Standing::KeyNotAvailable => {
                    Some("has no key here, and no record says that it was erased (hint: ledger vault restore)")
                }
            };
            if let Some(why) = why {
                return Err(Refusal::Never(format!("member {member} {why}")));
            }
            let key = self.vault.key(*member).ok_or_else(|| unknown(*member))?;
            if disclosed.insert(*member, Disclosed { revision: view.revision, key: *key }).is_none() {
                let event = event(LedgerEventKind::Disclosure, "member.disclose", because, Some(*member));
                records.push(Kind::LedgerEvent(event));
            }
        }
        self.commit(Vec::new(), records, None)?;
        Ok(Disclosure { origin: self.origin.clone(), members: disclosed })
    }
}
