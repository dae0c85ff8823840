//! The counter-based hash behind every pseudo-random choice on disk: a value depends on its key
//! and its number only, never on what was drawn before.

/// The odd number nearest to 2^64 over the golden ratio: multiples of it spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of splitmix64: a bijection of `u64` in which every input bit moves every output bit.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `counter`-th value of the stream named `key`.
pub fn draw(key: u64, counter: u64) -> u64 {
    let start = mix(key.wrapping_add(GOLDEN));
    mix(start.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The `counter`-th value of the stream named `key`, uniform in `0..bound`; 0 where `bound` is 0.
pub fn draw_below(key: u64, counter: u64, bound: u32) -> u32 {
    // The high half of the product: biased by less than 2^-32, and free of division.
    ((u128::from(draw(key, counter)) * u128::from(bound)) >> 64) as u32
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

    #[test]
    fn draws_are_even_and_bounded() {
        let mut seen = [0u32; 7];
        for i in 0..7_000 {
            seen[draw_below(3, i, 7) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (850..1150).contains(n)), "{seen:?}");
        assert_eq!(draw_below(3, 0, 0), 0);
        assert_ne!(draw(3, 0), draw(4, 0));
    }
}
