//! What is usual, of members and of tools, and what is not: detectors that compare a call with what was before it.
//!
//! What must hold: a finding follows from the records before it in their order, and from nothing else; all numbers are whole, so that
//! a replay gives the same on every machine; time is when the ledger received a record; what is remembered has a bound in entries,
//! and those that were not touched for longest are let go first. Nothing is found in a workspace's first week: it is learning.

use std::collections::HashMap;

use custody::{hash::sha256, id::WorkspaceId, query::Field};
use serde::{Deserialize, Serialize};

use super::view::View;

mod profile;

use profile::{Profile, ToolSeen, Use};

const MINUTE_US: u64 = 60_000_000;
const HOUR_US: u64 = 60 * MINUTE_US;
const DAY_US: u64 = 24 * HOUR_US;
/// How long a workspace is watched before anything in it is unusual.
const LEARNING_US: u64 = 7 * DAY_US;
/// Members with a profile: half a kilobyte each.
const PROFILES_MAX: usize = 50_000;
/// Tools: a third of a kilobyte each.
const TOOLS_MAX: usize = 20_000;
/// Pairs of a member and a tool, or an agent and a server: a hundred bytes each.
const PAIRS_MAX: usize = 500_000;

/// Tells an entity of a workspace from any other: the beginning of a hash.
type Key = (u64, u64);

/// Detectors that have a name of their own, with the points that each gives an entity: 100 make an incident.
macro_rules! detectors {
    ($($(#[doc = $doc:literal])+ $detector:ident = $name:literal;)*) => {
        /// What is not usual.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Detector {
            $($(#[doc = $doc])+ $detector,)*
        }

        impl Detector {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$detector,)*];

            /// Its name, as in alarms and switches.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$detector => $name,)*
                }
            }

            /// What it is, in a sentence.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$detector => concat!($($doc),+).trim_ascii_start(),)*
                }
            }
        }
    };
}

detectors! {
    /// A member uses a tool for the first time; more so one that nobody of the workspace used for a month.
    FirstTool = "first-tool";
    /// An agent asks a server for the first time.
    FirstServer = "first-server";
    /// A server that nobody of the workspace knows.
    NewServer = "new-server";
    /// A member is refused more often in a day than usual.
    Refusals = "refusals";
    /// A tool that was refused to a member's agent several times is allowed to another of the same member.
    RefusedThenAllowed = "refused-then-allowed";
    /// More calls in an hour than this hour of the week has seen.
    Rate = "rate";
    /// The same tool with a request of the same length, again and again.
    Loop = "loop";
    /// More calls in a day that take away than usual.
    Destructive = "destructive";
    /// Calls in an hour of the week in which this member never works.
    OffHours = "off-hours";
    /// An established member is active through a gateway for the first time.
    FirstGateway = "first-gateway";
    /// A member is active through two gateways at a time, one of them for the first time.
    TwoGateways = "two-gateways";
    /// A member is active after two weeks of silence.
    Dormant = "dormant";
    /// A request far longer than any of this member or tool.
    BigRequest = "big-request";
    /// An answer far longer than any of this member or tool.
    BigResponse = "big-response";
    /// A tool becomes slow, or fails, for a member for whom it did not.
    Shift = "shift";
}

impl Detector {
    /// It ships switched off: it did not prove itself (docs/DETECTION.md), and a workspace that wants it switches it on.
    pub fn ships_off(self) -> bool {
        matches!(self, Self::Rate)
    }
}

/// What was found in one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusual {
    /// By which detector.
    pub detector: Detector,
    /// How much it counts: 100 make an incident.
    pub points: u32,
    /// Whom it is about.
    pub about: (Field, String),
}

/// What was seen so far.
#[derive(Default, Serialize, Deserialize)]
pub struct Baselines {
    /// When a workspace's first record came.
    began: HashMap<Key, u64>,
    profiles: HashMap<Key, Profile>,
    tools: HashMap<Key, ToolSeen>,
    uses: HashMap<Key, Use>,
    /// When an agent last asked a server, or a workspace last heard of one.
    pairs: HashMap<Key, u64>,
}

fn key<const PARTS: usize>(kind: u8, workspace: WorkspaceId, parts: [&str; PARTS]) -> Key {
    // Ten of these for each call: nothing of it may be on the heap.
    let lengths = parts.map(|part| (part.len() as u64).to_be_bytes());
    let parts = parts.map(str::as_bytes);
    let hash = sha256(&[
        &[kind],
        &workspace.0,
        lengths.as_flattened(),
        parts.first().copied().unwrap_or_default(),
        parts.get(1).copied().unwrap_or_default(),
    ]);
    let number =
        |from: usize| hash.iter().skip(from).take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (number(0), number(8))
}

/// Past the bound, lets those go that were not touched for longest, so many that nine tenths of it are left.
fn bound<T>(map: &mut HashMap<Key, T>, most: usize, touched: impl Fn(&T) -> u64) {
    if map.len() <= most {
        return;
    }
    let mut all: Vec<(u64, Key)> = map.iter().map(|(key, value)| (touched(value), *key)).collect();
    all.sort_unstable();
    let left = most - most / 10;
    for (_, key) in all.into_iter().rev().skip(left) {
        map.remove(&key);
    }
}

/// Whether a tool takes something away, by its name: declared hints are the server's word.
pub fn takes_away(tool: &str) -> bool {
    let name = tool.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let verbs = ["delete", "drop", "remove", "destroy", "purge", "truncate", "terminate", "revoke", "wipe", "erase"];
    name.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| verbs.contains(&word))
}

/// One call in the terms of the detectors.
struct Seen<'a> {
    workspace: WorkspaceId,
    at: u64,
    learning: bool,
    member: &'a str,
    agent: &'a str,
    gateway: Key,
    server: &'a str,
    tool: &'a str,
    denied: bool,
    failed: bool,
    request: u64,
    response: u64,
    duration: u64,
}

impl Baselines {
    /// What is not usual about a record, which is usual from now on.
    pub fn take(&mut self, view: &View<'_>) -> Vec<Unusual> {
        let (workspace, at) = (view.place.workspace, view.place.received_at);
        let began = *self.began.entry(key(0, workspace, [])).or_insert(at);
        let learning = at < began.saturating_add(LEARNING_US);
        let mut found = Vec::new();
        let server = view.text(Field::Server).unwrap_or_default();
        let is_definition = view.text(Field::Kind) == Some("tool_definition");
        if is_definition || view.is_counted_call() {
            self.server(workspace, server, (at, learning), &mut found);
        }
        if let Some(seen) = of_call(view, learning) {
            self.call(&seen, &mut found);
        }
        self.forget();
        found
    }

    fn server(&mut self, workspace: WorkspaceId, server: &str, (at, learning): (u64, bool), found: &mut Vec<Unusual>) {
        if server.is_empty() {
            return;
        }
        if self.pairs.insert(key(1, workspace, [server]), at).is_none() && !learning {
            found.push(Unusual {
                detector: Detector::NewServer,
                points: 100,
                about: (Field::Server, server.to_owned()),
            });
        }
    }

    fn call(&mut self, seen: &Seen<'_>, found: &mut Vec<Unusual>) {
        let mut member = |detector: Detector, points: u32| {
            if points > 0 && !seen.learning {
                found.push(Unusual { detector, points, about: (Field::Member, seen.member.to_owned()) });
            }
        };
        let profile =
            self.profiles.entry(key(2, seen.workspace, [seen.member])).or_insert_with(|| Profile::new(seen.at));
        let young = profile.age(seen.at) < 3 * DAY_US;
        let tool = self.tools.entry(key(3, seen.workspace, [seen.tool])).or_default();
        let used = self.uses.entry(key(4, seen.workspace, [seen.member, seen.tool])).or_default();
        // Of who is new everything is new; and what was refused was not used.
        let tries = if young || seen.denied { 0 } else { 1 };
        if used.calls == 0 {
            let alone = tool.last == 0 || seen.at.saturating_sub(tool.last) > 30 * DAY_US;
            member(Detector::FirstTool, tries * if alone { 20 } else { 8 });
        }
        if self.pairs.insert(key(5, seen.workspace, [seen.agent, seen.server]), seen.at).is_none() {
            member(Detector::FirstServer, tries * 10);
        }
        let (slow, big_request, big_response) = tool.compare(seen.duration, seen.request, seen.response);
        profile.take(seen, &mut member);
        used.take(seen, (big_request, big_response), &mut member);
        if used.shifts(slow, seen.failed, tool) && !seen.learning {
            found.push(Unusual { detector: Detector::Shift, points: 100, about: (Field::Tool, seen.tool.to_owned()) });
        }
        tool.take(seen);
    }

    fn forget(&mut self) {
        bound(&mut self.profiles, PROFILES_MAX, Profile::touched);
        bound(&mut self.tools, TOOLS_MAX, |tool| tool.last);
        bound(&mut self.uses, PAIRS_MAX, |used| used.last);
        bound(&mut self.pairs, PAIRS_MAX, |at| *at);
        bound(&mut self.began, PROFILES_MAX, |at| *at);
    }
}

fn of_call<'a>(view: &View<'a>, learning: bool) -> Option<Seen<'a>> {
    if !view.is_counted_call() {
        return None;
    }
    let workspace = view.place.workspace;
    Some(Seen {
        workspace,
        at: view.place.received_at,
        learning,
        member: view.text(Field::Member)?,
        agent: view.text(Field::Agent).unwrap_or_default(),
        gateway: key(6, workspace, [view.text(Field::Gateway).unwrap_or_default()]),
        server: view.text(Field::Server)?,
        tool: view.text(Field::Tool)?,
        denied: view.text(Field::Decision) == Some("denied"),
        failed: !matches!(
            view.text(Field::Outcome),
            Some("ok" | "denied" | "cancelled" | "input_required" | "deferred")
        ),
        request: view.facts.number(Field::RequestBytes).unwrap_or(0),
        response: view.facts.number(Field::ResponseBytes).unwrap_or(0),
        duration: view.facts.number(Field::Duration).unwrap_or(0),
    })
}
