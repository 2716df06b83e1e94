//! What the shim reads of the Model Context Protocol: the envelope of a message, and nothing else. Pure.
//!
//! Bodies are forwarded as they came; what is read here only decides and records. A message is read strictly where it matters:
//! a key of the envelope that stands twice is refused, because two readers might take two different ones.

pub mod envelope;
pub mod headers;
pub mod rewrite;
pub mod splice;
pub mod sse;

#[cfg(test)]
mod fuzz_tests;
