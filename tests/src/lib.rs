//! What the end-to-end tests share: the golden archive, the lies that are told on it, and the oracle.

pub mod canary;
pub mod company;
pub mod dice;
pub mod golden;
pub mod histories;
pub mod http;
pub mod lies;
pub mod oracle;
pub mod peer;
pub mod process;
pub mod shim;
pub mod shown;
pub mod verdict;
