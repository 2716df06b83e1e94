//! Who somebody is: questions to the ledger's directory, over the same stream as the batches.
//!
//! What must hold: what waits is bounded; a question that was sent over a stream that broke is sent again over the next, which
//! changes nothing for the ledger; whoever asks waits so long and no longer; no name and no address stands in a log or an error.

use std::{collections::BTreeMap, time::Duration};

use custody::{
    directory::{self, Address},
    id::MemberId,
    wire::{self, member_enrolled::Answer},
};
use tokio::sync::{mpsc, oneshot};

use super::printable;
use crate::clock;

/// Questions on their way: half of what the ledger takes of one stream.
pub(super) const SENT_MAX: usize = 32;
/// Questions that wait for the stream.
pub const QUEUE_MAX: usize = 32;
/// How long an answer may take, a connection that has to be made again among it.
pub const WAIT: Duration = Duration::from_secs(15);

/// Why a member has no id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolError {
    /// The address, the name or a group is not one; what is wrong.
    Unfit(&'static str),
    /// The ledger did not answer in time.
    Away,
    /// It takes none for now, and that went on; its words.
    Later(String),
    /// It refuses; its words.
    Refused(String),
    /// The gateway has ended, or is ending.
    Stopped,
}

impl std::fmt::Display for EnrolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unfit(why) => write!(f, "enrol a member: {why}"),
            Self::Away => write!(
                f,
                "enrol a member: the ledger, which gives ids, did not answer within {} s; hint: is it running, and does \
                 `ledger status` show this gateway as connected? then say the same again, which is safe",
                WAIT.as_secs()
            ),
            Self::Later(why) => {
                write!(
                    f,
                    "enrol a member: the ledger takes none for now: {why}; hint: say the same again, which is safe"
                )
            }
            Self::Refused(why) => write!(f, "enrol a member: the ledger refuses: {why}"),
            Self::Stopped => f.write_str("enrol a member: the gateway has stopped; hint: its log says why"),
        }
    }
}

impl std::error::Error for EnrolError {}

/// A ledger that refuses for a moment says for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Member(MemberId),
    Later(Duration, String),
    Never(String),
}

/// A question and whoever asks it.
pub struct Question {
    asked: wire::EnrolMember,
    answer: oneshot::Sender<Told>,
}

/// Not shown: it has a name and an address.
impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Question(not shown)")
    }
}

/// All questions of a gateway, in the task that has the stream.
pub struct Questions {
    queue: mpsc::Receiver<Question>,
    sent: BTreeMap<u64, Question>,
    next: u64,
}

impl Questions {
    /// None yet.
    pub fn new(queue: mpsc::Receiver<Question>) -> Self {
        Self { queue, sent: BTreeMap::new(), next: 0 }
    }

    /// What a new stream is asked again: all that has no answer and that somebody still waits for.
    pub(super) fn again(&mut self) -> impl Iterator<Item = wire::EnrolMember> {
        self.sent.retain(|_, question| !question.answer.is_closed());
        self.sent.values().map(|question| question.asked.clone())
    }

    /// The next question to send, when there is room for it. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> wire::EnrolMember {
        self.sent.retain(|_, question| !question.answer.is_closed());
        while self.sent.len() < SENT_MAX {
            let Some(mut question) = self.queue.recv().await else { break };
            if question.answer.is_closed() {
                continue;
            }
            question.asked.number = self.next;
            self.next += 1;
            let asked = question.asked.clone();
            self.sent.insert(asked.number, question);
            return asked;
        }
        std::future::pending().await
    }

    /// The ledger answers.
    pub(super) fn take(&mut self, answered: wire::MemberEnrolled) {
        let Some(question) = self.sent.remove(&answered.number) else { return };
        let told = match answered.answer {
            Some(Answer::Member(member)) => MemberId::try_from(member.as_ref())
                .map_or_else(|_| Told::Never("it answers with no id".to_owned()), Told::Member),
            Some(Answer::Refusal(refusal)) if refusal.retry_after_ms > 0 => {
                Told::Later(Duration::from_millis(u64::from(refusal.retry_after_ms)), printable(&refusal.detail))
            }
            Some(Answer::Refusal(refusal)) => Told::Never(printable(&refusal.detail)),
            None => Told::Never("it answers nothing".to_owned()),
        };
        // Whoever asked may have gone.
        drop(question.answer.send(told));
    }
}

/// A question about the person of an address.
///
/// # Errors
/// [`EnrolError::Unfit`].
pub fn enrolment(name: &str, address: &str, groups: &[String]) -> Result<wire::EnrolMember, EnrolError> {
    let unfit = |why: directory::Unfit| EnrolError::Unfit(why.0);
    let address = Address::parse(address).map_err(unfit)?;
    let name = directory::parse_name(name).map_err(unfit)?;
    directory::groups_with(&[], custody::id::WorkspaceId::ZERO, groups).map_err(unfit)?;
    let (address, groups) = (address.as_str().to_owned(), groups.to_vec());
    Ok(wire::EnrolMember { address, name, groups, ..Default::default() })
}

/// Asks until there is an answer, or the time is over.
///
/// # Errors
/// [`EnrolError`].
pub async fn enrol(
    queue: &mpsc::Sender<Question>,
    wait: Duration,
    asked: wire::EnrolMember,
) -> Result<MemberId, EnrolError> {
    let mut later = None;
    let answered = tokio::time::timeout(wait, async {
        loop {
            let (answer, told) = oneshot::channel();
            let question = Question { asked: asked.clone(), answer };
            queue.send(question).await.map_err(|_| EnrolError::Stopped)?;
            match told.await.map_err(|_| EnrolError::Stopped)? {
                Told::Member(member) => return Ok(member),
                Told::Never(why) => return Err(EnrolError::Refused(why)),
                Told::Later(wait, why) => {
                    later = Some(why);
                    clock::sleep(wait).await;
                }
            }
        }
    });
    let answered = answered.await;
    answered.unwrap_or_else(|_| Err(later.map_or(EnrolError::Away, EnrolError::Later)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, server::Server, within};

    fn files(path: &std::path::Path) -> Vec<std::path::PathBuf> {
        match path.is_dir() {
            true => std::fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path())).collect(),
            false => vec![path.to_owned()],
        }
    }

    #[tokio::test]
    async fn a_member_has_an_id_whenever_the_stream_breaks() {
        let (server, dir) = (Server::start().await, TempDir::new());
        // The first question ends the stream, the second is refused for a moment, the third answered.
        server.shared.script.lock().unwrap().enrolments = [None, Some(Err(1)), Some(Ok([5; 16]))].into();
        let gateway = server.gateway(&dir).await;
        let groups = ["dev".to_owned()];
        let member = within(gateway.enrol_member("Ada", " ADA@example.com ", &groups)).await.unwrap();
        assert_eq!(member, MemberId([5; 16]));
        gateway.drain().await.unwrap();
        for file in files(dir.path()) {
            let bytes = std::fs::read(&file).unwrap().to_ascii_lowercase();
            assert!(!bytes.windows(12).any(|at| at == b"@example.com"), "{} has the address", file.display());
        }
        let script = server.shared.script.lock().unwrap();
        assert_eq!(script.enrolled.len(), 3);
        for asked in &script.enrolled {
            assert_eq!((asked.address.as_str(), asked.name.as_str()), ("ada@example.com", "Ada"));
            assert_eq!(asked.groups, groups);
        }
        assert_eq!(script.enrolled[0].number, script.enrolled[1].number, "the same question again");
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_not_and_a_refusal_is_passed_on() {
        let (server, dir) = (Server::start().await, TempDir::new());
        server.shared.script.lock().unwrap().enrolments = [Some(Err(0))].into();
        let gateway = server.gateway(&dir).await;
        for (name, address, group) in
            [("Ada", "", "dev"), ("Ada", "ada@", "dev"), ("a\nb", "ada", "dev"), ("", "ada", "a b")]
        {
            let refused = gateway.enrol_member(name, address, &[group.to_owned()]).await;
            assert!(matches!(refused, Err(EnrolError::Unfit(_))), "{refused:?}");
        }
        let refused = within(gateway.enrol_member("", "ada", &[])).await;
        assert_eq!(refused, Err(EnrolError::Refused("a test".into())));
        assert_eq!(server.shared.script.lock().unwrap().enrolled.len(), 1);
    }

    #[tokio::test]
    async fn a_ledger_that_is_away_is_named_with_the_next_move() {
        let (queue, waits) = mpsc::channel(QUEUE_MAX);
        let away = enrol(&queue, Duration::from_millis(1), enrolment("", "ada", &[]).unwrap()).await.unwrap_err();
        assert_eq!(away, EnrolError::Away);
        assert!(away.to_string().contains("hint:") && !away.to_string().contains("ada"), "{away}");
        drop(waits);
        assert_eq!(enrol(&queue, WAIT, enrolment("", "ada", &[]).unwrap()).await, Err(EnrolError::Stopped));
    }
}
