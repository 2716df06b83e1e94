//! Tests of `strict.rs`.
