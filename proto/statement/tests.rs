//! Tests of `statement.rs`.
