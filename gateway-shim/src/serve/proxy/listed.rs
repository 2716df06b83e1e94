//! What the proxy does with lists, and with the tools that stand in them: how the endpoint uses `catalog`.
//!
//! What must hold: of a list only what its member may use goes on; a tool is called only as it is pinned; what the shim asks a
//! server itself is on record like what a member asks.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use custody::wire::{self, Outcome};

use super::{Came, Proxy, Server};
use crate::{
    access::Ask,
    catalog::{
        self, Credential,
        list::{self, Kind},
        pins::View,
    },
    mcp::envelope::{self, Message, Request},
    serve::{
        Answer, PROTOCOL, SESSION,
        open::Running,
        refusal::{CODE_NOT_RECORDED, CODE_UNREADABLE, NOT_RECORDED, Refusal, json},
        sessions::Speaker,
        text,
    },
    writer::{Ending, Refused},
};

/// Reserved rule: the shim itself asks.
const RULE_OWN: &str = "shim/own";
/// The one method that it asks.
const LIST_TOOLS: &str = "tools/list";
/// How long a server may take for one page that the shim asks for: a call waits for it.
const PAGE_WAIT: Duration = Duration::from_secs(10);
const UNREADABLE: &str = "the server's list cannot be read for certain, so it was not passed on";

/// A request for a list.
#[derive(Debug)]
pub(in super::super) struct Listing {
    kind: Kind,
    /// None, if its answer may depend on what is not known here: it is not given again.
    asked: Option<catalog::Asked>,
    credential: Credential,
    known_by: View,
    /// Answers of this era say who may be given them again.
    modern: bool,
}

impl Proxy {
    fn definitions(&self) -> catalog::Policy {
        self.shared.access.of_server(&self.name, |server| server.into()).unwrap_or_default()
    }

    /// As whom the server knows whoever asks.
    fn credential(&self, came: &Came) -> Credential {
        match &self.server {
            Server::Http(server) if server.knows_members() => Some(came.caller.member),
            _ => None,
        }
    }

    /// As what its tools are pinned for whoever asks.
    fn pinned_as(&self, came: &Came) -> String {
        catalog::pinned_as(&self.name, self.credential(came))
    }

    /// As whom the server knows them, with what their client said that it can do: it may be listed other tools than others.
    fn known_by(&self, came: &Came) -> View {
        catalog::known_by(self.credential(came), self.speaker(came).capabilities)
    }

    /// What is asked for, if it is a list.
    pub(super) fn listing(&self, came: &Came, request: &Request, body: &[u8]) -> Option<Arc<Listing>> {
        let kind = Kind::of(&request.method)?;
        let body = std::str::from_utf8(body).unwrap_or_default();
        let asked = catalog::Asked::of(&self.name, kind, body);
        let (credential, known_by) = (self.credential(came), self.known_by(came));
        Some(Arc::new(Listing { kind, asked, credential, known_by, modern: came.is_modern() }))
    }

    /// Whether an allowed call is of a tool as it is pinned, with arguments that it takes; its record names the definition.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(super) async fn check_tool(
        self: &Arc<Self>,
        came: &Came,
        ask: &Ask<'_>,
        body: &[u8],
        call: &mut wire::Call,
    ) -> Result<(), Refusal> {
        let ("tools/call", Some(tool)) = (ask.method, ask.name) else { return Ok(()) };
        let known_by = self.known_by(came);
        let is_known = self.shared.catalog.is_known(&self.name, known_by);
        if !is_known && !Box::pin(self.make_known(came, known_by, ask)).await {
            return Ok(());
        }
        let digest = self.shared.catalog.check_call(&self.pinned_as(came), self.definitions(), tool, body)?;
        call.definition_digest = digest.map(|digest| Bytes::copy_from_slice(&digest));
        Ok(())
    }

    /// Waits until it is known what the server lists; `false` if whoever asks may not call it any more: they wait for nothing.
    async fn make_known(self: &Arc<Self>, came: &Came, known_by: View, ask: &Ask<'_>) -> bool {
        let walk = || {
            let (proxy, came) = (Arc::clone(self), came.clone());
            async move { proxy.walk(&came).await }
        };
        let mut changes = self.shared.access.changes();
        let known = self.shared.catalog.ensure(&self.name, known_by, walk);
        tokio::pin!(known);
        loop {
            tokio::select! {
                () = &mut known => return true,
                changed = changes.changed() => match changed {
                    Ok(()) if !self.shared.access.judge(&came.caller, ask).allowed => return false,
                    Ok(()) => {}
                    Err(_) => {
                        known.await;
                        return true;
                    }
                },
            }
        }
    }

    /// The answer to a request for a list that a server gave before, and that is fresh. Ends the call.
    pub(super) fn list_again(&self, running: &Running, raw_id: &str) -> Option<Answer> {
        let listing = running.asked().list.as_ref()?;
        let (list, fresh_ms) = self.shared.catalog.cached(listing.asked.as_ref()?, listing.credential)?;
        let view = self.view(running, listing, &list, Some(fresh_ms));
        let answer = list.answer(&view, raw_id);
        let length = answer.len() as u64;
        if length > running.response_bytes_max() {
            return None;
        }
        running.end(Ending { response_bytes: length, ..Ending::of(Outcome::Ok) });
        Some(json(axum::http::StatusCode::OK, answer))
    }

    /// The answer to a request for a list: what its member may see of it, or why there is none.
    pub(super) async fn listed(
        &self,
        running: &Running,
        listing: &Listing,
        message: &[u8],
        ending: &mut Ending,
    ) -> Option<Bytes> {
        let list = match list::read(listing.kind, &Bytes::copy_from_slice(message)) {
            Ok(list::Answer::List(list)) => Arc::new(*list),
            Ok(list::Answer::Other) => return None,
            Err(why) => {
                tracing::warn!(server = %self.name, %why, "the server's list is not passed on");
                ending.outcome = Outcome::Malformed;
                return Some(running.error(CODE_UNREADABLE, UNREADABLE));
            }
        };
        let (catalog, first) = (&self.shared.catalog, listing.asked.as_ref().filter(|asked| asked.is_first()));
        let whole = first.filter(|_| list.next_cursor.is_none()).map(|asked| asked.view(listing.known_by));
        let pages = std::slice::from_ref(&list);
        let pinned_as = catalog::pinned_as(&self.name, listing.credential);
        if let Err(why) = catalog.observe(&pinned_as, self.definitions(), listing.kind, pages, whole).await {
            tracing::error!(server = %self.name, %why, "the server's list is not passed on");
            ending.outcome = Outcome::Denied;
            return Some(running.error(CODE_NOT_RECORDED, NOT_RECORDED));
        }
        if whole.is_some() && listing.kind == Kind::Tools {
            catalog.seen(&self.name, listing.known_by);
        }
        let view = self.view(running, listing, &list, None);
        if let Some(asked) = &listing.asked {
            catalog.keep(asked.clone(), listing.credential, list);
        }
        Some(view)
    }

    fn view(&self, running: &Running, listing: &Listing, list: &list::List, fresh_ms: Option<u64>) -> Bytes {
        let (shared, caller) = (&self.shared, &running.asked().caller);
        let method = listing.kind.used_by();
        let may_use = |name: &str| {
            let ask = Ask { server: &self.name, method, name: Some(name), from_server: false, request_bytes: 0 };
            shared.access.judge(caller, &ask).allowed
        };
        shared.catalog.view(
            &catalog::pinned_as(&self.name, listing.credential),
            listing.kind,
            list,
            may_use,
            listing.modern,
            fresh_ms,
        )
    }

    /// A notification of the server passes: what has changed is asked for again.
    pub(in super::super) fn noted(&self, method: &str) {
        self.count(method);
        self.shared.catalog.changed(&self.name, method);
    }

    /// Asks for all tools, as whoever came would, and takes note of them.
    async fn walk(self: &Arc<Self>, came: &Came) -> Result<(), String> {
        let pages = catalog::ask::pages(|cursor| self.page(came, cursor)).await?;
        let (body, _) = catalog::ask::body(self.speaker(came).protocol.as_deref(), None, 0);
        let asked = catalog::Asked::of(&self.name, Kind::Tools, std::str::from_utf8(&body).unwrap_or_default());
        let view = asked.map(|asked| asked.view(self.known_by(came)));
        let (catalog, pinned_as) = (&self.shared.catalog, self.pinned_as(came));
        let observed = catalog.observe(&pinned_as, self.definitions(), Kind::Tools, &pages, view).await;
        observed.map_err(|why| why.to_string())
    }

    /// Asks for one page; on record, with nobody as its member.
    async fn page(self: &Arc<Self>, came: &Came, cursor: Option<String>) -> Result<Bytes, String> {
        let protocol = self.speaker(came).protocol;
        let number = self.own_asked.fetch_add(1, Relaxed);
        let (body, id) = catalog::ask::body(protocol.as_deref(), cursor.as_deref(), number);
        let client = Some((crate::PRODUCT.to_owned(), crate::VERSION.to_owned()));
        let speaker = Speaker { client, protocol, capabilities: None };
        let mut call = self.shared.describe(&self.name, None, &speaker, None, body.len() as u64);
        call.mode = wire::Mode::from(self.config.mode) as i32;
        call.request = Some(envelope::method(LIST_TOOLS));
        call.decision = wire::Decision::Allowed as i32;
        RULE_OWN.clone_into(&mut call.rule);
        call.access_policy_digest = Some(self.shared.access.digest().to_vec().into());
        let record = match self.gateway.begin(call).await {
            Ok(record) => Some(record),
            Err(Refused::Dropped) => None,
            Err(refused) => return Err(refused.to_string()),
        };
        let wait = PAGE_WAIT.min(self.call_wait());
        let heard = match tokio::time::timeout(wait, self.ask_itself(came, &body, &id)).await {
            Ok(heard) => heard.map_err(|why| (Outcome::TransportError, why)),
            Err(_) => Err((Outcome::Timeout, "it does not answer in time".to_owned())),
        };
        let ending = match &heard {
            Ok(message) => match envelope::parse(message) {
                Ok(Message::Answer { ending, .. }) => ending,
                _ => Ending::of(Outcome::Malformed),
            },
            Err((outcome, _)) => Ending::of(*outcome),
        };
        if let Some(record) = record {
            record.end(ending);
        }
        heard.map_err(|(_, why)| why)
    }

    async fn ask_itself(self: &Arc<Self>, came: &Came, body: &Bytes, id: &str) -> Result<Bytes, String> {
        let mut headers = HeaderMap::new();
        for name in [SESSION, PROTOCOL] {
            if let Some(value) = came.headers.get(name) {
                headers.insert(name, value.clone());
            }
        }
        let _place = self.shared.places.enter(came.caller.member).map_err(|busy| busy.text.into_owned())?;
        let is_stateless = text(&came.headers, PROTOCOL).is_some_and(catalog::ask::is_stateless);
        let server = match &self.server {
            Server::Http(server) => server,
            Server::Stdio(_) if !headers.contains_key(SESSION) && !is_stateless => {
                return Err("there is no session".to_owned());
            }
            Server::Stdio(server) => {
                return server.ask_itself(self, &headers, &came.caller, PAGE_WAIT, body).await;
            }
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        if is_stateless {
            headers.insert("mcp-method", HeaderValue::from_static(LIST_TOOLS));
        }
        let (is_stream, answer) =
            server.ask_itself(&Came { caller: came.caller.clone(), headers }, body.clone()).await?;
        catalog::ask::answer(is_stream, &answer, id).ok_or_else(|| "it gives no answer".to_owned())
    }
}
