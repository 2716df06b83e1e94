//! The contract of Custody: what gateways, the ledger and verifiers say to each other, byte for byte, and how it is checked.
//!
//! What must hold here: no clock, no file, no socket, no async, no randomness; every parser of outside bytes is bounded and
//! total (no panic, no unchecked arithmetic); what is not in strict form is refused. `docs/FORMAT.md` says the same in
//! words, so that somebody can write another verifier from it alone. Everybody depends on this crate; it depends on none
//! of ours.
#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    expect(
        clippy::indexing_slicing,
        clippy::panic,
        clippy::expect_used,
        clippy::arithmetic_side_effects,
        reason = "tests fail by a panic; what is not a test is held to this by the build without them"
    )
)]

#[cfg(test)]
mod example_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod testing;

pub mod access;
pub mod archive;
pub mod batch;
pub mod directory;
pub mod evidence;
pub mod forensic;
pub mod hash;
pub mod head;
pub mod id;
pub mod key;
pub mod log;
pub mod merkle;
pub mod note;
pub mod policy;
#[cfg(feature = "query")]
pub mod query;
pub mod record;
pub mod segment;
pub mod statement;
pub mod strict;
pub mod verdict;
pub mod verify;

/// The generated messages, and with the feature `grpc` the services.
#[expect(missing_docs, reason = "generated; the documentation stands in proto/custody/v1")]
#[expect(clippy::large_enum_variant, reason = "generated; a call, the common record, is the largest")]
#[cfg_attr(
    feature = "grpc",
    expect(unused_qualifications, clippy::clone_on_ref_ptr, clippy::too_many_lines, reason = "generated")
)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/custody.v1.rs"));
}

/// The only format version so far. Field 1 of every message that stands on its own holds it.
pub const FORMAT_VERSION: u32 = 1;
