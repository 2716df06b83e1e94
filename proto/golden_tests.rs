//! Golden files: one file of hex for each message, a message a line, built from fixed values and keys. They freeze every
//! number, enum, limit, context and hash of version 1; writers in other languages compare against them; fuzzing starts from
//! them. `CUSTODY_BLESS=1` writes them again, which is right only for what is new.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    batch::{self, Header},
    evidence::Proof,
    hash::{Use, object_hash, root_successor, text_digest},
    head::{self, Head, to_path},
    id::{HeaderHash, ObjectHash, RootHash, hex},
    key::{Context, public, sign},
    log::{encode_bundle, encode_entry, encode_seal_entry},
    merkle::{BatchTree, HistoryTree, LogTree, Node, SegmentTree, Tree, TreeHash as _, log_leaf},
    note::{self, Checkpoint, TYPE_COSIGNATURE, TYPE_LOG, verifier_key},
    policy,
    record::encode as record,
    segment::{self, Leaf, Seal, SegmentHeader},
    statement::ChainHead,
    strict::{Kind, Presence, table},
    testing::{
        AT, EPOCH, GATEWAY, GATEWAY_ID, HEAD, LAST_ROOT, LEDGER_ID, LOG, NEXT_ROOT, ORIGIN, RECEIPT, RECORD, REGISTRAR,
        ROOT, Rng, WITNESS, WORKSPACE, Writer, key, key_id, ledger_chain, message, public_bytes, testdata,
        workspace_chain,
    },
    wire::{
        self, AccessAction, AlarmPhase, ClockState, Decision, DefinitionAction, DefinitionChange, DeliveryState,
        DispositionKind, DropReason, LeafKind, LedgerEventKind, LinkKind, Mode, OpeningReason, Outcome, Phase, Role,
        ServerState, Severity, WriterClass, access_change, call, extension, gateway_event, log_entry,
        record::Kind as Is, statement::Action, tool_definition,
    },
};

/// What one file holds.
pub(crate) struct Golden {
    /// Name in `proto/testdata/golden`, without its ending.
    pub(crate) file: &'static str,
    /// Message of the table; empty for what is not a message.
    pub(crate) message: &'static str,
    /// A line of hex each.
    pub(crate) lines: Vec<Vec<u8>>,
}

fn fill<const N: usize>(byte: u8) -> Bytes {
    Bytes::copy_from_slice(&[byte; N])
}

/// All files.
pub(crate) fn all() -> Vec<Golden> {
    let golden = |file, message, lines| Golden { file, message, lines };
    let world = World::new();
    vec![
        golden("record-call", "Record", calls()),
        golden("record-access-change", "Record", access_changes()),
        golden("record-tool-definition", "Record", tool_definitions()),
        golden("record-gateway-event", "Record", gateway_events()),
        golden("record-directory-entry", "Record", vec![directory_entry()]),
        golden("record-ledger-event", "Record", ledger_events()),
        golden("record-search", "Record", searches()),
        golden("record-alarm", "Record", alarms()),
        golden("record-disposition", "Record", dispositions()),
        golden("batch-header", "BatchHeader", headers()),
        golden("signed-batch", "SignedBatch", world.batches.clone()),
        golden("possession", "Possession", possessions()),
        golden("signed-statement-ledger", "SignedStatement", ledger_statements()),
        golden("signed-statement-workspace", "SignedStatement", workspace_statements()),
        golden("open-head", "OpenHead", vec![world.head.encode(), bare_head().encode()]),
        golden("signed-head", "SignedHead", vec![world.head.sign(&key(HEAD)), bare_head().sign(&key(HEAD))]),
        golden("receipt", "Receipt", world.receipts()),
        golden("archived-receipt", "ArchivedReceipt", vec![world.archived_receipt()]),
        golden("segment-entry", "SegmentEntry", world.entries()),
        golden("segment-object", "", vec![world.object.clone()]),
        golden("roster", "Roster", vec![world.roster.clone(), later_roster()]),
        golden("seal", "Seal", vec![world.seal.encode(), world.later_seal().encode()]),
        golden("log-entry", "LogEntry", world.log_entries()),
        golden("log-bundle", "", vec![encode_bundle(&world.log)]),
        golden("claim", "Claim", vec![world.claim()]),
        golden("checkpoint", "", vec![world.checkpoint().to_bytes()]),
        golden("evidence", "Evidence", world.evidences()),
        golden("evidence-file", "", vec![world.proof().to_bytes()]),
        golden("policy", "", vec![policy_file()]),
    ]
}

fn extensions() -> Vec<wire::Extension> {
    let extension = |key: &str, value| wire::Extension { key: key.into(), value: Some(value) };
    vec![
        extension("example.com/retries", extension::Value::Number(0)),
        extension("example.com/plan", extension::Value::Digest(fill::<32>(0xe1))),
    ]
}

fn full_call() -> wire::Call {
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

fn link(kind: LinkKind, epoch: Option<Bytes>) -> wire::Link {
    wire::Link { kind: kind as i32, epoch, call_number: 299 }
}

fn bare_call(outcome: Outcome, phase: Phase) -> wire::Call {
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

fn calls() -> Vec<Vec<u8>> {
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

fn access_changes() -> Vec<Vec<u8>> {
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
        ..bare(AccessAction::RuleAdded)
    };
    let denying = wire::AccessChange { rule: Some(rule(Decision::Denied)), ..bare(AccessAction::RuleRemoved) };
    let actions = [
        AccessAction::MemberAdded,
        AccessAction::MemberRevoked,
        AccessAction::TokenIssued,
        AccessAction::TokenRotated,
        AccessAction::TokenRevoked,
        AccessAction::GroupChanged,
        AccessAction::RuleAdded,
        AccessAction::RuleRemoved,
        AccessAction::LimitChanged,
        AccessAction::ServerChanged,
        AccessAction::PolicyApplied,
    ];
    let bare = actions.into_iter().map(bare);
    [full, denying].into_iter().chain(bare).map(|change| record(Is::AccessChange(change))).collect()
}

fn tool_definitions() -> Vec<Vec<u8>> {
    use tool_definition::{Resembles, Target};
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
    let accepted = definition(DefinitionChange::Changed, DefinitionAction::Accepted);
    [full, digests, warned, accepted].map(|said| record(Is::ToolDefinition(said))).into()
}

fn opened(class: WriterClass, clock: ClockState) -> gateway_event::Event {
    gateway_event::Event::Opened(wire::Opened {
        product: "gateway-shim".into(),
        product_version: "0.1.0".into(),
        configuration_digest: fill::<32>(0xbd),
        clock: clock as i32,
        class: class as i32,
        silence_us_max: 600_000_000,
    })
}

fn gateway_event(event: gateway_event::Event) -> Vec<u8> {
    record(Is::GatewayEvent(wire::GatewayEvent { at: AT, event: Some(event) }))
}

fn gateway_events() -> Vec<Vec<u8>> {
    use gateway_event::Event;
    let life = |state: ServerState, exit_code| {
        Event::ServerLife(wire::ServerLife { server: "github".into(), state: state as i32, exit_code })
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

fn directory_entry() -> Vec<u8> {
    record(Is::DirectoryEntry(wire::DirectoryEntry {
        at: AT,
        member: fill::<16>(0xa1),
        revision: 2,
        nonce: fill::<24>(0xbf),
        key_commitment: fill::<32>(0xc1),
        ciphertext: fill::<48>(0xc2),
    }))
}

fn ledger_events() -> Vec<Vec<u8>> {
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

fn searches() -> Vec<Vec<u8>> {
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

fn alarms() -> Vec<Vec<u8>> {
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

fn dispositions() -> Vec<Vec<u8>> {
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

/// The header of an epoch's first batch.
fn opening_header() -> Header {
    Header {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        gateway: GATEWAY_ID,
        key_id: key_id(GATEWAY, Role::Gateway),
        epoch: EPOCH,
        batch_number: 0,
        first_record: 0,
        record_count: 1,
        previous: HeaderHash::ZERO,
        opening_reason: Some(OpeningReason::First),
        batch_root: RootHash([0xc4; 32]),
        last_head: Bytes::new(),
        dropped: 0,
        drop_reason: None,
        heartbeat: false,
        close: false,
        created_at: AT,
    }
}

/// The header of a later one.
fn later_header() -> Header {
    Header {
        batch_number: 1,
        first_record: 4,
        record_count: 0,
        previous: HeaderHash([0xc5; 32]),
        opening_reason: None,
        batch_root: batch::empty_root(),
        heartbeat: true,
        ..opening_header()
    }
}

fn headers() -> Vec<Vec<u8>> {
    let opening = |reason| Header { opening_reason: Some(reason), ..opening_header() };
    let dropping = |reason| Header { dropped: 4, drop_reason: Some(reason), ..later_header() };
    [
        opening(OpeningReason::First),
        opening(OpeningReason::StateLost),
        opening(OpeningReason::Rewound),
        Header { opening_reason: None, previous: HeaderHash([0xc6; 32]), ..opening_header() },
        dropping(DropReason::SpoolFull),
        dropping(DropReason::DiskFailed),
        dropping(DropReason::FailOpen),
        dropping(DropReason::Crashed),
        Header { last_head: bare_head().sign(&key(HEAD)).into(), ..later_header() },
        Header { heartbeat: false, close: true, ..later_header() },
    ]
    .map(|header| header.encode())
    .into()
}

fn possessions() -> Vec<Vec<u8>> {
    let said = |workspace, role, byte, gateway| {
        crate::statement::possession(ORIGIN, workspace, role, public(&key(byte)), gateway)
    };
    vec![
        said(None, Role::Root, ROOT, None),
        said(Some(WORKSPACE), Role::Registrar, REGISTRAR, None),
        said(Some(WORKSPACE), Role::Gateway, GATEWAY, Some(GATEWAY_ID)),
        said(Some(WORKSPACE), Role::Receipt, RECEIPT, None),
        said(None, Role::Record, RECORD, Some(LEDGER_ID)),
        said(None, Role::Head, HEAD, None),
        said(None, Role::Log, LOG, None),
    ]
}

/// Every action that the ledger's chain knows.
fn ledger_statements() -> Vec<Vec<u8>> {
    let mut writer = ledger_chain();
    writer.say(Action::Incarnation(wire::Incarnation {
        number: 1,
        log_size: 40,
        log_root: fill::<32>(0xc7),
        last_seals_hash: fill::<32>(0xc8),
    }));
    for (era, next, after) in [(2, NEXT_ROOT, LAST_ROOT), (3, LAST_ROOT, 30)] {
        let succeed = Action::SucceedRoot(wire::SucceedRoot {
            public_key: public_bytes(next),
            successor_hash: Bytes::copy_from_slice(&root_successor(&public(&key(after)).to_bytes())),
        });
        let mut statement = writer.draft(succeed);
        statement.era = era;
        writer.put(&statement, next).unwrap();
    }
    writer.say(Action::Suspect(wire::Suspect { key_id: key_id(HEAD, Role::Head).into(), since: 12 }));
    writer.say(Action::Retire(wire::Retire { key_id: key_id(RECORD, Role::Record).into() }));
    writer.say(Action::Revoke(wire::Revoke { key_id: key_id(LOG, Role::Log).into(), void_serials: Vec::new() }));
    writer.objects
}

/// Every action that a workspace's chain knows.
fn workspace_statements() -> Vec<Vec<u8>> {
    let mut writer = workspace_chain();
    let unproven = Action::Enrol(wire::Enrol {
        role: Role::Receipt as i32,
        public_key: public_bytes(RECEIPT),
        gateway: None,
        name: String::new(),
        possession: None,
    });
    writer.say(unproven);
    let hold = |hold, until| Action::Hold(wire::Hold { hold, since: AT, until });
    writer.say(hold(fill::<16>(0xc9), None));
    writer.say_as_registrar(hold(fill::<16>(0xca), Some(AT + 1))).unwrap();
    writer.say(Action::Release(wire::Release { hold: fill::<16>(0xc9) }));
    writer.say(Action::Suspect(wire::Suspect { key_id: key_id(GATEWAY, Role::Gateway).into(), since: 3 }));
    writer.say_as_registrar(Action::Retire(wire::Retire { key_id: key_id(GATEWAY, Role::Gateway).into() })).unwrap();
    let registrar = key_id(REGISTRAR, Role::Registrar).into();
    writer.say(Action::Revoke(wire::Revoke { key_id: registrar, void_serials: vec![2] }));
    writer.say(Action::Remove(wire::Remove {}));
    writer.objects
}

fn bare_head() -> Head {
    Head {
        origin: ORIGIN.into(),
        workspace: WORKSPACE,
        key_id: key_id(HEAD, Role::Head),
        incarnation: 0,
        term: 0,
        segment: 0,
        size: 0,
        root: RootHash(SegmentTree::empty()),
        history_root: RootHash(HistoryTree::empty()),
        ledger_chain: ChainHead::GENESIS,
        workspace_chain: ChainHead::GENESIS,
        at: AT,
        unfenced: false,
    }
}

/// A zstd frame that holds its content as it is: the writers of other languages need no zstd to compare.
pub(crate) fn stored_frame(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    out.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
    let blocks: Vec<&[u8]> = content.chunks(1 << 17).collect();
    for (at, block) in blocks.iter().enumerate() {
        let last = u32::from(at + 1 == blocks.len());
        let header = last | u32::try_from(block.len()).unwrap() << 3;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}

/// A roster that is not of a day's first segment, with nothing in it.
fn later_roster() -> Vec<u8> {
    wire::Roster { version: 1, workspace: WORKSPACE.into(), segment: 3, full: false, entries: vec![] }.encode_to_vec()
}

/// A workspace with one sealed segment, and the log above it.
pub(crate) struct World {
    pub(crate) batches: Vec<Vec<u8>>,
    leaves: Vec<(Leaf, Vec<u8>)>,
    tree: Tree<SegmentTree>,
    pub(crate) head: Head,
    roster: Vec<u8>,
    pub(crate) object: Vec<u8>,
    pub(crate) seal: Seal,
    pub(crate) log: Vec<Vec<u8>>,
    log_tree: Tree<LogTree>,
    ledger: Writer,
    chain: Writer,
}

const SEED: [u8; 32] = [0x5e; 32];

impl World {
    pub(crate) fn new() -> Self {
        let (ledger, chain) = (ledger_chain(), workspace_chain());
        let records = vec![
            gateway_event(opened(WriterClass::AlwaysOn, ClockState::Synchronised)),
            record(Is::Call(bare_call(Outcome::Running, Phase::Intent))),
            record(Is::Call(full_call())),
        ];
        let mut first = opening_header();
        batch::seal_header(&mut first, &SEED, &records);
        let mut second = Header {
            first_record: 5,
            previous: crate::hash::header_hash(&first.encode()),
            heartbeat: false,
            dropped: 2,
            drop_reason: Some(DropReason::SpoolFull),
            last_head: bare_head().sign(&key(HEAD)).into(),
            ..later_header()
        };
        let more = vec![record(Is::Call(bare_call(Outcome::Timeout, Phase::Outcome)))];
        batch::seal_header(&mut second, &SEED, &more);
        let batches = vec![
            batch::encode_signed(&first.encode(), &key(GATEWAY), &SEED, &records),
            batch::encode_signed(&second.encode(), &key(GATEWAY), &SEED, &more),
        ];
        let leaf = |kind, first_position, at| Leaf { kind, first_position, received_at: AT + at, term: 1 };
        let hold = Action::Hold(wire::Hold { hold: fill::<16>(0xc9), since: AT, until: None });
        let mut after = chain.clone();
        after.say(hold);
        let leaves = vec![
            (leaf(LeafKind::Batch, 0, 10), batches[0].clone()),
            (leaf(LeafKind::Batch, 3, 20), batches[1].clone()),
            (leaf(LeafKind::Equivocation, 4, 30), batches[1].clone()),
            (leaf(LeafKind::Statement, 4, 40), after.objects[3].clone()),
        ];
        Self::seal(ledger, chain, batches, leaves, &second)
    }

    fn seal(ledger: Writer, chain: Writer, batches: Vec<Vec<u8>>, leaves: Vec<(Leaf, Vec<u8>)>, last: &Header) -> Self {
        let entries: Vec<Vec<u8>> = leaves.iter().map(|(l, b)| segment::encode_entry(l, b.clone().into())).collect();
        let parsed = entries.iter().map(|bytes| segment::Entry::parse(bytes.clone().into()).unwrap());
        let tree: Tree<SegmentTree> = parsed.map(|entry| entry.leaf_hash()).collect();
        let (ledger_head, chain_head) = (ledger.chain.head(), chain.chain.head());
        let header = SegmentHeader {
            origin: ORIGIN.into(),
            workspace: WORKSPACE,
            segment: 0,
            incarnation: 0,
            first_position: 0,
            ledger_chain: ledger_head,
            workspace_chain: chain_head,
        };
        let mut writer = segment::Writer::new(&header);
        for (entry, (leaf, _)) in entries.iter().zip(&leaves) {
            writer.push::<()>(entry, leaf.first_position, |content| Ok(stored_frame(content))).unwrap();
        }
        let roster = wire::Roster {
            version: 1,
            workspace: WORKSPACE.into(),
            segment: 0,
            full: true,
            entries: vec![wire::RosterEntry {
                gateway: GATEWAY_ID.into(),
                epoch: EPOCH.into(),
                last_batch: 1,
                next_record: 6,
                last_header_hash: crate::hash::header_hash(&last.encode()).into(),
                closed: true,
            }],
        }
        .encode_to_vec();
        let object = writer.finish::<()>(&roster, |content| Ok(stored_frame(content))).unwrap();
        let head = Head {
            incarnation: 1,
            term: 1,
            segment: 1,
            size: 2,
            root: tree.root_at(2).unwrap(),
            history_root: RootHash(head::history_leaf(0, 4, &tree.root())),
            ledger_chain: ledger_head,
            workspace_chain: chain_head,
            unfenced: true,
            ..bare_head()
        };
        let seal = Self::seal_of(&header, &tree, &roster, &object);
        let log = Self::log(&ledger, &chain, &seal);
        let log_tree = log.iter().map(|entry| log_leaf(entry).0).collect();
        Self { batches, leaves, tree, head, roster, object, seal, log, log_tree, ledger, chain }
    }

    fn seal_of(header: &SegmentHeader, tree: &Tree<SegmentTree>, roster: &[u8], object: &[u8]) -> Seal {
        Seal {
            origin: header.origin.clone(),
            workspace: header.workspace,
            segment: 0,
            incarnation: 0,
            size: tree.size(),
            root: tree.root(),
            history_root: RootHash(HistoryTree::empty()),
            first_position: 0,
            record_count: 4,
            batch_count: 2,
            equivocation_count: 1,
            statement_count: 1,
            first_received_at: AT + 10,
            last_received_at: AT + 40,
            roster_hash: segment::roster_hash(roster),
            object_length: object.len() as u64,
            object_blake3: segment::object_blake3(object),
            object_sha256: object_hash(object),
            ledger_chain: header.ledger_chain,
            workspace_chain: header.workspace_chain,
            not_before_size: 0,
            not_before: [0; 32],
            sealed_at: AT + 50,
        }
    }

    fn log(ledger: &Writer, chain: &Writer, seal: &Seal) -> Vec<Vec<u8>> {
        let statement = |object: &Vec<u8>| encode_entry(log_entry::Entry::Statement(object.clone().into()));
        let mut log: Vec<Vec<u8>> = ledger.objects.iter().map(statement).collect();
        log.push(encode_entry(log_entry::Entry::TermStart(wire::TermStart { term: 1, incarnation: 0, at: AT })));
        log.push(statement(&chain.objects[0]));
        log.push(encode_seal_entry(WORKSPACE, 0, object_hash(&seal.encode())));
        log.push(encode_entry(log_entry::Entry::TermStart(wire::TermStart { term: 2, incarnation: 1, at: AT + 60 })));
        log
    }

    fn entries(&self) -> Vec<Vec<u8>> {
        self.leaves.iter().map(|(leaf, bytes)| segment::encode_entry(leaf, bytes.clone().into())).collect()
    }

    fn inclusion(&self, number: u64, cut: bool) -> wire::BatchInclusion {
        let (leaf, _) = &self.leaves[usize::try_from(number).unwrap()];
        let size = if cut { self.tree.size() } else { 2 };
        wire::BatchInclusion {
            version: 1,
            epoch: EPOCH.into(),
            batch_number: number,
            segment: u64::from(!cut),
            leaf_index: number,
            first_position: leaf.first_position,
            received_at: leaf.received_at,
            term: leaf.term,
            path: to_path(&self.tree.inclusion(number, size).unwrap()),
            final_size: cut.then_some(size),
            final_root: cut.then(|| self.tree.root().into()),
            history_path: if cut { vec![fill::<32>(0xd1)] } else { Vec::new() },
        }
    }

    fn receipts(&self) -> Vec<Vec<u8>> {
        let bare = wire::Receipt { version: 1, signed_head: self.head.sign(&key(HEAD)).into(), ..Default::default() };
        let consistency = wire::HeadConsistency {
            version: 1,
            final_size: Some(4),
            final_root: Some(self.tree.root().into()),
            segment_path: to_path(&self.tree.consistency(1, 4).unwrap()),
            inclusion_path: vec![fill::<32>(0xd2)],
            history_path: vec![fill::<32>(0xd3), fill::<32>(0xd4)],
        };
        let full = wire::Receipt {
            consistency: Some(consistency),
            batches: vec![self.inclusion(0, true), self.inclusion(1, false)],
            ..bare.clone()
        };
        vec![bare.encode_to_vec(), full.encode_to_vec()]
    }

    pub(crate) fn checkpoint(&self) -> note::SignedCheckpoint {
        let (size, root) = (self.log_tree.size(), self.log_tree.root());
        let mut signed = note::sign_checkpoint(Checkpoint { origin: ORIGIN.into(), size, root }, &key(LOG));
        let line = note::cosign(&signed.checkpoint, "witness.example", &key(WITNESS), AT / 1_000_000);
        signed.signatures.push(line);
        signed
    }

    fn archived_receipt(&self) -> Vec<u8> {
        wire::ArchivedReceipt {
            version: 1,
            seal: self.seal.encode().into(),
            log_index: 5,
            log_path: to_path(&self.log_tree.inclusion(5, 7).unwrap()),
            checkpoint: self.checkpoint().to_bytes().into(),
            history_size: 2,
            history_path: vec![fill::<32>(0xd5)],
        }
        .encode_to_vec()
    }

    /// A seal with nothing at zero.
    fn later_seal(&self) -> Seal {
        Seal {
            segment: 3,
            incarnation: 1,
            first_position: 4_000,
            not_before_size: 5,
            not_before: [0xd8; 32],
            ..self.seal.clone()
        }
    }

    fn log_entries(&self) -> Vec<Vec<u8>> {
        let later = encode_seal_entry(WORKSPACE, 3, object_hash(&self.later_seal().encode()));
        self.log.iter().cloned().chain([later]).collect()
    }

    /// One that checks, and one of a run that crosses segments, for its form alone.
    fn evidences(&self) -> Vec<Vec<u8>> {
        let whole = self.evidence();
        let mut crossing = whole.clone();
        let mut second = whole.segments[0].clone();
        second.log_index = 6;
        second.log_path = vec![fill::<32>(0xd9)];
        second.first_leaf = 2;
        crossing.segments.push(second);
        vec![whole.encode_to_vec(), crossing.encode_to_vec()]
    }

    fn claim(&self) -> Vec<u8> {
        wire::Claim {
            version: 1,
            origin: ORIGIN.into(),
            term: 1,
            first_index: 5,
            writer: fill::<32>(0xd6),
            at: AT,
            nonce: fill::<16>(0xd7),
            entries: self.log[5..].iter().cloned().map(Into::into).collect(),
        }
        .encode_to_vec()
    }

    /// Records 1 to 3, and so a part of the first batch and the second.
    pub(crate) fn evidence(&self) -> wire::Evidence {
        let batch = |at: usize, first: u64| {
            let submitted = batch::Submitted::parse(self.batches[at].clone().into()).unwrap();
            let leaves: Tree<BatchTree> = batch::record_leaves(&SEED, &submitted.records).into_iter().collect();
            let (size, (leaf, _)) = (submitted.records.len() as u64, &self.leaves[at]);
            wire::EvidenceBatch {
                kind: leaf.kind as i32,
                first_position: leaf.first_position,
                received_at: leaf.received_at,
                term: leaf.term,
                signed: submitted.header_bytes.clone(),
                signature: submitted.signature.clone(),
                first_index: first,
                records: submitted.records[usize::try_from(first).unwrap()..].to_vec(),
                nonces: (first..size).map(|index| Bytes::copy_from_slice(&batch::nonce(&SEED, index))).collect(),
                path: to_path(&leaves.range(first, size, size).unwrap()),
            }
        };
        wire::Evidence {
            version: 1,
            workspace: WORKSPACE.into(),
            first_position: 1,
            record_count: 3,
            segments: vec![wire::EvidenceSegment {
                seal: self.seal.encode().into(),
                log_index: 5,
                log_path: Vec::new(),
                first_leaf: 0,
                leaves: vec![batch(0, 1), batch(1, 0)],
                path: to_path(&self.tree.range(0, 2, 4).unwrap()),
            }],
            ledger_chain: self.ledger.objects.iter().cloned().map(Into::into).collect(),
            workspace_chain: self.chain.objects.iter().cloned().map(Into::into).collect(),
        }
    }

    pub(crate) fn proof(&self) -> Proof {
        Proof {
            evidence: self.evidence(),
            index: 5,
            path: self.log_tree.inclusion(5, 7).unwrap(),
            checkpoint: self.checkpoint(),
        }
    }
}

pub(crate) fn audit_policy() -> policy::Policy {
    policy::Policy {
        version: 1,
        origin: ORIGIN.into(),
        scope: policy::Scope::Workspaces(vec![WORKSPACE.to_string()]),
        roots: vec![policy::Root {
            era: 1,
            public_key: hex(&public_bytes(ROOT)),
            successor_hash: hex(&root_successor(&public(&key(NEXT_ROOT)).to_bytes())),
        }],
        witnesses: vec![policy::Witness { name: "witness.example".into(), public_key: hex(&public_bytes(WITNESS)) }],
        quorum: 1,
        greatest_age_seconds: 86_400,
        minimum_retention_days: 365,
        required: crate::verdict::Claim::ALL.to_vec(),
        known: Vec::new(),
    }
}

fn policy_file() -> Vec<u8> {
    serde_json::to_vec(&audit_policy()).unwrap()
}

/// Compares with a file of `proto/testdata/golden`, or writes it when that is asked for.
fn compare(file: &str, text: &str) {
    let path = testdata("golden").join(file);
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a file of the repository, written on request")]
        fs::write(&path, text).unwrap();
    }
    let stored = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    for (at, (is, was)) in text.lines().zip(stored.lines()).enumerate() {
        assert_eq!(is, was, "{file} line {}: the format changed", at + 1);
    }
    assert_eq!(text.lines().count(), stored.lines().count(), "{file}");
}

#[test]
fn messages_are_the_golden_files() {
    for golden in all() {
        let text: String = golden.lines.iter().map(|line| format!("{}\n", hex(line))).collect();
        compare(&format!("{}.hex", golden.file), &text);
        for (at, line) in golden.lines.iter().enumerate().filter(|_| !golden.message.is_empty()) {
            let checked = crate::strict::check(message(golden.message), line);
            assert_eq!(checked, Ok(()), "{} line {}", golden.file, at + 1);
        }
    }
    let known: BTreeSet<String> = all().iter().map(|golden| format!("{}.hex", golden.file)).collect();
    for found in fs::read_dir(testdata("golden")).unwrap() {
        let name = found.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name) || !name.ends_with(".hex"), "{name} is nobody's");
    }
}

#[test]
fn golden_objects_are_whole() {
    let world = World::new();
    for bytes in &world.batches {
        let submitted = batch::Submitted::parse(bytes.clone().into()).unwrap();
        assert!(submitted.is_root_of_records() && submitted.is_signed_by(public(&key(GATEWAY))));
        submitted.check_records().unwrap();
    }
    let object = segment::Object::parse(world.object.clone().into()).unwrap();
    assert!(object.header.agrees_with(&world.seal));
    assert_eq!(Seal::parse(&world.seal.encode()).unwrap(), world.seal);
    let shown = crate::evidence::check(&world.proof().to_bytes(), &audit_policy()).unwrap().unwrap();
    assert_eq!(shown.records.iter().map(|r| r.position).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(shown.records.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2, 5]);
    assert_eq!(policy::Policy::parse(&policy_file()).unwrap(), audit_policy());
    for golden in all().iter().filter(|golden| golden.message == "Record") {
        for line in &golden.lines {
            crate::record::check(line).unwrap();
        }
    }
}

/// Notes each field and each value of an enum that stands in `bytes`.
fn note_fields(of: &'static crate::strict::Message, mut bytes: &[u8], seen: &mut BTreeSet<(&'static str, u32, u64)>) {
    while !bytes.is_empty() {
        let key = prost::encoding::decode_varint(&mut bytes).unwrap();
        let number = prost::encoding::decode_varint(&mut bytes).unwrap();
        let tag = u32::try_from(key >> 3).unwrap();
        let field = of.fields.iter().find(|field| field.tag == tag).unwrap();
        seen.insert((of.name, tag, if matches!(field.kind, Kind::Enum { .. }) { number } else { 0 }));
        if key & 7 == 2 {
            let (content, rest) = bytes.split_at(usize::try_from(number).unwrap());
            bytes = rest;
            match (of.name, field.name, &field.kind) {
                (_, _, Kind::Message(inner)) => note_fields(inner, content, seen),
                ("SignedStatement", "statement", _) => note_fields(&table::STATEMENT, content, seen),
                _ => {}
            }
        }
    }
}

#[test]
fn golden_files_have_every_field_and_every_value_of_an_enum() {
    let mut seen = BTreeSet::new();
    for golden in all().iter().filter(|golden| !golden.message.is_empty()) {
        golden.lines.iter().for_each(|line| note_fields(message(golden.message), line, &mut seen));
    }
    let index = wire::SegmentIndex { version: 1, frames: vec![] };
    note_fields(&table::SEGMENT_INDEX, &index.encode_to_vec(), &mut seen);
    // These stand inside the segment object, whose parser reads them; a few enums have values that another place writes.
    let inside = ["SegmentHeader", "SegmentIndex", "SegmentFrame"];
    let never = [("EvidenceBatch", 1, 2), ("EvidenceBatch", 1, 3), ("Enrol", 1, 1), ("Enrol", 1, 2)];
    for of in table::ALL.iter().filter(|of| !inside.contains(&of.name)) {
        for field in of.fields {
            let values = match field.kind {
                Kind::Enum { max } => 1..=max,
                _ => 0..=0,
            };
            for value in values.filter(|value| !never.contains(&(of.name, field.tag, *value))) {
                assert!(seen.contains(&(of.name, field.tag, value)), "{} {} {value}", of.name, field.name);
            }
        }
    }
}

macro_rules! names {
    ($out:expr, $($name:ident)*) => {
        $(for number in 1.. {
            let Ok(value) = wire::$name::try_from(number) else { break };
            writeln!($out, "{} {number} {}", stringify!($name), value.as_str_name()).unwrap();
        })*
    };
}

#[test]
fn enums_and_fields_are_the_golden_table() {
    let mut out = String::new();
    names!(&mut out, Phase Mode Decision Outcome LinkKind AccessAction DefinitionChange DefinitionAction WriterClass
        ClockState ServerState DeliveryState LedgerEventKind Severity AlarmPhase DispositionKind OpeningReason DropReason
        LeafKind Role);
    for of in table::ALL {
        for field in of.fields {
            let kind = match &field.kind {
                Kind::Message(inner) => format!("Message {}", inner.name),
                other => format!("{other:?}"),
            };
            let presence = match field.presence {
                Presence::OneOf { first, required } => format!("OneOf from {first}, required: {required}"),
                other => format!("{other:?}"),
            };
            writeln!(out, "{} {} {}: {kind}, {presence}", of.name, field.tag, field.name).unwrap();
        }
    }
    compare("table.txt", &out);
}

/// What `table.txt` leaves out: the services, and what is said on them alone. A program of last year still speaks to one
/// of today if these only grow.
#[test]
fn numbers_are_the_golden_numbers() {
    compare("numbers.txt", include_str!(concat!(env!("OUT_DIR"), "/numbers.txt")));
}

#[test]
fn hashes_signatures_and_keys_are_golden() {
    let mut out = String::new();
    let mut line = |name: &str, bytes: &[u8]| writeln!(out, "{name} {}", hex(bytes)).unwrap();
    let (left, right): (Node, Node) = ([1; 32], [2; 32]);
    for of in [
        Use::BatchLeaf,
        Use::BatchNode,
        Use::SegmentLeaf,
        Use::SegmentNode,
        Use::HistoryLeaf,
        Use::HistoryNode,
        Use::Header,
        Use::Roster,
        Use::Segment,
        Use::KeyId,
        Use::RootSuccessor,
        Use::LastSeals,
        Use::Text,
    ] {
        line(of.context(), &of.key());
    }
    line("nonce 0", &batch::nonce(&SEED, 0));
    line("nonce 4095", &batch::nonce(&SEED, 4095));
    line("record-leaf", &batch::record_leaf(&left, b"record", &mut Vec::new()));
    line("batch-node", &BatchTree::node(&left, &right));
    line("batch-empty", &BatchTree::empty());
    line("segment-node", &SegmentTree::node(&left, &right));
    line("segment-empty", &SegmentTree::empty());
    line("history-leaf", &head::history_leaf(7, 8, &RootHash(left)));
    line("history-node", &HistoryTree::node(&left, &right));
    line("history-empty", &HistoryTree::empty());
    line("log-leaf", &log_leaf(b"entry").0);
    line("log-node", &LogTree::node(&left, &right));
    line("log-empty", &LogTree::empty());
    let leaf = Leaf { kind: LeafKind::Equivocation, first_position: 1, received_at: 2, term: 3 };
    line("segment-leaf", &leaf.hash(b"signed", &[4; 64]));
    line("header-hash", crate::hash::header_hash(b"header").as_ref());
    line("text-digest", &text_digest(b"text"));
    line("root-successor", &root_successor(&left));
    line("last-seals", &crate::verify::last_seals_hash(&[(WORKSPACE, 3, ObjectHash(right))]));
    line("key-id", public(&key(GATEWAY)).id(Role::Gateway).as_ref());
    for context in [Context::Batch, Context::Head, Context::Statement, Context::Possession] {
        line(context.label(), &sign(&key(GATEWAY), context, b"message"));
    }
    line("checkpoint-hash", World::new().checkpoint().checkpoint.hash().as_ref());
    line("verifier-key log", verifier_key(ORIGIN, TYPE_LOG, public(&key(LOG))).as_bytes());
    line("verifier-key witness", verifier_key("witness.example", TYPE_COSIGNATURE, public(&key(WITNESS))).as_bytes());
    compare("hashes.txt", &out);
}

#[test]
fn a_changed_evidence_file_shows_nothing() {
    let world = World::new();
    let (bytes, policy) = (world.proof().to_bytes(), audit_policy());
    let whole = crate::evidence::check(&bytes, &policy).unwrap().unwrap();
    let mut rng = Rng::for_test("a_changed_evidence_file_shows_nothing");
    for _ in 0..400 {
        let mut other = bytes.clone();
        let at = rng.index(other.len());
        other[at] ^= 1 << rng.below(7);
        let shown = crate::evidence::check(&other, &policy).unwrap();
        // Cosignatures are not this check's concern: their line may be changed or of another witness.
        let cosignature = at + 170 > bytes.len();
        assert!(shown.is_err() || (cosignature && shown.as_ref() == Ok(&whole)), "byte {at}: {shown:?}");
    }
}

#[test]
fn an_evidence_file_has_nothing_that_is_not_read() {
    let mut proof = World::new().proof();
    proof.path = vec![[7; 32]; 64];
    assert_eq!(Proof::parse(&proof.to_bytes()).as_ref(), Ok(&proof));
    proof.path.push([7; 32]);
    assert!(Proof::parse(&proof.to_bytes()).is_err(), "a 65th hash");
    let text = String::from_utf8(World::new().proof().to_bytes()).unwrap();
    for index in ["+5", "05", "5 ", "", "-5", "18446744073709551616"] {
        let other = text.replacen("\nindex 5\n", &format!("\nindex {index}\n"), 1);
        assert!(Proof::parse(other.as_bytes()).is_err(), "{index:?}");
    }
    let doubled = text.replacen("\nindex", "\nextra AA==\nindex", 1);
    assert!(Proof::parse(doubled.as_bytes()).is_err());
}

#[test]
fn a_delegated_enrolment_is_possible_to_void() {
    let objects = workspace_statements();
    assert_eq!(objects.len(), 11);
    let mut chain = crate::statement::Chain::new(ORIGIN, Some(WORKSPACE));
    let mut roots = crate::testing::roots();
    for object in &objects {
        chain.apply(&crate::statement::Signed::parse(object).unwrap(), &mut roots).unwrap();
    }
    let gateway = chain.key(&key_id(GATEWAY, Role::Gateway)).unwrap();
    assert!(gateway.revoked && gateway.retired && chain.is_removed());
    assert_eq!(gateway.suspect_since, Some(0));
}
