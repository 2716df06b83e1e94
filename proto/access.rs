//! Who may call what: patterns, the order of rules, and what is decided (FORMAT.md, 5.6).
//!
//! What must hold: a gateway decides exactly as this does, however it is quick about it; so whoever has the records of an
//! access policy can say what was allowed at any time, and hold each call against it.

use crate::{
    hash::sha256,
    id::MemberId,
    wire::{AccessRule, Decision},
};

mod history;
mod state;

pub use history::{Change, History, Recorded, count_until, in_force};
pub use state::{Holder, Member, State};

/// Reserved name of the rule that denies what no rule is about.
pub const DEFAULT_DENY: &str = "shim/default-deny";
/// Reserved name of the rule that allows requests of a session to whoever may call anything at that server.
pub const SESSION: &str = "shim/session";

/// Label of a member for whom an identity provider's word is taken instead of a token.
pub const IDENTITY_PROVIDER: &str = "identity-provider";

/// Requests that a session is made of, and lists of what there is. They name nothing that could be called.
pub const SESSION_METHODS: [&str; 11] = [
    "initialize",
    "logging/setLevel",
    "ping",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "resources/unsubscribe",
    "server/discover",
    "subscriptions/listen",
    "tasks/list",
    "tools/list",
];

/// Digest of an access policy: SHA-256 of the workspace's text, or, with the organisation's above it, SHA-256 of the two
/// SHA-256s, the organisation's first.
pub fn policy_digest(workspace: &[u8], organisation: Option<&[u8]>) -> [u8; 32] {
    let own = sha256(&[workspace]);
    organisation.map_or(own, |above| sha256(&[&sha256(&[above]), &own]))
}

/// Whether a pattern fits all of `text`: each `*` stands for any bytes, also none; all else for itself.
pub fn fits(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Behind the last star: what follows it in the pattern, and from where on in the text that is being tried.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, text) {
            ([b'*', after @ ..], _) => {
                again = Some((after, text));
                pattern = after;
            }
            ([wanted, after @ ..], [byte, rest @ ..]) if wanted == byte => (pattern, text) = (after, rest),
            ([], []) => return true,
            _ => match again {
                Some((after, [_, rest @ ..])) => {
                    again = Some((after, rest));
                    (pattern, text) = (after, rest);
                }
                _ => return false,
            },
        }
    }
}

/// The two halves of a `server/tool` pattern, apart at the first `/`. Without one it stands for all that a server has.
pub fn halves(pattern: &str) -> (&str, &str) {
    pattern.split_once('/').unwrap_or((pattern, "*"))
}

/// Whether a `server/tool` pattern fits. A request that names nothing is as one that names the empty text.
pub fn fits_tool(pattern: &str, server: &str, name: Option<&str>) -> bool {
    let (of_server, of_name) = halves(pattern);
    fits(of_server, server) && fits(of_name, name.unwrap_or_default())
}

/// The rules of a policy, in the order of evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(pub Vec<AccessRule>);

impl Rules {
    /// What is decided of a request of this member, who is in these groups, and the name of the rule that decides.
    pub fn decide(
        &self,
        member: &MemberId,
        groups: &[String],
        server: &str,
        name: Option<&str>,
        method: &str,
    ) -> (Decision, &str) {
        let first = self.0.iter().find(|rule| {
            is_of(rule, member, groups)
                && rule.tools.iter().any(|tool| fits_tool(tool, server, name))
                && methods(rule).any(|pattern| fits(pattern, method))
        });
        match first {
            Some(rule) => (rule.effect(), &rule.id),
            None if SESSION_METHODS.contains(&method) && self.may_reach(member, groups, server) => {
                (Decision::Allowed, SESSION)
            }
            None => (Decision::Denied, DEFAULT_DENY),
        }
    }

    /// Whether a rule allows this member anything at a server that no rule before it takes away whole.
    pub fn may_reach(&self, member: &MemberId, groups: &[String], server: &str) -> bool {
        let mut denied = Vec::new();
        for rule in self.0.iter().filter(|rule| is_of(rule, member, groups)) {
            let mut there = rule.tools.iter().map(|tool| halves(tool)).filter(|(of_server, _)| fits(of_server, server));
            let reaches = match rule.effect() {
                Decision::Allowed => {
                    there.next().is_some() && methods(rule).any(|it| !denied.contains(&"*") && !denied.contains(&it))
                }
                _ if there.any(|(_, of_name)| of_name == "*") => {
                    denied.extend(methods(rule));
                    false
                }
                _ => false,
            };
            if reaches {
                return true;
            }
        }
        false
    }
}

/// Whether a rule or a limit is of this member, who is in these groups.
pub fn is_of(rule: &AccessRule, member: &MemberId, groups: &[String]) -> bool {
    let everyone = rule.members.is_empty() && rule.groups.is_empty();
    everyone
        || rule.members.iter().any(|id| id.as_ref() == member.as_ref())
        || rule.groups.iter().any(|group| groups.contains(group))
}

/// A rule's patterns of methods.
fn methods(rule: &AccessRule) -> impl Iterator<Item = &str> {
    let default = rule.methods.is_empty().then_some("tools/call");
    rule.methods.iter().map(String::as_str).chain(default)
}

#[cfg(test)]
mod tests;
