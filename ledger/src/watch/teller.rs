//! What is told of what was found: what stands against somebody adds up, and nobody hears the same twice within its time.
//!
//! What must hold: what comes out follows from what came in, in its order. What is switched off, suppressed or told already raises
//! nothing, and adds nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use custody::{
    id::{WorkspaceId, unhex},
    query::Field,
    strict::is_token,
    wire::{Alarm, AlarmPhase, Disposition, DispositionKind, Extension, LedgerEvent, Severity, extension},
};
use serde::{Deserialize, Serialize};

use super::{
    baseline::Unusual,
    engine::{INCIDENT, RULE_OFF, RULE_ON},
    risk::{Entity, Incident, Risks, points_of},
    sigma::{Found, Rule},
    view::View,
};

/// Alarms of one record: more are counted.
const ALARMS_MAX: usize = 16;
/// Times that are remembered of when something was told, and suppressions: a hundred bytes each.
const TOLD_MAX: usize = 100_000;

/// What was found in one record, or in a batch's header.
#[derive(Debug, Default)]
pub struct Finds {
    /// What follows from signatures and numbers alone.
    pub exact: Vec<Raised>,
    /// By rules.
    pub rules: Vec<Found>,
    /// What is not usual.
    pub unusual: Vec<Unusual>,
}

impl Finds {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.rules.is_empty() && self.unusual.is_empty()
    }
}

/// An alarm before its form.
#[derive(Clone, Debug)]
pub struct Raised {
    pub(super) name: String,
    pub(super) severity: Severity,
    pub(super) entity: Entity,
    /// How long the same of the same entity is told once; 0: each time.
    pub(super) quiet_us: u64,
    pub(super) positions: Vec<u64>,
    pub(super) details: Vec<(String, u64)>,
}

/// By which rules.
pub struct Judged<'a> {
    /// All of them, by name.
    pub rules: &'a BTreeMap<String, Rule>,
    /// What tells these rules and detectors from all others.
    pub digest: &'a [u8; 32],
    /// Whatever ships off is on: somebody wants to see what it would find.
    pub all_on: bool,
}

/// What was told, and what stands against whom.
#[derive(Default, Serialize, Deserialize)]
pub struct Teller {
    risks: Risks,
    /// Rules and detectors that are off: workspace, name.
    off: BTreeSet<([u8; 16], String)>,
    /// Those that ship off and are on: workspace, name.
    on: BTreeSet<([u8; 16], String)>,
    /// When an alarm was last told of an entity: name, entity.
    told: BTreeMap<(String, Entity), u64>,
    /// Until when one is suppressed.
    suppressed: BTreeMap<(String, Entity), u64>,
    /// Alarms that were too many for one record, since somebody asked.
    #[serde(skip)]
    dropped: u64,
}

impl Teller {
    /// One for which so many points make an incident, and three times as many a critical one.
    pub fn with_incident_at(points: u64) -> Self {
        Self { risks: Risks::with_incident_at(points), ..Self::default() }
    }

    /// Other rules come into force: what was made of what those before found begins anew.
    pub(super) fn begin(&mut self) {
        self.risks = Risks::default();
        self.told.clear();
    }

    /// A rule is switched.
    pub(super) fn switch(&mut self, said: &LedgerEvent) {
        let workspace: Option<[u8; 16]> = said.workspace.as_ref().and_then(|id| id.as_ref().try_into().ok());
        for name in said.details.iter().filter_map(|detail| detail.key.strip_prefix("rule/")) {
            let Some(workspace) = workspace else { continue };
            let switch = (workspace, name.to_owned());
            let (to, from) = match said.action.as_str() {
                RULE_OFF => (&mut self.off, &mut self.on),
                RULE_ON => (&mut self.on, &mut self.off),
                _ => return,
            };
            from.remove(&switch);
            to.insert(switch);
        }
    }

    /// What somebody said of an alarm: only the alarm says whom it was about.
    pub(super) fn disposition(&mut self, said: &Disposition, of: &Alarm) {
        let (DispositionKind::Suppressed, Some(until)) = (said.kind(), said.until) else { return };
        if let Some(entity) = entity_of(of) {
            self.suppressed.insert((of.name.clone(), entity), until);
            bounded(&mut self.suppressed);
        }
    }

    /// Alarms that were too many for one record, since this was asked last.
    pub(super) fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// The alarms of what was found in a record.
    pub fn take(&mut self, view: &View<'_>, finds: Finds, by: &Judged<'_>) -> Vec<Alarm> {
        let (workspace, at) = (view.place.workspace, view.place.received_at);
        let mut raised = finds.exact;
        for found in finds.rules {
            self.rule_found(view, found, by, &mut raised);
        }
        for found in finds.unusual {
            let name = found.detector.name();
            if self.is_off(workspace, name, found.detector.ships_off() && !by.all_on) {
                continue;
            }
            let entity = Entity::new(workspace, found.about.0, &found.about.1);
            self.add_risk(entity, at, (name, u64::from(found.points)), &[view.place.position], &mut raised);
        }
        self.tell(raised, at, by.digest)
    }

    /// The alarms of what is told as it is.
    pub(super) fn tell(&mut self, raised: Vec<Raised>, at: u64, digest: &[u8; 32]) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for of in raised {
            if !self.is_news(&of.name, &of.entity, at, of.quiet_us) {
                continue;
            }
            if alarms.len() < ALARMS_MAX {
                alarms.push(form(of, at, digest));
            } else {
                self.dropped += 1;
            }
        }
        alarms
    }

    fn is_off(&self, workspace: WorkspaceId, name: &str, unless_on: bool) -> bool {
        let switch = (workspace.0, name.to_owned());
        self.off.contains(&switch) || (unless_on && !self.on.contains(&switch))
    }

    fn rule_found(&mut self, view: &View<'_>, found: Found, by: &Judged<'_>, raised: &mut Vec<Raised>) {
        let (workspace, at) = (view.place.workspace, view.place.received_at);
        let Some(rule) = by.rules.get(&found.rule) else { return };
        if self.is_off(workspace, &found.rule, rule.ships_off && !by.all_on) {
            return;
        }
        let field = Field::named(&rule.entity).unwrap_or(Field::Member);
        // A record without the field is about the workspace.
        let entity = view.text(field).map_or_else(
            || Entity::new(workspace, Field::Workspace, &workspace.to_string()),
            |value| Entity::new(workspace, field, value),
        );
        if !self.is_news(&found.rule, &entity, at, rule.quiet_us) {
            return;
        }
        let points = points_of(rule.severity);
        self.add_risk(entity.clone(), at, (&found.rule, points), &found.positions, raised);
        let (name, positions, severity) = (found.rule, found.positions, rule.severity);
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
        let Some(incident) = self.risks.add(entity, at, (name, points), positions) else { return };
        let Incident { entity, severity, points, reasons, positions } = incident;
        let mut details = vec![("points".to_owned(), points)];
        details.extend(reasons.into_iter().map(|(name, points)| (format!("reason/{name}"), points)));
        raised.push(Raised { name: INCIDENT.to_owned(), severity, entity, quiet_us: 0, positions, details });
    }

    /// Whether this is told: it is not suppressed, and was not told within its quiet time.
    fn is_news(&mut self, name: &str, entity: &Entity, at: u64, quiet_us: u64) -> bool {
        let key = (name.to_owned(), entity.clone());
        if self.suppressed.get(&key).is_some_and(|until| at < *until) {
            return false;
        }
        if quiet_us == 0 {
            return true;
        }
        if self.told.get(&key).is_some_and(|told| at.saturating_sub(*told) < quiet_us) {
            return false;
        }
        self.told.insert(key, at);
        bounded(&mut self.told);
        true
    }
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
pub(super) fn form(of: Raised, at: u64, digest: &[u8; 32]) -> Alarm {
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
