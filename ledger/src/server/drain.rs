//! The end of a ledger: refuse new, finish accepted, cut and seal within the stated time, else say what is left.
//!
//! What must hold: `Done` is said only if all that was accepted is archived; one limit bounds the whole; whatever cannot be
//! archived by this process, however long it waits, is told at once.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::Ended;
use crate::{
    commit::{Request, State, Writer},
    exit::ExitReason,
};

/// What is left once the writer has cut what it may.
#[derive(Debug)]
struct Left {
    state: State,
    /// Queue rows that must be published before all is archived.
    number: u64,
    /// Leaves of segments that are not cut.
    open: u64,
}

/// Drains within `limit`. A ledger that does not `publish` owns no term: whatever waits in it waits for another.
pub(super) async fn drain(
    limit: Duration,
    requests: &mpsc::Sender<Request>,
    mut mark: watch::Receiver<u64>,
    publishes: bool,
) -> Result<(), Ended> {
    let mut left = None;
    let drained = tokio::time::timeout(limit, async {
        let told = ask(requests).await?;
        let (number, whole) = (told.number, told.state == State::Draining && told.open == 0);
        left = Some(told);
        if publishes && whole {
            mark.wait_for(|mark| *mark >= number).await.ok()?;
        }
        Some(())
    });
    let in_time = match drained.await {
        Ok(None) => return Err(Ended::new(ExitReason::Poisoned, "the writer has ended")),
        Ok(Some(())) => true,
        Err(_) => false,
    };
    let Some(left) = left else {
        let text = "the writer did not answer in time (hint: what was accepted is archived after the next start)";
        return Err(Ended::new(ExitReason::Unsealed, text));
    };
    let waiting = left.number.saturating_sub(*mark.borrow());
    outcome(&left, waiting, publishes, in_time)
}

fn outcome(left: &Left, waiting: u64, publishes: bool, in_time: bool) -> Result<(), Ended> {
    let open = left.open;
    let unsealed = |text: String| Err(Ended::new(ExitReason::Unsealed, text));
    match &left.state {
        State::Poisoned(why) => Err(Ended::new(
            ExitReason::Poisoned,
            format!("poisoned, with {open} batches not cut and {waiting} segments not archived: {why}"),
        )),
        State::Fenced => Err(Ended::new(ExitReason::Fenced, "another writer owns the log")),
        _ if open == 0 && waiting == 0 && in_time => {
            tracing::info!("drained: everything is archived");
            Ok(())
        }
        _ if !publishes => unsealed(format!(
            "this data folder is an old copy, and {open} batches and {waiting} segments in it are not known to be archived (hint: \
             start the newer data folder; this one never archives them)"
        )),
        State::ReadOnly(why) => unsealed(format!(
            "read-only, with {open} batches not cut and {waiting} segments not archived: {why} (hint: `ledger status` names the \
             alarm, and docs/OPERATIONS.md what to do)"
        )),
        _ => {
            unsealed(format!("{waiting} segments are cut and not archived (hint: they are archived at the next start)"))
        }
    }
}

/// Has the writer drain, and looks at what it leaves; `None` if it has ended.
async fn ask(requests: &mpsc::Sender<Request>) -> Option<Left> {
    let (reply, answer) = oneshot::channel();
    requests.send(Request::Drain(reply)).await.ok()?;
    let number = answer.await.ok()?;
    let (reply, answer) = oneshot::channel();
    let look = move |writer: &Writer| {
        let open = writer.workspaces().map(|workspace| workspace.open.tree.size()).sum();
        // Whoever asked gave up.
        reply.send((writer.state().clone(), open)).ok();
    };
    requests.send(Request::Inspect(Box::new(look))).await.ok()?;
    let (state, open) = answer.await.ok()?;
    Some(Left { state, number, open })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: State, open: u64, waiting: u64, publishes: bool, in_time: bool) -> (u8, String) {
        match outcome(&Left { state, number: waiting, open }, waiting, publishes, in_time) {
            Ok(()) => (0, String::new()),
            Err(ended) => (ended.reason.code(), ended.text),
        }
    }

    #[test]
    fn only_what_is_archived_counts_as_drained() {
        let poisoned = || State::Poisoned("a write failed".to_owned());
        let read_only = || State::ReadOnly("why".to_owned());
        for (state, open, waiting, publishes, code, words) in [
            (State::Draining, 0, 0, true, 0, ""),
            (State::Draining, 0, 2, true, 3, "next start"),
            (read_only(), 3, 0, true, 3, "3 batches not cut"),
            (read_only(), 0, 0, true, 0, ""),
            (read_only(), 3, 1, false, 3, "old copy"),
            (read_only(), 0, 0, false, 0, ""),
            (poisoned(), 0, 0, true, 5, "a write failed"),
            (poisoned(), 3, 0, true, 5, "3 batches"),
            (State::Fenced, 0, 0, true, 4, "another writer"),
        ] {
            let (found, text) = told(state.clone(), open, waiting, publishes, true);
            assert!(found == code && text.contains(words), "{state:?} {open} {waiting}: {found} {text}");
        }
        assert_eq!(told(State::Draining, 0, 0, true, false).0, 3);
    }

    #[tokio::test]
    async fn the_limit_bounds_a_writer_that_does_not_answer() {
        let (requests, _unserved) = mpsc::channel(1);
        let (_marks, mark) = watch::channel(0);
        let ended = drain(Duration::from_millis(20), &requests, mark, true).await.unwrap_err();
        assert_eq!(ended.reason, ExitReason::Unsealed, "{ended:?}");
        assert!(ended.text.contains("hint:"), "{ended:?}");
    }

    #[tokio::test]
    async fn a_writer_that_has_ended_is_told_as_such() {
        let (requests, queue) = mpsc::channel(1);
        drop(queue);
        let (_marks, mark) = watch::channel(0);
        let ended = drain(Duration::from_millis(20), &requests, mark, true).await.unwrap_err();
        assert_eq!(ended.reason, ExitReason::Poisoned, "{ended:?}");
    }
}
