//! What passes, or is refused, without a record of its own: it is counted, and a minute's counts are one record.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use custody::wire::{self, Outcome, gateway_event::Event, record::Kind};

use super::{Shared, sessions::Speaker};
use crate::clock;

/// How often counts become records.
pub(super) const COUNTS_EVERY: Duration = Duration::from_secs(60);
/// Key of how many a record counts.
const NUMBER: &str = "shim/number";

/// Writes into a record how many it counts.
pub(super) fn number(call: &mut wire::Call, number: u64) {
    let value = Some(wire::extension::Value::Number(number));
    call.extensions.push(wire::Extension { key: NUMBER.to_owned(), value });
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) pings: AtomicU64,
    pub(super) progress: AtomicU64,
    pub(super) notifications: AtomicU64,
    /// Requests whose body did not come.
    pub(super) torn: AtomicU64,
    /// Messages of the server that are none, and their bytes.
    unread: AtomicU64,
    unread_bytes: AtomicU64,
}

/// A request whose body is on its way: torn, unless it is said that all of it came.
pub(super) struct Arriving<'a>(pub(super) Option<&'a Counts>);

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(counts) = self.0 {
            counts.torn.fetch_add(1, Relaxed);
        }
    }
}

impl Counts {
    /// What passes without an answer is counted.
    pub(super) fn count(&self, method: &str) {
        let counter = match method {
            "notifications/progress" => &self.progress,
            _ => &self.notifications,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// What the server says and nobody can read: it goes no further, because it might be a request.
    pub(super) fn unread(&self, bytes: usize) {
        self.unread.fetch_add(1, Relaxed);
        self.unread_bytes.fetch_add(bytes as u64, Relaxed);
    }
}

impl Shared {
    /// Writes what was only counted since the last time.
    pub(super) async fn flush_counts(&self, server: &str, counts: &Counts, since: u64) {
        let taken = wire::Counts {
            since,
            pings: counts.pings.swap(0, Relaxed),
            progress: counts.progress.swap(0, Relaxed),
            notifications: counts.notifications.swap(0, Relaxed),
        };
        if taken.pings + taken.progress + taken.notifications > 0 {
            let event = wire::GatewayEvent { at: clock::now_us(), event: Some(Event::Counts(taken)) };
            if let Err(refused) = self.gateway.record(Kind::GatewayEvent(event)).await {
                tracing::error!(%refused, "counts are not recorded");
            }
        }
        // Nobody can tell what was asked, and whoever breaks off a thousand times writes no thousand records.
        let torn = counts.torn.swap(0, Relaxed);
        if torn > 0 {
            tracing::warn!(
                count = torn,
                "requests whose body did not come in time are recorded as one that is malformed"
            );
            self.note(server, false, "shim/malformed", Outcome::Malformed, 0, torn).await;
        }
        let (unread, bytes) = (counts.unread.swap(0, Relaxed), counts.unread_bytes.swap(0, Relaxed));
        if unread > 0 {
            tracing::warn!(
                count = unread,
                bytes,
                "what the MCP server said and is no message of JSON-RPC was not passed on, and is recorded as one that is malformed"
            );
            self.note(server, true, "shim/malformed", Outcome::Malformed, bytes, unread).await;
        }
    }

    async fn note(&self, server: &str, from_server: bool, rule: &str, outcome: Outcome, bytes: u64, counted: u64) {
        let mut call = self.describe(server, None, &Speaker::default(), None, bytes);
        (call.from_server, call.rule) = (from_server, rule.to_owned());
        call.access_policy_digest = Some(self.access.digest().to_vec().into());
        number(&mut call, counted);
        self.record_refused(call, outcome, counted).await;
    }
}
