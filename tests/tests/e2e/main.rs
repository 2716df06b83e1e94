//! The one end-to-end test binary. `crash`: the ledger killed under load. `hostile`: bad
//! input, each with its answer. `limits`: every limit of intake, and who goes on. `failing`: what fails around the ledger, and administration. `sync`: the sync before the
//! answer. `tamper`: the golden archive and every lie about it.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod crash;
mod failing;
mod hostile;
mod limits;
mod sync;
mod tamper;
