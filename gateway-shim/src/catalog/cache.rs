//! Lists that servers gave, for as long as they said that they are fresh. No clock: it is told the time.
//!
//! What must hold: an answer is given again only to the same request; what a server calls private only to whoever asks it with
//! the same credential; nothing beyond its time, or after the server said that it has changed; memory has a bound.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use custody::{hash::sha256, id::MemberId};
use tokio::time::Instant;

use super::{
    ask::is_stateless,
    json::{members, text, value},
    list::{Kind, List, Scope},
    pins::View,
};

/// Bytes of all lists that are kept: as many as the greatest four, or some thousand of the usual ones.
const BYTES_MAX: usize = 64 << 20;
/// Lists that are kept.
const LISTS_MAX: usize = 4_096;
/// What a client can do that makes a difference to what it is listed, a bit each. Whatever else it says, and how it spells it,
/// is its own invention: it could look like as many clients as it likes.
const CAPABILITIES: [&str; 5] = ["roots", "sampling", "elicitation", "tasks", "extensions"];
/// For how long at most, whatever a server says: what it changed by then shows at last.
const FRESH_MAX: Duration = Duration::from_secs(3_600);

/// The request that a list answers, as far as it makes a difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    server: String,
    kind: Kind,
    cursor: Option<String>,
    protocol: String,
    capabilities: [u8; 32],
    /// What these come to, for the view.
    can: u8,
}

/// What a client says that it can do, as bits.
fn can(capabilities: &str) -> u8 {
    let said = members(capabilities).unwrap_or_default();
    let known = |name: &&str| said.iter().any(|(key, _)| key == name);
    CAPABILITIES.iter().enumerate().filter(|(_, name)| known(name)).fold(0, |bits, (at, _)| bits | 1 << at)
}

impl Asked {
    /// Of the body of a request that the envelope's reader has read; none, if there is something in it on which the answer
    /// might depend and that is not known here.
    pub fn of(server: &str, kind: Kind, body: &str) -> Option<Self> {
        let envelope = members(body).ok()?;
        let (mut cursor, mut protocol, mut capabilities) = (None, String::new(), String::new());
        if let Some(params) = value(&envelope, "params").ok()? {
            for (key, given) in members(params.get()).ok()? {
                match key.as_str() {
                    "cursor" => cursor = Some(text(given).ok()?),
                    "_meta" => {
                        let meta = members(given.get()).ok()?;
                        let of = |key: &str| meta.iter().find(|(known, _)| known == key).map(|(_, value)| value.get());
                        protocol = of("io.modelcontextprotocol/protocolVersion").unwrap_or_default().to_owned();
                        capabilities = of("io.modelcontextprotocol/clientCapabilities").unwrap_or_default().to_owned();
                    }
                    _ => return None,
                }
            }
        }
        let (server, can) = (server.to_owned(), can(&capabilities));
        Some(Self { server, kind, cursor, protocol, capabilities: sha256(&[capabilities.as_bytes()]), can })
    }

    /// Of whom it is asked, as far as its answer may be another one than that of others.
    pub fn view(&self, known_by: View) -> View {
        // Of versions, those with sessions and those without.
        let is_stateless = is_stateless(self.protocol.trim_matches('"'));
        let digest = sha256(&[&known_by, &[self.can, u8::from(is_stateless)]]);
        std::array::from_fn(|at| digest[at])
    }

    /// Whether it asks for the first page.
    pub fn is_first(&self) -> bool {
        self.cursor.is_none()
    }
}

/// Whose it is: of everybody who asks with the shim's credential, or of one member with a credential of its own.
pub type Credential = Option<MemberId>;

/// As whom a server knows whoever asks it within a session: by the credential, and by what its client said that it can do.
pub fn known_by(credential: Credential, capabilities: Option<u8>) -> View {
    let of_credential = credential.as_ref().map_or(&[][..], |member| &member.0);
    let digest = sha256(&[&[u8::from(credential.is_some())], of_credential, &[capabilities.unwrap_or(0)]]);
    std::array::from_fn(|at| digest[at])
}

/// What the client of an `initialize` says that it can do, as bits.
pub fn capabilities(body: &[u8]) -> Option<u8> {
    let envelope = members(std::str::from_utf8(body).ok()?).ok()?;
    let params = members(value(&envelope, "params").ok()??.get()).ok()?;
    let said = value(&params, "capabilities").ok()??;
    Some(can(said.get()))
}

struct Kept {
    list: Arc<List>,
    until: Instant,
    serial: u64,
}

/// What is kept.
#[derive(Default)]
pub struct Cache {
    /// Of what is public the credential is none of them.
    lists: BTreeMap<(Asked, Option<Credential>), Kept>,
    bytes: usize,
    next: u64,
}

impl Cache {
    /// A list that is fresh, and for how many milliseconds it still is.
    pub fn find(&self, asked: &Asked, credential: Credential, now: Instant) -> Option<(Arc<List>, u64)> {
        let of = |credential| self.lists.get(&(asked.clone(), credential)).filter(|kept| kept.until > now);
        let kept = of(Some(credential)).or_else(|| of(None))?;
        let left = kept.until.duration_since(now).as_millis();
        Some((Arc::clone(&kept.list), u64::try_from(left).unwrap_or(u64::MAX)))
    }

    /// Keeps a list, if its server says that it is fresh for some time.
    pub fn keep(&mut self, asked: Asked, credential: Credential, list: Arc<List>, now: Instant) {
        let fresh = Duration::from_millis(list.ttl_ms.unwrap_or(0)).min(FRESH_MAX);
        if fresh.is_zero() || list.len() > BYTES_MAX {
            return;
        }
        let key = (asked, (list.scope == Scope::Private).then_some(credential));
        let (length, serial) = (list.len(), self.next);
        self.next += 1;
        let before = self.lists.insert(key, Kept { list, until: now + fresh, serial });
        self.bytes = self.bytes - before.map_or(0, |before| before.list.len()) + length;
        if self.bytes > BYTES_MAX || self.lists.len() > LISTS_MAX {
            self.remove_where(|_, kept| kept.until <= now);
        }
        while self.bytes > BYTES_MAX || self.lists.len() > LISTS_MAX {
            let Some(oldest) = self.lists.values().map(|kept| kept.serial).min() else { break };
            self.remove_where(|_, kept| kept.serial == oldest);
        }
    }

    /// The server says that this has changed.
    pub fn forget(&mut self, server: &str, kinds: &[Kind]) {
        self.remove_where(|(asked, _), _| asked.server == server && kinds.contains(&asked.kind));
    }

    fn remove_where(&mut self, goes: impl Fn(&(Asked, Option<Credential>), &Kept) -> bool) {
        let bytes = &mut self.bytes;
        self.lists.retain(|key, kept| {
            let stays = !goes(key, kept);
            if !stays {
                *bytes -= kept.list.len();
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::catalog::list::{Answer, read};

    fn list(rest: &str) -> Arc<List> {
        let text = format!(r#"{{"result":{{"tools":[],{rest}}}}}"#);
        match read(Kind::Tools, &Bytes::from(text)).unwrap() {
            Answer::List(list) => list.into(),
            Answer::Other => panic!(),
        }
    }

    fn asked(params: &str) -> Option<Asked> {
        Asked::of("s", Kind::Tools, &format!(r#"{{"id":1,"method":"tools/list","params":{params}}}"#))
    }

    #[test]
    fn an_answer_is_given_again_to_the_same_request_within_its_time() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let first = asked("{}").unwrap();
        assert_eq!(Asked::of("s", Kind::Tools, r#"{"id":7,"method":"tools/list"}"#), Some(first.clone()));
        cache.keep(first.clone(), None, list(r#""ttlMs":1000,"cacheScope":"public""#), now);
        let after = |ms: u64| now + Duration::from_millis(ms);
        assert_eq!(cache.find(&first, None, after(400)).unwrap().1, 600);
        assert!(cache.find(&first, None, after(1_000)).is_none());
        for other in [
            r#"{"cursor":"2"}"#,
            r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/clientCapabilities":{"x":{}}}}"#,
        ] {
            assert!(cache.find(&asked(other).unwrap(), None, now).is_none(), "{other}");
        }
        assert!(asked(r#"{"requestState":"x"}"#).is_none() && asked(r#"{"filter":1}"#).is_none());
        // What says nothing of a progress token depends on nothing else.
        assert_eq!(asked(r#"{"_meta":{"progressToken":7}}"#), Some(first.clone()));
        cache.forget("other", &[Kind::Tools]);
        cache.forget("s", &[Kind::Prompts]);
        assert!(cache.find(&first, None, now).is_some());
        cache.forget("s", &[Kind::Tools]);
        assert!(cache.find(&first, None, now).is_none() && cache.bytes == 0);
    }

    /// Else anybody could look like as many clients as views are told apart, each of which keeps a tool that has gone.
    #[test]
    fn a_view_is_what_is_known_of_a_client_and_nothing_that_it_makes_up() {
        let view = |version: &str, can: &str| {
            let meta = "io.modelcontextprotocol";
            let meta = format!(r#"{{"{meta}/protocolVersion":"{version}","{meta}/clientCapabilities":{can}}}"#);
            asked(&format!(r#"{{"_meta":{meta}}}"#)).unwrap().view([0; 8])
        };
        let none = view("2026-07-28", "{}");
        for other in [r#"{ }"#, r#"{"x":{}}"#, r#"{"experimental":{"a":1}}"#, "[]", "null"] {
            assert_eq!(view("2026-07-28", other), none, "{other}");
        }
        assert_eq!(view("2027-01-01", "{}"), none);
        assert_eq!(asked("{}").unwrap().view([0; 8]), view("2025-11-25", "{}"));
        let roots = view("2026-07-28", r#"{"roots":{}}"#);
        assert_eq!(roots, view("2026-07-28", r#"{"x":[1],"roots":{"listChanged":true}}"#));
        assert!(roots != none && roots != view("2026-07-28", r#"{"sampling":{}}"#));
        assert_ne!(view("2025-11-25", "{}"), none);
        let hello = |can: &str| capabilities(format!(r#"{{"params":{{"capabilities":{can}}}}}"#).as_bytes());
        assert_eq!(known_by(None, hello(r#"{"x":1}"#)), known_by(None, None));
        assert_ne!(known_by(None, hello(r#"{"tasks":{}}"#)), known_by(None, None));
    }

    #[test]
    fn what_is_private_is_its_credentials() {
        let (mut cache, now, first) = (Cache::default(), Instant::now(), asked("{}").unwrap());
        let (one, other) = (Some(MemberId([1; 16])), Some(MemberId([2; 16])));
        for private in
            [r#""ttlMs":1000,"cacheScope":"private""#, r#""ttlMs":1000"#, r#""ttlMs":1000,"cacheScope":"any""#]
        {
            cache.keep(first.clone(), one, list(private), now);
            assert!(cache.find(&first, one, now).is_some(), "{private}");
            assert!(cache.find(&first, other, now).is_none() && cache.find(&first, None, now).is_none(), "{private}");
        }
        cache.keep(first.clone(), one, list(r#""ttlMs":1000,"cacheScope":"public""#), now);
        assert!(cache.find(&first, other, now).is_some());
    }

    #[test]
    fn what_is_not_fresh_is_not_kept_and_memory_has_a_bound() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let first = asked("{}").unwrap();
        for stale in [r#""x":1"#, r#""ttlMs":0"#, r#""ttlMs":-1"#, r#""ttlMs":"9""#] {
            cache.keep(first.clone(), None, list(stale), now);
        }
        assert!(cache.lists.is_empty());
        cache.keep(first.clone(), None, list(r#""ttlMs":99999999999999"#), now);
        assert!(cache.find(&first, None, now + FRESH_MAX).is_none());
        let long = list(&format!(r#""ttlMs":1000,"x":"{}""#, "x".repeat(BYTES_MAX / 4)));
        for page in 0..5 {
            cache.keep(asked(&format!(r#"{{"cursor":"{page}"}}"#)).unwrap(), None, Arc::clone(&long), now);
            let bytes: usize = cache.lists.values().map(|kept| kept.list.len()).sum();
            assert!(bytes == cache.bytes && bytes <= BYTES_MAX);
        }
        assert!(cache.find(&asked(r#"{"cursor":"4"}"#).unwrap(), None, now).is_some());
        let small = list(r#""ttlMs":1000"#);
        for page in 0..LISTS_MAX + 20 {
            cache.keep(asked(&format!(r#"{{"cursor":"{page}"}}"#)).unwrap(), None, Arc::clone(&small), now);
        }
        assert!(cache.lists.len() <= LISTS_MAX);
    }
}
