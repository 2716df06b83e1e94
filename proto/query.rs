//! The query language: what of a record can be asked for ([`Field`]), what a record says in these terms ([`Facts`]), and what
//! a question asks of it ([`Expr`]). `docs/QUERY.md` says the same to whoever writes one.
//!
//! What must hold: a question means the same to everybody who answers it: the index, the ledger's memory, a live tail, a rule,
//! a verifier with a copied archive. So all of them take the tree that is parsed here; who cannot use an index calls
//! [`Expr::matches`], which is the norm. A question is hostile input: its length, depth and number of clauses are bounded.

mod expr;
mod facts;
mod field;

pub use expr::{Expr, Test, Text, Want};
pub use facts::{Facts, Place};
pub use field::{Field, Kind};
