//! Changes of the access policy: what is in force, how it comes to be something else, and what a crash between leaves.
//!
//! What is in force is a copy of the policy in a folder of the gateway's own. A change goes these steps, each durable before
//! the next begins: the whole change is written down ([`Paths::pending`]); its records are made; it is live; the copy is
//! replaced; the workspace's file too, if a verb made the change and the file was as what was in force; what was written
//! down goes. From the first step on the change will be made: whatever finds one written down, a start or the next change,
//! goes all the steps again. Records made twice have the same digests and say the same (FORMAT.md, 5.6).
//!
//! What must hold: nothing is live whose records are not durable; a change that nobody wrote down was not made; two changes
//! are made one after the other.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use custody::{
    id::{MemberId, hex, unhex},
    wire::{AccessChange, record::Kind},
};
use futures::future::BoxFuture;
use tokio::sync::{Mutex, mpsc};

use super::{
    Access, IdentityProvider, Policy, Provider, Vouched,
    compiled::Compiled,
    edit::{Edit, Edited, edit},
    plan::{self, Actor, Change, Reason, plan},
    token::OneTimeToken,
};
use crate::{clock, config::Faults, durable, gateway::Gateway, writer::Refused};

mod files;

pub use files::Paths;
use files::{Files, Pending, Real, Texts, as_written, not_read, there, wanted};

/// Members whose groups may wait to be recorded: with more, what a provider says of groups does not count yet.
const NEWS_MAX: usize = 1_024;

/// How often counts of the day are written down: so much of them a crash may take.
pub(super) const KEEP_EVERY: Duration = Duration::from_secs(60);

/// Why a change is not made, or not wholly. Each text ends with the next move.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// Nothing was changed.
    Refused(String),
    /// It is written down, and goes on with the next change or start. It is in force only if the text says so.
    Unfinished(String),
}

impl std::fmt::Display for ChangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Refused(text) | Self::Unfinished(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for ChangeError {}

impl From<Faults> for ChangeError {
    fn from(Faults(faults): Faults) -> Self {
        Self::Refused(faults.join("; "))
    }
}

/// What a change did.
pub struct Changed {
    /// A line for each part, for people.
    pub lines: Vec<String>,
    /// Tokens that were made, to be shown once.
    pub tokens: Vec<OneTimeToken>,
    /// Digest of what is in force now.
    pub digest: [u8; 32],
}

/// What an application would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// A line for each part. None: what the policy says stays as it is.
    pub lines: Vec<String>,
    /// Digest of what is in force.
    pub before: [u8; 32],
    /// Digest of what would be.
    pub after: [u8; 32],
}

/// What makes records durable: the gateway.
pub trait Recorder: Send + Sync {
    /// Records all of these, in their order. They are durable when this returns.
    fn record(&self, changes: Vec<AccessChange>) -> BoxFuture<'_, Result<(), Refused>>;
}

impl Recorder for Gateway {
    fn record(&self, changes: Vec<AccessChange>) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(async move {
            let mut on_their_way = Vec::with_capacity(changes.len());
            for change in changes {
                on_their_way.push(self.submit(Kind::AccessChange(change)).await?);
            }
            for recording in on_their_way {
                recording.durable().await?;
            }
            Ok(())
        })
    }
}

/// What is in force, and the change that is being made, if one is.
struct State {
    texts: Texts,
    policy: Arc<Policy>,
    unfinished: Option<Pending>,
}

struct Inner {
    paths: Paths,
    files: Box<dyn Files>,
    recorder: Box<dyn Recorder>,
    access: Access,
    state: Mutex<State>,
}

/// The one that changes the policy. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Puts in force what was in force before; completes a change that was being made. The very first start applies the
    /// workspace's file, and the organisation's.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn open(paths: Paths, gateway: Gateway) -> Result<Self, ChangeError> {
        durable::create_dir(&paths.dir, 0o700).map_err(|error| not_read(&paths.dir, &error))?;
        let engine = Self::open_with(paths, Box::new(Real), Box::new(gateway)).await?;
        let weak = Arc::downgrade(&engine.0);
        tokio::spawn(async move {
            loop {
                clock::sleep(KEEP_EVERY).await;
                let Some(inner) = weak.upgrade() else { return };
                Self(inner).keep_counts().await;
            }
        });
        Ok(engine)
    }

    /// Writes down what was counted today, which the next start goes on from. A drain ends with it.
    pub async fn keep_counts(&self) {
        let Inner { paths, access, .. } = &*self.0;
        let kept = access.0.counting.today(self.policy().await.limits.iter(), clock::now_us());
        let Some(text) = kept.and_then(|kept| serde_json::to_string(&kept).ok()) else { return };
        if let Err(why) = self.write(paths.counts(), text).await {
            tracing::warn!(why, "the counts of today's calls are not written down; a restart would begin them anew");
        }
    }

    pub(super) async fn open_with(
        paths: Paths,
        files: Box<dyn Files>,
        recorder: Box<dyn Recorder>,
    ) -> Result<Self, ChangeError> {
        let read = |path: &Path| files.read(path).map_err(|error| not_read(path, &error));
        let written = read(&paths.pending())?.map(|text| as_written(&paths, &text)).transpose()?;
        let in_force = match read(&paths.in_force())? {
            Some(workspace) => Some(Texts { workspace, organisation: read(&paths.organisation_in_force())? }),
            None => None,
        };
        let next = match (&written, &in_force) {
            (None, None) => Some(Pending::first(wanted(&paths, &*files)?)),
            _ => written.clone(),
        };
        let texts = in_force.unwrap_or_else(|| Texts { workspace: "version = 1\n".to_owned(), organisation: None });
        let policy = match texts.parse() {
            // A crash may have left one file of the two replaced, which need not fit the other.
            Err(_) if written.is_some() => Policy::default(),
            parsed => parsed?,
        };
        let policy = Arc::new(policy);
        let access = Access::new(Arc::clone(&policy));
        // What cannot be read counts nothing: it is no reason to refuse all calls.
        if let Some(kept) = read(&paths.counts())?.and_then(|text| serde_json::from_str(&text).ok()) {
            access.0.counting.go_on(kept, clock::now_us());
        }
        let state = State { texts, policy, unfinished: None };
        let engine = Self(Arc::new(Inner { paths, files, recorder, access, state: Mutex::new(state) }));
        if let Some(next) = next {
            engine.make(&mut *engine.0.state.lock().await, next, written.is_none()).await?;
        }
        Ok(engine)
    }

    /// Takes an identity provider's word besides tokens, from here on.
    ///
    /// # Errors
    /// [`Faults`].
    pub async fn trust(&self, provider: IdentityProvider) -> Result<(), Faults> {
        let provider = Provider::start(provider).await?;
        let (news, told) = mpsc::channel(NEWS_MAX);
        self.0.access.trust(provider, news);
        tokio::spawn(tell(Arc::downgrade(&self.0), told));
        Ok(())
    }

    /// What the endpoint asks.
    pub fn access(&self) -> Access {
        self.0.access.clone()
    }

    /// What is in force.
    pub async fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.state.lock().await.policy)
    }

    /// What applying the files as they are now would change.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn plan(&self) -> Result<Plan, ChangeError> {
        self.plan_of(wanted(&self.0.paths, &*self.0.files)?.workspace).await
    }

    /// What applying this text as the workspace's policy would change, under the organisation's file as it is now.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn plan_of(&self, workspace: String) -> Result<Plan, ChangeError> {
        let policy = self.with_organisation(workspace)?.parse()?;
        let now = self.policy().await;
        let lines = plan(&now, &policy).into_iter().map(|change| change.line).collect();
        Ok(Plan { lines, before: now.digest, after: policy.digest })
    }

    /// Whether the files differ from what is in force, or cannot be read: something to tell, never applied by itself.
    pub async fn differs(&self) -> Option<String> {
        let hint = "hint: gateway-shim access plan shows the difference, access apply puts it in force";
        match wanted(&self.0.paths, &*self.0.files) {
            Ok(texts) if texts == self.0.state.lock().await.texts => None,
            Ok(_) => Some(format!("the access policy's file is not what is in force; {hint}")),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Puts the workspace's and the organisation's files in force as they are now; with `workspace`, this text instead of
    /// the workspace's.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn apply(&self, workspace: Option<String>, why: Reason) -> Result<Changed, ChangeError> {
        is_recordable(&why)?;
        let to = match workspace {
            Some(text) => self.with_organisation(text)?,
            None => wanted(&self.0.paths, &*self.0.files)?,
        };
        let engine = self.clone();
        whole(tokio::spawn(async move {
            let mut state = engine.ready().await?;
            let pending = Pending { whole: true, ..pending(&state, to, &why) };
            let (lines, digest) = engine.make(&mut state, pending, true).await?;
            Ok(Changed { lines, tokens: Vec::new(), digest })
        }))
        .await
    }

    /// Changes the policy by a verb.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn edit(&self, verb: Edit, why: Reason) -> Result<Changed, ChangeError> {
        is_recordable(&why)?;
        let engine = self.clone();
        whole(tokio::spawn(async move {
            let mut state = engine.ready().await?;
            let (texts, policy) = (state.texts.clone(), Arc::clone(&state.policy));
            let edited = aside(move || edit(&texts.workspace, &policy, &verb, clock::now_us())).await?;
            let Edited { text, tokens, rotated } = edited.map_err(ChangeError::Refused)?;
            let to = Texts { workspace: text, ..state.texts.clone() };
            let file = engine.0.files.read(&engine.0.paths.workspace);
            let file_too = file.is_ok_and(|file| file.as_ref() == Some(&state.texts.workspace));
            let rotated = rotated.into_iter().map(|(id, end)| (hex(&id), end)).collect();
            let pending = Pending { file_too, rotated, ..pending(&state, to, &why) };
            let (lines, digest) = engine.make(&mut state, pending, true).await?;
            Ok(Changed { lines, tokens, digest })
        }))
        .await
    }

    /// The state, once a change that was not finished is.
    async fn ready(&self) -> Result<tokio::sync::MutexGuard<'_, State>, ChangeError> {
        let mut state = self.0.state.lock().await;
        if let Some(pending) = state.unfinished.clone() {
            self.make(&mut state, pending, false).await?;
        }
        Ok(state)
    }

    /// Makes a change, from the step on that is next. `new`: it is not written down yet.
    async fn make(
        &self,
        state: &mut State,
        pending: Pending,
        new: bool,
    ) -> Result<(Vec<String>, [u8; 32]), ChangeError> {
        let old = Arc::clone(&state.policy);
        let ready = aside(move || Ready::new(&old, pending)).await??;
        let Ready { pending, text, policy, compiled, changes } = ready;
        if new {
            // A crash before this returns leaves all as it was; behind it the change is made, now or at the next start.
            self.write_down(text).await?;
        }
        state.unfinished = Some(pending.clone());
        if state.texts != pending.to || pending.before.is_none() {
            let (at, why) = (clock::now_us(), pending.why());
            let before = pending.before.as_deref().and_then(unhex).and_then(|digest| digest.try_into().ok());
            let records = changes.iter().map(|change| change.record(at, &why, before, policy.digest)).collect();
            self.0.recorder.record(records).await.map_err(|refused| {
                ChangeError::Unfinished(format!(
                    "record the change: {refused}; it is not in force; hint: it goes on with the next change or start"
                ))
            })?;
        }
        // All records are durable, so it may be seen.
        self.0.access.swap(compiled);
        (state.texts, state.policy) = (pending.to.clone(), Arc::clone(&policy));
        self.replace(&pending).await.map_err(|why| {
            ChangeError::Unfinished(format!(
                "write what is in force: {why}; the change is in force; hint: mend the folder, the next change or start goes on"
            ))
        })?;
        state.unfinished = None;
        let lines = changes.into_iter().map(|change| change.line).filter(|line| !line.is_empty()).collect();
        Ok((lines, policy.digest))
    }

    /// The first step. A write that fails may have left what it wrote all the same, so it is taken back.
    async fn write_down(&self, text: String) -> Result<(), ChangeError> {
        let Err(why) = self.write(self.0.paths.pending(), text).await else { return Ok(()) };
        match self.remove(self.0.paths.pending()).await {
            Ok(()) => Err(ChangeError::Refused(format!(
                "write down the change: {why}; hint: nothing was changed, mend the folder and try again"
            ))),
            Err(_) => Err(ChangeError::Unfinished(format!(
                "write down the change: {why}; it is not in force; hint: mend the folder; the next start may make it"
            ))),
        }
    }

    /// The last steps: the files, and what was written down goes.
    async fn replace(&self, pending: &Pending) -> Result<(), String> {
        let Inner { paths, .. } = &*self.0;
        match &pending.to.organisation {
            Some(text) => self.write(paths.organisation_in_force(), text.clone()).await?,
            None => self.remove(paths.organisation_in_force()).await?,
        }
        // Only with this one is what is in force another: the organisation's stands already.
        self.write(paths.in_force(), pending.to.workspace.clone()).await?;
        if pending.file_too {
            self.write(paths.workspace.clone(), pending.to.workspace.clone()).await?;
        }
        self.remove(paths.pending()).await
    }

    fn with_organisation(&self, workspace: String) -> Result<Texts, ChangeError> {
        let organisation = self.0.paths.organisation.as_deref().map(|path| there(&*self.0.files, path));
        Ok(Texts { workspace, organisation: organisation.transpose()? })
    }

    async fn write(&self, path: PathBuf, text: String) -> Result<(), String> {
        self.on_disk(move |files| files.replace(&path, &text).map_err(|error| format!("{}: {error}", path.display())))
            .await
    }

    async fn remove(&self, path: PathBuf) -> Result<(), String> {
        let gone = move |files: &dyn Files| match files.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
            _ => Ok(()),
        };
        self.on_disk(gone).await
    }

    /// Waits for the disk without holding up anybody.
    async fn on_disk(
        &self,
        work: impl FnOnce(&dyn Files) -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&*inner.files)).await.map_err(|error| error.to_string())?
    }
}

/// Whether a start finds a policy that it can put in force: what was in force, or the files before the very first start.
///
/// # Errors
/// [`Faults`].
pub fn check(paths: &Paths) -> Result<(), Faults> {
    let read = |path: &Path| Real.read(path).map_err(|error| Faults(vec![not_read(path, &error).to_string()]));
    // A change that was being made may stand between the two files.
    if read(&paths.pending())?.is_some() {
        return Ok(());
    }
    let texts = match read(&paths.in_force())? {
        Some(workspace) => Texts { workspace, organisation: read(&paths.organisation_in_force())? },
        None => wanted(paths, &Real).map_err(|error| Faults(vec![error.to_string()]))?,
    };
    texts.parse().map(drop)
}

/// Records what an identity provider says of members' groups: each member anew, with all of its groups.
async fn tell(engine: Weak<Inner>, mut told: mpsc::Receiver<(MemberId, Arc<Vouched>)>) {
    while let Some((id, vouched)) = told.recv().await {
        let Some(inner) = engine.upgrade() else { return };
        let state = inner.state.lock().await;
        let Some(member) = state.policy.members.get(&id).filter(|member| !member.revoked) else { continue };
        let why = Reason {
            actor: Actor::System(custody::access::IDENTITY_PROVIDER.to_owned()),
            code: "groups".to_owned(),
            ticket: String::new(),
        };
        let (at, digest) = (clock::now_us(), state.policy.digest);
        let changes = plan::anew(id, member, &vouched.groups);
        let records = changes.iter().map(|change| change.record(at, &why, Some(digest), digest)).collect();
        if let Err(refused) = inner.recorder.record(records).await {
            tracing::warn!(%refused, "what the identity provider says of a member's groups is not recorded");
            inner.access.forget_groups(Some(id));
        }
    }
}

/// A change that was looked at: it can be made.
struct Ready {
    pending: Pending,
    text: String,
    policy: Arc<Policy>,
    compiled: Compiled,
    changes: Vec<Change>,
}

impl Ready {
    fn new(old: &Policy, pending: Pending) -> Result<Self, ChangeError> {
        let policy = Arc::new(pending.to.parse()?);
        let changes = changes(old, &policy, &pending);
        let text = serde_json::to_string(&pending).map_err(|error| ChangeError::Refused(error.to_string()))?;
        Ok(Self { pending, text, compiled: Compiled::new(Arc::clone(&policy)), policy, changes })
    }
}

/// Work that takes its time with large policies, where it holds up no call.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ChangeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ChangeError::Refused(format!("make the change: {error}")))
}

/// A change is made to its end, also when whoever asked for it has gone.
async fn whole<T>(change: tokio::task::JoinHandle<Result<T, ChangeError>>) -> Result<T, ChangeError> {
    change.await.map_err(|error| ChangeError::Unfinished(format!("make the change: {error}")))?
}

fn pending(state: &State, to: Texts, why: &Reason) -> Pending {
    let (actor_member, actor_system) = match &why.actor {
        Actor::Member(id) => (Some(id.to_string()), None),
        Actor::System(name) => (None, Some(name.clone())),
    };
    Pending {
        version: 1,
        before: Some(hex(&state.policy.digest)),
        to,
        actor_member,
        actor_system,
        reason: why.code.clone(),
        ticket: why.ticket.clone(),
        whole: false,
        file_too: false,
        rotated: Vec::new(),
    }
}

/// The parts of a change.
fn changes(old: &Policy, new: &Policy, pending: &Pending) -> Vec<Change> {
    let nothing = Policy::default();
    let mut changes = plan(if pending.before.is_some() { old } else { &nothing }, new);
    for (id, end) in &pending.rotated {
        if let Some(id) = unhex(id).and_then(|id| id.try_into().ok()) {
            changes = changes.into_iter().map(|change| change.rotated(id, *end)).collect();
        }
    }
    if pending.whole {
        changes.push(Change::applied());
    }
    changes
}

/// What goes into the record of a change has the form that a record asks for.
fn is_recordable(why: &Reason) -> Result<(), ChangeError> {
    if why.is_recordable() { Ok(()) } else { Err(ChangeError::Refused(Reason::UNRECORDABLE.into())) }
}

#[cfg(test)]
mod tests;
