//! `gateway-shim status`: everything that somebody looks at first, as a report for people or as JSON.

use clap::Args;
use custody::{id::hex, wire};
use serde_json::{Value, json};

use super::{
    At, Done,
    output::{ago, print, row, size, span, table, until},
    running::Running,
};
use crate::clock;

#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    at: At,
    /// As JSON; times are microseconds since 1970.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs) -> Done {
    let status = Running::connect(&args.at.load()?).await?.status().await?;
    match args.json {
        true => print(&format!("{:#}", as_json(&status))),
        false => print(&report(&status, clock::now_us())),
    }
    Ok(0)
}

/// For people.
fn report(status: &wire::ShimStatusResponse, now_us: u64) -> String {
    let named = if status.name.is_empty() { String::new() } else { format!(" ({})", status.name) };
    let class = if status.intermittent { "intermittent" } else { "always-on" };
    let mut out = format!(
        "gateway {}{named}\n  log          {}\n  workspace    {}\n  state        {}\n  started      {}, version {}, {class}\n  \
         clock        {}\n",
        hex(&status.gateway),
        status.origin,
        hex(&status.workspace),
        status.state,
        ago(status.started_at, now_us),
        status.product_version,
        clock_words(status.clock()),
    );
    if let Some(spool) = &status.spool {
        out.push_str(&spool_lines(spool));
    }
    if let Some(ledger) = &status.ledger {
        out.push_str(&ledger_lines(ledger, now_us));
    }
    if let Some(access) = &status.access {
        out.push_str(&access_lines(access));
    }
    if !status.warnings.is_empty() {
        out.push_str("\nWARNINGS\n");
        let lines =
            status.warnings.iter().map(|warning| format!("  {}\n", warning.replace("; hint: ", "\n    hint: ")));
        out.extend(lines);
    }
    if !status.servers.is_empty() {
        out.push('\n');
        out.push_str(&table(&servers(status)));
        let reasons = status.servers.iter().filter(|server| !server.why.is_empty());
        out.extend(reasons.map(|server| format!("  {}: {}\n", server.name, server.why)));
    }
    if !status.certificates.is_empty() {
        let mut rows = vec![row(["certificate that is shown", "good until"])];
        rows.extend(status.certificates.iter().map(|held| vec![held.name.clone(), until(held.not_after, now_us)]));
        out.push('\n');
        out.push_str(&table(&rows));
    }
    out
}

fn spool_lines(spool: &wire::ShimSpool) -> String {
    let hundredths = spool.bytes.saturating_mul(100).checked_div(spool.bytes_max).unwrap_or(0);
    format!(
        "  epoch        {}, next record {}\n  spool        {} of {} ({hundredths} %), {} records unsigned, {} batches \
         unshipped, {} kept\n  in flight    {} calls\n",
        hex(&spool.epoch),
        spool.next_record,
        size(spool.bytes),
        size(spool.bytes_max),
        spool.unsigned,
        spool.unshipped,
        spool.held,
        spool.running,
    )
}

fn ledger_lines(ledger: &wire::ShimLedger, now_us: u64) -> String {
    let state = match (ledger.connected, ledger.since) {
        (true, since) => format!("connected for {}", span(now_us.saturating_sub(since) / 1_000_000)),
        (false, 0) => "not reached yet".to_owned(),
        (false, since) => {
            let away = span(now_us.saturating_sub(since) / 1_000_000);
            format!("AWAY for {away}: {}", ledger.why.replace("; hint: ", "\n               hint: "))
        }
    };
    let receipt = match ledger.receipt_at {
        0 => "none since the start".to_owned(),
        at => format!("{}, up to segment {}, leaf {}", ago(at, now_us), ledger.segment, ledger.leaves),
    };
    format!("  ledger       {}\n               {state}\n  last receipt {receipt}\n", ledger.endpoint)
}

fn access_lines(access: &wire::ShimAccess) -> String {
    let differs = match access.differs.is_empty() {
        true => format!("{} says the same", access.file),
        false => access.differs.replace("; hint: ", "\n               hint: "),
    };
    format!(
        "  access       {} members, {} tokens, {} rules\n               in force {}\n               {differs}\n",
        access.members,
        access.tokens,
        access.rules,
        hex(&access.digest)
    )
}

fn clock_words(state: wire::ClockState) -> &'static str {
    match state {
        wire::ClockState::Synchronised => "synchronised",
        wire::ClockState::Unsynchronised => "NOT SYNCHRONISED",
        wire::ClockState::Unknown | wire::ClockState::Unspecified => {
            "this system does not say whether it is synchronised"
        }
    }
}

/// How records are delivered, in one word.
fn delivery(state: wire::DeliveryState) -> &'static str {
    match state {
        wire::DeliveryState::Unspecified => "-",
        wire::DeliveryState::Flowing => "flowing",
        wire::DeliveryState::Spooling => "spooling",
        wire::DeliveryState::Refusing => "REFUSING",
        wire::DeliveryState::FailOpen => "FAIL OPEN",
    }
}

/// The calls of a server, by what became of them.
struct Calls {
    ok: u64,
    failed: u64,
    denied: u64,
}

impl Calls {
    fn of(server: &wire::ShimServer) -> Self {
        let mut calls = Self { ok: 0, failed: 0, denied: 0 };
        for counted in &server.calls {
            let to = match (counted.decision(), counted.outcome()) {
                (wire::Decision::Denied, _) => &mut calls.denied,
                (_, wire::Outcome::Ok | wire::Outcome::InputRequired | wire::Outcome::Deferred) => &mut calls.ok,
                _ => &mut calls.failed,
            };
            *to += counted.count;
        }
        calls
    }
}

fn servers(status: &wire::ShimStatusResponse) -> Vec<Vec<String>> {
    let columns =
        ["server", "kind", "state", "delivery", "in flight", "ok", "failed", "denied", "processes", "restarts"];
    let mut rows = vec![row(columns)];
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    for server in &status.servers {
        let Calls { ok, failed, denied } = Calls::of(server);
        rows.push(vec![
            or(&server.name, "(of none)"),
            or(&server.kind, "-"),
            or(&server.state, "-"),
            delivery(server.delivery()).to_owned(),
            server.running.to_string(),
            ok.to_string(),
            failed.to_string(),
            denied.to_string(),
            server.processes.to_string(),
            server.restarts.to_string(),
        ]);
    }
    rows
}

/// The same as JSON, with the names of the message's fields; ids and digests in hex.
fn as_json(status: &wire::ShimStatusResponse) -> Value {
    let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase();
    let count = |count: &wire::ShimCount| {
        json!({
            "decision": word(count.decision().as_str_name(), "DECISION_"),
            "outcome": word(count.outcome().as_str_name(), "OUTCOME_"),
            "count": count.count,
        })
    };
    let server = |server: &wire::ShimServer| {
        json!({
            "name": server.name, "kind": server.kind, "state": server.state, "why": server.why,
            "delivery": word(server.delivery().as_str_name(), "DELIVERY_STATE_"), "running": server.running,
            "processes": server.processes, "restarts": server.restarts,
            "calls": server.calls.iter().map(count).collect::<Vec<_>>(),
        })
    };
    let spool = status.spool.as_ref().map(|spool| {
        json!({
            "epoch": hex(&spool.epoch), "next_record": spool.next_record, "running": spool.running,
            "unsigned": spool.unsigned, "unshipped": spool.unshipped, "held": spool.held,
            "bytes": spool.bytes, "bytes_max": spool.bytes_max,
        })
    });
    let ledger = status.ledger.as_ref().map(|ledger| {
        json!({
            "endpoint": ledger.endpoint, "connected": ledger.connected, "since": ledger.since, "why": ledger.why,
            "receipt_at": ledger.receipt_at, "segment": ledger.segment, "leaves": ledger.leaves,
        })
    });
    let access = status.access.as_ref().map(|access| {
        json!({
            "digest": hex(&access.digest), "file": access.file, "differs": access.differs,
            "members": access.members, "rules": access.rules, "tokens": access.tokens,
        })
    });
    let certificate = |held: &wire::Certificate| json!({ "name": held.name, "not_after": held.not_after });
    json!({
        "origin": status.origin, "workspace": hex(&status.workspace), "gateway": hex(&status.gateway),
        "name": status.name, "product_version": status.product_version, "started_at": status.started_at,
        "state": status.state, "intermittent": status.intermittent,
        "clock": word(status.clock().as_str_name(), "CLOCK_STATE_"),
        "spool": spool, "ledger": ledger, "access": access, "warnings": status.warnings,
        "servers": status.servers.iter().map(server).collect::<Vec<_>>(),
        "certificates": status.certificates.iter().map(certificate).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> wire::ShimServer {
        wire::ShimServer {
            name: "github".to_owned(),
            kind: "stdio".to_owned(),
            state: "failed".to_owned(),
            why: "it ended 5 times within a minute; hint: gateway-shim server start github".to_owned(),
            ..Default::default()
        }
    }

    fn status() -> wire::ShimStatusResponse {
        let count = |decision: wire::Decision, outcome: wire::Outcome, count| wire::ShimCount {
            decision: decision as i32,
            outcome: outcome as i32,
            count,
        };
        wire::ShimStatusResponse {
            origin: "example.org/custody".to_owned(),
            workspace: vec![1; 16].into(),
            gateway: vec![2; 16].into(),
            name: "berlin-1".to_owned(),
            product_version: "0.1.0".to_owned(),
            started_at: 1_000_000_000,
            state: "serving".to_owned(),
            intermittent: false,
            clock: wire::ClockState::Synchronised as i32,
            spool: Some(wire::ShimSpool {
                epoch: vec![3; 16].into(),
                next_record: 1_201,
                running: 2,
                unsigned: 5,
                unshipped: 7,
                held: 40,
                bytes: 300 << 20,
                bytes_max: 1 << 30,
            }),
            ledger: Some(wire::ShimLedger {
                endpoint: "https://ledger.example:7443".to_owned(),
                connected: false,
                since: 1_240_000_000,
                why: "tcp connect error: Connection refused; hint: is the ledger running?".to_owned(),
                receipt_at: 1_239_000_000,
                segment: 4,
                leaves: 118,
            }),
            servers: vec![
                wire::ShimServer {
                    name: "files".to_owned(),
                    kind: "stdio".to_owned(),
                    state: "running".to_owned(),
                    delivery: wire::DeliveryState::Spooling as i32,
                    running: 2,
                    calls: vec![
                        count(wire::Decision::Allowed, wire::Outcome::Ok, 900),
                        count(wire::Decision::Allowed, wire::Outcome::Deferred, 1),
                        count(wire::Decision::Allowed, wire::Outcome::Timeout, 3),
                        count(wire::Decision::Denied, wire::Outcome::Denied, 12),
                    ],
                    processes: 2,
                    restarts: 1,
                    why: String::new(),
                },
                failed(),
            ],
            access: Some(wire::ShimAccess {
                digest: vec![4; 32].into(),
                file: "access.toml".to_owned(),
                differs: "access.toml says something else than what is in force; hint: gateway-shim access plan"
                    .to_owned(),
                members: 12,
                rules: 5,
                tokens: 14,
            }),
            certificates: vec![wire::Certificate { name: "to members".to_owned(), not_after: 2_000_000_000 }],
            warnings: vec!["fork.second is missing; hint: a folder on another machine".to_owned()],
        }
    }

    #[test]
    fn the_report_is_as_people_read_it() {
        insta::assert_snapshot!(report(&status(), 1_300_000_000));
        let mut fine = status();
        (fine.access, fine.warnings, fine.servers) = (None, Vec::new(), Vec::new());
        if let Some(ledger) = &mut fine.ledger {
            (ledger.connected, ledger.why) = (true, String::new());
        }
        assert!(report(&fine, 1_300_000_000).contains("connected for 60 s"));
        assert!(report(&fine, 3_000_000_000).contains("(EXPIRED)"));
        assert!(!report(&fine, 3_000_000_000).contains("WARNINGS"));
    }

    #[test]
    fn json_has_every_field() {
        insta::assert_snapshot!(format!("{:#}", as_json(&status())));
    }
}
