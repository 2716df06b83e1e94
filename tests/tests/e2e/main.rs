//! The one end-to-end test binary. `crash`: the ledger killed under load. `tamper`: the golden archive and every lie about it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod crash;
mod tamper;
