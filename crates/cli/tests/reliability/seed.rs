//! Chance that can be repeated: the same seed gives the same choices.

/// SOURCE: xorshift64*, Vigna 2014: enough for choosing moments.
pub(crate) struct Chance(u64);

impl Chance {
    /// From `ATOLL_TEST_SEED`, else always the same.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("ATOLL_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(20_261_125);
        println!("seed {seed} (ATOLL_TEST_SEED)");
        Self(seed)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

#[test]
fn the_same_seed_gives_the_same_choices() {
    let draw = |seed| {
        let mut chance = Chance(seed);
        (0..100).map(|_| chance.below(10)).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    assert!((0..10).all(|n| draw(7).contains(&n)));
}
