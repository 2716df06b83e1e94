//! What a running shim shows of itself, put together from its parts.

use custody::wire;

use super::{Controlled, processes};
use crate::{certificate, clock, config::Class, seen::OfServer};

/// A certificate that ends within so many microseconds (14 days) is a warning: time to ask whoever issues it.
const EXPIRING_US: u64 = 14 * 86_400 * 1_000_000;

impl Controlled {
    /// All of it, at this time.
    pub(super) fn shown(&self, now_us: u64) -> wire::ShimStatusResponse {
        let (config, seen) = (&self.config, self.gateway.seen());
        let state = self.gateway.has_ended().map_or_else(|| "serving".to_owned(), |ended| ended.to_string());
        let certificates = self.certificates();
        let mut warnings = config.warnings();
        warnings.extend(certificates.iter().filter_map(|held| expiring(held, now_us)));
        wire::ShimStatusResponse {
            origin: config.gateway.origin.clone(),
            workspace: config.name().workspace.into(),
            gateway: config.name().gateway.into(),
            name: config.gateway.name.clone(),
            product_version: crate::VERSION.to_owned(),
            started_at: seen.started_at_us(),
            state,
            intermittent: config.gateway.class == Class::Intermittent,
            clock: clock::state() as i32,
            spool: Some(self.spool()),
            ledger: Some(self.ledger()),
            servers: self.servers(),
            access: None,
            certificates,
            warnings,
        }
    }

    fn spool(&self) -> wire::ShimSpool {
        let standing = self.gateway.seen().standing();
        wire::ShimSpool {
            epoch: standing.epoch.map(Into::into).unwrap_or_default(),
            next_record: standing.next_record,
            running: standing.running,
            unsigned: standing.unsigned,
            unshipped: standing.unshipped,
            held: standing.held,
            bytes: standing.spool_bytes,
            bytes_max: self.config.spool.mib_max << 20,
        }
    }

    fn ledger(&self) -> wire::ShimLedger {
        let reached = self.gateway.seen().reached();
        wire::ShimLedger {
            endpoint: self.config.ledger.endpoint.clone(),
            connected: reached.connected,
            since: reached.since_us,
            why: reached.why,
            receipt_at: reached.receipt_at_us,
            segment: reached.segment,
            leaves: reached.leaves,
        }
    }

    fn servers(&self) -> Vec<wire::ShimServer> {
        let mut recorded = self.gateway.seen().servers();
        for name in self.config.servers.keys() {
            recorded.entry(name.clone()).or_default();
        }
        let kind = |name: &str| self.config.servers.get(name).map_or("", |server| server.kind());
        let mut shown: Vec<_> = recorded
            .iter()
            .map(|(name, of)| wire::ShimServer { kind: kind(name).to_owned(), ..server(name, of) })
            .collect();
        for of_processes in self.processes.list().iter().map(processes::shown) {
            if let Some(server) = shown.iter_mut().find(|server| server.name == of_processes.name) {
                server.processes = u32::try_from(of_processes.processes.len()).unwrap_or(u32::MAX);
                server.restarts = u32::try_from(of_processes.crashes).unwrap_or(u32::MAX);
                (server.state, server.why) = (of_processes.state, of_processes.why);
            }
        }
        shown
    }

    fn certificates(&self) -> Vec<wire::Certificate> {
        let until_us = self.gateway.seen().reached().certificate_until_us;
        let shown = (until_us > 0).then(|| wire::Certificate { name: "to the ledger".to_owned(), not_after: until_us });
        let served = self.config.serve.as_ref().and_then(|serve| serve.certificate.as_ref());
        let served = served.and_then(|path| std::fs::read_to_string(path).ok());
        let served = served.and_then(|pem| certificate::validity(&pem));
        let served = served.map(|of| wire::Certificate { name: "to members".to_owned(), not_after: of.not_after_us });
        shown.into_iter().chain(served).collect()
    }
}

fn server(name: &str, of: &OfServer) -> wire::ShimServer {
    let count = |((decision, outcome), count): (&(wire::Decision, wire::Outcome), &u64)| wire::ShimCount {
        decision: *decision as i32,
        outcome: *outcome as i32,
        count: *count,
    };
    wire::ShimServer {
        name: name.to_owned(),
        delivery: of.delivery.map_or(0, |state| state as i32),
        calls: of.calls.iter().map(count).collect(),
        ..Default::default()
    }
}

/// A certificate that ends soon, in words.
fn expiring(held: &wire::Certificate, now_us: u64) -> Option<String> {
    let soon = held.not_after < now_us.saturating_add(EXPIRING_US);
    soon.then(|| {
        let until = clock::display(held.not_after);
        format!("the certificate that is shown {} ends at {until}; hint: renew it before", held.name)
    })
}
