//! Who may call what: the access policy in force, tokens, limits, and how they change.
//!
//! [`Access`] is what the endpoint asks, for every request: who calls ([`Access::authenticate`]), whether that may be
//! ([`Access::judge`]), whether it is within the limits ([`Access::enter`]), and, for what is open when the policy changes,
//! whether it still may be ([`Access::still_allowed`], woken by [`Access::changes`]).
//!
//! [`Engine`] is what changes it, for the control socket: [`Engine::plan`] says what applying the file would change,
//! [`Engine::apply`] applies it, [`Engine::edit`] does a verb ([`Edit`]). Each change has a [`Reason`]; [`Changed`] says what it
//! did, a line each, and has the tokens that it made, which are shown to whoever asked and then dropped.
//! [`Engine::policy`] is what is in force, to list members and tokens from; [`Engine::differs`] is for the status.
//!
//! What must hold: nothing is allowed that no rule allows; the first rule that fits decides, the organisation's before the
//! workspace's own; what is in force is swapped as a whole, so that no request sees half of a change; what a verb takes away
//! is refused as soon as it was asked for, also while nothing can be recorded, and what it adds is there once it is on record;
//! no token, and nothing by which a person is known, is in what this module logs, records, or shows as an error.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use custody::id::MemberId;
use tokio::sync::{mpsc, watch};

use crate::{clock, config::Faults};

mod compiled;
mod edit;
mod engine;
mod index;
mod limits;
mod oidc;
mod plan;
pub mod policy;
mod token;

use compiled::Compiled;
pub use edit::{Edit, NewRule};
pub use engine::{Allowance, ChangeError, Changed, Engine, Paths, Plan, Recorder, Shown, check};
use limits::Counting;
pub use limits::Slot;
pub use oidc::{IdentityProvider, subject_digest};
use oidc::{Provider, Vouched};
pub use plan::{Actor, Change, Reason, plan};
pub use policy::Policy;
pub use token::OneTimeToken;

/// Whose request it is. Only [`Access::authenticate`] makes one, for one request; what it says of groups is as of then, and
/// [`Access::judge`] looks again.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The member.
    pub member: MemberId,
    /// Id of the token; none where an identity provider vouches for the member.
    pub token: Option<[u8; 16]>,
    /// What the token was issued for.
    pub agent: Option<MemberId>,
    /// The member's groups, in order.
    pub groups: Arc<[String]>,
    /// What an identity provider said.
    vouched: Option<Arc<Vouched>>,
}

#[cfg(test)]
impl Caller {
    /// Somebody, for tests of who asks what.
    pub(crate) fn anybody(member: MemberId, token: Option<[u8; 16]>) -> Self {
        Self { member, token, agent: None, groups: Arc::default(), vouched: None }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The server, as the configuration names it.
    pub server: &'a str,
    /// The request's method. For what continues a call (`tasks/get` and the like, a further round) the method and the name
    /// of that call.
    pub method: &'a str,
    /// Tool, prompt, or URI of the resource; none where a method has none.
    pub name: Option<&'a str>,
    /// The server asks the client.
    pub from_server: bool,
    /// Length of the request's body.
    pub request_bytes: u64,
}

/// Whether a request may be made, and why.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Whether it may.
    pub allowed: bool,
    /// The rule that decided: one of the policy's, or a reserved name (`shim/...`).
    pub rule: Arc<str>,
    /// Digest of the access policy that decided.
    pub policy: [u8; 32],
    /// Why the caller is nobody any more, who was known when the request came.
    pub nobody: Option<Why>,
}

/// Why nobody is known behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no Authorization.
    Absent,
    /// It is not of the form that it must have.
    Malformed,
    /// Nobody has this token, or this subject.
    Unknown,
    /// The id is known, and its secret or signature is another.
    Wrong,
    /// Its time is over.
    Expired,
    /// It, or its member, was revoked.
    Revoked,
}

impl Why {
    /// The reserved name of the rule that refuses it.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Absent => "shim/no-token",
            Self::Malformed | Self::Unknown | Self::Wrong => "shim/wrong-token",
            Self::Expired => "shim/expired-token",
            Self::Revoked => "shim/revoked-token",
        }
    }
}

/// Nobody is known behind a request.
#[derive(Clone, Debug)]
pub struct Unauthenticated {
    /// Why.
    pub kind: Why,
    /// Who it would be, if the token's id is known: for the record, never for a decision.
    pub caller: Option<Caller>,
}

/// A request that was allowed and is so no longer.
#[derive(Clone, Debug)]
pub enum Cut {
    /// No rule allows it any more.
    Denied(Judgement),
    /// The token, or its member, is no longer good.
    Unauthenticated(Unauthenticated),
}

/// A limit that a request would exceed.
#[derive(Clone, Debug)]
pub struct OverLimit {
    /// The limit's id.
    pub limit: Arc<str>,
    /// Seconds until it may be tried again; none: never, so long as the request is like this.
    pub retry_after_s: Option<u64>,
}

/// What is in force. Cheap to clone; all clones see a change at once.
#[derive(Clone, Debug)]
pub struct Access(Arc<Live>);

#[derive(Debug)]
struct Live {
    now: RwLock<Arc<Compiled>>,
    counting: Counting,
    generation: watch::Sender<u64>,
    provider: OnceLock<Trusted>,
}

/// How often a provider's word on the groups of one member is told at most: each is a record for each group.
const TELL_EVERY_US: u64 = 10_000_000;

/// An identity provider, and what it last said of each member's groups.
#[derive(Debug)]
struct Trusted {
    provider: Arc<Provider>,
    seen: Mutex<HashMap<MemberId, Told>>,
    /// To whoever records it.
    news: mpsc::Sender<(MemberId, Arc<Vouched>)>,
}

/// What was told last of a member's groups.
#[derive(Debug)]
struct Told {
    vouched: Arc<Vouched>,
    at_us: u64,
    /// It stands over what is in force.
    counts: bool,
}

impl Access {
    /// Puts a policy in force: the workspace's, and the organisation's above it.
    ///
    /// # Errors
    /// [`Faults`], all that were found.
    pub fn of(workspace: &str, organisation: Option<&str>) -> Result<Self, Faults> {
        Ok(Self::new(Arc::new(Policy::parse(workspace, organisation)?)))
    }

    fn new(policy: Arc<Policy>) -> Self {
        let (generation, _) = watch::channel(0);
        let now = RwLock::new(Arc::new(Compiled::new(policy)));
        Self(Arc::new(Live { now, counting: Counting::default(), generation, provider: OnceLock::new() }))
    }

    /// Puts another policy in force: what is asked from here on is decided by it, and whoever holds something open is woken.
    fn swap(&self, compiled: Compiled) {
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(compiled);
        self.tell_groups_anew();
        self.0.generation.send_modify(|generation| *generation += 1);
    }

    /// Says who calls, from the value of the header Authorization. `now_us` is the wall clock's.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub fn authenticate(&self, authorization: Option<&str>, now_us: u64) -> Result<Caller, Unauthenticated> {
        let (now, trusted) = (self.now(), self.0.provider.get());
        let caller = now.authenticate(authorization, trusted.map(|trusted| &*trusted.provider), now_us)?;
        let (Some(trusted), Some(vouched)) = (trusted, &caller.vouched) else { return Ok(caller) };
        // Groups count once they are on their way to the records.
        if trusted.is_told(caller.member, vouched, now_us) { Ok(caller) } else { Ok(now.without_groups(caller)) }
    }

    /// Takes an identity provider's word from here on; what it says of groups goes to `news`.
    fn trust(&self, provider: Arc<Provider>, news: mpsc::Sender<(MemberId, Arc<Vouched>)>) {
        let trusted = Trusted { provider, seen: Mutex::default(), news };
        // There is one, for as long as this runs.
        drop(self.0.provider.set(trusted));
    }

    /// What a provider says of groups is said anew, over what the policy says now: at once.
    fn tell_groups_anew(&self) {
        let Some(trusted) = self.0.provider.get() else { return };
        let now = self.now();
        let mut seen = trusted.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|member, _| now.policy.members.contains_key(member));
        seen.values_mut().for_each(|told| (told.at_us, told.counts) = (0, false));
    }

    /// What a provider said of a member's groups could not be recorded, so it does not count.
    fn forget_groups(&self, member: MemberId) {
        let Some(trusted) = self.0.provider.get() else { return };
        let mut seen = trusted.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.entry(member).and_modify(|told| told.counts = false);
    }

    /// Whether the caller may ask this. Who they are is looked at again, by what is in force now, and whether their time is over:
    /// between their first words and this the body of a request, or a server, may have taken its time.
    pub fn judge(&self, caller: &Caller, ask: &Ask<'_>) -> Judgement {
        let now = self.now();
        match now.again(caller, clock::now_us()) {
            Ok(caller) => now.judge(&caller, ask),
            Err(why) => now.nobody(why),
        }
    }

    /// Whether any rule allows the caller something at this server: then its `shim/session` requests are allowed as well,
    /// and it is worth showing.
    pub fn may_reach(&self, caller: &Caller, server: &str) -> bool {
        let now = self.now();
        now.again(caller, clock::now_us()).is_ok_and(|caller| now.may_reach(&caller, server))
    }

    /// Takes a place for an allowed request, if it is within all limits that apply; counts it.
    ///
    /// # Errors
    /// [`OverLimit`], the first in the policy's order.
    pub fn enter(&self, caller: &Caller, ask: &Ask<'_>) -> Result<Slot, OverLimit> {
        let (now, now_us) = (self.now(), clock::now_us());
        // Whoever is nobody any more was refused by the judgement before, or is cut.
        let again = now.again(caller, now_us);
        let caller = again.as_ref().unwrap_or(caller);
        self.0.counting.enter(now.limits(caller, ask), caller, ask, now_us)
    }

    /// Counts the changes of what is in force: whoever holds something open asks [`Self::still_allowed`] at each.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.generation.subscribe()
    }

    /// Whether what was allowed to this caller still is, by what is in force now.
    ///
    /// # Errors
    /// [`Cut`].
    pub fn still_allowed(&self, caller: &Caller, ask: &Ask<'_>, now_us: u64) -> Result<(), Cut> {
        self.now().still_allowed(caller, ask, now_us)
    }

    /// What is in force for a server.
    pub fn of_server<T>(&self, name: &str, read: impl FnOnce(&policy::Server) -> T) -> Option<T> {
        self.now().policy.servers.get(name).map(read)
    }

    /// Digest of what is in force.
    pub fn digest(&self) -> [u8; 32] {
        self.now().policy.digest
    }

    /// What is in force.
    fn now(&self) -> Arc<Compiled> {
        Arc::clone(&self.0.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Trusted {
    /// Whether a member's groups are what was told last, or are told now. Only a newer word takes the place of what was told, and
    /// not at once: whoever has two good JWTs that name different groups would make records with each request.
    fn is_told(&self, member: MemberId, vouched: &Arc<Vouched>, now_us: u64) -> bool {
        if !self.provider.names_groups() {
            return true;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = seen.get_mut(&member) {
            let (same, newer) = (last.vouched.groups == vouched.groups, last.vouched.issued_at < vouched.issued_at);
            if same && newer {
                last.vouched = Arc::clone(vouched);
            }
            if same && last.counts {
                return true;
            }
            if !(same || newer) || now_us.abs_diff(last.at_us) < TELL_EVERY_US {
                return false;
            }
        }
        // One entry for each member of the policy, at most.
        let counts = self.news.try_send((member, Arc::clone(vouched))).is_ok();
        if counts {
            seen.insert(member, Told { vouched: Arc::clone(vouched), at_us: now_us, counts });
        }
        counts
    }
}

#[cfg(test)]
pub(crate) mod tests;
