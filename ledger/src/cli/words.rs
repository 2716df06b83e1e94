//! A statement in words, for whoever is about to sign it.
//!
//! What must hold: every field of every action is said, and none of it can be mistaken for something else; a test walks all
//! actions.

use custody::{
    hash::key_id,
    id::{KeyId, hex},
    key::PublicKey,
    wire::{self, Role, statement::Action},
};

use crate::clock;

/// The role in words.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "no role",
        Role::Root => "root",
        Role::Registrar => "registrar",
        Role::Gateway => "gateway",
        Role::Receipt => "receipt signer",
        Role::Record => "the ledger's record key",
        Role::Head => "the ledger's head key",
        Role::Log => "the ledger's log key",
    }
}

fn public(of: Role, bytes: &[u8]) -> String {
    let id = <[u8; 32]>::try_from(bytes).map(|key| key_id(of as u32, &key));
    let weak = if PublicKey::new(bytes).is_some() { "" } else { " (a weak key, which every verifier refuses)" };
    id.map_or_else(|_| "no key".to_owned(), |id: KeyId| format!("{}{weak}\n  key id:      {id}", hex(bytes)))
}

/// What it says, one thing a line.
pub(super) fn statement(said: &wire::Statement) -> String {
    let mut lines = vec![
        format!("statement {} of {}", said.serial, chain(said)),
        format!("  log:         {}", said.origin),
        format!("  says:        {}", action(said)),
        format!("  signed by:   {}", signer(said)),
        format!("  issued at:   {}", clock::display(said.issued_at)),
        format!("  after:       {}", hex(&said.previous)),
        format!("  checkpoint:  {} entries, {}", said.checkpoint_size, hex(&said.checkpoint_hash)),
    ];
    if !said.reason.is_empty() {
        lines.push(format!("  reason:      {}", said.reason));
    }
    if !said.ticket.is_empty() {
        lines.push(format!("  ticket:      {}", said.ticket));
    }
    lines.join("\n")
}

fn chain(said: &wire::Statement) -> String {
    match &said.workspace {
        Some(id) => format!("workspace {}", hex(id)),
        None => "the ledger's own keys".to_owned(),
    }
}

fn signer(said: &wire::Statement) -> String {
    match &said.registrar {
        Some(id) => format!("registrar {}, delegated in root era {}", hex(id), said.era),
        None => format!("the root of era {}", said.era),
    }
}

fn action(said: &wire::Statement) -> String {
    let Some(action) = &said.action else { return "nothing".to_owned() };
    match action {
        Action::Create(create) => format!("create the workspace named {}", create.name),
        Action::Remove(_) => "remove the workspace: it takes no more batches, and nothing is deleted".to_owned(),
        Action::Delegate(delegate) => format!(
            "make a registrar who may enrol {} keys, ever\n  its key:     {}",
            delegate.enrolments_max,
            public(Role::Registrar, &delegate.public_key)
        ),
        Action::Enrol(enrol) => enrolment(enrol),
        Action::Retire(retire) => format!("retire key {}: it opens no new epoch", hex(&retire.key_id)),
        Action::Revoke(revoke) => {
            let mut text = format!("revoke key {}: nothing more from it counts", hex(&revoke.key_id));
            if !revoke.void_serials.is_empty() {
                let serials: Vec<String> = revoke.void_serials.iter().map(u64::to_string).collect();
                text.push_str(&format!("\n  and void:    what it enrolled in statements {}", serials.join(", ")));
            }
            text
        }
        Action::Suspect(suspect) => {
            let unit = if said.workspace.is_some() { "position" } else { "log index" };
            format!("doubt key {}: what it signed from {unit} {} on", hex(&suspect.key_id), suspect.since)
        }
        Action::Hold(hold) => {
            let until =
                hold.until.map_or_else(|| "without end".to_owned(), |until| format!("until {}", clock::display(until)));
            format!("hold {}: keep what was received from {} on, {until}", hex(&hold.hold), clock::display(hold.since))
        }
        Action::Release(release) => format!("release hold {}", hex(&release.hold)),
        Action::SucceedRoot(succeed) => format!(
            "hand over to the next root\n  its key:     {}\n  whose successor has the hash {}",
            public(Role::Root, &succeed.public_key),
            hex(&succeed.successor_hash)
        ),
        Action::Incarnation(incarnation) => format!(
            "begin incarnation {} after a loss\n  continues:   a log of {} entries with root {}\n  last seals:  {}",
            incarnation.number,
            incarnation.log_size,
            hex(&incarnation.log_root),
            hex(&incarnation.last_seals_hash)
        ),
    }
}

fn enrolment(enrol: &wire::Enrol) -> String {
    let mut text = format!("enrol a key as {}", role(enrol.role()));
    if !enrol.name.is_empty() {
        text.push_str(&format!(", named {}", enrol.name));
    }
    if let Some(gateway) = &enrol.gateway {
        text.push_str(&format!("\n  gateway id:  {}", hex(gateway)));
    }
    text.push_str(&format!("\n  its key:     {}", public(enrol.role(), &enrol.public_key)));
    let proof = if enrol.possession.is_some() { "its holder signed for it" } else { "none" };
    text.push_str(&format!("\n  possession:  {proof}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(action: Action) -> String {
        statement(&wire::Statement {
            origin: "example.org/custody".to_owned(),
            workspace: Some(vec![1; 16].into()),
            serial: 4,
            era: 2,
            reason: "because".to_owned(),
            ticket: "T-1".to_owned(),
            issued_at: 1_000_000,
            action: Some(action),
            ..Default::default()
        })
    }

    #[test]
    fn every_action_is_said_with_all_its_fields() {
        let key = bytes::Bytes::from(vec![0xab; 32]);
        let id = || key.clone();
        let hold = bytes::Bytes::from(vec![0xcd; 16]);
        let cases: Vec<(Action, Vec<&str>)> = vec![
            (Action::Create(wire::Create { name: "payments".to_owned() }), vec!["create", "payments"]),
            (Action::Remove(wire::Remove {}), vec!["remove", "nothing is deleted"]),
            (
                Action::Delegate(wire::Delegate { public_key: id(), enrolments_max: 17, ..Default::default() }),
                vec!["registrar", "17", "abab"],
            ),
            (
                Action::Enrol(wire::Enrol {
                    role: Role::Gateway as i32,
                    public_key: id(),
                    gateway: Some(hold.clone()),
                    name: "gw".to_owned(),
                    possession: None,
                }),
                vec!["enrol", "gateway", "named gw", "cdcd", "abab", "possession:  none"],
            ),
            (Action::Retire(wire::Retire { key_id: id() }), vec!["retire", "abab"]),
            (
                Action::Revoke(wire::Revoke { key_id: id(), void_serials: vec![3, 5] }),
                vec!["revoke", "abab", "statements 3, 5"],
            ),
            (Action::Suspect(wire::Suspect { key_id: id(), since: 99 }), vec!["doubt", "position 99"]),
            (
                Action::Hold(wire::Hold { hold: hold.clone(), since: 0, until: Some(1) }),
                vec!["cdcd", "1970-01-01T00:00:00.000000Z", "until 1970-01-01T00:00:00.000001Z"],
            ),
            (Action::Release(wire::Release { hold }), vec!["release", "cdcd"]),
            (
                Action::SucceedRoot(wire::SucceedRoot { public_key: id(), successor_hash: vec![0xef; 32].into() }),
                vec!["next root", "abab", "efef"],
            ),
            (
                Action::Incarnation(wire::Incarnation {
                    number: 2,
                    log_size: 44,
                    log_root: id(),
                    last_seals_hash: vec![0xef; 32].into(),
                }),
                vec!["incarnation 2", "44 entries", "abab", "efef"],
            ),
        ];
        for (action, parts) in cases {
            let text = said(action);
            let common = ["statement 4 of workspace 0101", "example.org/custody", "root of era 2", "because", "T-1"];
            for part in parts.into_iter().chain(common) {
                assert!(text.contains(part), "{part:?} is not in\n{text}");
            }
        }
    }
}
