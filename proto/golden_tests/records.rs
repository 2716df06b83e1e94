//! Golden records: every kind, with every field and every value of an enum.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    hash::text_digest,
    record::encode as record,
    testing::{AT, EPOCH, GATEWAY_ID, WORKSPACE},
    wire::{
        self, AccessAction, AlarmPhase, ClockState, Decision, DefinitionAction, DefinitionChange, DeliveryState,
        DispositionKind, LedgerEventKind, LinkKind, Mode, Outcome, Phase, ServerState, Severity, WriterClass,
        access_change, call, extension, gateway_event, record::Kind as Is, tool_definition,
    },
};

use super::fill;

pub(super) fn extensions() -> Vec<wire::Extension> {
    let extension = |key: &str, value| wire::Extension { key: key.into(), value: Some(value) };
    vec![
        extension("example.com/retries", extension::Value::Number(0)),
        extension("example.com/plan", extension::Value::Digest(fill::<32>(0xe1))),
    ]
}

pub(super) fn full_call() -> wire::Call {
    wire::Call {
        call_number: 300,
        phase: Phase::Complete as i32,
        mode: Mode::Strict as i32,
        member: Some(fill::<16>(0xa1)),
        token: Some(fill::<16>(0xa2)),
        agent: Some(fill::<16>(0xa3)),
        client: Some(call::Client::ClientName("claude-code".into())),
        client_release: Some(call::ClientRelease::ClientVersion("2.1.0".into())),
        server: "github".into(),
        target: Some(call::Target::Tool("create_issue".into())),
        request: Some(call::Request::Method("tools/call".into())),
        from_server: true,
        protocol: "2025-06-18".into(),
        decision: Decision::Allowed as i32,
        rule: "engineers/github".into(),
        access_policy_digest: Some(fill::<32>(0xa4)),
        definition_digest: Some(fill::<32>(0xa5)),
        started_at: AT,
        duration_us: 12_345,
        outcome: Outcome::Ok as i32,
        error_code: Some(0),
        request_bytes: 128,
        response_bytes: 16_384,
        conversation_digest: Some(fill::<32>(0xa6)),
        trace: Some(wire::TraceContext { trace_id: fill::<16>(0xa7), span_id: fill::<8>(0xa8), flags: 1 }),
        receipt: Some(wire::ForensicReceipt {
            digest: fill::<32>(0xa9),
            payload_hash: fill::<32>(0xaa),
            signature: fill::<64>(0xab),
            signer: fill::<32>(0xac),
            whole: Bytes::from_static(b"{\"v\":1}"),
        }),
        link: Some(link(LinkKind::Round, Some(fill::<16>(0xad)))),
        extensions: extensions(),
    }
}

pub(super) fn link(kind: LinkKind, epoch: Option<Bytes>) -> wire::Link {
    wire::Link { kind: kind as i32, epoch, call_number: 299 }
}

pub(super) fn bare_call(outcome: Outcome, phase: Phase) -> wire::Call {
    wire::Call {
        phase: phase as i32,
        mode: Mode::Relaxed as i32,
        decision: Decision::Denied as i32,
        outcome: outcome as i32,
        ..Default::default()
    }
}

/// In the order of their numbers.
const OUTCOMES: [Outcome; 16] = [
    Outcome::Ok,
    Outcome::ToolError,
    Outcome::RpcError,
    Outcome::HttpError,
    Outcome::TransportError,
    Outcome::Timeout,
    Outcome::Cancelled,
    Outcome::Denied,
    Outcome::Unauthenticated,
    Outcome::Revoked,
    Outcome::Malformed,
    Outcome::OverLimit,
    Outcome::InputRequired,
    Outcome::Deferred,
    Outcome::Running,
    Outcome::Unknown,
];

pub(super) fn calls() -> Vec<Vec<u8>> {
    let digests = wire::Call {
        client: Some(call::Client::ClientNameDigest(Bytes::copy_from_slice(&text_digest("日本".as_bytes())))),
        client_release: Some(call::ClientRelease::ClientVersionDigest(fill::<32>(0xb1))),
        target: Some(call::Target::ToolDigest(fill::<32>(0xb2))),
        request: Some(call::Request::MethodDigest(fill::<32>(0xb3))),
        error_code: Some(u32::from_be_bytes((-32_601_i32).to_be_bytes())),
        ..bare_call(Outcome::RpcError, Phase::Outcome)
    };
    let mut lines = vec![record(Is::Call(full_call())), record(Is::Call(digests))];
    for outcome in OUTCOMES {
        let phase = if outcome == Outcome::Running { Phase::Intent } else { Phase::Outcome };
        lines.push(record(Is::Call(bare_call(outcome, phase))));
    }
    for kind in [LinkKind::Round, LinkKind::Task, LinkKind::Resumed, LinkKind::Nested] {
        let call = wire::Call { link: Some(link(kind, None)), ..bare_call(Outcome::Ok, Phase::Complete) };
        lines.push(record(Is::Call(call)));
    }
    lines
}

pub(super) fn access_changes() -> Vec<Vec<u8>> {
    let bare = |action: AccessAction| wire::AccessChange {
        at: AT,
        action: action as i32,
        actor: Some(access_change::Actor::ActorSystem("policy-file".into())),
        reason: "hired".into(),
        policy_digest_after: fill::<32>(0xb4),
        ..Default::default()
    };
    let rule = |effect: Decision| wire::AccessRule {
        id: "engineers/github".into(),
        effect: effect as i32,
        members: vec![fill::<16>(0xa1), fill::<16>(0xb5)],
        groups: vec!["engineers".into()],
        tools: vec!["github/*".into(), "jira/create_*".into()],
        organisation: true,
        calls_per_minute: 60,
        calls_per_day: 10_000,
        concurrent_calls: 4,
        request_bytes_max: 1_048_576,
        response_bytes_max: 4_194_304,
        methods: vec!["tools/call".into(), "resources/*".into()],
        shared: true,
    };
    let full = wire::AccessChange {
        actor: Some(access_change::Actor::ActorMember(fill::<16>(0xb6))),
        ticket: "HR-12".into(),
        member: Some(fill::<16>(0xa1)),
        token: Some(fill::<16>(0xa2)),
        agent: Some(fill::<16>(0xa3)),
        owner: Some(fill::<16>(0xb7)),
        group: "engineers".into(),
        server: "github".into(),
        labels: vec!["owner:platform".into(), "data:internal".into()],
        rule: Some(rule(Decision::Allowed)),
        expires_at: Some(AT + 86_400_000_000),
        policy_digest_before: Some(fill::<32>(0xb8)),
        place: Some(2),
        actor_account: Some(1_000),
        ..bare(AccessAction::RuleAdded)
    };
    let denying = wire::AccessChange { rule: Some(rule(Decision::Denied)), ..bare(AccessAction::RuleRemoved) };
    let actions = [
        AccessAction::MemberAdded,
        AccessAction::MemberRevoked,
        AccessAction::TokenIssued,
        AccessAction::TokenRotated,
        AccessAction::TokenRevoked,
        AccessAction::GroupJoined,
        AccessAction::RuleAdded,
        AccessAction::RuleRemoved,
        AccessAction::LimitChanged,
        AccessAction::ServerChanged,
        AccessAction::PolicyApplied,
        AccessAction::GroupLeft,
        AccessAction::LimitRemoved,
        AccessAction::ServerRemoved,
        AccessAction::AgentAdded,
        AccessAction::AgentRemoved,
    ];
    let bare = actions.into_iter().map(bare);
    [full, denying].into_iter().chain(bare).map(|change| record(Is::AccessChange(change))).collect()
}

pub(super) fn tool_definitions() -> Vec<Vec<u8>> {
    use tool_definition::{Actor, Resembles, Target};
    let definition = |change: DefinitionChange, action: DefinitionAction| wire::ToolDefinition {
        at: AT,
        change: change as i32,
        action: action as i32,
        server: "github".into(),
        target: Some(Target::Tool("create_issue".into())),
        ..Default::default()
    };
    let full = wire::ToolDefinition {
        digest_before: Some(fill::<32>(0xb9)),
        digest_after: Some(fill::<32>(0xba)),
        resembles: Some(Resembles::Lookalike("create-issue".into())),
        ..definition(DefinitionChange::Changed, DefinitionAction::Quarantined)
    };
    let digests = wire::ToolDefinition {
        target: Some(Target::ToolDigest(fill::<32>(0xbb))),
        resembles: Some(Resembles::LookalikeDigest(fill::<32>(0xbc))),
        ..definition(DefinitionChange::Seen, DefinitionAction::Pinned)
    };
    let warned = definition(DefinitionChange::Vanished, DefinitionAction::Warned);
    let accepted = wire::ToolDefinition {
        actor: Some(Actor::ActorMember(fill::<16>(0xbd))),
        reason: "reviewed".into(),
        ticket: "SEC-17".into(),
        ..definition(DefinitionChange::Changed, DefinitionAction::Accepted)
    };
    let by_system = wire::ToolDefinition {
        actor: Some(Actor::ActorSystem("uid:1000".into())),
        reason: "reviewed".into(),
        ..definition(DefinitionChange::Seen, DefinitionAction::Accepted)
    };
    [full, digests, warned, accepted, by_system].map(|said| record(Is::ToolDefinition(said))).into()
}

pub(super) fn opened(class: WriterClass, clock: ClockState) -> gateway_event::Event {
    gateway_event::Event::Opened(wire::Opened {
        product: "gateway-shim".into(),
        product_version: "0.1.0".into(),
        configuration_digest: fill::<32>(0xbd),
        clock: clock as i32,
        class: class as i32,
        silence_us_max: 600_000_000,
    })
}

pub(super) fn gateway_event(event: gateway_event::Event) -> Vec<u8> {
    record(Is::GatewayEvent(wire::GatewayEvent { at: AT, event: Some(event) }))
}

pub(super) fn gateway_events() -> Vec<Vec<u8>> {
    use gateway_event::Event;
    let life = |state: ServerState, exit_code| {
        Event::ServerLife(wire::ServerLife { server: "github".into(), state: state as i32, exit_code, signal: None })
    };
    let delivery = |state: DeliveryState, server: &str| {
        Event::Delivery(wire::Delivery { server: server.into(), state: state as i32 })
    };
    [
        opened(WriterClass::AlwaysOn, ClockState::Synchronised),
        opened(WriterClass::Intermittent, ClockState::Unsynchronised),
        opened(WriterClass::AlwaysOn, ClockState::Unknown),
        life(ServerState::Started, None),
        life(ServerState::Stopped, Some(0)),
        life(ServerState::Crashed, Some(137)),
        Event::ServerLife(wire::ServerLife {
            server: "github".into(),
            state: ServerState::Crashed as i32,
            exit_code: None,
            signal: Some(9),
        }),
        life(ServerState::Unreachable, None),
        delivery(DeliveryState::Flowing, ""),
        delivery(DeliveryState::Spooling, "github"),
        delivery(DeliveryState::Refusing, ""),
        delivery(DeliveryState::FailOpen, ""),
        Event::Counts(wire::Counts { since: AT, pings: 3, progress: 70_000, notifications: 128 }),
        Event::ClockJump(wire::ClockJump { forward_us: 6_000_000, backward_us: 0 }),
        Event::ClockJump(wire::ClockJump { forward_us: 0, backward_us: 5_000_001 }),
        Event::Configured(fill::<32>(0xbe)),
    ]
    .map(gateway_event)
    .into()
}

pub(super) fn directory_entry() -> Vec<u8> {
    record(Is::DirectoryEntry(wire::DirectoryEntry {
        at: AT,
        member: fill::<16>(0xa1),
        revision: 2,
        nonce: fill::<24>(0xbf),
        key_commitment: fill::<32>(0xc1),
        ciphertext: fill::<48>(0xc2),
    }))
}

/// What an entry holds before it is encrypted: FORMAT.md encrypts the first of these.
pub(super) fn directory_contents() -> Vec<Vec<u8>> {
    let contents = |name: &str, address: &str, groups: &[&str]| wire::DirectoryContents {
        version: 1,
        name: name.into(),
        address: address.into(),
        groups: groups.iter().map(|group| format!("{}/{group}", "11".repeat(16))).collect(),
    };
    vec![
        contents("Ada Lovelace", "ada@example.com", &["dev", "on-call"]).encode_to_vec(),
        contents("深町 純", "", &[]).encode_to_vec(),
        contents("", "build@example.com", &["ci"]).encode_to_vec(),
    ]
}

pub(super) fn ledger_events() -> Vec<Vec<u8>> {
    use LedgerEventKind as Event;
    let bare = |kind: Event| wire::LedgerEvent {
        at: AT,
        kind: kind as i32,
        action: "workspace.add".into(),
        outcome: "ok".into(),
        ..Default::default()
    };
    let full = wire::LedgerEvent {
        actor: "admin-1".into(),
        reason: "routine".into(),
        ticket: "OPS-7".into(),
        workspace: Some(WORKSPACE.into()),
        gateway: Some(GATEWAY_ID.into()),
        epoch: Some(EPOCH.into()),
        member: Some(fill::<16>(0xa1)),
        details: extensions(),
        ..bare(Event::Administration)
    };
    let kinds = [
        Event::Started,
        Event::Administration,
        Event::Configuration,
        Event::Clock,
        Event::Retention,
        Event::Drill,
        Event::Recovery,
        Event::Erasure,
        Event::Disclosure,
        Event::Equivocation,
        Event::ReceiptFinding,
        Event::Projection,
        Event::Scrub,
        Event::Delivery,
    ];
    [full].into_iter().chain(kinds.map(bare)).map(|event| record(Is::LedgerEvent(event))).collect()
}

pub(super) fn searches() -> Vec<Vec<u8>> {
    let search = |decision: Decision, query: &str| wire::Search {
        at: AT,
        actor: "admin-1".into(),
        decision: decision as i32,
        query: query.into(),
        ..Default::default()
    };
    let full = wire::Search {
        hits: 17,
        bytes: 123_456,
        commit_index: 99,
        names_shown: true,
        reason: "incident".into(),
        ..search(Decision::Allowed, "outcome:denied server:github \"é\"")
    };
    [full, search(Decision::Denied, "")].map(|search| record(Is::Search(search))).into()
}

pub(super) fn alarms() -> Vec<Vec<u8>> {
    let alarm = |phase: AlarmPhase, severity: Severity| wire::Alarm {
        at: AT,
        phase: phase as i32,
        severity: severity as i32,
        name: "burst-of-denials".into(),
        ..Default::default()
    };
    let full = wire::Alarm {
        rule_digest: Some(fill::<32>(0xc3)),
        workspace: Some(WORKSPACE.into()),
        positions: vec![0, 1, 127, 128, u64::MAX],
        member: Some(fill::<16>(0xa1)),
        agent: Some(fill::<16>(0xa3)),
        gateway: Some(GATEWAY_ID.into()),
        details: extensions(),
        ..alarm(AlarmPhase::Raised, Severity::Critical)
    };
    let others = [
        alarm(AlarmPhase::Raised, Severity::Low),
        alarm(AlarmPhase::Began, Severity::Medium),
        alarm(AlarmPhase::Ended, Severity::High),
    ];
    [full].into_iter().chain(others).map(|alarm| record(Is::Alarm(alarm))).collect()
}

pub(super) fn dispositions() -> Vec<Vec<u8>> {
    use DispositionKind as Said;
    let bare = |kind: Said| wire::Disposition {
        at: AT,
        kind: kind as i32,
        workspace: WORKSPACE.into(),
        actor: "analyst-1".into(),
        ..Default::default()
    };
    let full = wire::Disposition {
        position: 41,
        reason: "known-job".into(),
        ticket: "SEC-3".into(),
        until: Some(AT),
        ..bare(Said::Suppressed)
    };
    let kinds = [Said::Acknowledged, Said::TruePositive, Said::FalsePositive, Said::Benign, Said::Suppressed];
    [full].into_iter().chain(kinds.map(bare)).map(|said| record(Is::Disposition(said))).collect()
}
