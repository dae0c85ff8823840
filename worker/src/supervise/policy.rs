//! What becomes of a worker that has ended: a function of its exit code, how long it ran, and how often it has failed.

use std::time::Duration;

/// The wait after a first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A worker that ran for this long is well: its earlier failures are forgotten.
const WELL: Duration = Duration::from_secs(60);

/// What becomes of a worker that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterEnd {
    /// It was drained, or the coordinator's work is over: none takes its place.
    Stay,
    /// Bad arguments, which all of them have.
    GiveUp,
    /// It is started again after this wait.
    Again(Duration),
}

/// The failures in a row of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attempts {
    failures: u32,
}

impl Attempts {
    /// What becomes of a worker that ended with this code (`None`: by a signal) after it `ran` for so long.
    pub(super) fn after(&mut self, code: Option<i32>, ran: Duration) -> AfterEnd {
        match code {
            Some(0) => return AfterEnd::Stay,
            Some(2) => return AfterEnd::GiveUp,
            _ => {}
        }
        if ran >= WELL {
            self.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        AfterEnd::Again(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_start_anew_after_a_good_minute() {
        let mut attempts = Attempts::default();
        let mut after = |ran| match attempts.after(Some(1), Duration::from_secs(ran)) {
            AfterEnd::Again(wait) => wait.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!([0; 8].map(&mut after), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!([60, 59].map(&mut after), [1, 2]);
    }

    #[test]
    fn the_exit_code_decides() {
        let after = |code| Attempts::default().after(code, Duration::ZERO);
        assert_eq!([after(Some(0)), after(Some(2))], [AfterEnd::Stay, AfterEnd::GiveUp]);
        for code in [Some(1), Some(3), Some(130), Some(143), None] {
            assert_eq!(after(code), AfterEnd::Again(FIRST_WAIT), "{code:?}");
        }
    }
}
