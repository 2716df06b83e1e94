//! Changes of the access policy: what is in force, how it comes to be something else, and what a crash between leaves.
//!
//! What is in force is a copy of the policy in a folder of the gateway's own. A change goes these steps, each durable before
//! the next begins: the whole change is written down ([`Paths::pending`]); its records are made; it is live; the copy is
//! replaced; the workspace's file too, if a verb made the change and the file is as what was in force; what was written
//! down goes. From the first step on the change will be made: whatever finds one written down, a start, the next change, or
//! [`AGAIN`], goes on with the step that is next (`making.rs`). Records made twice have the same digests and say the same
//! (FORMAT.md, 5.6).
//!
//! What must hold: nothing is added that is not on record; what a verb takes away is refused as soon as it was asked for,
//! whatever cannot be recorded or written, and a start goes on with the narrower of what was and what was asked for; a change
//! that was refused leaves nothing; a change that nobody wrote down was not made; two changes are made one after the other;
//! a file that people edit is replaced only if it is as the engine knows it.

use std::{
    collections::VecDeque,
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
use tokio::sync::{Mutex, Notify, mpsc};

use super::{
    Access, IdentityProvider, Policy, Provider, Vouched,
    compiled::Compiled,
    edit::{Edit, Edited, edit},
    plan::{self, Actor, Change, Reason, plan},
    token::OneTimeToken,
};
use crate::{clock, config::Faults, durable, gateway::Gateway, writer::Refused};

mod directory;
mod files;
mod making;
mod since;

pub use files::Paths;
use files::{Files, Kept, Pending, Real, Texts, as_written, digest_of, not_read, there, wanted};
use making::Waiting;
use since::{undoes_words, undone_hint};

/// Members whose groups may wait to be recorded: with more, what a provider says of groups does not count yet.
const NEWS_MAX: usize = 1_024;

/// How often counts of the day are written down: so much of them a crash may take.
pub(super) const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How often a change that could not be finished is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Changes that may wait for their records: somebody revokes by hand. Each is decided on with every request.
const WAITING_MAX: usize = 64;

/// Why a change is not made, or not wholly. Each text ends with the next move.
#[derive(Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// Nothing was changed.
    Refused(String),
    /// It is written down, and whether it is on record is not known. It is in force only if the text says so.
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
    /// What they must know besides, each with the next move.
    pub warnings: Vec<String>,
    /// It is not finished: what of it is live already, and what not yet.
    pub unfinished: Option<String>,
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
    /// What an application would be refused for, unless it is said that it is meant.
    pub warnings: Vec<String>,
    /// Digest of what is in force.
    pub before: [u8; 32],
    /// Digest of what would be.
    pub after: [u8; 32],
}

/// What whoever applies a policy says that they mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    /// They saw what is in force, by its digest: their text may undo what verbs did.
    pub over: Option<[u8; 32]>,
    /// Members and tokens that were revoked may come back.
    pub restore_revoked: bool,
}

/// What is in force, for people.
pub struct Shown {
    /// The workspace's text.
    pub text: String,
    /// A line for each part of it, and of the organisation's.
    pub lines: Vec<String>,
    /// Its digest.
    pub digest: [u8; 32],
}

/// What makes records durable: the gateway.
pub trait Recorder: Send + Sync {
    /// Records all of these, in their order, or, if it is refused but for [`Refused::Stopped`], none. They are durable when this
    /// returns.
    fn record(&self, changes: Vec<AccessChange>) -> BoxFuture<'_, Result<(), Refused>>;
}

impl Recorder for Gateway {
    fn record(&self, changes: Vec<AccessChange>) -> BoxFuture<'_, Result<(), Refused>> {
        Box::pin(self.record_all(changes.into_iter().map(Kind::AccessChange).collect()))
    }
}

/// What is in force, and the changes that are being made.
struct State {
    texts: Texts,
    policy: Arc<Policy>,
    /// The oldest first; each begins where the one before it ends.
    waiting: VecDeque<Waiting>,
    /// The file of those says so.
    written: bool,
    /// The first of them is live; its files are not replaced.
    live: bool,
    kept: Kept,
    /// What people must know of what was done last.
    warnings: Vec<String>,
    /// Tokens of changes that a start found, which nobody was shown.
    unseen: Vec<[u8; 16]>,
}

impl State {
    fn new(texts: Texts, policy: Arc<Policy>, kept: Kept) -> Self {
        Self {
            texts,
            policy,
            waiting: VecDeque::new(),
            written: true,
            live: false,
            kept,
            warnings: Vec::new(),
            unseen: Vec::new(),
        }
    }

    /// The changes that are not live.
    fn asked(&self) -> impl Iterator<Item = &Waiting> {
        let behind = self.waiting.iter().skip(usize::from(self.live));
        behind.filter(|waiting| waiting.pending.given_up.is_none())
    }

    /// What the next change begins from.
    fn newest(&self) -> (&Texts, &Arc<Policy>) {
        self.waiting.back().map_or((&self.texts, &self.policy), |last| (&last.pending.to, &last.policy))
    }
}

struct Inner {
    paths: Paths,
    files: Box<dyn Files>,
    recorder: Box<dyn Recorder>,
    access: Access,
    state: Mutex<State>,
    /// Groups of members became others.
    regrouped: Arc<Notify>,
}

/// The one that changes the policy. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

impl Engine {
    /// Puts in force what was in force before; completes changes that were being made, now or as soon as that is possible. The
    /// very first start applies the workspace's file, and the organisation's.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn open(paths: Paths, gateway: Gateway) -> Result<Self, ChangeError> {
        durable::create_dir(&paths.dir, 0o700).map_err(|error| not_read(&paths.dir, &error))?;
        let engine = Self::open_with(paths, Box::new(Real), Box::new(gateway.clone())).await?;
        tokio::spawn(directory::follow(Arc::downgrade(&engine.0), gateway));
        let (counting, again) = (Arc::downgrade(&engine.0), Arc::downgrade(&engine.0));
        tokio::spawn(async move {
            loop {
                clock::sleep(KEEP_EVERY).await;
                let Some(inner) = counting.upgrade() else { return };
                Self(inner).keep_counts().await;
            }
        });
        tokio::spawn(async move {
            loop {
                clock::sleep(AGAIN).await;
                let Some(inner) = again.upgrade() else { return };
                Self(inner).again().await;
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
        let first = written.is_none() && in_force.is_none();
        let next = if first { Some(vec![Pending::first(wanted(&paths, &*files)?)]) } else { written.clone() };
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
        let mut state = State::new(texts, policy, Kept::read(&paths, &*files)?);
        for pending in next.into_iter().flatten() {
            state.unseen.extend(pending.unseen.iter().filter_map(|id| <[u8; 16]>::try_from(unhex(id)?).ok()));
            let waiting = Waiting::new(state.newest().1, pending)?;
            state.waiting.push_back(waiting);
        }
        state.written = !first;
        let engine = Self(Arc::new(Inner {
            paths,
            files,
            recorder,
            access,
            state: Mutex::new(state),
            regrouped: Arc::default(),
        }));
        engine.begin(first).await?;
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

    /// What is in force, for who may call: members and tokens that a change ends which is not finished are as ended, because
    /// they are refused already.
    pub async fn narrowed(&self) -> Policy {
        let state = self.0.state.lock().await;
        let mut policy = Policy::clone(&state.policy);
        for to in state.asked().map(|waiting| &waiting.policy) {
            for (id, member) in &mut policy.members {
                member.revoked |= to.members.get(id).is_none_or(|member| member.revoked);
            }
            for (id, token) in &mut policy.tokens {
                let then = to.tokens.get(id);
                token.revoked |= then.is_none_or(|token| token.revoked);
                token.expires_at = then.map_or(token.expires_at, |then| then.expires_at.min(token.expires_at));
            }
        }
        policy
    }

    /// What is in force, for people.
    pub async fn shown(&self) -> Shown {
        let state = self.0.state.lock().await;
        let lines = plan(&Policy::default(), &state.policy).into_iter().map(|change| change.line);
        let lines = lines.map(|line| line.trim_start_matches("+ ").to_owned());
        let asked = state.asked().flat_map(Waiting::lines);
        let lines = lines.chain(asked.map(|line| format!("asked for, and not finished: {line}"))).collect();
        Shown { text: state.texts.workspace.clone(), lines, digest: state.policy.digest }
    }

    /// What applying the files as they are now would change.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn plan(&self) -> Result<Plan, ChangeError> {
        let to = wanted(&self.0.paths, &*self.0.files)?;
        self.planned(to).await
    }

    /// What applying this text as the workspace's policy would change, under the organisation's file as it is now.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn plan_of(&self, workspace: String) -> Result<Plan, ChangeError> {
        self.planned(self.with_organisation(workspace)?).await
    }

    async fn planned(&self, to: Texts) -> Result<Plan, ChangeError> {
        let policy = to.parse()?;
        let state = self.0.state.lock().await;
        let lines = plan(&state.policy, &policy).into_iter().map(|change| change.line).collect();
        let undone = state.undone(&policy).map(|lacking| undoes_words(&lacking, &state.policy.digest));
        let back = state.kept.back(&state.policy, &policy, clock::now_us());
        let back = back.into_iter().map(|line| format!("{line}; hint: --restore-revoked, if that is meant"));
        let warnings = undone.into_iter().chain(back).collect();
        Ok(Plan { lines, warnings, before: state.policy.digest, after: policy.digest })
    }

    /// What is to be told of the files and of changes that are not finished; none of it is applied by itself.
    pub async fn differs(&self) -> Option<String> {
        let hint = "hint: gateway-shim access plan shows the difference, access apply puts it in force";
        let state = self.0.state.lock().await;
        let waiting = (!state.waiting.is_empty()).then(|| state.waiting_words());
        let differs = match wanted(&self.0.paths, &*self.0.files) {
            Ok(texts) if texts == *state.newest().0 => None,
            Ok(texts) if texts.parse().is_ok_and(|policy| state.undone(&policy).is_some()) => Some(format!(
                "the access policy's file is not what is in force, and lacks what verbs changed; {}",
                undone_hint()
            )),
            Ok(_) => Some(format!("the access policy's file is not what is in force; {hint}")),
            Err(error) => Some(error.to_string()),
        };
        let all: Vec<String> = waiting.into_iter().chain(differs).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Puts the workspace's and the organisation's files in force as they are now; with `workspace`, this text instead of
    /// the workspace's.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn apply(
        &self,
        workspace: Option<String>,
        meant: Allowance,
        why: Reason,
    ) -> Result<Changed, ChangeError> {
        is_recordable(&why)?;
        let to = match workspace {
            Some(text) => self.with_organisation(text)?,
            None => wanted(&self.0.paths, &*self.0.files)?,
        };
        let engine = self.clone();
        whole(tokio::spawn(async move {
            let mut state = engine.ready(false).await?;
            state.knows(&why)?;
            let policy = to.parse()?;
            state.may_apply(&policy, meant)?;
            if to == state.texts {
                return Ok(state.unchanged());
            }
            let pending = Pending { whole: true, ..pending(&state, to, &why) };
            engine.make(&mut state, pending, Vec::new()).await
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
            let takes = verb.takes();
            let mut state = engine.ready(takes).await?;
            state.knows(&why)?;
            let (texts, policy) = (state.newest().0.clone(), Arc::clone(state.newest().1));
            let old = texts.workspace.clone();
            let edited = aside(move || edit(&old, &policy, &verb, clock::now_us())).await?;
            let Edited { text, tokens, rotated } = edited.map_err(ChangeError::Refused)?;
            let file_was = Some(digest_of(&texts.workspace));
            let to = Texts { workspace: text, ..texts };
            let rotated = rotated.into_iter().map(|(id, end)| (hex(&id), end)).collect();
            let unseen = tokens.iter().map(|token| hex(&token.id())).collect();
            let pending = Pending { takes, file_was, rotated, unseen, ..pending(&state, to, &why) };
            engine.make(&mut state, pending, tokens).await
        }))
        .await
    }

    /// Whether a verb would be taken as things are now.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn may(&self, verb: Edit, why: &Reason) -> Result<(), ChangeError> {
        is_recordable(why)?;
        let state = self.0.state.lock().await;
        state.knows(why)?;
        let (texts, policy) = (state.newest().0.clone(), Arc::clone(state.newest().1));
        let edited = aside(move || {
            let edited = edit(&texts.workspace, &policy, &verb, clock::now_us());
            edited.map(|edited| Texts { workspace: edited.text, ..texts })
        });
        edited.await?.map_err(ChangeError::Refused)?.parse()?;
        Ok(())
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
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Files) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&*inner.files)).await.map_err(|error| error.to_string())?
    }
}

impl State {
    /// Whether applying this undoes nothing that verbs did, and brings nothing back, or that is meant.
    fn may_apply(&self, policy: &Policy, meant: Allowance) -> Result<(), ChangeError> {
        let refused = |why: String| Err(ChangeError::Refused(format!("apply the policy: {why}")));
        match (meant.over, self.undone(policy)) {
            (Some(over), _) if over != self.policy.digest => {
                let now = hex(&self.policy.digest);
                return refused(format!("in force is {now}, and no longer what --over names; hint: access plan anew"));
            }
            (None, Some(lacking)) => return refused(undoes_words(&lacking, &self.policy.digest)),
            _ => {}
        }
        let back = self.kept.back(&self.policy, policy, clock::now_us());
        if back.is_empty() || meant.restore_revoked {
            return Ok(());
        }
        refused(format!("{}; hint: take them out, or say --restore-revoked if that is meant", back.join("; ")))
    }

    /// A member who is named as the one who asks is one.
    fn knows(&self, why: &Reason) -> Result<(), ChangeError> {
        let Actor::Member(id) = &why.actor else { return Ok(()) };
        let known = self.policy.members.get(id).is_some_and(|member| !member.revoked);
        let hint = "hint: member list shows the ids; without --actor it is the account that types this";
        if known { Ok(()) } else { Err(ChangeError::Refused(format!("--actor {id} is no member; {hint}"))) }
    }

    fn waiting_words(&self) -> String {
        let count = self.waiting.len();
        format!(
            "{count} changes of the access policy are asked for and not finished: what they take away is refused already, \
             what they add is not there yet; hint: make room for records and files, then they go on by themselves"
        )
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
            account: None,
            code: "groups".to_owned(),
            ticket: String::new(),
        };
        let (at, digest) = (clock::now_us(), state.policy.digest);
        let changes = plan::anew(id, member, &vouched.groups);
        let records = changes.iter().map(|change| change.record(at, &why, Some(digest), digest)).collect();
        if let Err(refused) = inner.recorder.record(records).await {
            tracing::warn!(%refused, "what the identity provider says of a member's groups is not recorded");
            inner.access.forget_groups(id);
        }
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
    let (actor_member, actor_system) = why.actor.written();
    Pending {
        before: Some(hex(&state.newest().1.digest)),
        to,
        actor_member,
        actor_system,
        account: why.account,
        reason: why.code.clone(),
        ticket: why.ticket.clone(),
        whole: false,
        takes: false,
        file_was: None,
        rotated: Vec::new(),
        unseen: Vec::new(),
        given_up: None,
    }
}

/// What goes into the record of a change has the form that a record asks for.
fn is_recordable(why: &Reason) -> Result<(), ChangeError> {
    if why.is_recordable() { Ok(()) } else { Err(ChangeError::Refused(Reason::UNRECORDABLE.into())) }
}

#[cfg(test)]
mod tests;
