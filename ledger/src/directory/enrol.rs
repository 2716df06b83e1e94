//! Enrolments: an address to an id, made if new. Several share one write of the vault and one commit.
//!
//! What must hold: keys first, then entries, then the index, then answers; within a group the same address is the same person.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use custody::{
    FORMAT_VERSION,
    directory::{self, Address},
    id::{MemberId, WorkspaceId},
    wire::{DirectoryContents, LedgerEvent, LedgerEventKind, record::Kind},
};
use prost::Message as _;

use super::{Because, By, Directory, Refusal, Told, ending, entry, event, opened};
use crate::{clock, keys, store::MemberRow};

/// Of whom something is said.
#[derive(Clone, Debug)]
pub enum Whose {
    /// Of the person with this address, who gets an id if it is new.
    Address(Address),
    /// Of a member that there is.
    Member(MemberId),
}

/// What somebody says of a person.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Whose.
    pub whose: Whose,
    /// Empty: what is known stays. From a gateway a name is taken for whoever has none: it must not take away one that another
    /// workspace brought.
    pub name: String,
    /// All groups of the person in this workspace; `None`: what is known stays.
    pub groups: Option<(WorkspaceId, Vec<String>)>,
    /// Who says it.
    pub by: By,
}

impl Enrolment {
    /// From what was sent.
    ///
    /// # Errors
    /// [`Refusal::Never`], without the text itself.
    pub fn new(address: &str, name: &str, groups: Option<(WorkspaceId, Vec<String>)>, by: By) -> Result<Self, Refusal> {
        let never = |why: directory::Unfit| Refusal::Never(why.to_string());
        let address = super::address(address)?;
        let name = directory::parse_name(name).map_err(never)?;
        if let Some((workspace, groups)) = &groups {
            directory::groups_with(&[], *workspace, groups).map_err(never)?;
        }
        Ok(Self { whose: Whose::Address(address), name, groups, by })
    }

    /// Groups of a member that there is.
    ///
    /// # Errors
    /// [`Refusal::Never`], without the text itself.
    pub fn of_member(member: MemberId, groups: (WorkspaceId, Vec<String>), by: By) -> Result<Self, Refusal> {
        let fit = directory::groups_with(&[], groups.0, &groups.1);
        fit.map_err(|why: directory::Unfit| Refusal::Never(why.to_string()))?;
        Ok(Self { whose: Whose::Member(member), name: String::new(), groups: Some(groups), by })
    }

    /// What the entry says from now on.
    fn applied(&self, known: Option<&DirectoryContents>) -> Result<DirectoryContents, Refusal> {
        let address = match &self.whose {
            Whose::Address(address) => address.as_str().to_owned(),
            Whose::Member(_) => String::new(),
        };
        let new = DirectoryContents { version: FORMAT_VERSION, address, ..Default::default() };
        let mut contents = known.cloned().unwrap_or(new);
        let may_name = matches!(self.by, By::Admin(_)) || contents.name.is_empty();
        if !self.name.is_empty() && may_name {
            contents.name.clone_from(&self.name);
        }
        if let Some((workspace, groups)) = &self.groups {
            let groups = directory::groups_with(&contents.groups, *workspace, groups);
            contents.groups = groups.map_err(|why| Refusal::Never(why.to_string()))?;
        }
        if contents.encoded_len() > directory::CONTENTS_BYTES_MAX {
            return Err(Refusal::Never("name, address and groups together have more than 4,080 bytes".to_owned()));
        }
        Ok(contents)
    }

    /// The record that says who brought it.
    fn event(&self, member: MemberId, revision: u64) -> LedgerEvent {
        let mut event = match &self.by {
            By::Admin(because) => event(LedgerEventKind::Administration, "member.add", because, Some(member)),
            By::Gateway(workspace, gateway) => LedgerEvent {
                workspace: Some((*workspace).into()),
                gateway: Some((*gateway).into()),
                ..event(LedgerEventKind::Administration, "member.enrol", &Because::default(), Some(member))
            },
        };
        event.details = vec![crate::commit::number("revision", revision)];
        event
    }
}

/// A member's newest revision and what it says.
type Newest = (u64, DirectoryContents);

/// What a group brings about, until it is written.
#[derive(Default)]
struct Plan {
    /// Ids by address of those that are new.
    made: HashMap<Address, MemberId>,
    newest: BTreeMap<MemberId, Newest>,
    /// What was known before of those that change.
    before: BTreeMap<MemberId, DirectoryContents>,
    /// Entries in their order.
    entries: Vec<(MemberId, Newest, LedgerEvent)>,
}

impl Directory {
    pub(super) fn enrol(&mut self, asked: Vec<(Enrolment, Told)>) {
        if asked.is_empty() {
            return;
        }
        let mut plan = Plan::default();
        let mut answers = Vec::with_capacity(asked.len());
        for (enrolment, told) in asked {
            answers.push((self.plan(&enrolment, &mut plan), told));
        }
        let changed: BTreeSet<MemberId> = plan.newest.keys().copied().collect();
        let done = self.write(plan);
        for (planned, told) in answers {
            // Who was known already, with nothing new to write, has an id whatever became of the others.
            told(planned.and_then(|member| match (&done, changed.contains(&member)) {
                (Err(why), true) => Err(why.clone()),
                _ => Ok(member),
            }));
        }
    }

    fn plan(&mut self, enrolment: &Enrolment, plan: &mut Plan) -> Result<MemberId, Refusal> {
        let found = match &enrolment.whose {
            Whose::Address(address) => plan.made.get(address).copied().or_else(|| self.index.with_address(address)),
            Whose::Member(member) if self.row(*member)?.is_none() => {
                return Err(Refusal::Never("nobody has this id".to_owned()));
            }
            Whose::Member(member) => Some(*member),
        };
        let known = match found {
            Some(member) => Some((member, self.newest(member, plan)?)),
            None => None,
        };
        let contents = enrolment.applied(known.as_ref().map(|(_, (_, contents))| contents))?;
        let (member, revision) = match known {
            Some((member, (_, same))) if same == contents => return Ok(member),
            Some((member, (revision, before))) => {
                plan.before.entry(member).or_insert(before);
                (member, revision + 1)
            }
            None => {
                let member = self.spare.pop().unwrap_or_else(|| MemberId(keys::random()));
                if let Whose::Address(address) = &enrolment.whose {
                    plan.made.insert(address.clone(), member);
                }
                (member, 0)
            }
        };
        plan.newest.insert(member, (revision, contents.clone()));
        plan.entries.push((member, (revision, contents), enrolment.event(member, revision)));
        Ok(member)
    }

    fn newest(&self, member: MemberId, plan: &Plan) -> Result<Newest, Refusal> {
        if let Some(newest) = plan.newest.get(&member) {
            return Ok(newest.clone());
        }
        let broken =
            || Refusal::Never("the person's entry cannot be read (hint: the ledger's log says more)".to_owned());
        let row = self.row(member)?.ok_or_else(broken)?;
        let contents = opened(&self.origin, &self.vault, member, &row).ok_or_else(broken)?;
        Ok((entry(&row).ok_or_else(broken)?.revision, contents))
    }

    fn write(&mut self, plan: Plan) -> Result<(), Refusal> {
        if plan.entries.is_empty() {
            return Ok(());
        }
        let made: Vec<MemberId> = plan.made.values().copied().collect();
        if let Err(why) = self.vault.add(&made) {
            self.spare.extend(made.into_iter().filter(|member| self.vault.key(*member).is_some()));
            return Err(why.into());
        }
        // A crash here leaves keys that open nothing.
        let (mut rows, mut records) = (BTreeMap::new(), Vec::new());
        for (member, (revision, contents), event) in plan.entries {
            let key = self.vault.key(member).ok_or_else(|| Refusal::later("the member was erased just now"))?;
            let name = (self.origin.as_str(), member, revision);
            let sealed = directory::seal(name, key, keys::random(), clock::now_us(), &contents);
            let sealed = sealed.map_err(|why| Refusal::Never(why.to_string()))?;
            rows.insert(member, MemberRow { entry: sealed.encode_to_vec().into(), erased_at: 0 });
            records.extend([Kind::DirectoryEntry(sealed), Kind::LedgerEvent(event)]);
        }
        if let Err(why) = self.try_commit(rows.into_iter().collect(), records, None).ok_or_else(ending)? {
            // These ids are nobody's, and the next who come get them.
            self.spare.extend(made);
            return Err(why.into());
        }
        for (member, before) in plan.before {
            self.index.remove(member, &before);
        }
        for (member, (_, contents)) in plan.newest {
            self.index.insert(member, &contents);
        }
        Ok(())
    }
}
