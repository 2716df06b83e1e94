//! Seeded numbers for tests.

/// splitmix64; the seed is printed, and `CUSTODY_SEED` sets it.
pub(crate) struct Rng(u64);

impl Rng {
    /// Of a test that prints its seed.
    pub(crate) fn for_test(name: &str) -> Self {
        let seed = std::env::var("CUSTODY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x1d_e5);
        println!("{name}: CUSTODY_SEED={seed}");
        Self(seed)
    }

    /// The one of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
