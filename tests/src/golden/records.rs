//! Records of the golden archive: every kind at least once, calls in every phase and with every outcome.

use bytes::Bytes;
use custody::{
    record,
    wire::{
        self, AccessAction, AlarmPhase, ClockState, Decision, DefinitionAction, DefinitionChange, DispositionKind,
        LedgerEventKind, LinkKind, Mode, Outcome, Phase, Severity, WriterClass, access_change, call, extension,
        gateway_event, record::Kind, tool_definition,
    },
};

use super::keys;

fn fixed(label: &str) -> Bytes {
    Bytes::copy_from_slice(&keys::seed(label))
}

fn short(label: &str) -> Bytes {
    Bytes::copy_from_slice(&keys::short(label))
}

fn encode(kind: Kind) -> Bytes {
    record::encode(kind).into()
}

/// A plain call, as most are: `number` tells them apart.
pub fn plain_call(number: u64, at: u64) -> wire::Call {
    wire::Call {
        call_number: number,
        phase: Phase::Complete as i32,
        mode: Mode::Strict as i32,
        member: Some(short("member ada")),
        token: Some(short("token 1")),
        agent: Some(short("agent builder")),
        client: Some(call::Client::ClientName("inspector".to_owned())),
        client_release: Some(call::ClientRelease::ClientVersion("0.17.2".to_owned())),
        server: "files".to_owned(),
        target: Some(call::Target::Tool("read_file".to_owned())),
        request: Some(call::Request::Method("tools/call".to_owned())),
        protocol: "2025-11-25".to_owned(),
        decision: Decision::Allowed as i32,
        rule: "readers".to_owned(),
        access_policy_digest: Some(fixed("access policy")),
        definition_digest: Some(fixed("definition read_file")),
        started_at: at,
        duration_us: 1_250 + number * 17,
        outcome: Outcome::Ok as i32,
        request_bytes: 180 + number,
        response_bytes: 2_048,
        ..Default::default()
    }
}

/// `count` calls, the first with this number; every second one with trace context.
pub fn calls(first: u64, count: u64, at: u64) -> Vec<Bytes> {
    let one = |number: u64| {
        let mut call = plain_call(number, at + number * 1_000);
        if number % 2 == 1 {
            call.trace = Some(wire::TraceContext {
                trace_id: short(&format!("trace {number}")),
                span_id: short(&format!("span {number}")).slice(..8),
                flags: 1,
            });
        }
        encode(Kind::Call(call))
    };
    (first..first + count).map(one).collect()
}

/// One call of each outcome, in the phase that goes with it, with all the fields that few calls have.
pub fn every_outcome(first: u64, at: u64) -> Vec<Bytes> {
    let mut out = Vec::new();
    for (number, value) in (first..).zip(1_i32..=16) {
        let mut call = plain_call(number, at + number * 1_000);
        call.outcome = value;
        match Outcome::try_from(value) {
            Ok(Outcome::Running) => (call.phase, call.mode) = (Phase::Intent as i32, Mode::Relaxed as i32),
            Ok(Outcome::Unknown) => call.phase = Phase::Outcome as i32,
            Ok(Outcome::Denied | Outcome::Revoked) => {
                call.decision = Decision::Denied as i32;
                call.definition_digest = None;
            }
            Ok(Outcome::Unauthenticated) => (call.member, call.token, call.agent) = (None, None, None),
            Ok(Outcome::RpcError) => call.error_code = Some(0xffff_80a4),
            Ok(Outcome::HttpError) => call.error_code = Some(502),
            Ok(Outcome::Malformed) => {
                call.client = Some(call::Client::ClientNameDigest(fixed("a name with spaces")));
                call.client_release = Some(call::ClientRelease::ClientVersionDigest(fixed("a long version")));
                call.target = Some(call::Target::ToolDigest(fixed("an odd tool")));
                call.request = Some(call::Request::MethodDigest(fixed("an odd method")));
            }
            Ok(Outcome::InputRequired) => {
                call.from_server = true;
                call.link = Some(wire::Link { kind: LinkKind::Round as i32, epoch: None, call_number: first });
            }
            Ok(Outcome::Deferred) => {
                call.conversation_digest = Some(fixed("conversation"));
                call.extensions = vec![
                    wire::Extension { key: "example.org/cost".to_owned(), value: Some(extension::Value::Number(12)) },
                    wire::Extension {
                        key: "example.org/proof".to_owned(),
                        value: Some(extension::Value::Digest(fixed("proof"))),
                    },
                ];
            }
            Ok(Outcome::ToolError) => {
                call.receipt = Some(wire::ForensicReceipt {
                    digest: fixed("receipt"),
                    payload_hash: fixed("payload"),
                    signature: [fixed("sig a"), fixed("sig b")].concat().into(),
                    signer: fixed("signer"),
                    whole: Bytes::new(),
                });
            }
            _ => {}
        }
        out.push(encode(Kind::Call(call)));
    }
    out
}

/// The record of the writer.
pub fn opened(at: u64, always_on: bool) -> Bytes {
    let class = if always_on { WriterClass::AlwaysOn } else { WriterClass::Intermittent };
    let opened = wire::Opened {
        product: "gateway-shim".to_owned(),
        product_version: "0.1.0".to_owned(),
        configuration_digest: fixed("configuration"),
        clock: ClockState::Synchronised as i32,
        class: class as i32,
        silence_us_max: if always_on { 600_000_000 } else { 0 },
    };
    gateway_event(at, gateway_event::Event::Opened(opened))
}

fn gateway_event(at: u64, event: gateway_event::Event) -> Bytes {
    encode(Kind::GatewayEvent(wire::GatewayEvent { at, event: Some(event) }))
}

/// Every other event of a gateway.
pub fn gateway_events(at: u64) -> Vec<Bytes> {
    use gateway_event::Event;
    let life = wire::ServerLife { server: "files".to_owned(), state: 3, exit_code: Some(0), signal: None };
    let delivery = wire::Delivery { server: "files".to_owned(), state: 2 };
    let counts = wire::Counts { since: at - 60_000_000, pings: 6, progress: 0, notifications: 2 };
    let jump = wire::ClockJump { forward_us: 7_000_000, backward_us: 0 };
    [
        Event::ServerLife(life),
        Event::Delivery(delivery),
        Event::Counts(counts),
        Event::ClockJump(jump),
        Event::Configured(fixed("configuration 2")),
    ]
    .map(|event| gateway_event(at, event))
    .to_vec()
}

/// A member that is added, and a rule in full.
pub fn access_changes(at: u64) -> Vec<Bytes> {
    let change = |action: AccessAction, rule, actor| {
        encode(Kind::AccessChange(wire::AccessChange {
            at,
            action: action as i32,
            actor: Some(actor),
            reason: "joined".to_owned(),
            ticket: "OPS-7".to_owned(),
            member: Some(short("member ada")),
            rule,
            policy_digest_after: fixed("access policy"),
            ..Default::default()
        }))
    };
    let rule = wire::AccessRule {
        id: "readers".to_owned(),
        effect: Decision::Allowed as i32,
        members: vec![short("member ada"), short("member bob")],
        tools: vec!["files/read_*".to_owned()],
        calls_per_minute: 60,
        ..Default::default()
    };
    vec![
        change(AccessAction::MemberAdded, None, access_change::Actor::ActorSystem("scim".to_owned())),
        change(AccessAction::RuleAdded, Some(rule), access_change::Actor::ActorMember(short("member bob"))),
    ]
}

/// A tool that was seen, and one that changed.
pub fn tool_definitions(at: u64) -> Vec<Bytes> {
    let definition = |change: DefinitionChange, action: DefinitionAction, before: Option<Bytes>| {
        encode(Kind::ToolDefinition(wire::ToolDefinition {
            at,
            change: change as i32,
            action: action as i32,
            server: "files".to_owned(),
            target: Some(tool_definition::Target::Tool("read_file".to_owned())),
            digest_before: before,
            digest_after: Some(fixed("definition read_file")),
            ..Default::default()
        }))
    };
    vec![
        definition(DefinitionChange::Seen, DefinitionAction::Pinned, None),
        definition(DefinitionChange::Changed, DefinitionAction::Quarantined, Some(fixed("definition before"))),
    ]
}

/// An event of the ledger.
pub fn ledger_event(at: u64, kind: LedgerEventKind, action: &str) -> Bytes {
    encode(Kind::LedgerEvent(wire::LedgerEvent {
        at,
        kind: kind as i32,
        action: action.to_owned(),
        outcome: "ok".to_owned(),
        actor: "admin.1".to_owned(),
        reason: "routine".to_owned(),
        ..Default::default()
    }))
}

/// What only the ledger says: directory entry, search, alarm, disposition.
pub fn ledgers_own(at: u64) -> Vec<Bytes> {
    vec![
        encode(Kind::DirectoryEntry(wire::DirectoryEntry {
            at,
            member: short("member ada"),
            revision: 1,
            nonce: fixed("nonce").slice(..24),
            key_commitment: fixed("commitment"),
            ciphertext: fixed("ciphertext"),
        })),
        encode(Kind::Search(wire::Search {
            at,
            actor: "analyst.1".to_owned(),
            decision: Decision::Allowed as i32,
            query: "outcome:denied AND server:files".to_owned(),
            hits: 2,
            bytes: 900,
            commit_index: 12,
            ..Default::default()
        })),
        alarm(at),
        disposition(at),
    ]
}

/// An alarm over a workspace's records.
pub fn alarm(at: u64) -> Bytes {
    encode(Kind::Alarm(wire::Alarm {
        at,
        phase: AlarmPhase::Raised as i32,
        severity: Severity::High as i32,
        name: "denied-burst".to_owned(),
        workspace: Some(keys::workspace("alpha").into()),
        positions: vec![3, 4, 300],
        ..Default::default()
    }))
}

/// What somebody made of an alarm.
pub fn disposition(at: u64) -> Bytes {
    encode(Kind::Disposition(wire::Disposition {
        at,
        kind: DispositionKind::Benign as i32,
        workspace: keys::workspace("ledger").into(),
        position: 3,
        actor: "analyst.1".to_owned(),
        reason: "test".to_owned(),
        ..Default::default()
    }))
}
