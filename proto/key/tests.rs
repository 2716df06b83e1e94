//! Tests of `key.rs`.
