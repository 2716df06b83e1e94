//! Tests of `head.rs`.
