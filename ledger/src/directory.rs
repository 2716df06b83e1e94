//! The directory: one id for each person in all workspaces, and who that is, for those who may know.
//!
//! What must hold: a member's key is in the vault, on disk, before an entry that it encrypts is committed, and nothing is answered
//! before that write; a crash between the two leaves a key that opens nothing, which harms nobody. One thread serves all who ask,
//! in order, so that one address never gets two ids. Whoever is shown a name is on record before it is shown. An erasure is a
//! record first and the end of the key after it: what a crash leaves undone, the next start does ([`Directory::open`]).
//!
//! Rows of members are in the store (one for each, its newest entry), keys in the vault, and what finds a member by address or
//! name in memory alone ([`index`]).

use std::sync::Weak;

use bytes::Bytes;
use custody::{
    directory::{self, Address},
    id::{GatewayId, MemberId, WorkspaceId},
    wire::{self, DirectoryContents, DirectoryEntry, LedgerEventKind, record::Kind},
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use self::index::Index;
use crate::{
    clock,
    commit::{OnRecord, Request, Untaken},
    log_view::report,
    store::{Family, MemberRow, Store, StoreError},
    vault::{Vault, VaultError},
};

mod enrol;
mod index;
mod look;
#[cfg(test)]
mod tests;

pub use enrol::{Enrolment, Whose};
pub use look::{MemberView, Standing};

/// Questions that may wait: more than one write takes, of all gateways together.
pub const ASKS_MAX: usize = 256;
/// Enrolments that share one write of the vault and one commit: two records each, of at most 5 KiB together, so that they fit
/// into a batch of 1 MiB with all else that waits.
const GROUP_MAX: usize = 64;
/// How long whoever is refused for a moment is to wait.
const LATER_MS: u32 = 1_000;

/// Why somebody is not told what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not now: the same again after so many milliseconds.
    Later(u32, String),
    /// Never, as it is.
    Never(String),
    /// So many legal holds stand.
    Held(usize),
}

impl Refusal {
    fn later(why: impl Into<String>) -> Self {
        Self::Later(LATER_MS, why.into())
    }
}

impl From<Untaken> for Refusal {
    fn from(why: Untaken) -> Self {
        match why {
            Untaken::Later(why) => Self::later(why),
            Untaken::Held(holds) => Self::Held(holds),
        }
    }
}

impl From<VaultError> for Refusal {
    fn from(why: VaultError) -> Self {
        match why {
            VaultError::Full => Self::Never("the vault is full (hint: erase members who have left)".to_owned()),
            why => {
                tracing::error!(why = report(&why), "the vault cannot be written");
                Self::later("the vault cannot be written (hint: the ledger's log says why)")
            }
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(why: StoreError) -> Self {
        tracing::error!(why = report(&why), "the directory cannot be read");
        Self::later("the directory cannot be read (hint: the ledger's log says why)")
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub enum By {
    /// A gateway, for its workspace.
    Gateway(WorkspaceId, GatewayId),
    /// An administrator.
    Admin(Because),
}

/// Why an administrator asks: tokens, which stand in the record.
#[derive(Clone, Debug, Default)]
pub struct Because {
    /// Name in the certificate.
    pub actor: String,
    /// A code.
    pub reason: String,
    /// A reference.
    pub ticket: String,
}

/// Hears what became of an enrolment.
pub type Told = Box<dyn FnOnce(Result<MemberId, Refusal>) + Send>;

/// Something to ask the directory.
pub enum Ask {
    /// The id of a person.
    Enrol(Enrolment, Told),
    /// Anything else.
    Work(Box<dyn FnOnce(&mut Directory) + Send>),
}

/// The one directory.
pub struct Directory {
    origin: String,
    vault: Vault,
    index: Index,
    /// It does not keep the store open.
    store: Weak<Store>,
    writer: mpsc::Sender<Request>,
    /// Ids that have a key and, for certain, no entry: their commits were refused.
    spare: Vec<MemberId>,
}

impl Directory {
    /// Reads every member's row, and ends what an erasure left: a key whose member is erased.
    ///
    /// # Errors
    /// [`StoreError`] or, in words, the vault.
    pub fn open(
        origin: &str,
        mut vault: Vault,
        store: &std::sync::Arc<Store>,
        writer: mpsc::Sender<Request>,
    ) -> Result<Self, Unopened> {
        let mut index = Index::new();
        let (mut left, mut closed, mut members) = (Vec::new(), 0_u64, 0_u64);
        for step in store.members(MemberId::ZERO) {
            let (member, row) = step?;
            members += 1;
            if row.erased_at > 0 {
                left.push(member);
                continue;
            }
            let Some(contents) = opened(origin, &vault, member, &row) else {
                closed += 1;
                continue;
            };
            if !index.insert(member, &contents) {
                tracing::warn!(%member, "another member has the same address and keeps it");
            }
        }
        let ended = vault.destroy(&left)?;
        if ended > 0 {
            tracing::warn!(keys = ended, "keys of erased members were still there, and are destroyed now");
        }
        if closed > 0 {
            tracing::warn!(
                members = closed,
                "entries do not open: keys are not available, and no record says that they were erased; hint: ledger \
                 vault restore"
            );
        }
        tracing::info!(members, "the directory is open");
        Ok(Self {
            origin: origin.to_owned(),
            vault,
            index,
            store: std::sync::Arc::downgrade(store),
            writer,
            spare: Vec::new(),
        })
    }

    /// Serves until nobody can ask any more. For a thread of its own: it waits for disks.
    pub fn run(mut self, mut asked: mpsc::Receiver<Ask>) {
        let mut waiting = Vec::new();
        while let Some(mut ask) = asked.blocking_recv() {
            loop {
                match ask {
                    Ask::Enrol(enrolment, told) => waiting.push((enrolment, told)),
                    Ask::Work(work) => {
                        self.enrol(std::mem::take(&mut waiting));
                        work(&mut self);
                    }
                }
                if waiting.len() >= GROUP_MAX {
                    break;
                }
                let Ok(next) = asked.try_recv() else { break };
                ask = next;
            }
            self.enrol(std::mem::take(&mut waiting));
        }
    }

    /// Erases a member: when it was, and whether it was erased before.
    ///
    /// # Errors
    /// [`Refusal`]. Where the key could not be destroyed although the record stands, the next start destroys it.
    pub fn erase(&mut self, member: MemberId, force: bool, because: &Because) -> Result<(u64, bool), Refusal> {
        if force && (because.reason.is_empty() || because.ticket.is_empty()) {
            return Err(Refusal::Never("an erasure under a legal hold needs a reason and a ticket".to_owned()));
        }
        let row = self.row(member)?.ok_or_else(|| unknown(member))?;
        if row.erased_at > 0 {
            self.vault.destroy(&[member])?;
            return Ok((row.erased_at, true));
        }
        let contents = opened(&self.origin, &self.vault, member, &row);
        let erased = MemberRow { erased_at: clock::now_us().max(1), ..row };
        let at = erased.erased_at;
        let event = event(LedgerEventKind::Erasure, "member.erase", because, Some(member));
        self.commit(vec![(member, erased)], vec![Kind::LedgerEvent(event)], Some(force))?;
        // A crash here leaves a key of an erased member, which the next start destroys.
        if let Some(contents) = contents {
            self.index.remove(member, &contents);
        }
        self.vault.destroy(&[member])?;
        Ok((at, false))
    }

    fn row(&self, member: MemberId) -> Result<Option<MemberRow>, Refusal> {
        Ok(self.store()?.member(member)?)
    }

    fn store(&self) -> Result<std::sync::Arc<Store>, Refusal> {
        self.store.upgrade().ok_or_else(ending)
    }

    /// One write of rows and records; durable when this returns.
    fn commit(
        &self,
        rows: Vec<(MemberId, MemberRow)>,
        records: Vec<Kind>,
        erasure: Option<bool>,
    ) -> Result<(), Refusal> {
        Ok(self.try_commit(rows, records, erasure).ok_or_else(ending)??)
    }

    /// The same; `None` if nobody knows what became of it, but the next start.
    fn try_commit(
        &self,
        rows: Vec<(MemberId, MemberRow)>,
        records: Vec<Kind>,
        erasure: Option<bool>,
    ) -> Option<Result<(), Untaken>> {
        let (reply, answer) = oneshot::channel();
        let row = |(member, row): (MemberId, MemberRow)| {
            (Family::Members, Bytes::from(member), Bytes::from(row.encode_to_vec()))
        };
        let told = OnRecord { rows: rows.into_iter().map(row).collect(), records, erasure, reply };
        self.writer.blocking_send(Request::OnRecord(Box::new(told))).ok()?;
        answer.blocking_recv().ok()
    }
}

/// Why the directory does not open.
#[derive(Debug)]
pub enum Unopened {
    /// Its rows.
    Store(StoreError),
    /// The keys.
    Vault(VaultError),
}

impl From<StoreError> for Unopened {
    fn from(why: StoreError) -> Self {
        Self::Store(why)
    }
}

impl From<VaultError> for Unopened {
    fn from(why: VaultError) -> Self {
        Self::Vault(why)
    }
}

fn ending() -> Refusal {
    Refusal::later("the ledger is ending (hint: try again)")
}

fn unknown(member: MemberId) -> Refusal {
    Refusal::Never(format!("there is no member {member} (hint: ledger member list)"))
}

/// The newest entry in a row.
fn entry(row: &MemberRow) -> Option<DirectoryEntry> {
    DirectoryEntry::decode(row.entry.clone()).ok()
}

/// What the newest entry says; `None` if there is no key, or it does not open.
fn opened(origin: &str, vault: &Vault, member: MemberId, row: &MemberRow) -> Option<DirectoryContents> {
    directory::open(origin, member, vault.key(member)?, &entry(row)?).ok()
}

/// A record of the directory's own.
fn event(kind: LedgerEventKind, action: &str, because: &Because, member: Option<MemberId>) -> wire::LedgerEvent {
    wire::LedgerEvent {
        at: clock::now_us(),
        kind: kind as i32,
        action: action.to_owned(),
        outcome: "ok".to_owned(),
        actor: because.actor.clone(),
        reason: because.reason.clone(),
        ticket: because.ticket.clone(),
        member: member.map(Into::into),
        ..Default::default()
    }
}

/// Asks the directory something from a task, and waits for the answer.
///
/// # Errors
/// [`Refusal`].
pub async fn ask<T: Send + 'static>(
    directory: &mpsc::Sender<Ask>,
    work: impl FnOnce(&mut Directory) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    let work = Ask::Work(Box::new(move |directory| drop(reply.send(work(directory)))));
    directory.send(work).await.map_err(|_| ending())?;
    answer.await.map_err(|_| ending())?
}

/// Reads an address of somebody who asks.
///
/// # Errors
/// [`Refusal::Never`].
pub fn address(said: &str) -> Result<Address, Refusal> {
    Address::parse(said).map_err(|why| Refusal::Never(why.to_string()))
}
