//! Records as gateways write them by the thousand: 40 members, 12 servers of 8 tools each, tokens, agents, rules, digests,
//! sizes, durations. The same number gives the same record.

use std::{fs::File, io::Write as _, path::Path};

use bytes::Bytes;
use custody::{
    id::hex,
    record,
    wire::{self, record::Kind},
};

use crate::Done;

/// 2026-03-01T00:00:00Z.
pub(crate) const BEGINNING: u64 = 1_772_323_200_000_000;
/// Members and, three each, their agents.
pub(crate) const MEMBERS: u64 = 40;
/// Microseconds between two records of a gateway, if nothing else is wanted.
pub(crate) const PACE_US: u64 = 1_370;
pub(crate) const SERVERS: [&str; 12] = [
    "files", "github", "jira", "postgres", "slack", "mail", "calendar", "browser", "billing", "crm", "deploy", "search",
];
pub(crate) const TOOLS: [&str; 8] = ["read", "write", "list", "search", "create", "update", "delete", "describe"];
const CLIENTS: [(&str, &str); 4] =
    [("claude-desktop", "1.4.2"), ("vscode", "1.99.0"), ("cursor", "0.48.7"), ("custody-agent", "2.1.0")];

/// SplitMix64: every bit of the number matters to every bit of the answer.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bytes<const N: usize>(what: u64, which: u64) -> Bytes {
    let mut out = [0; N];
    for (at, part) in (0..).zip(out.chunks_mut(8)) {
        let word = mix(what << 56 ^ which << 8 ^ at).to_le_bytes();
        part.copy_from_slice(&word[..part.len()]);
    }
    Bytes::copy_from_slice(&out)
}

/// A member's id.
pub(crate) fn member(which: u64) -> Bytes {
    bytes::<16>(1, which)
}

/// Id of an agent.
pub(crate) fn agent(which: u64) -> Bytes {
    bytes::<16>(3, which)
}

/// A call with this number in the epoch of `gateway`.
pub(crate) fn call(gateway: u64, number: u64, with_trace: bool) -> wire::Call {
    let dice = mix(gateway << 40 ^ number);
    let who = dice % MEMBERS;
    let agent_number = who * 3 + (dice >> 8) % 3;
    let server = (dice >> 16) as usize % SERVERS.len();
    let tool = (dice >> 24) as usize % TOOLS.len();
    let (name, version) = CLIENTS[agent_number as usize % CLIENTS.len()];
    let outcome = if dice >> 58 == 0 { wire::Outcome::ToolError } else { wire::Outcome::Ok };
    let trace = with_trace.then(|| wire::TraceContext {
        trace_id: bytes::<16>(7 + gateway, number),
        span_id: bytes::<8>(8 + gateway, number),
        flags: 1,
    });
    wire::Call {
        call_number: number,
        phase: wire::Phase::Complete as i32,
        mode: wire::Mode::Strict as i32,
        member: Some(member(who)),
        token: Some(bytes::<16>(2, who)),
        agent: Some(agent(agent_number)),
        client: Some(wire::call::Client::ClientName(name.to_owned())),
        client_release: Some(wire::call::ClientRelease::ClientVersion(version.to_owned())),
        server: SERVERS[server].to_owned(),
        target: Some(wire::call::Target::Tool(TOOLS[tool].to_owned())),
        request: Some(wire::call::Request::Method("tools/call".to_owned())),
        protocol: "2025-06-18".to_owned(),
        decision: wire::Decision::Allowed as i32,
        rule: format!("rule-{}", who % 7),
        access_policy_digest: Some(bytes::<32>(4, 0)),
        definition_digest: Some(bytes::<32>(5, (server * TOOLS.len() + tool) as u64)),
        started_at: BEGINNING + number * PACE_US + dice % 1_000,
        // Between 2 and 512 ms, the short ones common; sizes likewise.
        duration_us: 2_000 << (mix(dice) % 8) | (dice >> 40) & 0x7ff,
        outcome: outcome as i32,
        request_bytes: 64 << (mix(dice ^ 1) % 4) | (dice >> 30) & 0x3f,
        response_bytes: 256 << (mix(dice ^ 2) % 6) | (dice >> 20) & 0xff,
        trace,
        ..Default::default()
    }
}

/// The same with so many microseconds between two.
fn paced(gateway: u64, number: u64, with_trace: bool, pace_us: u64) -> wire::Call {
    let call = call(gateway, number, with_trace);
    wire::Call { started_at: call.started_at + number * pace_us - number * PACE_US, ..call }
}

/// Its bytes.
pub(crate) fn encoded(gateway: u64, number: u64, with_trace: bool, pace_us: u64) -> Bytes {
    record::encode(Kind::Call(paced(gateway, number, with_trace, pace_us))).into()
}

/// The first record of an epoch.
pub(crate) fn opened() -> Bytes {
    let event = wire::gateway_event::Event::Opened(wire::Opened {
        product: "custody-bench".to_owned(),
        product_version: "1".to_owned(),
        configuration_digest: vec![7; 32].into(),
        clock: wire::ClockState::Synchronised as i32,
        class: wire::WriterClass::Intermittent as i32,
        silence_us_max: 600_000_000,
    });
    record::encode(Kind::GatewayEvent(wire::GatewayEvent { at: BEGINNING, event: Some(event) })).into()
}

/// The same records for `psql`: files of COPY commands of 256 lines, each its own transaction, one file for each connection.
pub(crate) fn write_copies(folder: &Path, records: u64, connections: u64) -> Done {
    for connection in 0..connections {
        let mut out = std::io::BufWriter::new(File::create(folder.join(format!("copy-{connection}.sql")))?);
        let share = records / connections;
        for number in 0..share {
            if number % 256 == 0 {
                let end = if number == 0 { "" } else { "\\.\n" };
                writeln!(out, "{end}COPY audit ({COLUMNS}) FROM STDIN;")?;
            }
            line(&mut out, connection, &call(connection, number, true))?;
        }
        writeln!(out, "\\.")?;
        out.flush()?;
    }
    Ok(())
}

/// The records that gateways of this pace ship in batches of 256, taking turns, one a line.
pub(crate) fn write_rows(file: &Path, records: u64, gateways: u64, pace_us: u64) -> Done {
    let mut out = std::io::BufWriter::new(File::create(file)?);
    for batch in 0..records / 256 / gateways {
        for gateway in 0..gateways {
            // The first record of a gateway is no call.
            for number in 1 + batch * 256..1 + (batch + 1) * 256 {
                line(&mut out, gateway, &paced(gateway, number, true, pace_us))?;
            }
        }
    }
    Ok(out.flush()?)
}

const COLUMNS: &str = "gateway, number, member, token, agent, client, version, server, tool, method, protocol, decision, rule, policy, \
                       definition, started_at, duration_us, outcome, request_bytes, response_bytes, trace_id, span_id";

fn line(out: &mut impl std::io::Write, gateway: u64, call: &wire::Call) -> Done {
    let id = |bytes: &Option<Bytes>| hex(bytes.as_deref().unwrap_or_default());
    let text = |client: &Option<wire::call::Client>| match client {
        Some(wire::call::Client::ClientName(name)) => name.clone(),
        _ => String::new(),
    };
    let (client, version) = (text(&call.client), CLIENTS.iter().find(|(name, _)| *name == text(&call.client)));
    let tool = match &call.target {
        Some(wire::call::Target::Tool(tool)) => tool.as_str(),
        _ => "",
    };
    let trace = call.trace.as_ref();
    writeln!(
        out,
        "{gateway}\t{}\t{}\t{}\t{}\t{client}\t{}\t{}\t{tool}\ttools/call\t{}\t{}\t{}\t\\\\x{}\t\\\\x{}\t{}\t{}\t{}\t{}\t{}\t\\\\x{}\t\\\\x{}",
        call.call_number,
        id(&call.member),
        id(&call.token),
        id(&call.agent),
        version.map_or("", |(_, version)| version),
        call.server,
        call.protocol,
        call.decision,
        call.rule,
        id(&call.access_policy_digest),
        id(&call.definition_digest),
        call.started_at,
        call.duration_us,
        call.outcome,
        call.request_bytes,
        call.response_bytes,
        hex(trace.map_or(&[][..], |trace| &trace.trace_id)),
        hex(trace.map_or(&[][..], |trace| &trace.span_id)),
    )?;
    Ok(())
}
