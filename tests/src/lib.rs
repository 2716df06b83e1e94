//! What the end-to-end tests share: the golden archive, the lies that are told on it, and the oracle.

pub mod golden;
pub mod lies;
pub mod verdict;
