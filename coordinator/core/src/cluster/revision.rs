//! The numbers of directives. A rank votes in each step with the newest number that it has seen, and the least of
//! all votes rules; so numbers grow, also from one start of the coordinator to the next.

use coxswain_types::ids::Step;

/// Below the epoch: directives of one start. At a thousand a second these last for three months.
const COUNT_BITS: u32 = 33;

/// The closing exchange carries numbers as fp64, which is exact below this.
const EXACT_BITS: u32 = 53;

/// The newest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revisions {
    epoch: u64,
    count: u64,
    /// Whether this start is in the journal.
    open: bool,
}

impl Revisions {
    /// The journal says that the start `epoch` happened.
    pub(super) fn passed(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// The newest start.
    pub(super) fn epoch(self) -> u64 {
        self.epoch
    }

    /// The number of this start, the first time it is asked for.
    pub(super) fn open(&mut self) -> Option<u64> {
        if self.open {
            return None;
        }
        self.epoch = (self.epoch + 1).min((1 << (EXACT_BITS - COUNT_BITS)) - 1);
        (self.count, self.open) = (0, true);
        Some(self.epoch)
    }

    /// Whether this start has a number.
    pub(super) fn is_open(self) -> bool {
        self.open
    }

    /// What is wanted changed.
    pub(super) fn grow(&mut self) {
        self.count = (self.count + 1).min((1 << COUNT_BITS) - 1);
    }

    /// The number of what is wanted now.
    pub(super) fn newest(&self) -> u64 {
        self.epoch << COUNT_BITS | self.count
    }
}

/// What is wanted of all ranks of a generation, beside its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RunDirective {
    /// The number of this directive.
    pub(super) revision: u64,
    /// They save after the first step from this one on.
    pub(super) save_after: Step,
    /// Why they stop after a step and save, if they shall.
    pub(super) stop: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_is_above_all_of_an_earlier_one() {
        let mut first = Revisions::default();
        assert_eq!((first.open(), first.open()), (Some(1), None));
        first.count = (1 << COUNT_BITS) - 2;
        first.grow();
        first.grow();
        let mut second = Revisions::default();
        second.passed(1);
        assert_eq!(second.open(), Some(2));
        assert!(second.newest() > first.newest());
    }

    #[test]
    fn the_last_number_is_exact_in_the_closing_exchange() {
        let mut last = Revisions::default();
        last.passed(u64::MAX - 1);
        last.open();
        last.count = (1 << COUNT_BITS) - 1;
        let newest = last.newest();
        assert_eq!(newest, (1 << EXACT_BITS) - 1);
        assert_eq!(newest as f64 as u64, newest);
    }
}
