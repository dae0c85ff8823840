//! The hash behind every pseudo-random choice that both sides have to make alike.

/// The odd number nearest to 2^64 over the golden ratio: multiples of it spread evenly.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection of `u64` in which every input bit moves every output bit.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_gives_the_published_values_of_splitmix64() {
        // The first three outputs of the generator that is seeded with 1234567.
        let stream: Vec<u64> =
            (1..=3).map(|i: u64| mix(1_234_567_u64.wrapping_add(i.wrapping_mul(GOLDEN)))).collect();
        assert_eq!(stream, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }
}
