//! How many requests are open at the servers at a time, of one member and of all.
//!
//! What must hold: no member, and no server that answers nothing, takes the file descriptors of everybody else's calls, of the
//! spool, or of the control socket over which a member is revoked; a request has its place until its connection to the server
//! has ended, which may be long after its client has gone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use custody::id::MemberId;

use super::refusal::Refusal;

/// What has no answer of its own (notifications, answers to a server) and is on its way to one server at a time; and of this,
/// that of one member. It has places of its own, because calls may wait for it that have all others.
pub const NOTES_MAX: usize = 64;
const NOTES_OF_MEMBER_MAX: usize = 16;

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_member: HashMap<MemberId, usize>,
}

/// The places of all servers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    all_max: usize,
    of_member_max: usize,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    member: MemberId,
}

impl Places {
    pub(super) fn new(all_max: usize, of_member_max: usize) -> Self {
        Self { taken: Arc::default(), all_max, of_member_max }
    }

    /// Those of what has no answer, at one server, or on the port beyond the shares there.
    pub(super) fn of_notes() -> Self {
        Self::new(NOTES_MAX, NOTES_OF_MEMBER_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one request more.
    ///
    /// # Errors
    /// [`Refusal`]: there is none, for this member or for anybody.
    pub(super) fn enter(&self, member: MemberId) -> Result<Place, Refusal> {
        let mut taken = self.lock();
        if taken.of_member.get(&member).is_some_and(|own| *own >= self.of_member_max) {
            return Err(Refusal::busy("too many of your requests are open; hint: wait until one has ended"));
        }
        if taken.all >= self.all_max {
            return Err(Refusal::busy("too many requests of all members are open; hint: try again later"));
        }
        taken.all += 1;
        *taken.of_member.entry(member).or_default() += 1;
        drop(taken);
        Ok(Place { places: self.clone(), member })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        let Some(own) = taken.of_member.get_mut(&self.member) else { return };
        *own -= 1;
        if *own == 0 {
            taken.of_member.remove(&self.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_more_than_a_share_and_all_no_more_than_there_are() {
        let places = Places::new(3, 2);
        let [alice, bob, carol] = [1, 2, 3].map(|id| MemberId([id; 16]));
        let own = [places.enter(alice).unwrap(), places.enter(alice).unwrap()];
        assert!(places.enter(alice).unwrap_err().text.contains("your"));
        let other = places.enter(bob).unwrap();
        assert!(places.enter(carol).unwrap_err().text.contains("all members"));
        drop(own);
        let again = [places.enter(alice).unwrap(), places.enter(carol).unwrap()];
        drop((other, again));
        let taken = places.lock();
        assert!(taken.all == 0 && taken.of_member.is_empty(), "{taken:?}");
    }
}
