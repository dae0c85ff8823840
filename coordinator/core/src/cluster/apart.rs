//! Workers between which the network does not answer, though both reach the coordinator. They are not put together
//! again for a while; the next time for twice as long.

use std::collections::BTreeMap;

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerInfo;

/// How long two workers are kept apart the first time, in milliseconds: about as long as it takes them to find out that
/// they still do not reach each other.
pub const APART_MS: u64 = 10_000;

/// How often that time doubles: up to 160 seconds.
const MAX_DOUBLINGS: u32 = 4;

/// How long after that it is remembered how often they were kept apart.
const REMEMBERED_MS: u64 = 3_600_000;

/// How many pairs are kept apart at most; looking at them is a part of each choice of workers.
const MAX_PAIRS: usize = 256;

/// Two workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair(WorkerId, WorkerId);

impl Pair {
    /// The pair, in whichever order they are named.
    pub(super) fn of(one: WorkerId, other: WorkerId) -> Pair {
        if one < other { Pair(one, other) } else { Pair(other, one) }
    }

    fn has(&self, worker: &WorkerId) -> bool {
        self.0 == *worker || self.1 == *worker
    }
}

/// Two workers that are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parted<'a> {
    pub(super) one: &'a WorkerId,
    pub(super) other: &'a WorkerId,
    /// For how long still.
    pub(super) left_ms: u64,
}

/// Pairs of workers that are kept apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Apart(BTreeMap<Pair, KeptApart>);

/// Until when a pair is kept apart, and how often it had to be since it worked together.
#[derive(Clone, Copy, Debug)]
struct KeptApart {
    until_ms: u64,
    times: u32,
}

impl Apart {
    /// The network between these did not answer.
    pub(super) fn keep(&mut self, now_ms: u64, pairs: impl IntoIterator<Item = Pair>) {
        self.0.retain(|_, kept| now_ms < kept.until_ms + REMEMBERED_MS);
        for pair in pairs {
            if self.0.len() >= MAX_PAIRS && !self.0.contains_key(&pair) {
                return;
            }
            let kept = self.0.entry(pair).or_insert(KeptApart { until_ms: 0, times: 0 });
            kept.until_ms = now_ms + (APART_MS << kept.times.min(MAX_DOUBLINGS));
            kept.times += 1;
        }
    }

    /// These have taken a step together.
    pub(super) fn met(&mut self, here: impl Fn(&WorkerId) -> bool) {
        self.0.retain(|pair, _| !(here(&pair.0) && here(&pair.1)));
    }

    /// When the next pair may be tried again.
    pub(super) fn ends_ms(&self, now_ms: u64) -> Option<u64> {
        self.0.values().map(|kept| kept.until_ms).filter(|until_ms| *until_ms > now_ms).min()
    }

    /// When all may be tried again.
    pub(super) fn last_ms(&self) -> Option<u64> {
        self.0.values().map(|kept| kept.until_ms).max()
    }

    /// Whether these two are kept apart.
    pub(super) fn parts(&self, now_ms: u64, one: &WorkerId, other: &WorkerId) -> bool {
        self.now(now_ms).any(|pair| pair.has(one) && pair.has(other))
    }

    fn now(&self, now_ms: u64) -> impl Iterator<Item = &Pair> {
        self.0.iter().filter(move |(_, kept)| kept.until_ms > now_ms).map(|(pair, _)| pair)
    }

    /// Those of `group` that may all work together, as many as are found by leaving out first who is kept apart from
    /// the most others. They keep their order.
    pub(super) fn together<'a>(&self, now_ms: u64, group: Vec<&'a WorkerInfo>) -> Vec<&'a WorkerInfo> {
        let mut group = group;
        loop {
            let here = |worker: &WorkerId| group.iter().any(|info| info.id == *worker);
            let apart: Vec<_> = self.now(now_ms).filter(|pair| here(&pair.0) && here(&pair.1)).collect();
            let count = |info: &WorkerInfo| apart.iter().filter(|pair| pair.has(&info.id)).count();
            // Of equal ones the last, which the job wants least.
            let worst = (0..group.len()).max_by_key(|&at| count(group[at]));
            match worst.filter(|&at| count(group[at]) > 0) {
                Some(at) => group.remove(at),
                None => return group,
            };
        }
    }

    /// Two of `group` that keep it from working together.
    pub(super) fn first_pair(&self, now_ms: u64, group: &[&WorkerInfo]) -> Option<Parted<'_>> {
        let here = |worker: &WorkerId| group.iter().any(|info| info.id == *worker);
        let pair = self.now(now_ms).find(|pair| here(&pair.0) && here(&pair.1))?;
        let left_ms = self.0.get(pair)?.until_ms.saturating_sub(now_ms);
        Some(Parted { one: &pair.0, other: &pair.1, left_ms })
    }
}
