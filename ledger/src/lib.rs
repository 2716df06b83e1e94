//! The ledger: takes in signed batches, commits them, seals and archives segments, publishes the log.
//!
//! A module for each stage, in the order in which they build on one another: [`admit`] (pure), [`store`], [`workspace`] →
//! [`commit`] → [`directory`] (people) and [`ingest`], which hands gateways' batches to it; [`seal`] → [`archive`] → [`publish`] (claims in the
//! [`fence`]). A stage uses what is before it, never what is after it; only [`server`] knows them all.

pub mod admin;
pub mod admit;
pub mod alarm;
pub mod archive;
pub mod ask;
pub mod cli;
pub mod clock;
pub mod commit;
pub mod config;
pub mod directory;
pub mod durable;
pub mod exit;
pub mod failpoint;
pub mod fence;
pub mod http;
pub mod index;
pub mod ingest;
pub mod init;
pub mod keys;
pub mod listen;
pub mod log_view;
pub mod metrics;
pub mod own_keys;
pub mod pki;
pub mod priority;
pub mod publish;
pub mod refusals;
pub mod seal;
pub mod server;
pub mod store;
pub mod tail;
pub mod token;
pub mod upkeep;
pub mod vault;
pub mod watch;
pub mod workspace;

#[cfg(test)]
mod rig;
