//! Tests of `log.rs`.
