//! The query language: what of a record can be asked for ([`Field`]), what a record says in these terms ([`Facts`]), and what
//! a question asks of it ([`Expr`]). `docs/QUERY.md` says the same to whoever writes one.
//!
//! What must hold: a question means the same to everybody who answers it: the index, the ledger's memory, a live tail, a rule,
//! a verifier with a copied archive. So all of them take the tree that is parsed here; who cannot use an index calls
//! [`Expr::matches`], which is the norm. A question is hostile input: its length, depth and number of clauses are bounded.

mod collapse;
mod expr;
mod facts;
mod field;
mod parse;
mod print;
mod read;
mod tally;
mod time;
mod value;

#[cfg(test)]
mod tests;

pub use collapse::CallPart;
pub use expr::{Expr, Test, Text, Want};
pub use facts::{Facts, Place};
pub use field::{Field, Kind};
pub use parse::{CLAUSES_MAX, DEPTH_MAX, Fault, TEXT_BYTES_MAX, is_named, names, parse, with_ids};
pub use tally::{Bucket, HistogramWish, Levels, PercentilesWish, Tally, VALUES_MAX, Wishes};
pub use time::{instant, span};
