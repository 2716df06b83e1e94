//! What one call leaves for a later request: a state that the next round brings back, or a task that goes on.
//!
//! What must hold: whoever takes it up is the member, with the token, that left it; only digests of what servers chose are
//! kept. What a restart forgets is nobody's: a round goes on unlinked, a task is not found.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use custody::{hash::text_digest, wire};

use super::{open::Asked, sessions::is_same};
use crate::{access::Caller, writer::CallName};

/// Rounds and tasks of one server that are remembered, of each; the oldest go first.
const KEPT_MAX: usize = 16_384;
/// Calls of which one state may be: a server may give the same to all. Whose a state is that is of more, nobody can say.
const OF_STATE_MAX: usize = 64;

type Digest = [u8; 32];

/// A round that waits for its next.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) asked: Asked,
    pub(super) call: Option<CallName>,
    /// Of the round that comes: the first is the call itself.
    pub(super) number: u64,
}

/// The calls that wait under one state, the newest last.
#[derive(Debug, Default)]
struct OfState {
    rounds: Vec<Round>,
    /// There were more than are kept.
    crowded: bool,
}

impl OfState {
    fn add(&mut self, round: Round) {
        self.rounds.retain(|known| !known.is_of(&round.asked.caller, round.asked.of()));
        self.crowded |= self.rounds.len() >= OF_STATE_MAX;
        if self.crowded && !self.rounds.is_empty() {
            self.rounds.remove(0);
        }
        self.rounds.push(round);
    }
}

impl Round {
    /// Whether it is a round of such a call of this caller.
    fn is_of(&self, caller: &Caller, of: (&str, Option<&str>)) -> bool {
        is_same(&self.asked.caller, caller) && self.asked.of() == of
    }
}

/// A task that goes on.
#[derive(Clone, Debug)]
pub(super) struct Deferred {
    /// What began it: what continues it is decided as that.
    pub(super) asked: Asked,
    pub(super) call: Option<CallName>,
    /// What the record of its completion says besides how it ended; `None` once that is written.
    pub(super) record: Option<Box<wire::Call>>,
}

#[derive(Debug)]
struct Kept<T> {
    by_digest: HashMap<Digest, T>,
    order: VecDeque<Digest>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { by_digest: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Kept<T> {
    fn insert(&mut self, digest: Digest, value: T) {
        if self.by_digest.insert(digest, value).is_none() {
            self.order.push_back(digest);
        }
        while self.order.len() > KEPT_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_digest.remove(&oldest);
            }
        }
    }
}

/// What the calls of one server left.
#[derive(Debug, Default)]
pub(super) struct Links {
    rounds: Mutex<Kept<OfState>>,
    tasks: Mutex<Kept<Deferred>>,
}

/// It is another member's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnothersOrNone;

fn lock<T>(kept: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// A call asked for input under this state.
    pub(super) fn asked_for_input(&self, state: Digest, round: Round) {
        let mut rounds = lock(&self.rounds);
        let mut of_state = rounds.by_digest.remove(&state).unwrap_or_default();
        let is_known = !of_state.rounds.is_empty();
        of_state.add(round);
        match is_known {
            true => drop(rounds.by_digest.insert(state, of_state)),
            false => rounds.insert(state, of_state),
        }
    }

    /// The round that a state goes on from, in a request of this method and name; `None` if nobody remembers it. It stays: a
    /// client may try again.
    ///
    /// # Errors
    /// [`AnothersOrNone`]: it is another member's, or of another call. That call is what a server might go on with, and it is
    /// this request that is decided on.
    pub(super) fn round(
        &self,
        state: &Digest,
        caller: &Caller,
        of: (&str, Option<&str>),
    ) -> Result<Option<Round>, AnothersOrNone> {
        let rounds = lock(&self.rounds);
        let Some(known) = rounds.by_digest.get(state) else { return Ok(None) };
        match known.rounds.iter().find(|round| round.is_of(caller, of)) {
            None if !known.crowded => Err(AnothersOrNone),
            round => Ok(round.cloned()),
        }
    }

    /// A call became a task.
    pub(super) fn deferred(&self, id: &str, task: Deferred) {
        let mut tasks = lock(&self.tasks);
        let digest = text_digest(id.as_bytes());
        // An id that a server gives twice stays with whoever had it first.
        let is_anothers =
            |known: &Deferred| known.record.is_some() && !is_same(&known.asked.caller, &task.asked.caller);
        if !tasks.by_digest.get(&digest).is_some_and(is_anothers) {
            tasks.insert(digest, task);
        }
    }

    /// The task that a request is about.
    ///
    /// # Errors
    /// [`AnothersOrNone`].
    pub(super) fn task(&self, id: &str, caller: &Caller) -> Result<Deferred, AnothersOrNone> {
        let tasks = lock(&self.tasks);
        let task = tasks.by_digest.get(&text_digest(id.as_bytes())).filter(|task| is_same(&task.asked.caller, caller));
        task.cloned().ok_or(AnothersOrNone)
    }

    /// Whether any task is the caller's.
    pub(super) fn has_tasks_of(&self, caller: &Caller) -> bool {
        lock(&self.tasks).by_digest.values().any(|task| is_same(&task.asked.caller, caller))
    }

    /// A task has ended: what its record says, the first time.
    pub(super) fn ended(&self, id: &str) -> Option<(wire::Call, Option<CallName>)> {
        let mut tasks = lock(&self.tasks);
        let task = tasks.by_digest.get_mut(&text_digest(id.as_bytes()))?;
        task.record.take().map(|record| (*record, task.call))
    }
}

#[cfg(test)]
mod tests {
    use custody::id::MemberId;

    use super::*;

    fn asked(member: u8) -> Asked {
        let (member, token) = (MemberId([member; 16]), Some([1; 16]));
        let caller = Caller::anybody(member, token);
        let (server, method, name) = ("test".into(), "tools/call".into(), Some("slow".into()));
        Asked {
            caller,
            server,
            method,
            name,
            from_server: false,
            request_bytes: 0,
            round: 1,
            list: None,
            resources: Vec::new(),
        }
    }

    #[test]
    fn a_task_is_for_whoever_began_it_and_ends_once() {
        let links = Links::default();
        let task = |member| Deferred { asked: asked(member), call: None, record: Some(Box::default()) };
        links.deferred("t", task(1));
        // A server that gives out an id twice gives nobody another's task.
        links.deferred("t", task(2));
        assert!(links.task("t", &asked(1).caller).is_ok());
        assert_eq!(links.task("t", &asked(2).caller).err(), Some(AnothersOrNone));
        assert_eq!(links.task("u", &asked(1).caller).err(), Some(AnothersOrNone));
        assert!(links.ended("t").is_some() && links.ended("t").is_none());
    }

    #[test]
    fn a_round_is_for_whoever_began_it() {
        let links = Links::default();
        let round = |member, number| Round { asked: asked(member), call: None, number };
        let of = |state: u8, member| {
            let asked = asked(member);
            links.round(&[state; 32], &asked.caller, asked.of()).map(|round| round.map(|round| round.number))
        };
        links.asked_for_input([7; 32], round(1, 2));
        assert_eq!((of(7, 1), of(7, 2), of(8, 2)), (Ok(Some(2)), Err(AnothersOrNone), Ok(None)));
        // Of another call of the same member: a server would go on with what is not decided on.
        let (caller, other) = (asked(1).caller, ("tools/call", Some("other")));
        assert_eq!(links.round(&[7; 32], &caller, other).err(), Some(AnothersOrNone));
        // A server that gives everybody the same state has each one's rounds.
        links.asked_for_input([7; 32], round(2, 3));
        assert_eq!((of(7, 1), of(7, 2), of(7, 3)), (Ok(Some(2)), Ok(Some(3)), Err(AnothersOrNone)));
        for member in 3..=u8::try_from(OF_STATE_MAX + 2).unwrap() {
            links.asked_for_input([7; 32], round(member, 2));
        }
        // Of too many, nobody is told that a state is not theirs.
        assert_eq!((of(7, 1), of(7, 60)), (Ok(None), Ok(Some(2))));
    }
}
