//! Risk of members, tools and servers: points that fade, and one incident of each instead of a hundred alarms.
//!
//! What must hold: what comes out follows from what came in, in its order; all numbers are whole; a hundred points make an incident,
//! and the same entity has no other for a day, unless it becomes three times as bad.

use std::collections::{BTreeMap, VecDeque};

use custody::{
    hash::text_digest,
    id::{WorkspaceId, hex},
    query::Field,
    strict::is_token,
    wire::Severity,
};
use serde::{Deserialize, Serialize};

use super::sigma::POSITIONS_MAX;

/// Points of an incident; three times as many are one that cannot wait for the morning.
const INCIDENT: u64 = 100;
/// More say nothing more; and times what fades in a day they stay far below what a number holds.
const POINTS_MAX: u64 = 1_000_000;
/// Points fade to a half in this time.
const HALF_US: u64 = 24 * 3_600_000_000;
/// So long an incident stands for what follows.
const QUIET_US: u64 = 24 * 3_600_000_000;
/// Entities with a risk: half a kilobyte each.
const ENTITIES_MAX: usize = 50_000;
/// Reasons of an entity.
const REASONS_MAX: usize = 14;

/// Whom something is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entity {
    /// In which workspace.
    pub workspace: [u8; 16],
    /// Name of the field that holds it.
    pub field: String,
    /// Its value.
    pub value: String,
}

impl Entity {
    /// Of a value of a field; one that an alarm cannot hold in the key of a detail (`about/FIELD/VALUE`) is a digest.
    pub fn new(workspace: WorkspaceId, field: Field, value: &str) -> Self {
        let mut value = value.to_owned();
        if "about//".len() + field.name().len() + value.len() > 64 || !is_token(&value) {
            let digest = hex(&text_digest(value.as_bytes()));
            value = format!("digest:{}", digest.get(..32).unwrap_or_default());
        }
        Self { workspace: workspace.0, field: field.name().to_owned(), value }
    }
}

/// What speaks against an entity.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Risk {
    /// As of `at`.
    points: u64,
    at: u64,
    /// Points by name, since the last incident.
    reasons: BTreeMap<String, u64>,
    positions: VecDeque<u64>,
    /// When the last incident was, and how bad.
    told_at: u64,
    told_critical: bool,
}

impl Risk {
    /// Half of the points for each time that is over, and in proportion within one.
    fn fade(&mut self, now: u64) {
        let past = now.saturating_sub(self.at);
        let halves = u32::try_from(past / HALF_US).unwrap_or(u32::MAX);
        let points = self.points.checked_shr(halves).unwrap_or(0);
        self.points = points - points * (past % HALF_US) / (2 * HALF_US);
        self.at = self.at.max(now);
    }
}

/// An entity that became an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// Who.
    pub entity: Entity,
    /// How bad.
    pub severity: Severity,
    /// Points now.
    pub points: u64,
    /// What they are made of.
    pub reasons: Vec<(String, u64)>,
    /// Where what made it stands, the newest.
    pub positions: Vec<u64>,
}

/// Points for what a rule of this level finds.
pub fn points_of(severity: Severity) -> u64 {
    match severity {
        Severity::Critical | Severity::High => 100,
        Severity::Medium => 40,
        _ => 10,
    }
}

/// The risk of all entities.
pub struct Risks {
    of: BTreeMap<Entity, Risk>,
    incident_at: u64,
}

impl Default for Risks {
    fn default() -> Self {
        Self::with_incident_at(INCIDENT)
    }
}

impl Risks {
    /// Of which so many points make an incident: measurements ask what another number would give.
    pub fn with_incident_at(points: u64) -> Self {
        Self { of: BTreeMap::new(), incident_at: points }
    }

    /// Adds points; gives an incident if that makes one.
    pub fn add(
        &mut self,
        entity: Entity,
        now: u64,
        (reason, points): (&str, u64),
        positions: &[u64],
    ) -> Option<Incident> {
        let risk = self.of.entry(entity.clone()).or_default();
        risk.fade(now);
        risk.points = (risk.points + points).min(POINTS_MAX);
        if risk.reasons.len() < REASONS_MAX || risk.reasons.contains_key(reason) {
            let sum = risk.reasons.entry(reason.to_owned()).or_default();
            *sum = (*sum + points).min(POINTS_MAX);
        }
        risk.positions.extend(positions);
        while risk.positions.len() > POSITIONS_MAX {
            risk.positions.pop_front();
        }
        let critical = risk.points >= 3 * self.incident_at;
        let stands = risk.told_at > 0 && now.saturating_sub(risk.told_at) < QUIET_US;
        let incident = (risk.points >= self.incident_at && (!stands || (critical && !risk.told_critical))).then(|| {
            (risk.told_at, risk.told_critical) = (now, critical);
            let mut positions: Vec<u64> = risk.positions.drain(..).collect();
            positions.sort_unstable();
            positions.dedup();
            Incident {
                entity,
                severity: if critical { Severity::Critical } else { Severity::High },
                points: risk.points,
                reasons: std::mem::take(&mut risk.reasons).into_iter().collect(),
                positions,
            }
        });
        self.bound();
        incident
    }

    /// Lets the tenth go that nothing was added to for longest.
    fn bound(&mut self) {
        if self.of.len() <= ENTITIES_MAX {
            return;
        }
        let mut all: Vec<(u64, Entity)> = self.of.iter().map(|(entity, risk)| (risk.at, entity.clone())).collect();
        all.sort_unstable();
        for (_, entity) in all.into_iter().take(ENTITIES_MAX / 10) {
            self.of.remove(&entity);
        }
    }
}

impl Serialize for Risks {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.of.iter())
    }
}

impl<'de> Deserialize<'de> for Risks {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let of = Vec::<(Entity, Risk)>::deserialize(deserializer)?.into_iter().collect();
        Ok(Self { of, ..Self::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = HALF_US;

    fn of(value: &str) -> Entity {
        Entity::new(WorkspaceId([1; 16]), Field::Member, value)
    }

    #[test]
    fn points_fade_and_an_incident_is_told_once_a_day() {
        let mut risks = Risks::default();
        assert_eq!(risks.add(of("a"), DAY, ("x", 60), &[1]), None);
        // 30 are left after a day.
        assert_eq!(risks.add(of("a"), 2 * DAY, ("x", 60), &[2]), None);
        let incident = risks.add(of("a"), 2 * DAY, ("y", 20), &[9, 3]).unwrap();
        assert_eq!((incident.points, incident.severity), (110, Severity::High));
        assert_eq!(incident.reasons, [("x".to_owned(), 120), ("y".to_owned(), 20)]);
        assert_eq!(incident.positions, [1, 2, 3, 9]);
        assert_eq!(risks.add(of("a"), 2 * DAY + 1, ("x", 100), &[4]), None, "it stands");
        assert_eq!(risks.add(of("b"), 2 * DAY + 1, ("x", 99), &[5]), None, "another one");
        let worse = risks.add(of("a"), 2 * DAY + 2, ("x", 100), &[5]).unwrap();
        assert_eq!((worse.severity, worse.positions), (Severity::Critical, vec![4, 5]));
        assert_eq!(risks.add(of("a"), 2 * DAY + 3, ("x", 1_000), &[]), None);
        assert!(risks.add(of("a"), 4 * DAY, ("x", 1), &[]).is_some(), "a day later");
        // However much it is, and however long ago.
        for at in 4 * DAY..4 * DAY + 9 {
            risks.add(of("c"), at, ("x", u64::from(u32::MAX)), &[]);
        }
        assert_eq!(risks.add(of("c"), 5 * DAY + 10, ("x", 1), &[]).unwrap().points, POINTS_MAX / 2 + 1);
        // What is written down goes on as if nothing was.
        let mut bytes = Vec::new();
        ciborium::into_writer(&risks, &mut bytes).unwrap();
        let mut again: Risks = ciborium::from_reader(bytes.as_slice()).unwrap();
        let next = |risks: &mut Risks| risks.add(of("b"), 2 * DAY + 4, ("x", 2), &[7]);
        assert_eq!(next(&mut again), next(&mut risks));
    }
}
