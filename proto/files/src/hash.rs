//! The counter-based hash behind every pseudo-random choice on disk: a value depends on its key
//! and its number only, never on what was drawn before.

use coxswain_types::hash::{GOLDEN, mix};

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

/// The number in `0..1` that random bits stand for, as fine as an `f64` holds it.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

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
