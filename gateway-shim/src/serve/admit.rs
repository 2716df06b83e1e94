//! What a request is decided on: its method and what it names, or those of the call that it continues. Pure.
//!
//! What must hold: nothing is decided here that the access policy does not decide; a method that no rule is about is denied
//! there, also one that nobody knows.

use std::sync::Arc;

use super::open::Asked;
use crate::{access::Caller, mcp::envelope::Request};

/// What streams and ends of sessions are decided as, and what has no answer: whoever may ask anything there may do them.
pub(super) const OF_SESSION: &str = "ping";
/// What only shows that the other side is there: it is counted, not recorded.
const COUNTED: &str = "ping";
/// Methods that continue a call which became a task, of all eras: a server may know one of an era in which it does not speak.
const OF_TASKS: [&str; 4] = ["tasks/get", "tasks/cancel", "tasks/result", "tasks/update"];
/// What a subscription to a resource is decided as, in either era.
pub(super) const OF_RESOURCE: &str = "resources/subscribe";
/// The one that names none.
pub(super) const LIST_OF_TASKS: &str = "tasks/list";

/// Whether a request of this method is only counted.
pub(super) fn is_counted(method: &str) -> bool {
    method == COUNTED
}

/// Whether a request is about one task, so that it is for whoever began that.
pub(super) fn is_of_task(request: &Request) -> bool {
    OF_TASKS.contains(&request.method.as_str())
}

/// What is asked of a server, to be judged. What continues a task is judged as what began it.
pub(super) fn asked(server: &Arc<str>, caller: &Caller, request: &Request, begun: Option<&Asked>, bytes: u64) -> Asked {
    let (method, name) = match begun {
        Some(begun) => (begun.method.clone(), begun.name.clone()),
        None => (request.method.clone(), request.name.clone()),
    };
    Asked {
        caller: caller.clone(),
        server: Arc::clone(server),
        method,
        name,
        from_server: false,
        request_bytes: bytes,
        round: 1,
        list: None,
        resources: request.resources.clone(),
    }
}

/// What has no method of its own: a stream, the end of a session, a notification.
pub(super) fn asked_of_session(server: &Arc<str>, caller: &Caller, bytes: u64) -> Asked {
    let (method, name) = (OF_SESSION.to_owned(), None);
    Asked {
        caller: caller.clone(),
        server: Arc::clone(server),
        method,
        name,
        from_server: false,
        request_bytes: bytes,
        round: 1,
        list: None,
        resources: Vec::new(),
    }
}

/// What the server asks the client of this caller.
pub(super) fn asked_back(server: &Arc<str>, caller: &Caller, method: &str, bytes: u64) -> Asked {
    let (method, name) = (method.to_owned(), None);
    Asked {
        caller: caller.clone(),
        server: Arc::clone(server),
        method,
        name,
        from_server: true,
        request_bytes: bytes,
        round: 1,
        list: None,
        resources: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use custody::id::MemberId;

    use super::*;
    use crate::mcp::envelope::{self, Message};

    fn request(method: &str, params: &str) -> Request {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let Ok(Message::Request(request)) = envelope::parse(body.as_bytes()) else { panic!("{body}") };
        *request
    }

    #[test]
    fn every_request_is_decided_on_by_method_and_name() {
        let caller = Caller::anybody(MemberId([1; 16]), None);
        let server: Arc<str> = "s".into();
        for (method, params, name) in [
            ("tools/call", r#"{"name":"echo","uri":"u"}"#, Some("echo")),
            ("prompts/get", r#"{"name":"p"}"#, Some("p")),
            ("resources/read", r#"{"uri":"file:///a","name":"n"}"#, Some("file:///a")),
            ("resources/subscribe", r#"{"uri":"file:///a"}"#, Some("file:///a")),
            ("resources/unsubscribe", r#"{"uri":"file:///a"}"#, Some("file:///a")),
            ("completion/complete", r#"{"ref":{"type":"ref/prompt","name":"p"}}"#, Some("p")),
            ("completion/complete", r#"{"ref":{"type":"ref/resource","uri":"file:///{x}"}}"#, Some("file:///{x}")),
            ("tools/list", r#"{"name":"echo"}"#, None),
            ("nobody/knows", r#"{"name":"echo"}"#, None),
        ] {
            let asked = asked(&server, &caller, &request(method, params), None, 7);
            assert_eq!((asked.method.as_str(), asked.name.as_deref()), (method, name), "{params}");
        }
        let begun = asked(&server, &caller, &request("tools/call", r#"{"name":"slow"}"#), None, 7);
        let poll = request("tasks/get", r#"{"taskId":"t"}"#);
        let of_task = |method| is_of_task(&request(method, "{}"));
        assert!(["tasks/get", "tasks/cancel", "tasks/result", "tasks/update"].into_iter().all(of_task));
        assert!(!of_task(LIST_OF_TASKS));
        let asked = asked(&server, &caller, &poll, Some(&begun), 7);
        assert_eq!((asked.method.as_str(), asked.name.as_deref()), ("tools/call", Some("slow")));
    }
}
