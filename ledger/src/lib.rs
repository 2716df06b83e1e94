//! The ledger: takes in signed batches, commits them, seals and archives segments, publishes the log.

pub mod alarm;
pub mod clock;
pub mod config;
pub mod durable;
pub mod exit;
pub mod keys;
pub mod metrics;
pub mod pki;
pub mod vault;
