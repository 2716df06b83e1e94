//! The verifier from outside: one test binary. `ledger` writes archives; the other modules each say what belongs there.
#![cfg(test)]

mod access;
mod bulk;
mod commands;
#[expect(unreachable_pub, reason = "the file is shared with the end-to-end tests")]
#[path = "../../../tests/src/dice.rs"]
mod dice;
mod evidence;
mod fuzz;
mod hostile_tar;
mod ledger;
mod many;
mod order;
mod outside;
mod reports;
mod silence;
