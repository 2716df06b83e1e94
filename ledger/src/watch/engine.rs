//! What is out of the ordinary: records in, alarms out.
//!
//! What must hold: an alarm is a function of the records up to the one that raised it, in the order of commit, of the rules and of
//! nothing else; so whoever has them gets it again, byte for byte. The stream itself says which rules are in force: the record
//! `rules.load` names their digest, `rule.off` and `rule.on` switch one in a workspace, dispositions suppress. What is usual is
//! learned under any rules; what correlations remember begins with the record that loads them. Records that tell of alarms raise
//! none.

use std::collections::BTreeMap;

use custody::{
    batch::Header,
    hash::sha256,
    id::WorkspaceId,
    query::Field,
    wire::{Alarm, Disposition, Extension, LedgerEvent, OpeningReason, Phase, Severity, extension, record::Kind},
};
use serde::{Deserialize, Serialize};

use super::{
    baseline::{Baselines, Detector},
    risk::Entity,
    sigma::{Refused, Rules, Sigma},
    teller::{Finds, Judged, Raised, Teller, form},
    view::View,
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
const DETECTORS_VERSION: u8 = 2;
/// Servers whose labels are known: a hundred bytes each.
const LABELLED_MAX: usize = 20_000;
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
    teller: Teller,
    /// Labels of servers, by workspace and server.
    labels: Vec<([u8; 16], String, Vec<String>)>,
}

/// Rules and what they remember.
pub struct Engine {
    sigma: Sigma,
    digest: [u8; 32],
    /// In force whatever the records say: a backtest.
    always: bool,
    labels: BTreeMap<([u8; 16], String), Vec<String>>,
    state: State,
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
        Ok(Self { sigma, digest, always: false, labels: BTreeMap::new(), state: State::default() })
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
    pub fn take(&mut self, view: &View<'_>, header: Option<&Header>) -> Vec<Alarm> {
        let finds = self.find(view, header);
        if finds.is_empty() { Vec::new() } else { self.told(view, finds) }
    }

    fn told(&mut self, view: &View<'_>, finds: Finds) -> Vec<Alarm> {
        let by = Judged { rules: self.sigma.known(), digest: &self.digest, all_on: self.always };
        self.state.teller.take(view, finds, &by)
    }

    /// What is found in a record: nothing while no rules are in force.
    pub fn find(&mut self, view: &View<'_>, header: Option<&Header>) -> Finds {
        match view.own.and_then(|record| record.kind.as_ref()) {
            Some(Kind::LedgerEvent(told)) => self.hear(told),
            Some(Kind::Alarm(_) | Kind::Disposition(_)) => return Finds::default(),
            _ => {}
        }
        self.labelled(view);
        let labels = self.labels_of(view);
        let view = &View { labels: &labels, ..*view };
        let unusual = self.state.baselines.take(view);
        if !self.state.in_force {
            return Finds::default();
        }
        let mut raised = Vec::new();
        exact(view, header, &mut raised);
        // A call that runs for long has an intent and an outcome, and counts once: when it ends.
        let begins = view.facts.call_phase().is_some_and(|(_, phase)| phase == Phase::Intent);
        let rules = if begins { Vec::new() } else { self.sigma.take(view) };
        Finds { exact: raised, rules, unusual }
    }

    /// What a batch without records raises: only its header says something.
    pub fn header(&mut self, header: &Header, received_at: u64) -> Vec<Alarm> {
        if !self.state.in_force {
            return Vec::new();
        }
        let mut raised = Vec::new();
        of_header(header, &[], &mut raised);
        self.state.teller.tell(raised, received_at, &self.digest)
    }

    /// Alarms that were too many for one record, since this was asked last.
    pub fn dropped(&mut self) -> u64 {
        self.state.teller.dropped()
    }

    /// What a second batch under one number raises: it is no record, and has no position.
    pub fn equivocation(&mut self, header: &Header, received_at: u64) -> Vec<Alarm> {
        if !self.state.in_force {
            return Vec::new();
        }
        let entity = Entity::new(header.workspace, Field::Gateway, &header.gateway.to_string());
        let raised = exactly("equivocation", entity, Vec::new(), vec![("batch".to_owned(), header.batch_number)]);
        self.state.teller.tell(raised.into_iter().collect(), received_at, &self.digest)
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
        self.state.teller.disposition(disposition, of);
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
                self.state.teller.begin();
            }
            RULE_OFF | RULE_ON => self.state.teller.switch(told),
            _ => {}
        }
    }

    fn labelled(&mut self, view: &View<'_>) {
        let action = view.text(Field::Action);
        if view.text(Field::Kind) != Some("access_change")
            || !matches!(action, Some("server_changed" | "server_removed"))
        {
            return;
        }
        let Some(server) = view.text(Field::Server) else { return };
        let labels: Vec<String> = view.facts.texts(Field::Label).map(str::to_owned).collect();
        let key = (view.place.workspace.0, server.to_owned());
        if labels.is_empty() || (self.labels.len() >= LABELLED_MAX && !self.labels.contains_key(&key)) {
            self.labels.remove(&key);
        } else {
            self.labels.insert(key, labels);
        }
    }

    fn labels_of(&self, view: &View<'_>) -> Vec<String> {
        if self.labels.is_empty() || view.text(Field::Kind) == Some("access_change") {
            return Vec::new();
        }
        let Some(server) = view.text(Field::Server) else { return Vec::new() };
        self.labels.get(&(view.place.workspace.0, server.to_owned())).cloned().unwrap_or_default()
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
fn exact(view: &View<'_>, header: Option<&Header>, raised: &mut Vec<Raised>) {
    let (place, at) = (view.place, view.place.received_at);
    let gateway = || Entity::new(place.workspace, Field::Gateway, &place.gateway.to_string());
    if let Some(header) = header {
        of_header(header, &[place.position], raised);
    }
    let ahead = view.facts.number(Field::At).unwrap_or(0).saturating_sub(at);
    if ahead > AHEAD_US && view.own.is_none() {
        raised.extend(exactly("clock-ahead", gateway(), vec![place.position], vec![("ahead_us".to_owned(), ahead)]));
    }
    if let Some(Kind::LedgerEvent(told)) = view.own.and_then(|record| record.kind.as_ref())
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
