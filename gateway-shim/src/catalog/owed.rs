//! What somebody decided about a tool in quarantine, from the moment at which they did until it is on record and in force.
//!
//! The steps of an acceptance, each durable before the next begins: the decision is written down beside the pins; its record is
//! made; the pins that have it are kept, and live; what was written down goes. From the first step on it will be made: a start,
//! [`AGAIN`], or whatever is next to change a pin goes on with it.
//!
//! What must hold: nothing is in force that is not on record, and what is on record comes in force; a decision that was refused
//! leaves nothing; no pin changes while a decision is owed, so that it is about what somebody looked at. A crash repeats a record
//! at most.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use custody::id::{MemberId, hex, unhex};
use serde::{Deserialize, Serialize};

use super::{Catalog, Change, Inner, Reason, Unobserved, finish, lock};
use crate::{access::Actor, clock, config::Faults, durable, writer::Refused};

/// Version of the file.
const VERSION: u32 = 1;
/// How often a decision that could not be finished is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Why a tool stays in quarantine.
#[derive(Debug)]
pub enum NotAccepted {
    /// It is not in quarantine.
    NotQuarantined,
    /// The server offers another definition than the one that was looked at.
    Another,
    /// No record may hold who accepts it, or why.
    Unrecordable,
    /// It cannot be recorded or kept.
    Unobserved(Unobserved),
    /// It is written down and may be on record, so it is made, and is not in force yet.
    Unfinished(Unobserved),
}

impl std::fmt::Display for NotAccepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotQuarantined => {
                f.write_str("it is not in quarantine; hint: gateway-shim server quarantine lists what is")
            }
            Self::Another => f.write_str(
                "the server offers another definition by now than the one that was looked at; hint: look at it again",
            ),
            Self::Unrecordable => f.write_str(Reason::UNRECORDABLE),
            Self::Unobserved(why) => write!(f, "{why}; hint: the shim's log says more, and nothing has changed"),
            Self::Unfinished(why) => write!(
                f,
                "{why}; it may be on record, so it is made, and is not in force yet; hint: make room for records and files; it \
                 goes on by itself within seconds, or at the next start"
            ),
        }
    }
}

impl std::error::Error for NotAccepted {}

/// A decision, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owed {
    version: u32,
    /// As what its tools are pinned.
    server: String,
    /// The name, or `#` and its digest.
    tool: String,
    /// The definition that is accepted; none of a tool that has gone.
    digest: Option<String>,
    actor_member: Option<String>,
    actor_system: Option<String>,
    /// The account that asked.
    account: Option<u32>,
    reason: String,
    ticket: String,
}

impl Owed {
    fn new(server: &str, change: &Change, why: &Reason) -> Self {
        let (actor_member, actor_system) = why.actor.written();
        Self {
            version: VERSION,
            server: server.to_owned(),
            tool: change.tool().to_owned(),
            digest: change.after.map(|digest| hex(&digest)),
            actor_member,
            actor_system,
            account: why.account,
            reason: why.code.clone(),
            ticket: why.ticket.clone(),
        }
    }

    fn why(&self) -> Option<Reason> {
        let actor = match (&self.actor_member, &self.actor_system) {
            (Some(id), None) => Actor::Member(MemberId::from_hex(id)?),
            (None, Some(name)) => Actor::System(name.clone()),
            _ => return None,
        };
        let why = Reason { actor, account: self.account, code: self.reason.clone(), ticket: self.ticket.clone() };
        why.is_recordable().then_some(why)
    }

    fn digest(&self) -> Option<[u8; 32]> {
        self.digest.as_deref().and_then(unhex)?.try_into().ok()
    }
}

/// Where it is written down, beside this file of pins.
fn file_of(pins: &Path) -> PathBuf {
    let mut name = pins.file_name().unwrap_or_default().to_owned();
    name.push(".change.json");
    pins.with_file_name(name)
}

/// Reads what was written down beside this file of pins; mostly there is nothing.
///
/// # Errors
/// [`Faults`]: what is there is not read as nothing, because it may be on record.
pub(super) fn read(pins: &Path) -> Result<Option<Owed>, Faults> {
    let file = file_of(pins);
    let fault = |why: String| {
        let hint =
            "hint: start the version that wrote it, or remove it: the tool that it accepts stays in quarantine then";
        Err(Faults(vec![format!("{} cannot be read: {why}; {hint}", file.display())]))
    };
    let bytes = match std::fs::read(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return fault(error.to_string()),
        Ok(bytes) => bytes,
    };
    match serde_json::from_slice::<Owed>(&bytes) {
        Ok(owed)
            if owed.version == VERSION && owed.why().is_some() && owed.digest.is_some() == owed.digest().is_some() =>
        {
            Ok(Some(owed))
        }
        Ok(_) => fault("it is no decision that this version writes".into()),
        Err(error) => fault(error.to_string()),
    }
}

impl Catalog {
    /// Lets a tool out of quarantine, as it is now: by its name, or as the list of what is in quarantine shows it; with `looked_at`
    /// only if that is the definition. Gives what was recorded.
    ///
    /// # Errors
    /// [`NotAccepted`].
    pub async fn accept(
        &self,
        server: &str,
        tool: &str,
        looked_at: Option<[u8; 32]>,
        why: &Reason,
    ) -> Result<Change, NotAccepted> {
        if !why.is_recordable() {
            return Err(NotAccepted::Unrecordable);
        }
        let (catalog, server, tool, why) = (self.clone(), server.to_owned(), tool.to_owned(), why.clone());
        let decided = async move {
            let _changing = catalog.0.changing.lock().await;
            Ok(catalog.decide(&server, &tool, looked_at, &why).await)
        };
        let decided = finish(decided).await.map_err(NotAccepted::Unobserved)?;
        if lock(&self.0.owed).is_some() {
            self.go_on_later();
        }
        decided
    }

    /// Only with `changing`.
    async fn decide(
        &self,
        server: &str,
        tool: &str,
        looked_at: Option<[u8; 32]>,
        why: &Reason,
    ) -> Result<Change, NotAccepted> {
        self.finish_owed().await.map_err(NotAccepted::Unobserved)?;
        let pins = self.pins();
        if looked_at.is_some() && pins.offered(server, tool).is_some_and(|offered| offered != looked_at) {
            return Err(NotAccepted::Another);
        }
        let Some((next, change)) = pins.accept(server, tool, why) else {
            return Err(NotAccepted::NotQuarantined);
        };
        // A crash before this returns leaves all as it was, or what was asked for to the next start, and nobody was told of it;
        // behind it the decision is made, now or later.
        let owed = Owed::new(server, &change, why);
        if let Err(why) = self.write_down(owed).await {
            return Err(self.take_back(why).await);
        }
        match self.record(server, std::slice::from_ref(&change)).await {
            Ok(()) => {}
            // Nobody knows whether it is on record.
            Err(Refused::Stopped) => return Err(NotAccepted::Unfinished(Unobserved::NotRecorded(Refused::Stopped))),
            Err(refused) => return Err(self.take_back(Unobserved::NotRecorded(refused)).await),
        }
        self.pin(next).await.map_err(NotAccepted::Unfinished)?;
        // A crash before this returns does that again, which changes nothing. Whatever is next does what fails here.
        if let Err(why) = self.forget().await {
            tracing::warn!(%why, "what was decided about a tool is in force, and not forgotten yet");
        }
        Ok(change)
    }

    /// Makes what is owed, if anything is: its record once more, because nobody knows whether that was made, and the pins. Only with
    /// `changing`, and before any pin becomes another.
    pub(super) async fn finish_owed(&self) -> Result<(), Unobserved> {
        let Some(owed) = lock(&self.0.owed).clone() else { return Ok(()) };
        let pins = self.pins();
        let is_open = pins.offered(&owed.server, &owed.tool) == Some(owed.digest());
        // What is in force already, or is not what somebody looked at, is not accepted by this.
        if let Some(why) = owed.why().filter(|_| is_open)
            && let Some((next, change)) = pins.accept(&owed.server, &owed.tool, &why)
        {
            self.record(&owed.server, std::slice::from_ref(&change)).await.map_err(Unobserved::NotRecorded)?;
            self.pin(next).await?;
            tracing::info!(
                server = owed.server,
                tool = owed.tool,
                "what was decided about a tool is on record and in force"
            );
        }
        self.forget().await
    }

    /// Tries it until it is made, or nobody uses the catalog any more.
    pub(super) fn go_on_later(&self) {
        let catalog = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(why) = try_again(&catalog).await {
                tracing::error!(%why, "what was decided about a tool is not finished; it stays in quarantine until then");
                clock::sleep(AGAIN).await;
            }
        });
    }

    async fn write_down(&self, owed: Owed) -> Result<(), Unobserved> {
        let bytes = serde_json::to_vec(&owed).map_err(|error| Unobserved::NotKept(error.into()))?;
        *lock(&self.0.owed) = Some(owed);
        self.on_disk(move |pins| durable::replace(&file_of(pins), &bytes)).await
    }

    async fn forget(&self) -> Result<(), Unobserved> {
        self.on_disk(|pins| match durable::remove(&file_of(pins)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await?;
        *lock(&self.0.owed) = None;
        Ok(())
    }

    /// It is not made: whoever is told so finds nothing of it later.
    async fn take_back(&self, why: Unobserved) -> NotAccepted {
        match self.forget().await {
            Ok(()) => NotAccepted::Unobserved(why),
            // A write that failed may have left what it wrote all the same.
            Err(_) => NotAccepted::Unfinished(why),
        }
    }
}

/// Why it is not made yet; none, if it is.
async fn try_again(catalog: &Weak<Inner>) -> Option<Unobserved> {
    let catalog = Catalog(catalog.upgrade()?);
    let _changing = catalog.0.changing.lock().await;
    catalog.finish_owed().await.err()
}
