//! The one end-to-end test binary. `tamper`: the golden archive and every lie about it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod tamper;
