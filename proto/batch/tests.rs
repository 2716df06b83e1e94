//! Tests of `batch.rs`.
