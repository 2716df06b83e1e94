//! Who came, and what their headers say besides the body.

use axum::http::HeaderMap;

use crate::{
    access::Caller,
    mcp::headers::{Era, Header, Headers},
    serve::{LAST_EVENT, METHOD, NAME, PROTOCOL, SESSION, text},
};

/// Who came, and with which headers.
#[derive(Clone)]
pub(in super::super) struct Came {
    pub(in super::super) caller: Caller,
    pub(in super::super) headers: HeaderMap,
}

impl Came {
    pub(in super::super) fn session(&self) -> Option<&str> {
        text(&self.headers, SESSION)
    }

    /// Whether it speaks as from 2026-07-28 on.
    pub(in super::super) fn is_modern(&self) -> bool {
        self.said().era() == Era::Modern
    }

    /// The headers that repeat the body.
    pub(in super::super) fn said(&self) -> Headers<'_> {
        let header = |name: &str| {
            let mut values = self.headers.get_all(name).iter();
            match (values.next().map(|value| value.to_str()), values.next()) {
                (None, _) => Header::Absent,
                (Some(Ok(value)), None) => Header::Is(value),
                _ => Header::Unclear,
            }
        };
        Headers { version: header(PROTOCOL), method: header(METHOD), name: header(NAME) }
    }

    /// What the era without sessions ignores is not there.
    pub(in super::super) fn in_era(mut self, era: Era) -> Self {
        if era == Era::Modern {
            self.headers.remove(SESSION);
            self.headers.remove(LAST_EVENT);
        }
        self
    }
}
