//! The verifier's own part: reads archives, makes evidence, writes reports. What holds and what does not is decided by the
//! contract alone (`custody::verify`, `custody::evidence`); this crate brings it the bytes and prints what it says.
//!
//! What must hold: no network, no clock but for the default of `--as-of`, memory that does not grow with the
//! number of records (docs/OPERATIONS.md says what it does grow with).
//! Used by the program `verifier`, and by the ledger for its own checks.
#![forbid(unsafe_code)]

pub mod access;
pub mod bundle;
pub mod export;
pub mod failure;
pub mod make_evidence;
pub mod names;
pub mod output;
pub mod progress;
pub mod reader;
pub mod report;
pub mod search;
pub mod segments;
pub mod show;
pub mod time;
pub mod workers;
