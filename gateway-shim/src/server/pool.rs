//! The processes of one server: how many there are, when one more is started, and what is known of those that ended.
//!
//! What must hold: at most as many processes as the configuration says, for all and for one member, and one that stands
//! ready where it says so; whoever meets these bounds while a process is ending waits for its place; a server that fails to start is tried again later and later, as [`Backoff`] decides; start, stop
//! and crash are records; whoever holds a [`Lease`] counts, and nobody counts who does not.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use custody::{
    id::MemberId,
    wire::{self, ServerState, gateway_event::Event, record::Kind},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    backoff::{Backoff, NotNow},
    guard::Guard,
    launch::{self, Exit, Launcher, Process, Started, launch},
    probe::{self, Probed},
};
use crate::{
    clock,
    config::{ProcessConfig, Start},
    gateway::Gateway,
    random, writer,
};

mod lease;

pub use lease::Lease;
use lease::{Counted, Place};

/// A process that stands ready and lives so long is no failure any more.
const STEADY: Duration = Duration::from_secs(60);

/// What cannot be recorded now is tried again after so long, where nobody waits for it: a ledger or a disk comes back in minutes.
const RECORD_WAIT: Duration = Duration::from_secs(5);

/// Whom a process is for; nobody where the shim does not tell members apart.
pub type Owner = Option<MemberId>;

/// Why no process was started. The texts are for whoever called, and name nothing of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Somebody stopped this server, or the shim is ending.
    Stopped,
    /// The bound for all.
    TooMany,
    /// The bound for one member.
    TooManyOfMember,
    /// It failed to start, and is tried again later.
    Later(Duration),
    /// It failed to start too often.
    GivenUp,
    /// It failed to start now.
    Failed,
    /// That it starts cannot be put on record, so it does not.
    Unrecorded,
}

impl Refused {
    /// In words.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Stopped => "the MCP server is stopped",
            Self::TooMany => "too many sessions; end one, or try again later",
            Self::TooManyOfMember => "you have too many sessions on this MCP server; end one, or try again later",
            Self::Later(_) => "the MCP server failed to start; try again later",
            Self::GivenUp => "the MCP server fails to start; ask the operator of this gateway",
            Self::Failed => "the MCP server cannot be started",
            Self::Unrecorded => "the gateway cannot record that the MCP server starts; try again later",
        }
    }
}

/// What is said of a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Microseconds since the Unix epoch.
    pub at_us: u64,
    /// `Stopped`, `Crashed`, or `Unreachable` for one that did not answer in time.
    pub state: ServerState,
    /// How.
    pub exit: Exit,
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Processes run.
    Running,
    /// None runs, and one is started when somebody asks.
    Idle,
    /// It failed, and is tried again after so long.
    BackingOff(Duration),
    /// It failed too often: `server start` tries again.
    GivenUp,
    /// Somebody stopped it: `server start` lets it run again.
    Stopped,
}

/// One process, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number and its group's.
    pub pid: i32,
    /// Microseconds since the Unix epoch.
    pub since_us: u64,
    /// Whom it is for.
    pub owner: Owner,
    /// Whether it stands ready, and nobody uses it yet.
    pub spare: bool,
}

/// One server, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub doing: Doing,
    /// Its processes, by number.
    pub processes: Vec<Listed>,
    /// Processes that were started since the shim began.
    pub starts: u64,
    /// Of these, those that crashed or did not answer.
    pub crashes: u64,
    /// Failures to start in a row.
    pub failures: u32,
    /// The process that ended last.
    pub last: Option<Ended>,
}

/// How somebody asks for a process's end, and how it is known that somebody did.
#[derive(Debug, Default)]
pub struct End {
    asked: AtomicBool,
    told: Notify,
}

impl End {
    /// From here on its place is one that becomes free.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        self.told.notify_one();
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

struct Held {
    owner: Owner,
    since_us: u64,
    end: Arc<End>,
}

struct State {
    backoff: Backoff,
    /// Nothing is started: by the operator's word, or because the shim ends.
    stopped: bool,
    /// How many places are taken, also by what is only being started.
    places: HashMap<Owner, usize>,
    running: BTreeMap<i32, Held>,
    spare: Option<(Started, u64)>,
    /// The process that is to stand ready, while it is asked whether it can, and until it has ended if it cannot.
    probed: Option<(i32, u64)>,
    /// Whether this server answers requests without a session; unknown before it was asked.
    sessionless: Option<bool>,
    starts: u64,
    crashes: u64,
    last: Option<Ended>,
}

/// The processes of one server.
pub struct Pool {
    name: String,
    config: ProcessConfig,
    launcher: Launcher,
    guard: Guard,
    gateway: Gateway,
    state: Mutex<State>,
    /// Something changed for whoever keeps one ready.
    wake: Notify,
    /// How many places are taken.
    taken: watch::Sender<usize>,
}

impl Pool {
    /// Begins with no process; with `start = "always"` one is started soon.
    pub fn open(name: &str, config: ProcessConfig, launcher: Launcher, guard: Guard, gateway: Gateway) -> Arc<Self> {
        let state = State {
            backoff: Backoff::new(config.failures_max),
            stopped: false,
            places: HashMap::new(),
            running: BTreeMap::new(),
            spare: None,
            probed: None,
            sessionless: None,
            starts: 0,
            crashes: 0,
            last: None,
        };
        let always = config.start == Start::Always;
        let pool = Arc::new(Self {
            name: name.to_owned(),
            config,
            launcher,
            guard,
            gateway,
            state: Mutex::new(state),
            wake: Notify::new(),
            taken: watch::Sender::new(0),
        });
        if always {
            tokio::spawn(Arc::clone(&pool).keep_one_ready());
        }
        pool
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the configuration says of it.
    pub fn config(&self) -> &ProcessConfig {
        &self.config
    }

    /// Whether this server answers requests without a session, as far as it was asked.
    pub fn sessionless(&self) -> Option<bool> {
        self.lock().sessionless
    }

    /// It was asked.
    pub fn learn_sessionless(&self, answers: bool) {
        self.lock().sessionless = Some(answers);
    }

    /// How long a process may take for its first answer.
    pub fn ready_wait(&self) -> Duration {
        Duration::from_secs(self.config.ready_s_max)
    }

    /// A process for this owner: the one that stands ready, or a new one. Where there is no place for it but that of a process
    /// which is ending, it waits for that, as long as a process may take for its first answer.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn start(self: &Arc<Self>, owner: Owner) -> Result<(Started, Lease), Refused> {
        let mut place = self.take_place(owner).await?;
        let spare = self.lock().spare.take();
        self.wake.notify_one();
        let (started, since_us) = match spare {
            Some(spare) => spare,
            None => (self.launch(true).await?, clock::now_us()),
        };
        let (pid, end) = (started.process.pid().as_raw_nonzero().get(), Arc::new(End::default()));
        place.pid = Some(pid);
        let stopped = {
            let mut state = self.lock();
            state.running.insert(pid, Held { owner, since_us, end: Arc::clone(&end) });
            state.stopped
        };
        if stopped {
            // In the meantime: whoever stopped it did not see this one.
            end.ask();
        }
        Ok((started, Lease { place, end, answered: false.into() }))
    }

    /// Ends all processes and starts none, until [`Self::allow`]. Returns when they have ended.
    pub async fn stop(&self) {
        let (spare, ends) = {
            let mut state = self.lock();
            state.stopped = true;
            (state.spare.take(), state.running.values().map(|held| Arc::clone(&held.end)).collect::<Vec<_>>())
        };
        self.wake.notify_one();
        for end in ends {
            end.ask();
        }
        if let Some((spare, _)) = spare {
            self.let_go(spare, ServerState::Stopped).await;
        }
        let mut taken = self.taken.subscribe();
        // Bounded by the life of processes that were asked to end.
        drop(taken.wait_for(|taken| *taken == 0).await);
    }

    /// Lets processes be started, whatever failed before.
    pub fn allow(&self) {
        {
            let mut state = self.lock();
            state.stopped = false;
            state.backoff.clear();
            state.sessionless = None;
        }
        self.wake.notify_one();
    }

    /// As it is now.
    pub fn status(&self) -> Status {
        let (state, now) = (self.lock(), Instant::now());
        let mut processes: Vec<_> = state
            .running
            .iter()
            .map(|(pid, held)| Listed { pid: *pid, since_us: held.since_us, owner: held.owner, spare: false })
            .collect();
        processes.extend(state.probed.map(|(pid, since_us)| Listed { pid, since_us, owner: None, spare: false }));
        let spare = state.spare.as_ref();
        processes.extend(spare.map(|(started, since_us)| Listed {
            pid: started.process.pid().as_raw_nonzero().get(),
            since_us: *since_us,
            owner: None,
            spare: true,
        }));
        let doing = match state.backoff.state(now) {
            _ if state.stopped => Doing::Stopped,
            _ if !processes.is_empty() => Doing::Running,
            Ok(()) => Doing::Idle,
            Err(NotNow::Until(until)) => Doing::BackingOff(until - now),
            Err(NotNow::GivenUp) => Doing::GivenUp,
        };
        let name = self.name.clone();
        let (starts, crashes, failures, last) = (state.starts, state.crashes, state.backoff.failures(), state.last);
        Status { name, doing, processes, starts, crashes, failures, last }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_place(self: &Arc<Self>, owner: Owner) -> Result<Place, Refused> {
        // What changes from here on is seen.
        let (mut taken, until) = (self.taken.subscribe(), Instant::now() + self.ready_wait());
        loop {
            let (refused, becomes_free) = match self.try_place(owner) {
                Ok(place) => return Ok(place),
                Err(why) => why,
            };
            if !becomes_free {
                return Err(refused);
            }
            tokio::select! {
                // Its sender is here.
                changed = taken.changed() => drop(changed),
                () = clock::sleep_until(until) => return Err(refused),
            }
        }
    }

    /// A place, or why there is none, and whether one that would do is that of a process which is ending.
    fn try_place(self: &Arc<Self>, owner: Owner) -> Result<Place, (Refused, bool)> {
        let mut state = self.lock();
        if state.stopped {
            return Err((Refused::Stopped, false));
        }
        let ending = |of: Option<Owner>| {
            let would_do = |held: &Held| held.end.is_asked() && of.is_none_or(|owner| held.owner == owner);
            state.running.values().any(would_do)
        };
        if state.places.values().sum::<usize>() >= self.config.sessions_max {
            return Err((Refused::TooMany, ending(None)));
        }
        if owner.is_some() && state.places.get(&owner).is_some_and(|own| *own >= self.config.member_sessions_max) {
            return Err((Refused::TooManyOfMember, ending(Some(owner))));
        }
        *state.places.entry(owner).or_default() += 1;
        self.taken.send_modify(|taken| *taken += 1);
        Ok(Place { pool: Arc::clone(self), owner, pid: None })
    }

    /// Starts a process, and puts on record that it runs, or that it could not. `asked`: somebody waits for it. Whether it is good
    /// is known when it has answered its client, or the shim behind that.
    async fn launch(&self, asked: bool) -> Result<Started, Refused> {
        let now = Instant::now();
        let may = self.lock().backoff.try_start(now, self.ready_wait() * 2);
        match may {
            Ok(()) => {}
            Err(NotNow::Until(until)) => return Err(Refused::Later(until - now)),
            Err(NotNow::GivenUp) => return Err(Refused::GivenUp),
        }
        let refused = AtomicBool::new(false);
        let recorded = async {
            let recorded = self.record(ServerState::Started, Exit::default()).await;
            refused.store(recorded.is_err(), Ordering::Relaxed);
            recorded.map_err(|why| format!("put on record that it starts: {why}"))
        };
        match launch(&self.launcher, &self.guard, &self.config, recorded).await {
            Ok(started) => {
                self.lock().starts += 1;
                Ok(started)
            }
            // No failure of the server's.
            Err(_) if refused.load(Ordering::Relaxed) => Err(Refused::Unrecorded),
            Err(why) => {
                let failures = self.failed();
                tracing::error!(server = %self.name, failures, asked, "failed to {why}");
                self.note(ServerState::Crashed, Exit::default());
                self.record(ServerState::Crashed, Exit::default()).await.ok();
                Err(Refused::Failed)
            }
        }
    }

    fn failed(&self) -> u32 {
        let [dice] = random::bytes::<1>();
        let mut state = self.lock();
        state.backoff.failed(Instant::now(), dice);
        state.backoff.failures()
    }

    /// Closes the pipes of a process that nobody uses, which asks it to end, and ends it.
    async fn let_go(&self, started: Started, state: ServerState) {
        let Started { process, stdin, stdout } = started;
        drop((stdin, stdout));
        self.end(process, state).await;
    }

    /// Ends a process whose pipes are closed, and puts on record how it went.
    async fn end(&self, process: Process, state: ServerState) {
        let exit = process.end(Duration::from_secs(self.config.stop_s_max)).await;
        self.note(state, exit);
        // It has ended all the same, and the log says so.
        self.record(state, exit).await.ok();
    }

    fn note(&self, ended: ServerState, exit: Exit) {
        let mut state = self.lock();
        state.crashes += u64::from(ended != ServerState::Stopped);
        state.last = Some(Ended { at_us: clock::now_us(), state: ended, exit });
    }

    /// Puts it on record; one that is let go and declared as dropped is as good as that.
    async fn record(&self, state: ServerState, exit: Exit) -> Result<(), writer::Refused> {
        let life = wire::ServerLife {
            server: self.name.clone(),
            state: state as i32,
            exit_code: exit.code,
            signal: exit.signal,
        };
        let event = wire::GatewayEvent { at: clock::now_us(), event: Some(Event::ServerLife(life)) };
        match self.gateway.record(Kind::GatewayEvent(event)).await {
            Ok(_) => Ok(()),
            Err(refused) => {
                let server = &self.name;
                tracing::error!(%server, %refused, state = state.as_str_name(), "the life of a server is not recorded");
                if refused == writer::Refused::Dropped { Ok(()) } else { Err(refused) }
            }
        }
    }

    /// The life of `start = "always"`: one process more than is used, until the shim ends.
    async fn keep_one_ready(self: Arc<Self>) {
        loop {
            let (stopped, has_spare, may) = {
                let state = self.lock();
                (state.stopped, state.spare.is_some(), state.backoff.state(Instant::now()))
            };
            match may {
                _ if stopped || has_spare => self.wake.notified().await,
                Err(NotNow::GivenUp) => self.wake.notified().await,
                Err(NotNow::Until(until)) => tokio::select! {
                    () = clock::sleep_until(until) => {}
                    () = self.wake.notified() => {}
                },
                Ok(()) => {
                    // Whoever stops this server waits for this one, too, from before it runs.
                    let counted = Counted::new(&self);
                    match self.launch(false).await {
                        Ok(started) => {
                            self.tend(started).await;
                            self.lock().probed = None;
                        }
                        Err(Refused::Unrecorded) => {
                            drop(counted);
                            tokio::select! {
                                () = clock::sleep(RECORD_WAIT) => {}
                                () = self.wake.notified() => {}
                            }
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }

    async fn until_stopped(&self) {
        while !self.lock().stopped {
            self.wake.notified().await;
        }
    }

    /// Holds a process ready until somebody takes it or it ends.
    async fn tend(&self, mut started: Started) {
        let since_us = clock::now_us();
        self.lock().probed = Some((started.process.pid().as_raw_nonzero().get(), since_us));
        if self.sessionless().is_none() {
            let probed = tokio::select! {
                probed = probe::probe(&mut started, self.ready_wait()) => Some(probed),
                () = self.until_stopped() => None,
            };
            let Some(probed) = probed else { return self.let_go(started, ServerState::Stopped).await };
            match probed {
                Probed::Answers => self.learn_sessionless(true),
                Probed::Declines => self.learn_sessionless(false),
                // It knows nothing of requests without a session. What it makes of one nobody knows: it is not used.
                Probed::Silent => {
                    self.learn_sessionless(false);
                    return self.let_go(started, ServerState::Stopped).await;
                }
                Probed::Ended => {
                    self.failed();
                    return self.let_go(started, ServerState::Crashed).await;
                }
            }
        }
        let pid = started.process.pid();
        let stopped = {
            let mut state = self.lock();
            if state.stopped {
                Some(started)
            } else {
                (state.spare, state.probed) = (Some((started, since_us)), None);
                None
            }
        };
        if let Some(started) = stopped {
            return self.let_go(started, ServerState::Stopped).await;
        }
        let mut steady = std::pin::pin!(clock::sleep(STEADY));
        let mut is_steady = false;
        loop {
            tokio::select! {
                () = launch::exited(pid) => break,
                () = self.wake.notified() => if self.lock().spare.is_none() { return },
                () = &mut steady, if !is_steady => {
                    is_steady = true;
                    self.lock().backoff.clear();
                }
            }
        }
        let spare = self.lock().spare.take();
        if let Some((started, _)) = spare {
            self.failed();
            self.let_go(started, ServerState::Crashed).await;
        }
    }
}
