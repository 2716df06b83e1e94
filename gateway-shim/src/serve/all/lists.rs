//! What all servers list, as one list.
//!
//! What must hold: of each element only its name changes; a server that does not answer in time, or not in form, is left out and
//! named in the log; no more is read of a server than one answer has room for; a member's list is private. What is too long for one answer goes on behind a cursor, which names the
//! server and that server's own cursor.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use custody::{hash::text_digest, id::MemberId};
use futures::future::join_all;
use serde_json::value::RawValue;

use super::{Joint, NO_SUCH, result, streams};
use crate::{
    config::BETWEEN,
    mcp::{
        envelope::{self, Message, Request},
        splice, sse,
    },
    serve::{
        Answer, Front, METHOD, NAME,
        proxy::{Came, Proxy},
        refusal::error,
        text,
    },
};

/// Pages of one server that are read for one answer; behind them it goes on with a cursor.
const PAGES_MAX: usize = 64;
/// Elements of one answer, and their bytes: clients read thousands of tools, and most have some tens. A page of a server is not
/// cut, so that one answer may have more.
const ELEMENTS_MAX: usize = 4_096;
const ELEMENTS_BYTES_MAX: usize = 8 << 20;
/// Bytes of all lists that are being put together: an answer of 8 MiB is already long, and some are made at a time.
const LISTS_BYTES_MAX: usize = 64 << 20;
/// Of these for the lists of one member: two of the longest, or one page of the longest that a server may answer with.
const OF_MEMBER_BYTES_MAX: usize = 16 << 20;
/// How long one server may take for its pages, its start included: the others' lists wait for it.
const LIST_WAIT: Duration = Duration::from_secs(60);
/// Bytes of one answer of a server.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Resources whose server is remembered.
const ROUTES_MAX: usize = 65_536;
/// Templates of one server that are remembered: the newest of its last list. Servers have a handful.
const TEMPLATES_MAX: usize = 256;

/// The key of the list that a method answers with.
pub(super) fn key(method: &str) -> Option<&'static str> {
    Some(match method {
        "tools/list" => "tools",
        "prompts/list" => "prompts",
        "resources/list" => "resources",
        "resources/templates/list" => "resourceTemplates",
        "tasks/list" => "tasks",
        _ => return None,
    })
}

/// A request of this method, with the id and `_meta` of the client's.
pub(super) fn ask(method: &str, request: &Request, cursor: Option<(&str, &str)>) -> Bytes {
    let (meta, cursor) = cursor.unwrap_or_default();
    let mut params = Vec::new();
    if !meta.is_empty() {
        params.push(format!(r#""_meta":{meta}"#));
    }
    if !cursor.is_empty() {
        params.push(format!(r#""cursor":{cursor}"#));
    }
    let (id, params) = (&request.raw_id, params.join(","));
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{{params}}}}}"#).into()
}

/// The text of an answer's message.
pub(super) async fn read(answer: Answer) -> Option<String> {
    let is_stream = text(answer.headers(), header::CONTENT_TYPE.as_str())
        .is_some_and(|content| content.to_ascii_lowercase().starts_with("text/event-stream"));
    let body = axum::body::to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.ok()?;
    if !is_stream {
        return String::from_utf8(body.to_vec()).ok();
    }
    let mut reader = sse::Reader::default();
    let mut pieces = reader.push(&body);
    pieces.extend(reader.rest());
    let is_answer = |data: &Vec<u8>| matches!(envelope::parse(data), Ok(Message::Answer { .. }));
    String::from_utf8(pieces.into_iter().filter_map(|piece| piece.data).find(is_answer)?).ok()
}

/// Which server has a resource.
#[derive(Default)]
pub(super) struct Routes {
    by_uri: HashMap<[u8; 32], Vec<Arc<str>>>,
    order: VecDeque<[u8; 32]>,
    /// What stands before the first `{` of a template.
    templates: BTreeMap<Arc<str>, VecDeque<String>>,
}

impl Routes {
    fn listed(&mut self, uri: &str, server: &Arc<str>) {
        let digest = text_digest(uri.as_bytes());
        let servers = self.by_uri.entry(digest).or_insert_with(|| {
            self.order.push_back(digest);
            Vec::new()
        });
        // The first by name has it, whoever listed it first: no server takes another's by being faster.
        if let Err(at) = servers.binary_search(server) {
            servers.insert(at, Arc::clone(server));
        }
        while self.order.len() > ROUTES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_uri.remove(&oldest);
            }
        }
    }

    fn template(&mut self, template: &str, server: &Arc<str>) {
        let before = template.split_once('{').map_or(template, |(before, _)| before);
        let known = self.templates.entry(Arc::clone(server)).or_default();
        if before.is_empty() || known.iter().any(|text| text == before) {
            return;
        }
        known.push_back(before.to_owned());
        if known.len() > TEMPLATES_MAX {
            known.pop_front();
        }
    }

    /// A server lists its templates from the first on: those that it listed before are no more.
    fn lists_templates(&mut self, server: &Arc<str>) {
        self.templates.remove(server);
    }

    /// The server of a resource that the caller may reach: one that listed it, else the one with a template that fits. Nobody,
    /// if templates of several do: what somebody reads is not for a server that says that it has everything.
    pub(super) fn of(&self, uri: &str, may_reach: impl Fn(&str) -> bool) -> Option<Arc<str>> {
        let listed = self.by_uri.get(&text_digest(uri.as_bytes()));
        let listed = listed.into_iter().flatten().find(|server| may_reach(server));
        let is_of = |templates: &VecDeque<String>| templates.iter().any(|before| uri.starts_with(before.as_str()));
        let mut fits = self.templates.iter().filter(|(server, templates)| may_reach(server) && is_of(templates));
        let template = match (fits.next(), fits.next()) {
            (Some((server, _)), None) => Some(server),
            _ => None,
        };
        listed.or(template).map(Arc::clone)
    }
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_member: HashMap<MemberId, usize>,
}

/// The bytes that lists take while they are put together, of all members and of each.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<Mutex<Taken>>);

/// What one list takes of it, until it is dropped. Nobody waits for more with what they have.
struct Kept {
    budget: Budget,
    member: MemberId,
    held: AtomicUsize,
}

impl Budget {
    fn list_of(&self, member: MemberId) -> Kept {
        Kept { budget: self.clone(), member, held: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Whether there is room for so many bytes more, for this member and for anybody.
    fn hold(&self, bytes: usize) -> bool {
        let mut taken = self.budget.lock();
        let own = taken.of_member.get(&self.member).copied().unwrap_or_default();
        if own + bytes > OF_MEMBER_BYTES_MAX || taken.all + bytes > LISTS_BYTES_MAX {
            return false;
        }
        taken.all += bytes;
        taken.of_member.insert(self.member, own + bytes);
        self.held.fetch_add(bytes, Relaxed);
        true
    }

    /// Gives back what it has, and says how many bytes that was.
    fn release(&self) -> usize {
        let mut taken = self.budget.lock();
        let held = self.held.swap(0, Relaxed);
        taken.all -= held;
        if let Some(own) = taken.of_member.get_mut(&self.member) {
            *own -= held;
            if *own == 0 {
                taken.of_member.remove(&self.member);
            }
        }
        held
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.release();
    }
}

/// A page of one server.
struct Page {
    /// That it was asked for with, as it is spelt in JSON; empty for the first.
    cursor: String,
    elements: Vec<String>,
}

/// What one server listed: its pages, and the cursor of those that were not read.
#[derive(Default)]
struct Listed {
    pages: Vec<Page>,
    next: Option<String>,
}

impl Listed {
    /// Nothing was read of it from this cursor on.
    fn unread(cursor: &str) -> Self {
        Self { pages: Vec::new(), next: Some(cursor.to_owned()) }
    }
}

/// The place of the first server that lists something, if there was no room for that. Nothing would be shown but its cursor, and
/// again each time that those behind it are faster.
fn crowded_out(all: &[(Arc<str>, Listed)]) -> Option<usize> {
    let first = all.iter().position(|(_, listed)| !listed.pages.is_empty() || listed.next.is_some())?;
    all.get(first).is_some_and(|(_, listed)| listed.pages.is_empty()).then_some(first)
}

/// The server and its cursor that a cursor of ours names.
fn place(cursor: &str) -> Option<(String, String)> {
    let cursor: String = serde_json::from_str(cursor).ok()?;
    let (server, raw) = cursor.split_once(BETWEEN)?;
    let is_cursor = raw.is_empty() || serde_json::from_str::<String>(raw).is_ok();
    is_cursor.then(|| (server.to_owned(), raw.to_owned()))
}

/// All servers' elements, and the cursor of those that are too many for one answer.
fn joined(all: Vec<(Arc<str>, Listed)>) -> (Vec<(Arc<str>, String)>, Option<String>) {
    let (mut elements, mut bytes) = (Vec::new(), 0);
    let cursor = |server: &str, raw: &str| Some(streams::own(server, raw));
    for (server, listed) in all {
        for page in listed.pages {
            let page_bytes: usize = page.elements.iter().map(String::len).sum();
            let is_full =
                elements.len() + page.elements.len() > ELEMENTS_MAX || bytes + page_bytes > ELEMENTS_BYTES_MAX;
            if is_full && !elements.is_empty() {
                return (elements, cursor(&server, &page.cursor));
            }
            bytes += page_bytes;
            elements.extend(page.elements.into_iter().map(|element| (Arc::clone(&server), element)));
        }
        if let Some(next) = listed.next {
            return (elements, cursor(&server, &next));
        }
    }
    (elements, None)
}

/// What every server is asked for one list of all.
#[derive(Clone, Copy)]
struct Asking<'a> {
    came: &'a Came,
    joint: Option<&'a Arc<Joint>>,
    request: &'a Request,
    meta: &'a str,
    /// Of the elements in an answer.
    key: &'a str,
    kept: &'a Kept,
}

impl Front {
    /// One list of what the member's servers list.
    pub(super) async fn list(
        &self,
        came: &Came,
        joint: Option<&Arc<Joint>>,
        request: &Request,
        body: &Bytes,
        key: &str,
    ) -> Answer {
        let whole = std::str::from_utf8(body).unwrap_or_default();
        let cursor = splice::value(whole, &["params", "cursor"]).filter(|cursor| *cursor != "null");
        let (from, raw) = match cursor.map(place) {
            None => (String::new(), String::new()),
            Some(Some(place)) => place,
            Some(None) => return error(StatusCode::OK, &request.raw_id, NO_SUCH, "this is no cursor of this list"),
        };
        let meta = splice::value(whole, &["params", "_meta"]).unwrap_or_default();
        let (from, raw, kept) = (&from, &raw, &self.all.lists.list_of(came.caller.member));
        let asking = &Asking { came, joint, request, meta, key, kept };
        let asked = self.reachable(&came.caller).filter(|proxy| &*proxy.name >= from.as_str());
        // Of tasks only whoever began one has any.
        let asked = asked.filter(|proxy| key != "tasks" || proxy.has_tasks_of(&came.caller));
        let asks = asked.map(|proxy| async move {
            let begin = if *proxy.name == **from { raw.as_str() } else { "" };
            let listed = self.listed(proxy, asking, begin).await;
            (Arc::clone(&proxy.name), listed)
        });
        let mut listed = join_all(asks).await;
        if let Some(at) = crowded_out(&listed)
            && kept.release() > 0
        {
            // What those behind it have is shown behind it: they are asked again then.
            listed.iter_mut().skip(at + 1).for_each(|(_, other)| *other = Listed::unread(""));
            if let Some((server, first)) = listed.get_mut(at)
                && let (Some(proxy), Some(cursor)) = (self.proxies.get(&**server), first.next.take())
            {
                *first = self.listed(proxy, asking, &cursor).await;
            }
        }
        let from_first = |listed: &Listed| listed.pages.first().is_some_and(|page| page.cursor.is_empty());
        let anew =
            listed.iter().filter(|(_, listed)| from_first(listed)).map(|(server, _)| Arc::clone(server)).collect();
        let (elements, next) = joined(listed);
        let all = self.elements(&elements, key, anew);
        let next = next.and_then(|next| serde_json::to_string(&next).ok());
        let mut more = next.map(|next| format!(r#","nextCursor":{next}"#)).unwrap_or_default();
        if came.is_modern() {
            more += r#","resultType":"complete","ttlMs":0,"cacheScope":"private""#;
        }
        result(&request.raw_id, &format!(r#"{{"{key}":[{}]{more}}}"#, all.join(",")))
    }

    /// What one server lists; nothing, if that takes too long.
    async fn listed(&self, proxy: &Arc<Proxy>, asking: &Asking<'_>, begin: &str) -> Listed {
        tokio::time::timeout(LIST_WAIT, self.pages(proxy, asking, begin)).await.unwrap_or_else(|_| {
            let key = asking.key;
            tracing::warn!(server = %proxy.name, key, "a server is left out of the list of all: it takes too long");
            Listed::default()
        })
    }

    /// The pages of one server's list; none of what is not in form.
    async fn pages(&self, proxy: &Arc<Proxy>, asking: &Asking<'_>, begin: &str) -> Listed {
        let Asking { came, joint, request, meta, key, kept } = *asking;
        let mut listed = Listed::unread(begin);
        let (mut elements_read, mut bytes) = (0, 0);
        while let Some(cursor) = listed.next.take() {
            let is_full = elements_read >= ELEMENTS_MAX || bytes >= ELEMENTS_BYTES_MAX;
            if listed.pages.len() >= PAGES_MAX || is_full {
                listed.next = Some(cursor);
                break;
            }
            let body = ask(&request.method, request, Some((meta, &cursor)));
            let page = read(self.to_one(proxy, came, joint, body).await).await.unwrap_or_default();
            let Some(elements) = splice::elements(&page, &["result", key]) else {
                tracing::warn!(server = %proxy.name, key, "a server's list is left out of the list of all");
                break;
            };
            let page_bytes = elements.iter().map(|element| element.get().len()).sum();
            if !kept.hold(page_bytes) {
                tracing::warn!(server = %proxy.name, key, "a list of all is cut short: all lists take too much memory now");
                listed.next = Some(cursor);
                break;
            }
            (elements_read, bytes) = (elements_read + elements.len(), bytes + page_bytes);
            let elements = elements.into_iter().map(|element: &RawValue| element.get().to_owned()).collect();
            listed.next =
                splice::value(&page, &["result", "nextCursor"]).filter(|next| *next != "null").map(str::to_owned);
            // One that is given again would be asked for without end.
            listed.next = listed.next.filter(|next| *next != cursor);
            listed.pages.push(Page { cursor, elements });
        }
        listed
    }

    /// The elements as they stand in the list of all, of which these servers list anew; of several resources with one URI the
    /// first server's.
    fn elements(&self, elements: &[(Arc<str>, String)], key: &str, anew: Vec<Arc<str>>) -> Vec<String> {
        let mut uris = HashSet::new();
        let mut routes = self.all.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if key == "resourceTemplates" {
            anew.iter().for_each(|server| routes.lists_templates(server));
        }
        let shown = |(server, element): &(Arc<str>, String)| {
            let of =
                |name: &str| splice::value(element, &[name]).and_then(|text| serde_json::from_str::<String>(text).ok());
            let is_new = match key {
                "tasks" => true,
                "resources" => {
                    let uri = of("uri")?;
                    routes.listed(&uri, server);
                    uris.insert(uri)
                }
                "resourceTemplates" => {
                    let template = of("uriTemplate")?;
                    routes.template(&template, server);
                    uris.insert(template)
                }
                _ => {
                    let name = serde_json::to_string(&streams::own(server, &of("name")?)).ok()?;
                    return String::from_utf8(splice::replace(element.as_bytes(), &["name"], &name)?).ok();
                }
            };
            is_new.then(|| element.clone())
        };
        elements.iter().filter_map(shown).collect()
    }

    /// Asks all servers for their resources, so that it is known which has what: somebody names one that nobody has listed here.
    pub(super) async fn learn_resources(
        &self,
        came: &Came,
        joint: Option<&Arc<Joint>>,
        request: &Request,
        body: &Bytes,
    ) {
        let whole = std::str::from_utf8(body).unwrap_or_default();
        let meta = splice::value(whole, &["params", "_meta"]).unwrap_or_default();
        for (method, key) in [("resources/list", "resources"), ("resources/templates/list", "resourceTemplates")] {
            let mut came = came.clone();
            came.headers.remove(NAME);
            if came.headers.contains_key(METHOD) {
                came.headers.insert(METHOD, HeaderValue::from_static(method));
            }
            let (id, raw_id) = (request.id.clone(), request.raw_id.clone());
            let asks = Request { id, raw_id, method: method.to_owned(), ..Request::default() };
            drop(self.list(&came, joint, &asks, &ask(method, &asks, Some((meta, ""))), key).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_by_who_listed_it_and_by_templates() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut routes = Routes::default();
        routes.listed("file:///x", &b);
        routes.listed("file:///x", &a);
        routes.template("file:///{path}", &a);
        routes.template("file:///deep/{path}", &b);
        let of = |uri: &str, may: &str| routes.of(uri, |server| may.contains(server)).map(|server| server.to_string());
        assert_eq!(of("file:///x", "ab"), Some("a".into()));
        assert_eq!(of("file:///x", "b"), Some("b".into()));
        // Whose it is when two have it is not for either to say.
        assert_eq!(of("file:///deep/y", "ab"), None);
        assert_eq!(of("file:///deep/y", "b"), Some("b".into()));
        assert_eq!(of("file:///deep/y", "a"), Some("a".into()));
        assert_eq!((of("http://y", "ab"), of("file:///x", "")), (None, None));
    }

    #[test]
    fn no_server_has_room_for_its_templates_at_the_cost_of_another() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut routes = Routes::default();
        for number in 0..=TEMPLATES_MAX {
            routes.template(&format!("of-a://{number}/{{x}}"), &a);
        }
        routes.template("of-b://{x}", &b);
        let of = |routes: &Routes, uri: &str| routes.of(uri, |_| true).map(|server| server.to_string());
        assert_eq!(of(&routes, "of-b://y"), Some("b".into()));
        assert_eq!((of(&routes, "of-a://0/y"), of(&routes, "of-a://1/y")), (None, Some("a".into())));
        routes.lists_templates(&a);
        assert_eq!((of(&routes, "of-a://1/y"), of(&routes, "of-b://y")), (None, Some("b".into())));
    }

    #[test]
    fn what_is_too_long_goes_on_where_it_was_cut() {
        let page = |cursor: &str, count| Page { cursor: cursor.into(), elements: vec!["{}".into(); count] };
        let of = |name: &str, pages, next: Option<&str>| (name.into(), Listed { pages, next: next.map(str::to_owned) });
        let told = |all| {
            let (elements, cursor) = joined(all);
            (elements.len(), cursor)
        };
        assert_eq!(told(vec![of("a", vec![page("", 2)], None), of("b", vec![page("", 3)], None)]), (5, None));
        let much = ELEMENTS_MAX - 1;
        let (two, next) = (vec![page("", much), page("\"p\"", 2)], Some("a__\"p\"".to_owned()));
        assert_eq!(told(vec![of("a", two, None), of("b", vec![], None)]), (much, next));
        assert_eq!(
            told(vec![of("a", vec![page("", much)], None), of("b", vec![page("", 2)], None)]),
            (much, Some("b__".into()))
        );
        // A page is not cut, and a server whose pages were not all read goes on before the next does.
        assert_eq!(told(vec![of("a", vec![page("", ELEMENTS_MAX + 1)], None)]), (ELEMENTS_MAX + 1, None));
        let unread = of("a", vec![page("", 1)], Some("\"q\""));
        assert_eq!(told(vec![unread, of("b", vec![page("", 1)], None)]), (1, Some("a__\"q\"".into())));
        for (cursor, expected) in [
            (r#""a__\"q\"""#, Some(("a".to_owned(), "\"q\"".to_owned()))),
            (r#""b__""#, Some(("b".to_owned(), String::new()))),
            (r#""q""#, None),
            (r#""a__1""#, None),
            (r#""a__\"q\",\"x\":1""#, None),
            ("7", None),
        ] {
            assert_eq!(place(cursor), expected, "{cursor}");
        }
    }

    #[test]
    fn all_lists_together_take_no_more_than_there_is_and_nobody_more_than_a_share() {
        let budget = Budget::default();
        let members: Vec<_> = (0..6).map(|id| MemberId([id; 16])).collect();
        let (one, two, bob) = (budget.list_of(members[0]), budget.list_of(members[0]), budget.list_of(members[1]));
        assert!(one.hold(OF_MEMBER_BYTES_MAX - 2) && two.hold(1) && two.hold(1) && !one.hold(1) && one.hold(0));
        assert!(bob.hold(OF_MEMBER_BYTES_MAX), "the lists of one member take the room of another's");
        drop(two);
        assert!(one.hold(2) && !one.hold(1));
        let others: Vec<_> = members[2..].iter().map(|member| budget.list_of(*member)).collect();
        let held = others.iter().filter(|list| list.hold(OF_MEMBER_BYTES_MAX)).count();
        assert_eq!((held + 2) * OF_MEMBER_BYTES_MAX, LISTS_BYTES_MAX);
        assert_eq!((one.release(), one.release()), (OF_MEMBER_BYTES_MAX, 0));
        drop((one, bob, others));
        let taken = budget.lock();
        assert!(taken.all == 0 && taken.of_member.is_empty(), "{taken:?}");
    }

    #[test]
    fn the_first_that_lists_something_is_what_is_shown_first() {
        let page = || Page { cursor: String::new(), elements: vec!["{}".into()] };
        let of = |listed| (Arc::from("a"), listed);
        let read = || of(Listed { pages: vec![page()], next: None });
        let (unread, none) = (|| of(Listed::unread("")), || of(Listed::default()));
        for (all, expected) in [
            (vec![none(), unread(), read()], Some(1)),
            (vec![unread()], Some(0)),
            (vec![read(), unread()], None),
            (vec![none()], None),
        ] {
            assert_eq!(crowded_out(&all), expected);
        }
    }
}
