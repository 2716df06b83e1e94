//! What verbs did, so that a text which lacks it is found, wherever it comes from: an old version out of a repository lacks it
//! as well as a file that was left alone.
//!
//! What must hold: each part that a verb changed is here, as the verb left it, until a policy is applied over it by whoever saw
//! what is in force; a text that has all of it is not refused, in whatever order it has the rest, as long as no rule that a verb
//! made would come behind one that decides otherwise: the first that fits decides.

use std::collections::{BTreeMap, HashMap};

use custody::{
    hash::sha256,
    id::{MemberId, hex},
};
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::super::{
    plan::wire_rule,
    policy::{DAY_US, Policy, Rule, TOKEN_DAYS_MAX},
};

/// So many parts are named in a refusal; a person reads it.
const NAMED_MAX: usize = 8;

/// How a verb left a part of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Left {
    /// It is not there, or may do nothing any more.
    Gone,
    /// It is there.
    There,
    /// A token that ends then, microseconds since the Unix epoch.
    Ends(u64),
    /// A rule of this digest.
    Rule(String),
}

/// What verbs did, by the part's name, as people read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Since(BTreeMap<String, Left>);

impl Since {
    /// A verb made the one into the other.
    pub(super) fn verb(&mut self, old: &Policy, new: &Policy) {
        let (old, new) = (parts(old), parts(new));
        let left = new.iter().filter(|(part, left)| old.get(*part) != Some(left));
        self.0.extend(left.map(|(part, left)| (part.clone(), left.clone())));
        let gone = old.into_keys().filter(|part| !new.contains_key(part));
        self.0.extend(gone.map(|part| (part, Left::Gone)));
    }

    /// A policy was applied: whoever did that saw what of these it lacks. No token of any text is good any more so long after
    /// the end of the one that a verb left.
    pub(super) fn applied(&mut self, policy: &Policy, now_us: u64) {
        let has = parts(policy);
        self.0.retain(|part, left| {
            let is_old = matches!(left, Left::Ends(at) if at.saturating_add(TOKEN_DAYS_MAX * DAY_US) < now_us);
            !is_old && !lacks(&has, part, left)
        });
    }

    /// What of it a policy lacks that would take the place of what is in force: a part each, and so much as people read.
    pub(super) fn lacking(&self, in_force: &Policy, policy: &Policy) -> Option<String> {
        let has = parts(policy);
        let lacking = self.0.iter().filter(|(part, left)| lacks(&has, part, left)).map(words);
        let all: Vec<String> = lacking.chain(self.overruled(in_force, policy)).collect();
        let more = all.len().saturating_sub(NAMED_MAX);
        let named = all[..all.len() - more].join(", ");
        match (all.len(), more) {
            (0, _) => None,
            (_, 0) => Some(named),
            _ => Some(format!("{named} and {more} more")),
        }
    }
}

impl Since {
    /// Rules that a verb made and that would stand behind one that decides otherwise and does not stand before them in force: a
    /// line each. Who or what both are about is not looked at: whoever moves them knows, and says so with `--over`.
    fn overruled(&self, in_force: &Policy, policy: &Policy) -> Vec<String> {
        let known: HashMap<&str, (usize, &Rule)> =
            in_force.rules.iter().enumerate().map(|(place, rule)| (&*rule.id, (place, rule))).collect();
        // Of those that were passed, by whether they allow: the one that is last in force.
        let mut last: [Option<(usize, &str)>; 2] = [None; 2];
        let mut overruled = Vec::new();
        for rule in policy.rules.iter().filter(|rule| !rule.organisation) {
            let known = known.get(&*rule.id);
            let by_verb = self.0.get(&part_of(rule)).is_some_and(|left| matches!(left, Left::Rule(_)));
            if let (Some((place, _)), Some((other, id))) = (known, last[usize::from(!rule.allow)])
                && by_verb
                && other > *place
            {
                overruled.push(format!("rule {} (made to stand before rule {id}, which would come first)", rule.id));
            }
            let place = match known {
                // One that allows more than it did is as good as new.
                Some((place, known)) if !rule.allow || *known == rule => Some(*place),
                // What is denied besides undoes nothing that a verb denied, and is meant where a verb allowed it.
                None if !rule.allow => None,
                _ => Some(usize::MAX),
            };
            let passed = &mut last[usize::from(rule.allow)];
            *passed = (*passed).max(place.map(|place| (place, &*rule.id)));
        }
        overruled
    }
}

fn part_of(rule: &Rule) -> String {
    format!("rule {}", rule.id)
}

/// The parts of a policy that verbs change, by name. Who or what was revoked is gone.
fn parts(policy: &Policy) -> BTreeMap<String, Left> {
    let mut parts = BTreeMap::new();
    let is_active = |id: &MemberId| policy.members.get(id).is_some_and(|member| !member.revoked);
    for (id, member) in policy.members.iter().filter(|(id, _)| is_active(id)) {
        parts.insert(format!("member {id}"), Left::There);
        parts.extend(member.groups.iter().map(|group| (format!("member {id} in group {group}"), Left::There)));
    }
    for (id, token) in policy.tokens.iter().filter(|(_, token)| !token.revoked && is_active(&token.member)) {
        parts.insert(format!("token {}", hex(id)), Left::Ends(token.expires_at));
    }
    parts.extend(policy.agents.keys().map(|id| (format!("agent {id}"), Left::There)));
    for rule in policy.rules.iter().filter(|rule| !rule.organisation) {
        let digest = sha256(&[&wire_rule(rule).encode_to_vec()]);
        parts.insert(part_of(rule), Left::Rule(hex(&digest)));
    }
    parts
}

/// Whether what a verb did to a part is not in these.
fn lacks(has: &BTreeMap<String, Left>, part: &str, left: &Left) -> bool {
    // Whoever is not there is in no group, and that takes nothing back.
    let of = part.split_once(" in group ").map(|(member, _)| member);
    match (left, has.get(part)) {
        (Left::Gone, there) => there.is_some(),
        (Left::Ends(end), Some(Left::Ends(other))) => other > end,
        (_, None) if of.is_some_and(|member| !has.contains_key(member)) => false,
        (left, there) => there != Some(left),
    }
}

fn words((part, left): (&String, &Left)) -> String {
    let done = match left {
        Left::Gone => "taken away",
        Left::There => "added",
        Left::Ends(_) => "made, or given an end",
        Left::Rule(_) => "made as it is",
    };
    format!("{part} ({done})")
}

/// How to bring both together.
pub(super) fn undone_hint() -> &'static str {
    "hint: gateway-shim access show --text prints what is in force, to bring both together; access plan shows the rest"
}

/// Why a text is refused that lacks these parts of what is in force.
pub(super) fn undoes_words(lacking: &str, digest: &[u8; 32]) -> String {
    let over = hex(digest);
    format!(
        "it lacks what verbs changed since, {lacking}, and would undo that; {}; with --over {over} it is applied all the same",
        undone_hint()
    )
}
