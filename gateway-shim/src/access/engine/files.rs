//! The files of an access policy: what people edit, what is in force, and a change that is being made.

use std::{
    io,
    path::{Path, PathBuf},
};

use custody::id::MemberId;
use serde::{Deserialize, Serialize};

use super::{
    super::{Actor, Policy, Reason},
    ChangeError,
};
use crate::{config::Faults, durable};

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

    /// A change that is being made.
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

/// A change that is being made, as it is written down.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) version: u32,
    /// None: the first policy of this gateway.
    pub(super) before: Option<String>,
    pub(super) to: Texts,
    pub(super) actor_member: Option<String>,
    pub(super) actor_system: Option<String>,
    pub(super) reason: String,
    pub(super) ticket: String,
    /// A whole policy was applied.
    pub(super) whole: bool,
    /// The workspace's file is replaced as well.
    pub(super) file_too: bool,
    /// Tokens that others take the place of: id and end.
    pub(super) rotated: Vec<(String, Option<u64>)>,
}

impl Pending {
    /// That of a gateway that had no policy.
    pub(super) fn first(to: Texts) -> Self {
        Self {
            version: 1,
            before: None,
            to,
            actor_member: None,
            actor_system: Some("start".to_owned()),
            reason: "first".to_owned(),
            ticket: String::new(),
            whole: true,
            file_too: false,
            rotated: Vec::new(),
        }
    }

    pub(super) fn why(&self) -> Reason {
        let member = self.actor_member.as_deref().and_then(MemberId::from_hex);
        let system = || Actor::System(self.actor_system.clone().unwrap_or_else(|| "unknown".to_owned()));
        Reason {
            actor: member.map_or_else(system, Actor::Member),
            code: self.reason.clone(),
            ticket: self.ticket.clone(),
        }
    }
}

/// A change that was written down.
pub(super) fn as_written(paths: &Paths, text: &str) -> Result<Pending, ChangeError> {
    let pending = serde_json::from_str::<Pending>(text).ok().filter(|pending| pending.version == 1);
    pending.ok_or_else(|| {
        ChangeError::Refused(format!(
            "read {}: it is no change that this version wrote; hint: start the version that did, or remove the file to stay \
             with what is in force",
            paths.pending().display()
        ))
    })
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
