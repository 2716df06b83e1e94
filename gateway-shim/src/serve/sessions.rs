//! Sessions, and whose they are (Streamable HTTP, 2025-03-26 to 2025-11-25).
//!
//! What must hold: a session is used by the member, and with the token, that began it, and by nobody else, who also does not
//! learn that it is there. What is not remembered is nobody's: its client begins another.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

use custody::id::MemberId;

use super::{open::Running, refusal::Refusal};
use crate::access::Caller;

/// Sessions that are remembered of one server; the oldest is forgotten first.
const SESSIONS_MAX: usize = 65_536;
/// Of these for one member: whoever begins more loses the oldest of their own.
const OF_MEMBER_MAX: usize = 256;
/// Calls of one session whose streams may be taken up again: those that have ended are forgotten first.
const CALLS_MAX: usize = 64;
/// Events of one of these behind which that may be; the oldest are forgotten first.
const EVENTS_MAX: usize = 64;

/// Bytes of what is kept, or parts of it, as long as its session: what a client says of itself has some hundred, or some
/// thousand with icons in it.
pub(super) const KEPT_BYTES_MAX: usize = 64 << 10;
/// That is what these say.
const KEPT: [&str; 2] = ["initialize", "logging/setLevel"];

/// Whether a request is short enough to be kept, if it is one of those that are.
///
/// # Errors
/// [`Refusal`].
pub(super) fn check_kept(method: &str, bytes: usize) -> Result<(), Refusal> {
    if bytes > KEPT_BYTES_MAX && KEPT.contains(&method) {
        Err(Refusal::too_long_to_keep(KEPT_BYTES_MAX))
    } else {
        Ok(())
    }
}

/// Who speaks, as they said themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Speaker {
    pub(super) client: Option<(String, String)>,
    pub(super) protocol: Option<String>,
    /// Digest of what its client said that it can do.
    pub(super) capabilities: Option<u8>,
}

struct Session {
    owner: Caller,
    speaker: Speaker,
    turn: u64,
    resumable: VecDeque<Resumable>,
}

/// A call whose stream may be taken up again, also when it has ended: its client may have lost the answer.
struct Resumable {
    call: Own,
    /// Hashes of their ids, the newest last.
    events: VecDeque<u64>,
}

/// A call, and the key of its id.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) id: String,
    pub(super) running: Running,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<String, Session>,
    by_turn: BTreeMap<u64, String>,
    of_member: HashMap<MemberId, usize>,
    next_turn: u64,
}

/// The sessions of one server.
pub(super) struct Sessions {
    known: Mutex<Known>,
    /// Events are told apart by what nobody outside can aim at.
    hash: RandomState,
    most: usize,
}

/// It is not the caller's, or there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotYours;

/// Whether what one began is for the other: the same member with the same token.
pub(super) fn is_same(owner: &Caller, caller: &Caller) -> bool {
    owner.member == caller.member && owner.token == caller.token
}

impl Default for Sessions {
    fn default() -> Self {
        Self { known: Mutex::default(), hash: RandomState::new(), most: SESSIONS_MAX }
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session was begun.
    ///
    /// # Errors
    /// [`NotYours`]: the server gave an id that is another member's.
    pub(super) fn begin(&self, id: &str, owner: &Caller, speaker: Speaker) -> Result<(), NotYours> {
        let mut known = self.lock();
        if known.by_id.get(id).is_some_and(|session| !is_same(&session.owner, owner)) {
            return Err(NotYours);
        }
        known.remove(id);
        if known.of_member.get(&owner.member).is_some_and(|count| *count >= OF_MEMBER_MAX) {
            let of_member = known
                .by_turn
                .values()
                .find(|id| known.by_id.get(*id).is_some_and(|session| session.owner.member == owner.member));
            if let Some(oldest) = of_member.cloned() {
                known.remove(&oldest);
            }
        }
        if known.by_id.len() >= self.most
            && let Some(oldest) = known.by_turn.values().next().cloned()
        {
            known.remove(&oldest);
        }
        let turn = known.next_turn;
        known.next_turn += 1;
        known.by_turn.insert(turn, id.to_owned());
        *known.of_member.entry(owner.member).or_default() += 1;
        let session = Session { owner: owner.clone(), speaker, turn, resumable: VecDeque::new() };
        known.by_id.insert(id.to_owned(), session);
        Ok(())
    }

    /// Who speaks in it, if it is the caller's.
    ///
    /// # Errors
    /// [`NotYours`].
    pub(super) fn of(&self, id: &str, caller: &Caller) -> Result<Speaker, NotYours> {
        let known = self.lock();
        let session = known.by_id.get(id).filter(|session| is_same(&session.owner, caller)).ok_or(NotYours)?;
        Ok(session.speaker.clone())
    }

    /// Whether it is the caller's.
    pub(super) fn is_of(&self, id: &str, caller: &Caller) -> bool {
        self.lock().by_id.get(id).is_some_and(|session| is_same(&session.owner, caller))
    }

    /// Whose it is, and who speaks in it.
    pub(super) fn owner(&self, id: &str) -> Option<(Caller, Speaker)> {
        let known = self.lock();
        known.by_id.get(id).map(|session| (session.owner.clone(), session.speaker.clone()))
    }

    /// It has ended.
    pub(super) fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Ends those whose owner fits, and gives their ids.
    pub(super) fn end_of(&self, which: impl Fn(&Caller) -> bool) -> Vec<String> {
        let mut known = self.lock();
        let ended: Vec<String> =
            known.by_id.iter().filter(|(_, session)| which(&session.owner)).map(|(id, _)| id.clone()).collect();
        for id in &ended {
            known.remove(id);
        }
        ended
    }

    /// An event of the stream that answers this call has this id: the stream may be taken up again behind it.
    pub(super) fn event(&self, id: &str, event: &[u8], call: &Own) {
        let event = self.hash.hash_one(event);
        let mut known = self.lock();
        // A server may give anybody's session in its answer.
        let of_caller = |session: &&mut Session| is_same(&session.owner, &call.running.asked().caller);
        let Some(session) = known.by_id.get_mut(id).filter(of_caller) else { return };
        let known = session.resumable.iter_mut().rev().find(|known| known.call.running.is(&call.running));
        if let Some(Resumable { events, .. }) = known {
            events.push_back(event);
            if events.len() > EVENTS_MAX {
                events.pop_front();
            }
            return;
        }
        if session.resumable.len() >= CALLS_MAX {
            let ended = session.resumable.iter().position(|known| known.call.running.has_ended());
            session.resumable.remove(ended.unwrap_or(0));
        }
        session.resumable.push_back(Resumable { call: call.clone(), events: [event].into() });
    }

    /// The call whose stream is taken up again behind this event.
    pub(super) fn call_of(&self, id: &str, event: &[u8]) -> Option<Own> {
        let event = self.hash.hash_one(event);
        let known = self.lock();
        let mut resumable = known.by_id.get(id)?.resumable.iter().rev();
        resumable.find(|known| known.events.contains(&event)).map(|known| known.call.clone())
    }
}

impl Known {
    fn remove(&mut self, id: &str) {
        let Some(session) = self.by_id.remove(id) else { return };
        self.by_turn.remove(&session.turn);
        let member = session.owner.member;
        if let Some(count) = self.of_member.get_mut(&member) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_member.remove(&member);
            }
        }
    }
}

/// Pings of servers whose answers may still come; the oldest are forgotten first.
const PINGS_MAX: usize = 1_024;

/// What servers ask their clients and nobody records: whether they are there.
#[derive(Debug, Default)]
pub(super) struct Pinged(Mutex<VecDeque<(String, String)>>);

impl Pinged {
    /// The server of this session asked so, under this id.
    pub(super) fn insert(&self, session: &str, id: &str) {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pings.len() >= PINGS_MAX {
            pings.pop_front();
        }
        pings.push_back((session.to_owned(), id.to_owned()));
    }

    /// Whether an answer is to one of them, the first time.
    pub(super) fn take(&self, session: &str, id: &str) -> bool {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = pings.iter().position(|(of, asked)| of == session && asked == id);
        place.and_then(|place| pings.remove(place)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use custody::wire;

    use super::*;
    use crate::{
        access::{Judgement, Slot},
        serve::open::Cuts,
        writer::Ending,
    };

    fn member(number: u8, token: u8) -> Caller {
        let (member, token) = (MemberId([number; 16]), Some([token; 16]));
        Caller::anybody(member, token)
    }

    #[test]
    fn a_session_is_for_whoever_began_it() {
        let sessions = Sessions::default();
        sessions.begin("s", &member(1, 1), Speaker::default()).unwrap();
        assert!(sessions.of("s", &member(1, 1)).is_ok());
        for other in [member(2, 1), member(1, 2), member(2, 2)] {
            assert_eq!(sessions.of("s", &other).err(), Some(NotYours));
            assert_eq!(sessions.begin("s", &other, Speaker::default()), Err(NotYours));
        }
        assert_eq!(sessions.of("t", &member(1, 1)).err(), Some(NotYours));
        assert_eq!(sessions.end_of(|owner| owner.member == MemberId([1; 16])), ["s"]);
        assert!(sessions.owner("s").is_none() && sessions.lock().of_member.is_empty());
    }

    #[test]
    fn whoever_begins_many_loses_their_own() {
        let sessions = Sessions { most: OF_MEMBER_MAX + 2, ..Sessions::default() };
        sessions.begin("other", &member(2, 1), Speaker::default()).unwrap();
        for number in 0..OF_MEMBER_MAX + 9 {
            sessions.begin(&number.to_string(), &member(1, 1), Speaker::default()).unwrap();
        }
        assert!(sessions.owner("other").is_some() && sessions.owner("8").is_none() && sessions.owner("9").is_some());
        // All together they have a bound, too.
        sessions.begin("third", &member(3, 1), Speaker::default()).unwrap();
        sessions.begin("fourth", &member(4, 1), Speaker::default()).unwrap();
        assert!(sessions.owner("other").is_none());
        let known = sessions.lock();
        assert_eq!((known.by_id.len(), known.by_turn.len()), (sessions.most, sessions.most));
    }

    #[test]
    fn the_call_of_an_event_is_found_again() {
        let sessions = Sessions::default();
        sessions.begin("s", &member(1, 1), Speaker::default()).unwrap();
        let cuts = Cuts::default();
        let call = |member_number, number: usize, ends: bool| {
            let asked = super::super::admit::asked_of_session(&"test".into(), &member(member_number, 1), 0);
            let running = cuts.begin(asked, "tools/call", "1");
            let judgement = Judgement { allowed: true, rule: "all".into(), policy: [0; 32], nobody: None };
            running.begun(None, Slot::of(None), judgement);
            if ends {
                running.end(Ending::of(wire::Outcome::Ok));
            }
            Own { id: format!("n{number}"), running }
        };
        let of = |event: &str| sessions.call_of("s", event.as_bytes()).map(|own| own.id);
        // What is open is remembered, however much ends beside it, and by its newest events.
        let open = call(1, 0, false);
        for number in 0..=EVENTS_MAX {
            sessions.event("s", format!("open {number}").as_bytes(), &open);
        }
        for number in 1..=CALLS_MAX {
            sessions.event("s", number.to_string().as_bytes(), &call(1, number, true));
        }
        assert_eq!((of("open 0"), of("open 1").as_deref(), of("open 64").as_deref()), (None, Some("n0"), Some("n0")));
        assert_eq!((of("1"), of("2").as_deref()), (None, Some("n2")));
        // Nobody's events are of another member's session.
        sessions.event("s", b"theirs", &call(2, 1, false));
        assert_eq!(of("theirs"), None);
        for number in 0..CALLS_MAX {
            sessions.event("s", format!("more {number}").as_bytes(), &call(1, number, false));
        }
        assert_eq!((of("open 1"), sessions.lock().by_id["s"].resumable.len()), (None, CALLS_MAX));
    }
}
