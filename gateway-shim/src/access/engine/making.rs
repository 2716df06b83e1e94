//! The steps of a change, from whichever is next, and what is told when one cannot be made.
//!
//! What must hold: each step is durable before the next begins; whoever is told that nothing was changed finds nothing of it
//! later; of what could not be recorded, the part that takes away is live, and the rest is not.

use super::*;

/// A change that is asked for and not finished.
pub(super) struct Waiting {
    pub(super) pending: Pending,
    pub(super) policy: Arc<Policy>,
    /// Its parts.
    changes: Vec<Change>,
    /// Something of it may be on record.
    doubt: bool,
}

impl Waiting {
    /// Looks at a change of what this policy says: it can be made. Until it is refused for certain, it may be on record.
    pub(super) fn new(old: &Policy, pending: Pending) -> Result<Self, ChangeError> {
        let policy = Arc::new(pending.to.parse()?);
        let given_up = pending.given_up.as_ref().map(Texts::parse).transpose()?;
        let changes = changes(given_up.as_ref().unwrap_or(old), &policy, &pending);
        Ok(Self { pending, policy, changes, doubt: true })
    }

    fn records(&self) -> Vec<AccessChange> {
        let (at, why) = (clock::now_us(), self.pending.why());
        let before = self.pending.before.as_deref().and_then(unhex).and_then(|digest| digest.try_into().ok());
        self.changes.iter().map(|change| change.record(at, &why, before, self.policy.digest)).collect()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        let lines = self.changes.iter().map(|change| change.line.clone());
        lines.filter(|line| !line.is_empty()).collect()
    }
}

/// The step that could not be made.
pub(super) enum Stuck {
    /// To write down what is asked for.
    Write(String),
    /// To record it.
    Record(Refused),
    /// To replace the files: it is live.
    Replace(String),
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Write(why) => write!(f, "write down the change: {why}"),
            Self::Record(refused) => {
                let text = refused.to_string();
                let text = text.split("; hint").next().unwrap_or_default();
                write!(f, "record the change: {}", text.trim_start_matches("record: "))
            }
            Self::Replace(why) => write!(f, "write what is in force: {why}"),
        }
    }
}

const GOES_ON: &str =
    "hint: make room for records and files; it goes on by itself within seconds, or at the next start";

impl Engine {
    /// The first steps of a life: what was in force, and what was being changed.
    pub(super) async fn begin(&self, first: bool) -> Result<(), ChangeError> {
        let mut state = self.0.state.lock().await;
        if state.waiting.is_empty() {
            return Ok(());
        }
        let Err(stuck) = self.go_on(&mut state).await else {
            self.end_unseen(&mut state).await;
            return Ok(());
        };
        match stuck {
            Stuck::Write(_) if first => {
                let hint = "hint: nothing was changed, mend the folder and try again";
                return Err(ChangeError::Refused(format!("{stuck}; {hint}")));
            }
            Stuck::Record(Refused::Stopped) => {
                return Err(ChangeError::Unfinished(format!("{stuck}; hint: the next start goes on")));
            }
            _ => {}
        }
        // A start that ended here would be the end of all calls, and one that forgot it would give back what was taken.
        tracing::error!(%stuck, "a change of the access policy is not finished; what it takes away is refused, what it adds waits");
        self.narrow(&mut state).await
    }

    /// The state, for a change. One that only adds waits for those that are not finished.
    pub(super) async fn ready(&self, takes: bool) -> Result<tokio::sync::MutexGuard<'_, State>, ChangeError> {
        let mut state = self.0.state.lock().await;
        if let Err(stuck) = self.go_on(&mut state).await {
            if !takes {
                let hint = "hint: nothing was changed; gateway-shim status says what waits; it goes on by itself";
                return Err(ChangeError::Refused(format!("finish the change before this one: {stuck}; {hint}")));
            }
            if state.waiting.len() >= WAITING_MAX {
                let hint = "hint: make room for records and files, give them up with access abandon, or stop the shim";
                return Err(ChangeError::Refused(format!("{stuck}; {WAITING_MAX} changes wait already; {hint}")));
            }
        }
        self.end_unseen(&mut state).await;
        state.warnings.clear();
        Ok(state)
    }

    /// Tries again what could not be finished.
    pub(super) async fn again(&self) {
        let mut state = self.0.state.lock().await;
        if state.waiting.is_empty() && state.written && state.unseen.is_empty() {
            return;
        }
        if self.go_on(&mut state).await.is_ok() {
            tracing::info!("changes of the access policy that waited are on record and in force");
            self.end_unseen(&mut state).await;
        }
    }

    /// Makes a change, to its end or as far as it goes.
    pub(super) async fn make(
        &self,
        state: &mut State,
        pending: Pending,
        tokens: Vec<OneTimeToken>,
    ) -> Result<Changed, ChangeError> {
        let (old, takes) = (Arc::clone(state.newest().1), pending.takes);
        let waiting = aside(move || Waiting::new(&old, pending)).await??;
        let lines = waiting.lines();
        state.waiting.push_back(Waiting { doubt: false, ..waiting });
        state.written = false;
        let stuck = self.go_on(state).await.err();
        let unfinished = match stuck {
            None => None,
            // What is in force may say the same as this: that is not this change.
            Some(stuck) if state.waiting.is_empty() || (state.live && state.waiting.len() == 1) => {
                self.handed_over(state).await;
                Some(format!("{stuck}; the change is in force; {GOES_ON}"))
            }
            Some(stuck) if takes => {
                self.narrow(state).await?;
                self.handed_over(state).await;
                let rest = match state.written {
                    true => "what it adds is not there yet",
                    false => "but a restart would forget that",
                };
                Some(format!("{stuck}; what it takes away is refused already, {rest}; {GOES_ON}"))
            }
            Some(Stuck::Record(Refused::Stopped)) => {
                let hint = "hint: it goes on with the next change or start";
                return Err(ChangeError::Unfinished(format!(
                    "{}; it is not in force; {hint}",
                    Stuck::Record(Refused::Stopped)
                )));
            }
            Some(stuck) => return Err(self.take_back(state, &stuck).await),
        };
        let warnings = std::mem::take(&mut state.warnings);
        Ok(Changed { lines, warnings, unfinished, tokens, digest: state.policy.digest })
    }

    /// The tokens of a change go to whoever asked for it, though it is not finished.
    async fn handed_over(&self, state: &mut State) {
        let Some(last) = state.waiting.back_mut() else { return };
        if !std::mem::take(&mut last.pending.unseen).is_empty()
            && let Err(why) = self.write_down(state).await
        {
            tracing::warn!(why, "a start before this is mended ends tokens that were just shown");
        }
    }

    /// The last change is not made. A write that failed may have left what it wrote all the same.
    async fn take_back(&self, state: &mut State, stuck: &Stuck) -> ChangeError {
        state.waiting.pop_back();
        state.written = false;
        match self.write_down(state).await {
            Ok(()) => ChangeError::Refused(format!("{stuck}; hint: nothing was changed, make room and try again")),
            Err(_) => ChangeError::Unfinished(format!(
                "{stuck}; it is not in force; hint: mend the folder; a start before that may make it"
            )),
        }
    }

    /// Gives up what waits, if nothing of it is on record or live. That it was given up, and by whom, is recorded: each part of
    /// what is in force that it would have changed is said anew.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn abandon(&self, why: Reason) -> Result<Changed, ChangeError> {
        is_recordable(&why)?;
        let mut state = self.0.state.lock().await;
        state.knows(&why)?;
        let refused = |text: &str| Err(ChangeError::Refused(text.to_owned()));
        let is_given_up = |waiting: &Waiting| waiting.pending.given_up.is_some();
        if state.waiting.iter().all(is_given_up) {
            return refused("no change waits; hint: gateway-shim status says what is in force");
        }
        if state.live || state.waiting.iter().any(|waiting| waiting.doubt && !is_given_up(waiting)) {
            return refused(
                "it may be on record already, so it is made; hint: it goes on by itself, change it back behind that",
            );
        }
        let asked = state.newest().0.clone();
        let (texts, policy) = (state.texts.clone(), Arc::clone(&state.policy));
        let before = Some(hex(&policy.digest));
        let pending = Pending { before, given_up: Some(asked), ..pending(&state, texts, &why) };
        let word = aside(move || Waiting::new(&policy, pending)).await??;
        let waiting = std::mem::take(&mut state.waiting);
        let (earlier, given_up): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_given_up);
        let lines = given_up.iter().flat_map(Waiting::lines).map(|line| format!("given up: {line}")).collect();
        state.waiting = earlier.into_iter().chain([Waiting { doubt: false, ..word }]).collect();
        if let Err(why) = self.write_down(&mut state).await {
            state.waiting.pop_back();
            state.waiting.extend(given_up);
            state.written = false;
            return Err(ChangeError::Refused(format!("{why}; hint: nothing was given up, mend the folder")));
        }
        self.narrow(&mut state).await?;
        tracing::warn!(?why, "changes of the access policy that were not on record are given up");
        let stuck = self.go_on(&mut state).await.err();
        let warnings = stuck.map(|stuck| format!("{stuck}; that this was given up is not on record yet; {GOES_ON}"));
        let (warnings, unfinished, tokens) = (warnings.into_iter().collect(), None, Vec::new());
        Ok(Changed { lines, warnings, unfinished, tokens, digest: state.policy.digest })
    }

    /// Makes what waits, from the step on that is next.
    async fn go_on(&self, state: &mut State) -> Result<(), Stuck> {
        if !state.written {
            // A crash before this returns leaves all as it was, or what was asked for to the next start, and nobody was told of it;
            // behind it the change is made, now or later.
            self.write_down(state).await.map_err(Stuck::Write)?;
        }
        while let Some(head) = state.waiting.front_mut() {
            let is_in_force = state.texts == head.pending.to && head.pending.given_up.is_none();
            let is_recorded = state.live || (is_in_force && head.pending.before.is_some());
            if !is_recorded {
                let recorded = self.0.recorder.record(head.records()).await;
                head.doubt |= matches!(recorded, Ok(()) | Err(Refused::Stopped));
                recorded.map_err(Stuck::Record)?;
            }
            self.live(state).await;
            self.replace(state).await.map_err(Stuck::Replace)?;
            state.waiting.pop_front();
            state.live = false;
            // A crash before this returns does the last steps again, which change nothing.
            self.write_down(state).await.map_err(Stuck::Replace)?;
        }
        Ok(())
    }

    /// All records of the first that waits are durable, so it may be seen.
    async fn live(&self, state: &mut State) {
        let Some(head) = state.waiting.front().filter(|_| !state.live) else { return };
        let (to, policy) = (head.pending.to.clone(), Arc::clone(&head.policy));
        state.kept.changes(&state.policy, &policy);
        state.kept.tell_groups(&state.policy, &policy);
        match head.pending.whole {
            true => state.kept.since.applied(&policy, clock::now_us()),
            false => state.kept.since.verb(&state.policy, &policy),
        }
        (state.texts, state.policy, state.live) = (to, policy, true);
        // Only a task that panicked does not return it.
        self.narrow(state).await.ok();
        self.0.regrouped.notify_one();
    }

    /// Of what is in force only what all that waits allows too.
    async fn narrow(&self, state: &mut State) -> Result<(), ChangeError> {
        let waiting = state.waiting.iter().skip(usize::from(state.live)).map(|waiting| Arc::clone(&waiting.policy));
        let all: Vec<Arc<Policy>> = [Arc::clone(&state.policy)].into_iter().chain(waiting).collect();
        self.0.access.swap(aside(move || Compiled::narrowed(&all)).await?);
        Ok(())
    }

    /// The file of what waits says what does.
    async fn write_down(&self, state: &mut State) -> Result<(), String> {
        state.written = false;
        let path = self.0.paths.pending();
        if state.waiting.is_empty() {
            self.remove(path).await?;
        } else {
            let changes = state.waiting.iter().map(|waiting| waiting.pending.clone()).collect();
            self.write(path, files::to_write(changes)?).await?;
        }
        state.written = true;
        Ok(())
    }

    /// The files of what is live.
    async fn replace(&self, state: &mut State) -> Result<(), String> {
        let Some(pending) = state.waiting.front().map(|waiting| waiting.pending.clone()) else { return Ok(()) };
        let Inner { paths, .. } = &*self.0;
        match &pending.to.organisation {
            Some(text) => self.write(paths.organisation_in_force(), text.clone()).await?,
            None => self.remove(paths.organisation_in_force()).await?,
        }
        self.keep(state).await?;
        // Only with this one is what is in force another: the organisation's stands already.
        self.write(paths.in_force(), pending.to.workspace.clone()).await?;
        // Looked at now, because somebody may have saved it just before.
        let follows = self.follows(&pending).await?;
        if follows && pending.file_was.is_some() {
            self.write(paths.workspace.clone(), pending.to.workspace.clone()).await?;
        }
        if !follows && pending.given_up.is_none() {
            state.warnings.push(format!(
                "{} is not as what was in force, so it was left as it is and LACKS this change; {}",
                paths.workspace.display(),
                undone_hint()
            ));
        }
        Ok(())
    }

    /// Whether the workspace's file says what is in force, or may be made to.
    async fn follows(&self, pending: &Pending) -> Result<bool, String> {
        let (path, to, was) = (self.0.paths.workspace.clone(), pending.to.workspace.clone(), pending.file_was.clone());
        self.on_disk(move |files| {
            // One that cannot be read is not replaced either.
            let text = files.read(&path).ok().flatten();
            Ok(text.is_some_and(|text| text == to || was == Some(digest_of(&text))))
        })
        .await
    }

    pub(super) async fn keep(&self, state: &State) -> Result<(), String> {
        let text = serde_json::to_string(&state.kept).map_err(|error| error.to_string())?;
        self.write(self.0.paths.kept(), text).await
    }

    /// Ends tokens that a change made which a crash cut short: nobody was shown them, so nobody has them.
    async fn end_unseen(&self, state: &mut State) {
        while let Some(token) = state.unseen.last().copied().filter(|_| state.waiting.is_empty() && state.written) {
            state.unseen.pop();
            let (texts, policy) = (state.texts.clone(), Arc::clone(&state.policy));
            let why = Reason {
                actor: Actor::System("start".to_owned()),
                account: None,
                code: "unseen-token".to_owned(),
                ticket: String::new(),
            };
            let Ok(Edited { text, .. }) =
                edit(&texts.workspace, &policy, &Edit::TokenRevoke { token }, clock::now_us())
            else {
                continue;
            };
            let file_was = Some(digest_of(&texts.workspace));
            let to = Texts { workspace: text, ..texts };
            let pending = Pending { takes: true, file_was, ..pending(state, to, &why) };
            let ended = self.make(state, pending, Vec::new()).await;
            let (token, ended) = (hex(&token), ended.is_ok());
            tracing::warn!(
                token,
                ended,
                "a token was made by a change that a crash cut short: nobody saw it, so it ends; hint: gateway-shim member token"
            );
        }
    }
}

impl State {
    /// What verbs did, and a policy in the place of this one would undo.
    pub(super) fn undone(&self, policy: &Policy) -> Option<String> {
        self.kept.since.lacking(&self.policy, policy)
    }

    /// What is said of a text that is in force already: of what is no change there is no record.
    pub(super) fn unchanged(&mut self) -> Changed {
        let lines = vec!["nothing changes, and nothing is recorded: this text is in force already".to_owned()];
        let (warnings, digest) = (std::mem::take(&mut self.warnings), self.policy.digest);
        Changed { lines, warnings, unfinished: None, tokens: Vec::new(), digest }
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
