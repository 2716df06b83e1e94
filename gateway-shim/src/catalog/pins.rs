//! The tools of each server as they were when somebody last took note of them, and what is different now. Pure.
//!
//! What must hold: a tool's definition is in force only as it was first seen, as it was accepted, or, where the policy only
//! warns, as it was last seen; each change of that is one [`Change`], from which a record is made before the pins that tell of
//! it are kept; of a name that is no token only digests are kept. What one asks for may legitimately be listed to nobody else
//! (its credential, what its client can do): a tool has gone when a [`View`] that listed it does not any more, and nobody is kept
//! from it while another view lists it that was seen lately: nobody holds a tool in force by having listed it once.

use std::{collections::BTreeMap, sync::Arc};

use custody::{
    hash::text_digest,
    id::{MemberId, hex, unhex},
    strict::is_token,
    wire::{self, DefinitionAction as Action, DefinitionChange as What, tool_definition},
};
use serde::{Deserialize, Serialize};

use super::alike;
use crate::access::{Actor, Reason, policy::OnChange};
use likeness::Likeness;

/// Tools of one server that are known, with those that are gone: four pages' worth of what any server lists.
pub const TOOLS_MAX: usize = 4_096;
/// Views of one server that are told apart; what has gone from others is not noticed. A bit each.
const VIEWS_MAX: usize = 64;
/// Hours for which a view that is not seen stands for what its server still lists. One in use is listed every few minutes; a
/// client that nobody uses at the weekend takes nothing from its tools by that.
const VIEW_HOURS_MAX: u64 = 72;
const HOUR_US: u64 = 3_600_000_000;
/// Version of the file.
const VERSION: u32 = 1;
/// Between a server and the member whose credential it is asked with: no server has it in its name.
const OF_MEMBER: char = '/';
/// What a name that is no token begins with where a token may stand: no token has it.
const DIGEST_MARK: char = '#';

type Digest = [u8; 32];

/// Of whom a list is asked so that it may be another one than that of others: the beginning of a digest.
pub type View = [u8; 8];

mod likeness;

/// What is known of one tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pin {
    /// The definition in force; none, if the tool was quarantined when it was first seen.
    pinned: Option<Digest>,
    /// Another one that the server offers, and nobody has accepted.
    offered: Option<Digest>,
    /// It is hidden, and its calls are refused.
    held: bool,
    /// It was gone while it was held: whatever it is now, only somebody's word lets it out.
    strayed: bool,
    /// The server lists it no more.
    gone: bool,
    /// The name's fold, or of a name that is no token the fold's digest.
    fold: Option<String>,
    /// The views that list it, a bit each.
    listed_in: u64,
    /// A view does not list it any more, and none has listed it since: it has gone once the others are old.
    missed: bool,
}

/// A view, and the hour since the Unix epoch in which it was seen last.
type Seen = (View, u64);

/// All servers' tools. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins(BTreeMap<String, Arc<BTreeMap<String, Pin>>>, BTreeMap<String, Vec<Seen>>);

/// Whether a tool may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// With this definition.
    InForce(Digest),
    /// Not before somebody accepts it.
    Quarantined,
    /// It was never listed, or is no more.
    Unlisted,
}

/// Something that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    key: String,
    /// What happened.
    pub what: What,
    /// What was done about it.
    pub action: Action,
    /// The definition that was in force, or offered.
    pub before: Option<Digest>,
    /// The one that the server lists.
    pub after: Option<Digest>,
    resembles: Option<String>,
    /// Who accepted it, and why.
    accepted: Option<Box<Reason>>,
}

/// As what a server's tools are pinned: it may define them otherwise for each credential that a member has of their own, so one
/// member's list says nothing of another's.
pub fn pinned_as(server: &str, credential: Option<MemberId>) -> String {
    match credential {
        Some(member) => format!("{server}{OF_MEMBER}{member}"),
        None => server.to_owned(),
    }
}

/// The server of that.
fn server_of(pinned_as: &str) -> &str {
    pinned_as.split(OF_MEMBER).next().unwrap_or_default()
}

/// More tools than are kept of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl std::fmt::Display for TooMany {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server has listed more than {TOOLS_MAX} tools")
    }
}

/// A name as it is kept: a token as it is, else a mark and its digest.
fn key(name: &str) -> String {
    match is_token(name) {
        true => name.to_owned(),
        false => format!("{DIGEST_MARK}{}", hex(&text_digest(name.as_bytes()))),
    }
}

fn fold_digest(fold: &str) -> String {
    hex(&text_digest(fold.as_bytes()))
}

/// What stands in a record for a name.
enum Named {
    Token(String),
    Digest(bytes::Bytes),
}

fn named(key: &str) -> Named {
    match key.strip_prefix(DIGEST_MARK).and_then(unhex) {
        Some(digest) => Named::Digest(digest.into()),
        None => Named::Token(key.to_owned()),
    }
}

impl Change {
    /// The record of it, of a server or what it is [`pinned_as`].
    pub fn record(&self, server: &str, at: u64) -> wire::ToolDefinition {
        let digest = |digest: Option<Digest>| digest.map(|digest| bytes::Bytes::copy_from_slice(&digest));
        wire::ToolDefinition {
            at,
            change: self.what as i32,
            action: self.action as i32,
            server: server_of(server).to_owned(),
            target: Some(match named(&self.key) {
                Named::Token(name) => tool_definition::Target::Tool(name),
                Named::Digest(digest) => tool_definition::Target::ToolDigest(digest),
            }),
            digest_before: digest(self.before),
            digest_after: digest(self.after),
            resembles: self.resembles.as_deref().map(|key| match named(key) {
                Named::Token(name) => tool_definition::Resembles::Lookalike(name),
                Named::Digest(digest) => tool_definition::Resembles::LookalikeDigest(digest),
            }),
            actor: self.accepted.as_deref().map(|why| match &why.actor {
                Actor::Member(id) => tool_definition::Actor::ActorMember((*id).into()),
                Actor::System(name) => tool_definition::Actor::ActorSystem(name.clone()),
            }),
            reason: self.accepted.as_deref().map(|why| why.code.clone()).unwrap_or_default(),
            ticket: self.accepted.as_deref().map(|why| why.ticket.clone()).unwrap_or_default(),
        }
    }

    /// For people: the tool's name, or its digest.
    pub fn tool(&self) -> &str {
        &self.key
    }
}

impl Pins {
    /// What is known of a server's tools. For a credential that has shown none yet that is what was known before there were any.
    fn of(&self, server: &str) -> Option<&Arc<BTreeMap<String, Pin>>> {
        self.0.get(server).or_else(|| self.0.get(server_of(server)))
    }

    /// The same, to go on from.
    fn begun(&self, server: &str) -> BTreeMap<String, Pin> {
        let mut pins = self.of(server).map(|pins| BTreeMap::clone(pins)).unwrap_or_default();
        if !self.0.contains_key(server) {
            // Its views are its own.
            pins.values_mut().for_each(|pin| (pin.listed_in, pin.missed) = (0, false));
        }
        pins
    }

    /// Whether this tool may be called.
    pub fn standing(&self, server: &str, tool: &str) -> Standing {
        let Some(pin) = self.of(server).and_then(|pins| pins.get(key(tool).as_str())) else {
            return Standing::Unlisted;
        };
        match pin {
            Pin { held: true, .. } => Standing::Quarantined,
            Pin { gone: false, pinned: Some(digest), .. } => Standing::InForce(*digest),
            _ => Standing::Unlisted,
        }
    }

    /// Whether any tool of this server is known.
    pub fn knows(&self, server: &str) -> bool {
        self.0.contains_key(server)
    }

    /// How many tools of a list have never been seen before.
    pub fn unseen<'a>(&self, server: &str, listed: impl Iterator<Item = &'a str>) -> usize {
        let known = self.of(server);
        listed.filter(|name| known.is_none_or(|known| !known.contains_key(&key(name)))).count()
    }

    /// Takes note of what a server lists now, in microseconds since the Unix epoch; with `whole` it lists nothing else in this
    /// view. Gives the pins from then on, and what has changed.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn observe<'a>(
        &self,
        server: &str,
        listed: impl Iterator<Item = (&'a str, Digest)>,
        whole: Option<View>,
        on_change: OnChange,
        now_us: u64,
    ) -> Result<(Self, Vec<Change>), TooMany> {
        let known = self.begun(server);
        let listed: BTreeMap<String, (&str, Digest)> =
            listed.map(|(name, digest)| (key(name), (name, digest))).collect();
        let mut pins = known.clone();
        let mut changes = Vec::new();
        let mut next = self.clone();
        let (view, fresh) = next.bits_of(server, whole, now_us / HOUR_US, &mut pins);
        let new = listed.iter().filter(|(key, _)| !known.contains_key(*key));
        for (pin, change) in self.first_seen(server, new.map(|(key, (name, digest))| (key, *name, *digest)), on_change)
        {
            pins.insert(change.key.clone(), pin);
            changes.push(change);
        }
        for (key, (_, digest)) in &listed {
            let Some(pin) = pins.get_mut(key) else { continue };
            if known.contains_key(key) {
                changes.extend(pin.seen_again(key, *digest, on_change));
            }
            pin.listed_in |= view;
            pin.missed = false;
        }
        let unlisted = pins.iter_mut().filter(|(key, _)| !listed.contains_key(*key));
        changes.extend(unlisted.filter_map(|(key, pin)| pin.vanished(key, view, fresh, on_change)));
        changes.sort_by(|one, other| one.key.cmp(&other.key));
        if pins.len() > TOOLS_MAX {
            pins.retain(|key, pin| !pin.gone || pin.held || listed.contains_key(key));
        }
        if pins.len() > TOOLS_MAX {
            return Err(TooMany);
        }
        next.0.insert(server.to_owned(), Arc::new(pins));
        Ok((next, changes))
    }

    /// The definition of a tool in quarantine that somebody would accept; none within, if its server lists it no more.
    pub fn offered(&self, server: &str, tool: &str) -> Option<Option<Digest>> {
        let name = if tool.starts_with(DIGEST_MARK) { tool.to_owned() } else { key(tool) };
        let pin = self.of(server)?.get(&name).filter(|pin| pin.held)?;
        Some(pin.offered.or(pin.pinned).filter(|_| !pin.gone))
    }

    /// Somebody has looked at a tool that is in quarantine, and lets it go on as it is now.
    pub fn accept(&self, server: &str, tool: &str, why: &Reason) -> Option<(Self, Change)> {
        let name = if tool.starts_with(DIGEST_MARK) { tool.to_owned() } else { key(tool) };
        let mut pins = self.begun(server);
        let pin = pins.get_mut(&name).filter(|pin| pin.held)?;
        let (before, after) = (pin.pinned, pin.offered.or(pin.pinned).filter(|_| !pin.gone));
        let what = match (pin.gone, pin.offered.is_some() && before.is_some()) {
            (true, _) => What::Vanished,
            (false, true) => What::Changed,
            (false, false) => What::Seen,
        };
        if !pin.gone {
            pin.pinned = pin.offered.take().or(pin.pinned);
        }
        (pin.held, pin.strayed) = (false, false);
        let (action, accepted) = (Action::Accepted, Some(Box::new(why.clone())));
        let change = Change { key: name, what, action, before, after, resembles: None, accepted };
        let mut next = self.clone();
        next.0.insert(server.to_owned(), Arc::new(pins));
        Some((next, change))
    }

    /// Tools that are in quarantine: server, name or `#` and its digest, definition in force, definition that is offered.
    pub fn quarantined(&self) -> impl Iterator<Item = (&str, &str, Option<Digest>, Option<Digest>)> {
        self.0
            .iter()
            .map(|(server, pins)| (server.as_str(), pins.as_ref()))
            .flat_map(|(server, pins)| pins.iter().map(move |(key, pin)| (server, key.as_str(), pin)))
            .filter(|(_, _, pin)| pin.held)
            .map(|(server, key, pin)| (server, key, pin.pinned, pin.offered))
    }

    /// The bit of a view, which is new or known, and those of all that were seen lately. A new one may take the place of one
    /// that was not.
    fn bits_of(&mut self, server: &str, view: Option<View>, hour: u64, pins: &mut BTreeMap<String, Pin>) -> (u64, u64) {
        if view.is_some() {
            self.1.entry(server.to_owned()).or_default();
        }
        let Some(views) = self.1.get_mut(server) else { return (0, 0) };
        let is_fresh = |seen: &Seen| hour.saturating_sub(seen.1) <= VIEW_HOURS_MAX;
        let mut bit = 0;
        if let Some(view) = view {
            let known = views.iter().position(|(known, _)| *known == view);
            let place = known.unwrap_or_else(|| {
                let old = views.iter().position(|seen| !is_fresh(seen));
                old.filter(|_| views.len() == VIEWS_MAX).unwrap_or(views.len())
            });
            if place == views.len() && place < VIEWS_MAX {
                views.push((view, hour));
            }
            if let Some(seen) = views.get_mut(place) {
                bit = 1 << place;
                if seen.0 != view {
                    pins.values_mut().for_each(|pin| pin.listed_in &= !bit);
                }
                *seen = (view, hour);
            }
        }
        let fresh = views.iter().enumerate().filter(|(_, seen)| is_fresh(seen)).map(|(place, _)| 1_u64 << place);
        (bit, fresh.fold(0, std::ops::BitOr::bitor))
    }

    /// Tools that were never seen, and which known one each looks like: one of any server, or one that is new with it and differs
    /// by nothing that people see. (One character more or less is common among the tools of one maker.)
    fn first_seen<'a>(
        &self,
        server: &str,
        new: impl Iterator<Item = (&'a String, &'a str, Digest)>,
        on_change: OnChange,
    ) -> Vec<(Pin, Change)> {
        let new: Vec<_> = new.map(|(key, name, digest)| (key, name, digest, alike::fold(name))).collect();
        if new.is_empty() {
            return Vec::new();
        }
        // What it lists with another credential are no other tools.
        let others = self.0.iter().filter(|(of, _)| of.as_str() == server || server_of(of) != server_of(server));
        let all = others.flat_map(|(of, pins)| pins.iter().map(move |(name, pin)| (of, name, pin)));
        let mut likeness = Likeness::of(all);
        for (key, _, _, fold) in &new {
            if let Some(fold) = fold {
                likeness.add_same(server, key, fold);
            }
        }
        let seen = |(key, name, digest, fold): (&String, &str, Digest, Option<String>)| {
            let resembles = fold.as_deref().and_then(|fold| likeness.find(server, key, fold));
            Self::pinned(key, name, digest, fold, resembles, on_change)
        };
        new.into_iter().map(seen).collect()
    }

    fn pinned(
        key: &str,
        name: &str,
        digest: Digest,
        fold: Option<String>,
        resembles: Option<String>,
        on_change: OnChange,
    ) -> (Pin, Change) {
        let action = match (&resembles, on_change) {
            (None, _) => Action::Pinned,
            (Some(_), OnChange::Warn) => Action::Warned,
            (Some(_), OnChange::Quarantine) => Action::Quarantined,
        };
        let held = action == Action::Quarantined;
        let pin = Pin {
            pinned: (!held).then_some(digest),
            offered: held.then_some(digest),
            held,
            strayed: false,
            gone: false,
            fold: if is_token(name) { fold } else { fold.as_deref().map(fold_digest) },
            listed_in: 0,
            missed: false,
        };
        let (key, after) = (key.to_owned(), Some(digest));
        (pin, Change { key, what: What::Seen, action, before: None, after, resembles, accepted: None })
    }

    /// Reads the file.
    ///
    /// # Errors
    /// In words, what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if file.version != VERSION {
            return Err(format!("it is of version {}, and {VERSION} is known", file.version));
        }
        let mut servers = BTreeMap::new();
        for (server, lines) in file.servers {
            let mut pins = BTreeMap::new();
            for line in lines {
                let (key, pin) = line.read().ok_or_else(|| format!("a tool of {server} is not in form"))?;
                if pins.insert(key, pin).is_some() {
                    return Err(format!("a tool of {server} stands twice"));
                }
            }
            servers.insert(server, Arc::new(pins));
        }
        let views = |(server, views): (String, Vec<String>)| {
            let hours = file.views_seen.get(&server).map_or(&[][..], Vec::as_slice).iter().copied();
            let hours = hours.chain(std::iter::repeat(0));
            let seen = views.iter().zip(hours).map(|(view, hour)| Some((View::try_from(unhex(view)?).ok()?, hour)));
            let read = seen.collect::<Option<Vec<Seen>>>().filter(|views| views.len() <= VIEWS_MAX);
            read.map(|views| (server.clone(), views)).ok_or_else(|| format!("a view of {server} is not in form"))
        };
        Ok(Self(servers, file.views.into_iter().map(views).collect::<Result<_, _>>()?))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let lines = |pins: &BTreeMap<String, Pin>| pins.iter().map(|(key, pin)| Line::of(key, pin)).collect();
        let servers = self.0.iter().map(|(server, pins)| (server.clone(), lines(pins))).collect();
        let views = self.1.iter().map(|(of, views)| (of.clone(), views.iter().map(|(view, _)| hex(view)).collect()));
        let seen = self.1.iter().map(|(of, views)| (of.clone(), views.iter().map(|(_, hour)| *hour).collect()));
        let file = File { version: VERSION, servers, views: views.collect(), views_seen: seen.collect() };
        let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

impl Pin {
    fn seen_again(&mut self, key: &str, digest: Digest, on_change: OnChange) -> Option<Change> {
        let (was_gone, known) = (std::mem::replace(&mut self.gone, false), self.offered.or(self.pinned));
        let change = |what, action, before, after| {
            Some(Change { key: key.to_owned(), what, action, before, after, resembles: None, accepted: None })
        };
        if known == Some(digest) {
            let action = if self.held { Action::Quarantined } else { Action::Pinned };
            return was_gone.then(|| change(What::Seen, action, None, known)).flatten();
        }
        let action = match on_change {
            // What nobody accepted stays hidden, whatever it is now.
            _ if self.held => Action::Quarantined,
            OnChange::Warn => Action::Warned,
            OnChange::Quarantine => Action::Quarantined,
        };
        if self.held && !self.strayed && self.pinned == Some(digest) {
            // It is again what was in force, and was there all the time.
            (self.offered, self.held) = (None, false);
            return change(What::Changed, Action::Pinned, known, self.pinned);
        }
        self.held = action == Action::Quarantined;
        match self.held {
            true => self.offered = Some(digest),
            false => self.pinned = Some(digest),
        }
        change(What::Changed, action, known, Some(digest))
    }

    /// A view does not list it. If it did, that is told, and if no fresh view does, it has gone.
    fn vanished(&mut self, key: &str, view: u64, fresh: u64, on_change: OnChange) -> Option<Change> {
        let is_new = self.listed_in & view != 0;
        self.listed_in &= !view;
        if self.gone || !(is_new || self.missed) {
            return None;
        }
        self.missed = self.listed_in & fresh != 0;
        if self.missed && !is_new {
            return None;
        }
        if !self.missed {
            self.gone = true;
            self.held |= on_change == OnChange::Quarantine;
            self.strayed = self.held;
        }
        let action = if self.held { Action::Quarantined } else { Action::Warned };
        let before = self.offered.or(self.pinned);
        let (key, what) = (key.to_owned(), What::Vanished);
        Some(Change { key, what, action, before, after: None, resembles: None, accepted: None })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    servers: BTreeMap<String, Vec<Line>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    views: BTreeMap<String, Vec<String>>,
    /// The hours in which they were seen last. One of a file from before this was kept is an old one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    views_seen: BTreeMap<String, Vec<u64>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    tool: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pinned: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offered: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    quarantined: bool,
    /// It was gone while it was in quarantine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    strayed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    vanished: bool,
    /// Of a name that is no token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fold: Option<String>,
    /// Bits of the views that list it.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    listed_in: u64,
    /// A view lists it no more, and others did when they were seen last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    missed: bool,
}

fn is_none_of_them(views: &u64) -> bool {
    *views == 0
}

impl Line {
    fn of(key: &str, pin: &Pin) -> Self {
        let digest = |digest: Option<Digest>| digest.map(|digest| hex(&digest));
        Self {
            tool: key.to_owned(),
            pinned: digest(pin.pinned),
            offered: digest(pin.offered),
            quarantined: pin.held,
            strayed: pin.strayed,
            vanished: pin.gone,
            fold: pin.fold.clone().filter(|_| key.starts_with(DIGEST_MARK)),
            listed_in: pin.listed_in,
            missed: pin.missed,
        }
    }

    fn read(self) -> Option<(String, Pin)> {
        let digest = |text: Option<String>| match text {
            None => Some(None),
            Some(text) => Digest::try_from(unhex(&text)?).ok().map(Some),
        };
        let fold = match self.tool.strip_prefix(DIGEST_MARK) {
            Some(name) => {
                unhex(name).filter(|name| name.len() == 32)?;
                self.fold
            }
            None if is_token(&self.tool) => alike::fold(&self.tool),
            None => return None,
        };
        let (pinned, offered) = (digest(self.pinned)?, digest(self.offered)?);
        pinned.or(offered)?;
        let (listed_in, missed) = (self.listed_in, self.missed);
        let (held, gone) = (self.quarantined, self.vanished);
        // A file from before this was kept shows it by these.
        let strayed = held && (self.strayed || gone || offered.is_none());
        let pin = Pin { pinned, offered, held, strayed, gone, fold, listed_in, missed };
        (pin.held || pin.offered.is_none()).then_some((self.tool, pin))
    }
}

#[cfg(test)]
mod tests;
