//! The scheduler: what will happen, in the order of its time, and of its number where times are equal.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

struct Due<T> {
    at_us: u64,
    number: u64,
    what: T,
}

impl<T> Due<T> {
    fn key(&self) -> (u64, u64) {
        (self.at_us, self.number)
    }
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// What will happen.
pub(crate) struct EventQueue<T> {
    heap: BinaryHeap<Reverse<Due<T>>>,
    number: u64,
}

impl<T> EventQueue<T> {
    pub(crate) fn new() -> EventQueue<T> {
        EventQueue { heap: BinaryHeap::new(), number: 0 }
    }

    pub(crate) fn push(&mut self, at_us: u64, what: T) {
        self.number += 1;
        self.heap.push(Reverse(Due { at_us, number: self.number, what }));
    }

    /// The next, with its time and number.
    pub(crate) fn pop(&mut self) -> Option<(u64, u64, T)> {
        self.heap.pop().map(|Reverse(due)| (due.at_us, due.number, due.what))
    }
}
