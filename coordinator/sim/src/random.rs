//! The only source of chance: numbers that follow from a seed. Each purpose has a stream of its own, so
//! that taking one kind of fault away leaves the others as they were.

use coxswain_types::hash::{GOLDEN, mix};

/// A stream of numbers (SplitMix64: small, well mixed, and the same on every machine).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: u64) -> Random {
        Random(mix(seed ^ mix(purpose)))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`; 0 where the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.number() % bound }
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens `times` in a million.
    pub fn happens(&mut self, times: u64) -> bool {
        self.below(1_000_000) < times
    }

    /// One of a list, which is not empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// One number from several, in their order.
pub fn digest(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x6a09_e667_f3bc_c908, |so_far, number| mix(so_far.rotate_left(5) ^ mix(*number)))
}

/// One number from a text.
pub fn digest_text(text: &str) -> u64 {
    text.bytes().fold(0xbb67_ae85_84ca_a73b, |so_far, byte| mix(so_far ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_repeats_itself_and_differs_from_others() {
        let first = |seed, purpose| Random::new(seed, purpose).number();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 1));
        assert_ne!(first(1, 2), first(1, 3));
        let mut random = Random::new(7, 7);
        let throws: Vec<_> = (0..600).map(|_| random.between(1, 6)).collect();
        assert!((1..=6).all(|face| throws.iter().filter(|throw| **throw == face).count() > 60));
        assert!((0..100).all(|_| !random.happens(0)) && (0..100).all(|_| random.happens(1_000_000)));
    }
}
