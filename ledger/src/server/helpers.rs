//! Tasks that run beside the writer as long as the ledger serves.
//!
//! What must hold: none of them ends unheard. A ledger whose port is dead, or whose clock stands still, must not look like one
//! that serves: the process ends, and says which part did.

use std::{future::poll_fn, pin::Pin, task::Poll};

use tokio::task::JoinHandle;

use super::Ended;
use crate::exit::ExitReason;

/// Tasks with their names; each ends with why it did, in words.
#[derive(Default)]
pub(super) struct Helpers(Vec<(&'static str, JoinHandle<String>)>);

impl Helpers {
    /// One that may end, with why.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = String> + Send + 'static) {
        self.0.push((name, tokio::spawn(task)));
    }

    /// One that ends when the writer has, of which others tell.
    pub(super) fn spawn_with_writer(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            std::future::pending().await
        });
    }

    /// Waits until one of them ends, which none should.
    pub(super) async fn ended(&mut self) -> Ended {
        poll_fn(|context| {
            for (name, task) in &mut self.0 {
                if let Poll::Ready(ended) = Pin::new(task).poll(context) {
                    return Poll::Ready(match ended {
                        Ok(why) => Ended::new(ExitReason::Failure, format!("{name} ended: {why}")),
                        Err(_) => broke_off(ExitReason::Failure, name),
                    });
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Ends them all.
    pub(super) fn abort(self) {
        for (_, task) in self.0 {
            task.abort();
        }
    }
}

/// A part of the ledger panicked: what it said then stands in the log.
pub(super) fn broke_off(reason: ExitReason, name: &str) -> Ended {
    Ended::new(reason, format!("{name} broke off (hint: the log has why)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whichever_ends_is_named_with_its_reason() {
        for (breaks, words) in [(false, "the port ended: why it did"), (true, "the port broke off")] {
            let mut helpers = Helpers::default();
            helpers.spawn_with_writer("the clock", async {});
            helpers.spawn("the certificates", std::future::pending());
            helpers.spawn("the port", async move {
                assert!(!breaks, "a panic of the test");
                "why it did".to_owned()
            });
            let ended = helpers.ended().await;
            assert_eq!(ended.reason, ExitReason::Failure);
            assert!(ended.text.contains(words), "{}", ended.text);
            helpers.abort();
        }
    }
}
