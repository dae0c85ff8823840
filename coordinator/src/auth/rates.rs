//! How often a caller may call: a bucket of tokens for each, filled at a steady rate.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A steady rate, and how much of it may be saved up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_s: f64,
    pub(crate) burst: f64,
}

/// The most callers of whom is known how often they called. Those who have not called for a while are
/// forgotten first; where all are busy a new one waits.
const MAX_BUCKETS: usize = 1 << 16;

/// One caller's bucket.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    left: f64,
    at: Instant,
    rate: Rate,
}

impl TokenBucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now: Instant) -> TokenBucket {
        TokenBucket { left: rate.burst, at: now, rate }
    }

    /// Counts what came at `now`; says how long to wait before more is taken.
    pub(crate) fn pace(&mut self, now: Instant) -> Duration {
        (self.left, self.at) = (self.now(now) - 1.0, now);
        Duration::from_secs_f64((-self.left / self.rate.per_s).max(0.0))
    }

    fn now(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + since * self.rate.per_s).min(self.rate.burst)
    }
}

/// The buckets of all callers.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    buckets: HashMap<K, TokenBucket>,
}

impl<K: Eq + Hash> Rates<K> {
    pub(crate) fn new() -> Rates<K> {
        Rates { buckets: HashMap::new() }
    }

    /// Whether `caller` may call at `now`, which then counts.
    pub(crate) fn take(&mut self, caller: K, rate: Rate, now: Instant) -> bool {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&caller) {
            self.buckets.retain(|_, bucket| bucket.now(now) < bucket.rate.burst);
            if self.buckets.len() >= MAX_BUCKETS {
                return false;
            }
        }
        let bucket = self.buckets.entry(caller).or_insert(TokenBucket::new(rate, now));
        let left = bucket.now(now);
        (bucket.left, bucket.at) = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_and_each_caller_has_its_own() {
        let rate = Rate { per_s: 10.0, burst: 3.0 };
        let start = Instant::now();
        let mut rates = Rates::new();
        let takes = |rates: &mut Rates<&str>, who, at_ms| {
            (0..5).filter(|_| rates.take(who, rate, start + Duration::from_millis(at_ms))).count()
        };
        assert_eq!(takes(&mut rates, "a", 0), 3);
        assert_eq!(takes(&mut rates, "b", 0), 3);
        assert_eq!(takes(&mut rates, "a", 50), 0);
        assert_eq!(takes(&mut rates, "a", 150), 1);
        assert_eq!(takes(&mut rates, "a", 60_000), 3);
    }

    #[test]
    fn whoever_goes_on_beyond_a_burst_is_held_to_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(Rate { per_s: 10.0, burst: 3.0 }, start);
        let mut at = start;
        for _ in 0..103 {
            at += bucket.pace(at);
        }
        let took = (at - start).as_secs_f64();
        assert!((took - 10.0).abs() < 1e-6, "{took}");
    }

    #[test]
    fn the_number_of_callers_is_bounded() {
        let rate = Rate { per_s: 1.0, burst: 2.0 };
        let start = Instant::now();
        let mut rates = Rates::new();
        assert!((0..MAX_BUCKETS).all(|caller| rates.take(caller, rate, start)));
        assert!(!rates.take(MAX_BUCKETS, rate, start), "all are busy");
        assert!(rates.take(7, rate, start), "a known one goes on");
        assert!(rates.take(MAX_BUCKETS, rate, start + Duration::from_secs(3)));
        assert_eq!(rates.buckets.len(), 1);
    }
}
