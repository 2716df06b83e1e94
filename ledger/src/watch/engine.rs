//! What is out of the ordinary: records in, alarms out.
//!
//! What must hold: an alarm is a function of the records up to the one that raised it, in the order of commit, of the rules and of
//! nothing else; so whoever has them gets it again, byte for byte. The stream itself says which rules are in force: the record
//! `rules.load` names their digest, `rule.off` and `rule.on` switch one in a workspace, dispositions suppress. What is usual is
//! learned under any rules; what correlations remember begins with the record that loads them. Records that tell of alarms raise
//! none.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    batch::Header,
    hash::sha256,
    id::{WorkspaceId, unhex},
    query::Field,
    strict::is_token,
    wire::{
        Alarm, AlarmPhase, Disposition, DispositionKind, Extension, LedgerEvent, OpeningReason, Phase, Severity,
        extension, record::Kind,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    baseline::{Baselines, Detector},
    event::Event,
    risk::{Entity, Incident, Risks},
    sigma::{Refused, Rules, Sigma},
};

/// What the ledger says when rules come into force.
pub const RULES_LOAD: &str = "rules.load";
/// What it says when a rule is switched off in a workspace, and on.
pub const RULE_OFF: &str = "rule.off";
/// See [`RULE_OFF`].
pub const RULE_ON: &str = "rule.on";
/// Name of the alarm of an entity whose points are too many.
pub const INCIDENT: &str = "incident";
/// Name of the alarm that tells of so many more.
pub const CUT: &str = "alarms-cut";
/// Version of what is not in the rules' text: detectors and their numbers. To be raised with every change of what they find.
const DETECTORS_VERSION: u8 = 1;
/// Alarms of one record: more are counted.
const ALARMS_MAX: usize = 16;
/// Servers whose labels are known: a hundred bytes each.
const LABELLED_MAX: usize = 20_000;
/// Times that are remembered of when something was told, and suppressions: a hundred bytes each.
const TOLD_MAX: usize = 100_000;
const HOUR_US: u64 = 3_600_000_000;
/// A gateway whose clock is so far ahead of the ledger's is told of once a day.
const AHEAD_US: u64 = 300_000_000;

/// What everybody has who watches: exact findings. Integrity is never false; availability has its threshold.
const EXACT: [(&str, Severity, u64); 6] = [
    ("equivocation", Severity::Critical, 0),
    ("records-dropped", Severity::Medium, HOUR_US),
    ("gateway-state-lost", Severity::High, 0),
    ("gateway-rewound", Severity::High, 0),
    ("receipt-not-valid", Severity::High, HOUR_US),
    ("clock-ahead", Severity::Low, 24 * HOUR_US),
];

/// What is written down of it.
#[derive(Default, Serialize, Deserialize)]
struct State {
    in_force: bool,
    baselines: Baselines,
    risks: Risks,
    /// Labels of servers, by workspace and server.
    labels: Vec<([u8; 16], String, Vec<String>)>,
    /// Rules that are off: workspace, name.
    off: BTreeSet<([u8; 16], String)>,
    /// Rules that ship off and are on: workspace, name.
    on: BTreeSet<([u8; 16], String)>,
    /// When an alarm was last told of an entity: name, entity.
    told: BTreeMap<(String, Entity), u64>,
    /// Until when one is suppressed.
    suppressed: BTreeMap<(String, Entity), u64>,
}

/// Rules and what they remember.
pub struct Engine {
    sigma: Sigma,
    digest: [u8; 32],
    /// In force whatever the records say: a backtest.
    always: bool,
    /// Alarms that were too many for one record, since somebody asked.
    dropped: u64,
    labels: BTreeMap<([u8; 16], String), Vec<String>>,
    state: State,
}

/// An alarm before its form.
struct Raised {
    name: String,
    severity: Severity,
    entity: Entity,
    /// How long the same of the same entity is told once; 0: each time.
    quiet_us: u64,
    positions: Vec<u64>,
    details: Vec<(String, u64)>,
}

impl Engine {
    /// With rules as YAML.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn new(rules: &str) -> Result<Self, Refused> {
        let sigma = Sigma::new(rules)?;
        let taken =
            Detector::ALL.iter().map(|detector| detector.name()).chain(EXACT.map(|(name, ..)| name)).chain([INCIDENT]);
        if let Some(name) = taken.into_iter().find(|name| sigma.known().contains_key(*name)) {
            return Err(Refused(format!("rule {name}: the name is a detector's (hint: take another one)")));
        }
        let digest = sha256(&[b"custody/v1/rules", &[DETECTORS_VERSION], rules.as_bytes()]);
        Ok(Self { sigma, digest, always: false, dropped: 0, labels: BTreeMap::new(), state: State::default() })
    }

    /// Tells these rules and detectors from all others.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The rules, and what detectors there are.
    pub fn rules(&self) -> &dyn Rules {
        &self.sigma
    }

    /// Names that can be switched off.
    pub fn knows(&self, name: &str) -> bool {
        self.sigma.known().contains_key(name) || Detector::ALL.iter().any(|detector| detector.name() == name)
    }

    /// Whether its rules are in force, as of the records so far.
    pub fn in_force(&self) -> bool {
        self.state.in_force
    }

    /// From now on these rules are in force, whichever the records say: to see what they would find.
    pub fn put_in_force(&mut self) {
        (self.always, self.state.in_force) = (true, true);
    }

    /// What a record raises; `header` is that of its batch, with the batch's first record.
    pub fn take(&mut self, event: &Event<'_>, header: Option<&Header>) -> Vec<Alarm> {
        let at = event.place.received_at;
        if let Some(record) = event.own {
            match &record.kind {
                Some(Kind::LedgerEvent(told)) => self.hear(told),
                Some(Kind::Alarm(_)) => return Vec::new(),
                Some(Kind::Disposition(_)) => return Vec::new(),
                _ => {}
            }
        }
        self.labelled(event);
        let labels = self.labels_of(event);
        let event = &Event { labels: &labels, ..*event };
        let mut raised = Vec::new();
        exact(event, header, &mut raised);
        let unusual = self.state.baselines.take(event);
        if !self.state.in_force {
            return Vec::new();
        }
        let workspace = event.place.workspace;
        let positions = [event.place.position];
        // A call that runs for long has an intent and an outcome, and counts once: when it ends.
        let begins = event.facts.call_phase().is_some_and(|(_, phase)| phase == Phase::Intent);
        let found = if begins { Vec::new() } else { self.sigma.take(event) };
        for found in found {
            self.sigma_found(event, found, &mut raised);
        }
        for found in unusual {
            let name = found.detector.name();
            if self.is_off(workspace, name) {
                continue;
            }
            let entity = Entity::new(workspace, found.about.0, &found.about.1);
            self.add_risk(entity, at, (name, u64::from(found.points)), &positions, &mut raised);
        }
        self.tell(raised, at)
    }

    /// What a batch without records raises: only its header says something.
    pub fn header(&mut self, header: &Header, received_at: u64) -> Vec<Alarm> {
        if !self.state.in_force {
            return Vec::new();
        }
        let mut raised = Vec::new();
        of_header(header, &[], &mut raised);
        self.tell(raised, received_at)
    }

    /// Alarms that were too many for one record, since this was asked last.
    pub fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// What a second batch under one number raises: it is no record, and has no position.
    pub fn equivocation(&mut self, header: &Header, received_at: u64) -> Vec<Alarm> {
        if !self.state.in_force {
            return Vec::new();
        }
        let entity = Entity::new(header.workspace, Field::Gateway, &header.gateway.to_string());
        let raised = exactly("equivocation", entity, Vec::new(), vec![("batch".to_owned(), header.batch_number)]);
        self.tell(raised.into_iter().collect(), received_at)
    }

    /// The alarm that tells of so many more that one commit raised.
    pub fn cut(&self, workspace: WorkspaceId, at: u64, more: u64) -> Alarm {
        let entity = Entity::new(workspace, Field::Workspace, &workspace.to_string());
        let (name, details) = (CUT.to_owned(), vec![("alarms".to_owned(), more)]);
        let cut = Raised { name, severity: Severity::High, entity, quiet_us: 0, positions: Vec::new(), details };
        form(cut, at, &self.digest)
    }

    /// What somebody said of an alarm: only the alarm says whom it was about.
    pub fn disposition(&mut self, disposition: &Disposition, of: &Alarm) {
        let (DispositionKind::Suppressed, Some(until)) = (disposition.kind(), disposition.until) else { return };
        if let Some(entity) = entity_of(of) {
            self.state.suppressed.insert((of.name.clone(), entity), until);
            bounded(&mut self.state.suppressed);
        }
    }

    fn hear(&mut self, told: &LedgerEvent) {
        match told.action.as_str() {
            RULES_LOAD if self.always => {}
            RULES_LOAD => {
                let digest = told.details.iter().find_map(|detail| match &detail.value {
                    Some(extension::Value::Digest(digest)) => Some(digest.as_ref()),
                    _ => None,
                });
                self.state.in_force = digest == Some(&self.digest[..]);
                // What rules remember, and what was made of what they found, begins anew with each: a replay has no other rules.
                self.sigma.forget();
                self.state.risks = Risks::default();
                self.state.told.clear();
            }
            action @ (RULE_OFF | RULE_ON) => {
                let workspace: Option<[u8; 16]> = told.workspace.as_ref().and_then(|id| id.as_ref().try_into().ok());
                for name in told.details.iter().filter_map(|detail| detail.key.strip_prefix("rule/")) {
                    let Some(workspace) = workspace else { continue };
                    let switch = (workspace, name.to_owned());
                    let (to, from) = if action == RULE_OFF {
                        (&mut self.state.off, &mut self.state.on)
                    } else {
                        (&mut self.state.on, &mut self.state.off)
                    };
                    from.remove(&switch);
                    to.insert(switch);
                }
            }
            _ => {}
        }
    }

    fn is_off(&self, workspace: WorkspaceId, name: &str) -> bool {
        self.state.off.contains(&(workspace.0, name.to_owned()))
    }

    fn labelled(&mut self, event: &Event<'_>) {
        let action = event.text(Field::Action);
        if event.text(Field::Kind) != Some("access_change")
            || !matches!(action, Some("server_changed" | "server_removed"))
        {
            return;
        }
        let Some(server) = event.text(Field::Server) else { return };
        let labels: Vec<String> = event.facts.texts(Field::Label).map(str::to_owned).collect();
        let key = (event.place.workspace.0, server.to_owned());
        if labels.is_empty() || (self.labels.len() >= LABELLED_MAX && !self.labels.contains_key(&key)) {
            self.labels.remove(&key);
        } else {
            self.labels.insert(key, labels);
        }
    }

    fn labels_of(&self, event: &Event<'_>) -> Vec<String> {
        if self.labels.is_empty() || event.text(Field::Kind) == Some("access_change") {
            return Vec::new();
        }
        let Some(server) = event.text(Field::Server) else { return Vec::new() };
        self.labels.get(&(event.place.workspace.0, server.to_owned())).cloned().unwrap_or_default()
    }

    fn sigma_found(&mut self, event: &Event<'_>, found: super::sigma::Found, raised: &mut Vec<Raised>) {
        let workspace = event.place.workspace;
        let Some(rule) = self.sigma.known().get(&found.rule) else { return };
        let switch = (workspace.0, found.rule.clone());
        if self.state.off.contains(&switch) || (rule.ships_off && !self.always && !self.state.on.contains(&switch)) {
            return;
        }
        let field = Field::named(&rule.entity).unwrap_or(Field::Member);
        let (severity, quiet_us) = (rule.severity, rule.quiet_us);
        // A record without the field is about the workspace.
        let entity = event.text(field).map_or_else(
            || Entity::new(workspace, Field::Workspace, &workspace.to_string()),
            |value| Entity::new(workspace, field, value),
        );
        if !self.is_news(&found.rule, &entity, event.place.received_at, quiet_us) {
            return;
        }
        let points = match severity {
            Severity::Critical | Severity::High => 100,
            Severity::Medium => 40,
            _ => 10,
        };
        self.add_risk(entity.clone(), event.place.received_at, (&found.rule, points), &found.positions, raised);
        let (name, positions) = (found.rule, found.positions);
        raised.push(Raised { name, severity, entity, quiet_us: 0, positions, details: Vec::new() });
    }

    fn add_risk(
        &mut self,
        entity: Entity,
        at: u64,
        (name, points): (&str, u64),
        positions: &[u64],
        raised: &mut Vec<Raised>,
    ) {
        let Some(incident) = self.state.risks.add(entity, at, (name, points), positions) else { return };
        let Incident { entity, severity, points, reasons, positions } = incident;
        let mut details = vec![("points".to_owned(), points)];
        details.extend(reasons.into_iter().map(|(name, points)| (format!("reason/{name}"), points)));
        raised.push(Raised { name: INCIDENT.to_owned(), severity, entity, quiet_us: 0, positions, details });
    }
}

impl Engine {
    /// Whether this is told: it is not suppressed, and was not told within its quiet time.
    fn is_news(&mut self, name: &str, entity: &Entity, at: u64, quiet_us: u64) -> bool {
        let key = (name.to_owned(), entity.clone());
        if self.state.suppressed.get(&key).is_some_and(|until| at < *until) {
            return false;
        }
        if quiet_us == 0 {
            return true;
        }
        if self.state.told.get(&key).is_some_and(|told| at.saturating_sub(*told) < quiet_us) {
            return false;
        }
        self.state.told.insert(key, at);
        bounded(&mut self.state.told);
        true
    }

    fn tell(&mut self, raised: Vec<Raised>, at: u64) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for of in raised {
            if !self.is_news(&of.name, &of.entity, at, of.quiet_us) {
                continue;
            }
            if alarms.len() < ALARMS_MAX {
                alarms.push(form(of, at, &self.digest));
            } else {
                self.dropped += 1;
            }
        }
        alarms
    }

    /// What it remembers, to be written down.
    ///
    /// # Errors
    /// In words.
    pub fn remembered(&mut self) -> Result<Vec<u8>, String> {
        self.state.labels = self
            .labels
            .iter()
            .map(|((workspace, server), labels)| (*workspace, server.clone(), labels.clone()))
            .collect();
        let sigma = self.sigma.remembered().map_err(|why| why.to_string())?;
        let mut bytes = Vec::new();
        let whole = (DETECTORS_VERSION, self.digest, &self.state, sigma);
        ciborium::into_writer(&whole, &mut bytes).map_err(|why| why.to_string())?;
        Ok(bytes)
    }

    /// Goes on from what was written down; `false`: it is of no use. Under other rules what was usual is kept, and what correlations
    /// remembered is not: the record that loads these rules is still to come.
    pub fn remember(&mut self, bytes: &[u8]) -> bool {
        let Ok((version, digest, state, sigma)) = ciborium::from_reader::<(u8, [u8; 32], State, String), _>(bytes)
        else {
            return false;
        };
        // What other detectors learned is not what these would have; and nothing is taken by halves.
        if version != DETECTORS_VERSION || (digest == self.digest && !self.sigma.remember(&sigma)) {
            return false;
        }
        self.labels = state
            .labels
            .iter()
            .map(|(workspace, server, labels)| ((*workspace, server.clone()), labels.clone()))
            .collect();
        self.state = state;
        self.state.in_force &= digest == self.digest;
        true
    }
}

/// What is exact about a record.
fn exact(event: &Event<'_>, header: Option<&Header>, raised: &mut Vec<Raised>) {
    let (place, at) = (event.place, event.place.received_at);
    let gateway = || Entity::new(place.workspace, Field::Gateway, &place.gateway.to_string());
    if let Some(header) = header {
        of_header(header, &[place.position], raised);
    }
    let ahead = event.facts.number(Field::At).unwrap_or(0).saturating_sub(at);
    if ahead > AHEAD_US && event.own.is_none() {
        raised.extend(exactly("clock-ahead", gateway(), vec![place.position], vec![("ahead_us".to_owned(), ahead)]));
    }
    if let Some(Kind::LedgerEvent(told)) = event.own.and_then(|record| record.kind.as_ref())
        && told.action == "receipt.finding"
        && !matches!(told.outcome.as_str(), "valid" | "withheld" | "unknown-key")
    {
        let workspace = told.workspace.as_ref().and_then(|id| WorkspaceId::try_from(id.as_ref()).ok());
        let entity = Entity::new(workspace.unwrap_or(place.workspace), Field::Result, &told.outcome);
        let of_call = |detail: &Extension| match (detail.key.as_str(), &detail.value) {
            ("position", Some(extension::Value::Number(position))) => Some(*position),
            _ => None,
        };
        let positions = told.details.iter().filter_map(of_call).collect();
        raised.extend(exactly("receipt-not-valid", entity, positions, Vec::new()));
    }
}

/// What is exact about a batch; `positions`: of its first record, if it has one.
fn of_header(header: &Header, positions: &[u64], raised: &mut Vec<Raised>) {
    let gateway = || Entity::new(header.workspace, Field::Gateway, &header.gateway.to_string());
    if header.dropped > 0 {
        let details = vec![("dropped".to_owned(), header.dropped)];
        raised.extend(exactly("records-dropped", gateway(), positions.to_vec(), details));
    }
    let name = match header.opening_reason {
        Some(OpeningReason::StateLost) => Some("gateway-state-lost"),
        Some(OpeningReason::Rewound) => Some("gateway-rewound"),
        _ => None,
    };
    raised.extend(name.and_then(|name| exactly(name, gateway(), positions.to_vec(), Vec::new())));
}

fn exactly(name: &str, entity: Entity, positions: Vec<u64>, details: Vec<(String, u64)>) -> Option<Raised> {
    let (name, severity, quiet_us) = *EXACT.iter().find(|(known, ..)| *known == name)?;
    Some(Raised { name: name.to_owned(), severity, entity, quiet_us, positions, details })
}

/// Lets the tenth go with the smallest times.
fn bounded(map: &mut BTreeMap<(String, Entity), u64>) {
    if map.len() > TOLD_MAX {
        let mut times: Vec<u64> = map.values().copied().collect();
        times.sort_unstable();
        let least = times.get(TOLD_MAX / 10).copied().unwrap_or(0);
        map.retain(|_, at| *at > least);
    }
}

/// The alarm as a record has it.
fn form(of: Raised, at: u64, digest: &[u8; 32]) -> Alarm {
    let id = |field: Field| {
        (of.entity.field == field.name())
            .then(|| unhex(&of.entity.value).filter(|id| id.len() == 16))
            .flatten()
            .map(Bytes::from)
    };
    let (member, agent, gateway) = (id(Field::Member), id(Field::Agent), id(Field::Gateway));
    let mut details: Vec<(String, u64)> = of.details;
    if member.is_none() && agent.is_none() && gateway.is_none() {
        details.insert(0, (about(&of.entity), 1));
    }
    let told = |(key, number): (String, u64)| Extension { key, value: Some(extension::Value::Number(number)) };
    let details = details.into_iter().filter(|(key, _)| key.len() <= 64 && is_token(key)).take(16).map(told).collect();
    let mut positions = of.positions;
    let more = positions.len().saturating_sub(super::sigma::POSITIONS_MAX);
    positions.drain(..more);
    Alarm {
        at,
        phase: AlarmPhase::Raised as i32,
        severity: of.severity as i32,
        name: of.name,
        rule_digest: Some(Bytes::copy_from_slice(digest)),
        workspace: Some(Bytes::copy_from_slice(&of.entity.workspace)),
        positions,
        member,
        agent,
        gateway,
        details,
    }
}

/// An entity that has no field of its own in an alarm, as the key of a detail.
fn about(entity: &Entity) -> String {
    format!("about/{}/{}", entity.field, entity.value)
}

/// Whom an alarm is about.
fn entity_of(alarm: &Alarm) -> Option<Entity> {
    let workspace = WorkspaceId::try_from(alarm.workspace.as_ref()?.as_ref()).ok()?;
    let ids = [(Field::Member, &alarm.member), (Field::Agent, &alarm.agent), (Field::Gateway, &alarm.gateway)];
    if let Some((field, id)) = ids.into_iter().find_map(|(field, id)| Some((field, id.as_ref()?))) {
        return Some(Entity::new(workspace, field, &custody::id::hex(id)));
    }
    let about = alarm.details.iter().find_map(|detail| detail.key.strip_prefix("about/"))?;
    let (field, value) = about.split_once('/')?;
    Some(Entity { workspace: workspace.0, field: field.to_owned(), value: value.to_owned() })
}
