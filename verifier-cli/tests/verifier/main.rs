//! The verifier from outside: one test binary. `ledger` writes archives; the other modules each say what belongs there.

mod bulk;
mod ledger;
