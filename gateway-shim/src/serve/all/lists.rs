//! What all servers list, as one list.
//!
//! What must hold: of each element only its name changes; a server that does not answer, or not in form, is left out and named
//! in the log; a member's list is private.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
};

use axum::http::{StatusCode, header};
use bytes::Bytes;
use custody::hash::text_digest;
use futures::future::join_all;
use serde_json::value::RawValue;

use super::{Joint, NO_SUCH, result};
use crate::{
    config::BETWEEN,
    mcp::{
        envelope::{self, Message, Request},
        splice, sse,
    },
    serve::{
        Answer, Front,
        proxy::{Came, Proxy},
        refusal::error,
        text,
    },
};

/// Pages of one server that are read; a page has at least one element.
const PAGES_MAX: usize = 64;
/// Bytes of one answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Resources whose server is remembered, and templates.
const ROUTES_MAX: usize = 65_536;
const TEMPLATES_MAX: usize = 1_024;

/// The key of the list that a method answers with.
pub(super) fn key(method: &str) -> Option<&'static str> {
    Some(match method {
        "tools/list" => "tools",
        "prompts/list" => "prompts",
        "resources/list" => "resources",
        "resources/templates/list" => "resourceTemplates",
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
    templates: Vec<(String, Arc<str>)>,
}

impl Routes {
    fn listed(&mut self, uri: &str, server: &Arc<str>) {
        let digest = text_digest(uri.as_bytes());
        let servers = self.by_uri.entry(digest).or_insert_with(|| {
            self.order.push_back(digest);
            Vec::new()
        });
        if !servers.contains(server) {
            servers.push(Arc::clone(server));
        }
        while self.order.len() > ROUTES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_uri.remove(&oldest);
            }
        }
    }

    fn template(&mut self, template: &str, server: &Arc<str>) {
        let before = template.split_once('{').map_or(template, |(before, _)| before);
        let known = self.templates.iter().any(|(text, of)| text == before && of == server);
        if !known && !before.is_empty() && self.templates.len() < TEMPLATES_MAX {
            self.templates.push((before.to_owned(), Arc::clone(server)));
        }
    }

    /// The server of a resource that the caller may reach: one that listed it, else the one with the longest template.
    pub(super) fn of(&self, uri: &str, may_reach: impl Fn(&str) -> bool) -> Option<Arc<str>> {
        let listed = self.by_uri.get(&text_digest(uri.as_bytes()));
        let listed = listed.into_iter().flatten().find(|server| may_reach(server));
        let fits = self.templates.iter().filter(|(before, server)| uri.starts_with(before) && may_reach(server));
        let template = fits.max_by_key(|(before, _)| before.len()).map(|(_, server)| server);
        listed.or(template).map(Arc::clone)
    }
}

impl Front {
    /// One list of what the member's servers list.
    pub(super) async fn list(
        &self,
        came: &Came,
        joint: Option<&Joint>,
        request: &Request,
        body: &Bytes,
        key: &str,
    ) -> Answer {
        let whole = std::str::from_utf8(body).unwrap_or_default();
        if splice::value(whole, &["params", "cursor"]).is_some_and(|cursor| cursor != "null") {
            return error(StatusCode::OK, &request.raw_id, NO_SUCH, "there is one page of this list");
        }
        let meta = splice::value(whole, &["params", "_meta"]).unwrap_or_default();
        let asks = self.reachable(&came.caller).map(|proxy| async move {
            let listed = self.pages(proxy, came, joint, request, meta, key).await;
            (Arc::clone(&proxy.name), listed)
        });
        let mut all = Vec::new();
        for (server, listed) in join_all(asks).await {
            all.extend(listed.iter().filter_map(|element| self.element(&server, key, element)));
        }
        let more = if came.is_modern() { r#","resultType":"complete","ttlMs":0,"cacheScope":"private""# } else { "" };
        result(&request.raw_id, &format!(r#"{{"{key}":[{}]{more}}}"#, all.join(",")))
    }

    /// All pages of one server's list; none of what is not in form.
    async fn pages(
        &self,
        proxy: &Arc<Proxy>,
        came: &Came,
        joint: Option<&Joint>,
        request: &Request,
        meta: &str,
        key: &str,
    ) -> Vec<String> {
        let (mut elements, mut cursor) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let body = ask(&request.method, request, Some((meta, &cursor)));
            let answer = self.to_one(proxy, came, joint, body).await;
            let page = read(answer).await.unwrap_or_default();
            let Some(page_elements) = splice::elements(&page, &["result", key]) else {
                tracing::warn!(server = %proxy.name, key, "a server's list is left out of the list of all");
                return elements;
            };
            elements.extend(page_elements.into_iter().map(|element: &RawValue| element.get().to_owned()));
            match splice::value(&page, &["result", "nextCursor"]).filter(|next| *next != "null") {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        elements
    }

    /// An element as it stands in the list of all; `None` if another server has it there already.
    fn element(&self, server: &Arc<str>, key: &str, element: &str) -> Option<String> {
        let of =
            |name: &str| splice::value(element, &[name]).and_then(|text| serde_json::from_str::<String>(text).ok());
        let mut routes = self.all.routes.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            "resources" => routes.listed(&of("uri")?, server),
            "resourceTemplates" => routes.template(&of("uriTemplate")?, server),
            _ => {
                let name = serde_json::to_string(&format!("{server}{BETWEEN}{}", of("name")?)).ok()?;
                return String::from_utf8(splice::replace(element.as_bytes(), &["name"], &name)?).ok();
            }
        }
        Some(element.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_by_who_listed_it_and_by_templates() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut routes = Routes::default();
        routes.listed("file:///x", &a);
        routes.listed("file:///x", &b);
        routes.template("file:///{path}", &a);
        routes.template("file:///deep/{path}", &b);
        let of = |uri: &str, may: &str| routes.of(uri, |server| may.contains(server)).map(|server| server.to_string());
        assert_eq!(of("file:///x", "ab"), Some("a".into()));
        assert_eq!(of("file:///x", "b"), Some("b".into()));
        assert_eq!(of("file:///deep/y", "ab"), Some("b".into()));
        assert_eq!(of("file:///deep/y", "a"), Some("a".into()));
        assert_eq!((of("http://y", "ab"), of("file:///x", "")), (None, None));
    }
}
