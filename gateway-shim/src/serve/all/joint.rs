//! Sessions with all servers at once: each holds one with each server, begun when that is first asked something.
//!
//! What must hold: a joint session is of the member, with the token, that began it; a server's session is begun once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use custody::id::hex;
use tokio::sync::Mutex as Turn;

use super::{
    Proxies,
    hears::{Hears, Seen},
    lists, of_answer, said,
};
use crate::{
    access::Caller,
    mcp::envelope::{self, Message},
    random,
    serve::{
        LAST_EVENT, METHOD, NAME, PROTOCOL, SESSION,
        proxy::{Came, Proxy},
        sessions::is_same,
    },
};

/// Joint sessions of one member, and of all: the oldest are forgotten first.
const OF_MEMBER_MAX: usize = 64;
const JOINTS_MAX: usize = 16_384;
const INITIALIZED: &[u8] = br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

/// A session at one server: its id, and the version that it speaks. A server may give no id.
#[derive(Clone, Default)]
struct There {
    session: Option<String>,
    protocol: Option<String>,
}

/// A session with all servers.
pub(super) struct Joint {
    id: String,
    owner: Caller,
    /// The client's `initialize`, as each server gets it.
    hello: Bytes,
    turn: u64,
    begun: Mutex<BTreeMap<String, Arc<Turn<Option<There>>>>>,
    /// The client's last word on what is logged, for servers whose sessions begin behind it.
    pub(super) level: Mutex<Option<Bytes>>,
    pub(super) hears: Mutex<Option<Hears>>,
    pub(super) seen: Mutex<Seen>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<String, Arc<Joint>>,
    next: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Joints(Mutex<Known>);

impl Joints {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the id of a new one.
    pub(super) fn begin(&self, owner: Caller, hello: Bytes) -> String {
        let id = hex(&random::bytes::<16>());
        let mut known = self.lock();
        let mut own: Vec<_> =
            known.by_id.values().filter(|joint| joint.owner.member == owner.member).cloned().collect();
        own.sort_by_key(|joint| joint.turn);
        if own.len() >= OF_MEMBER_MAX
            && let Some(oldest) = own.first()
        {
            known.by_id.remove(&oldest.id);
        }
        if known.by_id.len() >= JOINTS_MAX
            && let Some(oldest) = known.by_id.values().min_by_key(|joint| joint.turn).map(|joint| joint.id.clone())
        {
            known.by_id.remove(&oldest);
        }
        let turn = known.next;
        known.next += 1;
        let joint = Joint {
            id: id.clone(),
            owner,
            hello,
            turn,
            begun: Mutex::default(),
            level: Mutex::default(),
            hears: Mutex::default(),
            seen: Mutex::default(),
        };
        known.by_id.insert(id.clone(), Arc::new(joint));
        id
    }

    /// The caller's of this id.
    pub(super) fn of(&self, id: &str, caller: &Caller) -> Option<Arc<Joint>> {
        self.lock().by_id.get(id).filter(|joint| is_same(&joint.owner, caller)).map(Arc::clone)
    }

    /// Ends the caller's of this id.
    pub(super) fn end(&self, id: &str, caller: &Caller) -> Option<Arc<Joint>> {
        let joint = self.of(id, caller)?;
        self.lock().by_id.remove(id);
        Some(joint)
    }
}

/// The same caller, in a session of one server.
fn towards(came: &Came, there: &There) -> Came {
    let mut came = came.clone();
    // What repeats the body of another message is no use there.
    for name in [METHOD, NAME, LAST_EVENT] {
        came.headers.remove(name);
    }
    for (name, value) in [(SESSION, &there.session), (PROTOCOL, &there.protocol)] {
        came.headers.remove(name);
        if let Some(value) = value.as_deref().and_then(|value| HeaderValue::from_str(value).ok()) {
            came.headers.insert(HeaderName::from_static(name), value);
        }
    }
    came
}

fn is_answer(text: &str) -> bool {
    matches!(envelope::parse(text.as_bytes()), Ok(Message::Answer { .. }))
}

impl Joint {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Turn<Option<There>>>>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller in the session of this server, which is begun if it is not there, or not any more. Whoever goes away does not
    /// leave one behind that is half begun.
    ///
    /// # Errors
    /// What the server said instead, if it is an answer.
    pub(super) async fn session(self: &Arc<Self>, proxy: &Arc<Proxy>, came: &Came) -> Result<Came, Option<String>> {
        let place = Arc::clone(self.lock().entry(proxy.name.to_string()).or_default());
        // One begins it, and the others wait for that.
        let mut there = place.lock_owned().await;
        if let Some(there) = &*there {
            let is_there = |id: &String| proxy.sessions.is_of(id, &came.caller);
            if there.session.as_ref().is_none_or(is_there) {
                return Ok(towards(came, there));
            }
        }
        let (joint, proxy, came) = (Arc::clone(self), Arc::clone(proxy), came.clone());
        let begun = tokio::spawn(async move {
            let begun = joint.begin_at(&proxy, &came).await?;
            let there_now = towards(&came, &begun);
            *there = Some(begun);
            drop(there);
            joint.hear(&proxy, &there_now, None);
            Ok(there_now)
        });
        begun.await.unwrap_or(Err(None))
    }

    async fn begin_at(&self, proxy: &Arc<Proxy>, came: &Came) -> Result<There, Option<String>> {
        let answer = proxy.message(towards(came, &There::default()), self.hello.clone()).await;
        let (session, is_good) = (of_answer(&answer, SESSION).map(str::to_owned), answer.status().is_success());
        let text = lists::read(answer).await.filter(|text| is_answer(text));
        let version = text.as_deref().and_then(|text| said(text, &["result", "protocolVersion"])).map(str::to_owned);
        let Some(version) = version.filter(|_| is_good) else { return Err(text) };
        let begun = There { session, protocol: serde_json::from_str(&version).ok() };
        drop(proxy.message(towards(came, &begun), Bytes::from_static(INITIALIZED)).await);
        let level = self.level.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(level) = level {
            drop(proxy.message(towards(came, &begun), level).await);
        }
        Ok(begun)
    }

    /// The caller in each session that was begun and is not being begun now.
    pub(super) fn begun(&self, proxies: &Proxies, came: &Came) -> Vec<(Arc<Proxy>, Came)> {
        let begun: Vec<_> = self.lock().iter().map(|(name, place)| (name.clone(), Arc::clone(place))).collect();
        let of = |(name, place): (String, Arc<Turn<Option<There>>>)| {
            let there = place.try_lock().ok()?.clone()?;
            Some((Arc::clone(proxies.get(&name)?), towards(came, &there)))
        };
        begun.into_iter().filter_map(of).collect()
    }
}
