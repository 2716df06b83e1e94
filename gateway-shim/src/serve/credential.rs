//! How the shim says to a server who it is, or who each member is there: a secret from a file or the environment, in a header.
//!
//! What must hold: the member's own token never reaches a server; a secret is in no log, no record and no error text; one
//! member's secret goes with that member's requests alone.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderName, HeaderValue};
use custody::id::MemberId;

use crate::config::{CredentialConfig, Faults, ServerConfig};

/// How long a secret that was read is used before its file is read again: whoever changes one waits for no restart.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Members whose secret is kept in memory.
const MEMBERS_MAX: usize = 4_096;
/// Bytes of a secret: a token of an identity provider has a few thousand.
const SECRET_BYTES_MAX: usize = 16 << 10;

/// There is no secret for this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoCredential;

type Kept = HashMap<Option<MemberId>, (Instant, Result<HeaderValue, NoCredential>)>;

/// The secrets for one server.
pub(super) struct Credentials {
    header: HeaderName,
    prefix: String,
    file: Option<PathBuf>,
    fixed: Option<HeaderValue>,
    of_members: Option<PathBuf>,
    kept: Mutex<Kept>,
}

impl Credentials {
    /// What the configuration says; `None` if the server needs none.
    ///
    /// # Errors
    /// [`Faults`] when the server's own secret cannot be read.
    pub(super) fn of(name: &str, config: &ServerConfig) -> Result<Option<Self>, Faults> {
        if config.credential.is_none() && config.credentials.is_none() {
            return Ok(None);
        }
        let fault = |why: String| Faults(vec![format!("servers.{name}.credential {why}")]);
        let CredentialConfig { header, prefix, file, environment } = config.credential.clone().unwrap_or_default();
        let header = HeaderName::from_bytes(header.to_ascii_lowercase().as_bytes());
        let header = header.map_err(|_| fault("names no header".into()))?;
        let fixed = match &environment {
            Some(variable) => {
                let secret = std::env::var(variable).map_err(|_| {
                    fault(format!(
                        "needs the variable {variable}, which is not there; hint: set it where the shim starts"
                    ))
                })?;
                Some(value(&prefix, &secret).ok_or_else(|| fault(format!("{variable} holds no text for a header")))?)
            }
            None => None,
        };
        let of_members = config.credentials.clone();
        let credentials = Self { header, prefix, file, fixed, of_members, kept: Mutex::default() };
        if let Some(file) = &credentials.file {
            let cannot = || fault(format!("cannot be read from {}; hint: a file with one line", file.display()));
            credentials.read(file).map_err(|NoCredential| cannot())?;
        }
        if let Some(folder) = credentials.of_members.as_deref().filter(|folder| !folder.is_dir()) {
            let text = format!("servers.{name}.credentials: {} is no folder; hint: make it", folder.display());
            return Err(Faults(vec![text]));
        }
        Ok(Some(credentials))
    }

    /// Whether there are secrets of single members.
    pub(super) fn are_of_members(&self) -> bool {
        self.of_members.is_some()
    }

    /// The header for a request of this member.
    ///
    /// # Errors
    /// [`NoCredential`].
    pub(super) fn header(&self, member: MemberId) -> Result<(HeaderName, HeaderValue), NoCredential> {
        let own = match &self.of_members {
            Some(folder) => self.kept(Some(member), &folder.join(member.to_string())),
            None => Err(NoCredential),
        };
        let all = || match (&self.fixed, &self.file) {
            (Some(fixed), _) => Ok(fixed.clone()),
            (None, Some(file)) => self.kept(None, file),
            (None, None) => Err(NoCredential),
        };
        Ok((self.header.clone(), own.or_else(|NoCredential| all())?))
    }

    fn kept(&self, whose: Option<MemberId>, file: &Path) -> Result<HeaderValue, NoCredential> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, value)) = kept.get(&whose)
            && since.elapsed() < READ_EVERY
        {
            return value.clone();
        }
        if kept.len() >= MEMBERS_MAX {
            kept.clear();
        }
        let value = self.read(file);
        kept.insert(whose, (Instant::now(), value.clone()));
        value
    }

    fn read(&self, file: &Path) -> Result<HeaderValue, NoCredential> {
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(file).map_err(|_| NoCredential)?);
        value(&self.prefix, &text).ok_or(NoCredential)
    }
}

/// The value of the header, marked so that nothing prints it.
fn value(prefix: &str, secret: &str) -> Option<HeaderValue> {
    let secret = secret.trim();
    let fits = !secret.is_empty() && secret.len() <= SECRET_BYTES_MAX;
    let mut value = HeaderValue::from_str(&format!("{prefix}{secret}")).ok().filter(|_| fits)?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn config(text: &str) -> ServerConfig {
        toml::from_str(&format!("url = \"http://localhost/\"\n{text}")).unwrap()
    }

    #[test]
    fn each_member_has_their_own_secret_and_nobody_prints_one() {
        let dir = TempDir::new();
        let (one, other) = (MemberId([1; 16]), MemberId([2; 16]));
        let folder = dir.path().join("members");
        crate::durable::create_dir(&folder, 0o700).unwrap();
        crate::durable::replace(&folder.join(one.to_string()), b"of-one\n").unwrap();
        crate::durable::replace(&dir.path().join("all"), b"of-all").unwrap();
        let only = format!("credentials = {folder:?}\n");
        let credentials = Credentials::of("s", &config(&only)).unwrap().unwrap();
        let (header, value) = credentials.header(one).unwrap();
        assert_eq!((header.as_str(), value.as_bytes()), ("authorization", &b"Bearer of-one"[..]));
        assert!(!format!("{value:?}").contains("of-one"));
        assert_eq!(credentials.header(other).err(), Some(NoCredential));
        let key = dir.path().join("all");
        let both = format!("{only}credential = {{ header = \"X-Api-Key\", prefix = \"\", file = {key:?} }}\n");
        let credentials = Credentials::of("s", &config(&both)).unwrap().unwrap();
        assert_eq!(credentials.header(one).unwrap().1, "of-one");
        let (header, value) = credentials.header(other).unwrap();
        assert_eq!((header.as_str(), value.as_bytes()), ("x-api-key", &b"of-all"[..]));
    }

    #[test]
    fn a_secret_that_is_not_there_is_a_fault_without_a_secret() {
        let missing = config("credential = { environment = \"CUSTODY_NO_SUCH_VARIABLE\" }\n");
        let fault = Credentials::of("s", &missing).err().unwrap().to_string();
        assert!(fault.contains("CUSTODY_NO_SUCH_VARIABLE") && fault.contains("hint: "), "{fault}");
        let missing = config("credential = { file = \"/nowhere/token\" }\n");
        assert!(Credentials::of("s", &missing).err().unwrap().to_string().contains("/nowhere/token"));
        assert!(Credentials::of("s", &config("")).unwrap().is_none());
    }
}
