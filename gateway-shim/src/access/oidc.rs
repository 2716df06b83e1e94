//! An identity provider instead of tokens: who is known by its word, and in which groups.
//!
//! A JWT names a subject. A member is known by it in one of two ways, which the access policy says for each: by the digest of
//! issuer and subject ([`subject_digest`]; so no name stands in the policy), or because the subject is the member's own id
//! (`subject = "id"`). Who is in no policy is nobody, whatever a provider says.
//!
//! What must hold: keys are read by a task, never for a request; an unknown key asks that task to look again, no sooner than
//! [`AGAIN`]; no JWT and no claim is in a log, a record or an error text.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use custody::{hash::sha256, id::MemberId, strict::is_token};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::{
    Why,
    policy::{Policy, Subject},
};
use crate::{clock, config::Faults};

mod fetch;
mod jwt;

use jwt::{Expected, Keys, Refusal};

/// Seconds from one look at the keys to the next, at least: whoever invents key ids makes no flood of it.
const AGAIN: Duration = Duration::from_secs(30);
/// JWTs whose signature was checked and is not checked again; beyond this all are forgotten.
const CHECKED_MAX: usize = 8_192;
/// Groups of one member by a provider's word; more are refused, because half of them would be a lie.
const GROUPS_MAX: usize = 256;
/// Longest subject in bytes.
const SUBJECT_BYTES_MAX: usize = 512;

/// `[serve.identity_provider]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityProvider {
    /// The claim `iss`, to the letter.
    pub issuer: String,
    /// What the claim `aud` must be or hold: the name under which the provider knows this endpoint.
    pub audience: String,
    /// File of the provider's JSON Web Key Set.
    pub jwks_file: Option<PathBuf>,
    /// `https://` URL of it.
    pub jwks_url: Option<String>,
    /// PEM certificates of the authorities that the URL's certificate may come from; without it, those of this system.
    pub ca: Option<PathBuf>,
    /// The claim that says who it is.
    #[serde(default = "sub")]
    pub member_claim: String,
    /// The claim that lists groups, besides those of the access policy; without it there are only those.
    pub groups_claim: Option<String>,
    /// The claim that says through which agent.
    pub agent_claim: Option<String>,
    /// Seconds, 0 to 300, by which the provider's clock may differ from this one.
    #[serde(default = "leeway_s")]
    pub leeway_s: u64,
    /// Seconds, 60 to 86,400, after which the keys are read again: so long a key that the provider took back is good here.
    #[serde(default = "refresh_s")]
    pub refresh_s: u64,
}

fn sub() -> String {
    "sub".to_owned()
}

fn leeway_s() -> u64 {
    60
}

fn refresh_s() -> u64 {
    300
}

impl IdentityProvider {
    /// What is wrong with the section.
    pub fn faults(&self) -> Vec<String> {
        let at = "serve.identity_provider";
        let https = |url: &String| url.starts_with("https://") && url.parse::<hyper::Uri>().is_ok();
        let cases = [
            (self.issuer.is_empty(), "issuer is empty; hint: the claim iss, to the letter"),
            (self.audience.is_empty(), "audience is empty; hint: the claim aud of tokens for this endpoint"),
            (self.jwks_file.is_some() == self.jwks_url.is_some(), "needs one of jwks_file and jwks_url"),
            (!self.jwks_url.as_ref().is_none_or(https), "jwks_url is no https:// URL"),
            (self.ca.is_some() && self.jwks_url.is_none(), "ca is for a jwks_url alone"),
            (self.leeway_s > 300, "leeway_s; hint: 0 to 300"),
            (!(60..=86_400).contains(&self.refresh_s), "refresh_s; hint: 60 to 86400"),
        ];
        cases.into_iter().filter(|(wrong, _)| *wrong).map(|(_, text)| format!("{at}.{text}")).collect()
    }
}

/// By what a member is known whose subject a provider names: what the policy's `subject` holds behind `sha256:`.
pub fn subject_digest(issuer: &str, subject: &str) -> [u8; 32] {
    sha256(&[issuer.as_bytes(), b"|", subject.as_bytes()])
}

/// What a provider vouched for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Vouched {
    /// Digest of issuer and subject.
    subject: [u8; 32],
    /// The subject, where it has the form of an id.
    id: Option<MemberId>,
    agent: Option<[u8; 32]>,
    agent_id: Option<MemberId>,
    /// In order, each once.
    pub(super) groups: Vec<String>,
    /// Of two words on one member the newer is the one with the higher: the claim `iat`, or where there is none `exp`.
    pub(super) issued_at: u64,
    /// From then on it is refused.
    pub(super) ends_at: u64,
}

impl Vouched {
    /// The member whom the policy knows by it.
    pub(super) fn member(&self, policy: &Policy) -> Option<MemberId> {
        let by_id = |id: &MemberId| policy.members.get(id).is_some_and(|member| member.subject == Some(Subject::Id));
        self.id.filter(by_id).or_else(|| policy.member_by_subject.get(&self.subject).copied())
    }

    /// The agent whom the policy knows by it.
    pub(super) fn agent(&self, policy: &Policy) -> Option<MemberId> {
        let by_id = |id: &MemberId| policy.agents.get(id).is_some_and(|agent| agent.subject == Some(Subject::Id));
        self.agent_id.filter(by_id).or_else(|| policy.agent_by_subject.get(&self.agent?).copied())
    }
}

/// A provider whose word is taken.
#[derive(Debug)]
pub(super) struct Provider {
    config: IdentityProvider,
    expected: Expected,
    keys: RwLock<Arc<Keys>>,
    /// By the SHA-256 of the JWT: what was checked with the keys that there are.
    checked: Mutex<HashMap<[u8; 32], Arc<Vouched>>>,
    /// Somebody came with a key that is not known.
    unknown: Notify,
}

impl Provider {
    /// Reads the keys, and keeps reading them. A provider that cannot be reached yet is no reason not to start: nobody is
    /// known by its word until it is. Needs a Tokio runtime.
    pub(super) async fn start(config: IdentityProvider) -> Result<Arc<Self>, Faults> {
        let source = fetch::Source::new(&config)?;
        let provider = Arc::new(Self::new(config));
        let first = provider.read(&source).await;
        if let (Err(why), true) = (&first, provider.config.jwks_file.is_some()) {
            return Err(Faults(vec![format!("serve.identity_provider.jwks_file: {why}")]));
        }
        let weak = Arc::downgrade(&provider);
        let refresh = Duration::from_secs(provider.config.refresh_s);
        tokio::spawn(async move {
            let mut failed = first.is_err();
            loop {
                // A provider that was not there is asked again soon.
                let wait = if failed { AGAIN } else { refresh };
                clock::sleep(AGAIN.min(wait)).await;
                let Some(provider) = weak.upgrade() else { return };
                let rest = tokio::time::Instant::now() + wait.saturating_sub(AGAIN);
                tokio::select! {
                    () = clock::sleep_until(rest) => {}
                    () = provider.unknown.notified() => {}
                }
                failed = match provider.read(&source).await {
                    Ok(()) => false,
                    Err(why) => {
                        tracing::warn!(why, "the identity provider's keys cannot be read; those before stay in use");
                        true
                    }
                };
            }
        });
        Ok(provider)
    }

    /// Whether it says who is in which group.
    pub(super) fn names_groups(&self) -> bool {
        self.config.groups_claim.is_some()
    }

    fn new(config: IdentityProvider) -> Self {
        let expected = Expected {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            leeway_us: config.leeway_s * 1_000_000,
        };
        Self { config, expected, keys: RwLock::default(), checked: Mutex::default(), unknown: Notify::new() }
    }

    async fn read(&self, source: &fetch::Source) -> Result<(), String> {
        let keys = Keys::parse(&source.read().await?)?;
        self.take(keys);
        Ok(())
    }

    /// Another set of keys: what was checked with the one before counts no longer.
    fn take(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whom a JWT is about.
    pub(super) fn vouches(&self, jwt: &str, now_us: u64) -> Result<Arc<Vouched>, Why> {
        let digest = sha256(&[jwt.as_bytes()]);
        let checked = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vouched) = checked().get(&digest) {
            return if vouched.ends_at > now_us { Ok(Arc::clone(vouched)) } else { Err(Why::Expired) };
        }
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let (claims, ends_at) = jwt::check(jwt, &keys, &self.expected, now_us).map_err(|refusal| match refusal {
            Refusal::UnknownKey => {
                self.unknown.notify_one();
                Why::Unknown
            }
            Refusal::For(why) => why,
        })?;
        let vouched = Arc::new(self.vouched(&claims, ends_at).ok_or(Why::Malformed)?);
        let mut checked = checked();
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        // With the keys that there are now, or not at all.
        if Arc::ptr_eq(&keys, &self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            checked.insert(digest, Arc::clone(&vouched));
        }
        Ok(vouched)
    }

    fn vouched(&self, claims: &Map<String, Value>, ends_at: u64) -> Option<Vouched> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let subject = text(&self.config.member_claim).filter(|text| (1..=SUBJECT_BYTES_MAX).contains(&text.len()))?;
        let agent = self.config.agent_claim.as_deref().and_then(text);
        let groups = match self.config.groups_claim.as_deref().and_then(|name| claims.get(name)) {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) if all.len() <= GROUPS_MAX => all.iter().filter_map(Value::as_str).collect(),
            Some(_) => return None,
        };
        let issued_at = claims.get("iat").and_then(|at| jwt::seconds(Some(at))).unwrap_or(ends_at);
        // A group that no record can name is none that a rule could.
        let groups: std::collections::BTreeSet<&str> = groups.into_iter().filter(|group| is_token(group)).collect();
        Some(Vouched {
            subject: subject_digest(&self.config.issuer, subject),
            id: MemberId::from_hex(subject),
            agent: agent.map(|agent| subject_digest(&self.config.issuer, agent)),
            agent_id: agent.and_then(MemberId::from_hex),
            groups: groups.into_iter().map(str::to_owned).collect(),
            issued_at,
            ends_at,
        })
    }
}

#[cfg(test)]
mod tests;
