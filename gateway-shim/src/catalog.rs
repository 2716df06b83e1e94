//! What servers list: shown to a member as far as it may be used, pinned, and held against what is called.
//!
//! How the endpoint uses it, in the order of a request:
//! - a **call** of a tool: [`Catalog::ensure`] first (the shim asks for the list itself, where nobody has), then
//!   [`Catalog::check_call`]: the digest for the call's record, or a [`Refusal`];
//! - a **request for a list**: [`Catalog::cached`] may have the answer; else the server's answer is held back, read
//!   ([`list::read`]), given to [`Catalog::observe`], and what may go on is [`Catalog::view`];
//! - a **notification** of the server that a list has changed: [`Catalog::changed`].
//!
//! What must hold: no list goes on that was not read for certain, and none of which a change is not on record; no member sees
//! what it may not call, or what is in quarantine; no call of a tool in quarantine reaches a server; a record of a change is
//! durable before the pins are that tell of it, so that a crash repeats a record at most; what somebody decided and is on record
//! comes in force (`owed.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use custody::wire::record::Kind as RecordKind;
use tokio::time::Instant;

use crate::{
    access::{
        Reason,
        policy::{self, OnChange},
    },
    clock,
    config::Faults,
    durable,
    gateway::Gateway,
    writer::Refused,
};

pub mod alike;
pub mod ask;
pub mod cache;
pub mod json;
pub mod list;
mod owed;
pub mod pins;
pub mod schema;

pub use cache::{Asked, Credential, capabilities, known_by};
use list::{Element, Kind, List};
pub use owed::NotAccepted;
pub use pins::pinned_as;
use pins::{Change, Pins, Standing, TooMany, View};

/// The file of pins is no longer than this: some hundred bytes for each tool of some hundred servers.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// How long what was listed counts as known, where no server says that it changed: a changed definition is on record after
/// this time at last, while its server is in use.
const KNOWN_FOR: Duration = Duration::from_secs(300);
/// How long after the shim has asked in vain it does not ask again: every call would wait for it.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Changes of one server that are taken note of at once, a first list of as many tools as are kept; and in each minute behind
/// that: each is a record.
const CHANGES_MAX: usize = pins::TOOLS_MAX;
const CHANGES_PER_MINUTE: usize = 64;
/// Servers and credentials of which it is remembered when they were asked.
const ASKED_MAX: usize = 16_384;

/// Reserved rule: the tool is in quarantine.
pub const RULE_QUARANTINED: &str = "shim/quarantined";
/// Reserved rule: the arguments do not fit the pinned schema.
pub const RULE_SCHEMA: &str = "shim/schema";

/// What the access policy says of a server's definitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What happens to what has changed.
    pub on_change: OnChange,
    /// Whether arguments must fit.
    pub check_arguments: bool,
}

impl From<&policy::Server> for Policy {
    fn from(server: &policy::Server) -> Self {
        Self { on_change: server.on_change, check_arguments: server.check_arguments }
    }
}

/// Why a list does not go on.
#[derive(Debug)]
pub enum Unobserved {
    /// What has changed cannot be recorded now.
    NotRecorded(Refused),
    /// The pins cannot be kept.
    NotKept(std::io::Error),
    /// The server lists without end.
    TooMany(TooMany),
    /// The server lists something else each time.
    TooFast,
}

impl std::fmt::Display for Unobserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotRecorded(refused) => refused.fmt(f),
            Self::NotKept(_) => f.write_str("keep the pins of tools; hint: is there space in serve.dir?"),
            Self::TooMany(why) => why.fmt(f),
            Self::TooFast => f.write_str("the server changes what it lists faster than is taken note of"),
        }
    }
}

impl std::error::Error for Unobserved {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotKept(error) => Some(error),
            _ => None,
        }
    }
}

/// A call that must not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For the record.
    pub rule: &'static str,
    /// For the member, with no value of an argument.
    pub text: String,
}

/// When a server was asked for what it lists.
#[derive(Default)]
struct Walk {
    /// Until when what it listed counts as known; none, if it was never asked.
    until: Option<Instant>,
    /// Held by whoever asks.
    gate: Arc<tokio::sync::Mutex<()>>,
}

/// Changes that one server may still make.
struct Budget {
    left: usize,
    minute: Instant,
}

impl Budget {
    fn left(&mut self) -> &mut usize {
        let minutes = self.minute.elapsed().as_secs() / 60;
        self.minute += Duration::from_secs(minutes * 60);
        let more = usize::try_from(minutes).unwrap_or(CHANGES_MAX).saturating_mul(CHANGES_PER_MINUTE);
        self.left = self.left.saturating_add(more).min(CHANGES_MAX);
        &mut self.left
    }
}

/// What a server listed.
struct Listed {
    server: String,
    pages: Vec<Arc<List>>,
    whole: Option<View>,
    policy: Policy,
}

/// Pins before and after a list, and what it changes.
type Seen = (Arc<Pins>, Pins, Vec<Change>);

/// The input schema of a tool, and the definition that it is of.
type Schema = ([u8; 32], Arc<str>);

/// What all servers list. Cheap to clone.
#[derive(Clone)]
pub struct Catalog(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    file: PathBuf,
    live: RwLock<Arc<Pins>>,
    /// Held from the first record of a change until its pins are live.
    changing: tokio::sync::Mutex<()>,
    /// What somebody decided and is not finished. It becomes another with `changing` alone.
    owed: Mutex<Option<owed::Owed>>,
    lists: Mutex<cache::Cache>,
    walks: Mutex<HashMap<(String, View), Walk>>,
    /// By server.
    budgets: Mutex<HashMap<String, Budget>>,
    /// By server and tool, where arguments are checked.
    known_schemas: RwLock<HashMap<String, BTreeMap<String, Schema>>>,
    schemas: schema::Schemas,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a file of pins; one that is not there yet has none.
///
/// # Errors
/// [`Faults`]: what is there is not read as none, because every tool would be pinned anew.
fn read(file: &Path) -> Result<Pins, Faults> {
    let fault = |why: String| {
        let hint = "hint: restore it from a backup; without it every tool is pinned as it is now";
        Faults(vec![format!("{} cannot be read: {why}; {hint}", file.display())])
    };
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Pins::default()),
        Err(error) => Err(fault(error.to_string())),
        Ok(found) if found.len() > FILE_BYTES_MAX => Err(fault("it is longer than 64 MiB".into())),
        Ok(_) => {
            let bytes = std::fs::read(file).map_err(|error| fault(error.to_string()))?;
            Pins::read(&bytes).map_err(fault)
        }
    }
}

/// Whether a start finds pins, and what was decided and not finished, that it can read.
///
/// # Errors
/// [`Faults`].
pub fn check(file: &Path) -> Result<(), Faults> {
    read(file)?;
    owed::read(file).map(drop)
}

impl Catalog {
    /// With the pins of this file; goes on with what was decided and not finished.
    ///
    /// # Errors
    /// As of [`check`].
    pub fn open(file: PathBuf, gateway: Gateway) -> Result<Self, Faults> {
        let (pins, owed) = (read(&file)?, owed::read(&file)?);
        let goes_on = owed.is_some();
        let catalog = Self(Arc::new(Inner {
            gateway,
            file,
            live: RwLock::new(Arc::new(pins)),
            changing: tokio::sync::Mutex::default(),
            owed: Mutex::new(owed),
            lists: Mutex::default(),
            walks: Mutex::default(),
            budgets: Mutex::default(),
            known_schemas: RwLock::default(),
            schemas: schema::Schemas::default(),
        }));
        if goes_on {
            catalog.go_on_later();
        }
        Ok(catalog)
    }

    /// What is pinned now.
    pub fn pins(&self) -> Arc<Pins> {
        Arc::clone(&self.0.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of what a server lists; with `whole` it lists no other tools in this view. What has changed is on record, and
    /// pinned or in quarantine, when this returns; a caller that goes away does not stop it half-way.
    ///
    /// # Errors
    /// [`Unobserved`]: then the list must not go on.
    pub async fn observe(
        &self,
        server: &str,
        policy: Policy,
        kind: Kind,
        pages: &[Arc<List>],
        whole: Option<View>,
    ) -> Result<(), Unobserved> {
        if kind != Kind::Tools {
            return Ok(());
        }
        let list = Listed { server: server.to_owned(), pages: pages.to_vec(), whole, policy };
        // Mostly nothing has changed, and nobody waits for anybody.
        let (before, list) = self.seen_by(list).await?;
        let Some(before) = before else { return Ok(()) };
        let catalog = self.clone();
        let change = async move {
            let _changing = catalog.0.changing.lock().await;
            catalog.finish_owed().await?;
            let (seen, list) = match Arc::ptr_eq(&before.0, &catalog.pins()) {
                true => (Some(before), list),
                false => catalog.seen_by(list).await?,
            };
            let Some((_, next, changes)) = seen else { return Ok(()) };
            catalog.budget(&list.server, |left| left.checked_sub(changes.len()).map(|less| *left = less).is_some())?;
            catalog.change(&list.server, next, &changes).await
        };
        finish(change).await
    }

    /// What a list changes, if anything: the pins before and after, and the changes. A long list takes a while, so not on the
    /// threads that everybody's calls are on.
    async fn seen_by(&self, list: Listed) -> Result<(Option<Seen>, Listed), Unobserved> {
        let catalog = self.clone();
        let seen = tokio::task::spawn_blocking(move || {
            let Listed { server, pages, whole, policy } = &list;
            let live = catalog.pins();
            let elements = || pages.iter().flat_map(|page| &page.elements).filter(|element| element.digest.is_some());
            let new = live.unseen(server, elements().map(|element| element.name.as_str()));
            // Before anything of it is looked at, because that takes the time.
            catalog.budget(server, |left| new <= *left)?;
            if policy.check_arguments {
                catalog.learn(server, pages, whole.is_some());
            }
            let listed = elements().filter_map(|element| Some((element.name.as_str(), element.digest?)));
            let (next, changes) =
                live.observe(server, listed, *whole, policy.on_change, clock::now_us()).map_err(Unobserved::TooMany)?;
            let is_same = changes.is_empty() && next == *live;
            Ok(((!is_same).then_some((live, next, changes)), list))
        });
        seen.await.unwrap_or_else(|gone| Err(Unobserved::NotKept(std::io::Error::other(gone))))
    }

    /// Whether so many changes of a server are taken note of now.
    fn budget(&self, server: &str, fits: impl Fn(&mut usize) -> bool) -> Result<(), Unobserved> {
        let fresh = || Budget { left: CHANGES_MAX, minute: Instant::now() };
        let mut budgets = lock(&self.0.budgets);
        let left = budgets.entry(server.to_owned()).or_insert_with(fresh).left();
        if fits(left) { Ok(()) } else { Err(Unobserved::TooFast) }
    }

    /// Records durable, then the file, then what is live.
    async fn change(&self, server: &str, next: Pins, changes: &[Change]) -> Result<(), Unobserved> {
        self.record(server, changes).await.map_err(Unobserved::NotRecorded)?;
        // A crash here leaves the old pins: the same is seen, and recorded, once more.
        self.pin(next).await
    }

    async fn record(&self, server: &str, changes: &[Change]) -> Result<(), Refused> {
        let mut recordings = Vec::with_capacity(changes.len());
        for change in changes {
            let record = RecordKind::ToolDefinition(change.record(server, clock::now_us()));
            recordings.push(self.0.gateway.submit(record).await?);
            if change.action == custody::wire::DefinitionAction::Warned
                || change.action == custody::wire::DefinitionAction::Quarantined
            {
                let (tool, what) = (change.tool(), words(change));
                tracing::warn!(server, tool, "{what}");
            }
        }
        for recording in recordings {
            match recording.durable().await {
                // Let go, and declared: as the configuration says.
                Ok(_) | Err(Refused::Dropped) => {}
                Err(refused) => return Err(refused),
            }
        }
        Ok(())
    }

    /// Puts the pins in force whose records are durable.
    async fn pin(&self, next: Pins) -> Result<(), Unobserved> {
        let bytes = next.bytes();
        self.on_disk(move |pins| durable::replace(pins, &bytes)).await?;
        *self.0.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(())
    }

    /// Waits for the disk without holding up anybody.
    async fn on_disk(
        &self,
        work: impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), Unobserved> {
        let catalog = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&catalog.0.file)).await;
        done.map_err(std::io::Error::other).and_then(|done| done).map_err(Unobserved::NotKept)
    }

    /// Remembers the input schemas of what is listed.
    fn learn(&self, server: &str, pages: &[Arc<List>], whole: bool) {
        let mut all = self.0.known_schemas.write().unwrap_or_else(PoisonError::into_inner);
        let of_server = all.entry(server.to_owned()).or_default();
        if whole {
            // What is not listed here may be listed to others.
            let pins = self.pins();
            of_server.retain(|tool, (digest, _)| pins.standing(server, tool) == Standing::InForce(*digest));
        }
        for page in pages {
            for element in &page.elements {
                let (Some(digest), Some(schema)) = (element.digest, input_schema(page.definition(element))) else {
                    of_server.remove(&element.name);
                    continue;
                };
                let is_known = of_server.get(&element.name).is_some_and(|(known, _)| *known == digest);
                if !is_known && of_server.len() < pins::TOOLS_MAX {
                    of_server.insert(element.name.clone(), (digest, schema));
                }
            }
        }
    }

    /// What a member may see of a list: what `may_use` allows of what is not in quarantine. With `private` (since 2026-07-28)
    /// it says that it is this member's alone; `fresh_ms` is how long it still is fresh, of one that is given again.
    pub fn view(
        &self,
        server: &str,
        kind: Kind,
        list: &List,
        may_use: impl Fn(&str) -> bool,
        private: bool,
        fresh_ms: Option<u64>,
    ) -> Bytes {
        let pins = self.pins();
        let is_hidden = |name: &str| kind == Kind::Tools && pins.standing(server, name) == Standing::Quarantined;
        let keep = |element: &Element| !is_hidden(&element.name) && may_use(&element.name);
        list.view(keep, private, fresh_ms)
    }

    /// Whether a tool may be called with these arguments: the digest of its definition in force, for the call's record; none
    /// for one that its server does not list, where that is no reason to refuse it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check_call(
        &self,
        server: &str,
        policy: Policy,
        tool: &str,
        body: &[u8],
    ) -> Result<Option<[u8; 32]>, Refusal> {
        let refuse = |rule, text: String| Err(Refusal { rule, text });
        let digest = match self.pins().standing(server, tool) {
            Standing::InForce(digest) => digest,
            Standing::Quarantined => {
                let text = "this tool has changed and is in quarantine until somebody accepts it";
                return refuse(RULE_QUARANTINED, text.to_owned());
            }
            // A tool that shows itself only when it is called would be one that nobody can look at.
            Standing::Unlisted if policy.on_change == OnChange::Quarantine => {
                return refuse(RULE_QUARANTINED, "the server does not list this tool".to_owned());
            }
            Standing::Unlisted if policy.check_arguments => {
                let text = "the server does not list this tool, so its arguments cannot be checked";
                return refuse(RULE_SCHEMA, text.to_owned());
            }
            Standing::Unlisted => return Ok(None),
        };
        if !policy.check_arguments {
            return Ok(Some(digest));
        }
        let Some(schema) = self.schema(server, tool, digest) else {
            return refuse(RULE_SCHEMA, "the tool's input schema is not known now; try again later".to_owned());
        };
        let checked = match ask::arguments(body) {
            Ok(arguments) => self.0.schemas.check(digest, &schema, arguments),
            Err(why) => Err(schema::Misfit::Unreadable(why)),
        };
        checked.map_or_else(|misfit| refuse(RULE_SCHEMA, misfit.to_string()), |()| Ok(Some(digest)))
    }

    fn schema(&self, server: &str, tool: &str, digest: [u8; 32]) -> Option<Arc<str>> {
        let all = self.0.known_schemas.read().unwrap_or_else(PoisonError::into_inner);
        let (of, schema) = all.get(server)?.get(tool)?;
        (*of == digest).then(|| Arc::clone(schema))
    }

    /// Whether it is known what a server lists to whom it knows so, and not old.
    pub fn is_known(&self, server: &str, known_by: View) -> bool {
        let walks = lock(&self.0.walks);
        let until = walks.get(&(server.to_owned(), known_by)).and_then(|walk| walk.until);
        until.is_some_and(|until| until > Instant::now())
    }

    /// Sees to it that it is known what a server lists to whom it knows so ([`known_by`]): whoever is the first waits until `walk` has asked for
    /// it and called [`Self::observe`]; where it was known and is old, that is done beside.
    pub async fn ensure<F>(&self, server: &str, known_by: View, walk: impl FnOnce() -> F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let key = (server.to_owned(), known_by);
        let (until, gate) = {
            let mut walks = lock(&self.0.walks);
            if walks.len() >= ASKED_MAX && !walks.contains_key(&key) {
                walks.retain(|_, walk| Arc::strong_count(&walk.gate) > 1);
            }
            let walk = walks.entry(key.clone()).or_default();
            (walk.until, Arc::clone(&walk.gate))
        };
        let now = Instant::now();
        if until.is_some_and(|until| until > now) {
            return;
        }
        if until.is_some() {
            if let Ok(gate) = gate.try_lock_owned() {
                let (catalog, walk) = (self.clone(), walk());
                tokio::spawn(async move {
                    let _gate = gate;
                    catalog.walked(key, walk.await);
                });
            }
            return;
        }
        let _gate = gate.lock().await;
        let asked = lock(&self.0.walks).get(&key).and_then(|walk| walk.until).is_some();
        if !asked {
            self.walked(key, walk().await);
        }
    }

    fn walked(&self, (server, known_by): (String, View), walked: Result<(), String>) {
        let known_for = match walked {
            Ok(()) => KNOWN_FOR,
            Err(why) => {
                tracing::warn!(server, why, "the server's tools cannot be listed");
                AFTER_FAILURE
            }
        };
        let until = Some(Instant::now() + known_for);
        lock(&self.0.walks).entry((server, known_by)).or_default().until = until;
    }

    /// The whole list was seen on its way to a member: nobody need ask for it.
    pub fn seen(&self, server: &str, known_by: View) {
        self.walked((server.to_owned(), known_by), Ok(()));
    }

    /// A list that is fresh, and for how many milliseconds it still is.
    pub fn cached(&self, asked: &Asked, credential: Credential) -> Option<(Arc<List>, u64)> {
        lock(&self.0.lists).find(asked, credential, Instant::now())
    }

    /// Keeps a list that was observed for as long as its server says that it is fresh.
    pub fn keep(&self, asked: Asked, credential: Credential, list: Arc<List>) {
        lock(&self.0.lists).keep(asked, credential, list, Instant::now());
    }

    /// A server says that something has changed: nothing of it is fresh any more.
    pub fn changed(&self, server: &str, method: &str) {
        let kinds = Kind::changed_by(method);
        if kinds.is_empty() {
            return;
        }
        lock(&self.0.lists).forget(server, kinds);
        if kinds.contains(&Kind::Tools) {
            // The next call waits until it is known what there is now.
            lock(&self.0.walks).iter_mut().filter(|((of, _), _)| of == server).for_each(|(_, walk)| walk.until = None);
        }
    }
}

/// For people: what has changed.
fn words(change: &Change) -> &'static str {
    use custody::wire::{DefinitionAction::Quarantined, DefinitionChange as What};
    match (change.what, change.action) {
        (What::Seen, Quarantined) => "a new tool looks like a known one, or has come back, and is in quarantine",
        (What::Seen, _) => "a new tool looks like a known one",
        (What::Changed, Quarantined) => "a tool's definition has changed, and it is in quarantine",
        (What::Vanished, Quarantined) => "a tool is no longer listed, and is in quarantine",
        (What::Vanished, _) => "a tool is no longer listed",
        _ => "a tool's definition has changed",
    }
}

fn input_schema(definition: &str) -> Option<Arc<str>> {
    let members = json::members(definition).ok()?;
    json::value(&members, "inputSchema").ok()?.map(|schema| schema.get().into())
}

/// Runs to its end, whoever waits for it.
async fn finish<T: Send + 'static>(
    change: impl Future<Output = Result<T, Unobserved>> + Send + 'static,
) -> Result<T, Unobserved> {
    let ended = tokio::spawn(change).await;
    ended.unwrap_or_else(|gone| Err(Unobserved::NotKept(std::io::Error::other(gone))))
}

#[cfg(test)]
mod tests;
