//! What one call leaves for a later request: a state that the next round brings back, or a task that goes on.
//!
//! What must hold: whoever takes it up is the member, with the token, that left it, and a round by the same method and name;
//! only digests of what servers chose are kept. What is not remembered is nobody's: a state is of no call, a task is not found.
//! So a restart ends both, and their clients begin again: a server may read a state that is not, byte for byte, one that it
//! gave (with a line end behind it, say), and would go on with somebody's call that is not decided on.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use custody::{hash::text_digest, id::MemberId, wire};

use super::{open::Asked, sessions::is_same};
use crate::{access::Caller, writer::CallName};

/// Rounds and tasks of one server that are remembered, of each. Whoever has the most loses the oldest of their own.
const KEPT_MAX: usize = 16_384;

type Digest = [u8; 32];

/// A round that waits for its next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) call: Option<CallName>,
    /// Of the round that comes: the first is the call itself.
    pub(super) number: u64,
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
    by_digest: HashMap<Digest, (MemberId, T)>,
    /// Digests of each member, the newest last.
    of_member: HashMap<MemberId, VecDeque<Digest>>,
    most: usize,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { by_digest: HashMap::new(), of_member: HashMap::new(), most: KEPT_MAX }
    }
}

impl<T> Kept<T> {
    fn of(&self, digest: &Digest) -> Option<&T> {
        self.by_digest.get(digest).map(|(_, value)| value)
    }

    fn insert(&mut self, digest: Digest, member: MemberId, value: T) {
        self.remove(&digest);
        self.by_digest.insert(digest, (member, value));
        self.of_member.entry(member).or_default().push_back(digest);
        if self.by_digest.len() > self.most {
            let most = self.of_member.values().max_by_key(|own| own.len());
            if let Some(oldest) = most.and_then(|own| own.front().copied()) {
                self.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, digest: &Digest) {
        let Some((member, _)) = self.by_digest.remove(digest) else { return };
        let Some(own) = self.of_member.get_mut(&member) else { return };
        match own.front() == Some(digest) {
            true => drop(own.pop_front()),
            false => own.retain(|known| known != digest),
        }
        if own.is_empty() {
            self.of_member.remove(&member);
        }
    }
}

/// What a round is known by: a server may give everybody the same state.
fn of_round(state: &Digest, caller: &Caller, method: &str, name: Option<&str>) -> Digest {
    let mut bytes = [&state[..], &caller.member.0].concat();
    bytes.extend(caller.token.iter().flatten());
    for text in [Some(method), name] {
        // So that no two are written alike.
        bytes.extend(text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
        bytes.extend(text.unwrap_or_default().as_bytes());
    }
    text_digest(&bytes)
}

/// What the calls of one server left.
#[derive(Debug, Default)]
pub(super) struct Links {
    rounds: Mutex<Kept<Round>>,
    tasks: Mutex<Kept<Deferred>>,
}

/// It is another member's, or of another call, or of none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnothersOrNone;

fn lock<T>(kept: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// A call asked for input under this state.
    pub(super) fn asked_for_input(&self, state: &Digest, asked: &Asked, round: Round) {
        let digest = of_round(state, &asked.caller, &asked.method, asked.name.as_deref());
        lock(&self.rounds).insert(digest, asked.caller.member, round);
    }

    /// The round that a state goes on from, in a request of this method and name. It stays: a client may try again.
    ///
    /// # Errors
    /// [`AnothersOrNone`].
    pub(super) fn round(
        &self,
        state: &Digest,
        caller: &Caller,
        (method, name): (&str, Option<&str>),
    ) -> Result<Round, AnothersOrNone> {
        lock(&self.rounds).of(&of_round(state, caller, method, name)).copied().ok_or(AnothersOrNone)
    }

    /// A call became a task.
    pub(super) fn deferred(&self, id: &str, task: Deferred) {
        let mut tasks = lock(&self.tasks);
        let digest = text_digest(id.as_bytes());
        // An id that a server gives twice stays with whoever had it first.
        let is_anothers =
            |known: &Deferred| known.record.is_some() && !is_same(&known.asked.caller, &task.asked.caller);
        if !tasks.of(&digest).is_some_and(is_anothers) {
            tasks.insert(digest, task.asked.caller.member, task);
        }
    }

    /// The task that a request is about.
    ///
    /// # Errors
    /// [`AnothersOrNone`].
    pub(super) fn task(&self, id: &str, caller: &Caller) -> Result<Deferred, AnothersOrNone> {
        let tasks = lock(&self.tasks);
        let task = tasks.of(&text_digest(id.as_bytes())).filter(|task| is_same(&task.asked.caller, caller));
        task.cloned().ok_or(AnothersOrNone)
    }

    /// Whether any task is the caller's.
    pub(super) fn has_tasks_of(&self, caller: &Caller) -> bool {
        lock(&self.tasks).by_digest.values().any(|(_, task)| is_same(&task.asked.caller, caller))
    }

    /// A task has ended: what its record says, the first time.
    pub(super) fn ended(&self, id: &str) -> Option<(wire::Call, Option<CallName>)> {
        let mut tasks = lock(&self.tasks);
        let (_, task) = tasks.by_digest.get_mut(&text_digest(id.as_bytes()))?;
        task.record.take().map(|record| (*record, task.call))
    }
}

#[cfg(test)]
mod tests {
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
    fn a_round_is_for_whoever_began_it_and_of_the_same_call() {
        let links = Links::default();
        let begin = |state: u8, member, number| {
            links.asked_for_input(&[state; 32], &asked(member), Round { call: None, number });
        };
        let of = |state: u8, member, of| links.round(&[state; 32], &asked(member).caller, of).map(|round| round.number);
        let slow = ("tools/call", Some("slow"));
        begin(7, 1, 2);
        assert_eq!((of(7, 1, slow), of(7, 2, slow), of(8, 1, slow)), (Ok(2), Err(AnothersOrNone), Err(AnothersOrNone)));
        for other in [("tools/call", Some("other")), ("tools/call", None), ("prompts/get", Some("slow"))] {
            assert_eq!(of(7, 1, other), Err(AnothersOrNone), "{other:?}");
        }
        let other_token = Caller::anybody(MemberId([1; 16]), Some([2; 16]));
        assert!(links.round(&[7; 32], &other_token, slow).is_err());
        // A server that gives everybody the same state has each one's rounds.
        begin(7, 2, 3);
        assert_eq!((of(7, 1, slow), of(7, 2, slow)), (Ok(2), Ok(3)));
    }

    #[test]
    fn whoever_leaves_much_loses_their_own() {
        let links = Links::default();
        lock(&links.rounds).most = 4;
        let begin =
            |state: u8, member| links.asked_for_input(&[state; 32], &asked(member), Round { call: None, number: 2 });
        let is_there =
            |state: u8, member| links.round(&[state; 32], &asked(member).caller, ("tools/call", Some("slow"))).is_ok();
        begin(1, 1);
        for state in 1..=9 {
            begin(state, 2);
            // Once more, which takes no place.
            begin(state, 2);
        }
        assert_eq!((is_there(1, 1), is_there(6, 2), is_there(7, 2), is_there(9, 2)), (true, false, true, true));
        let rounds = lock(&links.rounds);
        assert_eq!((rounds.by_digest.len(), rounds.of_member.values().map(VecDeque::len).sum::<usize>()), (4, 4));
    }
}
