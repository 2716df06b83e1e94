//! Ingest: gateways' streams, from the wire to the writer and back.

pub mod admit;
pub mod service;
