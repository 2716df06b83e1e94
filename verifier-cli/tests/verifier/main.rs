//! The verifier from outside: one test binary. `ledger` writes archives; the other modules each say what belongs there.
#![cfg(test)]

mod bulk;
mod commands;
mod evidence;
mod hostile_tar;
mod ledger;
mod many;
mod order;
mod reports;
