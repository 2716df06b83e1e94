//! What is refused here: under which rule and outcome it is recorded, and what its caller is told.
//!
//! What must hold: no refusal looks like a sign that the server is of the other era, so that no client of both eras falls back
//! for it: it is 401 with `WWW-Authenticate`, or an error of JSON-RPC with a code of our own and the status 200; and none tells
//! anything of what is another member's. Texts are of characters that need no escape in JSON.

use std::{borrow::Cow, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use custody::wire::Outcome;

use super::Answer;
use crate::{
    access::{Judgement, OverLimit, Why},
    catalog,
    mcp::{
        envelope::{Malformed, NOT_A_MESSAGE},
        headers::{MISMATCH, Mismatch},
    },
    writer::Refused,
};

/// JSON-RPC codes of our own, outside of the reserved ranges, so that no client takes them for the server's word.
pub(super) const CODE_UNREACHABLE: i32 = 1_001;
pub(super) const CODE_TIMEOUT: i32 = 1_002;
pub(super) const CODE_NOT_RECORDED: i32 = 1_003;
pub(super) const CODE_TOO_LONG: i32 = 1_004;
pub(super) const CODE_DENIED: i32 = 1_005;
pub(super) const CODE_OVER_LIMIT: i32 = 1_006;
pub(super) const CODE_REVOKED: i32 = 1_007;
pub(super) const CODE_UNAUTHENTICATED: i32 = 1_008;
pub(super) const CODE_UNREADABLE: i32 = 1_009;
pub(super) const CODE_NO_CREDENTIAL: i32 = 1_010;
const CODE_QUARANTINED: i32 = 1_011;
const CODE_SCHEMA: i32 = 1_012;
pub(super) const CODE_ELSEWHERE: i32 = 1_013;
/// What servers answer to a request without a session; clients of both eras then fall back to `initialize`.
pub(super) const CODE_NO_SESSION: i32 = -32_000;

pub(super) const NOT_RECORDED: &str = "the call cannot be recorded now, so it is not made; try again later";
pub(super) const DENIED: &str = "the access policy does not allow this; hint: ask whoever keeps it";
pub(super) const REVOKED: &str = "the access policy does not allow this any more, so it was cut off";

/// A request that goes no further.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The rule that refuses it, as the record names it.
    pub(super) rule: Cow<'static, str>,
    pub(super) outcome: Outcome,
    pub(super) status: StatusCode,
    pub(super) code: i32,
    pub(super) text: Cow<'static, str>,
    /// Digest of the access policy that decided, where it is not the one in force by now.
    pub(super) policy: Option<Box<[u8; 32]>>,
    pub(super) retry_after_s: Option<u64>,
    /// In JSON: what the error's code calls for.
    data: Option<&'static str>,
}

impl Refusal {
    fn new(rule: &'static str, outcome: Outcome, status: StatusCode, code: i32, text: &'static str) -> Self {
        let (rule, text) = (Cow::Borrowed(rule), Cow::Borrowed(text));
        Self { rule, outcome, status, code, text, policy: None, retry_after_s: None, data: None }
    }

    pub(super) fn denied(judgement: &Judgement) -> Self {
        if let Some(why) = judgement.nobody {
            return Self { policy: Some(Box::new(judgement.policy)), ..Self::unauthenticated(why) };
        }
        let denied = Self::new("", Outcome::Denied, StatusCode::OK, CODE_DENIED, DENIED);
        Self { rule: of_policy(&judgement.rule), policy: Some(Box::new(judgement.policy)), ..denied }
    }

    /// Whoever is here names something that is another member's, or that nobody knows: both are told the same.
    pub(super) fn not_yours() -> Self {
        let text = "Not Found: no such session";
        Self::new("shim/not-yours", Outcome::Denied, StatusCode::NOT_FOUND, CODE_NO_SESSION, text)
    }

    /// A state that no call of this kind and member left, or that is forgotten.
    pub(super) fn not_yours_state() -> Self {
        let text = "this state is of no call that is known; hint: make the call again";
        Self { status: StatusCode::OK, code: -32_602, text: text.into(), ..Self::not_yours() }
    }

    /// A request of the server that there is nobody to hear.
    pub(super) fn asks_nobody() -> Self {
        let text = "nobody can be asked without a session";
        Self::new("shim/malformed", Outcome::Malformed, StatusCode::OK, CODE_DENIED, text)
    }

    pub(super) fn answers_nothing() -> Self {
        let text = "this answers nothing that was asked in a session of the caller's";
        Self::new("shim/malformed", Outcome::Malformed, StatusCode::BAD_REQUEST, NOT_A_MESSAGE, text)
    }

    /// Nobody could tell its answer from that of another request.
    pub(super) fn id_in_use() -> Self {
        let text = "a request with this id waits for its answer; give each another id";
        Self { text: text.into(), ..Self::answers_nothing() }
    }

    /// As a server says it to a client that does not know tasks: it has none of its own.
    pub(super) fn knows_no_tasks() -> Self {
        let data = r#"{"requiredCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
        let refusal = Self { status: StatusCode::BAD_REQUEST, code: -32_021, data: Some(data), ..Self::not_yours() };
        Self { text: "tasks are for clients that say that they know them".into(), ..refusal }
    }

    pub(super) fn no_such_task() -> Self {
        Self { status: StatusCode::OK, code: -32_602, text: "there is no such task".into(), ..Self::not_yours() }
    }

    /// What is named here is nothing; as servers say it.
    pub(super) fn no_such(text: &'static str) -> Self {
        Self { status: StatusCode::OK, code: -32_602, text: text.into(), ..Self::not_yours() }
    }

    /// A method that nobody knows here, which is denied by default.
    pub(super) fn no_such_method(status: StatusCode) -> Self {
        let text = "there is no such method here";
        Self::new(custody::access::DEFAULT_DENY, Outcome::Denied, status, -32_601, text)
    }

    pub(super) fn unauthenticated(why: Why) -> Self {
        let text = match why {
            Why::Absent => "who calls? hint: a token of this workspace, as Authorization: Bearer",
            Why::Expired => "the token has expired; hint: ask for another one",
            Why::Malformed | Why::Unknown | Why::Wrong | Why::Revoked => "this is no good token of this workspace",
        };
        let status = StatusCode::UNAUTHORIZED;
        Self::new(why.rule(), Outcome::Unauthenticated, status, CODE_UNAUTHENTICATED, text)
    }

    pub(super) fn mismatch(mismatch: Mismatch) -> Self {
        let text = mismatch.0;
        Self::new("shim/header-mismatch", Outcome::Malformed, StatusCode::BAD_REQUEST, MISMATCH, text)
    }

    pub(super) fn malformed(malformed: Malformed) -> Self {
        let rule = if malformed.is_batch { "shim/batch" } else { "shim/malformed" };
        let refusal = Self::new(rule, Outcome::Malformed, StatusCode::BAD_REQUEST, malformed.code, "");
        Self { text: malformed.text.into(), ..refusal }
    }

    pub(super) fn no_method(status: StatusCode, text: &'static str) -> Self {
        Self::new("shim/malformed", Outcome::Malformed, status, CODE_NO_SESSION, text)
    }

    /// A header that two readers might read differently.
    pub(super) fn unclear_header() -> Self {
        let text = "a session, a version and an event to go on from are each named once, in visible characters, and not in Connection";
        Self::new("shim/malformed", Outcome::Malformed, StatusCode::BAD_REQUEST, NOT_A_MESSAGE, text)
    }

    pub(super) fn too_long(most: usize) -> Self {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let refusal = Self::new("shim/over-limit", Outcome::OverLimit, status, CODE_TOO_LONG, "");
        Self { text: format!("the request is longer than {most} bytes (serve.request_kib_max)").into(), ..refusal }
    }

    /// What a session would keep of its client.
    pub(super) fn too_long_to_keep(most: usize) -> Self {
        let refusal = Self::new("shim/over-limit", Outcome::OverLimit, StatusCode::OK, CODE_TOO_LONG, "");
        let text = format!(
            "initialize and logging/setLevel have {most} bytes at most; hint: leave out what no server needs, such as large icons"
        );
        Self { text: text.into(), ..refusal }
    }

    pub(super) fn too_many(most: usize) -> Self {
        let refusal = Self::new("shim/over-limit", Outcome::OverLimit, StatusCode::OK, CODE_OVER_LIMIT, "");
        Self { text: format!("a subscription is about {most} resources at most").into(), ..refusal }
    }

    pub(super) fn over_limit(over: &OverLimit) -> Self {
        let text = format!("this is over the limit {}; hint: try again later", over.limit);
        let refusal = Self::new("shim/over-limit", Outcome::OverLimit, StatusCode::OK, CODE_OVER_LIMIT, "");
        Self { text: text.into(), retry_after_s: over.retry_after_s, ..refusal }
    }

    /// A member's requests are on too many connections.
    pub(super) fn connections() -> Self {
        Self::busy(
            "too many of your requests and streams are open; hint: close what nobody reads, or wait until one ends",
        )
    }

    /// A result of the server asks for too much.
    pub(super) fn asks_too_much() -> Self {
        let text = "a result may ask for no more than this";
        Self::new("shim/over-limit", Outcome::OverLimit, StatusCode::OK, CODE_OVER_LIMIT, text)
    }

    /// Too much is open at a time.
    pub(super) fn busy(text: &'static str) -> Self {
        let refusal = Self::new("shim/busy", Outcome::OverLimit, StatusCode::OK, CODE_OVER_LIMIT, text);
        // Nobody knows when something ends.
        Self { retry_after_s: Some(1), ..refusal }
    }

    pub(super) fn not_recorded() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new("shim/not-recorded", Outcome::Denied, status, CODE_NOT_RECORDED, NOT_RECORDED)
    }

    pub(super) fn no_credential() -> Self {
        let text = "the shim has no credential of this member for the server; hint: ask whoever runs it";
        Self::new("shim/no-credential", Outcome::Denied, StatusCode::OK, CODE_NO_CREDENTIAL, text)
    }

    pub(super) fn from_elsewhere() -> Self {
        let text = "this page may not call from there; hint: serve.hosts";
        Self::new("shim/malformed", Outcome::Denied, StatusCode::FORBIDDEN, CODE_DENIED, text)
    }

    /// What the caller is told, under the id of the request as it was spelt.
    pub(super) fn answer(&self, raw_id: &str) -> Answer {
        let mut answer = match self.data {
            None => error(self.status, raw_id, self.code, &self.text),
            Some(data) => json(
                self.status,
                format!(
                    r#"{{"jsonrpc":"2.0","id":{raw_id},"error":{{"code":{},"message":"{}","data":{data}}}}}"#,
                    self.code, self.text
                )
                .into(),
            ),
        };
        let headers = answer.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let wrong = self.rule != Why::Absent.rule();
            let challenge =
                if wrong { r#"Bearer realm="custody", error="invalid_token""# } else { r#"Bearer realm="custody""# };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl From<catalog::Refusal> for Refusal {
    fn from(refusal: catalog::Refusal) -> Self {
        let code = if refusal.rule == catalog::RULE_SCHEMA { CODE_SCHEMA } else { CODE_QUARANTINED };
        // A place in a schema may hold any character.
        let text = serde_json::Value::from(refusal.text).to_string();
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or_default().to_owned();
        Self { text: text.into(), ..Self::new(refusal.rule, Outcome::Denied, StatusCode::OK, code, "") }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        tracing::warn!(%refused, "a call is refused, because it cannot be recorded");
        Self::not_recorded()
    }
}

fn of_policy(rule: &Arc<str>) -> Cow<'static, str> {
    Cow::Owned(rule.as_ref().to_owned())
}

/// The code of an error of our own, which goes with its answer: the same code in a body may be a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnCode(i32);

/// The code of an answer that is an error of our own.
pub(super) fn own_code(answer: &Answer) -> Option<i32> {
    answer.extensions().get().map(|OwnCode(code)| *code)
}

/// A JSON-RPC error of our own; `id` as it was spelt.
pub(super) fn error(status: StatusCode, id: &str, code: i32, message: &str) -> Answer {
    let mut answer = json(status, error_body(id, code, message).into());
    answer.extensions_mut().insert(OwnCode(code));
    answer
}

pub(super) fn error_body(id: &str, code: i32, message: &str) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}"#).into_bytes()
}

pub(super) fn json(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client of both eras falls back to `initialize` for a 4xx without an error of the modern era, and to nothing else.
    #[test]
    fn no_refusal_by_the_policy_looks_like_the_other_era() {
        let judgement = Judgement { allowed: false, rule: "no".into(), policy: [0; 32], nobody: None };
        let over = OverLimit { limit: "few".into(), retry_after_s: Some(7) };
        for refusal in [Refusal::denied(&judgement), Refusal::over_limit(&over), Refusal::no_credential()] {
            assert!(refusal.status == StatusCode::OK && !(-32_768..=-32_000).contains(&refusal.code), "{refusal:?}");
        }
        assert_eq!(Refusal::over_limit(&over).answer("1").headers()[header::RETRY_AFTER], "7");
        for why in [Why::Absent, Why::Malformed, Why::Unknown, Why::Wrong, Why::Expired, Why::Revoked] {
            let answer = Refusal::unauthenticated(why).answer("1");
            assert!(
                answer.status() == StatusCode::UNAUTHORIZED && answer.headers().contains_key(header::WWW_AUTHENTICATE)
            );
        }
    }
}
