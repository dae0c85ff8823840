//! What a run must come to, whatever happens to it: a pure function of its folder and its steps.
//!
//! The state of a model after a step stands for its weights, moments and all that was taken in: it
//! follows from the state before and the step's samples. A state that another number of steps, other
//! samples or a mixture led to is another number, and so are the losses that come of it.

use crate::random::{digest, digest_text};

/// The initial state.
pub(crate) fn born(directory: &str) -> u64 {
    digest_text(directory)
}

/// The state after a step that took in `samples` of each micro-batch once.
pub(crate) fn advance(state: u64, step: u64, micro_batches: &[u32]) -> u64 {
    let samples = micro_batches.iter().map(|micro_batch| u64::from(*micro_batch));
    let numbers: Vec<u64> = [state, step].into_iter().chain(samples).collect();
    digest(&numbers)
}

/// The loss and the gradient norm of the step that leads to `state`: finite numbers between 1 and 2,
/// whose bits follow from it.
pub(crate) fn measured(state: u64) -> (f64, f64) {
    let number = |salt| f64::from_bits((1023 << 52) | (digest(&[state, salt]) >> 12));
    (number(1), number(2))
}

/// The states of a run that nothing disturbs, by step.
#[derive(Clone, Debug)]
pub(crate) struct Lineage {
    states: Vec<u64>,
    micro_batches: Vec<u32>,
}

impl Lineage {
    pub(crate) fn new(directory: &str, micro_batches: u32) -> Lineage {
        Lineage { states: vec![born(directory)], micro_batches: (0..micro_batches).collect() }
    }

    /// The state after `step` steps.
    pub(crate) fn state(&mut self, step: u64) -> u64 {
        while self.states.len() as u64 <= step {
            let before = self.states[self.states.len() - 1];
            self.states.push(advance(before, self.states.len() as u64, &self.micro_batches));
        }
        self.states[step as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_is_lost_or_comes_twice_shows_in_all_that_follows() {
        let whole = Lineage::new("a", 3).state(2);
        let through = |first: &[u32]| advance(advance(born("a"), 1, first), 2, &[0, 1, 2]);
        assert_eq!(through(&[0, 1, 2]), whole);
        assert_ne!(through(&[0, 1]), whole);
        assert_ne!(through(&[0, 1, 1]), whole);
        assert_ne!(through(&[0, 1, 2, 2]), whole);
        let (loss, norm) = measured(whole);
        assert!((1.0..2.0).contains(&loss) && (1.0..2.0).contains(&norm) && loss != norm);
    }
}
