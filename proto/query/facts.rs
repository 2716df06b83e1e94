//! What a record says, in the terms of the query language.
//!
//! What must hold: facts follow from the record and its place alone, so that everybody who has both has the same.

use super::Field;
use crate::{
    batch::Header,
    id::{Epoch, GatewayId, WorkspaceId, hex},
    record::RecordKind,
    wire::{self, Phase, record::Kind},
};

/// Where a record stands, and who put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Workspace.
    pub workspace: WorkspaceId,
    /// Gateway that signed it.
    pub gateway: GatewayId,
    /// In which run.
    pub epoch: Epoch,
    /// Place in the workspace.
    pub position: u64,
    /// Number in the epoch.
    pub number: u64,
    /// Ledger's clock, microseconds.
    pub received_at: u64,
    /// Records are missing before it: the header of its batch says so, and it is that batch's first.
    pub gap: bool,
}

impl Place {
    /// Place of the record with this 0-based index in a batch; `None` past the numbers that there are.
    pub fn of(header: &Header, first_position: u64, received_at: u64, index: u32) -> Option<Self> {
        use wire::OpeningReason::{Rewound, StateLost};
        let lost = header.dropped > 0 || matches!(header.opening_reason, Some(StateLost | Rewound));
        Some(Self {
            workspace: header.workspace,
            gateway: header.gateway,
            epoch: header.epoch,
            position: first_position.checked_add(u64::from(index))?,
            number: header.first_record.checked_add(u64::from(index))?,
            received_at,
            gap: lost && index == 0,
        })
    }
}

/// What can be asked of one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// All texts, one after the other: a record has some twenty, and the ledger holds the facts of many records at a time.
    buffer: String,
    /// Of which field, and where in the buffer it ends; it begins where the one before ends.
    texts: Vec<(Field, usize)>,
    numbers: Vec<(Field, u64)>,
}

impl Facts {
    /// Of a record at its place.
    pub fn of(place: &Place, record: &wire::Record) -> Self {
        let mut facts =
            Self { buffer: String::with_capacity(512), texts: Vec::with_capacity(24), numbers: Vec::with_capacity(8) };
        facts.text(Field::Workspace, &hex(&place.workspace.0));
        facts.text(Field::Gateway, &hex(&place.gateway.0));
        facts.text(Field::Epoch, &hex(&place.epoch.0));
        facts.numbers.push((Field::Received, place.received_at));
        facts.flag(Field::Gap, place.gap);
        match &record.kind {
            Some(Kind::Call(call)) => facts.call(call),
            Some(Kind::AccessChange(change)) => facts.access_change(change),
            Some(Kind::ToolDefinition(definition)) => facts.tool_definition(definition),
            Some(Kind::GatewayEvent(event)) => facts.gateway_event(event),
            Some(Kind::DirectoryEntry(entry)) => {
                facts.head(RecordKind::DirectoryEntry, entry.at);
                facts.id(Field::Member, Some(&entry.member));
            }
            Some(Kind::LedgerEvent(event)) => facts.ledger_event(event),
            Some(Kind::Search(search)) => facts.search(search),
            Some(Kind::Alarm(alarm)) => facts.alarm(alarm),
            Some(Kind::Disposition(disposition)) => facts.disposition(disposition),
            None => {}
        }
        facts
    }

    /// Of records that are counted together: they share these, and nothing else is known of them.
    pub fn counted(
        workspace: &str,
        at: u64,
        kind: RecordKind,
        decision: wire::Decision,
        outcome: wire::Outcome,
    ) -> Self {
        let mut facts = Self::default();
        facts.text(Field::Workspace, workspace);
        facts.head(kind, at);
        if matches!(kind, RecordKind::Call | RecordKind::Search) {
            facts.word(Field::Decision, decision.as_str_name(), "DECISION_");
        }
        if kind == RecordKind::Call {
            facts.word(Field::Outcome, outcome.as_str_name(), "OUTCOME_");
        }
        facts
    }

    /// From values as somebody writes them down; `None` for one that its field cannot have.
    pub fn told<'a>(values: impl IntoIterator<Item = (Field, &'a str)>) -> Option<Self> {
        let mut facts = Self::default();
        for (field, value) in values {
            if field.is_text() {
                facts.text(field, value);
            } else {
                facts.numbers.push((field, value.parse().ok()?));
            }
        }
        Some(facts)
    }

    /// All texts with their fields.
    pub fn all_texts(&self) -> impl Iterator<Item = (Field, &str)> {
        self.texts.iter().scan(0, |start, (field, end)| {
            let text = self.buffer.get(*start..*end).unwrap_or_default();
            *start = *end;
            Some((*field, text))
        })
    }

    /// All numbers with their fields.
    pub fn all_numbers(&self) -> impl Iterator<Item = (Field, u64)> {
        self.numbers.iter().copied()
    }

    /// Texts of a field.
    pub fn texts(&self, field: Field) -> impl Iterator<Item = &str> {
        self.all_texts().filter(move |(of, _)| *of == field).map(|(_, text)| text)
    }

    /// Number of a field.
    pub fn number(&self, field: Field) -> Option<u64> {
        self.numbers.iter().find(|(of, _)| *of == field).map(|(_, number)| *number)
    }

    /// Whether the record has the field; of a flag, whether it holds.
    pub fn has(&self, field: Field) -> bool {
        self.number(field).is_some() || self.texts(field).next().is_some()
    }

    /// Which call of the epoch it is about, if it is a call; and whether it is the call's only record.
    pub fn call_phase(&self) -> Option<(u64, Phase)> {
        let phase = match self.texts(Field::Phase).next()? {
            "intent" => Phase::Intent,
            "outcome" => Phase::Outcome,
            _ => Phase::Complete,
        };
        Some((self.number(Field::Call)?, phase))
    }

    fn text(&mut self, field: Field, text: &str) {
        if !text.is_empty() {
            self.buffer.push_str(text);
            self.texts.push((field, self.buffer.len()));
        }
    }

    fn id(&mut self, field: Field, id: Option<&bytes::Bytes>) {
        if let Some(id) = id {
            self.text(field, &hex(id));
        }
    }

    fn flag(&mut self, field: Field, holds: bool) {
        if holds {
            self.numbers.push((field, 1));
        }
    }

    fn head(&mut self, kind: RecordKind, at: u64) {
        self.text(Field::Kind, &kind.name().replace(' ', "_"));
        self.numbers.push((Field::At, at));
    }

    /// The name of an enum's value without the enum's own before it; nothing for a value that is not said.
    fn word(&mut self, field: Field, name: &str, prefix: &str) {
        let word = name.strip_prefix(prefix).unwrap_or(name);
        if word != "UNSPECIFIED" {
            self.text(field, &word.to_ascii_lowercase());
        }
    }

    fn call(&mut self, call: &wire::Call) {
        use wire::call::{Client, ClientRelease, Request, Target};
        self.head(RecordKind::Call, call.started_at);
        self.numbers.push((Field::Call, call.call_number));
        self.word(Field::Phase, call.phase().as_str_name(), "PHASE_");
        self.word(Field::Mode, call.mode().as_str_name(), "MODE_");
        self.id(Field::Member, call.member.as_ref());
        self.id(Field::Token, call.token.as_ref());
        self.id(Field::Agent, call.agent.as_ref());
        match &call.client {
            Some(Client::ClientName(name)) => self.text(Field::Client, name.as_str()),
            Some(Client::ClientNameDigest(digest)) => self.text(Field::Client, &digested(digest)),
            None => {}
        }
        match &call.client_release {
            Some(ClientRelease::ClientVersion(version)) => self.text(Field::ClientVersion, version.as_str()),
            Some(ClientRelease::ClientVersionDigest(digest)) => self.text(Field::ClientVersion, &digested(digest)),
            None => {}
        }
        let tool = match &call.target {
            Some(Target::Tool(name)) => Some(name.clone()),
            Some(Target::ToolDigest(digest)) => Some(digested(digest)),
            None => None,
        };
        self.tool(&call.server, tool);
        match &call.request {
            Some(Request::Method(method)) => self.text(Field::Method, method.as_str()),
            Some(Request::MethodDigest(digest)) => self.text(Field::Method, &digested(digest)),
            None => {}
        }
        self.flag(Field::FromServer, call.from_server);
        self.text(Field::Protocol, &call.protocol);
        self.word(Field::Decision, call.decision().as_str_name(), "DECISION_");
        self.text(Field::Rule, &call.rule);
        self.id(Field::Policy, call.access_policy_digest.as_ref());
        self.id(Field::Definition, call.definition_digest.as_ref());
        self.word(Field::Outcome, call.outcome().as_str_name(), "OUTCOME_");
        if call.phase() != Phase::Intent {
            self.numbers.push((Field::Duration, call.duration_us));
            self.numbers.push((Field::ResponseBytes, call.response_bytes));
        }
        self.numbers.push((Field::RequestBytes, call.request_bytes));
        if let Some(code) = call.error_code {
            self.text(Field::ErrorCode, &code.cast_signed().to_string());
        }
        self.id(Field::Conversation, call.conversation_digest.as_ref());
        self.id(Field::Trace, call.trace.as_ref().map(|trace| &trace.trace_id));
        self.id(Field::Receipt, call.receipt.as_ref().map(|receipt| &receipt.signer));
    }

    fn tool(&mut self, server: &str, tool: Option<String>) {
        if let Some(tool) = tool {
            self.text(Field::Tool, &format!("{server}/{tool}"));
        }
        self.text(Field::Server, server);
    }

    fn access_change(&mut self, change: &wire::AccessChange) {
        use wire::access_change::Actor;
        self.head(RecordKind::AccessChange, change.at);
        self.word(Field::Action, change.action().as_str_name(), "ACCESS_ACTION_");
        match &change.actor {
            Some(Actor::ActorMember(member)) => self.id(Field::Actor, Some(member)),
            Some(Actor::ActorSystem(system)) => self.text(Field::Actor, system.as_str()),
            None => {}
        }
        self.text(Field::Reason, &change.reason);
        self.text(Field::Ticket, &change.ticket);
        self.id(Field::Member, change.member.as_ref());
        self.id(Field::Token, change.token.as_ref());
        self.id(Field::Agent, change.agent.as_ref());
        self.id(Field::Owner, change.owner.as_ref());
        self.text(Field::Group, &change.group);
        self.text(Field::Server, &change.server);
        for label in &change.labels {
            self.text(Field::Label, label);
        }
        if let Some(rule) = &change.rule {
            self.text(Field::Rule, &rule.id);
        }
        self.id(Field::Policy, Some(&change.policy_digest_after));
    }

    fn tool_definition(&mut self, definition: &wire::ToolDefinition) {
        use wire::tool_definition::{Actor, Target};
        self.head(RecordKind::ToolDefinition, definition.at);
        self.word(Field::Change, definition.change().as_str_name(), "DEFINITION_CHANGE_");
        self.word(Field::Action, definition.action().as_str_name(), "DEFINITION_ACTION_");
        let tool = match &definition.target {
            Some(Target::Tool(name)) => Some(name.clone()),
            Some(Target::ToolDigest(digest)) => Some(digested(digest)),
            None => None,
        };
        self.tool(&definition.server, tool);
        self.id(Field::Definition, definition.digest_after.as_ref().or(definition.digest_before.as_ref()));
        match &definition.actor {
            Some(Actor::ActorMember(member)) => self.id(Field::Actor, Some(member)),
            Some(Actor::ActorSystem(system)) => self.text(Field::Actor, system.as_str()),
            None => {}
        }
        self.text(Field::Reason, &definition.reason);
        self.text(Field::Ticket, &definition.ticket);
    }

    fn gateway_event(&mut self, event: &wire::GatewayEvent) {
        use wire::gateway_event::Event;
        self.head(RecordKind::GatewayEvent, event.at);
        let (action, server) = match &event.event {
            Some(Event::Opened(opened)) => {
                self.text(Field::Client, &opened.product);
                self.text(Field::ClientVersion, &opened.product_version);
                ("opened".to_owned(), "")
            }
            Some(Event::ServerLife(life)) => {
                let state = life.state().as_str_name();
                let state = state.strip_prefix("SERVER_STATE_").unwrap_or(state).to_ascii_lowercase();
                (format!("server_{state}"), life.server.as_str())
            }
            Some(Event::Delivery(delivery)) => {
                let state = delivery.state().as_str_name();
                let state = state.strip_prefix("DELIVERY_STATE_").unwrap_or(state).to_ascii_lowercase();
                (format!("delivery_{state}"), delivery.server.as_str())
            }
            Some(Event::Counts(_)) => ("counts".to_owned(), ""),
            Some(Event::ClockJump(_)) => ("clock_jump".to_owned(), ""),
            Some(Event::Configured(_)) => ("configured".to_owned(), ""),
            None => (String::new(), ""),
        };
        self.text(Field::Action, &action);
        self.text(Field::Server, server);
    }

    fn ledger_event(&mut self, event: &wire::LedgerEvent) {
        self.head(RecordKind::LedgerEvent, event.at);
        self.text(Field::Action, &event.action);
        self.text(Field::Result, &event.outcome);
        self.text(Field::Actor, &event.actor);
        self.text(Field::Reason, &event.reason);
        self.text(Field::Ticket, &event.ticket);
        self.id(Field::Member, event.member.as_ref());
    }

    fn search(&mut self, search: &wire::Search) {
        self.head(RecordKind::Search, search.at);
        self.text(Field::Actor, &search.actor);
        self.word(Field::Decision, search.decision().as_str_name(), "DECISION_");
        self.text(Field::Reason, &search.reason);
    }

    fn alarm(&mut self, alarm: &wire::Alarm) {
        self.head(RecordKind::Alarm, alarm.at);
        self.word(Field::Action, alarm.phase().as_str_name(), "ALARM_PHASE_");
        self.word(Field::Severity, alarm.severity().as_str_name(), "SEVERITY_");
        self.text(Field::Alarm, &alarm.name);
        self.id(Field::Member, alarm.member.as_ref());
        self.id(Field::Agent, alarm.agent.as_ref());
    }

    fn disposition(&mut self, disposition: &wire::Disposition) {
        self.head(RecordKind::Disposition, disposition.at);
        self.word(Field::Action, disposition.kind().as_str_name(), "DISPOSITION_KIND_");
        self.text(Field::Actor, &disposition.actor);
        self.text(Field::Reason, &disposition.reason);
        self.text(Field::Ticket, &disposition.ticket);
    }
}

/// How a text is written that was kept as its digest.
fn digested(digest: &[u8]) -> String {
    format!("digest:{}", hex(digest))
}
