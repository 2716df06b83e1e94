//! The gateway: records what passes, signs it, keeps it until the ledger has archived it, and holds the ledger to its word.
//!
//! The modules follow the way of a record: [`gateway`] takes it, [`writer`] numbers and signs it (as [`batcher`] decides)
//! and keeps it in the [`spool`], [`client`] ships it, [`receipt`] checks what the ledger answers. [`relay`] and [`serve`]
//! are the two ways in besides the library, [`server`] is the life of servers that are programs; [`cli`] is the program's
//! command line, and speaks to a running one over [`control`], which shows what is [`seen`] of it. Only [`durable`] writes
//! files, only [`clock`] reads the wall clock and waits, only
//! [`random`] takes randomness.

pub mod access;
pub mod batcher;
pub mod catalog;
pub mod certificate;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod control;
pub mod cookie;
pub mod durable;
pub mod files;
pub mod flight;
pub mod forensic;
pub mod fork;
pub mod gateway;
pub mod key;
pub mod listen;
pub mod mcp;
pub mod metrics;
pub mod random;
pub mod receipt;
pub mod relay;
pub mod seen;
pub mod serve;
pub mod server;
pub mod spool;
pub mod writer;

/// Product name in records.
pub const PRODUCT: &str = "custody-gateway-shim";
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod testing;
