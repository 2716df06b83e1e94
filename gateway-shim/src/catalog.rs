//! What servers list: seen by members as far as they may use it, pinned, and held against what is called.

pub mod json;
pub mod list;
