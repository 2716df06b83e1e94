//! The files of an access policy: what people edit, what is in force, changes that are being made, and what of the past decides
//! what may be applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use custody::id::{MemberId, hex};
use serde::{Deserialize, Serialize};

use super::{
    super::{Actor, Policy, Reason, policy::Token},
    ChangeError,
    since::Since,
};
use crate::{config::Faults, durable};

/// Version of the file of changes.
const VERSION: u32 = 2;

/// Where the files of a policy are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Folder of what is in force.
    pub dir: PathBuf,
    /// The workspace's file, which people edit.
    pub workspace: PathBuf,
    /// The organisation's.
    pub organisation: Option<PathBuf>,
}

impl Paths {
    /// The workspace's policy in force.
    pub fn in_force(&self) -> PathBuf {
        self.dir.join("access.toml")
    }

    /// The organisation's policy in force.
    pub fn organisation_in_force(&self) -> PathBuf {
        self.dir.join("organisation.toml")
    }

    /// What was counted today.
    pub fn counts(&self) -> PathBuf {
        self.dir.join("access.counts.json")
    }

    /// What of the past decides what may be applied.
    pub fn kept(&self) -> PathBuf {
        self.dir.join("access.kept.json")
    }

    /// Changes that are being made.
    pub fn pending(&self) -> PathBuf {
        self.dir.join("access.change.json")
    }
}

/// The files, as the engine uses them: durable when these return.
pub(in crate::access) trait Files: Send + Sync {
    /// Its text, or none if it is not there.
    fn read(&self, path: &Path) -> io::Result<Option<String>>;
    fn replace(&self, path: &Path, text: &str) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
pub(in crate::access) struct Real;

impl Files for Real {
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    fn replace(&self, path: &Path, text: &str) -> io::Result<()> {
        // Through a link: it stays one.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        durable::replace(&path, text.as_bytes())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        durable::remove(path)
    }
}

/// The texts of a policy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Texts {
    pub(super) workspace: String,
    pub(super) organisation: Option<String>,
}

impl Texts {
    pub(super) fn parse(&self) -> Result<Policy, Faults> {
        Policy::parse(&self.workspace, self.organisation.as_deref())
    }
}

/// Changes that are being made, as they are written down, the oldest first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) version: u32,
    pub(super) changes: Vec<Pending>,
}

/// A change that is being made, as it is written down.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    /// None: the first policy of this gateway.
    pub(super) before: Option<String>,
    pub(super) to: Texts,
    pub(super) actor_member: Option<String>,
    pub(super) actor_system: Option<String>,
    /// The account that asked.
    pub(super) account: Option<u32>,
    pub(super) reason: String,
    pub(super) ticket: String,
    /// A whole policy was applied.
    pub(super) whole: bool,
    /// It takes something away: that is live before it is on record.
    pub(super) takes: bool,
    /// The workspace's file is replaced as well if its SHA-256 is this.
    pub(super) file_was: Option<String>,
    /// Tokens that others take the place of: id and end.
    pub(super) rotated: Vec<(String, Option<u64>)>,
    /// Tokens that it makes and that nobody was shown yet.
    pub(super) unseen: Vec<String>,
    /// What was asked for and is given up by this, which changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) given_up: Option<Texts>,
}

impl Pending {
    /// That of a gateway that had no policy.
    pub(super) fn first(to: Texts) -> Self {
        Self {
            before: None,
            to,
            actor_member: None,
            actor_system: Some("start".to_owned()),
            reason: "first".to_owned(),
            ticket: String::new(),
            account: None,
            whole: true,
            takes: false,
            file_was: None,
            rotated: Vec::new(),
            unseen: Vec::new(),
            given_up: None,
        }
    }

    pub(super) fn why(&self) -> Reason {
        let member = self.actor_member.as_deref().and_then(MemberId::from_hex);
        let system = || Actor::System(self.actor_system.clone().unwrap_or_else(|| "unknown".to_owned()));
        Reason {
            actor: member.map_or_else(system, Actor::Member),
            account: self.account,
            code: self.reason.clone(),
            ticket: self.ticket.clone(),
        }
    }
}

/// The changes that were written down.
pub(super) fn as_written(paths: &Paths, text: &str) -> Result<Vec<Pending>, ChangeError> {
    let written = serde_json::from_str::<Written>(text).ok().filter(|written| written.version == VERSION);
    written.map(|written| written.changes).ok_or_else(|| {
        ChangeError::Refused(format!(
            "read {}: it is no change that this version wrote; hint: start the version that did, or remove the file to stay \
             with what is in force",
            paths.pending().display()
        ))
    })
}

/// As the file has them.
pub(super) fn to_write(changes: Vec<Pending>) -> Result<String, String> {
    serde_json::to_string(&Written { version: VERSION, changes }).map_err(|error| error.to_string())
}

/// What of the past decides what may be applied: a file does not undo by accident what was done since it was written.
/// What a version before this kept besides says nothing that is asked here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// What verbs did.
    pub(super) since: Since,
    /// Tokens that were given an earlier end: that end, in microseconds since the Unix epoch.
    pub(super) ends: BTreeMap<String, u64>,
    /// Members that were there, and are not.
    pub(super) members: BTreeSet<String>,
    /// Tokens that were good, and are not.
    pub(super) tokens: BTreeSet<String>,
    /// Members whose groups the ledger's directory was not told yet.
    pub(super) regrouped: BTreeSet<String>,
}

impl Kept {
    pub(super) fn read(paths: &Paths, files: &dyn Files) -> Result<Self, ChangeError> {
        let path = paths.kept();
        let Some(text) = files.read(&path).map_err(|error| not_read(&path, &error))? else {
            return Ok(Self::default());
        };
        serde_json::from_str(&text).map_err(|_| {
            ChangeError::Refused(format!(
                "read {}: it is not what this version wrote; hint: it keeps tokens that were revoked from coming back; \
                 restore it, or remove it if none may",
                path.display()
            ))
        })
    }

    /// What is in force becomes something else.
    pub(super) fn changes(&mut self, old: &Policy, new: &Policy) {
        self.ends_change(old, new);
        let (old, new) = (ids(old), ids(new));
        self.members.extend(old.0.difference(&new.0).cloned());
        self.tokens.extend(old.1.difference(&new.1).cloned());
        self.members.retain(|id| !new.0.contains(id));
        self.tokens.retain(|id| !new.1.contains(id));
    }

    /// Ends that become earlier, and those that whoever meant it made later again.
    fn ends_change(&mut self, old: &Policy, new: &Policy) {
        for (id, token) in &new.tokens {
            let Some(before) = old.tokens.get(id) else { continue };
            if token.expires_at < before.expires_at {
                self.ends.insert(hex(id), token.expires_at);
            } else if token.expires_at > before.expires_at {
                self.ends.remove(&hex(id));
            }
        }
    }

    /// Whose groups become others.
    pub(super) fn tell_groups(&mut self, old: &Policy, new: &Policy) {
        let of = |policy: &Policy, id: &MemberId| {
            let member = policy.members.get(id).filter(|member| !member.revoked);
            member.map(|member| member.groups.clone()).unwrap_or_default()
        };
        // A service is nobody that the directory knows.
        let person =
            |policy: &Policy, id: &MemberId| policy.members.get(id).is_none_or(|member| member.owner.is_none());
        let all: BTreeSet<MemberId> = old.members.keys().chain(new.members.keys()).copied().collect();
        let changed = all.into_iter().filter(|id| person(new, id) && of(old, id) != of(new, id));
        self.regrouped.extend(changed.map(|id| id.to_string()));
    }

    /// What was revoked, or taken away, and would come back: a line each.
    pub(super) fn back(&self, old: &Policy, new: &Policy, now_us: u64) -> Vec<String> {
        let later = self.later(old, new, now_us);
        let ((members, tokens), new) = (ids(old), ids(new));
        let known: BTreeSet<String> = old.members.keys().map(ToString::to_string).collect();
        let issued: BTreeSet<String> = old.tokens.keys().map(|id| hex(id)).collect();
        let ended = |ended: &BTreeSet<String>, id: &String| ended.contains(id);
        let members =
            new.0.iter().filter(|id| !members.contains(*id) && (ended(&self.members, id) || known.contains(*id)));
        let tokens =
            new.1.iter().filter(|id| !tokens.contains(*id) && (ended(&self.tokens, id) || issued.contains(*id)));
        let members = members.map(|id| format!("member {id} was revoked and would come back"));
        let tokens = tokens.map(|id| format!("token {id} was revoked and would come back"));
        members.chain(tokens).chain(later).collect()
    }

    /// Tokens that would be good beyond an end that they were given, or that has passed: a line each.
    fn later(&self, old: &Policy, new: &Policy, now_us: u64) -> Vec<String> {
        let is_back = |(id, token): &(&[u8; 16], &Token)| {
            let given = self.ends.get(&hex(*id)).is_some_and(|end| token.expires_at > *end);
            let passed = old.tokens.get(*id).map(|before| before.expires_at).filter(|end| *end <= now_us);
            let is_good = !token.revoked && token.expires_at > now_us;
            is_good && (given || passed.is_some_and(|end| token.expires_at > end))
        };
        let later = new.tokens.iter().filter(is_back);
        later.map(|(id, _)| format!("token {} was given an end, and would be good beyond that", hex(id))).collect()
    }
}

/// Members who may call, and tokens that are good but for their time.
fn ids(policy: &Policy) -> (BTreeSet<String>, BTreeSet<String>) {
    let active = |id: &MemberId| policy.members.get(id).is_some_and(|member| !member.revoked);
    let members = policy.members.keys().filter(|id| active(id)).map(ToString::to_string).collect();
    let tokens = policy.tokens.iter().filter(|(_, token)| !token.revoked && active(&token.member));
    (members, tokens.map(|(id, _)| hex(id)).collect())
}

/// As `file_was` has it.
pub(super) fn digest_of(text: &str) -> String {
    hex(&custody::hash::sha256(&[text.as_bytes()]))
}

/// The files as they are now.
pub(super) fn wanted(paths: &Paths, files: &dyn Files) -> Result<Texts, ChangeError> {
    let organisation = paths.organisation.as_deref().map(|path| there(files, path));
    Ok(Texts { workspace: there(files, &paths.workspace)?, organisation: organisation.transpose()? })
}

pub(super) fn there(files: &dyn Files, path: &Path) -> Result<String, ChangeError> {
    let text = files.read(path).map_err(|error| not_read(path, &error))?;
    text.ok_or_else(|| {
        ChangeError::Refused(format!("read {}: it is not there; hint: gateway-shim init writes one", path.display()))
    })
}

pub(super) fn not_read(path: &Path, error: &io::Error) -> ChangeError {
    ChangeError::Refused(format!("read {}: {error}; hint: who may read it?", path.display()))
}
