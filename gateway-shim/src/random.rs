//! Randomness: the only place that takes it, from the operating system. Keys, epochs, seeds and names are made of it.

/// Random bytes of the operating system.
///
/// # Panics
/// When the operating system has none: nothing may be signed then.
#[expect(clippy::disallowed_methods, reason = "this is the module of randomness")]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::expect_used, reason = "without randomness there is no epoch, seed or key, so nothing can go on")]
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
