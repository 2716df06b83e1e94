//! The one end-to-end test binary. `crash`: the ledger killed under load. `hostile`: bad
//! input, each with its answer. `failing`: what fails around the ledger, and administration. `sync`: the sync before the
//! answer. `relay` and `relay_sync`: the relay with the published examples, killed under load, and traced. `tamper`: the
//! golden archive and every lie about it. `mutated`: the golden archive, changed at random.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod crash;
mod failing;
mod hostile;
mod mutated;
mod relay;
mod relay_sync;
mod sync;
mod tamper;
